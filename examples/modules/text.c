// Small jobs on UTF-8 text that the host has written into the guest's memory.
#include <stdbool.h>

#include "guest.h"

// Hears of every word; the bytes stay where they are in the text.
void IMPORT(word)(const uint8_t *start, size_t size);

// ASCII for the letters U+00C0 to U+00FF, which UTF-8 writes as 0xC3 and one more byte.
static const char LATIN[] = "aaaaaaaceeeeiiiidnooooo-ouuuuyts"
                            "aaaaaaaceeeeiiiidnooooo-ouuuuyty";

static bool is_space(uint8_t byte) { return byte == ' ' || (byte >= '\t' && byte <= '\r'); }

// Calls `word` for every run of bytes between spaces, and returns how many there were.
int EXPORT(words)(const uint8_t *text, size_t size) {
    int count = 0;
    for (size_t i = 0; i < size; count++) {
        while (i < size && is_space(text[i])) i++;
        size_t start = i;
        while (i < size && !is_space(text[i])) i++;
        if (i == start) break;
        word(text + start, i - start);
    }
    return count;
}

// Returns the slug's letter for the character at `text`, or '-' where it has none, and the
// character's length in `taken`.
static char slug_letter(const uint8_t *text, size_t size, size_t *taken) {
    uint8_t byte = text[0];
    *taken = 1;
    if (byte == 0xC3 && size > 1 && text[1] >> 6 == 2) {
        *taken = 2;
        return LATIN[text[1] & 0x3F];
    }
    if (byte >= 'A' && byte <= 'Z') return (char)(byte | 0x20);
    return (byte >= 'a' && byte <= 'z') || (byte >= '0' && byte <= '9') ? (char)byte : '-';
}

// Writes what a URL may hold of a title ("Ünder the Sea!" is under-the-sea). Returns its length,
// which is never more than `size`.
int EXPORT(slugify)(const uint8_t *text, size_t size, char *out) {
    int length = 0;
    bool gap = false;
    for (size_t i = 0, taken; i < size; i += taken) {
        char letter = slug_letter(text + i, size - i, &taken);
        if (letter == '-') {
            gap = true;
            continue;
        }
        if (gap && length > 0) out[length++] = '-';
        gap = false;
        out[length++] = letter;
    }
    return length;
}
