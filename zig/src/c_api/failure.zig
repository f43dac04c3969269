//! How a failure crosses the C line: a status code, and one sentence kept per thread.
//!
//! Every Zig error gets its status here and nowhere else. Does not know: objects, layers.

const std = @import("std");
const abi = @import("abi");
const c = @import("abi_h");

pub const Status = c.abt_status;
pub const Diagnostic = abi.base.Diagnostic;

threadlocal var message: [Diagnostic.capacity + 1]u8 = @splat(0);

/// Keeps `text` (cut at the capacity) for `abt_last_error` on this thread.
pub fn remember(text: []const u8) void {
    const len: usize = @min(text.len, Diagnostic.capacity);
    @memcpy(message[0..len], text[0..len]);
    message[len] = 0;
}

pub fn last() [*:0]const u8 {
    return @ptrCast(&message);
}

/// A failure described on the spot.
pub fn say(status: Status, comptime format: []const u8, arguments: anytype) Status {
    var diag: Diagnostic = .{};
    diag.set(format, arguments);
    remember(diag.text());
    return status;
}

/// A pointer that may not be NULL was NULL.
pub fn nullArgument(comptime name: []const u8) Status {
    return say(c.ABT_STATUS_INVALID_ARGUMENT, "{s} is NULL", .{name});
}

/// A Zig error from a layer. `home` is the status of failures that belong to the call's own subject; memory,
/// missing files and refusals by the system have their own whatever the call. The sentence is the diagnostic's,
/// or the error's name when the layer left none.
pub fn from(err: anyerror, home: Status, diag: ?*const Diagnostic) Status {
    const status = statusOf(err, home);
    const text = if (diag) |d| d.text() else "";
    if (text.len != 0) {
        remember(text);
    } else switch (status) {
        c.ABT_STATUS_OUT_OF_MEMORY => remember("out of memory"),
        else => {
            var plain: Diagnostic = .{};
            plain.set("{t}", .{err});
            remember(plain.text());
        },
    }
    return status;
}

fn statusOf(err: anyerror, home: Status) Status {
    return switch (err) {
        error.OutOfMemory => c.ABT_STATUS_OUT_OF_MEMORY,
        error.FileNotFound, error.NotDir => c.ABT_STATUS_NOT_FOUND,
        error.NoSpaceLeft,
        error.InputOutput,
        error.AccessDenied,
        error.AlreadyExists,
        error.IsDir,
        error.NotAFile,
        error.NameTooLong,
        error.ReadOnlyFileSystem,
        error.ShortWrite,
        error.Locked,
        error.TooManyOpenFiles,
        error.Canceled,
        error.NotReadable,
        error.OutputInUse,
        => c.ABT_STATUS_IO,
        error.InvalidConfiguration, error.InvalidModelConfig, error.InvalidAdapter, error.ReferenceMismatch, error.NotPackable => c.ABT_STATUS_CONFIG,
        error.NotAnAdapter, error.InvalidAdapterConfig, error.AnotherBase => c.ABT_STATUS_CHECKPOINT,
        error.NoAdapter => c.ABT_STATUS_UNSUPPORTED,
        error.TokenOutOfVocabulary, error.NoTrainingData, error.TooManyRows, error.MalformedPairs, error.WrongObjective => c.ABT_STATUS_DATA,
        error.ResumeMismatch, error.RunFolderInUse, error.InvalidTrainerState => c.ABT_STATUS_CHECKPOINT,
        error.NonFinite, error.NonFiniteWeights => c.ABT_STATUS_NUMERICS,
        error.Unexpected => c.ABT_STATUS_INTERNAL,
        else => home,
    };
}

test "a layer's sentence wins over the error's name, and memory over the subject" {
    var diag: Diagnostic = .{};
    diag.set("row 3 is cut", .{});
    try std.testing.expectEqual(@as(Status, c.ABT_STATUS_DATA), from(error.Truncated, c.ABT_STATUS_DATA, &diag));
    try std.testing.expectEqualStrings("row 3 is cut", std.mem.span(last()));
    try std.testing.expectEqual(@as(Status, c.ABT_STATUS_OUT_OF_MEMORY), from(error.OutOfMemory, c.ABT_STATUS_DATA, null));
    try std.testing.expectEqualStrings("out of memory", std.mem.span(last()));
    try std.testing.expectEqual(@as(Status, c.ABT_STATUS_FORMAT), from(error.BadMagic, c.ABT_STATUS_FORMAT, null));
    try std.testing.expectEqualStrings("BadMagic", std.mem.span(last()));
}

test "a long sentence is cut and still ends with zero" {
    remember(&@as([3000]u8, @splat('x')));
    try std.testing.expectEqual(Diagnostic.capacity, std.mem.span(last()).len);
}
