//! Products of a mixture of experts with weights in memory: each expert's rows times its own matrix, all experts at once.
//!
//! Rows [R, …] are in the order of experts, expert e's being starts[e] … starts[e + 1]; weights [E, in, out], a matrix an expert. The work is
//! divided by rows and columns of the whole, whatever expert they belong to, so that workers have equal shares however tokens
//! fall. Every number is summed as `matmul` sums it, with the same bits. Experts without rows are not touched.
//! Does not know: which token a row is of, activations, weights in files (frozen.zig).

const std = @import("std");
const kernels = @import("kernels");
const matmul = @import("matmul.zig");
const Exec = @import("exec.zig").Exec;
const Grid = matmul.Grid;

/// Which rows are whose: [E + 1], rising from 0.
pub const Starts = []const u32;

/// out [R, out] = inp [R, in] · W_e + b_e, b [E, out].
pub fn forward(comptime T: type, ex: *Exec, out: []T, inp: []const T, weights: []const T, bias: []const T, starts: Starts, in: usize, wide: usize) void {
    rowProducts(T, ex, .{ .out = out, .inp = inp, .weights = weights, .bias = bias, .starts = starts, .n = wide, .k = in, .b_row = wide, .b_col = 1 });
}

/// dinp [R, in] = dout [R, out] · W_eᵀ.
pub fn backwardInput(comptime T: type, ex: *Exec, dinp: []T, dout: []const T, weights: []const T, starts: Starts, in: usize, wide: usize) void {
    rowProducts(T, ex, .{ .out = dinp, .inp = dout, .weights = weights, .bias = null, .starts = starts, .n = in, .k = wide, .b_row = 1, .b_col = wide });
}

fn Rows(comptime T: type) type {
    return struct {
        /// [R, n]
        out: []T,
        /// [R, k]
        inp: []const T,
        /// [E, …]: number (p, j) of a matrix at p·b_row + j·b_col.
        weights: []const T,
        bias: ?[]const T,
        starts: Starts,
        n: usize,
        k: usize,
        b_row: usize,
        b_col: usize,
    };
}

fn rowProducts(comptime T: type, ex: *Exec, product: Rows(T)) void {
    const total = product.starts[product.starts.len - 1];
    if (total == 0 or product.n == 0) return;
    std.debug.assert(product.out.len >= total * product.n and product.inp.len >= total * product.k);
    std.debug.assert(product.weights.len == (product.starts.len - 1) * product.n * product.k);
    var tile_rows: usize = undefined;
    var tile_columns: usize = undefined;
    kernels.table(T).gemm_tile(&tile_rows, &tile_columns);
    const grid: Grid = .choose(total, product.n, ex.pool.n, tile_rows, tile_columns);
    const Job = struct { p: Rows(T), grid: Grid, ex: *Exec, total: usize };
    ex.pool.parallelFor(Job{ .p = product, .grid = grid, .ex = ex, .total = total }, grid.rows * grid.cols, struct {
        fn f(job: Job, index: usize, worker: usize) void {
            const p = job.p;
            const first = index / job.grid.cols * job.grid.row_part;
            const end = @min(first + job.grid.row_part, job.total);
            const col = index % job.grid.cols * job.grid.col_part;
            if (first >= end or col >= p.n) return;
            const cols = @min(job.grid.col_part, p.n - col);
            for (p.starts[0 .. p.starts.len - 1], p.starts[1..], 0..) |from, to, e| {
                const row = @max(first, from);
                if (row >= @min(end, to)) continue;
                const rows = @min(end, to) - row;
                const c = p.out.ptr + row * p.n + col;
                const b = p.weights.ptr + e * p.n * p.k + col * p.b_col;
                job.ex.gemm(T)(rows, cols, p.k, p.inp.ptr + row * p.k, p.k, 1, b, p.b_row, p.b_col, c, p.n, 0, job.ex.workers[worker].packing.ptr);
                if (p.bias) |bias| for (0..rows) |r| kernels.table(T).add(cols, c + r * p.n, bias.ptr + e * p.n + col);
            }
        }
    }.f);
}

