//! Model group: weights in memory with their configuration.

const std = @import("std");
const abi = @import("abi");
const c = @import("abi_h");
const failure = @import("failure.zig");
const handles = @import("handles.zig");
const out = @import("out.zig");

const Status = failure.Status;
const checkpoint = abi.checkpoint;

const Any = union(enum) {
    f32: checkpoint.LoadedModel(f32),
    f64: checkpoint.LoadedModel(f64),
    /// Weights stay in the file.
    stored: checkpoint.MappedModel,

    pub fn deinit(self: *Any) void {
        switch (self.*) {
            .stored => |*model| model.deinit(),
            inline else => |*model| model.deinit(out.gpa),
        }
    }

    fn layout(self: *const Any) *const abi.arch.Layout {
        return switch (self.*) {
            inline else => |*model| &model.layout,
        };
    }

    fn config(self: *const Any) abi.arch.ModelConfig {
        return switch (self.*) {
            inline else => |*model| model.config,
        };
    }

    fn dtype(self: *const Any) c.abt_dtype {
        return switch (self.*) {
            .f32 => c.ABT_DTYPE_F32,
            .f64 => c.ABT_DTYPE_F64,
            .stored => c.ABT_DTYPE_STORED,
        };
    }
};

pub const Model = handles.Object(.model, Any);

pub fn abt_model_open(path: ?[*:0]const u8, dtype: c.abt_dtype, model: ?*u64) callconv(.c) Status {
    const result = model orelse return failure.nullArgument("model");
    result.* = 0;
    var status: Status = c.ABT_STATUS_OK;
    const name = out.string(path, "path", &status) orelse return status;
    var diag: failure.Diagnostic = .{};
    const opened: Any = switch (dtype) {
        c.ABT_DTYPE_F32 => .{ .f32 = checkpoint.loadModel(f32, out.gpa, out.io(), name, &diag) catch |err| return failure.from(err, c.ABT_STATUS_FORMAT, &diag) },
        c.ABT_DTYPE_F64 => .{ .f64 = checkpoint.loadModel(f64, out.gpa, out.io(), name, &diag) catch |err| return failure.from(err, c.ABT_STATUS_FORMAT, &diag) },
        c.ABT_DTYPE_STORED => .{ .stored = checkpoint.openMapped(out.gpa, out.io(), name, &diag) catch |err| return failure.from(err, c.ABT_STATUS_FORMAT, &diag) },
        else => return badDType(dtype),
    };
    return give(opened, result);
}

pub fn abt_model_random(config_json: ?[*:0]const u8, seed: u64, dtype: c.abt_dtype, model: ?*u64) callconv(.c) Status {
    const result = model orelse return failure.nullArgument("model");
    result.* = 0;
    var status: Status = c.ABT_STATUS_OK;
    const text = out.string(config_json, "config_json", &status) orelse return status;
    var diag: failure.Diagnostic = .{};
    const config = abi.formats.hf_config.parse(out.gpa, text, &diag) catch |err| return failure.from(err, c.ABT_STATUS_CONFIG, &diag);
    const made: Any = switch (dtype) {
        c.ABT_DTYPE_F32 => .{ .f32 = checkpoint.initRandom(f32, out.gpa, config, seed) catch |err| return failure.from(err, c.ABT_STATUS_CONFIG, null) },
        c.ABT_DTYPE_F64 => .{ .f64 = checkpoint.initRandom(f64, out.gpa, config, seed) catch |err| return failure.from(err, c.ABT_STATUS_CONFIG, null) },
        else => return badDType(dtype),
    };
    return give(made, result);
}

fn give(value: Any, result: *u64) Status {
    var model = value;
    result.* = Model.make(model) catch |err| {
        model.deinit();
        return failure.from(err, c.ABT_STATUS_FORMAT, null);
    };
    return c.ABT_STATUS_OK;
}

fn badDType(dtype: c.abt_dtype) Status {
    return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "dtype is {d}; it must be ABT_DTYPE_F32, ABT_DTYPE_F64 or, to open a file, ABT_DTYPE_STORED", .{dtype});
}

pub fn abt_model_free(model: u64) callconv(.c) Status {
    return handles.free(Model, model);
}

pub fn abt_model_fingerprint(model: u64, crc32c: ?*u32) callconv(.c) Status {
    const result = crc32c orelse return failure.nullArgument("crc32c");
    result.* = 0;
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Model, model, .shared, &status) orelse return status;
    defer held.release();

    switch (held.object.value) {
        inline else => |*m, tag| {
            const T = if (tag == .f64) f64 else f32;
            const source: abi.train.Source(T) = if (tag == .stored) .{ .mapped = m } else .{ .dense = m };
            result.* = source.fingerprint();
        },
    }
    return c.ABT_STATUS_OK;
}

pub fn abt_model_config_json(model: u64, buffer: ?[*]u8, capacity: usize, needed: ?*usize) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Model, model, .shared, &status) orelse return status;
    defer held.release();

    var text: std.Io.Writer.Allocating = .init(out.gpa);
    defer text.deinit();

    const m = &held.object.value;
    abi.formats.hf_config.write(&text.writer, m.config(), .{ .dtype = if (m.* == .f32) "float32" else "float64" }) catch
        return failure.from(error.OutOfMemory, c.ABT_STATUS_INTERNAL, null);
    return out.fill(text.written(), buffer, capacity, needed);
}

