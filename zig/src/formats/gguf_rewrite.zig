//! A GGUF file written anew: keys and tensors as a list says, the bytes of tensors copied where they lie.
//!
//! What may change besides a tensor's name and place: rows in another order or every second one, floats stored wider, the nibbles of
//! early Ollama's MXFP4 blocks put in ggml's order. None of these rounds a number. The file is written beside its name, read back
//! strictly, and only then renamed: the old one under that name is there until the new one is whole.
//! Does not know: why anything is changed, architectures.

const std = @import("std");
const base = @import("base");
const tensor = @import("tensor");
const gguf = @import("gguf.zig");
const gguf_writer = @import("gguf_writer.zig");
const DType = tensor.DType;
const Diagnostic = base.Diagnostic;
const Storage = base.storage.Storage;
const printable = base.bytes.printable;

pub const Error = gguf_writer.Error || base.storage.Error || error{
    /// A tensor whose bytes are not in the source.
    MissingData,
    NotEnoughSpace,
    VerificationFailed,
};

pub const Keys = std.array_hash_map.String(gguf.Value);

/// Which rows of the source, in which order. A row is `Content.row_bytes` long.
pub const Rows = union(enum) {
    all,
    range: struct { first: usize, count: usize },
    /// Every second one, beginning with `first`.
    alternate: struct { first: usize },
    /// Rotary pairs half a head apart become neighbours.
    interleaved: struct { head_dim: usize },

    fn count(self: Rows, of: usize) usize {
        return switch (self) {
            .all, .interleaved => of,
            .range => |r| r.count,
            .alternate => |a| (of - a.first + 1) / 2,
        };
    }

    fn source(self: Rows, row: usize) usize {
        return switch (self) {
            .all => row,
            .range => |r| r.first + row,
            .alternate => |a| a.first + 2 * row,
            .interleaved => |i| (tensor.RowOrder{ .interleaved = .{ .head_dim = i.head_dim } }).hfRow(row),
        };
    }
};

pub const Convert = enum {
    none,
    /// Floats only.
    to_f32,
    /// MXFP4 blocks whose sixteen bytes hold neighbours become blocks whose bytes hold elements sixteen apart.
    early_ollama,
};

/// Where a tensor's bytes come from.
pub const Content = struct {
    data: []const u8,
    /// The source's type: for `to_f32`.
    dtype: DType,
    rows: Rows = .all,
    /// Zero: the rows are not touched.
    row_bytes: usize = 0,
    convert: Convert = .none,

    pub fn isCopy(self: Content) bool {
        return self.rows == .all and self.convert == .none;
    }
};

pub const Tensor = struct {
    name: []const u8,
    /// As it will be written.
    dtype: DType,
    /// ggml's order; `ne[0]` is the row length.
    ne: [gguf.limits.dimensions]usize,
    rank: usize,
    content: Content,

    pub fn of(info: *const gguf.TensorInfo) Tensor {
        return .{ .name = info.name, .dtype = info.dtype, .ne = info.ne, .rank = info.rank, .content = .{ .data = info.data, .dtype = info.dtype } };
    }

    pub fn dims(self: *const Tensor) []const usize {
        return self.ne[0..self.rank];
    }

    pub fn len(self: *const Tensor) usize {
        return self.ne[0] * self.ne[1] * self.ne[2] * self.ne[3]; // Checked to fit when it was read.
    }
};

pub const Report = struct {
    bytes: u64,
    tensors: usize,
    /// Tensors whose bytes are others than in the source.
    changed: usize,
};

/// Writes the file under `path` or nothing. `free` is the space there, where it is known.
pub fn write(gpa: std.mem.Allocator, storage: Storage, free: ?u64, path: []const u8, keys: *const Keys, tensors: []const Tensor, diag: *Diagnostic) Error!Report {
    var header: gguf_writer.Header = .init(gpa);
    defer header.deinit();

    for (keys.keys(), keys.values()) |key, value| {
        // The writer lays out by the default.
        if (std.mem.eql(u8, key, "general.alignment")) continue;
        try header.putValue(key, value);
    }
    var report: Report = .{ .bytes = 0, .tensors = tensors.len, .changed = 0 };
    for (tensors) |*t| {
        try addTensor(&header, t, diag);
        if (!t.content.isCopy()) report.changed += 1;
    }
    report.bytes = try header.fileBytes();
    if (free) |available| if (report.bytes > available) {
        diag.set("{s} will have {d} bytes, but only {d} are free there. Free some space or choose another folder", .{ path, report.bytes, available });
        return error.NotEnoughSpace;
    };
    var buffer: [1 << 16]u8 = undefined;
    var file = base.storage.AtomicFile.create(gpa, storage, path, &buffer) catch |err| return explain(diag, err, path);
    defer file.deinit();

    writeTo(&file.writer.interface, &header, tensors) catch return explain(diag, file.writer.cause(), path);
    _ = file.finish() catch |err| return explain(diag, err, path);
    try verify(gpa, &file, &header, report.bytes, diag);
    file.commit() catch |err| return explain(diag, err, path);
    return report;
}

