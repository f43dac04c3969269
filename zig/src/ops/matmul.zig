//! Matrix products of a linear layer, forward and both backward forms.
//!
//! inp [M, K], weight [N, K], out [M, N], all row-major and dense; M counts tokens. Every element of a result is
//! summed over its contraction index in one fixed order, however the result is divided among threads. With
//! `Exec.compute = .bf16` operands of f32 products are rounded to bf16 on the way in.

const std = @import("std");
const kernels = @import("kernels");
const Exec = @import("exec.zig").Exec;
const ceilDiv = @import("exec.zig").ceilDiv;
const Mode = @import("exec.zig").Mode;
const Compute = @import("exec.zig").Compute;

/// out[M,N] (+)= inp[M,K] · weight[N,K]ᵀ + bias[N]
pub fn forward(comptime T: type, ex: *Exec, out: []T, inp: []const T, weight: []const T, bias: ?[]const T, m: usize, n: usize, k: usize, mode: Mode) void {
    std.debug.assert(inp.len >= m * k);
    std.debug.assert(weight.len >= n * k);
    multiply(T, ex, .{
        .m = m,
        .n = n,
        .k = k,
        .a = inp.ptr,
        .a_row = k,
        .a_col = 1,
        .b = weight.ptr,
        .b_row = 1,
        .b_col = k,
        .c = out[0 .. m * n].ptr,
        .bias = if (bias) |b| b[0..n].ptr else null,
        .mode = mode,
    });
}

/// dinp[M,K] (+)= dout[M,N] · weight[N,K]
pub fn backwardInput(comptime T: type, ex: *Exec, dinp: []T, dout: []const T, weight: []const T, m: usize, n: usize, k: usize, mode: Mode) void {
    std.debug.assert(dout.len >= m * n);
    std.debug.assert(weight.len >= n * k);
    multiply(T, ex, .{
        .m = m,
        .n = k,
        .k = n,
        .a = dout.ptr,
        .a_row = n,
        .a_col = 1,
        .b = weight.ptr,
        .b_row = k,
        .b_col = 1,
        .c = dinp[0 .. m * k].ptr,
        .mode = mode,
    });
}

/// dinp[M,K] = doutᵀ · weight[N,K], with dout turned: [N, M].
pub fn backwardInputTurned(comptime T: type, ex: *Exec, dinp: []T, dout: []const T, weight: []const T, m: usize, n: usize, k: usize) void {
    std.debug.assert(dout.len >= m * n);
    std.debug.assert(weight.len >= n * k);
    multiply(T, ex, .{
        .m = m,
        .n = k,
        .k = n,
        .a = dout.ptr,
        .a_row = 1,
        .a_col = m,
        .b = weight.ptr,
        .b_row = k,
        .b_col = 1,
        .c = dinp[0 .. m * k].ptr,
        .mode = .store,
    });
}

/// dweight[N,K] += dout[M,N]ᵀ · inp[M,K];  dbias[N] += column sums of dout
pub fn backwardWeight(comptime T: type, ex: *Exec, dweight: []T, dbias: ?[]T, dout: []const T, inp: []const T, m: usize, n: usize, k: usize) void {
    std.debug.assert(dout.len >= m * n);
    std.debug.assert(inp.len >= m * k);
    multiply(T, ex, .{
        .m = n,
        .n = k,
        .k = m,
        .a = dout.ptr,
        .a_row = 1,
        .a_col = n,
        .b = inp.ptr,
        .b_row = k,
        .b_col = 1,
        .c = dweight[0 .. n * k].ptr,
        .mode = .accumulate,
    });
    if (dbias) |db| columnSums(T, ex, db[0..n], dout, m, n);
}

fn Product(comptime T: type) type {
    return struct {
        m: usize,
        n: usize,
        k: usize,
        a: [*]const T,
        a_row: usize,
        a_col: usize,
        b: [*]const T,
        b_row: usize,
        b_col: usize,
        /// [m, n], dense
        c: [*]T,
        bias: ?[*]const T = null,
        mode: Mode,
    };
}

