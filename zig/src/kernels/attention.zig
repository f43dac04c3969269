//! Attention of one block of queries of one head: scores, softmax and products while everything lies in the cache.
//!
//! Scores are made turned, keys down and the block's queries across. Softmax then runs down columns, a vector of queries
//! at a time, and leaves its result where the next product reads it: no operand is packed between the two. Tiles that
//! no query of theirs can see are left out. Keys and values of a head are packed once by `attention_pack`.
//! A sum over keys is one chain in their order; so is a sum over queries. Nothing depends on how blocks are divided
//! among threads.

const lanes = @import("lanes.zig");
const pack = @import("pack.zig");
const gemm = @import("gemm.zig");
const args_file = @import("attention_args.zig");

const Word = pack.Word;
const depth = pack.depth;
const block = args_file.block;
const mr = gemm.tile_rows;

/// How keys or values are packed: for the rows or for the columns of a product.
const Form = enum(c_int) { rows = 0, columns = 1 };

pub fn Kernels(comptime T: type) type {
    return struct {
        /// Bytes for one operand packed in either form.
        pub fn attention_pack_size(time: usize, head_dim: usize) callconv(.c) usize {
            return packSize(T, false, time, head_dim);
        }

        /// x: `time` tokens of one head, `step` numbers apart. out: attention_pack_size bytes, aligned to 64.
        pub fn attention_pack(form: c_int, time: usize, head_dim: usize, x: [*]const T, step: usize, out: [*]u8) callconv(.c) void {
            packOperand(T, false, @fromBackingInt(@intCast(form)), time, head_dim, x, step, out);
        }

        /// Bytes of scratch for the backward pass, enough for the forward pass.
        pub fn attention_scratch(time: usize, head_dim: usize) callconv(.c) usize {
            return Scratch(T).size(time, head_dim);
        }

        pub fn attention_forward(args: *const args_file.Args(T)) callconv(.c) void {
            forward(T, false, args);
        }

        pub fn attention_backward(args: *const args_file.Args(T)) callconv(.c) void {
            backward(T, false, args);
        }
    };
}

/// The same with operands of products rounded to bf16. Scratch is that of f32.
pub const LowKernels = struct {
    pub fn attention_pack_size_bf16(time: usize, head_dim: usize) callconv(.c) usize {
        return packSize(f32, true, time, head_dim);
    }

    pub fn attention_pack_bf16(form: c_int, time: usize, head_dim: usize, x: [*]const f32, step: usize, out: [*]u8) callconv(.c) void {
        packOperand(f32, true, @fromBackingInt(@intCast(form)), time, head_dim, x, step, out);
    }

    pub fn attention_forward_bf16(args: *const args_file.Args(f32)) callconv(.c) void {
        forward(f32, true, args);
    }

    pub fn attention_backward_bf16(args: *const args_file.Args(f32)) callconv(.c) void {
        backward(f32, true, args);
    }
};

fn packSize(comptime T: type, comptime low: bool, time: usize, head_dim: usize) usize {
    const nr = gemm.panelWidth(T);
    const rows = (time + mr - 1) / mr * gemm.pitch(T) * depth(low, head_dim);
    const columns = (head_dim + nr - 1) / nr * nr * depth(low, time);
    const words = if (rows > columns) rows else columns;
    return (words + 15) / 16 * 16 * @sizeOf(T);
}

fn packOperand(comptime T: type, comptime low: bool, form: Form, time: usize, head_dim: usize, x: [*]const T, step: usize, out: [*]u8) void {
    const words: [*]Word(T, low) = @ptrCast(@alignCast(out));
    switch (form) {
        .rows => pack.panels(T, low, mr, time, head_dim, x, step, 1, words, gemm.pitch(T) * depth(low, head_dim)),
        .columns => packColumns(T, low, time, time, head_dim, x, step, words),
    }
}

/// `tokens` rows of a head as columns of a product whose sum runs over up to `room` tokens.
fn packColumns(comptime T: type, comptime low: bool, room: usize, tokens: usize, head_dim: usize, x: [*]const T, step: usize, out: [*]Word(T, low)) void {
    const nr = gemm.panelWidth(T);
    pack.panels(T, low, nr, head_dim, tokens, x, 1, step, out, nr * depth(low, room));
}

