//! Buffers of one forward and backward pass.
//!
//! Allocated once for the largest micro-batch; a smaller one uses the front of each buffer. What backward can rebuild
//! for the price of one pass over memory (normed inputs, the product inside the MLP) is not kept: one scratch buffer
//! serves all layers. With `recompute` one set of all other buffers serves all layers too. What nobody needs between the forward and
//! the backward pass lies in one piece, `idle`, which the head may write its logits into. Does not know: weights, how values are computed.

const std = @import("std");
const arch = @import("arch");
const ops = @import("ops");

/// Largest micro-batch: `batch` rows of `time` tokens, and what is kept of it.
pub const Capacity = struct {
    batch: usize,
    time: usize,
    /// Keep only each layer's input; backward runs the layer again. The numbers stay the same to the bit.
    recompute: bool = false,
    /// An adapter that passes may have; room for its low-rank products.
    adapter: ?*const arch.AdapterLayout = null,
    /// Whether the adapter's inputs may be dropped out.
    dropout: bool = false,
    /// Whether the base may be stored matrices.
    frozen: bool = false,
    /// Keep each layer's gate and up as bf16; of f32 only. Products must be computed in bf16 then.
    low_gates: bool = false,
    /// Whether the head may work in `idle`. Not for a second transformer on one `Exec`, which may be gone before the first.
    lends: bool = true,
    /// Bytes the head wants to find there. The transformer fills this in.
    head_bytes: usize = 0,

    /// Whether the layers' own buffers are idle too while the head works. Backward then runs the last layer again as well, which is
    /// little of the time where there are many.
    pub fn lendsLayers(self: Capacity, layers: usize) bool {
        return self.lends and self.recompute and layers >= 16;
    }
};

