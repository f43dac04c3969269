//! Rows to ids, each with whether it is in the loss.
//!
//! In the loss: all of a text and its end token; the completion of a prompt and its end token; the assistant's turns of a
//! chat with the token that ends each. A prompt and its completion are tokenised as one text, and what both tokenisations
//! begin with in common is the prompt, so a token that straddles the border is learned. A pair of answers becomes two rows
//! of one prompt, split where the shorter of the two common beginnings ends.
//! Always holds: what is learned ends with an end token, or the row is an error; only a cut may take it away.
//! Does not know: lines, files.

const std = @import("std");
const base = @import("base");
const tokenizer_layer = @import("tokenizer");
const row_module = @import("row.zig");
const Allocator = std.mem.Allocator;
const Message = row_module.Message;
const Row = row_module.Row;
const Tokenizer = tokenizer_layer.Tokenizer;

/// What is learned.
pub const Loss = enum {
    /// Assistant turns and completions.
    assistant,
    /// Of a chat only the last answer.
    completion,
    /// Everything.
    all,
};

pub const Options = struct {
    /// Null: chats are refused.
    format: ?tokenizer_layer.ChatFormat = null,
    /// Whether tools may be offered.
    tools: bool = true,
    loss: Loss = .assistant,
    /// Year, month and day, for formats that name the day.
    date: ?[]const u8 = null,
    /// Rows keep their first tokens, at most this many.
    max_seq_len: ?usize = null,
};

/// One row as it will stand in the file.
pub const Encoded = struct {
    length: u32,
    /// Of the tokens behind the first, which nothing predicts.
    in_loss: u32,
    first_in_loss: bool,
    /// The row lost its end to the limit.
    cut: bool,
    /// The last token is learned and it is not the end.
    without_end: bool,
};

pub const Error = tokenizer_layer.EncodeError || error{
    /// The row cannot be used; `said` tells why, `problem` how it is counted.
    Unusable,
    /// No row of this kind can be used with this tokenizer and format.
    NotEncodable,
};

