//! A conversation: who said what and when, with the settings it was held under; and its JSON form.
//!
//! The JSON is ABI's: {id, name, created_at, updated_at, config{…}, messages[{role, content, timestamp}]}, times
//! in seconds since 1970 (UTC). Text is always valid UTF-8 here: other bytes become U+FFFD on the way in.
//! Does not know: folders, models, terminals.

const std = @import("std");
const base = @import("base");
const Allocator = std.mem.Allocator;

pub const Role = enum { system, user, assistant, tool };

pub const Message = struct {
    role: Role,
    content: []const u8,
    /// Seconds since 1970; 0 = unknown (files of ABI left it out).
    timestamp: i64 = 0,
    /// Of a tool's answer: the tool's name. Of an assistant's turn: the tool it calls.
    tool: ?[]const u8 = null,
    /// Of a call: a JSON object.
    arguments: ?[]const u8 = null,
    /// What the assistant thought before a call.
    thinking: ?[]const u8 = null,

    pub fn calls(self: Message) bool {
        return self.role == .assistant and self.tool != null;
    }
};

pub const Config = struct {
    memory_type: []const u8 = "sliding_window",
    max_tokens: u32 = 1024,
    temperature: f32 = 0.7,
    model: []const u8 = "default",
    system_prompt: ?[]const u8 = null,
};

pub const ParseError = error{ OutOfMemory, InvalidSession };

pub const max_name_bytes = 200;

/// Tells one state of a file from another.
pub const Kept = struct { inode: u64, written_ns: i96 };

