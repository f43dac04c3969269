//! Tests of token files end to end: writer, manifest, side files, damage. On the in-memory storage where faults matter,
//! on the real one for mapping.

const std = @import("std");
const base = @import("base");
const tokenized = @import("tokenized.zig");
const TokenizedDataset = tokenized.TokenizedDataset;
const TokenizedWriter = @import("writer.zig").TokenizedWriter;
const WriterOptions = @import("writer.zig").WriterOptions;
const MemoryDisk = base.storage.MemoryDisk;
const Storage = base.storage.Storage;
const testing = std.testing;

const rows = [_][]const u32{ &.{ 5, 6, 7 }, &.{8}, &.{ 9, 10, 11, 12, 13, 14 } };
const flags = [_][]const bool{ &.{ false, false, true }, &.{true}, &.{ false, true, true, false, false, true } };

fn writeSample(gpa: std.mem.Allocator, storage: Storage, path: []const u8, options: WriterOptions, diag: *base.Diagnostic) !void {
    const writer = try TokenizedWriter.create(gpa, storage, path, options, diag);
    defer writer.destroy();

    for (rows, flags) |ids, in_loss| try writer.append(ids, in_loss, diag);
    const summary = try writer.finish(diag);
    try testing.expectEqual(10, summary.count);
    try testing.expectEqual(3, summary.rows);
}

const full: WriterOptions = .{ .vocab_size = 96, .format = "test", .license = "Apache-2.0", .source = "own" };

fn put(storage: Storage, path: []const u8, bytes: []const u8) !void {
    try base.storage.writeFile(testing.allocator, storage, path, bytes);
}

test "what is written opens with rows, mask and manifest, and its checksums hold" {
    var disk: MemoryDisk = try .init(testing.allocator);
    defer disk.deinit();
    var diag: base.Diagnostic = .{};
    try writeSample(testing.allocator, disk.storage(), "d.bin", full, &diag);

    var dataset = try TokenizedDataset.openStorage(testing.allocator, disk.storage(), "d.bin", .{}, &diag);
    defer dataset.deinit();
    try testing.expectEqual(10, dataset.tokens.len);
    try testing.expectEqual(3, dataset.rowCount().?);
    for (rows, 0..) |ids, r| try testing.expectEqualSlices(u32, ids, dataset.row(r));
    try testing.expectEqualSlices(u8, &.{ 0b0110_1100, 0b0000_0010 }, dataset.mask.?);
    try testing.expectEqual(96, dataset.manifest.?.vocab_size.?);
    try testing.expectEqualStrings("Apache-2.0", dataset.manifest.?.license.?);
    try testing.expectEqual(3, try dataset.verify(&diag));
}

test "preference data are written in pairs, and say so" {
    var disk: MemoryDisk = try .init(testing.allocator);
    defer disk.deinit();
    var diag: base.Diagnostic = .{};
    try testing.expectError(error.InvalidRow, TokenizedWriter.create(testing.allocator, disk.storage(), "d.bin", .{ .kind = .preference, .mask = false }, &diag));
    const writer = try TokenizedWriter.create(testing.allocator, disk.storage(), "d.bin", .{ .kind = .preference }, &diag);
    defer writer.destroy();

    try writer.append(&.{ 1, 2 }, &.{ false, true }, &diag);
    try testing.expectError(error.InvalidRow, writer.finish(&diag));
    try testing.expect(std.mem.find(u8, diag.text(), "1 rows were added, an odd number") != null);
    try writer.append(&.{ 1, 3, 4 }, &.{ false, true, true }, &diag);
    _ = try writer.finish(&diag);
    var dataset = try TokenizedDataset.openStorage(testing.allocator, disk.storage(), "d.bin", .{}, &diag);
    defer dataset.deinit();
    try testing.expect(dataset.isPreference());
    try testing.expectEqualSlices(u32, &.{ 3, 4 }, (try @import("pairs.zig").read(&dataset, 0, &diag)).rejected);
}

