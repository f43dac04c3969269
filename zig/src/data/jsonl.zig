//! Lines of a JSONL text: where each ends, whether it is blank, and whether all its bytes are ASCII.
//!
//! A line ends at `\n` or at the end of the text; a `\r` before it is space. Blank lines (nothing but space, or a lone byte
//! order mark) have a number but no value. A byte order mark before a line's value is passed over: files are joined.
//! Does not know: JSON (see `json_line`), files.

const std = @import("std");
const json_line = @import("json_line.zig");

pub const byte_order_mark = "\xef\xbb\xbf";

pub const Line = struct {
    /// Where the line begins, byte order mark and all.
    begin: usize,
    /// The line's value is somewhere in `text[start..end]`.
    start: usize,
    end: usize,
    /// Counted from 1 in this text.
    number: usize,
    /// Every byte is below 0x80.
    ascii: bool,
};

pub const Lines = struct {
    text: []const u8,
    at: usize = 0,
    number: usize = 0,

    /// The next line that is not blank.
    pub fn next(self: *Lines) ?Line {
        while (self.at < self.text.len) {
            const begin = self.at;
            const found = findEnd(self.text, begin);
            self.at = found.end + 1;
            self.number += 1;
            var start = begin;
            if (!found.ascii and std.mem.startsWith(u8, self.text[start..found.end], byte_order_mark)) start += byte_order_mark.len;
            if (isBlank(self.text[start..found.end])) continue;
            return .{ .begin = begin, .start = start, .end = found.end, .number = self.number, .ascii = found.ascii };
        }
        return null;
    }
};

/// How many lines are not blank.
pub fn count(text: []const u8) usize {
    var lines: Lines = .{ .text = text };
    var sum: usize = 0;
    while (lines.next()) |_| sum += 1;
    return sum;
}

fn isBlank(line: []const u8) bool {
    for (line) |byte| switch (byte) {
        ' ', '\t', '\r', 0x0b, 0x0c => {},
        else => return false,
    };
    return true;
}

const lane_count = 16;
const Lanes = @Vector(lane_count, u8);

const End = struct { end: usize, ascii: bool };

fn findEnd(text: []const u8, from: usize) End {
    var high: Lanes = @splat(0);
    var at = from;
    while (at + 4 * lane_count <= text.len) : (at += 4 * lane_count) {
        var lanes: [4]Lanes = undefined;
        inline for (&lanes, 0..) |*l, i| l.* = text[at + i * lane_count ..][0..lane_count].*;
        const newline: Lanes = @splat('\n');
        var hits: u64 = 0;
        inline for (lanes, 0..) |l, i| hits |= @as(u64, @as(u16, @bitCast(l == newline))) << (i * lane_count);
        if (hits == 0) {
            high |= (lanes[0] | lanes[1]) | (lanes[2] | lanes[3]);
            continue;
        }
        const len = @ctz(hits);
        var high_bits: u64 = 0;
        inline for (lanes, 0..) |l, i| high_bits |= @as(u64, @as(u16, @bitCast(l >= @as(Lanes, @splat(0x80))))) << (i * lane_count);
        const before = (@as(u64, 1) << @intCast(len)) - 1;
        return .{ .end = at + len, .ascii = high_bits & before == 0 and @reduce(.Or, high) < 0x80 };
    }
    var seen = @reduce(.Or, high);
    while (at < text.len and text[at] != '\n') : (at += 1) seen |= text[at];
    return .{ .end = at, .ascii = seen < 0x80 };
}

/// What a whole text holds; for measuring, and for checking a file before anything else is done with it.
pub const Counts = struct {
    lines: u64 = 0,
    values: u64 = 0,
    text_bytes: u64 = 0,
    /// The first line that is no JSON value, or 0; with its defect and the column, counted in bytes from 1.
    bad_line: u64 = 0,
    defect: json_line.Defect = .unexpected,
    column: u64 = 0,
};

