//! Strict JSON from files nobody vouches for: size and depth limits, no duplicate keys, no trailing text, valid UTF-8.
//!
//! `parse` gives std's dynamic value; the small getters turn a wrong type into a sentence that names the key.
//! Does not know: what any key means.

const std = @import("std");
const base = @import("base");
const Allocator = std.mem.Allocator;
const Diagnostic = base.Diagnostic;
pub const Value = std.json.Value;
pub const Object = std.json.ObjectMap;

pub const Error = error{
    OutOfMemory,
    JsonTooLarge,
    JsonTooDeep,
    JsonNotUtf8,
    JsonSyntax,
    JsonDuplicateKey,
    /// A key holds another type than the one asked for.
    JsonWrongType,
};

pub const Limits = struct {
    size_bytes: usize = 16 << 20,
    depth: usize = 64,
};

/// The value lives in `arena`. `diag` says what is wrong and near which byte; callers prepend the file.
pub fn parse(arena: Allocator, text: []const u8, limits: Limits, diag: *Diagnostic) Error!Value {
    if (text.len > limits.size_bytes) {
        diag.set("the JSON text has {d} bytes; at most {d} are read", .{ text.len, limits.size_bytes });
        return error.JsonTooLarge;
    }
    if (!std.unicode.utf8ValidateSlice(text)) {
        diag.set("the JSON text is not valid UTF-8", .{});
        return error.JsonNotUtf8;
    }
    try checkDepth(text, limits.depth, diag);
    var scanner: std.json.Scanner = .initCompleteInput(arena, text);
    defer scanner.deinit();

    return std.json.parseFromTokenSourceLeaky(Value, arena, &scanner, .{
        .duplicate_field_behavior = .@"error",
        .max_value_len = text.len,
    }) catch |err| switch (err) {
        error.OutOfMemory => error.OutOfMemory,
        error.DuplicateField => {
            diag.set("the JSON text has the same key twice, before byte {d}", .{scanner.cursor});
            return error.JsonDuplicateKey;
        },
        else => {
            diag.set("not valid JSON near byte {d}", .{scanner.cursor});
            return error.JsonSyntax;
        },
    };
}

/// Counts brackets outside of strings, so that nesting is bounded before anything is built.
fn checkDepth(text: []const u8, limit: usize, diag: *Diagnostic) Error!void {
    var depth: usize = 0;
    var in_string = false;
    var i: usize = 0;
    while (i < text.len) : (i += 1) {
        if (in_string) {
            switch (text[i]) {
                '\\' => i += 1,
                '"' => in_string = false,
                else => {},
            }
            continue;
        }
        switch (text[i]) {
            '"' => in_string = true,
            '{', '[' => {
                depth += 1;
                if (depth > limit) {
                    diag.set("the JSON text is nested deeper than {d} levels", .{limit});
                    return error.JsonTooDeep;
                }
            },
            '}', ']' => depth -|= 1,
            else => {},
        }
    }
}

/// The object itself, or an error naming `what`.
pub fn asObject(value: Value, what: []const u8, diag: *Diagnostic) Error!Object {
    return switch (value) {
        .object => |o| o,
        else => wrongType(what, "an object", diag),
    };
}

/// Null for a missing key and for JSON null, as Hugging Face files use both for "not set".
pub fn get(object: Object, key: []const u8) ?Value {
    const value = object.get(key) orelse return null;
    return if (value == .null) null else value;
}

pub fn getString(object: Object, key: []const u8, diag: *Diagnostic) Error!?[]const u8 {
    return switch (get(object, key) orelse return null) {
        .string => |s| s,
        else => wrongType(key, "a string", diag),
    };
}

pub fn getBool(object: Object, key: []const u8, diag: *Diagnostic) Error!?bool {
    return switch (get(object, key) orelse return null) {
        .bool => |b| b,
        else => wrongType(key, "true or false", diag),
    };
}

pub fn getFloat(object: Object, key: []const u8, diag: *Diagnostic) Error!?f64 {
    return switch (get(object, key) orelse return null) {
        .float => |f| f,
        .integer => |i| @floatFromInt(i),
        else => wrongType(key, "a number", diag),
    };
}

pub fn getInteger(object: Object, key: []const u8, diag: *Diagnostic) Error!?i64 {
    return switch (get(object, key) orelse return null) {
        .integer => |i| i,
        .float => |f| if (f == @trunc(f) and @abs(f) < 1 << 53) @as(i64, @trunc(f)) else wrongType(key, "a whole number", diag),
        else => wrongType(key, "a whole number", diag),
    };
}

/// A whole number that fits u32.
pub fn getU32(object: Object, key: []const u8, diag: *Diagnostic) Error!?u32 {
    const value = try getInteger(object, key, diag) orelse return null;
    return std.math.cast(u32, value) orelse {
        diag.set("\"{s}\" is {d}; it must be between 0 and {d}", .{ key, value, std.math.maxInt(u32) });
        return error.JsonWrongType;
    };
}

fn wrongType(key: []const u8, comptime wanted: []const u8, diag: *Diagnostic) Error {
    diag.set("\"{s}\" must be " ++ wanted, .{key});
    return error.JsonWrongType;
}

const testing = std.testing;

test "each kind of bad text has its own error" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();

    const Case = struct { Error, []const u8 };
    const cases = [_]Case{
        .{ error.JsonSyntax, "{" },
        .{ error.JsonSyntax, "{} {}" },
        .{ error.JsonSyntax, "{\"a\":01}" },
        .{ error.JsonSyntax, "\"\\ud800\"" },
        .{ error.JsonNotUtf8, "{\"\xff\":1}" },
        .{ error.JsonDuplicateKey, "{\"a\":1,\"a\":2}" },
        .{ error.JsonDuplicateKey, "{\"x\":{\"a\":1,\"\\u0061\":2}}" },
        .{ error.JsonTooDeep, "[[[[[]]]]]" },
        .{ error.JsonTooLarge, "\"" ++ @as([70]u8, @splat('x')) ++ "\"" },
    };
    for (cases) |case| {
        var diag: Diagnostic = .{};
        try testing.expectError(case[0], parse(arena.allocator(), case[1], .{ .size_bytes = 64, .depth = 4 }, &diag));
        try testing.expect(diag.text().len > 0);
    }
}

test "brackets inside strings do not count as depth, and getters name the key" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();

    var diag: Diagnostic = .{};
    const value = try parse(arena.allocator(), "{\"s\":\"[[\\\"[[[[\",\"n\":null,\"f\":1e-5,\"i\":7,\"w\":2.0}", .{ .depth = 2 }, &diag);
    const object = try asObject(value, "text", &diag);
    try testing.expectEqual(null, try getString(object, "n", &diag));
    try testing.expectEqual(1e-5, (try getFloat(object, "f", &diag)).?);
    try testing.expectEqual(2, (try getU32(object, "w", &diag)).?);
    try testing.expectError(error.JsonWrongType, getBool(object, "i", &diag));
    try testing.expectEqualStrings("\"i\" must be true or false", diag.text());
}
