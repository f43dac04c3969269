pub const Prng = struct {};
