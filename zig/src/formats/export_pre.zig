//! Which of llama.cpp's pre-tokenizers is the one in a `tokenizer.json`.
//!
//! GGUF does not hold the pattern, only a name, and llama.cpp has the patterns built in. The name is chosen by what the
//! tokenizer does (its chain of steps and its regex), never by guessing from a model's name; a chain that is not
//! one of the known ones is an error that shows the regex. Does not know: vocabularies, merges.

const std = @import("std");
const base = @import("base");
const json = @import("json.zig");
const Diagnostic = base.Diagnostic;

pub const Error = error{ UnsupportedTokenizer, UnknownPreTokenizer };

/// What the chain of steps amounts to.
pub const Kind = union(enum) {
    /// Byte-level BPE; the name for `tokenizer.ggml.pre`.
    byte_level: []const u8,
    /// Pieces with `▁` for spaces; true when a space is put before the text.
    pieces: struct { add_space_prefix: bool },
};

/// Names that llama.cpp takes and that have the meaning documented in this project's tokenizer.
pub const known_names = [_][]const u8{ "default", "gpt-2", "llama-bpe", "qwen2", "smollm", "gpt-4o", "tekken", "smaug-bpe" };

const contractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const tail = "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const upper = "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]";
const lower = "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]";
const cased_tail = "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

const Pattern = struct { name: []const u8, regex: []const u8 };

