//! What a GGUF file holds, for people and for machines.
//!
//! Text from the file is shown without control bytes and cut, so that a hostile file cannot paint on a terminal. Long arrays are shown by
//! their length and first elements. Does not know: what the keys mean.

const std = @import("std");
const base = @import("base");
const tensor = @import("tensor");
const gguf = @import("gguf.zig");
const Diagnostic = base.Diagnostic;
const printable = base.bytes.printable;

pub const Format = enum { text, json };

pub const Error = gguf.Error || base.storage.Error || std.Io.Writer.Error;

/// Elements of an array that are shown.
const shown = 8;

/// Opens the file at `path` and writes what it holds to `w`. On error `diag` says what is wrong with it.
pub fn inspect(gpa: std.mem.Allocator, io: std.Io, path: []const u8, format: Format, w: *std.Io.Writer, diag: *Diagnostic) Error!void {
    var disk: base.storage.Disk = .init(io);
    var mapping = disk.storage().map(path) catch |err| {
        base.storage.explain(diag, err, "read", path);
        return err;
    };
    defer mapping.unmap();

    var file = gguf.File.parse(gpa, mapping.bytes, diag) catch |err| {
        diag.prepend("{s}: ", .{path});
        return err;
    };
    defer file.deinit();

    switch (format) {
        .text => try writeText(&file, w),
        .json => try writeJson(&file, w),
    }
}

pub fn writeText(file: *const gguf.File, w: *std.Io.Writer) std.Io.Writer.Error!void {
    try w.print("GGUF version {d}: {d} keys, {d} tensors, data from byte {d}\n\nkeys\n", .{ file.version, file.key_values.len, file.tensors.len, file.data_start });
    for (file.key_values) |pair| {
        try writeName(w, pair.key);
        try w.writeAll(" = ");
        try writeValue(w, pair.value);
        try w.writeByte('\n');
    }
    try w.writeAll("\ntensors (row length first)\n");
    for (file.tensors) |*t| {
        try writeName(w, t.name);
        try w.print("  {s}  [", .{t.dtype.label()});
        for (t.dims(), 0..) |n, i| try w.print("{s}{d}", .{ if (i == 0) "" else ", ", n });
        try w.print("]  {d} bytes\n", .{t.data.len});
    }
    try w.writeAll("\nby type\n");
    inline for (@typeInfo(tensor.DType).@"enum".field_names) |name| {
        const sum = totals(file, @field(tensor.DType, name));
        if (sum.tensors > 0) try w.print("  {s}: {d} tensors, {d} elements, {d} bytes\n", .{ name, sum.tensors, sum.elements, sum.bytes });
    }
}

pub fn writeJson(file: *const gguf.File, w: *std.Io.Writer) std.Io.Writer.Error!void {
    var s: std.json.Stringify = .{ .writer = w, .options = .{ .whitespace = .indent_2 } };
    try s.beginObject();
    try s.objectField("version");
    try s.write(file.version);
    try s.objectField("alignment");
    try s.write(file.alignment);
    try s.objectField("data_start");
    try s.write(file.data_start);
    try s.objectField("keys");
    try s.beginObject();
    for (file.key_values) |pair| {
        try s.objectField(pair.key); // Keys were checked to be UTF-8 and unique.
        try writeJsonValue(&s, pair.value);
    }
    try s.endObject();
    try s.objectField("tensors");
    try s.beginArray();
    for (file.tensors) |*t| {
        try s.beginObject();
        try s.objectField("name");
        try s.write(t.name);
        try s.objectField("type");
        try s.write(t.dtype.label());
        try s.objectField("dims");
        try s.beginArray();
        for (t.dims()) |n| try s.write(n);
        try s.endArray();
        try s.objectField("offset");
        try s.write(t.offset);
        try s.objectField("bytes");
        try s.write(t.data.len);
        try s.endObject();
    }
    try s.endArray();
    try s.endObject();
    try w.writeByte('\n');
}

const Totals = struct { tensors: usize = 0, elements: usize = 0, bytes: usize = 0 };

fn totals(file: *const gguf.File, dtype: tensor.DType) Totals {
    var sum: Totals = .{};
    for (file.tensors) |*t| if (t.dtype == dtype) {
        sum.tensors += 1;
        sum.elements +|= t.len();
        sum.bytes += t.data.len;
    };
    return sum;
}

/// Names without the quotes when they are as plain as they should be.
fn writeName(w: *std.Io.Writer, name: []const u8) std.Io.Writer.Error!void {
    for (name) |c| if (c <= 0x20 or c >= 0x7f) return w.print("  {f}", .{printable(name)});
    try w.print("  {s}", .{name});
}

