// scrypt (RFC 7914), on PBKDF2 (RFC 8018) with HMAC-SHA-256 (RFC 2104).
#include "guest.h"
#include "sha256.h"

enum { OK = 0, BAD_PARAMETERS = 1, OUT_OF_MEMORY = 2 };
enum { SALSA_BYTES = 64, SALSA_WORDS = SALSA_BYTES / 4 };

// An HMAC that has read its key. PBKDF2 uses one key many times, so this is done once.
typedef struct {
    Sha256 inner, outer;
} Hmac;

static void hmac_init(Hmac *hmac, const uint8_t *key, size_t key_size) {
    uint8_t pad[SHA256_BLOCK] = {0};
    if (key_size > sizeof pad) {
        sha256_init(&hmac->inner);
        sha256_update(&hmac->inner, key, key_size);
        sha256_final(&hmac->inner, pad);
    } else {
        __builtin_memcpy(pad, key, key_size);
    }
    for (size_t i = 0; i < sizeof pad; i++) pad[i] ^= 0x36;
    sha256_init(&hmac->inner);
    sha256_update(&hmac->inner, pad, sizeof pad);
    for (size_t i = 0; i < sizeof pad; i++) pad[i] ^= 0x36 ^ 0x5c;
    sha256_init(&hmac->outer);
    sha256_update(&hmac->outer, pad, sizeof pad);
}

static void hmac_final(Hmac *hmac, uint8_t digest[SHA256_DIGEST]) {
    sha256_final(&hmac->inner, digest);
    sha256_update(&hmac->outer, digest, SHA256_DIGEST);
    sha256_final(&hmac->outer, digest);
}

void EXPORT(pbkdf2)(const uint8_t *password, size_t password_size, const uint8_t *salt,
                    size_t salt_size, uint32_t iterations, uint8_t *out, size_t out_size) {
    Hmac keyed, salted, hmac;
    hmac_init(&keyed, password, password_size);
    salted = keyed;
    sha256_update(&salted.inner, salt, salt_size);

    for (uint32_t index = 1; out_size > 0; index++) {
        uint8_t number[4], digest[SHA256_DIGEST], block[SHA256_DIGEST];
        store_be32(number, index);
        hmac = salted;
        sha256_update(&hmac.inner, number, sizeof number);
        hmac_final(&hmac, digest);
        __builtin_memcpy(block, digest, sizeof block);
        for (uint32_t i = 1; i < iterations; i++) {
            hmac = keyed;
            sha256_update(&hmac.inner, digest, sizeof digest);
            hmac_final(&hmac, digest);
            for (size_t k = 0; k < sizeof block; k++) block[k] ^= digest[k];
        }
        size_t taken = out_size < sizeof block ? out_size : sizeof block;
        __builtin_memcpy(out, block, taken);
        out += taken;
        out_size -= taken;
    }
}

// One quarter round of Salsa20 on four words of `x`.
#define QUARTER(a, b, c, d)                         \
    x[b] ^= __builtin_rotateleft32(x[a] + x[d], 7);  \
    x[c] ^= __builtin_rotateleft32(x[b] + x[a], 9);  \
    x[d] ^= __builtin_rotateleft32(x[c] + x[b], 13); \
    x[a] ^= __builtin_rotateleft32(x[d] + x[c], 18)

static void salsa20_8(uint32_t block[SALSA_WORDS]) {
    uint32_t x[SALSA_WORDS];  // A copy, which the compiler can keep in registers.
    __builtin_memcpy(x, block, sizeof x);
    for (int round = 0; round < 8; round += 2) {
        QUARTER(0, 4, 8, 12);
        QUARTER(5, 9, 13, 1);
        QUARTER(10, 14, 2, 6);
        QUARTER(15, 3, 7, 11);
        QUARTER(0, 1, 2, 3);
        QUARTER(5, 6, 7, 4);
        QUARTER(10, 11, 8, 9);
        QUARTER(15, 12, 13, 14);
    }
    for (int i = 0; i < SALSA_WORDS; i++) block[i] += x[i];
}

static void xor_words(uint32_t *to, const uint32_t *from, size_t words) {
    for (size_t i = 0; i < words; i++) to[i] ^= from[i];
}

// scryptBlockMix: `in` and `out` are 2r Salsa blocks each and do not overlap.
static void block_mix(uint32_t *out, const uint32_t *in, size_t r) {
    uint32_t mix[SALSA_WORDS];
    __builtin_memcpy(mix, in + (2 * r - 1) * SALSA_WORDS, sizeof mix);
    for (size_t i = 0; i < 2 * r; i++) {
        xor_words(mix, in + i * SALSA_WORDS, SALSA_WORDS);
        salsa20_8(mix);
        // Blocks with even numbers go to the first half, odd ones to the second.
        __builtin_memcpy(out + (i / 2 + i % 2 * r) * SALSA_WORDS, mix, sizeof mix);
    }
}

// scryptROMix: `x` and `y` are 2r Salsa blocks each, `v` is n times that. The result is in `x`.
// n is even, so that two steps at a time can use `x` and `y` in turn instead of copying back.
static void ro_mix(uint32_t *x, uint32_t *y, uint32_t *v, size_t n, size_t r) {
    size_t words = 2 * r * SALSA_WORDS, last = words - SALSA_WORDS;
    for (size_t i = 0; i < n; i += 2) {
        __builtin_memcpy(v + i * words, x, words * sizeof *x);
        block_mix(y, x, r);
        __builtin_memcpy(v + (i + 1) * words, y, words * sizeof *y);
        block_mix(x, y, r);
    }
    for (size_t i = 0; i < n; i += 2) {
        xor_words(x, v + (x[last] & (n - 1)) * words, words);
        block_mix(y, x, r);
        xor_words(y, v + (y[last] & (n - 1)) * words, words);
        block_mix(x, y, r);
    }
}

// Writes the key to `out` and returns OK, or returns why there is none.
int EXPORT(scrypt)(const uint8_t *password, size_t password_size, const uint8_t *salt,
                   size_t salt_size, uint32_t n, uint32_t r, uint32_t p, uint8_t *out,
                   size_t out_size) {
    if (n < 2 || (n & (n - 1)) != 0 || r == 0 || p == 0) return BAD_PARAMETERS;
    if ((uint64_t)r * p >= 1 << 30 || (r == 1 && n >= 1 << 16)) return BAD_PARAMETERS;  // RFC: 6.

    // The factors are below 2^30 and about 2^33, so 64 bits hold the product.
    uint64_t lane_bytes = 2 * SALSA_BYTES * (uint64_t)r;
    uint64_t blocks = (uint64_t)n + p + 1;
    if (lane_bytes > SIZE_MAX || blocks > SIZE_MAX / lane_bytes) return OUT_OF_MEMORY;
    size_t scratch_bytes = lane_bytes * blocks, lane = lane_bytes / sizeof(uint32_t);
    uintptr_t mark = heap_top;
    uint32_t *lanes = alloc(scratch_bytes);
    if (lanes == NULL) return OUT_OF_MEMORY;
    uint32_t *y = lanes + p * lane, *v = y + lane;

    pbkdf2(password, password_size, salt, salt_size, 1, (uint8_t *)lanes, p * lane_bytes);
    for (uint32_t i = 0; i < p; i++) ro_mix(lanes + i * lane, y, v, n, r);
    pbkdf2(password, password_size, (uint8_t *)lanes, p * lane_bytes, 1, out, out_size);

    // Who can read the lanes can try passwords without paying for the mixing.
    __builtin_memset(lanes, 0, scratch_bytes);
    heap_top = mark;
    return OK;
}
