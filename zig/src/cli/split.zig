//! `abi split` and `abi join`: a GGUF model in several files, and in one again.

const std = @import("std");
const abi = @import("abi");
const arguments = @import("arguments.zig");
const app_file = @import("app.zig");
const gguf_files = abi.formats.gguf_files;
const gguf_parts = abi.formats.gguf_parts;

pub const split_verb: arguments.Verb = .{
    .name = "split",
    .summary = "Cut a GGUF file into parts",
    .usage = "IN.gguf PREFIX (--max-size SIZE | --max-tensors N)",
    .flags = &.{
        .{ .name = "max-size", .value = "SIZE", .help = "most tensor bytes a part, as 2G or 500M; a larger tensor gets a part of its own" },
        .{ .name = "max-tensors", .value = "N", .help = "most tensors a part" },
    },
    .positionals_max = 2,
    .notes = "The parts are named PREFIX-00001-of-0000N.gguf, as llama.cpp reads them. Each is whole when it has its name, and the first gets its name last; one that is there already is not replaced.",
    .examples = &.{"abi split model.gguf model --max-size 2G"},
};

pub const join_verb: arguments.Verb = .{
    .name = "join",
    .summary = "Put the parts of a GGUF file together",
    .usage = "PART.gguf OUT.gguf",
    .positionals_max = 2,
    .notes = "PART is any of them; the others are found by their names.",
    .examples = &.{"abi join model-00001-of-00003.gguf model.gguf"},
};

pub fn runSplit(app: *app_file.App, given: []const []const u8) app_file.RunError!app_file.Exit {
    var parsed: arguments.Parsed = undefined;
    if (try app.parse(&parsed, &split_verb, given)) |end| return end;
    const limits = readLimits(&parsed) catch |err| return app.parseFailed(&parsed, err);
    var diag: abi.base.Diagnostic = .{};
    split(app, parsed.positionals[0], parsed.positionals[1], limits, &diag) catch |err| return failed(app, &split_verb, err, &diag);
    return .ok;
}

pub fn runJoin(app: *app_file.App, given: []const []const u8) app_file.RunError!app_file.Exit {
    var parsed: arguments.Parsed = undefined;
    if (try app.parse(&parsed, &join_verb, given)) |end| return end;
    if (parsed.positionals.len != 2)
        return app.parseFailed(&parsed, parsed.usage("name a part and the file to write: abi join PART.gguf OUT.gguf", .{}));
    var diag: abi.base.Diagnostic = .{};
    join(app, parsed.positionals[0], parsed.positionals[1], &diag) catch |err| return failed(app, &join_verb, err, &diag);
    return .ok;
}

fn failed(app: *app_file.App, verb: *const arguments.Verb, err: anyerror, diag: *abi.base.Diagnostic) app_file.RunError!app_file.Exit {
    return switch (err) {
        error.OutOfMemory => error.OutOfMemory,
        error.WriteFailed => error.WriteFailed,
        else => app.fail(verb.name, if (diag.text().len > 0) diag.text() else @errorName(err)),
    };
}

fn readLimits(parsed: *arguments.Parsed) arguments.ParseError!gguf_files.Limits {
    if (parsed.positionals.len != 2) return parsed.usage("name the file and what the parts' names begin with: abi split IN.gguf PREFIX --max-size 2G", .{});
    if (parsed.has("max-size") == parsed.has("max-tensors")) return parsed.usage("give either --max-size or --max-tensors", .{});
    if (try parsed.whole(usize, "max-tensors", 1, 1 << 30)) |n| return .{ .tensors = n };
    const text = parsed.text("max-size").?;
    return .{ .bytes = sizeOf(text) orelse return parsed.usage("--max-size is \"{s}\"; it must be a number with M or G behind it, as 2G", .{text}) };
}

/// As llama.cpp's own tool counts: thousands.
pub fn sizeOf(text: []const u8) ?usize {
    if (text.len < 2) return null;
    const unit: usize = switch (text[text.len - 1]) {
        'M', 'm' => 1_000_000,
        'G', 'g' => 1_000_000_000,
        else => return null,
    };
    const count = std.fmt.parseInt(usize, text[0 .. text.len - 1], 10) catch return null;
    if (count == 0) return null;
    return std.math.mul(usize, count, unit) catch null;
}

fn split(app: *app_file.App, in: []const u8, prefix: []const u8, limits: gguf_files.Limits, diag: *abi.base.Diagnostic) !void {
    const count = try gguf_files.split(app.gpa, app.io, in, prefix, limits, diag);
    for (0..count) |i| {
        var buffer: gguf_parts.NameBuffer = undefined;
        try app.out.print("{s}\n", .{gguf_parts.partName(&buffer, prefix, i, count) catch unreachable}); // They were written.
    }
}

fn join(app: *app_file.App, part: []const u8, out: []const u8, diag: *abi.base.Diagnostic) !void {
    const joined = try gguf_files.join(app.gpa, app.io, part, out, diag);
    try app.out.print("{s}\n", .{out});
    app.tell("{B:.1}, {d} tensors of {d} parts\n", .{ joined.report.bytes, joined.report.tensors, joined.parts });
}

test "sizes are whole numbers with a unit" {
    try std.testing.expectEqual(2_000_000_000, sizeOf("2G").?);
    try std.testing.expectEqual(500_000_000, sizeOf("500m").?);
    for ([_][]const u8{ "", "G", "2", "0G", "-1G", "1.5G", "99999999999999999999G", "18446744073709551615G" }) |text|
        try std.testing.expectEqual(null, sizeOf(text));
}
