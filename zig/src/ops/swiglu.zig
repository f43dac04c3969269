//! SwiGLU: out = silu(gate) · up, silu(x) = x / (1 + e^-x). All slices have one length.

const std = @import("std");
const Exec = @import("exec.zig").Exec;

/// out may alias gate or up.
pub fn forward(comptime T: type, ex: *Exec, out: []T, gate: []const T, up: []const T) void {
    _ = ex;
    forwardNaive(T, out, gate, up);
}

/// dgate and dup are stored; dgate may alias gate, dup may alias up, either may alias dout.
pub fn backward(comptime T: type, ex: *Exec, dgate: []T, dup: []T, dout: []const T, gate: []const T, up: []const T) void {
    _ = ex;
    backwardNaive(T, dgate, dup, dout, gate, up);
}

pub fn forwardNaive(comptime T: type, out: []T, gate: []const T, up: []const T) void {
    for (out, gate, up) |*o, g, u| o.* = g / (1 + @exp(-g)) * u;
}

pub fn backwardNaive(comptime T: type, dgate: []T, dup: []T, dout: []const T, gate: []const T, up: []const T) void {
    for (dgate, dup, dout, gate, up) |*dg, *du, d, g, u| {
        const sigmoid = 1 / (1 + @exp(-g));
        dg.* = d * u * (sigmoid * (1 + g * (1 - sigmoid)));
        du.* = d * (g * sigmoid);
    }
}
