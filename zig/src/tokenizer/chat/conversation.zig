//! A chat as people hand it over: turns, tools, and what must be true of them before a format may write them.
//!
//! Refuses rather than drops: a turn the format has no place for is a named error with the turn's number, from 1.
//! Does not know: tokenizers, ids.

const std = @import("std");
const base = @import("base");
const description_file = @import("description.zig");
const python_json = @import("python_json.zig");
const unicode = @import("../unicode.zig");

const Allocator = std.mem.Allocator;
const Description = description_file.Description;
const Diagnostic = base.Diagnostic;
const Value = std.json.Value;
const printable = base.bytes.printable;

pub const Role = description_file.Role;

pub const Call = struct {
    name: []const u8,
    /// JSON text of an object.
    arguments: []const u8 = "{}",
    id: ?[]const u8 = null,
};

pub const Message = struct {
    role: Role,
    content: []const u8 = "",
    /// Only the abbey format shows it, before a user's line.
    emotion: ?[]const u8 = null,
    /// The assistant's reasoning before its answer.
    thinking: ?[]const u8 = null,
    calls: []const Call = &.{},
    /// Of a tool's answer: the tool's name and the call's id, where they are known.
    name: ?[]const u8 = null,
    call_id: ?[]const u8 = null,
};

/// Which assistant turns are in the loss.
pub const Loss = enum {
    /// All of them.
    assistant,
    /// The last one.
    completion,
    /// Every token of the chat, whoever wrote it.
    everything,
};

pub const Options = struct {
    /// End with the beginning of an assistant turn, for the model to go on.
    add_generation_prompt: bool = false,
    /// Make a loss mask, and hold the chat to what can be learned from.
    train: bool = false,
    loss: Loss = .assistant,
    /// Assistant turns before this one (from 0) are not in the loss.
    learn_from: usize = 0,
    /// JSON text of each tool on offer: {"type": "function", "function": {"name", "description", "parameters"}}.
    tools: []const []const u8 = &.{},
    /// Year, month and day as 2025-06-28, for formats that name the day. Null: an error where one is needed.
    date: ?[]const u8 = null,
    /// For formats that ask the model to think little or much (harmony).
    reasoning: Reasoning = .medium,
};

/// How much to think before an answer.
pub const Reasoning = enum { low, medium, high };

pub const Error = error{
    OutOfMemory,
    /// There is no turn.
    EmptyChat,
    /// A turn to be learned says nothing.
    EmptyTurn,
    /// A turn's role cannot stand there.
    WrongRole,
    /// A tool's answer that no call asked for.
    ToolWithoutCall,
    /// A call that the next turns do not answer.
    UnansweredCall,
    /// More calls in one turn than the format can write.
    TooManyCalls,
    /// The format has no tools.
    ToolsUnsupported,
    /// The format has no place for something a turn holds.
    UnwritableTurn,
    /// Tools or arguments are not the JSON they must be.
    InvalidTools,
    /// The format names the day and none was given.
    MissingDate,
};

