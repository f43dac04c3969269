//! Quantised weights times many vectors of 8-bit activations: the inner loop of reading a prompt.
//!
//! `pack8_<type>` lays up to 32 rows of a stretch of columns out as a panel: four neighbouring numbers of each row, one row behind the
//! other, as the instruction that multiplies and adds four bytes at once reads them, and the f32 step of each row's block beside them.
//! `gemm8_<shape>` multiplies a panel with all activations: out[t][r] = Σ panel row r · x[t]. Sums within a block are
//! whole numbers; those over blocks are f32 in order, so a result does not depend on how many rows or vectors are asked for.
//! Does not know: where rows come from, threads.

const lanes = @import("lanes.zig");
const quantised = @import("quantised.zig");
const Activations = @import("activations.zig").Activations;

const U64 = @Vector(64, u8);
const S64 = @Vector(64, i8);
const I16 = @Vector(16, i32);
const F16 = @Vector(16, f32);

/// Rows of a panel.
pub const panel_rows = 32;
const vectors = panel_rows / 16;
/// Activations multiplied at a time: their sums, whole and float, and what feeds them fit in the registers.
const tile = if (lanes.has_bf16_product) 6 else 2;

/// What the types differ in once they are a panel.
const Shape = struct {
    /// Columns with one scale a row.
    part: comptime_int,
    /// Activations with one scale.
    group: comptime_int,
    has_minimum: bool = false,
};

/// The part of a panel that holds `length` columns, a block that has one scale a row.
fn Part(comptime length: comptime_int, comptime has_minimum: bool) type {
    return extern struct {
        numbers: [length / 4][vectors][64]u8,
        scales: [panel_rows]f32,
        minima: if (has_minimum) [panel_rows]f32 else [0]f32,
    };
}

pub const Kernels = struct {
    /// Bytes of a panel of `columns` columns, for the type that needs most.
    pub fn panel_bytes(columns: usize) callconv(.c) usize {
        return columns / 16 * @sizeOf(Part(16, true));
    }

    pub fn pack8_q8_0(rows: usize, columns: usize, w: [*]const u8, row_bytes: usize, out: [*]u8) callconv(.c) void {
        pack(quantised.Q8_0, rows, columns, w, row_bytes, out);
    }
    pub fn pack8_q4_0(rows: usize, columns: usize, w: [*]const u8, row_bytes: usize, out: [*]u8) callconv(.c) void {
        pack(quantised.Q4_0, rows, columns, w, row_bytes, out);
    }
    pub fn pack8_q4_1(rows: usize, columns: usize, w: [*]const u8, row_bytes: usize, out: [*]u8) callconv(.c) void {
        pack(quantised.Q4_1, rows, columns, w, row_bytes, out);
    }
    pub fn pack8_q5_0(rows: usize, columns: usize, w: [*]const u8, row_bytes: usize, out: [*]u8) callconv(.c) void {
        pack(quantised.Q5_0, rows, columns, w, row_bytes, out);
    }
    pub fn pack8_q5_1(rows: usize, columns: usize, w: [*]const u8, row_bytes: usize, out: [*]u8) callconv(.c) void {
        pack(quantised.Q5_1, rows, columns, w, row_bytes, out);
    }
    pub fn pack8_mxfp4(rows: usize, columns: usize, w: [*]const u8, row_bytes: usize, out: [*]u8) callconv(.c) void {
        pack(quantised.Mxfp4, rows, columns, w, row_bytes, out);
    }
    pub fn pack8_q4_k(rows: usize, columns: usize, w: [*]const u8, row_bytes: usize, out: [*]u8) callconv(.c) void {
        pack(quantised.Q4K, rows, columns, w, row_bytes, out);
    }
    pub fn pack8_q5_k(rows: usize, columns: usize, w: [*]const u8, row_bytes: usize, out: [*]u8) callconv(.c) void {
        pack(quantised.Q5K, rows, columns, w, row_bytes, out);
    }
    pub fn pack8_q6_k(rows: usize, columns: usize, w: [*]const u8, row_bytes: usize, out: [*]u8) callconv(.c) void {
        pack(quantised.Q6K, rows, columns, w, row_bytes, out);
    }

    /// For panels of q8_0, q4_0, q5_0, mxfp4.
    pub fn gemm8_blocks(rows: usize, columns: usize, panel: [*]const u8, offset: c_int, tokens: usize, stride: usize, x: *const Activations, out: [*]f32, ld: usize, accumulate: c_int) callconv(.c) void {
        gemm(.{ .part = 32, .group = 32 }, rows, columns, panel, offset, tokens, stride, x, out, ld, accumulate != 0);
    }
    /// For panels of q4_1, q5_1.
    pub fn gemm8_blocks_minimum(rows: usize, columns: usize, panel: [*]const u8, offset: c_int, tokens: usize, stride: usize, x: *const Activations, out: [*]f32, ld: usize, accumulate: c_int) callconv(.c) void {
        gemm(.{ .part = 32, .group = 32, .has_minimum = true }, rows, columns, panel, offset, tokens, stride, x, out, ld, accumulate != 0);
    }
    /// For panels of q4_K, q5_K.
    pub fn gemm8_superblocks_minimum(rows: usize, columns: usize, panel: [*]const u8, offset: c_int, tokens: usize, stride: usize, x: *const Activations, out: [*]f32, ld: usize, accumulate: c_int) callconv(.c) void {
        gemm(.{ .part = 32, .group = 256, .has_minimum = true }, rows, columns, panel, offset, tokens, stride, x, out, ld, accumulate != 0);
    }
    /// For panels of q6_K.
    pub fn gemm8_superblocks(rows: usize, columns: usize, panel: [*]const u8, offset: c_int, tokens: usize, stride: usize, x: *const Activations, out: [*]f32, ld: usize, accumulate: c_int) callconv(.c) void {
        gemm(.{ .part = 16, .group = 256 }, rows, columns, panel, offset, tokens, stride, x, out, ld, accumulate != 0);
    }
};

