//! Experts written from floats and from Hugging Face's MXFP4, with and without an adapter, and what is refused.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const tensor = @import("tensor");
const quant = @import("quant");
const export_source = @import("export_source.zig");
const gguf_export = @import("gguf_export.zig");
const gguf_import = @import("gguf_import.zig");
const gguf_mix = @import("gguf_mix.zig");
const hf_config = @import("hf_config.zig");
const name_map = @import("name_map.zig");
const safetensors = @import("safetensors.zig");
const MemoryDisk = base.storage.MemoryDisk;
const DType = tensor.DType;
const mxfp4 = tensor.blocks.mxfp4;

const testing = std.testing;
const gpa = testing.allocator;

pub const mixture: arch.ModelConfig = .{
    .model_type = .gpt_oss,
    .vocab_size = 37,
    .hidden_size = 64,
    .intermediate_size = 96,
    .num_hidden_layers = 2,
    .num_attention_heads = 4,
    .num_key_value_heads = 2,
    .head_dim = 32,
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

const Fault = struct { skip: []const u8 = "", reshape: []const u8 = "", retype: []const u8 = "", besides: []const u8 = "", bad_scale: bool = false };

/// A model folder in memory, experts as MXFP4, with their expanded numbers beside it.
pub const Folder = struct {
    disk: MemoryDisk,
    layout: arch.Layout,
    /// What the folder's weights are worth, in the layout's order.
    flat: []f32,

    pub fn init(config: arch.ModelConfig, fault: Fault) !Folder {
        var self: Folder = .{ .disk = try .init(gpa), .layout = try .init(gpa, config), .flat = undefined };
        self.flat = try gpa.alloc(f32, self.layout.total);
        var prng: std.Random.DefaultPrng = .init(5);
        for (self.flat) |*x| x.* = prng.random().floatNorm(f32);
        const s = self.disk.storage();
        try s.ensureFolder("m");
        var text: std.Io.Writer.Allocating = .init(gpa);
        defer text.deinit();

        try hf_config.write(&text.writer, config, .{});
        try base.storage.writeFile(gpa, s, "m/config.json", text.written());
        try self.writeTensors(prng.random(), fault);
        return self;
    }

    pub fn deinit(self: *Folder) void {
        gpa.free(self.flat);
        self.layout.deinit();
        self.disk.deinit();
    }

    fn writeTensors(self: *Folder, random: std.Random, fault: Fault) !void {
        var arena: std.heap.ArenaAllocator = .init(gpa);
        defer arena.deinit();

        const a = arena.allocator();
        var entries: std.ArrayList(safetensors.Entry) = .empty;
        var data: std.ArrayList([]const u8) = .empty;
        // Widest elements first, as the writer asks.
        for (self.layout.parameters) |*p| {
            if (p.role.isExpertWeight() and !std.mem.eql(u8, p.name, fault.besides)) continue;
            if (std.mem.eql(u8, p.name, fault.skip)) continue;
            try entries.append(a, .{ .name = p.name, .dtype = .f32, .shape = p.dims() });
            try data.append(a, std.mem.sliceAsBytes(p.sliceConst(f32, self.flat)));
        }
        for (self.layout.parameters) |*p| {
            if (!p.role.isExpertWeight()) continue;
            const codes, const scales = try self.makeBlocks(a, random, p, fault.bad_scale);
            for ([_][]const u8{ "_blocks", "_scales" }, [_][]const u8{ codes, scales }) |end, bytes| {
                const name = try std.mem.concat(a, u8, &.{ p.name, end });
                if (std.mem.eql(u8, name, fault.skip)) continue;
                const shape = try a.dupe(usize, &export_source.mxfp4Shape(p));
                var dims: []usize = shape[0..if (end[1] == 'b') 4 else 3];
                if (std.mem.eql(u8, name, fault.reshape)) std.mem.swap(usize, &dims[0], &dims[1]);
                try entries.append(a, .{ .name = name, .dtype = if (std.mem.eql(u8, name, fault.retype)) .i8 else .u8, .shape = dims });
                try data.append(a, bytes);
            }
        }
        var out: std.Io.Writer.Allocating = .init(gpa);
        defer out.deinit();

        var writer = try safetensors.Writer.begin(gpa, &out.writer, entries.items, &.{});
        for (data.items) |bytes| try writer.writeBytes(bytes);
        writer.finish();
        try base.storage.writeFile(gpa, self.disk.storage(), "m/model.safetensors", out.written());
    }

    /// Random codes and scales; their numbers go to `flat`, turned.
    fn makeBlocks(self: *Folder, a: std.mem.Allocator, random: std.Random, p: *const arch.Parameter, bad_scale: bool) !struct { []u8, []u8 } {
        const shape = export_source.mxfp4Shape(p);
        const blocks = shape[0] * shape[1] * shape[2];
        const codes = try a.alloc(u8, blocks * 16);
        const scales = try a.alloc(u8, blocks);
        random.bytes(codes);
        for (scales) |*e| e.* = 118 + random.uintLessThan(u8, 7);
        const out = p.slice(f32, self.flat);
        for (0..blocks) |b| {
            var values: [32]f32 = undefined;
            mxfp4.dequantizePairs(scales[b], codes[b * 16 ..][0..16], &values);
            const row = b / shape[2];
            const first = b % shape[2] * 32;
            const expert = row / shape[1];
            for (values, first..) |v, i| out[(expert * p.full[1] + i) * p.full[2] + row % shape[1]] = v;
        }
        if (bad_scale) scales[blocks / 2] = 255;
        return .{ codes, scales };
    }

    fn run(self: *Folder, o: gguf_export.Options, diag: *base.Diagnostic) !void {
        var given = o;
        given.source = .{ .folder = "m" };
        given.tokenizer = .none;
        _ = try gguf_export.run(gpa, self.disk.storage(), given, null, diag);
    }

    fn exported(self: *Folder, o: gguf_export.Options) !Opened {
        var diag: base.Diagnostic = .{};
        self.run(o, &diag) catch |err| {
            std.debug.print("{s}\n", .{diag.text()});
            return err;
        };
        const raw = try self.disk.storage().readAlloc(gpa, o.out_path);
        errdefer gpa.free(raw);
        return .{ .raw = raw, .import = try .open(gpa, raw, &diag) };
    }
};

const Opened = struct {
    raw: []u8,
    import: gguf_import.Import,

    fn deinit(self: *Opened) void {
        self.import.deinit();
        gpa.free(self.raw);
    }

    fn expectNumbers(self: *Opened, wanted: []const f32, role: arch.Role) !void {
        for (self.import.layout.parameters) |*p| if (p.role == role) {
            const got = try gpa.alloc(f32, p.len);
            defer gpa.free(got);
            try self.import.read(p, got);
            try testing.expectEqualSlices(f32, p.sliceConst(f32, wanted), got);
        };
    }
};

fn options(dtype: DType) gguf_export.Options {
    return .{ .source = .{ .folder = "m" }, .out_path = "m.gguf", .dtype = dtype };
}

const weight_roles = [_]arch.Role{ .experts_gate_up, .experts_down };

test "floats and blocks give a file of the same numbers, whatever the other matrices become" {
    var folder = try Folder.init(mixture, .{});
    defer folder.deinit();

    for ([_]DType{ .f32, .bf16, .q8_0, .q4_k }) |dtype| {
        var kept = try folder.exported(options(dtype));
        defer kept.deinit();
        for (weight_roles) |role| {
            const p = kept.import.layout.get(1, role).?;
            try testing.expectEqual(DType.mxfp4, kept.import.tensorOf(p).dtype);
            try kept.expectNumbers(folder.flat, role);
        }
        try testing.expectEqual(DType.f32, kept.import.tensorOf(kept.import.layout.get(0, .router_weight).?).dtype);
        try testing.expectEqual(@as(u32, 38), kept.import.file.get("general.file_type").?.u32);
    }
    var wide = options(.f32);
    wide.experts = .expand;
    var expanded = try folder.exported(wide);
    defer expanded.deinit();
    try testing.expectEqualDeep(mixture, expanded.import.config);
    inline for (@typeInfo(arch.Role).@"enum".field_names) |name| try expanded.expectNumbers(folder.flat, @field(arch.Role, name));

    wide.source = .{ .weights = .{ .config = mixture, .flat = folder.flat } };
    wide.out_path = "floats.gguf";
    wide.tokenizer = .none;
    wide.name = "m";
    var diag: base.Diagnostic = .{};
    _ = try gguf_export.run(gpa, folder.disk.storage(), wide, null, &diag);
    const raw = try folder.disk.storage().readAlloc(gpa, "floats.gguf");
    defer gpa.free(raw);
    try testing.expectEqualSlices(u8, expanded.raw, raw);
}

test "a file's experts are MXFP4 by the mix's name, and stay so under any other" {
    var folder = try Folder.init(mixture, .{});
    defer folder.deinit();

    for ([_]struct { gguf_mix.Mix, DType, u32 }{ .{ .mxfp4_moe, .q8_0, 38 }, .{ .q4_k_m, .q5_0, 15 }, .{ .bf16, .bf16, 38 } }) |case| {
        var o = options(.f32);
        o.mix = case[0];
        var file = try folder.exported(o);
        defer file.deinit();
        const layout = &file.import.layout;
        try testing.expectEqual(DType.mxfp4, file.import.partOf(layout.get(1, .experts_gate_up).?, .up).dtype);
        try testing.expectEqual(case[1], file.import.tensorOf(layout.get(1, .q_weight).?).dtype);
        try testing.expectEqual(case[2], file.import.file.get("general.file_type").?.u32);
        for (weight_roles) |role| try file.expectNumbers(folder.flat, role);
    }
}

/// Adds 1 to output 3 of expert 1 of layer 0's down, for all inputs.
const One = struct {
    index: usize,

    fn delta(self: *const One) gguf_export.Delta {
        return .{ .context = self, .add = nothing, .add_expert = add, .changes_expert = changes };
    }

    fn nothing(_: *const anyopaque, _: usize, _: usize, _: []f32) void {}

    fn add(context: *const anyopaque, index: usize, expert: usize, column: usize, out: []f32) void {
        if (!changes(context, index, expert) or column != 3) return;
        for (out) |*x| x.* += 1;
    }

    fn changes(context: *const anyopaque, index: usize, expert: usize) bool {
        const self: *const One = @ptrCast(@alignCast(context));
        return index == self.index and expert == 1;
    }
};

test "an adapter's experts are rounded anew or kept as bf16, the others stay to the bit" {
    var folder = try Folder.init(mixture, .{});
    defer folder.deinit();

    const p = folder.layout.get(0, .experts_down).?; // [3, 96, 64]
    const one: One = .{ .index = folder.layout.positionOf(p) };
    const wanted = p.slice(f32, folder.flat);
    for ([_]gguf_export.Experts{ .keep, .changed_as_bf16 }) |experts| {
        var o = options(.q8_0);
        o.delta = one.delta();
        o.experts = experts;
        var file = try folder.exported(o);
        defer file.deinit();
        const dtype: DType = if (experts == .keep) .mxfp4 else .bf16;
        const found = file.import.layout.get(0, .experts_down).?;
        try testing.expectEqual(dtype, file.import.tensorOf(found).dtype);
        try testing.expectEqual(DType.mxfp4, file.import.tensorOf(file.import.layout.get(1, .experts_down).?).dtype);
        const got = try gpa.alloc(f32, p.len);
        defer gpa.free(got);
        try file.import.read(found, got);
        for (0..3) |e| for (0..64) |column| {
            var row: [96]f32 = undefined;
            for (&row, 0..) |*x, i| x.* = wanted[(e * 96 + i) * 64 + column] + @as(f32, if (e == 1 and column == 3) 1 else 0);
            if (e == 1) { // All rows of a changed expert are rounded; those on the grid stay what they were.
                var raw: [192]u8 = undefined;
                const stored = raw[0..try dtype.rowBytes(row.len)];
                try quant.encode(dtype, &row, stored);
                try tensor.blocks.toF32(dtype, stored, &row);
            }
            for (row, 0..) |x, i| try testing.expectEqual(x, got[(e * 96 + i) * 64 + column]);
        };
    }
}

fn expectRefused(config: arch.ModelConfig, fault: Fault, err: anyerror, words: []const u8) !void {
    var folder = try Folder.init(config, fault);
    defer folder.deinit();

    var diag: base.Diagnostic = .{};
    try testing.expectError(err, folder.run(options(.q8_0), &diag));
    if (std.mem.find(u8, diag.text(), words) == null) {
        std.debug.print("\"{s}\" is not in \"{s}\"\n", .{ words, diag.text() });
        return error.WrongWords;
    }
    try testing.expectEqual(null, try folder.disk.storage().kind("m.gguf"));
}

test "blocks that are missing, misshapen, of another type, there twice or without a scale are named" {
    const blocks = "model.layers.1.mlp.experts.gate_up_proj_blocks";
    const scales = "model.layers.0.mlp.experts.down_proj_scales";
    try expectRefused(mixture, .{ .skip = blocks }, error.MissingTensor, blocks ++ " is in none");
    try expectRefused(mixture, .{ .skip = scales }, error.MissingTensor, scales ++ " is in none");
    try expectRefused(mixture, .{ .skip = "model.layers.1.self_attn.sinks" }, error.MissingTensor, "self_attn.sinks");
    try expectRefused(mixture, .{ .skip = "model.layers.0.mlp.experts.down_proj_bias" }, error.MissingTensor, "down_proj_bias");
    try expectRefused(mixture, .{ .reshape = blocks }, error.WrongTensorShape, blocks ++ "\" has shape { 192, 3, 2, 16 }; config.json asks for { 3, 192, 2, 16 }");
    try expectRefused(mixture, .{ .reshape = scales }, error.WrongTensorShape, scales);
    try expectRefused(mixture, .{ .retype = scales }, error.UnsupportedTensorType, "has type i8; MXFP4 is stored as U8");
    try expectRefused(mixture, .{ .besides = "model.layers.0.mlp.experts.down_proj" }, error.DuplicateTensor, "as MXFP4 and as floats");
    try expectRefused(mixture, .{ .bad_scale = true }, error.NotFinite, "model.layers.0.mlp.experts.gate_up_proj");
}

test "a head that is the embedding is written all the same" {
    var config = mixture;
    config.tie_word_embeddings = true;
    var folder = try Folder.init(config, .{});
    defer folder.deinit();

    var file = try folder.exported(options(.f32));
    defer file.deinit();
    try testing.expectEqualDeep(mixture, file.import.config);
    const embedding = folder.layout.parameters[0].sliceConst(f32, folder.flat);
    const head = try gpa.alloc(f32, embedding.len);
    defer gpa.free(head);
    try file.import.read(file.import.layout.get(null, .output).?, head);
    try testing.expectEqualSlices(f32, embedding, head);

    var o = options(.f32);
    o.source = .{ .weights = .{ .config = config, .flat = folder.flat } };
    o.tokenizer = .none;
    o.out_path = "memory.gguf";
    o.experts = .expand;
    var diag: base.Diagnostic = .{};
    _ = try gguf_export.run(gpa, folder.disk.storage(), o, null, &diag);
}
