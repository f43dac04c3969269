//! Where no token reaches across, so that merging need not look across either.
//!
//! A merge makes a token; a token that lies over a border in a text has the same bytes on both sides. If no token of the
//! vocabulary has what stands on both sides, no merge crosses, and the two sides may be merged apart, with the same
//! ids. What is kept is a superset of what tokens have: too much costs a cut, never an id.

const std = @import("std");
const unicode = @import("unicode.zig");

const Allocator = std.mem.Allocator;

pub const Borders = struct {
    /// `joined[a]` holds b when some token has the byte b right after a.
    joined: [256]Bytes = @splat(.empty),
    /// The same for the border between two characters beyond ASCII of which the token has one only in part.
    partial: [256]Bytes = @splat(.empty),
    /// Hashes of the pairs of whole characters beyond ASCII that stand side by side in some token.
    pairs: []u64 = &.{},

    const Bytes = std.bit_set.Static(256);
    const hash_bits = 20;

    pub fn init(arena: Allocator) !Borders {
        const pairs = try arena.alloc(u64, (1 << hash_bits) / 64);
        @memset(pairs, 0);
        return .{ .pairs = pairs };
    }

    pub fn addToken(self: *Borders, text: []const u8) void {
        for (1..text.len) |at| {
            self.joined[text[at - 1]].set(text[at]);
            if (!between(text[at - 1], text[at])) continue;
            const left = lastChar(text[0..at]);
            const right = firstChar(text[at..]);
            if (left == null or right == null) {
                self.partial[text[at - 1]].set(text[at]);
            } else {
                const hash = hashOf(left.?, right.?);
                self.pairs[hash >> 6] |= @as(u64, 1) << @truncate(hash);
            }
        }
    }

    /// The first border after `from` that no token reaches across, or the end.
    pub fn next(self: *const Borders, text: []const u8, from: usize) usize {
        var at = from + 1;
        while (at < text.len) : (at += 1) {
            if (!self.joined[text[at - 1]].isSet(text[at])) return at;
            if (!between(text[at - 1], text[at]) or self.partial[text[at - 1]].isSet(text[at])) continue;
            const left = lastChar(text[from..at]) orelse continue;
            const right = firstChar(text[at..]) orelse continue;
            const hash = hashOf(left, right);
            if (self.pairs[hash >> 6] >> @truncate(hash) & 1 == 0) return at;
        }
        return text.len;
    }

    /// Whether this border is one between characters beyond ASCII.
    fn between(before: u8, after: u8) bool {
        return before & 0xC0 == 0x80 and after >= 0xC0;
    }

    /// The bytes of the character that ends the text, when all of them are there.
    fn lastChar(text: []const u8) ?u32 {
        var len: usize = 1;
        while (len < text.len and len < 4 and text[text.len - len] & 0xC0 == 0x80) len += 1;
        return firstCharOf(text[text.len - len ..], len);
    }

    fn firstChar(text: []const u8) ?u32 {
        const len: usize = unicode.decode(text).len;
        return if (len == 1) null else firstCharOf(text, len);
    }

    fn firstCharOf(text: []const u8, len: usize) ?u32 {
        const got = unicode.decode(text);
        return if (got.len == len and got.code < unicode.invalid_base) got.code else null;
    }

    fn hashOf(left: u32, right: u32) u32 {
        const mixed = (@as(u64, left) << 32 | right) *% 0x9E37_79B9_7F4A_7C15;
        return @intCast(mixed >> (64 - hash_bits));
    }
};

test "text is cut where no token reaches across, and nowhere else" {
    var arena_state: std.heap.ArenaAllocator = .init(std.testing.allocator);
    defer arena_state.deinit();
    var borders: Borders = try .init(arena_state.allocator());
    for ([_][]const u8{ "ab", "bc", "中国", "国\xe4", "\xad天" }) |text| borders.addToken(text);
    const cases = .{
        .{ "abc", 3 }, .{ "acb", 1 }, .{ "ba", 1 },
        .{ "中国", 6 },
        .{ "国中国", 9 }, // 国\xe4 is the beginning of 国中.
        .{ "国家", 3 },
        .{ "中天", 6 }, // \xad天 is its end.
        .{ "é国", 1 }, // Not even within a character.
    };
    inline for (cases) |case| try std.testing.expectEqual(case[1], borders.next(case[0], 0));
}
