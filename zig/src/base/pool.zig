pub const Pool = struct {};
