//! A LoRA adapter as a GGUF file that llama.cpp and Ollama put on a base model: from a PEFT folder.
//!
//! Tensors are PEFT's A and B under the base tensor's GGUF name, rows of q and k of a llama moved as the base's are, an
//! embedding's A turned. Of experts each tensor of the file has a pair of its own, [expert, …], A being the same for gate and up. GGUF has one alpha for all modules and divides it by each module's rank; where PEFT scales otherwise
//! (rsLoRA with several ranks, alphas by module) the rest of the scale is multiplied into B, in f32 with one rounding.
//! What llama.cpp cannot apply is refused with the reason before a byte is written. Does not know: merging, training.

const std = @import("std");
const base = @import("base");
const tensor = @import("tensor");
const arch = @import("arch");
const quant = @import("quant");
const adapter_config = @import("adapter_config.zig");
const gguf = @import("gguf.zig");
const gguf_config = @import("gguf_config.zig");
const gguf_writer = @import("gguf_writer.zig");
const hf_config = @import("hf_config.zig");
const name_map = @import("name_map.zig");
const safetensors = @import("safetensors.zig");
const Allocator = std.mem.Allocator;
const DType = tensor.DType;
const Diagnostic = base.Diagnostic;
const Storage = base.storage.Storage;
const printable = base.bytes.printable;

pub const config_name = "adapter_config.json";
pub const tensors_name = "adapter_model.safetensors";

pub const Options = struct {
    /// A PEFT folder: `adapter_config.json` and `adapter_model.safetensors`.
    adapter: []const u8,
    /// The base model: a folder with `config.json`, or a .gguf file. Null: `config.json` of the adapter's folder, else
    /// `base_model_name_or_path` where that is a path. Only the configuration is read.
    model: ?[]const u8 = null,
    out_path: []const u8,
    /// f32, f16 or bf16.
    dtype: DType = .f32,
    /// `general.name`; null = the last part of the adapter's path.
    name: ?[]const u8 = null,
};

pub const Report = struct {
    bytes: u64,
    tensors: usize,
    /// `adapter.lora.alpha`.
    alpha: f32,
    /// Modules whose B carries a part of the scale.
    folded: usize,
};

pub const Error = adapter_config.Error || hf_config.Error || safetensors.Error || gguf.Error || gguf_config.Error || gguf_writer.Error ||
    arch.LoraSettings.Error || base.storage.Error || error{
    /// The folder holds no adapter, or its base is not known.
    NotAnAdapter,
    UnexpectedTensor,
    WrongTensorShape,
    UnsupportedTensorType,
    NotFinite,
    VerificationFailed,
};

pub fn exportAdapter(gpa: Allocator, io: std.Io, options: Options, diag: *Diagnostic) Error!Report {
    var disk: base.storage.Disk = .init(io);
    return run(gpa, disk.storage(), options, diag);
}

/// The same over any storage. On error `diag` says what and where; nothing is left under `out_path`.
pub fn run(gpa: Allocator, storage: Storage, options: Options, diag: *Diagnostic) Error!Report {
    switch (options.dtype) {
        .f32, .f16, .bf16 => {},
        else => {
            diag.set("type {s} cannot be written for an adapter; f32, f16 and bf16 can", .{options.dtype.label()});
            return error.UnsupportedTensorType;
        },
    }
    var arena: std.heap.ArenaAllocator = .init(gpa);
    defer arena.deinit();

    var described = try readDescription(arena.allocator(), storage, options.adapter, diag);
    const config = try readModelConfig(gpa, storage, options, described, diag);
    try name_map.checkExpressible(config, diag);
    var layout = try arch.Layout.init(gpa, config);
    defer layout.deinit();

    const path = try base.storage.join(arena.allocator(), options.adapter, tensors_name);
    var mapping = storage.map(path) catch |err| {
        if (err == error.FileNotFound) {
            diag.set("{s} has no {s}. Adapters in pickle files (.bin) are not read: save it as safetensors with PEFT", .{ options.adapter, tensors_name });
            return error.NotAnAdapter;
        }
        base.storage.explain(diag, err, "read", path);
        return err;
    };
    defer mapping.unmap();

    if (described.by_tensors) {
        var file = safetensors.parse(gpa, mapping.bytes, diag) catch |err| {
            if (err != error.OutOfMemory) diag.prepend("{s}: ", .{path});
            return err;
        };
        defer file.deinit();

        try described.nameModules(arena.allocator(), file.tensors, layout.layerCount());
    }
    var adapter = described.settings.layoutFor(gpa, &layout, diag) catch |err| {
        if (err == error.InvalidAdapter) diag.prepend("{s}/{s}: ", .{ options.adapter, config_name });
        return err;
    };
    defer adapter.deinit();

    try refuseInexpressible(config, &adapter, diag);
    return write(gpa, storage, options, described, config, &adapter, mapping.bytes, path, diag);
}

