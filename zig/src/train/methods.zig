//! What a run trains and by which objective, besides its configuration: `{"lora": {…}, "dpo": {…}}`.
//!
//! No `lora`: all weights are trained. No `dpo`: next-token targets. Does not know: what the tables mean.

const std = @import("std");
const base = @import("base");
const formats = @import("formats");
const LoraConfig = @import("lora.zig").LoraConfig;
const DpoConfig = @import("preference_config.zig").DpoConfig;

pub const Methods = struct {
    lora: ?LoraConfig = null,
    dpo: ?DpoConfig = null,
};

/// Tables whose strings live in their own arena.
pub const OwnedMethods = struct {
    arena: std.heap.ArenaAllocator,
    value: Methods,

    pub fn deinit(self: *OwnedMethods) void {
        self.arena.deinit();
        self.* = undefined;
    }
};

/// Reads the JSON object. On `InvalidConfiguration` `diag` names the key, the value and the rule.
pub fn parse(gpa: std.mem.Allocator, text: []const u8, diag: *base.Diagnostic) error{ InvalidConfiguration, OutOfMemory }!OwnedMethods {
    var arena: std.heap.ArenaAllocator = .init(gpa);
    errdefer arena.deinit();

    const a = arena.allocator();
    const copy = try a.dupe(u8, text); // Strings of the value point into the text.
    const value = formats.json.parse(a, copy, .{ .size_bytes = 1 << 20 }, diag) catch |err| {
        if (err == error.OutOfMemory) return error.OutOfMemory;
        return error.InvalidConfiguration;
    };
    if (value != .object) {
        diag.set("the methods of a run must be a JSON object with the tables lora and dpo", .{});
        return error.InvalidConfiguration;
    }
    var methods: Methods = .{};
    for (value.object.keys(), value.object.values()) |key, table| {
        if (std.mem.eql(u8, key, "lora")) {
            if (table != .null) methods.lora = try LoraConfig.parse(a, table, diag);
        } else if (std.mem.eql(u8, key, "dpo")) {
            if (table != .null) methods.dpo = try DpoConfig.parse(a, table, diag);
        } else {
            diag.set("\"{s}\" is no method of a run; there are lora and dpo", .{key});
            return error.InvalidConfiguration;
        }
    }
    return .{ .arena = arena, .value = methods };
}

const testing = std.testing;

test "tables are read, null is no table, and a strange one is named" {
    var diag: base.Diagnostic = .{};
    var both = try parse(testing.allocator, "{\"lora\": {\"r\": 3}, \"dpo\": {\"beta\": 0.2}}", &diag);
    defer both.deinit();

    try testing.expectEqual(3, both.value.lora.?.settings.r);
    try testing.expectEqual(0.2, both.value.dpo.?.beta);
    var none = try parse(testing.allocator, "{\"lora\": null}", &diag);
    defer none.deinit();

    try testing.expect(none.value.lora == null);
    try testing.expectError(error.InvalidConfiguration, parse(testing.allocator, "{\"kto\": {}}", &diag));
    try testing.expect(std.mem.find(u8, diag.text(), "\"kto\" is no method") != null);
}
