//! Reads a tokenizer in Hugging Face's form: `tokenizer.json`, and beside it, if present, `tokenizer_config.json`,
//! `special_tokens_map.json`, `generation_config.json` and `chat_template.jinja`.
//!
//! Everything `tokenizer.json` can ask for is either done exactly or refused by name: an unknown normaliser,
//! pre-tokenizer, model, post-processor or flag is `error.UnsupportedTokenizer`, never skipped.
//! Files are limited in size and depth before they are parsed.

const std = @import("std");
const base = @import("base");
const bpe = @import("bpe.zig");
const parts_module = @import("parts.zig");
const json = @import("json.zig");
const Pass = @import("pre_tokenizer.zig").Pass;

const Allocator = std.mem.Allocator;
const Diagnostic = base.Diagnostic;
const Parts = parts_module.Parts;
const Token = parts_module.Token;
const Value = std.json.Value;
const printable = base.bytes.printable;

pub const OpenError = parts_module.Error || error{CannotReadTokenizer};

const max_file_bytes = 256 << 20;
/// Ids may have holes, but not many: a huge id in a small file is a mistake or an attack.
const max_holes = 1 << 16;

/// The texts of the files; null where there is no such file.
pub const Files = struct {
    tokenizer: []const u8,
    config: ?[]const u8 = null,
    special_tokens_map: ?[]const u8 = null,
    generation_config: ?[]const u8 = null,
    chat_template: ?[]const u8 = null,
};

/// Opens the tokenizer in folder `path`. `diag` names file, value and rule on failure.
pub fn open(gpa: Allocator, io: std.Io, path: []const u8, diag: *Diagnostic) OpenError!bpe.Tokenizer {
    var dir = std.Io.Dir.cwd().openDir(io, path, .{}) catch |err| {
        diag.set("{s}: cannot open the tokenizer folder: {s}. Give the folder that holds tokenizer.json", .{ path, base.storage.words(err) });
        return error.CannotReadTokenizer;
    };
    defer dir.close(io);

    var arena: std.heap.ArenaAllocator = .init(gpa);
    errdefer arena.deinit();
    const files: Files = .{
        .tokenizer = try read(arena.allocator(), io, dir, "tokenizer.json", diag) orelse {
            diag.set("{s}/tokenizer.json: no such file; save the tokenizer with save_pretrained first", .{path});
            return error.CannotReadTokenizer;
        },
        .config = try read(arena.allocator(), io, dir, "tokenizer_config.json", diag),
        .special_tokens_map = try read(arena.allocator(), io, dir, "special_tokens_map.json", diag),
        .generation_config = try read(arena.allocator(), io, dir, "generation_config.json", diag),
        .chat_template = try read(arena.allocator(), io, dir, "chat_template.jinja", diag),
    };
    const parts = parse(arena.allocator(), files, diag) catch |err| {
        diag.prepend("{s}/", .{path});
        return err;
    };
    const owned = arena;
    arena = .init(gpa); // `fromParts` frees what it was given.
    return bpe.Tokenizer.fromParts(owned, parts, diag) catch |err| {
        diag.prepend("{s}/tokenizer.json: ", .{path});
        return err;
    };
}

/// A tokenizer from file texts already in memory; they are copied.
pub fn fromFiles(gpa: Allocator, files: Files, diag: *Diagnostic) parts_module.Error!bpe.Tokenizer {
    var arena: std.heap.ArenaAllocator = .init(gpa);
    const parts = parts: {
        errdefer arena.deinit();
        var copy = files;
        const a = arena.allocator();
        copy.tokenizer = try a.dupe(u8, files.tokenizer);
        inline for (.{ "config", "special_tokens_map", "generation_config", "chat_template" }) |name| {
            if (@field(files, name)) |text| @field(copy, name) = try a.dupe(u8, text);
        }
        break :parts try parse(a, copy, diag);
    };
    return bpe.Tokenizer.fromParts(arena, parts, diag);
}

fn read(arena: Allocator, io: std.Io, dir: std.Io.Dir, name: []const u8, diag: *Diagnostic) OpenError!?[]const u8 {
    return dir.readFileAlloc(io, name, arena, .limited(max_file_bytes)) catch |err| switch (err) {
        error.FileNotFound => null,
        error.OutOfMemory => error.OutOfMemory,
        else => {
            diag.set("{s}: cannot be read: {s}. It must be a file of at most {d} MiB", .{ name, base.storage.words(err), max_file_bytes >> 20 });
            return error.CannotReadTokenizer;
        },
    };
}

