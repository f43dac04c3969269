//! Several answers at once: each pass reads the weights one time and steps every answer in progress.
//!
//! Requests wait in their order until a lane (a session of its own) is free; an answer that ends makes room for the next. Prompts are
//! read one at a time. What a lane, or another one, holds of the same beginning is taken over, as far as it was fed as a prompt: its
//! numbers are then those that reading it again would give. So the ids of a request are, to the bit of every logit, what it would
//! get alone and first, whatever else is there and however many lanes there are.
//! Does not know: text, threads of its caller.

const std = @import("std");
const base = @import("base");
const constraint_file = @import("constraint.zig");
const generate = @import("generate.zig");
const sampler_file = @import("sampler.zig");
const session_file = @import("session.zig");
const Session = session_file.Session;
const Allocator = std.mem.Allocator;

/// One answer that is wanted.
pub const Request = struct {
    /// At least one, at most the context.
    ids: []const u32,
    sampling: sampler_file.Options,
    stop_ids: []const u32 = &.{},
    max_tokens: usize,
    /// Most ids guessed a pass; see draft.zig.
    drafts: usize = 0,
    /// What the answer must spell; it must outlive the answer.
    constraint: ?*constraint_file.Constraint = null,
};

/// What came of a pass: an id of an answer, or that the answer is over.
pub const Token = struct {
    request: usize,
    id: u32 = 0,
    end: ?generate.End = null,
    /// What the id was chosen from; until the next pass.
    logits: []const f32,
};

/// What an answer took.
pub const Counts = struct {
    prompt: u64 = 0,
    /// Of the prompt, ids that were there already.
    reused: u64 = 0,
    /// Ids given out.
    answer: u64 = 0,
    guessed: u64 = 0,
    accepted: u64 = 0,
};

pub const Error = generate.GenerateError;

pub const lanes_max = 32;

const Lane = struct {
    session: *Session,
    /// Index of the request being answered.
    request: ?usize = null,
    line: generate.Line = undefined,
    sampler: sampler_file.Sampler = undefined,
    cursor: ?constraint_file.Cursor = null,
    /// Fed, and nothing chosen yet.
    is_fresh: bool = false,
};

