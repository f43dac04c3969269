//! Preference data: rows 2i and 2i + 1 of a dataset are one prompt with the better and with the worse answer.
//!
//! The mask tells prompt from answer: 0 up to the border, 1 behind it, in both rows at the same place. A pair whose
//! answers are the same, or whose prompts differ, teaches nothing or something else and is refused by its number.
//! Does not know: truncation, order (`loader.zig`), losses.

const std = @import("std");
const base = @import("base");
const loss_mask = @import("loss_mask.zig");
const TokenizedDataset = @import("tokenized.zig").TokenizedDataset;

pub const Pair = struct {
    prompt: []const u32,
    chosen: []const u32,
    rejected: []const u32,
    /// Tokens of the prompt: the place in both rows where the answer begins.
    border: usize,
};

pub const PairError = error{MalformedPairs};

pub fn count(dataset: *const TokenizedDataset) usize {
    std.debug.assert(dataset.isPreference());
    return dataset.rowCount().? / 2;
}

/// Where the answer of row `row` begins: its first token whose mask bit is set; the row's length if none is.
pub fn borderOf(dataset: *const TokenizedDataset, row: usize) usize {
    const at = dataset.placeOf(row);
    const mask = at.file.mask.?;
    const start: usize = @intCast(at.file.row_starts.?[at.row]);
    const end: usize = @intCast(at.file.row_starts.?[at.row + 1]);
    for (start..end) |position| if (loss_mask.get(mask, position)) return position - start;
    return end - start;
}

/// Pair `index`, after reading all of it.
pub fn read(dataset: *const TokenizedDataset, index: usize, diag: *base.Diagnostic) PairError!Pair {
    const chosen = dataset.row(2 * index);
    const rejected = dataset.row(2 * index + 1);
    const border = borderOf(dataset, 2 * index);
    for ([_][]const u32{ chosen, rejected }, [_][]const u8{ "chosen", "rejected" }, 2 * index..) |row, name, number| {
        const begin = borderOf(dataset, number);
        if (begin == row.len) return fail(diag, dataset, index, "its {s} answer has no token", .{name});
        const start = dataset.rowStart(number);
        if (dataset.countTargets(start + begin, start + row.len) != row.len - begin)
            return fail(diag, dataset, index, "the mask of its {s} answer has gaps", .{name});
        if (begin != border)
            return fail(diag, dataset, index, "its prompt has {d} tokens in one row and {d} in the other", .{ border, begin });
    }
    if (!std.mem.eql(u32, chosen[0..border], rejected[0..border]))
        return fail(diag, dataset, index, "its two rows have different prompts", .{});
    if (std.mem.eql(u32, chosen[border..], rejected[border..]))
        return fail(diag, dataset, index, "its chosen and rejected answers are the same", .{});
    return .{ .prompt = chosen[0..border], .chosen = chosen[border..], .rejected = rejected[border..], .border = border };
}

fn fail(diag: *base.Diagnostic, dataset: *const TokenizedDataset, index: usize, comptime format: []const u8, arguments: anytype) PairError {
    diag.set(format ++ ". Leave it out, or prepare the data again", arguments);
    diag.prepend("{s}: pair {d} (rows {d} and {d}) cannot be learned from: ", .{ dataset.path, index, 2 * index, 2 * index + 1 });
    return error.MalformedPairs;
}

// ---- tests ----

const testing = std.testing;
const Loader = @import("loader.zig").Loader;

/// Pairs over slices; needs no `deinit`.
fn over(tokens: []const u32, mask: []const u8, row_starts: []const u64) TokenizedDataset {
    return .{
        .arena = .init(testing.failing_allocator),
        .disk = null,
        .path = "p.bin",
        .tokens = tokens,
        .mask = mask,
        .row_starts = row_starts,
        .manifest = .{ .count = tokens.len, .kind = .preference },
    };
}

// Pair 0: 1 2 | 3 4 5 and 1 2 | 6. Pair 1: 7 8 9 | 10 and 7 8 9 | 11 12.
const sample_ids = [_]u32{ 1, 2, 3, 4, 5, 1, 2, 6, 7, 8, 9, 10, 7, 8, 9, 11, 12 };
const sample_mask = [_]u8{ 0b1001_1100, 0b1000_1000, 0b1 };
const sample_starts = [_]u64{ 0, 5, 8, 12, 17 };

test "a pair is its prompt and two answers" {
    const dataset = over(&sample_ids, &sample_mask, &sample_starts);
    var diag: base.Diagnostic = .{};
    try testing.expectEqual(2, count(&dataset));
    const second = try read(&dataset, 1, &diag);
    try testing.expectEqualSlices(u32, &.{ 7, 8, 9 }, second.prompt);
    try testing.expectEqualSlices(u32, &.{10}, second.chosen);
    try testing.expectEqualSlices(u32, &.{ 11, 12 }, second.rejected);
}

test "a micro-batch has all better answers first, then all worse ones, padded to the longest" {
    const dataset = over(&sample_ids, &sample_mask, &sample_starts);
    var diag: base.Diagnostic = .{};
    var loader: Loader = try .init(testing.allocator, &dataset, .{ .batch_size = 5, .max_seq_len = 9, .shuffle = false }, &diag);
    defer loader.deinit();

    try testing.expectEqual(1, loader.batchesPerEpoch());
    const micro = loader.next().?;
    try testing.expectEqual(2, micro.pairs);
    try testing.expectEqual(4, micro.batch);
    try testing.expectEqual(5, micro.time);
    try testing.expectEqualSlices(u32, &.{
        1, 2, 3, 4,  5,
        7, 8, 9, 10, 0,
        1, 2, 6, 0,  0,
        7, 8, 9, 11, 12,
    }, micro.input_ids);
    try testing.expectEqualSlices(i32, &.{
        -1, 3,  4,  5,  -1,
        -1, -1, 10, -1, -1,
        -1, 6,  -1, -1, -1,
        -1, -1, 11, 12, -1,
    }, micro.targets);
    try testing.expectEqualSlices(u32, &.{ 3, 1, 1, 2 }, micro.answers);
    try testing.expectEqualSlices(u32, &.{ 0, 1 }, micro.units);
    try testing.expectEqual(7, micro.target_count);
    try testing.expectEqual(17, micro.token_count);
    try testing.expectEqual(7, loader.targetsPerEpoch());
}

