//! Quantising, splitting and joining over a disk that can fail.

const std = @import("std");
const base = @import("base");
const gguf = @import("gguf.zig");
const gguf_parts = @import("gguf_parts.zig");
const gguf_quantise = @import("gguf_quantise.zig");
const gguf_writer = @import("gguf_writer.zig");
const imatrix = @import("imatrix.zig");
const testing = std.testing;
const MemoryDisk = base.storage.MemoryDisk;

const names = [_][]const u8{ "token_embd.weight", "blk.0.attn_v.weight", "blk.0.ffn_down.weight", "blk.0.attn_norm.weight", "output.weight" };

/// A file of four matrices of f32 and one norm.
fn writeSource(s: base.storage.Storage, path: []const u8, bad: ?f32) !void {
    var header: gguf_writer.Header = .init(testing.allocator);
    defer header.deinit();
    try header.put([]const u8, "general.architecture", "llama");
    try header.put(u32, "general.file_type", 0);
    try header.put(u32, "llama.block_count", 1);
    try header.put([]const []const u8, "words", &.{ "a", "b" });
    for (names) |name| try header.addTensor(name, .f32, if (std.mem.endsWith(u8, name, "norm.weight")) &.{256} else &.{ 3, 256 });
    var out: std.Io.Writer.Allocating = .init(testing.allocator);
    defer out.deinit();
    try header.write(&out.writer);
    var stream: gguf_writer.Stream = .init(&header, &out.writer);
    var prng: std.Random.DefaultPrng = .init(5);
    for (header.tensors.items, 0..) |planned, i| {
        var values: [3 * 256]f32 = undefined;
        for (&values) |*x| x.* = prng.random().floatNorm(f32);
        if (bad) |b| if (i == 2) {
            values[300] = b;
        };
        try stream.write(std.mem.sliceAsBytes(values[0 .. planned.bytes / 4]));
    }
    stream.finish();
    try base.storage.writeFile(testing.allocator, s, path, out.written());
}

fn quantise(s: base.storage.Storage, from: []const u8, to: []const u8, options: gguf_quantise.Options, diag: *base.Diagnostic) !gguf_quantise.Report {
    var source = try gguf_parts.Parts.open(testing.allocator, s, from, diag);
    defer source.deinit();
    var plan: gguf_quantise.Plan = try .init(testing.allocator, &source, options, diag);
    defer plan.deinit();
    return plan.writeOn(testing.allocator, s, null, false, to, null, diag);
}

test "a mix is written with its keys and types, and no disk that fails leaves a file" {
    var diag: base.Diagnostic = .{};
    var disk: MemoryDisk = try .init(testing.allocator);
    defer disk.deinit();
    const s = disk.storage();
    try writeSource(s, "in.gguf", null);
    const report = try quantise(s, "in.gguf", "out.gguf", .{ .mix = .q4_k_m }, &diag);
    var source = try gguf_parts.Parts.open(testing.allocator, s, "out.gguf", &diag);
    defer source.deinit();
    const file = source.first();
    try testing.expectEqual(report.bytes, source.mappings.items[0].bytes.len);
    try testing.expectEqual(@as(u32, 15), try file.require(u32, "general.file_type", &diag));
    try testing.expectEqualStrings("general.file_type", file.key_values[file.key_values.len - 1].key);
    try testing.expectEqual(.q6_k, file.findTensor("output.weight").?.dtype);
    try testing.expectEqual(.q4_k, file.findTensor("token_embd.weight").?.dtype);
    try testing.expectEqual(.f32, file.findTensor("blk.0.attn_norm.weight").?.dtype);
    try testing.expectEqualStrings("output.weight", file.tensors[0].name);
    try testing.expectError(error.Requantized, quantise(s, "out.gguf", "again.gguf", .{ .mix = .q5_k_m }, &diag));
    try testing.expect(std.mem.find(u8, diag.text(), "--allow-requantize") != null);
    _ = try quantise(s, "out.gguf", "again.gguf", .{ .mix = .q5_k_m, .allow_requantize = true }, &diag);

    var k: usize = 0;
    while (true) : (k += 1) {
        var failing: MemoryDisk = try .init(testing.allocator);
        defer failing.deinit();
        try writeSource(failing.storage(), "in.gguf", null);
        failing.fault = .{ .at = failing.operations + k, .what = .{ .fail = error.InputOutput } };
        const done = quantise(failing.storage(), "in.gguf", "out.gguf", .{ .mix = .q4_k_m }, &diag);
        failing.fault = null;
        const there = try failing.storage().kind("out.gguf") != null;
        if (done) |_| {
            try testing.expect(there);
            break;
        } else |err| try testing.expectEqual(error.InputOutput, err);
        if (!there) continue;
        // Only the folder's own sync came after the name.
        var whole = try gguf_parts.Parts.open(testing.allocator, failing.storage(), "out.gguf", &diag);
        whole.deinit();
    }
    try testing.expect(k > 3);
}

