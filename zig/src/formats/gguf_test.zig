//! Bad GGUF files, one for each error name, and every prefix of a good one.

const std = @import("std");
const base = @import("base");
const gguf = @import("gguf.zig");

const Expected = anyerror;

/// A hand-made file: pieces put together in order, with the mistakes the test wants.
const Maker = struct {
    gpa: std.mem.Allocator = std.testing.allocator,
    out: std.ArrayList(u8) = .empty,

    fn deinit(self: *Maker) void {
        self.out.deinit(self.gpa);
    }

    fn int(self: *Maker, comptime T: type, value: T) !void {
        try base.bytes.append(T, self.gpa, &self.out, value);
    }

    fn header(self: *Maker, tensors: u64, keys: u64) !void {
        try self.out.appendSlice(self.gpa, "GGUF");
        try self.int(u32, 3);
        try self.int(u64, tensors);
        try self.int(u64, keys);
    }

    fn string(self: *Maker, text: []const u8) !void {
        try self.int(u64, text.len);
        try self.out.appendSlice(self.gpa, text);
    }

    fn keyU32(self: *Maker, key: []const u8, value: u32) !void {
        try self.string(key);
        try self.int(u32, 4);
        try self.int(u32, value);
    }

    fn tensorInfo(self: *Maker, name: []const u8, ne: []const i64, kind: u32, offset: u64) !void {
        try self.string(name);
        try self.int(u32, @intCast(ne.len));
        for (ne) |n| try self.int(i64, n);
        try self.int(u32, kind);
        try self.int(u64, offset);
    }

    fn pad(self: *Maker, alignment: usize) !void {
        while (self.out.items.len % alignment != 0) try self.int(u8, 0);
    }

    fn zeros(self: *Maker, count: usize) !void {
        try self.out.appendNTimes(self.gpa, 0, count);
    }

    /// Parses what was made and expects the error and a piece of its message.
    fn expect(self: *Maker, err: Expected, words: []const u8) !void {
        var diag: base.Diagnostic = .{};
        if (gguf.File.parse(self.gpa, self.out.items, &diag)) |parsed| {
            var file = parsed;
            file.deinit();
            return error.TestUnexpectedSuccess;
        } else |found| {
            try std.testing.expectEqual(err, @as(Expected, found));
            if (std.mem.find(u8, diag.text(), words) == null) {
                std.debug.print("message: {s}\nwanted: {s}\n", .{ diag.text(), words });
                return error.TestExpectedMessage;
            }
        }
    }

    fn expectGood(self: *Maker) !void {
        var diag: base.Diagnostic = .{};
        var file = gguf.File.parse(self.gpa, self.out.items, &diag) catch |err| {
            std.debug.print("{s}\n", .{diag.text()});
            return err;
        };
        file.deinit();
    }
};

fn expectRaw(raw: []const u8, err: Expected) !void {
    var m: Maker = .{};
    defer m.deinit();
    try m.out.appendSlice(m.gpa, raw);
    try m.expect(err, "");
}

/// One key, one q8_0 matrix, one vector.
fn goodFile(m: *Maker) !void {
    try m.header(2, 3);
    try m.keyU32("general.alignment", 64);
    try m.string("words");
    try m.int(u32, 9);
    try m.int(u32, 8);
    try m.int(u64, 2);
    try m.string("one");
    try m.string("");
    try m.string("numbers");
    try m.int(u32, 9);
    try m.int(u32, 6);
    try m.int(u64, 3);
    try m.zeros(12);
    try m.tensorInfo("a", &.{ 32, 2 }, 8, 0);
    try m.tensorInfo("b", &.{7}, 0, 128);
    try m.pad(64);
    try m.zeros(128 + 28);
}

fn zeros(comptime count: usize) *const [count]u8 {
    return &@as([count]u8, @splat(0));
}

test "the header is checked first" {
    try expectRaw("", error.TooShort);
    try expectRaw("GGUF\x03\x00\x00\x00" ++ zeros(15), error.TooShort);
    try expectRaw("GGUX\x03\x00\x00\x00" ++ zeros(16), error.BadMagic);
    try expectRaw("GGUF\x00\x00\x00\x00" ++ zeros(16), error.UnsupportedVersion);
    try expectRaw("GGUF\x01\x00\x00\x00" ++ zeros(16), error.UnsupportedVersion);
    try expectRaw("GGUF\x04\x00\x00\x00" ++ zeros(16), error.UnsupportedVersion);
    try expectRaw("GGUF\x00\x00\x00\x03" ++ zeros(16), error.WrongEndianness);
}

test "counts that the bytes cannot hold are refused before anything is allocated" {
    for ([_]u64{ 1, std.math.maxInt(u64), 1 << 40 }) |count| {
        var m: Maker = .{};
        defer m.deinit();
        try m.header(0, count);
        try m.zeros(13);
        try m.expect(error.InvalidKeyCount, "n_kv");

        var t: Maker = .{};
        defer t.deinit();
        try t.header(count, 0);
        try t.zeros(24);
        try t.expect(error.InvalidTensorCount, "n_tensors");
    }
}

