//! The description beside a token file: `training_data.bin` has `training_data.json`. See docs/formats/token-bin.md.
//!
//! `parse` takes the text of a file that may be anything: it is a manifest only if its `schema` says so. Keys it does not
//! know are left alone; keys it knows must have the right kind. Names of side files are plain names in the same folder,
//! so a manifest can never point elsewhere.
//! Does not know: whether the files it names exist.

const std = @import("std");
const base = @import("base");
const Allocator = std.mem.Allocator;

pub const schema = "abi_train/token-bin/1";
/// Of a set of files (`shards.zig`).
pub const set_schema = "abi_train/token-bin/2";
/// Files a set may have.
pub const max_shards = 4096;
/// A larger file is refused before it is parsed.
pub const max_bytes = 1 << 20;

/// What the rows are.
pub const Kind = enum {
    /// Rows of their own, or a stream.
    tokens,
    /// Rows 2i and 2i + 1 are a prompt with the better and with the worse answer.
    preference,
};

/// One file of a set, as the set's manifest has it.
pub const ShardEntry = struct {
    /// Name of its `.bin`, in the same folder. Its own manifest lies beside it.
    file: []const u8,
    count: u64,
    rows: ?u64 = null,
    bin_crc32c: u32,
};

pub const Manifest = struct {
    /// Tokens in the `.bin`; of a set in all files.
    count: u64,
    kind: Kind = .tokens,
    /// Rows in the `.idx`; null when there is none.
    rows: ?u64 = null,
    /// Ids are below this; null when not known.
    vocab_size: ?u32 = null,
    /// SHA-256 of the tokenizer, lower-case hex.
    tokenizer_hash: ?[]const u8 = null,
    /// Name of the chat or text format the tokens were made with.
    format: ?[]const u8 = null,
    /// Seed of the preparation.
    seed: ?u64 = null,
    source: ?[]const u8 = null,
    license: ?[]const u8 = null,
    /// Whether the licence allows commercial use; null when not known.
    commercial_use: ?bool = null,
    /// What a user of the data has to know, one sentence each.
    notes: []const []const u8 = &.{},
    /// Rows that lost their end, rows with nothing to learn, lines that were no rows; null when nobody counted.
    truncated: ?u64 = null,
    dropped: ?u64 = null,
    skipped: ?u64 = null,
    /// File names of the loss mask and the row starts, in the same folder.
    mask: ?[]const u8 = null,
    idx: ?[]const u8 = null,
    bin_crc32c: ?u32 = null,
    mask_crc32c: ?u32 = null,
    idx_crc32c: ?u32 = null,
    /// A writer was interrupted while it moved the files in place: what lies there belongs to no one dataset.
    incomplete: bool = false,
    /// The files of a set, in order; empty for a single file. A set has no side files of its own.
    shards: []const ShardEntry = &.{},
};

pub const ParseError = error{ MalformedManifest, OutOfMemory };

