//! The ops layer with a stopwatch around each op: same names, same arguments, so the model compiles against it
//! unchanged and a real step tells where its time goes.
//!
//! Each op and shape has one line in a fixed table. `flops` counts multiplies and adds of matrix products only; `bytes` are
//! the operands read once and the results written once (accumulated results read too): what no implementation can avoid
//! without fusing ops. Calls come from one thread, as the ops themselves demand.

const std = @import("std");
const plain = @import("ops");

pub const Exec = plain.Exec;
pub const Mode = plain.Mode;
pub const Compute = plain.Compute;
// A full step has none of these.
pub const frozen = plain.frozen;
pub const adapter = plain.adapter;

pub const Line = struct {
    op: []const u8,
    /// Rows, columns and depth of a product; 0 where the op has no such size.
    m: usize = 0,
    n: usize = 0,
    k: usize = 0,
    calls: u64 = 0,
    nanoseconds: u64 = 0,
    flops: f64 = 0,
    bytes: f64 = 0,
};

const max_lines = 64;
var table: [max_lines]Line = undefined;
var used: usize = 0;

pub fn lines() []const Line {
    return table[0..used];
}

pub fn reset() void {
    used = 0;
}

pub fn now() u64 {
    var t: std.c.timespec = undefined;
    _ = std.c.clock_gettime(.MONOTONIC, &t);
    return @as(u64, @intCast(t.sec)) * std.time.ns_per_s + @as(u64, @intCast(t.nsec));
}

/// Adds one call that began at `started` to the line of the same op and sizes.
pub fn record(started: u64, one: Line) void {
    const elapsed = now() - started;
    const line = for (table[0..used]) |*line| {
        if (std.mem.eql(u8, line.op, one.op) and line.m == one.m and line.n == one.n and line.k == one.k) break line;
    } else blk: {
        if (used == max_lines) @panic("more ops and shapes than the table has lines: raise max_lines");
        table[used] = .{ .op = one.op, .m = one.m, .n = one.n, .k = one.k };
        used += 1;
        break :blk &table[used - 1];
    };
    line.calls += 1;
    line.nanoseconds += elapsed;
    line.flops += one.flops;
    line.bytes += one.bytes;
}

fn product(a: usize, b: usize, c: usize) f64 {
    return @as(f64, @floatFromInt(a)) * @as(f64, @floatFromInt(b)) * @as(f64, @floatFromInt(c));
}

fn bytesOf(comptime T: type, count: usize) f64 {
    return @floatFromInt(count * @sizeOf(T));
}

pub const matmul = struct {
    pub fn forward(comptime T: type, ex: *Exec, out: []T, inp: []const T, weight: []const T, bias: ?[]const T, m: usize, n: usize, k: usize, mode: Mode) void {
        const t = now();
        plain.matmul.forward(T, ex, out, inp, weight, bias, m, n, k, mode);
        record(t, .{ .op = "linear forward", .m = m, .n = n, .k = k, .flops = 2 * product(m, n, k), .bytes = traffic(T, m * k + n * k, m * n, mode) });
    }

    pub fn backwardInput(comptime T: type, ex: *Exec, dinp: []T, dout: []const T, weight: []const T, m: usize, n: usize, k: usize, mode: Mode) void {
        const t = now();
        plain.matmul.backwardInput(T, ex, dinp, dout, weight, m, n, k, mode);
        record(t, .{ .op = "linear input gradient", .m = m, .n = n, .k = k, .flops = 2 * product(m, n, k), .bytes = traffic(T, m * n + n * k, m * k, mode) });
    }

    pub fn backwardWeight(comptime T: type, ex: *Exec, dweight: []T, dbias: ?[]T, dout: []const T, inp: []const T, m: usize, n: usize, k: usize) void {
        const t = now();
        plain.matmul.backwardWeight(T, ex, dweight, dbias, dout, inp, m, n, k);
        record(t, .{ .op = "linear weight gradient", .m = m, .n = n, .k = k, .flops = 2 * product(m, n, k), .bytes = traffic(T, m * n + m * k, n * k, .accumulate) });
    }

    fn traffic(comptime T: type, read: usize, written: usize, mode: Mode) f64 {
        return bytesOf(T, read + written * @as(usize, if (mode == .accumulate) 2 else 1));
    }
};

