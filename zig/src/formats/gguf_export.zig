//! A model as one GGUF file that llama.cpp, Ollama and `abi agent` read.
//!
//! The file's exact size is known and compared with the free space before the first byte. Rows are converted a piece at a time
//! from the mapped source, so memory stays near one piece however large the model. The file is written under a
//! temporary name, read back by the strict reader, then renamed: there is no half file under a final name.
//! Work is divided by rows, so the bytes do not depend on the number of threads. Does not know: training, sampling.

const std = @import("std");
const base = @import("base");
const tensor = @import("tensor");
const arch = @import("arch");
const quant = @import("quant");
const gguf = @import("gguf.zig");
const gguf_config = @import("gguf_config.zig");
const gguf_import = @import("gguf_import.zig");
const gguf_mix = @import("gguf_mix.zig");
const gguf_writer = @import("gguf_writer.zig");
const export_experts = @import("export_experts.zig");
const export_source = @import("export_source.zig");
const export_tokenizer = @import("export_tokenizer.zig");
const name_map = @import("name_map.zig");
const row_writer = @import("row_writer.zig");
const DType = tensor.DType;
const Diagnostic = base.Diagnostic;
const Storage = base.storage.Storage;

pub const Source = export_source.Source;
pub const Delta = export_source.Delta;
pub const Weights = export_source.Weights;

pub const Tokenizer = union(enum) {
    /// The source's own folder; none for weights in memory.
    from_source,
    folder: []const u8,
    /// A file without vocabulary: ids in, ids out.
    none,
};

/// What becomes of experts that the source stores as MXFP4.
pub const Experts = enum {
    /// They stay MXFP4 whatever the others become: to the bit, but for experts that an adapter changes.
    keep,
    /// The same, but a tensor of which an adapter changes an expert is bf16, which holds its other experts exactly.
    changed_as_bf16,
    /// They are expanded, and become what other matrices become.
    expand,
};

pub const Options = struct {
    source: Source,
    out_path: []const u8,
    /// Of all matrices. Norms and biases are f32 always; rows that are not whole blocks get a type they fit.
    dtype: DType = .q8_0,
    /// Instead of `dtype`: each matrix gets the type llama.cpp's quantiser would give it for this name.
    mix: ?gguf_mix.Mix = null,
    experts: Experts = .keep,
    /// `general.name`; null = the last part of the source folder's path, or `abi_train`.
    name: ?[]const u8 = null,
    tokenizer: Tokenizer = .from_source,
    /// Said of the model behind its name: licence, what it was made from.
    about: []const Fact = &.{},
    /// llama.cpp's name for the pre-tokenizer, where its regex is not known.
    pre: ?[]const u8 = null,
    /// Added to the source's numbers on the way: an adapter.
    delta: ?Delta = null,
    /// Converts rows on its threads; null = on this one.
    pool: ?*base.Pool = null,
};

/// A key of `general.` and what it holds.
pub const Fact = struct {
    key: []const u8,
    value: union(enum) { text: []const u8, count: u32 },
};

pub const Report = struct {
    bytes: u64,
    tensors: usize,
    /// As given in the options.
    path: []const u8,
};

pub const Error = export_source.Error || export_tokenizer.Error || gguf_writer.Error || gguf_import.Error || error{
    /// A dtype that cannot be written.
    UnsupportedType,
    /// NaN, infinity, or a number beyond the type's range.
    NotFinite,
    /// What was read back is not what was written.
    VerificationFailed,
    NotEnoughSpace,
};

/// Writes the file over the real disk. On error `diag` says what and where; nothing is left under `out_path`.
pub fn exportGguf(gpa: std.mem.Allocator, io: std.Io, options: Options, diag: *Diagnostic) Error!Report {
    var disk: base.storage.Disk = .init(io);
    const folder = base.storage.parentOf(options.out_path);
    return runOn(gpa, disk.storage(), .{ .free_bytes = base.freeBytes(folder), .pages_can_go = true }, options, diag);
}