test "keys: empty, too long, twice, not text" {
    var empty: Maker = .{};
    defer empty.deinit();
    try empty.header(0, 1);
    try empty.keyU32("", 1);
    try empty.expect(error.EmptyKey, "key number 0");

    var long: Maker = .{};
    defer long.deinit();
    try long.header(0, 1);
    try long.int(u64, 65536);
    try long.zeros(65536 + 8);
    try long.expect(error.KeyTooLong, "65536");

    var twice: Maker = .{};
    defer twice.deinit();
    try twice.header(0, 2);
    try twice.keyU32("k", 1);
    try twice.keyU32("k", 2);
    try twice.expect(error.DuplicateKey, "\"k\"");

    var binary: Maker = .{};
    defer binary.deinit();
    try binary.header(0, 1);
    try binary.keyU32("k\xff", 1);
    try binary.expect(error.InvalidUtf8, "\\xff");
}

test "values: unknown type, nested array, sizes beyond the file" {
    var unknown: Maker = .{};
    defer unknown.deinit();
    try unknown.header(0, 1);
    try unknown.string("k");
    try unknown.int(u32, 13);
    try unknown.zeros(8);
    try unknown.expect(error.UnknownValueType, "13");

    var nested: Maker = .{};
    defer nested.deinit();
    try nested.header(0, 1);
    try nested.string("k");
    try nested.int(u32, 9);
    try nested.int(u32, 9);
    try nested.int(u64, 0);
    try nested.expect(error.NestedArray, "array of arrays");

    var element: Maker = .{};
    defer element.deinit();
    try element.header(0, 1);
    try element.string("k");
    try element.int(u32, 9);
    try element.int(u32, 77);
    try element.int(u64, 0);
    try element.expect(error.UnknownValueType, "77");

    for ([_]u64{ (1 << 30) + 1, std.math.maxInt(u64) }) |count| {
        var long: Maker = .{};
        defer long.deinit();
        try long.header(0, 1);
        try long.string("k");
        try long.int(u32, 9);
        try long.int(u32, 10);
        try long.int(u64, count);
        try long.expect(error.ArrayTooLong, "\"k\"");

        var text: Maker = .{};
        defer text.deinit();
        try text.header(0, 1);
        try text.string("k");
        try text.int(u32, 8);
        try text.int(u64, count);
        try text.expect(error.StringTooLong, "\"k\"");
    }

    for ([_]u32{ 6, 8 }) |kind| {
        var cut: Maker = .{};
        defer cut.deinit();
        try cut.header(0, 1);
        try cut.string("k");
        try cut.int(u32, 9);
        try cut.int(u32, kind);
        try cut.int(u64, 100);
        try cut.zeros(50);
        try cut.expect(error.Truncated, "\"k\"");
    }
}

test "a bool is any byte, an array of bools too" {
    var m: Maker = .{};
    defer m.deinit();
    try m.header(0, 1);
    try m.string("k");
    try m.int(u32, 7);
    try m.int(u8, 2);
    var diag: base.Diagnostic = .{};
    var file = try gguf.File.parse(m.gpa, m.out.items, &diag);
    defer file.deinit();
    try std.testing.expectEqual(true, try file.require(bool, "k", &diag));
    try std.testing.expectError(error.WrongKeyType, file.require(u32, "k", &diag));
    try std.testing.expectEqualStrings("key k is stored as bool; it must be u32", diag.text());
    try std.testing.expectError(error.MissingKey, file.require(u32, "none", &diag));
}

test "alignment must be a sane power of two of type u32" {
    for ([_]u32{ 0, 3, 33, 1 << 21, 0x80000000 }) |alignment| {
        var m: Maker = .{};
        defer m.deinit();
        try m.header(0, 1);
        try m.keyU32("general.alignment", alignment);
        try m.expect(error.InvalidAlignment, "power of two");
    }
    var typed: Maker = .{};
    defer typed.deinit();
    try typed.header(0, 1);
    try typed.string("general.alignment");
    try typed.int(u32, 10);
    try typed.int(u64, 32);
    try typed.expect(error.InvalidAlignment, "u64");
}

const BadTensor = struct { name: []const u8 = "t", ne: []const i64 = &.{4}, kind: u32 = 0, offset: u64 = 0, err: Expected, words: []const u8 };

