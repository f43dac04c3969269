//! Between f32 and the 16-bit floats, one number at a time and whole slices.
//!
//! Rounding is to nearest, ties to even, overflow to infinity; NaN stays NaN with ggml's payload (f16: sign | 0x7E00,
//! bf16: the upper half with the quiet bit set). Widening is exact. The slice functions do the same per lane, so a value
//! does not depend on its place. Slices from files may have any alignment, hence bytes.
//! Does not know: blocks, files, threads.

const std = @import("std");
const base = @import("base");

const lanes = 16;

pub fn f16ToF32(bits: u16) f32 {
    return @as(f16, @bitCast(bits));
}

pub fn f32ToF16(value: f32) u16 {
    if (std.math.isNan(value)) {
        const u: u32 = @bitCast(value);
        return @intCast((u >> 16) & 0x8000 | 0x7E00);
    }
    return @bitCast(@as(f16, @floatCast(value)));
}

pub fn bf16ToF32(bits: u16) f32 {
    return @bitCast(@as(u32, bits) << 16);
}

pub fn f32ToBf16(value: f32) u16 {
    const u: u32 = @bitCast(value);
    if (u & 0x7FFFFFFF > 0x7F800000) return @intCast((u >> 16) | 64);
    return @intCast((u + 0x7FFF + ((u >> 16) & 1)) >> 16);
}

/// `out.len` numbers of 2 bytes each.
pub fn f16SliceToF32(raw: []const u8, out: []f32) void {
    std.debug.assert(raw.len == out.len * 2);
    var i: usize = 0;
    while (i + lanes <= out.len) : (i += lanes) out[i..][0..lanes].* = widen(loadU16(raw[i * 2 ..][0 .. lanes * 2]));
    while (i < out.len) : (i += 1) out[i] = f16ToF32(base.bytes.at(u16, raw, i));
}

const U = @Vector(lanes, u32);
const F = @Vector(lanes, f32);

inline fn all(x: u32) U {
    return @splat(x);
}

/// f16 bits to f32 with integer steps only: CPUs without F16C would convert lane by lane.
fn widen(bits: @Vector(lanes, u16)) F {
    const h: U = bits;
    const magnitude = (h & all(0x7FFF)) << @splat(13);
    const exponent = magnitude & all(0x0F800000);
    const rebiased = magnitude + all(112 << 23);
    // Infinity and NaN take the largest exponent; subnormals are scaled by a subtraction that is exact.
    const special = rebiased + all(112 << 23);
    const scaled: F = @as(F, @bitCast(rebiased + all(1 << 23))) - @as(F, @splat(@bitCast(@as(u32, 113 << 23))));
    const finite = @select(u32, exponent == all(0), @as(U, @bitCast(scaled)), rebiased);
    const value = @select(u32, exponent == all(0x0F800000), special, finite);
    return @bitCast(value | ((h & all(0x8000)) << @splat(16)));
}

/// f32 to f16 bits, rounding half to even.
fn narrow(values: F) @Vector(lanes, u16) {
    const u: U = @bitCast(values);
    const a = u & all(0x7FFFFFFF);
    const rebiased = a -% all(112 << 23);
    const normal = (rebiased +% all(0xFFF) +% ((rebiased >> @splat(13)) & all(1))) >> @splat(13);
    // Adding 1/2 puts the last place of the sum where a subnormal f16 has its own: the addition rounds.
    const half: F = @splat(0.5);
    const subnormal = @as(U, @bitCast(@as(F, @bitCast(a)) + half)) -% all(0x3F000000);
    const finite = @select(u32, a < all(0x38800000), subnormal, normal);
    const large = @select(u32, a > all(0x7F800000), all(0x7E00), all(0x7C00));
    const magnitude = @select(u32, a >= all(0x47800000), large, finite);
    return @truncate(magnitude | ((u >> @splat(16)) & all(0x8000)));
}

pub fn bf16SliceToF32(raw: []const u8, out: []f32) void {
    std.debug.assert(raw.len == out.len * 2);
    var i: usize = 0;
    while (i + lanes <= out.len) : (i += lanes) {
        const bits: @Vector(lanes, u32) = loadU16(raw[i * 2 ..][0 .. lanes * 2]);
        out[i..][0..lanes].* = @as(@Vector(lanes, f32), @bitCast(bits << @splat(16)));
    }
    while (i < out.len) : (i += 1) out[i] = bf16ToF32(base.bytes.at(u16, raw, i));
}

