// What every C guest here needs: a way to export functions, and memory for the host to write
// arguments into. Each guest is one translation unit, so a header may define things.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define EXPORT(name) __attribute__((export_name(#name))) name
#define IMPORT(name) __attribute__((import_module("env"), import_name(#name))) name

enum { PAGE_BYTES = 65536, ALIGNMENT = 16 };

extern unsigned char __heap_base;  // Set by the linker: the first byte after stack and data.
static uintptr_t heap_top = (uintptr_t)&__heap_base;

// Returns `size` bytes that start at a multiple of ALIGNMENT, or null when the memory cannot
// grow that far. There is no free(): guests this short release everything at once.
void *EXPORT(alloc)(size_t size) {
    uintptr_t start, end;
    if (__builtin_add_overflow(heap_top, -heap_top % ALIGNMENT, &start) ||
        __builtin_add_overflow(start, size, &end))
        return NULL;
    size_t have = __builtin_wasm_memory_size(0);
    size_t want = end / PAGE_BYTES + (end % PAGE_BYTES != 0);
    if (want > have && __builtin_wasm_memory_grow(0, want - have) == (size_t)-1) return NULL;
    heap_top = end;
    return (void *)start;
}

// Releases everything `alloc` gave out. The memory keeps its size: wasm cannot shrink it.
void EXPORT(reset)(void) { heap_top = (uintptr_t)&__heap_base; }
