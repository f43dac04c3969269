//! Root of one kernel object: the same source is compiled once per CPU level and its symbols carry the level's name.
//!
//! Every function is `callconv(.c)` with pointers, integers and scalars: a vector argument would have another calling
//! convention on another level. Nothing of std lives here; `dispatch.zig` reads the symbols back by name.
//! A function is exported for f32 and for f64 as `abt_k_<name>_<type>_<level>`, those of mixed types as `abt_k_<name>_<level>`.

const lanes = @import("lanes.zig");
const gemm = @import("gemm.zig");
const attention = @import("attention.zig");
const columns = @import("columns.zig");
const rows = @import("rows.zig");
const gates = @import("gates.zig");
const experts = @import("experts.zig");
const update = @import("update.zig");
const weights = @import("weights.zig");
const expand = @import("expand.zig");
const blocks = @import("blocks.zig");
const quantise = @import("quantise.zig");
const quantised = @import("quantised.zig");
const panels = @import("panels.zig");
const words = @import("words.zig");
const text = @import("text.zig");
const merging = @import("merging.zig");

comptime {
    @setEvalBranchQuota(100_000);
    for (.{ f32, f64 }) |T| {
        for (.{ gemm.Kernels(T), attention.Kernels(T), columns.Kernels(T), rows.Kernels(T), experts.Kernels(T), update.Kernels(T) }) |Family| {
            for (@typeInfo(Family).@"struct".decl_names) |name| {
                @export(&@field(Family, name), .{
                    .name = "abt_k_" ++ name ++ "_" ++ @typeName(T) ++ "_" ++ lanes.level,
                    .visibility = .hidden,
                });
            }
        }
    }
    for (.{ weights.Kernels, expand.Kernels, expand.Pairs, blocks.Kernels, quantise.Kernels, quantised.Kernels, panels.Kernels, words.Kernels, gemm.LowKernels, attention.LowKernels, gates.LowKernels, text.Kernels, merging.Kernels }) |Family| {
        for (@typeInfo(Family).@"struct".decl_names) |name| {
            @export(&@field(Family, name), .{
                .name = "abt_k_" ++ name ++ "_" ++ lanes.level,
                .visibility = .hidden,
            });
        }
    }
}
