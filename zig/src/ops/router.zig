//! The router of a mixture of experts: which experts see a token, and with what weight.
//!
//! logits [N, E]; of each row the `k` largest are chosen, and the softmax over those alone is their weights. Equal logits: the lower
//! expert comes first. `chosen` and `weights` are [N, k], the experts of a token in rising order, so that whatever sums over a token's
//! experts does it in one order. The choice has no gradient. Does not know: how logits come about, what experts compute.

const std = @import("std");
const Exec = @import("exec.zig").Exec;

/// The most experts a token may have: what the loops below keep on the stack.
pub const max_chosen = 64;

pub fn choose(comptime T: type, ex: *Exec, chosen: []u32, weights: []T, logits: []const T, rows: usize, experts: usize, k: usize) void {
    std.debug.assert(k >= 1 and k <= experts and k <= max_chosen);
    std.debug.assert(logits.len >= rows * experts);
    std.debug.assert(chosen.len >= rows * k and weights.len >= rows * k);
    const Job = struct { chosen: []u32, weights: []T, logits: []const T, experts: usize, k: usize };
    ex.pool.parallelFor(Job{ .chosen = chosen, .weights = weights, .logits = logits, .experts = experts, .k = k }, rows, struct {
        fn f(j: Job, row: usize, _: usize) void {
            const ids = j.chosen[row * j.k ..][0..j.k];
            const values = j.weights[row * j.k ..][0..j.k];
            largest(T, ids, values, j.logits[row * j.experts ..][0..j.experts]);
            var max = values[0];
            for (values[1..]) |v| max = @max(max, v);
            var sum: T = 0;
            for (values) |*v| {
                v.* = @exp(v.* - max);
                sum += v.*;
            }
            for (values) |*v| v.* /= sum;
        }
    }.f);
}

/// The places of the `ids.len` largest numbers in rising order, with the numbers.
fn largest(comptime T: type, ids: []u32, values: []T, row: []const T) void {
    var order: [max_chosen]u32 = undefined; // Largest first.
    var have: usize = 0;
    for (row, 0..) |x, e| {
        var at = have;
        while (at > 0 and x > row[order[at - 1]]) at -= 1;
        if (at == ids.len) continue;
        have = @min(have + 1, ids.len);
        std.mem.copyBackwards(u32, order[at + 1 .. have], order[at .. have - 1]);
        order[at] = @intCast(e);
    }
    @memcpy(ids, order[0..ids.len]);
    std.mem.sort(u32, ids, {}, std.sort.asc(u32));
    for (ids, values) |e, *v| v.* = row[e];
}

/// dlogits [N, E] (stored) from the gradient by the weights; 0 where an expert was not chosen.
pub fn backward(comptime T: type, ex: *Exec, dlogits: []T, dweights: []const T, chosen: []const u32, weights: []const T, rows: usize, experts: usize, k: usize) void {
    std.debug.assert(dlogits.len >= rows * experts);
    const Job = struct { dlogits: []T, dweights: []const T, chosen: []const u32, weights: []const T, experts: usize, k: usize };
    const job: Job = .{ .dlogits = dlogits, .dweights = dweights, .chosen = chosen, .weights = weights, .experts = experts, .k = k };
    ex.pool.parallelFor(job, rows, struct {
        fn f(j: Job, row: usize, _: usize) void {
            const out = j.dlogits[row * j.experts ..][0..j.experts];
            const w = j.weights[row * j.k ..][0..j.k];
            const dw = j.dweights[row * j.k ..][0..j.k];
            var mean: T = 0;
            for (w, dw) |a, b| mean += a * b;
            @memset(out, 0);
            for (j.chosen[row * j.k ..][0..j.k], w, dw) |e, a, b| out[e] = a * (b - mean);
        }
    }.f);
}

const check = @import("check.zig");

test "the largest are chosen in rising order, the lower of equals first, and their weights are a softmax" {
    var rig = try check.Rig.init(2);
    defer rig.deinit();

    inline for (.{ f32, f64 }) |T| {
        const logits = [_]T{ 1, 5, 5, -2, 5, 0, -1, -1, -1, -1, -1, -1 };
        var chosen: [4]u32 = undefined;
        var weights: [4]T = undefined;
        choose(T, &rig.ex, &chosen, &weights, &logits, 2, 6, 2);
        try std.testing.expectEqualSlices(u32, &.{ 1, 2, 0, 1 }, &chosen);
        try std.testing.expectEqualSlices(T, &.{ 0.5, 0.5, 0.5, 0.5 }, &weights);
        var one: [1]u32 = undefined;
        var all: [1]T = undefined;
        choose(T, &rig.ex, &one, &all, logits[0..6], 1, 6, 1);
        try std.testing.expectEqual(1, one[0]);
        try std.testing.expectEqual(1, all[0]);
        var six: [6]u32 = undefined;
        var sum: [6]T = undefined;
        choose(T, &rig.ex, &six, &sum, logits[0..6], 1, 6, 6);
        try std.testing.expectEqualSlices(u32, &.{ 0, 1, 2, 3, 4, 5 }, &six);
        var total: T = 0;
        for (sum) |s| total += s;
        try std.testing.expectApproxEqAbs(1, total, 1e-6);
        try std.testing.expectApproxEqRel(@exp(@as(T, -4)), sum[0] / sum[1], 1e-6);
    }
}

test "backward is the derivative of the weights, where the choice stays" {
    var rig = try check.Rig.init(2);
    defer rig.deinit();

    var bag: check.Bag = .{};
    defer bag.deinit();

    const Problem = struct { ex: *Exec, logits: []f64, weights: []f64, chosen: []u32, dweights: []f64 };
    var chosen: [15]u32 = undefined;
    const p: Problem = .{ .ex = &rig.ex, .logits = bag.normal(f64, 35), .weights = bag.zeros(f64, 15), .chosen = &chosen, .dweights = bag.normal(f64, 15) };
    const loss = struct {
        fn f(x: Problem) f64 {
            choose(f64, x.ex, x.chosen, x.weights, x.logits, 5, 7, 3);
            return check.weigh(x.weights, x.dweights);
        }
    }.f;
    _ = loss(p);
    const dlogits = bag.normal(f64, 35); // Overwritten.
    backward(f64, p.ex, dlogits, p.dweights, p.chosen, p.weights, 5, 7, 3);
    try check.expectGradient(p.logits, dlogits, p, loss);
}
