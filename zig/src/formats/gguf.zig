//! GGUF reader: a slice of bytes in, typed keys and tensors out, or the name of what is wrong.
//!
//! Strict, because files come from strangers: everything a reader could be led astray by is an error with its own name and a
//! sentence about the field. Nothing is copied but the tables; strings, arrays and tensor data are views of the slice, which
//! must outlive the `File`. Memory is bounded by the bytes present, never by a count that the file declares.
//! Accepts versions 2 and 3, little-endian. Does not know: architectures, what a key means, how blocks decode.

const std = @import("std");
const base = @import("base");
const tensor = @import("tensor");
const DType = tensor.DType;
const Diagnostic = base.Diagnostic;
const printable = base.bytes.printable;

pub const magic = "GGUF";
pub const version_written: u32 = 3;
pub const default_alignment: usize = 32;

/// Bounds beyond those the format itself has.
pub const limits = struct {
    pub const key_bytes = 65535;
    pub const string_bytes = 1 << 30;
    pub const array_elements = 1 << 30;
    pub const alignment = 1 << 20;
    /// ggml keeps names in 64 bytes with a final zero.
    pub const tensor_name_bytes = 63;
    pub const dimensions = 4;
};

pub const Error = error{
    OutOfMemory,
    /// Shorter than the 24 bytes of the header.
    TooShort,
    BadMagic,
    /// Written on a big-endian machine.
    WrongEndianness,
    UnsupportedVersion,
    /// More keys declared than bytes could hold.
    InvalidKeyCount,
    /// More tensors declared than bytes could hold.
    InvalidTensorCount,
    /// A field lies beyond the end of the file.
    Truncated,
    StringTooLong,
    EmptyKey,
    KeyTooLong,
    DuplicateKey,
    /// A key or a tensor name is not UTF-8.
    InvalidUtf8,
    UnknownValueType,
    NestedArray,
    ArrayTooLong,
    /// `general.alignment` is of the wrong type, zero, no power of two, or absurd.
    InvalidAlignment,
    EmptyTensorName,
    TensorNameTooLong,
    /// A zero byte inside a tensor name.
    InvalidTensorName,
    DuplicateTensor,
    TooManyDimensions,
    /// A dimension is negative or zero.
    InvalidDimension,
    /// A size does not fit this machine's integers.
    TensorTooLarge,
    UnknownTensorType,
    /// A row is not a whole number of blocks.
    PartialBlock,
    /// An offset is not the one that follows from the tensors before it: gap, overlap, or out of order.
    InvalidTensorOffset,
    /// Tensor data goes past the end of the file.
    TensorOutOfBounds,
    /// Bytes after the last tensor and its padding.
    TrailingBytes,
};

pub const LookupError = error{ MissingKey, WrongKeyType, InvalidKeyValue };

pub const ValueType = enum(u32) {
    u8 = 0,
    i8 = 1,
    u16 = 2,
    i16 = 3,
    u32 = 4,
    i32 = 5,
    f32 = 6,
    bool = 7,
    string = 8,
    array = 9,
    u64 = 10,
    i64 = 11,
    f64 = 12,

    pub fn fromId(id: u32) ?ValueType {
        return if (id <= 12) @fromBackingInt(id) else null;
    }

    /// Bytes of one value, or null for those of varying length.
    pub fn fixedBytes(self: ValueType) ?usize {
        return switch (self) {
            .u8, .i8, .bool => 1,
            .u16, .i16 => 2,
            .u32, .i32, .f32 => 4,
            .u64, .i64, .f64 => 8,
            .string, .array => null,
        };
    }
};

