//! `abi inspect`: what a GGUF file holds, as a person reads it or as JSON.

const std = @import("std");
const abi = @import("abi");
const arguments = @import("arguments.zig");
const app_file = @import("app.zig");
const gguf = abi.formats.gguf;

pub const verb: arguments.Verb = .{
    .name = "inspect",
    .summary = "Show the keys and tensors of a GGUF file",
    .usage = "FILE.gguf [options]",
    .flags = &.{
        .{ .name = "json", .help = "one JSON object: version, alignment, keys, tensors" },
        .{ .name = "keys", .help = "keys only" },
        .{ .name = "tensors", .help = "tensors only" },
        .{ .name = "full", .help = "whole arrays and texts instead of their beginning" },
    },
    .positionals_max = 1,
    .notes = "The file is read strictly: what is wrong with it is named, and the exit code is 1.",
    .examples = &.{ "abi inspect tiny.gguf", "abi inspect tiny.gguf --json --full" },
};

const View = struct {
    json: bool,
    keys: bool,
    tensors: bool,
    /// Array elements and bytes of text shown.
    elements_max: usize,
    text_max: usize,
};

pub fn run(app: *app_file.App, given: []const []const u8) app_file.RunError!app_file.Exit {
    var parsed: arguments.Parsed = undefined;
    if (try app.parse(&parsed, &verb, given)) |end| return end;
    if (parsed.positionals.len == 0) return app.parseFailed(&parsed, parsed.usage("name the file: abi inspect FILE.gguf", .{}));

    const path = parsed.positionals[0];
    var diag: abi.base.Diagnostic = .{};
    var disk: abi.base.storage.Disk = .init(app.io);
    var mapping = disk.storage().map(path) catch |err| {
        if (err == error.OutOfMemory) return error.OutOfMemory;
        abi.base.storage.explain(&diag, err, "read", path);
        return app.fail(verb.name, diag.text());
    };
    defer mapping.unmap();

    var file = gguf.File.parse(app.gpa, mapping.bytes, &diag) catch |err| {
        if (err == error.OutOfMemory) return error.OutOfMemory;
        diag.prepend("{s}: ", .{path});
        return app.fail(verb.name, diag.text());
    };
    defer file.deinit();

    const full = parsed.has("full");
    const both = parsed.has("keys") == parsed.has("tensors");
    const view: View = .{
        .json = parsed.has("json"),
        .keys = both or parsed.has("keys"),
        .tensors = both or parsed.has("tensors"),
        .elements_max = if (full) std.math.maxInt(usize) else 4,
        .text_max = if (full) std.math.maxInt(usize) else 60,
    };
    if (view.json) try writeJson(app.out, &file, view) else try writeTable(app.out, &file, mapping.bytes.len, view);
    return .ok;
}

fn writeTable(out: *std.Io.Writer, file: *const gguf.File, size: usize, view: View) std.Io.Writer.Error!void {
    var elements: usize = 0;
    for (file.tensors) |*info| elements += info.len();
    try out.print("GGUF version {d}, {B:.1}, {d} keys, {d} tensors, {d} parameters\n", .{ file.version, size, file.key_values.len, file.tensors.len, elements });
    if (view.keys) {
        try out.writeAll("\nKeys\n");
        var width: usize = 0;
        for (file.key_values) |pair| width = @max(width, @min(pair.key.len, 48));
        for (file.key_values) |pair| {
            try out.writeAll("  ");
            try writeVisible(out, pair.key);
            try out.splatByteAll(' ', width -| pair.key.len + 2);
            try writeValue(out, pair.value, view);
            try out.writeByte('\n');
        }
    }
    if (view.tensors) {
        try out.writeAll("\nTensors\n");
        var width: usize = 0;
        for (file.tensors) |info| width = @max(width, info.name.len);
        for (file.tensors) |*info| {
            try out.writeAll("  ");
            try writeVisible(out, info.name);
            try out.splatByteAll(' ', width -| info.name.len + 2);
            try out.print("{s:<6} ", .{info.dtype.label()});
            for (info.dims(), 0..) |n, i| try out.print("{s}{d}", .{ if (i > 0) " × " else "", n });
            try out.print("  {B:.1}\n", .{info.data.len});
        }
    }
}

