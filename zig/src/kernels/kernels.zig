//! Root of the kernels layer: hand-made inner loops, compiled once per CPU level and chosen at run time.
//!
//! Does not know: shapes of a model, threads, memory. Callers give pointers, counts and workspaces.

pub const dispatch = @import("dispatch.zig");
pub const attention_args = @import("attention_args.zig");
pub const chars = @import("chars.zig");
pub const merging = @import("merging.zig");
pub const merge_args = @import("merge_args.zig");
pub const text = @import("text.zig");
pub const UpdateArgs = @import("update_args.zig").UpdateArgs;

pub const Table = dispatch.Table;
pub const WeightTable = dispatch.WeightTable;
pub const table = dispatch.table;
pub const weightTable = dispatch.weightTable;
pub const quantiseTable = dispatch.quantiseTable;
pub const byteTable = dispatch.byteTable;
pub const wordTable = dispatch.wordTable;
pub const activations = @import("activations.zig");
pub const lowTable = dispatch.lowTable;
pub const blockTable = dispatch.blockTable;
pub const textTable = dispatch.textTable;
pub const level = dispatch.level;
pub const available = dispatch.available;

/// Bytes (aligned to 64) one thread needs for `gemm` of any type on any level of this CPU.
pub fn gemmWorkspaceBytes() usize {
    var most: usize = 0;
    inline for (.{ f32, f64 }) |T| {
        for (0..available().len) |i| most = @max(most, dispatch.tableAt(T, i).gemm_workspace());
    }
    return most;
}

test {
    _ = dispatch;
    _ = @import("kernels_test.zig");
    _ = @import("quantised_test.zig");
    _ = @import("words_test.zig");
}
