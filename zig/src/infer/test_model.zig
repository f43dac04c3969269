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

/// Everything lives in `arena`; there is no file, so `close` must not be called.
pub fn make(arena: std.mem.Allocator) !Model {
    var prng: base.Prng = .init(9);
    const c = config;
    const width: usize = c.hidden_size;
    const layers = try arena.alloc(model_file.Layer, c.num_hidden_layers);
    for (layers) |*layer| layer.* = .{
        .q = try linear(arena, &prng, c.queryWidth(), width, true),
        .k = try linear(arena, &prng, c.keyValueWidth(), width, false),
        .v = try linear(arena, &prng, c.keyValueWidth(), width, false),
        .o = try linear(arena, &prng, width, c.queryWidth(), false),
        .mlp = .{ .dense = .{
            .gate = try linear(arena, &prng, c.intermediate_size, width, false),
            .up = try linear(arena, &prng, c.intermediate_size, width, false),
            .down = try linear(arena, &prng, width, c.intermediate_size, false),
        } },
        .attention_norm = try vector(arena, &prng, width),
        .mlp_norm = try vector(arena, &prng, width),
        .q_norm = try vector(arena, &prng, c.head_dim),
        .k_norm = try vector(arena, &prng, c.head_dim),
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
        .embedding = embedding.weight,
        .layers = layers,
        .final_norm = try vector(arena, &prng, width),
        .head = try linear(arena, &prng, c.vocab_size, width, false),
    };
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
