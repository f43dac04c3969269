//! Command lines: one table a verb describes its options, and both the parser and `--help` read that table.
//!
//! An option nobody knows is an error with the nearest known name; so are a missing value, a value that is no
//! number or out of its range, and an option given twice. `--name value` and `--name=value` mean the same;
//! `--` ends the options. Does not know: what the options do.

const std = @import("std");

pub const Flag = struct {
    /// Without the dashes.
    name: []const u8,
    /// 0 = no short form.
    short: u8 = 0,
    /// What stands for the value in the help; empty = a switch without value.
    value: []const u8 = "",
    help: []const u8,
    /// Shown in the help; empty = none.
    default: []const u8 = "",
    /// Heading above this flag and those after it; empty = same as before.
    heading: []const u8 = "",
};

pub const Verb = struct {
    name: []const u8,
    /// One line, no full stop.
    summary: []const u8,
    /// Behind the name in the usage line.
    usage: []const u8 = "[options]",
    flags: []const Flag = &.{},
    /// Most arguments that are no options.
    positionals_max: usize = 0,
    /// Paragraphs between the options and the examples.
    notes: []const u8 = "",
    /// Lines that work as they stand.
    examples: []const []const u8 = &.{},

    pub fn writeHelp(self: Verb, out: *std.Io.Writer, color: bool) std.Io.Writer.Error!void {
        const bold = if (color) "\x1b[1m" else "";
        const dim = if (color) "\x1b[2m" else "";
        const reset = if (color) "\x1b[0m" else "";
        try out.print("{s}.\n\n{s}Usage:{s} abi {s} {s}\n", .{ self.summary, bold, reset, self.name, self.usage });
        var column: usize = 0;
        for (self.flags) |flag| column = @max(column, labelWidth(flag));
        for (self.flags, 0..) |flag, i| {
            if (flag.heading.len > 0 or i == 0)
                try out.print("\n{s}{s}:{s}\n", .{ bold, if (flag.heading.len > 0) flag.heading else "Options", reset });
            try writeLabel(out, flag);
            try out.splatByteAll(' ', column + 2 - labelWidth(flag));
            try out.print("{s}", .{flag.help});
            if (flag.default.len > 0) try out.print(" {s}[{s}]{s}", .{ dim, flag.default, reset });
            try out.writeByte('\n');
        }
        if (self.notes.len > 0) try out.print("\n{s}\n", .{self.notes});
        if (self.examples.len > 0) {
            try out.print("\n{s}Examples:{s}\n", .{ bold, reset });
            for (self.examples) |example| try out.print("  {s}\n", .{example});
        }
    }
};

fn writeLabel(out: *std.Io.Writer, flag: Flag) std.Io.Writer.Error!void {
    if (flag.short != 0) try out.print("  -{c}, ", .{flag.short}) else try out.writeAll("      ");
    try out.print("--{s}", .{flag.name});
    if (flag.value.len > 0) try out.print(" {s}", .{flag.value});
}

fn labelWidth(flag: Flag) usize {
    return 8 + flag.name.len + if (flag.value.len > 0) 1 + flag.value.len else 0;
}

pub const ParseError = error{
    OutOfMemory,
    /// `message` says what is wrong.
    Usage,
    /// `--help` was given.
    HelpWanted,
};

