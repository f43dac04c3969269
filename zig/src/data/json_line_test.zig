//! The line parser against the standard library's, on valid lines, on damaged ones, and at every cut.

const std = @import("std");
const json_line = @import("json_line.zig");
const Parser = json_line.Parser;
const Value = json_line.Value;
const Defect = json_line.Defect;
const testing = std.testing;

/// The twin: whether the standard library takes the line, and that it found the same.
fn agree(parser: *Parser, line: []const u8) !void {
    errdefer std.debug.print("line: {s}\nbytes: {any}\n", .{ line, line });
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();

    const theirs: ?std.json.Value = std.json.parseFromSliceLeaky(std.json.Value, arena.allocator(), line, .{
        .duplicate_field_behavior = .@"error",
        .parse_numbers = false,
    }) catch |err| switch (err) {
        error.OutOfMemory => return err,
        else => null,
    };
    const ours: ?Value = parser.parseSlice(line) catch |err| switch (err) {
        error.OutOfMemory => return err,
        error.Defective => null,
    };
    if (ours == null) try testing.expect(parser.defect_at <= line.len);
    // What only we refuse.
    if (ours == null and theirs != null) return testing.expect(parser.defect == .nul_character or parser.defect == .invalid_utf8);
    if (theirs == null and ours != null) {
        // Its own reading of a text that is no line: a newline is space to it, never to us, so nothing is left here.
        return error.WeTakeWhatTheyRefuse;
    }
    if (ours) |value| try same(value, theirs.?);
}

fn same(ours: Value, theirs: std.json.Value) !void {
    switch (theirs) {
        .null => try testing.expectEqual(.null, ours.kind()),
        .bool => |b| try testing.expectEqual(if (b) json_line.Kind.true else .false, ours.kind()),
        .number_string => |digits| {
            try testing.expectEqual(.number, ours.kind());
            try testing.expectEqualStrings(digits, ours.node().text());
        },
        .string => |text| try testing.expectEqualStrings(text, ours.string().?),
        .array => |list| {
            var items = ours.items();
            for (list.items) |want| try same(items.next().?, want);
            try testing.expectEqual(null, items.next());
        },
        .object => |map| {
            var members = ours.members();
            var it = map.iterator();
            while (it.next()) |want| {
                const member = members.next().?;
                try testing.expectEqualStrings(want.key_ptr.*, member.name);
                try same(member.value, want.value_ptr.*);
                try same(ours.get(want.key_ptr.*).?, want.value_ptr.*);
            }
            try testing.expectEqual(null, members.next());
        },
        else => return error.Unexpected,
    }
}

const samples = [_][]const u8{
    "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi \\u00e9\\ud83d\\ude00 \\\"q\\\" \\\\ \\/ \\b\\f\\n\\r\\t\"}, {\"role\": \"assistant\", \"content\": \"é漢😀\"}]}",
    "{\"text\": \"a long plain text that is longer than a vector, and then a bit more than that \\n and on\", \"n\": [1, -2.5e+3, 0, 0.25, 1E9, true, false, null, {}, []]}",
    "  {\"a\" : {\"b\":{\"c\":[[[[\"\"]]]]}} , \"\" : \"\"}\t\r",
    "[\"\\u0041\\u00ff\\u0800\\uffff\\udbff\\udfff\", \"x\"]",
    "12345678901234567890123456789",
    "\"only text\"",
    "{\"a\":1,\"b\":1,\"c\":1,\"d\":1,\"e\":1,\"f\":1,\"g\":1,\"h\":1,\"i\":1,\"j\":1,\"k\":1,\"l\":1,\"m\":1,\"n\":1,\"o\":1,\"p\":2}",
};

test "valid lines mean what the standard library says" {
    var parser: Parser = .init(testing.allocator, .{});
    defer parser.deinit();

    for (samples) |line| {
        _ = try parser.parseSlice(line);
        try agree(&parser, line);
    }
}

test "every cut and every changed byte gets the answer the standard library gives" {
    var parser: Parser = .init(testing.allocator, .{});
    defer parser.deinit();

    for (samples) |line| {
        for (0..line.len) |len| if (std.mem.trim(u8, line[0..len], " \t\r").len > 0) try agree(&parser, line[0..len]);
        const changed = try testing.allocator.dupe(u8, line);
        defer testing.allocator.free(changed);

        for (changed, line) |*byte, before| {
            for ("\"\\{}[],:0-+.eEuabn \x00\x1f\x7f\x80\xed\xff") |other| {
                byte.* = other;
                try agree(&parser, changed);
            }
            byte.* = before;
        }
    }
}