test "each way a tensor description can lie has its own error" {
    const huge = std.math.maxInt(i64);
    const cases = [_]BadTensor{
        .{ .name = "", .err = error.EmptyTensorName, .words = "number 0" },
        .{ .name = &@as([64]u8, @splat('x')), .err = error.TensorNameTooLong, .words = "64" },
        .{ .name = "a\x00b", .err = error.InvalidTensorName, .words = "zero byte" },
        .{ .name = "a\xc0b", .err = error.InvalidUtf8, .words = "UTF-8" },
        .{ .ne = &.{ 1, 1, 1, 1, 1 }, .err = error.TooManyDimensions, .words = "5 dimensions" },
        .{ .ne = &.{-1}, .err = error.InvalidDimension, .words = "-1" },
        .{ .ne = &.{ 4, 0 }, .err = error.InvalidDimension, .words = "dimension 1 is 0" },
        .{ .ne = &.{ huge, 3 }, .err = error.TensorTooLarge, .words = "\"t\"" },
        .{ .ne = &.{ 1 << 32, 1 << 31 }, .err = error.TensorTooLarge, .words = "\"t\"" },
        .{ .ne = &.{huge}, .err = error.TensorTooLarge, .words = "\"t\"" },
        .{ .ne = &.{(1 << 62) - 1}, .err = error.TensorTooLarge, .words = "\"t\"" },
        .{ .kind = 4, .err = error.UnknownTensorType, .words = "Ollama" },
        .{ .kind = 31, .err = error.UnknownTensorType, .words = "31" },
        .{ .kind = 43, .err = error.UnknownTensorType, .words = "43" },
        .{ .kind = 0xffffffff, .err = error.UnknownTensorType, .words = "4294967295" },
        .{ .ne = &.{31}, .kind = 8, .err = error.PartialBlock, .words = "blocks of 32" },
        .{ .ne = &.{128}, .kind = 12, .err = error.PartialBlock, .words = "blocks of 256" },
        .{ .offset = 1, .err = error.InvalidTensorOffset, .words = "must be 0" },
        .{ .offset = std.math.maxInt(u64), .err = error.InvalidTensorOffset, .words = "must be 0" },
        .{ .ne = &.{ 4, 100 }, .err = error.TensorOutOfBounds, .words = "the file ends at" },
    };
    for (cases) |case| {
        var m: Maker = .{};
        defer m.deinit();
        try m.header(1, 0);
        try m.tensorInfo(case.name, case.ne, case.kind, case.offset);
        try m.pad(32);
        try m.zeros(32);
        try m.expect(case.err, case.words);
    }
}

test "two tensors may not share a name, overlap, leave a gap or change places" {
    const pairs = [_]struct { []const u8, u64, u64, Expected }{
        .{ "t", 0, 32, error.DuplicateTensor },
        .{ "u", 0, 0, error.InvalidTensorOffset },
        .{ "u", 0, 64, error.InvalidTensorOffset },
        .{ "u", 0, 16, error.InvalidTensorOffset },
        .{ "u", 32, 0, error.InvalidTensorOffset },
    };
    for (pairs) |pair| {
        var m: Maker = .{};
        defer m.deinit();
        try m.header(2, 0);
        try m.tensorInfo("t", &.{4}, 0, pair[1]);
        try m.tensorInfo(pair[0], &.{4}, 0, pair[2]);
        try m.pad(32);
        try m.zeros(128);
        try m.expect(pair[3], "");
    }
}

test "the last tensor may lack its padding, but nothing may follow it" {
    var m: Maker = .{};
    defer m.deinit();
    try goodFile(&m);
    try m.expectGood();
    try m.zeros(64 - 28);
    try m.expectGood();
    try m.zeros(1);
    try m.expect(error.TrailingBytes, "1 bytes follow");

    var none: Maker = .{};
    defer none.deinit();
    try none.header(0, 0);
    try none.expectGood();
    try none.zeros(32);
    try none.expect(error.TrailingBytes, "no tensors");
}

test "every prefix of a good file is refused without a crash or a leak" {
    var m: Maker = .{};
    defer m.deinit();
    try goodFile(&m);
    for (0..m.out.items.len) |len| {
        const prefix = try m.gpa.dupe(u8, m.out.items[0..len]); // Its own allocation: reading past it is seen.
        defer m.gpa.free(prefix);
        var diag: base.Diagnostic = .{};
        if (gguf.File.parse(m.gpa, prefix, &diag)) |parsed| {
            var file = parsed;
            file.deinit();
            return error.TestUnexpectedSuccess;
        } else |_| try std.testing.expect(diag.text().len > 0);
    }
}

test "a good file with any one byte changed is read or refused, never a crash" {
    var m: Maker = .{};
    defer m.deinit();
    try goodFile(&m);
    const tables = m.out.items.len - 128;
    for (0..tables) |place| for ([_]u8{ 0x00, 0x01, 0x7f, 0x80, 0xff }) |byte| {
        const old = m.out.items[place];
        defer m.out.items[place] = old;
        m.out.items[place] = byte;
        var diag: base.Diagnostic = .{};
        var file = gguf.File.parse(m.gpa, m.out.items, &diag) catch continue;
        for (file.tensors) |t| try std.testing.expect(t.data.len > 0);
        file.deinit();
    };
}

test "running out of memory anywhere leaks nothing" {
    var m: Maker = .{};
    defer m.deinit();
    try goodFile(&m);
    try std.testing.checkAllAllocationFailures(std.testing.allocator, struct {
        fn run(gpa: std.mem.Allocator, raw: []const u8) !void {
            var diag: base.Diagnostic = .{};
            var file = try gguf.File.parse(gpa, raw, &diag);
            file.deinit();
        }
    }.run, .{m.out.items});
}
