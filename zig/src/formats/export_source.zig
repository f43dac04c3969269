//! Where an export takes its numbers from: a Hugging Face folder, mapped, or weights in memory.
//!
//! Either way the exporter asks for some elements of one parameter as f32 and gets them; nothing is expanded beyond those.
//! A folder is checked whole before anything is written: each tensor there, of the right shape and a float type, nothing unknown
//! beside them. Does not know: GGUF.

const std = @import("std");
const base = @import("base");
const tensor = @import("tensor");
const arch = @import("arch");
const quant = @import("quant");
const hf_config = @import("hf_config.zig");
const safetensors = @import("safetensors.zig");
const Diagnostic = base.Diagnostic;
const Storage = base.storage.Storage;
const printable = base.bytes.printable;

pub const Error = hf_config.Error || safetensors.Error || safetensors.IndexError || base.storage.Error || error{
    ModelTooLarge,
    /// A parameter of the configuration that no file holds.
    MissingTensor,
    /// A tensor in two shards.
    DuplicateTensor,
    WrongTensorShape,
    /// Integers, booleans.
    UnsupportedTensorType,
    /// A tensor that the configuration does not have.
    UnexpectedTensor,
    /// The configuration ties the head to the embedding, but the file has another head.
    TiedHeadDiffers,
};

pub const Weights = struct {
    config: arch.ModelConfig,
    /// In the order of `arch.Layout`.
    flat: []const f32,
};

pub const Source = union(enum) {
    /// A folder with `config.json` and safetensors.
    folder: []const u8,
    weights: Weights,
};

/// Something added to parameters as they are read, whole rows at a time, by several threads at once.
pub const Delta = struct {
    context: *const anyopaque,
    /// `out`: elements of parameter `index` of the layout, from element `first` on.
    add: *const fn (context: *const anyopaque, index: usize, first: usize, out: []f32) void,
};

/// A parameter's numbers as they are stored.
const Stored = struct { dtype: tensor.DType, bytes: []const u8 };

