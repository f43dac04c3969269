//! Whole folders of other writers: checked, and given their list of checksums.
//!
//! The native trainer lists what it writes while it writes (`save.zig`); the TRL engine's files come from Python, and are listed
//! here once they are all there. Does not know: what the files hold.

const std = @import("std");
const base = @import("base");
const folder = @import("folder.zig");
const Allocator = std.mem.Allocator;
const Diagnostic = base.Diagnostic;
const Storage = base.storage.Storage;

/// Whether the checkpoint folder `path` is whole; `diag` says what is not.
pub fn verify(gpa: Allocator, io: std.Io, path: []const u8, diag: *Diagnostic) folder.Error!void {
    var disk: base.storage.Disk = .init(io);
    folder.verify(gpa, disk.storage(), path, diag) catch |err| {
        if (diag.text().len == 0) base.storage.explain(diag, err, "read", path);
        return err;
    };
}

/// Writes `checksums.json` over all files that lie directly in the folder `path`, in the order of their names.
pub fn seal(gpa: Allocator, io: std.Io, path: []const u8, diag: *Diagnostic) folder.Error!void {
    var disk: base.storage.Disk = .init(io);
    return sealOn(gpa, disk.storage(), path, diag);
}

pub fn sealOn(gpa: Allocator, storage: Storage, path: []const u8, diag: *Diagnostic) folder.Error!void {
    diag.clear();
    writeList(gpa, storage, path, diag) catch |err| {
        if (diag.text().len == 0) base.storage.explain(diag, err, "seal", path);
        return err;
    };
}

fn writeList(gpa: Allocator, storage: Storage, path: []const u8, diag: *Diagnostic) folder.Error!void {
    var arena: std.heap.ArenaAllocator = .init(gpa);
    defer arena.deinit();

    const a = arena.allocator();
    var listing = try storage.list(gpa, path);
    defer listing.deinit();

    var sums: std.ArrayList(folder.FileSum) = .empty;
    for (listing.entries) |entry| {
        if (entry.kind != .file or std.mem.eql(u8, entry.name, folder.checksums_name)) continue;
        const file = try base.storage.join(a, path, entry.name);
        var mapping = storage.map(file) catch |err| {
            base.storage.explain(diag, err, "read", file);
            return err;
        };
        defer mapping.unmap();

        try sums.append(a, .{ .name = entry.name, .size = mapping.bytes.len, .crc32c = base.checksum.crc32c(mapping.bytes) });
    }
    std.mem.sort(folder.FileSum, sums.items, {}, struct {
        fn before(_: void, x: folder.FileSum, y: folder.FileSum) bool {
            return std.mem.lessThan(u8, x.name, y.name);
        }
    }.before);
    var text: std.Io.Writer.Allocating = .init(a);
    folder.writeSums(&text.writer, sums.items) catch return error.OutOfMemory;
    try base.storage.writeFile(gpa, storage, try base.storage.join(a, path, folder.checksums_name), text.written());
}

const testing = std.testing;

test "a sealed folder is whole until a byte of it changes, and can be sealed again" {
    const gpa = testing.allocator;
    var disk: base.storage.MemoryDisk = try .init(gpa);
    defer disk.deinit();

    var diag: Diagnostic = .{};
    const storage = disk.storage();
    try storage.ensureFolder("c");
    for ([_][]const u8{ "c/trainer_state.json", "c/config.json", "c/adapter_model.safetensors" }, 0..) |file, i|
        try base.storage.writeFile(gpa, storage, file, "content"[0 .. i + 3]);
    try sealOn(gpa, storage, "c", &diag);
    try folder.verify(gpa, storage, "c", &diag);
    try base.storage.writeFile(gpa, storage, "c/config.json", "conTent");
    try testing.expectError(error.DamagedCheckpoint, folder.verify(gpa, storage, "c", &diag));
    try sealOn(gpa, storage, "c", &diag);
    try folder.verify(gpa, storage, "c", &diag);
    try testing.expectError(error.FileNotFound, sealOn(gpa, storage, "nowhere", &diag));
}
