//! Saving a checkpoint: a folder that appears whole under its name or not at all.
//!
//! Order: refuse values that are no numbers; remove what earlier, unfinished saves left; write all files under a temporary
//! name, each synced; read everything back and compare; rename; sync the run's folder; only then retire old checkpoints.
//! Weights go from the buffer to the file; no copy of the model is made. The caller holds the run's lock.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const contents = @import("contents.zig");
const folder = @import("folder.zig");
const store = @import("store.zig");
const Allocator = std.mem.Allocator;
const Diagnostic = base.Diagnostic;
const Storage = base.storage.Storage;

/// The optimizer's state, laid out like the weights. SGD with momentum has no second moment.
pub fn Moments(comptime T: type) type {
    return struct {
        first_moment: []const T,
        second_moment: ?[]const T = null,
    };
}

pub const AdapterPart = struct {
    settings: arch.LoraSettings,
    /// What `adapter_config.json` calls the base.
    base_name: ?[]const u8 = null,
};

pub fn SaveOptions(comptime T: type) type {
    return struct {
        run_dir: []const u8,
        /// Optimizer steps done: the N of `checkpoint-N`.
        step: u64,
        config: arch.ModelConfig,
        /// The model's parameters; of an adapter's run, the adapter's.
        parameters: []const arch.Parameter,
        /// Of `parameters`, flat.
        weights: []const T,
        /// Set in an adapter's run: the folder then holds the adapter in place of the model.
        adapter: ?AdapterPart = null,
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

    try sums.append(gpa, folder.sumOf(folder.config_name, try contents.addConfig(T, gpa, &target, options.config)));
    const name = if (options.adapter == null) folder.model_name else folder.adapter_name;
    const weights = try contents.addTensors(T, gpa, &target, name, options.parameters, &.{
        .{ .prefix = "", .values = options.weights },
    });
    try sums.append(gpa, folder.sumOf(name, weights));
    if (options.adapter) |adapter|
        try sums.append(gpa, folder.sumOf(folder.adapter_config_name, try contents.addAdapterConfig(gpa, &target, adapter.settings, adapter.base_name)));
    if (options.optimizer) |moments| {
        const groups = groupsOf(T, moments);
        const digest = try contents.addTensors(T, gpa, &target, folder.optimizer_name, options.parameters, groups[0..countOf(T, moments)]);
        try sums.append(gpa, folder.sumOf(folder.optimizer_name, digest));
    }
    try sums.append(gpa, folder.sumOf(folder.state_name, try target.addFile(folder.state_name, options.state_json)));
    if (options.tokenizer_dir) |from| for (folder.tokenizer_names) |file| {
        if (try contents.addCopy(gpa, storage, &target, from, file, diag)) |digest|
            try sums.append(gpa, folder.sumOf(file, digest));
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

/// The tensors of `optimizer.safetensors`, in order. Only the first `countOf` hold values.
fn groupsOf(comptime T: type, moments: Moments(T)) [2]contents.Group(T) {
    return .{
        .{ .prefix = "exp_avg.", .values = moments.first_moment },
        .{ .prefix = "exp_avg_sq.", .values = moments.second_moment orelse &.{} },
    };
}

fn countOf(comptime T: type, moments: Moments(T)) usize {
    return if (moments.second_moment == null) 1 else 2;
}

/// Before anything is written: the disk keeps what it has.
fn refuseNonFinite(comptime T: type, options: SaveOptions(T), diag: *Diagnostic) Error!void {
    try refuseGroup(T, options, .{ .prefix = "", .values = options.weights }, diag);
    const moments = options.optimizer orelse return;
    for (groupsOf(T, moments)[0..countOf(T, moments)]) |group| try refuseGroup(T, options, group, diag);
}

fn refuseGroup(comptime T: type, options: SaveOptions(T), group: contents.Group(T), diag: *Diagnostic) Error!void {
    const bad = contents.findNonFinite(T, options.parameters, group.values) orelse return;
    diag.set("step {d}: \"{s}{s}\" holds {d} at element {d}; not saved. The last checkpoint is untouched: go on from it " ++
        "with a lower learning rate", .{ options.step, group.prefix, bad.name, bad.value, bad.at });
    return error.NonFiniteWeights;
}
