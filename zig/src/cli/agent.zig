//! `abi agent`: talk to a model, from a file or from Ollama.

const std = @import("std");
const abi = @import("abi");
const arguments = @import("arguments.zig");
const app_file = @import("app.zig");
const sampling = @import("sampling.zig");
const agent = abi.agent;
const App = app_file.App;
const Exit = app_file.Exit;

pub const verb: arguments.Verb = .{
    .name = "agent",
    .summary = "Talk to a language model in this terminal",
    .flags = &([_]arguments.Flag{
        .{ .name = "model", .value = "FILE.gguf", .help = "run this model here", .heading = "Model" },
        .{ .name = "chat-format", .value = "NAME", .help = "abbey, chatml, harmony, llama3, mistral, qwen, smollm …", .default = "the file's" },
        .{ .name = "context", .value = "N", .help = "tokens the model can look back", .default = "the model's, at most 4096" },
        .{ .name = "threads", .value = "N", .help = "threads to compute with", .default = "all" },
        .{ .name = "prompt-cache", .value = "FILE", .help = "keep what was computed here; the next start goes on with it" },
        .{ .name = "message", .short = 'm', .value = "TEXT", .help = "send one message, print the answer, leave", .heading = "Conversation" },
        .{ .name = "system", .value = "TEXT", .help = "tell the model first how to behave" },
        .{ .name = "session", .short = 's', .value = "NAME", .help = "keep the conversation under this name; go on with it if it is there" },
        .{ .name = "load", .value = "ID", .help = "go on with a kept conversation" },
        .{ .name = "list-sessions", .help = "list the kept conversations and leave" },
        .{ .name = "name", .value = "NAME", .help = "name of a new conversation" },
        .{ .name = "max-tokens", .value = "N", .help = "longest answer", .default = "1024" },
        .{ .name = "reasoning", .value = "LEVEL", .help = "how much to think, for models that do: low, medium or high", .default = "medium", .heading = "Reasoning and tools" },
        .{ .name = "show-thinking", .help = "show what the model thinks, on stderr" },
        .{ .name = "tools", .value = "FILE.json", .help = "functions the model may call; what you write next answers a call" },
        .{ .name = "yarn", .value = "RAMP", .help = "gpt-oss: frequencies as trained (exact) or as llama.cpp's (ggml)", .default = "exact" },
    } ++ sampling.flags),
    .notes =
    \\Without --model it talks to Ollama:
    \\  ABI_OLLAMA_MODEL  the model's name there
    \\  ABI_OLLAMA_HOST   its address; else OLLAMA_HOST, else http://127.0.0.1:11434
    \\
    \\Answers go to stdout, everything else to stderr. Conversations are kept in .abi/sessions
    \\of the current folder, and only when asked: by --session, or by /save.
    ,
    .examples = &.{
        "abi agent --model abbey.gguf",
        "abi agent --model abbey.gguf --message \"I feel stuck. What now?\"",
        "ABI_OLLAMA_MODEL=abbey abi agent --session diary",
    },
};

const Options = struct {
    settings: agent.backend.Settings,
    threads: usize,
    context: ?usize,
    format: ?abi.tokenizer.ChatFormat,
    ramp: abi.infer.model.Ramp,
};

