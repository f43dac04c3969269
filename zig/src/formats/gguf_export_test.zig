//! Exporting weights in memory over a disk that can fail, and reading them back.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const tensor = @import("tensor");
const gguf_export = @import("gguf_export.zig");
const gguf_import = @import("gguf_import.zig");
const quant = @import("quant");
const name_map = @import("name_map.zig");
const safetensors = @import("safetensors.zig");
const MemoryDisk = base.storage.MemoryDisk;
const DType = tensor.DType;

const testing = std.testing;

const plain: arch.ModelConfig = .{
    .vocab_size = 37,
    .hidden_size = 32,
    .intermediate_size = 48, // Not whole blocks of 32.
    .num_hidden_layers = 2,
    .num_attention_heads = 4,
    .num_key_value_heads = 2,
    .head_dim = 8,
    .max_position_embeddings = 128,
};

const configs = blk: {
    var llama = plain;
    llama.qkv_bias = true;
    llama.attention_output_bias = true;
    llama.mlp_bias = true;
    llama.tie_word_embeddings = false;
    llama.rope_scaling = .{ .linear = .{ .factor = 4 } };
    var llama3 = plain;
    llama3.head_dim = 16;
    llama3.rope_theta = 500000;
    llama3.rope_scaling = .{ .llama3 = .{ .factor = 8, .low_freq_factor = 1, .high_freq_factor = 4, .original_max_position_embeddings = 64 } };
    var qwen2 = plain;
    qwen2.model_type = .qwen2;
    qwen2.qkv_bias = true;
    qwen2.rms_norm_eps = 1e-6;
    var qwen3 = plain;
    qwen3.model_type = .qwen3;
    qwen3.qk_norm = true;
    qwen3.head_dim = 32;
    break :blk [_]arch.ModelConfig{ plain, llama, llama3, qwen2, qwen3 };
};

fn randomWeights(gpa: std.mem.Allocator, config: arch.ModelConfig) ![]f32 {
    var layout = try arch.Layout.init(gpa, config);
    defer layout.deinit();

    const flat = try gpa.alloc(f32, layout.total);
    var prng: std.Random.DefaultPrng = .init(layout.total);
    for (flat) |*x| x.* = prng.random().floatNorm(f32);
    return flat;
}

fn options(config: arch.ModelConfig, flat: []const f32, dtype: DType) gguf_export.Options {
    return .{ .source = .{ .weights = .{ .config = config, .flat = flat } }, .out_path = "model.gguf", .dtype = dtype };
}

test "what was exported is imported with the same configuration and the same numbers, for every shape and type" {
    const gpa = testing.allocator;
    for (configs) |config| for ([_]DType{ .f32, .f16, .bf16, .q8_0 }) |dtype| {
        const flat = try randomWeights(gpa, config);
        defer gpa.free(flat);
        var disk = try MemoryDisk.init(gpa);
        defer disk.deinit();
        var diag: base.Diagnostic = .{};
        const report = gguf_export.run(gpa, disk.storage(), options(config, flat, dtype), null, &diag) catch |err| {
            std.debug.print("{s}\n", .{diag.text()});
            return err;
        };
        try testing.expectEqual(report.bytes, try disk.fileSize("model.gguf"));

        const raw = try disk.storage().readAlloc(gpa, "model.gguf");
        defer gpa.free(raw);
        var import = try gguf_import.Import.open(gpa, raw, &diag);
        defer import.deinit();
        try testing.expectEqualDeep(config, import.config);
        for (import.layout.parameters) |*p| {
            const got = try gpa.alloc(f32, p.len);
            defer gpa.free(got);
            try import.read(p, got);
            const columns = if (p.rank == 1) p.len else p.shape[1];
            const stored = name_map.storedType(p.role, columns, dtype);
            try testing.expectEqual(stored, import.tensorOf(p).dtype);
            try expectRounded(stored, p.sliceConst(f32, flat), got);
        }
    };
}

/// `got` is what `wanted` becomes in this type and back.
fn expectRounded(dtype: DType, wanted: []const f32, got: []const f32) !void {
    const gpa = testing.allocator;
    const raw = try gpa.alloc(u8, try dtype.rowBytes(wanted.len));
    defer gpa.free(raw);
    const back = try gpa.alloc(f32, wanted.len);
    defer gpa.free(back);
    try quant.encode(dtype, wanted, raw);
    try tensor.blocks.toF32(dtype, raw, back);
    try testing.expectEqualSlices(f32, back, got);
}

