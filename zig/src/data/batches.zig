//! Batches of a token stream in ABI's layout, without copies.
//!
//! Batch k, row r, column c: input = tokens[k·B·T + r·T + c], label = the token one later. Rows of a batch follow each
//! other in the stream, so a row's last label is the next row's first token. The tail that fills no batch is dropped.
//! Shuffling permutes whole batches (`order.zig`); what is inside a batch never changes.
//! Does not know: files, loss masks, rows of documents.

const std = @import("std");
const order_module = @import("order.zig");
const Allocator = std.mem.Allocator;

pub const BatchError = error{
    /// batch_size or seq_len is 0, or their product is no size.
    InvalidBatchShape,
    /// More than 2³² − 1 batches.
    TooManyBatches,
    OutOfMemory,
};

pub const BatchOptions = struct {
    batch_size: usize,
    seq_len: usize,
    shuffle: bool = false,
    /// Same seed, same order.
    seed: u64 = 42,
};

/// Slices into the mapped file: valid as long as the dataset, not only until the next call.
pub const Batch = struct {
    /// [batch_size · seq_len], row by row.
    input_ids: []const u32,
    /// [batch_size · seq_len]: the token after each input.
    labels: []const u32,
    /// Always null: every position of a stream is real.
    attention_mask: ?[]const u8 = null,
    batch_size: usize,
    seq_len: usize,
    /// Which batch of the stream this is.
    index: usize,
};

/// Batches that `token_count` tokens give; 0 for a shape of size 0.
pub fn count(token_count: usize, batch_size: usize, seq_len: usize) usize {
    const size = std.math.mul(usize, batch_size, seq_len) catch return 0;
    if (size == 0 or token_count <= size) return 0;
    return (token_count - 1) / size;
}

pub const BatchIterator = struct {
    gpa: Allocator,
    tokens: []const u32,
    options: BatchOptions,
    order: []u32,
    position: usize = 0,
    epoch: u64 = 0,

    pub fn init(gpa: Allocator, tokens: []const u32, options: BatchOptions) BatchError!BatchIterator {
        const size = std.math.mul(usize, options.batch_size, options.seq_len) catch return error.InvalidBatchShape;
        if (size == 0) return error.InvalidBatchShape;
        const total = count(tokens.len, options.batch_size, options.seq_len);
        if (total > std.math.maxInt(u32)) return error.TooManyBatches;
        const order = try gpa.alloc(u32, total);
        order_module.fillEpochOrder(order, options.shuffle, options.seed, 0);
        return .{ .gpa = gpa, .tokens = tokens, .options = options, .order = order };
    }

    pub fn deinit(self: *BatchIterator) void {
        self.gpa.free(self.order);
        self.* = undefined;
    }

    pub fn next(self: *BatchIterator) ?Batch {
        if (self.position == self.order.len) return null;
        const index: usize = self.order[self.position];
        self.position += 1;
        const size = self.options.batch_size * self.options.seq_len;
        return .{
            .input_ids = self.tokens[index * size ..][0..size],
            .labels = self.tokens[index * size + 1 ..][0..size],
            .batch_size = self.options.batch_size,
            .seq_len = self.options.seq_len,
            .index = index,
        };
    }

    /// Starts the next epoch, in its own order.
    pub fn reset(self: *BatchIterator) void {
        self.epoch += 1;
        self.position = 0;
        order_module.fillEpochOrder(self.order, self.options.shuffle, self.options.seed, self.epoch);
    }

    pub fn numBatches(self: *const BatchIterator) usize {
        return self.order.len;
    }
};

const testing = std.testing;

fn range(comptime n: usize) [n]u32 {
    var ids: [n]u32 = undefined;
    for (&ids, 0..) |*id, i| id.* = @intCast(i);
    return ids;
}

test "the layout is ABI's: consecutive rows, labels one later across rows, the tail dropped" {
    const ids = range(15);
    var iter: BatchIterator = try .init(testing.allocator, &ids, .{ .batch_size = 2, .seq_len = 3 });
    defer iter.deinit();

    const first = iter.next().?;
    try testing.expectEqualSlices(u32, &.{ 0, 1, 2, 3, 4, 5 }, first.input_ids);
    try testing.expectEqualSlices(u32, &.{ 1, 2, 3, 4, 5, 6 }, first.labels);
    try testing.expectEqual(null, first.attention_mask);
    const second = iter.next().?;
    try testing.expectEqualSlices(u32, &.{ 6, 7, 8, 9, 10, 11 }, second.input_ids);
    try testing.expectEqualSlices(u32, &.{ 7, 8, 9, 10, 11, 12 }, second.labels);
    try testing.expectEqual(null, iter.next());
    try testing.expectEqual(null, iter.next());
}

test "the number of batches is ABI's for all small sizes, and all of them are given" {
    const ids = range(33);
    for (0..ids.len + 1) |n| for (1..5) |b| for (1..5) |t| {
        const expected = if (n <= b * t) 0 else (n - 1) / (b * t);
        try testing.expectEqual(expected, count(n, b, t));
        var iter: BatchIterator = try .init(testing.allocator, ids[0..n], .{ .batch_size = b, .seq_len = t });
        defer iter.deinit();
        var given: usize = 0;
        while (iter.next()) |batch| : (given += 1) {
            for (batch.input_ids, batch.labels) |input, label| try testing.expectEqual(input + 1, label);
        }
        try testing.expectEqual(expected, given);
    };
}

test "one seed gives one order; epochs differ; every batch comes once" {
    const ids = range(101);
    const options: BatchOptions = .{ .batch_size = 1, .seq_len = 5, .shuffle = true, .seed = 7 };
    var a: BatchIterator = try .init(testing.allocator, &ids, options);
    defer a.deinit();
    var b: BatchIterator = try .init(testing.allocator, &ids, options);
    defer b.deinit();

    var orders: [2][20]usize = undefined;
    for (&orders) |*order| {
        for (order) |*index| {
            const batch = a.next().?;
            index.* = batch.index;
            try testing.expectEqual(batch.index, b.next().?.index);
            try testing.expectEqual(@as(u32, @intCast(batch.index * 5)), batch.input_ids[0]);
        }
        try testing.expectEqual(null, a.next());
        for (0..20) |i| try testing.expect(std.mem.findScalar(usize, order, i) != null);
        a.reset();
        _ = b.next();
        b.reset();
    }
    try testing.expect(!std.mem.eql(usize, &orders[0], &orders[1]));
}

test "shapes without size are refused" {
    const ids = range(4);
    try testing.expectError(error.InvalidBatchShape, BatchIterator.init(testing.allocator, &ids, .{ .batch_size = 0, .seq_len = 1 }));
    try testing.expectError(error.InvalidBatchShape, BatchIterator.init(testing.allocator, &ids, .{ .batch_size = 1, .seq_len = 0 }));
    try testing.expectError(error.InvalidBatchShape, BatchIterator.init(testing.allocator, &ids, .{ .batch_size = std.math.maxInt(usize), .seq_len = 2 }));
}
