//! What surrounds the products of a mixture of experts: tokens grouped by expert, the clamped activation, and the sums over experts.
//!
//! Rows are (token, expert) pairs, those of expert 0 first, tokens rising within an expert: R = N·k rows. A token's k rows rise
//! with its experts (`router.choose`), so every sum over a token's experts runs in one order, whatever the number of threads.
//!
//!     gate = min(gate, limit)   up = clamp(up, −limit, limit)   act = gate · sigmoid(alpha · gate) · (up + 1)
//!
//! gate and up stand in turn in a row of 2F. A limit of 0 clamps nothing. Does not know: weights, the router, adapters.

const std = @import("std");
const kernels = @import("kernels");
const Exec = @import("exec.zig").Exec;
const Mode = @import("exec.zig").Mode;

/// Which rows belong to which expert.
pub const Groups = struct {
    /// Rows starts[e] … starts[e + 1] are expert e's. [E + 1]
    starts: []u32,
    /// Of each row, the place of its (token, slot) in `chosen`: token · k + slot. [N·k]
    slots: []u32,
    /// Of each (token, slot), its row. [N·k]
    rows: []u32,
    /// Experts of a token.
    k: usize,

    /// Whole buffers, made for the largest batch; `chosen` is [N, k] as the router left it.
    pub fn fill(starts: []u32, slots: []u32, rows: []u32, chosen: []const u32, k: usize) Groups {
        const self: Groups = .{ .starts = starts, .slots = slots[0..chosen.len], .rows = rows[0..chosen.len], .k = k };
        @memset(starts, 0);
        for (chosen) |e| starts[e + 1] += 1;
        for (starts[1..], starts[0 .. starts.len - 1]) |*end, begin| end.* += begin;
        for (chosen, 0..) |e, slot| { // starts[e] is where the next row goes, until all have moved on by one expert.
            self.rows[slot] = starts[e];
            self.slots[starts[e]] = @intCast(slot);
            starts[e] += 1;
        }
        std.mem.copyBackwards(u32, starts[1..], starts[0 .. starts.len - 1]);
        starts[0] = 0;
        return self;
    }

    pub fn experts(self: Groups) usize {
        return self.starts.len - 1;
    }

    /// First row and number of rows of an expert.
    pub fn of(self: Groups, expert: usize) struct { usize, usize } {
        return .{ self.starts[expert], self.starts[expert + 1] - self.starts[expert] };
    }
};

/// What the activation of a model is.
pub fn Gate(comptime T: type) type {
    return struct {
        /// 0: nothing is clamped.
        limit: T,
        alpha: T,

        fn most(self: @This()) T {
            return if (self.limit == 0) std.math.inf(T) else self.limit;
        }
    };
}

/// out [R, columns] = rows of x [N, columns].
pub fn gather(comptime T: type, ex: *Exec, out: []T, x: []const T, groups: Groups, columns: usize) void {
    const Job = struct { out: []T, x: []const T, groups: Groups, columns: usize };
    ex.pool.parallelFor(Job{ .out = out, .x = x, .groups = groups, .columns = columns }, groups.slots.len, struct {
        fn f(j: Job, row: usize, _: usize) void {
            const token = j.groups.slots[row] / j.groups.k;
            @memcpy(j.out[row * j.columns ..][0..j.columns], j.x[token * j.columns ..][0..j.columns]);
        }
    }.f);
}

/// out [N, columns] (+)= Σ over a token's experts of weight · row; weights [N, k], null: 1.
pub fn scatter(comptime T: type, ex: *Exec, out: []T, x: []const T, weights: ?[]const T, groups: Groups, columns: usize, mode: Mode) void {
    const Job = struct { out: []T, x: []const T, weights: ?[]const T, groups: Groups, columns: usize, mode: Mode };
    ex.pool.parallelFor(Job{ .out = out, .x = x, .weights = weights, .groups = groups, .columns = columns, .mode = mode }, groups.slots.len / groups.k, struct {
        fn f(j: Job, token: usize, _: usize) void {
            const into = j.out[token * j.columns ..][0..j.columns];
            if (j.mode == .store) @memset(into, 0);
            for (token * j.groups.k..(token + 1) * j.groups.k) |slot| {
                const row = j.x.ptr + j.groups.rows[slot] * j.columns;
                kernels.table(T).add_scaled(j.columns, into.ptr, if (j.weights) |w| w[slot] else 1, row);
            }
        }
    }.f);
}

