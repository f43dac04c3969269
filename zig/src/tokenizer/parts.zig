//! What a tokenizer file says, as plain data: the one form both readers (`hf_folder.zig`, `gguf_vocabulary.zig`) fill in.
//!
//! `Tokenizer.fromParts` is the only gate from here to something that encodes. Slices belong to whoever filled the
//! struct in; the tokenizer copies nothing and keeps the arena.

const std = @import("std");
const unicode = @import("unicode.zig");
const Pass = @import("pre_tokenizer.zig").Pass;

pub const Error = error{
    /// The file contradicts itself or its format.
    InvalidTokenizer,
    /// The file is sound but asks for something this project does not do.
    UnsupportedTokenizer,
    OutOfMemory,
};

pub const TokenType = enum(u8) {
    normal = 1,
    unknown = 2,
    control = 3,
    user_defined = 4,
    unused = 5,
    byte = 6,
};

pub const Token = struct {
    /// As the file spells it. Empty for an id nothing uses.
    text: []const u8 = "",
    type: TokenType = .unused,
    /// Found in raw text before the model sees it.
    added: bool = false,
    /// Belongs to the merging vocabulary; an added token may or may not.
    in_model: bool = false,
    /// Looked for in text only where special text is parsed.
    special: bool = false,
    lstrip: bool = false,
    rstrip: bool = false,
    /// Not within another word.
    single_word: bool = false,
    /// Looked for after normalisation instead of before.
    normalized: bool = false,
};

pub const Kind = enum {
    /// Tokens are bytes in printable form.
    byte_level,
    /// Tokens are characters, with `▁` for a space in most vocabularies; unknown characters fall back to byte tokens.
    characters,
};

pub const Merges = union(enum) {
    /// Left and right text, best first.
    ranked: []const [2][]const u8,
    /// One score for each token.
    scored: []const f32,
};

/// One step of text normalisation.
pub const Step = union(enum) {
    form_c,
    prepend: []const u8,
    replace: struct { from: []const u8, to: []const u8 },
};

/// When a fragment of text gets a leading space (or `▁`).
pub const PrefixRule = enum {
    never,
    /// The fragment at the very start of the text, unless it begins with one.
    first,
    /// Every fragment between added tokens, unless it begins with one.
    always,
};

/// Spaces become `replacement`; with `split`, each one begins a piece.
pub const Metaspace = struct {
    replacement: []const u8,
    prefix: PrefixRule,
    split: bool,
};

pub const Parts = struct {
    kind: Kind,
    tokens: []const Token,
    merges: Merges,
    passes: []const Pass = &.{},
    steps: []const Step = &.{},
    metaspace: ?Metaspace = null,
    /// Byte level: a fragment that does not begin with a space gets one.
    add_prefix_space: bool = false,
    /// A piece that is a token is that token, whatever the merges say.
    ignore_merges: bool = false,
    byte_fallback: bool = false,
    fuse_unknown: bool = false,
    /// Decoding: `replaced` in a token stands for a space; one leading space of the text is dropped.
    space_mark: ?[]const u8 = null,
    drop_leading_space: bool = false,
    bos: ?u32 = null,
    eos: ?u32 = null,
    eot: ?u32 = null,
    eom: ?u32 = null,
    pad: ?u32 = null,
    unknown: ?u32 = null,
    /// Ids that also end a turn, beyond eos, eot, eom and the well-known names.
    more_stops: []const u32 = &.{},
    /// What surrounds a text that is encoded with special tokens.
    prefix: []const u32 = &.{},
    suffix: []const u32 = &.{},
    chat_template: ?[]const u8 = null,
};

/// Type of an added token that its file calls special or not. One that is a single character of the merging vocabulary
/// (people make "!" their padding) is something everyone types: it stays reachable from text.
pub fn typeOfAdded(text: []const u8, special: bool, in_model: bool) TokenType {
    if (!special and !looksLikeControl(text)) return .user_defined;
    return if (in_model and isOneCharacter(text)) .user_defined else .control;
}

pub fn isOneCharacter(text: []const u8) bool {
    return text.len > 0 and unicode.decode(text).len == text.len;
}

/// Whether a token's text has the form that marks control tokens in files without better knowledge.
pub fn looksLikeControl(text: []const u8) bool {
    const eql = std.mem.eql;
    const startsWith = std.mem.startsWith;
    const endsWith = std.mem.endsWith;
    if (text.len >= 5 and startsWith(u8, text, "<|") and endsWith(u8, text, "|>")) return true;
    return eql(u8, text, "<pad>") or (startsWith(u8, text, "<unused") and endsWith(u8, text, ">"));
}

test "a single character of the vocabulary is never a control token" {
    try std.testing.expectEqual(TokenType.user_defined, typeOfAdded("!", true, true));
    try std.testing.expectEqual(TokenType.user_defined, typeOfAdded("\u{e9}", true, true));
    try std.testing.expectEqual(TokenType.control, typeOfAdded("\u{e9}", true, false));
    try std.testing.expectEqual(TokenType.user_defined, typeOfAdded("<think>", false, true));
    try std.testing.expectEqual(TokenType.control, typeOfAdded("<s>", true, true));
    try std.testing.expectEqual(TokenType.control, typeOfAdded("<|x|>", false, false));
}
