//! A preparation: files of rows to token files, on all threads, the same bytes for any number of them.
//!
//! The files are cut into blocks of fixed size; each block's lines are read, tokenised and counted by one thread, and the
//! results are written in the order of the blocks. While one batch of blocks is at work, the batch before is written.
//! About once a second the journal notes how far the parts are; a program that was killed is continued from there, and
//! the result has the same bytes as one that was not. Memory does not grow with the files.
//! A failure of the data removes what was written; a full disk or a cancel keeps it, to go on later.
//! Does not know: C, Python, what a person sees meanwhile (`progress` is for them).

const std = @import("std");
const base = @import("base");
const data = @import("data");
const config = @import("config");
const tokenizer_layer = @import("tokenizer");
const encode = @import("encode.zig");
const journal = @import("journal.zig");
const report_module = @import("report.zig");
const row_module = @import("row.zig");
const source_module = @import("source.zig");
const Allocator = std.mem.Allocator;
const Io = std.Io;
const Report = report_module.Report;
const Source = source_module.Source;
const Split = report_module.Split;
const Storage = base.storage.Storage;

pub const Options = struct {
    sources: []const []const u8,
    output: []const u8,
    /// Null: nothing is held out.
    eval_output: ?[]const u8 = null,
    /// Share of the lines that goes to `eval_output`, drawn from `seed`.
    eval_fraction: f64 = 0,
    seed: u64 = 42,
    /// Null: chats are refused.
    chat_format: ?tokenizer_layer.ChatFormat = null,
    /// Year, month and day as 2025-06-28, for chat formats that name the day.
    date: ?[]const u8 = null,
    loss: encode.Loss = .assistant,
    max_seq_len: ?usize = null,
    /// Count unusable lines instead of stopping at the first.
    skip_invalid: bool = false,
    /// No row starts: one stream of ids.
    stream: bool = false,
    /// For the manifest.
    tokenizer_hash: ?[]const u8 = null,
    format_name: ?[]const u8 = null,
    source_note: ?[]const u8 = null,
    license: ?[]const u8 = null,
    commercial_use: ?bool = null,
    notes: []const []const u8 = &.{},
    /// 0: one for each CPU.
    threads: usize = 0,
    /// Go on where an earlier program stopped.
    continues: bool = true,
    journal_ms: u64 = 1000,
    block_bytes: u32 = 256 << 10,
    limits: data.json_line.Limits = .{},
};

pub const Error = error{
    /// The data, the options or the tokenizer cannot be used.
    InvalidData,
    /// A source cannot be read.
    NotReadable,
    /// Another program prepares the same file.
    OutputInUse,
    /// `cancel` was called; what was done is kept.
    Canceled,
} || source_module.Error || data.writer.WriteError;

/// What may be asked while `run` runs, from any thread.
pub const Progress = struct {
    bytes_done: u64,
    bytes_total: u64,
    lines: u64,
    rows: u64,
    tokens: u64,
    /// Bytes an earlier program had done.
    bytes_before: u64,
    /// Lines are being counted, for the split; nothing is written yet.
    counting: bool,
};

const Atomic = std.atomic.Value(u64);
const blocks_a_thread = 4;