fn readDescription(arena: Allocator, storage: Storage, folder: []const u8, diag: *Diagnostic) Error!adapter_config.AdapterConfig {
    const path = try base.storage.join(arena, folder, config_name);
    const text = storage.readAlloc(arena, path) catch |err| {
        if (err == error.FileNotFound or err == error.NotDir) {
            diag.set("{s} has no {s}, so it is no adapter folder. For a whole model leave out the adapter option", .{ folder, config_name });
            return error.NotAnAdapter;
        }
        base.storage.explain(diag, err, "read", path);
        return err;
    };
    return adapter_config.parse(arena, text, diag) catch |err| {
        if (err != error.OutOfMemory) diag.prepend("{s}: ", .{path});
        return err;
    };
}

/// The configuration of the model the adapter belongs to.
fn readModelConfig(gpa: Allocator, storage: Storage, options: Options, described: adapter_config.AdapterConfig, diag: *Diagnostic) Error!arch.ModelConfig {
    if (options.model) |path| return try configAt(gpa, storage, path, diag) orelse {
        diag.set("{s} is no model: neither a folder with config.json nor a .gguf file", .{path});
        return error.NotAnAdapter;
    };
    if (try configAt(gpa, storage, options.adapter, diag)) |config| return config;
    if (described.base_model_name_or_path) |path| if (try configAt(gpa, storage, path, diag)) |config| return config;
    diag.set("{s}: the base model's configuration is needed for names and row orders, but the folder has no config.json and " ++
        "base_model_name_or_path is {f}, which is no folder here. Name the base model's folder or .gguf file", .{ options.adapter, printable(described.base_model_name_or_path orelse "null") });
    return error.NotAnAdapter;
}

/// The configuration of the model at `path`; null where there is none of either kind.
pub fn configAt(gpa: Allocator, storage: Storage, path: []const u8, diag: *Diagnostic) Error!?arch.ModelConfig {
    const kind = storage.kind(path) catch return null; // A hub's name is no path; whatever is wrong with it, no file is there.
    if (kind == .file and std.ascii.endsWithIgnoreCase(path, ".gguf")) {
        var mapping = storage.map(path) catch |err| {
            base.storage.explain(diag, err, "read", path);
            return err;
        };
        defer mapping.unmap();

        return configOfGguf(gpa, mapping.bytes, diag) catch |err| {
            if (err != error.OutOfMemory) diag.prepend("{s}: ", .{path});
            return err;
        };
    }
    if (kind != .folder) return null;
    const file = try base.storage.join(gpa, path, "config.json");
    defer gpa.free(file);

    const text = storage.readAlloc(gpa, file) catch |err| {
        if (err == error.FileNotFound) return null;
        base.storage.explain(diag, err, "read", file);
        return err;
    };
    defer gpa.free(text);

    return hf_config.parse(gpa, text, diag) catch |err| {
        if (err != error.OutOfMemory) diag.prepend("{s}: ", .{file});
        return err;
    };
}

fn configOfGguf(gpa: Allocator, bytes: []const u8, diag: *Diagnostic) Error!arch.ModelConfig {
    var file = try gguf.File.parse(gpa, bytes, diag);
    defer file.deinit();

    return (try gguf_config.read(&file, diag)).config;
}

