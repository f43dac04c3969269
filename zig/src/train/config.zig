//! `LlmTrainingConfig`: everything a training run is told, with units, defaults, rules and one table that describes it.
//!
//! Names and defaults are those of the ABI framework's trainer; where its formula was wrong the name stays and the
//! field's comment says what is done instead. Real numbers are `f64`, not `f32`: torch keeps learning rate, betas and
//! epsilon in double and multiplies them in double before one rounding to the weights' type, so an `f32` 1e-5 would
//! already differ in the eighth digit. Zig literals look the same either way.
//!
//! `fields` is the one description: single-field rules are checked from it, the JSON schema is printed from it
//! (`config_text.zig`), and Python compares its own dataclass with that schema.
//! Does not know: files, JSON text, the model, what is in the data.

const std = @import("std");
const base = @import("base");
const data = @import("data");

/// How weights are changed from gradients.
pub const Optimizer = enum {
    /// w ← w − lr·g. No momentum and no weight decay, as in ABI.
    sgd,
    /// Adam with bias correction and no weight decay.
    adam,
    /// Adam with decoupled weight decay, as torch computes it.
    adamw,
};

/// How the learning rate changes over the optimizer steps. Formulas: `schedule.zig`.
pub const LrSchedule = enum {
    constant,
    cosine,
    warmup_cosine,
    step,
    polynomial,
    cosine_warm_restarts,
};

/// Whether rows share a sequence. `data/packing.zig` says how.
pub const Packing = data.Packing;

pub const ConfigError = error{InvalidConfiguration};

