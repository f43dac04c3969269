//! Finds added tokens (control and user-defined ones) in raw text: leftmost, then longest.
//!
//! A token that the caller does not allow is found and stepped over, exactly as the reference tokenizer does:
//! its characters stay ordinary text and no shorter token inside it is looked for.

const std = @import("std");
const unicode = @import("unicode.zig");

pub const Added = struct {
    text: []const u8,
    id: u32,
    /// Control tokens are matched only when the caller parses special text.
    control: bool,
    lstrip: bool = false,
    rstrip: bool = false,
    /// Only where no character of a word is right before or after it.
    single_word: bool = false,
};

pub const Match = struct { start: usize, end: usize, id: u32 };

pub const Matcher = struct {
    /// Sorted by text, so that a walk over bytes narrows a range.
    tokens: []const Added = &.{},
    first: std.bit_set.StaticBitSet(256) = .empty,
    /// The different first bytes, when they are few enough to look for all at once; some may be there twice.
    firsts: ?[4]u8 = null,
    /// First two bytes of the tokens; every second byte for a token of one.
    pairs: []const std.bit_set.StaticBitSet(256) = &.{},

    /// Sorts `tokens` in place and keeps them.
    pub fn init(arena: std.mem.Allocator, tokens: []Added) !Matcher {
        std.sort.block(Added, tokens, {}, struct {
            fn less(_: void, a: Added, b: Added) bool {
                return std.mem.lessThan(u8, a.text, b.text);
            }
        }.less);
        var self: Matcher = .{ .tokens = tokens };
        const pairs = try arena.alloc(std.bit_set.StaticBitSet(256), if (tokens.len == 0) 0 else 256);
        @memset(pairs, .empty);
        for (tokens) |token| {
            std.debug.assert(token.text.len > 0);
            self.first.set(token.text[0]);
            if (token.text.len == 1) pairs[token.text[0]] = .full else pairs[token.text[0]].set(token.text[1]);
        }
        self.pairs = pairs;
        const different = self.first.count();
        if (different >= 1 and different <= 4) {
            var firsts: [4]u8 = @splat(tokens[0].text[0]);
            var each = self.first.iterator(.{});
            for (firsts[0..different]) |*byte| byte.* = @intCast(each.next().?);
            self.firsts = firsts;
        }
        return self;
    }

    /// The next place at or after `from` where a token may begin, or the end.
    fn candidate(self: *const Matcher, text: []const u8, from: usize) usize {
        var at = from;
        if (self.firsts) |firsts| {
            const V = @Vector(32, u8);
            while (at + 32 < text.len) {
                const v: V = text[at..][0..32].*;
                var found: u32 = 0;
                inline for (firsts) |byte| found |= @bitCast(v == @as(V, @splat(byte)));
                while (found != 0) : (found &= found - 1) {
                    const hit = at + @ctz(found);
                    if (self.pairs[text[hit]].isSet(text[hit + 1])) return hit;
                }
                at += 32;
            }
        }
        while (at < text.len) : (at += 1) {
            if (!self.first.isSet(text[at])) continue;
            if (at + 1 == text.len or self.pairs[text[at]].isSet(text[at + 1])) return at;
        }
        return at;
    }

    fn longestAt(self: *const Matcher, text: []const u8, at: usize) ?Added {
        var low: usize = 0;
        var high: usize = self.tokens.len;
        var best: ?Added = null;
        var depth: usize = 0;
        while (low < high and at + depth < text.len) : (depth += 1) {
            const byte = text[at + depth];
            low = self.bound(low, high, depth, byte);
            high = if (byte == 255) high else self.bound(low, high, depth, byte + 1);
            if (low < high and self.tokens[low].text.len == depth + 1) best = self.tokens[low];
        }
        return best;
    }

    /// First token in `low..high` whose byte at `depth` is at least `byte`. All share the bytes before `depth`.
    fn bound(self: *const Matcher, low: usize, high: usize, depth: usize, byte: u8) usize {
        var a = low;
        var b = high;
        while (a < b) {
            const middle = a + (b - a) / 2;
            const text = self.tokens[middle].text;
            if (text.len <= depth or text[depth] < byte) a = middle + 1 else b = middle;
        }
        return a;
    }

    /// The next match that begins at or after `from`; spaces that a token takes in reach back to `from` at most.
    pub fn next(self: *const Matcher, text: []const u8, from: usize, allow_control: bool) ?Match {
        if (self.tokens.len == 0) return null;
        var at = from;
        while (at < text.len) {
            at = self.candidate(text, at);
            if (at == text.len) return null;
            const token = self.longestAt(text, at) orelse {
                at += 1;
                continue;
            };
            const end = at + token.text.len;
            const within = token.single_word and (unicode.wordEnds(text, at) or unicode.wordBegins(text, end));
            if (within or (token.control and !allow_control)) {
                at = end;
                continue;
            }
            return .{
                .start = if (token.lstrip) @max(from, unicode.spacesBefore(text, at)) else at,
                .end = if (token.rstrip) unicode.spacesAfter(text, end) else end,
                .id = token.id,
            };
        }
        return null;
    }
};

test "the longest token at the leftmost place wins, a forbidden one is stepped over" {
    var tokens = [_]Added{
        .{ .text = "<|end|>", .id = 1, .control = true },
        .{ .text = "<|", .id = 2, .control = false },
        .{ .text = "<|end", .id = 3, .control = false },
        .{ .text = "x", .id = 4, .control = false, .lstrip = true, .rstrip = true },
    };
    var arena_state: std.heap.ArenaAllocator = .init(std.testing.allocator);
    defer arena_state.deinit();
    const matcher: Matcher = try .init(arena_state.allocator(), &tokens);
    try std.testing.expectEqual(Match{ .start = 1, .end = 8, .id = 1 }, matcher.next("a<|end|>x", 0, true).?);
    try std.testing.expectEqual(Match{ .start = 8, .end = 9, .id = 4 }, matcher.next("a<|end|>x", 0, false).?);
    try std.testing.expectEqual(Match{ .start = 0, .end = 5, .id = 3 }, matcher.next("<|end|", 0, false).?);
    try std.testing.expectEqual(Match{ .start = 1, .end = 6, .id = 4 }, matcher.next("a  x \n", 0, false).?);
    try std.testing.expectEqual(null, matcher.next("plain", 0, true));
}

test "a single word is not found within another" {
    var tokens = [_]Added{.{ .text = "cat", .id = 1, .control = false, .single_word = true, .lstrip = true }};
    var arena_state: std.heap.ArenaAllocator = .init(std.testing.allocator);
    defer arena_state.deinit();
    const matcher: Matcher = try .init(arena_state.allocator(), &tokens);
    for ([_][]const u8{ "cats", "acat", "_cat", "cat1", "écat", "cat中", "concatenate" }) |text| try std.testing.expectEqual(null, matcher.next(text, 0, true));
    try std.testing.expectEqual(Match{ .start = 5, .end = 9, .id = 1 }, matcher.next("catty cat, cat", 0, true).?);
    try std.testing.expectEqual(Match{ .start = 4, .end = 7, .id = 1 }, matcher.next("½²¼"[0..4] ++ "cat.", 0, true).?);
}
