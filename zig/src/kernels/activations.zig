//! A vector of activations as 8-bit numbers, for products with quantised weights. Crosses the object line.
//!
//! x[i] ≈ scales[i / group]·q[i], with the group of the type the weights have: 32 numbers for types of small blocks, 256 for those of
//! superblocks.

/// Beside each array its length for n numbers.
pub const Activations = extern struct {
    /// n
    q: [*]i8,
    /// n / 4: sums of four q.
    fours: [*]i32,
    /// n / group; the steps of q.
    scales: [*]f32,
    /// n / 32: sums of q.
    sums: [*]i16,
    /// n / 16: sums of q.
    half_sums: [*]i16,
};

/// Numbers that share a scale under weights of superblocks.
pub const superblock = 256;
/// The same under all other quantised weights.
pub const block = 32;

/// What is added to the numbers of a type so that none is negative.
pub const Offset = struct {
    pub const q8_0 = 128;
    pub const q4_0 = 8;
    pub const q5_0 = 16;
    pub const mxfp4 = 12;
    pub const q6_k = 32;
};

/// How words.zig cuts both sides: columns that share a step, and rows of a panel.
pub const Words = struct {
    pub const stretch = 256;
    pub const panel_rows = 32;
};

/// Weights that will be packed next: asked for little by little while a panel is multiplied, because the memory is idle then.
pub const Next = extern struct {
    at: [*]const u8,
    /// From one row to the next.
    row_bytes: usize,
    rows: usize,
    /// Wanted of each row.
    bytes: usize,
};