pub const LlmTrainingConfig = struct {
    /// Passes over the data. Default 10, at least 1. `max_steps` may end the run earlier or later.
    epochs: u32 = 10,
    /// Sequences in one micro-batch. Default 4, at least 1.
    batch_size: u32 = 4,
    /// Tokens in one sequence. Default 512, at least 1. Longer rows keep their start.
    /// ABI trained on one sequence of `batch_size · max_seq_len − 1` tokens instead.
    max_seq_len: u32 = 512,
    /// Rows that share one sequence of at most `max_seq_len` tokens. Default `none`; `bfd` packs as TRL's `packing=True` does, each
    /// row with its own positions and attention; `bfd_split` packs longer rows in pieces; `wrapped` takes rows as one text, in
    /// which they see each other. Needs data with row starts. `batch_size` then counts packed rows.
    packing: Packing = .none,
    /// Peak learning rate. Default 1e-5, above 0.
    learning_rate: f64 = 1e-5,
    /// Shape of the learning rate over the run. Default `warmup_cosine`.
    lr_schedule: LrSchedule = .warmup_cosine,
    /// Optimizer steps of linear warm-up; only `warmup_cosine` has one. Default 100.
    /// ABI's first step had learning rate 0 and the rate fell tenfold when the warm-up ended; ours starts at
    /// `learning_rate / warmup_steps` and reaches the peak.
    warmup_steps: u32 = 100,
    /// Optimizer steps until the schedule reaches its end, warm-up included. Default 10000; 0 = the whole run.
    /// ABI divided by zero for 0 and rose again past the end; ours stays at the minimum.
    decay_steps: u32 = 10_000,
    /// Floor of the learning rate. Default 1e-7, between 0 and `learning_rate`. ABI ignored it in most schedules.
    min_learning_rate: f64 = 1e-7,
    /// Micro-batches whose gradients make one update. Default 8, at least 1. The loss is averaged over all tokens of
    /// the update; ABI summed the micro-batches' means, so 8 steps meant an eightfold gradient.
    grad_accum_steps: u32 = 8,
    /// Largest global L2 norm of the gradient. Default 1.0; 0 = no clipping. ABI's 0 erased every gradient.
    max_grad_norm: f64 = 1.0,
    /// Decoupled decay a step, multiplied by the learning rate; `adamw` only. Default 0.01, zero or more.
    /// Norms and biases are not decayed; ABI decayed everything.
    weight_decay: f64 = 0.01,
    /// Share of the target's probability spread over the whole vocabulary. Default 0, in [0, 1).
    label_smoothing: f64 = 0.0,
    /// Default `adamw`.
    optimizer: Optimizer = .adamw,
    /// Optimizer steps between checkpoints. Default 1000; 0 = only at the end.
    checkpoint_interval: u32 = 1000,
    /// Folder that receives `checkpoint-N/`. Default null: no checkpoints.
    checkpoint_path: ?[]const u8 = null,
    /// Checkpoints kept, oldest removed first. Default 3; 0 = all. ABI kept all whatever it said.
    max_checkpoints: u32 = 3,
    /// Optimizer steps between log lines. Default 10; 0 = none.
    log_interval: u32 = 10,
    /// Optimizer steps between evaluations, when there is evaluation data. Default 500; 0 = only at the end.
    eval_interval: u32 = 500,
    /// Operands of matrix products are rounded to bfloat16; sums, weights, gradients and moments stay float32.
    /// Default false. ABI had the field and never used it.
    mixed_precision: bool = false,
    /// Folder for log files. Default null.
    log_dir: ?[]const u8 = null,
    /// Default false; needs `log_dir`. Not implemented natively: refused, not ignored.
    enable_tensorboard: bool = false,
    /// Default false; needs `log_dir`. Not implemented natively: refused, not ignored.
    enable_wandb: bool = false,
    /// Default null.
    wandb_project: ?[]const u8 = null,
    /// Default null.
    wandb_run_name: ?[]const u8 = null,
    /// Default null.
    wandb_entity: ?[]const u8 = null,
    /// GGUF file written at the end of the run. Default null: none.
    export_gguf_path: ?[]const u8 = null,
    /// `general.name` of the exported file. Default "abi-llama".
    export_name: []const u8 = "abi-llama",
    /// Seed of everything random: order of the rows, initial weights. Default 42. ABI used the clock.
    seed: u64 = 42,
    /// Draw a new order of the rows (or of the batches of a stream) each epoch. Default true.
    shuffle: bool = true,
    /// Decay of the first moment. Default 0.9, in [0, 1).
    beta1: f64 = 0.9,
    /// Decay of the second moment. Default 0.999, in [0, 1).
    beta2: f64 = 0.999,
    /// Added to the root of the second moment after the bias correction. Default 1e-8, above 0.
    eps: f64 = 1e-8,
    /// Optimizer steps of the whole run. Default 0: as many as `epochs` gives.
    max_steps: u64 = 0,
    /// Stop when evaluations no longer improve, with the best weights. Default true; needs evaluation data.
    early_stopping: bool = true,
    /// Evaluations in a row without improvement before stopping. Default 3, at least 1.
    early_stopping_patience: u32 = 3,
    /// Smallest fall of the watched figure that counts as improvement. Default 0.001, zero or more.
    early_stopping_min_delta: f64 = 0.001,
    /// true: watch the evaluation loss; false: watch the perplexity. Default true.
    early_stopping_monitor_loss: bool = true,
    /// Keep only each layer's input for the backward pass and compute the rest again: much less memory for about a
    /// quarter more time; the numbers stay the same to the bit. Default false.
    recompute_activations: bool = false,
    /// Worker threads. Default 0: one per CPU. Results have the same bits for any number.
    threads: u32 = 0,

    /// Checks every rule; on failure `diag` names field, value and rule. Passing means: no later code divides by
    /// zero, meets a NaN in the configuration, or has to ask again.
    pub fn validate(self: *const LlmTrainingConfig, diag: *base.Diagnostic) ConfigError!void {
        inline for (fields) |info| {
            try checkField(info, @field(self, info.name), diag);
        }
        if (self.min_learning_rate > self.learning_rate) return fail(
            diag,
            "min_learning_rate is {e}; it must not exceed learning_rate ({e})",
            .{ self.min_learning_rate, self.learning_rate },
        );
        if (self.lr_schedule == .warmup_cosine and self.decay_steps != 0 and
            self.decay_steps <= self.warmup_steps) return fail(
            diag,
            "decay_steps is {d}; with warmup_cosine it must exceed warmup_steps ({d}), or be 0 for the whole run",
            .{ self.decay_steps, self.warmup_steps },
        );
        if (@as(u64, self.batch_size) * self.max_seq_len > max_micro_batch_tokens) return fail(
            diag,
            "batch_size ({d}) times max_seq_len ({d}) must be at most {d} tokens",
            .{ self.batch_size, self.max_seq_len, max_micro_batch_tokens },
        );
        if (self.log_dir == null) {
            if (self.enable_tensorboard)
                return fail(diag, "enable_tensorboard is true; it needs log_dir, which is not set", .{});
            if (self.enable_wandb)
                return fail(diag, "enable_wandb is true; it needs log_dir, which is not set", .{});
        }
    }

    /// Names of the switches that are on but that the native trainer does not implement, in field order.
    /// A trainer must refuse the run when this is not empty: a wish is never silently ignored.
    pub fn unsupported(self: *const LlmTrainingConfig, buffer: *[unsupported_fields.len][]const u8) [][]const u8 {
        var count: usize = 0;
        inline for (unsupported_fields) |name| {
            if (@field(self, name)) {
                buffer[count] = name;
                count += 1;
            }
        }
        return buffer[0..count];
    }
};

