//! For the tests of this folder: random arrays, comparison, gradient check by central differences, and running one
//! computation with several numbers of threads.

const std = @import("std");
const base = @import("base");
const Exec = @import("exec.zig").Exec;

/// Thread counts every op must agree on, bit for bit.
pub const thread_counts = [_]usize{ 1, 2, 3, 7 };

/// An `Exec` with its own pool, for one test.
pub const Rig = struct {
    pool: *base.Pool,
    ex: Exec,

    pub fn init(n_threads: usize) !Rig {
        const pool = try base.Pool.init(std.testing.allocator, n_threads);
        errdefer pool.deinit();

        return .{ .pool = pool, .ex = try Exec.init(std.testing.allocator, pool) };
    }

    pub fn deinit(self: *Rig) void {
        self.ex.deinit();
        self.pool.deinit();
    }
};

/// Arrays of one test, freed together.
pub const Bag = struct {
    arena: std.heap.ArenaAllocator = .init(std.testing.allocator),
    prng: base.Prng = .init(0x5eed),

    pub fn deinit(self: *Bag) void {
        self.arena.deinit();
    }

    pub fn normal(self: *Bag, comptime T: type, count: usize) []T {
        const x = self.zeros(T, count);
        for (x) |*v| v.* = @floatCast(self.prng.normal());
        return x;
    }

    pub fn zeros(self: *Bag, comptime T: type, count: usize) []T {
        const x = self.arena.allocator().alloc(T, count) catch @panic("out of memory in a test");
        @memset(x, 0);
        return x;
    }

    pub fn copy(self: *Bag, comptime T: type, from: []const T) []T {
        return self.arena.allocator().dupe(T, from) catch @panic("out of memory in a test");
    }
};

/// Largest difference, relative to the largest expected value (or to 0.1 where all are small: data are standard
/// normal), is at most `tolerance`.
pub fn expectClose(comptime T: type, expected: []const T, actual: []const T, tolerance: f64) !void {
    try std.testing.expectEqual(expected.len, actual.len);
    const i = firstFar(T, expected, actual, tolerance) orelse return;
    std.debug.print("index {d} of {d}: expected {d}, got {d}\n", .{ i, expected.len, expected[i], actual[i] });
    return error.TestUnexpectedResult;
}

fn firstFar(comptime T: type, expected: []const T, actual: []const T, tolerance: f64) ?usize {
    var size: f64 = 0.1;
    for (expected) |e| size = @max(size, @abs(e));
    for (expected, actual, 0..) |e, a, i| {
        if (!(@abs(@as(f64, e) - a) <= tolerance * size)) return i; // also when it is NaN
    }
    return null;
}

/// Every bit equal.
pub fn expectSame(comptime T: type, expected: []const T, actual: []const T) !void {
    if (std.mem.eql(u8, std.mem.sliceAsBytes(expected), std.mem.sliceAsBytes(actual))) return;
    std.debug.print("the bits differ\n", .{});
    return error.TestUnexpectedResult;
}

/// Compares `gradient` with central differences of `f(context)` as `x` is moved, element by element, in f64.
pub fn expectGradient(x: []f64, gradient: []const f64, context: anytype, comptime f: fn (@TypeOf(context)) f64) !void {
    const i = firstWrong(x, gradient, context, f) orelse return;
    std.debug.print("gradient {d} of {d} disagrees: backward says {d}\n", .{ i, x.len, gradient[i] });
    return error.TestUnexpectedResult;
}

fn firstWrong(x: []f64, gradient: []const f64, context: anytype, comptime f: fn (@TypeOf(context)) f64) ?usize {
    var size: f64 = 0.1;
    for (gradient) |g| size = @max(size, @abs(g));
    const h = 1e-5;
    for (x, gradient, 0..) |*v, g, i| {
        const saved = v.*;
        v.* = saved + h;
        const up = f(context);
        v.* = saved - h;
        const down = f(context);
        v.* = saved;
        if (!(@abs((up - down) / (2 * h) - g) <= 1e-6 * size)) return i;
    }
    return null;
}

/// Σ x·weight: turns an array into one number with known derivatives.
pub fn weigh(x: []const f64, weight: []const f64) f64 {
    var sum: f64 = 0;
    for (x, weight) |a, b| sum += a * b;
    return sum;
}

test "the checks are not blind: a wrong value, a NaN and a wrong derivative are noticed" {
    var x = [_]f64{ 1, 2, 3 };
    const square = struct {
        fn f(v: *[3]f64) f64 {
            return v[0] * v[0] + v[1] * v[1] + v[2] * v[2];
        }
    }.f;
    try std.testing.expectEqual(null, firstWrong(&x, &.{ 2, 4, 6 }, &x, square));
    try std.testing.expectEqual(1, firstWrong(&x, &.{ 2, 4.00001, 6 }, &x, square));
    try std.testing.expectEqual(null, firstFar(f64, &.{ 2, 4, 6 }, &.{ 2, 4, 6 }, 1e-6));
    try std.testing.expectEqual(2, firstFar(f64, &.{ 2, 4, 6 }, &.{ 2, 4, 6.0001 }, 1e-6));
    try std.testing.expectEqual(0, firstFar(f64, &.{ 2, 4, 6 }, &.{ std.math.nan(f64), 4, 6 }, 1e-6));
}
