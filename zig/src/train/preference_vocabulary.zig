//! Whether a reference speaks the model's language: two tokenizers that give one id to different tokens make its
//! log-probabilities those of another text, and the sizes may agree all the same.
//!
//! Compared are the vocabularies and added tokens of two `tokenizer.json`, not their bytes: a tokenizer saved again by another
//! version is the same one. Without both files there is nothing to compare.
//! Does not know: how a tokenizer works.

const std = @import("std");
const base = @import("base");

const Storage = base.storage.Storage;
const Value = std.json.Value;

pub const file_name = "tokenizer.json";

/// Refuses a reference in folder `other` whose tokenizer is not that of folder `own`; `diag` names the token.
pub fn check(
    gpa: std.mem.Allocator,
    storage: Storage,
    own: []const u8,
    other: []const u8,
    diag: *base.Diagnostic,
) error{ OutOfMemory, ReferenceMismatch }!void {
    var arena: std.heap.ArenaAllocator = .init(gpa);
    defer arena.deinit();

    const a = arena.allocator();
    const ours = try text(a, storage, own) orelse return;
    const theirs = try text(a, storage, other) orelse return;
    if (std.mem.eql(u8, ours, theirs)) return;
    const mine = try parse(a, ours) orelse return;
    const strange = try parse(a, theirs) orelse return;
    const token = differing(member(member(mine, "model"), "vocab"), member(member(strange, "model"), "vocab")) orelse
        differing(try addedOf(a, mine), try addedOf(a, strange)) orelse return;
    diag.set("dpo.ref_model: {s} has another vocabulary than the model: \"{s}\" is not the same token in both. " ++
        "Choose a reference with the model's tokenizer, or leave ref_model out", .{ other, token[0..@min(token.len, 60)] });
    return error.ReferenceMismatch;
}

fn text(arena: std.mem.Allocator, storage: Storage, folder: []const u8) error{OutOfMemory}!?[]const u8 {
    const path = try base.storage.join(arena, folder, file_name);
    return storage.readAlloc(arena, path) catch |err| if (err == error.OutOfMemory) error.OutOfMemory else null;
}

/// Null for what is no JSON: whoever needs the tokenizer says so.
fn parse(arena: std.mem.Allocator, json: []const u8) error{OutOfMemory}!?Value {
    return std.json.parseFromSliceLeaky(Value, arena, json, .{}) catch |err| if (err == error.OutOfMemory) error.OutOfMemory else null;
}

fn member(value: ?Value, key: []const u8) ?Value {
    const given = value orelse return null;
    return if (given == .object) given.object.get(key) else null;
}

/// Added tokens by their text.
fn addedOf(arena: std.mem.Allocator, tokenizer: Value) error{OutOfMemory}!?Value {
    const list = member(tokenizer, "added_tokens") orelse return null;
    if (list != .array) return null;
    var tokens: std.json.ObjectMap = .empty;
    for (list.array.items) |token| {
        const content = member(token, "content") orelse continue;
        const id = member(token, "id") orelse continue;
        if (content == .string) try tokens.put(arena, content.string, id);
    }
    return .{ .object = tokens };
}

/// A token that two vocabularies do not agree on; null when there is none. A vocabulary is an object (token to id) or a
/// list (of tokens with scores, where only the tokens count).
fn differing(a: ?Value, b: ?Value) ?[]const u8 {
    const x = a orelse return null;
    const y = b orelse return null;
    if (x == .object and y == .object) {
        return missing(x.object, y.object) orelse missing(y.object, x.object);
    }
    if (x == .array and y == .array) {
        for (x.array.items, 0..) |entry, i| {
            const here = pieceOf(entry) orelse return null;
            if (i >= y.array.items.len) return here;
            if (!std.mem.eql(u8, here, pieceOf(y.array.items[i]) orelse return null)) return here;
        }
        return if (y.array.items.len > x.array.items.len) pieceOf(y.array.items[x.array.items.len]) else null;
    }
    return null;
}

