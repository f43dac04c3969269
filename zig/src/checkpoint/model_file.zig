//! Loading a model: a Hugging Face folder, whole or sharded, or a GGUF file, into one flat weight buffer.
//!
//! Files are mapped and each tensor is converted straight to its place; nothing is copied in between. All names and shapes are
//! matched before the buffer is allocated, so a configuration cannot ask for more memory than the files can fill.
//! Every parameter must be there, nothing else may be, and all values must be finite.
//! Does not know: optimizers, runs, how a model computes.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const formats = @import("formats");
const folder = @import("folder.zig");
const gguf_model = @import("gguf_model.zig");
const expert_blocks = @import("expert_blocks.zig");
const Allocator = std.mem.Allocator;
const Diagnostic = base.Diagnostic;
const Storage = base.storage.Storage;
const safetensors = formats.safetensors;

pub const MatchError = error{
    OutOfMemory,
    MissingTensor,
    UnexpectedTensor,
    WrongShape,
    /// The tensor holds no floats.
    WrongDType,
    /// Two shards, or two names, give the same parameter.
    DuplicateTensor,
    /// The embeddings are tied, yet the file has another head.
    TiedHeadDiffers,
    NonFiniteWeights,
};

pub const Error = MatchError || folder.Error || safetensors.Error || safetensors.IndexError ||
    formats.hf_config.Error || gguf_model.Error || error{
    /// The path is no folder of a model and no GGUF file.
    NotAModel,
    MissingShard,
    ModelTooLarge,
};

/// A model in memory. `weights` is laid out as `layout` says.
pub fn LoadedModel(comptime T: type) type {
    return struct {
        config: arch.ModelConfig,
        layout: arch.Layout,
        weights: []align(64) T,

        const Self = @This();

        /// `gpa` is the allocator it was made with.
        pub fn deinit(self: *Self, gpa: Allocator) void {
            gpa.free(self.weights);
            self.layout.deinit();
            self.* = undefined;
        }
    };
}

/// Loads the model at `path` as T (f32 or f64). Caller calls `deinit(gpa)`.
pub fn loadModel(comptime T: type, gpa: Allocator, io: std.Io, path: []const u8, diag: *Diagnostic) Error!LoadedModel(T) {
    var disk: base.storage.Disk = .init(io);
    return loadModelOn(T, gpa, disk.storage(), path, diag);
}

pub fn loadModelOn(comptime T: type, gpa: Allocator, storage: Storage, path: []const u8, diag: *Diagnostic) Error!LoadedModel(T) {
    const kind = storage.kind(path) catch |err| {
        base.storage.explain(diag, err, "open", path);
        return err;
    } orelse {
        diag.set("there is no model at {s}. Give a folder with config.json and model.safetensors, or a .gguf file", .{path});
        return error.FileNotFound;
    };
    if (kind == .folder) return loadFolder(T, gpa, storage, path, diag);
    if (std.ascii.endsWithIgnoreCase(path, ".gguf")) return gguf_model.load(T, gpa, storage, path, diag);
    diag.set("{s} is no model. Give the folder that holds config.json and model.safetensors, or a .gguf file", .{path});
    return error.NotAModel;
}

/// Reads `config.json` of a folder.
pub fn readConfig(gpa: Allocator, storage: Storage, path: []const u8, diag: *Diagnostic) Error!arch.ModelConfig {
    const file = try base.storage.join(gpa, path, folder.config_name);
    defer gpa.free(file);

    const text = storage.readAlloc(gpa, file) catch |err| {
        if (err == error.FileNotFound) {
            diag.set("{s} has no config.json, so it is no model folder{s}", .{ path, try hintFor(gpa, storage, path) });
            return error.NotAModel;
        }
        base.storage.explain(diag, err, "read", file);
        return err;
    };
    defer gpa.free(text);

    return formats.hf_config.parse(gpa, text, diag) catch |err| {
        diag.prepend("{s}: ", .{file});
        return err;
    };
}

