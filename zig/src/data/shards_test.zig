//! Tests of sets: a set is the single file of the same rows, in everything that is given out; each fault by its name.

const std = @import("std");
const base = @import("base");
const shards = @import("shards.zig");
const manifest_module = @import("manifest.zig");
const packing = @import("packing.zig");
const TokenizedDataset = @import("tokenized.zig").TokenizedDataset;
const TokenizedWriter = @import("writer.zig").TokenizedWriter;
const WriterOptions = @import("writer.zig").WriterOptions;
const Loader = @import("loader.zig").Loader;
const LoaderOptions = @import("loader.zig").LoaderOptions;
const MemoryDisk = base.storage.MemoryDisk;
const gpa = std.testing.allocator;
const testing = std.testing;

const Kind = enum { rows, masked_rows, stream, masked_stream, pairs };

/// The same rows as one file `one.bin`, and as the set `set.bin` of `count` files.
const Both = struct {
    disk: MemoryDisk,
    one: TokenizedDataset,
    set: TokenizedDataset,

    fn deinit(self: *Both) void {
        self.set.deinit();
        self.one.deinit();
        self.disk.deinit();
    }

    fn init(self: *Both, prng: *base.Prng, kind: Kind, row_count: usize, count: usize) !void {
        self.disk = try .init(gpa);
        errdefer self.disk.deinit();
        const storage = self.disk.storage();
        const options: WriterOptions = .{
            .kind = if (kind == .pairs) .preference else .tokens,
            .rows = kind != .stream and kind != .masked_stream,
            .mask = kind != .rows and kind != .stream,
            .vocab_size = 90,
            .format = "f",
        };
        var diag: base.Diagnostic = .{};
        const one = try TokenizedWriter.create(gpa, storage, "one.bin", options, &diag);
        defer one.destroy();
        var names: [8][]const u8 = undefined;
        var buffers: [8][40]u8 = undefined;
        const together: usize = if (kind == .pairs) 2 else 1;
        const units = row_count / together;
        var unit: usize = 0;
        for (0..count) |s| {
            names[s] = try std.mem.print(&buffers[s], "set-{d:0>5}-of-{d:0>5}.bin", .{ s, count });
            const writer = try TokenizedWriter.create(gpa, storage, names[s], options, &diag);
            defer writer.destroy();
            // Some files have nothing; the last takes the rest.
            const end = if (s + 1 == count) units else if (prng.below(5) == 0) unit else @min(units, unit + @as(usize, @intCast(prng.below(2 * units / count + 1))));
            while (unit < end) : (unit += 1) {
                var ids: [24]u32 = undefined;
                var flags: [24]bool = undefined;
                for (&ids, &flags) |*id, *flag| {
                    id.* = @intCast(prng.below(90));
                    flag.* = prng.below(3) > 0;
                }
                if (kind == .pairs) {
                    const border: usize = @intCast(1 + prng.below(9));
                    for (&flags, 0..) |*flag, i| flag.* = i >= border;
                    for (0..2) |half| {
                        ids[border] = @intCast(half);
                        const len = border + 1 + @as(usize, @intCast(prng.below(9)));
                        for ([_]*TokenizedWriter{ one, writer }) |w| try w.append(ids[0..len], flags[0..len], &diag);
                    }
                } else {
                    const len: usize = @intCast(1 + prng.below(23));
                    const given: ?[]const bool = if (options.mask) flags[0..len] else null;
                    for ([_]*TokenizedWriter{ one, writer }) |w| try w.append(ids[0..len], given, &diag);
                }
            }
            _ = try writer.finish(&diag);
        }
        _ = try one.finish(&diag);
        try shards.beginSet(gpa, storage, "set.bin", &diag);
        try testing.expectError(error.IncompleteDataset, TokenizedDataset.openStorage(gpa, storage, "set.bin", .{}, &diag));
        try shards.join(gpa, storage, "set.bin", names[0..count], &diag);
        self.one = try .openStorage(gpa, storage, "one.bin", .{}, &diag);
        errdefer self.one.deinit();
        self.set = try .openStorage(gpa, storage, "set.bin", .{}, &diag);
    }
};