/// Whether `format` can write the chat without losing any of it.
pub fn check(format: []const u8, description: *const Description, messages: []const Message, options: Options, diag: *Diagnostic) Error!void {
    if (messages.len == 0) {
        diag.set("the chat has no turns; give it at least a user's", .{});
        return error.EmptyChat;
    }
    if (options.tools.len > 0 and !description.tools) {
        diag.set("the chat offers tools, and the format {s} has none; choose a format with tools, such as chatml, qwen, llama3_1 or harmony", .{format});
        return error.ToolsUnsupported;
    }
    const last_assistant = lastAssistant(messages);
    var open: usize = 0;
    var caller: usize = 0;
    for (messages, 1..) |message, turn| {
        if (message.role == .tool) {
            if (!description.tools) return noTools(format, turn, diag);
            if (open == 0) {
                diag.set("turn {d} is a tool's answer, and no call before it waits for one; put the assistant's tool_calls before it, or remove it", .{turn});
                return error.ToolWithoutCall;
            }
            try checkAnswer(messages[caller], messages[caller + 1 .. turn], turn, diag);
            open -= 1;
            continue;
        }
        if (open > 0) return unanswered(messages[caller], caller + 1, diag);
        if (message.role == .system and turn > 1 and !description.late_system) {
            diag.set("turn {d} is a system turn, and the format {s} has a place for one only at the beginning; join it to the first turn", .{ turn, format });
            return error.WrongRole;
        }
        if (message.calls.len > 0) {
            if (message.role != .assistant) {
                diag.set("turn {d} is of role {t} and calls tools; only an assistant's can", .{ turn, message.role });
                return error.WrongRole;
            }
            try checkCalls(format, description, message, turn, diag);
            open = message.calls.len;
            caller = turn - 1;
        }
        if (!options.train or message.role != .assistant) continue;
        const learned = turn > options.learn_from and (options.loss != .completion or turn - 1 == last_assistant);
        const said = unicode.trim(message.content).len > 0;
        if (learned and !said and message.calls.len == 0) {
            diag.set("turn {d} is the assistant's and empty: there is nothing to learn but silence; fill it or remove it", .{turn});
            return error.EmptyTurn;
        }
        if (learned and !description.thinking and spoken(message.thinking)) {
            diag.set("turn {d} has reasoning, and the format {s} has no place for it; choose harmony or from-tokenizer, or put it into the content", .{ turn, format });
            return error.UnwritableTurn;
        }
    }
    if (open > 0 and options.add_generation_prompt) return unanswered(messages[caller], caller + 1, diag);
}

/// Index of the last assistant turn; the number of turns when there is none.
pub fn lastAssistant(messages: []const Message) usize {
    var at = messages.len;
    while (at > 0) {
        at -= 1;
        if (messages[at].role == .assistant) return at;
    }
    return messages.len;
}

fn checkCalls(format: []const u8, description: *const Description, message: Message, turn: usize, diag: *Diagnostic) Error!void {
    if (!description.tools) return noTools(format, turn, diag);
    if (description.single_call and message.calls.len > 1) {
        diag.set("turn {d} calls {d} tools, and the format {s} writes one call a turn; make a turn and an answer of each", .{ turn, message.calls.len, format });
        return error.TooManyCalls;
    }
    const text = unicode.trim(message.content).len > 0;
    const thought = spoken(message.thinking);
    const misfit: ?[]const u8 = switch (description.beside_call) {
        .nothing => if (text) "text" else if (thought) "reasoning" else null,
        .text => if (thought) "reasoning" else null,
        .text_and_thinking => null,
        .text_or_thinking => if (text and thought) "text and reasoning" else null,
    };
    if (misfit) |what| {
        diag.set("turn {d} has {s} beside a tool call, and the format {s} has no place for it; remove it, or make it a turn of its own", .{ turn, what, format });
        return error.UnwritableTurn;
    }
}

/// That the newest of `answers` belongs to a call of `caller` by the name or id it gives.
fn checkAnswer(caller: Message, answers: []const Message, turn: usize, diag: *Diagnostic) Error!void {
    const answer = answers[answers.len - 1];
    if (answer.call_id) |id| {
        var with_id = false;
        for (caller.calls) |call| if (call.id) |known| {
            with_id = true;
            if (std.mem.eql(u8, known, id)) return;
        };
        if (with_id) {
            diag.set("turn {d} answers the call {f}, which the turn before did not make; correct tool_call_id", .{ turn, printable(id) });
            return error.ToolWithoutCall;
        }
    }
    if (answer.name) |name| {
        for (caller.calls) |call| if (std.mem.eql(u8, call.name, name)) return;
        diag.set("turn {d} is an answer of the tool {f}, and {f} was called; correct the name", .{ turn, printable(name), printable(caller.calls[0].name) });
        return error.ToolWithoutCall;
    }
}

fn noTools(format: []const u8, turn: usize, diag: *Diagnostic) Error {
    diag.set("turn {d} uses a tool, and the format {s} has none; choose a format with tools, such as chatml, qwen, llama3_1 or harmony", .{ turn, format });
    return error.ToolsUnsupported;
}