/// Below this many multiply-adds waking the others costs more than they help.
const parallel_min = 1 << 15;

/// Divides c into a grid with one part for each worker. The bits of an element do not depend on the part it is in.
fn multiply(comptime T: type, ex: *Exec, product: Product(T)) void {
    if (product.m == 0 or product.n == 0) return;
    const Job = struct { product: Product(T), grid: Grid, ex: *Exec };
    const small = product.m *| product.n *| product.k < parallel_min;
    var tile_rows: usize = undefined;
    var tile_columns: usize = undefined;
    kernels.table(T).gemm_tile(&tile_rows, &tile_columns);
    const grid: Grid = if (small)
        .{ .rows = 1, .cols = 1, .row_part = product.m, .col_part = product.n }
    else
        .choose(product.m, product.n, ex.pool.n, tile_rows, tile_columns);
    ex.pool.parallelFor(Job{ .product = product, .grid = grid, .ex = ex }, grid.rows * grid.cols, struct {
        fn f(job: Job, index: usize, worker: usize) void {
            const p = job.product;
            const row = index / job.grid.cols * job.grid.row_part;
            const col = index % job.grid.cols * job.grid.col_part;
            if (row >= p.m or col >= p.n) return;
            const rows = @min(job.grid.row_part, p.m - row);
            const cols = @min(job.grid.col_part, p.n - col);
            const table = kernels.table(T);
            const gemm = job.ex.gemm(T);
            const c = p.c + row * p.n + col;
            gemm(rows, cols, p.k, p.a + row * p.a_row, p.a_row, p.a_col, p.b + col * p.b_col, p.b_row, p.b_col, c, p.n, @backingInt(p.mode), job.ex.workers[worker].packing.ptr);
            if (p.bias) |bias| for (0..rows) |r| table.add(cols, c + r * p.n, bias + col);
        }
    }.f);
}

/// rows × cols parts of row_part × col_part each (the last ones smaller, or empty), in whole tiles.
pub const Grid = struct {
    rows: usize,
    cols: usize,
    row_part: usize,
    col_part: usize,

    /// Packing an element costs about as much as this many multiply-adds.
    const packing_cost = 12;

    pub fn choose(m: usize, n: usize, workers: usize, tile_rows: usize, tile_columns: usize) Grid {
        var best: Grid = undefined;
        var best_cost: usize = std.math.maxInt(usize);
        for (1..workers + 1) |rows| {
            if (workers % rows != 0) continue;
            const cols = workers / rows;
            // The largest part decides; a tile at the border costs as much as a whole one.
            const row_part = ceilDiv(ceilDiv(m, tile_rows), rows) * tile_rows;
            const col_part = ceilDiv(ceilDiv(n, tile_columns), cols) * tile_columns;
            const cost = row_part *| col_part +| packing_cost *| (row_part +| col_part);
            if (cost < best_cost) {
                best_cost = cost;
                best = .{ .rows = rows, .cols = cols, .row_part = row_part, .col_part = col_part };
            }
        }
        return best;
    }
};

test "parts are whole tiles and no part is larger than it must be" {
    const two: Grid = .choose(576, 64, 2, 14, 32);
    try std.testing.expectEqual(294, two.row_part); // 42 tiles of 14 rows, 21 each
    try std.testing.expectEqual(64, two.col_part);
    const wide: Grid = .choose(20, 2048, 4, 14, 32);
    try std.testing.expectEqual(4, wide.cols);
    try std.testing.expectEqual(512, wide.col_part);
}

/// Columns one task sums. A multiple of every vector length.
const column_part = 64;

/// sums[N] += column sums of x[M, N]
pub fn columnSums(comptime T: type, ex: *Exec, sums: []T, x: []const T, m: usize, n: usize) void {
    const Job = struct { sums: []T, x: []const T, m: usize, n: usize };
    ex.pool.parallelFor(Job{ .sums = sums, .x = x, .m = m, .n = n }, ceilDiv(n, column_part), struct {
        fn f(job: Job, index: usize, _: usize) void {
            const col = index * column_part;
            kernels.table(T).column_sums(job.m, @min(column_part, job.n - col), job.n, job.x.ptr + col, job.sums.ptr + col);
        }
    }.f);
}

