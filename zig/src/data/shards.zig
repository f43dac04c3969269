//! Several token files that are one dataset: a manifest beside them lists them in order. See docs/formats/token-bin.md.
//!
//! `open` holds every file to its entry and to the others: nothing is missing, twice, of another tokenizer, or in another
//! place. After it, token i of the set is token i of the files one behind the other, and row r likewise.
//! `join` makes the manifest from files that are there. Neither reads ids.
//! Does not know: order of training, packing (`loader.zig`), which see one sequence of tokens.

const std = @import("std");
const base = @import("base");
const manifest_module = @import("manifest.zig");
const tokenized = @import("tokenized.zig");
const TokenizedDataset = tokenized.TokenizedDataset;
const DataError = tokenized.DataError;
const Manifest = manifest_module.Manifest;
const Storage = base.storage.Storage;
const Allocator = std.mem.Allocator;

pub const JoinError = error{
    /// A file that is not ours has the manifest's name.
    NameTaken,
} || DataError;

/// One file of a set.
pub const Shard = struct {
    data: TokenizedDataset,
    /// Tokens and rows of the files before it.
    first_token: usize,
    first_row: usize,
};

/// The files that `manifest`, which lies at `manifest_path`, lists. Caller frees the slice and each dataset.
pub fn open(
    gpa: Allocator,
    arena: Allocator,
    storage: Storage,
    manifest_path: []const u8,
    manifest: *const Manifest,
    diag: *base.Diagnostic,
) DataError![]const Shard {
    const entries = manifest.shards;
    try checkNames(manifest_path, entries, diag);
    const shards = try gpa.alloc(Shard, entries.len);
    errdefer gpa.free(shards);

    var opened: usize = 0;
    errdefer for (shards[0..opened]) |*shard| shard.data.deinit();
    var tokens: usize = 0;
    var rows: usize = 0;
    for (shards, entries, 0..) |*shard, *entry, place| {
        const path = try tokenized.besides(arena, manifest_path, entry.file);
        shard.* = .{ .data = try openOne(gpa, storage, manifest_path, path, diag), .first_token = tokens, .first_row = rows };
        opened += 1;
        try checkEntry(manifest_path, entries, place, &shard.data, diag);
        try checkSame(manifest_path, manifest, &shards[0].data, &shard.data, diag);
        // The manifest's sums were checked, so these are sizes that files have.
        tokens += shard.data.count();
        rows += shard.data.rowCount() orelse 0;
    }
    return shards;
}

pub fn close(gpa: Allocator, shards: []const Shard) void {
    for (shards) |shard| {
        var data = shard.data;
        data.deinit();
    }
    gpa.free(shards);
}

/// Index of the last shard that begins at or before `position`: the one that has it. `field` names the count.
pub fn holder(shards: []const Shard, comptime field: []const u8, position: usize) usize {
    var low: usize = 0;
    var high = shards.len;
    while (high - low > 1) {
        const middle = (low + high) / 2;
        if (@field(shards[middle], field) <= position) low = middle else high = middle;
    }
    return low;
}

fn openOne(gpa: Allocator, storage: Storage, set: []const u8, path: []const u8, diag: *base.Diagnostic) DataError!TokenizedDataset {
    const there = storage.kind(path) catch |err| {
        base.storage.explain(diag, err, "read", path);
        return err;
    };
    if (there == null) return fail(
        error.ShardMissing,
        diag,
        "{s} is listed by {s}, but is not there. Copy it too, or prepare the data again",
        .{ path, set },
    );
    var data = try TokenizedDataset.openStorage(gpa, storage, path, .{}, diag);
    errdefer data.deinit();
    const own = data.manifest orelse return fail(
        error.ShardMissing,
        diag,
        "{s} is listed by {s}, but its own manifest is not there. Copy all files of the set, or prepare the data again",
        .{ path, set },
    );
    if (own.bin_crc32c == null)
        return fail(error.ShardMismatch, diag, "{s} is listed by {s}, but its own manifest has no checksum of it. Prepare the data again", .{ path, set });
    return data;
}

/// No file twice, and a name that counts (`x-00001-of-00003.bin`) in its place.
fn checkNames(set: []const u8, entries: []const manifest_module.ShardEntry, diag: *base.Diagnostic) DataError!void {
    for (entries, 0..) |*entry, place| {
        for (entries[0..place], 0..) |*before, other| if (std.mem.eql(u8, before.file, entry.file)) return fail(
            error.DuplicateShard,
            diag,
            "{s} lists {s} twice, as file {d} and {d}",
            .{ set, entry.file, other, place },
        );
        const number = Numbered.of(entry.file) orelse continue;
        if (number.index != place or number.count != entries.len) return fail(
            error.ShardOrder,
            diag,
            "{s} lists {s} as file {d} of {d}, which is not what its name says. Prepare the data again",
            .{ set, entry.file, place, entries.len },
        );
    }
}