pub const Session = struct {
    arena: std.heap.ArenaAllocator,
    id: []const u8,
    name: []const u8,
    created_at: i64,
    updated_at: i64,
    config: Config,
    messages: std.ArrayList(Message) = .empty,
    /// The file as it was last read or written by us; null = there is none yet.
    kept: ?Kept = null,

    /// A new conversation without messages, with a new id. Strings are copied.
    pub fn init(gpa: Allocator, io: std.Io, name: []const u8, config: Config) error{OutOfMemory}!Session {
        var arena: std.heap.ArenaAllocator = .init(gpa);
        errdefer arena.deinit();

        const a = arena.allocator();
        const now = nowSeconds(io);
        var copy = config;
        copy.memory_type = try cleanText(a, config.memory_type);
        copy.model = try cleanText(a, config.model);
        if (config.system_prompt) |text| copy.system_prompt = try cleanText(a, text);
        const id = try newId(a, io);
        const clean_name = try cleanText(a, if (name.len > 0) name else id);
        return .{
            .arena = arena,
            .id = id,
            .name = clean_name,
            .created_at = now,
            .updated_at = now,
            .config = copy,
        };
    }

    /// Changes what is given; null leaves what is there. Strings are copied.
    pub fn setConfig(self: *Session, changes: struct {
        model: ?[]const u8 = null,
        temperature: ?f32 = null,
        max_tokens: ?u32 = null,
        system_prompt: ?[]const u8 = null,
    }) error{OutOfMemory}!void {
        const a = self.arena.allocator();
        if (changes.model) |text| self.config.model = try cleanText(a, text);
        if (changes.system_prompt) |text| self.config.system_prompt = try cleanText(a, text);
        if (changes.temperature) |value| self.config.temperature = value;
        if (changes.max_tokens) |value| self.config.max_tokens = value;
    }

    pub fn deinit(self: *Session) void {
        self.arena.deinit();
        self.* = undefined;
    }

    /// Appends a message said now. `content` is copied.
    pub fn add(self: *Session, io: std.Io, role: Role, content: []const u8) error{OutOfMemory}!void {
        return self.addMessage(io, .{ .role = role, .content = content });
    }

    /// The same with all that a message can have; its timestamp is set.
    pub fn addMessage(self: *Session, io: std.Io, message: Message) error{OutOfMemory}!void {
        const a = self.arena.allocator();
        var copy = message;
        copy.timestamp = nowSeconds(io);
        copy.content = try cleanText(a, message.content);
        inline for (.{ "tool", "arguments", "thinking" }) |field| {
            if (@field(message, field)) |text| @field(copy, field) = try cleanText(a, text);
        }
        try self.messages.append(a, copy);
        self.updated_at = copy.timestamp;
    }

    /// The call that waits for a tool's answer, when there is one.
    pub fn openCall(self: *const Session) ?Message {
        const said = self.messages.items;
        return if (said.len > 0 and said[said.len - 1].calls()) said[said.len - 1] else null;
    }

    /// Takes back the last message, if there is one: a question that got no answer.
    pub fn dropLast(self: *Session) void {
        _ = self.messages.pop();
    }

    /// Forgets all messages. Id, name and settings stay.
    pub fn clear(self: *Session, io: std.Io) void {
        self.messages.clearRetainingCapacity();
        self.updated_at = nowSeconds(io);
    }

    /// From now on another conversation than the one in the file, with the same words.
    pub fn takeNewId(self: *Session, io: std.Io) error{OutOfMemory}!void {
        self.id = try newId(self.arena.allocator(), io);
        self.kept = null;
    }

    pub fn rename(self: *Session, name: []const u8) error{OutOfMemory}!void {
        self.name = try cleanText(self.arena.allocator(), name);
    }

    pub fn writeJson(self: *const Session, out: *std.Io.Writer) std.Io.Writer.Error!void {
        const form: Json = .{
            .id = self.id,
            .name = self.name,
            .created_at = self.created_at,
            .updated_at = self.updated_at,
            .config = self.config,
            .messages = self.messages.items,
        };
        try std.json.Stringify.value(form, .{ .whitespace = .indent_2, .emit_null_optional_fields = false }, out);
        try out.writeByte('\n');
    }

    /// Reads what `writeJson` wrote. Extra fields are passed over. On failure `diag` says what is wrong.
    pub fn parse(gpa: Allocator, text: []const u8, diag: *base.Diagnostic) ParseError!Session {
        var arena: std.heap.ArenaAllocator = .init(gpa);
        errdefer arena.deinit();

        const a = arena.allocator();
        var scanner: std.json.Scanner = .initCompleteInput(a, text);
        var where: std.json.Diagnostics = .{};
        scanner.enableDiagnostics(&where);
        const form = std.json.parseFromTokenSourceLeaky(Json, a, &scanner, .{
            .ignore_unknown_fields = true,
            .allocate = .alloc_always,
        }) catch |err| switch (err) {
            error.OutOfMemory => return error.OutOfMemory,
            else => {
                diag.set("line {d}: not a session file: {s}. Restore it from a copy, or delete it", .{ where.getLine(), damage(err) });
                return error.InvalidSession;
            },
        };
        if (!validId(form.id)) {
            diag.set("id is not of the form [A-Za-z0-9_-]{{1,64}}. Correct the field \"id\"", .{});
            return error.InvalidSession;
        }
        var messages: std.ArrayList(Message) = .empty;
        try messages.appendSlice(a, form.messages);
        return .{
            .arena = arena,
            .id = form.id,
            .name = form.name,
            .created_at = form.created_at,
            .updated_at = form.updated_at,
            .config = form.config,
            .messages = messages,
        };
    }
};

const Json = struct {
    id: []const u8,
    name: []const u8,
    created_at: i64,
    updated_at: i64,
    config: Config = .{},
    messages: []const Message,
};

fn damage(err: anyerror) []const u8 {
    return switch (err) {
        error.SyntaxError => "it is no JSON",
        error.UnexpectedEndOfInput => "it is cut off",
        error.MissingField => "a field is missing",
        error.DuplicateField => "a field is there twice",
        else => "a field has the wrong kind of value",
    };
}

/// The name in a session file that `parse` refuses, as far as it can be read. In `arena`.
pub fn nameInDamaged(arena: Allocator, text: []const u8) error{OutOfMemory}!?[]const u8 {
    var scanner: std.json.Scanner = .initCompleteInput(arena, text);
    var depth: usize = 0;
    var is_key = true;
    var is_name = false;
    while (true) {
        const token = scanner.nextAlloc(arena, .alloc_always) catch |err| switch (err) {
            error.OutOfMemory => return error.OutOfMemory,
            else => return null,
        };
        switch (token) {
            .end_of_document => return null,
            .object_begin, .array_begin => {
                if (depth == 0 and token == .array_begin) return null;
                depth += 1;
                is_key = depth == 1;
            },
            .object_end, .array_end => {
                depth -= 1;
                is_key = depth == 1;
            },
            .allocated_string => |word| if (depth == 1) {
                if (!is_key and is_name) return word;
                is_name = is_key and std.mem.eql(u8, word, "name");
                is_key = !is_key;
            },
            else => if (depth == 1) {
                is_key = true;
            },
        }
    }
}

