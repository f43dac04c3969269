//! Answers from an Ollama server: `POST /api/chat`, streamed as one JSON object a line.
//!
//! Nothing the server sends is trusted: lines are bounded, texts in error messages lose their control bytes.
//! Only settings that were given are sent, so what the model's Modelfile says stays in force.

const std = @import("std");
const base = @import("base");
const backend_file = @import("backend.zig");
const visible = @import("visible.zig");
const Message = @import("session.zig").Message;
const Allocator = std.mem.Allocator;
const AnswerError = backend_file.AnswerError;

pub const default_host = "http://127.0.0.1:11434";

/// The longest line of an answer that is taken.
const max_line_bytes = 1 << 20;

pub const Ollama = struct {
    gpa: Allocator,
    io: std.Io,
    /// `scheme://host:port`, and a path if the person gave one; no slash at the end.
    base_url: []const u8,
    model: []const u8,

    /// `host` as people write it in OLLAMA_HOST: `host`, `host:port`, `:port` or a URL. Caller calls `deinit`.
    pub fn init(gpa: Allocator, io: std.Io, host: []const u8, model: []const u8, diag: *base.Diagnostic) error{ OutOfMemory, InvalidHost }!Ollama {
        const url = try baseUrl(gpa, host);
        errdefer gpa.free(url);

        const uri = std.Uri.parse(url) catch null;
        const usable = if (uri) |u| u.host != null and !u.host.?.isEmpty() else false;
        if (!usable) {
            diag.set("Ollama's address \"{s}\" is not a host, host:port or URL. Correct ABI_OLLAMA_HOST (or OLLAMA_HOST)", .{host});
            return error.InvalidHost;
        }
        return .{ .gpa = gpa, .io = io, .base_url = url, .model = try gpa.dupe(u8, model) };
    }

    pub fn deinit(self: *Ollama) void {
        self.gpa.free(self.base_url);
        self.gpa.free(self.model);
        self.* = undefined;
    }

    pub fn backend(self: *Ollama) backend_file.Backend {
        return .{ .context = self, .vtable = &.{ .answer = answer, .describe = describe } };
    }

    fn describe(context: *anyopaque, out: *std.Io.Writer) std.Io.Writer.Error!void {
        const self: *Ollama = @ptrCast(@alignCast(context));
        try out.print("backend   Ollama at {s}\nmodel     {s}\n", .{ self.base_url, self.model });
    }

    fn answer(
        context: *anyopaque,
        messages: []const Message,
        settings: backend_file.Settings,
        listener: *backend_file.Listener,
        diag: *base.Diagnostic,
    ) AnswerError!backend_file.Reply {
        const self: *Ollama = @ptrCast(@alignCast(context));
        var exchange: Exchange = .{ .ollama = self, .messages = messages, .settings = settings, .listener = listener, .diag = diag };
        // On a thread of its own, so that Ctrl-C also ends the wait for a server that says nothing.
        var future = self.io.concurrent(Exchange.run, .{&exchange}) catch return exchange.run();
        while (!exchange.done.load(.acquire)) {
            if (listener.stopRequested()) {
                const reply = future.cancel(self.io) catch |err| switch (err) {
                    error.OutOfMemory, error.WriteFailed => return err,
                    else => return .{ .stop = .interrupted },
                };
                return reply;
            }
            self.io.sleep(.fromMilliseconds(10), .awake) catch {}; // A shorter sleep only looks again sooner.
        }
        return future.await(self.io);
    }

    /// One request and its answer.
    const Exchange = struct {
        ollama: *Ollama,
        messages: []const Message,
        settings: backend_file.Settings,
        listener: *backend_file.Listener,
        diag: *base.Diagnostic,
        done: std.atomic.Value(bool) = .init(false),

        fn run(self: *Exchange) AnswerError!backend_file.Reply {
            defer self.done.store(true, .release);
            return self.ollama.exchangeWith(self.messages, self.settings, self.listener, self.diag);
        }
    };

    fn exchangeWith(
        self: *Ollama,
        messages: []const Message,
        settings: backend_file.Settings,
        listener: *backend_file.Listener,
        diag: *base.Diagnostic,
    ) AnswerError!backend_file.Reply {
        var client: std.http.Client = .{ .allocator = self.gpa, .io = self.io, .read_buffer_size = max_line_bytes };
        defer client.deinit();

        var body: std.Io.Writer.Allocating = .init(self.gpa);
        defer body.deinit();
        writeRequest(&body.writer, self.model, messages, settings) catch return error.OutOfMemory;

        const url = try std.fmt.allocPrint(self.gpa, "{s}/api/chat", .{self.base_url});
        defer self.gpa.free(url);
        const uri = std.Uri.parse(url) catch {
            diag.set("{s} is not a URL. Correct ABI_OLLAMA_HOST", .{url});
            return error.BackendFailed;
        };
        var request = client.request(.POST, uri, .{
            .redirect_behavior = .unhandled,
            .keep_alive = false,
            .headers = .{ .content_type = .{ .override = "application/json" }, .accept_encoding = .omit },
        }) catch |err| return self.unreachableServer(err, diag);
        defer request.deinit();

        request.sendBodyComplete(body.written()) catch |err| return self.unreachableServer(err, diag);
        var response = request.receiveHead(&.{}) catch |err| return self.unreachableServer(err, diag);
        const transfer = try self.gpa.alloc(u8, max_line_bytes);
        defer self.gpa.free(transfer);
        const status = response.head.status;
        const reader = response.reader(transfer);
        if (status != .ok) return self.refused(status, reader, diag);
        return self.listen(reader, listener, diag);
    }

    fn listen(self: *Ollama, reader: *std.Io.Reader, listener: *backend_file.Listener, diag: *base.Diagnostic) AnswerError!backend_file.Reply {
        while (true) {
            if (listener.stopRequested()) return .{ .stop = .interrupted };
            const line = reader.takeDelimiter('\n') catch |err| {
                if (listener.stopRequested()) return .{ .stop = .interrupted };
                switch (err) {
                    error.StreamTooLong => diag.set("Ollama at {s} sent a line of more than {d} bytes: is this an Ollama server?", .{ self.base_url, max_line_bytes }),
                    error.ReadFailed => diag.set("the connection to Ollama at {s} broke off in the middle of the answer. Ask again; `ollama ps` shows if it still runs", .{self.base_url}),
                }
                return error.BackendFailed;
            } orelse {
                diag.set("Ollama at {s} ended the answer before it was done. Ask again; its log tells why", .{self.base_url});
                return error.BackendFailed;
            };
            if (std.mem.trim(u8, line, " \r\t").len == 0) continue;
            const parsed = std.json.parseFromSlice(Line, self.gpa, line, .{ .ignore_unknown_fields = true }) catch |err| switch (err) {
                error.OutOfMemory => return error.OutOfMemory,
                else => {
                    var buffer: [200]u8 = undefined;
                    diag.set("Ollama at {s} sent something that is not its protocol: {s}", .{ self.base_url, cleaned(line, &buffer) });
                    return error.BackendFailed;
                },
            };
            defer parsed.deinit();
            if (parsed.value.@"error") |text| {
                var buffer: [400]u8 = undefined;
                diag.set("Ollama stopped with an error: {s}", .{cleaned(text, &buffer)});
                return error.BackendFailed;
            }
            if (parsed.value.message) |message| {
                if (message.thinking.len > 0) try listener.think(message.thinking);
                if (message.content.len > 0) try listener.hear(message.content);
            }
            if (parsed.value.done) return .{
                .stop = if (std.mem.eql(u8, parsed.value.done_reason, "length")) .length else .end,
                .prompt_tokens = parsed.value.prompt_eval_count,
                .answer_tokens = parsed.value.eval_count,
                .prompt_ns = parsed.value.prompt_eval_duration,
                .answer_ns = parsed.value.eval_duration,
            };
        }
    }

    fn unreachableServer(self: *Ollama, err: anyerror, diag: *base.Diagnostic) AnswerError {
        if (err == error.OutOfMemory) return error.OutOfMemory;
        diag.set("cannot reach Ollama at {s}: {s}. Start it with `ollama serve`, or set ABI_OLLAMA_HOST, or pass --model FILE.gguf", .{ self.base_url, networkWords(err) });
        return error.Unreachable;
    }

    fn refused(self: *Ollama, status: std.http.Status, reader: *std.Io.Reader, diag: *base.Diagnostic) AnswerError {
        var body: [4096]u8 = undefined;
        const len = reader.readSliceShort(&body) catch 0;
        var buffer: [400]u8 = undefined;
        const parsed = std.json.parseFromSlice(Line, self.gpa, body[0..len], .{ .ignore_unknown_fields = true }) catch null;
        defer if (parsed) |p| p.deinit();
        const text = cleaned(if (parsed) |p| p.value.@"error" orelse "" else body[0..len], &buffer);
        if (status == .not_found) {
            diag.set("model \"{s}\" is not in Ollama at {s}. Make it with `ollama create {s} -f Modelfile`, or fetch it with `ollama pull {s}`", .{ self.model, self.base_url, self.model, self.model });
            return error.ModelMissing;
        }
        diag.set("Ollama at {s} answered {d}: {s}", .{ self.base_url, @backingInt(status), text });
        return error.BackendFailed;
    }
};

