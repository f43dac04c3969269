//! Importing what was exported, and refusing files whose keys and tensors do not fit.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const tensor = @import("tensor");
const gguf = @import("gguf.zig");
const gguf_config = @import("gguf_config.zig");
const gguf_writer = @import("gguf_writer.zig");
const name_map = @import("name_map.zig");
const Import = @import("gguf_import.zig").Import;

const testing = std.testing;

const small: arch.ModelConfig = .{
    .vocab_size = 40,
    .hidden_size = 32,
    .intermediate_size = 64,
    .num_hidden_layers = 2,
    .num_attention_heads = 4,
    .num_key_value_heads = 2,
    .head_dim = 8,
    .tie_word_embeddings = false,
};

/// What a test may do wrong while a file is made.
const Fault = struct {
    skip: []const u8 = "",
    rename: struct { []const u8, []const u8 } = .{ "", "" },
    reshape: []const u8 = "",
    retype: struct { []const u8, tensor.DType } = .{ "", .f32 },
    extra: []const u8 = "",
    /// Dimensions the wrong way round, rows not permuted.
    abi: bool = false,
    vocab_key: ?u32 = null,
    /// The keys are another model's.
    keyed: ?arch.ModelConfig = null,
    /// One key more.
    pattern: ?[]const bool = null,
    period: ?u32 = null,
};

/// A file of zeros for `config`, all f32, with the fault.
fn make(gpa: std.mem.Allocator, config: arch.ModelConfig, fault: Fault) ![]u8 {
    var layout = try arch.Layout.init(gpa, config);
    defer layout.deinit();
    var header: gguf_writer.Header = .init(gpa);
    defer header.deinit();

    try header.put([]const u8, "general.architecture", @tagName(name_map.Architecture.of(config.model_type)));
    var keyed = fault.keyed orelse config;
    if (fault.pattern) |flags| try header.put([]const bool, "gpt-oss.attention.sliding_window_pattern", flags);
    if (fault.period) |n| try header.put(u32, "gpt-oss.attention.sliding_window_pattern", n);
    if (fault.vocab_key) |v| keyed.vocab_size = v;
    try gguf_config.write(&header, keyed);
    var buffer: name_map.NameBuffer = undefined;
    for (layout.parameters) |*p| for (name_map.parts(p.role)) |part| {
        var name = name_map.ggufName(&buffer, .of(config.model_type), .{ .layer = p.layer, .role = p.role, .part = part });
        if (std.mem.eql(u8, name, fault.skip)) continue;
        var shape = name_map.storedShape(p, part);
        const dims = &shape.sizes;
        if (fault.abi and p.rank == 2) std.mem.swap(usize, &dims[0], &dims[1]);
        if (std.mem.eql(u8, name, fault.reshape)) dims[0] += 1;
        const dtype = if (std.mem.eql(u8, name, fault.retype[0])) fault.retype[1] else .f32;
        if (std.mem.eql(u8, name, fault.rename[0])) name = fault.rename[1];
        try header.addTensor(name, dtype, shape.dims());
    };
    if (fault.extra.len > 0) try header.addTensor(fault.extra, .f32, &.{4});

    var out: std.Io.Writer.Allocating = .init(gpa);
    errdefer out.deinit();
    try header.write(&out.writer);
    var stream: gguf_writer.Stream = .init(&header, &out.writer);
    var n: f32 = 0;
    for (header.tensors.items) |t| {
        for (0..t.bytes / 4) |_| {
            var raw: [4]u8 = undefined;
            base.bytes.store(f32, &raw, if (t.dtype == .f32) n else 0);
            n += 1;
            try stream.write(&raw);
        }
        const rest: [3]u8 = @splat(0);
        if (t.bytes % 4 != 0) try stream.write(rest[0 .. t.bytes % 4]);
    }
    return out.toOwnedSlice();
}

