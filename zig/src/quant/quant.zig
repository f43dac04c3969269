//! Root of the quant layer: f32 rows to the types a file stores, byte for byte as ggml writes them.
//!
//! Sums run in index order without FMA, so the bytes are the same on every machine. Input with NaN or infinity, or a scale
//! that overflows f16, is `error.NotFinite`: such a file would be refused later, or worse, not. Does not know: which tensor gets which
//! type, files, threads.

const std = @import("std");
const base = @import("base");
const tensor = @import("tensor");
const kernels = @import("kernels");
const DType = tensor.DType;

pub const q4_0 = @import("q4_0.zig");
pub const q8_0 = @import("q8_0.zig");
pub const k_quants = @import("k_quants.zig");
pub const mxfp4 = @import("mxfp4.zig");

pub const Error = error{ UnsupportedType, NotFinite };

pub fn canEncode(dtype: DType) bool {
    return switch (dtype) {
        .f32, .f16, .bf16 => true,
        .q4_0, .q4_1, .q5_0, .q5_1, .q8_0, .q4_k, .q5_k, .q6_k, .mxfp4 => true,
        else => false,
    };
}

/// Types whose search an importance matrix guides; the others are what they are without one.
pub fn canWeigh(dtype: DType) bool {
    return switch (dtype) {
        .q4_0, .q4_1, .q5_0, .q5_1, .q4_k, .q5_k, .q6_k => true,
        else => false,
    };
}

/// Writes `values` (whole rows, so a multiple of the block length) as `dtype`; `out` has exactly their size.
pub fn encode(dtype: DType, values: []const f32, out: []u8) Error!void {
    try check(dtype, values, out);
    switch (dtype) {
        .f32 => tensor.convert.f32ToF32Bytes(values, out),
        .f16 => tensor.convert.f32SliceToF16(values, out),
        .bf16 => tensor.convert.f32SliceToBf16(values, out),
        else => {
            if (dtype == .mxfp4) mxfp4.storeExponents(values, out);
            const kernel = quantiser(dtype) orelse unreachable; // canEncode said yes.
            if (kernel(values.len / dtype.blockLen(), values.ptr, out.ptr) != 0) return error.NotFinite;
        },
    }
}

/// Like `encode`, with the importance of each column (finite, not negative): `values` are rows of `importance.len`.
pub fn encodeWeighed(dtype: DType, values: []const f32, importance: []const f32, out: []u8) Error!void {
    const kernel = weigher(dtype) orelse return encode(dtype, values, out);
    std.debug.assert(values.len % importance.len == 0);
    try check(dtype, values, out);
    if (kernel(values.len / dtype.blockLen(), values.ptr, importance.ptr, importance.len, out.ptr) != 0) return error.NotFinite;
}

/// The same bytes one number after the other: the definition that `encode` is compared with. Block types only.
pub fn encodePlainly(dtype: DType, values: []const f32, out: []u8) Error!void {
    try check(dtype, values, out);
    switch (dtype) {
        .q4_0 => try q4_0.quantize(4, values, out),
        .q4_1 => try q4_0.quantizeWithMinimum(4, values, out),
        .q5_0 => try q4_0.quantize(5, values, out),
        .q5_1 => try q4_0.quantizeWithMinimum(5, values, out),
        .q8_0 => try q8_0.quantize(values, out),
        .q4_k => try k_quants.quantizeWithMinimum(4, values, out),
        .q5_k => try k_quants.quantizeWithMinimum(5, values, out),
        .q6_k => try k_quants.quantizeSymmetric(values, out),
        .mxfp4 => mxfp4.quantize(values, out),
        else => return error.UnsupportedType,
    }
}

/// Stored numbers (whole blocks) as f32, by the fastest way there is.
pub fn expand(dtype: DType, raw: []const u8, out: []f32) tensor.blocks.Error!void {
    switch (dtype) {
        .f16 => kernels.weightTable().expand_f16(out.len, raw.ptr, out.ptr),
        else => try tensor.blocks.toF32(dtype, raw, out),
    }
}

