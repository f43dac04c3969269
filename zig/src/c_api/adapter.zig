//! Adapter group: making a first LoRA adapter, and merging one into its model.

const std = @import("std");
const abi = @import("abi");
const c = @import("abi_h");
const failure = @import("failure.zig");
const handles = @import("handles.zig");
const out = @import("out.zig");
const model_group = @import("model.zig");

const Status = failure.Status;
const checkpoint = abi.checkpoint;

/// The seed of every random thing where nothing says otherwise.
const default_seed = (abi.train.LlmTrainingConfig{}).seed;

pub fn abt_adapter_create(model: u64, lora_json: ?[*:0]const u8, base_name: ?[*:0]const u8, folder: ?[*:0]const u8) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const text = out.string(lora_json, "lora_json", &status) orelse return status;
    const path = out.string(folder, "folder", &status) orelse return status;
    const held = handles.acquire(model_group.Model, model, .shared, &status) orelse return status;
    defer held.release();

    var arena: std.heap.ArenaAllocator = .init(out.gpa);
    defer arena.deinit();

    var diag: failure.Diagnostic = .{};
    const value = abi.formats.json.parse(arena.allocator(), text, .{ .size_bytes = 1 << 20 }, &diag) catch |err| return failure.from(err, c.ABT_STATUS_CONFIG, &diag);
    const lora = abi.train.LoraConfig.parse(arena.allocator(), value, &diag) catch |err| return failure.from(err, c.ABT_STATUS_CONFIG, &diag);
    switch (held.object.value) {
        inline else => |*m, tag| {
            const T = if (tag == .f64) f64 else f32;
            const source: abi.train.Source(T) = if (tag == .stored) .{ .mapped = m } else .{ .dense = m };
            var adapter = lora.open(T, out.gpa, out.io(), source.baseModel(), default_seed, &diag) catch |err| return failure.from(err, c.ABT_STATUS_CONFIG, &diag);
            defer adapter.deinit(out.gpa);

            checkpoint.saveAdapter(T, out.gpa, out.io(), path, m.config, .{
                .settings = adapter.settings,
                .base_name = out.optionalString(base_name) orelse adapter.base_name,
                .layout = &adapter.layout,
                .values = adapter.values,
            }, null, &diag) catch |err| return failure.from(err, c.ABT_STATUS_CHECKPOINT, &diag);
        },
    }
    return c.ABT_STATUS_OK;
}

pub fn abt_adapter_check(model: u64, adapter_path: ?[*:0]const u8) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const path = out.string(adapter_path, "adapter", &status) orelse return status;
    const held = handles.acquire(model_group.Model, model, .shared, &status) orelse return status;
    defer held.release();

    var diag: failure.Diagnostic = .{};
    switch (held.object.value) {
        inline else => |*m, tag| {
            const T = if (tag == .f64) f64 else f32;
            const source: abi.train.Source(T) = if (tag == .stored) .{ .mapped = m } else .{ .dense = m };
            var adapter = checkpoint.loadAdapter(T, out.gpa, out.io(), path, source.baseModel(), &diag) catch |err|
                return failure.from(err, c.ABT_STATUS_CHECKPOINT, &diag);
            adapter.deinit(out.gpa);
        },
    }
    return c.ABT_STATUS_OK;
}

pub fn abt_adapter_merge(model_path: ?[*:0]const u8, adapter_path: ?[*:0]const u8, out_folder: ?[*:0]const u8, tokenizer_dir: ?[*:0]const u8) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const from = out.string(model_path, "model_path", &status) orelse return status;
    const with = out.string(adapter_path, "adapter", &status) orelse return status;
    const to = out.string(out_folder, "out_folder", &status) orelse return status;
    var diag: failure.Diagnostic = .{};
    var model = checkpoint.loadModel(f32, out.gpa, out.io(), from, &diag) catch |err| return failure.from(err, c.ABT_STATUS_FORMAT, &diag);
    defer model.deinit(out.gpa);

    var adapter = checkpoint.loadAdapter(f32, out.gpa, out.io(), with, .{ .config = model.config, .layout = &model.layout, .weights = model.weights }, &diag) catch |err|
        return failure.from(err, c.ABT_STATUS_CHECKPOINT, &diag);
    defer adapter.deinit(out.gpa);

    checkpoint.mergeInto(f32, out.gpa, &model, &adapter) catch |err| return failure.from(err, c.ABT_STATUS_INTERNAL, null);
    const own = if (std.ascii.endsWithIgnoreCase(from, ".gguf")) null else from;
    checkpoint.saveModel(f32, out.gpa, out.io(), to, &model, out.optionalString(tokenizer_dir) orelse own, &diag) catch |err|
        return failure.from(err, c.ABT_STATUS_CHECKPOINT, &diag);
    return c.ABT_STATUS_OK;
}

pub fn abt_adapter_unmerge(model_path: ?[*:0]const u8, adapter_path: ?[*:0]const u8, out_folder: ?[*:0]const u8, tokenizer_dir: ?[*:0]const u8, distance: ?*f64) callconv(.c) Status {
    if (distance) |d| d.* = 0;
    var status: Status = c.ABT_STATUS_OK;
    const from = out.string(model_path, "model_path", &status) orelse return status;
    const with = out.string(adapter_path, "adapter", &status) orelse return status;
    const to = out.string(out_folder, "out_folder", &status) orelse return status;
    var diag: failure.Diagnostic = .{};
    {
        var stored = checkpoint.openMapped(out.gpa, out.io(), from, &diag) catch |err| return failure.from(err, c.ABT_STATUS_FORMAT, &diag);
        defer stored.deinit();

        checkpoint.merge.checkStoredWhole(&stored, from, &diag) catch |err| return failure.from(err, c.ABT_STATUS_CONFIG, &diag);
    }
    var model = checkpoint.loadModel(f32, out.gpa, out.io(), from, &diag) catch |err| return failure.from(err, c.ABT_STATUS_FORMAT, &diag);
    defer model.deinit(out.gpa);

    // The numbers are not the base's, so they are not compared with it.
    var adapter = checkpoint.loadAdapter(f32, out.gpa, out.io(), with, .{ .config = model.config, .layout = &model.layout }, &diag) catch |err|
        return failure.from(err, c.ABT_STATUS_CHECKPOINT, &diag);
    defer adapter.deinit(out.gpa);

    const most = checkpoint.merge.takeOut(f32, out.gpa, &model, &adapter, &diag) catch |err| return failure.from(err, c.ABT_STATUS_CONFIG, &diag);
    const own = if (std.ascii.endsWithIgnoreCase(from, ".gguf")) null else from;
    checkpoint.saveModel(f32, out.gpa, out.io(), to, &model, out.optionalString(tokenizer_dir) orelse own, &diag) catch |err|
        return failure.from(err, c.ABT_STATUS_CHECKPOINT, &diag);
    if (distance) |d| d.* = most;
    return c.ABT_STATUS_OK;
}
