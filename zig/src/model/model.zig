//! Root of the model layer: activations and the wiring of a transformer of the Llama family or of gpt-oss, trained whole or by an adapter.

pub const activations = @import("activations.zig");
pub const weights = @import("weights.zig");
pub const projection = @import("projection.zig");
pub const mixture = @import("mixture.zig");
pub const transformer = @import("transformer.zig");

pub const Capacity = activations.Capacity;
pub const Activations = activations.Activations;
pub const Batch = transformer.Batch;
pub const Loss = transformer.Loss;
pub const LossOptions = transformer.LossOptions;
pub const Base = weights.Base;
pub const Weights = weights.Weights;
pub const Adapter = weights.Adapter;
pub const Dropout = weights.Dropout;
pub const Gradients = weights.Gradients;
pub const Transformer = transformer.Transformer;

test {
    _ = activations;
    _ = weights;
    _ = projection;
    _ = mixture;
    _ = transformer;
}
