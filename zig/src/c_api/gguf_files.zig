//! Files group, second half: GGUF files made coarser, cut into parts, joined.

const std = @import("std");
const abi = @import("abi");
const c = @import("abi_h");
const failure = @import("failure.zig");
const out = @import("out.zig");

const Status = failure.Status;
const gguf_files = abi.formats.gguf_files;
const gguf_mix = abi.formats.gguf_mix;
const DType = abi.tensor.DType;

pub fn abt_gguf_quantize(options: ?*const c.abt_quantize_options, report: ?*c.abt_quantize_report) callconv(.c) Status {
    if (report) |r| if (out.wrongSize(c.abt_quantize_report, r.struct_size)) |wrong| return wrong;
    var status: Status = c.ABT_STATUS_OK;
    var request = readOptions(options, &status) orelse return status;
    const pool = abi.base.Pool.init(out.gpa, options.?.threads) catch |err| return failure.from(err, c.ABT_STATUS_INTERNAL, null);
    defer pool.deinit();

    request.options.pool = pool;
    var diag: failure.Diagnostic = .{};
    const made = gguf_files.quantise(out.gpa, out.io(), request, &diag) catch |err| return failure.from(err, c.ABT_STATUS_FORMAT, &diag);
    if (report) |r| {
        r.bytes = made.bytes;
        r.source_bytes = made.source_bytes;
        r.elements = made.elements;
        r.tensors = made.tensors;
        r.fallbacks = made.fallbacks;
    }
    return c.ABT_STATUS_OK;
}

pub fn abt_gguf_quantize_size(options: ?*const c.abt_quantize_options, bytes: ?*u64) callconv(.c) Status {
    const result = bytes orelse return failure.nullArgument("bytes");
    result.* = 0;
    var status: Status = c.ABT_STATUS_OK;
    const request = readOptions(options, &status) orelse return status;
    var diag: failure.Diagnostic = .{};
    result.* = gguf_files.quantisedSize(out.gpa, out.io(), request, &diag) catch |err| return failure.from(err, c.ABT_STATUS_FORMAT, &diag);
    return c.ABT_STATUS_OK;
}

fn readOptions(options: ?*const c.abt_quantize_options, status: *Status) ?gguf_files.Quantise {
    const o = options orelse {
        status.* = failure.nullArgument("options");
        return null;
    };
    if (out.wrongSize(c.abt_quantize_options, o.struct_size)) |wrong| {
        status.* = wrong;
        return null;
    }
    const source = out.string(o.source, "source", status) orelse return null;
    const out_path = out.string(o.out_path, "out_path", status) orelse return null;
    const name = out.string(o.mix, "mix", status) orelse return null;
    const mix = gguf_mix.Mix.fromName(name) orelse {
        status.* = failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "mix is \"{s}\"; it must be " ++ gguf_mix.Mix.names, .{name[0..@min(name.len, 40)]});
        return null;
    };
    return .{ .in = source, .out = out_path, .imatrix = out.optionalString(o.imatrix), .options = .{
        .mix = mix,
        .pure = o.pure != 0,
        .output_type = typeOf(o.output_type, "output_type", status) catch return null,
        .embedding_type = typeOf(o.embedding_type, "embedding_type", status) catch return null,
        .leave_output = o.leave_output != 0,
        .allow_requantize = o.allow_requantize != 0,
    } };
}

fn typeOf(text: ?[*:0]const u8, comptime field: []const u8, status: *Status) error{Refused}!?DType {
    const name = out.optionalString(text) orelse return null;
    if (DType.fromLabel(name)) |dtype| if (abi.quant.canEncode(dtype)) return dtype;
    status.* = failure.say(c.ABT_STATUS_INVALID_ARGUMENT, field ++ " is \"{s}\"; it must be f32, f16, bf16, q8_0, q6_k, q5_k, q4_k, q5_1, q5_0, q4_1, q4_0 or mxfp4", .{name[0..@min(name.len, 40)]});
    return error.Refused;
}

pub fn abt_gguf_split(source: ?[*:0]const u8, prefix: ?[*:0]const u8, max_bytes: u64, max_tensors: u64, parts: ?*u32) callconv(.c) Status {
    if (parts) |p| p.* = 0;
    var status: Status = c.ABT_STATUS_OK;
    const in = out.string(source, "source", &status) orelse return status;
    const name = out.string(prefix, "prefix", &status) orelse return status;
    if (max_bytes == 0 and max_tensors == 0) return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "max_bytes and max_tensors are 0; give one of them", .{});
    var limits: gguf_files.Limits = .{};
    if (max_bytes != 0) limits.bytes = std.math.lossyCast(usize, max_bytes);
    if (max_tensors != 0) limits.tensors = std.math.lossyCast(usize, max_tensors);
    var diag: failure.Diagnostic = .{};
    const count = gguf_files.split(out.gpa, out.io(), in, name, limits, &diag) catch |err| return failure.from(err, c.ABT_STATUS_FORMAT, &diag);
    if (parts) |p| p.* = count;
    return c.ABT_STATUS_OK;
}

pub fn abt_gguf_join(part: ?[*:0]const u8, out_path: ?[*:0]const u8, bytes: ?*u64, tensors: ?*u64) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const in = out.string(part, "part", &status) orelse return status;
    const to = out.string(out_path, "out_path", &status) orelse return status;
    var diag: failure.Diagnostic = .{};
    const joined = gguf_files.join(out.gpa, out.io(), in, to, &diag) catch |err| return failure.from(err, c.ABT_STATUS_FORMAT, &diag);
    if (bytes) |p| p.* = joined.report.bytes;
    if (tensors) |p| p.* = joined.report.tensors;
    return c.ABT_STATUS_OK;
}

pub fn abt_gguf_unpack(
    source: ?[*:0]const u8,
    folder: ?[*:0]const u8,
    dtype: ?[*:0]const u8,
    tokenizer_dir: ?[*:0]const u8,
    model: ?[*:0]const u8,
    bytes: ?*u64,
    tensors: ?*u64,
) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const in = out.string(source, "source", &status) orelse return status;
    const to = out.string(folder, "folder", &status) orelse return status;
    var options: abi.checkpoint.unpack_file.Options = .{ .tokenizer_dir = out.optionalString(tokenizer_dir) };
    if (out.optionalString(dtype)) |name| options.dtype = switch (DType.fromLabel(name) orelse .bool) {
        .f32, .f16, .bf16 => |known| known,
        else => return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "dtype is \"{s}\"; it must be bf16, f16 or f32", .{name[0..@min(name.len, 40)]}),
    };
    var diag: failure.Diagnostic = .{};
    const made = abi.checkpoint.unpack_file.unpackAny(out.gpa, out.io(), in, to, out.optionalString(model), options, &diag) catch |err|
        return failure.from(err, c.ABT_STATUS_FORMAT, &diag);
    if (bytes) |p| p.* = made.bytes;
    if (tensors) |p| p.* = made.tensors;
    return c.ABT_STATUS_OK;
}
