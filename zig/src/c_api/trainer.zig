//! Trainer group: the training loop, one event a call.

const std = @import("std");
const abi = @import("abi");
const c = @import("abi_h");
const failure = @import("failure.zig");
const handles = @import("handles.zig");
const out = @import("out.zig");
const config_group = @import("config.zig");
const dataset_group = @import("dataset.zig");
const model_group = @import("model.zig");

const Status = failure.Status;
const Dataset = dataset_group.Dataset;
const Model = model_group.Model;

const Loop = union(enum) {
    f32: *abi.train.Trainer(f32),
    f64: *abi.train.Trainer(f64),
};

const Payload = struct {
    loop: Loop,
    config: abi.train.OwnedConfig,
    methods: ?abi.train.OwnedMethods,
    model_handle: u64,
    /// Keep what the loop points into.
    model: *handles.Header,
    dataset: *handles.Header,
    eval_dataset: ?*handles.Header,
    process: std.c.pid_t,

    pub fn deinit(self: *Payload) void {
        // Worker threads do not exist in a forked child: joining them there would wait for ever.
        if (self.process == std.c.getpid()) switch (self.loop) {
            inline else => |loop| loop.deinit(),
        };
        self.config.deinit();
        if (self.methods) |*m| m.deinit();
        self.model.release();
        self.dataset.release();
        if (self.eval_dataset) |e| e.release();
    }
};

const Trainer = handles.Object(.trainer, Payload);

pub fn abt_trainer_open(
    config_json: ?[*:0]const u8,
    model: u64,
    dataset: u64,
    eval_dataset: u64,
    options: ?*const c.abt_trainer_options,
    trainer: ?*u64,
) callconv(.c) Status {
    const result = trainer orelse return failure.nullArgument("trainer");
    result.* = 0;
    var given: abi.train.TrainerOptions = .{ .version = abi.version };
    var methods_json: ?[]const u8 = null;
    if (options) |o| {
        if (out.wrongSize(c.abt_trainer_options, o.struct_size)) |status| return status;
        given.run_dir = out.optionalString(o.run_dir);
        given.tokenizer_dir = out.optionalString(o.tokenizer_dir);
        given.resume_from = out.optionalString(o.resume_from);
        given.base_name = out.optionalString(o.base_name);
        methods_json = out.optionalString(o.methods_json);
        given.share = .{ .rank = o.rank, .count = @max(o.ranks, 1) };
    }
    var status: Status = c.ABT_STATUS_OK;
    const held_model = handles.acquire(Model, model, .exclusive, &status) orelse return status;
    defer held_model.release();

    const held_data = handles.acquire(Dataset, dataset, .shared, &status) orelse return status;
    defer held_data.release();

    const held_eval = if (eval_dataset == 0) null else handles.acquire(Dataset, eval_dataset, .shared, &status) orelse return status;
    defer if (held_eval) |h| h.release();

    var config = config_group.parse(config_json, &status) orelse return status;
    var diag: failure.Diagnostic = .{};
    var methods: ?abi.train.OwnedMethods = if (methods_json) |text| abi.train.parseMethods(out.gpa, text, &diag) catch |err| {
        config.deinit();
        return failure.from(err, c.ABT_STATUS_CONFIG, &diag);
    } else null;
    if (methods) |*m| {
        given.lora = m.value.lora;
        given.dpo = m.value.dpo;
    }
    const eval_data = if (held_eval) |h| &h.object.value.dataset else null;
    const loop: Loop = switch (held_model.object.value) {
        inline else => |*model_value, tag| blk: {
            const T = if (tag == .f64) f64 else f32;
            const source: abi.train.Source(T) = if (tag == .stored) .{ .mapped = model_value } else .{ .dense = model_value };
            const loop = abi.train.Trainer(T).initOver(out.gpa, out.io(), source, &held_data.object.value.dataset, eval_data, config.value, given, &diag) catch |err| {
                config.deinit();
                if (methods) |*m| m.deinit();
                // What is wrong with a checkpoint has many names; without one the configuration is to blame.
                return failure.from(err, if (given.resume_from != null) c.ABT_STATUS_CHECKPOINT else c.ABT_STATUS_CONFIG, &diag);
            };
            break :blk @unionInit(Loop, @typeName(T), loop);
        },
    };
    held_model.object.header.retain();
    held_data.object.header.retain();
    if (held_eval) |h| h.object.header.retain();
    var payload: Payload = .{
        .loop = loop,
        .config = config,
        .methods = methods,
        .model_handle = model,
        .model = &held_model.object.header,
        .dataset = &held_data.object.header,
        .eval_dataset = if (held_eval) |h| &h.object.header else null,
        .process = std.c.getpid(),
    };
    result.* = Trainer.make(payload) catch |err| {
        payload.deinit();
        return failure.from(err, c.ABT_STATUS_INTERNAL, null);
    };
    return c.ABT_STATUS_OK;
}

