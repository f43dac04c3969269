//! Causal grouped-query attention, forward and backward, without a time × time matrix.
//!
//! q, out, dq, dout [B, T, H, D]; k, v, dk, dv [B, T, KH, D]; lse [B, H, T] is the log-sum-exp of each row of scaled
//! scores, kept so that backward can make the probabilities again. Scale is 1/√D. Token t of row b sees the positions
//! first[b·T + t] … t; first = null means 0. That one number holds sliding windows and packed documents.
//! Needs `Exec.reserve(.{ .attention_time = T })`. Does not know: RoPE, projections, caches.

const std = @import("std");
const Exec = @import("exec.zig").Exec;

pub const Dims = struct {
    batch: usize,
    time: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
};

/// Numbers of scratch a worker needs for rows of `time` tokens.
pub fn scratchCount(time: usize) usize {
    _ = time;
    return 0;
}

pub fn forward(comptime T: type, ex: *Exec, out: []T, lse: []T, q: []const T, k: []const T, v: []const T, dims: Dims, first: ?[]const u32) void {
    _ = ex;
    forwardNaive(T, out, lse, q, k, v, dims, first);
}

/// dq, dk and dv are stored. They must not alias the inputs.
pub fn backward(comptime T: type, ex: *Exec, dq: []T, dk: []T, dv: []T, dout: []const T, out: []const T, lse: []const T, q: []const T, k: []const T, v: []const T, dims: Dims, first: ?[]const u32) void {
    _ = ex;
    backwardNaive(T, dq, dk, dv, dout, out, lse, q, k, v, dims, first);
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
