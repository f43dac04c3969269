//! What is known about each character of a byte-level vocabulary (kernels/chars.zig), and cutting of text by it.
//!
//! A border between two characters that no merge crosses, whatever is around it, is as good as the border of a piece: its two
//! sides have the same ids apart. Text in scripts beyond ASCII is mostly made of such short parts.
//! Only for vocabularies in which no merge uses what a later one makes. Does not know: ids.

const std = @import("std");
const kernels = @import("kernels");
const unicode = @import("unicode.zig");

const Allocator = std.mem.Allocator;
const Char = kernels.chars.Char;
const Joins = kernels.merge_args.Joins;
const Rule = kernels.text.Rule;

/// Bits of `Char.kinds`.
const letter = 1;
const starts_word = 2;
const ends_word = 4;
const lead = 8;
const mark = 16;
/// A number for the Digits pre-tokenizer and not for the expressions, or the other way round.
const odd_number = 32;

pub const Chars = struct {
    table: []const Char = &.{},
    /// Hashes of the neighbours that stand side by side, both whole, in some token.
    together: []u64 = &.{},

    const hash_bits = 20;

    /// Null when a merge uses what a later one makes. `symbols` is how many there are.
    pub fn init(arena: Allocator, joins: *const Joins, symbols: usize) !?Chars {
        for (256..symbols) |symbol| {
            const pair = joins.halves[symbol];
            if (pair >> 32 >= symbol or (pair & 0xFFFF_FFFF) >= symbol) return null;
        }
        const table = try arena.alloc(Char, kernels.chars.count);
        const together = try arena.alloc(u64, (1 << hash_bits) / 64);
        @memset(together, 0);
        @memset(table, .{ .symbol = Joins.none, .kinds = 0, .left = 0, .right = 0, .any_left = 0, .any_right = 0 });
        var self: Chars = .{ .table = table, .together = together };
        var prefixes: PartMap = .empty;
        var suffixes: PartMap = .empty;
        try self.indexMerges(arena, table, joins, symbols, &prefixes, &suffixes);
        for ([_]*PartMap{ &prefixes, &suffixes }) |map| {
            var parts = map.valueIterator();
            while (parts.next()) |part| std.sort.pdq(Part.At, part.list.items, {}, Part.At.before);
        }
        for (table, 0..) |*char, place| complete(char, kernels.chars.codeAt(place), joins, &prefixes, &suffixes);
        return self;
    }

    /// Merges that join a part of a character across its border, by that part.
    const Part = struct {
        any: u64 = 0,
        list: std.ArrayList(At) = .empty,

        const At = struct {
            symbol: u32,
            bit: u64,

            fn before(_: void, a: At, b: At) bool {
                return a.symbol < b.symbol;
            }
        };

        fn bitsBefore(self: *const Part, symbol: u32) u64 {
            var bits: u64 = 0;
            for (self.list.items) |at| {
                if (at.symbol >= symbol) break;
                bits |= at.bit;
            }
            return bits;
        }
    };
    const PartMap = std.AutoHashMapUnmanaged(u32, Part);

    fn indexMerges(self: *Chars, arena: Allocator, table: []Char, joins: *const Joins, symbols: usize, prefixes: *PartMap, suffixes: *PartMap) !void {
        const texts = try arena.alloc([]const u8, symbols);
        for (texts[0..256], 0..) |*text, byte| text.* = try arena.dupe(u8, &.{@intCast(byte)});
        for (texts[256..], 256..) |*text, symbol| {
            const pair = joins.halves[symbol];
            const left = texts[pair >> 32];
            const right = texts[pair & 0xFFFF_FFFF];
            text.* = try std.mem.concat(arena, u8, &.{ left, right });
            const number: u32 = @intCast(symbol);
            switch (endOf(left)) {
                .other => {},
                .part => |s| switch (beginningOf(right)) {
                    .other => {},
                    .part => |p| {
                        const bit = bitOf(s ^ std.math.rotl(u32, p, 13));
                        try note(arena, suffixes, s, number, bit);
                        try note(arena, prefixes, p, number, bit);
                    },
                    .whole => |c| {
                        const bit = bitOf(@intCast(c));
                        table[c].right |= bit;
                        table[c].any_right |= bit;
                        try note(arena, suffixes, s, number, bit);
                    },
                },
                .whole => |b| switch (beginningOf(right)) {
                    .other => {},
                    .part => |p| {
                        const bit = bitOf(@intCast(b));
                        table[b].left |= bit;
                        table[b].any_left |= bit;
                        try note(arena, prefixes, p, number, bit);
                    },
                    .whole => |c| {
                        const hash = hashOf(b, c);
                        self.together[hash >> 6] |= @as(u64, 1) << @truncate(hash);
                    },
                },
            }
        }
    }

    fn note(arena: Allocator, map: *PartMap, key: u32, symbol: u32, bit: u64) !void {
        const entry = try map.getOrPutValue(arena, key, .{});
        entry.value_ptr.any |= bit;
        try entry.value_ptr.list.append(arena, .{ .symbol = symbol, .bit = bit });
    }

    /// What the bytes become, and when which part of them stands at an edge.
    fn complete(char: *Char, code: u32, joins: *const Joins, prefixes: *const PartMap, suffixes: *const PartMap) void {
        if (code >= 0xD800 and code < 0xE000) return;
        char.kinds = kindsOf(code);
        var buffer: [4]u8 = undefined;
        const len = std.unicode.utf8Encode(@intCast(code), &buffer) catch return;
        const text = buffer[0..len];
        var parts: [4]u32 = undefined; // Symbols.
        for (text, parts[0..len]) |byte, *symbol| symbol.* = byte;
        for (1..len) |n| {
            if (prefixes.get(keyOf(text[0..n]))) |part| char.any_right |= part.any;
            if (suffixes.get(keyOf(text[n..]))) |part| char.any_left |= part.any;
        }
        var n: usize = len;
        var first: usize = 1; // Bytes of the first and of the last symbol.
        var last: usize = 1;
        while (n > 1) {
            var best: u32 = Joins.none;
            var at: usize = 0;
            for (parts[0 .. n - 1], parts[1..n], 0..) |a, b, i| {
                const joined = joins.find(a, b);
                if (joined >= best) continue;
                best = joined;
                at = i;
            }
            // Until then the parts at the edges were as they are; what stays, stays for ever.
            if (at == 0 or best == Joins.none) if (prefixes.get(keyOf(text[0..first]))) |part| {
                char.right |= part.bitsBefore(best);
            };
            if (at == n - 2 or best == Joins.none) if (suffixes.get(keyOf(text[len - last ..]))) |part| {
                char.left |= part.bitsBefore(best);
            };
            if (best == Joins.none) return;
            parts[at] = best;
            std.mem.copyForwards(u32, parts[at + 1 .. n - 1], parts[at + 2 .. n]);
            n -= 1;
            // Lengths follow from what is spelled: recount by walking the halves.
            first = lengthOf(joins, parts[0]);
            last = lengthOf(joins, parts[n - 1]);
        }
        char.symbol = parts[0];
    }

    fn lengthOf(joins: *const Joins, symbol: u32) usize {
        if (symbol < 256) return 1;
        const pair = joins.halves[symbol];
        return lengthOf(joins, @intCast(pair >> 32)) + lengthOf(joins, @truncate(pair));
    }

    fn kindsOf(code: u32) u32 {
        const class = unicode.classOf(code);
        var kinds: u32 = 0;
        if (class.isLetter()) kinds |= letter;
        if (class.startsWord()) kinds |= starts_word;
        if (class.endsWord()) kinds |= ends_word;
        if (class == .mark) kinds |= mark;
        if (unicode.isNumeric(.{ .code = code, .class = class, .len = 1 }) != (class == .number)) kinds |= odd_number;
        if (!class.isLetter() and class != .number and code != '\r' and code != '\n') kinds |= lead;
        return kinds;
    }

    inline fn bitOf(value: u32) u64 {
        return @as(u64, 1) << @intCast((value *% 0x9E37_79B1) >> 26);
    }

    inline fn hashOf(left: usize, right: usize) u32 {
        const mixed = (@as(u64, left) << 32 | right) *% 0x9E37_79B9_7F4A_7C15;
        return @intCast(mixed >> (64 - hash_bits));
    }

    fn keyOf(part: []const u8) u32 {
        var key: u32 = 0;
        for (part) |byte| key = key << 8 | byte;
        return key;
    }

    /// A whole character (its place), a part of one (its bytes), or neither.
    const Edge = union(enum) { whole: usize, part: u32, other };

    fn endOf(text: []const u8) Edge {
        var tail: usize = 0;
        while (tail < text.len and text[text.len - 1 - tail] & 0xC0 == 0x80) tail += 1;
        if (tail == text.len) return if (tail <= 3) .{ .part = keyOf(text) } else .other;
        if (tail > 3) return .other;
        return wholeOf(text[text.len - 1 - tail ..], true);
    }

    fn beginningOf(text: []const u8) Edge {
        const whole = wholeOf(text, false);
        if (whole != .other or text.len > 3) return whole;
        const wanted: usize = switch (text[0]) {
            0xC2...0xDF => 2,
            0xE0...0xEF => 3,
            0xF0...0xF4 => 4,
            else => return .other,
        };
        if (text.len >= wanted) return .other;
        for (text[1..]) |byte| if (byte & 0xC0 != 0x80) return .other;
        return .{ .part = keyOf(text) };
    }

    fn wholeOf(text: []const u8, all: bool) Edge {
        const got = kernels.chars.decode(text.ptr, text.len) orelse return .other;
        return if (!all or got.len == text.len) .{ .whole = got.place } else .other;
    }

    /// Whether some token has the two side by side. ASCII next to ASCII counts as if one had.
    inline fn meet(self: *const Chars, before: usize, after: usize) bool {
        const hash = hashOf(before, after);
        return @intFromBool(before | after < 0x80) | @as(u1, @truncate(self.together[hash >> 6] >> @truncate(hash))) != 0;
    }

    /// The pre-tokenizers' words, or a piece whose end is known.
    const Kind = enum { gpt2, smollm, tiktoken, cased, given };

    /// A word at `at`, cut: starts go to `starts`, from `n.*` on. Returns its end; null when it is not a word that is done here, and
    /// nothing has changed. Where there is no room for the next start it is not done either.
    pub fn word(self: *const Chars, rule: Rule, text: []const u8, at: usize, base: usize, starts: []u32, n: *usize) ?usize {
        return switch (rule) {
            .gpt2 => self.walk(.gpt2, false, text, at, text.len, base, starts, n),
            .smollm => self.walk(.smollm, false, text, at, text.len, base, starts, n),
            .llama3, .qwen2 => self.walk(.tiktoken, false, text, at, text.len, base, starts, n),
            .tekken => self.walk(.cased, false, text, at, text.len, base, starts, n),
            .o200k => self.walk(.cased, true, text, at, text.len, base, starts, n),
        };
    }

    /// The same for the piece `text[at..end]`.
    pub fn piece(self: *const Chars, text: []const u8, at: usize, end: usize, base: usize, starts: []u32, n: *usize) ?usize {
        return self.walk(.given, false, text, at, end, base, starts, n);
    }

    inline fn walk(self: *const Chars, comptime kind: Kind, comptime contracted: bool, text: []const u8, from: usize, end: usize, base: usize, starts: []u32, count: *usize) ?usize {
        const wanted: u32 = if (kind == .cased) ends_word else letter;
        var n = count.*;
        var at = from;
        var got = kernels.chars.decode(text.ptr + at, end - at) orelse return null;
        var before = &self.table[got.place];
        var seen = before.kinds;
        if (kind != .given and before.kinds & wanted == 0) {
            const may_lead = if (kind == .gpt2 or kind == .smollm) text[at] == ' ' else if (kind == .tiktoken and text[at] == '\'') false else before.kinds & (lead | mark) == lead;
            if (!may_lead or at + got.len >= end) return null;
            const next = kernels.chars.decode(text.ptr + at + got.len, end - at - got.len) orelse return null;
            if (self.table[next.place].kinds & wanted == 0) return null;
            seen = ends_word | starts_word;
            if (kind == .smollm and self.table[next.place].kinds & odd_number != 0) return null;
        } else if (kind == .cased and before.kinds & mark != 0) return null;
        if (kind == .smollm and before.kinds & odd_number != 0) return null;
        starts[n] = @intCast(at - base);
        n += 1;
        // Where the group of characters begins that may disturb each other, and whether that is so.
        var group_n = n;
        var parted = false;
        while (true) {
            at += got.len;
            if (at >= end) break;
            const place = got.place;
            got = kernels.chars.decode(text.ptr + at, end - at) orelse return null;
            const after = &self.table[got.place];
            if (kind == .smollm and after.kinds & odd_number != 0) return null;
            if (kind != .given and after.kinds & wanted == 0) {
                if (kind == .cased) {
                    // Capitals go on after letters that are of both kinds.
                    if (seen & starts_word != 0 and after.kinds & starts_word != 0) return null;
                    if (contracted and text[at] == '\'') return null;
                }
                break;
            }
            if (kind == .cased) seen &= after.kinds;
            if (n + 1 >= starts.len) return null;
            // Whether to cut is as good as random: no branches from here on.
            const apart = before.apart(after);
            parted = !apart and (parted or before.parted(after));
            n = if (parted) group_n else n; // What was cut since the group began was cut too soon.
            starts[n] = @intCast(at - base);
            n += @intFromBool(!parted) & @intFromBool(!self.meet(place, got.place));
            group_n = if (apart) n else group_n;
            before = after;
        }
        count.* = n;
        return at;
    }
};
