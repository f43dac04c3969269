//! A GGUF file as a Hugging Face folder: what transformers opens, and what this project trains from.
//!
//! Experts stored as MXFP4 stay MXFP4: their codes and scales go into Hugging Face's two tensors to the bit, so what came from such a folder
//! is what it was. Floats keep their type; f32 numbers that all fit the type asked for become it (GGUF keeps norms and biases as f32,
//! whatever they came from); other block types are expanded. One tensor is read at a time, one expert of it in memory. The folder
//! appears whole under its name or not at all. Does not know: vocabularies, which the file may have in other words.

const std = @import("std");
const base = @import("base");
const tensor = @import("tensor");
const arch = @import("arch");
const formats = @import("formats");
const contents = @import("contents.zig");
const folder = @import("folder.zig");
const model_file = @import("model_file.zig");
const adapter_file = @import("unpack_adapter.zig");
const Allocator = std.mem.Allocator;
const DType = tensor.DType;
const Diagnostic = base.Diagnostic;
const Storage = base.storage.Storage;
const gguf_import = formats.gguf_import;
const name_map = formats.name_map;
const safetensors = formats.safetensors;
const mxfp4 = tensor.blocks.mxfp4;

pub const Options = struct {
    /// Of what is stored in blocks other than MXFP4, and of f32 numbers that lose nothing: bf16, f16 or f32.
    dtype: DType = .bf16,
    /// Most bytes of tensors in one file; a larger tensor gets a file of its own.
    shard_bytes: u64 = 5_000_000_000,
    /// A folder whose tokenizer files are copied.
    tokenizer_dir: ?[]const u8 = null,
};

pub const Report = struct {
    /// Of all tensors.
    bytes: u64,
    tensors: usize,
    files: usize,
    /// Parameters that stayed MXFP4.
    blocks: usize,
};

pub const Error = gguf_import.Error || model_file.Error || error{ SizeOverflow, NotEnoughSpace };

/// Makes the folder `out_path`, which must not exist, of the model file `path`. On error `diag` says what and where; nothing is left.
pub fn unpack(gpa: Allocator, io: std.Io, path: []const u8, out_path: []const u8, options: Options, diag: *Diagnostic) Error!Report {
    var disk: base.storage.Disk = .init(io);
    return unpackOn(gpa, disk.storage(), path, out_path, options, base.freeBytes(base.storage.parentOf(out_path)), diag);
}

/// What a file became. Of an adapter there are no files and blocks to count.
pub const Unpacked = struct { bytes: u64, tensors: usize, model: ?Report };

/// A model's file or an adapter's, whose base `model` names.
pub fn unpackAny(gpa: Allocator, io: std.Io, path: []const u8, out_path: []const u8, model: ?[]const u8, options: Options, diag: *Diagnostic) (Error || adapter_file.Error)!Unpacked {
    diag.clear();
    if (try isAdapter(gpa, io, path, diag)) {
        const named = model orelse {
            diag.set("{s} is an adapter: name its base, a folder or a .gguf file, as the model", .{path});
            return error.NotAnAdapter;
        };
        const made = try adapter_file.unpackAdapter(gpa, io, path, named, out_path, options.tokenizer_dir, diag);
        return .{ .bytes = made.parameters * @sizeOf(f32), .tensors = made.tensors, .model = null };
    }
    if (model != null) {
        diag.set("{s} is a whole model; naming a model is for adapters", .{path});
        return error.NotAnAdapter;
    }
    const made = try unpack(gpa, io, path, out_path, options, diag);
    return .{ .bytes = made.bytes, .tensors = made.tensors, .model = made };
}

fn isAdapter(gpa: Allocator, io: std.Io, path: []const u8, diag: *Diagnostic) (Error || adapter_file.Error)!bool {
    var disk: base.storage.Disk = .init(io);
    var mapping = disk.storage().map(path) catch |err| {
        base.storage.explain(diag, err, "read", path);
        return err;
    };
    defer mapping.unmap();

    var file = formats.gguf.File.parse(gpa, mapping.bytes, diag) catch |err| {
        if (err != error.OutOfMemory) diag.prepend("{s}: ", .{path});
        return err;
    };
    defer file.deinit();

    const kind = file.get("general.type") orelse return false;
    return kind == .string and std.mem.eql(u8, kind.string, "adapter");
}

