//! Products of quantised weights with activations of 8 bits, on every level this CPU has, against a plain loop in f64.

const std = @import("std");
const base = @import("base");
const dispatch = @import("dispatch.zig");
const Activations = @import("activations.zig").Activations;
const Offset = @import("activations.zig").Offset;

const testing = std.testing;

const nothing_next: @import("activations.zig").Next = .{ .at = "", .row_bytes = 0, .rows = 0, .bytes = 0 };

const Type = struct {
    name: []const u8,
    /// Which product takes its panels, and with which offset.
    shape: []const u8,
    offset: c_int,
    length: usize,
    bytes: usize,
    /// Places of the f16 numbers in a block; mxfp4 has none.
    halves: []const usize,
};

const types = [_]Type{
    .{ .name = "q8_0", .shape = "blocks", .offset = Offset.q8_0, .length = 32, .bytes = 34, .halves = &.{0} },
    .{ .name = "q4_0", .shape = "blocks", .offset = Offset.q4_0, .length = 32, .bytes = 18, .halves = &.{0} },
    .{ .name = "q4_1", .shape = "blocks_minimum", .offset = 0, .length = 32, .bytes = 20, .halves = &.{ 0, 2 } },
    .{ .name = "q5_0", .shape = "blocks", .offset = Offset.q5_0, .length = 32, .bytes = 22, .halves = &.{0} },
    .{ .name = "q5_1", .shape = "blocks_minimum", .offset = 0, .length = 32, .bytes = 24, .halves = &.{ 0, 2 } },
    .{ .name = "mxfp4", .shape = "blocks", .offset = Offset.mxfp4, .length = 32, .bytes = 17, .halves = &.{} },
    .{ .name = "q4_k", .shape = "superblocks_minimum", .offset = 0, .length = 256, .bytes = 144, .halves = &.{ 0, 2 } },
    .{ .name = "q5_k", .shape = "superblocks_minimum", .offset = 0, .length = 256, .bytes = 176, .halves = &.{ 0, 2 } },
    .{ .name = "q6_k", .shape = "superblocks", .offset = Offset.q6_k, .length = 256, .bytes = 210, .halves = &.{208} },
};

const most = 1024;

/// Room for the activations of `most` numbers.
const Room = struct {
    q: [most]i8 = undefined,
    fours: [most / 4]i32 = undefined,
    scales: [most / 32]f32 = undefined,
    sums: [most / 32]i16 = undefined,
    half_sums: [most / 16]i16 = undefined,

    fn activations(self: *Room) Activations {
        return .{ .q = &self.q, .fours = &self.fours, .scales = &self.scales, .sums = &self.sums, .half_sums = &self.half_sums };
    }
};

