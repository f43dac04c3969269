//! Attention sinks: one learned logit a head joins every softmax and takes its share of the weight to nowhere.
//!
//!     softmax over [scores, sink] without its last column = softmax(scores) · 1 / (1 + e^(sink − lse))
//!
//! So attention without sinks is computed as it is, and this pass takes the sink's share away: out shrinks, and lse gets the sink's
//! term. Attention's backward pass, which makes probabilities from lse and their weighted sum from out, is then right as it is.
//! out, dout [B, T, H, D]; lse [B, H, T]; sinks [H]. Does not know: windows, keys, values.

const std = @import("std");
const kernels = @import("kernels");
const Exec = @import("exec.zig").Exec;
const Dims = @import("attention.zig").Dims;

/// out and lse as attention left them → as they are with sinks, in place.
pub fn forward(comptime T: type, ex: *Exec, out: []T, lse: []T, sinks: []const T, dims: Dims) void {
    checkShapes(T, out, lse, sinks, dims);
    const Job = struct { out: []T, lse: []T, sinks: []const T, dims: Dims };
    ex.pool.parallelFor(Job{ .out = out, .lse = lse, .sinks = sinks, .dims = dims }, dims.batch * dims.time, struct {
        fn f(j: Job, token: usize, _: usize) void {
            const d = j.dims;
            for (j.sinks, 0..) |sink, head| {
                const at = lseAt(d, token, head);
                const excess = sink - j.lse[at];
                kernels.table(T).scale(d.head_dim, j.out.ptr + (token * d.heads + head) * d.head_dim, 1 / (1 + @exp(excess)));
                j.lse[at] += softplus(T, excess);
            }
        }
    }.f);
}

/// dsinks[h] −= Σ over tokens of e^(sink − lse) · (dout · out), with out and lse as `forward` left them.
pub fn backward(comptime T: type, ex: *Exec, dsinks: []T, dout: []const T, out: []const T, lse: []const T, sinks: []const T, dims: Dims) void {
    checkShapes(T, out, lse, sinks, dims);
    std.debug.assert(dout.len >= dims.batch * dims.time * dims.heads * dims.head_dim);
    const Job = struct { dsinks: []T, dout: []const T, out: []const T, lse: []const T, sinks: []const T, dims: Dims };
    const job: Job = .{ .dsinks = dsinks, .dout = dout, .out = out, .lse = lse, .sinks = sinks, .dims = dims };
    ex.pool.parallelFor(job, dims.heads, struct {
        fn f(j: Job, head: usize, _: usize) void {
            const d = j.dims;
            var sum: f64 = 0;
            for (0..d.batch * d.time) |token| {
                const at = (token * d.heads + head) * d.head_dim;
                const share = @exp(j.sinks[head] - j.lse[lseAt(d, token, head)]);
                sum += share * kernels.table(T).inner(d.head_dim, j.dout.ptr + at, j.out.ptr + at);
            }
            j.dsinks[head] -= @floatCast(sum);
        }
    }.f);
}

/// Where a token's head stands in lse; tokens are counted over all rows.
fn lseAt(d: Dims, token: usize, head: usize) usize {
    return (token / d.time * d.heads + head) * d.time + token % d.time;
}

/// ln(1 + e^x)
fn softplus(comptime T: type, x: T) T {
    return @max(x, 0) + std.math.log1p(@exp(-@abs(x)));
}

fn checkShapes(comptime T: type, out: []const T, lse: []const T, sinks: []const T, dims: Dims) void {
    std.debug.assert(out.len >= dims.batch * dims.time * dims.heads * dims.head_dim);
    std.debug.assert(lse.len >= dims.batch * dims.heads * dims.time);
    std.debug.assert(sinks.len == dims.heads);
}

/// Attention with sinks in one, as its definition has it.
pub fn attentionNaive(comptime T: type, out: []T, q: []const T, k: []const T, v: []const T, sinks: []const T, dims: Dims, first: ?[]const u32) void {
    const d = dims.head_dim;
    const scale = 1 / @sqrt(@as(T, @floatFromInt(d)));
    for (0..dims.batch) |b| for (0..dims.time) |t| for (0..dims.heads) |h| {
        const row = out[((b * dims.time + t) * dims.heads + h) * d ..][0..d];
        const query = q[((b * dims.time + t) * dims.heads + h) * d ..][0..d];
        const kv_head = h / (dims.heads / dims.kv_heads);
        const from: usize = if (first) |f| f[b * dims.time + t] else 0;
        @memset(row, 0);
        var sum = @exp(sinks[h]);
        for (from..t + 1) |s| {
            const at = ((b * dims.time + s) * dims.kv_heads + kv_head) * d;
            var score: T = 0;
            for (query, k[at..][0..d]) |x, y| score += x * y;
            const weight = @exp(score * scale);
            sum += weight;
            for (row, v[at..][0..d]) |*o, y| o.* += weight * y;
        }
        for (row) |*o| o.* /= sum;
    };
}

const attention = @import("attention.zig");
const check = @import("check.zig");