/// The manifest in `text`; its strings live in `arena`. On `MalformedManifest` `diag` names the key and the rule.
pub fn parse(arena: Allocator, text: []const u8, diag: *base.Diagnostic) ParseError!Manifest {
    if (text.len > max_bytes) return fail(diag, "it has {d} bytes; a manifest has at most {d}", .{ text.len, max_bytes });
    const root = std.json.parseFromSliceLeaky(std.json.Value, arena, text, .{
        .duplicate_field_behavior = .@"error",
        .parse_numbers = false,
        .max_value_len = max_bytes,
    }) catch |err| switch (err) {
        error.OutOfMemory => return error.OutOfMemory,
        error.DuplicateField => return fail(diag, "it has a key twice", .{}),
        else => return fail(diag, "it is not valid JSON", .{}),
    };
    if (root != .object) return fail(diag, "it is not a JSON object", .{});
    const object = &root.object;
    const given = try stringOf(object, "schema", diag) orelse
        return fail(diag, "it has no \"schema\": \"" ++ schema ++ "\"", .{});
    const is_set = std.mem.eql(u8, given, set_schema);
    if (!is_set and !std.mem.eql(u8, given, schema))
        return fail(diag, "its schema is \"{s}\"; this program reads \"" ++ schema ++ "\" and, of sets, \"" ++ set_schema ++ "\"", .{given});
    var manifest: Manifest = .{
        .count = try wholeOf(u64, object, "count", diag) orelse return fail(diag, "it has no \"count\"", .{}),
        .kind = try kindOf(object, diag),
        .rows = try wholeOf(u64, object, "rows", diag),
        .vocab_size = try wholeOf(u32, object, "vocab_size", diag),
        .tokenizer_hash = try stringOf(object, "tokenizer_hash", diag),
        .format = try stringOf(object, "format", diag),
        .seed = try wholeOf(u64, object, "seed", diag),
        .source = try stringOf(object, "source", diag),
        .license = try stringOf(object, "license", diag),
        .commercial_use = try boolOf(object, "commercial_use", diag),
        .notes = try notesOf(arena, object, diag),
        .truncated = try wholeOf(u64, object, "truncated", diag),
        .dropped = try wholeOf(u64, object, "dropped", diag),
        .skipped = try wholeOf(u64, object, "skipped", diag),
        .mask = try fileNameOf(object, "mask", diag),
        .idx = try fileNameOf(object, "idx", diag),
    };
    if (object.get("incomplete")) |value| switch (value) {
        .bool => |b| manifest.incomplete = b,
        else => return fail(diag, "its \"incomplete\" is not true or false", .{}),
    };
    if (object.getPtr("crc32c")) |sums| switch (sums.*) {
        .null => {},
        .object => |*sum_object| {
            manifest.bin_crc32c = try checksumOf(sum_object, "bin", diag);
            manifest.mask_crc32c = try checksumOf(sum_object, "mask", diag);
            manifest.idx_crc32c = try checksumOf(sum_object, "idx", diag);
        },
        else => return fail(diag, "its \"crc32c\" is not an object", .{}),
    };
    if (is_set) try readShards(arena, object, &manifest, diag);
    return manifest;
}

/// Reads `shards` and holds the sums to them.
fn readShards(arena: Allocator, object: *const Object, manifest: *Manifest, diag: *base.Diagnostic) ParseError!void {
    const list = switch (object.get("shards") orelse .null) {
        .array => |list| list.items,
        else => return fail(diag, "it is the manifest of a set, but its \"shards\" is no list", .{}),
    };
    if (list.len == 0 or list.len > max_shards)
        return fail(diag, "its \"shards\" lists {d} files; a set has 1 to {d}", .{ list.len, max_shards });
    if (manifest.mask != null or manifest.idx != null)
        return fail(diag, "it is the manifest of a set, which names no \"mask\" or \"idx\"; those of its files do", .{});
    const entries = try arena.alloc(ShardEntry, list.len);
    var count: u64 = 0;
    var rows: u64 = 0;
    for (entries, list, 0..) |*entry, *item, place| {
        if (item.* != .object) return fail(diag, "its \"shards\" has an entry {d} that is not an object", .{place});
        entry.* = shardOf(&item.object, diag) catch |err| {
            if (err == error.MalformedManifest) diag.prepend("entry {d} of its \"shards\": ", .{place});
            return err;
        };
        if ((entry.rows == null) != (manifest.rows == null))
            return fail(diag, "its entry {d} and itself do not agree on whether there are rows", .{place});
        count = base.checked.add(u64, count, entry.count) catch return fail(diag, "its files have more tokens than 64 bits count", .{});
        rows = base.checked.add(u64, rows, entry.rows orelse 0) catch return fail(diag, "its files have more rows than 64 bits count", .{});
    }
    if (count != manifest.count or (manifest.rows != null and rows != manifest.rows.?)) return fail(
        diag,
        "it says {d} tokens and {d} rows, but its files have {d} and {d}",
        .{ manifest.count, manifest.rows orelse 0, count, rows },
    );
    manifest.shards = entries;
}

fn shardOf(object: *const Object, diag: *base.Diagnostic) ParseError!ShardEntry {
    return .{
        .file = try fileNameOf(object, "file", diag) orelse return fail(diag, "it has no \"file\"", .{}),
        .count = try wholeOf(u64, object, "count", diag) orelse return fail(diag, "it has no \"count\"", .{}),
        .rows = try wholeOf(u64, object, "rows", diag),
        .bin_crc32c = try checksumOf(object, "crc32c", diag) orelse return fail(diag, "it has no \"crc32c\"", .{}),
    };
}

const Object = @FieldType(std.json.Value, "object");

