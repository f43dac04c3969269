//! Writes a token file with its side files and manifest, row by row, in constant memory.
//!
//! Nothing appears under a final name before `finish`: all parts are written and synced under temporary names, then a
//! manifest that says "incomplete" takes the place of the old one, then the parts are renamed, and the true manifest comes
//! last. A program that ends in between leaves the old dataset, the new one, or one that `open` refuses and that the
//! next writer may replace.
//! A resumable writer has fixed temporary names (`….part`); what it had written at a call of `flushed` can be continued by
//! another one later, if it is still the same (`partsMatch`). Only for the holder of a lock.
//! It never overwrites a `.json`, `.mask` or `.idx` that is not part of a dataset of ours.
//! Does not know: text, tokenizers; the caller says what the tokens are.

const std = @import("std");
const builtin = @import("builtin");
const base = @import("base");
const manifest_module = @import("manifest.zig");
const siblingName = @import("tokenized.zig").siblingName;
const Allocator = std.mem.Allocator;
const Storage = base.storage.Storage;
const AtomicFile = base.storage.AtomicFile;
const Manifest = manifest_module.Manifest;

pub const WriterOptions = struct {
    /// `preference`: rows come in twos, the better answer first; needs `rows` and `mask`.
    kind: manifest_module.Kind = .tokens,
    /// Write row starts: each `append` is one row.
    rows: bool = true,
    /// Write a loss mask.
    mask: bool = true,
    /// Refuse ids that are not below it.
    vocab_size: ?u32 = null,
    tokenizer_hash: ?[]const u8 = null,
    format: ?[]const u8 = null,
    seed: ?u64 = null,
    source: ?[]const u8 = null,
    license: ?[]const u8 = null,
    commercial_use: ?bool = null,
    notes: []const []const u8 = &.{},
    /// Parts have names that can be found again.
    resumable: bool = false,
    /// Go on behind this, which `partsMatch` has found to be there; needs `resumable`.
    begin: ?Written = null,
};

/// How far a writer is: everything another one needs to go on.
pub const Written = struct {
    count: u64 = 0,
    rows: u64 = 0,
    in_loss: u64 = 0,
    /// Bits of the last, not yet full byte of the mask.
    mask_byte: u8 = 0,
    bin: base.storage.Digest = .{},
    mask: base.storage.Digest = .{},
    idx: base.storage.Digest = .{},
};

/// What a preparation counted besides, for the manifest.
pub const Losses = struct {
    truncated: ?u64 = null,
    dropped: ?u64 = null,
    skipped: ?u64 = null,
};

pub const WriteError = error{
    /// An id is not below `vocab_size`.
    TokenOutOfVocabulary,
    /// A row without tokens, a mask of another length than its row, half a pair, or pairs without rows.
    InvalidRow,
    /// A file that is not ours has one of the names.
    NameTaken,
} || base.storage.Error;

/// What was written.
pub const Summary = struct { count: u64, rows: u64, in_loss: u64 };

const buffer_size = 64 << 10;

