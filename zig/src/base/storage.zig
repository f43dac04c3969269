//! The storage seam: the only place which creates, renames, syncs or removes a file that must survive.
//!
//! `Storage` is a small table of operations. `Disk` is the real one; `MemoryDisk` (tests) records operations, fails the
//! k-th one, and loses or reorders whatever was not synced when its power goes.
//! Commit protocol, for a file (`AtomicFile`) and for a folder (`AtomicFolder`): temporary name beside the target, write with
//! a running checksum, sync, check, rename, sync the parent. A sync that fails means that the save failed: what the kernel
//! kept of it is unknown, so nothing is retried and nothing is announced.
//! Does not know: what is inside the files. Paths are taken as given, relative ones against the current folder.

const std = @import("std");
const builtin = @import("builtin");
const assert = std.debug.assert;
const Allocator = std.mem.Allocator;
const Io = std.Io;
const Crc32c = @import("checksum.zig").Crc32c;
const Diagnostic = @import("diagnostic.zig").Diagnostic;

pub const MemoryDisk = @import("memory_disk.zig").MemoryDisk;
pub const Crash = @import("memory_disk.zig").Crash;

/// One name per cause; `explain` turns each into words.
pub const Error = error{
    /// The disk, or the user's share of it, is full.
    NoSpaceLeft,
    /// The device reported an error.
    InputOutput,
    AccessDenied,
    FileNotFound,
    AlreadyExists,
    NotDir,
    IsDir,
    /// A pipe, a socket, a device, or links that lead in a circle.
    NotAFile,
    NameTooLong,
    ReadOnlyFileSystem,
    /// A write stored nothing and gave no reason.
    ShortWrite,
    /// Someone else holds the lock.
    Locked,
    TooManyOpenFiles,
    OutOfMemory,
    Canceled,
    Unexpected,
};

pub const Kind = enum { file, folder, other };

pub const Entry = struct {
    /// Name inside the listed folder, owned by the list.
    name: []const u8,
    kind: Kind,
};

/// Names sorted, so that every walk over a folder is the same walk.
pub const Listing = struct {
    arena: std.heap.ArenaAllocator,
    entries: []const Entry,

    pub fn deinit(self: *Listing) void {
        self.arena.deinit();
        self.* = undefined;
    }
};

/// A file's bytes, mapped for reading. Must not outlive the storage it came from.
pub const Mapping = struct {
    bytes: []const u8,
    storage: Storage,
    token: usize,

    /// Asks for `count` bytes from `start` on to be fetched while the caller does something else. A hint: it never waits, never
    /// fails and changes no byte. What lies behind the end is left out.
    pub fn willNeed(self: *const Mapping, start: usize, count: usize) void {
        const from = @min(start, self.bytes.len);
        const bytes: usize = @min(count, self.bytes.len - from);
        if (bytes > 0) self.storage.vtable.willNeed(self.storage.context, self, from, bytes);
    }

    pub fn unmap(self: *Mapping) void {
        self.storage.vtable.unmap(self.storage.context, self);
        self.* = undefined;
    }
};

/// An open file or lock; the number's meaning is the implementation's.
pub const Handle = usize;