fn expectRefused(config: arch.ModelConfig, fault: Fault, err: anyerror, words: []const u8) !void {
    const raw = try make(testing.allocator, config, fault);
    defer testing.allocator.free(raw);
    var diag: base.Diagnostic = .{};
    if (Import.open(testing.allocator, raw, &diag)) |opened| {
        var import = opened;
        import.deinit();
        return error.TestUnexpectedSuccess;
    } else |found| {
        testing.expectEqual(err, @as(anyerror, found)) catch |e| {
            std.debug.print("{s}\n", .{diag.text()});
            return e;
        };
        if (std.mem.find(u8, diag.text(), words) == null) {
            std.debug.print("message: {s}\n", .{diag.text()});
            return error.TestExpectedMessage;
        }
    }
}

test "tensors that are missing, extra, misshapen or of a wrong type are named" {
    try expectRefused(small, .{ .skip = "blk.1.ffn_up.weight" }, error.MissingTensor, "blk.1.ffn_up.weight");
    try expectRefused(small, .{ .skip = "token_embd.weight" }, error.MissingTensor, "token_embd");
    try expectRefused(small, .{ .extra = "blk.0.attn_qkv.weight" }, error.UnexpectedTensor, "attn_qkv");
    try expectRefused(small, .{ .extra = "blk.2.attn_norm.weight" }, error.UnexpectedTensor, "blk.2");
    try expectRefused(small, .{ .extra = "blk.1.attn_q.bias" }, error.UnexpectedTensor, "attn_q.bias");
    try expectRefused(small, .{ .reshape = "blk.0.attn_k.weight" }, error.WrongTensorShape, "attn_k");
    try expectRefused(small, .{ .retype = .{ "blk.0.attn_v.weight", .iq4_nl } }, error.UnsupportedTensorType, "iq4_nl");
    try expectRefused(small, .{ .retype = .{ "blk.0.attn_norm.weight", .q8_0 } }, error.UnsupportedTensorType, "q8_0");
    try expectRefused(small, .{ .rename = .{ "output.weight", "head.weight" } }, error.UnexpectedTensor, "head.weight");
}

