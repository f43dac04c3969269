//! Library group: versions, the last error, what machine this is.

const std = @import("std");
const builtin = @import("builtin");
const abi = @import("abi");
const c = @import("abi_h");
const failure = @import("failure.zig");
const out = @import("out.zig");

pub fn abt_version() callconv(.c) [*:0]const u8 {
    return abi.version;
}

pub fn abt_abi_version() callconv(.c) u32 {
    return c.ABT_ABI_VERSION;
}

pub fn abt_last_error() callconv(.c) [*:0]const u8 {
    return failure.last();
}

pub fn abt_cpu_info_json(buffer: ?[*]u8, capacity: usize, needed: ?*usize) callconv(.c) failure.Status {
    var text: [512]u8 = undefined;
    var w: std.Io.Writer = .fixed(&text);
    writeCpuInfo(&w) catch return failure.say(c.ABT_STATUS_INTERNAL, "the description of this machine is too long", .{});
    return out.fill(w.buffered(), buffer, capacity, needed);
}

fn writeCpuInfo(w: *std.Io.Writer) std.Io.Writer.Error!void {
    try std.json.Stringify.value(.{
        .architecture = @tagName(builtin.cpu.arch),
        .os = @tagName(builtin.os.tag),
        .mode = @tagName(builtin.mode),
        .level = abi.kernels.level(),
        .levels = abi.kernels.available(),
        .threads = std.Thread.getCpuCount() catch 1,
    }, .{}, w);
}