fn pack(comptime Type: type, rows: usize, columns: usize, w: [*]const u8, row_bytes: usize, out: [*]u8) void {
    const P = Part(Type.part, Type.has_minimum);
    const parts: [*]align(1) P = @ptrCast(out);
    const count = Type.length / Type.part;
    for (0..columns / Type.length) |b| {
        for (0..panel_rows) |r| {
            if (r >= rows) {
                inline for (0..count) |p| {
                    const part = &parts[b * count + p];
                    inline for (0..Type.part / 4) |k| part.numbers[k][r / 16][r % 16 * 4 ..][0..4].* = @splat(0);
                    part.scales[r] = 0;
                    if (Type.has_minimum) part.minima[r] = 0;
                }
                continue;
            }
            var open: quantised.Open(Type) = undefined;
            Type.open(w + r * row_bytes + b * Type.bytes, &open);
            inline for (0..count) |p| {
                const part = &parts[b * count + p];
                inline for (0..Type.part / 4) |k| part.numbers[k][r / 16][r % 16 * 4 ..][0..4].* = open.numbers[p * Type.part + 4 * k ..][0..4].*;
                part.scales[r] = open.scales[p];
                if (Type.has_minimum) part.minima[r] = open.minima[p];
            }
        }
    }
}

/// x[t] begins `stride` numbers behind x[t - 1] in each array, counted in numbers of q.
fn gemm(comptime shape: Shape, rows: usize, columns: usize, panel: [*]const u8, offset: c_int, tokens: usize, stride: usize, x: *const Activations, out: [*]f32, ld: usize, accumulate: bool) void {
    var t: usize = 0;
    while (t + tile <= tokens) : (t += tile) tileOf(shape, tile, rows, columns, panel, offset, stride, x, t, out, ld, accumulate);
    inline for (1..tile) |left| {
        if (tokens - t == left) tileOf(shape, left, rows, columns, panel, offset, stride, x, t, out, ld, accumulate);
    }
}

