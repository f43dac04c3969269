//! The table of joins as kernels and the tokenizer see it: plain pointers that may cross from one object to another.
//!
//! Merging works on symbols, not on ids: 0 to 255 are the bytes, the others are numbered in the order of their merges. Only one
//! merge of those that make a token is ever reached (see tokenizer/joins.zig), so what a pair becomes is also its place.

const Char = @import("chars.zig").Char;

/// Slots of one bucket: a cache line.
pub const bucket_slots = 16;

/// A slot holds a symbol and, in the bits above, a part of its halves' hash; `empty` where there is none. A pair is in its
/// bucket, or, where that is full, in one of the next. Buckets are filled from the front.
pub const Joins = extern struct {
    slots: [*]align(64) const [bucket_slots]u32,
    /// The two halves of each symbol: left << 32 | right.
    halves: [*]const u64,
    /// What each pair of bytes becomes: left << 8 | right.
    of_bytes: [*]const u32,
    /// Id of each symbol.
    ids: [*]const u32,
    /// `chars.count` characters; null when merging has to begin with bytes.
    chars: ?[*]const Char,
    bucket_mask: u64,
    symbol_bits: u32,

    /// Leaves room for the eight bits of a lane below it.
    pub const none: u32 = 0x00FF_FFFF;
    pub const empty: u32 = ~@as(u32, 0);
    /// What stands before and after a piece; it joins with nothing.
    pub const border: u32 = (1 << 21) - 1;
    /// All symbols are below.
    pub const most: usize = border;

    const V = @Vector(bucket_slots, u32);

    pub inline fn hashOf(left: u32, right: u32) u64 {
        return ((@as(u64, left) << 32 | right) ^ 0x5851_F42D_4C95_7F2D) *% 0x9E37_79B9_7F4A_7C15;
    }

    pub inline fn bucketOf(self: *const Joins, hash: u64) u64 {
        return hash >> 40 & self.bucket_mask;
    }

    /// Never that of `empty`: no symbol has all bits.
    pub inline fn slotOf(self: *const Joins, hash: u64, symbol: u32) u32 {
        return @as(u32, @truncate(hash)) << @intCast(self.symbol_bits) | symbol;
    }

    /// What the two become, or `none`. Without branches that depend on whether there is something.
    pub inline fn find(self: *const Joins, left: u32, right: u32) u32 {
        return self.findAt(hashOf(left, right), left, right);
    }

    pub inline fn prefetch(self: *const Joins, hash: u64) void {
        @prefetch(&self.slots[self.bucketOf(hash)], .{});
    }

    /// The same when the hash is known.
    pub inline fn findAt(self: *const Joins, hash: u64, left: u32, right: u32) u32 {
        const bucket = &self.slots[self.bucketOf(hash)];
        const slots: V = bucket.*;
        const low = self.symbolMask();
        const equal: u16 = @bitCast((slots & @as(V, @splat(~low))) == @as(V, @splat(self.slotOf(hash, 0))));
        // A part of the hash shared with another pair, or a bucket that ran over.
        if (equal & (equal -% 1) != 0 or bucket[bucket_slots - 1] != empty) {
            @branchHint(.unlikely);
            return self.findFurther(left, right);
        }
        const symbol = bucket[@ctz(equal) & 15] & low; // Where all bits are set there are halves, too: no pair's.
        const real = if (equal != 0) symbol else 0; // A byte has no halves.
        const difference = self.halves[real] ^ (@as(u64, left) << 32 | right);
        return real | (otherwise(difference) & none);
    }

    /// All bits unless the value is zero. Hidden from the compiler, which would make a branch of it that nobody can predict:
    /// `none` has all bits of every symbol.
    inline fn otherwise(value: u64) u32 {
        var high: u64 = (value | (0 -% value)) >> 63;
        asm (""
            : [high] "+r" (high),
        );
        return 0 -% @as(u32, @truncate(high));
    }

    noinline fn findFurther(self: *const Joins, left: u32, right: u32) u32 {
        const hash = hashOf(left, right);
        const low = self.symbolMask();
        const wanted = self.slotOf(hash, 0);
        var bucket = self.bucketOf(hash);
        while (true) : (bucket = (bucket + 1) & self.bucket_mask) {
            for (self.slots[bucket]) |slot| {
                if (slot == empty) return none;
                if (slot & ~low == wanted and self.halves[slot & low] == @as(u64, left) << 32 | right) return slot & low;
            }
        }
    }

    /// What two symbols that a piece begins with become.
    pub inline fn findFirst(self: *const Joins, left: u32, right: u32) u32 {
        return if (left | right < 256) self.of_bytes[left << 8 | right] else self.find(left, right);
    }

    pub inline fn symbolMask(self: *const Joins) u32 {
        return (@as(u32, 1) << @intCast(self.symbol_bits)) - 1;
    }
};
