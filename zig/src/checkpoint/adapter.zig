//! LoRA adapters on disk: PEFT's folder with `adapter_config.json` and `adapter_model.safetensors`, read and written.
//!
//! An adapter is matched against the base it is to sit on before a number is used: modules, ranks, shapes, pairs, and
//! whatever the folder tells of its own base. A first adapter draws each matrix from the seed and its name, so both
//! engines, and any order, give the same bits. Does not know: training, how an adapter computes.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const formats = @import("formats");
const contents = @import("contents.zig");
const folder = @import("folder.zig");
const initialize = @import("initialize.zig");
const model_file = @import("model_file.zig");
const Allocator = std.mem.Allocator;
const Diagnostic = base.Diagnostic;
const Storage = base.storage.Storage;
const safetensors = formats.safetensors;

pub const Error = model_file.Error || formats.adapter_config.Error || error{
    /// The path holds no adapter.
    NotAnAdapter,
    /// Its settings do not fit the model.
    InvalidAdapter,
    /// The folder's own base has another shape, or other embeddings.
    AnotherBase,
};

/// An adapter in memory. `values` is laid out as `layout` says.
pub fn LoadedAdapter(comptime T: type) type {
    return struct {
        /// Owns the settings' names and `base_name`.
        arena: std.heap.ArenaAllocator,
        settings: arch.LoraSettings,
        /// What the file calls its base, if it does.
        base_name: ?[]const u8,
        layout: arch.AdapterLayout,
        values: []align(64) T,

        const Self = @This();

        /// `gpa` is the allocator it was made with.
        pub fn deinit(self: *Self, gpa: Allocator) void {
            gpa.free(self.values);
            self.layout.deinit();
            self.arena.deinit();
            self.* = undefined;
        }
    };
}

/// The model an adapter is to sit on.
pub fn BaseModel(comptime T: type) type {
    return struct {
        config: arch.ModelConfig,
        layout: *const arch.Layout,
        /// Dense weights, or null where the base stays as its file stores it.
        weights: ?[]const T = null,
    };
}

/// Reads the adapter in the folder `path` for `model`. Caller calls `deinit(gpa)`.
pub fn loadAdapter(comptime T: type, gpa: Allocator, io: std.Io, path: []const u8, model: BaseModel(T), diag: *Diagnostic) Error!LoadedAdapter(T) {
    var disk: base.storage.Disk = .init(io);
    return loadAdapterOn(T, gpa, disk.storage(), path, model, diag);
}

pub fn loadAdapterOn(comptime T: type, gpa: Allocator, storage: Storage, path: []const u8, model: BaseModel(T), diag: *Diagnostic) Error!LoadedAdapter(T) {
    try checkSums(gpa, storage, path, diag);
    try checkOwnBase(T, gpa, storage, path, model, diag);
    var arena: std.heap.ArenaAllocator = .init(gpa);
    errdefer arena.deinit();

    var config = try readConfigOn(arena.allocator(), gpa, storage, path, diag);
    const file_path = try base.storage.join(gpa, path, folder.adapter_name);
    defer gpa.free(file_path);

    var mapping = try mapTensors(storage, path, file_path, diag);
    defer mapping.unmap();

    var file = safetensors.parse(gpa, mapping.bytes, diag) catch |err| {
        diag.prepend("{s}: ", .{file_path});
        return err;
    };
    defer file.deinit();

    try config.nameModules(arena.allocator(), file.tensors, model.layout.layerCount());
    var layout = config.settings.layoutFor(gpa, model.layout, diag) catch |err| {
        diag.prepend("{s}/" ++ folder.adapter_config_name ++ ": ", .{path});
        return err;
    };
    errdefer layout.deinit();

    const values = matchAndRead(T, gpa, &file, &layout, model, diag) catch |err| {
        diag.prepend("{s}: ", .{file_path});
        return err;
    };
    return .{ .arena = arena, .settings = config.settings, .base_name = config.base_model_name_or_path, .layout = layout, .values = values };
}