fn writeValue(w: *std.Io.Writer, value: gguf.Value) std.Io.Writer.Error!void {
    switch (value) {
        .string => |text| try w.print("{f}", .{printable(text)}),
        .bool => |b| try w.print("{}", .{b}),
        .array => |a| {
            try w.print("{d} x {t}: [", .{ a.count, a.element });
            if (a.element == .string) {
                var it = a.strings();
                for (0..@min(a.count, shown)) |i| try w.print("{s}{f}", .{ if (i == 0) "" else ", ", printable(it.next().?) });
            } else for (0..@min(a.count, shown)) |i| {
                if (i > 0) try w.writeAll(", ");
                try writeValue(w, element(a, i));
            }
            try w.writeAll(if (a.count > shown) ", ...]" else "]");
        },
        inline else => |number| try w.print("{d}", .{number}),
    }
}

fn writeJsonValue(s: *std.json.Stringify, value: gguf.Value) std.Io.Writer.Error!void {
    switch (value) {
        .string => |text| try writeJsonText(s, text),
        .array => |a| {
            try s.beginObject();
            try s.objectField("type");
            try s.write(@tagName(a.element));
            try s.objectField("count");
            try s.write(a.count);
            try s.objectField("first");
            try s.beginArray();
            if (a.element == .string) {
                var it = a.strings();
                for (0..@min(a.count, shown)) |_| try writeJsonText(s, it.next().?);
            } else for (0..@min(a.count, shown)) |i| try writeJsonValue(s, element(a, i));
            try s.endArray();
            try s.endObject();
        },
        inline .f32, .f64 => |x| if (std.math.isFinite(x)) try s.write(x) else try s.write(null),
        inline else => |x| try s.write(x),
    }
}

/// Bytes that are no text are shown as text with escapes: JSON has no other way.
fn writeJsonText(s: *std.json.Stringify, text: []const u8) std.Io.Writer.Error!void {
    if (std.unicode.utf8ValidateSlice(text)) return s.write(text);
    var buffer: [512]u8 = undefined;
    try s.write(std.fmt.bufPrint(&buffer, "{f}", .{printable(text)}) catch "not text"); // 64 bytes of four signs each.
}

fn element(a: gguf.Array, i: usize) gguf.Value {
    return switch (a.element) {
        .bool => .{ .bool = a.raw[i] != 0 },
        .string, .array => unreachable, // Strings are walked, arrays of arrays refused.
        inline else => |tag| @unionInit(gguf.Value, @tagName(tag), a.at(@FieldType(gguf.Value, @tagName(tag)), i)),
    };
}

test "both formats show every key and tensor, and no control bytes" {
    const gpa = std.testing.allocator;
    const gguf_writer = @import("gguf_writer.zig");
    var header: gguf_writer.Header = .init(gpa);
    defer header.deinit();

    try header.put([]const u8, "name", "evil\x1b[2J\"");
    try header.put([]const u8, "binary", "\xff\xfe");
    try header.put([]const f32, "numbers", &.{ 1, 2.5, std.math.nan(f32) });
    try header.put([]const bool, "flags", &.{ true, false });
    try header.put([]const []const u8, "words", &.{ "a", "b", "c", "d", "e", "f", "g", "h", "i" });
    try header.addTensor("m", .q8_0, &.{ 3, 32 });
    var made: std.Io.Writer.Allocating = .init(gpa);
    defer made.deinit();
    try header.write(&made.writer);
    try base.bytes.writeZeros(&made.writer, header.data_bytes);

    var diag: Diagnostic = .{};
    var file = try gguf.File.parse(gpa, made.written(), &diag);
    defer file.deinit();
    var out: std.Io.Writer.Allocating = .init(gpa);
    defer out.deinit();
    try writeText(&file, &out.writer);
    for ([_][]const u8{ "\\x1b", "9 x string", "\"h\", ...]", "[1, 2.5, nan]", "[true, false]", "m  q8_0  [32, 3]  102 bytes" }) |piece|
        try std.testing.expect(std.mem.find(u8, out.written(), piece) != null);
    try std.testing.expect(std.mem.findScalar(u8, out.written(), 0x1b) == null);

    out.clearRetainingCapacity();
    try writeJson(&file, &out.writer);
    const back = try std.json.parseFromSlice(std.json.Value, gpa, out.written(), .{});
    defer back.deinit();
    const keys = back.value.object.get("keys").?.object;
    try std.testing.expectEqualStrings("evil\x1b[2J\"", keys.get("name").?.string);
    try std.testing.expectEqual(@as(i64, 9), keys.get("words").?.object.get("count").?.integer);
    try std.testing.expectEqual(std.json.Value.null, keys.get("numbers").?.object.get("first").?.array.items[2]);
    try std.testing.expectEqual(@as(i64, 102), back.value.object.get("tensors").?.array.items[0].object.get("bytes").?.integer);
}
