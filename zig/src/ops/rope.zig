//! Rotary position embedding, in place, forward and backward.
//!
//! Layout: x [tokens, heads, head_dim] row-major; pairs are (i, i + head_dim/2), the Hugging Face order. Backward is the
//! rotation by the opposite angle, so both passes share one table. Frequencies and angles are rounded to f32 before
//! cos and sin are taken, because the reference does so: at position 500 the rounding is larger than the tolerance we
//! promise. Does not know: batches, masks, where positions come from.

const std = @import("std");
const kernels = @import("kernels");
const Exec = @import("exec.zig").Exec;

pub const Direction = enum { forward, backward };

/// cos and sin for positions 0..max_positions, [position, head_dim/2] each.
pub fn Table(comptime T: type) type {
    return struct {
        const Self = @This();

        gpa: std.mem.Allocator,
        half: usize,
        max_positions: usize,
        cos: []T,
        sin: []T,

        /// `frequencies`: radians per position of each pair, as the model's configuration gives them. `magnitude`: what cosines and
        /// sines are multiplied by, 1 but for YaRN; both passes scale by it, and `backward` is then the derivative, no inverse.
        pub fn init(gpa: std.mem.Allocator, frequencies: []const f32, max_positions: usize, magnitude: f64) error{OutOfMemory}!Self {
            const half = frequencies.len;
            const count = std.math.mul(usize, half, max_positions) catch return error.OutOfMemory;
            const cos = try gpa.alloc(T, count);
            errdefer gpa.free(cos);

            const sin = try gpa.alloc(T, count);
            for (frequencies, 0..) |frequency, i| {
                for (0..max_positions) |p| {
                    const angle: f32 = @as(f32, @floatFromInt(p)) * frequency;
                    cos[p * half + i] = @floatCast(@cos(@as(f64, angle)) * magnitude);
                    sin[p * half + i] = @floatCast(@sin(@as(f64, angle)) * magnitude);
                }
            }
            return .{ .gpa = gpa, .half = half, .max_positions = max_positions, .cos = cos, .sin = sin };
        }

        pub fn deinit(self: *Self) void {
            self.gpa.free(self.cos);
            self.gpa.free(self.sin);
            self.* = undefined;
        }
    };
}

/// Rotates x [tokens, heads, head_dim] in place; positions [tokens] index the table.
pub fn apply(comptime T: type, ex: *Exec, x: []T, heads: usize, head_dim: usize, table: *const Table(T), positions: []const u32, direction: Direction) void {
    std.debug.assert(table.half * 2 == head_dim);
    std.debug.assert(x.len >= positions.len * heads * head_dim);
    const Job = struct { x: []T, heads: usize, table: *const Table(T), positions: []const u32, sign: T };
    const sign: T = if (direction == .forward) 1 else -1;
    ex.pool.parallelFor(Job{ .x = x, .heads = heads, .table = table, .positions = positions, .sign = sign }, positions.len, struct {
        fn f(job: Job, token: usize, _: usize) void {
            const half = job.table.half;
            const at = job.positions[token] * half;
            const cos = job.table.cos[at..][0..half];
            const sin = job.table.sin[at..][0..half];
            kernels.table(T).rope(job.heads, half, job.x.ptr + token * job.heads * 2 * half, cos.ptr, sin.ptr, job.sign);
        }
    }.f);
}

pub fn applyNaive(comptime T: type, x: []T, heads: usize, head_dim: usize, table: *const Table(T), positions: []const u32, direction: Direction) void {
    const half = head_dim / 2;
    for (positions, 0..) |position, t| for (0..heads) |h| {
        const row = x[(t * heads + h) * head_dim ..][0..head_dim];
        for (0..half) |i| {
            const c = table.cos[position * half + i];
            const s = if (direction == .forward) table.sin[position * half + i] else -table.sin[position * half + i];
            const a = row[i];
            const b = row[half + i];
            row[i] = a * c - b * s;
            row[half + i] = b * c + a * s;
        }
    };
}

const check = @import("check.zig");

