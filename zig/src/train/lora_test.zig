//! Tests of runs that train an adapter: learning, exact resume, threads, a mapped base, and everything that is refused.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const formats = @import("formats");
const data = @import("data");
const checkpoint = @import("checkpoint");
const Trainer = @import("trainer.zig").Trainer;
const Options = @import("trainer.zig").Options;
const LlmTrainingConfig = @import("config.zig").LlmTrainingConfig;
const LoraConfig = @import("lora.zig").LoraConfig;
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
    .learning_rate = 3e-2,
    .warmup_steps = 2,
    .decay_steps = 0,
    .checkpoint_interval = 2,
    .eval_interval = 0,
    .log_interval = 1,
    .threads = 2,
};

const lora: LoraConfig = .{ .settings = .{ .r = 4, .lora_alpha = 8, .target_modules = &.{ "q_proj", "v_proj", "down_proj", "embed_tokens" } } };

const Setup = rig.Setup(config, .{ .lora = lora }, .rows);

fn mustTrain(setup: Setup) !rig.Run {
    return rig.mustTrain(setup);
}

fn expectRefused(setup: Setup, err: anyerror, words: []const u8) !void {
    return rig.expectRefused(setup, err, words);
}

const Tmp = struct {
    dir: testing.TmpDir,
    buffer: [96]u8 = undefined,

    fn init() Tmp {
        return .{ .dir = testing.tmpDir(.{}) };
    }

    fn path(self: *Tmp, arena: std.mem.Allocator, name: []const u8) ![]u8 {
        return std.fmt.allocPrint(arena, ".zig-cache/tmp/{s}/{s}", .{ &self.dir.sub_path, name });
    }
};

test "an adapter learns a pattern while the base keeps its bits, with the same bits for any number of threads" {
    var one = config;
    one.threads = 1;
    var first = try mustTrain(.{ .config = one });
    defer first.deinit();

    try testing.expectEqual(9, first.losses.items.len);
    try testing.expect(first.losses.items[8] < 0.97 * first.losses.items[0]);
    for ([_]u32{ 2, 3 }) |threads| {
        var c = config;
        c.threads = threads;
        var other = try mustTrain(.{ .config = c });
        defer other.deinit();

        try testing.expectEqualSlices(f64, first.losses.items, other.losses.items);
        try testing.expectEqualSlices(f32, first.values, other.values);
    }
}

test "a LoRA run with dropout that was dropped and resumed ends with the bits of the unbroken one" {
    var arena: std.heap.ArenaAllocator = .init(gpa);
    defer arena.deinit();

    var tmp: Tmp = .init();
    defer tmp.dir.cleanup();

    var dropping = lora;
    dropping.settings.lora_dropout = 0.2;
    const dir = try tmp.path(arena.allocator(), "run");
    var unbroken = try mustTrain(.{ .options = .{ .lora = dropping } });
    defer unbroken.deinit();
    var first = try mustTrain(.{ .options = .{ .lora = dropping, .run_dir = dir, .base_name = "tiny" }, .abandon_after = 5 });
    defer first.deinit();

    try testing.expect(std.mem.endsWith(u8, first.last_path, "checkpoint-4"));
    var second = try mustTrain(.{ .options = .{ .lora = dropping, .run_dir = dir, .resume_from = first.last_path } });
    defer second.deinit();

    try testing.expectEqualSlices(f64, unbroken.losses.items[4..], second.losses.items);
    try testing.expectEqualSlices(f32, unbroken.values, second.values);
    var without = try mustTrain(.{});
    defer without.deinit();

    try testing.expect(without.losses.items[1] != unbroken.losses.items[1]);
}

test "a run goes on from an adapter folder, and sizes that are not its own are refused" {
    var arena: std.heap.ArenaAllocator = .init(gpa);
    defer arena.deinit();

    const a = arena.allocator();
    var tmp: Tmp = .init();
    defer tmp.dir.cleanup();

    var first = try mustTrain(.{ .options = .{ .lora = lora, .run_dir = try tmp.path(a, "one") } });
    defer first.deinit();

    var none = config;
    none.learning_rate = 1e-30;
    none.min_learning_rate = 0;
    none.weight_decay = 0;
    const continued: LoraConfig = .{ .adapter = first.last_path };
    var second = try mustTrain(.{ .config = none, .options = .{ .lora = continued } });
    defer second.deinit();

    try testing.expectEqualSlices(f32, first.values, second.values);
    try testing.expect(second.losses.items[0] < first.losses.items[1]);

    var diag: base.Diagnostic = .{};
    var asked = try LoraConfig.parse(a, try formats.json.parse(a, "{\"r\": 3}", .{}, &diag), &diag);
    asked.adapter = first.last_path;
    try expectRefused(.{ .options = .{ .lora = asked } }, error.InvalidConfiguration, "lora.r is 3, but the adapter");
    asked = try LoraConfig.parse(a, try formats.json.parse(a, "{\"target_modules\": [\"q_proj\"]}", .{}, &diag), &diag);
    asked.adapter = first.last_path;
    try expectRefused(.{ .options = .{ .lora = asked } }, error.InvalidConfiguration, "leaves out model.embed_tokens");
}