/// Queries (or gradients of their outputs) as columns: the sum runs over the head's numbers.
fn packQueries(comptime T: type, comptime low: bool, args: *const args_file.Args(T), x: [*]const T, out: [*]Word(T, low)) void {
    const nr = gemm.panelWidth(T);
    pack.panels(T, low, nr, args.queries, args.head_dim, x, args.q_step, 1, out, nr * depth(low, args.head_dim));
}

fn Scratch(comptime T: type) type {
    return struct {
        /// Scores, then probabilities; gradients of probabilities, then of scores: [keys][block].
        scores: [*]T,
        dscores: [*]T,
        /// bf16 only: gradients of scores, two keys a word: [keys / 2][block].
        pairs: [*]T,
        q: [*]T,
        dout: [*]T,
        q_columns: [*]T,
        dout_columns: [*]T,

        const Self = @This();

        /// Whole tiles are written and read: a few rows more than there are keys.
        fn rowsFor(time: usize) usize {
            return time + 3 * mr;
        }

        fn columnsFor(head_dim: usize) usize {
            const nr = gemm.panelWidth(T);
            return (head_dim + nr - 1) / nr * nr * block;
        }

        fn size(time: usize, head_dim: usize) usize {
            const rows = rowsFor(time) * block;
            return (2 * rows + rows / 2 + block + 2 * block * (head_dim + head_dim % 2) + 2 * columnsFor(head_dim) + 64) * @sizeOf(T);
        }

        fn at(bytes: [*]u8, time: usize, head_dim: usize) Self {
            const rows = rowsFor(time) * block;
            const p: [*]T = @ptrCast(@alignCast(bytes));
            const queries = block * (head_dim + head_dim % 2);
            var self: Self = undefined;
            self.scores = p;
            self.dscores = p + rows;
            self.q = self.dscores + rows;
            self.dout = self.q + queries;
            self.q_columns = self.dout + queries;
            self.dout_columns = self.q_columns + columnsFor(head_dim);
            self.pairs = self.dout_columns + columnsFor(head_dim);
            return self;
        }
    };
}

/// What the block sees, in whole tiles of keys.
const Span = struct {
    key: usize,
    end: usize,

    fn of(from: []const u32, to: []const u32) Span {
        const seen = hull(from, to);
        return .{ .key = seen.key / mr * mr, .end = seen.end };
    }
};

/// From the first to the last key that one of the queries sees; empty when none sees any.
fn hull(from: []const u32, to: []const u32) Span {
    var span: Span = .{ .key = ~@as(usize, 0), .end = 0 };
    for (from, to) |f, t| if (f < t) {
        span.key = @min(span.key, f);
        span.end = @max(span.end, t);
    };
    return if (span.end == 0) .{ .key = 0, .end = 0 } else span;
}

/// out[key − span.key][query] = rows · columns for the tiles that a query sees.
fn turnedProduct(comptime T: type, comptime low: bool, args: *const args_file.Args(T), span: Span, rows: [*]const Word(T, low), columns: [*]const Word(T, low), out: [*]T) void {
    const nr = gemm.panelWidth(T);
    const words = depth(low, args.head_dim);
    var j: usize = 0;
    while (j < args.queries) : (j += nr) {
        const end = @min(j + nr, args.queries);
        const seen = hull(args.from[j..end], args.to[j..end]);
        var key = seen.key / mr * mr;
        while (key < seen.end) : (key += mr) {
            gemm.tile(T, low, false, .panels, words, rows + key / mr * gemm.pitch(T) * words, 0, columns + j * words, out + (key - span.key) * block + j, block);
        }
    }
}

/// c[query][number] = Σ over keys of a[key][query] · b[key][number]; a has block columns (two keys a word in bf16).
fn sumOverKeys(comptime T: type, comptime low: bool, args: *const args_file.Args(T), span: Span, a: [*]const Word(T, low), b: [*]const u8, c: [*]T) void {
    const nr = gemm.panelWidth(T);
    const columns: [*]const Word(T, low) = @ptrCast(@alignCast(b));
    const stride = nr * depth(low, args.time);
    var i: usize = 0;
    while (i < args.queries) : (i += mr) {
        const rows = @min(mr, args.queries - i);
        const seen = hull(args.from[i .. i + rows], args.to[i .. i + rows]);
        const key = if (seen.end == 0) span.key else seen.key / 2 * 2;
        const words = depth(low, seen.end -| key);
        const ap = a + depth(low, key - span.key) * block + i;
        var j: usize = 0;
        while (j < args.head_dim) : (j += nr) {
            const bp = columns + j / nr * stride + depth(low, key) * nr;
            gemm.tileOrEdge(T, low, false, .columns, words, ap, block, bp, c + i * args.q_step + j, args.q_step, rows, args.head_dim - j);
        }
    }
}

