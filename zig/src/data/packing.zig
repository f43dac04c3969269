//! Which rows share a packed row, as TRL's `pack_dataset` has it.
//!
//! Definition, so that anyone can pack again. Rows are taken in groups of `group_rows` in the order of the file; no bin has
//! tokens of two groups. Empty rows are left out.
//! `bfd`, best fit, the longest first: each row keeps its first `capacity` tokens. The longest goes first (of equal ones the
//! earlier) into the bin with the least room that still holds it; of bins with the same room the one that has had it longest
//! is taken; when none holds it, a new bin begins. Bins stand in the order in which they began, the rows of a bin in the
//! order in which they came.
//! `bfd_split`: the same, but a longer row is cut into pieces of `capacity` tokens and a shorter rest, all of which are packed.
//! `wrapped`: a group's tokens are one text, cut every `capacity` tokens; the last bin of a group may be shorter.
//! Nothing here is random. Does not know: tokens, masks, batches.

const std = @import("std");
const base = @import("base");
const Allocator = std.mem.Allocator;

/// Rows that are packed together: those of one batch of `datasets.map`, in which TRL packs.
pub const group_rows = 1000;

pub const Strategy = enum {
    /// Each row is a sequence of its own.
    none,
    /// Rows share a sequence, best fit, the longest first; what is longer loses its end.
    bfd,
    /// The same; what is longer is packed in pieces.
    bfd_split,
    /// Rows are one text, cut into full sequences; they see each other.
    wrapped,
};

/// Tokens of one row, from `from` on: as many as the row has left, at most the capacity.
pub const Piece = struct { row: u32, from: u32 = 0 };

pub const PackError = error{
    /// More pieces or bins than 2³² − 1, or a row to be split that is longer than that.
    TooManyPieces,
    OutOfMemory,
};

pub const Bins = struct {
    /// Bin by bin.
    pieces: []const Piece,
    /// Bin b is pieces[starts[b]..starts[b + 1]]; one entry more than bins.
    starts: []const u32,

    pub fn deinit(self: *Bins, gpa: Allocator) void {
        gpa.free(self.starts);
        gpa.free(self.pieces);
        self.* = undefined;
    }

    pub fn count(self: *const Bins) usize {
        return self.starts.len - 1;
    }

    pub fn bin(self: *const Bins, index: usize) []const Piece {
        return self.pieces[self.starts[index]..self.starts[index + 1]];
    }
};

pub const Overflow = enum { cut, split };

/// Bins for rows of these lengths, at most 2³² − 1 of them. `lengths.of(row)` is asked for 0 to `row_count` − 1.
/// Capacity is at least 1.
pub fn bestFit(gpa: Allocator, lengths: anytype, row_count: usize, capacity: usize, overflow: Overflow) PackError!Bins {
    var pieces: std.ArrayList(Piece) = .empty;
    errdefer pieces.deinit(gpa);
    var starts: std.ArrayList(u32) = .empty;
    errdefer starts.deinit(gpa);
    var group: Group = .{ .capacity = capacity };
    defer group.deinit(gpa);

    try starts.append(gpa, 0);
    var at: usize = 0;
    while (at < row_count) : (at += group_rows) {
        try group.fill(gpa, lengths, at, @min(group_rows, row_count - at), overflow);
        if (pieces.items.len + group.items.items.len > std.math.maxInt(u32)) return error.TooManyPieces;
        try pieces.ensureUnusedCapacity(gpa, group.items.items.len);
        try starts.ensureUnusedCapacity(gpa, group.bins.items.len);
        for (group.bins.items) |bin| {
            var next = bin.first;
            while (next != none) : (next = group.items.items[next].after) pieces.appendAssumeCapacity(group.items.items[next].piece);
            starts.appendAssumeCapacity(@intCast(pieces.items.len));
        }
    }
    const all = try pieces.toOwnedSlice(gpa);
    errdefer gpa.free(all);
    return .{ .pieces = all, .starts = try starts.toOwnedSlice(gpa) };
}

/// Sequences of `wrapped`: which tokens of the file each is.
pub const Runs = struct {
    capacity: usize,
    /// Group g is tokens[tokens[g]..tokens[g + 1]] of the file and begins with run first[g].
    tokens: []const u64,
    first: []const u32,

    pub const Run = struct { start: usize, len: usize };

    pub fn deinit(self: *Runs, gpa: Allocator) void {
        gpa.free(self.first);
        gpa.free(self.tokens);
        self.* = undefined;
    }

    pub fn count(self: *const Runs) usize {
        return self.first[self.first.len - 1];
    }

    pub fn run(self: *const Runs, index: usize) Run {
        // The last group that begins at or before it; groups without tokens begin where the next does.
        const group = std.sort.upperBound(u32, self.first, @as(u32, @intCast(index)), struct {
            fn order(wanted: u32, first: u32) std.math.Order {
                return std.math.order(wanted, first);
            }
        }.order) - 1;
        const start = self.tokens[group] + @as(u64, index - self.first[group]) * self.capacity;
        return .{ .start = @intCast(start), .len = @intCast(@min(self.capacity, self.tokens[group + 1] - start)) };
    }
};

