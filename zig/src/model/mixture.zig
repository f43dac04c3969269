//! The experts of a layer, forward and backward: the router, the products of those it chose, the adapter's share.
//!
//!     b = normed input   r = Wr·b + br   T = the k largest of r   g = softmax(r[T])
//!     out += Σ over e in T of g_e · (act(b·Wgu_e + bgu_e) · Wd_e + bd_e)
//!
//! Experts' weights are [in, out] each, an expert after the other; stored ones may be turned. Tokens are gathered by expert, and only experts that were chosen are touched, weights and gradients alike. The router is
//! computed in full precision always: a rounded logit would send a token elsewhere. An adapter's A of all experts is
//! [E·rank, in], its B [out, rank·E] with the experts fastest, turned before use.
//! Does not know: the norm before it, the residual stream, whether weights are trained.

const std = @import("std");
const arch = @import("arch");
const ops = @import("ops");
const weights_file = @import("weights.zig");
const activations_file = @import("activations.zig");
const projection_file = @import("projection.zig");

pub fn Mixture(comptime T: type) type {
    return struct {
        config: *const arch.ModelConfig,
        layout: *const arch.Layout,
        exec: *ops.Exec,
        projection: *const projection_file.Projection(T),
        scratch: *activations_file.Activations(T).Experts,

        const Self = @This();
        const Layer = activations_file.Activations(T).Layer;
        const Weights = weights_file.Weights(T);
        const Gradients = weights_file.Gradients(T);
        const Own = projection_file.Projection(T).Own;
        const Groups = ops.experts.Groups;

        /// out (N, C) += what the experts make of `normed` (N, C). Without `out`, only what backward needs is computed.
        pub fn forward(self: Self, weights: Weights, layer: *Layer, l: u32, normed: []const T, out: ?[]T) void {
            const n = normed.len / self.columns();
            const groups = self.route(weights, layer, l, normed, n);
            const r = groups.slots.len;
            const rows = self.scratch.rows[0 .. r * self.columns()];
            const gate_up = layer.gate_up[0 .. r * 2 * self.width()];
            ops.experts.gather(T, self.exec, rows, normed, groups, self.columns());
            self.products(weights, l, .experts_gate_up, gate_up, rows, groups);

            const into = out orelse return;
            const act = self.scratch.act[0 .. r * self.width()];
            const outputs = self.scratch.outputs[0 .. r * self.columns()];
            ops.experts.activate(T, self.exec, act, gate_up, self.gate(), r);
            self.products(weights, l, .experts_down, outputs, act, groups);
            ops.experts.scatter(T, self.exec, into, outputs, layer.routed[0..r], groups, self.columns(), .accumulate);
        }

        /// dnormed (N, C) = the gradient by the input from `dout` (N, C); gradients of what is trained accumulate. `normed` is read only if
        /// `wantsInput`. What forward kept is overwritten, but not the router's logits.
        pub fn backward(self: Self, weights: Weights, gradients: Gradients, layer: *Layer, l: u32, dnormed: []T, dout: []const T, normed: []const T, balance: ?Balance) void {
            const c = self.columns();
            const n = dout.len / c;
            const s = self.scratch;
            const groups = self.group(layer, n);
            const r = groups.slots.len;
            const act = s.act[0 .. r * self.width()];
            const dact = s.dact[0 .. r * self.width()];
            const rows = s.rows[0 .. r * c];
            const drows = s.outputs[0 .. r * c];
            const gate_up = layer.gate_up[0 .. r * 2 * self.width()];

            ops.experts.gather(T, self.exec, drows, dout, groups, c);
            self.backwardInputs(weights, l, .experts_down, dact, drows, groups);
            ops.experts.backward(T, self.exec, .{
                .gate_up = gate_up,
                .act = act,
                .dact = dact,
                .dout = drows,
                .bias = self.numbers(weights, l, .experts_down_bias),
                .chosen = layer.chosen[0..r],
                .weights = layer.routed[0..r],
                .dweights = s.drouted[0..r],
                .groups = groups,
                .gate = self.gate(),
                .width = self.width(),
                .columns = c,
            });
            self.backwardWeights(weights, gradients, l, .experts_down, drows, act, groups);
            self.backwardInputs(weights, l, .experts_gate_up, drows, gate_up, groups);
            ops.experts.scatter(T, self.exec, dnormed, drows, null, groups, c, .store);
            if (self.wantsInput(gradients, l)) {
                ops.experts.gather(T, self.exec, rows, normed, groups, c);
                self.backwardWeights(weights, gradients, l, .experts_gate_up, gate_up, rows, groups);
            }
            self.backwardRouter(weights, gradients, layer, l, dnormed, normed, n, balance);
        }

        /// Whether `backward` reads its `normed`.
        pub fn wantsInput(self: Self, gradients: Gradients, l: u32) bool {
            return self.projection.wantsInput(gradients, .{ .layer = l, .target = .experts_gate_up });
        }

        // ---- the router ----

        fn route(self: Self, weights: Weights, layer: *Layer, l: u32, normed: []const T, n: usize) Groups {
            const experts: usize = self.config.num_local_experts;
            const k: usize = self.config.num_experts_per_tok;
            const logits = layer.router[0 .. n * experts];
            const compute = self.inFull();
            defer self.exec.compute = compute;

            const p = self.layout.get(l, .router_weight).?;
            const bias = self.numbers(weights, l, .router_bias);
            switch (weights.base) {
                .dense => |flat| ops.matmul.forward(T, self.exec, logits, normed, p.sliceConst(T, flat), bias, n, experts, self.columns(), .store),
                .frozen => |matrices| ops.frozen.forward(T, self.exec, logits, normed, matrices[self.layout.positionOf(p)], bias, n, .store),
            }
            ops.router.choose(T, self.exec, layer.chosen[0 .. n * k], layer.routed[0 .. n * k], logits, n, experts, k);
            return self.group(layer, n);
        }

        fn group(self: Self, layer: *const Layer, n: usize) Groups {
            const s = self.scratch;
            const k: usize = self.config.num_experts_per_tok;
            return .fill(s.starts, s.slots, s.row_of, layer.chosen[0 .. n * k], k);
        }

        /// dnormed += the gradient through the choice's weights.
        fn backwardRouter(self: Self, weights: Weights, gradients: Gradients, layer: *const Layer, l: u32, dnormed: []T, normed: []const T, n: usize, balance: ?Balance) void {
            const experts: usize = self.config.num_local_experts;
            const k: usize = self.config.num_experts_per_tok;
            const dlogits = self.scratch.drouter[0 .. n * experts];
            ops.router.backward(T, self.exec, dlogits, self.scratch.drouted[0 .. n * k], layer.chosen[0 .. n * k], layer.routed[0 .. n * k], n, experts, k);
            if (balance) |b| ops.balance.backward(T, self.exec, dlogits, layer.router[0 .. n * experts], self.sums(), self.balanced(b.rows), b.scale, b.rows);
            const compute = self.inFull();
            defer self.exec.compute = compute;

            const p = self.layout.get(l, .router_weight).?;
            switch (weights.base) {
                .dense => |flat| ops.matmul.backwardInput(T, self.exec, dnormed, dlogits, p.sliceConst(T, flat), n, experts, self.columns(), .accumulate),
                .frozen => |matrices| ops.frozen.backwardInput(T, self.exec, dnormed, dlogits, matrices[self.layout.positionOf(p)], n, .accumulate),
            }
            switch (gradients) {
                .base => |flat| ops.matmul.backwardWeight(T, self.exec, p.slice(T, flat), self.layout.get(l, .router_bias).?.slice(T, flat), dlogits, normed, n, experts, self.columns()),
                .adapter => {},
            }
        }

        /// Returns what was set before.
        fn inFull(self: Self) ops.Compute {
            defer self.exec.compute = .full;
            return self.exec.compute;
        }

        // ---- the routers' balance loss ----

        /// What backward adds of it: `scale` times the gradient.
        pub const Balance = struct { rows: ops.balance.Rows, scale: f64 };

        /// After `forward` of a layer: adds it to the sums.
        pub fn addBalance(self: Self, layer: *const Layer, rows: ops.balance.Rows) void {
            const n = rows.total;
            const size = n * self.config.num_local_experts;
            const k: usize = self.config.num_experts_per_tok;
            ops.balance.add(T, self.exec, self.sums(), self.scratch.drouter[0..size], layer.router[0..size], layer.chosen[0 .. n * k], rows, k);
        }

        /// The loss of all layers, once each was added.
        pub fn balanceLoss(self: Self, rows: ops.balance.Rows) f64 {
            return self.sums().loss(self.balanced(rows));
        }

        pub fn sums(self: Self) ops.balance.Sums {
            return .{ .chosen = self.scratch.balance_chosen, .probabilities = self.scratch.balance_probabilities };
        }

        /// Tokens that count, once for each layer.
        fn balanced(self: Self, rows: ops.balance.Rows) usize {
            return rows.count() * self.config.num_hidden_layers;
        }

        // ---- products with the experts' weights ----

        /// out [R, out] = inp [R, in] · W_e + b_e, and the adapter's share.
        fn products(self: Self, weights: Weights, l: u32, target: arch.Target, out: []T, inp: []const T, groups: Groups) void {
            const p = target.weightOf(self.layout, l);
            const in, const wide = p.shape;
            const bias = self.numbers(weights, l, target.biasRole().?);
            switch (weights.base) {
                .dense => |flat| ops.grouped.forward(T, self.exec, out, inp, p.sliceConst(T, flat), bias, groups.starts, in, wide),
                .frozen => |matrices| for (0..groups.experts()) |e| {
                    const first, const m = groups.of(e);
                    if (m == 0) continue;
                    const to = out[first * wide ..][0 .. m * wide];
                    const from = inp[first * in ..][0 .. m * in];
                    const stored = matrices[self.layout.positionOf(p)].of(e);
                    ops.experts.spread(T, self.exec, to, bias[e * wide ..][0..wide]);
                    if (stored.turned) ops.frozen.forward(T, self.exec, to, from, stored, null, m, .accumulate) else ops.frozen.backwardInput(T, self.exec, to, from, stored, m, .accumulate);
                },
            }
            const own = self.moduleAt(weights, l, target) orelse return;
            const rank = own.module.rank;
            for (0..groups.experts()) |e| {
                const first, const m = groups.of(e);
                if (m == 0) continue;
                const low = own.product[first * rank ..][0 .. m * rank];
                ops.matmul.forward(T, self.exec, low, inp[first * in ..][0 .. m * in], own.aOf(e), null, m, rank, in, .store);
                ops.elementwise.scale(T, self.exec, low, own.scale());
                ops.matmul.forward(T, self.exec, out[first * wide ..][0 .. m * wide], low, own.bOf(e), null, m, wide, rank, .accumulate);
            }
        }

        /// dinp [R, in] = dout [R, out] · W_eᵀ, through the adapter as well.
        fn backwardInputs(self: Self, weights: Weights, l: u32, target: arch.Target, dinp: []T, dout: []const T, groups: Groups) void {
            const p = target.weightOf(self.layout, l);
            const in, const wide = p.shape;
            switch (weights.base) {
                .dense => |flat| ops.grouped.backwardInput(T, self.exec, dinp, dout, p.sliceConst(T, flat), groups.starts, in, wide),
                .frozen => |matrices| for (0..groups.experts()) |e| {
                    const first, const m = groups.of(e);
                    if (m == 0) continue;
                    const to = dinp[first * in ..][0 .. m * in];
                    const from = dout[first * wide ..][0 .. m * wide];
                    const stored = matrices[self.layout.positionOf(p)].of(e);
                    if (stored.turned) ops.frozen.backwardInput(T, self.exec, to, from, stored, m, .store) else ops.frozen.forward(T, self.exec, to, from, stored, null, m, .store);
                },
            }
            const own = self.moduleAt(weights, l, target) orelse return;
            for (0..groups.experts()) |e| {
                const first, const m = groups.of(e);
                if (m == 0) continue;
                const dlow = self.gradientOfLow(own, e, dout[first * wide ..][0 .. m * wide], m, wide);
                ops.matmul.backwardInput(T, self.exec, dinp[first * in ..][0 .. m * in], dlow, own.aOf(e), m, own.module.rank, in, .accumulate);
            }
        }

        /// Gradients of what is trained: the weights and biases of experts, or their adapter.
        fn backwardWeights(self: Self, weights: Weights, gradients: Gradients, l: u32, target: arch.Target, dout: []const T, inp: []const T, groups: Groups) void {
            const p = target.weightOf(self.layout, l);
            const in, const wide = p.shape;
            const flat = switch (gradients) {
                .base => |flat| return ops.grouped.backwardWeight(T, self.exec, p.slice(T, flat), self.layout.get(l, target.biasRole().?).?.slice(T, flat), dout, inp, groups.starts, in, wide),
                .adapter => |flat| flat,
            };
            const own = self.moduleAt(weights, l, target) orelse return;
            const rank = own.module.rank;
            const dturned = self.projection.low.?.dturned[0..own.module.b.len];
            ops.elementwise.fill(T, self.exec, dturned, 0);
            for (0..groups.experts()) |e| {
                const first, const m = groups.of(e);
                if (m == 0) continue;
                const from = dout[first * wide ..][0 .. m * wide];
                const low = own.product[first * rank ..][0 .. m * rank];
                ops.matmul.backwardWeight(T, self.exec, dturned[e * wide * rank ..][0 .. wide * rank], null, from, low, m, wide, rank);
                const dlow = self.gradientOfLow(own, e, from, m, wide);
                const da = own.module.a.slice(T, flat)[e * rank * in ..][0 .. rank * in];
                ops.matmul.backwardWeight(T, self.exec, da, null, dlow, inp[first * in ..][0 .. m * in], m, rank, in);
            }
            ops.experts.turn(T, self.exec, own.module.b.slice(T, flat), dturned, groups.experts(), wide * rank, .accumulate);
        }

        // ---- the adapter's share ----

        /// A module of the adapter with its second factor turned.
        const Adapted = struct {
            module: *const arch.AdapterModule,
            a: []const T,
            turned: []const T,
            product: []align(64) T,

            fn scale(self: Adapted) T {
                return @floatCast(self.module.scale);
            }

            fn aOf(self: Adapted, e: usize) []const T {
                const size = self.module.rank * self.module.in;
                return self.a[e * size ..][0..size];
            }

            fn bOf(self: Adapted, e: usize) []const T {
                const size = self.module.rank * self.module.out;
                return self.turned[e * size ..][0..size];
            }
        };

        fn moduleAt(self: Self, weights: Weights, l: u32, target: arch.Target) ?Adapted {
            const own = self.projection.moduleAt(weights, .{ .layer = l, .target = target }) orelse return null;
            std.debug.assert(own.dropout.probability == 0); // Settings refuse it.
            const m = own.module;
            const turned = self.projection.low.?.turned[0..m.b.len];
            ops.experts.turn(T, self.exec, turned, own.b, m.out * m.rank, m.experts, .store);
            return .{ .module = m, .a = own.a, .turned = turned, .product = own.product };
        }

        /// s · dout · B_e
        fn gradientOfLow(self: Self, own: Adapted, e: usize, dout: []const T, m: usize, wide: usize) []const T {
            const dlow = self.projection.low.?.gradient[0 .. m * own.module.rank];
            ops.matmul.backwardInput(T, self.exec, dlow, dout, own.bOf(e), m, wide, own.module.rank, .store);
            ops.elementwise.scale(T, self.exec, dlow, own.scale());
            return dlow;
        }

        fn numbers(self: Self, weights: Weights, l: u32, role: arch.Role) []const T {
            return weights.vector(self.layout, self.layout.get(l, role).?);
        }

        fn gate(self: Self) ops.experts.Gate(T) {
            return .{ .limit = @floatCast(self.config.swiglu_limit), .alpha = @floatCast(self.config.swiglu_alpha) };
        }

        fn columns(self: Self) usize {
            return self.config.hidden_size;
        }

        fn width(self: Self) usize {
            return self.config.intermediate_size;
        }
    };
}