fn networkWords(err: anyerror) []const u8 {
    return switch (err) {
        error.ConnectionRefused => "the connection was refused",
        error.ConnectionResetByPeer, error.HttpConnectionClosing => "the connection was closed",
        error.Timeout => "no answer in time",
        error.NetworkUnreachable, error.HostUnreachable, error.NetworkDown => "there is no way to it in the network",
        error.UnknownHostName, error.NameServerFailure, error.NoAddressReturned => "no computer of that name is known",
        else => base.storage.words(err),
    };
}

/// What of a streamed object is read.
const Line = struct {
    message: ?struct { content: []const u8 = "", thinking: []const u8 = "" } = null,
    done: bool = false,
    done_reason: []const u8 = "",
    prompt_eval_count: u64 = 0,
    prompt_eval_duration: u64 = 0,
    eval_count: u64 = 0,
    eval_duration: u64 = 0,
    @"error": ?[]const u8 = null,
};

fn writeRequest(out: *std.Io.Writer, model: []const u8, messages: []const Message, settings: backend_file.Settings) std.Io.Writer.Error!void {
    var json: std.json.Stringify = .{ .writer = out };
    try json.beginObject();
    try json.objectField("model");
    try json.write(model);
    try json.objectField("stream");
    try json.write(true);
    if (settings.reasoning) |effort| {
        try json.objectField("think");
        try json.write(effort);
    }
    try json.objectField("messages");
    try json.beginArray();
    for (messages) |message| try json.write(.{ .role = message.role, .content = message.content });
    try json.endArray();
    try json.objectField("options");
    try json.beginObject();
    const names = .{
        .{ "temperature", settings.temperature },       .{ "top_k", settings.top_k },
        .{ "top_p", settings.top_p },                   .{ "min_p", settings.min_p },
        .{ "repeat_penalty", settings.repeat_penalty }, .{ "seed", settings.seed },
        .{ "num_predict", settings.max_tokens },        .{ "num_ctx", settings.context },
    };
    inline for (names) |pair| if (pair[1]) |value| {
        try json.objectField(pair[0]);
        try json.write(value);
    };
    try json.endObject();
    try json.endObject();
}