/// Runs over rows that begin at `rows.start(row)`; `rows.start(row_count)` is the end of the last.
pub fn wrap(gpa: Allocator, rows: anytype, row_count: usize, capacity: usize) PackError!Runs {
    const groups = std.math.divCeil(usize, row_count, group_rows) catch unreachable; // never 0
    const tokens = try gpa.alloc(u64, groups + 1);
    errdefer gpa.free(tokens);
    const first = try gpa.alloc(u32, groups + 1);
    errdefer gpa.free(first);

    var runs: u64 = 0;
    for (tokens, first, 0..) |*token, *f, g| {
        token.* = rows.start(@min(g * group_rows, row_count));
        if (g > 0) runs += std.math.divCeil(u64, token.* - tokens[g - 1], capacity) catch unreachable; // never 0
        f.* = std.math.cast(u32, runs) orelse return error.TooManyPieces;
    }
    return .{ .capacity = capacity, .tokens = tokens, .first = first };
}

const none: u32 = std.math.maxInt(u32);

/// One group's work; its lists are used again for the next.
const Group = struct {
    capacity: usize,
    /// The longest first, and which follows each in its bin.
    items: std.ArrayList(Item) = .empty,
    bins: std.ArrayList(Bin) = .empty,
    /// Bins with room, the least first; of the same room the earliest that came to it first.
    open: std.ArrayList(Open) = .empty,

    const Item = struct { piece: Piece, length: usize, after: u32 };
    const Bin = struct { first: u32, last: u32 };
    const Open = struct { room: usize, bin: u32 };

    fn deinit(self: *Group, gpa: Allocator) void {
        self.open.deinit(gpa);
        self.bins.deinit(gpa);
        self.items.deinit(gpa);
    }

    fn fill(self: *Group, gpa: Allocator, lengths: anytype, first_row: usize, considered: usize, overflow: Overflow) PackError!void {
        self.items.clearRetainingCapacity();
        self.bins.clearRetainingCapacity();
        self.open.clearRetainingCapacity();
        for (first_row..first_row + considered) |row| {
            const whole: usize = lengths.of(row);
            const length = if (overflow == .cut) @min(whole, self.capacity) else whole;
            if (length > std.math.maxInt(u32) and overflow == .split) return error.TooManyPieces;
            var from: usize = 0;
            while (from < length) : (from += self.capacity) try self.items.append(gpa, .{
                .piece = .{ .row = @intCast(row), .from = @intCast(from) },
                .length = @min(length - from, self.capacity),
                .after = none,
            });
        }
        if (self.items.items.len >= none) return error.TooManyPieces;
        std.mem.sort(Item, self.items.items, {}, struct { // Keeps the order of equal ones.
            fn longer(_: void, a: Item, b: Item) bool {
                return a.length > b.length;
            }
        }.longer);
        try self.bins.ensureTotalCapacity(gpa, self.items.items.len);
        try self.open.ensureTotalCapacity(gpa, self.items.items.len);
        for (0..self.items.items.len) |i| self.place(@intCast(i));
    }

    fn place(self: *Group, i: u32) void {
        const length = self.items.items[i].length;
        const found = self.firstWithRoom(length);
        if (found == self.open.items.len) {
            const bin: u32 = @intCast(self.bins.items.len);
            self.bins.appendAssumeCapacity(.{ .first = i, .last = i });
            self.keepOpen(.{ .room = self.capacity - length, .bin = bin });
            return;
        }
        const chosen = self.open.orderedRemove(found);
        const bin = &self.bins.items[chosen.bin];
        self.items.items[bin.last].after = i;
        bin.last = i;
        self.keepOpen(.{ .room = chosen.room - length, .bin = chosen.bin });
    }

    fn keepOpen(self: *Group, entry: Open) void {
        if (entry.room == 0) return;
        // Behind those of the same room.
        self.open.insertAssumeCapacity(self.firstWithRoom(entry.room + 1), entry);
    }

    fn firstWithRoom(self: *const Group, room: usize) usize {
        var low: usize = 0;
        var high = self.open.items.len;
        while (low < high) {
            const middle = (low + high) / 2;
            if (self.open.items[middle].room < room) low = middle + 1 else high = middle;
        }
        return low;
    }
};

