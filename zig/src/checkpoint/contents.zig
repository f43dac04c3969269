//! What goes into a folder that holds a model: configuration, tensors, tokenizer files. Each call adds one file, synced.
//!
//! Shared by checkpoints of a run and by models saved alone. Does not know: where the folder ends up, what a step is.

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
const Digest = base.storage.Digest;
const safetensors = formats.safetensors;

pub const Error = base.storage.Error || error{SizeOverflow};

/// What transformers asks for.
pub const metadata = [_]safetensors.MetadataEntry{.{ .key = "format", .value = "pt" }};

/// Flat values in layout order, written under the parameters' names with `prefix` before them.
pub fn Group(comptime T: type) type {
    return struct { prefix: []const u8, values: []const T };
}

pub fn addConfig(comptime T: type, gpa: Allocator, target: *AtomicFolder, config: arch.ModelConfig) Error!Digest {
    var text: std.Io.Writer.Allocating = .init(gpa);
    defer text.deinit();

    formats.hf_config.write(&text.writer, config, .{ .dtype = if (T == f32) "float32" else "float64" }) catch
        return error.OutOfMemory;
    return target.addFile(folder.config_name, text.written());
}

pub fn addAdapterConfig(gpa: Allocator, target: *AtomicFolder, settings: arch.LoraSettings, base_name: ?[]const u8) Error!Digest {
    var text: std.Io.Writer.Allocating = .init(gpa);
    defer text.deinit();

    formats.adapter_config.write(&text.writer, settings, base_name) catch return error.OutOfMemory;
    return target.addFile(folder.adapter_config_name, text.written());
}

/// All parameters of each group in layout order, straight from the buffers to the file.
pub fn addTensors(
    comptime T: type,
    gpa: Allocator,
    target: *AtomicFolder,
    name: []const u8,
    parameters: []const arch.Parameter,
    groups: []const Group(T),
) Error!Digest {
    var arena: std.heap.ArenaAllocator = .init(gpa);
    defer arena.deinit();

    const a = arena.allocator();
    const dtype: tensor.DType = if (T == f32) .f32 else .f64;
    const entries = try a.alloc(safetensors.Entry, parameters.len * groups.len);
    for (groups, 0..) |group, g| for (parameters, 0..) |*p, i| {
        entries[g * parameters.len + i] = .{
            .name = try std.mem.concat(a, u8, &.{ group.prefix, p.name }),
            .dtype = dtype,
            .shape = p.dims(),
        };
    };
    var file = try target.createFile(name, try a.alloc(u8, 64 << 10));
    defer file.close();

    streamTensors(T, gpa, &file.interface, entries, parameters, groups) catch |err| return switch (err) {
        error.WriteFailed => file.cause(),
        error.OutOfMemory, error.SizeOverflow => |e| e,
    };
    return file.finish();
}

fn streamTensors(
    comptime T: type,
    gpa: Allocator,
    out: *std.Io.Writer,
    entries: []const safetensors.Entry,
    parameters: []const arch.Parameter,
    groups: []const Group(T),
) safetensors.WriteError!void {
    var writer = try safetensors.Writer.begin(gpa, out, entries, &metadata);
    for (groups) |group| for (parameters) |p| try writer.writeFloats(T, p.sliceConst(T, group.values));
    writer.finish();
}

/// Copies one file of the folder `from`; null when it is not there.
pub fn addCopy(gpa: Allocator, storage: Storage, target: *AtomicFolder, from: []const u8, name: []const u8, diag: *Diagnostic) Error!?Digest {
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

pub const NonFinite = struct { name: []const u8, at: usize, value: f64 };

/// The first value that is NaN or infinite, by parameter.
pub fn findNonFinite(comptime T: type, parameters: []const arch.Parameter, values: []const T) ?NonFinite {
    for (parameters) |p| {
        if (model_file.firstNonFinite(T, p.sliceConst(T, values))) |at| return .{ .name = p.name, .at = at, .value = p.sliceConst(T, values)[at] };
    }
    return null;
}