pub const Batch = struct {
    gpa: Allocator,
    /// Computes; also the first lane.
    first: *Session,
    forks: std.ArrayList(*Session) = .empty,
    lanes: std.ArrayList(Lane) = .empty,
    arena: std.heap.ArenaAllocator,
    requests: []const Request = &.{},
    counts: []Counts = &.{},
    /// Requests that have got a lane.
    admitted: usize = 0,
    room: []f32 = &.{},
    tokens: std.ArrayList(Token) = .empty,
    given: usize = 0,

    /// `first` must outlive the batch and be used by nobody else meanwhile. Caller calls `deinit`.
    pub fn init(gpa: Allocator, first: *Session) Batch {
        return .{ .gpa = gpa, .first = first, .arena = .init(gpa) };
    }

    pub fn deinit(self: *Batch) void {
        self.stop();
        for (self.forks.items) |session| {
            session.deinit();
            self.gpa.destroy(session);
        }
        self.forks.deinit(self.gpa);
        self.lanes.deinit(self.gpa);
        self.gpa.free(self.room);
        self.tokens.deinit(self.gpa);
        self.arena.deinit();
        self.* = undefined;
    }

    /// Ends all answers. What was computed stays for prompts that begin the same.
    pub fn stop(self: *Batch) void {
        for (self.lanes.items) |*lane| self.free(lane);
        self.requests = &.{};
        self.counts = &.{};
        self.admitted = 0;
        self.tokens.clearRetainingCapacity();
        self.given = 0;
        _ = self.arena.reset(.free_all);
    }

    /// Begins to answer `requests`, at most `lanes` (1 to `lanes_max`) at a time; the first prompt is read at once. They are copied.
    /// What was in progress is stopped. On an error nothing is in progress.
    pub fn start(self: *Batch, requests: []const Request, lanes: usize) (session_file.SessionError || error{OutOfMemory})!void {
        std.debug.assert(requests.len > 0 and lanes > 0 and lanes <= lanes_max);
        self.stop();
        for (requests) |request| {
            if (request.ids.len > self.first.context) return error.ContextFull;
            for (request.ids) |id| if (id >= self.first.model.config.vocab_size) return error.InvalidToken;
        }
        errdefer self.stop();
        const a = self.arena.allocator();
        const copies = try a.alloc(Request, requests.len);
        var drafts: usize = 0;
        for (copies, requests) |*copy, request| {
            copy.* = request;
            copy.ids = try a.dupe(u32, request.ids);
            copy.stop_ids = try a.dupe(u32, request.stop_ids);
            drafts = @max(drafts, request.drafts);
        }
        const wanted = @min(lanes, requests.len);
        const rows = wanted * (1 + draftsOf(drafts, wanted));
        const len = base.checked.mul(usize, rows, self.first.logits.len) catch return error.OutOfMemory;
        if (self.room.len < len) {
            const larger = try self.gpa.alloc(f32, len);
            self.gpa.free(self.room);
            self.room = larger;
        }
        try self.setLanes(wanted);
        // Each id of a pass is chosen and may end its answer.
        try self.tokens.ensureTotalCapacity(self.gpa, 2 * rows);
        self.counts = try a.alloc(Counts, requests.len);
        @memset(self.counts, .{});
        self.requests = copies;
        try self.admit(&self.lanes.items[0]);
    }

    fn setLanes(self: *Batch, count: usize) error{OutOfMemory}!void {
        try self.lanes.ensureTotalCapacity(self.gpa, count);
        try self.forks.ensureTotalCapacity(self.gpa, count);
        while (self.forks.items.len + 1 < count) {
            const session = try self.gpa.create(Session);
            errdefer self.gpa.destroy(session);
            session.* = try self.first.fork();
            self.forks.appendAssumeCapacity(session);
        }
        self.lanes.clearRetainingCapacity();
        self.lanes.appendAssumeCapacity(.{ .session = self.first });
        for (self.forks.items[0 .. count - 1]) |session| self.lanes.appendAssumeCapacity(.{ .session = session });
    }

    /// So many ids may be guessed that all lanes fit in a pass.
    fn draftsOf(wanted: usize, lanes: usize) usize {
        return @min(@min(wanted, generate.drafts_max), session_file.step_tokens / lanes - 1);
    }

    /// The next tokens, at most `out.len`; passes are made when none are left over from the last. Empty: all answers are over.
    /// On an error nothing is in progress.
    pub fn next(self: *Batch, out: []Token) Error![]const Token {
        errdefer self.stop();
        std.debug.assert(out.len > 0);
        while (self.given == self.tokens.items.len) {
            self.tokens.clearRetainingCapacity();
            self.given = 0;
            if (!try self.pass()) return out[0..0];
        }
        const count = @min(out.len, self.tokens.items.len - self.given);
        @memcpy(out[0..count], self.tokens.items[self.given..][0..count]);
        self.given += count;
        return out[0..count];
    }

    /// False when nothing is left to do.
    fn pass(self: *Batch) Error!bool {
        if (self.admitted < self.requests.len) {
            for (self.lanes.items) |*lane| if (lane.request == null) {
                try self.admit(lane);
                break;
            };
        }
        var busy = false;
        for (self.lanes.items) |*lane| {
            if (lane.request == null) continue;
            busy = true;
            if (!lane.is_fresh) continue;
            lane.is_fresh = false;
            if (!lane.line.isOver()) if (try lane.line.choose(lane.session.logits)) |id| self.give(lane, id, lane.session.logits);
            self.giveEnd(lane, lane.session.logits);
            return true;
        }
        if (busy) try self.step();
        return busy;
    }

    /// Steps every answer in progress.
    fn step(self: *Batch) Error!void {
        const vocab = self.first.logits.len;
        var sessions: [session_file.step_tokens]*Session = undefined;
        var ids: [session_file.step_tokens]u32 = undefined;
        var counts: [lanes_max]usize = @splat(0);
        var n: usize = 0;
        for (self.lanes.items, 0..) |*lane, l| {
            if (lane.request == null) continue;
            const most = 1 + draftsOf(lane.line.draft.most, self.lanes.items.len);
            counts[l] = lane.line.propose(ids[n..][0..most]).len;
            if (counts[l] == 0) self.giveEnd(lane, lane.session.logits);
            @memset(sessions[n..][0..counts[l]], lane.session);
            n += counts[l];
        }
        if (n == 0) return;
        const rows = self.room[0 .. n * vocab];
        self.first.stepLanes(sessions[0..n], ids[0..n], rows) catch unreachable; // They fit, and were sampled from this model's logits.
        var at: usize = 0;
        for (self.lanes.items, 0..) |*lane, l| {
            const count = counts[l];
            if (count == 0) continue;
            defer at += count;
            var room: [generate.drafts_max + 1]u32 = undefined;
            const own = rows[at * vocab ..][0 .. count * vocab];
            const chosen = try lane.line.settle(ids[at..][0..count], own, &room);
            for (chosen, 0..) |id, i| self.give(lane, id, own[i * vocab ..][0..vocab]);
            self.giveEnd(lane, own[(chosen.len -| 1) * vocab ..][0..vocab]);
        }
    }

    fn give(self: *Batch, lane: *Lane, id: u32, logits: []const f32) void {
        self.counts[lane.request.?].answer += 1;
        self.tokens.appendAssumeCapacity(.{ .request = lane.request.?, .id = id, .logits = logits });
    }

    /// Says so when the answer is over, and frees its lane.
    fn giveEnd(self: *Batch, lane: *Lane, logits: []const f32) void {
        if (!lane.line.isOver()) return;
        self.tokens.appendAssumeCapacity(.{ .request = lane.request.?, .end = lane.line.end, .logits = logits });
        self.free(lane);
    }

    /// What `request` took so far.
    pub fn countsOf(self: *const Batch, request: usize) Counts {
        var counts = self.counts[request];
        for (self.lanes.items) |*lane| if (lane.request == request) {
            counts.guessed = lane.line.draft.guessed;
            counts.accepted = lane.line.draft.accepted;
        };
        return counts;
    }

    fn free(self: *Batch, lane: *Lane) void {
        const request = lane.request orelse return;
        self.counts[request] = self.countsOf(request);
        lane.sampler.deinit(self.gpa);
        if (lane.cursor) |*cursor| cursor.deinit();
        lane.cursor = null;
        lane.request = null;
    }

    /// Reads the next request's prompt into a free lane.
    fn admit(self: *Batch, lane: *Lane) error{OutOfMemory}!void {
        const request = self.requests[self.admitted];
        const chosen = self.nearest(request.ids, lane);
        var sampler: sampler_file.Sampler = try .init(self.gpa, chosen.lane.session.logits.len, request.sampling);
        errdefer sampler.deinit(self.gpa);
        for (request.ids) |id| sampler.accept(id);
        const cursor: ?constraint_file.Cursor = if (request.constraint) |constraint| try .init(self.gpa, constraint) else null;
        const session = chosen.lane.session;
        if (chosen.source) |source| session.copyFed(source, chosen.kept) else session.rewind(chosen.kept);
        // Looked at in `start`: they fit and are below the vocabulary.
        _ = session.prefill(request.ids[chosen.kept..]) catch unreachable;
        chosen.lane.* = .{
            .session = session,
            .request = self.admitted,
            .sampler = sampler,
            .cursor = cursor,
            .line = .{
                .session = session,
                .sampler = &chosen.lane.sampler,
                .stop_ids = request.stop_ids,
                .left = request.max_tokens,
                .draft = .{ .most = request.drafts },
                .cursor = if (chosen.lane.cursor) |*c| c else null,
            },
            .is_fresh = true,
        };
        self.counts[self.admitted] = .{ .prompt = request.ids.len, .reused = chosen.kept };
        self.admitted += 1;
    }

    const Nearest = struct { lane: *Lane, kept: usize, source: ?*const Session };

    /// The free lane that holds most of `ids`; or `lane`, with the session to copy from, when another holds more.
    fn nearest(self: *Batch, ids: []const u32, lane: *Lane) Nearest {
        var best: Nearest = .{ .lane = lane, .kept = usable(lane.session, ids), .source = null };
        for (self.lanes.items) |*other| {
            const kept = usable(other.session, ids);
            if (kept <= best.kept) continue;
            best = if (other.request == null)
                .{ .lane = other, .kept = kept, .source = null }
            else
                .{ .lane = lane, .kept = kept, .source = other.session };
        }
        return best;
    }

    fn usable(session: *const Session, ids: []const u32) usize {
        // The last id is fed in any case: its logits are needed.
        return @min(@min(session.commonPrefix(ids), session.fed), ids.len - 1);
    }
};

