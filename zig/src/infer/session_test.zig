//! What a session promises: the same bits however ids come, rewinding, windows, scores, and what is refused.

const std = @import("std");
const base = @import("base");
const model_file = @import("model.zig");
const session_file = @import("session.zig");
const Model = model_file.Model;
const Session = session_file.Session;
const block_tokens = session_file.block_tokens;
const Allocator = std.mem.Allocator;
const testing = std.testing;
const test_model = @import("test_model.zig");

fn randomIds(out: []u32, seed: u64) void {
    var prng: base.Prng = .init(seed);
    for (out) |*id| id.* = @intCast(prng.below(test_model.config.vocab_size));
}

test "any number of threads gives the same bits, and blocks agree with single steps" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const model = try test_model.make(arena.allocator());
    var ids: [block_tokens + 13]u32 = undefined;
    randomIds(&ids, 1);

    var first: ?[]f32 = null;
    for ([_]usize{ 1, 2, 3, 7 }) |n| {
        const pool = try base.Pool.init(testing.allocator, n);
        defer pool.deinit();
        var session: Session = try .init(testing.allocator, &model, pool, block_tokens + 20);
        defer session.deinit();

        const logits = try session.prefill(&ids);
        if (first) |expected| {
            try testing.expectEqualSlices(f32, expected, logits);
        } else first = try arena.allocator().dupe(f32, logits);

        session.rewind(0);
        for (ids) |id| _ = try session.step(id);
        for (first.?, session.logits) |a, b| try testing.expectApproxEqAbs(a, b, 1e-5);
    }
}

test "after a rewind the cache forgets what came behind" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const model = try test_model.make(arena.allocator());
    const pool = try base.Pool.init(testing.allocator, 2);
    defer pool.deinit();
    var session: Session = try .init(testing.allocator, &model, pool, 64);
    defer session.deinit();

    try session.feed(&.{ 1, 2, 3, 4 });
    const wanted = try arena.allocator().dupe(f32, try session.prefill(&.{ 5, 6 }));
    try session.feed(&.{ 7, 8, 9 });
    try testing.expectEqual(@as(usize, 4), session.commonPrefix(&.{ 1, 2, 3, 4, 9 }));
    try testing.expectEqual(@as(usize, 2), session.commonPrefix(&.{ 1, 2 }));
    session.rewind(4);
    try testing.expectEqualSlices(f32, wanted, try session.prefill(&.{ 5, 6 }));
    try testing.expectEqual(@as(usize, 6), session.position());
}

test "what is fed or stepped has the same bits however many ids go at once, and whichever sessions step together" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const a = arena.allocator();
    const model = try test_model.make(a);
    const pool = try base.Pool.init(testing.allocator, 3);
    defer pool.deinit();
    const vocab: usize = test_model.config.vocab_size;
    var session: Session = try .init(testing.allocator, &model, pool, 700);
    defer session.deinit();
    var ids: [600]u32 = undefined;
    randomIds(&ids, 4);

    const whole = try a.dupe(f32, try session.prefill(&ids));
    try testing.expectEqual(ids.len, session.fed);
    for ([_]usize{ 1, 7, 8, 300, 512, 599 }) |cut| {
        session.rewind(0);
        try session.feed(ids[0..cut]);
        try testing.expectEqualSlices(f32, whole, try session.prefill(ids[cut..]));
    }

    const rows = try a.alloc(f32, 550 * vocab);
    session.rewind(50);
    try session.prefillAll(ids[50..], rows);
    try testing.expectEqualSlices(f32, whole, rows[549 * vocab ..]);
    session.rewind(0);
    try testing.expectEqualSlices(f32, try session.prefill(ids[0..52]), rows[vocab..][0..vocab]);
    try session.feed(ids[52..100]);

    var singly: std.ArrayList(f32) = .empty;
    for (ids[100..120]) |id| try singly.appendSlice(a, try session.step(id));
    try testing.expectEqual(@as(usize, 100), session.fed);
    const room = try a.alloc(f32, 20 * vocab);
    for ([_]usize{ 20, 11, 2 }) |together| {
        session.rewind(100);
        var done: usize = 0;
        while (done < 20) : (done += together) {
            const n = @min(together, 20 - done);
            const same: [20]*Session = @splat(&session);
            try session.stepLanes(same[0..n], ids[100 + done ..][0..n], room[0 .. n * vocab]);
            try testing.expectEqualSlices(f32, singly.items[done * vocab ..][0 .. n * vocab], room[0 .. n * vocab]);
        }
    }

    // Three sessions at three places, one of them this one.
    var forks: [2]Session = undefined;
    for (&forks) |*one| one.* = try session.fork();
    defer for (&forks) |*one| one.deinit();
    const lanes = [_]*Session{ &forks[1], &forks[1], &session, &forks[0] };
    session.rewind(100);
    for (&forks) |*one| one.copyFed(&session, 100);
    for (ids[100..103]) |id| _ = try forks[0].step(id);
    session.rewind(40);
    for (0..5) |i| {
        const given = [_]u32{ ids[100 + 2 * i], ids[101 + 2 * i], ids[40 + i], ids[103 + i] };
        try session.stepLanes(&lanes, &given, room[0 .. 4 * vocab]);
        try testing.expectEqualSlices(f32, singly.items[2 * i * vocab ..][0 .. 2 * vocab], room[0 .. 2 * vocab]);
        try testing.expectEqualSlices(f32, singly.items[(3 + i) * vocab ..][0..vocab], room[3 * vocab ..][0..vocab]);
    }
    const last = room[2 * vocab ..][0..vocab];
    session.rewind(40);
    for (ids[40..45]) |id| _ = try session.step(id);
    try testing.expectEqualSlices(f32, session.logits, last);
    try testing.expectEqual(@as(usize, 40), session.fed);
    try testing.expectEqualSlices(u32, ids[0..110], forks[1].ids.items);
    try testing.expectError(error.InvalidToken, session.stepLanes(&lanes, &.{ 1, 50, 1, 1 }, room[0 .. 4 * vocab]));
    try testing.expectEqual(@as(usize, 45), session.position());
}

