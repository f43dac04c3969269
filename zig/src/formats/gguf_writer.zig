//! GGUF writer: keys and tensor descriptions first, then the data, tensor by tensor, to a stream.
//!
//! `Header` collects the tables and knows the exact size of the whole file before a byte is written. `Stream` takes the data in
//! the order described, in pieces of any size, and asserts that each tensor gets exactly its bytes.
//! Does not know: files, where numbers come from, architectures.

const std = @import("std");
const base = @import("base");
const tensor = @import("tensor");
const gguf = @import("gguf.zig");
const DType = tensor.DType;

pub const Error = error{ OutOfMemory, FileTooLarge, InvalidTensor };

/// One tensor to come.
pub const Planned = struct {
    name: []const u8,
    dtype: DType,
    /// PyTorch's order: (rows, columns).
    dims: []const usize,
    bytes: usize,
};

pub const Header = struct {
    arena: std.heap.ArenaAllocator,
    keys: std.ArrayList(u8) = .empty,
    key_count: u64 = 0,
    infos: std.ArrayList(u8) = .empty,
    tensors: std.ArrayList(Planned) = .empty,
    /// Of the data section, with the padding behind each tensor.
    data_bytes: usize = 0,

    const alignment = gguf.default_alignment;

    pub fn init(gpa: std.mem.Allocator) Header {
        return .{ .arena = .init(gpa) };
    }

    pub fn deinit(self: *Header) void {
        self.arena.deinit();
        self.* = undefined;
    }

    /// Adds a key. `T` is a number type, `bool`, `[]const u8`, or a slice of one of those.
    /// Keys are the program's own, so a duplicate is our bug and found by the strict reader after writing.
    pub fn put(self: *Header, comptime T: type, key: []const u8, value: T) Error!void {
        try self.string(key);
        switch (T) {
            []const u8 => {
                try self.int(u32, @backingInt(gguf.ValueType.string));
                try self.string(value);
            },
            else => switch (@typeInfo(T)) {
                .pointer => |p| {
                    try self.int(u32, @backingInt(gguf.ValueType.array));
                    try self.int(u32, @backingInt(typeOf(p.child)));
                    try self.int(u64, value.len);
                    for (value) |item| try self.element(p.child, item);
                },
                else => {
                    try self.int(u32, @backingInt(typeOf(T)));
                    try self.element(T, value);
                },
            },
        }
        self.key_count += 1;
    }

    /// Adds a key as another file has it.
    pub fn putValue(self: *Header, key: []const u8, value: gguf.Value) Error!void {
        switch (value) {
            .array => |array| {
                try self.string(key);
                try self.int(u32, @backingInt(gguf.ValueType.array));
                try self.int(u32, @backingInt(array.element));
                try self.int(u64, array.count);
                try self.keys.appendSlice(self.arena.allocator(), array.raw);
                self.key_count += 1;
            },
            inline else => |v| try self.put(@TypeOf(v), key, v),
        }
    }

    /// Describes the next tensor. `dims` in PyTorch's order; GGUF stores them reversed.
    pub fn addTensor(self: *Header, name: []const u8, dtype: DType, dims: []const usize) Error!void {
        if (name.len == 0 or name.len > gguf.limits.tensor_name_bytes) return error.InvalidTensor;
        if (dims.len == 0 or dims.len > gguf.limits.dimensions) return error.InvalidTensor;
        const id = dtype.ggmlId() orelse return error.InvalidTensor;
        const bytes = dtype.tensorBytes(dims) catch |err| return switch (err) {
            error.Overflow => error.FileTooLarge,
            error.PartialBlock => error.InvalidTensor,
        };
        if (bytes == 0) return error.InvalidTensor;
        const a = self.arena.allocator();
        try self.tensors.append(a, .{ .name = try a.dupe(u8, name), .dtype = dtype, .dims = try a.dupe(usize, dims), .bytes = bytes });

        try base.bytes.append(u64, a, &self.infos, name.len);
        try self.infos.appendSlice(a, name);
        try base.bytes.append(u32, a, &self.infos, @intCast(dims.len));
        for (0..dims.len) |i| try base.bytes.append(u64, a, &self.infos, dims[dims.len - 1 - i]);
        try base.bytes.append(u32, a, &self.infos, id);
        try base.bytes.append(u64, a, &self.infos, self.data_bytes);
        const padded = base.checked.alignForward(usize, bytes, alignment) catch return error.FileTooLarge;
        self.data_bytes = base.checked.add(usize, self.data_bytes, padded) catch return error.FileTooLarge;
    }

    /// Bytes before the data section.
    pub fn headerBytes(self: *const Header) usize {
        const tables = 24 + self.keys.items.len + self.infos.items.len;
        return tables + padding(tables);
    }

    /// Bytes of the whole file.
    pub fn fileBytes(self: *const Header) Error!usize {
        return base.checked.add(usize, self.headerBytes(), self.data_bytes) catch error.FileTooLarge;
    }

    pub fn write(self: *const Header, w: *std.Io.Writer) std.Io.Writer.Error!void {
        try w.writeAll(gguf.magic);
        try base.bytes.write(u32, w, gguf.version_written);
        try base.bytes.write(u64, w, self.tensors.items.len);
        try base.bytes.write(u64, w, self.key_count);
        try w.writeAll(self.keys.items);
        try w.writeAll(self.infos.items);
        try base.bytes.writeZeros(w, padding(24 + self.keys.items.len + self.infos.items.len));
    }

    fn string(self: *Header, text: []const u8) Error!void {
        try self.int(u64, text.len);
        try self.keys.appendSlice(self.arena.allocator(), text);
    }

    fn int(self: *Header, comptime T: type, value: T) Error!void {
        try base.bytes.append(T, self.arena.allocator(), &self.keys, value);
    }

    fn element(self: *Header, comptime T: type, value: T) Error!void {
        switch (T) {
            []const u8 => try self.string(value),
            bool => try self.int(u8, @intFromBool(value)),
            else => try self.int(T, value),
        }
    }

    fn typeOf(comptime T: type) gguf.ValueType {
        return switch (T) {
            []const u8 => .string,
            else => @field(gguf.ValueType, @typeName(T)),
        };
    }
};

