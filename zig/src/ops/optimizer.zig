//! One update of SGD, Adam or AdamW over one array of weights, as torch.optim computes it.
//!
//! Bias corrections are made in f64 and rounded once; ε is added after the correction; weights decay by one product
//! w·(1 - lr·λ). Gradients are read, multiplied by `grad_scale` on the way, and left as they are.

const std = @import("std");
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
    _ = ex;
    stepNaive(T, kind, args);
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
