//! Answers from a GGUF file on this machine: chat format, tokenizer, model and sampler put together.
//!
//! What was computed for earlier turns is kept: a new turn feeds only the ids that differ. When a conversation outgrows
//! the context, its oldest turns are left out of what the model sees (the system text stays), never out of the session.

const std = @import("std");
const base = @import("base");
const infer = @import("infer");
const tokenizer = @import("tokenizer");
const backend_file = @import("backend.zig");
const vocabulary = @import("vocabulary.zig");
const channels_file = @import("channels.zig");
const StopText = @import("stop_text.zig").StopText;
const Message = @import("session.zig").Message;
const Allocator = std.mem.Allocator;
const AnswerError = backend_file.AnswerError;
const chat_format = tokenizer.chat_format;

pub const default_max_tokens = 1024;
pub const default_context_max = 4096;

pub const Options = struct {
    path: []const u8,
    sampling: infer.sampler.Options,
    /// 0 = one for each CPU.
    threads: usize = 0,
    /// Null = what the model was trained for, at most `default_context_max`.
    context: ?usize = null,
    /// What was computed is read from here, if it is there, and kept here by `keep`.
    prompt_cache: ?[]const u8 = null,
    /// Null = what the file's chat template is.
    format: ?chat_format.Format = null,
    /// JSON of each tool on offer, as in `chat_format.Options`; must outlive the result. Only formats whose calls are read here.
    tools: []const []const u8 = &.{},
    /// Which of YaRN's frequencies, for models that have it.
    ramp: infer.model.Ramp = .exact,
};

pub const OpenError = infer.model.OpenError || error{
    /// The file has no tokenizer that can be used, or a chat template of an unknown family.
    UnusableTokenizer,
    /// Tools for a format whose calls cannot be read.
    NoTools,
    /// Threads cannot be started.
    NoThreads,
    /// The prompt cache is damaged or belongs to another model.
    UnusableCache,
};