fn invalid(diag: *Diagnostic, comptime format: []const u8, arguments: anytype) parts_module.Error {
    diag.set(format, arguments);
    return error.InvalidTokenizer;
}

fn unsupported(diag: *Diagnostic, comptime format: []const u8, arguments: anytype) parts_module.Error {
    diag.set(format, arguments);
    return error.UnsupportedTokenizer;
}

fn parse(arena: Allocator, files: Files, diag: *Diagnostic) parts_module.Error!Parts {
    const root: json.Node = try .parse(arena, files.tokenizer, "tokenizer.json", diag);
    const model = try root.required("model");
    if (try model.text("type")) |name| if (!std.mem.eql(u8, name, "BPE"))
        return unsupported(diag, "tokenizer.json: model.type is {f}; only BPE is supported", .{printable(name)});
    inline for (.{ "continuing_subword_prefix", "end_of_word_suffix" }) |field| {
        if (try model.text(field)) |value| if (value.len > 0)
            return unsupported(diag, "tokenizer.json: model.{s} is {f}; it must be empty", .{ field, printable(value) });
    }
    if (try model.number("dropout")) |dropout| if (dropout != 0)
        return unsupported(diag, "tokenizer.json: model.dropout is {d}; encoding must not be random", .{dropout});

    var parts: Parts = .{
        .kind = .characters,
        .tokens = &.{},
        .merges = .{ .ranked = try readMerges(arena, model, diag) },
        .ignore_merges = try model.flag("ignore_merges") orelse false,
        .byte_fallback = try model.flag("byte_fallback") orelse false,
        .fuse_unknown = try model.flag("fuse_unk") orelse false,
    };
    try readNormalizer(arena, try root.child("normalizer"), &parts, diag);
    try readPreTokenizers(arena, try root.child("pre_tokenizer"), &parts, diag);
    try readDecoder(try root.child("decoder"), &parts, diag);
    const tokens = try readTokens(arena, root, model, parts, diag);
    parts.tokens = tokens;

    var names: std.StringHashMapUnmanaged(u32) = .empty;
    try names.ensureTotalCapacity(arena, @intCast(tokens.len));
    for (tokens, 0..) |token, id| if (token.text.len > 0) names.putAssumeCapacity(token.text, @intCast(id));
    if (try model.text("unk_token")) |text| {
        const id = names.get(text) orelse return invalid(diag, "tokenizer.json: model.unk_token {f} is not in the vocabulary", .{printable(text)});
        parts.unknown = id;
        tokens[id].type = .unknown;
    }
    try readPostProcessor(arena, try root.child("post_processor"), tokens.len, &parts, diag);
    try readCompanions(arena, files, names, &parts, diag);
    return parts;
}

fn readMerges(arena: Allocator, model: json.Node, diag: *Diagnostic) parts_module.Error![]const [2][]const u8 {
    const list = (try (try model.required("merges")).array());
    const out = try arena.alloc([2][]const u8, list.len);
    for (list, out, 0..) |value, *pair, i| switch (value) {
        .string => |joined| {
            const space = std.mem.findScalar(u8, joined, ' ') orelse return invalid(diag, "tokenizer.json: merge {d} {f} has no space between its halves", .{ i, printable(joined) });
            pair.* = .{ joined[0..space], joined[space + 1 ..] };
            if (std.mem.findScalar(u8, pair[1], ' ') != null) return invalid(diag, "tokenizer.json: merge {d} {f} has more than two parts", .{ i, printable(joined) });
        },
        .array => |halves| {
            if (halves.items.len != 2 or halves.items[0] != .string or halves.items[1] != .string)
                return invalid(diag, "tokenizer.json: merge {d} is not a pair of texts", .{i});
            pair.* = .{ halves.items[0].string, halves.items[1].string };
        },
        else => return invalid(diag, "tokenizer.json: merge {d} is neither a text nor a pair of texts", .{i}),
    };
    return out;
}

