//! Root mean square norm: out = weight · x · rstd, rstd = 1/√(mean(x²) + eps), one per row.
//!
//! inp, out [rows, cols]; weight [cols]; rstd [rows] is kept for the backward pass. The product is taken as
//! weight · (x · rstd), as Hugging Face does. Serves whole rows of hidden states and, with cols = head_dim, q/k norms.

const std = @import("std");
const kernels = @import("kernels");
const Exec = @import("exec.zig").Exec;
const ceilDiv = @import("exec.zig").ceilDiv;
const Mode = @import("exec.zig").Mode;

/// out may alias inp only where inp is not needed by the backward pass.
pub fn forward(comptime T: type, ex: *Exec, out: []T, rstd: []T, inp: []const T, weight: []const T, rows: usize, cols: usize, eps: T) void {
    std.debug.assert(inp.len >= rows * cols);
    std.debug.assert(out.len >= rows * cols);
    std.debug.assert(weight.len >= cols);
    const Job = struct { out: []T, rstd: []T, inp: []const T, weight: []const T, cols: usize, eps: T };
    ex.pool.parallelFor(Job{ .out = out, .rstd = rstd[0..rows], .inp = inp, .weight = weight, .cols = cols, .eps = eps }, rows, struct {
        fn f(job: Job, row: usize, _: usize) void {
            const at = row * job.cols;
            job.rstd[row] = kernels.table(T).rms_forward(job.cols, job.inp.ptr + at, job.weight.ptr, job.out.ptr + at, job.eps);
        }
    }.f);
}

/// dinp (+)= gradient by inp; dweight += gradient by weight. `mode` is for dinp; dweight null = frozen. dinp may alias dout.
pub fn backward(comptime T: type, ex: *Exec, dinp: []T, dweight: ?[]T, dout: []const T, inp: []const T, weight: []const T, rstd: []const T, rows: usize, cols: usize, mode: Mode) void {
    std.debug.assert(inp.len >= rows * cols);
    std.debug.assert(dinp.len >= rows * cols);
    std.debug.assert(dout.len >= rows * cols);
    std.debug.assert(weight.len >= cols);
    const Job = struct { dinp: []T, dweight: []T, dout: []const T, inp: []const T, weight: []const T, rstd: []const T, rows: usize, cols: usize, mode: Mode };
    const job: Job = .{ .dinp = dinp, .dweight = dweight orelse &.{}, .dout = dout, .inp = inp, .weight = weight, .rstd = rstd[0..rows], .rows = rows, .cols = cols, .mode = mode };
    // By columns: every sum runs over all rows in order, so no partial sums have to be kept.
    if (dweight != null) ex.pool.parallelFor(job, ceilDiv(cols, column_part), struct {
        fn f(j: Job, index: usize, _: usize) void {
            const col = index * column_part;
            kernels.table(T).rms_weight(j.rows, @min(column_part, j.cols - col), j.cols, j.dout.ptr + col, j.inp.ptr + col, j.rstd.ptr, j.dweight.ptr + col);
        }
    }.f);
    ex.pool.parallelFor(job, rows, struct {
        fn f(j: Job, row: usize, _: usize) void {
            const at = row * j.cols;
            kernels.table(T).rms_backward(j.cols, j.dinp.ptr + at, j.dout.ptr + at, j.inp.ptr + at, j.weight.ptr, j.rstd[row], @backingInt(j.mode));
        }
    }.f);
}

/// Columns one task sums. A multiple of every vector length.
const column_part = 64;

pub fn forwardNaive(comptime T: type, out: []T, rstd: []T, inp: []const T, weight: []const T, rows: usize, cols: usize, eps: T) void {
    for (0..rows) |r| {
        const x = inp[r * cols ..][0..cols];
        var sum: T = 0;
        for (x) |v| sum += v * v;
        const s = 1 / @sqrt(sum / @as(T, @floatFromInt(cols)) + eps);
        rstd[r] = s;
        for (x, weight, out[r * cols ..][0..cols]) |v, w, *o| o.* = w * (v * s);
    }
}

