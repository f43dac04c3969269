//! `trainer_state.json`: where a run stands, in Hugging Face's fields plus ours.
//!
//! transformers builds its `TrainerState` from this file and refuses unknown top-level keys, so everything that is only
//! ours lives under `stateful_callbacks.abi_train`, which it passes over. Numbers are written so that they read back
//! to the same bits. Does not know: folders, weights.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const data = @import("data");
const formats = @import("formats");
const preference = @import("preference.zig");
const DpoConfig = @import("preference_config.zig").DpoConfig;
const ReferenceKind = @import("preference_objective.zig").ReferenceKind;

/// One line of the log: an update or an evaluation.
pub const LogRecord = struct {
    step: u64,
    epoch: f64,
    loss: ?f64 = null,
    grad_norm: ?f64 = null,
    learning_rate: ?f64 = null,
    perplexity: ?f64 = null,
    accuracy: ?f64 = null,
    tokens_per_second: ?f64 = null,
    eval_loss: ?f64 = null,
    eval_perplexity: ?f64 = null,
    eval_accuracy: ?f64 = null,
    // Runs on pairs, under TRL's names.
    @"rewards/chosen": ?f64 = null,
    @"rewards/rejected": ?f64 = null,
    @"rewards/margins": ?f64 = null,
    @"rewards/accuracies": ?f64 = null,
    @"logps/chosen": ?f64 = null,
    @"logps/rejected": ?f64 = null,
    @"logits/chosen": ?f64 = null,
    @"logits/rejected": ?f64 = null,
    @"eval_rewards/chosen": ?f64 = null,
    @"eval_rewards/rejected": ?f64 = null,
    @"eval_rewards/margins": ?f64 = null,
    @"eval_rewards/accuracies": ?f64 = null,
    @"eval_logps/chosen": ?f64 = null,
    @"eval_logps/rejected": ?f64 = null,
    @"eval_logits/chosen": ?f64 = null,
    @"eval_logits/rejected": ?f64 = null,

    /// Takes over what a run on pairs tells; `prefix` is `eval_` for an evaluation.
    pub fn addPreference(self: *LogRecord, comptime prefix: []const u8, metrics: preference.Metrics) void {
        inline for (.{ "rewards", "rewards", "rewards", "rewards", "logps", "logps", "logits", "logits" }, .{ "chosen", "rejected", "margins", "accuracies", "chosen", "rejected", "chosen", "rejected" }) |group, name|
            @field(self, prefix ++ group ++ "/" ++ name) = @field(metrics, group ++ "_" ++ name);
    }
};

/// What must be the same when a run is resumed, or the resumed run is another run.
pub const Identity = struct {
    batch_size: u32,
    grad_accum_steps: u32,
    max_seq_len: u32,
    shuffle: bool,
    seed: u64,
    /// Tokens and rows of the training data.
    data_tokens: u64,
    data_rows: u64,
    /// CRC-32C over the first and last 64 KiB of token ids.
    data_crc32c: u32,
    /// What is trained. Left out of the file when it is all weights.
    method: Method = .full,
    /// The adapter's settings: for whoever reads the file. This engine compares the adapters themselves.
    lora: ?LoraRecord = null,
    /// `Source.fingerprint` of an adapter's base. An engine that cannot compute it leaves it out; then it is not compared.
    base_crc32c: ?u32 = null,
    /// By what it is learned. Left out of the file when it is next tokens.
    objective: Objective = .sft,
    dpo: ?DpoRecord = null,
    /// Which reference pairs are compared with.
    reference: ?ReferenceRecord = null,
    /// CRC-32C of the reference's own numbers, where the base alone does not say which it is.
    reference_crc32c: ?u32 = null,
    /// Left out of the file when rows are not packed.
    packing: data.Packing = .none,

    pub const Method = enum { full, lora };
    pub const Objective = enum { sft, dpo };

    pub fn jsonStringify(self: Identity, json: *std.json.Stringify) std.Io.Writer.Error!void {
        try writeWithout(json, self, .{
            .method = self.method == .full,
            .lora = self.lora == null,
            .base_crc32c = self.base_crc32c == null,
            .objective = self.objective == .sft,
            .dpo = self.dpo == null,
            .reference = self.reference == null,
            .reference_crc32c = self.reference_crc32c == null,
            .packing = self.packing == .none,
        });
    }
};

