//! Buffers of one forward and backward pass.
//!
//! Allocated once for the largest micro-batch; a smaller one uses the front of each buffer. What backward can rebuild
//! for the price of one pass over memory (normed inputs, the product inside the MLP) is not kept: one scratch buffer
//! serves all layers. With `recompute` one set of all other buffers serves all layers too. Does not know: weights, how values are computed.

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
        };

        const Self = @This();

        /// Caller calls `deinit`.
        pub fn init(gpa: std.mem.Allocator, config: arch.ModelConfig, capacity: Capacity) error{OutOfMemory}!Self {
            var arena: std.heap.ArenaAllocator = .init(gpa);
            errdefer arena.deinit();

            const a = arena.allocator();
            const n = std.math.mul(usize, capacity.batch, capacity.time) catch return error.OutOfMemory;
            const c: usize = config.hidden_size;
            const f: usize = config.intermediate_size;
            const q = config.queryWidth();
            const kv = config.keyValueWidth();
            const heads: usize = config.num_attention_heads;
            const kv_heads: usize = config.num_key_value_heads;
            const normed_heads: usize = if (config.qk_norm) 1 else 0;

            std.debug.assert(!capacity.low_gates or T == f32);
            const layers = try a.alloc(Layer, config.num_hidden_layers);
            for (layers, 0..) |*layer, l| {
                const input = try buffer(a, n, c);
                const shares_gates = capacity.low_gates and l > 0;
                if (capacity.recompute and l > 0) {
                    layer.* = layers[0];
                    layer.input = input;
                } else layer.* = .{
                    .input = input,
                    .input_rstd = try buffer(a, n, 1),
                    .q = try buffer(a, n, q),
                    .k = try buffer(a, n, kv),
                    .v = try buffer(a, n, kv),
                    .q_raw = try buffer(a, n, q * normed_heads),
                    .k_raw = try buffer(a, n, kv * normed_heads),
                    .q_rstd = try buffer(a, n, heads * normed_heads),
                    .k_rstd = try buffer(a, n, kv_heads * normed_heads),
                    .attention = try buffer(a, n, q),
                    .lse = try buffer(a, n, heads),
                    .middle_rstd = try buffer(a, n, 1),
                    .gate = if (shares_gates) layers[0].gate else try buffer(a, n, f),
                    .up = if (shares_gates) layers[0].up else try buffer(a, n, f),
                    .low = if (capacity.low_gates) .{ .gate = try words(a, n, f), .up = try words(a, n, f) } else null,
                };
            }
            // Each part begins at a multiple of 64 bytes.
            const keys = padded(n * q);
            const values = keys + padded(n * kv);
            const output = values + padded(n * kv);
            const gradient = padded(n * f);
            const shared = try buffer(a, @max(output + n * q, gradient + n * f), 1);
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
                    .dq = shared[0 .. n * q],
                    .dk = @alignCast(shared[keys..][0 .. n * kv]),
                    .dv = @alignCast(shared[values..][0 .. n * kv]),
                    .dattention = @alignCast(shared[output..][0 .. n * q]),
                    .product = shared[0 .. n * f],
                    .dproduct = @alignCast(shared[gradient..][0 .. n * f]),
                },
                .first = try a.alloc(u32, n),
                .positions = try a.alloc(u32, n),
                .arena = arena,
            };
        }

        pub fn deinit(self: *Self) void {
            self.arena.deinit();
            self.* = undefined;
        }

        fn padded(count: usize) usize {
            return std.mem.alignForward(usize, count, 64 / @sizeOf(T));
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
