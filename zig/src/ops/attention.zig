//! Causal grouped-query attention, forward and backward, without a time × time matrix.
//!
//! q, out, dq, dout [B, T, H, D]; k, v, dk, dv [B, T, KH, D]; lse [B, H, T] is the log-sum-exp of each row of scaled
//! scores, kept so that backward can make the probabilities again. Scale is 1/√D. Token t of row b sees the positions
//! first[b·T + t] … t; first = null means 0. That one number holds sliding windows and packed documents.
//! Needs `Exec.reserve(.{ .attention_time = T })`. Does not know: RoPE, projections, caches.

const std = @import("std");
const kernels = @import("kernels");
const Exec = @import("exec.zig").Exec;
const ceilDiv = @import("exec.zig").ceilDiv;

pub const Dims = struct {
    batch: usize,
    time: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
};

/// Numbers of scratch a worker needs for rows of `time` tokens.
pub fn scratchCount(time: usize) usize {
    return 2 * block_rows * panelWidth(time);
}

/// Rows of queries whose scores are made together: a panel of block_rows × (keys they see). A multiple of the product's
/// tile of 14 rows.
const block_rows = 112;

/// Rows of a panel begin at multiples of 64 bytes.
fn panelWidth(keys: usize) usize {
    return std.mem.alignForward(usize, keys, 16);
}

pub fn forward(comptime T: type, ex: *Exec, out: []T, lse: []T, q: []const T, k: []const T, v: []const T, dims: Dims, first: ?[]const u32) void {
    checkShapes(T, dims, q, k, v, first);
    std.debug.assert(out.len >= q.len);
    std.debug.assert(lse.len >= dims.batch * dims.heads * dims.time);
    const job: Job(T) = .{ .ex = ex, .dims = dims, .first = first, .q = q, .k = k, .v = v, .out = out, .lse = lse };
    ex.pool.parallelFor(job, dims.batch * dims.heads * ceilDiv(dims.time, block_rows), struct {
        fn f(j: Job(T), index: usize, worker: usize) void {
            const blocks = ceilDiv(j.dims.time, block_rows);
            const head = index / blocks;
            forwardBlock(T, j, head / j.dims.heads, head % j.dims.heads, index % blocks, worker);
        }
    }.f);
}

/// dq, dk and dv are stored. They must not alias the inputs.
pub fn backward(comptime T: type, ex: *Exec, dq: []T, dk: []T, dv: []T, dout: []const T, out: []const T, lse: []const T, q: []const T, k: []const T, v: []const T, dims: Dims, first: ?[]const u32) void {
    checkShapes(T, dims, q, k, v, first);
    std.debug.assert(dq.len >= dims.batch * dims.time * dims.heads * dims.head_dim);
    std.debug.assert(dk.len >= dims.batch * dims.time * dims.kv_heads * dims.head_dim);
    std.debug.assert(dv.len >= dims.batch * dims.time * dims.kv_heads * dims.head_dim);
    const job: Job(T) = .{ .ex = ex, .dims = dims, .first = first, .q = q, .k = k, .v = v, .out = &.{}, .lse = &.{} };
    const task: Backward(T) = .{ .job = job, .lse = lse, .out = out, .dq = dq, .dk = dk, .dv = dv, .dout = dout };
    // Whole key/value heads where they share out evenly. Else queries and keys in two passes that cut heads into parts:
    // seven products for five, and no idle workers. Each number is summed in the same order either way.
    const heads = dims.batch * dims.kv_heads;
    if (ceilDiv(heads, ex.pool.n) * ex.pool.n * 5 <= heads * 7) {
        ex.pool.parallelFor(task, heads, struct {
            fn f(t: Backward(T), index: usize, worker: usize) void {
                const d = t.job.dims;
                backwardKeys(T, t, index / d.kv_heads, index % d.kv_heads, 0, d.time, .both, worker);
            }
        }.f);
        return;
    }
    ex.pool.parallelFor(task, dims.batch * dims.heads * ceilDiv(dims.time, block_rows), struct {
        fn f(t: Backward(T), index: usize, worker: usize) void {
            const blocks = ceilDiv(t.job.dims.time, block_rows);
            const head = index / blocks;
            const at = Block.of(T, t.job, head / t.job.dims.heads, head % t.job.dims.heads, index % blocks);
            backwardBlock(T, t, at, .queries, worker);
        }
    }.f);
    ex.pool.parallelFor(task, heads * ceilDiv(dims.time, block_rows), struct {
        fn f(t: Backward(T), index: usize, worker: usize) void {
            const d = t.job.dims;
            const parts = ceilDiv(d.time, block_rows);
            const from = index % parts * block_rows;
            const head = index / parts;
            backwardKeys(T, t, head / d.kv_heads, head % d.kv_heads, from, @min(from + block_rows, d.time), .keys, worker);
        }
    }.f);
}