/// Switches that exist for compatibility and that the native trainer cannot honour.
pub const unsupported_fields = [_][]const u8{ "enable_tensorboard", "enable_wandb" };

/// Positions in a micro-batch are 32-bit in the kernels.
pub const max_micro_batch_tokens = 1 << 30;

/// What a single value must satisfy, apart from its type. Numbers are always finite.
pub const Rule = struct {
    minimum: ?f64 = null,
    exclusive_minimum: ?f64 = null,
    exclusive_maximum: ?f64 = null,
    /// Text must hold at least one character and no NUL.
    text: bool = false,
    /// The rule in words: ends the sentence "epochs is 0; ...".
    words: []const u8 = "",
};

const any: Rule = .{};
const at_least_one: Rule = .{ .minimum = 1, .words = "it must be at least 1" };
const positive: Rule = .{ .exclusive_minimum = 0, .words = "it must be a finite number above 0" };
const not_negative: Rule = .{ .minimum = 0, .words = "it must be a finite number, 0 or more" };
const share: Rule = .{
    .minimum = 0,
    .exclusive_maximum = 1,
    .words = "it must be a finite number, at least 0 and below 1",
};
const thread_count: Rule = .{ .exclusive_maximum = 257, .words = "it must be a whole number up to 256" };
const text: Rule = .{ .text = true, .words = "it must not be empty or hold a NUL character" };

pub const Field = struct {
    name: []const u8,
    rule: Rule = any,
    /// Unit, meaning of special values. Ends without a full stop.
    doc: []const u8,
    /// Names of the same thing in the configurations of TRL and transformers, accepted in recipe files.
    aliases: []const []const u8 = &.{},
};

