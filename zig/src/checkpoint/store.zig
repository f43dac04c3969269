//! The checkpoints of one run: which is the newest whole one, which go, who may write.
//!
//! There is no "latest" pointer to go stale: the newest is the highest step whose folder passes its check. Damaged folders are
//! passed over, named, and left alone. Retention counts only steps up to the one just saved: what lies above it is
//! damaged, or of another attempt, and is the user's to judge.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const formats = @import("formats");
const folder = @import("folder.zig");
const Allocator = std.mem.Allocator;
const Diagnostic = base.Diagnostic;
const Storage = base.storage.Storage;
const safetensors = formats.safetensors;

/// The steps of all folders named `checkpoint-N`, highest first. Caller frees.
fn listSteps(gpa: Allocator, storage: Storage, run_dir: []const u8) base.storage.Error![]u64 {
    var listing = try storage.list(gpa, run_dir);
    defer listing.deinit();

    var steps: std.ArrayList(u64) = .empty;
    errdefer steps.deinit(gpa);

    for (listing.entries) |entry| {
        if (entry.kind != .folder) continue;
        if (folder.stepOf(entry.name)) |step| try steps.append(gpa, step);
    }
    std.mem.sort(u64, steps.items, {}, std.sort.desc(u64));
    return steps.toOwnedSlice(gpa);
}

pub const Found = struct {
    /// Owned by the caller.
    path: []u8,
    step: u64,
};

/// The highest step that has a checkpoint folder, whole or not; null when there is none.
pub fn highestStep(gpa: Allocator, io: std.Io, run_dir: []const u8) base.storage.Error!?u64 {
    var disk: base.storage.Disk = .init(io);
    const steps = try listSteps(gpa, disk.storage(), run_dir);
    defer gpa.free(steps);

    return if (steps.len == 0) null else steps[0];
}

pub const LatestError = folder.Error || error{
    /// There are checkpoints and none is whole.
    AllCheckpointsDamaged,
};

/// The newest whole checkpoint, or null when the run has none (or no folder yet). Text in `diag` after success names the
/// damaged ones that were passed over.
pub fn latest(gpa: Allocator, io: std.Io, run_dir: []const u8, diag: *Diagnostic) LatestError!?Found {
    var disk: base.storage.Disk = .init(io);
    return latestOn(gpa, disk.storage(), run_dir, diag);
}

pub fn latestOn(gpa: Allocator, storage: Storage, run_dir: []const u8, diag: *Diagnostic) LatestError!?Found {
    diag.clear();
    const steps = listSteps(gpa, storage, run_dir) catch |err| {
        if (err == error.FileNotFound) return null;
        base.storage.explain(diag, err, "list", run_dir);
        return err;
    };
    defer gpa.free(steps);

    var damaged: std.Io.Writer.Allocating = .init(gpa);
    defer damaged.deinit();

    for (steps) |step| {
        const path = try folder.pathOf(gpa, run_dir, step);
        errdefer gpa.free(path);

        var reason: Diagnostic = .{};
        folder.verify(gpa, storage, path, &reason) catch |err| switch (err) {
            error.OutOfMemory, error.Canceled, error.TooManyOpenFiles => return err, // Says nothing about the folder.
            else => {
                if (reason.text().len == 0) base.storage.explain(&reason, err, "read", path);
                damaged.writer.print("{s}.\n", .{std.mem.trimEnd(u8, reason.text(), ".")}) catch return error.OutOfMemory;
                gpa.free(path);
                continue;
            },
        };
        if (damaged.written().len > 0)
            diag.set("{s}Using {s} instead. Keep the damaged folder to report it, or delete it.", .{ damaged.written(), path });
        return .{ .path = path, .step = step };
    }
    if (steps.len == 0) return null;
    diag.set("{s}No checkpoint in {s} is whole. Move the damaged ones away to start anew, or resume from a copy.", .{ damaged.written(), run_dir });
    return error.AllCheckpointsDamaged;
}

