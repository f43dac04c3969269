//! Output projection, softmax cross entropy and their gradients in one pass over chunks of rows.
//!
//! hidden [N, C], weight [V, C], targets [N] (-1 = not in the loss). Logits exist for one chunk at a time in the shared
//! scratch of `Exec`; `Exec.reserve(.{ .vocab_size = V, .loss_rows = N })` makes it. With smoothing ε the loss of a row is
//! (1-ε)·(-log p_target) + ε·mean_v(-log p_v). Gradients are of scale · Σ loss.

const std = @import("std");
const Exec = @import("exec.zig").Exec;
const matmul = @import("matmul.zig");
const frozen = @import("frozen.zig");
const kernels = @import("kernels");

/// The output matrix [V, C]: plain numbers, or as a file stores it (without a gradient of its own).
pub fn Head(comptime T: type) type {
    return union(enum) {
        dense: []const T,
        frozen: frozen.Matrix,
    };
}

/// An adapter's share of the logits: + inp · weightᵀ.
pub fn Low(comptime T: type) type {
    return struct {
        rank: usize,
        /// [N, R]. Lost; where `dhidden` is wanted it becomes the gradient by itself, 0 in rows without a target.
        inp: []T,
        /// [V, R]
        weight: []const T,
        /// [V, R], accumulated. null = not wanted.
        dweight: ?[]T = null,
    };
}

pub fn Args(comptime T: type) type {
    return struct {
        /// [N, C]
        hidden: []const T,
        /// [V, C]
        weight: Head(T),
        low: ?Low(T) = null,
        /// [N], -1 = ignored. Values are below V.
        targets: []const i32,
        /// V; C follows from the size of `weight`.
        vocab_size: usize,
        /// 1 / number of targets of the whole update. Used by the gradients only.
        scale: T,
        /// [N]: multiplies `scale` row by row. Used by the gradients only; null = 1.
        row_scale: ?[]const T = null,
        label_smoothing: T = 0,
        /// [N, C], stored. Rows without target become 0. null = not wanted. Must not alias `hidden`.
        dhidden: ?[]T = null,
        /// [V, C], accumulated. null = not wanted.
        dweight: ?[]T = null,
        /// [N]: receives the negative log-probability of each row's target, 0 in rows without one. null = not wanted.
        row_nll: ?[]f64 = null,
        /// [N]: receives the mean of each row's logits over the vocabulary, 0 in rows without a target.
        row_mean_logit: ?[]f64 = null,
        /// [N]: receives whether a row's first arg-max is its target.
        row_correct: ?[]bool = null,
        /// [N, C]: room to set the rows with a target side by side when `dhidden` is not wanted, so that the others cost
        /// nothing. Must not alias `hidden`.
        room: ?[]T = null,

        fn columns(self: @This()) usize {
            return switch (self.weight) {
                .dense => |w| w.len / self.vocab_size,
                .frozen => |matrix| matrix.columns,
            };
        }
    };
}

/// Sums over rows with a target, not divided by anything.
pub const Result = struct {
    /// Smoothed loss (equals `nll_sum` when label_smoothing is 0).
    loss_sum: f64 = 0,
    nll_sum: f64 = 0,
    /// Rows whose first arg-max is the target.
    correct: u64 = 0,
    count: u64 = 0,
};

/// Numbers of shared scratch for calls of up to `rows` rows.
pub fn scratchCount(rows: usize, vocab_size: usize) usize {
    return @min(rows, chunkRows(vocab_size)) * vocab_size;
}

const max_chunk_rows = 512;

/// Rows of a chunk: about 64 MB of f32 logits, but never so few that reading the weights dominates.
fn chunkRows(vocab_size: usize) usize {
    return std.math.clamp((1 << 24) / @max(vocab_size, 1), 64, max_chunk_rows);
}

