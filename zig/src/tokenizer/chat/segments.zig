//! A chat as segments: the one list from which ids and loss are made, whoever asks.
//!
//! A segment is marked text or control. Control tokens enter by id, bodies as ordinary text, so nothing a person
//! writes can become a control token. Does not know: tokenizers, any single format.

const std = @import("std");
const base = @import("base");
const conversation = @import("conversation.zig");
const description_file = @import("description.zig");
const python_json = @import("python_json.zig");
const typescript = @import("typescript.zig");
const unicode = @import("../unicode.zig");

const Allocator = std.mem.Allocator;
const Condition = description_file.Condition;
const Description = description_file.Description;
const Error = conversation.Error;
const Message = conversation.Message;
const Node = description_file.Node;
const Options = conversation.Options;
const Role = description_file.Role;
const Value = description_file.Value;

/// One piece of a rendered chat.
pub const Segment = struct {
    piece: Piece,
    /// Whose turn it belongs to; null for what frames the chat.
    role: ?Role = null,
    in_loss: bool = false,
};

pub const Piece = union(enum) {
    /// The begin token, when the tokenizer has one.
    begin,
    /// The end token of the tokenizer (eos).
    end,
    /// A control token by its text. `required`: a tokenizer without it cannot write this format.
    control: struct { text: []const u8, required: bool = true },
    /// Ordinary text.
    text: []const u8,
};

/// The chat as segments, in order. Texts point into `messages`, into the description, or belong to `arena`.
pub fn make(
    arena: Allocator,
    format: []const u8,
    description: *const Description,
    messages: []const Message,
    options: Options,
    diag: *base.Diagnostic,
) Error![]const Segment {
    try conversation.check(format, description, messages, options, diag);
    var walk: Walk = .{
        .arena = arena,
        .format = format,
        .description = description,
        .messages = messages,
        .options = options,
        .diag = diag,
        .last_assistant = conversation.lastAssistant(messages),
    };
    for (messages, 0..) |message, at| {
        if (message.role == .user) walk.newest_user = at;
        if (message.role == .assistant and message.calls.len == 0) walk.newest_answer = at;
    }
    try walk.nodes(description.body);
    if (walk.held.len > 0) {
        diag.set("the system turn has no user turn behind it, and the format {s} writes it there; add a user turn", .{format});
        return error.UnwritableTurn;
    }
    return walk.list.items;
}

