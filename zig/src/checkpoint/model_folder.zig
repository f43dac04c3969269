//! A model alone, as a Hugging Face folder: `config.json`, `model.safetensors`, and the tokenizer's files.
//!
//! The folder appears whole under its name or not at all, and never replaces one that is there: what lies in it may be
//! someone's work. Runs use `save.zig` instead. Does not know: optimizers, steps.

const std = @import("std");
const base = @import("base");
const contents = @import("contents.zig");
const folder = @import("folder.zig");
const model_file = @import("model_file.zig");
const Allocator = std.mem.Allocator;
const Diagnostic = base.Diagnostic;
const Storage = base.storage.Storage;

pub const Error = folder.Error || error{
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
    if (contents.findNonFinite(T, model.layout.parameters, model.weights)) |bad| {
        diag.set("\"{s}\" holds {d} at element {d}; {s} was not written", .{ bad.name, bad.value, bad.at, path });
        return error.NonFiniteWeights;
    }
    writeAll(T, gpa, storage, path, model, tokenizer_dir, diag) catch |err| {
        if (diag.text().len == 0) base.storage.explain(diag, err, "write", path);
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
    diag: *Diagnostic,
) Error!void {
    if (try storage.kind(path) != null) return error.AlreadyExists;
    try storage.ensureFolder(base.storage.parentOf(path));
    var target = try base.storage.AtomicFolder.create(gpa, storage, path);
    defer target.deinit();

    _ = try contents.addConfig(T, gpa, &target, model.config);
    const digest = try contents.addTensors(T, gpa, &target, folder.model_name, model.layout.parameters, &.{
        .{ .prefix = "", .values = model.weights },
    });
    if (tokenizer_dir) |from| for (folder.tokenizer_names) |name| {
        _ = try contents.addCopy(gpa, storage, &target, from, name, diag);
    };
    try target.seal();
    try folder.checkFile(gpa, storage, target.temporary_path, folder.sumOf(folder.model_name, digest), diag);
    try target.commit();
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