pub const rms_norm = struct {
    pub fn forward(comptime T: type, ex: *Exec, out: []T, rstd: []T, inp: []const T, weight: []const T, rows: usize, cols: usize, eps: T) void {
        const t = now();
        plain.rms_norm.forward(T, ex, out, rstd, inp, weight, rows, cols, eps);
        record(t, .{ .op = "norm forward", .m = rows, .n = cols, .bytes = bytesOf(T, 2 * rows * cols) });
    }

    pub fn backward(comptime T: type, ex: *Exec, dinp: []T, dweight: ?[]T, dout: []const T, inp: []const T, weight: []const T, rstd: []const T, rows: usize, cols: usize, mode: Mode) void {
        const t = now();
        plain.rms_norm.backward(T, ex, dinp, dweight, dout, inp, weight, rstd, rows, cols, mode);
        const passes: usize = if (mode == .accumulate) 4 else 3;
        record(t, .{ .op = "norm gradient", .m = rows, .n = cols, .bytes = bytesOf(T, passes * rows * cols) });
    }
};

pub const rope = struct {
    pub const Table = plain.rope.Table;
    pub const Direction = plain.rope.Direction;

    pub fn apply(comptime T: type, ex: *Exec, x: []T, heads: usize, head_dim: usize, cache: *const Table(T), positions: []const u32, direction: Direction) void {
        const t = now();
        plain.rope.apply(T, ex, x, heads, head_dim, cache, positions, direction);
        record(t, .{ .op = "rope", .m = positions.len, .n = heads * head_dim, .bytes = bytesOf(T, 2 * positions.len * heads * head_dim) });
    }
};

pub const attention = struct {
    pub const Dims = plain.attention.Dims;

    pub fn forward(comptime T: type, ex: *Exec, out: []T, lse: []T, q: []const T, k: []const T, v: []const T, dims: Dims, first: ?[]const u32) void {
        const t = now();
        plain.attention.forward(T, ex, out, lse, q, k, v, dims, first);
        record(t, .{ .op = "attention forward", .m = dims.batch * dims.time, .n = dims.heads * dims.head_dim, .k = dims.time, .flops = 4 * pairs(dims), .bytes = bytesOf(T, 2 * queries(dims) + 2 * keys(dims)) });
    }

    pub fn backward(comptime T: type, ex: *Exec, dq: []T, dk: []T, dv: []T, dout: []const T, out: []const T, lse: []const T, q: []const T, k: []const T, v: []const T, dims: Dims, first: ?[]const u32) void {
        const t = now();
        plain.attention.backward(T, ex, dq, dk, dv, dout, out, lse, q, k, v, dims, first);
        record(t, .{ .op = "attention gradient", .m = dims.batch * dims.time, .n = dims.heads * dims.head_dim, .k = dims.time, .flops = 10 * pairs(dims), .bytes = bytesOf(T, 4 * queries(dims) + 4 * keys(dims)) });
    }

    /// Multiply-adds of one product over the visible half of the scores.
    fn pairs(d: Dims) f64 {
        return product(d.batch * d.heads, d.time * (d.time + 1) / 2, d.head_dim);
    }

    fn queries(d: Dims) usize {
        return d.batch * d.time * d.heads * d.head_dim;
    }

    fn keys(d: Dims) usize {
        return d.batch * d.time * d.kv_heads * d.head_dim;
    }
};

pub const sinks = struct {
    pub fn forward(comptime T: type, ex: *Exec, out: []T, lse: []T, logits: []const T, dims: attention.Dims) void {
        const t = now();
        plain.sinks.forward(T, ex, out, lse, logits, dims);
        record(t, .{ .op = "sinks forward", .bytes = bytesOf(T, 2 * out.len) });
    }

    pub fn backward(comptime T: type, ex: *Exec, dlogits: []T, dout: []const T, out: []const T, lse: []const T, logits: []const T, dims: attention.Dims) void {
        const t = now();
        plain.sinks.backward(T, ex, dlogits, dout, out, lse, logits, dims);
        record(t, .{ .op = "sinks gradient", .bytes = bytesOf(T, 2 * out.len) });
    }
};

pub const router = struct {
    pub fn choose(comptime T: type, ex: *Exec, chosen: []u32, weights: []T, logits: []const T, rows: usize, count: usize, k: usize) void {
        const t = now();
        plain.router.choose(T, ex, chosen, weights, logits, rows, count, k);
        record(t, .{ .op = "router", .m = rows, .n = count, .bytes = bytesOf(T, rows * (count + 2 * k)) });
    }

    pub fn backward(comptime T: type, ex: *Exec, dlogits: []T, dweights: []const T, chosen: []const u32, weights: []const T, rows: usize, count: usize, k: usize) void {
        const t = now();
        plain.router.backward(T, ex, dlogits, dweights, chosen, weights, rows, count, k);
        record(t, .{ .op = "router gradient", .m = rows, .n = count, .bytes = bytesOf(T, rows * (count + 3 * k)) });
    }
};

