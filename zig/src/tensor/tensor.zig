//! Root of the tensor layer: how numbers lie in files and how they become f32.

pub const dtype = @import("dtype.zig");
pub const convert = @import("convert.zig");
pub const blocks = @import("blocks.zig");

pub const stored = @import("stored.zig");

pub const DType = dtype.DType;
pub const RowOrder = stored.RowOrder;
pub const StoredMatrix = stored.StoredMatrix;

test {
    _ = dtype;
    _ = convert;
    _ = blocks;
    _ = stored;
}