test "the bytes do not depend on the number of threads" {
    const gpa = testing.allocator;
    const flat = try randomWeights(gpa, configs[1]);
    defer gpa.free(flat);
    var first: ?[]u8 = null;
    defer if (first) |bytes| gpa.free(bytes);
    for ([_]usize{ 0, 1, 2, 3 }) |threads| {
        const pool: ?*base.Pool = if (threads == 0) null else try .init(gpa, threads);
        defer if (pool) |p| p.deinit();
        var disk = try MemoryDisk.init(gpa);
        defer disk.deinit();
        var diag: base.Diagnostic = .{};
        var o = options(configs[1], flat, .q8_0);
        o.pool = pool;
        _ = try gguf_export.run(gpa, disk.storage(), o, null, &diag);
        const raw = try disk.storage().readAlloc(gpa, "model.gguf");
        if (first) |bytes| {
            defer gpa.free(raw);
            try testing.expectEqualSlices(u8, bytes, raw);
        } else first = raw;
    }
}

test "a number that is not finite stops the export and leaves nothing behind" {
    const gpa = testing.allocator;
    const flat = try randomWeights(gpa, plain);
    defer gpa.free(flat);
    flat[flat.len - 5] = std.math.nan(f32);
    var disk = try MemoryDisk.init(gpa);
    defer disk.deinit();
    var diag: base.Diagnostic = .{};
    try testing.expectError(error.NotFinite, gguf_export.run(gpa, disk.storage(), options(plain, flat, .q8_0), null, &diag));
    try testing.expect(std.mem.startsWith(u8, diag.text(), "tensor model.norm.weight"));
    try expectEmpty(&disk);
}

test "too little space is said before anything is written" {
    const gpa = testing.allocator;
    const flat = try randomWeights(gpa, plain);
    defer gpa.free(flat);
    var disk = try MemoryDisk.init(gpa);
    defer disk.deinit();
    var diag: base.Diagnostic = .{};
    try testing.expectError(error.NotEnoughSpace, gguf_export.run(gpa, disk.storage(), options(plain, flat, .f32), 1000, &diag));
    try testing.expect(std.mem.find(u8, diag.text(), "only 1000 are free") != null);
    try testing.expectEqual(@as(usize, 0), disk.operations);
}

test "types that cannot be written and models that GGUF cannot say are refused" {
    const gpa = testing.allocator;
    const flat = try randomWeights(gpa, plain);
    defer gpa.free(flat);
    var disk = try MemoryDisk.init(gpa);
    defer disk.deinit();
    var diag: base.Diagnostic = .{};
    try testing.expectError(error.UnsupportedType, gguf_export.run(gpa, disk.storage(), options(plain, flat, .q2_k), null, &diag));
    var odd = plain;
    odd.qk_norm = true;
    const more = try randomWeights(gpa, odd);
    defer gpa.free(more);
    try testing.expectError(error.NotExpressible, gguf_export.run(gpa, disk.storage(), options(odd, more, .f32), null, &diag));
}

test "whatever disk operation fails, there is the whole file under its name or none" {
    const gpa = testing.allocator;
    const flat = try randomWeights(gpa, plain);
    defer gpa.free(flat);
    var at: usize = 0;
    while (true) : (at += 1) {
        var disk = try MemoryDisk.init(gpa);
        defer disk.deinit();
        disk.fault = .{ .at = at, .what = .{ .fail = error.InputOutput } };
        var diag: base.Diagnostic = .{};
        if (gguf_export.run(gpa, disk.storage(), options(plain, flat, .q8_0), null, &diag)) |report| {
            try testing.expect(at > 3); // Create, write, sync, rename at the least.
            try testing.expectEqual(report.bytes, try disk.fileSize("model.gguf"));
            if (disk.operations <= at) break;
        } else |_| {
            try testing.expect(diag.text().len > 0);
            if (try disk.storage().kind("model.gguf") != null) {
                const raw = try disk.storage().readAlloc(gpa, "model.gguf");
                defer gpa.free(raw);
                var import = try gguf_import.Import.open(gpa, raw, &diag);
                import.deinit();
            }
        }
        try testing.expect(at < 1000);
    }
}

test "running out of memory leaks nothing and leaves nothing" {
    const gpa = testing.allocator;
    const flat = try randomWeights(gpa, plain);
    defer gpa.free(flat);
    try testing.checkAllAllocationFailures(gpa, struct {
        fn run(failing: std.mem.Allocator, weights: []const f32) !void {
            var disk = try MemoryDisk.init(testing.allocator);
            defer disk.deinit();
            var diag: base.Diagnostic = .{};
            errdefer expectEmpty(&disk) catch @panic("a file was left behind");
            _ = try gguf_export.run(failing, disk.storage(), options(plain, weights, .q8_0), null, &diag);
        }
    }.run, .{flat});
}

