//! Losses over pairs of answers: direct preference optimisation and its relatives, as TRL defines them.
//!
//! In: for each answer the sum of its tokens' log-probabilities under the policy and under the reference. Out: the loss
//! of a micro-batch (a mean over its pairs), its derivative with respect to each policy sum, and TRL's metrics.
//! All of a loss depends on a sequence only through its sum, so one number a sequence is all that backward needs: the
//! gradient of every token's log-probability in it is that number.
//!
//!     r = log π(answer) − log π_ref(answer);   Δ = r_chosen − r_rejected;   Δ̄: the same with r divided by the answer's tokens
//!     sigmoid −log σ(βΔ)   hinge max(0, 1 − βΔ)   ipo (Δ̄ − 1/2β)²   sigmoid_norm −log σ(βΔ̄)
//!     robust [−(1−ε) log σ(βΔ) + ε log σ(−βΔ)] / (1 − 2ε)   apo_zero 1 − σ(β r_chosen) + σ(β r_rejected)
//!     sft    mean of −log π over all chosen tokens of the micro-batch
//!
//! Everything is f64. Does not know: models, where log-probabilities come from, micro-batches' place in an update.

const std = @import("std");

pub const LossType = enum { sigmoid, hinge, ipo, robust, sft, sigmoid_norm, apo_zero };

/// What a run may mix; more would be the same type twice.
pub const max_losses = @typeInfo(LossType).@"enum".field_names.len;

/// One term of the loss.
pub const Term = struct { type: LossType, weight: f64 = 1 };

pub const Options = struct {
    beta: f64 = 0.1,
    /// ε of `robust`, below ½. No other type uses it.
    label_smoothing: f64 = 0,
    terms: []const Term = &.{.{ .type = .sigmoid }},
};

/// One answer of a pair.
pub const Answer = struct {
    /// Σ log π and Σ log π_ref over the answer's tokens.
    policy: f64,
    reference: f64,
    /// Tokens of the answer: what `ipo` and `sigmoid_norm` divide by. An answer that opens its row counts its first token.
    tokens: u32,
    /// Those among them that something predicts: what `sft` divides by.
    targets: u32,

    fn ratio(self: Answer) f64 {
        return self.policy - self.reference;
    }

    fn length(self: Answer) f64 {
        return @floatFromInt(@max(self.tokens, 1));
    }
};

/// Means over the pairs of a micro-batch, under TRL's names.
pub const Metrics = struct {
    rewards_chosen: f64 = 0,
    rewards_rejected: f64 = 0,
    /// Share of pairs whose chosen reward is larger; equal rewards count as wrong, so the first step has 0.
    rewards_accuracies: f64 = 0,
    rewards_margins: f64 = 0,
    logps_chosen: f64 = 0,
    logps_rejected: f64 = 0,
    /// Mean over answer tokens of the mean logit over the vocabulary; filled by whoever has logits.
    logits_chosen: f64 = 0,
    logits_rejected: f64 = 0,
    /// Share of the chosen answers' tokens that are the first arg-max; filled by whoever has logits.
    mean_token_accuracy: f64 = 0,

    /// Adds `weight` times `other`: means of means, as the log averages micro-batches.
    pub fn add(self: *Metrics, other: Metrics, weight: f64) void {
        inline for (@typeInfo(Metrics).@"struct".field_names) |name|
            @field(self, name) += weight * @field(other, name);
    }

    pub fn scale(self: *Metrics, factor: f64) void {
        inline for (@typeInfo(Metrics).@"struct".field_names) |name| @field(self, name) *= factor;
    }
};

pub const Result = struct { loss: f64, metrics: Metrics };

