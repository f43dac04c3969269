//! Mapped models: the numbers they serve are those that loading gives, and what loading refuses they refuse.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const formats = @import("formats");
const tensor = @import("tensor");
const model_file = @import("model_file.zig");
const mapped_model = @import("mapped_model.zig");
const rigs = @import("model_file_test.zig");
const testing = std.testing;
const Diagnostic = base.Diagnostic;

/// Opens `path` both ways and compares every number.
fn expectSame(s: base.storage.Storage, path: []const u8) !void {
    const gpa = testing.allocator;
    var diag: Diagnostic = .{};
    var loaded = try model_file.loadModelOn(f32, gpa, s, path, &diag);
    defer loaded.deinit(gpa);

    var mapped = mapped_model.openOn(gpa, s, path, &diag) catch |err| {
        std.debug.print("{s}\n", .{diag.text()});
        return err;
    };
    defer mapped.deinit();

    try testing.expectEqual(loaded.layout.parameters.len, mapped.matrices.len);
    var vectors: usize = 0;
    for (loaded.layout.parameters, mapped.matrices) |p, *place| {
        const matrix = place.*;
        const want = p.sliceConst(f32, loaded.weights);
        try testing.expectEqual(p.shape[0], matrix.rows);
        try testing.expectEqual(p.shape[1], matrix.columns);
        try testing.expectEqual(place, mapped.get(p.layer, p.role).?);
        if (p.rank == 1) {
            try testing.expectEqualSlices(f32, want, matrix.vector());
            vectors += p.len;
            continue;
        }
        const line = try gpa.alloc(f32, matrix.columns);
        defer gpa.free(line);

        for (0..matrix.rows) |row| {
            try tensor.blocks.toF32(matrix.dtype, matrix.part(row, 0, matrix.columns), line);
            try testing.expectEqualSlices(f32, want[row * matrix.columns ..][0..matrix.columns], line);
        }
    }
    try testing.expectEqual(vectors * 4, mapped.copied_bytes);
}

test "a folder's matrices are seen where they lie, in every float type, whole and in shards" {
    for ([_]tensor.DType{ .f32, .f64, .f16, .bf16 }) |dtype| {
        var rig = try rigs.Rig.init(rigs.small, dtype);
        defer rig.deinit();

        const s = rig.disk.storage();
        try rigs.writeParts(s, "m/model.safetensors", rig.parts.items);
        try expectSame(s, "m");
        var mapped = try mapped_model.openOn(testing.allocator, s, "m", &rig.diag);
        defer mapped.deinit();

        try testing.expectEqual(dtype, mapped.get(1, .down_weight).?.dtype);
        try testing.expectEqual(try rig.disk.fileSize("m/model.safetensors"), mapped.file_bytes);
        try s.deleteFile("m/model.safetensors");
        const half = rig.parts.items.len / 2;
        try rigs.writeParts(s, "m/model-00001-of-00002.safetensors", rig.parts.items[0..half]);
        try rigs.writeParts(s, "m/model-00002-of-00002.safetensors", rig.parts.items[half..]);
        var text: std.ArrayList(u8) = .empty;
        defer text.deinit(testing.allocator);

        try text.appendSlice(testing.allocator, "{\"weight_map\":{");
        for (rig.parts.items, 0..) |p, i| try text.print(testing.allocator, "{s}\"{s}\":\"model-0000{d}-of-00002.safetensors\"", .{ if (i == 0) "" else ",", p.name, @as(u8, if (i < half) 1 else 2) });
        try text.appendSlice(testing.allocator, "}}");
        try base.storage.writeFile(testing.allocator, s, "m/model.safetensors.index.json", text.items);
        try expectSame(s, "m");
    }
}

const wide: arch.ModelConfig = .{
    .vocab_size = 13,
    .hidden_size = 256,
    .intermediate_size = 512,
    .num_hidden_layers = 2,
    .num_attention_heads = 4,
    .num_key_value_heads = 2,
    .head_dim = 64,
};

