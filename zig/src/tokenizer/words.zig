//! Pieces of text that are known: whole tokens of a vocabulary, and pieces met before with their ids.
//!
//! A piece of up to 15 bytes is its own key: the bytes and, in the last byte, their number, 128 bits that are compared
//! as a whole, so a find is exact whatever the hash. `Words` is built with the tokenizer and only read; `Cache` belongs to
//! one thread's scratch, has a fixed size and forgets what is seldom used.
//! Does not know: how a piece is cut or merged.

const std = @import("std");

const Allocator = std.mem.Allocator;

/// Longest piece that is a key of `Words` and of the first half of `Cache`.
pub const short_max = 15;
/// Longest piece that `Cache` keeps.
pub const long_max = 31;

pub const Key = u128;

const masks: [16]Key = blk: {
    var out: [16]Key = undefined;
    for (&out, 0..) |*mask, n| mask.* = (@as(Key, 1) << (8 * n)) - 1;
    break :blk out;
};

/// Sixteen bytes. As a pointer to an integer: an array that is cast becomes sixteen loads.
inline fn load(text: [*]const u8) Key {
    return @as(*align(1) const Key, @ptrCast(text)).*;
}

/// Key of the piece of `len` bytes at `text`, of which 16 bytes can be read.
pub inline fn keyOf(text: [*]const u8, len: usize) Key {
    return (load(text) & masks[len]) | @as(Key, len) << 120;
}

/// The same for a piece at the end of its text.
pub fn keyOfSlice(piece: []const u8) Key {
    var padded: [16]u8 = @splat(0);
    @memcpy(padded[0..piece.len], piece);
    padded[15] = @intCast(piece.len);
    return @bitCast(padded);
}

pub inline fn hashOf(key: Key) u64 {
    const product = std.math.mulWide(u64, @as(u64, @truncate(key)) ^ 0x9E37_79B9_7F4A_7C15, @as(u64, @truncate(key >> 64)) ^ 0xD6E8_FEB8_6659_FD93);
    return @as(u64, @truncate(product)) ^ @as(u64, @truncate(product >> 64));
}

/// Whole tokens of up to `short_max` bytes. Slots hold an id and a part of the hash, keys stand in the order of ids, where
/// often used ones are near each other.
pub const Words = struct {
    /// 0 = empty; else id + 1, below `1 << id_bits`, and the tag above. At most half are in use.
    slots: []u32 = &.{},
    keys: []Key = &.{},
    id_bits: u5 = 0,

    /// For up to `count` keys with ids below `ids`, which is below 2³⁰.
    pub fn init(arena: Allocator, count: usize, ids: usize) !Words {
        const slots = try arena.alloc(u32, std.math.ceilPowerOfTwoAssert(usize, @max(count * 2, 16)));
        @memset(slots, 0);
        const keys = try arena.alloc(Key, ids);
        @memset(keys, 0);
        return .{ .slots = slots, .keys = keys, .id_bits = @intCast(std.math.log2_int(usize, ids + 1) + 1) };
    }

    /// A key that is not there yet.
    pub fn put(self: *Words, key: Key, id: u32) void {
        const hash = hashOf(key);
        var at = hash & (self.slots.len - 1);
        while (self.slots[at] != 0) at = (at + 1) & (self.slots.len - 1);
        self.slots[at] = (self.tagOf(hash) << self.id_bits) | (id + 1);
        self.keys[id] = key;
    }

    pub inline fn prefetch(self: *const Words, hash: u64) void {
        @prefetch(&self.slots[hash & (self.slots.len - 1)], .{});
    }

    /// An id whose key may be the one with this hash: when it is not, `find` knows.
    pub inline fn candidate(self: *const Words, hash: u64) u32 {
        const tag = self.tagOf(hash);
        var at = hash & (self.slots.len - 1);
        while (true) : (at = (at + 1) & (self.slots.len - 1)) {
            const slot = self.slots[at];
            if (slot == 0) return 0;
            if (slot >> self.id_bits == tag) return (slot & (@as(u32, 1) << self.id_bits) - 1) - 1;
        }
    }

    pub inline fn find(self: *const Words, key: Key, hash: u64) ?u32 {
        const tag = self.tagOf(hash);
        var at = hash & (self.slots.len - 1);
        while (true) : (at = (at + 1) & (self.slots.len - 1)) {
            const slot = self.slots[at];
            if (slot == 0) return null;
            if (slot >> self.id_bits != tag) continue;
            const id = (slot & (@as(u32, 1) << self.id_bits) - 1) - 1;
            if (self.keys[id] == key) return id;
        }
    }

    inline fn tagOf(self: *const Words, hash: u64) u32 {
        return @truncate((hash >> 32) >> self.id_bits);
    }
};