pub fn f32SliceToF16(values: []const f32, raw: []u8) void {
    std.debug.assert(raw.len == values.len * 2);
    var i: usize = 0;
    while (i + lanes <= values.len) : (i += lanes) storeU16(narrow(values[i..][0..lanes].*), raw[i * 2 ..][0 .. lanes * 2]);
    while (i < values.len) : (i += 1) base.bytes.store(u16, raw[i * 2 ..][0..2], f32ToF16(values[i]));
}

pub fn f32SliceToBf16(values: []const f32, raw: []u8) void {
    std.debug.assert(raw.len == values.len * 2);
    var i: usize = 0;
    while (i + lanes <= values.len) : (i += lanes) {
        const v: @Vector(lanes, f32) = values[i..][0..lanes].*;
        const u: U = @bitCast(v);
        const nan = (u & @as(U, @splat(0x7FFFFFFF))) > @as(U, @splat(0x7F800000));
        const upper = u >> @splat(16);
        const rounded = (u +% @as(U, @splat(0x7FFF)) +% (upper & @as(U, @splat(1)))) >> @splat(16);
        const picked = @select(u32, nan, upper | @as(U, @splat(64)), rounded);
        storeU16(@intCast(picked), raw[i * 2 ..][0 .. lanes * 2]);
    }
    while (i < values.len) : (i += 1) base.bytes.store(u16, raw[i * 2 ..][0..2], f32ToBf16(values[i]));
}

/// Little-endian f32 bytes of any alignment.
pub fn f32BytesToF32(raw: []const u8, out: []f32) void {
    std.debug.assert(raw.len == out.len * 4);
    if (@import("builtin").cpu.arch.endian() == .little) {
        @memcpy(std.mem.sliceAsBytes(out), raw);
    } else for (out, 0..) |*x, i| x.* = base.bytes.at(f32, raw, i);
}

pub fn f32ToF32Bytes(values: []const f32, raw: []u8) void {
    std.debug.assert(raw.len == values.len * 4);
    if (@import("builtin").cpu.arch.endian() == .little) {
        @memcpy(raw, std.mem.sliceAsBytes(values));
    } else for (values, 0..) |x, i| base.bytes.store(f32, raw[i * 4 ..][0..4], x);
}

/// Little-endian f64 bytes, rounded to f32.
pub fn f64BytesToF32(raw: []const u8, out: []f32) void {
    std.debug.assert(raw.len == out.len * 8);
    for (out, 0..) |*x, i| x.* = @floatCast(base.bytes.at(f64, raw, i));
}

fn loadU16(raw: *const [lanes * 2]u8) @Vector(lanes, u16) {
    const v: @Vector(lanes, u16) = @bitCast(raw.*);
    return if (@import("builtin").cpu.arch.endian() == .little) v else @byteSwap(v);
}

fn storeU16(values: @Vector(lanes, u16), raw: *[lanes * 2]u8) void {
    raw.* = @bitCast(if (@import("builtin").cpu.arch.endian() == .little) values else @byteSwap(values));
}

test "vectors round like single numbers at every f16, around every midpoint, and for all kinds of f32" {
    var values: [5 * lanes]f32 = undefined;
    var raw: [values.len * 2]u8 = undefined;
    var wide: [values.len]f32 = undefined;
    var n: usize = 0;
    while (n < 1 << 16) : (n += lanes) {
        for (0..lanes) |j| {
            const bits: u32 = @bitCast(f16ToF32(@intCast(n + j)));
            // The value, one step beside it, and half an f16 step above it, one to either side.
            for ([_]u32{ 0, 1, 0x0FFF, 0x1000, 0x1001 }, 0..) |step, k| values[k * lanes + j] = @bitCast(bits +% step);
        }
        f32SliceToF16(&values, &raw);
        for (values, 0..) |v, i| try std.testing.expectEqual(f32ToF16(v), base.bytes.at(u16, &raw, i));
        f16SliceToF32(&raw, &wide);
        for (wide, 0..) |w, i| try expectSameBits(f16ToF32(base.bytes.at(u16, &raw, i)), w);
    }
    var prng: std.Random.DefaultPrng = .init(11);
    for (0..4000) |_| {
        for (&values) |*v| v.* = @bitCast(prng.random().int(u32));
        f32SliceToF16(&values, &raw);
        for (values, 0..) |v, i| try std.testing.expectEqual(f32ToF16(v), base.bytes.at(u16, &raw, i));
    }
}