pub const balance = struct {
    pub const Rows = plain.balance.Rows;
    pub const Sums = plain.balance.Sums;

    pub fn add(comptime T: type, ex: *Exec, sums: Sums, room: []T, logits: []const T, chosen: []const u32, rows: Rows, k: usize) void {
        const t = now();
        plain.balance.add(T, ex, sums, room, logits, chosen, rows, k);
        record(t, .{ .op = "routers' loss", .bytes = bytesOf(T, 2 * logits.len) });
    }

    pub fn backward(comptime T: type, ex: *Exec, dlogits: []T, logits: []const T, sums: Sums, total: usize, scale: f64, rows: Rows) void {
        const t = now();
        plain.balance.backward(T, ex, dlogits, logits, sums, total, scale, rows);
        record(t, .{ .op = "routers' loss gradient", .bytes = bytesOf(T, 3 * logits.len) });
    }
};

pub const experts = struct {
    pub const Groups = plain.experts.Groups;
    pub const Gate = plain.experts.Gate;
    pub const Backward = plain.experts.Backward;
    // Adapters and frozen weights only.
    pub const turn = plain.experts.turn;
    pub const spread = plain.experts.spread;

    pub fn gather(comptime T: type, ex: *Exec, out: []T, x: []const T, groups: Groups, columns: usize) void {
        const t = now();
        plain.experts.gather(T, ex, out, x, groups, columns);
        record(t, .{ .op = "experts gather", .bytes = bytesOf(T, 2 * out.len) });
    }

    pub fn scatter(comptime T: type, ex: *Exec, out: []T, x: []const T, weights: ?[]const T, groups: Groups, columns: usize, mode: Mode) void {
        const t = now();
        plain.experts.scatter(T, ex, out, x, weights, groups, columns, mode);
        record(t, .{ .op = "experts scatter", .bytes = bytesOf(T, x.len + 2 * out.len) });
    }

    pub fn activate(comptime T: type, ex: *Exec, act: []T, gate_up: []const T, gate: Gate(T), rows: usize) void {
        const t = now();
        plain.experts.activate(T, ex, act, gate_up, gate, rows);
        record(t, .{ .op = "experts activation", .bytes = bytesOf(T, 3 * act.len) });
    }

    pub fn backward(comptime T: type, ex: *Exec, args: Backward(T)) void {
        const t = now();
        plain.experts.backward(T, ex, args);
        record(t, .{ .op = "experts activation gradient", .bytes = bytesOf(T, 6 * args.act.len + 2 * args.dout.len) });
    }
};

/// Rows count once, not for each expert.
pub const grouped = struct {
    const Starts = plain.grouped.Starts;

    pub fn forward(comptime T: type, ex: *Exec, out: []T, inp: []const T, weights: []const T, bias: []const T, starts: Starts, in: usize, wide: usize) void {
        const t = now();
        plain.grouped.forward(T, ex, out, inp, weights, bias, starts, in, wide);
        recordOf(T, t, "experts forward", starts, in, wide, 1);
    }

    pub fn backwardInput(comptime T: type, ex: *Exec, dinp: []T, dout: []const T, weights: []const T, starts: Starts, in: usize, wide: usize) void {
        const t = now();
        plain.grouped.backwardInput(T, ex, dinp, dout, weights, starts, in, wide);
        recordOf(T, t, "experts input gradient", starts, in, wide, 1);
    }

    pub fn backwardWeight(comptime T: type, ex: *Exec, dweights: []T, dbias: []T, dout: []const T, inp: []const T, starts: Starts, in: usize, wide: usize) void {
        const t = now();
        plain.grouped.backwardWeight(T, ex, dweights, dbias, dout, inp, starts, in, wide);
        recordOf(T, t, "experts weight gradient", starts, in, wide, 2);
    }

    fn recordOf(comptime T: type, started: u64, op: []const u8, starts: Starts, in: usize, wide: usize, passes: usize) void {
        const rows = starts[starts.len - 1];
        const weights = (starts.len - 1) * in * wide;
        record(started, .{ .op = op, .m = rows, .n = wide, .k = in, .flops = 2 * product(rows, in, wide), .bytes = bytesOf(T, rows * (in + wide) + passes * weights) });
    }
};

