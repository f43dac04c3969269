//! Model configuration of the Llama family and of gpt-oss, in the words of Hugging Face's `config.json`.
//!
//! `ModelConfig` is plain data. `validate` is the only gate: everything after it may rely on the relations it checks
//! (no zero sizes, heads divisible by key/value heads, an even head size). Does not know: JSON, GGUF keys.

const std = @import("std");

/// The architectures this project trains. The value is Hugging Face's `model_type`.
pub const ModelType = enum {
    llama,
    qwen2,
    qwen3,
    mistral,
    gpt_oss,

    /// Hugging Face class name, as in `config.json` `architectures`.
    pub fn className(self: ModelType) []const u8 {
        return switch (self) {
            .llama => "LlamaForCausalLM",
            .qwen2 => "Qwen2ForCausalLM",
            .qwen3 => "Qwen3ForCausalLM",
            .mistral => "MistralForCausalLM",
            .gpt_oss => "GptOssForCausalLM",
        };
    }
};

/// How rotary frequencies are changed to reach beyond the context of pre-training.
pub const RopeScaling = union(enum) {
    none,
    /// Positions are divided by `factor`.
    linear: struct { factor: f64 },
    /// Llama 3.1: low frequencies are divided by `factor`, high ones kept, a smooth ramp between.
    llama3: struct {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_position_embeddings: u32,
    },
    yarn: Yarn,
};

/// YaRN (Peng et al., 2023): frequencies whose wavelength fits `beta_fast` times or more into the original context are kept, those that fit `beta_slow`
/// times or less are divided by `factor`, with a ramp between; cosines and sines are multiplied by `attention_factor`.
pub const Yarn = struct {
    factor: f64,
    beta_fast: f64 = 32,
    beta_slow: f64 = 1,
    original_max_position_embeddings: u32,
    /// Round the ends of the ramp outwards to whole numbers. The paper's code, transformers' default and ggml always do; gpt-oss was trained without.
    truncate: bool = true,
    /// Null: 0.1 · ln(factor) + 1.
    attention_factor: ?f64 = null,

    /// What cosines and sines are multiplied by.
    pub fn magnitude(self: Yarn) f64 {
        return self.attention_factor orelse if (self.factor <= 1) 1 else 0.1 * @log(self.factor) + 1;
    }
};

/// Which layers a `sliding_window` holds for; in the others a token sees all before it.
pub const WindowedLayers = enum {
    every,
    /// Layers 0, 2, 4, …
    even,
};

pub const ConfigError = error{InvalidModelConfig};

/// The widest head the attention kernels keep on the stack.
pub const max_head_dim = 512;

/// The most experts llama.cpp and we count with.
pub const max_experts = 1024;

/// The most of them that a token may have: what the router keeps on the stack.
pub const max_experts_per_tok = 64;

