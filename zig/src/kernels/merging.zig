//! Byte-pair merging of pieces of up to 254 bytes, many at a time.
//!
//! Merging is a chain of look-ups, each of which waits for memory, and how long a chain is nobody can predict. Pieces are therefore
//! merged in rounds, one join each: first every piece says which pair is the best and asks for the lines of memory where its new
//! neighbours are found, then every piece looks. A piece lives in vectors: lane i is the place of the pair that begins at
//! symbol i, with the lane's number in the low bits, so that the least lane says what is joined next and where.
//! Does not know: what a piece is, or what becomes of the ids.

const chars = @import("chars.zig");
const Joins = @import("merge_args.zig").Joins;

/// Longest pieces of `text_merge` and `text_merge_long`: with a border on each side they fill lanes and places.
pub const short_max = 15;
pub const long_max = 254;

const border = Joins.border;

/// What a join leaves to look up: the new symbol with what is before and after it.
const Asked = struct {
    at: u32,
    before: u32,
    joined: u32,
    left: u32,
    right: u32,
    hash_before: u64,
    hash_after: u64,

    inline fn init(joins: *const Joins, at: u32, before: u32, joined: u32, left: u32, right: u32) Asked {
        const asked: Asked = .{ .at = at, .before = before, .joined = joined, .left = left, .right = right, .hash_before = Joins.hashOf(left, joined), .hash_after = Joins.hashOf(joined, right) };
        joins.prefetch(asked.hash_before);
        joins.prefetch(asked.hash_after);
        return asked;
    }
};

/// Merges a group of pieces; `P` is `Piece` or `LongPiece`, begun.
inline fn rounds(comptime P: type, joins: *const Joins, pieces: []P) void {
    var active: [P.group]u8 = undefined;
    for (active[0..pieces.len], 0..) |*one, i| one.* = @intCast(i);
    var count = pieces.len;
    while (count > 0) {
        var left: usize = 0;
        for (active[0..count]) |i| {
            const piece = &pieces[i];
            const best = piece.least();
            active[left] = i; // Written whether it stays or not.
            left += @intFromBool(best < P.nothing);
        }
        count = left;
        for (active[0..count]) |i| pieces[i].join(joins);
        for (active[0..count]) |i| pieces[i].look(joins);
    }
}

const Piece = struct {
    places: V align(64),
    symbols: [lanes + 2]u32,
    /// Which places hold a symbol; the borders always do.
    alive: u64,
    best: u32,
    count: u32,
    asked: Asked,

    const group = 32;
    const lanes = 16;
    const lane_bits = 4;
    const V = @Vector(lanes, u32);
    const nothing: u32 = Joins.none << lane_bits;
    const numbers: V = numbers: {
        var out: [lanes]u32 = undefined;
        for (&out, 0..) |*number, lane| number.* = lane;
        break :numbers out;
    };

    inline fn begin(self: *Piece, joins: *const Joins, key: [*]const u8) void {
        const len: usize = key[short_max];
        const symbols = self.symbols[1..];
        const high = @as(*align(1) const u128, @ptrCast(key)).* & (0x80808080808080808080808080808080 >> 8);
        var places: [lanes]u32 = @splat(nothing);
        if (high == 0) {
            const bytes: @Vector(lanes, u8) = key[0..lanes].*;
            symbols[0..lanes].* = @as(V, bytes);
            for (1..len) |i| places[i] = joins.of_bytes[@as(usize, key[i - 1]) << 8 | key[i]] << lane_bits | @as(u32, @intCast(i));
            self.count = @intCast(len);
        } else {
            const count = chars.begin(joins, key, len, symbols);
            for (1..count) |i| joins.prefetch(Joins.hashOf(symbols[i - 1], symbols[i]));
            self.count = @intCast(count);
        }
        self.best = @intFromBool(high != 0); // Whether to look for pairs.
        self.places = places;
        self.alive = (@as(u64, 4) << @intCast(self.count)) - 1;
        self.symbols[0] = border;
        self.symbols[self.count + 1] = border;
    }

    inline fn beginLooking(self: *Piece, joins: *const Joins) void {
        if (self.best == 0) return;
        const symbols = self.symbols[1..];
        var places: [lanes]u32 = @splat(nothing);
        for (1..self.count) |i| places[i] = joins.find(symbols[i - 1], symbols[i]) << lane_bits | @as(u32, @intCast(i));
        self.places = places;
    }

    inline fn least(self: *Piece) u32 {
        self.best = @reduce(.Min, self.places);
        return self.best;
    }

    inline fn join(self: *Piece, joins: *const Joins) void {
        const i: u6 = @intCast(self.best & (lanes - 1));
        const joined = self.best >> lane_bits;
        self.symbols[i] = joined;
        const up_to: u64 = (@as(u64, 2) << i) - 1;
        const later = self.alive & ~up_to;
        const gone: u6 = @intCast(@ctz(later));
        self.alive &= ~(@as(u64, 1) << gone);
        const next: u6 = @intCast(@ctz(later & (later - 1)));
        const before: u6 = @intCast(63 - @clz(self.alive & (up_to >> 1)));
        self.places = @select(u32, numbers == @as(V, @splat(gone)), @as(V, @splat(nothing)), self.places);
        self.asked = .init(joins, i, before, joined, self.symbols[before], self.symbols[next]);
    }

    inline fn look(self: *Piece, joins: *const Joins) void {
        const asked = &self.asked;
        const with_next = joins.findAt(asked.hash_after, asked.joined, asked.right) << lane_bits | asked.at;
        const with_before = joins.findAt(asked.hash_before, asked.left, asked.joined) << lane_bits | asked.before;
        const places = @select(u32, numbers == @as(V, @splat(asked.at)), @as(V, @splat(with_next)), self.places);
        self.places = @select(u32, numbers == @as(V, @splat(asked.before)), @as(V, @splat(with_before)), places);
    }

    inline fn finish(self: *const Piece, joins: *const Joins, out: [*]u32) u8 {
        var alive = self.alive & ~@as(u64, 1);
        var n: u8 = 0;
        while (alive & (alive - 1) != 0) : (alive &= alive - 1) { // The last is the border.
            out[n] = joins.ids[self.symbols[@ctz(alive)]];
            n += 1;
        }
        return n;
    }
};

