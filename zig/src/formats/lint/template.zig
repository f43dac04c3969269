//! Where the chat template and the special tokens must agree: what ends a turn, what begins a text.
//!
//! The template is not run; its text is searched for markers. What llama.cpp finds by a token's text alone is known here, because a file
//! that only llama.cpp stops on is worth a note. Does not know: Jinja.

const std = @import("std");
const base = @import("base");
const subject_file = @import("subject.zig");
const tokens = @import("tokens.zig");
const Subject = subject_file.Subject;
const Vocabulary = tokens.Vocabulary;
const OutOfMemory = error{OutOfMemory};

const bos_key = "tokenizer.ggml.bos_token_id";
const eos_key = "tokenizer.ggml.eos_token_id";
const eot_key = "tokenizer.ggml.eot_token_id";
const eom_key = "tokenizer.ggml.eom_token_id";

/// Texts that end generation in llama.cpp whatever the keys say.
const ends_by_text = [_][]const u8{
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",       "<end_of_turn>",      "<|endoftext|>",    "</s>", "<|eom_id|>", "<EOT>",
    "_<EOT>",     "[EOT]",      "[EOS]",   "<eos>",      "<turn|>",  "[e~[",      "<|end_of_text|>", "<end_of_utterance>", "<|tool_response>",
};

/// Markers without bars that end a turn in somebody's template.
const plain_ends = [_][]const u8{ "<end_of_turn>", "</s>", "<end_of_utterance>", "<EOT>", "[EOT]" };

/// What ends a text where no template says it.
const text_ends = [_][]const u8{ "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>" };

const most_markers = 64;

pub fn check(subject: *Subject, vocabulary: *const Vocabulary) OutOfMemory!void {
    const report = subject.report;
    const template = subject.text(tokens.key.template);
    var end: ?u32 = null;
    if (template) |text| {
        var markers: [most_markers][]const u8 = undefined;
        const found = markersOf(text, &markers);
        for (found) |marker| try checkMarker(subject, vocabulary, marker);
        end = turnEnd(found, text, vocabulary);
    } else try report.add(.template_missing, tokens.key.template, false, "{s} is missing", .{tokens.key.template});

    if (subject.get(eos_key) == null) {
        const id = end orelse for (text_ends) |text| {
            if (vocabulary.ids.get(text)) |id| break id;
        } else null;
        if (id) |chosen| {
            try report.add(.eos_missing, eos_key, true, "{s} is missing; {s} is token {d}", .{ eos_key, vocabulary.texts[chosen], chosen });
            try subject.put(eos_key, .{ .u32 = chosen });
        } else try report.add(.eos_missing, eos_key, false, "{s} is missing", .{eos_key});
    } else if (end) |id| if (template != null and std.mem.find(u8, template.?, "eos_token") == null) try checkEnd(subject, vocabulary, id);

    try checkBegin(subject, vocabulary, template);
}

fn checkEnd(subject: *Subject, vocabulary: *const Vocabulary, id: u32) OutOfMemory!void {
    for ([_][]const u8{ eos_key, eot_key, eom_key }) |name| if (subject.whole(name) == id) return;
    const text = vocabulary.texts[id];
    const by_text = for (ends_by_text) |known| {
        if (std.mem.eql(u8, known, text)) break true;
    } else false;
    const mends = subject.get(eot_key) == null;
    try subject.report.add(if (by_text) .eot_missing else .template_stop, eot_key, mends, "the chat template ends turns with {f}, token {d}, which none of eos, eot and eom is", .{ base.bytes.printable(text), id });
    if (mends) try subject.put(eot_key, .{ .u32 = id });
}

fn checkMarker(subject: *Subject, vocabulary: *const Vocabulary, marker: []const u8) OutOfMemory!void {
    const id = vocabulary.ids.get(marker) orelse
        return subject.report.add(.template_markers, tokens.key.template, false, "{s} writes {s}, which is no token", .{ tokens.key.template, marker });
    const types = subject.array(tokens.key.types, .i32) orelse return;
    if (id >= types.count or types.at(i32, id) != tokens.kind.normal) return;
    try subject.report.add(.template_tokens, tokens.key.types, true, "{s} writes {s}, which token {d} is, but as an ordinary one", .{ tokens.key.template, marker, id });
    const raw = try subject.arena.dupe(u8, types.raw);
    base.bytes.store(i32, raw[4 * @as(usize, id) ..][0..4], tokens.kind.control);
    try subject.put(tokens.key.types, .{ .array = .{ .element = .i32, .count = types.count, .raw = raw } });
}