/// A packed list in the file. Strings are each a u64 length and that many bytes; they were all checked to fit.
pub const Array = struct {
    element: ValueType,
    count: usize,
    raw: []const u8,

    /// Element `index` of a numeric array of exactly this type.
    pub fn at(self: Array, comptime T: type, index: usize) T {
        std.debug.assert(self.element == valueTypeOf(T));
        std.debug.assert(index < self.count);
        return base.bytes.at(T, self.raw, index);
    }

    /// Walks the strings in order.
    pub fn strings(self: Array) StringIterator {
        std.debug.assert(self.element == .string);
        return .{ .reader = .init(self.raw), .left = self.count };
    }

    /// All strings as a list of views; the list belongs to the caller.
    pub fn stringList(self: Array, gpa: std.mem.Allocator) error{OutOfMemory}![][]const u8 {
        const list = try gpa.alloc([]const u8, self.count);
        var it = self.strings();
        for (list) |*item| item.* = it.next().?;
        return list;
    }
};

pub const StringIterator = struct {
    reader: base.bytes.Reader,
    left: usize,

    pub fn next(self: *StringIterator) ?[]const u8 {
        if (self.left == 0) return null;
        self.left -= 1;
        const len = self.reader.read(u64) catch unreachable; // Checked when the file was parsed.
        return self.reader.take(len) catch unreachable; // Same.
    }
};

pub const Value = union(ValueType) {
    u8: u8,
    i8: i8,
    u16: u16,
    i16: i16,
    u32: u32,
    i32: i32,
    f32: f32,
    bool: bool,
    string: []const u8,
    array: Array,
    u64: u64,
    i64: i64,
    f64: f64,
};

fn valueTypeOf(comptime T: type) ValueType {
    return switch (T) {
        u8 => .u8,
        i8 => .i8,
        u16 => .u16,
        i16 => .i16,
        u32 => .u32,
        i32 => .i32,
        u64 => .u64,
        i64 => .i64,
        f32 => .f32,
        f64 => .f64,
        bool => .bool,
        []const u8 => .string,
        Array => .array,
        else => @compileError("no GGUF value type for " ++ @typeName(T)),
    };
}

pub const KeyValue = struct {
    key: []const u8,
    value: Value,
};

pub const TensorInfo = struct {
    name: []const u8,
    dtype: DType,
    /// ggml's order: `ne[0]` is the row length. Dimensions that were not stored are 1.
    ne: [limits.dimensions]usize,
    /// How many dimensions were stored.
    rank: u32,
    /// From the start of the data section.
    offset: usize,
    data: []const u8,
    /// Stored under the retired type 4 by early Ollama: MXFP4 blocks with Hugging Face's order of nibbles. Only in files that were
    /// read with complaints.
    early_ollama: bool = false,

    pub fn dims(self: *const TensorInfo) []const usize {
        return self.ne[0..self.rank];
    }

    /// Number of elements.
    pub fn len(self: *const TensorInfo) usize {
        return self.ne[0] * self.ne[1] * self.ne[2] * self.ne[3]; // Checked to fit when parsed.
    }
};

/// Something a strict reader refuses the file for, and a repair can look at.
pub const Complaint = struct {
    err: Error,
    /// The key or the tensor, where it has a name.
    subject: []const u8,
    /// The sentence that the strict reader would have said.
    text: []const u8,
    /// Laying the file out again is enough.
    mendable: bool,
};

pub const Complaints = struct {
    list: std.ArrayList(Complaint) = .empty,
    /// How many more there were.
    omitted: usize = 0,

    const most = 256;
};