fn unanswered(caller: Message, turn: usize, diag: *Diagnostic) Error {
    diag.set("turn {d} calls the tool {f} and not every call is answered before the next turn; add a turn of role tool for each call, or end the chat there", .{ turn, printable(caller.calls[0].name) });
    return error.UnansweredCall;
}

fn spoken(text: ?[]const u8) bool {
    return if (text) |words| words.len > 0 else false;
}

// ---- from JSON ----

pub const Chat = struct {
    messages: []const Message,
    tools: []const []const u8 = &.{},
};

pub const ReadError = Error || error{InvalidChat};

/// A chat from JSON: a list of messages, or an object with `messages` and `tools`. All belongs to `arena`.
pub fn read(arena: Allocator, json: []const u8, diag: *Diagnostic) ReadError!Chat {
    const root = std.json.parseFromSliceLeaky(Value, arena, json, python_json.parse_options) catch |err| switch (err) {
        error.OutOfMemory => return error.OutOfMemory,
        else => return wrong(diag, "messages are not valid JSON ({t}): a list of objects with role and content is wanted", .{err}),
    };
    switch (root) {
        .array => |list| return .{ .messages = try readMessages(arena, list.items, diag) },
        .object => |object| {
            const list = object.get("messages") orelse return wrong(diag, "the chat has no \"messages\"", .{});
            if (list != .array) return wrong(diag, "\"messages\" is not a list", .{});
            return .{
                .messages = try readMessages(arena, list.array.items, diag),
                .tools = try readTools(arena, object.get("tools") orelse .null, diag),
            };
        },
        else => return wrong(diag, "messages are not a list of objects with role and content", .{}),
    }
}

/// Tools on offer from JSON: a list of them, or an object with `tools`; each as JSON. All belongs to `arena`.
pub fn toolsOf(arena: Allocator, json: []const u8, diag: *Diagnostic) ReadError![]const []const u8 {
    const root = std.json.parseFromSliceLeaky(Value, arena, json, python_json.parse_options) catch |err| switch (err) {
        error.OutOfMemory => return error.OutOfMemory,
        else => return wrong(diag, "tools are not valid JSON ({t}): a list of functions is wanted", .{err}),
    };
    const list = if (root == .object) root.object.get("tools") orelse .null else root;
    if (list != .array or list.array.items.len == 0) return wrong(diag, "tools are not a list of functions", .{});
    return readTools(arena, list, diag);
}

fn readMessages(arena: Allocator, items: []const Value, diag: *Diagnostic) ReadError![]const Message {
    const out = try arena.alloc(Message, items.len);
    for (out, items, 1..) |*message, item, turn| {
        if (item != .object) return wrong(diag, "turn {d} is not an object with role and content", .{turn});
        const object = item.object;
        const role = try textField(arena, object, "role", turn, diag) orelse return wrong(diag, "turn {d} has no role", .{turn});
        message.* = .{
            .role = roleOf(role) orelse {
                diag.set("turn {d} has the role {f}; known are system, developer, user, assistant and tool", .{ turn, printable(role) });
                return error.WrongRole;
            },
            .content = try contentOf(arena, object.get("content") orelse .null, turn, diag),
            .emotion = try textField(arena, object, "emotion", turn, diag),
            .name = try textField(arena, object, "name", turn, diag),
            .call_id = try textField(arena, object, "tool_call_id", turn, diag),
        };
        for ([_][]const u8{ "thinking", "reasoning_content", "reasoning" }) |key| {
            if (message.thinking == null) message.thinking = try textField(arena, object, key, turn, diag);
        }
        if (object.get("tool_calls")) |calls| message.calls = try readCalls(arena, calls, turn, diag);
    }
    return out;
}

fn roleOf(name: []const u8) ?Role {
    if (std.mem.eql(u8, name, "developer")) return .system;
    if (std.mem.eql(u8, name, "ipython")) return .tool;
    return std.meta.stringToEnum(Role, name);
}

