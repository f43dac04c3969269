//! Tests of the training loop: learning, accumulation, threads, resume, early stopping, and wrong numbers.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const data = @import("data");
const checkpoint = @import("checkpoint");
const Trainer = @import("trainer.zig").Trainer;
const Options = @import("trainer.zig").Options;
const LlmTrainingConfig = @import("config.zig").LlmTrainingConfig;
const report = @import("report.zig");
const rig = @import("test_rig.zig");
const Rows = rig.Rows;
const model_config = rig.model_config;

const testing = std.testing;
const gpa = testing.allocator;

const config: LlmTrainingConfig = .{
    .epochs = 3,
    .batch_size = 2,
    .max_seq_len = 12,
    .grad_accum_steps = 3,
    .learning_rate = 1e-2,
    .warmup_steps = 2,
    .decay_steps = 0,
    .checkpoint_interval = 0,
    .eval_interval = 0,
    .log_interval = 1,
    .threads = 2,
};

const temporaryRun = rig.runPath;

fn train(setup: rig.Setup(config, .{}, .rows)) !rig.Run {
    return rig.mustTrain(setup);
}

test "a tiny model learns a pattern, and the run counts its updates as TRL does" {
    var run = try train(.{});
    defer run.deinit();

    // 13 rows / batch 2 = 7 micro-batches; / 3 = 3 updates an epoch, the last one short.
    try testing.expectEqual(9, run.losses.items.len);
    try testing.expectEqual(9, run.final.?.total_steps);
    try testing.expectEqual(report.StopReason.completed, run.final.?.stop_reason);
    try testing.expectEqual(3 * 13 * 9, run.final.?.total_tokens);
    try testing.expect(run.losses.items[8] < 0.9 * run.losses.items[0]);
}

test "1, 2, 3 and 7 threads train to the same bits" {
    var one = config;
    one.threads = 1;
    var reference = try train(.{ .config = one });
    defer reference.deinit();

    for ([_]u32{ 2, 3, 7 }) |threads| {
        var c = config;
        c.threads = threads;
        var run = try train(.{ .config = c });
        defer run.deinit();

        try testing.expectEqualSlices(f64, reference.losses.items, run.losses.items);
        try testing.expectEqualSlices(f32, reference.values, run.values);
    }
}

test "a run dropped in the middle and resumed ends with the bits of the unbroken one" {
    var unbroken = try train(.{});
    defer unbroken.deinit();

    var tmp = testing.tmpDir(.{});
    defer tmp.cleanup();

    const dir = try temporaryRun(&tmp);
    defer gpa.free(dir);

    var saving = config;
    saving.checkpoint_interval = 2;
    var first = try train(.{ .config = saving, .options = .{ .run_dir = dir }, .abandon_after = 5 });
    defer first.deinit();

    try testing.expect(std.mem.endsWith(u8, first.last_path, "checkpoint-4"));
    var second = try train(.{ .config = saving, .options = .{ .run_dir = dir, .resume_from = first.last_path } });
    defer second.deinit();

    try testing.expectEqualSlices(f64, unbroken.losses.items[4..], second.losses.items);
    try testing.expectEqualSlices(f32, unbroken.values, second.values);
    try testing.expectEqual(unbroken.final.?.total_tokens, second.final.?.total_tokens);
}

/// Rows of 2 to 11 tokens, some with a mask.
const MixedRows = struct {
    tokens: [60]u32,
    mask: [8]u8,
    starts: [11]u64,

    fn init() MixedRows {
        var self: MixedRows = .{ .tokens = undefined, .mask = .{ 0xfb, 0xff, 0x3f, 0xff, 0xdf, 0xff, 0xee, 0x0f }, .starts = undefined };
        self.starts[0] = 0;
        for ([_]u64{ 5, 2, 11, 7, 3, 9, 4, 8, 6, 5 }, 0..) |len, r| self.starts[r + 1] = self.starts[r] + len;
        for (&self.tokens, 0..) |*token, i| token.* = @intCast((i * i + 3 * i) % 23);
        return self;
    }

    fn dataset(self: *const MixedRows) data.TokenizedDataset {
        return .{ .arena = .init(gpa), .disk = null, .path = "mixed.bin", .tokens = &self.tokens, .mask = &self.mask, .row_starts = &self.starts };
    }
};

const Ran = struct { loss: f64, grad_norm: f64, eval_loss: f64, weights: []f64, micro_steps: u32 };

