//! A model's rows with an adapter added, one row at a time: what exporting reads, so that no merged model need lie anywhere.
//!
//! Each number is W + s·B·A summed in f64 and rounded once, with the bits `merge.mergeInto` gives. Read by several threads at once.
//! Does not know: files.

const std = @import("std");
const arch = @import("arch");
const formats = @import("formats");
const adapter_file = @import("adapter.zig");
const LoadedAdapter = adapter_file.LoadedAdapter(f32);

pub const MergedRows = struct {
    adapter: *const LoadedAdapter,
    /// One a parameter of the base's layout.
    modules: []const ?*const arch.AdapterModule,
    /// Of each parameter, whether its experts are changed; empty where it has none or no adapter.
    changed: []const []const bool,

    /// `layout` is the base's. Both must outlive the result; caller frees `modules` with `deinit`.
    pub fn init(gpa: std.mem.Allocator, layout: *const arch.Layout, adapter: *const LoadedAdapter) error{OutOfMemory}!MergedRows {
        const modules = try gpa.alloc(?*const arch.AdapterModule, layout.parameters.len);
        errdefer gpa.free(modules);
        @memset(modules, null);
        for (adapter.layout.modules) |*m| modules[layout.positionOf(m.target.weightOf(layout, m.layer))] = m;
        const changed = try gpa.alloc([]const bool, modules.len);
        @memset(changed, &.{});
        errdefer freeLists(gpa, changed);
        for (modules, changed) |found, *list| if (found) |m| if (m.target.isExperts()) {
            const flags = try gpa.alloc(bool, m.experts);
            for (flags, 0..) |*flag, expert| flag.* = isChanged(m, adapter.values, expert);
            list.* = flags;
        };
        return .{ .adapter = adapter, .modules = modules, .changed = changed };
    }

    fn freeLists(gpa: std.mem.Allocator, lists: []const []const bool) void {
        for (lists) |list| gpa.free(list);
        gpa.free(lists);
    }

    /// Zeros only on one side add nothing: an expert that no token went to has kept its first B.
    fn isChanged(m: *const arch.AdapterModule, values: []const f32, expert: usize) bool {
        const b = m.b.sliceConst(f32, values);
        const any_b = for (0..m.out * m.rank) |i| {
            if (b[i * m.experts + expert] != 0) break true;
        } else false;
        if (!any_b) return false;
        const size = m.rank * m.in;
        for (m.a.sliceConst(f32, values)[expert * size ..][0..size]) |x| if (x != 0) return true;
        return false;
    }

    pub fn deinit(self: *MergedRows, gpa: std.mem.Allocator) void {
        gpa.free(self.modules);
        freeLists(gpa, self.changed);
        self.* = undefined;
    }

    pub fn delta(self: *const MergedRows) formats.gguf_export.Delta {
        return .{ .context = self, .add = add, .add_expert = addExpert, .changes_expert = changesExpert };
    }

    /// A model whose head is its embedding gets a head of its own when one of the two is changed: not row by row.
    pub fn changesTied(layout: *const arch.Layout, adapter: *const LoadedAdapter) bool {
        const outer = adapter.layout.get(null, .embed_tokens) != null or adapter.layout.get(null, .lm_head) != null;
        return outer and layout.get(null, .output) == null;
    }

    /// Whole rows of the parameter, from element `first` on.
    fn add(context: *const anyopaque, index: usize, first: usize, out: []f32) void {
        const self: *const MergedRows = @ptrCast(@alignCast(context));
        const m = self.modules[index] orelse return;
        const columns = if (m.target == .embed_tokens) m.out else m.in;
        const a = m.a.sliceConst(f32, self.adapter.values);
        const b = m.b.sliceConst(f32, self.adapter.values);
        for (0..out.len / columns) |i| {
            const row = first / columns + i;
            const weights = out[i * columns ..][0..columns];
            if (m.target == .embed_tokens) {
                // Stored [in, out]: row i gets B · A[:, i].
                for (weights, 0..) |*w, o| {
                    var sum: f64 = 0;
                    for (0..m.rank) |r| sum += @as(f64, b[o * m.rank + r]) * a[r * m.in + row];
                    w.* = @floatCast(@as(f64, w.*) + m.scale * sum);
                }
            } else addRow(m, a, b[row * m.rank ..][0..m.rank], weights);
        }
    }

    /// Output `column` of one expert for all inputs: W[e, :, o] + s · Σ_r B[o, r, e] · A[e, r, :], summed in f64 and rounded once.
    fn addExpert(context: *const anyopaque, index: usize, expert: usize, column: usize, out: []f32) void {
        const self: *const MergedRows = @ptrCast(@alignCast(context));
        const m = self.modules[index] orelse return;
        const a = m.a.sliceConst(f32, self.adapter.values);
        const b = m.b.sliceConst(f32, self.adapter.values);
        for (out, 0..) |*w, i| {
            var sum: f64 = 0;
            for (0..m.rank) |r| sum += @as(f64, b[(column * m.rank + r) * m.experts + expert]) * a[(expert * m.rank + r) * m.in + i];
            w.* = @floatCast(@as(f64, w.*) + m.scale * sum);
        }
    }

    fn changesExpert(context: *const anyopaque, index: usize, expert: usize) bool {
        const self: *const MergedRows = @ptrCast(@alignCast(context));
        return index < self.changed.len and expert < self.changed[index].len and self.changed[index][expert];
    }

    fn addRow(m: *const arch.AdapterModule, a: []const f32, b: []const f32, weights: []f32) void {
        const lanes = 8;
        const V = @Vector(lanes, f64);
        var at: usize = 0;
        while (at + lanes <= weights.len) : (at += lanes) {
            var sum: V = @splat(0);
            for (b, 0..) |factor, r| {
                const narrow: @Vector(lanes, f32) = a[r * m.in + at ..][0..lanes].*;
                sum += @as(V, @splat(factor)) * @as(V, @floatCast(narrow));
            }
            const w: @Vector(lanes, f32) = weights[at..][0..lanes].*;
            const both: @Vector(lanes, f32) = @floatCast(@as(V, @floatCast(w)) + @as(V, @splat(m.scale)) * sum);
            weights[at..][0..lanes].* = both;
        }
        while (at < weights.len) : (at += 1) {
            var sum: f64 = 0;
            for (b, 0..) |factor, r| sum += @as(f64, factor) * a[r * m.in + at];
            weights[at] = @floatCast(@as(f64, weights[at]) + m.scale * sum);
        }
    }
};

