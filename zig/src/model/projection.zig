//! One linear module of the model, forward and backward: the base's product, its bias, and the adapter's share.
//!
//!     y = W·x + b + s·B·(A·drop(x))        embeddings: y = W[id] + s·B·A[:, id], without dropout
//!
//! s·A·drop(x), `rank` numbers a token, is kept from forward to backward; the dropout mask is drawn again instead.
//! Does not know: how modules are wired, whether weights are trained.

const std = @import("std");
const arch = @import("arch");
const ops = @import("ops");
const weights_file = @import("weights.zig");

/// Buffers of an adapter for `tokens` tokens.
pub fn LowRank(comptime T: type) type {
    return struct {
        layout: *const arch.AdapterLayout,
        /// One a module: s·A·drop(x), (tokens, rank).
        products: [][]align(64) T,
        /// Gradient of one of them.
        gradient: []align(64) T,
        /// A module's input, or its gradient, after dropout; empty without dropout.
        dropped: []align(64) T,
        /// Experts' second factors with the experts slowest, and the gradient by them; empty if no expert is adapted.
        turned: []align(64) T,
        dturned: []align(64) T,

        const Self = @This();

        /// Everything lives in `arena`. `per_token`: experts that see a token.
        pub fn init(arena: std.mem.Allocator, layout: *const arch.AdapterLayout, tokens: usize, per_token: usize, with_dropout: bool) error{OutOfMemory}!Self {
            const products = try arena.alloc([]align(64) T, layout.modules.len);
            var widest: usize = 0;
            var most_rows = tokens;
            var turned: usize = 0;
            for (layout.modules, products) |module, *product| {
                var rows = tokens;
                if (module.target.isExperts()) {
                    rows = std.math.mul(usize, tokens, per_token) catch return error.OutOfMemory;
                    turned = @max(turned, module.b.len);
                }
                most_rows = @max(most_rows, rows);
                product.* = try buffer(arena, rows, module.rank);
                if (module.target != .embed_tokens) widest = @max(widest, module.in);
            }
            return .{
                .layout = layout,
                .products = products,
                .gradient = try buffer(arena, most_rows, layout.maxRank()),
                .dropped = try buffer(arena, tokens, if (with_dropout) widest else 0),
                .turned = try buffer(arena, turned, 1),
                .dturned = try buffer(arena, turned, 1),
            };
        }

        fn buffer(arena: std.mem.Allocator, rows: usize, columns: usize) error{OutOfMemory}![]align(64) T {
            const len = std.math.mul(usize, rows, columns) catch return error.OutOfMemory;
            return arena.alignedAlloc(T, .@"64", len);
        }
    };
}