/// One update over all of the mixed rows, and an evaluation of what it leads to. In f64: what differs is not rounding.
fn trainMixed(shape: arch.ModelConfig, run_config: LlmTrainingConfig) !Ran {
    var diag: base.Diagnostic = .{};
    errdefer std.debug.print("{s}\n", .{diag.text()});
    const rows = MixedRows.init();
    const dataset = rows.dataset();
    var model = try checkpoint.initRandom(f64, gpa, shape, 5);
    defer model.deinit(gpa);

    const trainer = try Trainer(f64).init(gpa, testing.io, &model, &dataset, &dataset, run_config, .{}, &diag);
    defer trainer.deinit();

    var ran: Ran = undefined;
    while (try trainer.next(&diag)) |event| switch (event) {
        .step => |s| {
            ran.loss = s.loss;
            ran.grad_norm = s.grad_norm;
            ran.micro_steps = s.micro_steps;
        },
        .evaluation => |e| ran.eval_loss = e.loss,
        else => {},
    };
    ran.weights = try gpa.dupe(f64, model.weights);
    return ran;
}

test "packed rows teach what the rows alone teach, with a sliding window too" {
    var windowed = model_config;
    windowed.sliding_window = 4;
    for ([_]arch.ModelConfig{ model_config, windowed }) |shape| {
        var alone = config;
        alone.max_seq_len = 12;
        alone.epochs = 1;
        alone.grad_accum_steps = 100;
        const expected = try trainMixed(shape, alone);
        defer gpa.free(expected.weights);

        var shared = alone;
        shared.packing = .bfd;
        for ([_]bool{ false, true }) |recompute| {
            shared.recompute_activations = recompute;
            const got = try trainMixed(shape, shared);
            defer gpa.free(got.weights);

            try testing.expect(got.micro_steps < expected.micro_steps);
            try testing.expectApproxEqAbs(expected.loss, got.loss, 1e-12);
            try testing.expectApproxEqAbs(expected.grad_norm, got.grad_norm, 1e-12);
            try testing.expectApproxEqAbs(expected.eval_loss, got.eval_loss, 1e-10);
            for (expected.weights, got.weights) |a, b| try testing.expectApproxEqAbs(a, b, 1e-9);
        }
    }
}

test "a packed run has the same bits for any thread count, and after a resume; unpacked it is another run" {
    var tmp = testing.tmpDir(.{});
    defer tmp.cleanup();

    const dir = try temporaryRun(&tmp);
    defer gpa.free(dir);

    var shared = config;
    shared.packing = .bfd;
    shared.max_seq_len = 20;
    shared.grad_accum_steps = 2;
    shared.epochs = 4;
    var unbroken = try train(.{ .config = shared });
    defer unbroken.deinit();

    // 13 rows of 9: 2 in each of 7 packed rows; 4 micro-batches; 2 updates an epoch.
    try testing.expectEqual(8, unbroken.losses.items.len);
    try testing.expectEqual(4 * 13 * 9, unbroken.final.?.total_tokens);
    shared.threads = 3;
    shared.checkpoint_interval = 3;
    var first = try train(.{ .config = shared, .options = .{ .run_dir = dir }, .abandon_after = 4 });
    defer first.deinit();

    var second = try train(.{ .config = shared, .options = .{ .run_dir = dir, .resume_from = first.last_path } });
    defer second.deinit();

    try testing.expectEqualSlices(f64, unbroken.losses.items[3..], second.losses.items);
    try testing.expectEqualSlices(f32, unbroken.values, second.values);

    shared.packing = .none;
    var diag: base.Diagnostic = .{};
    const rows = Rows.init();
    const dataset = rows.dataset();
    var model = try checkpoint.initRandom(f32, gpa, model_config, 5);
    defer model.deinit(gpa);

    try testing.expectError(error.ResumeMismatch, Trainer(f32).init(gpa, testing.io, &model, &dataset, null, shared, .{ .run_dir = dir, .resume_from = first.last_path }, &diag));
    try testing.expect(std.mem.find(u8, diag.text(), "packing was bfd") != null);
}

test "resuming with another seed is refused by name" {
    var tmp = testing.tmpDir(.{});
    defer tmp.cleanup();

    const dir = try temporaryRun(&tmp);
    defer gpa.free(dir);

    var first = try train(.{ .options = .{ .run_dir = dir }, .stop_after = 2 });
    defer first.deinit();

    var other = config;
    other.seed = 43;
    var diag: base.Diagnostic = .{};
    const rows = Rows.init();
    const dataset = rows.dataset();
    var model = try checkpoint.initRandom(f32, gpa, model_config, 5);
    defer model.deinit(gpa);

    try testing.expectError(error.ResumeMismatch, Trainer(f32).init(gpa, testing.io, &model, &dataset, null, other, .{ .run_dir = dir, .resume_from = first.last_path }, &diag));
    try testing.expect(std.mem.find(u8, diag.text(), "seed was 42") != null);
}