/// Falling, as real ones do.
const test_frequencies: [34]f32 = blk: {
    var list: [34]f32 = undefined;
    for (&list, 0..) |*f, i| f.* = 1.0 / (1.0 + @as(f32, i) * @as(f32, i));
    break :blk list;
};

test "fast equals plain for all even head sizes up to 68; backward undoes forward" {
    var rig = try check.Rig.init(2);
    defer rig.deinit();

    inline for (.{ f32, f64 }) |T| {
        const tolerance = if (T == f32) 1e-6 else 1e-14;
        var bag: check.Bag = .{};
        defer bag.deinit();

        for (1..35) |half| {
            const positions = [_]u32{ 0, 3, 19, 3 };
            const heads = 3;
            var table = try Table(T).init(std.testing.allocator, test_frequencies[0..half], 20, 1);
            defer table.deinit();

            const original = bag.normal(T, positions.len * heads * 2 * half);
            for ([_]Direction{ .forward, .backward }) |direction| {
                const got = bag.copy(T, original);
                const want = bag.copy(T, original);
                apply(T, &rig.ex, got, heads, 2 * half, &table, &positions, direction);
                applyNaive(T, want, heads, 2 * half, &table, &positions, direction);
                try check.expectClose(T, want, got, tolerance);
                apply(T, &rig.ex, got, heads, 2 * half, &table, &positions, if (direction == .forward) .backward else .forward);
                try check.expectClose(T, original, got, 1e-6);
            }
        }
    }
}

test "backward is the derivative of forward" {
    var rig = try check.Rig.init(1);
    defer rig.deinit();

    var bag: check.Bag = .{};
    defer bag.deinit();

    var table = try Table(f64).init(std.testing.allocator, test_frequencies[0..3], 9, 1.25);
    defer table.deinit();

    const Problem = struct { ex: *Exec, x: []f64, y: []f64, dout: []f64, table: *const Table(f64) };
    const p: Problem = .{ .ex = &rig.ex, .x = bag.normal(f64, 24), .y = bag.zeros(f64, 24), .dout = bag.normal(f64, 24), .table = &table };
    const loss = struct {
        fn f(q: Problem) f64 {
            @memcpy(q.y, q.x);
            apply(f64, q.ex, q.y, 2, 6, q.table, &.{ 8, 5 }, .forward);
            return check.weigh(q.y, q.dout);
        }
    }.f;
    const dx = bag.copy(f64, p.dout);
    apply(f64, p.ex, dx, 2, 6, &table, &.{ 8, 5 }, .backward);
    try check.expectGradient(p.x, dx, p, loss);
}

test "the table holds cosine and sine of position times frequency" {
    var table = try Table(f64).init(std.testing.allocator, &.{ 0.5, 0.25 }, 3, 1);
    defer table.deinit();

    try std.testing.expectEqual(@cos(@as(f64, 1.0)), table.cos[2 * 2]);
    try std.testing.expectEqual(@sin(@as(f64, 0.25)), table.sin[2 + 1]);
}

test "a failed allocation leaks nothing" {
    try std.testing.checkAllAllocationFailures(std.testing.allocator, struct {
        fn f(gpa: std.mem.Allocator) !void {
            var table = try Table(f32).init(gpa, test_frequencies[0..2], 3, 1);
            table.deinit();
        }
    }.f, .{});
}

test "the same bits for any number of threads" {
    var bag: check.Bag = .{};
    defer bag.deinit();

    var table = try Table(f32).init(std.testing.allocator, test_frequencies[0..5], 40, 1);
    defer table.deinit();

    var positions: [37]u32 = undefined;
    for (&positions, 0..) |*p, i| p.* = @intCast(i);
    const x = bag.normal(f32, 37 * 3 * 10);
    var first: ?[]f32 = null;
    for (check.thread_counts) |threads| {
        var rig = try check.Rig.init(threads);
        defer rig.deinit();

        const got = bag.copy(f32, x);
        apply(f32, &rig.ex, got, 3, 10, &table, &positions, .forward);
        if (first) |expected| try check.expectSame(f32, expected, got) else first = got;
    }
}
