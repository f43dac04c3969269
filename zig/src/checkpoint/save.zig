//! Saving a checkpoint: a folder that appears whole under its name or not at all.
//!
//! Order: refuse values that are no numbers; remove what earlier, unfinished saves left; write all files under a temporary
//! name, each synced; read everything back and compare; rename; sync the run's folder; only then retire old checkpoints.
//! Weights go from the buffer to the file; no copy of the model is made. The caller holds the run's lock.

const std = @import("std");
const base = @import("base");
const tensor = @import("tensor");
const arch = @import("arch");
const formats = @import("formats");
const folder = @import("folder.zig");
const store = @import("store.zig");
const model_file = @import("model_file.zig");
const Allocator = std.mem.Allocator;
const Diagnostic = base.Diagnostic;
const Storage = base.storage.Storage;
const safetensors = formats.safetensors;

/// The optimizer's state, laid out like the weights. SGD with momentum has no second moment.
pub fn Moments(comptime T: type) type {
    return struct {
        first_moment: []const T,
        second_moment: ?[]const T = null,
    };
}

pub fn SaveOptions(comptime T: type) type {
    return struct {
        run_dir: []const u8,
        /// Optimizer steps done: the N of `checkpoint-N`.
        step: u64,
        config: arch.ModelConfig,
        layout: *const arch.Layout,
        weights: []const T,
        optimizer: ?Moments(T) = null,
        /// The text of `trainer_state.json`.
        state_json: []const u8,
        /// Folder whose tokenizer files are copied.
        tokenizer_dir: ?[]const u8 = null,
        /// How many checkpoints stay, this one included; 0 keeps all.
        keep: u32 = 0,
        /// A step whose checkpoint stays besides: the best one.
        protect: ?u64 = null,
    };
}

pub const Error = folder.Error || error{
    SizeOverflow,
    /// A weight or a moment is NaN or infinite; nothing was written.
    NonFiniteWeights,
};

/// Returns the path of the new folder; the caller frees it. Text in `diag` after success is a warning.
pub fn save(comptime T: type, gpa: Allocator, io: std.Io, options: SaveOptions(T), diag: *Diagnostic) Error![]u8 {
    var disk: base.storage.Disk = .init(io);
    return saveOn(T, gpa, disk.storage(), options, diag);
}

pub fn saveOn(comptime T: type, gpa: Allocator, storage: Storage, options: SaveOptions(T), diag: *Diagnostic) Error![]u8 {
    diag.clear();
    try refuseNonFinite(T, options, diag);
    const path = try folder.pathOf(gpa, options.run_dir, options.step);
    errdefer gpa.free(path);

    writeFolder(T, gpa, storage, path, options, diag) catch |err| {
        if (diag.text().len == 0) base.storage.explain(diag, err, "save", path);
        return err;
    };
    store.retire(gpa, storage, options.run_dir, options.step, options.keep, options.protect) catch |err| {
        base.storage.explain(diag, err, "remove old checkpoints in", options.run_dir);
    };
    return path;
}

fn writeFolder(comptime T: type, gpa: Allocator, storage: Storage, path: []const u8, options: SaveOptions(T), diag: *Diagnostic) Error!void {
    try storage.ensureFolder(options.run_dir);
    try base.storage.removeLeftovers(gpa, storage, options.run_dir, folder.isCheckpointName);
    var target = try base.storage.AtomicFolder.create(gpa, storage, path);
    defer target.deinit();

    var sums: std.ArrayList(folder.FileSum) = .empty;
    defer sums.deinit(gpa);

    const dtype: tensor.DType = if (T == f32) .f32 else .f64;
    {
        var text: std.Io.Writer.Allocating = .init(gpa);
        defer text.deinit();

        formats.hf_config.write(&text.writer, options.config, .{ .dtype = if (T == f32) "float32" else "float64" }) catch
            return error.OutOfMemory;
        try sums.append(gpa, folder.sumOf(folder.config_name, try target.addFile(folder.config_name, text.written())));
    }
    try sums.append(gpa, folder.sumOf(folder.model_name, try writeTensors(T, gpa, &target, folder.model_name, options.layout, dtype, &.{
        .{ .prefix = "", .values = options.weights },
    })));
    if (options.optimizer) |moments| {
        const both = [_]Group(T){
            .{ .prefix = "exp_avg.", .values = moments.first_moment },
            .{ .prefix = "exp_avg_sq.", .values = moments.second_moment orelse &.{} },
        };
        const groups = both[0..if (moments.second_moment == null) 1 else 2];
        try sums.append(gpa, folder.sumOf(folder.optimizer_name, try writeTensors(T, gpa, &target, folder.optimizer_name, options.layout, dtype, groups)));
    }
    try sums.append(gpa, folder.sumOf(folder.state_name, try target.addFile(folder.state_name, options.state_json)));
    if (options.tokenizer_dir) |from| for (folder.tokenizer_names) |name| {
        if (try copyFile(gpa, storage, &target, from, name, diag)) |digest| try sums.append(gpa, folder.sumOf(name, digest));
    };
    {
        var text: std.Io.Writer.Allocating = .init(gpa);
        defer text.deinit();

        folder.writeSums(&text.writer, sums.items) catch return error.OutOfMemory;
        _ = try target.addFile(folder.checksums_name, text.written());
    }
    try target.seal();
    try folder.verify(gpa, storage, target.temporary_path, diag);
    try target.commit();
}

