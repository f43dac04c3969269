//! Tests of loading: every way in which files and configuration can disagree, and every way in which they agree.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const formats = @import("formats");
const tensor = @import("tensor");
const model_file = @import("model_file.zig");
const initialize = @import("initialize.zig");
const testing = std.testing;
const Diagnostic = base.Diagnostic;
const safetensors = formats.safetensors;

pub const small: arch.ModelConfig = .{
    .vocab_size = 11,
    .hidden_size = 8,
    .intermediate_size = 12,
    .num_hidden_layers = 2,
    .num_attention_heads = 2,
    .num_key_value_heads = 1,
    .head_dim = 4,
    .tie_word_embeddings = false,
};

pub const Part = struct {
    name: []const u8,
    dtype: tensor.DType,
    shape: []const usize,
    /// Zeros when null.
    values: ?[]const f32 = null,
};

/// Writes one safetensors file of these tensors; values are stored as `dtype`.
pub fn writeParts(s: base.storage.Storage, path: []const u8, parts: []const Part) !void {
    const gpa = testing.allocator;
    const entries = try gpa.alloc(safetensors.Entry, parts.len);
    defer gpa.free(entries);

    for (entries, parts) |*e, p| e.* = .{ .name = p.name, .dtype = p.dtype, .shape = p.shape };
    var out: std.Io.Writer.Allocating = .init(gpa);
    defer out.deinit();

    var writer = try safetensors.Writer.begin(gpa, &out.writer, entries, &.{});
    for (parts) |p| {
        const count = try base.checked.product(usize, p.shape);
        for (0..count) |i| {
            const v: f32 = if (p.values) |values| values[i] else 0;
            switch (p.dtype) {
                .f32 => try writer.writeBytes(std.mem.asBytes(&v)),
                .f64 => try writer.writeBytes(std.mem.asBytes(&@as(f64, v))),
                .f16 => try writer.writeBytes(std.mem.asBytes(&tensor.convert.f32ToF16(v))),
                .bf16 => try writer.writeBytes(std.mem.asBytes(&tensor.convert.f32ToBf16(v))),
                .u8 => try writer.writeBytes(&.{@as(u8, @round(v))}),
                else => try writer.writeBytes(@as([8]u8, @splat(0))[0..p.dtype.blockBytes()]),
            }
        }
    }
    writer.finish();
    try base.storage.writeFile(gpa, s, path, out.written());
}

fn writeConfig(s: base.storage.Storage, path: []const u8, config: arch.ModelConfig) !void {
    var out: std.Io.Writer.Allocating = .init(testing.allocator);
    defer out.deinit();

    try formats.hf_config.write(&out.writer, config, .{});
    try base.storage.writeFile(testing.allocator, s, path, out.written());
}

pub const Rig = struct {
    disk: *base.storage.MemoryDisk,
    model: model_file.LoadedModel(f32),
    parts: std.ArrayList(Part),
    diag: Diagnostic = .{},

    pub fn init(config: arch.ModelConfig, dtype: tensor.DType) !Rig {
        const disk = try testing.allocator.create(base.storage.MemoryDisk);
        disk.* = try .init(testing.allocator);
        var self: Rig = .{ .disk = disk, .model = try initialize.initRandom(f32, testing.allocator, config, 3), .parts = .empty };
        // Values every type here can hold.
        for (self.model.weights, 0..) |*w, i| w.* = @as(f32, @floatFromInt(i % 100)) * 0.5 - 10;
        for (self.model.layout.parameters) |*p| try self.parts.append(testing.allocator, .{
            .name = p.name,
            .dtype = dtype,
            .shape = p.dims(),
            .values = p.sliceConst(f32, self.model.weights),
        });
        try disk.storage().ensureFolder("m");
        try writeConfig(disk.storage(), "m/config.json", config);
        return self;
    }

    pub fn deinit(self: *Rig) void {
        self.parts.deinit(testing.allocator);
        self.model.deinit(testing.allocator);
        self.disk.deinit();
        testing.allocator.destroy(self.disk);
    }

    pub fn load(self: *Rig, comptime T: type) !model_file.LoadedModel(T) {
        return model_file.loadModelOn(T, testing.allocator, self.disk.storage(), "m", &self.diag);
    }

    fn expectLoads(self: *Rig) !void {
        inline for (.{ f32, f64 }) |T| {
            var loaded = self.load(T) catch |err| {
                std.debug.print("{s}\n", .{self.diag.text()});
                return err;
            };
            defer loaded.deinit(testing.allocator);

            try testing.expectEqual(self.model.weights.len, loaded.weights.len);
            for (self.model.weights, loaded.weights) |a, b| try testing.expectEqual(@as(T, a), b);
        }
    }

    pub fn expectRefused(self: *Rig, expected: model_file.Error, wanted: []const u8) !void {
        try testing.expectError(expected, self.load(f32));
        testing.expect(std.mem.find(u8, self.diag.text(), wanted) != null) catch |err| {
            std.debug.print("wanted \"{s}\" in: {s}\n", .{ wanted, self.diag.text() });
            return err;
        };
    }
};

