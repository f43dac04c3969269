//! Byte-pair merging: symbols of one piece are joined, best pair first, leftmost on ties, until none applies.
//!
//! Two kinds of rules give a pair its place: `Ranked` (a list of merges; the earlier the better) and `Scored` (the
//! score of the token the pair spells; the higher the better). Short pieces are scanned, long ones use a
//! heap, so the time is near-linear in the length of the piece; both give the same symbols.
//! Does not know: how text was cut, what becomes of a symbol without an id.

const std = @import("std");
/// A part of the piece: `piece[start..][0..len]`. `id` is null while no token has this text.
pub const Symbol = struct {
    id: ?u32,
    start: u32,
    len: u32,
    prev: u32 = none,
    next: u32 = none,
    /// Place of the pair that begins here; only the scan for short pieces keeps it.
    candidate: ?Candidate = null,

    const none = std.math.maxInt(u32);
};

/// A pair that may be joined. Smaller `place` goes first.
pub const Candidate = struct { place: u32, id: u32 };

/// Merges by rank: numbers are given out in the order of the ranks.
pub const Ranked = struct {
    numbers: std.AutoHashMapUnmanaged([2]u32, u32) = .empty,
    merges: []Merge = &.{},
    count: u32 = 0,

    pub const Merge = struct { left: u32, right: u32, id: u32, place: u32 };
    /// As many merges as there may be at most.
    pub const most = 1 << 23;

    /// Room for `count` merges, at most `most`.
    pub fn init(arena: std.mem.Allocator, count: usize) !Ranked {
        var self: Ranked = .{ .merges = try arena.alloc(Merge, count) };
        try self.numbers.ensureTotalCapacity(arena, @intCast(count));
        return self;
    }

    /// A pair that is there already gets the new place. Places only grow.
    pub fn put(self: *Ranked, left: u32, right: u32, candidate: Candidate) void {
        std.debug.assert(self.count == 0 or self.merges[self.count - 1].place < candidate.place);
        self.merges[self.count] = .{ .left = left, .right = right, .id = candidate.id, .place = candidate.place };
        self.numbers.putAssumeCapacity(.{ left, right }, self.count);
        self.count += 1;
    }

    pub fn pair(self: *const Ranked, piece: []const u8, left: Symbol, right: Symbol) ?Candidate {
        _ = piece;
        const number = self.numbers.get(.{ left.id orelse return null, right.id orelse return null }) orelse return null;
        return .{ .place = number, .id = self.merges[number].id };
    }
};

/// Merges by score: a pair joins when its text is a token.
pub const Scored = struct {
    ids: *const std.StringHashMapUnmanaged(u32),
    scores: []const f32,

    pub fn pair(self: *const Scored, piece: []const u8, left: Symbol, right: Symbol) ?Candidate {
        const id = self.ids.get(piece[left.start..][0 .. left.len + right.len]) orelse return null;
        return .{ .place = placeOf(self.scores[id]), .id = id };
    }

    /// Turns "higher score first" into "smaller place first" without losing a bit. The score is not NaN.
    fn placeOf(score: f32) u32 {
        const bits: u32 = @bitCast(score + 0.0); // -0 becomes +0: they are one score.
        const ascending = if (bits >> 31 == 1) ~bits else bits | 0x8000_0000;
        return ~ascending;
    }
};

const Waiting = struct { place: u32, left: u32, right: u32, len: u32, id: u32 };

fn before(_: void, a: Waiting, b: Waiting) std.math.Order {
    if (a.place != b.place) return std.math.order(a.place, b.place);
    return std.math.order(a.left, b.left);
}

/// Reused from piece to piece, so that a call allocates a handful of times and not once a word.
pub const Scratch = struct {
    symbols: std.ArrayList(Symbol) = .empty,
    queue: std.PriorityQueue(Waiting, void, before) = .initContext({}),
    /// Ids of the two symbols that were joined last.
    last: [2]u32 = .{ 0, 0 },

    pub fn deinit(self: *Scratch, gpa: std.mem.Allocator) void {
        self.symbols.deinit(gpa);
        self.queue.deinit(gpa);
    }
};

/// Pieces of at most this many symbols are scanned.
const scan_limit = 40;

/// Joins `scratch.symbols` in place; on return they are the symbols left, in order.
pub fn merge(rules: anytype, gpa: std.mem.Allocator, scratch: *Scratch, piece: []const u8) !void {
    if (scratch.symbols.items.len < 2) return;
    if (scratch.symbols.items.len <= scan_limit) return mergeByScan(rules, scratch, piece);
    return mergeByHeap(rules, gpa, scratch, piece);
}