/// LoRA settings in the file.
pub const LoraRecord = struct {
    settings: arch.LoraSettings,

    pub fn jsonStringify(self: LoraRecord, json: *std.json.Stringify) std.Io.Writer.Error!void {
        try json.beginObject();
        try formats.adapter_config.writeSettings(json, self.settings);
        try json.endObject();
    }

    /// Passed over: `adapter_config.json` beside the file has the same.
    pub fn jsonParse(_: std.mem.Allocator, source: anytype, _: std.json.ParseOptions) !LoraRecord {
        try source.skipValue();
        return .{ .settings = .{} };
    }
};

/// What decides the numbers of a loss over pairs. Holds its terms itself: the file's text may go.
pub const DpoRecord = struct {
    beta: f64,
    label_smoothing: f64,
    weighted: bool,
    count: usize,
    terms: [preference.max_losses]preference.Term,

    pub fn of(dpo: DpoConfig) DpoRecord {
        var self: DpoRecord = .{
            .beta = dpo.beta,
            .label_smoothing = dpo.label_smoothing,
            .weighted = dpo.weighted,
            .count = dpo.terms.len,
            .terms = @splat(.{ .type = .sigmoid }),
        };
        @memcpy(self.terms[0..dpo.terms.len], dpo.terms);
        return self;
    }

    fn config(self: *const DpoRecord) DpoConfig {
        return .{ .beta = self.beta, .label_smoothing = self.label_smoothing, .weighted = self.weighted, .terms = self.terms[0..self.count] };
    }

    pub fn jsonStringify(self: DpoRecord, json: *std.json.Stringify) std.Io.Writer.Error!void {
        try self.config().writeIdentity(json);
    }

    pub fn jsonParse(arena: std.mem.Allocator, source: anytype, options: std.json.ParseOptions) !DpoRecord {
        const value = try std.json.innerParse(std.json.Value, arena, source, options);
        var unsaid: base.Diagnostic = .{};
        return of(DpoConfig.parse(arena, value, &unsaid) catch |err| return if (err == error.OutOfMemory) error.OutOfMemory else error.UnexpectedToken);
    }

    /// The first setting that differs, or null. Weights of 1 that were given equal those that were not.
    fn difference(a: *const DpoRecord, b: *const DpoRecord) ?[]const u8 {
        if (a.beta != b.beta) return "beta";
        if (a.label_smoothing != b.label_smoothing) return "label_smoothing";
        if (a.count != b.count) return "loss_type";
        for (a.terms[0..a.count], b.terms[0..b.count]) |x, y| {
            if (x.type != y.type) return "loss_type";
            if (x.weight != y.weight) return "loss_weights";
        }
        return null;
    }
};

/// A reference in the file: its kind, and ` (precomputed)` when it was asked once.
pub const ReferenceRecord = struct {
    kind: ReferenceKind,
    precomputed: bool,

    const suffix = " (precomputed)";

    pub fn format(self: ReferenceRecord, w: *std.Io.Writer) std.Io.Writer.Error!void {
        try w.print("{t}{s}", .{ self.kind, if (self.precomputed) suffix else "" });
    }

    pub fn jsonStringify(self: ReferenceRecord, json: *std.json.Stringify) std.Io.Writer.Error!void {
        try json.print("\"{f}\"", .{self});
    }

    pub fn jsonParse(arena: std.mem.Allocator, source: anytype, options: std.json.ParseOptions) !ReferenceRecord {
        const text = try std.json.innerParse([]const u8, arena, source, options);
        const precomputed = std.mem.endsWith(u8, text, suffix);
        const name = if (precomputed) text[0 .. text.len - suffix.len] else text;
        return .{ .kind = std.meta.stringToEnum(ReferenceKind, name) orelse return error.InvalidEnumTag, .precomputed = precomputed };
    }
};

/// All fields of `value`, but not those that are true in `without`.
fn writeWithout(json: *std.json.Stringify, value: anytype, without: anytype) std.Io.Writer.Error!void {
    try json.beginObject();
    inline for (@typeInfo(@TypeOf(value)).@"struct".field_names) |name| {
        const left_out = if (@hasField(@TypeOf(without), name)) @field(without, name) else false;
        if (!left_out) {
            try json.objectField(name);
            try json.write(@field(value, name));
        }
    }
    try json.endObject();
}

