//! `abi generate`: continues ids or a text with a model, without chat format or conversation.
//!
//! Made for tests and scripts as much as for people: `--json` gives ids, logits and how it ended.

const std = @import("std");
const abi = @import("abi");
const arguments = @import("arguments.zig");
const app_file = @import("app.zig");
const sampling = @import("sampling.zig");
const infer = abi.infer;

pub const verb: arguments.Verb = .{
    .name = "generate",
    .summary = "Continue a text, or token ids, with a model",
    .usage = "--model FILE.gguf (--prompt TEXT | --ids LIST) [options]",
    .flags = &([_]arguments.Flag{
        .{ .name = "model", .value = "FILE.gguf", .help = "the model to run" },
        .{ .name = "prompt", .short = 'p', .value = "TEXT", .help = "text to continue" },
        .{ .name = "ids", .value = "LIST", .help = "token ids to continue, as 1,2,3" },
        .{ .name = "max-tokens", .short = 'n', .value = "N", .help = "stop after N tokens", .default = "128" },
        .{ .name = "prompt-cache", .value = "FILE", .help = "keep what was computed of the prompt, and use it again" },
        .{ .name = "json-schema", .value = "FILE", .help = "the text must be JSON as this schema asks" },
        .{ .name = "drafts", .value = "N", .help = "guess up to N (15) tokens a step; changes no token", .default = "0" },
    } ++ sampling.flags ++ [_]arguments.Flag{
        .{ .name = "print-ids", .help = "print token ids instead of text", .heading = "Output" },
        .{ .name = "json", .help = "one JSON object: prompt_ids, ids, text, end" },
        .{ .name = "logits", .help = "with --json: the logits each token was chosen from" },
        .{ .name = "prompt-logits", .help = "with --json: the logits after every token of the prompt" },
        .{ .name = "ignore-stop", .help = "go on when the model says that it is done" },
        .{ .name = "threads", .value = "N", .help = "threads to compute with", .default = "all", .heading = "Machine" },
        .{ .name = "exact", .help = "multiply weights as floats: slower, exact" },
        .{ .name = "context", .value = "N", .help = "tokens the model can look back", .default = "the model's, at most 4096" },
        .{ .name = "cache", .value = "FORM", .help = "keep keys and values in f32, f16 or q8_0", .default = "f16, with float weights f32" },
        .{ .name = "yarn", .value = "RAMP", .help = "gpt-oss: frequencies as trained (exact) or as llama.cpp's (ggml)", .default = "exact" },
    }),
    .notes = "Repeat penalty is off here unless given.",
    .examples = &.{
        "abi generate --model tiny.gguf --prompt \"Once upon a time\" -n 40",
        "abi generate --model tiny.gguf --ids 1,2,3 --temperature 0 --print-ids",
    },
};

const Options = struct {
    model: []const u8,
    max_tokens: usize,
    drafts: usize,
    settings: abi.agent.backend.Settings,
    threads: usize,
    context: ?usize,
    cache: ?infer.CacheForm,
    ramp: infer.model.Ramp,
};

pub fn run(app: *app_file.App, given: []const []const u8) app_file.RunError!app_file.Exit {
    var parsed: arguments.Parsed = undefined;
    if (try app.parse(&parsed, &verb, given)) |end| return end;
    const options = readOptions(&parsed) catch |err| return app.parseFailed(&parsed, err);

    var diag: abi.base.Diagnostic = .{};
    const model = infer.Model.open(app.gpa, app.io, options.model, &diag) catch |err| switch (err) {
        error.OutOfMemory => return error.OutOfMemory,
        else => return app.fail(verb.name, diag.text()),
    };
    defer model.close();
    model.useRamp(options.ramp);
    return generate(app, &parsed, options, model);
}

fn readOptions(parsed: *arguments.Parsed) arguments.ParseError!Options {
    const model = parsed.text("model") orelse return parsed.usage("--model FILE.gguf is missing", .{});
    if (parsed.has("prompt") == parsed.has("ids")) return parsed.usage("give either --prompt TEXT or --ids LIST", .{});
    if ((parsed.has("logits") or parsed.has("prompt-logits")) and !parsed.has("json"))
        return parsed.usage("--logits and --prompt-logits need --json", .{});
    if (parsed.has("prompt-logits") and parsed.has("prompt-cache"))
        return parsed.usage("--prompt-logits computes the whole prompt; leave --prompt-cache out", .{});
    var settings = try sampling.read(parsed);
    settings.repeat_penalty = settings.repeat_penalty orelse 1;
    return .{
        .model = model,
        .max_tokens = try parsed.whole(usize, "max-tokens", 0, 1 << 30) orelse 128,
        .drafts = try parsed.whole(usize, "drafts", 0, infer.generate.drafts_max) orelse 0,
        .settings = settings,
        .threads = try parsed.whole(usize, "threads", 1, app_file.threads_max) orelse 0,
        .context = try parsed.whole(usize, "context", 1, 1 << 24),
        .cache = if (parsed.text("cache")) |name| std.meta.stringToEnum(infer.CacheForm, name) orelse
            return parsed.usage("--cache is {s}; it must be f32, f16 or q8_0", .{name}) else null,
        .ramp = if (parsed.text("yarn")) |name| std.meta.stringToEnum(infer.model.Ramp, name) orelse
            return parsed.usage("--yarn is {s}; it must be exact or ggml", .{name}) else .exact,
    };
}