fn writeValue(out: *std.Io.Writer, value: gguf.Value, view: View) std.Io.Writer.Error!void {
    switch (value) {
        .string => |text| try writeText(out, text, view),
        .array => |array| {
            try out.print("{d} × {t}: ", .{ array.count, array.element });
            const shown = @min(array.count, view.elements_max);
            if (array.element == .string) {
                var it = array.strings();
                for (0..shown) |i| {
                    if (i > 0) try out.writeAll(", ");
                    try writeText(out, it.next().?, view);
                }
            } else for (0..shown) |i| {
                if (i > 0) try out.writeAll(", ");
                try writeElement(out, array, i);
            }
            if (shown < array.count) try out.writeAll(", …");
        },
        inline else => |v| if (@TypeOf(v) == bool) try out.print("{}", .{v}) else try out.print("{d}", .{v}),
    }
}

fn writeText(out: *std.Io.Writer, text: []const u8, view: View) std.Io.Writer.Error!void {
    var end = @min(text.len, view.text_max);
    // Not in the middle of a character.
    while (end > 0 and end < text.len and text[end] & 0xc0 == 0x80) end -= 1;
    try out.writeByte('"');
    try writeVisible(out, text[0..end]);
    try out.writeByte('"');
    if (end < text.len) try out.print("… ({d} bytes)", .{text.len});
}

/// On one line, without anything that could move the cursor.
fn writeVisible(out: *std.Io.Writer, text: []const u8) std.Io.Writer.Error!void {
    var filter: abi.agent.visible.Filter = .{};
    for (text) |byte| switch (byte) {
        '\n' => try out.writeAll("\\n"),
        '\t' => try out.writeAll("\\t"),
        else => try filter.write(out, &.{byte}),
    };
    try filter.finish(out);
}

fn writeElement(out: *std.Io.Writer, array: gguf.Array, i: usize) std.Io.Writer.Error!void {
    switch (array.element) {
        .string, .array => unreachable,
        .bool => try out.print("{}", .{array.raw[i] != 0}),
        inline else => |tag| try out.print("{d}", .{array.at(@FieldType(gguf.Value, @tagName(tag)), i)}),
    }
}

fn writeJson(out: *std.Io.Writer, file: *const gguf.File, view: View) std.Io.Writer.Error!void {
    var json: std.json.Stringify = .{ .writer = out, .options = .{ .whitespace = .indent_2 } };
    try json.beginObject();
    try json.objectField("version");
    try json.write(file.version);
    try json.objectField("alignment");
    try json.write(file.alignment);
    if (view.keys) {
        try json.objectField("keys");
        try json.beginObject();
        for (file.key_values) |pair| {
            try json.objectField(pair.key);
            try writeJsonValue(&json, pair.value, view);
        }
        try json.endObject();
    }
    if (view.tensors) {
        try json.objectField("tensors");
        try json.beginArray();
        for (file.tensors) |*info| try json.write(.{
            .name = info.name,
            .type = info.dtype.label(),
            .shape = info.dims(),
            .offset = info.offset,
            .bytes = info.data.len,
        });
        try json.endArray();
    }
    try json.endObject();
    try out.writeByte('\n');
}

/// Arrays longer than the view give an object with their length and beginning, so that nothing is lost in silence.
fn writeJsonValue(json: *std.json.Stringify, value: gguf.Value, view: View) std.Io.Writer.Error!void {
    switch (value) {
        .array => |array| {
            const shown = @min(array.count, view.elements_max);
            const whole = shown == array.count;
            if (!whole) {
                try json.beginObject();
                try json.objectField("count");
                try json.write(array.count);
                try json.objectField("first");
            }
            try json.beginArray();
            if (array.element == .string) {
                var it = array.strings();
                for (0..shown) |_| try writeJsonText(json, it.next().?);
            } else for (0..shown) |i| switch (array.element) {
                .string, .array => unreachable,
                .bool => try json.write(array.raw[i] != 0),
                inline else => |tag| try writeJsonNumber(json, array.at(@FieldType(gguf.Value, @tagName(tag)), i)),
            };
            try json.endArray();
            if (!whole) try json.endObject();
        },
        .string => |text| try writeJsonText(json, text),
        .bool => |v| try json.write(v),
        inline else => |v| try writeJsonNumber(json, v),
    }
}

/// The shortest digits of the value's own type; numbers JSON does not have become null.
fn writeJsonNumber(json: *std.json.Stringify, value: anytype) std.Io.Writer.Error!void {
    const is_float = @typeInfo(@TypeOf(value)) == .float;
    if (is_float and !std.math.isFinite(value)) return json.write(null);
    try json.print("{d}", .{value});
}

/// A text that is not UTF-8 becomes a list of its bytes, which is what the JSON writer makes of it.
fn writeJsonText(json: *std.json.Stringify, text: []const u8) std.Io.Writer.Error!void {
    try json.write(text);
}