/// out [rows, columns] = the bias in every row: what a product then adds to.
pub fn spread(comptime T: type, ex: *Exec, out: []T, bias: []const T) void {
    const Job = struct { out: []T, bias: []const T };
    ex.pool.parallelFor(Job{ .out = out, .bias = bias }, out.len / bias.len, struct {
        fn f(j: Job, row: usize, _: usize) void {
            @memcpy(j.out[row * j.bias.len ..][0..j.bias.len], j.bias);
        }
    }.f);
}

/// act [R, F] from gate_up [R, 2F].
pub fn activate(comptime T: type, ex: *Exec, act: []T, gate_up: []const T, gate: Gate(T), rows: usize) void {
    std.debug.assert(2 * act.len == gate_up.len);
    const Job = struct { act: []T, gate_up: []const T, gate: Gate(T), columns: usize };
    ex.pool.parallelFor(Job{ .act = act, .gate_up = gate_up, .gate = gate, .columns = act.len / @max(rows, 1) }, rows, struct {
        fn f(j: Job, row: usize, _: usize) void {
            const at = row * j.columns;
            kernels.table(T).expert_forward(j.columns, j.act.ptr + at, j.gate_up.ptr + 2 * at, j.gate.most(), j.gate.alpha);
        }
    }.f);
}

pub fn Backward(comptime T: type) type {
    return struct {
        /// [R, 2F]: in, what forward kept; out, the gradient by it, weighted.
        gate_up: []T,
        /// [R, F]: receives the activation again.
        act: []T,
        /// [R, F]: the gradient by the activation, without the router's weights.
        dact: []const T,
        /// [R, C]: in, the gradient by each expert's output, without the router's weights; out, with them.
        dout: []T,
        /// [E, C]: the bias the weighting includes.
        bias: []const T,
        /// [N, k]: which experts, their weights, and the gradient by these, which is stored.
        chosen: []const u32,
        weights: []const T,
        dweights: []T,
        groups: Groups,
        gate: Gate(T),
        /// F and C.
        width: usize,
        columns: usize,
    };
}

/// From the gradient behind the activation to the one before it, and to the router's weights: an expert's output is
/// act · W + bias, so its product with the gradient is act · dact + bias · dout, and the output need not be kept.
pub fn backward(comptime T: type, ex: *Exec, args: Backward(T)) void {
    ex.pool.parallelFor(args, args.groups.slots.len, struct {
        fn f(a: Backward(T), row: usize, _: usize) void {
            const table = kernels.table(T);
            const slot = a.groups.slots[row];
            const weight = a.weights[slot];
            const act = a.act.ptr + row * a.width;
            const dact = a.dact.ptr + row * a.width;
            const gate_up = a.gate_up.ptr + row * 2 * a.width;
            const dout = a.dout.ptr + row * a.columns;
            table.expert_forward(a.width, act, gate_up, a.gate.most(), a.gate.alpha);
            a.dweights[slot] = table.inner(a.width, act, dact) + table.inner(a.columns, dout, a.bias.ptr + a.chosen[slot] * a.columns);
            table.expert_backward(a.width, gate_up, dact, gate_up, a.gate.most(), a.gate.alpha, weight);
            table.scale(a.columns, dout, weight);
        }
    }.f);
}

/// to [E, N] = from [N, E] and back: PEFT keeps an adapter's second factor with the experts fastest, products want them slowest.
pub fn turn(comptime T: type, ex: *Exec, to: []T, from: []const T, rows: usize, columns: usize, mode: Mode) void {
    std.debug.assert(to.len == rows * columns and from.len == to.len);
    const Job = struct { to: []T, from: []const T, rows: usize, columns: usize, mode: Mode };
    const part = 64;
    ex.pool.parallelFor(Job{ .to = to, .from = from, .rows = rows, .columns = columns, .mode = mode }, (rows + part - 1) / part, struct {
        fn f(j: Job, index: usize, _: usize) void {
            const end = @min((index + 1) * part, j.rows);
            for (0..j.columns) |c| for (index * part..end) |r| {
                const to_at = &j.to[c * j.rows + r];
                const x = j.from[r * j.columns + c];
                to_at.* = if (j.mode == .store) x else to_at.* + x;
            };
        }
    }.f);
}

pub fn activateNaive(comptime T: type, act: []T, gate_up: []const T, gate: Gate(T)) void {
    for (act, 0..) |*a, i| {
        const g = @min(gate_up[2 * i], gate.most());
        const u = std.math.clamp(gate_up[2 * i + 1], -gate.most(), gate.most());
        a.* = g / (1 + @exp(-gate.alpha * g)) * (u + 1);
    }
}

const check = @import("check.zig");

