//! Tests of the linter: sound files are clean, each fault is found under its code, and what is said to be mended is.

const std = @import("std");
const base = @import("base");
const tensor = @import("tensor");
const gguf = @import("../gguf.zig");
const gguf_rewrite = @import("../gguf_rewrite.zig");
const lint = @import("lint.zig");
const testing = std.testing;
const Code = lint.Code;
const DType = tensor.DType;
const Tensor = gguf_rewrite.Tensor;

const texts = [_][]const u8{ "<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "ab", "Ġ", "c" };
const kinds = [_]i32{ 3, 3, 3, 1, 1, 1, 1, 1 };
const chat = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}";
/// Enough zero bytes for any tensor of these tests.
const zeros: [4096]u8 = @splat(0);

/// A tiny model, sound until a test breaks it.
const Fixture = struct {
    arena: std.mem.Allocator,
    keys: gguf_rewrite.Keys = .empty,
    tensors: std.ArrayList(Tensor) = .empty,

    fn put(self: *Fixture, name: []const u8, value: gguf.Value) !void {
        try self.keys.put(self.arena, name, value);
    }

    fn remove(self: *Fixture, name: []const u8) void {
        _ = self.keys.orderedRemove(name);
    }

    fn list(self: *Fixture, comptime T: type, values: []const T) !gguf.Value {
        var raw: std.ArrayList(u8) = .empty;
        for (values) |v| {
            if (T == []const u8) {
                try base.bytes.append(u64, self.arena, &raw, v.len);
                try raw.appendSlice(self.arena, v);
            } else try base.bytes.append(T, self.arena, &raw, v);
        }
        const element: gguf.ValueType = if (T == []const u8) .string else @field(gguf.ValueType, @typeName(T));
        return .{ .array = .{ .element = element, .count = values.len, .raw = raw.items } };
    }

    fn add(self: *Fixture, name: []const u8, dtype: DType, dims: []const usize) !void {
        var ne: [4]usize = @splat(1);
        @memcpy(ne[0..dims.len], dims);
        const size = try dtype.tensorBytes(&.{ ne[3], ne[2], ne[1], ne[0] });
        try self.tensors.append(self.arena, .{ .name = name, .dtype = dtype, .ne = ne, .rank = dims.len, .content = .{ .data = zeros[0..size], .dtype = dtype } });
    }

    fn get(self: *Fixture, name: []const u8) *Tensor {
        for (self.tensors.items) |*t| if (std.mem.eql(u8, t.name, name)) return t;
        unreachable; // A test names what is there.
    }

    fn drop(self: *Fixture, name: []const u8) void {
        for (self.tensors.items, 0..) |t, i| if (std.mem.eql(u8, t.name, name)) {
            _ = self.tensors.orderedRemove(i);
            return;
        };
        unreachable; // Same.
    }

    fn restore(self: *Fixture, name: []const u8, dtype: DType) void {
        const t = self.get(name);
        t.dtype = dtype;
        t.content.dtype = dtype;
        t.content.data = zeros[0 .. dtype.tensorBytes(&.{ t.ne[3], t.ne[2], t.ne[1], t.ne[0] }) catch unreachable];
    }

    /// A llama, tied; width 8, two heads of 4 with one shared, one layer.
    fn llama(arena: std.mem.Allocator) !Fixture {
        var self: Fixture = .{ .arena = arena };
        try self.put("general.architecture", .{ .string = "llama" });
        try self.put("general.file_type", .{ .u32 = 0 });
        for ([_]struct { []const u8, u32 }{
            .{ "llama.context_length", 32 },
            .{ "llama.embedding_length", 8 },
            .{ "llama.block_count", 1 },
            .{ "llama.feed_forward_length", 16 },
            .{ "llama.attention.head_count", 2 },
            .{ "llama.attention.head_count_kv", 1 },
            .{ "llama.rope.dimension_count", 4 },
            .{ "llama.vocab_size", texts.len },
            .{ "tokenizer.ggml.bos_token_id", 0 },
            .{ "tokenizer.ggml.eos_token_id", 2 },
        }) |entry| try self.put(entry[0], .{ .u32 = entry[1] });
        try self.put("llama.attention.layer_norm_rms_epsilon", .{ .f32 = 1e-5 });
        try self.put("tokenizer.ggml.model", .{ .string = "gpt2" });
        try self.put("tokenizer.ggml.pre", .{ .string = "gpt-2" });
        try self.put("tokenizer.ggml.tokens", try self.list([]const u8, &texts));
        try self.put("tokenizer.ggml.token_type", try self.list(i32, &kinds));
        try self.put("tokenizer.ggml.merges", try self.list([]const u8, &.{"a b"}));
        try self.put("tokenizer.chat_template", .{ .string = chat });
        try self.add("token_embd.weight", .f32, &.{ 8, texts.len });
        try self.add("blk.0.attn_norm.weight", .f32, &.{8});
        try self.add("blk.0.attn_q.weight", .f32, &.{ 8, 8 });
        try self.add("blk.0.attn_k.weight", .f32, &.{ 8, 4 });
        try self.add("blk.0.attn_v.weight", .f32, &.{ 8, 4 });
        try self.add("blk.0.attn_output.weight", .f32, &.{ 8, 8 });
        try self.add("blk.0.ffn_norm.weight", .f32, &.{8});
        try self.add("blk.0.ffn_gate.weight", .f32, &.{ 8, 16 });
        try self.add("blk.0.ffn_up.weight", .f32, &.{ 8, 16 });
        try self.add("blk.0.ffn_down.weight", .f32, &.{ 16, 8 });
        try self.add("output_norm.weight", .f32, &.{8});
        return self;
    }

    /// The same keys and tensors under another architecture's name.
    fn renamed(arena: std.mem.Allocator, name: []const u8) !Fixture {
        var self = try llama(arena);
        var keys: gguf_rewrite.Keys = .empty;
        for (self.keys.keys(), self.keys.values()) |key, value| {
            const new = if (std.mem.startsWith(u8, key, "llama.")) try std.mem.concat(arena, u8, &.{ name, key[5..] }) else key;
            try keys.put(arena, new, value);
        }
        try keys.put(arena, "general.architecture", .{ .string = name });
        self.keys = keys;
        return self;
    }

    /// gpt-oss of one layer with two experts, as llama.cpp reads it.
    fn gptOss(arena: std.mem.Allocator) !Fixture {
        var self = try renamed(arena, "gpt-oss");
        for ([_][]const u8{ "blk.0.ffn_norm.weight", "blk.0.ffn_gate.weight", "blk.0.ffn_up.weight", "blk.0.ffn_down.weight" }) |name| self.drop(name);
        const layer = "blk.0.";
        try self.add(layer ++ "post_attention_norm.weight", .f32, &.{8});
        try self.add(layer ++ "attn_q.bias", .f32, &.{8});
        try self.add(layer ++ "attn_k.bias", .f32, &.{4});
        try self.add(layer ++ "attn_v.bias", .f32, &.{4});
        try self.add(layer ++ "attn_output.bias", .f32, &.{8});
        try self.add(layer ++ "attn_sinks.weight", .f32, &.{2});
        try self.add(layer ++ "ffn_gate_inp.weight", .f32, &.{ 8, 2 });
        try self.add(layer ++ "ffn_gate_inp.bias", .f32, &.{2});
        for ([_][]const u8{ "gate", "up" }) |half| {
            try self.add(try std.fmt.allocPrint(arena, layer ++ "ffn_{s}_exps.weight", .{half}), .f32, &.{ 8, 16, 2 });
            try self.add(try std.fmt.allocPrint(arena, layer ++ "ffn_{s}_exps.bias", .{half}), .f32, &.{ 16, 2 });
        }
        try self.add(layer ++ "ffn_down_exps.weight", .f32, &.{ 16, 8, 2 });
        try self.add(layer ++ "ffn_down_exps.bias", .f32, &.{ 8, 2 });
        try self.add("output.weight", .f32, &.{ 8, texts.len });
        for ([_]struct { []const u8, u32 }{
            .{ "gpt-oss.expert_count", 2 },
            .{ "gpt-oss.expert_used_count", 1 },
            .{ "gpt-oss.expert_feed_forward_length", 16 },
            .{ "gpt-oss.attention.sliding_window", 4 },
            .{ "gpt-oss.rope.scaling.original_context_length", 16 },
        }) |entry| try self.put(entry[0], .{ .u32 = entry[1] });
        try self.put("gpt-oss.rope.scaling.type", .{ .string = "yarn" });
        try self.put("gpt-oss.rope.scaling.factor", .{ .f32 = 2 });
        return self;
    }

    fn bytes(self: *Fixture) ![]const u8 {
        var disk: base.storage.MemoryDisk = try .init(self.arena);
        var diag: base.Diagnostic = .{};
        errdefer std.debug.print("{s}\n", .{diag.text()});
        _ = try gguf_rewrite.write(self.arena, disk.storage(), null, "f.gguf", &self.keys, self.tensors.items, &diag);
        return disk.storage().readAlloc(self.arena, "f.gguf");
    }
};