pub fn run(comptime T: type, ex: *Exec, args: Args(T)) Result {
    const n = args.targets.len;
    const v = args.vocab_size;
    const c = args.columns();
    switch (args.weight) {
        .dense => |w| std.debug.assert(w.len == c * v),
        .frozen => |matrix| std.debug.assert(matrix.rows == v and args.dweight == null),
    }
    std.debug.assert(args.hidden.len >= n * c);
    if (args.row_scale) |list| std.debug.assert(list.len >= n);
    if (args.row_nll) |list| @memset(list[0..n], 0);
    if (args.row_mean_logit) |list| @memset(list[0..n], 0);
    if (args.row_correct) |list| @memset(list[0..n], false);
    const logits = ex.sharedScratch(T, scratchCount(n, v));
    var rows: [max_chunk_rows]Row = undefined;
    var origin: [max_chunk_rows]usize = undefined;
    var result: Result = .{};
    // Where hidden gradients are wanted their buffer first holds the rows that have a target, side by side: rows outside
    // the loss then cost nothing. Chunks turn into their gradients in place; at the end the rows go home.
    const room = args.dhidden orelse args.room;
    const gathered = if (room) |to| gather(T, to, args.hidden, args.targets, c) else null;
    if (args.low) |low| {
        std.debug.assert(low.inp.len == n * low.rank);
        std.debug.assert(low.weight.len == v * low.rank);
        if (gathered != null) _ = gather(T, low.inp, low.inp, args.targets, low.rank);
    }
    const source: []const T = if (gathered != null) room.? else args.hidden;
    const total = gathered orelse n;
    var cursor: usize = 0; // in args.targets
    var begin: usize = 0; // in source
    while (begin < total) {
        const m = @min(total - begin, chunkRows(v));
        for (origin[0..m]) |*row| {
            while (gathered != null and args.targets[cursor] < 0) cursor += 1;
            row.* = cursor;
            cursor += 1;
        }
        const hidden = source[begin * c ..][0 .. m * c];
        switch (args.weight) {
            .dense => |w| matmul.forward(T, ex, logits, hidden, w, null, m, v, c, .store),
            .frozen => |matrix| frozen.forward(T, ex, logits, hidden, matrix, null, m, .store),
        }
        if (args.low) |low| matmul.forward(T, ex, logits, low.inp[begin * low.rank ..][0 .. m * low.rank], low.weight, null, m, v, low.rank, .accumulate);
        const job: Job(T) = .{ .args = args, .origin = origin[0..m], .logits = logits, .rows = rows[0..m] };
        ex.pool.parallelFor(job, m, struct {
            fn f(j: Job(T), r: usize, _: usize) void {
                j.rows[r] = lossOfRow(T, j, r);
            }
        }.f);
        for (rows[0..m], origin[0..m]) |row, at| {
            if (args.row_nll) |list| list[at] = row.nll;
            if (args.row_mean_logit) |list| list[at] = row.mean_logit;
            if (args.row_correct) |list| list[at] = row.correct;
            result.loss_sum += row.loss;
            result.nll_sum += row.nll;
            result.correct += @intFromBool(row.correct);
            result.count += @intFromBool(row.counted);
        }
        if (args.dweight) |dw| matmul.backwardWeight(T, ex, dw, null, logits, hidden, m, v, c);
        if (args.dhidden) |dh| switch (args.weight) {
            .dense => |w| matmul.backwardInput(T, ex, dh[begin * c ..][0 .. m * c], logits, w, m, v, c, .store),
            .frozen => |matrix| frozen.backwardInput(T, ex, dh[begin * c ..][0 .. m * c], logits, matrix, m, .store),
        };
        if (args.low) |low| {
            const rows_low = low.inp[begin * low.rank ..][0 .. m * low.rank];
            if (low.dweight) |dw| matmul.backwardWeight(T, ex, dw, null, logits, rows_low, m, v, low.rank);
            if (args.dhidden != null) matmul.backwardInput(T, ex, rows_low, logits, low.weight, m, v, low.rank, .store);
        }
        begin += m;
    }
    if (args.low) |low| if (args.dhidden != null) if (gathered) |count| scatter(T, low.inp, args.targets, low.rank, count);
    if (args.dhidden) |dh| if (gathered) |count| scatter(T, dh, args.targets, c, count);
    return result;
}

/// Copies the rows of `hidden` that have a target to the front of `to`, which may be `hidden`, and gives their number; null when all have one.
fn gather(comptime T: type, to: []T, hidden: []const T, targets: []const i32, c: usize) ?usize {
    const all = for (targets) |target| {
        if (target < 0) break false;
    } else true;
    if (all) return null;
    var count: usize = 0;
    for (targets, 0..) |target, r| {
        if (target < 0) continue;
        if (to.ptr + count * c != hidden.ptr + r * c) @memcpy(to[count * c ..][0..c], hidden[r * c ..][0..c]);
        count += 1;
    }
    return count;
}

