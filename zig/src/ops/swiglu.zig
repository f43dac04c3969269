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

/// A gate and an up as bf16: half the memory from forward to backward. All slices of the three functions below have one length.
pub const Low = struct { gate: []u16, up: []u16 };

/// low = gate and up rounded to bf16, out = silu(gate) · up of the rounded numbers. out may alias gate or up.
pub fn forwardLow(ex: *Exec, out: []f32, low: Low, gate: []const f32, up: []const f32) void {
    for ([_]usize{ low.gate.len, low.up.len, gate.len, up.len }) |len| std.debug.assert(len == out.len);
    const Job = struct { out: []f32, low: Low, gate: []const f32, up: []const f32 };
    ex.pool.parallelFor(Job{ .out = out, .low = low, .gate = gate, .up = up }, partCount(out.len), struct {
        fn f(job: Job, index: usize, _: usize) void {
            const part = partOf(job.out, index);
            kernels.lowTable().swiglu_forward_bf16(part.len, part.ptr, partOf(job.low.gate, index).ptr, partOf(job.low.up, index).ptr, partOf(job.gate, index).ptr, partOf(job.up, index).ptr);
        }
    }.f);
}

/// out = silu(gate) · up, what `forwardLow` gave.
pub fn productLow(ex: *Exec, out: []f32, low: Low) void {
    std.debug.assert(out.len == low.gate.len);
    std.debug.assert(out.len == low.up.len);
    const Job = struct { out: []f32, low: Low };
    ex.pool.parallelFor(Job{ .out = out, .low = low }, partCount(out.len), struct {
        fn f(job: Job, index: usize, _: usize) void {
            const part = partOf(job.out, index);
            kernels.lowTable().swiglu_product_bf16(part.len, part.ptr, partOf(job.low.gate, index).ptr, partOf(job.low.up, index).ptr);
        }
    }.f);
}

/// dgate and dup are stored; either may alias dout.
pub fn backwardLow(ex: *Exec, dgate: []f32, dup: []f32, dout: []const f32, low: Low) void {
    for ([_]usize{ low.gate.len, low.up.len, dgate.len, dup.len }) |len| std.debug.assert(len == dout.len);
    const Job = struct { dgate: []f32, dup: []f32, dout: []const f32, low: Low };
    ex.pool.parallelFor(Job{ .dgate = dgate, .dup = dup, .dout = dout, .low = low }, partCount(dout.len), struct {
        fn f(job: Job, index: usize, _: usize) void {
            const part = partOf(job.dgate, index);
            kernels.lowTable().swiglu_backward_bf16(part.len, part.ptr, partOf(job.dup, index).ptr, partOf(job.dout, index).ptr, partOf(job.low.gate, index).ptr, partOf(job.low.up, index).ptr);
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

test "kept as bf16, the results are those of the rounded numbers, for lengths up to 40 and over many parts" {
    var rig = try check.Rig.init(3);
    defer rig.deinit();

    var bag: check.Bag = .{};
    defer bag.deinit();

    for (0..42) |at| {
        const n = if (at == 41) 70_001 else at;
        const gate = bag.normal(f32, n);
        const up = bag.normal(f32, n);
        const dout = bag.normal(f32, n);
        const words = try std.testing.allocator.alloc(u16, 2 * n);
        defer std.testing.allocator.free(words);

        const low: Low = .{ .gate = words[0..n], .up = words[n..] };
        const product = bag.zeros(f32, n);
        forwardLow(&rig.ex, product, low, gate, up);
        const rounded = [2][]f32{ bag.zeros(f32, n), bag.zeros(f32, n) };
        for ([_][]u16{ low.gate, low.up }, [_][]f32{ gate, up }, rounded) |kept, given, whole| for (kept, given, whole) |bits, x, *w| {
            w.* = @bitCast(@as(u32, bits) << 16);
            try std.testing.expect(@abs(w.* - x) <= @abs(x) * (1.0 / 256.0));
        };
        const want = [_][]f32{ bag.zeros(f32, n), bag.zeros(f32, n), bag.zeros(f32, n) };
        forward(f32, &rig.ex, want[0], rounded[0], rounded[1]);
        backward(f32, &rig.ex, want[1], want[2], dout, rounded[0], rounded[1]);
        try check.expectSame(f32, want[0], product);
        const again = bag.zeros(f32, n);
        productLow(&rig.ex, again, low);
        try check.expectSame(f32, product, again);
        const dup = bag.zeros(f32, n);
        backwardLow(&rig.ex, dout, dup, dout, low);
        try check.expectSame(f32, want[1], dout);
        try check.expectSame(f32, want[2], dup);
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
