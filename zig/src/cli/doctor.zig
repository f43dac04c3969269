//! `abi doctor`: what this program is, what it found, and whether it computes right here.

const std = @import("std");
const builtin = @import("builtin");
const abi = @import("abi");
const arguments = @import("arguments.zig");
const app_file = @import("app.zig");

pub const verb: arguments.Verb = .{
    .name = "doctor",
    .summary = "Show version, CPU and threads, and check that arithmetic is right here",
    .flags = &.{.{ .name = "json", .help = "one JSON object" }},
    .notes = "ABI_TRAIN_CPU=v2 (v3, v4) makes every command use the kernels of a lesser CPU.",
    .examples = &.{ "abi doctor", "ABI_TRAIN_CPU=v3 abi doctor --json" },
};

pub fn run(app: *app_file.App, given: []const []const u8) app_file.RunError!app_file.Exit {
    var parsed: arguments.Parsed = undefined;
    if (try app.parse(&parsed, &verb, given)) |end| return end;

    const cpus = std.Thread.getCpuCount() catch 1;
    const asked = app.environment.get("ABI_TRAIN_CPU") orelse "";
    const wanted: ?[]const u8 = if (asked.len > 0) asked else null;
    const level = abi.kernels.level();
    const available = abi.kernels.available();
    const worst = try selfCheck(app.gpa, cpus);
    const sound = worst < 1e-4;
    if (parsed.has("json")) {
        try std.json.Stringify.value(.{
            .version = abi.version,
            .zig = builtin.zig_version_string,
            .target = @tagName(builtin.cpu.arch) ++ "-" ++ @tagName(builtin.os.tag),
            .optimize = @tagName(builtin.mode),
            .cpu_level = level,
            .cpu_levels = available,
            .cpu_level_wanted = wanted,
            .threads = cpus,
            .self_check_error = worst,
            .self_check_ok = sound,
        }, .{ .whitespace = .indent_2 }, app.out);
        try app.out.writeByte('\n');
    } else {
        try app.out.print("version     abi {s}, Zig {s}, {t}-{t}, {t}\n", .{ abi.version, builtin.zig_version_string, builtin.cpu.arch, builtin.os.tag, builtin.mode });
        try app.out.print("CPU level   {s}: ", .{level});
        const highest = available[available.len - 1];
        if (wanted) |w| {
            if (std.mem.eql(u8, w, level)) {
                try app.out.print("asked for by ABI_TRAIN_CPU; the CPU can run {s}\n", .{highest});
            } else try app.out.print("ABI_TRAIN_CPU={s} is unknown or beyond this CPU, so the highest it can run\n", .{w});
        } else try app.out.writeAll("the highest this CPU can run\n");
        try app.out.print("threads     {d}: one for each CPU this process may use\n", .{cpus});
        try app.out.print("self-check  {s}: product of random matrices, largest error {e:.1} against f64\n", .{ if (sound) "passed" else "FAILED", worst });
    }
    if (sound) return .ok;
    return app.fail("doctor", "this machine computes wrong sums; try ABI_TRAIN_CPU=v2, and please report it");
}

/// Largest difference between the matrix product as models use it and its definition, over types and token counts.
fn selfCheck(gpa: std.mem.Allocator, threads: usize) error{OutOfMemory}!f64 {
    const infer = abi.infer;
    const rows = 70;
    const columns = 96;
    const tokens = 5;
    var arena: std.heap.ArenaAllocator = .init(gpa);
    defer arena.deinit();
    const a = arena.allocator();
    const pool = abi.base.Pool.init(gpa, threads) catch return error.OutOfMemory;
    defer pool.deinit();
    const scratch = try a.alloc(infer.matrix.Scratch, pool.n);
    for (scratch) |*one| one.* = try .init(a, columns);
    const rounded: infer.matrix.Rounded = try .init(a, tokens, columns);

    var prng: abi.base.Prng = .init(1);
    const weights = try a.alloc(f32, rows * columns);
    const inp = try a.alloc(f32, tokens * columns);
    const out = try a.alloc(f32, tokens * rows);
    for (weights) |*w| w.* = @floatCast(prng.uniform() - 0.5);
    for (inp) |*x| x.* = @floatCast(prng.uniform() - 0.5);
    const linear: infer.matrix.Linear = .{ .weight = .{ .dtype = .f32, .rows = rows, .columns = columns, .bytes = std.mem.sliceAsBytes(weights) } };
    var worst: f64 = 0;
    for ([_]usize{ 1, tokens }) |n| {
        infer.matrix.multiply(pool, scratch, &rounded, &.{.{ .linear = &linear, .out = out[0 .. n * rows] }}, inp[0 .. n * columns], n, if (n == 1) .of_answers else .of_prompt);
        for (0..n) |t| for (0..rows) |r| {
            var sum: f64 = 0;
            for (weights[r * columns ..][0..columns], inp[t * columns ..][0..columns]) |w, x| sum += @as(f64, w) * x;
            worst = @max(worst, @abs(sum - out[t * rows + r]));
        };
    }
    return worst;
}