fn readTokens(arena: Allocator, root: json.Node, model: json.Node, parts: Parts, diag: *Diagnostic) parts_module.Error![]Token {
    const vocabulary = try (try model.required("vocab")).object();
    const added: []const Value = if (try root.child("added_tokens")) |node| try node.array() else &.{};
    const count = vocabulary.count() + added.len;
    var highest: u64 = 0;
    for (vocabulary.keys(), vocabulary.values()) |text, value| highest = @max(highest, try idValue(value, text, diag));
    for (added, 0..) |value, i| {
        const node = root.at(value, "added_tokens");
        highest = @max(highest, try node.id("id") orelse return invalid(diag, "tokenizer.json: added token {d} has no id", .{i}));
    }
    if (highest >= count + max_holes)
        return invalid(diag, "tokenizer.json: token id {d} is far beyond the {d} tokens of the file", .{ highest, count });

    const tokens = try arena.alloc(Token, if (count == 0) 0 else highest + 1);
    @memset(tokens, .{});
    for (vocabulary.keys(), vocabulary.values()) |text, value| {
        const token = &tokens[try idValue(value, text, diag)];
        if (token.text.len > 0) return invalid(diag, "tokenizer.json: tokens {f} and {f} share an id", .{ printable(token.text), printable(text) });
        if (text.len == 0) continue;
        token.* = .{ .text = text, .type = if (parts.byte_fallback and bpe.parseByteToken(text) != null) .byte else .normal, .in_model = true };
    }
    for (added) |value| {
        const node = root.at(value, "added_tokens");
        const id = (try node.id("id")).?;
        const text = try node.text("content") orelse return invalid(diag, "tokenizer.json: added token {d} has no content", .{id});
        if (text.len == 0) return invalid(diag, "tokenizer.json: added token {d} has an empty content", .{id});
        const token = &tokens[id];
        if (token.text.len > 0 and !std.mem.eql(u8, token.text, text))
            return invalid(diag, "tokenizer.json: added token {f} has id {d}, which is {f} in the vocabulary", .{ printable(text), id, printable(token.text) });
        if (token.added) return invalid(diag, "tokenizer.json: added token {f} is listed twice", .{printable(text)});
        const special = try node.flag("special") orelse false;
        token.* = .{
            .text = text,
            .type = parts_module.typeOfAdded(text, special, token.in_model),
            .added = true,
            .special = special or parts_module.looksLikeControl(text),
            .in_model = token.in_model,
            .lstrip = try node.flag("lstrip") orelse false,
            .rstrip = try node.flag("rstrip") orelse false,
            .single_word = try node.flag("single_word") orelse false,
            .normalized = try node.flag("normalized") orelse !special,
        };
    }
    return tokens;
}

fn idValue(value: Value, text: []const u8, diag: *Diagnostic) parts_module.Error!u32 {
    if (value == .integer and value.integer >= 0 and value.integer < std.math.maxInt(u32)) return @intCast(value.integer);
    return invalid(diag, "tokenizer.json: the id of token {f} is not a whole number from 0", .{printable(text)});
}

fn readNormalizer(arena: Allocator, node_or_null: ?json.Node, parts: *Parts, diag: *Diagnostic) parts_module.Error!void {
    var steps: std.ArrayList(parts_module.Step) = .empty;
    if (node_or_null) |node| try appendSteps(arena, node, &steps, diag);
    parts.steps = steps.items;
}

fn appendSteps(arena: Allocator, node: json.Node, steps: *std.ArrayList(parts_module.Step), diag: *Diagnostic) parts_module.Error!void {
    const name = try node.requiredText("type");
    if (std.mem.eql(u8, name, "Sequence")) {
        for (try (try node.required("normalizers")).array()) |value| try appendSteps(arena, node.at(value, "normalizers"), steps, diag);
    } else if (std.mem.eql(u8, name, "NFC")) {
        try steps.append(arena, .form_c);
    } else if (std.mem.eql(u8, name, "Prepend")) {
        try steps.append(arena, .{ .prepend = try node.requiredText("prepend") });
    } else if (std.mem.eql(u8, name, "Replace")) {
        const from = try (try node.required("pattern")).text("String") orelse
            return unsupported(diag, "tokenizer.json: a Replace normalizer has a pattern that is not a plain String", .{});
        if (from.len == 0) return invalid(diag, "tokenizer.json: a Replace normalizer replaces the empty text", .{});
        try steps.append(arena, .{ .replace = .{ .from = from, .to = try node.requiredText("content") } });
    } else return unsupported(diag, "tokenizer.json: normalizer {f} is not supported; known are NFC, Prepend, Replace and Sequence", .{printable(name)});
}