pub const Storage = struct {
    context: *anyopaque,
    vtable: *const VTable,

    pub const VTable = struct {
        /// Creates a new file for writing; an existing one is `AlreadyExists`.
        create: *const fn (*anyopaque, path: []const u8) Error!Handle,
        /// Opens an existing file for writing, cut to its first `size` bytes; what is written goes behind them.
        reopen: *const fn (*anyopaque, path: []const u8, size: u64) Error!Handle,
        /// Appends; may store fewer bytes than given, returns how many.
        write: *const fn (*anyopaque, Handle, bytes: []const u8) Error!usize,
        sync: *const fn (*anyopaque, Handle) Error!void,
        close: *const fn (*anyopaque, Handle) void,
        createFolder: *const fn (*anyopaque, path: []const u8) Error!void,
        syncFolder: *const fn (*anyopaque, path: []const u8) Error!void,
        /// A file replaces a file at once; a folder needs a free name.
        rename: *const fn (*anyopaque, old: []const u8, new: []const u8) Error!void,
        /// Swaps two existing names at once where the system can.
        exchange: *const fn (*anyopaque, a: []const u8, b: []const u8) Error!void,
        deleteFile: *const fn (*anyopaque, path: []const u8) Error!void,
        deleteFolder: *const fn (*anyopaque, path: []const u8) Error!void,
        list: *const fn (*anyopaque, arena: Allocator, path: []const u8) Error![]Entry,
        kind: *const fn (*anyopaque, path: []const u8) Error!?Kind,
        map: *const fn (*anyopaque, path: []const u8) Error!struct { []const u8, usize },
        /// The hint of `Mapping.willNeed`; the range lies inside the mapping and is not empty.
        willNeed: *const fn (*anyopaque, *const Mapping, start: usize, count: usize) void,
        unmap: *const fn (*anyopaque, *Mapping) void,
        /// Takes the exclusive lock of a file (made if missing) or says `Locked` at once.
        lock: *const fn (*anyopaque, path: []const u8) Error!Handle,
        /// A number no running writer shares, for temporary names.
        unique: *const fn (*anyopaque) u64,
    };

    pub fn map(self: Storage, path: []const u8) Error!Mapping {
        const bytes, const token = try self.vtable.map(self.context, path);
        return .{ .bytes = bytes, .storage = self, .token = token };
    }

    /// What stands at `path`; null when nothing does.
    pub fn kind(self: Storage, path: []const u8) Error!?Kind {
        return self.vtable.kind(self.context, path);
    }

    /// Whether a file may take this name: nothing stands there, or a regular file. A rename would also replace a device or a pipe
    /// for everyone who uses it, so every writer asks before it opens anything. Links are followed.
    pub fn checkFileName(self: Storage, path: []const u8) Error!void {
        return switch (try self.kind(path) orelse return) {
            .file => {},
            .folder => error.IsDir,
            .other => error.NotAFile,
        };
    }

    /// The same for a folder; true when one stands there.
    fn checkFolderName(self: Storage, path: []const u8) Error!bool {
        return switch (try self.kind(path) orelse return false) {
            .folder => true,
            .file => error.NotDir,
            .other => error.NotAFile,
        };
    }

    pub fn list(self: Storage, gpa: Allocator, path: []const u8) Error!Listing {
        var arena: std.heap.ArenaAllocator = .init(gpa);
        errdefer arena.deinit();

        const entries = try self.vtable.list(self.context, arena.allocator(), path);
        std.mem.sort(Entry, entries, {}, struct {
            fn lessThan(_: void, a: Entry, b: Entry) bool {
                return std.mem.lessThan(u8, a.name, b.name);
            }
        }.lessThan);
        return .{ .arena = arena, .entries = entries };
    }

    /// The whole of a small file. Caller frees.
    pub fn readAlloc(self: Storage, gpa: Allocator, path: []const u8) Error![]u8 {
        var mapping = try self.map(path);
        defer mapping.unmap();

        return gpa.dupe(u8, mapping.bytes);
    }

    pub fn deleteFile(self: Storage, path: []const u8) Error!void {
        return self.vtable.deleteFile(self.context, path);
    }

    pub fn rename(self: Storage, old: []const u8, new: []const u8) Error!void {
        return self.vtable.rename(self.context, old, new);
    }

    pub fn syncFolder(self: Storage, path: []const u8) Error!void {
        return self.vtable.syncFolder(self.context, path);
    }

    /// Makes the folder and its missing parents, each durable in its own parent.
    pub fn ensureFolder(self: Storage, path: []const u8) Error!void {
        const found = try self.kind(path);
        if (found) |k| return if (k == .folder) {} else error.NotDir;
        const parent = parentOf(path);
        if (!std.mem.eql(u8, parent, path)) try self.ensureFolder(parent);
        self.vtable.createFolder(self.context, path) catch |err| switch (err) {
            error.AlreadyExists => {},
            else => return err,
        };
        try self.syncFolder(parent);
    }

    /// Removes a folder and all below it. Not atomic: rename it away first when its name means something.
    pub fn deleteTree(self: Storage, gpa: Allocator, path: []const u8) Error!void {
        var listing = try self.list(gpa, path);
        defer listing.deinit();

        for (listing.entries) |entry| {
            const child = try join(gpa, path, entry.name);
            defer gpa.free(child);

            if (entry.kind == .folder) try self.deleteTree(gpa, child) else try self.deleteFile(child);
        }
        try self.vtable.deleteFolder(self.context, path);
    }

    /// Locks `path` for this process; `error.Locked` at once when another holds it. Freed by `release` or the process's end.
    pub fn lock(self: Storage, path: []const u8) Error!Lock {
        return .{ .storage = self, .handle = try self.vtable.lock(self.context, path) };
    }

    /// `<path>.tmp-<16 hex digits>`. Caller frees.
    fn temporaryName(self: Storage, gpa: Allocator, path: []const u8) error{OutOfMemory}![]u8 {
        return std.fmt.allocPrint(gpa, "{s}" ++ temporary_mark ++ "{x:0>16}", .{ path, self.vtable.unique(self.context) });
    }
};