noinline fn tileOf(comptime shape: Shape, comptime count: comptime_int, rows: usize, columns: usize, panel: [*]const u8, offset: c_int, stride: usize, x: *const Activations, first: usize, out: [*]f32, ld: usize, accumulate: bool) void {
    @setEvalBranchQuota(10_000);
    const length = shape.part;
    const P = Part(length, shape.has_minimum);
    const parts: [*]align(1) const P = @ptrCast(panel);
    const per_group = shape.group / length;
    var sums: [count][vectors]F16 = @splat(@splat(@splat(0)));
    var q: [count][*]const i8 = undefined;
    inline for (0..count) |t| q[t] = x.q + (first + t) * stride;
    for (0..columns / shape.group) |g| {
        for (0..per_group) |in_group| {
            const p = g * per_group + in_group;
            const part = &parts[p];
            var whole: [count][vectors]I16 = undefined;
            inline for (0..count) |t| {
                const begin: I16 = if (shape.has_minimum) @splat(0) else blk: {
                    const all = if (length == 16) x.half_sums else x.sums;
                    const sum: i32 = all[(first + t) * (stride / length) + p];
                    break :blk @splat(sum * -offset);
                };
                inline for (0..vectors) |v| whole[t][v] = begin;
            }
            if (lanes.has_bf16_product) {
                inline for (0..length / 4) |k| {
                    const w: [vectors]U64 = .{ part.numbers[k][0], part.numbers[k][1] };
                    inline for (0..count) |t| spreadProduct(4 * k, q[t] + p * length, w, &whole[t]);
                }
            } else for (0..length / 4) |k| {
                inline for (0..count) |t| {
                    const four = @as(*align(1) const i32, @ptrCast(q[t] + p * length + 4 * k)).*;
                    const spread: S64 = @bitCast(@as(I16, @splat(four)));
                    inline for (0..vectors) |v| whole[t][v] = quantised.dot4(whole[t][v], part.numbers[k][v], spread);
                }
            }
            inline for (0..count) |t| {
                const step = x.scales[(first + t) * (stride / shape.group) + g];
                const steps: F16 = @splat(step);
                inline for (0..vectors) |v| {
                    const scale: F16 = part.scales[16 * v ..][0..16].*;
                    sums[t][v] = quantised.mulAdd(@floatFromInt(whole[t][v]), scale * steps, sums[t][v]);
                }
                if (shape.has_minimum) {
                    const sum = x.sums[(first + t) * (stride / length) + p];
                    const below: F16 = @splat(step * @as(f32, @floatFromInt(sum)));
                    inline for (0..vectors) |v| {
                        const minimum: F16 = part.minima[16 * v ..][0..16].*;
                        sums[t][v] = quantised.mulAdd(minimum, below, sums[t][v]);
                    }
                }
            }
        }
    }
    inline for (0..count) |t| {
        const to = out + (first + t) * ld;
        if (rows == panel_rows) {
            inline for (0..vectors) |v| {
                const place = to + 16 * v;
                place[0..16].* = if (accumulate) @as(F16, place[0..16].*) + sums[t][v] else sums[t][v];
            }
        } else {
            const row: [panel_rows]f32 = @bitCast(sums[t]);
            for (to[0..rows], row[0..rows]) |*o, s| o.* = if (accumulate) o.* + s else s;
        }
    }
}

/// whole[v] += four bytes at x + offset, in every lane, times w[v]. One piece of assembly, because a compiler that sees the loads apart
/// moves them up and then has no registers for them.
inline fn spreadProduct(comptime offset: comptime_int, x: [*]const i8, w: [vectors]U64, whole: *[vectors]I16) void {
    var first = whole[0];
    var second = whole[1];
    var spread: S64 = undefined;
    asm volatile (
        \\vpbroadcastd %[offset:c](%[x]), %[spread]
        \\vpdpbusd %[spread], %[a], %[first]
        \\vpdpbusd %[spread], %[b], %[second]
        : [first] "+v" (first),
          [second] "+v" (second),
          [spread] "=&v" (spread),
        : [x] "r" (x),
          [offset] "i" (offset),
          [a] "v" (w[0]),
          [b] "v" (w[1]),
    );
    whole.* = .{ first, second };
}
