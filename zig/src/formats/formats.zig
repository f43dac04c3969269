//! Root of the formats layer: files that other programs read and write.

pub const gguf = @import("gguf.zig");
pub const gguf_writer = @import("gguf_writer.zig");
pub const gguf_config = @import("gguf_config.zig");
pub const name_map = @import("name_map.zig");
pub const gguf_import = @import("gguf_import.zig");
pub const gguf_mix = @import("gguf_mix.zig");
pub const gguf_parts = @import("gguf_parts.zig");
pub const gguf_quantise = @import("gguf_quantise.zig");
pub const gguf_files = @import("gguf_files.zig");
pub const gguf_rewrite = @import("gguf_rewrite.zig");
pub const imatrix = @import("imatrix.zig");
pub const json = @import("json.zig");
pub const lint = @import("lint/lint.zig");
pub const safetensors = @import("safetensors.zig");
pub const hf_config = @import("hf_config.zig");
pub const adapter_config = @import("adapter_config.zig");
pub const gguf_export = @import("gguf_export.zig");
pub const adapter_gguf = @import("adapter_gguf.zig");
pub const adapter_gguf_import = @import("adapter_gguf_import.zig");
pub const mxfp4_names = @import("export_source.zig").mxfp4_names;
pub const mxfp4Shape = @import("export_source.zig").mxfp4Shape;
pub const export_pre = @import("export_pre.zig");
pub const export_tokenizer = @import("export_tokenizer.zig");

test {
    _ = export_tokenizer;
    _ = export_pre;
    _ = gguf_export;
    _ = adapter_gguf;
    _ = adapter_gguf_import;
    _ = gguf_import;
    _ = gguf_mix;
    _ = gguf_parts;
    _ = gguf_quantise;
    _ = gguf_files;
    _ = gguf_rewrite;
    _ = lint;
    _ = imatrix;
    _ = gguf_config;
    _ = json;
    _ = safetensors;
    _ = hf_config;
    _ = adapter_config;
    _ = name_map;
    _ = gguf;
    _ = gguf_writer;
}
