//! Root of the base layer: what everything else stands on.

pub const checked = @import("checked.zig");
pub const bytes = @import("bytes.zig");
pub const checksum = @import("checksum.zig");
pub const storage = @import("storage.zig");
pub const prng = @import("prng.zig");
pub const pool = @import("pool.zig");

pub const free_space = @import("free_space.zig");
pub const diagnostic = @import("diagnostic.zig");

pub const freeBytes = free_space.freeBytes;
pub const Diagnostic = diagnostic.Diagnostic;
pub const Pool = pool.Pool;
pub const Prng = prng.Prng;

test {
    _ = checked;
    _ = bytes;
    _ = checksum;
    _ = storage;
    _ = prng;
    _ = pool;
    _ = free_space;
    _ = diagnostic;
}
