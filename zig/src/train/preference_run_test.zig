//! Tests of whole runs on pairs: learning, every kind of reference, exact resume, and everything that is refused.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const data = @import("data");
const checkpoint = @import("checkpoint");
const Trainer = @import("trainer.zig").Trainer;
const Options = @import("trainer.zig").Options;
const LlmTrainingConfig = @import("config.zig").LlmTrainingConfig;
const LoraConfig = @import("lora.zig").LoraConfig;
const rig = @import("test_rig.zig");
const Pairs = rig.Pairs;
const model_config = rig.model_config;
const report = @import("report.zig");
const preference = @import("preference.zig");
const preference_cache = @import("preference_cache.zig");
const DpoConfig = @import("preference_config.zig").DpoConfig;

const testing = std.testing;
const gpa = testing.allocator;

/// 5 pairs in micro-batches of 2, two to an update: the last of each epoch's two updates has one pair alone.
const config: LlmTrainingConfig = .{
    .epochs = 3,
    .batch_size = 2,
    .max_seq_len = 12,
    .grad_accum_steps = 2,
    .learning_rate = 1e-2,
    .lr_schedule = .constant,
    .warmup_steps = 0,
    .decay_steps = 0,
    .checkpoint_interval = 2,
    .eval_interval = 0,
    .log_interval = 1,
    .threads = 2,
};

const lora: LoraConfig = .{ .settings = .{ .r = 4, .lora_alpha = 8, .target_modules = &.{ "q_proj", "v_proj", "down_proj" } } };

const Setup = rig.Setup(config, .{ .dpo = .{} }, .pairs);

fn mustTrain(setup: Setup) !rig.Run {
    return rig.mustTrain(setup);
}

fn expectRefused(setup: Setup, err: anyerror, words: []const u8) !void {
    return rig.expectRefused(setup, err, words);
}

const Tmp = struct {
    dir: testing.TmpDir,
    arena: std.heap.ArenaAllocator,

    fn init() Tmp {
        return .{ .dir = testing.tmpDir(.{}), .arena = .init(gpa) };
    }

    fn deinit(self: *Tmp) void {
        self.dir.cleanup();
        self.arena.deinit();
    }

    fn path(self: *Tmp, name: []const u8) ![]u8 {
        return std.fmt.allocPrint(self.arena.allocator(), ".zig-cache/tmp/{s}/{s}", .{ &self.dir.sub_path, name });
    }
};

test "a run on pairs begins at ln 2 and ends with every pair the right way round, whole model or adapter" {
    for ([_]?LoraConfig{ null, lora }, [_][]const u8{ "starting_model", "adapter_off" }) |method, reference| {
        var faster = config;
        faster.epochs = 10;
        faster.learning_rate = if (method == null) 1e-2 else 5e-2;
        var run = try mustTrain(.{ .config = faster, .options = .{ .dpo = .{ .beta = 0.5 }, .lora = method }, .eval = true });
        defer run.deinit();

        try testing.expectEqualStrings(reference, run.reference);
        try testing.expectEqual(20, run.steps.items.len);
        const first = run.steps.items[0];
        try testing.expectEqual(@log(2.0), first.loss);
        try testing.expectEqual(0, first.preference.?.rewards_margins);
        try testing.expectEqual(0, first.preference.?.rewards_accuracies);
        try testing.expect(first.grad_norm > 0);
        const last = run.steps.items[19];
        try testing.expect(last.loss < 0.6);
        try testing.expectEqual(1, last.preference.?.rewards_accuracies);
        const m = run.evaluations.items[0];
        try testing.expectEqual(1, m.preference.?.rewards_accuracies);
        try testing.expect(m.loss < 0.6);
        try testing.expectApproxEqAbs(m.preference.?.rewards_margins, m.preference.?.rewards_chosen - m.preference.?.rewards_rejected, 1e-12);
    }
}

