//! What is done with whole GGUF files: made coarser, cut into parts, joined. The program and the library both call this.
//!
//! Sizes are known and compared with the free space before the first byte. A file gets its name when it is whole and was read
//! back; of parts the first gets it last, so parts that were not finished cannot be opened as a model. An input is never
//! written over, nor is a part that is there already: parts of two models would mix.
//! Does not know: how blocks are made, which type a mix means.

const std = @import("std");
const base = @import("base");
const gguf_parts = @import("gguf_parts.zig");
const gguf_quantise = @import("gguf_quantise.zig");
const imatrix = @import("imatrix.zig");
const Allocator = std.mem.Allocator;
const Diagnostic = base.Diagnostic;

pub const Report = gguf_quantise.Report;
pub const Error = gguf_quantise.Error || imatrix.Error;

pub const Quantise = struct {
    /// A file, or one of the parts of a model.
    in: []const u8,
    out: []const u8,
    /// `importance` is filled in from the file named here.
    options: gguf_quantise.Options,
    imatrix: ?[]const u8 = null,
};

pub fn quantise(gpa: Allocator, io: std.Io, request: Quantise, diag: *Diagnostic) Error!Report {
    var work: Work = .{};
    defer work.deinit();

    try work.open(gpa, io, request, diag);
    return work.plan.?.write(gpa, io, request.out, null, diag);
}

/// The exact number of bytes `quantise` would write.
pub fn quantisedSize(gpa: Allocator, io: std.Io, request: Quantise, diag: *Diagnostic) Error!u64 {
    var work: Work = .{};
    defer work.deinit();

    try work.open(gpa, io, request, diag);
    return work.plan.?.fileBytes(gpa, null);
}

/// Sources and a plan that points into them.
const Work = struct {
    disk: base.storage.Disk = undefined,
    source: ?gguf_parts.Parts = null,
    matrix: ?imatrix.Importance = null,
    plan: ?gguf_quantise.Plan = null,

    fn open(self: *Work, gpa: Allocator, io: std.Io, request: Quantise, diag: *Diagnostic) Error!void {
        self.disk = .init(io);
        const storage = self.disk.storage();
        self.source = try gguf_parts.Parts.open(gpa, storage, request.in, diag);
        try refuseInput(io, &self.source.?, request.in, request.out, diag);
        var options = request.options;
        if (request.imatrix) |path| {
            self.matrix = try readImportance(gpa, storage, path, diag);
            options.importance = .{ .matrix = &self.matrix.?, .path = path };
        }
        self.plan = try .init(gpa, &self.source.?, options, diag);
    }

    fn deinit(self: *Work) void {
        if (self.plan) |*plan| plan.deinit();
        if (self.matrix) |*matrix| matrix.deinit();
        if (self.source) |*source| source.deinit();
    }
};

/// Where a new part begins: before a tensor that would make the part more than this.
pub const Limits = struct { bytes: usize = std.math.maxInt(usize), tensors: usize = std.math.maxInt(usize) };

/// Cuts `in` into files `prefix-0000N-of-0000M.gguf`; returns M.
pub fn split(gpa: Allocator, io: std.Io, in: []const u8, prefix: []const u8, limits: Limits, diag: *Diagnostic) Error!u16 {
    var disk: base.storage.Disk = .init(io);
    const storage = disk.storage();
    var source = try gguf_parts.Parts.open(gpa, storage, in, diag);
    defer source.deinit();
    var plan: gguf_quantise.Plan = try .init(gpa, &source, .{ .mix = null }, diag);
    defer plan.deinit();
    var ends = try cut(gpa, &plan, limits);
    defer ends.deinit(gpa);
    const count = std.math.cast(u16, ends.items.len) orelse {
        diag.set("that would be {d} parts; 65535 are the most. Allow larger ones", .{ends.items.len});
        return error.WrongParts;
    };
    try checkRoom(gpa, storage, &plan, ends.items, prefix, diag);
    var done: usize = 0;
    errdefer for (0..done) |i| {
        var buffer: gguf_parts.NameBuffer = undefined;
        const name = gguf_parts.partName(&buffer, prefix, count - 1 - i, count) catch unreachable; // It was written.
        storage.deleteFile(name) catch {}; // Parts without a first one can only be deleted.
    };
    while (done < count) : (done += 1) {
        const part = partOf(ends.items, count - 1 - done);
        var buffer: gguf_parts.NameBuffer = undefined;
        const name = gguf_parts.partName(&buffer, prefix, part.index, count) catch unreachable; // Checked with the room.
        _ = try plan.write(gpa, io, name, part, diag);
    }
    return count;
}