const testing = std.testing;
const test_model = @import("test_model.zig");

/// What one request got: its ids, all logits they were chosen from, and how it ended.
const Answer = struct {
    ids: std.ArrayList(u32) = .empty,
    logits: std.ArrayList(f32) = .empty,
    end: ?generate.End = null,
};

fn collect(arena: Allocator, batch: *Batch, requests: []const Request, lanes: usize) ![]Answer {
    const answers = try arena.alloc(Answer, requests.len);
    @memset(answers, .{});
    try batch.start(requests, lanes);
    var room: [3]Token = undefined;
    while (true) {
        const tokens = try batch.next(&room);
        if (tokens.len == 0) return answers;
        for (tokens) |token| {
            const answer = &answers[token.request];
            try testing.expectEqual(null, answer.end);
            answer.end = token.end;
            if (token.end != null) continue;
            try answer.ids.append(arena, token.id);
            try answer.logits.appendSlice(arena, token.logits);
        }
    }
}

test "an answer is the same to the bit alone, among others, in any number of lanes, with or without guesses" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const a = arena.allocator();
    const model = try test_model.make(a);
    const pool = try base.Pool.init(testing.allocator, 2);
    defer pool.deinit();

    var prng: base.Prng = .init(5);
    var prompt: [70]u32 = undefined;
    for (&prompt) |*id| id.* = @intCast(prng.below(50));
    var requests: [9]Request = undefined;
    for (&requests, 0..) |*request, i| request.* = .{
        // Beginnings that some share, of many lengths; one prompt fills the context.
        .ids = if (i == 8) &@as([80]u32, @splat(7)) else prompt[if (i % 2 == 0) 0 else i..][0 .. 1 + 7 * i],
        .sampling = .{ .temperature = if (i == 1) 0 else 0.5, .top_k = 3, .seed = i, .repeat_penalty = if (i == 4) 1.2 else 1 },
        .stop_ids = if (i % 3 == 0) &.{ 11, 12, 13 } else &.{},
        .max_tokens = if (i == 5) 0 else 10 * i + 3,
    };
    var alone: [requests.len]Answer = undefined;
    for (requests, &alone) |request, *answer| {
        var session: Session = try .init(testing.allocator, &model, pool, 80);
        defer session.deinit();
        var batch: Batch = .init(testing.allocator, &session);
        defer batch.deinit();
        answer.* = (try collect(a, &batch, &.{request}, 1))[0];
    }
    var ends: std.EnumSet(generate.End) = .empty;
    var session: Session = try .init(testing.allocator, &model, pool, 80);
    defer session.deinit();
    var batch: Batch = .init(testing.allocator, &session);
    defer batch.deinit();
    for ([_]usize{ 1, 3, 9, 2 }) |lanes| for ([_]usize{ 0, 6 }) |drafts| {
        for (&requests) |*request| request.drafts = drafts;
        var reused: u64 = 0;
        for (try collect(a, &batch, &requests, lanes), alone) |answer, expected| {
            try testing.expectEqualSlices(u32, expected.ids.items, answer.ids.items);
            try testing.expectEqualSlices(f32, expected.logits.items, answer.logits.items);
            try testing.expectEqual(expected.end, answer.end);
            ends.insert(answer.end.?);
        }
        for (batch.counts, requests, alone) |counts, request, expected| {
            try testing.expectEqual(request.ids.len, counts.prompt);
            try testing.expectEqual(expected.ids.items.len, counts.answer);
            try testing.expect(drafts > 0 or counts.guessed == 0);
            reused += counts.reused;
        }
        try testing.expect(lanes < 9 or reused >= 1 + 15 + 29);
        try testing.expectEqual(0, (try batch.next(@constCast(&[1]Token{undefined}))).len);
    };
    ends.toggle(.complete);
    try testing.expectEqual(std.enums.values(generate.End).len, ends.count());
}