fn readPreTokenizers(arena: Allocator, node_or_null: ?json.Node, parts: *Parts, diag: *Diagnostic) parts_module.Error!void {
    const node = node_or_null orelse return;
    var passes: std.ArrayList(Pass) = .empty;
    const name = try node.requiredText("type");
    if (std.mem.eql(u8, name, "Sequence")) {
        const list = try (try node.required("pretokenizers")).array();
        for (list, 0..) |value, i| {
            if (parts.kind == .byte_level or parts.metaspace != null)
                return unsupported(diag, "tokenizer.json: a pre-tokenizer follows ByteLevel or Metaspace; these must come last", .{});
            try appendPass(arena, node.at(value, "pretokenizers"), &passes, parts, i == 0, diag);
        }
    } else try appendPass(arena, node, &passes, parts, true, diag);
    if (parts.metaspace != null and passes.items.len > 0)
        return unsupported(diag, "tokenizer.json: Metaspace together with other pre-tokenizers is not supported", .{});
    const limit = @import("pre_tokenizer.zig").Iterator.max_passes;
    if (passes.items.len > limit) return unsupported(diag, "tokenizer.json: {d} pre-tokenizers; the most supported is {d}", .{ passes.items.len, limit });
    parts.passes = passes.items;
}

fn appendPass(arena: Allocator, node: json.Node, passes: *std.ArrayList(Pass), parts: *Parts, alone: bool, diag: *Diagnostic) parts_module.Error!void {
    const name = try node.requiredText("type");
    if (std.mem.eql(u8, name, "ByteLevel")) {
        parts.kind = .byte_level;
        parts.add_prefix_space = try node.flag("add_prefix_space") orelse true;
        if (parts.add_prefix_space and !alone)
            return unsupported(diag, "tokenizer.json: ByteLevel with add_prefix_space after another pre-tokenizer is not supported", .{});
        if (try node.flag("use_regex") orelse true) try passes.append(arena, .gpt2);
    } else if (std.mem.eql(u8, name, "Digits")) {
        try passes.append(arena, if (try node.flag("individual_digits") orelse false) .digits_each else .digits_run);
    } else if (std.mem.eql(u8, name, "Split")) {
        const pattern = try (try node.required("pattern")).text("Regex") orelse
            return unsupported(diag, "tokenizer.json: a Split pre-tokenizer has a pattern that is not a Regex", .{});
        const pass = Pass.ofRegex(pattern) orelse
            return unsupported(diag, "tokenizer.json: the Split expression {f} is not one of the known ones (gpt2, llama3, qwen2, o200k, tekken, cl100k, those of DeepSeek)", .{base.bytes.Printable{ .text = pattern, .limit = 300 }});
        const behavior = try node.requiredText("behavior");
        const invert = try node.flag("invert") orelse false;
        // Where an expression matches every character, "keep the matches" and "cut at the matches" are one.
        const isolated = std.mem.eql(u8, behavior, "Isolated") or (std.mem.eql(u8, behavior, "Removed") and invert and pass.matchesAll());
        if (!isolated) return unsupported(diag, "tokenizer.json: a Split pre-tokenizer has behavior {f}, invert {}; only Isolated is supported", .{ printable(behavior), invert });
        try passes.append(arena, pass);
    } else if (std.mem.eql(u8, name, "Metaspace")) {
        const mark = try node.text("replacement") orelse "▁";
        if (mark.len == 0) return invalid(diag, "tokenizer.json: the Metaspace replacement is empty", .{});
        var prefix: parts_module.PrefixRule = if (try node.flag("add_prefix_space") orelse true) .always else .never;
        if (try node.text("prepend_scheme")) |scheme| {
            prefix = std.meta.stringToEnum(parts_module.PrefixRule, scheme) orelse
                return unsupported(diag, "tokenizer.json: Metaspace prepend_scheme is {f}; known are first, always and never", .{printable(scheme)});
        }
        parts.metaspace = .{ .replacement = mark, .prefix = prefix, .split = try node.flag("split") orelse true };
    } else return unsupported(diag, "tokenizer.json: pre-tokenizer {f} is not supported; known are ByteLevel, Digits, Split, Metaspace and Sequence", .{printable(name)});
}

