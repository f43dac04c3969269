//! MXFP4: 32 numbers of 4 bits (sign, two bits of exponent, one of mantissa) and one power of two (17 bytes).
//!
//! The table holds twice the values so that all are whole; the scale is half of 2^(e - 127). Byte j holds number j in its low
//! half and number j + 16 in its high half. e = 255 is no number.
//! Hugging Face keeps the same codes in pairs, number 2b in the low half of byte b and 2b + 1 in its high half, and the e of all blocks in a
//! tensor of their own. `fromPairs` and `toPairs` go from one to the other without a number being touched.

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

/// A block out of Hugging Face's two tensors.
pub fn fromPairs(e: u8, pairs: *const [16]u8, block: *[bytes]u8) void {
    block[0] = e;
    for (0..8) |j| {
        const a = pairs[j];
        const b = pairs[j + 8];
        block[1 + 2 * j] = (a & 15) | (b << 4);
        block[2 + 2 * j] = (a >> 4) | (b & 0xF0);
    }
}

/// The other way; returns e.
pub fn toPairs(block: *const [bytes]u8, pairs: *[16]u8) u8 {
    for (0..8) |j| {
        const x = block[1 + 2 * j];
        const y = block[2 + 2 * j];
        pairs[j] = (x & 15) | (y << 4);
        pairs[j + 8] = (x >> 4) | (y & 0xF0);
    }
    return block[0];
}

/// The numbers of a block in pairs.
pub fn dequantizePairs(e: u8, pairs: *const [16]u8, out: *[len]f32) void {
    const d = halfScale(e);
    for (pairs, 0..) |pair, b| {
        out[2 * b] = @as(f32, @floatFromInt(doubled[pair & 15])) * d;
        out[2 * b + 1] = @as(f32, @floatFromInt(doubled[pair >> 4])) * d;
    }
}

test "codes in pairs become a block of the same numbers, and come back" {
    var prng: std.Random.DefaultPrng = .init(3);
    for (0..255) |e| {
        var pairs: [16]u8 = undefined;
        prng.random().bytes(&pairs);
        var block: [bytes]u8 = undefined;
        fromPairs(@intCast(e), &pairs, &block);
        var wanted: [len]f32 = undefined;
        var got: [len]f32 = undefined;
        dequantizePairs(@intCast(e), &pairs, &wanted);
        dequantize(&block, &got);
        try std.testing.expectEqualSlices(f32, &wanted, &got);
        var back: [16]u8 = undefined;
        try std.testing.expectEqual(@as(u8, @intCast(e)), toPairs(&block, &back));
        try std.testing.expectEqualSlices(u8, &pairs, &back);
    }
}

test "scales are powers of two down to the subnormal ones" {
    for (0..256) |e| try std.testing.expectEqual(std.math.ldexp(@as(f32, 1), @as(i32, @intCast(e)) - 128), halfScale(@intCast(e)));
}
