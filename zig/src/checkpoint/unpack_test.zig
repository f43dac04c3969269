//! Folders out of GGUF files: the same numbers, the same blocks, in one file or in several, or nothing at all.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const tensor = @import("tensor");
const formats = @import("formats");
const initialize = @import("initialize.zig");
const model_file = @import("model_file.zig");
const unpack_file = @import("unpack.zig");
const gguf_export = formats.gguf_export;
const MemoryDisk = base.storage.MemoryDisk;

const testing = std.testing;
const gpa = testing.allocator;

const dense: arch.ModelConfig = .{
    .vocab_size = 40,
    .hidden_size = 32,
    .intermediate_size = 64,
    .num_hidden_layers = 2,
    .num_attention_heads = 4,
    .num_key_value_heads = 2,
    .head_dim = 8,
    .qkv_bias = true,
    .attention_output_bias = true,
    .eos_token_id = 3,
};

const mixture: arch.ModelConfig = .{
    .model_type = .gpt_oss,
    .vocab_size = 40,
    .hidden_size = 64,
    .intermediate_size = 32,
    .num_hidden_layers = 2,
    .num_attention_heads = 4,
    .num_key_value_heads = 2,
    .head_dim = 16,
    .max_position_embeddings = 256,
    .tie_word_embeddings = false,
    .qkv_bias = true,
    .attention_output_bias = true,
    .attention_sinks = true,
    .sliding_window = 8,
    .windowed_layers = .even,
    .num_local_experts = 3,
    .num_experts_per_tok = 2,
    .swiglu_limit = 7,
    .rope_theta = 150_000,
    .rope_scaling = .{ .yarn = .{ .factor = 32, .original_max_position_embeddings = 4096, .truncate = false } },
};

const Rig = struct {
    disk: MemoryDisk,
    diag: base.Diagnostic = .{},

    fn export_(self: *Rig, config: arch.ModelConfig, flat: []const f32, dtype: tensor.DType, path: []const u8) !void {
        _ = try gguf_export.run(gpa, self.disk.storage(), .{ .source = .{ .weights = .{ .config = config, .flat = flat } }, .out_path = path, .dtype = dtype, .tokenizer = .none }, null, &self.diag);
    }

    fn unpack(self: *Rig, path: []const u8, out: []const u8, options: unpack_file.Options) !unpack_file.Report {
        return unpack_file.unpackOn(gpa, self.disk.storage(), path, out, options, null, &self.diag) catch |err| {
            std.debug.print("{s}\n", .{self.diag.text()});
            return err;
        };
    }
};

fn floats(config: arch.ModelConfig) ![]f32 {
    var layout = try arch.Layout.init(gpa, config);
    defer layout.deinit();

    const flat = try gpa.alloc(f32, layout.total);
    var prng: std.Random.DefaultPrng = .init(layout.total);
    for (flat) |*x| x.* = prng.random().floatNorm(f32);
    return flat;
}

test "a dense model comes back with its bits, in one file or in several" {
    for ([_]arch.ModelType{ .llama, .qwen3 }) |kind| {
        var config = dense;
        config.model_type = kind;
        config.qk_norm = kind == .qwen3;
        if (kind == .qwen3) {
            config.qkv_bias = false;
            config.attention_output_bias = false;
        }
        const flat = try floats(config);
        defer gpa.free(flat);

        var rig: Rig = .{ .disk = try .init(gpa) };
        defer rig.disk.deinit();

        try rig.export_(config, flat, .f32, "m.gguf");
        for ([_]u64{ 1 << 30, 6000 }, [_][]const u8{ "one", "several" }) |limit, name| {
            const report = try rig.unpack("m.gguf", name, .{ .dtype = .f32, .shard_bytes = limit });
            try testing.expectEqual(limit > 10_000, report.files == 1);
            var back = try model_file.loadModelOn(f32, gpa, rig.disk.storage(), name, &rig.diag);
            defer back.deinit(gpa);
            try testing.expectEqualSlices(f32, flat, back.weights);
        }
        // Numbers that bf16 cannot hold stay f32, whatever is asked for.
        _ = try rig.unpack("m.gguf", "narrow", .{});
        var back = try model_file.loadModelOn(f32, gpa, rig.disk.storage(), "narrow", &rig.diag);
        defer back.deinit(gpa);
        try testing.expectEqualSlices(f32, flat, back.weights);
    }
}

