//! Ids in, ids out: samples and feeds back until a stop id, the limit, or the end of the context.

const std = @import("std");
const sampler_file = @import("sampler.zig");
const session_file = @import("session.zig");

pub const GenerateError = sampler_file.SampleError;

pub const End = enum {
    /// A stop id was sampled. It is not given out and not in the cache.
    stop_id,
    /// `max_tokens` were given out.
    length,
    /// The cache is full.
    context,
};

pub const Generator = struct {
    session: *session_file.Session,
    sampler: *sampler_file.Sampler,
    stop_ids: []const u32,
    left: usize,
    /// Sampled and given out, but not yet in the cache: fed when the next id is asked for.
    pending: ?u32 = null,
    end: ?End = null,

    /// The session must hold logits: call `session.prefill` first. Unfed ids are fed by `next`.
    pub fn init(
        session: *session_file.Session,
        sampler: *sampler_file.Sampler,
        stop_ids: []const u32,
        max_tokens: usize,
    ) Generator {
        return .{ .session = session, .sampler = sampler, .stop_ids = stop_ids, .left = max_tokens };
    }

    /// The next id, or null at the end; `end` then says why.
    pub fn next(self: *Generator) GenerateError!?u32 {
        if (self.end != null) return null;
        if (self.left == 0) return self.finish(.length);
        if (self.pending) |id| {
            _ = self.session.step(id) catch |err| switch (err) {
                error.ContextFull => return self.finish(.context),
                error.InvalidToken => unreachable, // It was sampled from this model's logits.
            };
            self.pending = null;
        }
        const id = try self.sampler.sample(self.session.logits);
        if (std.mem.findScalar(u32, self.stop_ids, id) != null) return self.finish(.stop_id);
        self.sampler.accept(id);
        self.pending = id;
        self.left -= 1;
        return id;
    }

    fn finish(self: *Generator, end: End) ?u32 {
        self.end = end;
        return null;
    }
};

const testing = std.testing;
const base = @import("base");
const test_model = @import("test_model.zig");

test "generation ends at a stop id, at the limit, and where the context ends" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const model = try test_model.make(arena.allocator());
    const pool = try base.Pool.init(testing.allocator, 1);
    defer pool.deinit();
    var session: session_file.Session = try .init(testing.allocator, &model, pool, 12);
    defer session.deinit();
    var sampler: sampler_file.Sampler = try .init(testing.allocator, model.config.vocab_size, .{ .temperature = 0 });
    defer sampler.deinit(testing.allocator);

    _ = try session.prefill(&.{ 1, 2, 3 });
    var free: [10]u32 = undefined;
    var generator: Generator = .init(&session, &sampler, &.{}, 100);
    var count: usize = 0;
    while (try generator.next()) |id| : (count += 1) free[count] = id;
    try testing.expectEqual(End.context, generator.end.?);
    try testing.expectEqual(free.len, count); // Nine fed, one more sampled from the last logits.
    try testing.expectEqual(@as(?u32, null), try generator.next());

    session.rewind(2);
    _ = try session.prefill(&.{3});
    generator = .init(&session, &sampler, &.{free[4]}, 100);
    const before_stop = std.mem.findScalar(u32, &free, free[4]).?;
    for (free[0..before_stop]) |id| try testing.expectEqual(id, (try generator.next()).?);
    try testing.expectEqual(@as(?u32, null), try generator.next());
    try testing.expectEqual(End.stop_id, generator.end.?);

    session.rewind(2);
    _ = try session.prefill(&.{3});
    generator = .init(&session, &sampler, &.{}, 2);
    for (free[0..2]) |id| try testing.expectEqual(id, (try generator.next()).?);
    try testing.expectEqual(@as(?u32, null), try generator.next());
    try testing.expectEqual(End.length, generator.end.?);
}
