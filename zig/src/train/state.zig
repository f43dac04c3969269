//! `trainer_state.json`: where a run stands, in Hugging Face's fields plus ours.
//!
//! transformers builds its `TrainerState` from this file and refuses unknown top-level keys, so everything that is only
//! ours lives under `stateful_callbacks.abi_train`, which it passes over. Numbers are written so that they read back
//! to the same bits. Does not know: folders, weights.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const formats = @import("formats");

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

    pub const Method = enum { full, lora };

    pub fn jsonStringify(self: Identity, json: *std.json.Stringify) std.Io.Writer.Error!void {
        try writeWithout(json, self, .{ .method = self.method == .full, .lora = self.lora == null, .base_crc32c = self.base_crc32c == null });
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

test "a different seed is named with both values" {
    var other = test_identity;
    other.seed = 43;
    var diag: base.Diagnostic = .{};
    try std.testing.expectError(error.ResumeMismatch, requireSame(test_identity, other, &diag));
    try std.testing.expect(std.mem.find(u8, diag.text(), "seed was 42") != null);
}

test "a state of another program is refused" {
    var diag: base.Diagnostic = .{};
    const foreign = "{\"global_step\": 3, \"stateful_callbacks\": {}}";
    try std.testing.expectError(error.InvalidTrainerState, read(std.testing.allocator, foreign, &diag));
}
