//! Tests of the loader: layouts against their definition, masks, order, resume, and no allocation while training.

const std = @import("std");
const base = @import("base");
const loss_mask = @import("loss_mask.zig");
const loader_module = @import("loader.zig");
const TokenizedDataset = @import("tokenized.zig").TokenizedDataset;
const Loader = loader_module.Loader;
const LoaderOptions = loader_module.LoaderOptions;
const testing = std.testing;

/// A dataset over slices; needs no `deinit`.
fn over(tokens: []const u32, mask: ?[]const u8, row_starts: ?[]const u64) TokenizedDataset {
    return .{ .arena = .init(testing.failing_allocator), .disk = null, .path = "d.bin", .tokens = tokens, .mask = mask, .row_starts = row_starts };
}

fn start(dataset: *const TokenizedDataset, options: LoaderOptions) !Loader {
    var diag: base.Diagnostic = .{};
    return .init(testing.allocator, dataset, options, &diag);
}

test "a stream gives ABI's rows, every position with a target" {
    var ids: [14]u32 = undefined;
    for (&ids, 0..) |*id, i| id.* = @intCast(10 + i);
    const dataset = over(&ids, null, null);
    var loader = try start(&dataset, .{ .batch_size = 2, .max_seq_len = 3, .shuffle = false });
    defer loader.deinit();

    try testing.expectEqual(2, loader.batchesPerEpoch());
    try testing.expectEqual(12, loader.targetsPerEpoch());
    const a = loader.next().?;
    try testing.expectEqualSlices(u32, &.{ 10, 11, 12, 13, 14, 15 }, a.input_ids);
    try testing.expectEqualSlices(i32, &.{ 11, 12, 13, 14, 15, 16 }, a.targets);
    try testing.expectEqual(2, a.batch);
    try testing.expectEqual(3, a.time);
    try testing.expectEqual(6, a.target_count);
    try testing.expectEqual(6, a.token_count);
    try testing.expectEqual(1, loader.next().?.index);
    try testing.expectEqual(null, loader.next());
}

test "a stream's mask decides by the predicted token" {
    // Bits of tokens 1, 4 and 6 are set.
    const dataset = over(&.{ 0, 1, 2, 3, 4, 5, 6 }, &.{0b0101_0010}, null);
    var loader = try start(&dataset, .{ .batch_size = 1, .max_seq_len = 3, .shuffle = false });
    defer loader.deinit();

    try testing.expectEqual(3, loader.peekTargets(2));
    try testing.expectEqual(1, loader.peekTargets(1));
    try testing.expectEqualSlices(i32, &.{ 1, -1, -1 }, loader.next().?.targets);
    const b = loader.next().?;
    try testing.expectEqualSlices(i32, &.{ 4, -1, 6 }, b.targets);
    try testing.expectEqual(2, b.target_count);
}

test "rows are cut, padded to the longest, shifted inside the row; the short batch is kept" {
    const starts = [_]u64{ 0, 3, 3, 4, 10, 12 }; // lengths 3, 0, 1, 6, 2
    const ids = [_]u32{ 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 };
    const dataset = over(&ids, null, &starts);
    var loader = try start(&dataset, .{ .batch_size = 2, .max_seq_len = 4, .shuffle = false });
    defer loader.deinit();

    try testing.expectEqual(2, loader.dropped_rows);
    try testing.expectEqual(1, loader.truncated_rows);
    try testing.expectEqual(2, loader.batchesPerEpoch());
    const a = loader.next().?;
    try testing.expectEqual(4, a.time);
    try testing.expectEqualSlices(u32, &.{ 1, 2, 3, 0, 5, 6, 7, 8 }, a.input_ids);
    try testing.expectEqualSlices(i32, &.{ 2, 3, -1, -1, 6, 7, 8, -1 }, a.targets);
    try testing.expectEqual(5, a.target_count);
    try testing.expectEqual(7, a.token_count);
    const b = loader.next().?;
    try testing.expectEqual(1, b.batch);
    try testing.expectEqual(2, b.time);
    try testing.expectEqualSlices(i32, &.{ 12, -1 }, b.targets);
    try testing.expectEqual(null, loader.next());
    const order = try loader.epochOrder(testing.allocator, 5);
    defer testing.allocator.free(order);
    try testing.expectEqualSlices(u32, &.{ 0, 3, 4 }, order);
}