pub const Lock = struct {
    storage: Storage,
    handle: Handle,

    pub fn release(self: *Lock) void {
        self.storage.vtable.close(self.storage.context, self.handle);
        self.* = undefined;
    }
};

/// What a temporary name has between the final name and its number.
pub const temporary_mark = ".tmp-";

/// The final name a leftover temporary one was made for, or null when `name` is no temporary name of ours.
pub fn finalNameOf(name: []const u8) ?[]const u8 {
    const at = std.mem.lastIndexOf(u8, name, temporary_mark) orelse return null;
    const digits = name[at + temporary_mark.len ..];
    if (at == 0 or digits.len != 16) return null;
    for (digits) |c| if (!std.ascii.isHex(c)) return null;
    return name[0..at];
}

/// `folder/name`. Caller frees.
pub fn join(gpa: Allocator, folder: []const u8, name: []const u8) error{OutOfMemory}![]u8 {
    return std.fs.path.join(gpa, &.{ folder, name });
}

/// The folder a path lies in; `.` for a bare name, `/` for the root.
pub fn parentOf(path: []const u8) []const u8 {
    return std.fs.path.dirname(path) orelse if (path.len > 0 and path[0] == '/') "/" else ".";
}

/// Fills `diag` for a failed operation: `cannot write run/x: the disk is full. Free some space and run again.`
pub fn explain(diag: *Diagnostic, err: anyerror, comptime verb: []const u8, path: []const u8) void {
    diag.set("cannot " ++ verb ++ " {s}: {s}.", .{ path, words(err) });
}

/// What an error of a file, folder or stream means and what helps, without the full stop.
pub fn words(err: anyerror) []const u8 {
    return switch (err) {
        error.NoSpaceLeft => "the disk is full. Free some space and run again",
        error.DiskQuota => "the disk quota is used up. Free some space and run again",
        error.FileTooBig, error.StreamTooLong => "the file is larger than allowed",
        error.InputOutput => "the device reported an input/output error. Check the disk, then run again",
        error.AccessDenied, error.PermissionDenied => "permission denied. Check the owner and mode of the folder",
        error.FileNotFound => "no such file or folder. Check the path",
        error.AlreadyExists, error.PathAlreadyExists => "something of that name is already there. Move it away first",
        error.NotDir => "a part of the path is a file where a folder is needed",
        error.IsDir => "it is a folder where a file is needed",
        error.NotAFile => "it is not a regular file but a pipe, a socket, a device, or a link that leads back to itself. Name another",
        error.SymLinkLoop => "it is a symbolic link, which is not followed",
        error.NameTooLong => "the name is too long for this file system",
        error.BadPathName => "the name has a character this file system does not take",
        error.ReadOnlyFileSystem => "the file system is read-only. Choose another folder",
        error.ShortWrite => "the system stored none of the bytes and gave no reason",
        error.Locked => "another process holds the lock. Wait for it to end, or choose another folder",
        error.FileBusy, error.DeviceBusy => "another process is using it. Wait for that to end",
        error.TooManyOpenFiles, error.ProcessFdQuotaExceeded, error.SystemFdQuotaExceeded => "too many open files. Raise the limit (ulimit -n)",
        error.OutOfMemory, error.SystemResources => "out of memory",
        error.Canceled => "the operation was cancelled",
        error.BrokenPipe => "its reader has left",
        error.NotOpenForReading, error.NotOpenForWriting => "it is closed",
        error.EndOfStream => "it ends too early",
        error.Unexpected => "the system gave an error that has no name here",
        else => @errorName(err),
    };
}