pub fn abt_trainer_free(trainer: u64) callconv(.c) Status {
    return handles.free(Trainer, trainer);
}

pub fn abt_trainer_next(trainer: u64, event: ?*c.abt_event) callconv(.c) Status {
    const result = event orelse return failure.nullArgument("event");
    if (out.wrongSize(c.abt_event, result.struct_size)) |status| return status;
    result.* = std.mem.zeroes(c.abt_event);
    result.struct_size = @sizeOf(c.abt_event);
    var status: Status = c.ABT_STATUS_OK;
    const held = acquireForWork(trainer, &status) orelse return status;
    defer held.release();

    // A model that was freed by its handle lives on for the trainer alone: nobody to keep out.
    var ignored: Status = c.ABT_STATUS_OK;
    const held_model = handles.acquire(Model, held.object.value.model_handle, .exclusive, &ignored);
    if (held_model == null and ignored == c.ABT_STATUS_BUSY) return ignored;
    defer if (held_model) |h| h.release();

    var diag: failure.Diagnostic = .{};
    const next = switch (held.object.value.loop) {
        inline else => |loop| loop.next(&diag),
    } catch |err| return failure.from(err, c.ABT_STATUS_CHECKPOINT, &diag);
    if (next) |e| fillEvent(result, e);
    return c.ABT_STATUS_OK;
}

pub fn abt_trainer_request_stop(trainer: u64) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Trainer, trainer, .signal, &status) orelse return status;
    defer held.release();

    switch (held.object.value.loop) {
        inline else => |loop| loop.requestStop(),
    }
    return c.ABT_STATUS_OK;
}

pub fn abt_trainer_save(trainer: u64, buffer: ?[*]u8, capacity: usize, needed: ?*usize) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const held = acquireForWork(trainer, &status) orelse return status;
    defer held.release();

    var diag: failure.Diagnostic = .{};
    switch (held.object.value.loop) {
        inline else => |loop| {
            // Asking for the size saves; the second call, with room, finds the step saved and only tells where.
            const already = loop.saved_step != null and loop.saved_step.? == loop.state.global_step and loop.saved_path != null;
            const path = if (already) loop.saved_path.? else (loop.save(&diag) catch |err|
                return failure.from(err, c.ABT_STATUS_CHECKPOINT, &diag)).path;
            return out.fill(path, buffer, capacity, needed);
        },
    }
}

pub fn abt_checkpoint_check(path: ?[*:0]const u8) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const folder = out.string(path, "checkpoint", &status) orelse return status;
    var diag: failure.Diagnostic = .{};
    abi.checkpoint.verify(out.gpa, out.io(), folder, &diag) catch |err| return failure.from(err, c.ABT_STATUS_CHECKPOINT, &diag);
    return c.ABT_STATUS_OK;
}

pub fn abt_checkpoint_seal(path: ?[*:0]const u8) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const folder = out.string(path, "folder", &status) orelse return status;
    var diag: failure.Diagnostic = .{};
    abi.checkpoint.seal(out.gpa, out.io(), folder, &diag) catch |err| return failure.from(err, c.ABT_STATUS_IO, &diag);
    return c.ABT_STATUS_OK;
}

pub fn abt_checkpoint_latest_json(run_dir: ?[*:0]const u8, buffer: ?[*]u8, capacity: usize, needed: ?*usize) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const dir = out.string(run_dir, "run_dir", &status) orelse return status;
    var diag: failure.Diagnostic = .{};
    const found = abi.checkpoint.latest(out.gpa, out.io(), dir, &diag) catch |err| return failure.from(err, c.ABT_STATUS_CHECKPOINT, &diag);
    defer if (found) |f| out.gpa.free(f.path);

    var text: std.Io.Writer.Allocating = .init(out.gpa);
    defer text.deinit();

    std.json.Stringify.value(.{
        .step = if (found) |f| f.step else null,
        .note = diag.text(),
    }, .{}, &text.writer) catch return failure.from(error.OutOfMemory, c.ABT_STATUS_OUT_OF_MEMORY, null);
    return out.fill(text.written(), buffer, capacity, needed);
}