test "a prompt that fills the length drops its pair; answers are cut from the end" {
    const dataset = over(&sample_ids, &sample_mask, &sample_starts);
    var diag: base.Diagnostic = .{};
    var loader: Loader = try .init(testing.allocator, &dataset, .{ .batch_size = 1, .max_seq_len = 3 }, &diag);
    defer loader.deinit();

    try testing.expectEqual(1, loader.dropped_rows);
    try testing.expectEqual(1, loader.truncated_rows);
    try testing.expectEqual(1, loader.batchesPerEpoch());
    const micro = loader.next().?;
    try testing.expectEqualSlices(u32, &.{ 1, 2, 3, 1, 2, 6 }, micro.input_ids);
    try testing.expectEqualSlices(u32, &.{ 1, 1 }, micro.answers);
}

test "the order is that of rows, over the pairs that are left, and a seek finds the same place" {
    var ids: [60]u32 = undefined;
    var starts: [21]u64 = undefined;
    for (&starts, 0..) |*s, i| s.* = 3 * i;
    for (&ids, 0..) |*id, i| id.* = @intCast(if (i % 3 == 2) 100 + i else 7);
    const mask: [8]u8 = .{ 0x24, 0x49, 0x92, 0x24, 0x49, 0x92, 0x24, 0x09 };
    const dataset = over(&ids, &mask, &starts);
    var diag: base.Diagnostic = .{};
    var loader: Loader = try .init(testing.allocator, &dataset, .{ .batch_size = 3, .max_seq_len = 8, .seed = 5 }, &diag);
    defer loader.deinit();

    const order = try loader.epochOrder(testing.allocator, 1);
    defer testing.allocator.free(order);
    var expected: [10]u32 = undefined;
    @import("order.zig").fillEpochOrder(&expected, true, 5, 1);
    try testing.expectEqualSlices(u32, &expected, order);
    try loader.seek(1, 3);
    const last = loader.next().?;
    try testing.expectEqual(1, last.pairs);
    try testing.expectEqual(100 + 6 * order[9] + 2, last.input_ids[2]);
    try testing.expectEqual(100 + 6 * order[9] + 5, last.input_ids[5]);
    try testing.expectEqual(null, loader.next());
}

fn expectRefused(tokens: []const u32, mask: []const u8, starts: []const u64, words: []const u8) !void {
    const dataset = over(tokens, mask, starts);
    var diag: base.Diagnostic = .{};
    try testing.expectError(error.MalformedPairs, Loader.init(testing.allocator, &dataset, .{ .batch_size = 1, .max_seq_len = 4 }, &diag));
    try testing.expect(std.mem.find(u8, diag.text(), "p.bin: pair 0 (rows 0 and 1)") != null);
    if (std.mem.find(u8, diag.text(), words) == null) {
        std.debug.print("{s}\n", .{diag.text()});
        return error.OtherWords;
    }
}

test "what is no pair is refused with its number and the reason" {
    const starts = [_]u64{ 0, 3, 6 };
    try expectRefused(&.{ 1, 2, 3, 1, 2, 3 }, &.{0b10_0100}, &starts, "chosen and rejected answers are the same");
    try expectRefused(&.{ 1, 2, 3, 1, 9, 4 }, &.{0b10_0100}, &starts, "different prompts");
    try expectRefused(&.{ 1, 2, 3, 1, 2, 4 }, &.{0b11_0100}, &starts, "prompt has 2 tokens in one row and 1 in the other");
    try expectRefused(&.{ 1, 2, 3, 1, 2, 4 }, &.{0b10_0000}, &starts, "chosen answer has no token");
    try expectRefused(&.{ 1, 2, 3, 1, 2, 4 }, &.{0b00_0100}, &starts, "rejected answer has no token");
    try expectRefused(&.{ 1, 2, 3, 1, 2, 4 }, &.{0b10_1101}, &starts, "has gaps");
}

test "running out of memory anywhere leaks nothing" {
    const dataset = over(&sample_ids, &sample_mask, &sample_starts);
    try testing.checkAllAllocationFailures(testing.allocator, struct {
        fn run(gpa: std.mem.Allocator, d: *const TokenizedDataset) !void {
            var diag: base.Diagnostic = .{};
            var loader: Loader = try .init(gpa, d, .{ .batch_size = 2, .max_seq_len = 4 }, &diag);
            loader.deinit();
        }
    }.run, .{&dataset});
}

test "training allocates nothing" {
    const dataset = over(&sample_ids, &sample_mask, &sample_starts);
    var diag: base.Diagnostic = .{};
    var loader: Loader = try .init(testing.allocator, &dataset, .{ .batch_size = 1, .max_seq_len = 9 }, &diag);
    defer loader.deinit();
    loader.gpa = testing.failing_allocator;
    defer loader.gpa = testing.allocator;
    for (0..2) |epoch| {
        try loader.seek(epoch, 0);
        while (loader.next()) |_| {}
    }
}
