//! The balance loss of routers: how far a batch is from using all experts alike (Switch Transformer, equations 4 to 6).
//!
//!     p = softmax(logits) over all E experts   f_e = choices of e / R   P_e = Σ p_e / R   loss = E · Σ_e f_e · P_e
//!
//! R counts the tokens of the batch once for each layer: all layers make one loss, so their sums are added up while the forward pass goes
//! through them, and each layer takes its gradient from the whole. Padding does not count. A choice has no gradient; it goes through P
//! alone. Does not know: the coefficient of a model, how micro-batches are weighed.

const std = @import("std");
const Exec = @import("exec.zig").Exec;

/// Which rows of (batch · time) tokens count.
pub const Rows = struct {
    total: usize,
    time: usize,
    /// Tokens of each sequence, padding follows; null: `time`. [batch]
    lengths: ?[]const u32 = null,

    pub fn counts(self: Rows, row: usize) bool {
        const lengths = self.lengths orelse return true;
        return row % self.time < lengths[row / self.time];
    }

    pub fn count(self: Rows) usize {
        const lengths = self.lengths orelse return self.total;
        var sum: usize = 0;
        for (lengths) |length| sum += length;
        return sum;
    }
};

/// Added up over layers: how often each expert was chosen, and its probabilities. [E] each
pub const Sums = struct {
    chosen: []f64,
    probabilities: []f64,

    pub fn clear(self: Sums) void {
        @memset(self.chosen, 0);
        @memset(self.probabilities, 0);
    }

    /// `total`: R. 0 where nothing counted.
    pub fn loss(self: Sums, total: usize) f64 {
        if (total == 0) return 0;
        const r: f64 = @floatFromInt(total);
        var sum: f64 = 0;
        for (self.chosen, self.probabilities) |f, p| sum += (f / r) * (p / r);
        return sum * @as(f64, @floatFromInt(self.chosen.len));
    }
};

/// Adds one layer to `sums`: `logits` [N, E], `chosen` [N, k]. `room` [N, E] is overwritten.
pub fn add(comptime T: type, ex: *Exec, sums: Sums, room: []T, logits: []const T, chosen: []const u32, rows: Rows, k: usize) void {
    const experts = sums.chosen.len;
    std.debug.assert(logits.len == rows.total * experts and room.len == logits.len);
    std.debug.assert(chosen.len == rows.total * k);
    const Job = struct { sums: Sums, room: []T, logits: []const T, chosen: []const u32, rows: Rows, experts: usize };
    const job: Job = .{ .sums = sums, .room = room, .logits = logits, .chosen = chosen, .rows = rows, .experts = experts };
    ex.pool.parallelFor(job, rows.total, struct {
        fn f(j: Job, row: usize, _: usize) void {
            const out = j.room[row * j.experts ..][0..j.experts];
            softmax(T, out, j.logits[row * j.experts ..][0..j.experts]);
        }
    }.f);
    for (0..rows.total) |row| if (rows.counts(row)) {
        for (chosen[row * k ..][0..k]) |e| sums.chosen[e] += 1;
    };
    // One sum an expert, over rows in their order.
    ex.pool.parallelFor(job, experts, struct {
        fn f(j: Job, e: usize, _: usize) void {
            var sum: f64 = 0;
            for (0..j.rows.total) |row| if (j.rows.counts(row)) {
                sum += j.room[row * j.experts + e];
            };
            j.sums.probabilities[e] += sum;
        }
    }.f);
}

/// dlogits [N, E] += `scale` times the gradient of the loss by the logits of one layer. `total`: R, as in `Sums.loss`.
pub fn backward(comptime T: type, ex: *Exec, dlogits: []T, logits: []const T, sums: Sums, total: usize, scale: f64, rows: Rows) void {
    if (total == 0) return;
    const experts = sums.chosen.len;
    std.debug.assert(logits.len == rows.total * experts and dlogits.len == logits.len);
    const r: f64 = @floatFromInt(total);
    const Job = struct { dlogits: []T, logits: []const T, chosen: []const f64, factor: f64, rows: Rows };
    const job: Job = .{
        .dlogits = dlogits,
        .logits = logits,
        .chosen = sums.chosen,
        .factor = scale * @as(f64, @floatFromInt(experts)) / (r * r),
        .rows = rows,
    };
    ex.pool.parallelFor(job, rows.total, struct {
        fn f(j: Job, row: usize, _: usize) void {
            if (!j.rows.counts(row)) return;
            const n = j.chosen.len;
            const x = j.logits[row * n ..][0..n];
            const max = std.mem.max(T, x);
            var sum: f64 = 0;
            var mean: f64 = 0;
            for (x, j.chosen) |value, f_e| {
                const p: f64 = @exp(value - max);
                sum += p;
                mean += p * f_e;
            }
            mean /= sum;
            for (j.dlogits[row * n ..][0..n], x, j.chosen) |*d, value, f_e| {
                const p = @as(f64, @exp(value - max)) / sum;
                d.* += @floatCast(j.factor * p * (f_e - mean));
            }
        }
    }.f);
}

fn softmax(comptime T: type, out: []T, logits: []const T) void {
    const max = std.mem.max(T, logits);
    var sum: T = 0;
    for (out, logits) |*p, x| {
        p.* = @exp(x - max);
        sum += p.*;
    }
    for (out) |*p| p.* /= sum;
}

const check = @import("check.zig");
const router = @import("router.zig");