const Case = struct { Code, *const fn (*Fixture) anyerror!void };

/// Lints, and lints again what would be written.
fn expectFinding(code: Code, fixture: *Fixture) !void {
    const raw = try fixture.bytes();
    try expectIn(code, raw, fixture.arena);
}

fn expectIn(code: Code, raw: []const u8, arena: std.mem.Allocator) !void {
    const gpa = testing.allocator;
    var diag: base.Diagnostic = .{};
    var session = try lint.Session.ofBytes(gpa, raw, .{}, &diag);
    defer session.deinit();
    errdefer for (session.report.findings.items) |f| std.debug.print("wanted {s}, found {s} {s}: {s} ({})\n", .{ code.text(), f.code.text(), f.field, f.message, f.mended });
    var mended: ?bool = null;
    for (session.report.findings.items) |finding| {
        if (finding.code == code) mended = finding.mended;
        // Words and numbers: the field is named.
        try testing.expect(finding.message.len > 8 and finding.field.len > 0);
    }
    try testing.expect(mended != null);
    if (mended.? and code.rule().mends == .no) return error.RuleSaysItCannot;
    if (!mended.? and code.rule().mends == .yes) return error.RuleSaysItCan;
    if (session.blocked != null) return testing.expect(!mended.?);
    var disk: base.storage.MemoryDisk = try .init(arena);
    _ = try session.write(gpa, disk.storage(), null, "out.gguf", &diag);
    const out = try disk.storage().readAlloc(arena, "out.gguf");
    var again = try lint.Session.ofBytes(gpa, out, .{}, &diag);
    defer again.deinit();
    errdefer for (again.report.findings.items) |f| std.debug.print("after: {s} {s}: {s}\n", .{ f.code.text(), f.field, f.message });
    try testing.expectEqual(!mended.?, again.report.has(code));
    for (again.report.findings.items) |finding| {
        // Nothing that was to be mended is left, and mending made nothing new.
        try testing.expect(!finding.mended);
        try testing.expect(session.report.has(finding.code) or finding.code == .abi_refuses);
    }
}

