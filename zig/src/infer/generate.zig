//! Ids in, ids out: samples and feeds back until a stop id, the limit, or the end of the context.
//!
//! A `Line` is one answer in progress: what to step next, and what to make of the logits that come back. `Generator` runs one line;
//! batch.zig runs several in the same passes. Guessed ids (draft.zig) are stepped together with the id they should follow; a line
//! takes exactly the ids it would take without them.

const std = @import("std");
const sampler_file = @import("sampler.zig");
const session_file = @import("session.zig");
const constraint_file = @import("constraint.zig");
const Draft = @import("draft.zig").Draft;

pub const GenerateError = sampler_file.SampleError || constraint_file.Error;

/// What an error of `next` says to a person; null: the memory is full.
pub fn words(err: GenerateError) ?[]const u8 {
    return switch (err) {
        error.BadLogits => "the model's logits are not numbers: its weights are broken. Export the model again",
        error.NoToken => "no token of the vocabulary can go on as the JSON schema asks. Use a model whose vocabulary has every byte",
        error.OutOfMemory => null,
    };
}

pub const End = enum {
    /// A stop id was sampled. It is not given out and not in the cache.
    stop_id,
    /// `max_tokens` were given out.
    length,
    /// The cache is full.
    context,
    /// The text is all that its constraint allows.
    complete,
};

/// Most ids guessed at once.
pub const drafts_max = 15;

pub const Line = struct {
    session: *session_file.Session,
    sampler: *sampler_file.Sampler,
    stop_ids: []const u32,
    left: usize,
    draft: Draft = .{},
    /// What the ids must spell.
    cursor: ?*constraint_file.Cursor = null,
    /// Sampled and given out, but not yet in the cache: stepped when the next id is asked for.
    pending: ?u32 = null,
    end: ?End = null,

    /// Whether nothing more comes; `end` then says why.
    pub fn isOver(self: *Line) bool {
        if (self.end == null) {
            if (self.cursor != null and self.cursor.?.is_over) {
                self.end = .complete;
            } else if (self.left == 0) self.end = .length;
        }
        return self.end != null;
    }

    /// The ids to step next, in `room`: the last one chosen, and guesses what follows. None when the context is full: the line is over.
    pub fn propose(self: *Line, room: []u32) []const u32 {
        const session = self.session;
        const free = session.context - session.position();
        if (free == 0) {
            self.end = .context;
            return room[0..0];
        }
        room[0] = self.pending.?;
        // The last id asked for needs no guess behind it.
        const guesses = @min(room.len, @min(free, self.left)) - 1;
        return room[0 .. 1 + self.draft.guess(session.ids.items, room[0], room[1..][0..guesses]).len];
    }

    /// Chooses from the logits behind the ids that were proposed and stepped, a row each; forgets wrong guesses. The ids chosen, in
    /// `chosen`, which has room for one an id; chosen[i] came from row i. `end` says whether more can come.
    pub fn settle(self: *Line, stepped: []const u32, rows: []const f32, chosen: []u32) GenerateError![]const u32 {
        const vocab = rows.len / stepped.len;
        const start = self.session.position() - stepped.len;
        var count: usize = 0;
        var kept: usize = 1;
        errdefer self.session.rewind(start + 1);
        while (!self.isOver()) {
            const id = try self.choose(rows[count * vocab ..][0..vocab]) orelse {
                kept = count + 1;
                break;
            };
            chosen[count] = id;
            count += 1;
            kept = count;
            if (count == stepped.len or stepped[count] != id) break;
        }
        self.session.rewind(start + kept);
        self.draft.learn(stepped.len - 1, std.mem.findDiff(u32, stepped[1..], chosen[0..count]) orelse count);
        return chosen[0..count];
    }

    /// One id from the logits it is sampled from, or null at a stop id.
    pub fn choose(self: *Line, logits: []const f32) GenerateError!?u32 {
        const id = try self.sampler.sampleAmong(logits, if (self.cursor) |cursor| try cursor.allowed(self.stop_ids) else null);
        if (std.mem.findScalar(u32, self.stop_ids, id) != null) {
            self.end = .stop_id;
            return null;
        }
        if (self.cursor) |cursor| try cursor.accept(id);
        self.sampler.accept(id);
        self.pending = id;
        self.left -= 1;
        return id;
    }
};