fn addTensor(header: *gguf_writer.Header, t: *const Tensor, diag: *Diagnostic) Error!void {
    var dims: [gguf.limits.dimensions]usize = undefined;
    const rank = @max(t.rank, 1);
    for (0..rank) |i| dims[i] = t.ne[rank - 1 - i];
    header.addTensor(t.name, t.dtype, dims[0..rank]) catch |err| {
        if (err == error.InvalidTensor) diag.set("tensor {f} cannot be written as GGUF: its name, its dimensions or its type", .{printable(t.name)});
        return err;
    };
    const planned = header.tensors.items[header.tensors.items.len - 1].bytes;
    if (contentBytes(t) != planned) {
        diag.set("tensor {f} has {d} bytes of data in the file; its dimensions ask for {d}. Fetch the file again", .{ printable(t.name), contentBytes(t), planned });
        return error.MissingData;
    }
}

fn contentBytes(t: *const Tensor) usize {
    const c = t.content;
    const picked = if (c.row_bytes == 0) c.data.len else c.rows.count(c.data.len / c.row_bytes) * c.row_bytes;
    return switch (c.convert) {
        .none, .early_ollama => picked,
        .to_f32 => picked / c.dtype.blockBytes() * 4,
    };
}

fn writeTo(out: *std.Io.Writer, header: *const gguf_writer.Header, tensors: []const Tensor) std.Io.Writer.Error!void {
    try header.write(out);
    var stream: gguf_writer.Stream = .init(header, out);
    for (tensors) |*t| {
        const c = t.content;
        if (c.row_bytes == 0) {
            try writeConverted(&stream, c, c.data);
            continue;
        }
        const rows = c.data.len / c.row_bytes;
        for (0..c.rows.count(rows)) |row| try writeConverted(&stream, c, c.data[c.rows.source(row) * c.row_bytes ..][0..c.row_bytes]);
    }
    stream.finish();
}

fn writeConverted(stream: *gguf_writer.Stream, content: Content, bytes: []const u8) std.Io.Writer.Error!void {
    switch (content.convert) {
        .none => try stream.write(bytes),
        .to_f32 => {
            var values: [1024]f32 = undefined;
            var raw: [1024 * 4]u8 = undefined;
            const size = content.dtype.blockBytes();
            var done: usize = 0;
            while (done < bytes.len) {
                const n = @min(values.len, (bytes.len - done) / size);
                tensor.blocks.toF32(content.dtype, bytes[done..][0 .. n * size], values[0..n]) catch unreachable; // Asked for on floats only.
                tensor.convert.f32ToF32Bytes(values[0..n], raw[0 .. n * 4]);
                try stream.write(raw[0 .. n * 4]);
                done += n * size;
            }
        },
        .early_ollama => {
            const size = comptime DType.mxfp4.blockBytes();
            var block: [size]u8 = undefined;
            for (0..bytes.len / size) |i| {
                fromNeighbours(bytes[i * size ..][0..size], &block);
                try stream.write(&block);
            }
        },
    }
}

/// Byte b of the source holds elements 2b and 2b+1; byte j of ggml's block holds elements j and j+16.
fn fromNeighbours(in: *const [17]u8, out: *[17]u8) void {
    out[0] = in[0];
    const codes = in[1..17];
    for (0..8) |j| {
        const a = codes[j];
        const b = codes[j + 8];
        out[1 + 2 * j] = (a & 15) | (b & 15) << 4;
        out[2 + 2 * j] = (a >> 4) | (b & 0xF0);
    }
}

fn explain(diag: *Diagnostic, err: base.storage.Error, path: []const u8) base.storage.Error {
    base.storage.explain(diag, err, "write", path);
    return err;
}

