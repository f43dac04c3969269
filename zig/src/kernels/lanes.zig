//! Vectors of this level: widths, loads of a tail, multiply-add, exp.
//!
//! Used only inside kernel objects. `mulAdd` is one rounding where the level has FMA and two where it has not.

const options = @import("kernel_options");
const Next = @import("activations.zig").Next;

pub const level = options.level;
pub const has_fma = options.fma;
/// The widest level is compiled with AVX-512 BF16.
pub const has_bf16_product = options.vector_bytes == 64;

/// Lanes of one register.
pub inline fn width(comptime T: type) comptime_int {
    return comptime options.vector_bytes / @sizeOf(T);
}

pub fn Vector(comptime T: type) type {
    return @Vector(width(T), T);
}

pub inline fn load(comptime T: type, p: [*]const T) Vector(T) {
    return p[0..width(T)].*;
}

pub inline fn store(comptime T: type, p: [*]T, v: Vector(T)) void {
    p[0..width(T)].* = v;
}

/// The first `count` lanes from memory, the rest `filler`.
pub inline fn loadPart(comptime T: type, p: [*]const T, count: usize, filler: T) Vector(T) {
    var buffer: [width(T)]T = @splat(filler);
    for (0..count) |i| buffer[i] = p[i];
    return buffer;
}

pub inline fn storePart(comptime T: type, p: [*]T, v: Vector(T), count: usize) void {
    const buffer: [width(T)]T = v;
    for (0..count) |i| p[i] = buffer[i];
}

/// Asks for the `bytes` that lie some pages behind `at`, in a walk over weights that are read once: the processor by itself stops asking at the border
/// of a page.
pub inline fn ahead(at: [*]const u8, comptime bytes: comptime_int) void {
    inline for (0..(bytes + 63) / 64) |line| @prefetch(at + 8192 + 64 * line, .{});
}

/// Asks for the rows of `next`, a share of them at each of `calls` calls.
pub const Asking = struct {
    at: [*]const u8,
    row_bytes: usize,
    lines: usize,
    line: usize = 0,
    rows: usize,
    share: usize,

    pub inline fn begin(next: *const Next, calls: usize) Asking {
        const lines = (next.bytes + 63) / 64;
        return .{ .at = next.at, .row_bytes = next.row_bytes, .lines = lines, .rows = next.rows, .share = (lines * next.rows + calls - 1) / calls };
    }

    pub inline fn some(self: *Asking) void {
        for (0..self.share) |_| {
            if (self.rows == 0) return;
            @prefetch(self.at + 64 * self.line, .{ .locality = 2 });
            self.line += 1;
            if (self.line < self.lines) continue;
            self.line = 0;
            self.rows -= 1;
            self.at += self.row_bytes;
        }
    }
};

/// a·b + c
pub inline fn mulAdd(comptime T: type, a: Vector(T), b: Vector(T), c: Vector(T)) Vector(T) {
    return if (has_fma) @mulAdd(Vector(T), a, b, c) else a * b + c;
}

/// The largest of sizes |x|, 0 or more, NaN above all: compared as bits, which takes one instruction where floats take three.
pub inline fn largestSize(v: anytype) f32 {
    const Bits = @Vector(@typeInfo(@TypeOf(v)).vector.len, u32);
    return @bitCast(@reduce(.Max, @as(Bits, @bitCast(v))));
}

/// The larger |x|, lane by lane.
pub inline fn largerSize(sizes: Vector(f32), x: Vector(f32)) Vector(f32) {
    const Bits = @Vector(width(f32), u32);
    return @bitCast(@max(@as(Bits, @bitCast(sizes)), @as(Bits, @bitCast(x)) & @as(Bits, @splat(0x7fff_ffff))));
}

/// The largest finite number.
pub inline fn largest(comptime T: type) T {
    return if (T == f32) 3.4028234663852886e38 else 1.7976931348623157e308;
}

pub inline fn splat(comptime T: type, x: T) Vector(T) {
    return @splat(x);
}

