//! What a model *is*, before anything is computed: its configuration and its list of parameters.
//!
//! Shared by everything that reads, writes, trains or runs a model, so that shapes and orders are decided once.
//! Does not know: files, numbers, threads.

pub const config = @import("config.zig");
pub const parameters = @import("parameters.zig");
pub const rope = @import("rope.zig");

pub const ModelConfig = config.ModelConfig;
pub const ModelType = config.ModelType;
pub const RopeScaling = config.RopeScaling;
pub const Parameter = parameters.Parameter;
pub const Role = parameters.Role;
pub const Layout = parameters.Layout;

test {
    _ = config;
    _ = parameters;
    _ = rope;
}