test "what is asked by place is answered as by one file" {
    var prng: base.Prng = .init(3);
    for (0..40) |round| {
        const kind = std.enums.values(Kind)[round % 5];
        var both: Both = undefined;
        try both.init(&prng, kind, 60, @intCast(1 + prng.below(7)));
        defer both.deinit();

        const one = &both.one;
        const set = &both.set;
        try testing.expectEqual(one.count(), set.count());
        try testing.expectEqual(one.rowCount(), set.rowCount());
        try testing.expectEqual(one.isRows(), set.isRows());
        try testing.expectEqual(one.isPreference(), set.isPreference());
        if (one.rowCount()) |rows| {
            for (0..rows) |r| {
                try testing.expectEqualSlices(u32, one.row(r), set.row(r));
                try testing.expectEqual(one.rowStart(r), set.rowStart(r));
                try testing.expectEqual(one.rowLength(r), set.rowLength(r));
            }
            try testing.expectEqual(one.rowStart(rows), set.rowStart(rows));
        }
        for (0..60) |_| {
            const start: usize = @intCast(prng.below(one.count()));
            const len: usize = @intCast(prng.below(1 + @min(300, one.count() - start)));
            var ids: [300]u32 = undefined;
            var targets: [2][300]i32 = @splat(@splat(5));
            set.readTokens(ids[0..len], start);
            try testing.expectEqualSlices(u32, one.tokens[start..][0..len], ids[0..len]);
            one.fillTargets(targets[0][0..len], start);
            set.fillTargets(targets[1][0..len], start);
            try testing.expectEqualSlices(i32, &targets[0], &targets[1]);
            try testing.expectEqual(one.countTargets(start, start + len), set.countTargets(start, start + len));
            if (set.slice(start, start + len)) |ids_there| try testing.expectEqualSlices(u32, ids[0..len], ids_there);
            set.willNeed(start, start + len);
        }
        var diag: base.Diagnostic = .{};
        try testing.expect(try set.verify(&diag) >= try one.verify(&diag));
        try set.checkVocabulary(90, &diag);
        try testing.expectError(error.TokenOutOfVocabulary, set.checkVocabulary(60, &diag));
    }
}

test "a set trains as one file: every micro-batch, order, window and count, in every mode" {
    var prng: base.Prng = .init(8);
    for (0..60) |round| {
        const kind = std.enums.values(Kind)[round % 5];
        var both: Both = undefined;
        // Some have more rows than one window of packing.
        try both.init(&prng, kind, if (round < 6) 1300 else 80, @intCast(1 + prng.below(7)));
        defer both.deinit();

        for (std.enums.values(packing.Strategy)) |strategy| {
            if (strategy != .none and kind != .rows and kind != .masked_rows) continue;
            const options: LoaderOptions = .{
                .batch_size = @intCast(1 + prng.below(5)),
                .max_seq_len = @intCast(2 + prng.below(40)),
                .seed = round,
                .packing = strategy,
            };
            var diag: base.Diagnostic = .{};
            var a: Loader = try .init(gpa, &both.one, options, &diag);
            defer a.deinit();
            var b: Loader = try .init(gpa, &both.set, options, &diag);
            defer b.deinit();
            try testing.expectEqual(a.batchesPerEpoch(), b.batchesPerEpoch());
            try testing.expectEqual(a.targetsPerEpoch(), b.targetsPerEpoch());
            try testing.expectEqual(a.dropped_rows, b.dropped_rows);
            try testing.expectEqual(a.truncated_rows, b.truncated_rows);
            for (0..2) |epoch| {
                const from: usize = @intCast(prng.below(1 + a.batchesPerEpoch() / 2));
                try a.seek(epoch, from);
                try b.seek(epoch, from);
                while (true) {
                    try testing.expectEqual(a.peekTargets(3), b.peekTargets(3));
                    const one = a.next() orelse break;
                    try testing.expectEqualDeep(one, b.next().?);
                }
                try testing.expectEqual(null, b.next());
            }
        }
    }
}