pub const RowEncoder = struct {
    gpa: Allocator,
    tokenizer: *const Tokenizer,
    options: Options,
    scratch: tokenizer_layer.EncodeScratch,
    arena: std.heap.ArenaAllocator,
    /// Ids of a prompt alone.
    prompt: std.ArrayList(u32) = .empty,
    joined: std.ArrayList(u8) = .empty,
    // What the rows have become; the caller takes and clears it.
    ids: std.ArrayList(u32) = .empty,
    mask: std.ArrayList(bool) = .empty,
    rows: [2]Encoded = undefined,
    problem: row_module.Problem = .empty_answer,
    said: base.Diagnostic = .{},
    past_end: ?u32,

    pub fn init(gpa: Allocator, tokenizer: *const Tokenizer, options: Options) RowEncoder {
        return .{
            .gpa = gpa,
            .tokenizer = tokenizer,
            .options = options,
            .scratch = .init(gpa),
            .arena = .init(gpa),
            .past_end = if (options.format) |format| tokenizer_layer.chat_format.pastEndId(format, tokenizer) else null,
        };
    }

    pub fn deinit(self: *RowEncoder) void {
        self.scratch.deinit(self.gpa);
        self.arena.deinit();
        self.prompt.deinit(self.gpa);
        self.joined.deinit(self.gpa);
        self.ids.deinit(self.gpa);
        self.mask.deinit(self.gpa);
    }

    /// Appends the row (of a pair two) to `ids` and `mask` and describes what was added; nothing, when there is nothing to learn.
    /// On error nothing is added.
    pub fn add(self: *RowEncoder, row: Row) Error![]const Encoded {
        const before = self.ids.items.len;
        errdefer self.takeBack(before);
        _ = self.arena.reset(.{ .retain_with_limit = 1 << 20 });
        return switch (row) {
            .pair => |pair| blk: {
                try self.encodePrompt(pair.prompt);
                try self.encodeEnded(pair.prompt, pair.chosen);
                const middle = self.ids.items.len;
                try self.encodeEnded(pair.prompt, pair.rejected);
                break :blk self.finishPair(before, middle);
            },
            .chat_pair => |pair| blk: {
                const a = self.arena.allocator();
                try self.renderPrompt(pair.prompt, pair.tools);
                try self.renderAll(try std.mem.concat(a, Message, &.{ pair.prompt, pair.chosen }), pair.prompt.len, pair.tools);
                const middle = self.ids.items.len;
                try self.renderAll(try std.mem.concat(a, Message, &.{ pair.prompt, pair.rejected }), pair.prompt.len, pair.tools);
                break :blk self.finishPair(before, middle);
            },
            .text => |text| blk: {
                try self.encodeEnded(text, "");
                try self.mask.appendNTimes(self.gpa, true, self.ids.items.len - before);
                break :blk self.finish(before);
            },
            .completion => |c| blk: {
                try self.encodePrompt(c.prompt);
                try self.encodeEnded(c.prompt, c.completion);
                const border = commonPrefix(self.prompt.items, self.ids.items[before..]);
                try self.mask.appendNTimes(self.gpa, false, border);
                try self.mask.appendNTimes(self.gpa, true, self.ids.items.len - before - border);
                break :blk self.finish(before);
            },
            .chat => |chat| blk: {
                try self.renderAll(chat.messages, chat.learn_from, chat.tools);
                break :blk self.finish(before);
            },
        };
    }

    fn takeBack(self: *RowEncoder, before: usize) void {
        self.ids.shrinkRetainingCapacity(before);
        self.mask.shrinkRetainingCapacity(@min(before, self.mask.items.len));
    }

    fn encodePrompt(self: *RowEncoder, text: []const u8) Error!void {
        self.prompt.clearRetainingCapacity();
        try self.tokenizer.encodeInto(&self.scratch, &self.prompt, self.gpa, text, .{ .add_eos = false });
    }

    /// Two texts as one, with the end token behind them.
    fn encodeEnded(self: *RowEncoder, text: []const u8, rest: []const u8) Error!void {
        const before = self.ids.items.len;
        var whole = text;
        if (rest.len > 0) {
            self.joined.clearRetainingCapacity();
            try self.joined.appendSlice(self.gpa, text);
            try self.joined.appendSlice(self.gpa, rest);
            whole = self.joined.items;
        }
        try self.tokenizer.encodeInto(&self.scratch, &self.ids, self.gpa, whole, .{ .add_eos = false });
        const end = self.tokenizer.eos() orelse return;
        const added = self.ids.items[before..];
        if (added.len == 0 or added[added.len - 1] != end) try self.ids.append(self.gpa, end);
    }

    fn render(self: *RowEncoder, messages: []const Message, options: tokenizer_layer.chat_format.Options) Error!tokenizer_layer.Rendered {
        const format = self.options.format orelse {
            self.said.set("a chat needs a chat format, and the tokenizer's template is none this version knows. " ++
                "Name one with --chat-format (in Python chat_format)", .{});
            return error.NotEncodable;
        };
        if (options.tools.len > 0 and !self.options.tools) {
            self.problem = .unwritable_turn;
            self.said.set("the chat offers tools, and the tokenizer's template, which is {t}, does not show them; name a format with tools", .{format});
            return error.Unusable;
        }
        return tokenizer_layer.chat_format.renderWith(self.gpa, &self.scratch, self.tokenizer, format, messages, options, &self.said) catch |err| {
            self.problem = switch (err) {
                error.OutOfMemory => return error.OutOfMemory,
                error.TextTooLong => return error.TextTooLong,
                error.MissingControlToken, error.MissingDate => return error.NotEncodable,
                error.EmptyChat, error.EmptyTurn => .empty_text,
                error.WrongRole => .misplaced_turn,
                error.ToolWithoutCall, error.UnansweredCall => .unanswered_call,
                error.TooManyCalls, error.ToolsUnsupported, error.UnwritableTurn => .unwritable_turn,
                error.InvalidTools => .wrong_tools,
            };
            return error.Unusable;
        };
    }

    fn renderPrompt(self: *RowEncoder, messages: []const Message, tools: []const []const u8) Error!void {
        const rendered = try self.render(messages, .{ .add_generation_prompt = true, .tools = tools, .date = self.options.date });
        defer rendered.deinit(self.gpa);

        self.prompt.clearRetainingCapacity();
        try self.prompt.appendSlice(self.gpa, rendered.ids);
    }

    fn renderAll(self: *RowEncoder, messages: []const Message, learn_from: usize, tools: []const []const u8) Error!void {
        const rendered = try self.render(messages, .{
            .train = true,
            .loss = if (self.options.loss == .completion and learn_from == 0) .completion else .assistant,
            .learn_from = learn_from,
            .tools = tools,
            .date = self.options.date,
        });
        defer rendered.deinit(self.gpa);

        try self.ids.appendSlice(self.gpa, rendered.ids);
        try self.mask.appendSlice(self.gpa, rendered.loss_mask);
    }

    fn isEnd(self: *const RowEncoder, id: u32) bool {
        return self.tokenizer.eos() == id or self.tokenizer.isStop(id);
    }

    /// The row that begins at `before` is whole: checks its end, cuts it, drops it when nothing is left to learn.
    fn finish(self: *RowEncoder, before: usize) Error![]const Encoded {
        const ids = self.ids.items[before..];
        const mask = self.mask.items[before..];
        for (mask, 0..) |kept, i| {
            if (!kept or (i + 1 < mask.len and mask[i + 1]) or self.isEnd(ids[i])) continue;
            if (i + 1 < mask.len and self.past_end == ids[i + 1]) continue;
            return self.noEnd(ids[0 .. i + 1]);
        }
        if (self.options.loss == .all) @memset(mask, true);
        self.rows[0] = self.cutRow(before);
        if (self.rows[0].in_loss == 0) {
            self.takeBack(before);
            return &.{};
        }
        return self.rows[0..1];
    }

    /// Cuts the last row, which begins at `before`, and counts it.
    fn cutRow(self: *RowEncoder, before: usize) Encoded {
        const whole = self.ids.items.len - before;
        const length = if (self.options.max_seq_len) |limit| @min(whole, limit) else whole;
        self.takeBack(before + length);
        const mask = self.mask.items[before..];
        var in_loss: u32 = 0;
        for (mask[@min(1, mask.len)..]) |kept| in_loss += @intFromBool(kept);
        return .{
            .length = @intCast(length),
            .in_loss = in_loss,
            .first_in_loss = length > 0 and mask[0],
            .cut = length < whole,
            .without_end = length < whole and length > 0 and mask[length - 1],
        };
    }

    /// The better answer's row is `ids[before..middle]`, the worse one's the rest; `prompt` holds the prompt's ids alone.
    fn finishPair(self: *RowEncoder, before: usize, middle: usize) Error![]const Encoded {
        const better = self.ids.items[before..middle];
        const worse = self.ids.items[middle..];
        if (std.mem.eql(u32, better, worse)) return self.unusable(.same_answers, "chosen and rejected become the same ids");
        const border = @min(commonPrefix(self.prompt.items, better), commonPrefix(self.prompt.items, worse));
        if (border == better.len or border == worse.len) return self.unusable(.empty_answer, "an answer adds no token to its prompt");
        for ([_][]const u32{ better, worse }) |ids| { // A line break may follow the end token.
            for (ids[border..]) |id| {
                if (self.isEnd(id)) break;
            } else return self.noEnd(ids[border..]);
        }
        const limit = self.options.max_seq_len orelse std.math.maxInt(usize);
        if (border >= limit or std.mem.eql(u32, better[0..@min(better.len, limit)], worse[0..@min(worse.len, limit)])) {
            self.takeBack(before);
            return &.{};
        }
        // The first row is cut while the second still stands behind it.
        const kept = @min(better.len, limit);
        const lost = better.len - kept;
        if (lost > 0) {
            std.mem.copyForwards(u32, self.ids.items[before + kept ..], worse);
            self.ids.shrinkRetainingCapacity(self.ids.items.len - lost);
        }
        const second = middle - lost;
        const total = self.ids.items.len;
        self.mask.shrinkRetainingCapacity(before);
        try self.mask.ensureTotalCapacity(self.gpa, total);
        for ([_]usize{ kept, total - second }) |length| {
            self.mask.appendNTimesAssumeCapacity(false, border);
            self.mask.appendNTimesAssumeCapacity(true, length - border);
        }
        self.rows[1] = self.cutRow(second);
        self.rows[1].without_end = self.rows[1].cut;
        self.rows[0] = .{
            .length = @intCast(kept),
            .in_loss = @intCast(kept - @max(border, 1)),
            .first_in_loss = border == 0,
            .cut = lost > 0,
            .without_end = lost > 0,
        };
        return self.rows[0..2];
    }

    fn unusable(self: *RowEncoder, problem: row_module.Problem, words: []const u8) error{Unusable} {
        self.problem = problem;
        self.said.set("{s}", .{words});
        return error.Unusable;
    }

    fn noEnd(self: *RowEncoder, learned: []const u32) error{ NotEncodable, OutOfMemory } {
        const shown = try self.tokenizer.decode(self.arena.allocator(), learned[learned.len - @min(learned.len, 8) ..], .{ .skip_special = false, .continues = true });
        const move = if (self.tokenizer.eos() != null or self.tokenizer.stopTokens().len > 0)
            "Choose another --chat-format (in Python chat_format)"
        else
            "The tokenizer has none: set eos_token in its tokenizer_config.json";
        self.said.set("what is learned ends with '{f}' and not with an end token, so the model would not learn to stop. {s}", .{ std.zig.fmtString(shown), move });
        return error.NotEncodable;
    }
};

/// How many leading ids are equal.
pub fn commonPrefix(left: []const u32, right: []const u32) usize {
    const least = @min(left.len, right.len);
    return std.mem.findDiff(u32, left[0..least], right[0..least]) orelse least;
}

const testing = std.testing;

test "the border lies where the prompt's own ids end to be the whole's" {
    try testing.expectEqual(2, commonPrefix(&.{ 1, 2, 3 }, &.{ 1, 2, 4, 5 }));
    try testing.expectEqual(3, commonPrefix(&.{ 1, 2, 3 }, &.{ 1, 2, 3, 5 }));
    try testing.expectEqual(0, commonPrefix(&.{}, &.{1}));
}
