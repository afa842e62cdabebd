//! Renders the Mandelbrot set as text, one byte a point: a guest that only computes.

const memory_pixels = 256 * 256;
const shades = " .:-=+*#%@";

var pixels: [memory_pixels]u8 = undefined;

/// How many of `limit` steps a point takes to escape.
fn escape(cx: f64, cy: f64, limit: u32) u32 {
    var x: f64 = 0;
    var y: f64 = 0;
    for (0..limit) |step| {
        if (x * x + y * y > 4) return @intCast(step);
        const next = x * x - y * y + cx;
        y = 2 * x * y + cy;
        x = next;
    }
    return limit;
}

/// Renders the whole set and returns where the picture starts, row after row without line ends,
/// or 0 if it would not fit.
export fn render(width: u32, height: u32, limit: u32) u32 {
    if (width == 0 or height == 0 or limit == 0 or height > memory_pixels / width) return 0;
    const step_x = 3.0 / @as(f64, @floatFromInt(width));
    const step_y = 2.0 / @as(f64, @floatFromInt(height));
    for (0..height) |row| {
        const cy = (@as(f64, @floatFromInt(row)) + 0.5) * step_y - 1;
        for (0..width) |column| {
            const cx = (@as(f64, @floatFromInt(column)) + 0.5) * step_x - 2;
            const steps: u64 = escape(cx, cy, limit);
            pixels[row * width + column] = shades[@intCast(steps * (shades.len - 1) / limit)];
        }
    }
    return @intFromPtr(&pixels);
}