/// The way back: row i of the front goes to its place, rows without target become 0. From the end, so that no row is
/// overwritten before it has moved.
fn scatter(comptime T: type, x: []T, targets: []const i32, c: usize, count: usize) void {
    var i = count;
    var r = targets.len;
    while (r > 0) {
        r -= 1;
        const to = x[r * c ..][0..c];
        if (targets[r] < 0) {
            @memset(to, 0);
            continue;
        }
        i -= 1;
        if (i != r) @memcpy(to, x[i * c ..][0..c]);
    }
    std.debug.assert(i == 0);
}

const Row = struct { loss: f64 = 0, nll: f64 = 0, mean_logit: f64 = 0, correct: bool = false, counted: bool = false };

fn Job(comptime T: type) type {
    return struct { args: Args(T), origin: []const usize, logits: []T, rows: []Row };
}

/// Loss of row r; its logits become their gradient.
fn lossOfRow(comptime T: type, job: Job(T), r: usize) Row {
    const v = job.args.vocab_size;
    const logits = job.logits[r * v ..][0..v];
    const at = job.origin[r];
    if (job.args.targets[at] < 0) {
        @memset(logits, 0);
        return .{};
    }
    const target: usize = @intCast(job.args.targets[at]);
    std.debug.assert(target < v);
    const table = kernels.table(T);
    const smoothing: f64 = job.args.label_smoothing;
    const vocabulary: f64 = @floatFromInt(v);
    var max: T = undefined;
    var exp_sum: f64 = undefined;
    var plain_sum: f64 = undefined;
    const best = table.logit_sums(v, logits.ptr, &max, &exp_sum, &plain_sum);
    // Distances from the maximum are exact or nearly so; the maximum itself may be large.
    const lse = @log(exp_sum);
    const nll = lse - (@as(f64, logits[target]) - max);
    const mean = lse - (plain_sum / vocabulary - max);
    const low_gradient = if (job.args.low) |low| low.dweight != null else false;
    if (job.args.dhidden != null or job.args.dweight != null or low_gradient) {
        const scale = if (job.args.row_scale) |list| job.args.scale * list[at] else job.args.scale;
        table.logit_gradient(v, logits.ptr, max, @floatCast(1 / exp_sum), @floatCast(smoothing / vocabulary), scale);
        logits[target] -= (1 - job.args.label_smoothing) * scale;
    }
    return .{ .loss = (1 - smoothing) * nll + smoothing * mean, .nll = nll, .mean_logit = plain_sum / vocabulary, .correct = best == target, .counted = true };
}

/// The definition, one row at a time; `logits` [V] is scratch.
pub fn runNaive(comptime T: type, logits: []T, args: Args(T)) Result {
    const v = args.vocab_size;
    const c = args.columns();
    const weight = args.weight.dense;
    var result: Result = .{};
    if (args.row_nll) |list| @memset(list[0..args.targets.len], 0);
    if (args.row_mean_logit) |list| @memset(list[0..args.targets.len], 0);
    if (args.row_correct) |list| @memset(list[0..args.targets.len], false);
    if (args.dhidden) |dh| @memset(dh[0 .. args.targets.len * c], 0);
    for (args.targets, 0..) |target_signed, r| {
        if (target_signed < 0) continue;
        const target: usize = @intCast(target_signed);
        const h = args.hidden[r * c ..][0..c];
        matmul.forwardNaive(T, logits, h, weight, null, 1, v, c, .store);
        var best: usize = 0;
        for (logits, 0..) |x, i| if (x > logits[best]) {
            best = i;
        };
        var sum: f64 = 0;
        var total: f64 = 0; // of logits, for the mean of -log p
        for (logits) |x| {
            sum += @exp(@as(f64, x) - logits[best]);
            total += x;
        }
        const lse = @as(f64, logits[best]) + @log(sum);
        const nll = lse - logits[target];
        const smoothing: f64 = args.label_smoothing;
        result.nll_sum += nll;
        result.loss_sum += (1 - smoothing) * nll + smoothing * (lse - total / @as(f64, @floatFromInt(v)));
        if (args.row_nll) |list| list[r] = nll;
        if (args.row_mean_logit) |list| list[r] = total / @as(f64, @floatFromInt(v));
        if (args.row_correct) |list| list[r] = best == target;
        const scale = if (args.row_scale) |list| args.scale * list[r] else args.scale;
        result.count += 1;
        if (best == target) result.correct += 1;
        for (logits, 0..) |*x, i| {
            const p: T = @floatCast(@exp(@as(f64, x.*) - lse));
            const hot: T = if (i == target) 1 - args.label_smoothing else 0;
            x.* = (p - hot - args.label_smoothing / @as(T, @floatFromInt(v))) * scale;
        }
        if (args.dhidden) |dh| matmul.backwardInputNaive(T, dh[r * c ..][0..c], logits, weight, 1, v, c, .store);
        if (args.dweight) |dw| matmul.backwardWeightNaive(T, dw, null, logits, h, 1, v, c);
    }
    return result;
}

