//! A Hugging Face tokenizer folder as GGUF's `tokenizer.*` keys.
//!
//! Reads `tokenizer.json`, `tokenizer_config.json`, `generation_config.json` and the chat template, and writes every id below the model's
//! vocabulary size exactly once. Whatever would give other ids than the original is refused: unknown pre-tokenizers, merges of unknown
//! tokens, two ids with one text. Does not know: tensors, how text is split.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const json = @import("json.zig");
const gguf_writer = @import("gguf_writer.zig");
const export_pre = @import("export_pre.zig");
const Diagnostic = base.Diagnostic;
const Storage = base.storage.Storage;
const printable = base.bytes.printable;

pub const Error = json.Error || gguf_writer.Error || export_pre.Error || base.storage.Error || error{
    /// `tokenizer.json` lacks a part or contradicts itself.
    InvalidTokenizer,
    /// An id at or beyond the embedding's rows.
    TokenBeyondVocabulary,
    /// Two ids with the same text: llama.cpp aborts on those.
    DuplicateToken,
};

pub const Options = struct {
    /// `tokenizer.ggml.pre` by name, where the regex is not known.
    pre: ?[]const u8 = null,
};

/// ggml's kinds of token.
const Kind = enum(i32) { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

const file_limit = 256 << 20;

/// Adds all keys to `header`. Strings are copied; nothing of the folder stays open. `diag` names file and field.
pub fn write(gpa: std.mem.Allocator, storage: Storage, folder: []const u8, config: arch.ModelConfig, options: Options, header: *gguf_writer.Header, diag: *Diagnostic) Error!void {
    var arena: std.heap.ArenaAllocator = .init(gpa);
    defer arena.deinit();

    var w: Writer = .{ .arena = arena.allocator(), .storage = storage, .folder = folder, .config = config, .header = header, .diag = diag };
    return w.run(options);
}

const Writer = struct {
    arena: std.mem.Allocator,
    storage: Storage,
    folder: []const u8,
    config: arch.ModelConfig,
    header: *gguf_writer.Header,
    diag: *Diagnostic,
    /// id → text, for ids that the tokenizer has.
    texts: []?[]const u8 = &.{},
    kinds: []Kind = &.{},
    ids: std.StringHashMapUnmanaged(u32) = .empty,

    fn run(self: *Writer, options: Options) Error!void {
        const root = try self.requiredJson("tokenizer.json");
        const settings = try self.optionalJson("tokenizer_config.json") orelse json.Object.empty;
        const generation = try self.optionalJson("generation_config.json") orelse json.Object.empty;
        const model = try json.asObject(json.get(root, "model") orelse return self.invalid("tokenizer.json has no \"model\"", .{}), "model", self.diag);
        try self.checkModel(model);
        const kind = try export_pre.detect(root, model, options.pre, self.diag);

        self.texts = try self.arena.alloc(?[]const u8, self.config.vocab_size);
        @memset(self.texts, null);
        self.kinds = try self.arena.alloc(Kind, self.config.vocab_size);
        @memset(self.kinds, .unused);
        try self.readVocabulary(model);
        try self.readAddedTokens(root);
        const merges = try self.readMerges(model);
        if (kind == .pieces) try self.markPieces(model);
        try self.fillHoles();

        switch (kind) {
            .byte_level => |pre| {
                try self.header.put([]const u8, "tokenizer.ggml.model", "gpt2");
                try self.header.put([]const u8, "tokenizer.ggml.pre", pre);
            },
            .pieces => {
                try self.header.put([]const u8, "tokenizer.ggml.model", "llama");
                try self.header.put([]const u8, "tokenizer.ggml.pre", "default");
            },
        }
        const texts = try self.arena.alloc([]const u8, self.texts.len);
        const kinds = try self.arena.alloc(i32, self.kinds.len);
        for (texts, kinds, self.texts, self.kinds) |*text, *number, stored, k| {
            text.* = stored.?; // fillHoles left none empty.
            number.* = @backingInt(k);
        }
        try self.header.put([]const []const u8, "tokenizer.ggml.tokens", texts);
        if (kind == .pieces) try self.header.put([]const f32, "tokenizer.ggml.scores", try self.scores(merges));
        try self.header.put([]const i32, "tokenizer.ggml.token_type", kinds);
        if (kind == .byte_level) {
            const joined = try self.arena.alloc([]const u8, merges.len);
            for (joined, merges) |*line, m| line.* = try std.fmt.allocPrint(self.arena, "{s} {s}", .{ m.left, m.right });
            try self.header.put([]const []const u8, "tokenizer.ggml.merges", joined);
        }
        try self.putSpecials(root, settings, generation);
        if (kind == .pieces) try self.header.put(bool, "tokenizer.ggml.add_space_prefix", kind.pieces.add_space_prefix);
        try self.putTemplate(settings);
    }

    fn checkModel(self: *Writer, model: json.Object) Error!void {
        const kind = try json.getString(model, "type", self.diag) orelse "BPE";
        if (!std.mem.eql(u8, kind, "BPE")) {
            self.diag.set("tokenizer.json: the model is \"{s}\"; only BPE can be written as GGUF", .{kind});
            return error.UnsupportedTokenizer;
        }
        inline for (.{ "continuing_subword_prefix", "end_of_word_suffix" }) |name| {
            const text = try json.getString(model, name, self.diag) orelse "";
            if (text.len > 0) {
                self.diag.set("tokenizer.json: {s} is \"{s}\", which GGUF cannot say", .{ name, text });
                return error.UnsupportedTokenizer;
            }
        }
    }

    fn readVocabulary(self: *Writer, model: json.Object) Error!void {
        const vocab = try json.asObject(json.get(model, "vocab") orelse return self.invalid("tokenizer.json has no vocab", .{}), "vocab", self.diag);
        for (vocab.keys(), vocab.values()) |text, value| {
            if (value != .integer) return self.invalid("tokenizer.json: the id of token {f} is not a whole number", .{printable(text)});
            try self.place(text, value.integer, .normal);
        }
    }

    fn readAddedTokens(self: *Writer, root: json.Object) Error!void {
        const list = json.get(root, "added_tokens") orelse return;
        if (list != .array) return self.invalid("tokenizer.json: added_tokens is not a list", .{});
        for (list.array.items) |item| {
            const token = try json.asObject(item, "added_tokens", self.diag);
            const text = try json.getString(token, "content", self.diag) orelse return self.invalid("tokenizer.json: an added token has no content", .{});
            const id = try json.getInteger(token, "id", self.diag) orelse return self.invalid("tokenizer.json: added token {f} has no id", .{printable(text)});
            const special = try json.getBool(token, "special", self.diag) orelse false;
            try self.place(text, id, if (special or looksLikeControl(text)) .control else .user_defined);
        }
    }

    fn looksLikeControl(text: []const u8) bool {
        if (std.mem.startsWith(u8, text, "<|") and std.mem.endsWith(u8, text, "|>")) return true;
        return std.mem.eql(u8, text, "<pad>") or (std.mem.startsWith(u8, text, "<unused") and std.mem.endsWith(u8, text, ">"));
    }

    fn place(self: *Writer, text: []const u8, id: i64, kind: Kind) Error!void {
        if (id < 0 or id >= self.texts.len) {
            self.diag.set("tokenizer.json: token {f} has id {d}, but the model's embedding has {d} rows. Resize the embedding or use the tokenizer the model was made with", .{ printable(text), id, self.texts.len });
            return error.TokenBeyondVocabulary;
        }
        if (text.len == 0) return self.invalid("tokenizer.json: token {d} has no text", .{id});
        const at: u32 = @intCast(id);
        if (self.texts[at]) |old| {
            if (!std.mem.eql(u8, old, text)) return self.invalid("tokenizer.json: id {d} is both {f} and {f}", .{ id, printable(old), printable(text) });
            self.kinds[at] = kind;
            return;
        }
        const slot = try self.ids.getOrPut(self.arena, text);
        if (slot.found_existing) {
            self.diag.set("tokenizer.json: token {f} has two ids, {d} and {d}", .{ printable(text), slot.value_ptr.*, id });
            return error.DuplicateToken;
        }
        slot.value_ptr.* = at;
        self.texts[at] = text;
        self.kinds[at] = kind;
    }

    const Merge = struct { left: []const u8, right: []const u8, result: u32 };

    /// Both spellings: `"a b"` and `["a", "b"]`.
    fn readMerges(self: *Writer, model: json.Object) Error![]const Merge {
        const list = json.get(model, "merges") orelse return self.invalid("tokenizer.json has no merges", .{});
        if (list != .array) return self.invalid("tokenizer.json: merges is not a list", .{});
        const merges = try self.arena.alloc(Merge, list.array.items.len);
        var joined: std.ArrayList(u8) = .empty;
        for (merges, list.array.items, 0..) |*merge, item, i| {
            const left, const right = switch (item) {
                .string => |line| blk: {
                    const space = std.mem.findScalarPos(u8, line, 1, ' ') orelse return self.invalid("tokenizer.json: merge {d} has no space in it", .{i});
                    break :blk .{ line[0..space], line[space + 1 ..] };
                },
                .array => |pair| blk: {
                    if (pair.items.len != 2 or pair.items[0] != .string or pair.items[1] != .string)
                        return self.invalid("tokenizer.json: merge {d} is not a pair of texts", .{i});
                    break :blk .{ pair.items[0].string, pair.items[1].string };
                },
                else => return self.invalid("tokenizer.json: merge {d} is neither a text nor a pair", .{i}),
            };
            joined.clearRetainingCapacity();
            try joined.appendSlice(self.arena, left);
            try joined.appendSlice(self.arena, right);
            const result = self.ids.get(joined.items);
            if (!self.ids.contains(left) or !self.ids.contains(right) or result == null)
                return self.invalid("tokenizer.json: merge {d} ({f}, {f}) names a token that is not in the vocabulary", .{ i, printable(left), printable(right) });
            // GGUF joins the two with a space and splits at the first one after the first byte.
            if (std.mem.findScalarPos(u8, left, 1, ' ') != null)
                return self.invalid("tokenizer.json: merge {d} has a space inside its left half, which GGUF cannot say", .{i});
            merge.* = .{ .left = left, .right = right, .result = result.? };
        }
        return merges;
    }

    /// Types that only a vocabulary of pieces has: the 256 byte tokens, and the unknown one.
    fn markPieces(self: *Writer, model: json.Object) Error!void {
        var buffer: [6]u8 = undefined;
        for (0..256) |byte| {
            const text = std.fmt.bufPrint(&buffer, "<0x{X:0>2}>", .{byte}) catch unreachable; // Six bytes.
            const id = self.ids.get(text) orelse return self.invalid("tokenizer.json has byte_fallback, but no token {s}", .{text});
            self.kinds[id] = .byte;
        }
        if (try json.getString(model, "unk_token", self.diag)) |text| if (self.ids.get(text)) |id| {
            self.kinds[id] = .unknown;
        };
    }

    /// llama.cpp merges the pair whose result scores highest, Hugging Face the pair of lowest rank: minus the rank gives the same
    /// order. Tokens that are no result of a merge are never compared.
    fn scores(self: *Writer, merges: []const Merge) Error![]const f32 {
        const out = try self.arena.alloc(f32, self.texts.len);
        @memset(out, std.math.nan(f32));
        var rank: f32 = 0;
        for (merges) |merge| {
            if (!std.math.isNan(out[merge.result])) continue; // A later way to the same token.
            out[merge.result] = -rank;
            rank += 1;
        }
        for (out) |*score| if (std.math.isNan(score.*)) {
            score.* = 0;
        };
        return out;
    }

    fn fillHoles(self: *Writer) Error!void {
        for (self.texts, 0..) |*text, id| {
            if (text.* != null) continue;
            const name = try std.fmt.allocPrint(self.arena, "[PAD{d}]", .{id});
            if (self.ids.contains(name)) {
                self.diag.set("tokenizer.json: token {s} takes the name that fills id {d}", .{ name, id });
                return error.DuplicateToken;
            }
            text.* = name;
        }
    }

    fn putSpecials(self: *Writer, root: json.Object, settings: json.Object, generation: json.Object) Error!void {
        const template = try self.templateTokens(root);
        const eos = try self.named(settings, "eos_token") orelse self.config.eos_token_id;
        const bos = template.first orelse try self.named(settings, "bos_token") orelse self.config.bos_token_id;
        // Byte-level vocabularies without these keys would be read as 11 and 11.
        if (bos orelse eos) |id| try self.header.put(u32, "tokenizer.ggml.bos_token_id", id);
        if (eos orelse bos) |id| try self.header.put(u32, "tokenizer.ggml.eos_token_id", id);
        if (try self.named(settings, "unk_token")) |id| try self.header.put(u32, "tokenizer.ggml.unknown_token_id", id);
        if (try self.named(settings, "pad_token") orelse self.config.pad_token_id) |id| try self.header.put(u32, "tokenizer.ggml.padding_token_id", id);
        try self.putFurtherEnds(generation, eos);

        const add_bos = if (template.present) template.first != null else (try json.getBool(settings, "add_bos_token", self.diag) orelse false) and bos != null;
        const add_eos = if (template.present) template.last != null else (try json.getBool(settings, "add_eos_token", self.diag) orelse false) and eos != null;
        try self.header.put(bool, "tokenizer.ggml.add_bos_token", add_bos);
        try self.header.put(bool, "tokenizer.ggml.add_eos_token", add_eos);
    }

    /// `generation_config.json` may list several ends of text; GGUF has names for end of turn and end of message.
    fn putFurtherEnds(self: *Writer, generation: json.Object, eos: ?u32) Error!void {
        const value = json.get(generation, "eos_token_id") orelse return;
        const list: []const json.Value = if (value == .array) value.array.items else &.{value};
        var turn: ?u32 = null;
        var message: ?u32 = null;
        for (list) |item| {
            if (item != .integer) return self.invalid("generation_config.json: eos_token_id is not a whole number", .{});
            if (item.integer < 0 or item.integer >= self.texts.len) return self.invalid("generation_config.json: eos_token_id {d} is not below the vocabulary's size", .{item.integer});
            const id: u32 = @intCast(item.integer);
            if (id == eos) continue;
            const text = self.texts[id].?;
            if (std.mem.eql(u8, text, "<|eom_id|>")) {
                message = id;
            } else if (turn == null or std.mem.eql(u8, text, "<|eot_id|>") or std.mem.eql(u8, text, "<|im_end|>")) turn = id;
        }
        if (turn) |id| try self.header.put(u32, "tokenizer.ggml.eot_token_id", id);
        if (message) |id| try self.header.put(u32, "tokenizer.ggml.eom_token_id", id);
    }

    const Template = struct { present: bool = false, first: ?u32 = null, last: ?u32 = null };

    /// What the tokenizer itself puts around a text: the truth about add_bos and add_eos.
    fn templateTokens(self: *Writer, root: json.Object) Error!Template {
        const value = json.get(root, "post_processor") orelse return .{};
        const object = try json.asObject(value, "post_processor", self.diag);
        const kind = try json.getString(object, "type", self.diag) orelse "";
        if (std.mem.eql(u8, kind, "TemplateProcessing")) return self.oneTemplate(object);
        if (std.mem.eql(u8, kind, "Sequence")) if (json.get(object, "processors")) |list| if (list == .array) for (list.array.items) |item| {
            const inner = try json.asObject(item, "processors", self.diag);
            if (std.mem.eql(u8, try json.getString(inner, "type", self.diag) orelse "", "TemplateProcessing")) return self.oneTemplate(inner);
        };
        return .{};
    }

    fn oneTemplate(self: *Writer, object: json.Object) Error!Template {
        const single = json.get(object, "single") orelse return .{};
        if (single != .array) return .{};
        var result: Template = .{ .present = true };
        var seen_text = false;
        for (single.array.items) |item| {
            const step = try json.asObject(item, "single", self.diag);
            if (step.contains("Sequence")) {
                seen_text = true;
                continue;
            }
            const special = try json.asObject(json.get(step, "SpecialToken") orelse .null, "SpecialToken", self.diag);
            const text = try json.getString(special, "id", self.diag) orelse "";
            const id = self.ids.get(text) orelse return self.invalid("tokenizer.json: the post_processor names {f}, which is not in the vocabulary", .{printable(text)});
            const slot = if (seen_text) &result.last else &result.first;
            if (slot.* != null) return self.invalid("tokenizer.json: the post_processor adds more than one token on one side, which GGUF cannot say", .{});
            slot.* = id;
        }
        return result;
    }

    /// A token of `tokenizer_config.json`: a text, or an object with `content`.
    fn named(self: *Writer, settings: json.Object, key: []const u8) Error!?u32 {
        const value = json.get(settings, key) orelse return null;
        const text = switch (value) {
            .string => |s| s,
            .object => |o| try json.getString(o, "content", self.diag) orelse return null,
            else => return self.invalid("tokenizer_config.json: {s} is neither a text nor an object", .{key}),
        };
        if (text.len == 0) return null;
        return self.ids.get(text) orelse self.invalid("tokenizer_config.json: {s} is {f}, which is not in the vocabulary", .{ key, printable(text) });
    }

    /// The file of its own wins, as in transformers; several named templates are all kept.
    fn putTemplate(self: *Writer, settings: json.Object) Error!void {
        if (try self.read("chat_template.jinja")) |text| return self.header.put([]const u8, "tokenizer.chat_template", text);
        const value = json.get(settings, "chat_template") orelse return;
        switch (value) {
            .string => |text| try self.header.put([]const u8, "tokenizer.chat_template", text),
            .array => |list| {
                var names: std.ArrayList([]const u8) = .empty;
                for (list.items) |item| {
                    const entry = try json.asObject(item, "chat_template", self.diag);
                    const name = try json.getString(entry, "name", self.diag) orelse return self.invalid("tokenizer_config.json: a chat template has no name", .{});
                    const text = try json.getString(entry, "template", self.diag) orelse return self.invalid("tokenizer_config.json: chat template {f} has no text", .{printable(name)});
                    if (std.mem.eql(u8, name, "default")) {
                        try self.header.put([]const u8, "tokenizer.chat_template", text);
                        continue;
                    }
                    for (names.items) |old| if (std.mem.eql(u8, old, name)) return self.invalid("tokenizer_config.json: chat template {f} appears twice", .{printable(name)});
                    for (name) |c| if (!std.ascii.isAlphanumeric(c) and c != '_' and c != '-') return self.invalid("tokenizer_config.json: chat template name {f} has other signs than letters, digits, _ and -", .{printable(name)});
                    try names.append(self.arena, name);
                    try self.header.put([]const u8, try std.fmt.allocPrint(self.arena, "tokenizer.chat_template.{s}", .{name}), text);
                }
                if (names.items.len > 0) try self.header.put([]const []const u8, "tokenizer.chat_templates", names.items);
            },
            else => return self.invalid("tokenizer_config.json: chat_template is neither a text nor a list", .{}),
        }
    }

    fn requiredJson(self: *Writer, name: []const u8) Error!json.Object {
        return try self.optionalJson(name) orelse {
            self.diag.set("{s}: there is no {s}; give the folder of the tokenizer", .{ self.folder, name });
            return error.FileNotFound;
        };
    }

    fn optionalJson(self: *Writer, name: []const u8) Error!?json.Object {
        const text = try self.read(name) orelse return null;
        const value = json.parse(self.arena, text, .{ .size_bytes = file_limit }, self.diag) catch |err| {
            self.diag.prepend("{s}: ", .{name});
            return err;
        };
        return try json.asObject(value, name, self.diag);
    }

    /// The file's text in the arena, or null when there is none.
    fn read(self: *Writer, name: []const u8) Error!?[]const u8 {
        const path = try base.storage.join(self.arena, self.folder, name);
        return self.storage.readAlloc(self.arena, path) catch |err| switch (err) {
            error.FileNotFound => null,
            else => {
                base.storage.explain(self.diag, err, "read", path);
                return err;
            },
        };
    }

    fn invalid(self: *Writer, comptime format: []const u8, arguments: anytype) Error {
        self.diag.set(format, arguments);
        return error.InvalidTokenizer;
    }
};

test {
    _ = @import("export_tokenizer_test.zig");
}
