//! `abi train`: the native trainer from the command line.
//!
//! Every field of `LlmTrainingConfig` is an option of its own (`--learning-rate` sets `learning_rate`); a `--config` file comes
//! first, options change it. Both go through the one reader of configurations, so messages and rules are the same everywhere.
//! Progress goes to stderr; where it cannot be written, the run goes on without it. One summary line or JSON goes to stdout.
//! Ctrl-C finishes the update, saves and says where; a second one leaves at once.

const std = @import("std");
const abi = @import("abi");
const arguments = @import("arguments.zig");
const app_file = @import("app.zig");

const train = abi.train;
const interrupt = abi.agent.interrupt;
const Diagnostic = abi.base.Diagnostic;
const Exit = app_file.Exit;

const own_flags = [_]arguments.Flag{
    .{ .name = "model", .value = "PATH", .help = "model folder, .gguf, or config.json for random weights", .heading = "What to train" },
    .{ .name = "data", .value = "FILE", .help = "token ids (.bin), from `abi-train data prepare`" },
    .{ .name = "eval-data", .value = "FILE", .help = "token ids to evaluate on" },
    .{ .name = "run-dir", .value = "DIR", .help = "where checkpoint-N folders go", .default = "none: nothing is saved" },
    .{ .name = "tokenizer", .value = "DIR", .help = "tokenizer files to keep with each checkpoint", .default = "the model's folder" },
    .{ .name = "resume", .help = "go on from the newest sound checkpoint of --run-dir" },
    .{ .name = "config", .value = "FILE", .help = "LlmTrainingConfig as JSON; options below change it" },
    .{ .name = "json", .help = "the final report as JSON on stdout" },
    .{ .name = "lora", .help = "train a LoRA adapter; the model itself stays as it is", .heading = "Adapter" },
    .{ .name = "lora-r", .value = "N", .help = "rank", .default = "8" },
    .{ .name = "lora-alpha", .value = "X", .help = "scale times rank", .default = "16" },
    .{ .name = "lora-dropout", .value = "P", .help = "share of the adapter's inputs dropped in training", .default = "0" },
    .{ .name = "lora-targets", .value = "LIST", .help = "modules with an adapter, by commas, or all-linear", .default = "q_proj,k_proj,v_proj,o_proj" },
    .{ .name = "adapter", .value = "DIR", .help = "go on with this adapter" },
    .{ .name = "stored", .help = "leave the model in its file, in its own types" },
    .{ .name = "dpo", .help = "learn from pairs of answers (preference data)", .heading = "Pairs" },
    .{ .name = "dpo-beta", .value = "X", .help = "how strongly the reference holds the model", .default = "0.1" },
    .{ .name = "dpo-loss", .value = "LIST", .help = "losses that are added, by commas", .default = "sigmoid" },
    .{ .name = "dpo-ref-model", .value = "PATH", .help = "another model as the reference", .default = "the model or adapter the run begins with" },
    .{ .name = "dpo-precompute", .help = "ask the reference once, before the first update, and let it go" },
    .{ .name = "methods", .value = "FILE", .help = "JSON with the tables lora and dpo, instead of the options above" },
};

const config_flags = blk: {
    var flags: [train.config.fields.len]arguments.Flag = undefined;
    for (&flags, train.config.fields, 0..) |*flag, field, i| {
        var name: [field.name.len]u8 = field.name[0..field.name.len].*;
        for (&name) |*c| if (c.* == '_') {
            c.* = '-';
        };
        const fixed = name;
        flag.* = .{
            .name = &fixed,
            .value = "VALUE",
            .help = field.doc,
            .default = defaultText(field.name),
            .heading = if (i == 0) "Configuration" else "",
        };
    }
    break :blk flags;
};

pub const verb: arguments.Verb = .{
    .name = "train",
    .summary = "Train a model on this machine's CPU",
    .usage = "--model PATH --data FILE [options]",
    .flags = &(own_flags ++ config_flags),
    .examples = &.{
        "abi train --model model/ --data training_data.bin --run-dir run --epochs 3",
        "abi train --model config.json --data training_data.bin --run-dir run --resume",
        "abi train --model base.gguf --stored --lora --lora-r 16 --data training_data.bin --run-dir run",
        "abi train --model model/ --adapter run/checkpoint-300 --dpo --data pairs.bin --run-dir run-dpo",
    },
};