test "resuming with another base, another adapter, other dropout or another method is refused by name" {
    var arena: std.heap.ArenaAllocator = .init(gpa);
    defer arena.deinit();

    var tmp: Tmp = .init();
    defer tmp.dir.cleanup();

    const dir = try tmp.path(arena.allocator(), "run");
    var first = try mustTrain(.{ .options = .{ .lora = lora, .run_dir = dir }, .abandon_after = 5 });
    defer first.deinit();

    const options: Options = .{ .lora = lora, .run_dir = dir, .resume_from = first.last_path };
    try expectRefused(.{ .options = options, .model_seed = 6 }, error.ResumeMismatch, "trained on another base");
    try expectRefused(.{ .options = options, .model = .{ .vocab_size = 23, .hidden_size = 16, .intermediate_size = 24, .num_hidden_layers = 3, .num_attention_heads = 4, .num_key_value_heads = 2, .head_dim = 4 } }, error.AnotherBase, "num_hidden_layers is 2 there and 3");
    var other = options;
    other.lora.?.settings.r = 3;
    try expectRefused(.{ .options = other }, error.ResumeMismatch, "lora.r is 3, but the checkpoint");
    other = options;
    other.lora.?.settings.lora_dropout = 0.1;
    try expectRefused(.{ .options = other }, error.ResumeMismatch, "lora_dropout is 0.1");
    other = options;
    other.lora = null;
    try expectRefused(.{ .options = other }, error.ResumeMismatch, "method was lora");
}

test "settings that do not fit the model are refused before anything is made" {
    var bad = lora;
    bad.settings.r = 9;
    bad.settings.target_modules = &.{"v_proj"};
    try expectRefused(.{ .options = .{ .lora = bad } }, error.InvalidAdapter, "above the module's narrower side (8");
    bad = .{ .adapter = "nowhere" };
    try expectRefused(.{ .options = .{ .lora = bad } }, error.NotAnAdapter, "nowhere is no adapter");
}

test "over a mapped base a run has the bits of the one in memory, and each resumes the other's checkpoint" {
    var arena: std.heap.ArenaAllocator = .init(gpa);
    defer arena.deinit();

    const a = arena.allocator();
    var tmp: Tmp = .init();
    defer tmp.dir.cleanup();

    const folder = try tmp.path(a, "model");
    const dir = try tmp.path(a, "run");
    {
        var diag: base.Diagnostic = .{};
        var model = try checkpoint.initRandom(f32, gpa, model_config, 5);
        defer model.deinit(gpa);

        try checkpoint.saveModel(f32, gpa, testing.io, folder, &model, null, &diag);
    }
    var loaded = try mustTrain(.{});
    defer loaded.deinit();
    var mapped = try mustTrain(.{ .mapped = folder, .options = .{ .lora = lora, .run_dir = dir }, .abandon_after = 5 });
    defer mapped.deinit();

    try testing.expectEqualSlices(f64, loaded.losses.items[0..5], mapped.losses.items);
    var rest = try mustTrain(.{ .options = .{ .lora = lora, .run_dir = dir, .resume_from = mapped.last_path } });
    defer rest.deinit();

    try testing.expectEqualSlices(f32, loaded.values, rest.values);
    try expectRefused(.{ .mapped = folder, .options = .{} }, error.InvalidConfiguration, "cannot be trained");
}

test "two adapters are trained in turns on one base, each as if it were alone" {
    var alone: [2]rig.Run = undefined;
    var loras = [2]LoraConfig{ lora, lora };
    loras[1].settings.r = 2;
    loras[1].seed = 77;
    for (&alone, loras) |*run, l| run.* = try mustTrain(.{ .options = .{ .lora = l } });
    defer for (&alone) |*run| run.deinit();

    var diag: base.Diagnostic = .{};
    const rows = Rows.init();
    const dataset = rows.dataset();
    var model = try checkpoint.initRandom(f32, gpa, model_config, 5);
    defer model.deinit(gpa);

    const first = try Trainer(f32).init(gpa, testing.io, &model, &dataset, null, config, .{ .lora = loras[0] }, &diag);
    defer first.deinit();
    const second = try Trainer(f32).init(gpa, testing.io, &model, &dataset, null, config, .{ .lora = loras[1] }, &diag);
    defer second.deinit();

    while (try first.next(&diag)) |_| _ = try second.next(&diag);
    try testing.expectEqualSlices(f32, alone[0].values, first.trained.values);
    try testing.expectEqualSlices(f32, alone[1].values, second.trained.values);
}

test "every allocation failure while a LoRA run is made is survived" {
    try testing.checkAllAllocationFailures(gpa, struct {
        fn run(a: std.mem.Allocator) !void {
            var diag: base.Diagnostic = .{};
            const rows = Rows.init();
            const dataset = rows.dataset();
            var model = try checkpoint.initRandom(f32, a, model_config, 5);
            defer model.deinit(a);

            var alone = config;
            alone.threads = 1;
            const trainer = try Trainer(f32).init(a, testing.io, &model, &dataset, &dataset, alone, .{ .lora = lora, .base_name = "tiny" }, &diag);
            trainer.deinit();
        }
    }.run, .{});
}
