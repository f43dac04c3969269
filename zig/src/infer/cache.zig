//! Keys and values of the ids seen so far, in f32, f16 or q8_0.
//!
//! Layout: (layer, kv head, position, row of head_dim), keys and values apart, in whole pages: what is never reached is never touched.
//! A row is written once, rounded to the nearest, and read as it lies. Does not know: ids, queries, threads.

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
};

pub const Cache = struct {
    form: Form,
    shape: Shape,
    row_bytes: usize,
    keys: Pages,
    values: Pages,

    const Pages = []align(std.heap.page_size_min) u8;

    /// `form` must fit the head.
    pub fn init(form: Form, shape: Shape) error{OutOfMemory}!Cache {
        std.debug.assert(form.fits(shape.head_dim));
        const row_bytes = form.rowBytes(shape.head_dim);
        const size = base.checked.product(usize, &.{ shape.layers, shape.kv_heads, shape.context, row_bytes }) catch return error.OutOfMemory;
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
            const to = self.offset(layer, h) + (start + t) * self.row_bytes;
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

    /// Takes over the first `count` positions of a cache of the same form and shape.
    pub fn copy(self: *Cache, other: *const Cache, count: usize) void {
        std.debug.assert(self.form == other.form and std.meta.eql(self.shape, other.shape));
        const len = count * self.row_bytes;
        for (0..self.shape.layers) |l| for (0..self.shape.kv_heads) |h| {
            const at = self.offset(l, h);
            @memcpy(self.keys[at..][0..len], other.keys[at..][0..len]);
            @memcpy(self.values[at..][0..len], other.values[at..][0..len]);
        };
    }

    /// The first `count` rows of keys and of values.
    pub fn rows(self: *const Cache, layer: usize, kv_head: usize, count: usize) [2][]u8 {
        const at = self.offset(layer, kv_head);
        const len = count * self.row_bytes;
        return .{ self.keys[at..][0..len], self.values[at..][0..len] };
    }

    fn offset(self: *const Cache, layer: usize, kv_head: usize) usize {
        return (layer * self.shape.kv_heads + kv_head) * self.shape.context * self.row_bytes;
    }

    /// What attention of `heads` query heads reads of one layer.
    pub fn read(self: *const Cache, layer: usize, heads: usize) attention.Cached {
        const at = self.offset(layer, 0);
        return .{
            .form = self.form,
            .row_bytes = self.row_bytes,
            .keys = self.keys[at..],
            .values = self.values[at..],
            .context = self.shape.context,
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
