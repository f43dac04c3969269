//! Root of the model layer: activations and the wiring of a dense Llama-family transformer.

pub const activations = @import("activations.zig");
pub const transformer = @import("transformer.zig");

pub const Capacity = activations.Capacity;
pub const Activations = activations.Activations;
pub const Batch = transformer.Batch;
pub const Loss = transformer.Loss;
pub const Transformer = transformer.Transformer;

test {
    _ = activations;
    _ = transformer;
}
