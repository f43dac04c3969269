//! The files rows are read from: opened once, known by size, time and beginning, read in blocks of whole lines.
//!
//! A block owns the lines that begin in its bytes; whoever reads it looks one byte back and as far ahead as its last line
//! goes. So blocks can be read in any order, by any number of threads, and every line is read once.
//! Always holds: no more of a file is in memory than the blocks at work; a line over the limit is never read whole.
//! Does not know: JSON, rows.

const std = @import("std");
const base = @import("base");
const Allocator = std.mem.Allocator;
const Io = std.Io;

pub const Error = error{
    FileNotFound,
    /// A folder, a pipe, a device, or what the system does not let us read.
    NotReadable,
    /// Compressed, or not text in UTF-8.
    NotText,
    /// The file is not what it was.
    SourceChanged,
    OutOfMemory,
};

/// How much of a file says what it is.
const head_bytes = 64 << 10;

pub const Source = struct {
    path: []const u8,
    file: Io.File,
    size: u64,
    mtime_ns: i96,
    /// SHA-256 of the beginning.
    head: base.checksum.Sha256Hex,

    /// Opens a regular file. `diag` names it and says what is wrong. `path` must outlive the source.
    pub fn open(io: Io, path: []const u8, diag: *base.Diagnostic) Error!Source {
        // Asked before it is opened: opening a pipe would wait for its writer.
        const found = Io.Dir.cwd().statFile(io, path, .{}) catch |err| switch (err) {
            error.FileNotFound, error.NotDir => {
                diag.set("{s}: no such file; check the path", .{path});
                return error.FileNotFound;
            },
            else => return unreadable(diag, path, err),
        };
        switch (found.kind) {
            .file => {},
            .directory => {
                diag.set("{s} is a folder; name the JSONL files in it", .{path});
                return error.NotReadable;
            },
            else => {
                diag.set("{s} is not a regular file; save the rows to one first", .{path});
                return error.NotReadable;
            },
        }
        const file = Io.Dir.cwd().openFile(io, path, .{}) catch |err| return unreadable(diag, path, err);
        errdefer file.close(io);

        const stat = file.stat(io) catch |err| return unreadable(diag, path, err);
        var head: [head_bytes]u8 = undefined;
        const len = file.readPositionalAll(io, &head, 0) catch |err| return unreadable(diag, path, err);
        try checkBeginning(path, head[0..len], diag);
        return .{
            .path = path,
            .file = file,
            .size = stat.size,
            .mtime_ns = stat.mtime.nanoseconds,
            .head = base.checksum.sha256Hex(head[0..len]),
        };
    }

    pub fn close(self: *Source, io: Io) void {
        self.file.close(io);
    }

    /// Says whether the open file still has its size and time.
    pub fn check(self: *const Source, io: Io, diag: *base.Diagnostic) Error!void {
        const stat = self.file.stat(io) catch |err| return unreadable(diag, self.path, err);
        if (stat.size == self.size and stat.mtime.nanoseconds == self.mtime_ns) return;
        diag.set("{s} changed while it was read; prepare it again when it is finished", .{self.path});
        return error.SourceChanged;
    }

    pub fn blockCount(self: *const Source, block_bytes: u64) u64 {
        return (self.size + block_bytes - 1) / block_bytes;
    }
};

/// What people give by mistake, told apart by its first bytes.
fn checkBeginning(path: []const u8, head: []const u8, diag: *base.Diagnostic) Error!void {
    const Known = struct { []const u8, []const u8 };
    const packed_forms = [_]Known{
        .{ "\x1f\x8b", "gzip" },        .{ "\x28\xb5\x2f\xfd", "zstd" }, .{ "\xfd7zXZ\x00", "xz" },
        .{ "BZh", "bzip2" },            .{ "PK\x03\x04", "zip" },        .{ "PAR1", "Parquet" },
        .{ "\x04\x22\x4d\x18", "lz4" }, .{ "ARROW1", "Arrow" },
    };
    for (packed_forms) |form| if (std.mem.startsWith(u8, head, form[0])) {
        diag.set("{s} is {s}, not lines of JSON; unpack or convert it to JSONL first", .{ path, form[1] });
        return error.NotText;
    };
    for ([_][]const u8{ "\xff\xfe", "\xfe\xff" }) |mark| if (std.mem.startsWith(u8, head, mark)) {
        diag.set("{s} is UTF-16, not UTF-8; convert it to UTF-8 first", .{path});
        return error.NotText;
    };
}

