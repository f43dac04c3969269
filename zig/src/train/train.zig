//! Root of the train layer: configuration, learning rate, and the loop that turns batches into better weights.

pub const config = @import("config.zig");
pub const config_text = @import("config_text.zig");
pub const schedule = @import("schedule.zig");
pub const report = @import("report.zig");
pub const state = @import("state.zig");
pub const preference = @import("preference.zig");
pub const preference_config = @import("preference_config.zig");
pub const preference_objective = @import("preference_objective.zig");
pub const preference_cache = @import("preference_cache.zig");
pub const preference_session = @import("preference_session.zig");
pub const lora = @import("lora.zig");
pub const methods = @import("methods.zig");
pub const source = @import("source.zig");
pub const trained = @import("trained.zig");
pub const checks = @import("checks.zig");
pub const run_folder = @import("run_folder.zig");
pub const trainer = @import("trainer.zig");

pub const LlmTrainingConfig = config.LlmTrainingConfig;
pub const Optimizer = config.Optimizer;
pub const LrSchedule = config.LrSchedule;
pub const ConfigError = config.ConfigError;
pub const OwnedConfig = config_text.OwnedConfig;
pub const parseJson = config_text.parseJson;
pub const writeJson = config_text.writeJson;
pub const writeJsonSchema = config_text.writeJsonSchema;
pub const learningRate = schedule.learningRate;
pub const Event = report.Event;
pub const TrainingStats = report.TrainingStats;
pub const EvalResult = report.EvalResult;
pub const TrainingReport = report.TrainingReport;
pub const StopReason = report.StopReason;
pub const LoraConfig = lora.LoraConfig;
pub const Methods = methods.Methods;
pub const OwnedMethods = methods.OwnedMethods;
pub const parseMethods = methods.parse;
pub const Source = source.Source;
pub const DpoConfig = preference_config.DpoConfig;
pub const PreferenceMetrics = preference.Metrics;
pub const Trainer = trainer.Trainer;
pub const TrainerOptions = trainer.Options;

test {
    _ = config;
    _ = config_text;
    _ = schedule;
    _ = report;
    _ = state;
    _ = preference;
    _ = preference_config;
    _ = preference_objective;
    _ = preference_cache;
    _ = preference_session;
    _ = @import("preference_run_test.zig");
    _ = lora;
    _ = methods;
    _ = source;
    _ = trained;
    _ = checks;
    _ = run_folder;
    _ = trainer;
    _ = @import("trainer_test.zig");
    _ = @import("lora_test.zig");
}
