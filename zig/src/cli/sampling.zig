//! The sampling options `agent` and `generate` share: their table, and their values.

const std = @import("std");
const abi = @import("abi");
const arguments = @import("arguments.zig");

pub const flags = [_]arguments.Flag{
    .{ .name = "temperature", .value = "T", .help = "0 = always the likeliest token; higher = more varied", .default = "0.7", .heading = "Sampling" },
    .{ .name = "top-k", .value = "N", .help = "choose among the N likeliest tokens; 0 = all", .default = "40" },
    .{ .name = "top-p", .value = "P", .help = "choose among the likeliest tokens that make up P", .default = "0.9" },
    .{ .name = "min-p", .value = "P", .help = "leave out tokens below P times the likeliest one; 0 = none", .default = "0" },
    .{ .name = "repeat-penalty", .value = "X", .help = "make the last 64 tokens less likely; 1 = off", .default = "1.1" },
    .{ .name = "seed", .value = "N", .help = "the same seed gives the same answer", .default = "random" },
};

/// What was given; null where nothing was.
pub fn read(parsed: *arguments.Parsed) arguments.ParseError!abi.agent.backend.Settings {
    return .{
        .temperature = try parsed.number("temperature", 0, 100),
        .top_k = try parsed.whole(u32, "top-k", 0, 1 << 30),
        .top_p = try positive(parsed, "top-p", 1),
        .min_p = try parsed.number("min-p", 0, 1),
        .repeat_penalty = try positive(parsed, "repeat-penalty", 10),
        .seed = try parsed.whole(u64, "seed", 0, 1 << 63),
    };
}

fn positive(parsed: *arguments.Parsed, comptime name: []const u8, most: f32) arguments.ParseError!?f32 {
    const value = try parsed.number(name, 0, most) orelse return null;
    if (value == 0) return parsed.usage("--{s} is 0; it must be above 0", .{name});
    return value;
}

/// The settings with the program's defaults where nothing was given.
pub fn options(io: std.Io, settings: abi.agent.backend.Settings) abi.infer.sampler.Options {
    var filled: abi.infer.sampler.Options = .{};
    inline for (.{ "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed" }) |name| {
        if (@field(settings, name)) |value| @field(filled, name) = value;
    }
    if (settings.seed == null) io.random(std.mem.asBytes(&filled.seed));
    return filled;
}