const testing = std.testing;

const Given = struct {
    lengths: []const usize,

    pub fn of(self: Given, row: usize) usize {
        return self.lengths[row];
    }
};

fn pack(gpa: Allocator, lengths: []const usize, capacity: usize) !Bins {
    return bestFit(gpa, Given{ .lengths = lengths }, lengths.len, capacity, .cut);
}

fn expectBin(expected: []const u32, bins: *const Bins, index: usize) !void {
    const bin = bins.bin(index);
    try testing.expectEqual(expected.len, bin.len);
    for (expected, bin) |row, piece| try testing.expectEqual(Piece{ .row = row }, piece);
}

test "the example of TRL's own documentation" {
    var bins = try pack(testing.allocator, &.{ 5, 2, 3, 1 }, 4);
    defer bins.deinit(testing.allocator);

    try testing.expectEqual(3, bins.count());
    try expectBin(&.{0}, &bins, 0);
    try expectBin(&.{ 2, 3 }, &bins, 1);
    try expectBin(&.{1}, &bins, 2);
    var split = try bestFit(testing.allocator, Given{ .lengths = &.{ 5, 2, 3, 1 } }, 4, 4, .split);
    defer split.deinit(testing.allocator);

    try testing.expectEqual(3, split.count());
    try expectBin(&.{0}, &split, 0);
    try testing.expectEqualSlices(Piece, &.{ .{ .row = 2 }, .{ .row = 0, .from = 4 } }, split.bin(1));
    try expectBin(&.{ 1, 3 }, &split, 2);
}

test "equal rows keep their order, and of bins with the same room the first that had it is taken" {
    // 6 6 6 leave room 4 three times; 4 fills bin 0, the first 2 goes to bin 1.
    var bins = try pack(testing.allocator, &.{ 2, 6, 2, 6, 0, 2, 6, 4, 2 }, 10);
    defer bins.deinit(testing.allocator);

    try testing.expectEqual(3, bins.count());
    try expectBin(&.{ 1, 7 }, &bins, 0);
    // Then bin 1 has room 2, which is the least that holds the next 2.
    try expectBin(&.{ 3, 0, 2 }, &bins, 1);
    try expectBin(&.{ 6, 5, 8 }, &bins, 2);
}

test "no bin spans two groups, and no rows give no bin" {
    const lengths: [group_rows + 2]usize = @splat(1);
    var bins = try pack(testing.allocator, &lengths, 5000);
    defer bins.deinit(testing.allocator);

    try testing.expectEqual(2, bins.count());
    try testing.expectEqual(group_rows, bins.bin(0).len);
    try expectBin(&.{ group_rows, group_rows + 1 }, &bins, 1);
    var empty = try pack(testing.allocator, &.{ 0, 0 }, 3);
    defer empty.deinit(testing.allocator);

    try testing.expectEqual(0, empty.count());
}

/// The definition with a list for each room, as TRL writes it, for rows of one group.
fn naiveGroup(arena: Allocator, lengths: []const usize, capacity: usize) ![]const []const u32 {
    var bins: std.ArrayList(std.ArrayList(u32)) = .empty;
    const queues = try arena.alloc(std.ArrayList(usize), capacity + 1);
    for (queues) |*q| q.* = .empty;
    var length = capacity;
    while (length > 0) : (length -= 1) for (lengths, 0..) |given, row| {
        if (@min(given, capacity) != length) continue;
        var room = length;
        while (room < capacity and queues[room].items.len == 0) room += 1;
        const bin = if (room < capacity) queues[room].orderedRemove(0) else new: {
            try bins.append(arena, .empty);
            break :new bins.items.len - 1;
        };
        try bins.items[bin].append(arena, @intCast(row));
        if (room > length) try queues[room - length].append(arena, bin);
    };
    const all = try arena.alloc([]const u32, bins.items.len);
    for (all, bins.items) |*slice, list| slice.* = list.items;
    return all;
}

fn naive(arena: Allocator, lengths: []const usize, capacity: usize) ![]const []const u32 {
    var all: std.ArrayList([]const u32) = .empty;
    var at: usize = 0;
    while (at < lengths.len) : (at += group_rows) {
        for (try naiveGroup(arena, lengths[at..@min(at + group_rows, lengths.len)], capacity)) |bin| {
            const rows = try arena.dupe(u32, bin);
            for (rows) |*row| row.* += @intCast(at);
            try all.append(arena, rows);
        }
    }
    return all.items;
}