/// What PEFT computes and llama.cpp has no place for.
fn refuseInexpressible(config: arch.ModelConfig, adapter: *const arch.AdapterLayout, diag: *Diagnostic) Error!void {
    if (!config.tie_word_embeddings) return;
    if (adapter.get(null, .lm_head) != null) {
        diag.set("the adapter changes lm_head of a model whose head is its embedding: a GGUF of it has no output.weight to put an " ++
            "adapter on. Merge the adapter into an untied model and export that", .{});
        return error.NotExpressible;
    }
    if (adapter.get(null, .embed_tokens) != null) {
        diag.set("the adapter changes embed_tokens of a model whose head is its embedding: llama.cpp would put the same adapter on " ++
            "the head, where PEFT has none, and stop. Merge the adapter into an untied model and export that", .{});
        return error.NotExpressible;
    }
}

fn write(
    gpa: Allocator,
    storage: Storage,
    options: Options,
    described: adapter_config.AdapterConfig,
    config: arch.ModelConfig,
    adapter: *const arch.AdapterLayout,
    raw: []const u8,
    path: []const u8,
    diag: *Diagnostic,
) Error!Report {
    var file = safetensors.parse(gpa, raw, diag) catch |err| {
        if (err != error.OutOfMemory) diag.prepend("{s}: ", .{path});
        return err;
    };
    defer file.deinit();

    match(&file, adapter, diag) catch |err| {
        diag.prepend("{s}: ", .{path});
        return err;
    };
    const scale = commonAlpha(adapter);
    const architecture: name_map.Architecture = .of(config.model_type);
    var header: gguf_writer.Header = .init(gpa);
    defer header.deinit();

    try header.put([]const u8, "general.architecture", @tagName(architecture));
    try header.put([]const u8, "general.type", "adapter");
    try header.put([]const u8, "general.name", options.name orelse nameOf(options.adapter));
    if (described.base_model_name_or_path) |name| if (name.len > 0) {
        try header.put(u32, "general.base_model.count", 1);
        try header.put([]const u8, "general.base_model.0.name", name);
    };
    if (options.dtype.ggufFileType()) |id| try header.put(u32, "general.file_type", id);
    try header.put([]const u8, "adapter.type", "lora");
    try header.put(f32, "adapter.lora.alpha", scale.alpha);
    var buffer: [80]u8 = undefined;
    for (adapter.modules) |*module| for (name_map.parts(module.target.role())) |part| for ([_]Half{ .a, .b }) |half| {
        var name: name_map.NameBuffer = undefined;
        const place: name_map.Place = .{ .layer = module.layer, .role = module.target.role(), .part = part };
        const whole = std.mem.print(&buffer, "{s}{s}", .{ name_map.ggufName(&name, architecture, place), half.ending() }) catch unreachable; // 64 + 7 < 80.
        try header.addTensor(whole, options.dtype, storedShape(module, part, half).dims());
    };

    var io_buffer: [1 << 16]u8 = undefined;
    var out = base.storage.AtomicFile.create(gpa, storage, options.out_path, &io_buffer) catch |err| return explain(diag, err, options.out_path);
    defer out.deinit();

    writeTensors(gpa, &out.writer.interface, &header, &file, adapter, architecture, config.head_dim, scale.alpha, diag) catch |err| switch (err) {
        error.WriteFailed => return explain(diag, out.writer.cause(), options.out_path),
        error.NotFinite => {
            diag.prepend("{s}: ", .{path});
            return error.NotFinite;
        },
        error.OutOfMemory => return error.OutOfMemory,
    };
    _ = out.finish() catch |err| return explain(diag, err, options.out_path);
    const size = try header.fileBytes();
    try verify(gpa, &out, size, header.tensors.items.len, diag);
    out.commit() catch |err| return explain(diag, err, options.out_path);
    return .{ .bytes = size, .tensors = header.tensors.items.len, .alpha = scale.alpha, .folded = scale.folded };
}

