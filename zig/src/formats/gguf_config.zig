//! A model's configuration as GGUF keys, and back.
//!
//! Reading trusts nothing: every number is checked before it is divided by, and the tensors present decide what the keys do not say
//! (biases, tied head). Files of the ABI framework list dimensions the wrong way round and keep q and k in Hugging Face's row order;
//! `Dialect.abi` marks them. Does not know: tensor data, tokenizers.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const gguf = @import("gguf.zig");
const gguf_writer = @import("gguf_writer.zig");
const name_map = @import("name_map.zig");
const Architecture = name_map.Architecture;
const Diagnostic = base.Diagnostic;
const printable = base.bytes.printable;

/// Who wrote the file, as far as it changes how tensors lie.
pub const Dialect = enum {
    /// `ne[0]` is the row length, llama's q and k rows are interleaved.
    ggml,
    /// The ABI framework of January 2026: dimensions listed as (rows, columns), q and k rows in Hugging Face's order.
    abi,
};

pub const Error = gguf.LookupError || name_map.ExportError || error{
    UnsupportedArchitecture,
    /// A feature of the architecture that this project does not compute.
    UnsupportedFeature,
    UnsupportedRopeScaling,
    InvalidModelConfig,
    MissingTensor,
};

const KeyBuffer = [96]u8;
const gpt_oss_limit = name_map.gpt_oss.limit;

fn keyOf(buffer: *KeyBuffer, architecture: Architecture, comptime suffix: []const u8) []const u8 {
    return std.fmt.bufPrint(buffer, "{t}." ++ suffix, .{architecture}) catch unreachable; // At most 7 + 1 + 40 bytes.
}

/// Writes all `A.*` keys. `config` must be expressible (`name_map.checkExpressible`).
pub fn write(header: *gguf_writer.Header, config: arch.ModelConfig) gguf_writer.Error!void {
    const a: Architecture = .of(config.model_type);
    var b: KeyBuffer = undefined;
    // A window as long as the context changes nothing, and llama.cpp computes no window for these architectures.
    const hidden_by_window = if (a == .@"gpt-oss") null else config.sliding_window;
    const context = @min(config.max_position_embeddings, hidden_by_window orelse config.max_position_embeddings);
    try header.put(u32, keyOf(&b, a, "context_length"), context);
    try header.put(u32, keyOf(&b, a, "embedding_length"), config.hidden_size);
    try header.put(u32, keyOf(&b, a, "block_count"), config.num_hidden_layers);
    try header.put(u32, keyOf(&b, a, "feed_forward_length"), config.intermediate_size);
    try header.put(u32, keyOf(&b, a, "attention.head_count"), config.num_attention_heads);
    try header.put(u32, keyOf(&b, a, "attention.head_count_kv"), config.num_key_value_heads);
    try header.put(f32, keyOf(&b, a, "attention.layer_norm_rms_epsilon"), @floatCast(config.rms_norm_eps));
    if (config.queryWidth() != config.hidden_size) {
        try header.put(u32, keyOf(&b, a, "attention.key_length"), config.head_dim);
        try header.put(u32, keyOf(&b, a, "attention.value_length"), config.head_dim);
    }
    try header.put(u32, keyOf(&b, a, "rope.dimension_count"), config.head_dim);
    try header.put(f32, keyOf(&b, a, "rope.freq_base"), @floatCast(config.rope_theta));
    switch (config.rope_scaling) {
        .none, .llama3 => {}, // Llama 3's scaling is a tensor.
        .linear => |s| {
            try header.put([]const u8, keyOf(&b, a, "rope.scaling.type"), "linear");
            try header.put(f32, keyOf(&b, a, "rope.scaling.factor"), @floatCast(s.factor));
        },
        .yarn => |s| {
            try header.put([]const u8, keyOf(&b, a, "rope.scaling.type"), "yarn");
            try header.put(f32, keyOf(&b, a, "rope.scaling.factor"), @floatCast(s.factor));
            try header.put(u32, keyOf(&b, a, "rope.scaling.original_context_length"), s.original_max_position_embeddings);
            try header.put(f32, keyOf(&b, a, "rope.scaling.yarn_beta_fast"), @floatCast(s.beta_fast));
            try header.put(f32, keyOf(&b, a, "rope.scaling.yarn_beta_slow"), @floatCast(s.beta_slow));
            // No program but this one knows the key: llama.cpp always rounds, gpt-oss was trained without.
            if (s.truncate) try header.put(bool, keyOf(&b, a, "rope.scaling.yarn_truncate"), true);
        },
    }
    if (config.hasExperts()) {
        try header.put(u32, keyOf(&b, a, "expert_count"), config.num_local_experts);
        try header.put(u32, keyOf(&b, a, "expert_used_count"), config.num_experts_per_tok);
        try header.put(u32, keyOf(&b, a, "expert_feed_forward_length"), config.intermediate_size);
        try header.put(u32, keyOf(&b, a, "attention.sliding_window"), config.sliding_window orelse config.max_position_embeddings);
        if (config.sliding_window != null and config.windowed_layers == .every) {
            const all: [512]bool = @splat(true);
            try header.put([]const bool, keyOf(&b, a, "attention.sliding_window_pattern"), all[0..config.num_hidden_layers]);
        }
    }
    try header.put(u32, keyOf(&b, a, "vocab_size"), config.vocab_size);
}