test "sound files have nothing to say" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const a = arena.allocator();
    var qwen2 = try Fixture.renamed(a, "qwen2");
    for ([_]struct { []const u8, usize }{ .{ "q", 8 }, .{ "k", 4 }, .{ "v", 4 } }) |part| try qwen2.add(try std.fmt.allocPrint(a, "blk.0.attn_{s}.bias", .{part[0]}), .f32, &.{part[1]});
    var qwen3 = try Fixture.renamed(a, "qwen3");
    try qwen3.add("blk.0.attn_q_norm.weight", .f32, &.{4});
    try qwen3.add("blk.0.attn_k_norm.weight", .f32, &.{4});
    var mixture = try Fixture.llama(a);
    for ([_][]const u8{ "gate", "up", "down" }) |name| mixture.drop(try std.fmt.allocPrint(a, "blk.0.ffn_{s}.weight", .{name}));
    try mixture.put("llama.expert_count", .{ .u32 = 2 });
    try mixture.put("llama.expert_used_count", .{ .u32 = 1 });
    try mixture.add("blk.0.ffn_gate_inp.weight", .f32, &.{ 8, 2 });
    for ([_][]const u8{ "gate", "up" }) |name| try mixture.add(try std.fmt.allocPrint(a, "blk.0.ffn_{s}_exps.weight", .{name}), .f32, &.{ 8, 16, 2 });
    try mixture.add("blk.0.ffn_down_exps.weight", .f32, &.{ 16, 8, 2 });
    var fixtures = [_]Fixture{ try .llama(a), qwen2, qwen3, try .renamed(a, "smollm3"), try .gptOss(a), mixture };
    for (&fixtures) |*fixture| {
        var diag: base.Diagnostic = .{};
        var session = try lint.Session.ofBytes(testing.allocator, try fixture.bytes(), .{}, &diag);
        defer session.deinit();
        for (session.report.findings.items) |f| if (f.code != .abi_refuses) {
            std.debug.print("{s}: {s} {s}: {s}\n", .{ session.subject.named, f.code.text(), f.field, f.message });
            return error.Unsound;
        };
        if (session.subject.architecture == .qwen3) try testing.expectEqual(0, session.report.findings.items.len);
    }
}

