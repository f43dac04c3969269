//! Attention of new tokens to themselves and to everything in the cache before them.
//!
//! A token of an answer goes through the cache key by key, as the cache keeps it. Those of a prompt are taken in blocks of queries, for
//! which a worker packs the keys and values of a head once, in f32; kernels/attention.zig says how. What a token gets does not depend on how many come with it. Each head of each token, or each block, is
//! the work of one worker in one order, so the bits do not depend on the number of threads.
//! Does not know: layers, positions' rotation.

const std = @import("std");
const base = @import("base");
const kernels = @import("kernels");
const Tokens = @import("matrix.zig").Tokens;
const Form = @import("cache.zig").Form;

/// One layer's part of the cache: (kv head, position, row of head_dim), `context` positions.
pub const Cached = struct {
    form: Form,
    /// From one position to the next.
    row_bytes: usize,
    keys: []const u8,
    values: []const u8,
    context: usize,
    /// The position of the first row.
    first: usize = 0,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    /// How many positions a token sees at most, its own included; null: all before it.
    window: ?u32 = null,
    /// One logit a head that takes its share of the softmax to nowhere.
    sinks: ?[]const f32 = null,
};

const block_rows = kernels.attention_args.block;

/// Memory of one worker.
pub const Scratch = struct {
    /// One score a position.
    scores: []f32,
    /// The kernel's, rows of f32, keys, values: for blocks.
    block: []align(64) u8,
    rows: []f32,
    keys: []align(64) u8,
    values: []align(64) u8,
    /// What `keys` and `values` hold now.
    kv_head: ?usize = null,

    pub fn init(arena: std.mem.Allocator, form: Form, context: usize, head_dim: usize) error{OutOfMemory}!Scratch {
        const scores = try arena.alloc(f32, context);
        const table = kernels.table(f32);
        const size = table.attention_pack_size(context, head_dim);
        return .{
            .scores = scores,
            .block = try arena.alignedAlloc(u8, .@"64", table.attention_scratch(context, head_dim)),
            .rows = if (form == .f32) &.{} else try arena.alloc(f32, base.checked.mul(usize, context, head_dim) catch return error.OutOfMemory),
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
        return head * c.kv_heads / c.heads * c.context * c.row_bytes;
    }

    fn scale(self: Context) f32 {
        return @floatCast(1 / @sqrt(@as(f64, @floatFromInt(self.cached.head_dim))));
    }

    /// The first position that one at `position` sees.
    fn firstSeen(self: Context, position: usize) usize {
        return if (self.cached.window) |w| position + 1 -| w else 0;
    }

    /// What is left of a softmax without a sink when the head's sink takes its share. `largest` and `sum`: of the scores and their exponentials.
    fn besideSink(self: Context, head: usize, largest: f32, sum: f32) f32 {
        const sinks = self.cached.sinks orelse return 1;
        return @floatCast(1 / (1 + @exp(@as(f64, sinks[head]) - largest) / sum));
    }

    /// One query head of one token. Its position sees itself and everything before it, or a window of that.
    fn one(self: Context, index: usize, worker: usize) void {
        const d = self.cached.head_dim;
        const head = index % self.cached.heads;
        const position = self.start + index / self.cached.heads;
        const first = self.firstSeen(position);
        const row = self.cacheRow(head) + (first - self.cached.first) * self.cached.row_bytes;
        const seen = position + 1 - first;
        const query = self.query[index * d ..][0..d];
        const scores = self.scratch[worker].scores[0..seen];
        const table = kernels.weightTable();
        const matvec, const mix = switch (self.cached.form) {
            .f32 => .{ table.matvec_f32, table.mix_f32 },
            .f16 => .{ table.matvec_f16, table.mix_f16 },
            .q8_0 => .{ table.matvec_q8_0, table.mix_q8_0 },
        };
        matvec(seen, d, self.cached.keys[row..].ptr, self.cached.row_bytes, query.ptr, scores.ptr);
        var largest: f32 = undefined;
        var sum: f32 = undefined;
        kernels.table(f32).softmax_exp(seen, scores.ptr, self.scale(), &largest, &sum);
        kernels.table(f32).scale(seen, scores.ptr, self.besideSink(head, largest, sum) / sum);
        mix(seen, d, self.cached.values[row..].ptr, self.cached.row_bytes, scores.ptr, self.out[index * d ..][0..d].ptr);
    }

    /// Up to `block_rows` tokens of one query head.
    fn block(self: Context, index: usize, worker: usize) void {
        const c = self.cached;
        const d = c.head_dim;
        const head = index / self.blocks();
        const first = index % self.blocks() * block_rows;
        const count = @min(block_rows, self.n - first);
        const begin = self.firstSeen(self.start); // Nothing before it is packed: places below are counted from here.
        const time = self.start + self.n - begin;
        const table = kernels.table(f32);
        const scratch = &self.scratch[worker];
        const kv_head = head * c.kv_heads / c.heads;
        if (scratch.kv_head != kv_head) {
            scratch.kv_head = kv_head;
            const row = self.cacheRow(head) + (begin - c.first) * c.row_bytes;
            table.attention_pack(by_rows, time, d, self.numbers(c.keys[row..], time, scratch).ptr, d, scratch.keys.ptr);
            table.attention_pack(by_columns, time, d, self.numbers(c.values[row..], time, scratch).ptr, d, scratch.values.ptr);
        }
        var from: [block_rows]u32 = undefined;
        var to: [block_rows]u32 = undefined;
        for (from[0..count], to[0..count], self.start + first..) |*f, *t, position| {
            f.* = @intCast(self.firstSeen(position) - begin);
            t.* = @intCast(position + 1 - begin);
        }
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
        if (c.sinks != null) for (0..count) |i| {
            table.scale(d, self.out[at + i * args.q_step ..].ptr, self.besideSink(head, max[i], sum[i]));
        };
    }

    /// The first `time` rows as f32: where they lie, or expanded.
    fn numbers(self: Context, bytes: []const u8, time: usize, scratch: *const Scratch) []const f32 {
        const count = time * self.cached.head_dim;
        const raw = bytes[0 .. time * self.cached.row_bytes];
        if (self.cached.form == .f32) return @alignCast(std.mem.bytesAsSlice(f32, raw));
        expand(self.cached.form, raw, scratch.rows[0..count]);
        return scratch.rows[0..count];
    }

    const by_rows = 0;
    const by_columns = 1;
};

/// Whole rows as f32.
pub fn expand(form: Form, bytes: []const u8, out: []f32) void {
    const table = kernels.weightTable();
    switch (form) {
        .f32 => @memcpy(std.mem.sliceAsBytes(out), bytes),
        .f16 => table.expand_f16(out.len, bytes.ptr, out.ptr),
        .q8_0 => table.expand_q8_0(out.len, bytes.ptr, out.ptr),
    }
}

const testing = std.testing;
const Cache = @import("cache.zig").Cache;

test "blocks of queries see what single tokens see, whatever is in the cache before them, its form and the threads" {
    const gpa = testing.allocator;
    var prng: base.Prng = .init(8);
    const context = 260;
    const heads = 6;
    const kv_heads = 2;
    const query = try gpa.alloc(f32, context * heads * 32);
    defer gpa.free(query);
    const rows = try gpa.alloc(f32, 2 * context * kv_heads * 32);
    defer gpa.free(rows);
    for ([_][]f32{ query, rows }) |list| for (list) |*v| {
        v.* = @floatCast(prng.normal());
    };
    const out = try gpa.alloc(f32, 3 * query.len);
    defer gpa.free(out);
    for (std.enums.values(Form)) |form| for ([_]usize{ 20, 32 }) |d| {
        if (!form.fits(d)) continue;
        var cache: Cache = try .init(form, .{ .layers = 1, .kv_heads = kv_heads, .head_dim = d, .context = context });
        defer cache.deinit();
        const half = context * kv_heads * d;
        cache.store(0, 0, rows[0..half], rows[half..][0..half]);
        const cached = cache.read(0, heads);
        for ([_][2]usize{ .{ 0, 8 }, .{ 0, 97 }, .{ 5, 200 }, .{ 251, 9 }, .{ 0, 260 } }) |case| {
            const start, const n = case;
            const width = n * heads * d;
            for ([_]usize{ 1, 3 }, 0..) |threads, i| {
                const pool = try base.Pool.init(gpa, threads);
                defer pool.deinit();
                var arena: std.heap.ArenaAllocator = .init(gpa);
                defer arena.deinit();
                var scratch: [3]Scratch = undefined;
                for (&scratch) |*one| one.* = try .init(arena.allocator(), form, context, d);
                run(pool, &scratch, cached, query[0..width], out[i * query.len ..][0..width], start, n, .of_prompt);
                if (i > 0) continue;
                for (0..n) |t| run(pool, &scratch, cached, query[t * heads * d ..][0 .. heads * d], out[2 * query.len + t * heads * d ..][0 .. heads * d], start + t, 1, .of_answers);
            }
            try testing.expectEqualSlices(f32, out[0..width], out[query.len..][0..width]);
            for (out[0..width], out[2 * query.len ..][0..width]) |a, b| try testing.expectApproxEqAbs(a, b, 2e-5);
            // The last token, by the definition, of what is kept.
            const t = n - 1;
            const seen = start + n;
            var kept: [2][context * 32]f32 = undefined;
            for (0..heads) |h| {
                const at = h * kv_heads / heads * context * cached.row_bytes;
                for (&kept, [_][]const u8{ cached.keys, cached.values }) |*numbers, bytes| {
                    expand(form, bytes[at..][0 .. seen * cached.row_bytes], numbers[0 .. seen * d]);
                }
                const q = query[(t * heads + h) * d ..][0..d];
                var total: f64 = 0;
                var wanted: [32]f64 = @splat(0);
                for (0..seen) |j| {
                    var score: f64 = 0;
                    for (q, kept[0][j * d ..][0..d]) |x, k| score += @as(f64, x) * k;
                    const weight = @exp(score / @sqrt(@as(f64, @floatFromInt(d))));
                    total += weight;
                    for (wanted[0..d], kept[1][j * d ..][0..d]) |*w, v| w.* += weight * v;
                }
                for (wanted[0..d], out[(t * heads + h) * d ..][0..d]) |w, o| try testing.expectApproxEqAbs(w / total, o, 2e-5);
            }
        }
    };
}
