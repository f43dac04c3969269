//! Tests of the transformer: gradients against central differences, threads, micro-batches, packing, recomputation.

const std = @import("std");
const arch = @import("arch");
const ops = @import("ops");
const transformer_file = @import("transformer.zig");
const weights_file = @import("weights.zig");
const Transformer = transformer_file.Transformer;
const Batch = transformer_file.Batch;
const Loss = transformer_file.Loss;
const Target = arch.Target;

const base = @import("base");

/// A model, a batch and everything around them.
pub fn Rig(comptime T: type) type {
    return struct {
        gpa: std.mem.Allocator,
        pool: *base.Pool,
        exec: *ops.Exec,
        layout: *arch.Layout,
        model: Transformer(T),
        weights: []T,
        gradients: []T,
        ids: []u32,
        targets: []i32,
        batch: Batch,

        const Self = @This();

        pub fn init(gpa: std.mem.Allocator, config: arch.ModelConfig, threads: usize, rows: usize, time: usize) !Self {
            const pool = try base.Pool.init(gpa, threads);
            const exec = try gpa.create(ops.Exec);
            exec.* = try .init(gpa, pool);
            const layout = try gpa.create(arch.Layout);
            layout.* = try .init(gpa, config);
            const weights = try gpa.alloc(T, layout.total);
            const gradients = try gpa.alloc(T, layout.total);
            var prng: base.Prng = .init(7);
            for (layout.parameters) |p| for (p.slice(T, weights)) |*w| {
                const centre: f64 = if (p.role.isNorm()) 1 else 0;
                w.* = @floatCast(centre + 0.2 * prng.normal());
            };
            @memset(gradients, 0);
            const ids = try gpa.alloc(u32, rows * time);
            const targets = try gpa.alloc(i32, rows * time);
            for (ids, targets, 0..) |*id, *target, i| {
                id.* = @intCast(prng.below(config.vocab_size));
                target.* = if (i % 5 == 3) -1 else @intCast(prng.below(config.vocab_size));
            }
            return .{
                .gpa = gpa,
                .pool = pool,
                .exec = exec,
                .layout = layout,
                .model = try .init(gpa, config, layout, exec, .{ .batch = rows, .time = time }),
                .weights = weights,
                .gradients = gradients,
                .ids = ids,
                .targets = targets,
                .batch = .{ .input_ids = ids, .targets = targets, .batch = rows, .time = time },
            };
        }

        /// With the routers' loss where the model asks for it.
        pub fn lossAndGradient(self: *Self, batch: Batch, scale: T, label_smoothing: T) Loss {
            return self.model.lossAndGradient(.dense(self.weights), .{ .base = self.gradients }, batch, .{
                .scale = scale,
                .label_smoothing = label_smoothing,
                .balance_scale = self.model.config.balanceCoefficient(),
            });
        }

        /// What `lossAndGradient` with scale 1 is the gradient of.
        pub fn whole(self: *Self, weights: weights_file.Weights(T), label_smoothing: T) f64 {
            const result = self.model.loss(weights, self.batch, .{ .label_smoothing = label_smoothing });
            return result.loss_sum + self.model.config.balanceCoefficient() * self.model.balance(self.batch);
        }

        pub fn deinit(self: *Self) void {
            self.model.deinit();
            self.layout.deinit();
            self.exec.deinit();
            self.pool.deinit();
            self.gpa.destroy(self.layout);
            self.gpa.destroy(self.exec);
            self.gpa.free(self.weights);
            self.gpa.free(self.gradients);
            self.gpa.free(self.ids);
            self.gpa.free(self.targets);
        }
    };
}

const test_config: arch.ModelConfig = .{
    .vocab_size = 19,
    .hidden_size = 12,
    .intermediate_size = 20,
    .num_hidden_layers = 2,
    .num_attention_heads = 4,
    .num_key_value_heads = 2,
    .head_dim = 6,
    .qkv_bias = true,
    .attention_output_bias = true,
    .mlp_bias = true,
    .qk_norm = true,
    .tie_word_embeddings = false,
};

