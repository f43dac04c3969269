//! Output projection, softmax cross entropy and their gradients, a chunk of rows at a time.
//!
//! hidden [N, C], weight [V, C], targets [N] (-1 = not in the loss). With smoothing ε the loss of a row is
//! (1-ε)·(-log p_target) + ε·mean_v(-log p_v). Gradients are of scale · Σ loss.
//!
//! Logits exist for one chunk, turned: [V, rows of the chunk]. The vocabulary is cut into tiles. A worker makes a tile's
//! logits and, while they are in the cache, their maxima and sums; when all tiles are known it turns a tile's logits into
//! their gradient and adds the tile's share to the weights' gradient. Turned, the two large operands need no packing.
//! Tiles follow from V alone and are joined in order, so bits do not depend on the number of threads.
//! Needs `Exec.reserve(.{ .vocab_size = V, .loss_rows = N, .loss_columns = C })`.

const std = @import("std");
const Exec = @import("exec.zig").Exec;
const ceilDiv = @import("exec.zig").ceilDiv;
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
pub fn scratchCount(comptime T: type, rows: usize, vocab_size: usize, columns: usize) usize {
    if (vocab_size == 0) return 0;
    return Scratch(T).of(@min(rows, chunkRows(vocab_size)), vocab_size, columns).total;
}

/// Numbers of scratch a worker needs where the head is frozen: a tile of it, expanded.
pub fn workerScratchCount(vocab_size: usize, columns: usize) usize {
    return tileWords(vocab_size) *| columns;
}

const max_chunk_rows = 512;

/// Rows of a chunk: about 64 MB of f32 logits, but never so few that reading the weights dominates.
fn chunkRows(vocab_size: usize) usize {
    return std.math.clamp((1 << 24) / @max(vocab_size, 1), 64, max_chunk_rows) / 32 * 32;
}

/// Words of a tile: a register tile's rows times a few on every level, enough tiles for all workers, and a chunk's
/// logits of a tile fit the cache.
fn tileWords(vocab_size: usize) usize {
    const unit = 84;
    return std.math.clamp(ceilDiv(vocab_size, 48 * unit) * unit, unit, 4 * unit);
}

/// Where things stand in the shared scratch, in numbers.
fn Scratch(comptime T: type) type {
    return struct {
        logits: usize,
        hidden: usize,
        /// The chunk's rows as columns (forward) and as rows (backward) of a product's right side, packed.
        turned: usize,
        straight: usize,
        /// One number for each tile and row: largest logit, its word (u32), Σ e^(logit − largest), Σ logit.
        max: usize,
        best: usize,
        exps: usize,
        plain: usize,
        /// One number for each row, for the gradient.
        row_max: usize,
        inverse: usize,
        offset: usize,
        factor: usize,
        total: usize,

        fn of(rows: usize, vocab_size: usize, columns: usize) @This() {
            const tiles = ceilDiv(vocab_size, tileWords(vocab_size));
            const table = kernels.table(T);
            const sizes = [_]usize{
                vocab_size *| rows,
                rows *| columns,
                table.packed_b_size(columns, rows) / @sizeOf(T),
                table.packed_b_size(rows, columns) / @sizeOf(T),
                tiles *| rows,
                tiles *| rows,
                tiles *| rows,
                tiles *| rows,
                rows,
                rows,
                rows,
                rows,
            };
            var at: [sizes.len + 1]usize = undefined;
            at[0] = 0;
            for (sizes, at[0..sizes.len], at[1..]) |size, begin, *next| next.* = begin +| std.mem.alignForward(usize, size, 16);
            return .{ .logits = at[0], .hidden = at[1], .turned = at[2], .straight = at[3], .max = at[4], .best = at[5], .exps = at[6], .plain = at[7], .row_max = at[8], .inverse = at[9], .offset = at[10], .factor = at[11], .total = at[12] };
        }
    };
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
    if (args.dhidden) |dh| for (args.targets, 0..) |target, r| {
        if (target < 0) @memset(dh[r * c ..][0..c], 0);
    };
    var result: Result = .{};
    // Rows outside the loss cost nothing. The adapter's rows that are in it first stand side by side, become their
    // gradient there, and go home at the end.
    const low_count = if (args.low) |low| gather(T, low.inp[0 .. n * low.rank], args.targets, low.rank) else 0;
    var origin: [max_chunk_rows]usize = undefined;
    var done: usize = 0; // rows with a target
    var cursor: usize = 0; // in args.targets
    while (true) {
        var m: usize = 0;
        while (cursor < n and m < chunkRows(v)) : (cursor += 1) {
            if (args.targets[cursor] < 0) continue;
            origin[m] = cursor;
            m += 1;
        }
        if (m == 0) break;
        chunk(T, ex, args, origin[0..m], done, &result);
        done += m;
    }
    if (args.low) |low| if (args.dhidden != null) scatter(T, low.inp, args.targets, low.rank, low_count);
    return result;
}