const check = @import("check.zig");

/// Some rows in the loss, some not, at both ends too.
fn someTargets(bag: *check.Bag, n: usize, v: usize) []i32 {
    const targets = bag.zeros(i32, n);
    for (targets, 0..) |*t, i| t.* = if (i % 5 == 0 or i + 2 > n) -1 else @intCast(bag.prng.below(v));
    return targets;
}

test "fast equals plain: several chunks, ignored rows, smoothing, small vocabularies" {
    var rig = try check.Rig.init(2);
    defer rig.deinit();

    const shapes = [_][3]usize{ .{ 1, 1, 1 }, .{ 2, 2, 3 }, .{ 7, 33, 5 }, .{ 40, 17, 9 }, .{ 1100, 21, 3 } };
    inline for (.{ f32, f64 }) |T| for (shapes) |shape| for ([_]T{ 0, 0.1 }) |smoothing| {
        const n, const v, const c = shape;
        const tolerance = if (T == f32) 3e-6 else 1e-12;
        var bag: check.Bag = .{};
        defer bag.deinit();

        try rig.ex.reserve(T, .{ .vocab_size = v, .loss_rows = n });
        const hidden = bag.normal(T, n * c);
        const weight = bag.normal(T, v * c);
        const targets = someTargets(&bag, n, v);
        const start = bag.normal(T, v * c);
        const got = [_][]T{ bag.normal(T, n * c), bag.copy(T, start) };
        const want = [_][]T{ bag.zeros(T, n * c), bag.copy(T, start) };
        const row_nll = [_][]f64{ bag.zeros(f64, n), bag.zeros(f64, n) };
        const row_mean = [_][]f64{ bag.zeros(f64, n), bag.zeros(f64, n) };
        const row_correct = [_][]bool{ @ptrCast(bag.zeros(u8, n)), @ptrCast(bag.zeros(u8, n)) };
        var args: Args(T) = .{ .hidden = hidden, .weight = .{ .dense = weight }, .targets = targets, .vocab_size = v, .scale = 0.25, .row_scale = bag.normal(T, n), .label_smoothing = smoothing, .dhidden = got[0], .dweight = got[1], .row_nll = row_nll[0], .row_mean_logit = row_mean[0], .row_correct = row_correct[0] };
        const fast = run(T, &rig.ex, args);
        args.dhidden = want[0];
        args.dweight = want[1];
        args.row_nll = row_nll[1];
        args.row_mean_logit = row_mean[1];
        args.row_correct = row_correct[1];
        const plain = runNaive(T, bag.zeros(T, v), args);
        try std.testing.expectEqual(plain.count, fast.count);
        try std.testing.expectEqual(plain.correct, fast.correct);
        try std.testing.expectApproxEqAbs(plain.loss_sum, fast.loss_sum, tolerance * (1 + plain.loss_sum));
        try std.testing.expectApproxEqAbs(plain.nll_sum, fast.nll_sum, tolerance * (1 + plain.nll_sum));
        for (want, got) |w, g| try check.expectClose(T, w, g, tolerance);
        for (row_nll[0], row_nll[1]) |g, w| try std.testing.expectApproxEqAbs(w, g, tolerance * (1 + w));
        for (row_mean[0], row_mean[1]) |g, w| try std.testing.expectApproxEqAbs(w, g, tolerance * (1 + @abs(w)));
        try std.testing.expectEqualSlices(bool, row_correct[1], row_correct[0]);
        // Without gradients the sums are the same, with room to leave rows out and without.
        args.dhidden = null;
        args.dweight = null;
        try std.testing.expectEqual(fast, run(T, &rig.ex, args));
        args.room = got[0];
        @memset(row_nll[1], -1);
        try std.testing.expectEqual(fast, run(T, &rig.ex, args));
        try std.testing.expectEqualSlices(f64, row_nll[0], row_nll[1]);
    };
}

