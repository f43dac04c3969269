//! Micro-batches for the trainer: from a dataset, in the epoch's order, into buffers that are made once.
//!
//! Stream (no `.idx`): micro-batch k is `batch_size` rows of `max_seq_len` tokens in ABI's layout (`batches.zig`); the
//! target of a position is the next token of the stream, so every position can have one. The tail is dropped.
//! Rows (`.idx`): each row keeps its first `max_seq_len` tokens; rows without a target are left out and counted;
//! a micro-batch is the next `batch_size` rows of the epoch's order, padded on the right to the longest of them; the last,
//! short one is kept. Position i predicts token i + 1 of its row; the last token of a row predicts nothing.
//! Packed rows (`LoaderOptions.packing`): the rows of a bin (`packing.zig`) stand one behind the other as one sequence.
//! Positions begin at 0 in each, and none sees another's tokens or predicts them. Every row that is not empty takes part.
//! Wrapped rows: a sequence is a run of tokens whatever rows they are of; positions run on, all see each other, and a row's
//! first token is predicted from the row before it.
//! Pairs (`pairs.zig`): a micro-batch is the next `batch_size` pairs of the epoch's order, all better answers first, then
//! all worse ones, padded to the longest of all; pairs whose prompt alone fills `max_seq_len` are left out and counted.
//! In all a target counts only if the mask bit of the *predicted* token is set. No target: −1. Padding: id 0, target −1.
//! Masking is by position, never by id. The training step allocates nothing: `next`, `seek` and `beginEpoch` only fill.
//! With a micro-batch the pages of the next ones are asked for, over the end of the epoch too, so that the disk works while
//! the step computes. That is a hint to the kernel: what is given out is the same without it. Data that stay in memory once
//! they are there are asked for in blocks, each once; of others exactly what is next is asked for, each time.
//! Does not know: models, gradients, epochs to run. Ids must have passed `checkVocabulary` before they reach a model.

const std = @import("std");
const base = @import("base");
const order_module = @import("order.zig");
const batches_module = @import("batches.zig");
const pairs = @import("pairs.zig");
const packing = @import("packing.zig");
const TokenizedDataset = @import("tokenized.zig").TokenizedDataset;
const Allocator = std.mem.Allocator;
const checked = base.checked;

pub const LoaderOptions = struct {
    /// Sequences in a micro-batch; pairs of them from preference data.
    batch_size: usize,
    /// Tokens in a sequence.
    max_seq_len: usize,
    shuffle: bool = true,
    seed: u64 = 42,
    /// Only for single rows.
    packing: packing.Strategy = .none,
    /// Bytes of memory; null: those of this machine. Ids of at most half of it are taken to stay there.
    memory: ?u64 = null,
};

/// Tokens in a block that is asked for at once: 256 KiB of ids.
const block_tokens = 1 << 16;

/// Micro-batches asked for ahead of the one that is given out.
const read_ahead = 2;

pub const LoaderError = error{
    /// batch_size or max_seq_len is 0, or their product is no size.
    InvalidBatchShape,
    /// More rows or batches than 2³² − 1, or a size that no memory has.
    TooManyRows,
    /// Two rows of preference data that are no pair.
    MalformedPairs,
    /// Data that cannot be packed.
    NotPackable,
    OutOfMemory,
};

/// Valid until the loader's next call.
pub const MicroBatch = struct {
    /// [batch · time], row by row.
    input_ids: []const u32,
    /// [batch · time]: id of the token to predict; −1: none.
    targets: []const i32,
    /// Sequences; fewer than asked in the last micro-batch of an epoch over rows.
    batch: usize,
    /// Positions in each sequence.
    time: usize,
    /// Targets that are not −1.
    target_count: usize,
    /// Positions that are not padding.
    token_count: usize,
    /// Which micro-batch of the epoch this is, from 0.
    index: usize,
    /// Preference data: how many pairs; sequence i and sequence `pairs` + i are one. 0 otherwise.
    pairs: usize = 0,
    /// Preference data: tokens of each sequence's answer, an answer's first token in its row included. [batch]
    answers: []const u32 = &.{},
    /// Preference data: place of each pair in `Loader.kept`. [pairs]
    units: []const u32 = &.{},
    /// Tokens of each sequence, padding follows; null: `time`. [batch]
    lengths: ?[]const u32 = null,
    /// [batch · time] positions for RoPE; null: 0, 1, … in each sequence.
    positions: ?[]const u32 = null,
    /// [batch · time] first position a token may see; null: the start of its sequence.
    first: ?[]const u32 = null,
};