/// What a folder without a configuration may be instead.
fn hintFor(gpa: Allocator, storage: Storage, path: []const u8) Error![]const u8 {
    var listing = try storage.list(gpa, path);
    defer listing.deinit();

    for (listing.entries) |entry| {
        if (folder.isCheckpointName(entry.name)) return ". It is a run folder: give one of its checkpoint-N folders";
        if (std.mem.eql(u8, entry.name, "adapter_config.json")) return ". It is a LoRA adapter: give the folder of its base model";
        if (std.ascii.endsWithIgnoreCase(entry.name, ".gguf")) return ". It holds a .gguf file: give that file's path";
    }
    return "";
}

fn loadFolder(comptime T: type, gpa: Allocator, storage: Storage, path: []const u8, diag: *Diagnostic) Error!LoadedModel(T) {
    try checkSums(gpa, storage, path, diag);
    const config = try readConfig(gpa, storage, path, diag);
    var layout = try arch.Layout.init(gpa, config);
    errdefer layout.deinit();

    var shards = try Shards.open(gpa, storage, path, diag);
    defer shards.close(gpa);

    const sources = try gpa.alloc(Source, layout.parameters.len);
    defer gpa.free(sources);

    match(gpa, &layout, shards.list.items, sources, diag) catch |err| {
        diag.prepend("{s}: ", .{path});
        return err;
    };
    const weights = try gpa.alignedAlloc(T, .@"64", layout.total);
    errdefer gpa.free(weights);

    for (layout.parameters, sources) |p, source| {
        const out = p.slice(T, weights);
        if (source.scales) |scales| {
            expert_blocks.expand(T, &p, source.values.?.bytes, scales.bytes, out);
        } else if (!source.values.?.read(T, out)) {
            diag.set("{s}: tensor \"{s}\" has type {s}; weights must be floats", .{ path, p.name, source.values.?.dtype.label() });
            return error.WrongDType;
        }
        if (firstNonFinite(T, out)) |at| {
            diag.set("{s}: tensor \"{s}\" holds {d} at element {d}. The model is damaged or diverged", .{ path, p.name, out[at], at });
            return error.NonFiniteWeights;
        }
    }
    return .{ .config = config, .layout = layout, .weights = weights };
}

/// Where the folder lists checksums, what is about to be read must match them.
/// Compares a model folder's files with its `checksums.json`; a folder without one passes. For readers of their own, such
/// as the export, which streams tensors without loading the model.
pub fn checkModelSums(gpa: Allocator, io: std.Io, path: []const u8, diag: *Diagnostic) Error!void {
    var disk: base.storage.Disk = .init(io);
    return checkSums(gpa, disk.storage(), path, diag);
}

pub fn checkSums(gpa: Allocator, storage: Storage, path: []const u8, diag: *Diagnostic) Error!void {
    var arena: std.heap.ArenaAllocator = .init(gpa);
    defer arena.deinit();

    const sums = try folder.readSums(arena.allocator(), storage, path, diag) orelse return;
    for (sums) |sum| {
        const wanted = std.mem.eql(u8, sum.name, folder.config_name) or std.mem.startsWith(u8, sum.name, "model");
        if (wanted) try folder.checkFile(gpa, storage, path, sum, diag);
    }
}

pub const Shard = struct {
    name: []const u8,
    mapping: base.storage.Mapping,
    file: safetensors.File,
};

