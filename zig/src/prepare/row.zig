//! What a line of rows asks to be learned: the shapes people write, by their columns.
//!
//! | columns | shape |
//! |---|---|
//! | `messages` or `conversations` | a chat; ShareGPT's `from`, `value` are understood |
//! | `prompt`, `completion` | text to continue and its continuation; two lists of messages are a chat |
//! | `instruction`, `input`?, `output` | an instruction, turned into a chat |
//! | `prompt`?, `chosen`, `rejected` | a better and a worse answer: all text, or all lists of messages |
//! | `text` | plain text |
//!
//! A turn may be a tool's, call tools (`tool_calls`) and have reasoning (`thinking`); `tools` are those on offer.
//! Other columns are left alone. Texts of a row are slices of the line, or of the reader's arena, until the next `read`.
//! Does not know: tokenizers, files. `python/abi_train/data/sources.py` says the same in Python; a test compares the two.

const std = @import("std");
const base = @import("base");
const data = @import("data");
const tokenizer = @import("tokenizer");
const Allocator = std.mem.Allocator;
const Value = data.json_line.Value;

pub const Message = tokenizer.Message;

pub const Row = union(enum) {
    text: []const u8,
    completion: struct { prompt: []const u8, completion: []const u8 },
    /// Assistant turns from `learn_from` on are learned.
    chat: struct { messages: []const Message, learn_from: usize = 0, tools: []const []const u8 = &.{} },
    pair: struct { prompt: []const u8, chosen: []const u8, rejected: []const u8 },
    chat_pair: struct { prompt: []const Message, chosen: []const Message, rejected: []const Message, tools: []const []const u8 = &.{} },

    pub fn isPreference(self: Row) bool {
        return self == .pair or self == .chat_pair;
    }
};

/// Why a line is no row. What is counted when bad lines are passed over.
pub const Problem = enum {
    not_json,
    not_utf8,
    line_too_long,
    too_deep,
    too_many_values,
    duplicate_key,
    nul_character,
    lone_surrogate,
    not_an_object,
    unknown_columns,
    not_text,
    empty_text,
    not_messages,
    not_a_message,
    unknown_role,
    no_assistant_turn,
    no_output,
    half_a_pair,
    mixed_pair,
    same_answers,
    nothing_shared,
    empty_answer,
    wrong_tools,
    misplaced_turn,
    unanswered_call,
    unwritable_turn,

    pub fn words(self: Problem) []const u8 {
        return switch (self) {
            .not_json => "not valid JSON",
            .not_utf8 => "not UTF-8",
            .line_too_long => "the line is too long",
            .too_deep => "nested too deeply",
            .too_many_values => "too many values",
            .duplicate_key => "a key is given twice",
            .nul_character => "a NUL character",
            .lone_surrogate => "half of a surrogate pair",
            .not_an_object => "not a JSON object",
            .unknown_columns => "no known columns",
            .not_text => "a column is not text",
            .empty_text => "a text is empty",
            .not_messages => "not a list of messages",
            .not_a_message => "a message is not an object",
            .unknown_role => "a message has an unknown role",
            .no_assistant_turn => "no assistant turn to learn from",
            .no_output => "instruction without output",
            .half_a_pair => "chosen without rejected, or rejected without chosen",
            .mixed_pair => "a pair of text and messages",
            .same_answers => "chosen and rejected are the same",
            .nothing_shared => "no prompt, and nothing chosen and rejected begin with in common",
            .empty_answer => "an answer adds no token to its prompt",
            .wrong_tools => "tools or tool calls that cannot be read",
            .misplaced_turn => "a turn where none of its role can stand",
            .unanswered_call => "a tool call without its answer, or an answer without its call",
            .unwritable_turn => "a turn the chat format has no place for",
        };
    }
};

const roles = [_]struct { []const u8, tokenizer.chat_format.Role }{
    .{ "system", .system },
    .{ "user", .user },
    .{ "human", .user },
    .{ "assistant", .assistant },
    .{ "gpt", .assistant },
    .{ "model", .assistant },
    .{ "bot", .assistant },
};