/// Every field in declaration order; a test holds it against the struct.
pub const fields = [_]Field{
    .{ .name = "epochs", .rule = at_least_one, .doc = "passes over the data", .aliases = &.{"num_train_epochs"} },
    .{ .name = "batch_size", .rule = at_least_one, .doc = "sequences in a micro-batch", .aliases = &.{"per_device_train_batch_size"} },
    .{ .name = "max_seq_len", .rule = at_least_one, .doc = "tokens in a sequence; longer rows keep their start", .aliases = &.{ "max_length", "max_seq_length" } },
    .{ .name = "packing", .doc = "none; bfd: rows share a sequence, each with its own positions and attention; bfd_split: longer rows in pieces; wrapped: one text, cut" },
    .{ .name = "learning_rate", .rule = positive, .doc = "peak learning rate" },
    .{ .name = "lr_schedule", .doc = "shape of the learning rate over the run" },
    .{ .name = "warmup_steps", .doc = "optimizer steps of linear warm-up (warmup_cosine only)" },
    .{ .name = "decay_steps", .doc = "optimizer steps until the schedule ends, warm-up included; 0 = the whole run" },
    .{ .name = "min_learning_rate", .rule = not_negative, .doc = "floor of the learning rate; at most learning_rate", .aliases = &.{"min_lr"} },
    .{ .name = "grad_accum_steps", .rule = at_least_one, .doc = "micro-batches in one optimizer step", .aliases = &.{"gradient_accumulation_steps"} },
    .{ .name = "max_grad_norm", .rule = not_negative, .doc = "largest global L2 norm of the gradient; 0 = no clipping" },
    .{ .name = "weight_decay", .rule = not_negative, .doc = "decoupled weight decay (adamw only); norms and biases are exempt" },
    .{ .name = "label_smoothing", .rule = share, .doc = "share of the target spread over the vocabulary", .aliases = &.{"label_smoothing_factor"} },
    .{ .name = "optimizer", .doc = "sgd, adam or adamw", .aliases = &.{"optim"} },
    .{ .name = "checkpoint_interval", .doc = "optimizer steps between checkpoints; 0 = only at the end", .aliases = &.{"save_steps"} },
    .{ .name = "checkpoint_path", .rule = text, .doc = "folder that receives checkpoint-N; null = no checkpoints", .aliases = &.{"output_dir"} },
    .{ .name = "max_checkpoints", .doc = "checkpoints kept, oldest removed first; 0 = all", .aliases = &.{"save_total_limit"} },
    .{ .name = "log_interval", .doc = "optimizer steps between log lines; 0 = none", .aliases = &.{"logging_steps"} },
    .{ .name = "eval_interval", .doc = "optimizer steps between evaluations; 0 = only at the end", .aliases = &.{"eval_steps"} },
    .{ .name = "mixed_precision", .doc = "bfloat16 products with float32 sums, weights and moments", .aliases = &.{"bf16"} },
    .{ .name = "log_dir", .rule = text, .doc = "folder for log files", .aliases = &.{"logging_dir"} },
    .{ .name = "enable_tensorboard", .doc = "needs log_dir; not implemented natively, refused when true" },
    .{ .name = "enable_wandb", .doc = "needs log_dir; not implemented natively, refused when true" },
    .{ .name = "wandb_project", .rule = text, .doc = "W&B project" },
    .{ .name = "wandb_run_name", .rule = text, .doc = "W&B run name", .aliases = &.{"run_name"} },
    .{ .name = "wandb_entity", .rule = text, .doc = "W&B entity" },
    .{ .name = "export_gguf_path", .rule = text, .doc = "GGUF file written at the end; null = none" },
    .{ .name = "export_name", .rule = text, .doc = "general.name of the exported file" },
    .{ .name = "seed", .doc = "seed of everything random" },
    .{ .name = "shuffle", .doc = "draw a new order each epoch" },
    .{ .name = "beta1", .rule = share, .doc = "decay of the first moment", .aliases = &.{"adam_beta1"} },
    .{ .name = "beta2", .rule = share, .doc = "decay of the second moment", .aliases = &.{"adam_beta2"} },
    .{ .name = "eps", .rule = positive, .doc = "added to the root of the second moment", .aliases = &.{"adam_epsilon"} },
    .{ .name = "max_steps", .doc = "optimizer steps of the whole run; 0 = as many as epochs gives" },
    .{ .name = "early_stopping", .doc = "stop when evaluations no longer improve, with the best weights" },
    .{ .name = "early_stopping_patience", .rule = at_least_one, .doc = "evaluations without improvement before stopping" },
    .{ .name = "early_stopping_min_delta", .rule = not_negative, .doc = "smallest fall that counts as improvement", .aliases = &.{"early_stopping_threshold"} },
    .{ .name = "early_stopping_monitor_loss", .doc = "true: watch loss; false: watch perplexity" },
    .{ .name = "recompute_activations", .doc = "keep only each layer's input and compute the rest again; much less memory, same bits", .aliases = &.{ "gradient_checkpointing", "activation_checkpointing" } },
    .{ .name = "threads", .rule = thread_count, .doc = "worker threads; 0 = one per CPU" },
};

