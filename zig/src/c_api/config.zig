//! Configuration group: `LlmTrainingConfig` as JSON, and its learning rates.

const std = @import("std");
const abi = @import("abi");
const c = @import("abi_h");
const failure = @import("failure.zig");
const out = @import("out.zig");

pub fn abt_config_schema_json(buffer: ?[*]u8, capacity: usize, needed: ?*usize) callconv(.c) failure.Status {
    var text: std.Io.Writer.Allocating = .init(out.gpa);
    defer text.deinit();

    abi.train.writeJsonSchema(&text.writer) catch return outOfMemory();
    return out.fill(text.written(), buffer, capacity, needed);
}

pub fn abt_config_validate_json(config_json: ?[*:0]const u8, buffer: ?[*]u8, capacity: usize, needed: ?*usize) callconv(.c) failure.Status {
    var status: failure.Status = c.ABT_STATUS_OK;
    var config = parse(config_json, &status) orelse return status;
    defer config.deinit();

    var text: std.Io.Writer.Allocating = .init(out.gpa);
    defer text.deinit();

    abi.train.writeJson(&config.value, &text.writer) catch return outOfMemory();
    return out.fill(text.written(), buffer, capacity, needed);
}

pub fn abt_schedule_learning_rates(
    config_json: ?[*:0]const u8,
    first_step: u64,
    total_steps: u64,
    rates: ?[*]f64,
    count: usize,
) callconv(.c) failure.Status {
    var status: failure.Status = c.ABT_STATUS_OK;
    var config = parse(config_json, &status) orelse return status;
    defer config.deinit();

    if (count == 0) return c.ABT_STATUS_OK;
    const values = rates orelse return failure.nullArgument("rates");
    for (values[0..count], 0..) |*rate, i| rate.* = abi.train.learningRate(&config.value, first_step +| i, total_steps);
    return c.ABT_STATUS_OK;
}

/// Caller calls `deinit`; on null `status` says why.
pub fn parse(config_json: ?[*:0]const u8, status: *failure.Status) ?abi.train.OwnedConfig {
    const json = out.string(config_json, "config_json", status) orelse return null;
    var diag: failure.Diagnostic = .{};
    return abi.train.parseJson(out.gpa, json, &diag) catch |err| {
        status.* = failure.from(err, c.ABT_STATUS_CONFIG, &diag);
        return null;
    };
}

fn outOfMemory() failure.Status {
    return failure.from(error.OutOfMemory, c.ABT_STATUS_INTERNAL, null);
}
