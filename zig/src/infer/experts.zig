//! The MLP of a mixture: a router gives each token to a few of many experts, and their answers are added up by weight.
//!
//! The tokens of a pass are sorted by expert, so the weights of an expert are read once however many tokens it has, and those of
//! experts that nobody wants are not read at all. What a token gets does not depend on the others: its experts are added in order
//! of its own preference, and their products are those of `matrix.multiply`, one worker and one order each.
//! Does not know: attention, layers.

const std = @import("std");
const base = @import("base");
const kernels = @import("kernels");
const matrix = @import("matrix.zig");
const Linear = matrix.Linear;

pub const Mixture = struct {
    /// (experts, hidden)
    router: Linear,
    /// One an expert.
    gate: []const Linear,
    up: []const Linear,
    down: []const Linear,
    /// How many experts see a token.
    chosen: usize,
    /// Gates and ups are clamped to it; infinite: not at all.
    limit: f32,
    alpha: f32,

    pub fn count(self: *const Mixture) usize {
        return self.gate.len;
    }
};

/// Memory of a pass: a place is one token with one of its experts.
pub const Room = struct {
    /// (tokens, experts)
    logits: []f32,
    /// (tokens, chosen), the dearest first: which expert, its weight, and the place in `rows`.
    expert: []u32,
    weight: []f32,
    place: []u32,
    /// (places, hidden), sorted by expert: inputs, then answers.
    rows: []f32,
    /// (places, inner)
    gate: []f32,
    up: []f32,
    /// The first place of each expert, and one behind the last.
    begin: []u32,
    jobs: []matrix.Job,

    pub const Sizes = struct { tokens: usize, experts: usize, chosen: usize, hidden: usize, inner: usize };

    pub fn init(arena: std.mem.Allocator, s: Sizes) error{OutOfMemory}!Room {
        const product = base.checked.product;
        const wide = product(usize, &.{ s.tokens, s.chosen, s.hidden }) catch return error.OutOfMemory;
        const inner = product(usize, &.{ s.tokens, s.chosen, s.inner }) catch return error.OutOfMemory;
        return .{
            .logits = try arena.alloc(f32, s.tokens * s.experts),
            .expert = try arena.alloc(u32, s.tokens * s.chosen),
            .weight = try arena.alloc(f32, s.tokens * s.chosen),
            .place = try arena.alloc(u32, s.tokens * s.chosen),
            .rows = try arena.alloc(f32, wide),
            .gate = try arena.alloc(f32, inner),
            .up = try arena.alloc(f32, inner),
            .begin = try arena.alloc(u32, s.experts + 1),
            .jobs = try arena.alloc(matrix.Job, 2 * s.experts),
        };
    }
};

/// What computes, and how: the arguments of `matrix.multiply`. `rounded` holds as many numbers as the places' rows.
pub const Machine = struct {
    pool: *base.Pool,
    scratch: []const matrix.Scratch,
    rounded: ?*const matrix.Rounded,
};

/// inp, out: (tokens, hidden); they may be the same.
pub fn run(machine: Machine, mixture: *const Mixture, room: *const Room, inp: []const f32, out: []f32, tokens: usize, which: matrix.Tokens) void {
    const logits = room.logits[0 .. tokens * mixture.count()];
    matrix.multiply(machine.pool, machine.scratch, machine.rounded, &.{.{ .linear = &mixture.router, .out = logits }}, inp, tokens, which);
    const pass: Pass = .{ .mixture = mixture, .room = room, .inp = inp, .out = out, .tokens = tokens, .hidden = inp.len / tokens };
    forEach(machine.pool, pass, tokens, 32, Pass.choose);
    pass.sort();
    forEach(machine.pool, pass, tokens, 4, Pass.gather);
    pass.multiply(machine, &.{ mixture.gate, mixture.up }, &.{ room.gate, room.up }, pass.rows(), which);
    const inner = mixture.gate[0].weight.rows;
    machine.pool.parallelFor(pass, (tokens * mixture.chosen * inner + Pass.part - 1) / Pass.part, Pass.activate);
    pass.multiply(machine, &.{mixture.down}, &.{room.rows}, room.gate[0 .. tokens * mixture.chosen * inner], which);
    forEach(machine.pool, pass, tokens, 4, Pass.combine);
}

/// Few are not worth waking the others for.
fn forEach(pool: *base.Pool, pass: Pass, count: usize, few: usize, comptime f: fn (Pass, usize, usize) void) void {
    if (count > few) return pool.parallelFor(pass, count, f);
    for (0..count) |i| f(pass, i, 0);
}