pub const File = struct {
    arena: std.heap.ArenaAllocator,
    version: u32,
    alignment: usize,
    key_values: []const KeyValue,
    tensors: []const TensorInfo,
    /// Where the data section starts in the file.
    data_start: usize,
    key_index: std.StringHashMapUnmanaged(u32),
    tensor_index: std.StringHashMapUnmanaged(u32),

    /// Reads the tables. `raw` is the whole file and must outlive the result; caller calls `deinit`.
    /// On error `diag` names the field.
    pub fn parse(gpa: std.mem.Allocator, raw: []const u8, diag: *Diagnostic) Error!File {
        return parseWith(gpa, raw, null, diag);
    }

    /// The same, but what can be read in spite of a fault is read, and the fault goes into `complaints`, whose texts live as long as
    /// the file. Of two keys or tensors with one name the first is found. Tensors whose data is not there have none.
    pub fn parseTolerant(gpa: std.mem.Allocator, raw: []const u8, complaints: *Complaints, diag: *Diagnostic) Error!File {
        return parseWith(gpa, raw, complaints, diag);
    }

    fn parseWith(gpa: std.mem.Allocator, raw: []const u8, complaints: ?*Complaints, diag: *Diagnostic) Error!File {
        var arena: std.heap.ArenaAllocator = .init(gpa);
        errdefer arena.deinit();

        var parser: Parser = .{ .arena = arena.allocator(), .reader = .init(raw), .diag = diag, .complaints = complaints };
        var file = try parser.file();
        file.arena = arena;
        return file;
    }

    pub fn deinit(self: *File) void {
        self.arena.deinit();
        self.* = undefined;
    }

    pub fn get(self: *const File, key: []const u8) ?Value {
        const position = self.key_index.get(key) orelse return null;
        return self.key_values[position].value;
    }

    pub fn findTensor(self: *const File, name: []const u8) ?*const TensorInfo {
        const position = self.tensor_index.get(name) orelse return null;
        return &self.tensors[position];
    }

    /// The key's value if it is there; a value of another type is an error, as in llama.cpp.
    pub fn optional(self: *const File, comptime T: type, key: []const u8, diag: *Diagnostic) LookupError!?T {
        const value = self.get(key) orelse return null;
        const want = comptime valueTypeOf(T);
        if (value != want) {
            diag.set("key {s} is stored as {t}; it must be {t}", .{ key, std.meta.activeTag(value), want });
            return error.WrongKeyType;
        }
        return @field(value, @tagName(want));
    }

    pub fn require(self: *const File, comptime T: type, key: []const u8, diag: *Diagnostic) LookupError!T {
        return try self.optional(T, key, diag) orelse {
            diag.set("key {s} is missing", .{key});
            return error.MissingKey;
        };
    }

    /// An array whose elements are `T` (a number type, bool as u8 is not one, or `[]const u8`), or null if absent.
    pub fn optionalArray(self: *const File, comptime T: type, key: []const u8, diag: *Diagnostic) LookupError!?Array {
        const array = try self.optional(Array, key, diag) orelse return null;
        if (array.element != valueTypeOf(T)) {
            diag.set("key {s} is an array of {t}; its elements must be {t}", .{ key, array.element, valueTypeOf(T) });
            return error.WrongKeyType;
        }
        return array;
    }
};

