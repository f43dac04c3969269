//! Tests of experts in MXFP4: the numbers of their blocks loaded and mapped, from folders and GGUF, and every wrong pair refused.

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

const small: arch.ModelConfig = .{
    .model_type = .gpt_oss,
    .vocab_size = 11,
    .hidden_size = 64,
    .intermediate_size = 32,
    .num_hidden_layers = 2,
    .num_attention_heads = 2,
    .num_key_value_heads = 1,
    .head_dim = 4,
    .qkv_bias = true,
    .attention_output_bias = true,
    .tie_word_embeddings = false,
    .sliding_window = 8,
    .windowed_layers = .even,
    .attention_sinks = true,
    .num_local_experts = 3,
    .num_experts_per_tok = 2,
    .swiglu_limit = 7,
    .rope_theta = 150_000,
    .rope_scaling = .{ .yarn = .{ .factor = 32, .original_max_position_embeddings = 4096, .truncate = false } },
};

/// A rig whose experts are blocks, and the arena their bytes are in.
const Mixed = struct {
    rig: rigs.Rig,
    arena: std.heap.ArenaAllocator,

    fn init() !Mixed {
        var self: Mixed = .{ .rig = try .init(small, .bf16), .arena = .init(testing.allocator) };
        const a = self.arena.allocator();
        var prng: base.Prng = .init(4);
        var i: usize = 0;
        while (i < self.rig.parts.items.len) {
            const part = self.rig.parts.items[i];
            const p = self.rig.model.layout.find(part.name).?;
            i += 1;
            if (!p.role.isExpertWeight()) continue;
            _ = self.rig.parts.orderedRemove(i - 1);
            const groups = p.shape[0] / 32;
            for ([_][]const u8{ "_blocks", "_scales" }, [_]usize{ 4, 3 }) |ending, rank| {
                const dims = try a.dupe(usize, ([4]usize{ p.count(), p.shape[1], groups, 16 })[0..rank]);
                const values = try a.alloc(f32, try base.checked.product(usize, dims));
                for (values) |*v| v.* = @floatFromInt(if (rank == 4) prng.below(256) else 118 + prng.below(6));
                try self.rig.parts.insert(testing.allocator, i - 1, .{ .name = try std.mem.concat(a, u8, &.{ part.name, ending }), .dtype = .u8, .shape = dims, .values = values });
                i += 1;
            }
            i -= 1;
        }
        return self;
    }

    fn deinit(self: *Mixed) void {
        self.rig.deinit();
        self.arena.deinit();
    }

    fn write(self: *Mixed) !void {
        // The writer wants wide types first.
        std.mem.sort(rigs.Part, self.rig.parts.items, {}, struct {
            fn wider(_: void, a: rigs.Part, b: rigs.Part) bool {
                return a.dtype.blockBytes() > b.dtype.blockBytes();
            }
        }.wider);
        try rigs.writeParts(self.rig.disk.storage(), "m/model.safetensors", self.rig.parts.items);
    }

    fn partOf(self: *Mixed, name: []const u8) *rigs.Part {
        for (self.rig.parts.items) |*part| if (std.mem.endsWith(u8, part.name, name)) return part;
        unreachable;
    }
};

/// Every number of the experts as it is mapped against what was loaded.
fn expectExperts(layout: *const arch.Layout, weights: []const f32, mapped: *const mapped_model.MappedModel) !void {
    for (layout.parameters, mapped.matrices) |p, matrix| {
        if (!p.role.isExpertWeight()) continue;
        try testing.expect(matrix.turned);
        try testing.expectEqual(3, matrix.count);
        const in, const wide = p.shape;
        const line = try testing.allocator.alloc(f32, in);
        defer testing.allocator.free(line);

        for (0..3) |e| for (0..wide) |o| {
            const one = matrix.of(e);
            const raw = one.part(o, 0, in);
            if (one.scales != null) {
                for (one.scalesOf(o, 0, in), 0..) |s, b| tensor.blocks.mxfp4.dequantizePairs(s, raw[16 * b ..][0..16], line[32 * b ..][0..32]);
            } else try tensor.blocks.toF32(one.dtype, raw, line);
            for (line, 0..) |x, i| try testing.expectEqual(p.sliceConst(f32, weights)[(e * in + i) * wide + o], x);
        };
    }
}

