//! A model to run: its configuration, and its weights as views into a mapped GGUF file.
//!
//! `open` checks everything before anything is computed: the architecture's keys, and for every tensor the architecture
//! asks for its presence, its exact shape and a type that can be multiplied. Tensors nobody asked for are an error too:
//! a model with parts that are not run would give wrong answers in silence.
//! Does not know: caches, sampling, text.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const tensor = @import("tensor");
const formats = @import("formats");
const matrix = @import("matrix.zig");
const experts = @import("experts.zig");
const Form = @import("cache.zig").Form;
const Allocator = std.mem.Allocator;
const Diagnostic = base.Diagnostic;
const gguf = formats.gguf;
const name_map = formats.name_map;

pub const OpenError = error{
    OutOfMemory,
    /// The file is not there, or may not be read.
    CannotRead,
    /// The bytes are not a sound GGUF file.
    InvalidFile,
    /// A sound file of a model that is not run here.
    UnsupportedModel,
    /// A key or tensor is missing or contradicts the others.
    InvalidModel,
};

/// Which elements of a head turn together.
pub const RopeOrder = enum {
    /// (i, i + head_dim/2): Hugging Face's order, and GGUF's for Qwen.
    halves,
    /// (2i, 2i + 1): GGUF's order for `llama`, whose q and k rows were permuted to fit.
    pairs,
};

pub const Layer = struct {
    q: matrix.Linear,
    k: matrix.Linear,
    v: matrix.Linear,
    o: matrix.Linear,
    mlp: Mlp,
    attention_norm: []const f32,
    mlp_norm: []const f32,
    q_norm: ?[]const f32,
    k_norm: ?[]const f32,
    /// How many positions a token sees at most, its own included; null: all before it.
    window: ?u32 = null,
    /// One a head.
    sinks: ?[]const f32 = null,
};

pub const Mlp = union(enum) {
    dense: struct { gate: matrix.Linear, up: matrix.Linear, down: matrix.Linear },
    mixture: experts.Mixture,
};

/// Where the ramp of YaRN's frequencies begins and ends.
pub const Ramp = enum {
    /// At real numbers, as the model was trained.
    exact,
    /// At whole ones, as llama.cpp runs it.
    ggml,
};