pub const TokenizedWriter = struct {
    gpa: Allocator,
    arena: std.heap.ArenaAllocator,
    storage: Storage,
    options: WriterOptions,
    path: []const u8,
    manifest_path: []const u8,
    mask_path: []const u8,
    idx_path: []const u8,
    bin: AtomicFile,
    mask: ?AtomicFile = null,
    idx: ?AtomicFile = null,
    count: u64 = 0,
    rows: u64 = 0,
    in_loss: u64 = 0,
    mask_byte: u8 = 0,
    losses: Losses = .{},

    /// Starts a dataset at `path` (`….bin`); its folder must exist. `storage` must outlive the writer; the texts of
    /// `options` must live until `finish`. Ends with `destroy`, which removes everything unless `finish` succeeded.
    pub fn create(
        gpa: Allocator,
        storage: Storage,
        path: []const u8,
        options: WriterOptions,
        diag: *base.Diagnostic,
    ) WriteError!*TokenizedWriter {
        if (options.kind == .preference and !(options.rows and options.mask)) {
            diag.set("{s}: preference data need row starts and a mask; ask for both", .{path});
            return error.InvalidRow;
        }
        // On the heap: the file writers must not move.
        const self = try gpa.create(TokenizedWriter);
        errdefer gpa.destroy(self);
        self.* = .{
            .gpa = gpa,
            .arena = .init(gpa),
            .storage = storage,
            .options = options,
            .path = undefined,
            .manifest_path = undefined,
            .mask_path = undefined,
            .idx_path = undefined,
            .bin = undefined,
        };
        errdefer self.arena.deinit();

        const arena = self.arena.allocator();
        self.path = try arena.dupe(u8, path);
        self.manifest_path = try siblingName(arena, path, ".json");
        self.mask_path = try siblingName(arena, path, ".mask");
        self.idx_path = try siblingName(arena, path, ".idx");
        try self.checkNames(diag);
        const begin: Written = options.begin orelse .{};
        self.count = begin.count;
        self.rows = begin.rows;
        self.in_loss = begin.in_loss;
        self.mask_byte = begin.mask_byte;
        self.bin = try self.start(self.path, begin.bin, diag);
        errdefer self.bin.deinit();
        if (options.mask) self.mask = try self.start(self.mask_path, begin.mask, diag);
        errdefer if (self.mask) |*file| file.deinit();
        if (options.rows) self.idx = try self.start(self.idx_path, begin.idx, diag);
        return self;
    }

    /// From now on what was written stays when the writer ends early. Only with `resumable`.
    pub fn keepParts(self: *TokenizedWriter, kept: bool) void {
        std.debug.assert(self.options.resumable);
        self.bin.kept = kept;
        if (self.mask) |*file| file.kept = kept;
        if (self.idx) |*file| file.kept = kept;
    }

    /// Hands everything to the system; how far that is. Not yet safe from a loss of power: whoever goes on must compare.
    pub fn flushed(self: *TokenizedWriter, diag: *base.Diagnostic) WriteError!Written {
        return .{
            .count = self.count,
            .rows = self.rows,
            .in_loss = self.in_loss,
            .mask_byte = self.mask_byte,
            .bin = self.bin.writer.flushed() catch return self.cause(&self.bin, diag),
            .mask = if (self.mask) |*file| file.writer.flushed() catch return self.cause(file, diag) else .{},
            .idx = if (self.idx) |*file| file.writer.flushed() catch return self.cause(file, diag) else .{},
        };
    }

    pub fn destroy(self: *TokenizedWriter) void {
        if (self.idx) |*file| file.deinit();
        if (self.mask) |*file| file.deinit();
        self.bin.deinit();
        self.arena.deinit();
        self.gpa.destroy(self);
    }

    fn start(self: *TokenizedWriter, path: []const u8, begin: base.storage.Digest, diag: *base.Diagnostic) WriteError!AtomicFile {
        const buffer = try self.arena.allocator().alloc(u8, buffer_size);
        if (self.options.resumable)
            return AtomicFile.createPart(self.gpa, self.storage, path, if (self.options.begin != null) begin else null, buffer) catch |err|
                explain(err, diag, path);
        return AtomicFile.create(self.gpa, self.storage, path, buffer) catch |err| explain(err, diag, path);
    }

    /// The names beside the `.bin` may hold someone's raw data (`data.json`), or another program's index (`data.idx`).
    fn checkNames(self: *TokenizedWriter, diag: *base.Diagnostic) WriteError!void {
        const arena = self.arena.allocator();
        if (try self.exists(self.manifest_path, diag)) {
            const text = self.storage.readAlloc(arena, self.manifest_path) catch |err|
                return explain(err, diag, self.manifest_path);
            _ = manifest_module.parse(arena, text, diag) catch |err| switch (err) {
                error.OutOfMemory => return error.OutOfMemory,
                error.MalformedManifest => return self.taken(self.manifest_path, diag),
            };
            return;
        }
        if (self.options.mask and try self.exists(self.mask_path, diag)) return self.taken(self.mask_path, diag);
        if (self.options.rows and try self.exists(self.idx_path, diag)) return self.taken(self.idx_path, diag);
    }

    fn exists(self: *TokenizedWriter, path: []const u8, diag: *base.Diagnostic) WriteError!bool {
        const kind = self.storage.kind(path) catch |err| return explain(err, diag, path);
        return kind != null;
    }

    fn taken(self: *TokenizedWriter, path: []const u8, diag: *base.Diagnostic) WriteError {
        diag.set("{s} would be overwritten, and it is not part of a dataset written here. " ++
            "Move it away, or choose another name than {s}", .{ path, self.path });
        return error.NameTaken;
    }

    /// Adds one row (with `rows`), or a piece of the stream. `in_loss` has one entry a token; null: all are in the loss.
    /// After an error the dataset is lost: call `destroy`.
    pub fn append(
        self: *TokenizedWriter,
        ids: []const u32,
        in_loss: ?[]const bool,
        diag: *base.Diagnostic,
    ) WriteError!void {
        if (in_loss) |flags| if (flags.len != ids.len) {
            diag.set("row {d} has {d} tokens and {d} loss flags; they must be as many", .{ self.rows, ids.len, flags.len });
            return error.InvalidRow;
        };
        if (self.options.rows) {
            if (ids.len == 0) {
                diag.set("row {d} has no tokens; leave it out", .{self.rows});
                return error.InvalidRow;
            }
            base.bytes.write(u64, &self.idx.?.writer.interface, self.count) catch return self.cause(&self.idx.?, diag);
        }
        if (self.options.vocab_size) |limit| for (ids, 0..) |id, i| if (id >= limit) {
            diag.set("row {d}, token {d}: id {d} is not below the vocabulary size {d}", .{ self.rows, i, id, limit });
            return error.TokenOutOfVocabulary;
        };
        try self.appendIds(ids, in_loss, diag);
        self.rows += 1;
    }

    /// Adds many rows (or pieces of the stream) at once: row i has `lengths[i]` of the ids.
    pub fn appendRows(
        self: *TokenizedWriter,
        ids: []const u32,
        in_loss: []const bool,
        lengths: []const u32,
        diag: *base.Diagnostic,
    ) WriteError!void {
        var sum: usize = 0;
        for (lengths) |length| sum += length;
        if (sum != ids.len or in_loss.len != ids.len) {
            diag.set("{d} rows have {d} tokens; there are {d} ids and {d} loss flags", .{ lengths.len, sum, ids.len, in_loss.len });
            return error.InvalidRow;
        }
        if (self.idx) |*file| {
            var at = self.count;
            for (lengths, 0..) |length, i| {
                if (length == 0) {
                    diag.set("row {d} has no tokens; leave it out", .{self.rows + i});
                    return error.InvalidRow;
                }
                base.bytes.write(u64, &file.writer.interface, at) catch return self.cause(file, diag);
                at += length;
            }
        }
        if (self.options.vocab_size) |limit| {
            var highest: u32 = 0;
            for (ids) |id| highest = @max(highest, id);
            if (highest >= limit and ids.len > 0) {
                diag.set("rows {d} to {d}: id {d} is not below the vocabulary size {d}", .{ self.rows, self.rows + lengths.len - 1, highest, limit });
                return error.TokenOutOfVocabulary;
            }
        }
        try self.appendIds(ids, in_loss, diag);
        self.rows += lengths.len;
    }

    fn appendIds(self: *TokenizedWriter, ids: []const u32, in_loss: ?[]const bool, diag: *base.Diagnostic) WriteError!void {
        const bin = &self.bin.writer.interface;
        if (comptime builtin.cpu.arch.endian() == .little) {
            bin.writeAll(std.mem.sliceAsBytes(ids)) catch return self.cause(&self.bin, diag);
        } else for (ids) |id|
            base.bytes.write(u32, bin, id) catch return self.cause(&self.bin, diag);
        try self.appendFlags(in_loss, ids.len, diag);
        self.count += ids.len;
    }

    /// Flags of the tokens behind `count`: bit by bit up to a full byte, then eight at once.
    fn appendFlags(self: *TokenizedWriter, in_loss: ?[]const bool, len: usize, diag: *base.Diagnostic) WriteError!void {
        const all: @Vector(8, bool) = @splat(true);
        var i: usize = 0;
        while (i < len) {
            const bit: u3 = @intCast((self.count + i) % 8);
            if (bit == 0 and len - i >= 8) {
                const eight: u8 = @bitCast(if (in_loss) |flags| @as(@Vector(8, bool), flags[i..][0..8].*) else all);
                self.in_loss += @popCount(eight);
                if (self.mask) |*file| file.writer.interface.writeByte(eight) catch return self.cause(file, diag);
                i += 8;
                continue;
            }
            const flag = if (in_loss) |flags| flags[i] else true;
            self.in_loss += @intFromBool(flag);
            self.mask_byte |= @as(u8, @intFromBool(flag)) << bit;
            if (bit == 7) {
                if (self.mask) |*file| file.writer.interface.writeByte(self.mask_byte) catch return self.cause(file, diag);
                self.mask_byte = 0;
            }
            i += 1;
        }
    }

    /// Makes everything durable under its final names. Call once, last.
    pub fn finish(self: *TokenizedWriter, diag: *base.Diagnostic) WriteError!Summary {
        if (self.options.kind == .preference and self.rows % 2 != 0) {
            diag.set("{s}: {d} rows were added, an odd number; preference data are pairs", .{ self.path, self.rows });
            return error.InvalidRow;
        }
        var manifest: Manifest = .{
            .count = self.count,
            .kind = self.options.kind,
            .rows = if (self.options.rows) self.rows else null,
            .vocab_size = self.options.vocab_size,
            .tokenizer_hash = self.options.tokenizer_hash,
            .format = self.options.format,
            .seed = self.options.seed,
            .source = self.options.source,
            .license = self.options.license,
            .commercial_use = self.options.commercial_use,
            .notes = self.options.notes,
            .truncated = self.losses.truncated,
            .dropped = self.losses.dropped,
            .skipped = self.losses.skipped,
        };
        if (self.mask) |*file| {
            if (self.count % 8 != 0)
                file.writer.interface.writeByte(self.mask_byte) catch return self.cause(file, diag);
            manifest.mask_crc32c = try self.seal(file, diag);
            manifest.mask = std.fs.path.basename(self.mask_path);
        }
        if (self.idx) |*file| {
            base.bytes.write(u64, &file.writer.interface, self.count) catch return self.cause(file, diag);
            manifest.idx_crc32c = try self.seal(file, diag);
            manifest.idx = std.fs.path.basename(self.idx_path);
        }
        manifest.bin_crc32c = try self.seal(&self.bin, diag);
        try self.publish(&manifest, diag);
        return .{ .count = self.count, .rows = self.rows, .in_loss = self.in_loss };
    }

    fn seal(self: *TokenizedWriter, file: *AtomicFile, diag: *base.Diagnostic) WriteError!u32 {
        _ = self;
        const digest = file.finish() catch |err| return explain(err, diag, file.final_path);
        return digest.crc32c;
    }

    /// From here on names change; the order is the promise in the head of this file.
    fn publish(self: *TokenizedWriter, manifest: *const Manifest, diag: *base.Diagnostic) WriteError!void {
        try self.writeManifest(&.{ .count = 0, .incomplete = true }, diag);
        if (self.mask) |*file| file.commit() catch |err| return explain(err, diag, self.mask_path);
        if (self.idx) |*file| file.commit() catch |err| return explain(err, diag, self.idx_path);
        self.bin.commit() catch |err| return explain(err, diag, self.path);
        try self.writeManifest(manifest, diag);
    }

    fn writeManifest(self: *TokenizedWriter, manifest: *const Manifest, diag: *base.Diagnostic) WriteError!void {
        var text: std.Io.Writer.Allocating = .init(self.gpa);
        defer text.deinit();

        manifest_module.write(manifest, &text.writer) catch return error.OutOfMemory;
        base.storage.writeFile(self.gpa, self.storage, self.manifest_path, text.written()) catch |err|
            return explain(err, diag, self.manifest_path);
    }

    fn cause(self: *TokenizedWriter, file: *const AtomicFile, diag: *base.Diagnostic) WriteError {
        _ = self;
        return explain(file.writer.cause(), diag, file.final_path);
    }
};

