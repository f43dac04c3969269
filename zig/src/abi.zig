pub const layers = struct {};
