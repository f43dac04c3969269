//! The merges of a byte-level vocabulary as kernels read them: only those that are ever reached, numbered in their order.
//!
//! A merge is reached when it is the last of those that make its token out of bytes: what happens between two borders that no
//! merge has crossed yet depends on nothing beyond them, so two symbols meet in a text as they meet in the text of just
//! their bytes. Vocabularies made from ranks list every split of every token; one of each is left. Whether a token
//! is reached at all comes out as well.
//! Does not know: texts, pieces.

const std = @import("std");
const kernels = @import("kernels");
const byte_level = @import("byte_level.zig");
const merge = @import("merge.zig");
const Parts = @import("parts.zig").Parts;

const Allocator = std.mem.Allocator;
const Joins = kernels.merge_args.Joins;
const bucket_slots = kernels.merge_args.bucket_slots;

pub const Table = struct {
    joins: Joins = .{ .slots = &no_slots, .halves = &no_halves, .of_bytes = &nothing, .ids = &nothing, .chars = null, .bucket_mask = 0, .symbol_bits = 1 },
    /// Ids that the bytes of their token become.
    reached: std.bit_set.Dynamic = .{},
    /// How many there are.
    symbols: usize = 0,

    const no_slots: [1][bucket_slots]u32 align(64) = @splat(@splat(Joins.empty));
    const no_halves: [1]u64 = .{no_pair};
    const no_pair = std.math.maxInt(u64);
    const nothing: [1]u32 = .{Joins.none};

    const Join = struct { number: u32, left: u32, right: u32, id: u32 };

    /// Null when there are more symbols than the table has room for.
    pub fn init(arena: Allocator, parts: *const Parts, ranked: *const merge.Ranked, byte_ids: *const [256]u32) !?Table {
        var self: Table = .{ .reached = try .initEmpty(arena, parts.tokens.len) };
        var list: std.ArrayList(Join) = .empty;
        defer list.deinit(arena);
        try self.collect(arena, &list, parts, ranked, byte_ids);
        if (list.items.len + 256 > Joins.most) return null;

        std.sort.pdq(Join, list.items, {}, struct {
            fn before(_: void, a: Join, b: Join) bool {
                return a.number < b.number;
            }
        }.before);
        const ids = try arena.alloc(u32, 256 + list.items.len);
        const symbols = try arena.alloc(u32, parts.tokens.len);
        defer arena.free(symbols);
        for (byte_ids, 0..) |id, byte| {
            ids[byte] = id;
            symbols[id] = @intCast(byte);
            self.reached.set(id);
        }
        for (list.items, 256..) |one, symbol| {
            ids[symbol] = one.id;
            symbols[one.id] = @intCast(symbol);
        }
        self.joins.symbol_bits = @as(u32, std.math.log2_int(usize, 256 + list.items.len)) + 1;
        const buckets = std.math.ceilPowerOfTwoAssert(usize, @max(list.items.len * 2 / bucket_slots, 1));
        const slots = try arena.alignedAlloc([bucket_slots]u32, .@"64", buckets);
        const halves = try arena.alloc(u64, @as(usize, 1) << @intCast(self.joins.symbol_bits));
        @memset(halves[0..256], no_pair);
        halves[halves.len - 1] = no_pair;
        @memset(slots, @splat(Joins.empty));
        self.joins.slots = slots.ptr;
        self.joins.bucket_mask = buckets - 1;
        self.joins.ids = ids.ptr;
        self.joins.halves = halves.ptr;
        for (list.items, halves[256..][0..list.items.len], 256..) |one, *pair, symbol| {
            pair.* = @as(u64, symbols[one.left]) << 32 | symbols[one.right];
            put(&self.joins, slots, symbols[one.left], symbols[one.right], @intCast(symbol));
        }

        const of_bytes = try arena.alloc(u32, 1 << 16);
        for (of_bytes, 0..) |*joined, i| joined.* = self.joins.find(@intCast(i >> 8), @intCast(i & 0xFF));
        self.joins.of_bytes = of_bytes.ptr;
        self.symbols = ids.len;
        return self;
    }

    fn put(joins: *const Joins, slots: [][bucket_slots]u32, left: u32, right: u32, joined: u32) void {
        const hash = Joins.hashOf(left, right);
        var bucket = joins.bucketOf(hash);
        while (true) : (bucket = (bucket + 1) & joins.bucket_mask) for (&slots[bucket]) |*slot| if (slot.* == Joins.empty) {
            slot.* = joins.slotOf(hash, joined);
            return;
        };
    }

    /// The last merge of each token that some merge makes, where the token is reached.
    fn collect(self: *Table, arena: Allocator, list: *std.ArrayList(Join), parts: *const Parts, ranked: *const merge.Ranked, byte_ids: *const [256]u32) !void {
        var scratch: merge.Scratch = .{};
        defer scratch.deinit(arena);
        var seen: std.bit_set.Dynamic = try .initEmpty(arena, parts.tokens.len);
        defer seen.deinit(arena);
        for (ranked.merges[0..ranked.count]) |made| {
            if (seen.isSet(made.id)) continue;
            seen.set(made.id);
            const text = try byte_level.toBytes(arena, parts.tokens[made.id].text) orelse continue;
            defer arena.free(text);
            scratch.symbols.clearRetainingCapacity();
            for (text, 0..) |byte, i| try scratch.symbols.append(arena, .{ .id = byte_ids[byte], .start = @intCast(i), .len = 1 });
            try merge.merge(ranked, arena, &scratch, text);
            if (scratch.symbols.items.len != 1 or scratch.symbols.items[0].id != made.id) continue;
            self.reached.set(made.id);
            try list.append(arena, .{ .number = ranked.numbers.get(scratch.last).?, .left = scratch.last[0], .right = scratch.last[1], .id = made.id });
        }
    }
};

