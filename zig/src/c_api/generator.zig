//! Generator group: runs a GGUF file, ids in, ids out.

const std = @import("std");
const abi = @import("abi");
const c = @import("abi_h");
const failure = @import("failure.zig");
const handles = @import("handles.zig");
const out = @import("out.zig");

const Status = failure.Status;
const infer = abi.infer;

const default_context_max = 4096;

/// On the heap as a whole: sampler and session are pointed at by the run in progress.
const Machine = struct {
    model: *infer.Model,
    pool: *abi.base.Pool,
    session: infer.Session,
    sampler: ?infer.Sampler = null,
    run: ?infer.Generator = null,
    stop_ids: []u32 = &.{},
    process: std.c.pid_t,

    fn open(path: []const u8, threads: usize, context: usize, cache: ?infer.CacheForm, exact: bool, diag: *failure.Diagnostic) !*Machine {
        const self = try out.gpa.create(Machine);
        errdefer out.gpa.destroy(self);

        const model = try infer.Model.open(out.gpa, out.io(), path, diag);
        errdefer model.close();

        const form = try model.chooseCacheForm(cache, exact, diag);
        const pool = try abi.base.Pool.init(out.gpa, threads);
        errdefer pool.deinit();

        const wanted = if (context != 0) context else @min(default_context_max, model.config.max_position_embeddings);
        self.* = .{
            .model = model,
            .pool = pool,
            .session = try .initForm(out.gpa, model, pool, wanted, form),
            .process = std.c.getpid(),
        };
        self.session.exact = exact;
        return self;
    }

    fn forget(self: *Machine) void {
        self.run = null;
        if (self.sampler) |*s| s.deinit(out.gpa);
        self.sampler = null;
        out.gpa.free(self.stop_ids);
        self.stop_ids = &.{};
    }

    fn close(self: *Machine) void {
        self.forget();
        self.session.deinit();
        // Worker threads do not exist in a forked child.
        if (self.process == std.c.getpid()) self.pool.deinit();
        self.model.close();
        out.gpa.destroy(self);
    }
};

const Generator = handles.Object(.generator, struct {
    machine: *Machine,

    pub fn deinit(self: *@This()) void {
        self.machine.close();
    }
});

pub fn abt_generator_open(path: ?[*:0]const u8, options: ?*const c.abt_generator_options, generator: ?*u64) callconv(.c) Status {
    const result = generator orelse return failure.nullArgument("generator");
    result.* = 0;
    var threads: usize = 0;
    var context: usize = 0;
    var exact = false;
    var cache: ?infer.CacheForm = null;
    if (options) |o| {
        if (out.wrongSize(c.abt_generator_options, o.struct_size)) |status| return status;
        threads = o.threads;
        context = o.context;
        exact = o.exact != 0;
        cache = switch (o.cache) {
            c.ABT_CACHE_USUAL => null,
            c.ABT_CACHE_F32 => .f32,
            c.ABT_CACHE_F16 => .f16,
            c.ABT_CACHE_Q8_0 => .q8_0,
            else => return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "cache is {d}; it must be an abt_cache", .{o.cache}),
        };
    }
    var status: Status = c.ABT_STATUS_OK;
    const name = out.string(path, "path", &status) orelse return status;
    var diag: failure.Diagnostic = .{};
    const machine = Machine.open(name, threads, context, cache, exact, &diag) catch |err| {
        const home: Status = if (err == error.CannotRead) c.ABT_STATUS_NOT_FOUND else c.ABT_STATUS_FORMAT;
        return failure.from(err, home, &diag);
    };
    result.* = Generator.make(.{ .machine = machine }) catch |err| {
        machine.close();
        return failure.from(err, c.ABT_STATUS_FORMAT, null);
    };
    return c.ABT_STATUS_OK;
}

pub fn abt_generator_free(generator: u64) callconv(.c) Status {
    return handles.free(Generator, generator);
}