fn Group(comptime T: type) type {
    return struct { prefix: []const u8, values: []const T };
}

/// All parameters of each group in layout order, straight from the buffers.
fn writeTensors(
    comptime T: type,
    gpa: Allocator,
    target: *base.storage.AtomicFolder,
    name: []const u8,
    layout: *const arch.Layout,
    dtype: tensor.DType,
    groups: []const Group(T),
) Error!base.storage.Digest {
    var arena: std.heap.ArenaAllocator = .init(gpa);
    defer arena.deinit();

    const a = arena.allocator();
    const entries = try a.alloc(safetensors.Entry, layout.parameters.len * groups.len);
    for (groups, 0..) |group, g| for (layout.parameters, 0..) |*p, i| {
        entries[g * layout.parameters.len + i] = .{
            .name = try std.mem.concat(a, u8, &.{ group.prefix, p.name }),
            .dtype = dtype,
            .shape = p.dims(),
        };
    };
    const buffer = try a.alloc(u8, 64 << 10);
    var file = try target.createFile(name, buffer);
    defer file.close();

    // The metadata that transformers asks for.
    var writer = safetensors.Writer.begin(gpa, &file.interface, entries, &.{.{ .key = "format", .value = "pt" }}) catch |err|
        return if (err == error.WriteFailed) file.cause() else @errorCast(err);
    for (groups) |group| for (layout.parameters) |p| {
        writer.writeFloats(T, p.sliceConst(T, group.values)) catch |err|
            return if (err == error.WriteFailed) file.cause() else @errorCast(err);
    };
    writer.finish();
    return file.finish();
}

fn copyFile(gpa: Allocator, storage: Storage, target: *base.storage.AtomicFolder, from: []const u8, name: []const u8, diag: *Diagnostic) Error!?base.storage.Digest {
    const path = try base.storage.join(gpa, from, name);
    defer gpa.free(path);

    var mapping = storage.map(path) catch |err| {
        if (err == error.FileNotFound) return null;
        base.storage.explain(diag, err, "read", path);
        return err;
    };
    defer mapping.unmap();

    return try target.addFile(name, mapping.bytes);
}

fn refuseNonFinite(comptime T: type, options: SaveOptions(T), diag: *Diagnostic) Error!void {
    std.debug.assert(options.weights.len == options.layout.total);
    var groups: [3]Group(T) = undefined;
    var count: usize = 1;
    groups[0] = .{ .prefix = "", .values = options.weights };
    if (options.optimizer) |moments| {
        std.debug.assert(moments.first_moment.len == options.layout.total);
        groups[1] = .{ .prefix = "exp_avg.", .values = moments.first_moment };
        count = 2;
        if (moments.second_moment) |second| {
            std.debug.assert(second.len == options.layout.total);
            groups[2] = .{ .prefix = "exp_avg_sq.", .values = second };
            count = 3;
        }
    }
    for (groups[0..count]) |group| for (options.layout.parameters) |p| {
        const values = p.sliceConst(T, group.values);
        const at = model_file.firstNonFinite(T, values) orelse continue;
        diag.set("step {d}: \"{s}{s}\" holds {d} at element {d}; not saved. The last checkpoint is untouched: go on from it with a lower learning rate", .{
            options.step, group.prefix, p.name, values[at], at,
        });
        return error.NonFiniteWeights;
    };
}
