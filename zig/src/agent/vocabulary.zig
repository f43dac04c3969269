//! The tokenizer that lies in a GGUF file: its keys handed to the tokenizer layer, which judges them.

const std = @import("std");
const base = @import("base");
const formats = @import("formats");
const tokenizer = @import("tokenizer");

pub const Error = tokenizer.Error;

/// `file` may be closed afterwards. On failure `diag` names the key.
pub fn fromFile(gpa: std.mem.Allocator, file: *const formats.gguf.File, diag: *base.Diagnostic) Error!tokenizer.Tokenizer {
    var arena: std.heap.ArenaAllocator = .init(gpa);
    defer arena.deinit();

    const a = arena.allocator();
    const r: Reader = .{ .arena = a, .file = file, .diag = diag };
    const model = try r.optional([]const u8, "tokenizer.ggml.model") orelse {
        diag.set("key tokenizer.ggml.model is missing: the file has no tokenizer. Export the model again with its tokenizer", .{});
        return error.InvalidTokenizer;
    };
    const tokens = try r.texts("tokenizer.ggml.tokens") orelse {
        diag.set("key tokenizer.ggml.tokens is missing: the file has no vocabulary", .{});
        return error.InvalidTokenizer;
    };
    const merges = try r.texts("tokenizer.ggml.merges");
    // An empty list is a tokenizer of single letters; none at all is one that lost its merges.
    if (merges == null and std.mem.eql(u8, model, "gpt2")) {
        diag.set("key tokenizer.ggml.merges is missing: text would get other ids than in training. Export the model again with its tokenizer", .{});
        return error.InvalidTokenizer;
    }
    return tokenizer.Tokenizer.fromGguf(gpa, .{
        .model = model,
        .pre = try r.optional([]const u8, "tokenizer.ggml.pre") orelse "",
        .tokens = tokens,
        .token_types = try r.numbers(i32, "tokenizer.ggml.token_type"),
        .scores = try r.scores(),
        .merges = merges orelse &.{},
        .bos = try r.optional(u32, "tokenizer.ggml.bos_token_id"),
        .eos = try r.optional(u32, "tokenizer.ggml.eos_token_id"),
        .eot = try r.optional(u32, "tokenizer.ggml.eot_token_id"),
        .eom = try r.optional(u32, "tokenizer.ggml.eom_token_id"),
        .unknown = try r.optional(u32, "tokenizer.ggml.unknown_token_id"),
        .pad = try r.optional(u32, "tokenizer.ggml.padding_token_id"),
        .add_bos = try r.optional(bool, "tokenizer.ggml.add_bos_token"),
        .add_eos = try r.optional(bool, "tokenizer.ggml.add_eos_token"),
        .add_space_prefix = try r.optional(bool, "tokenizer.ggml.add_space_prefix"),
        .chat_template = try r.optional([]const u8, "tokenizer.chat_template"),
    }, diag);
}

/// What each of a model's `count` tokens adds to a text; empty for those that add nothing: markers, and what the tokenizer lacks.
/// The list is in `arena`, the texts are the tokenizer's.
pub fn texts(arena: std.mem.Allocator, words: *const tokenizer.Tokenizer, count: usize) error{OutOfMemory}![]const []const u8 {
    const list = try arena.alloc([]const u8, count);
    for (list, 0..) |*text, i| {
        const id: u32 = @intCast(i);
        text.* = if (words.isSkipped(id)) "" else words.bytesOf(id);
    }
    return list;
}

const Reader = struct {
    arena: std.mem.Allocator,
    file: *const formats.gguf.File,
    diag: *base.Diagnostic,

    fn optional(self: Reader, comptime T: type, key: []const u8) Error!?T {
        return self.file.optional(T, key, self.diag) catch error.InvalidTokenizer;
    }

    fn texts(self: Reader, key: []const u8) Error!?[][]const u8 {
        const array = self.file.optionalArray([]const u8, key, self.diag) catch return error.InvalidTokenizer;
        return try (array orelse return null).stringList(self.arena);
    }

    /// Some writers store whole numbers, which llama.cpp takes too.
    fn scores(self: Reader) Error![]f32 {
        const key = "tokenizer.ggml.scores";
        const value = self.file.get(key) orelse return &.{};
        if (value != .array or value.array.element != .i32) return self.numbers(f32, key);
        const list = try self.arena.alloc(f32, value.array.count);
        for (list, 0..) |*item, i| item.* = @floatFromInt(value.array.at(i32, i));
        return list;
    }

    /// Empty when the key is absent.
    fn numbers(self: Reader, comptime T: type, key: []const u8) Error![]T {
        const array = self.file.optionalArray(T, key, self.diag) catch return error.InvalidTokenizer;
        const present = array orelse return &.{};
        const list = try self.arena.alloc(T, present.count);
        for (list, 0..) |*item, i| item.* = present.at(T, i);
        return list;
    }
};
