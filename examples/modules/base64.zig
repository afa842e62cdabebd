//! Base64 with the standard alphabet and padding (RFC 4648, section 4).

comptime {
    _ = @import("guest.zig");
}

const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const pad = '=';
const no_digit = 0xFF;

const values = blk: {
    var table: [256]u8 = @splat(no_digit);
    for (alphabet, 0..) |digit, value| table[digit] = value;
    break :blk table;
};

/// Writes the text of `size` bytes to `out`, and returns its length: four for every three bytes
/// begun.
export fn encode(data: [*]const u8, size: usize, out: [*]u8) usize {
    var length: usize = 0;
    var at: usize = 0;
    while (at < size) : (at += 3) {
        const have = @min(size - at, 3);
        var bits: u24 = 0;
        for (0..3) |i| bits = bits << 8 | if (i < have) data[at + i] else 0;
        for (0..4) |i| {
            const digit: u6 = @truncate(bits >> @intCast(18 - 6 * i));
            out[length + i] = if (i <= have) alphabet[digit] else pad;
        }
        length += 4;
    }
    return length;
}

/// Writes the bytes of `size` characters of text to `out`, and returns how many there are, or -1
/// if the text is not base64.
export fn decode(text: [*]const u8, size: usize, out: [*]u8) i32 {
    if (size % 4 != 0) return -1;
    var length: usize = 0;
    var at: usize = 0;
    while (at < size) : (at += 4) {
        var have: usize = 4;
        if (at + 4 == size) {
            if (text[at + 3] == pad) have = if (text[at + 2] == pad) 2 else 3;
        }
        var bits: u24 = 0;
        for (0..4) |i| {
            const value = if (i < have) values[text[at + i]] else 0;
            if (value == no_digit) return -1;
            bits = bits << 6 | @as(u24, value);
        }
        // What is left of the last digit must be zero, or two texts would mean the same.
        const unused: u5 = @intCast(8 * (4 - have));
        if (bits & ((@as(u24, 1) << unused) - 1) != 0) return -1;
        for (0..have - 1) |i| out[length + i] = @truncate(bits >> @intCast(16 - 8 * i));
        length += have - 1;
    }
    return @intCast(length);
}