test "experts in blocks go into two tensors each, and come out of them as the same file" {
    const flat = try floats(mixture);
    defer gpa.free(flat);

    var rig: Rig = .{ .disk = try .init(gpa) };
    defer rig.disk.deinit();

    const s = rig.disk.storage();
    try rig.export_(mixture, flat, .mxfp4, "first.gguf");
    const report = try rig.unpack("first.gguf", "m", .{ .dtype = .f32 });
    try testing.expectEqual(4, report.blocks);
    _ = try gguf_export.run(gpa, s, .{ .source = .{ .folder = "m" }, .out_path = "second.gguf", .dtype = .f32, .tokenizer = .none, .name = "abi_train" }, null, &rig.diag);
    const raw = try s.readAlloc(gpa, "second.gguf");
    defer gpa.free(raw);
    var first = try s.map("first.gguf");
    defer first.unmap();
    var a = try formats.gguf_import.Import.open(gpa, first.bytes, &rig.diag);
    defer a.deinit();
    var b = try formats.gguf_import.Import.open(gpa, raw, &rig.diag);
    defer b.deinit();
    try testing.expectEqualDeep(a.config, b.config);
    for (a.layout.parameters) |*p| if (p.role.isExpertWeight()) for (formats.name_map.parts(p.role)) |part|
        try testing.expectEqualSlices(u8, a.partOf(p, part).data, b.partOf(p, part).data);

    const config_text = try s.readAlloc(gpa, "m/config.json");
    defer gpa.free(config_text);
    try testing.expect(std.mem.find(u8, config_text, "\"quant_method\": \"mxfp4\"") != null);
}

test "experts stored as floats or in other blocks are turned, and load as what they were" {
    const flat = try floats(mixture);
    defer gpa.free(flat);

    var rig: Rig = .{ .disk = try .init(gpa) };
    defer rig.disk.deinit();

    try rig.export_(mixture, flat, .f32, "m.gguf");
    const report = try rig.unpack("m.gguf", "m", .{ .dtype = .f32 });
    try testing.expectEqual(0, report.blocks);
    var shards = try model_file.Shards.open(gpa, rig.disk.storage(), "m", &rig.diag);
    defer shards.close(gpa);
    var layout = try arch.Layout.init(gpa, mixture);
    defer layout.deinit();
    for (layout.parameters) |*p| {
        const found = shards.list.items[0].file.find(p.name).?;
        try testing.expectEqualSlices(u8, std.mem.sliceAsBytes(p.sliceConst(f32, flat)), found.bytes);
    }
    try rig.export_(mixture, flat, .q8_0, "q8.gguf");
    _ = try rig.unpack("q8.gguf", "q8", .{ .dtype = .f16 });
}

test "a folder that exists, a scale that is none and a full disk leave nothing behind" {
    const flat = try floats(mixture);
    defer gpa.free(flat);

    var rig: Rig = .{ .disk = try .init(gpa) };
    defer rig.disk.deinit();

    const s = rig.disk.storage();
    try rig.export_(mixture, flat, .mxfp4, "m.gguf");
    try s.ensureFolder("there");
    try testing.expectError(error.AlreadyExists, unpack_file.unpackOn(gpa, s, "m.gguf", "there", .{}, null, &rig.diag));
    try testing.expect(std.mem.find(u8, rig.diag.text(), "Name a new folder") != null);
    try testing.expectError(error.NotEnoughSpace, unpack_file.unpackOn(gpa, s, "m.gguf", "m", .{}, 1000, &rig.diag));
    const raw = try s.readAlloc(gpa, "m.gguf");
    defer gpa.free(raw);
    {
        var import = try formats.gguf_import.Import.open(gpa, raw, &rig.diag);
        defer import.deinit();
        const down = import.tensorOf(import.layout.get(1, .experts_down).?);
        raw[@intFromPtr(down.data.ptr) - @intFromPtr(raw.ptr) + 17 * 5] = 255;
    }
    try base.storage.writeFile(gpa, s, "bad.gguf", raw);
    try testing.expectError(error.NonFiniteWeights, unpack_file.unpackOn(gpa, s, "bad.gguf", "m", .{}, null, &rig.diag));
    try testing.expect(std.mem.find(u8, rig.diag.text(), "model.layers.1.mlp.experts.down_proj") != null);
    try testing.expectEqual(null, try s.kind("m"));
}
