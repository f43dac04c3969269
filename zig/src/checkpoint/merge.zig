//! An adapter added into a model's weights, and taken out of them again.
//!
//! Both ways each weight is summed in f64 and rounded once. So a weight that went both ways is the base's to within half a unit
//! in the last place of the merged weight and half a unit of its own: nothing is lost that the merged file still held.
//! Does not know: files.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const adapter_file = @import("adapter.zig");
const mapped_model = @import("mapped_model.zig");
const model_file = @import("model_file.zig");
const Allocator = std.mem.Allocator;
const Diagnostic = base.Diagnostic;
const LoadedAdapter = adapter_file.LoadedAdapter;
const LoadedModel = model_file.LoadedModel;

/// Adds the adapter to the weights: W + s·B·A, summed in f64 and rounded once. A tied model whose embedding or head has an
/// adapter gets a head of its own: its layout and weights are replaced.
pub fn mergeInto(comptime T: type, gpa: Allocator, model: *LoadedModel(T), adapter: *const LoadedAdapter(T)) error{ OutOfMemory, ModelTooLarge }!void {
    if (changesOuter(&adapter.layout) and model.config.tie_word_embeddings) try untie(T, gpa, model);
    _ = try addAll(T, gpa, model, adapter, 1);
}

/// Takes the adapter out of weights it was added to: W − s·B·A. Returns the largest distance a weight may now have from the base's.
/// A tied model cannot be what merging an adapter on embedding or head gave, and is refused.
pub fn takeOut(comptime T: type, gpa: Allocator, model: *LoadedModel(T), adapter: *const LoadedAdapter(T), diag: *Diagnostic) error{ OutOfMemory, InvalidAdapter }!f64 {
    if (changesOuter(&adapter.layout) and model.config.tie_word_embeddings) {
        diag.set("the adapter changes the embedding or the head, but the model has one matrix for both: it is not what merging this " ++
            "adapter gave. Give the merged model", .{});
        return error.InvalidAdapter;
    }
    return addAll(T, gpa, model, adapter, -1);
}

/// Refuses a model whose file no longer holds the merged numbers: what a coarser type rounded away does not come back.
pub fn checkStoredWhole(model: *const mapped_model.MappedModel, path: []const u8, diag: *Diagnostic) error{InvalidAdapter}!void {
    for (model.layout.parameters, model.matrices) |p, matrix| {
        if (p.rank == 1 or matrix.dtype == .f32 or matrix.dtype == .f64) continue;
        diag.set("{s} stores \"{s}\" as {s}: the adapter cannot be taken out of weights that were rounded to it. Use the base the " ++
            "adapter was made for, or the folder that merging wrote", .{ path, p.name, matrix.dtype.label() });
        return error.InvalidAdapter;
    }
}

fn changesOuter(layout: *const arch.AdapterLayout) bool {
    return layout.get(null, .embed_tokens) != null or layout.get(null, .lm_head) != null;
}

/// W + sign·s·B·A for all modules; the largest half unit in the last place of what was there and of what is there now, added up.
fn addAll(comptime T: type, gpa: Allocator, model: *LoadedModel(T), adapter: *const LoadedAdapter(T), sign: f64) error{OutOfMemory}!f64 {
    var widest: usize = 0;
    for (adapter.layout.modules) |m| widest = @max(widest, if (m.target == .embed_tokens or m.target.isExperts()) m.out else m.in);
    const row = try gpa.alloc(f64, widest);
    defer gpa.free(row);

    var distance: f64 = 0;
    for (adapter.layout.modules) |m| {
        const weight = m.target.weightOf(&model.layout, m.layer).slice(T, model.weights);
        const a = m.a.sliceConst(T, adapter.values);
        const b = m.b.sliceConst(T, adapter.values);
        const scale = sign * m.scale;
        if (m.target == .embed_tokens or m.target.isExperts()) {
            // Stored [in, out]: row i gets B · A[:, i]. An embedding is one such matrix, experts are several.
            for (0..m.experts) |e| for (0..m.in) |i| {
                const sum = row[0..m.out];
                for (sum, 0..) |*s, o| {
                    s.* = 0;
                    for (0..m.rank) |r| s.* += @as(f64, b[(o * m.rank + r) * m.experts + e]) * a[(e * m.rank + r) * m.in + i];
                }
                distance = @max(distance, addRow(T, weight[(e * m.in + i) * m.out ..][0..m.out], sum, scale));
            };
            continue;
        }
        for (0..m.out) |o| {
            const sum = row[0..m.in];
            @memset(sum, 0);
            for (0..m.rank) |r| {
                addScaled(T, sum, b[o * m.rank + r], a[r * m.in ..][0..m.in]);
            }
            distance = @max(distance, addRow(T, weight[o * m.in ..][0..m.in], sum, scale));
        }
    }
    return distance;
}