test "1, 2 and 5 threads train on pairs to the same bits" {
    for ([_]?LoraConfig{ null, lora }) |method| {
        var one = config;
        one.threads = 1;
        var expected = try mustTrain(.{ .config = one, .options = .{ .dpo = .{}, .lora = method } });
        defer expected.deinit();
        for ([_]u32{ 2, 5 }) |threads| {
            one.threads = threads;
            var run = try mustTrain(.{ .config = one, .options = .{ .dpo = .{}, .lora = method } });
            defer run.deinit();
            try testing.expectEqualSlices(f32, expected.values, run.values);
        }
    }
}

test "an update's loss is the mean of its micro-batches' means, however few pairs the last one has" {
    // One update an epoch over micro-batches of 2, 2 and 1 pairs; the same pairs one by one give the single losses.
    var whole = config;
    whole.shuffle = false;
    whole.grad_accum_steps = 3;
    whole.epochs = 2;
    const dpo: DpoConfig = .{ .beta = 0.5, .terms = &.{ .{ .type = .sigmoid }, .{ .type = .sft, .weight = 0.1 } } };
    var run = try mustTrain(.{ .config = whole, .options = .{ .dpo = dpo }, .eval = true });
    defer run.deinit();
    const second = run.steps.items[1];

    // The first update again, and the loss of each micro-batch after it from an evaluation's micro-batches.
    var one = whole;
    one.max_steps = 1;
    const pairs = Pairs.init();
    const dataset = pairs.dataset();
    var model = try checkpoint.initRandom(f32, gpa, model_config, 5);
    defer model.deinit(gpa);
    var diag: base.Diagnostic = .{};
    const trainer = try Trainer(f32).init(gpa, testing.io, &model, &dataset, null, one, .{ .dpo = dpo }, &diag);
    defer trainer.deinit();
    while (try trainer.next(&diag)) |_| {}
    var mean: f64 = 0;
    var of_pairs: f64 = 0;
    var metrics: preference.Metrics = .{};
    trainer.loader.beginEpoch(0);
    while (trainer.loader.next()) |micro| {
        const outcome = trainer.pairs.?.objective.run(&trainer.transformer, trainer.weights(.evaluation), null, .training, micro, 1);
        mean += outcome.loss / 3;
        of_pairs += outcome.loss * @as(f64, @floatFromInt(micro.pairs)) / 5;
        metrics.add(outcome.metrics, 1.0 / 3.0);
    }
    try testing.expectApproxEqAbs(mean, second.loss, 1e-12);
    try testing.expectApproxEqAbs(metrics.rewards_margins, second.preference.?.rewards_margins, 1e-12);
    try testing.expect(@abs(mean - of_pairs) > 1e-6);
    trainer.loader.beginEpoch(0);
    const evaluated = trainer.pairs.?.evaluate(&trainer.transformer, trainer.weights(.evaluation), &trainer.loader);
    try testing.expectApproxEqAbs(of_pairs, evaluated.loss, 1e-12);
}

test "a run on pairs dropped and resumed ends with the bits of the unbroken one, with every reference" {
    for ([_]?LoraConfig{ null, lora }) |method| for ([_]bool{ false, true }) |precompute| {
        var tmp = Tmp.init();
        defer tmp.deinit();
        const options: Options = .{ .dpo = .{ .beta = 0.5, .precompute_ref_log_probs = precompute }, .lora = method };
        var unbroken = try mustTrain(.{ .options = options, .eval = true });
        defer unbroken.deinit();

        const dir = try tmp.path("run");
        var resumed_options = options;
        resumed_options.run_dir = dir;
        var broken = try mustTrain(.{ .options = resumed_options, .eval = true, .abandon_after = 5 });
        defer broken.deinit();
        resumed_options.resume_from = try tmp.path("run/checkpoint-4");
        var resumed = try mustTrain(.{ .options = resumed_options, .eval = true });
        defer resumed.deinit();

        try testing.expectEqual(2, resumed.steps.items.len);
        for (unbroken.steps.items[4..], resumed.steps.items) |a, b| {
            try testing.expectEqual(a.loss, b.loss);
            try testing.expectEqual(a.preference.?, b.preference.?);
        }
        try testing.expectEqualSlices(f32, unbroken.values, resumed.values);
        try testing.expectEqual(unbroken.evaluations.items[0].loss, resumed.evaluations.items[0].loss);
        const kept = tmp.dir.dir.access(testing.io, "run/" ++ preference_cache.file_name, .{});
        if (precompute) try kept else try testing.expectError(error.FileNotFound, kept);
    };
}

