//! Makes a tokenizer from the values a GGUF file carries under `tokenizer.*`.
//!
//! The caller reads the file and fills in `GgufVocabulary`; this file does not know the container. Strings are copied.
//! One deliberate difference from llama.cpp: text is pre-tokenized (and, for Qwen, normalised) exactly as in training,
//! where llama.cpp leaves normalisation out and approximates o200k, which is done here only when asked for (`as_llama_cpp`).

const std = @import("std");
const base = @import("base");
const bpe = @import("bpe.zig");
const parts_module = @import("parts.zig");
const Pass = @import("pre_tokenizer.zig").Pass;

const Parts = parts_module.Parts;
const Token = parts_module.Token;
const TokenType = parts_module.TokenType;
const printable = base.bytes.printable;

/// Values of the GGUF keys of the same names.
pub const GgufVocabulary = struct {
    /// `tokenizer.ggml.model`: `gpt2` or `llama`.
    model: []const u8,
    /// `tokenizer.ggml.pre`; empty when missing.
    pre: []const u8 = "",
    tokens: []const []const u8,
    /// Empty when missing: all normal.
    token_types: []const i32 = &.{},
    scores: []const f32 = &.{},
    merges: []const []const u8 = &.{},
    bos: ?u32 = null,
    eos: ?u32 = null,
    eot: ?u32 = null,
    eom: ?u32 = null,
    unknown: ?u32 = null,
    pad: ?u32 = null,
    add_bos: ?bool = null,
    add_eos: ?bool = null,
    add_space_prefix: ?bool = null,
    chat_template: ?[]const u8 = null,
    /// Cut text as llama.cpp does where it approximates the expression of the model (`gpt-4o`).
    as_llama_cpp: bool = false,
};

const Family = struct { names: []const []const u8, passes: []const Pass, add_bos: bool = false, ignore_merges: bool = false, form_c: bool = false };

const families = [_]Family{
    .{ .names = &.{ "", "default" }, .passes = &.{ .default_punctuation, .gpt2, .default_numbers, .default_triples } },
    .{ .names = &.{ "gpt-2", "phi-2" }, .passes = &.{.gpt2} },
    .{ .names = &.{ "llama3", "llama-v3", "llama-bpe" }, .passes = &.{.llama3}, .add_bos = true, .ignore_merges = true },
    .{ .names = &.{ "qwen2", "deepseek-r1-qwen", "megrez" }, .passes = &.{.qwen2}, .form_c = true },
    .{ .names = &.{"smollm"}, .passes = &.{ .digits_each, .gpt2 } },
    .{ .names = &.{ "gpt-4o", "llama4" }, .passes = &.{.o200k} },
    .{ .names = &.{"deepseek-v3"}, .passes = &.{ .numbers_three, .han_kana, .deepseek } },
    .{ .names = &.{"tekken"}, .passes = &.{.tekken}, .add_bos = true, .ignore_merges = true },
};

/// The tokenizer of `vocabulary`, which is copied. `diag` names key, value and rule on failure.
pub fn fromGguf(gpa: std.mem.Allocator, vocabulary: GgufVocabulary, diag: *base.Diagnostic) parts_module.Error!bpe.Tokenizer {
    var arena: std.heap.ArenaAllocator = .init(gpa);
    const parts = parts: {
        errdefer arena.deinit();
        break :parts try read(arena.allocator(), vocabulary, diag);
    };
    return bpe.Tokenizer.fromParts(arena, parts, diag);
}

