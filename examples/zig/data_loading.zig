//! Token ids from a file, batch by batch, in a shuffled order that a seed gives again.
//!
//!     zig build examples && ./zig-out/bin/example-data_loading [training_data.bin]
//!
//! Without an argument it first writes a small file of its own into zig-out.

const std = @import("std");
const abi = @import("abi");
const data_loader = abi.ai.training.data_loader;

const own_file = "zig-out/training_data.bin";

pub fn main(init: std.process.Init) !void {
    const allocator = init.gpa;
    const args = try init.minimal.args.toSlice(init.arena.allocator());
    const path = if (args.len > 1) args[1] else own_file;
    if (args.len < 2) try writeSmallFile(allocator, init.io);

    var buffer: [4096]u8 = undefined;
    var out: std.Io.File.Writer = .init(.stdout(), init.io, &buffer);
    const w = &out.interface;

    // The file is mapped, not read: opening costs the same for a kilobyte and a terabyte.
    // (`TokenizedDataset.load(allocator, path)` is the short form without the message.)
    var diag: abi.base.Diagnostic = .{};
    var dataset = data_loader.TokenizedDataset.open(allocator, init.io, path, .{}, &diag) catch |err| {
        std.debug.print("{s}\n", .{diag.text()});
        return err;
    };
    defer dataset.deinit();

    // 4 sequences of 512 tokens at a time, shuffled.
    var iter = try dataset.batches(allocator, 4, 512, true);
    defer iter.deinit();

    try w.print("{s}: {d} tokens, {d} batches\n", .{ path, dataset.tokens.len, iter.numBatches() });
    while (iter.next()) |batch| {
        // Labels are the tokens one later; the slices point into the mapped file.
        try w.print("batch {d}: input {any} … label {any} …\n", .{
            batch.index,
            batch.input_ids[0..4].*,
            batch.labels[0..4].*,
        });
    }
    try w.flush();
}

/// Counting modulo 1000: enough to see which batch is which.
fn writeSmallFile(allocator: std.mem.Allocator, io: std.Io) !void {
    var disk: abi.base.storage.Disk = .init(io);
    const storage = disk.storage();
    try storage.ensureFolder("zig-out");

    var diag: abi.base.Diagnostic = .{};
    errdefer std.debug.print("{s}\n", .{diag.text()});
    const writer = try data_loader.TokenizedWriter.create(allocator, storage, own_file, .{
        .rows = false,
        .mask = false,
        .vocab_size = 1000,
        .source = "examples/zig/data_loading.zig",
    }, &diag);
    defer writer.destroy();

    var ids: [10_000]u32 = undefined;
    for (&ids, 0..) |*id, i| id.* = @intCast(i % 1000);
    try writer.append(&ids, null, &diag);
    _ = try writer.finish(&diag);
}