test "a bare .bin is a stream, on the real disk, through load" {
    var tmp = testing.tmpDir(.{});
    defer tmp.cleanup();
    try tmp.dir.writeFile(testing.io, .{ .sub_path = "t.bin", .data = "\x01\x00\x00\x00\xff\x00\x00\x00\x00\x00\x01\x00" });
    const path = try std.fmt.allocPrint(testing.allocator, ".zig-cache/tmp/{s}/t.bin", .{tmp.sub_path});
    defer testing.allocator.free(path);

    var dataset = try TokenizedDataset.load(testing.allocator, path);
    defer dataset.deinit();
    try testing.expectEqualSlices(u32, &.{ 1, 255, 65536 }, dataset.tokens);
    try testing.expectEqual(null, dataset.rowCount());
    var diag: base.Diagnostic = .{};
    try testing.expectEqual(0, try dataset.verify(&diag));
    var iter = try dataset.batches(testing.allocator, 1, 2, true);
    defer iter.deinit();
    try testing.expectEqualSlices(u32, &.{ 255, 65536 }, iter.next().?.labels);
    try testing.expectEqual(null, iter.next());
}

test "a file far larger than memory opens at once" {
    var tmp = testing.tmpDir(.{});
    defer tmp.cleanup();
    const file = try tmp.dir.createFile(testing.io, "big.bin", .{});
    // A hole: 1 TiB of zeros that take no room. File systems without holes that large are not what is tested here.
    file.setLength(testing.io, 1 << 40) catch {
        file.close(testing.io);
        return error.SkipZigTest;
    };
    file.close(testing.io);
    const path = try std.fmt.allocPrint(testing.allocator, ".zig-cache/tmp/{s}/big.bin", .{tmp.sub_path});
    defer testing.allocator.free(path);

    var dataset = try TokenizedDataset.load(testing.allocator, path);
    defer dataset.deinit();
    try testing.expectEqual(1 << 38, dataset.tokens.len);
    try testing.expectEqual(0, dataset.tokens[(1 << 38) - 1]);
}

test "an empty file has no tokens and no batches" {
    var disk: MemoryDisk = try .init(testing.allocator);
    defer disk.deinit();
    var diag: base.Diagnostic = .{};
    try put(disk.storage(), "d.bin", "");
    var dataset = try TokenizedDataset.openStorage(testing.allocator, disk.storage(), "d.bin", .{}, &diag);
    defer dataset.deinit();
    try testing.expectEqual(0, dataset.tokens.len);
    try testing.expectEqual(0, dataset.numBatches(1, 1));
    try dataset.checkVocabulary(1, &diag);
}

fn expectOpenError(storage: Storage, expected: tokenized.DataError, text: []const u8) !void {
    var diag: base.Diagnostic = .{};
    if (TokenizedDataset.openStorage(testing.allocator, storage, "d.bin", .{}, &diag)) |opened| {
        var dataset = opened;
        dataset.deinit();
        return error.TestExpectedError;
    } else |err| try testing.expectEqual(expected, err);
    if (std.mem.find(u8, diag.text(), text) == null) {
        std.debug.print("\nmessage: {s}\n", .{diag.text()});
        return error.TestUnexpectedMessage;
    }
}