test "an adapter's share equals the head it makes when merged" {
    var rig = try check.Rig.init(2);
    defer rig.deinit();

    const n = 1100;
    const v = 21;
    const c = 6;
    const rank = 2;
    try rig.ex.reserve(f64, .{ .vocab_size = v, .loss_rows = n });
    var bag: check.Bag = .{};
    defer bag.deinit();

    const hidden = bag.normal(f64, n * c);
    const weight = bag.normal(f64, v * c);
    const a = bag.normal(f64, rank * c);
    const b = bag.normal(f64, v * rank);
    const merged = bag.copy(f64, weight);
    matmul.backwardInputNaive(f64, merged, b, a, v, rank, c, .accumulate); // + B·A
    const targets = someTargets(&bag, n, v);
    const inp = bag.zeros(f64, n * rank);
    matmul.forward(f64, &rig.ex, inp, hidden, a, null, n, rank, c, .store);
    const dhidden = [2][]f64{ bag.zeros(f64, n * c), bag.zeros(f64, n * c) };
    const dmerged = bag.zeros(f64, v * c);
    const db = bag.zeros(f64, v * rank);
    const want = run(f64, &rig.ex, .{ .hidden = hidden, .weight = .{ .dense = merged }, .targets = targets, .vocab_size = v, .scale = 0.5, .dhidden = dhidden[0], .dweight = dmerged });
    const got = run(f64, &rig.ex, .{ .hidden = hidden, .weight = .{ .dense = weight }, .low = .{ .rank = rank, .inp = inp, .weight = b, .dweight = db }, .targets = targets, .vocab_size = v, .scale = 0.5, .dhidden = dhidden[1] });
    try std.testing.expectApproxEqAbs(want.loss_sum, got.loss_sum, 1e-9);
    try std.testing.expectEqual(want.correct, got.correct);
    matmul.backwardInput(f64, &rig.ex, dhidden[1], inp, a, n, rank, c, .accumulate);
    try check.expectClose(f64, dhidden[0], dhidden[1], 1e-12);
    const db_naive = bag.zeros(f64, v * rank);
    matmul.forwardNaive(f64, db_naive, dmerged, a, null, v, rank, c, .store); // dW·Aᵀ
    try check.expectClose(f64, db_naive, db, 1e-12);
}

test "a frozen head has the bits of its expansion" {
    var rig = try check.Rig.init(2);
    defer rig.deinit();

    const n = 30;
    const v = 70;
    const c = 64;
    try rig.ex.reserve(f32, .{ .vocab_size = v, .loss_rows = n, .frozen_columns = c });
    var bag: check.Bag = .{};
    defer bag.deinit();

    const words = bag.zeros(u16, v * c);
    const weight = bag.normal(f32, v * c);
    for (words, weight) |*word, *w| {
        word.* = @truncate(@as(u32, @bitCast(w.*)) >> 16);
        w.* = @bitCast(@as(u32, word.*) << 16);
    }
    const targets = someTargets(&bag, n, v);
    const got = bag.zeros(f32, n * c);
    const want = bag.zeros(f32, n * c);
    var args: Args(f32) = .{ .hidden = bag.normal(f32, n * c), .weight = .{ .dense = weight }, .targets = targets, .vocab_size = v, .scale = 0.5, .dhidden = want };
    const expected = run(f32, &rig.ex, args);
    args.weight = .{ .frozen = .{ .dtype = .bf16, .rows = v, .columns = c, .bytes = std.mem.sliceAsBytes(words) } };
    args.dhidden = got;
    try std.testing.expectEqual(expected, run(f32, &rig.ex, args));
    try check.expectSame(f32, want, got);
}

