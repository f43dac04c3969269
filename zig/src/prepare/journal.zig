//! How far a preparation is, kept beside its parts so that a later program can go on: `<output>.journal`.
//!
//! Written anew as a whole, atomically, about once a second. It is believed only when it was made with the same options, files
//! and version, and when the parts begin with what it says; otherwise the work begins again. So nothing has to be
//! synced for it: after a loss of power the parts differ, and that is noticed.
//! Does not know: what the parts mean.

const std = @import("std");
const base = @import("base");
const data = @import("data");
const report_module = @import("report.zig");
const Allocator = std.mem.Allocator;
const Storage = base.storage.Storage;

pub const schema = "abi_train/prepare-journal/1";

pub const State = struct {
    schema: []const u8 = schema,
    /// SHA-256 of everything the result depends on.
    identity: []const u8,
    /// The next block: of which file, and which of it.
    source: u32,
    block: u64,
    /// Newlines of that file before the block.
    newlines: u64,
    report: report_module.Report,
    train: data.writer.Written,
    evaluation: ?data.writer.Written = null,
};

/// The name beside `output`. Caller frees.
pub fn pathOf(gpa: Allocator, output: []const u8) error{OutOfMemory}![]u8 {
    return std.mem.concat(gpa, u8, &.{ output, ".journal" });
}

pub fn write(gpa: Allocator, storage: Storage, path: []const u8, state: *const State) base.storage.Error!void {
    var text: std.Io.Writer.Allocating = .init(gpa);
    defer text.deinit();

    std.json.Stringify.value(state.*, .{ .emit_null_optional_fields = false }, &text.writer) catch return error.OutOfMemory;
    // Under a name that is always the same, so that a kill leaves nothing the next program does not write over.
    var file = try base.storage.AtomicFile.createPart(gpa, storage, path, null, &.{});
    defer file.deinit();

    file.writer.interface.writeAll(text.written()) catch return file.writer.cause();
    try file.commit();
}

/// Forgets it, and what a program that was killed while it wrote it left.
pub fn remove(gpa: Allocator, storage: Storage, path: []const u8) void {
    storage.deleteFile(path) catch {}; // What it speaks of is no more; a later program sees that.
    const part = std.mem.concat(gpa, u8, &.{ path, base.storage.AtomicFile.part_ending }) catch return;
    defer gpa.free(part);

    storage.deleteFile(part) catch {};
}

/// The state of an earlier program with this identity; null when there is none that can be used. Its texts live in `arena`.
pub fn read(arena: Allocator, storage: Storage, path: []const u8, identity: []const u8) error{OutOfMemory}!?State {
    const text = storage.readAlloc(arena, path) catch |err| return if (err == error.OutOfMemory) error.OutOfMemory else null;
    const state = std.json.parseFromSliceLeaky(State, arena, text, .{}) catch |err|
        return if (err == error.OutOfMemory) error.OutOfMemory else null;
    if (!std.mem.eql(u8, state.schema, schema) or !std.mem.eql(u8, state.identity, identity)) return null;
    return state;
}

const testing = std.testing;

test "a state reads back as it was written, another's or a damaged one does not" {
    const gpa = testing.allocator;
    var memory: base.storage.MemoryDisk = try .init(gpa);
    defer memory.deinit();
    var arena: std.heap.ArenaAllocator = .init(gpa);
    defer arena.deinit();

    var state: State = .{
        .identity = "abc",
        .source = 1,
        .block = 7,
        .newlines = 99,
        .report = .{ .lines = 5, .skipped_examples = &.{ "a \"b\"", "é" }, .preference = false },
        .train = .{ .count = 3, .bin = .{ .size = 12, .crc32c = 5 } },
        .evaluation = null,
    };
    state.report.skipped[3] = 2;
    try write(gpa, memory.storage(), "x.journal", &state);
    const back = (try read(arena.allocator(), memory.storage(), "x.journal", "abc")).?;
    try testing.expectEqualDeep(state, back);
    try testing.expectEqual(null, try read(arena.allocator(), memory.storage(), "x.journal", "abd"));
    try testing.expectEqual(null, try read(arena.allocator(), memory.storage(), "y.journal", "abc"));
    const size = try memory.fileSize("x.journal");
    for (0..size) |len| {
        try memory.truncate("x.journal", size - len - 1);
        try testing.expectEqual(null, try read(arena.allocator(), memory.storage(), "x.journal", "abc"));
    }
}
