//! Causal grouped-query attention, forward and backward, without a time × time matrix.
//!
//! q, out, dq, dout [B, T, H, D]; k, v, dk, dv [B, T, KH, D]; lse [B, H, T] is the log-sum-exp of each row of scaled
//! scores, kept so that backward can make the probabilities again. Scale is 1/√D. Token t of row b sees the positions
//! first[b·T + t] … t; first = null means 0. That one number holds sliding windows and packed documents.
//! What happens inside a block of queries: kernels/attention.zig. This file divides the work: a worker packs keys and
//! values of a head when it comes to it and keeps them for the blocks that follow.
//! Needs `Exec.reserve(.{ .attention_time = T, .attention_head_dim = D })`. Does not know: RoPE, projections, caches.

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

/// Bytes of scratch a worker needs for rows of `time` tokens: one block's, and keys and values of one head.
pub fn scratchBytes(comptime T: type, time: usize, head_dim: usize) usize {
    if (time == 0) return 0;
    return kernels.table(T).attention_scratch(time, head_dim) + operands * packSize(T, time, head_dim);
}

/// Keys and values by rows, and one of the two by columns.
const operands = 3;

fn packSize(comptime T: type, time: usize, head_dim: usize) usize {
    return std.mem.alignForward(usize, kernels.table(T).attention_pack_size(time, head_dim), 64);
}

const block_rows = kernels.attention_args.block;

pub fn forward(comptime T: type, ex: *Exec, out: []T, lse: []T, q: []const T, k: []const T, v: []const T, dims: Dims, first: ?[]const u32) void {
    checkShapes(T, dims, q, k, v, first);
    std.debug.assert(out.len >= q.len);
    std.debug.assert(lse.len >= dims.batch * dims.heads * dims.time);
    const job: Job(T) = .{ .ex = ex, .dims = dims, .first = first, .q = q, .k = k, .v = v };
    const Task = struct { job: Job(T), out: []T, lse: []T };
    forgetPacked(ex);
    ex.pool.parallelFor(Task{ .job = job, .out = out, .lse = lse }, dims.batch * dims.heads * ceilDiv(dims.time, block_rows), struct {
        fn f(task: Task, index: usize, worker: usize) void {
            const j = task.job;
            const blocks = ceilDiv(j.dims.time, block_rows);
            const at: Place = .of(j.dims, index / blocks, index % blocks);
            var max: [block_rows]T = undefined;
            var sum: [block_rows]T = undefined;
            var sight: Sight = undefined;
            var args = j.arguments(at, worker, .forward, &sight);
            args.out = task.out.ptr + at.q(j.dims);
            args.max = &max;
            args.sum = &sum;
            j.kernelForward()(&args);
            const lse_at = (at.batch * j.dims.heads + at.head) * j.dims.time + at.token;
            for (task.lse[lse_at..][0..at.tokens], max[0..at.tokens], sum[0..at.tokens]) |*l, m, s| l.* = m + @log(s);
        }
    }.f);
}

/// dq, dk and dv are stored. They must not alias the inputs.
pub fn backward(comptime T: type, ex: *Exec, dq: []T, dk: []T, dv: []T, dout: []const T, out: []const T, lse: []const T, q: []const T, k: []const T, v: []const T, dims: Dims, first: ?[]const u32) void {
    checkShapes(T, dims, q, k, v, first);
    std.debug.assert(dq.len >= dims.batch * dims.time * dims.heads * dims.head_dim);
    std.debug.assert(dk.len >= dims.batch * dims.time * dims.kv_heads * dims.head_dim);
    std.debug.assert(dv.len >= dims.batch * dims.time * dims.kv_heads * dims.head_dim);
    const job: Job(T) = .{ .ex = ex, .dims = dims, .first = first, .q = q, .k = k, .v = v };
    const task: Backward(T) = .{ .job = job, .lse = lse, .out = out, .dq = dq, .dk = dk, .dv = dv, .dout = dout };
    forgetPacked(ex);
    // Whole key/value heads where they share out evenly. Else queries and keys in two passes that cut heads into parts:
    // seven products for five, and no idle workers. Each number is summed in the same order either way.
    const heads = dims.batch * dims.kv_heads;
    if (ceilDiv(heads, ex.pool.n) * ex.pool.n * 5 <= heads * 7) {
        ex.pool.parallelFor(task, heads, struct {
            fn f(t: Backward(T), index: usize, worker: usize) void {
                t.keys(index / t.job.dims.kv_heads, index % t.job.dims.kv_heads, 0, t.job.dims.time, .both, worker);
            }
        }.f);
        return;
    }
    ex.pool.parallelFor(task, dims.batch * dims.heads * ceilDiv(dims.time, block_rows), struct {
        fn f(t: Backward(T), index: usize, worker: usize) void {
            const blocks = ceilDiv(t.job.dims.time, block_rows);
            t.block(.of(t.job.dims, index / blocks, index % blocks), 0, t.job.dims.time, .queries, worker);
        }
    }.f);
    ex.pool.parallelFor(task, heads * ceilDiv(dims.time, key_rows), struct {
        fn f(t: Backward(T), index: usize, worker: usize) void {
            const d = t.job.dims;
            const parts = ceilDiv(d.time, key_rows);
            const from = index % parts * key_rows;
            const head = index / parts;
            t.keys(head / d.kv_heads, head % d.kv_heads, from, @min(from + key_rows, d.time), .keys, worker);
        }
    }.f);
}

