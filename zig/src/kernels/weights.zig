//! Dot products of one f32 activation vector with weight rows as a file stores them: the inner loop of generation.
//!
//! `expand_*`: w as f32. `dot_*`: n numbers, weight bytes, x → Σ. `matvec_*`: out[r] = dot(row r, x), rows `row_bytes` apart. n of q8_0 is a
//! multiple of 32. `mix_*`: the weighted sum of rows, what attention makes of stored values. Sums are f32 in a fixed order, the same in all forms.

const lanes = @import("lanes.zig");

const vl = lanes.width(f32);
const V = lanes.Vector(f32);

pub const Kernels = struct {
    pub fn dot_f32(n: usize, w: [*]const u8, x: [*]const f32) callconv(.c) f32 {
        return dot(F32, n, w, x);
    }
    pub fn dot_f16(n: usize, w: [*]const u8, x: [*]const f32) callconv(.c) f32 {
        return dot(F16, n, w, x);
    }
    pub fn dot_bf16(n: usize, w: [*]const u8, x: [*]const f32) callconv(.c) f32 {
        return dot(Bf16, n, w, x);
    }
    pub fn dot_q8_0(n: usize, w: [*]const u8, x: [*]const f32) callconv(.c) f32 {
        return dotQ8(n, w, x);
    }

    /// out[0..n] = the numbers of w as f32.
    pub fn expand_f16(n: usize, w: [*]const u8, out: [*]f32) callconv(.c) void {
        expand(F16, n, w, out);
    }
    pub fn expand_bf16(n: usize, w: [*]const u8, out: [*]f32) callconv(.c) void {
        expand(Bf16, n, w, out);
    }
    pub fn expand_q8_0(n: usize, w: [*]const u8, out: [*]f32) callconv(.c) void {
        for (0..n / q8_block) |b| {
            const block = w + b * q8_bytes;
            const d: V = @splat(@as(*align(1) const f16, @ptrCast(block)).*);
            inline for (0..q8_block / vl) |p| lanes.store(f32, out + b * q8_block + p * vl, q8Numbers(block + 2 + p * vl) * d);
        }
    }

    /// out[0..n] = Σ_r a[r] · row r, in the order of rows: even ones in one chain, odd ones in another.
    pub fn mix_f32(rows: usize, n: usize, w: [*]const u8, row_bytes: usize, a: [*]const f32, out: [*]f32) callconv(.c) void {
        mix(F32, rows, n, w, row_bytes, a, out);
    }
    pub fn mix_f16(rows: usize, n: usize, w: [*]const u8, row_bytes: usize, a: [*]const f32, out: [*]f32) callconv(.c) void {
        mix(F16, rows, n, w, row_bytes, a, out);
    }
    pub fn mix_q8_0(rows: usize, n: usize, w: [*]const u8, row_bytes: usize, a: [*]const f32, out: [*]f32) callconv(.c) void {
        mix(Q8, rows, n, w, row_bytes, a, out);
    }

    pub fn matvec_f32(rows: usize, n: usize, w: [*]const u8, row_bytes: usize, x: [*]const f32, out: [*]f32) callconv(.c) void {
        for (0..rows) |r| out[r] = dot(F32, n, w + r * row_bytes, x);
    }
    pub fn matvec_f16(rows: usize, n: usize, w: [*]const u8, row_bytes: usize, x: [*]const f32, out: [*]f32) callconv(.c) void {
        for (0..rows) |r| out[r] = dot(F16, n, w + r * row_bytes, x);
    }
    pub fn matvec_bf16(rows: usize, n: usize, w: [*]const u8, row_bytes: usize, x: [*]const f32, out: [*]f32) callconv(.c) void {
        for (0..rows) |r| out[r] = dot(Bf16, n, w + r * row_bytes, x);
    }
    pub fn matvec_q8_0(rows: usize, n: usize, w: [*]const u8, row_bytes: usize, x: [*]const f32, out: [*]f32) callconv(.c) void {
        for (0..rows) |r| out[r] = dotQ8(n, w + r * row_bytes, x);
    }
};

const F32 = struct {
    const size = 4;
    inline fn vector(w: [*]const u8) V {
        return @as(*align(1) const V, @ptrCast(w)).*;
    }
    inline fn one(w: [*]const u8) f32 {
        return @as(*align(1) const f32, @ptrCast(w)).*;
    }
};
pub const F16 = struct {
    pub const size = 2;
    pub inline fn vector(w: [*]const u8) V {
        if (lanes.has_fma) return @floatCast(@as(*align(1) const @Vector(vl, f16), @ptrCast(w)).*);
        // The levels without FMA have no conversion either. Exponent and mantissa move to their f32 places; a product
        // with 2^112 sets the exponent right, subnormals included. Infinity and NaN keep a full exponent.
        const half: @Vector(vl, u32) = @as(*align(1) const @Vector(vl, u16), @ptrCast(w)).*;
        const magnitude = half & @as(@Vector(vl, u32), @splat(0x7fff));
        const scaled = @as(V, @bitCast(magnitude << @splat(13))) * @as(V, @splat(0x1p112));
        const special = magnitude >= @as(@Vector(vl, u32), @splat(0x7c00));
        const bits = @as(@Vector(vl, u32), @bitCast(scaled)) | @select(u32, special, @as(@Vector(vl, u32), @splat(0x7f800000)), @as(@Vector(vl, u32), @splat(0)));
        return @bitCast(bits | (half & @as(@Vector(vl, u32), @splat(0x8000))) << @splat(16));
    }
    pub inline fn one(w: [*]const u8) f32 {
        return @as(*align(1) const f16, @ptrCast(w)).*;
    }
};
pub const Bf16 = struct {
    pub const size = 2;
    pub inline fn vector(w: [*]const u8) V {
        const bits: @Vector(vl, u32) = @as(*align(1) const @Vector(vl, u16), @ptrCast(w)).*;
        return @bitCast(bits << @splat(16));
    }
    pub inline fn one(w: [*]const u8) f32 {
        return @bitCast(@as(u32, @as(*align(1) const u16, @ptrCast(w)).*) << 16);
    }
};

