//! What a file says of itself as a whole, and the numbers inside its tensors.
//!
//! Does not know: architectures, tokenizers.

const std = @import("std");
const base = @import("base");
const tensor = @import("tensor");
const gguf_mix = @import("../gguf_mix.zig");
const subject_file = @import("subject.zig");
const gguf_rewrite = @import("../gguf_rewrite.zig");
const Subject = subject_file.Subject;
const Tensor = gguf_rewrite.Tensor;
const DType = tensor.DType;
const printable = base.bytes.printable;
const OutOfMemory = error{OutOfMemory};

const file_type_key = "general.file_type";
const version_key = "general.quantization_version";

const FileType = struct { number: u32, dtype: DType };

/// The first of each type is what a file is called whose matrices mostly have it.
const file_types = [_]FileType{
    .{ .number = 0, .dtype = .f32 },      .{ .number = 1, .dtype = .f16 },     .{ .number = 2, .dtype = .q4_0 },    .{ .number = 3, .dtype = .q4_1 },
    .{ .number = 7, .dtype = .q8_0 },     .{ .number = 8, .dtype = .q5_0 },    .{ .number = 9, .dtype = .q5_1 },    .{ .number = 10, .dtype = .q2_k },
    .{ .number = 12, .dtype = .q3_k },    .{ .number = 11, .dtype = .q3_k },   .{ .number = 13, .dtype = .q3_k },   .{ .number = 15, .dtype = .q4_k },
    .{ .number = 14, .dtype = .q4_k },    .{ .number = 17, .dtype = .q5_k },   .{ .number = 16, .dtype = .q5_k },   .{ .number = 18, .dtype = .q6_k },
    .{ .number = 19, .dtype = .iq2_xxs }, .{ .number = 20, .dtype = .iq2_xs }, .{ .number = 21, .dtype = .q2_k },   .{ .number = 22, .dtype = .iq3_xxs },
    .{ .number = 23, .dtype = .iq3_xxs }, .{ .number = 24, .dtype = .iq1_s },  .{ .number = 25, .dtype = .iq4_nl }, .{ .number = 26, .dtype = .iq3_s },
    .{ .number = 27, .dtype = .iq3_s },   .{ .number = 28, .dtype = .iq2_xs }, .{ .number = 29, .dtype = .iq2_s },  .{ .number = 30, .dtype = .iq4_xs },
    .{ .number = 31, .dtype = .iq1_m },   .{ .number = 32, .dtype = .bf16 },   .{ .number = 36, .dtype = .tq1_0 },  .{ .number = 37, .dtype = .tq2_0 },
    .{ .number = 38, .dtype = .mxfp4 },   .{ .number = 39, .dtype = .nvfp4 },  .{ .number = 40, .dtype = .q1_0 },   .{ .number = 41, .dtype = .q2_0 },
};

/// Set where a program only guessed.
const guessed = 1024;

pub fn check(subject: *Subject) OutOfMemory!void {
    if (subject.tensors.items.len == 0) return;
    try checkFileType(subject);
    const in_blocks = for (subject.tensors.items) |*t| {
        if (t.dtype.isQuantized()) break true;
    } else false;
    if (!in_blocks) return;
    const version = subject.whole(version_key);
    if (version == 2) return;
    if (version) |n| {
        try subject.report.add(.quantization_version, version_key, true, "{s} is {d}; blocks of today are version 2", .{ version_key, n });
    } else try subject.report.add(.quantization_version, version_key, true, "{s} is missing", .{version_key});
    try subject.put(version_key, .{ .u32 = 2 });
}