pub const Job = struct {
    gpa: Allocator,
    io: Io,
    disk: base.storage.Disk,
    tokenizer: *const tokenizer_layer.Tokenizer,
    options: Options,
    arena: std.heap.ArenaAllocator,
    sources: []Source,
    journal_path: []const u8,
    identity: base.checksum.Sha256Hex,
    report: Report = .{},
    cancelled: std.atomic.Value(bool) = .init(false),
    bytes_done: Atomic = .init(0),
    bytes_total: u64 = 0,
    bytes_before: Atomic = .init(0),
    lines_done: Atomic = .init(0),
    rows_done: Atomic = .init(0),
    tokens_done: Atomic = .init(0),
    counting: std.atomic.Value(bool) = .init(false),

    /// Opens the sources. Texts of `options` and the tokenizer must outlive the job, which must not move.
    pub fn init(self: *Job, gpa: Allocator, io: Io, tokenizer: *const tokenizer_layer.Tokenizer, options: Options, diag: *base.Diagnostic) Error!void {
        if (options.sources.len == 0) {
            diag.set("no source is named; name at least one JSONL file", .{});
            return error.InvalidData;
        }
        if (!(options.eval_fraction >= 0 and options.eval_fraction < 1)) {
            diag.set("eval_fraction is {d}; it must be at least 0 and below 1", .{options.eval_fraction});
            return error.InvalidData;
        }
        if (options.max_seq_len) |limit| if (limit < 2) {
            diag.set("max_seq_len is {d}; a row needs at least 2 tokens", .{limit});
            return error.InvalidData;
        };
        self.* = .{
            .gpa = gpa,
            .io = io,
            .disk = .init(io),
            .tokenizer = tokenizer,
            .options = options,
            .arena = .init(gpa),
            .sources = &.{},
            .journal_path = undefined,
            .identity = undefined,
        };
        errdefer self.deinit();

        const arena = self.arena.allocator();
        self.journal_path = try journal.pathOf(arena, options.output);
        const sources = try arena.alloc(Source, options.sources.len);
        for (sources, options.sources, 0..) |*source, path, i| {
            source.* = try Source.open(io, path, diag);
            self.sources = sources[0 .. i + 1];
            self.bytes_total += source.size;
        }
        self.identity = try self.identify();
    }

    pub fn deinit(self: *Job) void {
        for (self.sources) |*source| source.close(self.io);
        self.arena.deinit();
    }

    /// From any thread: `run` soon returns `Canceled`.
    pub fn cancel(self: *Job) void {
        self.cancelled.store(true, .monotonic);
    }

    /// From any thread.
    pub fn progress(self: *const Job) Progress {
        return .{
            .bytes_done = self.bytes_done.load(.monotonic),
            .bytes_total = self.bytes_total,
            .lines = self.lines_done.load(.monotonic),
            .rows = self.rows_done.load(.monotonic),
            .tokens = self.tokens_done.load(.monotonic),
            .bytes_before = self.bytes_before.load(.monotonic),
            .counting = self.counting.load(.monotonic),
        };
    }

    /// Everything the bytes of the result depend on.
    fn identify(self: *Job) error{OutOfMemory}!base.checksum.Sha256Hex {
        var text: std.Io.Writer.Allocating = .init(self.gpa);
        defer text.deinit();

        const o = &self.options;
        var out: std.json.Stringify = .{ .writer = &text.writer };
        out.beginArray() catch return error.OutOfMemory;
        const facts = .{ config.version, o.output, o.eval_output, o.eval_fraction, o.seed, o.loss, o.max_seq_len, o.skip_invalid, o.stream, o.tokenizer_hash, o.format_name, o.chat_format, self.namedDay(), o.source_note, o.license, o.commercial_use, o.notes, o.block_bytes, o.limits, self.tokenizer.vocabSize() };
        out.write(facts) catch return error.OutOfMemory;
        for (self.sources) |*source| out.write(.{ source.path, source.size, @as(i64, @intCast(@divTrunc(source.mtime_ns, 1000))), source.head }) catch return error.OutOfMemory;
        out.endArray() catch return error.OutOfMemory;
        return base.checksum.sha256Hex(text.written());
    }

    /// The day, where the format writes it: the same rows are others tomorrow.
    fn namedDay(self: *const Job) ?[]const u8 {
        const format = self.options.chat_format orelse return null;
        for ([_]@FieldType(tokenizer_layer.chat_format.Description.Use, "value"){ .date, .date_in_words }) |value|
            if (format.description().uses(.{ .value = value })) return self.options.date;
        return null;
    }

    /// Does the work; once. On error `diag` names place and reason.
    pub fn run(self: *Job, diag: *base.Diagnostic) Error!void {
        var worker: Run = .{ .job = self, .storage = self.disk.storage() };
        defer worker.deinit();

        worker.run(diag) catch |err| {
            // What can be mended keeps what was done.
            const keeps = switch (err) {
                error.Canceled, error.NoSpaceLeft, error.InputOutput, error.OutOfMemory => true,
                else => false,
            };
            worker.leave(keeps and worker.journaled, diag);
            return err;
        };
    }
};