fn checkShapes(comptime T: type, dims: Dims, q: []const T, k: []const T, v: []const T, first: ?[]const u32) void {
    std.debug.assert(dims.heads % dims.kv_heads == 0);
    std.debug.assert(q.len >= dims.batch * dims.time * dims.heads * dims.head_dim);
    std.debug.assert(k.len >= dims.batch * dims.time * dims.kv_heads * dims.head_dim);
    std.debug.assert(v.len >= dims.batch * dims.time * dims.kv_heads * dims.head_dim);
    if (first) |f| {
        std.debug.assert(f.len >= dims.batch * dims.time);
        for (f[0 .. dims.batch * dims.time], 0..) |from, i| std.debug.assert(from <= i % dims.time);
    }
}

fn Job(comptime T: type) type {
    return struct {
        ex: *Exec,
        dims: Dims,
        first: ?[]const u32,
        q: []const T,
        k: []const T,
        v: []const T,
        out: []T,
        lse: []T,

        fn firstOf(self: @This(), b: usize, t: usize) usize {
            return if (self.first) |f| f[b * self.dims.time + t] else 0;
        }
    };
}

fn Backward(comptime T: type) type {
    return struct { job: Job(T), lse: []const T, out: []const T, dq: []T, dk: []T, dv: []T, dout: []const T };
}

/// One block of query rows of one head: which rows, which keys they see together, where things stand.
const Block = struct {
    batch: usize,
    head: usize,
    row: usize,
    rows: usize,
    key: usize,
    keys: usize,
    width: usize,
    /// Distance of two tokens in q and in k.
    q_step: usize,
    k_step: usize,
    q_at: usize,
    k_at: usize,

    fn of(comptime T: type, job: Job(T), b: usize, h: usize, index: usize) Block {
        const d = job.dims;
        const row = index * block_rows;
        const rows = @min(block_rows, d.time - row);
        var key = job.firstOf(b, row);
        for (row..row + rows) |t| key = @min(key, job.firstOf(b, t));
        const keys = row + rows - key;
        const kh = h / (d.heads / d.kv_heads);
        return .{
            .batch = b,
            .head = h,
            .row = row,
            .rows = rows,
            .key = key,
            .keys = keys,
            .width = panelWidth(keys),
            .q_step = d.heads * d.head_dim,
            .k_step = d.kv_heads * d.head_dim,
            .q_at = ((b * d.time + row) * d.heads + h) * d.head_dim,
            .k_at = ((b * d.time + key) * d.kv_heads + kh) * d.head_dim,
        };
    }

    /// The same rows with the keys from..to only; null when they see none of them.
    fn limited(self: Block, from: usize, to: usize) ?Block {
        const key = @max(self.key, from);
        const end = @min(self.key + self.keys, to);
        if (end <= key) return null;
        var part = self;
        part.key = key;
        part.keys = end - key;
        part.width = panelWidth(part.keys);
        part.k_at += (key - self.key) * self.k_step;
        return part;
    }

    /// Where in a row of the panel the keys stand that row r sees.
    fn seen(self: Block, comptime T: type, job: Job(T), r: usize) struct { usize, usize } {
        const t = self.row + r;
        const end = self.key + self.keys;
        return .{
            std.math.clamp(job.firstOf(self.batch, t), self.key, end) - self.key,
            std.math.clamp(t + 1, self.key, end) - self.key,
        };
    }
};

