//! The trained model asked directly: logits and log-probabilities of one sequence, by the forward pass that training runs.
//!
//! What exported files are compared with, so it shares no code with the engine that runs them. A mapped model stays in its
//! file, and an adapter beside its base: nothing is merged. All products are full f32 (f64 for a f64 model). Memory is the
//! activations of one layer, a row of `hidden_size` a layer and token, and the logits of a chunk.
//! Does not know: files, text.

const std = @import("std");
const base = @import("base");
const ops = @import("ops");
const model_layer = @import("model");
const checkpoint = @import("checkpoint");
const Source = @import("source.zig").Source;

pub const Error = error{
    OutOfMemory,
    /// An id is not below the vocabulary's size.
    TokenOutOfVocabulary,
};

/// Room for sequences of up to `time` ids.
pub fn Forward(comptime T: type) type {
    return struct {
        gpa: std.mem.Allocator,
        source: Source(T),
        adapter: ?*const checkpoint.LoadedAdapter(T),
        exec: *ops.Exec,
        transformer: model_layer.Transformer(T),

        const Self = @This();

        /// `source`, `adapter` and `pool` must outlive it. Caller calls `deinit`.
        pub fn init(gpa: std.mem.Allocator, source: Source(T), adapter: ?*const checkpoint.LoadedAdapter(T), pool: *base.Pool, time: usize) error{OutOfMemory}!Self {
            const exec = try gpa.create(ops.Exec);
            errdefer gpa.destroy(exec);

            exec.* = try .init(gpa, pool);
            errdefer exec.deinit();

            return .{
                .gpa = gpa,
                .source = source,
                .adapter = adapter,
                .exec = exec,
                .transformer = try .init(gpa, source.config(), source.layout(), exec, .{
                    .batch = 1,
                    .time = time,
                    .recompute = true, // One layer's buffers serve all: nothing goes back.
                    .adapter = if (adapter) |a| &a.layout else null,
                    .frozen = source == .mapped,
                }),
            };
        }

        pub fn deinit(self: *Self) void {
            self.transformer.deinit();
            self.exec.deinit();
            self.gpa.destroy(self.exec);
            self.* = undefined;
        }

        /// Logits behind each of ids[first..]: (ids.len - first, vocab_size) into `out`.
        pub fn logits(self: *Self, ids: []const u32, first: usize, out: []T) Error!void {
            std.debug.assert(first < ids.len);
            try self.check(ids);
            const targets = try self.gpa.alloc(i32, ids.len);
            defer self.gpa.free(targets);

            @memset(targets, -1);
            self.transformer.logitsFrom(self.weights(), batchOf(ids, targets), first, out);
        }

        /// out[i] = log of the probability of ids[first + i] behind all ids before it; likeliest[i]: it is the first maximum.
        /// `first` is at least 1; both results have ids.len - first values.
        pub fn score(self: *Self, ids: []const u32, first: usize, out: []f64, likeliest: []bool) Error!void {
            std.debug.assert(first >= 1 and first < ids.len);
            std.debug.assert(out.len == ids.len - first and likeliest.len == out.len);
            try self.check(ids);
            const n = ids.len - 1;
            const targets = try self.gpa.alloc(i32, n);
            defer self.gpa.free(targets);
            const surprise = try self.gpa.alloc(f64, n);
            defer self.gpa.free(surprise);
            const correct = try self.gpa.alloc(bool, n);
            defer self.gpa.free(correct);

            for (targets, ids[1..], 1..) |*target, id, i| target.* = if (i >= first) @intCast(id) else -1;
            _ = self.transformer.loss(self.weights(), batchOf(ids[0..n], targets), .{ .row_nll = surprise, .row_correct = correct });
            for (out, surprise[first - 1 ..]) |*value, nll| value.* = -nll;
            @memcpy(likeliest, correct[first - 1 ..]);
        }

        fn batchOf(ids: []const u32, targets: []const i32) model_layer.Batch {
            return .{ .input_ids = ids, .targets = targets, .batch = 1, .time = ids.len };
        }

        fn weights(self: *const Self) model_layer.Weights(T) {
            const adapter = if (self.adapter) |a| a else return .{ .base = self.source.weights() };
            return .{ .base = self.source.weights(), .adapter = .{ .layout = &adapter.layout, .values = adapter.values } };
        }

        fn check(self: *const Self, ids: []const u32) Error!void {
            for (ids) |id| if (id >= self.source.config().vocab_size) return error.TokenOutOfVocabulary;
        }
    };
}

const testing = std.testing;
const test_rig = @import("test_rig.zig");

test "logits and log-probabilities are those of one another, in both precisions and from any place on" {
    const gpa = testing.allocator;
    const pool = try base.Pool.init(gpa, 2);
    defer pool.deinit();
    const ids = [_]u32{ 3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 22 };
    inline for (.{ f32, f64 }) |T| {
        var model = try checkpoint.initRandom(T, gpa, test_rig.model_config, 7);
        defer model.deinit(gpa);
        var forward: Forward(T) = try .init(gpa, .{ .dense = &model }, null, pool, ids.len);
        defer forward.deinit();

        var all: [ids.len * 23]T = undefined;
        try forward.logits(&ids, 0, &all);
        var last: [2 * 23]T = undefined;
        try forward.logits(&ids, ids.len - 2, &last);
        for (all[(ids.len - 2) * 23 ..], last) |x, y| try testing.expectApproxEqAbs(x, y, 1e-6);
        var found: [ids.len - 3]f64 = undefined;
        var best: [ids.len - 3]bool = undefined;
        try forward.score(&ids, 3, &found, &best);
        for (found, best, ids[3..], 2..) |value, is_best, id, row| {
            const logits = all[row * 23 ..][0..23];
            var sum: f64 = 0;
            var largest: T = logits[0];
            for (logits) |x| {
                sum += @exp(@as(f64, x));
                largest = @max(largest, x);
            }
            try testing.expectApproxEqAbs(@as(f64, logits[id]) - @log(sum), value, 1e-5);
            try testing.expectEqual(logits[id] == largest, is_best);
        }
        try testing.expectError(error.TokenOutOfVocabulary, forward.score(&.{ 1, 23 }, 1, found[0..1], best[0..1]));
    }
}
