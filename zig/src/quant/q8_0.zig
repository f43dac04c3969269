//! q8_0: a block of 32 becomes an f16 scale (largest magnitude / 127) and 32 bytes rounded half away from zero.
//!
//! The division uses the f32 scale, not its f16 rounding; ggml does so, and the bytes must be equal.

const std = @import("std");
const base = @import("base");
const tensor = @import("tensor");

const len = tensor.blocks.q8_0.len;
const block_bytes = tensor.blocks.q8_0.bytes;
const V = @Vector(len, f32);
const I = @Vector(len, i32);

/// `values` are finite and whole blocks. Fails when a scale does not fit f16.
pub fn quantize(values: []const f32, out: []u8) error{NotFinite}!void {
    std.debug.assert(values.len % len == 0);
    std.debug.assert(out.len == values.len / len * block_bytes);
    for (0..values.len / len) |b| {
        const x: V = values[b * len ..][0..len].*;
        const largest = @reduce(.Max, @abs(x));
        const scale = largest / 127.0;
        const half = tensor.convert.f32ToF16(scale);
        if (half & 0x7C00 == 0x7C00) return error.NotFinite;

        // A scale so small that its inverse overflows stores as 0, and so do its bytes.
        var inverse: f32 = if (scale != 0) 1.0 / scale else 0;
        if (!std.math.isFinite(inverse)) inverse = 0;
        const block = out[b * block_bytes ..][0..block_bytes];
        base.bytes.store(u16, block[0..2], half);
        block[2..].* = @bitCast(@as(@Vector(len, i8), @intCast(roundHalfAway(x * @as(V, @splat(inverse))))));
    }
}

/// C's roundf for |x| < 2^23: adding 0.5 first would carry 0.49999997 over the edge.
fn roundHalfAway(x: V) I {
    const whole: I = @trunc(x);
    const rest = x - @as(V, @floatFromInt(whole));
    const up = @select(i32, rest >= @as(V, @splat(0.5)), @as(I, @splat(1)), @as(I, @splat(0)));
    const down = @select(i32, rest <= @as(V, @splat(-0.5)), @as(I, @splat(1)), @as(I, @splat(0)));
    return whole + up - down;
}

test "rounding is half away from zero, exact just below a half" {
    var x: V = @splat(0);
    const cases = [_]f32{ 0.5, -0.5, 1.5, -2.5, 0.49999997, -0.49999997, 126.5, -127.0, 3.2 };
    const want = [_]i32{ 1, -1, 2, -3, 0, 0, 127, -127, 3 };
    x = blk: {
        var a: [len]f32 = @splat(0);
        @memcpy(a[0..cases.len], &cases);
        break :blk a;
    };
    const got: [len]i32 = roundHalfAway(x);
    try std.testing.expectEqualSlices(i32, &want, got[0..want.len]);
}

test "zero and vanishing blocks become zero bytes" {
    var out: [block_bytes]u8 = undefined;
    for ([_]f32{ 0, 1e-45, 1e-40 }) |tiny| {
        const values: [len]f32 = @splat(tiny);
        try quantize(&values, &out);
        try std.testing.expectEqualSlices(u8, &@as([block_bytes]u8, @splat(0)), &out);
    }
}

test "decoding is within half a step of the source" {
    var prng: std.Random.DefaultPrng = .init(3);
    var values: [256]f32 = undefined;
    var out: [8 * block_bytes]u8 = undefined;
    var back: [256]f32 = undefined;
    for (&values) |*v| v.* = prng.random().floatNorm(f32);
    try quantize(&values, &out);
    tensor.blocks.q8_0.dequantize(&out, &back);
    for (0..8) |b| {
        var largest: f32 = 0;
        for (values[b * len ..][0..len]) |v| largest = @max(largest, @abs(v));
        // Half a step for the byte, and 127 steps times the f16 rounding of the scale.
        for (values[b * len ..][0..len], back[b * len ..][0..len]) |v, r|
            try std.testing.expect(@abs(v - r) <= largest / 127 * (0.5 + 127.0 / 2048.0 + 1e-3));
    }
}
