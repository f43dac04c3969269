//! Next tokens of single rows: one update's micro-batches, and one pass over evaluation data.
//!
//! The loss of an update is the mean over the targets of all its micro-batches (TRL's), whichever process they are done by; with the
//! routers' balance loss, where the model asks for it, as a mean over micro-batches.
//! Does not know: optimizers, schedules, pairs.

const std = @import("std");
const model_layer = @import("model");
const data = @import("data");
const Pass = @import("preference_session.zig").Pass;

pub fn batchOf(micro: data.MicroBatch) model_layer.Batch {
    return .{
        .input_ids = micro.input_ids,
        .targets = micro.targets,
        .batch = micro.batch,
        .time = micro.time,
        .lengths = micro.lengths,
        .positions = micro.positions,
        .first = micro.first,
    };
}

/// Token means over the rest of `loader`'s epoch, without label smoothing and the routers' loss.
pub fn evaluate(comptime T: type, transformer: *model_layer.Transformer(T), live: model_layer.Weights(T), loader: *data.Loader) Pass {
    var loss_sum: f64 = 0;
    var correct: u64 = 0;
    var pass: Pass = .{};
    while (loader.next()) |micro| {
        const result = transformer.loss(live, batchOf(micro), .{});
        loss_sum += result.nll_sum;
        correct += result.correct;
        pass.targets += result.count;
        pass.batches += 1;
    }
    const divisor: f64 = @floatFromInt(@max(pass.targets, 1));
    pass.loss = loss_sum / divisor;
    pass.accuracy = @as(f64, @floatFromInt(correct)) / divisor;
    return pass;
}