/// Keys of one task when heads are cut into parts.
const key_rows = kernels.attention_args.key_unit;

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

/// The operands in the workers' scratch are those of an earlier call.
fn forgetPacked(ex: *Exec) void {
    for (ex.workers) |*w| w.packed_head = null;
}

/// One block of queries of one head.
const Place = struct {
    batch: usize,
    head: usize,
    kv_head: usize,
    token: usize,
    tokens: usize,

    fn of(d: Dims, head: usize, index: usize) Place {
        const token = index * block_rows;
        return .{
            .batch = head / d.heads,
            .head = head % d.heads,
            .kv_head = head % d.heads / (d.heads / d.kv_heads),
            .token = token,
            .tokens = @min(block_rows, d.time - token),
        };
    }

    /// Where the block begins in q.
    fn q(self: Place, d: Dims) usize {
        return ((self.batch * d.time + self.token) * d.heads + self.head) * d.head_dim;
    }

    /// Where the row of tokens begins in k.
    fn k(self: Place, d: Dims) usize {
        return (self.batch * d.time * d.kv_heads + self.kv_head) * d.head_dim;
    }
};

/// The keys that each query of a block sees.
const Sight = struct {
    from: [block_rows]u32,
    to: [block_rows]u32,

    fn limit(self: *Sight, tokens: usize, from: usize, to: usize) void {
        for (self.from[0..tokens], self.to[0..tokens]) |*f, *t| {
            f.* = @intCast(std.math.clamp(f.*, from, to));
            t.* = @intCast(std.math.clamp(t.*, from, to));
        }
    }
};

const Pass = enum { forward, backward };

fn Job(comptime T: type) type {
    return struct {
        ex: *Exec,
        dims: Dims,
        first: ?[]const u32,
        q: []const T,
        k: []const T,
        v: []const T,

        const Self = @This();
        const Args = kernels.attention_args.Args(T);

        fn low(self: Self) bool {
            return T == f32 and self.ex.compute == .bf16;
        }

        fn kernelForward(self: Self) *const fn (*const Args) callconv(.c) void {
            if (T == f32) if (self.low()) return kernels.lowTable().attention_forward_bf16;
            return kernels.table(T).attention_forward;
        }

        fn kernelBackward(self: Self) *const fn (*const Args) callconv(.c) void {
            if (T == f32) if (self.low()) return kernels.lowTable().attention_backward_bf16;
            return kernels.table(T).attention_backward;
        }

        /// What both passes need; the head's keys and values are packed unless the worker did that before.
        fn arguments(self: Self, at: Place, worker: usize, pass: Pass, sight: *Sight) Args {
            const d = self.dims;
            for (sight.from[0..at.tokens], sight.to[0..at.tokens], at.token..) |*from, *to, t| {
                from.* = if (self.first) |f| f[at.batch * d.time + t] else 0;
                to.* = @intCast(t + 1);
            }
            const scratch_size = kernels.table(T).attention_scratch(d.time, d.head_dim);
            const size = packSize(T, d.time, d.head_dim);
            const bytes = self.ex.workerBytes(worker, scratch_size + operands * size);
            const keys = bytes[scratch_size..][0..size];
            const values = bytes[scratch_size + size ..][0..size];
            const key_columns = bytes[scratch_size + 2 * size ..][0..size];
            const head = at.batch * d.kv_heads + at.kv_head;
            if (self.ex.workers[worker].packed_head != head) {
                self.ex.workers[worker].packed_head = head;
                const k = self.k.ptr + at.k(d);
                const v = self.v.ptr + at.k(d);
                self.pack(.rows, k, keys);
                switch (pass) {
                    .forward => self.pack(.columns, v, values),
                    .backward => {
                        self.pack(.rows, v, values);
                        self.pack(.columns, k, key_columns);
                    },
                }
            }
            return .{
                .queries = at.tokens,
                .head_dim = d.head_dim,
                .time = d.time,
                .q_step = d.heads * d.head_dim,
                .kv_step = d.kv_heads * d.head_dim,
                .scale = 1 / @sqrt(@as(T, @floatFromInt(d.head_dim))),
                .from = &sight.from,
                .to = &sight.to,
                .q = self.q.ptr + at.q(d),
                .keys = keys.ptr,
                .values = values.ptr,
                .scratch = bytes.ptr,
                .out = undefined,
                .max = undefined,
                .sum = undefined,
                .lse = undefined,
                .dout = undefined,
                .key_columns = key_columns.ptr,
                .dq = null,
                .dk = null,
                .dv = null,
            };
        }

        fn pack(self: Self, form: enum(c_int) { rows = 0, columns = 1 }, x: [*]const T, out: []u8) void {
            const step = self.dims.kv_heads * self.dims.head_dim;
            if (T == f32) if (self.low()) return kernels.lowTable().attention_pack_bf16(@backingInt(form), self.dims.time, self.dims.head_dim, x, step, out.ptr);
            kernels.table(T).attention_pack(@backingInt(form), self.dims.time, self.dims.head_dim, x, step, out.ptr);
        }
    };
}