/// Everything besides weights and moments.
pub const State = struct {
    global_step: u64 = 0,
    /// Current epoch, and the next micro-batch inside it.
    epoch: u64 = 0,
    micro_index: u64 = 0,
    /// Updates planned in all.
    max_steps: u64 = 0,
    tokens_processed: u64 = 0,
    time_ns: u64 = 0,
    best_metric: ?f64 = null,
    best_accuracy: f64 = 0,
    best_step: ?u64 = null,
    evaluations_without_improvement: u32 = 0,
    last_loss: f64 = 0,
    last_accuracy: f64 = 0,
    checkpoints_saved: u32 = 0,
    /// The generator of an adapter's dropout. Left out of the file without dropout.
    dropout_state: ?[4]u64 = null,

    /// Refuses a place in the data that no run with so many micro-batches in an epoch can have.
    pub fn checkPlace(self: State, per_epoch: usize, grad_accum_steps: u32, path: []const u8, diag: *base.Diagnostic) error{InvalidTrainerState}!void {
        const updates = (@as(u64, per_epoch) + grad_accum_steps - 1) / grad_accum_steps;
        const whole = std.math.mul(u64, self.epoch, updates) catch std.math.maxInt(u64);
        const sound = self.micro_index < per_epoch and self.micro_index % grad_accum_steps == 0 and
            self.global_step >= whole and self.global_step - whole == self.micro_index / grad_accum_steps;
        if (sound) return;
        diag.set("{s}: trainer_state.json says {d} updates done, epoch {d} and micro-batch {d}, which no run over {d} micro-batches " ++
            "an epoch comes to. Resume from another checkpoint.", .{ path, self.global_step, self.epoch, self.micro_index, per_epoch });
        return error.InvalidTrainerState;
    }

    pub fn jsonStringify(self: State, json: *std.json.Stringify) std.Io.Writer.Error!void {
        try writeWithout(json, self, .{ .dropout_state = self.dropout_state == null });
    }
};

/// Constants of the run that Hugging Face's file also holds.
pub const Header = struct {
    epochs: u32,
    log_interval: u32,
    eval_interval: u32,
    checkpoint_interval: u32,
    epoch_fraction: f64,
    version: []const u8,
};

const Ours = struct {
    engine: []const u8,
    version: []const u8,
    identity: Identity,
    state: State,
};

const File = struct {
    best_global_step: ?u64,
    best_metric: ?f64,
    best_model_checkpoint: ?[]const u8,
    epoch: f64,
    eval_steps: u32,
    global_step: u64,
    is_hyper_param_search: bool = false,
    is_local_process_zero: bool = true,
    is_world_process_zero: bool = true,
    log_history: []const LogRecord,
    logging_steps: u32,
    max_steps: u64,
    num_input_tokens_seen: u64,
    num_train_epochs: u32,
    save_steps: u32,
    stateful_callbacks: struct { abi_train: Ours },
    total_flos: f64 = 0,
    train_batch_size: u32,
    trial_name: ?[]const u8 = null,
    trial_params: ?u8 = null,
};

/// Caller frees. `best_path` names the folder with the best weights, if any.
pub fn write(
    gpa: std.mem.Allocator,
    state: State,
    identity: Identity,
    header: Header,
    history: []const LogRecord,
    best_path: ?[]const u8,
) error{OutOfMemory}![]u8 {
    var out: std.Io.Writer.Allocating = .init(gpa);
    defer out.deinit();

    var json: std.json.Stringify = .{ .writer = &out.writer, .options = .{ .whitespace = .indent_2 } };
    writeFile(&json, .{
        .best_global_step = state.best_step,
        .best_metric = state.best_metric,
        .best_model_checkpoint = best_path,
        .epoch = header.epoch_fraction,
        .eval_steps = header.eval_interval,
        .global_step = state.global_step,
        .log_history = history,
        .logging_steps = header.log_interval,
        .max_steps = state.max_steps,
        .num_input_tokens_seen = state.tokens_processed,
        .num_train_epochs = header.epochs,
        .save_steps = header.checkpoint_interval,
        .stateful_callbacks = .{ .abi_train = .{
            .engine = "native",
            .version = header.version,
            .identity = identity,
            .state = state,
        } },
        .train_batch_size = identity.batch_size,
    }) catch return error.OutOfMemory;
    return out.toOwnedSlice();
}

