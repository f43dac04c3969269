//! The tokenizer's keys: lists of one length, texts that differ, merges that lead somewhere, ids that exist.
//!
//! Lists are walked once; memory follows what the file holds. Does not know: how text is cut, what a chat template means.

const std = @import("std");
const base = @import("base");
const gguf = @import("../gguf.zig");
const subject_file = @import("subject.zig");
const Subject = subject_file.Subject;
const printable = base.bytes.printable;
const OutOfMemory = error{OutOfMemory};

pub const key = struct {
    pub const model = "tokenizer.ggml.model";
    pub const pre = "tokenizer.ggml.pre";
    pub const tokens = "tokenizer.ggml.tokens";
    pub const types = "tokenizer.ggml.token_type";
    pub const scores = "tokenizer.ggml.scores";
    pub const merges = "tokenizer.ggml.merges";
    pub const template = "tokenizer.chat_template";
};

/// ggml's kinds of token.
pub const kind = struct {
    pub const normal = 1;
    pub const unknown = 2;
    pub const control = 3;
    pub const user_defined = 4;
    pub const unused = 5;
    pub const last = 6;
};

const models = [_][]const u8{ "gpt2", "llama", "bert", "t5", "rwkv", "plamo2", "gemma4", "hybriddna", "whitespace", "none", "no_vocab" };

/// Rules of cutting text that llama.cpp of August 2026 has.
const cutting_rules = [_][]const u8{
    "default",      "llama3",      "llama-v3",                "llama-bpe",    "falcon3",    "falcon-h1",                "pixtral",
    "midm-2.0",     "lfm2",        "jina-v5-nano",            "minicpm5",     "kimi-k2",    "deepseek-llm",             "deepseek-coder",
    "deepseek-v3",  "spark2_5",    "youtu",                   "falcon",       "mpt",        "starcoder",                "gpt-2",
    "phi-2",        "jina-es",     "jina-de",                 "gigachat",     "jina-v2-es", "jina-v2-de",               "a.x-4.0",
    "mellum",       "modern-bert", "jais-2",                  "gemma4",       "sarvam-moe", "granite-embed-multi-311m", "jina-v1-en",
    "jina-v2-code", "roberta-bpe", "whitespace",              "refact",       "command-r",  "qwen2",                    "deepseek-r1-qwen",
    "kormo",        "f2llmv2",     "qwen35",                  "stablelm2",    "olmo",       "dbrx",                     "smaug-bpe",
    "poro-chat",    "chatglm-bpe", "glm4",                    "glm5",         "viking",     "jais",                     "tekken",
    "smollm",       "codeshell",   "bloom",                   "gpt3-finnish", "exaone",     "exaone4",                  "exaone-moe",
    "chameleon",    "minerva-7b",  "megrez",                  "gpt-4o",       "llama4",     "kanana2",                  "talkie",
    "tiny_aya",     "cohere2moe",  "granite-embed-multi-97m", "superbpe",     "trillion",   "granite-docling",          "bailingmoe",
    "bailingmoe2",  "llada-moe",   "seed-coder",              "hunyuan",      "hy_v4",      "hunyuan-dense",            "joyai-llm",
    "ufakzeka",     "grok-2",      "afmoe",                   "laguna",       "minimax-m2", "solar-open",               "mellum2",
};

pub fn isCuttingRule(name: []const u8) bool {
    return contains(&cutting_rules, name);
}

fn contains(list: []const []const u8, name: []const u8) bool {
    for (list) |item| if (std.mem.eql(u8, item, name)) return true;
    return false;
}

/// What the chat template's check needs to know.
pub const Vocabulary = struct {
    texts: []const []const u8,
    ids: std.StringHashMapUnmanaged(u32),
    byte_level: bool,
};

/// All checks of the tokenizer's keys; null where there is no vocabulary to go on with. `pre` replaces `tokenizer.ggml.pre`.
pub fn check(subject: *Subject, pre: ?[]const u8) OutOfMemory!?Vocabulary {
    const report = subject.report;
    const model = subject.text(key.model) orelse {
        try report.add(.tokenizer_missing, key.model, false, "{s} is missing", .{key.model});
        return null;
    };
    if (!contains(&models, model)) {
        try report.add(.tokenizer_model, key.model, false, "{s} is {f}; gpt2 and llama are common", .{ key.model, printable(model) });
        return null;
    }
    if (std.mem.eql(u8, model, "none") or std.mem.eql(u8, model, "no_vocab")) return null;
    const tokens = subject.array(key.tokens, .string) orelse {
        if (subject.get(key.tokens) == null) try report.add(.tokenizer_missing, key.tokens, false, "{s} is missing", .{key.tokens});
        return null;
    };
    var checker: Checker = .{
        .subject = subject,
        .byte_level = std.mem.eql(u8, model, "gpt2"),
        .pieces = std.mem.eql(u8, model, "llama"),
        .texts = .empty,
    };
    try checker.texts.ensureTotalCapacity(subject.arena, tokens.count);
    var it = tokens.strings();
    while (it.next()) |text| checker.texts.appendAssumeCapacity(text);
    if (checker.byte_level) try checkPre(subject, pre);
    try checker.lengths();
    try checker.typeValues();
    try checker.compareTexts();
    if (checker.byte_level) try checker.mergesLead();
    try checkIds(subject, checker.texts.items.len);
    // Other kinds are not chatted with.
    if (!checker.byte_level and !checker.pieces) return null;
    return .{ .texts = checker.texts.items, .ids = checker.ids, .byte_level = checker.byte_level };
}

