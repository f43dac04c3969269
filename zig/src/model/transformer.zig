//! Transformer of the Llama family and of gpt-oss: forward and backward, wired from `ops`.
//!
//!     h = embed[ids]
//!     per layer:  h += Wo · attention(rope(norm?(Wq n)), rope(norm?(Wk n)), Wv n),  n = rms_norm(h)
//!                 h += Wdown · (silu(Wgate n) ⊙ (Wup n)),                           n = rms_norm(h)
//!     loss = cross_entropy(head · rms_norm(h), targets)
//!
//! gpt-oss has sinks in its attention, a window in every other layer, and experts (mixture.zig) in the place of the dense MLP.
//!
//! Layout: activations are (B·T, width) row-major, a token a row. Gradients accumulate into the caller's flat buffer,
//! so several micro-batches add up to one update; the scale (1 / number of targets) is given by the caller, who alone
//! knows the whole update. Weights are only read: all of them are trained, or an adapter's alone, and then backward computes
//! no gradient of the base and goes no deeper than the adapter. Nothing is allocated after `init`.
//! Does not know: files, data, optimizers, text.

const std = @import("std");
const arch = @import("arch");
const ops = @import("ops");
const activations_file = @import("activations.zig");
const weights_file = @import("weights.zig");
const projection_file = @import("projection.zig");
const mixture_file = @import("mixture.zig");

pub const Capacity = activations_file.Capacity;

/// One micro-batch. `input_ids` and `targets` are (batch, time) row-major; target -1 carries no loss.
pub const Batch = struct {
    input_ids: []const u32,
    targets: []const i32,
    batch: usize,
    time: usize,
    /// Tokens of each row, padding follows; null: `time`. Padding does not count in the routers' balance loss.
    lengths: ?[]const u32 = null,
    /// Position of each token for RoPE; null: 0, 1, … in each row.
    positions: ?[]const u32 = null,
    /// First position in its row that each token may see (packed documents); null: 0.
    first: ?[]const u32 = null,

    pub fn tokens(self: Batch) usize {
        return self.batch * self.time;
    }
};

/// Sums over targets, in f64 and unscaled.
pub const Loss = ops.cross_entropy.Result;

/// What the head does with the hidden states.
pub fn LossOptions(comptime T: type) type {
    return struct {
        /// Multiplies the gradient: 1 / number of targets of the whole update.
        scale: T = 1,
        /// (batch·time): multiplies `scale` row by row.
        row_scale: ?[]const T = null,
        label_smoothing: T = 0,
        /// Multiplies the gradient of the routers' balance loss: its coefficient, by the micro-batch's share of the update. Must be 0
        /// where the model does not ask for that loss.
        balance_scale: f64 = 0,
        /// (batch·time): receives the negative log-probability of each row's target, 0 where there is none.
        row_nll: ?[]f64 = null,
        /// (batch·time) each: the mean of a row's logits over the vocabulary, and whether its target is their first maximum.
        row_mean_logit: ?[]f64 = null,
        row_correct: ?[]bool = null,
    };
}

