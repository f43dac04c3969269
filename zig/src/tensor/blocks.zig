//! Any stored tensor type to f32: the one place that knows how each block is laid out.
//!
//! Whole blocks in, whole blocks out, one number after the other: what faster code is compared with. Types outside of the switches
//! are `error.UnsupportedType`, and `canDequantize` says so beforehand. Another format = one file next to this one and one line in each.
//! Does not know: names, shapes, files.

const std = @import("std");
const base = @import("base");
const convert = @import("convert.zig");
const DType = @import("dtype.zig").DType;

pub const q4_0 = @import("blocks/q4_0.zig");
pub const q5_0 = @import("blocks/q5_0.zig");
pub const q8_0 = @import("blocks/q8_0.zig");
pub const q4_k = @import("blocks/q4_k.zig");
pub const q6_k = @import("blocks/q6_k.zig");
pub const mxfp4 = @import("blocks/mxfp4.zig");

pub const Error = error{UnsupportedType};

pub fn canDequantize(dtype: DType) bool {
    return switch (dtype) {
        .f32, .f16, .bf16, .f64 => true,
        .q4_0, .q4_1, .q5_0, .q5_1, .q8_0, .q4_k, .q5_k, .q6_k, .mxfp4 => true,
        else => false,
    };
}

/// `raw` holds exactly `out.len` elements of `dtype` (`out.len` a multiple of its block length).
pub fn toF32(dtype: DType, raw: []const u8, out: []f32) Error!void {
    switch (dtype) {
        .f32 => convert.f32BytesToF32(raw, out),
        .f16 => convert.f16SliceToF32(raw, out),
        .bf16 => convert.bf16SliceToF32(raw, out),
        .f64 => convert.f64BytesToF32(raw, out),
        .q4_0 => q4_0.dequantize(raw, out),
        .q4_1 => q4_0.dequantize1(raw, out),
        .q5_0 => q5_0.dequantize(raw, out),
        .q5_1 => q5_0.dequantize1(raw, out),
        .q8_0 => q8_0.dequantize(raw, out),
        .q4_k => q4_k.dequantize(raw, out),
        .q5_k => q4_k.dequantize5(raw, out),
        .q6_k => q6_k.dequantize(raw, out),
        .mxfp4 => mxfp4.dequantize(raw, out),
        else => return error.UnsupportedType,
    }
}

/// True when no number of `raw` (whole blocks) is NaN or infinite. Of block types only the scales can be: the numbers they
/// multiply are small, and one that overflows f32 is not seen here.
pub fn allFinite(dtype: DType, raw: []const u8) Error!bool {
    switch (dtype) {
        .f32 => return eachBelow(u32, raw, 0x7F80_0000),
        .f64 => return eachBelow(u64, raw, 0x7FF0_0000_0000_0000),
        .f16 => return eachBelow(u16, raw, 0x7C00),
        .bf16 => return eachBelow(u16, raw, 0x7F80),
        .mxfp4 => {
            var at: usize = 0;
            while (at < raw.len) : (at += mxfp4.bytes) if (raw[at] == 255) return false;
            return true;
        },
        .q4_0, .q5_0, .q8_0 => return scalesFinite(dtype.blockBytes(), &.{0}, raw),
        .q4_1, .q5_1, .q4_k, .q5_k => return scalesFinite(dtype.blockBytes(), &.{ 0, 2 }, raw),
        .q6_k => return scalesFinite(dtype.blockBytes(), &.{208}, raw),
        else => return error.UnsupportedType,
    }
}

/// Whether each magnitude (little-endian, of any alignment) is below the bits of infinity.
fn eachBelow(comptime Bits: type, raw: []const u8, infinity: Bits) bool {
    const lanes = 64 / @sizeOf(Bits);
    const V = @Vector(lanes, Bits);
    const mask: V = @splat(std.math.maxInt(Bits) >> 1);
    const size = @sizeOf(Bits);
    var largest: V = @splat(0);
    var at: usize = 0;
    while (at + 64 <= raw.len) : (at += 64) {
        const v: V = @bitCast(raw[at..][0..64].*);
        largest = @max(largest, v & mask);
    }
    if (@reduce(.Max, largest) >= infinity) return false;
    while (at < raw.len) : (at += size) {
        if (std.mem.readInt(Bits, raw[at..][0..size], .little) & (std.math.maxInt(Bits) >> 1) >= infinity) return false;
    }
    return true;
}

fn scalesFinite(block: usize, comptime places: []const usize, raw: []const u8) bool {
    var at: usize = 0;
    while (at < raw.len) : (at += block) inline for (places) |place| {
        if (base.bytes.at(u16, raw[at + place ..], 0) & 0x7C00 == 0x7C00) return false;
    };
    return true;
}

test {
    _ = q4_0;
    _ = q5_0;
    _ = q8_0;
    _ = q4_k;
    _ = q6_k;
    _ = mxfp4;
}

test "a number or scale that is none is seen wherever it stands, and nothing else is" {
    inline for (.{ f16, f32, f64 }, .{ DType.f16, DType.f32, DType.f64 }) |T, dtype| {
        var values: [67]T = @splat(-std.math.floatMax(T));
        try std.testing.expect(try allFinite(dtype, std.mem.sliceAsBytes(&values)));
        for (&values) |*v| for ([_]T{ std.math.nan(T), std.math.inf(T), -std.math.inf(T) }) |bad| {
            v.* = bad;
            try std.testing.expect(!try allFinite(dtype, std.mem.sliceAsBytes(&values)));
            v.* = 1;
        };
    }
    const scale_places = .{ .{ DType.q4_0, .{0} }, .{ DType.q4_1, .{ 0, 2 } }, .{ DType.q5_0, .{0} }, .{ DType.q5_1, .{ 0, 2 } }, .{ DType.q8_0, .{0} }, .{ DType.q4_k, .{ 0, 2 } }, .{ DType.q5_k, .{ 0, 2 } }, .{ DType.q6_k, .{208} } };
    inline for (scale_places) |entry| {
        const size = comptime entry[0].blockBytes();
        var raw: [3 * size]u8 = @splat(0xFB); // Not full exponents: 0xFBFB is finite.
        try std.testing.expect(try allFinite(entry[0], &raw));
        for (0..3) |b| inline for (entry[1]) |place| {
            raw[b * size + place + 1] = 0xFC;
            try std.testing.expect(!try allFinite(entry[0], &raw));
            raw[b * size + place + 1] = 0;
        };
        for (0..size) |at| { // One byte alone is a scale only at its upper half.
            var one: [size]u8 = @splat(0);
            one[at] = 0x7F;
            const is_scale = inline for (entry[1]) |place| {
                if (at == place + 1) break true;
            } else false;
            try std.testing.expectEqual(!is_scale, try allFinite(entry[0], &one));
        }
    }
    var mx: [34]u8 = @splat(255);
    mx[0] = 254;
    mx[17] = 254;
    try std.testing.expect(try allFinite(.mxfp4, &mx));
    mx[17] = 255;
    try std.testing.expect(!try allFinite(.mxfp4, &mx));
}

test "types that cannot be expanded are refused, not guessed" {
    var out: [32]f32 = undefined;
    inline for (@typeInfo(DType).@"enum".field_names) |name| {
        const dtype = @field(DType, name);
        if (!canDequantize(dtype))
            try std.testing.expectError(error.UnsupportedType, toF32(dtype, &@as([18]u8, @splat(0)), &out));
    }
}
