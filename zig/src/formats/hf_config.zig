//! Hugging Face `config.json` to and from `arch.ModelConfig`.
//!
//! Reads the keys of transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`) and 5 (`rope_parameters`, `dtype`); a missing key
//! has the default of the model's class there. What the model code here would compute differently is refused by name, never
//! ignored: a wrong activation or a partial rotation trains without an error and is worth nothing.
//! Writes both spellings, so either version opens it. Does not know: tensors, folders.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const json = @import("json.zig");
const Allocator = std.mem.Allocator;
const Diagnostic = base.Diagnostic;
const ModelConfig = arch.ModelConfig;
const ModelType = arch.ModelType;

pub const Error = error{
    OutOfMemory,
    /// The text is no JSON object, or a key has the wrong type.
    InvalidConfig,
    /// `model_type` is none of llama, qwen2, qwen3, mistral, gpt_oss.
    UnsupportedModelType,
    /// A RoPE type other than default, linear, llama3.
    UnsupportedRope,
    /// A setting that the native model does not compute.
    UnsupportedSetting,
    /// The values do not fit each other.
    InvalidModelConfig,
};

/// The class defaults of transformers, where a file leaves a key out.
const Defaults = struct {
    max_position_embeddings: u32,
    key_value_heads: ?u32 = null,
    head_dim: ?u32 = null,
    sliding_window: ?u32 = null,
    bos_token_id: ?u32 = null,
    eos_token_id: ?u32 = null,
    rms_norm_eps: f64 = 1e-6,
    attention_bias: bool = false,

    fn of(model_type: ModelType) Defaults {
        return switch (model_type) {
            .llama => .{ .max_position_embeddings = 2048, .bos_token_id = 1, .eos_token_id = 2 },
            .qwen2 => .{ .max_position_embeddings = 32768, .key_value_heads = 32 },
            .qwen3 => .{ .max_position_embeddings = 32768, .key_value_heads = 32, .head_dim = 128 },
            .mistral => .{ .max_position_embeddings = 131072, .key_value_heads = 8, .sliding_window = 4096, .bos_token_id = 1, .eos_token_id = 2 },
            .gpt_oss => .{ .max_position_embeddings = 131072, .key_value_heads = 8, .head_dim = 64, .sliding_window = 128, .rms_norm_eps = 1e-5, .attention_bias = true },
        };
    }
};

/// `config.json` as text to a validated configuration. The first of several end tokens is kept.
pub fn parse(gpa: Allocator, text: []const u8, diag: *Diagnostic) Error!ModelConfig {
    var arena: std.heap.ArenaAllocator = .init(gpa);
    defer arena.deinit();

    const value = json.parse(arena.allocator(), text, .{ .size_bytes = 4 << 20 }, diag) catch |err| return narrow(err);
    const root = json.asObject(value, "config.json", diag) catch |err| return narrow(err);
    return fromObject(root, diag) catch |err| return switch (err) {
        error.UnsupportedModelType, error.UnsupportedRope, error.UnsupportedSetting, error.InvalidModelConfig => |e| e,
        else => |e| narrow(e),
    };
}

fn narrow(err: anyerror) Error {
    return if (err == error.OutOfMemory) error.OutOfMemory else error.InvalidConfig;
}

