//! Writer of tokenized data: rows in, a data set out.

const std = @import("std");
const abi = @import("abi");
const c = @import("abi_h");
const failure = @import("failure.zig");
const handles = @import("handles.zig");
const out = @import("out.zig");

const Status = failure.Status;

const Payload = struct {
    disk: *abi.base.storage.Disk,
    writer: *abi.data.TokenizedWriter,
    /// Holds the texts of the options until the manifest is written.
    arena: std.heap.ArenaAllocator,
    state: enum { open, failed, finished } = .open,

    pub fn deinit(self: *Payload) void {
        self.writer.destroy();
        self.arena.deinit();
        out.gpa.destroy(self.disk);
    }
};

const Writer = handles.Object(.writer, Payload);

pub fn abt_writer_open(path: ?[*:0]const u8, options: ?*const c.abt_writer_options, writer: ?*u64) callconv(.c) Status {
    const result = writer orelse return failure.nullArgument("writer");
    result.* = 0;
    const given = options orelse return failure.nullArgument("options");
    if (out.wrongSize(c.abt_writer_options, given.struct_size)) |status| return status;
    var status: Status = c.ABT_STATUS_OK;
    const name = out.string(path, "path", &status) orelse return status;
    var diag: failure.Diagnostic = .{};
    var payload = open(name, given, &diag) catch |err| return failure.from(err, c.ABT_STATUS_DATA, &diag);
    result.* = Writer.make(payload) catch |err| {
        payload.deinit();
        return failure.from(err, c.ABT_STATUS_DATA, null);
    };
    return c.ABT_STATUS_OK;
}

fn open(path: []const u8, given: *const c.abt_writer_options, diag: *failure.Diagnostic) !Payload {
    const disk = try out.gpa.create(abi.base.storage.Disk);
    errdefer out.gpa.destroy(disk);
    disk.* = .init(out.io());
    var arena: std.heap.ArenaAllocator = .init(out.gpa);
    errdefer arena.deinit();

    const a = arena.allocator();
    const options: abi.data.WriterOptions = .{
        .kind = if (given.preference != 0) .preference else .tokens,
        .rows = given.rows != 0,
        .mask = given.mask != 0,
        .vocab_size = if (given.vocab_size == 0) null else given.vocab_size,
        .tokenizer_hash = try copy(a, given.tokenizer_hash),
        .format = try copy(a, given.format),
        .seed = if (given.has_seed != 0) given.seed else null,
        .source = try copy(a, given.source),
        .license = try copy(a, given.license),
    };
    const made = try abi.data.TokenizedWriter.create(out.gpa, disk.storage(), path, options, diag);
    return .{ .disk = disk, .writer = made, .arena = arena };
}

fn copy(arena: std.mem.Allocator, text: [*c]const u8) error{OutOfMemory}!?[]const u8 {
    return try arena.dupe(u8, out.optionalString(text) orelse return null);
}

pub fn abt_writer_free(writer: u64) callconv(.c) Status {
    return handles.free(Writer, writer);
}

pub fn abt_writer_append(writer: u64, ids: ?[*]const u32, count: usize, in_loss: ?[*]const u8) callconv(.c) Status {
    if (ids == null and count != 0) return failure.nullArgument("ids");
    var status: Status = c.ABT_STATUS_OK;
    const held = acquireOpen(writer, &status) orelse return status;
    defer held.release();

    const flags: ?[]const bool = if (in_loss) |bytes| blk: {
        for (bytes[0..count], 0..) |byte, i| if (byte > 1)
            return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "in_loss holds {d} at position {d}; it must hold 0 or 1", .{ byte, i });
        break :blk @ptrCast(bytes[0..count]);
    } else null;
    var diag: failure.Diagnostic = .{};
    const given: []const u32 = if (ids) |p| p[0..count] else &.{};
    held.object.value.writer.append(given, flags, &diag) catch |err| {
        held.object.value.state = .failed;
        return failure.from(err, c.ABT_STATUS_DATA, &diag);
    };
    return c.ABT_STATUS_OK;
}

pub fn abt_writer_finish(writer: u64, tokens: ?*u64, rows: ?*u64, in_loss: ?*u64) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const held = acquireOpen(writer, &status) orelse return status;
    defer held.release();

    var diag: failure.Diagnostic = .{};
    held.object.value.state = .failed;
    const summary = held.object.value.writer.finish(&diag) catch |err| return failure.from(err, c.ABT_STATUS_DATA, &diag);
    held.object.value.state = .finished;
    if (tokens) |p| p.* = summary.count;
    if (rows) |p| p.* = summary.rows;
    if (in_loss) |p| p.* = summary.in_loss;
    return c.ABT_STATUS_OK;
}

fn acquireOpen(writer: u64, status: *Status) ?handles.Held(Writer) {
    const held = handles.acquire(Writer, writer, .exclusive, status) orelse return null;
    const text = switch (held.object.value.state) {
        .open => return held,
        .failed => "this writer failed before; free it and begin again",
        .finished => "this writer is finished; free it",
    };
    held.release();
    status.* = failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "{s}", .{text});
    return null;
}