pub const ModelConfig = struct {
    model_type: ModelType = .llama,
    vocab_size: u32,
    hidden_size: u32,
    intermediate_size: u32,
    num_hidden_layers: u32,
    num_attention_heads: u32,
    num_key_value_heads: u32,
    /// Size of one head. Not always `hidden_size / num_attention_heads` (Qwen3).
    head_dim: u32,
    max_position_embeddings: u32 = 2048,
    rms_norm_eps: f64 = 1e-5,
    rope_theta: f64 = 10_000.0,
    rope_scaling: RopeScaling = .none,
    tie_word_embeddings: bool = true,
    /// Bias on q, k and v.
    qkv_bias: bool = false,
    /// Bias on the attention output projection.
    attention_output_bias: bool = false,
    /// Bias on gate, up and down.
    mlp_bias: bool = false,
    /// RMSNorm over `head_dim` on q and k before RoPE (Qwen3).
    qk_norm: bool = false,
    /// A token sees at most this many tokens, itself included; null = all before it.
    sliding_window: ?u32 = null,
    windowed_layers: WindowedLayers = .every,
    /// One learned logit a head joins every softmax and takes its share of the weight to nowhere.
    attention_sinks: bool = false,
    /// Number of experts of each MLP; 0 = one dense MLP, as `intermediate_size` has it.
    num_local_experts: u32 = 0,
    /// How many of them see a token.
    num_experts_per_tok: u32 = 0,
    /// Experts: gate is clamped from above, up from both sides; 0 = not at all.
    swiglu_limit: f64 = 0,
    /// Experts: act = gate · sigmoid(swiglu_alpha · gate) · (up + 1).
    swiglu_alpha: f64 = 1.702,
    /// Weight of the routers' balance loss; it is added only when `output_router_logits` is true.
    router_aux_loss_coef: f64 = 0.001,
    output_router_logits: bool = false,
    /// Standard deviation of the normal distribution for random initialisation.
    initializer_range: f64 = 0.02,
    bos_token_id: ?u32 = null,
    eos_token_id: ?u32 = null,
    pad_token_id: ?u32 = null,

    pub fn hasExperts(self: ModelConfig) bool {
        return self.num_local_experts > 0;
    }

    /// How much of the routers' balance loss training adds; 0 where the model does not ask for it.
    pub fn balanceCoefficient(self: ModelConfig) f64 {
        return if (self.hasExperts() and self.output_router_logits) self.router_aux_loss_coef else 0;
    }

    pub fn balances(self: ModelConfig) bool {
        return self.balanceCoefficient() > 0;
    }

    /// How many tokens a token of this layer sees at most, itself included; null = all before it.
    pub fn windowOf(self: ModelConfig, layer: usize) ?u32 {
        const window = self.sliding_window orelse return null;
        return switch (self.windowed_layers) {
            .every => window,
            .even => if (layer % 2 == 0) window else null,
        };
    }

    /// Width of the q projection's output.
    pub fn queryWidth(self: ModelConfig) usize {
        return @as(usize, self.num_attention_heads) * self.head_dim;
    }

    /// Width of the k (and of the v) projection's output.
    pub fn keyValueWidth(self: ModelConfig) usize {
        return @as(usize, self.num_key_value_heads) * self.head_dim;
    }

    /// Checks every relation later code relies on. On failure `message` holds one sentence naming field, value and rule.
    pub fn validate(self: ModelConfig, message: *[256]u8) (ConfigError!void) {
        const positive = .{ "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings" };
        inline for (positive) |name| {
            if (@field(self, name) == 0) return fail(message, "{s} is 0; it must be at least 1", .{name});
        }
        if (self.num_attention_heads % self.num_key_value_heads != 0)
            return fail(message, "num_attention_heads is {d}; it must be a multiple of num_key_value_heads ({d})", .{ self.num_attention_heads, self.num_key_value_heads });
        if (self.head_dim % 2 != 0) return fail(message, "head_dim is {d}; RoPE needs an even number", .{self.head_dim});
        if (self.head_dim > max_head_dim) return fail(message, "head_dim is {d}; the largest supported is {d}", .{ self.head_dim, max_head_dim });
        if (self.num_hidden_layers > 1024) return fail(message, "num_hidden_layers is {d}; the most supported is 1024", .{self.num_hidden_layers});
        if (!(self.rms_norm_eps > 0 and self.rms_norm_eps < 1)) return fail(message, "rms_norm_eps is {d}; it must lie between 0 and 1", .{self.rms_norm_eps});
        if (!(self.rope_theta > 0) or !std.math.isFinite(self.rope_theta)) return fail(message, "rope_theta is {d}; it must be a positive number", .{self.rope_theta});
        if (!(self.initializer_range >= 0) or !std.math.isFinite(self.initializer_range)) return fail(message, "initializer_range is {d}; it must be zero or more", .{self.initializer_range});
        if (self.sliding_window) |w| if (w == 0) return fail(message, "sliding_window is 0; leave it out for no window", .{});
        switch (self.rope_scaling) {
            .none => {},
            .linear => |s| if (!(s.factor > 0) or !std.math.isFinite(s.factor)) return fail(message, "rope_scaling.factor is {d}; it must be a positive number", .{s.factor}),
            .llama3 => |s| {
                if (!(s.factor > 0) or !std.math.isFinite(s.factor)) return fail(message, "rope_scaling.factor is {d}; it must be a positive number", .{s.factor});
                if (!(s.high_freq_factor > s.low_freq_factor) or !(s.low_freq_factor > 0)) return fail(message, "rope_scaling.high_freq_factor ({d}) must be above low_freq_factor ({d}), both positive", .{ s.high_freq_factor, s.low_freq_factor });
                if (s.original_max_position_embeddings == 0) return fail(message, "rope_scaling.original_max_position_embeddings is 0; it must be at least 1", .{});
            },
            .yarn => |s| try validateYarn(s, self, message),
        }
        try self.validateExperts(message);
        inline for (.{ "bos_token_id", "eos_token_id", "pad_token_id" }) |name| {
            if (@field(self, name)) |id| if (id >= self.vocab_size)
                return fail(message, "{s} is {d}; it must be below vocab_size ({d})", .{ name, id, self.vocab_size });
        }
    }

    fn validateExperts(self: ModelConfig, message: *[256]u8) ConfigError!void {
        const mixture = self.model_type == .gpt_oss;
        if (mixture != self.hasExperts()) return fail(message, "num_local_experts is {d}; {s}", .{
            self.num_local_experts,
            if (mixture) "gpt_oss has at least 1" else "only gpt_oss has experts here",
        });
        if (!mixture) return;
        if (self.num_local_experts > max_experts) return fail(message, "num_local_experts is {d}; the most supported is {d}", .{ self.num_local_experts, max_experts });
        if (self.num_experts_per_tok == 0 or self.num_experts_per_tok > self.num_local_experts)
            return fail(message, "num_experts_per_tok is {d}; it must be at least 1 and at most num_local_experts ({d})", .{ self.num_experts_per_tok, self.num_local_experts });
        if (self.num_experts_per_tok > max_experts_per_tok) return fail(message, "num_experts_per_tok is {d}; the most supported is {d}", .{ self.num_experts_per_tok, max_experts_per_tok });
        if (!(self.swiglu_limit >= 0) or !std.math.isFinite(self.swiglu_limit)) return fail(message, "swiglu_limit is {d}; it must be zero or more", .{self.swiglu_limit});
        if (!(self.swiglu_alpha > 0) or !std.math.isFinite(self.swiglu_alpha)) return fail(message, "swiglu_alpha is {d}; it must be a positive number", .{self.swiglu_alpha});
        if (!(self.router_aux_loss_coef >= 0) or !std.math.isFinite(self.router_aux_loss_coef))
            return fail(message, "router_aux_loss_coef is {d}; it must be zero or more", .{self.router_aux_loss_coef});
    }
};