pub const Model = struct {
    gpa: Allocator,
    arena: std.heap.ArenaAllocator,
    disk: base.storage.Disk,
    mapping: base.storage.Mapping,
    /// Keys and tensors of the file: the tokenizer and the chat template are read from here.
    file: gguf.File,
    config: arch.ModelConfig,
    rope_order: RopeOrder,
    /// head_dim / 2 radians per position, all scaling included.
    inverse_frequencies: []f32,
    /// What their cosines and sines are multiplied by: 1 but for YaRN.
    magnitude: f32 = 1,
    embedding: matrix.Matrix,
    layers: []const Layer,
    final_norm: []const f32,
    head: matrix.Linear,

    /// Maps `path`. On failure `diag` names the file, the field and the next move. Caller calls `close`.
    pub fn open(gpa: Allocator, io: std.Io, path: []const u8, diag: *Diagnostic) OpenError!*Model {
        const self = try gpa.create(Model);
        errdefer gpa.destroy(self);

        self.gpa = gpa;
        self.disk = .init(io);
        self.mapping = self.disk.storage().map(path) catch |err| {
            base.storage.explain(diag, err, "read", path);
            return if (err == error.OutOfMemory) error.OutOfMemory else error.CannotRead;
        };
        errdefer self.mapping.unmap();

        self.build(diag) catch |err| {
            if (err != error.OutOfMemory) diag.prepend("{s}: ", .{path});
            return err;
        };
        return self;
    }

    /// Which ramp YaRN's frequencies follow; models without YaRN stay as they are. Not while a session holds ids.
    pub fn useRamp(self: *Model, ramp: Ramp) void {
        var config = self.config;
        if (config.rope_scaling != .yarn) return;
        config.rope_scaling.yarn.truncate = ramp == .ggml;
        arch.rope.inverseFrequencies(config, self.inverse_frequencies);
    }

    pub fn close(self: *Model) void {
        self.file.deinit();
        self.arena.deinit();
        self.mapping.unmap();
        self.gpa.destroy(self);
    }

    /// Number of weights, those used twice counted once.
    pub fn parameterCount(self: *const Model) usize {
        var sum: usize = 0;
        for (self.file.tensors) |*info| sum += info.len();
        return sum;
    }

    /// How keys and values are kept unless someone asks for another form: f16 under quantised weights, whose rounding hides that of the
    /// cache, f32 under weights that are floats.
    pub fn cacheForm(self: *const Model) Form {
        return if (self.layers.len > 0 and self.layers[0].k.weight.dtype.blockLen() > 1) .f16 else .f32;
    }

    /// `asked` if the heads can be kept so; null: the usual one, or f32 for exact products. Otherwise `diag` says why not.
    pub fn chooseCacheForm(self: *const Model, asked: ?Form, exact: bool, diag: *Diagnostic) error{UnsupportedModel}!Form {
        const form = asked orelse return if (exact) .f32 else self.cacheForm();
        if (form.fits(self.config.head_dim)) return form;
        diag.set("a cache in {t} needs heads of a multiple of 32 numbers, this model's have {d}; take f16", .{ form, self.config.head_dim });
        return error.UnsupportedModel;
    }

    fn build(self: *Model, diag: *Diagnostic) OpenError!void {
        self.file = gguf.File.parse(self.gpa, self.mapping.bytes, diag) catch |err| return switch (err) {
            error.OutOfMemory => error.OutOfMemory,
            else => error.InvalidFile,
        };
        errdefer self.file.deinit();
        self.arena = .init(self.gpa);
        errdefer self.arena.deinit();

        const read = formats.gguf_config.read(&self.file, diag) catch |err| return switch (err) {
            error.UnsupportedArchitecture, error.UnsupportedFeature, error.UnsupportedRopeScaling => error.UnsupportedModel,
            else => error.InvalidModel,
        };
        var layout = arch.Layout.init(self.gpa, read.config) catch |err| switch (err) {
            error.OutOfMemory => return error.OutOfMemory,
            error.ModelTooLarge => {
                diag.set("the model's sizes do not fit in memory", .{});
                return error.InvalidModel;
            },
        };
        defer layout.deinit();

        self.config = read.config;
        self.rope_order = if (read.architecture == .llama and read.dialect == .ggml) .pairs else .halves;
        var builder: Builder = .{ .arena = self.arena.allocator(), .file = &self.file, .diag = diag, .read = read, .layout = &layout };
        try builder.fill(self);
    }
};

