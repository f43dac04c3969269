//! Instruction data: one JSON object a line with `instruction`, optional `input`, and `output`.
//!
//! Strict by default: the first bad line is an error with its number and the reason. With `skip_invalid` bad lines are
//! left out and counted by kind, never silently. Fields besides the three are allowed and ignored.
//! Blank lines, CRLF and a leading byte order mark are fine. Bounded: depth of nesting and length of a line.
//! Does not know: files, prompts, tokens.

const std = @import("std");
const base = @import("base");
const Allocator = std.mem.Allocator;

pub const InstructionSample = struct {
    /// What is asked. Never empty.
    instruction: []const u8,
    /// Context of the task; null when it is missing, null or empty in the file.
    input: ?[]const u8 = null,
    /// The expected answer. Never empty.
    output: []const u8,
    /// Line in the file, counted from 1.
    line: usize,
};

/// The samples in file order; all text lives in the list's own arena.
pub const InstructionDataset = struct {
    arena: std.heap.ArenaAllocator,
    items: []const InstructionSample,

    pub fn deinit(self: *const InstructionDataset) void {
        self.arena.deinit();
    }
};

/// Why a line is no sample.
pub const Defect = enum {
    not_json,
    cut_off,
    not_an_object,
    missing_instruction,
    missing_output,
    wrong_type,
    empty_text,
    duplicate_key,
    invalid_utf8,
    nul_character,
    too_deep,
    too_long,

    /// What is wrong and what to do, without line number: "line 3 " goes before.
    pub fn words(self: Defect) []const u8 {
        return switch (self) {
            .not_json => "is not valid JSON",
            .cut_off => "is cut off: its JSON ends too early; restore the end of the line",
            .not_an_object => "is not a JSON object; write {\"instruction\": …, \"output\": …}",
            .missing_instruction => "has no \"instruction\"",
            .missing_output => "has no \"output\"",
            .wrong_type => "has an \"instruction\", \"input\" or \"output\" that is not text",
            .empty_text => "has an empty \"instruction\" or \"output\"; there is nothing to learn from it",
            .duplicate_key => "has \"instruction\", \"input\" or \"output\" twice; remove one",
            .invalid_utf8 => "is not valid UTF-8; convert the file to UTF-8",
            .nul_character => "holds a NUL character; remove it",
            .too_deep => "is nested too deeply",
            .too_long => "is too long",
        };
    }
};

pub const InstructionOptions = struct {
    /// Leave bad lines out and count them in the report instead of failing.
    skip_invalid: bool = false,
    /// Nesting of values in extra fields; the line's own object is level 1.
    max_depth: usize = 64,
    max_line_bytes: usize = 16 << 20,
};

/// What happened, line by line counted.
pub const InstructionReport = struct {
    samples: usize = 0,
    blank_lines: usize = 0,
    /// Bad lines by kind; in strict mode at most one.
    defects: std.EnumArray(Defect, usize) = .initFill(0),
    /// The first bad line and what is wrong with it.
    first: ?struct { line: usize, defect: Defect } = null,

    pub fn skipped(self: *const InstructionReport) usize {
        var sum: usize = 0;
        for (std.enums.values(Defect)) |d| sum += self.defects.get(d);
        return sum;
    }

    /// "line 3 has no \"output\"", and how many more; nothing when all lines were good.
    pub fn format(self: *const InstructionReport, w: *std.Io.Writer) std.Io.Writer.Error!void {
        const first = self.first orelse return;
        try w.print("line {d} {s}", .{ first.line, first.defect.words() });
        const rest = self.skipped() - 1;
        if (rest > 0) try w.print(" (and {d} more bad lines)", .{rest});
    }
};

pub const InstructionError = error{ InvalidInstruction, OutOfMemory };

/// Strict reading of a whole JSONL text; which line failed and why is in the report of `parseInstructionDatasetOptions`.
/// The result is freed with `deinit`.
pub fn parseInstructionDataset(allocator: Allocator, jsonl: []const u8) InstructionError!InstructionDataset {
    var report: InstructionReport = .{};
    return parseInstructionDatasetOptions(allocator, jsonl, .{}, &report);
}

