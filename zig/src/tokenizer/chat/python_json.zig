//! JSON written as Python's `json.dumps(value, ensure_ascii=False)` writes it: templates put tools and arguments
//! into the text that way, so the spaces, the escapes and the numbers count.

const std = @import("std");

const Writer = std.Io.Writer;
const Value = std.json.Value;

pub const depth_max = 64;
pub const Error = Writer.Error || error{TooDeep};

/// How values are read so that they can be written again: numbers keep their digits.
pub const parse_options: std.json.ParseOptions = .{ .parse_numbers = false, .allocate = .alloc_always };

/// `indent`: spaces a level; null: all on one line.
pub fn write(w: *Writer, value: Value, indent: ?usize) Error!void {
    return writeAt(w, value, indent, 0);
}

fn writeAt(w: *Writer, value: Value, indent: ?usize, depth: usize) Error!void {
    if (depth > depth_max) return error.TooDeep;
    switch (value) {
        .null => try w.writeAll("null"),
        .bool => |b| try w.writeAll(if (b) "true" else "false"),
        .integer => |i| try w.print("{d}", .{i}),
        .float => |f| try float(w, f),
        .number_string => |text| try number(w, text),
        .string => |text| try string(w, text),
        .array => |array| {
            try w.writeByte('[');
            for (array.items, 0..) |item, i| {
                try separate(w, indent, depth + 1, i == 0);
                try writeAt(w, item, indent, depth + 1);
            }
            if (array.items.len > 0) try newline(w, indent, depth);
            try w.writeByte(']');
        },
        .object => |object| {
            try w.writeByte('{');
            for (object.keys(), object.values(), 0..) |key, item, i| {
                try separate(w, indent, depth + 1, i == 0);
                try string(w, key);
                try w.writeAll(": ");
                try writeAt(w, item, indent, depth + 1);
            }
            if (object.count() > 0) try newline(w, indent, depth);
            try w.writeByte('}');
        },
    }
}

fn separate(w: *Writer, indent: ?usize, depth: usize, first: bool) Writer.Error!void {
    if (!first) try w.writeAll(if (indent == null) ", " else ",");
    try newline(w, indent, depth);
}

fn newline(w: *Writer, indent: ?usize, depth: usize) Writer.Error!void {
    const width = indent orelse return;
    try w.writeByte('\n');
    try w.splatByteAll(' ', width * depth);
}

pub fn string(w: *Writer, text: []const u8) Writer.Error!void {
    try w.writeByte('"');
    for (text) |byte| switch (byte) {
        '"' => try w.writeAll("\\\""),
        '\\' => try w.writeAll("\\\\"),
        '\n' => try w.writeAll("\\n"),
        '\r' => try w.writeAll("\\r"),
        '\t' => try w.writeAll("\\t"),
        8 => try w.writeAll("\\b"),
        12 => try w.writeAll("\\f"),
        0...7, 11, 14...31 => try w.print("\\u{x:0>4}", .{byte}),
        else => try w.writeByte(byte),
    };
    try w.writeByte('"');
}

/// A number as Python says it back after reading it.
fn number(w: *Writer, text: []const u8) Writer.Error!void {
    if (std.mem.findAny(u8, text, ".eE") == null) return w.writeAll(if (std.mem.eql(u8, text, "-0")) "0" else text);
    try float(w, std.fmt.parseFloat(f64, text) catch return w.writeAll(text));
}

/// Python's `repr`: the shortest digits that read back; an exponent below 1e-4 and from 1e16 on.
fn float(w: *Writer, value: f64) Writer.Error!void {
    if (std.math.isNan(value)) return w.writeAll("NaN");
    if (std.math.isInf(value)) return w.writeAll(if (value < 0) "-Infinity" else "Infinity");
    var buffer: [64]u8 = undefined;
    const text = std.fmt.bufPrint(&buffer, "{e}", .{@abs(value)}) catch unreachable; // 17 digits and an exponent.
    const mark = std.mem.findScalar(u8, text, 'e').?;
    const exponent = std.fmt.parseInt(i32, text[mark + 1 ..], 10) catch unreachable; // Just written.
    var digits_buffer: [32]u8 = undefined;
    var count: usize = 0;
    for (text[0..mark]) |c| if (c != '.') {
        digits_buffer[count] = c;
        count += 1;
    };
    while (count > 1 and digits_buffer[count - 1] == '0') count -= 1;
    const digits = digits_buffer[0..count];
    if (std.math.signbit(value)) try w.writeByte('-');
    if (exponent < -4 or exponent >= 16) {
        try w.writeByte(digits[0]);
        if (count > 1) try w.print(".{s}", .{digits[1..]});
        try w.print("e{c}{d:0>2}", .{ @as(u8, if (exponent < 0) '-' else '+'), @abs(exponent) });
        return;
    }
    if (exponent < 0) {
        try w.writeAll("0.");
        try w.splatByteAll('0', @intCast(-exponent - 1));
        return w.writeAll(digits);
    }
    const whole: usize = @intCast(exponent + 1);
    try w.writeAll(digits[0..@min(whole, count)]);
    if (whole >= count) {
        try w.splatByteAll('0', whole - count);
        try w.writeAll(".0");
    } else try w.print(".{s}", .{digits[whole..]});
}

fn expectSame(json: []const u8, indent: ?usize, expected: []const u8) !void {
    const gpa = std.testing.allocator;
    const parsed = try std.json.parseFromSlice(Value, gpa, json, parse_options);
    defer parsed.deinit();
    var out: std.Io.Writer.Allocating = .init(gpa);
    defer out.deinit();

    try write(&out.writer, parsed.value, indent);
    try std.testing.expectEqualStrings(expected, out.written());
}

test "values are written as Python writes them" {
    try expectSame("{\"a\":[1,2.50,-0,1E5,1e16,123456789012345678901234567890],\"b\":\"\\u00e9\\n\\u0001/\\u007f\",\"c\":{},\"d\":[]}", null, "{\"a\": [1, 2.5, 0, 100000.0, 1e+16, 123456789012345678901234567890], \"b\": \"é\\n\\u0001/\x7f\", \"c\": {}, \"d\": []}");
    try expectSame("[1e-5,0.0001,-0.0,1.5e300,0.1,12.0,1e400,5e-324]", null, "[1e-05, 0.0001, -0.0, 1.5e+300, 0.1, 12.0, Infinity, 5e-324]");
    try expectSame("{\"a\":[1,{\"b\":null}],\"c\":{}}", 4, "{\n    \"a\": [\n        1,\n        {\n            \"b\": null\n        }\n    ],\n    \"c\": {}\n}");
}

test "a value nested too deep is refused" {
    const gpa = std.testing.allocator;
    const text: [2 * 70]u8 = @as([70]u8, @splat('[')) ++ @as([70]u8, @splat(']'));
    const parsed = try std.json.parseFromSlice(Value, gpa, &text, parse_options);
    defer parsed.deinit();
    var buffer: [256]u8 = undefined;
    var w: Writer = .fixed(&buffer);
    try std.testing.expectError(error.TooDeep, write(&w, parsed.value, null));
}