/// The exact number of bytes `exportGguf` would write.
pub fn predictSize(gpa: std.mem.Allocator, io: std.Io, options: Options, diag: *Diagnostic) Error!u64 {
    var disk: base.storage.Disk = .init(io);
    const storage = disk.storage();
    var source = try openSource(gpa, storage, options, diag);
    defer source.deinit();

    var header: gguf_writer.Header = .init(gpa);
    defer header.deinit();

    try plan(gpa, storage, options, &source, &header, diag);
    return try header.fileBytes();
}

/// The same over any storage. `free` is the space left, null when unknown.
pub fn run(gpa: std.mem.Allocator, storage: Storage, options: Options, free: ?u64, diag: *Diagnostic) Error!Report {
    return runOn(gpa, storage, .{ .free_bytes = free }, options, diag);
}

const Place = struct {
    free_bytes: ?u64,
    /// The storage maps files through the kernel, so pages of a tensor that is done may be given back.
    pages_can_go: bool = false,
};

fn runOn(gpa: std.mem.Allocator, storage: Storage, where: Place, options: Options, diag: *Diagnostic) Error!Report {
    var source = try openSource(gpa, storage, options, diag);
    defer source.deinit();

    var header: gguf_writer.Header = .init(gpa);
    defer header.deinit();

    try plan(gpa, storage, options, &source, &header, diag);
    const size = try header.fileBytes();
    if (where.free_bytes) |available| if (size > available) {
        diag.set("{s} will have {d} bytes, but only {d} are free there. Free some space, choose another folder, or a smaller type than {s}", .{ options.out_path, size, available, if (options.mix) |mix| @tagName(mix) else options.dtype.label() });
        return error.NotEnoughSpace;
    };

    var buffer: [1 << 16]u8 = undefined;
    var file = base.storage.AtomicFile.create(gpa, storage, options.out_path, &buffer) catch |err| return explain(diag, err, options.out_path);
    defer file.deinit();

    var pieces = try Pieces.init(gpa, &source, &header, options.pool);
    defer pieces.deinit(gpa);

    pieces.pages_can_go = where.pages_can_go and options.source == .folder;

    pieces.writeAll(&file.writer.interface, diag) catch |err| switch (err) {
        error.WriteFailed => return explain(diag, file.writer.cause(), options.out_path),
        error.NotFinite => return error.NotFinite,
    };
    _ = file.finish() catch |err| return explain(diag, err, options.out_path);
    try verify(gpa, &file, size, &source, diag);
    file.commit() catch |err| return explain(diag, err, options.out_path);
    return .{ .bytes = size, .tensors = header.tensors.items.len, .path = options.out_path };
}

fn explain(diag: *Diagnostic, err: base.storage.Error, path: []const u8) base.storage.Error {
    base.storage.explain(diag, err, "write", path);
    return err;
}

fn openSource(gpa: std.mem.Allocator, storage: Storage, options: Options, diag: *Diagnostic) Error!export_source.Opened {
    if (!quant.canEncode(options.dtype)) {
        diag.set("type {s} cannot be written; f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q5_k, q6_k and mxfp4 can", .{options.dtype.label()});
        return error.UnsupportedType;
    }
    var source = try export_source.Opened.open(gpa, storage, options.source, diag);
    errdefer source.deinit();

    try name_map.checkExpressible(source.config, diag);
    source.delta = options.delta;
    return source;
}

