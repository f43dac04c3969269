//! safetensors: strict reader over a mapped file, streaming writer, index of sharded models.
//!
//! File: u64 N, N bytes of JSON, data. The reader refuses whatever the reference parser refuses, and says where: nothing
//! is trusted before it was compared with the size of the slice. Tensors are views into that slice and copy nothing.
//! The writer is given the whole list of tensors, writes the header, then takes the data in that order.
//! Does not know: what a tensor is for, where the bytes come from or go to.

const std = @import("std");
const builtin = @import("builtin");
const base = @import("base");
const tensor = @import("tensor");
const json = @import("json.zig");
const assert = std.debug.assert;
const Allocator = std.mem.Allocator;
const Diagnostic = base.Diagnostic;
const DType = tensor.DType;

comptime {
    // Numbers are written as they lie in memory.
    assert(builtin.cpu.arch.endian() == .little);
}

/// The reference implementation's limit.
pub const max_header_bytes = 100_000_000;
/// More dimensions than any model uses.
pub const max_rank = 8;

pub const Error = error{
    OutOfMemory,
    /// Fewer than 8 bytes.
    FileTooShort,
    /// The header's length is above `max_header_bytes`.
    HeaderTooLarge,
    /// The header's length goes past the end of the file.
    HeaderPastEnd,
    HeaderNotUtf8,
    /// The header does not start with `{`.
    HeaderNotObject,
    /// The header is no JSON object of the known form.
    InvalidJson,
    DuplicateTensor,
    /// A field of a tensor, or a metadata key, stands twice.
    DuplicateField,
    /// A tensor has a field besides dtype, shape and data_offsets.
    UnknownField,
    MissingField,
    /// `__metadata__` is no object of strings.
    InvalidMetadata,
    UnknownDType,
    /// A type the format has but this project does not read (F8, F6, F4, C64).
    UnsupportedDType,
    InvalidShape,
    InvalidOffsets,
    /// Tensors overlap or leave a hole.
    NotContiguous,
    /// A product of dimensions, or a size, does not fit.
    SizeOverflow,
    /// Shape times element size is not what the offsets say.
    SizeMismatch,
    /// The last tensor does not end where the file ends.
    DataSizeMismatch,
};

/// One tensor: a view into the file.
pub const Tensor = struct {
    name: []const u8,
    dtype: DType,
    /// PyTorch's order; empty for a scalar.
    shape: []const usize,
    /// Little-endian elements, of any alignment.
    bytes: []const u8,
    /// Where `bytes` begins in the data section.
    begin: usize,

    pub fn len(self: Tensor) usize {
        return self.bytes.len / self.dtype.blockBytes();
    }

    /// Converts all elements to T (f32 or f64). False if the type holds no floats. `out.len` must be `len()`.
    pub fn read(self: Tensor, comptime T: type, out: []T) bool {
        return readFloats(T, self.dtype, self.bytes, out);
    }
};

/// Little-endian f32, f16, bf16 or f64 of any alignment to T. False for other types.
pub fn readFloats(comptime T: type, dtype: DType, raw: []const u8, out: []T) bool {
    comptime assert(T == f32 or T == f64);
    if (!dtype.isFloat()) return false;
    assert(raw.len == out.len * dtype.blockBytes());
    const native: DType = if (T == f32) .f32 else .f64;
    if (dtype == native) {
        @memcpy(std.mem.sliceAsBytes(out), raw);
        return true;
    }
    if (T == f32) switch (dtype) {
        .f16 => tensor.convert.f16SliceToF32(raw, out),
        .bf16 => tensor.convert.bf16SliceToF32(raw, out),
        .f64 => for (out, 0..) |*o, i| {
            const bits = std.mem.readInt(u64, raw[i * 8 ..][0..8], .little);
            o.* = @floatCast(@as(f64, @bitCast(bits)));
        },
        else => unreachable, // isFloat and not f32.
    } else switch (dtype) {
        .f32 => for (out, 0..) |*o, i| {
            o.* = @as(f32, @bitCast(std.mem.readInt(u32, raw[i * 4 ..][0..4], .little)));
        },
        .f16 => for (out, 0..) |*o, i| {
            o.* = tensor.convert.f16ToF32(std.mem.readInt(u16, raw[i * 2 ..][0..2], .little));
        },
        .bf16 => for (out, 0..) |*o, i| {
            o.* = tensor.convert.bf16ToF32(std.mem.readInt(u16, raw[i * 2 ..][0..2], .little));
        },
        else => unreachable, // isFloat and not f64.
    }
    return true;
}