fn fromObject(root: json.Object, diag: *Diagnostic) !ModelConfig {
    const type_text = try json.getString(root, "model_type", diag) orelse {
        diag.set("config.json has no \"model_type\". It should say llama, qwen2, qwen3, mistral or gpt_oss", .{});
        return error.UnsupportedModelType;
    };
    const model_type = std.meta.stringToEnum(ModelType, type_text) orelse {
        diag.set("model_type \"{s}\" is not supported natively; supported are llama, qwen2, qwen3, mistral, gpt_oss. The TRL engine may train it", .{type_text});
        return error.UnsupportedModelType;
    };
    const defaults = Defaults.of(model_type);
    try refuseUnsupported(root, model_type, diag);

    const hidden = try required(root, "hidden_size", diag);
    const heads = try required(root, "num_attention_heads", diag);
    if (heads == 0) return invalid(diag, "num_attention_heads is 0; it must be at least 1", .{});
    // An explicit null means "as many as heads"; a missing key means the class's own number.
    const kv_heads = try json.getU32(root, "num_key_value_heads", diag) orelse
        if (root.contains("num_key_value_heads")) heads else defaults.key_value_heads orelse heads;
    const head_dim = try json.getU32(root, "head_dim", diag) orelse
        if (!root.contains("head_dim") and defaults.head_dim != null) defaults.head_dim.? else blk: {
            if (hidden % heads != 0) return invalid(diag, "hidden_size is {d}; without head_dim it must be a multiple of num_attention_heads ({d})", .{ hidden, heads });
            break :blk hidden / heads;
        };
    const attention_bias = try json.getBool(root, "attention_bias", diag) orelse defaults.attention_bias;
    var config: ModelConfig = .{
        .model_type = model_type,
        .vocab_size = try required(root, "vocab_size", diag),
        .hidden_size = hidden,
        .intermediate_size = try required(root, "intermediate_size", diag),
        .num_hidden_layers = try required(root, "num_hidden_layers", diag),
        .num_attention_heads = heads,
        .num_key_value_heads = kv_heads,
        .head_dim = head_dim,
        .max_position_embeddings = try json.getU32(root, "max_position_embeddings", diag) orelse defaults.max_position_embeddings,
        .rms_norm_eps = try json.getFloat(root, "rms_norm_eps", diag) orelse defaults.rms_norm_eps,
        .tie_word_embeddings = try json.getBool(root, "tie_word_embeddings", diag) orelse false,
        .qkv_bias = switch (model_type) {
            .llama, .qwen3, .gpt_oss => attention_bias,
            .qwen2 => true,
            .mistral => false,
        },
        .attention_output_bias = switch (model_type) {
            .llama, .qwen3, .gpt_oss => attention_bias,
            .qwen2, .mistral => false,
        },
        .mlp_bias = model_type == .llama and (try json.getBool(root, "mlp_bias", diag) orelse false),
        .qk_norm = model_type == .qwen3,
        .initializer_range = try json.getFloat(root, "initializer_range", diag) orelse 0.02,
        .bos_token_id = try tokenId(root, "bos_token_id", defaults.bos_token_id, diag),
        .eos_token_id = try tokenId(root, "eos_token_id", defaults.eos_token_id, diag),
        .pad_token_id = try tokenId(root, "pad_token_id", null, diag),
    };
    if (model_type == .gpt_oss) try readExperts(root, &config, diag);
    try readRope(root, &config, diag);
    try readWindow(root, &config, defaults, diag);
    var message: [256]u8 = undefined;
    config.validate(&message) catch |err| {
        diag.set("{s}", .{std.mem.sliceTo(&message, 0)});
        return err;
    };
    return config;
}

fn required(root: json.Object, key: []const u8, diag: *Diagnostic) !u32 {
    return try json.getU32(root, key, diag) orelse {
        diag.set("config.json has no \"{s}\"", .{key});
        return error.InvalidConfig;
    };
}

fn invalid(diag: *Diagnostic, comptime format: []const u8, arguments: anytype) error{InvalidModelConfig} {
    diag.set(format, arguments);
    return error.InvalidModelConfig;
}

fn unsupported(diag: *Diagnostic, comptime format: []const u8, arguments: anytype) error{UnsupportedSetting} {
    diag.set(format ++ ", which the native engine does not compute. Use the TRL engine, or another model", arguments);
    return error.UnsupportedSetting;
}

/// An id, or the first of a list of ids; null and negative numbers mean "none".
fn tokenId(root: json.Object, key: []const u8, default: ?u32, diag: *Diagnostic) !?u32 {
    const value = root.get(key) orelse return default;
    const first = switch (value) {
        .array => |list| if (list.items.len == 0) return null else list.items[0],
        else => value,
    };
    switch (first) {
        .null => return null,
        .integer => |i| if (i < 0) return null else if (std.math.cast(u32, i)) |id| return id,
        else => {},
    }
    diag.set("\"{s}\" must be a token id, a list of token ids, or null", .{key});
    return error.InvalidConfig;
}