fn checkField(comptime info: Field, value: anytype, diag: *base.Diagnostic) ConfigError!void {
    const rule = info.rule;
    switch (@TypeOf(value)) {
        u32, u64 => {
            var ok = true;
            if (rule.minimum) |least| ok = ok and value >= @as(u64, @trunc(least));
            if (rule.exclusive_maximum) |limit| ok = ok and value < @as(u64, @trunc(limit));
            if (!ok) return fail(diag, info.name ++ " is {d}; " ++ rule.words, .{value});
        },
        f64 => {
            var ok = std.math.isFinite(value);
            if (rule.minimum) |limit| ok = ok and value >= limit;
            if (rule.exclusive_minimum) |limit| ok = ok and value > limit;
            if (rule.exclusive_maximum) |limit| ok = ok and value < limit;
            if (!ok) return fail(diag, info.name ++ " is {d}; " ++ rule.words, .{value});
        },
        []const u8 => try checkText(info, value, diag),
        ?[]const u8 => if (value) |given| try checkText(info, given, diag),
        bool, Optimizer, LrSchedule, Packing => {},
        else => |T| @compileError("no rule for a field of type " ++ @typeName(T)),
    }
}

fn checkText(comptime info: Field, value: []const u8, diag: *base.Diagnostic) ConfigError!void {
    if (value.len == 0 or std.mem.findScalar(u8, value, 0) != null)
        return fail(diag, info.name ++ " is \"{s}\"; " ++ info.rule.words, .{value});
}

fn fail(diag: *base.Diagnostic, comptime format: []const u8, arguments: anytype) ConfigError {
    diag.set(format, arguments);
    return error.InvalidConfiguration;
}

const testing = std.testing;

test "the defaults pass and are ABI's" {
    var diag: base.Diagnostic = .{};
    const config: LlmTrainingConfig = .{};
    try config.validate(&diag);
    try testing.expectEqual(10, config.epochs);
    try testing.expectEqual(1e-5, config.learning_rate);
    try testing.expectEqual(LrSchedule.warmup_cosine, config.lr_schedule);
    try testing.expectEqual(10_000, config.decay_steps);
    try testing.expectEqualStrings("abi-llama", config.export_name);
}

test "the table has every field once, in order, with a rule that fits" {
    const names = @typeInfo(LlmTrainingConfig).@"struct".field_names;
    try testing.expectEqual(names.len, fields.len);
    inline for (names, fields) |name, info| {
        try testing.expectEqualStrings(name, info.name);
        try testing.expect(info.doc.len > 0);
        const T = @FieldType(LlmTrainingConfig, info.name);
        if (T == f64) try testing.expect(info.rule.words.len > 0);
        if (T == []const u8 or T == ?[]const u8) try testing.expect(info.rule.text);
    }
}

fn expectInvalid(config: LlmTrainingConfig, expected: []const u8) !void {
    var diag: base.Diagnostic = .{};
    try testing.expectError(error.InvalidConfiguration, config.validate(&diag));
    try testing.expectEqualStrings(expected, diag.text());
}

