//! Tests of adapters on disk: round trip, foreign and damaged folders by name, first values, merging.

const std = @import("std");
const base = @import("base");
const formats = @import("formats");
const arch = @import("arch");
const adapter_file = @import("adapter.zig");
const merge = @import("merge.zig");
const model_file = @import("model_file.zig");
const save_file = @import("save.zig");
const store = @import("store.zig");
const initRandom = @import("initialize.zig").initRandom;
const Diagnostic = base.Diagnostic;
const safetensors = formats.safetensors;
const testing = std.testing;
const gpa = testing.allocator;

const config: arch.ModelConfig = .{
    .vocab_size = 24,
    .hidden_size = 16,
    .intermediate_size = 20,
    .num_hidden_layers = 2,
    .num_attention_heads = 4,
    .num_key_value_heads = 2,
    .head_dim = 4,
};

const settings: arch.LoraSettings = .{
    .r = 3,
    .lora_alpha = 6,
    .target_modules = &.{ "q_proj", "down_proj", "embed_tokens" },
    .rank_pattern = &.{.{ .name = "layers.1.self_attn.q_proj", .value = 2 }},
};

const Rig = struct {
    model: model_file.LoadedModel(f32),
    adapter: adapter_file.LoadedAdapter(f32),
    tmp: testing.TmpDir,
    root: []u8,

    fn init() !Rig {
        var diag: Diagnostic = .{};
        var model = try initRandom(f32, gpa, config, 3);
        errdefer model.deinit(gpa);

        var adapter = try adapter_file.initAdapter(f32, gpa, &model.layout, settings, 9, &diag);
        errdefer adapter.deinit(gpa);

        var prng: base.Prng = .init(4);
        for (adapter.values) |*v| v.* = @floatCast(0.1 * prng.normal());
        const tmp = testing.tmpDir(.{});
        return .{ .model = model, .adapter = adapter, .tmp = tmp, .root = try std.fmt.allocPrint(gpa, ".zig-cache/tmp/{s}", .{tmp.sub_path}) };
    }

    fn deinit(self: *Rig) void {
        self.model.deinit(gpa);
        self.adapter.deinit(gpa);
        self.tmp.cleanup();
        gpa.free(self.root);
    }

    fn base_model(self: *const Rig) adapter_file.BaseModel(f32) {
        return .{ .config = self.model.config, .layout = &self.model.layout, .weights = self.model.weights };
    }

    fn save(self: *Rig, name: []const u8) ![]u8 {
        var diag: Diagnostic = .{};
        const path = try base.storage.join(gpa, self.root, name);
        errdefer gpa.free(path);

        try adapter_file.saveAdapter(f32, gpa, testing.io, path, self.model.config, .{
            .settings = self.adapter.settings,
            .base_name = "tiny",
            .layout = &self.adapter.layout,
            .values = self.adapter.values,
        }, null, &diag);
        return path;
    }

    /// Loading `path` must fail with these words.
    fn expectRefused(self: *const Rig, path: []const u8, err: anyerror, words: []const u8) !void {
        var diag: Diagnostic = .{};
        try testing.expectError(err, adapter_file.loadAdapter(f32, gpa, testing.io, path, self.base_model(), &diag));
        if (std.mem.find(u8, diag.text(), words) == null) {
            std.debug.print("\"{s}\" is not in \"{s}\"\n", .{ words, diag.text() });
            return error.WrongWords;
        }
    }
};

fn replaceInFile(path: []const u8, name: []const u8, old: []const u8, new: []const u8) !void {
    const file = try base.storage.join(gpa, path, name);
    defer gpa.free(file);

    const text = try std.Io.Dir.cwd().readFileAlloc(testing.io, file, gpa, .limited(1 << 20));
    defer gpa.free(text);

    const changed = try std.mem.replaceOwned(u8, gpa, text, old, new);
    defer gpa.free(changed);

    try testing.expect(!std.mem.eql(u8, text, changed));
    try std.Io.Dir.cwd().writeFile(testing.io, .{ .sub_path = file, .data = changed });
}

test "a saved adapter loads with the same bits and settings, and an existing folder is left alone" {
    var rig = try Rig.init();
    defer rig.deinit();

    const path = try rig.save("adapter");
    defer gpa.free(path);

    var diag: Diagnostic = .{};
    var back = try adapter_file.loadAdapter(f32, gpa, testing.io, path, rig.base_model(), &diag);
    defer back.deinit(gpa);

    try testing.expectEqualSlices(f32, rig.adapter.values, back.values);
    try testing.expect(rig.adapter.layout.sameAs(&back.layout));
    try testing.expectEqualStrings("tiny", back.base_name.?);
    try testing.expectError(error.AlreadyExists, rig.save("adapter"));
}