/// The address as Ollama's own client reads it: without a scheme the port is 11434, with one it is the scheme's.
fn baseUrl(gpa: Allocator, host: []const u8) error{OutOfMemory}![]u8 {
    var rest = std.mem.trim(u8, host, " \t\r\n\"'");
    var scheme: []const u8 = "http";
    var port: []const u8 = "11434";
    if (std.mem.find(u8, rest, "://")) |at| {
        scheme = rest[0..at];
        rest = rest[at + 3 ..];
        port = if (std.mem.eql(u8, scheme, "https")) "443" else "80";
    }
    const slash = std.mem.findScalar(u8, rest, '/') orelse rest.len;
    const path = std.mem.trimEnd(u8, rest[slash..], "/");
    var name = rest[0..slash];
    // A colon after the last bracket begins the port; a bare IPv6 address has several colons and no port.
    const bracket = std.mem.findScalarLast(u8, name, ']') orelse 0;
    if (std.mem.findScalarLast(u8, name, ':')) |colon| {
        const bare_ipv6 = name.len > 0 and name[0] != '[' and std.mem.count(u8, name, ":") > 1;
        if (colon >= bracket and !bare_ipv6) {
            port = name[colon + 1 ..];
            name = name[0..colon];
        }
    }
    // Servers are told to listen on all addresses with 0.0.0.0; nobody can connect to that.
    if (name.len == 0 or std.mem.eql(u8, name, "0.0.0.0")) name = "127.0.0.1";
    const open = if (std.mem.findScalar(u8, name, ':') != null and name[0] != '[') "[" else "";
    const close = if (open.len > 0) "]" else "";
    return std.fmt.allocPrint(gpa, "{s}://{s}{s}{s}:{s}{s}", .{ scheme, open, name, close, port, path });
}

/// `text` without control bytes, cut to the buffer.
fn cleaned(text: []const u8, buffer: []u8) []const u8 {
    var out: std.Io.Writer = .fixed(buffer);
    var filter: visible.Filter = .{};
    filter.write(&out, std.mem.trim(u8, text, " \r\n\t")) catch {}; // Cut where the buffer ends.
    return out.buffered();
}

