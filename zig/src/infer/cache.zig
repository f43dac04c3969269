//! Keys and values of the ids seen so far, in f32, f16 or q8_0.
//!
//! Layout: (layer, kv head, position, row of head_dim), keys and values apart, in whole pages: what is never reached is never touched.
//! A row is written once, rounded to the nearest, and read as it lies. Layers with a window keep the newest positions only: when their
//! room is full, the rows that may still be seen move to its beginning. Does not know: ids, queries, threads.

const std = @import("std");
const base = @import("base");
const tensor = @import("tensor");
const kernels = @import("kernels");
const attention = @import("attention.zig");

/// How a number is kept. f16 and q8_0 are those of files; q8_0 takes heads of a multiple of 32.
pub const Form = enum {
    f32,
    f16,
    q8_0,

    pub fn dtype(self: Form) tensor.DType {
        return switch (self) {
            inline else => |form| @field(tensor.DType, @tagName(form)),
        };
    }

    /// Whether rows of `head_dim` numbers can be kept so.
    pub fn fits(self: Form, head_dim: usize) bool {
        return head_dim % self.dtype().blockLen() == 0;
    }

    pub fn rowBytes(self: Form, head_dim: usize) usize {
        return head_dim / self.dtype().blockLen() * self.dtype().blockBytes();
    }
};

pub const Shape = struct {
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    /// Positions.
    context: usize,
    /// Of layers with a window: how many positions a token sees, and how many there is room for; 0: there are no such layers.
    window: usize = 0,
    window_rows: usize = 0,
    /// All layers have the window; else every other one, from the first on.
    every: bool = true,

    /// Positions that can be given up at any time, behind the window.
    pub const slack = 512;

    /// The same with a window, where it saves anything. At most `most` positions are stored at once.
    pub fn withWindow(self: Shape, window: ?u32, every: bool, most: usize) Shape {
        const rows = (window orelse return self) + slack + 2 * most;
        if (rows >= self.context) return self;
        var shape = self;
        shape.window = window.?;
        shape.window_rows = rows;
        shape.every = every;
        return shape;
    }

    fn isWindowed(self: Shape, layer: usize) bool {
        return self.window_rows > 0 and (self.every or layer % 2 == 0);
    }

    fn rowsOf(self: Shape, layer: usize) usize {
        return if (self.isWindowed(layer)) self.window_rows else self.context;
    }

    /// Rows of one kv head in the layers before `layer`.
    fn rowsBefore(self: Shape, layer: usize) error{Overflow}!usize {
        const windowed = if (self.window_rows == 0) 0 else if (self.every) layer else (layer + 1) / 2;
        const whole = try std.math.mul(usize, layer - windowed, self.context);
        return std.math.add(usize, whole, windowed * self.window_rows);
    }
};

