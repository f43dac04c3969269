//! The real storage: the operations of `Storage` over the operating system.
//!
//! Every failure keeps its cause: `translate` maps the system's names to the seam's few. Interrupted calls are repeated by
//! `std.Io`; a failed sync is not, since the kernel may have dropped the pages it could not write.

const std = @import("std");
const builtin = @import("builtin");
const Io = std.Io;
const Allocator = std.mem.Allocator;
const storage_file = @import("storage.zig");
const Storage = storage_file.Storage;
const Error = storage_file.Error;
const Handle = storage_file.Handle;
const Kind = storage_file.Kind;
const Entry = storage_file.Entry;
const Mapping = storage_file.Mapping;

/// Must not move while a `Storage` made from it is in use.
pub const Disk = struct {
    io: Io,

    pub fn init(io: Io) Disk {
        return .{ .io = io };
    }

    pub fn storage(self: *Disk) Storage {
        return .{ .context = self, .vtable = &vtable };
    }
};

const vtable: Storage.VTable = .{
    .create = create,
    .reopen = reopen,
    .write = write,
    .sync = sync,
    .close = close,
    .createFolder = createFolder,
    .syncFolder = syncFolder,
    .rename = rename,
    .exchange = exchange,
    .deleteFile = deleteFile,
    .deleteFolder = deleteFolder,
    .list = list,
    .kind = kind,
    .map = map,
    .willNeed = willNeed,
    .unmap = unmap,
    .lock = lock,
    .unique = unique,
};

fn ioOf(context: *anyopaque) Io {
    const self: *Disk = @ptrCast(@alignCast(context));
    return self.io;
}

fn translate(err: anyerror) Error {
    return switch (err) {
        error.NoSpaceLeft, error.DiskQuota, error.FileTooBig => error.NoSpaceLeft,
        error.InputOutput, error.HardwareFailure => error.InputOutput,
        error.AccessDenied, error.PermissionDenied => error.AccessDenied,
        error.FileNotFound => error.FileNotFound,
        error.PathAlreadyExists, error.DirNotEmpty => error.AlreadyExists,
        error.NotDir => error.NotDir,
        error.IsDir => error.IsDir,
        error.NameTooLong, error.BadPathName => error.NameTooLong,
        error.SymLinkLoop => error.NotAFile,
        error.ReadOnlyFileSystem => error.ReadOnlyFileSystem,
        error.WouldBlock => error.Locked,
        error.ProcessFdQuotaExceeded, error.SystemFdQuotaExceeded => error.TooManyOpenFiles,
        error.OutOfMemory, error.SystemResources, error.LockedMemoryLimitExceeded => error.OutOfMemory,
        error.Canceled => error.Canceled,
        else => error.Unexpected,
    };
}

fn fileOf(handle: Handle) Io.File {
    return .{ .handle = @intCast(handle), .flags = .{ .nonblocking = false } };
}

fn handleOf(file: Io.File) Handle {
    return @intCast(file.handle);
}

fn create(context: *anyopaque, path: []const u8) Error!Handle {
    const file = Io.Dir.cwd().createFile(ioOf(context), path, .{ .exclusive = true, .truncate = false }) catch |err|
        return translate(err);
    return handleOf(file);
}

fn reopen(context: *anyopaque, path: []const u8, size: u64) Error!Handle {
    const io = ioOf(context);
    const file = Io.Dir.cwd().openFile(io, path, .{ .mode = .write_only }) catch |err| return translate(err);
    errdefer file.close(io);

    file.setLength(io, size) catch |err| return translate(err);
    // Writing goes on where the file's own position is.
    const at = std.math.cast(i64, size) orelse return error.Unexpected;
    if (std.c.lseek(file.handle, at, std.c.SEEK.SET) != at) return error.InputOutput;
    return handleOf(file);
}

fn write(context: *anyopaque, handle: Handle, bytes: []const u8) Error!usize {
    return fileOf(handle).writeStreaming(ioOf(context), "", &.{bytes}, 1) catch |err| translate(err);
}

fn sync(context: *anyopaque, handle: Handle) Error!void {
    // On Apple's systems fsync stops at the drive's cache; this call goes through it. Not every file system has it.
    if (comptime builtin.os.tag.isDarwin()) {
        if (std.c.fcntl(@intCast(handle), std.c.F.FULLFSYNC, @as(c_int, 0)) == 0) return;
    }
    fileOf(handle).sync(ioOf(context)) catch |err| return translate(err);
}