fn check(dtype: DType, values: []const f32, out: []const u8) Error!void {
    if (!canEncode(dtype)) return error.UnsupportedType;
    std.debug.assert(out.len == dtype.rowBytes(values.len) catch unreachable); // The caller sized it by the same rule.
    // The smallest magnitude that would be stored as infinity, as bits; NaN is above all of them.
    const too_large: u32 = switch (dtype) {
        .f16 => 0x477FF000,
        .bf16 => 0x7F7F8000,
        else => infinity_bits,
    };
    if (!allBelow(values, too_large)) return error.NotFinite;
}

fn quantiser(dtype: DType) ?kernels.dispatch.Quantise {
    const table = kernels.quantiseTable();
    return switch (dtype) {
        inline .q4_0, .q4_1, .q5_0, .q5_1, .q8_0, .q4_k, .q5_k, .q6_k, .mxfp4 => |kind| @field(table, "quantise_" ++ @tagName(kind)),
        else => null,
    };
}

fn weigher(dtype: DType) ?kernels.dispatch.Weigh {
    const table = kernels.quantiseTable();
    return switch (dtype) {
        inline .q4_0, .q4_1, .q5_0, .q5_1, .q4_k, .q5_k, .q6_k => |kind| @field(table, "weigh_" ++ @tagName(kind)),
        else => null,
    };
}

const infinity_bits: u32 = 0x7F800000;

/// True when no value is NaN or infinite.
pub fn allFinite(values: []const f32) bool {
    return allBelow(values, infinity_bits);
}

/// True when the bits of every magnitude are below `limit`.
fn allBelow(values: []const f32, limit: u32) bool {
    return kernels.quantiseTable().largest_bits(values.len, values.ptr) < limit;
}

test {
    _ = q4_0;
    _ = q8_0;
    _ = k_quants;
    _ = mxfp4;
}

/// The two rows of test numbers on which ggml's own output was recorded.
fn referenceRow(comptime kind: enum { a, b }, out: *[1024]f32) void {
    for (out, 0..) |*x, i| {
        const mixed: u32 = @truncate(i * 2654435761 + 12345);
        const u = @as(f64, @floatFromInt(mixed)) / 4294967296.0;
        const c = (u - 0.5) * 2;
        x.* = @floatCast(if (kind == .a) (u - 0.5) * 0.2 else c * c * c);
    }
}

fn expectDigest(dtype: DType, comptime kind: @TypeOf(.enum_literal), sha16: *const [16]u8, first24: *const [24]u8) !void {
    var row: [1024]f32 = undefined;
    referenceRow(kind, &row);
    var out: [4096]u8 = undefined;
    const raw = out[0..try dtype.rowBytes(row.len)];
    try encode(dtype, &row, raw);
    const first = std.fmt.bytesToHex(raw[0..12].*, .lower);
    try std.testing.expectEqualStrings(first24, &first);
    var digest: [32]u8 = undefined;
    std.crypto.hash.sha2.Sha256.hash(raw, &digest, .{});
    const hex = std.fmt.bytesToHex(digest[0..8].*, .lower);
    try std.testing.expectEqualStrings(sha16, &hex);
}

fn expectWeighed(dtype: DType, comptime kind: @TypeOf(.enum_literal), sha16: *const [16]u8, first24: *const [24]u8) !void {
    var row: [1024]f32 = undefined;
    referenceRow(kind, &row);
    var importance: [1024]f32 = undefined;
    for (&importance, 0..) |*w, i| w.* = @as(f32, @floatFromInt((i * 40503 + 7) % 1024 + 1)) / 1024;
    var out: [4096]u8 = undefined;
    const raw = out[0..try dtype.rowBytes(row.len)];
    try encodeWeighed(dtype, &row, &importance, raw);
    const first = std.fmt.bytesToHex(raw[0..12].*, .lower);
    try std.testing.expectEqualStrings(first24, &first);
    var digest: [32]u8 = undefined;
    std.crypto.hash.sha2.Sha256.hash(raw, &digest, .{});
    const hex = std.fmt.bytesToHex(digest[0..8].*, .lower);
    try std.testing.expectEqualStrings(sha16, &hex);
}