/// dweights [E, in, out] += inp_eᵀ · dout_e;  dbias [E, out] += column sums of dout_e.
pub fn backwardWeight(comptime T: type, ex: *Exec, dweights: []T, dbias: []T, dout: []const T, inp: []const T, starts: Starts, in: usize, wide: usize) void {
    const total = starts[starts.len - 1];
    if (total == 0) return;
    std.debug.assert(dout.len >= total * wide and inp.len >= total * in);
    std.debug.assert(dweights.len == (starts.len - 1) * in * wide and dbias.len == (starts.len - 1) * wide);
    var tile_rows: usize = undefined;
    var tile_columns: usize = undefined;
    kernels.table(T).gemm_tile(&tile_rows, &tile_columns);
    const grid: Grid = .choose(in, wide, ex.pool.n, tile_rows, tile_columns);
    const Job = struct { dweights: []T, dbias: []T, dout: []const T, inp: []const T, starts: Starts, in: usize, wide: usize, grid: Grid, ex: *Exec };
    const job: Job = .{ .dweights = dweights, .dbias = dbias, .dout = dout, .inp = inp, .starts = starts, .in = in, .wide = wide, .grid = grid, .ex = ex };
    ex.pool.parallelFor(job, grid.rows * grid.cols, struct {
        fn f(j: Job, index: usize, worker: usize) void {
            const row = index / j.grid.cols * j.grid.row_part;
            const col = index % j.grid.cols * j.grid.col_part;
            if (row >= j.in or col >= j.wide) return;
            const rows = @min(j.grid.row_part, j.in - row);
            const cols = @min(j.grid.col_part, j.wide - col);
            for (j.starts[0 .. j.starts.len - 1], j.starts[1..], 0..) |from, to, e| {
                if (from == to) continue;
                const b = j.dout.ptr + from * j.wide + col;
                const c = j.dweights.ptr + (e * j.in + row) * j.wide + col;
                j.ex.gemm(T)(rows, cols, to - from, j.inp.ptr + from * j.in + row, 1, j.in, b, j.wide, 1, c, j.wide, 1, j.ex.workers[worker].packing.ptr);
            }
        }
    }.f);
    biasGradients(T, ex, dbias, dout, starts, wide);
}

/// Columns one task sums. A multiple of every vector length.
const column_part = 64;

fn biasGradients(comptime T: type, ex: *Exec, dbias: []T, dout: []const T, starts: Starts, wide: usize) void {
    const Job = struct { dbias: []T, dout: []const T, starts: Starts, wide: usize, parts: usize };
    const parts = (wide + column_part - 1) / column_part;
    ex.pool.parallelFor(Job{ .dbias = dbias, .dout = dout, .starts = starts, .wide = wide, .parts = parts }, parts, struct {
        fn f(j: Job, index: usize, _: usize) void {
            const col = index * column_part;
            for (j.starts[0 .. j.starts.len - 1], j.starts[1..], 0..) |from, to, e| if (from < to)
                kernels.table(T).column_sums(to - from, @min(column_part, j.wide - col), j.wide, j.dout.ptr + from * j.wide + col, j.dbias.ptr + e * j.wide + col);
        }
    }.f);
}

const check = @import("check.zig");

test "each expert's rows meet its own matrix, with the bits of single products, for any number of threads" {
    var bag: check.Bag = .{};
    defer bag.deinit();

    const in = 19;
    const wide = 70;
    const starts = [_]u32{ 0, 3, 3, 60, 61, 90 };
    inline for (.{ f32, f64 }) |T| for ([_]@import("exec.zig").Compute{ .full, .bf16 }) |compute| {
        const x = bag.normal(T, 90 * in);
        const y = bag.normal(T, 90 * wide);
        const weights = bag.normal(T, 5 * in * wide);
        const bias = bag.normal(T, 5 * wide);
        const before = bag.normal(T, 5 * in * wide);
        var one = try check.Rig.init(1);
        defer one.deinit();

        one.ex.compute = compute;
        const want = [4][]T{ bag.zeros(T, 90 * wide), bag.zeros(T, 90 * in), bag.copy(T, before), bag.zeros(T, 5 * wide) };
        for (0..5) |e| {
            const from = starts[e];
            const m = starts[e + 1] - from;
            const w = weights[e * in * wide ..][0 .. in * wide];
            matmul.backwardInput(T, &one.ex, want[0][from * wide ..], x[from * in ..], w, m, in, wide, .store);
            for (0..m) |r| for (want[0][(from + r) * wide ..][0..wide], bias[e * wide ..][0..wide]) |*o, b| {
                o.* += b;
            };
            matmul.forward(T, &one.ex, want[1][from * in ..], y[from * wide ..], w, null, m, in, wide, .store);
            matmul.backwardWeight(T, &one.ex, want[2][e * in * wide ..][0 .. in * wide], null, x[from * in ..], y[from * wide ..], m, in, wide);
            matmul.columnSums(T, &one.ex, want[3][e * wide ..][0..wide], y[from * wide ..], m, wide);
        }
        for (check.thread_counts) |threads| {
            var rig = try check.Rig.init(threads);
            defer rig.deinit();

            rig.ex.compute = compute;
            const got = [4][]T{ bag.zeros(T, 90 * wide), bag.zeros(T, 90 * in), bag.copy(T, before), bag.zeros(T, 5 * wide) };
            forward(T, &rig.ex, got[0], x, weights, bias, &starts, in, wide);
            backwardInput(T, &rig.ex, got[1], y, weights, &starts, in, wide);
            backwardWeight(T, &rig.ex, got[2], got[3], y, x, &starts, in, wide);
            for (want, got) |w, g| try check.expectSame(T, w, g);
        }
    };
}