/// `<|name|>`, each once, in order.
fn markersOf(text: []const u8, buffer: *[most_markers][]const u8) []const []const u8 {
    var count: usize = 0;
    var at: usize = 0;
    next: while (std.mem.findPos(u8, text, at, "<|")) |start| {
        at = start + 2;
        while (at < text.len and (std.ascii.isAlphanumeric(text[at]) or text[at] == '_')) at += 1;
        if (at == start + 2 or !std.mem.startsWith(u8, text[at..], "|>")) continue;
        at += 2;
        const marker = text[start..at];
        for (buffer[0..count]) |known| if (std.mem.eql(u8, known, marker)) continue :next;
        if (count == buffer.len) break;
        buffer[count] = marker;
        count += 1;
    }
    return buffer[0..count];
}

/// The token that the template puts behind an answer, as far as its name says so.
fn turnEnd(markers: []const []const u8, template: []const u8, vocabulary: *const Vocabulary) ?u32 {
    // Harmony: <|end|> ends a message, not the answer.
    if (has(markers, "<|channel|>")) return vocabulary.ids.get("<|return|>");
    for ([_][]const u8{ "<|im_end|>", "<|eot_id|>", "<|end|>" }) |marker| if (has(markers, marker)) return vocabulary.ids.get(marker);
    for (plain_ends) |marker| if (std.mem.find(u8, template, marker) != null) if (vocabulary.ids.get(marker)) |id| return id;
    for (markers) |marker| {
        if (std.mem.find(u8, marker, "header") != null) continue;
        for ([_][]const u8{ "end", "eot", "eos", "stop" }) |word| {
            if (std.mem.find(u8, marker, word) != null) if (vocabulary.ids.get(marker)) |id| return id;
        }
    }
    return null;
}

fn has(markers: []const []const u8, wanted: []const u8) bool {
    for (markers) |marker| if (std.mem.eql(u8, marker, wanted)) return true;
    return false;
}

fn checkBegin(subject: *Subject, vocabulary: *const Vocabulary, template: ?[]const u8) OutOfMemory!void {
    const adds = subject.flag("tokenizer.ggml.add_bos_token") orelse addsByDefault(subject, vocabulary);
    if (!adds) return;
    const bos = subject.whole(bos_key) orelse {
        if (vocabulary.byte_level) try subject.report.add(.bos_missing, bos_key, false, "{s} is missing, and texts begin with that token", .{bos_key});
        return;
    };
    const text = template orelse return;
    const literal = bos < vocabulary.texts.len and vocabulary.texts[bos].len > 0 and std.mem.find(u8, text, vocabulary.texts[bos]) != null;
    if (literal or std.mem.find(u8, text, "bos_token") != null)
        try subject.report.add(.template_bos, tokens.key.template, false, "{s} writes the bos token, and add_bos_token is on", .{tokens.key.template});
}

fn addsByDefault(subject: *const Subject, vocabulary: *const Vocabulary) bool {
    if (!vocabulary.byte_level) return true;
    const pre = subject.text(tokens.key.pre) orelse return false;
    for ([_][]const u8{ "llama-bpe", "llama3", "llama-v3", "tekken" }) |name| if (std.mem.eql(u8, name, pre)) return true;
    return false;
}

test "markers are found once each, and only whole ones" {
    var buffer: [most_markers][]const u8 = undefined;
    const found = markersOf("{{ '<|im_start|>' + role }}<|im_end|><|im_start|>'<|' + x + '|>'<||><|a b|><|cut", &buffer);
    try std.testing.expectEqual(2, found.len);
    try std.testing.expectEqualStrings("<|im_start|>", found[0]);
    try std.testing.expectEqualStrings("<|im_end|>", found[1]);
}