fn readDecoder(node_or_null: ?json.Node, parts: *Parts, diag: *Diagnostic) parts_module.Error!void {
    const node = node_or_null orelse return;
    const name = try node.requiredText("type");
    if (std.mem.eql(u8, name, "Sequence")) {
        for (try (try node.required("decoders")).array()) |value| try readDecoder(node.at(value, "decoders"), parts, diag);
    } else if (std.mem.eql(u8, name, "Replace")) {
        const from = try (try node.required("pattern")).text("String");
        const to = try node.text("content");
        if (from == null or from.?.len == 0 or to == null or !std.mem.eql(u8, to.?, " "))
            return unsupported(diag, "tokenizer.json: a Replace decoder does something other than writing spaces", .{});
        parts.space_mark = from;
    } else if (std.mem.eql(u8, name, "Metaspace")) {
        parts.space_mark = try node.text("replacement") orelse "▁";
        const scheme = try node.text("prepend_scheme") orelse "always";
        parts.drop_leading_space = !std.mem.eql(u8, scheme, "never");
    } else if (std.mem.eql(u8, name, "Strip")) {
        const content = try node.text("content") orelse " ";
        const start = try node.number("start") orelse 0;
        const stop = try node.number("stop") orelse 0;
        if (!std.mem.eql(u8, content, " ") or start != 1 or stop != 0)
            return unsupported(diag, "tokenizer.json: a Strip decoder takes away something other than one leading space", .{});
        parts.drop_leading_space = true;
    } else if (std.mem.eql(u8, name, "ByteLevel")) {
        if (parts.kind != .byte_level) return unsupported(diag, "tokenizer.json: the decoder is ByteLevel but no pre-tokenizer is", .{});
    } else if (!std.mem.eql(u8, name, "ByteFallback") and !std.mem.eql(u8, name, "Fuse"))
        return unsupported(diag, "tokenizer.json: decoder {f} is not supported", .{printable(name)});
}

fn readPostProcessor(arena: Allocator, node_or_null: ?json.Node, count: usize, parts: *Parts, diag: *Diagnostic) parts_module.Error!void {
    const node = node_or_null orelse return;
    const name = try node.requiredText("type");
    if (std.mem.eql(u8, name, "ByteLevel")) return; // Only offsets.
    if (std.mem.eql(u8, name, "Sequence")) {
        for (try (try node.required("processors")).array()) |value| try readPostProcessor(arena, node.at(value, "processors"), count, parts, diag);
        return;
    }
    if (!std.mem.eql(u8, name, "TemplateProcessing"))
        return unsupported(diag, "tokenizer.json: post-processor {f} is not supported; known are ByteLevel, TemplateProcessing and Sequence", .{printable(name)});
    const specials = try node.required("special_tokens");
    var before: std.ArrayList(u32) = .empty;
    var after: std.ArrayList(u32) = .empty;
    var sequences: usize = 0;
    for (try (try node.required("single")).array()) |value| {
        const piece = node.at(value, "single");
        if (try piece.child("Sequence") != null) {
            sequences += 1;
            continue;
        }
        const special = try piece.required("SpecialToken");
        const entry = try specials.required(try special.requiredText("id"));
        for (try (try entry.required("ids")).array()) |id_value| {
            const id = try idValue(id_value, "special token of the post-processor", diag);
            if (id >= count) return invalid(diag, "tokenizer.json: the post-processor uses id {d}; the vocabulary ends at {d}", .{ id, count - 1 });
            try (if (sequences == 0) &before else &after).append(arena, id);
        }
    }
    if (sequences != 1) return invalid(diag, "tokenizer.json: the post-processor's single template has {d} texts; it must have one", .{sequences});
    parts.prefix = try std.mem.concat(arena, u32, &.{ before.items, parts.prefix });
    parts.suffix = try std.mem.concat(arena, u32, &.{ parts.suffix, after.items });
}