test "files that are not what they should be are refused by name" {
    const head = "{\"schema\": \"abi_train/token-bin/1\", \"count\": 3, ";
    const Case = struct {
        bin: ?[]const u8 = "\x01\x00\x00\x00\x02\x00\x00\x00\x03\x00\x00\x00",
        json: ?[]const u8 = null,
        mask: ?[]const u8 = null,
        idx: ?[]const u8 = null,
        err: tokenized.DataError,
        text: []const u8,
    };
    const u64s = struct {
        fn of(comptime values: []const u64) []const u8 {
            return std.mem.sliceAsBytes(values);
        }
    };
    const cases = [_]Case{
        .{ .bin = null, .err = error.FileNotFound, .text = "cannot read d.bin: no such file" },
        .{ .bin = "12345", .err = error.TokenFileSize, .text = "d.bin has 5 bytes, which is not a multiple of 4" },
        .{ .json = "[1, 2]", .err = error.MalformedManifest, .text = "d.json is not the manifest of d.bin: it is not a JSON object" },
        .{ .json = head ++ "\"count\": 3}", .err = error.MalformedManifest, .text = "it has a key twice" },
        .{ .json = "{\"schema\": \"abi_train/token-bin/1\", \"count\": 4}", .err = error.ManifestMismatch, .text = "d.json says 4 tokens, but d.bin has 3" },
        .{ .json = head ++ "\"incomplete\": true}", .err = error.IncompleteDataset, .text = "d.json: a preparation was interrupted" },
        .{ .bin = null, .json = head ++ "\"incomplete\": true}", .err = error.IncompleteDataset, .text = "Prepare the data again" },
        .{ .json = head ++ "\"mask\": \"d.mask\"}", .err = error.SideFileMissing, .text = "d.mask is named by the manifest of d.bin" },
        .{ .json = head ++ "\"mask\": \"d.mask\"}", .mask = "ab", .err = error.SideFileSize, .text = "d.mask has 2 bytes; a mask over 3 tokens has 1" },
        .{ .json = head ++ "\"mask\": \"d.mask\"}", .mask = "\x08", .err = error.MalformedMask, .text = "d.mask has bits set behind its last token" },
        .{ .json = head ++ "\"idx\": \"d.idx\"}", .idx = "", .err = error.SideFileSize, .text = "d.idx has 0 bytes" },
        .{ .json = head ++ "\"idx\": \"d.idx\"}", .idx = "123456789", .err = error.SideFileSize, .text = "d.idx has 9 bytes" },
        .{ .json = head ++ "\"idx\": \"d.idx\"}", .idx = u64s.of(&.{ 1, 3 }), .err = error.MalformedRowStarts, .text = "the first row starts at 1" },
        .{ .json = head ++ "\"idx\": \"d.idx\"}", .idx = u64s.of(&.{ 0, 2, 1, 3 }), .err = error.MalformedRowStarts, .text = "row 1 starts at 2 and ends at 1" },
        .{ .json = head ++ "\"idx\": \"d.idx\"}", .idx = u64s.of(&.{ 0, 2 }), .err = error.MalformedRowStarts, .text = "the last row ends at 2; it must end at the token count, 3" },
        .{ .json = head ++ "\"idx\": \"d.idx\"}", .idx = u64s.of(&.{ 0, std.math.maxInt(u64) }), .err = error.MalformedRowStarts, .text = "the last row ends at 18446744073709551615" },
        .{ .json = head ++ "\"idx\": \"d.idx\", \"rows\": 2}", .idx = u64s.of(&.{ 0, 3 }), .err = error.ManifestMismatch, .text = "d.idx holds 1 rows, but the manifest says 2" },
        .{ .idx = u64s.of(&.{ 0, 3 }), .err = error.OrphanSideFile, .text = "d.idx lies beside d.bin, but the manifest d.json" },
        .{ .json = head ++ "\"kind\": \"preference\"}", .err = error.MalformedPairs, .text = "d.json says that d.bin is preference data, but it names no row starts" },
        .{ .json = head ++ "\"kind\": \"preference\", \"idx\": \"d.idx\"}", .idx = u64s.of(&.{ 0, 2, 3 }), .err = error.MalformedPairs, .text = "it names no mask of answers" },
        .{ .json = head ++ "\"kind\": \"preference\", \"idx\": \"d.idx\", \"mask\": \"d.mask\"}", .idx = u64s.of(&.{ 0, 3 }), .mask = "\x04", .err = error.MalformedPairs, .text = "d.bin has 1 rows, an odd number" },
        .{ .mask = "\x00", .err = error.OrphanSideFile, .text = "d.mask lies beside d.bin" },
    };
    for (cases) |case| {
        var disk: MemoryDisk = try .init(testing.allocator);
        defer disk.deinit();
        if (case.bin) |bytes| try put(disk.storage(), "d.bin", bytes);
        if (case.json) |bytes| try put(disk.storage(), "d.json", bytes);
        if (case.mask) |bytes| try put(disk.storage(), "d.mask", bytes);
        if (case.idx) |bytes| try put(disk.storage(), "d.idx", bytes);
        try expectOpenError(disk.storage(), case.err, case.text);
    }
}

