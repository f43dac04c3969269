//! Batches of a token stream in ABI's layout, without copies.
//!
//! Batch k, row r, column c: input = tokens[k·B·T + r·T + c], label = the token one later. Rows of a batch follow each
//! other in the stream, so a row's last label is the next row's first token. The tail that fills no batch is dropped.
//! Shuffling permutes whole batches (`order.zig`); what is inside a batch never changes.
//! Of several files those batches that span two are copied once, when the iterator is made.
//! Does not know: files, loss masks, rows of documents.

const std = @import("std");
const order_module = @import("order.zig");
const TokenizedDataset = @import("tokenized.zig").TokenizedDataset;
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
    dataset: *const TokenizedDataset,
    options: BatchOptions,
    order: []u32,
    /// Batches that no file has whole, by number, each with the label behind its last input.
    bridges: []const Bridge = &.{},
    position: usize = 0,
    epoch: u64 = 0,

    const Bridge = struct { index: usize, ids: []const u32 };

    /// The dataset must outlive the iterator.
    pub fn init(gpa: Allocator, dataset: *const TokenizedDataset, options: BatchOptions) BatchError!BatchIterator {
        const size = std.math.mul(usize, options.batch_size, options.seq_len) catch return error.InvalidBatchShape;
        if (size == 0) return error.InvalidBatchShape;
        const total = count(dataset.count(), options.batch_size, options.seq_len);
        if (total > std.math.maxInt(u32)) return error.TooManyBatches;
        var self: BatchIterator = .{ .gpa = gpa, .dataset = dataset, .options = options, .order = try gpa.alloc(u32, total) };
        errdefer self.deinit();

        order_module.fillEpochOrder(self.order, options.shuffle, options.seed, 0);
        try self.build(size);
        return self;
    }

    pub fn deinit(self: *BatchIterator) void {
        for (self.bridges) |bridge| self.gpa.free(bridge.ids);
        self.gpa.free(self.bridges);
        self.gpa.free(self.order);
        self.* = undefined;
    }

    fn build(self: *BatchIterator, size: usize) error{OutOfMemory}!void {
        var bridges: std.ArrayList(Bridge) = .empty;
        errdefer {
            for (bridges.items) |bridge| self.gpa.free(bridge.ids);
            bridges.deinit(self.gpa);
        }
        for (self.dataset.shards) |*shard| {
            // The batches over its first token: the one that has it, and the one before, whose last label it may be.
            const index = shard.first_token / size;
            for ([_]usize{ index -| 1, index }) |k| {
                if (k >= self.order.len or self.dataset.slice(k * size, (k + 1) * size + 1) != null) continue;
                if (bridges.items.len > 0 and bridges.items[bridges.items.len - 1].index >= k) continue;
                const ids = try self.gpa.alloc(u32, size + 1);
                errdefer self.gpa.free(ids);
                self.dataset.readTokens(ids, k * size);
                try bridges.append(self.gpa, .{ .index = k, .ids = ids });
            }
        }
        self.bridges = try bridges.toOwnedSlice(self.gpa);
    }

    pub fn next(self: *BatchIterator) ?Batch {
        if (self.position == self.order.len) return null;
        const index: usize = self.order[self.position];
        self.position += 1;
        const size = self.options.batch_size * self.options.seq_len;
        const ids = self.dataset.slice(index * size, (index + 1) * size + 1) orelse self.bridged(index);
        return .{
            .input_ids = ids[0..size],
            .labels = ids[1..][0..size],
            .batch_size = self.options.batch_size,
            .seq_len = self.options.seq_len,
            .index = index,
        };
    }

    fn bridged(self: *const BatchIterator, index: usize) []const u32 {
        return self.bridges[
            std.sort.binarySearch(Bridge, self.bridges, index, struct {
                fn order(wanted: usize, b: Bridge) std.math.Order {
                    return std.math.order(wanted, b.index);
                }
            }.order).?
        ].ids;
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

fn over(ids: []const u32) TokenizedDataset {
    return .{ .arena = .init(testing.failing_allocator), .disk = null, .path = "s.bin", .tokens = ids };
}

fn range(comptime n: usize) [n]u32 {
    var ids: [n]u32 = undefined;
    for (&ids, 0..) |*id, i| id.* = @intCast(i);
    return ids;
}

test "the layout is ABI's: consecutive rows, labels one later across rows, the tail dropped" {
    const ids = range(15);
    const data = over(&ids);
    var iter: BatchIterator = try .init(testing.allocator, &data, .{ .batch_size = 2, .seq_len = 3 });
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
        const data = over(ids[0..n]);
        var iter: BatchIterator = try .init(testing.allocator, &data, .{ .batch_size = b, .seq_len = t });
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
    const data = over(&ids);
    const options: BatchOptions = .{ .batch_size = 1, .seq_len = 5, .shuffle = true, .seed = 7 };
    var a: BatchIterator = try .init(testing.allocator, &data, options);
    defer a.deinit();
    var b: BatchIterator = try .init(testing.allocator, &data, options);
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
    const data = over(&ids);
    try testing.expectError(error.InvalidBatchShape, BatchIterator.init(testing.allocator, &data, .{ .batch_size = 0, .seq_len = 1 }));
    try testing.expectError(error.InvalidBatchShape, BatchIterator.init(testing.allocator, &data, .{ .batch_size = 1, .seq_len = 0 }));
    try testing.expectError(error.InvalidBatchShape, BatchIterator.init(testing.allocator, &data, .{ .batch_size = std.math.maxInt(usize), .seq_len = 2 }));
}