test "with the importance of columns the bytes are ggml's, too" {
    try expectWeighed(.q4_0, .a, "e7fdf7fca2d1e552", "b722e08a24cd68f29b45df79");
    try expectWeighed(.q4_0, .b, "59e9110864663825", "892fc088479b88f38968be88");
    try expectWeighed(.q4_k, .a, "21714b3dc3546041", "b40aba16fefdfffffbfbfaf8");
    try expectWeighed(.q4_k, .b, "95d8cf07eefc436e", "4d183c24fcfff8fdfff8f9f6");
    try expectWeighed(.q5_k, .a, "840621d81a148c14", "98069e16fffffdfefefcfffc");
    try expectWeighed(.q5_k, .b, "aac7838911d7ce2e", "f213d523fdfefafefefcfffb");
    try expectWeighed(.q6_k, .a, "5ccaf75330a323cb", "40a84fa70ea50ea50d640b63");
    try expectWeighed(.q6_k, .b, "867444121858e16a", "01607b0b101fc20f060048f7");
    // Importance does not guide the other types.
    try expectWeighed(.q8_0, .a, "9f219165bfbbdf96", "7312811ebd5af99835d47110");
}

/// Numbers of a kind: ordinary, heavy-tailed, of one sign, sparse, constant, tiny, on a grid.
fn awkward(random: std.Random, kind: usize, out: []f32) void {
    for (out) |*x| {
        const v = random.floatNorm(f32);
        x.* = switch (kind) {
            0 => v,
            1 => v * v * v * v * v,
            2 => @abs(v),
            3 => -@abs(v),
            4 => if (random.float(f32) < 0.03) v else 0,
            5 => 0.37,
            6 => v * 1e-3,
            7 => @round(v * 4) / 4,
            8 => v * 1e-20,
            9 => if (random.boolean()) 0 else -0.0,
            10 => v * 1e-7,
            11 => if (random.float(f32) < 0.01) v * 3000 else v * 1e-4,
            else => 1e-41 * v,
        };
    }
}

test "many blocks at once give the bytes of one after the other, for any number of blocks" {
    var prng: std.Random.DefaultPrng = .init(17);
    var values: [40 * 256]f32 = undefined;
    var fast: [40 * 256 * 4]u8 = undefined;
    var slow: [fast.len]u8 = undefined;
    for ([_]DType{ .q8_0, .q4_0, .q4_1, .q5_0, .q5_1, .q4_k, .q5_k, .q6_k, .mxfp4 }) |dtype| {
        for (0..13) |kind| for ([_]usize{ 1, 2, 3, 5, 16, 17, 40 }) |blocks| {
            const part = values[0 .. blocks * dtype.blockLen()];
            awkward(prng.random(), kind, part);
            const size = try dtype.rowBytes(part.len);
            try encode(dtype, part, fast[0..size]);
            try encodePlainly(dtype, part, slow[0..size]);
            std.testing.expectEqualSlices(u8, slow[0..size], fast[0..size]) catch |err| {
                std.debug.print("{t}, kind {d}, {d} blocks\n", .{ dtype, kind, blocks });
                return err;
            };
        };
    }
}