/// Size and checksum of a file as it was handed to the disk.
pub const Digest = struct {
    size: u64 = 0,
    crc32c: u32 = 0,
};

/// A new file being written: buffered, counted, summed. `interface` is a `std.Io.Writer`; when it says `WriteFailed`, `err`
/// holds the cause. Must not move while `interface` is in use.
pub const FileWriter = struct {
    storage: Storage,
    handle: Handle,
    open: bool = true,
    sum: Crc32c = .{},
    size: u64 = 0,
    err: ?Error = null,
    interface: Io.Writer,

    /// `buffer` belongs to the caller and outlives the writer; 64 KiB is a good size.
    pub fn create(storage: Storage, path: []const u8, buffer: []u8) Error!FileWriter {
        return .{
            .storage = storage,
            .handle = try storage.vtable.create(storage.context, path),
            .interface = .{ .buffer = buffer, .vtable = &.{ .drain = drain } },
        };
    }

    /// Goes on with an existing file behind its first bytes, which `begin` describes; the rest of it is cut off.
    pub fn reopen(storage: Storage, path: []const u8, begin: Digest, buffer: []u8) Error!FileWriter {
        return .{
            .storage = storage,
            .handle = try storage.vtable.reopen(storage.context, path, begin.size),
            .sum = .{ .state = ~begin.crc32c },
            .size = begin.size,
            .interface = .{ .buffer = buffer, .vtable = &.{ .drain = drain } },
        };
    }

    /// Hands everything written so far to the system and says what it is. No promise that it is on the disk.
    pub fn flushed(self: *FileWriter) Error!Digest {
        assert(self.open);
        self.interface.flush() catch return self.cause();
        return .{ .size = self.size, .crc32c = self.sum.final() };
    }

    /// Flushes, syncs and closes. After this, and only after this, the bytes are on the disk.
    pub fn finish(self: *FileWriter) Error!Digest {
        assert(self.open);
        self.interface.flush() catch return self.cause();
        try self.storage.vtable.sync(self.storage.context, self.handle);
        self.close();
        return .{ .size = self.size, .crc32c = self.sum.final() };
    }

    /// Closes without a promise. Harmless after `finish`.
    pub fn close(self: *FileWriter) void {
        if (self.open) self.storage.vtable.close(self.storage.context, self.handle);
        self.open = false;
    }

    /// The cause of the last `WriteFailed`.
    pub fn cause(self: *const FileWriter) Error {
        return self.err orelse error.Unexpected;
    }

    fn drain(w: *Io.Writer, data: []const []const u8, splat: usize) Io.Writer.Error!usize {
        const self: *FileWriter = @alignCast(@fieldParentPtr("interface", w));
        try self.store(w.buffered());
        w.end = 0;
        var consumed: usize = 0;
        for (data[0 .. data.len - 1]) |bytes| {
            try self.store(bytes);
            consumed += bytes.len;
        }
        const last = data[data.len - 1];
        for (0..splat) |_| try self.store(last);
        return consumed + last.len * splat;
    }

    fn store(self: *FileWriter, bytes: []const u8) Io.Writer.Error!void {
        if (self.err != null) return error.WriteFailed; // Never go on behind a hole.
        var rest = bytes;
        while (rest.len > 0) {
            const n = self.storage.vtable.write(self.storage.context, self.handle, rest) catch |err| {
                self.err = err;
                return error.WriteFailed;
            };
            if (n == 0) {
                self.err = error.ShortWrite;
                return error.WriteFailed;
            }
            assert(n <= rest.len);
            rest = rest[n..];
        }
        self.sum.update(bytes);
        self.size += bytes.len;
    }
};