/// Nulls stay where Hugging Face expects the key; they are left out of log records.
fn writeFile(json: *std.json.Stringify, file: File) !void {
    try json.beginObject();
    inline for (@typeInfo(File).@"struct".field_names) |name| {
        try json.objectField(name);
        if (comptime std.mem.eql(u8, name, "log_history")) {
            try json.beginArray();
            for (file.log_history) |record| try writeRecord(json, record);
            try json.endArray();
        } else try json.write(@field(file, name));
    }
    try json.endObject();
}

fn writeRecord(json: *std.json.Stringify, record: LogRecord) !void {
    try json.beginObject();
    inline for (@typeInfo(LogRecord).@"struct".field_names) |name| {
        const value = @field(record, name);
        if (@typeInfo(@TypeOf(value)) == .optional) {
            if (value) |v| {
                try json.objectField(name);
                try json.write(v);
            }
        } else {
            try json.objectField(name);
            try json.write(value);
        }
    }
    try json.endObject();
}

pub const ReadError = error{ OutOfMemory, InvalidTrainerState };

pub const Read = struct {
    state: State,
    identity: Identity,
    /// Owned by the given allocator.
    history: []LogRecord,
};

/// `diag` says what is wrong; the caller adds the file's name.
pub fn read(gpa: std.mem.Allocator, text: []const u8, diag: *base.Diagnostic) ReadError!Read {
    const Shape = struct {
        log_history: []const LogRecord = &.{},
        stateful_callbacks: struct { abi_train: ?Ours = null } = .{},
    };
    const parsed = std.json.parseFromSlice(Shape, gpa, text, .{
        .ignore_unknown_fields = true,
        .duplicate_field_behavior = .@"error",
    }) catch |err| switch (err) {
        error.OutOfMemory => return error.OutOfMemory,
        else => {
            diag.set("trainer_state.json cannot be read ({t}). Resume from another checkpoint.", .{err});
            return error.InvalidTrainerState;
        },
    };
    defer parsed.deinit();

    const ours = parsed.value.stateful_callbacks.abi_train orelse {
        diag.set("trainer_state.json has no stateful_callbacks.abi_train: the checkpoint was not written by " ++
            "abi_train. Start a new run from its weights instead of resuming.", .{});
        return error.InvalidTrainerState;
    };
    return .{
        .state = ours.state,
        .identity = ours.identity,
        .history = try gpa.dupe(LogRecord, parsed.value.log_history),
    };
}

/// Compares field by field; `diag` names the first that differs.
pub fn requireSame(saved: Identity, now: Identity, diag: *base.Diagnostic) error{ResumeMismatch}!void {
    inline for (@typeInfo(Identity).@"struct".field_names) |name| {
        const was = @field(saved, name);
        const is = @field(now, name);
        if (comptime std.mem.eql(u8, name, "lora")) continue;
        if (comptime std.mem.eql(u8, name, "method")) {
            if (was != is) {
                diag.set("cannot resume: method was {t} when the checkpoint was saved and is {t} now. " ++
                    "Use the same method, or start a new run from the checkpoint's weights.", .{ was, is });
                return error.ResumeMismatch;
            }
            continue;
        }
        if (comptime std.mem.eql(u8, name, "objective")) {
            if (was != is) {
                diag.set("cannot resume: objective was {t} when the checkpoint was saved and is {t} now. " ++
                    "Use the same objective, or start a new run from the checkpoint's weights.", .{ was, is });
                return error.ResumeMismatch;
            }
            continue;
        }
        if (comptime std.mem.eql(u8, name, "packing")) {
            if (was != is) {
                diag.set("cannot resume: packing was {t} when the checkpoint was saved and is {t} now. " ++
                    "Use the same packing, or start a new run from the checkpoint's weights.", .{ was, is });
                return error.ResumeMismatch;
            }
            continue;
        }
        if (comptime std.mem.eql(u8, name, "dpo")) {
            if (was) |a| if (is) |b| if (a.difference(&b)) |setting| {
                diag.set("cannot resume: dpo.{s} is not what it was when the checkpoint was saved. " ++
                    "Use the same value, or start a new run from the checkpoint's weights.", .{setting});
                return error.ResumeMismatch;
            };
            continue;
        }
        if (comptime std.mem.eql(u8, name, "reference")) {
            if (was) |a| if (is) |b| if (a.kind != b.kind) {
                diag.set("cannot resume: the reference was {f} when the checkpoint was saved and is {f} now. " ++
                    "Use the same reference, or start a new run from the checkpoint's weights.", .{ a, b });
                return error.ResumeMismatch;
            };
            continue;
        }
        if (comptime std.mem.eql(u8, name, "reference_crc32c")) {
            if (was != null and is != null and was.? != is.?) {
                diag.set("cannot resume: the reference has other numbers than the one the run began with. " ++
                    "Give the model, adapter and ref_model the run began with.", .{});
                return error.ResumeMismatch;
            }
            continue;
        }
        if (comptime std.mem.eql(u8, name, "base_crc32c")) {
            if (was != null and is != null and was.? != is.?) {
                diag.set("cannot resume: the checkpoint's adapter was trained on another base than this model. " ++
                    "Give the model the run began with.", .{});
                return error.ResumeMismatch;
            }
            continue;
        }
        if (was != is) {
            diag.set("cannot resume: {s} was {any} when the checkpoint was saved and is {any} now. " ++
                "Use the same value, or start a new run from the checkpoint's weights.", .{ name, was, is });
            return error.ResumeMismatch;
        }
    }
}