fn forwardBlock(comptime T: type, job: Job(T), b: usize, h: usize, index: usize, worker: usize) void {
    const d = job.dims;
    const table = kernels.table(T);
    const gemm = job.ex.gemm(T);
    const packing = job.ex.workers[worker].packing.ptr;
    const at = Block.of(T, job, b, h, index);
    const scale = 1 / @sqrt(@as(T, @floatFromInt(d.head_dim)));
    const scores = job.ex.workerScratch(worker, T, at.rows * at.width);
    gemm(at.rows, at.keys, d.head_dim, job.q.ptr + at.q_at, at.q_step, 1, job.k.ptr + at.k_at, 1, at.k_step, scores.ptr, at.width, 0, packing);
    var sums: [block_rows]T = undefined;
    for (0..at.rows) |r| {
        const row = scores[r * at.width ..][0..at.keys];
        const begin, const end = at.seen(T, job, r);
        var max: T = undefined;
        table.softmax_exp(end - begin, row.ptr + begin, scale, &max, &sums[r]);
        @memset(row[0..begin], 0);
        @memset(row[end..], 0);
        job.lse[(b * d.heads + h) * d.time + at.row + r] = max + @log(sums[r]);
    }
    gemm(at.rows, d.head_dim, at.keys, scores.ptr, at.width, 1, job.v.ptr + at.k_at, at.k_step, 1, job.out.ptr + at.q_at, at.q_step, 0, packing);
    for (0..at.rows) |r| table.scale(d.head_dim, job.out.ptr + at.q_at + r * at.q_step, 1 / sums[r]);
}

/// dk and dv of the keys from..to of one key/value head, summed over its query heads and their blocks in order.
fn backwardKeys(comptime T: type, task: Backward(T), b: usize, kh: usize, from: usize, to: usize, want: Want, worker: usize) void {
    const d = task.job.dims;
    for (from..to) |s| {
        const at = ((b * d.time + s) * d.kv_heads + kh) * d.head_dim;
        @memset(task.dk[at..][0..d.head_dim], 0);
        @memset(task.dv[at..][0..d.head_dim], 0);
    }
    const group = d.heads / d.kv_heads;
    for (kh * group..(kh + 1) * group) |h| for (from / block_rows..ceilDiv(d.time, block_rows)) |index| {
        const at = Block.of(T, task.job, b, h, index).limited(from, to) orelse continue;
        backwardBlock(T, task, at, want, worker);
    };
}

const Want = enum { queries, keys, both };

/// dq of the block; what the block adds to dk and dv. P and dP live in two panels.
fn backwardBlock(comptime T: type, task: Backward(T), at: Block, want: Want, worker: usize) void {
    const job: Job(T) = task.job;
    const d = job.dims;
    const table = kernels.table(T);
    const gemm = job.ex.gemm(T);
    const packing = job.ex.workers[worker].packing.ptr;
    const scale = 1 / @sqrt(@as(T, @floatFromInt(d.head_dim)));
    const panel = at.rows * at.width;
    const scratch = job.ex.workerScratch(worker, T, 2 * panel);
    const p = scratch[0..panel];
    const dp = scratch[panel..];
    const q = job.q.ptr + at.q_at;
    const k = job.k.ptr + at.k_at;
    const dout = task.dout.ptr + at.q_at;
    gemm(at.rows, at.keys, d.head_dim, q, at.q_step, 1, k, 1, at.k_step, p.ptr, at.width, 0, packing);
    gemm(at.rows, at.keys, d.head_dim, dout, at.q_step, 1, job.v.ptr + at.k_at, 1, at.k_step, dp.ptr, at.width, 0, packing);
    for (0..at.rows) |r| {
        const p_row = p[r * at.width ..][0..at.keys];
        const dp_row = dp[r * at.width ..][0..at.keys];
        const begin, const end = at.seen(T, job, r);
        const delta = table.inner(d.head_dim, dout + r * at.q_step, task.out.ptr + at.q_at + r * at.q_step);
        table.probabilities(end - begin, p_row.ptr + begin, scale, task.lse[(at.batch * d.heads + at.head) * d.time + at.row + r]);
        table.score_gradient(end - begin, p_row.ptr + begin, dp_row.ptr + begin, delta, scale);
        inline for (.{ p_row, dp_row }) |row| {
            @memset(row[0..begin], 0);
            @memset(row[end..], 0);
        }
    }
    if (want != .queries) {
        gemm(at.keys, d.head_dim, at.rows, p.ptr, 1, at.width, dout, at.q_step, 1, task.dv.ptr + at.k_at, at.k_step, 1, packing);
        gemm(at.keys, d.head_dim, at.rows, dp.ptr, 1, at.width, q, at.q_step, 1, task.dk.ptr + at.k_at, at.k_step, 1, packing);
    }
    if (want != .keys) {
        gemm(at.rows, d.head_dim, at.keys, dp.ptr, at.width, 1, k, at.k_step, 1, task.dq.ptr + at.q_at, at.q_step, 0, packing);
    }
}

