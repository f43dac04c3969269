//! Products with a frozen weight that stays as its file stores it (bf16, q4_K, …): the base under an adapter.
//!
//! A block of the weight is expanded in the worker's scratch, multiplied with all rows of the call, and forgotten; the whole never
//! exists as floats. Results have the bits of `matmul` on the expanded weight, for any number of threads and in either precision
//! of `Exec.compute`. T = f64 expands the same numbers and multiplies in f64. There is no gradient of a stored weight.
//! Needs `Exec.reserve(.{ .frozen_columns = K })` with the widest K. Does not know: names, files, adapters.

const std = @import("std");
const kernels = @import("kernels");
const tensor = @import("tensor");
const Exec = @import("exec.zig").Exec;
const Mode = @import("exec.zig").Mode;
const ceilDiv = @import("exec.zig").ceilDiv;

/// [N, K] as stored; rows are served in Hugging Face's order.
pub const Matrix = tensor.StoredMatrix;

/// Numbers along the sum that are expanded together: whole blocks of the inner product's sum in either precision, so that the
/// order of sums is kept, and a multiple of every type's block.
const depth_part = 768;
/// Most rows (forward) or columns (backward) expanded together. More of them share the packing of the other factor, fewer
/// of them stay in the cache.
const width_part = 512;

/// Numbers of scratch a worker needs for weights of up to `columns` columns.
pub fn scratchCount(columns: usize) usize {
    return if (columns == 0) 0 else depth_part * width_part;
}

/// out[rows, columns] (dense) = that part of the weight, rows in Hugging Face's order. `column` and `columns` are multiples of
/// the type's block length.
pub fn expand(comptime T: type, weight: Matrix, row: usize, rows: usize, column: usize, columns: usize, out: []T) void {
    for (0..rows) |r| expandRow(T, weight, row + r, column, out[r * columns ..][0..columns]);
}

fn expandRow(comptime T: type, weight: Matrix, row: usize, column: usize, out: []T) void {
    if (weight.scales != null) return expandPairs(T, weight, row, column, out);
    const raw = weight.part(row, column, out.len);
    if (T == f32) return expandBytes(weight.dtype, raw, out);
    if (weight.dtype == .f64) return @memcpy(std.mem.sliceAsBytes(out), raw);
    const length = weight.dtype.blockLen();
    const size = weight.dtype.blockBytes();
    var buffer: [depth_part]f32 = undefined;
    var i: usize = 0;
    while (i < out.len) : (i += buffer.len) {
        const count = @min(buffer.len, out.len - i);
        expandBytes(weight.dtype, raw[i / length * size ..][0 .. count / length * size], buffer[0..count]);
        for (out[i..][0..count], buffer[0..count]) |*o, x| o.* = x;
    }
}

/// MXFP4 whose scales lie apart.
fn expandPairs(comptime T: type, weight: Matrix, row: usize, column: usize, out: []T) void {
    const codes = weight.part(row, column, out.len).ptr;
    const scales = weight.scalesOf(row, column, out.len).ptr;
    const kernel = kernels.weightTable().expand_mxfp4_pairs;
    if (T == f32) return kernel(out.len, codes, scales, out.ptr);
    var buffer: [depth_part]f32 = undefined;
    var i: usize = 0;
    while (i < out.len) : (i += buffer.len) {
        const count = @min(buffer.len, out.len - i);
        kernel(count, codes + i / 2, scales + i / 32, &buffer);
        for (out[i..][0..count], buffer[0..count]) |*o, x| o.* = x;
    }
}

fn expandBytes(dtype: tensor.DType, raw: []const u8, out: []f32) void {
    const table = kernels.weightTable();
    const kernel = switch (dtype) {
        .f16 => table.expand_f16,
        .bf16 => table.expand_bf16,
        .q4_0 => table.expand_q4_0,
        .q4_1 => table.expand_q4_1,
        .q5_0 => table.expand_q5_0,
        .q5_1 => table.expand_q5_1,
        .q8_0 => table.expand_q8_0,
        .q4_k => table.expand_q4_k,
        .q5_k => table.expand_q5_k,
        .q6_k => table.expand_q6_k,
        .mxfp4 => table.expand_mxfp4,
        else => return tensor.blocks.toF32(dtype, raw, out) catch
            @panic("a frozen weight of a type that cannot be expanded: ask StoredMatrix.canUse first"),
    };
    kernel(out.len, raw.ptr, out.ptr);
}

