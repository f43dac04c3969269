//! MXFP4: 32 numbers of 4 bits (sign, two bits of exponent, one of mantissa) and one power of two (17 bytes).
//!
//! The table holds twice the values so that all are whole; the scale is half of 2^(e - 127). Byte j holds number j in its low
//! half and number j + 16 in its high half. e = 255 is no number.

const std = @import("std");

pub const len = 32;
pub const bytes = 17;
pub const doubled = [16]i8{ 0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12 };

/// 2^(e - 128)
pub fn halfScale(e: u8) f32 {
    return @bitCast(if (e < 2) @as(u32, 0x0020_0000) << @intCast(e) else (@as(u32, e) - 1) << 23);
}

/// `raw`: whole blocks; `out`: 32 numbers each.
pub fn dequantize(raw: []const u8, out: []f32) void {
    std.debug.assert(raw.len == out.len / len * bytes);
    for (0..out.len / len) |b| {
        const block = raw[b * bytes ..][0..bytes];
        const d = halfScale(block[0]);
        for (0..16) |j| {
            out[b * len + j] = @as(f32, @floatFromInt(doubled[block[1 + j] & 15])) * d;
            out[b * len + j + 16] = @as(f32, @floatFromInt(doubled[block[1 + j] >> 4])) * d;
        }
    }
}

test "scales are powers of two down to the subnormal ones" {
    for (0..256) |e| try std.testing.expectEqual(std.math.ldexp(@as(f32, 1), @as(i32, @intCast(e)) - 128), halfScale(@intCast(e)));
}