test "adapters of another base, with half a pair, strange tensors or a wrong rank are refused by name" {
    var rig = try Rig.init();
    defer rig.deinit();

    const path = try rig.save("adapter");
    defer gpa.free(path);

    const tensors = "adapter_model.safetensors";
    const names = [_][3][]const u8{
        .{ "q_proj.lora_B", "q_proj.lora_X", "half an adapter" },
        .{ "q_proj.lora_", "q_proj.xora_", "says that model.layers.0.self_attn.q_proj has an adapter" },
    };
    for (names) |case| {
        try replaceInFile(path, tensors, case[0], case[1]);
        try rig.expectRefused(path, error.MissingTensor, case[2]);
        try replaceInFile(path, tensors, case[1], case[0]);
    }
    try replaceInFile(path, "adapter_config.json", "\"r\": 3", "\"r\": 4");
    try rig.expectRefused(path, error.WrongShape, "with rank 4 asks for { 4, 24 }");
    try replaceInFile(path, "adapter_config.json", "\"r\": 4", "\"r\": 0");
    try rig.expectRefused(path, error.InvalidAdapterConfig, "r is 0");
    try replaceInFile(path, "adapter_config.json", "\"r\": 0", "\"r\": 17");
    try rig.expectRefused(path, error.InvalidAdapter, "above the module's narrower side");
    try replaceInFile(path, "adapter_config.json", "\"r\": 17", "\"r\": 3");
    try replaceInFile(path, "adapter_config.json", "\"q_proj\",", "");
    try rig.expectRefused(path, error.InvalidAdapter, "rank_pattern names");
    try replaceInFile(path, "adapter_config.json", "\"down_proj\"", "\"q_proj\", \"down_proj\", \"up_proj\"");
    try rig.expectRefused(path, error.MissingTensor, "mlp.up_proj has an adapter");
    try replaceInFile(path, "adapter_config.json", ", \"down_proj\", \"up_proj\"", "");
    try rig.expectRefused(path, error.UnexpectedTensor, "does not name its module");
    try replaceInFile(path, "config.json", "\"intermediate_size\": 20", "\"intermediate_size\": 28");
    try rig.expectRefused(path, error.AnotherBase, "intermediate_size is 28 there and 20 in this model");
    try rig.expectRefused(rig.root, error.NotAnAdapter, "is no adapter");
}

test "a first adapter changes nothing, and its values depend on seed and name alone" {
    var diag: Diagnostic = .{};
    var model = try initRandom(f32, gpa, config, 3);
    defer model.deinit(gpa);
    var small = try adapter_file.initAdapter(f32, gpa, &model.layout, .{ .r = 2, .target_modules = &.{"v_proj"} }, 7, &diag);
    defer small.deinit(gpa);
    var large = try adapter_file.initAdapter(f64, gpa, &model.layout, .{ .r = 2, .target_modules = &.{ "q_proj", "v_proj", "embed_tokens" } }, 7, &diag);
    defer large.deinit(gpa);

    const v = large.layout.get(1, .v_proj).?;
    const own = small.layout.get(1, .v_proj).?;
    for (v.a.sliceConst(f64, large.values), own.a.sliceConst(f32, small.values)) |x, y| {
        try testing.expectEqual(@as(f32, @floatCast(x)), y);
        try testing.expect(@abs(y) <= 0.25); // 1/√16
    }
    for (large.layout.modules) |m| {
        const zero = if (m.target == .embed_tokens) m.a else m.b;
        const drawn = if (m.target == .embed_tokens) m.b else m.a;
        for (zero.sliceConst(f64, large.values)) |x| try testing.expectEqual(0, x);
        try testing.expect(drawn.sliceConst(f64, large.values)[0] != 0);
    }
}

test "merging adds s·B·A, and unties a tied model whose embedding has an adapter" {
    var rig = try Rig.init();
    defer rig.deinit();

    var before = try initRandom(f32, gpa, config, 3);
    defer before.deinit(gpa);

    try testing.expect(before.config.tie_word_embeddings);
    try merge.mergeInto(f32, gpa, &rig.model, &rig.adapter);
    try testing.expect(!rig.model.config.tie_word_embeddings);
    const head = rig.model.layout.get(null, .output).?.sliceConst(f32, rig.model.weights);
    try testing.expectEqualSlices(f32, before.layout.head().sliceConst(f32, before.weights), head);
    for (before.layout.parameters) |p| {
        const old = p.sliceConst(f32, before.weights);
        const new = rig.model.layout.get(p.layer, p.role).?.sliceConst(f32, rig.model.weights);
        const m = for (rig.adapter.layout.modules) |*m| {
            if (m.target.role() == p.role and m.layer == p.layer) break m;
        } else {
            try testing.expectEqualSlices(f32, old, new);
            continue;
        };
        const a = m.a.sliceConst(f32, rig.adapter.values);
        const b = m.b.sliceConst(f32, rig.adapter.values);
        for (0..m.out) |o| for (0..m.in) |i| {
            var sum: f64 = 0;
            for (0..m.rank) |r| sum += @as(f64, b[o * m.rank + r]) * a[r * m.in + i];
            const at = if (m.target == .embed_tokens) i * m.out + o else o * m.in + i;
            try testing.expectEqual(@as(f32, @floatCast(@as(f64, old[at]) + m.scale * sum)), new[at]);
        };
    }
}