test "answers that must follow a schema do so beside others that need not, to the bit as alone" {
    const gpa = testing.allocator;
    var arena: std.heap.ArenaAllocator = .init(gpa);
    defer arena.deinit();
    const a = arena.allocator();
    const model = try test_model.make(a);
    const pool = try base.Pool.init(gpa, 2);
    defer pool.deinit();
    // 50 tokens: what JSON is made of, one end, and some with more than one byte.
    var texts: [50][]const u8 = @splat("");
    const pieces = [_][]const u8{ "{", "}", "[", "]", ",", ":", "\"", "\\", " ", "-", "0", "1", "2", "3", "a", "b", "true", "false", "nul", "l", ",\"", "\":", "},", "[[", ".5" };
    @memcpy(texts[1..][0..pieces.len], &pieces);
    var vocabulary: constraint_file.Vocabulary = try .init(gpa, &texts);
    defer vocabulary.deinit();
    var diag: base.Diagnostic = .{};
    var numbers: constraint_file.Constraint = try .fromJsonSchema(gpa, "{\"items\":{\"type\":\"number\"},\"minItems\":2,\"maxItems\":5}", &vocabulary, &diag);
    defer numbers.deinit();
    var names: constraint_file.Constraint = try .fromJsonSchema(gpa, "{\"properties\":{\"a\":{\"type\":\"string\",\"maxLength\":6},\"b\":{\"type\":[\"null\",\"boolean\"]}},\"required\":[\"b\"]}", &vocabulary, &diag);
    defer names.deinit();
    var integer: constraint_file.Constraint = try .fromJsonSchema(gpa, "{\"type\":\"integer\"}", &vocabulary, &diag);
    defer integer.deinit();

    var requests: [12]Request = undefined;
    for (&requests, 0..) |*request, i| request.* = .{
        .ids = &.{ 7, 8, 9 },
        .sampling = .{ .temperature = 1.5, .top_k = 0, .top_p = 1, .seed = i },
        .stop_ids = &.{0},
        .max_tokens = 60,
        .constraint = ([_]?*constraint_file.Constraint{ &numbers, &names, &integer, null })[i % 4],
    };
    var session: Session = try .init(gpa, &model, pool, 80);
    defer session.deinit();
    var batch: Batch = .init(gpa, &session);
    defer batch.deinit();
    var whole: usize = 0;
    for ([_]usize{ 0, 4 }) |drafts| {
        for (&requests) |*request| request.drafts = drafts;
        const together = try collect(a, &batch, &requests, 5);
        for (requests, together) |request, answer| {
            const alone = (try collect(a, &batch, &.{request}, 1))[0];
            try testing.expectEqualSlices(u32, alone.ids.items, answer.ids.items);
            try testing.expectEqual(alone.end, answer.end);
            if (request.constraint == null) continue;
            if (answer.end != .complete and answer.end != .stop_id) continue;
            var text: std.ArrayList(u8) = .empty;
            for (answer.ids.items) |id| try text.appendSlice(a, texts[id]);
            _ = try std.json.parseFromSliceLeaky(std.json.Value, a, text.items, .{});
            whole += 1;
        }
    }
    try testing.expect(whole >= 12);
}

