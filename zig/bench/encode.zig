//! Encodes a file with a tokenizer and says how fast: `abi-bench-encode FOLDER FILE [repeats] [limit]`. One thread.
//!
//! Each repeat begins with a new scratch, so no piece was met before. Times are CPU time of this thread: what other programs do
//! on the machine disturbs them little. Prints one line of JSON.

const std = @import("std");
const base = @import("base");
const tokenizer = @import("tokenizer");

fn threadNanoseconds() u64 {
    var ts: std.c.timespec = undefined;
    _ = std.c.clock_gettime(.THREAD_CPUTIME_ID, &ts);
    return @as(u64, @intCast(ts.sec)) * std.time.ns_per_s + @as(u64, @intCast(ts.nsec));
}

pub fn main(init: std.process.Init) !void {
    const arena = init.arena.allocator();
    const gpa = std.heap.c_allocator;
    const args = try init.minimal.args.toSlice(arena);
    const repeats = if (args.len > 3) try std.fmt.parseInt(usize, args[3], 10) else 5;
    const limit = if (args.len > 4) try std.fmt.parseInt(usize, args[4], 10) else std.math.maxInt(usize);

    var diag: base.Diagnostic = .{};
    const opening = threadNanoseconds();
    var tok = tokenizer.Tokenizer.openFolder(gpa, init.io, args[1], &diag) catch |err| {
        std.debug.print("{t}: {s}\n", .{ err, diag.text() });
        std.process.exit(1);
    };
    defer tok.deinit();
    const opened = threadNanoseconds();
    const whole = try std.Io.Dir.cwd().readFileAlloc(init.io, args[2], arena, .unlimited);
    const text = whole[0..@min(whole.len, limit)];

    var out: std.ArrayList(u32) = .empty;
    defer out.deinit(gpa);
    var best: u64 = std.math.maxInt(u64);
    for (0..repeats) |_| {
        out.clearRetainingCapacity();
        const start = threadNanoseconds();
        var scratch: tokenizer.EncodeScratch = .init(gpa);
        defer scratch.deinit(gpa);
        try tok.encodeInto(&scratch, &out, gpa, text, .{ .add_bos = false, .add_eos = false });
        best = @min(best, threadNanoseconds() - start);
    }
    var buffer: [256]u8 = undefined;
    var writer: std.Io.File.Writer = .initStreaming(.stdout(), init.io, &buffer);
    const seconds = @as(f64, @floatFromInt(best)) / 1e9;
    try writer.interface.print("{{\"bytes\": {d}, \"ids\": {d}, \"seconds\": {d:.5}, \"mb_per_second\": {d:.1}, \"open_seconds\": {d:.4}}}\n", .{
        text.len, out.items.len, seconds, @as(f64, @floatFromInt(text.len)) / seconds / 1e6, @as(f64, @floatFromInt(opened - opening)) / 1e9,
    });
    try writer.interface.flush();
}
