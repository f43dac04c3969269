//! Sums and multiples of long arrays. Slices of one call have one length.

const std = @import("std");
const kernels = @import("kernels");
const Exec = @import("exec.zig").Exec;
const ceilDiv = @import("exec.zig").ceilDiv;

/// dst += src
pub fn add(comptime T: type, ex: *Exec, dst: []T, src: []const T) void {
    std.debug.assert(dst.len == src.len);
    const Job = struct { dst: []T, src: []const T };
    ex.pool.parallelFor(Job{ .dst = dst, .src = src }, partCount(dst.len), struct {
        fn f(job: Job, index: usize, _: usize) void {
            const dst_part = partOf(job.dst, index);
            kernels.table(T).add(dst_part.len, dst_part.ptr, partOf(job.src, index).ptr);
        }
    }.f);
}

/// dst += a · src
pub fn addScaled(comptime T: type, ex: *Exec, dst: []T, a: T, src: []const T) void {
    std.debug.assert(dst.len == src.len);
    const Job = struct { dst: []T, a: T, src: []const T };
    ex.pool.parallelFor(Job{ .dst = dst, .a = a, .src = src }, partCount(dst.len), struct {
        fn f(job: Job, index: usize, _: usize) void {
            const dst_part = partOf(job.dst, index);
            kernels.table(T).add_scaled(dst_part.len, dst_part.ptr, job.a, partOf(job.src, index).ptr);
        }
    }.f);
}

/// x *= a
pub fn scale(comptime T: type, ex: *Exec, x: []T, a: T) void {
    const Job = struct { x: []T, a: T };
    ex.pool.parallelFor(Job{ .x = x, .a = a }, partCount(x.len), struct {
        fn f(job: Job, index: usize, _: usize) void {
            const x_part = partOf(job.x, index);
            kernels.table(T).scale(x_part.len, x_part.ptr, job.a);
        }
    }.f);
}

/// x = value
pub fn fill(comptime T: type, ex: *Exec, x: []T, value: T) void {
    const Job = struct { x: []T, value: T };
    ex.pool.parallelFor(Job{ .x = x, .value = value }, partCount(x.len), struct {
        fn f(job: Job, index: usize, _: usize) void {
            @memset(partOf(job.x, index), job.value);
        }
    }.f);
}

/// dst = src; they do not overlap.
pub fn copy(comptime T: type, ex: *Exec, dst: []T, src: []const T) void {
    std.debug.assert(dst.len == src.len);
    const Job = struct { dst: []T, src: []const T };
    ex.pool.parallelFor(Job{ .dst = dst, .src = src }, partCount(dst.len), struct {
        fn f(job: Job, index: usize, _: usize) void {
            @memcpy(partOf(job.dst, index), partOf(job.src, index));
        }
    }.f);
}

/// Long arrays are cut into parts of this many numbers, whatever the number of threads.
pub const part_len = 16 * 1024;

pub fn partCount(len: usize) usize {
    return ceilDiv(len, part_len);
}

/// Part `index` of a slice; the last is shorter.
pub fn partOf(slice: anytype, index: usize) @TypeOf(slice) {
    const begin = index * part_len;
    return slice[begin..@min(begin + part_len, slice.len)];
}

const check = @import("check.zig");

test "sums and multiples over several parts, with the same bits for any number of threads" {
    var bag: check.Bag = .{};
    defer bag.deinit();

    const n = 2 * part_len + 37;
    const x = bag.normal(f32, n);
    const y = bag.normal(f32, n);
    const want = bag.copy(f32, x);
    for (want, y) |*w, v| w.* = @mulAdd(f32, 0.3, v, (w.* + v) * 2);
    var first: ?[]f32 = null;
    for (check.thread_counts) |threads| {
        var rig = try check.Rig.init(threads);
        defer rig.deinit();

        const got = bag.copy(f32, x);
        add(f32, &rig.ex, got, y);
        scale(f32, &rig.ex, got, 2);
        addScaled(f32, &rig.ex, got, 0.3, y);
        try check.expectClose(f32, want, got, 1e-6);
        if (first) |expected| try check.expectSame(f32, expected, got) else first = bag.copy(f32, got);
        fill(f32, &rig.ex, got, 3);
        for (got) |v| try std.testing.expectEqual(3, v);
        copy(f32, &rig.ex, got, y);
        try check.expectSame(f32, y, got);
    }
}