test "every allocation failure while making, reading and merging an adapter is survived" {
    var rig = try Rig.init();
    defer rig.deinit();

    const path = try rig.save("adapter");
    defer gpa.free(path);

    try testing.checkAllAllocationFailures(gpa, struct {
        fn run(a: std.mem.Allocator, folder: []const u8) !void {
            var diag: Diagnostic = .{};
            var model = try initRandom(f32, a, config, 3);
            defer model.deinit(a);
            var made = try adapter_file.initAdapter(f32, a, &model.layout, settings, 1, &diag);
            defer made.deinit(a);
            var read = try adapter_file.loadAdapter(f32, a, testing.io, folder, .{ .config = config, .layout = &model.layout, .weights = model.weights }, &diag);
            defer read.deinit(a);

            try merge.mergeInto(f32, a, &model, &read);
        }
    }.run, .{path});
}

test "a checkpoint of an adapter is found, read back with its moments, and noticed when a bit of it has changed" {
    var rig = try Rig.init();
    defer rig.deinit();

    var diag: Diagnostic = .{};
    const moments = try gpa.dupe(f32, rig.adapter.values);
    defer gpa.free(moments);

    const path = try save_file.save(f32, gpa, testing.io, .{
        .run_dir = rig.root,
        .step = 3,
        .config = config,
        .parameters = rig.adapter.layout.parameters,
        .weights = rig.adapter.values,
        .adapter = .{ .settings = rig.adapter.settings },
        .optimizer = .{ .first_moment = moments, .second_moment = moments },
        .state_json = "{}",
    }, &diag);
    defer gpa.free(path);

    const found = (try store.latest(gpa, testing.io, rig.root, &diag)).?;
    defer gpa.free(found.path);

    try testing.expectEqual(3, found.step);
    var back = try adapter_file.loadAdapter(f32, gpa, testing.io, path, rig.base_model(), &diag);
    defer back.deinit(gpa);

    try testing.expectEqualSlices(f32, rig.adapter.values, back.values);
    const read = [2][]f32{ try gpa.alloc(f32, moments.len), try gpa.alloc(f32, moments.len) };
    defer for (read) |buffer| gpa.free(buffer);

    try store.loadOptimizer(f32, gpa, testing.io, path, back.layout.parameters, read[0], read[1], &diag);
    for (read) |buffer| try testing.expectEqualSlices(f32, moments, buffer);

    try replaceInFile(path, "adapter_config.json", "\"lora_alpha\": 6", "\"lora_alpha\": 7");
    try rig.expectRefused(path, error.DamagedCheckpoint, "adapter_config.json fails its checksum");
    try testing.expectError(error.AllCheckpointsDamaged, store.latest(gpa, testing.io, rig.root, &diag));
}

test "the embeddings PEFT keeps beside an adapter must be the base's" {
    var rig = try Rig.init();
    defer rig.deinit();

    const path = try rig.save("adapter");
    defer gpa.free(path);

    // The adapter's tensors, then the base's embedding under the name PEFT gives it.
    const embedding = rig.model.layout.get(null, .token_embedding).?;
    var entries: std.ArrayList(safetensors.Entry) = .empty;
    defer entries.deinit(gpa);

    for (rig.adapter.layout.parameters) |*p| try entries.append(gpa, .{ .name = p.name, .dtype = .f32, .shape = p.dims() });
    try entries.append(gpa, .{ .name = "base_model.model.model.embed_tokens.base_layer.weight", .dtype = .f32, .shape = embedding.dims() });
    var text: std.Io.Writer.Allocating = .init(gpa);
    defer text.deinit();

    var writer = try safetensors.Writer.begin(gpa, &text.writer, entries.items, &.{});
    for (rig.adapter.layout.parameters) |p| try writer.writeFloats(f32, p.sliceConst(f32, rig.adapter.values));
    try writer.writeFloats(f32, embedding.sliceConst(f32, rig.model.weights));
    writer.finish();
    const file = try base.storage.join(gpa, path, "adapter_model.safetensors");
    defer gpa.free(file);

    try std.Io.Dir.cwd().writeFile(testing.io, .{ .sub_path = file, .data = text.written() });
    var diag: Diagnostic = .{};
    var back = try adapter_file.loadAdapter(f32, gpa, testing.io, path, rig.base_model(), &diag);
    back.deinit(gpa);
    rig.model.weights[embedding.offset + 5] += 1;
    try rig.expectRefused(path, error.AnotherBase, "at element 5, where this model has");
}

test "an adapter's folder given as a model is told from one without weights" {
    var rig = try Rig.init();
    defer rig.deinit();

    const path = try rig.save("adapter");
    defer gpa.free(path);

    var diag: Diagnostic = .{};
    try testing.expectError(error.NotAModel, model_file.loadModel(f32, gpa, testing.io, path, &diag));
    try testing.expect(std.mem.find(u8, diag.text(), "It is a LoRA adapter: give the folder of its base model") != null);
}
