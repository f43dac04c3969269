//! Tests of runs in several processes: two and three trainers in this one, exchanging by hand.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const data = @import("data");
const checkpoint = @import("checkpoint");
const Trainer = @import("trainer.zig").Trainer;
const LlmTrainingConfig = @import("config.zig").LlmTrainingConfig;
const LoraConfig = @import("lora.zig").LoraConfig;
const report = @import("report.zig");

const testing = std.testing;
const gpa = testing.allocator;

const model_config: arch.ModelConfig = .{
    .vocab_size = 23,
    .hidden_size = 16,
    .intermediate_size = 24,
    .num_hidden_layers = 2,
    .num_attention_heads = 4,
    .num_key_value_heads = 2,
    .head_dim = 4,
    .max_position_embeddings = 64,
};

const config: LlmTrainingConfig = .{
    .epochs = 2,
    .batch_size = 2,
    .max_seq_len = 12,
    .grad_accum_steps = 3,
    .learning_rate = 1e-2,
    .warmup_steps = 2,
    .decay_steps = 0,
    .checkpoint_interval = 0,
    .eval_interval = 2,
    .early_stopping = false,
    .threads = 1,
};

const Rows = struct {
    tokens: [13 * 9]u32,
    starts: [14]u64,

    fn init() Rows {
        var self: Rows = undefined;
        for (0..13) |r| {
            self.starts[r] = r * 9;
            for (0..9) |c| self.tokens[r * 9 + c] = @intCast((r + 3 * c) % 23);
        }
        self.starts[13] = 13 * 9;
        return self;
    }

    fn dataset(self: *const Rows) data.TokenizedDataset {
        return .{ .arena = .init(gpa), .disk = null, .path = "test.bin", .tokens = &self.tokens, .row_starts = &self.starts };
    }
};

const Outcome = struct {
    losses: std.ArrayList(f64) = .empty,
    values: []f64 = &.{},
    reason: ?report.StopReason = null,
    tokens: u64 = 0,

    fn deinit(self: *Outcome) void {
        self.losses.deinit(gpa);
        gpa.free(self.values);
    }
};

/// A run of `count` processes; the last one asks for a stop after `stop_after` updates.
fn train(comptime count: u32, lora: ?LoraConfig, stop_after: ?u64) !Outcome {
    var diag: base.Diagnostic = .{};
    errdefer std.debug.print("{s}\n", .{diag.text()});
    const rows = Rows.init();
    const dataset = rows.dataset();
    var models: [count]checkpoint.LoadedModel(f64) = undefined;
    for (&models) |*model| model.* = try checkpoint.initRandom(f64, gpa, model_config, 5);
    defer for (&models) |*model| model.deinit(gpa);

    var trainers: [count]*Trainer(f64) = undefined;
    for (&trainers, &models, 0..) |*trainer, *model, rank|
        trainer.* = try .init(gpa, testing.io, model, &dataset, &dataset, config, .{ .lora = lora, .share = .{ .rank = @intCast(rank), .count = count } }, &diag);
    defer for (trainers) |trainer| trainer.deinit();

    var outcome: Outcome = .{};
    errdefer outcome.deinit();
    while (true) {
        var events: [count]?report.Event = undefined;
        for (&events, trainers) |*event, trainer| event.* = try trainer.next(&diag);
        switch (events[0] orelse break) {
            .gradient => addUp(count, &trainers),
            .step => |s| {
                try outcome.losses.append(gpa, s.loss);
                outcome.tokens = s.tokens_processed;
                for (events) |event| try testing.expectEqual(s.loss, event.?.step.loss);
                if (stop_after == s.global_step) trainers[count - 1].requestStop();
            },
            .evaluation => |e| for (events) |event| try testing.expectEqual(e.loss, event.?.evaluation.loss),
            .finished => |f| outcome.reason = f.stop_reason,
            .checkpoint => unreachable, // There is no folder.
        }
    }
    for (trainers) |trainer| try testing.expectEqualSlices(f64, trainers[0].trained.values, trainer.trained.values);
    outcome.values = try gpa.dupe(f64, trainers[0].trained.values);
    return outcome;
}

fn addUp(comptime count: u32, trainers: *const [count]*Trainer(f64)) void {
    const first = trainers[0].exchange().?;
    for (trainers[1..]) |trainer| {
        const other = trainer.exchange().?;
        for (first.gradients, other.gradients) |*x, y| x.* += y;
        for (first.sums, other.sums) |*x, y| x.* += y;
    }
    for (trainers[1..]) |trainer| {
        const other = trainer.exchange().?;
        @memcpy(other.gradients, first.gradients);
        @memcpy(other.sums, first.sums);
    }
}

fn expectSame(alone: *const Outcome, shared: *const Outcome) !void {
    try testing.expectEqual(alone.losses.items.len, shared.losses.items.len);
    try testing.expectEqual(alone.tokens, shared.tokens);
    for (alone.losses.items, shared.losses.items) |x, y| try testing.expectApproxEqAbs(x, y, 1e-12);
    for (alone.values, shared.values) |x, y| try testing.expectApproxEqAbs(x, y, 1e-10);
}

test "two and three processes train what one trains, all weights or an adapter with dropout" {
    const lora: LoraConfig = .{ .settings = .{ .r = 4, .lora_dropout = 0.2 } };
    for ([_]?LoraConfig{ null, lora }) |method| {
        var alone = try train(1, method, null);
        defer alone.deinit();
        var two = try train(2, method, null);
        defer two.deinit();
        var three = try train(3, method, null);
        defer three.deinit();

        try expectSame(&alone, &two);
        try expectSame(&alone, &three);
        try testing.expectEqual(report.StopReason.completed, three.reason.?);
    }
}

test "a stop that one process asks for ends all of them after the same update" {
    var stopped = try train(2, null, 2);
    defer stopped.deinit();

    try testing.expectEqual(report.StopReason.interrupted, stopped.reason.?);
    try testing.expectEqual(3, stopped.losses.items.len); // It is told with the next update's sums.
}