/// Every third token sees two tokens only.
fn windows(bag: *check.Bag, dims: Dims) []u32 {
    const first = bag.arena.allocator().alloc(u32, dims.batch * dims.time) catch @panic("out of memory in a test");
    for (first, 0..) |*f, i| {
        const t: u32 = @intCast(i % dims.time);
        f.* = if (i % 3 == 0) t -| 1 else 0;
    }
    return first;
}

test "attention with sinks equals its definition, with and without limits of sight" {
    var rig = try check.Rig.init(2);
    defer rig.deinit();

    inline for (.{ f32, f64 }) |T| {
        var bag: check.Bag = .{};
        defer bag.deinit();

        const dims: Dims = .{ .batch = 2, .time = 7, .heads = 4, .kv_heads = 2, .head_dim = 6 };
        try rig.ex.reserve(T, .{ .attention_time = dims.time, .attention_head_dim = dims.head_dim });
        const len = dims.batch * dims.time * dims.heads * dims.head_dim;
        const q = bag.normal(T, len);
        const k = bag.normal(T, len / 2);
        const v = bag.normal(T, len / 2);
        const sinks = bag.normal(T, dims.heads);
        sinks[1] = -80; // No share at all.
        sinks[2] = 60; // Nearly all of it.
        for ([_]?[]const u32{ null, windows(&bag, dims) }) |first| {
            const want = bag.zeros(T, len);
            attentionNaive(T, want, q, k, v, sinks, dims, first);
            const got = bag.zeros(T, len);
            const lse = bag.zeros(T, dims.batch * dims.heads * dims.time);
            attention.forward(T, &rig.ex, got, lse, q, k, v, dims, first);
            forward(T, &rig.ex, got, lse, sinks, dims);
            try check.expectClose(T, want, got, if (T == f32) 1e-6 else 1e-14);
        }
    }
}

test "backward is the derivative of forward, by sinks, queries, keys and values" {
    var rig = try check.Rig.init(2);
    defer rig.deinit();

    var bag: check.Bag = .{};
    defer bag.deinit();

    const dims: Dims = .{ .batch = 2, .time = 5, .heads = 4, .kv_heads = 2, .head_dim = 4 };
    try rig.ex.reserve(f64, .{ .attention_time = dims.time, .attention_head_dim = dims.head_dim });
    const q_len = dims.batch * dims.time * dims.heads * dims.head_dim;
    const Problem = struct { ex: *Exec, q: []f64, k: []f64, v: []f64, sinks: []f64, out: []f64, lse: []f64, dout: []f64, first: []const u32 };
    const p: Problem = .{
        .ex = &rig.ex,
        .q = bag.normal(f64, q_len),
        .k = bag.normal(f64, q_len / 2),
        .v = bag.normal(f64, q_len / 2),
        .sinks = bag.normal(f64, 4),
        .out = bag.zeros(f64, q_len),
        .lse = bag.zeros(f64, 40),
        .dout = bag.normal(f64, q_len),
        .first = windows(&bag, dims),
    };
    const loss = struct {
        fn f(x: Problem) f64 {
            attention.forward(f64, x.ex, x.out, x.lse, x.q, x.k, x.v, dims, x.first);
            forward(f64, x.ex, x.out, x.lse, x.sinks, dims);
            return check.weigh(x.out, x.dout);
        }
    }.f;
    _ = loss(p);
    const dq = bag.zeros(f64, q_len);
    const dk = bag.zeros(f64, q_len / 2);
    const dv = bag.zeros(f64, q_len / 2);
    const dsinks = bag.zeros(f64, 4);
    attention.backward(f64, p.ex, dq, dk, dv, p.dout, p.out, p.lse, p.q, p.k, p.v, dims, p.first);
    backward(f64, p.ex, dsinks, p.dout, p.out, p.lse, p.sinks, dims);
    try check.expectGradient(p.q, dq, p, loss);
    try check.expectGradient(p.k, dk, p, loss);
    try check.expectGradient(p.v, dv, p, loss);
    try check.expectGradient(p.sinks, dsinks, p, loss);
}

test "the same bits for any number of threads" {
    var bag: check.Bag = .{};
    defer bag.deinit();

    const dims: Dims = .{ .batch = 3, .time = 29, .heads = 5, .kv_heads = 5, .head_dim = 10 };
    const len = dims.batch * dims.time * dims.heads * dims.head_dim;
    const out = bag.normal(f32, len);
    const lse = bag.normal(f32, dims.batch * dims.time * dims.heads);
    const dout = bag.normal(f32, len);
    const sinks = bag.normal(f32, dims.heads);
    var first: ?[3][]f32 = null;
    for (check.thread_counts) |threads| {
        var rig = try check.Rig.init(threads);
        defer rig.deinit();

        const got = [3][]f32{ bag.copy(f32, out), bag.copy(f32, lse), bag.zeros(f32, dims.heads) };
        forward(f32, &rig.ex, got[0], got[1], sinks, dims);
        backward(f32, &rig.ex, got[2], dout, got[0], got[1], sinks, dims);
        if (first) |expected| {
            for (expected, got) |e, g| try check.expectSame(f32, e, g);
        } else first = got;
    }
}
