//! One update of SGD, Adam or AdamW over one array of weights, as torch.optim computes it.
//!
//! Bias corrections are made in f64 and rounded once; ε is added after the correction; weights decay by one product
//! w·(1 - lr·λ). Gradients are read, multiplied by `grad_scale` on the way, and left as they are.

const std = @import("std");
const kernels = @import("kernels");
const partCount = @import("elementwise.zig").partCount;
const partOf = @import("elementwise.zig").partOf;
const Exec = @import("exec.zig").Exec;

/// adam: weight decay is added to the gradient. adamw: decoupled. sgd: plain, decay in the gradient, m and v unused.
pub const Kind = enum { sgd, adam, adamw };

pub fn Args(comptime T: type) type {
    return struct {
        w: []T,
        g: []const T,
        /// First moment; may be empty for sgd.
        m: []T = &.{},
        /// Second moment; may be empty for sgd.
        v: []T = &.{},
        lr: f64,
        beta1: f64 = 0.9,
        beta2: f64 = 0.999,
        eps: f64 = 1e-8,
        weight_decay: f64 = 0,
        /// Number of this update, from 1.
        step: u64,
        /// Clip factor.
        grad_scale: T = 1,
    };
}

pub fn step(comptime T: type, ex: *Exec, kind: Kind, args: Args(T)) void {
    std.debug.assert(args.w.len == args.g.len);
    std.debug.assert(args.step >= 1);
    const Job = struct { args: Args(T), kernel: kernels.UpdateArgs(T) };
    const job: Job = .{ .args = args, .kernel = constants(T, kind, args) };
    if (kind == .sgd) return ex.pool.parallelFor(job, partCount(args.w.len), struct {
        fn f(j: Job, index: usize, _: usize) void {
            const w = partOf(j.args.w, index);
            kernels.table(T).sgd(w.len, w.ptr, partOf(j.args.g, index).ptr, &j.kernel);
        }
    }.f);
    std.debug.assert(args.m.len == args.w.len);
    std.debug.assert(args.v.len == args.w.len);
    ex.pool.parallelFor(job, partCount(args.w.len), struct {
        fn f(j: Job, index: usize, _: usize) void {
            const w = partOf(j.args.w, index);
            kernels.table(T).adam(w.len, w.ptr, partOf(j.args.g, index).ptr, partOf(j.args.m, index).ptr, partOf(j.args.v, index).ptr, &j.kernel);
        }
    }.f);
}

fn constants(comptime T: type, kind: Kind, args: Args(T)) kernels.UpdateArgs(T) {
    const t: f64 = @floatFromInt(args.step);
    return .{
        .lr = @floatCast(args.lr),
        .grad_scale = args.grad_scale,
        .l2 = if (kind == .adamw) 0 else @floatCast(args.weight_decay),
        .decay = if (kind == .adamw) @floatCast(1 - args.lr * args.weight_decay) else 1,
        .beta2 = @floatCast(args.beta2),
        .one_minus_beta1 = @floatCast(1 - args.beta1),
        .one_minus_beta2 = @floatCast(1 - args.beta2),
        .root = @floatCast(@sqrt(1 - std.math.pow(f64, args.beta2, t))),
        .eps = @floatCast(args.eps),
        .step_size = @floatCast(args.lr / (1 - std.math.pow(f64, args.beta1, t))),
    };
}

pub fn stepNaive(comptime T: type, kind: Kind, args: Args(T)) void {
    const t: f64 = @floatFromInt(args.step);
    const step_size: T = @floatCast(args.lr / (1 - std.math.pow(f64, args.beta1, t)));
    const root: T = @floatCast(@sqrt(1 - std.math.pow(f64, args.beta2, t)));
    const decay: T = @floatCast(1 - args.lr * args.weight_decay);
    const l2: T = @floatCast(args.weight_decay);
    const lr: T = @floatCast(args.lr);
    const beta2: T = @floatCast(args.beta2);
    const one_minus_beta1: T = @floatCast(1 - args.beta1);
    const one_minus_beta2: T = @floatCast(1 - args.beta2);
    const eps: T = @floatCast(args.eps);
    for (args.w, args.g, 0..) |*w, raw, i| {
        var g = raw * args.grad_scale;
        if (kind != .adamw and l2 != 0) g = @mulAdd(T, l2, w.*, g);
        if (kind == .sgd) {
            w.* = @mulAdd(T, -lr, g, w.*);
            continue;
        }
        if (kind == .adamw and l2 != 0) w.* *= decay;
        args.m[i] = @mulAdd(T, one_minus_beta1, g - args.m[i], args.m[i]);
        args.v[i] = @mulAdd(T, one_minus_beta2 * g, g, beta2 * args.v[i]);
        w.* -= step_size * args.m[i] / (@sqrt(args.v[i]) / root + eps);
    }
}

const check = @import("check.zig");

test "fast equals plain over ten updates of each kind, for any length and number of threads" {
    inline for (.{ f32, f64 }) |T| for ([_]Kind{ .sgd, .adam, .adamw }) |kind| for ([_]f64{ 0, 0.1 }) |decay| {
        var bag: check.Bag = .{};
        defer bag.deinit();

        for ([_]usize{ 1, 15, 33, 16 * 1024 + 7 }) |n| {
            const w = bag.normal(T, n);
            const g = bag.normal(T, n);
            const want = [3][]T{ bag.copy(T, w), bag.zeros(T, n), bag.zeros(T, n) };
            for (1..11) |t| stepNaive(T, kind, .{ .w = want[0], .g = g, .m = want[1], .v = want[2], .lr = 1e-2, .weight_decay = decay, .step = t, .grad_scale = 0.7 });
            var first: ?[3][]T = null;
            for (check.thread_counts) |threads| {
                var rig = try check.Rig.init(threads);
                defer rig.deinit();

                const got = [3][]T{ bag.copy(T, w), bag.zeros(T, n), bag.zeros(T, n) };
                for (1..11) |t| step(T, &rig.ex, kind, .{ .w = got[0], .g = g, .m = got[1], .v = got[2], .lr = 1e-2, .weight_decay = decay, .step = t, .grad_scale = 0.7 });
                for (want, got) |e, x| try check.expectClose(T, e, x, if (T == f32) 1e-6 else 1e-14);
                if (first) |expected| {
                    for (expected, got) |e, x| try check.expectSame(T, e, x);
                } else first = got;
            }
        }
    };
}

test "the first AdamW update of one weight by hand" {
    // m = 0.1 g, v = 0.001 g²; both corrections bring back g and |g|: the step is lr · sign(g).
    var rig = try check.Rig.init(1);
    defer rig.deinit();

    var w = [_]f64{2};
    var m = [_]f64{0};
    var v = [_]f64{0};
    step(f64, &rig.ex, .adamw, .{ .w = &w, .g = &.{-3}, .m = &m, .v = &v, .lr = 0.1, .weight_decay = 0.5, .step = 1 });
    try std.testing.expectApproxEqAbs(2 * (1 - 0.05) + 0.1, w[0], 1e-9);
    try std.testing.expectApproxEqAbs(-0.3, m[0], 1e-12);
    try std.testing.expectApproxEqAbs(0.009, v[0], 1e-12);
}