fn stringOf(object: *const Object, comptime key: []const u8, diag: *base.Diagnostic) ParseError!?[]const u8 {
    const value = object.get(key) orelse return null;
    return switch (value) {
        .null => null,
        .string => |s| s,
        else => fail(diag, "its \"" ++ key ++ "\" is not text", .{}),
    };
}

fn boolOf(object: *const Object, comptime key: []const u8, diag: *base.Diagnostic) ParseError!?bool {
    return switch (object.get(key) orelse return null) {
        .null => null,
        .bool => |b| b,
        else => fail(diag, "its \"" ++ key ++ "\" is not true, false or null", .{}),
    };
}

fn notesOf(arena: Allocator, object: *const Object, diag: *base.Diagnostic) ParseError![]const []const u8 {
    const list = switch (object.get("notes") orelse return &.{}) {
        .null => return &.{},
        .array => |array| array.items,
        else => return fail(diag, "its \"notes\" is not a list of texts", .{}),
    };
    const notes = try arena.alloc([]const u8, list.len);
    for (notes, list) |*note, item| note.* = switch (item) {
        .string => |text| text,
        else => return fail(diag, "its \"notes\" is not a list of texts", .{}),
    };
    return notes;
}

fn kindOf(object: *const Object, diag: *base.Diagnostic) ParseError!Kind {
    const name = try stringOf(object, "kind", diag) orelse return .tokens;
    return std.meta.stringToEnum(Kind, name) orelse
        fail(diag, "its \"kind\" is \"{s}\"; this program knows \"tokens\" and \"preference\"", .{name[0..@min(name.len, 60)]});
}

fn wholeOf(comptime T: type, object: *const Object, comptime key: []const u8, diag: *base.Diagnostic) ParseError!?T {
    const value = object.get(key) orelse return null;
    switch (value) {
        .null => return null,
        .number_string => |digits| if (std.fmt.parseInt(T, digits, 10)) |n| return n else |_| {},
        else => {},
    }
    return fail(diag, "its \"" ++ key ++ "\" is not a whole number from 0 to {d}", .{std.math.maxInt(T)});
}

fn fileNameOf(object: *const Object, comptime key: []const u8, diag: *base.Diagnostic) ParseError!?[]const u8 {
    const name = try stringOf(object, key, diag) orelse return null;
    const plain = name.len > 0 and name.len <= 255 and !std.mem.eql(u8, name, ".") and
        !std.mem.eql(u8, name, "..") and std.mem.findAny(u8, name, "/\\:\x00") == null;
    if (!plain) return fail(diag, "its \"" ++ key ++ "\" is not the name of a file in the same folder", .{});
    return name;
}

fn checksumOf(object: *const Object, comptime key: []const u8, diag: *base.Diagnostic) ParseError!?u32 {
    const digits = try stringOf(object, key, diag) orelse return null;
    return base.checksum.parseCrcHex(digits) orelse
        fail(diag, "its checksum of \"" ++ key ++ "\" is not eight lower-case hex digits", .{});
}

/// Writes the manifest as JSON; `parse` gives the same values back.
pub fn write(manifest: *const Manifest, writer: *std.Io.Writer) std.Io.Writer.Error!void {
    var out: std.json.Stringify = .{ .writer = writer, .options = .{ .whitespace = .indent_2 } };
    try out.beginObject();
    const is_set = manifest.shards.len > 0;
    try out.objectField("schema");
    try out.write(if (is_set) set_schema else schema);
    inline for (.{ "count", "rows", "vocab_size", "tokenizer_hash", "format", "seed", "source", "license" }) |key| {
        try out.objectField(key);
        try out.write(@field(manifest, key));
    }
    if (!is_set) inline for (.{ "mask", "idx" }) |key| {
        try out.objectField(key);
        try out.write(@field(manifest, key));
    };
    inline for (.{ "commercial_use", "truncated", "dropped", "skipped" }) |key| {
        if (@field(manifest, key)) |value| {
            try out.objectField(key);
            try out.write(value);
        }
    }
    if (manifest.notes.len > 0) {
        try out.objectField("notes");
        try out.write(manifest.notes);
    }
    if (manifest.kind != .tokens) {
        try out.objectField("kind");
        try out.write(@tagName(manifest.kind));
    }
    if (manifest.incomplete) {
        try out.objectField("incomplete");
        try out.write(true);
    }
    if (is_set) {
        try writeShards(&out, manifest.shards);
        try out.endObject();
        return writer.writeByte('\n');
    }
    try out.objectField("crc32c");
    try out.beginObject();
    inline for (.{ "bin", "mask", "idx" }) |key| {
        if (@field(manifest, key ++ "_crc32c")) |sum| {
            try out.objectField(key);
            try out.print("\"{x:0>8}\"", .{sum});
        }
    }
    try out.endObject();
    try out.endObject();
    try writer.writeByte('\n');
}