/// A GGUF file whose matrices have this type and random blocks, vectors f32.
fn makeGguf(gpa: std.mem.Allocator, config: arch.ModelConfig, dtype: tensor.DType, scale_bits: ?u16) ![]u8 {
    var layout = try arch.Layout.init(gpa, config);
    defer layout.deinit();

    var header: formats.gguf_writer.Header = .init(gpa);
    defer header.deinit();

    try header.put([]const u8, "general.architecture", @tagName(formats.name_map.Architecture.of(config.model_type)));
    try formats.gguf_config.write(&header, config);
    var buffer: formats.name_map.NameBuffer = undefined;
    for (layout.parameters) |*p| {
        const name = formats.name_map.ggufName(&buffer, .of(config.model_type), .{ .layer = p.layer, .role = p.role });
        try header.addTensor(name, if (p.rank == 1) .f32 else dtype, p.shape[0..p.rank]);
    }
    var out: std.Io.Writer.Allocating = .init(gpa);
    errdefer out.deinit();

    try header.write(&out.writer);
    var stream: formats.gguf_writer.Stream = .init(&header, &out.writer);
    var prng: base.Prng = .init(8);
    for (header.tensors.items) |t| {
        const raw = try gpa.alloc(u8, t.bytes);
        defer gpa.free(raw);

        // No exponent is full: 0x77 leaves the lowest of its bits away.
        for (raw) |*x| x.* = @truncate(prng.next() & 0x77);
        if (scale_bits) |bits| if (t.dims.len == 2) base.bytes.store(u16, raw[raw.len - 2 ..][0..2], bits);
        try stream.write(raw);
    }
    return out.toOwnedSlice();
}

test "a GGUF file's blocks are used as stored, q and k rows found in Hugging Face's order" {
    for ([_]arch.ModelType{ .llama, .qwen2, .qwen3 }) |model_type| {
        const types: []const tensor.DType = if (model_type == .llama)
            &.{ .f32, .f16, .bf16, .q4_0, .q4_1, .q5_0, .q5_1, .q8_0, .q4_k, .q5_k, .q6_k, .mxfp4 }
        else
            &.{.q6_k};
        for (types) |dtype| {
            errdefer std.debug.print("{t} {t}\n", .{ model_type, dtype });
            var disk: base.storage.MemoryDisk = try .init(testing.allocator);
            defer disk.deinit();

            var config = wide;
            config.model_type = model_type;
            config.qkv_bias = model_type == .qwen2;
            config.qk_norm = model_type == .qwen3;
            const raw = try makeGguf(testing.allocator, config, dtype, null);
            defer testing.allocator.free(raw);

            try base.storage.writeFile(testing.allocator, disk.storage(), "m.gguf", raw);
            try expectSame(disk.storage(), "m.gguf");
            var diag: Diagnostic = .{};
            var mapped = try mapped_model.openOn(testing.allocator, disk.storage(), "m.gguf", &diag);
            defer mapped.deinit();

            try testing.expectEqual(dtype, mapped.get(0, .q_weight).?.dtype);
            try testing.expectEqual(model_type == .llama, mapped.get(0, .q_weight).?.row_order != .same);
            try testing.expectEqual(tensor.RowOrder.same, mapped.get(0, .v_weight).?.row_order);
        }
    }
}

test "what loading refuses is refused, with the tensor's name" {
    const gpa = testing.allocator;
    var rig = try rigs.Rig.init(rigs.small, .bf16);
    defer rig.deinit();

    const s = rig.disk.storage();
    const parts = &rig.parts;
    const Case = struct { mapped_model.Error, []const u8 };
    const cases = [_]Case{
        .{ error.NonFiniteWeights, "model.layers.1.mlp.down_proj.weight" },
        .{ error.NonFiniteWeights, "model.norm.weight" },
        .{ error.WrongDType, "lm_head.weight" },
        .{ error.MissingTensor, "lm_head.weight" },
    };
    for (cases, 0..) |case, i| {
        switch (i) {
            0 => rig.model.layout.get(1, .down_weight).?.slice(f32, rig.model.weights)[7] = std.math.inf(f32),
            1 => {
                rig.model.layout.get(1, .down_weight).?.slice(f32, rig.model.weights)[7] = 0;
                rig.model.layout.get(null, .final_norm).?.slice(f32, rig.model.weights)[2] = std.math.nan(f32);
            },
            2 => parts.items[parts.items.len - 1].dtype = .i16,
            else => _ = parts.pop(),
        }
        try rigs.writeParts(s, "m/model.safetensors", parts.items);
        try testing.expectError(case[0], mapped_model.openOn(gpa, s, "m", &rig.diag));
        try testing.expect(std.mem.find(u8, rig.diag.text(), case[1]) != null);
        try testing.expect(std.mem.startsWith(u8, rig.diag.text(), "m: "));
    }
    try testing.expectError(error.FileNotFound, mapped_model.openOn(gpa, s, "absent", &rig.diag));
    try testing.expectError(error.NotAModel, mapped_model.openOn(gpa, s, "m/config.json", &rig.diag));

    const raw = try makeGguf(gpa, wide, .q6_k, 0xFC00); // The scale of the last block of each matrix.
    defer gpa.free(raw);

    try base.storage.writeFile(gpa, s, "bad.gguf", raw);
    try testing.expectError(error.NonFiniteWeights, mapped_model.openOn(gpa, s, "bad.gguf", &rig.diag));
    try testing.expect(std.mem.startsWith(u8, rig.diag.text(), "bad.gguf: "));
    try rig.disk.truncate("bad.gguf", raw.len - 1);
    try testing.expectError(error.TensorOutOfBounds, mapped_model.openOn(gpa, s, "bad.gguf", &rig.diag));
}

