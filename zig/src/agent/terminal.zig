//! A conversation at the terminal: reads lines, shows answers, obeys `/commands`.
//!
//! Answers go to `out`, everything else to `err`. Nothing that a model or a file says reaches either without passing
//! the filter of `visible.zig`. A conversation that has a place in the folder is saved after every answer.

const std = @import("std");
const base = @import("base");
const backend_file = @import("backend.zig");
const interrupt = @import("interrupt.zig");
const line_reader = @import("line_reader.zig");
const session_file = @import("session.zig");
const store_file = @import("store.zig");
const visible = @import("visible.zig");
const Session = session_file.Session;
const Reasoning = @import("tokenizer").chat_format.Reasoning;
const Allocator = std.mem.Allocator;

pub const Error = error{ OutOfMemory, WriteFailed };

/// How a person's turn went, from good to bad.
pub const Turn = enum { answered, interrupted, failed, unreachable_server };

pub const Style = struct {
    /// Colour and prompts: a person is looking.
    color: bool,
    prompts: bool,
};

pub const Terminal = struct {
    gpa: Allocator,
    io: std.Io,
    out: *std.Io.Writer,
    err: *std.Io.Writer,
    backend: backend_file.Backend,
    settings: backend_file.Settings,
    store: store_file.Store,
    session: *Session,
    style: Style,
    /// The conversation is saved after every answer.
    keeps: bool,
    /// Something was said since the last save.
    unsaved: bool = false,
    /// The last attempt to save this conversation failed.
    save_failed: bool = false,
    /// So it was with one that was left since.
    lost: bool = false,
    last: ?backend_file.Reply = null,
    /// Show what the model thinks before it answers.
    shows_thinking: bool = false,

    const help_text =
        \\  /help         this list
        \\  /save [name]  keep this conversation, and every turn from now on
        \\  /load <id>    go on with a kept conversation; its name will do
        \\  /sessions     list kept conversations
        \\  /clear        begin anew; what is kept stays
        \\  /info         model, conversation, speed
        \\  /think        show what the model thinks, or hide it again
        \\  /reasoning    how much to think: low, medium or high
        \\  /exit         leave (also Ctrl-D)
        \\
        \\  """           begins and ends a message of several lines
        \\  //text        sends a message that begins with a slash
        \\  Ctrl-C        stops an answer; twice leaves
        \\
    ;

    /// Reads from `input` until its end or `/exit`. Tells the worst of what happened.
    pub fn converse(self: *Terminal, input: *line_reader.LineReader) Error!Turn {
        if (self.style.prompts) {
            try self.note("/help lists commands. Ctrl-C stops an answer, Ctrl-D leaves.\n\n", .{});
        }
        var message: std.ArrayList(u8) = .empty;
        defer message.deinit(self.gpa);
        var in_block = false;
        var worst: Turn = .answered;
        while (true) {
            if (self.session.openCall()) |call| {
                if (self.style.prompts) try self.show(call.tool.?);
                try self.prompt("> ");
            } else try self.prompt(if (in_block) "...> " else "you> ");
            const line = switch (try input.next()) {
                .text => |text| text,
                .end => {
                    if (self.style.prompts) try self.err.writeByte('\n');
                    if (in_block and std.mem.trim(u8, message.items, " \t\n").len > 0) {
                        try self.note("the \"\"\" was not closed; the message is sent as it is\n", .{});
                        worst = worse(worst, try self.say(message.items));
                    }
                    try self.leave(input);
                    return worst;
                },
                .interrupted => {
                    if (!self.style.prompts) return .interrupted;
                    in_block = false;
                    message.clearRetainingCapacity();
                    try self.note("\nCtrl-C again leaves.\n", .{});
                    continue;
                },
                .too_long => {
                    try self.complain("the line is longer than {d} bytes and was dropped. Send it in parts", .{line_reader.max_line_bytes});
                    continue;
                },
                .failed => {
                    try self.complain("input cannot be read any more", .{});
                    return .failed;
                },
            };
            interrupt.reset();
            if (in_block or std.mem.startsWith(u8, line, "\"\"\"")) {
                const part = if (in_block) line else line[3..];
                if (in_block) try message.append(self.gpa, '\n');
                in_block = !std.mem.endsWith(u8, part, "\"\"\"");
                try message.appendSlice(self.gpa, if (in_block) part else part[0 .. part.len - 3]);
                if (in_block) continue;
            } else {
                const text = std.mem.trim(u8, line, " \t");
                if (text.len == 0) continue;
                if (isExit(text)) {
                    try self.leave(input);
                    return worst;
                }
                if (text[0] == '/' and !std.mem.startsWith(u8, text, "//")) {
                    try self.command(text);
                    continue;
                }
                try message.appendSlice(self.gpa, if (text[0] == '/') text[1..] else line);
            }
            defer message.clearRetainingCapacity();
            if (std.mem.trim(u8, message.items, " \t\n").len == 0) continue;
            if (self.style.prompts) try self.prompt("abi> ");
            worst = worse(worst, try self.say(message.items));
        }
    }

    /// One message and its answer. What goes wrong is told, and the message is taken back.
    pub fn say(self: *Terminal, text: []const u8) Error!Turn {
        var diag: base.Diagnostic = .{};
        if (self.session.openCall()) |call|
            try self.session.addMessage(self.io, .{ .role = .tool, .content = text, .tool = call.tool })
        else
            try self.session.add(self.io, .user, text);
        var thoughts: backend_file.Thoughts = .{ .out = self.err, .color = self.style.color, .is_brief = !self.shows_thinking };
        var listener: backend_file.Listener = .{ .gpa = self.gpa, .out = self.out, .stop = &interrupt.pressed };
        if (self.shows_thinking or self.style.prompts) listener.thoughts = &thoughts;
        defer listener.deinit();

        const messages = try self.withSystem();
        defer self.gpa.free(messages);
        const reply = self.backend.answer(messages, self.settings, &listener, &diag) catch |err| {
            self.session.dropLast();
            if (listener.text.items.len > 0) try self.out.writeByte('\n');
            switch (err) {
                error.OutOfMemory => return error.OutOfMemory,
                error.WriteFailed => return error.WriteFailed,
                else => {},
            }
            try self.complain("{s}", .{diag.text()});
            return if (err == error.Unreachable) .unreachable_server else .failed;
        };
        if (listener.text.items.len > 0 or reply.stop != .call) try self.out.writeByte('\n');
        try self.out.flush();
        self.last = reply;
        if (reply.stop == .interrupted) try self.note("(stopped)\n", .{});
        if (reply.stop == .length) try self.note("(cut at {d} tokens; --max-tokens allows more)\n", .{reply.answer_tokens});
        if (reply.stop == .context) try self.note("(cut: the context is full; /clear begins anew, --context allows more)\n", .{});
        if (listener.text.items.len == 0 and reply.stop == .interrupted) {
            self.session.dropLast();
            return .interrupted;
        }
        if (reply.stop == .call) {
            try self.addCall(&listener);
        } else try self.session.add(self.io, .assistant, listener.text.items);
        self.unsaved = true;
        if (self.keeps) _ = try self.save();
        return if (reply.stop == .interrupted) .interrupted else .answered;
    }

    /// Tells the call, and keeps it if a tool could answer it.
    fn addCall(self: *Terminal, listener: *const backend_file.Listener) Error!void {
        const prefix = "functions.";
        const whom = listener.recipient.items;
        const name = if (std.mem.startsWith(u8, whom, prefix)) whom[prefix.len..] else whom;
        const arguments = std.mem.trim(u8, listener.arguments.items, " \t\r\n");
        try self.note("calls ", .{});
        try self.show(name);
        try self.note(" with ", .{});
        try self.show(arguments);
        const is_object = if (std.json.parseFromSlice(std.json.Value, self.gpa, arguments, .{})) |parsed| is: {
            defer parsed.deinit();
            break :is parsed.value == .object;
        } else |err| if (err == error.OutOfMemory) return error.OutOfMemory else false;
        if (!is_object) {
            try self.note("\n(its arguments are no JSON object: no tool can answer it)\n", .{});
            return self.session.add(self.io, .assistant, listener.text.items);
        }
        try self.note("\n{s}", .{if (self.style.prompts) "(what you write next is the tool's answer)\n" else ""});
        const thinking = listener.thinking.items;
        try self.session.addMessage(self.io, .{
            .role = .assistant,
            .content = listener.text.items,
            .tool = name,
            .arguments = arguments,
            .thinking = if (thinking.len > 0) thinking else null,
        });
    }

    fn withSystem(self: *Terminal) error{OutOfMemory}![]session_file.Message {
        const said = self.session.messages.items;
        const system = self.session.config.system_prompt orelse return self.gpa.dupe(session_file.Message, said);
        const all = try self.gpa.alloc(session_file.Message, said.len + 1);
        all[0] = .{ .role = .system, .content = system };
        @memcpy(all[1..], said);
        return all;
    }

    fn command(self: *Terminal, text: []const u8) Error!void {
        const space = std.mem.findAny(u8, text, " \t") orelse text.len;
        var buffer: [16]u8 = undefined;
        const name = if (space <= buffer.len) std.ascii.lowerString(&buffer, text[1..space]) else text[1..space];
        const argument = std.mem.trim(u8, text[space..], " \t");
        if (std.mem.eql(u8, name, "help") or std.mem.eql(u8, name, "?")) {
            try self.note("{s}", .{help_text});
        } else if (std.mem.eql(u8, name, "save")) {
            if (argument.len > session_file.max_name_bytes)
                return self.complain("a name has at most {d} bytes", .{session_file.max_name_bytes});
            if (argument.len > 0) try self.session.rename(argument);
            if (!try self.save()) return;
            self.keeps = true;
            try self.note("kept as \"", .{});
            try self.show(self.session.name);
            try self.note("\", {s}; every turn from now on is saved\n", .{self.session.id});
        } else if (std.mem.eql(u8, name, "load")) {
            if (argument.len == 0) return self.complain("/load needs an id or a name; /sessions lists them", .{});
            try self.load(argument);
        } else if (std.mem.eql(u8, name, "sessions")) {
            try self.listSessions(self.err);
        } else if (std.mem.eql(u8, name, "clear")) {
            try self.beginAnew();
        } else if (std.mem.eql(u8, name, "info")) {
            try self.info();
        } else if (std.mem.eql(u8, name, "think")) {
            if (argument.len > 0 and !std.mem.eql(u8, argument, "on") and !std.mem.eql(u8, argument, "off"))
                return self.complain("/think is on or off", .{});
            self.shows_thinking = if (argument.len > 0) argument.len == 2 else !self.shows_thinking;
            try self.note("thinking is {s}\n", .{if (self.shows_thinking) "shown" else "hidden"});
        } else if (std.mem.eql(u8, name, "reasoning")) {
            if (argument.len > 0) self.settings.reasoning = std.meta.stringToEnum(Reasoning, argument) orelse
                return self.complain("/reasoning is low, medium or high", .{});
            try self.note("reasoning is {s}\n", .{if (self.settings.reasoning) |effort| @tagName(effort) else "as usual"});
        } else {
            try self.complain("unknown command {s}; /help lists all", .{text[0..space]});
        }
    }

    /// False when it failed, which was told.
    fn save(self: *Terminal) Error!bool {
        var diag: base.Diagnostic = .{};
        self.store.save(self.gpa, self.session, &diag) catch |err| switch (err) {
            error.OutOfMemory => return error.OutOfMemory,
            error.Changed => {
                const before = self.session.id;
                try self.session.takeNewId(self.io);
                try self.complain("another program went on with {s} meanwhile; what was said here is kept as {s}", .{ before, self.session.id });
                return self.save();
            },
            else => {
                self.save_failed = true;
                try self.complain("{s}", .{diag.text()});
                return false;
            },
        };
        self.unsaved = false;
        self.save_failed = false;
        return true;
    }

    /// Something that should have been kept was not, which was told.
    pub fn lostSomething(self: *const Terminal) bool {
        return self.lost or self.save_failed;
    }

    /// A new conversation that is not kept. The file of a kept one stays as it is.
    fn beginAnew(self: *Terminal) Error!void {
        var new: Session = try .init(self.gpa, self.io, "", self.session.config);
        errdefer new.deinit();
        if (self.keeps) {
            try self.note("started a new conversation; the kept one stays as {s}\n", .{self.session.id});
        } else try self.note("forgotten; started a new conversation\n", .{});
        self.backend.forget();
        self.exchange(new, false);
    }

    fn exchange(self: *Terminal, other: Session, keeps: bool) void {
        self.session.deinit();
        self.session.* = other;
        self.keeps = keeps;
        self.unsaved = false;
        self.lost = self.lostSomething();
        self.save_failed = false;
        self.last = null;
    }

    fn load(self: *Terminal, wanted: []const u8) Error!void {
        var diag: base.Diagnostic = .{};
        const loaded = self.store.loadIdOrName(self.gpa, wanted, &diag) catch |err| switch (err) {
            error.OutOfMemory => return error.OutOfMemory,
            else => return self.complain("{s}", .{diag.text()}),
        };
        if (self.unsaved and !self.keeps) try self.note("the conversation before was not kept\n", .{});
        self.exchange(loaded, true);
        try self.showHistory();
    }

    /// What was said before, so that a person knows where they are.
    pub fn showHistory(self: *Terminal) Error!void {
        const shown = 6;
        const messages = self.session.messages.items;
        try self.note("\"", .{});
        try self.show(self.session.name);
        try self.note("\", {d} message{s}{s}\n", .{ messages.len, if (messages.len == 1) "" else "s", if (messages.len > shown) ", the last of them:" else "" });
        for (messages[messages.len -| shown..]) |message| {
            try self.prompt(switch (message.role) {
                .user => "you> ",
                .assistant => "abi> ",
                .system => "system> ",
                .tool => "tool> ",
            });
            try self.show(message.content);
            if (message.calls()) {
                try self.note("calls ", .{});
                try self.show(message.tool.?);
                try self.note(" with ", .{});
                try self.show(message.arguments orelse "{}");
            }
            try self.err.writeByte('\n');
        }
        try self.err.flush();
    }

    fn show(self: *Terminal, text: []const u8) Error!void {
        var filter: visible.Filter = .{};
        try filter.write(self.err, text);
        try filter.finish(self.err);
    }

    /// Table of the kept conversations, newest first.
    pub fn listSessions(self: *Terminal, to: *std.Io.Writer) Error!void {
        _ = try writeSessions(self.gpa, self.store, to, self.err);
    }

    fn info(self: *Terminal) Error!void {
        try self.backend.describe(self.err);
        try self.err.print("session   {s}{s}\nname      ", .{ self.session.id, if (self.keeps) "" else " (not kept; /save keeps it)" });
        try self.show(self.session.name);
        try self.err.print("\nmessages  {d}\n", .{self.session.messages.items.len});
        if (self.last) |reply| {
            try self.err.print("last      {d} tokens in ({d} remembered), {d} out", .{ reply.prompt_tokens, reply.reused_tokens, reply.answer_tokens });
            if (reply.answer_ns > 0) try self.err.print(", {d:.1} tokens/s", .{perSecond(reply.answer_tokens, reply.answer_ns)});
            try self.err.writeByte('\n');
        }
        try self.err.flush();
    }

    /// Offers to keep what would be lost.
    fn leave(self: *Terminal, input: *line_reader.LineReader) Error!void {
        if (!self.unsaved or self.keeps or !self.style.prompts) return;
        if (input.at_end) return self.note("not kept; --session NAME keeps a conversation from its first word\n", .{});
        try self.prompt("keep this conversation? [y/N] ");
        const answer = switch (try input.next()) {
            .text => |text| text,
            else => return,
        };
        if (answer.len == 0 or std.ascii.toLower(answer[0]) != 'y') return;
        if (try self.save()) try self.note("kept: abi agent --load {s}\n", .{self.session.id});
    }

    fn prompt(self: *Terminal, text: []const u8) Error!void {
        if (!self.style.prompts) return;
        if (self.style.color) {
            try self.err.print("\x1b[1;36m{s}\x1b[0m", .{text});
        } else try self.err.writeAll(text);
        try self.err.flush();
    }

    /// What cannot be noted is dropped: a turn is kept even when no one reads stderr.
    fn note(self: *Terminal, comptime format: []const u8, arguments: anytype) Error!void {
        self.writeNote(format, arguments) catch {
            self.err.end = 0;
        };
    }

    fn writeNote(self: *Terminal, comptime format: []const u8, arguments: anytype) std.Io.Writer.Error!void {
        if (self.style.color) try self.err.writeAll("\x1b[2m");
        try self.err.print(format, arguments);
        if (self.style.color) try self.err.writeAll("\x1b[0m");
        try self.err.flush();
    }

    fn complain(self: *Terminal, comptime format: []const u8, arguments: anytype) Error!void {
        self.writeComplaint(format, arguments) catch {
            self.err.end = 0;
        };
    }

    fn writeComplaint(self: *Terminal, comptime format: []const u8, arguments: anytype) std.Io.Writer.Error!void {
        if (self.style.color) try self.err.writeAll("\x1b[31m");
        try self.err.writeAll("abi agent: ");
        if (self.style.color) try self.err.writeAll("\x1b[0m");
        try self.err.print(format ++ "\n", arguments);
        try self.err.flush();
    }
};

/// The table goes to `to`, complaints about damaged files to `err`. False when the folder cannot be read, which was told.
pub fn writeSessions(gpa: Allocator, store: store_file.Store, to: *std.Io.Writer, err: *std.Io.Writer) Error!bool {
    var arena: std.heap.ArenaAllocator = .init(gpa);
    defer arena.deinit();
    var diag: base.Diagnostic = .{};
    const listing = store.list(arena.allocator(), &diag) catch |failure| switch (failure) {
        error.OutOfMemory => return error.OutOfMemory,
        else => {
            try err.print("abi agent: {s}\n", .{diag.text()});
            try err.flush();
            return false;
        },
    };
    if (listing.sessions.len == 0) try err.print("no conversations are kept in {s}\n", .{store.folder});
    for (listing.sessions) |summary| {
        try to.print("{s}  ", .{summary.id});
        try session_file.writeTime(to, summary.updated_at);
        try to.print("  {d:>4} message{s}  ", .{ summary.message_count, if (summary.message_count == 1) " " else "s" });
        var filter: visible.Filter = .{};
        // One conversation, one line.
        var words = std.mem.splitAny(u8, summary.name, "\r\n\t");
        try filter.write(to, words.first());
        while (words.next()) |word| {
            try filter.write(to, " ");
            try filter.write(to, word);
        }
        try filter.finish(to);
        try to.writeByte('\n');
    }
    for (listing.damaged) |file| try err.print("{s}/{s}.json cannot be read as a session\n", .{ store.folder, file.id });
    try to.flush();
    try err.flush();
    return true;
}

/// `/exit` whatever follows it; a bare word only alone, for it may begin a message.
fn isExit(text: []const u8) bool {
    const command = text[0 .. std.mem.findAny(u8, text, " \t") orelse text.len];
    for ([_][]const u8{ "/exit", "/quit" }) |word| if (std.ascii.eqlIgnoreCase(command, word)) return true;
    for ([_][]const u8{ "exit", "quit" }) |word| if (std.ascii.eqlIgnoreCase(text, word)) return true;
    return false;
}

fn worse(a: Turn, b: Turn) Turn {
    return if (@backingInt(b) > @backingInt(a)) b else a;
}

fn perSecond(count: u64, ns: u64) f64 {
    return @as(f64, @floatFromInt(count)) * 1e9 / @as(f64, @floatFromInt(ns));
}

const testing = std.testing;

/// Answers with what it was asked, or fails: the terminal under test is the real one.
const Parrot = struct {
    fail_with: ?backend_file.AnswerError = null,
    asked: usize = 0,

    fn backend(self: *Parrot) backend_file.Backend {
        return .{ .context = self, .vtable = &.{ .answer = answer, .describe = describe } };
    }

    fn answer(context: *anyopaque, messages: []const session_file.Message, _: backend_file.Settings, listener: *backend_file.Listener, diag: *base.Diagnostic) backend_file.AnswerError!backend_file.Reply {
        const self: *Parrot = @ptrCast(@alignCast(context));
        self.asked = messages.len;
        if (self.fail_with) |err| {
            diag.set("the parrot is ill", .{});
            return err;
        }
        try listener.hear(messages[messages.len - 1].content);
        try listener.hear("\x1b[2J!");
        return .{ .stop = .end, .answer_tokens = 2 };
    }

    fn describe(_: *anyopaque, out: *std.Io.Writer) std.Io.Writer.Error!void {
        try out.writeAll("backend   parrot\n");
    }
};

const Scene = struct {
    out: std.Io.Writer.Allocating,
    err: std.Io.Writer.Allocating,
    session: Session,
    end: Turn,
    asked: usize,
    lost: bool = false,

    /// Plays `lines` to a terminal over `parrot`.
    fn play(tmp: *testing.TmpDir, lines: []const u8, parrot: *Parrot, system: ?[]const u8) !Scene {
        const gpa = testing.allocator;
        const io = testing.io;
        try tmp.dir.writeFile(io, .{ .sub_path = "input", .data = lines });
        const file = try tmp.dir.openFile(io, "input", .{});
        defer file.close(io);
        const folder = try std.fmt.allocPrint(gpa, ".zig-cache/tmp/{s}/sessions", .{&tmp.sub_path});
        defer gpa.free(folder);

        var scene: Scene = .{ .out = .init(gpa), .err = .init(gpa), .session = try .init(gpa, io, "test", .{ .system_prompt = system }), .end = undefined, .asked = 0 };
        var input: line_reader.LineReader = .{ .gpa = gpa, .fd = file.handle };
        defer input.deinit();
        var terminal: Terminal = .{
            .gpa = gpa,
            .io = io,
            .out = &scene.out.writer,
            .err = &scene.err.writer,
            .backend = parrot.backend(),
            .settings = .{},
            .store = .{ .io = io, .folder = folder },
            .session = &scene.session,
            .style = .{ .color = false, .prompts = false },
            .keeps = false,
        };
        scene.end = try terminal.converse(&input);
        scene.asked = parrot.asked;
        scene.lost = terminal.lostSomething();
        return scene;
    }

    fn deinit(self: *Scene) void {
        self.out.deinit();
        self.err.deinit();
        self.session.deinit();
    }
};

test "answers go to stdout without control bytes, blocks and slashes are sent as meant" {
    var tmp = testing.tmpDir(.{});
    defer tmp.cleanup();
    var parrot: Parrot = .{};
    var scene = try Scene.play(&tmp, "hi\n\n  \n//slash\n\"\"\"two\nlines\"\"\"\n\"\"\"one\"\"\"\n/exit\nnever\n", &parrot, "sys");
    defer scene.deinit();
    try testing.expectEqualStrings("hi!\n/slash!\ntwo\nlines!\none!\n", scene.out.written());
    try testing.expectEqualStrings("", scene.err.written());
    try testing.expectEqual(@as(usize, 8), scene.session.messages.items.len);
    try testing.expectEqual(@as(usize, 8), scene.asked); // System and seven said: the answer is not asked.
    try testing.expectEqual(Turn.answered, scene.end);
}

test "a failed answer is told, and the question is taken back" {
    var tmp = testing.tmpDir(.{});
    defer tmp.cleanup();
    var parrot: Parrot = .{ .fail_with = error.BackendFailed };
    var scene = try Scene.play(&tmp, "hi\n", &parrot, null);
    defer scene.deinit();
    try testing.expectEqualStrings("abi agent: the parrot is ill\n", scene.err.written());
    try testing.expectEqual(Turn.failed, scene.end);
    try testing.expectEqual(@as(usize, 0), scene.session.messages.items.len);
}

test "save, sessions, clear, load bring a conversation back" {
    var tmp = testing.tmpDir(.{});
    defer tmp.cleanup();
    var parrot: Parrot = .{};
    var first = try Scene.play(&tmp, "hello\n/save my talk\nmore\n/sessions\n/info\n/nonsense\n/load ../x\n/load\n", &parrot, null);
    defer first.deinit();
    const told = first.err.written();
    for ([_][]const u8{ "kept as ", "4 messages  my talk", "backend   parrot", "unknown command /nonsense", "is not valid", "/load needs an id" }) |part| {
        try testing.expect(std.mem.find(u8, told, part) != null);
    }
    const lines = try std.fmt.allocPrint(testing.allocator, "/load {s}\nagain\n/clear\nanew\n", .{first.session.id});
    defer testing.allocator.free(lines);
    var second = try Scene.play(&tmp, lines, &parrot, null);
    defer second.deinit();
    try testing.expectEqual(@as(usize, 2), second.session.messages.items.len);
    try testing.expect(std.mem.find(u8, second.err.written(), "\"my talk\", 4 messages") != null);
    const stays = try std.fmt.allocPrint(testing.allocator, "started a new conversation; the kept one stays as {s}\n", .{first.session.id});
    defer testing.allocator.free(stays);
    try testing.expect(std.mem.find(u8, second.err.written(), stays) != null);

    // What was kept before /clear is there as it was, under its name too.
    var third = try Scene.play(&tmp, "/LOAD my talk\n/Info\n/Exit now\nnever\n", &parrot, null);
    defer third.deinit();
    try testing.expectEqualStrings(first.session.id, third.session.id);
    try testing.expectEqual(@as(usize, 6), third.session.messages.items.len);
    try testing.expectEqualStrings("", third.out.written());
}

test "a block that was not closed is sent at the end of input" {
    var tmp = testing.tmpDir(.{});
    defer tmp.cleanup();
    var parrot: Parrot = .{};
    var scene = try Scene.play(&tmp, "\"\"\"one\ntwo", &parrot, null);
    defer scene.deinit();
    try testing.expectEqualStrings("one\ntwo!\n", scene.out.written());
    try testing.expect(std.mem.find(u8, scene.err.written(), "was not closed") != null);
}

test "a save that failed is remembered until the same conversation is saved" {
    var tmp = testing.tmpDir(.{});
    defer tmp.cleanup();
    var parrot: Parrot = .{};
    try tmp.dir.writeFile(testing.io, .{ .sub_path = "sessions", .data = "a file where the folder should be" });
    for ([_][]const u8{ "hello\n/save\n/exit\n", "hello\n/save\n/clear\n" }) |lines| {
        var failed = try Scene.play(&tmp, lines, &parrot, null);
        defer failed.deinit();
        try testing.expect(failed.lost);
        try testing.expect(std.mem.find(u8, failed.err.written(), "cannot be written: a part of the path is a file") != null);
    }
    try tmp.dir.deleteFile(testing.io, "sessions");
    var kept = try Scene.play(&tmp, "hello\n/save a\tname\n/sessions\n", &parrot, null);
    defer kept.deinit();
    try testing.expect(!kept.lost);
    try testing.expect(std.mem.find(u8, kept.err.written(), "2 messages  a name\n") != null);
}
