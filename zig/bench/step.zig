//! A whole training step, op by op: the model itself, compiled against `timed_ops`, then gradient norm, clipping and
//! AdamW as the trainer does them.
//!
//! Also counts what is allocated after the first step; that must be nothing.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const timed = @import("timed_ops");
const model_layer = @import("timed_model");
const products = @import("products.zig");
const Options = @import("main.zig").Options;
const Output = @import("output.zig").Output;
const median = @import("output.zig").median;

/// Default: 4.2 M weights.
pub const Model = struct {
    vocab: u32 = 4096,
    hidden: u32 = 256,
    intermediate: u32 = 688,
    layers: u32 = 4,
    heads: u32 = 4,
    kv_heads: u32 = 4,
    batch: u32 = 4,
    length: u32 = 512,
    /// 0: hidden / heads.
    head_dim: u32 = 0,
    /// More than 0: a gpt-oss, `chosen` of them for a token, and in every other layer a window.
    experts: u32 = 0,
    chosen: u32 = 2,
    window: u32 = 128,
    bf16: bool = false,
    recompute: bool = false,
};

pub fn run(gpa_plain: std.mem.Allocator, options: Options, out: *Output) !void {
    var counting: Counting = .{ .child = gpa_plain };
    const gpa = counting.allocator();
    const m = options.model;
    var config: arch.ModelConfig = .{
        .vocab_size = m.vocab,
        .hidden_size = m.hidden,
        .intermediate_size = m.intermediate,
        .num_hidden_layers = m.layers,
        .num_attention_heads = m.heads,
        .num_key_value_heads = m.kv_heads,
        .head_dim = if (m.head_dim > 0) m.head_dim else m.hidden / m.heads,
        .max_position_embeddings = @max(m.length, 1),
    };
    if (m.experts > 0) {
        config.model_type = .gpt_oss;
        config.tie_word_embeddings = false;
        config.qkv_bias = true;
        config.attention_output_bias = true;
        config.attention_sinks = true;
        config.sliding_window = m.window;
        config.windowed_layers = .even;
        config.num_local_experts = m.experts;
        config.num_experts_per_tok = m.chosen;
        config.swiglu_limit = 7;
        config.rope_theta = 150_000;
        config.rope_scaling = .{ .yarn = .{ .factor = 32, .original_max_position_embeddings = 4096, .truncate = false } };
    }
    var message: [256]u8 = @splat(0);
    config.validate(&message) catch |err| {
        _ = std.c.write(2, &message, message.len);
        return err;
    };
    const pool = try base.Pool.init(gpa, options.threads);
    defer pool.deinit();

    var ex: timed.Exec = try .init(gpa, pool);
    defer ex.deinit();

    if (m.bf16) ex.compute = .bf16;
    var layout: arch.Layout = try .init(gpa, config);
    defer layout.deinit();

    var transformer: model_layer.Transformer(f32) = try .init(gpa, config, &layout, &ex, .{ .batch = m.batch, .time = m.length, .recompute = m.recompute, .low_gates = m.bf16 });
    defer transformer.deinit();

    const weights = try products.filled(gpa, layout.total, 5);
    defer gpa.free(weights);
    const gradients = try zeros(gpa, layout.total);
    defer gpa.free(gradients);
    const first = try zeros(gpa, layout.total);
    defer gpa.free(first);
    const second = try zeros(gpa, layout.total);
    defer gpa.free(second);

    for (layout.parameters) |p| if (p.role.isNorm()) @memset(p.slice(f32, weights), 1);
    const tokens: usize = @as(usize, m.batch) * m.length;
    const ids = try gpa.alloc(u32, tokens);
    defer gpa.free(ids);
    const targets = try gpa.alloc(i32, tokens);
    defer gpa.free(targets);

    var prng: base.Prng = .init(6);
    for (ids, targets) |*id, *target| {
        id.* = @intCast(prng.below(m.vocab));
        target.* = @intCast(prng.below(m.vocab));
    }
    const samples = try gpa.alloc(f64, options.repeat);
    defer gpa.free(samples);

    var loss: f64 = 0;
    var norm: f64 = 0;
    for (0..options.repeat + 1) |i| {
        if (i == 1) {
            timed.reset(); // The first step touches every page for the first time.
            counting.count = 0;
        }
        const started = timed.now();
        timed.elementwise.fill(f32, &ex, gradients, 0);
        const result = transformer.lossAndGradient(.dense(weights), .{ .base = gradients }, .{ .input_ids = ids, .targets = targets, .batch = m.batch, .time = m.length }, .{ .scale = 1 / @as(f32, @floatFromInt(tokens)) });
        loss = result.loss_sum / @as(f64, @floatFromInt(tokens));
        norm = 0;
        for (layout.parameters) |p| norm += timed.reduce.sumSquares(f32, &ex, p.sliceConst(f32, gradients));
        norm = @sqrt(norm);
        for (layout.parameters) |p| timed.optimizer.step(f32, &ex, .adamw, .{
            .w = p.slice(f32, weights),
            .g = p.sliceConst(f32, gradients),
            .m = p.slice(f32, first),
            .v = p.slice(f32, second),
            .lr = 3e-4,
            .beta2 = 0.95,
            .weight_decay = if (p.role.decays()) 0.1 else 0,
            .step = i + 1,
            .grad_scale = @floatCast(@min(1, 1 / (norm + 1e-6))),
        });
        if (i > 0) samples[i - 1] = @as(f64, @floatFromInt(timed.now() - started)) * 1e-9;
    }
    const allocations = counting.count;
    var attention_scratch: usize = 0;
    for (ex.workers) |w| attention_scratch += w.scratch.len;
    var total: f64 = 0;
    for (samples) |s| total += s;
    total /= @floatFromInt(samples.len);
    const middle = median(samples);
    try out.write(.{
        .bench = @as([]const u8, "step"),
        .compute = @as([]const u8, if (m.bf16) "bf16" else "f32"),
        .recompute = m.recompute,
        .weights = layout.total,
        .tokens = tokens,
        .threads = pool.n,
        .seconds = middle,
        .mean_seconds = total,
        .tokens_per_second = @as(f64, @floatFromInt(tokens)) / middle,
        .allocations_after_first = allocations,
        .attention_scratch_bytes = attention_scratch,
        .logits_bytes = try timed.Exec.sharedBytes(f32, .{ .loss_rows = tokens, .vocab_size = config.vocab_size, .loss_columns = config.hidden_size }),
        .checksum = loss + norm,
    });
    const steps: f64 = @floatFromInt(options.repeat);
    for (timed.lines()) |line| try out.write(.{
        .op = line.op,
        .m = line.m,
        .n = line.n,
        .k = line.k,
        .calls = line.calls / options.repeat,
        .milliseconds = @as(f64, @floatFromInt(line.nanoseconds)) * 1e-6 / steps,
        .gflop = line.flops * 1e-9 / steps,
        .megabytes = line.bytes * 1e-6 / steps,
    });
}