pub fn abt_trainer_left_out(trainer: u64, counts: ?*c.abt_left_out) callconv(.c) Status {
    const result = counts orelse return failure.nullArgument("counts");
    if (out.wrongSize(c.abt_left_out, result.struct_size)) |status| return status;
    var status: Status = c.ABT_STATUS_OK;
    const held = acquireForWork(trainer, &status) orelse return status;
    defer held.release();

    switch (held.object.value.loop) {
        inline else => |loop| {
            result.dropped = loop.loader.dropped_rows;
            result.truncated = loop.loader.truncated_rows;
            result.eval_dropped = if (loop.eval_loader) |l| l.dropped_rows else 0;
            result.eval_truncated = if (loop.eval_loader) |l| l.truncated_rows else 0;
        },
    }
    return c.ABT_STATUS_OK;
}

pub fn abt_trainer_progress(trainer: u64, global_step: ?*u64, max_steps: ?*u64) callconv(.c) Status {
    const step = global_step orelse return failure.nullArgument("global_step");
    const total = max_steps orelse return failure.nullArgument("max_steps");
    step.* = 0;
    total.* = 0;
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Trainer, trainer, .shared, &status) orelse return status;
    defer held.release();

    switch (held.object.value.loop) {
        inline else => |loop| {
            step.* = loop.state.global_step;
            total.* = loop.state.max_steps;
        },
    }
    return c.ABT_STATUS_OK;
}

pub fn abt_trainer_size(trainer: u64, parameters: ?*u64, elements: ?*u64, dtype: ?*c.abt_dtype) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Trainer, trainer, .shared, &status) orelse return status;
    defer held.release();

    switch (held.object.value.loop) {
        inline else => |loop, tag| {
            if (parameters) |p| p.* = loop.trained.parameters.len;
            if (elements) |p| p.* = loop.trained.values.len;
            if (dtype) |p| p.* = if (tag == .f32) c.ABT_DTYPE_F32 else c.ABT_DTYPE_F64;
        },
    }
    return c.ABT_STATUS_OK;
}

pub fn abt_trainer_parameter(trainer: u64, index: u64, parameter: ?*c.abt_parameter) callconv(.c) Status {
    const result = parameter orelse return failure.nullArgument("parameter");
    result.* = std.mem.zeroes(c.abt_parameter);
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Trainer, trainer, .shared, &status) orelse return status;
    defer held.release();

    const all = switch (held.object.value.loop) {
        inline else => |loop| loop.trained.parameters,
    };
    if (index >= all.len) return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "index is {d}; {d} parameters are trained", .{ index, all.len });
    result.* = model_group.describe(&all[@intCast(index)]);
    return c.ABT_STATUS_OK;
}

/// Also while the trainer works: the address does not change, and reading between its calls is the caller's promise.
pub fn abt_trainer_weights(trainer: u64, weights: ?*?*anyopaque, elements: ?*u64) callconv(.c) Status {
    const pointer = weights orelse return failure.nullArgument("weights");
    const count = elements orelse return failure.nullArgument("elements");
    pointer.* = null;
    count.* = 0;
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Trainer, trainer, .signal, &status) orelse return status;
    defer held.release();

    switch (held.object.value.loop) {
        inline else => |loop| {
            pointer.* = loop.trained.values.ptr;
            count.* = loop.trained.values.len;
        },
    }
    return c.ABT_STATUS_OK;
}

pub fn abt_trainer_save_adapter(trainer: u64, folder: ?[*:0]const u8) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const path = out.string(folder, "folder", &status) orelse return status;
    const held = handles.acquire(Trainer, trainer, .shared, &status) orelse return status;
    defer held.release();

    var diag: failure.Diagnostic = .{};
    switch (held.object.value.loop) {
        inline else => |loop| loop.saveAdapter(path, &diag) catch |err| return failure.from(err, c.ABT_STATUS_CHECKPOINT, &diag),
    }
    return c.ABT_STATUS_OK;
}

pub fn abt_trainer_buffers(
    trainer: u64,
    gradients: ?*?*const anyopaque,
    first_moment: ?*?*const anyopaque,
    second_moment: ?*?*const anyopaque,
    gradient_elements: ?*u64,
    moment_elements: ?*u64,
) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Trainer, trainer, .shared, &status) orelse return status;
    defer held.release();

    switch (held.object.value.loop) {
        inline else => |loop| {
            if (gradients) |p| p.* = loop.trained.gradients.ptr;
            if (first_moment) |p| p.* = loop.trained.first_moment.ptr;
            if (second_moment) |p| p.* = loop.trained.second_moment.ptr;
            if (gradient_elements) |p| p.* = loop.trained.gradients.len;
            if (moment_elements) |p| p.* = loop.trained.first_moment.len;
        },
    }
    return c.ABT_STATUS_OK;
}