pub fn run(app: *App, given: []const []const u8) app_file.RunError!Exit {
    var parsed: arguments.Parsed = undefined;
    if (try app.parse(&parsed, &verb, given)) |end| return end;
    const options = readOptions(&parsed) catch |err| return app.parseFailed(&parsed, err);
    const store: agent.store.Store = .{ .io = app.io };
    if (parsed.has("list-sessions")) {
        return if (try agent.terminal.writeSessions(app.gpa, store, app.out, app.err)) .ok else .failed;
    }

    var diag: abi.base.Diagnostic = .{};
    if (parsed.text("model")) |path| {
        const local = agent.local.Local.open(app.gpa, app.io, .{
            .path = path,
            .sampling = samplerOptions(app.io, options.settings),
            .threads = options.threads,
            .context = options.context,
            .format = options.format,
            .prompt_cache = parsed.text("prompt-cache"),
            .tools = if (parsed.text("tools")) |file| readTools(app, file, &diag) catch |err| switch (err) {
                error.OutOfMemory => return error.OutOfMemory,
                else => return app.fail(verb.name, diag.text()),
            } else &.{},
            .ramp = options.ramp,
        }, &diag) catch |err| switch (err) {
            error.OutOfMemory => return error.OutOfMemory,
            else => return app.fail(verb.name, diag.text()),
        };
        defer local.close();
        if (local.format_is_near) app.tell(
            "{s}: its chat template is exactly none known here; it is read as {t}, the nearest. Name another with --chat-format\n",
            .{ path, local.format },
        );
        const exit = try talk(app, &parsed, options, store, local.backend(), std.fs.path.basename(path));
        local.keep(&diag) catch |err| switch (err) {
            error.OutOfMemory => return error.OutOfMemory,
            error.CannotWrite => {
                const failure = try app.fail(verb.name, diag.text());
                return if (exit == .ok) failure else exit;
            },
        };
        return exit;
    }
    if (parsed.has("prompt-cache")) {
        try app.complain(verb.name, "--prompt-cache needs --model: Ollama keeps what it computed itself");
        return .usage;
    }
    if (parsed.has("tools")) {
        try app.complain(verb.name, "--tools needs --model: calls of tools are read from models that run here");
        return .usage;
    }
    const model = nonEmpty(app.environment.get("ABI_OLLAMA_MODEL")) orelse {
        try app.complain(verb.name, "no model: pass --model FILE.gguf, or set ABI_OLLAMA_MODEL to talk to Ollama");
        return .usage;
    };
    const host = nonEmpty(app.environment.get("ABI_OLLAMA_HOST")) orelse
        nonEmpty(app.environment.get("OLLAMA_HOST")) orelse agent.ollama.default_host;
    var ollama = agent.ollama.Ollama.init(app.gpa, app.io, host, model, &diag) catch |err| switch (err) {
        error.OutOfMemory => return error.OutOfMemory,
        error.InvalidHost => return app.fail(verb.name, diag.text()),
    };
    defer ollama.deinit();
    return talk(app, &parsed, options, store, ollama.backend(), model);
}

fn readOptions(parsed: *arguments.Parsed) arguments.ParseError!Options {
    if (parsed.has("session") and parsed.has("load")) return parsed.usage("give either --session NAME or --load ID", .{});
    for ([_]?[]const u8{ parsed.text("session"), parsed.text("name") }) |name| {
        const text = name orelse continue;
        if (text.len == 0 or text.len > agent.session.max_name_bytes)
            return parsed.usage("a conversation's name has 1 to {d} bytes", .{agent.session.max_name_bytes});
    }
    if (parsed.text("message")) |message| if (std.mem.trim(u8, message, " \t\r\n").len == 0)
        return parsed.usage("--message is empty", .{});
    var settings = try sampling.read(parsed);
    settings.max_tokens = try parsed.whole(u32, "max-tokens", 1, 1 << 24);
    if (parsed.text("reasoning")) |name| settings.reasoning = std.meta.stringToEnum(abi.tokenizer.chat_format.Reasoning, name) orelse
        return parsed.usage("--reasoning is {s}; it must be low, medium or high", .{name});
    const context = try parsed.whole(u32, "context", 8, 1 << 24);
    settings.context = context;
    return .{
        .settings = settings,
        .threads = try parsed.whole(usize, "threads", 1, app_file.threads_max) orelse 0,
        .context = if (context) |n| n else null,
        .format = if (parsed.text("chat-format")) |name| std.meta.stringToEnum(abi.tokenizer.ChatFormat, name) orelse
            return parsed.usage("--chat-format is \"{s}\"; it must be one of {s}", .{ name, abi.tokenizer.chat_format.names }) else null,
        .ramp = if (parsed.text("yarn")) |name| std.meta.stringToEnum(abi.infer.model.Ramp, name) orelse
            return parsed.usage("--yarn is {s}; it must be exact or ggml", .{name}) else .exact,
    };
}

