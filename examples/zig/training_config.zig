//! A training configuration in Zig: set a few fields, keep the defaults, check it, look at its learning rate.
//!
//!     zig build examples && ./zig-out/bin/example-training_config

const std = @import("std");
const abi = @import("abi");
const training = abi.ai.training;

pub fn main(init: std.process.Init) !void {
    const config: training.LlmTrainingConfig = .{
        .epochs = 3,
        .batch_size = 4,
        .max_seq_len = 512,
        .learning_rate = 1e-5,
        .lr_schedule = .warmup_cosine,
        .warmup_steps = 100,
        .optimizer = .adamw,
        .weight_decay = 0.01,
        .grad_accum_steps = 8,
        .checkpoint_interval = 500,
        .checkpoint_path = "./checkpoints",
        .export_gguf_path = "./abbey.gguf",
    };

    var buffer: [4096]u8 = undefined;
    var out: std.Io.File.Writer = .init(.stdout(), init.io, &buffer);
    const w = &out.interface;

    // A configuration is checked before it is used; what is wrong comes as a sentence.
    var diag: abi.base.Diagnostic = .{};
    config.validate(&diag) catch |err| {
        std.debug.print("{s}\n", .{diag.text()});
        return err;
    };

    try w.print("one update sees {d} sequences of up to {d} tokens\n", .{
        config.batch_size * config.grad_accum_steps,
        config.max_seq_len,
    });
    try w.writeAll("learning rate:\n");
    for ([_]u64{ 0, 50, 99, 100, 5000, 10_000 }) |step|
        try w.print("  step {d:>5}  {e:.3}\n", .{ step, abi.train.learningRate(&config, step, 10_000) });

    // The same configuration as JSON, which Python's `LlmTrainingConfig` reads.
    try abi.train.writeJson(&config, w);
    try w.writeAll("\n");
    try w.flush();
}
