//! Tests of the preference objective on a tiny model: gradients against central differences, references, padding.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const ops = @import("ops");
const model_layer = @import("model");
const data = @import("data");
const preference = @import("preference.zig");
const DpoConfig = @import("preference_config.zig").DpoConfig;
const PreferenceObjective = @import("preference_objective.zig").PreferenceObjective;

const testing = std.testing;
const gpa = testing.allocator;

const model_config: arch.ModelConfig = .{
    .vocab_size = 19,
    .hidden_size = 12,
    .intermediate_size = 20,
    .num_hidden_layers = 2,
    .num_attention_heads = 4,
    .num_key_value_heads = 2,
    .head_dim = 6,
    .tie_word_embeddings = false,
};

const time = 6;

/// Two pairs, of different lengths: prompts of 2 and 3 tokens, answers of 4, 1 and 2, 3 tokens.
const micro: data.MicroBatch = .{
    .input_ids = &.{
        1, 2, 3, 4, 5,  6,
        7, 8, 9, 4, 11, 0,
        1, 2, 9, 0, 0,  0,
        7, 8, 9, 3, 2,  18,
    },
    .targets = &.{
        -1, 3,  4,  5,  6,  -1,
        -1, -1, 4,  11, -1, -1,
        -1, 9,  -1, -1, -1, -1,
        -1, -1, 3,  2,  18, -1,
    },
    .batch = 4,
    .time = time,
    .target_count = 10,
    .token_count = 20,
    .index = 0,
    .pairs = 2,
    .answers = &.{ 4, 2, 1, 3 },
    .units = &.{ 0, 1 },
};

/// A model with an adapter on some modules, and what a pass needs.
fn Rig(comptime T: type) type {
    return struct {
        pool: *base.Pool,
        exec: *ops.Exec,
        layout: *arch.Layout,
        adapter: *arch.AdapterLayout,
        weights: []T,
        values: []T,
        transformer: model_layer.Transformer(T),

        const Self = @This();

        fn init() !Self {
            return initOn(&.{
                .{ .target = .q_proj, .layer = 0, .rank = 2, .alpha = 4 },
                .{ .target = .down_proj, .layer = 0, .rank = 3, .alpha = 3 },
                .{ .target = .v_proj, .layer = 1, .rank = 2, .alpha = 4 },
            });
        }

        fn initOn(specs: []const arch.ModuleSpec) !Self {
            const pool = try base.Pool.init(gpa, 2);
            const exec = try gpa.create(ops.Exec);
            exec.* = try .init(gpa, pool);
            const layout = try gpa.create(arch.Layout);
            layout.* = try .init(gpa, model_config);
            const adapter = try gpa.create(arch.AdapterLayout);
            adapter.* = try .init(gpa, layout, specs);
            const weights = try gpa.alloc(T, layout.total);
            var prng: base.Prng = .init(7);
            for (layout.parameters) |p| for (p.slice(T, weights)) |*w| {
                const centre: f64 = if (p.role.isNorm()) 1 else 0;
                w.* = @floatCast(centre + 0.3 * prng.normal());
            };
            const values = try gpa.alloc(T, adapter.total);
            @memset(values, 0);
            for (adapter.modules) |module| for (module.a.slice(T, values)) |*v| {
                v.* = @floatCast(0.3 * prng.normal());
            };
            return .{
                .pool = pool,
                .exec = exec,
                .layout = layout,
                .adapter = adapter,
                .weights = weights,
                .values = values,
                .transformer = try .init(gpa, model_config, layout, exec, .{ .batch = 4, .time = time, .adapter = adapter }),
            };
        }

        fn deinit(self: *Self) void {
            self.transformer.deinit();
            self.adapter.deinit();
            self.layout.deinit();
            self.exec.deinit();
            self.pool.deinit();
            gpa.destroy(self.adapter);
            gpa.destroy(self.layout);
            gpa.destroy(self.exec);
            gpa.free(self.weights);
            gpa.free(self.values);
        }

        fn adapted(self: *const Self) model_layer.Weights(T) {
            return .{ .base = .{ .dense = self.weights }, .adapter = .{ .layout = self.adapter, .values = self.values } };
        }

        fn objective(self: *Self, dpo: DpoConfig, start: model_layer.Weights(T), adapter_given: bool) !PreferenceObjective(T) {
            var diag: base.Diagnostic = .{};
            return PreferenceObjective(T).init(gpa, testing.io, dpo, .{
                .start = start,
                .adapter_given = adapter_given,
                .config = model_config,
                .exec = self.exec,
                .capacity = .{ .batch = 4, .time = time },
            }, &diag);
        }

        fn shake(values: []T) void {
            var prng: base.Prng = .init(3);
            for (values) |*v| v.* += @floatCast(0.1 * prng.normal());
        }
    };
}