pub const Read = struct {
    architecture: Architecture,
    config: arch.ModelConfig,
    dialect: Dialect,
};

/// The configuration that the keys and the tensors' presence say. Tensor shapes are the importer's to compare.
pub fn read(file: *const gguf.File, diag: *Diagnostic) Error!Read {
    const named = try file.require([]const u8, "general.architecture", diag);
    const a = Architecture.fromName(named) orelse {
        diag.set("general.architecture is {f}; llama, qwen2, qwen3 and gpt-oss can be read", .{printable(named)});
        return error.UnsupportedArchitecture;
    };
    if (try file.optional([]const u8, "general.type", diag)) |kind| if (!std.mem.eql(u8, kind, "model")) {
        diag.set("general.type is {f}; only whole models can be read here", .{printable(kind)});
        return error.UnsupportedFeature;
    };
    if (file.get("split.count")) |count| if (count != .u16 or count.u16 > 1) {
        diag.set("the file is one part of a split model (split.count); join the parts first", .{});
        return error.UnsupportedFeature;
    };
    var r: Reader = .{ .file = file, .architecture = a, .diag = diag };
    const mixture = a == .@"gpt-oss";
    if (!mixture) if (try r.optional(u32, "expert_count")) |n| if (n != 0) return r.unsupported("expert_count", n);

    const embedding = file.findTensor("token_embd.weight") orelse {
        diag.set("tensor token_embd.weight is missing", .{});
        return error.MissingTensor;
    };
    const hidden = try r.positive("embedding_length");
    const declared_vocab = try r.optional(u32, "vocab_size");
    const vocab_axis_first = embedding.ne[0] != hidden and embedding.ne[1] == hidden;
    const dialect: Dialect = if (vocab_axis_first and (declared_vocab orelse 0) == embedding.ne[0]) .abi else .ggml;
    const rows = if (dialect == .abi) embedding.ne[0] else embedding.ne[1];
    const vocab = base.checked.cast(u32, rows) catch return r.invalid("token_embd.weight has {d} rows", .{rows});
    if (declared_vocab) |v| if (v != vocab) return r.invalid("vocab_size is {d}, but token_embd.weight has {d} rows", .{ v, vocab });
    if (try file.optionalArray([]const u8, "tokenizer.ggml.tokens", diag)) |tokens| if (tokens.count != vocab)
        return r.invalid("tokenizer.ggml.tokens has {d} entries, but token_embd.weight has {d} rows", .{ tokens.count, vocab });

    const layers = try r.positive("block_count");
    if (layers > 512) return r.invalid("block_count is {d}; at most 512 are read", .{layers});
    const heads = try r.perLayer("attention.head_count", layers) orelse return r.missing("attention.head_count");
    const kv_heads = try r.perLayer("attention.head_count_kv", layers) orelse heads;
    if (heads == 0) return r.invalid("attention.head_count is 0; it must be at least 1", .{});
    if (kv_heads == 0) return r.invalid("attention.head_count_kv is 0; it must be at least 1", .{});
    if (mixture) _ = try r.perLayer("feed_forward_length", layers); // Not computed with, but llama.cpp reads it.
    if (!mixture) if (try r.perLayer("expert_used_count", layers)) |n| if (n != 0) return r.invalid("expert_used_count is {d}, but the model has no experts", .{n});
    const ffn = if (mixture) try r.positive("expert_feed_forward_length") else try r.perLayer("feed_forward_length", layers) orelse try r.feedForwardFromTensor(dialect);

    const key_length = try r.optional(u32, "attention.key_length");
    const head_dim = key_length orelse blk: {
        if (hidden % heads != 0) return r.invalid("embedding_length {d} is not a multiple of attention.head_count {d}, and attention.key_length is absent", .{ hidden, heads });
        break :blk hidden / heads;
    };
    if (try r.optional(u32, "attention.value_length")) |v| if (v != head_dim) return r.unsupported("attention.value_length", v);
    if (try r.optional(u32, "rope.dimension_count")) |n| if (n != head_dim) return r.unsupported("rope.dimension_count", n);

    var config: arch.ModelConfig = .{
        .model_type = a.modelType(),
        .vocab_size = vocab,
        .hidden_size = hidden,
        .intermediate_size = ffn,
        .num_hidden_layers = layers,
        .num_attention_heads = heads,
        .num_key_value_heads = kv_heads,
        .head_dim = head_dim,
        .max_position_embeddings = try r.positive("context_length"),
        .rms_norm_eps = decimal(try r.require(f32, "attention.layer_norm_rms_epsilon")),
        .rope_theta = decimal(try r.optional(f32, "rope.freq_base") orelse 10_000),
        // gpt-oss has all of these; where one is not there, it is missing.
        .tie_word_embeddings = !mixture and file.findTensor("output.weight") == null,
        .qkv_bias = mixture or file.findTensor("blk.0.attn_q.bias") != null,
        .attention_output_bias = mixture or file.findTensor("blk.0.attn_output.bias") != null,
        .mlp_bias = file.findTensor("blk.0.ffn_gate.bias") != null,
        .qk_norm = file.findTensor("blk.0.attn_q_norm.weight") != null,
        .bos_token_id = try r.tokenId("tokenizer.ggml.bos_token_id", vocab),
        .eos_token_id = try r.tokenId("tokenizer.ggml.eos_token_id", vocab),
        .pad_token_id = try r.tokenId("tokenizer.ggml.padding_token_id", vocab),
    };
    if (mixture) try r.experts(&config);
    var message: [256]u8 = undefined;
    config.validate(&message) catch |err| {
        diag.set("the model's keys do not fit together: {s}", .{std.mem.sliceTo(&message, 0)});
        return err;
    };
    config.rope_scaling = try r.ropeScaling(config);
    if (mixture and config.rope_scaling != .yarn) {
        // llama.cpp loads such a file too, and computes with unscaled positions.
        diag.set("rope.scaling.type is not yarn; gpt-oss was trained with YaRN. Export the model again", .{});
        return error.UnsupportedRopeScaling;
    }
    config.validate(&message) catch |err| {
        diag.set("the rotary scaling does not fit: {s}", .{std.mem.sliceTo(&message, 0)});
        return err;
    };
    try name_map.checkExpressible(config, diag);
    return .{ .architecture = a, .config = config, .dialect = dialect };
}

