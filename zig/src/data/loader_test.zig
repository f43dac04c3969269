//! Tests of the loader: layouts against their definition, masks, order, resume, and no allocation while training.

const std = @import("std");
const base = @import("base");
const loss_mask = @import("loss_mask.zig");
const loader_module = @import("loader.zig");
const packing = @import("packing.zig");
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

test "packed rows stand one behind the other, each with its own positions, borders and targets" {
    const starts = [_]u64{ 0, 3, 3, 4, 10, 12 }; // lengths 3, 0, 1, 6, 2; cut to 4, 3, 2, 1
    const ids = [_]u32{ 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 };
    // Token 2 (of row 0) and all of row 4 are not learned.
    const dataset = over(&ids, &.{ 0b1111_1101, 0b0000_0011 }, &starts);
    var loader = try start(&dataset, .{ .batch_size = 2, .max_seq_len = 4, .shuffle = false, .packing = .bfd });
    defer loader.deinit();

    try testing.expectEqual(1, loader.dropped_rows);
    try testing.expectEqual(1, loader.truncated_rows);
    try testing.expectEqual(2, loader.batchesPerEpoch());
    try testing.expectEqual(4, loader.targetsPerEpoch());
    try testing.expectEqual(4, loader.peekTargets(1));
    const a = loader.next().?; // Rows 3 and (0, 2).
    try testing.expectEqual(4, a.time);
    try testing.expectEqualSlices(u32, &.{ 5, 6, 7, 8, 1, 2, 3, 4 }, a.input_ids);
    try testing.expectEqualSlices(i32, &.{ 6, 7, 8, -1, -1, 3, -1, -1 }, a.targets);
    try testing.expectEqualSlices(u32, &.{ 0, 1, 2, 3, 0, 1, 2, 0 }, a.positions.?);
    try testing.expectEqualSlices(u32, &.{ 0, 0, 0, 0, 0, 0, 0, 3 }, a.first.?);
    try testing.expectEqual(4, a.target_count);
    try testing.expectEqual(8, a.token_count);
    const b = loader.next().?; // Row 4, from which nothing is learned: as in TRL it keeps its place.
    try testing.expectEqual(1, b.batch);
    try testing.expectEqualSlices(u32, &.{ 11, 12 }, b.input_ids);
    try testing.expectEqual(0, b.target_count);
    try testing.expectEqual(null, loader.next());
    const order = try loader.epochOrder(testing.allocator, 5);
    defer testing.allocator.free(order);
    try testing.expectEqualSlices(u32, &.{ 0, 1, 2 }, order);
}

test "padding behind a packed row sees itself alone" {
    const dataset = over(&.{ 1, 2, 3, 4, 5, 6, 7 }, null, &.{ 0, 4, 6, 7 });
    var loader = try start(&dataset, .{ .batch_size = 2, .max_seq_len = 4, .shuffle = false, .packing = .bfd });
    defer loader.deinit();

    const a = loader.next().?;
    try testing.expectEqualSlices(u32, &.{ 1, 2, 3, 4, 5, 6, 7, 0 }, a.input_ids);
    try testing.expectEqualSlices(i32, &.{ 2, 3, 4, -1, 6, -1, -1, -1 }, a.targets);
    try testing.expectEqualSlices(u32, &.{ 0, 1, 2, 3, 0, 1, 0, 0 }, a.positions.?);
    try testing.expectEqualSlices(u32, &.{ 0, 0, 0, 0, 0, 0, 2, 3 }, a.first.?);
    try testing.expectEqual(7, a.token_count);
}

