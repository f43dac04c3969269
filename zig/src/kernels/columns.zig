//! Softmax down columns: logits of a tile of the vocabulary, one row a word, one column a token.
//!
//! x[row·ld + column]. A vector holds neighbouring tokens, so nothing is summed across lanes. Sums are made in blocks of
//! rows, in order.

const lanes = @import("lanes.zig");

/// Vectors of tokens treated together: their maxima and sums stay in registers.
const group = 4;

/// Terms added in T before the partial sum joins the total: bounds the error of long columns.
const sum_block = 32;

pub fn Kernels(comptime T: type) type {
    return struct {
        const V = lanes.Vector(T);
        const vl = lanes.width(T);
        const Rows = @Vector(vl, u32);

        /// For each column: the largest number, the first row that has it (0 when nothing is larger than the lowest
        /// number: NaN everywhere), Σ e^(x − largest), and Σ x unless `plain_sum` is null.
        pub fn column_logits(rows: usize, columns: usize, ld: usize, x: [*]const T, max_out: [*]T, row_out: [*]u32, exp_sum: [*]T, plain_sum: ?[*]T) callconv(.c) void {
            @setEvalBranchQuota(20_000);
            var c: usize = 0;
            while (c < columns) : (c += group * vl) {
                const have = lesser(columns - c, group * vl);
                const plain = if (plain_sum) |to| to + c else null;
                if (have == group * vl)
                    logits(true, rows, have, ld, x + c, max_out + c, row_out + c, exp_sum + c, plain)
                else
                    logits(false, rows, have, ld, x + c, max_out + c, row_out + c, exp_sum + c, plain);
            }
        }

        inline fn logits(comptime full: bool, rows: usize, have: usize, ld: usize, at: [*]const T, max_out: [*]T, row_out: [*]u32, exp_sum: [*]T, plain_sum: ?[*]T) void {
            var max: [group]V = @splat(@splat(-lanes.largest(T)));
            var best: [group]Rows = @splat(@splat(0));
            for (0..rows) |r| {
                const row: Rows = @splat(@intCast(r));
                inline for (0..group) |g| {
                    const v = some(at + r * ld + g * vl, have, g, full);
                    best[g] = @select(u32, v > max[g], row, best[g]);
                    max[g] = @max(max[g], v);
                }
            }
            var exps: [group]V = @splat(@splat(0));
            var plain: [group]V = @splat(@splat(0));
            var r: usize = 0;
            while (r < rows) {
                const end = lesser(r + sum_block, rows);
                var part: [group]V = @splat(@splat(0));
                var plain_part: [group]V = @splat(@splat(0));
                while (r < end) : (r += 1) inline for (0..group) |g| {
                    const v = some(at + r * ld + g * vl, have, g, full);
                    part[g] += lanes.exp(T, v - max[g]);
                    if (plain_sum != null) plain_part[g] += v;
                };
                inline for (0..group) |g| {
                    exps[g] += part[g];
                    plain[g] += plain_part[g];
                }
            }
            inline for (0..group) |g| if (have > g * vl) {
                const count = lesser(have - g * vl, vl);
                lanes.storePart(T, max_out + g * vl, max[g], count);
                lanes.storePart(T, exp_sum + g * vl, exps[g], count);
                if (plain_sum) |to| lanes.storePart(T, to + g * vl, plain[g], count);
                const list: [vl]u32 = best[g];
                for (0..count) |i| row_out[g * vl + i] = list[i];
            };
        }

        /// x = (e^(x − max) · inverse − offset) · factor, with one number of each for a column. Where the factor is 0
        /// x becomes 0.
        pub fn column_logits_gradient(rows: usize, columns: usize, ld: usize, x: [*]T, max: [*]const T, inverse: [*]const T, offset: [*]const T, factor: [*]const T) callconv(.c) void {
            @setEvalBranchQuota(20_000);
            var c: usize = 0;
            while (c < columns) : (c += group * vl) {
                const have = lesser(columns - c, group * vl);
                if (have == group * vl)
                    gradient(true, rows, have, ld, x + c, max + c, inverse + c, offset + c, factor + c)
                else
                    gradient(false, rows, have, ld, x + c, max + c, inverse + c, offset + c, factor + c);
            }
        }

        inline fn gradient(comptime full: bool, rows: usize, have: usize, ld: usize, x: [*]T, max: [*]const T, inverse: [*]const T, offset: [*]const T, factor: [*]const T) void {
            var m: [group]V = undefined;
            var s: [group]V = undefined;
            var o: [group]V = undefined;
            var f: [group]V = undefined;
            inline for (0..group) |g| {
                m[g] = some(max + g * vl, have, g, full);
                s[g] = some(inverse + g * vl, have, g, full);
                o[g] = some(offset + g * vl, have, g, full);
                f[g] = some(factor + g * vl, have, g, full);
            }
            for (0..rows) |r| inline for (0..group) |g| {
                const at = x + r * ld + g * vl;
                const y = (lanes.exp(T, some(at, have, g, full) - m[g]) * s[g] - o[g]) * f[g];
                put(at, @select(T, f[g] == @as(V, @splat(0)), @as(V, @splat(0)), y), have, g, full);
            };
        }

        inline fn some(p: [*]const T, have: usize, comptime g: usize, comptime full: bool) V {
            if (full or have >= (g + 1) * vl) return lanes.load(T, p);
            return if (have > g * vl) lanes.loadPart(T, p, have - g * vl, 0) else @splat(0);
        }

        inline fn put(p: [*]T, v: V, have: usize, comptime g: usize, comptime full: bool) void {
            if (full or have >= (g + 1) * vl) lanes.store(T, p, v) else if (have > g * vl) lanes.storePart(T, p, v, have - g * vl);
        }
    };
}

inline fn lesser(a: usize, b: usize) usize {
    return if (a < b) a else b;
}
