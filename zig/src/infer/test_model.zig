//! A tiny random model in memory, for tests of this layer.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const matrix = @import("matrix.zig");
const model_file = @import("model.zig");
const Model = model_file.Model;

pub const config: arch.ModelConfig = .{
    .model_type = .qwen3,
    .vocab_size = 50,
    .hidden_size = 32,
    .intermediate_size = 48,
    .num_hidden_layers = 2,
    .num_attention_heads = 4,
    .num_key_value_heads = 2,
    .head_dim = 10,
    .qk_norm = true,
};

/// The same as a mixture of experts with sinks, YaRN, and a window in every other layer.
pub const mixture_config: arch.ModelConfig = .{
    .model_type = .gpt_oss,
    .vocab_size = 50,
    .hidden_size = 32,
    .intermediate_size = 48,
    .num_hidden_layers = 3,
    .num_attention_heads = 4,
    .num_key_value_heads = 2,
    .head_dim = 10,
    .qkv_bias = true,
    .attention_output_bias = true,
    .sliding_window = 20,
    .windowed_layers = .even,
    .attention_sinks = true,
    .num_local_experts = 6,
    .num_experts_per_tok = 2,
    .swiglu_limit = 7,
    .rope_theta = 150_000,
    .rope_scaling = .{ .yarn = .{ .factor = 4, .original_max_position_embeddings = 64, .truncate = false } },
};

/// Everything lives in `arena`; there is no file, so `close` must not be called.
pub fn make(arena: std.mem.Allocator) !Model {
    return makeOf(arena, config);
}

pub fn makeOf(arena: std.mem.Allocator, c: arch.ModelConfig) !Model {
    var prng: base.Prng = .init(9);
    const width: usize = c.hidden_size;
    const layers = try arena.alloc(model_file.Layer, c.num_hidden_layers);
    for (layers, 0..) |*layer, l| layer.* = .{
        .q = try linear(arena, &prng, c.queryWidth(), width, true),
        .k = try linear(arena, &prng, c.keyValueWidth(), width, false),
        .v = try linear(arena, &prng, c.keyValueWidth(), width, false),
        .o = try linear(arena, &prng, width, c.queryWidth(), false),
        .mlp = if (c.hasExperts()) .{ .mixture = .{
            .router = try linear(arena, &prng, c.num_local_experts, width, true),
            .gate = try linears(arena, &prng, c, c.intermediate_size, width),
            .up = try linears(arena, &prng, c, c.intermediate_size, width),
            .down = try linears(arena, &prng, c, width, c.intermediate_size),
            .chosen = c.num_experts_per_tok,
            .limit = @floatCast(c.swiglu_limit),
            .alpha = @floatCast(c.swiglu_alpha),
        } } else .{ .dense = .{
            .gate = try linear(arena, &prng, c.intermediate_size, width, false),
            .up = try linear(arena, &prng, c.intermediate_size, width, false),
            .down = try linear(arena, &prng, width, c.intermediate_size, false),
        } },
        .attention_norm = try vector(arena, &prng, width),
        .mlp_norm = try vector(arena, &prng, width),
        .q_norm = if (c.qk_norm) try vector(arena, &prng, c.head_dim) else null,
        .k_norm = if (c.qk_norm) try vector(arena, &prng, c.head_dim) else null,
        .window = c.windowOf(l),
        .sinks = if (c.attention_sinks) try vector(arena, &prng, c.num_attention_heads) else null,
    };
    const inverse_frequencies = try arena.alloc(f32, c.head_dim / 2);
    arch.rope.inverseFrequencies(c, inverse_frequencies);
    const embedding = try linear(arena, &prng, c.vocab_size, width, false);
    return .{
        .gpa = arena,
        .arena = undefined,
        .disk = undefined,
        .mapping = undefined,
        .file = undefined,
        .config = c,
        .rope_order = .halves,
        .inverse_frequencies = inverse_frequencies,
        .magnitude = @floatCast(arch.rope.magnitude(c)),
        .embedding = embedding.weight,
        .layers = layers,
        .final_norm = try vector(arena, &prng, width),
        .head = try linear(arena, &prng, c.vocab_size, width, false),
    };
}

fn linears(arena: std.mem.Allocator, prng: *base.Prng, c: arch.ModelConfig, rows: usize, columns: usize) ![]const matrix.Linear {
    const list = try arena.alloc(matrix.Linear, c.num_local_experts);
    for (list) |*one| one.* = try linear(arena, prng, rows, columns, true);
    return list;
}

fn linear(arena: std.mem.Allocator, prng: *base.Prng, rows: usize, columns: usize, biased: bool) !matrix.Linear {
    const values = try arena.alloc(f32, rows * columns);
    const scale = 1 / @sqrt(@as(f64, @floatFromInt(columns)));
    for (values) |*v| v.* = @floatCast(prng.normal() * scale);
    return .{
        .weight = .{ .dtype = .f32, .rows = rows, .columns = columns, .bytes = std.mem.sliceAsBytes(values) },
        .bias = if (biased) try vector(arena, prng, rows) else null,
    };
}

fn vector(arena: std.mem.Allocator, prng: *base.Prng, len: usize) ![]f32 {
    const values = try arena.alloc(f32, len);
    for (values) |*v| v.* = @floatCast(1 + 0.2 * prng.normal());
    return values;
}