test "random packed rows equal the definition: the tokens and targets of each row, once an epoch" {
    var prng: base.Prng = .init(12);
    for (0..80) |round| {
        const strategy: packing.Strategy = if (round % 2 == 0) .bfd else .bfd_split;
        var ids: [200]u32 = undefined;
        for (&ids) |*id| id.* = @intCast(prng.below(1000));
        var mask: [25]u8 = undefined;
        for (&mask) |*b| b.* = @truncate(prng.next());
        var starts: [41]u64 = undefined;
        for (&starts) |*s| s.* = prng.below(201);
        std.mem.sort(u64, &starts, {}, std.sort.asc(u64));
        starts[0] = 0;
        starts[40] = 200;
        const dataset = over(&ids, if (round % 3 == 0) null else &mask, &starts);
        const limit: usize = @intCast(2 + prng.below(20));
        var loader = try start(&dataset, .{ .batch_size = @intCast(1 + prng.below(5)), .max_seq_len = limit, .seed = round, .packing = strategy });
        defer loader.deinit();

        for (0..2) |epoch| {
            try loader.seek(epoch, 0);
            const order = try loader.epochOrder(testing.allocator, epoch);
            defer testing.allocator.free(order);
            var seen: usize = 0;
            var rows: usize = 0;
            var total: u64 = 0;
            while (true) {
                const peeked = loader.peekTargets(1);
                const micro = loader.next() orelse break;
                var count: usize = 0;
                for (0..micro.batch) |r| {
                    var t: usize = 0;
                    for (loader.bins.?.bin(order[seen])) |piece| {
                        const from: usize = @intCast(starts[piece.row] + piece.from);
                        const len = @min(starts[piece.row + 1] - from, limit);
                        const begin = t;
                        for (from..from + len) |p| {
                            const at = r * micro.time + t;
                            try testing.expectEqual(ids[p], micro.input_ids[at]);
                            const counts = p + 1 < from + len and (dataset.mask == null or loss_mask.get(&mask, p + 1));
                            try testing.expectEqual(if (counts) @as(i32, @intCast(ids[p + 1])) else -1, micro.targets[at]);
                            try testing.expectEqual(p - from, micro.positions.?[at]);
                            try testing.expectEqual(begin, micro.first.?[at]);
                            count += @intFromBool(counts);
                            t += 1;
                        }
                        rows += 1;
                    }
                    try testing.expect(t <= limit);
                    for (t..micro.time) |behind| {
                        try testing.expectEqual(-1, micro.targets[r * micro.time + behind]);
                        try testing.expectEqual(behind, micro.first.?[r * micro.time + behind]);
                    }
                    seen += 1;
                }
                try testing.expectEqual(count, micro.target_count);
                try testing.expectEqual(count, peeked);
                total += count;
            }
            try testing.expectEqual(order.len, seen);
            try testing.expectEqual(loader.bins.?.pieces.len, rows);
            try testing.expectEqual(loader.targetsPerEpoch(), total);
        }
    }
}

test "wrapped rows are one text: runs of tokens whatever rows they are of, all seen, first tokens learned" {
    const starts = [_]u64{ 0, 3, 3, 4, 10, 12 };
    const ids = [_]u32{ 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 };
    // Tokens 2 and 10 are not learned; of a row's first tokens that of the fourth is.
    const dataset = over(&ids, &.{ 0b1111_1101, 0b0000_1101 }, &starts);
    var loader = try start(&dataset, .{ .batch_size = 2, .max_seq_len = 5, .shuffle = false, .packing = .wrapped });
    defer loader.deinit();

    try testing.expectEqual(1, loader.dropped_rows);
    try testing.expectEqual(0, loader.truncated_rows);
    try testing.expectEqual(2, loader.batchesPerEpoch());
    const a = loader.next().?;
    try testing.expectEqualSlices(u32, &.{ 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 }, a.input_ids);
    try testing.expectEqualSlices(i32, &.{ -1, 3, 4, 5, -1, 7, 8, 9, -1, -1 }, a.targets);
    try testing.expectEqual(null, a.positions);
    try testing.expectEqual(null, a.first);
    try testing.expectEqual(6, a.target_count);
    const b = loader.next().?;
    try testing.expectEqualSlices(u32, &.{ 11, 12 }, b.input_ids);
    try testing.expectEqual(1, b.batch);
    try testing.expectEqual(1, b.target_count);
    try testing.expectEqual(null, loader.next());
}