test "damaged and spliced lines get the answer the standard library gives" {
    var prng: std.Random.DefaultPrng = .init(testing.random_seed);
    errdefer std.debug.print("seed {d}\n", .{testing.random_seed});
    const random = prng.random();
    var parser: Parser = .init(testing.allocator, .{});
    defer parser.deinit();

    const pieces = [_][]const u8{ "\"", "\\", "\\\"", "\\u12", "\\ud800", "\\udc00", "{", "}", "[", "]", ",", ":", "1", "-0", "1.e", "true", "nul", "\"a\":", "é", "\xed\xa0\x80", " ", "\x01", "\"text\"" };
    var line: std.ArrayList(u8) = .empty;
    defer line.deinit(testing.allocator);

    for (0..6000) |_| {
        line.clearRetainingCapacity();
        const from = samples[random.uintLessThan(usize, samples.len)];
        const other = samples[random.uintLessThan(usize, samples.len)];
        try line.appendSlice(testing.allocator, from[0..random.uintAtMost(usize, from.len)]);
        if (random.boolean()) try line.appendSlice(testing.allocator, other[random.uintAtMost(usize, other.len)..]);
        for (0..random.uintLessThan(usize, 4)) |_| {
            const at = random.uintAtMost(usize, line.items.len);
            try line.insertSlice(testing.allocator, at, pieces[random.uintLessThan(usize, pieces.len)]);
        }
        if (std.mem.trim(u8, line.items, " \t\r").len > 0) try agree(&parser, line.items);
    }
}

const ones: [140]u8 = blk: {
    var text: [140]u8 = undefined;
    for (&text, 0..) |*byte, i| byte.* = if (i % 2 == 0) '1' else ',';
    break :blk text;
};

fn expectDefect(line: []const u8, defect: Defect, at: usize) !void {
    errdefer std.debug.print("line: {s}\n", .{line});
    var parser: Parser = .init(testing.allocator, .{ .max_depth = 4, .max_bytes = 200, .max_values = 60 });
    defer parser.deinit();

    try testing.expectError(error.Defective, parser.parseSlice(line));
    try testing.expectEqual(defect, parser.defect);
    try testing.expectEqual(at, parser.defect_at);
    // The same inside a longer text: what lies around it changes nothing.
    var buffer: [600]u8 = @splat('"');
    @memcpy(buffer[77..][0..line.len], line);
    buffer[77 + line.len] = '\n';
    try parser.load(&buffer);
    try testing.expectError(error.Defective, parser.parse(77, 77 + line.len));
    try testing.expectEqual(defect, parser.defect);
    try testing.expectEqual(at, parser.defect_at);
}

test "each defect has its name and its column" {
    try expectDefect("{\"a\": \"cut", .cut_off, 10);
    try expectDefect("{\"a\"", .cut_off, 4);
    try expectDefect("[1, ", .cut_off, 4);
    try expectDefect("tru", .cut_off, 3);
    try expectDefect("\"\\u00", .cut_off, 5);
    try expectDefect("\"\\ud800\\", .cut_off, 8);
    try expectDefect("\"\\", .cut_off, 2);
    try expectDefect("-", .cut_off, 1);
    try expectDefect("{\"a\": x}", .unexpected, 6);
    try expectDefect("[1  }", .unexpected, 4);
    try expectDefect("{a: 1}", .unexpected, 1);
    try expectDefect("[1,]", .unexpected, 3);
    try expectDefect("NaN", .unexpected, 0);
    try expectDefect("{} {}", .trailing, 3);
    try expectDefect("1 2", .trailing, 2);
    try expectDefect("\"\\x\"", .bad_escape, 2);
    try expectDefect("\"\\u12g4\"", .bad_escape, 5);
    try expectDefect("01", .bad_number, 0);
    try expectDefect("[1.]", .bad_number, 3);
    try expectDefect("[1e+]", .bad_number, 4);
    try expectDefect("\"a\tb\"", .control_character, 2);
    try expectDefect("\"a\\n\x1f\"", .control_character, 4);
    try expectDefect("\"a\x00b\"", .nul_character, 2);
    try expectDefect("\x00", .nul_character, 0);
    try expectDefect("{\"a\": \"x\\u0000\"}", .nul_character, 8);
    try expectDefect("{\"a\": \"\xff\"}", .invalid_utf8, 7);
    try expectDefect("[\"\\ud800\"]", .lone_surrogate, 2);
    try expectDefect("[\"\\udc00\\ud800\"]", .lone_surrogate, 2);
    try expectDefect("[\"\\ud800\\u0041\"]", .lone_surrogate, 2);
    try expectDefect("{\"a\": 1, \"\\u0061\": 2}", .duplicate_key, 9);
    try expectDefect("[[[[[1]]]]]", .too_deep, 4);
    try expectDefect("\"" ++ @as([200]u8, @splat('x')) ++ "\"", .too_long, 0);
    try expectDefect("[" ++ ones ++ "1]", .too_many_values, 119);
}