fn close(context: *anyopaque, handle: Handle) void {
    fileOf(handle).close(ioOf(context));
}

fn createFolder(context: *anyopaque, path: []const u8) Error!void {
    Io.Dir.cwd().createDir(ioOf(context), path, .default_dir) catch |err| return translate(err);
}

fn syncFolder(context: *anyopaque, path: []const u8) Error!void {
    const io = ioOf(context);
    const dir = Io.Dir.cwd().openDir(io, path, .{ .iterate = true }) catch |err| return translate(err);
    defer dir.close(io);

    const as_file: Io.File = .{ .handle = dir.handle, .flags = .{ .nonblocking = false } };
    as_file.sync(io) catch |err| return translate(err);
}

fn rename(context: *anyopaque, old: []const u8, new: []const u8) Error!void {
    Io.Dir.cwd().rename(old, Io.Dir.cwd(), new, ioOf(context)) catch |err| return translate(err);
}

fn exchange(context: *anyopaque, a: []const u8, b: []const u8) Error!void {
    if (builtin.os.tag == .linux) {
        const linux = std.os.linux;
        const a_path = std.posix.toPosixPath(a) catch return error.NameTooLong;
        const b_path = std.posix.toPosixPath(b) catch return error.NameTooLong;
        const result = linux.renameat2(linux.AT.FDCWD, &a_path, linux.AT.FDCWD, &b_path, .{ .EXCHANGE = true });
        switch (linux.errno(result)) {
            .SUCCESS => return,
            .INVAL, .NOSYS => {}, // A file system without the swap: two renames below.
            .NOSPC, .DQUOT => return error.NoSpaceLeft,
            .IO => return error.InputOutput,
            .ACCES, .PERM => return error.AccessDenied,
            .NOENT => return error.FileNotFound,
            .ROFS => return error.ReadOnlyFileSystem,
            else => return error.Unexpected,
        }
    }
    if (comptime builtin.os.tag.isDarwin()) {
        const a_path = std.posix.toPosixPath(a) catch return error.NameTooLong;
        const b_path = std.posix.toPosixPath(b) catch return error.NameTooLong;
        if (std.c.renameatx_np(std.c.AT.FDCWD, &a_path, std.c.AT.FDCWD, &b_path, .{ .SWAP = true }) == 0) return;
    }
    // Between the two renames `b` is missing; what was there still stands under the third name.
    var buffer: [Io.Dir.max_path_bytes]u8 = undefined;
    const aside = std.mem.print(&buffer, "{s}" ++ storage_file.temporary_mark ++ "{x:0>16}", .{ b, unique(context) }) catch
        return error.NameTooLong;
    try rename(context, b, aside);
    rename(context, a, b) catch |err| {
        rename(context, aside, b) catch {}; // The first failure is the one to report.
        return err;
    };
    try rename(context, aside, a);
}

fn deleteFile(context: *anyopaque, path: []const u8) Error!void {
    Io.Dir.cwd().deleteFile(ioOf(context), path) catch |err| return translate(err);
}

fn deleteFolder(context: *anyopaque, path: []const u8) Error!void {
    Io.Dir.cwd().deleteDir(ioOf(context), path) catch |err| return translate(err);
}

fn list(context: *anyopaque, arena: Allocator, path: []const u8) Error![]Entry {
    const io = ioOf(context);
    const dir = Io.Dir.cwd().openDir(io, path, .{ .iterate = true }) catch |err| return translate(err);
    defer dir.close(io);

    var entries: std.ArrayList(Entry) = .empty;
    var walk = dir.iterate();
    while (walk.next(io) catch |err| return translate(err)) |found| {
        const what: Kind = switch (found.kind) {
            .file => .file,
            .directory => .folder,
            // Some file systems do not say, and a link is followed nowhere: removal of it removes the link.
            .unknown => unknown: {
                const stat = dir.statFile(io, found.name, .{ .follow_symlinks = false }) catch |err| return translate(err);
                break :unknown kindOf(stat.kind);
            },
            else => .other,
        };
        try entries.append(arena, .{ .name = try arena.dupe(u8, found.name), .kind = what });
    }
    return entries.items;
}

