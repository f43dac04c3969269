//! Lines from standard input, with Ctrl-C seen while waiting.

const std = @import("std");

pub const Line = union(enum) {
    /// Without its line end; valid until the next read.
    text: []const u8,
    end,
    /// A signal came while waiting for input.
    interrupted,
    /// The line is longer than `max_line_bytes`; it was read to its end and dropped.
    too_long,
    /// Input cannot be read.
    failed,
};

pub const max_line_bytes = 1 << 20;

pub const LineReader = struct {
    gpa: std.mem.Allocator,
    fd: std.posix.fd_t,
    buffer: std.ArrayList(u8) = .empty,
    /// Bytes of `buffer` already given out.
    taken: usize = 0,
    at_end: bool = false,
    dropping: bool = false,

    pub fn deinit(self: *LineReader) void {
        self.buffer.deinit(self.gpa);
        self.* = undefined;
    }

    pub fn next(self: *LineReader) error{OutOfMemory}!Line {
        self.buffer.replaceRangeAssumeCapacity(0, self.taken, &.{});
        self.taken = 0;
        var searched: usize = 0;
        while (true) {
            const unread = self.buffer.items;
            if (std.mem.findScalarPos(u8, unread, searched, '\n')) |at| {
                self.taken = at + 1;
                return self.give(unread[0..at]);
            }
            if (self.at_end) {
                self.taken = unread.len;
                return if (unread.len == 0) .end else self.give(unread);
            }
            if (unread.len > max_line_bytes) {
                self.dropping = true;
                self.buffer.clearRetainingCapacity();
            }
            searched = self.buffer.items.len;
            const room = try self.buffer.addManyAsSlice(self.gpa, 4096);
            const count = std.c.read(self.fd, room.ptr, room.len);
            self.buffer.items.len = searched + @as(usize, @intCast(@max(count, 0)));
            if (count == 0) self.at_end = true;
            if (count < 0) return if (std.posix.errno(count) == .INTR) .interrupted else .failed;
        }
    }

    fn give(self: *LineReader, line: []const u8) Line {
        const dropped = self.dropping;
        self.dropping = false;
        if (dropped) return .too_long;
        return .{ .text = std.mem.trimEnd(u8, line, "\r") };
    }
};

test "lines come one by one, the last one without its end, then the end" {
    const io = std.testing.io;
    var tmp = std.testing.tmpDir(.{});
    defer tmp.cleanup();
    const long = try std.testing.allocator.alloc(u8, max_line_bytes + 9000);
    defer std.testing.allocator.free(long);
    @memset(long, 'x');
    const file = try tmp.dir.createFile(io, "in", .{ .read = true });
    defer file.close(io);
    try file.writeStreamingAll(io, "one\r\n\ntwo\n");
    try file.writeStreamingAll(io, long);
    try file.writeStreamingAll(io, "\nlast");
    const again = try tmp.dir.openFile(io, "in", .{});
    defer again.close(io);

    var reader: LineReader = .{ .gpa = std.testing.allocator, .fd = again.handle };
    defer reader.deinit();
    try std.testing.expectEqualStrings("one", (try reader.next()).text);
    try std.testing.expectEqualStrings("", (try reader.next()).text);
    try std.testing.expectEqualStrings("two", (try reader.next()).text);
    try std.testing.expectEqual(Line.too_long, try reader.next());
    try std.testing.expectEqualStrings("last", (try reader.next()).text);
    try std.testing.expectEqual(Line.end, try reader.next());
    try std.testing.expectEqual(Line.end, try reader.next());
}