test "random wrapped rows equal the definition, in the order of each epoch" {
    var prng: base.Prng = .init(33);
    for (0..40) |round| {
        var ids: [300]u32 = undefined;
        for (&ids) |*id| id.* = @intCast(prng.below(1000));
        var mask: [38]u8 = undefined;
        for (&mask) |*b| b.* = @truncate(prng.next());
        var starts: [1301]u64 = undefined; // Two windows.
        for (&starts) |*s| s.* = prng.below(301);
        std.mem.sort(u64, &starts, {}, std.sort.asc(u64));
        starts[0] = 0;
        starts[1300] = 300;
        const border: usize = @intCast(starts[packing.group_rows]);
        const dataset = over(&ids, if (round % 3 == 0) null else &mask, &starts);
        const limit: usize = @intCast(2 + prng.below(20));
        var loader = try start(&dataset, .{ .batch_size = @intCast(1 + prng.below(5)), .max_seq_len = limit, .seed = round, .packing = .wrapped });
        defer loader.deinit();

        const before = (border + limit - 1) / limit;
        try loader.seek(1, 0);
        const order = try loader.epochOrder(testing.allocator, 1);
        defer testing.allocator.free(order);
        var seen: usize = 0;
        while (loader.next()) |micro| {
            var count: usize = 0;
            var tokens: usize = 0;
            for (0..micro.batch) |r| {
                const run = order[seen];
                const from = if (run < before) run * limit else border + (run - before) * limit;
                const end = @min(from + limit, if (run < before) border else 300);
                for (0..micro.time) |t| {
                    const at = r * micro.time + t;
                    const p = from + t;
                    try testing.expectEqual(if (p < end) ids[p] else 0, micro.input_ids[at]);
                    const counts = p + 1 < end and (dataset.mask == null or loss_mask.get(&mask, p + 1));
                    try testing.expectEqual(if (counts) @as(i32, @intCast(ids[p + 1])) else -1, micro.targets[at]);
                    count += @intFromBool(counts);
                }
                tokens += end - from;
                seen += 1;
            }
            try testing.expectEqual(count, micro.target_count);
            try testing.expectEqual(tokens, micro.token_count);
        }
        try testing.expectEqual(order.len, seen);
    }
}

test "a stream is not packed, and rows without any target give no batch" {
    var diag: base.Diagnostic = .{};
    const stream = over(&.{ 1, 2, 3 }, null, null);
    const options: LoaderOptions = .{ .batch_size = 1, .max_seq_len = 2, .packing = .bfd };
    try testing.expectError(error.NotPackable, Loader.init(testing.allocator, &stream, options, &diag));
    try testing.expectEqualStrings("packing is bfd, but d.bin is one stream without row starts: its sequences are full already. " ++
        "Set packing to none, or prepare the data as rows", diag.text());
    const nothing = over(&.{ 1, 2, 3 }, &.{0b001}, &.{ 0, 2, 3 });
    var loader = try start(&nothing, options);
    defer loader.deinit();

    try testing.expectEqual(0, loader.batchesPerEpoch());
    try testing.expectEqual(null, loader.next());
}

/// A disk in memory with data on it that tells what was asked for.
const Asked = struct {
    disk: base.storage.MemoryDisk,
    list: std.ArrayList(base.storage.MemoryDisk.Wanted) = .empty,

    /// 40 tokens; with `rows` in rows of these starts, and a mask that leaves out the token 0.
    fn open(self: *Asked, starts: []const u64) !TokenizedDataset {
        self.* = .{ .disk = try .init(testing.allocator) };
        errdefer self.disk.deinit();

        var ids: [40]u32 = undefined;
        for (&ids, 0..) |*id, i| id.* = @intCast(i);
        const files = [_]struct { []const u8, []const u8 }{
            .{ "d.bin", std.mem.sliceAsBytes(&ids) },
            .{ "d.mask", &.{ 0xfe, 0xff, 0xff, 0xff, 0xff } },
            .{ "d.idx", std.mem.sliceAsBytes(starts) },
            .{ "d.json", if (starts.len == 0)
                "{\"schema\": \"abi_train/token-bin/1\", \"count\": 40, \"mask\": \"d.mask\"}"
            else
                "{\"schema\": \"abi_train/token-bin/1\", \"count\": 40, \"mask\": \"d.mask\", \"idx\": \"d.idx\"}" },
        };
        for (files) |file| try base.storage.writeFile(testing.allocator, self.disk.storage(), file[0], file[1]);
        self.disk.wanted = &self.list;
        var diag: base.Diagnostic = .{};
        return .openStorage(testing.allocator, self.disk.storage(), "d.bin", .{}, &diag);
    }

    fn deinit(self: *Asked) void {
        self.disk.deinit();
    }

    /// What was asked for since the last time: of ids as tokens, in order; of the mask the bytes that belong to them.
    fn expect(self: *Asked, dataset: *const TokenizedDataset, ranges: []const [2]usize) !void {
        defer self.list.clearRetainingCapacity();
        try testing.expectEqual(2 * ranges.len, self.list.items.len);
        for (ranges, 0..) |range, i| {
            const ids = self.list.items[2 * i];
            try testing.expectEqual(dataset.mappings[0].?.bytes.ptr, ids.bytes.ptr);
            try testing.expectEqual(4 * range[0], ids.start);
            try testing.expectEqual(4 * (range[1] - range[0]), ids.count);
            const mask = self.list.items[2 * i + 1];
            try testing.expectEqual(dataset.mappings[1].?.bytes.ptr, mask.bytes.ptr);
            try testing.expectEqual(range[0] / 8, mask.start);
            try testing.expectEqual((range[1] - 1) / 8, mask.start + mask.count - 1);
        }
    }
};