test "blocks are loaded as the numbers they are, turned, and mapped as the same numbers" {
    var mixed: Mixed = try .init();
    defer mixed.deinit();

    try mixed.write();
    var loaded = mixed.rig.load(f32) catch |err| {
        std.debug.print("{s}\n", .{mixed.rig.diag.text()});
        return err;
    };
    defer loaded.deinit(testing.allocator);

    // One number by hand: expert 1, unit 3's up (row 7), input 33.
    const p = loaded.layout.get(1, .experts_gate_up).?;
    const groups = 2;
    const block = (1 * 64 + 7) * groups + 1;
    const codes = mixed.partOf("layers.1.mlp.experts.gate_up_proj_blocks").values.?;
    const scales = mixed.partOf("layers.1.mlp.experts.gate_up_proj_scales").values.?;
    const byte: u8 = @round(codes[block * 16]);
    const exponent: i32 = @as(i32, @round(scales[block])) - 127;
    const value = std.math.ldexp(@as(f32, @floatFromInt(tensor.blocks.mxfp4.doubled[byte >> 4])) / 2, exponent);
    try testing.expectEqual(value, p.sliceConst(f32, loaded.weights)[(1 * 64 + 33) * 64 + 7]);

    var mapped = try mapped_model.openOn(testing.allocator, mixed.rig.disk.storage(), "m", &mixed.rig.diag);
    defer mapped.deinit();

    try expectExperts(&loaded.layout, loaded.weights, &mapped);
    const bias = loaded.layout.get(0, .experts_down_bias).?;
    try testing.expectEqualSlices(f32, bias.sliceConst(f32, loaded.weights), mapped.get(0, .experts_down_bias).?.vector());
}

test "a GGUF's experts, gate and up apart, are mapped as the numbers that loading gives" {
    const gpa = testing.allocator;
    var layout = try arch.Layout.init(gpa, small);
    defer layout.deinit();

    var header: formats.gguf_writer.Header = .init(gpa);
    defer header.deinit();

    try header.put([]const u8, "general.architecture", "gpt-oss");
    try formats.gguf_config.write(&header, small);
    var buffer: formats.name_map.NameBuffer = undefined;
    for (layout.parameters) |*p| for (formats.name_map.parts(p.role)) |part| {
        const name = formats.name_map.ggufName(&buffer, .@"gpt-oss", .{ .layer = p.layer, .role = p.role, .part = part });
        const shape = formats.name_map.storedShape(p, part);
        try header.addTensor(name, if (p.role.isExpertWeight()) .mxfp4 else .f32, shape.dims());
    };
    var out: std.Io.Writer.Allocating = .init(gpa);
    defer out.deinit();

    try header.write(&out.writer);
    var stream: formats.gguf_writer.Stream = .init(&header, &out.writer);
    var prng: base.Prng = .init(8);
    for (header.tensors.items) |t| {
        const raw = try gpa.alloc(u8, t.bytes);
        defer gpa.free(raw);

        for (raw) |*x| x.* = @truncate(prng.next() & 0x77); // No exponent is full.
        try stream.write(raw);
    }
    var disk: base.storage.MemoryDisk = try .init(gpa);
    defer disk.deinit();

    try base.storage.writeFile(gpa, disk.storage(), "m.gguf", out.written());
    var diag: Diagnostic = .{};
    var loaded = model_file.loadModelOn(f32, gpa, disk.storage(), "m.gguf", &diag) catch |err| {
        std.debug.print("{s}\n", .{diag.text()});
        return err;
    };
    defer loaded.deinit(gpa);
    var mapped = try mapped_model.openOn(gpa, disk.storage(), "m.gguf", &diag);
    defer mapped.deinit();

    try expectExperts(&loaded.layout, loaded.weights, &mapped);
    const bias = loaded.layout.get(1, .experts_gate_up_bias).?;
    try testing.expectEqualSlices(f32, bias.sliceConst(f32, loaded.weights), mapped.get(1, .experts_gate_up_bias).?.vector());
}

