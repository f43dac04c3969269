//! Which rows share a packed row: best fit, the longest first, as TRL's `bfd` has it.
//!
//! Definition, so that anyone can pack again. Rows are taken in groups of `group_rows` in the order of the file; no bin has
//! rows of two groups. In a group each row keeps its first `capacity` tokens and empty rows are left out. The longest row
//! goes first (of equal ones the earlier) into the bin with the least room that still holds it; of bins with the same room
//! the one that has had it longest is taken; when none holds it, a new bin begins. Bins stand in the order in which they
//! began, the rows of a bin in the order in which they came. Nothing here is random.
//! Does not know: tokens, masks, batches.

const std = @import("std");
const base = @import("base");
const Allocator = std.mem.Allocator;

/// Rows that are packed together: those of one batch of `datasets.map`, in which TRL packs.
pub const group_rows = 1000;

pub const Bins = struct {
    /// Row numbers, bin by bin.
    rows: []const u32,
    /// Bin b is rows[starts[b]..starts[b + 1]]; one entry more than bins.
    starts: []const u32,

    pub fn deinit(self: *Bins, gpa: Allocator) void {
        gpa.free(self.starts);
        gpa.free(self.rows);
        self.* = undefined;
    }

    pub fn count(self: *const Bins) usize {
        return self.starts.len - 1;
    }

    pub fn bin(self: *const Bins, index: usize) []const u32 {
        return self.rows[self.starts[index]..self.starts[index + 1]];
    }
};

/// Bins for rows of these lengths, at most 2³² − 1 of them. `lengths.of(row)` is asked for 0 to `row_count` − 1.
/// Capacity is at least 1.
pub fn bestFit(gpa: Allocator, lengths: anytype, row_count: usize, capacity: usize) error{OutOfMemory}!Bins {
    var rows: std.ArrayList(u32) = .empty;
    errdefer rows.deinit(gpa);
    var starts: std.ArrayList(u32) = .empty;
    errdefer starts.deinit(gpa);

    try starts.append(gpa, 0);
    var group: Group = .{ .capacity = capacity };
    var at: usize = 0;
    while (at < row_count) : (at += group.considered) {
        group.fill(lengths, at, @min(group_rows, row_count - at));
        try rows.ensureUnusedCapacity(gpa, group.row_count);
        try starts.ensureUnusedCapacity(gpa, group.bin_count);
        for (0..group.bin_count) |b| {
            var next = group.bin_first[b];
            while (next != none) : (next = group.items[next].after) rows.appendAssumeCapacity(group.items[next].row);
            starts.appendAssumeCapacity(@intCast(rows.items.len));
        }
    }
    const all_rows = try rows.toOwnedSlice(gpa);
    errdefer gpa.free(all_rows);
    return .{ .rows = all_rows, .starts = try starts.toOwnedSlice(gpa) };
}

const none: u16 = std.math.maxInt(u16);