/// Like `parseInstructionDataset`; `report` is filled in any case, also when `InvalidInstruction` is returned.
pub fn parseInstructionDatasetOptions(
    allocator: Allocator,
    jsonl: []const u8,
    options: InstructionOptions,
    report: *InstructionReport,
) InstructionError!InstructionDataset {
    report.* = .{};
    var arena: std.heap.ArenaAllocator = .init(allocator);
    errdefer arena.deinit();

    var samples: std.ArrayList(InstructionSample) = .empty;
    const mark = "\xef\xbb\xbf";
    const body = if (std.mem.startsWith(u8, jsonl, mark)) jsonl[mark.len..] else jsonl;
    var lines = std.mem.splitScalar(u8, body, '\n');
    var number: usize = 0;
    while (lines.next()) |raw| {
        number += 1;
        const line = std.mem.trim(u8, raw, " \t\r");
        if (line.len == 0) {
            // The piece behind the last newline is no line.
            if (lines.peek() != null or raw.len != 0) report.blank_lines += 1;
            continue;
        }
        switch (try parseLine(arena.allocator(), line, options)) {
            .sample => |sample| {
                try samples.append(arena.allocator(), sample);
                samples.items[samples.items.len - 1].line = number;
                report.samples += 1;
            },
            .defect => |defect| {
                report.defects.getPtr(defect).* += 1;
                if (report.first == null) report.first = .{ .line = number, .defect = defect };
                if (!options.skip_invalid) return error.InvalidInstruction;
            },
        }
    }
    // Copied last: the arena in the result is the one that knows of every block.
    const items = samples.items;
    return .{ .arena = arena, .items = items };
}

const Line = union(enum) { sample: InstructionSample, defect: Defect };

fn parseLine(arena: Allocator, line: []const u8, options: InstructionOptions) error{OutOfMemory}!Line {
    if (line.len > options.max_line_bytes) return .{ .defect = .too_long };
    if (std.mem.findScalar(u8, line, 0) != null) return .{ .defect = .nul_character };
    if (!std.unicode.utf8ValidateSlice(line)) return .{ .defect = .invalid_utf8 };
    if (line[0] != '{') {
        const valid = std.json.validate(arena, line) catch |err| return err;
        return .{ .defect = if (valid) .not_an_object else .not_json };
    }
    var scanner: std.json.Scanner = .initCompleteInput(arena, line);
    defer scanner.deinit();

    return parseObject(arena, &scanner, options) catch |err| switch (err) {
        error.OutOfMemory => error.OutOfMemory,
        error.UnexpectedEndOfInput => .{ .defect = .cut_off },
        error.WrongType => .{ .defect = .wrong_type },
        error.DuplicateKey => .{ .defect = .duplicate_key },
        error.TooDeep => .{ .defect = .too_deep },
        else => .{ .defect = .not_json },
    };
}

fn parseObject(arena: Allocator, scanner: *std.json.Scanner, options: InstructionOptions) !Line {
    var instruction: ?[]const u8 = null;
    var output: ?[]const u8 = null;
    var input: ?[]const u8 = null;
    var input_seen = false;
    std.debug.assert(try scanner.next() == .object_begin);
    while (true) {
        const key = switch (try scanner.nextAlloc(arena, .alloc_if_needed)) {
            inline .string, .allocated_string => |s| s,
            .object_end => break,
            else => return error.SyntaxError,
        };
        if (std.mem.eql(u8, key, "instruction")) {
            if (instruction != null) return error.DuplicateKey;
            instruction = try text(arena, scanner);
        } else if (std.mem.eql(u8, key, "output")) {
            if (output != null) return error.DuplicateKey;
            output = try text(arena, scanner);
        } else if (std.mem.eql(u8, key, "input")) {
            if (input_seen) return error.DuplicateKey;
            input_seen = true;
            if (try scanner.peekNextTokenType() == .null) {
                _ = try scanner.next();
            } else {
                const given = try text(arena, scanner);
                if (given.len > 0) input = given;
            }
        } else try skipValue(scanner, options.max_depth);
    }
    // Anything behind the object makes the line something else than one object.
    if (try scanner.next() != .end_of_document) return error.SyntaxError;
    const asked = instruction orelse return .{ .defect = .missing_instruction };
    const answer = output orelse return .{ .defect = .missing_output };
    for ([_][]const u8{ asked, input orelse "", answer }) |s|
        if (std.mem.findScalar(u8, s, 0) != null) return .{ .defect = .nul_character };
    if (isBlank(asked) or isBlank(answer)) return .{ .defect = .empty_text };
    return .{ .sample = .{ .instruction = asked, .input = input, .output = answer, .line = 0 } };
}

