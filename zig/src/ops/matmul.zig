//! Matrix products of a linear layer, forward and both backward forms.
//!
//! inp [M, K], weight [N, K], out [M, N], all row-major and dense; M counts tokens. Every element of a result is
//! summed over its contraction index in one fixed order, however the result is divided among threads.

const std = @import("std");
const Exec = @import("exec.zig").Exec;
const Mode = @import("exec.zig").Mode;

/// out[M,N] (+)= inp[M,K] · weight[N,K]ᵀ + bias[N]
pub fn forward(comptime T: type, ex: *Exec, out: []T, inp: []const T, weight: []const T, bias: ?[]const T, m: usize, n: usize, k: usize, mode: Mode) void {
    _ = ex;
    forwardNaive(T, out, inp, weight, bias, m, n, k, mode);
}

/// dinp[M,K] (+)= dout[M,N] · weight[N,K]
pub fn backwardInput(comptime T: type, ex: *Exec, dinp: []T, dout: []const T, weight: []const T, m: usize, n: usize, k: usize, mode: Mode) void {
    _ = ex;
    backwardInputNaive(T, dinp, dout, weight, m, n, k, mode);
}

/// dweight[N,K] += dout[M,N]ᵀ · inp[M,K];  dbias[N] += column sums of dout
pub fn backwardWeight(comptime T: type, ex: *Exec, dweight: []T, dbias: ?[]T, dout: []const T, inp: []const T, m: usize, n: usize, k: usize) void {
    _ = ex;
    backwardWeightNaive(T, dweight, dbias, dout, inp, m, n, k);
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
