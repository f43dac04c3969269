//! One run of a job: blocks handed out, taken back in order, written, noted in the journal; and what stays after a failure.
//!
//! While one batch of blocks is at work on all threads, worker 0 first writes the batch before. Memory is two batches.
//! Does not know: rows, tokenizers.

const std = @import("std");
const base = @import("base");
const data = @import("data");
const block_module = @import("block.zig");
const job_module = @import("job.zig");
const journal = @import("journal.zig");
const report_module = @import("report.zig");
const source_module = @import("source.zig");
const Block = block_module.Block;
const Error = job_module.Error;
const Hands = block_module.Hands;
const Io = std.Io;
const Job = job_module.Job;
const Split = report_module.Split;
const Storage = base.storage.Storage;

const blocks_a_thread = 4;

pub const Run = struct {
    job: *Job,
    storage: Storage,
    pool: ?*base.Pool = null,
    /// Two batches, one at work and one being written.
    batches: [2][]Block = .{ &.{}, &.{} },
    /// One for each worker.
    hands: []Hands = &.{},
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

    pub fn deinit(self: *Run) void {
        const gpa = self.job.gpa;
        for (self.writers) |writer| if (writer) |w| w.destroy();
        for (&self.batches) |batch| {
            for (batch) |*block| block.deinit(gpa);
            gpa.free(batch);
        }
        for (self.hands) |*hands| hands.deinit(gpa);
        gpa.free(self.hands);
        if (self.pool) |pool| pool.deinit();
        gpa.free(self.held);
        for (&self.locks) |*lock| if (lock.*) |*l| l.release();
    }

    /// After a failure: parts stay for the next program, or nothing stays.
    pub fn leave(self: *Run, keeps: bool, diag: *base.Diagnostic) void {
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

    pub fn run(self: *Run, diag: *base.Diagnostic) Error!void {
        const job = self.job;
        const gpa = job.gpa;
        try self.takeLocks(diag);
        var at: Position = .{};
        if (job.options.continues) try self.load(&at);
        self.pool = base.Pool.init(gpa, job.options.threads) catch return error.OutOfMemory;
        if (job.options.eval_fraction > 0) try self.holdOut(diag);
        for (&self.batches) |*batch| {
            const blocks = try gpa.alloc(Block, self.pool.?.n * blocks_a_thread);
            @memset(blocks, .{});
            batch.* = blocks;
        }
        self.hands = try gpa.alloc(Hands, self.pool.?.n);
        for (self.hands) |*hands| hands.* = .init(gpa, job.tokenizer, &job.options);
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
                const block = &self.now[at];
                const job = run_.job;
                block.process(job.gpa, job.io, &job.sources[block.source], &run_.hands[worker], &job.options);
            }
        }
    };

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
    fn say(self: *Run, block: *const Block, place: *const block_module.Place, diag: *base.Diagnostic) void {
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
        const ids = block.ids.items;
        const mask = block.mask.items;
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