fn kindOf(k: Io.File.Kind) Kind {
    return switch (k) {
        .file => .file,
        .directory => .folder,
        else => .other,
    };
}

fn kind(context: *anyopaque, path: []const u8) Error!?Kind {
    const stat = Io.Dir.cwd().statFile(ioOf(context), path, .{}) catch |err| switch (err) {
        error.FileNotFound => return null,
        else => return translate(err),
    };
    return kindOf(stat.kind);
}

fn map(context: *anyopaque, path: []const u8) Error!struct { []const u8, usize } {
    const io = ioOf(context);
    // Looked at first: opening a pipe waits until somebody writes.
    const before = Io.Dir.cwd().statFile(io, path, .{}) catch |err| return translate(err);
    if (before.kind != .file and before.kind != .directory) return error.NotAFile;
    const file = Io.Dir.cwd().openFile(io, path, .{ .allow_directory = false }) catch |err| return translate(err);
    defer file.close(io);

    const stat = file.stat(io) catch |err| return translate(err);
    if (stat.kind != .file) return error.NotAFile; // A pipe or device has no fixed bytes to map.
    const len = std.math.cast(usize, stat.size) orelse return error.OutOfMemory;
    if (len == 0) return .{ "", 0 };
    const bytes = std.posix.mmap(null, len, .{ .READ = true }, .{ .TYPE = .PRIVATE }, file.handle, 0) catch |err|
        return translate(err);
    return .{ bytes, 0 };
}

fn willNeed(_: *anyopaque, mapping: *const Mapping, start: usize, count: usize) void {
    // A kernel that does not take the hint reads the pages when they are touched.
    advise(mapping, start, count) catch {};
}

fn advise(mapping: *const Mapping, start: usize, count: usize) std.posix.MadviseError!void {
    // A mapping starts at a page, and so must what is asked for.
    const page_start = std.mem.alignBackward(usize, start, std.heap.pageSize());
    const pages: [*]align(std.heap.page_size_min) u8 = @ptrCast(@alignCast(@constCast(mapping.bytes.ptr + page_start)));
    return std.posix.madvise(pages, start + count - page_start, std.posix.MADV.WILLNEED);
}

fn unmap(_: *anyopaque, mapping: *Mapping) void {
    if (mapping.bytes.len == 0) return;
    std.posix.munmap(@alignCast(mapping.bytes));
}

fn lock(context: *anyopaque, path: []const u8) Error!Handle {
    const file = Io.Dir.cwd().createFile(ioOf(context), path, .{
        .read = true,
        .truncate = false,
        .lock = .exclusive,
        .lock_nonblocking = true,
    }) catch |err| return translate(err);
    return handleOf(file);
}

fn unique(context: *anyopaque) u64 {
    var bytes: [8]u8 = undefined;
    ioOf(context).random(&bytes);
    return std.mem.readInt(u64, &bytes, .little);
}

const testing = std.testing;
const explain = storage_file.explain;

fn testPath(tmp: *testing.TmpDir, name: []const u8) ![]u8 {
    return std.fmt.allocPrint(testing.allocator, ".zig-cache/tmp/{s}/{s}", .{ tmp.sub_path, name });
}

test "a file written atomically is replaced whole, and a writer that gives up leaves nothing" {
    var tmp = testing.tmpDir(.{ .iterate = true });
    defer tmp.cleanup();

    var disk: Disk = .init(testing.io);
    const s = disk.storage();
    const path = try testPath(&tmp, "state.json");
    defer testing.allocator.free(path);

    try storage_file.writeFile(testing.allocator, s, path, "one");
    try storage_file.writeFile(testing.allocator, s, path, "two two");
    {
        var given_up = try storage_file.AtomicFile.create(testing.allocator, s, path, &.{});
        defer given_up.deinit();

        try given_up.writer.interface.writeAll("half");
    }
    const read = try s.readAlloc(testing.allocator, path);
    defer testing.allocator.free(read);

    try testing.expectEqualStrings("two two", read);
    var listing = try s.list(testing.allocator, storage_file.parentOf(path));
    defer listing.deinit();

    try testing.expectEqual(1, listing.entries.len);
    try testing.expectEqualStrings("state.json", listing.entries[0].name);
}