test "a changed bit is found by verify and named" {
    for ([_][]const u8{ "d.bin", "d.mask" }, [_][]const u8{ "tokens file", "loss mask file" }) |file, what| {
        var disk: MemoryDisk = try .init(testing.allocator);
        defer disk.deinit();
        var diag: base.Diagnostic = .{};
        try writeSample(testing.allocator, disk.storage(), "d.bin", full, &diag);
        try disk.flipBit(file, 3);
        var dataset = try TokenizedDataset.openStorage(testing.allocator, disk.storage(), "d.bin", .{}, &diag);
        defer dataset.deinit();
        try testing.expectError(error.ChecksumMismatch, dataset.verify(&diag));
        try testing.expect(std.mem.find(u8, diag.text(), what) != null);
    }
}

test "the first id beyond the vocabulary is named, wherever it is" {
    var disk: MemoryDisk = try .init(testing.allocator);
    defer disk.deinit();
    var ids: [2100]u32 = @splat(9);
    for ([_]usize{ 0, 1, 15, 16, 17, 1023, 1024, 1025, 2047, 2098, 2099 }) |bad| {
        ids[bad] = 10;
        try put(disk.storage(), "d.bin", std.mem.sliceAsBytes(&ids));
        var diag: base.Diagnostic = .{};
        var dataset = try TokenizedDataset.openStorage(testing.allocator, disk.storage(), "d.bin", .{}, &diag);
        defer dataset.deinit();
        try dataset.checkVocabulary(11, &diag);
        try testing.expectError(error.TokenOutOfVocabulary, dataset.checkVocabulary(10, &diag));
        var expected: [100]u8 = undefined;
        try testing.expect(std.mem.startsWith(u8, diag.text(), try std.mem.print(&expected, "d.bin: token {d} has id 10, but the vocabulary has 10 ids (0 to 9)", .{bad})));
        ids[bad] = 9;
    }
}

test "the writer refuses bad rows and foreign files" {
    var disk: MemoryDisk = try .init(testing.allocator);
    defer disk.deinit();
    var diag: base.Diagnostic = .{};
    {
        const writer = try TokenizedWriter.create(testing.allocator, disk.storage(), "d.bin", .{ .vocab_size = 4 }, &diag);
        defer writer.destroy();
        try testing.expectError(error.InvalidRow, writer.append(&.{}, null, &diag));
        try testing.expectError(error.InvalidRow, writer.append(&.{ 1, 2 }, &.{true}, &diag));
        try testing.expectError(error.TokenOutOfVocabulary, writer.append(&.{ 1, 4 }, null, &diag));
    }
    try testing.expectEqual(null, try disk.storage().kind("d.bin"));
    try put(disk.storage(), "raw.json", "[{\"text\": \"mine\"}]");
    try testing.expectError(error.NameTaken, TokenizedWriter.create(testing.allocator, disk.storage(), "raw.bin", .{}, &diag));
    try testing.expect(std.mem.startsWith(u8, diag.text(), "raw.json would be overwritten"));
    try put(disk.storage(), "mega.idx", "MMIDIDX");
    try testing.expectError(error.NameTaken, TokenizedWriter.create(testing.allocator, disk.storage(), "mega.bin", .{}, &diag));
}

test "a stream without side files, and a dataset written over another" {
    var disk: MemoryDisk = try .init(testing.allocator);
    defer disk.deinit();
    var diag: base.Diagnostic = .{};
    try writeSample(testing.allocator, disk.storage(), "d.bin", full, &diag);
    try writeSample(testing.allocator, disk.storage(), "d.bin", .{ .rows = false, .mask = false }, &diag);
    var dataset = try TokenizedDataset.openStorage(testing.allocator, disk.storage(), "d.bin", .{}, &diag);
    defer dataset.deinit();
    try testing.expectEqual(10, dataset.tokens.len);
    try testing.expectEqual(null, dataset.mask);
    try testing.expectEqual(null, dataset.row_starts);
    try testing.expectEqual(1, try dataset.verify(&diag));
}

test "running out of memory anywhere leaks nothing" {
    try testing.checkAllAllocationFailures(testing.allocator, struct {
        fn run(gpa: std.mem.Allocator) !void {
            var disk: MemoryDisk = try .init(testing.allocator);
            defer disk.deinit();
            var diag: base.Diagnostic = .{};
            try writeSample(gpa, disk.storage(), "d.bin", full, &diag);
            var dataset = try TokenizedDataset.openStorage(gpa, disk.storage(), "d.bin", .{}, &diag);
            defer dataset.deinit();
            var iter = try dataset.batches(gpa, 1, 2, true);
            iter.deinit();
        }
    }.run, .{});
}