test "a product with 8-bit activations is that of the numbers they stand for, for every type and level" {
    for (0..dispatch.available().len) |index| {
        errdefer std.debug.print("level {s}\n", .{dispatch.available()[index]});
        const kernels = dispatch.byteTableAt(index);
        const weights = dispatch.weightTableAt(index);
        inline for (types) |t| {
            errdefer std.debug.print("type {s}\n", .{t.name});
            var prng = base.Prng.init(5);
            for ([_]usize{ 1, 2, 3, 4 }) |blocks| {
                const n = blocks * t.length;
                var x: [most]f32 = undefined;
                for (&x) |*v| v.* = @floatCast(prng.normal() * 3);
                var room: Room = .{};
                const a = room.activations();
                const round = if (t.length == 256) kernels.round_superblocks else kernels.round_blocks;
                round(n, &x, &a);

                const rows = 3;
                const row_bytes = blocks * t.bytes + 6; // rows need not touch
                var bytes: [rows * (4 * 256 + 6)]u8 = undefined;
                for (&bytes) |*b| b.* = @truncate(prng.next());
                for (0..rows) |r| for (0..blocks) |b| {
                    const block = bytes[r * row_bytes + b * t.bytes ..][0..t.bytes];
                    for (t.halves) |place| {
                        const d: f16 = @floatCast(0.01 * (0.5 + prng.uniform()));
                        block[place..][0..2].* = @bitCast(d);
                    }
                    if (t.halves.len == 0) block[0] = @intCast(120 + prng.below(8));
                };
                var out: [rows]f32 = undefined;
                @field(kernels, "matvec8_" ++ t.name)(rows, n, &bytes, row_bytes, 1, 0, &a, &out, 0);
                var numbers: [most]f32 = undefined;
                for (out, 0..) |o, r| {
                    @field(weights, "expand_" ++ t.name)(n, bytes[r * row_bytes ..].ptr, &numbers);
                    var sum: f64 = 0;
                    var size: f64 = 0;
                    for (numbers[0..n], a.q[0..n], 0..) |w, q, i| {
                        const group: usize = if (t.length == 256) 256 else 32;
                        const product = @as(f64, w) * a.scales[i / group] * @as(f64, @floatFromInt(q));
                        sum += product;
                        size += @abs(product);
                    }
                    errdefer std.debug.print("{d} blocks, row {d}: {d} for {d}\n", .{ blocks, r, o, sum });
                    try testing.expect(@abs(sum - o) <= 2e-6 * size);
                }
            }
        }
    }
}

test "a panel times many activations is each row times each of them" {
    for (0..dispatch.available().len) |index| {
        errdefer std.debug.print("level {s}\n", .{dispatch.available()[index]});
        const kernels = dispatch.byteTableAt(index);
        inline for (types) |t| {
            errdefer std.debug.print("type {s}\n", .{t.name});
            var prng = base.Prng.init(7);
            const n = 512;
            const row_bytes = n / t.length * t.bytes;
            const panel = try testing.allocator.alignedAlloc(u8, .@"64", kernels.panel_bytes(n));
            defer testing.allocator.free(panel);
            for ([_]usize{ 32, 7 }) |rows| for ([_]usize{ 1, 5, 6, 13 }) |tokens| {
                var x: [13 * n]f32 = undefined;
                for (&x) |*v| v.* = @floatCast(prng.normal());
                var q: [13 * n]i8 = undefined;
                var fours: [13 * n / 4]i32 = undefined;
                var scales: [13 * n / 32]f32 = undefined;
                var sums: [13 * n / 32]i16 = undefined;
                var half_sums: [13 * n / 16]i16 = undefined;
                const a: Activations = .{ .q = &q, .fours = &fours, .scales = &scales, .sums = &sums, .half_sums = &half_sums };
                (if (t.length == 256) kernels.round_superblocks else kernels.round_blocks)(tokens * n, &x, &a);
                var bytes: [32 * 512 / 256 * 272]u8 = undefined;
                for (&bytes) |*b| b.* = @truncate(prng.next());
                for (0..rows * n / t.length) |b| {
                    const block = bytes[b * t.bytes ..][0..t.bytes];
                    for (t.halves) |place| {
                        const d: f16 = @floatCast(0.01 * (0.5 + prng.uniform()));
                        block[place..][0..2].* = @bitCast(d);
                    }
                    if (t.halves.len == 0) block[0] = @intCast(120 + prng.below(8));
                }
                const ld = 40;
                var alone: [13 * ld]f32 = @splat(7);
                @field(kernels, "matvec8_" ++ t.name)(rows, n, &bytes, row_bytes, tokens, n, &a, &alone, ld);
                var out: [13 * ld]f32 = @splat(7);
                // Two stretches of columns, one added to the other.
                for (0..2) |part| {
                    const from = part * 256;
                    @field(kernels, "pack8_" ++ t.name)(rows, 256, bytes[from / t.length * t.bytes ..].ptr, row_bytes, panel.ptr);
                    const group: usize = if (t.length == 256) 256 else 32;
                    const there: Activations = .{ .q = a.q + from, .fours = a.fours + from / 4, .scales = a.scales + from / group, .sums = a.sums + from / 32, .half_sums = a.half_sums + from / 16 };
                    @field(kernels, "gemm8_" ++ t.shape)(rows, 256, panel.ptr, t.offset, tokens, n, &there, &out, ld, @intCast(part), &nothing_next);
                }
                for (0..13) |token| for (0..ld) |r| {
                    const o = out[token * ld + r];
                    if (token >= tokens or r >= rows) {
                        try testing.expectEqual(7, o);
                        try testing.expectEqual(7, alone[token * ld + r]);
                        continue;
                    }
                    const group: usize = if (t.length == 256) 256 else 32;
                    const one: Activations = .{ .q = a.q + token * n, .fours = a.fours + token * n / 4, .scales = a.scales + token * n / group, .sums = a.sums + token * n / 32, .half_sums = a.half_sums + token * n / 16 };
                    var wanted: [1]f32 = undefined;
                    @field(kernels, "matvec8_" ++ t.name)(1, n, bytes[r * row_bytes ..].ptr, row_bytes, 1, 0, &one, &wanted, 0);
                    errdefer std.debug.print("token {d}, row {d}: {d} for {d}\n", .{ token, r, o, wanted[0] });
                    // A few tokens at a time are each as alone, to the bit.
                    try testing.expectEqual(wanted[0], alone[token * ld + r]);
                    try testing.expectApproxEqAbs(wanted[0], o, 1e-4 * @max(1, @abs(wanted[0])));
                };
            };
        }
    }
}