const mixed: DpoConfig = .{ .beta = 0.5, .label_smoothing = 0.1, .terms = &.{
    .{ .type = .sigmoid, .weight = 0.7 },
    .{ .type = .ipo, .weight = 0.05 },
    .{ .type = .robust, .weight = 0.3 },
    .{ .type = .sft, .weight = 0.2 },
    .{ .type = .sigmoid_norm, .weight = 1.1 },
    .{ .type = .apo_zero, .weight = 0.6 },
} };

test "a new adapter against itself switched off: the first loss is ln 2 to the bit, in both precisions" {
    inline for (.{ f32, f64 }) |T| {
        var rig: Rig(T) = try .init();
        defer rig.deinit();
        var objective = try rig.objective(.{}, rig.adapted(), false);
        defer objective.deinit();

        const outcome = objective.run(&rig.transformer, rig.adapted(), null, .training, micro, 1);
        try testing.expectEqual(@log(2.0), outcome.loss);
        try testing.expectEqual(0, outcome.metrics.rewards_margins);
        try testing.expectEqual(0, outcome.metrics.rewards_accuracies);
        try testing.expect(outcome.metrics.logps_chosen < 0);
        try testing.expectEqual(6, outcome.chosen_targets);
    }
}

test "a whole model against itself as it was: ln 2, and other numbers once it has moved" {
    var rig: Rig(f32) = try .init();
    defer rig.deinit();
    const live: model_layer.Weights(f32) = .dense(rig.weights);
    var objective = try rig.objective(.{}, live, false);
    defer objective.deinit();

    try testing.expectEqual(@log(2.0), objective.run(&rig.transformer, live, null, .training, micro, 1).loss);
    Rig(f32).shake(rig.weights);
    const later = objective.run(&rig.transformer, live, null, .training, micro, 1);
    try testing.expect(@abs(later.loss - @log(2.0)) > 1e-4);
    try testing.expect(later.metrics.rewards_margins != 0);
}

test "an adapter that was there before is compared with what it was, not with the base" {
    var rig: Rig(f32) = try .init();
    defer rig.deinit();
    Rig(f32).shake(rig.values);
    var as_it_was = try rig.objective(.{}, rig.adapted(), true);
    defer as_it_was.deinit();
    var off = try rig.objective(.{}, rig.adapted(), false);
    defer off.deinit();

    try testing.expectEqual(@log(2.0), as_it_was.run(&rig.transformer, rig.adapted(), null, .training, micro, 1).loss);
    try testing.expect(off.run(&rig.transformer, rig.adapted(), null, .training, micro, 1).loss != @log(2.0));
}

test "the gradient of every loss together equals central differences, for a whole model" {
    var rig: Rig(f64) = try .init();
    defer rig.deinit();
    const live: model_layer.Weights(f64) = .dense(rig.weights);
    var objective = try rig.objective(mixed, live, false);
    defer objective.deinit();

    Rig(f64).shake(rig.weights);
    const gradients = try gpa.alloc(f64, rig.layout.total);
    defer gpa.free(gradients);
    @memset(gradients, 0);
    _ = objective.run(&rig.transformer, live, .{ .base = gradients }, .training, micro, 0.5);
    try expectSlopes(&rig, &objective, live, rig.weights, gradients, 0.5, rig.layout.parameters);
}

test "the gradient of every loss together equals central differences, for an adapter, on the head too" {
    for ([_][]const arch.ModuleSpec{
        &.{ .{ .target = .q_proj, .layer = 0, .rank = 2, .alpha = 4 }, .{ .target = .v_proj, .layer = 1, .rank = 3, .alpha = 3 } },
        &.{ .{ .target = .embed_tokens, .layer = null, .rank = 2, .alpha = 4 }, .{ .target = .lm_head, .layer = null, .rank = 3, .alpha = 3 } },
    }) |specs| try expectAdapterSlopes(specs);
}

fn expectAdapterSlopes(specs: []const arch.ModuleSpec) !void {
    var rig: Rig(f64) = try .initOn(specs);
    defer rig.deinit();
    var objective = try rig.objective(mixed, rig.adapted(), false);
    defer objective.deinit();

    Rig(f64).shake(rig.values);
    const gradients = try gpa.alloc(f64, rig.adapter.total);
    defer gpa.free(gradients);
    @memset(gradients, 0);
    _ = objective.run(&rig.transformer, rig.adapted(), .{ .adapter = gradients }, .training, micro, 0.5);
    try expectSlopes(&rig, &objective, rig.adapted(), rig.values, gradients, 0.5, rig.adapter.parameters);
}