/// Removes checkpoints beyond `keep`, oldest first, except `protect`. `saved` is the step just committed.
pub fn retire(gpa: Allocator, storage: Storage, run_dir: []const u8, saved: u64, keep: u32, protect: ?u64) base.storage.Error!void {
    if (keep == 0) return;
    const steps = try listSteps(gpa, storage, run_dir);
    defer gpa.free(steps);

    var kept: u32 = 0;
    for (steps) |step| {
        if (step > saved or step == protect) continue;
        kept += 1;
        if (kept <= keep) continue;
        const path = try folder.pathOf(gpa, run_dir, step);
        defer gpa.free(path);

        try base.storage.retireFolder(gpa, storage, path);
    }
}

/// What a killed process could not do after its last save: removes temporary folders and checkpoints beyond `keep`.
/// The caller holds the run's lock and resumes from step `saved`.
pub fn tidy(gpa: Allocator, io: std.Io, run_dir: []const u8, saved: u64, keep: u32, protect: ?u64) base.storage.Error!void {
    var disk: base.storage.Disk = .init(io);
    try base.storage.removeLeftovers(gpa, disk.storage(), run_dir, folder.isCheckpointName);
    try retire(gpa, disk.storage(), run_dir, saved, keep, protect);
}

// ---- the rest of a checkpoint ----

/// The text of `trainer_state.json`. Caller frees.
pub fn readState(gpa: Allocator, io: std.Io, path: []const u8, diag: *Diagnostic) folder.Error![]u8 {
    var disk: base.storage.Disk = .init(io);
    return readStateOn(gpa, disk.storage(), path, diag);
}

pub fn readStateOn(gpa: Allocator, storage: Storage, path: []const u8, diag: *Diagnostic) folder.Error![]u8 {
    try checkListed(gpa, storage, path, folder.state_name, diag);
    const file = try base.storage.join(gpa, path, folder.state_name);
    defer gpa.free(file);

    return storage.readAlloc(gpa, file) catch |err| {
        base.storage.explain(diag, err, "read", file);
        return err;
    };
}

/// If the folder lists checksums, the file must match its own.
fn checkListed(gpa: Allocator, storage: Storage, path: []const u8, name: []const u8, diag: *Diagnostic) folder.Error!void {
    var arena: std.heap.ArenaAllocator = .init(gpa);
    defer arena.deinit();

    const sums = try folder.readSums(arena.allocator(), storage, path, diag) orelse return;
    for (sums) |sum| if (std.mem.eql(u8, sum.name, name)) return folder.checkFile(gpa, storage, path, sum, diag);
}

pub const OptimizerError = folder.Error || safetensors.Error || error{ MissingTensor, UnexpectedTensor, WrongShape, WrongDType, NonFiniteWeights };

/// Reads `optimizer.safetensors` into buffers laid out like the weights. `second_moment` null: the file must have none.
pub fn loadOptimizer(
    comptime T: type,
    gpa: Allocator,
    io: std.Io,
    path: []const u8,
    parameters: []const arch.Parameter,
    first_moment: []T,
    second_moment: ?[]T,
    diag: *Diagnostic,
) OptimizerError!void {
    var disk: base.storage.Disk = .init(io);
    return loadOptimizerOn(T, gpa, disk.storage(), path, parameters, first_moment, second_moment, diag);
}