/// The keys of gpt-oss, with the defaults of its class. `experts_per_token` is the older name of `num_experts_per_tok`.
fn readExperts(root: json.Object, config: *ModelConfig, diag: *Diagnostic) !void {
    config.attention_sinks = true;
    config.num_local_experts = try json.getU32(root, "num_local_experts", diag) orelse try json.getU32(root, "num_experts", diag) orelse 128;
    config.num_experts_per_tok = try json.getU32(root, "num_experts_per_tok", diag) orelse try json.getU32(root, "experts_per_token", diag) orelse 4;
    config.swiglu_limit = try json.getFloat(root, "swiglu_limit", diag) orelse 7;
    config.swiglu_alpha = try json.getFloat(root, "swiglu_alpha", diag) orelse 1.702;
    config.router_aux_loss_coef = try json.getFloat(root, "router_aux_loss_coef", diag) orelse 0.001;
    config.output_router_logits = try json.getBool(root, "output_router_logits", diag) orelse false;
    if (config.swiglu_limit == 0) return invalid(diag, "swiglu_limit is 0; it must be a positive number", .{});
}

fn refuseUnsupported(root: json.Object, model_type: ModelType, diag: *Diagnostic) !void {
    if (try json.getString(root, "hidden_act", diag)) |act| {
        if (!std.mem.eql(u8, act, "silu") and !std.mem.eql(u8, act, "swish"))
            return unsupported(diag, "hidden_act is \"{s}\"", .{act});
    }
    if (try json.getFloat(root, "attention_dropout", diag)) |p|
        if (p != 0) return unsupported(diag, "attention_dropout is {d}", .{p});
    if (try json.getFloat(root, "partial_rotary_factor", diag)) |f|
        if (f != 1) return unsupported(diag, "partial_rotary_factor is {d}", .{f});
    if (try json.getBool(root, "rope_interleaved", diag) orelse false)
        return unsupported(diag, "rope_interleaved is true", .{});
    if (json.get(root, "quantization_config")) |value| {
        const object = try json.asObject(value, "quantization_config", diag);
        const method = try json.getString(object, "quant_method", diag) orelse "";
        if (model_type != .gpt_oss or !std.mem.eql(u8, method, "mxfp4"))
            return unsupported(diag, "quantization_config is set (quant_method \"{s}\"): the weights are quantised", .{method});
    }
}

/// `rope_parameters` (5) or `rope_scaling` (4), and the base from inside it or from `rope_theta`.
fn readRope(root: json.Object, config: *ModelConfig, diag: *Diagnostic) !void {
    const outer_theta = try json.getFloat(root, "rope_theta", diag);
    // When both are there transformers 5 uses the old key.
    const key: []const u8 = if (json.get(root, "rope_scaling") != null) "rope_scaling" else "rope_parameters";
    const value = json.get(root, key) orelse {
        config.rope_theta = outer_theta orelse if (config.model_type == .gpt_oss) 150_000.0 else 10_000.0;
        if (config.model_type == .gpt_oss) config.rope_scaling = .{ .yarn = .{ .factor = 32, .original_max_position_embeddings = 4096, .truncate = false } };
        return;
    };
    const object = try json.asObject(value, key, diag);
    config.rope_theta = try json.getFloat(object, "rope_theta", diag) orelse outer_theta orelse 10_000.0;
    for (object.keys(), object.values()) |name, inner| if (inner == .object) {
        diag.set("{s}.{s} gives some layers their own RoPE; one for all layers is supported", .{ key, name });
        return error.UnsupportedRope;
    };
    if (try json.getFloat(object, "partial_rotary_factor", diag)) |f|
        if (f != 1) return unsupported(diag, "{s}.partial_rotary_factor is {d}", .{ key, f });
    const rope_type = try json.getString(object, "rope_type", diag) orelse try json.getString(object, "type", diag) orelse "default";
    if (std.mem.eql(u8, rope_type, "default")) {
        config.rope_scaling = .none;
    } else if (std.mem.eql(u8, rope_type, "linear")) {
        config.rope_scaling = .{ .linear = .{ .factor = try ropeNumber(object, key, "factor", diag) } };
    } else if (std.mem.eql(u8, rope_type, "llama3")) {
        config.rope_scaling = .{ .llama3 = .{
            .factor = try ropeNumber(object, key, "factor", diag),
            .low_freq_factor = try ropeNumber(object, key, "low_freq_factor", diag),
            .high_freq_factor = try ropeNumber(object, key, "high_freq_factor", diag),
            .original_max_position_embeddings = try json.getU32(object, "original_max_position_embeddings", diag) orelse
                config.max_position_embeddings,
        } };
    } else if (std.mem.eql(u8, rope_type, "yarn") and config.model_type == .gpt_oss) {
        if (json.get(object, "mscale") != null or json.get(object, "mscale_all_dim") != null)
            return unsupported(diag, "{s} has mscale or mscale_all_dim", .{key});
        config.rope_scaling = .{ .yarn = .{
            .factor = try ropeNumber(object, key, "factor", diag),
            .beta_fast = try json.getFloat(object, "beta_fast", diag) orelse 32,
            .beta_slow = try json.getFloat(object, "beta_slow", diag) orelse 1,
            .original_max_position_embeddings = try json.getU32(object, "original_max_position_embeddings", diag) orelse
                try json.getU32(root, "initial_context_length", diag) orelse config.max_position_embeddings,
            .truncate = try json.getBool(object, "truncate", diag) orelse true,
            .attention_factor = try json.getFloat(object, "attention_factor", diag),
        } };
    } else {
        diag.set("{s}.rope_type \"{s}\" is not supported natively; supported are default, linear, llama3, and yarn for gpt_oss", .{ key, rope_type });
        return error.UnsupportedRope;
    }
}