fn breaks(comptime code: Code, comptime change: fn (*Fixture) anyerror!void) Case {
    return .{ code, change };
}

fn putting(comptime code: Code, comptime name: []const u8, comptime value: gguf.Value) Case {
    return .{ code, struct {
        fn apply(f: *Fixture) !void {
            try f.put(name, value);
        }
    }.apply };
}

fn removing(comptime code: Code, comptime name: []const u8) Case {
    return .{ code, struct {
        fn apply(f: *Fixture) !void {
            f.remove(name);
        }
    }.apply };
}

fn dropping(comptime code: Code, comptime name: []const u8) Case {
    return .{ code, struct {
        fn apply(f: *Fixture) !void {
            f.drop(name);
        }
    }.apply };
}

fn storing(comptime code: Code, comptime name: []const u8, comptime dtype: DType) Case {
    return .{ code, struct {
        fn apply(f: *Fixture) !void {
            f.restore(name, dtype);
        }
    }.apply };
}

fn listing(comptime code: Code, comptime name: []const u8, comptime T: type, comptime values: []const T) Case {
    return .{ code, struct {
        fn apply(f: *Fixture) !void {
            try f.put(name, try f.list(T, values));
        }
    }.apply };
}

const llama_cases = [_]Case{
    removing(.architecture_missing, "general.architecture"),
    putting(.architecture_unknown, "general.architecture", .{ .string = "martian" }),
    putting(.architecture_unchecked, "general.architecture", .{ .string = "mamba" }),
    putting(.key_type, "general.architecture", .{ .u32 = 4 }),
    removing(.key_missing, "llama.context_length"),
    removing(.key_missing, "llama.embedding_length"),
    removing(.key_missing, "llama.block_count"),
    removing(.key_missing, "llama.feed_forward_length"),
    removing(.key_missing, "llama.attention.head_count"),
    removing(.key_missing, "llama.attention.layer_norm_rms_epsilon"),
    putting(.key_type, "llama.context_length", .{ .u64 = 32 }),
    putting(.key_type, "llama.context_length", .{ .u64 = 1 << 40 }),
    putting(.key_type, "llama.context_length", .{ .i32 = -1 }),
    putting(.key_type, "llama.context_length", .{ .f64 = 32 }),
    putting(.key_type, "llama.context_length", .{ .f32 = 0.5 }),
    putting(.key_type, "llama.context_length", .{ .string = "32" }),
    putting(.key_type, "llama.rope.freq_base", .{ .u32 = 10000 }),
    putting(.key_type, "llama.rope.freq_base", .{ .f64 = 500000 }),
    putting(.key_type, "tokenizer.ggml.add_bos_token", .{ .u8 = 0 }),
    putting(.key_type, "tokenizer.ggml.add_bos_token", .{ .u8 = 2 }),
    putting(.key_type, "tokenizer.ggml.eos_token_id", .{ .i32 = 2 }),
    putting(.key_type, "general.name", .{ .u32 = 1 }),
    putting(.key_type_unusual, "general.quantization_version", .{ .i64 = 2 }),
    listing(.key_type, "llama.attention.head_count", u64, &.{2}),
    listing(.key_type, "tokenizer.ggml.scores", f64, &.{ 0, 0, 0, 0, 0, 0, 0, 0 }),
    listing(.key_type, "tokenizer.ggml.token_type", u32, &.{ 3, 3, 3, 1, 1, 1, 1, 1 }),
    listing(.key_value, "llama.attention.head_count", u32, &.{ 2, 2 }),
    putting(.key_value, "llama.block_count", .{ .u32 = 0 }),
    putting(.key_value, "llama.block_count", .{ .u32 = 4_000_000_000 }),
    putting(.key_value, "llama.attention.head_count", .{ .u32 = 0 }),
    putting(.key_value, "llama.attention.head_count", .{ .u32 = 3 }),
    putting(.key_value, "llama.attention.head_count_kv", .{ .u32 = 0 }),
    putting(.key_value, "llama.context_length", .{ .u32 = 0 }),
    putting(.key_value, "llama.attention.layer_norm_rms_epsilon", .{ .f32 = 0 }),
    putting(.key_value, "llama.attention.layer_norm_rms_epsilon", .{ .f32 = std.math.nan(f32) }),
    putting(.key_value, "llama.rope.freq_base", .{ .f32 = -1 }),
    putting(.key_value, "llama.rope.dimension_count", .{ .u32 = 2 }),
    putting(.key_value, "llama.rope.scaling.type", .{ .string = "spiral" }),
    putting(.key_value, "llama.expert_used_count", .{ .u32 = 2 }),
    putting(.key_value, "llama.expert_count", .{ .u32 = 5000 }),
    putting(.rope_scaling, "llama.rope.scaling.factor", .{ .f32 = std.math.inf(f32) }),
    breaks(.rope_scaling, struct {
        fn apply(f: *Fixture) !void {
            try f.put("llama.rope.scaling.factor", .{ .f32 = 2 });
            try f.add("rope_freqs.weight", .f32, &.{2});
        }
    }.apply),
    dropping(.tensor_missing, "blk.0.attn_v.weight"),
    dropping(.tensor_missing, "output_norm.weight"),
    dropping(.tensor_missing, "token_embd.weight"),
    breaks(.tensor_unexpected, struct {
        fn apply(f: *Fixture) !void {
            try f.add("blk.0.attn_q_norm.weight", .f32, &.{4});
        }
    }.apply),
    breaks(.tensor_unexpected, struct {
        fn apply(f: *Fixture) !void {
            try f.add("blk.1.attn_norm.weight", .f32, &.{8});
        }
    }.apply),
    breaks(.tensor_unexpected, struct {
        fn apply(f: *Fixture) !void {
            try f.add("lm_head.weight", .f32, &.{ 8, 8 });
        }
    }.apply),
    breaks(.tensor_shape, struct {
        fn apply(f: *Fixture) !void {
            const t = f.get("blk.0.ffn_down.weight");
            t.ne[0] = 8;
            t.ne[1] = 16;
        }
    }.apply),
    storing(.tensor_type, "blk.0.attn_norm.weight", .f16),
    storing(.tensor_type, "output_norm.weight", .bf16),
    storing(.tensor_type, "output_norm.weight", .f64),
    storing(.matrix_type, "blk.0.attn_q.weight", .f64),
    storing(.matrix_type, "blk.0.attn_q.weight", .i8),
    breaks(.numbers_broken, struct {
        fn apply(f: *Fixture) !void {
            const values = try f.arena.dupe(u8, f.get("output_norm.weight").content.data);
            base.bytes.store(f32, values[8..12], std.math.nan(f32));
            f.get("output_norm.weight").content.data = values;
        }
    }.apply),
    putting(.file_type, "general.file_type", .{ .u32 = 1 }),
    putting(.file_type, "general.file_type", .{ .u32 = 15 }),
    putting(.file_type, "general.file_type", .{ .u32 = 77 }),
    removing(.file_type_missing, "general.file_type"),
    breaks(.quantization_version, struct {
        fn apply(f: *Fixture) !void {
            f.get("token_embd.weight").ne[0] = 32;
            f.restore("token_embd.weight", .q8_0);
        }
    }.apply),
    putting(.vocab_size, "llama.vocab_size", .{ .u32 = 9 }),
    removing(.tokenizer_missing, "tokenizer.ggml.model"),
    removing(.tokenizer_missing, "tokenizer.ggml.tokens"),
    putting(.tokenizer_model, "tokenizer.ggml.model", .{ .string = "gpt3" }),
    removing(.pre_missing, "tokenizer.ggml.pre"),
    putting(.pre_unknown, "tokenizer.ggml.pre", .{ .string = "martian" }),
    listing(.vocab_length, "tokenizer.ggml.tokens", []const u8, texts[0..6]),
    listing(.vocab_length, "tokenizer.ggml.tokens", []const u8, &(texts ++ .{"more"})),
    listing(.token_duplicate, "tokenizer.ggml.tokens", []const u8, &(texts[0..7].* ++ .{"a"})),
    breaks(.token_duplicate, struct {
        fn apply(f: *Fixture) !void {
            try f.put("tokenizer.ggml.tokens", try f.list([]const u8, &(texts[0..6].* ++ .{ "[PAD7]", "[PAD7]" })));
            try f.put("tokenizer.ggml.token_type", try f.list(i32, &(kinds[0..6].* ++ .{ 5, 5 })));
        }
    }.apply),
    breaks(.token_duplicate, struct {
        fn apply(f: *Fixture) !void {
            try f.put("tokenizer.ggml.tokens", try f.list([]const u8, &(.{"a"} ++ texts[1..].*)));
            try f.put("tokenizer.ggml.token_type", try f.list(i32, &(.{5} ++ kinds[1..].*)));
        }
    }.apply),
    listing(.token_empty, "tokenizer.ggml.tokens", []const u8, &(texts[0..7].* ++ .{""})),
    listing(.token_utf8, "tokenizer.ggml.tokens", []const u8, &(texts[0..7].* ++ .{"\xff"})),
    listing(.token_type_length, "tokenizer.ggml.token_type", i32, kinds[0..5]),
    listing(.token_type_value, "tokenizer.ggml.token_type", i32, &(kinds[0..7].* ++ .{9})),
    listing(.scores_length, "tokenizer.ggml.scores", f32, &.{ 0, 1 }),
    breaks(.scores_length, struct {
        fn apply(f: *Fixture) !void {
            try f.put("tokenizer.ggml.scores", try f.list(i32, &.{ 1, 2, 3, 4, 5, 6, 7 }));
            try f.put("tokenizer.ggml.token_type", try f.list(i32, &(kinds[0..7].* ++ .{5})));
        }
    }.apply),
    putting(.scores_missing, "tokenizer.ggml.model", .{ .string = "llama" }),
    removing(.merges_missing, "tokenizer.ggml.merges"),
    listing(.merges_broken, "tokenizer.ggml.merges", []const u8, &.{"ab"}),
    listing(.merges_broken, "tokenizer.ggml.merges", []const u8, &.{"a c"}),
    listing(.merges_broken, "tokenizer.ggml.merges", []const u8, &.{""}),
    putting(.special_id_range, "tokenizer.ggml.padding_token_id", .{ .u32 = 8 }),
    removing(.eos_missing, "tokenizer.ggml.eos_token_id"),
    breaks(.eos_missing, struct {
        fn apply(f: *Fixture) !void {
            f.remove("tokenizer.ggml.eos_token_id");
            f.remove("tokenizer.chat_template");
            try f.put("tokenizer.ggml.tokens", try f.list([]const u8, &(.{"<|start|>"} ++ texts[1..].*)));
        }
    }.apply),
    putting(.eot_missing, "tokenizer.ggml.eos_token_id", .{ .u32 = 0 }),
    breaks(.bos_missing, struct {
        fn apply(f: *Fixture) !void {
            f.remove("tokenizer.ggml.bos_token_id");
            try f.put("tokenizer.ggml.add_bos_token", .{ .bool = true });
        }
    }.apply),
    removing(.template_missing, "tokenizer.chat_template"),
    breaks(.template_stop, struct {
        fn apply(f: *Fixture) !void {
            try f.put("tokenizer.ggml.tokens", try f.list([]const u8, &(texts[0..2].* ++ .{"<|turn_end|>"} ++ texts[3..].*)));
            try f.put("tokenizer.ggml.eos_token_id", .{ .u32 = 0 });
            try f.put("tokenizer.chat_template", .{ .string = "{{ m.content }}<|turn_end|>" });
        }
    }.apply),
    listing(.template_tokens, "tokenizer.ggml.token_type", i32, &(.{ 3, 1 } ++ kinds[2..].*)),
    putting(.template_markers, "tokenizer.chat_template", .{ .string = "<|user|>{{ m.content }}{{ eos_token }}" }),
    breaks(.template_bos, struct {
        fn apply(f: *Fixture) !void {
            try f.put("tokenizer.ggml.add_bos_token", .{ .bool = true });
            try f.put("tokenizer.chat_template", .{ .string = "{{ bos_token }}" ++ chat });
        }
    }.apply),
    putting(.abi_refuses, "llama.attention.value_length", .{ .u32 = 2 }),
    breaks(.file_empty, struct {
        fn apply(f: *Fixture) !void {
            f.tensors.clearRetainingCapacity();
        }
    }.apply),
    putting(.split_incomplete, "split.count", .{ .u16 = 3 }),
    breaks(.adapter, struct {
        fn apply(f: *Fixture) !void {
            try f.put("general.type", .{ .string = "adapter" });
            try f.put("adapter.type", .{ .string = "lora" });
            try f.put("adapter.lora.alpha", .{ .f32 = 16 });
            f.tensors.clearRetainingCapacity();
            try f.add("blk.0.attn_q.weight.lora_a", .f32, &.{ 8, 2 });
        }
    }.apply),
};

