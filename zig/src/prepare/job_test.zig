//! Whole preparations of small files: the same bytes for any threads and blocks, stopped and continued, and refused.

const std = @import("std");
const base = @import("base");
const data = @import("data");
const tokenizer_layer = @import("tokenizer");
const job_module = @import("job.zig");
const Job = job_module.Job;
const Tokenizer = tokenizer_layer.Tokenizer;
const testing = std.testing;
const gpa = testing.allocator;

/// A token for each byte, and what ChatML needs.
fn makeTokenizer() !Tokenizer {
    var names: [256][6]u8 = undefined;
    var tokens: [256 + 4][]const u8 = undefined;
    var types: [tokens.len]i32 = @splat(6);
    var scores: [tokens.len]f32 = @splat(0);
    for (&names, tokens[0..256], 0..) |*name, *token, i| token.* = try std.fmt.bufPrint(name, "<0x{X:0>2}>", .{i});
    for ([_][]const u8{ "<|im_start|>", "<|im_end|>", "<eos>", "<unk>" }, 256..) |name, i| {
        tokens[i] = name;
        types[i] = if (i == 259) 2 else 3;
    }
    var diag: base.Diagnostic = .{};
    return Tokenizer.fromGguf(gpa, .{ .model = "llama", .tokens = &tokens, .token_types = &types, .scores = &scores, .eos = 258 }, &diag) catch |err| {
        std.debug.print("{s}\n", .{diag.text()});
        return err;
    };
}

const Fixture = struct {
    tmp: testing.TmpDir,
    tokenizer: Tokenizer,
    arena: std.heap.ArenaAllocator,
    diag: base.Diagnostic = .{},

    fn init() !Fixture {
        return .{ .tmp = testing.tmpDir(.{ .iterate = true }), .tokenizer = try makeTokenizer(), .arena = .init(gpa) };
    }

    fn deinit(self: *Fixture) void {
        self.tokenizer.deinit();
        self.arena.deinit();
        self.tmp.cleanup();
    }

    fn path(self: *Fixture, name: []const u8) ![]const u8 {
        return std.fmt.allocPrint(self.arena.allocator(), ".zig-cache/tmp/{s}/{s}", .{ self.tmp.sub_path, name });
    }

    fn write(self: *Fixture, name: []const u8, text: []const u8) ![]const u8 {
        try self.tmp.dir.writeFile(testing.io, .{ .sub_path = name, .data = text });
        return self.path(name);
    }

    fn read(self: *Fixture, name: []const u8) ![]const u8 {
        return self.tmp.dir.readFileAlloc(testing.io, name, self.arena.allocator(), .unlimited);
    }

    fn run(self: *Fixture, options: job_module.Options) !@import("report.zig").Report {
        var job: Job = undefined;
        try job.init(gpa, testing.io, &self.tokenizer, options, &self.diag);
        defer job.deinit();
        try job.run(&self.diag);
        var report = job.report;
        report.skipped_examples = &.{};
        return report;
    }

    fn names(self: *Fixture) !usize {
        var count: usize = 0;
        var it = self.tmp.dir.iterate();
        while (try it.next(testing.io)) |_| count += 1;
        return count;
    }
};

fn makeRows(arena: std.mem.Allocator, count: usize, bad: bool) ![]const u8 {
    var text: std.ArrayList(u8) = .empty;
    var prng: base.Prng = .init(3);
    for (0..count) |i| {
        const long: [90]u8 = @splat('z');
        const some = long[0..@intCast(1 + prng.below(89))];
        switch (prng.below(if (bad) 7 else 5)) {
            0 => try text.print(arena, "{{\"text\": \"row {d} {s}\"}}\n", .{ i, some }),
            1 => try text.print(arena, "{{\"prompt\": \"say \\u0041{d}\", \"completion\": \" {s}\"}}\r\n", .{ i, some }),
            2 => try text.print(arena, "{{\"messages\": [{{\"role\": \"user\", \"content\": \"{d}\"}}, {{\"role\": \"assistant\", \"content\": \"{s}\"}}]}}\n", .{ i, some }),
            3 => try text.print(arena, "{{\"instruction\": \"{d}\", \"output\": \"{s}\"}}\n", .{ i, some }),
            4 => try text.appendSlice(arena, " \n\n"),
            5 => try text.print(arena, "{{\"text\": \"{d}\n", .{i}),
            else => try text.print(arena, "{{\"text\": {d}}}\n", .{i}),
        }
    }
    return text.items;
}

