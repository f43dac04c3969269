//! Where an export takes its numbers from: a Hugging Face folder, mapped, or weights in memory.
//!
//! Either way the exporter asks for some elements of one parameter as f32 and gets them; nothing is expanded beyond those.
//! A folder is checked whole before anything is written: each tensor there, of the right shape and a float type, nothing unknown
//! beside them. Experts may be MXFP4, in Hugging Face's two tensors of codes and scales. Does not know: GGUF.

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
    /// Of the experts' weights [expert, in, out], which files keep turned: `out` is output `column` of one expert, for all inputs.
    add_expert: *const fn (context: *const anyopaque, index: usize, expert: usize, column: usize, out: []f32) void,
    /// Whether anything but zeros is added to this expert of parameter `index`.
    changes_expert: *const fn (context: *const anyopaque, index: usize, expert: usize) bool,
};

/// A parameter's numbers as they are stored: floats in its own shape, or MXFP4.
pub const Stored = struct {
    dtype: tensor.DType,
    /// Of MXFP4: [expert, out, in / 32, 16], codes in pairs.
    bytes: []const u8,
    /// Of MXFP4: [expert, out, in / 32].
    scales: []const u8 = &.{},
};

pub const Opened = struct {
    arena: std.heap.ArenaAllocator,
    config: arch.ModelConfig,
    layout: arch.Layout,
    /// For each parameter of the layout.
    stored: []const Stored,
    /// `lm_head.weight` of a tied model, where a file has it anyway.
    second_head: ?Stored = null,
    /// The head is not in the source: it is the embedding once more, for an architecture that needs both.
    head_is_copy: bool = false,
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
        // The one architecture whose files have a head always.
        self.head_is_copy = self.config.model_type == .gpt_oss and self.config.tie_word_embeddings;
        if (self.head_is_copy) self.config.tie_word_embeddings = false;
        self.layout = try arch.Layout.init(gpa, self.config);
        errdefer self.layout.deinit();

        errdefer for (self.mappings.items) |*m| m.unmap();
        switch (source) {
            .folder => |path| try self.bindFolder(storage, path, diag),
            .weights => |w| {
                const given = self.layout.parameters.len - @intFromBool(self.head_is_copy);
                const stored = try self.arena.allocator().alloc(Stored, self.layout.parameters.len);
                for (self.layout.parameters[0..given], stored[0..given]) |p, *s| s.* = .{ .dtype = .f32, .bytes = std.mem.sliceAsBytes(p.sliceConst(f32, w.flat)) };
                if (self.head_is_copy) stored[given] = stored[0]; // The head is the last of every layout, the embedding the first.
                std.debug.assert(w.flat.len == self.layout.total - if (self.head_is_copy) self.layout.parameters[given].len else 0);
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
        const copy = self.head_is_copy and index + 1 == self.layout.parameters.len;
        if (self.delta) |d| if (!copy) d.add(d.context, index, first, out);
    }

    /// Whether the source has this parameter in blocks of MXFP4.
    pub fn isBlocks(self: *const Opened, index: usize) bool {
        return self.stored[index].dtype == .mxfp4;
    }

    /// Whether an adapter changes this expert of parameter `index`.
    pub fn changesExpert(self: *const Opened, index: usize, expert: usize) bool {
        const d = self.delta orelse return false;
        return d.changes_expert(d.context, index, expert);
    }

    /// Gives the pages of a tensor that will not be read again back to the system: they count as this program's memory
    /// otherwise. Only for files mapped by the kernel, which brings pages back if they are wanted after all.
    pub fn forgetPages(self: *const Opened, index: usize) void {
        for ([_][]const u8{ self.stored[index].bytes, self.stored[index].scales }) |bytes| forget(bytes);
    }

    fn forget(bytes: []const u8) void {
        const page = std.heap.pageSize();
        const start = std.mem.alignForward(usize, @intFromPtr(bytes.ptr), page);
        const end = std.mem.alignBackward(usize, @intFromPtr(bytes.ptr) + bytes.len, page);
        if (start >= end) return;
        const pages: [*]align(std.heap.page_size_min) u8 = @ptrFromInt(start);
        std.posix.madvise(pages, end - start, std.posix.MADV.DONTNEED) catch {}; // A hint: memory is the only loss.
    }

    fn bindFolder(self: *Opened, storage: Storage, folder: []const u8, diag: *Diagnostic) Error!void {
        const a = self.arena.allocator();
        const stored = try a.alloc(Stored, self.layout.parameters.len);
        @memset(stored, .{ .dtype = .f32, .bytes = &.{} });
        const found = try a.alloc(Found, stored.len);
        @memset(found, .{});
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
        if (self.head_is_copy) {
            const head = &found[found.len - 1];
            if (head.whole) self.second_head = stored[found.len - 1];
            head.whole = true;
            stored[found.len - 1] = stored[0];
        }
        for (self.layout.parameters, found) |p, there| if (!there.whole and !(there.codes and there.scales)) {
            const ending: []const u8 = if (there.codes) "_scales" else if (there.scales) "_blocks" else "";
            diag.set("{s}: tensor {s}{s} is in none of the model's files, but config.json asks for it", .{ folder, p.name, ending });
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

    /// What of a parameter a file had.
    const Found = struct { whole: bool = false, codes: bool = false, scales: bool = false };

    fn bindTensor(self: *Opened, t: safetensors.Tensor, stored: []Stored, found: []Found, file: []const u8, diag: *Diagnostic) Error!void {
        const p = self.layout.find(t.name) orelse {
            if (try self.bindBlocks(t, stored, found, file, diag)) return;
            if (std.mem.endsWith(u8, t.name, ".rotary_emb.inv_freq")) return; // A table that old models carry along.
            if (std.mem.eql(u8, t.name, "lm_head.weight")) {
                self.second_head = .{ .dtype = t.dtype, .bytes = t.bytes };
                return;
            }
            diag.set("{s}: tensor {f} is not part of the model that config.json describes", .{ file, printable(t.name) });
            return error.UnexpectedTensor;
        };
        const index = self.layout.positionOf(p);
        if (found[index].whole or found[index].codes or found[index].scales) {
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
        found[index].whole = true;
    }

    /// One of the two tensors that hold a parameter as MXFP4: true when it was.
    fn bindBlocks(self: *Opened, t: safetensors.Tensor, stored: []Stored, found: []Found, file: []const u8, diag: *Diagnostic) Error!bool {
        const is_codes = std.mem.endsWith(u8, t.name, mxfp4_names.codes);
        if (!is_codes and !std.mem.endsWith(u8, t.name, mxfp4_names.scales)) return false;
        const p = self.layout.find(t.name[0 .. t.name.len - mxfp4_names.codes.len]) orelse return false;
        if (!p.role.isExpertWeight()) return false;
        const index = self.layout.positionOf(p);
        const there = &found[index];
        if (there.whole or if (is_codes) there.codes else there.scales) {
            diag.set("{s}: tensor {s} is there twice, or as MXFP4 and as floats", .{ file, p.name });
            return error.DuplicateTensor;
        }
        const wanted = mxfp4Shape(p);
        const dims = wanted[0..if (is_codes) 4 else 3];
        if (p.shape[0] % 32 != 0) {
            diag.set("{s}: tensor {f} is MXFP4, whose rows are blocks of 32, but config.json gives it rows of {d}", .{ file, printable(t.name), p.shape[0] });
            return error.WrongTensorShape;
        }
        if (!std.mem.eql(usize, t.shape, dims)) {
            diag.set("{s}: tensor {f} has shape {any}; config.json asks for {any}", .{ file, printable(t.name), t.shape, dims });
            return error.WrongTensorShape;
        }
        if (t.dtype != .u8) {
            diag.set("{s}: tensor {f} has type {s}; MXFP4 is stored as U8", .{ file, printable(t.name), t.dtype.label() });
            return error.UnsupportedTensorType;
        }
        stored[index].dtype = .mxfp4;
        if (is_codes) stored[index].bytes = t.bytes else stored[index].scales = t.bytes;
        if (is_codes) there.codes = true else there.scales = true;
        return true;
    }
};

/// What Hugging Face puts behind a parameter's name for the two tensors of MXFP4; both have 7 letters.
pub const mxfp4_names = struct {
    pub const codes = "_blocks";
    pub const scales = "_scales";
};

/// Shape of a parameter's codes in Hugging Face's MXFP4: (expert, out, in / 32, 16). Scales have the first three.
pub fn mxfp4Shape(p: *const arch.Parameter) [4]usize {
    return .{ p.full[0], p.full[2], p.full[1] / 32, 16 };
}

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
