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

/// On the heap as a whole: the batch points at the session.
const Machine = struct {
    model: *infer.Model,
    pool: *abi.base.Pool,
    session: infer.Session,
    batch: infer.Batch,
    /// What the last call of `abt_generator_next` gave out.
    tokens: [tokens_max]infer.batch.Token = undefined,
    token_count: usize = 0,
    /// Nothing was given out yet: the session's logits are those of the first prompt.
    is_fresh: bool = false,
    /// Made for the first prompt cache.
    identity: ?infer.prompt_cache.Identity = null,
    /// Made for the first schema.
    vocabulary: ?infer.constraint.Vocabulary = null,
    schemas: std.ArrayList(*Schema) = .empty,
    process: std.c.pid_t,

    /// Tokens of a pass and their ends.
    const tokens_max = 2 * infer.session.step_tokens;

    fn open(path: []const u8, threads: usize, context: usize, cache: ?infer.CacheForm, exact: bool, ramp: infer.model.Ramp, diag: *failure.Diagnostic) !*Machine {
        const self = try out.gpa.create(Machine);
        errdefer out.gpa.destroy(self);

        const model = try infer.Model.open(out.gpa, out.io(), path, diag);
        errdefer model.close();
        model.useRamp(ramp);

        const form = try model.chooseCacheForm(cache, exact, diag);
        const pool = try abi.base.Pool.init(out.gpa, threads);
        errdefer pool.deinit();

        const wanted = if (context != 0) context else @min(default_context_max, model.config.max_position_embeddings);
        self.* = .{
            .model = model,
            .pool = pool,
            .session = try .initForm(out.gpa, model, pool, wanted, form),
            .batch = .init(out.gpa, &self.session),
            .process = std.c.getpid(),
        };
        self.session.exact = exact;
        return self;
    }

    /// A schema that was asked for, and what was found about it.
    const Schema = struct {
        text: []const u8,
        constraint: infer.Constraint,

        fn destroy(self: *Schema) void {
            self.constraint.deinit();
            out.gpa.free(self.text);
            out.gpa.destroy(self);
        }
    };

    const schemas_max = 16;

    /// What `text` allows, kept for the next request with the same. On failure `diag` says why.
    fn constraintOf(self: *Machine, text: []const u8, diag: *failure.Diagnostic) !*infer.Constraint {
        for (self.schemas.items) |schema| if (std.mem.eql(u8, schema.text, text)) return &schema.constraint;
        if (self.vocabulary == null) {
            var words = try abi.agent.vocabulary.fromFile(out.gpa, &self.model.file, diag);
            defer words.deinit();
            var arena: std.heap.ArenaAllocator = .init(out.gpa);
            defer arena.deinit();
            self.vocabulary = try .init(out.gpa, try abi.agent.vocabulary.texts(arena.allocator(), &words, self.model.config.vocab_size));
        }
        try self.schemas.ensureUnusedCapacity(out.gpa, 1);
        const schema = try out.gpa.create(Schema);
        errdefer out.gpa.destroy(schema);
        schema.text = try out.gpa.dupe(u8, text);
        errdefer out.gpa.free(schema.text);
        schema.constraint = try .fromJsonSchema(out.gpa, text, &self.vocabulary.?, diag);
        self.schemas.appendAssumeCapacity(schema);
        return &schema.constraint;
    }

    fn forgetSchemas(self: *Machine) void {
        for (self.schemas.items) |schema| schema.destroy();
        self.schemas.clearRetainingCapacity();
    }

    fn identify(self: *Machine) infer.prompt_cache.Identity {
        if (self.identity == null) self.identity = infer.prompt_cache.identify(self.model);
        return self.identity.?;
    }

    fn forget(self: *Machine) void {
        self.batch.stop();
        self.token_count = 0;
        self.is_fresh = false;
    }

    fn close(self: *Machine) void {
        self.batch.deinit();
        self.forgetSchemas();
        self.schemas.deinit(out.gpa);
        if (self.vocabulary) |*v| v.deinit();
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
    var ramp: infer.model.Ramp = .exact;
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
        ramp = switch (o.yarn) {
            c.ABT_YARN_EXACT => .exact,
            c.ABT_YARN_GGML => .ggml,
            else => return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "yarn is {d}; it must be an abt_yarn", .{o.yarn}),
        };
    }
    var status: Status = c.ABT_STATUS_OK;
    const name = out.string(path, "path", &status) orelse return status;
    var diag: failure.Diagnostic = .{};
    const machine = Machine.open(name, threads, context, cache, exact, ramp, &diag) catch |err| {
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

pub fn abt_generator_start(generator: u64, requests: ?[*]const c.abt_request, count: usize, lanes: u32) callconv(.c) Status {
    const given = requests orelse return failure.nullArgument("requests");
    if (count == 0) return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "there are no requests; give at least one", .{});
    if (lanes == 0 or lanes > infer.batch.lanes_max)
        return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "lanes is {d}; it must be from 1 to {d}", .{ lanes, infer.batch.lanes_max });
    const list = out.gpa.alloc(infer.batch.Request, count) catch |err| return failure.from(err, c.ABT_STATUS_INTERNAL, null);
    defer out.gpa.free(list);

    for (list, given[0..count]) |*request, *from| {
        var status: Status = c.ABT_STATUS_OK;
        request.* = requestOf(from, &status) orelse return status;
    }
    var status: Status = c.ABT_STATUS_OK;
    const held = acquireForWork(generator, &status) orelse return status;
    defer held.release();

    const machine = held.object.value.machine;
    machine.forget();
    // No request is in progress that could still need one.
    if (machine.schemas.items.len > Machine.schemas_max) machine.forgetSchemas();
    for (list, given[0..count]) |*request, *from| {
        const text = out.optionalString(from.json_schema) orelse continue;
        var diag: failure.Diagnostic = .{};
        request.constraint = machine.constraintOf(text, &diag) catch |err| return switch (err) {
            error.OutOfMemory => failure.from(err, c.ABT_STATUS_INTERNAL, null),
            error.InvalidSchema => failure.from(err, c.ABT_STATUS_INVALID_ARGUMENT, &diag),
            error.UnsupportedSchema => failure.from(err, c.ABT_STATUS_UNSUPPORTED, &diag),
            else => failure.from(err, c.ABT_STATUS_FORMAT, &diag),
        };
    }
    machine.batch.start(list, lanes) catch |err| return switch (err) {
        error.OutOfMemory => failure.from(err, c.ABT_STATUS_INTERNAL, null),
        error.ContextFull => blk: {
            for (list) |request| if (request.ids.len > machine.session.context)
                break :blk failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "the prompt has {d} ids, the context {d}; shorten the prompt or open with a larger context", .{ request.ids.len, machine.session.context });
            unreachable;
        },
        error.InvalidToken => failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "the prompt holds an id that is not below the model's vocabulary of {d}", .{machine.model.config.vocab_size}),
    };
    machine.is_fresh = true;
    return c.ABT_STATUS_OK;
}