const endings = [_][]const u8{ ".bin", ".mask", ".idx", ".json" };

test "any number of threads and any size of block give the same bytes" {
    var f: Fixture = try .init();
    defer f.deinit();

    const a = f.arena.allocator();
    const one = try f.write("a.jsonl", try makeRows(a, 300, true));
    const two = try f.write("b.jsonl", try makeRows(a, 40, true));
    const empty = try f.write("c.jsonl", "");
    const output = try f.path("out.bin");
    const eval_output = try f.path("held.bin");
    var first: ?[2 * endings.len][]const u8 = null;
    var told: ?@import("report.zig").Report = null;
    for ([_]u32{ 1 << 20, 1000, 97, 13 }) |block_bytes| for ([_]usize{ 1, 2, 3 }) |threads| {
        const report = f.run(.{
            .sources = &.{ one, empty, two },
            .output = output,
            .eval_output = eval_output,
            .eval_fraction = 0.2,
            .chat_format = .chatml,
            .max_seq_len = 60,
            .skip_invalid = true,
            .threads = threads,
            .block_bytes = block_bytes,
        }) catch |err| {
            std.debug.print("{s}\n", .{f.diag.text()});
            return err;
        };
        var files: [2 * endings.len][]const u8 = undefined;
        for (endings, 0..) |ending, i| {
            files[2 * i] = try f.read(try std.mem.concat(a, u8, &.{ "out", ending }));
            files[2 * i + 1] = try f.read(try std.mem.concat(a, u8, &.{ "held", ending }));
        }
        try testing.expectEqual(3 + 2 * endings.len, try f.names());
        if (first) |expected| {
            for (expected, files) |x, y| try testing.expectEqualSlices(u8, x, y);
        } else first = files;
        if (told) |expected| {
            try testing.expectEqualDeep(expected, report);
        } else told = report;
    };
    const report = told.?;
    try testing.expect(report.skippedTotal() > 20);
    try testing.expect(report.train.truncated > 20);
    try testing.expectEqual(report.lines, report.train.rows + report.evaluation.rows + report.dropped + report.skippedTotal());
}

test "a preparation that is stopped again and again ends with the same bytes" {
    var f: Fixture = try .init();
    defer f.deinit();

    const a = f.arena.allocator();
    const source = try f.write("a.jsonl", try makeRows(a, 400, true));
    var options: job_module.Options = .{
        .sources = &.{source},
        .output = try f.path("whole.bin"),
        .eval_output = try f.path("whole_eval.bin"),
        .eval_fraction = 0.1,
        .chat_format = .chatml,
        .skip_invalid = true,
        .threads = 2,
        .block_bytes = 200,
        .journal_ms = 0,
    };
    const whole = try f.run(options);
    options.output = try f.path("parts.bin");
    options.eval_output = try f.path("parts_eval.bin");
    var stops: usize = 0;
    while (true) {
        var job: Job = undefined;
        try job.init(gpa, testing.io, &f.tokenizer, options, &f.diag);
        defer job.deinit();

        // A thread that cancels when a little more is done than before.
        const Watch = struct {
            fn run(j: *Job, over: *std.atomic.Value(bool)) void {
                const limit = @max(j.progress().bytes_before, 1);
                while (!over.load(.monotonic)) {
                    const p = j.progress();
                    if (p.bytes_done > p.bytes_before and p.bytes_done > limit) return j.cancel();
                    std.Thread.yield() catch {};
                }
            }
        };
        var over: std.atomic.Value(bool) = .init(false);
        const watch = try std.Thread.spawn(.{}, Watch.run, .{ &job, &over });
        const result = job.run(&f.diag);
        over.store(true, .monotonic);
        watch.join();
        result catch |err| {
            try testing.expectEqual(error.Canceled, err);
            stops += 1;
            continue;
        };
        try testing.expectEqual(whole.train, job.report.train);
        try testing.expectEqual(whole.evaluation, job.report.evaluation);
        try testing.expectEqual(whole.skipped, job.report.skipped);
        try testing.expectEqual(whole.lines, job.report.lines);
        try testing.expectEqual(5, job.report.skipped_examples.len);
        break;
    }
    try testing.expect(stops > 0);
    for ([_][]const u8{ ".bin", ".mask", ".idx", "_eval.bin", "_eval.mask", "_eval.idx" }) |ending|
        try testing.expectEqualSlices(u8, try f.read(try std.mem.concat(a, u8, &.{ "whole", ending })), try f.read(try std.mem.concat(a, u8, &.{ "parts", ending })));
    try testing.expectEqual(1 + 16, try f.names());
}