test "random rows are packed as the definition says, every row once, no bin too full" {
    var prng: base.Prng = .init(23);
    for (0..40) |round| {
        var arena: std.heap.ArenaAllocator = .init(testing.allocator);
        defer arena.deinit();

        const lengths = try arena.allocator().alloc(usize, @intCast(prng.below(if (round % 8 == 0) 2500 else 60)));
        const capacity: usize = @intCast(1 + prng.below(40));
        for (lengths) |*l| l.* = @intCast(prng.below(1 + prng.below(50)));
        var bins = try pack(testing.allocator, lengths, capacity);
        defer bins.deinit(testing.allocator);

        const expected = try naive(arena.allocator(), lengths, capacity);
        try testing.expectEqual(expected.len, bins.count());
        var rows: usize = 0;
        for (expected, 0..) |want, b| {
            try expectBin(want, &bins, b);
            var tokens: usize = 0;
            for (want) |row| tokens += @min(lengths[row], capacity);
            try testing.expect(tokens <= capacity and tokens > 0);
            rows += want.len;
        }
        var not_empty: usize = 0;
        for (lengths) |l| not_empty += @intFromBool(l > 0);
        try testing.expectEqual(not_empty, rows);
    }
}

test "a longer row is split into full pieces and a rest, which is packed as a row of that length is" {
    var prng: base.Prng = .init(41);
    for (0..40) |round| {
        var arena: std.heap.ArenaAllocator = .init(testing.allocator);
        defer arena.deinit();

        const lengths = try arena.allocator().alloc(usize, @intCast(prng.below(if (round % 8 == 0) 2100 else 60)));
        const capacity: usize = @intCast(1 + prng.below(20));
        for (lengths) |*l| l.* = @intCast(prng.below(1 + prng.below(90)));
        var bins = try bestFit(testing.allocator, Given{ .lengths = lengths }, lengths.len, capacity, .split);
        defer bins.deinit(testing.allocator);

        // Group by group, what the pieces would be as rows of their own.
        var bin: usize = 0;
        var at: usize = 0;
        while (at < lengths.len) : (at += group_rows) {
            var parts: std.ArrayList(usize) = .empty;
            var pieces: std.ArrayList(Piece) = .empty;
            for (lengths[at..@min(at + group_rows, lengths.len)], at..) |length, row| {
                var from: usize = 0;
                while (from < length) : (from += capacity) {
                    try parts.append(arena.allocator(), @min(capacity, length - from));
                    try pieces.append(arena.allocator(), .{ .row = @intCast(row), .from = @intCast(from) });
                }
            }
            for (try naiveGroup(arena.allocator(), parts.items, capacity)) |want| {
                try testing.expectEqual(want.len, bins.bin(bin).len);
                for (want, bins.bin(bin)) |part, piece| try testing.expectEqual(pieces.items[part], piece);
                bin += 1;
            }
        }
        try testing.expectEqual(bin, bins.count());
    }
}

const GivenStarts = struct {
    starts: []const u64,

    pub fn start(self: GivenStarts, row: usize) u64 {
        return self.starts[row];
    }
};

test "wrapped cuts each group's tokens, and no others, into full runs and a rest" {
    var prng: base.Prng = .init(5);
    for (0..60) |round| {
        const rows: usize = @intCast(prng.below(if (round % 4 == 0) 3100 else 30));
        const starts = try testing.allocator.alloc(u64, rows + 1);
        defer testing.allocator.free(starts);
        starts[0] = 0;
        const sparse = prng.below(6) == 0;
        for (starts[1..], starts[0..rows]) |*s, before| s.* = before + (if (sparse) 0 else prng.below(30));
        const capacity: usize = @intCast(1 + prng.below(50));
        var runs = try wrap(testing.allocator, GivenStarts{ .starts = starts }, rows, capacity);
        defer runs.deinit(testing.allocator);

        var seen: usize = 0;
        var at: usize = 0;
        while (at < rows) : (at += group_rows) {
            var start: usize = @intCast(starts[at]);
            const end: usize = @intCast(starts[@min(at + group_rows, rows)]);
            while (start < end) : (seen += 1) {
                const want: Runs.Run = .{ .start = start, .len = @min(capacity, end - start) };
                try testing.expectEqual(want, runs.run(seen));
                start += want.len;
            }
        }
        try testing.expectEqual(seen, runs.count());
    }
}

test "running out of memory anywhere leaks nothing" {
    try testing.checkAllAllocationFailures(testing.allocator, struct {
        fn run(gpa: Allocator) !void {
            var bins = try bestFit(gpa, Given{ .lengths = &.{ 1, 2, 3, 4 } }, 4, 5, .split);
            bins.deinit(gpa);
            var runs = try wrap(gpa, GivenStarts{ .starts = &.{ 0, 1, 3 } }, 2, 2);
            runs.deinit(gpa);
        }
    }.run, .{});
}
