//! Root of the infer layer: ids in, ids out.

pub const sampler = @import("sampler.zig");

pub const Sampler = sampler.Sampler;

test {
    _ = sampler;
}