test "what was left is not gone on with when anything has changed" {
    var f: Fixture = try .init();
    defer f.deinit();

    const a = f.arena.allocator();
    const source = try f.write("a.jsonl", try makeRows(a, 200, false));
    var options: job_module.Options = .{ .sources = &.{source}, .output = try f.path("out.bin"), .chat_format = .chatml, .block_bytes = 100, .journal_ms = 0, .threads = 1 };
    _ = try f.run(options);
    const whole = try f.read("out.bin");
    for (0..3) |what| {
        {
            var job: Job = undefined;
            try job.init(gpa, testing.io, &f.tokenizer, options, &f.diag);
            defer job.deinit();

            job.cancel();
            try testing.expectError(error.Canceled, job.run(&f.diag));
        }
        switch (what) {
            0 => {}, // Nothing had been done: the next begins again.
            1 => options.max_seq_len = 50,
            else => {
                options.max_seq_len = null;
                _ = try f.write("out.bin.part", "damage");
            },
        }
        _ = try f.run(options);
        if (what != 1) try testing.expectEqualSlices(u8, whole, try f.read("out.bin"));
        try testing.expectEqual(5, try f.names());
    }
}

fn expectRefused(f: *Fixture, options: job_module.Options, said: []const u8) !void {
    const before = try f.names();
    try testing.expectError(error.InvalidData, f.run(options));
    if (std.mem.find(u8, f.diag.text(), said) == null) {
        std.debug.print("said: {s}\n", .{f.diag.text()});
        return error.TestUnexpectedResult;
    }
    try testing.expectEqual(before, try f.names());
}

test "the first bad line is named with its place, and nothing is left" {
    var f: Fixture = try .init();
    defer f.deinit();

    const a = f.arena.allocator();
    const good = try makeRows(a, 50, false);
    const lines = std.mem.countScalar(u8, good, '\n');
    const output = try f.path("out.bin");
    const cases = [_]struct { []const u8, []const u8 }{
        .{ "{\"text\": 5}", ": text is not text. Correct the line" },
        .{ "  {\"text\": \"a\" \"b\"}", ":16: not valid JSON (unexpected character)" },
        .{ "{\"chosen\": \"ab\", \"rejected\": \"ac\"}", ": rows with chosen and rejected do not mix" },
    };
    for (cases) |case| for ([_]u32{ 1 << 20, 50 }) |block_bytes| {
        const text = try std.mem.concat(a, u8, &.{ good, case[0], "\n{\"text\": 5}\n", good });
        const source = try f.write("a.jsonl", text);
        const said = try std.fmt.allocPrint(a, "{s}:{d}{s}", .{ source, lines + 1, case[1] });
        try expectRefused(&f, .{ .sources = &.{source}, .output = output, .chat_format = .chatml, .block_bytes = block_bytes, .threads = 2 }, said);
    };
    const chat = try f.write("chat.jsonl", "{\"instruction\": \"a\", \"output\": \"b\"}\n");
    try expectRefused(&f, .{ .sources = &.{chat}, .output = output }, ":1: a chat needs a chat format");
    const pairs = try f.write("pairs.jsonl", "\n{\"prompt\": \"p\", \"chosen\": \"a\", \"rejected\": \"b\"}\n");
    try expectRefused(&f, .{ .sources = &.{pairs}, .output = output, .stream = true }, ":2: pairs of answers cannot be a stream");
    try expectRefused(&f, .{ .sources = &.{pairs}, .output = output, .max_seq_len = 1 }, "at least 2 tokens");
    try expectRefused(&f, .{ .sources = &.{pairs}, .output = output, .max_seq_len = 2, .loss = .all }, ":2: of pairs only the answers");
    const empty = try f.write("empty.jsonl", "\n \n");
    try expectRefused(&f, .{ .sources = &.{empty}, .output = output }, "no row is left");
}