fn unreadable(diag: *base.Diagnostic, path: []const u8, err: anyerror) Error {
    diag.set("{s}: cannot be read: {s}", .{ path, base.storage.words(err) });
    return error.NotReadable;
}

/// The lines of one block, in a buffer that is used again for the next.
pub const Lines = struct {
    bytes: std.ArrayList(u8) = .empty,
    /// The lines the block owns, as part of `bytes`.
    text: []const u8 = "",
    /// Newlines in the block before `text`: none or one.
    newlines_before: u32 = 0,
    /// `text` goes on behind the block: its last newline belongs to a later one.
    beyond: bool = false,

    pub fn deinit(self: *Lines, gpa: Allocator) void {
        self.bytes.deinit(gpa);
    }

    /// Reads the lines that begin in `offset .. offset + block_bytes`. Of a line longer than `max_line_bytes` only a little more than
    /// that is read.
    pub fn read(self: *Lines, gpa: Allocator, io: Io, source: *const Source, offset: u64, block_bytes: u64, max_line_bytes: usize, diag: *base.Diagnostic) Error!void {
        self.text = "";
        self.newlines_before = 0;
        self.beyond = false;
        self.bytes.clearRetainingCapacity();
        const from = offset -| 1;
        const end = @min(offset + block_bytes, source.size);
        try self.extend(gpa, io, source, from, end, diag);
        const own: usize = @intCast(end - from);
        var start: usize = 0;
        if (offset > 0) {
            // A line begins behind the first newline, which may be the byte before the block.
            const at = std.mem.findScalar(u8, self.bytes.items[0..own], '\n') orelse return;
            start = at + 1;
            self.newlines_before = @intFromBool(at > 0);
        }
        if (start == own) return;
        var searched = own - 1;
        const limit = own + max_line_bytes + 2;
        while (true) {
            if (std.mem.findScalar(u8, self.bytes.items[searched..], '\n')) |at| {
                self.text = self.bytes.items[start .. searched + at + 1];
                break;
            }
            searched = self.bytes.items.len;
            if (from + searched == source.size or searched > limit) {
                self.text = self.bytes.items[start..];
                break;
            }
            // As much again as is there: a long line costs no more reads than its length has digits.
            try self.extend(gpa, io, source, from, @min(source.size, from + searched + @max(16 << 10, searched / 2)), diag);
        }
        self.beyond = start + self.text.len > own;
    }

    fn extend(self: *Lines, gpa: Allocator, io: Io, source: *const Source, from: u64, to: u64, diag: *base.Diagnostic) Error!void {
        const have = self.bytes.items.len;
        const room = try self.bytes.addManyAsSlice(gpa, @intCast(to - from - have));
        const got = source.file.readPositionalAll(io, room, from + have) catch |err| return unreadable(diag, source.path, err);
        if (got == room.len) return;
        diag.set("{s} changed while it was read; prepare it again when it is finished", .{source.path});
        return error.SourceChanged;
    }
};

const testing = std.testing;

