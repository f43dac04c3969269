//! Attention of new tokens to themselves and to everything in the cache before them.
//!
//! A token of an answer goes through the cache key by key. Those of a prompt are taken in blocks of queries, for which a worker packs
//! the keys and values of a head once; kernels/attention.zig says how. What a token gets does not depend on how many come with it. Each head of each token, or each block, is
//! the work of one worker in one order, so the bits do not depend on the number of threads.
//! Does not know: layers, positions' rotation.

const std = @import("std");
const base = @import("base");
const kernels = @import("kernels");
const Tokens = @import("matrix.zig").Tokens;

/// One layer's part of the cache: (kv head, position, head_dim), positions up to `context`.
pub const Cached = struct {
    keys: []const f32,
    values: []const f32,
    context: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
};

const block_rows = kernels.attention_args.block;

/// Memory of one worker.
pub const Scratch = struct {
    /// One score a position.
    scores: []f32,
    /// The kernel's, keys, values: for blocks.
    block: []align(64) u8,
    keys: []align(64) u8,
    values: []align(64) u8,
    /// What `keys` and `values` hold now.
    kv_head: ?usize = null,

    pub fn init(arena: std.mem.Allocator, context: usize, head_dim: usize) error{OutOfMemory}!Scratch {
        const scores = try arena.alloc(f32, context);
        const table = kernels.table(f32);
        const size = table.attention_pack_size(context, head_dim);
        return .{
            .scores = scores,
            .block = try arena.alignedAlloc(u8, .@"64", table.attention_scratch(context, head_dim)),
            .keys = try arena.alignedAlloc(u8, .@"64", size),
            .values = try arena.alignedAlloc(u8, .@"64", size),
        };
    }
};

/// query, out: (n, heads, head_dim). The tokens are at positions `start` on; their keys and values are in the cache.
pub fn run(pool: *base.Pool, scratch: []Scratch, cached: Cached, query: []const f32, out: []f32, start: usize, n: usize, which: Tokens) void {
    const context: Context = .{ .scratch = scratch, .cached = cached, .query = query, .out = out, .start = start, .n = n };
    if (which == .of_answers) return pool.parallelFor(context, n * cached.heads, Context.one);
    for (scratch) |*s| s.kv_head = null;
    pool.parallelFor(context, cached.heads * context.blocks(), Context.block);
}