pub const swiglu = struct {
    pub fn forward(comptime T: type, ex: *Exec, out: []T, gate: []const T, up: []const T) void {
        const t = now();
        plain.swiglu.forward(T, ex, out, gate, up);
        record(t, .{ .op = "swiglu forward", .m = out.len, .bytes = bytesOf(T, 3 * out.len) });
    }

    pub fn backward(comptime T: type, ex: *Exec, dgate: []T, dup: []T, dout: []const T, gate: []const T, up: []const T) void {
        const t = now();
        plain.swiglu.backward(T, ex, dgate, dup, dout, gate, up);
        record(t, .{ .op = "swiglu gradient", .m = gate.len, .bytes = bytesOf(T, 5 * gate.len) });
    }

    pub const Low = plain.swiglu.Low;

    pub fn forwardLow(ex: *Exec, out: []f32, low: Low, gate: []const f32, up: []const f32) void {
        const t = now();
        plain.swiglu.forwardLow(ex, out, low, gate, up);
        record(t, .{ .op = "swiglu forward", .m = out.len, .bytes = bytesOf(f32, 4 * out.len) });
    }

    pub fn productLow(ex: *Exec, out: []f32, low: Low) void {
        const t = now();
        plain.swiglu.productLow(ex, out, low);
        record(t, .{ .op = "swiglu forward", .m = out.len, .bytes = bytesOf(f32, 2 * out.len) });
    }

    pub fn backwardLow(ex: *Exec, dgate: []f32, dup: []f32, dout: []const f32, low: Low) void {
        const t = now();
        plain.swiglu.backwardLow(ex, dgate, dup, dout, low);
        record(t, .{ .op = "swiglu gradient", .m = dout.len, .bytes = bytesOf(f32, 4 * dout.len) });
    }
};

pub const elementwise = struct {
    pub fn copy(comptime T: type, ex: *Exec, dst: []T, src: []const T) void {
        const t = now();
        plain.elementwise.copy(T, ex, dst, src);
        record(t, .{ .op = "copy residual", .bytes = bytesOf(T, 2 * dst.len) });
    }

    pub const scale = plain.elementwise.scale; // Adapters only.

    pub fn fill(comptime T: type, ex: *Exec, x: []T, value: T) void {
        const t = now();
        plain.elementwise.fill(T, ex, x, value);
        record(t, .{ .op = "zero gradients", .bytes = bytesOf(T, x.len) });
    }
};

pub const embedding = struct {
    pub fn forward(comptime T: type, ex: *Exec, out: []T, weights: []const T, ids: []const u32) void {
        const t = now();
        plain.embedding.forward(T, ex, out, weights, ids);
        record(t, .{ .op = "embedding forward", .m = ids.len, .n = out.len / ids.len, .bytes = bytesOf(T, 2 * out.len) });
    }

    pub fn backward(comptime T: type, ex: *Exec, dtable: []T, dout: []const T, ids: []const u32) void {
        const t = now();
        plain.embedding.backward(T, ex, dtable, dout, ids);
        record(t, .{ .op = "embedding gradient", .m = ids.len, .n = dout.len / ids.len, .bytes = bytesOf(T, 3 * dout.len) });
    }
};

pub const cross_entropy = struct {
    pub const Args = plain.cross_entropy.Args;
    pub const Head = plain.cross_entropy.Head;
    pub const Low = plain.cross_entropy.Low;
    pub const Result = plain.cross_entropy.Result;

    pub fn run(comptime T: type, ex: *Exec, args: Args(T)) Result {
        const t = now();
        const result = plain.cross_entropy.run(T, ex, args);
        const n = args.targets.len;
        const c = switch (args.weight) {
            .dense => |w| w.len / args.vocab_size,
            .frozen => |matrix| matrix.columns,
        };
        const products: f64 = 1 + @as(f64, if (args.dhidden != null) 1 else 0) + @as(f64, if (args.dweight != null) 1 else 0);
        // Logits need not leave the cache: hidden and weights are read, their gradients written.
        record(t, .{ .op = "head and loss", .m = n, .n = args.vocab_size, .k = c, .flops = 2 * products * product(n, args.vocab_size, c), .bytes = bytesOf(T, 2 * n * c + 3 * args.vocab_size * c) });
        return result;
    }
};

pub const reduce = struct {
    pub fn sumSquares(comptime T: type, ex: *Exec, x: []const T) f64 {
        const t = now();
        const sum = plain.reduce.sumSquares(T, ex, x);
        record(t, .{ .op = "gradient norm", .bytes = bytesOf(T, x.len) });
        return sum;
    }
};

pub const optimizer = struct {
    pub const Args = plain.optimizer.Args;
    pub const Kind = plain.optimizer.Kind;

    pub fn step(comptime T: type, ex: *Exec, kind: Kind, args: Args(T)) void {
        const t = now();
        plain.optimizer.step(T, ex, kind, args);
        record(t, .{ .op = "optimizer", .bytes = bytesOf(T, 4 * args.w.len + 3 * args.w.len) });
    }
};