/// Loss and metrics of a micro-batch of pairs; `dchosen` and `drejected` receive ∂loss/∂(policy sum) of each answer.
pub fn evaluate(
    options: Options,
    chosen: []const Answer,
    rejected: []const Answer,
    dchosen: []f64,
    drejected: []f64,
) Result {
    std.debug.assert(chosen.len > 0);
    std.debug.assert(chosen.len == rejected.len);
    std.debug.assert(chosen.len == dchosen.len);
    std.debug.assert(chosen.len == drejected.len);
    @memset(dchosen, 0);
    @memset(drejected, 0);
    const pairs: f64 = @floatFromInt(chosen.len);
    var loss: f64 = 0;
    for (options.terms) |term| {
        if (term.type == .sft) {
            loss += term.weight * imitate(term.weight, chosen, dchosen);
            continue;
        }
        var sum: f64 = 0;
        for (chosen, rejected, dchosen, drejected) |c, r, *dc, *dr| {
            const one = ofPair(term.type, options.beta, options.label_smoothing, c, r);
            sum += one.loss;
            dc.* += term.weight * one.dchosen / pairs;
            dr.* += term.weight * one.drejected / pairs;
        }
        loss += term.weight * sum / pairs;
    }
    return .{ .loss = loss, .metrics = measure(options.beta, chosen, rejected) };
}

const OnePair = struct { loss: f64, dchosen: f64, drejected: f64 };

fn ofPair(loss_type: LossType, beta: f64, smoothing: f64, c: Answer, r: Answer) OnePair {
    const x = beta * (c.ratio() - r.ratio());
    switch (loss_type) {
        .sigmoid => return both(softplus(-x), -beta * sigmoid(-x)),
        .hinge => return if (x < 1) both(1 - x, -beta) else both(0, 0),
        .robust => {
            const norm = 1 - 2 * smoothing;
            const loss = ((1 - smoothing) * softplus(-x) - smoothing * softplus(x)) / norm;
            return both(loss, -beta * ((1 - smoothing) * sigmoid(-x) + smoothing * sigmoid(x)) / norm);
        },
        .ipo => {
            const off = c.ratio() / c.length() - r.ratio() / r.length() - 1 / (2 * beta);
            return .{ .loss = off * off, .dchosen = 2 * off / c.length(), .drejected = -2 * off / r.length() };
        },
        .sigmoid_norm => {
            const mean = beta * (c.ratio() / c.length() - r.ratio() / r.length());
            const slope = -beta * sigmoid(-mean);
            return .{ .loss = softplus(-mean), .dchosen = slope / c.length(), .drejected = -slope / r.length() };
        },
        .apo_zero => {
            const up = sigmoid(beta * c.ratio());
            const down = sigmoid(beta * r.ratio());
            return .{
                .loss = 1 - up + down,
                .dchosen = -beta * up * sigmoid(-beta * c.ratio()),
                .drejected = beta * down * sigmoid(-beta * r.ratio()),
            };
        },
        .sft => unreachable, // Not of one pair: `imitate`.
    }
}

/// A loss that sees the pair only through Δ.
fn both(loss: f64, slope: f64) OnePair {
    return .{ .loss = loss, .dchosen = slope, .drejected = -slope };
}

/// Mean over all chosen tokens of the micro-batch; 0 when none has a predecessor.
fn imitate(weight: f64, chosen: []const Answer, dchosen: []f64) f64 {
    var sum: f64 = 0;
    var count: u64 = 0;
    for (chosen) |c| {
        sum -= c.policy;
        count += c.targets;
    }
    if (count == 0) return 0;
    const tokens: f64 = @floatFromInt(count);
    for (dchosen) |*d| d.* -= weight / tokens;
    return sum / tokens;
}

fn measure(beta: f64, chosen: []const Answer, rejected: []const Answer) Metrics {
    var sum: Metrics = .{};
    for (chosen, rejected) |c, r| {
        const up = beta * c.ratio();
        const down = beta * r.ratio();
        sum.rewards_chosen += up;
        sum.rewards_rejected += down;
        sum.rewards_margins += up - down;
        sum.rewards_accuracies += @floatFromInt(@intFromBool(up > down));
        sum.logps_chosen += c.policy;
        sum.logps_rejected += r.policy;
    }
    var mean: Metrics = .{};
    mean.add(sum, 1 / @as(f64, @floatFromInt(chosen.len)));
    return mean;
}

fn sigmoid(x: f64) f64 {
    // Never an overflow, and full precision on both sides.
    if (x >= 0) return 1 / (1 + @exp(-x));
    const e = @exp(x);
    return e / (1 + e);
}

/// log(1 + eˣ) = −log σ(−x).
fn softplus(x: f64) f64 {
    return @max(x, 0) + std.math.log1p(@exp(-@abs(x)));
}