const mixture: arch.ModelConfig = .{
    .model_type = .gpt_oss,
    .vocab_size = 40,
    .hidden_size = 32,
    .intermediate_size = 64,
    .num_hidden_layers = 2,
    .num_attention_heads = 4,
    .num_key_value_heads = 2,
    .head_dim = 16,
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

test "what a mixture lacks or has in another shape is named" {
    for ([_][]const u8{ "blk.1.attn_sinks.weight", "blk.0.attn_q.bias", "blk.0.attn_output.bias", "blk.1.ffn_gate_inp.weight", "blk.1.ffn_gate_inp.bias", "blk.0.ffn_gate_exps.weight", "blk.0.ffn_up_exps.bias", "blk.1.ffn_down_exps.bias", "output.weight", "blk.0.post_attention_norm.weight" }) |name|
        try expectRefused(mixture, .{ .skip = name }, error.MissingTensor, name);
    try expectRefused(mixture, .{ .reshape = "blk.0.ffn_up_exps.weight" }, error.WrongTensorShape, "ffn_up_exps.weight has dimensions { 32, 64, 4, 1 }");
    try expectRefused(mixture, .{ .reshape = "blk.0.ffn_down_exps.bias" }, error.WrongTensorShape, "ffn_down_exps.bias");
    try expectRefused(mixture, .{ .retype = .{ "blk.0.attn_sinks.weight", .i32 } }, error.UnsupportedTensorType, "attn_sinks");
    try expectRefused(mixture, .{ .retype = .{ "blk.0.ffn_gate_inp.weight", .q8_0 } }, error.UnsupportedTensorType, "ffn_gate_inp");
    try expectRefused(mixture, .{ .extra = "blk.0.ffn_norm.weight" }, error.UnexpectedTensor, "ffn_norm");
    try expectRefused(mixture, .{ .extra = "blk.0.ffn_gate.weight" }, error.UnexpectedTensor, "ffn_gate.weight");
}

test "a mixture's keys are checked before they are used" {
    const Case = struct { keyed: arch.ModelConfig = mixture, pattern: ?[]const bool = null, period: ?u32 = null, err: anyerror = error.InvalidModelConfig, words: []const u8 };
    var cases: [8]Case = @splat(.{ .words = "" });
    cases[0].keyed.num_experts_per_tok = 4;
    cases[0].words = "num_experts_per_tok is 4; it must be at least 1 and at most num_local_experts (3)";
    cases[1].keyed.num_experts_per_tok = 0;
    cases[1].words = "num_experts_per_tok is 0";
    cases[2] = .{ .words = "the keys ask for { 32, 4, 1, 1 }", .err = error.WrongTensorShape };
    cases[2].keyed.num_local_experts = 4;
    cases[3] = .{ .words = "num_local_experts is 2000", .err = error.InvalidModelConfig };
    cases[3].keyed.num_local_experts = 2000;
    cases[4] = .{ .words = "attention.sliding_window is 0", .err = error.InvalidKeyValue };
    cases[4].keyed.sliding_window = 0;
    cases[5] = .{ .words = "sliding_window_pattern lists 3 values for 2 layers", .err = error.InvalidKeyValue, .pattern = &.{ true, false, true } };
    cases[6] = .{ .words = "names 1 of 2 layers", .err = error.UnsupportedFeature, .pattern = &.{ false, true } };
    cases[7] = .{ .words = "sliding_window_pattern is 6", .err = error.UnsupportedFeature, .period = 6 };
    for (cases) |case| {
        errdefer std.debug.print("{s}\n", .{case.words});
        try expectRefused(mixture, .{ .keyed = case.keyed, .pattern = case.pattern, .period = case.period }, case.err, case.words);
    }
}

test "which layers have the window is read from a period or from flags" {
    const gpa = testing.allocator;
    const Case = struct { pattern: ?[]const bool = null, period: ?u32 = null, window: ?u32 = 8, layers: arch.config.WindowedLayers = .even };
    for ([_]Case{
        .{},
        .{ .period = 2 },
        .{ .pattern = &.{ true, false } },
        .{ .pattern = &.{ true, true }, .layers = .every },
        .{ .period = 0, .layers = .every },
        .{ .pattern = &.{ false, false }, .window = null },
        .{ .period = 1, .window = null },
    }) |case| {
        const raw = try make(gpa, mixture, .{ .pattern = case.pattern, .period = case.period });
        defer gpa.free(raw);
        var diag: base.Diagnostic = .{};
        var import = try Import.open(gpa, raw, &diag);
        defer import.deinit();
        var wanted = mixture;
        wanted.sliding_window = case.window;
        wanted.windowed_layers = case.layers;
        try testing.expectEqualDeep(wanted, import.config);
    }
    var every = mixture;
    every.windowed_layers = .every;
    every.rope_scaling.yarn.truncate = true;
    const raw = try make(gpa, every, .{});
    defer gpa.free(raw);
    var diag: base.Diagnostic = .{};
    var import = try Import.open(gpa, raw, &diag);
    defer import.deinit();
    try testing.expectEqualDeep(every, import.config);
}

test "experts come out turned, gate and up in turn" {
    const gpa = testing.allocator;
    const raw = try make(gpa, mixture, .{}); // Every number is its place in the file.
    defer gpa.free(raw);
    var diag: base.Diagnostic = .{};
    var import = try Import.open(gpa, raw, &diag);
    defer import.deinit();
    try testing.expectEqualDeep(mixture, import.config);
    const first = struct {
        fn of(info: *const gguf.TensorInfo) f32 {
            return base.bytes.at(f32, info.data, 0);
        }
    }.of;
    const gate_up = import.layout.get(1, .experts_gate_up).?; // [3, 32, 128]
    const values = try gpa.alloc(f32, gate_up.len);
    defer gpa.free(values);
    try import.read(gate_up, values);
    for ([_]name_map.Part{ .gate, .up }) |part| {
        const start = first(import.partOf(gate_up, part)); // [3, 64, 32] in the file.
        for (0..3) |e| for (0..64) |o| for (0..32) |i| {
            const stored = start + @as(f32, @floatFromInt((e * 64 + o) * 32 + i));
            try testing.expectEqual(stored, values[(e * 32 + i) * 128 + part.of(o)]);
        };
    }
    const down = import.layout.get(0, .experts_down).?; // [3, 64, 32]
    const down_values = values[0..down.len];
    try import.read(down, down_values);
    const start = first(import.tensorOf(down)); // [3, 32, 64]
    try testing.expectEqual(start + @as(f32, (2 * 32 + 5) * 64 + 7), down_values[(2 * 64 + 7) * 32 + 5]);
    const bias = import.layout.get(0, .experts_gate_up_bias).?; // [3, 128]
    const bias_values = values[0..bias.len];
    try import.read(bias, bias_values);
    try testing.expectEqual(first(import.partOf(bias, .up)) + 64 + 3, bias_values[128 + 7]);
    try testing.expectEqual(first(import.partOf(bias, .gate)) + 64 + 3, bias_values[128 + 6]);
}

test "keys that do not fit are named" {
    try expectRefused(small, .{ .vocab_key = 41 }, error.InvalidKeyValue, "vocab_size is 41");
    var bad = small;
    bad.num_hidden_layers = 0;
    try expectRefused(bad, .{}, error.InvalidKeyValue, "block_count is 0");
    bad = small;
    bad.rms_norm_eps = 0;
    try expectRefused(bad, .{}, error.InvalidModelConfig, "rms_norm_eps");
    bad = small;
    bad.rope_theta = -1;
    try expectRefused(bad, .{}, error.InvalidModelConfig, "rope_theta");
    bad = small;
    bad.max_position_embeddings = 0;
    try expectRefused(bad, .{}, error.InvalidKeyValue, "context_length is 0");
    // qwen2 without its biases would load elsewhere and be wrong.
    bad = small;
    bad.model_type = .qwen2;
    try expectRefused(bad, .{}, error.NotExpressible, "qkv_bias");
}

const KeyFault = struct { key: []const u8, value: union(enum) { u32: u32, f32: f32, string: []const u8, missing, list: []const u32 }, err: anyerror, words: []const u8 };

/// A file with one key replaced, all tensors being there.
fn expectKeyRefused(fault: KeyFault) !void {
    const gpa = testing.allocator;
    var header: gguf_writer.Header = .init(gpa);
    defer header.deinit();

    const keys = .{
        .{ "general.architecture", @as([]const u8, "llama") },
        .{ "llama.context_length", @as(u32, 64) },
        .{ "llama.embedding_length", @as(u32, 32) },
        .{ "llama.block_count", @as(u32, 2) },
        .{ "llama.feed_forward_length", @as(u32, 64) },
        .{ "llama.attention.head_count", @as(u32, 4) },
        .{ "llama.attention.head_count_kv", @as(u32, 2) },
        .{ "llama.attention.layer_norm_rms_epsilon", @as(f32, 1e-5) },
    };
    var known = false;
    inline for (keys) |pair| {
        if (std.mem.eql(u8, pair[0], fault.key)) known = true else try header.put(@TypeOf(pair[1]), pair[0], pair[1]);
    }
    switch (fault.value) {
        .u32 => |v| try header.put(u32, fault.key, v),
        .f32 => |v| try header.put(f32, fault.key, v),
        .string => |v| try header.put([]const u8, fault.key, v),
        .list => |v| try header.put([]const u32, fault.key, v),
        .missing => try testing.expect(known),
    }
    try header.addTensor("token_embd.weight", .f32, &.{ 40, 32 });
    var out: std.Io.Writer.Allocating = .init(gpa);
    defer out.deinit();
    try header.write(&out.writer);
    try base.bytes.writeZeros(&out.writer, header.data_bytes);

    var diag: base.Diagnostic = .{};
    var file = try gguf.File.parse(gpa, out.written(), &diag);
    defer file.deinit();
    testing.expectError(fault.err, gguf_config.read(&file, &diag)) catch |e| {
        std.debug.print("{s}: {s}\n", .{ fault.key, diag.text() });
        return e;
    };
    if (std.mem.find(u8, diag.text(), fault.words) == null) {
        std.debug.print("message: {s}\n", .{diag.text()});
        return error.TestExpectedMessage;
    }
}

test "each key is checked before it is used" {
    const e = "llama.";
    const cases = [_]KeyFault{
        .{ .key = "general.architecture", .value = .{ .string = "gpt-neox" }, .err = error.UnsupportedArchitecture, .words = "gpt-neox" },
        .{ .key = "general.architecture", .value = .missing, .err = error.MissingKey, .words = "general.architecture" },
        .{ .key = "general.architecture", .value = .{ .u32 = 1 }, .err = error.WrongKeyType, .words = "must be string" },
        .{ .key = "general.type", .value = .{ .string = "adapter" }, .err = error.UnsupportedFeature, .words = "adapter" },
        .{ .key = e ++ "expert_count", .value = .{ .u32 = 8 }, .err = error.UnsupportedFeature, .words = "expert_count is 8" },
        .{ .key = e ++ "embedding_length", .value = .missing, .err = error.MissingKey, .words = "embedding_length" },
        .{ .key = e ++ "embedding_length", .value = .{ .u32 = 0 }, .err = error.InvalidKeyValue, .words = "is 0" },
        .{ .key = e ++ "embedding_length", .value = .{ .f32 = 32 }, .err = error.WrongKeyType, .words = "f32" },
        .{ .key = e ++ "block_count", .value = .{ .u32 = 513 }, .err = error.InvalidKeyValue, .words = "513" },
        .{ .key = e ++ "attention.head_count", .value = .{ .u32 = 0 }, .err = error.InvalidKeyValue, .words = "0" },
        .{ .key = e ++ "attention.head_count", .value = .{ .u32 = 5 }, .err = error.InvalidKeyValue, .words = "multiple" },
        .{ .key = e ++ "attention.head_count", .value = .missing, .err = error.MissingKey, .words = "head_count" },
        .{ .key = e ++ "attention.head_count_kv", .value = .{ .u32 = 0 }, .err = error.InvalidKeyValue, .words = "0" },
        .{ .key = e ++ "attention.head_count_kv", .value = .{ .u32 = 3 }, .err = error.InvalidModelConfig, .words = "multiple of num_key_value_heads" },
        .{ .key = e ++ "attention.head_count_kv", .value = .{ .list = &.{ 2, 1 } }, .err = error.UnsupportedFeature, .words = "layer to layer" },
        .{ .key = e ++ "attention.head_count_kv", .value = .{ .list = &.{2} }, .err = error.InvalidKeyValue, .words = "1 values for 2 layers" },
        .{ .key = e ++ "feed_forward_length", .value = .missing, .err = error.MissingKey, .words = "feed_forward_length" },
        .{ .key = e ++ "attention.layer_norm_rms_epsilon", .value = .{ .f32 = std.math.nan(f32) }, .err = error.InvalidModelConfig, .words = "rms_norm_eps" },
        .{ .key = e ++ "rope.freq_base", .value = .{ .f32 = 0 }, .err = error.InvalidModelConfig, .words = "rope_theta" },
        .{ .key = e ++ "rope.dimension_count", .value = .{ .u32 = 4 }, .err = error.UnsupportedFeature, .words = "dimension_count is 4" },
        .{ .key = e ++ "attention.value_length", .value = .{ .u32 = 16 }, .err = error.UnsupportedFeature, .words = "value_length" },
        .{ .key = e ++ "attention.key_length", .value = .{ .u32 = 7 }, .err = error.InvalidModelConfig, .words = "even" },
        .{ .key = e ++ "rope.scaling.type", .value = .{ .string = "yarn" }, .err = error.UnsupportedRopeScaling, .words = "yarn" },
        .{ .key = e ++ "rope.scaling.factor", .value = .{ .f32 = -2 }, .err = error.InvalidModelConfig, .words = "factor" },
        .{ .key = e ++ "vocab_size", .value = .{ .u32 = 39 }, .err = error.InvalidKeyValue, .words = "39" },
        .{ .key = "tokenizer.ggml.bos_token_id", .value = .{ .u32 = 40 }, .err = error.InvalidKeyValue, .words = "bos_token_id is 40" },
    };
    for (cases) |case| try expectKeyRefused(case);
}

test "a file of the ABI framework is read with its reversed dimensions and its own row order" {
    const raw = try make(testing.allocator, small, .{ .abi = true });
    defer testing.allocator.free(raw);
    var diag: base.Diagnostic = .{};
    var import = try Import.open(testing.allocator, raw, &diag);
    defer import.deinit();
    try testing.expectEqual(gguf_config.Dialect.abi, import.dialect);
    try testing.expectEqual(@as(u32, 40), import.config.vocab_size);
    // Values count up through the file, so an unpermuted tensor counts up too.
    const q = import.layout.get(0, .q_weight).?;
    var out: [32 * 32]f32 = undefined;
    try import.read(q, &out);
    for (out[1..], out[0 .. out.len - 1]) |next, previous| try testing.expectEqual(previous + 1, next);
}

test "rows of q and k come back in Hugging Face's order, the others as they lie" {
    const raw = try make(testing.allocator, small, .{});
    defer testing.allocator.free(raw);
    var diag: base.Diagnostic = .{};
    var import = try Import.open(testing.allocator, raw, &diag);
    defer import.deinit();

    const k = import.layout.get(1, .k_weight).?;
    const v = import.layout.get(1, .v_weight).?;
    var out: [16 * 32]f32 = undefined;
    try import.read(v, &out);
    for (out[1..], out[0 .. out.len - 1]) |next, previous| try testing.expectEqual(previous + 1, next);
    try import.read(k, &out);
    const start = base.bytes.at(f32, import.tensorOf(k).data, 0);
    // Head of 8: Hugging Face's rows 0 1 2 3 4 5 6 7 stand at 0 2 4 6 1 3 5 7 in the file.
    for ([_]usize{ 0, 2, 4, 6, 1, 3, 5, 7 }, 0..) |stored, hf| for (0..2) |head| {
        try testing.expectEqual(start + @as(f32, @floatFromInt((head * 8 + stored) * 32)), out[(head * 8 + hf) * 32]);
    };
}

test "a number that is not finite is refused when it is read" {
    const raw = try make(testing.allocator, small, .{});
    defer testing.allocator.free(raw);
    var diag: base.Diagnostic = .{};
    var import = try Import.open(testing.allocator, raw, &diag);
    defer import.deinit();

    const norm = import.layout.get(null, .final_norm).?;
    const at = @intFromPtr(import.tensorOf(norm).data.ptr) - @intFromPtr(raw.ptr);
    base.bytes.store(f32, raw[at + 8 ..][0..4], std.math.inf(f32));
    var out: [32]f32 = undefined;
    try testing.expectError(error.NotFinite, import.read(norm, &out));
}

test "opening survives the failure of each allocation" {
    const raw = try make(testing.allocator, small, .{});
    defer testing.allocator.free(raw);
    try testing.checkAllAllocationFailures(testing.allocator, struct {
        fn run(gpa: std.mem.Allocator, bytes: []const u8) !void {
            var diag: base.Diagnostic = .{};
            var import = try Import.open(gpa, bytes, &diag);
            import.deinit();
        }
    }.run, .{raw});
}

test "a model file with any one byte of its tables changed is opened or refused, never a crash" {
    const raw = try make(testing.allocator, small, .{});
    defer testing.allocator.free(raw);
    var diag: base.Diagnostic = .{};
    var whole = try gguf.File.parse(testing.allocator, raw, &diag);
    const tables = whole.data_start;
    whole.deinit();
    const q_len = 32 * 32;
    for (0..tables) |place| for ([_]u8{ 0x00, 0x01, 0x10, 0xff }) |byte| {
        const old = raw[place];
        defer raw[place] = old;
        raw[place] = byte;
        var import = Import.open(testing.allocator, raw, &diag) catch |err| {
            try testing.expect(err != error.OutOfMemory);
            try testing.expect(diag.text().len > 0);
            continue;
        };
        defer import.deinit();
        const q = import.layout.get(0, .q_weight).?;
        if (q.len != q_len) continue;
        var out: [q_len]f32 = undefined;
        import.read(q, &out) catch {};
    };
}
