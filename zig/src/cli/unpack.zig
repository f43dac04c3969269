//! `abi unpack`: a GGUF file as a Hugging Face folder, a GGUF adapter as a PEFT folder.

const std = @import("std");
const abi = @import("abi");
const arguments = @import("arguments.zig");
const app_file = @import("app.zig");
const Diagnostic = abi.base.Diagnostic;

pub const verb: arguments.Verb = .{
    .name = "unpack",
    .summary = "Make a Hugging Face folder of a GGUF file",
    .usage = "IN.gguf FOLDER [options]",
    .flags = &.{
        .{ .name = "dtype", .value = "TYPE", .help = "of what is stored in blocks: bf16, f16 or f32", .default = "bf16" },
        .{ .name = "shard-size", .value = "SIZE", .help = "most tensor bytes a file, as 5G or 500M", .default = "5G" },
        .{ .name = "tokenizer", .value = "DIR", .help = "a folder whose tokenizer files are copied" },
        .{ .name = "model", .value = "PATH", .help = "the base of an adapter: a folder with config.json, or a .gguf file" },
        .{ .name = "json", .help = "one JSON object: path, bytes, tensors; of a model files and blocks, too", .heading = "Output" },
    },
    .positionals_max = 2,
    .notes = "Experts of gpt-oss stay MXFP4, to the bit. Floats keep their type; f32 numbers that all fit --dtype become it, others stay f32. " ++
        "Other block types are expanded, so the folder is larger than the file. A GGUF adapter becomes a PEFT folder; --model names its base. " ++
        "The folder must not exist; it has its name when it is whole and was read back.",
    .examples = &.{ "abi unpack model.gguf model", "abi unpack gpt-oss-mxfp4.gguf gpt-oss --tokenizer tokenizer", "abi unpack adapter.gguf adapter --model model" },
};

pub fn run(app: *app_file.App, given: []const []const u8) app_file.RunError!app_file.Exit {
    var parsed: arguments.Parsed = undefined;
    if (try app.parse(&parsed, &verb, given)) |end| return end;
    const request = read(&parsed) catch |err| return app.parseFailed(&parsed, err);
    var diag: Diagnostic = .{};
    unpack(app, request, &diag) catch |err| switch (err) {
        error.OutOfMemory => return error.OutOfMemory,
        error.WriteFailed => return error.WriteFailed,
        else => return app.fail(verb.name, if (diag.text().len > 0) diag.text() else @errorName(err)),
    };
    return .ok;
}

const Request = struct { in: []const u8, out: []const u8, options: abi.checkpoint.unpack_file.Options, model: ?[]const u8, json: bool };

fn read(parsed: *arguments.Parsed) arguments.ParseError!Request {
    if (parsed.positionals.len != 2) return parsed.usage("name the file and the folder to make: abi unpack IN.gguf FOLDER", .{});
    var options: abi.checkpoint.unpack_file.Options = .{ .tokenizer_dir = parsed.text("tokenizer") };
    if (parsed.text("dtype")) |name| options.dtype = switch (abi.tensor.DType.fromLabel(name) orelse .bool) {
        .f32, .f16, .bf16 => |dtype| dtype,
        else => return parsed.usage("--dtype is \"{s}\"; it must be bf16, f16 or f32", .{name}),
    };
    if (parsed.text("shard-size")) |text| options.shard_bytes = @import("split.zig").sizeOf(text) orelse
        return parsed.usage("--shard-size is \"{s}\"; it must be a number with M or G behind it, as 5G", .{text});
    return .{ .in = parsed.positionals[0], .out = parsed.positionals[1], .options = options, .model = parsed.text("model"), .json = parsed.has("json") };
}

fn unpack(app: *app_file.App, request: Request, diag: *Diagnostic) !void {
    const made = try abi.checkpoint.unpack_file.unpackAny(app.gpa, app.io, request.in, request.out, request.model, request.options, diag);
    const report = made.model orelse {
        if (request.json) return writeJson(app, .{ .path = request.out, .bytes = made.bytes, .tensors = made.tensors });
        try app.out.print("{s}\n", .{request.out});
        return app.tell("{d} tensors of an adapter, {B:.1}\n", .{ made.tensors, made.bytes });
    };
    if (request.json) return writeJson(app, .{ .path = request.out, .bytes = report.bytes, .tensors = report.tensors, .files = report.files, .blocks = report.blocks });
    try app.out.print("{s}\n", .{request.out});
    app.tell("{B:.1} of tensors in {d} {s}, {d} weights of experts still MXFP4\n", .{ report.bytes, report.files, if (report.files == 1) "file" else "files", report.blocks });
    if (request.options.tokenizer_dir == null)
        app.tell("no tokenizer: name the folder of one with --tokenizer to have its files copied\n", .{});
}

fn writeJson(app: *app_file.App, value: anytype) !void {
    try std.json.Stringify.value(value, .{}, app.out);
    try app.out.writeByte('\n');
}
