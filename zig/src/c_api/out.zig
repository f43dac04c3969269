//! What every call does with its pointers: text out by "ask size, then fill", strings in, the allocator and the `io`
//! that stand behind all objects made through C.

const std = @import("std");
const c = @import("abi_h");
const failure = @import("failure.zig");

/// A library cannot know its caller's allocator: libc's is shared with the process and safe from every thread.
pub const gpa = std.heap.c_allocator;

/// Plain blocking file work; needs no set-up and owns no threads.
pub fn io() std.Io {
    return std.Io.Threaded.global_single_threaded.io();
}

/// Copies `text` out, or says how much room it needs.
pub fn fill(text: []const u8, buffer: ?[*]u8, capacity: usize, needed: ?*usize) failure.Status {
    const size = needed orelse return failure.nullArgument("needed");
    size.* = text.len;
    if (text.len > capacity or (buffer == null and text.len != 0))
        return failure.say(c.ABT_STATUS_BUFFER_TOO_SMALL, "the buffer holds {d} bytes, {d} are needed", .{ capacity, text.len });
    if (buffer) |b| @memcpy(b[0..text.len], text);
    return c.ABT_STATUS_OK;
}

/// The same for arrays; `needed` counts elements.
pub fn fillItems(comptime T: type, items: []const T, buffer: ?[*]T, capacity: usize, needed: ?*usize) failure.Status {
    const size = needed orelse return failure.nullArgument("needed");
    size.* = items.len;
    if (items.len > capacity or (buffer == null and items.len != 0))
        return failure.say(c.ABT_STATUS_BUFFER_TOO_SMALL, "the buffer holds {d} elements, {d} are needed", .{ capacity, items.len });
    if (buffer) |b| @memcpy(b[0..items.len], items);
    return c.ABT_STATUS_OK;
}

/// A zero-ended string as a slice.
pub fn string(text: ?[*:0]const u8, comptime name: []const u8, status: *failure.Status) ?[]const u8 {
    const pointer = text orelse {
        status.* = failure.nullArgument(name);
        return null;
    };
    return std.mem.span(pointer);
}

/// A zero-ended string that may be missing.
pub fn optionalString(text: ?[*:0]const u8) ?[]const u8 {
    return std.mem.span(text orelse return null);
}

/// Null when the caller was compiled with the same struct as the library.
pub fn wrongSize(comptime T: type, given: usize) ?failure.Status {
    if (given == @sizeOf(T)) return null;
    return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "struct_size is {d}; this library's struct has {d} bytes. Set it to sizeof", .{ given, @sizeOf(T) });
}

/// Pointer and size as a slice; NULL is fine when the size is 0.
pub fn bytes(text: ?[*]const u8, size: usize, comptime name: []const u8, status: *failure.Status) ?[]const u8 {
    const pointer = text orelse {
        if (size == 0) return "";
        status.* = failure.nullArgument(name);
        return null;
    };
    if (size > std.math.maxInt(isize)) {
        status.* = failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "{s}: {d} bytes cannot be right", .{ name, size });
        return null;
    }
    return pointer[0..size];
}

test "text is not written into a buffer that cannot hold it" {
    var buffer: [4]u8 = "....".*;
    var needed: usize = 0;
    try std.testing.expectEqual(@as(failure.Status, c.ABT_STATUS_BUFFER_TOO_SMALL), fill("hello", &buffer, 4, &needed));
    try std.testing.expectEqual(5, needed);
    try std.testing.expectEqualStrings("....", &buffer);
    try std.testing.expectEqual(@as(failure.Status, c.ABT_STATUS_OK), fill("hell", &buffer, 4, &needed));
    try std.testing.expectEqualStrings("hell", &buffer);
    try std.testing.expectEqual(@as(failure.Status, c.ABT_STATUS_OK), fill("", null, 0, &needed));
    try std.testing.expectEqual(@as(failure.Status, c.ABT_STATUS_INVALID_ARGUMENT), fill("", null, 0, null));
}