pub fn abt_generator_info_json(generator: u64, buffer: ?[*]u8, capacity: usize, needed: ?*usize) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Generator, generator, .shared, &status) orelse return status;
    defer held.release();

    const machine = held.object.value.machine;
    var config: std.Io.Writer.Allocating = .init(out.gpa);
    defer config.deinit();

    var text: std.Io.Writer.Allocating = .init(out.gpa);
    defer text.deinit();

    writeInfo(machine, &config, &text.writer) catch return failure.from(error.OutOfMemory, c.ABT_STATUS_INTERNAL, null);
    return out.fill(text.written(), buffer, capacity, needed);
}

fn writeInfo(machine: *const Machine, config: *std.Io.Writer.Allocating, writer: *std.Io.Writer) std.Io.Writer.Error!void {
    try abi.formats.hf_config.write(&config.writer, machine.model.config, .{});
    try writer.print("{{\"config\": {s}, \"context\": {d}, \"threads\": {d}, \"parameters\": {d}, \"cache\": \"{t}\", \"cache_bytes\": {d}}}", .{
        config.written(), machine.session.context, machine.pool.n, machine.model.parameterCount(), machine.session.cache.form, machine.session.cache.byteCount(),
    });
}

pub fn abt_generator_start(
    generator: u64,
    ids: ?[*]const u32,
    count: usize,
    sampling: ?*const c.abt_sampling,
    stop_ids: ?[*]const u32,
    stop_count: usize,
    max_tokens: u64,
) callconv(.c) Status {
    const given = ids orelse return failure.nullArgument("ids");
    if (count == 0) return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "the prompt has no ids; give at least one", .{});
    if (stop_ids == null and stop_count != 0) return failure.nullArgument("stop_ids");
    var options: infer.sampler.Options = .{ .temperature = 0 };
    if (sampling) |s| {
        if (out.wrongSize(c.abt_sampling, s.struct_size)) |status| return status;
        options = .{
            .temperature = s.temperature,
            .top_k = s.top_k,
            .top_p = s.top_p,
            .min_p = s.min_p,
            .repeat_penalty = s.repeat_penalty,
            .repeat_window = s.repeat_window,
            .seed = s.seed,
        };
    }
    if (options.problem()) |sentence| return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "{s}", .{sentence});
    var status: Status = c.ABT_STATUS_OK;
    const held = acquireForWork(generator, &status) orelse return status;
    defer held.release();

    const machine = held.object.value.machine;
    start(machine, given[0..count], options, if (stop_ids) |p| p[0..stop_count] else &.{}, std.math.lossyCast(usize, max_tokens)) catch |err| return switch (err) {
        error.OutOfMemory => failure.from(err, c.ABT_STATUS_INTERNAL, null),
        error.ContextFull => failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "the prompt has {d} ids, the context {d}; shorten the prompt or open with a larger context", .{ count, machine.session.context }),
        error.InvalidToken => failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "the prompt holds an id that is not below the model's vocabulary of {d}", .{machine.model.config.vocab_size}),
    };
    return c.ABT_STATUS_OK;
}

fn start(machine: *Machine, ids: []const u32, options: infer.sampler.Options, stop_ids: []const u32, max_tokens: usize) !void {
    machine.forget();
    for (ids) |id| if (id >= machine.model.config.vocab_size) return error.InvalidToken;
    if (ids.len > machine.session.context) return error.ContextFull;
    // The last id is fed in any case: its logits are needed.
    const kept = @min(machine.session.commonPrefix(ids), ids.len - 1);
    machine.session.rewind(kept);
    _ = try machine.session.prefill(ids[kept..]);
    machine.stop_ids = try out.gpa.dupe(u32, stop_ids);
    machine.sampler = try .init(out.gpa, machine.model.config.vocab_size, options);
    for (ids) |id| machine.sampler.?.accept(id);
    machine.run = .init(&machine.session, &machine.sampler.?, machine.stop_ids, max_tokens);
}

