//! A description as a Go template with Ollama's words, for a Modelfile.
//!
//! What Ollama's templates cannot say is said as nearly as they can: bodies are not trimmed, JSON has no spaces, an
//! emotion is never shown. The text always ends where an answer begins. Does not know: the end token's text, which
//! `write` leaves as a cut: the caller joins the parts with it.

const std = @import("std");
const description_file = @import("description.zig");
const segments = @import("segments.zig");

const Arm = description_file.Arm;
const Condition = description_file.Condition;
const Description = description_file.Description;
const Flag = description_file.Flag;
const Node = description_file.Node;
const Value = description_file.Value;
const Writer = std.Io.Writer;

/// Stands where the end token's text belongs; in no format's own text.
pub const end_mark = "\x00";

pub fn write(w: *Writer, description: *const Description) Writer.Error!void {
    var printer: Printer = .{ .w = w, .description = description };
    try printer.preamble();
    try printer.nodes(description.body);
}

const Printer = struct {
    w: *Writer,
    description: *const Description,

    fn uses(self: *const Printer, flag: Flag) bool {
        return self.description.uses(.{ .flag = flag });
    }

    fn preamble(self: *Printer) Writer.Error!void {
        const d = self.description;
        if (self.uses(.opens_with_system)) try self.w.writeAll("{{ $opens := false }}");
        if (self.uses(.opening_turn)) try self.w.writeAll("{{ $opening := 0 }}");
        if (self.uses(.newest_user) or self.uses(.after_newest_user)) try self.w.writeAll("{{ $user := -1 }}");
        if (self.uses(.answered)) try self.w.writeAll("{{ $answer := -1 }}");
        if (self.uses(.after_tool)) try self.w.writeAll("{{ $before := \"\" }}");
        if (self.uses(.held)) try self.w.writeAll("{{ $held := \"\" }}");
        if (d.uses(.{ .value = .called })) try self.w.writeAll("{{ $called := \"\" }}");
        if (!self.uses(.opens_with_system) and !self.uses(.opening_turn) and !self.uses(.newest_user) and !self.uses(.after_newest_user) and !self.uses(.answered)) return;
        try self.w.writeAll("{{ range $i, $m := .Messages }}");
        if (self.uses(.opens_with_system)) try self.w.writeAll("{{ if and (eq $i 0) (eq $m.Role \"system\") }}{{ $opens = true }}{{ end }}");
        if (self.uses(.opening_turn)) try self.w.writeAll("{{ if and (eq $i 0) (eq $m.Role \"system\") }}{{ $opening = 1 }}{{ end }}");
        if (self.uses(.newest_user) or self.uses(.after_newest_user)) try self.w.writeAll("{{ if eq $m.Role \"user\" }}{{ $user = $i }}{{ end }}");
        if (self.uses(.answered)) try self.w.writeAll("{{ if and (eq $m.Role \"assistant\") (not $m.ToolCalls) }}{{ $answer = $i }}{{ end }}");
        try self.w.writeAll("{{ end }}");
    }

    fn nodes(self: *Printer, list: []const Node) Writer.Error!void {
        for (list) |node| switch (node) {
            .text => |text| try self.w.writeAll(text),
            .begin => {}, // The runner puts it.
            .end => try self.w.writeAll(end_mark),
            .value => |which| try self.value(which),
            .trained => |inner| try self.nodes(inner),
            .choose => |arms| try self.choose(arms),
            .turns => |inner| {
                try self.w.writeAll("{{ range $i, $m := .Messages }}");
                if (self.uses(.before_tool))
                    try self.w.writeAll("{{ $next := \"\" }}{{ range $n, $x := slice $.Messages $i }}{{ if eq $n 1 }}{{ $next = $x.Role }}{{ end }}{{ end }}");
                try self.nodes(inner);
                if (self.uses(.after_tool)) try self.w.writeAll("{{ $before = $m.Role }}");
                try self.w.writeAll("{{ end }}");
            },
            .calls => |inner| {
                try self.w.writeAll("{{ range $c, $call := $m.ToolCalls }}");
                if (self.description.uses(.{ .value = .called })) try self.w.writeAll("{{ $called = $call.Function.Name }}");
                try self.nodes(inner);
                try self.w.writeAll("{{ end }}");
            },
            .tools => |inner| {
                try self.w.writeAll("{{ range $tool := $.Tools }}");
                try self.nodes(inner);
                try self.w.writeAll("{{ end }}");
            },
            .hold => try self.w.writeAll("{{ $held = $m.Content }}"),
        };
    }

    fn choose(self: *Printer, arms: []const Arm) Writer.Error!void {
        var opened = false;
        for (arms) |arm| {
            const asked = self.possible(arm.when) orelse continue;
            if (!opened and asked == 0) return self.nodes(arm.then);
            try self.w.writeAll(if (asked == 0) "{{ else" else if (opened) "{{ else if " else "{{ if ");
            try self.conditions(arm.when, asked);
            try self.w.writeAll(" }}");
            opened = true;
            try self.nodes(arm.then);
            if (asked == 0) break;
        }
        if (opened) try self.w.writeAll("{{ end }}");
    }

    /// What is known when the template is written: true, false, or null.
    fn known(self: *const Printer, flag: Flag) ?bool {
        return switch (flag) {
            .generate => true,
            .emotion => false,
            .default_system => self.description.default_system != null,
            else => null,
        };
    }

    fn possible(self: *const Printer, list: []const Condition) ?usize {
        var left: usize = 0;
        for (list) |condition| {
            if (self.known(condition.flag)) |truth| {
                if (truth != condition.is) return null;
            } else left += 1;
        }
        return left;
    }

    fn conditions(self: *Printer, list: []const Condition, asked: usize) Writer.Error!void {
        if (asked > 1) try self.w.writeAll("and");
        for (list) |condition| {
            if (self.known(condition.flag) != null) continue;
            const text = flagText(condition.flag);
            if (asked > 1) try self.w.writeAll(" (");
            if (condition.is) try self.w.writeAll(text) else try self.w.print("not ({s})", .{text});
            if (asked > 1) try self.w.writeAll(")");
        }
    }

    fn value(self: *Printer, which: Value) Writer.Error!void {
        switch (which) {
            .default_system => try self.w.writeAll(self.description.default_system orelse ""),
            .held => try self.w.writeAll("{{ $held }}{{ $held = \"\" }}"),
            .date_in_words => {
                try self.w.writeAll("{{ slice currentDate 8 10 }} {{ $month := slice currentDate 5 7 }}");
                for (segments.months, 1..) |month, number|
                    try self.w.print("{{{{ {s}if eq $month \"{d:0>2}\" }}}}{s}", .{ if (number > 1) "else " else "", number, month });
                try self.w.writeAll("{{ end }} {{ slice currentDate 0 4 }}");
            },
            .tools_typescript => try self.w.writeAll(typescript_go),
            .reasoning => try self.w.writeAll("medium"),
            .tool_json, .tool_json_indented => try self.w.writeAll("{\"type\": \"function\", \"function\": {{ $tool.Function }}}"),
            else => try self.w.print("{{{{ {s} }}}}", .{valueText(which)}),
        }
    }
};

