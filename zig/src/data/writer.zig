//! Writes a token file with its side files and manifest, row by row, in constant memory.
//!
//! Nothing appears under a final name before `finish`: all parts are written and synced under temporary names, then a
//! manifest that says "incomplete" takes the place of the old one, then the parts are renamed, and the true manifest comes
//! last. A program that ends in between leaves the old dataset, the new one, or one that `open` refuses and that the
//! next writer may replace.
//! It never overwrites a `.json`, `.mask` or `.idx` that is not part of a dataset of ours.
//! Does not know: text, tokenizers; the caller says what the tokens are.

const std = @import("std");
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
        self.bin = try self.start(self.path, diag);
        errdefer self.bin.deinit();
        if (options.mask) self.mask = try self.start(self.mask_path, diag);
        errdefer if (self.mask) |*file| file.deinit();
        if (options.rows) self.idx = try self.start(self.idx_path, diag);
        return self;
    }

    pub fn destroy(self: *TokenizedWriter) void {
        if (self.idx) |*file| file.deinit();
        if (self.mask) |*file| file.deinit();
        self.bin.deinit();
        self.arena.deinit();
        self.gpa.destroy(self);
    }

    fn start(self: *TokenizedWriter, path: []const u8, diag: *base.Diagnostic) WriteError!AtomicFile {
        const buffer = try self.arena.allocator().alloc(u8, buffer_size);
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
        for (ids) |id|
            base.bytes.write(u32, &self.bin.writer.interface, id) catch return self.cause(&self.bin, diag);
        for (0..ids.len) |i| {
            const flag = if (in_loss) |flags| flags[i] else true;
            self.in_loss += @intFromBool(flag);
            const file = if (self.mask) |*f| f else continue;
            const bit: u3 = @intCast((self.count + i) % 8);
            self.mask_byte |= @as(u8, @intFromBool(flag)) << bit;
            if (bit == 7) {
                file.writer.interface.writeByte(self.mask_byte) catch return self.cause(file, diag);
                self.mask_byte = 0;
            }
        }
        self.count += ids.len;
        self.rows += 1;
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

fn explain(err: base.storage.Error, diag: *base.Diagnostic, path: []const u8) WriteError {
    base.storage.explain(diag, err, "write", path);
    return err;
}