/// What the folder's `adapter_config.json` says. Everything returned lives in `arena`.
pub fn readConfig(arena: Allocator, gpa: Allocator, io: std.Io, path: []const u8, diag: *Diagnostic) Error!formats.adapter_config.AdapterConfig {
    var disk: base.storage.Disk = .init(io);
    return readConfigOn(arena, gpa, disk.storage(), path, diag);
}

fn readConfigOn(arena: Allocator, gpa: Allocator, storage: Storage, path: []const u8, diag: *Diagnostic) Error!formats.adapter_config.AdapterConfig {
    const file = try base.storage.join(gpa, path, folder.adapter_config_name);
    defer gpa.free(file);

    const text = storage.readAlloc(arena, file) catch |err| {
        if (err == error.FileNotFound or err == error.NotDir) {
            diag.set("{s} is no adapter: it has no " ++ folder.adapter_config_name ++ ". Give a folder that PEFT or this program saved", .{path});
            return error.NotAnAdapter;
        }
        base.storage.explain(diag, err, "read", file);
        return err;
    };
    return formats.adapter_config.parse(arena, text, diag) catch |err| {
        diag.prepend("{s}: ", .{file});
        return err;
    };
}

/// Where the folder lists checksums, the adapter's files must match theirs.
fn checkSums(gpa: Allocator, storage: Storage, path: []const u8, diag: *Diagnostic) Error!void {
    var arena: std.heap.ArenaAllocator = .init(gpa);
    defer arena.deinit();

    const sums = try folder.readSums(arena.allocator(), storage, path, diag) orelse return;
    for (sums) |sum| for ([_][]const u8{ folder.adapter_config_name, folder.adapter_name, folder.config_name }) |name| {
        if (std.mem.eql(u8, sum.name, name)) try folder.checkFile(gpa, storage, path, sum, diag);
    };
}

/// A `config.json` beside the adapter is its base's.
fn checkOwnBase(comptime T: type, gpa: Allocator, storage: Storage, path: []const u8, model: BaseModel(T), diag: *Diagnostic) Error!void {
    const file = try base.storage.join(gpa, path, folder.config_name);
    defer gpa.free(file);

    if (try storage.kind(file) == null) return;
    const own = try model_file.readConfig(gpa, storage, path, diag);
    inline for (.{ "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim" }) |name| {
        if (@field(own, name) != @field(model.config, name)) {
            diag.set("{s}: the adapter was made for another base: " ++ name ++ " is {d} there and {d} in this model. " ++
                "Give the model it was made for", .{ path, @field(own, name), @field(model.config, name) });
            return error.AnotherBase;
        }
    }
}

fn mapTensors(storage: Storage, path: []const u8, file_path: []const u8, diag: *Diagnostic) Error!base.storage.Mapping {
    return storage.map(file_path) catch |err| {
        if (err == error.FileNotFound) {
            diag.set("{s} has no " ++ folder.adapter_name ++ ". An adapter as adapter_model.bin is a pickle and is not read: " ++
                "save it with safetensors", .{path});
            return error.NotAnAdapter;
        }
        base.storage.explain(diag, err, "read", file_path);
        return err;
    };
}

fn matchAndRead(comptime T: type, gpa: Allocator, file: *const safetensors.File, layout: *const arch.AdapterLayout, model: BaseModel(T), diag: *Diagnostic) Error![]align(64) T {
    for (layout.modules) |m| {
        const pair = [2]arch.Parameter{ m.a, m.b };
        for (pair, 0..) |p, side| {
            const t = file.find(p.name) orelse {
                const other = file.find(pair[1 - side].name) != null;
                if (other) diag.set("tensor \"{s}\" is missing, though \"{s}\" is there: half an adapter", .{ p.name, pair[1 - side].name }) else diag.set("tensor \"{s}\" is missing; " ++ folder.adapter_config_name ++ " says that {s} has an adapter", .{ p.name, m.path });
                return error.MissingTensor;
            };
            if (!std.mem.eql(usize, t.shape, p.dims())) {
                diag.set("tensor \"{s}\" has shape {any}; {s} of this model with rank {d} asks for {any}. Is it an adapter for another base?", .{ p.name, t.shape, m.path, m.rank, p.dims() });
                return error.WrongShape;
            }
        }
    }
    try checkRest(T, gpa, file, layout, model, diag);
    const values = try gpa.alignedAlloc(T, .@"64", layout.total);
    errdefer gpa.free(values);

    for (layout.parameters) |p| {
        const out = p.slice(T, values);
        const t = file.find(p.name).?;
        if (!t.read(T, out)) {
            diag.set("tensor \"{s}\" has type {s}; adapters must be floats", .{ p.name, t.dtype.label() });
            return error.WrongDType;
        }
        if (model_file.firstNonFinite(T, out)) |at| {
            diag.set("tensor \"{s}\" holds {d} at element {d}. The adapter is damaged or diverged", .{ p.name, out[at], at });
            return error.NonFiniteWeights;
        }
    }
    return values;
}