test "layers with a window keep little, and sessions go back before it with the same bits" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const a = arena.allocator();
    const model = try test_model.makeOf(a, test_model.mixture_config);
    const pool = try base.Pool.init(testing.allocator, 2);
    defer pool.deinit();
    const vocab: usize = model.config.vocab_size;
    var session: Session = try .init(testing.allocator, &model, pool, 4000);
    defer session.deinit();
    // The same with room for everything.
    var whole: Session = try .init(testing.allocator, &model, pool, 1400);
    defer whole.deinit();
    try testing.expect(session.cache.shape.window_rows > 0 and whole.cache.shape.window_rows == 0);
    // Ids up to 1100 are fed, those behind them stepped.
    const fed = 1100;
    const ids = try a.alloc(u32, 1400);
    randomIds(ids, 6);
    const seen = try a.alloc(f32, ids.len * vocab);
    try whole.feed(ids[0..fed]);
    for (ids[fed..], fed..) |id, t| @memcpy(seen[t * vocab ..][0..vocab], try whole.step(id));
    try session.feed(ids[0..fed]);
    for (ids[fed..], fed..) |id, t| try testing.expectEqualSlices(f32, seen[t * vocab ..][0..vocab], try session.step(id));
    for (0..2) |_| try session.feed(ids[0..600]);
    try testing.expect(session.cache.first > 1200);

    // Back to among the stepped ones, to what is fed, and to the beginning of it all.
    session.rewind(1200);
    try testing.expectEqual(.{ 1200, fed }, .{ session.position(), session.fed });
    for (ids[1200..1220], 1200..) |id, t| try testing.expectEqualSlices(f32, seen[t * vocab ..][0..vocab], try session.step(id));
    try testing.expectEqualSlices(u32, ids[0..1220], session.ids.items);
    _ = try session.prefill(ids[0..1100]);
    var fork = try session.fork();
    defer fork.deinit();
    fork.copyFed(&session, 40);
    whole.rewind(40);
    try testing.expectEqualSlices(f32, try whole.prefill(ids[50..90]), try fork.prefill(ids[50..90]));
    session.rewind(0);
    whole.rewind(0);
    try testing.expectEqualSlices(f32, try whole.prefill(ids[3..9]), try session.prefill(ids[3..9]));
}

test "ids beyond the vocabulary or the context change nothing" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const model = try test_model.make(arena.allocator());
    const pool = try base.Pool.init(testing.allocator, 1);
    defer pool.deinit();
    var session: Session = try .init(testing.allocator, &model, pool, 4);
    defer session.deinit();

    try session.feed(&.{ 1, 2 });
    try testing.expectError(error.InvalidToken, session.feed(&.{ 3, 50 }));
    try testing.expectError(error.ContextFull, session.feed(&.{ 3, 4, 5 }));
    try testing.expectEqual(@as(usize, 2), session.position());
    _ = try session.prefill(&.{ 3, 4 });
    try testing.expectError(error.ContextFull, session.step(5));
}

test "scores are the log-softmax of the logits that single steps give, over borders of blocks" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const model = try test_model.make(arena.allocator());
    const pool = try base.Pool.init(testing.allocator, 2);
    defer pool.deinit();
    var session: Session = try .init(testing.allocator, &model, pool, block_tokens + 40);
    defer session.deinit();

    const vocab: usize = test_model.config.vocab_size;
    var ids: [block_tokens + Session.score_rows + 4]u32 = undefined;
    randomIds(&ids, 3);
    const n = ids.len - 1;
    const room = try arena.allocator().alloc(f32, Session.score_rows * vocab);
    var scores: [n]f64 = undefined;
    var likeliest: [n]bool = undefined;
    try session.logProbs(ids[0..n], ids[1..], room, &scores, &likeliest);
    try testing.expectEqual(n, session.position());
    session.rewind(0);
    var hits: usize = 0;
    for (ids[0..n], ids[1..], scores, likeliest) |id, target, score, best| {
        const logits = try session.step(id);
        var sum: f64 = 0;
        for (logits) |x| sum += @exp(@as(f64, x));
        try testing.expectApproxEqAbs(@as(f64, logits[target]) - @log(sum), score, 1e-5);
        try testing.expectEqual(std.mem.max(f32, logits) == logits[target], best);
        hits += @intFromBool(best);
    }
    try testing.expect(hits < n);
    try testing.expectError(error.InvalidToken, session.logProbs(&.{1}, &.{50}, room, scores[0..1], likeliest[0..1]));
    try testing.expectEqual(n, session.position());
    @constCast(model.final_norm)[0] = std.math.nan(f32);
    try testing.expectError(error.BadLogits, session.logProbs(&.{1}, &.{2}, room, scores[0..1], likeliest[0..1]));
}

test "every allocation failure of a session is survived" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const model = try test_model.make(arena.allocator());
    const pool = try base.Pool.init(testing.allocator, 1);
    defer pool.deinit();
    try testing.checkAllAllocationFailures(testing.allocator, struct {
        fn run(gpa: Allocator, m: *const Model, p: *base.Pool) !void {
            var session: Session = try .init(gpa, m, p, 8);
            defer session.deinit();
            var other = try session.fork();
            other.deinit();
        }
    }.run, .{ &model, pool });
}