const Change = struct {
    skip: []const u8 = "",
    rename: struct { []const u8, []const u8 } = .{ "", "" },
    retype: []const u8 = "",
    transpose: []const u8 = "",
    /// A head beside the tied embedding: the same numbers, or others.
    head: enum { none, same, other } = .none,
};

/// A model folder on the disk, its weights counting up, with one thing wrong.
fn writeFolder(disk: *MemoryDisk, change: Change) !void {
    const gpa = testing.allocator;
    const storage = disk.storage();
    try storage.ensureFolder("model");
    try base.storage.writeFile(gpa, storage, "model/config.json",
        \\{"model_type":"llama","vocab_size":37,"hidden_size":32,"intermediate_size":48,"num_hidden_layers":1,"num_attention_heads":4,
        \\ "num_key_value_heads":2,"max_position_embeddings":128,"tie_word_embeddings":true,"bos_token_id":0,"eos_token_id":1}
    );
    var config = plain;
    config.num_hidden_layers = 1;
    var layout = try arch.Layout.init(gpa, config);
    defer layout.deinit();
    var entries: std.ArrayList(safetensors.Entry) = .empty;
    defer entries.deinit(gpa);
    var shapes: [32][2]usize = undefined;
    for (layout.parameters, 0..) |p, i| {
        if (std.mem.eql(u8, p.name, change.skip)) continue;
        shapes[i] = p.shape;
        if (std.mem.eql(u8, p.name, change.transpose)) std.mem.swap(usize, &shapes[i][0], &shapes[i][1]);
        const renamed = std.mem.eql(u8, p.name, change.rename[0]);
        try entries.append(gpa, .{
            .name = if (renamed) change.rename[1] else p.name,
            .dtype = if (std.mem.eql(u8, p.name, change.retype)) .i32 else .f32,
            .shape = shapes[i][0..p.rank],
        });
    }
    if (change.head != .none) try entries.append(gpa, .{ .name = "lm_head.weight", .dtype = .f32, .shape = layout.parameters[0].dims() });
    var out: std.Io.Writer.Allocating = .init(gpa);
    defer out.deinit();
    var w = try safetensors.Writer.begin(gpa, &out.writer, entries.items, &.{});
    for (entries.items, 0..) |entry, i| {
        const is_head = std.mem.eql(u8, entry.name, "lm_head.weight");
        var n: f32 = if (is_head and change.head == .same) 0 else @floatFromInt(i);
        for (0..try entry.dtype.tensorBytes(entry.shape) / 4) |_| {
            try w.writeBytes(std.mem.asBytes(&n));
            n += 1;
        }
    }
    w.finish();
    try base.storage.writeFile(gpa, storage, "model/model.safetensors", out.written());
}

fn exportFolder(change: Change, diag: *base.Diagnostic) !void {
    var disk = try MemoryDisk.init(testing.allocator);
    defer disk.deinit();
    try writeFolder(&disk, change);
    _ = try gguf_export.run(testing.allocator, disk.storage(), .{ .source = .{ .folder = "model" }, .out_path = "model.gguf", .dtype = .f32, .tokenizer = .none }, null, diag);
}

test "a folder is checked whole: what is missing, unknown, misshapen or of a wrong type is named" {
    var diag: base.Diagnostic = .{};
    try exportFolder(.{}, &diag);
    try exportFolder(.{ .head = .same }, &diag);
    const up = "model.layers.0.mlp.up_proj.weight";
    const cases = .{
        .{ Change{ .skip = up }, error.MissingTensor, up },
        .{ Change{ .rename = .{ up, "model.layers.0.mlp.experts.weight" } }, error.UnexpectedTensor, "experts" },
        .{ Change{ .transpose = up }, error.WrongTensorShape, "{ 32, 48 }" },
        .{ Change{ .retype = up }, error.UnsupportedTensorType, "i32" },
        .{ Change{ .head = .other }, error.TiedHeadDiffers, "lm_head.weight" },
    };
    inline for (cases) |case| {
        try testing.expectError(case[1], exportFolder(case[0], &diag));
        if (std.mem.find(u8, diag.text(), case[2]) == null) {
            std.debug.print("message: {s}\n", .{diag.text()});
            return error.TestExpectedMessage;
        }
    }
    var empty = try MemoryDisk.init(testing.allocator);
    defer empty.deinit();
    try testing.expectError(error.FileNotFound, gguf_export.run(testing.allocator, empty.storage(), .{ .source = .{ .folder = "nowhere" }, .out_path = "model.gguf" }, null, &diag));
    try testing.expect(std.mem.find(u8, diag.text(), "nowhere/config.json") != null);
}

fn expectEmpty(disk: *MemoryDisk) !void {
    var listing = try disk.storage().list(testing.allocator, ".");
    defer listing.deinit();
    try testing.expectEqual(@as(usize, 0), listing.entries.len);
}