pub fn Transformer(comptime T: type) type {
    return struct {
        config: arch.ModelConfig,
        layout: *const arch.Layout,
        exec: *ops.Exec,
        rope: ops.rope.Table(T),
        activations: activations_file.Activations(T),
        projection: projection_file.Projection(T),

        const Self = @This();
        const Layer = activations_file.Activations(T).Layer;
        const Weights = weights_file.Weights(T);
        const Gradients = weights_file.Gradients(T);
        const Options = LossOptions(T);
        const Kept = projection_file.Projection(T).Kept;
        const head_place: projection_file.Projection(T).Place = .{ .layer = null, .target = .lm_head };

        /// `layout` and `exec` must outlive the transformer, as must the adapter's layout in `capacity`. Caller calls `deinit`.
        pub fn init(
            gpa: std.mem.Allocator,
            config: arch.ModelConfig,
            layout: *const arch.Layout,
            exec: *ops.Exec,
            capacity: Capacity,
        ) error{OutOfMemory}!Self {
            const frequencies = try gpa.alloc(f32, config.head_dim / 2);
            defer gpa.free(frequencies);

            arch.rope.inverseFrequencies(config, frequencies);
            var rope = try ops.rope.Table(T).init(gpa, frequencies, capacity.time, arch.rope.magnitude(config));
            errdefer rope.deinit();

            const tokens = capacity.batch * capacity.time;
            const need: ops.Exec.Need = .{
                .attention_time = capacity.time,
                .attention_head_dim = config.head_dim,
                .vocab_size = config.vocab_size,
                .loss_rows = tokens,
                .loss_columns = config.hidden_size,
                .frozen_columns = if (capacity.frozen) widest(layout) else 0,
            };
            var wanted = capacity;
            wanted.head_bytes = if (capacity.lends) try ops.Exec.sharedBytes(T, need) else 0;
            var activations: activations_file.Activations(T) = try .init(gpa, config, wanted);
            errdefer activations.deinit();

            if (capacity.lends) exec.lend(activations.idle);
            errdefer exec.takeBack(activations.idle);

            const low = if (capacity.adapter) |adapter|
                try projection_file.LowRank(T).init(activations.arena.allocator(), adapter, tokens, config.num_experts_per_tok, capacity.dropout)
            else
                null;
            try exec.reserve(T, need);
            return .{
                .config = config,
                .layout = layout,
                .exec = exec,
                .rope = rope,
                .activations = activations,
                .projection = .{ .layout = layout, .exec = exec, .low = low },
            };
        }

        pub fn deinit(self: *Self) void {
            self.exec.takeBack(self.activations.idle);
            self.activations.deinit();
            self.rope.deinit();
            self.* = undefined;
        }

        fn widest(layout: *const arch.Layout) usize {
            var columns: usize = 0;
            for (layout.parameters) |p| if (p.rank > 1) {
                columns = @max(columns, p.shape[1]);
            };
            return columns;
        }

        /// Loss of the batch; no gradient.
        pub fn loss(self: *Self, weights: Weights, batch: Batch, options: Options) Loss {
            self.forward(weights, batch);
            return self.headLoss(weights, null, batch, options, null);
        }

        /// Loss of the batch; adds `scale` times its gradient to `gradients`.
        pub fn lossAndGradient(self: *Self, weights: Weights, gradients: Gradients, batch: Batch, options: Options) Loss {
            self.forward(weights, batch);
            return self.gradient(weights, gradients, batch, options);
        }

        /// The second half of `lossAndGradient`, after `loss` with the same weights and batch and nothing in between:
        /// for objectives whose `row_scale` follows from the losses of the rows.
        pub fn gradient(self: *Self, weights: Weights, gradients: Gradients, batch: Batch, options: Options) Loss {
            switch (gradients) {
                .base => |flat| {
                    std.debug.assert(flat.len == self.layout.total);
                    std.debug.assert(weights.adapter == null);
                },
                .adapter => |flat| std.debug.assert(flat.len == weights.adapter.?.layout.total),
            }
            const dhidden = self.hiddenGradient(batch);
            const result = self.headLoss(weights, gradients, batch, options, dhidden);
            self.backward(weights, gradients, batch, dhidden, options.balance_scale);
            return result;
        }

        /// `loss`, together with the gradient by the hidden states, which stays in the scratch for `gradientFromKept`. Costs one
        /// product with the head less than `loss` and `gradient`, and is for frozen heads: the head gets no gradient.
        pub fn lossKeepingGradient(self: *Self, weights: Weights, batch: Batch, options: Options) Loss {
            std.debug.assert(weights.adapter.?.layout.get(null, .lm_head) == null);
            self.forward(weights, batch);
            return self.headLoss(weights, null, batch, options, self.hiddenGradient(batch));
        }

        /// After `lossKeepingGradient` with the same weights and batch: adds the gradient with each row weighted by `row_scale`, and
        /// `balance_scale` times that of the routers' balance loss.
        pub fn gradientFromKept(self: *Self, weights: Weights, gradients: Gradients, batch: Batch, row_scale: []const T, balance_scale: f64) void {
            std.debug.assert(gradients.adapter.len == weights.adapter.?.layout.total);
            const c: usize = self.config.hidden_size;
            const dhidden = self.hiddenGradient(batch);
            std.debug.assert(row_scale.len == batch.tokens());
            for (row_scale, 0..) |factor, row| for (dhidden[row * c ..][0..c]) |*d| {
                d.* *= factor;
            };
            self.backward(weights, gradients, batch, dhidden, balance_scale);
        }

        /// The routers' balance loss of the last forward pass, which was over `batch`: before its coefficient, all layers together. 0 where
        /// the model does not ask for it.
        pub fn balance(self: *Self, batch: Batch) f64 {
            return if (self.config.balances()) self.mixture().balanceLoss(rowsOf(batch)) else 0;
        }

        fn rowsOf(batch: Batch) ops.balance.Rows {
            return .{ .total = batch.tokens(), .time = batch.time, .lengths = batch.lengths };
        }

        /// Where the gradient at the final norm's output lies between the head and the layers.
        fn hiddenGradient(self: *Self, batch: Batch) []T {
            return self.activations.scratch.dnormed[0 .. batch.tokens() * self.config.hidden_size];
        }

        /// Logits (batch·time, vocab_size) into `out`.
        pub fn logits(self: *Self, weights: Weights, batch: Batch, out: []T) void {
            self.logitsFrom(weights, batch, 0, out);
        }

        /// Logits of the tokens from `first` on (batch·time - first, vocab_size) into `out`.
        pub fn logitsFrom(self: *Self, weights: Weights, batch: Batch, first: usize, out: []T) void {
            self.forward(weights, batch);
            const n = batch.tokens() - first;
            const c: usize = self.config.hidden_size;
            std.debug.assert(out.len == n * self.config.vocab_size);
            self.projection.forward(weights, head_place, out, self.activations.hidden[first * c ..][0 .. n * c], n, .store, .make);
        }

        /// The head and the loss; with `gradients` also the gradient of the head, and by its input in `dhidden`.
        fn headLoss(self: *Self, weights: Weights, gradients: ?Gradients, batch: Batch, options: Options, dhidden: ?[]T) Loss {
            const n = batch.tokens();
            const head = self.layout.head();
            const hidden = self.activations.hidden[0 .. n * self.config.hidden_size];
            const result = ops.cross_entropy.run(T, self.exec, .{
                .hidden = hidden,
                .low = self.projection.headLow(weights, gradients, hidden, n),
                .weight = switch (weights.base) {
                    .dense => |flat| .{ .dense = head.sliceConst(T, flat) },
                    .frozen => |matrices| .{ .frozen = matrices[self.layout.positionOf(head)] },
                },
                .vocab_size = self.config.vocab_size,
                .targets = batch.targets,
                .scale = options.scale,
                .row_scale = options.row_scale,
                .label_smoothing = options.label_smoothing,
                .row_nll = options.row_nll,
                .row_mean_logit = options.row_mean_logit,
                .row_correct = options.row_correct,
                .dhidden = dhidden,
                .dweight = if (gradients) |g| switch (g) {
                    .base => |flat| head.slice(T, flat),
                    .adapter => null,
                } else null,
            });
            if (dhidden) |d| self.projection.headBackward(weights, gradients, d, hidden, n);
            return result;
        }

        fn forward(self: *Self, weights: Weights, batch: Batch) void {
            const n = batch.tokens();
            const c: usize = self.config.hidden_size;
            switch (weights.base) {
                .dense => |flat| std.debug.assert(flat.len == self.layout.total),
                .frozen => |matrices| std.debug.assert(matrices.len == self.layout.parameters.len),
            }
            std.debug.assert(batch.input_ids.len == n);
            std.debug.assert(batch.targets.len == n);
            std.debug.assert(batch.batch <= self.activations.capacity.batch);
            std.debug.assert(batch.time <= self.activations.capacity.time);
            self.preparePositions(batch);

            if (batch.lengths) |lengths| std.debug.assert(lengths.len == batch.batch);
            const balances = self.config.balances();
            if (balances) self.mixture().sums().clear();
            const a = &self.activations;
            self.projection.embed(weights, a.layers[0].input[0 .. n * c], batch.input_ids);
            for (a.layers, 0..) |*layer, l| {
                const next = if (l + 1 < a.layers.len) a.layers[l + 1].input else a.last;
                self.forwardAttention(weights, batch, layer, @intCast(l));
                self.forwardMlp(weights, n, layer, @intCast(l), next[0 .. n * c]);
                if (balances) self.mixture().addBalance(layer, rowsOf(batch));
            }
            const norm = weights.vector(self.layout, self.layout.get(null, .final_norm).?);
            ops.rms_norm.forward(T, self.exec, a.hidden[0 .. n * c], a.last_rstd[0..n], a.last[0 .. n * c], norm, n, c, self.eps());
        }

        fn forwardAttention(self: *Self, weights: Weights, batch: Batch, layer: *Layer, l: u32) void {
            const n = batch.tokens();
            const c: usize = self.config.hidden_size;
            const qw = self.config.queryWidth();
            const kvw = self.config.keyValueWidth();
            const normed = self.activations.scratch.normed[0 .. n * c];
            const input = layer.input[0 .. n * c];
            ops.rms_norm.forward(T, self.exec, normed, layer.input_rstd[0..n], input, self.weight(weights, l, .attention_norm), n, c, self.eps());

            const q = layer.q[0 .. n * qw];
            const k = layer.k[0 .. n * kvw];
            const v = layer.v[0 .. n * kvw];
            const norms = self.config.qk_norm;
            const q_out = if (norms) layer.q_raw[0 .. n * qw] else q;
            const k_out = if (norms) layer.k_raw[0 .. n * kvw] else k;
            self.projection.forward(weights, at(l, .q_proj), q_out, normed, n, .store, .make);
            self.projection.forward(weights, at(l, .k_proj), k_out, normed, n, .store, .make);
            self.projection.forward(weights, at(l, .v_proj), v, normed, n, .store, .make);
            const heads: usize = self.config.num_attention_heads;
            const kv_heads: usize = self.config.num_key_value_heads;
            const d: usize = self.config.head_dim;
            if (norms) {
                ops.rms_norm.forward(T, self.exec, q, layer.q_rstd[0 .. n * heads], q_out, self.weight(weights, l, .q_norm), n * heads, d, self.eps());
                ops.rms_norm.forward(T, self.exec, k, layer.k_rstd[0 .. n * kv_heads], k_out, self.weight(weights, l, .k_norm), n * kv_heads, d, self.eps());
            }
            const positions = self.activations.positions[0..n];
            ops.rope.apply(T, self.exec, q, heads, d, &self.rope, positions, .forward);
            ops.rope.apply(T, self.exec, k, kv_heads, d, &self.rope, positions, .forward);

            const attention = layer.attention[0 .. n * qw];
            ops.attention.forward(T, self.exec, attention, layer.lse[0 .. n * heads], q, k, v, self.dims(batch), self.firstVisible(batch, l));
            if (self.layout.get(l, .sinks)) |sinks|
                ops.sinks.forward(T, self.exec, attention, layer.lse[0 .. n * heads], weights.vector(self.layout, sinks), self.dims(batch));

            self.addAttention(weights, n, layer, l, .make);
        }

        /// middle = input + attention · Woᵀ, into the scratch that all layers share.
        fn addAttention(self: *Self, weights: Weights, n: usize, layer: *const Layer, l: u32, kept: Kept) void {
            const c: usize = self.config.hidden_size;
            const qw = self.config.queryWidth();
            const middle = self.activations.scratch.middle[0 .. n * c];
            ops.elementwise.copy(T, self.exec, middle, layer.input[0 .. n * c]);
            self.projection.forward(weights, at(l, .o_proj), middle, layer.attention[0 .. n * qw], n, .accumulate, kept);
        }

        /// `into`: the layer's output; null when backward only needs what lies before it.
        fn forwardMlp(self: *Self, weights: Weights, n: usize, layer: *Layer, l: u32, into: ?[]T) void {
            const c: usize = self.config.hidden_size;
            const f: usize = self.config.intermediate_size;
            const normed = self.activations.scratch.normed[0 .. n * c];
            const middle = self.activations.scratch.middle[0 .. n * c];
            ops.rms_norm.forward(T, self.exec, normed, layer.middle_rstd[0..n], middle, self.weight(weights, l, .mlp_norm), n, c, self.eps());
            if (self.config.hasExperts()) {
                if (into) |out| ops.elementwise.copy(T, self.exec, out, middle);
                return self.mixture().forward(weights, layer, l, normed, into);
            }
            const gate = layer.gate[0 .. n * f];
            const up = layer.up[0 .. n * f];
            const product = self.activations.scratch.product[0 .. n * f];
            self.projection.forward(weights, at(l, .gate_proj), gate, normed, n, .store, .make);
            self.projection.forward(weights, at(l, .up_proj), up, normed, n, .store, .make);
            if (T == f32 and layer.low != null)
                ops.swiglu.forwardLow(self.exec, product, lowPart(layer.low.?, n * f), gate, up)
            else
                ops.swiglu.forward(T, self.exec, product, gate, up);
            const out = into orelse return;
            ops.elementwise.copy(T, self.exec, out, middle);
            self.projection.forward(weights, at(l, .down_proj), out, product, n, .accumulate, .make);
        }

        fn lowPart(low: ops.swiglu.Low, len: usize) ops.swiglu.Low {
            return .{ .gate = low.gate[0..len], .up = low.up[0..len] };
        }

        /// `dhidden` is the gradient at the final norm's output; it is overwritten on the way down.
        fn backward(self: *Self, weights: Weights, gradients: Gradients, batch: Batch, dhidden: []T, balance_scale: f64) void {
            std.debug.assert(balance_scale == 0 or self.config.balances());
            const balanced: ?mixture_file.Mixture(T).Balance = if (balance_scale != 0) .{ .rows = rowsOf(batch), .scale = balance_scale } else null;
            const n = batch.tokens();
            const c: usize = self.config.hidden_size;
            const a = &self.activations;
            const dstream = a.scratch.dstream[0 .. n * c];
            const end = depthOf(gradients, weights, self.config.num_hidden_layers);
            if (end.layer == self.config.num_hidden_layers) return;
            const final = self.layout.get(null, .final_norm).?;
            ops.rms_norm.backward(T, self.exec, dstream, normGradient(gradients, final), dhidden, a.last[0 .. n * c], weights.vector(self.layout, final), a.last_rstd[0..n], n, c, .store);
            var l: u32 = self.config.num_hidden_layers;
            while (l > end.layer) {
                l -= 1;
                const layer = &a.layers[l];
                // What forward left in shared buffers is the last layer's, unless the head has been there since.
                if (l + 1 < self.config.num_hidden_layers or a.capacity.lendsLayers(a.layers.len)) {
                    if (a.capacity.recompute) {
                        self.forwardAttention(weights, batch, layer, l);
                        self.forwardMlp(weights, n, layer, l, null);
                    } else self.addAttention(weights, n, layer, l, .kept);
                }
                self.backwardMlp(weights, gradients, n, layer, l, dstream, balanced);
                self.backwardAttention(weights, gradients, batch, layer, l, dstream, l > end.layer or end.embedding);
            }
            if (end.embedding) self.projection.embedBackward(weights, gradients, dstream, batch.input_ids);
        }

        /// How far down a backward pass must go.
        const Depth = struct {
            /// The lowest layer with something to train; the number of layers if none has.
            layer: u32,
            embedding: bool,
        };

        fn depthOf(gradients: Gradients, weights: Weights, layers: u32) Depth {
            if (gradients == .base) return .{ .layer = 0, .embedding = true };
            const adapter = weights.adapter.?.layout;
            if (adapter.get(null, .embed_tokens) != null) return .{ .layer = 0, .embedding = true };
            var lowest = layers;
            for (adapter.modules) |module| if (module.layer) |l| {
                lowest = @min(lowest, l);
            };
            return .{ .layer = lowest, .embedding = false };
        }

        /// In: gradient at the layer's output. Out: gradient at the stream between attention and MLP, in place.
        fn backwardMlp(self: *Self, weights: Weights, gradients: Gradients, n: usize, layer: *Layer, l: u32, dstream: []T, balanced: ?mixture_file.Mixture(T).Balance) void {
            if (self.config.hasExperts()) return self.backwardExperts(weights, gradients, n, layer, l, dstream, balanced);
            const c: usize = self.config.hidden_size;
            const f: usize = self.config.intermediate_size;
            const s = &self.activations.scratch;
            const gate = layer.gate[0 .. n * f];
            const up = layer.up[0 .. n * f];
            const product = s.product[0 .. n * f];
            const dproduct = s.dproduct[0 .. n * f];
            const wants_product = self.projection.wantsInput(gradients, at(l, .down_proj));
            if (T == f32 and layer.low != null) {
                const low = lowPart(layer.low.?, n * f);
                if (wants_product) ops.swiglu.productLow(self.exec, product, low);
                self.projection.backward(weights, gradients, at(l, .down_proj), dproduct, dstream, product, n, .store);
                ops.swiglu.backwardLow(self.exec, gate, up, dproduct, low);
            } else {
                if (wants_product) ops.swiglu.forward(T, self.exec, product, gate, up);
                self.projection.backward(weights, gradients, at(l, .down_proj), dproduct, dstream, product, n, .store);
                ops.swiglu.backward(T, self.exec, gate, up, dproduct, gate, up);
            }

            const middle = s.middle[0 .. n * c];
            const norm = self.layout.get(l, .mlp_norm).?;
            const normed = s.normed[0 .. n * c];
            const dnormed = s.dnormed[0 .. n * c];
            if (self.wantsAny(gradients, l, &.{ .gate_proj, .up_proj }))
                ops.rms_norm.forward(T, self.exec, normed, s.rstd[0..n], middle, weights.vector(self.layout, norm), n, c, self.eps());
            self.projection.backward(weights, gradients, at(l, .gate_proj), dnormed, gate, normed, n, .store);
            self.projection.backward(weights, gradients, at(l, .up_proj), dnormed, up, normed, n, .accumulate);
            ops.rms_norm.backward(T, self.exec, dstream, normGradient(gradients, norm), dnormed, middle, weights.vector(self.layout, norm), layer.middle_rstd[0..n], n, c, .accumulate);
        }

        /// The same for a layer with experts.
        fn backwardExperts(self: *Self, weights: Weights, gradients: Gradients, n: usize, layer: *Layer, l: u32, dstream: []T, balanced: ?mixture_file.Mixture(T).Balance) void {
            const c: usize = self.config.hidden_size;
            const s = &self.activations.scratch;
            const middle = s.middle[0 .. n * c];
            const normed = s.normed[0 .. n * c];
            const dnormed = s.dnormed[0 .. n * c];
            const norm = self.layout.get(l, .mlp_norm).?;
            const experts = self.mixture();
            if (experts.wantsInput(gradients, l))
                ops.rms_norm.forward(T, self.exec, normed, s.rstd[0..n], middle, weights.vector(self.layout, norm), n, c, self.eps());
            experts.backward(weights, gradients, layer, l, dnormed, dstream, normed, balanced);
            ops.rms_norm.backward(T, self.exec, dstream, normGradient(gradients, norm), dnormed, middle, weights.vector(self.layout, norm), layer.middle_rstd[0..n], n, c, .accumulate);
        }

        fn mixture(self: *Self) mixture_file.Mixture(T) {
            return .{
                .config = &self.config,
                .layout = self.layout,
                .exec = self.exec,
                .projection = &self.projection,
                .scratch = &self.activations.scratch.experts,
            };
        }

        /// The same for attention: out is the gradient at the layer's input, unless nothing `below` wants it.
        fn backwardAttention(self: *Self, weights: Weights, gradients: Gradients, batch: Batch, layer: *Layer, l: u32, dstream: []T, below: bool) void {
            const n = batch.tokens();
            const c: usize = self.config.hidden_size;
            const qw = self.config.queryWidth();
            const kvw = self.config.keyValueWidth();
            const heads: usize = self.config.num_attention_heads;
            const kv_heads: usize = self.config.num_key_value_heads;
            const d: usize = self.config.head_dim;
            const s = &self.activations.scratch;
            const attention = layer.attention[0 .. n * qw];
            const dattention = s.dattention[0 .. n * qw];
            const wants_normed = self.wantsAny(gradients, l, &.{ .q_proj, .k_proj, .v_proj });
            const onwards = below or wants_normed;
            self.projection.backward(weights, gradients, at(l, .o_proj), if (onwards) dattention else null, dstream, attention, n, .store);
            if (!onwards) return;

            var dq = s.dq[0 .. n * qw];
            var dk = s.dk[0 .. n * kvw];
            const dv = s.dv[0 .. n * kvw];
            const q = layer.q[0 .. n * qw];
            const k = layer.k[0 .. n * kvw];
            ops.attention.backward(T, self.exec, dq, dk, dv, dattention, attention, layer.lse[0 .. n * heads], q, k, layer.v[0 .. n * kvw], self.dims(batch), self.firstVisible(batch, l));
            if (self.layout.get(l, .sinks)) |sinks| switch (gradients) {
                .base => |flat| ops.sinks.backward(T, self.exec, sinks.slice(T, flat), dattention, attention, layer.lse[0 .. n * heads], weights.vector(self.layout, sinks), self.dims(batch)),
                .adapter => {},
            };
            const positions = self.activations.positions[0..n];
            ops.rope.apply(T, self.exec, dq, heads, d, &self.rope, positions, .backward);
            ops.rope.apply(T, self.exec, dk, kv_heads, d, &self.rope, positions, .backward);
            if (self.config.qk_norm) {
                // q and k themselves are no longer needed: their buffers take the gradients before the norm.
                const q_norm = self.layout.get(l, .q_norm).?;
                const k_norm = self.layout.get(l, .k_norm).?;
                ops.rms_norm.backward(T, self.exec, q, normGradient(gradients, q_norm), dq, layer.q_raw[0 .. n * qw], weights.vector(self.layout, q_norm), layer.q_rstd[0 .. n * heads], n * heads, d, .store);
                ops.rms_norm.backward(T, self.exec, k, normGradient(gradients, k_norm), dk, layer.k_raw[0 .. n * kvw], weights.vector(self.layout, k_norm), layer.k_rstd[0 .. n * kv_heads], n * kv_heads, d, .store);
                dq = q;
                dk = k;
            }
            const input = layer.input[0 .. n * c];
            const norm = self.layout.get(l, .attention_norm).?;
            const normed = s.normed[0 .. n * c];
            const dnormed: ?[]T = if (below) s.dnormed[0 .. n * c] else null;
            if (wants_normed)
                ops.rms_norm.forward(T, self.exec, normed, s.rstd[0..n], input, weights.vector(self.layout, norm), n, c, self.eps());
            self.projection.backward(weights, gradients, at(l, .q_proj), dnormed, dq, normed, n, .store);
            self.projection.backward(weights, gradients, at(l, .k_proj), dnormed, dk, normed, n, .accumulate);
            self.projection.backward(weights, gradients, at(l, .v_proj), dnormed, dv, normed, n, .accumulate);
            if (dnormed) |dn|
                ops.rms_norm.backward(T, self.exec, dstream, normGradient(gradients, norm), dn, input, weights.vector(self.layout, norm), layer.input_rstd[0..n], n, c, .accumulate);
        }

        fn wantsAny(self: *const Self, gradients: Gradients, l: u32, targets: []const arch.Target) bool {
            for (targets) |target| if (self.projection.wantsInput(gradients, at(l, target))) return true;
            return false;
        }

        fn at(l: u32, target: arch.Target) projection_file.Projection(T).Place {
            return .{ .layer = l, .target = target };
        }

        fn weight(self: *const Self, weights: Weights, l: u32, role: arch.Role) []const T {
            return weights.vector(self.layout, self.layout.get(l, role).?);
        }

        /// Null where norms are frozen.
        fn normGradient(gradients: Gradients, norm: *const arch.Parameter) ?[]T {
            return switch (gradients) {
                .base => |flat| norm.slice(T, flat),
                .adapter => null,
            };
        }

        fn eps(self: *const Self) T {
            return @floatCast(self.config.rms_norm_eps);
        }

        fn dims(self: *const Self, batch: Batch) ops.attention.Dims {
            return .{
                .batch = batch.batch,
                .time = batch.time,
                .heads = self.config.num_attention_heads,
                .kv_heads = self.config.num_key_value_heads,
                .head_dim = self.config.head_dim,
            };
        }

        fn windowApplies(self: *const Self, batch: Batch) bool {
            const window = self.config.sliding_window orelse return false;
            return batch.time > window;
        }

        fn firstVisible(self: *const Self, batch: Batch, l: u32) ?[]const u32 {
            if (self.config.windowOf(l) != null and self.windowApplies(batch)) return self.activations.first[0..batch.tokens()];
            return batch.first;
        }

        fn preparePositions(self: *Self, batch: Batch) void {
            const n = batch.tokens();
            const positions = self.activations.positions[0..n];
            if (batch.positions) |given| {
                @memcpy(positions, given);
            } else for (0..batch.batch) |b| {
                for (positions[b * batch.time ..][0..batch.time], 0..) |*p, t| p.* = @intCast(t);
            }
            if (!self.windowApplies(batch)) return;
            const window: usize = self.config.sliding_window.?;
            for (0..batch.batch) |b| for (0..batch.time) |t| {
                const i = b * batch.time + t;
                const document: usize = if (batch.first) |f| f[i] else 0;
                const reach: usize = if (t + 1 > window) t + 1 - window else 0;
                self.activations.first[i] = @intCast(@max(document, reach));
            };
        }
    };
}

test {
    _ = @import("transformer_test.zig");
    _ = @import("mixture_test.zig");
}