pub const Loader = struct {
    gpa: Allocator,
    dataset: *const TokenizedDataset,
    options: LoaderOptions,
    /// Rows in training: index into the `.idx`; of preference data the pairs in training. Empty for a stream and for packed rows.
    kept: []const u32,
    /// What packed rows are made of; and wrapped ones.
    bins: ?packing.Bins = null,
    runs: ?packing.Runs = null,
    /// Targets of each kept row (of both rows of a pair, of all rows of a bin) after truncation.
    row_targets: []const u32,
    /// Rows left out because no target remains (packed: because they are empty); pairs left out because their prompt fills
    /// `max_seq_len`.
    dropped_rows: usize,
    /// Rows that lost their end to `max_seq_len`.
    truncated_rows: usize,
    /// The epoch's order over kept rows or bins, or over batches of the stream.
    order: []u32,
    /// The order of the epoch after it, drawn when its first pages are asked for.
    order_ahead: []u32 = &.{},
    ahead_is_drawn: bool = false,
    /// Sequences and positions of the largest micro-batch this data gives: what a model must have room for.
    max_batch: usize = 0,
    max_time: usize = 0,
    input_ids: []u32,
    targets: []i32,
    /// Answer tokens of each sequence of a micro-batch of pairs.
    answers: []u32 = &.{},
    /// Tokens of each sequence of a micro-batch; empty for a stream.
    lengths: []u32 = &.{},
    /// Of packed rows.
    positions: []u32 = &.{},
    first: []u32 = &.{},
    epoch: u64 = 0,
    /// Micro-batches already given in this epoch.
    micro_index: usize = 0,
    /// One bit a block of tokens: it was asked for. Empty when the data are too large to stay in memory.
    blocks: []usize = &.{},
    /// Micro-batches whose pages were asked for, counted from the start of this epoch into the next.
    asked: usize = 0,

    /// The dataset must outlive the loader. Reads the row starts and the mask once; the ids are not touched.
    /// Data that give no micro-batch are no error here: `batchesPerEpoch` is then 0.
    pub fn init(
        gpa: Allocator,
        dataset: *const TokenizedDataset,
        options: LoaderOptions,
        diag: *base.Diagnostic,
    ) LoaderError!Loader {
        const size = checked.mul(usize, options.batch_size, options.max_seq_len) catch 0;
        if (size == 0 or size > std.math.maxInt(usize) / 2) return fail(
            error.InvalidBatchShape,
            diag,
            "batch_size is {d} and max_seq_len is {d}; both must be at least 1, and their product a size in memory",
            .{ options.batch_size, options.max_seq_len },
        );
        var self: Loader = .{
            .gpa = gpa,
            .dataset = dataset,
            .options = options,
            .kept = &.{},
            .row_targets = &.{},
            .dropped_rows = 0,
            .truncated_rows = 0,
            .order = &.{},
            .input_ids = &.{},
            .targets = &.{},
        };
        errdefer self.deinit();

        if (options.packing != .none) try self.requirePackable(diag);
        const longest = if (dataset.isPreference()) try self.selectPairs(diag) else switch (options.packing) {
            .bfd => try self.selectBins(.cut, diag),
            .bfd_split => try self.selectBins(.split, diag),
            .wrapped => try self.selectRuns(diag),
            .none => if (dataset.isRows()) try self.selectRows(diag) else options.max_seq_len,
        };
        const units = if (self.isRows()) self.row_targets.len else self.streamBatches();
        if (units > std.math.maxInt(u32)) return fail(
            error.TooManyRows,
            diag,
            "{s} gives {d} batches; the most supported is {d}. Use a larger batch_size or max_seq_len",
            .{ dataset.path, units, std.math.maxInt(u32) },
        );
        self.order = try gpa.alloc(u32, units);
        self.order_ahead = try gpa.alloc(u32, units);
        // Never more than the data can fill: a wish for a huge batch over few rows costs nothing.
        const together: usize = if (dataset.isPreference()) 2 else 1;
        const sequences = if (self.isRows()) together * @min(options.batch_size, units) else if (units > 0) options.batch_size else 0;
        self.max_batch = sequences;
        self.max_time = longest;
        // A stream's inputs are the file itself, unless a batch may span two files.
        if (self.isRows() or dataset.shards.len > 0) self.input_ids = try gpa.alloc(u32, sequences * longest);
        self.targets = try gpa.alloc(i32, sequences * longest);
        if (self.isRows()) self.lengths = try gpa.alloc(u32, sequences);
        if (dataset.isPreference()) self.answers = try gpa.alloc(u32, sequences);
        if (self.bins != null) {
            self.positions = try gpa.alloc(u32, sequences * longest);
            self.first = try gpa.alloc(u32, sequences * longest);
        }
        const memory = options.memory orelse std.process.totalSystemMemory() catch 0;
        if (@as(u64, dataset.count()) * 4 <= memory / 2) {
            self.blocks = try gpa.alloc(usize, dataset.count() / block_tokens / @bitSizeOf(usize) + 1);
            @memset(self.blocks, 0);
        }
        self.beginEpoch(0);
        return self;
    }

    pub fn deinit(self: *Loader) void {
        self.gpa.free(self.blocks);
        self.gpa.free(self.first);
        self.gpa.free(self.positions);
        self.gpa.free(self.lengths);
        self.gpa.free(self.answers);
        self.gpa.free(self.targets);
        self.gpa.free(self.input_ids);
        self.gpa.free(self.order_ahead);
        self.gpa.free(self.order);
        self.gpa.free(self.row_targets);
        if (self.runs) |*runs| runs.deinit(self.gpa);
        if (self.bins) |*bins| bins.deinit(self.gpa);
        self.gpa.free(self.kept);
        self.* = undefined;
    }

    /// True when the data have row starts.
    pub fn isRows(self: *const Loader) bool {
        return self.dataset.isRows();
    }

    /// Fills `kept`, `row_targets` and the counts; returns the longest row in use.
    fn selectRows(self: *Loader, diag: *base.Diagnostic) LoaderError!usize {
        const rows = self.dataset.rowCount().?;
        if (rows > std.math.maxInt(u32)) return fail(
            error.TooManyRows,
            diag,
            "{s} has {d} rows; the most supported is {d}",
            .{ self.dataset.path, rows, std.math.maxInt(u32) },
        );
        var kept_count: usize = 0;
        for (0..rows) |row| kept_count += @intFromBool(self.countRowTargets(row) > 0);
        const kept = try self.gpa.alloc(u32, kept_count);
        self.kept = kept;
        const row_targets = try self.gpa.alloc(u32, kept_count);
        self.row_targets = row_targets;
        var longest: usize = 0;
        var k: usize = 0;
        for (0..rows) |row| {
            const targets = self.countRowTargets(row);
            const len = self.dataset.rowLength(row);
            if (targets == 0) continue;
            kept[k] = @intCast(row);
            // A row's targets are fewer than max_seq_len positions, of which a micro-batch may not have 2³².
            row_targets[k] = std.math.cast(u32, targets) orelse
                return fail(error.TooManyRows, diag, "row {d} of {s} is too long", .{ row, self.dataset.path });
            k += 1;
            longest = @max(longest, @min(len, self.options.max_seq_len));
            self.truncated_rows += @intFromBool(len > self.options.max_seq_len);
        }
        self.dropped_rows = rows - kept_count;
        // Sequences times time was checked for max_seq_len; the longest row in use is no longer.
        return longest;
    }

    fn requirePackable(self: *const Loader, diag: *base.Diagnostic) LoaderError!void {
        const path = self.dataset.path;
        if (self.dataset.isPreference()) return fail(
            error.NotPackable,
            diag,
            "packing is {t}, but {s} holds pairs of answers, which are not packed. Set packing to none",
            .{ self.options.packing, path },
        );
        if (!self.isRows()) return fail(
            error.NotPackable,
            diag,
            "packing is {t}, but {s} is one stream without row starts: its sequences are full already. " ++
                "Set packing to none, or prepare the data as rows",
            .{ self.options.packing, path },
        );
    }

    /// `selectRows` for packed rows. Fully masked rows take part: others may share their bin.
    fn selectBins(self: *Loader, overflow: packing.Overflow, diag: *base.Diagnostic) LoaderError!usize {
        const rows = try self.packableRows(diag);
        self.bins = packing.bestFit(self.gpa, Rows{ .dataset = self.dataset }, rows, self.options.max_seq_len, overflow) catch |err|
            return self.explainPacking(err, diag);
        const bins = &self.bins.?;
        var total: usize = 0;
        for (bins.pieces) |piece| total += self.countPieceTargets(piece);
        for (0..rows) |row| {
            const len = self.dataset.rowLength(row);
            self.dropped_rows += @intFromBool(len == 0);
            self.truncated_rows += @intFromBool(overflow == .cut and len > self.options.max_seq_len);
        }
        if (total == 0) return 0; // Nothing to learn: no micro-batch.
        const row_targets = try self.gpa.alloc(u32, bins.count());
        self.row_targets = row_targets;
        var longest: usize = 0;
        for (row_targets, 0..) |*targets, b| {
            var sum: usize = 0;
            var tokens: usize = 0;
            for (bins.bin(b)) |piece| {
                sum += self.countPieceTargets(piece);
                tokens += self.pieceLength(piece);
            }
            targets.* = std.math.cast(u32, sum) orelse
                return fail(error.TooManyRows, diag, "packed row {d} of {s} is too long", .{ b, self.dataset.path });
            longest = @max(longest, tokens);
        }
        return longest;
    }

    /// `selectRows` for wrapped rows.
    fn selectRuns(self: *Loader, diag: *base.Diagnostic) LoaderError!usize {
        const rows = try self.packableRows(diag);
        self.runs = packing.wrap(self.gpa, Rows{ .dataset = self.dataset }, rows, self.options.max_seq_len) catch |err|
            return self.explainPacking(err, diag);
        const runs = &self.runs.?;
        for (0..rows) |row| self.dropped_rows += @intFromBool(self.dataset.rowLength(row) == 0);
        const row_targets = try self.gpa.alloc(u32, runs.count());
        self.row_targets = row_targets;
        var total: usize = 0;
        var longest: usize = 0;
        for (row_targets, 0..) |*targets, index| {
            const run = runs.run(index);
            const sum = self.dataset.countTargets(run.start + 1, run.start + run.len);
            targets.* = std.math.cast(u32, sum) orelse
                return fail(error.TooManyRows, diag, "packed row {d} of {s} is too long", .{ index, self.dataset.path });
            total += sum;
            longest = @max(longest, run.len);
        }
        if (total > 0) return longest;
        self.gpa.free(row_targets);
        self.row_targets = &.{};
        return 0;
    }

    /// What `packing.zig` asks for.
    const Rows = struct {
        dataset: *const TokenizedDataset,

        pub fn of(rows: Rows, row: usize) usize {
            return rows.dataset.rowLength(row);
        }

        pub fn start(rows: Rows, row: usize) u64 {
            return rows.dataset.rowStart(row);
        }
    };

    fn packableRows(self: *const Loader, diag: *base.Diagnostic) LoaderError!usize {
        const rows = self.dataset.rowCount().?;
        if (rows <= std.math.maxInt(u32)) return rows;
        return fail(
            error.TooManyRows,
            diag,
            "{s} has {d} rows; the most supported is {d}",
            .{ self.dataset.path, rows, std.math.maxInt(u32) },
        );
    }

    fn explainPacking(self: *const Loader, err: packing.PackError, diag: *base.Diagnostic) LoaderError {
        return switch (err) {
            error.OutOfMemory => error.OutOfMemory,
            error.TooManyPieces => fail(
                error.TooManyRows,
                diag,
                "{s} gives more than {d} packed pieces of {d} tokens, or has a row longer than that. Use a larger max_seq_len, or packing bfd",
                .{ self.dataset.path, std.math.maxInt(u32), self.options.max_seq_len },
            ),
        };
    }

    /// `selectRows` for pairs. Reads every id once: a pair must be one.
    fn selectPairs(self: *Loader, diag: *base.Diagnostic) LoaderError!usize {
        const limit = self.options.max_seq_len;
        const count = self.dataset.rowCount().? / 2;
        if (count > std.math.maxInt(u32) / 2) return fail(
            error.TooManyRows,
            diag,
            "{s} has {d} pairs; the most supported is {d}",
            .{ self.dataset.path, count, std.math.maxInt(u32) / 2 },
        );
        var kept_count: usize = 0;
        for (0..count) |index| kept_count += @intFromBool((try pairs.read(self.dataset, index, diag)).border < limit);
        const kept = try self.gpa.alloc(u32, kept_count);
        self.kept = kept;
        const row_targets = try self.gpa.alloc(u32, kept_count);
        self.row_targets = row_targets;
        var longest: usize = 0;
        var k: usize = 0;
        for (0..count) |index| {
            if (pairs.borderOf(self.dataset, 2 * index) >= limit) continue;
            kept[k] = @intCast(index);
            row_targets[k] = std.math.cast(u32, self.countRowTargets(2 * index) + self.countRowTargets(2 * index + 1)) orelse
                return fail(error.TooManyRows, diag, "pair {d} of {s} is too long", .{ index, self.dataset.path });
            k += 1;
            for (2 * index..2 * index + 2) |row| {
                const len = self.dataset.rowLength(row);
                longest = @max(longest, @min(len, limit));
                self.truncated_rows += @intFromBool(len > limit);
            }
        }
        self.dropped_rows = count - kept_count;
        return longest;
    }

    fn countRowTargets(self: *const Loader, row: usize) usize {
        return self.countSpanTargets(self.dataset.rowStart(row), self.lengthOf(row));
    }

    fn countPieceTargets(self: *const Loader, piece: packing.Piece) usize {
        return self.countSpanTargets(self.dataset.rowStart(piece.row) + piece.from, self.pieceLength(piece));
    }

    /// Targets among `len` tokens whose first nothing predicts.
    fn countSpanTargets(self: *const Loader, start: usize, len: usize) usize {
        return if (len < 2) 0 else self.dataset.countTargets(start + 1, start + len);
    }

    fn streamBatches(self: *const Loader) usize {
        return batches_module.count(self.dataset.count(), self.options.batch_size, self.options.max_seq_len);
    }

    /// Micro-batches of one epoch.
    pub fn batchesPerEpoch(self: *const Loader) usize {
        if (!self.isRows()) return self.order.len;
        return std.math.divCeil(usize, self.order.len, self.options.batch_size) catch unreachable; // never 0
    }

    /// Targets of one whole epoch.
    pub fn targetsPerEpoch(self: *const Loader) u64 {
        var sum: u64 = 0;
        if (self.isRows()) {
            for (self.row_targets) |n| sum += n;
        } else for (0..self.order.len) |index| sum += self.countStreamTargets(index);
        return sum;
    }

    /// Draws the order of `epoch` (from 0) and goes to its start.
    pub fn beginEpoch(self: *Loader, epoch: u64) void {
        if (self.ahead_is_drawn and epoch == self.epoch +% 1) {
            std.mem.swap([]u32, &self.order, &self.order_ahead);
            self.asked -|= self.batchesPerEpoch();
        } else {
            order_module.fillEpochOrder(self.order, self.options.shuffle, self.options.seed, epoch);
            self.asked = 0;
        }
        self.ahead_is_drawn = false;
        self.epoch = epoch;
        self.micro_index = 0;
    }

    /// Goes to micro-batch `micro_index` of `epoch`; the order is drawn again only for another epoch.
    /// `micro_index` may be `batchesPerEpoch()`: the end.
    pub fn seek(self: *Loader, epoch: u64, micro_index: u64) error{SeekOutOfRange}!void {
        const index = std.math.cast(usize, micro_index) orelse return error.SeekOutOfRange;
        if (index > self.batchesPerEpoch()) return error.SeekOutOfRange;
        if (epoch != self.epoch) self.beginEpoch(epoch);
        if (index != self.micro_index) self.asked = index;
        self.micro_index = index;
    }

    /// The next micro-batch; null at the end of the epoch.
    pub fn next(self: *Loader) ?MicroBatch {
        if (self.micro_index >= self.batchesPerEpoch()) return null;
        self.askAhead();
        const batch = if (self.dataset.isPreference()) self.nextPairs() else if (self.bins != null) self.nextBins() else if (self.isRows()) self.nextRows() else self.nextStream();
        self.micro_index += 1;
        return batch;
    }

    /// Asks for the pages of this micro-batch and the next ones, each once.
    fn askAhead(self: *Loader) void {
        const per_epoch = self.batchesPerEpoch();
        const end = @min(self.micro_index + 1 + read_ahead, 2 * per_epoch);
        while (self.asked < end) : (self.asked += 1) {
            if (self.asked < per_epoch) {
                self.askFor(self.order, self.asked);
                continue;
            }
            if (!self.ahead_is_drawn)
                order_module.fillEpochOrder(self.order_ahead, self.options.shuffle, self.options.seed, self.epoch +% 1);
            self.ahead_is_drawn = true;
            self.askFor(self.order_ahead, self.asked - per_epoch);
        }
    }

    fn askFor(self: *Loader, order: []const u32, micro: usize) void {
        if (!self.isRows()) {
            const size = self.options.batch_size * self.options.max_seq_len;
            const start = order[micro] * size;
            return self.askForSpan(start, size + 1); // The last target is the next batch's first token.
        }
        self.prefetchPlaces(order, micro);
        for (self.unitsOf(order, micro)) |k| {
            if (self.bins) |*bins| {
                for (bins.bin(k)) |piece| self.askForSpan(self.dataset.rowStart(piece.row) + piece.from, self.pieceLength(piece));
            } else if (self.runs) |*runs| {
                const run = runs.run(k);
                self.askForSpan(run.start, run.len);
            } else if (self.dataset.isPreference()) {
                for (0..2) |half| self.askForRow(2 * @as(usize, self.kept[k]) + half);
            } else self.askForRow(self.kept[k]);
        }
    }

    /// Which rows the micro-batches behind this one have, and where they begin, is looked up soon: brings it closer, one step
    /// of the way for each of the next.
    fn prefetchPlaces(self: *const Loader, order: []const u32, micro: usize) void {
        if ((micro + 3) * self.options.batch_size >= order.len or self.dataset.isPreference()) return;
        for (self.unitsOf(order, micro + 3)) |k| {
            @prefetch(&self.row_targets[k], .{});
            if (self.bins) |*bins| @prefetch(&bins.starts[k], .{}) else if (self.runs == null) @prefetch(&self.kept[k], .{});
        }
        if (self.bins) |*bins| {
            for (self.unitsOf(order, micro + 2)) |k| @prefetch(bins.pieces.ptr + bins.starts[k], .{});
            for (self.unitsOf(order, micro + 1)) |k| for (bins.bin(k)) |piece| self.dataset.prefetchRow(piece.row);
        } else if (self.runs == null) {
            for (self.unitsOf(order, micro + 1)) |k| self.dataset.prefetchRow(self.kept[k]);
        }
    }

    fn askForRow(self: *Loader, row: usize) void {
        self.askForSpan(self.dataset.rowStart(row), self.lengthOf(row));
    }

    fn askForSpan(self: *Loader, start: usize, len: usize) void {
        if (len == 0) return;
        if (self.blocks.len == 0) return self.dataset.willNeed(start, start + len);
        // Rows lie anywhere: what is in memory already comes into the cache while the ones before are copied.
        if (self.isRows()) self.dataset.prefetch(start, start + len);
        for (start / block_tokens..(start + len - 1) / block_tokens + 1) |block| {
            const word = &self.blocks[block / @bitSizeOf(usize)];
            const bit = @as(usize, 1) << @intCast(block % @bitSizeOf(usize));
            if (word.* & bit != 0) continue;
            word.* |= bit;
            self.dataset.willNeed(block * block_tokens, @min(self.dataset.count(), (block + 1) * block_tokens));
        }
    }

    /// Targets in the next `micro_batches` micro-batches of this epoch, without moving: the token average over an
    /// accumulated batch needs them before its first backward pass.
    pub fn peekTargets(self: *const Loader, micro_batches: usize) usize {
        const end = @min(self.batchesPerEpoch(), self.micro_index +| micro_batches);
        var sum: usize = 0;
        for (self.micro_index..end) |micro| {
            if (self.isRows()) {
                for (self.rowsOf(micro)) |k| sum += self.row_targets[k];
            } else sum += self.countStreamTargets(self.order[micro]);
        }
        return sum;
    }

    /// The order of `epoch` for the record and for other engines: row numbers of the `.idx` (kept rows only), numbers of
    /// packed rows, or batch numbers of the stream. Caller frees. Does not move the loader.
    pub fn epochOrder(self: *const Loader, gpa: Allocator, epoch: u64) error{OutOfMemory}![]u32 {
        const order = try gpa.alloc(u32, self.order.len);
        order_module.fillEpochOrder(order, self.options.shuffle, self.options.seed, epoch);
        if (self.isRows() and self.bins == null and self.runs == null) for (order) |*o| {
            o.* = self.kept[o.*];
        };
        return order;
    }

    fn rowsOf(self: *const Loader, micro: usize) []const u32 {
        return self.unitsOf(self.order, micro);
    }

    fn unitsOf(self: *const Loader, order: []const u32, micro: usize) []const u32 {
        const start = micro * self.options.batch_size;
        return order[start..][0..@min(self.options.batch_size, order.len - start)];
    }

    fn nextRows(self: *Loader) MicroBatch {
        const units = self.rowsOf(self.micro_index);
        var time: usize = 0;
        for (units) |k| time = @max(time, self.spanOf(k).len);
        var tokens: usize = 0;
        var target_count: usize = 0;
        for (units, 0..) |k, r| {
            const span = self.spanOf(k);
            self.fillSequence(r, span, time);
            self.lengths[r] = @intCast(span.len);
            tokens += span.len;
            target_count += self.row_targets[k];
        }
        return .{
            .input_ids = self.input_ids[0 .. units.len * time],
            .targets = self.targets[0 .. units.len * time],
            .batch = units.len,
            .time = time,
            .target_count = target_count,
            .token_count = tokens,
            .index = self.micro_index,
            .lengths = self.lengths[0..units.len],
        };
    }

    /// Tokens of a sequence that is one piece of the data.
    fn spanOf(self: *const Loader, k: u32) packing.Runs.Run {
        if (self.runs) |*runs| return runs.run(k);
        const row = self.kept[k];
        return .{ .start = self.dataset.rowStart(row), .len = self.lengthOf(row) };
    }

    fn nextBins(self: *Loader) MicroBatch {
        const units = self.rowsOf(self.micro_index);
        const bins = &self.bins.?;
        var time: usize = 0;
        for (units) |b| {
            var tokens: usize = 0;
            for (bins.bin(b)) |piece| tokens += self.pieceLength(piece);
            time = @max(time, tokens);
        }
        var token_count: usize = 0;
        var target_count: usize = 0;
        for (units, 0..) |b, r| {
            const len = self.fillBin(r, bins.bin(b), time);
            self.lengths[r] = @intCast(len);
            token_count += len;
            target_count += self.row_targets[b];
        }
        const size = units.len * time;
        return .{
            .input_ids = self.input_ids[0..size],
            .targets = self.targets[0..size],
            .batch = units.len,
            .time = time,
            .target_count = target_count,
            .token_count = token_count,
            .index = self.micro_index,
            .lengths = self.lengths[0..units.len],
            .positions = self.positions[0..size],
            .first = self.first[0..size],
        };
    }

    /// Writes these rows one behind the other as sequence `r` of `time` positions; gives their length together.
    fn fillBin(self: *Loader, r: usize, pieces: []const packing.Piece, time: usize) usize {
        const positions = self.positions[r * time ..][0..time];
        const first = self.first[r * time ..][0..time];
        var at: usize = 0;
        for (pieces) |piece| {
            const len = self.pieceLength(piece);
            self.fillTokens(r * time + at, self.dataset.rowStart(piece.row) + piece.from, len);
            countUp(positions[at..][0..len], 0, 1);
            countUp(first[at..][0..len], @intCast(at), 0);
            at += len;
        }
        @memset(self.input_ids[r * time ..][at..time], 0);
        @memset(self.targets[r * time ..][at..time], -1);
        // Padding sees itself alone: nothing is computed for the rest.
        @memset(positions[at..], 0);
        countUp(first[at..], @intCast(at), 1);
        return at;
    }

    /// `begin`, `begin` + `step`, …
    fn countUp(out: []u32, begin: u32, comptime step: u32) void {
        const lanes = 8;
        const V = @Vector(lanes, u32);
        var v: V = @as(V, @splat(begin)) +% std.simd.iota(u32, lanes) * @as(V, @splat(step));
        var i: usize = 0;
        while (i + lanes <= out.len) : (i += lanes) {
            out[i..][0..lanes].* = v;
            v +%= @splat(lanes * step);
        }
        const rest: [lanes]u32 = v;
        @memcpy(out[i..], rest[0 .. out.len - i]);
    }

    fn nextPairs(self: *Loader) MicroBatch {
        const units = self.rowsOf(self.micro_index);
        const batch = 2 * units.len;
        var time: usize = 0;
        var target_count: usize = 0;
        for (units) |k| {
            for (0..2) |half| time = @max(time, self.lengthOf(2 * @as(usize, self.kept[k]) + half));
            target_count += self.row_targets[k];
        }
        var tokens: usize = 0;
        for (0..2) |half| for (units, half * units.len..) |k, r| {
            const row = 2 * @as(usize, self.kept[k]) + half;
            const len = self.lengthOf(row);
            self.fillSequence(r, .{ .start = self.dataset.rowStart(row), .len = len }, time);
            self.lengths[r] = @intCast(len);
            self.answers[r] = @intCast(len - pairs.borderOf(self.dataset, row));
            tokens += len;
        };
        return .{
            .input_ids = self.input_ids[0 .. batch * time],
            .targets = self.targets[0 .. batch * time],
            .batch = batch,
            .time = time,
            .target_count = target_count,
            .token_count = tokens,
            .index = self.micro_index,
            .pairs = units.len,
            .answers = self.answers[0..batch],
            .lengths = self.lengths[0..batch],
            .units = units,
        };
    }

    /// Tokens of a row that are in use.
    fn lengthOf(self: *const Loader, row: usize) usize {
        return @min(self.dataset.rowLength(row), self.options.max_seq_len);
    }

    fn pieceLength(self: *const Loader, piece: packing.Piece) usize {
        return @min(self.dataset.rowLength(piece.row) - piece.from, self.options.max_seq_len);
    }

    /// Writes a piece of the data as sequence `r` of `time` positions.
    fn fillSequence(self: *Loader, r: usize, span: packing.Runs.Run, time: usize) void {
        self.fillTokens(r * time, span.start, span.len);
        @memset(self.input_ids[r * time ..][span.len..time], 0);
        @memset(self.targets[r * time ..][span.len..time], -1);
    }

    /// Writes `len` tokens of the data from `start` on at position `at`, each with the next as its target, the last with none.
    fn fillTokens(self: *Loader, at: usize, start: usize, len: usize) void {
        self.dataset.fillText(self.input_ids[at..][0..len], self.targets[at..][0..len], start);
    }

    fn nextStream(self: *Loader) MicroBatch {
        const size = self.options.batch_size * self.options.max_seq_len;
        const index: usize = self.order[self.micro_index];
        self.dataset.fillTargets(self.targets, index * size + 1);
        return .{
            .input_ids = self.dataset.slice(index * size, (index + 1) * size) orelse self.copied(index * size),
            .targets = self.targets,
            .batch = self.options.batch_size,
            .time = self.options.max_seq_len,
            .target_count = self.countStreamTargets(index),
            .token_count = size,
            .index = self.micro_index,
        };
    }

    fn copied(self: *Loader, start: usize) []const u32 {
        self.dataset.readTokens(self.input_ids, start);
        return self.input_ids;
    }

    fn countStreamTargets(self: *const Loader, index: usize) usize {
        const size = self.options.batch_size * self.options.max_seq_len;
        return self.dataset.countTargets(index * size + 1, index * size + 1 + size);
    }
};

fn fail(err: LoaderError, diag: *base.Diagnostic, comptime format: []const u8, arguments: anytype) LoaderError {
    diag.set(format, arguments);
    return err;
}

test {
    _ = @import("loader_test.zig");
}
