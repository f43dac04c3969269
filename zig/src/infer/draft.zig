//! Guessing the next ids from what was there before: where the last few ids occurred already, the same may follow again.
//!
//! Only a guess: whoever asks lets the model look at all guessed ids in one pass and keeps those it would have chosen itself, so
//! guesses change how long an answer takes and nothing else. Guesses that keep being wrong become short and rare.
//! Does not know: models, sampling.

const std = @import("std");

pub const Draft = struct {
    /// Most ids guessed at once; 0 = none.
    most: usize = 0,
    /// Ids guessed next time.
    reach: usize = 2,
    /// Guesses in a row whose first id was wrong.
    misses: usize = 0,
    /// Chances left out before the next guess.
    skip: usize = 0,
    /// Ids guessed so far, and how many of them the model would have chosen.
    guessed: u64 = 0,
    accepted: u64 = 0,

    /// So many ids must occur again before what followed them is guessed.
    const alike = 3;

    /// What may follow `ids` and then `last`; in `out`, at most its length. Empty = no guess.
    pub fn guess(self: *Draft, ids: []const u32, last: u32, out: []u32) []u32 {
        const wanted = @min(out.len, @min(self.most, self.reach));
        if (wanted == 0 or ids.len < alike) return out[0..0];
        if (self.skip > 0) {
            self.skip -= 1;
            return out[0..0];
        }
        const before = ids[ids.len - (alike - 1) ..];
        var found: []const u32 = &.{};
        var end = ids.len - 1;
        // The last place that is long enough; or the longest.
        while (end >= alike and found.len < wanted) : (end -= 1) {
            // ids[end - alike .. end] ends with `last`, and what stands before is what stands before `last` now.
            if (ids[end - 1] != last or !std.mem.eql(u32, ids[end - alike .. end - 1], before)) continue;
            found = ids[end..@min(end + wanted, ids.len)];
        }
        @memcpy(out[0..found.len], found);
        return out[0..found.len];
    }

    /// Of `count` ids guessed the first `right` were as the model chose.
    pub fn learn(self: *Draft, count: usize, right: usize) void {
        if (count == 0) return;
        self.guessed += count;
        self.accepted += right;
        if (right == count) {
            self.reach = @min(2 * self.reach, self.most);
        } else self.reach = @max(1, @min(right + 1, self.most));
        if (right > 0) {
            self.misses = 0;
        } else {
            self.misses += 1;
            self.skip = @min(@as(usize, 1) << @intCast(@min(self.misses, 5)), 32) - 1;
        }
    }
};

const testing = std.testing;

test "what followed the same three ids last time is guessed, and nothing where they are new" {
    var draft: Draft = .{ .most = 4 };
    var room: [8]u32 = undefined;
    const ids = [_]u32{ 1, 2, 3, 9, 9, 9, 9, 1, 2, 3, 4, 5, 6, 7, 1, 2 };
    try testing.expectEqualSlices(u32, &.{ 4, 5 }, draft.guess(&ids, 3, &room));
    draft.learn(2, 2);
    try testing.expectEqualSlices(u32, &.{ 4, 5, 6, 7 }, draft.guess(&ids, 3, &room));
    try testing.expectEqualSlices(u32, &.{ 4, 5, 6 }, draft.guess(&ids, 3, room[0..3]));
    try testing.expectEqual(0, draft.guess(&ids, 8, &room).len);
    try testing.expectEqual(0, draft.guess(ids[0..2], 3, &room).len);
    try testing.expectEqualSlices(u32, &.{5}, draft.guess(&.{ 5, 5, 5, 5 }, 5, &room));
    var none: Draft = .{};
    try testing.expectEqual(0, none.guess(&ids, 3, &room).len);
}

test "guesses that are wrong become shorter and rarer, right ones longer again" {
    var draft: Draft = .{ .most = 8 };
    var room: [8]u32 = undefined;
    const ids: [40]u32 = @splat(7);
    draft.learn(draft.guess(&ids, 7, &room).len, 0);
    try testing.expectEqual(0, draft.guess(&ids, 7, &room).len);
    try testing.expectEqual(1, draft.guess(&ids, 7, &room).len);
    draft.learn(1, 0);
    for (0..3) |_| try testing.expectEqual(0, draft.guess(&ids, 7, &room).len);
    for ([_]usize{ 1, 2, 4, 8, 8 }) |reach| {
        const count = draft.guess(&ids, 7, &room).len;
        try testing.expectEqual(reach, count);
        draft.learn(count, count);
    }
    draft.learn(8, 2);
    try testing.expectEqual(3, draft.guess(&ids, 7, &room).len);
    try testing.expectEqual(@as(u64, 2 + 1 + 1 + 2 + 4 + 8 + 8 + 8), draft.guessed);
    try testing.expectEqual(@as(u64, 23 + 2), draft.accepted);
}