const Pass = struct {
    mixture: *const Mixture,
    room: *const Room,
    inp: []const f32,
    out: []f32,
    tokens: usize,
    hidden: usize,

    /// Numbers of an activation that a worker takes at once.
    const part = 4096;

    fn rows(self: Pass) []f32 {
        return self.room.rows[0 .. self.tokens * self.mixture.chosen * self.hidden];
    }

    /// The experts with the largest logits, the first of equals; weights are the softmax over them alone.
    fn choose(self: Pass, t: usize, _: usize) void {
        const n = self.mixture.count();
        const k = self.mixture.chosen;
        const logits = self.room.logits[t * n ..][0..n];
        const best = self.room.expert[t * k ..][0..k];
        var have: usize = 0;
        var poison: f32 = 0; // NaN when a logit is not a number: no choice is right then, and the answer must not look like one.
        for (logits, 0..) |x, e| {
            poison += x * 0;
            if (have == k and !(x > logits[best[k - 1]])) continue;
            var at = if (have < k) have else k - 1;
            have = @min(have + 1, k);
            while (at > 0 and x > logits[best[at - 1]]) : (at -= 1) best[at] = best[at - 1];
            best[at] = @intCast(e);
        }
        const weight = self.room.weight[t * k ..][0..k];
        var sum: f64 = 0;
        for (best, weight) |e, *w| {
            w.* = @floatCast(@exp(@as(f64, logits[e]) - logits[best[0]]));
            sum += w.*;
        }
        for (weight) |*w| w.* = @as(f32, @floatCast(w.* / sum)) + poison;
    }

    fn sort(self: Pass) void {
        const begin = self.room.begin;
        const experts = self.room.expert[0 .. self.tokens * self.mixture.chosen];
        @memset(begin, 0);
        for (experts) |e| begin[e + 1] += 1;
        for (begin[1..], begin[0 .. begin.len - 1]) |*b, before| b.* += before;
        for (experts, self.room.place[0..experts.len]) |e, *place| {
            place.* = begin[e];
            begin[e] += 1;
        }
        // Each begin has moved to the end of its expert, which is the begin of the next.
        std.mem.copyBackwards(u32, begin[1..], begin[0 .. begin.len - 1]);
        begin[0] = 0;
    }

    fn gather(self: Pass, t: usize, _: usize) void {
        const k = self.mixture.chosen;
        for (self.room.place[t * k ..][0..k]) |place| @memcpy(self.room.rows[place * self.hidden ..][0..self.hidden], self.inp[t * self.hidden ..][0..self.hidden]);
    }

    /// outs[i] = inp · sides[i], for each place with its expert.
    fn multiply(self: Pass, machine: Machine, sides: []const []const Linear, outs: []const []f32, inp: []const f32, which: matrix.Tokens) void {
        var count: usize = 0;
        const begin = self.room.begin;
        for (begin[0 .. begin.len - 1], begin[1..], 0..) |first, end, e| {
            if (first == end) continue;
            for (sides, outs) |side, out| {
                const width = side[e].weight.rows;
                self.room.jobs[count] = .{ .linear = &side[e], .out = out[first * width .. end * width], .part = .{ .first = first, .count = end - first } };
                count += 1;
            }
        }
        matrix.multiply(machine.pool, machine.scratch, machine.rounded, self.room.jobs[0..count], inp, self.tokens * self.mixture.chosen, which);
    }

    fn activate(self: Pass, index: usize, _: usize) void {
        const m = self.mixture;
        const len = self.tokens * m.chosen * m.gate[0].weight.rows;
        const start = index * part;
        const gate = self.room.gate[start..@min(start + part, len)];
        kernels.table(f32).clamped_swiglu_forward(gate.len, gate.ptr, gate.ptr, self.room.up[start..].ptr, m.alpha, m.limit);
    }

    fn combine(self: Pass, t: usize, _: usize) void {
        const k = self.mixture.chosen;
        const out = self.out[t * self.hidden ..][0..self.hidden];
        @memset(out, 0);
        for (self.room.place[t * k ..][0..k], self.room.weight[t * k ..][0..k]) |place, w| {
            kernels.table(f32).add_scaled(out.len, out.ptr, w, self.room.rows[place * self.hidden ..].ptr);
        }
    }
};

const testing = std.testing;

fn randomLinear(arena: std.mem.Allocator, prng: *base.Prng, rows: usize, columns: usize) !Linear {
    const values = try arena.alloc(f32, rows * columns);
    const scale = 1 / @sqrt(@as(f64, @floatFromInt(columns)));
    for (values) |*v| v.* = @floatCast(prng.normal() * scale);
    const bias = try arena.alloc(f32, rows);
    for (bias) |*v| v.* = @floatCast(0.3 * prng.normal());
    return .{ .weight = .{ .dtype = .f32, .rows = rows, .columns = columns, .bytes = std.mem.sliceAsBytes(values) }, .bias = bias };
}

fn number(linear: *const Linear, row: usize, x: []const f64) f64 {
    var sum: f64 = linear.bias.?[row];
    for (linear.weight.rowsF32(row, 1, &.{}), x) |w, v| sum += w * v;
    return sum;
}