fn explain(diag: *Diagnostic, err: base.storage.Error, path: []const u8) base.storage.Error {
    base.storage.explain(diag, err, "write", path);
    return err;
}

fn nameOf(folder: []const u8) []const u8 {
    const name = std.fs.path.basename(folder);
    return if (name.len > 0 and std.unicode.utf8ValidateSlice(name)) name else "abi_train";
}

/// Every parameter there, of its shape, floats; nothing else but frozen copies of what lies under an adapter.
fn match(file: *const safetensors.File, adapter: *const arch.AdapterLayout, diag: *Diagnostic) Error!void {
    for (adapter.parameters) |*p| {
        const t = file.find(p.name) orelse {
            diag.set("tensor \"{s}\" is missing, though " ++ config_name ++ " targets its module", .{p.name});
            return error.MissingTensor;
        };
        if (!std.mem.eql(usize, t.shape, p.dims())) {
            diag.set("tensor \"{s}\" has shape {any}; base model and " ++ config_name ++ " ask for {any}. Does the adapter belong to another base?", .{ p.name, t.shape, p.dims() });
            return error.WrongTensorShape;
        }
        if (!t.dtype.isFloat()) {
            diag.set("tensor \"{s}\" has type {s}; it must hold floats", .{ p.name, t.dtype.label() });
            return error.UnsupportedTensorType;
        }
    }
    for (file.tensors) |t| {
        const known = for (adapter.parameters) |p| {
            if (std.mem.eql(u8, p.name, t.name)) break true;
        } else false;
        if (known or isBaseCopy(adapter, t.name)) continue;
        const reason: []const u8 = if (std.mem.find(u8, t.name, "lora_magnitude_vector") != null)
            "it belongs to DoRA, which GGUF cannot express"
        else if (std.mem.find(u8, t.name, "lora_") == null)
            "it is a whole trained module, and a GGUF adapter holds low-rank pairs only; merge the adapter and export the model"
        else
            "it belongs to no module that " ++ config_name ++ " targets in this model";
        diag.set("tensor \"{s}\" cannot be exported: {s}", .{ t.name, reason });
        return error.UnexpectedTensor;
    }
}

/// PEFT saves the frozen weight beside an adapter on embeddings or head; it is the base's own.
fn isBaseCopy(adapter: *const arch.AdapterLayout, name: []const u8) bool {
    for (adapter.modules) |module| {
        if (module.target.isInLayer() or !std.mem.startsWith(u8, name, arch.adapter.key_prefix)) continue;
        const rest = name[arch.adapter.key_prefix.len..];
        if (std.mem.startsWith(u8, rest, module.path) and std.mem.eql(u8, rest[module.path.len..], ".base_layer.weight")) return true;
    }
    return false;
}

/// The alpha the reader divides by each rank, and how many modules need more than that.
fn commonAlpha(adapter: *const arch.AdapterLayout) struct { alpha: f32, folded: usize } {
    const alpha = alphaOf(&adapter.modules[0]);
    var folded: usize = 0;
    for (adapter.modules) |*module| folded += @intFromBool(@as(f32, @floatCast(alphaOf(module))) != @as(f32, @floatCast(alpha)));
    return .{ .alpha = @floatCast(alpha), .folded = folded };
}

fn alphaOf(module: *const arch.AdapterModule) f64 {
    return module.scale * @as(f64, @floatFromInt(module.rank));
}

pub const Half = enum {
    a,
    b,

    pub fn ending(self: Half) []const u8 {
        return switch (self) {
            .a => ".lora_a",
            .b => ".lora_b",
        };
    }
};

/// Shape of a module's A or B for one of its weight's tensors, in PyTorch's order.
pub fn storedShape(module: *const arch.AdapterModule, part: name_map.Part, half: Half) name_map.Shape {
    if (module.target.isExperts()) return .{ .rank = 3, .sizes = switch (half) {
        .a => .{ module.experts, module.rank, module.in },
        .b => .{ module.experts, part.share(module.out), module.rank },
    } };
    if (half == .b) return .{ .rank = 2, .sizes = .{ module.out, module.rank, 1 } };
    if (module.target == .embed_tokens) return .{ .rank = 2, .sizes = .{ module.in, module.rank, 1 } };
    return .{ .rank = 2, .sizes = .{ module.rank, module.in, 1 } };
}