test "sums asked in advance are those asked on the way, and a resumed run reads them instead of asking again" {
    var tmp = Tmp.init();
    defer tmp.deinit();
    const dir = try tmp.path("run");
    var on_the_way = try mustTrain(.{ .options = .{ .dpo = .{} } });
    defer on_the_way.deinit();
    const options: Options = .{ .dpo = .{ .precompute_ref_log_probs = true }, .run_dir = dir };
    var in_advance = try mustTrain(.{ .options = options, .abandon_after = 3 });
    defer in_advance.deinit();
    try testing.expectEqualStrings("starting_model (precomputed)", in_advance.reference);
    for (in_advance.steps.items, on_the_way.steps.items[0..3]) |a, b| try testing.expectEqual(b.loss, a.loss);

    // The kept sums, moved by 1 in favour of nobody but the record: a run that reads them shows it.
    var disk: base.storage.Disk = .init(testing.io);
    var diag: base.Diagnostic = .{};
    const arena = tmp.arena.allocator();
    const path = try tmp.path("run/" ++ preference_cache.file_name);
    const bytes = try disk.storage().readAlloc(arena, path);
    const name_at = std.mem.find(u8, bytes, "\"fingerprint\":\"").? + 15;
    const name = bytes[name_at..][0..std.mem.findScalar(u8, bytes[name_at..], '"').?];
    const sums = (try preference_cache.read(arena, disk.storage(), dir, name, 10, null)).?;
    for (sums.training, 0..) |*sum, i| sum.* -= if (i % 2 == 0) 1 else 0;
    try preference_cache.keep(gpa, disk.storage(), dir, name, sums, &diag);
    var again = options;
    again.resume_from = try tmp.path("run/checkpoint-2");
    var resumed = try mustTrain(.{ .options = again, .abandon_after = 3 });
    defer resumed.deinit();
    const plain = on_the_way.steps.items[2].preference.?;
    try testing.expectApproxEqAbs(plain.rewards_chosen + 0.1, resumed.steps.items[0].preference.?.rewards_chosen, 1e-5);
    try testing.expectApproxEqAbs(plain.rewards_rejected, resumed.steps.items[0].preference.?.rewards_rejected, 1e-5);
}