fn verify(gpa: std.mem.Allocator, file: *base.storage.AtomicFile, header: *const gguf_writer.Header, size: u64, diag: *Diagnostic) Error!void {
    var mapping = file.map() catch |err| return explain(diag, err, file.final_path);
    defer mapping.unmap();

    var back = gguf.File.parse(gpa, mapping.bytes, diag) catch |err| {
        if (err == error.OutOfMemory) return error.OutOfMemory;
        diag.prepend("the written file cannot be read back, nothing was kept: ", .{});
        return error.VerificationFailed;
    };
    defer back.deinit();

    const same = mapping.bytes.len == size and back.tensors.len == header.tensors.items.len and back.key_values.len == header.key_count;
    if (same) for (back.tensors, header.tensors.items) |info, planned| {
        if (info.dtype != planned.dtype or info.data.len != planned.bytes or !std.mem.eql(u8, info.name, planned.name)) break;
    } else return;
    diag.set("the written file is not what was written; nothing was kept. Check the disk", .{});
    return error.VerificationFailed;
}

test "nibbles of neighbours go sixteen apart" {
    var in: [17]u8 = undefined;
    in[0] = 130;
    for (in[1..], 0..) |*byte, b| byte.* = @intCast((2 * b) % 16 | ((2 * b + 1) % 16) << 4);
    var out: [17]u8 = undefined;
    fromNeighbours(&in, &out);
    try std.testing.expectEqual(130, out[0]);
    for (out[1..], 0..) |byte, j| {
        try std.testing.expectEqual(j, byte & 15);
        try std.testing.expectEqual((j + 16) % 16, byte >> 4);
    }
}

test "rows are chosen as told, and floats stored wider" {
    const gpa = std.testing.allocator;
    var disk: base.storage.MemoryDisk = try .init(gpa);
    defer disk.deinit();
    var keys: Keys = .empty;
    defer keys.deinit(gpa);
    try keys.put(gpa, "general.architecture", .{ .string = "llama" });
    try keys.put(gpa, "general.alignment", .{ .u32 = 64 });
    const halves = [_]u16{ 0x3C00, 0x4000, 0xC000, 0x3800 }; // 1, 2, -2, 0.5
    const words = [_]f32{ 0, 1, 2, 3, 4, 5, 6, 7 };
    const data = std.mem.sliceAsBytes(&words);
    const tensors = [_]Tensor{
        .{ .name = "wide", .dtype = .f32, .ne = .{ 4, 1, 1, 1 }, .rank = 1, .content = .{ .data = std.mem.sliceAsBytes(&halves), .dtype = .f16, .convert = .to_f32 } },
        .{ .name = "odd", .dtype = .f32, .ne = .{ 2, 2, 1, 1 }, .rank = 2, .content = .{ .data = data, .dtype = .f32, .rows = .{ .alternate = .{ .first = 1 } }, .row_bytes = 8 } },
        .{ .name = "middle", .dtype = .f32, .ne = .{ 2, 1, 1, 1 }, .rank = 1, .content = .{ .data = data, .dtype = .f32, .rows = .{ .range = .{ .first = 3, .count = 2 } }, .row_bytes = 4 } },
        .{ .name = "pairs", .dtype = .f32, .ne = .{ 1, 8, 1, 1 }, .rank = 2, .content = .{ .data = data, .dtype = .f32, .rows = .{ .interleaved = .{ .head_dim = 4 } }, .row_bytes = 4 } },
    };
    var diag: Diagnostic = .{};
    const report = try write(gpa, disk.storage(), null, "out.gguf", &keys, &tensors, &diag);
    try std.testing.expectEqual(4, report.changed);
    const bytes = try disk.storage().readAlloc(gpa, "out.gguf");
    defer gpa.free(bytes);
    try std.testing.expectEqual(report.bytes, bytes.len);
    var file = try gguf.File.parse(gpa, bytes, &diag);
    defer file.deinit();
    try std.testing.expectEqual(1, file.key_values.len);
    const want = [_][]const f32{ &.{ 1, 2, -2, 0.5 }, &.{ 2, 3, 6, 7 }, &.{ 3, 4 }, &.{ 0, 2, 1, 3, 4, 6, 5, 7 } };
    for (file.tensors, want) |*info, expected| for (expected, 0..) |value, i|
        try std.testing.expectEqual(value, base.bytes.at(f32, info.data, i));

    try std.testing.expectError(error.NotEnoughSpace, write(gpa, disk.storage(), 10, "out.gguf", &keys, &tensors, &diag));
    var cut = tensors;
    cut[1].content.data = data[0..16];
    try std.testing.expectError(error.MissingData, write(gpa, disk.storage(), null, "cut.gguf", &keys, &cut, &diag));
    try std.testing.expectEqual(null, try disk.storage().kind("cut.gguf"));
}