test "gradients are those of the scaled loss, with smoothing" {
    var rig = try check.Rig.init(1);
    defer rig.deinit();

    const n = 5;
    const v = 7;
    const c = 3;
    try rig.ex.reserve(f64, .{ .vocab_size = v, .loss_rows = n });
    var bag: check.Bag = .{};
    defer bag.deinit();

    const Problem = struct { ex: *Exec, args: Args(f64) };
    const hidden = bag.normal(f64, n * c);
    const weight = bag.normal(f64, v * c);
    const dhidden = bag.zeros(f64, n * c);
    const dweight = bag.zeros(f64, v * c);
    var p: Problem = .{ .ex = &rig.ex, .args = .{ .hidden = hidden, .weight = .{ .dense = weight }, .targets = &.{ 3, -1, 0, 6, 3 }, .vocab_size = v, .scale = 0.25, .label_smoothing = 0.1, .dhidden = dhidden, .dweight = dweight } };
    _ = run(f64, p.ex, p.args);
    p.args.dhidden = null;
    p.args.dweight = null;
    const loss = struct {
        fn f(x: Problem) f64 {
            return x.args.scale * run(f64, x.ex, x.args).loss_sum;
        }
    }.f;
    try check.expectGradient(hidden, dhidden, p, loss);
    try check.expectGradient(weight, dweight, p, loss);
}

test "huge logits stay finite; a NaN is not hidden" {
    var rig = try check.Rig.init(1);
    defer rig.deinit();

    try rig.ex.reserve(f32, .{ .vocab_size = 3, .loss_rows = 1 });
    const big = run(f32, &rig.ex, .{ .hidden = &.{1e4}, .weight = .{ .dense = &.{ 1, -1, 0.5 } }, .targets = &.{1}, .vocab_size = 3, .scale = 1 });
    try std.testing.expectApproxEqAbs(2e4, big.nll_sum, 1e-6);
    try std.testing.expectEqual(0, big.correct);
    const nan = run(f32, &rig.ex, .{ .hidden = &.{std.math.nan(f32)}, .weight = .{ .dense = &.{ 1, -1, 0.5 } }, .targets = &.{1}, .vocab_size = 3, .scale = 1 });
    try std.testing.expect(std.math.isNan(nan.loss_sum));
}

test "the first of equal largest logits is the answer" {
    var rig = try check.Rig.init(1);
    defer rig.deinit();

    try rig.ex.reserve(f32, .{ .vocab_size = 20, .loss_rows = 2 });
    const weight: [20]f32 = @splat(1);
    const result = run(f32, &rig.ex, .{ .hidden = &.{ 1, 1 }, .weight = .{ .dense = &weight }, .targets = &.{ 0, 19 }, .vocab_size = 20, .scale = 1 });
    try std.testing.expectEqual(1, result.correct);
    try std.testing.expectApproxEqAbs(2 * @log(20.0), result.nll_sum, 1e-6);
}

test "the same bits for any number of threads" {
    var bag: check.Bag = .{};
    defer bag.deinit();

    const n = 300;
    const v = 129;
    const c = 20;
    const hidden = bag.normal(f32, n * c);
    const weight = bag.normal(f32, v * c);
    const targets = someTargets(&bag, n, v);
    var first: ?[2][]f32 = null;
    var first_result: Result = undefined;
    for (check.thread_counts) |threads| {
        var rig = try check.Rig.init(threads);
        defer rig.deinit();

        try rig.ex.reserve(f32, .{ .vocab_size = v, .loss_rows = n });
        const got = [2][]f32{ bag.zeros(f32, n * c), bag.zeros(f32, v * c) };
        const result = run(f32, &rig.ex, .{ .hidden = hidden, .weight = .{ .dense = weight }, .targets = targets, .vocab_size = v, .scale = 0.1, .dhidden = got[0], .dweight = got[1] });
        if (first) |expected| {
            for (expected, got) |e, g| try check.expectSame(f32, e, g);
            try std.testing.expectEqual(first_result, result);
        } else {
            first = got;
            first_result = result;
        }
    }
}
