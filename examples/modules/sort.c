// Sorts numbers in an order that only the host knows: it is asked about each pair. The numbers
// can be the places of the host's own objects, which never come here.
#include "guest.h"

// Below 0 if `a` comes before `b`, above 0 if it comes after, 0 if it does not matter.
int IMPORT(compare)(uint32_t a, uint32_t b);

static void merge(const uint32_t *from, uint32_t *to, size_t start, size_t middle, size_t end) {
    size_t left = start, right = middle;
    for (size_t i = start; i < end; i++) {
        // The right one must be strictly before the left one: that keeps the sort stable.
        if (right < end && (left == middle || compare(from[right], from[left]) < 0))
            to[i] = from[right++];
        else
            to[i] = from[left++];
    }
}

static size_t bounded(size_t value, size_t limit) { return value < limit ? value : limit; }

// Sorts in place. Returns 0, or -1 when there is no memory for a copy.
int EXPORT(sort)(uint32_t *numbers, size_t count) {
    uintptr_t mark = heap_top;
    uint32_t *copy = count > SIZE_MAX / sizeof *copy ? NULL : alloc(count * sizeof *copy);
    if (copy == NULL) return -1;

    uint32_t *from = numbers, *to = copy;
    for (size_t run = 1; run < count; run *= 2) {
        for (size_t start = 0; start < count; start += 2 * run)
            merge(from, to, start, bounded(start + run, count), bounded(start + 2 * run, count));
        uint32_t *sorted = to;
        to = from;
        from = sorted;
    }
    if (from != numbers) __builtin_memcpy(numbers, from, count * sizeof *numbers);
    heap_top = mark;
    return 0;
}