/// The same with memory instead of registers.
const LongPiece = struct {
    places: [lanes]u32 align(64),
    symbols: [lanes + 2]u32,
    /// Neighbours of a symbol that is alive; the borders are 0 and one after the last.
    after: [lanes + 2]u8,
    before: [lanes + 2]u8,
    vectors: usize,
    best: u32,
    asked: Asked,

    const group = 8;
    const lanes = 256;
    const lane_bits = 8;
    const nothing: u32 = Joins.none << lane_bits;
    const V = @Vector(16, u32);

    fn begin(self: *LongPiece, joins: *const Joins, text: [*]const u8, len: usize) void {
        const symbols = self.symbols[1..];
        const count = chars.begin(joins, text, len, symbols);
        self.vectors = count / 16 + 1;
        self.symbols[0] = border;
        self.symbols[count + 1] = border;
        self.places[0] = nothing;
        for (0..count + 1) |i| {
            self.after[i] = @intCast(i + 1);
            self.before[i + 1] = @intCast(i);
        }
        for (1..count) |i| self.places[i] = joins.findFirst(symbols[i - 1], symbols[i]) << lane_bits | @as(u32, @intCast(i));
        for (count..self.vectors * 16) |i| self.places[i] = nothing;
    }

    inline fn least(self: *LongPiece) u32 {
        const vectors: [*]const V = @ptrCast(&self.places);
        var lowest = vectors[0];
        for (1..self.vectors) |i| lowest = @min(lowest, vectors[i]);
        self.best = @reduce(.Min, lowest);
        return self.best;
    }

    inline fn join(self: *LongPiece, joins: *const Joins) void {
        const i: u32 = self.best & (lanes - 1);
        const joined = self.best >> lane_bits;
        self.symbols[i] = joined;
        const gone = self.after[i];
        const next = self.after[gone];
        self.after[i] = next;
        self.before[next] = @intCast(i);
        self.places[gone] = nothing;
        const before = self.before[i];
        self.asked = .init(joins, i, before, joined, self.symbols[before], self.symbols[next]);
    }

    inline fn look(self: *LongPiece, joins: *const Joins) void {
        const asked = &self.asked;
        self.places[asked.at] = joins.findAt(asked.hash_after, asked.joined, asked.right) << lane_bits | asked.at;
        self.places[asked.before] = joins.findAt(asked.hash_before, asked.left, asked.joined) << lane_bits | asked.before;
    }

    fn finish(self: *const LongPiece, joins: *const Joins, out: [*]u32) u32 {
        var at: usize = self.after[0];
        var n: u32 = 0;
        while (self.symbols[at] != border) : (at = self.after[at]) {
            out[n] = joins.ids[self.symbols[at]];
            n += 1;
        }
        return n;
    }
};

pub const Kernels = struct {
    /// Merges `count` pieces: 16 bytes each, the text and in the last byte how many bytes it has, 1 to 15; what is between is
    /// zero. The ids of piece i go to `ids[16 * i]` and on, their number to `counts[i]`.
    pub fn text_merge(joins: *const Joins, count: usize, keys: [*]const u8, ids: [*]u32, counts: [*]u8) callconv(.c) void {
        var room: [Piece.group]Piece = undefined;
        var done: usize = 0;
        while (done < count) {
            const n = @min(count - done, Piece.group);
            const pieces = room[0..n];
            for (pieces, done..) |*piece, i| piece.begin(joins, keys + 16 * i);
            for (pieces) |*piece| piece.beginLooking(joins);
            rounds(Piece, joins, pieces);
            for (pieces, done..) |*piece, i| counts[i] = piece.finish(joins, ids + 16 * i);
            done += n;
        }
    }

    /// Merges `count` pieces of 1 to 254 bytes. The ids of piece i go to `ids[i]`, where there is room for as many as it
    /// has bytes, their number to `counts[i]`.
    pub fn text_merge_long(joins: *const Joins, count: usize, texts: [*]const [*]const u8, lengths: [*]const u32, ids: [*]const [*]u32, counts: [*]u32) callconv(.c) void {
        var room: [LongPiece.group]LongPiece = undefined;
        var done: usize = 0;
        while (done < count) {
            const n = @min(count - done, LongPiece.group);
            const pieces = room[0..n];
            for (pieces, done..) |*piece, i| piece.begin(joins, texts[i], lengths[i]);
            rounds(LongPiece, joins, pieces);
            for (pieces, done..) |*piece, i| counts[i] = piece.finish(joins, ids[i]);
            done += n;
        }
    }
};
