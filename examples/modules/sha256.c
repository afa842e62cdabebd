// A streaming SHA-256. The host keeps as many hashes as it likes, each in `sha256_size()` bytes
// that it got from `alloc`.
#include "guest.h"
#include "sha256.h"

size_t EXPORT(sha256_size)(void) { return sizeof(Sha256); }

void EXPORT(init)(Sha256 *hash) { sha256_init(hash); }

void EXPORT(update)(Sha256 *hash, const uint8_t *data, size_t size) {
    sha256_update(hash, data, size);
}

// Writes 32 bytes to `digest`. The hash is spent then: `init` it before the next message.
void EXPORT(final)(Sha256 *hash, uint8_t *digest) { sha256_final(hash, digest); }