fn expectSlopes(
    rig: *Rig(f64),
    objective: *PreferenceObjective(f64),
    live: model_layer.Weights(f64),
    values: []f64,
    gradients: []const f64,
    share: f64,
    parameters: []const arch.Parameter,
) !void {
    var prng: base.Prng = .init(11);
    for (parameters) |p| for (0..3) |_| {
        const at = p.offset + @as(usize, @intCast(prng.below(p.len)));
        const original = values[at];
        const h = 1e-5;
        values[at] = original + h;
        const above = objective.run(&rig.transformer, live, null, .training, micro, 1).loss;
        values[at] = original - h;
        const below = objective.run(&rig.transformer, live, null, .training, micro, 1).loss;
        values[at] = original;
        const numeric = share * (above - below) / (2 * h);
        if (@abs(numeric - gradients[at]) > 1e-6 * @abs(numeric) + 1e-8) {
            std.debug.print("{s}: analytic {d}, numeric {d}\n", .{ p.name, gradients[at], numeric });
            return error.WrongGradient;
        }
    };
}

test "sums that are known take the reference's place" {
    var rig: Rig(f32) = try .init();
    defer rig.deinit();
    Rig(f32).shake(rig.values);
    var asked = try rig.objective(mixed, rig.adapted(), false);
    defer asked.deinit();
    var told = try rig.objective(mixed, rig.adapted(), false);
    defer told.deinit();

    var sums: [4]f64 = undefined;
    asked.askReference(&rig.transformer, rig.adapted(), .{ .input_ids = micro.input_ids, .targets = micro.targets, .batch = 4, .time = time }, &sums);
    told.known.set(.training, try gpa.dupe(f64, &.{ sums[1], sums[3], 0, 0, sums[0], sums[2] }));
    told.dropReference();
    var elsewhere = micro;
    elsewhere.units = &.{ 2, 0 };
    const a = asked.run(&rig.transformer, rig.adapted(), null, .training, micro, 1);
    const b = told.run(&rig.transformer, rig.adapted(), null, .training, elsewhere, 1);
    try testing.expectEqual(a, b);
}

test "each pair is asked about once, and what was said is what would be said again" {
    var rig: Rig(f32) = try .init();
    defer rig.deinit();
    Rig(f32).shake(rig.values);
    var asked = try rig.objective(mixed, rig.adapted(), false);
    defer asked.deinit();
    var remembers = try rig.objective(mixed, rig.adapted(), false);
    defer remembers.deinit();

    try remembers.remember(.training, 5);
    var other = micro;
    other.units = &.{ 4, 2 };
    const first = remembers.run(&rig.transformer, rig.adapted(), null, .training, other, 1);
    try testing.expectEqual(asked.run(&rig.transformer, rig.adapted(), null, .training, micro, 1), first);
    // Without its reference it still knows; pairs it never saw stay unknown.
    remembers.dropReference();
    try testing.expectEqual(first, remembers.run(&rig.transformer, rig.adapted(), null, .training, other, 1));
    other.units = &.{ 4, 3 };
    try testing.expect(std.math.isNan(remembers.run(&rig.transformer, rig.adapted(), null, .training, other, 1).loss));
}

/// How the weights of a model lie there.
const Form = enum { dense, low_precision, bf16, q8_0 };

test "a sequence's log-probability does not depend on its neighbours or on padding, to the bit" {
    const shape: arch.ModelConfig = .{
        .vocab_size = 311,
        .hidden_size = 96,
        .intermediate_size = 192,
        .num_hidden_layers = 2,
        .num_attention_heads = 6,
        .num_key_value_heads = 2,
        .head_dim = 16,
        .max_position_embeddings = 512,
    };
    const longest = 300;
    const lengths = [_]usize{ longest, 17, 129, 64, 65, 200, 3, 256, 31 };
    const Row = struct {
        /// Sequence `r`, padded to `ids.len`; the second half is the answer.
        fn fill(all: []const u32, r: usize, ids: []u32, targets: []i32) void {
            for (ids, targets, 0..) |*id, *target, t| {
                id.* = if (t < lengths[r]) all[r * longest + t] else 0;
                target.* = if (t + 1 < lengths[r] and 2 * t > lengths[r]) @intCast(all[r * longest + t + 1]) else -1;
            }
        }

        fn sum(nll: []const f64) f64 {
            var total: f64 = 0;
            for (nll) |x| total += x;
            return total;
        }
    };
    var arena: std.heap.ArenaAllocator = .init(gpa);
    defer arena.deinit();
    const pool = try base.Pool.init(gpa, 2);
    defer pool.deinit();
    var exec: ops.Exec = try .init(gpa, pool);
    defer exec.deinit();
    var layout: arch.Layout = try .init(gpa, shape);
    defer layout.deinit();
    var transformer: model_layer.Transformer(f32) = try .init(gpa, shape, &layout, &exec, .{ .batch = lengths.len, .time = longest, .frozen = true });
    defer transformer.deinit();

    const flat = try arena.allocator().alloc(f32, layout.total);
    var prng: base.Prng = .init(7);
    for (layout.parameters) |p| for (p.slice(f32, flat)) |*w| {
        w.* = @floatCast(@as(f64, if (p.role.isNorm()) 1 else 0) + 0.1 * prng.normal());
    };
    var all: [lengths.len * longest]u32 = undefined;
    for (&all) |*id| id.* = @intCast(prng.below(shape.vocab_size));
    var ids: [all.len]u32 = undefined;
    var targets: [all.len]i32 = undefined;
    var nll: [all.len]f64 = undefined;
    for (std.enums.values(Form)) |form| {
        exec.compute = if (form == .low_precision) .bf16 else .full;
        const weights: model_layer.Weights(f32) = switch (form) {
            .dense, .low_precision => .dense(flat),
            .bf16, .q8_0 => .{ .base = .{ .frozen = try stored(arena.allocator(), &layout, flat, form) } },
        };
        var alone: [lengths.len]f64 = undefined;
        for (lengths, &alone, 0..) |len, *sum, r| {
            Row.fill(&all, r, ids[0..len], targets[0..len]);
            _ = transformer.loss(weights, .{ .input_ids = ids[0..len], .targets = targets[0..len], .batch = 1, .time = len }, .{ .row_nll = nll[0..len] });
            sum.* = Row.sum(nll[0..len]);
        }
        for (0..lengths.len) |r| Row.fill(&all, r, ids[r * longest ..][0..longest], targets[r * longest ..][0..longest]);
        _ = transformer.loss(weights, .{ .input_ids = &ids, .targets = &targets, .batch = lengths.len, .time = longest }, .{ .row_nll = &nll });
        for (alone, 0..) |sum, r| try testing.expectEqual(sum, Row.sum(nll[r * longest ..][0..longest]));
    }
}

