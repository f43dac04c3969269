//! What answers: the interface between a conversation and the model behind it, and the ear that hears the answer.

const std = @import("std");
const base = @import("base");
const Message = @import("session.zig").Message;
const visible = @import("visible.zig");
const Reasoning = @import("tokenizer").chat_format.Reasoning;

/// How to answer. Null = the backend's own default (for Ollama: what the model's Modelfile says).
pub const Settings = struct {
    temperature: ?f32 = null,
    top_k: ?u32 = null,
    top_p: ?f32 = null,
    min_p: ?f32 = null,
    repeat_penalty: ?f32 = null,
    seed: ?u64 = null,
    max_tokens: ?u32 = null,
    context: ?u32 = null,
    /// How much to think, for models that are asked.
    reasoning: ?Reasoning = null,
};

pub const Stop = enum {
    /// The model said that it is done.
    end,
    /// It calls a tool: the listener's `call`.
    call,
    /// `max_tokens` was reached.
    length,
    /// The context is full.
    context,
    /// The person asked to stop.
    interrupted,
};

pub const Reply = struct {
    stop: Stop,
    prompt_tokens: u64 = 0,
    /// Of the prompt, how many were still in the cache from the turn before.
    reused_tokens: u64 = 0,
    answer_tokens: u64 = 0,
    prompt_ns: u64 = 0,
    answer_ns: u64 = 0,
};

pub const AnswerError = error{
    OutOfMemory,
    /// The server is not there.
    Unreachable,
    /// The server does not have the model.
    ModelMissing,
    /// The server said no, broke off, or answered nonsense.
    BackendFailed,
    /// The conversation does not fit in the model's context.
    ContextFull,
    /// The model's numbers are NaN or infinite.
    BrokenModel,
    /// The answer could not be shown.
    WriteFailed,
};

/// Where thoughts are shown, apart from the answer. What cannot be shown of them is dropped.
pub const Thoughts = struct {
    out: *std.Io.Writer,
    color: bool,
    /// Only that there are some.
    is_brief: bool = false,
    filter: visible.Filter = .{},
    state: enum { none, open, closed } = .none,

    fn show(self: *Thoughts, bytes: []const u8) void {
        self.write(bytes) catch {
            self.out.end = 0;
        };
    }

    fn write(self: *Thoughts, bytes: []const u8) std.Io.Writer.Error!void {
        if (self.state != .open) {
            if (self.is_brief and self.state == .closed) return;
            if (self.color) try self.out.writeAll("\x1b[2m");
            if (self.is_brief) try self.out.writeAll("(thinking; /think shows it)");
        }
        self.state = .open;
        if (self.is_brief) return self.end();
        try self.filter.write(self.out, bytes);
        try self.out.flush();
    }

    /// The answer begins, or everything is over.
    fn end(self: *Thoughts) void {
        if (self.state != .open) return;
        self.state = .closed;
        self.close() catch {
            self.out.end = 0;
        };
    }

    fn close(self: *Thoughts) std.Io.Writer.Error!void {
        if (!self.is_brief) try self.filter.finish(self.out);
        if (self.color) try self.out.writeAll("\x1b[0m");
        try self.out.writeByte('\n');
        try self.out.flush();
    }
};

/// Takes the answer as it comes: keeps it whole, shows what is visible of it.
pub const Listener = struct {
    gpa: std.mem.Allocator,
    out: *std.Io.Writer,
    /// Above 0 once the person asked to stop.
    stop: *const std.atomic.Value(u32),
    text: std.ArrayList(u8) = .empty,
    filter: visible.Filter = .{},
    /// What the model thought, shown to those who want it.
    thinking: std.ArrayList(u8) = .empty,
    thoughts: ?*Thoughts = null,
    /// Whom a call is for, and its arguments.
    recipient: std.ArrayList(u8) = .empty,
    arguments: std.ArrayList(u8) = .empty,

    pub fn deinit(self: *Listener) void {
        self.text.deinit(self.gpa);
        self.thinking.deinit(self.gpa);
        self.recipient.deinit(self.gpa);
        self.arguments.deinit(self.gpa);
        self.* = undefined;
    }

    pub fn think(self: *Listener, bytes: []const u8) error{OutOfMemory}!void {
        try self.thinking.appendSlice(self.gpa, bytes);
        if (self.thoughts) |thoughts| thoughts.show(bytes);
    }

    pub fn hear(self: *Listener, bytes: []const u8) error{ OutOfMemory, WriteFailed }!void {
        if (self.thoughts) |thoughts| thoughts.end();
        try self.text.appendSlice(self.gpa, bytes);
        try self.filter.write(self.out, bytes);
        try self.out.flush();
    }

    pub fn finish(self: *Listener) error{WriteFailed}!void {
        if (self.thoughts) |thoughts| thoughts.end();
        try self.filter.finish(self.out);
        try self.out.flush();
    }

    pub fn stopRequested(self: *const Listener) bool {
        return self.stop.load(.monotonic) > 0;
    }
};

/// Anything that can answer a conversation.
pub const Backend = struct {
    context: *anyopaque,
    vtable: *const VTable,

    pub const VTable = struct {
        answer: *const fn (*anyopaque, []const Message, Settings, *Listener, *base.Diagnostic) AnswerError!Reply,
        describe: *const fn (*anyopaque, *std.Io.Writer) std.Io.Writer.Error!void,
        /// Drops what is remembered of a conversation that was given up; null = nothing is.
        forget: ?*const fn (*anyopaque) void = null,
    };

    /// Answers the last message, which must be the user's. On failure `diag` says what happened.
    pub fn answer(
        self: Backend,
        messages: []const Message,
        settings: Settings,
        listener: *Listener,
        diag: *base.Diagnostic,
    ) AnswerError!Reply {
        std.debug.assert(messages.len > 0);
        const reply = try self.vtable.answer(self.context, messages, settings, listener, diag);
        try listener.finish();
        return reply;
    }

    /// One line a fact, for `/info`.
    pub fn forget(self: Backend) void {
        if (self.vtable.forget) |f| f(self.context);
    }

    pub fn describe(self: Backend, out: *std.Io.Writer) std.Io.Writer.Error!void {
        return self.vtable.describe(self.context, out);
    }
};