// ---- tests ----

const testing = std.testing;

const test_chosen = [3]Answer{
    .{ .policy = -12.5, .reference = -13.0, .tokens = 5, .targets = 5 },
    .{ .policy = -40.25, .reference = -39.0, .tokens = 11, .targets = 11 },
    .{ .policy = -7.125, .reference = -7.125, .tokens = 3, .targets = 2 },
};
const test_rejected = [3]Answer{
    .{ .policy = -14.0, .reference = -13.25, .tokens = 6, .targets = 6 },
    .{ .policy = -38.5, .reference = -39.5, .tokens = 9, .targets = 9 },
    .{ .policy = -9.75, .reference = -8.0, .tokens = 4, .targets = 4 },
};

/// Computed by PyTorch in float64 with the expressions of TRL 1.16's DPOTrainer.
const Vector = struct {
    terms: []const Term,
    beta: f64,
    label_smoothing: f64 = 0,
    loss: f64,
    chosen: [3]f64,
    rejected: [3]f64,
};
const vectors = [_]Vector{
    .{ .terms = &.{.{ .type = .sigmoid }}, .beta = 0.1, .loss = 0.6846771560099733, .chosen = .{ -0.015626354220874793, -0.01853379635148733, -0.01521204375876404 }, .rejected = .{ 0.015626354220874793, 0.01853379635148733, 0.01521204375876404 } },
    .{ .terms = &.{.{ .type = .hinge }}, .beta = 0.4, .loss = 0.8999999999999999, .chosen = .{ -0.13333333333333333, -0.13333333333333333, -0.13333333333333333 }, .rejected = .{ 0.13333333333333333, 0.13333333333333333, 0.13333333333333333 } },
    .{ .terms = &.{.{ .type = .ipo }}, .beta = 0.1, .loss = 23.638339141626705, .chosen = .{ -0.6366666666666667, -0.31665136210590755, -1.0138888888888888 }, .rejected = .{ 0.5305555555555556, 0.3870183314627759, 0.7604166666666666 } },
    .{ .terms = &.{.{ .type = .robust }}, .beta = 0.3, .label_smoothing = 0.2, .loss = 0.6664619505602287, .chosen = .{ -0.07406667333792635, -0.09959551705034157, -0.07050171450379672 }, .rejected = .{ 0.07406667333792635, 0.09959551705034157, 0.07050171450379672 } },
    .{ .terms = &.{.{ .type = .sft }}, .beta = 0.1, .loss = 3.326388888888889, .chosen = .{ -0.05555555555555555, -0.05555555555555555, -0.05555555555555555 }, .rejected = .{ 0, 0, 0 } },
    .{ .terms = &.{.{ .type = .sigmoid_norm }}, .beta = 0.7, .loss = 0.6480314939198234, .chosen = .{ -0.021499622391409883, -0.01143863395826835, -0.03298013710767442 }, .rejected = .{ 0.01791635199284157, 0.013980552615661316, 0.024735102830755813 } },
    .{ .terms = &.{.{ .type = .apo_zero }}, .beta = 0.25, .loss = 0.9846870569601162, .chosen = .{ -0.02075216458446812, -0.020332872364559808, -0.020833333333333332 }, .rejected = .{ 0.02065129542908859, 0.02051117356146653, 0.01986738682179449 } },
    .{ .terms = &.{ .{ .type = .sigmoid }, .{ .type = .sft, .weight = 0.25 } }, .beta = 0.1, .loss = 1.5162743782321955, .chosen = .{ -0.02951524310976368, -0.03242268524037622, -0.029100932647652927 }, .rejected = .{ 0.015626354220874793, 0.01853379635148733, 0.01521204375876404 } },
};

test "losses and derivatives are TRL's" {
    for (vectors) |v| {
        var dc: [3]f64 = undefined;
        var dr: [3]f64 = undefined;
        const got = evaluate(.{ .beta = v.beta, .label_smoothing = v.label_smoothing, .terms = v.terms }, &test_chosen, &test_rejected, &dc, &dr);
        try testing.expectApproxEqAbs(v.loss, got.loss, 1e-14 * (1 + v.loss));
        for (v.chosen, dc) |want, d| try testing.expectApproxEqAbs(want, d, 1e-15);
        for (v.rejected, dr) |want, d| try testing.expectApproxEqAbs(want, d, 1e-15);
    }
}

