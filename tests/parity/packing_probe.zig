//! What the packing parity test asks: reads row lengths and a capacity as JSON, writes the rows of each bin as JSON.
//! Built by tests/parity/test_packing.py; belongs to no product.

const std = @import("std");
const packing = @import("data").packing;

const Request = struct { lengths: []const usize, capacity: usize };

const Lengths = struct {
    all: []const usize,

    pub fn of(self: Lengths, row: usize) usize {
        return self.all[row];
    }
};

pub fn main(init: std.process.Init) !void {
    const arena = init.arena.allocator();
    const args = try init.minimal.args.toSlice(arena);
    const source = try std.Io.Dir.cwd().readFileAlloc(init.io, args[1], arena, .unlimited);
    const requests = try std.json.parseFromSliceLeaky([]const Request, arena, source, .{});
    const answers = try arena.alloc([]const []const u32, requests.len);
    for (answers, requests) |*answer, request| {
        const bins = try packing.bestFit(arena, Lengths{ .all = request.lengths }, request.lengths.len, request.capacity);
        const all = try arena.alloc([]const u32, bins.count());
        for (all, 0..) |*rows, b| rows.* = bins.bin(b);
        answer.* = all;
    }
    var out: std.Io.Writer.Allocating = .init(arena);
    try std.json.Stringify.value(answers, .{}, &out.writer);
    try std.Io.Dir.cwd().writeFile(init.io, .{ .sub_path = args[2], .data = out.written() });
}
