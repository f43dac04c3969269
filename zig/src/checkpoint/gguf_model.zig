//! A GGUF file as a model in memory: mapped, matched by `formats.gguf_import`, converted tensor by tensor.
//!
//! Does not know: keys, names, row orders (the import does).

const std = @import("std");
const base = @import("base");
const formats = @import("formats");
const model_file = @import("model_file.zig");
const Allocator = std.mem.Allocator;
const Diagnostic = base.Diagnostic;
const Storage = base.storage.Storage;
const gguf_import = formats.gguf_import;

pub const Error = base.storage.Error || gguf_import.Error || error{NonFiniteWeights};

pub fn load(comptime T: type, gpa: Allocator, storage: Storage, path: []const u8, diag: *Diagnostic) Error!model_file.LoadedModel(T) {
    var mapping = storage.map(path) catch |err| {
        base.storage.explain(diag, err, "read", path);
        return err;
    };
    defer mapping.unmap();

    return read(T, gpa, mapping.bytes, diag) catch |err| {
        diag.prepend("{s}: ", .{path});
        return err;
    };
}

fn read(comptime T: type, gpa: Allocator, bytes: []const u8, diag: *Diagnostic) Error!model_file.LoadedModel(T) {
    var source = try gguf_import.Import.open(gpa, bytes, diag);
    defer source.deinit();

    var layout = try @import("arch").Layout.init(gpa, source.config);
    errdefer layout.deinit();

    const weights = try gpa.alignedAlloc(T, .@"64", layout.total);
    errdefer gpa.free(weights);

    // The import gives f32; wider weights pass through a buffer of one tensor.
    var largest: usize = 0;
    if (T != f32) for (layout.parameters) |p| {
        largest = @max(largest, p.len);
    };
    const narrow = try gpa.alloc(f32, largest);
    defer gpa.free(narrow);

    for (layout.parameters) |*p| {
        const out = p.slice(T, weights);
        const values: []f32 = if (T == f32) out else narrow[0..p.len];
        source.read(p, values) catch {
            diag.set("tensor of {s} holds a value that is no number. The model is damaged or diverged", .{p.name});
            return error.NonFiniteWeights;
        };
        if (T != f32) for (out, values) |*o, v| {
            o.* = v;
        };
    }
    return .{ .config = source.config, .layout = layout, .weights = weights };
}