/// What the files beside `tokenizer.json` add: special ids and the chat template. Whether a begin token is written
/// is the post-processor's word alone: transformers, too, passes over `add_bos_token` when there is a `tokenizer.json`.
fn readCompanions(arena: Allocator, files: Files, names: std.StringHashMapUnmanaged(u32), parts: *Parts, diag: *Diagnostic) parts_module.Error!void {
    const fields = .{ .{ "bos_token", "bos" }, .{ "eos_token", "eos" }, .{ "pad_token", "pad" }, .{ "unk_token", "unknown" } };
    inline for (.{ .{ files.config, "tokenizer_config.json" }, .{ files.special_tokens_map, "special_tokens_map.json" } }) |file| {
        if (file[0]) |text| {
            const node: json.Node = try .parse(arena, text, file[1], diag);
            inline for (fields) |field| if (@field(parts, field[1]) == null) {
                if (try specialText(node, field[0])) |token| @field(parts, field[1]) = names.get(token) orelse
                    return invalid(diag, file[1] ++ ": " ++ field[0] ++ " {f} is not in the vocabulary of tokenizer.json", .{printable(token)});
            };
        }
    }
    if (files.generation_config) |text| try readGenerationConfig(arena, text, parts, diag);
    parts.eot = firstOf(names, &.{ "<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>" }, parts);
    parts.eom = firstOf(names, &.{"<|eom_id|>"}, parts);
    parts.chat_template = files.chat_template;
    const config_text = files.config orelse return;
    const config: json.Node = try .parse(arena, config_text, "tokenizer_config.json", diag);
    if (parts.chat_template == null) parts.chat_template = try templateOf(config);
}

/// A special token is a text or an object with `content`.
fn specialText(node: json.Node, name: []const u8) parts_module.Error!?[]const u8 {
    const value = try node.child(name) orelse return null;
    if (value.value == .string) return value.value.string;
    return try value.requiredText("content");
}

fn readGenerationConfig(arena: Allocator, text: []const u8, parts: *Parts, diag: *Diagnostic) parts_module.Error!void {
    const node: json.Node = try .parse(arena, text, "generation_config.json", diag);
    if (parts.bos == null) parts.bos = try node.id("bos_token_id");
    if (parts.pad == null) parts.pad = try node.id("pad_token_id");
    const eos = try node.child("eos_token_id") orelse return;
    var stops: std.ArrayList(u32) = .empty;
    if (eos.value == .array) {
        for (eos.value.array.items) |value| try stops.append(arena, try idValue(value, "eos_token_id", diag));
    } else try stops.append(arena, try idValue(eos.value, "eos_token_id", diag));
    if (parts.eos == null and stops.items.len > 0) parts.eos = stops.items[0];
    parts.more_stops = stops.items;
}

fn firstOf(names: std.StringHashMapUnmanaged(u32), texts: []const []const u8, parts: *const Parts) ?u32 {
    for (texts) |text| if (names.get(text)) |id| {
        if (parts.tokens[id].type != .control) continue;
        // In harmony `<|end|>` ends a message only.
        if (std.mem.eql(u8, text, "<|end|>") and names.get("<|return|>") != null) continue;
        return id;
    };
    return null;
}

/// `chat_template` is a text, or a list of named ones of which "default" counts.
fn templateOf(config: json.Node) parts_module.Error!?[]const u8 {
    const node = try config.child("chat_template") orelse return null;
    if (node.value == .string) return node.value.string;
    for (try node.array()) |value| {
        const entry = node.at(value, "chat_template");
        if (std.mem.eql(u8, try entry.requiredText("name"), "default")) return try entry.requiredText("template");
    }
    return null;
}

const small_model = "\"model\":{\"type\":\"BPE\",\"unk_token\":\"<unk>\",\"vocab\":{\"<unk>\":0,\"a\":1,\"b\":2,\"ab\":3},\"merges\":[\"a b\"]}";

test "a small file with its companions opens and encodes" {
    const gpa = std.testing.allocator;
    var diag: Diagnostic = .{};
    errdefer std.debug.print("said: {s}\n", .{diag.text()});
    var tokenizer = try fromFiles(gpa, .{
        .tokenizer = "{\"added_tokens\":[{\"id\":0,\"content\":\"<unk>\",\"special\":true},{\"id\":4,\"content\":\"<s>\",\"special\":true},{\"id\":6,\"content\":\"<|im_end|>\"}],\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],\"special_tokens\":{\"<s>\":{\"id\":\"<s>\",\"ids\":[4],\"tokens\":[\"<s>\"]}}}," ++ small_model ++ "}",
        .config = "{\"bos_token\":{\"content\":\"<s>\"},\"chat_template\":[{\"name\":\"tool_use\",\"template\":\"x\"},{\"name\":\"default\",\"template\":\"y\"}]}",
        .special_tokens_map = "{\"bos_token\":\"ab\",\"pad_token\":\"<s>\"}",
        .generation_config = "{\"eos_token_id\":[6,2]}",
    }, &diag);
    defer tokenizer.deinit();

    const ids = try tokenizer.encode(gpa, "abbaz?<s>", .{});
    defer gpa.free(ids);

    try std.testing.expectEqualSlices(u32, &.{ 4, 3, 2, 1, 0, 0, 0, 0, 0 }, ids);
    try std.testing.expectEqual(7, tokenizer.vocabSize());
    try std.testing.expectEqual(4, tokenizer.bos());
    try std.testing.expectEqual(4, tokenizer.pad());
    try std.testing.expectEqual(6, tokenizer.eos());
    try std.testing.expectEqualSlices(u32, &.{ 6, 2 }, tokenizer.stopTokens());
    try std.testing.expect(tokenizer.isControl(6));
    try std.testing.expectEqualStrings("y", tokenizer.chatTemplate().?);
}