pub const Cache = struct {
    form: Form,
    shape: Shape,
    row_bytes: usize,
    keys: Pages,
    values: Pages,
    /// The first position that layers with a window still have.
    first: usize = 0,

    const Pages = []align(std.heap.page_size_min) u8;

    /// `form` must fit the head.
    pub fn init(form: Form, shape: Shape) error{OutOfMemory}!Cache {
        std.debug.assert(form.fits(shape.head_dim));
        const row_bytes = form.rowBytes(shape.head_dim);
        const rows_of_head = shape.rowsBefore(shape.layers) catch return error.OutOfMemory;
        const size = base.checked.product(usize, &.{ rows_of_head, shape.kv_heads, row_bytes }) catch return error.OutOfMemory;
        const keys = try pages(size);
        errdefer std.heap.page_allocator.free(keys);
        return .{ .form = form, .shape = shape, .row_bytes = row_bytes, .keys = keys, .values = try pages(size) };
    }

    fn pages(size: usize) error{OutOfMemory}!Pages {
        return std.heap.page_allocator.alignedAlloc(u8, .fromByteUnits(std.heap.page_size_min), size);
    }

    pub fn deinit(self: *Cache) void {
        std.heap.page_allocator.free(self.keys);
        std.heap.page_allocator.free(self.values);
        self.* = undefined;
    }

    /// Bytes of the whole, touched or not.
    pub fn byteCount(self: *const Cache) usize {
        return self.keys.len + self.values.len;
    }

    /// keys, values: (positions, kv heads, head_dim), for positions `start` on of one layer.
    pub fn store(self: *Cache, layer: usize, start: usize, keys: []const f32, values: []const f32) void {
        const s = self.shape;
        for (0..keys.len / (s.kv_heads * s.head_dim)) |t| for (0..s.kv_heads) |h| {
            const from = (t * s.kv_heads + h) * s.head_dim;
            const to = self.offset(layer, h) + (start - self.firstOf(layer) + t) * self.row_bytes;
            self.storeRow(keys[from..][0..s.head_dim], self.keys[to..][0..self.row_bytes]);
            self.storeRow(values[from..][0..s.head_dim], self.values[to..][0..self.row_bytes]);
        };
    }

    fn storeRow(self: *const Cache, from: []const f32, to: []u8) void {
        switch (self.form) {
            .f32 => @memcpy(to, std.mem.sliceAsBytes(from)),
            .f16 => tensor.convert.f32SliceToF16(from, to),
            // A number beyond the scale's range makes it infinite, and what is computed from it no number: found with the logits.
            .q8_0 => _ = kernels.quantiseTable().quantise_q8_0(from.len / 32, from.ptr, to.ptr),
        }
    }

    /// Call it before `count` positions from `start` on, all that there are so far, are stored.
    pub fn makeRoom(self: *Cache, start: usize, count: usize) void {
        const s = self.shape;
        if (s.window_rows == 0 or start + count - self.first <= s.window_rows) return;
        const first = start + 1 -| s.window -| Shape.slack;
        const len = (start - first) * self.row_bytes;
        for (0..s.layers) |l| if (s.isWindowed(l)) for (0..s.kv_heads) |h| {
            const to = self.offset(l, h);
            const from = to + (first - self.first) * self.row_bytes;
            std.mem.copyForwards(u8, self.keys[to..][0..len], self.keys[from..][0..len]);
            std.mem.copyForwards(u8, self.values[to..][0..len], self.values[from..][0..len]);
        };
        self.first = first;
    }

    /// Whether there is all that positions from `to` on see of those before.
    pub fn holds(self: *const Cache, to: usize) bool {
        return self.first == 0 or to + 1 -| self.shape.window >= self.first;
    }

    /// Takes over the first `count` positions of a cache of the same form and shape, which holds them.
    pub fn copy(self: *Cache, other: *const Cache, count: usize) void {
        std.debug.assert(self.form == other.form and std.meta.eql(self.shape, other.shape) and other.holds(count));
        self.first = other.first;
        for (0..self.shape.layers) |l| for (0..self.shape.kv_heads) |h| {
            for (self.rows(l, h, self.firstOf(l), count), other.rows(l, h, self.firstOf(l), count)) |to, from| @memcpy(to, from);
        };
    }

    /// The first position whose rows a layer has.
    pub fn firstOf(self: *const Cache, layer: usize) usize {
        return if (self.shape.isWindowed(layer)) self.first else 0;
    }

    /// Takes that positions before `first` are missing in layers with a window, and that `count` are about to be put in through `rows`.
    /// How many can be: 0 where the missing ones would be seen.
    pub fn begin(self: *Cache, first: usize, count: usize) usize {
        self.first = 0;
        if (first == 0 and (self.shape.window_rows == 0 or count <= self.shape.window_rows)) return count;
        if (self.shape.window_rows == 0) return 0;
        const newest = count + 1 -| self.shape.window -| Shape.slack;
        if (count + 1 -| self.shape.window < first) return 0;
        self.first = @max(first, newest);
        return count;
    }

    /// Rows of keys and of values of the positions from `from` to before `to`.
    pub fn rows(self: *const Cache, layer: usize, kv_head: usize, from: usize, to: usize) [2][]u8 {
        if (from >= to) return .{ &.{}, &.{} };
        const at = self.offset(layer, kv_head) + (from - self.firstOf(layer)) * self.row_bytes;
        const len = (to - from) * self.row_bytes;
        return .{ self.keys[at..][0..len], self.values[at..][0..len] };
    }

    fn offset(self: *const Cache, layer: usize, kv_head: usize) usize {
        const before = self.shape.rowsBefore(layer) catch unreachable; // `init` came further.
        return (before * self.shape.kv_heads + kv_head * self.shape.rowsOf(layer)) * self.row_bytes;
    }

    /// What attention of `heads` query heads reads of one layer.
    pub fn read(self: *const Cache, layer: usize, heads: usize) attention.Cached {
        const at = self.offset(layer, 0);
        return .{
            .form = self.form,
            .row_bytes = self.row_bytes,
            .keys = self.keys[at..],
            .values = self.values[at..],
            .context = self.shape.rowsOf(layer),
            .first = self.firstOf(layer),
            .heads = heads,
            .kv_heads = self.shape.kv_heads,
            .head_dim = self.shape.head_dim,
        };
    }
};