test "a fresh run into the folder of an earlier one is refused, and the earlier one stays" {
    var tmp = testing.tmpDir(.{});
    defer tmp.cleanup();

    const dir = try temporaryRun(&tmp);
    defer gpa.free(dir);

    var first = try train(.{ .options = .{ .run_dir = dir }, .stop_after = 2 });
    defer first.deinit();

    var diag: base.Diagnostic = .{};
    const rows = Rows.init();
    const dataset = rows.dataset();
    var model = try checkpoint.initRandom(f32, gpa, model_config, 5);
    defer model.deinit(gpa);

    try testing.expectError(error.RunFolderInUse, Trainer(f32).init(gpa, testing.io, &model, &dataset, null, config, .{ .run_dir = dir }, &diag));
    try testing.expect(std.mem.find(u8, diag.text(), "checkpoint-2") != null);
    const found = (try checkpoint.latest(gpa, testing.io, dir, &diag)).?;
    defer gpa.free(found.path);

    try testing.expectEqual(2, found.step);

    // Nor may another run's checkpoint be resumed into it.
    var other_tmp = testing.tmpDir(.{});
    defer other_tmp.cleanup();

    const other_dir = try temporaryRun(&other_tmp);
    defer gpa.free(other_dir);

    var other = try train(.{ .options = .{ .run_dir = other_dir }, .stop_after = 1 });
    defer other.deinit();

    try testing.expectError(error.RunFolderInUse, Trainer(f32).init(gpa, testing.io, &model, &dataset, null, config, .{ .run_dir = dir, .resume_from = other.last_path }, &diag));
}

test "a requested stop saves after the update in progress" {
    var tmp = testing.tmpDir(.{});
    defer tmp.cleanup();

    const dir = try temporaryRun(&tmp);
    defer gpa.free(dir);

    var run = try train(.{ .options = .{ .run_dir = dir }, .stop_after = 4 });
    defer run.deinit();

    try testing.expectEqual(4, run.losses.items.len);
    try testing.expectEqual(report.StopReason.interrupted, run.final.?.stop_reason);
    try testing.expect(std.mem.endsWith(u8, run.last_path, "checkpoint-4"));
}

test "a stop just before an evaluation loses no evaluation: the resumed run begins with it" {
    var tmp = testing.tmpDir(.{});
    defer tmp.cleanup();

    const dir = try temporaryRun(&tmp);
    defer gpa.free(dir);

    var evaluating = config;
    evaluating.eval_interval = 4;
    evaluating.checkpoint_interval = 4;
    evaluating.early_stopping = false;
    var unbroken = try train(.{ .config = evaluating, .eval = true });
    defer unbroken.deinit();
    var stopped = try train(.{ .config = evaluating, .eval = true, .options = .{ .run_dir = dir }, .stop_after = 4 });
    defer stopped.deinit();

    try testing.expectEqual(0, stopped.evaluated.items.len);
    // The first start makes the evaluation up; the second must not repeat the one at its own beginning.
    var resumed = try train(.{ .config = evaluating, .eval = true, .options = .{ .run_dir = dir, .resume_from = stopped.last_path }, .abandon_after = 9 });
    defer resumed.deinit();
    var again = try train(.{ .config = evaluating, .eval = true, .options = .{ .run_dir = dir, .resume_from = resumed.last_path } });
    defer again.deinit();

    try testing.expectEqualSlices(u64, &.{ 4, 8, 9 }, unbroken.evaluated.items);
    try testing.expectEqualSlices(u64, &.{ 4, 8 }, resumed.evaluated.items);
    try testing.expectEqualSlices(u64, &.{9}, again.evaluated.items);
    try testing.expectEqualSlices(f32, unbroken.values, again.values);
}