/// The rows `origin`; `done` rows with a target came before them.
fn chunk(comptime T: type, ex: *Exec, args: Args(T), origin: []const usize, done: usize, result: *Result) void {
    const v = args.vocab_size;
    const c = args.columns();
    const m = origin.len;
    const scratch = ex.sharedScratch(T, scratchCount(T, m, v, c));
    const side_by_side = origin[m - 1] - origin[0] == m - 1;
    const at: Scratch(T) = .of(m, v, c);
    const rows_scratch = scratch[at.hidden..][0 .. m * c];
    if (!side_by_side) for (origin, 0..) |from, r| @memcpy(rows_scratch[r * c ..][0..c], args.hidden[from * c ..][0..c]);
    var rows: [max_chunk_rows]Row = undefined;
    const tile_words = tileWords(v);
    const low_gradient = if (args.low) |low| low.dweight != null else false;
    const job: Job(T) = .{
        .ex = ex,
        .args = args,
        .origin = origin,
        .hidden = if (side_by_side) args.hidden[origin[0] * c ..][0 .. m * c] else rows_scratch,
        .low_inp = if (args.low) |low| low.inp[done * low.rank ..][0 .. m * low.rank] else &.{},
        .scratch = scratch,
        .at = at,
        .tile_words = tile_words,
        .tiles = ceilDiv(v, tile_words),
        .rows = rows[0..m],
        .gradients = args.dhidden != null or args.dweight != null or low_gradient,
    };
    ex.pool.parallelFor(job, if (args.dweight != null) 2 else 1, Job(T).packRows);
    ex.pool.parallelFor(job, job.tiles, Job(T).tileLogits);
    ex.pool.parallelFor(job, m, Job(T).joinRow);
    for (rows[0..m], origin) |row, to| {
        if (args.row_nll) |list| list[to] = row.nll;
        if (args.row_mean_logit) |list| list[to] = row.mean_logit;
        if (args.row_correct) |list| list[to] = row.correct;
        result.loss_sum += row.loss;
        result.nll_sum += row.nll;
        result.correct += @intFromBool(row.correct);
        result.count += 1;
    }
    if (!job.gradients) return;
    ex.pool.parallelFor(job, job.tiles, Job(T).tileGradient);
    const dlogits = scratch[at.logits..][0 .. v * m];
    if (args.dhidden) |dh| {
        const to = if (side_by_side) dh[origin[0] * c ..][0 .. m * c] else rows_scratch;
        switch (args.weight) {
            .dense => |w| matmul.backwardInputTurned(T, ex, to, dlogits, w, m, v, c),
            .frozen => |matrix| frozen.backwardInputTurned(T, ex, to, dlogits, matrix, m),
        }
        if (!side_by_side) for (origin, 0..) |home, r| @memcpy(dh[home * c ..][0..c], rows_scratch[r * c ..][0..c]);
        if (args.low) |low| matmul.backwardInputTurned(T, ex, low.inp[done * low.rank ..][0 .. m * low.rank], dlogits, low.weight, m, v, low.rank);
    }
}

