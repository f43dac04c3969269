//! A description as Jinja source, for tokenizers and model files we write.
//!
//! Every word of output stands in an expression, so no white space of the source reaches the text and all engines
//! agree. Only what transformers and llama.cpp both know is used.

const std = @import("std");
const description_file = @import("description.zig");
const typescript = @import("typescript.zig");

const Arm = description_file.Arm;
const Condition = description_file.Condition;
const Description = description_file.Description;
const Flag = description_file.Flag;
const Node = description_file.Node;
const Value = description_file.Value;
const Writer = std.Io.Writer;

pub const Options = struct {
    /// Put `{% generation %}` around what is trained: transformers makes masks of it, other engines may not know it.
    mark_trained: bool = false,
};

pub fn write(w: *Writer, description: *const Description, options: Options) Writer.Error!void {
    var printer: Printer = .{ .w = w, .description = description, .options = options };
    try printer.preamble();
    try printer.nodes(description.body);
}

const Printer = struct {
    w: *Writer,
    description: *const Description,
    options: Options,
    depth: usize = 0,
    begun: bool = false,
    /// Whether the turn at hand can only be an assistant's.
    assistant: bool = false,

    fn tag(self: *Printer, comptime format: []const u8, arguments: anytype) Writer.Error!void {
        try self.line();
        try self.w.print("{{%- " ++ format ++ " %}}", arguments);
    }

    fn output(self: *Printer, expression: []const u8) Writer.Error!void {
        try self.line();
        try self.w.print("{{{{- {s} }}}}", .{expression});
    }

    fn line(self: *Printer) Writer.Error!void {
        if (self.begun) try self.w.writeByte('\n');
        self.begun = true;
        try self.w.splatByteAll(' ', 2 * self.depth);
    }

    fn preamble(self: *Printer) Writer.Error!void {
        const d = self.description;
        if (d.uses(.{ .value = .tools_typescript })) {
            try self.w.writeAll(typescript.jinja_macros);
            self.begun = true;
        }
        const looks = d.uses(.{ .flag = .newest_user }) or d.uses(.{ .flag = .after_newest_user }) or d.uses(.{ .flag = .answered });
        if (looks or d.uses(.{ .flag = .held }) or d.uses(.{ .value = .called }))
            try self.tag("set seen = namespace(user=-1, answer=-1, held='', called='')", .{});
        if (!looks) return;
        try self.tag("for message in messages", .{});
        self.depth += 1;
        try self.tag("if message.role == 'user'", .{});
        try self.tag("set seen.user = loop.index0", .{});
        try self.tag("elif message.role == 'assistant' and not message.tool_calls", .{});
        try self.tag("set seen.answer = loop.index0", .{});
        try self.tag("endif", .{});
        self.depth -= 1;
        try self.tag("endfor", .{});
    }

    fn nodes(self: *Printer, list: []const Node) Writer.Error!void {
        for (list) |node| switch (node) {
            .text => |text| {
                try self.line();
                try self.w.writeAll("{{- ");
                try literal(self.w, text);
                try self.w.writeAll(" }}");
            },
            .begin => try self.output("bos_token"),
            .end => try self.output("eos_token"),
            .value => |which| try self.value(which),
            .trained => |inner| try self.trained(inner),
            .choose => |arms| try self.choose(arms),
            .turns => |inner| try self.loop("message in messages", "", inner),
            .calls => |inner| {
                const remember = if (self.description.uses(.{ .value = .called })) "{%- set seen.called = call.name %}" else "";
                try self.tag("for call in message.tool_calls", .{});
                self.depth += 1;
                try self.tag("if call.function is defined", .{});
                try self.tag("set call = call.function", .{});
                try self.tag("endif", .{});
                if (remember.len > 0) {
                    try self.line();
                    try self.w.writeAll(remember);
                }
                try self.nodes(inner);
                self.depth -= 1;
                try self.tag("endfor", .{});
            },
            .tools => |inner| try self.loop("tool in tools", "", inner),
            .hold => try self.tag("set seen.held = message.content", .{}),
        };
    }

    fn loop(self: *Printer, comptime over: []const u8, comptime after: []const u8, inner: []const Node) Writer.Error!void {
        try self.tag("for " ++ over, .{});
        self.depth += 1;
        try self.nodes(inner);
        self.depth -= 1;
        try self.tag("endfor" ++ after, .{});
    }

    fn trained(self: *Printer, inner: []const Node) Writer.Error!void {
        if (!self.options.mark_trained) return self.nodes(inner);
        if (self.assistant) return self.marked(inner);
        try self.tag("if message.role == 'assistant'", .{});
        self.depth += 1;
        try self.marked(inner);
        self.depth -= 1;
        try self.tag("else", .{});
        self.depth += 1;
        try self.nodes(inner);
        self.depth -= 1;
        try self.tag("endif", .{});
    }

    fn marked(self: *Printer, inner: []const Node) Writer.Error!void {
        try self.tag("generation", .{});
        try self.nodes(inner);
        try self.tag("endgeneration", .{});
    }

    fn choose(self: *Printer, arms: []const Arm) Writer.Error!void {
        var opened = false;
        for (arms) |arm| {
            const plain = possible(self.description, arm.when) orelse continue;
            if (!opened and plain == 0) return self.nodes(arm.then);
            try self.line();
            try self.w.writeAll(if (plain == 0) "{%- else" else if (opened) "{%- elif " else "{%- if ");
            try self.conditions(arm.when);
            try self.w.writeAll(" %}");
            opened = true;
            const before = self.assistant;
            for (arm.when) |condition| switch (condition.flag) {
                .assistant, .calls => self.assistant = self.assistant or condition.is,
                else => {},
            };
            self.depth += 1;
            try self.nodes(arm.then);
            self.depth -= 1;
            self.assistant = before;
            if (plain == 0) break;
        }
        if (opened) try self.tag("endif", .{});
    }

    fn conditions(self: *Printer, list: []const Condition) Writer.Error!void {
        var any = false;
        for (list) |condition| {
            if (condition.flag == .default_system) continue;
            if (any) try self.w.writeAll(" and ");
            any = true;
            const text = flagText(condition.flag);
            if (condition.is) try self.w.writeAll(text) else try self.w.print("not ({s})", .{text});
        }
    }

    fn value(self: *Printer, which: Value) Writer.Error!void {
        switch (which) {
            .default_system => {
                try self.line();
                try self.w.writeAll("{{- ");
                try literal(self.w, self.description.default_system orelse "");
                return self.w.writeAll(" }}");
            },
            .held => {
                try self.output("seen.held");
                return self.tag("set seen.held = ''", .{});
            },
            else => try self.output(valueText(which)),
        }
    }
};

