//! Half-precision weights times many vectors of activations through whole numbers of 16 bits: a prompt's way through an f16 or bf16 file.
//!
//! Both sides are rounded in stretches of 256 columns to q, 16 bits, with one step a row and one a vector: x ≈ step·q. The step is the
//! smallest for which |q| fits and ‖q‖ ≤ √(2³¹), so that by Cauchy and Schwarz no sum of a stretch leaves 32 bits. For numbers of one size the step
//! is about 2⁻¹¹·5 of it, its rounding that of f16. One instruction multiplies and adds two neighbours, as often a second as bf16
//! products, which would keep 8 bits.
//! `words_round` lays vectors out in groups of `words_tile()`, `words_pack_*` up to 32 rows of a stretch as a panel, `words_gemm` multiplies.
//! Sums over stretches are f32 in order, so a result does not depend on how many rows or vectors are asked for.
//! Does not know: where rows come from, threads.

const lanes = @import("lanes.zig");
const pack = @import("pack.zig");
const pairs_file = @import("pairs.zig");
const weights = @import("weights.zig");
const Words = @import("activations.zig").Words;
const Next = @import("activations.zig").Next;

const vl = lanes.width(f32);
const V = lanes.Vector(f32);
const I = @Vector(vl, i32);

const stretch = Words.stretch;
const panel_rows = Words.panel_rows;
/// Pairs of numbers in a whole stretch.
const pairs = stretch / 2;
const vectors = panel_rows / vl;
/// Vectors of activations multiplied at a time: their sums fit in the registers.
const tile = if (lanes.has_bf16_product) 14 else 2;

/// ‖q‖ before rounding, which adds at most √256/2: (46332 + 8)² < 2³¹.
const longest = 46332;

const Panel = extern struct {
    /// Word p of row r holds its columns 2p and 2p + 1, the first below.
    words: [pairs][panel_rows]u32,
    steps: [panel_rows]f32,
};

pub const Kernels = struct {
    /// 1 where this is faster than the product of floats.
    pub fn words_pay() callconv(.c) c_int {
        return @intFromBool(lanes.has_bf16_product);
    }
    /// Vectors of a group.
    pub fn words_tile() callconv(.c) usize {
        return tile;
    }
    /// Bytes of `count` panels.
    pub fn words_panel_bytes(count: usize) callconv(.c) usize {
        return count * @sizeOf(Panel);
    }

    /// A group of up to words_tile() vectors of n numbers, `ld` apart. words: one for every two columns of every vector of a group, n filled up to
    /// whole stretches; steps: one a vector of a group and stretch.
    pub fn words_round(count: usize, n: usize, x: [*]const f32, ld: usize, words: [*]u32, steps: [*]f32) callconv(.c) void {
        var column: usize = 0;
        while (column < n) : (column += stretch) {
            const have = if (n - column < stretch) n - column else stretch;
            const g = column / stretch;
            const to = words + g * pairs * tile;
            for (0..tile) |t| {
                var q: [stretch]i16 align(64) = undefined;
                steps[g * tile + t] = if (t < count) round(Floats, have, @ptrCast(x + t * ld + column), &q) else 0;
                if (t >= count) q = @splat(0);
                const both: *const [pairs]u32 = @ptrCast(&q);
                for (both, 0..) |word, p| to[p * tile + t] = word;
            }
        }
    }

    /// Up to 32 rows of up to 256 columns; `out` is aligned to 64.
    pub fn words_pack_f16(rows: usize, columns: usize, w: [*]const u8, row_bytes: usize, out: [*]u8) callconv(.c) void {
        packRows(weights.F16, rows, columns, w, row_bytes, @ptrCast(@alignCast(out)));
    }
    pub fn words_pack_bf16(rows: usize, columns: usize, w: [*]const u8, row_bytes: usize, out: [*]u8) callconv(.c) void {
        packRows(weights.Bf16, rows, columns, w, row_bytes, @ptrCast(@alignCast(out)));
    }

    /// out[t·ld + r] = or, with `accumulate`, += Σ row r · vector t over one stretch. `panels`: as many as hold `rows`, one behind the other;
    /// words, steps: of the first group and this stretch; groups are `stretches` stretches apart. `next` is asked for meanwhile.
    pub fn words_gemm(rows: usize, panels: [*]const u8, count: usize, words: [*]const u32, steps: [*]const f32, stretches: usize, out: [*]f32, ld: usize, accumulate: c_int, next: *const Next) callconv(.c) void {
        const all: [*]const Panel = @ptrCast(@alignCast(panels));
        var asking: lanes.Asking = .begin(next, (count + tile - 1) / tile * ((rows + panel_rows - 1) / panel_rows));
        var t: usize = 0;
        while (t < count) : (t += tile) {
            const group = t / tile * stretches;
            var r: usize = 0;
            while (r < rows) : (r += panel_rows) {
                asking.some();
                const panel = &all[r / panel_rows];
                const x = words + group * pairs * tile;
                const to = out + t * ld + r;
                if (count - t >= tile and rows - r >= panel_rows) {
                    multiply(panel, x, steps + group * tile, to, ld, accumulate != 0);
                } else {
                    var buffer: [tile * panel_rows]f32 align(64) = undefined;
                    multiply(panel, x, steps + group * tile, &buffer, panel_rows, false);
                    const width = if (rows - r < panel_rows) rows - r else panel_rows;
                    for (0..if (count - t < tile) count - t else tile) |i| {
                        for (to[i * ld ..][0..width], buffer[i * panel_rows ..][0..width]) |*o, s| o.* = if (accumulate != 0) o.* + s else s;
                    }
                }
            }
        }
    }
};

