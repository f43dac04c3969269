//! Tests of the transformer with experts: gradients against central differences, threads, recomputation, packing, adapters.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const transformer_test = @import("transformer_test.zig");
const Rig = transformer_test.Rig;
const Tuned = transformer_test.Tuned;

const test_config: arch.ModelConfig = .{
    .model_type = .gpt_oss,
    .vocab_size = 19,
    .hidden_size = 12,
    .intermediate_size = 10,
    .num_hidden_layers = 2,
    .num_attention_heads = 4,
    .num_key_value_heads = 2,
    .head_dim = 6,
    .qkv_bias = true,
    .attention_output_bias = true,
    .tie_word_embeddings = false,
    .sliding_window = 3,
    .windowed_layers = .even,
    .attention_sinks = true,
    .num_local_experts = 5,
    .num_experts_per_tok = 2,
    .swiglu_limit = 0.6, // Many numbers of a small model lie beyond it.
    .rope_scaling = .{ .yarn = .{ .factor = 4, .original_max_position_embeddings = 8, .truncate = false } },
};

/// Asks for its routers' loss, which is then much of the whole.
const balanced_config = blk: {
    var config = test_config;
    config.output_router_logits = true;
    config.router_aux_loss_coef = 9;
    break :blk config;
};

const everywhere = blk: {
    var specs: [2 * 6]arch.ModuleSpec = undefined;
    for (0..2) |l| for ([_]arch.Target{ .q_proj, .k_proj, .v_proj, .o_proj, .experts_gate_up, .experts_down }, 0..) |target, i| {
        specs[l * 6 + i] = .{ .target = target, .layer = l, .rank = 2 + (i + l) % 3, .alpha = 3, .rank_stabilized = l == 1 };
    };
    break :blk specs;
};

test "the gradient of every parameter of a mixture equals central differences" {
    try transformer_test.expectGradientsRight(test_config, 0.1);
    var config = test_config;
    config.num_experts_per_tok = 4;
    config.swiglu_limit = 0;
    config.num_hidden_layers = 3;
    try transformer_test.expectGradientsRight(config, 0);
}

test "the gradient of an adapter on attention and experts equals central differences" {
    try transformer_test.expectAdapterGradientsRight(test_config, &everywhere, .{});
    const down = [_]arch.ModuleSpec{.{ .target = .experts_down, .layer = 1, .rank = 2, .alpha = 3 }};
    try transformer_test.expectAdapterGradientsRight(test_config, &down, .{ .recompute = true });
    const attention = [_]arch.ModuleSpec{.{ .target = .q_proj, .layer = 0, .rank = 2, .alpha = 3 }};
    try transformer_test.expectAdapterGradientsRight(test_config, &attention, .{ .recompute = true });
}

test "the gradient with the routers' loss equals central differences, of all weights and of adapters, recomputed or not" {
    try transformer_test.expectGradientsRight(balanced_config, 0.1);
    try transformer_test.expectAdapterGradientsRight(balanced_config, &everywhere, .{});
    try transformer_test.expectAdapterGradientsRight(balanced_config, &everywhere, .{ .recompute = true });
    const down = [_]arch.ModuleSpec{.{ .target = .experts_down, .layer = 0, .rank = 2, .alpha = 3 }};
    try transformer_test.expectAdapterGradientsRight(balanced_config, &down, .{});
}

test "padding has no part in the routers' loss" {
    const gpa = std.testing.allocator;
    var padded: Rig(f64) = try .init(gpa, balanced_config, 2, 1, 6);
    defer padded.deinit();
    var alone: Rig(f64) = try .init(gpa, balanced_config, 2, 1, 4);
    defer alone.deinit();

    @memcpy(padded.ids[0..4], alone.ids);
    @memcpy(padded.targets[0..4], alone.targets);
    @memset(padded.targets[4..], -1);
    padded.batch.lengths = &.{4};
    try std.testing.expectApproxEqAbs(alone.whole(.dense(alone.weights), 0), padded.whole(.dense(padded.weights), 0), 1e-12);
    try std.testing.expect(alone.model.balance(alone.batch) > 1);
    _ = alone.lossAndGradient(alone.batch, 1, 0);
    _ = padded.lossAndGradient(padded.batch, 1, 0);
    for (alone.gradients, padded.gradients) |x, y| try std.testing.expectApproxEqAbs(x, y, 1e-12);
    padded.batch.lengths = null;
    _ = padded.whole(.dense(padded.weights), 0);
    try std.testing.expect(@abs(padded.model.balance(padded.batch) - alone.model.balance(alone.batch)) > 1e-3);
}