fn defaultText(comptime name: []const u8) []const u8 {
    @setEvalBranchQuota(100_000);
    const value = @field(train.LlmTrainingConfig{}, name);
    return switch (@typeInfo(@TypeOf(value))) {
        .bool => if (value) "true" else "false",
        .@"enum" => @tagName(value),
        .optional => "",
        .float => std.fmt.comptimePrint("{d}", .{value}),
        .int => std.fmt.comptimePrint("{d}", .{value}),
        else => value,
    };
}

const Failure = error{Explained} || app_file.RunError;

/// What the command line asked for, with everything opened.
const Job = struct {
    app: *app_file.App,
    diag: Diagnostic = .{},
    parsed: *arguments.Parsed,

    fn explain(self: *Job, err: anyerror) Failure {
        if (err == error.OutOfMemory) return error.OutOfMemory;
        const text = if (self.diag.text().len > 0) self.diag.text() else abi.base.storage.words(err);
        try self.app.complain("train", text);
        return error.Explained;
    }
};

pub fn run(app: *app_file.App, given: []const []const u8) app_file.RunError!Exit {
    var parsed: arguments.Parsed = undefined;
    if (try app.parse(&parsed, &verb, given)) |end| return end;
    inline for (.{ "model", "data" }) |name| if (!parsed.has(name)) {
        try app.complain("train", "--" ++ name ++ " is missing; `abi train --help` shows what it takes");
        return .usage;
    };
    var job: Job = .{ .app = app, .parsed = &parsed };
    return runJob(&job) catch |err| switch (err) {
        error.Explained => .failed,
        else => |e| e,
    };
}

fn runJob(job: *Job) Failure!Exit {
    const app = job.app;
    const parsed = job.parsed;
    const config_text = try configText(job);
    var owned = train.parseJson(app.gpa, config_text, &job.diag) catch |err| return job.explain(err);
    defer owned.deinit();

    try checkTokenizer(job);
    const model_path = parsed.text("model").?;
    var methods: train.OwnedMethods = train.parseMethods(app.gpa, try methodsText(job), &job.diag) catch |err| return job.explain(err);
    defer methods.deinit();

    var model: Opened = try .open(job, model_path, owned.value.seed);
    defer model.deinit(app.gpa);

    try checkExport(job, owned.value, &model);
    var dataset = abi.data.TokenizedDataset.open(app.gpa, app.io, parsed.text("data").?, .{}, &job.diag) catch |err| return job.explain(err);
    defer dataset.deinit();

    var eval: ?abi.data.TokenizedDataset = null;
    defer if (eval) |*e| e.deinit();

    if (parsed.text("eval-data")) |path|
        eval = abi.data.TokenizedDataset.open(app.gpa, app.io, path, .{}, &job.diag) catch |err| return job.explain(err);

    const run_dir = parsed.text("run-dir") orelse owned.value.checkpoint_path;
    const resume_path = if (parsed.has("resume")) try newest(job, run_dir) else null;
    defer if (resume_path) |p| app.gpa.free(p);

    const trainer = train.Trainer(f32).initOver(app.gpa, app.io, model.source(), &dataset, if (eval) |*e| e else null, owned.value, .{
        .lora = methods.value.lora,
        .dpo = methods.value.dpo,
        .base_name = model_path,
        .run_dir = run_dir,
        .tokenizer_dir = parsed.text("tokenizer") orelse folderOf(model_path),
        .resume_from = resume_path,
        .version = abi.version,
    }, &job.diag) catch |err| return job.explain(err);
    defer trainer.deinit();

    if (resume_path) |p| app.tell("resuming from {s}\n", .{p});
    if (trainer.adapter != null) app.tell("{d} weights of an adapter on ", .{trainer.trained.values.len});
    app.tell("{d} weights, {d} tokens, {d} updates planned\n", .{ trainer.source.layout().total, dataset.count(), trainer.state.max_steps });
    if (trainer.identity.reference) |reference| tellPairs(app, trainer, reference);
    return watch(job, trainer);
}