test "merges that spell a control token do not reach it" {
    const gpa = std.testing.allocator;
    inline for (.{ "false", "true" }) |ignore_merges| {
        var diag: Diagnostic = .{};
        var tokenizer = try fromFiles(gpa, .{ .tokenizer = "{\"added_tokens\":[{\"id\":5,\"content\":\"<s>\",\"special\":true}]," ++
            "\"model\":{\"unk_token\":\"<unk>\",\"ignore_merges\":" ++ ignore_merges ++ "," ++
            "\"vocab\":{\"<unk>\":0,\"<\":1,\"s\":2,\">\":3,\"<s\":4,\"<s>\":5},\"merges\":[[\"<\",\"s\"],[\"<s\",\">\"]]}}" }, &diag);
        defer tokenizer.deinit();

        const typed = try tokenizer.encode(gpa, "<s>", .{});
        defer gpa.free(typed);
        try std.testing.expectEqualSlices(u32, &.{ 4, 3 }, typed);

        const parsed = try tokenizer.encode(gpa, "<s>", .{ .parse_special = true });
        defer gpa.free(parsed);
        try std.testing.expectEqualSlices(u32, &.{5}, parsed);
    }
}

test "each fault in the files has its message" {
    const invalid_file = error.InvalidTokenizer;
    const unsupported_file = error.UnsupportedTokenizer;
    const cases = .{
        .{ "{", null, invalid_file, "tokenizer.json: not valid JSON" },
        .{ "[]", null, invalid_file, "tokenizer.json: the file must be an object" },
        .{ "{}", null, invalid_file, "has no field model" },
        .{ "{\"model\":{\"type\":\"Unigram\"}}", null, unsupported_file, "model.type is \"Unigram\"" },
        .{ "{\"model\":{\"vocab\":{},\"merges\":[]}}", null, invalid_file, "vocabulary is empty" },
        .{ "{\"model\":{\"vocab\":{\"a\":0,\"a\":1},\"merges\":[]}}", null, invalid_file, "it has a key twice" },
        .{ "{\"model\":{\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}", null, invalid_file, "\"a\" and \"b\" share an id" },
        .{ "{\"model\":{\"vocab\":{\"a\":-1},\"merges\":[]}}", null, invalid_file, "the id of token \"a\"" },
        .{ "{\"model\":{\"vocab\":{\"a\":4000000000},\"merges\":[]}}", null, invalid_file, "far beyond the 1 tokens" },
        .{ "{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"aa\"]}}", null, invalid_file, "merge 0 \"aa\" has no space" },
        .{ "{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a a\"],\"unk_token\":\"a\"}}", null, invalid_file, "merge 0 names \"aa\"" },
        .{ "{\"model\":{\"vocab\":{\"a\":0},\"merges\":[],\"dropout\":0.1}}", null, unsupported_file, "dropout" },
        .{ "{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]}}", null, unsupported_file, "neither byte tokens nor an unknown token" },
        .{ "{\"normalizer\":{\"type\":\"Lowercase\"}," ++ small_model ++ "}", null, unsupported_file, "normalizer \"Lowercase\"" },
        .{ "{\"pre_tokenizer\":{\"type\":\"Whitespace\"}," ++ small_model ++ "}", null, unsupported_file, "pre-tokenizer \"Whitespace\"" },
        .{ "{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"x+\"},\"behavior\":\"Isolated\"}," ++ small_model ++ "}", null, unsupported_file, "\"x+\"" },
        .{ "{\"post_processor\":{\"type\":\"BertProcessing\"}," ++ small_model ++ "}", null, unsupported_file, "post-processor \"BertProcessing\"" },
        .{ "{\"decoder\":{\"type\":\"WordPiece\"}," ++ small_model ++ "}", null, unsupported_file, "decoder \"WordPiece\"" },
        .{ "{\"added_tokens\":[{\"id\":1,\"content\":\"x\"}]," ++ small_model ++ "}", null, invalid_file, "has id 1, which is \"a\"" },
        .{ "{\"added_tokens\":[{\"id\":9,\"content\":\"ab\"}]," ++ small_model ++ "}", null, invalid_file, "have the same text \"ab\"" },
        .{ "{" ++ small_model ++ "}", "{\"eos_token\":\"</s>\"}", invalid_file, "eos_token \"</s>\" is not in the vocabulary" },
        .{ "{" ++ small_model ++ "}", "{\"eos_token\":1}", invalid_file, "eos_token must be an object" },
    };
    inline for (cases) |case| {
        var diag: Diagnostic = .{};
        errdefer std.debug.print("{s}\nsaid: {s}\n", .{ case[0], diag.text() });
        try std.testing.expectError(case[2], fromFiles(std.testing.allocator, .{ .tokenizer = case[0], .config = case[1] }, &diag));
        try std.testing.expect(std.mem.find(u8, diag.text(), case[3]) != null);
    }
}