test "another model is the reference: of the same shape, of another one, and never of another vocabulary" {
    var tmp = Tmp.init();
    defer tmp.deinit();
    var diag: base.Diagnostic = .{};
    const same = try tmp.path("same");
    const small = try tmp.path("small");
    const foreign = try tmp.path("foreign");
    const short = try tmp.path("short");
    for ([_][]const u8{ same, small, foreign, short }, 0..) |path, i| {
        var other = model_config;
        if (i == 1) other.num_hidden_layers = 1;
        if (i == 2) other.vocab_size = 24;
        if (i == 3) other.max_position_embeddings = 8;
        var model = try checkpoint.initRandom(f32, gpa, other, 5);
        defer model.deinit(gpa);
        try checkpoint.saveModel(f32, gpa, testing.io, path, &model, null, &diag);
    }
    for ([_]?LoraConfig{ null, lora }) |method| {
        var itself = try mustTrain(.{ .options = .{ .dpo = .{ .ref_model = same }, .lora = method }, .abandon_after = 2 });
        defer itself.deinit();
        try testing.expectEqualStrings("ref_model", itself.reference);
        try testing.expectEqual(@log(2.0), itself.steps.items[0].loss);
    }
    var other = try mustTrain(.{ .options = .{ .dpo = .{ .ref_model = small } }, .abandon_after = 1 });
    defer other.deinit();
    try testing.expect(other.steps.items[0].loss != @log(2.0));
    var asked = try mustTrain(.{ .options = .{ .dpo = .{ .ref_model = small, .precompute_ref_log_probs = true } }, .abandon_after = 1 });
    defer asked.deinit();
    try testing.expectEqual(other.steps.items[0].loss, asked.steps.items[0].loss);
    try expectRefused(.{ .options = .{ .dpo = .{ .ref_model = foreign } } }, error.ReferenceMismatch, "has a vocabulary of 24 tokens, the model one of 23");
    try expectRefused(.{ .options = .{ .dpo = .{ .ref_model = short } } }, error.ReferenceMismatch, "sees 8 positions, but the rows have up to 9");
    // The same size, but not the same words.
    for ([_][]const u8{ "own", "same" }, [_][]const u8{ "a", "b" }) |folder, token| {
        try tmp.dir.dir.createDirPath(testing.io, folder);
        const json = try std.fmt.allocPrint(tmp.arena.allocator(), "{{\"model\": {{\"vocab\": {{\"{s}\": 0}}}}}}", .{token});
        try tmp.dir.dir.writeFile(testing.io, .{ .sub_path = try std.fmt.allocPrint(tmp.arena.allocator(), "{s}/tokenizer.json", .{folder}), .data = json });
    }
    const told: Options = .{ .dpo = .{ .ref_model = same }, .tokenizer_dir = try tmp.path("own") };
    try expectRefused(.{ .options = told }, error.ReferenceMismatch, "has another vocabulary than the model: \"a\" is not the same token");
    try expectRefused(.{ .options = .{ .dpo = .{ .ref_model = "nowhere" } } }, error.FileNotFound, "dpo.ref_model: there is no model at nowhere");
}

test "an adapter that a run goes on from is its own reference" {
    var tmp = Tmp.init();
    defer tmp.deinit();
    var first = try mustTrain(.{ .options = .{ .dpo = .{ .beta = 0.5 }, .lora = lora, .run_dir = try tmp.path("one") } });
    defer first.deinit();
    var next_phase = lora;
    next_phase.adapter = first.last_path;
    const options: Options = .{ .dpo = .{ .beta = 0.5 }, .lora = next_phase, .run_dir = try tmp.path("two") };
    var second = try mustTrain(.{ .options = options });
    defer second.deinit();
    try testing.expectEqualStrings("starting_adapter", second.reference);
    try testing.expectEqual(@log(2.0), second.steps.items[0].loss);
    // Resumed with another adapter to begin with, the reference would be another: refused.
    var other = options;
    other.resume_from = try tmp.path("two/checkpoint-2");
    other.lora.?.adapter = second.last_path;
    try expectRefused(.{ .options = other }, error.ResumeMismatch, "the reference has other numbers");
    other.lora = lora;
    try expectRefused(.{ .options = other }, error.ResumeMismatch, "the reference was starting_adapter when the checkpoint was saved and is adapter_off now");
}

test "what does not belong together is refused before the first update" {
    const rows: Options = .{};
    try expectRefused(.{ .options = rows }, error.WrongObjective, "pairs.bin holds pairs of answers");
    try expectRefused(.{ .data = .plain }, error.WrongObjective, "pairs.bin holds no pairs of answers");
    var smoothed = config;
    smoothed.label_smoothing = 0.1;
    try expectRefused(.{ .config = smoothed }, error.InvalidConfiguration, "label_smoothing is 0.1");
    var dropping = lora;
    dropping.settings.lora_dropout = 0.05;
    try expectRefused(.{ .options = .{ .dpo = .{}, .lora = dropping } }, error.InvalidConfiguration, "lora.lora_dropout is 0.05");
    var short = config;
    short.max_seq_len = 3;
    try expectRefused(.{ .config = short }, error.NoTrainingData, "pairs.bin gives no pair: the prompts of all 5 pairs fill max_seq_len (3)");
}

