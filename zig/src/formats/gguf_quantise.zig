//! A GGUF file into another of a coarser type: as llama.cpp's quantiser writes it, to the byte.
//!
//! Keys are copied, tensors stand in llama.cpp's order, each is read where it is mapped and written in pieces: memory stays at a few MB.
//! The size is known and compared with the free space before the first byte; the file is read back before it gets its
//! name. With `mix` null nothing is converted: joining parts is that, and splitting is that a few tensors at a time.
//! Does not know: how blocks are made, which type a mix means, where importance comes from.

const std = @import("std");
const base = @import("base");
const tensor = @import("tensor");
const quant = @import("quant");
const gguf = @import("gguf.zig");
const gguf_mix = @import("gguf_mix.zig");
const gguf_parts = @import("gguf_parts.zig");
const gguf_writer = @import("gguf_writer.zig");
const imatrix = @import("imatrix.zig");
const row_writer = @import("row_writer.zig");
const Allocator = std.mem.Allocator;
const DType = tensor.DType;
const Diagnostic = base.Diagnostic;
const Storage = base.storage.Storage;
const printable = base.bytes.printable;

pub const Options = struct {
    /// Null copies every tensor as it is.
    mix: ?gguf_mix.Mix,
    /// Every matrix gets the mix's base type, or what its rows fit.
    pure: bool = false,
    /// Instead of the mix's choice for `output.weight` and for the embedding.
    output_type: ?DType = null,
    embedding_type: ?DType = null,
    /// `output.weight` stays as it is.
    leave_output: bool = false,
    /// Take a source that is stored in blocks already, although it loses twice.
    allow_requantize: bool = false,
    importance: ?Importance = null,
    pool: ?*base.Pool = null,
};

pub const Importance = struct {
    matrix: *const imatrix.Importance,
    /// The file's name, for `quantize.imatrix.file`.
    path: []const u8,
};

/// Which tensors of the source, by their place in the order of writing, go into a file, and what it says of itself.
pub const Part = struct { index: u16, count: u16, first: usize, end: usize };

pub const Report = struct {
    bytes: u64,
    /// Of the tensors' data in the source.
    source_bytes: u64,
    elements: u64,
    tensors: usize,
    /// Matrices whose rows did not fit the type meant for them.
    fallbacks: usize,
};

pub const Error = gguf_parts.Error || gguf_writer.Error || error{
    /// A tensor stored in blocks would be rounded a second time.
    Requantized,
    /// A type that cannot be expanded.
    UnsupportedTensorType,
    /// The importance matrix is of another model.
    WrongImportance,
    /// NaN, infinity, or a number beyond the type's range.
    NotFinite,
    NotEnoughSpace,
    /// What was read back is not what was written.
    VerificationFailed,
};

