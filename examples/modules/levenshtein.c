// How many characters one must insert, delete or replace to turn one text into another.
#include "guest.h"

// Splits UTF-8 into characters, and returns how many there are. They are only compared, so each
// is kept as its bytes, one after the other in a number.
static size_t split(const uint8_t *text, size_t size, uint32_t *characters) {
    size_t count = 0;
    for (size_t i = 0; i < size; i++) {
        if (text[i] >> 6 == 2 && count > 0)
            characters[count - 1] = characters[count - 1] << 8 | text[i];
        else
            characters[count++] = text[i];
    }
    return count;
}

static uint32_t least(uint32_t a, uint32_t b) { return a < b ? a : b; }

// Returns the distance between two UTF-8 texts, or -1 when there is no memory to find it.
int EXPORT(distance)(const uint8_t *from, size_t from_size, const uint8_t *to, size_t to_size) {
    uintptr_t mark = heap_top;
    uint32_t *a = alloc((from_size + 1) * sizeof *a);
    uint32_t *b = alloc((to_size + 1) * sizeof *b);
    uint32_t *row = alloc((to_size + 1) * sizeof *row);
    if (a == NULL || b == NULL || row == NULL) {
        heap_top = mark;
        return -1;
    }
    size_t rows = split(from, from_size, a), columns = split(to, to_size, b);

    // row[j] is the distance from the first i characters of `a` to the first j of `b`.
    for (size_t j = 0; j <= columns; j++) row[j] = j;
    for (size_t i = 1; i <= rows; i++) {
        uint32_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= columns; j++) {
            uint32_t replaced = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            row[j] = least(replaced, least(row[j], row[j - 1]) + 1);
        }
    }
    int distance = (int)row[columns];
    heap_top = mark;
    return distance;
}
