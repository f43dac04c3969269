//! What reads the cases: every reader of files that come from strangers, and what a program does next with what it read.
//!
//! A case is refused with words or taken; all memory is given back, and none is taken on a file's word. Anything else ends the process.
//! Does not know: where cases come from.

const std = @import("std");
const abi = @import("abi");
const Meter = @import("meter.zig").Meter;
const Allocator = std.mem.Allocator;
const Diagnostic = abi.base.Diagnostic;
const formats = abi.formats;

pub const Target = enum {
    /// The strict reader, the linter with its mending, the import as a model, the tokenizer in the keys.
    gguf,
    /// A model opened and asked for three tokens.
    run,
    imatrix,
    safetensors,
    shard_index,
    model_config,
    adapter_config,
    train_config,
    manifest,
    /// tokenizer.json, and texts through what it gives.
    tokenizer,
    jsonl,
    chat,
    template,
    ablc,
    /// For the test of this program: ends it at the first case that is not its seed.
    trip,
};

pub const names = blk: {
    var text: []const u8 = "";
    for (@typeInfo(Target).@"enum".field_names, 0..) |name, i| text = text ++ (if (i > 0) ", " else "") ++ name;
    break :blk text;
};

/// The answer to every case that was taken.
pub const accepted: u64 = 0;

/// Reads one case. The number stands for what was said: the same for refusals that differ in numbers only.
pub fn read(target: Target, io: std.Io, scratch: []const u8, bytes: []const u8) u64 {
    var meter: Meter = .{ .parent = std.heap.c_allocator, .most = (96 << 20) + 64 * bytes.len };
    const gpa = meter.allocator();
    var diag: Diagnostic = .{};
    const result: anyerror!void = switch (target) {
        .gguf => gguf(gpa, bytes, &diag),
        .run => run(gpa, io, scratch, bytes, &diag),
        .imatrix => imatrix(gpa, bytes, &diag),
        .safetensors => safetensors(gpa, bytes, &diag),
        .shard_index => shardIndex(gpa, bytes, &diag),
        .model_config => modelConfig(gpa, bytes, &diag),
        .adapter_config => adapterConfig(gpa, bytes, &diag),
        .train_config => trainConfig(gpa, bytes, &diag),
        .manifest => manifest(gpa, bytes, &diag),
        .tokenizer => tokenizer(gpa, bytes, &diag),
        .jsonl => jsonl(gpa, bytes),
        .chat => chat(gpa, bytes, &diag),
        .template => template(gpa, bytes),
        .ablc => ablc(bytes, &diag),
        .trip => if (!std.mem.eql(u8, bytes, "sound as a bell, and long enough")) std.debug.panic("tripped", .{}),
    };
    if (meter.used != 0) std.debug.panic("{d} bytes were not given back", .{meter.used});
    result catch |err| {
        // A refusal without a word is a fault too, except where words are the caller's.
        const wordless = diag.text().len == 0 and target != .jsonl and target != .template and err != error.OutOfMemory;
        if (wordless) std.debug.panic("{t} was refused with {t} and no word", .{ target, err });
        if (!std.unicode.utf8ValidateSlice(diag.text()) and diag.text().len < Diagnostic.capacity) std.debug.panic("the message is not UTF-8", .{});
        return said(@errorName(err), diag.text());
    };
    return accepted;
}

/// A number for the words, whatever numbers and names stand in them.
fn said(name: []const u8, text: []const u8) u64 {
    var hash: std.hash.Wyhash = .init(0);
    hash.update(name);
    var quoted = false;
    for (text) |c| {
        if (c == '"') quoted = !quoted;
        if (!quoted and !std.ascii.isDigit(c)) hash.update(&.{c});
    }
    return hash.final() | 1;
}

const sample = "Hello <|im_start|>user\n wörld's  12345 ▁x\u{301}\n\n\tend";