pub fn loadOptimizerOn(
    comptime T: type,
    gpa: Allocator,
    storage: Storage,
    path: []const u8,
    parameters: []const arch.Parameter,
    first_moment: []T,
    second_moment: ?[]T,
    diag: *Diagnostic,
) OptimizerError!void {
    try checkListed(gpa, storage, path, folder.optimizer_name, diag);
    const file_path = try base.storage.join(gpa, path, folder.optimizer_name);
    defer gpa.free(file_path);

    var mapping = storage.map(file_path) catch |err| {
        if (err == error.FileNotFound) {
            diag.set("{s} has no " ++ folder.optimizer_name ++ ", so it was saved by a run with sgd or by another program. " ++
                "Resume with that optimizer, or start a new run from its weights.", .{path});
        } else base.storage.explain(diag, err, "read", file_path);
        return err;
    };
    defer mapping.unmap();

    var file = safetensors.parse(gpa, mapping.bytes, diag) catch |err| {
        diag.prepend("{s}: ", .{file_path});
        return err;
    };
    defer file.deinit();

    readMoments(T, gpa, &file, parameters, first_moment, second_moment, diag) catch |err| {
        diag.prepend("{s}: ", .{file_path});
        return err;
    };
}

fn readMoments(comptime T: type, gpa: Allocator, file: *const safetensors.File, parameters: []const arch.Parameter, first: []T, second: ?[]T, diag: *Diagnostic) OptimizerError!void {
    var name: std.ArrayList(u8) = .empty;
    defer name.deinit(gpa);

    const groups = [_]struct { []const u8, ?[]T }{ .{ "exp_avg.", first }, .{ "exp_avg_sq.", second } };
    var expected: usize = 0;
    for (groups) |group| {
        const buffer = group[1] orelse continue;
        for (parameters) |*p| {
            name.clearRetainingCapacity();
            try name.print(gpa, "{s}{s}", .{ group[0], p.name });
            const t = file.find(name.items) orelse {
                diag.set("tensor \"{s}\" is missing. Was the checkpoint made with another optimizer?", .{name.items});
                return error.MissingTensor;
            };
            if (!std.mem.eql(usize, t.shape, p.dims())) {
                diag.set("tensor \"{s}\" has shape {any}; the weight has {any}", .{ name.items, t.shape, p.dims() });
                return error.WrongShape;
            }
            const out = p.slice(T, buffer);
            if (!t.read(T, out)) {
                diag.set("tensor \"{s}\" has type {s}; it must be a float", .{ name.items, t.dtype.label() });
                return error.WrongDType;
            }
            if (@import("model_file.zig").firstNonFinite(T, out)) |at| {
                diag.set("tensor \"{s}\" holds {d} at element {d}", .{ name.items, out[at], at });
                return error.NonFiniteWeights;
            }
            expected += 1;
        }
    }
    if (file.tensors.len != expected) {
        diag.set("the file has {d} tensors; this optimizer has {d}. Was the checkpoint made with another optimizer?", .{ file.tensors.len, expected });
        return error.UnexpectedTensor;
    }
}

// ---- one writer a run ----

/// Held while a trainer works on a run's folder; the system frees it when the process ends, however it ends.
pub const RunLock = struct {
    handle: base.storage.Handle,

    pub fn release(self: *RunLock, io: std.Io) void {
        var disk: base.storage.Disk = .init(io);
        var lock: base.storage.Lock = .{ .storage = disk.storage(), .handle = self.handle };
        lock.release();
        self.* = undefined;
    }
};

/// Makes the run's folder if needed and takes its lock, or refuses at once with `error.Locked`.
pub fn lockRun(gpa: Allocator, io: std.Io, run_dir: []const u8, diag: *Diagnostic) base.storage.Error!RunLock {
    var disk: base.storage.Disk = .init(io);
    const storage = disk.storage();
    storage.ensureFolder(run_dir) catch |err| {
        base.storage.explain(diag, err, "create", run_dir);
        return err;
    };
    const path = try base.storage.join(gpa, run_dir, folder.lock_name);
    defer gpa.free(path);

    const lock = storage.lock(path) catch |err| {
        if (err == error.Locked) {
            diag.set("another process is training in {s}. Wait for it to end, or choose another folder.", .{run_dir});
        } else base.storage.explain(diag, err, "lock", path);
        return err;
    };
    return .{ .handle = lock.handle };
}