test "a mixture has the same bits for any number of threads, recomputed or not, also where the head works in the layers' buffers" {
    const gpa = std.testing.allocator;
    for ([_]u32{ 2, 17 }) |layers| {
        var config = balanced_config;
        config.num_hidden_layers = layers;
        var reference: Rig(f32) = try .init(gpa, config, 1, 3, 9);
        defer reference.deinit();

        const expected = reference.lossAndGradient(reference.batch, 0.1, 0);
        for ([_]usize{ 2, 3, 7 }) |threads| {
            var rig: Rig(f32) = try .init(gpa, config, threads, 3, 9);
            defer rig.deinit();

            rig.model.deinit();
            rig.model = try .init(gpa, config, rig.layout, rig.exec, .{ .batch = 3, .time = 9, .recompute = threads == 3 });
            try std.testing.expectEqual(expected, rig.lossAndGradient(rig.batch, 0.1, 0));
            try std.testing.expectEqual(reference.model.balance(reference.batch), rig.model.balance(rig.batch));
            try std.testing.expectEqualSlices(f32, reference.gradients, rig.gradients);
        }
    }
}

test "experts nobody chose get no gradient, and those chosen do" {
    var config = test_config;
    config.num_local_experts = 8;
    var rig: Rig(f64) = try .init(std.testing.allocator, config, 2, 1, 2);
    defer rig.deinit();

    const bias = rig.layout.get(0, .router_bias).?.slice(f64, rig.weights);
    for (bias, 0..) |*b, e| b.* = if (e == 2 or e == 5) 100 else 0;
    _ = rig.lossAndGradient(.{ .input_ids = rig.ids[0..2], .targets = &.{ 1, 2 }, .batch = 1, .time = 2 }, 1, 0);
    inline for (.{ .experts_gate_up, .experts_gate_up_bias, .experts_down, .experts_down_bias }) |role| {
        const gradient = rig.layout.get(0, role).?.slice(f64, rig.gradients);
        const size = gradient.len / 8;
        for (0..8) |e| {
            var any = false;
            for (gradient[e * size ..][0..size]) |g| any = any or g != 0;
            try std.testing.expectEqual(e == 2 or e == 5, any);
        }
    }
}

test "a packed row of a mixture equals its documents alone" {
    const gpa = std.testing.allocator;
    var alone: Rig(f64) = try .init(gpa, test_config, 1, 2, 5);
    defer alone.deinit();
    var joined: Rig(f64) = try .init(gpa, test_config, 1, 1, 10);
    defer joined.deinit();

    @memcpy(joined.ids, alone.ids);
    @memcpy(joined.targets, alone.targets);
    joined.batch.positions = &.{ 0, 1, 2, 3, 4, 0, 1, 2, 3, 4 };
    joined.batch.first = &.{ 0, 0, 0, 0, 0, 5, 5, 5, 5, 5 };
    const a = alone.lossAndGradient(alone.batch, 1, 0);
    const b = joined.lossAndGradient(joined.batch, 1, 0);
    try std.testing.expectApproxEqAbs(a.loss_sum, b.loss_sum, 1e-10);
    for (alone.gradients, joined.gradients) |x, y| try std.testing.expectApproxEqAbs(x, y, 1e-10);
}

test "products in bf16 stay near the gradient of full precision" {
    const gpa = std.testing.allocator;
    var full: Rig(f32) = try .init(gpa, test_config, 1, 2, 7);
    defer full.deinit();
    var low: Rig(f32) = try .init(gpa, test_config, 2, 2, 7);
    defer low.deinit();

    low.exec.compute = .bf16;
    const exact = full.lossAndGradient(full.batch, 0.1, 0);
    const got = low.lossAndGradient(low.batch, 0.1, 0);
    try std.testing.expectEqual(.bf16, low.exec.compute);
    try std.testing.expect(exact.loss_sum != got.loss_sum);
    try std.testing.expectApproxEqRel(exact.loss_sum, got.loss_sum, 1e-2);
}

test "an adapter on experts computes what the merged weights compute" {
    var tuned: Tuned(f64) = try .init(test_config, &everywhere, .{});
    defer tuned.deinit();

    const bare = tuned.rig.model.loss(.dense(tuned.rig.weights), tuned.rig.batch, .{});
    const with = tuned.rig.model.loss(tuned.weights(), tuned.rig.batch, .{});
    try std.testing.expect(@abs(bare.loss_sum - with.loss_sum) > 1e-3);
    for (tuned.layout.modules) |m| {
        const weight = m.target.weightOf(tuned.rig.layout, m.layer).slice(f64, tuned.rig.weights);
        const a = m.a.sliceConst(f64, tuned.values);
        const b = m.b.sliceConst(f64, tuned.values);
        for (0..m.experts) |e| for (0..m.out) |o| for (0..m.in) |i| {
            var sum: f64 = 0;
            for (0..m.rank) |r| sum += b[(o * m.rank + r) * m.experts + e] * a[(e * m.rank + r) * m.in + i];
            weight[if (m.target.isExperts()) (e * m.in + i) * m.out + o else o * m.in + i] += m.scale * sum;
        };
    }
    const merged = tuned.rig.model.loss(.dense(tuned.rig.weights), tuned.rig.batch, .{});
    try std.testing.expectApproxEqAbs(merged.loss_sum, with.loss_sum, 1e-10);
}
