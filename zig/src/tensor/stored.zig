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

/// [rows, columns], row-major, a view of someone else's bytes; or several such behind each other, of experts.
pub const StoredMatrix = struct {
    dtype: DType,
    rows: usize,
    /// A multiple of the type's block length. 1 for vectors.
    columns: usize,
    /// Of any alignment, rows in the file's order.
    bytes: []const u8,
    row_order: RowOrder = .same,
    /// How many matrices of this size lie behind each other.
    count: usize = 1,
    /// MXFP4 as Hugging Face stores it: `bytes` are codes, 16 a block, two neighbours a byte, and these the scales, one a block.
    scales: ?[]const u8 = null,
    /// Every second row, from row 1 on, is here, and `bytes` has the others: gate and up of experts are apart in GGUF.
    odd: ?[]const u8 = null,
    /// The file keeps the transpose of the parameter: experts' weights as linear layers have them.
    turned: bool = false,

    /// Whether numbers of this type can be used where they lie.
    pub fn canUse(dtype: DType) bool {
        return blocks.canDequantize(dtype);
    }

    pub fn rowBytes(self: StoredMatrix) usize {
        return self.columns / self.dtype.blockLen() * self.blockBytes();
    }

    fn blockBytes(self: StoredMatrix) usize {
        return if (self.scales == null) self.dtype.blockBytes() else code_bytes;
    }

    const code_bytes = 16;

    /// One of `count` matrices.
    pub fn of(self: StoredMatrix, index: usize) StoredMatrix {
        std.debug.assert(index < self.count);
        var one = self;
        one.count = 1;
        one.bytes = sectionOf(self.bytes, self.count, index);
        if (self.odd) |bytes| one.odd = sectionOf(bytes, self.count, index);
        if (self.scales) |bytes| one.scales = sectionOf(bytes, self.count, index);
        return one;
    }

    fn sectionOf(bytes: []const u8, count: usize, index: usize) []const u8 {
        const size = bytes.len / count;
        return bytes[index * size ..][0..size];
    }

    /// Whether all bytes are there, and no more.
    pub fn isWhole(self: StoredMatrix) bool {
        const rows = self.count * self.rows;
        const here = if (self.odd == null) rows else rows / 2;
        if (self.bytes.len != here * self.rowBytes()) return false;
        if (self.odd) |bytes| if (self.rows % 2 != 0 or bytes.len != self.bytes.len) return false;
        if (self.scales) |bytes| if (self.dtype != .mxfp4 or bytes.len * code_bytes != self.bytes.len) return false;
        return true;
    }

    /// True when no number is NaN or infinite.
    pub fn allFinite(self: StoredMatrix) blocks.Error!bool {
        if (self.scales) |scales| return std.mem.findScalar(u8, scales, 255) == null;
        if (self.odd) |bytes| if (!try blocks.allFinite(self.dtype, bytes)) return false;
        return blocks.allFinite(self.dtype, self.bytes);
    }

    /// The bytes of `count` numbers from `column` on of Hugging Face's row `row`; both are multiples of the block length.
    pub fn part(self: StoredMatrix, row: usize, column: usize, count: usize) []const u8 {
        const length = self.dtype.blockLen();
        std.debug.assert(row < self.rows);
        std.debug.assert(column % length == 0);
        std.debug.assert(count % length == 0);
        std.debug.assert(column + count <= self.columns);
        const size = self.blockBytes();
        const inside = column / length * size;
        if (self.odd) |bytes| {
            const half = if (row % 2 == 0) self.bytes else bytes;
            return half[row / 2 * self.rowBytes() + inside ..][0 .. count / length * size];
        }
        return self.bytes[self.row_order.fileRow(row) * self.rowBytes() + inside ..][0 .. count / length * size];
    }

    /// The scales of the same numbers, where they are apart.
    pub fn scalesOf(self: StoredMatrix, row: usize, column: usize, count: usize) []const u8 {
        const length = self.dtype.blockLen();
        return self.scales.?[row * (self.columns / length) + column / length ..][0 .. count / length];
    }

    /// The numbers from `column` on of row `row`, whole blocks, by the plain decoders. For what is read seldom.
    pub fn read(self: StoredMatrix, row: usize, column: usize, out: []f32) blocks.Error!void {
        const raw = self.part(row, column, out.len);
        if (self.scales == null) return blocks.toF32(self.dtype, raw, out);
        for (self.scalesOf(row, column, out.len), 0..) |scale, b|
            blocks.mxfp4.dequantizePairs(scale, raw[code_bytes * b ..][0..code_bytes], out[32 * b ..][0..32]);
    }

    /// The numbers themselves where they are native floats in Hugging Face's order, else null.
    pub fn view(self: StoredMatrix, comptime T: type) ?[]align(1) const T {
        const native: DType = if (T == f32) .f32 else .f64;
        if (self.dtype != native or self.row_order != .same or self.odd != null) return null;
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

test "experts' rows are found in two tensors, and codes beside their scales" {
    var even: [2 * 3 * 2 * 17]u8 = undefined; // Two experts of three even rows of two blocks.
    var odd: [even.len]u8 = undefined;
    for (&even, &odd, 0..) |*e, *o, i| {
        e.* = @truncate(i / 17);
        o.* = @truncate(100 + i / 17);
    }
    const parted: StoredMatrix = .{ .dtype = .mxfp4, .rows = 6, .columns = 64, .bytes = &even, .odd = &odd, .count = 2, .turned = true };
    try std.testing.expect(parted.isWhole());
    try std.testing.expectEqual(2 * 2 + 1, parted.of(0).part(4, 32, 32)[0]);
    try std.testing.expectEqual(100 + 6 + 2 * 2, parted.of(1).part(5, 0, 64)[0]);
    try std.testing.expect(try parted.allFinite());

    var codes: [2 * 3 * 2 * 16]u8 = undefined;
    var scales: [2 * 3 * 2]u8 = undefined;
    for (&codes, 0..) |*c, i| c.* = @truncate(i / 16);
    for (&scales, 0..) |*s, i| s.* = @truncate(i);
    var apart: StoredMatrix = .{ .dtype = .mxfp4, .rows = 3, .columns = 64, .bytes = &codes, .scales = &scales, .count = 2, .turned = true };
    try std.testing.expect(apart.isWhole());
    try std.testing.expectEqual(6 + 2 * 2 + 1, apart.of(1).part(2, 32, 32)[0]);
    try std.testing.expectEqualSlices(u8, &.{6 + 2 * 2 + 1}, apart.of(1).scalesOf(2, 32, 32));
    try std.testing.expect(try apart.allFinite());
    scales[7] = 255;
    try std.testing.expect(!try apart.allFinite());
    apart.scales = scales[1..];
    try std.testing.expect(!apart.isWhole());
}

test "only native floats in this order are seen without expansion" {
    const numbers = [_]f32{ 1, 2, 3, 4 };
    var matrix: StoredMatrix = .{ .dtype = .f32, .rows = 4, .columns = 1, .bytes = std.mem.sliceAsBytes(&numbers) };
    try std.testing.expectEqualSlices(f32, &numbers, matrix.vector());
    try std.testing.expectEqual(null, matrix.view(f64));
    matrix.row_order = .{ .interleaved = .{ .head_dim = 4 } };
    try std.testing.expectEqual(null, matrix.view(f32));
}