pub const Parsed = struct {
    verb: *const Verb,
    /// One entry a flag of the verb; a switch that was given holds "".
    values: []?[]const u8,
    positionals: []const []const u8,
    arena: std.mem.Allocator,
    message: []const u8 = "",

    /// Everything lives in `arena`. On `Usage`, `self.message` is a sentence.
    pub fn parse(self: *Parsed, arena: std.mem.Allocator, verb: *const Verb, arguments: []const []const u8) ParseError!void {
        self.* = .{ .verb = verb, .values = &.{}, .positionals = &.{}, .arena = arena };
        self.values = try arena.alloc(?[]const u8, verb.flags.len);
        @memset(self.values, null);
        var positionals: std.ArrayList([]const u8) = .empty;
        var i: usize = 0;
        var options_over = false;
        while (i < arguments.len) : (i += 1) {
            const argument = arguments[i];
            if (options_over or argument.len < 2 or argument[0] != '-') {
                if (positionals.items.len == verb.positionals_max)
                    return self.usage("unexpected argument \"{s}\"{s}", .{ argument, if (verb.positionals_max == 0) "; texts go behind an option such as --message" else "" });
                try positionals.append(arena, argument);
                continue;
            }
            if (std.mem.eql(u8, argument, "--")) {
                options_over = true;
                continue;
            }
            if (std.mem.eql(u8, argument, "--help") or std.mem.eql(u8, argument, "-h")) return error.HelpWanted;
            const equals = if (argument[1] == '-') std.mem.findScalar(u8, argument, '=') else null;
            const label = argument[0 .. equals orelse argument.len];
            const index = self.findFlag(label) orelse return self.unknown(label);
            const flag = verb.flags[index];
            if (self.values[index] != null) return self.usage("--{s} is given twice", .{flag.name});
            if (flag.value.len == 0) {
                if (equals != null) return self.usage("--{s} takes no value", .{flag.name});
                self.values[index] = "";
            } else if (equals) |at| {
                self.values[index] = argument[at + 1 ..];
            } else {
                i += 1;
                if (i == arguments.len) return self.usage("--{s} needs a value: --{s} {s}", .{ flag.name, flag.name, flag.value });
                self.values[index] = arguments[i];
            }
        }
        self.positionals = positionals.items;
    }

    pub fn has(self: *const Parsed, comptime name: []const u8) bool {
        return self.text(name) != null;
    }

    pub fn text(self: *const Parsed, comptime name: []const u8) ?[]const u8 {
        for (self.verb.flags, self.values) |flag, value| if (std.mem.eql(u8, flag.name, name)) return value;
        unreachable; // Not in the verb's table.
    }

    /// A whole number in `least` … `most`, or null when the option was not given.
    pub fn whole(self: *Parsed, comptime T: type, comptime name: []const u8, least: T, most: T) ParseError!?T {
        const given = self.text(name) orelse return null;
        const value = std.fmt.parseInt(T, given, 10) catch null;
        if (value) |v| if (v >= least and v <= most) return v;
        return self.usage("--{s} is \"{s}\"; it must be a whole number from {d} to {d}", .{ name, given, least, most });
    }

    /// A number in `least` … `most`, or null when the option was not given.
    pub fn number(self: *Parsed, comptime name: []const u8, least: f32, most: f32) ParseError!?f32 {
        const given = self.text(name) orelse return null;
        const value = std.fmt.parseFloat(f32, given) catch null;
        if (value) |v| if (v >= least and v <= most) return v;
        return self.usage("--{s} is \"{s}\"; it must be a number from {d} to {d}", .{ name, given, least, most });
    }

    pub fn usage(self: *Parsed, comptime format: []const u8, arguments: anytype) ParseError {
        self.message = try std.fmt.allocPrint(self.arena, format, arguments);
        return error.Usage;
    }

    fn findFlag(self: *const Parsed, label: []const u8) ?usize {
        for (self.verb.flags, 0..) |flag, i| {
            if (label[1] == '-') {
                if (std.mem.eql(u8, label[2..], flag.name)) return i;
            } else if (label.len == 2 and label[1] == flag.short) return i;
        }
        return null;
    }

    fn unknown(self: *Parsed, label: []const u8) ParseError {
        const bare = std.mem.trimStart(u8, label, "-");
        var names: [64][]const u8 = undefined;
        const count = @min(names.len, self.verb.flags.len);
        for (names[0..count], self.verb.flags[0..count]) |*name, flag| name.* = flag.name;
        if (nearest(bare, names[0..count])) |name|
            return self.usage("unknown option {s}; did you mean --{s}?", .{ label, name });
        return self.usage("unknown option {s}; `abi {s} --help` lists all", .{ label, self.verb.name });
    }
};

/// The candidate that a slip of the fingers could have turned into `word`, or null.
pub fn nearest(word: []const u8, candidates: []const []const u8) ?[]const u8 {
    var best: ?[]const u8 = null;
    var best_distance: usize = @max(1, word.len / 3) + 1;
    for (candidates) |candidate| {
        const distance = editDistance(word, candidate);
        const begins = word.len >= 3 and std.mem.startsWith(u8, candidate, word);
        const cost = if (begins) @min(distance, 1) else distance;
        if (cost < best_distance) {
            best = candidate;
            best_distance = cost;
        }
    }
    return best;
}

