//! A model used where it lies: a Hugging Face folder or a GGUF file, mapped, each parameter a stored matrix.
//!
//! For bases that no gradient changes. Matrices stay in the file's own type and order (`tensor.StoredMatrix` serves their rows in
//! Hugging Face's order), experts' as blocks of MXFP4 too; norms, sinks and biases, a thousandth of a model, are copied as f32. Memory is the file's pages and those copies.
//! The same checks as for loading: names, shapes, types, nothing missing or left over, checksums, no scale or number that is none.
//! The files must not be cut short while they are mapped. Does not know: products, gradients.

const std = @import("std");
const base = @import("base");
const tensor = @import("tensor");
const arch = @import("arch");
const formats = @import("formats");
const model_file = @import("model_file.zig");
const Allocator = std.mem.Allocator;
const Diagnostic = base.Diagnostic;
const Storage = base.storage.Storage;
const StoredMatrix = tensor.StoredMatrix;

pub const Error = model_file.Error;

pub const MappedModel = struct {
    config: arch.ModelConfig,
    layout: arch.Layout,
    /// One for each parameter, in the layout's order. Vectors have columns = 1 and answer `vector()`.
    matrices: []const StoredMatrix,
    /// Bytes of the files that are mapped.
    file_bytes: usize,
    /// Bytes of the numbers that were copied.
    copied_bytes: usize,
    arena: std.heap.ArenaAllocator,
    mappings: []base.storage.Mapping,

    /// After this no matrix may be used.
    pub fn deinit(self: *MappedModel) void {
        for (self.mappings) |*mapping| mapping.unmap();
        self.layout.deinit();
        self.arena.deinit();
        self.* = undefined;
    }

    /// The matrix of this role, or null if the model has none.
    pub fn get(self: *const MappedModel, layer: ?u32, role: arch.Role) ?*const StoredMatrix {
        const param = self.layout.get(layer, role) orelse return null;
        return &self.matrices[(@intFromPtr(param) - @intFromPtr(self.layout.parameters.ptr)) / @sizeOf(arch.Parameter)];
    }
};

/// Opens the model at `path`: a folder with config.json and safetensors, or a .gguf file. Caller calls `deinit`.
pub fn open(gpa: Allocator, io: std.Io, path: []const u8, diag: *Diagnostic) Error!MappedModel {
    var builder: Builder = .init(gpa, diag);
    errdefer builder.deinit();

    // The mappings outlive this call, and so must the disk they belong to.
    const disk = try builder.arena.allocator().create(base.storage.Disk);
    disk.* = .init(io);
    return builder.openAny(disk.storage(), path);
}

/// `storage` must outlive the model.
pub fn openOn(gpa: Allocator, storage: Storage, path: []const u8, diag: *Diagnostic) Error!MappedModel {
    var builder: Builder = .init(gpa, diag);
    errdefer builder.deinit();

    return builder.openAny(storage, path);
}

/// Vectors, and the biases of experts, which are several vectors: everything that is added and not multiplied.
pub fn isCopied(param: *const arch.Parameter) bool {
    return param.rank == 1 or param.role.isBias();
}

