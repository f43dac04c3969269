//! `abi train`: the native trainer from the command line.

const arguments = @import("arguments.zig");
const app_file = @import("app.zig");

pub const verb: arguments.Verb = .{
    .name = "train",
    .summary = "Train a model on this machine's CPU",
};

pub fn run(app: *app_file.App, given: []const []const u8) app_file.RunError!app_file.Exit {
    var parsed: arguments.Parsed = undefined;
    if (try app.parse(&parsed, &verb, given)) |end| return end;
    return app.fail("train", "training from this program is not there yet; run `abi-train train` from the Python package");
}