/// Letters, digits, `_` and `-`, 1 to 64 of them: an id is a file name and must not be able to be a path.
pub fn validId(id: []const u8) bool {
    if (id.len == 0 or id.len > 64) return false;
    for (id) |c| switch (c) {
        'A'...'Z', 'a'...'z', '0'...'9', '_', '-' => {},
        else => return false,
    };
    return true;
}

/// `20260119-101502-9f86d081884c7d65`: sorts by time; 64 random bits keep two programs apart.
fn newId(gpa: Allocator, io: std.Io) error{OutOfMemory}![]u8 {
    var random: [8]u8 = undefined;
    io.random(&random);
    const t = civil(nowSeconds(io));
    return std.fmt.allocPrint(gpa, "{d:0>4}{d:0>2}{d:0>2}-{d:0>2}{d:0>2}{d:0>2}-{x}", .{
        t.year, t.month, t.day, t.hour, t.minute, t.second, &random,
    });
}

/// RFC 3339 in UTC, for people.
pub fn writeTime(out: *std.Io.Writer, seconds: i64) std.Io.Writer.Error!void {
    const t = civil(seconds);
    try out.print("{d:0>4}-{d:0>2}-{d:0>2}T{d:0>2}:{d:0>2}:{d:0>2}Z", .{
        t.year, t.month, t.day, t.hour, t.minute, t.second,
    });
}

const Civil = struct { year: u16, month: u8, day: u8, hour: u8, minute: u8, second: u8 };

fn civil(seconds: i64) Civil {
    // Years 1970 to 9999: a wrong clock must not be able to break a file name.
    const clamped: u64 = @intCast(std.math.clamp(seconds, 0, 253_402_300_799));
    const epoch: std.time.epoch.EpochSeconds = .{ .secs = clamped };
    const day = epoch.getEpochDay().calculateYearDay();
    const month = day.calculateMonthDay();
    const clock = epoch.getDaySeconds();
    return .{
        .year = day.year,
        .month = month.month.numeric(),
        .day = month.day_index + 1,
        .hour = clock.getHoursIntoDay(),
        .minute = clock.getMinutesIntoHour(),
        .second = clock.getSecondsIntoMinute(),
    };
}

fn nowSeconds(io: std.Io) i64 {
    return std.Io.Timestamp.now(io, .real).toSeconds();
}

/// A copy in which every byte that is not UTF-8 became U+FFFD: JSON strings hold nothing else.
pub fn cleanText(gpa: Allocator, text: []const u8) error{OutOfMemory}![]u8 {
    if (std.unicode.utf8ValidateSlice(text)) return gpa.dupe(u8, text);
    var out: std.ArrayList(u8) = .empty;
    errdefer out.deinit(gpa);

    var i: usize = 0;
    while (i < text.len) {
        const len = std.unicode.utf8ByteSequenceLength(text[i]) catch 1;
        const valid = i + len <= text.len and std.unicode.utf8ValidateSlice(text[i..][0..len]);
        try out.appendSlice(gpa, if (valid) text[i..][0..len] else "\u{fffd}");
        i += if (valid) len else 1;
    }
    return out.toOwnedSlice(gpa);
}

const testing = std.testing;

test "two conversations never share an id, and ids are file names" {
    var a: Session = try .init(testing.allocator, testing.io, "x", .{});
    defer a.deinit();
    var b: Session = try .init(testing.allocator, testing.io, "x", .{});
    defer b.deinit();

    try testing.expect(!std.mem.eql(u8, a.id, b.id));
    try testing.expect(validId(a.id));
    try testing.expect(a.created_at > 1_700_000_000);
}

