//! Root of the tokenizer layer: text to token ids and back, and chats to ids with a loss mask.
//!
//! Knows files of Hugging Face's form, values of GGUF's form, and nothing of models or training.

const std = @import("std");
const base = @import("base");

pub const added_tokens = @import("added_tokens.zig");
pub const borders = @import("borders.zig");
pub const bpe = @import("bpe.zig");
pub const byte_level = @import("byte_level.zig");
pub const chars = @import("chars.zig");
pub const chat_format = @import("chat_format.zig");
pub const decoder = @import("decoder.zig");
pub const encoding = @import("encoding.zig");
pub const gguf_vocabulary = @import("gguf_vocabulary.zig");
pub const hf_folder = @import("hf_folder.zig");
pub const index = @import("index.zig");
pub const joins = @import("joins.zig");
pub const json = @import("json.zig");
pub const long_pieces = @import("long_pieces.zig");
pub const merge = @import("merge.zig");
pub const parallel = @import("parallel.zig");
pub const parts = @import("parts.zig");
pub const pre_tokenizer = @import("pre_tokenizer.zig");
pub const unicode = @import("unicode.zig");
pub const words = @import("words.zig");

pub const Tokenizer = bpe.Tokenizer;
pub const Decoder = decoder.Decoder;
pub const EncodeOptions = bpe.EncodeOptions;
pub const EncodeScratch = encoding.EncodeScratch;
pub const DecodeOptions = bpe.DecodeOptions;
pub const EncodeError = bpe.EncodeError;
pub const TokenType = parts.TokenType;
pub const GgufVocabulary = gguf_vocabulary.GgufVocabulary;
pub const ChatFormat = chat_format.Format;
pub const Message = chat_format.Message;
pub const Rendered = chat_format.Rendered;
pub const render = chat_format.render;
pub const Error = parts.Error;
pub const OpenError = hf_folder.OpenError;

test {
    _ = added_tokens;
    _ = borders;
    _ = bpe;
    _ = byte_level;
    _ = chars;
    _ = chat_format;
    _ = decoder;
    _ = encoding;
    _ = gguf_vocabulary;
    _ = hf_folder;
    _ = index;
    _ = joins;
    _ = json;
    _ = long_pieces;
    _ = merge;
    _ = parallel;
    _ = parts;
    _ = pre_tokenizer;
    _ = unicode;
    _ = words;
    _ = @import("encoding_test.zig");
    std.testing.refAllDecls(@This());
}