test "each broken rule is named with field and value" {
    try expectInvalid(.{ .epochs = 0 }, "epochs is 0; it must be at least 1");
    try expectInvalid(.{ .batch_size = 0 }, "batch_size is 0; it must be at least 1");
    try expectInvalid(.{ .max_seq_len = 0 }, "max_seq_len is 0; it must be at least 1");
    try expectInvalid(.{ .grad_accum_steps = 0 }, "grad_accum_steps is 0; it must be at least 1");
    try expectInvalid(.{ .early_stopping_patience = 0 }, "early_stopping_patience is 0; it must be at least 1");
    try expectInvalid(.{ .learning_rate = 0 }, "learning_rate is 0; it must be a finite number above 0");
    try expectInvalid(.{ .learning_rate = std.math.nan(f64) }, "learning_rate is nan; it must be a finite number above 0");
    try expectInvalid(.{ .max_grad_norm = std.math.inf(f64) }, "max_grad_norm is inf; it must be a finite number, 0 or more");
    try expectInvalid(.{ .weight_decay = -0.5 }, "weight_decay is -0.5; it must be a finite number, 0 or more");
    try expectInvalid(.{ .label_smoothing = 1 }, "label_smoothing is 1; it must be a finite number, at least 0 and below 1");
    try expectInvalid(.{ .beta1 = 1 }, "beta1 is 1; it must be a finite number, at least 0 and below 1");
    try expectInvalid(.{ .beta2 = -0.1 }, "beta2 is -0.1; it must be a finite number, at least 0 and below 1");
    try expectInvalid(.{ .eps = 0 }, "eps is 0; it must be a finite number above 0");
    try expectInvalid(.{ .early_stopping_min_delta = -1 }, "early_stopping_min_delta is -1; it must be a finite number, 0 or more");
    try expectInvalid(.{ .learning_rate = 1e-8 }, "min_learning_rate is 1e-7; it must not exceed learning_rate (1e-8)");
    try expectInvalid(
        .{ .warmup_steps = 50, .decay_steps = 50 },
        "decay_steps is 50; with warmup_cosine it must exceed warmup_steps (50), or be 0 for the whole run",
    );
    try expectInvalid(.{ .enable_wandb = true }, "enable_wandb is true; it needs log_dir, which is not set");
    try expectInvalid(.{ .enable_tensorboard = true }, "enable_tensorboard is true; it needs log_dir, which is not set");
    try expectInvalid(.{ .checkpoint_path = "" }, "checkpoint_path is \"\"; it must not be empty or hold a NUL character");
    try expectInvalid(.{ .export_name = "" }, "export_name is \"\"; it must not be empty or hold a NUL character");
    try expectInvalid(
        .{ .batch_size = std.math.maxInt(u32), .max_seq_len = std.math.maxInt(u32) },
        "batch_size (4294967295) times max_seq_len (4294967295) must be at most 1073741824 tokens",
    );
}

test "fixed meanings pass: no clipping, decay over the whole run, equal rates" {
    var diag: base.Diagnostic = .{};
    const config: LlmTrainingConfig = .{
        .max_grad_norm = 0,
        .decay_steps = 0,
        .learning_rate = 1e-4,
        .min_learning_rate = 1e-4,
        .warmup_steps = 0,
    };
    try config.validate(&diag);
    // Without a warm-up the relation of warmup_steps and decay_steps means nothing.
    try (LlmTrainingConfig{ .lr_schedule = .step, .warmup_steps = 100, .decay_steps = 10 }).validate(&diag);
}

test "what the native trainer cannot do is listed" {
    var diag: base.Diagnostic = .{};
    var buffer: [unsupported_fields.len][]const u8 = undefined;
    try testing.expectEqual(0, (LlmTrainingConfig{}).unsupported(&buffer).len);
    const config: LlmTrainingConfig = .{ .enable_tensorboard = true, .enable_wandb = true, .log_dir = "logs" };
    try config.validate(&diag);
    const names = config.unsupported(&buffer);
    try testing.expectEqual(2, names.len);
    try testing.expectEqualStrings("enable_tensorboard", names[0]);
    try testing.expectEqualStrings("enable_wandb", names[1]);
}