const Numbered = struct {
    index: usize,
    count: usize,

    fn of(name: []const u8) ?Numbered {
        const stem = if (std.mem.endsWith(u8, name, ".bin")) name[0 .. name.len - 4] else return null;
        const of_at = std.mem.findLast(u8, stem, "-of-") orelse return null;
        const dash = std.mem.findScalarLast(u8, stem[0..of_at], '-') orelse return null;
        return .{
            .index = std.fmt.parseInt(usize, stem[dash + 1 .. of_at], 10) catch return null,
            .count = std.fmt.parseInt(usize, stem[of_at + 4 ..], 10) catch return null,
        };
    }
};

fn checkEntry(
    set: []const u8,
    entries: []const manifest_module.ShardEntry,
    place: usize,
    data: *const TokenizedDataset,
    diag: *base.Diagnostic,
) DataError!void {
    const entry = &entries[place];
    const sum = data.manifest.?.bin_crc32c.?;
    if (entry.count == data.count() and sameRows(entry.rows, data) and entry.bin_crc32c == sum) return;
    for (entries, 0..) |*other, index| if (other.bin_crc32c == sum and other.count == data.count()) {
        if (index != place) return fail(
            error.ShardOrder,
            diag,
            "{s} holds what {s} has as file {d} of the set, not as file {d}. The files changed places: copy them again, or prepare the data again",
            .{ data.path, set, index, place },
        );
    };
    return fail(
        error.ShardMismatch,
        diag,
        "{s} has {d} tokens with checksum {x:0>8}; {s} says {d} with {x:0>8}. It is from another run: prepare the data again",
        .{ data.path, data.count(), sum, set, entry.count, entry.bin_crc32c },
    );
}

fn sameRows(wanted: ?u64, data: *const TokenizedDataset) bool {
    const rows: ?u64 = if (data.rowCount()) |n| n else null;
    return std.meta.eql(wanted, rows);
}

/// What all files of a set share: `first` stands for those before.
fn checkSame(
    set: []const u8,
    manifest: *const Manifest,
    first: *const TokenizedDataset,
    data: *const TokenizedDataset,
    diag: *base.Diagnostic,
) DataError!void {
    const own = &data.manifest.?;
    const what = if (own.kind != manifest.kind)
        "kind"
    else if (!sameText(own.tokenizer_hash, manifest.tokenizer_hash))
        "tokenizer"
    else if (own.vocab_size != manifest.vocab_size)
        "vocabulary size"
    else if (!sameText(own.format, manifest.format))
        "format"
    else if (data.isRows() != first.isRows())
        "division into rows"
    else if ((data.mask == null) != (first.mask == null))
        "loss mask"
    else
        return;
    return fail(
        error.MixedShards,
        diag,
        "{s} has another {s} than the rest of {s}. A set is made with one tokenizer and one format: prepare the data again",
        .{ data.path, what, set },
    );
}

fn sameText(a: ?[]const u8, b: ?[]const u8) bool {
    const left = a orelse return b == null;
    return std.mem.eql(u8, left, b orelse return false);
}