test "a kept part is continued behind the bytes that count, and takes its name at the end" {
    var tmp = testing.tmpDir(.{});
    defer tmp.cleanup();

    var disk: Disk = .init(testing.io);
    const s = disk.storage();
    const path = try testPath(&tmp, "tokens.bin");
    defer testing.allocator.free(path);

    var begin: storage_file.Digest = .{};
    {
        var part = try storage_file.AtomicFile.createPart(testing.allocator, s, path, null, &.{});
        defer part.deinit();

        part.kept = true;
        try part.writer.interface.writeAll("one ");
        begin = try part.writer.flushed();
        try part.writer.interface.writeAll("never told of");
    }
    try testing.expectEqual(null, try s.kind(path));
    for ([_]?storage_file.Digest{ begin, null }, [_][]const u8{ "one two", "two" }) |from, whole| {
        var part = try storage_file.AtomicFile.createPart(testing.allocator, s, path, from, &.{});
        defer part.deinit();

        try part.writer.interface.writeAll("two");
        const digest = try part.finish();
        try testing.expectEqual(@import("checksum.zig").crc32c(whole), digest.crc32c);
        try testing.expectEqual(whole.len, digest.size);
        try part.commit();
        const read = try s.readAlloc(testing.allocator, path);
        defer testing.allocator.free(read);

        try testing.expectEqualStrings(whole, read);
    }
    try testing.expectError(error.FileNotFound, s.vtable.reopen(s.context, "no/such/file", 0));
}

test "a folder appears whole, is replaced by exchange, and is retired without a trace" {
    var tmp = testing.tmpDir(.{ .iterate = true });
    defer tmp.cleanup();

    var disk: Disk = .init(testing.io);
    const s = disk.storage();
    const path = try testPath(&tmp, "run/checkpoint-1");
    defer testing.allocator.free(path);

    try s.ensureFolder(storage_file.parentOf(path));
    for ([_][]const u8{ "first", "second" }) |content| {
        var folder = try storage_file.AtomicFolder.create(testing.allocator, s, path);
        defer folder.deinit();

        const digest = try folder.addFile("a", content);
        try testing.expectEqual(content.len, digest.size);
        try testing.expectEqual(@import("checksum.zig").crc32c(content), digest.crc32c);
        try folder.seal();
        try folder.commit();
        const file = try storage_file.join(testing.allocator, path, "a");
        defer testing.allocator.free(file);
        const read = try s.readAlloc(testing.allocator, file);
        defer testing.allocator.free(read);

        try testing.expectEqualStrings(content, read);
    }
    try storage_file.retireFolder(testing.allocator, s, path);
    var listing = try s.list(testing.allocator, storage_file.parentOf(path));
    defer listing.deinit();

    try testing.expectEqual(0, listing.entries.len);
}

test "the kernel takes a hint for any part of a mapped file, and its bytes stay what they are" {
    var tmp = testing.tmpDir(.{});
    defer tmp.cleanup();

    var disk: Disk = .init(testing.io);
    const s = disk.storage();
    const path = try testPath(&tmp, "tokens.bin");
    defer testing.allocator.free(path);

    var bytes: [3 * std.heap.page_size_max + 5]u8 = undefined;
    for (&bytes, 0..) |*b, i| b.* = @truncate(i *% 31);
    try storage_file.writeFile(testing.allocator, s, path, &bytes);
    var mapping = try s.map(path);
    defer mapping.unmap();

    for ([_][2]usize{ .{ 0, 1 }, .{ bytes.len - 1, 1 }, .{ 4095, 2 }, .{ 4097, bytes.len - 4097 } }) |range|
        try advise(&mapping, range[0], range[1]);
    mapping.willNeed(bytes.len - 2, 100);
    mapping.willNeed(bytes.len + 1, 1);
    mapping.willNeed(7, 0);
    try testing.expectEqualSlices(u8, &bytes, mapping.bytes);
}

test "a second lock is refused at once, and granted after release" {
    var tmp = testing.tmpDir(.{});
    defer tmp.cleanup();

    var disk: Disk = .init(testing.io);
    const s = disk.storage();
    const path = try testPath(&tmp, "run.lock");
    defer testing.allocator.free(path);

    var first = try s.lock(path);
    try testing.expectError(error.Locked, s.lock(path));
    first.release();
    var second = try s.lock(path);
    second.release();
}