/// What will be written: keys, tensors, sizes. Views of `source` and `options`, which must outlive it.
pub const Plan = struct {
    arena: std.heap.ArenaAllocator,
    source: *const gguf_parts.Parts,
    options: Options,
    tensors: []const Planned,
    fallbacks: usize,

    pub const Planned = struct { from: gguf_parts.Tensor, dtype: DType, importance: ?row_writer.Importance };

    /// Decides about every tensor. On error `diag` names the tensor; nothing is written yet.
    pub fn init(gpa: Allocator, source: *const gguf_parts.Parts, options: Options, diag: *Diagnostic) Error!Plan {
        var self: Plan = .{ .arena = .init(gpa), .source = source, .options = options, .tensors = &.{}, .fallbacks = 0 };
        errdefer self.arena.deinit();

        const tensors = try self.arena.allocator().alloc(Planned, source.tensors.len);
        for (tensors, source.tensors) |*planned, from| planned.* = .{ .from = from, .dtype = from.info.dtype, .importance = null };
        if (options.mix != null) {
            std.mem.sort(Planned, tensors, {}, struct {
                fn before(_: void, a: Planned, b: Planned) bool {
                    return gguf_mix.comesBefore(a.from.info.name, b.from.info.name);
                }
            }.before);
            try self.choose(tensors, diag);
        }
        self.tensors = tensors;
        return self;
    }

    pub fn deinit(self: *Plan) void {
        self.arena.deinit();
        self.* = undefined;
    }

    fn choose(self: *Plan, tensors: []Planned, diag: *Diagnostic) Error!void {
        const options = self.options;
        const mix = options.mix.?;
        var chooser: gguf_mix.Chooser = .{ .mix = mix, .pure = options.pure, .model = try describe(self.source, options.importance != null, diag) };
        for (tensors) |*planned| {
            const info = planned.from.info;
            planned.dtype = chooser.choose(info.name, info.ne, info.dtype);
            const quantizes = gguf_mix.canQuantize(info.name, info.ne);
            if (quantizes) {
                const is_output = std.mem.eql(u8, info.name, "output.weight");
                if (is_output) if (options.output_type) |wanted| {
                    planned.dtype = gguf_mix.fitting(wanted, info.ne[0]);
                };
                if (std.mem.eql(u8, info.name, "token_embd.weight")) if (options.embedding_type) |wanted| {
                    planned.dtype = gguf_mix.fitting(wanted, info.ne[0]);
                };
                if (is_output and options.leave_output) planned.dtype = info.dtype;
            }
            if (planned.dtype == info.dtype) continue;
            if (planned.dtype.isQuantized() and info.ne[0] % mix.baseType().blockLen() != 0) self.fallbacks += 1;
            if (!tensor.blocks.canDequantize(info.dtype)) {
                diag.set("tensor {f} is stored as {s}, which cannot be expanded here. Start from the f16, bf16 or f32 file it was made of", .{ printable(info.name), info.dtype.label() });
                return error.UnsupportedTensorType;
            }
            if (info.dtype.isQuantized() and !options.allow_requantize) {
                diag.set("tensor {f} is stored as {s} already, and making {s} of it rounds a second time. Start from the f16, bf16 or f32 file, or pass --allow-requantize", .{ printable(info.name), info.dtype.label(), planned.dtype.label() });
                return error.Requantized;
            }
            planned.importance = try self.importanceOf(planned, diag);
        }
    }

    fn importanceOf(self: *const Plan, planned: *const Planned, diag: *Diagnostic) Error!?row_writer.Importance {
        const importance = self.options.importance orelse return null;
        const info = planned.from.info;
        if (!quant.canWeigh(planned.dtype)) return null;
        const values = importance.matrix.importanceOf(info.name) orelse return null;
        const wanted = info.ne[0] * info.ne[2];
        if (values.len == wanted) return .{ .values = values, .rows_of_matrix = info.ne[1] };
        if (std.mem.eql(u8, info.name, "token_embd.weight")) return null; // Collected as the head's, whose input is another.
        diag.set("{s} has {d} numbers for tensor {f}, which has {d} columns: it was collected on another model", .{ importance.path, values.len, printable(info.name), wanted });
        return error.WrongImportance;
    }

    /// Keys and tensor descriptions of the whole, or of one part of it. Caller calls `deinit`.
    pub fn header(self: *const Plan, gpa: Allocator, part: ?Part) gguf_writer.Error!gguf_writer.Header {
        var result: gguf_writer.Header = .init(gpa);
        errdefer result.deinit();

        const first_part = part == null or part.?.index == 0;
        if (first_part) for (self.source.first().key_values) |entry| {
            if (self.isReplaced(entry.key)) continue;
            try result.putValue(entry.key, entry.value);
        };
        if (self.options.mix) |mix| {
            try result.put(u32, "general.quantization_version", 2);
            try result.put(u32, "general.file_type", mix.fileType());
        }
        if (self.options.importance) |importance| {
            const m = importance.matrix;
            try result.put([]const u8, "quantize.imatrix.file", cut(importance.path));
            if (m.datasets.len > 0) try result.put([]const u8, "quantize.imatrix.dataset", cut(m.datasets[0]));
            try result.put(u32, "quantize.imatrix.entries_count", @intCast(m.entries.count()));
            if (m.chunk_count > 0) try result.put(u32, "quantize.imatrix.chunks_count", m.chunk_count);
        }
        if (part) |p| {
            try result.put(u16, gguf_parts.split_keys.number, p.index);
            try result.put(u16, gguf_parts.split_keys.count, p.count);
            try result.put(i32, gguf_parts.split_keys.tensors, std.math.cast(i32, self.tensors.len) orelse return error.FileTooLarge);
        }
        for (self.slice(part)) |planned| {
            const info = planned.from.info;
            var dims: [gguf.limits.dimensions]usize = undefined;
            var rank: usize = 1;
            for (info.ne, 1..) |n, r| if (n > 1) {
                rank = r;
            };
            for (0..rank) |i| dims[i] = info.ne[rank - 1 - i];
            try result.addTensor(info.name, planned.dtype, dims[0..rank]);
        }
        return result;
    }

    fn isReplaced(self: *const Plan, key: []const u8) bool {
        const always = [_][]const u8{ gguf_parts.split_keys.number, gguf_parts.split_keys.count, gguf_parts.split_keys.tensors, "general.alignment" };
        for (always) |known| if (std.mem.eql(u8, key, known)) return true;
        if (self.options.mix != null) for ([_][]const u8{ "general.quantization_version", "general.file_type" }) |known| {
            if (std.mem.eql(u8, key, known)) return true;
        };
        if (self.options.importance != null) return std.mem.startsWith(u8, key, "quantize.imatrix.");
        return false;
    }

    pub fn slice(self: *const Plan, part: ?Part) []const Planned {
        return if (part) |p| self.tensors[p.first..p.end] else self.tensors;
    }

    /// Bytes of the file that `write` would make.
    pub fn fileBytes(self: *const Plan, gpa: Allocator, part: ?Part) gguf_writer.Error!u64 {
        var h = try self.header(gpa, part);
        defer h.deinit();

        return h.fileBytes();
    }

    /// Writes the file over the real disk, or nothing under its name.
    pub fn write(self: *const Plan, gpa: Allocator, io: std.Io, out_path: []const u8, part: ?Part, diag: *Diagnostic) Error!Report {
        var disk: base.storage.Disk = .init(io);
        return self.writeOn(gpa, disk.storage(), base.freeBytes(base.storage.parentOf(out_path)), true, out_path, part, diag);
    }

    pub fn writeOn(self: *const Plan, gpa: Allocator, storage: Storage, free: ?u64, pages_can_go: bool, out_path: []const u8, part: ?Part, diag: *Diagnostic) Error!Report {
        var h = try self.header(gpa, part);
        defer h.deinit();

        const size = try h.fileBytes();
        if (free) |available| if (size > available) {
            diag.set("{s} will have {d} bytes, but only {d} are free there. Free some space, choose another folder or a smaller type", .{ out_path, size, available });
            return error.NotEnoughSpace;
        };
        var report: Report = .{ .bytes = size, .source_bytes = 0, .elements = 0, .tensors = h.tensors.items.len, .fallbacks = self.fallbacks };
        var longest: usize = 1;
        for (self.slice(part)) |planned| {
            longest = @max(longest, planned.from.info.ne[0]);
            report.source_bytes += planned.from.info.data.len;
            report.elements += planned.from.info.len();
        }
        var writer: row_writer.RowWriter = try .init(gpa, self.options.pool, longest, longest * 4);
        defer writer.deinit(gpa);

        var buffer: [1 << 16]u8 = undefined;
        var file = base.storage.AtomicFile.create(gpa, storage, out_path, &buffer) catch |err| return explain(diag, err, out_path);
        defer file.deinit();

        self.writeTo(&file.writer.interface, &h, &writer, pages_can_go, part, diag) catch |err| switch (err) {
            error.WriteFailed => return explain(diag, file.writer.cause(), out_path),
            error.NotFinite => return error.NotFinite,
        };
        _ = file.finish() catch |err| return explain(diag, err, out_path);
        try verify(gpa, &file, &h, size, diag);
        file.commit() catch |err| return explain(diag, err, out_path);
        return report;
    }

    fn writeTo(self: *const Plan, out: *std.Io.Writer, h: *const gguf_writer.Header, writer: *row_writer.RowWriter, pages_can_go: bool, part: ?Part, diag: *Diagnostic) row_writer.Error!void {
        try h.write(out);
        var stream: gguf_writer.Stream = .init(h, out);
        for (self.slice(part)) |planned| {
            const info = planned.from.info;
            if (planned.dtype == info.dtype) {
                try copy(&stream, info, diag);
            } else {
                const from: Rows = .{ .info = info, .row_bytes = info.data.len / (info.len() / info.ne[0]) };
                writer.writeTensor(&stream, info.ne[0], .{ .context = &from, .read = Rows.read }, planned.importance) catch |err| {
                    if (err == error.NotFinite) diag.set("tensor {f} has a value that is not finite in {s}: NaN, infinity, or too large. Choose bf16 if only the range is at fault", .{ printable(info.name), planned.dtype.label() });
                    return err;
                };
            }
            if (pages_can_go) forgetPages(info.data);
        }
        stream.finish();
    }
};

