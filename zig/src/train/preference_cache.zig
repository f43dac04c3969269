//! Log-probabilities of a reference, kept in the run's folder: asked once, read again when the run goes on.
//!
//! `reference_logps.safetensors` holds for each pair in training (and in evaluation) the sums of the better and of the worse
//! answer, f64, in the order of the pairs in the data, and what they belong to: the reference's weights, the data, the
//! length rows are cut to, the precision. Numbers of anything else, and damaged ones, are not used: they are asked again.
//! Does not know: how a reference is asked.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const model_layer = @import("model");
const data = @import("data");
const formats = @import("formats");

const safetensors = formats.safetensors;
const Storage = base.storage.Storage;

pub const file_name = "reference_logps.safetensors";

const tensor_names = [_][]const u8{ "training", "evaluation" };

/// Sums of the kept pairs, better and worse answer in turn.
pub const Sums = struct {
    training: []f64,
    evaluation: ?[]f64,

    pub fn deinit(self: Sums, gpa: std.mem.Allocator) void {
        gpa.free(self.training);
        if (self.evaluation) |list| gpa.free(list);
    }
};

/// What the sums belong to, as one line of text. Caller frees.
pub fn fingerprint(
    comptime T: type,
    gpa: std.mem.Allocator,
    reference: model_layer.Weights(T),
    config: arch.ModelConfig,
    low_precision: bool,
    training: *const data.Loader,
    evaluation: ?*const data.Loader,
) error{OutOfMemory}![]u8 {
    var out: std.Io.Writer.Allocating = .init(gpa);
    defer out.deinit();

    write(T, &out.writer, reference, config, low_precision, training, evaluation) catch return error.OutOfMemory;
    return out.toOwnedSlice();
}

fn write(
    comptime T: type,
    out: *std.Io.Writer,
    reference: model_layer.Weights(T),
    config: arch.ModelConfig,
    low_precision: bool,
    training: *const data.Loader,
    evaluation: ?*const data.Loader,
) std.Io.Writer.Error!void {
    var weights: base.checksum.Crc32c = .{};
    switch (reference.base) {
        .dense => |flat| weights.update(std.mem.sliceAsBytes(flat)),
        .frozen => |matrices| for (matrices) |matrix| weights.update(matrix.bytes),
    }
    try out.print("weights {x:0>8}", .{weights.final()});
    if (reference.adapter) |adapter| {
        try out.print(", adapter {x:0>8} of", .{base.checksum.crc32c(std.mem.sliceAsBytes(adapter.values))});
        for (adapter.layout.modules) |module| try out.print(" {s}/{d}/{d}", .{ module.path, module.rank, module.scale });
    }
    try out.print(", {s}, {d} layers, {d} heads, theta {d}, eps {d}, {any}", .{
        if (low_precision) "bf16" else @typeName(T),
        config.num_hidden_layers,
        config.num_attention_heads,
        config.rope_theta,
        config.rms_norm_eps,
        config.rope_scaling,
    });
    try dataset(out, "training", training);
    if (evaluation) |loader| try dataset(out, "evaluation", loader);
}

fn dataset(out: *std.Io.Writer, name: []const u8, loader: *const data.Loader) std.Io.Writer.Error!void {
    const d = loader.dataset;
    var sum: base.checksum.Crc32c = .{};
    // Not file by file: a set and one file of the same pairs are the same pairs.
    var ids: [1024]u32 = undefined;
    var at: usize = 0;
    while (at < d.count()) : (at += ids.len) {
        const part = ids[0..@min(ids.len, d.count() - at)];
        d.readTokens(part, at);
        sum.update(std.mem.sliceAsBytes(part));
    }
    for (0..d.rowCount().?) |row| {
        const place = [_]u64{ d.rowStart(row), data.pairs.borderOf(d, row) };
        sum.update(std.mem.sliceAsBytes(&place));
    }
    try out.print(", {s} {x:0>8} cut to {d}: {d} pairs", .{ name, sum.final(), loader.options.max_seq_len, loader.kept.len });
}

/// The sums kept in `run_dir`; null if there are none of this fingerprint and these sizes, or they are damaged.
pub fn read(
    gpa: std.mem.Allocator,
    storage: Storage,
    run_dir: []const u8,
    wanted: []const u8,
    training: usize,
    evaluation: ?usize,
) error{OutOfMemory}!?Sums {
    const path = try base.storage.join(gpa, run_dir, file_name);
    defer gpa.free(path);

    const bytes = storage.readAlloc(gpa, path) catch |err| return if (err == error.OutOfMemory) error.OutOfMemory else null;
    defer gpa.free(bytes);

    var diag: base.Diagnostic = .{};
    var file = safetensors.parse(gpa, bytes, &diag) catch |err| return if (err == error.OutOfMemory) error.OutOfMemory else null;
    defer file.deinit();

    if (!is(file, "fingerprint", wanted)) return null;
    const first = try values(gpa, &file, 0, training) orelse return null;
    errdefer gpa.free(first);
    const count = evaluation orelse return .{ .training = first, .evaluation = null };
    const second = try values(gpa, &file, 1, count) orelse {
        gpa.free(first);
        return null;
    };
    return .{ .training = first, .evaluation = second };
}

fn is(file: safetensors.File, key: []const u8, wanted: []const u8) bool {
    for (file.metadata) |entry| if (std.mem.eql(u8, entry.key, key)) return std.mem.eql(u8, entry.value, wanted);
    return false;
}

