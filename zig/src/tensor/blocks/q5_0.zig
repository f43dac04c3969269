//! q5_0 and q5_1: 32 numbers of 5 bits. q5_0 (22 bytes): f16 scale d, value = d·(q - 16). q5_1 (24 bytes): f16 d, f16 m,
//! value = d·q + m. Then 32 high bits (bit i for number i) and low halves as in q4_0.

const std = @import("std");
const base = @import("base");
const convert = @import("../convert.zig");

pub const len = 32;
pub const bytes = 22;
pub const bytes_1 = 24;

/// `raw`: whole blocks; `out`: 32 numbers each.
pub fn dequantize(raw: []const u8, out: []f32) void {
    std.debug.assert(raw.len == out.len / len * bytes);
    for (0..out.len / len) |b| {
        const block = raw[b * bytes ..][0..bytes];
        const d = convert.f16ToF32(base.bytes.load(u16, block[0..2]));
        for (0..len) |i| out[b * len + i] = d * @as(f32, @floatFromInt(@as(i32, number(block[2..], i)) - 16));
    }
}

pub fn dequantize1(raw: []const u8, out: []f32) void {
    std.debug.assert(raw.len == out.len / len * bytes_1);
    for (0..out.len / len) |b| {
        const block = raw[b * bytes_1 ..][0..bytes_1];
        const d = convert.f16ToF32(base.bytes.load(u16, block[0..2]));
        const m = convert.f16ToF32(base.bytes.load(u16, block[2..4]));
        for (0..len) |i| out[b * len + i] = d * @as(f32, @floatFromInt(number(block[4..], i))) + m;
    }
}

/// `body`: the high bits, then the halves.
fn number(body: *const [20]u8, i: usize) u8 {
    const half = body[4 + i % 16];
    const low = if (i < 16) half & 15 else half >> 4;
    return low | (body[i / 8] >> @intCast(i % 8) & 1) << 4;
}
