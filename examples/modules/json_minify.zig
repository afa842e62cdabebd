//! Takes the white space out of JSON, in place. It does not look whether the JSON makes sense.

comptime {
    _ = @import("guest.zig");
}

/// Returns how many bytes of `text` are left, or -1 if a string in it does not end.
export fn minify(text: [*]u8, size: usize) i32 {
    var length: usize = 0;
    var in_string = false;
    var escaped = false;
    for (text[0..size]) |byte| {
        if (!in_string) switch (byte) {
            ' ', '\t', '\r', '\n' => continue,
            else => {},
        };
        if (byte == '"' and !escaped) in_string = !in_string;
        escaped = in_string and byte == '\\' and !escaped;
        text[length] = byte;
        length += 1;
    }
    return if (in_string) -1 else @intCast(length);
}