fn values(gpa: std.mem.Allocator, file: *const safetensors.File, which: usize, count: usize) error{OutOfMemory}!?[]f64 {
    const found = file.find(tensor_names[which]) orelse return null;
    if (found.dtype != .f64 or found.len() != count) return null;
    const sum = checksumText(found.bytes);
    if (!is(file.*, tensor_names[which], &sum)) return null;
    const out = try gpa.alloc(f64, count);
    if (!found.read(f64, out)) unreachable; // It is f64.
    return out;
}

fn checksumText(bytes: []const u8) [8]u8 {
    var text: [8]u8 = undefined;
    _ = std.fmt.bufPrint(&text, "{x:0>8}", .{base.checksum.crc32c(bytes)}) catch unreachable; // Eight digits.
    return text;
}

/// Keeps the sums in `run_dir`, whole or not at all.
pub fn keep(
    gpa: std.mem.Allocator,
    storage: Storage,
    run_dir: []const u8,
    belongs_to: []const u8,
    sums: Sums,
    diag: *base.Diagnostic,
) (base.storage.Error || error{SizeOverflow})!void {
    const path = try base.storage.join(gpa, run_dir, file_name);
    defer gpa.free(path);

    var out: std.Io.Writer.Allocating = .init(gpa);
    defer out.deinit();

    encode(gpa, &out.writer, belongs_to, sums) catch |err| return switch (err) {
        error.SizeOverflow => error.SizeOverflow,
        error.OutOfMemory, error.WriteFailed => error.OutOfMemory,
    };
    base.storage.writeFile(gpa, storage, path, out.written()) catch |err| {
        base.storage.explain(diag, err, "write", path);
        return err;
    };
}

fn encode(gpa: std.mem.Allocator, out: *std.Io.Writer, belongs_to: []const u8, sums: Sums) safetensors.WriteError!void {
    const lists = [_][]const f64{ sums.training, sums.evaluation orelse &.{} };
    var checks: [2][8]u8 = undefined;
    var entries: [2]safetensors.Entry = undefined;
    var metadata: [4]safetensors.MetadataEntry = undefined;
    metadata[0] = .{ .key = "format", .value = "pt" };
    metadata[1] = .{ .key = "fingerprint", .value = belongs_to };
    var shapes: [2][1]usize = undefined;
    const count: usize = if (sums.evaluation == null) 1 else 2;
    for (0..count) |i| {
        checks[i] = checksumText(std.mem.sliceAsBytes(lists[i]));
        shapes[i] = .{lists[i].len};
        entries[i] = .{ .name = tensor_names[i], .dtype = .f64, .shape = &shapes[i] };
        metadata[2 + i] = .{ .key = tensor_names[i], .value = &checks[i] };
    }
    var writer: safetensors.Writer = try .begin(gpa, out, entries[0..count], metadata[0 .. 2 + count]);
    for (lists[0..count]) |list| try writer.writeFloats(f64, list);
    writer.finish();
}

// ---- tests ----

const testing = std.testing;

test "sums come back to the bit, and only under their own name and sizes" {
    const gpa = testing.allocator;
    var disk: base.storage.MemoryDisk = try .init(gpa);
    defer disk.deinit();
    var diag: base.Diagnostic = .{};
    const storage = disk.storage();
    var training = [_]f64{ -1.0 / 3.0, -1e300, -0.1, 0 };
    var evaluation = [_]f64{ -7, -8 };
    try testing.expectEqual(null, try read(gpa, storage, ".", "a", 4, 2));
    try keep(gpa, storage, ".", "a", .{ .training = &training, .evaluation = &evaluation }, &diag);
    const back = (try read(gpa, storage, ".", "a", 4, 2)).?;
    defer back.deinit(gpa);
    try testing.expectEqualSlices(f64, &training, back.training);
    try testing.expectEqualSlices(f64, &evaluation, back.evaluation.?);
    try testing.expectEqual(null, try read(gpa, storage, ".", "b", 4, 2));
    try testing.expectEqual(null, try read(gpa, storage, ".", "a", 5, 2));
    try testing.expectEqual(null, try read(gpa, storage, ".", "a", 4, 3));
    // Without evaluation the second list is not asked for; without a second list one that is asked for is missing.
    const alone = (try read(gpa, storage, ".", "a", 4, null)).?;
    defer alone.deinit(gpa);
    try testing.expectEqual(null, alone.evaluation);
    try keep(gpa, storage, ".", "a", .{ .training = &training, .evaluation = null }, &diag);
    try testing.expectEqual(null, try read(gpa, storage, ".", "a", 4, 2));
}

test "a damaged file is asked again: no byte of it can be changed unseen" {
    const gpa = testing.allocator;
    var disk: base.storage.MemoryDisk = try .init(gpa);
    defer disk.deinit();
    var diag: base.Diagnostic = .{};
    const storage = disk.storage();
    var training = [_]f64{ -1.5, -2.25 };
    try keep(gpa, storage, ".", "a", .{ .training = &training, .evaluation = null }, &diag);
    const whole = try storage.readAlloc(gpa, "./" ++ file_name);
    defer gpa.free(whole);
    for (0..whole.len) |at| {
        whole[at] ^= 1;
        defer whole[at] ^= 1;
        try base.storage.writeFile(gpa, storage, "./" ++ file_name, whole);
        const found = try read(gpa, storage, ".", "a", 2, null) orelse continue;
        defer found.deinit(gpa);
        // A changed name that nothing asks for is harmless; the numbers never differ.
        try testing.expectEqualSlices(f64, &training, found.training);
    }
    try base.storage.writeFile(gpa, storage, "./" ++ file_name, whole[0 .. whole.len - 1]);
    try testing.expectEqual(null, try read(gpa, storage, ".", "a", 2, null));
}
