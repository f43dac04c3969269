//! Tests of runs in several processes: two and three trainers in this one, exchanging by hand.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const data = @import("data");
const checkpoint = @import("checkpoint");
const Trainer = @import("trainer.zig").Trainer;
const LlmTrainingConfig = @import("config.zig").LlmTrainingConfig;
const LoraConfig = @import("lora.zig").LoraConfig;
const Options = @import("trainer.zig").Options;
const report = @import("report.zig");
const rig = @import("test_rig.zig");
const Rows = rig.Rows;
const model_config = rig.model_config;

const testing = std.testing;
const gpa = testing.allocator;

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
    return trainWith(count, .{ .lora = lora }, stop_after, null);
}

/// The same with any options, and the folder of the first process.
fn trainWith(comptime count: u32, options: Options, stop_after: ?u64, run_dir: ?[]const u8) !Outcome {
    var diag: base.Diagnostic = .{};
    errdefer std.debug.print("{s}\n", .{diag.text()});
    const rows = Rows.init();
    const pairs = rig.Pairs.init();
    const dataset = if (options.dpo == null) rows.dataset() else pairs.dataset();
    var models: [count]checkpoint.LoadedModel(f64) = undefined;
    for (&models) |*model| model.* = try checkpoint.initRandom(f64, gpa, model_config, 5);
    defer for (&models) |*model| model.deinit(gpa);

    var settings = config;
    if (options.dpo != null) settings.epochs = 6; // One update each.
    var trainers: [count]*Trainer(f64) = undefined;
    for (&trainers, &models, 0..) |*trainer, *model, rank| {
        var own = options;
        own.share = .{ .rank = @intCast(rank), .count = count };
        own.run_dir = if (rank == 0) run_dir else null;
        trainer.* = try .init(gpa, testing.io, model, &dataset, &dataset, settings, own, &diag);
    }
    defer for (trainers) |trainer| trainer.deinit();

    var outcome: Outcome = .{};
    errdefer outcome.deinit();
    if (stop_after == 0) trainers[count - 1].requestStop();
    while (true) {
        var events: [count]?report.Event = undefined;
        for (&events, trainers) |*event, trainer| event.* = try trainer.next(&diag);
        switch (events[0] orelse break) {
            .reference => {},
            .gradient => addUp(count, &trainers),
            .step => |s| {
                try outcome.losses.append(gpa, s.loss);
                outcome.tokens = s.tokens_processed;
                for (events) |event| try testing.expectEqual(s.loss, event.?.step.loss);
                if (stop_after == s.global_step) trainers[count - 1].requestStop();
            },
            .evaluation => |e| for (events) |event| try testing.expectEqual(e.loss, event.?.evaluation.loss),
            .finished => |f| outcome.reason = f.stop_reason,
            .checkpoint => {},
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

test "processes ask a reference each about their own pairs, and an earlier start's answers serve all of them" {
    var tmp = testing.tmpDir(.{});
    defer tmp.cleanup();

    const dir = try rig.runPath(&tmp);
    defer gpa.free(dir);

    const options: Options = .{ .dpo = .{ .beta = 0.5, .precompute_ref_log_probs = true } };
    var alone = try trainWith(1, options, null, null);
    defer alone.deinit();
    var three = try trainWith(3, options, null, null);
    defer three.deinit();

    try expectSame(&alone, &three);
    // Stopped after the answers were kept: the next start reads them, and gives them to the other.
    var first = try trainWith(2, options, 1, dir);
    defer first.deinit();

    try testing.expectEqual(report.StopReason.interrupted, first.reason.?);
    const kept = try std.fmt.allocPrint(gpa, "{s}/reference_logps.safetensors", .{dir});
    defer gpa.free(kept);

    try std.Io.Dir.cwd().access(testing.io, kept, .{});
    const checkpoint_path = try std.fmt.allocPrint(gpa, "{s}/checkpoint-{d}", .{ dir, first.losses.items.len });
    defer gpa.free(checkpoint_path);

    var resumed_options = options;
    resumed_options.resume_from = checkpoint_path;
    var resumed = try trainWith(2, resumed_options, null, dir);
    defer resumed.deinit();

    for (alone.losses.items[first.losses.items.len..], resumed.losses.items) |x, y| try testing.expectApproxEqAbs(x, y, 1e-12);
    for (alone.values, resumed.values) |x, y| try testing.expectApproxEqAbs(x, y, 1e-10);
}

test "a stop while the reference is asked ends all processes before the first update" {
    var stopped = try trainWith(2, .{ .dpo = .{ .precompute_ref_log_probs = true } }, 0, null);
    defer stopped.deinit();

    try testing.expectEqual(report.StopReason.interrupted, stopped.reason.?);
    try testing.expectEqual(0, stopped.losses.items.len);
}
