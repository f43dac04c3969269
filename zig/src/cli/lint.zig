//! `abi lint`: what in a GGUF file makes programs fail, and the same file without it.

const std = @import("std");
const abi = @import("abi");
const arguments = @import("arguments.zig");
const app_file = @import("app.zig");
const lint = abi.formats.lint;
const Diagnostic = abi.base.Diagnostic;

pub const verb: arguments.Verb = .{
    .name = "lint",
    .summary = "Find and mend what makes programs refuse a GGUF file",
    .usage = "FILE.gguf [options]",
    .flags = &.{
        .{ .name = "fix", .value = "OUT.gguf", .help = "write the file without what can be mended; OUT may be FILE" },
        .{ .name = "pre", .value = "NAME", .help = "with --fix: the rule for tokenizer.ggml.pre, as qwen2 or llama-bpe" },
        .{ .name = "no-numbers", .help = "do not look for NaN and infinity, which reads the whole file" },
        .{ .name = "list", .help = "list every code with its meaning instead of reading a file" },
        .{ .name = "json", .help = "one JSON object: file, findings, errors, warnings, notes, omitted; with --list the codes", .heading = "Output" },
    },
    .positionals_max = 1,
    .notes = "An error is something that some program refuses or dies of, a warning loads and is wrong, a note is worth knowing. " ++
        "The exit code is 0 without errors and warnings, 1 with some (after --fix: of the file written), and 2 when FILE cannot be read at all. " ++
        "--fix copies tensors byte for byte, but for those that docs/lint.md names; the file gets its name when it is whole and was read back.",
    .examples = &.{ "abi lint model.gguf", "abi lint old.gguf --fix new.gguf", "abi lint model.gguf --fix model.gguf --pre qwen2" },
};

/// The exit code for files that cannot be read; the same number as a wrong command line.
const unreadable: app_file.Exit = .usage;

pub fn run(app: *app_file.App, given: []const []const u8) app_file.RunError!app_file.Exit {
    var parsed: arguments.Parsed = undefined;
    if (try app.parse(&parsed, &verb, given)) |end| return end;
    const as_json = parsed.has("json");
    if (parsed.has("list")) {
        if (as_json) try listJson(app.out) else try listCodes(app.out);
        return .ok;
    }
    if (parsed.positionals.len == 0) return app.parseFailed(&parsed, parsed.usage("name the file: abi lint FILE.gguf", .{}));
    const pre = parsed.text("pre");
    if (pre) |name| {
        if (!lint.tokens.isCuttingRule(name)) return app.parseFailed(&parsed, parsed.usage("--pre is \"{s}\", which llama.cpp does not have; common ones are llama-bpe, qwen2, smollm, gpt-4o and gpt-2", .{name}));
        if (!parsed.has("fix")) return app.parseFailed(&parsed, parsed.usage("--pre changes the file: name the one to write with --fix OUT.gguf", .{}));
    }
    const path = parsed.positionals[0];
    const options: lint.Options = .{ .numbers = !parsed.has("no-numbers"), .pre = pre, .tokenizer = tokenizerTakes };
    var diag: Diagnostic = .{};
    var disk: abi.base.storage.Disk = .init(app.io);
    const storage = disk.storage();
    var session = lint.Session.open(app.gpa, storage, path, options, &diag) catch |err| return cannotRead(app, path, err, &diag, as_json);
    defer session.deinit();

    const out_path = parsed.text("fix") orelse {
        if (as_json) try writeJson(app.out, path, session.report, null) else try writeTable(app.out, path, session.report, true);
        return exitOf(session.report);
    };
    if (session.report.mendable() == 0 and pre == null) {
        if (as_json) try writeJson(app.out, path, session.report, null) else try writeTable(app.out, path, session.report, false);
        app.tell("nothing that can be mended; {s} was not written\n", .{out_path});
        return exitOf(session.report);
    }
    const free = abi.base.freeBytes(abi.base.storage.parentOf(out_path));
    const written = session.write(app.gpa, storage, free, out_path, &diag) catch |err| switch (err) {
        error.OutOfMemory => return error.OutOfMemory,
        else => return app.fail(verb.name, if (diag.text().len > 0) diag.text() else @errorName(err)),
    };
    var again = lint.Session.open(app.gpa, storage, out_path, .{ .numbers = false, .tokenizer = tokenizerTakes }, &diag) catch |err| return cannotRead(app, out_path, err, &diag, as_json);
    defer again.deinit();

    if (as_json) {
        try writeJson(app.out, path, session.report, .{ .path = out_path, .written = written, .report = again.report });
    } else {
        for (session.report.findings.items) |finding| if (finding.mended) try app.out.print("mended  {s}: {s}\n", .{ finding.code.text(), finding.message });
        try writeTable(app.out, out_path, again.report, false);
        app.tell("{s}: {d} tensors, {d} of them changed\n", .{ out_path, written.tensors, written.changed });
    }
    return if (session.report.has(.numbers_broken)) .failed else exitOf(again.report);
}

