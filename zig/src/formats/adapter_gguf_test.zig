//! Adapter files: what PEFT's folder says stands in the GGUF, and what it cannot say is refused by name.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const tensor = @import("tensor");
const adapter_config = @import("adapter_config.zig");
const adapter_gguf = @import("adapter_gguf.zig");
const gguf = @import("gguf.zig");
const hf_config = @import("hf_config.zig");
const name_map = @import("name_map.zig");
const safetensors = @import("safetensors.zig");
const testing = std.testing;
const Diagnostic = base.Diagnostic;
const LoraSettings = arch.LoraSettings;

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

pub const mixture: arch.ModelConfig = blk: {
    var config = @import("export_experts_test.zig").mixture;
    config.hidden_size = 8;
    config.intermediate_size = 6;
    break :blk config;
};

test "experts have a pair for each tensor: A the same for gate and up, B every other row" {
    var rig = try Rig.init(mixture, .{ .r = 2, .lora_alpha = 6, .target_modules = &.{"q_proj"}, .target_parameters = &.{ "mlp.experts.gate_up_proj", "mlp.experts.down_proj" } });
    defer rig.deinit();

    const report = try adapter_gguf.run(testing.allocator, rig.disk.storage(), .{ .adapter = "a", .out_path = "out.gguf" }, &rig.diag);
    try testing.expectEqual(2 * (2 + 4 + 2), report.tensors);
    try testing.expectEqual(0, report.folded);
    var mapping = try rig.disk.storage().map("out.gguf");
    defer mapping.unmap();

    var file = try gguf.File.parse(testing.allocator, mapping.bytes, &rig.diag);
    defer file.deinit();

    const module = rig.adapter.get(1, .experts_gate_up).?;
    const a = module.a.sliceConst(f32, rig.values);
    const b = module.b.sliceConst(f32, rig.values);
    for ([_]name_map.Part{ .gate, .up }, [_][]const u8{ "gate", "up" }) |part, word| {
        var buffer: [64]u8 = undefined;
        const stored_a = file.findTensor(try std.mem.print(&buffer, "blk.1.ffn_{s}_exps.weight.lora_a", .{word})).?;
        try testing.expectEqual([4]usize{ 8, 2, 3, 1 }, stored_a.ne);
        try testing.expectEqualSlices(u8, std.mem.sliceAsBytes(a), stored_a.data);
        const stored_b = file.findTensor(try std.mem.print(&buffer, "blk.1.ffn_{s}_exps.weight.lora_b", .{word})).?;
        try testing.expectEqual([4]usize{ 2, 6, 3, 1 }, stored_b.ne);
        for (0..3) |e| for (0..6) |o| for (0..2) |r|
            try testing.expectEqual(b[(part.of(o) * 2 + r) * 3 + e], base.bytes.at(f32, stored_b.data, (e * 6 + o) * 2 + r));
    }
    const down = file.findTensor("blk.0.ffn_down_exps.weight.lora_b").?;
    try testing.expectEqual([4]usize{ 2, 8, 3, 1 }, down.ne);
}