/// Moves the rows that have a target to the front and gives their number.
fn gather(comptime T: type, x: []T, targets: []const i32, c: usize) usize {
    var count: usize = 0;
    for (targets, 0..) |target, r| {
        if (target < 0) continue;
        if (count != r) @memcpy(x[count * c ..][0..c], x[r * c ..][0..c]);
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

const Row = struct { loss: f64, nll: f64, mean_logit: f64, correct: bool };

fn Job(comptime T: type) type {
    return struct {
        ex: *Exec,
        args: Args(T),
        origin: []const usize,
        /// [m, C]
        hidden: []const T,
        /// [m, R], or nothing.
        low_inp: []const T,
        scratch: []align(64) T,
        at: Scratch(T),
        tile_words: usize,
        tiles: usize,
        rows: []Row,
        gradients: bool,

        const Self = @This();

        /// The chunk's rows as they are needed: 0 forward, 1 backward.
        fn packRows(job: Self, index: usize, _: usize) void {
            const c = job.args.columns();
            const m = job.rows.len;
            const pack = job.ex.packB(T);
            if (index == 0)
                pack(c, m, job.hidden.ptr, 1, c, @ptrCast(job.scratch.ptr + job.at.turned))
            else
                pack(m, c, job.hidden.ptr, c, 1, @ptrCast(job.scratch.ptr + job.at.straight));
        }

        const Tile = struct { word: usize, words: usize };

        fn tileAt(job: Self, index: usize) Tile {
            const word = index * job.tile_words;
            return .{ .word = word, .words = @min(job.tile_words, job.args.vocab_size - word) };
        }

        /// Numbers `words` × m from the tile's first word on.
        fn logitsOf(job: Self, tile: Tile) []T {
            return job.scratch[job.at.logits + tile.word * job.rows.len ..][0 .. tile.words * job.rows.len];
        }

        fn perTile(job: Self, begin: usize, index: usize) [*]T {
            return job.scratch.ptr + begin + index * job.rows.len;
        }

        /// Logits of one tile; maximum and sums of each row in it.
        fn tileLogits(job: Self, index: usize, worker: usize) void {
            const args = job.args;
            const c = args.columns();
            const m = job.rows.len;
            const tile = job.tileAt(index);
            const logits = job.logitsOf(tile);
            const packing = job.ex.workers[worker].packing.ptr;
            const weight: [*]const T = switch (args.weight) {
                .dense => |w| w.ptr + tile.word * c,
                .frozen => |matrix| blk: {
                    const expanded = job.ex.workerScratch(worker, T, tile.words * c);
                    frozen.expand(T, matrix, tile.word, tile.words, 0, c, expanded);
                    break :blk expanded.ptr;
                },
            };
            job.ex.gemmPacked(T)(tile.words, m, c, weight, c, 1, @ptrCast(job.scratch.ptr + job.at.turned), c, 0, 0, logits.ptr, m, 0, packing);
            if (args.low) |low| job.ex.gemm(T)(tile.words, m, low.rank, low.weight.ptr + tile.word * low.rank, low.rank, 1, job.low_inp.ptr, 1, low.rank, logits.ptr, m, 1, packing);
            const plain = args.label_smoothing > 0 or args.row_mean_logit != null;
            kernels.table(T).column_logits(tile.words, m, m, logits.ptr, job.perTile(job.at.max, index), @ptrCast(job.perTile(job.at.best, index)), job.perTile(job.at.exps, index), if (plain) job.perTile(job.at.plain, index) else null);
        }

        /// Joins what the tiles know of row r, in their order.
        fn joinRow(job: Self, r: usize, _: usize) void {
            const args = job.args;
            const m = job.rows.len;
            const from = job.origin[r];
            const target: usize = @intCast(args.targets[from]);
            std.debug.assert(target < args.vocab_size);
            var max = job.perTile(job.at.max, 0)[r];
            var best_tile: usize = 0;
            for (1..job.tiles) |t| if (job.perTile(job.at.max, t)[r] > max) {
                max = job.perTile(job.at.max, t)[r];
                best_tile = t;
            };
            const best_in_tile: [*]const u32 = @ptrCast(job.perTile(job.at.best, best_tile));
            const best = best_tile * job.tile_words + best_in_tile[r];
            const plain = args.label_smoothing > 0 or args.row_mean_logit != null;
            var exp_sum: f64 = 0;
            var plain_sum: f64 = 0;
            for (0..job.tiles) |t| {
                const below: f64 = @as(f64, job.perTile(job.at.max, t)[r]) - max;
                exp_sum += @exp(below) * job.perTile(job.at.exps, t)[r];
                if (plain) plain_sum += job.perTile(job.at.plain, t)[r];
            }
            const smoothing: f64 = args.label_smoothing;
            const vocabulary: f64 = @floatFromInt(args.vocab_size);
            // Distances from the maximum are exact or nearly so; the maximum itself may be large.
            const lse = @log(exp_sum);
            const nll = lse - (@as(f64, job.scratch[job.at.logits + target * m + r]) - max);
            const mean = lse - (plain_sum / vocabulary - max);
            job.scratch[job.at.row_max + r] = max;
            job.scratch[job.at.inverse + r] = @floatCast(1 / exp_sum);
            job.scratch[job.at.offset + r] = @floatCast(smoothing / vocabulary);
            job.scratch[job.at.factor + r] = job.scaleOf(r);
            job.rows[r] = .{
                .loss = if (smoothing > 0) (1 - smoothing) * nll + smoothing * mean else nll,
                .nll = nll,
                .mean_logit = plain_sum / vocabulary,
                .correct = best == target,
            };
        }

        fn scaleOf(job: Self, r: usize) T {
            return if (job.args.row_scale) |list| job.args.scale * list[job.origin[r]] else job.args.scale;
        }

        /// The tile's logits become their gradient; its share of the weights' gradients.
        fn tileGradient(job: Self, index: usize, worker: usize) void {
            const args = job.args;
            const c = args.columns();
            const m = job.rows.len;
            const tile = job.tileAt(index);
            const logits = job.logitsOf(tile);
            const s = job.scratch.ptr;
            kernels.table(T).column_logits_gradient(tile.words, m, m, logits.ptr, s + job.at.row_max, s + job.at.inverse, s + job.at.offset, s + job.at.factor);
            for (job.origin, 0..) |from, r| {
                const target: usize = @intCast(args.targets[from]);
                if (target < tile.word or target >= tile.word + tile.words) continue;
                logits[(target - tile.word) * m + r] -= (1 - args.label_smoothing) * job.scaleOf(r);
            }
            const packing = job.ex.workers[worker].packing.ptr;
            if (args.dweight) |dw| job.ex.gemmPacked(T)(tile.words, c, m, logits.ptr, m, 1, @ptrCast(s + job.at.straight), m, 0, 0, dw.ptr + tile.word * c, c, 1, packing);
            if (args.low) |low| if (low.dweight) |dw| job.ex.gemm(T)(tile.words, low.rank, m, logits.ptr, m, 1, job.low_inp.ptr, low.rank, 1, dw.ptr + tile.word * low.rank, low.rank, 1, packing);
        }
    };
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

    const shapes = [_][3]usize{ .{ 1, 1, 1 }, .{ 2, 2, 3 }, .{ 7, 33, 5 }, .{ 40, 170, 9 }, .{ 1100, 21, 3 } };
    inline for (.{ f32, f64 }) |T| for (shapes) |shape| for ([_]T{ 0, 0.1 }) |smoothing| {
        const n, const v, const c = shape;
        const tolerance = if (T == f32) 3e-6 else 1e-12;
        var bag: check.Bag = .{};
        defer bag.deinit();

        try rig.ex.reserve(T, .{ .vocab_size = v, .loss_rows = n, .loss_columns = c });
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
        // Without gradients the sums are the same.
        args.dhidden = null;
        args.dweight = null;
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
    try rig.ex.reserve(f64, .{ .vocab_size = v, .loss_rows = n, .loss_columns = c });
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
    try rig.ex.reserve(f32, .{ .vocab_size = v, .loss_rows = n, .loss_columns = c, .frozen_columns = c });
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
    try rig.ex.reserve(f64, .{ .vocab_size = v, .loss_rows = n, .loss_columns = c });
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

    try rig.ex.reserve(f32, .{ .vocab_size = 3, .loss_rows = 1, .loss_columns = 1 });
    const big = run(f32, &rig.ex, .{ .hidden = &.{1e4}, .weight = .{ .dense = &.{ 1, -1, 0.5 } }, .targets = &.{1}, .vocab_size = 3, .scale = 1 });
    try std.testing.expectApproxEqAbs(2e4, big.nll_sum, 1e-6);
    try std.testing.expectEqual(0, big.correct);
    const nan = run(f32, &rig.ex, .{ .hidden = &.{std.math.nan(f32)}, .weight = .{ .dense = &.{ 1, -1, 0.5 } }, .targets = &.{1}, .vocab_size = 3, .scale = 1 });
    try std.testing.expect(std.math.isNan(nan.loss_sum));
}

test "the first of equal largest logits is the answer" {
    var rig = try check.Rig.init(1);
    defer rig.deinit();

    try rig.ex.reserve(f32, .{ .vocab_size = 20, .loss_rows = 2, .loss_columns = 1 });
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

        try rig.ex.reserve(f32, .{ .vocab_size = v, .loss_rows = n, .loss_columns = c });
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