test "with a micro-batch of a stream the next ones are asked for, each once, over the end of the epoch" {
    var asked: Asked = undefined;
    var dataset = try asked.open(&.{});
    defer asked.deinit();
    defer dataset.deinit();

    var loader = try start(&dataset, .{ .batch_size = 1, .max_seq_len = 9, .shuffle = false, .memory = 0 });
    defer loader.deinit();

    try testing.expectEqual(4, loader.batchesPerEpoch());
    try asked.expect(&dataset, &.{});
    _ = loader.next();
    try asked.expect(&dataset, &.{ .{ 0, 10 }, .{ 9, 19 }, .{ 18, 28 } });
    _ = loader.next();
    try asked.expect(&dataset, &.{.{ 27, 37 }});
    try loader.seek(0, 2); // Where it stands: nothing new.
    _ = loader.next();
    try asked.expect(&dataset, &.{.{ 0, 10 }});
    _ = loader.next();
    try asked.expect(&dataset, &.{.{ 9, 19 }});
    try testing.expectEqual(null, loader.next());
    try loader.seek(1, 0);
    _ = loader.next();
    try asked.expect(&dataset, &.{.{ 18, 28 }});
    try loader.seek(1, 3); // Another place: what it needs is asked for again.
    _ = loader.next();
    try asked.expect(&dataset, &.{ .{ 27, 37 }, .{ 0, 10 }, .{ 9, 19 } });
}

test "of rows what is asked for is what will be read, cut, in the order of the epoch; packed rows too" {
    const starts = [_]u64{ 0, 5, 16, 20, 22, 33, 40 }; // lengths 5, 11, 4, 2, 11, 7
    for (std.enums.values(packing.Strategy)) |strategy| {
        var asked: Asked = undefined;
        var dataset = try asked.open(&starts);
        defer asked.deinit();
        defer dataset.deinit();

        var loader = try start(&dataset, .{ .batch_size = 2, .max_seq_len = 8, .shuffle = true, .seed = 4, .packing = strategy, .memory = 0 });
        defer loader.deinit();

        var given: usize = 0;
        var ahead: usize = 0;
        for (0..3) |epoch| {
            try loader.seek(epoch, 0);
            while (loader.next()) |_| {
                given += 1;
                var ranges: std.ArrayList([2]usize) = .empty;
                defer ranges.deinit(testing.allocator);

                while (ahead < given + 2) : (ahead += 1) {
                    const per_epoch = loader.batchesPerEpoch();
                    const order = try loader.epochOrder(testing.allocator, ahead / per_epoch);
                    defer testing.allocator.free(order);

                    const from = ahead % per_epoch * 2;
                    for (order[from..@min(from + 2, order.len)]) |unit| {
                        if (loader.runs) |*runs| {
                            const run = runs.run(unit);
                            try ranges.append(testing.allocator, .{ run.start, run.start + run.len });
                            continue;
                        }
                        const one = [1]packing.Piece{.{ .row = unit }};
                        for (if (loader.bins) |*bins| bins.bin(unit) else &one) |piece| {
                            const begin: usize = @intCast(starts[piece.row] + piece.from);
                            try ranges.append(testing.allocator, .{ begin, @min(begin + 8, starts[piece.row + 1]) });
                        }
                    }
                }
                try asked.expect(&dataset, ranges.items);
            }
        }
    }
}