test "every allocation failure while opening is survived" {
    var rig = try rigs.Rig.init(rigs.small, .bf16);
    defer rig.deinit();

    const s = rig.disk.storage();
    try rigs.writeParts(s, "m/model.safetensors", rig.parts.items);
    const raw = try makeGguf(testing.allocator, wide, .q8_0, null);
    defer testing.allocator.free(raw);

    try base.storage.writeFile(testing.allocator, s, "m.gguf", raw);
    for ([_][]const u8{ "m", "m.gguf" }) |path| try testing.checkAllAllocationFailures(testing.allocator, struct {
        fn run(gpa: std.mem.Allocator, storage: base.storage.Storage, name: []const u8) !void {
            var diag: Diagnostic = .{};
            var mapped = try mapped_model.openOn(gpa, storage, name, &diag);
            mapped.deinit();
        }
    }.run, .{ s, path });
}

test "with any byte of its tables changed a file is opened or refused, and what is opened can be read to its ends" {
    const gpa = testing.allocator;
    const tiny: arch.ModelConfig = .{
        .vocab_size = 5,
        .hidden_size = 32,
        .intermediate_size = 32,
        .num_hidden_layers = 1,
        .num_attention_heads = 2,
        .num_key_value_heads = 1,
        .head_dim = 16,
    };
    const raw = try makeGguf(gpa, tiny, .q8_0, null);
    defer gpa.free(raw);

    var diag: Diagnostic = .{};
    var file = try formats.gguf.File.parse(gpa, raw, &diag);
    const tables = file.data_start;
    file.deinit();
    var opened: usize = 0;
    for (0..tables) |at| for ([_]u8{ 0x01, 0x40, 0xFF }) |flip| {
        raw[at] ^= flip;
        defer raw[at] ^= flip;

        var disk: base.storage.MemoryDisk = try .init(gpa);
        defer disk.deinit();

        try base.storage.writeFile(gpa, disk.storage(), "m.gguf", raw);
        var mapped = mapped_model.openOn(gpa, disk.storage(), "m.gguf", &diag) catch |err| {
            try testing.expect(err != error.OutOfMemory);
            try testing.expect(diag.text().len > 0);
            continue;
        };
        defer mapped.deinit();

        opened += 1;
        for (mapped.matrices) |matrix| {
            const line = try gpa.alloc(f32, matrix.columns);
            defer gpa.free(line);

            for ([_]usize{ 0, matrix.rows - 1 }) |row| try tensor.blocks.toF32(matrix.dtype, matrix.part(row, 0, matrix.columns), line);
        }
    };
    try testing.expect(opened > 0 and opened < tables);
}

test "a real folder stays mapped after the call that opened it" {
    var tmp = testing.tmpDir(.{});
    defer tmp.cleanup();

    var path_buffer: [128]u8 = undefined;
    const path = try std.mem.print(&path_buffer, ".zig-cache/tmp/{s}/model", .{tmp.sub_path});
    var model = try @import("initialize.zig").initRandom(f32, testing.allocator, rigs.small, 5);
    defer model.deinit(testing.allocator);

    var diag: Diagnostic = .{};
    try @import("model_folder.zig").saveModel(f32, testing.allocator, testing.io, path, &model, null, &diag);
    var mapped = try mapped_model.open(testing.allocator, testing.io, path, &diag);
    defer mapped.deinit();

    const p = model.layout.get(1, .up_weight).?;
    const seen: []align(1) const f32 = mapped.get(1, .up_weight).?.view(f32).?;
    for (p.sliceConst(f32, model.weights), seen) |a, b| try testing.expectEqual(a, b);
}
