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
const Run = @import("run.zig").Run;
const source_module = @import("source.zig");
const Allocator = std.mem.Allocator;
const Io = std.Io;
const Report = report_module.Report;
const Source = source_module.Source;

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
    /// Whether tools may be offered: not where the model's own template would not show them.
    tools: bool = true,
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
        const facts = .{ config.version, o.output, o.eval_output, o.eval_fraction, o.seed, o.loss, o.max_seq_len, o.skip_invalid, o.stream, o.tokenizer_hash, o.format_name, o.chat_format, o.tools, self.namedDay(), o.source_note, o.license, o.commercial_use, o.notes, o.block_bytes, o.limits, self.tokenizer.vocabSize() };
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