fn generate(app: *app_file.App, parsed: *arguments.Parsed, options: Options, model: *infer.Model) app_file.RunError!app_file.Exit {
    const gpa = app.gpa;
    const a = app.arena;
    var diag: abi.base.Diagnostic = .{};
    const json = parsed.has("json");
    const shows_text = !json and !parsed.has("print-ids");
    // Ids in and ids out need no tokenizer, and not every file has one.
    var words: ?abi.tokenizer.Tokenizer = abi.agent.vocabulary.fromFile(gpa, &model.file, &diag) catch |err| switch (err) {
        error.OutOfMemory => return error.OutOfMemory,
        else => if (shows_text or parsed.has("prompt") or parsed.has("json-schema")) {
            diag.prepend("{s}: ", .{options.model});
            return app.fail(verb.name, diag.text());
        } else null,
    };
    defer if (words) |*w| w.deinit();

    const prompt: []const u32 = if (parsed.text("prompt")) |text|
        words.?.encode(a, text, .{}) catch |err| switch (err) {
            error.OutOfMemory => return error.OutOfMemory,
            error.TextTooLong => return app.fail(verb.name, "the prompt is too long to be tokenized"),
        }
    else
        readIds(a, parsed.text("ids").?) catch |err| switch (err) {
            error.OutOfMemory => return error.OutOfMemory,
            error.Usage => {
                try app.complain(verb.name, "--ids must be token ids with commas between, as 1,2,3");
                return .usage;
            },
        };
    if (prompt.len == 0) return app.fail(verb.name, "the prompt is empty: give at least one token to continue");
    var vocabulary: ?infer.constraint.Vocabulary = null;
    defer if (vocabulary) |*v| v.deinit();
    var constraint: ?infer.Constraint = null;
    defer if (constraint) |*held| held.deinit();
    var cursor: ?infer.constraint.Cursor = null;
    defer if (cursor) |*one| one.deinit();
    if (parsed.text("json-schema")) |path| {
        var disk: abi.base.storage.Disk = .init(app.io);
        const schema = disk.storage().readAlloc(a, path) catch |err| {
            if (err == error.OutOfMemory) return error.OutOfMemory;
            abi.base.storage.explain(&diag, err, "read", path);
            return app.fail(verb.name, diag.text());
        };
        vocabulary = try .init(gpa, try abi.agent.vocabulary.texts(a, &words.?, model.config.vocab_size));
        constraint = infer.Constraint.fromJsonSchema(gpa, schema, &vocabulary.?, &diag) catch |err| {
            if (err == error.OutOfMemory) return error.OutOfMemory;
            diag.prepend("{s}: ", .{path});
            return app.fail(verb.name, diag.text());
        };
    }
    const context = options.context orelse @min(4096, model.config.max_position_embeddings);
    const pool = abi.base.Pool.init(gpa, options.threads) catch return app.fail(verb.name, "threads cannot be started. Pass a smaller --threads");
    defer pool.deinit();
    const form = model.chooseCacheForm(options.cache, parsed.has("exact"), &diag) catch return app.fail(verb.name, diag.text());
    var session: infer.Session = try .initForm(gpa, model, pool, context, form);
    defer session.deinit();
    session.exact = parsed.has("exact");
    var sampler: infer.Sampler = try .init(gpa, model.config.vocab_size, sampling.options(app.io, options.settings));
    defer sampler.deinit(gpa);

    var identity: infer.prompt_cache.Identity = undefined;
    if (parsed.text("prompt-cache")) |path| {
        identity = infer.prompt_cache.identify(model);
        _ = infer.prompt_cache.load(model.disk.storage(), path, &session, identity, &diag) catch |err| switch (err) {
            error.Missing => {},
            error.OutOfMemory => return error.OutOfMemory,
            else => return app.fail(verb.name, diag.text()),
        };
    }
    // Of the prompt, what the file held. The last id is fed in any case: its logits are needed.
    const known = session.commonPrefix(prompt);
    const reused = @min(known, prompt.len - 1);
    session.rewind(reused);
    var prompt_logits: std.ArrayList([]const f32) = .empty;
    feed(a, &session, prompt[reused..], if (parsed.has("prompt-logits")) &prompt_logits else null) catch |err| return switch (err) {
        error.OutOfMemory => error.OutOfMemory,
        error.ContextFull => app.fail(verb.name, try std.fmt.allocPrint(a, "the prompt's {d} tokens do not fit in a context of {d}. Raise --context", .{ prompt.len, context })),
        error.InvalidToken => app.fail(verb.name, try std.fmt.allocPrint(a, "an id is not below the model's vocabulary of {d}", .{model.config.vocab_size})),
    };
    if (parsed.text("prompt-cache")) |path| if (known < prompt.len) {
        infer.prompt_cache.save(gpa, model.disk.storage(), path, &session, identity, session.fed, &diag) catch |err| switch (err) {
            error.OutOfMemory => return error.OutOfMemory,
            error.CannotWrite => return app.fail(verb.name, diag.text()),
        };
    };
    for (prompt) |id| sampler.accept(id);

    var generator: infer.Generator = .init(&session, &sampler, try stopIds(a, parsed, model, words), options.max_tokens);
    var ids: std.ArrayList(u32) = .empty;
    var logits: std.ArrayList([]const f32) = .empty;
    var text: std.ArrayList(u8) = .empty;
    var decoder = if (words) |*w| w.decoder(.{ .continues = true }) else null;
    var filter: abi.agent.visible.Filter = .{};
    if (options.drafts > 0) generator.setDrafts(options.drafts, try a.alloc(f32, (1 + options.drafts) * session.logits.len));
    if (constraint) |*held| {
        cursor = try .init(gpa, held);
        generator.line.cursor = &cursor.?;
    }
    while (generator.next() catch |err| return app.fail(verb.name, infer.generate.words(err) orelse return error.OutOfMemory)) |id| {
        try ids.append(a, id);
        if (parsed.has("logits")) try logits.append(a, try a.dupe(f32, generator.logits));
        const before = text.items.len;
        if (decoder) |*d| try d.push(a, &text, id);
        if (shows_text) try filter.write(app.out, text.items[before..]);
        if (!json and !shows_text) try app.out.print("{s}{d}", .{ if (ids.items.len > 1) "," else "", id });
        if (!json) try app.out.flush();
    }
    if (decoder) |*d| try d.finish(a, &text);
    if (shows_text) try filter.finish(app.out);
    if (json) try std.json.Stringify.value(.{
        .prompt_ids = prompt,
        .ids = ids.items,
        .text = if (decoder != null) text.items else null,
        .end = generator.line.end.?,
        .reused = if (parsed.has("prompt-cache")) reused else null,
        .logits = if (parsed.has("logits")) logits.items else null,
        .prompt_logits = if (parsed.has("prompt-logits")) prompt_logits.items else null,
    }, .{ .emit_null_optional_fields = false }, app.out);
    try app.out.writeByte('\n');
    return .ok;
}