const patterns = [_]Pattern{
    .{ .name = "gpt-2", .regex = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+" },
    .{ .name = "gpt-2", .regex = "'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+" },
    .{ .name = "llama-bpe", .regex = contractions ++ "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}" ++ tail },
    .{ .name = "qwen2", .regex = contractions ++ "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}" ++ tail },
    .{ .name = "gpt-4o", .regex = "[^\\r\\n\\p{L}\\p{N}]?" ++ upper ++ "*" ++ lower ++ "+" ++ contractions ++ "?|[^\\r\\n\\p{L}\\p{N}]?" ++ upper ++ "+" ++ lower ++ "*" ++ contractions ++ "?|\\p{N}{1,3}" ++ cased_tail },
    .{ .name = "tekken", .regex = "[^\\r\\n\\p{L}\\p{N}]?" ++ upper ++ "*" ++ lower ++ "+|[^\\r\\n\\p{L}\\p{N}]?" ++ upper ++ "+" ++ lower ++ "*|\\p{N}" ++ cased_tail },
};

const Step = union(enum) {
    digits,
    split: []const u8,
    byte_level: bool,
    metaspace: bool,
};

/// `root` is the whole `tokenizer.json`, `model` its `model` object. `override` wins over what byte-level steps say.
pub fn detect(root: json.Object, model: json.Object, override: ?[]const u8, diag: *Diagnostic) (Error || json.Error)!Kind {
    var buffer: [4]Step = undefined;
    var steps: std.ArrayList(Step) = .initBuffer(&buffer);
    if (json.get(root, "pre_tokenizer")) |pre| try collect(pre, &steps, diag);
    const list = steps.items;
    const byte_fallback = try json.getBool(model, "byte_fallback", diag) orelse false;

    if (list.len > 0 and list[list.len - 1] == .byte_level) {
        try checkNormalizer(root, diag);
        if (override) |name| return .{ .byte_level = try knownName(name, diag) };
        const own_regex = list[list.len - 1].byte_level;
        if (list.len == 1 and own_regex) return .{ .byte_level = "gpt-2" };
        if (list.len == 2 and list[0] == .digits and own_regex) return .{ .byte_level = "smollm" };
        if (list.len == 2 and list[0] == .split and !own_regex) {
            const regex = list[0].split;
            for (patterns) |p| if (std.mem.eql(u8, p.regex, regex)) {
                const whole_first = try json.getBool(model, "ignore_merges", diag) orelse false;
                // The same pattern; the name also says whether whole pieces are looked up before merging.
                if (std.mem.eql(u8, p.name, "llama-bpe") and !whole_first) return .{ .byte_level = "smaug-bpe" };
                return .{ .byte_level = p.name };
            };
            diag.set("tokenizer.json: llama.cpp has no name for the pre-tokenizer regex {s} . If you know that one of its names is right, give it explicitly", .{regex});
            return error.UnknownPreTokenizer;
        }
        diag.set("tokenizer.json: a pre_tokenizer of {d} steps that llama.cpp has no name for. If you know that one of its names is right, give it explicitly", .{list.len});
        return error.UnknownPreTokenizer;
    }
    if (byte_fallback) return pieces(root, list, diag);
    diag.set("tokenizer.json: only byte-level BPE and BPE with byte_fallback can be written as GGUF", .{});
    return error.UnsupportedTokenizer;
}

fn knownName(name: []const u8, diag: *Diagnostic) Error![]const u8 {
    for (known_names) |known| if (std.mem.eql(u8, known, name)) return known;
    diag.set("pre-tokenizer name \"{s}\" is not known; known are default, gpt-2, llama-bpe, qwen2, smollm, gpt-4o, tekken, smaug-bpe", .{name});
    return error.UnknownPreTokenizer;
}

fn collect(value: json.Value, steps: *std.ArrayList(Step), diag: *Diagnostic) (Error || json.Error)!void {
    const object = try json.asObject(value, "pre_tokenizer", diag);
    const kind = try json.getString(object, "type", diag) orelse "";
    if (std.mem.eql(u8, kind, "Sequence")) {
        const inner = json.get(object, "pretokenizers") orelse return unsupported("Sequence without steps", diag);
        if (inner != .array) return unsupported("Sequence without steps", diag);
        for (inner.array.items) |item| try collect(item, steps, diag);
        return;
    }
    const step: Step = if (std.mem.eql(u8, kind, "ByteLevel")) blk: {
        if (try json.getBool(object, "add_prefix_space", diag) orelse true) return unsupported("ByteLevel with add_prefix_space", diag);
        break :blk .{ .byte_level = try json.getBool(object, "use_regex", diag) orelse true };
    } else if (std.mem.eql(u8, kind, "Digits")) blk: {
        if (!(try json.getBool(object, "individual_digits", diag) orelse false)) return unsupported("Digits in groups", diag);
        break :blk .digits;
    } else if (std.mem.eql(u8, kind, "Split")) blk: {
        const invert = try json.getBool(object, "invert", diag) orelse false;
        const behavior = try json.getString(object, "behavior", diag) orelse "";
        // Cutting out what matches, or removing what does not: the same for patterns that match all text.
        const isolated = std.mem.eql(u8, behavior, "Isolated") and !invert;
        const kept = std.mem.eql(u8, behavior, "Removed") and invert;
        if (!isolated and !kept) return unsupported("Split that drops text", diag);
        const pattern = try json.asObject(json.get(object, "pattern") orelse .null, "pattern", diag);
        break :blk .{ .split = try json.getString(pattern, "Regex", diag) orelse return unsupported("Split without a regex", diag) };
    } else if (std.mem.eql(u8, kind, "Metaspace")) blk: {
        const scheme = try json.getString(object, "prepend_scheme", diag) orelse "always";
        const replacement = try json.getString(object, "replacement", diag) orelse "▁";
        if (!std.mem.eql(u8, replacement, "▁")) return unsupported("Metaspace with another mark than ▁", diag);
        break :blk .{ .metaspace = !std.mem.eql(u8, scheme, "never") };
    } else return unsupported(kind, diag);
    if (steps.items.len == steps.capacity) return unsupported("more than four steps", diag);
    steps.appendAssumeCapacity(step);
}

fn unsupported(what: []const u8, diag: *Diagnostic) Error {
    diag.set("tokenizer.json: pre_tokenizer step \"{s}\" has no counterpart in GGUF", .{what});
    return error.UnsupportedTokenizer;
}

/// llama.cpp does not normalise byte-level text; NFC changes nothing in text as people type it, anything else does.
fn checkNormalizer(root: json.Object, diag: *Diagnostic) (Error || json.Error)!void {
    const value = json.get(root, "normalizer") orelse return;
    const object = try json.asObject(value, "normalizer", diag);
    const kind = try json.getString(object, "type", diag) orelse "";
    if (std.mem.eql(u8, kind, "NFC")) return;
    if (std.mem.eql(u8, kind, "Sequence")) if (json.get(object, "normalizers")) |inner| if (inner == .array and inner.array.items.len == 0) return;
    diag.set("tokenizer.json: normalizer \"{s}\" has no counterpart in a byte-level GGUF vocabulary", .{kind});
    return error.UnsupportedTokenizer;
}

fn pieces(root: json.Object, steps: []const Step, diag: *Diagnostic) (Error || json.Error)!Kind {
    if (steps.len == 1 and steps[0] == .metaspace) {
        if (json.get(root, "normalizer") != null) return unsupported("Metaspace and a normalizer", diag);
        return .{ .pieces = .{ .add_space_prefix = steps[0].metaspace } };
    }
    if (steps.len != 0) return unsupported("steps before pieces", diag);
    const object = try json.asObject(json.get(root, "normalizer") orelse .null, "normalizer", diag);
    var prefix = false;
    var replaces = false;
    const list: []const json.Value = if (json.get(object, "normalizers")) |inner|
        (if (inner == .array) inner.array.items else &.{})
    else
        &.{.{ .object = object }};
    for (list) |item| {
        const step = try json.asObject(item, "normalizers", diag);
        const kind = try json.getString(step, "type", diag) orelse "";
        if (std.mem.eql(u8, kind, "Prepend")) {
            prefix = true;
        } else if (std.mem.eql(u8, kind, "Replace")) {
            const pattern = try json.asObject(json.get(step, "pattern") orelse .null, "pattern", diag);
            const from = try json.getString(pattern, "String", diag) orelse "";
            const to = try json.getString(step, "content", diag) orelse "";
            replaces = std.mem.eql(u8, from, " ") and std.mem.eql(u8, to, "▁");
        } else {
            diag.set("tokenizer.json: normalizer \"{s}\" has no counterpart in a GGUF vocabulary of pieces", .{kind});
            return error.UnsupportedTokenizer;
        }
    }
    if (!replaces) return unsupported("spaces that are not replaced by ▁", diag);
    return .{ .pieces = .{ .add_space_prefix = prefix } };
}

const testing = std.testing;

fn expectKind(text: []const u8, override: ?[]const u8, expected: ?[]const u8, words: []const u8) !void {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();

    var diag: Diagnostic = .{};
    const root = (try json.parse(arena.allocator(), text, .{}, &diag)).object;
    const got = detect(root, root.get("model").?.object, override, &diag) catch |err| {
        if (expected != null) std.debug.print("{t}: {s}\n", .{ err, diag.text() });
        try testing.expect(expected == null);
        try testing.expect(std.mem.find(u8, diag.text(), words) != null);
        return;
    };
    switch (got) {
        .byte_level => |name| try testing.expectEqualStrings(expected.?, name),
        .pieces => |p| try testing.expectEqualStrings(expected.?, if (p.add_space_prefix) "▁" else "-"),
    }
}

const bytes_plain =
    \\{"type":"ByteLevel","add_prefix_space":false,"use_regex":false}
;
const bytes_regex =
    \\{"type":"ByteLevel","add_prefix_space":false,"use_regex":true}
;

fn sequence(comptime first: []const u8, comptime second: []const u8, comptime model: []const u8) []const u8 {
    return "{\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[" ++ first ++ "," ++ second ++ "]},\"model\":" ++ model ++ "}";
}

fn split(comptime regex: []const u8) []const u8 {
    return "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" ++ regex ++ "\"},\"behavior\":\"Isolated\",\"invert\":false}";
}

test "each known chain has its name" {
    const l3 = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+";
    const q2 = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+";
    try expectKind(sequence(split(l3), bytes_plain, "{\"ignore_merges\":true}"), null, "llama-bpe", "");
    try expectKind(sequence(split(l3), bytes_plain, "{}"), null, "smaug-bpe", "");
    try expectKind(sequence(split(q2), bytes_plain, "{}"), null, "qwen2", "");
    try expectKind(sequence("{\"type\":\"Digits\",\"individual_digits\":true}", bytes_regex, "{}"), null, "smollm", "");
    try expectKind("{\"pre_tokenizer\":" ++ bytes_regex ++ ",\"model\":{}}", null, "gpt-2", "");
}

test "an unknown regex is shown, and an explicit name settles it" {
    const odd = sequence(split("[a-z]+"), bytes_plain, "{}");
    try expectKind(odd, null, null, "[a-z]+");
    try expectKind(odd, "qwen2", "qwen2", "");
    try expectKind(odd, "qwen9", null, "qwen9");
}

test "steps and normalizers that GGUF cannot say are refused" {
    try expectKind("{\"pre_tokenizer\":{\"type\":\"Whitespace\"},\"model\":{}}", null, null, "Whitespace");
    try expectKind("{\"pre_tokenizer\":{\"type\":\"ByteLevel\"},\"model\":{}}", null, null, "add_prefix_space");
    try expectKind("{\"normalizer\":{\"type\":\"Lowercase\"},\"pre_tokenizer\":" ++ bytes_regex ++ ",\"model\":{}}", null, null, "Lowercase");
    try expectKind("{\"model\":{}}", null, null, "byte_fallback");
}

test "pieces with or without a leading space" {
    try expectKind("{\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"▁\",\"prepend_scheme\":\"first\"},\"model\":{\"byte_fallback\":true}}", null, "▁", "");
    const replace = "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"▁\"}";
    try expectKind("{\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"▁\"}," ++ replace ++ "]},\"model\":{\"byte_fallback\":true}}", null, "▁", "");
    try expectKind("{\"normalizer\":" ++ replace ++ ",\"model\":{\"byte_fallback\":true}}", null, "-", "");
    try expectKind("{\"normalizer\":{\"type\":\"NFKC\"},\"model\":{\"byte_fallback\":true}}", null, null, "NFKC");
}
