//! q4_K and q5_K: 256 numbers as 8 parts of 32, each with a 6-bit scale and a 6-bit minimum.
//!
//! q4_K (144 bytes): f16 d, f16 dmin, 12 bytes of scales, 128 bytes of 4-bit numbers. q5_K (176 bytes) has 32 bytes of fifth
//! bits before the numbers: bit j of byte l belongs to number l of part j. Parts 2g and 2g + 1 share 32 bytes, the first in
//! the low halves. Value = (d·scale)·q - (dmin·minimum), each product rounded.

const std = @import("std");
const base = @import("base");
const convert = @import("../convert.zig");

pub const len = 256;
pub const bytes = 144;
pub const bytes_5 = 176;
pub const parts = 8;

pub const Pair = struct { scale: u8, minimum: u8 };

/// Scale and minimum of part `j` from the 12 packed bytes.
pub fn pair(s: *const [12]u8, j: usize) Pair {
    if (j < 4) return .{ .scale = s[j] & 63, .minimum = s[j + 4] & 63 };
    return .{ .scale = (s[j + 4] & 15) | (s[j - 4] >> 6) << 4, .minimum = (s[j + 4] >> 4) | (s[j] >> 6) << 4 };
}

/// The way back; the values are below 64.
pub fn packPairs(pairs: *const [parts]Pair, s: *[12]u8) void {
    for (0..4) |j| {
        s[j] = pairs[j].scale | (pairs[j + 4].scale >> 4) << 6;
        s[j + 4] = pairs[j].minimum | (pairs[j + 4].minimum >> 4) << 6;
        s[j + 8] = (pairs[j + 4].scale & 15) | (pairs[j + 4].minimum & 15) << 4;
    }
}

/// `raw`: whole blocks; `out`: 256 numbers each.
pub fn dequantize(raw: []const u8, out: []f32) void {
    blocksOf(bytes, raw, out);
}

pub fn dequantize5(raw: []const u8, out: []f32) void {
    blocksOf(bytes_5, raw, out);
}

fn blocksOf(comptime size: usize, raw: []const u8, out: []f32) void {
    std.debug.assert(raw.len == out.len / len * size);
    for (0..out.len / len) |b| {
        const block = raw[b * size ..][0..size];
        const d = convert.f16ToF32(base.bytes.load(u16, block[0..2]));
        const dmin = convert.f16ToF32(base.bytes.load(u16, block[2..4]));
        const halves = block[size - 128 ..];
        for (0..parts) |j| {
            const p = pair(block[4..16], j);
            const scale = d * @as(f32, @floatFromInt(p.scale));
            const minimum = dmin * @as(f32, @floatFromInt(p.minimum));
            for (0..32) |l| {
                const half = halves[j / 2 * 32 + l];
                var q = if (j % 2 == 0) half & 15 else half >> 4;
                if (size == bytes_5) q |= (block[16 + l] >> @intCast(j) & 1) << 4;
                out[b * len + j * 32 + l] = scale * @as(f32, @floatFromInt(q)) - minimum;
            }
        }
    }
}

test "packed scales come back, all 64 values of both in every place" {
    for (0..64) |v| {
        var pairs: [parts]Pair = undefined;
        for (&pairs, 0..) |*p, j| p.* = .{ .scale = @intCast((v + 7 * j) % 64), .minimum = @intCast((63 - v + 11 * j) % 64) };
        var s: [12]u8 = undefined;
        packPairs(&pairs, &s);
        for (pairs, 0..) |want, j| try std.testing.expectEqual(want, pair(&s, j));
    }
}
