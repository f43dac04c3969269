//! Collects an importance matrix: the squares of what each weight matrix was multiplied with, summed over a text.
//!
//! The text is read in chunks of one length, each from an empty context, as llama.cpp's collector does; tokens behind the last whole
//! chunk are left out. Sums run in order of tokens, so the bits do not depend on threads. The head is left out, as there.
//! Does not know: text, files.

const std = @import("std");
const base = @import("base");
const formats = @import("formats");
const session_file = @import("session.zig");
const Importance = formats.imatrix.Importance;
const Inputs = session_file.Inputs;

pub const Error = session_file.SessionError || error{ OutOfMemory, InvalidImportance };

pub const Collector = struct {
    arena: std.heap.ArenaAllocator,
    /// One a layer and kind of input.
    sums: []std.EnumArray(Inputs, []f32),
    /// Rows seen.
    rows: usize = 0,

    pub fn init(gpa: std.mem.Allocator, session: *const session_file.Session) error{OutOfMemory}!Collector {
        const c = session.model.config;
        var arena: std.heap.ArenaAllocator = .init(gpa);
        errdefer arena.deinit();

        const sums = try arena.allocator().alloc(std.EnumArray(Inputs, []f32), c.num_hidden_layers);
        for (sums) |*layer| for (std.enums.values(Inputs)) |what| {
            const columns: usize = switch (what) {
                .attention, .mlp => c.hidden_size,
                .attended => c.queryWidth(),
                .activated => c.intermediate_size,
            };
            const list = try arena.allocator().alloc(f32, columns);
            @memset(list, 0);
            layer.set(what, list);
        };
        return .{ .arena = arena, .sums = sums };
    }

    pub fn deinit(self: *Collector) void {
        self.arena.deinit();
        self.* = undefined;
    }

    /// One chunk from an empty context.
    pub fn collect(self: *Collector, session: *session_file.Session, ids: []const u32) session_file.SessionError!void {
        session.observer = .{ .context = self, .see = see };
        defer session.observer = null;

        session.rewind(0);
        try session.feed(ids);
        self.rows += ids.len;
    }

    fn see(context: *anyopaque, layer: usize, what: Inputs, rows: []const f32) void {
        const self: *Collector = @ptrCast(@alignCast(context));
        const sums = self.sums[layer].get(what);
        const lanes = 16;
        const V = @Vector(lanes, f32);
        var row: usize = 0;
        while (row < rows.len) : (row += sums.len) {
            const x = rows[row..][0..sums.len];
            var i: usize = 0;
            while (i + lanes <= sums.len) : (i += lanes) {
                const v: V = x[i..][0..lanes].*;
                sums[i..][0..lanes].* = @as(V, sums[i..][0..lanes].*) + v * v;
            }
            while (i < sums.len) : (i += 1) sums[i] += x[i] * x[i];
        }
    }

    /// The matrix of all chunks; caller calls its `deinit`. `chunk_size`: ids a chunk; `dataset`: the text's name.
    pub fn finish(self: *const Collector, gpa: std.mem.Allocator, chunk_size: u32, dataset: []const u8, diag: *base.Diagnostic) Error!Importance {
        var result: Importance = .init(gpa);
        errdefer result.deinit();

        const a = result.arena.allocator();
        const names = .{
            .{ Inputs.attention, .{ "attn_q", "attn_k", "attn_v" } },
            .{ Inputs.attended, .{"attn_output"} },
            .{ Inputs.mlp, .{ "ffn_gate", "ffn_up" } },
            .{ Inputs.activated, .{"ffn_down"} },
        };
        for (self.sums, 0..) |*layer, l| inline for (names) |entry| inline for (entry[1]) |name| {
            const counts = try a.alloc(f32, 1);
            counts[0] = @floatFromInt(self.rows);
            const full = try std.fmt.allocPrint(a, "blk.{d}.{s}.weight", .{ l, name });
            try result.entries.put(a, full, .{ .sums = try a.dupe(f32, layer.get(entry[0])), .counts = counts });
        };
        const datasets = try a.alloc([]const u8, 1);
        datasets[0] = try a.dupe(u8, dataset);
        result.datasets = datasets;
        result.chunk_size = chunk_size;
        result.chunk_count = @intCast(self.rows / chunk_size);
        try result.finish(diag);
        return result;
    }
};

const testing = std.testing;
const test_model = @import("test_model.zig");

test "every weight of every layer gets its inputs' squares, whatever the blocks and threads" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const model = try test_model.make(arena.allocator());
    var ids: [150]u32 = undefined;
    var prng: base.Prng = .init(4);
    for (&ids) |*id| id.* = @intCast(prng.below(model.config.vocab_size));
    var diag: base.Diagnostic = .{};
    var first: ?[]f32 = null;
    for ([_]usize{ 1, 3 }) |n| {
        const pool = try base.Pool.init(testing.allocator, n);
        defer pool.deinit();
        var session: session_file.Session = try .init(testing.allocator, &model, pool, ids.len);
        defer session.deinit();
        var collector: Collector = try .init(testing.allocator, &session);
        defer collector.deinit();

        try collector.collect(&session, &ids);
        try collector.collect(&session, &ids);
        var matrix = try collector.finish(testing.allocator, ids.len, "text", &diag);
        defer matrix.deinit();
        try testing.expectEqual(7 * model.config.num_hidden_layers, matrix.entries.count());
        try testing.expectEqual(2, matrix.chunk_count);
        const q = matrix.entries.get("blk.0.attn_q.weight").?;
        try testing.expectEqual(model.config.hidden_size, q.sums.len);
        try testing.expectEqual(300, q.counts[0]);
        // Rows of a norm have squares that average near 1 times its weights'.
        for (matrix.importanceOf("blk.0.ffn_down.weight").?) |x| try testing.expect(x > 0);
        if (first) |expected| {
            try testing.expectEqualSlices(f32, expected, q.sums);
        } else first = try arena.allocator().dupe(f32, q.sums);
        try testing.expectEqual(null, session.observer);
    }
}
