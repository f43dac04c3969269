//! What only LoRA needs: dropout whose mask is never stored, and columns of an embedding's A.
//!
//! Dropout decides about element i from (key, i) alone, so forward and backward agree without memory, and results have
//! the same bits for any number of threads. Who gives a fresh key each pass saves the key's source in the checkpoint.

const std = @import("std");
const Exec = @import("exec.zig").Exec;
const partCount = @import("elementwise.zig").partCount;
const partOf = @import("elementwise.zig").partOf;
const part_len = @import("elementwise.zig").part_len;
const Mode = @import("exec.zig").Mode;

/// out (+)= inp / (1 - p) where element i is kept, 0 elsewhere. Forward on activations, backward on gradients.
/// With `.store` out may alias inp.
pub fn dropout(comptime T: type, ex: *Exec, out: []T, inp: []const T, probability: f64, key: u64, mode: Mode) void {
    std.debug.assert(out.len == inp.len);
    std.debug.assert(probability > 0);
    std.debug.assert(probability < 1);
    const Job = struct { out: []T, inp: []const T, threshold: u64, factor: T, key: u64, mode: Mode };
    const job: Job = .{ .out = out, .inp = inp, .threshold = thresholdOf(probability), .factor = @floatCast(1 / (1 - probability)), .key = key, .mode = mode };
    ex.pool.parallelFor(job, partCount(out.len), struct {
        fn f(j: Job, index: usize, _: usize) void {
            for (partOf(j.out, index), partOf(j.inp, index), index * part_len..) |*o, x, i| {
                const y = if (draw(j.key, i) >= j.threshold) x * j.factor else 0;
                if (j.mode == .store) o.* = y else o.* += y;
            }
        }
    }.f);
}

/// The number below which an element is dropped.
fn thresholdOf(probability: f64) u64 {
    return @trunc(probability * 0x1.0p64);
}

/// The i-th number of splitmix64's stream from `key`.
fn draw(key: u64, i: u64) u64 {
    var z = key +% (i +% 1) *% 0x9e37_79b9_7f4a_7c15;
    z = (z ^ (z >> 30)) *% 0xbf58_476d_1ce4_e5b9;
    z = (z ^ (z >> 27)) *% 0x94d0_49bb_1331_11eb;
    return z ^ (z >> 31);
}

/// The key of module `index` in a pass with key `pass`.
pub fn moduleKey(pass: u64, index: usize) u64 {
    return draw(pass, index) ^ 0xd1b5_4a32_d192_ed03;
}

/// out[N, R]: row i is column ids[i] of table[R, V].
pub fn columns(comptime T: type, ex: *Exec, out: []T, table: []const T, ids: []const u32, rank: usize) void {
    std.debug.assert(out.len == ids.len * rank);
    const Job = struct { out: []T, table: []const T, ids: []const u32, rank: usize, width: usize };
    const job: Job = .{ .out = out, .table = table, .ids = ids, .rank = rank, .width = table.len / rank };
    ex.pool.parallelFor(job, ids.len, struct {
        fn f(j: Job, i: usize, _: usize) void {
            for (j.out[i * j.rank ..][0..j.rank], 0..) |*o, r| o.* = j.table[r * j.width + j.ids[i]];
        }
    }.f);
}

/// dtable[R, V]: column ids[i] += row i of dout[N, R], in the order of i.
pub fn columnsBackward(comptime T: type, ex: *Exec, dtable: []T, dout: []const T, ids: []const u32, rank: usize) void {
    std.debug.assert(dout.len == ids.len * rank);
    const Job = struct { dtable: []T, dout: []const T, ids: []const u32, rank: usize, width: usize };
    const job: Job = .{ .dtable = dtable, .dout = dout, .ids = ids, .rank = rank, .width = dtable.len / rank };
    ex.pool.parallelFor(job, rank, struct {
        fn f(j: Job, r: usize, _: usize) void {
            const row = j.dtable[r * j.width ..][0..j.width];
            for (j.ids, 0..) |id, i| row[id] += j.dout[i * j.rank + r];
        }
    }.f);
}

const check = @import("check.zig");

test "dropout drops its share, keeps the mean, and gives backward the same mask on any number of threads" {
    var bag: check.Bag = .{};
    defer bag.deinit();

    const n = 3 * part_len + 11;
    const ones = bag.zeros(f32, n);
    @memset(ones, 1);
    var first: ?[]f32 = null;
    for (check.thread_counts) |threads| {
        var rig = try check.Rig.init(threads);
        defer rig.deinit();

        const out = bag.zeros(f32, n);
        dropout(f32, &rig.ex, out, ones, 0.25, 77, .store);
        if (first) |expected| try check.expectSame(f32, expected, out) else first = out;
        const twice = bag.copy(f32, out);
        dropout(f32, &rig.ex, twice, ones, 0.25, 77, .accumulate);
        for (out, twice) |a, b| try std.testing.expectEqual(2 * a, b);
    }
    var dropped: usize = 0;
    for (first.?) |v| dropped += @intFromBool(v == 0);
    const share = @as(f64, @floatFromInt(dropped)) / n;
    try std.testing.expectApproxEqAbs(0.25, share, 0.01);
    var other = try check.Rig.init(1);
    defer other.deinit();

    const out = bag.zeros(f32, n);
    dropout(f32, &other.ex, out, ones, 0.25, 78, .store);
    try std.testing.expect(!std.mem.eql(f32, out, first.?));
    try std.testing.expect(moduleKey(1, 0) != moduleKey(1, 1));
    try std.testing.expect(moduleKey(1, 0) != moduleKey(2, 0));
}

test "columns are found and their gradients return in the order of the ids" {
    var bag: check.Bag = .{};
    defer bag.deinit();

    const ids = [_]u32{ 4, 0, 4, 2 };
    const table = bag.normal(f64, 3 * 5);
    const dout = bag.normal(f64, ids.len * 3);
    for (check.thread_counts) |threads| {
        var rig = try check.Rig.init(threads);
        defer rig.deinit();

        const out = bag.zeros(f64, ids.len * 3);
        columns(f64, &rig.ex, out, table, &ids, 3);
        for (ids, 0..) |id, i| for (0..3) |r| try std.testing.expectEqual(table[r * 5 + id], out[i * 3 + r]);
        const dtable = bag.zeros(f64, 3 * 5);
        columnsBackward(f64, &rig.ex, dtable, dout, &ids, 3);
        for (0..3) |r| {
            try std.testing.expectEqual(dout[r] + dout[6 + r], dtable[r * 5 + 4]);
            try std.testing.expectEqual(0, dtable[r * 5 + 1]);
        }
    }
}