pub fn Activations(comptime T: type) type {
    return struct {
        arena: std.heap.ArenaAllocator,
        layers: []Layer,
        capacity: Capacity,
        /// Output of the last layer (N, C), its norm's 1/rms (N) and the normed result (N, C).
        last: Buffer,
        last_rstd: Buffer,
        hidden: Buffer,
        scratch: Scratch,
        /// Nothing in it is needed between the forward and the backward pass.
        idle: []align(64) u8,
        /// First visible position per token, for sliding windows (N).
        first: []u32,
        /// Positions 0, 1, … restarted in each row (N).
        positions: []u32,

        pub const Buffer = []align(64) T;

        /// Kept from forward to backward. N = tokens, C = hidden, Q/KV = widths of the projections, F = intermediate.
        pub const Layer = struct {
            /// Residual stream before attention (N, C) and 1/rms of it (N).
            input: Buffer,
            input_rstd: Buffer,
            /// q (N, Q), k and v (N, KV): after q/k norm and RoPE.
            q: Buffer,
            k: Buffer,
            v: Buffer,
            /// Before q/k norm, with 1/rms per head; empty without q/k norm.
            q_raw: Buffer,
            k_raw: Buffer,
            q_rstd: Buffer,
            k_rstd: Buffer,
            /// Attention output (N, Q) and log-sum-exp of each score row (B, H, T).
            attention: Buffer,
            lse: Buffer,
            /// 1/rms of the residual stream between attention and MLP (N); the stream itself is in `Scratch`.
            middle_rstd: Buffer,
            /// (N, F) each. Kept as bf16, these two are scratch that all layers share.
            gate: Buffer,
            up: Buffer,
            low: ?ops.swiglu.Low,
            /// With experts, K a token: the router's logits (N, E), which experts it chose and their weights (N, K), and their gate and
            /// up in turn (N·K, 2F). Empty without.
            router: Buffer,
            chosen: []u32,
            routed: Buffer,
            gate_up: Buffer,
        };

        /// Shared by all layers.
        pub const Scratch = struct {
            /// Residual stream between attention and MLP (N, C): one small product rebuilds it from what is kept.
            middle: Buffer,
            /// Normed input of a block (N, C).
            normed: Buffer,
            rstd: Buffer,
            /// Gradient of the residual stream and of a block's input (N, C).
            dstream: Buffer,
            dnormed: Buffer,
            /// Attention's gradients: q (N, Q), k and v (N, KV), and of its output (N, Q). The MLP's product and its gradient
            /// (N, F) lie in the same memory: a layer's backward pass is done with one before it begins the other.
            dq: Buffer,
            dk: Buffer,
            dv: Buffer,
            dattention: Buffer,
            product: Buffer,
            dproduct: Buffer,
            experts: Experts,
        };

        /// Of a layer with experts; rows are (token, expert) pairs in the order of experts. All empty without experts.
        pub const Experts = struct {
            /// Inputs of experts, then their gradients; outputs, or their gradients (N·K, C).
            rows: Buffer,
            outputs: Buffer,
            /// What stands between the two products, and its gradient (N·K, F).
            act: Buffer,
            dact: Buffer,
            /// Gradients of the router's logits (N, E) and weights (N, K).
            drouter: Buffer,
            drouted: Buffer,
            /// `ops.experts.Groups`: (E + 1), (N·K), (N·K).
            starts: []u32,
            slots: []u32,
            row_of: []u32,
            /// `ops.balance.Sums` over all layers (E) each; empty where the model does not ask for it.
            balance_chosen: []f64,
            balance_probabilities: []f64,
        };

        const Self = @This();

        /// Caller calls `deinit`.
        pub fn init(gpa: std.mem.Allocator, config: arch.ModelConfig, capacity: Capacity) error{OutOfMemory}!Self {
            var arena: std.heap.ArenaAllocator = .init(gpa);
            errdefer arena.deinit();

            const a = arena.allocator();
            const n = std.math.mul(usize, capacity.batch, capacity.time) catch return error.OutOfMemory;
            const c: usize = config.hidden_size;
            const experts: usize = config.num_local_experts;
            const f: usize = if (experts > 0) 0 else config.intermediate_size;
            const expert_f: usize = if (experts > 0) config.intermediate_size else 0;
            const k: usize = config.num_experts_per_tok;
            const r = n *| k;
            const q = config.queryWidth();
            const kv = config.keyValueWidth();
            const heads: usize = config.num_attention_heads;
            const kv_heads: usize = config.num_key_value_heads;
            const normed_heads: usize = if (config.qk_norm) 1 else 0;

            std.debug.assert(!capacity.low_gates or T == f32);

            // Room that is idle while the head works: gradients inside a layer, and maybe the buffers all layers share.
            const attention_gradients = [_]usize{ n *| q, n *| kv, n *| kv, n *| q };
            const mlp = [_]usize{ n *| f, n *| f, r *| c, r *| c, r *| expert_f, r *| expert_f };
            const gradients = @max(room(&attention_gradients), room(&mlp));
            const lends = capacity.lendsLayers(config.num_hidden_layers);
            const shared = [_]usize{ n *| q, n *| kv, n *| kv, n *| q *| normed_heads, n *| kv *| normed_heads, n *| q, n *| f, n *| f, r *| (2 * expert_f) };
            const idle = try a.alignedAlloc(u8, .@"64", @max(capacity.head_bytes, gradients +| if (lends) room(&shared) else 0));
            var of_attention: std.heap.FixedBufferAllocator = .init(idle[0..gradients]);
            var of_mlp: std.heap.FixedBufferAllocator = .init(idle[0..gradients]);
            var of_layers: std.heap.FixedBufferAllocator = .init(idle[gradients..]);
            const wide = if (lends) of_layers.allocator() else a;

            const layers = try a.alloc(Layer, config.num_hidden_layers);
            for (layers, 0..) |*layer, l| {
                const input = try buffer(a, n, c);
                const shares_gates = capacity.low_gates and l > 0;
                if (capacity.recompute and l > 0) {
                    layer.* = layers[0];
                    layer.input = input;
                    layer.router = try buffer(a, n, experts);
                } else layer.* = .{
                    .input = input,
                    .input_rstd = try buffer(a, n, 1),
                    .q = try buffer(wide, n, q),
                    .k = try buffer(wide, n, kv),
                    .v = try buffer(wide, n, kv),
                    .q_raw = try buffer(wide, n, q * normed_heads),
                    .k_raw = try buffer(wide, n, kv * normed_heads),
                    .q_rstd = try buffer(a, n, heads * normed_heads),
                    .k_rstd = try buffer(a, n, kv_heads * normed_heads),
                    .attention = try buffer(wide, n, q),
                    .lse = try buffer(a, n, heads),
                    .middle_rstd = try buffer(a, n, 1),
                    .gate = if (shares_gates) layers[0].gate else try buffer(wide, n, f),
                    .up = if (shares_gates) layers[0].up else try buffer(wide, n, f),
                    .low = if (capacity.low_gates) .{ .gate = try words(a, n, f), .up = try words(a, n, f) } else null,
                    .router = try buffer(a, n, experts),
                    .chosen = try a.alloc(u32, r),
                    .routed = try buffer(a, n, k),
                    .gate_up = try buffer(wide, r, 2 * expert_f),
                };
            }
            return .{
                .layers = layers,
                .capacity = capacity,
                .last = try buffer(a, n, c),
                .last_rstd = try buffer(a, n, 1),
                .hidden = try buffer(a, n, c),
                .scratch = .{
                    .middle = try buffer(a, n, c),
                    .normed = try buffer(a, n, c),
                    .rstd = try buffer(a, n, 1),
                    .dstream = try buffer(a, n, c),
                    .dnormed = try buffer(a, n, c),
                    .dq = try buffer(of_attention.allocator(), n, q),
                    .dk = try buffer(of_attention.allocator(), n, kv),
                    .dv = try buffer(of_attention.allocator(), n, kv),
                    .dattention = try buffer(of_attention.allocator(), n, q),
                    .product = try buffer(of_mlp.allocator(), n, f),
                    .dproduct = try buffer(of_mlp.allocator(), n, f),
                    .experts = .{
                        .rows = try buffer(of_mlp.allocator(), r, if (experts > 0) c else 0),
                        .outputs = try buffer(of_mlp.allocator(), r, if (experts > 0) c else 0),
                        .act = try buffer(of_mlp.allocator(), r, expert_f),
                        .dact = try buffer(of_mlp.allocator(), r, expert_f),
                        .drouter = try buffer(a, n, experts),
                        .drouted = try buffer(a, n, k),
                        .starts = try a.alloc(u32, if (experts > 0) experts + 1 else 0),
                        .slots = try a.alloc(u32, r),
                        .row_of = try a.alloc(u32, r),
                        .balance_chosen = try a.alloc(f64, if (config.balances()) experts else 0),
                        .balance_probabilities = try a.alloc(f64, if (config.balances()) experts else 0),
                    },
                },
                .idle = idle,
                .first = try a.alloc(u32, n),
                .positions = try a.alloc(u32, n),
                .arena = arena,
            };
        }

        pub fn deinit(self: *Self) void {
            self.arena.deinit();
            self.* = undefined;
        }

        /// Bytes that all buffers take together; what several share counts once.
        pub fn totalBytes(self: *const Self, gpa: std.mem.Allocator) error{OutOfMemory}!usize {
            var spans: std.ArrayList(Span) = .empty;
            defer spans.deinit(gpa);

            for (self.layers) |layer| {
                inline for (@typeInfo(Layer).@"struct".field_names) |name| if (comptime !std.mem.eql(u8, name, "low"))
                    try spans.append(gpa, .of(@field(layer, name)));
                if (layer.low) |low| for ([_][]u16{ low.gate, low.up }) |words_of| try spans.append(gpa, .of(words_of));
            }
            inline for (@typeInfo(Scratch).@"struct".field_names) |name| if (comptime !std.mem.eql(u8, name, "experts"))
                try spans.append(gpa, .of(@field(self.scratch, name)));
            inline for (@typeInfo(Experts).@"struct".field_names) |name| try spans.append(gpa, .of(@field(self.scratch.experts, name)));
            inline for (.{ "last", "last_rstd", "hidden", "idle", "first", "positions" }) |name| try spans.append(gpa, .of(@field(self, name)));
            std.mem.sort(Span, spans.items, {}, Span.before);
            var sum: usize = 0;
            var end: usize = 0;
            for (spans.items) |span| {
                sum += span.end -| @max(span.start, end);
                end = @max(end, span.end);
            }
            return sum;
        }

        const Span = struct {
            start: usize,
            end: usize,

            fn of(items: anytype) Span {
                const all = std.mem.sliceAsBytes(items);
                return .{ .start = @intFromPtr(all.ptr), .end = @intFromPtr(all.ptr) + all.len };
            }

            fn before(_: void, a: Span, b: Span) bool {
                return a.start < b.start;
            }
        };

        /// Bytes of buffers of so many numbers, each beginning at a multiple of 64.
        fn room(counts: []const usize) usize {
            var bytes: usize = 0;
            for (counts) |count| bytes +|= std.mem.alignForward(usize, @min(count *| @sizeOf(T), std.math.maxInt(u48)), 64);
            return bytes;
        }

        fn buffer(a: std.mem.Allocator, rows: usize, columns: usize) error{OutOfMemory}!Buffer {
            const len = std.math.mul(usize, rows, columns) catch return error.OutOfMemory;
            return a.alignedAlloc(T, .@"64", len);
        }

        fn words(a: std.mem.Allocator, rows: usize, columns: usize) error{OutOfMemory}![]u16 {
            const len = std.math.mul(usize, rows, columns) catch return error.OutOfMemory;
            return a.alignedAlloc(u16, .@"64", len);
        }
    };
}

test "every allocation failure while making the buffers is survived" {
    const config: arch.ModelConfig = .{
        .vocab_size = 16,
        .hidden_size = 8,
        .intermediate_size = 12,
        .num_hidden_layers = 2,
        .num_attention_heads = 2,
        .num_key_value_heads = 1,
        .head_dim = 4,
        .qk_norm = true,
    };
    try std.testing.checkAllAllocationFailures(std.testing.allocator, struct {
        fn run(gpa: std.mem.Allocator, c: arch.ModelConfig) !void {
            var a = try Activations(f32).init(gpa, c, .{ .batch = 2, .time = 3 });
            defer a.deinit();
            try std.testing.expectEqual(6 * 8, a.layers[1].q_raw.len);
        }
    }.run, .{config});
}
