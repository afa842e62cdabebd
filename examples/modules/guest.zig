//! What the Zig guests need to exchange bytes with the host: the same two functions as guest.h.

const page_bytes = 65536;
const alignment = 16;

extern const __heap_base: u8; // Set by the linker: the first byte after stack and data.
var heap_top: usize = 0;

fn bottom() usize {
    return @intFromPtr(&__heap_base);
}

/// Returns `size` bytes that start at a multiple of `alignment`, or null when the memory cannot
/// grow that far.
export fn alloc(size: usize) ?[*]u8 {
    const top: u64 = @max(heap_top, bottom());
    const start = (top + alignment - 1) / alignment * alignment;
    const end = start + size;
    if (end > 0xFFFF_FFFF) return null;
    const want = (end + page_bytes - 1) / page_bytes;
    const have = @wasmMemorySize(0);
    if (want > have and @wasmMemoryGrow(0, @intCast(want - have)) < 0) return null;
    heap_top = @intCast(end);
    return @ptrFromInt(@as(usize, @intCast(start)));
}

/// Releases everything `alloc` gave out.
export fn reset() void {
    heap_top = bottom();
}
