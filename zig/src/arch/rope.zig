//! Rotary frequencies of a configuration.
//!
//! inv_k = theta^(-2k/D) for k = 0 … D/2-1, then the configured scaling. Every step is rounded to f32, because
//! transformers computes this table in f32 whatever the precision of the model, and a difference of one rounding here
//! grows with the position. Does not know: positions, cosines.

const std = @import("std");
const config_file = @import("config.zig");
const ModelConfig = config_file.ModelConfig;

/// Writes `head_dim / 2` inverse frequencies (radians per position) into `out`.
pub fn inverseFrequencies(config: ModelConfig, out: []f32) void {
    std.debug.assert(out.len == config.head_dim / 2);
    const dim: f32 = @floatFromInt(config.head_dim);
    for (out, 0..) |*inv, k| {
        const exponent: f32 = @as(f32, @floatFromInt(2 * k)) / dim;
        const power: f32 = @floatCast(std.math.pow(f64, config.rope_theta, exponent));
        inv.* = scaled(config, k, 1.0 / power);
    }
}

/// What cosines and sines are multiplied by: 1 but for YaRN.
pub fn magnitude(config: ModelConfig) f64 {
    return switch (config.rope_scaling) {
        .yarn => |s| s.magnitude(),
        else => 1,
    };
}

/// What the frequency is divided by through scaling: 1 where nothing changes. GGUF stores these as `rope_freqs.weight`.
pub fn divisors(config: ModelConfig, out: []f32) void {
    std.debug.assert(out.len == config.head_dim / 2);
    var plain = config;
    plain.rope_scaling = .none;
    inverseFrequencies(plain, out);
    for (out, 0..) |*value, k| value.* = value.* / scaled(config, k, value.*);
}

/// Frequency `k`, before scaling `inv`. Llama 3.1 as in transformers' `_compute_llama3_parameters`, YaRN as in its `_compute_yarn_parameters`;
/// linear divides every frequency.
fn scaled(config: ModelConfig, k: usize, inv: f32) f32 {
    switch (config.rope_scaling) {
        .none => return inv,
        .linear => |s| return inv / @as(f32, @floatCast(s.factor)),
        .llama3 => |s| {
            const context: f32 = @floatFromInt(s.original_max_position_embeddings);
            const low: f32 = @floatCast(s.low_freq_factor);
            const high: f32 = @floatCast(s.high_freq_factor);
            const factor: f32 = @floatCast(s.factor);
            const wavelength: f32 = @as(f32, 2.0 * std.math.pi) / inv;
            if (wavelength < context / high) return inv;
            if (wavelength > context / low) return inv / factor;
            const smooth = (context / wavelength - low) / (high - low);
            return (1.0 - smooth) * inv / factor + smooth * inv;
        },
        .yarn => |s| {
            const low, const high = rampOf(config, s);
            const at: f32 = @floatFromInt(k);
            const ramp = std.math.clamp((at - low) / (high - low), 0, 1);
            const factor: f32 = @floatCast(s.factor);
            // transformers writes it with 1 - ramp as the part that is kept.
            const kept = 1 - ramp;
            return inv / factor * (1 - kept) + inv * kept;
        },
    }
}

/// Between which frequencies YaRN's ramp lies. c(β) = D · ln(L / (2π β)) / (2 ln θ) is where β turns fit into the original context L.
fn rampOf(config: ModelConfig, s: config_file.Yarn) [2]f32 {
    const dim: f64 = @floatFromInt(config.head_dim);
    const context: f64 = @floatFromInt(s.original_max_position_embeddings);
    var ends: [2]f64 = undefined;
    for (&ends, [_]f64{ s.beta_fast, s.beta_slow }) |*end, turns| {
        end.* = dim * @log(context / (turns * 2 * std.math.pi)) / (2 * @log(config.rope_theta));
    }
    if (s.truncate) ends = .{ @floor(ends[0]), @ceil(ends[1]) };
    const low = @max(ends[0], 0);
    var high = @min(ends[1], dim - 1);
    if (low == high) high += 0.001; // As in transformers: no division by zero.
    return .{ @floatCast(low), @floatCast(high) };
}

const test_config: ModelConfig = .{
    .vocab_size = 8,
    .hidden_size = 8,
    .intermediate_size = 8,
    .num_hidden_layers = 1,
    .num_attention_heads = 1,
    .num_key_value_heads = 1,
    .head_dim = 64,
    .rope_theta = 500_000,
};

test "the first frequency is one radian per position and they fall geometrically" {
    var inv: [32]f32 = undefined;
    inverseFrequencies(test_config, &inv);
    try std.testing.expectEqual(@as(f32, 1.0), inv[0]);
    for (inv[1..], inv[0 .. inv.len - 1]) |next, previous| {
        try std.testing.expectApproxEqRel(@as(f32, 0.66362), next / previous, 1e-4);
    }
}

test "llama3 scaling keeps high frequencies and divides low ones" {
    var config = test_config;
    config.rope_scaling = .{ .llama3 = .{ .factor = 8, .low_freq_factor = 1, .high_freq_factor = 4, .original_max_position_embeddings = 8192 } };
    var d: [32]f32 = undefined;
    divisors(config, &d);
    try std.testing.expectEqual(@as(f32, 1.0), d[0]);
    try std.testing.expectApproxEqRel(@as(f32, 8.0), d[31], 1e-6);
    for (d[1..], d[0 .. d.len - 1]) |next, previous| try std.testing.expect(next >= previous);
}

test "linear scaling divides every frequency" {
    var config = test_config;
    config.rope_scaling = .{ .linear = .{ .factor = 4 } };
    var d: [32]f32 = undefined;
    divisors(config, &d);
    for (d) |value| try std.testing.expectApproxEqRel(@as(f32, 4.0), value, 1e-6);
}

test "YaRN's frequencies are those of gpt-oss, exact and with ggml's rounded ramp" {
    var config = test_config;
    config.rope_theta = 150_000;
    config.rope_scaling = .{ .yarn = .{ .factor = 32, .original_max_position_embeddings = 4096, .truncate = false } };
    var inv: [32]f32 = undefined;
    inverseFrequencies(config, &inv);
    const places = [_]usize{ 8, 9, 12, 17 };
    for (places, [_]f32{ 0.0508132748, 0.0317056962, 0.00679495949, 0.000129318701 }) |k, want|
        try std.testing.expectApproxEqRel(want, inv[k], 3e-6);
    config.rope_scaling.yarn.truncate = true;
    inverseFrequencies(config, &inv);
    for (places, [_]f32{ 0.0508132748, 0.0316207523, 0.00701571391, 0.000227947796 }) |k, want|
        try std.testing.expectApproxEqRel(want, inv[k], 3e-6);
    try std.testing.expectApproxEqAbs(1.34657359, magnitude(config), 1e-8);
}