/// Insertions, deletions, replacements and swaps of neighbours. Words over 63 bytes are far from everything.
fn editDistance(a: []const u8, b: []const u8) usize {
    if (a.len > 63 or b.len > 63) return 64;
    var rows: [3][64]usize = undefined;
    for (0..b.len + 1) |j| rows[0][j] = j;
    for (a, 1..) |ca, i| {
        const row = &rows[i % 3];
        const above = &rows[(i + 2) % 3];
        const before = &rows[(i + 1) % 3];
        row[0] = i;
        for (b, 1..) |cb, j| {
            var cost = above[j - 1] + @intFromBool(ca != cb);
            cost = @min(cost, @min(above[j], row[j - 1]) + 1);
            if (i > 1 and j > 1 and ca == b[j - 2] and a[i - 2] == cb) cost = @min(cost, before[j - 2] + 1);
            row[j] = cost;
        }
    }
    return rows[a.len % 3][b.len];
}

const testing = std.testing;

const test_verb: Verb = .{
    .name = "try",
    .summary = "Try it",
    .flags = &.{
        .{ .name = "model", .value = "FILE", .help = "the model" },
        .{ .name = "message", .short = 'm', .value = "TEXT", .help = "one message" },
        .{ .name = "top-k", .value = "N", .help = "keep N", .default = "40", .heading = "Sampling" },
        .{ .name = "json", .help = "for machines" },
    },
    .positionals_max = 1,
    .examples = &.{"abi try"},
};

fn parseTest(arena: std.mem.Allocator, arguments: []const []const u8, parsed: *Parsed) ParseError!void {
    return parsed.parse(arena, &test_verb, arguments);
}

test "long, short, joined and positional arguments are read" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    var parsed: Parsed = undefined;
    try parseTest(arena.allocator(), &.{ "--model=a=b", "-m", "-x", "file", "--json", "--top-k", "7" }, &parsed);
    try testing.expectEqualStrings("a=b", parsed.text("model").?);
    try testing.expectEqualStrings("-x", parsed.text("message").?);
    try testing.expectEqualStrings("file", parsed.positionals[0]);
    try testing.expect(parsed.has("json"));
    try testing.expectEqual(@as(?u32, 7), try parsed.whole(u32, "top-k", 0, 100));
    try parseTest(arena.allocator(), &.{ "--", "--model" }, &parsed);
    try testing.expectEqualStrings("--model", parsed.positionals[0]);
}

test "what is wrong with a command line is said in words" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const cases = [_]struct { []const []const u8, []const u8 }{
        .{ &.{"--modle"}, "did you mean --model?" },
        .{ &.{"--mesage=x"}, "did you mean --message?" },
        .{ &.{"--mess"}, "did you mean --message?" },
        .{ &.{"--zzz"}, "lists all" },
        .{ &.{"-q"}, "unknown option -q" },
        .{ &.{"--model"}, "needs a value: --model FILE" },
        .{ &.{"--json=1"}, "takes no value" },
        .{ &.{ "--json", "--json" }, "given twice" },
        .{ &.{ "a", "b" }, "unexpected argument \"b\"" },
    };
    for (cases) |case| {
        var parsed: Parsed = undefined;
        try testing.expectError(error.Usage, parseTest(arena.allocator(), case[0], &parsed));
        try testing.expect(std.mem.find(u8, parsed.message, case[1]) != null);
    }
    var parsed: Parsed = undefined;
    try parseTest(arena.allocator(), &.{ "--top-k", "1.5" }, &parsed);
    try testing.expectError(error.Usage, parsed.whole(u32, "top-k", 0, 100));
    try testing.expectEqualStrings("--top-k is \"1.5\"; it must be a whole number from 0 to 100", parsed.message);
}

test "the help lists every option with its default under its heading" {
    var out: std.Io.Writer.Allocating = .init(testing.allocator);
    defer out.deinit();
    try test_verb.writeHelp(&out.writer, false);
    try testing.expectEqualStrings(
        \\Try it.
        \\
        \\Usage: abi try [options]
        \\
        \\Options:
        \\      --model FILE    the model
        \\  -m, --message TEXT  one message
        \\
        \\Sampling:
        \\      --top-k N       keep N [40]
        \\      --json          for machines
        \\
        \\Examples:
        \\  abi try
        \\
    , out.written());
}
