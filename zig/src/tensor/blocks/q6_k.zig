//! q6_K: 256 numbers as 16 parts of 16, each with a signed 8-bit scale (210 bytes): 128 bytes of low halves, 64 of upper
//! bit pairs, 16 scales, f16 d at the end. Value = (d·scale)·(q - 32), each product rounded.
//!
//! Half p (128 numbers), quarter t (32), number l: the low half stands in byte 64p + 32(t mod 2) + l, low for t < 2; the upper
//! two bits at bit 2t of byte 32p + l.

const std = @import("std");
const base = @import("base");
const convert = @import("../convert.zig");

pub const len = 256;
pub const bytes = 210;

/// `raw`: whole blocks; `out`: 256 numbers each.
pub fn dequantize(raw: []const u8, out: []f32) void {
    std.debug.assert(raw.len == out.len / len * bytes);
    for (0..out.len / len) |b| {
        const block = raw[b * bytes ..][0..bytes];
        const d = convert.f16ToF32(base.bytes.load(u16, block[208..210]));
        for (0..2) |p| for (0..4) |t| for (0..32) |l| {
            const half = block[64 * p + 32 * (t % 2) + l];
            const low = if (t < 2) half & 15 else half >> 4;
            const high = block[128 + 32 * p + l] >> @intCast(2 * t) & 3;
            const scale: i8 = @bitCast(block[192 + 8 * p + 2 * t + l / 16]);
            const q: i32 = @as(i32, low | high << 4) - 32;
            out[b * len + 128 * p + 32 * t + l] = d * @as(f32, @floatFromInt(scale)) * @as(f32, @floatFromInt(q));
        };
    }
}