fn ropeNumber(object: json.Object, key: []const u8, name: []const u8, diag: *Diagnostic) !f64 {
    return try json.getFloat(object, name, diag) orelse {
        diag.set("{s} has no \"{s}\"", .{ key, name });
        return error.InvalidConfig;
    };
}

fn readWindow(root: json.Object, config: *ModelConfig, defaults: Defaults, diag: *Diagnostic) !void {
    const window = try json.getU32(root, "sliding_window", diag);
    switch (config.model_type) {
        .llama => {},
        .gpt_oss => {
            config.sliding_window = window orelse if (root.contains("sliding_window")) null else defaults.sliding_window;
            try readLayerTypes(root, config, diag);
        },
        // Every layer of Mistral has the window. Null means none; a missing key means the class's 4096.
        .mistral => config.sliding_window = window orelse
            if (root.contains("sliding_window")) null else defaults.sliding_window,
        .qwen2, .qwen3 => {
            const use = try json.getBool(root, "use_sliding_window", diag) orelse false;
            const layers = config.num_hidden_layers;
            const types = json.get(root, "layer_types");
            if (!use) {
                // Layers of their own type need a window to differ, and the window is off.
                return;
            }
            const width = window orelse (if (root.contains("sliding_window")) return else 4096);
            if (width >= config.max_position_embeddings) return; // It never hides anything.
            if (types) |t| {
                if (t == .array) {
                    for (t.array.items) |item| {
                        if (item == .string and std.mem.eql(u8, item.string, "sliding_attention")) break;
                    } else return;
                }
            } else if ((try json.getU32(root, "max_window_layers", diag) orelse 28) >= layers) return; // No layer is reached.
            return unsupported(diag, "use_sliding_window is true with a window of {d} in some layers", .{width});
        },
    }
}

/// `layer_types`: windowed and full layers in turn, which is also what a missing key means, or all of one kind.
fn readLayerTypes(root: json.Object, config: *ModelConfig, diag: *Diagnostic) !void {
    config.windowed_layers = .even;
    const value = json.get(root, "layer_types") orelse return;
    if (value != .array or value.array.items.len != config.num_hidden_layers) {
        diag.set("layer_types must be a list of one word for each of the {d} layers", .{config.num_hidden_layers});
        return error.InvalidConfig;
    }
    var even = true;
    var windowed: usize = 0;
    for (value.array.items, 0..) |item, i| {
        const word = if (item == .string) item.string else "";
        const slides = std.mem.eql(u8, word, "sliding_attention");
        if (!slides and !std.mem.eql(u8, word, "full_attention")) {
            diag.set("layer_types[{d}] must be \"sliding_attention\" or \"full_attention\"", .{i});
            return error.InvalidConfig;
        }
        if (slides) windowed += 1;
        if (slides != (i % 2 == 0)) even = false;
    }
    if (even) return;
    if (windowed == 0) {
        config.sliding_window = null;
    } else if (windowed == value.array.items.len) {
        config.windowed_layers = .every;
    } else return unsupported(diag, "layer_types names {d} of {d} layers as sliding, not every other one from the first", .{ windowed, config.num_hidden_layers });
}

