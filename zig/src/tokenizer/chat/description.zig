//! What a chat format is made of: the words in which `formats.zig` describes each one, once.
//!
//! A description is a tree of nodes. Three readers walk it and nothing else knows any format: `segments.zig` (ids and
//! loss), `jinja.zig` and `go_template.zig` (templates). A new flag or value is therefore a line in each of the three.
//! Always holds: control tokens are named in `controls` or `optional`; a literal is cut at them, a value never is.

const std = @import("std");

pub const Role = enum { system, user, assistant, tool };

/// A piece of a format.
pub const Node = union(enum) {
    /// Literal text; control tokens of the format in it are control tokens.
    text: []const u8,
    /// The tokenizer's begin token, where it has one.
    begin,
    /// The tokenizer's end token.
    end,
    /// Something a person or a program wrote.
    value: Value,
    /// What the model itself has to write: in the loss when the turn is a trained assistant's.
    trained: []const Node,
    /// The first arm whose conditions all hold.
    choose: []const Arm,
    /// Once for each turn.
    turns: []const Node,
    /// Once for each tool call of the turn.
    calls: []const Node,
    /// Once for each tool on offer.
    tools: []const Node,
    /// Keeps the turn's content for `Value.held`.
    hold,
};

pub const Arm = struct {
    when: []const Condition = &.{},
    then: []const Node,
};

pub const Condition = struct { flag: Flag, is: bool = true };

pub const Flag = enum {
    /// The turn is of this role.
    system,
    user,
    assistant,
    tool,
    /// The turn is the chat's first, or its last.
    first,
    last,
    /// The turn before, or the one behind it, is a tool's.
    after_tool,
    before_tool,
    /// It is the last turn of the user, or it stands behind that.
    newest_user,
    after_newest_user,
    /// It is the chat's first turn, a system text not counted.
    opening_turn,
    /// A later assistant turn calls no tool.
    answered,
    /// The turn has text, reasoning, an emotion, tool calls.
    content,
    thinking,
    emotion,
    calls,
    /// Inside `calls`: it is the first one.
    first_call,
    /// Something is held.
    held,
    /// The chat begins with a system turn; that turn has text.
    opens_with_system,
    opening,
    /// The format has a system text of its own.
    default_system,
    /// Tools are on offer.
    tools,
    /// The text ends with the beginning of an assistant's turn.
    generate,
};

pub const Value = enum {
    role,
    content,
    content_trimmed,
    /// As a JSON string.
    content_json,
    thinking,
    /// Without line ends at its ends.
    thinking_stripped,
    /// Without line ends at its beginning.
    content_from_text,
    emotion,
    held,
    /// Text of the system turn that opens the chat.
    opening,
    opening_trimmed,
    default_system,
    /// 2025-06-28
    date,
    /// 28 Jun 2025
    date_in_words,
    /// Inside `calls`.
    call_name,
    call_arguments,
    /// How much the model is asked to think: low, medium or high.
    reasoning,
    /// Name of the tool that was called last.
    called,
    /// Inside `tools`: the tool as JSON, on one line or indented by four.
    tool_json,
    tool_json_indented,
    /// All tools as a TypeScript namespace.
    tools_typescript,
};

pub const Description = struct {
    /// One line for people who choose.
    about: []const u8,
    /// Control tokens the format cannot do without.
    controls: []const []const u8 = &.{},
    /// Control tokens where the tokenizer has them, else plain text.
    optional: []const []const u8 = &.{},
    /// Ends an assistant's turn; null: the tokenizer's end token.
    end: ?[]const u8,
    /// Stands behind an answer of the past in place of `end`: written for the model, never by it.
    past_end: ?[]const u8 = null,
    /// Texts at which a runner that works on text should stop.
    stops: []const []const u8,
    /// What a runner that works on text puts before a turn, to be dropped from the answer.
    leading_space: bool = false,
    /// The system text used when the chat does not begin with one.
    default_system: ?[]const u8 = null,
    /// Whether tools can be offered, called and answered.
    tools: bool = false,
    /// At most one call a turn.
    single_call: bool = false,
    /// What may stand beside a tool call.
    beside_call: enum { nothing, text, text_or_thinking, text_and_thinking } = .text,
    /// Whether reasoning has a place.
    thinking: bool = false,
    /// Whether a system turn may stand anywhere, not only first.
    late_system: bool = true,
    body: []const Node,

    /// Whether a rendered chat begins with the begin token. Exporters write `add_bos_token` from this.
    pub fn beginsWithBos(self: *const Description) bool {
        return self.body.len > 0 and self.body[0] == .begin;
    }

    pub fn uses(self: *const Description, what: Use) bool {
        return anyUse(self.body, what);
    }

    pub const Use = union(enum) { flag: Flag, value: Value };

    fn anyUse(nodes: []const Node, what: Use) bool {
        for (nodes) |node| switch (node) {
            .value => |value| if (what == .value and what.value == value) return true,
            .trained, .turns, .calls, .tools => |inner| if (anyUse(inner, what)) return true,
            .choose => |arms| for (arms) |arm| {
                for (arm.when) |condition| if (what == .flag and what.flag == condition.flag) return true;
                if (anyUse(arm.then, what)) return true;
            },
            .text, .begin, .end, .hold => {},
        };
        return false;
    }
};

/// A literal is a row of plain texts and control tokens.
pub const Cutter = struct {
    description: *const Description,
    rest: []const u8,

    pub const Part = union(enum) {
        text: []const u8,
        control: struct { text: []const u8, required: bool },
    };

    pub fn next(self: *Cutter) ?Part {
        if (self.rest.len == 0) return null;
        for (0..self.rest.len) |at| {
            const found = self.controlAt(self.rest[at..]) orelse continue;
            if (at > 0) {
                defer self.rest = self.rest[at..];
                return .{ .text = self.rest[0..at] };
            }
            self.rest = self.rest[found.control.text.len..];
            return found;
        }
        defer self.rest = "";
        return .{ .text = self.rest };
    }

    fn controlAt(self: *const Cutter, text: []const u8) ?Part {
        if (text[0] != '<' and text[0] != '[') return null;
        inline for (.{ "controls", "optional" }) |list| for (@field(self.description, list)) |name| {
            if (std.mem.startsWith(u8, text, name)) return .{ .control = .{ .text = name, .required = comptime std.mem.eql(u8, list, "controls") } };
        };
        return null;
    }
};

test "a literal is cut at the control tokens of its format and nowhere else" {
    const description: Description = .{ .about = "", .controls = &.{"<|a|>"}, .optional = &.{"[B]"}, .end = null, .stops = &.{}, .body = &.{} };
    var cutter: Cutter = .{ .description = &description, .rest = "x<|b|>[B]<|a|><|a|>y" };
    try std.testing.expectEqualStrings("x<|b|>", cutter.next().?.text);
    try std.testing.expect(!cutter.next().?.control.required);
    try std.testing.expectEqualStrings("<|a|>", cutter.next().?.control.text);
    try std.testing.expect(cutter.next().?.control.required);
    try std.testing.expectEqualStrings("y", cutter.next().?.text);
    try std.testing.expectEqual(null, cutter.next());
}
