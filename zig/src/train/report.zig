//! What a training run tells: after each update, after each evaluation, and at the end.
//!
//! Names are ABI's (`TrainingStats`, `EvalResult`, `TrainingReport`); sums behind them are in f64.

const std = @import("std");
const preference = @import("preference.zig");
const asking = @import("preference_asking.zig");

/// One optimizer update.
pub const TrainingStats = struct {
    /// Updates done, this one included: the first update reports 1.
    global_step: u64,
    /// Epochs done as a fraction: 1.5 = half of the second epoch.
    epoch: f64,
    /// Micro-batches in this update.
    micro_steps: u32,
    /// Mean over the update's targets, label smoothing included, in nats.
    loss: f64,
    /// Share of targets that are the first arg-max.
    accuracy: f64,
    /// The rate this update used.
    learning_rate: f64,
    /// Global L2 norm before clipping.
    grad_norm: f64,
    /// exp(loss).
    perplexity: f64,
    /// Tokens read (padding left out), since the start of the run.
    tokens_processed: u64,
    /// Tokens per second of this update.
    throughput: f64,
    /// Duration of this update.
    time_ns: u64,
    /// Runs on pairs: means over the update's micro-batches. `accuracy` is then that of the better answers' tokens.
    preference: ?preference.Metrics = null,
};

/// One pass over the evaluation data: means over all targets (not means of batch means).
pub const EvalResult = struct {
    global_step: u64,
    epoch: f64,
    /// Token mean without label smoothing, in nats. Empty data: 0.
    loss: f64,
    /// exp(loss). Empty data: 1.
    perplexity: f64,
    accuracy: f64,
    num_batches: u64,
    total_tokens: u64,
    /// Better than the best before by at least `early_stopping_min_delta`.
    improved: bool,
    /// Runs on pairs: means over micro-batches; `loss` is the mean over all pairs.
    preference: ?preference.Metrics = null,
};

pub const StopReason = enum {
    /// All epochs or `max_steps` done.
    completed,
    /// `early_stopping_patience` evaluations without improvement; best weights restored.
    early_stopped,
    /// `requestStop` was called.
    interrupted,
};

/// The whole run.
pub const TrainingReport = struct {
    stop_reason: StopReason,
    final_loss: f64,
    final_accuracy: f64,
    final_perplexity: f64,
    /// Infinity if no evaluation ran.
    best_val_loss: f64,
    best_val_accuracy: f64,
    total_steps: u64,
    total_tokens: u64,
    /// Time inside updates and evaluations, all sessions of a resumed run together.
    total_time_ns: u64,
    /// Tokens per second over the whole run.
    avg_throughput: f64,
    checkpoints_saved: u32,
    early_stopped: bool,
    /// Update with the best evaluation; its checkpoint is never retired.
    best_step: ?u64,
};

pub const SavedCheckpoint = struct {
    global_step: u64,
    /// Owned by the trainer, valid until its next call.
    path: []const u8,
};

/// What `Trainer.next` hands out.
pub const Event = union(enum) {
    /// Only in a run of several processes: add up `exchange()` over all of them, then go on.
    gradient,
    /// Before the first update of a run whose reference is asked once: how far that is. Comes only where it takes long.
    reference: asking.Progress,
    step: TrainingStats,
    evaluation: EvalResult,
    checkpoint: SavedCheckpoint,
    finished: TrainingReport,
};