pub const MetadataEntry = struct { key: []const u8, value: []const u8 };

/// A parsed file. The views live as long as the slice given to `parse`; names and shapes as long as this.
pub const File = struct {
    arena: std.heap.ArenaAllocator,
    /// In the order of their data.
    tensors: []const Tensor,
    metadata: []const MetadataEntry,
    index: std.array_hash_map.String(u32),

    pub fn deinit(self: *File) void {
        self.arena.deinit();
        self.* = undefined;
    }

    pub fn find(self: *const File, name: []const u8) ?*const Tensor {
        return &self.tensors[self.index.get(name) orelse return null];
    }
};

/// Reads the header of `bytes`, a whole file. `diag` says what is wrong; callers prepend the path.
pub fn parse(gpa: Allocator, bytes: []const u8, diag: *Diagnostic) Error!File {
    if (bytes.len < 8) {
        diag.set("the file has {d} bytes; a safetensors file has at least 8. It is cut off or something else", .{bytes.len});
        return error.FileTooShort;
    }
    const header_len = std.mem.readInt(u64, bytes[0..8], .little);
    if (header_len > max_header_bytes) {
        diag.set("the header claims {d} bytes; at most {d} are allowed. This is no safetensors file", .{ header_len, max_header_bytes });
        return error.HeaderTooLarge;
    }
    if (!base.checked.fits(8, header_len, bytes.len)) {
        diag.set("the header claims {d} bytes but the file has {d}. The file is cut off", .{ header_len, bytes.len });
        return error.HeaderPastEnd;
    }
    const header = bytes[8..][0..@intCast(header_len)];
    const data = bytes[8 + header.len ..];
    if (!std.unicode.utf8ValidateSlice(header)) {
        diag.set("the header is not valid UTF-8", .{});
        return error.HeaderNotUtf8;
    }
    if (header.len == 0 or header[0] != '{') {
        diag.set("the header does not begin with an opening brace", .{});
        return error.HeaderNotObject;
    }

    var arena: std.heap.ArenaAllocator = .init(gpa);
    errdefer arena.deinit();

    const a = arena.allocator();
    var parser: HeaderParser = .{ .arena = a, .scanner = .initCompleteInput(a, header), .diag = diag, .data = data };
    try parser.run();
    const tensors = parser.tensors.items;
    std.mem.sort(Tensor, tensors, {}, struct {
        fn lessThan(_: void, x: Tensor, y: Tensor) bool {
            return if (x.begin != y.begin) x.begin < y.begin else x.bytes.len < y.bytes.len;
        }
    }.lessThan);
    var index: std.array_hash_map.String(u32) = .empty;
    try index.ensureTotalCapacity(a, tensors.len);
    var end: usize = 0;
    for (tensors, 0..) |t, i| {
        if (t.begin != end) {
            diag.set("tensor \"{s}\" begins at {d}, the one before it ends at {d}: a hole or an overlap", .{ t.name, t.begin, end });
            return error.NotContiguous;
        }
        end = t.begin + t.bytes.len;
        const slot = index.getOrPutAssumeCapacity(t.name);
        if (slot.found_existing) {
            diag.set("tensor \"{s}\" stands twice in the header", .{t.name});
            return error.DuplicateTensor;
        }
        slot.value_ptr.* = @intCast(i);
    }
    if (end != data.len) {
        diag.set("the tensors end at {d} but the file has {d} bytes of data", .{ end, data.len });
        return error.DataSizeMismatch;
    }
    return .{ .arena = arena, .tensors = tensors, .metadata = parser.metadata.items, .index = index };
}