/// llama.cpp has 127 bytes for such a text.
fn cut(text: []const u8) []const u8 {
    return text[0..@min(text.len, 127)];
}

fn explain(diag: *Diagnostic, err: base.storage.Error, path: []const u8) base.storage.Error {
    base.storage.explain(diag, err, "write", path);
    return err;
}

/// A tensor that stays as it is, after a look at its numbers.
fn copy(stream: *gguf_writer.Stream, info: *const gguf.TensorInfo, diag: *Diagnostic) row_writer.Error!void {
    const step = (8 << 20) / info.dtype.blockBytes() * info.dtype.blockBytes();
    var done: usize = 0;
    while (done < info.data.len) {
        const piece = info.data[done..@min(done + step, info.data.len)];
        if (tensor.blocks.canDequantize(info.dtype)) if (!(tensor.blocks.allFinite(info.dtype, piece) catch unreachable)) {
            diag.set("tensor {f} of the source has a value that is no number. Check how the file was made", .{printable(info.name)});
            return error.NotFinite;
        };
        try stream.write(piece);
        done += piece.len;
    }
}

const Rows = struct {
    info: *const gguf.TensorInfo,
    row_bytes: usize,

    fn read(context: *const anyopaque, first: usize, out: []f32) void {
        const self: *const Rows = @ptrCast(@alignCast(context));
        const rows = out.len / self.info.ne[0];
        quant.expand(self.info.dtype, self.info.data[first * self.row_bytes ..][0 .. rows * self.row_bytes], out) catch unreachable; // Checked when planned.
    }
};