/// The safetensors files of one folder, open together. Tensors point into them.
pub const Shards = struct {
    list: std.ArrayList(Shard) = .empty,
    index: ?safetensors.ShardIndex = null,

    pub fn open(gpa: Allocator, storage: Storage, path: []const u8, diag: *Diagnostic) Error!Shards {
        var self: Shards = .{};
        errdefer self.close(gpa);

        const single = try base.storage.join(gpa, path, folder.model_name);
        defer gpa.free(single);

        if (try storage.kind(single) == .file) {
            try self.add(gpa, storage, path, folder.model_name, diag);
            return self;
        }
        const index_path = try base.storage.join(gpa, path, folder.index_name);
        defer gpa.free(index_path);

        const text = storage.readAlloc(gpa, index_path) catch |err| {
            if (err == error.FileNotFound) {
                const hint = try hintFor(gpa, storage, path);
                const words = if (hint.len > 0) hint else ". A config alone is no model: use random initialisation";
                diag.set("{s} has neither {s} nor {s}{s}", .{ path, folder.model_name, folder.index_name, words });
                return error.NotAModel;
            }
            base.storage.explain(diag, err, "read", index_path);
            return err;
        };
        defer gpa.free(text);

        self.index = safetensors.ShardIndex.parse(gpa, text, diag) catch |err| {
            diag.prepend("{s}: ", .{index_path});
            return err;
        };
        for (self.index.?.shards) |name| try self.add(gpa, storage, path, name, diag);
        try self.checkIndex(index_path, diag);
        return self;
    }

    fn add(self: *Shards, gpa: Allocator, storage: Storage, path: []const u8, name: []const u8, diag: *Diagnostic) Error!void {
        const file_path = try base.storage.join(gpa, path, name);
        defer gpa.free(file_path);

        try self.list.ensureUnusedCapacity(gpa, 1);
        var mapping = storage.map(file_path) catch |err| {
            if (err == error.FileNotFound) {
                diag.set("{s} is named in {s} but missing", .{ file_path, folder.index_name });
                return error.MissingShard;
            }
            base.storage.explain(diag, err, "read", file_path);
            return err;
        };
        errdefer mapping.unmap();

        const file = safetensors.parse(gpa, mapping.bytes, diag) catch |err| {
            diag.prepend("{s}: ", .{file_path});
            return err;
        };
        self.list.appendAssumeCapacity(.{ .name = name, .mapping = mapping, .file = file });
    }

    /// The map and the shards must say the same.
    fn checkIndex(self: *const Shards, index_path: []const u8, diag: *Diagnostic) Error!void {
        const map = &self.index.?.weight_map;
        for (map.keys(), map.values()) |name, shard| {
            if (self.list.items[shard].file.find(name) == null) {
                diag.set("{s}: tensor \"{s}\" is not in {s}", .{ index_path, name, self.list.items[shard].name });
                return error.MissingTensor;
            }
        }
        for (self.list.items, 0..) |shard, i| for (shard.file.tensors) |t| {
            const at = map.get(t.name) orelse {
                diag.set("{s}: {s} holds \"{s}\", which the index does not list", .{ index_path, shard.name, t.name });
                return error.UnexpectedTensor;
            };
            if (at != i) {
                diag.set("{s}: tensor \"{s}\" is in two shards", .{ index_path, t.name });
                return error.DuplicateTensor;
            }
        };
    }

    pub fn close(self: *Shards, gpa: Allocator) void {
        for (self.list.items) |*shard| {
            shard.file.deinit();
            shard.mapping.unmap();
        }
        self.list.deinit(gpa);
        if (self.index) |*index| index.deinit();
        self.* = undefined;
    }
};

/// Where a parameter's numbers are: in one tensor, or in codes of MXFP4 and their scales.
pub const Source = struct {
    values: ?*const safetensors.Tensor = null,
    /// Not null: `values` are codes.
    scales: ?*const safetensors.Tensor = null,
};