fn mergeByScan(rules: anytype, scratch: *Scratch, piece: []const u8) void {
    const symbols = scratch.symbols.items;
    for (symbols[0 .. symbols.len - 1], symbols[1..]) |*left, right| left.candidate = rules.pair(piece, left.*, right);
    var len = symbols.len;
    symbols[len - 1].candidate = null;
    while (true) {
        var best: ?usize = null;
        for (symbols[0..len], 0..) |symbol, i| {
            const candidate = symbol.candidate orelse continue;
            if (best == null or candidate.place < symbols[best.?].candidate.?.place) best = i;
        }
        const i = best orelse break;
        scratch.last = .{ symbols[i].id orelse 0, symbols[i + 1].id orelse 0 };
        symbols[i].id = symbols[i].candidate.?.id;
        symbols[i].len += symbols[i + 1].len;
        std.mem.copyForwards(Symbol, symbols[i + 1 .. len - 1], symbols[i + 2 .. len]);
        len -= 1;
        symbols[i].candidate = if (i + 1 < len) rules.pair(piece, symbols[i], symbols[i + 1]) else null;
        if (i > 0) symbols[i - 1].candidate = rules.pair(piece, symbols[i - 1], symbols[i]);
    }
    scratch.symbols.items.len = len;
}

/// `merge` as it is done for long pieces.
pub fn mergeByHeap(rules: anytype, gpa: std.mem.Allocator, scratch: *Scratch, piece: []const u8) !void {
    const symbols = scratch.symbols.items;
    if (symbols.len < 2) return;
    const queue = &scratch.queue;
    queue.clearRetainingCapacity();
    try queue.ensureTotalCapacity(gpa, symbols.len);
    for (symbols, 0..) |*symbol, i| {
        symbol.prev = if (i == 0) Symbol.none else @intCast(i - 1);
        symbol.next = if (i + 1 == symbols.len) Symbol.none else @intCast(i + 1);
    }
    for (0..symbols.len - 1) |i| try offer(rules, gpa, queue, symbols, @intCast(i), piece);
    while (queue.pop()) |entry| {
        const left = &symbols[entry.left];
        const right = &symbols[entry.right];
        // A pair whose halves have changed since is out of date: a half only ever grows or goes.
        if (left.len == 0 or right.len == 0 or left.next != entry.right or left.len + right.len != entry.len) continue;
        scratch.last = .{ left.id orelse 0, right.id orelse 0 };
        left.id = entry.id;
        left.len = entry.len;
        left.next = right.next;
        right.len = 0;
        if (left.next != Symbol.none) {
            symbols[left.next].prev = entry.left;
            try offer(rules, gpa, queue, symbols, entry.left, piece);
        }
        if (left.prev != Symbol.none) try offer(rules, gpa, queue, symbols, left.prev, piece);
    }
    var len: usize = 0;
    for (symbols) |symbol| {
        if (symbol.len == 0) continue;
        symbols[len] = symbol;
        len += 1;
    }
    scratch.symbols.items.len = len;
}

fn offer(rules: anytype, gpa: std.mem.Allocator, queue: anytype, symbols: []const Symbol, left: u32, piece: []const u8) !void {
    const right = symbols[left].next;
    const candidate = rules.pair(piece, symbols[left], symbols[right]) orelse return;
    try queue.push(gpa, .{ .place = candidate.place, .left = left, .right = right, .len = symbols[left].len + symbols[right].len, .id = candidate.id });
}

test "the scan and the heap agree on random rules" {
    const gpa = std.testing.allocator;
    var prng: std.Random.DefaultPrng = .init(3);
    const random = prng.random();
    for (0..200) |_| {
        var rules: Ranked = try .init(gpa, 30);
        defer {
            rules.numbers.deinit(gpa);
            gpa.free(rules.merges);
        }

        for (0..30) |rank| rules.put(random.uintLessThan(u32, 12), random.uintLessThan(u32, 12), .{ .place = @intCast(rank), .id = random.intRangeLessThan(u32, 4, 12) });
        var first: Scratch = .{};
        defer first.deinit(gpa);
        var second: Scratch = .{};
        defer second.deinit(gpa);

        for (0..random.intRangeLessThan(usize, 2, 60)) |i| {
            const symbol: Symbol = .{ .id = random.uintLessThan(u32, 4), .start = @intCast(i), .len = 1 };
            try first.symbols.append(gpa, symbol);
            try second.symbols.append(gpa, symbol);
        }
        mergeByScan(&rules, &first, "");
        try mergeByHeap(&rules, gpa, &second, "");
        try std.testing.expectEqual(first.symbols.items.len, second.symbols.items.len);
        for (first.symbols.items, second.symbols.items) |a, b| {
            try std.testing.expectEqual(a.id, b.id);
            try std.testing.expectEqual(a.start, b.start);
        }
    }
}

test "a higher score has an earlier place" {
    const scores = [_]f32{ 5.0, 0.0, -1.5, -2.0, -1e9 };
    for (scores[0 .. scores.len - 1], scores[1..]) |high, low| try std.testing.expect(Scored.placeOf(high) < Scored.placeOf(low));
    try std.testing.expectEqual(Scored.placeOf(0.0), Scored.placeOf(-0.0));
}
