//! A file of token ids, mapped and never read whole: `training_data.bin`, its optional manifest and side files.
//!
//! `.bin` is bare little-endian u32 ids. A manifest beside it may name a `.mask` (one bit a token: in the loss) and an
//! `.idx` (row starts). Without manifest the `.bin` is one stream of ids. The format page is docs/formats/token-bin.md.
//! After `open` every relation between the files holds: sizes agree, row starts rise from 0 to the token count, unused
//! mask bits are zero. Ids are not looked at: `checkVocabulary` and `verify` read the whole file, when asked.
//! Several files may be one dataset (`shards.zig`): what is asked here by the place of a token or a row is then answered by the
//! file that has it, and a range may span files.
//! Shrinking a mapped file under a running program ends the program (SIGBUS): replace files, never edit them.
//! Does not know: text, tokenizers, models, order (see `loader.zig`, `batches.zig`).

const std = @import("std");
const builtin = @import("builtin");
const base = @import("base");
const manifest_module = @import("manifest.zig");
const loss_mask = @import("loss_mask.zig");
const batches_module = @import("batches.zig");
const targets_module = @import("targets.zig");
const shards_module = @import("shards.zig");
const Allocator = std.mem.Allocator;
const Storage = base.storage.Storage;
const Mapping = base.storage.Mapping;
const Manifest = manifest_module.Manifest;

comptime {
    // The files are mapped as they are; a big-endian machine would have to swap a copy.
    std.debug.assert(builtin.cpu.arch.endian() == .little);
}

/// One name per cause. `base.storage.Error` says why the system refused a file.
pub const DataError = error{
    /// The `.bin`'s size is not a multiple of 4.
    TokenFileSize,
    /// The `.json` beside the `.bin` is no manifest of ours.
    MalformedManifest,
    /// The manifest and the files contradict each other in count or rows.
    ManifestMismatch,
    /// A preparation was interrupted while it moved its files in place.
    IncompleteDataset,
    /// The manifest names a file that is not there.
    SideFileMissing,
    /// A `.mask` or `.idx` has another size than the token count asks for.
    SideFileSize,
    /// A `.mask` or `.idx` lies there and no manifest names it.
    OrphanSideFile,
    /// Row starts do not rise from 0 to the token count.
    MalformedRowStarts,
    /// A mask has bits set behind the last token.
    MalformedMask,
    /// Preference data without row starts or mask, with an odd number of rows, or with two rows that are no pair.
    MalformedPairs,
    /// A file's content is not what the manifest's checksum says.
    ChecksumMismatch,
    /// An id is not below the vocabulary size.
    TokenOutOfVocabulary,
    /// A file of a set, or its own manifest, is not there.
    ShardMissing,
    /// A file of a set has other contents than the set's manifest says.
    ShardMismatch,
    /// Files of a set have changed places.
    ShardOrder,
    /// A set lists a file twice.
    DuplicateShard,
    /// Files of a set were made with different tokenizers or formats, or are not all rows, or not all masked.
    MixedShards,
} || base.storage.Error;

pub const OpenOptions = struct {
    /// false: take the `.bin` alone, as a stream, whatever lies beside it.
    use_manifest: bool = true,
};

