//! What is refused before a run begins: settings, data and models that do not go together.
//!
//! Does not know: files of the run, what is trained.

const std = @import("std");
const base = @import("base");
const data = @import("data");
const checkpoint = @import("checkpoint");
const config_file = @import("config.zig");
const Source = @import("source.zig").Source;
const Options = @import("trainer.zig").Options;

const firstNonFinite = checkpoint.model_file.firstNonFinite;
const LlmTrainingConfig = config_file.LlmTrainingConfig;
const TokenizedDataset = data.TokenizedDataset;

/// Everything that can be known to be wrong before memory is taken. `diag` names the thing, the value and the next move.
pub fn checkInputs(
    comptime T: type,
    source: Source(T),
    dataset: *const TokenizedDataset,
    eval_dataset: ?*const TokenizedDataset,
    config: LlmTrainingConfig,
    options: Options,
    diag: *base.Diagnostic,
) !void {
    try config.validate(diag);
    if (options.share.count == 0 or options.share.rank >= options.share.count) {
        diag.set("this is process {d} of {d}; processes count from 0 and there is at least one", .{ options.share.rank, options.share.count });
        return error.InvalidConfiguration;
    }
    if (config.grad_accum_steps < options.share.count) {
        diag.set("grad_accum_steps is {d}; {d} processes share the micro-batches of an update, so there must be at least as many. " ++
            "Raise grad_accum_steps and lower batch_size.", .{ config.grad_accum_steps, options.share.count });
        return error.InvalidConfiguration;
    }
    var names: [config_file.unsupported_fields.len][]const u8 = undefined;
    for (config.unsupported(&names)) |name| {
        diag.set("{s} is true, but the native engine does not do this yet. Set it to false, or use the " ++
            "trl engine.", .{name});
        return error.InvalidConfiguration;
    }
    if (config.mixed_precision and T != f32) {
        diag.set("mixed_precision is true, but the model is in float64. Use one or the other.", .{});
        return error.InvalidConfiguration;
    }
    const shape = source.config();
    if (config.max_seq_len > shape.max_position_embeddings) {
        diag.set("max_seq_len is {d}, beyond the model's max_position_embeddings ({d}). Lower max_seq_len.", .{ config.max_seq_len, shape.max_position_embeddings });
        return error.InvalidConfiguration;
    }
    switch (source) {
        .dense => |model| for (model.layout.parameters) |p| {
            const values = p.sliceConst(T, model.weights);
            const at = firstNonFinite(T, values) orelse continue;
            diag.set("weight \"{s}\" holds {d} at element {d}. The model is damaged: get a sound copy.", .{ p.name, values[at], at });
            return error.NonFinite;
        },
        // Its numbers were looked at when it was opened.
        .mapped => if (options.lora == null) {
            diag.set("the model was opened to stay as its file stores it, so its weights cannot be trained. Train an adapter (lora), or load the model.", .{});
            return error.InvalidConfiguration;
        } else if (T != f32) {
            diag.set("the model was opened to stay as its file stores it, which float64 runs cannot use. Load the model.", .{});
            return error.InvalidConfiguration;
        },
    }
    try checkObjective(dataset, config, options, diag);
    if (eval_dataset) |e| try checkObjective(e, config, options, diag);
    try dataset.checkVocabulary(shape.vocab_size, diag);
    if (eval_dataset) |e| try e.checkVocabulary(shape.vocab_size, diag);
}

/// Pairs go with `dpo` and single rows without, and what means nothing for pairs is refused.
fn checkObjective(
    dataset: *const TokenizedDataset,
    config: LlmTrainingConfig,
    options: Options,
    diag: *base.Diagnostic,
) error{ WrongObjective, InvalidConfiguration }!void {
    if (options.dpo == null) {
        if (!dataset.isPreference()) return;
        diag.set("{s} holds pairs of answers (preference data); train on it with the objective dpo, or prepare rows for sft", .{dataset.path});
        return error.WrongObjective;
    }
    if (!dataset.isPreference()) {
        diag.set("{s} holds no pairs of answers; prepare rows with prompt, chosen and rejected, or train with the objective sft", .{dataset.path});
        return error.WrongObjective;
    }
    if (config.label_smoothing != 0) {
        diag.set("label_smoothing is {d}, which the objective dpo does not use. Set it to 0; the loss robust has dpo.label_smoothing", .{config.label_smoothing});
        return error.InvalidConfiguration;
    }
    if (options.lora) |lora| if (lora.settings.lora_dropout != 0) {
        diag.set("lora.lora_dropout is {d}; with the objective dpo it must be 0, as TRL switches every dropout off there", .{lora.settings.lora_dropout});
        return error.InvalidConfiguration;
    };
}

/// CRC-32C over the first and last 64 KiB: enough to notice another file, cheap on one larger than memory.
pub fn fingerprint(dataset: *const TokenizedDataset) u32 {
    const edge = 16 * 1024; // ids
    const count = dataset.count();
    if (count <= 2 * edge) return sumOf(dataset, 0, count);
    return sumOf(dataset, 0, edge) ^ std.math.rotl(u32, sumOf(dataset, count - edge, count), 1);
}

fn sumOf(dataset: *const TokenizedDataset, start: usize, end: usize) u32 {
    var sum: base.checksum.Crc32c = .{};
    var ids: [1024]u32 = undefined;
    var at = start;
    while (at < end) : (at += ids.len) {
        const part = ids[0..@min(ids.len, end - at)];
        dataset.readTokens(part, at);
        sum.update(std.mem.sliceAsBytes(part));
    }
    return sum.final();
}