test "a row whose targets are all masked or cut off is left out" {
    // Row 0: only its first token is marked, which nothing predicts. Row 1: its mark is cut off. Row 2 stays.
    const starts = [_]u64{ 0, 3, 7, 9 };
    const mask = [_]u8{ 0b0100_0001, 0b0000_0001 };
    const dataset = over(&.{ 1, 2, 3, 4, 5, 6, 7, 8, 9 }, &mask, &starts);
    var loader = try start(&dataset, .{ .batch_size = 4, .max_seq_len = 3, .shuffle = false });
    defer loader.deinit();

    try testing.expectEqual(2, loader.dropped_rows);
    const a = loader.next().?;
    try testing.expectEqualSlices(u32, &.{ 8, 9 }, a.input_ids);
    try testing.expectEqualSlices(i32, &.{ 9, -1 }, a.targets);
    try testing.expectEqual(1, a.target_count);
}

test "an id no i32 holds stays out of every vocabulary" {
    const dataset = over(&.{ 1, 0xffff_ffff, 2 }, null, null);
    var loader = try start(&dataset, .{ .batch_size = 1, .max_seq_len = 2 });
    defer loader.deinit();
    try testing.expectEqualSlices(i32, &.{ std.math.maxInt(i32), 2 }, loader.next().?.targets);
}

test "data too small give no batch, in both modes" {
    const stream = over(&.{ 1, 2 }, null, null);
    var a = try start(&stream, .{ .batch_size = 1, .max_seq_len = 2 });
    defer a.deinit();
    try testing.expectEqual(0, a.batchesPerEpoch());
    try testing.expectEqual(null, a.next());
    try testing.expectEqual(0, a.peekTargets(10));
    const rows = over(&.{ 1, 2 }, null, &.{ 0, 1, 2 });
    var b = try start(&rows, .{ .batch_size = 1, .max_seq_len = 2 });
    defer b.deinit();
    try testing.expectEqual(2, b.dropped_rows);
    try testing.expectEqual(0, b.batchesPerEpoch());
    try testing.expectEqual(null, b.next());
    const none = over(&.{}, null, &.{0});
    var c = try start(&none, .{ .batch_size = 1, .max_seq_len = 2 });
    defer c.deinit();
    try testing.expectEqual(null, c.next());
}