/// Where each part ends, in tensors.
fn cut(gpa: Allocator, plan: *const gguf_quantise.Plan, limits: Limits) error{OutOfMemory}!std.ArrayList(usize) {
    var ends: std.ArrayList(usize) = .empty;
    errdefer ends.deinit(gpa);
    var first: usize = 0;
    var bytes: usize = 0;
    for (plan.tensors, 0..) |planned, i| {
        const size = planned.from.info.data.len;
        if (i > first and (i - first >= limits.tensors or bytes +| size > limits.bytes)) {
            try ends.append(gpa, i);
            first = i;
            bytes = 0;
        }
        bytes += size;
    }
    try ends.append(gpa, plan.tensors.len);
    return ends;
}

fn partOf(ends: []const usize, index: usize) gguf_quantise.Part {
    return .{ .index = @intCast(index), .count = @intCast(ends.len), .first = if (index == 0) 0 else ends[index - 1], .end = ends[index] };
}

/// All names are free and short enough, and all parts together have room.
fn checkRoom(gpa: Allocator, storage: base.storage.Storage, plan: *const gguf_quantise.Plan, ends: []const usize, prefix: []const u8, diag: *Diagnostic) Error!void {
    var total: u64 = 0;
    for (ends, 0..) |_, i| {
        total += try plan.fileBytes(gpa, partOf(ends, i));
        var buffer: gguf_parts.NameBuffer = undefined;
        const name = gguf_parts.partName(&buffer, prefix, i, ends.len) catch {
            diag.set("{s} is too long a name", .{prefix});
            return error.NameTooLong;
        };
        const there = look(storage, name) catch |err| {
            base.storage.explain(diag, err, "write", name);
            return err;
        };
        if (there == null) continue;
        diag.set("{s} is there already, and parts of two models would mix. Delete it, or choose another prefix", .{name});
        return error.AlreadyExists;
    }
    if (base.freeBytes(base.storage.parentOf(prefix))) |free| if (total > free) {
        diag.set("the {d} parts have {d} bytes together, but only {d} are free in that folder. Free some space or choose another", .{ ends.len, total, free });
        return error.NotEnoughSpace;
    };
}

/// What has the name; an error where no file can have it.
fn look(storage: base.storage.Storage, name: []const u8) base.storage.Error!?base.storage.Kind {
    try storage.checkFileName(name);
    return storage.kind(name);
}

pub const Joined = struct { report: Report, parts: usize };

/// The parts that `part` is one of, in one file.
pub fn join(gpa: Allocator, io: std.Io, part: []const u8, out: []const u8, diag: *Diagnostic) Error!Joined {
    var disk: base.storage.Disk = .init(io);
    var source = try gguf_parts.Parts.open(gpa, disk.storage(), part, diag);
    defer source.deinit();
    try refuseInput(io, &source, part, out, diag);
    var plan: gguf_quantise.Plan = try .init(gpa, &source, .{ .mix = null }, diag);
    defer plan.deinit();
    return .{ .report = try plan.write(gpa, io, out, null, diag), .parts = source.files.items.len };
}

/// An output that is one of the files read would take its place while it is read, and be all that is left.
fn refuseInput(io: std.Io, source: *const gguf_parts.Parts, in: []const u8, out: []const u8, diag: *Diagnostic) Error!void {
    const count = source.files.items.len;
    for (0..count) |i| {
        var buffer: gguf_parts.NameBuffer = undefined;
        const prefix = if (count > 1) gguf_parts.prefixOf(in) else null;
        const name = if (prefix) |p| gguf_parts.partName(&buffer, p, i, count) catch in else in;
        if (!isSame(io, name, out)) continue;
        if (count > 1) diag.set("{s} is one of the parts. Name another file to write", .{out}) else diag.set("{s} and {s} are the same file, which would be lost. Name another one to write", .{ in, out });
        return error.AlreadyExists;
    }
}

/// Whether both names lead to one file. Not where one of them does not exist.
pub fn isSame(io: std.Io, a: []const u8, b: []const u8) bool {
    const dir: std.Io.Dir = .cwd();
    // Not opened: a pipe would wait until somebody writes.
    const x = dir.statFile(io, a, .{}) catch return false;
    const y = dir.statFile(io, b, .{}) catch return false;
    return x.inode == y.inode and x.size == y.size;
}

pub fn readImportance(gpa: Allocator, storage: base.storage.Storage, path: []const u8, diag: *Diagnostic) Error!imatrix.Importance {
    var mapping = storage.map(path) catch |err| {
        base.storage.explain(diag, err, "read", path);
        return err;
    };
    defer mapping.unmap();

    return imatrix.Importance.parse(gpa, mapping.bytes, diag) catch |err| {
        diag.prepend("{s}: ", .{path});
        return err;
    };
}