const known_roles = "system, user, human, assistant, gpt, model, bot";

pub const Error = error{ OutOfMemory, Unusable };

/// Reads rows of a loaded text, line by line.
pub const Reader = struct {
    parser: data.json_line.Parser,
    arena: std.heap.ArenaAllocator,
    problem: Problem = .not_json,
    /// What is wrong with the last line, in full.
    said: base.Diagnostic = .{},
    /// Byte of the line at which its JSON is broken, from 0; null when the JSON is sound.
    column: ?usize = null,

    pub fn init(gpa: Allocator, limits: data.json_line.Limits) Reader {
        return .{ .parser = .init(gpa, limits), .arena = .init(gpa) };
    }

    pub fn deinit(self: *Reader) void {
        self.parser.deinit();
        self.arena.deinit();
    }

    /// The row of `text[start..end]` of the text the parser has loaded. On `Unusable` see `problem`, `said` and `column`.
    pub fn read(self: *Reader, start: usize, end: usize) Error!Row {
        _ = self.arena.reset(.{ .retain_with_limit = 1 << 20 });
        self.column = null;
        const value = self.parser.parse(start, end) catch |err| switch (err) {
            error.OutOfMemory => return error.OutOfMemory,
            error.Defective => return self.broken(end - start),
        };
        if (value.kind() != .object) return self.refuse(.not_an_object, "not a JSON object", .{});
        var columns: Columns = .{};
        var members = value.members();
        while (members.next()) |member| inline for (@typeInfo(Columns).@"struct".field_names) |name| {
            if (std.mem.eql(u8, member.name, name)) @field(columns, name) = member.value;
        };
        if (columns.chosen != null or columns.rejected != null) return self.preference(&columns);
        inline for (.{ "messages", "conversations" }) |key| if (@field(columns, key)) |list|
            return .{ .chat = .{ .messages = try self.chat(list, key, true, columns.emotion), .tools = try self.offered(columns.tools) } };
        if (columns.prompt) |prompt| if (columns.completion) |completion| return self.continuation(prompt, completion, columns.tools);
        if (columns.instruction) |instruction| return self.instruct(instruction, &columns);
        if (columns.text) |text| return .{ .text = try self.string(text, "text", .{}) };
        return self.unknown(value);
    }

    const Columns = struct {
        chosen: ?Value = null,
        rejected: ?Value = null,
        prompt: ?Value = null,
        messages: ?Value = null,
        conversations: ?Value = null,
        completion: ?Value = null,
        instruction: ?Value = null,
        input: ?Value = null,
        output: ?Value = null,
        text: ?Value = null,
        emotion: ?Value = null,
        tools: ?Value = null,
    };

    fn broken(self: *Reader, length: usize) error{Unusable} {
        self.column = self.parser.defect_at;
        self.problem = switch (self.parser.defect) {
            .cut_off, .unexpected, .trailing, .bad_escape, .bad_number, .control_character => .not_json,
            .invalid_utf8 => .not_utf8,
            .too_long => .line_too_long,
            .too_deep => .too_deep,
            .too_many_values => .too_many_values,
            .duplicate_key => .duplicate_key,
            .nul_character => .nul_character,
            .lone_surrogate => .lone_surrogate,
        };
        if (self.parser.defect == .too_long) {
            self.said.set("the line has more than {d} bytes", .{self.parser.limits.max_bytes});
        } else self.said.set("{s}, at byte {d} of {d}", .{ self.parser.defect.words(), self.parser.defect_at + 1, length });
        return error.Unusable;
    }

    fn refuse(self: *Reader, problem: Problem, comptime format: []const u8, arguments: anytype) error{Unusable} {
        @branchHint(.cold);
        self.problem = problem;
        self.said.set(format, arguments);
        return error.Unusable;
    }

    fn string(self: *Reader, value: Value, comptime name: []const u8, arguments: anytype) Error![]const u8 {
        const text = value.string() orelse return self.refuse(.not_text, name ++ " is not text", arguments);
        if (isBlank(text)) return self.refuse(.empty_text, name ++ " is empty", arguments);
        return text;
    }

    fn unknown(self: *Reader, value: Value) Error {
        var names: std.ArrayList([]const u8) = .empty;
        var members = value.members();
        while (members.next()) |member| try names.append(self.arena.allocator(), member.name);
        std.mem.sort([]const u8, names.items, {}, struct {
            fn lessThan(_: void, a: []const u8, b: []const u8) bool {
                return std.mem.lessThan(u8, a, b);
            }
        }.lessThan);
        const found = if (names.items.len == 0) "none" else try std.mem.join(self.arena.allocator(), ", ", names.items);
        return self.refuse(.unknown_columns, "no known columns (messages, conversations, prompt and completion, prompt with chosen and " ++
            "rejected, instruction and output, or text); found: {s}", .{clip(found, 120)});
    }

    fn chat(self: *Reader, value: Value, comptime key: []const u8, answered: bool, emotion: ?Value) Error![]const Message {
        if (value.kind() != .array or value.node().end == value.index + 1)
            return self.refuse(.not_messages, key ++ " is not a list of messages", .{});
        var messages: std.ArrayList(Message) = .empty;
        var items = value.items();
        while (items.next()) |item| {
            if (isElaborate(item)) {
                messages.clearRetainingCapacity();
                try messages.appendSlice(self.arena.allocator(), try self.elaborate(value, key));
                break;
            }
            try messages.append(self.arena.allocator(), try self.message(item, key, messages.items.len));
        }
        var has_answer = false;
        for (messages.items) |m| has_answer = has_answer or m.role == .assistant;
        if (answered and !has_answer) return self.refuse(.no_assistant_turn, key ++ " has no assistant turn to learn from", .{});
        if (feeling(emotion)) |felt| for (messages.items) |*m| if (m.role == .user) {
            if (m.emotion == null) m.emotion = felt;
            break;
        };
        return messages.items;
    }

    fn message(self: *Reader, item: Value, comptime key: []const u8, at: usize) Error!Message {
        if (item.kind() != .object) return self.refuse(.not_a_message, key ++ "[{d}] is not an object", .{at});
        const given = item.get("role") orelse item.get("from") orelse
            return self.refuse(.unknown_role, key ++ "[{d}] has no role; known are " ++ known_roles, .{at});
        const name = given.string() orelse
            return self.refuse(.unknown_role, key ++ "[{d}] has a role that is not text; known are " ++ known_roles, .{at});
        const role = roleOf(name) orelse
            return self.refuse(.unknown_role, key ++ "[{d}] has role '{s}'; known are " ++ known_roles, .{ at, clip(name, 60) });
        const content = item.get("content") orelse item.get("value") orelse
            return self.refuse(.not_text, key ++ "[{d}].content is not text", .{at});
        return .{ .role = role, .content = try self.string(content, key ++ "[{d}].content", .{at}), .emotion = feeling(item.get("emotion")) };
    }

    /// Whether a turn has more than a role and a text of its own.
    fn isElaborate(item: Value) bool {
        if (item.kind() != .object) return false;
        var members = item.members();
        while (members.next()) |member| {
            for ([_][]const u8{ "tool_calls", "thinking", "reasoning_content", "reasoning", "tool_call_id" }) |name|
                if (std.mem.eql(u8, member.name, name) and member.value.kind() != .null) return true;
            if (std.mem.eql(u8, member.name, "content") and member.value.kind() == .array) return true;
            if (std.mem.eql(u8, member.name, "role")) if (member.value.string()) |role|
                for ([_][]const u8{ "tool", "ipython", "developer" }) |name| if (std.mem.eql(u8, role, name)) return true;
        }
        return false;
    }

    /// Turns as the renderer reads them, with calls, answers and reasoning.
    fn elaborate(self: *Reader, list: Value, comptime key: []const u8) Error![]const Message {
        var diag: base.Diagnostic = .{};
        const chat_ = tokenizer.chat_format.readChat(self.arena.allocator(), list.node().text(), &diag) catch |err| return switch (err) {
            error.OutOfMemory => error.OutOfMemory,
            error.WrongRole => self.refuse(.unknown_role, key ++ ": {s}", .{diag.text()}),
            else => self.refuse(.not_a_message, key ++ ": {s}", .{diag.text()}),
        };
        for (chat_.messages, 0..) |m, i| if (isBlank(m.content)) switch (m.role) {
            .tool => {},
            .assistant => if (m.calls.len == 0) return self.refuse(.empty_text, key ++ "[{d}].content is empty", .{i}),
            .system, .user => return self.refuse(.empty_text, key ++ "[{d}].content is empty", .{i}),
        };
        return chat_.messages;
    }

    /// The tools on offer, each as JSON text: a list, or a text that is one.
    fn offered(self: *Reader, tools: ?Value) Error![]const []const u8 {
        const given = tools orelse return &.{};
        const list = switch (given.kind()) {
            .null => return &.{},
            .array, .string => given.node().text(),
            else => return self.refuse(.wrong_tools, "tools is not a list", .{}),
        };
        if (isBlank(list)) return &.{};
        const a = self.arena.allocator();
        var diag: base.Diagnostic = .{};
        const read_ = tokenizer.chat_format.readChat(a, try std.mem.concat(a, u8, &.{ "{\"messages\": [], \"tools\": ", list, "}" }), &diag) catch |err| return switch (err) {
            error.OutOfMemory => error.OutOfMemory,
            else => self.refuse(.wrong_tools, "tools: {s}", .{diag.text()}),
        };
        return read_.tools;
    }

    /// The emotion of a row or a turn, which only the abbey format shows.
    fn feeling(value: ?Value) ?[]const u8 {
        const text = (value orelse return null).string() orelse return null;
        return if (isBlank(text)) null else text;
    }

    fn continuation(self: *Reader, prompt: Value, completion: Value, tools: ?Value) Error!Row {
        if (prompt.kind() == .array and completion.kind() == .array) {
            const before = try self.chat(prompt, "prompt", false, null);
            const after = try self.chat(completion, "completion", true, null);
            const all = try std.mem.concat(self.arena.allocator(), Message, &.{ before, after });
            return .{ .chat = .{ .messages = all, .learn_from = before.len, .tools = try self.offered(tools) } };
        }
        return .{ .completion = .{
            .prompt = try self.string(prompt, "prompt", .{}),
            .completion = try self.string(completion, "completion", .{}),
        } };
    }

    fn instruct(self: *Reader, instruction: Value, columns: *const Columns) Error!Row {
        const output = columns.output orelse return self.refuse(.no_output, "instruction without output", .{});
        var question = try self.string(instruction, "instruction", .{});
        if (columns.input) |input| if (input.kind() != .null) {
            const extra = input.string() orelse return self.refuse(.not_text, "input is not text", .{});
            if (!isBlank(extra)) question = try std.mem.concat(self.arena.allocator(), u8, &.{ question, "\n\n", extra });
        };
        const messages = try self.arena.allocator().alloc(Message, 2);
        messages[0] = .{ .role = .user, .content = question };
        messages[1] = .{ .role = .assistant, .content = try self.string(output, "output", .{}) };
        return .{ .chat = .{ .messages = messages } };
    }

    fn preference(self: *Reader, columns: *const Columns) Error!Row {
        const chosen = columns.chosen orelse return self.refuse(.half_a_pair, "rejected without chosen: a pair needs both", .{});
        const rejected = columns.rejected orelse return self.refuse(.half_a_pair, "chosen without rejected: a pair needs both", .{});
        const prompt: ?Value = if (columns.prompt) |p| (if (p.kind() == .null) null else p) else null;
        if ((chosen.kind() == .array) != (rejected.kind() == .array))
            return self.refuse(.mixed_pair, "chosen and rejected must both be text or both lists of messages", .{});
        if (chosen.kind() == .array) return self.chatPair(prompt, chosen, rejected, columns);
        if (prompt) |p| if (p.kind() == .array)
            return self.refuse(.mixed_pair, "prompt is a list of messages, but chosen and rejected are text; use one shape", .{});
        const better = try self.string(chosen, "chosen", .{});
        const worse = try self.string(rejected, "rejected", .{});
        if (prompt == null) {
            if (std.mem.eql(u8, better, worse)) return self.same();
            const border = sharedText(better, worse);
            if (border == 0) return self.refuse(.nothing_shared, "no prompt, and chosen and rejected begin with nothing in common", .{});
            return .{ .pair = .{ .prompt = better[0..border], .chosen = better[border..], .rejected = worse[border..] } };
        }
        const before = try self.string(prompt.?, "prompt", .{});
        if (std.mem.eql(u8, better, worse)) return self.same();
        return .{ .pair = .{ .prompt = before, .chosen = better, .rejected = worse } };
    }

    fn chatPair(self: *Reader, prompt: ?Value, chosen: Value, rejected: Value, columns: *const Columns) Error!Row {
        const emotion = columns.emotion;
        const shared = prompt == null or prompt.?.kind() != .array; // A text beside lists repeats what both begin with.
        var better = try self.chat(chosen, "chosen", true, if (shared) emotion else null);
        var worse = try self.chat(rejected, "rejected", true, if (shared) emotion else null);
        var before: []const Message = undefined;
        if (shared) {
            const least = @min(better.len, worse.len);
            var border: usize = 0;
            while (border < least and sameMessage(better[border], worse[border])) border += 1;
            if (border == least) {
                if (better.len == worse.len) return self.same();
                border -= 1; // As TRL: the last turn both have is an answer.
            }
            if (border == 0) return self.refuse(.nothing_shared, "no prompt, and chosen and rejected begin with nothing in common", .{});
            before = better[0..border];
            better = better[border..];
            worse = worse[border..];
        } else before = try self.chat(prompt.?, "prompt", false, emotion);
        if (better.len == worse.len) {
            for (better, worse) |a, b| {
                if (!sameMessage(a, b)) break;
            } else return self.same();
        }
        return .{ .chat_pair = .{ .prompt = before, .chosen = better, .rejected = worse, .tools = try self.offered(columns.tools) } };
    }

    fn same(self: *Reader) error{Unusable} {
        return self.refuse(.same_answers, "chosen and rejected are the same: nothing can be learned from the pair", .{});
    }
};

