//! The learning rate of each optimizer step: six schedules, one pure function, in double precision.
//!
//! With b = learning_rate, m = min_learning_rate, s = step counted from 0, W = warmup_steps and
//! D = decay_steps (0 stands for the number of steps of the whole run):
//!
//!     constant              b
//!     cosine                m + (b − m)·½(1 + cos(π·min(1, s/D)))              one half wave, then m
//!     warmup_cosine         s < W:  b·(s + 1)/W
//!                           else    m + (b − m)·½(1 + cos(π·min(1, (s − W)/(D − W))))
//!     step                  max(m, b·0.1^⌊s/D⌋)
//!     polynomial            m + (b − m)·(1 − min(1, s/D))^0.9
//!     cosine_warm_restarts  m + (b − m)·½(1 + cos(π·t/T)); cycles of length T = D, 2D, 4D, …; t inside the cycle
//!
//! For a valid configuration the result is finite, above or equal min(m, b·1/W), and at most b, for every step.
//! Other engines do not compute these formulas again: they call this function, so the rate is the same to the bit.
//! Does not know: the optimizer, epochs, micro-batches.

const std = @import("std");
const base = @import("base");
const LlmTrainingConfig = @import("config.zig").LlmTrainingConfig;
const LrSchedule = @import("config.zig").LrSchedule;

/// Learning rate of optimizer step `step` (counted from 0). `total_steps` is the length of the whole run and matters
/// only when `decay_steps` is 0. `config` must have passed `validate`.
pub fn learningRate(config: *const LlmTrainingConfig, step: u64, total_steps: u64) f64 {
    const peak = config.learning_rate;
    const floor = config.min_learning_rate;
    const warmup: u64 = config.warmup_steps;
    const decay: u64 = @max(1, if (config.decay_steps == 0) total_steps else config.decay_steps);
    return switch (config.lr_schedule) {
        .constant => peak,
        .cosine => halfWave(peak, floor, progress(step, decay)),
        .warmup_cosine => if (step < warmup)
            peak * (float(step + 1) / float(warmup))
        else
            // A run shorter than its warm-up never gets here; the 1 keeps the division defined anyway.
            halfWave(peak, floor, progress(step - warmup, @max(1, decay -| warmup))),
        .step => @max(floor, peak * std.math.pow(f64, 0.1, float(step / decay))),
        .polynomial => between(peak, floor, std.math.pow(f64, 1 - progress(step, decay), 0.9)),
        .cosine_warm_restarts => restarts: {
            var position = step;
            var cycle = decay;
            while (position >= cycle) {
                position -= cycle;
                cycle *|= 2;
            }
            break :restarts halfWave(peak, floor, progress(position, cycle));
        },
    };
}

/// Share of `whole` that has passed, never above 1.
fn progress(part: u64, whole: u64) f64 {
    return @min(1.0, float(part) / float(whole));
}

/// From `peak` at 0 to `floor` at 1 along half a cosine wave.
fn halfWave(peak: f64, floor: f64, p: f64) f64 {
    return between(peak, floor, 0.5 * (1 + @cos(std.math.pi * p)));
}

/// `floor` at share 0, `peak` at share 1, both exactly: the subtraction would round.
fn between(peak: f64, floor: f64, part: f64) f64 {
    if (part >= 1) return peak;
    return @min(peak, floor + (peak - floor) * part);
}

fn float(n: u64) f64 {
    return @floatFromInt(n);
}

const testing = std.testing;

fn rate(config: LlmTrainingConfig, step: u64) f64 {
    return learningRate(&config, step, 1000);
}

test "warmup_cosine rises from b/W to b without a drop, then falls to the minimum and stays" {
    const config: LlmTrainingConfig = .{ .learning_rate = 2e-4, .min_learning_rate = 1e-6, .warmup_steps = 10, .decay_steps = 110 };
    try testing.expectApproxEqRel(2e-5, rate(config, 0), 1e-15);
    try testing.expectEqual(2e-4, rate(config, 9));
    try testing.expectEqual(2e-4, rate(config, 10));
    try testing.expectApproxEqRel((2e-4 + 1e-6) / 2.0, rate(config, 60), 1e-12);
    try testing.expectEqual(1e-6, rate(config, 110));
    try testing.expectEqual(1e-6, rate(config, 5000));
    for (10..109) |s| try testing.expect(rate(config, s) > rate(config, s + 1));
}

