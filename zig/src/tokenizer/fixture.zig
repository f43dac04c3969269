//! A small hostile byte-level vocabulary for this layer's tests; imported from tests only.
//!
//! Hostile, because its merges spell out a control token: text must still never become it.

const std = @import("std");
const base = @import("base");
const bpe = @import("bpe.zig");
const byte_level = @import("byte_level.zig");

/// Ids 0–255 are the bytes; then what these pairs make, in order; then the specials.
const pairs = [_][2][]const u8{
    .{ "h", "e" },         .{ "l", "l" }, .{ "he", "ll" }, .{ "hell", "o" },
    .{ "Ġ", "w" },
    .{ "<", "|" },         .{ "|", ">" }, .{ "i", "m" },   .{ "<|", "im" },
    .{ "_", "end" },       .{ "e", "n" }, .{ "en", "d" },  .{ "<|im", "_end" },
    .{ "<|im_end", "|>" }, .{ "a", "a" }, .{ "aa", "aa" },
    .{ "Ċ", "Ċ" },
    .{ "us", "er" },       .{ "u", "s" }, .{ "e", "r" },
};

pub const specials = [_][]const u8{ "<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>", "<|call|>" };

/// A tokenizer over this vocabulary with the pre-tokenizer called `pre` in GGUF. The caller frees it.
pub fn make(gpa: std.mem.Allocator, pre: []const u8) !bpe.Tokenizer {
    var arena_state: std.heap.ArenaAllocator = .init(gpa);
    defer arena_state.deinit();
    const arena = arena_state.allocator();

    var tokens: std.ArrayList([]const u8) = .empty;
    var types: std.ArrayList(i32) = .empty;
    var merges: std.ArrayList([]const u8) = .empty;
    for (0..256) |byte| try tokens.append(arena, try byte_level.toPrintable(arena, &.{@intCast(byte)}));
    for (pairs) |pair| {
        try tokens.append(arena, try std.mem.concat(arena, u8, &pair));
        try merges.append(arena, try std.fmt.allocPrint(arena, "{s} {s}", .{ pair[0], pair[1] }));
    }
    try types.appendNTimes(arena, 1, tokens.items.len);
    for (tokens.items, types.items) |text, *kind| if (std.mem.eql(u8, text, "<|im_end|>")) {
        kind.* = 3;
    };
    for (specials) |text| try tokens.append(arena, text);
    try types.appendNTimes(arena, 3, specials.len);
    try tokens.append(arena, "<think>");
    try types.append(arena, 4);

    var diag: base.Diagnostic = .{};
    const first: u32 = 256 + pairs.len;
    return bpe.Tokenizer.fromGguf(gpa, .{
        .model = "gpt2",
        .pre = pre,
        .tokens = tokens.items,
        .token_types = types.items,
        .merges = merges.items,
        .bos = first,
        .eos = first + 1,
    }, &diag);
}