const Parser = struct {
    arena: std.mem.Allocator,
    reader: base.bytes.Reader,
    diag: *Diagnostic,
    /// What is being read, for messages: key or tensor name, once known.
    subject: []const u8 = "",
    /// Where faults that leave the rest readable go; null refuses the file for them.
    complaints: ?*Complaints = null,

    /// u64 length, one byte, u32 type, one byte.
    const smallest_key_value = 8 + 1 + 4 + 1;
    /// u64 length, one byte, u32 rank, u32 type, u64 offset.
    const smallest_tensor = 8 + 1 + 4 + 4 + 8;

    fn file(self: *Parser) Error!File {
        const raw = self.reader.data;
        if (raw.len < 24) return self.fail(error.TooShort, "the file has {d} bytes; a GGUF header alone has 24", .{raw.len});
        const found = self.reader.take(4) catch unreachable; // 24 bytes are there.
        if (!std.mem.eql(u8, found, magic)) return self.fail(error.BadMagic, "the file starts with {f}, not \"GGUF\"; it is not a GGUF file", .{printable(found)});
        const version = self.reader.read(u32) catch unreachable;
        if (version & 0xFFFF == 0 and version != 0)
            return self.fail(error.WrongEndianness, "version reads as {d}: the file was written on a big-endian machine", .{version});
        if (version != 2 and version != 3)
            return self.fail(error.UnsupportedVersion, "version is {d}; 2 and 3 can be read", .{version});
        const tensor_count = self.reader.read(u64) catch unreachable;
        const key_count = self.reader.read(u64) catch unreachable;
        if (key_count > self.reader.remaining() / smallest_key_value)
            return self.fail(error.InvalidKeyCount, "n_kv is {d}, more than the file's {d} bytes can hold", .{ @as(i64, @bitCast(key_count)), raw.len });
        if (tensor_count > self.reader.remaining() / smallest_tensor)
            return self.fail(error.InvalidTensorCount, "n_tensors is {d}, more than the file's {d} bytes can hold", .{ @as(i64, @bitCast(tensor_count)), raw.len });

        const key_values = try self.arena.alloc(KeyValue, @intCast(key_count));
        var key_index: std.StringHashMapUnmanaged(u32) = .empty;
        try key_index.ensureTotalCapacity(self.arena, try self.indexSize(key_count));
        for (key_values, 0..) |*pair, i| {
            self.subject = "";
            pair.* = try self.keyValue(i);
            const slot = key_index.getOrPutAssumeCapacity(pair.key);
            if (slot.found_existing) {
                try self.complain(error.DuplicateKey, true, "key {f} appears twice", .{printable(pair.key)});
                continue;
            }
            slot.value_ptr.* = @intCast(i);
        }

        const alignment = try self.alignmentFrom(if (key_index.get("general.alignment")) |i| key_values[i].value else null);

        const tensors = try self.arena.alloc(TensorInfo, @intCast(tensor_count));
        var tensor_index: std.StringHashMapUnmanaged(u32) = .empty;
        try tensor_index.ensureTotalCapacity(self.arena, try self.indexSize(tensor_count));
        for (tensors, 0..) |*info, i| {
            self.subject = "";
            info.* = try self.tensorInfo(i);
            const slot = tensor_index.getOrPutAssumeCapacity(info.name);
            if (slot.found_existing) {
                try self.complain(error.DuplicateTensor, false, "tensor {f} appears twice", .{printable(info.name)});
                continue;
            }
            slot.value_ptr.* = @intCast(i);
        }
        const data_start = try self.placeTensors(tensors, alignment);
        return .{
            .arena = undefined, // The caller of this function puts its own here.
            .version = version,
            .alignment = alignment,
            .key_values = key_values,
            .tensors = tensors,
            .data_start = data_start,
            .key_index = key_index,
            .tensor_index = tensor_index,
        };
    }

    /// Counts were bounded by the bytes present, but hash maps hold at most 2^32 entries.
    fn indexSize(self: *Parser, count: u64) Error!u32 {
        return base.checked.cast(u32, count) catch
            self.fail(error.InvalidTensorCount, "a table of {d} entries is more than any model has", .{count});
    }

    fn keyValue(self: *Parser, i: usize) Error!KeyValue {
        const len = try self.read(u64, "the length of a key");
        if (len == 0) try self.complain(error.EmptyKey, true, "key number {d} is empty", .{i});
        if (len > limits.key_bytes) try self.complain(error.KeyTooLong, true, "key number {d} is {d} bytes long; the most is {d}", .{ i, len, limits.key_bytes });
        const key = try self.take(len, "a key");
        self.subject = key;
        if (!std.unicode.utf8ValidateSlice(key)) try self.complain(error.InvalidUtf8, true, "key {f} is not UTF-8", .{printable(key)});
        const kind = try self.valueType();
        return .{ .key = key, .value = try self.value(kind) };
    }

    fn valueType(self: *Parser) Error!ValueType {
        const id = try self.read(u32, "a value's type");
        return ValueType.fromId(id) orelse
            self.fail(error.UnknownValueType, "key {f} has value type {d}; the last known one is 12", .{ printable(self.subject), id });
    }

    fn value(self: *Parser, kind: ValueType) Error!Value {
        switch (kind) {
            .string => return .{ .string = try self.string() },
            .array => return .{ .array = try self.array() },
            .bool => return .{ .bool = try self.read(u8, "a value") != 0 },
            inline else => |tag| return @unionInit(Value, @tagName(tag), try self.read(@FieldType(Value, @tagName(tag)), "a value")),
        }
    }

    fn string(self: *Parser) Error![]const u8 {
        const len = try self.read(u64, "a string's length");
        if (len > limits.string_bytes)
            return self.fail(error.StringTooLong, "key {f}: a string of {d} bytes; the most is {d}", .{ printable(self.subject), len, limits.string_bytes });
        return self.take(len, "a string");
    }

    fn array(self: *Parser) Error!Array {
        const element = try self.valueType();
        if (element == .array) return self.fail(error.NestedArray, "key {f} is an array of arrays, which GGUF does not have", .{printable(self.subject)});
        const declared = try self.read(u64, "an array's length");
        if (declared > limits.array_elements)
            return self.fail(error.ArrayTooLong, "key {f} is an array of {d} elements; the most is {d}", .{ printable(self.subject), declared, limits.array_elements });
        const count: usize = @intCast(declared); // Bounded just above.
        if (element.fixedBytes()) |size|
            return .{ .element = element, .count = count, .raw = try self.take(declared * size, "an array") };
        if (count > self.reader.remaining() / 8) return self.truncated("an array of strings");
        const start = self.reader.position;
        for (0..count) |_| _ = try self.string();
        return .{ .element = .string, .count = count, .raw = self.reader.data[start..self.reader.position] };
    }

    fn alignmentFrom(self: *Parser, stored: ?Value) Error!usize {
        const found = stored orelse return default_alignment;
        self.subject = "general.alignment";
        if (found != .u32) {
            try self.complain(error.InvalidAlignment, true, "general.alignment is stored as {t}; it must be u32", .{std.meta.activeTag(found)});
            return alignmentOfOtherType(found) orelse default_alignment;
        }
        const alignment = found.u32;
        if (!isAlignment(alignment)) {
            try self.complain(error.InvalidAlignment, true, "general.alignment is {d}; it must be a power of two, at most {d}", .{ alignment, limits.alignment });
            return if (std.math.isPowerOfTwo(@max(alignment, 1)) and alignment > 0) alignment else default_alignment;
        }
        return alignment;
    }

    fn isAlignment(n: u64) bool {
        return std.math.isPowerOfTwo(@max(n, 1)) and n > 0 and n <= limits.alignment;
    }

    /// What was meant, where a number of another type says it.
    fn alignmentOfOtherType(value_found: Value) ?usize {
        const n: u64 = switch (value_found) {
            inline .u8, .u16, .u64 => |n| n,
            inline .i8, .i16, .i32, .i64 => |n| if (n > 0) @intCast(n) else return null,
            else => return null,
        };
        return if (isAlignment(n)) @intCast(n) else null;
    }

    /// Everything but the data, which is placed when all tables have been read.
    fn tensorInfo(self: *Parser, i: usize) Error!TensorInfo {
        const name_len = try self.read(u64, "the length of a tensor's name");
        if (name_len == 0) try self.complain(error.EmptyTensorName, false, "tensor number {d} has no name", .{i});
        if (name_len > limits.tensor_name_bytes)
            try self.complain(error.TensorNameTooLong, false, "the name of tensor number {d} is {d} bytes long; the most is {d}", .{ i, name_len, limits.tensor_name_bytes });
        const name = try self.take(name_len, "a tensor's name");
        self.subject = name;
        if (std.mem.findScalar(u8, name, 0) != null) try self.complain(error.InvalidTensorName, false, "tensor name {f} has a zero byte in it", .{printable(name)});
        if (!std.unicode.utf8ValidateSlice(name)) try self.complain(error.InvalidUtf8, false, "tensor name {f} is not UTF-8", .{printable(name)});

        const rank = try self.read(u32, "a tensor's number of dimensions");
        if (rank > limits.dimensions) return self.fail(error.TooManyDimensions, "tensor {f} has {d} dimensions; the most is {d}", .{ printable(name), rank, limits.dimensions });
        var ne: [limits.dimensions]usize = @splat(1);
        for (ne[0..rank], 0..) |*n, axis| {
            const declared = try self.read(i64, "a dimension");
            if (declared < 0) return self.fail(error.InvalidDimension, "tensor {f}: dimension {d} is {d}; it must be at least 1", .{ printable(name), axis, declared });
            if (declared == 0) try self.complain(error.InvalidDimension, false, "tensor {f}: dimension {d} is 0; it must be at least 1", .{ printable(name), axis });
            n.* = base.checked.cast(usize, declared) catch return self.tooLarge();
        }
        const elements = base.checked.product(usize, &ne) catch return self.tooLarge();
        if (elements > std.math.maxInt(i64)) return self.tooLarge();

        const type_id = try self.read(u32, "a tensor's type");
        const dtype = DType.fromGgml(type_id) orelse blk: {
            if (type_id != type_of_early_ollama)
                return self.fail(error.UnknownTensorType, "tensor {f} has type {d}, which is not a current ggml type. The file is damaged, or newer than this program", .{ printable(name), type_id });
            try self.complain(error.UnknownTensorType, true, "tensor {f} has type 4, under which early Ollama builds stored MXFP4. `abi lint FILE --fix OUT` makes a file of today of it", .{printable(name)});
            break :blk .mxfp4;
        };
        const size = try self.storedBytes(dtype, ne);
        _ = base.checked.alignForward(usize, size, limits.alignment) catch return self.tooLarge();
        const offset = try self.read(u64, "a tensor's offset");
        return .{
            .name = name,
            .dtype = dtype,
            .ne = ne,
            .rank = rank,
            .offset = base.checked.cast(usize, offset) catch return self.badOffset(offset, 0),
            .data = &.{},
            .early_ollama = type_id == type_of_early_ollama,
        };
    }

    /// Retired in ggml, and no block of it was ever in a file of today's.
    const type_of_early_ollama = 4;

    fn storedBytes(self: *Parser, dtype: DType, ne: [limits.dimensions]usize) Error!usize {
        const row = dtype.rowBytes(ne[0]) catch |err| switch (err) {
            error.PartialBlock => return self.fail(error.PartialBlock, "tensor {f}: rows of {d} elements are not whole blocks of {d} ({s})", .{ printable(self.subject), ne[0], dtype.blockLen(), dtype.label() }),
            error.Overflow => return self.tooLarge(),
        };
        return base.checked.product(usize, &.{ row, ne[1], ne[2], ne[3] }) catch self.tooLarge();
    }

    /// Offsets must be exactly those that follow from the sizes, and all data must be there.
    fn placeTensors(self: *Parser, tensors: []TensorInfo, alignment: usize) Error!usize {
        const raw = self.reader.data;
        self.subject = "";
        if (tensors.len == 0) {
            if (self.reader.remaining() >= alignment) try self.complain(error.TrailingBytes, true, "{d} bytes follow, although the file has no tensors", .{self.reader.remaining()});
            return raw.len;
        }
        const data_start = base.checked.alignForward(usize, self.reader.position, alignment) catch return self.tooLarge();
        var expected: usize = 0;
        var last: usize = 0;
        var reordered = false;
        for (tensors) |*info| {
            self.subject = info.name;
            if (info.offset != expected) {
                reordered = true;
                try self.complain(error.InvalidTensorOffset, true, "tensor {f} has offset {d}; it must be {d}, right behind the tensor before", .{ printable(info.name), info.offset, expected });
            }
            const size = try self.storedBytes(info.dtype, info.ne);
            const start = base.checked.add(usize, data_start, info.offset) catch return self.tooLarge();
            const padded = base.checked.alignForward(usize, size, alignment) catch return self.tooLarge();
            expected = base.checked.add(usize, info.offset, padded) catch return self.tooLarge();
            last = @max(last, expected);
            if (!base.checked.fits(start, size, raw.len)) {
                try self.complain(error.TensorOutOfBounds, false, "tensor {f} needs bytes {d} to {d}, but the file ends at {d}; it was cut, or its download is not complete", .{ printable(info.name), start, start +| size, raw.len });
                continue;
            }
            info.data = raw[start..][0..size];
        }
        if (reordered) try self.checkSharedBytes(tensors);
        self.subject = "";
        const end = base.checked.add(usize, data_start, last) catch return self.tooLarge();
        if (raw.len > end) try self.complain(error.TrailingBytes, true, "{d} bytes follow the last tensor", .{raw.len - end});
        return data_start;
    }

    /// Offsets that do not follow from the sizes may still name bytes of their own each.
    fn checkSharedBytes(self: *Parser, tensors: []const TensorInfo) Error!void {
        const order = try self.arena.alloc(*const TensorInfo, tensors.len);
        for (order, tensors) |*slot, *info| slot.* = info;
        std.mem.sort(*const TensorInfo, order, {}, struct {
            fn before(_: void, a: *const TensorInfo, b: *const TensorInfo) bool {
                return a.offset < b.offset;
            }
        }.before);
        var end: usize = 0;
        for (order) |info| {
            self.subject = info.name;
            if (info.offset < end) try self.complain(error.InvalidTensorOffset, false, "tensor {f} shares bytes with the tensor before it in the file", .{printable(info.name)});
            end = @max(end, info.offset +| info.data.len);
        }
    }

    fn read(self: *Parser, comptime T: type, what: []const u8) Error!T {
        return self.reader.read(T) catch self.truncated(what);
    }

    fn take(self: *Parser, len: u64, what: []const u8) Error![]const u8 {
        return self.reader.take(len) catch self.truncated(what);
    }

    fn truncated(self: *Parser, what: []const u8) Error {
        if (self.subject.len > 0)
            return self.fail(error.Truncated, "the file ends inside {s} (at byte {d}, reading {f})", .{ what, self.reader.position, printable(self.subject) });
        return self.fail(error.Truncated, "the file ends inside {s} (at byte {d})", .{ what, self.reader.position });
    }

    fn tooLarge(self: *Parser) Error {
        return self.fail(error.TensorTooLarge, "tensor {f}: its size does not fit in memory", .{printable(self.subject)});
    }

    /// A fault that leaves the rest of the file readable.
    fn complain(self: *Parser, err: Error, mendable: bool, comptime format: []const u8, arguments: anytype) Error!void {
        const list = self.complaints orelse return self.fail(err, format, arguments);
        if (list.list.items.len == Complaints.most) {
            list.omitted += 1;
            return;
        }
        const text = try std.fmt.allocPrint(self.arena, format, arguments);
        try list.list.append(self.arena, .{ .err = err, .subject = self.subject, .text = text, .mendable = mendable });
    }

    fn badOffset(self: *Parser, found: u64, expected: usize) Error {
        return self.fail(error.InvalidTensorOffset, "tensor {f} has offset {d}; it must be {d}, right behind the tensor before", .{ printable(self.subject), found, expected });
    }

    fn fail(self: *Parser, err: Error, comptime format: []const u8, arguments: anytype) Error {
        self.diag.set(format, arguments);
        return err;
    }
};

test {
    _ = @import("gguf_test.zig");
}
