//! Operands of a matrix product laid out for its inner kernel: panels of a few rows, p after p.
//!
//! A panel holds `panel` rows of an operand x (row i, element p at x[i·row + p·col]) as words [p][pitch], pitch being
//! whole vectors: stores that cross a cache line cost more than the room. In full precision a word is one number; in bf16
//! (`low`) it is two neighbours along p, rounded, the first in the lower half, an odd last one paired with 0. Missing rows
//! become 0. Rows that run along p are turned in registers, a square of the vector's width at a time.

const lanes = @import("lanes.zig");

pub fn Word(comptime T: type, comptime low: bool) type {
    return if (low) u32 else T;
}

/// Words of a panel's row that stand for k numbers.
pub inline fn depth(comptime low: bool, k: usize) usize {
    return if (low) (k + 1) / 2 else k;
}

/// Words from one p of a panel to the next. What lies behind the panel's own words is unspecified.
pub inline fn pitchOf(comptime T: type, comptime panel: usize) comptime_int {
    return comptime (panel + lanes.width(T) - 1) / lanes.width(T) * lanes.width(T);
}

/// Packs `count` rows; panel number i begins at out + i·stride, aligned to a vector.
pub fn panels(comptime T: type, comptime low: bool, comptime panel: usize, count: usize, k: usize, x: [*]const T, row: usize, col: usize, out: [*]Word(T, low), stride: usize) void {
    const group = 4;
    const over = pitchOf(T, panel) - panel; // Whole vectors are read.
    var i: usize = 0;
    var o = out;
    const paired = !low or k % 2 == 0;
    if (row == 1) while (i + group * panel + over <= count and paired) : (i += group * panel) {
        along(T, low, panel, group, k, x + i, col, o, stride);
        o += group * stride;
    };
    while (i < count) : (i += panel) {
        const have = lesser(count - i, panel);
        const from = x + i * row;
        if (row == 1 and paired and count - i >= panel + over) {
            along(T, low, panel, 1, k, from, col, o, stride);
        } else if (col == 1 and have == panel) {
            const done = across(T, low, panel, k, from, row, o);
            rest(T, low, panel, have, done, k, from, row, col, o);
        } else {
            rest(T, low, panel, have, 0, k, from, row, col, o);
        }
        o += stride;
    }
}

inline fn lesser(a: usize, b: usize) usize {
    return if (a < b) a else b;
}

/// Elements of one p are neighbours: copied (and paired). Several panels at once use a cache line and a page while they
/// are at hand.
noinline fn along(comptime T: type, comptime low: bool, comptime panel: usize, comptime group: usize, k: usize, x: [*]const T, col: usize, out: [*]Word(T, low), stride: usize) void {
    const vl = comptime lanes.width(T);
    const W = @Vector(vl, Word(T, low));
    const pitch = pitchOf(T, panel);
    for (0..depth(low, k)) |p| inline for (0..group) |g| {
        comptime var i = 0;
        inline while (i < panel) : (i += vl) {
            const from = x + g * panel + i;
            const words: W = if (low)
                pairUp(lanes.load(T, from + 2 * p * col), lanes.load(T, from + (2 * p + 1) * col))
            else
                lanes.load(T, from + p * col);
            put(out + g * stride + p * pitch + i, words);
        }
    };
}

/// Elements of one row are neighbours: squares are turned in registers. Gives the number of p done.
noinline fn across(comptime T: type, comptime low: bool, comptime panel: usize, k: usize, x: [*]const T, row: usize, out: [*]Word(T, low)) usize {
    const vl = comptime lanes.width(T);
    const W = @Vector(vl, Word(T, low));
    const numbers = if (low) 2 * vl else vl;
    var p: usize = 0;
    while (p + numbers <= k) : (p += numbers) {
        const o = out + (if (low) p / 2 else p) * pitchOf(T, panel);
        comptime var i = 0;
        inline while (i < panel) : (i += vl) {
            const have = comptime if (panel - i < vl) panel - i else vl;
            var square: [vl]W = undefined;
            inline for (0..vl) |r| {
                const from = x + (i + (if (r < have) r else 0)) * row + p;
                square[r] = if (r >= have) @splat(0) else if (low) pairsOf(lanes.load(f32, from), lanes.load(f32, from + fl)) else lanes.load(T, from);
            }
            square = turn(Word(T, low), vl, square);
            inline for (0..vl) |q| put(o + q * pitchOf(T, panel) + i, square[q]);
        }
    }
    return p;
}

/// Stores a whole vector of words where one begins.
pub inline fn put(to: anytype, words: anytype) void {
    const W = @TypeOf(words);
    @as(*align(@sizeOf(W)) W, @ptrCast(@alignCast(to))).* = words;
}