pub const TokenizedDataset = struct {
    arena: std.heap.ArenaAllocator,
    /// Owned when the dataset made its own.
    disk: ?*base.storage.Disk,
    /// As given to `open`.
    path: []const u8,
    /// All ids, in file order. Of a set this and the next two are those of its files; ask by place instead.
    tokens: []const u32,
    /// One bit a token; null: all tokens are in the loss. See `loss_mask.zig`.
    mask: ?[]const u8 = null,
    /// Row r is tokens[row_starts[r]..row_starts[r + 1]]; one entry more than rows. null: a stream.
    row_starts: ?[]const u64 = null,
    manifest: ?Manifest = null,
    mappings: [3]?Mapping = @splat(null),
    /// The files of a set; empty for a single file.
    shards: []const shards_module.Shard = &.{},

    /// Opens `path` with its manifest. For the sentence that explains an error use `open`.
    pub fn load(gpa: Allocator, path: []const u8) DataError!TokenizedDataset {
        var diag: base.Diagnostic = .{};
        return open(gpa, std.Io.Threaded.global_single_threaded.io(), path, .{}, &diag);
    }

    /// Opens at once whatever the size: the files are mapped, pages come in when they are read.
    /// On failure `diag` names the file, the value and the next move.
    pub fn open(
        gpa: Allocator,
        io: std.Io,
        path: []const u8,
        options: OpenOptions,
        diag: *base.Diagnostic,
    ) DataError!TokenizedDataset {
        const disk = try gpa.create(base.storage.Disk);
        errdefer gpa.destroy(disk);
        disk.* = .init(io);
        var dataset = try openStorage(gpa, disk.storage(), path, options, diag);
        dataset.disk = disk;
        return dataset;
    }

    /// `open` over any storage, which must outlive the dataset.
    pub fn openStorage(
        gpa: Allocator,
        storage: Storage,
        path: []const u8,
        options: OpenOptions,
        diag: *base.Diagnostic,
    ) DataError!TokenizedDataset {
        var self: TokenizedDataset = .{ .arena = .init(gpa), .disk = null, .path = "", .tokens = &.{} };
        errdefer self.release();

        const arena = self.arena.allocator();
        // The manifest's name names the dataset, too.
        const by_manifest = options.use_manifest and std.mem.endsWith(u8, path, ".json");
        self.path = if (by_manifest) try std.mem.concat(arena, u8, &.{ path[0 .. path.len - 5], ".bin" }) else try arena.dupe(u8, path);
        const manifest_path = try siblingName(arena, self.path, ".json");
        const described = options.use_manifest and try exists(storage, manifest_path, diag);
        // Before the tokens: an interrupted preparation may not have put them there yet.
        if (described) try self.readManifest(storage, manifest_path, diag);
        if (self.manifest) |*manifest| if (manifest.shards.len > 0) {
            try self.openSet(storage, manifest_path, diag);
            return self;
        };
        const bin = try self.mapFile(0, storage, self.path, diag);
        if (bin.len % 4 != 0) return fail(
            error.TokenFileSize,
            diag,
            "{s} has {d} bytes, which is not a multiple of 4: it is cut off, or is no file of 32-bit token ids",
            .{ self.path, bin.len },
        );
        self.tokens = try view(u32, arena, bin);
        if (described) {
            try self.openDescribed(storage, manifest_path, diag);
        } else if (options.use_manifest) for ([_][]const u8{ ".mask", ".idx" }) |suffix| {
            const orphan = try siblingName(arena, self.path, suffix);
            if (try exists(storage, orphan, diag)) return fail(
                error.OrphanSideFile,
                diag,
                "{s} lies beside {s}, but the manifest {s} that would say what it is is missing. " ++
                    "Restore the manifest, or move the file away to train on the plain stream",
                .{ orphan, self.path, manifest_path },
            );
        };
        return self;
    }

    pub fn deinit(self: *TokenizedDataset) void {
        const gpa = self.arena.child_allocator;
        const disk = self.disk;
        self.release();
        if (disk) |d| gpa.destroy(d);
        self.* = undefined;
    }

    fn release(self: *TokenizedDataset) void {
        if (self.shards.len > 0) shards_module.close(self.arena.child_allocator, self.shards);
        for (&self.mappings) |*slot| if (slot.*) |*mapping| mapping.unmap();
        self.arena.deinit();
    }

    fn readManifest(self: *TokenizedDataset, storage: Storage, path: []const u8, diag: *base.Diagnostic) DataError!void {
        const arena = self.arena.allocator();
        const text = text: {
            var mapping = storage.map(path) catch |err| return explain(err, diag, path);
            defer mapping.unmap();

            // One byte more than allowed is enough for `parse` to see that it is too large.
            break :text try arena.dupe(u8, mapping.bytes[0..@min(mapping.bytes.len, manifest_module.max_bytes + 1)]);
        };
        const manifest = manifest_module.parse(arena, text, diag) catch |err| switch (err) {
            error.OutOfMemory => return error.OutOfMemory,
            error.MalformedManifest => {
                diag.prepend("{s} is not the manifest of {s}: ", .{ path, self.path });
                return error.MalformedManifest;
            },
        };
        if (manifest.incomplete) return fail(
            error.IncompleteDataset,
            diag,
            "{s}: a preparation was interrupted while it moved its files in place. Prepare the data again",
            .{path},
        );
        self.manifest = manifest;
    }

    fn openSet(self: *TokenizedDataset, storage: Storage, manifest_path: []const u8, diag: *base.Diagnostic) DataError!void {
        // A program that reads the `.bin` alone would take it for the data.
        if (try exists(storage, self.path, diag)) return fail(
            error.OrphanSideFile,
            diag,
            "{s} lies beside {s}, the manifest of a set of {d} other files. Move one of them away",
            .{ self.path, manifest_path, self.manifest.?.shards.len },
        );
        self.shards = try shards_module.open(self.arena.child_allocator, self.arena.allocator(), storage, manifest_path, &self.manifest.?, diag);
    }

    /// Holds the manifest against the tokens and opens the files it names.
    fn openDescribed(self: *TokenizedDataset, storage: Storage, path: []const u8, diag: *base.Diagnostic) DataError!void {
        const arena = self.arena.allocator();
        const manifest = self.manifest.?;
        if (manifest.count != self.tokens.len) return fail(
            error.ManifestMismatch,
            diag,
            "{s} says {d} tokens, but {s} has {d}. One of them is from another run, or the .bin is cut off: prepare the data again",
            .{ path, manifest.count, self.path, self.tokens.len },
        );
        if (manifest.mask) |name| try self.readMask(storage, try besides(arena, path, name), diag);
        if (manifest.idx) |name| try self.readRowStarts(storage, try besides(arena, path, name), diag);
        if (manifest.kind == .preference) try self.checkPreference(path, diag);
    }

    fn checkPreference(self: *const TokenizedDataset, path: []const u8, diag: *base.Diagnostic) DataError!void {
        const lacking = if (self.row_starts == null) "row starts (idx)" else if (self.mask == null) "mask of answers" else {
            const rows = self.rowCount().?;
            if (rows % 2 == 0) return;
            return fail(
                error.MalformedPairs,
                diag,
                "{s} has {d} rows, an odd number: preference data are pairs of rows, the better answer first. Prepare the data again",
                .{ self.path, rows },
            );
        };
        return fail(
            error.MalformedPairs,
            diag,
            "{s} says that {s} is preference data, but it names no {s}. Prepare the data again",
            .{ path, self.path, lacking },
        );
    }

    fn readMask(self: *TokenizedDataset, storage: Storage, path: []const u8, diag: *base.Diagnostic) DataError!void {
        const mask = try self.mapSideFile(1, storage, path, diag);
        const expected = loss_mask.byteCount(self.tokens.len);
        if (mask.len != expected) return fail(
            error.SideFileSize,
            diag,
            "{s} has {d} bytes; a mask over {d} tokens has {d}",
            .{ path, mask.len, self.tokens.len, expected },
        );
        if (!loss_mask.tailIsZero(mask, self.tokens.len))
            return fail(error.MalformedMask, diag, "{s} has bits set behind its last token", .{path});
        self.mask = mask;
    }

    fn readRowStarts(self: *TokenizedDataset, storage: Storage, path: []const u8, diag: *base.Diagnostic) DataError!void {
        const raw = try self.mapSideFile(2, storage, path, diag);
        if (raw.len % 8 != 0 or raw.len == 0) return fail(
            error.SideFileSize,
            diag,
            "{s} has {d} bytes; row starts are 8 bytes each, one more than there are rows",
            .{ path, raw.len },
        );
        const starts = try view(u64, self.arena.allocator(), raw);
        if (self.manifest.?.rows) |rows| if (rows != starts.len - 1) return fail(
            error.ManifestMismatch,
            diag,
            "{s} holds {d} rows, but the manifest says {d}",
            .{ path, starts.len - 1, rows },
        );
        if (starts[0] != 0)
            return fail(error.MalformedRowStarts, diag, "{s}: the first row starts at {d}; it must start at 0", .{ path, starts[0] });
        for (starts[0 .. starts.len - 1], starts[1..], 0..) |start, end, index| {
            if (end < start) return fail(
                error.MalformedRowStarts,
                diag,
                "{s}: row {d} starts at {d} and ends at {d}; starts must not fall",
                .{ path, index, start, end },
            );
        }
        const end = starts[starts.len - 1];
        if (end != self.tokens.len) return fail(
            error.MalformedRowStarts,
            diag,
            "{s}: the last row ends at {d}; it must end at the token count, {d}",
            .{ path, end, self.tokens.len },
        );
        self.row_starts = starts;
    }

    fn mapFile(self: *TokenizedDataset, slot: usize, storage: Storage, path: []const u8, diag: *base.Diagnostic) DataError![]const u8 {
        self.mappings[slot] = storage.map(path) catch |err| return explain(err, diag, path);
        return self.mappings[slot].?.bytes;
    }

    fn mapSideFile(self: *TokenizedDataset, slot: usize, storage: Storage, path: []const u8, diag: *base.Diagnostic) DataError![]const u8 {
        if (!try exists(storage, path, diag)) return fail(
            error.SideFileMissing,
            diag,
            "{s} is named by the manifest of {s}, but is not there. Copy it too, or prepare the data again",
            .{ path, self.path },
        );
        return self.mapFile(slot, storage, path, diag);
    }

    /// True when rows 2i and 2i + 1 are the better and the worse answer to one prompt (`pairs.zig`).
    pub fn isPreference(self: *const TokenizedDataset) bool {
        const manifest = self.manifest orelse return false;
        return manifest.kind == .preference;
    }

    /// Rows of the `.idx`; null for a stream.
    pub fn rowCount(self: *const TokenizedDataset) ?usize {
        if (self.lastShard()) |last| return last.first_row + (last.data.rowCount() orelse return null);
        return if (self.row_starts) |starts| starts.len - 1 else null;
    }

    /// Tokens of all rows.
    pub fn count(self: *const TokenizedDataset) usize {
        if (self.lastShard()) |last| return last.first_token + last.data.tokens.len;
        return self.tokens.len;
    }

    /// True when there are row starts; false for a stream.
    pub fn isRows(self: *const TokenizedDataset) bool {
        return if (self.lastShard()) |last| last.data.isRows() else self.row_starts != null;
    }

    /// True when some tokens may not be in the loss.
    pub fn isMasked(self: *const TokenizedDataset) bool {
        return if (self.lastShard()) |last| last.data.isMasked() else self.mask != null;
    }

    fn lastShard(self: *const TokenizedDataset) ?*const shards_module.Shard {
        return if (self.shards.len > 0) &self.shards[self.shards.len - 1] else null;
    }

    /// A row in the file that has it.
    pub const Place = struct {
        file: *const TokenizedDataset,
        row: usize,
        /// Tokens of the files before it.
        first_token: usize,
    };

    pub fn placeOf(self: *const TokenizedDataset, index: usize) Place {
        if (self.shards.len == 0) return .{ .file = self, .row = index, .first_token = 0 };
        const shard = &self.shards[shards_module.holder(self.shards, "first_row", index)];
        return .{ .file = &shard.data, .row = index - shard.first_row, .first_token = shard.first_token };
    }

    /// The ids of row `index`.
    pub fn row(self: *const TokenizedDataset, index: usize) []const u32 {
        const at = self.placeOf(index);
        const starts = at.file.row_starts.?;
        return at.file.tokens[@intCast(starts[at.row])..@intCast(starts[at.row + 1])];
    }

    /// Where row `index` begins among all tokens; for the number of rows: where the last one ends.
    pub fn rowStart(self: *const TokenizedDataset, index: usize) usize {
        const at = self.placeOf(index);
        return at.first_token + @as(usize, @intCast(at.file.row_starts.?[at.row]));
    }

    /// Tokens of row `index`.
    pub fn rowLength(self: *const TokenizedDataset, index: usize) usize {
        const at = self.placeOf(index);
        const starts = at.file.row_starts.?;
        return @intCast(starts[at.row + 1] - starts[at.row]);
    }

    /// The ids of tokens `start` up to `end`, if one file has them all.
    pub fn slice(self: *const TokenizedDataset, start: usize, end: usize) ?[]const u32 {
        if (self.shards.len == 0) return self.tokens[start..end];
        const shard = &self.shards[shards_module.holder(self.shards, "first_token", start)];
        if (end - shard.first_token > shard.data.tokens.len) return null;
        return shard.data.tokens[start - shard.first_token .. end - shard.first_token];
    }

    /// Copies the ids from token `start` on.
    pub fn readTokens(self: *const TokenizedDataset, out: []u32, start: usize) void {
        var pieces = self.piecesOf(start, start + out.len);
        while (pieces.next()) |piece| @memcpy(out[piece.at..][0..piece.len], piece.file.tokens[piece.start..][0..piece.len]);
    }

    /// targets[i] = token `start` + i, or −1 where the mask leaves it out.
    pub fn fillTargets(self: *const TokenizedDataset, targets: []i32, start: usize) void {
        var pieces = self.piecesOf(start, start + targets.len);
        while (pieces.next()) |piece|
            targets_module.fill(targets[piece.at..][0..piece.len], piece.file.tokens[piece.start..][0..piece.len], piece.file.mask, piece.start);
    }

    /// A text of the tokens from `start` on: each as an input, with the next as its target, the last with none.
    pub fn fillText(self: *const TokenizedDataset, inputs: []u32, targets: []i32, start: usize) void {
        var pieces = self.piecesOf(start, start + inputs.len);
        const piece = pieces.next() orelse return;
        if (piece.len == inputs.len)
            return targets_module.fillText(inputs, targets, piece.file.tokens[piece.start..][0..piece.len], piece.file.mask, piece.start);
        self.readTokens(inputs, start);
        self.fillTargets(targets[0 .. targets.len - 1], start + 1);
        targets[targets.len - 1] = -1;
    }

    /// 1 or 0 for each token from `start` on: whether the mask has it in the loss.
    pub fn readFlags(self: *const TokenizedDataset, out: []u8, start: usize) void {
        var pieces = self.piecesOf(start, start + out.len);
        while (pieces.next()) |piece| for (out[piece.at..][0..piece.len], piece.start..) |*flag, position| {
            flag.* = @intFromBool(if (piece.file.mask) |mask| loss_mask.get(mask, position) else true);
        };
    }

    /// Tokens from `start` up to `end` that the mask has in the loss.
    pub fn countTargets(self: *const TokenizedDataset, start: usize, end: usize) usize {
        if (!self.isMasked()) return end - start;
        var sum: usize = 0;
        var pieces = self.piecesOf(start, end);
        while (pieces.next()) |piece| sum += loss_mask.countRange(piece.file.mask.?, piece.start, piece.start + piece.len);
        return sum;
    }

    /// Asks for the ids and mask bits of tokens `start` to `end` to be fetched from the disk while the caller computes.
    pub fn willNeed(self: *const TokenizedDataset, start: usize, end: usize) void {
        var pieces = self.piecesOf(start, end);
        while (pieces.next()) |piece| {
            if (piece.file.mappings[0]) |*ids| ids.willNeed(4 * piece.start, 4 * piece.len);
            const last = piece.start + piece.len - 1;
            if (piece.file.mappings[1]) |*mask| mask.willNeed(piece.start / 8, last / 8 + 1 - piece.start / 8);
        }
    }

    /// Brings tokens and mask bits that are in memory closer.
    pub fn prefetch(self: *const TokenizedDataset, start: usize, end: usize) void {
        var pieces = self.piecesOf(start, end);
        while (pieces.next()) |piece| {
            const line = 64;
            const ids = std.mem.sliceAsBytes(piece.file.tokens[piece.start..][0..piece.len]);
            var i: usize = 0;
            while (i < ids.len) : (i += line) @prefetch(ids.ptr + i, .{ .locality = 2 });
            const mask = piece.file.mask orelse continue;
            i = piece.start / 8;
            while (i < (piece.start + piece.len) / 8) : (i += line) @prefetch(mask.ptr + i, .{ .locality = 2 });
        }
    }

    /// The same for the place of a row.
    pub fn prefetchRow(self: *const TokenizedDataset, index: usize) void {
        const at = self.placeOf(index);
        @prefetch(&at.file.row_starts.?[at.row], .{});
    }

    /// The parts of a range of tokens, each in one file. None is empty.
    const Pieces = struct {
        set: *const TokenizedDataset,
        begin: usize,
        position: usize,
        end: usize,
        shard: usize,

        /// `len` tokens of `file` from `start` on are those of the range from `at` on.
        const Piece = struct { file: *const TokenizedDataset, start: usize, len: usize, at: usize };

        fn next(self: *Pieces) ?Piece {
            if (self.position >= self.end) return null;
            const at = self.position - self.begin;
            if (self.set.shards.len == 0) {
                self.position = self.end;
                return .{ .file = self.set, .start = self.begin, .len = self.end - self.begin, .at = 0 };
            }
            while (true) : (self.shard += 1) {
                const shard = &self.set.shards[self.shard];
                const start = self.position - shard.first_token;
                const len = @min(shard.data.tokens.len - start, self.end - self.position);
                if (len == 0) continue; // The shard before ended here, or is empty.
                self.position += len;
                return .{ .file = &shard.data, .start = start, .len = len, .at = at };
            }
        }
    };

    fn piecesOf(self: *const TokenizedDataset, start: usize, end: usize) Pieces {
        const shard = if (self.shards.len == 0 or start >= end) 0 else shards_module.holder(self.shards, "first_token", start);
        return .{ .set = self, .begin = start, .position = start, .end = end, .shard = shard };
    }

    /// Reads every id and names the first that a model with `vocab_size` tokens does not have.
    pub fn checkVocabulary(self: *const TokenizedDataset, vocab_size: u32, diag: *base.Diagnostic) DataError!void {
        for (self.shards) |*shard| try shard.data.checkVocabulary(vocab_size, diag);
        const position = firstAtLeast(self.tokens, vocab_size) orelse return;
        return fail(
            error.TokenOutOfVocabulary,
            diag,
            "{s}: token {d} has id {d}, but the vocabulary has {d} ids (0 to {d}). " ++
                "The data was made with another tokenizer, or is no token file",
            .{ self.path, position, self.tokens[position], vocab_size, @as(i64, vocab_size) - 1 },
        );
    }

    /// Reads every file that has a checksum in the manifest and compares. Returns how many were compared.
    pub fn verify(self: *const TokenizedDataset, diag: *base.Diagnostic) DataError!usize {
        const manifest = self.manifest orelse return 0;
        if (self.shards.len > 0) {
            var sum: usize = 0;
            for (self.shards) |*shard| sum += try shard.data.verify(diag);
            return sum;
        }
        const expected = [3]?u32{ manifest.bin_crc32c, manifest.mask_crc32c, manifest.idx_crc32c };
        var compared: usize = 0;
        for (expected, self.mappings, [_][]const u8{ "tokens", "loss mask", "row starts" }) |sum, slot, what| {
            const mapping = slot orelse continue;
            const wanted = sum orelse continue;
            const found = base.checksum.crc32c(mapping.bytes);
            if (found != wanted) return fail(
                error.ChecksumMismatch,
                diag,
                "{s}: the {s} file has checksum {x:0>8}, its manifest says {x:0>8}. The file is damaged or changed: prepare the data again",
                .{ self.path, what, found, wanted },
            );
            compared += 1;
        }
        return compared;
    }

    /// Batches of the plain stream that ABI's layout gives: 0 when tokens ≤ batch_size·seq_len, else
    /// ⌊(tokens − 1) / (batch_size·seq_len)⌋; the tail is dropped.
    pub fn numBatches(self: *const TokenizedDataset, batch_size: usize, seq_len: usize) usize {
        return batches_module.count(self.count(), batch_size, seq_len);
    }

    /// Iterates over the plain stream in ABI's layout; row starts and mask play no part (`Loader` uses them).
    /// With `shuffle` the order of the batches is drawn from seed 42; `batchesSeeded` takes another.
    /// The dataset must outlive the iterator.
    pub fn batches(
        self: *const TokenizedDataset,
        gpa: Allocator,
        batch_size: usize,
        seq_len: usize,
        shuffle: bool,
    ) batches_module.BatchError!batches_module.BatchIterator {
        return self.batchesSeeded(gpa, .{ .batch_size = batch_size, .seq_len = seq_len, .shuffle = shuffle });
    }

    pub fn batchesSeeded(
        self: *const TokenizedDataset,
        gpa: Allocator,
        options: batches_module.BatchOptions,
    ) batches_module.BatchError!batches_module.BatchIterator {
        return .init(gpa, self, options);
    }
};