test "damaged files are refused or encode; they never crash" {
    const gpa = std.testing.allocator;
    var prng: std.Random.DefaultPrng = .init(std.testing.random_seed);
    errdefer std.debug.print("seed {d}\n", .{std.testing.random_seed});
    const random = prng.random();
    const sound = "{\"normalizer\":{\"type\":\"NFC\"},\"pre_tokenizer\":{\"type\":\"Metaspace\",\"split\":true},\"decoder\":{\"type\":\"Metaspace\"}," ++
        "\"added_tokens\":[{\"id\":4,\"content\":\"<s>\",\"special\":true,\"lstrip\":true}]," ++ small_model ++ "}";
    const bytes = "\"{}[]:,0149-.eabtfn\\u<>_ \xff";
    for (0..3000) |_| {
        var text = sound.*;
        for (0..random.intRangeAtMost(usize, 1, 4)) |_| {
            const at = random.uintLessThan(usize, text.len);
            const from = random.uintLessThan(usize, text.len);
            const len = @min(random.uintAtMost(usize, 12), text.len - @max(at, from));
            if (random.boolean()) text[at] = bytes[random.uintLessThan(usize, bytes.len)] else {
                std.mem.copyForwards(u8, text[at..][0..len], sound[from..][0..len]);
            }
        }
        const cut = if (random.uintLessThan(u8, 8) == 0) random.uintLessThan(usize, text.len) else text.len;
        var diag: Diagnostic = .{};
        var tokenizer = fromFiles(gpa, .{ .tokenizer = text[0..cut] }, &diag) catch {
            try std.testing.expect(diag.text().len > 0);
            continue;
        };
        defer tokenizer.deinit();
        const ids = try tokenizer.encode(gpa, "ab <s> ba\xff e\u{301}", .{});
        defer gpa.free(ids);
        for (ids) |id| try std.testing.expect(id < tokenizer.vocabSize());
    }
}

test "a folder without tokenizer.json is named" {
    var tmp = std.testing.tmpDir(.{});
    defer tmp.cleanup();

    var diag: Diagnostic = .{};
    const gpa = std.testing.allocator;
    const path = try std.fmt.allocPrint(gpa, ".zig-cache/tmp/{s}", .{tmp.sub_path});
    defer gpa.free(path);

    try std.testing.expectError(error.CannotReadTokenizer, open(gpa, std.testing.io, path, &diag));
    try std.testing.expect(std.mem.endsWith(u8, diag.text(), "/tokenizer.json: no such file; save the tokenizer with save_pretrained first"));
    try tmp.dir.writeFile(std.testing.io, .{ .sub_path = "tokenizer.json", .data = "{" ++ small_model ++ "}" });
    var tokenizer = try open(gpa, std.testing.io, path, &diag);
    defer tokenizer.deinit();
    try std.testing.expectEqual(3, tokenizer.idOf("ab"));
}