pub const WriteOptions = struct {
    /// Element type of the weights beside it: "float32", "float64".
    dtype: []const u8 = "float32",
    /// Experts are in blocks and scales, everything else is not: what transformers must be told.
    mxfp4: bool = false,
};

/// Writes `config.json`. Fails only as `w` fails.
pub fn write(w: *std.Io.Writer, config: ModelConfig, options: WriteOptions) std.Io.Writer.Error!void {
    var s: std.json.Stringify = .{ .writer = w, .options = .{ .whitespace = .indent_2 } };
    try s.beginObject();
    try s.objectField("architectures");
    try s.write([_][]const u8{config.model_type.className()});
    switch (config.model_type) {
        .llama, .qwen3, .gpt_oss => try field(&s, "attention_bias", config.qkv_bias),
        .qwen2, .mistral => {},
    }
    try field(&s, "attention_dropout", @as(f64, 0));
    try field(&s, "bos_token_id", config.bos_token_id);
    try field(&s, "dtype", options.dtype);
    try field(&s, "eos_token_id", config.eos_token_id);
    try field(&s, "head_dim", config.head_dim);
    try field(&s, "hidden_act", @as([]const u8, "silu"));
    try field(&s, "hidden_size", config.hidden_size);
    try field(&s, "initializer_range", config.initializer_range);
    try field(&s, "intermediate_size", config.intermediate_size);
    if (config.model_type == .gpt_oss) try writeLayerTypes(&s, config);
    try field(&s, "max_position_embeddings", config.max_position_embeddings);
    if (config.model_type == .llama) try field(&s, "mlp_bias", config.mlp_bias);
    try field(&s, "model_type", @as([]const u8, @tagName(config.model_type)));
    try field(&s, "num_attention_heads", config.num_attention_heads);
    if (config.hasExperts()) try field(&s, "num_experts_per_tok", config.num_experts_per_tok);
    try field(&s, "num_hidden_layers", config.num_hidden_layers);
    try field(&s, "num_key_value_heads", config.num_key_value_heads);
    if (config.hasExperts()) {
        try field(&s, "num_local_experts", config.num_local_experts);
        try field(&s, "output_router_logits", config.output_router_logits);
    }
    try field(&s, "pad_token_id", config.pad_token_id);
    if (options.mxfp4) {
        try s.objectField("quantization_config");
        try s.write(.{
            .modules_to_not_convert = [_][]const u8{ "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head" },
            .quant_method = @as([]const u8, "mxfp4"),
        });
    }
    try field(&s, "rms_norm_eps", config.rms_norm_eps);
    try s.objectField("rope_parameters");
    try writeRope(&s, config, true);
    try s.objectField("rope_scaling");
    if (config.rope_scaling == .none) try s.write(null) else try writeRope(&s, config, false);
    try field(&s, "rope_theta", config.rope_theta);
    if (config.hasExperts()) try field(&s, "router_aux_loss_coef", config.router_aux_loss_coef);
    switch (config.model_type) {
        .llama => {},
        .mistral, .gpt_oss => try field(&s, "sliding_window", config.sliding_window),
        .qwen2, .qwen3 => {
            try field(&s, "sliding_window", @as(?u32, null));
            try field(&s, "use_sliding_window", false);
        },
    }
    if (config.hasExperts()) {
        try field(&s, "swiglu_alpha", config.swiglu_alpha);
        try field(&s, "swiglu_limit", config.swiglu_limit);
    }
    try field(&s, "tie_word_embeddings", config.tie_word_embeddings);
    try field(&s, "torch_dtype", options.dtype);
    try field(&s, "use_cache", true);
    try field(&s, "vocab_size", config.vocab_size);
    try s.endObject();
    try w.writeByte('\n');
}

fn writeLayerTypes(s: *std.json.Stringify, config: ModelConfig) std.Io.Writer.Error!void {
    try s.objectField("layer_types");
    try s.beginArray();
    for (0..config.num_hidden_layers) |layer| try s.write(@as([]const u8, if (config.windowOf(layer) != null) "sliding_attention" else "full_attention"));
    try s.endArray();
}