/// Walks the header's tokens once. The form is fixed, so nesting cannot grow and nothing unknown is kept.
const HeaderParser = struct {
    arena: Allocator,
    scanner: std.json.Scanner,
    diag: *Diagnostic,
    data: []const u8,
    tensors: std.ArrayList(Tensor) = .empty,
    metadata: std.ArrayList(MetadataEntry) = .empty,

    fn run(self: *HeaderParser) Error!void {
        if (try self.next() != .object_begin) return self.invalid("an object");
        var seen_metadata = false;
        while (try self.key()) |name| {
            if (std.mem.eql(u8, name, "__metadata__")) {
                if (seen_metadata) {
                    self.diag.set("\"__metadata__\" stands twice", .{});
                    return error.DuplicateField;
                }
                seen_metadata = true;
                try self.readMetadata();
            } else try self.readTensor(name);
        }
        if (try self.next() != .end_of_document) return self.invalid("the end");
    }

    fn readMetadata(self: *HeaderParser) Error!void {
        if (try self.next() != .object_begin) {
            self.diag.set("\"__metadata__\" must be an object of strings", .{});
            return error.InvalidMetadata;
        }
        var seen: std.StringHashMapUnmanaged(void) = .empty;
        while (try self.key()) |name| {
            const value = stringOf(try self.next()) orelse {
                self.diag.set("\"__metadata__\": the value of \"{s}\" must be a string", .{name});
                return error.InvalidMetadata;
            };
            if ((try seen.getOrPut(self.arena, name)).found_existing) {
                self.diag.set("\"__metadata__\": \"{s}\" stands twice", .{name});
                return error.DuplicateField;
            }
            try self.metadata.append(self.arena, .{ .key = name, .value = value });
        }
    }

    fn readTensor(self: *HeaderParser, name: []const u8) Error!void {
        if (try self.next() != .object_begin) return self.invalid("an object for each tensor");
        var dtype: ?DType = null;
        var shape: ?[]const usize = null;
        var offsets: ?[]const usize = null;
        while (try self.key()) |field| {
            if (std.mem.eql(u8, field, "dtype")) {
                if (dtype != null) return self.duplicate(name, field);
                const text = stringOf(try self.next()) orelse return self.invalid("a string for dtype");
                dtype = DType.fromSafetensors(text) orelse return self.refuseDType(name, text);
            } else if (std.mem.eql(u8, field, "shape")) {
                if (shape != null) return self.duplicate(name, field);
                shape = try self.numbers(max_rank) orelse {
                    self.diag.set("tensor \"{s}\": shape must be a list of at most {d} whole numbers", .{ name, max_rank });
                    return error.InvalidShape;
                };
            } else if (std.mem.eql(u8, field, "data_offsets")) {
                if (offsets != null) return self.duplicate(name, field);
                offsets = try self.numbers(2);
                if (offsets == null or offsets.?.len != 2) {
                    self.diag.set("tensor \"{s}\": data_offsets must be two whole numbers", .{name});
                    return error.InvalidOffsets;
                }
            } else {
                self.diag.set("tensor \"{s}\" has the unknown field \"{s}\"", .{ name, field });
                return error.UnknownField;
            }
        }
        const missing: ?[]const u8 = if (dtype == null) "dtype" else if (shape == null) "shape" else if (offsets == null) "data_offsets" else null;
        if (missing) |field| {
            self.diag.set("tensor \"{s}\" has no {s}", .{ name, field });
            return error.MissingField;
        }
        const begin = offsets.?[0];
        const end = offsets.?[1];
        if (end < begin or end > self.data.len) {
            self.diag.set("tensor \"{s}\": data_offsets [{d}, {d}] do not lie in the {d} bytes of data", .{ name, begin, end, self.data.len });
            return error.InvalidOffsets;
        }
        const size = dtype.?.tensorBytes(shape.?) catch {
            self.diag.set("tensor \"{s}\": the product of its shape is too large", .{name});
            return error.SizeOverflow;
        };
        if (size != end - begin) {
            self.diag.set("tensor \"{s}\": its shape needs {d} bytes, its data_offsets give {d}", .{ name, size, end - begin });
            return error.SizeMismatch;
        }
        try self.tensors.append(self.arena, .{ .name = name, .dtype = dtype.?, .shape = shape.?, .bytes = self.data[begin..end], .begin = begin });
    }

    /// A list of whole numbers, or null when it is something else.
    fn numbers(self: *HeaderParser, max: usize) Error!?[]const usize {
        if (try self.next() != .array_begin) return null;
        var list: std.ArrayList(usize) = .empty;
        while (true) switch (try self.next()) {
            .array_end => return list.items,
            .number, .allocated_number => |text| {
                if (list.items.len == max) return null;
                // Digits only: no sign, no fraction, no exponent.
                for (text) |c| if (!std.ascii.isDigit(c)) return null;
                try list.append(self.arena, std.fmt.parseInt(usize, text, 10) catch return null);
            },
            else => return null,
        };
    }

    /// The next key of the current object, or null at its end.
    fn key(self: *HeaderParser) Error!?[]const u8 {
        const token = try self.next();
        if (token == .object_end) return null;
        return stringOf(token) orelse self.invalid("a key");
    }

    fn next(self: *HeaderParser) Error!std.json.Token {
        return self.scanner.nextAlloc(self.arena, .alloc_if_needed) catch |err| switch (err) {
            error.OutOfMemory => error.OutOfMemory,
            else => self.invalid("JSON"),
        };
    }

    fn stringOf(token: std.json.Token) ?[]const u8 {
        return switch (token) {
            .string, .allocated_string => |s| s,
            else => null,
        };
    }

    fn invalid(self: *HeaderParser, wanted: []const u8) Error {
        self.diag.set("the header should have {s} near byte {d}", .{ wanted, 8 + self.scanner.cursor });
        return error.InvalidJson;
    }

    fn duplicate(self: *HeaderParser, name: []const u8, field: []const u8) Error {
        self.diag.set("tensor \"{s}\": {s} stands twice", .{ name, field });
        return error.DuplicateField;
    }

    fn refuseDType(self: *HeaderParser, name: []const u8, text: []const u8) Error {
        const known = [_][]const u8{ "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F4", "F6_E2M3", "F6_E3M2", "C64" };
        for (known) |k| if (std.mem.eql(u8, k, text)) {
            self.diag.set("tensor \"{s}\" has dtype {s}, which is not read here. Convert it to F32, BF16 or F16", .{ name, text });
            return error.UnsupportedDType;
        };
        self.diag.set("tensor \"{s}\" has the unknown dtype \"{s}\"", .{ name, text });
        return error.UnknownDType;
    }
};