test "the plain stream of a set is that of one file, and batches over a border stay valid" {
    var prng: base.Prng = .init(9);
    for (0..40) |round| {
        var both: Both = undefined;
        try both.init(&prng, if (round % 2 == 0) .stream else .masked_rows, 40, @intCast(1 + prng.below(7)));
        defer both.deinit();

        const options: @import("batches.zig").BatchOptions = .{
            .batch_size = @intCast(1 + prng.below(4)),
            .seq_len = @intCast(1 + prng.below(60)),
            .shuffle = round % 3 == 0,
            .seed = round,
        };
        var a = try both.one.batchesSeeded(gpa, options);
        defer a.deinit();
        var b = try both.set.batchesSeeded(gpa, options);
        defer b.deinit();
        var given: std.ArrayList([2]@import("batches.zig").Batch) = .empty;
        defer given.deinit(gpa);
        try testing.expectEqual(a.numBatches(), b.numBatches());
        while (a.next()) |one| try given.append(gpa, .{ one, b.next().? });
        for (given.items) |pair| {
            try testing.expectEqualSlices(u32, pair[0].input_ids, pair[1].input_ids);
            try testing.expectEqualSlices(u32, pair[0].labels, pair[1].labels);
            try testing.expectEqual(pair[0].index, pair[1].index);
        }
    }
}

fn writeFile(storage: base.storage.Storage, name: []const u8, options: WriterOptions, ids: []const u32) !void {
    var diag: base.Diagnostic = .{};
    const writer = try TokenizedWriter.create(gpa, storage, name, options, &diag);
    defer writer.destroy();
    try writer.append(ids, null, &diag);
    _ = try writer.finish(&diag);
}

const plain: WriterOptions = .{ .vocab_size = 90, .tokenizer_hash = "aa", .format = "f", .license = "MIT" };

fn expectRefused(storage: base.storage.Storage, err: anyerror, words: []const u8) !void {
    var diag: base.Diagnostic = .{};
    try testing.expectError(err, TokenizedDataset.openStorage(gpa, storage, "s.bin", .{}, &diag));
    if (std.mem.find(u8, diag.text(), words) == null) {
        std.debug.print("{s}\n", .{diag.text()});
        return error.OtherWords;
    }
}

test "each fault of a set is refused by its name" {
    var disk: MemoryDisk = try .init(gpa);
    defer disk.deinit();
    const storage = disk.storage();
    var diag: base.Diagnostic = .{};
    const files = [_][]const u8{ "a.bin", "b.bin", "c.bin" };
    for (files, 0..) |name, i| try writeFile(storage, name, plain, &.{ 1, 2, @intCast(i) });
    try shards.join(gpa, storage, "s.bin", &files, &diag);
    {
        var by_manifest = try TokenizedDataset.openStorage(gpa, storage, "s.json", .{}, &diag);
        defer by_manifest.deinit();
        try testing.expectEqual(9, by_manifest.count());
        try testing.expectEqualStrings("s.bin", by_manifest.path);
        try testing.expectEqualStrings("MIT", by_manifest.manifest.?.license.?);
    }
    // Another file under a listed name, with the same count; then one with another.
    try writeFile(storage, "b.bin", plain, &.{ 5, 5, 5 });
    try expectRefused(storage, error.ShardMismatch, "b.bin has 3 tokens with checksum");
    try writeFile(storage, "b.bin", plain, &.{ 1, 2, 1, 1 });
    try expectRefused(storage, error.ShardMismatch, "b.bin has 4 tokens with checksum");
    try writeFile(storage, "b.bin", plain, &.{ 1, 2, 2 });
    try writeFile(storage, "c.bin", plain, &.{ 1, 2, 1 });
    try expectRefused(storage, error.ShardOrder, "b.bin holds what s.json has as file 2 of the set, not as file 1");
    // Other rows, another mask, another tokenizer: the ids are those that are listed.
    inline for (.{
        .{ "tokenizer_hash", "bb", "another tokenizer" },
        .{ "format", "g", "another format" },
        .{ "vocab_size", 91, "another vocabulary size" },
        .{ "mask", false, "another loss mask" },
    }) |case| {
        var other = plain;
        @field(other, case[0]) = case[1];
        try writeFile(storage, "b.bin", other, &.{ 1, 2, 1 });
        try expectRefused(storage, error.MixedShards, "b.bin has " ++ case[2]);
        try storage.deleteFile("b.json");
        try storage.deleteFile("b.idx");
        storage.deleteFile("b.mask") catch {};
    }
    try expectRefused(storage, error.ShardMissing, "b.bin is listed by s.json, but its own manifest is not there");
    try storage.deleteFile("b.bin");
    try expectRefused(storage, error.ShardMissing, "b.bin is listed by s.json, but is not there");
    try writeFile(storage, "b.bin", .{ .vocab_size = 90, .tokenizer_hash = "aa", .format = "f", .rows = false }, &.{ 1, 2, 1 });
    try expectRefused(storage, error.ShardMismatch, "b.bin");
    try writeFile(storage, "b.bin", plain, &.{ 1, 2, 1 });
    try writeFile(storage, "c.bin", plain, &.{ 1, 2, 2 });
    {
        var whole = try TokenizedDataset.openStorage(gpa, storage, "s.bin", .{}, &diag);
        whole.deinit();
    }
    try base.storage.writeFile(gpa, storage, "s.bin", "\x00\x00\x00\x00");
    try expectRefused(storage, error.OrphanSideFile, "s.bin lies beside s.json, the manifest of a set of 3 other files");
}

