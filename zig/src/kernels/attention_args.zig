//! One block of queries of one head, as it crosses the object line. What each field is for: attention.zig.

/// Most queries of one block: whole vectors and whole register tiles on every level.
pub const block = 96;

/// Key ranges of a backward pass divided among workers begin at multiples of this: of every level's tile.
pub const key_unit = 168;

pub fn Args(comptime T: type) type {
    return extern struct {
        /// 1 … block
        queries: usize,
        head_dim: usize,
        /// Tokens of the row: how many keys were packed.
        time: usize,
        /// Distance of two tokens in q, out and their gradients; of two in dk and dv.
        q_step: usize,
        kv_step: usize,
        /// 1/√head_dim
        scale: T,
        /// Query i sees the keys from[i] … to[i] − 1; nothing when they are equal. `to` never falls.
        from: [*]const u32,
        to: [*]const u32,
        /// The block's first query.
        q: [*]const T,
        /// All keys of the head, packed by rows.
        keys: [*]const u8,
        /// All values: packed by columns forward, by rows backward.
        values: [*]const u8,
        /// attention_scratch() bytes, aligned to 64.
        scratch: [*]u8,

        /// Forward: written. Backward: read.
        out: [*]T,
        /// Forward: the largest scaled score of each query and the sum of e^(score − largest), written.
        max: [*]T,
        sum: [*]T,

        // Backward only.
        lse: [*]const T,
        dout: [*]const T,
        /// All keys, packed by columns.
        key_columns: [*]const u8,
        /// Stored; null: not wanted.
        dq: ?[*]T,
        /// Of the row's first token of this head; added to. Both or none.
        dk: ?[*]T,
        dv: ?[*]T,
    };
}
