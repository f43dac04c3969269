//! Root of the formats layer: files that other programs read and write.

pub const gguf = @import("gguf.zig");
pub const gguf_writer = @import("gguf_writer.zig");
pub const name_map = @import("name_map.zig");

test {
    _ = name_map;
    _ = gguf;
    _ = gguf_writer;
}