/// `training_data.bin` and `.mask` give `training_data.mask`; a name without `.bin` gets the suffix added.
pub fn siblingName(gpa: Allocator, path: []const u8, suffix: []const u8) error{OutOfMemory}![]u8 {
    const stem = if (std.mem.endsWith(u8, path, ".bin")) path[0 .. path.len - 4] else path;
    return std.mem.concat(gpa, u8, &.{ stem, suffix });
}

pub fn besides(arena: Allocator, path: []const u8, name: []const u8) error{OutOfMemory}![]u8 {
    const folder = std.fs.path.dirname(path) orelse return arena.dupe(u8, name);
    return base.storage.join(arena, folder, name);
}

fn exists(storage: Storage, path: []const u8, diag: *base.Diagnostic) DataError!bool {
    const kind = storage.kind(path) catch |err| return explain(err, diag, path);
    return kind != null;
}

/// Mappings start at a page; a storage in memory may not, and then a copy is made.
fn view(comptime T: type, arena: Allocator, bytes: []const u8) error{OutOfMemory}![]const T {
    if (bytes.len == 0) return &.{};
    if (std.mem.isAligned(@intFromPtr(bytes.ptr), @alignOf(T))) {
        const aligned: []align(@alignOf(T)) const u8 = @alignCast(bytes);
        return std.mem.bytesAsSlice(T, aligned);
    }
    const copy = try arena.alloc(T, bytes.len / @sizeOf(T));
    @memcpy(std.mem.sliceAsBytes(copy), bytes);
    return copy;
}

/// Position of the first id ≥ `limit`. Looks at blocks with vectors, and at single ids only in the block that has one.
fn firstAtLeast(ids: []const u32, limit: u32) ?usize {
    const lanes = 16;
    const V = @Vector(lanes, u32);
    const block = 64 * lanes;
    var start: usize = 0;
    while (start < ids.len) {
        const end = @min(ids.len, start + block);
        var largest: V = @splat(0);
        var i = start;
        while (i + lanes <= end) : (i += lanes) {
            const v: V = ids[i..][0..lanes].*;
            largest = @max(largest, v);
        }
        var bad = @reduce(.Max, largest) >= limit;
        for (ids[i..end]) |id| bad = bad or id >= limit;
        if (bad) for (ids[start..end], start..) |id, position| if (id >= limit) return position;
        start = end;
    }
    return null;
}

fn explain(err: base.storage.Error, diag: *base.Diagnostic, path: []const u8) DataError {
    base.storage.explain(diag, err, "read", path);
    return err;
}

fn fail(err: DataError, diag: *base.Diagnostic, comptime format: []const u8, arguments: anytype) DataError {
    diag.set(format, arguments);
    return err;
}

test {
    _ = @import("tokenized_test.zig");
}