fn writeShards(out: *std.json.Stringify, shards: []const ShardEntry) std.Io.Writer.Error!void {
    try out.objectField("shards");
    try out.beginArray();
    for (shards) |*shard| {
        try out.beginObject();
        try out.objectField("file");
        try out.write(shard.file);
        try out.objectField("count");
        try out.write(shard.count);
        try out.objectField("rows");
        try out.write(shard.rows);
        try out.objectField("crc32c");
        try out.print("\"{x:0>8}\"", .{shard.bin_crc32c});
        try out.endObject();
    }
    try out.endArray();
}

fn fail(diag: *base.Diagnostic, comptime format: []const u8, arguments: anytype) error{MalformedManifest} {
    diag.set(format, arguments);
    return error.MalformedManifest;
}

const testing = std.testing;

test "a manifest reads back as it was written" {
    const manifest: Manifest = .{
        .count = 12,
        .kind = .preference,
        .rows = 3,
        .vocab_size = 96,
        .tokenizer_hash = "ab\"c",
        .format = "chatml",
        .seed = std.math.maxInt(u64),
        .source = "own text\nsecond line",
        .license = "Apache-2.0",
        .commercial_use = false,
        .notes = &.{ "for research", "two" },
        .truncated = 1,
        .dropped = 0,
        .skipped = 7,
        .mask = "x.mask",
        .idx = "x.idx",
        .bin_crc32c = 0xab,
        .mask_crc32c = 0xffff_ffff,
        .idx_crc32c = 0,
        .incomplete = true,
    };
    var text: std.Io.Writer.Allocating = .init(testing.allocator);
    defer text.deinit();
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();

    try write(&manifest, &text.writer);
    var diag: base.Diagnostic = .{};
    try testing.expectEqualDeep(manifest, try parse(arena.allocator(), text.written(), &diag));
}

fn expectMalformed(text: []const u8, expected: []const u8) !void {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    var diag: base.Diagnostic = .{};
    try testing.expectError(error.MalformedManifest, parse(arena.allocator(), text, &diag));
    try testing.expectEqualStrings(expected, diag.text());
}

test "what is not a manifest is refused with the key" {
    const head = "{\"schema\": \"" ++ schema ++ "\", ";
    try expectMalformed("", "it is not valid JSON");
    try expectMalformed("[]", "it is not a JSON object");
    try expectMalformed("{}", "it has no \"schema\": \"abi_train/token-bin/1\"");
    try expectMalformed("{\"schema\": \"abi_train/token-bin/3\", \"count\": 1}", "its schema is \"abi_train/token-bin/3\"; this program reads \"abi_train/token-bin/1\" and, of sets, \"abi_train/token-bin/2\"");
    try expectMalformed(head ++ "\"x\": 1}", "it has no \"count\"");
    try expectMalformed(head ++ "\"count\": -1}", "its \"count\" is not a whole number from 0 to 18446744073709551615");
    try expectMalformed(head ++ "\"count\": 1, \"count\": 2}", "it has a key twice");
    try expectMalformed(head ++ "\"count\": 1, \"vocab_size\": \"9\"}", "its \"vocab_size\" is not a whole number from 0 to 4294967295");
    try expectMalformed(head ++ "\"count\": 1, \"source\": 1}", "its \"source\" is not text");
    try expectMalformed(head ++ "\"count\": 1, \"kind\": \"images\"}", "its \"kind\" is \"images\"; this program knows \"tokens\" and \"preference\"");
    for ([_][]const u8{ "../x", "/etc/passwd", "..", ".", "", "a\\\\b", "c:x", "a\\u0000b" }) |name| {
        const text = try std.mem.concat(testing.allocator, u8, &.{ head, "\"count\": 1, \"mask\": \"", name, "\"}" });
        defer testing.allocator.free(text);
        try expectMalformed(text, "its \"mask\" is not the name of a file in the same folder");
    }
    try expectMalformed(head ++ "\"count\": 1, \"crc32c\": []}", "its \"crc32c\" is not an object");
    try expectMalformed(head ++ "\"count\": 1, \"crc32c\": {\"bin\": \"12\"}}", "its checksum of \"bin\" is not eight lower-case hex digits");
}