test "many keys are checked as few are" {
    var line: std.ArrayList(u8) = .empty;
    defer line.deinit(testing.allocator);

    var parser: Parser = .init(testing.allocator, .{});
    defer parser.deinit();

    for ([_]usize{ 2, 11, 12, 13, 14, 1000 }) |count| for ([_]bool{ false, true }) |twice| {
        line.clearRetainingCapacity();
        try line.append(testing.allocator, '{');
        var expected: usize = 0;
        for (0..count) |i| {
            if (i + 1 == count) expected = line.items.len;
            try line.print(testing.allocator, "\"k{d}\":[{{}}],", .{if (twice and i + 1 == count) i / 2 else i});
        }
        line.items[line.items.len - 1] = '}';
        if (!twice) {
            _ = try parser.parseSlice(line.items);
            continue;
        }
        try testing.expectError(error.Defective, parser.parseSlice(line.items));
        try testing.expectEqual(.duplicate_key, parser.defect);
        try testing.expectEqual(expected, parser.defect_at);
    };
}

test "texts without escapes are slices of the line" {
    var parser: Parser = .init(testing.allocator, .{});
    defer parser.deinit();

    const line = "{\"text\": \"as it is\", \"other\": \"a\\tb\"}";
    const value = try parser.parseSlice(line);
    const text = value.get("text").?.string().?;
    try testing.expectEqual(@intFromPtr(line.ptr) + 10, @intFromPtr(text.ptr));
    try testing.expectEqualStrings("a\tb", value.get("other").?.string().?);
    try testing.expectEqual(null, value.get("none"));
    try testing.expectEqualStrings(line, value.node().text());
    const nested = try parser.parseSlice(" [ {\"a\": [1, {} ] } , 2]\r");
    try testing.expectEqualStrings("[ {\"a\": [1, {} ] } , 2]", nested.node().text());
    var items = nested.items();
    try testing.expectEqualStrings("{\"a\": [1, {} ] }", items.next().?.node().text());
    try testing.expectEqual(null, nested.string());
}

test "a long line of one kind takes linear time" {
    const gpa = testing.allocator;
    var parser: Parser = .init(gpa, .{});
    defer parser.deinit();

    for ([_][]const u8{ "\\n", "\\u6f22", "a", "\\\\", "\\\"" }) |unit| {
        const line = try gpa.alloc(u8, 2 + (1 << 20) / unit.len * unit.len);
        defer gpa.free(line);

        line[0] = '"';
        var at: usize = 1;
        while (at + 1 < line.len) : (at += unit.len) @memcpy(line[at..][0..unit.len], unit);
        line[at] = '"';
        const value = try parser.parseSlice(line);
        try testing.expect(value.string().?.len >= (1 << 20) / 6);
    }
}

test "running out of memory anywhere leaks nothing" {
    try testing.checkAllAllocationFailures(testing.allocator, struct {
        fn run(gpa: std.mem.Allocator) !void {
            var parser: Parser = .init(gpa, .{});
            defer parser.deinit();

            for (samples) |line| _ = parser.parseSlice(line) catch |err| switch (err) {
                error.OutOfMemory => return err,
                error.Defective => return error.TestUnexpectedResult,
            };
        }
    }.run, .{});
}
