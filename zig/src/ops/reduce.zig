//! Sums over long arrays in f64, by fixed blocks: the same bits for any number of threads.

const std = @import("std");
const kernels = @import("kernels");
const Exec = @import("exec.zig").Exec;
const ceilDiv = @import("exec.zig").ceilDiv;

/// Σ x²
pub fn sumSquares(comptime T: type, ex: *Exec, x: []const T) f64 {
    // The block grows with the array so that the partial sums fit the stack.
    const block = @max(1, ceilDiv(x.len, max_blocks * min_block)) * min_block;
    const count = ceilDiv(x.len, block);
    var sums: [max_blocks]f64 = undefined;
    const Job = struct { x: []const T, block: usize, sums: []f64 };
    ex.pool.parallelFor(Job{ .x = x, .block = block, .sums = sums[0..count] }, count, struct {
        fn f(job: Job, index: usize, _: usize) void {
            const begin = index * job.block;
            job.sums[index] = kernels.table(T).sum_squares(@min(job.block, job.x.len - begin), job.x.ptr + begin);
        }
    }.f);
    var total: f64 = 0;
    for (sums[0..count]) |s| total += s;
    return total;
}

const min_block = 16 * 1024;
const max_blocks = 1024;

pub fn sumSquaresNaive(comptime T: type, x: []const T) f64 {
    var sum: f64 = 0;
    for (x) |v| sum += @as(f64, v) * v;
    return sum;
}

const check = @import("check.zig");

test "the sum of squares equals the plain one, with the same bits for any number of threads" {
    var bag: check.Bag = .{};
    defer bag.deinit();

    inline for (.{ f32, f64 }) |T| for ([_]usize{ 0, 1, 33, min_block, 3 * min_block + 5 }) |n| {
        const x = bag.normal(T, n);
        const want = sumSquaresNaive(T, x);
        var first: ?f64 = null;
        for (check.thread_counts) |threads| {
            var rig = try check.Rig.init(threads);
            defer rig.deinit();

            const got = sumSquares(T, &rig.ex, x);
            try std.testing.expectApproxEqRel(want, got, 1e-12);
            if (first) |expected| try std.testing.expectEqual(expected, got) else first = got;
        }
    };
}