/// What the file has besides the adapter: nothing, or the embeddings that PEFT likes to keep beside it.
fn checkRest(comptime T: type, gpa: Allocator, file: *const safetensors.File, layout: *const arch.AdapterLayout, model: BaseModel(T), diag: *Diagnostic) Error!void {
    var known: std.StringHashMapUnmanaged(void) = .empty;
    defer known.deinit(gpa);

    for (layout.parameters) |p| try known.put(gpa, p.name, {});
    for (file.tensors) |*t| {
        if (known.contains(t.name)) continue;
        if (keptWeight(layout, model.layout, t.name)) |p| {
            try checkKept(T, gpa, t, p, model, diag);
            continue;
        }
        const words = if (std.mem.find(u8, t.name, "lora_magnitude_vector") != null)
            "DoRA is not computed here"
        else if (std.mem.find(u8, t.name, ".lora_") != null)
            folder.adapter_config_name ++ " does not name its module, or this model has no such module"
        else
            "it is no part of a LoRA adapter; merge the adapter with PEFT first";
        diag.set("tensor \"{s}\": {s}", .{ t.name, words });
        return error.UnexpectedTensor;
    }
}

/// The weight of the base that `name` is a copy of: PEFT keeps embeddings and head beside an adapter on them.
fn keptWeight(layout: *const arch.AdapterLayout, base_layout: *const arch.Layout, name: []const u8) ?*const arch.Parameter {
    for (layout.modules) |m| {
        if (m.target.isInLayer()) continue;
        if (!std.mem.startsWith(u8, name, arch.adapter.key_prefix)) continue;
        const rest = name[arch.adapter.key_prefix.len..];
        if (!std.mem.startsWith(u8, rest, m.path)) continue;
        const end = rest[m.path.len..];
        if (std.mem.eql(u8, end, ".base_layer.weight") or std.mem.eql(u8, end, ".weight")) return m.target.weightOf(base_layout, null);
    }
    return null;
}

fn checkKept(comptime T: type, gpa: Allocator, t: *const safetensors.Tensor, p: *const arch.Parameter, model: BaseModel(T), diag: *Diagnostic) Error!void {
    if (!std.mem.eql(usize, t.shape, p.dims())) {
        diag.set("tensor \"{s}\" has shape {any}; this model has {any}. The adapter was made for another base", .{ t.name, t.shape, p.dims() });
        return error.AnotherBase;
    }
    const weights = model.weights orelse return;
    const copy = try gpa.alloc(T, p.len);
    defer gpa.free(copy);

    if (!t.read(T, copy)) return;
    for (copy, p.sliceConst(T, weights), 0..) |x, y, i| if (x != y) {
        diag.set("tensor \"{s}\" is {d} at element {d}, where this model has {d}. The adapter was made for another base, " ++
            "or its embeddings were changed: merge it with PEFT first", .{ t.name, x, i, y });
        return error.AnotherBase;
    };
}

// ---- a first adapter ----