/// Every parameter's gradient against central differences of the f64 loss, a few elements of each.
pub fn expectGradientsRight(config: arch.ModelConfig, smoothing: f64) !void {
    const gpa = std.testing.allocator;
    var rig: Rig(f64) = try .init(gpa, config, 2, 2, 7);
    defer rig.deinit();

    if (config.balances()) rig.batch.lengths = &.{ 7, 4 };
    _ = rig.lossAndGradient(rig.batch, 1, smoothing);
    var prng: base.Prng = .init(11);
    for (rig.layout.parameters) |p| for (0..3) |_| {
        const at = p.offset + @as(usize, @intCast(prng.below(p.len)));
        const original = rig.weights[at];
        const h = 1e-5;
        rig.weights[at] = original + h;
        const above = rig.whole(.dense(rig.weights), smoothing);
        rig.weights[at] = original - h;
        const below = rig.whole(.dense(rig.weights), smoothing);
        rig.weights[at] = original;
        const numeric = (above - below) / (2 * h);
        const analytic = rig.gradients[at];
        const difference = @abs(numeric - analytic);
        if (difference > 1e-6 * @max(@abs(numeric), @abs(analytic)) + 1e-7) {
            std.debug.print("{s}: analytic {d}, numeric {d}\n", .{ p.name, analytic, numeric });
            return error.WrongGradient;
        }
    };
}

test "the gradient of every parameter equals central differences, with all options on" {
    try expectGradientsRight(test_config, 0.1);
}

test "the gradient is right for a tied model without extras" {
    var config = test_config;
    config.qkv_bias = false;
    config.attention_output_bias = false;
    config.mlp_bias = false;
    config.qk_norm = false;
    config.tie_word_embeddings = true;
    try expectGradientsRight(config, 0);
}

test "the gradient is right behind a sliding window" {
    var config = test_config;
    config.sliding_window = 3;
    try expectGradientsRight(config, 0);
}

test "recomputing activations gives the same bits, also where the head works in the layers' buffers" {
    const gpa = std.testing.allocator;
    for ([_]u32{ test_config.num_hidden_layers, 17 }) |layers| {
        var config = test_config;
        config.num_hidden_layers = layers;
        var kept: Rig(f32) = try .init(gpa, config, 2, 2, 7);
        defer kept.deinit();
        var again: Rig(f32) = try .init(gpa, config, 2, 2, 7);
        defer again.deinit();

        again.model.deinit();
        again.model = try .init(gpa, config, again.layout, again.exec, .{ .batch = 2, .time = 7, .recompute = true });
        try std.testing.expectEqual(again.model.activations.idle.ptr, again.exec.shared.ptr);
        const a = kept.lossAndGradient(kept.batch, 0.1, 0);
        const b = again.lossAndGradient(again.batch, 0.1, 0);
        try std.testing.expectEqual(a, b);
        try std.testing.expectEqualSlices(f32, kept.gradients, again.gradients);
    }
}

test "gates kept as bf16 give the same bits recomputed or not, and the gradient of full precision within their rounding" {
    const gpa = std.testing.allocator;
    var full: Rig(f32) = try .init(gpa, test_config, 1, 2, 7);
    defer full.deinit();

    const exact = full.lossAndGradient(full.batch, 0.1, 0);
    var first: ?[]f32 = null;
    defer if (first) |bits| gpa.free(bits);

    for ([_]bool{ false, true, false }, [_]usize{ 1, 2, 3 }) |recompute, threads| {
        var low: Rig(f32) = try .init(gpa, test_config, threads, 2, 7);
        defer low.deinit();

        low.model.deinit();
        low.model = try .init(gpa, test_config, low.layout, low.exec, .{ .batch = 2, .time = 7, .recompute = recompute, .low_gates = true });
        const got = low.lossAndGradient(low.batch, 0.1, 0);
        if (first) |bits| try std.testing.expectEqualSlices(f32, bits, low.gradients) else first = try gpa.dupe(f32, low.gradients);
        try std.testing.expectApproxEqRel(exact.loss_sum, got.loss_sum, 1e-3);
        try std.testing.expect(exact.loss_sum != got.loss_sum);
        var difference: f64 = 0;
        var length: f64 = 0;
        for (full.gradients, low.gradients) |want, have| {
            difference += (@as(f64, want) - have) * (@as(f64, want) - have);
            length += @as(f64, want) * want;
        }
        try std.testing.expect(difference < length * 1e-4); // a hundredth of its length
    }
}