test "a conversation survives the trip through JSON" {
    var session: Session = try .init(testing.allocator, testing.io, "Zoë \"q\"", .{ .system_prompt = "Be kind.\n" });
    defer session.deinit();
    try session.add(testing.io, .user, "line one\nline \x00 two \\ π");
    try session.add(testing.io, .assistant, "broken \xff byte");

    var text: std.Io.Writer.Allocating = .init(testing.allocator);
    defer text.deinit();
    try session.writeJson(&text.writer);
    var diag: base.Diagnostic = .{};
    var back: Session = try .parse(testing.allocator, text.written(), &diag);
    defer back.deinit();

    try testing.expectEqualStrings(session.id, back.id);
    try testing.expectEqualStrings(session.name, back.name);
    try testing.expectEqual(session.updated_at, back.updated_at);
    try testing.expectEqualStrings("Be kind.\n", back.config.system_prompt.?);
    try testing.expectEqual(@as(usize, 2), back.messages.items.len);
    try testing.expectEqualStrings("line one\nline \x00 two \\ π", back.messages.items[0].content);
    try testing.expectEqualStrings("broken \u{fffd} byte", back.messages.items[1].content);
    try testing.expectEqual(Role.assistant, back.messages.items[1].role);
    try testing.expectEqual(session.messages.items[1].timestamp, back.messages.items[1].timestamp);
}

test "a session file of ABI, without times of messages, is read" {
    const text =
        \\{"id":"session_0","name":"default","created_at":0,"updated_at":0,
        \\ "config":{"memory_type":"sliding_window","max_tokens":4000,"temperature":0.70,"model":"default"},
        \\ "messages":[{"role":"user","content":"hello"}]}
    ;
    var diag: base.Diagnostic = .{};
    var session: Session = try .parse(testing.allocator, text, &diag);
    defer session.deinit();
    try testing.expectEqual(@as(u32, 4000), session.config.max_tokens);
    try testing.expectEqual(@as(i64, 0), session.messages.items[0].timestamp);
}

test "damaged session files are refused with the line" {
    const cases = [_][]const u8{
        "",
        "[]",
        "{\n\"id\": \"a\",\n\"name\": 3}",
        "{\"id\":\"../a\",\"name\":\"x\",\"created_at\":0,\"updated_at\":0,\"messages\":[]}",
        "{\"id\":\"a\",\"name\":\"x\",\"created_at\":0,\"updated_at\":0,\"messages\":[{\"role\":\"root\",\"content\":\"\"}]}",
        "{\"id\":\"a\",\"name\":\"x\",\"created_at\":0,\"updated_at\":0,\"messages\":[]} tail",
    };
    for (cases) |text| {
        var diag: base.Diagnostic = .{};
        try testing.expectError(error.InvalidSession, Session.parse(testing.allocator, text, &diag));
        try testing.expect(diag.text().len > 0);
    }
}

test "the name of a damaged session is read as far as it goes" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const a = arena.allocator();
    try testing.expectEqualStrings("diary", (try nameInDamaged(a, "{\"id\":\"name\",\"x\":[{\"name\":\"no\"}],\"n\":1,\"name\":\"di\\u0061ry\",\"mess")).?);
    for ([_][]const u8{ "", "{", "[\"name\",\"x\"]", "{\"name\":", "{\"name\":3}", "{\"name\":\"cut", "}" }) |text| {
        try testing.expectEqual(null, try nameInDamaged(a, text));
    }
}

test "ids that could be paths are no ids" {
    const bad = [_][]const u8{ "", ".", "..", "a/b", "a\\b", "a.json", "a\x00", "ä", "a b", "C:", &@as([65]u8, @splat('a')) };
    for (bad) |id| try testing.expect(!validId(id));
    try testing.expect(validId("session_0"));
    try testing.expect(validId(&@as([64]u8, @splat('Z'))));
}

test "times read as people write them" {
    var buffer: [32]u8 = undefined;
    var out: std.Io.Writer = .fixed(&buffer);
    try writeTime(&out, 1_768_817_702);
    try testing.expectEqualStrings("2026-01-19T10:15:02Z", out.buffered());
}