fn gguf(gpa: Allocator, bytes: []const u8, diag: *Diagnostic) !void {
    {
        var session = try formats.lint.Session.ofBytes(gpa, bytes, .{ .numbers = bytes.len < 1 << 16, .tokenizer = takes }, diag);
        defer session.deinit();
        if (session.report.mendable() > 0 and bytes.len < 1 << 16 and session.report.findings.items.len % 2 == 1) try mend(gpa, &session, diag);
    }
    var file = try formats.gguf.File.parse(gpa, bytes, diag);
    defer file.deinit();
    for (file.tensors) |*info| {
        if (info.data.len != try info.dtype.tensorBytes(&.{ info.ne[3], info.ne[2], info.ne[1], info.ne[0] })) return error.WrongView;
    }
    if (abi.agent.vocabulary.fromFile(gpa, &file, diag)) |words| {
        var t = words;
        defer t.deinit();
        try passThrough(gpa, &t);
    } else |err| if (err == error.OutOfMemory) return err;
    var import = try formats.gguf_import.Import.open(gpa, bytes, diag);
    defer import.deinit();
    for (import.layout.parameters) |*parameter| {
        if (parameter.len > 1 << 20) continue;
        const out = try gpa.alloc(f32, parameter.len);
        defer gpa.free(out);
        import.read(parameter, out) catch {}; // Numbers that are none: the caller's words.
    }
}

fn takes(gpa: Allocator, file: *const formats.gguf.File, diag: *Diagnostic) error{OutOfMemory}!bool {
    var words = abi.agent.vocabulary.fromFile(gpa, file, diag) catch |err| return if (err == error.OutOfMemory) error.OutOfMemory else false;
    words.deinit();
    return true;
}

/// What is written must be readable, and must not have what was to be mended.
fn mend(gpa: Allocator, session: *formats.lint.Session, diag: *Diagnostic) !void {
    var disk: abi.base.storage.MemoryDisk = try .init(gpa);
    defer disk.deinit();
    _ = session.write(gpa, disk.storage(), null, "out.gguf", diag) catch |err| switch (err) {
        error.OutOfMemory => return err,
        error.VerificationFailed => std.debug.panic("written, and not readable: {s}", .{diag.text()}),
        else => return,
    };
    const out = try disk.storage().readAlloc(gpa, "out.gguf");
    defer gpa.free(out);
    var again = formats.lint.Session.ofBytes(gpa, out, .{ .numbers = false }, diag) catch |err| {
        if (err == error.OutOfMemory) return err;
        std.debug.panic("mended, and refused: {s}", .{diag.text()});
    };
    defer again.deinit();
    for (again.report.findings.items) |finding| if (finding.mended and session.report.counts.get(finding.code) == session.report.listedOf(finding.code))
        std.debug.panic("mended, and still there: {s}: {s}", .{ finding.code.text(), finding.message });
}

fn passThrough(gpa: Allocator, words: *const abi.tokenizer.Tokenizer) !void {
    const ids = words.encode(gpa, sample, .{}) catch |err| return if (err == error.OutOfMemory) err else {};
    defer gpa.free(ids);
    const text = try words.decode(gpa, ids, .{});
    gpa.free(text);
}

fn run(gpa: Allocator, io: std.Io, scratch: []const u8, bytes: []const u8, diag: *Diagnostic) !void {
    var name: [std.fs.max_path_bytes]u8 = undefined;
    const path = try std.fmt.bufPrint(&name, "{s}/run.gguf", .{scratch});
    try std.Io.Dir.cwd().writeFile(io, .{ .sub_path = path, .data = bytes });
    const model = try abi.infer.Model.open(gpa, io, path, diag);
    defer model.close();
    if (model.config.max_position_embeddings == 0 or model.config.vocab_size > 1 << 16) return;
    const pool = try abi.base.Pool.init(std.heap.c_allocator, 1);
    defer pool.deinit();
    var session: abi.infer.Session = try .init(gpa, model, pool, @min(16, model.config.max_position_embeddings));
    defer session.deinit();
    _ = session.prefill(&.{0}) catch return; // Words of the caller.
    _ = session.step(@min(1, model.config.vocab_size - 1)) catch return;
}

