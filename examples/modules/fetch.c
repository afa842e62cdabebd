// Asks its host for two documents and reports on both. This is plain sequential C: that `fetch`
// is a coroutine on the other side, during which other guests run, does not show here.
#include "guest.h"

enum { BUFFER_BYTES = 65536 };

// Fetches a document into the buffer, and returns its size or -1.
int IMPORT(fetch)(const char *url, size_t url_size, char *buffer, size_t capacity);
void IMPORT(log)(const char *text, size_t size);

static int count_lines(const char *text, size_t size) {
    int lines = 0;
    for (size_t i = 0; i < size; i++) lines += text[i] == '\n';
    return lines;
}

static char *put_text(char *to, const char *text, size_t size) {
    __builtin_memcpy(to, text, size);
    return to + size;
}

static char *put_number(char *to, unsigned number) {
    if (number >= 10) to = put_number(to, number / 10);
    *to++ = (char)('0' + number % 10);
    return to;
}

// Returns how many lines the two documents have together, or -1 if one could not be had.
int EXPORT(run)(const char *first, size_t first_size, const char *second, size_t second_size) {
    char *buffer = alloc(BUFFER_BYTES);
    if (buffer == NULL) return -1;

    int size = fetch(first, first_size, buffer, BUFFER_BYTES);
    if (size < 0) return -1;
    int above = count_lines(buffer, size);
    size = fetch(second, second_size, buffer, BUFFER_BYTES);
    if (size < 0) return -1;
    int below = count_lines(buffer, size);

    char *end = put_number(buffer, above);
    end = put_text(end, " + ", 3);
    end = put_number(end, below);
    end = put_text(end, " lines", 6);
    log(buffer, end - buffer);
    return above + below;
}
