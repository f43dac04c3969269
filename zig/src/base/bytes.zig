//! Little-endian numbers in byte slices: a bounded reader, and appenders for the other way.
//!
//! The reader never looks past its slice: every read gives a value or `error.EndOfData` and leaves the position where
//! it was. Nothing is copied: byte ranges returned are views of the slice. Does not know: formats, files, alignment.

const std = @import("std");

pub const ReadError = error{EndOfData};

/// A cursor over `data`. Plain value: copy it to look ahead.
pub const Reader = struct {
    data: []const u8,
    position: usize = 0,

    pub fn init(data: []const u8) Reader {
        return .{ .data = data };
    }

    /// Bytes not read yet.
    pub fn remaining(self: *const Reader) usize {
        return self.data.len - self.position;
    }

    /// The next `len` bytes, as a view.
    pub fn take(self: *Reader, len: u64) ReadError![]const u8 {
        if (len > self.remaining()) return error.EndOfData;
        const n: usize = @intCast(len); // Not more than what remains, so it fits.
        defer self.position += n;
        return self.data[self.position..][0..n];
    }

    /// An integer or a float of `@sizeOf(T)` bytes.
    pub fn read(self: *Reader, comptime T: type) ReadError!T {
        const raw = try self.take(@sizeOf(T));
        return load(T, raw[0..@sizeOf(T)]);
    }

    pub fn skip(self: *Reader, len: u64) ReadError!void {
        _ = try self.take(len);
    }
};

/// The number in these bytes.
pub fn load(comptime T: type, raw: *const [@sizeOf(T)]u8) T {
    return switch (@typeInfo(T)) {
        .int => std.mem.readInt(T, raw, .little),
        .float => |f| @bitCast(std.mem.readInt(@Int(.unsigned, f.bits), raw, .little)),
        else => @compileError("integers and floats only, not " ++ @typeName(T)),
    };
}

/// Puts the number into these bytes.
pub fn store(comptime T: type, raw: *[@sizeOf(T)]u8, value: T) void {
    switch (@typeInfo(T)) {
        .int => std.mem.writeInt(T, raw, value, .little),
        .float => |f| std.mem.writeInt(@Int(.unsigned, f.bits), raw, @bitCast(value), .little),
        else => @compileError("integers and floats only, not " ++ @typeName(T)),
    }
}

/// Element `index` of a packed little-endian array; `raw` may have any alignment.
pub fn at(comptime T: type, raw: []const u8, index: usize) T {
    return load(T, raw[index * @sizeOf(T) ..][0..@sizeOf(T)]);
}

/// Appends a number to a growing list.
pub fn append(comptime T: type, gpa: std.mem.Allocator, list: *std.ArrayList(u8), value: T) error{OutOfMemory}!void {
    var raw: [@sizeOf(T)]u8 = undefined;
    store(T, &raw, value);
    try list.appendSlice(gpa, &raw);
}

/// Sends a number to a stream.
pub fn write(comptime T: type, writer: *std.Io.Writer, value: T) std.Io.Writer.Error!void {
    var raw: [@sizeOf(T)]u8 = undefined;
    store(T, &raw, value);
    try writer.writeAll(&raw);
}

/// Sends `count` zero bytes to a stream.
pub fn writeZeros(writer: *std.Io.Writer, count: usize) std.Io.Writer.Error!void {
    try writer.splatByteAll(0, count);
}

/// Shows text that came from outside in a message: control and non-ASCII bytes as \xNN, long texts cut.
pub const Printable = struct {
    text: []const u8,
    limit: usize = 64,

    pub fn format(self: Printable, w: *std.Io.Writer) std.Io.Writer.Error!void {
        try w.writeByte('"');
        for (self.text[0..@min(self.text.len, self.limit)]) |c| {
            if (c == '\\') {
                try w.writeAll("\\\\");
            } else if (c >= 0x20 and c < 0x7f and c != '"') try w.writeByte(c) else try w.print("\\x{x:0>2}", .{c});
        }
        try w.writeByte('"');
        if (self.text.len > self.limit) try w.print("... ({d} bytes)", .{self.text.len});
    }
};

/// For `{f}`: the text in quotes, safe to print.
pub fn printable(text: []const u8) Printable {
    return .{ .text = text };
}

test "numbers come back as they went in, and the end is an error that moves nothing" {
    const gpa = std.testing.allocator;
    var list: std.ArrayList(u8) = .empty;
    defer list.deinit(gpa);

    try append(u8, gpa, &list, 7);
    try append(u32, gpa, &list, 0x01020304);
    try append(i64, gpa, &list, -2);
    try append(f32, gpa, &list, 1.5);
    try append(f64, gpa, &list, -0.1);
    try std.testing.expectEqualSlices(u8, &.{ 7, 4, 3, 2, 1 }, list.items[0..5]);

    var r: Reader = .init(list.items);
    try std.testing.expectEqual(@as(u8, 7), try r.read(u8));
    try std.testing.expectEqual(@as(u32, 0x01020304), try r.read(u32));
    try std.testing.expectEqual(@as(i64, -2), try r.read(i64));
    try std.testing.expectEqual(@as(f32, 1.5), try r.read(f32));
    try std.testing.expectError(error.EndOfData, r.take(9));
    try std.testing.expectError(error.EndOfData, r.take(std.math.maxInt(u64)));
    try std.testing.expectEqual(@as(f64, -0.1), try r.read(f64));
    try std.testing.expectEqual(@as(usize, 0), r.remaining());
    try std.testing.expectError(error.EndOfData, r.read(u8));
    try std.testing.expectEqual(list.items.len, r.position);
}

test "a packed array is read at any alignment" {
    const raw = [_]u8{ 0xff, 1, 0, 2, 0 };
    try std.testing.expectEqual(@as(u16, 2), at(u16, raw[1..], 1));
}

test "a stream gets the same bytes as a list" {
    var buffer: [16]u8 = undefined;
    var w: std.Io.Writer = .fixed(&buffer);
    try write(u16, &w, 0xABCD);
    try writeZeros(&w, 3);
    try std.testing.expectEqualSlices(u8, &.{ 0xCD, 0xAB, 0, 0, 0 }, w.buffered());
}

test "foreign text is shown without its control bytes" {
    var buffer: [256]u8 = undefined;
    try std.testing.expectEqualStrings(
        "\"a\\x1b[0m\\x22\\xc3\\xa4\"",
        try std.fmt.bufPrint(&buffer, "{f}", .{printable("a\x1b[0m\"ä")}),
    );
    try std.testing.expectEqualStrings("\"\\\\p{L}+\"", try std.fmt.bufPrint(&buffer, "{f}", .{printable("\\p{L}+")}));
    const long = try std.fmt.bufPrint(&buffer, "{f}", .{printable(&@as([80]u8, @splat('y')))});
    try std.testing.expect(std.mem.endsWith(u8, long, "\"... (80 bytes)"));
}