test "without warm-up the first step has the full rate" {
    const config: LlmTrainingConfig = .{ .warmup_steps = 0, .decay_steps = 0 };
    try testing.expectEqual(1e-5, rate(config, 0));
    try testing.expectEqual(1e-7, rate(config, 1000));
}

test "cosine is half a wave and never rises again" {
    const config: LlmTrainingConfig = .{ .lr_schedule = .cosine, .learning_rate = 1, .min_learning_rate = 0.1, .decay_steps = 8 };
    try testing.expectEqual(1.0, rate(config, 0));
    try testing.expectApproxEqRel(0.55, rate(config, 4), 1e-15);
    try testing.expectEqual(0.1, rate(config, 8));
    try testing.expectEqual(0.1, rate(config, 12));
}

test "step falls tenfold each D and stops at the minimum" {
    const config: LlmTrainingConfig = .{ .lr_schedule = .step, .learning_rate = 1, .min_learning_rate = 5e-3, .decay_steps = 3 };
    try testing.expectEqual(1.0, rate(config, 2));
    try testing.expectApproxEqRel(0.1, rate(config, 3), 1e-15);
    try testing.expectApproxEqRel(0.01, rate(config, 6), 1e-15);
    try testing.expectEqual(5e-3, rate(config, 9));
    try testing.expectEqual(5e-3, rate(config, std.math.maxInt(u64)));
}

test "polynomial has power 0.9 and ends at the minimum" {
    const config: LlmTrainingConfig = .{ .lr_schedule = .polynomial, .learning_rate = 1, .min_learning_rate = 0.5, .decay_steps = 4 };
    try testing.expectEqual(1.0, rate(config, 0));
    try testing.expectApproxEqRel(0.5 + 0.5 * std.math.pow(f64, 0.5, 0.9), rate(config, 2), 1e-15);
    try testing.expectEqual(0.5, rate(config, 4));
    try testing.expectEqual(0.5, rate(config, 400));
}

test "warm restarts return to the peak after D, 3D and 7D steps" {
    const config: LlmTrainingConfig = .{ .lr_schedule = .cosine_warm_restarts, .learning_rate = 1, .min_learning_rate = 0, .decay_steps = 4 };
    for ([_]u64{ 0, 4, 12, 28, 60 }) |s| try testing.expectEqual(1.0, rate(config, s));
    try testing.expectApproxEqRel(0.5, rate(config, 2), 1e-15);
    try testing.expectApproxEqRel(0.5, rate(config, 8), 1e-15);
    try testing.expectApproxEqRel(0.5, rate(config, 20), 1e-15);
    try testing.expect(rate(config, 3) < 0.15);
}

test "every valid configuration gives a finite rate between 0 and the peak at every step" {
    const steps = [_]u64{ 0, 1, 2, 3, 7, 99, 100, 101, 9999, 10_000, 10_001, 1 << 40, std.math.maxInt(u64) - 1, std.math.maxInt(u64) };
    const sizes = [_]u32{ 0, 1, 2, 100, std.math.maxInt(u32) };
    var diag: base.Diagnostic = .{};
    for (std.enums.values(LrSchedule)) |kind| for (sizes) |warmup| for (sizes) |decay| {
        const config: LlmTrainingConfig = .{ .lr_schedule = kind, .warmup_steps = warmup, .decay_steps = decay };
        config.validate(&diag) catch continue;
        for (steps) |s| for ([_]u64{ 0, 1, 50, std.math.maxInt(u64) }) |total| {
            const lr = learningRate(&config, s, total);
            try testing.expect(std.math.isFinite(lr));
            try testing.expect(lr > 0);
            try testing.expect(lr <= config.learning_rate);
        };
    };
}
