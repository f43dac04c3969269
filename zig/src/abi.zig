//! Root module: `@import("abi")`.
//!
//! `ai` holds the names users know; the layers below it are for the program, the C library and the tests.
//! Explicit re-exports only: what is not named here is not public.

pub const version: [:0]const u8 = @import("config").version ++ "";

pub const base = @import("base");
pub const tensor = @import("tensor");
pub const arch = @import("arch");
pub const kernels = @import("kernels");
pub const ops = @import("ops");
pub const tokenizer = @import("tokenizer");
pub const data = @import("data");
pub const prepare = @import("prepare");
pub const quant = @import("quant");
pub const formats = @import("formats");
pub const model = @import("model");
pub const checkpoint = @import("checkpoint");
pub const train = @import("train");
pub const infer = @import("infer");
pub const agent = @import("agent");

pub const ai = struct {
    /// Configuration, data and the native trainer.
    pub const training = struct {
        pub const data_loader = data;
        pub const LlmTrainingConfig = train.LlmTrainingConfig;
        pub const Optimizer = train.Optimizer;
        pub const LrSchedule = train.LrSchedule;
        pub const Trainer = train.Trainer;
        pub const Event = train.Event;
        pub const TrainingStats = train.TrainingStats;
        pub const EvalResult = train.EvalResult;
        pub const TrainingReport = train.TrainingReport;
    };

    /// Models: their shape, their files, generation.
    pub const llm = struct {
        pub const ModelConfig = arch.ModelConfig;
    };
};

test "the version is the package's" {
    try @import("std").testing.expect(version.len >= 5);
}