/// Null: `status` says what is wrong with it.
fn requestOf(from: *const c.abt_request, status: *Status) ?infer.batch.Request {
    status.* = blk: {
        if (out.wrongSize(c.abt_request, from.struct_size)) |wrong| break :blk wrong;
        if (from.ids == null) break :blk failure.nullArgument("ids");
        if (from.count == 0) break :blk failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "the prompt has no ids; give at least one", .{});
        if (from.stop_ids == null and from.stop_count != 0) break :blk failure.nullArgument("stop_ids");
        if (from.drafts > infer.generate.drafts_max)
            break :blk failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "drafts is {d}; it must be from 0 to {d}", .{ from.drafts, infer.generate.drafts_max });
        var sampling: infer.sampler.Options = .{ .temperature = 0 };
        if (@as(?*const c.abt_sampling, from.sampling)) |s| {
            if (out.wrongSize(c.abt_sampling, s.struct_size)) |wrong| break :blk wrong;
            sampling = .{
                .temperature = s.temperature,
                .top_k = s.top_k,
                .top_p = s.top_p,
                .min_p = s.min_p,
                .repeat_penalty = s.repeat_penalty,
                .repeat_window = s.repeat_window,
                .seed = s.seed,
            };
        }
        if (sampling.problem()) |sentence| break :blk failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "{s}", .{sentence});
        return .{
            .ids = from.ids[0..from.count],
            .sampling = sampling,
            .stop_ids = if (from.stop_count == 0) &.{} else from.stop_ids[0..from.stop_count],
            .max_tokens = std.math.lossyCast(usize, from.max_tokens),
            .drafts = from.drafts,
        };
    };
    return null;
}

