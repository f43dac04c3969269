//! What a preparation has done so far: everything a person is told at the end, and everything a later program needs to go on.
//!
//! Plain values only, so that the whole is written as JSON and read back. Does not know: how it came to be.

const std = @import("std");
const data = @import("data");
const row = @import("row.zig");

/// What went into one token file.
pub const Split = struct {
    rows: u64 = 0,
    tokens: u64 = 0,
    tokens_in_loss: u64 = 0,
    truncated: u64 = 0,
    longest: u64 = 0,
    /// Rows whose last token in the loss is not the end token: cut rows only.
    without_end: u64 = 0,
    /// Pairs of answers, two rows each.
    pairs: u64 = 0,
};

pub const kind_count = @typeInfo(row.Problem).@"enum".field_names.len;
pub const example_count = 5;

pub const Report = struct {
    train: Split = .{},
    evaluation: Split = .{},
    /// Lines that are not blank.
    lines: u64 = 0,
    /// Rows in which no token was left to learn; pairs whose prompt filled the length, or whose answers were the same after the cut.
    dropped: u64 = 0,
    /// Lines passed over, by `row.Problem`.
    skipped: [kind_count]u64 = @splat(0),
    /// The first few of them, with place and reason. Owned by whoever owns the report.
    skipped_examples: []const []const u8 = &.{},
    /// Where the first row of all stands, and how long it is.
    first_in_evaluation: bool = false,
    first_tokens: u64 = 0,
    preference: ?bool = null,

    pub fn skippedTotal(self: *const Report) u64 {
        var sum: u64 = 0;
        for (self.skipped) |count| sum += count;
        return sum;
    }

    /// As JSON, for the caller's language.
    pub fn writeJson(self: *const Report, writer: *std.Io.Writer) std.Io.Writer.Error!void {
        var out: std.json.Stringify = .{ .writer = writer };
        try out.beginObject();
        inline for (.{ "train", "evaluation", "lines", "dropped", "skipped_examples", "first_in_evaluation", "first_tokens", "preference" }) |name| {
            try out.objectField(name);
            try out.write(@field(self, name));
        }
        try out.objectField("skipped");
        try out.beginObject();
        for (self.skipped, 0..) |count, i| if (count > 0) {
            const problem: row.Problem = @fromBackingInt(@as(@typeInfo(row.Problem).@"enum".tag_type, @intCast(i)));
            try out.objectField(problem.words());
            try out.write(count);
        };
        try out.endObject();
        try out.endObject();
    }
};