/// What is learned from, and which model it is compared with.
fn tellPairs(app: *app_file.App, trainer: *const train.Trainer(f32), reference: train.state.ReferenceRecord) void {
    app.tell("{d} pairs, reference: {f}\n", .{ trainer.loader.kept.len, reference });
    if (reference.precomputed) app.tell("asking the reference about all of them first\n", .{});
    if (trainer.loader.dropped_rows > 0)
        app.tell("{d} pairs are left out: their prompt alone fills max_seq_len\n", .{trainer.loader.dropped_rows});
}

/// Drives the run and tells about it.
fn watch(job: *Job, trainer: *train.Trainer(f32)) Failure!Exit {
    const app = job.app;
    interrupt.reset();
    interrupt.installForWork("\nstopping after this update; again to leave at once\n");
    while (true) {
        if (interrupt.pressed.load(.monotonic) > 0) trainer.requestStop();
        const event = trainer.next(&job.diag) catch |err| return job.explain(err);
        switch (event orelse return .ok) {
            .step => |s| {
                const interval = trainer.config.log_interval;
                const due = interval == 0 or s.global_step % interval == 0 or s.global_step == 1 or s.global_step == trainer.state.max_steps;
                if (!due) continue;
                const left = (trainer.state.max_steps - s.global_step) * s.time_ns / std.time.ns_per_s;
                app.tell("step {d}/{d}  loss {d:.4}  ", .{ s.global_step, trainer.state.max_steps, s.loss });
                if (s.preference) |m| app.tell("margin {d:.4}  right {d:.2}  ", .{ m.rewards_margins, m.rewards_accuracies });
                app.tell("lr {e:.2}  grad {d:.3}  {d:.0} tok/s  eta {d}m{d:0>2}s\n", .{
                    s.learning_rate, s.grad_norm, s.throughput, left / 60, left % 60,
                });
            },
            .evaluation => |e| if (e.preference) |m| app.tell("step {d}  eval loss {d:.4}  margin {d:.4}  right {d:.3}{s}\n", .{
                e.global_step, e.loss, m.rewards_margins, m.rewards_accuracies, if (e.improved) "  best so far" else "",
            }) else app.tell("step {d}  eval loss {d:.4}  perplexity {d:.2}  accuracy {d:.3}{s}\n", .{
                e.global_step, e.loss, e.perplexity, e.accuracy, if (e.improved) "  best so far" else "",
            }),
            .gradient => unreachable, // There is one process.
            .reference => |r| app.tell("reference asked about {d} of {d} pairs\n", .{ r.asked, r.pairs }),
            .checkpoint => |c| app.tell("saved {s}\n", .{c.path}),
            .finished => |f| {
                if (f.stop_reason == .interrupted) tellWhere(app, trainer);
                if (f.stop_reason != .interrupted) try exportModel(job, trainer);
                try writeReport(job, f);
                if (f.stop_reason != .interrupted) return .ok;
                return if (interrupt.terminated()) .terminated else .interrupted;
            },
        }
    }
}

/// After a stop: what is kept of the run, and how to go on.
fn tellWhere(app: *app_file.App, trainer: *const train.Trainer(f32)) void {
    const step = trainer.state.global_step;
    if (trainer.run) |kept| {
        app.tell("stopped after update {d}: {s}/checkpoint-{d} holds it, --resume goes on from there\n", .{ step, kept.dir, step });
    } else app.tell("stopped after update {d}: nothing is kept, there is no --run-dir\n", .{step});
}

/// `export_gguf_path`: the weights the run ended with, as a file the agent runs.
fn exportModel(job: *Job, trainer: *train.Trainer(f32)) Failure!void {
    const path = trainer.config.export_gguf_path orelse return;
    if (trainer.adapter) |*adapter| {
        // The file gets base and adapter as one; the base in memory stays what it is.
        const gpa = job.app.gpa;
        var merged = openModel(job, job.parsed.text("model").?, trainer.config.seed) catch |err| return job.explain(err);
        defer merged.deinit(gpa);

        abi.checkpoint.mergeInto(f32, gpa, &merged, adapter) catch |err| return job.explain(err);
        return exportWeights(job, trainer, path, &merged);
    }
    return exportWeights(job, trainer, path, trainer.source.dense);
}

