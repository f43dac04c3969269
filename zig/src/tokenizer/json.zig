//! A JSON value that knows its file, so that a wrong field is named in the message.
//!
//! Depth is limited before parsing; the caller limits the size. Duplicate keys are an error.

const std = @import("std");
const base = @import("base");
const Error = @import("parts.zig").Error;

const max_depth = 64;

pub const Node = struct {
    value: std.json.Value,
    file: []const u8,
    /// Name of the field this value stands in.
    name: []const u8,
    diag: *base.Diagnostic,

    /// Parses `source`; strings of the result may point into it.
    pub fn parse(arena: std.mem.Allocator, source: []const u8, file: []const u8, diag: *base.Diagnostic) Error!Node {
        if (depthOf(source) > max_depth) {
            diag.set("{s}: nested deeper than {d} levels", .{ file, max_depth });
            return error.InvalidTokenizer;
        }
        const value = std.json.parseFromSliceLeaky(std.json.Value, arena, source, .{ .allocate = .alloc_if_needed }) catch |err| switch (err) {
            error.OutOfMemory => return error.OutOfMemory,
            else => {
                diag.set("{s}: not valid JSON: {s}", .{ file, switch (err) {
                    error.UnexpectedEndOfInput => "it ends too early",
                    error.DuplicateField => "it has a key twice",
                    else => "a sign is where it cannot be",
                } });
                return error.InvalidTokenizer;
            },
        };
        const root: Node = .{ .value = value, .file = file, .name = "the file", .diag = diag };
        _ = try root.object();
        return root;
    }

    fn wrong(self: Node, name: []const u8, expected: []const u8) Error {
        self.diag.set("{s}: {s} must be {s}", .{ self.file, name, expected });
        return error.InvalidTokenizer;
    }

    /// Another value of the same file, standing in the field `name`.
    pub fn at(self: Node, value: std.json.Value, name: []const u8) Node {
        return .{ .value = value, .file = self.file, .name = name, .diag = self.diag };
    }

    pub fn object(self: Node) Error!std.json.ObjectMap {
        return if (self.value == .object) self.value.object else self.wrong(self.name, "an object");
    }

    pub fn array(self: Node) Error![]const std.json.Value {
        return if (self.value == .array) self.value.array.items else self.wrong(self.name, "a list");
    }

    /// The field `name`; null when it is missing or null.
    pub fn child(self: Node, name: []const u8) Error!?Node {
        const value = (try self.object()).get(name) orelse return null;
        return if (value == .null) null else self.at(value, name);
    }

    pub fn required(self: Node, name: []const u8) Error!Node {
        return try self.child(name) orelse {
            self.diag.set("{s}: {s} has no field {s}", .{ self.file, self.name, name });
            return error.InvalidTokenizer;
        };
    }

    pub fn text(self: Node, name: []const u8) Error!?[]const u8 {
        const node = try self.child(name) orelse return null;
        return if (node.value == .string) node.value.string else self.wrong(name, "a text");
    }

    pub fn requiredText(self: Node, name: []const u8) Error![]const u8 {
        const node = try self.required(name);
        return if (node.value == .string) node.value.string else self.wrong(name, "a text");
    }

    pub fn flag(self: Node, name: []const u8) Error!?bool {
        const node = try self.child(name) orelse return null;
        return if (node.value == .bool) node.value.bool else self.wrong(name, "true or false");
    }

    pub fn number(self: Node, name: []const u8) Error!?f64 {
        const node = try self.child(name) orelse return null;
        return switch (node.value) {
            .integer => |i| @floatFromInt(i),
            .float => |f| f,
            else => self.wrong(name, "a number"),
        };
    }

    pub fn id(self: Node, name: []const u8) Error!?u32 {
        const node = try self.child(name) orelse return null;
        if (node.value != .integer or node.value.integer < 0 or node.value.integer >= std.math.maxInt(u32))
            return self.wrong(name, "a whole number from 0");
        return @intCast(node.value.integer);
    }
};

/// Deepest nesting of brackets outside strings.
fn depthOf(text: []const u8) usize {
    var depth: usize = 0;
    var deepest: usize = 0;
    var quoted = false;
    var i: usize = 0;
    while (i < text.len) : (i += 1) switch (text[i]) {
        '"' => quoted = !quoted,
        '\\' => if (quoted) {
            i += 1;
        },
        '[', '{' => if (!quoted) {
            depth += 1;
            deepest = @max(deepest, depth);
        },
        ']', '}' => if (!quoted) {
            depth -|= 1;
        },
        else => {},
    };
    return deepest;
}

test "depth counts brackets outside strings only" {
    try std.testing.expectEqual(2, depthOf("{\"a[[[\\\"[\": [1]}"));
    var diag: base.Diagnostic = .{};
    const deep: [200]u8 = @splat('[');
    try std.testing.expectError(error.InvalidTokenizer, Node.parse(std.testing.allocator, &deep, "x.json", &diag));
    try std.testing.expectEqualStrings("x.json: nested deeper than 64 levels", diag.text());
}
