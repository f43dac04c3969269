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
    } ++ sampling.flags ++ [_]arguments.Flag{
        .{ .name = "print-ids", .help = "print token ids instead of text", .heading = "Output" },
        .{ .name = "json", .help = "one JSON object: prompt_ids, ids, text, end" },
        .{ .name = "logits", .help = "with --json: the logits each token was chosen from" },
        .{ .name = "prompt-logits", .help = "with --json: the logits after every token of the prompt" },
        .{ .name = "ignore-stop", .help = "go on when the model says that it is done" },
        .{ .name = "threads", .value = "N", .help = "threads to compute with", .default = "all", .heading = "Machine" },
        .{ .name = "context", .value = "N", .help = "tokens the model can look back", .default = "the model's, at most 4096" },
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
    settings: abi.agent.backend.Settings,
    threads: usize,
    context: ?usize,
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
    return generate(app, &parsed, options, model);
}

fn readOptions(parsed: *arguments.Parsed) arguments.ParseError!Options {
    const model = parsed.text("model") orelse return parsed.usage("--model FILE.gguf is missing", .{});
    if (parsed.has("prompt") == parsed.has("ids")) return parsed.usage("give either --prompt TEXT or --ids LIST", .{});
    if ((parsed.has("logits") or parsed.has("prompt-logits")) and !parsed.has("json"))
        return parsed.usage("--logits and --prompt-logits need --json", .{});
    var settings = try sampling.read(parsed);
    settings.repeat_penalty = settings.repeat_penalty orelse 1;
    return .{
        .model = model,
        .max_tokens = try parsed.whole(usize, "max-tokens", 0, 1 << 30) orelse 128,
        .settings = settings,
        .threads = try parsed.whole(usize, "threads", 1, 1024) orelse 0,
        .context = try parsed.whole(usize, "context", 1, 1 << 24),
    };
}

fn generate(app: *app_file.App, parsed: *arguments.Parsed, options: Options, model: *infer.Model) app_file.RunError!app_file.Exit {
    const gpa = app.gpa;
    const a = app.arena;
    const prompt: []const u32 = readIds(a, parsed.text("ids").?) catch |err| switch (err) {
        error.OutOfMemory => return error.OutOfMemory,
        error.Usage => {
            try app.complain(verb.name, "--ids must be token ids with commas between, as 1,2,3");
            return .usage;
        },
    };
    const context = options.context orelse @min(4096, model.config.max_position_embeddings);
    const pool = abi.base.Pool.init(gpa, options.threads) catch return error.OutOfMemory;
    defer pool.deinit();
    var session: infer.Session = try .init(gpa, model, pool, context);
    defer session.deinit();
    var sampler: infer.Sampler = try .init(gpa, model.config.vocab_size, sampling.options(app.io, options.settings));
    defer sampler.deinit(gpa);

    var prompt_logits: std.ArrayList([]const f32) = .empty;
    const fed = if (parsed.has("prompt-logits")) blk: {
        for (prompt) |id| {
            const logits = session.step(id) catch |err| break :blk err;
            try prompt_logits.append(a, try a.dupe(f32, logits));
        }
        break :blk {};
    } else if (session.prefill(prompt)) |_| {} else |err| err;
    fed catch |err| return app.fail(verb.name, switch (err) {
        error.ContextFull => try std.fmt.allocPrint(a, "the prompt's {d} tokens do not fit in a context of {d}; raise --context", .{ prompt.len, context }),
        error.InvalidToken => try std.fmt.allocPrint(a, "an id is not below the model's vocabulary of {d}", .{model.config.vocab_size}),
    });
    for (prompt) |id| sampler.accept(id);

    const eos = model.config.eos_token_id;
    const stop_ids: []const u32 = if (parsed.has("ignore-stop") or eos == null) &.{} else &.{eos.?};
    var generator: infer.Generator = .init(&session, &sampler, stop_ids, options.max_tokens);
    var ids: std.ArrayList(u32) = .empty;
    var logits: std.ArrayList([]const f32) = .empty;
    while (generator.next() catch return app.fail(verb.name, "the model's logits are not numbers: its weights are broken")) |id| {
        try ids.append(a, id);
        if (parsed.has("logits")) try logits.append(a, try a.dupe(f32, session.logits));
        if (!parsed.has("json") and parsed.has("print-ids")) {
            try app.out.print("{s}{d}", .{ if (ids.items.len > 1) "," else "", id });
            try app.out.flush();
        }
    }
    if (parsed.has("json")) {
        try std.json.Stringify.value(.{
            .prompt_ids = prompt,
            .ids = ids.items,
            .end = generator.end.?,
            .logits = if (parsed.has("logits")) logits.items else null,
            .prompt_logits = if (parsed.has("prompt-logits")) prompt_logits.items else null,
        }, .{ .emit_null_optional_fields = false }, app.out);
    }
    try app.out.writeByte('\n');
    return .ok;
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
