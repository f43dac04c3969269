//! q4_0 and q4_1: 32 numbers of 4 bits. q4_0 (18 bytes): f16 scale d, value = d·(q - 8). q4_1 (20 bytes): f16 d, f16 m,
//! value = d·q + m. Byte j holds number j in its low half and number j + 16 in its high half.

const std = @import("std");
const base = @import("base");
const convert = @import("../convert.zig");

pub const len = 32;
pub const bytes = 18;
pub const bytes_1 = 20;

/// `raw`: whole blocks; `out`: 32 numbers each.
pub fn dequantize(raw: []const u8, out: []f32) void {
    std.debug.assert(raw.len == out.len / len * bytes);
    for (0..out.len / len) |b| {
        const block = raw[b * bytes ..][0..bytes];
        const d = convert.f16ToF32(base.bytes.load(u16, block[0..2]));
        for (0..16) |j| {
            out[b * len + j] = d * @as(f32, @floatFromInt(@as(i32, block[2 + j] & 15) - 8));
            out[b * len + j + 16] = d * @as(f32, @floatFromInt(@as(i32, block[2 + j] >> 4) - 8));
        }
    }
}

pub fn dequantize1(raw: []const u8, out: []f32) void {
    std.debug.assert(raw.len == out.len / len * bytes_1);
    for (0..out.len / len) |b| {
        const block = raw[b * bytes_1 ..][0..bytes_1];
        const d = convert.f16ToF32(base.bytes.load(u16, block[0..2]));
        const m = convert.f16ToF32(base.bytes.load(u16, block[2..4]));
        for (0..16) |j| {
            out[b * len + j] = d * @as(f32, @floatFromInt(block[4 + j] & 15)) + m;
            out[b * len + j + 16] = d * @as(f32, @floatFromInt(block[4 + j] >> 4)) + m;
        }
    }
}