fn validateYarn(s: Yarn, config: ModelConfig, message: *[256]u8) ConfigError!void {
    if (!(s.factor >= 1) or !std.math.isFinite(s.factor)) return fail(message, "rope_scaling.factor is {d}; YaRN needs a number of at least 1", .{s.factor});
    if (!(s.beta_slow > 0) or !(s.beta_fast >= s.beta_slow) or !std.math.isFinite(s.beta_fast))
        return fail(message, "rope_scaling.beta_fast ({d}) must not be below beta_slow ({d}), both positive", .{ s.beta_fast, s.beta_slow });
    if (s.original_max_position_embeddings == 0) return fail(message, "rope_scaling.original_max_position_embeddings is 0; it must be at least 1", .{});
    if (!(config.rope_theta > 1)) return fail(message, "rope_theta is {d}; YaRN needs a number above 1", .{config.rope_theta});
    if (s.attention_factor) |f| if (!(f > 0) or !std.math.isFinite(f)) return fail(message, "rope_scaling.attention_factor is {d}; it must be a positive number", .{f});
}

fn fail(message: *[256]u8, comptime format: []const u8, arguments: anytype) ConfigError {
    @memset(message, 0);
    var w: std.Io.Writer = .fixed(message[0 .. message.len - 1]);
    w.print(format, arguments) catch {}; // A message cut at 255 bytes is still a message.
    return error.InvalidModelConfig;
}