test "a folder loads from every float type, as f32 and as f64" {
    for ([_]tensor.DType{ .f32, .f64, .f16, .bf16 }) |dtype| {
        var rig = try Rig.init(small, dtype);
        defer rig.deinit();

        try writeParts(rig.disk.storage(), "m/model.safetensors", rig.parts.items);
        try rig.expectLoads();
    }
}

test "a sharded model loads, and each disagreement with its index is refused" {
    var rig = try Rig.init(small, .f32);
    defer rig.deinit();

    const s = rig.disk.storage();
    const half = rig.parts.items.len / 2;
    try writeParts(s, "m/model-00001-of-00002.safetensors", rig.parts.items[0..half]);
    try writeParts(s, "m/model-00002-of-00002.safetensors", rig.parts.items[half..]);
    const Change = enum { none, absent_shard, absent_tensor, unlisted, wrong_shard };
    for (std.enums.values(Change)) |change| {
        var text: std.ArrayList(u8) = .empty;
        defer text.deinit(testing.allocator);

        try text.appendSlice(testing.allocator, "{\"weight_map\":{");
        for (rig.parts.items, 0..) |p, i| {
            if (change == .unlisted and i == 1) continue;
            var shard: usize = if (i < half) 1 else 2;
            if (change == .wrong_shard and i == 1) shard = 2;
            if (change == .absent_shard and i == 1) shard = 3;
            if (i > 0) try text.append(testing.allocator, ',');
            try text.print(testing.allocator, "\"{s}\":\"model-{d:0>5}-of-00002.safetensors\"", .{ p.name, shard });
        }
        if (change == .absent_tensor) try text.appendSlice(testing.allocator, ",\"extra\":\"model-00001-of-00002.safetensors\"");
        try text.appendSlice(testing.allocator, "}}");
        try base.storage.writeFile(testing.allocator, s, "m/model.safetensors.index.json", text.items);
        switch (change) {
            .none => try rig.expectLoads(),
            .absent_shard => try rig.expectRefused(error.MissingShard, "model-00003-of-00002.safetensors"),
            .absent_tensor => try rig.expectRefused(error.MissingTensor, "\"extra\""),
            .unlisted => try rig.expectRefused(error.UnexpectedTensor, rig.parts.items[1].name),
            .wrong_shard => try rig.expectRefused(error.MissingTensor, rig.parts.items[1].name),
        }
    }
}

test "missing, extra, misshapen and non-float tensors are refused by name" {
    const Case = struct { model_file.Error, []const u8 };
    const cases = [_]Case{
        .{ error.MissingTensor, "model.norm.weight" },
        .{ error.UnexpectedTensor, "model.layers.2.mlp.up_proj.weight" },
        .{ error.WrongShape, "model.embed_tokens.weight" },
        .{ error.WrongDType, "model.embed_tokens.weight" },
        .{ error.NonFiniteWeights, "model.embed_tokens.weight" },
        .{ error.MissingTensor, "lm_head.weight" },
    };
    for (cases, 0..) |case, i| {
        var rig = try Rig.init(small, .f32);
        defer rig.deinit();

        const parts = &rig.parts;
        switch (i) {
            0 => _ = parts.orderedRemove(parts.items.len - 2),
            1 => try parts.append(testing.allocator, .{ .name = "model.layers.2.mlp.up_proj.weight", .dtype = .f32, .shape = &.{1} }),
            2 => parts.items[0].shape = &.{ 8, 11 },
            3 => parts.items[0].dtype = .i32,
            4 => rig.model.weights[5] = std.math.inf(f32),
            else => _ = parts.pop(),
        }
        try writeParts(rig.disk.storage(), "m/model.safetensors", parts.items);
        try rig.expectRefused(case[0], case[1]);
    }
}