/// One file that appears whole under its name or not at all.
///
///     var file = try AtomicFile.create(gpa, storage, path, &buffer);
///     defer file.deinit();               // removes the temporary file unless committed
///     try file.writer.interface.writeAll(bytes);   // WriteFailed: see file.writer.cause()
///     _ = try file.finish();             // synced; `file.map()` reads it back for checking
///     try file.commit();                 // renamed, parent folder synced
pub const AtomicFile = struct {
    gpa: Allocator,
    storage: Storage,
    final_path: []u8,
    temporary_path: []u8,
    writer: FileWriter,
    state: enum { writing, finished, renamed, committed } = .writing,
    digest: Digest = .{},
    /// What was written so far stays under the temporary name when the writer ends early.
    kept: bool = false,

    /// What the temporary name of a kept file has behind the final one.
    pub const part_ending = ".part";

    /// Like `create`, with a temporary name that a later program can find: `<path>.part`. An older one is replaced, or with `begin`
    /// continued; that its first bytes are those `begin` describes is for the caller to check. Set `kept` to leave it behind.
    /// Only for the holder of a lock: another program would take the same name.
    pub fn createPart(gpa: Allocator, storage: Storage, path: []const u8, begin: ?Digest, buffer: []u8) Error!AtomicFile {
        try storage.checkFileName(path);
        const final_path = try gpa.dupe(u8, path);
        errdefer gpa.free(final_path);
        const temporary_path = try std.mem.concat(gpa, u8, &.{ path, part_ending });
        errdefer gpa.free(temporary_path);
        try storage.checkFileName(temporary_path); // Opening a pipe would wait until somebody reads.
        const begins = begin orelse fresh: {
            if (try storage.kind(temporary_path) == null) {
                const handle = try storage.vtable.create(storage.context, temporary_path);
                storage.vtable.close(storage.context, handle);
            }
            break :fresh Digest{};
        };
        return .{
            .gpa = gpa,
            .storage = storage,
            .final_path = final_path,
            .temporary_path = temporary_path,
            .writer = try .reopen(storage, temporary_path, begins, buffer),
        };
    }

    pub fn create(gpa: Allocator, storage: Storage, path: []const u8, buffer: []u8) Error!AtomicFile {
        try storage.checkFileName(path);
        const final_path = try gpa.dupe(u8, path);
        errdefer gpa.free(final_path);
        const temporary_path = try storage.temporaryName(gpa, path);
        errdefer gpa.free(temporary_path);
        return .{
            .gpa = gpa,
            .storage = storage,
            .final_path = final_path,
            .temporary_path = temporary_path,
            .writer = try .create(storage, temporary_path, buffer),
        };
    }

    pub fn deinit(self: *AtomicFile) void {
        self.writer.close();
        switch (self.state) {
            // The save has failed already; if the removal fails too, the name says that it is a leftover.
            .writing, .finished => if (!self.kept) self.storage.deleteFile(self.temporary_path) catch {},
            .renamed, .committed => {},
        }
        self.gpa.free(self.temporary_path);
        self.gpa.free(self.final_path);
        self.* = undefined;
    }

    pub fn finish(self: *AtomicFile) Error!Digest {
        assert(self.state == .writing);
        self.digest = try self.writer.finish();
        self.state = .finished;
        return self.digest;
    }

    /// What was written, read back under its temporary name.
    pub fn map(self: *AtomicFile) Error!Mapping {
        assert(self.state == .finished);
        return self.storage.map(self.temporary_path);
    }

    pub fn commit(self: *AtomicFile) Error!void {
        if (self.state == .writing) _ = try self.finish();
        assert(self.state == .finished);
        try self.storage.checkFileName(self.final_path); // Writing took its time.
        try self.storage.rename(self.temporary_path, self.final_path);
        self.state = .renamed;
        try self.storage.syncFolder(parentOf(self.final_path));
        self.state = .committed;
    }
};

/// Writes `bytes` to `path` atomically; the old content stays until the new one is durable.
pub fn writeFile(gpa: Allocator, storage: Storage, path: []const u8, bytes: []const u8) Error!void {
    var file = try AtomicFile.create(gpa, storage, path, &.{});
    defer file.deinit();

    file.writer.interface.writeAll(bytes) catch return file.writer.cause();
    try file.commit();
}