fn text(arena: Allocator, scanner: *std.json.Scanner) ![]const u8 {
    if (try scanner.peekNextTokenType() != .string) return error.WrongType;
    return (try scanner.nextAlloc(arena, .alloc_always)).allocated_string;
}

/// The scanner keeps one bit a level, so depth costs little; the limit is for whoever reads the line after us.
fn skipValue(scanner: *std.json.Scanner, max_depth: usize) !void {
    const start = scanner.stackHeight();
    while (true) {
        switch (try scanner.next()) {
            .partial_number, .partial_string => continue,
            .partial_string_escaped_1, .partial_string_escaped_2 => continue,
            .partial_string_escaped_3, .partial_string_escaped_4 => continue,
            .end_of_document => return error.UnexpectedEndOfInput,
            else => {},
        }
        if (scanner.stackHeight() > max_depth) return error.TooDeep;
        // Inside an array or object a complete token at this height ends the value, except a key's.
        if (scanner.stackHeight() == start) return;
    }
}

fn isBlank(s: []const u8) bool {
    return std.mem.trim(u8, s, " \t\r\n").len == 0;
}

const testing = std.testing;

test "the three fields are read, extra fields, blank lines, CRLF and a byte order mark are fine" {
    const samples = try parseInstructionDataset(
        testing.allocator,
        "\xef\xbb\xbf{\"instruction\": \"Say hi\", \"output\": \"Hi \\u00e9\\ud83d\\ude00\"}\r\n\n" ++
            "  {\"id\": {\"a\": [1, {\"b\": null}]}, \"instruction\": \"Add\", \"input\": \"1 2\", \"output\": \"3\", \"tags\": []}\n" ++
            "{\"instruction\": \"x\", \"input\": \"\", \"output\": \"y\"}\n" ++
            "{\"instruction\": \"x\", \"input\": null, \"output\": \"y\"}",
    );
    defer samples.deinit();

    try testing.expectEqual(4, samples.items.len);
    try testing.expectEqualStrings("Say hi", samples.items[0].instruction);
    try testing.expectEqualStrings("Hi é😀", samples.items[0].output);
    try testing.expectEqual(null, samples.items[0].input);
    try testing.expectEqualStrings("1 2", samples.items[1].input.?);
    try testing.expectEqual(3, samples.items[1].line);
    try testing.expectEqual(null, samples.items[2].input);
    try testing.expectEqual(null, samples.items[3].input);
}

test "an empty text has no samples" {
    for ([_][]const u8{ "", "\n", "\r\n \n", "\xef\xbb\xbf" }) |body| {
        const samples = try parseInstructionDataset(testing.allocator, body);
        defer samples.deinit();
        try testing.expectEqual(0, samples.items.len);
    }
}

fn expectDefect(line: []const u8, expected: Defect) !void {
    var report: InstructionReport = .{};
    const body = try std.mem.concat(testing.allocator, u8, &.{ "{\"instruction\":\"a\",\"output\":\"b\"}\n", line });
    defer testing.allocator.free(body);

    try testing.expectError(error.InvalidInstruction, parseInstructionDatasetOptions(testing.allocator, body, .{ .max_depth = 8, .max_line_bytes = 200 }, &report));
    try testing.expectEqual(2, report.first.?.line);
    try testing.expectEqual(expected, report.first.?.defect);
    const skipped = try parseInstructionDatasetOptions(testing.allocator, body, .{ .skip_invalid = true, .max_depth = 8, .max_line_bytes = 200 }, &report);
    defer skipped.deinit();
    try testing.expectEqual(1, skipped.items.len);
    try testing.expectEqual(1, report.defects.get(expected));
    try testing.expectEqual(1, report.skipped());
}

