//! Root of the train layer: configuration, learning rate, and the loop that turns batches into better weights.

pub const config = @import("config.zig");
pub const config_text = @import("config_text.zig");
pub const schedule = @import("schedule.zig");

pub const LlmTrainingConfig = config.LlmTrainingConfig;
pub const Optimizer = config.Optimizer;
pub const LrSchedule = config.LrSchedule;
pub const ConfigError = config.ConfigError;
pub const OwnedConfig = config_text.OwnedConfig;
pub const parseJson = config_text.parseJson;
pub const writeJson = config_text.writeJson;
pub const writeJsonSchema = config_text.writeJsonSchema;
pub const learningRate = schedule.learningRate;

test {
    _ = config;
    _ = config_text;
    _ = schedule;
}