fn flagText(flag: Flag) []const u8 {
    return switch (flag) {
        .system => "eq $m.Role \"system\"",
        .user => "eq $m.Role \"user\"",
        .assistant => "eq $m.Role \"assistant\"",
        .tool => "eq $m.Role \"tool\"",
        .first => "eq $i 0",
        .last => "eq (len (slice $.Messages $i)) 1",
        .after_tool => "eq $before \"tool\"",
        .before_tool => "eq $next \"tool\"",
        .newest_user => "eq $i $user",
        .after_newest_user => "lt $user $i",
        .opening_turn => "eq $i $opening",
        .answered => "lt $i $answer",
        .content => "$m.Content",
        .thinking => "$m.Thinking",
        .calls => "$m.ToolCalls",
        .first_call => "eq $c 0",
        .held => "$held",
        .opens_with_system => "$opens",
        .opening => "(index $.Messages 0).Content",
        .tools => "$.Tools",
        .generate, .emotion, .default_system => unreachable, // Known without asking.
    };
}

fn valueText(value: Value) []const u8 {
    return switch (value) {
        .role => "$m.Role",
        .content, .content_trimmed, .content_from_text => "$m.Content",
        .content_json => "json $m.Content",
        .thinking, .thinking_stripped => "$m.Thinking",
        .opening, .opening_trimmed => "(index $.Messages 0).Content",
        .date => "currentDate",
        .call_name => "$call.Function.Name",
        .call_arguments => "$call.Function.Arguments",
        .called => "$called",
        .emotion => "\"\"",
        .held, .default_system, .date_in_words, .reasoning, .tools_typescript, .tool_json, .tool_json_indented => unreachable, // Written elsewhere.
    };
}

const typescript_go = "## functions\n\nnamespace functions {\n\n{{ range $.Tools }}// {{ .Function.Description }}\ntype {{ .Function.Name }} = " ++
    "{{ if .Function.Parameters.Properties }}(_: {\n{{ range $name, $property := .Function.Parameters.Properties }}" ++
    "{{ if $property.Description }}// {{ $property.Description }}\n{{ end }}{{ $name }}: {{ $property.ToTypeScriptType }},\n{{ end }}}) => any;\n\n" ++
    "{{ else }}() => any;\n\n{{ end }}{{ end }}{{ \"}\" }} // namespace functions";