test "rows are grouped by expert and find their way back, with experts nobody chose" {
    const chosen = [_]u32{ 1, 4, 0, 4, 1, 2 };
    var starts: [7]u32 = undefined;
    var slots: [8]u32 = undefined;
    var rows: [8]u32 = undefined;
    const groups: Groups = .fill(&starts, &slots, &rows, &chosen, 2);
    try std.testing.expectEqualSlices(u32, &.{ 0, 1, 3, 4, 4, 6, 6 }, groups.starts);
    try std.testing.expectEqualSlices(u32, &.{ 2, 0, 4, 5, 1, 3 }, groups.slots);
    for (groups.rows, 0..) |row, slot| try std.testing.expectEqual(slot, groups.slots[row]);
    try std.testing.expectEqual(.{ 4, 2 }, groups.of(4));
    try std.testing.expectEqual(.{ 4, 0 }, groups.of(3));
}

test "the activation equals the plain one for lengths up to 40, also beyond the limits" {
    var rig = try check.Rig.init(2);
    defer rig.deinit();

    inline for (.{ f32, f64 }) |T| for ([_]T{ 0, 1.5 }) |limit| {
        var bag: check.Bag = .{};
        defer bag.deinit();

        for (1..41) |n| {
            const gate_up = bag.normal(T, 3 * 2 * n);
            for (gate_up, 0..) |*g, i| if (i % 7 == 0) {
                g.* *= 100;
            };
            const gate: Gate(T) = .{ .limit = limit, .alpha = 1.702 };
            const want = bag.zeros(T, 3 * n);
            const got = bag.zeros(T, 3 * n);
            activateNaive(T, want, gate_up, gate);
            activate(T, &rig.ex, got, gate_up, gate, 3);
            try check.expectClose(T, want, got, if (T == f32) 1e-6 else 1e-14);
        }
    };
}

/// A whole layer of experts with plain products, for the derivative below: x [N, C] → out [N, C].
const Problem = struct {
    const n = 5;
    const k = 2;
    const experts = 4;
    const c = 3;
    const f = 9;

    ex: *Exec,
    x: []f64,
    weights: []f64,
    gate_up_weight: []f64,
    gate_up_bias: []f64,
    down_weight: []f64,
    down_bias: []f64,
    chosen: []const u32,
    groups: Groups,
    gate: Gate(f64),
    rows: []f64,
    gate_up: []f64,
    act: []f64,
    dact: []f64,
    out_rows: []f64,
    out: []f64,
    dout: []f64,

    fn expertOf(self: Problem, row: usize) usize {
        return self.chosen[self.groups.slots[row]];
    }

    fn loss(self: Problem) f64 {
        gather(f64, self.ex, self.rows, self.x, self.groups, c);
        for (0..n * k) |row| {
            const e = self.expertOf(row);
            for (0..2 * f) |j| {
                var sum = self.gate_up_bias[e * 2 * f + j];
                for (0..c) |i| sum += self.rows[row * c + i] * self.gate_up_weight[(e * c + i) * 2 * f + j];
                self.gate_up[row * 2 * f + j] = sum;
            }
        }
        activate(f64, self.ex, self.act, self.gate_up, self.gate, n * k);
        for (0..n * k) |row| {
            const e = self.expertOf(row);
            for (0..c) |j| {
                var sum = self.down_bias[e * c + j];
                for (0..f) |i| sum += self.act[row * f + i] * self.down_weight[(e * f + i) * c + j];
                self.out_rows[row * c + j] = sum;
            }
        }
        scatter(f64, self.ex, self.out, self.out_rows, self.weights, self.groups, c, .store);
        return check.weigh(self.out, self.dout);
    }
};