/// The definition: two layers' logits one behind the other as [2N, E], whose rows count where `counted` [2N] says so.
fn lossNaive(logits: []const f64, counted: []const bool, experts: usize, k: usize) f64 {
    var total: f64 = 0;
    var f: [16]f64 = @splat(0);
    var p: [16]f64 = @splat(0);
    for (counted, 0..) |counts, row| {
        if (!counts) continue;
        total += 1;
        const x = logits[row * experts ..][0..experts];
        var sum: f64 = 0;
        for (x) |value| sum += @exp(value);
        for (x, 0..) |value, e| {
            p[e] += @exp(value) / sum;
            var larger: usize = 0;
            for (x) |other| larger += @intFromBool(other > value);
            if (larger < k) f[e] += 1;
        }
    }
    var loss: f64 = 0;
    for (f[0..experts], p[0..experts]) |a, b| loss += a / total * (b / total);
    return loss * @as(f64, @floatFromInt(experts));
}

const Problem = struct {
    const experts = 6;
    const k = 2;
    const rows: Rows = .{ .total = 8, .time = 4, .lengths = &.{ 4, 1 } };
    const counted = [_]bool{ true, true, true, true, true, false, false, false } ++ [_]bool{ true, true, true, true, true, false, false, false };

    ex: *Exec,
    logits: []f64,

    /// Sums over both layers into `sums`.
    fn gather(self: Problem, comptime T: type, logits: []const T, sums: Sums) void {
        var room: [8 * experts]T = undefined;
        var chosen: [8 * k]u32 = undefined;
        var weights: [8 * k]T = undefined;
        sums.clear();
        for (0..2) |l| {
            const of_layer = logits[l * 8 * experts ..][0 .. 8 * experts];
            router.choose(T, self.ex, &chosen, &weights, of_layer, 8, experts, k);
            add(T, self.ex, sums, &room, of_layer, &chosen, rows, k);
        }
    }

    fn naive(self: Problem) f64 {
        return lossNaive(self.logits, &counted, experts, k);
    }
};

test "the loss is its definition over the tokens of all layers that are no padding" {
    var rig = try check.Rig.init(2);
    defer rig.deinit();

    var bag: check.Bag = .{};
    defer bag.deinit();

    const p: Problem = .{ .ex = &rig.ex, .logits = bag.normal(f64, 2 * 8 * Problem.experts) };
    const sums: Sums = .{ .chosen = bag.zeros(f64, Problem.experts), .probabilities = bag.zeros(f64, Problem.experts) };
    p.gather(f64, p.logits, sums);
    try std.testing.expectEqual(5, Problem.rows.count());
    try std.testing.expectApproxEqAbs(p.naive(), sums.loss(10), 1e-12);
    const single = bag.zeros(f32, p.logits.len);
    for (single, p.logits) |*to, from| to.* = @floatCast(from);
    p.gather(f32, single, sums);
    try std.testing.expectApproxEqAbs(p.naive(), sums.loss(10), 1e-6);
    try std.testing.expectEqual(0, sums.loss(0));
    // All alike: k.
    @memset(sums.chosen, 10.0 * @as(f64, Problem.k) / Problem.experts);
    @memset(sums.probabilities, 10.0 / @as(f64, Problem.experts));
    try std.testing.expectApproxEqAbs(Problem.k, sums.loss(10), 1e-12);
}

test "backward is the derivative of the definition, added, and none for padding" {
    var rig = try check.Rig.init(3);
    defer rig.deinit();

    var bag: check.Bag = .{};
    defer bag.deinit();

    const size = 8 * Problem.experts;
    const p: Problem = .{ .ex = &rig.ex, .logits = bag.normal(f64, 2 * size) };
    const sums: Sums = .{ .chosen = bag.zeros(f64, Problem.experts), .probabilities = bag.zeros(f64, Problem.experts) };
    p.gather(f64, p.logits, sums);
    const dlogits = bag.zeros(f64, 2 * size);
    for (0..2) |l| for (0..2) |_| backward(f64, p.ex, dlogits[l * size ..][0..size], p.logits[l * size ..][0..size], sums, 10, 0.5, Problem.rows);
    try check.expectGradient(p.logits, dlogits, p, Problem.naive);
    for (Problem.counted, 0..) |counts, row| for (dlogits[row * Problem.experts ..][0..Problem.experts]) |d| {
        try std.testing.expectEqual(counts, d != 0);
    };
}

test "sums have the same bits for any number of threads" {
    var bag: check.Bag = .{};
    defer bag.deinit();

    const n = 203;
    const logits = bag.normal(f32, n * 32);
    var first: [64]f64 = undefined;
    for (check.thread_counts, 0..) |threads, i| {
        var rig = try check.Rig.init(threads);
        defer rig.deinit();

        const sums: Sums = .{ .chosen = bag.zeros(f64, 32), .probabilities = bag.zeros(f64, 32) };
        const chosen = try bag.arena.allocator().alloc(u32, n * 4);
        router.choose(f32, &rig.ex, chosen, bag.zeros(f32, n * 4), logits, n, 32, 4);
        add(f32, &rig.ex, sums, bag.zeros(f32, n * 32), logits, chosen, .{ .total = n, .time = n }, 4);
        const both = sums.chosen[0..32].* ++ sums.probabilities[0..32].*;
        if (i == 0) first = both;
        try std.testing.expectEqual(first, both);
    }
}
