//! Products with a frozen weight that stays as its file stores it (bf16, q8_0, …): the base under an adapter.
//!
//! A block of the weight is expanded to f32 in the worker's scratch, multiplied, and forgotten; the whole never exists
//! in f32. Results have the bits of `matmul` on the expanded weight. f32 only: a stored weight has no gradient.
//! Needs `Exec.reserve(.{ .frozen_columns = K })` with the widest K. Does not know: names, files, adapters.

const std = @import("std");
const kernels = @import("kernels");
const tensor = @import("tensor");
const Exec = @import("exec.zig").Exec;
const Mode = @import("exec.zig").Mode;
const ceilDiv = @import("exec.zig").ceilDiv;

/// Row-major [rows, columns] as stored; columns are a multiple of the type's block length.
pub const Matrix = struct {
    dtype: tensor.DType,
    rows: usize,
    columns: usize,
    bytes: []const u8,

    /// Numbers `count` from column `column` of row `row` as f32. Both are multiples of the block length.
    fn expand(self: Matrix, row: usize, column: usize, count: usize, out: []f32) void {
        const length = self.dtype.blockLen();
        std.debug.assert(column % length == 0);
        std.debug.assert(count % length == 0);
        const begin = (row * self.columns + column) / length * self.dtype.blockBytes();
        const raw = self.bytes[begin..][0 .. count / length * self.dtype.blockBytes()];
        const table = kernels.weightTable();
        switch (self.dtype) {
            .f16 => table.expand_f16(count, raw.ptr, out[0..count].ptr),
            .bf16 => table.expand_bf16(count, raw.ptr, out[0..count].ptr),
            .q8_0 => table.expand_q8_0(count, raw.ptr, out[0..count].ptr),
            else => tensor.blocks.toF32(self.dtype, raw, out[0..count]) catch @panic("a frozen weight of a type that cannot be expanded: ask tensor.blocks.canDequantize first"),
        }
    }
};

/// Most rows of a weight that are expanded together in the forward product.
const forward_rows = 256;
/// The same backward: whole blocks of the inner product's sum in either precision, so that the order of sums is kept.
const backward_rows = 768;
/// Most columns that are expanded together in the backward product: a multiple of every block length.
const backward_columns = 256;

/// Numbers of scratch a worker needs for weights of up to `columns` columns.
pub fn scratchCount(columns: usize) usize {
    return if (columns == 0) 0 else @max(forward_rows *| columns, backward_rows * backward_columns);
}

/// out[M,N] (+)= inp[M,K] · weight[N,K]ᵀ + bias[N]
pub fn forward(ex: *Exec, out: []f32, inp: []const f32, weight: Matrix, bias: ?[]const f32, m: usize, mode: Mode) void {
    const n = weight.rows;
    const k = weight.columns;
    std.debug.assert(inp.len >= m * k);
    std.debug.assert(out.len >= m * n);
    const Job = struct { ex: *Exec, out: []f32, inp: []const f32, weight: Matrix, bias: ?[]const f32, m: usize, mode: Mode, part: usize };
    const part = partLen(n, ex.pool.n, 32, forward_rows);
    const job: Job = .{ .ex = ex, .out = out, .inp = inp, .weight = weight, .bias = bias, .m = m, .mode = mode, .part = part };
    ex.pool.parallelFor(job, ceilDiv(n, part), struct {
        fn f(j: Job, index: usize, worker: usize) void {
            const row = index * j.part;
            const rows = @min(j.part, j.weight.rows - row);
            const depth = j.weight.columns;
            const width = j.weight.rows;
            const block = j.ex.workerScratch(worker, f32, rows * depth);
            j.weight.expand(row, 0, rows * depth, block);
            const c = j.out.ptr + row;
            j.ex.gemm(f32)(j.m, rows, depth, j.inp.ptr, depth, 1, block.ptr, 1, depth, c, width, @backingInt(j.mode), j.ex.workers[worker].packing.ptr);
            if (j.bias) |b| for (0..j.m) |r| kernels.table(f32).add(rows, c + r * width, b[row..].ptr);
        }
    }.f);
}

