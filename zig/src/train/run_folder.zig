//! The folder a run saves into, held while the run lasts: its lock, and what goes into every checkpoint.
//!
//! A folder belongs to one run. Does not know: what a checkpoint holds.

const std = @import("std");
const base = @import("base");
const checkpoint = @import("checkpoint");

pub const RunFolder = struct {
    dir: []u8,
    tokenizer_dir: ?[]u8,
    version: []const u8,
    lock: checkpoint.RunLock,

    /// Takes the folder, or says whose it is. `resume_from`: a checkpoint of it that the run goes on from. Caller calls `close`.
    pub fn open(
        gpa: std.mem.Allocator,
        io: std.Io,
        dir: []const u8,
        tokenizer_dir: ?[]const u8,
        resume_from: ?[]const u8,
        version: []const u8,
        diag: *base.Diagnostic,
    ) !RunFolder {
        var lock = try checkpoint.lockRun(gpa, io, dir, diag);
        errdefer lock.release(io);

        const own = if (resume_from) |path| isInside(path, dir) else false;
        if (!own) if (try checkpoint.highestStep(gpa, io, dir)) |step| {
            diag.set("{s} holds checkpoint-{d} of another run. Resume that one, or train into another folder.", .{ dir, step });
            return error.RunFolderInUse;
        };
        const owned = try gpa.dupe(u8, dir);
        errdefer gpa.free(owned);

        const tokenizer = if (tokenizer_dir) |t| try gpa.dupe(u8, t) else null;
        return .{ .dir = owned, .tokenizer_dir = tokenizer, .version = version, .lock = lock };
    }

    pub fn close(self: *RunFolder, gpa: std.mem.Allocator, io: std.Io) void {
        self.lock.release(io);
        gpa.free(self.dir);
        if (self.tokenizer_dir) |t| gpa.free(t);
        self.* = undefined;
    }
};

/// True when `path` lies directly in the folder `dir`, whatever way the two are written.
fn isInside(path: []const u8, dir: []const u8) bool {
    var path_buffer: [std.fs.max_path_bytes]u8 = undefined;
    var dir_buffer: [std.fs.max_path_bytes]u8 = undefined;
    const whole = realPath(path, &path_buffer) orelse return false;
    const folder = realPath(dir, &dir_buffer) orelse return false;
    return std.mem.eql(u8, std.fs.path.dirname(whole) orelse return false, folder);
}

fn realPath(path: []const u8, buffer: *[std.fs.max_path_bytes]u8) ?[]const u8 {
    const name = std.posix.toPosixPath(path) catch return null;
    const found = std.c.realpath(&name, buffer) orelse return null;
    return std.mem.span(found);
}
