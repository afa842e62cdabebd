// Conway's Game of Life on a torus: one byte a cell, 1 if it lives, row after row.
#include "guest.h"

static size_t wrapped(size_t at, int by, size_t size) {
    return by < 0 ? (at == 0 ? size - 1 : at - 1) : by > 0 ? (at + 1 == size ? 0 : at + 1) : at;
}

// Writes the generation that follows `cells` to `next`, and returns how many of it live.
uint32_t EXPORT(step)(const uint8_t *cells, uint8_t *next, size_t width, size_t height) {
    uint32_t living = 0;
    for (size_t y = 0; y < height; y++) {
        for (size_t x = 0; x < width; x++) {
            int neighbours = 0;
            for (int dy = -1; dy <= 1; dy++)
                for (int dx = -1; dx <= 1; dx++)
                    if (dx != 0 || dy != 0)
                        neighbours +=
                            cells[wrapped(y, dy, height) * width + wrapped(x, dx, width)];
            uint8_t lives = neighbours == 3 || (neighbours == 2 && cells[y * width + x]);
            next[y * width + x] = lives;
            living += lives;
        }
    }
    return living;
}