/// c[key][number] += Σ over queries of a[key][query] · b[query][number]; a has rows of block words (two queries a word in
/// bf16).
fn sumOverQueries(comptime T: type, comptime low: bool, args: *const args_file.Args(T), span: Span, a: [*]const Word(T, low), b: [*]const Word(T, low), c: [*]T) void {
    const nr = gemm.panelWidth(T);
    var first: usize = 0; // The first query that sees a key of the tile or a later one.
    var key = span.key;
    while (key < span.end) : (key += mr) {
        while (first < args.queries and args.to[first] <= key) first += 1;
        var last = args.queries;
        while (last > first and (args.from[last - 1] >= key + mr or args.to[last - 1] <= key)) last -= 1;
        if (last == first) continue;
        const q = first / 2 * 2;
        const words = depth(low, last - q);
        const rows = @min(mr, span.end - key);
        const ap = a + (key - span.key) * block + depth(low, q);
        var j: usize = 0;
        while (j < args.head_dim) : (j += nr) {
            const bp = b + j / nr * nr * depth(low, block) + depth(low, q) * nr;
            gemm.tileOrEdge(T, low, true, .rows, words, ap, block, bp, c + key * args.kv_step + j, args.kv_step, rows, args.head_dim - j);
        }
    }
}

/// Queries that softmax treats together, in vectors: their maxima and sums stay in registers.
const group = 6;

const Seen = enum { none, some, all };

/// Which keys the queries of a group see: all of them in full.key … full.end − 1, none outside of any.
fn Sight(comptime T: type) type {
    return struct {
        from: [group]Ints,
        to: [group]Ints,
        full: Span,
        any: Span,

        const vl = lanes.width(T);
        const Ints = @Vector(vl, u32);

        /// Queries that do not exist see what the last one sees.
        fn of(args: *const args_file.Args(T), first: usize) @This() {
            var self: @This() = undefined;
            self.full = .{ .key = 0, .end = ~@as(usize, 0) };
            self.any = .{ .key = ~@as(usize, 0), .end = 0 };
            for (0..group) |g| {
                var from: [vl]u32 = undefined;
                var to: [vl]u32 = undefined;
                for (0..vl) |i| {
                    const q = @min(first + g * vl + i, args.queries - 1);
                    from[i] = args.from[q];
                    to[i] = args.to[q];
                    self.full.key = @max(self.full.key, from[i]);
                    self.full.end = @min(self.full.end, to[i]);
                    if (from[i] < to[i]) {
                        self.any.key = @min(self.any.key, from[i]);
                        self.any.end = @max(self.any.end, to[i]);
                    }
                }
                self.from[g] = from;
                self.to[g] = to;
            }
            return self;
        }

        /// What the group sees of `count` keys.
        inline fn ofKeys(self: *const @This(), key: usize, comptime count: usize) Seen {
            if (key >= self.full.key and key + count <= self.full.end) return .all;
            if (key + count <= self.any.key or key >= self.any.end) return .none;
            return .some;
        }

        inline fn mask(self: *const @This(), g: usize, key: usize) @Vector(vl, bool) {
            const k: Ints = @splat(@intCast(key));
            return (k >= self.from[g]) & (k < self.to[g]);
        }
    };
}

inline fn loadAt(comptime T: type, p: [*]const T) lanes.Vector(T) {
    return @as(*align(@sizeOf(lanes.Vector(T))) const lanes.Vector(T), @ptrCast(@alignCast(p))).*;
}

inline fn zero(comptime T: type) lanes.Vector(T) {
    return @splat(0);
}

/// Terms added in T before the partial sum joins the total: bounds the error of long rows.
const sum_block = 32;

