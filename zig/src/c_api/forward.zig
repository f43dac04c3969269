//! Model group, second half: what a model says to a sequence, by the forward pass of training.

const std = @import("std");
const abi = @import("abi");
const c = @import("abi_h");
const failure = @import("failure.zig");
const handles = @import("handles.zig");
const out = @import("out.zig");
const model_group = @import("model.zig");

const Status = failure.Status;
const checkpoint = abi.checkpoint;

pub fn abt_model_logits(model: u64, options: ?*const c.abt_forward_options, ids: ?[*]const u32, count: usize, first: usize, logits: ?*anyopaque) callconv(.c) Status {
    const given = ids orelse return failure.nullArgument("ids");
    const result = logits orelse return failure.nullArgument("logits");
    if (first >= count) return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "first is {d} of {d} ids; it must be below their number", .{ first, count });
    var request: Request = .{ .ids = given[0..count], .first = first };
    if (request.read(options)) |status| return status;
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(model_group.Model, model, .shared, &status) orelse return status;
    defer held.release();

    switch (held.object.value) {
        inline else => |*m, tag| {
            const T = if (tag == .f64) f64 else f32;
            const vocab: usize = m.config.vocab_size;
            const values: [*]T = @ptrCast(@alignCast(result));
            var asked: Asked(T) = .{};
            defer asked.deinit();

            asked.open(sourceOf(T, tag, m), request, count) catch |err| return asked.failed(err);
            const total = abi.base.checked.mul(usize, count - first, vocab) catch return failure.from(error.OutOfMemory, c.ABT_STATUS_INTERNAL, null);
            asked.forward.?.logits(request.ids, first, values[0..total]) catch |err| return foreign(err, vocab);
        },
    }
    return c.ABT_STATUS_OK;
}

pub fn abt_model_score(model: u64, options: ?*const c.abt_forward_options, ids: ?[*]const u32, count: usize, first: usize, log_probs: ?[*]f64, likeliest: ?[*]u8) callconv(.c) Status {
    const given = ids orelse return failure.nullArgument("ids");
    const results = log_probs orelse return failure.nullArgument("log_probs");
    if (first == 0 or first >= count) return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "first is {d} of {d} ids; it must be at least 1 and below their number", .{ first, count });
    var request: Request = .{ .ids = given[0..count], .first = first };
    if (request.read(options)) |status| return status;
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(model_group.Model, model, .shared, &status) orelse return status;
    defer held.release();

    const best = out.gpa.alloc(bool, count - first) catch |err| return failure.from(err, c.ABT_STATUS_INTERNAL, null);
    defer out.gpa.free(best);

    switch (held.object.value) {
        inline else => |*m, tag| {
            const T = if (tag == .f64) f64 else f32;
            var asked: Asked(T) = .{};
            defer asked.deinit();

            asked.open(sourceOf(T, tag, m), request, count - 1) catch |err| return asked.failed(err);
            asked.forward.?.score(request.ids, first, results[0 .. count - first], best) catch |err| return foreign(err, m.config.vocab_size);
        },
    }
    if (likeliest) |flags| for (flags, best) |*flag, yes| {
        flag.* = @intFromBool(yes);
    };
    return c.ABT_STATUS_OK;
}

const Request = struct {
    ids: []const u32,
    first: usize,
    adapter: ?[]const u8 = null,
    threads: usize = 0,

    fn read(self: *Request, options: ?*const c.abt_forward_options) ?Status {
        const o = options orelse return null;
        if (out.wrongSize(c.abt_forward_options, o.struct_size)) |status| return status;
        self.adapter = out.optionalString(o.adapter);
        self.threads = o.threads;
        return null;
    }
};

fn sourceOf(comptime T: type, comptime tag: anytype, model: anytype) abi.train.Source(T) {
    return if (tag == .stored) .{ .mapped = model } else .{ .dense = model };
}

fn foreign(err: abi.train.forward.Error, vocab: usize) Status {
    return switch (err) {
        error.OutOfMemory => failure.from(err, c.ABT_STATUS_INTERNAL, null),
        error.TokenOutOfVocabulary => failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "an id is not below the model's vocabulary of {d}", .{vocab}),
    };
}

/// All that one call needs, in order of making.
fn Asked(comptime T: type) type {
    return struct {
        pool: ?*abi.base.Pool = null,
        adapter: ?checkpoint.LoadedAdapter(T) = null,
        forward: ?abi.train.Forward(T) = null,
        diag: failure.Diagnostic = .{},

        const Self = @This();

        fn open(self: *Self, source: abi.train.Source(T), request: Request, time: usize) !void {
            self.pool = try abi.base.Pool.init(out.gpa, request.threads);
            if (request.adapter) |path| self.adapter = try checkpoint.loadAdapter(T, out.gpa, out.io(), path, source.baseModel(), &self.diag);
            self.forward = try .init(out.gpa, source, if (self.adapter) |*a| a else null, self.pool.?, time);
        }

        fn failed(self: *const Self, err: anyerror) Status {
            return failure.from(err, c.ABT_STATUS_CHECKPOINT, &self.diag);
        }

        fn deinit(self: *Self) void {
            if (self.forward) |*forward| forward.deinit();
            if (self.adapter) |*adapter| adapter.deinit(out.gpa);
            if (self.pool) |pool| pool.deinit();
        }
    };
}