fn textField(arena: Allocator, object: std.json.ObjectMap, key: []const u8, turn: usize, diag: *Diagnostic) ReadError!?[]const u8 {
    _ = arena;
    return switch (object.get(key) orelse return null) {
        .null => null,
        .string => |text| text,
        else => wrong(diag, "turn {d}: {s} is not text", .{ turn, key }),
    };
}

/// Text, nothing, or parts of type text as one.
fn contentOf(arena: Allocator, value: Value, turn: usize, diag: *Diagnostic) ReadError![]const u8 {
    switch (value) {
        .null => return "",
        .string => |text| return text,
        .array => |parts| {
            var whole: std.ArrayList(u8) = .empty;
            for (parts.items) |part| {
                const text = if (part == .object) part.object.get("text") orelse .null else part;
                if (text != .string) return wrong(diag, "turn {d}: content holds a part that is not text", .{turn});
                try whole.appendSlice(arena, text.string);
            }
            return whole.items;
        },
        else => return wrong(diag, "turn {d}: content is not text", .{turn}),
    }
}

fn readCalls(arena: Allocator, value: Value, turn: usize, diag: *Diagnostic) ReadError![]const Call {
    if (value == .null) return &.{};
    if (value != .array) return wrong(diag, "turn {d}: tool_calls is not a list", .{turn});
    const out = try arena.alloc(Call, value.array.items.len);
    for (out, value.array.items) |*call, item| {
        if (item != .object) return wrong(diag, "turn {d}: a tool call is not an object", .{turn});
        const inner = item.object.get("function") orelse item;
        if (inner != .object) return wrong(diag, "turn {d}: the function of a tool call is not an object", .{turn});
        const name = inner.object.get("name") orelse .null;
        if (name != .string) return wrong(diag, "turn {d}: a tool call has no name", .{turn});
        const id = item.object.get("id") orelse .null;
        call.* = .{
            .name = name.string,
            .arguments = switch (inner.object.get("arguments") orelse .null) {
                .null => "{}",
                .string => |text| text,
                else => |given| try jsonText(arena, given, null, diag),
            },
            .id = if (id == .string) id.string else null,
        };
    }
    return out;
}

fn readTools(arena: Allocator, value: Value, diag: *Diagnostic) ReadError![]const []const u8 {
    if (value == .null) return &.{};
    if (value != .array) return wrong(diag, "\"tools\" is not a list", .{});
    const out = try arena.alloc([]const u8, value.array.items.len);
    for (out, value.array.items, 1..) |*text, tool, number| {
        if (tool != .object) return wrong(diag, "tool {d} is not an object", .{number});
        text.* = try jsonText(arena, tool, null, diag);
    }
    return out;
}

/// `value` as Python would write it.
pub fn jsonText(arena: Allocator, value: Value, indent: ?usize, diag: *Diagnostic) Error![]const u8 {
    var out: std.Io.Writer.Allocating = .init(arena);
    python_json.write(&out.writer, value, indent) catch |err| switch (err) {
        error.WriteFailed => return error.OutOfMemory,
        error.TooDeep => {
            diag.set("JSON of a tool is nested deeper than {d} levels", .{python_json.depth_max});
            return error.InvalidTools;
        },
    };
    return out.written();
}

/// The object that `text` is JSON of; `what` names it in the error.
pub fn jsonObject(arena: Allocator, text: []const u8, comptime what: []const u8, diag: *Diagnostic) Error!Value {
    const value = std.json.parseFromSliceLeaky(Value, arena, text, python_json.parse_options) catch |err| switch (err) {
        error.OutOfMemory => return error.OutOfMemory,
        else => .null,
    };
    if (value == .object) return value;
    diag.set(what ++ " are not a JSON object: {f}", .{printable(text)});
    return error.InvalidTools;
}

fn wrong(diag: *Diagnostic, comptime format: []const u8, arguments: anytype) error{InvalidChat} {
    diag.set(format, arguments);
    return error.InvalidChat;
}