fn padding(bytes: usize) usize {
    const over = bytes % Header.alignment;
    return if (over == 0) 0 else Header.alignment - over;
}

/// The data section, in order. One `Stream` for one `Header`.
pub const Stream = struct {
    header: *const Header,
    out: *std.Io.Writer,
    /// Index of the tensor being written.
    current: usize = 0,
    /// Bytes of it already sent.
    sent: usize = 0,

    pub fn init(header: *const Header, out: *std.Io.Writer) Stream {
        return .{ .header = header, .out = out };
    }

    /// The next bytes of the current tensor; the one after begins by itself when it is full.
    pub fn write(self: *Stream, bytes: []const u8) std.Io.Writer.Error!void {
        const planned = self.header.tensors.items[self.current];
        std.debug.assert(bytes.len <= planned.bytes - self.sent);
        try self.out.writeAll(bytes);
        self.sent += bytes.len;
        if (self.sent == planned.bytes) {
            try base.bytes.writeZeros(self.out, padding(planned.bytes));
            self.current += 1;
            self.sent = 0;
        }
    }

    /// Call after the last tensor: it checks that none is missing.
    pub fn finish(self: *const Stream) void {
        std.debug.assert(self.current == self.header.tensors.items.len);
        std.debug.assert(self.sent == 0);
    }
};

test "what is written is what is read" {
    const gpa = std.testing.allocator;
    var header: Header = .init(gpa);
    defer header.deinit();

    try header.put([]const u8, "general.architecture", "llama");
    try header.put(u32, "llama.block_count", 3);
    try header.put(f32, "llama.eps", 1e-5);
    try header.put(bool, "flag", true);
    try header.put(i64, "big", -5);
    try header.put([]const []const u8, "words", &.{ "a", "", "long word" });
    try header.put([]const i32, "kinds", &.{ 1, -2, 3 });
    try header.addTensor("m", .q8_0, &.{ 3, 32 });
    try header.addTensor("v", .f32, &.{5});

    var out: std.Io.Writer.Allocating = .init(gpa);
    defer out.deinit();
    try header.write(&out.writer);
    try std.testing.expectEqual(header.headerBytes(), out.written().len);
    var stream: Stream = .init(&header, &out.writer);
    const block: [34]u8 = @splat(0x11);
    for (0..3) |_| try stream.write(&block);
    try stream.write(&@as([20]u8, @splat(0x22)));
    stream.finish();
    try std.testing.expectEqual(try header.fileBytes(), out.written().len);

    var diag: base.Diagnostic = .{};
    var file = try gguf.File.parse(gpa, out.written(), &diag);
    defer file.deinit();
    try std.testing.expectEqualStrings("llama", try file.require([]const u8, "general.architecture", &diag));
    try std.testing.expectEqual(@as(u32, 3), try file.require(u32, "llama.block_count", &diag));
    try std.testing.expectEqual(@as(f32, 1e-5), try file.require(f32, "llama.eps", &diag));
    try std.testing.expectEqual(true, try file.require(bool, "flag", &diag));
    try std.testing.expectEqual(@as(i64, -5), try file.require(i64, "big", &diag));
    const words = try (try file.optionalArray([]const u8, "words", &diag)).?.stringList(gpa);
    defer gpa.free(words);
    try std.testing.expectEqualStrings("long word", words[2]);
    try std.testing.expectEqual(@as(i32, -2), (try file.optionalArray(i32, "kinds", &diag)).?.at(i32, 1));
    const m = file.findTensor("m").?;
    try std.testing.expectEqualSlices(usize, &.{ 32, 3 }, m.dims());
    try std.testing.expectEqual(@as(usize, 102), m.data.len);
    try std.testing.expectEqual(@as(u8, 0x22), file.findTensor("v").?.data[0]);
    try std.testing.expectEqual(@as(usize, 128), file.findTensor("v").?.offset);
}

test "names, ranks and types that GGUF cannot hold are refused before writing" {
    var header: Header = .init(std.testing.allocator);
    defer header.deinit();

    try std.testing.expectError(error.InvalidTensor, header.addTensor("", .f32, &.{1}));
    try std.testing.expectError(error.InvalidTensor, header.addTensor(&@as([64]u8, @splat('x')), .f32, &.{1}));
    try std.testing.expectError(error.InvalidTensor, header.addTensor("t", .bool, &.{1}));
    try std.testing.expectError(error.InvalidTensor, header.addTensor("t", .q8_0, &.{ 2, 31 }));
    try std.testing.expectError(error.FileTooLarge, header.addTensor("t", .f32, &.{ std.math.maxInt(usize), 2 }));
}