pub const Generator = struct {
    line: Line,
    /// Rows of logits: one, and one a guess.
    room: []f32,
    /// What the last id given out was chosen from; before the first one: what it will be.
    logits: []const f32,
    is_fresh: bool = true,
    ready: [drafts_max + 1]u32 = undefined,
    ready_count: usize = 0,
    given: usize = 0,

    /// The session must hold logits: call `session.prefill` first. Unfed ids are fed by `next`.
    pub fn init(
        session: *session_file.Session,
        sampler: *sampler_file.Sampler,
        stop_ids: []const u32,
        max_tokens: usize,
    ) Generator {
        return .{
            .line = .{ .session = session, .sampler = sampler, .stop_ids = stop_ids, .left = max_tokens },
            .room = session.logits,
            .logits = session.logits,
        };
    }

    /// Guesses up to `most` ids a pass, at most `drafts_max`. `room`: 1 + most rows of logits; it must outlive the generator.
    pub fn setDrafts(self: *Generator, most: usize, room: []f32) void {
        std.debug.assert(most <= drafts_max and room.len == (most + 1) * self.logits.len);
        self.line.draft.most = most;
        self.room = room;
    }

    /// The next id, or null at the end; `line.end` then says why.
    pub fn next(self: *Generator) GenerateError!?u32 {
        if (self.is_fresh) {
            self.is_fresh = false;
            return if (self.line.isOver()) null else self.line.choose(self.logits);
        }
        if (self.given == self.ready_count and !try self.fill()) return null;
        const vocab = self.logits.len;
        self.logits = self.room[self.given * vocab ..][0..vocab];
        defer self.given += 1;
        return self.ready[self.given];
    }

    /// One pass. False when nothing came of it.
    fn fill(self: *Generator) GenerateError!bool {
        if (self.line.isOver()) return false;
        self.given = 0;
        self.ready_count = 0;
        const session = self.line.session;
        const vocab = self.logits.len;
        var room: [drafts_max + 1]u32 = undefined;
        const ids = self.line.propose(room[0 .. self.room.len / vocab]);
        if (ids.len == 0) return false;
        const same: [drafts_max + 1]*session_file.Session = @splat(session);
        const rows = self.room[0 .. ids.len * vocab];
        session.stepLanes(same[0..ids.len], ids, rows) catch unreachable; // They fit, and were sampled from this model's logits.
        self.ready_count = (try self.line.settle(ids, rows, &self.ready)).len;
        return self.ready_count > 0;
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
    try testing.expectEqual(End.context, generator.line.end.?);
    try testing.expectEqual(free.len, count); // Nine fed, one more sampled from the last logits.
    try testing.expectEqual(@as(?u32, null), try generator.next());

    session.rewind(2);
    _ = try session.prefill(&.{3});
    generator = .init(&session, &sampler, &.{free[4]}, 100);
    const before_stop = std.mem.findScalar(u32, &free, free[4]).?;
    for (free[0..before_stop]) |id| try testing.expectEqual(id, (try generator.next()).?);
    try testing.expectEqual(@as(?u32, null), try generator.next());
    try testing.expectEqual(End.stop_id, generator.line.end.?);

    session.rewind(2);
    _ = try session.prefill(&.{3});
    generator = .init(&session, &sampler, &.{}, 2);
    for (free[0..2]) |id| try testing.expectEqual(id, (try generator.next()).?);
    try testing.expectEqual(@as(?u32, null), try generator.next());
    try testing.expectEqual(End.length, generator.line.end.?);
}

test "guesses change no id, no logit, no end and nothing in the cache" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const a = arena.allocator();
    const model = try test_model.make(a);
    const pool = try base.Pool.init(testing.allocator, 2);
    defer pool.deinit();
    const vocab: usize = model.config.vocab_size;
    var session: session_file.Session = try .init(testing.allocator, &model, pool, 150);
    defer session.deinit();
    const room = try a.alloc(f32, (drafts_max + 1) * vocab);
    const prompt = [_]u32{ 1, 2, 3, 4, 5, 6, 1, 2, 3 };

    var accepted: u64 = 0;
    // Few tokens to choose from, so that the same follows the same now and then and guesses come true.
    for (0..24) |seed| for ([_]usize{ 1000, 40 }) |limit| {
        const options: sampler_file.Options = .{ .temperature = if (seed == 0) 0 else 0.4, .top_k = 2, .seed = seed, .repeat_penalty = if (seed % 3 == 2) 1.3 else 1 };
        var ids: std.ArrayList(u32) = .empty;
        var logits: std.ArrayList(f32) = .empty;
        var end: ?End = null;
        var cached: []const u32 = &.{};
        for ([_]usize{ 0, 1, 4, drafts_max }) |drafts| {
            session.rewind(0);
            _ = try session.prefill(&prompt);
            var sampler: sampler_file.Sampler = try .init(a, vocab, options);
            var generator: Generator = .init(&session, &sampler, &.{ 49, 48 }, limit);
            if (drafts > 0) generator.setDrafts(drafts, room[0 .. (drafts + 1) * vocab]);
            var count: usize = 0;
            while (try generator.next()) |id| : (count += 1) {
                if (drafts == 0) {
                    try ids.append(a, id);
                    try logits.appendSlice(a, generator.logits);
                } else {
                    try testing.expectEqual(ids.items[count], id);
                    try testing.expectEqualSlices(f32, logits.items[count * vocab ..][0..vocab], generator.logits);
                }
            }
            try testing.expectEqual(ids.items.len, count);
            if (drafts == 0) {
                end = generator.line.end;
                cached = try a.dupe(u32, session.ids.items);
            }
            try testing.expectEqual(end, generator.line.end);
            try testing.expectEqualSlices(u32, cached, session.ids.items);
            accepted += generator.line.draft.accepted;
        }
    };
    try testing.expect(accepted > 100);
}