fn exportWeights(job: *Job, trainer: *train.Trainer(f32), path: []const u8, model: *const abi.checkpoint.LoadedModel(f32)) Failure!void {
    var options = exportOptions(job, path, trainer.config, model);
    options.pool = trainer.pool;
    const report = abi.formats.gguf_export.exportGguf(job.app.gpa, job.app.io, options, &job.diag) catch |err| return job.explain(err);
    job.app.tell("exported {s}, {d} bytes\n", .{ report.path, report.bytes });
}

fn exportOptions(job: *const Job, path: []const u8, config: train.LlmTrainingConfig, model: *const abi.checkpoint.LoadedModel(f32)) abi.formats.gguf_export.Options {
    const tokenizer = job.parsed.text("tokenizer") orelse folderOf(job.parsed.text("model").?);
    return .{
        .source = .{ .weights = .{ .config = model.config, .flat = model.weights } },
        .out_path = path,
        .dtype = .f16,
        .name = config.export_name,
        .tokenizer = if (tokenizer) |folder| .{ .folder = folder } else .none,
    };
}

/// What would fail after the last update is said before the first one.
fn checkExport(job: *Job, config: train.LlmTrainingConfig, opened: *const Opened) Failure!void {
    const path = config.export_gguf_path orelse return;
    if (!std.ascii.endsWithIgnoreCase(path, ".gguf")) {
        job.diag.set("export_gguf_path is \"{s}\"; it must end in .gguf", .{path});
        return job.explain(error.InvalidConfiguration);
    }
    var disk: abi.base.storage.Disk = .init(job.app.io);
    const there = disk.storage().kind(path) catch |err| return unusable(job, path, err);
    if (there) |kind| if (kind != .file) return unusable(job, path, if (kind == .folder) error.IsDir else error.AlreadyExists);
    const folder = abi.base.storage.parentOf(path);
    const arena = job.app.arena;
    const folder_kind = disk.storage().kind(folder) catch |err| return unusable(job, path, err);
    if (folder_kind) |kind| {
        if (kind != .folder) return unusable(job, path, error.NotDir);
        if (std.c.access(try arena.dupeSentinel(u8, folder, 0), std.posix.W_OK) != 0) return unusable(job, path, error.AccessDenied);
    } else {
        // The run's own folder is made when the run begins.
        const run_dir = job.parsed.text("run-dir") orelse config.checkpoint_path orelse return unusable(job, path, error.FileNotFound);
        const same = std.mem.eql(u8, try std.fs.path.resolve(arena, &.{run_dir}), try std.fs.path.resolve(arena, &.{folder}));
        if (!same) return unusable(job, path, error.FileNotFound);
    }
    const model = switch (opened.*) {
        .loaded => |*m| m,
        .stored => return, // Its sizes are known when it is merged.
    };
    // Puts together all the file will say, the tokenizer included, without writing it.
    _ = abi.formats.gguf_export.predictSize(job.app.gpa, job.app.io, exportOptions(job, path, config, model), &job.diag) catch |err| {
        job.diag.prepend("export_gguf_path: ", .{});
        return job.explain(err);
    };
}

fn unusable(job: *Job, path: []const u8, err: anyerror) Failure {
    abi.base.storage.explain(&job.diag, err, "write", path);
    job.diag.prepend("export_gguf_path: ", .{});
    return job.explain(err);
}

/// A tokenizer that was asked for must be there; the model's folder may have none.
fn checkTokenizer(job: *Job) Failure!void {
    const path = job.parsed.text("tokenizer") orelse return;
    var disk: abi.base.storage.Disk = .init(job.app.io);
    var listing = disk.storage().list(job.app.gpa, path) catch |err| {
        if (err == error.OutOfMemory) return error.OutOfMemory;
        abi.base.storage.explain(&job.diag, err, "read", path);
        job.diag.prepend("--tokenizer: ", .{});
        return job.explain(err);
    };
    defer listing.deinit();

    for (listing.entries) |entry| for ([_][]const u8{ "tokenizer.json", "tokenizer.model" }) |name| {
        if (std.mem.eql(u8, entry.name, name)) return;
    };
    job.diag.set("--tokenizer {s}: neither tokenizer.json nor tokenizer.model is in this folder. Give the folder of the tokenizer", .{path});
    return job.explain(error.FileNotFound);
}