pub fn abt_trainer_exchange(
    trainer: u64,
    gradients: ?*?*anyopaque,
    elements: ?*u64,
    sums: ?*?[*]f64,
    sum_count: ?*u64,
) callconv(.c) Status {
    const gradient_pointer = gradients orelse return failure.nullArgument("gradients");
    const sum_pointer = sums orelse return failure.nullArgument("sums");
    gradient_pointer.* = null;
    sum_pointer.* = null;
    var status: Status = c.ABT_STATUS_OK;
    const held = acquireForWork(trainer, &status) orelse return status;
    defer held.release();

    switch (held.object.value.loop) {
        inline else => |loop| {
            const shared = loop.exchange() orelse
                return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "there is nothing to exchange now: call this after an event ABT_EVENT_GRADIENT", .{});
            gradient_pointer.* = shared.gradients.ptr;
            sum_pointer.* = shared.sums.ptr;
            if (elements) |p| p.* = shared.gradients.len;
            if (sum_count) |p| p.* = shared.sums.len;
        },
    }
    return c.ABT_STATUS_OK;
}

/// Exclusively, and only in the process that made the worker threads.
fn acquireForWork(trainer: u64, status: *Status) ?handles.Held(Trainer) {
    const held = handles.acquire(Trainer, trainer, .exclusive, status) orelse return null;
    if (held.object.value.process != std.c.getpid()) {
        held.release();
        status.* = failure.say(c.ABT_STATUS_UNSUPPORTED, "this trainer was made before fork(); make it in the process that uses it", .{});
        return null;
    }
    return held;
}

fn fillPreference(result: *c.abt_event, metrics: @FieldType(abi.train.TrainingStats, "preference")) void {
    const m = metrics orelse return;
    result.has_preference = 1;
    inline for (.{ "rewards_chosen", "rewards_rejected", "rewards_margins", "rewards_accuracies", "logps_chosen", "logps_rejected", "logits_chosen", "logits_rejected" }) |name|
        @field(result, name) = @field(m, name);
}

fn fillEvent(result: *c.abt_event, event: abi.train.Event) void {
    switch (event) {
        .gradient => result.kind = c.ABT_EVENT_GRADIENT,
        .reference => |r| {
            result.kind = c.ABT_EVENT_REFERENCE;
            result.pairs_asked = r.asked;
            result.pairs = r.pairs;
        },
        .step => |s| {
            result.kind = c.ABT_EVENT_STEP;
            result.micro_steps = s.micro_steps;
            result.global_step = s.global_step;
            result.epoch = s.epoch;
            result.loss = s.loss;
            result.accuracy = s.accuracy;
            result.perplexity = s.perplexity;
            result.learning_rate = s.learning_rate;
            result.grad_norm = s.grad_norm;
            result.tokens_per_second = s.throughput;
            result.tokens_processed = s.tokens_processed;
            result.time_ns = s.time_ns;
            fillPreference(result, s.preference);
        },
        .evaluation => |e| {
            result.kind = c.ABT_EVENT_EVALUATION;
            result.global_step = e.global_step;
            result.epoch = e.epoch;
            result.loss = e.loss;
            result.accuracy = e.accuracy;
            result.perplexity = e.perplexity;
            result.num_batches = e.num_batches;
            result.eval_tokens = e.total_tokens;
            result.improved = @intFromBool(e.improved);
            fillPreference(result, e.preference);
        },
        .checkpoint => |s| {
            result.kind = c.ABT_EVENT_CHECKPOINT;
            result.global_step = s.global_step;
            result.path = s.path.ptr;
            result.path_size = s.path.len;
        },
        .finished => |r| {
            result.kind = c.ABT_EVENT_FINISHED;
            result.global_step = r.total_steps;
            result.loss = r.final_loss;
            result.accuracy = r.final_accuracy;
            result.perplexity = r.final_perplexity;
            result.tokens_per_second = r.avg_throughput;
            result.tokens_processed = r.total_tokens;
            result.time_ns = r.total_time_ns;
            result.stop_reason = switch (r.stop_reason) {
                .completed => c.ABT_STOP_COMPLETED,
                .early_stopped => c.ABT_STOP_EARLY,
                .interrupted => c.ABT_STOP_INTERRUPTED,
            };
            result.best_val_loss = r.best_val_loss;
            result.best_val_accuracy = r.best_val_accuracy;
            result.best_step = if (r.best_step) |s| @intCast(s) else -1;
            result.checkpoints_saved = r.checkpoints_saved;
        },
    }
}