const testing = std.testing;

test "addresses are read as Ollama's client reads them" {
    const cases = [_][2][]const u8{
        .{ default_host, "http://127.0.0.1:11434" },
        .{ "127.0.0.1", "http://127.0.0.1:11434" },
        .{ "0.0.0.0", "http://127.0.0.1:11434" },
        .{ "0.0.0.0:80", "http://127.0.0.1:80" },
        .{ ":8080", "http://127.0.0.1:8080" },
        .{ "", "http://127.0.0.1:11434" },
        .{ "box", "http://box:11434" },
        .{ " box:99/ ", "http://box:99" },
        .{ "http://box", "http://box:80" },
        .{ "https://box/ollama/", "https://box:443/ollama" },
        .{ "[::1]", "http://[::1]:11434" },
        .{ "[::1]:99", "http://[::1]:99" },
        .{ "::1", "http://[::1]:11434" },
    };
    for (cases) |case| {
        const url = try baseUrl(testing.allocator, case[0]);
        defer testing.allocator.free(url);
        try testing.expectEqualStrings(case[1], url);
    }
}

test "an address nobody can parse is refused with the variable's name" {
    var diag: base.Diagnostic = .{};
    try testing.expectError(error.InvalidHost, Ollama.init(testing.allocator, testing.io, "http://box:port", "m", &diag));
    try testing.expect(std.mem.find(u8, diag.text(), "ABI_OLLAMA_HOST") != null);
}

test "only given settings are sent, and text is escaped" {
    var out: std.Io.Writer.Allocating = .init(testing.allocator);
    defer out.deinit();
    const messages = [_]Message{.{ .role = .user, .content = "say \"hi\"\n" }};
    try writeRequest(&out.writer, "abbey", &messages, .{ .seed = 7, .max_tokens = 5 });
    try testing.expectEqualStrings(
        "{\"model\":\"abbey\",\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":\"say \\\"hi\\\"\\n\"}]," ++
            "\"options\":{\"seed\":7,\"num_predict\":5}}",
        out.written(),
    );
}

fn listenTo(stream: []const u8, heard: *std.Io.Writer.Allocating, diag: *base.Diagnostic) AnswerError!backend_file.Reply {
    var ollama: Ollama = .{ .gpa = testing.allocator, .io = testing.io, .base_url = "http://x:1", .model = "m" };
    var reader: std.Io.Reader = .fixed(stream);
    const stop: std.atomic.Value(u32) = .init(0);
    var listener: backend_file.Listener = .{ .gpa = testing.allocator, .out = &heard.writer, .stop = &stop };
    defer listener.deinit();
    return ollama.listen(&reader, &listener, diag);
}

test "a streamed answer is put together, its control bytes stay out of sight" {
    var heard: std.Io.Writer.Allocating = .init(testing.allocator);
    defer heard.deinit();
    var diag: base.Diagnostic = .{};
    const reply = try listenTo(
        "{\"message\":{\"role\":\"assistant\",\"content\":\"Hel\"},\"done\":false}\n\n" ++
            "{\"message\":{\"content\":\"lo\\u001b[31m\"},\"done\":false}\r\n" ++
            "{\"message\":{\"content\":\"\"},\"done\":true,\"done_reason\":\"length\",\"eval_count\":2}\n",
        &heard,
        &diag,
    );
    try testing.expectEqualStrings("Hello", heard.written());
    try testing.expectEqual(backend_file.Stop.length, reply.stop);
    try testing.expectEqual(@as(u64, 2), reply.answer_tokens);
}

test "errors in the stream, a broken protocol and an early end are failures" {
    const cases = [_][2][]const u8{
        .{ "{\"message\":{\"content\":\"a\"},\"done\":false}\n{\"error\":\"out of\\u001b[2J memory\"}\n", "out of memory" },
        .{ "<html>\n", "not its protocol" },
        .{ "{\"message\":{\"content\":\"a\"},\"done\":false}\n", "before it was done" },
        .{ "", "before it was done" },
    };
    for (cases) |case| {
        var heard: std.Io.Writer.Allocating = .init(testing.allocator);
        defer heard.deinit();
        var diag: base.Diagnostic = .{};
        try testing.expectError(error.BackendFailed, listenTo(case[0], &heard, &diag));
        try testing.expect(std.mem.find(u8, diag.text(), case[1]) != null);
    }
}