fn imatrix(gpa: Allocator, bytes: []const u8, diag: *Diagnostic) !void {
    var importance = try formats.imatrix.Importance.parse(gpa, bytes, diag);
    defer importance.deinit();
    _ = importance.importanceOf("blk.0.attn_q.weight");
}

fn safetensors(gpa: Allocator, bytes: []const u8, diag: *Diagnostic) !void {
    var file = try formats.safetensors.parse(gpa, bytes, diag);
    defer file.deinit();
    for (file.tensors) |t| {
        if (t.len() > 1 << 18) continue;
        const out = try gpa.alloc(f32, t.len());
        defer gpa.free(out);
        _ = t.read(f32, out);
    }
}

fn shardIndex(gpa: Allocator, bytes: []const u8, diag: *Diagnostic) !void {
    var index = try formats.safetensors.ShardIndex.parse(gpa, bytes, diag);
    index.deinit();
}

fn modelConfig(gpa: Allocator, bytes: []const u8, diag: *Diagnostic) !void {
    const config = try formats.hf_config.parse(gpa, bytes, diag);
    if (config.num_hidden_layers > 64) return;
    var layout = abi.arch.Layout.init(gpa, config) catch |err| {
        if (diag.text().len == 0) diag.set("too large", .{});
        return err;
    };
    layout.deinit();
}

fn adapterConfig(gpa: Allocator, bytes: []const u8, diag: *Diagnostic) !void {
    var arena: std.heap.ArenaAllocator = .init(gpa);
    defer arena.deinit();
    _ = try formats.adapter_config.parse(arena.allocator(), bytes, diag);
}

fn trainConfig(gpa: Allocator, bytes: []const u8, diag: *Diagnostic) !void {
    var owned = try abi.train.parseJson(gpa, bytes, diag);
    defer owned.deinit();
    var out: std.Io.Writer.Allocating = .init(gpa);
    defer out.deinit();
    try abi.train.writeJson(&owned.value, &out.writer);
}

fn manifest(gpa: Allocator, bytes: []const u8, diag: *Diagnostic) !void {
    var arena: std.heap.ArenaAllocator = .init(gpa);
    defer arena.deinit();
    _ = try abi.data.manifest.parse(arena.allocator(), bytes, diag);
}

fn tokenizer(gpa: Allocator, bytes: []const u8, diag: *Diagnostic) !void {
    var words = try abi.tokenizer.hf_folder.fromFiles(gpa, .{ .tokenizer = bytes }, diag);
    defer words.deinit();
    try passThrough(gpa, &words);
}

fn jsonl(gpa: Allocator, bytes: []const u8) !void {
    const counts = try abi.data.jsonl.check(gpa, bytes, .{});
    var report: abi.data.InstructionReport = .{};
    const rows = abi.data.parseInstructionDatasetOptions(gpa, bytes, .{}, &report) catch |err| {
        if (err == error.OutOfMemory) return err;
        var line: std.Io.Writer.Discarding = .init(&.{});
        try line.writer.print("{f}", .{report});
        return err;
    };
    rows.deinit();
    if (counts.bad_line != 0) return error.Defective;
}

fn chat(gpa: Allocator, bytes: []const u8, diag: *Diagnostic) !void {
    var arena: std.heap.ArenaAllocator = .init(gpa);
    defer arena.deinit();
    const found = try abi.tokenizer.chat_format.readChat(arena.allocator(), bytes, diag);
    for (std.enums.values(abi.tokenizer.ChatFormat)) |format| {
        _ = abi.tokenizer.chat_format.segments(arena.allocator(), format, found.messages, .{ .tools = found.tools }, diag) catch |err| if (err == error.OutOfMemory) return err;
    }
}

fn template(gpa: Allocator, bytes: []const u8) !void {
    _ = try abi.tokenizer.chat_format.detect(gpa, bytes);
}

fn ablc(bytes: []const u8, diag: *Diagnostic) !void {
    _ = try abi.checkpoint.ablc.parse(bytes, diag);
}
