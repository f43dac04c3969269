//! Root of the formats layer: files that other programs read and write.

pub const gguf = @import("gguf.zig");
pub const gguf_writer = @import("gguf_writer.zig");
pub const gguf_config = @import("gguf_config.zig");
pub const name_map = @import("name_map.zig");
pub const json = @import("json.zig");
pub const safetensors = @import("safetensors.zig");
pub const hf_config = @import("hf_config.zig");

test {
    _ = json;
    _ = safetensors;
    _ = hf_config;
    _ = name_map;
    _ = gguf;
    _ = gguf_writer;
}
