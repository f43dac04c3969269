//! Dense Llama-family transformer: forward and backward, wired from `ops`.
//!
//!     h = embed[ids]
//!     per layer:  h += Wo · attention(rope(norm?(Wq n)), rope(norm?(Wk n)), Wv n),  n = rms_norm(h)
//!                 h += Wdown · (silu(Wgate n) ⊙ (Wup n)),                           n = rms_norm(h)
//!     loss = cross_entropy(head · rms_norm(h), targets)
//!
//! Layout: activations are (B·T, width) row-major, a token a row. Gradients accumulate into the caller's flat buffer,
//! so several micro-batches add up to one update; the scale (1 / number of targets) is given by the caller, who alone
//! knows the whole update. Weights are only read. Nothing is allocated after `init`.
//! Does not know: files, data, optimizers, text.

const std = @import("std");
const arch = @import("arch");
const ops = @import("ops");
const activations_file = @import("activations.zig");

pub const Capacity = activations_file.Capacity;

/// One micro-batch. `input_ids` and `targets` are (batch, time) row-major; target -1 carries no loss.
pub const Batch = struct {
    input_ids: []const u32,
    targets: []const i32,
    batch: usize,
    time: usize,
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

pub fn Transformer(comptime T: type) type {
    return struct {
        config: arch.ModelConfig,
        layout: *const arch.Layout,
        exec: *ops.Exec,
        rope: ops.rope.Table(T),
        activations: activations_file.Activations(T),

        const Self = @This();
        const Layer = activations_file.Activations(T).Layer;

        /// `layout` and `exec` must outlive the transformer. Caller calls `deinit`.
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
            var rope = try ops.rope.Table(T).init(gpa, frequencies, capacity.time);
            errdefer rope.deinit();

            var activations: activations_file.Activations(T) = try .init(gpa, config, capacity);
            errdefer activations.deinit();

            try exec.reserve(T, .{
                .attention_time = capacity.time,
                .vocab_size = config.vocab_size,
                .loss_rows = capacity.batch * capacity.time,
            });
            return .{
                .config = config,
                .layout = layout,
                .exec = exec,
                .rope = rope,
                .activations = activations,
            };
        }

        pub fn deinit(self: *Self) void {
            self.activations.deinit();
            self.rope.deinit();
            self.* = undefined;
        }

        /// Loss of the batch; no gradient.
        pub fn loss(self: *Self, weights: []const T, batch: Batch, label_smoothing: T) Loss {
            self.forward(weights, batch);
            const n = batch.tokens();
            return ops.cross_entropy.run(T, self.exec, .{
                .hidden = self.activations.hidden[0 .. n * self.config.hidden_size],
                .weight = .{ .dense = self.layout.head().sliceConst(T, weights) },
                .vocab_size = self.config.vocab_size,
                .targets = batch.targets,
                .scale = 1,
                .label_smoothing = label_smoothing,
                .dhidden = null,
                .dweight = null,
            });
        }

        /// Loss of the batch; adds `scale` times its gradient to `gradients` (flat, in the layout's order).
        pub fn lossAndGradient(
            self: *Self,
            weights: []const T,
            gradients: []T,
            batch: Batch,
            scale: T,
            label_smoothing: T,
        ) Loss {
            std.debug.assert(gradients.len == self.layout.total);
            self.forward(weights, batch);
            const n = batch.tokens();
            const c: usize = self.config.hidden_size;
            const head = self.layout.head();
            const dhidden = self.activations.scratch.dnormed[0 .. n * c];
            const result = ops.cross_entropy.run(T, self.exec, .{
                .hidden = self.activations.hidden[0 .. n * c],
                .weight = .{ .dense = head.sliceConst(T, weights) },
                .vocab_size = self.config.vocab_size,
                .targets = batch.targets,
                .scale = scale,
                .label_smoothing = label_smoothing,
                .dhidden = dhidden,
                .dweight = head.slice(T, gradients),
            });
            self.backward(weights, gradients, batch, dhidden);
            return result;
        }

        /// Logits (batch·time, vocab_size) into `out`.
        pub fn logits(self: *Self, weights: []const T, batch: Batch, out: []T) void {
            self.forward(weights, batch);
            const n = batch.tokens();
            const c: usize = self.config.hidden_size;
            const v: usize = self.config.vocab_size;
            std.debug.assert(out.len == n * v);
            const head = self.layout.head().sliceConst(T, weights);
            ops.matmul.forward(T, self.exec, out, self.activations.hidden[0 .. n * c], head, null, n, v, c, .store);
        }

        fn forward(self: *Self, weights: []const T, batch: Batch) void {
            const n = batch.tokens();
            const c: usize = self.config.hidden_size;
            std.debug.assert(weights.len == self.layout.total);
            std.debug.assert(batch.input_ids.len == n);
            std.debug.assert(batch.targets.len == n);
            std.debug.assert(batch.batch <= self.activations.capacity.batch);
            std.debug.assert(batch.time <= self.activations.capacity.time);
            self.preparePositions(batch);

            const a = &self.activations;
            const embedding = self.layout.get(null, .token_embedding).?.sliceConst(T, weights);
            ops.embedding.forward(T, self.exec, a.layers[0].input[0 .. n * c], embedding, batch.input_ids);
            for (a.layers, 0..) |*layer, l| {
                const next = if (l + 1 < a.layers.len) a.layers[l + 1].input else a.last;
                self.forwardAttention(weights, batch, layer, @intCast(l));
                self.forwardMlp(weights, n, layer, @intCast(l), next[0 .. n * c]);
            }
            const norm = self.layout.get(null, .final_norm).?.sliceConst(T, weights);
            ops.rms_norm.forward(T, self.exec, a.hidden[0 .. n * c], a.last_rstd[0..n], a.last[0 .. n * c], norm, n, c, self.eps());
        }

        fn forwardAttention(self: *Self, weights: []const T, batch: Batch, layer: *Layer, l: u32) void {
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
            self.project(weights, q_out, normed, l, .q_weight, .q_bias, n, qw, c, .store);
            self.project(weights, k_out, normed, l, .k_weight, .k_bias, n, kvw, c, .store);
            self.project(weights, v, normed, l, .v_weight, .v_bias, n, kvw, c, .store);
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
            ops.attention.forward(T, self.exec, attention, layer.lse[0 .. n * heads], q, k, v, self.dims(batch), self.firstVisible(batch));

            self.addAttention(weights, n, layer, l);
        }

        /// middle = input + attention · Woᵀ, into the scratch that all layers share.
        fn addAttention(self: *Self, weights: []const T, n: usize, layer: *const Layer, l: u32) void {
            const c: usize = self.config.hidden_size;
            const qw = self.config.queryWidth();
            const middle = self.activations.scratch.middle[0 .. n * c];
            ops.elementwise.copy(T, self.exec, middle, layer.input[0 .. n * c]);
            self.project(weights, middle, layer.attention[0 .. n * qw], l, .o_weight, .o_bias, n, c, qw, .accumulate);
        }

        /// `into`: the layer's output; null when backward only needs what lies before it.
        fn forwardMlp(self: *Self, weights: []const T, n: usize, layer: *Layer, l: u32, into: ?[]T) void {
            const c: usize = self.config.hidden_size;
            const f: usize = self.config.intermediate_size;
            const normed = self.activations.scratch.normed[0 .. n * c];
            const middle = self.activations.scratch.middle[0 .. n * c];
            ops.rms_norm.forward(T, self.exec, normed, layer.middle_rstd[0..n], middle, self.weight(weights, l, .mlp_norm), n, c, self.eps());
            const gate = layer.gate[0 .. n * f];
            const up = layer.up[0 .. n * f];
            const product = self.activations.scratch.product[0 .. n * f];
            self.project(weights, gate, normed, l, .gate_weight, .gate_bias, n, f, c, .store);
            self.project(weights, up, normed, l, .up_weight, .up_bias, n, f, c, .store);
            ops.swiglu.forward(T, self.exec, product, gate, up);
            const out = into orelse return;
            ops.elementwise.copy(T, self.exec, out, middle);
            self.project(weights, out, product, l, .down_weight, .down_bias, n, c, f, .accumulate);
        }

        /// `dhidden` is the gradient at the final norm's output; it is overwritten on the way down.
        fn backward(self: *Self, weights: []const T, gradients: []T, batch: Batch, dhidden: []T) void {
            const n = batch.tokens();
            const c: usize = self.config.hidden_size;
            const a = &self.activations;
            const dstream = a.scratch.dstream[0 .. n * c];
            const final = self.layout.get(null, .final_norm).?;
            ops.rms_norm.backward(T, self.exec, dstream, final.slice(T, gradients), dhidden, a.last[0 .. n * c], final.sliceConst(T, weights), a.last_rstd[0..n], n, c, .store);
            var l: u32 = self.config.num_hidden_layers;
            while (l > 0) {
                l -= 1;
                const layer = &a.layers[l];
                // What forward left in shared buffers is the last layer's.
                if (l + 1 < self.config.num_hidden_layers) {
                    if (a.capacity.recompute) {
                        self.forwardAttention(weights, batch, layer, l);
                        self.forwardMlp(weights, n, layer, l, null);
                    } else self.addAttention(weights, n, layer, l);
                }
                self.backwardMlp(weights, gradients, n, layer, l, dstream);
                self.backwardAttention(weights, gradients, batch, layer, l, dstream);
            }
            const embedding = self.layout.get(null, .token_embedding).?;
            ops.embedding.backward(T, self.exec, embedding.slice(T, gradients), dstream, batch.input_ids);
        }

        /// In: gradient at the layer's output. Out: gradient at the stream between attention and MLP, in place.
        fn backwardMlp(self: *Self, weights: []const T, gradients: []T, n: usize, layer: *Layer, l: u32, dstream: []T) void {
            const c: usize = self.config.hidden_size;
            const f: usize = self.config.intermediate_size;
            const s = &self.activations.scratch;
            const gate = layer.gate[0 .. n * f];
            const up = layer.up[0 .. n * f];
            const product = s.product[0 .. n * f];
            const dproduct = s.dproduct[0 .. n * f];
            ops.swiglu.forward(T, self.exec, product, gate, up);
            self.projectBackward(weights, gradients, dproduct, dstream, product, l, .down_weight, .down_bias, n, c, f, .store);
            ops.swiglu.backward(T, self.exec, gate, up, dproduct, gate, up);

            const middle = s.middle[0 .. n * c];
            const norm = self.weight(weights, l, .mlp_norm);
            const normed = s.normed[0 .. n * c];
            const dnormed = s.dnormed[0 .. n * c];
            ops.rms_norm.forward(T, self.exec, normed, s.rstd[0..n], middle, norm, n, c, self.eps());
            self.projectBackward(weights, gradients, dnormed, gate, normed, l, .gate_weight, .gate_bias, n, f, c, .store);
            self.projectBackward(weights, gradients, dnormed, up, normed, l, .up_weight, .up_bias, n, f, c, .accumulate);
            ops.rms_norm.backward(T, self.exec, dstream, self.gradient(gradients, l, .mlp_norm), dnormed, middle, norm, layer.middle_rstd[0..n], n, c, .accumulate);
        }

        fn backwardAttention(self: *Self, weights: []const T, gradients: []T, batch: Batch, layer: *Layer, l: u32, dstream: []T) void {
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
            self.projectBackward(weights, gradients, dattention, dstream, attention, l, .o_weight, .o_bias, n, c, qw, .store);

            var dq = s.dq[0 .. n * qw];
            var dk = s.dk[0 .. n * kvw];
            const dv = s.dv[0 .. n * kvw];
            const q = layer.q[0 .. n * qw];
            const k = layer.k[0 .. n * kvw];
            ops.attention.backward(T, self.exec, dq, dk, dv, dattention, attention, layer.lse[0 .. n * heads], q, k, layer.v[0 .. n * kvw], self.dims(batch), self.firstVisible(batch));
            const positions = self.activations.positions[0..n];
            ops.rope.apply(T, self.exec, dq, heads, d, &self.rope, positions, .backward);
            ops.rope.apply(T, self.exec, dk, kv_heads, d, &self.rope, positions, .backward);
            if (self.config.qk_norm) {
                // q and k themselves are no longer needed: their buffers take the gradients before the norm.
                ops.rms_norm.backward(T, self.exec, q, self.gradient(gradients, l, .q_norm), dq, layer.q_raw[0 .. n * qw], self.weight(weights, l, .q_norm), layer.q_rstd[0 .. n * heads], n * heads, d, .store);
                ops.rms_norm.backward(T, self.exec, k, self.gradient(gradients, l, .k_norm), dk, layer.k_raw[0 .. n * kvw], self.weight(weights, l, .k_norm), layer.k_rstd[0 .. n * kv_heads], n * kv_heads, d, .store);
                dq = q;
                dk = k;
            }
            const input = layer.input[0 .. n * c];
            const norm = self.weight(weights, l, .attention_norm);
            const normed = s.normed[0 .. n * c];
            const dnormed = s.dnormed[0 .. n * c];
            ops.rms_norm.forward(T, self.exec, normed, s.rstd[0..n], input, norm, n, c, self.eps());
            self.projectBackward(weights, gradients, dnormed, dq, normed, l, .q_weight, .q_bias, n, qw, c, .store);
            self.projectBackward(weights, gradients, dnormed, dk, normed, l, .k_weight, .k_bias, n, kvw, c, .accumulate);
            self.projectBackward(weights, gradients, dnormed, dv, normed, l, .v_weight, .v_bias, n, kvw, c, .accumulate);
            ops.rms_norm.backward(T, self.exec, dstream, self.gradient(gradients, l, .attention_norm), dnormed, input, norm, layer.input_rstd[0..n], n, c, .accumulate);
        }

        /// out (n, width) (+)= inp (n, depth) · Wᵀ + bias, with the layer's weight of that role.
        fn project(self: *Self, weights: []const T, out: []T, inp: []const T, l: u32, weight_role: arch.Role, bias_role: arch.Role, n: usize, width: usize, depth: usize, mode: ops.Mode) void {
            const bias = if (self.layout.get(l, bias_role)) |p| p.sliceConst(T, weights) else null;
            ops.matmul.forward(T, self.exec, out, inp, self.weight(weights, l, weight_role), bias, n, width, depth, mode);
        }

        /// dinp (n, depth) (+)= dout · W; the weight's and bias's gradients accumulate.
        fn projectBackward(self: *Self, weights: []const T, gradients: []T, dinp: []T, dout: []const T, inp: []const T, l: u32, weight_role: arch.Role, bias_role: arch.Role, n: usize, width: usize, depth: usize, mode: ops.Mode) void {
            const dbias = if (self.layout.get(l, bias_role)) |p| p.slice(T, gradients) else null;
            ops.matmul.backwardWeight(T, self.exec, self.gradient(gradients, l, weight_role), dbias, dout, inp, n, width, depth);
            ops.matmul.backwardInput(T, self.exec, dinp, dout, self.weight(weights, l, weight_role), n, width, depth, mode);
        }

        fn weight(self: *const Self, weights: []const T, l: u32, role: arch.Role) []const T {
            return self.layout.get(l, role).?.sliceConst(T, weights);
        }

        fn gradient(self: *const Self, gradients: []T, l: u32, role: arch.Role) []T {
            return self.layout.get(l, role).?.slice(T, gradients);
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

        fn firstVisible(self: *const Self, batch: Batch) ?[]const u32 {
            if (self.windowApplies(batch)) return self.activations.first[0..batch.tokens()];
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

// ---- tests ----

const base = @import("base");

/// A model, a batch and everything around them.
fn Rig(comptime T: type) type {
    return struct {
        gpa: std.mem.Allocator,
        pool: *base.Pool,
        exec: *ops.Exec,
        layout: *arch.Layout,
        model: Transformer(T),
        weights: []T,
        gradients: []T,
        ids: []u32,
        targets: []i32,
        batch: Batch,

        const Self = @This();

        fn init(gpa: std.mem.Allocator, config: arch.ModelConfig, threads: usize, rows: usize, time: usize) !Self {
            const pool = try base.Pool.init(gpa, threads);
            const exec = try gpa.create(ops.Exec);
            exec.* = try .init(gpa, pool);
            const layout = try gpa.create(arch.Layout);
            layout.* = try .init(gpa, config);
            const weights = try gpa.alloc(T, layout.total);
            const gradients = try gpa.alloc(T, layout.total);
            var prng: base.Prng = .init(7);
            for (layout.parameters) |p| for (p.slice(T, weights)) |*w| {
                const centre: f64 = if (p.role.isNorm()) 1 else 0;
                w.* = @floatCast(centre + 0.2 * prng.normal());
            };
            @memset(gradients, 0);
            const ids = try gpa.alloc(u32, rows * time);
            const targets = try gpa.alloc(i32, rows * time);
            for (ids, targets, 0..) |*id, *target, i| {
                id.* = @intCast(prng.below(config.vocab_size));
                target.* = if (i % 5 == 3) -1 else @intCast(prng.below(config.vocab_size));
            }
            return .{
                .gpa = gpa,
                .pool = pool,
                .exec = exec,
                .layout = layout,
                .model = try .init(gpa, config, layout, exec, .{ .batch = rows, .time = time }),
                .weights = weights,
                .gradients = gradients,
                .ids = ids,
                .targets = targets,
                .batch = .{ .input_ids = ids, .targets = targets, .batch = rows, .time = time },
            };
        }

        fn deinit(self: *Self) void {
            self.model.deinit();
            self.layout.deinit();
            self.exec.deinit();
            self.pool.deinit();
            self.gpa.destroy(self.layout);
            self.gpa.destroy(self.exec);
            self.gpa.free(self.weights);
            self.gpa.free(self.gradients);
            self.gpa.free(self.ids);
            self.gpa.free(self.targets);
        }
    };
}

const test_config: arch.ModelConfig = .{
    .vocab_size = 19,
    .hidden_size = 12,
    .intermediate_size = 20,
    .num_hidden_layers = 2,
    .num_attention_heads = 4,
    .num_key_value_heads = 2,
    .head_dim = 6,
    .qkv_bias = true,
    .attention_output_bias = true,
    .mlp_bias = true,
    .qk_norm = true,
    .tie_word_embeddings = false,
};

/// Every parameter's gradient against central differences of the f64 loss, a few elements of each.
fn expectGradientsRight(config: arch.ModelConfig, smoothing: f64) !void {
    const gpa = std.testing.allocator;
    var rig: Rig(f64) = try .init(gpa, config, 2, 2, 7);
    defer rig.deinit();

    _ = rig.model.lossAndGradient(rig.weights, rig.gradients, rig.batch, 1, smoothing);
    var prng: base.Prng = .init(11);
    for (rig.layout.parameters) |p| for (0..3) |_| {
        const at = p.offset + @as(usize, @intCast(prng.below(p.len)));
        const original = rig.weights[at];
        const h = 1e-5;
        rig.weights[at] = original + h;
        const above = rig.model.loss(rig.weights, rig.batch, smoothing).loss_sum;
        rig.weights[at] = original - h;
        const below = rig.model.loss(rig.weights, rig.batch, smoothing).loss_sum;
        rig.weights[at] = original;
        const numeric = (above - below) / (2 * h);
        const analytic = rig.gradients[at];
        const difference = @abs(numeric - analytic);
        if (difference > 1e-6 * @max(@abs(numeric), @abs(analytic)) + 1e-7) {
            std.debug.print("{s}: analytic {d}, numeric {d}\n", .{ p.name, analytic, numeric });
            return error.WrongGradient;
        }
    };
}

test "the gradient of every parameter equals central differences, with all options on" {
    try expectGradientsRight(test_config, 0.1);
}

test "the gradient is right for a tied model without extras" {
    var config = test_config;
    config.qkv_bias = false;
    config.attention_output_bias = false;
    config.mlp_bias = false;
    config.qk_norm = false;
    config.tie_word_embeddings = true;
    try expectGradientsRight(config, 0);
}

test "the gradient is right behind a sliding window" {
    var config = test_config;
    config.sliding_window = 3;
    try expectGradientsRight(config, 0);
}

test "recomputing activations gives the same bits" {
    const gpa = std.testing.allocator;
    var kept: Rig(f32) = try .init(gpa, test_config, 2, 2, 7);
    defer kept.deinit();
    var again: Rig(f32) = try .init(gpa, test_config, 2, 2, 7);
    defer again.deinit();

    again.model.deinit();
    again.model = try .init(gpa, test_config, again.layout, again.exec, .{ .batch = 2, .time = 7, .recompute = true });
    const a = kept.model.lossAndGradient(kept.weights, kept.gradients, kept.batch, 0.1, 0);
    const b = again.model.lossAndGradient(again.weights, again.gradients, again.batch, 0.1, 0);
    try std.testing.expectEqual(a, b);
    try std.testing.expectEqualSlices(f32, kept.gradients, again.gradients);
}

test "micro-batches add up to the gradient of the whole batch" {
    const gpa = std.testing.allocator;
    var whole: Rig(f64) = try .init(gpa, test_config, 1, 2, 7);
    defer whole.deinit();
    var parts: Rig(f64) = try .init(gpa, test_config, 1, 2, 7);
    defer parts.deinit();

    _ = whole.model.lossAndGradient(whole.weights, whole.gradients, whole.batch, 0.5, 0);
    for (0..2) |row| {
        _ = parts.model.lossAndGradient(parts.weights, parts.gradients, .{
            .input_ids = parts.ids[row * 7 ..][0..7],
            .targets = parts.targets[row * 7 ..][0..7],
            .batch = 1,
            .time = 7,
        }, 0.5, 0);
    }
    for (whole.gradients, parts.gradients) |a, b| try std.testing.expectApproxEqAbs(a, b, 1e-12);
}

test "1, 2, 3 and 7 threads give the same bits" {
    const gpa = std.testing.allocator;
    var reference: Rig(f32) = try .init(gpa, test_config, 1, 3, 9);
    defer reference.deinit();

    const expected = reference.model.lossAndGradient(reference.weights, reference.gradients, reference.batch, 0.1, 0);
    for ([_]usize{ 2, 3, 7 }) |threads| {
        var rig: Rig(f32) = try .init(gpa, test_config, threads, 3, 9);
        defer rig.deinit();

        const got = rig.model.lossAndGradient(rig.weights, rig.gradients, rig.batch, 0.1, 0);
        try std.testing.expectEqual(expected, got);
        try std.testing.expectEqualSlices(f32, reference.gradients, rig.gradients);
    }
}

test "a packed row equals its documents alone" {
    const gpa = std.testing.allocator;
    var alone: Rig(f64) = try .init(gpa, test_config, 1, 2, 5);
    defer alone.deinit();
    var joined: Rig(f64) = try .init(gpa, test_config, 1, 1, 10);
    defer joined.deinit();

    @memcpy(joined.ids, alone.ids);
    @memcpy(joined.targets, alone.targets);
    joined.batch.positions = &.{ 0, 1, 2, 3, 4, 0, 1, 2, 3, 4 };
    joined.batch.first = &.{ 0, 0, 0, 0, 0, 5, 5, 5, 5, 5 };
    const a = alone.model.lossAndGradient(alone.weights, alone.gradients, alone.batch, 1, 0);
    const b = joined.model.lossAndGradient(joined.weights, joined.gradients, joined.batch, 1, 0);
    try std.testing.expectApproxEqAbs(a.loss_sum, b.loss_sum, 1e-10);
    for (alone.gradients, joined.gradients) |x, y| try std.testing.expectApproxEqAbs(x, y, 1e-10);
}