fn writeReport(job: *Job, report: train.TrainingReport) app_file.RunError!void {
    const out = job.app.out;
    if (job.parsed.has("json")) {
        try writeReportJson(report, out);
        try out.writeByte('\n');
        return;
    }
    try out.print("{t}: {d} updates, {d} tokens, final loss {d:.4}, {d:.0} tokens/s\n", .{
        report.stop_reason, report.total_steps, report.total_tokens, report.final_loss, report.avg_throughput,
    });
}

/// JSON has no infinity (the best loss before any evaluation): null stands for it.
fn writeReportJson(report: train.TrainingReport, out: *std.Io.Writer) app_file.RunError!void {
    var json: std.json.Stringify = .{ .writer = out };
    try json.beginObject();
    inline for (@typeInfo(train.TrainingReport).@"struct".field_names) |name| {
        try json.objectField(name);
        const value = @field(report, name);
        const endless = @TypeOf(value) == f64 and !std.math.isFinite(value);
        if (endless) try json.write(null) else try json.write(value);
    }
    try json.endObject();
}

/// The `--config` file with the options put on top, as one JSON object.
fn configText(job: *Job) Failure![]const u8 {
    const arena = job.app.arena;
    var object: std.json.ObjectMap = .empty;
    if (job.parsed.text("config")) |path| {
        const text = readText(job, path) catch |err| return job.explain(err);
        const value = std.json.parseFromSliceLeaky(std.json.Value, arena, text, .{ .parse_numbers = false }) catch |err| {
            job.diag.set("{s}: {s}", .{ path, switch (err) {
                error.UnexpectedEndOfInput => "the configuration is cut off: its JSON ends too early",
                error.DuplicateField => "the configuration has a key twice; remove one of them",
                else => "the configuration is not valid JSON. YAML and TOML are for `abi-train train`",
            } });
            return job.explain(err);
        };
        if (value != .object) {
            job.diag.set("{s}: the configuration must be a JSON object of settings", .{path});
            return job.explain(error.InvalidConfiguration);
        }
        object = value.object;
    }
    for (train.config.fields, job.parsed.values[own_flags.len..]) |field, given| {
        const text = given orelse continue;
        // A value that is JSON by itself (number, true, null) is that; anything else is a string.
        const value = std.json.parseFromSliceLeaky(std.json.Value, arena, text, .{ .parse_numbers = false }) catch std.json.Value{ .string = text };
        try object.put(arena, field.name, value);
    }
    var out: std.Io.Writer.Allocating = .init(arena);
    std.json.Stringify.value(std.json.Value{ .object = object }, .{}, &out.writer) catch return error.OutOfMemory;
    return out.written();
}

/// A small text file whole, or in `diag` why not.
fn readText(job: *Job, path: []const u8) ![]u8 {
    const limit = train.config_text.max_text_bytes;
    return std.Io.Dir.cwd().readFileAlloc(job.app.io, path, job.app.arena, .limited(limit)) catch |err| {
        if (err == error.StreamTooLong) {
            job.diag.set("{s}: has more than {d} bytes, which no configuration has. Check the path.", .{ path, limit });
        } else abi.base.storage.explain(&job.diag, err, "read", path);
        return err;
    };
}

const lora_options = .{
    .{ "lora-r", "r" }, .{ "lora-alpha", "lora_alpha" }, .{ "lora-dropout", "lora_dropout" }, .{ "adapter", "adapter" }, .{ "lora-targets", "target_modules" },
};
const dpo_options = .{ .{ "dpo-beta", "beta" }, .{ "dpo-loss", "loss_type" }, .{ "dpo-ref-model", "ref_model" } };

