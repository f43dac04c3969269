//! Model configuration of the dense Llama family, in the words of Hugging Face's `config.json`.
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

    /// Hugging Face class name, as in `config.json` `architectures`.
    pub fn className(self: ModelType) []const u8 {
        return switch (self) {
            .llama => "LlamaForCausalLM",
            .qwen2 => "Qwen2ForCausalLM",
            .qwen3 => "Qwen3ForCausalLM",
            .mistral => "MistralForCausalLM",
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
};

pub const ConfigError = error{InvalidModelConfig};

/// The widest head the attention kernels keep on the stack.
pub const max_head_dim = 512;

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
    /// Standard deviation of the normal distribution for random initialisation.
    initializer_range: f64 = 0.02,
    bos_token_id: ?u32 = null,
    eos_token_id: ?u32 = null,
    pad_token_id: ?u32 = null,

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
        }
        inline for (.{ "bos_token_id", "eos_token_id", "pad_token_id" }) |name| {
            if (@field(self, name)) |id| if (id >= self.vocab_size)
                return fail(message, "{s} is {d}; it must be below vocab_size ({d})", .{ name, id, self.vocab_size });
        }
    }
};

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