/// What was read once and will not be read again need not count as this program's memory.
fn forgetPages(bytes: []const u8) void {
    const page = std.heap.pageSize();
    const start = std.mem.alignForward(usize, @intFromPtr(bytes.ptr), page);
    const end = std.mem.alignBackward(usize, @intFromPtr(bytes.ptr) + bytes.len, page);
    if (start >= end) return;
    const pages: [*]align(std.heap.page_size_min) u8 = @ptrFromInt(start);
    std.posix.madvise(pages, end - start, std.posix.MADV.DONTNEED) catch {}; // A hint: memory is the only loss.
}

fn verify(gpa: Allocator, file: *base.storage.AtomicFile, header: *const gguf_writer.Header, size: u64, diag: *Diagnostic) Error!void {
    var mapping = file.map() catch |err| return explain(diag, err, file.final_path);
    defer mapping.unmap();

    var back = gguf.File.parse(gpa, mapping.bytes, diag) catch |err| {
        if (err == error.OutOfMemory) return error.OutOfMemory;
        diag.prepend("the written file cannot be read back, nothing was kept: ", .{});
        return error.VerificationFailed;
    };
    defer back.deinit();

    const same = mapping.bytes.len == size and back.tensors.len == header.tensors.items.len and back.key_values.len == header.key_count;
    if (same) for (back.tensors, header.tensors.items) |info, planned| {
        if (info.dtype != planned.dtype or info.data.len != planned.bytes or !std.mem.eql(u8, info.name, planned.name)) break;
    } else return;
    diag.set("the written file is not what was written; nothing was kept. Check the disk", .{});
    return error.VerificationFailed;
}

/// The facts the choice of types depends on, from the file's keys and names.
fn describe(source: *const gguf_parts.Parts, has_importance: bool, diag: *Diagnostic) Error!gguf_mix.Model {
    const file = source.first();
    const architecture = try file.require([]const u8, "general.architecture", diag);
    const layers = try number(file, architecture, "block_count") orelse 0;
    var model: gguf_mix.Model = .{
        .layers = layers,
        .experts = try number(file, architecture, "expert_count") orelse 0,
        .has_output = false,
        .value_tensors = 0,
        .has_importance = has_importance,
    };
    for (source.tensors) |t| {
        if (std.mem.eql(u8, t.info.name, "output.weight")) model.has_output = true;
        if (gguf_mix.isValue(t.info.name)) model.value_tensors += 1;
    }
    const heads = try number(file, architecture, "attention.head_count") orelse 0;
    const shared = try number(file, architecture, "attention.head_count_kv") orelse heads;
    const large = std.mem.eql(u8, architecture, "llama") or std.mem.eql(u8, architecture, "qwen2");
    model.is_70b = large and layers == 80 and shared != heads;
    return model;
}

/// `architecture.key`; null where it is missing or no plain number, as for models whose layers differ.
fn number(file: *const gguf.File, architecture: []const u8, key: []const u8) Error!?usize {
    var buffer: [256]u8 = undefined;
    const name = std.fmt.bufPrint(&buffer, "{s}.{s}", .{ architecture, key }) catch return null;
    return switch (file.get(name) orelse return null) {
        .u32 => |n| n,
        else => null,
    };
}

test {
    _ = @import("gguf_quantise_test.zig");
}