const Builder = struct {
    gpa: Allocator,
    arena: std.heap.ArenaAllocator,
    diag: *Diagnostic,
    mappings: std.ArrayList(base.storage.Mapping) = .empty,
    copied_bytes: usize = 0,

    fn init(gpa: Allocator, diag: *Diagnostic) Builder {
        return .{ .gpa = gpa, .arena = .init(gpa), .diag = diag };
    }

    fn deinit(self: *Builder) void {
        for (self.mappings.items) |*mapping| mapping.unmap();
        self.arena.deinit();
    }

    fn openAny(self: *Builder, storage: Storage, path: []const u8) Error!MappedModel {
        const kind = storage.kind(path) catch |err| {
            base.storage.explain(self.diag, err, "open", path);
            return err;
        } orelse {
            self.diag.set("there is no model at {s}. Give a folder with config.json and model.safetensors, or a .gguf file", .{path});
            return error.FileNotFound;
        };
        if (kind == .folder) return self.openFolder(storage, path);
        if (std.ascii.endsWithIgnoreCase(path, ".gguf")) return self.openGguf(storage, path);
        self.diag.set("{s} is no model. Give the folder that holds config.json and model.safetensors, or a .gguf file", .{path});
        return error.NotAModel;
    }

    fn openFolder(self: *Builder, storage: Storage, path: []const u8) Error!MappedModel {
        try model_file.checkSums(self.gpa, storage, path, self.diag);
        const config = try model_file.readConfig(self.gpa, storage, path, self.diag);
        var layout = try arch.Layout.init(self.gpa, config);
        errdefer layout.deinit();

        var shards = try model_file.Shards.open(self.gpa, storage, path, self.diag);
        defer shards.close(self.gpa);

        const sources = try self.gpa.alloc(model_file.Source, layout.parameters.len);
        defer self.gpa.free(sources);

        const matrices = try self.arena.allocator().alloc(StoredMatrix, layout.parameters.len);
        self.fillFromFolder(&layout, shards.list.items, sources, matrices) catch |err| {
            if (err != error.OutOfMemory) self.diag.prepend("{s}: ", .{path});
            return err;
        };
        // The tables of the files are no longer needed, their bytes are.
        try self.mappings.ensureTotalCapacity(self.arena.allocator(), shards.list.items.len);
        for (shards.list.items) |*shard| {
            self.mappings.appendAssumeCapacity(shard.mapping);
            shard.file.deinit();
        }
        shards.list.clearRetainingCapacity();
        return self.finish(config, layout, matrices);
    }

    fn fillFromFolder(
        self: *Builder,
        layout: *const arch.Layout,
        shards: []const model_file.Shard,
        sources: []model_file.Source,
        matrices: []StoredMatrix,
    ) Error!void {
        try model_file.match(self.gpa, layout, shards, sources, self.diag);
        for (layout.parameters, sources, matrices) |*param, source, *matrix| {
            const found = source.values.?;
            matrix.* = if (source.scales) |scales| .{
                .dtype = .mxfp4,
                .rows = param.shape[1],
                .columns = param.shape[0],
                .count = param.count(),
                .bytes = found.bytes,
                .scales = scales.bytes,
                .turned = true,
            } else if (isCopied(param)) try self.copied(param, found) else .{
                .dtype = found.dtype,
                .rows = param.shape[0],
                .columns = param.shape[1],
                .count = param.count(),
                .bytes = found.bytes,
            };
            try self.checkFinite(param, matrix.*);
        }
    }

    fn copied(self: *Builder, param: *const arch.Parameter, source: *const formats.safetensors.Tensor) Error!StoredMatrix {
        const out = try self.vector(param);
        std.debug.assert(source.read(f32, out)); // `match` let only floats through.
        return asMatrix(out);
    }

    fn openGguf(self: *Builder, storage: Storage, path: []const u8) Error!MappedModel {
        try self.mappings.ensureTotalCapacity(self.arena.allocator(), 1);
        self.mappings.appendAssumeCapacity(storage.map(path) catch |err| {
            base.storage.explain(self.diag, err, "read", path);
            return err;
        });
        return self.readGguf(self.mappings.items[0].bytes) catch |err| {
            if (err != error.OutOfMemory) self.diag.prepend("{s}: ", .{path});
            return err;
        };
    }

    fn readGguf(self: *Builder, bytes: []const u8) Error!MappedModel {
        var source = try formats.gguf_import.Import.open(self.gpa, bytes, self.diag);
        defer source.deinit();

        var layout = try arch.Layout.init(self.gpa, source.config);
        errdefer layout.deinit();

        const matrices = try self.arena.allocator().alloc(StoredMatrix, layout.parameters.len);
        for (layout.parameters, matrices) |*param, *matrix| {
            if (isCopied(param)) {
                const out = try self.vector(param);
                source.read(param, out) catch return self.notFinite(param);
                matrix.* = asMatrix(out);
                continue;
            }
            if (param.role.isExpertWeight()) {
                matrix.* = try self.expertsOf(&source, param);
                try self.checkFinite(param, matrix.*);
                continue;
            }
            const info = source.tensorOf(param);
            matrix.* = .{
                .dtype = info.dtype,
                .rows = param.shape[0],
                .columns = param.shape[1],
                .bytes = info.data,
                .row_order = source.rowOrder(param.role),
            };
            try self.checkFinite(param, matrix.*);
        }
        return self.finish(source.config, layout, matrices);
    }

    /// Experts' weights, gate and up in two tensors.
    fn expertsOf(self: *Builder, source: *const formats.gguf_import.Import, param: *const arch.Parameter) Error!StoredMatrix {
        const parts = formats.name_map.parts(param.role);
        const first = source.partOf(param, parts[0]);
        const last = source.partOf(param, parts[parts.len - 1]);
        if (first.dtype != last.dtype) {
            self.diag.set("tensors {s} and {s} have types {s} and {s}; a base that stays in its file needs them in one type. " ++
                "Quantise both alike, or train through the engine trl", .{ first.name, last.name, first.dtype.label(), last.dtype.label() });
            return error.UnsupportedTensorType;
        }
        return .{
            .dtype = first.dtype,
            .rows = param.shape[1],
            .columns = param.shape[0],
            .count = param.count(),
            .bytes = first.data,
            .odd = if (parts.len > 1) last.data else null,
            .turned = true,
        };
    }

    fn vector(self: *Builder, param: *const arch.Parameter) Error![]f32 {
        const out = try self.arena.allocator().alloc(f32, param.len);
        self.copied_bytes += out.len * @sizeOf(f32);
        return out;
    }

    fn asMatrix(values: []const f32) StoredMatrix {
        return .{ .dtype = .f32, .rows = values.len, .columns = 1, .bytes = std.mem.sliceAsBytes(values) };
    }

    fn checkFinite(self: *Builder, param: *const arch.Parameter, matrix: StoredMatrix) Error!void {
        std.debug.assert(matrix.isWhole()); // Both readers compared the shape.
        const finite = matrix.allFinite() catch {
            self.diag.set("tensor of \"{s}\" has type {s}, which cannot be used as it is stored", .{ param.name, matrix.dtype.label() });
            return error.UnsupportedTensorType;
        };
        if (!finite) return self.notFinite(param);
    }

    fn notFinite(self: *Builder, param: *const arch.Parameter) Error {
        self.diag.set("tensor of \"{s}\" holds a value that is no number. The model is damaged or diverged", .{param.name});
        return error.NonFiniteWeights;
    }

    fn finish(self: *Builder, config: arch.ModelConfig, layout: arch.Layout, matrices: []const StoredMatrix) MappedModel {
        var file_bytes: usize = 0;
        for (self.mappings.items) |mapping| file_bytes += mapping.bytes.len;
        return .{
            .config = config,
            .layout = layout,
            .matrices = matrices,
            .file_bytes = file_bytes,
            .copied_bytes = self.copied_bytes,
            .arena = self.arena,
            .mappings = self.mappings.items,
        };
    }
};

test {
    _ = @import("mapped_model_test.zig");
}