const Context = struct {
    scratch: []Scratch,
    cached: Cached,
    query: []const f32,
    out: []f32,
    start: usize,
    n: usize,

    fn blocks(self: Context) usize {
        return (self.n + block_rows - 1) / block_rows;
    }

    fn cacheRow(self: Context, head: usize) usize {
        const c = self.cached;
        return head * c.kv_heads / c.heads * c.context * c.head_dim;
    }

    fn scale(self: Context) f32 {
        return @floatCast(1 / @sqrt(@as(f64, @floatFromInt(self.cached.head_dim))));
    }

    /// One query head of one token. Its position sees itself and everything before it.
    fn one(self: Context, index: usize, worker: usize) void {
        const d = self.cached.head_dim;
        const row = self.cacheRow(index % self.cached.heads);
        const seen = self.start + index / self.cached.heads + 1;
        const query = self.query[index * d ..][0..d];
        const scores = self.scratch[worker].scores[0..seen];
        const kernel = kernels.table(f32);
        for (scores, 0..) |*score, j| score.* = kernel.inner(d, query.ptr, self.cached.keys[row + j * d ..].ptr);
        var largest: f32 = undefined;
        var sum: f32 = undefined;
        kernel.softmax_exp(seen, scores.ptr, self.scale(), &largest, &sum);
        const out = self.out[index * d ..][0..d];
        @memset(out, 0);
        for (scores, 0..) |score, j| kernel.add_scaled(d, out.ptr, score / sum, self.cached.values[row + j * d ..].ptr);
    }

    /// Up to `block_rows` tokens of one query head.
    fn block(self: Context, index: usize, worker: usize) void {
        const c = self.cached;
        const d = c.head_dim;
        const head = index / self.blocks();
        const first = index % self.blocks() * block_rows;
        const count = @min(block_rows, self.n - first);
        const time = self.start + self.n;
        const table = kernels.table(f32);
        const scratch = &self.scratch[worker];
        const kv_head = head * c.kv_heads / c.heads;
        if (scratch.kv_head != kv_head) {
            scratch.kv_head = kv_head;
            const row = self.cacheRow(head);
            table.attention_pack(by_rows, time, d, c.keys[row..].ptr, d, scratch.keys.ptr);
            table.attention_pack(by_columns, time, d, c.values[row..].ptr, d, scratch.values.ptr);
        }
        const from: [block_rows]u32 = @splat(0);
        var to: [block_rows]u32 = undefined;
        for (to[0..count], self.start + first + 1..) |*end, position| end.* = @intCast(position);
        var max: [block_rows]f32 = undefined;
        var sum: [block_rows]f32 = undefined;
        const at = (first * c.heads + head) * d;
        var args: kernels.attention_args.Args(f32) = undefined;
        args.queries = count;
        args.head_dim = d;
        args.time = time;
        args.q_step = c.heads * d;
        args.scale = self.scale();
        args.from = &from;
        args.to = &to;
        args.q = self.query[at..].ptr;
        args.keys = scratch.keys.ptr;
        args.values = scratch.values.ptr;
        args.scratch = scratch.block.ptr;
        args.out = self.out[at..].ptr;
        args.max = &max;
        args.sum = &sum;
        table.attention_forward(&args);
    }

    const by_rows = 0;
    const by_columns = 1;
};

const testing = std.testing;

test "blocks of queries see what single tokens see, whatever is in the cache before them and whatever the threads" {
    const gpa = testing.allocator;
    var prng: base.Prng = .init(8);
    const context = 260;
    const heads = 6;
    const kv_heads = 2;
    const d = 20;
    const cache = try gpa.alloc(f32, 2 * kv_heads * context * d);
    defer gpa.free(cache);
    for (cache) |*v| v.* = @floatCast(prng.normal());
    const cached: Cached = .{ .keys = cache[0 .. cache.len / 2], .values = cache[cache.len / 2 ..], .context = context, .heads = heads, .kv_heads = kv_heads, .head_dim = d };
    const query = try gpa.alloc(f32, context * heads * d);
    defer gpa.free(query);
    for (query) |*v| v.* = @floatCast(prng.normal());
    const out = try gpa.alloc(f32, 3 * query.len);
    defer gpa.free(out);
    for ([_][2]usize{ .{ 0, 8 }, .{ 0, 97 }, .{ 5, 200 }, .{ 251, 9 }, .{ 0, 260 } }) |case| {
        const start, const n = case;
        const width = n * heads * d;
        for ([_]usize{ 1, 3 }, 0..) |threads, i| {
            const pool = try base.Pool.init(gpa, threads);
            defer pool.deinit();
            var arena: std.heap.ArenaAllocator = .init(gpa);
            defer arena.deinit();
            var scratch: [3]Scratch = undefined;
            for (&scratch) |*one| one.* = try .init(arena.allocator(), context, d);
            run(pool, &scratch, cached, query[0..width], out[i * query.len ..][0..width], start, n, .of_prompt);
            if (i > 0) continue;
            for (0..n) |t| run(pool, &scratch, cached, query[t * heads * d ..][0 .. heads * d], out[2 * query.len + t * heads * d ..][0 .. heads * d], start + t, 1, .of_answers);
        }
        try testing.expectEqualSlices(f32, out[0..width], out[query.len..][0..width]);
        for (out[0..width], out[2 * query.len ..][0..width]) |a, b| try testing.expectApproxEqAbs(a, b, 2e-5);
    }
}