/// The same over any storage. `free`: bytes left there, null when unknown.
pub fn unpackOn(gpa: Allocator, storage: Storage, path: []const u8, out_path: []const u8, options: Options, free: ?u64, diag: *Diagnostic) Error!Report {
    diag.clear();
    std.debug.assert(options.dtype == .bf16 or options.dtype == .f16 or options.dtype == .f32);
    var mapping = storage.map(path) catch |err| {
        base.storage.explain(diag, err, "read", path);
        return err;
    };
    defer mapping.unmap();

    var source = gguf_import.Import.open(gpa, mapping.bytes, diag) catch |err| {
        if (err != error.OutOfMemory) diag.prepend("{s}: ", .{path});
        return err;
    };
    defer source.deinit();

    var arena: std.heap.ArenaAllocator = .init(gpa);
    defer arena.deinit();

    var job: Job = .{ .gpa = gpa, .arena = arena.allocator(), .source = &source, .options = options, .diag = diag };
    try job.plan();
    if (free) |available| if (job.total > available) {
        diag.set("{s} will have {d} bytes, but only {d} are free there. Free some space or choose another folder", .{ out_path, job.total, available });
        return error.NotEnoughSpace;
    };
    return job.write(storage, out_path) catch |err| {
        if (diag.text().len == 0) base.storage.explain(diag, err, "write", out_path);
        return err;
    };
}

const Content = enum { floats, codes, scales };

const Planned = struct {
    entry: safetensors.Entry,
    parameter: *const arch.Parameter,
    content: Content,
    bytes: u64,
    shard: usize = 0,

    fn widestFirst(_: void, a: Planned, b: Planned) bool {
        if (a.shard != b.shard) return a.shard < b.shard;
        return a.entry.dtype.blockBytes() > b.entry.dtype.blockBytes();
    }
};

