//! The activation of gpt-oss's experts: gate and up in turn in one row, clamped, gate · sigmoid(alpha · gate) · (up + 1).
//!
//! gate is clamped from above, up from both sides; a limit of +inf clamps nothing. Beyond a limit the gradient is 0, at the
//! limit it is what it is below, as torch has it. The last vector of a row is filled up and goes through the same arithmetic.

const lanes = @import("lanes.zig");

pub fn Kernels(comptime T: type) type {
    return struct {
        const V = lanes.Vector(T);
        const vl = lanes.width(T);
        const Pair = [2]V;

        /// out[i] = act(gate_up[2i], gate_up[2i + 1])
        pub fn expert_forward(n: usize, out: [*]T, gate_up: [*]const T, limit: T, alpha: T) callconv(.c) void {
            var i: usize = 0;
            while (i + vl <= n) : (i += vl) lanes.store(T, out + i, activation(load(gate_up + 2 * i), limit, alpha));
            if (i < n) lanes.storePart(T, out + i, activation(loadPart(gate_up + 2 * i, 2 * (n - i)), limit, alpha), n - i);
        }

        /// dgate_up = factor · dout · (derivative by gate, derivative by up), in turn. dgate_up may alias gate_up.
        pub fn expert_backward(n: usize, dgate_up: [*]T, dout: [*]const T, gate_up: [*]const T, limit: T, alpha: T, factor: T) callconv(.c) void {
            var i: usize = 0;
            while (i + vl <= n) : (i += vl) {
                const d = derivative(lanes.load(T, dout + i) * @as(V, @splat(factor)), load(gate_up + 2 * i), limit, alpha);
                lanes.store(T, dgate_up + 2 * i, d[0]);
                lanes.store(T, dgate_up + 2 * i + vl, d[1]);
            }
            if (i == n) return;
            const rest = 2 * (n - i);
            const d = derivative(lanes.loadPart(T, dout + i, n - i, 0) * @as(V, @splat(factor)), loadPart(gate_up + 2 * i, rest), limit, alpha);
            lanes.storePart(T, dgate_up + 2 * i, d[0], if (rest < vl) rest else vl);
            if (rest > vl) lanes.storePart(T, dgate_up + 2 * i + vl, d[1], rest - vl);
        }

        const one: V = @splat(1);

        inline fn activation(x: Pair, limit: T, alpha: T) V {
            const most: V = @splat(limit);
            const gate = @min(x[0], most);
            const up = @max(@min(x[1], most), -most);
            return gate * sigmoid(gate, alpha) * (up + one);
        }

        /// By gate and by up, in turn.
        inline fn derivative(d: V, x: Pair, limit: T, alpha: T) Pair {
            const most: V = @splat(limit);
            const a: V = @splat(alpha);
            const gate = @min(x[0], most);
            const up = @max(@min(x[1], most), -most);
            const s = sigmoid(gate, alpha);
            const none: V = @splat(0);
            const by_gate = @select(T, x[0] <= most, d * (up + one) * (s * (one + a * gate * (one - s))), none);
            const by_up = @select(T, @abs(x[1]) <= most, d * (gate * s), none);
            return .{ @shuffle(T, by_gate, by_up, low_turn), @shuffle(T, by_gate, by_up, high_turn) };
        }

        inline fn sigmoid(gate: V, alpha: T) V {
            return one / (one + lanes.exp(T, gate * @as(V, @splat(-alpha))));
        }

        /// Gates and ups of `vl` units.
        inline fn load(p: [*]const T) Pair {
            return apart(lanes.load(T, p), lanes.load(T, p + vl));
        }

        inline fn loadPart(p: [*]const T, count: usize) Pair {
            const first = lanes.loadPart(T, p, if (count < vl) count else vl, 0);
            return apart(first, if (count > vl) lanes.loadPart(T, p + vl, count - vl, 0) else @as(V, @splat(0)));
        }

        inline fn apart(a: V, b: V) Pair {
            return .{ @shuffle(T, a, b, evenOf(0)), @shuffle(T, a, b, evenOf(1)) };
        }

        /// Every second lane of two vectors, from `begin` on.
        fn evenOf(comptime begin: i32) @Vector(vl, i32) {
            comptime var mask: [vl]i32 = undefined;
            inline for (&mask, 0..) |*m, j| {
                const lane: i32 = 2 * @as(i32, j) + begin;
                m.* = if (lane < vl) lane else ~(lane - vl);
            }
            return mask;
        }

        const low_turn = turn(0);
        const high_turn = turn(vl / 2);

        /// Lanes of two vectors in turn, from lane `begin` of each on.
        fn turn(comptime begin: i32) @Vector(vl, i32) {
            comptime var mask: [vl]i32 = undefined;
            inline for (&mask, 0..) |*m, j| {
                const lane: i32 = begin + @as(i32, j) / 2;
                m.* = if (j % 2 == 0) lane else ~lane;
            }
            return mask;
        }
    };
}
