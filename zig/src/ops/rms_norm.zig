//! Root mean square norm: out = weight · x · rstd, rstd = 1/√(mean(x²) + eps), one per row.
//!
//! inp, out [rows, cols]; weight [cols]; rstd [rows] is kept for the backward pass. The product is taken as
//! weight · (x · rstd), as Hugging Face does. Serves whole rows of hidden states and, with cols = head_dim, q/k norms.

const std = @import("std");
const Exec = @import("exec.zig").Exec;
const Mode = @import("exec.zig").Mode;

/// out may alias inp only where inp is not needed by the backward pass.
pub fn forward(comptime T: type, ex: *Exec, out: []T, rstd: []T, inp: []const T, weight: []const T, rows: usize, cols: usize, eps: T) void {
    _ = ex;
    forwardNaive(T, out, rstd, inp, weight, rows, cols, eps);
}

/// dinp (+)= gradient by inp; dweight += gradient by weight. `mode` is for dinp; dweight null = frozen. dinp may alias dout.
pub fn backward(comptime T: type, ex: *Exec, dinp: []T, dweight: ?[]T, dout: []const T, inp: []const T, weight: []const T, rstd: []const T, rows: usize, cols: usize, mode: Mode) void {
    _ = ex;
    backwardNaive(T, dinp, dweight, dout, inp, weight, rstd, rows, cols, mode);
}

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