fn checkFileType(subject: *Subject) OutOfMemory!void {
    var elements: std.EnumArray(DType, u64) = .initFill(0);
    for (subject.tensors.items) |*t| if (isBody(subject, t)) {
        elements.getPtr(t.dtype).* +|= t.len();
    };
    var most: ?DType = null;
    for (std.enums.values(DType)) |dtype| {
        if (elements.get(dtype) > 0 and (most == null or elements.get(dtype) > elements.get(most.?))) most = dtype;
    }
    const real = most orelse return; // No matrices: nothing to be called after.
    const right = fileTypeOf(subject, real) orelse return;
    const declared = subject.whole(file_type_key) orelse {
        if (subject.get(file_type_key) != null) return; // Said already: the key's type.
        try subject.report.add(.file_type_missing, file_type_key, true, "{s} is missing; most of the matrices are {s}", .{ file_type_key, real.label() });
        return subject.put(file_type_key, .{ .u32 = right });
    };
    const claimed = dtypeOf(declared & ~@as(u32, guessed));
    if (claimed) |dtype| {
        // A mix need not have most of what it is named after, but some, or what rows that are no whole blocks get instead.
        if (dtype == real) return;
        if (dtype.isQuantized()) for (subject.tensors.items) |*t| {
            if (!isBody(subject, t)) continue;
            if (t.dtype == dtype or (t.ne[0] % dtype.blockLen() != 0 and t.dtype == gguf_mix.fitting(dtype, t.ne[0]))) return;
        };
    }
    try subject.report.add(.file_type, file_type_key, true, "{s} is {d} ({s}); most of the matrices are {s}", .{ file_type_key, declared, if (claimed) |d| d.label() else "unknown", real.label() });
    try subject.put(file_type_key, .{ .u32 = right });
}

/// Matrices other than embedding and head, which mixes keep finer, unless there are no others.
fn isBody(subject: *const Subject, t: *const Tensor) bool {
    if (!gguf_mix.canQuantize(t.name, t.ne)) return false;
    const outer = std.mem.eql(u8, t.name, "token_embd.weight") or std.mem.eql(u8, t.name, "output.weight");
    return !outer or subject.tensors.items.len < 4;
}

fn dtypeOf(number: u32) ?DType {
    for (file_types) |entry| if (entry.number == number) return entry.dtype;
    return null;
}

fn fileTypeOf(subject: *const Subject, dtype: DType) ?u32 {
    const finer = for (subject.tensors.items) |*t| {
        if (t.dtype == .q6_k and isBody(subject, t)) break true;
    } else false;
    if (!finer) switch (dtype) {
        .q4_k => return 14,
        .q5_k => return 16,
        else => {},
    };
    for (file_types) |entry| if (entry.dtype == dtype) return entry.number;
    return null;
}

/// Every number of every tensor, as far as a block's scales say it.
pub fn scan(subject: *Subject) OutOfMemory!void {
    for (subject.tensors.items) |*t| {
        const dtype = t.content.dtype;
        const block = firstBroken(dtype, t.content.data) orelse continue;
        if (dtype == .mxfp4) {
            try subject.report.add(.numbers_broken, t.name, false, "tensor {f}: block {d} has exponent 255", .{ printable(t.name), block });
        } else if (dtype.isQuantized()) {
            try subject.report.add(.numbers_broken, t.name, false, "tensor {f}: a scale of block {d} is NaN or infinity", .{ printable(t.name), block });
        } else try subject.report.add(.numbers_broken, t.name, false, "tensor {f}: element {d} is NaN or infinity", .{ printable(t.name), block });
    }
}

/// Which block is the first with a number that is none; null also for types that are not looked into.
fn firstBroken(dtype: DType, data: []const u8) ?usize {
    const size = dtype.blockBytes();
    const step = (1 << 16) * size;
    var at: usize = 0;
    while (at < data.len) : (at += step) {
        const piece = data[at..@min(at + step, data.len)];
        if (tensor.blocks.allFinite(dtype, piece) catch return null) continue;
        for (0..piece.len / size) |i| {
            if (!(tensor.blocks.allFinite(dtype, piece[i * size ..][0..size]) catch return null)) return at / size + i;
        }
    }
    return null;
}

test "the first broken number is named" {
    var values: [70000]f32 = @splat(1);
    const raw = std.mem.sliceAsBytes(&values);
    try std.testing.expectEqual(null, firstBroken(.f32, raw));
    values[69_999] = std.math.nan(f32);
    try std.testing.expectEqual(69_999, firstBroken(.f32, raw).?);
    values[66_000] = std.math.inf(f32);
    try std.testing.expectEqual(66_000, firstBroken(.f32, raw).?);
    var blocks: [3 * 17]u8 = @splat(1);
    try std.testing.expectEqual(null, firstBroken(.mxfp4, &blocks));
    blocks[34] = 255;
    try std.testing.expectEqual(2, firstBroken(.mxfp4, &blocks).?);
}