/// out[count, K] = rows `ids` of the table.
pub fn embed(comptime T: type, ex: *Exec, out: []T, table: Matrix, ids: []const u32) void {
    std.debug.assert(out.len >= ids.len * table.columns);
    const Job = struct { out: []T, table: Matrix, ids: []const u32 };
    ex.pool.parallelFor(Job{ .out = out, .table = table, .ids = ids }, ids.len, struct {
        fn f(j: Job, i: usize, _: usize) void {
            expandRow(T, j.table, j.ids[i], 0, j.out[i * j.table.columns ..][0..j.table.columns]);
        }
    }.f);
}

/// out[M,N] (+)= inp[M,K] · weight[N,K]ᵀ + bias[N]
pub fn forward(comptime T: type, ex: *Exec, out: []T, inp: []const T, weight: Matrix, bias: ?[]const T, m: usize, mode: Mode) void {
    std.debug.assert(inp.len >= m * weight.columns);
    std.debug.assert(out.len >= m * weight.rows);
    const job: Product(T) = .init(ex, weight, inp, out, bias, m, mode, weight.rows, 32);
    ex.pool.parallelFor(job, job.tasks(), struct {
        fn f(j: Product(T), index: usize, worker: usize) void {
            const at = j.place(index);
            const k = j.weight.columns;
            const n = j.weight.rows;
            const c = j.out.ptr + at.row * n + at.first;
            var depth: usize = 0;
            while (depth < k) : (depth += depth_part) {
                const count = @min(depth_part, k - depth);
                const a = j.inp.ptr + at.row * k + depth;
                j.multiply(worker, at, a, .{ .row = at.first, .rows = at.count, .column = depth, .columns = count }, .transposed, c, n, depth == 0);
            }
            if (j.bias) |b| for (0..at.rows) |r| kernels.table(T).add(at.count, c + r * n, b[at.first..].ptr);
        }
    }.f);
}

/// dinp[M,K] (+)= dout[M,N] · weight[N,K]
pub fn backwardInput(comptime T: type, ex: *Exec, dinp: []T, dout: []const T, weight: Matrix, m: usize, mode: Mode) void {
    std.debug.assert(dinp.len >= m * weight.columns);
    std.debug.assert(dout.len >= m * weight.rows);
    backward(T, ex, dinp, dout, weight.rows, 1, weight, m, mode);
}

/// dinp[M,K] = doutᵀ · weight[N,K], with dout turned: [N, M].
pub fn backwardInputTurned(comptime T: type, ex: *Exec, dinp: []T, dout: []const T, weight: Matrix, m: usize) void {
    std.debug.assert(dinp.len >= m * weight.columns);
    std.debug.assert(dout.len >= m * weight.rows);
    backward(T, ex, dinp, dout, 1, m, weight, m, .store);
}

fn backward(comptime T: type, ex: *Exec, dinp: []T, dout: []const T, dout_row: usize, dout_col: usize, weight: Matrix, m: usize, mode: Mode) void {
    var job: Product(T) = .init(ex, weight, dout, dinp, null, m, mode, weight.columns, @max(32, weight.dtype.blockLen()));
    job.inp_row = dout_row;
    job.inp_col = dout_col;
    ex.pool.parallelFor(job, job.tasks(), struct {
        fn f(j: Product(T), index: usize, worker: usize) void {
            const at = j.place(index);
            const k = j.weight.columns;
            const n = j.weight.rows;
            const c = j.out.ptr + at.row * k + at.first;
            var depth: usize = 0;
            while (depth < n) : (depth += depth_part) {
                const count = @min(depth_part, n - depth);
                const a = j.inp.ptr + at.row * j.inp_row + depth * j.inp_col;
                j.multiply(worker, at, a, .{ .row = depth, .rows = count, .column = at.first, .columns = at.count }, .straight, c, k, depth == 0);
            }
        }
    }.f);
}