test "random rows equal the definition: each target, each count, each epoch a permutation" {
    var prng: base.Prng = .init(11);
    for (0..60) |round| {
        var ids: [200]u32 = undefined;
        for (&ids) |*id| id.* = @intCast(prng.below(1000));
        var mask: [25]u8 = undefined;
        for (&mask) |*b| b.* = @truncate(prng.next());
        var starts: [21]u64 = undefined;
        for (&starts) |*s| s.* = prng.below(201);
        std.mem.sort(u64, &starts, {}, std.sort.asc(u64));
        starts[0] = 0;
        starts[20] = 200;
        const dataset = over(&ids, if (round % 3 == 0) null else &mask, &starts);
        const limit = 1 + prng.below(20);
        var loader = try start(&dataset, .{ .batch_size = 1 + prng.below(5), .max_seq_len = limit, .seed = round });
        defer loader.deinit();

        for (0..2) |epoch| {
            try loader.seek(epoch, 0);
            const order = try loader.epochOrder(testing.allocator, epoch);
            defer testing.allocator.free(order);
            var seen: usize = 0;
            var total: u64 = 0;
            while (true) {
                const peeked = loader.peekTargets(1);
                const micro = loader.next() orelse break;
                var count: usize = 0;
                for (0..micro.batch) |r| {
                    const row = order[seen];
                    seen += 1;
                    const from = starts[row];
                    const len = @min(starts[row + 1] - from, limit);
                    for (0..micro.time) |t| {
                        const at = r * micro.time + t;
                        const p: usize = @intCast(from + t);
                        try testing.expectEqual(if (t < len) ids[p] else 0, micro.input_ids[at]);
                        const counts = t + 1 < len and (dataset.mask == null or loss_mask.get(&mask, p + 1));
                        try testing.expectEqual(if (counts) @as(i32, @intCast(ids[p + 1])) else -1, micro.targets[at]);
                        count += @intFromBool(counts);
                    }
                }
                try testing.expectEqual(count, micro.target_count);
                try testing.expectEqual(count, peeked);
                total += count;
            }
            try testing.expectEqual(order.len, seen);
            try testing.expectEqual(loader.targetsPerEpoch(), total);
            std.mem.sort(u32, order, {}, std.sort.asc(u32));
            for (order[0..order.len -| 1], order[@min(1, order.len)..]) |x, y| try testing.expect(x < y);
        }
    }
}

test "seek gives what running there gives; the end may be sought, not more" {
    var ids: [64]u32 = undefined;
    for (&ids, 0..) |*id, i| id.* = @intCast(i);
    const dataset = over(&ids, null, null);
    const options: LoaderOptions = .{ .batch_size = 1, .max_seq_len = 4, .seed = 3 };
    var a = try start(&dataset, options);
    defer a.deinit();
    var b = try start(&dataset, options);
    defer b.deinit();

    for (0..3) |epoch| {
        a.beginEpoch(epoch);
        var index: u64 = 0;
        while (a.next()) |expected| : (index += 1) {
            try b.seek((epoch + 1) % 3, 0);
            try b.seek(epoch, index);
            try testing.expectEqualSlices(u32, expected.input_ids, b.next().?.input_ids);
        }
        try b.seek(epoch, index);
        try testing.expectEqual(null, b.next());
        try testing.expectError(error.SeekOutOfRange, b.seek(epoch, index + 1));
    }
}

test "training allocates nothing" {
    const dataset = over(&.{ 1, 2, 3, 4, 5, 6 }, null, &.{ 0, 2, 4, 6 });
    var loader = try start(&dataset, .{ .batch_size = 2, .max_seq_len = 4 });
    defer loader.deinit();
    loader.gpa = testing.failing_allocator;
    defer loader.gpa = testing.allocator;
    for (0..3) |epoch| {
        try loader.seek(epoch, 0);
        while (loader.next()) |_| {}
    }
}

test "shapes without size are refused, with the values" {
    const dataset = over(&.{ 1, 2 }, null, null);
    var diag: base.Diagnostic = .{};
    for ([_][2]usize{ .{ 0, 1 }, .{ 1, 0 }, .{ std.math.maxInt(usize), 2 } }) |shape| {
        try testing.expectError(error.InvalidBatchShape, Loader.init(testing.allocator, &dataset, .{ .batch_size = shape[0], .max_seq_len = shape[1] }, &diag));
        try testing.expect(std.mem.startsWith(u8, diag.text(), "batch_size is "));
    }
}

test "running out of memory anywhere leaks nothing" {
    const dataset = over(&.{ 1, 2, 3, 4, 5, 6 }, null, &.{ 0, 2, 4, 6 });
    try testing.checkAllAllocationFailures(testing.allocator, struct {
        fn run(gpa: std.mem.Allocator, d: *const TokenizedDataset) !void {
            var diag: base.Diagnostic = .{};
            var loader: Loader = try .init(gpa, d, .{ .batch_size = 2, .max_seq_len = 4 }, &diag);
            loader.deinit();
        }
    }.run, .{&dataset});
}