const Reader = struct {
    file: *const gguf.File,
    architecture: Architecture,
    diag: *Diagnostic,

    fn optional(self: *Reader, comptime T: type, comptime suffix: []const u8) Error!?T {
        var b: KeyBuffer = undefined;
        return self.file.optional(T, keyOf(&b, self.architecture, suffix), self.diag);
    }

    fn require(self: *Reader, comptime T: type, comptime suffix: []const u8) Error!T {
        var b: KeyBuffer = undefined;
        return self.file.require(T, keyOf(&b, self.architecture, suffix), self.diag);
    }

    fn positive(self: *Reader, comptime suffix: []const u8) Error!u32 {
        const n = try self.require(u32, suffix);
        if (n == 0) return self.invalid(suffix ++ " is 0; it must be at least 1", .{});
        return n;
    }

    fn missing(self: *Reader, comptime suffix: []const u8) Error {
        self.diag.set("key {t}." ++ suffix ++ " is missing", .{self.architecture});
        return error.MissingKey;
    }

    fn invalid(self: *Reader, comptime format: []const u8, arguments: anytype) Error {
        self.diag.set(format, arguments);
        return error.InvalidKeyValue;
    }

    fn unsupported(self: *Reader, comptime suffix: []const u8, n: u32) Error {
        self.diag.set("{t}." ++ suffix ++ " is {d}; this program does not compute such models", .{ self.architecture, n });
        return error.UnsupportedFeature;
    }

    /// A key that may be one number or one per layer; all layers must agree. Null when absent.
    fn perLayer(self: *Reader, comptime suffix: []const u8, layers: u32) Error!?u32 {
        var b: KeyBuffer = undefined;
        const key = keyOf(&b, self.architecture, suffix);
        const value = self.file.get(key) orelse return null;
        if (value != .array) return try self.file.require(u32, key, self.diag);
        const array = value.array;
        if (array.element != .u32 and array.element != .i32) {
            self.diag.set("key {s} is an array of {t}; its elements must be u32", .{ key, array.element });
            return error.WrongKeyType;
        }
        if (array.count != layers) return self.invalid(suffix ++ " lists {d} values for {d} layers", .{ array.count, layers });
        const first = base.bytes.at(u32, array.raw, 0); // layers is at least 1.
        for (1..array.count) |i| if (base.bytes.at(u32, array.raw, i) != first) {
            self.diag.set("{s} differs from layer to layer; this program does not compute such models", .{key});
            return error.UnsupportedFeature;
        };
        return first;
    }

    /// The keys of gpt-oss. What its activation is and which layers have the window no key says: all such files mean the same.
    fn experts(self: *Reader, config: *arch.ModelConfig) Error!void {
        config.attention_sinks = true;
        config.num_local_experts = try self.positive("expert_count");
        config.num_experts_per_tok = try self.perLayer("expert_used_count", config.num_hidden_layers) orelse return self.missing("expert_used_count");
        config.swiglu_limit = gpt_oss_limit;
        config.windowed_layers = .even;
        config.sliding_window = try self.positive("attention.sliding_window");
        try self.windowPattern(config);
        if (config.sliding_window) |w| if (w >= config.max_position_embeddings) {
            config.sliding_window = null; // It never hides anything.
            config.windowed_layers = .even;
        };
    }

    /// A period, or a flag for each layer: every other one from the first, which is what no key means, all of them, or none.
    fn windowPattern(self: *Reader, config: *arch.ModelConfig) Error!void {
        var b: KeyBuffer = undefined;
        const key = keyOf(&b, self.architecture, "attention.sliding_window_pattern");
        const value = self.file.get(key) orelse return;
        if (value != .array) return switch (try self.file.require(u32, key, self.diag)) {
            0 => config.windowed_layers = .every,
            1 => config.sliding_window = null,
            2 => {},
            else => |n| self.unsupported("attention.sliding_window_pattern", n),
        };
        const array = value.array;
        if (array.element != .bool) {
            self.diag.set("key {s} is an array of {t}; its elements must be bool", .{ key, array.element });
            return error.WrongKeyType;
        }
        if (array.count != config.num_hidden_layers) return self.invalid("attention.sliding_window_pattern lists {d} values for {d} layers", .{ array.count, config.num_hidden_layers });
        var count: usize = 0;
        var even = true;
        for (array.raw, 0..) |flag, layer| {
            count += @intFromBool(flag != 0);
            if ((flag != 0) != (layer % 2 == 0)) even = false;
        }
        if (even) return;
        if (count == 0) {
            config.sliding_window = null;
        } else if (count == array.count) {
            config.windowed_layers = .every;
        } else {
            self.diag.set("{s} names {d} of {d} layers, not every other one from the first; this program does not compute such models", .{ key, count, array.count });
            return error.UnsupportedFeature;
        }
    }

    /// ABI's first files leave the key out; the matrix says it.
    fn feedForwardFromTensor(self: *Reader, dialect: Dialect) Error!u32 {
        const gate = self.file.findTensor("blk.0.ffn_gate.weight") orelse return self.missing("feed_forward_length");
        if (dialect != .abi) return self.missing("feed_forward_length");
        return base.checked.cast(u32, gate.ne[0]) catch self.missing("feed_forward_length");
    }

    fn tokenId(self: *Reader, comptime key: []const u8, vocab: u32) Error!?u32 {
        const id = try self.file.optional(u32, key, self.diag) orelse return null;
        if (id >= vocab) return self.invalid(key ++ " is {d}; it must be below the vocabulary's size, {d}", .{ id, vocab });
        return id;
    }

    fn ropeScaling(self: *Reader, config: arch.ModelConfig) Error!arch.RopeScaling {
        const kind = try self.optional([]const u8, "rope.scaling.type") orelse "linear"; // llama.cpp's default, with factor 1.
        const stored_factor = try self.optional(f32, "rope.scaling.factor") orelse 1;
        const factor = if (stored_factor == 0) 1 else stored_factor; // As llama.cpp reads it.
        const divisors = if (self.architecture == .llama) self.file.findTensor(name_map.rope_divisors) else null;
        if (std.mem.eql(u8, kind, "linear") and factor != 1) {
            if (divisors != null) {
                self.diag.set("the file has both linear rotary scaling and {s}; this program does not compute such models", .{name_map.rope_divisors});
                return error.UnsupportedRopeScaling;
            }
            return .{ .linear = .{ .factor = decimal(factor) } };
        }
        if (std.mem.eql(u8, kind, "yarn") and self.architecture == .@"gpt-oss") return .{
            .yarn = .{
                .factor = decimal(factor),
                .original_max_position_embeddings = try self.optional(u32, "rope.scaling.original_context_length") orelse config.max_position_embeddings,
                // As the model was trained. The ramp that ggml rounds is the runner's to choose.
                .truncate = try self.optional(bool, "rope.scaling.yarn_truncate") orelse false,
            },
        };
        if (!std.mem.eql(u8, kind, "none") and !std.mem.eql(u8, kind, "linear")) {
            self.diag.set("rope.scaling.type is {f}; none and linear can be read, and Llama 3's scaling", .{printable(kind)});
            return error.UnsupportedRopeScaling;
        }
        const info = divisors orelse return .none;
        if (info.dtype != .f32 or info.ne[0] != config.head_dim / 2 or info.rank != 1) {
            self.diag.set("tensor {s} must be {d} numbers of type f32", .{ name_map.rope_divisors, config.head_dim / 2 });
            return error.UnsupportedRopeScaling;
        }
        return recoverLlama3(config, info.data) orelse {
            self.diag.set("tensor {s} does not follow from Llama 3's rule with factors 1 and 4 and a power of two as the first context; import the Hugging Face folder instead", .{name_map.rope_divisors});
            return error.UnsupportedRopeScaling;
        };
    }
};

