//! SwiGLU: out = silu(gate) · up, silu(x) = x / (1 + e^-x). All slices have one length.

const std = @import("std");
const kernels = @import("kernels");
const partCount = @import("elementwise.zig").partCount;
const partOf = @import("elementwise.zig").partOf;
const Exec = @import("exec.zig").Exec;

/// out may alias gate or up.
pub fn forward(comptime T: type, ex: *Exec, out: []T, gate: []const T, up: []const T) void {
    std.debug.assert(out.len == gate.len);
    std.debug.assert(out.len == up.len);
    const Job = struct { out: []T, gate: []const T, up: []const T };
    ex.pool.parallelFor(Job{ .out = out, .gate = gate, .up = up }, partCount(out.len), struct {
        fn f(job: Job, index: usize, _: usize) void {
            const out_part = partOf(job.out, index);
            kernels.table(T).swiglu_forward(out_part.len, out_part.ptr, partOf(job.gate, index).ptr, partOf(job.up, index).ptr);
        }
    }.f);
}

/// dgate and dup are stored; dgate may alias gate, dup may alias up, either may alias dout.
pub fn backward(comptime T: type, ex: *Exec, dgate: []T, dup: []T, dout: []const T, gate: []const T, up: []const T) void {
    std.debug.assert(dgate.len == gate.len);
    std.debug.assert(dup.len == gate.len);
    std.debug.assert(dout.len == gate.len);
    std.debug.assert(up.len == gate.len);
    const Job = struct { dgate: []T, dup: []T, dout: []const T, gate: []const T, up: []const T };
    ex.pool.parallelFor(Job{ .dgate = dgate, .dup = dup, .dout = dout, .gate = gate, .up = up }, partCount(gate.len), struct {
        fn f(job: Job, index: usize, _: usize) void {
            const gate_part = partOf(job.gate, index);
            kernels.table(T).swiglu_backward(gate_part.len, partOf(job.dgate, index).ptr, partOf(job.dup, index).ptr, partOf(job.dout, index).ptr, gate_part.ptr, partOf(job.up, index).ptr);
        }
    }.f);
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

const check = @import("check.zig");

test "fast equals plain for lengths up to 40, also far from zero" {
    var rig = try check.Rig.init(2);
    defer rig.deinit();

    inline for (.{ f32, f64 }) |T| {
        const tolerance = if (T == f32) 1e-6 else 1e-14;
        var bag: check.Bag = .{};
        defer bag.deinit();

        for (0..41) |n| {
            const gate = bag.normal(T, n);
            for (gate, 0..) |*g, i| if (i % 5 == 0) {
                g.* *= 200; // e^-g overflows for some
            };
            const up = bag.normal(T, n);
            const dout = bag.normal(T, n);
            const got = [_][]T{ bag.zeros(T, n), bag.zeros(T, n), bag.zeros(T, n) };
            const want = [_][]T{ bag.zeros(T, n), bag.zeros(T, n), bag.zeros(T, n) };
            forward(T, &rig.ex, got[0], gate, up);
            forwardNaive(T, want[0], gate, up);
            backward(T, &rig.ex, got[1], got[2], dout, gate, up);
            backwardNaive(T, want[1], want[2], dout, gate, up);
            for (want, got) |w, g| try check.expectClose(T, w, g, tolerance);
            // In place: dgate over gate, dup over up.
            backward(T, &rig.ex, gate, up, dout, gate, up);
            try check.expectSame(T, got[1], gate);
            try check.expectSame(T, got[2], up);
        }
    }
}

test "backward is the derivative of forward" {
    var rig = try check.Rig.init(1);
    defer rig.deinit();

    var bag: check.Bag = .{};
    defer bag.deinit();

    const Problem = struct { ex: *Exec, gate: []f64, up: []f64, out: []f64, dout: []f64 };
    const p: Problem = .{ .ex = &rig.ex, .gate = bag.normal(f64, 11), .up = bag.normal(f64, 11), .out = bag.zeros(f64, 11), .dout = bag.normal(f64, 11) };
    const loss = struct {
        fn f(q: Problem) f64 {
            forward(f64, q.ex, q.out, q.gate, q.up);
            return check.weigh(q.out, q.dout);
        }
    }.f;
    const dgate = bag.zeros(f64, 11);
    const dup = bag.zeros(f64, 11);
    backward(f64, p.ex, dgate, dup, p.dout, p.gate, p.up);
    try check.expectGradient(p.gate, dgate, p, loss);
    try check.expectGradient(p.up, dup, p, loss);
}

test "the same bits for any number of threads" {
    var bag: check.Bag = .{};
    defer bag.deinit();

    const n = 40_001;
    const gate = bag.normal(f32, n);
    const up = bag.normal(f32, n);
    const dout = bag.normal(f32, n);
    var first: ?[3][]f32 = null;
    for (check.thread_counts) |threads| {
        var rig = try check.Rig.init(threads);
        defer rig.deinit();

        const got = [3][]f32{ bag.zeros(f32, n), bag.zeros(f32, n), bag.zeros(f32, n) };
        forward(f32, &rig.ex, got[0], gate, up);
        backward(f32, &rig.ex, got[1], got[2], dout, gate, up);
        if (first) |expected| {
            for (expected, got) |e, g| try check.expectSame(f32, e, g);
        } else first = got;
    }
}