/// Not of fixed size: numbers from `i` on of a row of blocks.
const Q8 = struct {
    inline fn at(row: [*]const u8, i: usize) V {
        const block = row + i / q8_block * q8_bytes;
        const d: V = @splat(@as(*align(1) const f16, @ptrCast(block)).*);
        return q8Numbers(block + 2 + i % q8_block) * d;
    }
};

fn mix(comptime Format: type, rows: usize, n: usize, w: [*]const u8, row_bytes: usize, a: [*]const f32, out: [*]f32) void {
    var i: usize = 0;
    while (i + mixed * vl <= n) : (i += mixed * vl) mixPart(Format, mixed, rows, i, w, row_bytes, a, out);
    while (i + vl <= n) : (i += vl) mixPart(Format, 1, rows, i, w, row_bytes, a, out);
    if (Format == Q8) return;
    while (i < n) : (i += 1) {
        var sum: f32 = 0;
        for (0..rows) |r| sum += a[r] * Format.one(w + r * row_bytes + i * Format.size);
        out[i] = sum;
    }
}

/// Vectors of columns mixed together: their two chains stay in registers.
const mixed = 4;

inline fn mixPart(comptime Format: type, comptime count: comptime_int, rows: usize, first: usize, w: [*]const u8, row_bytes: usize, a: [*]const f32, out: [*]f32) void {
    var chains: [2][count]V = @splat(@splat(@splat(0)));
    var r: usize = 0;
    while (r + 2 <= rows) : (r += 2) {
        inline for (&chains, 0..) |*chain, odd| mixRow(Format, count, w + (r + odd) * row_bytes, first, a[r + odd], chain);
    }
    if (r < rows) mixRow(Format, count, w + r * row_bytes, first, a[r], &chains[0]);
    inline for (0..count) |j| lanes.store(f32, out + first + j * vl, chains[0][j] + chains[1][j]);
}

inline fn mixRow(comptime Format: type, comptime count: comptime_int, row: [*]const u8, first: usize, factor: f32, chain: *[count]V) void {
    inline for (0..count) |j| {
        const at = first + j * vl;
        const numbers = if (Format == Q8) Q8.at(row, at) else Format.vector(row + at * Format.size);
        chain[j] = lanes.mulAdd(f32, numbers, @splat(factor), chain[j]);
    }
}

fn expand(comptime Format: type, n: usize, w: [*]const u8, out: [*]f32) void {
    var i: usize = 0;
    while (i + vl <= n) : (i += vl) lanes.store(f32, out + i, Format.vector(w + i * Format.size));
    while (i < n) : (i += 1) out[i] = Format.one(w + i * Format.size);
}

inline fn dot(comptime Format: type, n: usize, w: [*]const u8, x: [*]const f32) f32 {
    var acc: [4]V = @splat(@splat(0)); // Four chains hide the latency of the multiply-add.
    var i: usize = 0;
    while (i + 4 * vl <= n) : (i += 4 * vl) {
        lanes.ahead(w + i * Format.size, 4 * vl * Format.size);
        inline for (0..4) |j| {
            const at = i + j * vl;
            acc[j] = lanes.mulAdd(f32, Format.vector(w + at * Format.size), lanes.load(f32, x + at), acc[j]);
        }
    }
    while (i + vl <= n) : (i += vl) {
        acc[0] = lanes.mulAdd(f32, Format.vector(w + i * Format.size), lanes.load(f32, x + i), acc[0]);
    }
    var s = lanes.sum(V, (acc[0] + acc[1]) + (acc[2] + acc[3]));
    while (i < n) : (i += 1) s += Format.one(w + i * Format.size) * x[i];
    return s;
}

const q8_block = 32;
const q8_bytes = 34;

/// A block is an f16 scale and 32 signed bytes.
inline fn dotQ8(n: usize, w: [*]const u8, x: [*]const f32) f32 {
    const parts = q8_block / vl;
    var acc: [2]V = @splat(@splat(0));
    const blocks = n / q8_block;
    var b: usize = 0;
    while (b + 2 <= blocks) : (b += 2) {
        lanes.ahead(w + b * q8_bytes, 2 * q8_bytes);
        inline for (0..2) |j| acc[j] = q8Block(parts, w + (b + j) * q8_bytes, x + (b + j) * q8_block, acc[j]);
    }
    if (b < blocks) acc[0] = q8Block(parts, w + b * q8_bytes, x + b * q8_block, acc[0]);
    return lanes.sum(V, acc[0] + acc[1]);
}

inline fn q8Block(comptime parts: usize, w: [*]const u8, x: [*]const f32, acc: V) V {
    const d: f32 = @as(*align(1) const f16, @ptrCast(w)).*;
    var s: V = @splat(0);
    inline for (0..parts) |p| {
        s = lanes.mulAdd(f32, q8Numbers(w + 2 + p * vl), lanes.load(f32, x + p * vl), s);
    }
    return lanes.mulAdd(f32, s, @as(V, @splat(d)), acc);
}

inline fn q8Numbers(w: [*]const u8) V {
    const q: @Vector(vl, i8) = @as(*align(1) const @Vector(vl, i8), @ptrCast(w)).*;
    return @floatFromInt(@as(@Vector(vl, i32), q));
}