test "micro-batches add up to the gradient of the whole batch" {
    const gpa = std.testing.allocator;
    var whole: Rig(f64) = try .init(gpa, test_config, 1, 2, 7);
    defer whole.deinit();
    var parts: Rig(f64) = try .init(gpa, test_config, 1, 2, 7);
    defer parts.deinit();

    _ = whole.lossAndGradient(whole.batch, 0.5, 0);
    for (0..2) |row| {
        _ = parts.lossAndGradient(.{
            .input_ids = parts.ids[row * 7 ..][0..7],
            .targets = parts.targets[row * 7 ..][0..7],
            .batch = 1,
            .time = 7,
        }, 0.5, 0);
    }
    for (whole.gradients, parts.gradients) |a, b| try std.testing.expectApproxEqAbs(a, b, 1e-12);
}

test "1, 2, 3 and 7 threads give the same bits" {
    const gpa = std.testing.allocator;
    var reference: Rig(f32) = try .init(gpa, test_config, 1, 3, 9);
    defer reference.deinit();

    const expected = reference.lossAndGradient(reference.batch, 0.1, 0);
    for ([_]usize{ 2, 3, 7 }) |threads| {
        var rig: Rig(f32) = try .init(gpa, test_config, threads, 3, 9);
        defer rig.deinit();

        const got = rig.lossAndGradient(rig.batch, 0.1, 0);
        try std.testing.expectEqual(expected, got);
        try std.testing.expectEqualSlices(f32, reference.gradients, rig.gradients);
    }
}

