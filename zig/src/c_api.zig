//! The C library: every `abt_` symbol of `zig/include/abi_train.h`, one file a noun in `c_api/`.
//!
//! A declaration that is in the header and not here, here and not in the header, or different in the two, does not
//! compile. Nothing in Zig imports this file.

const std = @import("std");
const c = @import("abi_h");
const header_check = @import("c_api/header_check.zig");

const groups = .{
    @import("c_api/library.zig"),
    @import("c_api/config.zig"),
    @import("c_api/instructions.zig"),
    @import("c_api/dataset.zig"),
    @import("c_api/writer.zig"),
    @import("c_api/tokenizer.zig"),
    @import("c_api/chat.zig"),
    @import("c_api/preparation.zig"),
    @import("c_api/model.zig"),
    @import("c_api/forward.zig"),
    @import("c_api/adapter.zig"),
    @import("c_api/trainer.zig"),
    @import("c_api/plan.zig"),
    @import("c_api/export.zig"),
    @import("c_api/gguf_files.zig"),
    @import("c_api/generator.zig"),
};

comptime {
    @setEvalBranchQuota(100_000);
    header_check.compare(c, groups, "abt_");
    for (groups) |group| for (@typeInfo(group).@"struct".decl_names) |name| {
        if (std.mem.startsWith(u8, name, "abt_")) @export(&@field(group, name), .{ .name = name });
    };
}

test {
    _ = @import("c_api/failure.zig");
    _ = @import("c_api/handles.zig");
    _ = @import("c_api/out.zig");
    _ = header_check;
    inline for (groups) |group| _ = group;
}