/// All keys and tensor descriptions.
fn plan(gpa: std.mem.Allocator, storage: Storage, options: Options, source: *const export_source.Opened, header: *gguf_writer.Header, diag: *Diagnostic) Error!void {
    const config = source.config;
    const architecture: name_map.Architecture = .of(config.model_type);
    try header.put([]const u8, "general.architecture", @tagName(architecture));
    try header.put([]const u8, "general.type", "model");
    try header.put([]const u8, "general.name", options.name orelse nameOf(options.source));
    for (options.about) |fact| switch (fact.value) {
        .text => |text| try header.put([]const u8, fact.key, text),
        .count => |count| try header.put(u32, fact.key, count),
    };
    const base_type = if (options.mix) |mix| mix.baseType() else options.dtype;
    const keeps_blocks = keepsBlocks(options, source);
    // With floats around them, MXFP4 is what the file is about.
    const file_type = if (keeps_blocks and (options.mix == null or !base_type.isQuantized()))
        gguf_mix.Mix.mxfp4_moe.fileType()
    else if (options.mix) |mix| mix.fileType() else options.dtype.ggufFileType();
    if (file_type) |id| try header.put(u32, "general.file_type", id);
    if (base_type.isQuantized() or keeps_blocks) try header.put(u32, "general.quantization_version", 2);
    try gguf_config.write(header, config);

    const folder: ?[]const u8 = switch (options.tokenizer) {
        .none => null,
        .folder => |path| path,
        .from_source => switch (options.source) {
            .folder => |path| path,
            .weights => null,
        },
    };
    if (folder) |path| {
        try export_tokenizer.write(gpa, storage, path, config, .{ .pre = options.pre }, header, diag);
    } else try header.put([]const u8, "tokenizer.ggml.model", "none");

    if (config.rope_scaling == .llama3) try header.addTensor(name_map.rope_divisors, .f32, &.{config.head_dim / 2});
    var buffer: name_map.NameBuffer = undefined;
    var chooser = chooserOf(options.mix orelse .f32, source);
    for (source.layout.parameters, 0..) |*p, index| for (name_map.parts(p.role)) |part| {
        const name = name_map.ggufName(&buffer, architecture, .{ .layer = p.layer, .role = p.role, .part = part });
        const shape = name_map.storedShape(p, part);
        // A matrix of one row is a vector to the chooser, and keeps what it is given here.
        const chosen = if (options.mix == null or name_map.isAlwaysF32(p.role))
            name_map.storedType(p.role, shape.columns(), options.dtype)
        else
            chooser.choose(name, shape.ne(), .f32);
        try header.addTensor(name, keptType(options, source, index) orelse chosen, shape.dims());
    };
}

/// The type of a tensor whose blocks the source has already, or null where it is to be chosen.
fn keptType(options: Options, source: *const export_source.Opened, index: usize) ?DType {
    if (options.experts == .expand or !source.isBlocks(index)) return null;
    if (options.experts == .keep) return .mxfp4;
    for (0..source.layout.parameters[index].count()) |expert| if (source.changesExpert(index, expert)) return .bf16;
    return .mxfp4;
}

fn keepsBlocks(options: Options, source: *const export_source.Opened) bool {
    for (0..source.layout.parameters.len) |index| if (keptType(options, source, index) == .mxfp4) return true;
    return false;
}

/// Parameters of a layout come layer by layer, which is all the chooser's counts ask for: a layer has one tensor of each kind.
fn chooserOf(mix: gguf_mix.Mix, source: *const export_source.Opened) gguf_mix.Chooser {
    const config = source.config;
    return .{ .mix = mix, .model = .{
        .layers = config.num_hidden_layers,
        .experts = config.num_local_experts,
        .has_output = source.layout.get(null, .output) != null,
        .value_tensors = config.num_hidden_layers,
        .is_70b = config.num_hidden_layers == 80 and config.num_attention_heads != config.num_key_value_heads and config.model_type != .qwen3,
    } };
}

fn nameOf(source: Source) []const u8 {
    const path = switch (source) {
        .folder => |path| std.fs.path.basename(path),
        .weights => "",
    };
    return if (path.len > 0 and std.unicode.utf8ValidateSlice(path)) path else "abi_train";
}