fn field(s: *std.json.Stringify, name: []const u8, value: anytype) std.Io.Writer.Error!void {
    try s.objectField(name);
    if (@TypeOf(value) == f64) return writeFloat(s, value);
    try s.write(value);
}

/// Shortest digits that read back as the same f64, and always as a float: Python checks the types of these keys.
fn writeFloat(s: *std.json.Stringify, value: f64) std.Io.Writer.Error!void {
    if (value == @trunc(value) and @abs(value) < 1e15) return s.print("{d:.1}", .{value});
    if (@abs(value) >= 1e-4 and @abs(value) < 1e15) return s.print("{d}", .{value});
    try s.print("{e}", .{value});
}

/// With the base inside (transformers 5) or without (the old `rope_scaling`, which has it outside).
fn writeRope(s: *std.json.Stringify, config: ModelConfig, with_theta: bool) std.Io.Writer.Error!void {
    try s.beginObject();
    switch (config.rope_scaling) {
        .none => try field(s, "rope_type", @as([]const u8, "default")),
        .linear => |r| {
            try field(s, "rope_type", @as([]const u8, "linear"));
            try field(s, "factor", r.factor);
        },
        .llama3 => |r| {
            try field(s, "rope_type", @as([]const u8, "llama3"));
            try field(s, "factor", r.factor);
            try field(s, "low_freq_factor", r.low_freq_factor);
            try field(s, "high_freq_factor", r.high_freq_factor);
            try field(s, "original_max_position_embeddings", r.original_max_position_embeddings);
        },
        .yarn => |r| {
            try field(s, "rope_type", @as([]const u8, "yarn"));
            if (r.attention_factor) |f| try field(s, "attention_factor", f);
            try field(s, "beta_fast", r.beta_fast);
            try field(s, "beta_slow", r.beta_slow);
            try field(s, "factor", r.factor);
            try field(s, "original_max_position_embeddings", r.original_max_position_embeddings);
            try field(s, "truncate", r.truncate);
        },
    }
    if (with_theta) try field(s, "rope_theta", config.rope_theta);
    try s.endObject();
}

const testing = std.testing;

fn parseText(text: []const u8) !ModelConfig {
    var diag: Diagnostic = .{};
    return parse(testing.allocator, text, &diag);
}

fn expectRefused(expected: Error, wanted: []const u8, text: []const u8) !void {
    var diag: Diagnostic = .{};
    try testing.expectError(expected, parse(testing.allocator, text, &diag));
    testing.expect(std.mem.find(u8, diag.text(), wanted) != null) catch |err| {
        std.debug.print("wanted \"{s}\" in: {s}\n", .{ wanted, diag.text() });
        return err;
    };
}

const small = "\"vocab_size\":96,\"hidden_size\":32,\"intermediate_size\":64,\"num_hidden_layers\":2,\"num_attention_heads\":4";

test "keys of transformers 4 and 5 give the same configuration" {
    const old = try parseText("{\"model_type\":\"llama\"," ++ small ++ ",\"num_key_value_heads\":2,\"rope_theta\":500000.0,\"torch_dtype\":\"bfloat16\"," ++
        "\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,\"original_max_position_embeddings\":64},\"eos_token_id\":[3,4],\"bos_token_id\":1}");
    const new = try parseText("{\"model_type\":\"llama\"," ++ small ++ ",\"num_key_value_heads\":2,\"dtype\":\"bfloat16\"," ++
        "\"rope_parameters\":{\"rope_theta\":500000.0,\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,\"original_max_position_embeddings\":64},\"eos_token_id\":3,\"bos_token_id\":1,\"head_dim\":8}");
    try testing.expectEqualDeep(old, new);
    try testing.expectEqual(8, new.head_dim);
    try testing.expectEqual(500000.0, new.rope_theta);
    try testing.expectEqual(8.0, new.rope_scaling.llama3.factor);
    try testing.expectEqual(3, new.eos_token_id.?);
}