fn missing(from: std.json.ObjectMap, in: std.json.ObjectMap) ?[]const u8 {
    for (from.keys(), from.values()) |token, id| {
        const there = in.get(token) orelse return token;
        if (id != .integer or there != .integer) continue;
        if (id.integer != there.integer) return token;
    }
    return null;
}

fn pieceOf(entry: Value) ?[]const u8 {
    if (entry != .array or entry.array.items.len == 0) return null;
    const first = entry.array.items[0];
    return if (first == .string) first.string else null;
}

// ---- tests ----

const testing = std.testing;

fn expect(own: []const u8, other: []const u8, token: ?[]const u8) !void {
    var disk: base.storage.MemoryDisk = try .init(testing.allocator);
    defer disk.deinit();
    const storage = disk.storage();
    for ([_][]const u8{ "own", "other" }, [_][]const u8{ own, other }) |folder, json| {
        try storage.ensureFolder(folder);
        const path = try base.storage.join(testing.allocator, folder, file_name);
        defer testing.allocator.free(path);
        if (json.len > 0) try base.storage.writeFile(testing.allocator, storage, path, json);
    }
    var diag: base.Diagnostic = .{};
    const result = check(testing.allocator, storage, "own", "other", &diag);
    const wanted = token orelse return result;
    try testing.expectError(error.ReferenceMismatch, result);
    errdefer std.debug.print("{s}\n", .{diag.text()});
    var words: [80]u8 = undefined;
    try testing.expect(std.mem.find(u8, diag.text(), try std.fmt.bufPrint(&words, "\"{s}\" is not the same token", .{wanted})) != null);
}

test "the same tokens are the same vocabulary, however the file is written" {
    const own = "{\"model\": {\"vocab\": {\"a\": 0, \"b\": 1}}, \"added_tokens\": [{\"id\": 2, \"content\": \"<s>\", \"special\": true}]}";
    try expect(own, own, null);
    try expect(own, "{\"version\": \"2\", \"added_tokens\": [{\"content\": \"<s>\", \"id\": 2}], \"model\": {\"vocab\": {\"b\": 1, \"a\": 0}}}", null);
    try expect("{\"model\": {\"vocab\": [[\"a\", 0.5], [\"b\", 1]]}}", "{\"model\": {\"vocab\": [[\"a\", 0.25], [\"b\", 1]]}}", null);
}

test "a token that is another one is named" {
    const own = "{\"model\": {\"vocab\": {\"a\": 0, \"b\": 1}}, \"added_tokens\": [{\"id\": 2, \"content\": \"<s>\"}]}";
    try expect(own, "{\"model\": {\"vocab\": {\"a\": 1, \"b\": 0}}}", "a");
    try expect(own, "{\"model\": {\"vocab\": {\"a\": 0, \"c\": 1}}}", "b");
    try expect(own, "{\"model\": {\"vocab\": {\"a\": 0, \"b\": 1, \"c\": 2}}}", "c");
    try expect(own, "{\"model\": {\"vocab\": {\"a\": 0, \"b\": 1}}, \"added_tokens\": [{\"id\": 3, \"content\": \"<s>\"}]}", "<s>");
    try expect("{\"model\": {\"vocab\": [[\"a\", 0], [\"b\", 1]]}}", "{\"model\": {\"vocab\": [[\"a\", 0], [\"c\", 1]]}}", "b");
}

test "without two tokenizers, or with files that are none, nothing is said" {
    const own = "{\"model\": {\"vocab\": {\"a\": 0}}}";
    try expect(own, "", null);
    try expect("", own, null);
    for ([_][]const u8{ "no", "[]", "{}", "{\"model\": 3}", "{\"model\": {\"vocab\": 7}}", "{\"model\": {\"vocab\": [1]}}" }) |json| {
        try expect(own, json, null);
        try expect(json, own, null);
    }
}
