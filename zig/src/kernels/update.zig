//! Optimizer updates over one array. The formulas and their order of rounding are those of `ops/optimizer.zig`.

const lanes = @import("lanes.zig");
const UpdateArgs = @import("update_args.zig").UpdateArgs;

pub fn Kernels(comptime T: type) type {
    return struct {
        const V = lanes.Vector(T);
        const vl = lanes.width(T);

        pub fn sgd(n: usize, w: [*]T, g: [*]const T, args: *const UpdateArgs(T)) callconv(.c) void {
            const lr: V = @splat(-args.lr);
            var i: usize = 0;
            while (i < n) : (i += vl) {
                const have = if (n - i < vl) n - i else vl;
                const weight = some(w + i, have);
                put(w + i, lanes.mulAdd(T, lr, gradient(g + i, weight, have, args), weight), have);
            }
        }

        /// Adam and AdamW: they differ in `l2` and `decay`, one of which is neutral.
        pub fn adam(n: usize, w: [*]T, g: [*]const T, m: [*]T, v: [*]T, args: *const UpdateArgs(T)) callconv(.c) void {
            const decay: V = @splat(args.decay);
            const beta2: V = @splat(args.beta2);
            const c1: V = @splat(args.one_minus_beta1);
            const c2: V = @splat(args.one_minus_beta2);
            const root: V = @splat(args.root);
            const eps: V = @splat(args.eps);
            const step: V = @splat(args.step_size);
            var i: usize = 0;
            while (i < n) : (i += vl) {
                const have = if (n - i < vl) n - i else vl;
                const before = some(w + i, have);
                const grad = gradient(g + i, before, have, args);
                const m_old = some(m + i, have);
                const m_new = lanes.mulAdd(T, c1, grad - m_old, m_old);
                const v_new = lanes.mulAdd(T, c2 * grad, grad, beta2 * some(v + i, have));
                put(m + i, m_new, have);
                put(v + i, v_new, have);
                put(w + i, before * decay - step * m_new / (@sqrt(v_new) / root + eps), have);
            }
        }

        inline fn gradient(g: [*]const T, w: V, have: usize, args: *const UpdateArgs(T)) V {
            const scaled = some(g, have) * @as(V, @splat(args.grad_scale));
            return if (args.l2 == 0) scaled else lanes.mulAdd(T, @splat(args.l2), w, scaled);
        }

        inline fn some(p: [*]const T, have: usize) V {
            return if (have == vl) lanes.load(T, p) else lanes.loadPart(T, p, have, 0);
        }

        inline fn put(p: [*]T, v: V, have: usize) void {
            if (have == vl) lanes.store(T, p, v) else lanes.storePart(T, p, v, have);
        }
    };
}