fn zeros(gpa: std.mem.Allocator, len: usize) ![]align(64) f32 {
    const x = try gpa.alignedAlloc(f32, .@"64", len);
    @memset(x, 0);
    return x;
}

/// Passes on to another allocator and counts what asks for memory.
const Counting = struct {
    child: std.mem.Allocator,
    count: usize = 0,

    fn allocator(self: *Counting) std.mem.Allocator {
        return .{ .ptr = self, .vtable = &.{ .alloc = alloc, .resize = resize, .remap = remap, .free = free } };
    }

    fn alloc(context: *anyopaque, len: usize, alignment: std.mem.Alignment, ra: usize) ?[*]u8 {
        const self: *Counting = @ptrCast(@alignCast(context));
        self.count += 1;
        return self.child.rawAlloc(len, alignment, ra);
    }

    fn resize(context: *anyopaque, memory: []u8, alignment: std.mem.Alignment, len: usize, ra: usize) bool {
        const self: *Counting = @ptrCast(@alignCast(context));
        self.count += 1;
        return self.child.rawResize(memory, alignment, len, ra);
    }

    fn remap(context: *anyopaque, memory: []u8, alignment: std.mem.Alignment, len: usize, ra: usize) ?[*]u8 {
        const self: *Counting = @ptrCast(@alignCast(context));
        self.count += 1;
        return self.child.rawRemap(memory, alignment, len, ra);
    }

    fn free(context: *anyopaque, memory: []u8, alignment: std.mem.Alignment, ra: usize) void {
        const self: *Counting = @ptrCast(@alignCast(context));
        self.child.rawFree(memory, alignment, ra);
    }
};