/// One tensor after the other, each in pieces of rows.
const Pieces = struct {
    source: *const export_source.Opened,
    header: *const gguf_writer.Header,
    writer: row_writer.RowWriter,
    pages_can_go: bool = false,

    fn init(gpa: std.mem.Allocator, source: *const export_source.Opened, header: *const gguf_writer.Header, pool: ?*base.Pool) error{OutOfMemory}!Pieces {
        var longest: usize = 0;
        for (source.layout.parameters) |*p| for (name_map.parts(p.role)) |part| {
            longest = @max(longest, name_map.storedShape(p, part).columns());
        };
        return .{ .source = source, .header = header, .writer = try .init(gpa, pool, longest, longest * 4) };
    }

    fn deinit(self: *Pieces, gpa: std.mem.Allocator) void {
        self.writer.deinit(gpa);
        self.* = undefined;
    }

    fn writeAll(self: *Pieces, out: *std.Io.Writer, diag: *Diagnostic) row_writer.Error!void {
        try self.header.write(out);
        var stream: gguf_writer.Stream = .init(self.header, out);
        if (self.source.config.rope_scaling == .llama3) {
            var divisors: [arch.config.max_head_dim / 2]f32 = undefined;
            var bytes: [divisors.len * 4]u8 = undefined;
            const used = divisors[0 .. self.source.config.head_dim / 2];
            arch.rope.divisors(self.source.config, used);
            tensor.convert.f32ToF32Bytes(used, bytes[0 .. used.len * 4]);
            try stream.write(bytes[0 .. used.len * 4]);
        }
        for (self.source.layout.parameters, 0..) |*p, index| {
            for (name_map.parts(p.role)) |part| {
                const dtype = self.header.tensors.items[stream.current].dtype;
                self.writeTensor(&stream, p, part, index) catch |err| {
                    if (err == error.NotFinite) diag.set("tensor {s} has a value that is not finite in {s}: NaN, infinity, or too large. Check the training run; if only the range is at fault, export as bf16 or f32", .{ p.name, dtype.label() });
                    return err;
                };
            }
            if (self.pages_can_go) self.source.forgetPages(index);
        }
        stream.finish();
    }

    fn writeTensor(self: *Pieces, stream: *gguf_writer.Stream, p: *const arch.Parameter, part: name_map.Part, index: usize) row_writer.Error!void {
        const planned = self.header.tensors.items[stream.current];
        if (p.role.isExpertWeight() or part != .whole) {
            const from: export_experts.ExpertRows = .init(self.source, index, part);
            return self.writer.writeTensor(stream, from.shape.columns(), from.rows(planned.dtype), null);
        }
        const architecture: name_map.Architecture = .of(self.source.config.model_type);
        const order = name_map.rowOrder(architecture, p.role, self.source.config.head_dim);
        // A permuted bias is rows of one element; any other vector is one row.
        const columns = if (p.rank == 1 and order != .same) 1 else export_source.rowLen(p.*);
        const from: Tensor = .{ .source = self.source, .index = index, .order = order, .columns = columns };
        return self.writer.writeTensor(stream, columns, .{ .context = &from, .read = Tensor.read }, null);
    }
};

/// A parameter's rows in the file's order.
const Tensor = struct {
    source: *const export_source.Opened,
    index: usize,
    order: name_map.RowOrder,
    columns: usize,

    fn read(context: *const anyopaque, first: usize, out: []f32) void {
        const self: *const Tensor = @ptrCast(@alignCast(context));
        if (self.order == .same) return self.source.readElements(self.index, first * self.columns, out);
        for (0..out.len / self.columns) |row| {
            const hf_row = self.order.hfRow(first + row);
            self.source.readElements(self.index, hf_row * self.columns, out[row * self.columns ..][0..self.columns]);
        }
    }
};

/// Reads the temporary file back with the reader everyone will use, before it gets its name.
fn verify(gpa: std.mem.Allocator, file: *base.storage.AtomicFile, size: u64, source: *const export_source.Opened, diag: *Diagnostic) Error!void {
    var mapping = file.map() catch |err| return explain(diag, err, file.final_path);
    defer mapping.unmap();

    if (mapping.bytes.len != size) {
        diag.set("the written file has {d} bytes instead of {d}; nothing was kept. Check the disk", .{ mapping.bytes.len, size });
        return error.VerificationFailed;
    }
    var back = gguf_import.Import.open(gpa, mapping.bytes, diag) catch |err| {
        if (err == error.OutOfMemory) return err;
        diag.prepend("the written file cannot be read back, nothing was kept: ", .{});
        return error.VerificationFailed;
    };
    defer back.deinit();

    if (back.layout.total != source.layout.total) {
        diag.set("the written file has {d} parameters instead of {d}; nothing was kept", .{ back.layout.total, source.layout.total });
        return error.VerificationFailed;
    }
}

test {
    _ = export_experts;
    _ = @import("gguf_export_test.zig");
}