fn read(arena: std.mem.Allocator, v: GgufVocabulary, diag: *base.Diagnostic) parts_module.Error!Parts {
    const sentencepiece = std.mem.eql(u8, v.model, "llama");
    if (!sentencepiece and !std.mem.eql(u8, v.model, "gpt2")) {
        diag.set("tokenizer.ggml.model is {f}; supported are gpt2 (byte-level BPE) and llama (SentencePiece BPE)", .{printable(v.model)});
        return error.UnsupportedTokenizer;
    }
    var parts: Parts = .{
        .kind = if (sentencepiece) .characters else .byte_level,
        .tokens = try readTokens(arena, v, sentencepiece, diag),
        .merges = undefined,
        .bos = v.bos,
        .eos = v.eos,
        .eot = v.eot,
        .eom = v.eom,
        .unknown = v.unknown,
        .pad = v.pad,
        .chat_template = if (v.chat_template) |text| try arena.dupe(u8, text) else null,
    };
    var add_bos = v.add_bos orelse sentencepiece;
    if (sentencepiece) {
        parts.merges = .{ .scored = try arena.dupe(f32, v.scores) };
        const prefixed = v.add_space_prefix orelse true;
        parts.steps = try arena.dupe(parts_module.Step, if (prefixed) &.{ .{ .prepend = "▁" }, replace_spaces } else &.{replace_spaces});
        parts.space_mark = "▁";
        parts.drop_leading_space = prefixed;
        parts.byte_fallback = hasByteTokens(parts.tokens);
        parts.fuse_unknown = true;
        if (parts.unknown == null) parts.unknown = firstUnknown(parts.tokens);
    } else {
        parts.merges = .{ .ranked = try readMerges(arena, v.merges, diag) };
        const family = familyOf(v.pre) orelse {
            diag.set("tokenizer.ggml.pre is {f}, which is not a known pre-tokenizer (gpt-2, llama-bpe, qwen2, smollm, gpt-4o, deepseek-v3, tekken, default)", .{printable(v.pre)});
            return error.UnsupportedTokenizer;
        };
        const approximate = v.as_llama_cpp and std.mem.eql(Pass, family.passes, &.{.o200k});
        parts.passes = if (approximate) &.{.o200k_approximate} else family.passes;
        parts.ignore_merges = family.ignore_merges;
        if (family.form_c) parts.steps = &.{.form_c};
        add_bos = v.add_bos orelse family.add_bos;
    }
    if (add_bos) if (parts.bos) |id| {
        parts.prefix = try arena.dupe(u32, &.{id});
    };
    if (v.add_eos orelse false) if (parts.eos) |id| {
        parts.suffix = try arena.dupe(u32, &.{id});
    };
    return parts;
}

const replace_spaces: parts_module.Step = .{ .replace = .{ .from = " ", .to = "▁" } };

fn familyOf(name: []const u8) ?Family {
    for (families) |family| for (family.names) |known| if (std.mem.eql(u8, name, known)) return family;
    return null;
}

fn readTokens(arena: std.mem.Allocator, v: GgufVocabulary, sentencepiece: bool, diag: *base.Diagnostic) parts_module.Error![]Token {
    if (v.tokens.len >= std.math.maxInt(u32)) {
        diag.set("tokenizer.ggml.tokens has {d} entries, too many", .{v.tokens.len});
        return error.InvalidTokenizer;
    }
    if (v.token_types.len != 0 and v.token_types.len < v.tokens.len) {
        diag.set("tokenizer.ggml.token_type has {d} entries for {d} tokens", .{ v.token_types.len, v.tokens.len });
        return error.InvalidTokenizer;
    }
    const tokens = try arena.alloc(Token, v.tokens.len);
    for (tokens, v.tokens, 0..) |*token, text, i| {
        const number: i32 = if (v.token_types.len == 0) 1 else v.token_types[i];
        // Type 0 is "undefined" in old files; it behaves as normal.
        var kind: TokenType = if (number == 0) .normal else std.enums.fromInt(TokenType, number) orelse {
            diag.set("tokenizer.ggml.token_type of token {d} is {d}; known types are 1 to 6", .{ i, number });
            return error.InvalidTokenizer;
        };
        if (kind == .byte and !sentencepiece) kind = .normal;
        const added = kind == .control or kind == .user_defined or kind == .unknown;
        const special = added and (kind != .user_defined or parts_module.looksLikeControl(text));
        // The file does not say whether an added token is in the merging vocabulary too; a single character must be.
        if (kind == .control or kind == .user_defined) kind = parts_module.typeOfAdded(text, special, true);
        token.* = .{
            .text = try arena.dupe(u8, text),
            .type = kind,
            .added = added,
            .special = special,
            .in_model = !added or parts_module.isOneCharacter(text),
        };
    }
    return tokens;
}

fn hasByteTokens(tokens: []const Token) bool {
    for (tokens) |token| if (token.type == .byte) return true;
    return false;
}

fn firstUnknown(tokens: []const Token) ?u32 {
    for (tokens, 0..) |token, id| if (token.type == .unknown) return @intCast(id);
    return null;
}

fn readMerges(arena: std.mem.Allocator, merges: []const []const u8, diag: *base.Diagnostic) parts_module.Error![]const [2][]const u8 {
    const out = try arena.alloc([2][]const u8, merges.len);
    for (merges, out, 0..) |text, *pair, i| {
        const space = if (text.len < 3) null else std.mem.findScalarPos(u8, text, 1, ' ');
        if (space == null or space.? + 1 >= text.len) {
            diag.set("tokenizer.ggml.merges entry {d} {f} is not two texts with a space between", .{ i, printable(text) });
            return error.InvalidTokenizer;
        }
        const copy = try arena.dupe(u8, text);
        pair.* = .{ copy[0..space.?], copy[space.? + 1 ..] };
    }
    return out;
}