test "the metrics are TRL's" {
    var dc: [3]f64 = undefined;
    var dr: [3]f64 = undefined;
    const m = evaluate(.{}, &test_chosen, &test_rejected, &dc, &dr).metrics;
    try testing.expectApproxEqAbs(-0.025, m.rewards_chosen, 1e-15);
    try testing.expectApproxEqAbs(-0.05, m.rewards_rejected, 1e-15);
    try testing.expectApproxEqAbs(0.025, m.rewards_margins, 1e-15);
    try testing.expectApproxEqAbs(2.0 / 3.0, m.rewards_accuracies, 1e-15);
    try testing.expectApproxEqAbs(-19.958333333333332, m.logps_chosen, 1e-14);
    try testing.expectApproxEqAbs(-20.75, m.logps_rejected, 1e-14);
}

test "the derivatives of every loss equal central differences" {
    inline for (@typeInfo(LossType).@"enum".field_names) |name| {
        const options: Options = .{ .beta = 0.3, .label_smoothing = 0.1, .terms = &.{.{ .type = @field(LossType, name), .weight = 1.5 }} };
        var dc: [3]f64 = undefined;
        var dr: [3]f64 = undefined;
        var unused: [3]f64 = undefined;
        _ = evaluate(options, &test_chosen, &test_rejected, &dc, &dr);
        for (0..6) |at| {
            const h = 1e-6;
            var losses: [2]f64 = undefined;
            for (&losses, [_]f64{ h, -h }) |*loss, step| {
                var chosen = test_chosen;
                var rejected = test_rejected;
                if (at < 3) chosen[at].policy += step else rejected[at - 3].policy += step;
                loss.* = evaluate(options, &chosen, &rejected, &unused, &unused).loss;
            }
            const analytic = if (at < 3) dc[at] else dr[at - 3];
            try testing.expectApproxEqAbs((losses[0] - losses[1]) / (2 * h), analytic, 1e-8);
        }
    }
}

test "a policy that is the reference has the loss ln 2, no margin, and no pair right" {
    const same = [_]Answer{.{ .policy = -3.75, .reference = -3.75, .tokens = 2, .targets = 2 }};
    var dc: [1]f64 = undefined;
    var dr: [1]f64 = undefined;
    const got = evaluate(.{}, &same, &same, &dc, &dr);
    try testing.expectEqual(@log(2.0), got.loss);
    try testing.expectEqual(0, got.metrics.rewards_margins);
    try testing.expectEqual(0, got.metrics.rewards_accuracies);
    try testing.expectApproxEqAbs(-0.05, dc[0], 1e-17);
    try testing.expectApproxEqAbs(0.05, dr[0], 1e-17);
}

test "pairs that are far apart stay finite on both sides" {
    for ([_]f64{ 1e5, -1e5 }) |gap| {
        const chosen = [_]Answer{.{ .policy = gap, .reference = 0, .tokens = 1, .targets = 1 }};
        const rejected = [_]Answer{.{ .policy = 0, .reference = 0, .tokens = 1, .targets = 0 }};
        inline for (@typeInfo(LossType).@"enum".field_names) |name| {
            var dc: [1]f64 = undefined;
            var dr: [1]f64 = undefined;
            const got = evaluate(.{ .beta = 1, .terms = &.{.{ .type = @field(LossType, name) }} }, &chosen, &rejected, &dc, &dr);
            for ([_]f64{ got.loss, dc[0], dr[0] }) |x| try testing.expect(std.math.isFinite(x));
        }
    }
    // −log σ(−10⁵) is 10⁵ and its slope 1, not infinity and NaN.
    var d: [2]f64 = undefined;
    const worst = [_]Answer{.{ .policy = -1e5, .reference = 0, .tokens = 1, .targets = 1 }};
    const zero = [_]Answer{.{ .policy = 0, .reference = 0, .tokens = 1, .targets = 1 }};
    try testing.expectEqual(1e5, evaluate(.{ .beta = 1 }, &worst, &zero, d[0..1], d[1..2]).loss);
    try testing.expectEqual(-1, d[0]);
}
