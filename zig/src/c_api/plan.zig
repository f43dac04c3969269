//! Plan group: what a run needs, before it starts.

const std = @import("std");
const abi = @import("abi");
const c = @import("abi_h");
const failure = @import("failure.zig");
const handles = @import("handles.zig");
const out = @import("out.zig");
const config_group = @import("config.zig");
const Dataset = @import("dataset.zig").Dataset;

const Status = failure.Status;

pub fn abt_plan_json(
    config_json: ?[*:0]const u8,
    model_config_json: ?[*:0]const u8,
    dataset: u64,
    eval_dataset: u64,
    options: ?*const c.abt_plan_options,
    buffer: ?[*]u8,
    capacity: usize,
    needed: ?*usize,
) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const model_json = out.string(model_config_json, "model_config_json", &status) orelse return status;
    if (options) |o| if (out.wrongSize(c.abt_plan_options, o.struct_size)) |wrong| return wrong;
    const held_data = if (dataset == 0) null else handles.acquire(Dataset, dataset, .shared, &status) orelse return status;
    defer if (held_data) |h| h.release();

    const held_eval = if (eval_dataset == 0) null else handles.acquire(Dataset, eval_dataset, .shared, &status) orelse return status;
    defer if (held_eval) |h| h.release();

    var config = config_group.parse(config_json, &status) orelse return status;
    defer config.deinit();

    var diag: failure.Diagnostic = .{};
    const methods_json = if (options) |o| out.optionalString(o.methods_json) else null;
    var methods: ?abi.train.OwnedMethods = if (methods_json) |text| abi.train.parseMethods(out.gpa, text, &diag) catch |err|
        return failure.from(err, c.ABT_STATUS_CONFIG, &diag) else null;
    defer if (methods) |*m| m.deinit();

    const request: abi.train.PlanRequest = .{
        .model = abi.formats.hf_config.parse(out.gpa, model_json, &diag) catch |err| return failure.from(err, c.ABT_STATUS_CONFIG, &diag),
        .training = config.value,
        .lora = if (methods) |m| m.value.lora else null,
        .dpo = if (methods) |m| m.value.dpo else null,
        .dataset = if (held_data) |h| &h.object.value.dataset else null,
        .eval_dataset = if (held_eval) |h| &h.object.value.dataset else null,
        .base_name = if (options) |o| out.optionalString(o.base_name) else null,
        .tokenizer_dir = if (options) |o| out.optionalString(o.tokenizer_dir) else null,
        .mapped = if (options) |o| o.dtype == c.ABT_DTYPE_STORED else false,
        .version = abi.version,
    };
    if (request.mapped and request.lora == null)
        return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "dtype is ABT_DTYPE_STORED, but nothing trains an adapter: add a table lora to methods_json", .{});
    const wide = if (options) |o| o.dtype == c.ABT_DTYPE_F64 else false;
    const planned = if (wide)
        abi.train.plan(f64, out.gpa, out.io(), request, &diag)
    else
        abi.train.plan(f32, out.gpa, out.io(), request, &diag);
    var plan = planned catch |err| return failure.from(err, c.ABT_STATUS_CONFIG, &diag);
    defer plan.deinit();

    var text: std.Io.Writer.Allocating = .init(out.gpa);
    defer text.deinit();

    plan.writeJson(&text.writer) catch return failure.from(error.OutOfMemory, c.ABT_STATUS_INTERNAL, null);
    return out.fill(text.written(), buffer, capacity, needed);
}

pub fn abt_plan_layout_json(model_config_json: ?[*:0]const u8, buffer: ?[*]u8, capacity: usize, needed: ?*usize) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const json = out.string(model_config_json, "model_config_json", &status) orelse return status;
    var diag: failure.Diagnostic = .{};
    const config = abi.formats.hf_config.parse(out.gpa, json, &diag) catch |err| return failure.from(err, c.ABT_STATUS_CONFIG, &diag);
    var layout = abi.arch.Layout.init(out.gpa, config) catch |err| return failure.from(err, c.ABT_STATUS_CONFIG, null);
    defer layout.deinit();

    var text: std.Io.Writer.Allocating = .init(out.gpa);
    defer text.deinit();

    writeLayout(&text.writer, &layout) catch return failure.from(error.OutOfMemory, c.ABT_STATUS_INTERNAL, null);
    return out.fill(text.written(), buffer, capacity, needed);
}

fn writeLayout(w: *std.Io.Writer, layout: *const abi.arch.Layout) std.Io.Writer.Error!void {
    var text: std.json.Stringify = .{ .writer = w };
    try text.beginObject();
    try text.objectField("parameters");
    try text.beginArray();
    for (layout.parameters) |*p| try text.write(.{ .name = p.name, .shape = p.dims() });
    try text.endArray();
    try text.endObject();
}