fn checkPre(subject: *Subject, wanted: ?[]const u8) OutOfMemory!void {
    const found = subject.text(key.pre);
    if (found == null) {
        try subject.report.add(.pre_missing, key.pre, wanted != null, "{s} is missing", .{key.pre});
    } else if (!isCuttingRule(found.?)) {
        try subject.report.add(.pre_unknown, key.pre, wanted != null, "{s} is {f}", .{ key.pre, printable(found.?) });
    }
    if (wanted) |name| try subject.put(key.pre, .{ .string = name });
}

const Checker = struct {
    subject: *Subject,
    byte_level: bool,
    pieces: bool,
    texts: std.ArrayList([]const u8),
    ids: std.StringHashMapUnmanaged(u32) = .empty,
    /// Every text there is; filled when the first one is renamed.
    taken: std.StringHashMapUnmanaged(void) = .empty,
    /// One kind for each token; empty when the file has none.
    kinds: []i32 = &.{},

    const filler_score = -1000;

    fn lengths(self: *Checker) OutOfMemory!void {
        const subject = self.subject;
        const report = subject.report;
        const arena = subject.arena;
        const declared = self.texts.items.len;
        const rows: usize = if (subject.tensor("token_embd.weight")) |t| (if (t.content.data.len > 0) t.ne[1] else declared) else declared;
        if (declared != rows) {
            const few = declared < rows;
            try report.add(.vocab_length, key.tokens, few, "{s} has {d} entries, token_embd.weight {d} rows", .{ key.tokens, declared, rows });
        }
        if (subject.array(key.types, .i32)) |types| {
            self.kinds = try arena.alloc(i32, @max(declared, rows));
            for (self.kinds, 0..) |*k, i| k.* = if (i < types.count) types.at(i32, i) else if (i < declared) kind.normal else kind.unused;
            if (types.count < declared) {
                try report.add(.token_type_length, key.types, true, "{s} has {d} entries for {d} tokens", .{ key.types, types.count, declared });
            }
        }
        if (subject.get(key.scores)) |value| {
            try self.scoreLength(value.array, declared, rows);
        } else if (self.pieces) try report.add(.scores_missing, key.scores, false, "{s} is missing", .{key.scores});

        if (declared < rows) {
            try self.texts.ensureTotalCapacity(arena, rows);
            for (declared..rows) |id| self.texts.appendAssumeCapacity(try std.fmt.allocPrint(arena, "[PAD{d}]", .{id}));
            try subject.put(key.tokens, try subject.packStrings(self.texts.items));
        }
        if (self.kinds.len > 0 and (declared < rows or report.has(.token_type_length))) try subject.put(key.types, try subject.packNumbers(i32, self.kinds[0..self.texts.items.len]));

        if (declared < rows or declared == rows) try checkDeclaredSize(subject, rows);
    }

    fn scoreLength(self: *Checker, scores: gguf.Array, declared: usize, rows: usize) OutOfMemory!void {
        const subject = self.subject;
        if (scores.element != .f32 and scores.element != .i32) return; // Said already: the key's type.
        if (scores.count < declared) {
            const fillers = self.kinds.len > 0 and for (scores.count..declared) |i| {
                if (self.kinds[i] != kind.unused and self.kinds[i] != kind.control) break false;
            } else true;
            try subject.report.add(.scores_length, key.scores, fillers, "{s} has {d} entries for {d} tokens", .{ key.scores, scores.count, declared });
            if (!fillers) return;
        }
        if (scores.count >= rows) return;
        const all = try subject.arena.alloc(f32, rows);
        for (all, 0..) |*score, i| score.* = if (i >= scores.count) filler_score else switch (scores.element) {
            .f32 => scores.at(f32, i),
            else => @floatFromInt(scores.at(i32, i)),
        };
        try subject.put(key.scores, try subject.packNumbers(f32, all));
    }

    fn typeValues(self: *Checker) OutOfMemory!void {
        var wrong: usize = 0;
        var first: usize = 0;
        for (self.kinds, 0..) |*k, i| {
            if (k.* >= 0 and k.* <= kind.last) continue;
            if (wrong == 0) first = i;
            wrong += 1;
        }
        if (wrong == 0) return;
        try self.subject.report.add(.token_type_value, key.types, true, "{s} is {d} for token {d}; kinds are 1 to 6 ({d} such tokens)", .{ key.types, self.kinds[first], first, wrong });
        for (self.kinds) |*k| if (k.* < 0 or k.* > kind.last) {
            k.* = kind.normal;
        };
        try self.subject.put(key.types, try self.subject.packNumbers(i32, self.kinds));
    }

    fn compareTexts(self: *Checker) OutOfMemory!void {
        const subject = self.subject;
        const report = subject.report;
        const arena = subject.arena;
        try self.ids.ensureTotalCapacity(arena, std.math.cast(u32, self.texts.items.len) orelse return error.OutOfMemory);
        var renamed = false;
        for (self.texts.items, 0..) |*text, i| {
            const id: u32 = @intCast(i);
            if (text.len == 0) {
                try report.add(.token_empty, key.tokens, false, "token {d} has no text", .{id});
                continue; // llama.cpp gives each a text of its own.
            }
            if (!std.unicode.utf8ValidateSlice(text.*)) try report.add(.token_utf8, key.tokens, false, "token {d} is {f}, which is not UTF-8", .{ id, printable(text.*) });
            const slot = self.ids.getOrPutAssumeCapacity(text.*);
            if (!slot.found_existing) {
                slot.value_ptr.* = id;
                continue;
            }
            const other = slot.value_ptr.*;
            const filler: ?u32 = if (self.isFiller(id)) id else if (self.isFiller(other)) other else null;
            const mends = filler != null;
            try report.add(.token_duplicate, key.tokens, mends, "tokens {d} and {d} have the same text {f}", .{ other, id, printable(text.*) });
            if (filler) |renames| {
                if (renames == other) slot.value_ptr.* = id;
                self.texts.items[renames] = try self.freeText(renames);
                renamed = true;
            }
        }
        if (renamed) try subject.put(key.tokens, try subject.packStrings(self.texts.items));
    }

    /// A text nobody has: fillers may already be called [PADn].
    fn freeText(self: *Checker, id: u32) OutOfMemory![]const u8 {
        const arena = self.subject.arena;
        if (self.taken.count() == 0) {
            try self.taken.ensureTotalCapacity(arena, @intCast(self.texts.items.len)); // Fits, as `ids` did.
            for (self.texts.items) |text| self.taken.putAssumeCapacity(text, {});
        }
        var text = try std.fmt.allocPrint(arena, "[PAD{d}]", .{id});
        while (self.taken.contains(text)) text = try std.fmt.allocPrint(arena, "{s}_", .{text});
        try self.taken.put(arena, text, {});
        return text;
    }

    fn isFiller(self: *const Checker, id: u32) bool {
        if (self.kinds.len > id and self.kinds[id] == kind.unused) return true;
        for ([_][]const u8{ "[PAD", "<unused", "[unused", "<|reserved", "<reserved", "<|unused", "<|dummy" }) |begin| {
            if (std.mem.startsWith(u8, self.texts.items[id], begin)) return true;
        }
        return false;
    }

    fn mergesLead(self: *Checker) OutOfMemory!void {
        const subject = self.subject;
        const report = subject.report;
        const merges = subject.array(key.merges, .string) orelse {
            if (subject.get(key.merges) == null) try report.add(.merges_missing, key.merges, false, "{s} is missing", .{key.merges});
            return;
        };
        var joined: std.ArrayList(u8) = .empty;
        var it = merges.strings();
        var i: usize = 0;
        while (it.next()) |text| : (i += 1) {
            const space = if (text.len < 3) null else std.mem.findScalarPos(u8, text, 1, ' ');
            if (space == null or space.? + 1 == text.len) {
                try report.add(.merges_broken, key.merges, false, "entry {d} of {s}, {f}, is not two texts with a space between", .{ i, key.merges, printable(text) });
                continue;
            }
            joined.clearRetainingCapacity();
            try joined.appendSlice(subject.arena, text[0..space.?]);
            try joined.appendSlice(subject.arena, text[space.? + 1 ..]);
            for ([_][]const u8{ text[0..space.?], text[space.? + 1 ..], joined.items }) |part| if (!self.ids.contains(part)) {
                try report.add(.merges_broken, key.merges, false, "entry {d} of {s}, {f}, names {f}, which is no token", .{ i, key.merges, printable(text), printable(part) });
                break;
            };
        }
    }
};

fn checkDeclaredSize(subject: *Subject, rows: usize) OutOfMemory!void {
    var buffer: Subject.KeyBuffer = undefined;
    const name = subject.keyOf(&buffer, "vocab_size");
    const declared = subject.whole(name) orelse return;
    if (declared == rows) return;
    const value = std.math.cast(u32, rows) orelse return;
    try subject.report.add(.vocab_size, name, true, "{s} is {d}; token_embd.weight has {d} rows", .{ name, declared, rows });
    try subject.put(name, .{ .u32 = value });
}

fn checkIds(subject: *Subject, count: usize) OutOfMemory!void {
    var at: usize = 0;
    while (at < subject.keys.count()) {
        const name = subject.keys.keys()[at];
        if (std.mem.startsWith(u8, name, "tokenizer.ggml.") and std.mem.endsWith(u8, name, "_token_id")) if (subject.whole(name)) |id| if (id >= count) {
            try subject.report.add(.special_id_range, name, true, "{s} is {d}; it must be below the vocabulary's size, {d}", .{ name, id, count });
            subject.remove(name);
            continue;
        };
        at += 1;
    }
}