/// One product: `inp` [M, depth] times the weight (transposed or not) into `out` [M, width], cut into tasks.
fn Product(comptime T: type) type {
    return struct {
        ex: *Exec,
        weight: Matrix,
        inp: []const T,
        /// Distance of two rows and of two numbers of a row of `inp`.
        inp_row: usize,
        inp_col: usize = 1,
        out: []T,
        bias: ?[]const T,
        m: usize,
        mode: Mode,
        width: usize,
        /// Of the width, and of M, for one task.
        part: usize,
        row_part: usize,

        const Self = @This();

        /// A part for each worker, in whole units of the width, at most `width_part`. Where the width has too few units for all
        /// workers, M is cut as well. Bits do not depend on it.
        fn init(ex: *Exec, weight: Matrix, inp: []const T, out: []T, bias: ?[]const T, m: usize, mode: Mode, width: usize, unit: usize) Self {
            const workers = ex.pool.n;
            const part = @min(ceilDiv(@max(width, 1), workers * unit) * unit, width_part);
            const strips = ceilDiv(width, part);
            const row_parts = if (strips >= workers) 1 else @max(1, workers / @max(strips, 1));
            const row_part = @max(1, ceilDiv(ceilDiv(m, row_parts), 28) * 28);
            return .{ .ex = ex, .weight = weight, .inp = inp, .inp_row = weight.columns, .out = out, .bias = bias, .m = m, .mode = mode, .width = width, .part = part, .row_part = row_part };
        }

        fn tasks(self: Self) usize {
            return ceilDiv(self.width, self.part) * ceilDiv(self.m, self.row_part);
        }

        const Place = struct { first: usize, count: usize, row: usize, rows: usize };

        fn place(self: Self, index: usize) Place {
            const strips = ceilDiv(self.width, self.part);
            const first = index % strips * self.part;
            const row = index / strips * self.row_part;
            return .{ .first = first, .count = @min(self.part, self.width - first), .row = row, .rows = @min(self.row_part, self.m - row) };
        }

        const Block = struct { row: usize, rows: usize, column: usize, columns: usize };

        const Turn = enum { straight, transposed };

        /// c[rows, count] (+)= a · block, or a · blockᵀ.
        fn multiply(self: Self, worker: usize, at: Place, a: [*]const T, block: Block, turn: Turn, c: [*]T, ldc: usize, is_first: bool) void {
            if (T == f32) if (self.formOf(block)) |kind| return self.multiplyPacked(worker, at, a, block, turn, c, ldc, is_first, kind);
            var b: [*]const T = undefined;
            var stride = block.columns;
            if (alignedView(T, self.weight)) |numbers| {
                b = numbers.ptr + block.row * self.weight.columns + block.column;
                stride = self.weight.columns;
            } else {
                const scratch = self.ex.workerScratch(worker, T, block.rows * block.columns);
                expand(T, self.weight, block.row, block.rows, block.column, block.columns, scratch);
                b = scratch.ptr;
            }
            const depth = if (turn == .transposed) block.columns else block.rows;
            const b_row = if (turn == .transposed) 1 else stride;
            const b_col = if (turn == .transposed) stride else 1;
            const mode: Mode = if (is_first) self.mode else .accumulate;
            self.ex.gemm(T)(at.rows, at.count, depth, a, self.inp_row, self.inp_col, b, b_row, b_col, c, ldc, @backingInt(mode), self.ex.workers[worker].packing.ptr);
        }

        /// The form of weights whose numbers are bf16 already, where the product is: they need no detour over f32.
        fn formOf(self: Self, block: Block) ?Form {
            if (self.ex.compute != .bf16 or block.column % 32 != 0 or block.columns % 32 != 0) return null;
            return switch (self.weight.dtype) {
                .mxfp4 => if (self.weight.scales != null) .pairs else .halves,
                .bf16 => .bf16,
                else => null,
            };
        }

        /// The same product with the same bits: the block goes into the panels as it is expanded.
        fn multiplyPacked(self: Self, worker: usize, at: Place, a: [*]const f32, block: Block, turn: Turn, c: [*]f32, ldc: usize, is_first: bool, kind: Form) void {
            const table = kernels.blockTable();
            const depth = if (turn == .transposed) block.columns else block.rows;
            var rows: [depth_part][*]const u8 = undefined;
            var scales: [depth_part][*]const u8 = undefined;
            for (rows[0..block.rows], scales[0..block.rows], block.row..) |*row, *scale, r| {
                row.* = self.weight.part(r, block.column, block.columns).ptr;
                scale.* = if (kind == .pairs) self.weight.scalesOf(r, block.column, block.columns).ptr else row.*;
            }
            const panels = self.ex.workerBytes(worker, table.packed_rows_size(depth, at.count));
            const pack = if (turn == .transposed) table.pack_rows_across else table.pack_rows_along;
            pack(@backingInt(kind), block.rows, block.columns, &rows, &scales, panels.ptr);
            const mode: Mode = if (is_first) self.mode else .accumulate;
            self.ex.gemmPacked(f32)(at.rows, at.count, depth, a, self.inp_row, self.inp_col, panels.ptr, depth, 0, 0, c, ldc, @backingInt(mode), self.ex.workers[worker].packing.ptr);
        }
    };
}

/// How kernels/blocks.zig names the forms it can lay out.
const Form = enum(c_int) { pairs = 0, halves = 1, bf16 = 2 };

/// Native floats where they lie, if the file has put them at a multiple of their size.
fn alignedView(comptime T: type, weight: Matrix) ?[]const T {
    const numbers = weight.view(T) orelse return null;
    if (!std.mem.isAligned(@intFromPtr(numbers.ptr), @alignOf(T))) return null;
    return @alignCast(numbers);
}

test {
    _ = @import("frozen_test.zig");
}