fn score(comptime T: type, a: []const T, b: []const T) T {
    var sum: T = 0;
    for (a, b) |x, y| sum += x * y;
    return sum / @sqrt(@as(T, @floatFromInt(a.len)));
}

pub fn forwardNaive(comptime T: type, out: []T, lse: []T, q: []const T, k: []const T, v: []const T, dims: Dims, first: ?[]const u32) void {
    const d = dims.head_dim;
    const group = dims.heads / dims.kv_heads;
    for (0..dims.batch) |b| for (0..dims.heads) |h| for (0..dims.time) |t| {
        const qr = q[((b * dims.time + t) * dims.heads + h) * d ..][0..d];
        const o = out[((b * dims.time + t) * dims.heads + h) * d ..][0..d];
        const from: usize = if (first) |f| f[b * dims.time + t] else 0;
        var max: T = -std.math.inf(T);
        for (from..t + 1) |s| max = @max(max, score(T, qr, rowOf(T, k, dims, b, s, h / group)));
        var sum: T = 0;
        @memset(o, 0);
        for (from..t + 1) |s| {
            const p = @exp(score(T, qr, rowOf(T, k, dims, b, s, h / group)) - max);
            sum += p;
            for (o, rowOf(T, v, dims, b, s, h / group)) |*x, y| x.* += p * y;
        }
        for (o) |*x| x.* /= sum;
        lse[(b * dims.heads + h) * dims.time + t] = max + @log(sum);
    };
}

fn rowOf(comptime T: type, x: []const T, dims: Dims, b: usize, t: usize, kh: usize) []const T {
    return x[((b * dims.time + t) * dims.kv_heads + kh) * dims.head_dim ..][0..dims.head_dim];
}

pub fn backwardNaive(comptime T: type, dq: []T, dk: []T, dv: []T, dout: []const T, out: []const T, lse: []const T, q: []const T, k: []const T, v: []const T, dims: Dims, first: ?[]const u32) void {
    const d = dims.head_dim;
    const group = dims.heads / dims.kv_heads;
    const scale = 1 / @sqrt(@as(T, @floatFromInt(d)));
    @memset(dq, 0);
    @memset(dk, 0);
    @memset(dv, 0);
    for (0..dims.batch) |b| for (0..dims.heads) |h| for (0..dims.time) |t| {
        const at = ((b * dims.time + t) * dims.heads + h) * d;
        const qr = q[at..][0..d];
        const g = dout[at..][0..d];
        var delta: T = 0;
        for (g, out[at..][0..d]) |x, y| delta += x * y;
        const from: usize = if (first) |f| f[b * dims.time + t] else 0;
        for (from..t + 1) |s| {
            const kr = rowOf(T, k, dims, b, s, h / group);
            const vr = rowOf(T, v, dims, b, s, h / group);
            const p = @exp(score(T, qr, kr) - lse[(b * dims.heads + h) * dims.time + t]);
            var dp: T = 0;
            for (g, vr) |x, y| dp += x * y;
            const ds = p * (dp - delta) * scale;
            const kv = ((b * dims.time + s) * dims.kv_heads + h / group) * d;
            for (0..d) |i| {
                dq[at + i] += ds * kr[i];
                dk[kv + i] += ds * qr[i];
                dv[kv + i] += p * g[i];
            }
        }
    };
}