test "requests that cannot be answered stop nothing else, and every failed allocation is survived" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const model = try test_model.make(arena.allocator());
    const pool = try base.Pool.init(testing.allocator, 1);
    defer pool.deinit();
    var session: Session = try .init(testing.allocator, &model, pool, 8);
    defer session.deinit();
    var batch: Batch = .init(testing.allocator, &session);
    defer batch.deinit();
    const sound: Request = .{ .ids = &.{ 1, 2 }, .sampling = .{ .temperature = 0 }, .max_tokens = 3 };
    var long = sound;
    long.ids = &.{ 1, 2, 3, 4, 5, 6, 7, 8, 9 };
    var strange = sound;
    strange.ids = &.{50};
    try testing.expectError(error.ContextFull, batch.start(&.{ sound, long }, 2));
    try testing.expectError(error.InvalidToken, batch.start(&.{ sound, strange }, 2));
    var room: [8]Token = undefined;
    try testing.expectEqual(0, (try batch.next(&room)).len);
    try batch.start(&.{ sound, sound }, 2);
    try testing.expectEqual(1, (try batch.next(&room)).len);

    try testing.checkAllAllocationFailures(testing.allocator, struct {
        fn run(gpa: Allocator, m: *const @import("model.zig").Model, p: *base.Pool, request: Request) !void {
            var own: Session = try .init(gpa, m, p, 8);
            defer own.deinit();
            var other: Batch = .init(gpa, &own);
            defer other.deinit();
            try other.start(&.{ request, request }, 2);
            var tokens: [4]Token = undefined;
            var count: usize = 0;
            while (true) {
                const found = try other.next(&tokens);
                if (found.len == 0) break;
                count += found.len;
            }
            try testing.expectEqual(8, count);
        }
    }.run, .{ &model, pool, sound });
}