test "every f16 and every bf16 survives the way through f32" {
    for (0..1 << 16) |n| {
        const bits: u16 = @intCast(n);
        const half = f16ToF32(bits);
        if (std.math.isNan(half)) {
            try std.testing.expectEqual((bits & 0x8000) | 0x7E00, f32ToF16(half));
        } else try std.testing.expectEqual(bits, f32ToF16(half));
        const brain = bf16ToF32(bits);
        if (std.math.isNan(brain)) {
            try std.testing.expectEqual(bits | 64, f32ToBf16(brain));
        } else try std.testing.expectEqual(bits, f32ToBf16(brain));
    }
}

test "rounding is to nearest even, with subnormals and overflow" {
    try std.testing.expectEqual(@as(u16, 0x3C00), f32ToF16(1.0 + 0x1p-11)); // tie, even below
    try std.testing.expectEqual(@as(u16, 0x3C02), f32ToF16(1.0 + 3 * 0x1p-11)); // tie, even above
    try std.testing.expectEqual(@as(u16, 0x7BFF), f32ToF16(65519.996));
    try std.testing.expectEqual(@as(u16, 0x7C00), f32ToF16(65520));
    try std.testing.expectEqual(@as(u16, 0x0001), f32ToF16(0x1.8p-25));
    try std.testing.expectEqual(@as(u16, 0x0000), f32ToF16(0x1p-25));
    try std.testing.expectEqual(@as(u16, 0x8000), f32ToF16(-0.0));
    try std.testing.expectEqual(@as(u16, 0xFE00), f32ToF16(@bitCast(@as(u32, 0xFF800001))));
    try std.testing.expectEqual(@as(u16, 0x3F80), f32ToBf16(@bitCast(@as(u32, 0x3F808000))));
    try std.testing.expectEqual(@as(u16, 0x3F82), f32ToBf16(@bitCast(@as(u32, 0x3F818000))));
    try std.testing.expectEqual(@as(u16, 0x7F80), f32ToBf16(std.math.floatMax(f32)));
    try std.testing.expectEqual(@as(u16, 0x0001), f32ToBf16(@bitCast(@as(u32, 0x00010000)))); // subnormal kept
    try std.testing.expectEqual(@as(u16, 0x7FC0), f32ToBf16(@bitCast(@as(u32, 0x7F800001))));
}

test "slices give what single numbers give, at every length and any alignment" {
    var prng: std.Random.DefaultPrng = .init(7);
    var values: [67]f32 = undefined;
    var raw: [1 + 67 * 4]u8 = undefined;
    var back: [67]f32 = undefined;
    for (0..values.len + 1) |len| {
        for (values[0..len]) |*v| v.* = @bitCast(prng.random().int(u32));
        const out = raw[1..][0 .. len * 2];
        f32SliceToBf16(values[0..len], out);
        for (values[0..len], 0..) |v, i| try std.testing.expectEqual(f32ToBf16(v), base.bytes.at(u16, out, i));
        bf16SliceToF32(out, back[0..len]);
        for (back[0..len], 0..) |v, i| try expectSameBits(bf16ToF32(base.bytes.at(u16, out, i)), v);
        f32SliceToF16(values[0..len], out);
        for (values[0..len], 0..) |v, i| try std.testing.expectEqual(f32ToF16(v), base.bytes.at(u16, out, i));
        f16SliceToF32(out, back[0..len]);
        for (back[0..len], 0..) |v, i| try expectSameBits(f16ToF32(base.bytes.at(u16, out, i)), v);
        const whole = raw[1..][0 .. len * 4];
        f32ToF32Bytes(values[0..len], whole);
        f32BytesToF32(whole, back[0..len]);
        for (back[0..len], values[0..len]) |a, b| try expectSameBits(a, b);
    }
}

fn expectSameBits(expected: f32, actual: f32) !void {
    try std.testing.expectEqual(@as(u32, @bitCast(expected)), @as(u32, @bitCast(actual)));
}
