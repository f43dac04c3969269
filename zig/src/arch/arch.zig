//! What a model *is*, before anything is computed: its configuration and its list of parameters.
//!
//! Shared by everything that reads, writes, trains or runs a model, so that shapes and orders are decided once.
//! Does not know: files, numbers, threads.

pub const config = @import("config.zig");
pub const parameters = @import("parameters.zig");
pub const adapter = @import("adapter.zig");
pub const lora_settings = @import("lora_settings.zig");
pub const rope = @import("rope.zig");

pub const ModelConfig = config.ModelConfig;
pub const ModelType = config.ModelType;
pub const RopeScaling = config.RopeScaling;
pub const Yarn = config.Yarn;
pub const WindowedLayers = config.WindowedLayers;
pub const Parameter = parameters.Parameter;
pub const Role = parameters.Role;
pub const Layout = parameters.Layout;
pub const AdapterLayout = adapter.AdapterLayout;
pub const AdapterModule = adapter.Module;
pub const ModuleSpec = adapter.ModuleSpec;
pub const Target = adapter.Target;
pub const LoraSettings = lora_settings.LoraSettings;

test {
    _ = config;
    _ = parameters;
    _ = adapter;
    _ = lora_settings;
    _ = rope;
}