test "what cannot be a set is not joined" {
    var disk: MemoryDisk = try .init(gpa);
    defer disk.deinit();
    const storage = disk.storage();
    var diag: base.Diagnostic = .{};
    for ([_][]const u8{ "a.bin", "x-00000-of-00002.bin", "x-00001-of-00002.bin" }) |name| try writeFile(storage, name, plain, &.{ 1, 2 });
    const cases = .{
        .{ &[_][]const u8{ "a.bin", "a.bin" }, error.DuplicateShard, "lists a.bin twice, as file 0 and 1" },
        .{ &[_][]const u8{ "x-00001-of-00002.bin", "x-00000-of-00002.bin" }, error.ShardOrder, "as file 0 of 2, which is not what its name says" },
        .{ &[_][]const u8{"x-00000-of-00002.bin"}, error.ShardOrder, "as file 0 of 1" },
        .{ &[_][]const u8{"n.bin"}, error.ShardMissing, "n.bin is listed by s.json, but is not there" },
        .{ &[_][]const u8{}, error.MalformedManifest, "0 files were given" },
    };
    inline for (cases) |case| {
        try testing.expectError(case[1], shards.join(gpa, storage, "s.bin", case[0], &diag));
        try testing.expect(std.mem.find(u8, diag.text(), case[2]) != null);
        try testing.expectEqual(null, try storage.kind("s.json"));
    }
    try base.storage.writeFile(gpa, storage, "s.json", "{\"text\": \"raw data\"}");
    try testing.expectError(error.NameTaken, shards.join(gpa, storage, "s.bin", &.{"a.bin"}, &diag));
    try testing.expectError(error.NameTaken, shards.beginSet(gpa, storage, "s.bin", &diag));
    try storage.deleteFile("s.json");
    try shards.join(gpa, storage, "s.bin", &.{"a.bin"}, &diag);
    // A set has no file of its own name, so it is no file of another.
    try testing.expectError(error.ShardMissing, shards.join(gpa, storage, "t.bin", &.{"s.bin"}, &diag));
}

test "running out of memory anywhere leaks nothing" {
    var disk: MemoryDisk = try .init(gpa);
    defer disk.deinit();
    const storage = disk.storage();
    for ([_][]const u8{ "a.bin", "b.bin" }, 0..) |name, i| try writeFile(storage, name, plain, &.{ 1, 2, 3, @intCast(i) });
    try testing.checkAllAllocationFailures(gpa, struct {
        fn run(allocator: std.mem.Allocator, s: base.storage.Storage) !void {
            var diag: base.Diagnostic = .{};
            try shards.join(allocator, s, "s.bin", &.{ "a.bin", "b.bin" }, &diag);
            var dataset = try TokenizedDataset.openStorage(allocator, s, "s.bin", .{}, &diag);
            defer dataset.deinit();
            var batches = try dataset.batchesSeeded(allocator, .{ .batch_size = 1, .seq_len = 3 });
            defer batches.deinit();
            var loader: Loader = try .init(allocator, &dataset, .{ .batch_size = 1, .max_seq_len = 3 }, &diag);
            loader.deinit();
        }
    }.run, .{storage});
}
