//! Element types of tensors in files: ggml's and safetensors' in one enum.
//!
//! A type stores `blockLen` elements in `blockBytes` bytes; rows are whole blocks. Ids are ggml's; the types that only
//! safetensors knows have ids from 1000 on and never reach a GGUF file. Sizes are products of numbers from files, so
//! they are checked. Does not know: values, how a block is decoded.

const std = @import("std");
const base = @import("base");

pub const SizeError = error{
    /// A product of dimensions does not fit.
    Overflow,
    /// A row is not a whole number of blocks.
    PartialBlock,
};

pub const DType = enum(u32) {
    f32 = 0,
    f16 = 1,
    q4_0 = 2,
    q4_1 = 3,
    q5_0 = 6,
    q5_1 = 7,
    q8_0 = 8,
    q8_1 = 9,
    q2_k = 10,
    q3_k = 11,
    q4_k = 12,
    q5_k = 13,
    q6_k = 14,
    q8_k = 15,
    iq2_xxs = 16,
    iq2_xs = 17,
    iq3_xxs = 18,
    iq1_s = 19,
    iq4_nl = 20,
    iq3_s = 21,
    iq2_s = 22,
    iq4_xs = 23,
    i8 = 24,
    i16 = 25,
    i32 = 26,
    i64 = 27,
    f64 = 28,
    iq1_m = 29,
    bf16 = 30,
    tq1_0 = 34,
    tq2_0 = 35,
    mxfp4 = 39,
    nvfp4 = 40,
    q1_0 = 41,
    q2_0 = 42,
    // safetensors only
    bool = 1000,
    u8 = 1001,
    u16 = 1002,
    u32 = 1003,
    u64 = 1004,

    /// One past the largest id ggml knows.
    pub const ggml_count = 43;

    /// The type with this ggml id, or null for retired and unknown ids.
    pub fn fromGgml(id: u32) ?DType {
        if (id >= ggml_count) return null;
        inline for (@typeInfo(DType).@"enum".field_names) |name| {
            const candidate = @field(DType, name);
            if (@backingInt(candidate) == id) return candidate;
        }
        return null;
    }

    /// Its id in a GGUF file, or null if ggml has no such type.
    pub fn ggmlId(self: DType) ?u32 {
        const id = @backingInt(self);
        return if (id < ggml_count) id else null;
    }

    /// Elements a block.
    pub fn blockLen(self: DType) usize {
        return switch (self) {
            .f32, .f16, .bf16, .f64, .i8, .i16, .i32, .i64, .bool, .u8, .u16, .u32, .u64 => 1,
            .q4_0, .q4_1, .q5_0, .q5_1, .q8_0, .q8_1, .iq4_nl, .mxfp4 => 32,
            .nvfp4, .q2_0 => 64,
            .q1_0 => 128,
            .q2_k, .q3_k, .q4_k, .q5_k, .q6_k, .q8_k => 256,
            .iq2_xxs, .iq2_xs, .iq3_xxs, .iq1_s, .iq3_s, .iq2_s, .iq4_xs, .iq1_m, .tq1_0, .tq2_0 => 256,
        };
    }

    /// Bytes a block.
    pub fn blockBytes(self: DType) usize {
        return switch (self) {
            .bool, .u8, .i8 => 1,
            .f16, .bf16, .i16, .u16 => 2,
            .f32, .i32, .u32 => 4,
            .f64, .i64, .u64 => 8,
            .q4_0, .iq4_nl, .q1_0, .q2_0 => 18,
            .q4_1 => 20,
            .q5_0 => 22,
            .q5_1 => 24,
            .q8_0 => 34,
            .q8_1 => 36,
            .q2_k => 84,
            .q3_k, .iq3_s => 110,
            .q4_k => 144,
            .q5_k => 176,
            .q6_k => 210,
            .q8_k => 292,
            .iq2_xxs, .tq2_0 => 66,
            .iq2_xs => 74,
            .iq3_xxs => 98,
            .iq1_s => 50,
            .iq2_s => 82,
            .iq4_xs => 136,
            .iq1_m => 56,
            .tq1_0 => 54,
            .mxfp4 => 17,
            .nvfp4 => 36,
        };
    }

    pub fn isQuantized(self: DType) bool {
        return self.blockLen() > 1;
    }

    pub fn isFloat(self: DType) bool {
        return switch (self) {
            .f32, .f16, .bf16, .f64 => true,
            else => false,
        };
    }

    /// Bytes of one row of `columns` elements.
    pub fn rowBytes(self: DType, columns: usize) SizeError!usize {
        if (columns % self.blockLen() != 0) return error.PartialBlock;
        return base.checked.mul(usize, columns / self.blockLen(), self.blockBytes());
    }

    /// Bytes of a tensor; `dims` in PyTorch's order (the last one is the row length). No dims = one element.
    pub fn tensorBytes(self: DType, dims: []const usize) SizeError!usize {
        if (dims.len == 0) return self.rowBytes(1);
        const rows = try base.checked.product(usize, dims[0 .. dims.len - 1]);
        return base.checked.mul(usize, rows, try self.rowBytes(dims[dims.len - 1]));
    }

    /// The name people read: `f32`, `q4_k`, `bf16`.
    pub fn label(self: DType) []const u8 {
        return @tagName(self);
    }

    /// By the name people type, in any case; also ggml's `Q8_0`, `F16`.
    pub fn fromLabel(text: []const u8) ?DType {
        inline for (@typeInfo(DType).@"enum".field_names) |name| {
            if (std.ascii.eqlIgnoreCase(text, name)) return @field(DType, name);
        }
        return null;
    }

    /// The name in a safetensors header, or null for block types.
    pub fn safetensorsName(self: DType) ?[]const u8 {
        return switch (self) {
            .f32 => "F32",
            .f16 => "F16",
            .bf16 => "BF16",
            .f64 => "F64",
            .i8 => "I8",
            .i16 => "I16",
            .i32 => "I32",
            .i64 => "I64",
            .bool => "BOOL",
            .u8 => "U8",
            .u16 => "U16",
            .u32 => "U32",
            .u64 => "U64",
            else => null,
        };
    }

    /// By the name in a safetensors header (exact case). Null for names we do not handle (F8_*, F4, C64).
    pub fn fromSafetensors(name: []const u8) ?DType {
        inline for (@typeInfo(DType).@"enum".field_names) |field| {
            const candidate = @field(DType, field);
            if (candidate.safetensorsName()) |known| if (std.mem.eql(u8, known, name)) return candidate;
        }
        return null;
    }

    /// `general.file_type` of a GGUF whose matrices mostly have this type, or null if there is no such number.
    pub fn ggufFileType(self: DType) ?u32 {
        return switch (self) {
            .f32 => 0,
            .f16 => 1,
            .q4_0 => 2,
            .q4_1 => 3,
            .q8_0 => 7,
            .q5_0 => 8,
            .q5_1 => 9,
            .q4_k => 15,
            .q5_k => 17,
            .q6_k => 18,
            .bf16 => 32,
            .mxfp4 => 38,
            else => null,
        };
    }
};

