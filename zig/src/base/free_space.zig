//! How many bytes a user may still write where a path lies. Null where the system does not say.

const std = @import("std");
const builtin = @import("builtin");

/// `path` must exist. Null on systems other than 64-bit Linux and when the call fails: then the write itself tells.
pub fn freeBytes(path: []const u8) ?u64 {
    if (builtin.os.tag != .linux or @sizeOf(usize) != 8) return null;
    var buffer: [4096]u8 = undefined;
    if (path.len >= buffer.len) return null;
    @memcpy(buffer[0..path.len], path);
    buffer[path.len] = 0;
    var answer: Statfs = undefined;
    const linux = std.os.linux;
    const rc = linux.syscall2(.statfs, @intFromPtr(&buffer), @intFromPtr(&answer));
    if (linux.errno(rc) != .SUCCESS) return null;
    return std.math.mul(u64, answer.available_blocks, answer.block_bytes) catch null;
}

/// The kernel's `struct statfs` on 64-bit machines.
const Statfs = extern struct {
    kind: u64,
    block_bytes: u64,
    blocks: u64,
    free_blocks: u64,
    /// What is left for users without privileges.
    available_blocks: u64,
    files: u64,
    free_files: u64,
    id: [2]i32,
    name_bytes: u64,
    fragment_bytes: u64,
    flags: u64,
    spare: [4]u64,
};

test "the current folder's disk has a size, a missing folder has none" {
    if (builtin.os.tag != .linux) return;
    try std.testing.expectEqual(@as(usize, 120), @sizeOf(Statfs));
    try std.testing.expect(freeBytes(".") != null);
    try std.testing.expectEqual(@as(?u64, null), freeBytes("no/such/folder/anywhere"));
}