pub fn forwardNaive(comptime T: type, out: []T, inp: []const T, weight: []const T, bias: ?[]const T, m: usize, n: usize, k: usize, mode: Mode) void {
    for (0..m) |i| for (0..n) |j| {
        var sum: T = 0;
        for (0..k) |p| sum += inp[i * k + p] * weight[j * k + p];
        if (bias) |b| sum += b[j];
        if (mode == .store) out[i * n + j] = sum else out[i * n + j] += sum;
    };
}

pub fn backwardInputNaive(comptime T: type, dinp: []T, dout: []const T, weight: []const T, m: usize, n: usize, k: usize, mode: Mode) void {
    for (0..m) |i| for (0..k) |p| {
        var sum: T = 0;
        for (0..n) |j| sum += dout[i * n + j] * weight[j * k + p];
        if (mode == .store) dinp[i * k + p] = sum else dinp[i * k + p] += sum;
    };
}

pub fn backwardWeightNaive(comptime T: type, dweight: []T, dbias: ?[]T, dout: []const T, inp: []const T, m: usize, n: usize, k: usize) void {
    for (0..n) |j| for (0..k) |p| {
        var sum: T = 0;
        for (0..m) |i| sum += dout[i * n + j] * inp[i * k + p];
        dweight[j * k + p] += sum;
    };
    if (dbias) |db| for (0..n) |j| {
        var sum: T = 0;
        for (0..m) |i| sum += dout[i * n + j];
        db[j] += sum;
    };
}

const check = @import("check.zig");

test "the three products agree with their definitions on odd shapes, stored and accumulated" {
    var rig = try check.Rig.init(2);
    defer rig.deinit();

    inline for (.{ f32, f64 }) |T| {
        const tolerance = if (T == f32) 2e-6 else 1e-13;
        const shapes = [_][3]usize{ .{ 1, 1, 1 }, .{ 1, 33, 17 }, .{ 33, 1, 5 }, .{ 13, 31, 29 }, .{ 30, 65, 33 }, .{ 61, 40, 400 } };
        for (shapes) |s| for ([_]Mode{ .store, .accumulate }) |mode| {
            var bag: check.Bag = .{};
            defer bag.deinit();

            const m, const n, const k = s;
            const inp = bag.normal(T, m * k);
            const weight = bag.normal(T, n * k);
            const bias = bag.normal(T, n);
            const dout = bag.normal(T, m * n);

            const out = bag.normal(T, m * n);
            const out_naive = bag.copy(T, out);
            forward(T, &rig.ex, out, inp, weight, bias, m, n, k, mode);
            forwardNaive(T, out_naive, inp, weight, bias, m, n, k, mode);
            try check.expectClose(T, out_naive, out, tolerance);

            const dinp = bag.normal(T, m * k);
            const dinp_naive = bag.copy(T, dinp);
            backwardInput(T, &rig.ex, dinp, dout, weight, m, n, k, mode);
            backwardInputNaive(T, dinp_naive, dout, weight, m, n, k, mode);
            try check.expectClose(T, dinp_naive, dinp, tolerance);

            const turned = bag.zeros(T, n * m);
            for (0..m) |i| for (0..n) |j| {
                turned[j * m + i] = dout[i * n + j];
            };
            backwardInputTurned(T, &rig.ex, dinp, turned, weight, m, n, k);
            backwardInputNaive(T, dinp_naive, dout, weight, m, n, k, .store);
            try check.expectClose(T, dinp_naive, dinp, tolerance);

            const dweight = bag.normal(T, n * k);
            const dweight_naive = bag.copy(T, dweight);
            const dbias = bag.normal(T, n);
            const dbias_naive = bag.copy(T, dbias);
            backwardWeight(T, &rig.ex, dweight, dbias, dout, inp, m, n, k);
            backwardWeightNaive(T, dweight_naive, dbias_naive, dout, inp, m, n, k);
            try check.expectClose(T, dweight_naive, dweight, tolerance);
            try check.expectClose(T, dbias_naive, dbias, tolerance);
        };
    }
}