test "a missing folder and a full device are named" {
    var disk: Disk = .init(testing.io);
    const s = disk.storage();
    try testing.expectError(error.FileNotFound, s.map("no/such/file"));
    try testing.expectEqual(null, try s.kind("no/such/file"));
    try testing.expectError(error.FileNotFound, storage_file.writeFile(testing.allocator, s, "no/such/file", "x"));
    try testing.expectError(error.NotDir, s.ensureFolder("/dev/null"));
    if (builtin.os.tag == .linux) {
        const full = Io.Dir.cwd().openFile(testing.io, "/dev/full", .{ .mode = .write_only }) catch return;
        defer full.close(testing.io);

        try testing.expectError(error.NoSpaceLeft, s.vtable.write(s.context, handleOf(full), "x"));
    }
    var diag: @import("diagnostic.zig").Diagnostic = .{};
    explain(&diag, error.NoSpaceLeft, "write", "run/x");
    try testing.expectEqualStrings("cannot write run/x: the disk is full. Free some space and run again.", diag.text());
}

fn makePipe(path: []const u8) !void {
    if (builtin.os.tag != .linux) return error.SkipZigTest;
    const name = try std.posix.toPosixPath(path);
    if (std.os.linux.mknodat(std.os.linux.AT.FDCWD, &name, std.os.linux.S.IFIFO | 0o600, 0) != 0) return error.NoPipe;
}

test "what is no regular file keeps its name: no writer opens or replaces it" {
    const AtomicFile = storage_file.AtomicFile;
    const AtomicFolder = storage_file.AtomicFolder;
    const gpa = testing.allocator;
    var tmp = testing.tmpDir(.{ .iterate = true });
    defer tmp.cleanup();

    const pipe = try testPath(&tmp, "pipe");
    defer gpa.free(pipe);
    const link = try testPath(&tmp, "link");
    defer gpa.free(link);
    const part = try testPath(&tmp, "new.part");
    defer gpa.free(part);
    const late = try testPath(&tmp, "late");
    defer gpa.free(late);

    try makePipe(pipe);
    try makePipe(part);
    try tmp.dir.symLink(testing.io, "pipe", "link", .{});
    var disk: Disk = .init(testing.io);
    const s = disk.storage();
    for ([_][]const u8{ pipe, link }) |path| {
        try testing.expectError(error.NotAFile, storage_file.writeFile(gpa, s, path, "x"));
        try testing.expectError(error.NotAFile, AtomicFile.create(gpa, s, path, &.{}));
        try testing.expectError(error.NotAFile, AtomicFile.createPart(gpa, s, path, null, &.{}));
        try testing.expectError(error.NotAFile, AtomicFolder.create(gpa, s, path));
        try testing.expectEqual(.other, try s.kind(path));
    }
    try testing.expectError(error.NotAFile, AtomicFile.createPart(gpa, s, part[0 .. part.len - AtomicFile.part_ending.len], null, &.{}));
    {
        var file = try AtomicFile.create(gpa, s, late, &.{});
        defer file.deinit();

        try file.writer.interface.writeAll("x");
        try makePipe(late);
        try testing.expectError(error.NotAFile, file.commit());
    }
    try s.deleteFile(late);
    {
        var folder = try AtomicFolder.create(gpa, s, late);
        defer folder.deinit();

        try folder.seal();
        try makePipe(late);
        try testing.expectError(error.NotAFile, folder.commit());
    }
    try testing.expectEqual(.other, try s.kind(late));
    // Nothing else came to be beside them.
    var listing = try s.list(gpa, storage_file.parentOf(pipe));
    defer listing.deinit();

    try testing.expectEqual(4, listing.entries.len);
    for (listing.entries) |entry| try testing.expectEqual(.other, entry.kind);
}

test "a pipe is refused without waiting for a writer" {
    var tmp = testing.tmpDir(.{});
    defer tmp.cleanup();

    const path = try testPath(&tmp, "pipe");
    defer testing.allocator.free(path);

    try makePipe(path);
    var disk: Disk = .init(testing.io);
    try testing.expectError(error.NotAFile, disk.storage().map(path));
    try testing.expectError(error.NotAFile, disk.storage().readAlloc(testing.allocator, path));
}