/// On failure `diag` says what and why.
fn readTools(app: *App, path: []const u8, diag: *abi.base.Diagnostic) ![]const []const u8 {
    const text = std.Io.Dir.cwd().readFileAlloc(app.io, path, app.arena, .limited(1 << 20)) catch |err| {
        if (err == error.OutOfMemory) return error.OutOfMemory;
        diag.set("{s} cannot be read: {s}", .{ path, if (err == error.StreamTooLong) "it is longer than 1 MB" else abi.base.storage.words(err) });
        return error.CannotRead;
    };
    return abi.tokenizer.chat_format.toolsOf(app.arena, text, diag) catch |err| {
        if (err != error.OutOfMemory) diag.prepend("{s}: ", .{path});
        return err;
    };
}

fn talk(app: *App, parsed: *arguments.Parsed, options: Options, store: agent.store.Store, backend: agent.backend.Backend, model: []const u8) app_file.RunError!Exit {
    var diag: abi.base.Diagnostic = .{};
    var existing = true;
    var session: agent.session.Session = open: {
        if (parsed.text("load")) |wanted|
            break :open store.loadIdOrName(app.gpa, wanted, &diag) catch |err| return failed(app, err, &diag);
        if (parsed.text("session")) |name| {
            const found = store.findByName(app.arena, name, &diag) catch |err| return failed(app, err, &diag);
            if (found) |f| {
                if (f.count > 1) app.tell("{d} conversations are named \"{s}\"; this is the newest, {s}\n", .{ f.count, name, f.id });
                break :open store.load(app.gpa, f.id, &diag) catch |err| return failed(app, err, &diag);
            }
        }
        existing = false;
        break :open try .init(app.gpa, app.io, parsed.text("session") orelse parsed.text("name") orelse "", .{});
    };
    defer session.deinit();
    try session.setConfig(.{
        .model = model,
        .temperature = options.settings.temperature,
        .max_tokens = options.settings.max_tokens,
        .system_prompt = parsed.text("system"),
    });

    const message = parsed.text("message");
    const at_terminal = message == null and app.in_is_terminal and app.err_is_terminal;
    var terminal: agent.terminal.Terminal = .{
        .gpa = app.gpa,
        .io = app.io,
        .out = app.out,
        .err = app.err,
        .backend = backend,
        .settings = options.settings,
        .store = store,
        .session = &session,
        .style = .{ .prompts = at_terminal, .color = app.color_wanted and app.err_is_terminal },
        .keeps = existing or parsed.has("session"),
        .shows_thinking = parsed.has("show-thinking"),
    };
    agent.interrupt.install();
    if (message) |text| return exitOf(&terminal, try terminal.say(text));
    if (at_terminal) {
        try backend.describe(app.err);
        if (existing) try terminal.showHistory();
    }
    var input: agent.line_reader.LineReader = .{ .gpa = app.gpa, .fd = std.posix.STDIN_FILENO };
    defer input.deinit();
    const worst = try terminal.converse(&input);
    // A person saw the message; a script must see the code.
    return exitOf(&terminal, if (at_terminal) .answered else worst);
}

fn exitOf(terminal: *const agent.terminal.Terminal, turn: agent.terminal.Turn) Exit {
    return switch (turn) {
        .answered => if (terminal.lostSomething()) .failed else .ok,
        .interrupted => .interrupted,
        .failed => .failed,
        .unreachable_server => .unreachable_server,
    };
}

fn failed(app: *App, err: agent.store.StoreError, diag: *const abi.base.Diagnostic) app_file.RunError!Exit {
    if (err == error.OutOfMemory) return error.OutOfMemory;
    return app.fail(verb.name, diag.text());
}

/// For a conversation: what was given, else defaults, the penalty on.
fn samplerOptions(io: std.Io, settings: agent.backend.Settings) abi.infer.sampler.Options {
    var with_defaults = settings;
    with_defaults.repeat_penalty = settings.repeat_penalty orelse 1.1;
    return sampling.options(io, with_defaults);
}

fn nonEmpty(text: ?[]const u8) ?[]const u8 {
    const value = text orelse return null;
    return if (value.len == 0) null else value;
}