/// Writes one dataset over another with the power going at every operation in turn. After the reboot one of three holds:
/// the old data whole, the new data whole, or a refusal that the next writer heals. Returns how many cuts broke that.
fn powerLossSweep(skip_sync: bool) !usize {
    var broken: usize = 0;
    inline for (.{ .drop, .tear, .reorder }) |crash| for (0..4) |seed| {
        var at: usize = 0;
        while (true) : (at += 1) {
            var disk: MemoryDisk = try .init(testing.allocator);
            defer disk.deinit();
            var diag: base.Diagnostic = .{};
            try writeSample(testing.allocator, disk.storage(), "d.bin", .{ .seed = 1 }, &diag);
            disk.skip_sync = skip_sync;
            disk.fault = .{ .at = disk.operations + at, .what = .power_off_before };
            const done = if (writeSample(testing.allocator, disk.storage(), "d.bin", .{ .seed = 2, .mask = false }, &diag)) true else |_| false;
            try disk.reboot(crash, seed);
            disk.skip_sync = false;
            if (TokenizedDataset.openStorage(testing.allocator, disk.storage(), "d.bin", .{}, &diag)) |opened| {
                var dataset = opened;
                defer dataset.deinit();
                const which = if (dataset.manifest) |m| m.seed else null;
                const whole = if (which == 1)
                    dataset.mask != null and !done
                else
                    which == 2 and dataset.mask == null;
                const sound = if (dataset.verify(&diag)) |_| true else |_| false;
                broken += @intFromBool(!whole or !sound);
            } else |err| {
                broken += @intFromBool(err != error.IncompleteDataset or done);
                if (!skip_sync) try writeSample(testing.allocator, disk.storage(), "d.bin", .{ .seed = 3 }, &diag);
            }
            if (done) break;
        }
    };
    return broken;
}

test "a dataset survives a power loss at every operation of its replacement" {
    try testing.expectEqual(0, try powerLossSweep(false));
}

test "canary: the sweep notices a disk whose sync does nothing" {
    try testing.expect(try powerLossSweep(true) > 0);
}

test "the example of docs/formats/token-bin.md, byte for byte" {
    var disk: MemoryDisk = try .init(testing.allocator);
    defer disk.deinit();
    var diag: base.Diagnostic = .{};
    const writer = try TokenizedWriter.create(testing.allocator, disk.storage(), "two.bin", .{
        .vocab_size = 96,
        .format = "plain",
        .source = "written by hand",
        .license = "Apache-2.0",
    }, &diag);
    defer writer.destroy();
    try writer.append(&.{ 5, 6, 7 }, &.{ false, false, true }, &diag);
    try writer.append(&.{ 8, 9 }, null, &diag);
    _ = try writer.finish(&diag);

    const expected = .{
        .{ "two.bin", "\x05\x00\x00\x00\x06\x00\x00\x00\x07\x00\x00\x00\x08\x00\x00\x00\x09\x00\x00\x00" },
        .{ "two.mask", "\x1c" },
        .{ "two.idx", "\x00\x00\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00" },
        .{
            "two.json",
            \\{
            \\  "schema": "abi_train/token-bin/1",
            \\  "count": 5,
            \\  "rows": 2,
            \\  "vocab_size": 96,
            \\  "tokenizer_hash": null,
            \\  "format": "plain",
            \\  "seed": null,
            \\  "source": "written by hand",
            \\  "license": "Apache-2.0",
            \\  "mask": "two.mask",
            \\  "idx": "two.idx",
            \\  "crc32c": {
            \\    "bin": "8e165f85",
            \\    "mask": "0f605bee",
            \\    "idx": "ff227357"
            \\  }
            \\}
            \\
        },
    };
    inline for (expected) |pair| {
        const bytes = try disk.storage().readAlloc(testing.allocator, pair[0]);
        defer testing.allocator.free(bytes);
        try testing.expectEqualStrings(pair[1], bytes);
    }
}
