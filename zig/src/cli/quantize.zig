//! `abi quantize`: a GGUF file into one of a coarser type, with the bytes llama.cpp's quantiser writes.

const std = @import("std");
const abi = @import("abi");
const arguments = @import("arguments.zig");
const app_file = @import("app.zig");
const gguf_files = abi.formats.gguf_files;
const gguf_quantise = abi.formats.gguf_quantise;
const DType = abi.tensor.DType;
const Mix = abi.formats.gguf_mix.Mix;

pub const verb: arguments.Verb = .{
    .name = "quantize",
    .summary = "Make a GGUF file smaller",
    .usage = "IN.gguf OUT.gguf TYPE [options]",
    .flags = &.{
        .{ .name = "imatrix", .value = "FILE", .help = "importance matrix, of `abi imatrix` or llama.cpp (.gguf or .dat)" },
        .{ .name = "pure", .help = "the same type for every matrix" },
        .{ .name = "output-tensor-type", .value = "TYPE", .help = "type of output.weight" },
        .{ .name = "token-embedding-type", .value = "TYPE", .help = "type of token_embd.weight" },
        .{ .name = "leave-output-tensor", .help = "keep output.weight as it is" },
        .{ .name = "allow-requantize", .help = "take tensors that were rounded to blocks before, although they lose twice" },
        .{ .name = "dry-run", .help = "say how large the file would be, and write nothing" },
        .{ .name = "threads", .value = "N", .help = "threads to compute with", .default = "all", .heading = "Machine" },
        .{ .name = "json", .help = "one JSON object: path, bytes, source_bytes, parameters, tensors, fallbacks, seconds", .heading = "Output" },
    },
    .positionals_max = 3,
    .notes = "TYPE is one of " ++ Mix.names ++ ". Each but the floats is a mix, as llama.cpp's quantiser " ++
        "chooses types under this name: the head and some layers are kept finer, and rows that are no whole blocks get a type they fit. " ++
        "IN may be the first part of a model in several files. The file gets its name when it is whole and was read back.",
    .examples = &.{ "abi quantize model-f16.gguf model-q4_k_m.gguf q4_k_m", "abi quantize model-f16.gguf small.gguf q4_k_s --imatrix imatrix.gguf" },
};

pub fn run(app: *app_file.App, given: []const []const u8) app_file.RunError!app_file.Exit {
    var parsed: arguments.Parsed = undefined;
    if (try app.parse(&parsed, &verb, given)) |end| return end;
    const request = read(&parsed) catch |err| return app.parseFailed(&parsed, err);
    var diag: abi.base.Diagnostic = .{};
    quantize(app, request, &diag) catch |err| switch (err) {
        error.OutOfMemory => return error.OutOfMemory,
        error.WriteFailed => return error.WriteFailed,
        else => return app.fail(verb.name, if (diag.text().len > 0) diag.text() else @errorName(err)),
    };
    return .ok;
}

const Request = struct {
    in: []const u8,
    out: []const u8,
    options: gguf_quantise.Options,
    imatrix: ?[]const u8,
    threads: usize,
    dry_run: bool,
    json: bool,
};

fn read(parsed: *arguments.Parsed) arguments.ParseError!Request {
    if (parsed.positionals.len != 3) return parsed.usage("name both files and the type: abi quantize IN.gguf OUT.gguf q4_k_m", .{});
    const name = parsed.positionals[2];
    const mix = Mix.fromName(name) orelse return parsed.usage("the type is \"{s}\"; it must be " ++ Mix.names, .{name});
    return .{
        .in = parsed.positionals[0],
        .out = parsed.positionals[1],
        .options = .{
            .mix = mix,
            .pure = parsed.has("pure"),
            .output_type = try typeOf(parsed, "output-tensor-type"),
            .embedding_type = try typeOf(parsed, "token-embedding-type"),
            .leave_output = parsed.has("leave-output-tensor"),
            .allow_requantize = parsed.has("allow-requantize"),
        },
        .imatrix = parsed.text("imatrix"),
        .threads = try parsed.whole(usize, "threads", 1, app_file.threads_max) orelse 0,
        .dry_run = parsed.has("dry-run"),
        .json = parsed.has("json"),
    };
}

fn typeOf(parsed: *arguments.Parsed, comptime flag: []const u8) arguments.ParseError!?DType {
    const name = parsed.text(flag) orelse return null;
    const dtype = DType.fromLabel(name);
    if (dtype) |d| if (abi.quant.canEncode(d)) return d;
    return parsed.usage("--" ++ flag ++ " is \"{s}\"; it must be f32, f16, bf16, q8_0, q6_k, q5_k, q4_k, q5_1, q5_0, q4_1, q4_0 or mxfp4", .{name});
}

fn quantize(app: *app_file.App, request: Request, diag: *abi.base.Diagnostic) !void {
    const start: std.Io.Timestamp = .now(app.io, .awake);
    const pool = abi.base.Pool.init(app.gpa, request.threads) catch {
        diag.set("threads cannot be started. Pass a smaller --threads", .{});
        return error.Unexpected;
    };
    defer pool.deinit();

    var wanted: gguf_files.Quantise = .{ .in = request.in, .out = request.out, .options = request.options, .imatrix = request.imatrix };
    wanted.options.pool = pool;
    if (request.dry_run) {
        const bytes = try gguf_files.quantisedSize(app.gpa, app.io, wanted, diag);
        if (request.json) try app.out.print("{{\"path\":null,\"bytes\":{d}}}\n", .{bytes}) else try app.out.print("{d}\n", .{bytes});
        return;
    }
    const report = try gguf_files.quantise(app.gpa, app.io, wanted, diag);
    const seconds = @as(f64, @floatFromInt(start.untilNow(app.io, .awake).toNanoseconds())) / 1e9;
    if (request.json) {
        try std.json.Stringify.value(.{
            .path = request.out,
            .bytes = report.bytes,
            .source_bytes = report.source_bytes,
            .parameters = report.elements,
            .tensors = report.tensors,
            .fallbacks = report.fallbacks,
            .seconds = seconds,
        }, .{}, app.out);
        try app.out.writeByte('\n');
        return;
    }
    try app.out.print("{s}\n", .{request.out});
    const bits = @as(f64, @floatFromInt(report.bytes)) * 8 / @as(f64, @floatFromInt(@max(1, report.elements)));
    app.tell("{B:.1} of {B:.1}, {d:.2} bits a number, {d} tensors, {d:.1} s\n", .{ report.bytes, report.source_bytes, bits, report.tensors, seconds });
    if (report.fallbacks > 0)
        app.tell("{d} of them have rows that are no whole blocks of the type and got one that fits\n", .{report.fallbacks});
}
