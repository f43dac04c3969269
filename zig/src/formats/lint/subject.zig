//! The file under examination: its keys and tensors as they would be written anew.
//!
//! Every check reads them here and, where it can mend what it found, changes them here; so later checks meet the mended value, and what
//! `--fix` writes is simply what stands here in the end. Does not know: what is right.

const std = @import("std");
const base = @import("base");
const gguf = @import("../gguf.zig");
const gguf_rewrite = @import("../gguf_rewrite.zig");
const report_file = @import("report.zig");
const Tensor = gguf_rewrite.Tensor;

/// Architectures whose keys and tensors are compared with a table.
pub const Architecture = enum {
    llama,
    qwen2,
    qwen3,
    smollm3,
    @"gpt-oss",
};

pub const Subject = struct {
    arena: std.mem.Allocator,
    report: *report_file.Report,
    keys: gguf_rewrite.Keys = .empty,
    tensors: std.ArrayList(Tensor) = .empty,
    tensor_index: std.StringHashMapUnmanaged(u32) = .empty,
    /// `general.architecture`, whatever it is.
    named: []const u8 = "",
    architecture: ?Architecture = null,

    pub fn get(self: *const Subject, key: []const u8) ?gguf.Value {
        return self.keys.get(key);
    }

    pub fn put(self: *Subject, key: []const u8, value: gguf.Value) error{OutOfMemory}!void {
        try self.keys.put(self.arena, try self.arena.dupe(u8, key), value);
    }

    pub fn remove(self: *Subject, key: []const u8) void {
        _ = self.keys.orderedRemove(key);
    }

    pub fn text(self: *const Subject, key: []const u8) ?[]const u8 {
        return switch (self.get(key) orelse return null) {
            .string => |s| s,
            else => null,
        };
    }

    /// The list under this key, if its elements are of this type.
    pub fn array(self: *const Subject, key: []const u8, element: gguf.ValueType) ?gguf.Array {
        return switch (self.get(key) orelse return null) {
            .array => |a| if (a.element == element) a else null,
            else => null,
        };
    }

    pub fn whole(self: *const Subject, key: []const u8) ?u32 {
        return switch (self.get(key) orelse return null) {
            .u32 => |n| n,
            else => null,
        };
    }

    pub fn flag(self: *const Subject, key: []const u8) ?bool {
        return switch (self.get(key) orelse return null) {
            .bool => |b| b,
            else => null,
        };
    }

    pub const KeyBuffer = [256]u8;

    /// `A.suffix`; cut where the architecture's name is longer than any.
    pub fn keyOf(self: *const Subject, buffer: *KeyBuffer, suffix: []const u8) []const u8 {
        return std.fmt.bufPrint(buffer, "{s}.{s}", .{ self.named[0..@min(self.named.len, 128)], suffix }) catch unreachable; // 128 + 1 + less than 100.
    }

    /// `A.suffix` as a whole number. A list counts where all its numbers agree.
    pub fn number(self: *const Subject, suffix: []const u8) ?u32 {
        var buffer: KeyBuffer = undefined;
        return switch (self.get(self.keyOf(&buffer, suffix)) orelse return null) {
            .u32 => |n| n,
            .array => |a| same(a),
            else => null,
        };
    }

    fn same(a: gguf.Array) ?u32 {
        if (a.count == 0 or (a.element != .u32 and a.element != .i32)) return null;
        const first = base.bytes.at(u32, a.raw, 0);
        for (1..a.count) |i| if (base.bytes.at(u32, a.raw, i) != first) return null;
        return first;
    }

    pub fn has(self: *const Subject, suffix: []const u8) bool {
        var buffer: KeyBuffer = undefined;
        return self.get(self.keyOf(&buffer, suffix)) != null;
    }

    /// `A.suffix` as f32.
    pub fn real(self: *const Subject, suffix: []const u8) ?f32 {
        var buffer: KeyBuffer = undefined;
        return switch (self.get(self.keyOf(&buffer, suffix)) orelse return null) {
            .f32 => |x| x,
            else => null,
        };
    }

    pub fn addTensor(self: *Subject, t: Tensor) error{OutOfMemory}!void {
        const slot = try self.tensor_index.getOrPut(self.arena, t.name);
        if (!slot.found_existing) slot.value_ptr.* = @intCast(self.tensors.items.len);
        try self.tensors.append(self.arena, t);
    }

    /// After names were changed.
    pub fn replaceTensors(self: *Subject, list: []const Tensor) error{OutOfMemory}!void {
        self.tensors.clearRetainingCapacity();
        self.tensor_index.clearRetainingCapacity();
        for (list) |t| try self.addTensor(t);
    }

    pub fn tensor(self: *const Subject, name: []const u8) ?*Tensor {
        return &self.tensors.items[self.tensor_index.get(name) orelse return null];
    }

    pub const NameBuffer = [96]u8;

    /// `blk.N.suffix`.
    pub fn inLayer(self: *const Subject, layer: usize, suffix: []const u8) ?*Tensor {
        var buffer: NameBuffer = undefined;
        return self.tensor(std.fmt.bufPrint(&buffer, "blk.{d}.{s}", .{ layer, suffix }) catch return null);
    }

    /// A list of strings as GGUF keeps it.
    pub fn packStrings(self: *const Subject, list: []const []const u8) error{OutOfMemory}!gguf.Value {
        var raw: std.ArrayList(u8) = .empty;
        for (list) |item| {
            try base.bytes.append(u64, self.arena, &raw, item.len);
            try raw.appendSlice(self.arena, item);
        }
        return .{ .array = .{ .element = .string, .count = list.len, .raw = raw.items } };
    }

    pub fn packNumbers(self: *const Subject, comptime T: type, list: []const T) error{OutOfMemory}!gguf.Value {
        var raw: std.ArrayList(u8) = .empty;
        for (list) |item| try base.bytes.append(T, self.arena, &raw, item);
        const element: gguf.ValueType = @field(gguf.ValueType, @typeName(T));
        return .{ .array = .{ .element = element, .count = list.len, .raw = raw.items } };
    }
};