test "a tied model takes an equal head, refuses another, and rotary buffers are passed over" {
    var tied = small;
    tied.tie_word_embeddings = true;
    var rig = try Rig.init(tied, .f32);
    defer rig.deinit();

    try rig.parts.append(testing.allocator, .{ .name = "lm_head.weight", .dtype = .f32, .shape = &.{ 11, 8 }, .values = rig.parts.items[0].values });
    try rig.parts.append(testing.allocator, .{ .name = "model.layers.0.self_attn.rotary_emb.inv_freq", .dtype = .f32, .shape = &.{2} });
    try writeParts(rig.disk.storage(), "m/model.safetensors", rig.parts.items);
    try rig.expectLoads();
    rig.parts.items[rig.parts.items.len - 2].values = null;
    try writeParts(rig.disk.storage(), "m/model.safetensors", rig.parts.items);
    try rig.expectRefused(error.TiedHeadDiffers, "tie_word_embeddings");
}

test "what is no model folder is told so" {
    var rig = try Rig.init(small, .f32);
    defer rig.deinit();

    const s = rig.disk.storage();
    try rig.expectRefused(error.NotAModel, "random initialisation");
    try base.storage.writeFile(testing.allocator, s, "m/model.safetensors", "x");
    try rig.expectRefused(error.FileTooShort, "m/model.safetensors");
    try testing.expectError(error.FileNotFound, model_file.loadModelOn(f32, testing.allocator, s, "absent", &rig.diag));
    try testing.expectError(error.NotAModel, model_file.loadModelOn(f32, testing.allocator, s, "m/config.json", &rig.diag));
    try s.deleteFile("m/config.json");
    try rig.expectRefused(error.NotAModel, "config.json");
    try s.ensureFolder("m/checkpoint-3");
    try rig.expectRefused(error.NotAModel, "checkpoint-N");
}

test "a configuration cannot ask for more memory than the file fills" {
    var rig = try Rig.init(small, .f32);
    defer rig.deinit();

    try writeParts(rig.disk.storage(), "m/model.safetensors", rig.parts.items);
    var huge = small;
    huge.vocab_size = 4_000_000_000;
    huge.intermediate_size = 4_000_000_000;
    try writeConfig(rig.disk.storage(), "m/config.json", huge);
    try rig.expectRefused(error.WrongShape, "model.embed_tokens.weight");
}

test "every allocation failure while loading is survived" {
    var rig = try Rig.init(small, .bf16);
    defer rig.deinit();

    try writeParts(rig.disk.storage(), "m/model.safetensors", rig.parts.items);
    try testing.checkAllAllocationFailures(testing.allocator, struct {
        fn run(gpa: std.mem.Allocator, s: base.storage.Storage) !void {
            var diag: Diagnostic = .{};
            var loaded = try model_file.loadModelOn(f64, gpa, s, "m", &diag);
            loaded.deinit(gpa);
        }
    }.run, .{rig.disk.storage()});
}

test "a GGUF file gives the weights it was made from, q and k rows in their places" {
    for ([_]arch.ModelType{ .llama, .qwen2, .qwen3 }) |model_type| {
        var config = small;
        config.model_type = model_type;
        config.qkv_bias = model_type == .qwen2;
        config.qk_norm = model_type == .qwen3;
        if (model_type == .qwen3) config.head_dim = 6;
        var rig = try Rig.init(config, .f32);
        defer rig.deinit();

        const s = rig.disk.storage();
        _ = try formats.gguf_export.run(testing.allocator, s, .{
            .source = .{ .weights = .{ .config = config, .flat = rig.model.weights } },
            .out_path = "m/model.gguf",
            .dtype = .f32,
            .tokenizer = .none,
        }, null, &rig.diag);
        inline for (.{ f32, f64 }) |T| {
            var loaded = try model_file.loadModelOn(T, testing.allocator, s, "m/model.gguf", &rig.diag);
            defer loaded.deinit(testing.allocator);

            try testing.expectEqual(config.head_dim, loaded.config.head_dim);
            for (rig.model.weights, loaded.weights) |a, b| try testing.expectEqual(@as(T, a), b);
        }
        const path = "m/model.gguf";
        try rig.disk.truncate(path, try rig.disk.fileSize(path) - 4);
        if (model_file.loadModelOn(f32, testing.allocator, s, path, &rig.diag)) |_| return error.TestUnexpectedResult else |_| {
            try testing.expect(std.mem.startsWith(u8, rig.diag.text(), path));
        }
    }
}