const check = @import("check.zig");

/// Rows of `first` that hold two documents and a sliding window.
fn windows(bag: *check.Bag, dims: Dims, window: usize, document: usize) []u32 {
    const first = bag.zeros(u32, dims.batch * dims.time);
    for (first, 0..) |*f, i| {
        const t = i % dims.time;
        const start = if (i < dims.time and t >= document) document else 0; // the second row is one document
        f.* = @intCast(@max(start, (t + 1) -| window));
    }
    return first;
}

test "fast equals plain: lengths around the block, groups of heads, windows and documents" {
    var rig = try check.Rig.init(2);
    defer rig.deinit();

    const cases = [_]Dims{
        .{ .batch = 2, .time = 1, .heads = 1, .kv_heads = 1, .head_dim = 2 },
        .{ .batch = 2, .time = 9, .heads = 4, .kv_heads = 2, .head_dim = 6 },
        .{ .batch = 1, .time = 33, .heads = 3, .kv_heads = 1, .head_dim = 10 },
        .{ .batch = 2, .time = 131, .heads = 2, .kv_heads = 1, .head_dim = 4 },
        .{ .batch = 1, .time = 259, .heads = 2, .kv_heads = 2, .head_dim = 16 },
    };
    inline for (.{ f32, f64 }) |T| for (cases) |dims| {
        try rig.ex.reserve(T, .{ .attention_time = dims.time });
        const tolerance = if (T == f32) 3e-6 else 1e-12;
        var bag: check.Bag = .{};
        defer bag.deinit();

        const q_len = dims.batch * dims.time * dims.heads * dims.head_dim;
        const k_len = dims.batch * dims.time * dims.kv_heads * dims.head_dim;
        const lse_len = dims.batch * dims.heads * dims.time;
        const q = bag.normal(T, q_len);
        const k = bag.normal(T, k_len);
        const v = bag.normal(T, k_len);
        const dout = bag.normal(T, q_len);
        for ([_]?[]const u32{ null, windows(&bag, dims, 5, 4), windows(&bag, dims, 1000, 140) }) |first| {
            const got = [_][]T{ bag.normal(T, q_len), bag.normal(T, lse_len), bag.normal(T, q_len), bag.normal(T, k_len), bag.normal(T, k_len) };
            const want = [_][]T{ bag.zeros(T, q_len), bag.zeros(T, lse_len), bag.zeros(T, q_len), bag.zeros(T, k_len), bag.zeros(T, k_len) };
            forward(T, &rig.ex, got[0], got[1], q, k, v, dims, first);
            forwardNaive(T, want[0], want[1], q, k, v, dims, first);
            backward(T, &rig.ex, got[2], got[3], got[4], dout, got[0], got[1], q, k, v, dims, first);
            backwardNaive(T, want[2], want[3], want[4], dout, want[0], want[1], q, k, v, dims, first);
            for (want, got) |w, g| try check.expectClose(T, w, g, tolerance);
        }
    };
}

test "backward is the derivative of forward" {
    var rig = try check.Rig.init(1);
    defer rig.deinit();

    const dims: Dims = .{ .batch = 2, .time = 5, .heads = 4, .kv_heads = 2, .head_dim = 4 };
    try rig.ex.reserve(f64, .{ .attention_time = dims.time });
    var bag: check.Bag = .{};
    defer bag.deinit();

    const q_len = dims.batch * dims.time * dims.heads * dims.head_dim;
    const k_len = q_len / 2;
    const Problem = struct { ex: *Exec, q: []f64, k: []f64, v: []f64, out: []f64, lse: []f64, dout: []f64, first: []const u32 };
    const p: Problem = .{ .ex = &rig.ex, .q = bag.normal(f64, q_len), .k = bag.normal(f64, k_len), .v = bag.normal(f64, k_len), .out = bag.zeros(f64, q_len), .lse = bag.zeros(f64, 40), .dout = bag.normal(f64, q_len), .first = windows(&bag, dims, 3, 2) };
    const loss = struct {
        fn f(x: Problem) f64 {
            forward(f64, x.ex, x.out, x.lse, x.q, x.k, x.v, dims, x.first);
            return check.weigh(x.out, x.dout);
        }
    }.f;
    _ = loss(p);
    const dq = bag.zeros(f64, q_len);
    const dk = bag.zeros(f64, k_len);
    const dv = bag.zeros(f64, k_len);
    backward(f64, p.ex, dq, dk, dv, p.dout, p.out, p.lse, p.q, p.k, p.v, dims, p.first);
    try check.expectGradient(p.q, dq, p, loss);
    try check.expectGradient(p.k, dk, p, loss);
    try check.expectGradient(p.v, dv, p, loss);
}