pub const Local = struct {
    gpa: Allocator,
    io: std.Io,
    path: []const u8,
    model: *infer.Model,
    words: tokenizer.Tokenizer,
    pool: *base.Pool,
    session: infer.Session,
    sampler: infer.Sampler,
    format: chat_format.Format,
    /// Where the format comes from, for `/info`.
    format_source: []const u8,
    /// The file's own template is exactly no format known here: what the model sees may differ from what it was taught.
    format_is_near: bool = false,
    stop_ids: std.ArrayList(u32),
    prompt_cache: ?[]const u8,
    identity: infer.prompt_cache.Identity = undefined,
    /// There is something that the prompt cache does not hold.
    has_news: bool = false,
    tools: []const []const u8,

    /// On failure `diag` says what and why. Caller calls `close`. `options.path` must outlive the result.
    pub fn open(gpa: Allocator, io: std.Io, options: Options, diag: *base.Diagnostic) OpenError!*Local {
        const self = try gpa.create(Local);
        errdefer gpa.destroy(self);

        self.gpa = gpa;
        self.io = io;
        self.format_is_near = false;
        self.has_news = false;
        self.prompt_cache = options.prompt_cache;
        self.path = options.path;
        self.model = try .open(gpa, io, options.path, diag);
        errdefer self.model.close();

        self.words = vocabulary.fromFile(gpa, &self.model.file, diag) catch |err| {
            if (err == error.OutOfMemory) return error.OutOfMemory;
            diag.prepend("{s}: ", .{options.path});
            return error.UnusableTokenizer;
        };
        errdefer self.words.deinit();

        self.model.useRamp(options.ramp);
        try self.chooseFormat(options, diag);
        self.tools = options.tools;
        if (options.tools.len > 0 and self.format != .harmony) {
            diag.set("{s}: calls of tools are read in the chat format harmony only, and its is {t}. Leave --tools out", .{ options.path, self.format });
            return error.NoTools;
        }
        self.stop_ids = .empty;
        errdefer self.stop_ids.deinit(gpa);
        try self.stop_ids.appendSlice(gpa, self.words.stopTokens());
        if (chat_format.endId(self.format, &self.words)) |id| try self.stop_ids.append(gpa, id);
        for (self.format.stops()) |text| if (self.words.specialId(text)) |id| try self.stop_ids.append(gpa, id);

        self.pool = base.Pool.init(gpa, options.threads) catch {
            diag.set("{d} threads cannot be started. Pass a smaller --threads", .{options.threads});
            return error.NoThreads;
        };
        errdefer self.pool.deinit();
        const trained: usize = self.model.config.max_position_embeddings;
        self.session = try .init(gpa, self.model, self.pool, options.context orelse @min(trained, default_context_max));
        errdefer self.session.deinit();
        if (options.prompt_cache) |path| {
            self.identity = infer.prompt_cache.identify(self.model);
            _ = infer.prompt_cache.load(self.model.disk.storage(), path, &self.session, self.identity, diag) catch |err| switch (err) {
                error.Missing => {},
                error.OutOfMemory => return error.OutOfMemory,
                error.CannotRead, error.InvalidFile, error.OtherModel => return error.UnusableCache,
            };
        }
        self.sampler = try .init(gpa, self.model.config.vocab_size, options.sampling);
        return self;
    }

    /// Writes the prompt cache, if there is one and it lacks something. On failure `diag` says why.
    pub fn keep(self: *Local, diag: *base.Diagnostic) infer.prompt_cache.SaveError!void {
        const path = self.prompt_cache orelse return;
        if (!self.has_news) return;
        try infer.prompt_cache.save(self.gpa, self.model.disk.storage(), path, &self.session, self.identity, self.session.position(), diag);
        self.has_news = false;
    }

    pub fn close(self: *Local) void {
        const gpa = self.gpa;
        self.sampler.deinit(gpa);
        self.session.deinit();
        self.pool.deinit();
        self.stop_ids.deinit(gpa);
        self.words.deinit();
        self.model.close();
        gpa.destroy(self);
    }

    fn chooseFormat(self: *Local, options: Options, diag: *base.Diagnostic) OpenError!void {
        if (options.format) |format| {
            self.format = format;
            self.format_source = "asked for";
            return;
        }
        if (self.words.chatTemplate()) |template| {
            const found = try chat_format.detect(self.gpa, template) orelse {
                diag.set("{s}: its chat template is of a family not known here. Name the nearest one with --chat-format", .{options.path});
                return error.UnusableTokenizer;
            };
            self.format = found.format;
            self.format_is_near = !found.exact;
            self.format_source = if (found.exact) "from the file" else "the nearest known to the file's own template, which may differ";
            return;
        }
        self.format_source = "guessed: the file has no chat template";
        self.format = if (self.words.specialId("<|im_start|>") != null)
            .chatml
        else if (self.words.specialId("<|start_header_id|>") != null) .llama3 else .abbey;
    }

    pub fn backend(self: *Local) backend_file.Backend {
        return .{ .context = self, .vtable = &.{ .answer = answer, .describe = describe, .forget = forget } };
    }

    fn describe(context: *anyopaque, out: *std.Io.Writer) std.Io.Writer.Error!void {
        const self: *Local = @ptrCast(@alignCast(context));
        const millions = @as(f64, @floatFromInt(self.model.parameterCount())) / 1e6;
        try out.print("model     {s}\n", .{self.path});
        try out.print("          {t}, {d:.1} M parameters, {s}, {d} layers, width {d}\n", .{
            self.model.config.model_type,         millions,
            self.model.head.weight.dtype.label(), self.model.config.num_hidden_layers,
            self.model.config.hidden_size,
        });
        try out.print("format    {t} ({s})\n", .{ self.format, self.format_source });
        try out.print("context   {d} of {d} tokens used; {d} thread{s}\n", .{ self.session.position(), self.session.context, self.pool.n, if (self.pool.n == 1) "" else "s" });
    }

    fn forget(context: *anyopaque) void {
        const self: *Local = @ptrCast(@alignCast(context));
        self.session.rewind(0);
        self.has_news = true;
    }

    fn answer(
        context: *anyopaque,
        messages: []const Message,
        settings: backend_file.Settings,
        listener: *backend_file.Listener,
        diag: *base.Diagnostic,
    ) AnswerError!backend_file.Reply {
        const self: *Local = @ptrCast(@alignCast(context));
        const max_tokens: usize = settings.max_tokens orelse default_max_tokens;
        const prompt = try self.promptFor(messages, max_tokens, settings.reasoning orelse .medium, diag);
        defer self.gpa.free(prompt);

        var reply: backend_file.Reply = .{ .stop = .end, .prompt_tokens = prompt.len };
        // At least one id must be fed: it gives the logits the answer begins with.
        const reused = @min(self.session.commonPrefix(prompt), prompt.len - 1);
        reply.reused_tokens = reused;
        self.session.rewind(reused);
        self.has_news = true;
        const started: std.Io.Timestamp = .now(self.io, .awake);
        const complete = self.feed(prompt[reused..], listener) catch |err| switch (err) {
            error.ContextFull => unreachable, // promptFor made it fit.
            error.InvalidToken => {
                diag.set("the tokenizer of {s} has more tokens than the model. Export the model again", .{self.path});
                return error.BackendFailed;
            },
        };
        reply.prompt_ns = nanoseconds(started, self.io);
        if (!complete) {
            reply.stop = .interrupted;
            return reply;
        }
        self.sampler.forget();
        for (prompt[prompt.len -| self.sampler.options.repeat_window..]) |id| self.sampler.accept(id);
        const answering: std.Io.Timestamp = .now(self.io, .awake);
        try self.speak(max_tokens, listener, &reply, diag);
        reply.answer_ns = nanoseconds(answering, self.io);
        return reply;
    }

    /// False when the person asked to stop before all ids were fed.
    fn feed(self: *Local, ids: []const u32, listener: *backend_file.Listener) infer.session.SessionError!bool {
        var rest = ids;
        while (rest.len > infer.session.block_tokens) : (rest = rest[infer.session.block_tokens..]) {
            if (listener.stopRequested()) return false;
            try self.session.feed(rest[0..infer.session.block_tokens]);
        }
        if (listener.stopRequested()) return false;
        _ = try self.session.prefill(rest);
        return true;
    }

    fn speak(self: *Local, max_tokens: usize, listener: *backend_file.Listener, reply: *backend_file.Reply, diag: *base.Diagnostic) AnswerError!void {
        const gpa = self.gpa;
        var generator: infer.Generator = .init(&self.session, &self.sampler, self.stop_ids.items, max_tokens);
        var decoder = self.words.decoder(.{ .continues = true });
        var stop_text: StopText = .{ .stops = self.textStops() };
        var decoded: std.ArrayList(u8) = .empty;
        defer decoded.deinit(gpa);
        var shown: std.ArrayList(u8) = .empty;
        defer shown.deinit(gpa);

        // These formats put one space before the answer's first word; it is theirs, not the answer's.
        var drop_space = self.format.description().leading_space;
        var channels: channels_file.Channels = .init(&self.words, self.format);
        var part: channels_file.Part = .frame;
        reply.stop = while (true) {
            if (listener.stopRequested()) break .interrupted;
            const id = generator.next() catch |err| {
                diag.set("{s}: {s}", .{ self.path, infer.generate.words(err) orelse return error.OutOfMemory });
                return error.BrokenModel;
            } orelse break switch (generator.line.end.?) {
                .stop_id, .complete => if (part == .call) .call else .end,
                .length => .length,
                .context => .context,
            };
            reply.answer_tokens += 1;
            const next = channels.next(&self.words, id);
            decoded.clearRetainingCapacity();
            if (next != part) {
                try decoder.finish(gpa, &decoded);
                _ = try self.give(part, decoded.items, &stop_text, &shown, listener, &drop_space);
                decoded.clearRetainingCapacity();
                if (part == .call) break .call; // Some models end a call as they end a text.
                part = next;
                if (part == .call) try listener.recipient.appendSlice(gpa, channels.recipient());
                if (part == .answer and listener.text.items.len > 0) try listener.hear("\n\n");
            }
            _ = try self.giveText(channels.takeText(false), &stop_text, &shown, listener, &drop_space);
            if (part == .frame) continue;
            try decoder.push(gpa, &decoded, id);
            if (try self.give(part, decoded.items, &stop_text, &shown, listener, &drop_space)) break .end;
        };
        decoded.clearRetainingCapacity();
        try decoder.finish(gpa, &decoded);
        _ = try self.give(part, decoded.items, &stop_text, &shown, listener, &drop_space);
        _ = try self.giveText(channels.takeText(true), &stop_text, &shown, listener, &drop_space);
        shown.clearRetainingCapacity();
        try stop_text.finish(gpa, &shown);
        try hear(listener, shown.items, &drop_space);
    }

    /// `text` to whom it is for. True when a stop text was in it.
    fn give(self: *Local, part: channels_file.Part, text: []const u8, stop_text: *StopText, shown: *std.ArrayList(u8), listener: *backend_file.Listener, drop_space: *bool) error{ OutOfMemory, WriteFailed }!bool {
        switch (part) {
            .frame => return false,
            .answer => return self.giveText(text, stop_text, shown, listener, drop_space),
            .thinking => try listener.think(text),
            .call => try listener.arguments.appendSlice(self.gpa, text),
        }
        return false;
    }

    fn giveText(self: *Local, text: []const u8, stop_text: *StopText, shown: *std.ArrayList(u8), listener: *backend_file.Listener, drop_space: *bool) error{ OutOfMemory, WriteFailed }!bool {
        shown.clearRetainingCapacity();
        const stopped = try stop_text.push(self.gpa, shown, text);
        try hear(listener, shown.items, drop_space);
        return stopped;
    }

    /// The format's stops that are no tokens of this vocabulary and so must be found in the text.
    fn textStops(self: *const Local) []const []const u8 {
        const stops = self.format.stops();
        for (stops) |stop| if (self.words.specialId(stop) != null) return &.{};
        return stops;
    }

    /// Ids of the conversation, the oldest turns left out where they do not fit. Caller frees.
    fn promptFor(self: *Local, messages: []const Message, max_tokens: usize, reasoning: chat_format.Reasoning, diag: *base.Diagnostic) AnswerError![]u32 {
        const reserve = @min(max_tokens, self.session.context / 4);
        const system: usize = if (messages[0].role == .system) 1 else 0;
        const seen = try self.gpa.alloc(chat_format.Message, messages.len);
        defer self.gpa.free(seen);
        const calls = try self.gpa.alloc([1]chat_format.Call, messages.len);
        defer self.gpa.free(calls);
        for (seen, messages, calls) |*to, from, *call| {
            to.* = .{
                .role = switch (from.role) {
                    inline else => |role| @field(chat_format.Role, @tagName(role)),
                },
                .content = from.content,
            };
            if (from.role == .tool) to.name = from.tool;
            if (!from.calls()) continue;
            call.* = .{.{ .name = from.tool.?, .arguments = from.arguments orelse "{}" }};
            to.calls = call;
            to.thinking = from.thinking;
            if (from.thinking != null) to.content = ""; // There is a place for one of the two.
        }
        var day: [10]u8 = undefined;
        const asked: chat_format.Options = .{ .add_generation_prompt = true, .date = chat_format.today(&day), .reasoning = reasoning, .tools = self.tools };
        var first = system;
        while (true) {
            // The system text moves up to where the kept turns begin.
            if (system == 1) seen[first - 1] = .{ .role = .system, .content = messages[0].content };
            const rendered = chat_format.render(self.gpa, &self.words, self.format, seen[first - system ..], asked, diag) catch |err| switch (err) {
                error.OutOfMemory => return error.OutOfMemory,
                error.TextTooLong => {
                    diag.set("the message is too long to be tokenized. Send it in parts", .{});
                    return error.BackendFailed;
                },
                // The diagnostic names the turn or the token.
                else => {
                    diag.prepend("{s}: ", .{self.path});
                    return error.BackendFailed;
                },
            };
            self.gpa.free(rendered.loss_mask);
            if (rendered.ids.len > 0 and rendered.ids.len + reserve <= self.session.context) return rendered.ids;
            defer self.gpa.free(rendered.ids);
            // A turn is a question and its answer, calls and all; the last question cannot be left out.
            var next = first + 1;
            while (next < messages.len and messages[next].role != .user) next += 1;
            if (next >= messages.len) {
                diag.set("the message needs {d} tokens; the context has {d}, of which {d} are kept for the answer. Shorten it, or raise --context", .{ rendered.ids.len, self.session.context, reserve });
                return error.ContextFull;
            }
            first = next;
        }
    }
};

fn hear(listener: *backend_file.Listener, text: []const u8, drop_space: *bool) error{ OutOfMemory, WriteFailed }!void {
    if (text.len == 0) return;
    const skip: usize = if (drop_space.* and text[0] == ' ') 1 else 0;
    drop_space.* = false;
    if (text.len > skip) try listener.hear(text[skip..]);
}

fn nanoseconds(since: std.Io.Timestamp, io: std.Io) u64 {
    return @intCast(@max(0, since.untilNow(io, .awake).toNanoseconds()));
}