fn sameMessage(a: Message, b: Message) bool {
    return a.role == b.role and std.mem.eql(u8, a.content, b.content);
}

fn roleOf(name: []const u8) ?tokenizer.chat_format.Role {
    for (roles) |known| if (std.ascii.eqlIgnoreCase(name, known[0])) return known[1];
    return null;
}

/// Length in bytes of the prompt two different texts share, counted in characters, as TRL's `extract_prompt` takes it: without
/// a space at its end, and never all of the shorter one.
fn sharedText(a: []const u8, b: []const u8) usize {
    const least = @min(a.len, b.len);
    var at: usize = std.mem.findDiff(u8, a[0..least], b[0..least]) orelse least;
    const differs = at < least;
    if (!differs) at -= 1; // Into the last character of the shorter one.
    while (at > 0 and a[at] & 0xc0 == 0x80) at -= 1;
    if (differs and at > 0 and a[at - 1] == ' ') at -= 1;
    return at;
}

/// Nothing but what Python calls whitespace.
fn isBlank(text: []const u8) bool {
    if (text.len == 0) return true;
    if (text[0] > ' ' and text[0] < 0x7f) return false;
    return tokenizer.unicode.trim(text).len == 0;
}

/// At most `limit` bytes of `text`, whole characters.
fn clip(text: []const u8, limit: usize) []const u8 {
    if (text.len <= limit) return text;
    var end = limit;
    while (end > 0 and text[end] & 0xc0 == 0x80) end -= 1;
    return text[0..end];
}

