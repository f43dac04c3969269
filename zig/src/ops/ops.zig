//! Root of the ops layer: the numbers of training, one family a file, each with forward, backward and a plain
//! `…Naive` twin that is its definition.
//!
//! All are generic over `T` (f32 or f64) and return nothing that can fail. Memory: an op never allocates; it uses
//! scratch of `Exec`, which the caller sizes once with `Exec.reserve` (attention, cross entropy and frozen weights need it, the others
//! only what `Exec.init` makes). Results have the same bits for any number of threads.
//! Does not know: models, layers, files, where positions and targets come from.

pub const exec = @import("exec.zig");
pub const matmul = @import("matmul.zig");
pub const frozen = @import("frozen.zig");
pub const adapter = @import("adapter.zig");
pub const rms_norm = @import("rms_norm.zig");
pub const rope = @import("rope.zig");
pub const attention = @import("attention.zig");
pub const sinks = @import("sinks.zig");
pub const swiglu = @import("swiglu.zig");
pub const router = @import("router.zig");
pub const balance = @import("balance.zig");
pub const experts = @import("experts.zig");
pub const grouped = @import("grouped.zig");
pub const embedding = @import("embedding.zig");
pub const cross_entropy = @import("cross_entropy.zig");
pub const elementwise = @import("elementwise.zig");
pub const reduce = @import("reduce.zig");
pub const optimizer = @import("optimizer.zig");

pub const Exec = exec.Exec;
pub const Mode = exec.Mode;
pub const Compute = exec.Compute;

test {
    _ = exec;
    _ = matmul;
    _ = frozen;
    _ = adapter;
    _ = rms_norm;
    _ = rope;
    _ = attention;
    _ = sinks;
    _ = swiglu;
    _ = router;
    _ = balance;
    _ = experts;
    _ = grouped;
    _ = embedding;
    _ = cross_entropy;
    _ = elementwise;
    _ = reduce;
    _ = optimizer;
    _ = @import("check.zig");
}