/// Writes the manifest of the set `path` (`….bin`, which is no file) over the files `names` of the same folder, in this order.
/// The files stay as they are. Whoever prepares them again first calls `beginSet`.
pub fn join(gpa: Allocator, storage: Storage, path: []const u8, names: []const []const u8, diag: *base.Diagnostic) JoinError!void {
    var arena_state: std.heap.ArenaAllocator = .init(gpa);
    defer arena_state.deinit();

    const arena = arena_state.allocator();
    const manifest_path = try tokenized.siblingName(arena, path, ".json");
    if (names.len == 0 or names.len > manifest_module.max_shards) return fail(
        error.MalformedManifest,
        diag,
        "{s}: {d} files were given; a set has 1 to {d}",
        .{ path, names.len, manifest_module.max_shards },
    );
    const entries = try arena.alloc(manifest_module.ShardEntry, names.len);
    var all: Manifest = .{ .count = 0, .shards = entries };
    var notes: std.ArrayList([]const u8) = .empty;
    for (entries, names, 0..) |*entry, name, place| {
        var data = try openOne(gpa, storage, manifest_path, try tokenized.besides(arena, manifest_path, name), diag);
        defer data.deinit();

        const own = &data.manifest.?;
        entry.* = .{ .file = name, .count = data.count(), .rows = if (data.rowCount()) |n| n else null, .bin_crc32c = own.bin_crc32c.? };
        if (place == 0) {
            all.kind = own.kind;
            all.rows = if (entry.rows != null) 0 else null;
            all.vocab_size = own.vocab_size;
            all.tokenizer_hash = try copy(arena, own.tokenizer_hash);
            all.format = try copy(arena, own.format);
            all.seed = own.seed;
            all.commercial_use = own.commercial_use;
        }
        if (all.seed != own.seed) all.seed = null;
        all.commercial_use = both(all.commercial_use, own.commercial_use);
        all.source = try listed(arena, all.source, own.source, ", ");
        all.license = try listed(arena, all.license, own.license, " AND ");
        for (own.notes) |note| if (!isIn(notes.items, note)) try notes.append(arena, try arena.dupe(u8, note));
        inline for (.{ "truncated", "dropped", "skipped" }) |key| {
            if (@field(own, key)) |n| @field(all, key) = (@field(all, key) orelse 0) +| n;
        }
        all.count = base.checked.add(u64, all.count, entry.count) catch return tooLarge(path, diag);
        if (all.rows) |*rows| rows.* = base.checked.add(u64, rows.*, entry.rows orelse 0) catch return tooLarge(path, diag);
    }
    all.notes = notes.items;
    // As a reader will: what it would refuse is not written.
    close(gpa, try open(gpa, arena, storage, manifest_path, &all, diag));
    try writeManifest(arena, storage, manifest_path, &all, diag);
}

/// Says of the set `path` that its files are being written: readers refuse it until `join`.
pub fn beginSet(gpa: Allocator, storage: Storage, path: []const u8, diag: *base.Diagnostic) JoinError!void {
    var arena: std.heap.ArenaAllocator = .init(gpa);
    defer arena.deinit();

    const manifest_path = try tokenized.siblingName(arena.allocator(), path, ".json");
    try writeManifest(arena.allocator(), storage, manifest_path, &.{ .count = 0, .incomplete = true }, diag);
}

fn writeManifest(arena: Allocator, storage: Storage, path: []const u8, manifest: *const Manifest, diag: *base.Diagnostic) JoinError!void {
    // Only a manifest may be replaced: the name may hold someone's raw data.
    const old: ?[]u8 = storage.readAlloc(arena, path) catch |err| switch (err) {
        error.FileNotFound => null,
        else => {
            base.storage.explain(diag, err, "read", path);
            return err;
        },
    };
    if (old) |text| _ = manifest_module.parse(arena, text, diag) catch |err| switch (err) {
        error.OutOfMemory => return error.OutOfMemory,
        error.MalformedManifest => {
            diag.set("{s} would be overwritten, and it is no manifest of a dataset. Move it away, or choose another name", .{path});
            return error.NameTaken;
        },
    };
    var text: std.Io.Writer.Allocating = .init(arena);
    manifest_module.write(manifest, &text.writer) catch return error.OutOfMemory;
    base.storage.writeFile(arena, storage, path, text.written()) catch |err| {
        base.storage.explain(diag, err, "write", path);
        return err;
    };
}

fn copy(arena: Allocator, text: ?[]const u8) error{OutOfMemory}!?[]const u8 {
    return try arena.dupe(u8, text orelse return null);
}

/// The parts of both, each once.
fn listed(arena: Allocator, texts: ?[]const u8, text: ?[]const u8, comptime separator: []const u8) error{OutOfMemory}!?[]const u8 {
    const added = text orelse return texts;
    var all: []const u8 = texts orelse return try arena.dupe(u8, added);
    var parts = std.mem.splitSequence(u8, added, separator);
    next: while (parts.next()) |part| {
        var there = std.mem.splitSequence(u8, all, separator);
        while (there.next()) |other| if (std.mem.eql(u8, part, other)) continue :next;
        all = try std.mem.concat(arena, u8, &.{ all, separator, part });
    }
    return all;
}

fn isIn(texts: []const []const u8, text: []const u8) bool {
    for (texts) |other| if (std.mem.eql(u8, other, text)) return true;
    return false;
}

/// No where one says no; yes only where all do.
fn both(a: ?bool, b: ?bool) ?bool {
    if (a == false or b == false) return false;
    return if (a == null or b == null) null else true;
}

fn tooLarge(path: []const u8, diag: *base.Diagnostic) DataError {
    return fail(error.MalformedManifest, diag, "{s}: the files together have more tokens than 64 bits count", .{path});
}

fn fail(err: DataError, diag: *base.Diagnostic, comptime format: []const u8, arguments: anytype) DataError {
    diag.set(format, arguments);
    return err;
}

test {
    _ = @import("shards_test.zig");
}