const Walk = struct {
    arena: Allocator,
    format: []const u8,
    description: *const Description,
    messages: []const Message,
    options: Options,
    diag: *base.Diagnostic,
    list: std.ArrayList(Segment) = .empty,
    /// Where the walk is.
    turn: ?usize = null,
    call: usize = 0,
    tool: usize = 0,
    in_trained: bool = false,
    held: []const u8 = "",
    called: []const u8 = "",
    last_assistant: usize,
    newest_user: ?usize = null,
    newest_answer: ?usize = null,

    fn nodes(self: *Walk, list: []const Node) Error!void {
        for (list) |node| switch (node) {
            .text => |words| {
                var cutter: description_file.Cutter = .{ .description = self.description, .rest = words };
                while (cutter.next()) |part| try self.add(switch (part) {
                    .text => |text| .{ .text = text },
                    .control => |control| .{ .control = .{ .text = control.text, .required = control.required } },
                });
            },
            .begin => try self.add(.begin),
            .end => try self.add(.end),
            .value => |value| {
                const words = try self.valueOf(value);
                if (words.len > 0) try self.add(.{ .text = words });
            },
            .trained => |inner| {
                self.in_trained = true;
                try self.nodes(inner);
                self.in_trained = false;
            },
            .choose => |arms| for (arms) |arm| {
                const chosen = for (arm.when) |condition| {
                    if (!self.holds(condition)) break false;
                } else true;
                if (!chosen) continue;
                try self.nodes(arm.then);
                break;
            },
            .turns => |inner| {
                for (0..self.messages.len) |at| {
                    self.turn = at;
                    try self.nodes(inner);
                }
                self.turn = null;
            },
            .calls => |inner| for (self.message().calls, 0..) |call, at| {
                self.call = at;
                self.called = call.name;
                try self.nodes(inner);
            },
            .tools => |inner| for (0..self.options.tools.len) |at| {
                self.tool = at;
                try self.nodes(inner);
            },
            .hold => self.held = self.message().content,
        };
    }

    fn message(self: *const Walk) Message {
        return self.messages[self.turn.?];
    }

    fn add(self: *Walk, piece: Piece) error{OutOfMemory}!void {
        const role: ?Role = if (self.turn != null) self.message().role else null;
        try self.list.append(self.arena, .{ .piece = piece, .role = role, .in_loss = self.learned() });
    }

    fn learned(self: *const Walk) bool {
        if (!self.options.train) return false;
        if (self.options.loss == .everything) return true;
        const at = self.turn orelse return false;
        if (!self.in_trained or self.message().role != .assistant or at < self.options.learn_from) return false;
        return self.options.loss == .assistant or at == self.last_assistant;
    }

    fn holds(self: *const Walk, condition: Condition) bool {
        const opens = self.messages[0].role == .system;
        const truth = switch (condition.flag) {
            .system => self.message().role == .system,
            .user => self.message().role == .user,
            .assistant => self.message().role == .assistant,
            .tool => self.message().role == .tool,
            .first => self.turn.? == 0,
            .last => self.turn.? + 1 == self.messages.len,
            .after_tool => self.turn.? > 0 and self.messages[self.turn.? - 1].role == .tool,
            .before_tool => self.turn.? + 1 < self.messages.len and self.messages[self.turn.? + 1].role == .tool,
            .newest_user => self.turn == self.newest_user,
            .after_newest_user => if (self.newest_user) |at| self.turn.? > at else true,
            .opening_turn => self.turn.? == @intFromBool(opens),
            .answered => if (self.newest_answer) |at| at > self.turn.? else false,
            .content => self.message().content.len > 0,
            .thinking => spoken(self.message().thinking),
            .emotion => spoken(self.message().emotion),
            .calls => self.message().calls.len > 0,
            .first_call => self.call == 0,
            .held => self.held.len > 0,
            .opens_with_system => opens,
            .opening => self.messages[0].content.len > 0,
            .default_system => self.description.default_system != null,
            .tools => self.options.tools.len > 0,
            .generate => self.options.add_generation_prompt,
        };
        return truth == condition.is;
    }

    fn valueOf(self: *Walk, value: Value) Error![]const u8 {
        return switch (value) {
            .role => @tagName(self.message().role),
            .content => self.message().content,
            .content_trimmed => unicode.trim(self.message().content),
            .content_json => try self.quoted(self.message().content),
            .thinking => self.message().thinking orelse "",
            .thinking_stripped => std.mem.trim(u8, self.message().thinking orelse "", "\n"),
            .content_from_text => std.mem.trimStart(u8, self.message().content, "\n"),
            .emotion => self.message().emotion orelse "",
            .held => {
                defer self.held = "";
                return self.held;
            },
            .opening => self.messages[0].content,
            .opening_trimmed => unicode.trim(self.messages[0].content),
            .default_system => self.description.default_system orelse "",
            .date, .date_in_words => try self.date(value == .date_in_words),
            .call_name => self.message().calls[self.call].name,
            .call_arguments => try self.json(self.message().calls[self.call].arguments, "arguments of a tool call", null),
            .called => self.called,
            .reasoning => @tagName(self.options.reasoning),
            .tool_json => try self.json(self.options.tools[self.tool], "descriptions of tools", null),
            .tool_json_indented => try self.json(self.options.tools[self.tool], "descriptions of tools", 4),
            .tools_typescript => try self.typescriptOfTools(),
        };
    }

    fn json(self: *Walk, text: []const u8, comptime what: []const u8, indent: ?usize) Error![]const u8 {
        return conversation.jsonText(self.arena, try conversation.jsonObject(self.arena, text, what, self.diag), indent, self.diag);
    }

    fn quoted(self: *Walk, text: []const u8) error{OutOfMemory}![]const u8 {
        var out: std.Io.Writer.Allocating = .init(self.arena);
        python_json.string(&out.writer, text) catch return error.OutOfMemory;
        return out.written();
    }

    fn typescriptOfTools(self: *Walk) Error![]const u8 {
        const values = try self.arena.alloc(std.json.Value, self.options.tools.len);
        for (values, self.options.tools) |*value, text| value.* = try conversation.jsonObject(self.arena, text, "descriptions of tools", self.diag);
        var out: std.Io.Writer.Allocating = .init(self.arena);
        typescript.write(self.arena, &out.writer, values) catch |err| switch (err) {
            error.WriteFailed, error.OutOfMemory => return error.OutOfMemory,
            error.TooDeep, error.InvalidTools => {
                self.diag.set("a tool is not {{\"type\": \"function\", \"function\": {{\"name\", \"description\", \"parameters\"}}}} with types the format {s} can write; correct it", .{self.format});
                return error.InvalidTools;
            },
        };
        return out.written();
    }

    fn date(self: *Walk, in_words: bool) Error![]const u8 {
        const given = self.options.date orelse {
            self.diag.set("the format {s} names the day; give a date such as 2025-06-28", .{self.format});
            return error.MissingDate;
        };
        const month = if (given.len == 10 and given[4] == '-' and given[7] == '-') std.fmt.parseInt(u8, given[5..7], 10) catch 0 else 0;
        if (month < 1 or month > 12) {
            self.diag.set("the date is \"{s}\"; it must be like 2025-06-28", .{given[0..@min(given.len, 20)]});
            return error.MissingDate;
        }
        if (!in_words) return given;
        return std.fmt.allocPrint(self.arena, "{s} {s} {s}", .{ given[8..], months[month - 1], given[0..4] });
    }
};

pub const months = [_][]const u8{ "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec" };

fn spoken(text: ?[]const u8) bool {
    return if (text) |words| words.len > 0 else false;
}