const testing = std.testing;

test "rows come back as they were stored, within the rounding of each form" {
    var prng: base.Prng = .init(4);
    const shape: Shape = .{ .layers = 2, .kv_heads = 3, .head_dim = 64, .context = 5 };
    const width = shape.kv_heads * shape.head_dim;
    var keys: [2 * width]f32 = undefined;
    var values: [2 * width]f32 = undefined;
    for (&keys, &values) |*k, *v| {
        k.* = @floatCast(prng.normal());
        v.* = @floatCast(prng.normal());
    }
    for (std.enums.values(Form), [_]f32{ 0, 0x1p-9, 4.0 / 127.0 }) |form, tolerance| {
        var cache: Cache = try .init(form, shape);
        defer cache.deinit();
        try testing.expectEqual(2 * 2 * 3 * 5 * form.rowBytes(64), cache.byteCount());
        cache.store(1, 3, &keys, &values);
        const seen = cache.read(1, 6);
        for (0..2) |t| for (0..shape.kv_heads) |h| {
            for ([_][]const u8{ seen.keys, seen.values }, [_][]const f32{ &keys, &values }) |bytes, wanted| {
                var row: [64]f32 = undefined;
                attention.expand(form, bytes[(h * 5 + 3 + t) * seen.row_bytes ..][0..seen.row_bytes], &row);
                for (row, wanted[(t * 3 + h) * 64 ..][0..64]) |got, x| try testing.expectApproxEqAbs(x, got, tolerance);
            }
        };
    }
    try testing.expect(!Form.q8_0.fits(80) and Form.f16.fits(80) and Form.q8_0.fits(96));
    try testing.expectError(error.OutOfMemory, Cache.init(.f32, .{ .layers = 1 << 40, .kv_heads = 1 << 40, .head_dim = 32, .context = 1 }));
}

test "layers with a window forget what nobody sees any more, the others nothing" {
    const plain: Shape = .{ .layers = 3, .kv_heads = 2, .head_dim = 4, .context = 5000 };
    const shape = plain.withWindow(10, false, 16);
    try testing.expectEqual(10 + 512 + 32, shape.window_rows);
    try testing.expectEqual(plain, plain.withWindow(null, true, 16));
    try testing.expectEqual(plain, plain.withWindow(4960, true, 16));
    var cache: Cache = try .init(.f32, shape);
    defer cache.deinit();
    try testing.expectEqual(2 * 2 * (5000 + 2 * 554) * 16, cache.byteCount());

    var position: usize = 0;
    while (position < 2000) : (position += 16) {
        cache.makeRoom(position, 16);
        for (0..3) |layer| {
            var rows: [16 * 8]f32 = undefined;
            for (&rows, 0..) |*v, i| v.* = @floatFromInt(10 * (position + i / 8) + layer);
            cache.store(layer, position, &rows, &rows);
        }
        try testing.expect(cache.holds(position + 16) and cache.holds(position -| 500));
    }
    try testing.expect(cache.first > 0 and !cache.holds(cache.first) and cache.holds(cache.first + 9));
    for (0..3) |layer| for (0..2) |head| for (cache.rows(layer, head, cache.firstOf(layer), position)) |bytes| {
        const numbers: []const f32 = @alignCast(std.mem.bytesAsSlice(f32, bytes));
        for (numbers, 0..) |v, i| try testing.expectEqual(@as(f32, @floatFromInt(10 * (cache.firstOf(layer) + i / 4) + layer)), v);
    };
    try testing.expectEqual(0, cache.firstOf(1));
}