const test_identity: Identity = .{
    .batch_size = 2,
    .grad_accum_steps = 3,
    .max_seq_len = 16,
    .shuffle = true,
    .seed = 42,
    .data_tokens = 1000,
    .data_rows = 10,
    .data_crc32c = 0xdeadbeef,
};

fn roundTrip(gpa: std.mem.Allocator) !void {
    const state: State = .{
        .global_step = 7,
        .epoch = 1,
        .micro_index = 5,
        .best_metric = 0.1 + 0.2,
        .best_step = 6,
        .last_loss = 1.0 / 3.0,
    };
    const history = [_]LogRecord{
        .{ .step = 6, .epoch = 0.5, .loss = 1.0 / 3.0, .learning_rate = 1e-5 },
        .{ .step = 6, .epoch = 0.5, .eval_loss = 2.5 },
    };
    const text = try write(gpa, state, test_identity, .{
        .epochs = 3,
        .log_interval = 1,
        .eval_interval = 2,
        .checkpoint_interval = 3,
        .epoch_fraction = 1.25,
        .version = "0.1.0",
    }, &history, null);
    defer gpa.free(text);

    var diag: base.Diagnostic = .{};
    const back = try read(gpa, text, &diag);
    defer gpa.free(back.history);

    try std.testing.expectEqual(state, back.state);
    try std.testing.expectEqual(test_identity, back.identity);
    try std.testing.expectEqualSlices(LogRecord, &history, back.history);
}

test "a state reads back to the same bits, and every allocation failure is survived" {
    try std.testing.checkAllAllocationFailures(std.testing.allocator, roundTrip, .{});
}

test "what a run on pairs is reads back, and each difference is named" {
    const gpa = std.testing.allocator;
    var identity = test_identity;
    identity.objective = .dpo;
    identity.dpo = .of(.{ .beta = 0.3, .weighted = true, .terms = &.{ .{ .type = .ipo, .weight = 2 }, .{ .type = .sft, .weight = 0.1 } } });
    identity.reference = .{ .kind = .starting_model, .precomputed = true };
    identity.reference_crc32c = 7;
    const header: Header = .{ .epochs = 1, .log_interval = 1, .eval_interval = 0, .checkpoint_interval = 0, .epoch_fraction = 0, .version = "0" };
    var record: LogRecord = .{ .step = 1, .epoch = 1 };
    record.addPreference("", .{ .rewards_margins = 0.25, .logits_rejected = -3 });
    record.addPreference("eval_", .{ .rewards_accuracies = 0.5 });
    const text = try write(gpa, .{}, identity, header, &.{record}, null);
    defer gpa.free(text);

    try std.testing.expect(std.mem.find(u8, text, "\"rewards/margins\": 0.25") != null);
    try std.testing.expect(std.mem.find(u8, text, "\"starting_model (precomputed)\"") != null);
    var diag: base.Diagnostic = .{};
    const back = try read(gpa, text, &diag);
    defer gpa.free(back.history);

    try std.testing.expectEqualDeep(identity, back.identity);
    try std.testing.expectEqual(record, back.history[0]);
    try requireSame(back.identity, identity, &diag);
    const Case = struct { identity: Identity, words: []const u8 };
    var cases: [5]Case = @splat(.{ .identity = identity, .words = "" });
    cases[0].identity.objective = .sft;
    cases[0].words = "objective was dpo";
    cases[1].identity.dpo.?.beta = 0.31;
    cases[1].words = "dpo.beta";
    cases[2].identity.dpo.?.terms[1].weight = 0.2;
    cases[2].words = "dpo.loss_weights";
    cases[3].identity.reference.?.kind = .ref_model;
    cases[3].words = "the reference was starting_model (precomputed)";
    cases[4].identity.reference_crc32c = 8;
    cases[4].words = "other numbers";
    for (cases) |case| {
        try std.testing.expectError(error.ResumeMismatch, requireSame(identity, case.identity, &diag));
        try std.testing.expect(std.mem.find(u8, diag.text(), case.words) != null);
    }
    // Asked once or every time is the same run; so is a checkpoint of an engine that leaves the checksum out.
    var other = identity;
    other.reference.?.precomputed = false;
    other.reference_crc32c = null;
    try requireSame(identity, other, &diag);
}