test "missing keys have the class's defaults" {
    const llama = try parseText("{\"model_type\":\"llama\"," ++ small ++ "}");
    try testing.expectEqual(4, llama.num_key_value_heads);
    try testing.expectEqual(false, llama.tie_word_embeddings);
    try testing.expectEqual(1e-6, llama.rms_norm_eps);
    try testing.expectEqual(2, llama.eos_token_id.?);
    const qwen3 = try parseText("{\"model_type\":\"qwen3\"," ++ small ++ ",\"num_key_value_heads\":2}");
    try testing.expectEqual(128, qwen3.head_dim);
    try testing.expect(qwen3.qk_norm and !qwen3.qkv_bias);
    const qwen2 = try parseText("{\"model_type\":\"qwen2\"," ++ small ++ ",\"num_key_value_heads\":2}");
    try testing.expect(qwen2.qkv_bias and !qwen2.attention_output_bias);
    const mistral = try parseText("{\"model_type\":\"mistral\"," ++ small ++ ",\"num_key_value_heads\":2}");
    try testing.expectEqual(4096, mistral.sliding_window.?);
    const open = try parseText("{\"model_type\":\"mistral\"," ++ small ++ ",\"num_key_value_heads\":2,\"sliding_window\":null}");
    try testing.expectEqual(null, open.sliding_window);
    const biased = try parseText("{\"model_type\":\"llama\"," ++ small ++ ",\"attention_bias\":true,\"mlp_bias\":true}");
    try testing.expect(biased.qkv_bias and biased.attention_output_bias and biased.mlp_bias);
}

test "what the native model would compute differently is refused by name" {
    const llama = "{\"model_type\":\"llama\"," ++ small;
    const qwen2 = "{\"model_type\":\"qwen2\",\"num_key_value_heads\":2," ++ small;
    try expectRefused(error.UnsupportedModelType, "gpt_neox", "{\"model_type\":\"gpt_neox\"}");
    try expectRefused(error.UnsupportedModelType, "model_type", "{}");
    try expectRefused(error.UnsupportedRope, "yarn", llama ++ ",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2}}");
    try expectRefused(error.UnsupportedRope, "full_attention", llama ++ ",\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"default\"}}}");
    try expectRefused(error.UnsupportedSetting, "gelu", llama ++ ",\"hidden_act\":\"gelu\"}");
    try expectRefused(error.UnsupportedSetting, "attention_dropout", llama ++ ",\"attention_dropout\":0.1}");
    try expectRefused(error.UnsupportedSetting, "partial_rotary_factor", llama ++ ",\"partial_rotary_factor\":0.5}");
    try expectRefused(error.UnsupportedSetting, "partial_rotary_factor", llama ++ ",\"rope_parameters\":{\"partial_rotary_factor\":0.5}}");
    try expectRefused(error.UnsupportedSetting, "rope_interleaved", llama ++ ",\"rope_interleaved\":true}");
    try expectRefused(error.UnsupportedSetting, "quantization_config", llama ++ ",\"quantization_config\":{}}");
    try expectRefused(error.UnsupportedSetting, "use_sliding_window", qwen2 ++ ",\"use_sliding_window\":true,\"sliding_window\":64,\"max_window_layers\":1}");
    try expectRefused(error.UnsupportedSetting, "use_sliding_window", qwen2 ++ ",\"use_sliding_window\":true,\"sliding_window\":64,\"layer_types\":[\"full_attention\",\"sliding_attention\"]}");
    try expectRefused(error.InvalidConfig, "vocab_size", "{\"model_type\":\"llama\",\"hidden_size\":32,\"num_attention_heads\":4}");
    try expectRefused(error.InvalidConfig, "hidden_size", "{\"model_type\":\"llama\",\"hidden_size\":\"32\"}");
    try expectRefused(error.InvalidConfig, "hidden_size", "{\"model_type\":\"llama\",\"hidden_size\":-1}");
    try expectRefused(error.InvalidConfig, "factor", llama ++ ",\"rope_scaling\":{\"rope_type\":\"linear\"}}");
    try expectRefused(error.InvalidConfig, "JSON", "{");
    try expectRefused(error.InvalidConfig, "eos_token_id", llama ++ ",\"eos_token_id\":\"x\"}");
    try expectRefused(error.InvalidModelConfig, "num_attention_heads", "{\"model_type\":\"llama\",\"hidden_size\":32,\"num_attention_heads\":0}");
    try expectRefused(error.InvalidModelConfig, "hidden_size is 30", "{\"model_type\":\"llama\",\"hidden_size\":30,\"num_attention_heads\":4}");
    try expectRefused(error.InvalidModelConfig, "num_key_value_heads", llama ++ ",\"num_key_value_heads\":3}");
}