const Job = struct {
    gpa: Allocator,
    arena: Allocator,
    source: *const gguf_import.Import,
    options: Options,
    diag: *Diagnostic,
    tensors: std.ArrayList(Planned) = .empty,
    total: u64 = 0,
    shards: usize = 1,
    blocks: usize = 0,

    fn plan(self: *Job) Error!void {
        for (self.source.layout.parameters) |*p| {
            if (self.staysBlocks(p)) {
                self.blocks += 1;
                const shape = try self.arena.dupe(usize, &formats.mxfp4Shape(p));
                try self.add(p, .codes, .u8, formats.mxfp4_names.codes, shape);
                try self.add(p, .scales, .u8, formats.mxfp4_names.scales, shape[0..3]);
            } else try self.add(p, .floats, self.typeOf(p), "", p.dims());
        }
        var filled: u64 = 0;
        for (self.tensors.items) |*t| {
            if (filled > 0 and filled + t.bytes > self.options.shard_bytes) {
                self.shards += 1;
                filled = 0;
            }
            t.shard = self.shards - 1;
            filled += t.bytes;
        }
        std.mem.sort(Planned, self.tensors.items, {}, Planned.widestFirst);
    }

    fn add(self: *Job, p: *const arch.Parameter, content: Content, dtype: DType, ending: []const u8, shape: []const usize) Error!void {
        const bytes = dtype.tensorBytes(shape) catch return error.SizeOverflow;
        try self.tensors.append(self.arena, .{
            .entry = .{ .name = try std.mem.concat(self.arena, u8, &.{ p.name, ending }), .dtype = dtype, .shape = shape },
            .parameter = p,
            .content = content,
            .bytes = bytes,
        });
        self.total += bytes;
    }

    fn staysBlocks(self: *const Job, p: *const arch.Parameter) bool {
        if (!p.role.isExpertWeight()) return false;
        for (name_map.parts(p.role)) |part| if (self.source.partOf(p, part).dtype != .mxfp4) return false;
        return true;
    }

    fn typeOf(self: *const Job, p: *const arch.Parameter) DType {
        const wanted = self.options.dtype;
        const first = self.source.tensorOf(p).dtype;
        for (name_map.parts(p.role)) |part| {
            const info = self.source.partOf(p, part);
            if (info.dtype != first) return .f32;
            if (info.dtype == .f32 and !fits(info.data, wanted)) return .f32;
        }
        return if (first == .f16 or first == .bf16) first else wanted;
    }

    fn write(self: *Job, storage: Storage, out_path: []const u8) Error!Report {
        if (try storage.kind(out_path) != null) {
            self.diag.set("{s} exists already, and what lies in it may be needed. Name a new folder", .{out_path});
            return error.AlreadyExists;
        }
        try storage.ensureFolder(base.storage.parentOf(out_path));
        var target = try base.storage.AtomicFolder.create(self.gpa, storage, out_path);
        defer target.deinit();

        try self.writeConfig(&target);
        for (0..self.shards) |shard| try self.writeShard(&target, shard);
        if (self.shards > 1) try self.writeIndex(&target);
        try self.writeWords(storage, &target);
        try target.seal();
        try self.verify(storage, target.temporary_path);
        try target.commit();
        return .{ .bytes = self.total, .tensors = self.tensors.items.len, .files = self.shards, .blocks = self.blocks };
    }

    fn writeConfig(self: *Job, target: *base.storage.AtomicFolder) Error!void {
        var text: std.Io.Writer.Allocating = .init(self.gpa);
        defer text.deinit();

        const label: []const u8 = switch (self.options.dtype) {
            .bf16 => "bfloat16",
            .f16 => "float16",
            else => "float32",
        };
        formats.hf_config.write(&text.writer, self.source.config, .{ .dtype = label, .mxfp4 = self.blocks > 0 }) catch return error.OutOfMemory;
        _ = try target.addFile(folder.config_name, text.written());
    }

    fn writeShard(self: *Job, target: *base.storage.AtomicFolder, shard: usize) Error!void {
        var entries: std.ArrayList(safetensors.Entry) = .empty;
        for (self.tensors.items) |t| if (t.shard == shard) try entries.append(self.arena, t.entry);
        var file = try target.createFile(try self.shardName(shard), try self.arena.alloc(u8, 64 << 10));
        defer file.close();

        self.stream(&file.interface, entries.items, shard) catch |err| return if (err == error.WriteFailed) file.cause() else @errorCast(err);
        _ = try file.finish();
    }

    const StreamError = safetensors.WriteError || error{NonFiniteWeights};

    fn stream(self: *Job, out: *std.Io.Writer, entries: []const safetensors.Entry, shard: usize) StreamError!void {
        var writer = try safetensors.Writer.begin(self.gpa, out, entries, &contents.metadata);
        for (self.tensors.items) |t| if (t.shard == shard) {
            const done = switch (t.content) {
                .floats => self.writeFloats(&writer, t.parameter, t.entry.dtype),
                .codes, .scales => self.writeBlocks(&writer, t.parameter, t.content),
            };
            done catch |err| {
                if (err == error.NonFiniteWeights)
                    self.diag.set("tensor of \"{s}\" holds a value that is no number in {s}. The file is damaged, or its numbers need bf16 or f32", .{ t.parameter.name, t.entry.dtype.label() });
                return err;
            };
        };
        writer.finish();
    }

    /// Hugging Face's rows of an expert in turn: of gate_up every other one is the gate's.
    fn writeBlocks(self: *Job, writer: *safetensors.Writer, p: *const arch.Parameter, content: Content) StreamError!void {
        const per_row = p.full[1] / mxfp4.len;
        const row = try self.gpa.alloc(u8, per_row * 16);
        defer self.gpa.free(row);

        const parts = name_map.parts(p.role);
        for (0..p.full[0]) |expert| for (0..p.full[2]) |output| {
            const info = self.source.partOf(p, parts[output % parts.len]);
            const at = expert * (p.full[2] / parts.len) + output / parts.len;
            const raw = info.data[at * per_row * mxfp4.bytes ..][0 .. per_row * mxfp4.bytes];
            for (0..per_row) |b| {
                var pairs: [16]u8 = undefined;
                const e = mxfp4.toPairs(raw[b * mxfp4.bytes ..][0..mxfp4.bytes], &pairs);
                if (e == 255) return error.NonFiniteWeights;
                if (content == .scales) row[b] = e else row[b * 16 ..][0..16].* = pairs;
            }
            try writer.writeBytes(if (content == .scales) row[0..per_row] else row);
        };
    }

    fn writeFloats(self: *Job, writer: *safetensors.Writer, p: *const arch.Parameter, dtype: DType) StreamError!void {
        if (p.role.isExpertWeight()) return self.writeExperts(writer, p, dtype);
        if (p.rank == 1 or name_map.parts(p.role).len > 1) {
            const values = try self.gpa.alloc(f32, p.len);
            defer self.gpa.free(values);

            self.source.read(p, values) catch return error.NonFiniteWeights;
            return self.writeValues(writer, values, dtype);
        }
        const info = self.source.tensorOf(p);
        const matrix: tensor.StoredMatrix = .{ .dtype = info.dtype, .rows = p.shape[0], .columns = p.shape[1], .bytes = info.data, .row_order = self.source.rowOrder(p.role) };
        const together = @max(1, (1 << 18) / matrix.columns);
        const values = try self.gpa.alloc(f32, together * matrix.columns);
        defer self.gpa.free(values);

        var row: usize = 0;
        while (row < matrix.rows) {
            const count = @min(together, matrix.rows - row);
            for (0..count) |i| expand(info.dtype, matrix.part(row + i, 0, matrix.columns), values[i * matrix.columns ..][0..matrix.columns]);
            try self.writeValues(writer, values[0 .. count * matrix.columns], dtype);
            row += count;
        }
    }

    /// Matrices of experts, turned to [in, out], one expert after the other.
    fn writeExperts(self: *Job, writer: *safetensors.Writer, p: *const arch.Parameter, dtype: DType) StreamError!void {
        const in = p.full[1];
        const width = p.full[2];
        const row = try self.gpa.alloc(f32, in);
        defer self.gpa.free(row);

        const values = try self.gpa.alloc(f32, in * width);
        defer self.gpa.free(values);

        for (0..p.full[0]) |expert| {
            for (name_map.parts(p.role)) |part| {
                const info = self.source.partOf(p, part);
                const rows = part.share(width);
                const row_bytes = info.data.len / (p.full[0] * rows);
                for (0..rows) |r| {
                    expand(info.dtype, info.data[(expert * rows + r) * row_bytes ..][0..row_bytes], row);
                    for (row, 0..) |x, i| values[i * width + part.of(r)] = x;
                }
            }
            try self.writeValues(writer, values, dtype);
        }
    }

    fn writeValues(self: *Job, writer: *safetensors.Writer, values: []const f32, dtype: DType) StreamError!void {
        _ = self;
        var bytes: [1 << 14]u8 = undefined;
        const size = dtype.blockBytes();
        var done: usize = 0;
        while (done < values.len) {
            const piece = values[done..@min(values.len, done + bytes.len / size)];
            const raw = bytes[0 .. piece.len * size];
            narrow(dtype, piece, raw);
            if (!(tensor.blocks.allFinite(dtype, raw) catch unreachable)) return error.NonFiniteWeights; // A float type.
            try writer.writeBytes(raw);
            done += piece.len;
        }
    }

    fn shardName(self: *Job, shard: usize) error{OutOfMemory}![]const u8 {
        if (self.shards == 1) return folder.model_name;
        return std.fmt.allocPrint(self.arena, "model-{d:0>5}-of-{d:0>5}.safetensors", .{ shard + 1, self.shards });
    }

    fn writeIndex(self: *Job, target: *base.storage.AtomicFolder) Error!void {
        var text: std.Io.Writer.Allocating = .init(self.gpa);
        defer text.deinit();

        self.index(&text.writer) catch return error.OutOfMemory;
        _ = try target.addFile(folder.index_name, text.written());
    }

    fn index(self: *Job, w: *std.Io.Writer) !void {
        var s: std.json.Stringify = .{ .writer = w, .options = .{ .whitespace = .indent_2 } };
        try s.beginObject();
        try s.objectField("metadata");
        try s.write(.{ .total_size = self.total });
        try s.objectField("weight_map");
        try s.beginObject();
        for (self.tensors.items) |t| {
            try s.objectField(t.entry.name);
            try s.write(try self.shardName(t.shard));
        }
        try s.endObject();
        try s.endObject();
        try w.writeByte('\n');
    }

    /// The tokenizer's files where a folder of them is named, and the ids that end a text.
    fn writeWords(self: *Job, storage: Storage, target: *base.storage.AtomicFolder) Error!void {
        var has_generation = false;
        if (self.options.tokenizer_dir) |from| for (folder.tokenizer_names) |name| {
            const copied = try contents.addCopy(self.gpa, storage, target, from, name, self.diag);
            if (std.mem.eql(u8, name, "generation_config.json")) has_generation = copied != null;
        };
        if (has_generation) return;
        var ends: std.ArrayList(u32) = .empty;
        for ([_][]const u8{ "eos", "eot", "eom" }) |name| {
            var buffer: [64]u8 = undefined;
            const key = std.fmt.bufPrint(&buffer, "tokenizer.ggml.{s}_token_id", .{name}) catch unreachable; // 14 + 3 + 9 < 64.
            const value = self.source.file.get(key) orelse continue;
            if (value != .u32 or value.u32 >= self.source.config.vocab_size) continue;
            if (std.mem.findScalar(u32, ends.items, value.u32) == null) try ends.append(self.arena, value.u32);
        }
        if (ends.items.len == 0) return;
        const text = try std.json.Stringify.valueAlloc(self.arena, .{
            .bos_token_id = self.source.config.bos_token_id,
            .eos_token_id = ends.items,
            .pad_token_id = self.source.config.pad_token_id,
        }, .{ .whitespace = .indent_2 });
        _ = try target.addFile("generation_config.json", text);
    }

    /// Reads the folder back with the reader everyone uses, before it gets its name.
    fn verify(self: *Job, storage: Storage, path: []const u8) Error!void {
        var shards = try model_file.Shards.open(self.gpa, storage, path, self.diag);
        defer shards.close(self.gpa);

        var count: usize = 0;
        for (shards.list.items) |shard| count += shard.file.tensors.len;
        for (self.tensors.items) |t| {
            const found = shards.list.items[t.shard].file.find(t.entry.name) orelse break;
            if (found.dtype != t.entry.dtype or !std.mem.eql(usize, found.shape, t.entry.shape)) break;
        } else if (count == self.tensors.items.len) {
            const back = try model_file.readConfig(self.gpa, storage, path, self.diag);
            if (back.num_local_experts == self.source.config.num_local_experts and back.hidden_size == self.source.config.hidden_size) return;
        }
        self.diag.set("what was written is not what is read back; nothing was kept. Check the disk", .{});
        return error.NotAModel;
    }
};

/// Whether every f32 of `raw` is a number of this type.
fn fits(raw: []const u8, dtype: DType) bool {
    if (dtype == .f32) return true;
    for (0..raw.len / 4) |i| {
        const bits = std.mem.readInt(u32, raw[i * 4 ..][0..4], .little);
        const x: f32 = @bitCast(bits);
        const same = if (dtype == .bf16) bits & 0xFFFF == 0 else @as(u32, @bitCast(tensor.convert.f16ToF32(tensor.convert.f32ToF16(x)))) == bits;
        if (!same) return false;
    }
    return true;
}

fn expand(dtype: DType, raw: []const u8, out: []f32) void {
    tensor.blocks.toF32(dtype, raw, out) catch unreachable; // The import refused types that cannot be expanded.
}

fn narrow(dtype: DType, values: []const f32, raw: []u8) void {
    switch (dtype) {
        .f16 => tensor.convert.f32SliceToF16(values, raw),
        .bf16 => tensor.convert.f32SliceToBf16(values, raw),
        else => tensor.convert.f32ToF32Bytes(values, raw),
    }
}

test {
    _ = @import("unpack_test.zig");
}