/// Numbers from p = `begin` on, one by one: what the other two leave over.
noinline fn rest(comptime T: type, comptime low: bool, comptime panel: usize, have: usize, begin: usize, k: usize, x: [*]const T, row: usize, col: usize, out: [*]Word(T, low)) void {
    var p = begin;
    while (p < k) : (p += if (low) 2 else 1) {
        const o = out + (if (low) p / 2 else p) * pitchOf(T, panel);
        for (0..have) |i| {
            const first = x[i * row + p * col];
            o[i] = if (low) onePair(first, if (p + 1 < k) x[i * row + (p + 1) * col] else 0) else first;
        }
        for (have..panel) |i| o[i] = 0;
    }
}

/// A square of n × n turned: row i becomes column i. n is a power of two.
pub inline fn turn(comptime W: type, comptime n: usize, rows: [n]@Vector(n, W)) [n]@Vector(n, W) {
    // Squares of `quad` inside the 128-bit parts of the registers first, then the parts themselves.
    const quad = comptime if (n < 16 / @sizeOf(W)) n else 16 / @sizeOf(W);
    var r = rows;
    comptime var size = 1;
    inline while (size < quad) : (size *= 2) r = exchange(W, n, size, r);
    inline while (size < n) : (size *= 2) r = exchange(W, n, size, r);
    return r;
}

/// Blocks of `size` words: those above the diagonal of each pair of blocks change places with those below.
inline fn exchange(comptime W: type, comptime n: usize, comptime size: usize, rows: [n]@Vector(n, W)) [n]@Vector(n, W) {
    var out: [n]@Vector(n, W) = undefined;
    const masks = comptime blk: {
        var upper: [n]i32 = undefined;
        var lower: [n]i32 = undefined;
        for (0..n) |j| {
            const odd = j / size % 2 == 1;
            upper[j] = if (odd) ~@as(i32, j - size) else j;
            lower[j] = if (odd) ~@as(i32, j) else j + size;
        }
        break :blk .{ @as(@Vector(n, i32), upper), @as(@Vector(n, i32), lower) };
    };
    inline for (0..n) |i| if (i / size % 2 == 0) {
        out[i] = @shuffle(W, rows[i], rows[i + size], masks[0]);
        out[i + size] = @shuffle(W, rows[i], rows[i + size], masks[1]);
    };
    return out;
}

const F = lanes.Vector(f32);
const fl = lanes.width(f32);
const Words = @Vector(fl, u32);

/// Words of two neighbours: first[0] and first[1], …, then those of `second`.
pub inline fn pairsOf(first: F, second: F) Words {
    if (lanes.has_bf16_product) return asm ("vcvtne2ps2bf16 %[low], %[high], %[r]"
        : [r] "=v" (-> Words),
        : [low] "v" (first),
          [high] "v" (second),
    );
    const picks = comptime blk: {
        var even: [fl]i32 = undefined;
        var odd: [fl]i32 = undefined;
        for (0..fl) |i| {
            even[i] = if (2 * i < fl) 2 * i else ~@as(i32, 2 * i - fl);
            odd[i] = if (2 * i < fl) 2 * i + 1 else ~@as(i32, 2 * i + 1 - fl);
        }
        break :blk .{ @as(@Vector(fl, i32), even), @as(@Vector(fl, i32), odd) };
    };
    const low: Words = @bitCast(first);
    const high: Words = @bitCast(second);
    return join(@shuffle(u32, low, high, picks[0]), @shuffle(u32, low, high, picks[1]));
}

/// Word i holds first[i] below and second[i] above.
pub inline fn pairUp(first: F, second: F) Words {
    if (!lanes.has_bf16_product) return join(@bitCast(first), @bitCast(second));
    const halves = asm ("vcvtne2ps2bf16 %[low], %[high], %[r]"
        : [r] "=v" (-> @Vector(2 * fl, u16)),
        : [low] "v" (first),
          [high] "v" (second),
    );
    const weave = comptime blk: {
        var order: [2 * fl]i32 = undefined;
        for (0..fl) |i| {
            order[2 * i] = i;
            order[2 * i + 1] = fl + i;
        }
        break :blk @as(@Vector(2 * fl, i32), order);
    };
    return @bitCast(@shuffle(u16, halves, undefined, weave));
}

inline fn onePair(first: f32, second: f32) u32 {
    return pairUp(@splat(first), @splat(second))[0];
}

inline fn join(first: Words, second: Words) Words {
    return round(first) >> @splat(16) | (round(second) & @as(Words, @splat(0xffff_0000)));
}

/// Each number as the bf16 nearest to it (even on ties), on every level with the same bits.
pub inline fn nearest(x: F) @Vector(fl, u16) {
    return @truncate(round(@bitCast(x)) >> @splat(16));
}

/// f32 bits whose upper half is the bf16 nearest (even on ties); NaN stays NaN. The lower half is not cleared.
/// The CPU's own instruction, where there is one, takes denormals for 0.
inline fn round(bits: Words) Words {
    const odd = bits >> @splat(16) & @as(Words, @splat(1));
    const rounded = bits +% @as(Words, @splat(0x7fff)) +% odd;
    const nan = bits & @as(Words, @splat(0x7fff_ffff)) > @as(Words, @splat(0x7f80_0000));
    return @select(u32, nan, bits | @as(Words, @splat(0x40_0000)), rounded);
}
