//! A GGUF adapter as a PEFT folder, which training goes on from and `merge` takes.
//!
//! The base model's configuration says what the tensors' names mean: its folder or its .gguf file is named. Does not know: names, orders.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const formats = @import("formats");
const adapter_file = @import("adapter.zig");
const Allocator = std.mem.Allocator;
const Diagnostic = base.Diagnostic;

pub const Error = adapter_file.Error || formats.adapter_gguf_import.Error || formats.adapter_gguf.Error || error{SizeOverflow};

pub const Report = struct { tensors: usize, parameters: usize };

/// Writes the folder `out_path`, which must not exist. `model`: a folder with config.json, or a .gguf file; only its configuration is read.
pub fn unpackAdapter(gpa: Allocator, io: std.Io, path: []const u8, model: []const u8, out_path: []const u8, tokenizer_dir: ?[]const u8, diag: *Diagnostic) Error!Report {
    var disk: base.storage.Disk = .init(io);
    const storage = disk.storage();
    const config = try formats.adapter_gguf.configAt(gpa, storage, model, diag) orelse {
        diag.set("{s} is no model: neither a folder with config.json nor a .gguf file", .{model});
        return error.NotAnAdapter;
    };
    var layout = try arch.Layout.init(gpa, config);
    defer layout.deinit();

    var mapping = storage.map(path) catch |err| {
        base.storage.explain(diag, err, "read", path);
        return err;
    };
    defer mapping.unmap();

    var found = formats.adapter_gguf_import.read(gpa, mapping.bytes, config, &layout, diag) catch |err| {
        if (err != error.OutOfMemory) diag.prepend("{s}: ", .{path});
        return err;
    };
    defer found.deinit(gpa);

    adapter_file.saveAdapter(f32, gpa, io, out_path, config, .{
        .settings = found.settings,
        .base_name = found.base_name orelse model,
        .layout = &found.layout,
        .values = found.values,
    }, tokenizer_dir, diag) catch |err| {
        if (err == error.AlreadyExists) diag.set("{s} exists already, and what lies in it may be needed. Name a new folder", .{out_path});
        return err;
    };
    return .{ .tensors = found.layout.parameters.len, .parameters = found.layout.total };
}
