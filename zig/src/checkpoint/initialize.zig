//! Random initialisation of a whole model: normal matrices and embeddings, ones for norms, zeros for biases.
//!
//! Each parameter draws from its own stream, made from the seed and its name. So a parameter's values do not depend on
//! order, on other parameters, or on how many there are, and f64 weights are the f32 ones before rounding.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const LoadedModel = @import("model_file.zig").LoadedModel;
const Allocator = std.mem.Allocator;

pub const Error = error{ OutOfMemory, ModelTooLarge, InvalidModelConfig };

/// Caller calls `deinit(gpa)`. The same seed gives the same bits on every machine and in every version that keeps `Prng`.
pub fn initRandom(comptime T: type, gpa: Allocator, config: arch.ModelConfig, seed: u64) Error!LoadedModel(T) {
    var message: [256]u8 = undefined;
    try config.validate(&message);
    var layout = try arch.Layout.init(gpa, config);
    errdefer layout.deinit();

    const weights = try gpa.alignedAlloc(T, .@"64", layout.total);
    for (layout.parameters) |p| {
        const values = p.slice(T, weights);
        if (p.role.isNorm()) {
            @memset(values, 1);
        } else if (p.role.isBias()) {
            @memset(values, 0);
        } else {
            var prng: base.Prng = .init(streamSeed(seed, p.name));
            for (values) |*v| v.* = @floatCast(prng.normal() * config.initializer_range);
        }
    }
    return .{ .config = config, .layout = layout, .weights = weights };
}

/// FNV-1a of the name, mixed with the seed so that near seeds are far apart.
pub fn streamSeed(seed: u64, name: []const u8) u64 {
    var hash: u64 = 0xcbf2_9ce4_8422_2325;
    for (name) |c| hash = (hash ^ c) *% 0x0000_0100_0000_01b3;
    var mixed = seed +% 0x9e37_79b9_7f4a_7c15;
    mixed = (mixed ^ (mixed >> 30)) *% 0xbf58_476d_1ce4_e5b9;
    mixed = (mixed ^ (mixed >> 27)) *% 0x94d0_49bb_1331_11eb;
    return hash ^ mixed ^ (mixed >> 31);
}

const testing = std.testing;

const small: arch.ModelConfig = .{
    .vocab_size = 96,
    .hidden_size = 32,
    .intermediate_size = 48,
    .num_hidden_layers = 2,
    .num_attention_heads = 4,
    .num_key_value_heads = 2,
    .head_dim = 8,
    .qkv_bias = true,
    .qk_norm = true,
};

test "parameters draw from their own streams, whatever stands around them" {
    var one = try initRandom(f32, testing.allocator, small, 7);
    defer one.deinit(testing.allocator);

    var deeper_config = small;
    deeper_config.num_hidden_layers = 3;
    deeper_config.tie_word_embeddings = false;
    deeper_config.qkv_bias = false;
    var deeper = try initRandom(f64, testing.allocator, deeper_config, 7);
    defer deeper.deinit(testing.allocator);

    const a = one.layout.get(1, .down_weight).?;
    const b = deeper.layout.get(1, .down_weight).?;
    try testing.expect(a.offset != b.offset);
    for (a.sliceConst(f32, one.weights), b.sliceConst(f64, deeper.weights)) |x, y|
        try testing.expectEqual(x, @as(f32, @floatCast(y)));
    // ABI gave equal shapes equal weights; here no two matrices agree.
    const q = one.layout.get(0, .q_weight).?.sliceConst(f32, one.weights);
    const o = one.layout.get(0, .o_weight).?.sliceConst(f32, one.weights);
    const next = one.layout.get(1, .q_weight).?.sliceConst(f32, one.weights);
    try testing.expect(!std.mem.eql(f32, q, o) and !std.mem.eql(f32, q, next));
}

test "norms are one, biases zero, matrices have the asked deviation" {
    var model = try initRandom(f64, testing.allocator, small, 1);
    defer model.deinit(testing.allocator);

    for (model.layout.parameters) |p| {
        const values = p.sliceConst(f64, model.weights);
        if (p.role.isNorm()) {
            for (values) |v| try testing.expectEqual(1, v);
        } else if (p.role.isBias()) {
            for (values) |v| try testing.expectEqual(0, v);
        } else {
            var sum: f64 = 0;
            var squares: f64 = 0;
            for (values) |v| {
                sum += v;
                squares += v * v;
            }
            const n: f64 = @floatFromInt(values.len);
            // Six standard errors of the mean and of the deviation.
            try testing.expect(@abs(sum / n) < 6 * 0.02 / @sqrt(n));
            try testing.expect(@abs(@sqrt(squares / n) - 0.02) < 6 * 0.02 / @sqrt(2 * n));
        }
    }
}