/// An adapter that changes nothing yet: A uniform in ±1/√in, B zero; embeddings have A zero and B normal, as in PEFT.
/// Caller calls `deinit(gpa)`.
pub fn initAdapter(comptime T: type, gpa: Allocator, base_layout: *const arch.Layout, settings: arch.LoraSettings, seed: u64, diag: *Diagnostic) Error!LoadedAdapter(T) {
    var arena: std.heap.ArenaAllocator = .init(gpa);
    errdefer arena.deinit();

    const own = try copySettings(arena.allocator(), settings);
    var layout = try own.layoutFor(gpa, base_layout, diag);
    errdefer layout.deinit();

    const values = try gpa.alignedAlloc(T, .@"64", layout.total);
    @memset(values, 0);
    for (layout.modules) |m| {
        const embedding = m.target == .embed_tokens;
        const drawn = if (embedding) m.b else m.a;
        var prng: base.Prng = .init(initialize.streamSeed(seed, drawn.name));
        const bound = 1 / @sqrt(@as(f64, @floatFromInt(m.in)));
        for (drawn.slice(T, values)) |*v| v.* = @floatCast(if (embedding) prng.normal() else bound * (2 * prng.uniform() - 1));
    }
    return .{ .arena = arena, .settings = own, .base_name = null, .layout = layout, .values = values };
}

fn copySettings(arena: Allocator, settings: arch.LoraSettings) error{OutOfMemory}!arch.LoraSettings {
    var own = settings;
    const names = try arena.alloc([]const u8, settings.target_modules.len);
    for (names, settings.target_modules) |*to, from| to.* = try arena.dupe(u8, from);
    own.target_modules = names;
    const ranks = try arena.dupe(arch.LoraSettings.Rank, settings.rank_pattern);
    for (ranks) |*item| item.name = try arena.dupe(u8, item.name);
    own.rank_pattern = ranks;
    const alphas = try arena.dupe(arch.LoraSettings.Alpha, settings.alpha_pattern);
    for (alphas) |*item| item.name = try arena.dupe(u8, item.name);
    own.alpha_pattern = alphas;
    return own;
}

// ---- writing ----

/// What a folder with an adapter says of it.
pub fn Contents(comptime T: type) type {
    return struct {
        settings: arch.LoraSettings,
        base_name: ?[]const u8 = null,
        layout: *const arch.AdapterLayout,
        values: []const T,
    };
}

/// Writes the new folder `path`: the adapter, the base's `config.json`, and the tokenizer files of `tokenizer_dir`.
/// It appears whole under its name or not at all; one that exists is refused.
pub fn saveAdapter(
    comptime T: type,
    gpa: Allocator,
    io: std.Io,
    path: []const u8,
    config: arch.ModelConfig,
    adapter: Contents(T),
    tokenizer_dir: ?[]const u8,
    diag: *Diagnostic,
) (Error || error{SizeOverflow})!void {
    var disk: base.storage.Disk = .init(io);
    const storage = disk.storage();
    diag.clear();
    if (contents.findNonFinite(T, adapter.layout.parameters, adapter.values)) |bad| {
        diag.set("\"{s}\" holds a value at element {d} that is not finite; {s} was not written", .{ bad.name, bad.at, path });
        return error.NonFiniteWeights;
    }
    writeAll(T, gpa, storage, path, config, adapter, tokenizer_dir, diag) catch |err| {
        if (diag.text().len == 0) base.storage.explain(diag, err, "write", path);
        return err;
    };
}

fn writeAll(comptime T: type, gpa: Allocator, storage: Storage, path: []const u8, config: arch.ModelConfig, adapter: Contents(T), tokenizer_dir: ?[]const u8, diag: *Diagnostic) (Error || error{SizeOverflow})!void {
    if (try storage.kind(path) != null) return error.AlreadyExists;
    try storage.ensureFolder(base.storage.parentOf(path));
    var target = try base.storage.AtomicFolder.create(gpa, storage, path);
    defer target.deinit();

    _ = try contents.addConfig(T, gpa, &target, config);
    _ = try contents.addAdapterConfig(gpa, &target, adapter.settings, adapter.base_name);
    const digest = try contents.addTensors(T, gpa, &target, folder.adapter_name, adapter.layout.parameters, &.{
        .{ .prefix = "", .values = adapter.values },
    });
    if (tokenizer_dir) |from| for (folder.tokenizer_names) |name| {
        _ = try contents.addCopy(gpa, storage, &target, from, name, diag);
    };
    try target.seal();
    try folder.checkFile(gpa, storage, target.temporary_path, folder.sumOf(folder.adapter_name, digest), diag);
    try target.commit();
}

test {
    _ = @import("adapter_test.zig");
}