/// e^(score − largest) in place for `group` vectors of queries from `first` on; 0 where a query sees nothing. In bf16 two
/// keys become one word, and row i holds keys 2i and 2i + 1.
fn softmax(comptime T: type, comptime low: bool, args: *const args_file.Args(T), span: Span, first: usize, scores: [*]T) void {
    @setEvalBranchQuota(20_000);
    const V = lanes.Vector(T);
    const vl = lanes.width(T);
    const sight: Sight(T) = .of(args, first);
    const scale: V = @splat(args.scale);
    const lowest: V = @splat(-lanes.largest(T));
    var max: [group]V = @splat(lowest);
    for (span.key..span.end) |key| {
        const row = scores + (key - span.key) * block + first;
        switch (sight.ofKeys(key, 1)) {
            .none => {},
            .all => inline for (0..group) |g| {
                max[g] = @max(max[g], loadAt(T, row + g * vl));
            },
            .some => inline for (0..group) |g| {
                max[g] = @max(max[g], @select(T, sight.mask(g, key), loadAt(T, row + g * vl), lowest));
            },
        }
    }
    inline for (0..group) |g| max[g] *= scale;
    var total: [group]V = @splat(zero(T));
    var key = span.key;
    while (key < span.end) {
        const stop = @min(key + sum_block, span.end);
        var part: [group]V = @splat(zero(T));
        while (key < stop) : (key += if (low) 2 else 1) {
            const row = scores + (key - span.key) * block + first;
            switch (sight.ofKeys(key, if (low) 2 else 1)) {
                inline else => |seen| inline for (0..group) |g| {
                    const e = exponential(T, &sight, seen, g, key, row + g * vl, scale, max[g]);
                    part[g] += e;
                    if (low) {
                        const next = exponential(T, &sight, seen, g, key + 1, row + block + g * vl, scale, max[g]);
                        part[g] += next;
                        pack.put(scores + (key - span.key) / 2 * block + first + g * vl, pack.pairUp(e, next));
                    } else pack.put(row + g * vl, e);
                },
            }
        }
        inline for (0..group) |g| total[g] += part[g];
    }
    inline for (0..group) |g| {
        lanes.store(T, args.max + first + g * vl, max[g]);
        lanes.store(T, args.sum + first + g * vl, total[g]);
    }
}

inline fn exponential(comptime T: type, sight: *const Sight(T), comptime seen: Seen, g: usize, key: usize, at: [*]const T, scale: lanes.Vector(T), max: lanes.Vector(T)) lanes.Vector(T) {
    if (seen == .none) return zero(T);
    const e = lanes.exp(T, loadAt(T, at) * scale - max);
    return if (seen == .all) e else @select(T, sight.mask(g, key), e, zero(T));
}

/// out = softmax(scores) · values; max and sum of each query.
fn forward(comptime T: type, comptime low: bool, args: *const args_file.Args(T)) void {
    const scratch: Scratch(T) = .at(args.scratch, args.time, args.head_dim);
    const span: Span = .of(args.from[0..args.queries], args.to[0..args.queries]);
    const q: [*]Word(T, low) = @ptrCast(scratch.q);
    packQueries(T, low, args, args.q, q);
    turnedProduct(T, low, args, span, @ptrCast(@alignCast(args.keys)), q, scratch.scores);
    const step = group * lanes.width(T);
    var first: usize = 0;
    while (first < args.queries) : (first += step) softmax(T, low, args, span, first, scratch.scores);
    sumOverKeys(T, low, args, span, @ptrCast(scratch.scores), args.values, args.out);
    for (0..args.queries) |i| {
        const inverse = 1 / args.sum[i];
        const row = args.out + i * args.q_step;
        const factor: lanes.Vector(T) = @splat(inverse);
        var c: usize = 0;
        while (c + lanes.width(T) <= args.head_dim) : (c += lanes.width(T)) lanes.store(T, row + c, lanes.load(T, row + c) * factor);
        while (c < args.head_dim) : (c += 1) row[c] *= inverse;
    }
}