/// Parses every line; stops at the first that cannot be.
pub fn check(gpa: std.mem.Allocator, text: []const u8, limits: json_line.Limits) error{OutOfMemory}!Counts {
    var parser: json_line.Parser = .init(gpa, limits);
    defer parser.deinit();

    var counts: Counts = .{};
    var blocks: Blocks = .{ .text = text };
    var number: usize = 0;
    while (blocks.next()) |block| {
        try parser.load(block);
        var lines: Lines = .{ .text = block };
        while (lines.next()) |line| {
            const value = parser.parse(line.start, line.end) catch |err| switch (err) {
                error.OutOfMemory => return error.OutOfMemory,
                error.Defective => {
                    counts.bad_line = number + line.number;
                    counts.defect = parser.defect;
                    counts.column = line.start - line.begin + parser.defect_at + 1;
                    return counts;
                },
            };
            counts.lines += 1;
            counts.values += value.nodes.len;
            for (value.nodes) |*node| counts.text_bytes += if (node.kind == .string) node.text_len else 0;
        }
        number += lines.number;
    }
    return counts;
}

/// A text in pieces of whole lines that fit into a near cache, or of one longer line.
pub const Blocks = struct {
    text: []const u8,
    at: usize = 0,

    pub const size = 128 << 10;

    pub fn next(self: *Blocks) ?[]const u8 {
        const rest = self.text[self.at..];
        if (rest.len == 0) return null;
        const len = if (rest.len <= size) rest.len else if (std.mem.findScalarLast(u8, rest[0..size], '\n')) |at| at + 1 else @min(rest.len, size + findEnd(rest[size..], 0).end + 1);
        self.at += len;
        return rest[0..len];
    }
};

const testing = std.testing;

test "lines end at a newline or at the end, blank ones are passed over but numbered" {
    const text = "\xef\xbb\xbf{\"a\": 1}\r\n\n \t\r\n[2]\n\xef\xbb\xbf\n\"\u{e9}\"";
    var lines: Lines = .{ .text = text };
    const expected = [_]struct { []const u8, usize, bool }{ .{ "{\"a\": 1}\r", 1, false }, .{ "[2]", 4, true }, .{ "\"\u{e9}\"", 6, false } };
    for (expected) |want| {
        const line = lines.next().?;
        try testing.expectEqualStrings(want[0], text[line.start..line.end]);
        try testing.expectEqual(want[1], line.number);
        try testing.expectEqual(want[2], line.ascii);
    }
    try testing.expectEqual(null, lines.next());
    for ([_][]const u8{ "", "\n", "\r\n \n", byte_order_mark }) |empty| try testing.expectEqual(0, count(empty));
    try testing.expectEqual(2, count("1\n2"));
    try testing.expectEqual(2, count("1\n2\n"));
}

test "every length of line, with a high byte at every place" {
    var buffer: [300]u8 = undefined;
    for (0..140) |len| for ([_]usize{ 0, 3, 61 }) |before| for (0..2) |high| {
        @memset(&buffer, 'x');
        @memset(buffer[0..before], 0xc3);
        if (before > 0) buffer[before - 1] = '\n';
        if (high == 1 and len > 0) buffer[before + len / 2] = 0xc3;
        buffer[before + len] = '\n';
        buffer[before + len + 1] = 0xff; // Behind the line: of no interest.
        for ([_]usize{ before + len, before + len + 1, 300 }) |size| {
            const found = findEnd(buffer[0..size], before);
            try testing.expectEqual(before + len, found.end);
            try testing.expectEqual(high == 0 or len == 0, found.ascii);
        }
    };
}

test "a text is checked line by line, and the first bad line is named" {
    const counts = try check(testing.allocator, "{\"a\": \"xy\"}\n\n[1, \"z\"]\n", .{});
    try testing.expectEqual(Counts{ .lines = 2, .values = 6, .text_bytes = 4 }, counts);
    const bad = try check(testing.allocator, "1\n\n{\"a\": tru}\n5", .{});
    try testing.expectEqual(3, bad.bad_line);
    try testing.expectEqual(10, bad.column);
    try testing.expectEqual(.unexpected, bad.defect);
}
