//! Reads a prompt and generates, without Python around it: `abi-bench-generate FILE.gguf [--threads N] [--prompt N] [--count N]
//! [--repeat N] [--cache FORM] [--exact]`.
//!
//! The prompt is made of random ids, the answer of the likeliest ones. Prints one line of JSON: seconds to open, and the best tokens a second of
//! prompt (`pp`) and of generation (`tg`) over the repeats.

const std = @import("std");
const base = @import("base");
const infer = @import("infer");

const Options = struct {
    path: []const u8 = "",
    threads: usize = 0,
    prompt: usize = 512,
    count: usize = 64,
    repeat: usize = 3,
    cache: ?infer.CacheForm = null,
    exact: bool = false,
};

pub fn main(init: std.process.Init) !u8 {
    const gpa = std.heap.c_allocator;
    const args = try init.minimal.args.toSlice(init.arena.allocator());
    const options = parse(args[1..]) catch {
        std.debug.print("usage: abi-bench-generate FILE.gguf [--threads N] [--prompt N] [--count N] [--repeat N] [--cache f32|f16|q8_0] [--exact]\n", .{});
        return 2;
    };
    var diag: base.Diagnostic = .{};
    const begin = seconds(init.io);
    const model = infer.Model.open(gpa, init.io, options.path, &diag) catch |err| {
        std.debug.print("{t}: {s}\n", .{ err, diag.text() });
        return 1;
    };
    defer model.close();
    const form = model.chooseCacheForm(options.cache, options.exact, &diag) catch {
        std.debug.print("{s}\n", .{diag.text()});
        return 1;
    };
    const pool = try base.Pool.init(gpa, options.threads);
    defer pool.deinit();
    var session: infer.Session = try .initForm(gpa, model, pool, options.prompt + options.count + 2, form);
    defer session.deinit();
    session.exact = options.exact;
    const opened = seconds(init.io) - begin;

    var prng: base.Prng = .init(1);
    const ids = try init.arena.allocator().alloc(u32, options.prompt);
    for (ids) |*id| id.* = @intCast(prng.below(model.config.vocab_size));
    var pp: f64 = 0;
    var tg: f64 = 0;
    for (0..options.repeat) |_| {
        session.rewind(0);
        const start = seconds(init.io);
        _ = try session.prefill(ids);
        pp = @max(pp, @as(f64, @floatFromInt(ids.len)) / (seconds(init.io) - start));
        session.rewind(@min(ids.len, 8)); // generation begins with little to look back at, as in other programs' benchmarks
        var logits = try session.step(ids[0]);
        const read = seconds(init.io);
        for (0..options.count) |_| logits = try session.step(@intCast(std.mem.findMax(f32, logits)));
        tg = @max(tg, @as(f64, @floatFromInt(options.count)) / (seconds(init.io) - read));
    }
    var buffer: [256]u8 = undefined;
    var writer: std.Io.File.Writer = .initStreaming(.stdout(), init.io, &buffer);
    try writer.interface.print("{{\"open_s\": {d:.4}, \"pp\": {d:.2}, \"tg\": {d:.2}, \"threads\": {d}, \"cache\": \"{t}\"}}\n", .{ opened, pp, tg, pool.n, form });
    try writer.interface.flush();
    return 0;
}

fn seconds(io: std.Io) f64 {
    return @as(f64, @floatFromInt(std.Io.Timestamp.now(io, .awake).toNanoseconds())) / 1e9;
}

fn parse(args: []const [:0]const u8) !Options {
    var options: Options = .{};
    var i: usize = 0;
    while (i < args.len) : (i += 1) {
        const name = args[i];
        if (std.mem.eql(u8, name, "--exact")) {
            options.exact = true;
        } else if (!std.mem.startsWith(u8, name, "--")) {
            options.path = name;
        } else {
            i += 1;
            if (i == args.len) return error.Usage;
            if (std.mem.eql(u8, name, "--cache")) {
                options.cache = std.meta.stringToEnum(infer.CacheForm, args[i]) orelse return error.Usage;
                continue;
            }
            const value = try std.fmt.parseInt(usize, args[i], 10);
            inline for (.{ "threads", "prompt", "count", "repeat" }) |field| {
                if (std.mem.eql(u8, name[2..], field)) {
                    @field(options, field) = value;
                    break;
                }
            } else return error.Usage;
        }
    }
    if (options.path.len == 0 or options.prompt == 0 or options.repeat == 0) return error.Usage;
    return options;
}