test "a run on pairs is not resumed as another one" {
    var tmp = Tmp.init();
    defer tmp.deinit();
    const options: Options = .{ .dpo = .{ .beta = 0.5 }, .run_dir = try tmp.path("run") };
    var run = try mustTrain(.{ .options = options, .abandon_after = 3 });
    defer run.deinit();
    var other = options;
    other.resume_from = try tmp.path("run/checkpoint-2");
    other.dpo.?.beta = 0.1;
    try expectRefused(.{ .options = other }, error.ResumeMismatch, "dpo.beta is not what it was");
    other.dpo.?.beta = 0.5;
    // The checkpoint's own weights as the model would silently be another reference.
    try expectRefused(.{ .options = other, .model_seed = 6 }, error.ResumeMismatch, "the reference has other numbers");
    var resumed = try mustTrain(.{ .options = other });
    defer resumed.deinit();
    try testing.expectEqual(4, resumed.steps.items.len);
}

test "a stop while the reference is being asked ends the run without an update" {
    var run = try mustTrain(.{ .options = .{ .dpo = .{ .precompute_ref_log_probs = true } }, .stop_after = 0 });
    defer run.deinit();
    try testing.expectEqual(0, run.steps.items.len);
}

test "over a mapped base pairs give the bits of the one in memory, asked each time or in advance" {
    var tmp = Tmp.init();
    defer tmp.deinit();
    const folder = try tmp.path("model");
    {
        var diag: base.Diagnostic = .{};
        var model = try checkpoint.initRandom(f32, gpa, model_config, 5);
        defer model.deinit(gpa);
        try checkpoint.saveModel(f32, gpa, testing.io, folder, &model, null, &diag);
    }
    for ([_]bool{ false, true }) |precompute| {
        const options: Options = .{ .dpo = .{ .precompute_ref_log_probs = precompute }, .lora = lora };
        var loaded = try mustTrain(.{ .options = options, .eval = true });
        defer loaded.deinit();
        var mapped = try mustTrain(.{ .options = options, .mapped = folder, .eval = true });
        defer mapped.deinit();
        try testing.expectEqualSlices(f32, loaded.values, mapped.values);
        try testing.expectEqual(loaded.evaluations.items[0].preference.?, mapped.evaluations.items[0].preference.?);
    }
}

test "every allocation failure of a run on pairs is survived, up to its first update" {
    try testing.checkAllAllocationFailures(gpa, struct {
        fn run(a: std.mem.Allocator) !void {
            var diag: base.Diagnostic = .{};
            const pairs = Pairs.init();
            const dataset = pairs.dataset();
            var model = try checkpoint.initRandom(f32, a, model_config, 5);
            defer model.deinit(a);

            var alone = config;
            alone.threads = 1;
            alone.max_steps = 1;
            const trainer = try Trainer(f32).init(a, testing.io, &model, &dataset, &dataset, alone, .{ .dpo = .{ .precompute_ref_log_probs = true } }, &diag);
            defer trainer.deinit();
            _ = try trainer.next(&diag);
        }
    }.run, .{});
}

test "mixed precision: the first loss is ln 2 here too" {
    var low = config;
    low.mixed_precision = true;
    for ([_]?LoraConfig{ null, lora }) |method| {
        var run = try mustTrain(.{ .config = low, .options = .{ .dpo = .{}, .lora = method }, .abandon_after = 2 });
        defer run.deinit();
        try testing.expectEqual(@log(2.0), run.steps.items[0].loss);
    }
}
