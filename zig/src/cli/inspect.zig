//! `abi inspect`.
const arguments = @import("arguments.zig");
const app_file = @import("app.zig");

pub const verb: arguments.Verb = .{ .name = "inspect", .summary = "Show what a model file holds", .usage = "FILE [--json]", .positionals_max = 1 };

pub fn run(app: *app_file.App, given: []const []const u8) app_file.RunError!app_file.Exit {
    var parsed: arguments.Parsed = undefined;
    if (try app.parse(&parsed, &verb, given)) |end| return end;
    return .ok;
}