/// How many conditions are left to ask at run time; null when one is known to be false.
pub fn possible(description: *const Description, conditions: []const Condition) ?usize {
    var left: usize = 0;
    for (conditions) |condition| {
        if (condition.flag != .default_system) {
            left += 1;
        } else if ((description.default_system != null) != condition.is) return null;
    }
    return left;
}

fn flagText(flag: Flag) []const u8 {
    return switch (flag) {
        .system => "message.role in ['system', 'developer']",
        .user => "message.role == 'user'",
        .assistant => "message.role == 'assistant'",
        .tool => "message.role == 'tool'",
        .first => "loop.first",
        .last => "loop.last",
        .after_tool => "loop.index0 > 0 and messages[loop.index0 - 1].role == 'tool'",
        .before_tool => "not loop.last and messages[loop.index0 + 1].role == 'tool'",
        .newest_user => "loop.index0 == seen.user",
        .after_newest_user => "loop.index0 > seen.user",
        .opening_turn => "loop.index0 == (1 if messages[0].role in ['system', 'developer'] else 0)",
        .answered => "loop.index0 < seen.answer",
        .content => "message.content",
        .thinking => "(message.thinking or message.reasoning_content)",
        .emotion => "message.emotion",
        .calls => "message.tool_calls",
        .first_call => "loop.first",
        .held => "seen.held",
        .opens_with_system => "messages[0].role in ['system', 'developer']",
        .opening => "messages[0].content",
        .default_system => unreachable, // Known without asking.
        .tools => "tools",
        .generate => "add_generation_prompt",
    };
}

fn valueText(value: Value) []const u8 {
    return switch (value) {
        .role => "message.role",
        .content => "message.content",
        .content_trimmed => "message.content | trim",
        .content_json => "message.content | tojson",
        .thinking => "(message.thinking or message.reasoning_content)",
        .thinking_stripped => "(message.thinking or message.reasoning_content or '').strip('\\n')",
        .content_from_text => "message.content.lstrip('\\n')",
        .emotion => "message.emotion",
        .opening => "messages[0].content",
        .opening_trimmed => "messages[0].content | trim",
        .date => "strftime_now('%Y-%m-%d')",
        .date_in_words => "strftime_now('%d %b %Y')",
        .call_name => "call.name",
        .call_arguments => "call.arguments | tojson",
        .called => "seen.called",
        .reasoning => "(reasoning_effort or 'medium')",
        .tool_json => "tool | tojson",
        .tool_json_indented => "tool | tojson(indent=4)",
        .tools_typescript => "typescript(tools)",
        .held, .default_system => unreachable, // Written elsewhere.
    };
}

fn literal(w: *Writer, text: []const u8) Writer.Error!void {
    try w.writeByte('\'');
    for (text) |byte| switch (byte) {
        '\n' => try w.writeAll("\\n"),
        '\'' => try w.writeAll("\\'"),
        '\\' => try w.writeAll("\\\\"),
        else => try w.writeByte(byte),
    };
    try w.writeByte('\'');
}
