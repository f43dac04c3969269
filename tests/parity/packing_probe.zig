//! What the packing parity test asks: reads row lengths and a capacity as JSON, writes [row, from] of each piece of each
//! bin as JSON; of `wrapped` [start, end] of each run.
//! Built by tests/parity/test_packing.py; belongs to no product.

const std = @import("std");
const packing = @import("data").packing;

const Request = struct { lengths: []const usize, capacity: usize, strategy: packing.Strategy };

const Lengths = struct {
    all: []const usize,

    pub fn of(self: Lengths, row: usize) usize {
        return self.all[row];
    }

    pub fn start(self: Lengths, row: usize) u64 {
        var sum: u64 = 0;
        for (self.all[0..row]) |length| sum += length;
        return sum;
    }
};

pub fn main(init: std.process.Init) !void {
    const arena = init.arena.allocator();
    const args = try init.minimal.args.toSlice(arena);
    const source = try std.Io.Dir.cwd().readFileAlloc(init.io, args[1], arena, .unlimited);
    const requests = try std.json.parseFromSliceLeaky([]const Request, arena, source, .{});
    const answers = try arena.alloc([]const []const [2]u64, requests.len);
    for (answers, requests) |*answer, request| answer.* = try pack(arena, request);
    var out: std.Io.Writer.Allocating = .init(arena);
    try std.json.Stringify.value(answers, .{}, &out.writer);
    try std.Io.Dir.cwd().writeFile(init.io, .{ .sub_path = args[2], .data = out.written() });
}

fn pack(arena: std.mem.Allocator, request: Request) ![]const []const [2]u64 {
    const lengths: Lengths = .{ .all = request.lengths };
    const rows = request.lengths.len;
    if (request.strategy == .wrapped) {
        const runs = try packing.wrap(arena, lengths, rows, request.capacity);
        const all = try arena.alloc([]const [2]u64, runs.count());
        for (all, 0..) |*bin, index| {
            const run = runs.run(index);
            bin.* = try arena.dupe([2]u64, &.{.{ run.start, run.start + run.len }});
        }
        return all;
    }
    const bins = try packing.bestFit(arena, lengths, rows, request.capacity, if (request.strategy == .bfd) .cut else .split);
    const all = try arena.alloc([]const [2]u64, bins.count());
    for (all, 0..) |*bin, b| {
        const pieces = try arena.alloc([2]u64, bins.bin(b).len);
        for (pieces, bins.bin(b)) |*out, piece| out.* = .{ piece.row, piece.from };
        bin.* = pieces;
    }
    return all;
}