pub fn abt_generator_next(generator: u64, tokens: ?[*]c.abt_token, capacity: usize, count: ?*usize) callconv(.c) Status {
    const result = tokens orelse return failure.nullArgument("tokens");
    const found = count orelse return failure.nullArgument("count");
    found.* = 0;
    if (capacity == 0) return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "capacity is 0; make room for at least one token", .{});
    var status: Status = c.ABT_STATUS_OK;
    const held = acquireForWork(generator, &status) orelse return status;
    defer held.release();

    const machine = held.object.value.machine;
    if (machine.batch.requests.len == 0) return nothingStarted();
    machine.is_fresh = false;
    machine.token_count = 0;
    const next = machine.batch.next(machine.tokens[0..@min(capacity, Machine.tokens_max)]) catch |err| return switch (err) {
        error.OutOfMemory => failure.from(err, c.ABT_STATUS_INTERNAL, null),
        error.BadLogits => failure.say(c.ABT_STATUS_NUMERICS, "{s}", .{infer.generate.words(err).?}),
        error.NoToken => failure.say(c.ABT_STATUS_UNSUPPORTED, "{s}", .{infer.generate.words(err).?}),
    };
    machine.token_count = next.len;
    for (next, result[0..next.len]) |token, *to| to.* = .{
        .request = @intCast(token.request),
        .id = token.id,
        .end = if (token.end) |end| switch (end) {
            .stop_id => c.ABT_END_STOP_ID,
            .length => c.ABT_END_LENGTH,
            .context => c.ABT_END_CONTEXT,
            .complete => c.ABT_END_COMPLETE,
        } else c.ABT_END_NONE,
    };
    found.* = next.len;
    return c.ABT_STATUS_OK;
}

fn nothingStarted() Status {
    return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "nothing was started: call abt_generator_start first", .{});
}

pub fn abt_generator_logits(generator: u64, request: usize, logits: ?*?[*]const f32, count: ?*u64) callconv(.c) Status {
    const pointer = logits orelse return failure.nullArgument("logits");
    const len = count orelse return failure.nullArgument("count");
    pointer.* = null;
    len.* = 0;
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Generator, generator, .shared, &status) orelse return status;
    defer held.release();

    const machine = held.object.value.machine;
    if (machine.batch.requests.len == 0) return nothingStarted();
    var found: ?[]const f32 = if (machine.is_fresh and request == 0) machine.session.logits else null;
    for (machine.tokens[0..machine.token_count]) |token| if (token.request == request) {
        found = token.logits;
    };
    const values = found orelse return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "request {d} got no token from the last call of abt_generator_next", .{request});
    pointer.* = values.ptr;
    len.* = values.len;
    return c.ABT_STATUS_OK;
}