test "a mixture is its definition, in both ways, for any number of tokens and threads" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const a = arena.allocator();
    var prng: base.Prng = .init(12);
    const experts = 7;
    const chosen = 3;
    const hidden = 20;
    const inner = 33;
    const tokens = 41;
    var sides: [3][experts]Linear = undefined;
    for (&sides, [_][2]usize{ .{ inner, hidden }, .{ inner, hidden }, .{ hidden, inner } }) |*side, shape| {
        for (side) |*linear| linear.* = try randomLinear(a, &prng, shape[0], shape[1]);
    }
    const mixture: Mixture = .{
        .router = try randomLinear(a, &prng, experts, hidden),
        .gate = &sides[0],
        .up = &sides[1],
        .down = &sides[2],
        .chosen = chosen,
        .limit = 0.9,
        .alpha = 1.702,
    };
    const inp = try a.alloc(f32, tokens * hidden);
    for (inp) |*v| v.* = @floatCast(prng.normal());

    const wanted = try a.alloc(f64, tokens * hidden);
    for (0..tokens) |t| {
        var x: [hidden]f64 = undefined;
        for (&x, inp[t * hidden ..][0..hidden]) |*to, from| to.* = from;
        var logits: [experts]f64 = undefined;
        for (&logits, 0..) |*l, e| l.* = number(&mixture.router, e, &x);
        var order: [experts]usize = undefined;
        for (&order, 0..) |*o, e| o.* = e;
        std.mem.sort(usize, &order, logits, struct {
            fn before(l: [experts]f64, i: usize, j: usize) bool {
                return l[i] > l[j];
            }
        }.before);
        var total: f64 = 0;
        for (order[0..chosen]) |e| total += @exp(logits[e]);
        const out = wanted[t * hidden ..][0..hidden];
        @memset(out, 0);
        for (order[0..chosen]) |e| {
            var act: [inner]f64 = undefined;
            for (&act, 0..) |*to, r| {
                const gate = @min(number(&sides[0][e], r, &x), 0.9);
                to.* = gate / (1 + @exp(-1.702 * gate)) * (std.math.clamp(number(&sides[1][e], r, &x), -0.9, 0.9) + 1);
            }
            for (out, 0..) |*to, r| to.* += @exp(logits[e]) / total * number(&sides[2][e], r, &act);
        }
    }

    var first: ?[2][]f32 = null;
    for ([_]usize{ 1, 3 }) |n| {
        const pool = try base.Pool.init(testing.allocator, n);
        defer pool.deinit();
        const scratch = try a.alloc(matrix.Scratch, n);
        for (scratch) |*one| one.* = try .init(a, inner);
        const rounded: matrix.Rounded = try .initWide(a, tokens, hidden, tokens * chosen * inner);
        const room: Room = try .init(a, .{ .tokens = tokens, .experts = experts, .chosen = chosen, .hidden = hidden, .inner = inner });
        const machine: Machine = .{ .pool = pool, .scratch = scratch, .rounded = &rounded };
        var outs: [2][]f32 = undefined;
        for (&outs, std.enums.values(matrix.Tokens)) |*out, which| {
            out.* = try a.alloc(f32, tokens * hidden);
            run(machine, &mixture, &room, inp, out.*, tokens, which);
            for (wanted, out.*) |w, o| try testing.expectApproxEqAbs(w, o, 3e-6);
            var alone: [hidden]f32 = undefined;
            for (0..tokens) |t| {
                run(machine, &mixture, &room, inp[t * hidden ..][0..hidden], &alone, 1, which);
                try testing.expectEqualSlices(f32, out.*[t * hidden ..][0..hidden], &alone);
            }
        }
        if (first) |f| {
            for (f, outs) |want, have| try testing.expectEqualSlices(f32, want, have);
        } else first = outs;
    }
}

test "of equal experts the first is taken, and a router that gives no numbers gives none" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const room: Room = try .init(arena.allocator(), .{ .tokens = 1, .experts = 5, .chosen = 2, .hidden = 1, .inner = 1 });
    const linears: [5]Linear = undefined;
    const mixture: Mixture = .{ .router = undefined, .gate = &linears, .up = &linears, .down = &linears, .chosen = 2, .limit = 7, .alpha = 1.702 };
    const pass: Pass = .{ .mixture = &mixture, .room = &room, .inp = &.{}, .out = &.{}, .tokens = 1, .hidden = 1 };
    const nan = std.math.nan(f32);
    const Case = struct { logits: [5]f32, best: [2]u32 };
    for ([_]Case{
        .{ .logits = .{ 1, 3, 3, 3, 2 }, .best = .{ 1, 2 } },
        .{ .logits = .{ 0, 0, 0, 0, 0 }, .best = .{ 0, 1 } },
        .{ .logits = .{ -5, -4, -3, -2, -1 }, .best = .{ 4, 3 } },
    }) |case| {
        @memcpy(room.logits, &case.logits);
        pass.choose(0, 0);
        try testing.expectEqualSlices(u32, &case.best, room.expert);
        try testing.expectApproxEqAbs(@as(f32, 1), room.weight[0] + room.weight[1], 1e-6);
    }
    for ([_][5]f32{ @splat(nan), .{ nan, nan, nan, nan, 1 }, .{ nan, 2, nan, 1, 3 }, .{ 1, nan, nan, nan, nan } }) |logits| {
        @memcpy(room.logits, &logits);
        pass.choose(0, 0);
        try testing.expect(room.expert[0] != room.expert[1] and room.expert[0] < 5 and room.expert[1] < 5);
        for (room.weight) |w| try testing.expect(w != w);
    }
}