/// dinp[M,K] (+)= dout[M,N] · weight[N,K]
pub fn backwardInput(ex: *Exec, dinp: []f32, dout: []const f32, weight: Matrix, m: usize, mode: Mode) void {
    const n = weight.rows;
    const k = weight.columns;
    std.debug.assert(dinp.len >= m * k);
    std.debug.assert(dout.len >= m * n);
    const Job = struct { ex: *Exec, dinp: []f32, dout: []const f32, weight: Matrix, m: usize, mode: Mode, part: usize };
    const part = partLen(k, ex.pool.n, @max(32, weight.dtype.blockLen()), backward_columns);
    const job: Job = .{ .ex = ex, .dinp = dinp, .dout = dout, .weight = weight, .m = m, .mode = mode, .part = part };
    ex.pool.parallelFor(job, ceilDiv(k, part), struct {
        fn f(j: Job, index: usize, worker: usize) void {
            const column = index * j.part;
            const columns = @min(j.part, j.weight.columns - column);
            var row: usize = 0;
            while (row < j.weight.rows) : (row += backward_rows) {
                const rows = @min(backward_rows, j.weight.rows - row);
                const block = j.ex.workerScratch(worker, f32, rows * columns);
                for (0..rows) |r| j.weight.expand(row + r, column, columns, block[r * columns ..]);
                const mode_here: Mode = if (row == 0) j.mode else .accumulate;
                j.ex.gemm(f32)(j.m, columns, rows, j.dout.ptr + row, j.weight.rows, 1, block.ptr, columns, 1, j.dinp.ptr + column, j.weight.columns, @backingInt(mode_here), j.ex.workers[worker].packing.ptr);
            }
        }
    }.f);
}

/// A part for each worker, in whole units, at most `most`. Bits do not depend on it.
fn partLen(count: usize, workers: usize, unit: usize, most: usize) usize {
    return @min(ceilDiv(@max(count, 1), workers * unit) * unit, most);
}

const check = @import("check.zig");
const matmul = @import("matmul.zig");

/// Bytes of random numbers of a type, and the same numbers as f32.
fn stored(bag: *check.Bag, dtype: tensor.DType, rows: usize, columns: usize) !struct { Matrix, []f32 } {
    const size = rows * columns / dtype.blockLen() * dtype.blockBytes();
    const bytes = bag.zeros(u8, size + 64);
    const aligned: []align(8) u8 = @alignCast(bytes[std.mem.alignForward(usize, @intFromPtr(bytes.ptr), 8) - @intFromPtr(bytes.ptr) ..][0..size]);
    switch (dtype) {
        .f32 => for (std.mem.bytesAsSlice(f32, aligned)) |*x| {
            x.* = @floatCast(bag.prng.normal());
        },
        .f16 => for (std.mem.bytesAsSlice(f16, aligned)) |*x| {
            x.* = @floatCast(bag.prng.normal());
        },
        .bf16 => for (std.mem.bytesAsSlice(u16, aligned)) |*x| {
            const number: f32 = @floatCast(bag.prng.normal());
            x.* = @intCast(@as(u32, @bitCast(number)) >> 16);
        },
        .q8_0 => {
            for (aligned) |*x| x.* = @truncate(bag.prng.next());
            var at: usize = 0;
            while (at < size) : (at += 34) aligned[at..][0..2].* = @bitCast(@as(f16, 0.01));
        },
        else => unreachable,
    }
    const numbers = bag.zeros(f32, rows * columns);
    try tensor.blocks.toF32(dtype, aligned, numbers);
    return .{ .{ .dtype = dtype, .rows = rows, .columns = columns, .bytes = aligned }, numbers };
}

test "stored weights give the bits of the product with the expanded weight, in both precisions, on any number of threads" {
    const m = 17;
    for (check.thread_counts) |threads| {
        var rig = try check.Rig.init(threads);
        defer rig.deinit();

        for ([_][2]usize{ .{ 1, 32 }, .{ 70, 320 }, .{ 1550, 64 } }) |shape| for ([_]tensor.DType{ .f32, .f16, .bf16, .q8_0 }) |dtype| {
            const n, const k = shape;
            var bag: check.Bag = .{};
            defer bag.deinit();

            try rig.ex.reserve(f32, .{ .frozen_columns = k });
            const weight, const numbers = try stored(&bag, dtype, n, k);
            const inp = bag.normal(f32, m * k);
            const dout = bag.normal(f32, m * n);
            const bias = bag.normal(f32, n);
            for ([_]Mode{ .store, .accumulate }, [_]@TypeOf(rig.ex.compute){ .full, .bf16 }) |mode, compute| {
                rig.ex.compute = compute;
                const want = [2][]f32{ bag.normal(f32, m * n), bag.normal(f32, m * k) };
                const got = [2][]f32{ bag.copy(f32, want[0]), bag.copy(f32, want[1]) };
                matmul.forward(f32, &rig.ex, want[0], inp, numbers, bias, m, n, k, mode);
                matmul.backwardInput(f32, &rig.ex, want[1], dout, numbers, m, n, k, mode);
                forward(&rig.ex, got[0], inp, weight, bias, m, mode);
                backwardInput(&rig.ex, got[1], dout, weight, m, mode);
                for (want, got) |w, g| try check.expectSame(f32, w, g);
            }
        };
    }
}