pub fn abt_generator_counts(generator: u64, request: usize, counts: ?*c.abt_counts) callconv(.c) Status {
    const result = counts orelse return failure.nullArgument("counts");
    if (out.wrongSize(c.abt_counts, result.struct_size)) |status| return status;
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Generator, generator, .shared, &status) orelse return status;
    defer held.release();

    const batch = &held.object.value.machine.batch;
    if (batch.requests.len == 0) return nothingStarted();
    if (request >= batch.requests.len)
        return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "there is no request {d}; {d} were started", .{ request, batch.requests.len });
    const found = batch.countsOf(request);
    result.* = .{
        .struct_size = @sizeOf(c.abt_counts),
        .prompt = found.prompt,
        .reused = found.reused,
        .answer = found.answer,
        .guessed = found.guessed,
        .accepted = found.accepted,
    };
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

pub fn abt_generator_save_cache(generator: u64, path: ?[*:0]const u8, ids: ?*u64) callconv(.c) Status {
    if (ids) |count| count.* = 0;
    var status: Status = c.ABT_STATUS_OK;
    const name = out.string(path, "path", &status) orelse return status;
    const held = acquireForWork(generator, &status) orelse return status;
    defer held.release();

    const machine = held.object.value.machine;
    const session = &machine.session;
    var diag: failure.Diagnostic = .{};
    infer.prompt_cache.save(out.gpa, machine.model.disk.storage(), name, session, machine.identify(), session.fed, &diag) catch |err|
        return failure.from(err, c.ABT_STATUS_IO, &diag);
    if (ids) |count| count.* = session.fed;
    return c.ABT_STATUS_OK;
}

pub fn abt_generator_load_cache(generator: u64, path: ?[*:0]const u8, ids: ?*u64) callconv(.c) Status {
    if (ids) |count| count.* = 0;
    var status: Status = c.ABT_STATUS_OK;
    const name = out.string(path, "path", &status) orelse return status;
    const held = acquireForWork(generator, &status) orelse return status;
    defer held.release();

    const machine = held.object.value.machine;
    machine.forget();
    var diag: failure.Diagnostic = .{};
    const found = infer.prompt_cache.load(machine.model.disk.storage(), name, &machine.session, machine.identify(), &diag) catch |err| return switch (err) {
        error.Missing => failure.from(err, c.ABT_STATUS_NOT_FOUND, &diag),
        error.CannotRead => failure.from(err, c.ABT_STATUS_IO, &diag),
        else => failure.from(err, c.ABT_STATUS_FORMAT, &diag),
    };
    if (ids) |count| count.* = found;
    return c.ABT_STATUS_OK;
}

pub fn abt_generator_all_logits(generator: u64, ids: ?[*]const u32, count: usize, first: usize, logits: ?[*]f32, capacity: usize) callconv(.c) Status {
    const given = ids orelse return failure.nullArgument("ids");
    const results = logits orelse return failure.nullArgument("logits");
    if (first >= count) return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "first is {d} of {d} ids; it must be below their number", .{ first, count });
    var status: Status = c.ABT_STATUS_OK;
    const held = acquireForWork(generator, &status) orelse return status;
    defer held.release();

    const machine = held.object.value.machine;
    const vocab: usize = machine.model.config.vocab_size;
    const needed = abi.base.checked.mul(usize, count - first, vocab) catch std.math.maxInt(usize);
    if (capacity < needed) return failure.say(c.ABT_STATUS_BUFFER_TOO_SMALL, "there is room for {d} logits, {d} are needed", .{ capacity, needed });
    for (given[0..count]) |id| if (id >= vocab) return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "an id is not below the model's vocabulary of {d}", .{vocab});
    if (count > machine.session.context) return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "there are {d} ids, the context has {d}; give fewer or open with a larger context", .{ count, machine.session.context });
    machine.forget();
    const kept = @min(@min(machine.session.commonPrefix(given[0..count]), machine.session.fed), first);
    machine.session.rewind(kept);
    machine.session.feed(given[kept..first]) catch unreachable; // Looked at above.
    machine.session.prefillAll(given[first..count], results[0..needed]) catch unreachable;
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
    const kept = @min(@min(machine.session.commonPrefix(ids), machine.session.fed), first - 1);
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