test "a different seed is named with both values" {
    var other = test_identity;
    other.seed = 43;
    var diag: base.Diagnostic = .{};
    try std.testing.expectError(error.ResumeMismatch, requireSame(test_identity, other, &diag));
    try std.testing.expect(std.mem.find(u8, diag.text(), "seed was 42") != null);
}

test "packed rows are another run, told by their own key" {
    const gpa = std.testing.allocator;
    var packed_identity = test_identity;
    packed_identity.packing = .bfd;
    const header: Header = .{ .epochs = 1, .log_interval = 1, .eval_interval = 0, .checkpoint_interval = 0, .epoch_fraction = 0, .version = "0" };
    for ([_]Identity{ test_identity, packed_identity }) |identity| {
        const text = try write(gpa, .{}, identity, header, &.{}, null);
        defer gpa.free(text);

        try std.testing.expectEqual(identity.packing == .bfd, std.mem.find(u8, text, "\"packing\": \"bfd\"") != null);
        var diag: base.Diagnostic = .{};
        const back = try read(gpa, text, &diag);
        defer gpa.free(back.history);

        try std.testing.expectEqual(identity.packing, back.identity.packing);
    }
    var diag: base.Diagnostic = .{};
    try std.testing.expectError(error.ResumeMismatch, requireSame(packed_identity, test_identity, &diag));
    try std.testing.expect(std.mem.find(u8, diag.text(), "packing was bfd when the checkpoint was saved and is none now") != null);
}

test "a state of another program is refused" {
    var diag: base.Diagnostic = .{};
    const foreign = "{\"global_step\": 3, \"stateful_callbacks\": {}}";
    try std.testing.expectError(error.InvalidTrainerState, read(std.testing.allocator, foreign, &diag));
}

test "a place that no run comes to is refused, and every place of a run is taken" {
    var diag: base.Diagnostic = .{};
    // Seven micro-batches an epoch, three in an update: updates of 3, 3 and 1.
    for (0..10) |step| {
        const state: State = .{ .global_step = step, .epoch = step / 3, .micro_index = 3 * (step % 3) };
        try state.checkPlace(7, 3, "c", &diag);
        for ([_]State{
            .{ .global_step = step + 1, .epoch = state.epoch, .micro_index = state.micro_index },
            .{ .global_step = step, .epoch = state.epoch + 1, .micro_index = state.micro_index },
            .{ .global_step = step, .epoch = state.epoch, .micro_index = state.micro_index + 1 },
            .{ .global_step = step, .epoch = state.epoch, .micro_index = 7 },
            .{ .global_step = step, .epoch = std.math.maxInt(u64), .micro_index = std.math.maxInt(u64) },
            .{ .global_step = std.math.maxInt(u64), .epoch = state.epoch, .micro_index = state.micro_index },
        }) |wrong| try std.testing.expectError(error.InvalidTrainerState, wrong.checkPlace(7, 3, "c", &diag));
    }
    try std.testing.expect(std.mem.find(u8, diag.text(), "no run over 7 micro-batches") != null);
}