pub const everything = [_][]const u8{ "embed_tokens", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head" };

pub const Rig = struct {
    disk: *base.storage.MemoryDisk,
    layout: arch.Layout,
    adapter: arch.AdapterLayout,
    values: []f32,
    diag: Diagnostic = .{},

    pub fn init(config: arch.ModelConfig, settings: LoraSettings) !Rig {
        const disk = try testing.allocator.create(base.storage.MemoryDisk);
        disk.* = try .init(testing.allocator);
        var diag: Diagnostic = .{};
        const layout = try arch.Layout.init(testing.allocator, config);
        const adapter = try settings.layoutFor(testing.allocator, &layout, &diag);
        const self: Rig = .{ .disk = disk, .layout = layout, .adapter = adapter, .values = try testing.allocator.alloc(f32, adapter.total) };
        for (self.values, 0..) |*v, i| v.* = @as(f32, @floatFromInt(i % 251)) / 16 - 7;
        const s = disk.storage();
        try s.ensureFolder("a");
        try self.writeText("a/config.json", config, hf_config.WriteOptions{}, hf_config.write);
        try self.writeText("a/adapter_config.json", settings, @as(?[]const u8, "models/base"), adapter_config.write);
        try self.writeTensors(.{});
        return self;
    }

    pub fn deinit(self: *Rig) void {
        testing.allocator.free(self.values);
        self.adapter.deinit();
        self.layout.deinit();
        self.disk.deinit();
        testing.allocator.destroy(self.disk);
    }

    fn writeText(self: Rig, path: []const u8, what: anytype, more: anytype, f: anytype) !void {
        var out: std.Io.Writer.Allocating = .init(testing.allocator);
        defer out.deinit();

        try f(&out.writer, what, more);
        try base.storage.writeFile(testing.allocator, self.disk.storage(), path, out.written());
    }

    const Fault = struct { skip: ?usize = null, widen: ?usize = null, extra: ?[]const u8 = null };

    fn writeTensors(self: Rig, fault: Fault) !void {
        const gpa = testing.allocator;
        var entries: std.ArrayList(safetensors.Entry) = .empty;
        defer entries.deinit(gpa);

        const wider = [2]usize{ 3, 5 };
        for (self.adapter.parameters, 0..) |*p, i| {
            if (fault.skip == i) continue;
            try entries.append(gpa, .{ .name = p.name, .dtype = .f32, .shape = if (fault.widen == i) &wider else p.dims() });
        }
        if (fault.extra) |name| try entries.append(gpa, .{ .name = name, .dtype = .f32, .shape = &.{2} });
        var out: std.Io.Writer.Allocating = .init(gpa);
        defer out.deinit();

        var writer = try safetensors.Writer.begin(gpa, &out.writer, entries.items, &.{});
        for (self.adapter.parameters, 0..) |p, i| {
            if (fault.skip == i) continue;
            const values = p.sliceConst(f32, self.values);
            try writer.writeBytes(std.mem.sliceAsBytes(if (fault.widen == i) values[0..15] else values));
        }
        if (fault.extra != null) try writer.writeBytes(&@as([8]u8, @splat(0)));
        writer.finish();
        try base.storage.writeFile(gpa, self.disk.storage(), "a/adapter_model.safetensors", out.written());
    }

    fn run(self: *Rig, options: struct { dtype: tensor.DType = .f32, model: ?[]const u8 = null }) !adapter_gguf.Report {
        return adapter_gguf.run(testing.allocator, self.disk.storage(), .{ .adapter = "a", .model = options.model, .out_path = "out.gguf", .dtype = options.dtype }, &self.diag);
    }

    fn expectRefused(self: *Rig, err: adapter_gguf.Error, words: []const u8) !void {
        try testing.expectError(err, self.run(.{}));
        if (std.mem.find(u8, self.diag.text(), words) == null) {
            std.debug.print("\"{s}\" is not in \"{s}\"\n", .{ words, self.diag.text() });
            return error.WrongWords;
        }
        try testing.expectEqual(null, try self.disk.storage().kind("out.gguf"));
    }
};

/// Every product scale·B·A of the file, as its reader computes it, is PEFT's.
fn expectSameProducts(rig: *Rig, architecture: name_map.Architecture) !void {
    var mapping = try rig.disk.storage().map("out.gguf");
    defer mapping.unmap();

    var file = try gguf.File.parse(testing.allocator, mapping.bytes, &rig.diag);
    defer file.deinit();

    try testing.expectEqualStrings("adapter", (try file.require([]const u8, "general.type", &rig.diag)));
    try testing.expectEqualStrings("lora", (try file.require([]const u8, "adapter.type", &rig.diag)));
    try testing.expectEqualStrings(@tagName(architecture), (try file.require([]const u8, "general.architecture", &rig.diag)));
    const alpha = try file.require(f32, "adapter.lora.alpha", &rig.diag);
    try testing.expectEqual(rig.adapter.parameters.len, file.tensors.len);
    for (rig.adapter.modules) |module| {
        var name_buffer: name_map.NameBuffer = undefined;
        var buffer: [80]u8 = undefined;
        const name = name_map.ggufName(&name_buffer, architecture, .{ .layer = module.layer, .role = module.target.role() });
        const a = file.findTensor(try std.mem.print(&buffer, "{s}.lora_a", .{name})).?;
        const b = file.findTensor(try std.mem.print(&buffer, "{s}.lora_b", .{name})).?;
        const embedding = module.target == .embed_tokens;
        try testing.expectEqual([4]usize{ if (embedding) module.rank else module.in, if (embedding) module.in else module.rank, 1, 1 }, a.ne);
        try testing.expectEqual([4]usize{ module.rank, module.out, 1, 1 }, b.ne);
        const order = name_map.rowOrder(architecture, module.target.role(), small.head_dim);
        const peft_a = module.a.sliceConst(f32, rig.values);
        const peft_b = module.b.sliceConst(f32, rig.values);
        for (0..module.out) |row| for (0..module.in) |column| {
            var want: f64 = 0;
            var got: f64 = 0;
            for (0..module.rank) |r| {
                want += @as(f64, peft_b[row * module.rank + r]) * peft_a[r * module.in + column];
                const at = if (embedding) column * module.rank + r else r * module.in + column;
                got += @as(f64, base.bytes.at(f32, b.data, order.fileRow(row) * module.rank + r)) * base.bytes.at(f32, a.data, at);
            }
            const scaled = got * alpha / @as(f64, @floatFromInt(module.rank));
            try testing.expectApproxEqAbs(want * module.scale, scaled, 1e-6 * (1 + @abs(want * module.scale)));
        };
    }
}

test "all modules, for both row orders; scales that one alpha cannot say go into B" {
    for ([_]arch.ModelType{ .llama, .qwen3 }) |model_type| {
        var config = small;
        config.model_type = model_type;
        config.qk_norm = model_type == .qwen3;
        const cases = [_]struct { LoraSettings, usize }{
            .{ .{ .r = 4, .lora_alpha = 6, .target_modules = &everything }, 0 },
            .{ .{ .r = 4, .lora_alpha = 6, .use_rslora = true, .target_modules = &everything }, 0 },
            .{ .{ .r = 4, .lora_alpha = 6, .target_modules = &everything, .rank_pattern = &.{.{ .name = "v_proj", .value = 2 }} }, 0 },
            .{ .{ .r = 4, .lora_alpha = 6, .use_rslora = true, .target_modules = &everything, .rank_pattern = &.{.{ .name = "v_proj", .value = 2 }} }, 2 },
            .{ .{ .r = 3, .lora_alpha = 6, .target_modules = &everything, .alpha_pattern = &.{.{ .name = "q_proj", .value = 5 }} }, 2 },
        };
        for (cases) |case| {
            var rig = try Rig.init(config, case[0]);
            defer rig.deinit();

            const report = rig.run(.{}) catch |err| {
                std.debug.print("{s}\n", .{rig.diag.text()});
                return err;
            };
            try testing.expectEqual(case[1], report.folded);
            try testing.expectEqual(2 * (2 * 7 + 2), report.tensors);
            try testing.expectEqual(report.bytes, try rig.disk.fileSize("out.gguf"));
            try expectSameProducts(&rig, .of(model_type));
        }
    }
}

test "the base is found in the adapter's folder, by its recorded path, or where it is named" {
    var rig = try Rig.init(small, .{ .r = 2 });
    defer rig.deinit();

    const s = rig.disk.storage();
    try s.deleteFile("a/config.json");
    try rig.expectRefused(error.NotAnAdapter, "models/base");
    try testing.expectError(error.NotAnAdapter, rig.run(.{ .model = "nowhere" }));
    try s.ensureFolder("models/base");
    try rig.writeText("models/base/config.json", small, hf_config.WriteOptions{}, hf_config.write);
    _ = try rig.run(.{});
    const weights = try testing.allocator.alloc(f32, rig.layout.total);
    defer testing.allocator.free(weights);

    @memset(weights, 1);
    _ = try @import("gguf_export.zig").run(testing.allocator, s, .{ .source = .{ .weights = .{ .config = small, .flat = weights } }, .out_path = "base.gguf", .dtype = .f32, .tokenizer = .none }, null, &rig.diag);
    _ = try rig.run(.{ .model = "base.gguf", .dtype = .f16 });
}

test "what GGUF cannot say, and folders that do not fit, are refused by name" {
    var tied = small;
    tied.tie_word_embeddings = true;
    for ([_][]const u8{ "lm_head", "embed_tokens" }) |target| {
        var rig = try Rig.init(tied, .{ .r = 2, .target_modules = &.{ "q_proj", target } });
        defer rig.deinit();

        try rig.expectRefused(error.NotExpressible, target);
    }
    var rig = try Rig.init(small, .{ .r = 2, .target_modules = &.{ "q_proj", "embed_tokens" } });
    defer rig.deinit();

    try testing.expectError(error.UnsupportedTensorType, rig.run(.{ .dtype = .q8_0 }));
    try rig.writeTensors(.{ .skip = 1 });
    try rig.expectRefused(error.MissingTensor, rig.adapter.parameters[1].name);
    try rig.writeTensors(.{ .widen = 3 });
    try rig.expectRefused(error.WrongTensorShape, rig.adapter.parameters[3].name);
    const strangers = [_][2][]const u8{
        .{ "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector.weight", "DoRA" },
        .{ "base_model.model.lm_head.weight", "whole trained module" },
        .{ "base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight", "belongs to no module" },
        .{ "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight", "whole trained module" },
    };
    for (strangers) |stranger| {
        try rig.writeTensors(.{ .extra = stranger[0] });
        try rig.expectRefused(error.UnexpectedTensor, stranger[1]);
    }
    try rig.writeTensors(.{ .extra = "base_model.model.model.embed_tokens.base_layer.weight" });
    _ = try rig.run(.{});
    try rig.disk.storage().deleteFile("out.gguf");
    rig.values[5] = std.math.inf(f32);
    try rig.writeTensors(.{});
    try rig.expectRefused(error.NotFinite, "not finite");
    const s = rig.disk.storage();
    try s.deleteFile("a/adapter_model.safetensors");
    try rig.expectRefused(error.NotAnAdapter, "pickle");
    try base.storage.writeFile(testing.allocator, s, "a/adapter_config.json", "{\"peft_type\": \"LORA\", \"r\": 2, \"target_modules\": [\"q_proj\"], \"use_dora\": true}");
    try rig.expectRefused(error.InvalidAdapterConfig, "use_dora");
    try s.deleteFile("a/adapter_config.json");
    try rig.expectRefused(error.NotAnAdapter, "adapter_config.json");
}

test "with any byte of its files changed an adapter is written or refused" {
    const gpa = testing.allocator;
    var rig = try Rig.init(small, .{ .r = 2, .target_modules = &.{"v_proj"} });
    defer rig.deinit();

    const s = rig.disk.storage();
    for ([_][]const u8{ "a/adapter_config.json", "a/adapter_model.safetensors", "a/config.json" }) |path| {
        const raw = try s.readAlloc(gpa, path);
        defer gpa.free(raw);

        for (0..@min(raw.len, 700)) |at| for ([_]u8{ 0x01, 0x20, 0xFF }) |flip| {
            raw[at] ^= flip;
            defer raw[at] ^= flip;

            try base.storage.writeFile(gpa, s, path, raw);
            _ = rig.run(.{}) catch |err| {
                try testing.expect(err != error.OutOfMemory);
                try testing.expect(rig.diag.text().len > 0);
            };
        };
        try base.storage.writeFile(gpa, s, path, raw);
        _ = try rig.run(.{});
    }
}

test "every allocation failure is survived" {
    var rig = try Rig.init(small, .{ .r = 2, .target_modules = &.{ "q_proj", "embed_tokens" } });
    defer rig.deinit();

    try testing.checkAllAllocationFailures(testing.allocator, struct {
        fn f(gpa: std.mem.Allocator, s: base.storage.Storage) !void {
            var diag: Diagnostic = .{};
            _ = try adapter_gguf.run(gpa, s, .{ .adapter = "a", .out_path = "out.gguf" }, &diag);
        }
    }.f, .{rig.disk.storage()});
}