pub const Opened = struct {
    arena: std.heap.ArenaAllocator,
    config: arch.ModelConfig,
    layout: arch.Layout,
    /// For each parameter of the layout.
    stored: []const Stored,
    /// `lm_head.weight` of a tied model, where a file has it anyway.
    second_head: ?Stored = null,
    delta: ?Delta = null,
    mappings: std.ArrayList(base.storage.Mapping),

    /// Caller calls `deinit`; weights in memory must outlive it.
    pub fn open(gpa: std.mem.Allocator, storage: Storage, source: Source, diag: *Diagnostic) Error!Opened {
        var self: Opened = .{ .arena = .init(gpa), .config = undefined, .layout = undefined, .stored = &.{}, .mappings = .empty };
        errdefer self.arena.deinit();

        self.config = switch (source) {
            .folder => |path| try readConfig(self.arena.allocator(), storage, path, diag),
            .weights => |w| w.config,
        };
        self.layout = try arch.Layout.init(gpa, self.config);
        errdefer self.layout.deinit();

        errdefer for (self.mappings.items) |*m| m.unmap();
        switch (source) {
            .folder => |path| try self.bindFolder(storage, path, diag),
            .weights => |w| {
                std.debug.assert(w.flat.len == self.layout.total);
                const stored = try self.arena.allocator().alloc(Stored, self.layout.parameters.len);
                for (self.layout.parameters, stored) |p, *s| s.* = .{ .dtype = .f32, .bytes = std.mem.sliceAsBytes(p.sliceConst(f32, w.flat)) };
                self.stored = stored;
            },
        }
        return self;
    }

    pub fn deinit(self: *Opened) void {
        for (self.mappings.items) |*m| m.unmap();
        self.layout.deinit();
        self.arena.deinit();
        self.* = undefined;
    }

    /// Elements `first .. first + out.len` of parameter `index` of the layout, as f32.
    pub fn readElements(self: *const Opened, index: usize, first: usize, out: []f32) void {
        const s = self.stored[index];
        const size = s.dtype.blockBytes();
        quant.expand(s.dtype, s.bytes[first * size ..][0 .. out.len * size], out) catch unreachable; // Float types only, checked when opened.
        if (self.delta) |d| d.add(d.context, index, first, out);
    }

    /// Gives the pages of a tensor that will not be read again back to the system: they count as this program's memory
    /// otherwise. Only for files mapped by the kernel, which brings pages back if they are wanted after all.
    pub fn forgetPages(self: *const Opened, index: usize) void {
        const page = std.heap.pageSize();
        const bytes = self.stored[index].bytes;
        const start = std.mem.alignForward(usize, @intFromPtr(bytes.ptr), page);
        const end = std.mem.alignBackward(usize, @intFromPtr(bytes.ptr) + bytes.len, page);
        if (start >= end) return;
        const pages: [*]align(std.heap.page_size_min) u8 = @ptrFromInt(start);
        std.posix.madvise(pages, end - start, std.posix.MADV.DONTNEED) catch {}; // A hint: memory is the only loss.
    }

    fn bindFolder(self: *Opened, storage: Storage, folder: []const u8, diag: *Diagnostic) Error!void {
        const a = self.arena.allocator();
        const stored = try a.alloc(Stored, self.layout.parameters.len);
        const found = try a.alloc(bool, stored.len);
        @memset(found, false);
        for (try shardNames(a, storage, folder, diag)) |name| {
            const path = try base.storage.join(a, folder, name);
            try self.mappings.ensureUnusedCapacity(a, 1);
            self.mappings.appendAssumeCapacity(storage.map(path) catch |err| {
                base.storage.explain(diag, err, "read", path);
                return err;
            });
            const bytes = self.mappings.items[self.mappings.items.len - 1].bytes;
            var file = safetensors.parse(a, bytes, diag) catch |err| {
                diag.prepend("{s}: ", .{name});
                return err;
            };
            defer file.deinit();

            for (file.tensors) |t| try self.bindTensor(t, stored, found, name, diag);
        }
        for (self.layout.parameters, found) |p, there| if (!there) {
            diag.set("{s}: tensor {s} is in none of the model's files, but config.json asks for it", .{ folder, p.name });
            return error.MissingTensor;
        };
        if (self.second_head) |head| {
            const embedding = stored[0]; // The first of every layout.
            if (head.dtype != embedding.dtype or !std.mem.eql(u8, head.bytes, embedding.bytes)) {
                diag.set("{s}: tie_word_embeddings is on, but lm_head.weight is not the embedding. Set tie_word_embeddings to false in config.json to export both", .{folder});
                return error.TiedHeadDiffers;
            }
        }
        self.stored = stored;
    }

    fn bindTensor(self: *Opened, t: safetensors.Tensor, stored: []Stored, found: []bool, file: []const u8, diag: *Diagnostic) Error!void {
        const p = self.layout.find(t.name) orelse {
            if (std.mem.endsWith(u8, t.name, ".rotary_emb.inv_freq")) return; // A table that old models carry along.
            if (std.mem.eql(u8, t.name, "lm_head.weight")) {
                self.second_head = .{ .dtype = t.dtype, .bytes = t.bytes };
                return;
            }
            diag.set("{s}: tensor {f} is not part of the model that config.json describes", .{ file, printable(t.name) });
            return error.UnexpectedTensor;
        };
        const index = (@intFromPtr(p) - @intFromPtr(self.layout.parameters.ptr)) / @sizeOf(arch.Parameter);
        if (found[index]) {
            diag.set("{s}: tensor {s} is in two files", .{ file, p.name });
            return error.DuplicateTensor;
        }
        if (!std.mem.eql(usize, t.shape, p.dims())) {
            diag.set("{s}: tensor {s} has shape {any}; config.json asks for {any}", .{ file, p.name, t.shape, p.dims() });
            return error.WrongTensorShape;
        }
        if (!t.dtype.isFloat()) {
            diag.set("{s}: tensor {s} has type {s}; f32, f16, bf16 and f64 can be exported", .{ file, p.name, t.dtype.label() });
            return error.UnsupportedTensorType;
        }
        stored[index] = .{ .dtype = t.dtype, .bytes = t.bytes };
        found[index] = true;
    }
};

/// Elements of one row; a vector is one row.
pub fn rowLen(p: arch.Parameter) usize {
    return if (p.rank == 1) p.shape[0] else p.shape[1];
}

fn readConfig(arena: std.mem.Allocator, storage: Storage, folder: []const u8, diag: *Diagnostic) Error!arch.ModelConfig {
    const path = try base.storage.join(arena, folder, "config.json");
    const text = storage.readAlloc(arena, path) catch |err| {
        base.storage.explain(diag, err, "read", path);
        return err;
    };
    return hf_config.parse(arena, text, diag);
}

/// The single file, or those of the index.
fn shardNames(arena: std.mem.Allocator, storage: Storage, folder: []const u8, diag: *Diagnostic) Error![]const []const u8 {
    const single = "model.safetensors";
    if (try storage.kind(try base.storage.join(arena, folder, single)) != null) return arena.dupe([]const u8, &.{single});
    const path = try base.storage.join(arena, folder, "model.safetensors.index.json");
    const text = storage.readAlloc(arena, path) catch |err| {
        if (err == error.FileNotFound) {
            diag.set("{s}: there is neither model.safetensors nor model.safetensors.index.json", .{folder});
            return err;
        }
        base.storage.explain(diag, err, "read", path);
        return err;
    };
    const index = try safetensors.ShardIndex.parse(arena, text, diag);
    return index.shards;
}