/// Probabilities and gradients of scores in place of scores and gradients of probabilities, for `group` vectors of
/// queries. In bf16 both become words of two queries at the begin of their rows, and `pairs` gets words of two keys.
fn probabilities(comptime T: type, comptime low: bool, args: *const args_file.Args(T), span: Span, first: usize, delta: [*]const T, scratch: Scratch(T)) void {
    @setEvalBranchQuota(20_000);
    const V = lanes.Vector(T);
    const vl = lanes.width(T);
    const sight: Sight(T) = .of(args, first);
    const scale: V = @splat(args.scale);
    var lse: [group]V = undefined;
    var deltas: [group]V = undefined;
    inline for (0..group) |g| {
        const have = if (args.queries > first + g * vl) @min(args.queries - first - g * vl, vl) else 0;
        lse[g] = lanes.loadPart(T, args.lse + first + g * vl, have, 0);
        deltas[g] = lanes.loadPart(T, delta + first + g * vl, have, 0);
    }
    var key = span.key;
    while (key < span.end) : (key += if (low) 2 else 1) switch (sight.ofKeys(key, if (low) 2 else 1)) {
        inline else => |seen| {
            const count = if (low) 2 else 1;
            var ds: [count][group]V = undefined;
            inline for (0..count) |r| {
                const row = scratch.scores + (key + r - span.key) * block;
                const drow = scratch.dscores + (key + r - span.key) * block;
                var p: [group]V = undefined;
                inline for (0..group) |g| {
                    const at = first + g * vl;
                    p[g] = exponential(T, &sight, seen, g, key + r, row + at, scale, lse[g]);
                    ds[r][g] = p[g] * (loadAt(T, drow + at) - deltas[g]) * scale;
                    // What stands where nothing is seen may be no number.
                    if (seen != .all) ds[r][g] = if (seen == .none) zero(T) else @select(T, sight.mask(g, key + r), ds[r][g], zero(T));
                    if (!low) {
                        pack.put(row + at, p[g]);
                        pack.put(drow + at, ds[r][g]);
                    }
                }
                if (low) inline for (0..group / 2) |g| {
                    const at = first / 2 + g * vl;
                    pack.put(row + at, pack.pairsOf(p[2 * g], p[2 * g + 1]));
                    pack.put(drow + at, pack.pairsOf(ds[r][2 * g], ds[r][2 * g + 1]));
                };
            }
            if (low) inline for (0..group) |g| {
                pack.put(scratch.pairs + (key - span.key) / 2 * block + first + g * vl, pack.pairUp(ds[0][g], ds[1][g]));
            };
        },
    };
}

/// dq stored; dk and dv added to.
fn backward(comptime T: type, comptime low: bool, args: *const args_file.Args(T)) void {
    const W = Word(T, low);
    const d = args.head_dim;
    const scratch: Scratch(T) = .at(args.scratch, args.time, d);
    const span: Span = .of(args.from[0..args.queries], args.to[0..args.queries]);
    const q: [*]W = @ptrCast(scratch.q);
    const dout: [*]W = @ptrCast(scratch.dout);
    packQueries(T, low, args, args.q, q);
    packQueries(T, low, args, args.dout, dout);
    turnedProduct(T, low, args, span, @ptrCast(@alignCast(args.keys)), q, scratch.scores);
    turnedProduct(T, low, args, span, @ptrCast(@alignCast(args.values)), dout, scratch.dscores);

    var delta: [block]T = undefined;
    for (0..args.queries) |i| delta[i] = inner(T, d, args.dout + i * args.q_step, args.out + i * args.q_step);
    const step = group * lanes.width(T);
    var first: usize = 0;
    while (first < args.queries) : (first += step) probabilities(T, low, args, span, first, &delta, scratch);

    if (args.dv) |dv| {
        const columns: [*]W = @ptrCast(scratch.dout_columns);
        packColumns(T, low, block, args.queries, d, args.dout, args.q_step, columns);
        sumOverQueries(T, low, args, span, @ptrCast(scratch.scores), columns, dv);
    }
    if (args.dk) |dk| {
        const columns: [*]W = @ptrCast(scratch.q_columns);
        packColumns(T, low, block, args.queries, d, args.q, args.q_step, columns);
        sumOverQueries(T, low, args, span, @ptrCast(scratch.dscores), columns, dk);
    }
    if (args.dq) |dq| sumOverKeys(T, low, args, span, @ptrCast(if (low) scratch.pairs else scratch.dscores), args.key_columns, dq);
}

fn inner(comptime T: type, n: usize, x: [*]const T, y: [*]const T) T {
    const vl = lanes.width(T);
    var acc = zero(T);
    var i: usize = 0;
    while (i + vl <= n) : (i += vl) acc = lanes.mulAdd(T, lanes.load(T, x + i), lanes.load(T, y + i), acc);
    if (i < n) acc = lanes.mulAdd(T, lanes.loadPart(T, x + i, n - i, 0), lanes.loadPart(T, y + i, n - i, 0), acc);
    return lanes.sum(lanes.Vector(T), acc);
}