const Want = enum { queries, keys, both };

fn Backward(comptime T: type) type {
    return struct {
        job: Job(T),
        lse: []const T,
        out: []const T,
        dq: []T,
        dk: []T,
        dv: []T,
        dout: []const T,

        const Self = @This();

        /// dk and dv of the keys from..to of one key/value head, summed over its query heads and their blocks in order.
        fn keys(self: Self, b: usize, kv_head: usize, from: usize, to: usize, want: Want, worker: usize) void {
            const d = self.job.dims;
            for (from..to) |s| {
                const at = ((b * d.time + s) * d.kv_heads + kv_head) * d.head_dim;
                @memset(self.dk[at..][0..d.head_dim], 0);
                @memset(self.dv[at..][0..d.head_dim], 0);
            }
            const heads = d.heads / d.kv_heads;
            for (kv_head * heads..(kv_head + 1) * heads) |h| for (from / block_rows..ceilDiv(d.time, block_rows)) |index| {
                self.block(.of(d, b * d.heads + h, index), from, to, want, worker);
            };
        }

        /// dq of the block; what the block adds to dk and dv of the keys from..to.
        fn block(self: Self, at: Place, from: usize, to: usize, want: Want, worker: usize) void {
            const d = self.job.dims;
            var sight: Sight = undefined;
            var args = self.job.arguments(at, worker, .backward, &sight);
            sight.limit(at.tokens, from, to);
            const q_at = at.q(d);
            args.out = @constCast(self.out.ptr + q_at);
            args.lse = self.lse.ptr + (at.batch * d.heads + at.head) * d.time + at.token;
            args.dout = self.dout.ptr + q_at;
            if (want != .keys) args.dq = self.dq.ptr + q_at;
            if (want != .queries) {
                args.dk = self.dk.ptr + at.k(d);
                args.dv = self.dv.ptr + at.k(d);
            }
            self.job.kernelBackward()(&args);
        }
    };
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
        try rig.ex.reserve(T, .{ .attention_time = dims.time, .attention_head_dim = dims.head_dim });
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
    try rig.ex.reserve(f64, .{ .attention_time = dims.time, .attention_head_dim = dims.head_dim });
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
    try rig.ex.reserve(f32, .{ .attention_time = dims.time, .attention_head_dim = dims.head_dim });
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

        try rig.ex.reserve(f32, .{ .attention_time = dims.time, .attention_head_dim = dims.head_dim });
        const got = [5][]f32{ bag.zeros(f32, q_len), bag.zeros(f32, dims.batch * dims.heads * dims.time), bag.zeros(f32, q_len), bag.zeros(f32, k_len), bag.zeros(f32, k_len) };
        forward(f32, &rig.ex, got[0], got[1], q, k, v, dims, limits);
        backward(f32, &rig.ex, got[2], got[3], got[4], dout, got[0], got[1], q, k, v, dims, limits);
        if (first) |expected| {
            for (expected, got) |e, g| try check.expectSame(f32, e, g);
        } else first = got;
    }
}