fn expectRefused(change: *const fn (*Mixed) anyerror!void, expected: model_file.Error, words: []const u8) !void {
    var mixed: Mixed = try .init();
    defer mixed.deinit();

    try change(&mixed);
    try mixed.write();
    try mixed.rig.expectRefused(expected, words);
    try testing.expectError(expected, mapped_model.openOn(testing.allocator, mixed.rig.disk.storage(), "m", &mixed.rig.diag));
    try testing.expect(std.mem.find(u8, mixed.rig.diag.text(), words) != null);
}

test "half a pair, wrong shapes and types, a scale of 255, floats beside blocks, no sinks and no bias are refused by name" {
    try expectRefused(struct {
        fn f(m: *Mixed) !void {
            m.partOf("layers.1.mlp.experts.down_proj_scales").name = "model.layers.1.mlp.experts.down_proj_other";
        }
    }.f, error.MissingTensor, "model.layers.1.mlp.experts.down_proj_scales\" is missing: MXFP4");
    try expectRefused(struct {
        fn f(m: *Mixed) !void {
            m.partOf("layers.0.mlp.experts.gate_up_proj_blocks").shape = &.{ 3, 64, 4, 8 };
        }
    }.f, error.WrongShape, "gate_up_proj_blocks\" has shape { 3, 64, 4, 8 }; config.json asks for { 3, 64, 2, 16 }");
    try expectRefused(struct {
        fn f(m: *Mixed) !void {
            m.partOf("layers.0.mlp.experts.gate_up_proj_scales").dtype = .f32;
        }
    }.f, error.WrongDType, "gate_up_proj_scales\" has type");
    try expectRefused(struct {
        fn f(m: *Mixed) !void {
            const part = m.partOf("layers.1.mlp.experts.gate_up_proj_scales");
            const values = try m.arena.allocator().dupe(f32, part.values.?);
            values[17] = 255;
            part.values = values;
        }
    }.f, error.NonFiniteWeights, "gate_up_proj_scales\" holds 255 at element 17");
    try expectRefused(struct {
        fn f(m: *Mixed) !void {
            try m.rig.parts.append(testing.allocator, .{ .name = "model.layers.0.mlp.experts.down_proj", .dtype = .bf16, .shape = &.{ 3, 32, 64 } });
        }
    }.f, error.DuplicateTensor, "down_proj\" is there as floats and in MXFP4");
    for ([_][]const u8{ "self_attn.sinks", "mlp.experts.down_proj_bias", "mlp.router.bias" }) |name| {
        var mixed: Mixed = try .init();
        defer mixed.deinit();

        mixed.partOf(name).name = "model.layers.0.nothing";
        try mixed.write();
        var words: [64]u8 = undefined;
        try mixed.rig.expectRefused(error.MissingTensor, try std.fmt.bufPrint(&words, "{s}\" is missing", .{name}));
    }
}

test "every allocation failure is survived" {
    var mixed: Mixed = try .init();
    defer mixed.deinit();

    try mixed.write();
    try testing.checkAllAllocationFailures(testing.allocator, struct {
        fn run(gpa: std.mem.Allocator, s: base.storage.Storage) !void {
            var diag: Diagnostic = .{};
            var loaded = try model_file.loadModelOn(f32, gpa, s, "m", &diag);
            defer loaded.deinit(gpa);
        }
    }.run, .{mixed.rig.disk.storage()});
}