test "evaluations without improvement stop the run and bring the best weights back" {
    var tmp = testing.tmpDir(.{});
    defer tmp.cleanup();

    const dir = try temporaryRun(&tmp);
    defer gpa.free(dir);

    var stubborn = config;
    stubborn.epochs = 10;
    stubborn.eval_interval = 1;
    stubborn.early_stopping_patience = 2;
    stubborn.early_stopping_min_delta = 1e6; // Only the first evaluation can improve.
    var on_disk = try train(.{ .config = stubborn, .options = .{ .run_dir = dir }, .eval = true });
    defer on_disk.deinit();
    var in_memory = try train(.{ .config = stubborn, .eval = true });
    defer in_memory.deinit();

    try testing.expectEqual(report.StopReason.early_stopped, on_disk.final.?.stop_reason);
    try testing.expectEqual(3, on_disk.final.?.total_steps);
    try testing.expectEqual(1, on_disk.final.?.best_step.?);
    try testing.expectEqualSlices(f32, in_memory.values, on_disk.values);
    const best_path = try std.fmt.allocPrint(gpa, "{s}/checkpoint-1", .{dir});
    defer gpa.free(best_path);

    var diag: base.Diagnostic = .{};
    var best = try checkpoint.loadModel(f32, gpa, testing.io, best_path, &diag);
    defer best.deinit(gpa);

    try testing.expectEqualSlices(f32, best.weights, on_disk.values);

    // Resumed, it has still stopped; with more patience it goes on.
    var resumed = try train(.{ .config = stubborn, .eval = true, .options = .{ .run_dir = dir, .resume_from = on_disk.last_path } });
    defer resumed.deinit();

    try testing.expectEqual(report.StopReason.early_stopped, resumed.final.?.stop_reason);
    try testing.expectEqual(0, resumed.losses.items.len);
    try testing.expectEqualSlices(f32, on_disk.values, resumed.values);
    stubborn.early_stopping_patience = 4;
    var patient = try train(.{ .config = stubborn, .eval = true, .options = .{ .run_dir = dir, .resume_from = on_disk.last_path } });
    defer patient.deinit();

    try testing.expectEqual(5, patient.final.?.total_steps);
}

test "a weight that is not finite is named before the first update" {
    const rows = Rows.init();
    const dataset = rows.dataset();
    var model = try checkpoint.initRandom(f32, gpa, model_config, 5);
    defer model.deinit(gpa);

    const p = model.layout.find("model.layers.1.mlp.up_proj.weight").?;
    model.weights[p.offset + 3] = std.math.nan(f32);
    var diag: base.Diagnostic = .{};
    try testing.expectError(error.NonFinite, Trainer(f32).init(gpa, testing.io, &model, &dataset, null, config, .{}, &diag));
    try testing.expect(std.mem.find(u8, diag.text(), "model.layers.1.mlp.up_proj.weight") != null);
    try testing.expect(std.mem.find(u8, diag.text(), "element 3") != null);
}

test "an overflowing loss stops the run before weights change" {
    const rows = Rows.init();
    const dataset = rows.dataset();
    var model = try checkpoint.initRandom(f32, gpa, model_config, 5);
    defer model.deinit(gpa);

    const norm = model.layout.get(null, .final_norm).?;
    @memset(norm.slice(f32, model.weights), 3e38);
    var diag: base.Diagnostic = .{};
    const trainer = try Trainer(f32).init(gpa, testing.io, &model, &dataset, null, config, .{}, &diag);
    defer trainer.deinit();

    const before = try gpa.dupe(f32, model.weights);
    defer gpa.free(before);

    try testing.expectError(error.NonFinite, trainer.next(&diag));
    try testing.expectEqualSlices(f32, before, model.weights);
    try testing.expect(std.mem.find(u8, diag.text(), "step 1") != null);
}

test "a token beyond the vocabulary is refused before training" {
    var rows = Rows.init();
    rows.tokens[17] = 23;
    const dataset = rows.dataset();
    var model = try checkpoint.initRandom(f32, gpa, model_config, 5);
    defer model.deinit(gpa);

    var diag: base.Diagnostic = .{};
    try testing.expect(std.meta.isError(Trainer(f32).init(gpa, testing.io, &model, &dataset, null, config, .{}, &diag)));
    try testing.expect(std.mem.find(u8, diag.text(), "23") != null);
}

test "without early stopping's folder every optimizer and schedule trains" {
    inline for (.{ .sgd, .adam, .adamw }) |optimizer| {
        var c = config;
        c.optimizer = optimizer;
        if (optimizer == .sgd) c.learning_rate = 0.5;
        c.label_smoothing = 0.1;
        var run = try train(.{ .config = c });
        defer run.deinit();

        try testing.expect(run.losses.items[8] < run.losses.items[0]);
    }
}

test "mixed precision learns nearly what full precision learns, with the same bits for any thread count" {
    var full = try train(.{});
    defer full.deinit();

    var c = config;
    c.mixed_precision = true;
    var mixed = try train(.{ .config = c });
    defer mixed.deinit();
    c.threads = 3;
    var again = try train(.{ .config = c });
    defer again.deinit();

    const last = full.losses.items.len - 1;
    try testing.expectApproxEqRel(full.losses.items[last], mixed.losses.items[last], 0.01);
    try testing.expectEqualSlices(f32, mixed.values, again.values);
    try testing.expect(!std.mem.eql(f32, full.values, mixed.values));
}
