//! Root of the tensor layer: how numbers lie in files and how they become f32.

pub const dtype = @import("dtype.zig");
pub const convert = @import("convert.zig");
pub const blocks = @import("blocks.zig");

pub const DType = dtype.DType;

test {
    _ = dtype;
    _ = convert;
    _ = blocks;
}