pub fn backwardNaive(comptime T: type, dinp: []T, dweight: ?[]T, dout: []const T, inp: []const T, weight: []const T, rstd: []const T, rows: usize, cols: usize, mode: Mode) void {
    if (dweight) |dw| for (0..cols) |c| {
        var sum: T = 0;
        for (0..rows) |r| sum += dout[r * cols + c] * (inp[r * cols + c] * rstd[r]);
        dw[c] += sum;
    };
    for (0..rows) |r| {
        const x = inp[r * cols ..][0..cols];
        const dy = dout[r * cols ..][0..cols];
        const s = rstd[r];
        var mean: T = 0; // of (dy·w)·x̂
        for (x, dy, weight) |v, d, w| mean += d * w * (v * s);
        mean /= @floatFromInt(cols);
        for (x, dy, weight, dinp[r * cols ..][0..cols]) |v, d, w, *o| {
            const g = s * (d * w - (v * s) * mean);
            o.* = if (mode == .store) g else o.* + g;
        }
    }
}

const check = @import("check.zig");

test "fast equals plain for every width up to 33 and beyond, stored and accumulated" {
    var rig = try check.Rig.init(2);
    defer rig.deinit();

    inline for (.{ f32, f64 }) |T| {
        const tolerance = if (T == f32) 2e-6 else 1e-13;
        var bag: check.Bag = .{};
        defer bag.deinit();

        for (1..36) |width| for ([_]Mode{ .store, .accumulate }) |mode| {
            const cols = if (width > 33) width * 19 else width;
            const rows = 5;
            const inp = bag.normal(T, rows * cols);
            const weight = bag.normal(T, cols);
            const dout = bag.normal(T, rows * cols);
            const got = [_][]T{ bag.zeros(T, rows * cols), bag.zeros(T, rows), bag.normal(T, rows * cols), bag.normal(T, cols) };
            const want = [_][]T{ bag.zeros(T, rows * cols), bag.zeros(T, rows), bag.copy(T, got[2]), bag.copy(T, got[3]) };
            forward(T, &rig.ex, got[0], got[1], inp, weight, rows, cols, 1e-2);
            forwardNaive(T, want[0], want[1], inp, weight, rows, cols, 1e-2);
            backward(T, &rig.ex, got[2], got[3], dout, inp, weight, want[1], rows, cols, mode);
            backwardNaive(T, want[2], want[3], dout, inp, weight, want[1], rows, cols, mode);
            for (want, got) |w, g| try check.expectClose(T, w, g, tolerance);
        };
    }
}

test "backward is the derivative of forward" {
    var rig = try check.Rig.init(1);
    defer rig.deinit();

    var bag: check.Bag = .{};
    defer bag.deinit();

    const rows = 3;
    const cols = 7;
    const Problem = struct { ex: *Exec, inp: []f64, weight: []f64, out: []f64, rstd: []f64, dout: []f64 };
    const p: Problem = .{ .ex = &rig.ex, .inp = bag.normal(f64, rows * cols), .weight = bag.normal(f64, cols), .out = bag.zeros(f64, rows * cols), .rstd = bag.zeros(f64, rows), .dout = bag.normal(f64, rows * cols) };
    const loss = struct {
        fn f(q: Problem) f64 {
            forward(f64, q.ex, q.out, q.rstd, q.inp, q.weight, rows, cols, 1e-5);
            return check.weigh(q.out, q.dout);
        }
    }.f;
    _ = loss(p);
    const dinp = bag.zeros(f64, rows * cols);
    const dweight = bag.zeros(f64, cols);
    backward(f64, p.ex, dinp, dweight, p.dout, p.inp, p.weight, p.rstd, rows, cols, .store);
    try check.expectGradient(p.inp, dinp, p, loss);
    try check.expectGradient(p.weight, dweight, p, loss);
}

test "the same bits for any number of threads" {
    var bag: check.Bag = .{};
    defer bag.deinit();

    const rows = 301;
    const cols = 133;
    const inp = bag.normal(f32, rows * cols);
    const weight = bag.normal(f32, cols);
    const dout = bag.normal(f32, rows * cols);
    var first: ?[4][]f32 = null;
    for (check.thread_counts) |threads| {
        var rig = try check.Rig.init(threads);
        defer rig.deinit();

        const got = [4][]f32{ bag.zeros(f32, rows * cols), bag.zeros(f32, rows), bag.zeros(f32, rows * cols), bag.zeros(f32, cols) };
        forward(f32, &rig.ex, got[0], got[1], inp, weight, rows, cols, 1e-5);
        backward(f32, &rig.ex, got[2], got[3], dout, inp, weight, got[1], rows, cols, .store);
        if (first) |expected| {
            for (expected, got) |e, g| try check.expectSame(f32, e, g);
        } else first = got;
    }
}
