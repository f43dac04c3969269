//! `abi imatrix`: reads a text with a model and writes which columns of its weights matter most.

const std = @import("std");
const abi = @import("abi");
const arguments = @import("arguments.zig");
const app_file = @import("app.zig");
const infer = abi.infer;

pub const verb: arguments.Verb = .{
    .name = "imatrix",
    .summary = "Collect an importance matrix for quantize",
    .usage = "MODEL.gguf TEXT --output FILE [options]",
    .flags = &.{
        .{ .name = "output", .short = 'o', .value = "FILE", .help = "file to write: .gguf, or .dat for llama.cpp's older format" },
        .{ .name = "chunk", .value = "N", .help = "tokens read together; what is left behind the last chunk is not used", .default = "512" },
        .{ .name = "chunks", .value = "N", .help = "stop after N chunks", .default = "all" },
        .{ .name = "threads", .value = "N", .help = "threads to compute with", .default = "all", .heading = "Machine" },
    },
    .positionals_max = 2,
    .notes = "TEXT is a file like what the model will read: a few hundred chunks are enough. MODEL is best the f16, bf16 or f32 file.",
    .examples = &.{"abi imatrix model-f16.gguf text.txt -o imatrix.gguf"},
};

pub fn run(app: *app_file.App, given: []const []const u8) app_file.RunError!app_file.Exit {
    var parsed: arguments.Parsed = undefined;
    if (try app.parse(&parsed, &verb, given)) |end| return end;
    const request = read(&parsed) catch |err| return app.parseFailed(&parsed, err);
    var diag: abi.base.Diagnostic = .{};
    collect(app, request, &diag) catch |err| switch (err) {
        error.OutOfMemory => return error.OutOfMemory,
        error.WriteFailed => return error.WriteFailed,
        else => return app.fail(verb.name, if (diag.text().len > 0) diag.text() else @errorName(err)),
    };
    return .ok;
}

const Request = struct { model: []const u8, text: []const u8, out: []const u8, chunk: u32, chunks: usize, threads: usize };

fn read(parsed: *arguments.Parsed) arguments.ParseError!Request {
    if (parsed.positionals.len != 2) return parsed.usage("name the model and the text: abi imatrix MODEL.gguf TEXT -o imatrix.gguf", .{});
    return .{
        .model = parsed.positionals[0],
        .text = parsed.positionals[1],
        .out = parsed.text("output") orelse return parsed.usage("--output FILE is missing", .{}),
        .chunk = try parsed.whole(u32, "chunk", 16, 1 << 20) orelse 512,
        .chunks = try parsed.whole(usize, "chunks", 1, 1 << 30) orelse std.math.maxInt(usize),
        .threads = try parsed.whole(usize, "threads", 1, app_file.threads_max) orelse 0,
    };
}

fn collect(app: *app_file.App, request: Request, diag: *abi.base.Diagnostic) !void {
    const gpa = app.gpa;
    for ([_][]const u8{ request.model, request.text }) |input| if (abi.formats.gguf_files.isSame(app.io, input, request.out)) {
        diag.set("{s} is read and would be lost. Name another file to write", .{request.out});
        return error.AlreadyExists;
    };
    var disk: abi.base.storage.Disk = .init(app.io);
    disk.storage().checkFileName(request.out) catch |err| { // Before the long work.
        abi.base.storage.explain(diag, err, "write", request.out);
        return err;
    };
    const model = try infer.Model.open(gpa, app.io, request.model, diag);
    defer model.close();
    if (model.config.hasExperts()) {
        diag.set("{s}: what each expert is multiplied with is not collected here. Quantise without an importance matrix", .{request.model});
        return error.UnsupportedModel;
    }
    var words = abi.agent.vocabulary.fromFile(gpa, &model.file, diag) catch |err| {
        diag.prepend("{s}: ", .{request.model});
        return err;
    };
    defer words.deinit();

    var mapping = disk.storage().map(request.text) catch |err| {
        abi.base.storage.explain(diag, err, "read", request.text);
        return err;
    };
    defer mapping.unmap();
    if (!std.unicode.utf8ValidateSlice(mapping.bytes)) {
        diag.set("{s} is not UTF-8 text", .{request.text});
        return error.InvalidImportance;
    }
    const ids = words.encode(gpa, mapping.bytes, .{ .add_eos = false }) catch |err| {
        if (err == error.TextTooLong) diag.set("{s} is too long a text. A few MB are enough", .{request.text});
        return err;
    };
    defer gpa.free(ids);
    const whole = @min(ids.len / request.chunk, request.chunks);
    if (whole == 0) {
        diag.set("{s} has {d} tokens, less than a chunk of {d}. Give a longer text, or a smaller --chunk", .{ request.text, ids.len, request.chunk });
        return error.InvalidImportance;
    }
    const pool = abi.base.Pool.init(gpa, request.threads) catch {
        diag.set("threads cannot be started. Pass a smaller --threads", .{});
        return error.Unexpected;
    };
    defer pool.deinit();
    var session: infer.Session = try .init(gpa, model, pool, request.chunk);
    defer session.deinit();
    var collector: infer.importance.Collector = try .init(gpa, &session);
    defer collector.deinit();

    for (0..whole) |i| {
        const chunk = ids[i * request.chunk ..][0..request.chunk];
        if (words.addBos()) if (words.parts.bos) |id| {
            chunk[0] = id; // As every text begins for this model.
        };
        collector.collect(&session, chunk) catch |err| {
            if (err == error.InvalidToken) diag.set("the vocabulary of {s} has ids beyond its embedding", .{request.model});
            return err;
        };
        if (app.err_is_terminal) app.tell("\rchunk {d}/{d}", .{ i + 1, whole });
    }
    if (app.err_is_terminal) app.tell("\n", .{});
    var matrix = try collector.finish(gpa, request.chunk, request.text, diag);
    defer matrix.deinit();

    var buffer: [1 << 16]u8 = undefined;
    write(gpa, disk.storage(), request.out, &matrix, &buffer) catch |err| {
        if (err != error.OutOfMemory) abi.base.storage.explain(diag, err, "write", request.out);
        return err;
    };
    try app.out.print("{s}\n", .{request.out});
    app.tell("{d} weights, {d} chunks of {d} tokens\n", .{ matrix.entries.count(), matrix.chunk_count, matrix.chunk_size });
}

fn write(gpa: std.mem.Allocator, storage: abi.base.storage.Storage, path: []const u8, matrix: *const abi.formats.imatrix.Importance, buffer: []u8) !void {
    var file = try abi.base.storage.AtomicFile.create(gpa, storage, path, buffer);
    defer file.deinit();

    const out = &file.writer.interface;
    const written = if (std.mem.endsWith(u8, path, ".dat")) matrix.writeLegacy(out) else matrix.writeGguf(gpa, out);
    written catch |err| return if (err == error.WriteFailed) file.writer.cause() else err;
    try file.commit();
}