test "of the ways to a token only the one that merging takes is left" {
    var arena_state: std.heap.ArenaAllocator = .init(std.testing.allocator);
    defer arena_state.deinit();
    const arena = arena_state.allocator();
    var byte_ids: [256]u32 = undefined;
    var tokens: [260]@import("parts.zig").Token = undefined;
    for (&byte_ids, tokens[0..256], 0..) |*id, *token, byte| {
        id.* = @intCast(byte);
        token.* = .{ .text = try byte_level.toPrintable(arena, &.{@intCast(byte)}) };
    }
    for (tokens[256..], [_][]const u8{ "ab", "bc", "abc", "cba" }) |*token, text| token.* = .{ .text = text };
    const parts: Parts = .{ .kind = .byte_level, .tokens = &tokens, .merges = .{ .ranked = &.{} } };
    var ranked: merge.Ranked = try .init(arena, 5);
    // a|bc comes first, but ab is joined before bc; no way leads to cba.
    ranked.put('a', 'b', .{ .place = 0, .id = 256 });
    ranked.put('b', 'c', .{ .place = 1, .id = 257 });
    ranked.put('a', 257, .{ .place = 2, .id = 258 });
    ranked.put(256, 'c', .{ .place = 3, .id = 258 });
    ranked.put('c', 258, .{ .place = 4, .id = 259 });
    const table = (try Table.init(arena, &parts, &ranked, &byte_ids)).?;
    for ([_]usize{ 256, 257, 258 }) |id| try std.testing.expect(table.reached.isSet(id));
    try std.testing.expect(!table.reached.isSet(259));
    try std.testing.expectEqual(256, table.joins.find('a', 'b'));
    try std.testing.expectEqual(Joins.none, table.joins.find('a', 257));
    try std.testing.expectEqual(258, table.joins.find(256, 'c'));
    try std.testing.expectEqual(258, table.joins.ids[258]);
}
