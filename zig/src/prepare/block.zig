//! A block of lines on its way from a file to the writers: read and tokenised by one thread, told of in the order of the file.
//!
//! Nothing here fails outright: what goes wrong is noted with its line, and whoever takes the blocks in order raises the first.
//! Does not know: writers, journals, other blocks.

const std = @import("std");
const base = @import("base");
const data = @import("data");
const tokenizer_layer = @import("tokenizer");
const encode = @import("encode.zig");
const job_module = @import("job.zig");
const report_module = @import("report.zig");
const row_module = @import("row.zig");
const source_module = @import("source.zig");
const Allocator = std.mem.Allocator;
const Error = job_module.Error;
const Options = job_module.Options;

/// What a thread works with, block after block.
pub const Hands = struct {
    reader: row_module.Reader,
    encoder: encode.RowEncoder,

    pub fn init(gpa: Allocator, tokenizer: *const tokenizer_layer.Tokenizer, options: *const Options) Hands {
        return .{
            .reader = .init(gpa, options.limits),
            .encoder = .init(gpa, tokenizer, .{
                .format = options.chat_format,
                .tools = options.tools,
                .loss = options.loss,
                .max_seq_len = options.max_seq_len,
                .date = options.date,
            }),
        };
    }

    pub fn deinit(self: *Hands, gpa: Allocator) void {
        _ = gpa;
        self.reader.deinit();
        self.encoder.deinit();
    }
};

/// A line of the block, counted from 1, and what is to be said of it. Line 0: the block as a whole.
pub const Place = struct { line: u64 = 0, column: ?usize = null, said: base.Diagnostic = .{} };

/// One row, or the first of a pair.
pub const Record = struct { ordinal: u32, encoded: encode.Encoded };

pub const Block = struct {
    // What it is.
    source: u32 = 0,
    index: u64 = 0,
    // What came of it.
    ids: std.ArrayList(u32) = .empty,
    mask: std.ArrayList(bool) = .empty,
    records: std.ArrayList(Record) = .empty,
    lengths: std.ArrayList(u32) = .empty,
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
    lines: source_module.Lines = .{},

    pub fn deinit(self: *Block, gpa: Allocator) void {
        self.lines.deinit(gpa);
        self.ids.deinit(gpa);
        self.mask.deinit(gpa);
        self.records.deinit(gpa);
        self.lengths.deinit(gpa);
    }

    fn clear(self: *Block) void {
        self.records.clearRetainingCapacity();
        self.lengths.clearRetainingCapacity();
        self.ids.clearRetainingCapacity();
        self.mask.clearRetainingCapacity();
        self.newlines = 0;
        self.line_count = 0;
        self.dropped = 0;
        self.skipped = @splat(0);
        self.example_count = 0;
        self.preference = null;
        self.mixed_at = null;
        self.failure = null;
    }

    /// Reads and encodes the block.
    pub fn process(self: *Block, gpa: Allocator, io: std.Io, source: *const source_module.Source, hands: *Hands, options: *const Options) void {
        self.clear();
        // The encoder writes into the block's own lists.
        std.mem.swap(std.ArrayList(u32), &self.ids, &hands.encoder.ids);
        std.mem.swap(std.ArrayList(bool), &self.mask, &hands.encoder.mask);
        self.processLines(gpa, io, source, hands, options) catch |err| {
            if (self.failure == null) self.failure = .{ .err = err, .place = .{} };
        };
        std.mem.swap(std.ArrayList(u32), &self.ids, &hands.encoder.ids);
        std.mem.swap(std.ArrayList(bool), &self.mask, &hands.encoder.mask);
    }

    fn processLines(self: *Block, gpa: Allocator, io: std.Io, source: *const source_module.Source, hands: *Hands, options: *const Options) Error!void {
        var diag: base.Diagnostic = .{};
        const offset = self.index * options.block_bytes;
        self.lines.read(gpa, io, source, offset, options.block_bytes, options.limits.max_bytes, &diag) catch |err| {
            self.failure = .{ .err = err, .place = .{ .said = diag } };
            return;
        };
        const text = self.lines.text;
        const reader = &hands.reader;
        const encoder = &hands.encoder;
        try reader.parser.load(text);
        var lines: data.jsonl.Lines = .{ .text = text };
        while (lines.next()) |line| {
            const ordinal = self.line_count;
            self.line_count += 1;
            const number = self.lines.newlines_before + line.number;
            const row = reader.read(line.start, line.end) catch |err| switch (err) {
                error.OutOfMemory => return error.OutOfMemory,
                error.Unusable => {
                    const column = if (reader.column) |c| line.start - line.begin + c else null;
                    if (self.passOver(options, number, column, reader.problem, &reader.said)) continue else return;
                },
            };
            const preference = row.isPreference();
            if (self.preference) |first| {
                if (first != preference) {
                    self.mixed_at = number;
                    return;
                }
            } else {
                self.preference = preference;
                self.first_row_at = number;
            }
            const added = encoder.add(row) catch |err| switch (err) {
                error.OutOfMemory => return error.OutOfMemory,
                error.Unusable => {
                    if (self.passOver(options, number, null, encoder.problem, &encoder.said)) continue else return;
                },
                error.NotEncodable, error.TextTooLong => {
                    if (err == error.TextTooLong) encoder.said.set("the text is too long for the tokenizer", .{});
                    self.failure = .{ .err = error.InvalidData, .place = .{ .line = number, .said = encoder.said } };
                    return;
                },
            };
            if (added.len == 0) self.dropped += 1;
            for (added) |encoded| {
                try self.records.append(gpa, .{ .ordinal = @intCast(ordinal), .encoded = encoded });
                try self.lengths.append(gpa, encoded.length);
            }
        }
        const unfinished = text.len > 0 and (self.lines.beyond or text[text.len - 1] != '\n');
        self.newlines = self.lines.newlines_before + lines.number - @intFromBool(unfinished);
    }

    /// Counts a bad line and goes on, or notes it as the end: false.
    fn passOver(self: *Block, options: *const Options, number: u64, column: ?usize, problem: row_module.Problem, said: *const base.Diagnostic) bool {
        const place: Place = .{ .line = number, .column = column, .said = said.* };
        if (!options.skip_invalid) {
            self.failure = .{ .err = error.InvalidData, .place = place };
            self.failure.?.place.said.set("{s}. Correct the line, or leave such lines out with --skip-invalid (in Python skip_invalid=True).", .{said.text()});
            return false;
        }
        self.skipped[@backingInt(problem)] += 1;
        if (self.example_count < self.examples.len) {
            self.examples[self.example_count] = place;
            self.example_count += 1;
        }
        return true;
    }
};
