//! Quantised weights times many vectors of 8-bit activations: the inner loop of reading a prompt.
//!
//! `pack8_<type>` lays up to 32 rows of a stretch of columns out as a panel: four neighbouring numbers of each row, one row behind the
//! other, as the instruction that multiplies and adds four bytes at once reads them, and the f32 step of each row's block beside them.
//! `gemm8_<shape>` multiplies a panel with all activations: out[t][r] = Σ panel row r · x[t]. Sums within a block are
//! whole numbers; those over blocks are f32 in order, so a result does not depend on how many rows or vectors are asked for.
//! Where blocks share a scale of the activations (superblocks), they are added with their own scales first and meet it once; the sums of
//! activations that minima ask for are then multiplied as whole numbers, too.
//! Does not know: where rows come from, threads.

const lanes = @import("lanes.zig");
const pack_file = @import("pack.zig");
const pairs = @import("pairs.zig");
const quantised = @import("quantised.zig");
const Activations = @import("activations.zig").Activations;
const Next = @import("activations.zig").Next;

const U64 = @Vector(64, u8);
const S64 = @Vector(64, i8);
const U32 = @Vector(16, u32);
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

    /// Parts that share a scale of the activations.
    fn parts(comptime self: Shape) comptime_int {
        return self.group / self.part;
    }

    fn of(comptime Type: type) Shape {
        return .{ .part = Type.part, .group = Type.group, .has_minimum = Type.has_minimum };
    }
};

/// What a panel holds of `length` columns, a block that has one scale a row.
fn Part(comptime length: comptime_int) type {
    return extern struct {
        /// Word k of row r: its columns 4k … 4k + 3.
        numbers: [length / 4][panel_rows]u32,
        scales: [panel_rows]f32,
    };
}

/// What it holds of the columns that share a scale of the activations.
fn Group(comptime shape: Shape) type {
    const many = shape.has_minimum and shape.parts() > 1;
    return extern struct {
        parts: [shape.parts()]Part(shape.part),
        /// Of the only part; or whole numbers of two neighbouring parts in a word, the first below, times `minimum_steps`.
        minima: if (many) [shape.parts() / 2][panel_rows]u32 else if (shape.has_minimum) [panel_rows]f32 else [0]f32,
        minimum_steps: if (many) [panel_rows]f32 else [0]f32,
    };
}