const testing = std.testing;
const base = @import("base");
const merge = @import("merge.zig");
const initRandom = @import("initialize.zig").initRandom;

test "rows read one by one are those of the merged model, to the bit" {
    const config: arch.ModelConfig = .{ .vocab_size = 11, .hidden_size = 24, .intermediate_size = 20, .num_hidden_layers = 2, .num_attention_heads = 2, .num_key_value_heads = 1, .head_dim = 12, .tie_word_embeddings = false };
    var diag: base.Diagnostic = .{};
    var plain = try initRandom(f32, testing.allocator, config, 3);
    defer plain.deinit(testing.allocator);
    var merged = try initRandom(f32, testing.allocator, config, 3);
    defer merged.deinit(testing.allocator);
    const targets: []const []const u8 = &.{ "q_proj", "down_proj", "embed_tokens", "lm_head" };
    var adapter = try adapter_file.initAdapter(f32, testing.allocator, &plain.layout, .{ .r = 3, .lora_alpha = 7, .target_modules = targets }, 5, &diag);
    defer adapter.deinit(testing.allocator);
    var prng: base.Prng = .init(9);
    for (adapter.values) |*v| v.* = @floatCast(prng.normal());
    try testing.expect(!MergedRows.changesTied(&plain.layout, &adapter));
    try merge.mergeInto(f32, testing.allocator, &merged, &adapter);
    var rows: MergedRows = try .init(testing.allocator, &plain.layout, &adapter);
    defer rows.deinit(testing.allocator);
    const delta = rows.delta();
    for (plain.layout.parameters, 0..) |p, index| {
        const weights = p.slice(f32, plain.weights);
        const columns = if (p.rank == 1) p.len else p.shape[1];
        // The first rows together, the others alone.
        const together = @min(2 * columns, weights.len);
        delta.add(delta.context, index, 0, weights[0..together]);
        var at = together;
        while (at < weights.len) : (at += columns) delta.add(delta.context, index, at, weights[at..][0..columns]);
    }
    try testing.expectEqualSlices(f32, merged.weights, plain.weights);
}
