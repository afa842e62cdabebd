// CRC-32 as in zip, gzip and PNG: the polynomial 0x04C11DB7 with its bits reversed.
#include "guest.h"

enum { POLYNOMIAL = 0xEDB88320 };

static uint32_t table[256];

// The remainder of each single byte, worked out once: 1 KiB that the module need not carry.
static void fill_table(void) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t remainder = byte;
        for (int bit = 0; bit < 8; bit++)
            remainder = remainder >> 1 ^ (remainder & 1 ? (uint32_t)POLYNOMIAL : 0);
        table[byte] = remainder;
    }
}

// Returns the CRC of what `crc` is the CRC of, followed by `data`. Start with 0.
uint32_t EXPORT(crc32)(uint32_t crc, const uint8_t *data, size_t size) {
    if (table[1] == 0) fill_table();
    crc = ~crc;
    for (size_t i = 0; i < size; i++) crc = crc >> 8 ^ table[(crc ^ data[i]) & 0xFF];
    return ~crc;
}