test "each fault of a llama is found, and mended where it says so" {
    for (llama_cases) |case| {
        var arena: std.heap.ArenaAllocator = .init(testing.allocator);
        defer arena.deinit();
        var fixture = try Fixture.llama(arena.allocator());
        try case[1](&fixture);
        try expectFinding(case[0], &fixture);
    }
}

test "what other architectures need is known" {
    const Other = struct { Code, []const u8, *const fn (*Fixture) anyerror!void };
    const nothing = struct {
        fn apply(_: *Fixture) !void {}
    }.apply;
    const cases = [_]Other{
        .{ .bias_missing, "qwen2", nothing },
        .{ .tensor_missing, "qwen3", nothing },
        .{ .output_missing, "gpt-oss", dropping(.output_missing, "output.weight")[1] },
        .{ .tensor_missing, "gpt-oss", dropping(.tensor_missing, "blk.0.attn_sinks.weight")[1] },
        .{ .key_missing, "gpt-oss", removing(.key_missing, "gpt-oss.expert_feed_forward_length")[1] },
        .{ .key_missing, "gpt-oss", removing(.key_missing, "gpt-oss.attention.sliding_window")[1] },
        .{ .rope_scaling, "gpt-oss", removing(.rope_scaling, "gpt-oss.rope.scaling.type")[1] },
        .{ .key_value, "gpt-oss", putting(.key_value, "gpt-oss.attention.sliding_window", .{ .u32 = 0 })[1] },
        .{ .tensor_type, "gpt-oss", storing(.tensor_type, "blk.0.attn_sinks.weight", .bf16)[1] },
        .{ .tensor_type, "gpt-oss", storing(.tensor_type, "blk.0.ffn_down_exps.bias", .bf16)[1] },
        .{ .tensor_type, "gpt-oss", storing(.tensor_type, "blk.0.ffn_gate_inp.bias", .f16)[1] },
        .{
            .key_missing, "qwen3",
            struct {
                fn apply(f: *Fixture) !void { // Heads twice as wide as the model over their number, and no key says so.
                    f.get("blk.0.attn_q.weight").ne[1] = 16;
                    f.restore("blk.0.attn_q.weight", .f32);
                }
            }.apply,
        },
    };
    for (cases) |case| {
        var arena: std.heap.ArenaAllocator = .init(testing.allocator);
        defer arena.deinit();
        var fixture = if (std.mem.eql(u8, case[1], "gpt-oss")) try Fixture.gptOss(arena.allocator()) else try Fixture.renamed(arena.allocator(), case[1]);
        try case[2](&fixture);
        try expectFinding(case[0], &fixture);
    }
}
