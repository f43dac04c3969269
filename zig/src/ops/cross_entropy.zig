//! Output projection, softmax cross entropy and their gradients in one pass over chunks of rows.
//!
//! hidden [N, C], weight [V, C], targets [N] (-1 = not in the loss). Logits exist for one chunk at a time in the shared
//! scratch of `Exec`; `Exec.reserve(.{ .vocab_size = V, .loss_rows = N })` makes it. With smoothing ε the loss of a row is
//! (1-ε)·(-log p_target) + ε·mean_v(-log p_v). Gradients are of scale · Σ loss.

const std = @import("std");
const Exec = @import("exec.zig").Exec;
const matmul = @import("matmul.zig");

pub fn Args(comptime T: type) type {
    return struct {
        /// [N, C]
        hidden: []const T,
        /// [V, C]
        weight: []const T,
        /// [N], -1 = ignored. Values are below V.
        targets: []const i32,
        /// V; C follows from the length of `weight`.
        vocab_size: usize,
        /// 1 / number of targets of the whole update. Used by the gradients only.
        scale: T,
        label_smoothing: T = 0,
        /// [N, C], stored. Rows without target become 0. null = not wanted.
        dhidden: ?[]T = null,
        /// [V, C], accumulated. null = not wanted.
        dweight: ?[]T = null,
    };
}

/// Sums over rows with a target, not divided by anything.
pub const Result = struct {
    /// Smoothed loss (equals `nll_sum` when label_smoothing is 0).
    loss_sum: f64 = 0,
    nll_sum: f64 = 0,
    /// Rows whose first arg-max is the target.
    correct: u64 = 0,
    count: u64 = 0,
};

/// Numbers of shared scratch for calls of up to `rows` rows.
pub fn scratchCount(rows: usize, vocab_size: usize) usize {
    return @min(rows, chunk_rows) * vocab_size;
}

const chunk_rows = 1;

pub fn run(comptime T: type, ex: *Exec, args: Args(T)) Result {
    return runNaive(T, ex.sharedScratch(T, args.vocab_size), args);
}

/// The definition, one row at a time; `logits` [V] is scratch.
pub fn runNaive(comptime T: type, logits: []T, args: Args(T)) Result {
    const v = args.vocab_size;
    const c = args.weight.len / v;
    var result: Result = .{};
    if (args.dhidden) |dh| @memset(dh[0 .. args.targets.len * c], 0);
    for (args.targets, 0..) |target_signed, r| {
        if (target_signed < 0) continue;
        const target: usize = @intCast(target_signed);
        const h = args.hidden[r * c ..][0..c];
        matmul.forwardNaive(T, logits, h, args.weight, null, 1, v, c, .store);
        var best: usize = 0;
        for (logits, 0..) |x, i| if (x > logits[best]) {
            best = i;
        };
        var sum: f64 = 0;
        var total: f64 = 0; // of logits, for the mean of -log p
        for (logits) |x| {
            sum += @exp(@as(f64, x) - logits[best]);
            total += x;
        }
        const lse = @as(f64, logits[best]) + @log(sum);
        const nll = lse - logits[target];
        const smoothing: f64 = args.label_smoothing;
        result.nll_sum += nll;
        result.loss_sum += (1 - smoothing) * nll + smoothing * (lse - total / @as(f64, @floatFromInt(v)));
        result.count += 1;
        if (best == target) result.correct += 1;
        for (logits, 0..) |*x, i| {
            const p: T = @floatCast(@exp(@as(f64, x.*) - lse));
            const hot: T = if (i == target) 1 - args.label_smoothing else 0;
            x.* = (p - hot - args.label_smoothing / @as(T, @floatFromInt(v))) * args.scale;
        }
        if (args.dhidden) |dh| matmul.backwardInputNaive(T, dh[r * c ..][0..c], logits, args.weight, 1, v, c, .store);
        if (args.dweight) |dw| matmul.backwardWeightNaive(T, dw, null, logits, h, 1, v, c);
    }
    return result;
}