/// Finds each parameter's tensor. After it every source is set, of the right shape, and nothing is left over.
pub fn match(
    gpa: Allocator,
    layout: *const arch.Layout,
    shards: []const Shard,
    sources: []Source,
    diag: *Diagnostic,
) MatchError!void {
    var by_name: std.StringHashMapUnmanaged(u32) = .empty;
    defer by_name.deinit(gpa);

    try by_name.ensureTotalCapacity(gpa, @intCast(layout.parameters.len));
    for (layout.parameters, 0..) |p, i| by_name.putAssumeCapacity(p.name, @intCast(i));
    @memset(sources, .{});
    var blocks = try expert_blocks.Blocks.init(gpa, layout);
    defer blocks.deinit(gpa);
    const tied = layout.get(null, .output) == null;
    var tied_head: ?*const safetensors.Tensor = null;
    var unexpected: ?[]const u8 = null;
    var unexpected_count: usize = 0;
    for (shards) |*shard| for (shard.file.tensors) |*t| {
        if (by_name.get(t.name)) |i| {
            if (sources[i].values != null) return twice(t.name, diag);
            sources[i].values = t;
        } else if (blocks.take(t)) |again| {
            if (again) return twice(t.name, diag);
        } else if (tied and std.mem.eql(u8, t.name, "lm_head.weight")) {
            tied_head = t;
        } else if (std.mem.endsWith(u8, t.name, "rotary_emb.inv_freq")) {
            // Old files keep the rotary frequencies; they follow from the configuration.
        } else {
            if (unexpected == null) unexpected = t.name;
            unexpected_count += 1;
        }
    };
    for (layout.parameters, sources, 0..) |*p, *source, i| {
        if (try blocks.sourceOf(p, i, source.values != null, diag)) |pair| {
            source.* = pair;
            continue;
        }
        const t = source.values orelse {
            const hint = if (p.role == .output) ". If the embeddings are tied, config.json should say tie_word_embeddings" else "";
            diag.set("tensor \"{s}\" is missing{s}", .{ p.name, hint });
            return error.MissingTensor;
        };
        if (!std.mem.eql(usize, t.shape, p.dims())) {
            diag.set("tensor \"{s}\" has shape {any}; config.json asks for {any}", .{ p.name, t.shape, p.dims() });
            return error.WrongShape;
        }
        if (!t.dtype.isFloat()) {
            diag.set("tensor \"{s}\" has type {s}; weights must be F32, F16, BF16 or F64", .{ p.name, t.dtype.label() });
            return error.WrongDType;
        }
    }
    if (unexpected) |name| {
        diag.set("tensor \"{s}\" belongs to no parameter of this model ({d} such). Is config.json the right one?", .{ name, unexpected_count });
        return error.UnexpectedTensor;
    }
    if (tied_head) |head| {
        const embedding = sources[0].values.?; // The layout begins with the token embedding.
        if (head.dtype != embedding.dtype or !std.mem.eql(u8, head.bytes, embedding.bytes)) {
            diag.set("\"lm_head.weight\" differs from the embeddings, but config.json ties them. " ++
                "Set tie_word_embeddings to false to keep the head", .{});
            return error.TiedHeadDiffers;
        }
    }
}

fn twice(name: []const u8, diag: *Diagnostic) MatchError {
    diag.set("tensor \"{s}\" is there twice", .{name});
    return error.DuplicateTensor;
}

/// Position of the first NaN or infinity.
pub fn firstNonFinite(comptime T: type, values: []const T) ?usize {
    const lanes = 16;
    const V = @Vector(lanes, T);
    const limit: V = @splat(std.math.floatMax(T));
    var i: usize = 0;
    while (i + lanes <= values.len) : (i += lanes) {
        const v: V = values[i..][0..lanes].*;
        if (!@reduce(.And, @abs(v) <= limit)) break;
    }
    while (i < values.len) : (i += 1) if (!std.math.isFinite(values[i])) return i;
    return null;
}

test {
    _ = gguf_model;
    _ = expert_blocks;
    _ = @import("model_file_test.zig");
}

test "the first value that is no number is found at every place" {
    var values: [70]f32 = undefined;
    for (&values, 0..) |*v, i| v.* = @floatFromInt(i);
    values[3] = std.math.floatMax(f32);
    try std.testing.expectEqual(null, firstNonFinite(f32, &values));
    for (0..values.len) |i| for ([_]f32{ std.math.nan(f32), std.math.inf(f32), -std.math.inf(f32) }) |bad| {
        const saved = values[i];
        values[i] = bad;
        try std.testing.expectEqual(i, firstNonFinite(f32, &values).?);
        values[i] = saved;
    };
}