const Builder = struct {
    arena: Allocator,
    file: *const gguf.File,
    diag: *Diagnostic,
    read: formats.gguf_config.Read,
    layout: *const arch.Layout,

    fn fill(self: *Builder, model: *Model) OpenError!void {
        const tied = self.read.config.tie_word_embeddings;
        model.embedding = try self.matrixOf(null, .token_embedding);
        model.final_norm = try self.vectorOf(null, .final_norm);
        model.head = .{ .weight = if (tied) model.embedding else try self.matrixOf(null, .output) };
        model.inverse_frequencies = try self.frequencies();
        model.magnitude = @floatCast(arch.rope.magnitude(self.read.config));
        const layers = try self.arena.alloc(Layer, self.read.config.num_hidden_layers);
        for (layers, 0..) |*layer, i| {
            const l: u32 = @intCast(i);
            layer.* = .{
                .q = try self.linear(l, .q_weight, .q_bias),
                .k = try self.linear(l, .k_weight, .k_bias),
                .v = try self.linear(l, .v_weight, .v_bias),
                .o = try self.linear(l, .o_weight, .o_bias),
                .mlp = if (self.read.config.hasExperts()) .{ .mixture = try self.mixture(l) } else .{ .dense = .{
                    .gate = try self.linear(l, .gate_weight, .gate_bias),
                    .up = try self.linear(l, .up_weight, .up_bias),
                    .down = try self.linear(l, .down_weight, .down_bias),
                } },
                .attention_norm = try self.vectorOf(l, .attention_norm),
                .mlp_norm = try self.vectorOf(l, .mlp_norm),
                .q_norm = try self.optionalVector(l, .q_norm),
                .k_norm = try self.optionalVector(l, .k_norm),
                .window = self.read.config.windowOf(i),
                .sinks = try self.optionalVector(l, .sinks),
            };
        }
        model.layers = layers;
        try self.refuseStrangers();
    }

    fn mixture(self: *Builder, layer: u32) OpenError!experts.Mixture {
        const c = self.read.config;
        return .{
            .router = try self.linear(layer, .router_weight, .router_bias),
            .gate = try self.linears(layer, .experts_gate_up, .experts_gate_up_bias, .gate),
            .up = try self.linears(layer, .experts_gate_up, .experts_gate_up_bias, .up),
            .down = try self.linears(layer, .experts_down, .experts_down_bias, .whole),
            .chosen = c.num_experts_per_tok,
            .limit = if (c.swiglu_limit > 0) @floatCast(c.swiglu_limit) else std.math.inf(f32),
            .alpha = @floatCast(c.swiglu_alpha),
        };
    }

    /// One an expert: views into the tensor of all.
    fn linears(self: *Builder, layer: u32, weight: arch.Role, bias: arch.Role, part: name_map.Part) OpenError![]const matrix.Linear {
        const parameter = self.layout.get(layer, weight).?;
        const info = try self.weightOf(parameter, part);
        const biases = try self.floats(try self.tensorOf(self.layout.get(layer, bias).?, part));
        const out = try self.arena.alloc(matrix.Linear, parameter.count());
        const rows = biases.len / out.len;
        const size = info.data.len / out.len;
        for (out, 0..) |*one, e| one.* = .{
            .weight = .{ .dtype = info.dtype, .rows = rows, .columns = info.ne[0], .bytes = info.data[e * size ..][0..size] },
            .bias = biases[e * rows ..][0..rows],
        };
        return out;
    }

    fn linear(self: *Builder, layer: u32, weight: arch.Role, bias: arch.Role) OpenError!matrix.Linear {
        return .{ .weight = try self.matrixOf(layer, weight), .bias = try self.optionalVector(layer, bias) };
    }

    fn matrixOf(self: *Builder, layer: ?u32, role: arch.Role) OpenError!matrix.Matrix {
        const parameter = self.layout.get(layer, role).?; // Every layout has all matrices but `output`.
        const info = try self.weightOf(parameter, .whole);
        return .{ .dtype = info.dtype, .rows = parameter.shape[0], .columns = parameter.shape[1], .bytes = info.data };
    }

    /// A tensor that can be multiplied.
    fn weightOf(self: *Builder, parameter: *const arch.Parameter, part: name_map.Part) OpenError!*const gguf.TensorInfo {
        const info = try self.tensorOf(parameter, part);
        if (!matrix.Matrix.isSupported(info.dtype))
            return self.fail(error.UnsupportedModel, "tensor {s} is stored as {s}; F32, F16, BF16, Q4_0 to Q8_0, Q4_K, Q5_K, Q6_K and MXFP4 can be run", .{ info.name, info.dtype.label() });
        if (info.dtype == .f32 and !std.mem.isAligned(@intFromPtr(info.data.ptr), @alignOf(f32)))
            return self.fail(error.UnsupportedModel, "tensor {s} is F32 but not at a multiple of 4 bytes (general.alignment is {d})", .{ info.name, self.file.alignment });
        // The one type whose scale is a byte that may say "no number"; llama.cpp reads that as 2^128.
        if (info.dtype == .mxfp4 and !(tensor.blocks.allFinite(.mxfp4, info.data) catch unreachable))
            return self.fail(error.InvalidModel, "tensor {s} has a block whose scale byte is 255, which is no number; export the model again", .{info.name});
        return info;
    }

    /// Copied, so that alignment in the file does not matter.
    fn vectorOf(self: *Builder, layer: ?u32, role: arch.Role) OpenError![]const f32 {
        return self.floats(try self.tensorOf(self.layout.get(layer, role).?, .whole));
    }

    fn optionalVector(self: *Builder, layer: u32, role: arch.Role) OpenError!?[]const f32 {
        return try self.floats(try self.tensorOf(self.layout.get(layer, role) orelse return null, .whole));
    }

    fn floats(self: *Builder, info: *const gguf.TensorInfo) OpenError![]const f32 {
        if (info.dtype != .f32)
            return self.fail(error.InvalidModel, "tensor {s} is stored as {s}; norms and biases must be F32", .{ info.name, info.dtype.label() });
        const out = try self.arena.alloc(f32, info.len());
        tensor.convert.f32BytesToF32(info.data, out);
        return out;
    }

    /// The tensor of a parameter, or of a part of it, its shape compared.
    fn tensorOf(self: *Builder, parameter: *const arch.Parameter, part: name_map.Part) OpenError!*const gguf.TensorInfo {
        var buffer: name_map.NameBuffer = undefined;
        const name = name_map.ggufName(&buffer, self.read.architecture, .{ .layer = parameter.layer, .role = parameter.role, .part = part });
        const info = self.file.findTensor(name) orelse
            return self.fail(error.InvalidModel, "tensor {s} is missing; export the model again", .{name});
        var want = name_map.storedShape(parameter, part).ne();
        if (self.read.dialect == .abi and parameter.rank == 2) std.mem.swap(usize, &want[0], &want[1]);
        if (!std.mem.eql(usize, &info.ne, &want))
            return self.fail(error.InvalidModel, "tensor {s} has the shape {any}; the file's keys ask for {any}", .{ name, info.ne, want });
        return info;
    }

    /// The keys' frequencies; the file's own divisors of them where it has some.
    fn frequencies(self: *Builder) OpenError![]f32 {
        var config = self.read.config;
        const out = try self.arena.alloc(f32, config.head_dim / 2);
        const divisors = self.file.findTensor(name_map.rope_divisors);
        const divided = self.read.architecture == .llama and divisors != null;
        if (divided) config.rope_scaling = .none;
        arch.rope.inverseFrequencies(config, out);
        if (!divided) return out;
        for (out, try self.floats(divisors.?), 0..) |*value, divisor, i| {
            if (!(divisor > 0) or !std.math.isFinite(divisor))
                return self.fail(error.InvalidModel, "{s}[{d}] is {d}; it must be a positive number", .{ name_map.rope_divisors, i, divisor });
            value.* /= divisor;
        }
        return out;
    }

    fn refuseStrangers(self: *Builder) OpenError!void {
        for (self.file.tensors) |*info| {
            if (std.mem.eql(u8, info.name, name_map.rope_divisors)) continue;
            const known = if (name_map.fromGgufName(self.read.architecture, info.name)) |place| blk: {
                if (place.layer) |l| if (l >= self.read.config.num_hidden_layers) break :blk false;
                break :blk self.layout.get(place.layer, place.role) != null;
            } else false;
            if (!known) return self.fail(error.UnsupportedModel, "tensor {f} is no part of architecture {t} as it is run here", .{ base.bytes.printable(info.name), self.read.architecture });
        }
    }

    fn fail(self: *Builder, err: OpenError, comptime format: []const u8, arguments: anytype) OpenError {
        self.diag.set(format, arguments);
        return err;
    }
};
