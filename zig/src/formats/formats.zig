//! Root of the formats layer: files that other programs read and write.

pub const gguf = @import("gguf.zig");
pub const gguf_writer = @import("gguf_writer.zig");

test {
    _ = gguf;
    _ = gguf_writer;
}