/// A folder that appears whole under its name or not at all. Files are added with `createFile` (each `finish`ed by the
/// caller), then `seal`, a check through `temporary_path`, then `commit`.
pub const AtomicFolder = struct {
    gpa: Allocator,
    storage: Storage,
    final_path: []u8,
    temporary_path: []u8,
    state: enum { writing, sealed, renamed, committed } = .writing,

    /// The parent must exist. An existing folder of the final name is replaced at `commit`.
    pub fn create(gpa: Allocator, storage: Storage, path: []const u8) Error!AtomicFolder {
        _ = try storage.checkFolderName(path);
        const final_path = try gpa.dupe(u8, path);
        errdefer gpa.free(final_path);
        const temporary_path = try storage.temporaryName(gpa, path);
        errdefer gpa.free(temporary_path);
        try storage.vtable.createFolder(storage.context, temporary_path);
        return .{ .gpa = gpa, .storage = storage, .final_path = final_path, .temporary_path = temporary_path };
    }

    pub fn deinit(self: *AtomicFolder) void {
        switch (self.state) {
            // The save has failed already; what cannot be removed now is removed by `removeLeftovers` at the next save.
            .writing, .sealed => self.storage.deleteTree(self.gpa, self.temporary_path) catch {},
            .renamed, .committed => {},
        }
        self.gpa.free(self.temporary_path);
        self.gpa.free(self.final_path);
        self.* = undefined;
    }

    pub fn createFile(self: *AtomicFolder, name: []const u8, buffer: []u8) Error!FileWriter {
        assert(self.state == .writing);
        const path = try join(self.gpa, self.temporary_path, name);
        defer self.gpa.free(path);

        return .create(self.storage, path, buffer);
    }

    /// A whole small file at once.
    pub fn addFile(self: *AtomicFolder, name: []const u8, bytes: []const u8) Error!Digest {
        var file = try self.createFile(name, &.{});
        defer file.close();

        file.interface.writeAll(bytes) catch return file.cause();
        return file.finish();
    }

    /// Makes the list of files durable. No file may be added after.
    pub fn seal(self: *AtomicFolder) Error!void {
        assert(self.state == .writing);
        try self.storage.syncFolder(self.temporary_path);
        self.state = .sealed;
    }

    pub fn commit(self: *AtomicFolder) Error!void {
        assert(self.state == .sealed);
        const parent = parentOf(self.final_path);
        const replaces = try self.storage.checkFolderName(self.final_path);
        if (replaces) {
            try self.storage.vtable.exchange(self.storage.context, self.temporary_path, self.final_path);
        } else {
            try self.storage.rename(self.temporary_path, self.final_path);
        }
        self.state = .renamed;
        try self.storage.syncFolder(parent);
        self.state = .committed;
        // The old folder now has the temporary name; if this fails, the next save removes it.
        if (replaces) self.storage.deleteTree(self.gpa, self.temporary_path) catch {};
    }
};

/// Moves a folder to a temporary name, makes that durable, then deletes it: its real name never holds half a folder.
pub fn retireFolder(gpa: Allocator, storage: Storage, path: []const u8) Error!void {
    const away = try storage.temporaryName(gpa, path);
    defer gpa.free(away);

    try storage.rename(path, away);
    try storage.syncFolder(parentOf(path));
    try storage.deleteTree(gpa, away);
}

/// Removes what saves that never ended left in `folder`: temporary names whose final name `accept` takes.
/// Only for the holder of the folder's lock: another writer's temporary folder looks the same.
pub fn removeLeftovers(
    gpa: Allocator,
    storage: Storage,
    folder: []const u8,
    comptime accept: fn (final_name: []const u8) bool,
) Error!void {
    var listing = try storage.list(gpa, folder);
    defer listing.deinit();

    for (listing.entries) |entry| {
        const final_name = finalNameOf(entry.name) orelse continue;
        if (!accept(final_name)) continue;
        const path = try join(gpa, folder, entry.name);
        defer gpa.free(path);

        if (entry.kind == .folder) try storage.deleteTree(gpa, path) else try storage.deleteFile(path);
    }
}

pub const Disk = @import("disk.zig").Disk;

test {
    _ = @import("disk.zig");
    _ = @import("memory_disk.zig");
}

test "temporary names are recognised, others are not" {
    try std.testing.expectEqualStrings("checkpoint-12", finalNameOf("checkpoint-12.tmp-00000000000000af").?);
    for ([_][]const u8{ "checkpoint-12", "x.tmp-1", ".tmp-00000000000000af", "x.tmp-00000000000000ag" }) |name|
        try std.testing.expectEqual(@as(?[]const u8, null), finalNameOf(name));
}