/// Sum of the lanes by halves: one fixed tree.
pub inline fn sum(comptime V: type, v: V) @typeInfo(V).vector.child {
    const n = @typeInfo(V).vector.len;
    if (n == 1) return v[0];
    const Half = @Vector(n / 2, @typeInfo(V).vector.child);
    const a: [n]@typeInfo(V).vector.child = v;
    const low: Half = a[0 .. n / 2].*;
    const high: Half = a[n / 2 ..][0 .. n / 2].*;
    return sum(Half, low + high);
}

/// e^x with an error of at most 2 ulp. 0 below `lowest` (a little above the smallest normal result), +inf when it
/// overflows, NaN stays NaN.
pub inline fn exp(comptime T: type, x: Vector(T)) Vector(T) {
    const V = Vector(T);
    const n = width(T);
    const Int = if (T == f32) i32 else i64;
    const Bits = @Vector(n, Int);
    const c = constants(T);
    const lowest: V = @splat(c.lowest);
    const highest: V = @splat(c.highest);
    // Clamped so that the integer part always fits an exponent; the ends are selected afterwards.
    const clamped = @min(@max(x, lowest), highest);
    const magic: V = @splat(c.round_magic);
    const shifted = mulAdd(T, clamped, @splat(c.log2e), magic); // the integer stands in the low bits
    const k = shifted - magic;
    var r = mulAdd(T, k, @splat(-c.ln2_high), clamped);
    r = mulAdd(T, k, @splat(-c.ln2_low), r);
    var p: V = @splat(c.taylor[c.taylor.len - 1]);
    comptime var i = c.taylor.len - 1;
    inline while (i > 0) {
        i -= 1;
        p = mulAdd(T, p, r, @splat(c.taylor[i]));
    }
    // Multiply by 2^k through the exponent bits. k = bias + 1 would overflow the field: halve and double.
    const bits: Bits = @bitCast(shifted);
    const integer = bits - @as(Bits, @splat(@bitCast(c.round_magic)));
    const half_power: V = @bitCast((integer + @as(Bits, @splat(c.bias - 1))) << @splat(c.mantissa));
    var result = (p * half_power) * @as(V, @splat(2));
    result = @select(T, x < lowest, @as(V, @splat(0)), result);
    result = @select(T, x > highest, @as(V, @splat(c.infinity)), result);
    return @select(T, x != x, x, result);
}

fn Constants(comptime T: type, comptime terms: usize) type {
    return struct {
        lowest: T,
        highest: T,
        log2e: T,
        ln2_high: T,
        ln2_low: T,
        round_magic: T,
        bias: if (T == f32) i32 else i64,
        mantissa: comptime_int,
        infinity: T,
        taylor: [terms]T,
    };
}

inline fn constants(comptime T: type) Constants(T, if (T == f32) 8 else 14) {
    return comptime if (T == f32) .{
        .lowest = -86.6, // k = -125: the halved power is still normal
        .highest = 88.72283,
        .log2e = 1.44269504088896341,
        .ln2_high = 0x1.62e4p-1, // 15 bits: k·high is exact
        .ln2_low = 0.693147180559945309417 - 0x1.62e4p-1,
        .round_magic = 0x1.8p23,
        .bias = 127,
        .mantissa = 23,
        .infinity = @bitCast(@as(u32, 0x7f800000)),
        .taylor = taylor(f32, 8),
    } else .{
        .lowest = -708.0,
        .highest = 709.782712893384,
        .log2e = 1.44269504088896341,
        .ln2_high = 0x1.62e42fefp-1, // 33 bits
        .ln2_low = 0.69314718055994530941723212145818 - 0x1.62e42fefp-1,
        .round_magic = 0x1.8p52,
        .bias = 1023,
        .mantissa = 52,
        .infinity = @bitCast(@as(u64, 0x7ff0000000000000)),
        .taylor = taylor(f64, 14),
    };
}

/// 1/n! — |r| ≤ ln2/2 makes the first dropped term smaller than half an ulp.
fn taylor(comptime T: type, comptime terms: usize) [terms]T {
    var list: [terms]T = undefined;
    var factorial: comptime_float = 1;
    for (&list, 0..) |*t, i| {
        if (i > 0) factorial *= i;
        t.* = 1.0 / factorial;
    }
    return list;
}
