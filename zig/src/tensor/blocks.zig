//! Any stored tensor type to f32: the one place that knows how each block is laid out.
//!
//! Whole rows in, whole rows out. Supported now: f32, f16, bf16, f64, q8_0; other types are `error.UnsupportedType`, and
//! `canDequantize` says so beforehand. Another block format = one file next to this one and one line in each switch.
//! Does not know: names, shapes, files.

const std = @import("std");
const base = @import("base");
const convert = @import("convert.zig");
const DType = @import("dtype.zig").DType;

pub const q8_0 = @import("blocks/q8_0.zig");

pub const Error = error{UnsupportedType};

pub fn canDequantize(dtype: DType) bool {
    return switch (dtype) {
        .f32, .f16, .bf16, .f64, .q8_0 => true,
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
        .q8_0 => q8_0.dequantize(raw, out),
        else => return error.UnsupportedType,
    }
}

test {
    _ = q8_0;
}

test "types that cannot be expanded are refused, not guessed" {
    var out: [32]f32 = undefined;
    inline for (@typeInfo(DType).@"enum".field_names) |name| {
        const dtype = @field(DType, name);
        if (!canDequantize(dtype))
            try std.testing.expectError(error.UnsupportedType, toF32(dtype, &@as([18]u8, @splat(0)), &out));
    }
}