pub fn Projection(comptime T: type) type {
    return struct {
        layout: *const arch.Layout,
        exec: *ops.Exec,
        /// Null in a model that never has an adapter.
        low: ?LowRank(T),

        const Self = @This();
        const Weights = weights_file.Weights(T);
        const Gradients = weights_file.Gradients(T);

        /// Which module of which layer (null: outside of layers).
        pub const Place = struct { layer: ?u32, target: arch.Target };

        /// Whether the low-rank product must be made, or is still there from the forward pass of the same batch.
        pub const Kept = enum { make, kept };

        /// out (n, width) (+)= the module's output on inp (n, depth).
        pub fn forward(self: *const Self, weights: Weights, place: Place, out: []T, inp: []const T, n: usize, mode: ops.Mode, kept: Kept) void {
            const p = place.target.weightOf(self.layout, place.layer);
            const bias = self.biasOf(weights, place);
            switch (weights.base) {
                .dense => |flat| ops.matmul.forward(T, self.exec, out, inp, p.sliceConst(T, flat), bias, n, p.shape[0], p.shape[1], mode),
                .frozen => |matrices| ops.frozen.forward(T, self.exec, out, inp, matrices[self.layout.positionOf(p)], bias, n, mode),
            }
            const own = self.moduleAt(weights, place) orelse return;
            if (kept == .make) self.reduce(own, inp, n);
            self.expand(own, out, n);
        }

        /// dinp (n, depth) (+)= gradient by the input (null: not wanted); gradients of what is trained accumulate.
        /// `inp` is read only if `wantsInput`.
        pub fn backward(self: *const Self, weights: Weights, gradients: Gradients, place: Place, dinp: ?[]T, dout: []const T, inp: []const T, n: usize, mode: ops.Mode) void {
            const p = place.target.weightOf(self.layout, place.layer);
            const width, const depth = p.shape;
            switch (gradients) {
                .base => |flat| {
                    const bias = if (place.target.biasRole()) |role| self.layout.get(place.layer, role) else null;
                    const dbias = if (bias) |b| b.slice(T, flat) else null;
                    ops.matmul.backwardWeight(T, self.exec, p.slice(T, flat), dbias, dout, inp, n, width, depth);
                },
                .adapter => {},
            }
            if (dinp) |d| switch (weights.base) {
                .dense => |flat| ops.matmul.backwardInput(T, self.exec, d, dout, p.sliceConst(T, flat), n, width, depth, mode),
                .frozen => |matrices| ops.frozen.backwardInput(T, self.exec, d, dout, matrices[self.layout.positionOf(p)], n, mode),
            };
            const own = self.moduleAt(weights, place) orelse return;
            self.backwardLow(own, gradients.adapter, dinp, dout, inp, n);
        }

        /// Whether `backward` of this place reads its `inp`: weights that are trained need it, frozen ones do not.
        pub fn wantsInput(self: *const Self, gradients: Gradients, place: Place) bool {
            return switch (gradients) {
                .base => true,
                .adapter => self.low.?.layout.positionOf(place.layer, place.target) != null,
            };
        }

        /// out (n, width) = rows of the embedding by id.
        pub fn embed(self: *const Self, weights: Weights, out: []T, ids: []const u32) void {
            const place: Place = .{ .layer = null, .target = .embed_tokens };
            const p = place.target.weightOf(self.layout, null);
            switch (weights.base) {
                .dense => |flat| ops.embedding.forward(T, self.exec, out, p.sliceConst(T, flat), ids),
                .frozen => |matrices| ops.frozen.embed(T, self.exec, out, matrices[self.layout.positionOf(p)], ids),
            }
            const own = self.moduleAt(weights, place) orelse return;
            const low = own.product[0 .. ids.len * own.module.rank];
            ops.adapter.columns(T, self.exec, low, own.a, ids, own.module.rank);
            ops.elementwise.scale(T, self.exec, low, own.scale());
            self.expand(own, out, ids.len);
        }

        /// Gradients of the embedding, or of its adapter, from the gradient of its output.
        pub fn embedBackward(self: *const Self, weights: Weights, gradients: Gradients, dout: []const T, ids: []const u32) void {
            const place: Place = .{ .layer = null, .target = .embed_tokens };
            switch (gradients) {
                .base => |flat| ops.embedding.backward(T, self.exec, place.target.weightOf(self.layout, null).slice(T, flat), dout, ids),
                .adapter => |flat| {
                    const own = self.moduleAt(weights, place) orelse return;
                    const m = own.module;
                    const dlow = self.gradientOfLow(own, flat, dout, ids.len);
                    ops.adapter.columnsBackward(T, self.exec, m.a.slice(T, flat), dlow, ids, m.rank);
                },
            }
        }

        /// The adapter's share of the head, to be handed to the loss; null without one. The loss turns it into its gradient,
        /// which `headBackward` carries on.
        pub fn headLow(self: *const Self, weights: Weights, gradients: ?Gradients, hidden: []const T, n: usize) ?ops.cross_entropy.Low(T) {
            const own = self.moduleAt(weights, .{ .layer = null, .target = .lm_head }) orelse return null;
            self.reduce(own, hidden, n);
            return .{
                .rank = own.module.rank,
                .inp = own.product[0 .. n * own.module.rank],
                .weight = own.b,
                .dweight = if (gradients) |g| own.module.b.slice(T, g.adapter) else null,
            };
        }

        /// From the gradient the loss left in `headLow`'s input: A's gradient, and dhidden += the adapter's part.
        pub fn headBackward(self: *const Self, weights: Weights, gradients: ?Gradients, dhidden: []T, hidden: []const T, n: usize) void {
            const own = self.moduleAt(weights, .{ .layer = null, .target = .lm_head }) orelse return;
            const dlow = own.product[0 .. n * own.module.rank];
            ops.elementwise.scale(T, self.exec, dlow, own.scale());
            self.throughA(own, if (gradients) |g| g.adapter else null, dlow, dhidden, hidden, n);
        }

        // ---- the adapter's share ----

        /// A module with the numbers one pass needs of it.
        pub const Own = struct {
            module: *const arch.AdapterModule,
            a: []const T,
            b: []const T,
            product: []align(64) T,
            dropout: weights_file.Dropout,

            pub fn scale(self: Own) T {
                return @floatCast(self.module.scale);
            }
        };

        pub fn moduleAt(self: *const Self, weights: Weights, place: Place) ?Own {
            const adapter = weights.adapter orelse return null;
            const position = adapter.layout.positionOf(place.layer, place.target) orelse return null;
            const module = &adapter.layout.modules[position];
            const low = &self.low.?;
            std.debug.assert(low.layout.modules[position].rank >= module.rank);
            return .{
                .module = module,
                .a = module.a.sliceConst(T, adapter.values),
                .b = module.b.sliceConst(T, adapter.values),
                .product = low.products[position],
                .dropout = .{
                    .probability = adapter.dropout.probability,
                    .key = ops.adapter.moduleKey(adapter.dropout.key, position),
                },
            };
        }

        /// product = s · A · drop(inp)
        fn reduce(self: *const Self, own: Own, inp: []const T, n: usize) void {
            const m = own.module;
            const low = own.product[0 .. n * m.rank];
            ops.matmul.forward(T, self.exec, low, self.droppedInput(own, inp, n), own.a, null, n, m.rank, m.in, .store);
            ops.elementwise.scale(T, self.exec, low, own.scale());
        }

        /// out += product · Bᵀ
        fn expand(self: *const Self, own: Own, out: []T, n: usize) void {
            const m = own.module;
            ops.matmul.forward(T, self.exec, out, own.product[0 .. n * m.rank], own.b, null, n, m.out, m.rank, .accumulate);
        }

        fn droppedInput(self: *const Self, own: Own, inp: []const T, n: usize) []const T {
            if (own.dropout.probability == 0) return inp;
            const out = self.low.?.dropped[0 .. n * own.module.in];
            ops.adapter.dropout(T, self.exec, out, inp[0..out.len], own.dropout.probability, own.dropout.key, .store);
            return out;
        }

        fn backwardLow(self: *const Self, own: Own, flat: []T, dinp: ?[]T, dout: []const T, inp: []const T, n: usize) void {
            self.throughA(own, flat, self.gradientOfLow(own, flat, dout, n), dinp, inp, n);
        }

        /// From the gradient by A·drop(x): A's gradient and dinp accumulate.
        fn throughA(self: *const Self, own: Own, flat: ?[]T, dlow: []const T, dinp: ?[]T, inp: []const T, n: usize) void {
            const m = own.module;
            if (flat) |f| ops.matmul.backwardWeight(T, self.exec, m.a.slice(T, f), null, dlow, self.droppedInput(own, inp, n), n, m.rank, m.in);
            const d = dinp orelse return;
            if (own.dropout.probability == 0)
                return ops.matmul.backwardInput(T, self.exec, d, dlow, own.a, n, m.rank, m.in, .accumulate);
            const through = self.low.?.dropped[0 .. n * m.in];
            ops.matmul.backwardInput(T, self.exec, through, dlow, own.a, n, m.rank, m.in, .store);
            ops.adapter.dropout(T, self.exec, d[0..through.len], through, own.dropout.probability, own.dropout.key, .accumulate);
        }

        /// The gradient by A·drop(x); B's gradient accumulates.
        fn gradientOfLow(self: *const Self, own: Own, flat: []T, dout: []const T, n: usize) []const T {
            const m = own.module;
            ops.matmul.backwardWeight(T, self.exec, m.b.slice(T, flat), null, dout, own.product[0 .. n * m.rank], n, m.out, m.rank);
            const dlow = self.low.?.gradient[0 .. n * m.rank];
            ops.matmul.backwardInput(T, self.exec, dlow, dout, own.b, n, m.out, m.rank, .store);
            ops.elementwise.scale(T, self.exec, dlow, own.scale());
            return dlow;
        }

        fn biasOf(self: *const Self, weights: Weights, place: Place) ?[]const T {
            const role = place.target.biasRole() orelse return null;
            const p = self.layout.get(place.layer, role) orelse return null;
            return weights.vector(self.layout, p);
        }
    };
}
