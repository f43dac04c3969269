//! The old 4- and 5-bit blocks of 32: q4_0, q5_0 (a scale), q4_1, q5_1 (a scale and a minimum).
//!
//! q4_0 and q5_0 scale so that the number of largest magnitude, sign kept, becomes the lowest code. Numbers j and j + 16 share a
//! byte. The inverse of the f32 scale is used, not of its f16 rounding; ggml does so, and the bytes must be equal.

const std = @import("std");
const base = @import("base");
const tensor = @import("tensor");

const len = 32;

/// `bits` is 4 or 5. `values` are finite and whole blocks.
pub fn quantize(comptime bits: u3, values: []const f32, out: []u8) error{NotFinite}!void {
    const size = if (bits == 4) 18 else 22;
    const middle: f32 = 1 << (bits - 1);
    for (0..values.len / len) |b| {
        const x = values[b * len ..][0..len];
        const block = out[b * size ..][0..size];
        var largest: f32 = 0;
        var signed: f32 = 0;
        for (x) |v| if (largest < @abs(v)) {
            largest = @abs(v);
            signed = v;
        };
        const d = signed / -middle;
        try storeScale(block[0..2], d);
        const inverse = invert(d);
        var codes: [len]u8 = undefined;
        for (&codes, x) |*q, v| q.* = code(v * inverse + (middle + 0.5), (1 << bits) - 1);
        pack(bits, &codes, block[2..]);
    }
}

pub fn quantizeWithMinimum(comptime bits: u3, values: []const f32, out: []u8) error{NotFinite}!void {
    const size = if (bits == 4) 20 else 24;
    const steps: f32 = (1 << bits) - 1;
    for (0..values.len / len) |b| {
        const x = values[b * len ..][0..len];
        const block = out[b * size ..][0..size];
        var low: f32 = std.math.floatMax(f32);
        var high: f32 = -std.math.floatMax(f32);
        for (x) |v| {
            if (v < low) low = v;
            if (v > high) high = v;
        }
        const d = (high - low) / steps;
        try storeScale(block[0..2], d);
        try storeScale(block[2..4], low);
        const inverse = invert(d);
        var codes: [len]u8 = undefined;
        for (&codes, x) |*q, v| q.* = code((v - low) * inverse + 0.5, (1 << bits) - 1);
        pack(bits, &codes, block[4..]);
    }
}

/// A scale too small to invert stores as 0, and so do its numbers.
fn invert(d: f32) f32 {
    const inverse = if (d != 0) 1.0 / d else 0;
    return if (std.math.isFinite(inverse)) inverse else 0;
}

fn code(x: f32, highest: u8) u8 {
    const whole: i32 = @trunc(std.math.clamp(x, 0, 255));
    return @min(highest, @as(u8, @intCast(whole)));
}

pub fn storeScale(raw: *[2]u8, d: f32) error{NotFinite}!void {
    const half = tensor.convert.f32ToF16(d);
    if (half & 0x7C00 == 0x7C00) return error.NotFinite;
    base.bytes.store(u16, raw, half);
}

fn pack(comptime bits: u3, codes: *const [len]u8, body: []u8) void {
    const halves = if (bits == 5) body[4..20] else body[0..16];
    for (halves, 0..) |*byte, j| byte.* = (codes[j] & 15) | (codes[j + 16] & 15) << 4;
    if (bits == 4) return;
    var fifth: u32 = 0;
    for (codes, 0..) |q, i| fifth |= @as(u32, q >> 4) << @intCast(i);
    base.bytes.store(u32, body[0..4], fifth);
}