test "backward is the derivative of forward, by inputs, weights of experts and the router's weights" {
    var rig = try check.Rig.init(2);
    defer rig.deinit();

    var bag: check.Bag = .{};
    defer bag.deinit();

    const P = Problem;
    var starts: [P.experts + 1]u32 = undefined;
    var slots: [P.n * P.k]u32 = undefined;
    var rows: [P.n * P.k]u32 = undefined;
    const chosen = [_]u32{ 0, 2, 0, 3, 2, 3, 0, 2, 0, 3 }; // Nobody chooses 1.
    const p: P = .{
        .ex = &rig.ex,
        .x = bag.normal(f64, P.n * P.c),
        .weights = bag.normal(f64, P.n * P.k),
        .gate_up_weight = bag.normal(f64, P.experts * P.c * 2 * P.f),
        .gate_up_bias = bag.normal(f64, P.experts * 2 * P.f),
        .down_weight = bag.normal(f64, P.experts * P.f * P.c),
        .down_bias = bag.normal(f64, P.experts * P.c),
        .chosen = &chosen,
        .groups = .fill(&starts, &slots, &rows, &chosen, P.k),
        .gate = .{ .limit = 1.25, .alpha = 1.702 },
        .rows = bag.zeros(f64, P.n * P.k * P.c),
        .gate_up = bag.zeros(f64, P.n * P.k * 2 * P.f),
        .act = bag.zeros(f64, P.n * P.k * P.f),
        .dact = bag.zeros(f64, P.n * P.k * P.f),
        .out_rows = bag.zeros(f64, P.n * P.k * P.c),
        .out = bag.zeros(f64, P.n * P.c),
        .dout = bag.normal(f64, P.n * P.c),
    };
    _ = p.loss();
    const dout = bag.zeros(f64, P.n * P.k * P.c);
    gather(f64, p.ex, dout, p.dout, p.groups, P.c);
    for (0..P.n * P.k) |row| for (0..P.f) |i| {
        for (0..P.c) |j| p.dact[row * P.f + i] += dout[row * P.c + j] * p.down_weight[(p.expertOf(row) * P.f + i) * P.c + j];
    };
    const dgate_up = bag.copy(f64, p.gate_up);
    const dweights = bag.zeros(f64, P.n * P.k);
    backward(f64, p.ex, .{
        .gate_up = dgate_up,
        .act = bag.zeros(f64, p.act.len),
        .dact = p.dact,
        .dout = dout,
        .bias = p.down_bias,
        .chosen = p.chosen,
        .weights = p.weights,
        .dweights = dweights,
        .groups = p.groups,
        .gate = p.gate,
        .width = P.f,
        .columns = P.c,
    });
    try check.expectGradient(p.weights, dweights, p, P.loss);
    const dbias = bag.zeros(f64, p.gate_up_bias.len);
    const dweight = bag.zeros(f64, p.gate_up_weight.len);
    const drows = bag.zeros(f64, p.rows.len);
    const ddown_bias = bag.zeros(f64, p.down_bias.len);
    for (0..P.n * P.k) |row| {
        const e = p.expertOf(row);
        for (0..2 * P.f) |j| {
            const d = dgate_up[row * 2 * P.f + j];
            dbias[e * 2 * P.f + j] += d;
            for (0..P.c) |i| {
                dweight[(e * P.c + i) * 2 * P.f + j] += d * p.rows[row * P.c + i];
                drows[row * P.c + i] += d * p.gate_up_weight[(e * P.c + i) * 2 * P.f + j];
            }
        }
        for (0..P.c) |j| ddown_bias[e * P.c + j] += dout[row * P.c + j];
    }
    const dx = bag.zeros(f64, p.x.len);
    scatter(f64, p.ex, dx, drows, null, p.groups, P.c, .store);
    try check.expectGradient(p.x, dx, p, P.loss);
    try check.expectGradient(p.gate_up_bias, dbias, p, P.loss);
    try check.expectGradient(p.gate_up_weight, dweight, p, P.loss);
    try check.expectGradient(p.down_bias, ddown_bias, p, P.loss);
}

test "the same bits for any number of threads, and turning twice changes nothing" {
    var bag: check.Bag = .{};
    defer bag.deinit();

    const n = 33;
    const k = 3;
    const c = 37;
    var chosen: [n * k]u32 = undefined;
    for (&chosen, 0..) |*e, i| e.* = @intCast((i / k * 7 % 5) + i % k * 2);
    const x = bag.normal(f32, n * c);
    const weights = bag.normal(f32, n * k);
    var first: ?[3][]f32 = null;
    for (check.thread_counts) |threads| {
        var rig = try check.Rig.init(threads);
        defer rig.deinit();

        var starts: [10]u32 = undefined;
        var slots: [n * k]u32 = undefined;
        var rows: [n * k]u32 = undefined;
        const groups: Groups = .fill(&starts, &slots, &rows, &chosen, k);
        const got = [3][]f32{ bag.zeros(f32, n * k * c), bag.copy(f32, x), bag.zeros(f32, n * k * c) };
        gather(f32, &rig.ex, got[0], x, groups, c);
        scatter(f32, &rig.ex, got[1], got[0], weights, groups, c, .accumulate);
        turn(f32, &rig.ex, got[2], got[0], n * k, c, .store);
        const back = bag.zeros(f32, n * k * c);
        turn(f32, &rig.ex, back, got[2], c, n * k, .accumulate);
        try check.expectSame(f32, got[0], back);
        if (first) |expected| {
            for (expected, got) |e, g| try check.expectSame(f32, e, g);
        } else first = got;
    }
}