pub fn abt_model_size(model: u64, parameters: ?*u64, elements: ?*u64, dtype: ?*c.abt_dtype) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Model, model, .shared, &status) orelse return status;
    defer held.release();

    if (parameters) |p| p.* = held.object.value.layout().parameters.len;
    if (elements) |p| p.* = held.object.value.layout().total;
    if (dtype) |p| p.* = held.object.value.dtype();
    return c.ABT_STATUS_OK;
}

pub fn abt_model_parameter(model: u64, index: u64, parameter: ?*c.abt_parameter) callconv(.c) Status {
    const result = parameter orelse return failure.nullArgument("parameter");
    result.* = std.mem.zeroes(c.abt_parameter);
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Model, model, .shared, &status) orelse return status;
    defer held.release();

    const all = held.object.value.layout().parameters;
    if (index >= all.len) return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "index is {d}; the model has {d} parameters", .{ index, all.len });
    const p = &all[@intCast(index)];
    result.* = describe(p);
    return c.ABT_STATUS_OK;
}

pub fn describe(p: *const abi.arch.Parameter) c.abt_parameter {
    return .{
        .name = p.name.ptr,
        .name_size = p.name.len,
        .offset = p.offset,
        .count = p.len,
        .shape = .{ p.full[0], p.full[1], p.full[2] },
        .rank = p.rank,
        .decays = @intFromBool(p.role.decays()),
    };
}

/// Also while a trainer works: the address does not change, and reading between its calls is the caller's promise.
pub fn abt_model_weights(model: u64, weights: ?*?*anyopaque, elements: ?*u64) callconv(.c) Status {
    const pointer = weights orelse return failure.nullArgument("weights");
    const count = elements orelse return failure.nullArgument("elements");
    pointer.* = null;
    count.* = 0;
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Model, model, .signal, &status) orelse return status;
    defer held.release();

    switch (held.object.value) {
        .stored => return inFile(),
        inline else => |*m| {
            pointer.* = m.weights.ptr;
            count.* = m.weights.len;
        },
    }
    return c.ABT_STATUS_OK;
}

pub fn abt_model_save(model: u64, folder: ?[*:0]const u8, tokenizer_dir: ?[*:0]const u8) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const path = out.string(folder, "folder", &status) orelse return status;
    const held = handles.acquire(Model, model, .shared, &status) orelse return status;
    defer held.release();

    var diag: failure.Diagnostic = .{};
    switch (held.object.value) {
        .stored => return inFile(),
        inline else => |*m, tag| checkpoint.saveModel(Element(tag), out.gpa, out.io(), path, m, out.optionalString(tokenizer_dir), &diag) catch |err|
            return failure.from(err, c.ABT_STATUS_CHECKPOINT, &diag),
    }
    return c.ABT_STATUS_OK;
}

pub fn abt_model_import_checkpoint(model: u64, path: ?[*:0]const u8, step: ?*u64) callconv(.c) Status {
    const result = step orelse return failure.nullArgument("step");
    result.* = 0;
    var status: Status = c.ABT_STATUS_OK;
    const name = out.string(path, "path", &status) orelse return status;
    const held = handles.acquire(Model, model, .exclusive, &status) orelse return status;
    defer held.release();

    var diag: failure.Diagnostic = .{};
    const header = switch (held.object.value) {
        .stored => return inFile(),
        inline else => |*m, tag| checkpoint.ablc.importFile(Element(tag), out.gpa, out.io(), name, &m.layout, .{ .weights = m.weights }, &diag),
    } catch |err| return failure.from(err, c.ABT_STATUS_CHECKPOINT, &diag);
    result.* = header.step;
    return c.ABT_STATUS_OK;
}

pub fn abt_model_export_checkpoint(model: u64, path: ?[*:0]const u8, weights_only: u32, step: u64) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const name = out.string(path, "path", &status) orelse return status;
    const held = handles.acquire(Model, model, .shared, &status) orelse return status;
    defer held.release();

    var diag: failure.Diagnostic = .{};
    switch (held.object.value) {
        .stored => return inFile(),
        inline else => |*m, tag| checkpoint.ablc.exportFile(
            Element(tag),
            out.gpa,
            out.io(),
            name,
            if (weights_only != 0) .abic else .ablc,
            &m.layout,
            .{ .step = step, .weights = m.weights },
            &diag,
        ) catch |err| return failure.from(err, c.ABT_STATUS_CHECKPOINT, &diag),
    }
    return c.ABT_STATUS_OK;
}

fn Element(comptime tag: std.meta.Tag(Any)) type {
    return switch (tag) {
        .f32 => f32,
        .f64 => f64,
        .stored => comptime unreachable,
    };
}

fn inFile() Status {
    return failure.say(c.ABT_STATUS_UNSUPPORTED, "the model was opened with ABT_DTYPE_STORED: its weights stay in their file. Open it with ABT_DTYPE_F32", .{});
}
