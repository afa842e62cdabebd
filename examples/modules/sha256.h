// SHA-256 (FIPS 180-4), for messages that arrive in pieces.
#pragma once

#include <stddef.h>
#include <stdint.h>

enum { SHA256_BLOCK = 64, SHA256_DIGEST = 32 };

typedef struct {
    uint32_t state[8];
    uint64_t length;  // Bytes so far; the last `length % SHA256_BLOCK` of them wait in `block`.
    uint8_t block[SHA256_BLOCK];
} Sha256;

// The first 32 bits of the fractional parts of the cube roots of the first 64 primes.
static const uint32_t SHA256_ROUND[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static inline uint32_t load_be32(const uint8_t *from) {
    uint32_t word;
    __builtin_memcpy(&word, from, sizeof word);
    return __builtin_bswap32(word);  // wasm is little-endian everywhere.
}

static inline void store_be32(uint8_t *to, uint32_t word) {
    word = __builtin_bswap32(word);
    __builtin_memcpy(to, &word, sizeof word);
}

static void sha256_init(Sha256 *hash) {
    // The first 32 bits of the fractional parts of the square roots of the first 8 primes.
    *hash = (Sha256){.state = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                               0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19}};
}

static void sha256_compress(uint32_t state[8], const uint8_t block[SHA256_BLOCK]) {
    uint32_t schedule[64], work[8];
    for (int t = 0; t < 16; t++) schedule[t] = load_be32(block + 4 * t);
    for (int t = 16; t < 64; t++) {
        uint32_t early = schedule[t - 15], late = schedule[t - 2];
        uint32_t sigma0 = __builtin_rotateright32(early, 7) ^ __builtin_rotateright32(early, 18) ^
                          (early >> 3);
        uint32_t sigma1 = __builtin_rotateright32(late, 17) ^ __builtin_rotateright32(late, 19) ^
                          (late >> 10);
        schedule[t] = schedule[t - 16] + sigma0 + schedule[t - 7] + sigma1;
    }

    __builtin_memcpy(work, state, sizeof work);
    for (int t = 0; t < 64; t++) {
        uint32_t a = work[0], b = work[1], c = work[2], e = work[4], f = work[5], g = work[6];
        uint32_t sum1 = __builtin_rotateright32(e, 6) ^ __builtin_rotateright32(e, 11) ^
                        __builtin_rotateright32(e, 25);
        uint32_t sum0 = __builtin_rotateright32(a, 2) ^ __builtin_rotateright32(a, 13) ^
                        __builtin_rotateright32(a, 22);
        uint32_t choice = (e & f) ^ (~e & g), majority = (a & b) ^ (a & c) ^ (b & c);
        uint32_t first = work[7] + sum1 + choice + SHA256_ROUND[t] + schedule[t];
        for (int i = 7; i > 0; i--) work[i] = work[i - 1];
        work[4] += first;
        work[0] = first + sum0 + majority;
    }
    for (int i = 0; i < 8; i++) state[i] += work[i];
}

static void sha256_update(Sha256 *hash, const uint8_t *data, size_t size) {
    size_t waiting = hash->length % SHA256_BLOCK;
    hash->length += size;
    while (waiting + size >= SHA256_BLOCK) {
        size_t taken = SHA256_BLOCK - waiting;
        __builtin_memcpy(hash->block + waiting, data, taken);
        sha256_compress(hash->state, hash->block);
        data += taken;
        size -= taken;
        waiting = 0;
    }
    __builtin_memcpy(hash->block + waiting, data, size);
}

static void sha256_final(Sha256 *hash, uint8_t digest[SHA256_DIGEST]) {
    static const uint8_t padding[SHA256_BLOCK] = {0x80};
    uint64_t bits = hash->length * 8;
    uint8_t trailer[8];
    store_be32(trailer, bits >> 32);
    store_be32(trailer + 4, (uint32_t)bits);
    // Pad with 0x80 and zeros up to 8 bytes before the end of a block; the length fills those.
    sha256_update(hash, padding, 1 + (119 - hash->length % SHA256_BLOCK) % SHA256_BLOCK);
    sha256_update(hash, trailer, sizeof trailer);
    for (int i = 0; i < 8; i++) store_be32(digest + 4 * i, hash->state[i]);
}
