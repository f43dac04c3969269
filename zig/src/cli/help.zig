//! `abi help`: what there is, and where to read on.

const std = @import("std");
const arguments = @import("arguments.zig");

pub fn isHelp(word: []const u8) bool {
    for ([_][]const u8{ "help", "--help", "-h" }) |known| if (std.mem.eql(u8, word, known)) return true;
    return false;
}

pub fn writeOverview(out: *std.Io.Writer, verbs: []const *const arguments.Verb, color: bool) std.Io.Writer.Error!void {
    const bold = if (color) "\x1b[1m" else "";
    const reset = if (color) "\x1b[0m" else "";
    try out.print("abi trains language models and talks to them.\n\n{s}Usage:{s} abi COMMAND [options]\n\n{s}Commands:{s}\n", .{ bold, reset, bold, reset });
    var column: usize = 0;
    for (verbs) |verb| column = @max(column, verb.name.len);
    for (verbs) |verb| {
        try out.print("  {s}", .{verb.name});
        try out.splatByteAll(' ', column + 2 - verb.name.len);
        try out.print("{s}\n", .{verb.summary});
    }
    try out.print(
        \\
        \\{s}Exit codes:{s}
        \\  0    done
        \\  1    failed: the message says what, and what to do
        \\  2    the command line is wrong
        \\  3    the Ollama server cannot be reached
        \\  130  ended by Ctrl-C
        \\  143  ended by SIGTERM
        \\
        \\`abi COMMAND --help` explains a command.
        \\
    , .{ bold, reset });
}

test "the overview names every command" {
    var out: std.Io.Writer.Allocating = .init(std.testing.allocator);
    defer out.deinit();
    const one: arguments.Verb = .{ .name = "one", .summary = "Do one" };
    const second: arguments.Verb = .{ .name = "second", .summary = "Do another" };
    try writeOverview(&out.writer, &.{ &one, &second }, false);
    try std.testing.expect(std.mem.find(u8, out.written(), "\n  one     Do one\n  second  Do another\n") != null);
}