const tiny: ModelConfig = .{
    .vocab_size = 96,
    .hidden_size = 32,
    .intermediate_size = 64,
    .num_hidden_layers = 2,
    .num_attention_heads = 4,
    .num_key_value_heads = 2,
    .head_dim = 8,
};

test "a sound configuration passes" {
    var message: [256]u8 = undefined;
    try tiny.validate(&message);
}

test "heads that do not divide are named with their values" {
    var message: [256]u8 = undefined;
    var bad = tiny;
    bad.num_key_value_heads = 3;
    try std.testing.expectError(error.InvalidModelConfig, bad.validate(&message));
    try std.testing.expect(std.mem.find(u8, &message, "num_attention_heads is 4") != null);
}

test "a token id beyond the vocabulary is refused" {
    var message: [256]u8 = undefined;
    var bad = tiny;
    bad.eos_token_id = 96;
    try std.testing.expectError(error.InvalidModelConfig, bad.validate(&message));
    try std.testing.expect(std.mem.find(u8, &message, "eos_token_id is 96") != null);
}

const tiny_mixture: ModelConfig = .{
    .model_type = .gpt_oss,
    .vocab_size = 96,
    .hidden_size = 32,
    .intermediate_size = 64,
    .num_hidden_layers = 3,
    .num_attention_heads = 4,
    .num_key_value_heads = 2,
    .head_dim = 16,
    .sliding_window = 8,
    .windowed_layers = .even,
    .attention_sinks = true,
    .num_local_experts = 4,
    .num_experts_per_tok = 2,
    .swiglu_limit = 7,
    .rope_theta = 150_000,
    .rope_scaling = .{ .yarn = .{ .factor = 32, .original_max_position_embeddings = 4096, .truncate = false } },
};

test "a mixture of experts passes, and its window holds for every other layer" {
    var message: [256]u8 = undefined;
    try tiny_mixture.validate(&message);
    try std.testing.expectEqual(8, tiny_mixture.windowOf(0));
    try std.testing.expectEqual(null, tiny_mixture.windowOf(1));
    try std.testing.expectEqual(8, tiny_mixture.windowOf(2));
}

test "bad settings of a mixture are named with their values" {
    const Case = struct { change: *const fn (*ModelConfig) void, words: []const u8 };
    const cases = [_]Case{
        .{ .words = "num_experts_per_tok is 5", .change = struct {
            fn f(c: *ModelConfig) void {
                c.num_experts_per_tok = 5;
            }
        }.f },
        .{ .words = "num_experts_per_tok is 65; the most supported is 64", .change = struct {
            fn f(c: *ModelConfig) void {
                c.num_local_experts = 128;
                c.num_experts_per_tok = 65;
            }
        }.f },
        .{ .words = "num_experts_per_tok is 0", .change = struct {
            fn f(c: *ModelConfig) void {
                c.num_experts_per_tok = 0;
            }
        }.f },
        .{ .words = "num_local_experts is 0", .change = struct {
            fn f(c: *ModelConfig) void {
                c.num_local_experts = 0;
            }
        }.f },
        .{ .words = "num_local_experts is 4; only gpt_oss", .change = struct {
            fn f(c: *ModelConfig) void {
                c.model_type = .llama;
            }
        }.f },
        .{ .words = "sliding_window is 0", .change = struct {
            fn f(c: *ModelConfig) void {
                c.sliding_window = 0;
            }
        }.f },
        .{ .words = "YaRN needs a number of at least 1", .change = struct {
            fn f(c: *ModelConfig) void {
                c.rope_scaling.yarn.factor = 0.5;
            }
        }.f },
        .{ .words = "beta_fast (0.5) must not be below beta_slow (1)", .change = struct {
            fn f(c: *ModelConfig) void {
                c.rope_scaling.yarn.beta_fast = 0.5;
            }
        }.f },
    };
    for (cases) |case| {
        var message: [256]u8 = undefined;
        var bad = tiny_mixture;
        case.change(&bad);
        try std.testing.expectError(error.InvalidModelConfig, bad.validate(&message));
        try std.testing.expect(std.mem.find(u8, &message, case.words) != null);
    }
}