test "blocks of any size give every line once, with its number" {
    var tmp = testing.tmpDir(.{});
    defer tmp.cleanup();

    const bodies = [_][]const u8{ "", "a", "a\n", "\n", "\n\n\n", "abc\ndefg\n\nh\nijklmnopqrstuvw\nx", "0123456789012345678901234567890\nz\n" };
    for (bodies) |body| for (1..34) |block_bytes| {
        errdefer std.debug.print("body {s}, block {d}\n", .{ body, block_bytes });
        try tmp.dir.writeFile(testing.io, .{ .sub_path = "x", .data = body });
        const path = try std.fmt.allocPrint(testing.allocator, ".zig-cache/tmp/{s}/x", .{tmp.sub_path});
        defer testing.allocator.free(path);

        var diag: base.Diagnostic = .{};
        var source = try Source.open(testing.io, path, &diag);
        defer source.close(testing.io);

        var lines: Lines = .{};
        defer lines.deinit(testing.allocator);

        var whole: std.ArrayList(u8) = .empty;
        defer whole.deinit(testing.allocator);

        var newlines: u64 = 0;
        for (0..@intCast(source.blockCount(block_bytes))) |k| {
            try lines.read(testing.allocator, testing.io, &source, k * block_bytes, block_bytes, 1000, &diag);
            const own = body[k * block_bytes .. @min(body.len, (k + 1) * block_bytes)];
            if (lines.text.len > 0) {
                // The lines before those of the block are as many as newlines were counted.
                try testing.expectEqual(std.mem.countScalar(u8, whole.items, '\n'), newlines + lines.newlines_before);
            }
            newlines += std.mem.countScalar(u8, own, '\n');
            try whole.appendSlice(testing.allocator, lines.text);
        }
        try testing.expectEqualStrings(body, whole.items);
    };
}

test "a line over the limit is not read whole" {
    var tmp = testing.tmpDir(.{});
    defer tmp.cleanup();

    const body = try testing.allocator.alloc(u8, 1 << 20);
    defer testing.allocator.free(body);

    @memset(body, 'x');
    try tmp.dir.writeFile(testing.io, .{ .sub_path = "x", .data = body });
    const path = try std.fmt.allocPrint(testing.allocator, ".zig-cache/tmp/{s}/x", .{tmp.sub_path});
    defer testing.allocator.free(path);

    var diag: base.Diagnostic = .{};
    var source = try Source.open(testing.io, path, &diag);
    defer source.close(testing.io);

    var lines: Lines = .{};
    defer lines.deinit(testing.allocator);

    try lines.read(testing.allocator, testing.io, &source, 0, 4096, 1000, &diag);
    try testing.expect(lines.text.len > 1000);
    try testing.expect(lines.text.len < 64 << 10);
    try lines.read(testing.allocator, testing.io, &source, 4096, 4096, 1000, &diag);
    try testing.expectEqual(0, lines.text.len);
}

test "what is no file of text is called what it is" {
    var tmp = testing.tmpDir(.{});
    defer tmp.cleanup();

    const path = try std.fmt.allocPrint(testing.allocator, ".zig-cache/tmp/{s}/x", .{tmp.sub_path});
    defer testing.allocator.free(path);

    const cases = [_]struct { []const u8, []const u8 }{ .{ "\x1f\x8b\x08\x00", "is gzip" }, .{ "PK\x03\x04", "is zip" }, .{ "PAR1..", "is Parquet" }, .{ "\xff\xfe{\x00", "is UTF-16" } };
    for (cases) |case| {
        try tmp.dir.writeFile(testing.io, .{ .sub_path = "x", .data = case[0] });
        var diag: base.Diagnostic = .{};
        try testing.expectError(error.NotText, Source.open(testing.io, path, &diag));
        try testing.expect(std.mem.find(u8, diag.text(), case[1]) != null);
    }
    var diag: base.Diagnostic = .{};
    try testing.expectError(error.NotReadable, Source.open(testing.io, "/dev/null", &diag));
    try testing.expectEqualStrings("/dev/null is not a regular file; save the rows to one first", diag.text());
    try testing.expectError(error.NotReadable, Source.open(testing.io, ".", &diag));
    try testing.expectError(error.FileNotFound, Source.open(testing.io, "no/such", &diag));
}