test "a packed row equals its documents alone" {
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

// ---- adapters ----

/// An adapter on a rig's model, with its values and gradients.
pub fn Tuned(comptime T: type) type {
    return struct {
        rig: Rig(T),
        layout: *arch.AdapterLayout,
        values: []T,
        gradients: []T,
        dropout: weights_file.Dropout,

        const Self = @This();

        pub const Options = struct { threads: usize = 2, recompute: bool = false, dropout: f64 = 0 };

        pub fn init(config: arch.ModelConfig, specs: []const arch.ModuleSpec, options: Options) !Self {
            const gpa = std.testing.allocator;
            var rig: Rig(T) = try .init(gpa, config, options.threads, 2, 7);
            rig.model.deinit();
            const layout = try gpa.create(arch.AdapterLayout);
            layout.* = try .init(gpa, rig.layout, specs);
            rig.model = try .init(gpa, config, rig.layout, rig.exec, .{ .batch = 2, .time = 7, .recompute = options.recompute, .adapter = layout, .dropout = options.dropout > 0, .frozen = T == f32 });
            const values = try gpa.alloc(T, layout.total);
            const gradients = try gpa.alloc(T, layout.total);
            var prng: base.Prng = .init(5);
            for (values) |*v| v.* = @floatCast(0.3 * prng.normal());
            @memset(gradients, 0);
            return .{ .rig = rig, .layout = layout, .values = values, .gradients = gradients, .dropout = .{ .probability = options.dropout, .key = 99 } };
        }

        pub fn deinit(self: *Self) void {
            const gpa = self.rig.gpa;
            self.rig.deinit();
            self.layout.deinit();
            gpa.destroy(self.layout);
            gpa.free(self.values);
            gpa.free(self.gradients);
        }

        pub fn weights(self: *const Self) weights_file.Weights(T) {
            return .{ .base = .{ .dense = self.rig.weights }, .adapter = .{ .layout = self.layout, .values = self.values, .dropout = self.dropout } };
        }

        pub fn step(self: *Self) Loss {
            return self.rig.model.lossAndGradient(self.weights(), .{ .adapter = self.gradients }, self.rig.batch, .{
                .label_smoothing = 0.1,
                .balance_scale = self.rig.model.config.balanceCoefficient(),
            });
        }
    };
}

const everywhere = blk: {
    var specs: [2 * Target.linear_in_layers.len + 2]arch.ModuleSpec = undefined;
    for (0..2) |l| for (Target.linear_in_layers, 0..) |target, i| {
        specs[l * Target.linear_in_layers.len + i] = .{ .target = target, .layer = l, .rank = 2 + (i + l) % 3, .alpha = 3, .rank_stabilized = l == 1 };
    };
    specs[specs.len - 2] = .{ .target = .lm_head, .layer = null, .rank = 3, .alpha = 6 };
    specs[specs.len - 1] = .{ .target = .embed_tokens, .layer = null, .rank = 4, .alpha = 6 };
    break :blk specs;
};

/// The adapter's gradient against central differences of the f64 loss.
pub fn expectAdapterGradientsRight(config: arch.ModelConfig, specs: []const arch.ModuleSpec, options: Tuned(f64).Options) !void {
    var tuned: Tuned(f64) = try .init(config, specs, options);
    defer tuned.deinit();

    if (config.balances()) tuned.rig.batch.lengths = &.{ 7, 4 };
    _ = tuned.step();
    var prng: base.Prng = .init(11);
    for (tuned.layout.parameters) |p| for (0..4) |_| {
        const at = p.offset + @as(usize, @intCast(prng.below(p.len)));
        const original = tuned.values[at];
        const h = 1e-5;
        tuned.values[at] = original + h;
        const above = tuned.rig.whole(tuned.weights(), 0.1);
        tuned.values[at] = original - h;
        const below = tuned.rig.whole(tuned.weights(), 0.1);
        tuned.values[at] = original;
        const numeric = (above - below) / (2 * h);
        const analytic = tuned.gradients[at];
        if (@abs(numeric - analytic) > 1e-6 * @max(@abs(numeric), @abs(analytic)) + 1e-7) {
            std.debug.print("{s}: analytic {d}, numeric {d}\n", .{ p.name, analytic, numeric });
            return error.WrongGradient;
        }
    };
}

test "the gradient of an adapter on every module equals central differences" {
    try expectAdapterGradientsRight(test_config, &everywhere, .{});
}

test "the gradient of an adapter is right under dropout, recomputed, and for a tied model" {
    var config = test_config;
    config.tie_word_embeddings = true;
    try expectAdapterGradientsRight(config, &everywhere, .{ .dropout = 0.3, .recompute = true });
}

test "the gradient is right for adapters that stop the backward pass early" {
    const upper = [_]arch.ModuleSpec{.{ .target = .o_proj, .layer = 1, .rank = 2, .alpha = 3 }};
    try expectAdapterGradientsRight(test_config, &upper, .{});
    const query = [_]arch.ModuleSpec{.{ .target = .q_proj, .layer = 0, .rank = 2, .alpha = 3 }};
    try expectAdapterGradientsRight(test_config, &query, .{});
    const mlp = [_]arch.ModuleSpec{ .{ .target = .down_proj, .layer = 1, .rank = 2, .alpha = 3 }, .{ .target = .up_proj, .layer = 0, .rank = 1, .alpha = 3 } };
    try expectAdapterGradientsRight(test_config, &mlp, .{});
    const head = [_]arch.ModuleSpec{.{ .target = .lm_head, .layer = null, .rank = 2, .alpha = 3 }};
    try expectAdapterGradientsRight(test_config, &head, .{ .dropout = 0.2 });
}

test "an adapter computes what the merged weights compute, and with B = 0 what the base computes" {
    var tuned: Tuned(f64) = try .init(test_config, &everywhere, .{});
    defer tuned.deinit();

    const bare = tuned.rig.model.loss(.dense(tuned.rig.weights), tuned.rig.batch, .{});
    const with = tuned.rig.model.loss(tuned.weights(), tuned.rig.batch, .{});
    try std.testing.expect(@abs(bare.loss_sum - with.loss_sum) > 1e-3);
    try std.testing.expectEqual(bare, tuned.rig.model.loss(tuned.weights().bare(), tuned.rig.batch, .{}));
    for (tuned.layout.modules) |m| {
        const weight = m.target.weightOf(tuned.rig.layout, m.layer).slice(f64, tuned.rig.weights);
        const a = m.a.sliceConst(f64, tuned.values);
        const b = m.b.sliceConst(f64, tuned.values);
        for (0..m.out) |o| for (0..m.in) |i| {
            var sum: f64 = 0;
            for (0..m.rank) |r| sum += b[o * m.rank + r] * a[r * m.in + i];
            // An embedding's matrix is stored [in, out].
            weight[if (m.target == .embed_tokens) i * m.out + o else o * m.in + i] += m.scale * sum;
        };
    }
    const merged = tuned.rig.model.loss(.dense(tuned.rig.weights), tuned.rig.batch, .{});
    try std.testing.expectApproxEqAbs(merged.loss_sum, with.loss_sum, 1e-10);
    for (tuned.layout.modules) |m| @memset(m.b.slice(f64, tuned.values), 0);
    try std.testing.expectApproxEqAbs(merged.loss_sum, tuned.rig.model.loss(tuned.weights(), tuned.rig.batch, .{}).loss_sum, 1e-10);
}

test "an adapter's loss and gradient have the same bits for any number of threads, recomputed or not" {
    var first: Tuned(f32) = try .init(test_config, &everywhere, .{ .threads = 1, .dropout = 0.25 });
    defer first.deinit();

    const expected = first.step();
    for ([_]usize{ 2, 3, 7 }) |threads| {
        var other: Tuned(f32) = try .init(test_config, &everywhere, .{ .threads = threads, .dropout = 0.25, .recompute = threads == 3 });
        defer other.deinit();

        try std.testing.expectEqual(expected, other.step());
        try std.testing.expectEqualSlices(f32, first.gradients, other.gradients);
    }
}

test "a frozen f32 base gives the bits of the dense one" {
    const gpa = std.testing.allocator;
    var tuned: Tuned(f32) = try .init(test_config, &everywhere, .{});
    defer tuned.deinit();

    const dense = tuned.step();
    const expected = try gpa.dupe(f32, tuned.gradients);
    defer gpa.free(expected);

    const matrices = try gpa.alloc(ops.frozen.Matrix, tuned.rig.layout.parameters.len);
    defer gpa.free(matrices);

    for (tuned.rig.layout.parameters, matrices) |p, *matrix| matrix.* = .{
        .dtype = .f32,
        .rows = p.shape[0],
        .columns = p.shape[1],
        .bytes = std.mem.sliceAsBytes(p.sliceConst(f32, tuned.rig.weights)),
    };
    @memset(tuned.gradients, 0);
    var frozen = tuned.weights();
    frozen.base = .{ .frozen = matrices };
    const result = tuned.rig.model.lossAndGradient(frozen, .{ .adapter = tuned.gradients }, tuned.rig.batch, .{ .label_smoothing = 0.1 });
    try std.testing.expectEqual(dense, result);
    try std.testing.expectEqualSlices(f32, expected, tuned.gradients);
}

test "rows weighed one by one add up to the gradient of the batch" {
    var tuned: Tuned(f64) = try .init(test_config, &everywhere, .{});
    defer tuned.deinit();

    const gpa = std.testing.allocator;
    _ = tuned.step();
    const expected = try gpa.dupe(f64, tuned.gradients);
    defer gpa.free(expected);

    @memset(tuned.gradients, 0);
    var nll: [14]f64 = undefined;
    for (0..2) |half| {
        var weights: [14]f64 = @splat(0);
        @memset(weights[half * 7 ..][0..7], 1);
        const loss = tuned.rig.model.loss(tuned.weights(), tuned.rig.batch, .{ .row_nll = &nll });
        var sum: f64 = 0;
        for (nll) |x| sum += x;
        try std.testing.expectApproxEqAbs(loss.nll_sum, sum, 1e-12);
        _ = tuned.rig.model.gradient(tuned.weights(), .{ .adapter = tuned.gradients }, tuned.rig.batch, .{ .row_scale = &weights, .label_smoothing = 0.1 });
    }
    for (expected, tuned.gradients) |x, y| try std.testing.expectApproxEqAbs(x, y, 1e-11);
}