const sentencepiece_tokens = [_][]const u8{ "<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "▁a", "▁ab", "s>", "</" };
const sentencepiece_types = [_]i32{ 2, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1 };
const sentencepiece_scores = [_]f32{ 0, 0, 0, -9, -8, -7, -1, -3, -2, -4, -5 };

test "SentencePiece values: best score first, unknown characters fused, control tokens out of reach" {
    const gpa = std.testing.allocator;
    var diag: base.Diagnostic = .{};
    var tokenizer = try fromGguf(gpa, .{ .model = "llama", .tokens = &sentencepiece_tokens, .token_types = &sentencepiece_types, .scores = &sentencepiece_scores, .bos = 1, .eos = 2 }, &diag);
    defer tokenizer.deinit();

    const cases = .{
        .{ "ab a", &[_]u32{ 1, 8, 7 } },
        .{ "", &[_]u32{1} },
        .{ "aXYb", &[_]u32{ 1, 7, 0, 5 } },
        .{ "</s>", &[_]u32{ 1, 3, 10, 9 } },
    };
    inline for (cases) |case| {
        const ids = try tokenizer.encode(gpa, case[0], .{});
        defer gpa.free(ids);
        try std.testing.expectEqualSlices(u32, case[1], ids);
    }
    const text = try tokenizer.decode(gpa, &.{ 1, 8, 7 }, .{});
    defer gpa.free(text);
    try std.testing.expectEqualStrings("ab a", text);
}

test "each fault in the values has its message" {
    const gpa = std.testing.allocator;
    const spm: GgufVocabulary = .{ .model = "llama", .tokens = &sentencepiece_tokens, .token_types = &sentencepiece_types, .scores = &sentencepiece_scores };
    const Case = struct { vocabulary: GgufVocabulary, expected: parts_module.Error, says: []const u8 };
    var cases: [10]Case = undefined;
    for (&cases) |*case| case.* = .{ .vocabulary = spm, .expected = error.InvalidTokenizer, .says = "" };
    cases[0].vocabulary.tokens = &(sentencepiece_tokens[0..10].* ++ .{"ab"});
    cases[0].says = "tokens 6 and 10 have the same text \"ab\"";
    cases[1].vocabulary.eos = 11;
    cases[1].says = "eos token id 11 is not below the vocabulary size 11";
    cases[2].vocabulary.scores = sentencepiece_scores[0..5];
    cases[2].says = "5 scores for 11 tokens";
    cases[3].vocabulary.token_types = sentencepiece_types[0..3];
    cases[3].says = "3 entries for 11 tokens";
    cases[4].vocabulary.token_types = &(sentencepiece_types[0..10].* ++ .{7});
    cases[4].says = "token 10 is 7";
    cases[5].vocabulary.model = "bert";
    cases[5].expected = error.UnsupportedTokenizer;
    cases[5].says = "tokenizer.ggml.model is \"bert\"";
    cases[6].vocabulary = .{ .model = "gpt2", .pre = "martian", .tokens = &sentencepiece_tokens };
    cases[6].expected = error.UnsupportedTokenizer;
    cases[6].says = "\"martian\"";
    cases[7].vocabulary = .{ .model = "gpt2", .pre = "gpt-2", .tokens = &sentencepiece_tokens, .token_types = &sentencepiece_types, .merges = &.{"a c"}, .unknown = 0 };
    cases[7].says = "merge 0 names \"c\"";
    cases[8].vocabulary = .{ .model = "gpt2", .pre = "gpt-2", .tokens = &.{ "a", "b" } };
    cases[8].expected = error.UnsupportedTokenizer;
    cases[8].says = "no token for byte 0x00";
    cases[9].vocabulary = cases[7].vocabulary;
    cases[9].vocabulary.merges = &.{"\x00\x1b[2J"};
    cases[9].says = "merges entry 0 \"\\x00\\x1b[2J\" is not";
    for (cases) |case| {
        var diag: base.Diagnostic = .{};
        try std.testing.expectError(case.expected, fromGguf(gpa, case.vocabulary, &diag));
        errdefer std.debug.print("said: {s}\n", .{diag.text()});
        try std.testing.expect(std.mem.find(u8, diag.text(), case.says) != null);
    }
}