pub fn abt_generator_next(generator: u64, id: ?*u32, end: ?*c.abt_end) callconv(.c) Status {
    const result = id orelse return failure.nullArgument("id");
    const why = end orelse return failure.nullArgument("end");
    result.* = 0;
    why.* = c.ABT_END_NONE;
    var status: Status = c.ABT_STATUS_OK;
    const held = acquireForWork(generator, &status) orelse return status;
    defer held.release();

    const machine = held.object.value.machine;
    const run = if (machine.run) |*r| r else return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "nothing was started: call abt_generator_start first", .{});
    const next = run.next() catch |err| return switch (err) {
        error.BadLogits => failure.say(c.ABT_STATUS_NUMERICS, "the model's logits are not numbers: its weights are broken", .{}),
    };
    if (next) |found| {
        result.* = found;
    } else why.* = switch (run.line.end.?) {
        .stop_id => c.ABT_END_STOP_ID,
        .length => c.ABT_END_LENGTH,
        .context => c.ABT_END_CONTEXT,
    };
    return c.ABT_STATUS_OK;
}

pub fn abt_generator_logits(generator: u64, logits: ?*?[*]const f32, count: ?*u64) callconv(.c) Status {
    const pointer = logits orelse return failure.nullArgument("logits");
    const len = count orelse return failure.nullArgument("count");
    pointer.* = null;
    len.* = 0;
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Generator, generator, .shared, &status) orelse return status;
    defer held.release();

    const machine = held.object.value.machine;
    if (machine.run == null) return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "nothing was started: call abt_generator_start first", .{});
    pointer.* = machine.session.logits.ptr;
    len.* = machine.session.logits.len;
    return c.ABT_STATUS_OK;
}

pub fn abt_generator_score(generator: u64, ids: ?[*]const u32, count: usize, first: usize, log_probs: ?[*]f64, likeliest: ?[*]u8) callconv(.c) Status {
    const given = ids orelse return failure.nullArgument("ids");
    const results = log_probs orelse return failure.nullArgument("log_probs");
    if (first == 0 or first >= count) return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "first is {d} of {d} ids; it must be at least 1 and below their number", .{ first, count });
    var status: Status = c.ABT_STATUS_OK;
    const held = acquireForWork(generator, &status) orelse return status;
    defer held.release();

    const machine = held.object.value.machine;
    const vocab = machine.model.config.vocab_size;
    for (given[0..count]) |id| if (id >= vocab) return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "an id is not below the model's vocabulary of {d}", .{vocab});
    // The last id is only asked for, never looked back at.
    if (count - 1 > machine.session.context) return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "there are {d} ids before the last, the context has {d}; give fewer or open with a larger context", .{ count - 1, machine.session.context });
    score(machine, given[0..count], first, results[0 .. count - first], if (likeliest) |p| p[0 .. count - first] else null) catch |err| {
        // What was fed stays as it is: the cache holds sound ids, only their logits were not numbers.
        return switch (err) {
            error.OutOfMemory => failure.from(err, c.ABT_STATUS_INTERNAL, null),
            error.BadLogits => failure.say(c.ABT_STATUS_NUMERICS, "the model's logits are not numbers: its weights are broken", .{}),
            error.ContextFull, error.InvalidToken => unreachable, // Looked at above.
        };
    };
    return c.ABT_STATUS_OK;
}

fn score(machine: *Machine, ids: []const u32, first: usize, results: []f64, likeliest: ?[]u8) !void {
    machine.forget();
    const vocab: usize = machine.model.config.vocab_size;
    const room = try out.gpa.alloc(f32, abi.base.checked.mul(usize, infer.Session.score_rows, vocab) catch return error.OutOfMemory);
    defer out.gpa.free(room);

    const best = try out.gpa.alloc(bool, results.len);
    defer out.gpa.free(best);

    // The id before the first one asked for is fed in any case: its logits are needed.
    const kept = @min(machine.session.commonPrefix(ids), first - 1);
    machine.session.rewind(kept);
    try machine.session.feed(ids[kept .. first - 1]);
    try machine.session.logProbs(ids[first - 1 .. ids.len - 1], ids[first..], room, results, best);
    if (likeliest) |flags| for (flags, best) |*flag, yes| {
        flag.* = @intFromBool(yes);
    };
}

fn acquireForWork(generator: u64, status: *Status) ?handles.Held(Generator) {
    const held = handles.acquire(Generator, generator, .exclusive, status) orelse return null;
    if (held.object.value.machine.process != std.c.getpid()) {
        held.release();
        status.* = failure.say(c.ABT_STATUS_UNSUPPORTED, "this generator was made before fork(); make it in the process that uses it", .{});
        return null;
    }
    return held;
}