// ---- writing ----

pub const Entry = struct {
    name: []const u8,
    dtype: DType,
    shape: []const usize,
};

pub const WriteError = error{ OutOfMemory, WriteFailed, SizeOverflow };

/// Writes header first, then the tensors in the order of the list. Entries must come widest element first, so that each
/// tensor is aligned to its element. Nothing is kept but the position.
pub const Writer = struct {
    out: *std.Io.Writer,
    entries: []const Entry,
    /// The tensor being written, and how many of its bytes are still to come.
    current: usize = 0,
    left: usize = 0,

    /// Writes the header. `entries` must outlive the writer. `gpa` is used for the header only, and freed.
    pub fn begin(gpa: Allocator, out: *std.Io.Writer, entries: []const Entry, metadata: []const MetadataEntry) WriteError!Writer {
        var header: std.Io.Writer.Allocating = .init(gpa);
        defer header.deinit();

        // The header grows in memory, so its only failure is memory.
        writeHeader(&header.writer, entries, metadata) catch |err| return if (err == error.WriteFailed) error.OutOfMemory else err;
        while (header.written().len % 8 != 0) header.writer.writeByte(' ') catch return error.OutOfMemory;
        try out.writeInt(u64, header.written().len, .little);
        try out.writeAll(header.written());
        var self: Writer = .{ .out = out, .entries = entries };
        try self.enter();
        return self;
    }

    fn writeHeader(w: *std.Io.Writer, entries: []const Entry, metadata: []const MetadataEntry) WriteError!void {
        try w.writeAll("{\"__metadata__\":{");
        for (metadata, 0..) |m, i| {
            if (i > 0) try w.writeByte(',');
            try std.json.Stringify.encodeJsonString(m.key, .{}, w);
            try w.writeByte(':');
            try std.json.Stringify.encodeJsonString(m.value, .{}, w);
        }
        try w.writeByte('}');
        var offset: usize = 0;
        for (entries, 0..) |entry, i| {
            if (i > 0) assert(entries[i - 1].dtype.blockBytes() >= entry.dtype.blockBytes());
            const end = base.checked.add(usize, offset, try sizeOf(entry)) catch return error.SizeOverflow;
            try w.writeByte(',');
            try std.json.Stringify.encodeJsonString(entry.name, .{}, w);
            try w.print(":{{\"dtype\":\"{s}\",\"shape\":[", .{entry.dtype.safetensorsName().?});
            for (entry.shape, 0..) |n, j| {
                if (j > 0) try w.writeByte(',');
                try w.print("{d}", .{n});
            }
            try w.print("],\"data_offsets\":[{d},{d}]}}", .{ offset, end });
            offset = end;
        }
        try w.writeByte('}');
    }

    fn sizeOf(entry: Entry) error{SizeOverflow}!usize {
        return entry.dtype.tensorBytes(entry.shape) catch error.SizeOverflow;
    }

    /// Goes to the next tensor that has bytes.
    fn enter(self: *Writer) WriteError!void {
        while (self.current < self.entries.len) : (self.current += 1) {
            self.left = try sizeOf(self.entries[self.current]);
            if (self.left > 0) return;
        }
    }

    /// The next bytes of the current tensor; a slice never spans two.
    pub fn writeBytes(self: *Writer, bytes: []const u8) WriteError!void {
        if (bytes.len == 0) return;
        assert(bytes.len <= self.left);
        try self.out.writeAll(bytes);
        self.left -= bytes.len;
        if (self.left > 0) return;
        self.current += 1;
        try self.enter();
    }

    /// A whole tensor (or a whole part of one) whose elements are T in the file too.
    pub fn writeFloats(self: *Writer, comptime T: type, values: []const T) WriteError!void {
        if (values.len == 0) return;
        assert(self.entries[self.current].dtype == @as(DType, if (T == f32) .f32 else .f64));
        try self.writeBytes(std.mem.sliceAsBytes(values));
    }

    /// Every tensor must have been written whole. Flushing is the caller's.
    pub fn finish(self: *Writer) void {
        assert(self.current == self.entries.len);
        self.* = undefined;
    }
};