test "bf16 products stay within the rounding of their operands" {
    var rig = try check.Rig.init(2);
    defer rig.deinit();

    const dims: Dims = .{ .batch = 1, .time = 150, .heads = 2, .kv_heads = 1, .head_dim = 32 };
    try rig.ex.reserve(f32, .{ .attention_time = dims.time });
    var bag: check.Bag = .{};
    defer bag.deinit();

    const q_len = dims.time * 64;
    const q = bag.normal(f32, q_len);
    const k = bag.normal(f32, q_len / 2);
    const v = bag.normal(f32, q_len / 2);
    const dout = bag.normal(f32, q_len);
    var results: [2][5][]f32 = undefined;
    for (&results, [_]@TypeOf(rig.ex.compute){ .full, .bf16 }) |*r, compute| {
        rig.ex.compute = compute;
        r.* = .{ bag.zeros(f32, q_len), bag.zeros(f32, 2 * dims.time), bag.zeros(f32, q_len), bag.zeros(f32, q_len / 2), bag.zeros(f32, q_len / 2) };
        forward(f32, &rig.ex, r[0], r[1], q, k, v, dims, null);
        backward(f32, &rig.ex, r[2], r[3], r[4], dout, r[0], r[1], q, k, v, dims, null);
    }
    for (results[0], results[1]) |full, low| {
        try check.expectClose(f32, full, low, 2e-2);
        try std.testing.expect(!std.mem.eql(f32, full, low)); // The mode has an effect.
    }
}

test "the same bits for any number of threads" {
    var bag: check.Bag = .{};
    defer bag.deinit();

    const dims: Dims = .{ .batch = 3, .time = 250, .heads = 6, .kv_heads = 3, .head_dim = 8 };
    try sameBits(&bag, dims, null);
    try sameBits(&bag, dims, windows(&bag, dims, 130, 140));
    try sameBits(&bag, .{ .batch = 1, .time = 230, .heads = 2, .kv_heads = 1, .head_dim = 6 }, null);
}

fn sameBits(bag: *check.Bag, dims: Dims, limits: ?[]const u32) !void {
    const q_len = dims.batch * dims.time * dims.heads * dims.head_dim;
    const k_len = q_len / dims.heads * dims.kv_heads;
    const q = bag.normal(f32, q_len);
    const k = bag.normal(f32, k_len);
    const v = bag.normal(f32, k_len);
    const dout = bag.normal(f32, q_len);
    var first: ?[5][]f32 = null;
    for (check.thread_counts) |threads| {
        var rig = try check.Rig.init(threads);
        defer rig.deinit();

        try rig.ex.reserve(f32, .{ .attention_time = dims.time });
        const got = [5][]f32{ bag.zeros(f32, q_len), bag.zeros(f32, dims.batch * dims.heads * dims.time), bag.zeros(f32, q_len), bag.zeros(f32, k_len), bag.zeros(f32, k_len) };
        forward(f32, &rig.ex, got[0], got[1], q, k, v, dims, limits);
        backward(f32, &rig.ex, got[2], got[3], got[4], dout, got[0], got[1], q, k, v, dims, limits);
        if (first) |expected| {
            for (expected, got) |e, g| try check.expectSame(f32, e, g);
        } else first = got;
    }
}