test "data that stay in memory are asked for in blocks, each once" {
    // Three blocks of ids and a bit of a fourth, as rows of 5000.
    var ids: [3 * 65536 + 100]u32 = undefined;
    @memset(&ids, 7);
    var starts: std.ArrayList(u64) = .empty;
    defer starts.deinit(testing.allocator);
    var at: u64 = 0;
    while (at < ids.len) : (at += 5000) try starts.append(testing.allocator, at);
    try starts.append(testing.allocator, ids.len);
    var memory: base.storage.MemoryDisk = try .init(testing.allocator);
    defer memory.deinit();
    try base.storage.writeFile(testing.allocator, memory.storage(), "d.bin", std.mem.sliceAsBytes(&ids));
    var asked: std.ArrayList(base.storage.MemoryDisk.Wanted) = .empty;
    var diag: base.Diagnostic = .{};
    var dataset = try TokenizedDataset.openStorage(testing.allocator, memory.storage(), "d.bin", .{}, &diag);
    defer dataset.deinit();
    dataset.row_starts = starts.items;
    memory.wanted = &asked;
    var loader = try start(&dataset, .{ .batch_size = 2, .max_seq_len = 4096, .memory = 8 * ids.len });
    defer loader.deinit();

    for (0..3) |epoch| {
        try loader.seek(epoch, 0);
        while (loader.next()) |_| {}
    }
    try testing.expectEqual(4, asked.items.len);
    var seen: [4]bool = @splat(false);
    for (asked.items) |one| {
        const block = one.start / (4 * 65536);
        try testing.expectEqual(block * 4 * 65536, one.start);
        try testing.expectEqual(@min(4 * 65536, 4 * ids.len - one.start), one.count);
        seen[block] = true;
    }
    try testing.expectEqual(@as([4]bool, @splat(true)), seen);
    // A byte less of memory: exactly the rows.
    var precise = try start(&dataset, .{ .batch_size = 2, .max_seq_len = 4096, .memory = 8 * ids.len - 1, .shuffle = false });
    defer precise.deinit();
    asked.clearRetainingCapacity();
    _ = precise.next();
    try testing.expectEqual(6, asked.items.len);
    try testing.expectEqual(4 * 4096, asked.items[5].count);
}

test "asking ahead changes nothing: each epoch is what a loader that never asked gives" {
    var ids: [64]u32 = undefined;
    for (&ids, 0..) |*id, i| id.* = @intCast(i);
    const starts = [_]u64{ 0, 3, 9, 14, 20, 30, 33, 40, 51, 64 };
    for (std.enums.values(packing.Strategy)) |strategy| {
        const dataset = over(&ids, null, &starts);
        const options: LoaderOptions = .{ .batch_size = 2, .max_seq_len = 12, .seed = 9, .packing = strategy };
        var going = try start(&dataset, options);
        defer going.deinit();
        for (0..4) |epoch| {
            try going.seek(epoch, 0);
            while (going.next()) |a| {
                var fresh = try start(&dataset, options);
                defer fresh.deinit();

                try fresh.seek(epoch, a.index);
                const b = fresh.next().?;
                try testing.expectEqualSlices(u32, b.input_ids, a.input_ids);
                try testing.expectEqualSlices(i32, b.targets, a.targets);
                if (strategy == .bfd or strategy == .bfd_split) try testing.expectEqualSlices(u32, b.first.?, a.first.?);
            }
        }
    }
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
    for (std.enums.values(packing.Strategy)) |strategy| {
        var loader = try start(&dataset, .{ .batch_size = 2, .max_seq_len = 4, .packing = strategy });
        defer loader.deinit();
        loader.gpa = testing.failing_allocator;
        defer loader.gpa = testing.allocator;
        for (0..3) |epoch| {
            try loader.seek(epoch, 0);
            while (loader.next()) |_| {}
        }
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
            for (std.enums.values(packing.Strategy)) |strategy| {
                var loader: Loader = try .init(gpa, d, .{ .batch_size = 2, .max_seq_len = 4, .packing = strategy }, &diag);
                loader.deinit();
            }
        }
    }.run, .{&dataset});
}
