//! What an evaluation means for a run: the best so far, how long nothing was better, and the best weights where no disk keeps them.
//!
//! Does not know: how an evaluation is computed, checkpoints.

const std = @import("std");
const base = @import("base");
const config_file = @import("config.zig");
const state_file = @import("state.zig");

const LlmTrainingConfig = config_file.LlmTrainingConfig;
const State = state_file.State;

pub const Verdict = struct {
    /// Better than the best before by at least `early_stopping_min_delta`.
    improved: bool,
    /// Nothing was better for `early_stopping_patience` evaluations.
    out_of_patience: bool,
};

/// Notes an evaluation in `state`.
pub fn judge(state: *State, config: *const LlmTrainingConfig, loss: f64, accuracy: f64) Verdict {
    const metric = if (config.early_stopping_monitor_loss) loss else @exp(loss);
    if (metric < (state.best_metric orelse std.math.inf(f64)) - config.early_stopping_min_delta) {
        state.best_metric = metric;
        state.best_accuracy = accuracy;
        state.best_step = state.global_step;
        state.evaluations_without_improvement = 0;
        return .{ .improved = true, .out_of_patience = false };
    }
    if (!config.early_stopping) return .{ .improved = false, .out_of_patience = false };
    state.evaluations_without_improvement += 1;
    return .{ .improved = false, .out_of_patience = state.evaluations_without_improvement >= config.early_stopping_patience };
}

/// The smallest loss seen; infinity before the first evaluation.
pub fn bestLoss(state: *const State, config: *const LlmTrainingConfig) f64 {
    const metric = state.best_metric orelse return std.math.inf(f64);
    return if (config.early_stopping_monitor_loss) metric else @log(metric);
}

/// True when the log has an evaluation at this update.
pub fn wasEvaluated(history: []const state_file.LogRecord, step: u64) bool {
    for (history) |line| if (line.step == step and line.eval_loss != null) return true;
    return false;
}

/// A copy of the best weights, made when there are some.
pub fn BestWeights(comptime T: type) type {
    return struct {
        values: ?[]align(64) T = null,

        const Self = @This();

        pub fn deinit(self: *Self, gpa: std.mem.Allocator) void {
            if (self.values) |values| gpa.free(values);
            self.* = undefined;
        }

        pub fn keep(self: *Self, gpa: std.mem.Allocator, weights: []const T) error{OutOfMemory}!void {
            if (self.values == null) self.values = try gpa.alignedAlloc(T, .@"64", weights.len);
            @memcpy(self.values.?, weights);
        }
    };
}

test "the best is remembered, and patience counts what is not better by enough" {
    var state: State = .{ .global_step = 1 };
    const config: LlmTrainingConfig = .{ .early_stopping_patience = 2, .early_stopping_min_delta = 0.5 };
    const losses = [_]f64{ 3, 2.75, 2, 1.75, 1.75, 1 };
    const improved = [_]bool{ true, false, true, false, false, true };
    const out = [_]bool{ false, false, false, false, true, false };
    for (losses, improved, out) |loss, better, over| {
        const verdict = judge(&state, &config, loss, 0.5);
        try std.testing.expectEqual(better, verdict.improved);
        try std.testing.expectEqual(over, verdict.out_of_patience);
        state.global_step += 1;
    }
    try std.testing.expectEqual(6, state.best_step.?);
    try std.testing.expectEqual(1.0, bestLoss(&state, &config));
    try std.testing.expectEqual(std.math.inf(f64), bestLoss(&.{}, &config));
}