// ---- sharded models ----

pub const IndexError = error{
    OutOfMemory,
    InvalidIndex,
    /// A shard's name is absolute, has a folder in it, or is not `*.safetensors`.
    UnsafeShardName,
};

/// `model.safetensors.index.json`: which file holds which tensor.
pub const ShardIndex = struct {
    arena: std.heap.ArenaAllocator,
    /// Each file once, in order of first mention.
    shards: []const []const u8,
    /// tensor name → position in `shards`.
    weight_map: std.array_hash_map.String(u32),

    pub fn deinit(self: *ShardIndex) void {
        self.arena.deinit();
        self.* = undefined;
    }

    pub fn parse(gpa: Allocator, text: []const u8, diag: *Diagnostic) IndexError!ShardIndex {
        var arena: std.heap.ArenaAllocator = .init(gpa);
        errdefer arena.deinit();

        const a = arena.allocator();
        const value = json.parse(a, text, .{ .size_bytes = max_header_bytes }, diag) catch |err|
            return if (err == error.OutOfMemory) error.OutOfMemory else error.InvalidIndex;
        const root = json.asObject(value, "the index", diag) catch return error.InvalidIndex;
        const map = root.get("weight_map") orelse {
            diag.set("the index has no \"weight_map\"", .{});
            return error.InvalidIndex;
        };
        const map_object = json.asObject(map, "weight_map", diag) catch return error.InvalidIndex;
        var shards: std.array_hash_map.String(void) = .empty;
        var weight_map: std.array_hash_map.String(u32) = .empty;
        for (map_object.keys(), map_object.values()) |name, file| {
            if (file != .string) {
                diag.set("weight_map: the file of \"{s}\" must be a string", .{name});
                return error.InvalidIndex;
            }
            if (!isPlainShardName(file.string)) {
                diag.set("weight_map: \"{s}\" lies in \"{s}\"; a shard must be a plain name ending in .safetensors", .{ name, file.string });
                return error.UnsafeShardName;
            }
            const slot = try shards.getOrPut(a, file.string);
            try weight_map.put(a, name, @intCast(slot.index));
        }
        return .{ .arena = arena, .shards = shards.keys(), .weight_map = weight_map };
    }
};

fn isPlainShardName(name: []const u8) bool {
    if (!std.mem.endsWith(u8, name, ".safetensors") or name[0] == '.') return false;
    for (name) |c| if (c == '/' or c == '\\' or c == ':' or c < 0x20 or c == 0x7f) return false;
    return true;
}

test {
    _ = @import("safetensors_test.zig");
}
