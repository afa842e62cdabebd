//! Pseudo-random numbers: xoshiro256**, seeded by SplitMix64 as its authors advise. The state is
//! the instance's, so that every instance is a generator of its own. Not for secrets.

comptime {
    _ = @import("guest.zig");
}

var state = [4]u64{ 1, 2, 3, 4 };

fn rotate(value: u64, comptime by: u6) u64 {
    return value << by | value >> (64 - @as(u7, by));
}

/// Starts the sequence that belongs to `number`.
export fn seed(number: u64) void {
    var counter = number;
    for (&state) |*word| {
        counter +%= 0x9E3779B97F4A7C15;
        var mixed = counter;
        mixed = (mixed ^ mixed >> 30) *% 0xBF58476D1CE4E5B9;
        mixed = (mixed ^ mixed >> 27) *% 0x94D049BB133111EB;
        word.* = mixed ^ mixed >> 31;
    }
}

/// Returns the next 64 bits.
export fn next() u64 {
    const result = rotate(state[1] *% 5, 7) *% 9;
    const shifted = state[1] << 17;
    state[2] ^= state[0];
    state[3] ^= state[1];
    state[1] ^= state[2];
    state[0] ^= state[3];
    state[2] ^= shifted;
    state[3] = rotate(state[3], 45);
    return result;
}

/// Returns a number from 0 up to, but not including, 1.
export fn random() f64 {
    return @as(f64, @floatFromInt(next() >> 11)) * 0x1p-53;
}

/// Writes `size` bytes to `out`: those of the next numbers, the lowest first.
export fn fill(out: [*]u8, size: usize) void {
    var bits: u64 = 0;
    for (0..size) |i| {
        bits = if (i % 8 == 0) next() else bits >> 8;
        out[i] = @truncate(bits);
    }
}
