//! Going on from a checkpoint: what it holds is compared with the run as it is configured now, then put in place.
//!
//! Everything is compared before anything is changed. Does not know: how a checkpoint is written.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const checkpoint = @import("checkpoint");
const early_stopping = @import("early_stopping.zig");
const lora_file = @import("lora.zig");
const state_file = @import("state.zig");
const trainer_file = @import("trainer.zig");

const Trainer = trainer_file.Trainer;

/// Goes on from the checkpoint folder `path`, or says what in it is another run's.
pub fn restore(comptime T: type, self: *Trainer(T), path: []const u8, diag: *base.Diagnostic) !void {
    const text = try checkpoint.readState(self.gpa, self.io, path, diag);
    defer self.gpa.free(text);

    const read = state_file.read(self.gpa, text, diag) catch |err| {
        diag.prepend("{s}: ", .{path});
        return err;
    };
    defer self.gpa.free(read.history);

    // A run of the other method has other files; everything else is easier told with the weights at hand.
    if (read.identity.method != self.identity.method) try state_file.requireSame(read.identity, self.identity, diag);
    const saved = try readTrained(T, self, path, diag);
    defer self.gpa.free(saved);

    try state_file.requireSame(read.identity, self.identity, diag);
    try read.state.checkPlace(self.loader.batchesPerEpoch(), self.config.grad_accum_steps, path, diag);
    if (self.config.optimizer != .sgd)
        try checkpoint.loadOptimizer(T, self.gpa, self.io, path, self.trained.parameters, self.trained.first_moment, self.trained.second_moment, diag);
    @memcpy(self.trained.values, saved);
    // A checkpoint of another engine has no state of this generator: its numbers begin anew.
    if (read.state.dropout_state) |words| self.dropout.state = words;
    const planned = self.state.max_steps;
    self.state = read.state;
    self.state.max_steps = planned;
    self.saved_step = read.state.global_step;
    try self.history.appendSlice(self.gpa, read.history);
    // A requested stop saves at once and leaves out the evaluation that was due: it is made up for first.
    if (self.eval_loader != null and trainer_file.isDue(read.state.global_step, self.config.eval_interval))
        self.pending.evaluation = !early_stopping.wasEvaluated(read.history, read.state.global_step);
}

/// Early stopping ends with the best weights in the model. On disk they are `checkpoint-<best_step>`.
pub fn restoreBest(comptime T: type, self: *Trainer(T), diag: *base.Diagnostic) !void {
    const step = self.state.best_step orelse return;
    if (step == self.state.global_step) return;
    if (self.best_weights.values) |best| {
        @memcpy(self.trained.values, best);
        return;
    }
    const run = self.run orelse return;
    const path = try std.fmt.allocPrint(self.gpa, "{s}/checkpoint-{d}", .{ run.dir, step });
    defer self.gpa.free(path);

    const saved = try readTrained(T, self, path, diag);
    defer self.gpa.free(saved);

    @memcpy(self.trained.values, saved);
}

/// The values a checkpoint of this run holds of what is trained. Caller frees.
fn readTrained(comptime T: type, self: *Trainer(T), path: []const u8, diag: *base.Diagnostic) ![]align(64) T {
    if (self.adapter) |*own| {
        var saved = try checkpoint.loadAdapter(T, self.gpa, self.io, path, self.source.baseModel(), diag);
        defer saved.deinit(self.gpa);

        lora_file.requireSame(&own.settings, &own.layout, &saved.settings, &saved.layout, "checkpoint", path, diag) catch return error.ResumeMismatch;
        if (own.settings.lora_dropout != saved.settings.lora_dropout) {
            diag.set("lora.lora_dropout is {d}, but the checkpoint {s} has {d}. Use the same value to resume.", .{ own.settings.lora_dropout, path, saved.settings.lora_dropout });
            return error.ResumeMismatch;
        }
        const copy = try self.gpa.alignedAlloc(T, .@"64", saved.values.len);
        @memcpy(copy, saved.values);
        return copy;
    }
    var loaded = try checkpoint.loadModel(T, self.gpa, self.io, path, diag);
    defer {
        loaded.weights = &.{};
        loaded.deinit(self.gpa);
    }
    errdefer self.gpa.free(loaded.weights);

    if (loaded.weights.len != self.trained.values.len or !std.meta.eql(shapeOf(loaded.config), shapeOf(self.source.config()))) {
        diag.set("{s}: the checkpoint's model has another shape than this run's. " ++
            "Resume with the model the run began with.", .{path});
        return error.ResumeMismatch;
    }
    return loaded.weights;
}

/// The part of a configuration that decides shapes and arithmetic.
fn shapeOf(config: arch.ModelConfig) arch.ModelConfig {
    var shape = config;
    shape.bos_token_id = null;
    shape.eos_token_id = null;
    shape.pad_token_id = null;
    shape.initializer_range = 0;
    return shape;
}