const testing = std.testing;

fn expectRow(line: []const u8, expected: Row) !void {
    var reader: Reader = .init(testing.allocator, .{});
    defer reader.deinit();

    try reader.parser.load(line);
    const row = reader.read(0, line.len) catch |err| {
        std.debug.print("{s}\n", .{reader.said.text()});
        return err;
    };
    try testing.expectEqualDeep(expected, row);
}

const user: Message = .{ .role = .user, .content = "hi" };
const assistant: Message = .{ .role = .assistant, .content = "hello" };

test "each shape is understood" {
    try expectRow("{\"text\": \"a\"}", .{ .text = "a" });
    try expectRow("{\"prompt\": \"a\", \"completion\": \"b\", \"text\": 7}", .{ .completion = .{ .prompt = "a", .completion = "b" } });
    try expectRow("{\"messages\": [{\"role\": \"User\", \"content\": \"hi\"}, {\"role\": \"assistant\", \"content\": \"hello\"}]}", .{ .chat = .{ .messages = &.{ user, assistant } } });
    try expectRow("{\"conversations\": [{\"from\": \"human\", \"value\": \"hi\"}, {\"from\": \"gpt\", \"value\": \"hello\", \"emotion\": \" \"}], \"emotion\": \"joy\"}", .{ .chat = .{ .messages = &.{ .{ .role = .user, .content = "hi", .emotion = "joy" }, assistant } } });
    try expectRow("{\"prompt\": [{\"role\": \"user\", \"content\": \"hi\"}], \"completion\": [{\"role\": \"bot\", \"content\": \"hello\"}]}", .{ .chat = .{ .messages = &.{ user, assistant }, .learn_from = 1 } });
    try expectRow("{\"instruction\": \"Add\", \"input\": \"1 2\", \"output\": \"3\"}", .{ .chat = .{ .messages = &.{ .{ .role = .user, .content = "Add\n\n1 2" }, .{ .role = .assistant, .content = "3" } } } });
    try expectRow("{\"instruction\": \"hi\", \"input\": \" \", \"output\": \"hello\"}", .{ .chat = .{ .messages = &.{ user, assistant } } });
    try expectRow("{\"prompt\": \"p\", \"chosen\": \"a\", \"rejected\": \"b\"}", .{ .pair = .{ .prompt = "p", .chosen = "a", .rejected = "b" } });
    try expectRow("{\"chosen\": \"The sky is blue\", \"rejected\": \"The sky is bold\"}", .{ .pair = .{ .prompt = "The sky is b", .chosen = "lue", .rejected = "old" } });
    try expectRow("{\"chosen\": \"é è ab\", \"rejected\": \"é è \"}", .{ .pair = .{ .prompt = "é è", .chosen = " ab", .rejected = " " } });
    try expectRow("{\"chosen\": \"xé\", \"rejected\": \"xè\"}", .{ .pair = .{ .prompt = "x", .chosen = "é", .rejected = "è" } });
    const answer: Message = .{ .role = .assistant, .content = "no" };
    const turns = "[{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\",\"content\":\"hello\"}]";
    const others = "[{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\",\"content\":\"no\"}]";
    try expectRow("{\"prompt\": \"hi\", \"chosen\": " ++ turns ++ ", \"rejected\": " ++ others ++ "}", .{ .chat_pair = .{ .prompt = &.{user}, .chosen = &.{assistant}, .rejected = &.{answer} } });
}

