//! Byte-pair merging of short pieces, many at a time.
//!
//! Merging is a chain of look-ups, each of which waits for memory. Several pieces are therefore merged in turns, one join
//! each: while one waits, the others go on. A piece lives in one vector: lane i is the place of the pair that begins
//! at symbol i, with the lane's number in the low bits, so that the least lane says what is joined next and where.
//! Does not know: what a piece is, or what becomes of the ids.

const chars = @import("chars.zig");
const Joins = @import("merge_args.zig").Joins;

/// Longest pieces of `text_merge` and `text_merge_long`: with a border on each side they fill lanes and places.
pub const short_max = 15;
pub const long_max = 254;

const border = Joins.border;
/// Pieces in turns.
const turns = 4;

const Piece = struct {
    places: V,
    /// Which places hold a symbol; the borders always do.
    alive: u64,
    /// Which piece of the list this is.
    index: usize,
    symbols: [lanes + 2]u32,

    const lanes = 16;
    const lane_bits = 4;
    const V = @Vector(lanes, u32);
    const nothing: u32 = Joins.none << lane_bits;

    inline fn begin(self: *Piece, joins: *const Joins, text: [*]const u8, len: usize, index: usize) void {
        self.index = index;
        const symbols = self.symbols[1..];
        const high = @as(*align(1) const u128, @ptrCast(text)).* & (0x80808080808080808080808080808080 >> 8);
        var count = len;
        if (high == 0) {
            for (0..len) |i| symbols[i] = text[i];
        } else count = chars.begin(joins, text, len, symbols);
        self.alive = (@as(u64, 4) << @intCast(count)) - 1;
        self.symbols[0] = border;
        self.symbols[count + 1] = border;
        var places: [lanes]u32 = @splat(nothing);
        if (high == 0) {
            for (1..len) |i| places[i] = joins.of_bytes[@as(usize, text[i - 1]) << 8 | text[i]] << lane_bits | @as(u32, @intCast(i));
        } else for (1..count) |i| {
            places[i] = joins.findFirst(symbols[i - 1], symbols[i]) << lane_bits | @as(u32, @intCast(i));
        }
        self.places = places;
    }

    /// Joins the best pair; false when there is none.
    inline fn step(self: *Piece, joins: *const Joins) bool {
        const best = @reduce(.Min, self.places);
        if (best >= nothing) return false;
        const i: u6 = @intCast(best & (lanes - 1));
        const joined = best >> lane_bits;
        self.symbols[i] = joined;
        const up_to: u64 = (@as(u64, 2) << i) - 1;
        const gone: u6 = @intCast(@ctz(self.alive & ~up_to));
        self.alive &= ~(@as(u64, 1) << gone);
        const next: u6 = @intCast(@ctz(self.alive & ~up_to));
        const before: u6 = @intCast(63 - @clz(self.alive & (up_to >> 1)));
        const with_next = joins.find(joined, self.symbols[next]) << lane_bits | i;
        const with_before = joins.find(self.symbols[before], joined) << lane_bits | before;
        const numbers = comptime numbers: {
            var out: [lanes]u32 = undefined;
            for (&out, 0..) |*number, lane| number.* = lane;
            break :numbers @as(V, out);
        };
        var places = self.places;
        places = @select(u32, numbers == @as(V, @splat(gone)), @as(V, @splat(nothing)), places);
        places = @select(u32, numbers == @as(V, @splat(i)), @as(V, @splat(with_next)), places);
        places = @select(u32, numbers == @as(V, @splat(before)), @as(V, @splat(with_before)), places);
        self.places = places;
        return true;
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

pub const Kernels = struct {
    /// Merges `count` pieces: 16 bytes each, the text and in the last byte how many bytes it has, 1 to 15. The ids of
    /// piece i go to `ids[16 * i]` and on, their number to `counts[i]`.
    pub fn text_merge(joins: *const Joins, count: usize, keys: [*]const u8, ids: [*]u32, counts: [*]u8) callconv(.c) void {
        var pieces: [turns]Piece = undefined;
        var next: usize = 0;
        while (next < turns and next < count) : (next += 1) {
            const key = keys + 16 * next;
            pieces[next].begin(joins, key, key[short_max], next);
        }
        const first = next;
        var going = next == turns;
        while (going) {
            inline for (&pieces) |*piece| {
                if (!piece.step(joins)) {
                    counts[piece.index] = piece.finish(joins, ids + 16 * piece.index);
                    piece.index = next;
                    if (next == count) {
                        going = false;
                        break;
                    }
                    const key = keys + 16 * next;
                    piece.begin(joins, key, key[short_max], next);
                    next += 1;
                }
            }
        }
        for (pieces[0..first]) |*piece| {
            if (piece.index == count) continue;
            while (piece.step(joins)) {}
            counts[piece.index] = piece.finish(joins, ids + 16 * piece.index);
        }
    }

    /// Merges `count` pieces of 1 to 254 bytes. The ids of piece i go to `ids[i]`, where there is room for as many as it
    /// has bytes, their number to `counts[i]`.
    pub fn text_merge_long(joins: *const Joins, count: usize, texts: [*]const [*]const u8, lengths: [*]const u32, ids: [*]const [*]u32, counts: [*]u32) callconv(.c) void {
        var pieces: [long_turns]LongPiece = undefined;
        var next: usize = 0;
        while (next < long_turns and next < count) : (next += 1) pieces[next].begin(joins, texts[next], lengths[next], next);
        const first = next;
        var going = next == long_turns;
        while (going) {
            for (&pieces) |*piece| {
                if (!piece.step(joins)) {
                    counts[piece.index] = piece.finish(joins, ids[piece.index]);
                    piece.index = next;
                    if (next == count) {
                        going = false;
                        break;
                    }
                    piece.begin(joins, texts[next], lengths[next], next);
                    next += 1;
                }
            }
        }
        for (pieces[0..first]) |*piece| {
            if (piece.index == count) continue;
            while (piece.step(joins)) {}
            counts[piece.index] = piece.finish(joins, ids[piece.index]);
        }
    }
};

const long_turns = 4;

/// The same with memory instead of registers.
const LongPiece = struct {
    places: [lanes]u32 align(64),
    symbols: [lanes + 2]u32,
    /// Neighbours of a symbol that is alive; the borders are 0 and one after the last.
    after: [lanes + 2]u8,
    before: [lanes + 2]u8,
    vectors: usize,
    index: usize,

    const lanes = 256;
    const lane_bits = 8;
    const nothing: u32 = Joins.none << lane_bits;
    const V = @Vector(16, u32);

    fn begin(self: *LongPiece, joins: *const Joins, text: [*]const u8, len: usize, index: usize) void {
        self.index = index;
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

    inline fn step(self: *LongPiece, joins: *const Joins) bool {
        const vectors: [*]const V = @ptrCast(&self.places);
        var least = vectors[0];
        for (1..self.vectors) |i| least = @min(least, vectors[i]);
        const best = @reduce(.Min, least);
        if (best >= nothing) return false;
        const i: usize = best & (lanes - 1);
        const joined = best >> lane_bits;
        self.symbols[i] = joined;
        const gone = self.after[i];
        const next = self.after[gone];
        self.after[i] = next;
        self.before[next] = @intCast(i);
        self.places[gone] = nothing;
        const before = self.before[i];
        self.places[i] = joins.find(joined, self.symbols[next]) << lane_bits | @as(u32, @intCast(i));
        const with_before = joins.find(self.symbols[before], joined) << lane_bits | @as(u32, before);
        self.places[before] = with_before;
        return true;
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