/// Whether the parts of an earlier resumable writer of `path` begin with what `written` says. What cannot be read does not match.
pub fn partsMatch(gpa: Allocator, storage: Storage, path: []const u8, options: WriterOptions, written: *const Written) error{OutOfMemory}!bool {
    var arena: std.heap.ArenaAllocator = .init(gpa);
    defer arena.deinit();

    const a = arena.allocator();
    if (!try partMatches(a, storage, path, written.bin)) return false;
    if (options.mask and !try partMatches(a, storage, try siblingName(a, path, ".mask"), written.mask)) return false;
    if (options.rows and !try partMatches(a, storage, try siblingName(a, path, ".idx"), written.idx)) return false;
    return written.bin.size == written.count * @sizeOf(u32) and
        (!options.mask or written.mask.size == written.count / 8) and
        (!options.rows or written.idx.size == written.rows * @sizeOf(u64));
}

fn partMatches(arena: Allocator, storage: Storage, path: []const u8, begin: base.storage.Digest) error{OutOfMemory}!bool {
    const name = try std.mem.concat(arena, u8, &.{ path, AtomicFile.part_ending });
    var mapping = storage.map(name) catch |err| return if (err == error.OutOfMemory) error.OutOfMemory else false;
    defer mapping.unmap();

    if (mapping.bytes.len < begin.size) return false;
    return base.checksum.crc32c(mapping.bytes[0..@intCast(begin.size)]) == begin.crc32c;
}

