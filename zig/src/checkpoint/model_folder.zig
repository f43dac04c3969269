//! A model alone, as a Hugging Face folder: `config.json`, `model.safetensors`, and the tokenizer's files.
//!
//! The folder appears whole under its name or not at all, and never replaces one that is there: what lies in it may be
//! someone's work. Runs use `save.zig` instead. Does not know: optimizers, steps.

const std = @import("std");
const base = @import("base");
const tensor = @import("tensor");
const arch = @import("arch");
const formats = @import("formats");
const folder = @import("folder.zig");
const model_file = @import("model_file.zig");
const Allocator = std.mem.Allocator;
const Diagnostic = base.Diagnostic;
const Storage = base.storage.Storage;
const AtomicFolder = base.storage.AtomicFolder;
const safetensors = formats.safetensors;

pub const Error = base.storage.Error || error{
    SizeOverflow,
    /// A weight is NaN or infinite; nothing was written.
    NonFiniteWeights,
};

/// Writes `weights` into the new folder `path`, whose parent is made if missing. `tokenizer_dir`: a folder whose
/// tokenizer files are copied. `diag` names path, cause and next move.
pub fn saveModel(
    comptime T: type,
    gpa: Allocator,
    io: std.Io,
    path: []const u8,
    model: *const model_file.LoadedModel(T),
    tokenizer_dir: ?[]const u8,
    diag: *Diagnostic,
) Error!void {
    var disk: base.storage.Disk = .init(io);
    return saveModelOn(T, gpa, disk.storage(), path, model, tokenizer_dir, diag);
}

pub fn saveModelOn(
    comptime T: type,
    gpa: Allocator,
    storage: Storage,
    path: []const u8,
    model: *const model_file.LoadedModel(T),
    tokenizer_dir: ?[]const u8,
    diag: *Diagnostic,
) Error!void {
    diag.clear();
    for (model.layout.parameters) |p| {
        const values = p.sliceConst(T, model.weights);
        const at = model_file.firstNonFinite(T, values) orelse continue;
        diag.set("\"{s}\" holds {d} at element {d}; {s} was not written", .{ p.name, values[at], at, path });
        return error.NonFiniteWeights;
    }
    writeAll(T, gpa, storage, path, model, tokenizer_dir) catch |err| {
        base.storage.explain(diag, err, "write", path);
        return err;
    };
}

fn writeAll(
    comptime T: type,
    gpa: Allocator,
    storage: Storage,
    path: []const u8,
    model: *const model_file.LoadedModel(T),
    tokenizer_dir: ?[]const u8,
) Error!void {
    if (try storage.kind(path) != null) return error.AlreadyExists;
    try storage.ensureFolder(base.storage.parentOf(path));
    var target = try AtomicFolder.create(gpa, storage, path);
    defer target.deinit();

    var text: std.Io.Writer.Allocating = .init(gpa);
    defer text.deinit();

    formats.hf_config.write(&text.writer, model.config, .{ .dtype = if (T == f32) "float32" else "float64" }) catch
        return error.OutOfMemory;
    _ = try target.addFile(folder.config_name, text.written());
    try writeWeights(T, gpa, &target, model);
    if (tokenizer_dir) |from| for (folder.tokenizer_names) |name| try copy(gpa, storage, &target, from, name);
    try target.seal();
    try target.commit();
}

fn writeWeights(comptime T: type, gpa: Allocator, target: *AtomicFolder, model: *const model_file.LoadedModel(T)) Error!void {
    const parameters = model.layout.parameters;
    const entries = try gpa.alloc(safetensors.Entry, parameters.len);
    defer gpa.free(entries);

    const dtype: tensor.DType = if (T == f32) .f32 else .f64;
    for (entries, parameters) |*entry, *p| entry.* = .{ .name = p.name, .dtype = dtype, .shape = p.dims() };
    const buffer = try gpa.alloc(u8, 64 << 10);
    defer gpa.free(buffer);

    var file = try target.createFile(folder.model_name, buffer);
    defer file.close();

    stream(T, gpa, &file, entries, model) catch |err| return if (err == error.WriteFailed) file.cause() else @errorCast(err);
    _ = try file.finish();
}

fn stream(comptime T: type, gpa: Allocator, file: *base.storage.FileWriter, entries: []const safetensors.Entry, model: *const model_file.LoadedModel(T)) safetensors.WriteError!void {
    // The metadata that transformers asks for.
    var writer = try safetensors.Writer.begin(gpa, &file.interface, entries, &.{.{ .key = "format", .value = "pt" }});
    for (model.layout.parameters) |p| try writer.writeFloats(T, p.sliceConst(T, model.weights));
    writer.finish();
}

fn copy(gpa: Allocator, storage: Storage, target: *AtomicFolder, from: []const u8, name: []const u8) Error!void {
    const path = try base.storage.join(gpa, from, name);
    defer gpa.free(path);

    var mapping = storage.map(path) catch |err| return if (err == error.FileNotFound) {} else err;
    defer mapping.unmap();

    _ = try target.addFile(name, mapping.bytes);
}

const testing = std.testing;

test "a saved model loads with the same bits, and an existing folder is left alone" {
    var tmp = testing.tmpDir(.{});
    defer tmp.cleanup();

    const root = try std.fmt.allocPrint(testing.allocator, ".zig-cache/tmp/{s}", .{tmp.sub_path});
    defer testing.allocator.free(root);

    const path = try base.storage.join(testing.allocator, root, "deep/model");
    defer testing.allocator.free(path);

    var model = try @import("initialize.zig").initRandom(f64, testing.allocator, .{
        .vocab_size = 32,
        .hidden_size = 16,
        .intermediate_size = 24,
        .num_hidden_layers = 1,
        .num_attention_heads = 2,
        .num_key_value_heads = 1,
        .head_dim = 8,
    }, 3);
    defer model.deinit(testing.allocator);

    var diag: Diagnostic = .{};
    try saveModel(f64, testing.allocator, testing.io, path, &model, null, &diag);
    var back = try model_file.loadModel(f64, testing.allocator, testing.io, path, &diag);
    defer back.deinit(testing.allocator);

    try testing.expectEqualSlices(f64, model.weights, back.weights);
    try testing.expectEqual(model.config.hidden_size, back.config.hidden_size);
    try testing.expectError(error.AlreadyExists, saveModel(f64, testing.allocator, testing.io, path, &model, null, &diag));
    model.weights[5] = std.math.nan(f64);
    try testing.expectError(error.NonFiniteWeights, saveModel(f64, testing.allocator, testing.io, root, &model, null, &diag));
    try testing.expect(std.mem.find(u8, diag.text(), "model.embed_tokens.weight") != null);
}
