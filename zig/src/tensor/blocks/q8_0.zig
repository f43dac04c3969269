//! q8_0: 32 numbers as one f16 scale and 32 signed bytes (34 bytes). Value = byte · scale.

const std = @import("std");
const base = @import("base");
const convert = @import("../convert.zig");

pub const len = 32;
pub const bytes = 34;

/// `raw`: whole blocks; `out`: 32 numbers each.
pub fn dequantize(raw: []const u8, out: []f32) void {
    std.debug.assert(out.len % len == 0);
    std.debug.assert(raw.len == out.len / len * bytes);
    for (0..out.len / len) |b| {
        const block = raw[b * bytes ..][0..bytes];
        const d: @Vector(len, f32) = @splat(convert.f16ToF32(base.bytes.load(u16, block[0..2])));
        const q: @Vector(len, i8) = @bitCast(block[2..bytes].*);
        out[b * len ..][0..len].* = @as(@Vector(len, f32), @floatFromInt(q)) * d;
    }
}

test "a block decodes to byte times scale" {
    var raw: [bytes + 1]u8 = undefined;
    const block = raw[1..]; // Odd address: files promise no alignment.
    base.bytes.store(u16, block[0..2], convert.f32ToF16(0.5));
    for (block[2..], 0..) |*q, i| q.* = @bitCast(@as(i8, @intCast(@as(i32, @intCast(i)) * 8 - 128)));
    var out: [len]f32 = undefined;
    dequantize(block, &out);
    for (out, 0..) |x, i| try std.testing.expectEqual((@as(f32, @floatFromInt(i)) * 8 - 128) * 0.5, x);
}
