//! The table of merges as kernels and the tokenizer see it: plain pointers that may cross from one object to another.

/// Merge number n joins `left` and `right` to `id`; the smaller n, the earlier.
pub const Merge = extern struct { left: u32, right: u32, id: u32, place: u32 };

/// Slots of one bucket: a cache line.
pub const bucket_slots = 16;

/// A slot holds a merge's number and, in the bits above, a part of the pair's hash; `empty` where there is none. A pair is in
/// its bucket, or, where that is full, in one of the next.
pub const MergeTable = extern struct {
    slots: [*]align(64) const [bucket_slots]u32,
    merges: [*]const Merge,
    /// Number of the merge of each pair of bytes: left << 8 | right.
    of_bytes: [*]const u32,
    byte_ids: [*]const u32,
    bucket_mask: u64,
    number_bits: u32,

    /// Leaves room for the eight bits of a lane below it.
    pub const none: u32 = 0x00FF_FFFF;
    pub const empty: u32 = 0xFFFF_FFFF;

    pub inline fn hashOf(left: u32, right: u32) u64 {
        return ((@as(u64, left) << 32 | right) ^ 0x5851_F42D_4C95_7F2D) *% 0x9E37_79B9_7F4A_7C15;
    }

    pub inline fn bucketOf(self: *const MergeTable, hash: u64) u64 {
        return hash >> 40 & self.bucket_mask;
    }

    /// Never that of `empty`, whose number is beyond every merge's.
    pub inline fn slotOf(self: *const MergeTable, hash: u64, number: u32) u32 {
        return @as(u32, @truncate(hash)) << @intCast(self.number_bits) | number;
    }

    const V = @Vector(bucket_slots, u32);

    /// Number of the merge that joins the two, or `none`. Without branches that depend on whether there is one.
    pub inline fn find(self: *const MergeTable, left: u32, right: u32) u32 {
        const hash = hashOf(left, right);
        const bucket = self.bucketOf(hash);
        const slots: V = self.slots[bucket];
        const low = self.numberMask();
        const wanted = self.slotOf(hash, 0);
        const equal: u16 = @bitCast((slots & @as(V, @splat(~low))) == @as(V, @splat(wanted)));
        const free: u16 = @bitCast(slots == @as(V, @splat(empty)));
        // A tag shared with another pair, or a bucket that ran over.
        if (equal & (equal -% 1) != 0 or free == 0) {
            @branchHint(.unlikely);
            return self.findSlowly(left, right);
        }
        const number = self.slots[bucket][@ctz(equal) & 15] & low;
        const merge = &self.merges[if (number == low) 0 else number];
        const same = @intFromBool(merge.left == left) & @intFromBool(merge.right == right) & @intFromBool(equal != 0) & @intFromBool(number != low);
        return if (same != 0) number else none;
    }

    noinline fn findSlowly(self: *const MergeTable, left: u32, right: u32) u32 {
        const hash = hashOf(left, right);
        const low = self.numberMask();
        const wanted = self.slotOf(hash, 0);
        var bucket = self.bucketOf(hash);
        while (true) : (bucket = (bucket + 1) & self.bucket_mask) {
            for (self.slots[bucket]) |slot| {
                if (slot == empty) return none;
                if (slot & ~low != wanted) continue;
                const merge = &self.merges[slot & low];
                if (merge.left == left and merge.right == right) return slot & low;
            }
        }
    }

    pub inline fn numberMask(self: *const MergeTable) u32 {
        return (@as(u32, 1) << @intCast(self.number_bits)) - 1;
    }
};