test "the manifest of a set reads back, and one whose sums or entries are wrong is refused" {
    const shards = [_]ShardEntry{
        .{ .file = "x-00000-of-00002.bin", .count = 7, .rows = 2, .bin_crc32c = 0xab },
        .{ .file = "x-00001-of-00002.bin", .count = 5, .rows = 1, .bin_crc32c = 0xffff_0001 },
    };
    const manifest: Manifest = .{ .count = 12, .rows = 3, .vocab_size = 96, .license = "MIT", .shards = &shards };
    var text: std.Io.Writer.Allocating = .init(testing.allocator);
    defer text.deinit();
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();

    try write(&manifest, &text.writer);
    var diag: base.Diagnostic = .{};
    try testing.expectEqualDeep(manifest, try parse(arena.allocator(), text.written(), &diag));

    const head = "{\"schema\": \"" ++ set_schema ++ "\", \"count\": 4, ";
    const entry = "{\"file\": \"a.bin\", \"count\": 4, \"crc32c\": \"0123abcd\"}";
    _ = try parse(arena.allocator(), head ++ "\"shards\": [" ++ entry ++ "]}", &diag);
    try expectMalformed(head ++ "\"rows\": null}", "it is the manifest of a set, but its \"shards\" is no list");
    try expectMalformed(head ++ "\"shards\": []}", "its \"shards\" lists 0 files; a set has 1 to 4096");
    try expectMalformed(head ++ "\"shards\": [3]}", "its \"shards\" has an entry 0 that is not an object");
    try expectMalformed(head ++ "\"shards\": [" ++ entry ++ "," ++ entry ++ "]}", "it says 4 tokens and 0 rows, but its files have 8 and 0");
    try expectMalformed(head ++ "\"rows\": 1, \"shards\": [" ++ entry ++ "]}", "its entry 0 and itself do not agree on whether there are rows");
    try expectMalformed(head ++ "\"mask\": \"a\", \"shards\": [" ++ entry ++ "]}", "it is the manifest of a set, which names no \"mask\" or \"idx\"; those of its files do");
    try expectMalformed(head ++ "\"shards\": [{\"file\": \"../a\", \"count\": 4, \"crc32c\": \"0123abcd\"}]}", "entry 0 of its \"shards\": its \"file\" is not the name of a file in the same folder");
    try expectMalformed(head ++ "\"shards\": [{\"file\": \"a.bin\", \"count\": 4}]}", "entry 0 of its \"shards\": it has no \"crc32c\"");
}

test "keys of later versions are left alone" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    var diag: base.Diagnostic = .{};
    const manifest = try parse(arena.allocator(), "{\"schema\": \"" ++ schema ++ "\", \"count\": 4, \"packing\": {\"a\": [1]}}", &diag);
    try testing.expectEqual(4, manifest.count);
    try testing.expectEqual(null, manifest.mask);
}

test "damaged text gives a manifest or a sentence, never anything else" {
    const good = "{\"schema\": \"" ++ schema ++ "\", \"count\": 12, \"mask\": \"x.mask\", \"incomplete\": false, \"crc32c\": {\"bin\": \"0123abcd\"}}";
    var prng: base.Prng = .init(7);
    for (0..2000) |_| {
        var arena: std.heap.ArenaAllocator = .init(testing.allocator);
        defer arena.deinit();
        var text: [good.len]u8 = good.*;
        // Behind the schema: a damaged schema ends the reading early.
        for (0..@intCast(1 + prng.below(3))) |_| text[@intCast(36 + prng.below(text.len - 36))] = @truncate(prng.next());
        var diag: base.Diagnostic = .{};
        const manifest = parse(arena.allocator(), &text, &diag) catch |err| {
            try testing.expectEqual(error.MalformedManifest, err);
            try testing.expect(diag.text().len > 0);
            continue;
        };
        if (manifest.mask) |name| try testing.expect(std.mem.findScalar(u8, name, '/') == null);
    }
}