/// Which element of PEFT's A or B stands at `index` of the tensor. `order`: of the weight's rows.
pub fn sourceOf(module: *const arch.AdapterModule, part: name_map.Part, half: Half, order: name_map.RowOrder, index: usize) usize {
    const rank = module.rank;
    switch (half) {
        .a => {
            if (module.target != .embed_tokens) return index; // Of experts too: PEFT has one below the other.
            return index % rank * module.in + index / rank;
        },
        .b => {
            const row = index / rank;
            if (!module.target.isExperts()) return order.hfRow(row) * rank + index % rank;
            const rows = part.share(module.out);
            return (part.of(row % rows) * rank + index % rank) * module.experts + row / rows;
        },
    }
}

fn writeTensors(
    gpa: Allocator,
    w: *std.Io.Writer,
    header: *const gguf_writer.Header,
    file: *const safetensors.File,
    adapter: *const arch.AdapterLayout,
    architecture: name_map.Architecture,
    head_dim: usize,
    alpha: f32,
    diag: *Diagnostic,
) (std.Io.Writer.Error || error{ NotFinite, OutOfMemory })!void {
    var longest: usize = 0;
    for (adapter.parameters) |p| longest = @max(longest, p.len);
    const values = try gpa.alloc(f32, longest);
    defer gpa.free(values);

    const moved = try gpa.alloc(f32, longest);
    defer gpa.free(moved);

    const bytes = try gpa.alloc(u8, longest * 4);
    defer gpa.free(bytes);

    try header.write(w);
    var stream: gguf_writer.Stream = .init(header, w);
    for (adapter.modules) |*module| {
        const order = name_map.rowOrder(architecture, module.target.role(), head_dim);
        const factor = alphaOf(module) / alpha;
        const exact = @as(f32, @floatCast(alphaOf(module))) == alpha;
        for (name_map.parts(module.target.role())) |part| for ([_]Half{ .a, .b }) |half| {
            const p = if (half == .a) &module.a else &module.b;
            const in = values[0..p.len];
            std.debug.assert(file.find(p.name).?.read(f32, in)); // `match` let only floats through.
            const shape = storedShape(module, part, half);
            const out = moved[0 .. shape.rows() * shape.columns()];
            for (out, 0..) |*o, i| {
                const x = in[sourceOf(module, part, half, order, i)];
                o.* = if (half == .a or exact) x else @floatCast(x * factor);
            }
            const planned = header.tensors.items[stream.current];
            const stored = bytes[0..planned.bytes];
            quant.encode(planned.dtype, out, stored) catch {
                diag.set("tensor \"{s}\" has a value that is not finite in {s}: NaN, infinity, or too large", .{ p.name, planned.dtype.label() });
                return error.NotFinite;
            };
            try stream.write(stored);
        };
    }
    stream.finish();
}

/// Reads the temporary file back before it gets its name.
fn verify(gpa: Allocator, file: *base.storage.AtomicFile, size: u64, tensors: usize, diag: *Diagnostic) Error!void {
    var mapping = file.map() catch |err| return explain(diag, err, file.final_path);
    defer mapping.unmap();

    var back = gguf.File.parse(gpa, mapping.bytes, diag) catch |err| {
        if (err == error.OutOfMemory) return err;
        diag.prepend("the written file cannot be read back, nothing was kept: ", .{});
        return error.VerificationFailed;
    };
    defer back.deinit();

    if (mapping.bytes.len != size or back.tensors.len != tensors) {
        diag.set("the written file has {d} bytes and {d} tensors instead of {d} and {d}; nothing was kept. Check the disk", .{ mapping.bytes.len, back.tensors.len, size, tensors });
        return error.VerificationFailed;
    }
}

test {
    _ = @import("adapter_gguf_test.zig");
}