test "a sliding window that hides nothing is accepted" {
    const qwen2 = "{\"model_type\":\"qwen2\",\"num_key_value_heads\":2,\"use_sliding_window\":true," ++ small;
    for ([_][]const u8{
        ",\"sliding_window\":32768}",
        ",\"sliding_window\":64,\"max_window_layers\":2}",
        ",\"sliding_window\":null}",
        ",\"sliding_window\":64,\"layer_types\":[\"full_attention\",\"full_attention\"]}",
    }) |tail| {
        const text = try std.mem.concat(testing.allocator, u8, &.{ qwen2, tail });
        defer testing.allocator.free(text);

        try testing.expectEqual(null, (try parseText(text)).sliding_window);
    }
}

test "what is written is read back as the same configuration" {
    const base_config: ModelConfig = .{
        .vocab_size = 96,
        .hidden_size = 32,
        .intermediate_size = 64,
        .num_hidden_layers = 2,
        .num_attention_heads = 4,
        .num_key_value_heads = 2,
        .head_dim = 10,
        .rms_norm_eps = 1.25e-5,
        .rope_theta = 1234567.0,
        .eos_token_id = 5,
        .initializer_range = 0.02,
    };
    var configs: [8]ModelConfig = @splat(base_config);
    configs[1].rope_scaling = .{ .linear = .{ .factor = 2.5 } };
    configs[1].tie_word_embeddings = false;
    configs[2].rope_scaling = .{ .llama3 = .{ .factor = 32, .low_freq_factor = 1, .high_freq_factor = 4, .original_max_position_embeddings = 8192 } };
    configs[2].qkv_bias = true;
    configs[2].attention_output_bias = true;
    configs[2].mlp_bias = true;
    configs[3].model_type = .qwen2;
    configs[3].qkv_bias = true;
    configs[4].model_type = .qwen3;
    configs[4].qk_norm = true;
    configs[5].model_type = .mistral;
    configs[5].sliding_window = 16;
    for (configs[6..]) |*mixture| {
        mixture.model_type = .gpt_oss;
        mixture.attention_sinks = true;
        mixture.qkv_bias = true;
        mixture.attention_output_bias = true;
        mixture.num_local_experts = 4;
        mixture.num_experts_per_tok = 2;
        mixture.swiglu_limit = 7;
        mixture.router_aux_loss_coef = 0.9;
        mixture.windowed_layers = .even;
    }
    configs[6].sliding_window = 16;
    configs[6].rope_scaling = .{ .yarn = .{ .factor = 32, .original_max_position_embeddings = 4096, .truncate = false } };
    configs[7].output_router_logits = true;
    configs[7].rope_scaling = .{ .yarn = .{ .factor = 4, .beta_fast = 16, .original_max_position_embeddings = 64, .attention_factor = 1.25 } };
    for (configs) |config| {
        var out: std.Io.Writer.Allocating = .init(testing.allocator);
        defer out.deinit();

        try write(&out.writer, config, .{});
        try testing.expectEqualDeep(config, try parseText(out.written()));
    }
}

test "every allocation failure while reading is survived" {
    try testing.checkAllAllocationFailures(testing.allocator, struct {
        fn run(gpa: Allocator) !void {
            var diag: Diagnostic = .{};
            _ = try parse(gpa, "{\"model_type\":\"llama\"," ++ small ++ ",\"eos_token_id\":[2,3],\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":2}}", &diag);
        }
    }.run, .{});
}

test "no bit flip of a configuration crashes" {
    var out: std.Io.Writer.Allocating = .init(testing.allocator);
    defer out.deinit();

    try write(&out.writer, .{ .vocab_size = 96, .hidden_size = 32, .intermediate_size = 64, .num_hidden_layers = 2, .num_attention_heads = 4, .num_key_value_heads = 2, .head_dim = 8 }, .{});
    const text = out.written();
    for (0..text.len * 8) |bit| {
        text[bit / 8] ^= @as(u8, 1) << @intCast(bit % 8);
        defer text[bit / 8] ^= @as(u8, 1) << @intCast(bit % 8);

        var diag: Diagnostic = .{};
        _ = parse(testing.allocator, text, &diag) catch {
            try testing.expect(diag.text().len > 0);
        };
    }
}