test "the bytes are ggml's" {
    try expectDigest(.q8_0, .a, "9f219165bfbbdf96", "7312811ebd5af99835d47110");
    try expectDigest(.q8_0, .b, "d604b3b7afa514fb", "08208102ed2d00ba09fb5900");
    try expectDigest(.q4_0, .a, "95f3752c48055b37", "6622e08a24ce68f1ab35df79");
    try expectDigest(.q4_0, .b, "05ff5472236040cf", "0030c088579b88f48978ae88");
    try expectDigest(.q5_0, .a, "cba24aee9e5493ba", "661e4a4b6b69c004488bcff3");
    try expectDigest(.q5_0, .b, "7f45f9103664e864", "002c5a5b7b6b80009e2600e7");
    try expectDigest(.q5_1, .a, "974b58e326d2dde0", "771e66ae4a4b6b69c004478b");
    try expectDigest(.q5_1, .b, "382440097ffbf69e", "c12b00bcda5b7b7b8011ae26");
    try expectDigest(.q4_k, .a, "16e9495c9cf4cd0e", "b80a8b16fffffefcfcfdfefc");
    try expectDigest(.q4_k, .b, "5cb0106af3c09043", "35182d24fdfffafefff7faf7");
    try expectDigest(.q5_k, .a, "41dc164d38ff5d13", "9b068e16fffffdfffffdfffd");
    try expectDigest(.q5_k, .b, "ba17c87344eb6660", "e5130224fffffdfefffbfefa");
    try expectDigest(.q6_k, .a, "fcde58f50ca15800", "41a73fa61e960d950c74fc63");
    try expectDigest(.q6_k, .b, "edffdc05fd91d93d", "01507b0b001fc21f06f048f7");
    try expectDigest(.mxfp4, .a, "4fb702fc42c08cfc", "796f03ed56c97f25ec6792fe");
    try expectDigest(.mxfp4, .b, "6a5731523198139f", "7c6f00da25007e01b94700fc");
    try expectDigest(.bf16, .a, "c3549a8b95c1e0e1", "cdbdc13c58bd913db7bba8bd");
    try expectDigest(.bf16, .b, "0349c0df41887713", "80bf583c17beb63e35b90dbf");
    try expectDigest(.f16, .a, "f84e3ecaefaf03ef", "66ae0b26c2aa882cb59d3fad");
    try expectDigest(.f16, .b, "b5ba36ed566a5aca", "00bcbc22b5b0af35ab8968b8");
}

test "NaN, infinity and overflow to infinity are refused by every type" {
    var out: [4 * 32]u8 = undefined;
    for ([_]DType{ .f32, .f16, .bf16, .q8_0 }) |dtype| {
        for ([_]f32{ std.math.nan(f32), std.math.inf(f32), -std.math.inf(f32) }) |bad| for (0..32) |place| {
            var row: [32]f32 = @splat(1);
            row[place] = bad;
            try std.testing.expectError(error.NotFinite, encode(dtype, &row, out[0..try dtype.rowBytes(32)]));
        };
    }
    // The last number that still has a place in each type, and the first that has none.
    const edges = [_]struct { DType, u32, u16 }{ .{ .f16, 0x477FF000, 0x7BFF }, .{ .bf16, 0x7F7F8000, 0x7F7F } };
    for (edges) |edge| for ([_]u32{ 0, 0x80000000 }) |sign| {
        const last: [32]f32 = @splat(@bitCast((edge[1] - 1) | sign));
        const first: [32]f32 = @splat(@bitCast(edge[1] | sign));
        try encode(edge[0], &last, out[0..64]);
        try std.testing.expectEqual(edge[2], base.bytes.at(u16, &out, 0) & 0x7FFF);
        try std.testing.expectError(error.NotFinite, encode(edge[0], &first, out[0..64]));
    };
    const large: [32]f32 = @splat(3.4e38);
    for ([_]DType{ .f16, .bf16, .q8_0 }) |dtype|
        try std.testing.expectError(error.NotFinite, encode(dtype, &large, out[0..try dtype.rowBytes(32)]));
    try std.testing.expectError(error.UnsupportedType, encode(.q2_k, &large, out[0..0]));
}
