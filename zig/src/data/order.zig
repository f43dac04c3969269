//! The order of rows (or of a stream's batches) in an epoch: drawn here, recorded, read by every engine.
//!
//! Definition, so that anyone can draw it again: r = 0, 1, …, n−1; with xoshiro256++ seeded by splitmix64 from
//! `seed + epoch` (wrapping), for i = n−1 down to 1 swap r[i] and r[below(i + 1)], `below` being Lemire's unbiased draw.
//! The same seed, epoch and count always give the same order, on every machine and for any number of threads.
//! Without shuffling the order is 0, 1, …, n−1 in every epoch.

const std = @import("std");
const base = @import("base");

/// Fills `order` with the permutation of 0..order.len for `epoch` (counted from 0). `order.len` is at most 2³².
pub fn fillEpochOrder(order: []u32, shuffle: bool, seed: u64, epoch: u64) void {
    for (order, 0..) |*o, i| o.* = @intCast(i);
    if (!shuffle) return;
    var prng: base.Prng = .init(seed +% epoch);
    prng.shuffle(u32, order);
}

const testing = std.testing;

test "the same seed and epoch give the same order, others another, each a permutation" {
    var a: [1000]u32 = undefined;
    var b: [1000]u32 = undefined;
    fillEpochOrder(&a, true, 42, 3);
    fillEpochOrder(&b, true, 42, 3);
    try testing.expectEqualSlices(u32, &a, &b);
    fillEpochOrder(&b, true, 42, 4);
    try testing.expect(!std.mem.eql(u32, &a, &b));
    fillEpochOrder(&b, true, std.math.maxInt(u64), 1); // The sum wraps instead of failing.
    for (0..b.len) |i| try testing.expect(std.mem.findScalar(u32, &b, @intCast(i)) != null);
}

test "the order is the documented one" {
    var order: [5]u32 = undefined;
    fillEpochOrder(&order, true, 42, 0);
    var expected = [_]u32{ 0, 1, 2, 3, 4 };
    var prng: base.Prng = .init(42);
    for ([_]usize{ 4, 3, 2, 1 }) |i| std.mem.swap(u32, &expected[i], &expected[@intCast(prng.below(i + 1))]);
    try testing.expectEqualSlices(u32, &expected, &order);
}

test "without shuffling, and for no rows, nothing moves" {
    var order: [4]u32 = undefined;
    fillEpochOrder(&order, false, 7, 9);
    try testing.expectEqualSlices(u32, &.{ 0, 1, 2, 3 }, &order);
    fillEpochOrder(order[0..0], true, 7, 9);
}
