//! `abi version`.

const abi = @import("abi");
const builtin = @import("builtin");
const arguments = @import("arguments.zig");
const app_file = @import("app.zig");

pub const verb: arguments.Verb = .{
    .name = "version",
    .summary = "Print the version",
    .usage = "",
    .examples = &.{"abi version"},
};

pub fn run(app: *app_file.App, given: []const []const u8) app_file.RunError!app_file.Exit {
    var parsed: arguments.Parsed = undefined;
    if (try app.parse(&parsed, &verb, given)) |end| return end;
    try app.out.print("abi {s}\n", .{abi.version});
    return .ok;
}
