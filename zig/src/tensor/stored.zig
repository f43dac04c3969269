//! A matrix as it lies in a file: its type, its bytes, and the order of its rows.
//!
//! Files of one architecture keep some rows in another order than everything here works in; `RowOrder` says how, so
//! that a mapped file can be used as it is. Rows are whole blocks. Does not know: names, files, products.

const std = @import("std");
const blocks = @import("blocks.zig");
const DType = @import("dtype.zig").DType;

/// How the rows of a matrix change places between Hugging Face's order, which everything here works in, and the file's.
pub const RowOrder = union(enum) {
    same,
    /// Heads are kept whole; inside a head rotary pairs are neighbours in the file and half a head apart here.
    interleaved: struct { head_dim: usize },

    /// Which Hugging Face row stands at this row of the file.
    pub fn hfRow(self: RowOrder, file_row: usize) usize {
        switch (self) {
            .same => return file_row,
            .interleaved => |i| {
                const half = i.head_dim / 2;
                const head_start = file_row - file_row % i.head_dim;
                const within = file_row % i.head_dim;
                return head_start + (within % 2) * half + within / 2;
            },
        }
    }

    /// Which row of the file this Hugging Face row is.
    pub fn fileRow(self: RowOrder, hf_row: usize) usize {
        switch (self) {
            .same => return hf_row,
            .interleaved => |i| {
                const half = i.head_dim / 2;
                const head_start = hf_row - hf_row % i.head_dim;
                const within = hf_row % i.head_dim;
                return head_start + (within % half) * 2 + within / half;
            },
        }
    }
};

/// [rows, columns], row-major, a view of someone else's bytes.
pub const StoredMatrix = struct {
    dtype: DType,
    rows: usize,
    /// A multiple of the type's block length. 1 for vectors.
    columns: usize,
    /// Of any alignment, rows in the file's order.
    bytes: []const u8,
    row_order: RowOrder = .same,

    /// Whether numbers of this type can be used where they lie.
    pub fn canUse(dtype: DType) bool {
        return blocks.canDequantize(dtype);
    }

    pub fn rowBytes(self: StoredMatrix) usize {
        return self.columns / self.dtype.blockLen() * self.dtype.blockBytes();
    }

    /// The bytes of `count` numbers from `column` on of Hugging Face's row `row`; both are multiples of the block length.
    pub fn part(self: StoredMatrix, row: usize, column: usize, count: usize) []const u8 {
        const length = self.dtype.blockLen();
        std.debug.assert(row < self.rows);
        std.debug.assert(column % length == 0);
        std.debug.assert(count % length == 0);
        std.debug.assert(column + count <= self.columns);
        const size = self.dtype.blockBytes();
        return self.bytes[self.row_order.fileRow(row) * self.rowBytes() + column / length * size ..][0 .. count / length * size];
    }

    /// The numbers themselves where they are native floats in Hugging Face's order, else null.
    pub fn view(self: StoredMatrix, comptime T: type) ?[]align(1) const T {
        const native: DType = if (T == f32) .f32 else .f64;
        if (self.dtype != native or self.row_order != .same) return null;
        return std.mem.bytesAsSlice(T, self.bytes);
    }

    /// A norm or a bias: f32, aligned, in Hugging Face's order. Whoever opened the file made it so.
    pub fn vector(self: StoredMatrix) []const f32 {
        return @alignCast(self.view(f32).?);
    }
};

test "a part is found in the file's row, at its blocks" {
    var bytes: [8 * 3 * 34]u8 = undefined;
    for (&bytes, 0..) |*b, i| b.* = @truncate(i / 34); // The number of the block.
    var matrix: StoredMatrix = .{ .dtype = .q8_0, .rows = 8, .columns = 96, .bytes = &bytes };
    try std.testing.expectEqual(102, matrix.rowBytes());
    try std.testing.expectEqual(5 * 3 + 1, matrix.part(5, 32, 64)[0]);
    try std.testing.expectEqual(68, matrix.part(5, 32, 64).len);
    matrix.row_order = .{ .interleaved = .{ .head_dim = 4 } };
    // Rows 0 1 2 3 of a head lie at 0 2 1 3.
    for ([_]u8{ 0, 2, 1, 3, 4, 6, 5, 7 }, 0..) |at, row| try std.testing.expectEqual(at * 3, matrix.part(row, 0, 32)[0]);
}

test "only native floats in this order are seen without expansion" {
    const numbers = [_]f32{ 1, 2, 3, 4 };
    var matrix: StoredMatrix = .{ .dtype = .f32, .rows = 4, .columns = 1, .bytes = std.mem.sliceAsBytes(&numbers) };
    try std.testing.expectEqualSlices(f32, &numbers, matrix.vector());
    try std.testing.expectEqual(null, matrix.view(f64));
    matrix.row_order = .{ .interleaved = .{ .head_dim = 4 } };
    try std.testing.expectEqual(null, matrix.view(f32));
}