const Floats = struct {
    const size = 4;
    inline fn vector(w: [*]const u8) V {
        return @as(*align(4) const V, @ptrCast(@alignCast(w))).*;
    }
    inline fn one(w: [*]const u8) f32 {
        return @as(*const f32, @ptrCast(@alignCast(w))).*;
    }
};

/// Gives the step. A number that is not finite makes it NaN, and with it the result.
inline fn round(comptime Format: type, n: usize, x: [*]const u8, q: *align(64) [stretch]i16) f32 {
    if (n == stretch) return roundAll(Format, x, q);
    var filled: [stretch]f32 align(64) = @splat(0);
    for (filled[0..n], 0..) |*f, i| f.* = Format.one(x + i * Format.size);
    return roundAll(Floats, @ptrCast(&filled), q);
}

fn roundAll(comptime Format: type, x: [*]const u8, q: *align(64) [stretch]i16) f32 {
    const count = stretch / vl;
    var values: [count]V = undefined;
    var most: [2]V = @splat(@splat(0));
    var squares: [2]V = @splat(@splat(0));
    for (&values, 0..) |*v, i| {
        v.* = Format.vector(x + i * vl * Format.size);
        most[i % 2] = lanes.largerSize(most[i % 2], v.*);
        squares[i % 2] = lanes.mulAdd(f32, v.*, v.*, squares[i % 2]);
    }
    const largest = lanes.largestSize(lanes.largerSize(most[0], most[1]));
    const square = lanes.sum(V, squares[0] + squares[1]);
    // Squares of what is very large, very small, or no number say nothing.
    if (!(square > 1e-30 and square < 1e30)) return roundRare(&values, largest, q);
    const length = @sqrt(square);
    const fits = largest * longest < 32767 * length;
    const scale = if (fits) longest / length else 32767 / largest;
    toWords(&values, scale, q);
    return 1 / scale;
}

/// The same by way of numbers of which the largest is 1.
noinline fn roundRare(values: *[stretch / vl]V, largest: f32, q: *align(64) [stretch]i16) f32 {
    var poison: V = @splat(0);
    for (values) |v| poison += v * @as(V, @splat(0));
    const nothing = lanes.sum(V, poison); // 0 or NaN
    if (!(largest > 1e-37)) {
        q.* = @splat(0);
        return nothing;
    }
    var squares: V = @splat(0);
    for (values) |*v| {
        v.* *= @splat(1 / largest);
        squares = lanes.mulAdd(f32, v.*, v.*, squares);
    }
    const length = @sqrt(lanes.sum(V, squares));
    const scale = if (longest / length < 32767) longest / length else 32767;
    toWords(values, scale, q);
    return largest / scale + nothing;
}

inline fn toWords(values: *const [stretch / vl]V, scale: f32, q: *align(64) [stretch]i16) void {
    // The whole number nearest to v stands in the low bits of v + magic.
    const magic: V = @splat(0x1.8p23);
    for (values, 0..) |v, i| {
        const shifted: @Vector(vl, u32) = @bitCast(lanes.mulAdd(f32, v, @splat(scale), magic));
        const whole: @Vector(vl, u16) = @truncate(shifted);
        q[i * vl ..][0..vl].* = @as([vl]i16, @bitCast(whole));
    }
}

fn packRows(comptime Format: type, rows: usize, columns: usize, w: [*]const u8, row_bytes: usize, out: *Panel) void {
    var q: [panel_rows][stretch]i16 align(64) = undefined;
    for (0..panel_rows) |r| {
        if (r < rows) {
            out.steps[r] = round(Format, columns, w + r * row_bytes, &q[r]);
        } else {
            q[r] = @splat(0);
            out.steps[r] = 0;
        }
    }
    const W = @Vector(vl, u32);
    inline for (0..vectors) |half| {
        var p: usize = 0;
        while (p < pairs) : (p += vl) {
            var square: [vl]W = undefined;
            inline for (&square, 0..) |*row, i| row.* = @bitCast(@as(@Vector(2 * vl, i16), q[half * vl + i][2 * p ..][0 .. 2 * vl].*));
            square = pack.turn(u32, vl, square);
            inline for (square, 0..) |words, i| out.words[p + i][half * vl ..][0..vl].* = words;
        }
    }
}

noinline fn multiply(panel: *const Panel, x: [*]const u32, steps: [*]const f32, out: [*]f32, ld: usize, accumulate: bool) void {
    const W = @Vector(vl, u32);
    var sums: [tile][vectors]I = @splat(@splat(@splat(0)));
    var words = x;
    for (0..pairs) |p| {
        var w: [vectors]W = undefined;
        inline for (0..vectors) |v| w[v] = panel.words[p][v * vl ..][0..vl].*;
        inline for (0..tile) |t| {
            const spread: W = @splat(words[t]);
            inline for (0..vectors) |v| sums[t][v] = pairs_file.add(sums[t][v], @bitCast(spread), @bitCast(w[v]));
        }
        words += tile;
    }
    inline for (0..tile) |t| inline for (0..vectors) |v| {
        const step = lanes.load(f32, panel.steps[v * vl ..].ptr) * @as(V, @splat(steps[t]));
        const found = @as(V, @floatFromInt(sums[t][v])) * step;
        const place = out + t * ld + v * vl;
        lanes.store(f32, place, if (accumulate) lanes.load(f32, place) + found else found);
    };
}