/// One block on its way from a file to the writers.
const Block = struct {
    lines: source_module.Lines = .{},
    reader: row_module.Reader,
    encoder: encode.RowEncoder,
    records: std.ArrayList(Record) = .empty,
    lengths: std.ArrayList(u32) = .empty,
    // What the block is.
    source: u32 = 0,
    index: u64 = 0,
    // What came of it.
    newlines: u64 = 0,
    line_count: u64 = 0,
    dropped: u64 = 0,
    skipped: [report_module.kind_count]u64 = @splat(0),
    examples: [report_module.example_count]Place = undefined,
    example_count: usize = 0,
    /// The first row is of this kind; another one behind it is an error.
    preference: ?bool = null,
    mixed_at: ?u64 = null,
    first_row_at: u64 = 0,
    /// The block ends here.
    failure: ?struct { err: Error, place: Place } = null,

    /// One row, or the first of a pair.
    const Record = struct { ordinal: u32, encoded: encode.Encoded, line: u32 };
    const Place = struct { line: u64, column: ?usize, said: base.Diagnostic };

    fn clear(self: *Block) void {
        self.records.clearRetainingCapacity();
        self.lengths.clearRetainingCapacity();
        self.encoder.ids.clearRetainingCapacity();
        self.encoder.mask.clearRetainingCapacity();
        self.newlines = 0;
        self.line_count = 0;
        self.dropped = 0;
        self.skipped = @splat(0);
        self.example_count = 0;
        self.preference = null;
        self.mixed_at = null;
        self.failure = null;
    }

    fn deinit(self: *Block, gpa: Allocator) void {
        self.lines.deinit(gpa);
        self.reader.deinit();
        self.encoder.deinit();
        self.records.deinit(gpa);
        self.lengths.deinit(gpa);
    }
};