/// sum += factor · x
fn addScaled(comptime T: type, sum: []f64, factor: f64, x: []const T) void {
    const lanes = 8;
    const V = @Vector(lanes, f64);
    var i: usize = 0;
    while (i + lanes <= x.len) : (i += lanes) {
        const narrow: @Vector(lanes, T) = x[i..][0..lanes].*;
        const wide: V = @floatCast(narrow);
        const before: V = sum[i..][0..lanes].*;
        sum[i..][0..lanes].* = before + @as(V, @splat(factor)) * wide;
    }
    while (i < x.len) : (i += 1) sum[i] += factor * x[i];
}

fn addRow(comptime T: type, weight: []T, delta: []const f64, scale: f64) f64 {
    var largest: T = 0;
    for (weight, delta) |*w, d| {
        const before = w.*;
        w.* = @floatCast(@as(f64, before) + scale * d);
        largest = @max(largest, @max(@abs(before), @abs(w.*)));
    }
    return unit(T, largest);
}

/// The distance from `x` to the next number above it.
fn unit(comptime T: type, x: T) f64 {
    return if (std.math.isFinite(x)) std.math.nextAfter(T, x, std.math.inf(T)) - x else std.math.inf(f64);
}

fn untie(comptime T: type, gpa: Allocator, model: *LoadedModel(T)) error{ OutOfMemory, ModelTooLarge }!void {
    var config = model.config;
    config.tie_word_embeddings = false;
    var layout = try arch.Layout.init(gpa, config);
    errdefer layout.deinit();

    const weights = try gpa.alignedAlloc(T, .@"64", layout.total);
    for (layout.parameters) |p| {
        const from = if (p.role == .output) model.layout.head() else model.layout.get(p.layer, p.role).?;
        @memcpy(p.slice(T, weights), from.sliceConst(T, model.weights));
    }
    gpa.free(model.weights);
    model.layout.deinit();
    model.* = .{ .config = config, .layout = layout, .weights = weights };
}

const testing = std.testing;
const initRandom = @import("initialize.zig").initRandom;

const test_config: arch.ModelConfig = .{
    .vocab_size = 11,
    .hidden_size = 8,
    .intermediate_size = 12,
    .num_hidden_layers = 2,
    .num_attention_heads = 2,
    .num_key_value_heads = 1,
    .head_dim = 4,
    .tie_word_embeddings = true,
};

fn testAdapter(comptime T: type, model: *const LoadedModel(T), targets: []const []const u8, diag: *Diagnostic) !LoadedAdapter(T) {
    const adapter = try adapter_file.initAdapter(T, testing.allocator, &model.layout, .{ .r = 3, .lora_alpha = 7, .target_modules = targets }, 5, diag);
    var prng: base.Prng = .init(9);
    for (adapter.values) |*v| v.* = @floatCast(prng.normal());
    return adapter;
}

test "what was added is taken out again, to within the rounding that is told" {
    inline for (.{ f32, f64 }) |T| {
        var diag: Diagnostic = .{};
        var before = try initRandom(T, testing.allocator, test_config, 3);
        defer before.deinit(testing.allocator);
        var model = try initRandom(T, testing.allocator, test_config, 3);
        defer model.deinit(testing.allocator);
        var adapter = try testAdapter(T, &model, &.{ "q_proj", "down_proj" }, &diag);
        defer adapter.deinit(testing.allocator);

        try mergeInto(T, testing.allocator, &model, &adapter);
        try testing.expect(!std.mem.eql(T, before.weights, model.weights));
        const distance = try takeOut(T, testing.allocator, &model, &adapter, &diag);
        try testing.expect(distance > 0 and distance < 64 * std.math.floatEps(T));
        var largest: f64 = 0;
        for (before.weights, model.weights) |x, y| largest = @max(largest, @abs(@as(f64, x) - y));
        try testing.expect(largest <= distance);
        try testing.expect(largest > 0); // One rounding happened, and is not hidden.
    }
}

test "an untied head goes back too, and a tied model is told from what was merged" {
    var diag: Diagnostic = .{};
    var model = try initRandom(f32, testing.allocator, test_config, 3);
    defer model.deinit(testing.allocator);
    var adapter = try testAdapter(f32, &model, &.{ "embed_tokens", "lm_head" }, &diag);
    defer adapter.deinit(testing.allocator);

    try testing.expectError(error.InvalidAdapter, takeOut(f32, testing.allocator, &model, &adapter, &diag));
    try testing.expect(std.mem.find(u8, diag.text(), "it is not what merging this adapter gave") != null);
    const embedding = model.layout.get(null, .token_embedding).?;
    const before = try testing.allocator.dupe(f32, embedding.sliceConst(f32, model.weights));
    defer testing.allocator.free(before);

    try mergeInto(f32, testing.allocator, &model, &adapter);
    const distance = try takeOut(f32, testing.allocator, &model, &adapter, &diag);
    for ([_]arch.Role{ .token_embedding, .output }) |role| {
        for (before, model.layout.get(null, role).?.sliceConst(f32, model.weights)) |x, y| try testing.expect(@abs(x - y) <= distance);
    }
}