test "calls, answers, reasoning and tools are read" {
    try expectRow("{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}, {\"role\": \"assistant\", \"content\": null, \"thinking\": \"hm\", " ++
        "\"tool_calls\": [{\"id\": \"1\", \"function\": {\"name\": \"f\", \"arguments\": {\"x\": 1}}}]}, {\"role\": \"tool\", \"content\": \"2\"}], " ++
        "\"tools\": [{\"type\": \"function\"}]}", .{ .chat = .{ .messages = &.{
        user,
        .{ .role = .assistant, .thinking = "hm", .calls = &.{.{ .name = "f", .arguments = "{\"x\": 1}", .id = "1" }} },
        .{ .role = .tool, .content = "2" },
    }, .tools = &.{"{\"type\": \"function\"}"} } });
}

fn expectProblem(line: []const u8, problem: Problem, said: []const u8) !void {
    errdefer std.debug.print("line: {s}\n", .{line});
    var reader: Reader = .init(testing.allocator, .{ .max_bytes = 300, .max_depth = 6, .max_values = 40 });
    defer reader.deinit();

    try reader.parser.load(line);
    try testing.expectError(error.Unusable, reader.read(0, line.len));
    try testing.expectEqual(problem, reader.problem);
    if (std.mem.find(u8, reader.said.text(), said) == null) {
        std.debug.print("said: {s}\n", .{reader.said.text()});
        return error.TestUnexpectedResult;
    }
}