const Run = struct {
    job: *Job,
    storage: Storage,
    pool: ?*base.Pool = null,
    /// Two batches, one at work and one being written.
    batches: [2][]Block = .{ &.{}, &.{} },
    locks: [2]?base.storage.Lock = .{ null, null },
    writers: [2]?*data.TokenizedWriter = .{ null, null },
    begins: [2]?data.writer.Written = .{ null, null },
    /// Bit i: line i (not counting blank ones) is held out.
    held: []u64 = &.{},
    holds: bool = false,
    /// Newlines of the current file before the next block to be written.
    newlines: u64 = 0,
    newlines_source: u32 = 0,
    examples: std.ArrayList([]const u8) = .empty,
    /// The block behind the last one written.
    position: Position = .{},
    journaled: bool = false,
    journaled_at: Io.Timestamp = .zero,
    // The batch at work.
    next_block: std.atomic.Value(usize) = .init(0),
    stop: std.atomic.Value(bool) = .init(false),

    fn deinit(self: *Run) void {
        const gpa = self.job.gpa;
        for (self.writers) |writer| if (writer) |w| w.destroy();
        for (&self.batches) |batch| {
            for (batch) |*block| block.deinit(gpa);
            gpa.free(batch);
        }
        if (self.pool) |pool| pool.deinit();
        gpa.free(self.held);
        for (&self.locks) |*lock| if (lock.*) |*l| l.release();
    }

    /// After a failure: parts stay for the next program, or nothing stays.
    fn leave(self: *Run, keeps: bool, diag: *base.Diagnostic) void {
        if (keeps) {
            for (self.writers) |writer| if (writer) |w| w.keepParts(true);
            var copy = diag.*;
            if (copy.len == 0) copy.set("stopped", .{});
            diag.set("{s} What was done is kept: the same command goes on from there", .{copy.text()});
            return;
        }
        for (self.writers) |writer| if (writer) |w| w.keepParts(false);
        if (self.locks[0] == null) return; // Another program's.
        journal.remove(self.job.gpa, self.storage, self.job.journal_path);
        const paths = [_]?[]const u8{ self.job.options.output, self.job.options.eval_output };
        for (paths, self.writers, self.locks) |path, writer, lock| if (path != null and writer == null and lock != null) self.deleteParts(path.?);
    }

    /// Parts no writer holds: those of an earlier program, or made by taking the lock.
    fn deleteParts(self: *Run, path: []const u8) void {
        const arena = self.job.arena.allocator();
        for ([_][]const u8{ path, data.tokenized.siblingName(arena, path, ".mask") catch return, data.tokenized.siblingName(arena, path, ".idx") catch return }) |name| {
            const part = std.mem.concat(arena, u8, &.{ name, base.storage.AtomicFile.part_ending }) catch return;
            self.storage.deleteFile(part) catch {};
        }
    }

    fn run(self: *Run, diag: *base.Diagnostic) Error!void {
        const job = self.job;
        const gpa = job.gpa;
        try self.takeLocks(diag);
        var at: Position = .{};
        if (job.options.continues) try self.load(&at);
        self.pool = base.Pool.init(gpa, job.options.threads) catch return error.OutOfMemory;
        if (job.options.eval_fraction > 0) try self.holdOut(diag);
        for (&self.batches) |*batch| {
            const blocks = try gpa.alloc(Block, self.pool.?.n * blocks_a_thread);
            for (blocks) |*block| block.* = .{
                .reader = .init(gpa, job.options.limits),
                .encoder = .init(gpa, job.tokenizer, .{ .format = job.options.chat_format, .loss = job.options.loss, .max_seq_len = job.options.max_seq_len, .date = job.options.date }),
            };
            batch.* = blocks;
        }
        self.journaled_at = .now(job.io, .awake);
        var work: Work = .{ .run = self, .diag = diag };
        var turn: usize = 0;
        while (true) : (turn = 1 - turn) {
            work.now = self.batches[turn][0..self.fill(self.batches[turn], &at)];
            self.next_block.store(0, .monotonic);
            self.pool.?.parallelFor(&work, self.pool.?.n, Work.step);
            if (work.failed) |err| return err;
            if (job.cancelled.load(.monotonic)) {
                // The batch at work is done again by the next program.
                try self.note(diag);
                diag.set("stopped on request.", .{});
                return error.Canceled;
            }
            if (work.now.len == 0) break;
            work.before = work.now;
        }
        for (job.sources) |*source| try source.check(job.io, diag);
        try self.finish(diag);
    }

    const Position = struct { source: u32 = 0, block: u64 = 0 };

    fn takeLocks(self: *Run, diag: *base.Diagnostic) Error!void {
        const job = self.job;
        const paths = [_]?[]const u8{ job.options.output, job.options.eval_output };
        for (paths, &self.locks) |path, *lock| {
            const name = path orelse continue;
            self.storage.ensureFolder(base.storage.parentOf(name)) catch |err| return self.explain(err, diag, base.storage.parentOf(name));
            const part = try std.mem.concat(job.arena.allocator(), u8, &.{ name, base.storage.AtomicFile.part_ending });
            lock.* = self.storage.lock(part) catch |err| switch (err) {
                error.Locked => {
                    diag.set("{s} is being prepared by another program; wait for it to end, or name another output", .{name});
                    return error.OutputInUse;
                },
                else => return self.explain(err, diag, part),
            };
        }
    }

    fn explain(_: *Run, err: base.storage.Error, diag: *base.Diagnostic, path: []const u8) Error {
        base.storage.explain(diag, err, "write", path);
        return err;
    }

    fn writerOptions(self: *const Run) data.WriterOptions {
        const o = &self.job.options;
        return .{
            .kind = if (self.job.report.preference orelse false) .preference else .tokens,
            .rows = !o.stream,
            .vocab_size = @intCast(self.job.tokenizer.vocabSize()),
            .tokenizer_hash = o.tokenizer_hash,
            .format = o.format_name,
            .seed = if (o.eval_fraction > 0) o.seed else null,
            .source = o.source_note,
            .license = o.license,
            .commercial_use = o.commercial_use,
            .notes = o.notes,
            .resumable = true,
        };
    }

    /// What an earlier program left, if it can be gone on with.
    fn load(self: *Run, at: *Position) Error!void {
        const job = self.job;
        const state = try journal.read(job.arena.allocator(), self.storage, job.journal_path, &job.identity) orelse return;
        if (state.source > job.sources.len) return;
        if ((state.evaluation != null) and job.options.eval_output == null) return;
        job.report = state.report;
        const matches = try data.writer.partsMatch(job.gpa, self.storage, job.options.output, self.writerOptions(), &state.train) and
            (state.evaluation == null or try data.writer.partsMatch(job.gpa, self.storage, job.options.eval_output.?, self.writerOptions(), &state.evaluation.?));
        if (!matches) {
            job.report = .{};
            return;
        }
        try self.examples.appendSlice(job.arena.allocator(), state.report.skipped_examples);
        self.begins = .{ state.train, state.evaluation };
        self.newlines = state.newlines;
        self.newlines_source = state.source;
        self.journaled = true;
        at.* = .{ .source = state.source, .block = state.block };
        var before: u64 = 0;
        for (job.sources[0..state.source]) |*source| before += source.size;
        if (state.source < job.sources.len) before += @min(job.sources[state.source].size, state.block * job.options.block_bytes);
        job.bytes_before.store(before, .monotonic);
        job.bytes_done.store(before, .monotonic);
        self.tell();
    }

    /// Hands the next blocks out; how many.
    fn fill(self: *Run, blocks: []Block, at: *Position) usize {
        const sources = self.job.sources;
        for (blocks, 0..) |*block, i| {
            while (at.source < sources.len and at.block >= sources[at.source].blockCount(self.job.options.block_bytes)) {
                at.source += 1;
                at.block = 0;
            }
            if (at.source == sources.len) return i;
            block.source = at.source;
            block.index = at.block;
            at.block += 1;
        }
        return blocks.len;
    }

    /// Draws the lines that are held out, as many as `eval_fraction` says, but never all.
    fn holdOut(self: *Run, diag: *base.Diagnostic) Error!void {
        const job = self.job;
        job.counting.store(true, .monotonic);
        defer job.counting.store(false, .monotonic);

        const total = try self.countLines(diag);
        if (total < 2) return;
        if (total > std.math.maxInt(u32)) {
            diag.set("the sources have {d} lines; at most {d} can be split. Prepare them in parts", .{ total, std.math.maxInt(u32) });
            return error.InvalidData;
        }
        const count: usize = @min(total - 1, @as(usize, @trunc(@ceil(job.options.eval_fraction * @as(f64, @floatFromInt(total))))));
        const order = try job.gpa.alloc(u32, total);
        defer job.gpa.free(order);

        data.order.fillEpochOrder(order, true, job.options.seed, 0);
        self.held = try job.gpa.alloc(u64, total / 64 + 1);
        @memset(self.held, 0);
        for (order[0..count]) |line| self.held[line / 64] |= @as(u64, 1) << @intCast(line % 64);
        self.holds = true;
    }

    fn isHeld(self: *const Run, line: u64) bool {
        return self.holds and self.held[@intCast(line / 64)] >> @intCast(line % 64) & 1 != 0;
    }

    fn countLines(self: *Run, diag: *base.Diagnostic) Error!usize {
        const job = self.job;
        const gpa = job.gpa;
        const Count = struct {
            lines: source_module.Lines = .{},
            total: u64 = 0,
            err: ?source_module.Error = null,
            diag: base.Diagnostic = .{},
        };
        const Counting = struct {
            job: *Job,
            counts: []Count,
            next: std.atomic.Value(u64) = .init(0),

            fn step(c: *@This(), _: usize, worker: usize) void {
                const mine = &c.counts[worker];
                while (!c.job.cancelled.load(.monotonic)) {
                    var index = c.next.fetchAdd(1, .monotonic);
                    const source = for (c.job.sources) |*s| {
                        const blocks = s.blockCount(c.job.options.block_bytes);
                        if (index < blocks) break s;
                        index -= blocks;
                    } else return;
                    mine.lines.read(c.job.gpa, c.job.io, source, index * c.job.options.block_bytes, c.job.options.block_bytes, c.job.options.limits.max_bytes, &mine.diag) catch |err| {
                        mine.err = err;
                        return;
                    };
                    mine.total += data.jsonl.count(mine.lines.text);
                }
            }
        };
        const counts = try gpa.alloc(Count, self.pool.?.n);
        defer gpa.free(counts);
        @memset(counts, .{});
        defer for (counts) |*count| count.lines.deinit(gpa);

        var counting: Counting = .{ .job = job, .counts = counts };
        self.pool.?.parallelFor(&counting, self.pool.?.n, Counting.step);
        var total: u64 = 0;
        for (counts) |*count| {
            if (count.err) |err| {
                diag.* = count.diag;
                return err;
            }
            total += count.total;
        }
        if (job.cancelled.load(.monotonic)) {
            diag.set("stopped on request.", .{});
            return error.Canceled;
        }
        return @intCast(total);
    }

    /// What the threads share while one batch is at work and the one before is written.
    const Work = struct {
        run: *Run,
        diag: *base.Diagnostic,
        now: []Block = &.{},
        before: []Block = &.{},
        failed: ?Error = null,

        fn step(self: *Work, _: usize, worker: usize) void {
            const run_ = self.run;
            // Only worker 0 writes; all then take blocks as they come.
            if (worker == 0) for (self.before) |*block| {
                run_.take(block, self.diag) catch |err| {
                    self.failed = err;
                    run_.stop.store(true, .monotonic);
                    return;
                };
            };
            while (!run_.stop.load(.monotonic) and !run_.job.cancelled.load(.monotonic)) {
                const at = run_.next_block.fetchAdd(1, .monotonic);
                if (at >= self.now.len) return;
                run_.process(&self.now[at]);
            }
        }
    };

    /// Reads and encodes a block. Failures are noted in it; whoever takes the blocks in order raises the first.
    fn process(self: *Run, block: *Block) void {
        block.clear();
        self.processLines(block) catch |err| {
            if (block.failure == null) block.failure = .{ .err = err, .place = .{ .line = 0, .column = null, .said = .{} } };
        };
    }

    fn processLines(self: *Run, block: *Block) Error!void {
        const job = self.job;
        const gpa = job.gpa;
        var diag: base.Diagnostic = .{};
        const offset = block.index * job.options.block_bytes;
        block.lines.read(gpa, job.io, &job.sources[block.source], offset, job.options.block_bytes, job.options.limits.max_bytes, &diag) catch |err| {
            block.failure = .{ .err = err, .place = .{ .line = 0, .column = null, .said = diag } };
            return;
        };
        const text = block.lines.text;
        try block.reader.parser.load(text);
        var lines: data.jsonl.Lines = .{ .text = text };
        while (lines.next()) |line| {
            const ordinal = block.line_count;
            block.line_count += 1;
            const number = block.lines.newlines_before + line.number;
            const row = block.reader.read(line.start, line.end) catch |err| switch (err) {
                error.OutOfMemory => return error.OutOfMemory,
                error.Unusable => {
                    const column = if (block.reader.column) |c| line.start - line.begin + c else null;
                    if (self.passOver(block, number, column, block.reader.problem, &block.reader.said)) continue else return;
                },
            };
            const preference = row.isPreference();
            if (block.preference) |first| {
                if (first != preference) {
                    block.mixed_at = number;
                    return;
                }
            } else {
                block.preference = preference;
                block.first_row_at = number;
            }
            const added = block.encoder.add(row) catch |err| switch (err) {
                error.OutOfMemory => return error.OutOfMemory,
                error.Unusable => {
                    if (self.passOver(block, number, null, block.encoder.problem, &block.encoder.said)) continue else return;
                },
                error.NotEncodable, error.TextTooLong => {
                    if (err == error.TextTooLong) block.encoder.said.set("the text is too long for the tokenizer", .{});
                    block.failure = .{ .err = error.InvalidData, .place = .{ .line = number, .column = null, .said = block.encoder.said } };
                    return;
                },
            };
            if (added.len == 0) block.dropped += 1;
            for (added) |encoded| {
                try block.records.append(gpa, .{ .ordinal = @intCast(ordinal), .encoded = encoded, .line = @intCast(number) });
                try block.lengths.append(gpa, encoded.length);
            }
        }
        const unfinished = text.len > 0 and (block.lines.beyond or text[text.len - 1] != '\n');
        block.newlines = block.lines.newlines_before + lines.number - @intFromBool(unfinished);
    }

    /// Counts a bad line and goes on, or notes it as the end: false.
    fn passOver(self: *Run, block: *Block, number: u64, column: ?usize, problem: row_module.Problem, said: *const base.Diagnostic) bool {
        const place: Block.Place = .{ .line = number, .column = column, .said = said.* };
        if (!self.job.options.skip_invalid) {
            block.failure = .{ .err = error.InvalidData, .place = place };
            block.failure.?.place.said.set("{s}. Correct the line, or leave such lines out with --skip-invalid (in Python skip_invalid=True).", .{said.text()});
            return false;
        }
        block.skipped[@backingInt(problem)] += 1;
        if (block.example_count < block.examples.len) {
            block.examples[block.example_count] = place;
            block.example_count += 1;
        }
        return true;
    }

    /// Writes what came of a block; blocks come in order.
    fn take(self: *Run, block: *Block, diag: *base.Diagnostic) Error!void {
        const job = self.job;
        if (block.source != self.newlines_source) {
            self.newlines_source = block.source;
            self.newlines = 0;
        }
        if (block.preference) |preference| try self.checkKind(block, preference, diag);
        if (block.mixed_at) |line| if (block.failure == null or line < block.failure.?.place.line) return self.mixed(block, line, diag);
        if (block.failure) |*failure| {
            if (failure.place.line == 0) {
                if (failure.place.said.len > 0) diag.* = failure.place.said;
            } else self.say(block, &failure.place, diag);
            return failure.err;
        }
        if (block.records.items.len > 0) try self.ensureWriters(diag);
        try self.append(block, diag);
        job.report.lines += block.line_count;
        job.report.dropped += block.dropped;
        for (&job.report.skipped, block.skipped) |*sum, count| sum.* += count;
        for (block.examples[0..block.example_count]) |*place| {
            if (self.examples.items.len == report_module.example_count) break;
            var text: base.Diagnostic = .{};
            self.say(block, place, &text);
            const arena = job.arena.allocator();
            try self.examples.append(arena, try arena.dupe(u8, text.text()));
        }
        job.report.skipped_examples = self.examples.items;
        self.newlines += block.newlines;
        const done = @min(job.sources[block.source].size - block.index * job.options.block_bytes, job.options.block_bytes);
        _ = job.bytes_done.fetchAdd(done, .monotonic);
        self.tell();
        self.position = .{ .source = block.source, .block = block.index + 1 };
        if (self.writers[0] != null and self.journaled_at.untilNow(job.io, .awake).toMilliseconds() >= job.options.journal_ms) try self.note(diag);
    }

    fn tell(self: *Run) void {
        const r = &self.job.report;
        self.job.lines_done.store(r.lines, .monotonic);
        self.job.rows_done.store(r.train.rows + r.evaluation.rows, .monotonic);
        self.job.tokens_done.store(r.train.tokens + r.evaluation.tokens, .monotonic);
    }

    /// `file:line: reason`, with the column where the JSON is broken.
    fn say(self: *Run, block: *const Block, place: *const Block.Place, diag: *base.Diagnostic) void {
        const path = self.job.sources[block.source].path;
        const line = self.newlines + place.line;
        if (place.column) |column|
            diag.set("{s}:{d}:{d}: {s}", .{ path, line, column + 1, place.said.text() })
        else
            diag.set("{s}:{d}: {s}", .{ path, line, place.said.text() });
    }

    fn checkKind(self: *Run, block: *const Block, preference: bool, diag: *base.Diagnostic) Error!void {
        const job = self.job;
        const known = job.report.preference orelse {
            const place = .{ job.sources[block.source].path, self.newlines + block.first_row_at };
            if (preference and job.options.stream) {
                diag.set("{s}:{d}: pairs of answers cannot be a stream; leave out --stream (in Python stream)", place);
                return error.InvalidData;
            }
            if (preference and job.options.loss == .all) {
                diag.set("{s}:{d}: of pairs only the answers are learned, never the prompt; leave out --loss all (in Python loss)", place);
                return error.InvalidData;
            }
            job.report.preference = preference;
            return;
        };
        if (known != preference) return self.mixed(block, block.first_row_at, diag);
    }

    fn mixed(self: *Run, block: *const Block, line: u64, diag: *base.Diagnostic) Error {
        diag.set("{s}:{d}: rows with chosen and rejected do not mix with other rows; prepare them as two files", .{ self.job.sources[block.source].path, self.newlines + line });
        return error.InvalidData;
    }

    fn ensureWriters(self: *Run, diag: *base.Diagnostic) Error!void {
        if (self.writers[0] != null) return;
        const job = self.job;
        var options = self.writerOptions();
        options.begin = self.begins[0];
        self.writers[0] = try data.TokenizedWriter.create(job.gpa, self.storage, job.options.output, options, diag);
        if (self.holds) {
            options.begin = self.begins[1];
            self.writers[1] = try data.TokenizedWriter.create(job.gpa, self.storage, job.options.eval_output.?, options, diag);
        }
        for (self.writers) |writer| if (writer) |w| w.keepParts(true); // Also when the process is killed: see `leave`.
    }

    /// The rows of a block, run by run of those that go to the same file.
    fn append(self: *Run, block: *Block, diag: *base.Diagnostic) Error!void {
        const job = self.job;
        const records = block.records.items;
        const ids = block.encoder.ids.items;
        const mask = block.encoder.mask.items;
        var begin: usize = 0;
        var token: usize = 0;
        while (begin < records.len) {
            const held = self.isHeld(job.report.lines + records[begin].ordinal);
            const split = if (held) &job.report.evaluation else &job.report.train;
            if (job.report.first_tokens == 0) {
                job.report.first_tokens = records[begin].encoded.length;
                job.report.first_in_evaluation = held;
            }
            var end = begin;
            var until = token;
            while (end < records.len and self.isHeld(job.report.lines + records[end].ordinal) == held) : (end += 1) {
                const encoded = &records[end].encoded;
                // Nothing predicts the first token of a row; in a stream only the very first has none before it.
                split.tokens_in_loss += encoded.in_loss + @intFromBool(job.options.stream and split.tokens > 0 and encoded.first_in_loss);
                split.rows += 1;
                split.tokens += encoded.length;
                split.truncated += @intFromBool(encoded.cut);
                split.longest = @max(split.longest, encoded.length);
                split.without_end += @intFromBool(encoded.without_end);
                until += encoded.length;
            }
            const writer = self.writers[@intFromBool(held)].?;
            try writer.appendRows(ids[token..until], mask[token..until], block.lengths.items[begin..end], diag);
            if (job.report.preference.?) split.pairs = split.rows / 2;
            begin = end;
            token = until;
        }
    }

    /// Notes how far the parts are.
    fn note(self: *Run, diag: *base.Diagnostic) Error!void {
        const job = self.job;
        const train = self.writers[0] orelse return;
        const state: journal.State = .{
            .identity = &job.identity,
            .source = self.position.source,
            .block = self.position.block,
            .newlines = self.newlines,
            .report = job.report,
            .train = try train.flushed(diag),
            .evaluation = if (self.writers[1]) |writer| try writer.flushed(diag) else null,
        };
        journal.write(job.gpa, self.storage, job.journal_path, &state) catch |err| return self.explain(err, diag, job.journal_path);
        self.journaled = true;
        self.journaled_at = .now(job.io, .awake);
    }

    fn finish(self: *Run, diag: *base.Diagnostic) Error!void {
        const job = self.job;
        const report = &job.report;
        // A program that went on behind the last row has written nothing yet.
        if (self.begins[0] != null) try self.ensureWriters(diag);
        const splits = [_]*Split{ &report.train, &report.evaluation };
        const paths = [_]?[]const u8{ job.options.output, if (self.holds) job.options.eval_output else null };
        for (splits, paths) |split, path| {
            const name = path orelse continue;
            if (split.rows > 0) continue;
            const names = try std.mem.join(job.arena.allocator(), ", ", job.options.sources);
            diag.set("{s}: no row is left for {s} ({d} unusable, {d} with nothing to learn). Check the source{s}.", .{
                names[0..@min(names.len, 400)],                                                                  name, report.skippedTotal(), report.dropped,
                if (job.options.max_seq_len != null) ", or raise --max-seq-len (in Python max_seq_len)" else "",
            });
            return error.InvalidData;
        }
        const losses: data.writer.Losses = .{ .dropped = report.dropped, .skipped = report.skippedTotal() };
        for (self.writers, splits) |writer, split| if (writer) |w| {
            w.losses = losses;
            w.losses.truncated = split.truncated;
            _ = try w.finish(diag);
        };
        journal.remove(job.gpa, self.storage, job.journal_path);
        // Parts that are no more: those of an earlier program with other options, and what the locks stood on.
        for ([_]?[]const u8{ job.options.output, job.options.eval_output }) |path| if (path) |name| self.deleteParts(name);
    }
};