fn explain(err: base.storage.Error, diag: *base.Diagnostic, path: []const u8) WriteError {
    base.storage.explain(diag, err, "write", path);
    return err;
}

const testing = std.testing;

fn expectSame(storage: Storage, a: []const u8, b: []const u8) !void {
    for ([_][]const u8{ ".bin", ".mask", ".idx" }) |ending| {
        var texts: [2][]u8 = undefined;
        for (&texts, [_][]const u8{ a, b }) |*text, stem| {
            const name = try std.mem.concat(testing.allocator, u8, &.{ stem, ending });
            defer testing.allocator.free(name);
            text.* = try storage.readAlloc(testing.allocator, name);
        }
        defer for (texts) |text| testing.allocator.free(text);
        try testing.expectEqualSlices(u8, texts[0], texts[1]);
    }
}

test "many rows at once, and in pieces of a writer that was left and continued, are the rows one by one" {
    const gpa = testing.allocator;
    var prng: base.Prng = .init(5);
    var ids: [600]u32 = undefined;
    var flags: [600]bool = undefined;
    for (&ids, &flags) |*id, *flag| {
        id.* = @intCast(prng.below(90));
        flag.* = prng.below(3) > 0;
    }
    var memory: base.storage.MemoryDisk = try .init(gpa);
    defer memory.deinit();

    const storage = memory.storage();
    var diag: base.Diagnostic = .{};
    const one = try TokenizedWriter.create(gpa, storage, "one.bin", .{ .vocab_size = 90 }, &diag);
    defer one.destroy();
    var begin: ?Written = null;
    var at: usize = 0;
    var round: usize = 0;
    while (at < ids.len) : (round += 1) {
        const options: WriterOptions = .{ .vocab_size = 90, .resumable = true, .begin = begin };
        if (begin) |*written| try testing.expect(try partsMatch(gpa, storage, "many.bin", options, written));
        const many = try TokenizedWriter.create(gpa, storage, "many.bin", options, &diag);
        defer many.destroy();

        for (0..1 + prng.below(3)) |_| {
            var lengths: std.ArrayList(u32) = .empty;
            defer lengths.deinit(gpa);
            const start = at;
            while (at < ids.len and lengths.items.len < 4) {
                const len: usize = @min(ids.len - at, 1 + prng.below(30));
                try one.append(ids[at..][0..len], flags[at..][0..len], &diag);
                try lengths.append(gpa, @intCast(len));
                at += len;
            }
            try many.appendRows(ids[start..at], flags[start..at], lengths.items, &diag);
        }
        begin = try many.flushed(&diag);
        if (at == ids.len) {
            try testing.expectEqual(one.in_loss, many.in_loss);
            _ = try many.finish(&diag);
        } else {
            // Written behind what was told: cut off by the next.
            try many.append(&.{ 1, 2, 3 }, null, &diag);
            many.keepParts(true);
        }
    }
    try testing.expect(round > 2);
    _ = try one.finish(&diag);
    try expectSame(storage, "one", "many");
    try testing.expectEqual(null, try storage.kind("many.bin.part"));
}

test "parts that changed do not match" {
    const gpa = testing.allocator;
    var memory: base.storage.MemoryDisk = try .init(gpa);
    defer memory.deinit();

    const storage = memory.storage();
    var diag: base.Diagnostic = .{};
    const options: WriterOptions = .{ .resumable = true };
    const writer = try TokenizedWriter.create(gpa, storage, "x.bin", options, &diag);
    try writer.append(&.{ 1, 2, 3, 4, 5, 6, 7, 8, 9 }, null, &diag);
    const written = try writer.flushed(&diag);
    writer.keepParts(true);
    writer.destroy();
    try testing.expect(try partsMatch(gpa, storage, "x.bin", options, &written));
    try testing.expect(!try partsMatch(gpa, storage, "y.bin", options, &written));
    for ([_][]const u8{ "x.bin.part", "x.mask.part", "x.idx.part" }) |name| {
        try memory.flipBit(name, 3);
        try testing.expect(!try partsMatch(gpa, storage, "x.bin", options, &written));
        try memory.flipBit(name, 3);
    }
    try memory.truncate("x.idx.part", 7);
    try testing.expect(!try partsMatch(gpa, storage, "x.bin", options, &written));
}