/// Feeds the prompt at once, or id by id when the logits after each are wanted.
fn feed(arena: std.mem.Allocator, session: *infer.Session, prompt: []const u32, each: ?*std.ArrayList([]const f32)) (infer.session.SessionError || error{OutOfMemory})!void {
    const list = each orelse {
        _ = try session.prefill(prompt);
        return;
    };
    for (prompt) |id| try list.append(arena, try arena.dupe(f32, try session.step(id)));
}

fn stopIds(arena: std.mem.Allocator, parsed: *const arguments.Parsed, model: *const infer.Model, words: ?abi.tokenizer.Tokenizer) error{OutOfMemory}![]const u32 {
    if (parsed.has("ignore-stop")) return &.{};
    if (words) |*w| return arena.dupe(u32, w.stopTokens());
    const eos = model.config.eos_token_id orelse return &.{};
    return arena.dupe(u32, &.{eos});
}

fn readIds(arena: std.mem.Allocator, text: []const u8) error{ OutOfMemory, Usage }![]u32 {
    var ids: std.ArrayList(u32) = .empty;
    var parts = std.mem.splitScalar(u8, text, ',');
    while (parts.next()) |part| {
        const id = std.fmt.parseInt(u32, std.mem.trim(u8, part, " "), 10) catch return error.Usage;
        try ids.append(arena, id);
    }
    return ids.items;
}