test "every ggml id maps to a type and back, retired ids to none" {
    var known: usize = 0;
    for (0..64) |id| {
        const dtype = DType.fromGgml(@intCast(id)) orelse continue;
        try std.testing.expectEqual(@as(?u32, @intCast(id)), dtype.ggmlId());
        known += 1;
    }
    try std.testing.expectEqual(@as(usize, 35), known);
    for ([_]u32{ 4, 5, 31, 32, 33, 36, 37, 38, 43, 1000, 0xffffffff }) |retired|
        try std.testing.expectEqual(@as(?DType, null), DType.fromGgml(retired));
    try std.testing.expectEqual(@as(?u32, null), DType.bool.ggmlId());
}

test "row and tensor sizes follow the blocks and never wrap" {
    try std.testing.expectEqual(@as(usize, 68), try DType.q8_0.rowBytes(64));
    try std.testing.expectEqual(@as(usize, 144 * 6), try DType.q4_k.tensorBytes(&.{ 3, 512 }));
    try std.testing.expectEqual(@as(usize, 4), try DType.f32.tensorBytes(&.{}));
    try std.testing.expectError(error.PartialBlock, DType.q8_0.rowBytes(33));
    try std.testing.expectError(error.Overflow, DType.f32.tensorBytes(&.{ std.math.maxInt(usize), 2 }));
    try std.testing.expectError(error.Overflow, DType.f64.rowBytes(std.math.maxInt(usize)));
}

test "names are found in any case, safetensors names only exactly" {
    try std.testing.expectEqual(DType.q8_0, DType.fromLabel("Q8_0").?);
    try std.testing.expectEqual(DType.bf16, DType.fromLabel("bf16").?);
    try std.testing.expectEqual(@as(?DType, null), DType.fromLabel("q9"));
    try std.testing.expectEqual(DType.bf16, DType.fromSafetensors("BF16").?);
    try std.testing.expectEqual(@as(?DType, null), DType.fromSafetensors("bf16"));
    try std.testing.expectEqual(@as(?DType, null), DType.fromSafetensors("F8_E4M3"));
}