/// GGUF keeps the divisors, not the rule. All published models use low factor 1, high factor 4 and a power of two as the
/// original context; the largest divisor is the factor. The candidate must give the same numbers, or there is no answer.
fn recoverLlama3(config: arch.ModelConfig, raw: []const u8) ?arch.RopeScaling {
    const half = config.head_dim / 2;
    var factor: f32 = 0;
    for (0..half) |i| factor = @max(factor, base.bytes.at(f32, raw, i));
    if (!(factor >= 1) or !std.math.isFinite(factor)) return null;
    var computed: [arch.config.max_head_dim / 2]f32 = undefined;
    // Largest first: when no frequency is on the ramp several contexts fit, and the choice changes nothing.
    var exponent: u5 = 24;
    while (exponent > 0) : (exponent -= 1) {
        var candidate = config;
        candidate.rope_scaling = .{ .llama3 = .{
            .factor = decimal(factor),
            .low_freq_factor = 1,
            .high_freq_factor = 4,
            .original_max_position_embeddings = @as(u32, 1) << exponent,
        } };
        arch.rope.divisors(candidate, computed[0..half]);
        for (computed[0..half], 0..) |d, i| {
            const stored = base.bytes.at(f32, raw, i);
            if (!(@abs(d - stored) <= 1e-5 * d)) break;
        } else return candidate.rope_scaling;
    }
    return null;
}

/// The f64 that prints as the f32 does: 1e-5 stays 1e-5 instead of 9.99999974e-6.
fn decimal(x: f32) f64 {
    var buffer: [64]u8 = undefined;
    const text = std.fmt.bufPrint(&buffer, "{e}", .{x}) catch return x;
    return std.fmt.parseFloat(f64, text) catch x;
}

test "f32 keys come back as the decimal that was meant" {
    try std.testing.expectEqual(@as(f64, 1e-5), decimal(1e-5));
    try std.testing.expectEqual(@as(f64, 1e-6), decimal(1e-6));
    try std.testing.expectEqual(@as(f64, 500000), decimal(500000));
    try std.testing.expect(std.math.isNan(decimal(std.math.nan(f32))));
}