test "what is not finite is refused with the tensor's name, whether rounded or copied" {
    var diag: base.Diagnostic = .{};
    for ([_]f32{ std.math.nan(f32), std.math.inf(f32) }) |bad| {
        var disk: MemoryDisk = try .init(testing.allocator);
        defer disk.deinit();
        const s = disk.storage();
        try writeSource(s, "in.gguf", bad);
        for ([_]?@import("gguf_mix.zig").Mix{ .q4_0, .f16, null }) |mix| {
            try testing.expectError(error.NotFinite, quantise(s, "in.gguf", "out.gguf", .{ .mix = mix }, &diag));
            try testing.expect(std.mem.find(u8, diag.text(), "blk.0.ffn_down.weight") != null);
            try testing.expectEqual(null, try s.kind("out.gguf"));
        }
    }
}

test "parts are written, found again and joined to the file they were" {
    var diag: base.Diagnostic = .{};
    var disk: MemoryDisk = try .init(testing.allocator);
    defer disk.deinit();
    const s = disk.storage();
    try writeSource(s, "in.gguf", null);
    {
        var source = try gguf_parts.Parts.open(testing.allocator, s, "in.gguf", &diag);
        defer source.deinit();
        var plan: gguf_quantise.Plan = try .init(testing.allocator, &source, .{ .mix = null }, &diag);
        defer plan.deinit();
        for ([_][2]usize{ .{ 0, 2 }, .{ 2, 3 }, .{ 3, 5 } }, 0..) |range, i| {
            var buffer: [64]u8 = undefined;
            const name = try gguf_parts.partName(&buffer, "m", i, 3);
            _ = try plan.writeOn(testing.allocator, s, null, false, name, .{ .index = @intCast(i), .count = 3, .first = range[0], .end = range[1] }, &diag);
        }
    }
    _ = try quantise(s, "m-00002-of-00003.gguf", "joined.gguf", .{ .mix = null }, &diag);
    const whole = try s.readAlloc(testing.allocator, "in.gguf");
    defer testing.allocator.free(whole);
    const joined = try s.readAlloc(testing.allocator, "joined.gguf");
    defer testing.allocator.free(joined);
    try testing.expectEqualSlices(u8, whole, joined);

    try s.rename("m-00003-of-00003.gguf", "away");
    try testing.expectError(error.FileNotFound, quantise(s, "m-00001-of-00003.gguf", "joined.gguf", .{ .mix = null }, &diag));
    try s.rename("m-00002-of-00003.gguf", "m-00003-of-00003.gguf");
    try s.rename("away", "m-00002-of-00003.gguf");
    try testing.expectError(error.WrongParts, quantise(s, "m-00001-of-00003.gguf", "joined.gguf", .{ .mix = null }, &diag));
    try testing.expect(std.mem.find(u8, diag.text(), "part 3 of 3; by its name it is 2 of 3") != null);
    try s.rename("m-00001-of-00003.gguf", "odd.gguf");
    try testing.expectError(error.WrongParts, quantise(s, "odd.gguf", "joined.gguf", .{ .mix = null }, &diag));
}

test "importance of another model is refused by name" {
    var diag: base.Diagnostic = .{};
    var disk: MemoryDisk = try .init(testing.allocator);
    defer disk.deinit();
    const s = disk.storage();
    try writeSource(s, "in.gguf", null);
    var matrix: imatrix.Importance = .init(testing.allocator);
    defer matrix.deinit();
    const a = matrix.arena.allocator();
    try matrix.entries.put(a, "blk.0.attn_v.weight", .{ .sums = try a.dupe(f32, &.{ 1, 2 }), .counts = try a.dupe(f32, &.{1}) });
    try matrix.finish(&diag);
    try testing.expectError(error.WrongImportance, quantise(s, "in.gguf", "out.gguf", .{ .mix = .q4_k_m, .importance = .{ .matrix = &matrix, .path = "x.gguf" } }, &diag));
    try testing.expect(std.mem.find(u8, diag.text(), "x.gguf has 2 numbers for tensor \"blk.0.attn_v.weight\", which has 256 columns") != null);
}