/// The options of adapter and pairs as the JSON object that the one reader of methods takes.
fn methodsText(job: *Job) Failure![]const u8 {
    const parsed = job.parsed;
    const arena = job.app.arena;
    if (parsed.text("methods")) |path| {
        inline for (lora_options ++ dpo_options ++ .{ .{"lora"}, .{"dpo"}, .{"dpo-precompute"} }) |option| if (parsed.has(option[0])) {
            job.diag.set("--methods and --{s} cannot be given together. Put the setting into the file", .{option[0]});
            return job.explain(error.InvalidConfiguration);
        };
        return readText(job, path) catch |err| job.explain(err);
    }
    var lora: std.json.ObjectMap = .empty;
    inline for (lora_options) |option| if (parsed.text(option[0])) |text| {
        try lora.put(arena, option[1], try methodsValue(arena, option[0], text));
    };
    var dpo: std.json.ObjectMap = .empty;
    inline for (dpo_options) |option| if (parsed.text(option[0])) |text| {
        try dpo.put(arena, option[1], try methodsValue(arena, option[0], text));
    };
    if (parsed.has("dpo-precompute")) try dpo.put(arena, "precompute_ref_log_probs", .{ .bool = true });
    var methods: std.json.ObjectMap = .empty;
    if (lora.count() > 0 or parsed.has("lora")) try methods.put(arena, "lora", .{ .object = lora });
    if (dpo.count() > 0 or parsed.has("dpo")) try methods.put(arena, "dpo", .{ .object = dpo });
    var out: std.Io.Writer.Allocating = .init(arena);
    std.json.Stringify.value(std.json.Value{ .object = methods }, .{}, &out.writer) catch return error.OutOfMemory;
    return out.written();
}

/// A path stays text, a list is cut at its commas, anything else is JSON by itself or text.
fn methodsValue(arena: std.mem.Allocator, name: []const u8, text: []const u8) error{OutOfMemory}!std.json.Value {
    if (std.mem.eql(u8, name, "adapter") or std.mem.eql(u8, name, "dpo-ref-model")) return .{ .string = text };
    if (std.mem.eql(u8, name, "lora-targets") or std.mem.eql(u8, name, "dpo-loss")) {
        if (std.mem.eql(u8, text, "all-linear")) return .{ .string = text };
        var names: std.json.Array = .init(arena);
        var parts = std.mem.splitScalar(u8, text, ',');
        while (parts.next()) |part| try names.append(.{ .string = std.mem.trim(u8, part, " ") });
        return .{ .array = names };
    }
    return std.json.parseFromSliceLeaky(std.json.Value, arena, text, .{}) catch .{ .string = text };
}

/// The model in memory, or in its file.
const Opened = union(enum) {
    loaded: abi.checkpoint.LoadedModel(f32),
    stored: abi.checkpoint.MappedModel,

    fn open(job: *Job, path: []const u8, seed: u64) Failure!Opened {
        if (!job.parsed.has("stored")) return .{ .loaded = openModel(job, path, seed) catch |err| return job.explain(err) };
        return .{ .stored = abi.checkpoint.openMapped(job.app.gpa, job.app.io, path, &job.diag) catch |err| return job.explain(err) };
    }

    fn deinit(self: *Opened, gpa: std.mem.Allocator) void {
        switch (self.*) {
            .loaded => |*model| model.deinit(gpa),
            .stored => |*model| model.deinit(),
        }
    }

    fn source(self: *Opened) train.Source(f32) {
        return switch (self.*) {
            .loaded => |*model| .{ .dense = model },
            .stored => |*model| .{ .mapped = model },
        };
    }
};

fn openModel(job: *Job, path: []const u8, seed: u64) !abi.checkpoint.LoadedModel(f32) {
    const app = job.app;
    if (!std.mem.endsWith(u8, path, ".json")) return abi.checkpoint.loadModel(f32, app.gpa, app.io, path, &job.diag);
    const text = try readText(job, path);
    const config = abi.formats.hf_config.parse(app.gpa, text, &job.diag) catch |err| {
        job.diag.prepend("{s}: ", .{path});
        return err;
    };
    return abi.checkpoint.initRandom(f32, app.gpa, config, seed);
}

/// Newest sound checkpoint, or null (a fresh start) when there is none yet.
fn newest(job: *Job, run_dir: ?[]const u8) Failure!?[]u8 {
    const dir = run_dir orelse {
        job.diag.set("--resume needs --run-dir", .{});
        return job.explain(error.NoRunFolder);
    };
    const found = abi.checkpoint.latest(job.app.gpa, job.app.io, dir, &job.diag) catch |err| return job.explain(err);
    if (job.diag.text().len > 0) try job.app.complain("train", job.diag.text());
    job.diag.clear();
    return if (found) |f| f.path else null;
}

/// A model folder brings its own tokenizer; a single file does not.
fn folderOf(model_path: []const u8) ?[]const u8 {
    const file = std.mem.endsWith(u8, model_path, ".json") or std.mem.endsWith(u8, model_path, ".gguf");
    return if (file) std.fs.path.dirname(model_path) else model_path;
}