test "backward is the derivative of forward" {
    var rig = try check.Rig.init(1);
    defer rig.deinit();

    var bag: check.Bag = .{};
    defer bag.deinit();

    const m = 3;
    const n = 5;
    const k = 4;
    const Problem = struct { ex: *Exec, inp: []f64, weight: []f64, bias: []f64, out: []f64, dout: []f64 };
    const p: Problem = .{ .ex = &rig.ex, .inp = bag.normal(f64, m * k), .weight = bag.normal(f64, n * k), .bias = bag.normal(f64, n), .out = bag.zeros(f64, m * n), .dout = bag.normal(f64, m * n) };
    const loss = struct {
        fn f(q: Problem) f64 {
            forward(f64, q.ex, q.out, q.inp, q.weight, q.bias, m, n, k, .store);
            return check.weigh(q.out, q.dout);
        }
    }.f;
    const dinp = bag.zeros(f64, m * k);
    const dweight = bag.zeros(f64, n * k);
    const dbias = bag.zeros(f64, n);
    backwardInput(f64, p.ex, dinp, p.dout, p.weight, m, n, k, .store);
    backwardWeight(f64, p.ex, dweight, dbias, p.dout, p.inp, m, n, k);
    try check.expectGradient(p.inp, dinp, p, loss);
    try check.expectGradient(p.weight, dweight, p, loss);
    try check.expectGradient(p.bias, dbias, p, loss);
}

test "bf16 products stay within the rounding of their operands" {
    var rig = try check.Rig.init(2);
    defer rig.deinit();

    var bag: check.Bag = .{};
    defer bag.deinit();

    const m = 40;
    const n = 50;
    const k = 600;
    const inp = bag.normal(f32, m * k);
    const weight = bag.normal(f32, n * k);
    const dout = bag.normal(f32, m * n);
    const full = [3][]f32{ bag.zeros(f32, m * n), bag.zeros(f32, m * k), bag.zeros(f32, n * k) };
    const low = [3][]f32{ bag.zeros(f32, m * n), bag.zeros(f32, m * k), bag.zeros(f32, n * k) };
    inline for (.{ full, low }, .{ .full, .bf16 }) |out, compute| {
        rig.ex.compute = compute;
        forward(f32, &rig.ex, out[0], inp, weight, null, m, n, k, .store);
        backwardInput(f32, &rig.ex, out[1], dout, weight, m, n, k, .store);
        backwardWeight(f32, &rig.ex, out[2], null, dout, inp, m, n, k);
    }
    for (full, low) |a, b| {
        try check.expectClose(f32, a, b, 5e-3);
        try std.testing.expect(!std.mem.eql(f32, a, b)); // The mode has an effect.
    }
}

test "the same bits for any number of threads" {
    for ([_]Compute{ .full, .bf16 }) |compute| try sameBits(compute);
}

fn sameBits(compute: Compute) !void {
    var bag: check.Bag = .{};
    defer bag.deinit();

    const m = 67;
    const n = 130;
    const k = 95;
    const inp = bag.normal(f32, m * k);
    const weight = bag.normal(f32, n * k);
    const bias = bag.normal(f32, n);
    const dout = bag.normal(f32, m * n);
    var first: ?[4][]f32 = null;
    for (check.thread_counts) |threads| {
        var rig = try check.Rig.init(threads);
        defer rig.deinit();

        rig.ex.compute = compute;
        const got = [4][]f32{ bag.zeros(f32, m * n), bag.zeros(f32, m * k), bag.zeros(f32, n * k), bag.zeros(f32, n) };
        forward(f32, &rig.ex, got[0], inp, weight, bias, m, n, k, .store);
        backwardInput(f32, &rig.ex, got[1], dout, weight, m, n, k, .store);
        backwardWeight(f32, &rig.ex, got[2], got[3], dout, inp, m, n, k);
        if (first) |expected| {
            for (expected, got) |e, g| try check.expectSame(f32, e, g);
        } else first = got;
    }
}