test "each problem has its kind and its words" {
    try expectProblem("{\"text\": \"cut", .not_json, "ends too early), at byte 14 of 13");
    try expectProblem("{\"text\": \"\xff\"}", .not_utf8, "not UTF-8, at byte 11");
    try expectProblem("{\"text\": \"\\ud800\"}", .lone_surrogate, "surrogate");
    try expectProblem("{\"text\": \"a\\u0000\"}", .nul_character, "NUL");
    try expectProblem("{\"text\": \"a\", \"text\": \"b\"}", .duplicate_key, "twice");
    try expectProblem("{\"text\": [[[[[[[]]]]]]]}", .too_deep, "deeply");
    try expectProblem("{\"text\": \"" ++ @as([300]u8, @splat('x')) ++ "\"}", .line_too_long, "more than 300 bytes");
    try expectProblem("[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]", .too_many_values, "too many");
    try expectProblem("[1]", .not_an_object, "not a JSON object");
    try expectProblem("{\"question\": \"a\", \"answer\": 1}", .unknown_columns, "found: answer, question");
    try expectProblem("{}", .unknown_columns, "found: none");
    try expectProblem("{\"text\": 5}", .not_text, "text is not text");
    try expectProblem("{\"text\": \" \\n\u{3000}\"}", .empty_text, "text is empty");
    try expectProblem("{\"messages\": []}", .not_messages, "messages is not a list of messages");
    try expectProblem("{\"messages\": [\"a\"]}", .not_a_message, "messages[0] is not an object");
    try expectProblem("{\"messages\": [{\"role\": \"robot\", \"content\": \"a\"}]}", .unknown_role, "messages[0] has role 'robot'");
    try expectProblem("{\"messages\": [{\"content\": \"a\"}]}", .unknown_role, "no role");
    try expectProblem("{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}", .no_assistant_turn, "no assistant turn");
    try expectProblem("{\"messages\": [{\"role\": \"user\", \"content\": \"\"}]}", .empty_text, "messages[0].content is empty");
    try expectProblem("{\"messages\": [{\"role\": \"tool\", \"content\": 5}]}", .not_a_message, "messages: turn 1: content is not text");
    try expectProblem("{\"messages\": [{\"role\": \"assistant\", \"content\": null, \"tool_calls\": []}]}", .empty_text, "messages[0].content is empty");
    try expectProblem("{\"messages\": [{\"role\": \"assistant\", \"content\": \"a\"}], \"tools\": 5}", .wrong_tools, "tools is not a list");
    try expectProblem("{\"messages\": [{\"role\": \"assistant\", \"content\": \"a\"}], \"tools\": \"[1\"}", .wrong_tools, "tools: ");
    try expectProblem("{\"instruction\": \"a\"}", .no_output, "without output");
    try expectProblem("{\"chosen\": \"a\"}", .half_a_pair, "chosen without rejected");
    try expectProblem("{\"chosen\": \"a\", \"rejected\": []}", .mixed_pair, "both be text");
    try expectProblem("{\"chosen\": \"a\", \"rejected\": \"a\"}", .same_answers, "the same");
    try expectProblem("{\"prompt\": \"p\", \"chosen\": \"a\", \"rejected\": \"a\"}", .same_answers, "the same");
    try expectProblem("{\"chosen\": \"a\", \"rejected\": \"b\"}", .nothing_shared, "nothing in common");
}