const Group = struct {
    capacity: usize,
    /// Rows of the file in this group.
    considered: usize = 0,
    /// Rows that are not empty, the longest first, and which follows each in its bin.
    row_count: usize = 0,
    items: [group_rows]Item = undefined,
    bin_count: usize = 0,
    bin_first: [group_rows]u16 = undefined,
    bin_last: [group_rows]u16 = undefined,
    /// Bins with room, the least first; of the same room the earliest that came to it first.
    open_count: usize = 0,
    open: [group_rows]Open = undefined,

    const Item = struct { row: u32, length: usize, after: u16 };
    const Open = struct { room: usize, bin: u16 };

    fn fill(self: *Group, lengths: anytype, first_row: usize, considered: usize) void {
        self.considered = considered;
        self.row_count = 0;
        self.bin_count = 0;
        self.open_count = 0;
        for (first_row..first_row + considered) |row| {
            const length = @min(lengths.of(row), self.capacity);
            if (length == 0) continue;
            self.items[self.row_count] = .{ .row = @intCast(row), .length = length, .after = none };
            self.row_count += 1;
        }
        std.mem.sort(Item, self.items[0..self.row_count], {}, struct { // Keeps the order of equal ones.
            fn longer(_: void, a: Item, b: Item) bool {
                return a.length > b.length;
            }
        }.longer);
        for (0..self.row_count) |i| self.place(@intCast(i));
    }

    fn place(self: *Group, i: u16) void {
        const length = self.items[i].length;
        const found = self.firstWithRoom(length);
        if (found == self.open_count) {
            const bin: u16 = @intCast(self.bin_count);
            self.bin_count += 1;
            self.bin_first[bin] = i;
            self.bin_last[bin] = i;
            self.keepOpen(.{ .room = self.capacity - length, .bin = bin });
            return;
        }
        const chosen = self.open[found];
        self.open_count -= 1;
        std.mem.copyForwards(Open, self.open[found..self.open_count], self.open[found + 1 .. self.open_count + 1]);
        self.items[self.bin_last[chosen.bin]].after = i;
        self.bin_last[chosen.bin] = i;
        self.keepOpen(.{ .room = chosen.room - length, .bin = chosen.bin });
    }

    fn keepOpen(self: *Group, entry: Open) void {
        if (entry.room == 0) return;
        const at = self.firstWithRoom(entry.room + 1); // Behind those of the same room.
        std.mem.copyBackwards(Open, self.open[at + 1 .. self.open_count + 1], self.open[at..self.open_count]);
        self.open[at] = entry;
        self.open_count += 1;
    }

    fn firstWithRoom(self: *const Group, room: usize) usize {
        var low: usize = 0;
        var high = self.open_count;
        while (low < high) {
            const middle = (low + high) / 2;
            if (self.open[middle].room < room) low = middle + 1 else high = middle;
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
    return bestFit(gpa, Given{ .lengths = lengths }, lengths.len, capacity);
}

test "the example of TRL's own documentation" {
    var bins = try pack(testing.allocator, &.{ 5, 2, 3, 1 }, 4);
    defer bins.deinit(testing.allocator);

    try testing.expectEqual(3, bins.count());
    try testing.expectEqualSlices(u32, &.{0}, bins.bin(0));
    try testing.expectEqualSlices(u32, &.{ 2, 3 }, bins.bin(1));
    try testing.expectEqualSlices(u32, &.{1}, bins.bin(2));
}

test "equal rows keep their order, and of bins with the same room the first that had it is taken" {
    // 6 6 6 leave room 4 three times; 4 fills bin 0, the first 2 goes to bin 1.
    var bins = try pack(testing.allocator, &.{ 2, 6, 2, 6, 0, 2, 6, 4, 2 }, 10);
    defer bins.deinit(testing.allocator);

    try testing.expectEqual(3, bins.count());
    try testing.expectEqualSlices(u32, &.{ 1, 7 }, bins.bin(0));
    // Then bin 1 has room 2, which is the least that holds the next 2.
    try testing.expectEqualSlices(u32, &.{ 3, 0, 2 }, bins.bin(1));
    try testing.expectEqualSlices(u32, &.{ 6, 5, 8 }, bins.bin(2));
}

test "no bin spans two groups, and no rows give no bin" {
    const lengths: [group_rows + 2]usize = @splat(1);
    var bins = try pack(testing.allocator, &lengths, 5000);
    defer bins.deinit(testing.allocator);

    try testing.expectEqual(2, bins.count());
    try testing.expectEqual(group_rows, bins.bin(0).len);
    try testing.expectEqualSlices(u32, &.{ group_rows, group_rows + 1 }, bins.bin(1));
    var empty = try pack(testing.allocator, &.{ 0, 0 }, 3);
    defer empty.deinit(testing.allocator);

    try testing.expectEqual(0, empty.count());
}

/// The definition with a list for each room, as TRL writes it.
fn naive(arena: Allocator, lengths: []const usize, capacity: usize) ![]const []const u32 {
    var bins: std.ArrayList(std.ArrayList(u32)) = .empty;
    var at: usize = 0;
    while (at < lengths.len) : (at += group_rows) {
        const queues = try arena.alloc(std.ArrayList(usize), capacity + 1);
        for (queues) |*q| q.* = .empty;
        var length = capacity;
        while (length > 0) : (length -= 1) for (lengths[at..@min(at + group_rows, lengths.len)], at..) |given, row| {
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
    }
    const all = try arena.alloc([]const u32, bins.items.len);
    for (all, bins.items) |*slice, list| slice.* = list.items;
    return all;
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
            try testing.expectEqualSlices(u32, want, bins.bin(b));
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

test "running out of memory anywhere leaks nothing" {
    try testing.checkAllAllocationFailures(testing.allocator, struct {
        fn run(gpa: Allocator) !void {
            var bins = try pack(gpa, &.{ 1, 2, 3, 4 }, 5);
            bins.deinit(gpa);
        }
    }.run, .{});
}