test "activations are rounded to the nearest of 255 steps, and all levels agree to the bit" {
    var prng = base.Prng.init(6);
    var x: [most]f32 = undefined;
    for (&x, 0..) |*v, i| v.* = @floatCast(prng.normal() * (1 + @as(f64, @floatFromInt(i / 100))));
    @memset(x[256..512], 0);
    for ([_]usize{ 32, 256 }) |group| {
        var first: ?Room = null;
        for (0..dispatch.available().len) |index| {
            const kernels = dispatch.byteTableAt(index);
            var room: Room = .{};
            const a = room.activations();
            (if (group == 256) kernels.round_superblocks else kernels.round_blocks)(most, &x, &a);
            for (x, room.q, 0..) |v, q, i| {
                try testing.expect(@abs(v - room.scales[i / group] * @as(f32, @floatFromInt(q))) <= 0.5001 * room.scales[i / group]);
            }
            for (room.sums, 0..) |sum, b| {
                var wanted: i32 = 0;
                for (room.q[b * 32 ..][0..32]) |q| wanted += q;
                try testing.expectEqual(wanted, sum);
                try testing.expectEqual(wanted, @as(i32, room.half_sums[2 * b]) + room.half_sums[2 * b + 1]);
                var fours: i32 = 0;
                for (room.fours[b * 8 ..][0..8]) |four| fours += four;
                try testing.expectEqual(wanted, fours);
            }
            if (first) |*f| {
                try testing.expectEqualSlices(i8, &f.q, &room.q);
                try testing.expectEqualSlices(f32, f.scales[0 .. most / group], room.scales[0 .. most / group]);
            } else first = room;
        }
    }
}

test "a number that is not finite makes the product NaN" {
    for (0..dispatch.available().len) |index| {
        const kernels = dispatch.byteTableAt(index);
        for ([_]f32{ std.math.nan(f32), std.math.inf(f32), -std.math.inf(f32) }) |bad| {
            var x: [64]f32 = @splat(0.5);
            x[40] = bad;
            var room: Room = .{};
            const a = room.activations();
            kernels.round_blocks(64, &x, &a);
            var bytes: [68]u8 = @splat(1);
            var out: [1]f32 = undefined;
            kernels.matvec8_q8_0(1, 64, &bytes, 68, 1, 0, &a, &out, 0);
            try testing.expect(std.math.isNan(out[0]));
        }
    }
}