pub const Kernels = struct {
    /// Bytes of a panel of `columns` columns, for the type that needs most.
    pub fn panel_bytes(columns: usize) callconv(.c) usize {
        var most: usize = 0;
        inline for (.{ quantised.Q8_0, quantised.Q4_1, quantised.Q4K, quantised.Q6K }) |Type| {
            const size = (columns + Type.group - 1) / Type.group * @sizeOf(Group(.of(Type)));
            if (size > most) most = size;
        }
        return most;
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
    pub fn gemm8_blocks(rows: usize, columns: usize, panel: [*]const u8, offset: c_int, tokens: usize, stride: usize, x: *const Activations, out: [*]f32, ld: usize, accumulate: c_int, next: *const Next) callconv(.c) void {
        gemm(.{ .part = 32, .group = 32 }, rows, columns, panel, offset, tokens, stride, x, out, ld, accumulate != 0, next);
    }
    /// For panels of q4_1, q5_1.
    pub fn gemm8_blocks_minimum(rows: usize, columns: usize, panel: [*]const u8, offset: c_int, tokens: usize, stride: usize, x: *const Activations, out: [*]f32, ld: usize, accumulate: c_int, next: *const Next) callconv(.c) void {
        gemm(.{ .part = 32, .group = 32, .has_minimum = true }, rows, columns, panel, offset, tokens, stride, x, out, ld, accumulate != 0, next);
    }
    /// For panels of q4_K, q5_K.
    pub fn gemm8_superblocks_minimum(rows: usize, columns: usize, panel: [*]const u8, offset: c_int, tokens: usize, stride: usize, x: *const Activations, out: [*]f32, ld: usize, accumulate: c_int, next: *const Next) callconv(.c) void {
        gemm(.{ .part = 32, .group = 256, .has_minimum = true }, rows, columns, panel, offset, tokens, stride, x, out, ld, accumulate != 0, next);
    }
    /// For panels of q6_K.
    pub fn gemm8_superblocks(rows: usize, columns: usize, panel: [*]const u8, offset: c_int, tokens: usize, stride: usize, x: *const Activations, out: [*]f32, ld: usize, accumulate: c_int, next: *const Next) callconv(.c) void {
        gemm(.{ .part = 16, .group = 256 }, rows, columns, panel, offset, tokens, stride, x, out, ld, accumulate != 0, next);
    }
};

/// Columns turned together: a register of the widest level of each row.
const chunk = 64;

fn pack(comptime Type: type, rows: usize, columns: usize, w: [*]const u8, row_bytes: usize, out: [*]u8) void {
    const shape: Shape = comptime .of(Type);
    const groups: [*]align(64) Group(shape) = @ptrCast(@alignCast(out));
    const at_once = if (Type.length < chunk) chunk / Type.length else 1;
    var numbers: [panel_rows][at_once * Type.length]u8 align(64) = undefined;
    if (rows < panel_rows) numbers = @splat(@splat(0));
    const blocks = columns / Type.length;
    var b: usize = 0;
    while (b < blocks) : (b += at_once) {
        const have = if (blocks - b < at_once) blocks - b else at_once;
        for (0..have) |i| {
            const group = &groups[b + i];
            for (0..rows) |r| {
                const block = w + r * row_bytes + (b + i) * Type.bytes;
                var open: quantised.Open(Type) = undefined;
                Type.open(block, &open);
                numbers[r][i * Type.length ..][0..Type.length].* = open.numbers;
                inline for (0..shape.parts()) |p| group.parts[p].scales[r] = open.scales[p];
                if (!Type.has_minimum) continue;
                if (shape.parts() == 1) group.minima[r] = open.minima[0] else {
                    const words: [shape.parts() / 2]u32 = @bitCast(open.minima);
                    inline for (words, 0..) |word, p| group.minima[p][r] = word;
                    group.minimum_steps[r] = open.minimum_step;
                }
            }
            for (rows..panel_rows) |r| {
                inline for (0..shape.parts()) |p| group.parts[p].scales[r] = 0;
                if (!Type.has_minimum) continue;
                if (shape.parts() == 1) group.minima[r] = 0 else {
                    inline for (0..shape.parts() / 2) |p| group.minima[p][r] = 0;
                    group.minimum_steps[r] = 0;
                }
            }
        }
        turnNumbers(shape, at_once * Type.length, have * Type.length, &numbers, groups + b);
    }
}

/// The first `have` columns of all rows to their places in the panel.
fn turnNumbers(comptime shape: Shape, comptime room: comptime_int, have: usize, numbers: *const [panel_rows][room]u8, groups: [*]Group(shape)) void {
    const vl = comptime lanes.width(u32);
    const W = @Vector(vl, u32);
    var column: usize = 0;
    while (column < have) : (column += 4 * vl) {
        inline for (0..panel_rows / vl) |part| {
            const r = part * vl;
            var square: [vl]W = undefined;
            inline for (&square, 0..) |*row, j| row.* = @bitCast(@as(@Vector(4 * vl, u8), numbers[r + j][column..][0 .. 4 * vl].*));
            square = pack_file.turn(u32, vl, square);
            inline for (square, 0..) |words, j| {
                const at = column + 4 * j;
                if (at < have) groups[at / shape.group].parts[at % shape.group / shape.part].numbers[at % shape.part / 4][r..][0..vl].* = words;
            }
        }
    }
}

/// x[t] begins `stride` numbers behind x[t - 1] in each array, counted in numbers of q. `next` is asked for meanwhile.
fn gemm(comptime shape: Shape, rows: usize, columns: usize, panel: [*]const u8, offset: c_int, tokens: usize, stride: usize, x: *const Activations, out: [*]f32, ld: usize, accumulate: bool, next: *const Next) void {
    var asking: lanes.Asking = .begin(next, (tokens + tile - 1) / tile);
    var t: usize = 0;
    while (t + tile <= tokens) : (t += tile) {
        asking.some();
        tileOf(shape, tile, rows, columns, panel, offset, stride, x, t, out, ld, accumulate);
    }
    asking.some();
    inline for (1..tile) |left| {
        if (tokens - t == left) tileOf(shape, left, rows, columns, panel, offset, stride, x, t, out, ld, accumulate);
    }
}

noinline fn tileOf(comptime shape: Shape, comptime count: comptime_int, rows: usize, columns: usize, panel: [*]const u8, offset: c_int, stride: usize, x: *const Activations, first: usize, out: [*]f32, ld: usize, accumulate: bool) void {
    @setEvalBranchQuota(10_000);
    const parts = shape.parts();
    const groups: [*]align(64) const Group(shape) = @ptrCast(@alignCast(panel));
    var totals: [count][vectors]F16 = @splat(@splat(@splat(0)));
    var q: [count][*]const i8 = undefined;
    inline for (0..count) |t| q[t] = x.q + (first + t) * stride;
    for (0..columns / shape.group) |g| {
        const group = &groups[g];
        if (parts == 1) {
            const whole = products(shape, count, &group.parts[0], offset, stride, x, first, &q, g);
            inline for (0..count) |t| {
                const step = x.scales[(first + t) * (stride / shape.group) + g];
                const steps: F16 = @splat(step);
                inline for (0..vectors) |v| {
                    const scale: F16 = group.parts[0].scales[16 * v ..][0..16].*;
                    totals[t][v] = quantised.mulAdd(@floatFromInt(whole[t][v]), scale * steps, totals[t][v]);
                }
                if (shape.has_minimum) {
                    const sum = x.sums[(first + t) * (stride / shape.part) + g];
                    const below: F16 = @splat(step * @as(f32, @floatFromInt(sum)));
                    inline for (0..vectors) |v| {
                        const minimum: F16 = group.minima[16 * v ..][0..16].*;
                        totals[t][v] = quantised.mulAdd(minimum, below, totals[t][v]);
                    }
                }
            }
            continue;
        }
        var sums: [count][vectors]F16 = @splat(@splat(@splat(0)));
        for (0..parts) |p| {
            const part = &group.parts[p];
            const whole = products(shape, count, part, offset, stride, x, first, &q, g * parts + p);
            inline for (0..count) |t| inline for (0..vectors) |v| {
                const scale: F16 = part.scales[16 * v ..][0..16].*;
                sums[t][v] = quantised.mulAdd(@floatFromInt(whole[t][v]), scale, sums[t][v]);
            };
        }
        if (shape.has_minimum) inline for (0..count) |t| {
            const of_x = x.sums + (first + t) * (stride / shape.part) + g * parts;
            var below: [vectors]I16 = @splat(@splat(0));
            inline for (0..parts / 2) |p| {
                const pair: I16 = @splat(@as(*align(2) const i32, @ptrCast(of_x + 2 * p)).*);
                inline for (0..vectors) |v| below[v] = pairs.add(below[v], pair, @bitCast(@as(U32, group.minima[p][16 * v ..][0..16].*)));
            }
            inline for (0..vectors) |v| {
                const minimum: F16 = group.minimum_steps[16 * v ..][0..16].*;
                sums[t][v] = quantised.mulAdd(@floatFromInt(below[v]), minimum, sums[t][v]);
            }
        };
        inline for (0..count) |t| {
            const steps: F16 = @splat(x.scales[(first + t) * (stride / shape.group) + g]);
            inline for (0..vectors) |v| totals[t][v] = quantised.mulAdd(sums[t][v], steps, totals[t][v]);
        }
        // These totals are not wanted again before the next group: the registers are for its sums.
        asm volatile (""
            :
            : [totals] "r" (&totals),
            : .{ .memory = true });
    }
    inline for (0..count) |t| {
        const to = out + (first + t) * ld;
        if (rows == panel_rows) {
            inline for (0..vectors) |v| {
                const place = to + 16 * v;
                place[0..16].* = if (accumulate) @as(F16, place[0..16].*) + totals[t][v] else totals[t][v];
            }
        } else {
            const row: [panel_rows]f32 = @bitCast(totals[t]);
            for (to[0..rows], row[0..rows]) |*o, s| o.* = if (accumulate) o.* + s else s;
        }
    }
}

/// Sums of part `p` for each of the activations.
inline fn products(comptime shape: Shape, comptime count: comptime_int, part: *const Part(shape.part), offset: c_int, stride: usize, x: *const Activations, first: usize, q: *const [count][*]const i8, p: usize) [count][vectors]I16 {
    const length = shape.part;
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
            const w: [vectors]U64 = .{ @bitCast(@as(U32, part.numbers[k][0..16].*)), @bitCast(@as(U32, part.numbers[k][16..32].*)) };
            inline for (0..count) |t| spreadProduct(4 * k, q[t] + p * length, w, &whole[t]);
        }
    } else for (0..length / 4) |k| {
        inline for (0..count) |t| {
            const four = @as(*align(1) const i32, @ptrCast(q[t] + p * length + 4 * k)).*;
            const spread: S64 = @bitCast(@as(I16, @splat(four)));
            inline for (0..vectors) |v| whole[t][v] = quantised.dot4(whole[t][v], @bitCast(@as(U32, part.numbers[k][16 * v ..][0..16].*)), spread);
        }
    }
    return whole;
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