/// The weights as a file stores them: matrices as bf16 or q8_0, vectors as f32.
fn stored(arena: std.mem.Allocator, layout: *const arch.Layout, flat: []const f32, form: Form) ![]const ops.frozen.Matrix {
    const matrices = try arena.alloc(ops.frozen.Matrix, layout.parameters.len);
    for (matrices, layout.parameters) |*matrix, p| {
        const values = p.sliceConst(f32, flat);
        matrix.* = .{ .dtype = .f32, .rows = p.shape[0], .columns = if (p.rank == 2) p.shape[1] else 1, .bytes = std.mem.sliceAsBytes(values) };
        if (p.rank == 1) continue;
        if (form == .bf16) {
            const half = try arena.alloc(u16, values.len);
            for (half, values) |*to, from| to.* = @truncate(@as(u32, @bitCast(from)) >> 16);
            matrix.dtype = .bf16;
            matrix.bytes = std.mem.sliceAsBytes(half);
        } else {
            const bytes = try arena.alloc(u8, values.len / 32 * 34);
            for (0..values.len / 32) |block| {
                std.mem.writeInt(u16, bytes[block * 34 ..][0..2], @bitCast(@as(f16, 0.003)), .little);
                for (bytes[block * 34 + 2 ..][0..32], values[block * 32 ..][0..32]) |*to, from|
                    to.* = @bitCast(@as(i8, @intFromFloat(std.math.clamp(from / 0.003, -127, 127))));
            }
            matrix.dtype = .q8_0;
            matrix.bytes = bytes;
        }
    }
    return matrices;
}

test "padding changes nothing" {
    var rig: Rig(f64) = try .init();
    defer rig.deinit();
    Rig(f64).shake(rig.values);
    var objective = try rig.objective(mixed, rig.adapted(), false);
    defer objective.deinit();

    const whole = objective.run(&rig.transformer, rig.adapted(), null, .training, micro, 1);
    var padded = micro;
    var ids = micro.input_ids[0..24].*;
    for ([_]usize{ 11, 15, 16, 17 }) |at| ids[at] = 18;
    padded.input_ids = &ids;
    const again = objective.run(&rig.transformer, rig.adapted(), null, .training, padded, 1);
    try testing.expectApproxEqAbs(whole.loss, again.loss, 1e-12);
    try testing.expectApproxEqAbs(whole.metrics.logits_chosen, again.metrics.logits_chosen, 1e-12);
}

test "running out of memory anywhere leaks nothing" {
    var rig: Rig(f32) = try .init();
    defer rig.deinit();
    try testing.checkAllAllocationFailures(gpa, struct {
        fn run(allocator: std.mem.Allocator, r: *Rig(f32)) !void {
            var diag: base.Diagnostic = .{};
            var objective = try PreferenceObjective(f32).init(allocator, testing.io, .{}, .{
                .start = r.adapted(),
                .adapter_given = true,
                .config = model_config,
                .exec = r.exec,
                .capacity = .{ .batch = 4, .time = time },
            }, &diag);
            objective.deinit();
        }
    }.run, .{&rig});
}