/// Whether the tokenizer here can be made from the file's keys.
fn tokenizerTakes(gpa: std.mem.Allocator, file: *const abi.formats.gguf.File, diag: *Diagnostic) error{OutOfMemory}!bool {
    var tokenizer = abi.agent.vocabulary.fromFile(gpa, file, diag) catch |err| {
        if (err == error.OutOfMemory) return error.OutOfMemory;
        return false;
    };
    tokenizer.deinit();
    return true;
}

fn cannotRead(app: *app_file.App, path: []const u8, err: anyerror, diag: *Diagnostic, as_json: bool) app_file.RunError!app_file.Exit {
    if (err == error.OutOfMemory) return error.OutOfMemory;
    if (as_json) {
        try std.json.Stringify.value(.{ .file = path, .@"error" = diag.text() }, .{}, app.out);
        try app.out.writeByte('\n');
    }
    try app.complain(verb.name, diag.text());
    return unreadable;
}

fn exitOf(report: *const lint.Report) app_file.Exit {
    return if (report.count(.@"error") + report.count(.warning) > 0) .failed else .ok;
}

fn writeTable(out: *std.Io.Writer, path: []const u8, report: *const lint.Report, offer: bool) std.Io.Writer.Error!void {
    for ([_]lint.Severity{ .@"error", .warning, .note }) |severity| for (report.findings.items) |finding| {
        const rule = finding.code.rule();
        if (rule.severity != severity) continue;
        try out.print("{t}  {s}  {s}\n    {s}\n    {s}\n    {s}\n", .{ severity, finding.code.text(), finding.field, finding.message, rule.effect, nextMove(finding) });
    };
    if (report.omitted() > 0) try out.print("and {d} more of the same codes\n", .{report.omitted()});
    try out.print("{s}: {d} errors, {d} warnings, {d} notes", .{ path, report.count(.@"error"), report.count(.warning), report.count(.note) });
    if (offer and report.mendable() > 0) try out.print("; --fix OUT.gguf mends {d}", .{report.mendable()});
    try out.writeByte('\n');
}

fn nextMove(finding: lint.Finding) []const u8 {
    const rule = finding.code.rule();
    return if (finding.mended and rule.mends == .sometimes) "Pass --fix OUT.gguf: it can be mended." else rule.next;
}

const Fixed = struct { path: []const u8, written: abi.formats.gguf_rewrite.Report, report: *const lint.Report };

fn writeJson(out: *std.Io.Writer, path: []const u8, report: *const lint.Report, fixed: ?Fixed) std.Io.Writer.Error!void {
    var json: std.json.Stringify = .{ .writer = out, .options = .{ .whitespace = .indent_2 } };
    try json.beginObject();
    try writeReport(&json, path, report);
    if (fixed) |f| {
        try json.objectField("fixed");
        try json.beginObject();
        try writeReport(&json, f.path, f.report);
        try json.objectField("bytes");
        try json.write(f.written.bytes);
        try json.objectField("tensors_changed");
        try json.write(f.written.changed);
        try json.endObject();
    }
    try json.endObject();
    try out.writeByte('\n');
}

fn writeReport(json: *std.json.Stringify, path: []const u8, report: *const lint.Report) std.Io.Writer.Error!void {
    try json.objectField("file");
    try json.write(path);
    try json.objectField("findings");
    try json.beginArray();
    for (report.findings.items) |finding| {
        const rule = finding.code.rule();
        try json.write(.{
            .code = finding.code.text(),
            .severity = @tagName(rule.severity),
            .field = finding.field,
            .message = finding.message,
            .effect = rule.effect,
            .next = nextMove(finding),
            .mends = finding.mended,
        });
    }
    try json.endArray();
    inline for (.{ .{ "errors", lint.Severity.@"error" }, .{ "warnings", lint.Severity.warning }, .{ "notes", lint.Severity.note } }) |entry| {
        try json.objectField(entry[0]);
        try json.write(report.count(entry[1]));
    }
    try json.objectField("omitted");
    try json.write(report.omitted());
}

fn listCodes(out: *std.Io.Writer) std.Io.Writer.Error!void {
    for (std.enums.values(lint.Code)) |code| {
        const rule = code.rule();
        try out.print("{t}  {s}\n    {s}\n    {s}\n    {s}\n", .{ rule.severity, code.text(), rule.summary, rule.effect, rule.next });
    }
}

fn listJson(out: *std.Io.Writer) std.Io.Writer.Error!void {
    var json: std.json.Stringify = .{ .writer = out, .options = .{ .whitespace = .indent_2 } };
    try json.beginArray();
    for (std.enums.values(lint.Code)) |code| {
        const rule = code.rule();
        try json.write(.{ .code = code.text(), .severity = @tagName(rule.severity), .summary = rule.summary, .effect = rule.effect, .next = rule.next, .mends = @tagName(rule.mends) });
    }
    try json.endArray();
    try out.writeByte('\n');
}