/// Pieces met before. Two places for each hash: a newcomer takes the second and moves to the first when met again.
pub const Cache = struct {
    short: []align(64) [2]Short,
    long: []align(64) [2]Long,
    /// Ids of pieces that have more than an entry holds.
    pool: []u32,
    pool_len: usize = 0,

    /// `count` above what fits: `ids[0]` is where they stand in the pool.
    pub const Short = extern struct {
        key: Key,
        ids: [3]u32,
        count: u32,

        pub const room = 3;
    };
    pub const Long = extern struct {
        key: [2]Key,
        ids: [7]u32,
        count: u32,

        pub const room = 7;
    };

    const short_sets = 1 << 14;
    const long_sets = 1 << 11;
    const pool_size = 1 << 15;

    pub fn init(gpa: Allocator) !Cache {
        const short = try gpa.alignedAlloc([2]Short, .@"64", short_sets);
        errdefer gpa.free(short);
        const long = try gpa.alignedAlloc([2]Long, .@"64", long_sets);
        errdefer gpa.free(long);
        var self: Cache = .{ .short = short, .long = long, .pool = try gpa.alloc(u32, pool_size) };
        self.clear();
        return self;
    }

    pub fn deinit(self: *Cache, gpa: Allocator) void {
        gpa.free(self.short);
        gpa.free(self.long);
        gpa.free(self.pool);
    }

    pub fn clear(self: *Cache) void {
        @memset(std.mem.sliceAsBytes(self.short), 0);
        @memset(std.mem.sliceAsBytes(self.long), 0);
        self.pool_len = 0;
    }

    pub inline fn shortSet(self: *Cache, hash: u64) *[2]Short {
        return &self.short[hash & (short_sets - 1)];
    }

    pub inline fn longSet(self: *Cache, key: [2]Key) *[2]Long {
        const hash = hashOf(key[0]) ^ std.math.rotl(u64, hashOf(key[1]), 17);
        return &self.long[hash & (long_sets - 1)];
    }

    /// Ids of an entry with more than fit in it.
    pub fn pooled(self: *const Cache, entry: anytype) []const u32 {
        return self.pool[entry.ids[0]..][0..entry.count];
    }

    /// Remembers `ids`, of which there is at least one, in the second place of `set`. Without room nothing is done.
    pub fn insert(self: *Cache, set: anytype, key: anytype, ids: []const u32) void {
        const entry = &set[1];
        const room = @TypeOf(entry.*).room;
        if (ids.len <= room) {
            @memcpy(entry.ids[0..ids.len], ids);
        } else {
            if (self.pool_len + ids.len > self.pool.len) return;
            @memcpy(self.pool[self.pool_len..][0..ids.len], ids);
            entry.ids[0] = @intCast(self.pool_len);
            self.pool_len += ids.len;
        }
        entry.key = key;
        entry.count = @intCast(ids.len);
    }
};

/// Key of a piece of 16 to `long_max` bytes of which 32 bytes can be read.
pub inline fn longKeyOf(text: [*]const u8, len: usize) [2]Key {
    return .{ load(text), keyOf(text + 16, len - 16) };
}

pub fn longKeyOfSlice(piece: []const u8) [2]Key {
    return .{ load(piece.ptr), keyOfSlice(piece[16..]) };
}

test "a key is the piece, at the end of a text and elsewhere" {
    const text = "abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnop";
    for (1..short_max + 1) |n| {
        try std.testing.expectEqual(keyOfSlice(text[3..][0..n]), keyOf(text[3..].ptr, n));
        for (1..n) |fewer| try std.testing.expect(keyOfSlice(text[0..n]) != keyOfSlice(text[0..fewer]));
    }
    for (short_max + 1..long_max + 1) |n| try std.testing.expectEqual(longKeyOfSlice(text[1..][0..n]), longKeyOf(text[1..].ptr, n));
    try std.testing.expect(keyOfSlice("a") != keyOfSlice("a\x00"));
}

test "words are found after many were put in, others are not" {
    var arena_state: std.heap.ArenaAllocator = .init(std.testing.allocator);
    defer arena_state.deinit();
    var words: Words = try .init(arena_state.allocator(), 1000, 1000);
    var buffer: [8]u8 = undefined;
    for (0..1000) |i| words.put(keyOfSlice(std.fmt.bufPrint(&buffer, "w{d}", .{i}) catch unreachable), @intCast(i));
    for (0..1200) |i| {
        const key = keyOfSlice(std.fmt.bufPrint(&buffer, "w{d}", .{i}) catch unreachable);
        try std.testing.expectEqual(if (i < 1000) @as(?u32, @intCast(i)) else null, words.find(key, hashOf(key)));
    }
}

test "the cache gives back what was put in, beyond an entry's room too" {
    const gpa = std.testing.allocator;
    var cache: Cache = try .init(gpa);
    defer cache.deinit(gpa);

    const key = keyOfSlice("piece");
    const set = cache.shortSet(hashOf(key));
    cache.insert(set, key, &.{ 7, 8 });
    try std.testing.expectEqual(key, set[1].key);
    try std.testing.expectEqualSlices(u32, &.{ 7, 8 }, set[1].ids[0..set[1].count]);
    cache.insert(set, key, &.{ 1, 2, 3, 4, 5 });
    try std.testing.expectEqualSlices(u32, &.{ 1, 2, 3, 4, 5 }, cache.pooled(set[1]));
}