test "each defect is told apart and counted" {
    try expectDefect("hello", .not_json);
    try expectDefect("{\"instruction\": \"a\", \"output\": b}", .not_json);
    try expectDefect("{\"instruction\":\"a\",\"output\":\"b\"} {}", .not_json);
    try expectDefect("{\"instruction\":\"a\",\"output\":\"b\"}{\"instruction\":\"a\",\"output\":\"b\"}", .not_json);
    try expectDefect("{\"instruction\":\"a\",\"output\":\"\\ud800\"}", .not_json);
    try expectDefect("{\"instruction\":\"a\",\"output\":\"cut he", .cut_off);
    try expectDefect("{\"instruction\":\"a\",\"output\"", .cut_off);
    try expectDefect("{", .cut_off);
    try expectDefect("[\"instruction\"]", .not_an_object);
    try expectDefect("null", .not_an_object);
    try expectDefect("{\"output\":\"b\"}", .missing_instruction);
    try expectDefect("{}", .missing_instruction);
    try expectDefect("{\"instruction\":\"a\"}", .missing_output);
    try expectDefect("{\"instruction\":1,\"output\":\"b\"}", .wrong_type);
    try expectDefect("{\"instruction\":\"a\",\"output\":null}", .wrong_type);
    try expectDefect("{\"instruction\":\"a\",\"output\":\"b\",\"input\":{}}", .wrong_type);
    try expectDefect("{\"instruction\":\"a\",\"output\":\" \\n\"}", .empty_text);
    try expectDefect("{\"instruction\":\"a\",\"instruction\":\"a\",\"output\":\"b\"}", .duplicate_key);
    try expectDefect("{\"instruction\":\"a\",\"input\":null,\"input\":\"b\",\"output\":\"b\"}", .duplicate_key);
    try expectDefect("{\"instruction\":\"a\",\"output\":\"\xff\"}", .invalid_utf8);
    try expectDefect("{\"instruction\":\"a\",\"output\":\"\x00\"}", .nul_character);
    try expectDefect("{\"instruction\":\"a\",\"output\":\"\\u0000\"}", .nul_character);
    try expectDefect("{\"x\":[[[[[[[[1]]]]]]]],\"instruction\":\"a\",\"output\":\"b\"}", .too_deep);
    try expectDefect("{\"instruction\":\"a\",\"output\":\"" ++ @as([200]u8, @splat('x')) ++ "\"}", .too_long);
}

test "nesting up to the limit passes" {
    var report: InstructionReport = .{};
    const samples = try parseInstructionDatasetOptions(
        testing.allocator,
        "{\"x\":[[[[[[[1]]]]]]],\"instruction\":\"a\",\"output\":\"b\"}",
        .{ .max_depth = 8 },
        &report,
    );
    defer samples.deinit();
    try testing.expectEqual(1, samples.items.len);
}

test "every cut of a good line is refused, none crashes" {
    const good = "{\"instruction\":\"a\\u00e9\\\"\",\"n\":[1.5e3,true,{\"k\":null}],\"output\":\"é😀\"}";
    for (1..good.len) |len| {
        try testing.expectError(error.InvalidInstruction, parseInstructionDataset(testing.allocator, good[0..len]));
    }
}

test "damaged lines give samples or a counted defect, never anything else" {
    const good = "{\"instruction\":\"a\\u00e9\",\"n\":[1.5e3,true,{\"k\":null}],\"input\":null,\"output\":\"é\"}\n{\"instruction\":\"x\",\"output\":\"y\"}";
    var prng: base.Prng = .init(9);
    for (0..2000) |_| {
        var body: [good.len]u8 = good.*;
        for (0..@intCast(1 + prng.below(3))) |_| body[@intCast(prng.below(body.len))] = @truncate(prng.next());
        var report: InstructionReport = .{};
        const samples = try parseInstructionDatasetOptions(testing.allocator, &body, .{ .skip_invalid = true }, &report);
        defer samples.deinit();
        try testing.expectEqual(samples.items.len, report.samples);
        for (samples.items) |sample| {
            try testing.expect(sample.instruction.len > 0 and sample.output.len > 0);
            try testing.expect(std.unicode.utf8ValidateSlice(sample.instruction));
            try testing.expect(std.unicode.utf8ValidateSlice(sample.output));
        }
    }
}

test "the report reads as a sentence" {
    var report: InstructionReport = .{};
    const samples = try parseInstructionDatasetOptions(testing.allocator, "{}\n{\"instruction\":\"a\",\"output\":\"b\"}\n7\n", .{ .skip_invalid = true }, &report);
    defer samples.deinit();
    var buffer: [200]u8 = undefined;
    const sentence = try std.mem.print(&buffer, "{f}", .{&report});
    try testing.expectEqualStrings("line 1 has no \"instruction\" (and 1 more bad lines)", sentence);
    try testing.expectEqual(1, report.samples);
    try testing.expectEqual(0, report.blank_lines);
}

test "running out of memory anywhere leaks nothing" {
    try testing.checkAllAllocationFailures(testing.allocator, struct {
        fn run(gpa: Allocator) !void {
            const samples = try parseInstructionDataset(gpa, "{\"instruction\":\"a\\n\",\"e\":[[1]],\"output\":\"b\"}\n");
            samples.deinit();
        }
    }.run, .{});
}
