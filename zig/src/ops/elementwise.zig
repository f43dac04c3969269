//! Sums and multiples of long arrays. Slices of one call have one length.

const std = @import("std");
const Exec = @import("exec.zig").Exec;

/// dst += src
pub fn add(comptime T: type, ex: *Exec, dst: []T, src: []const T) void {
    _ = ex;
    for (dst, src) |*d, s| d.* += s;
}

/// dst += a · src
pub fn addScaled(comptime T: type, ex: *Exec, dst: []T, a: T, src: []const T) void {
    _ = ex;
    for (dst, src) |*d, s| d.* += a * s;
}

/// x *= a
pub fn scale(comptime T: type, ex: *Exec, x: []T, a: T) void {
    _ = ex;
    for (x) |*d| d.* *= a;
}

/// x = value
pub fn fill(comptime T: type, ex: *Exec, x: []T, value: T) void {
    _ = ex;
    @memset(x, value);
}
