//! A GGUF file as a model: its configuration, and each parameter as f32 in Hugging Face's order.
//!
//! `open` compares every tensor with the layout the configuration asks for: none missing, none too many, exact shapes, types that can
//! be expanded. After that `read` only fails on numbers that are no numbers. Tensor data stays in the caller's slice.
//! Does not know: files, tokenizers, quantised compute.

const std = @import("std");
const base = @import("base");
const tensor = @import("tensor");
const arch = @import("arch");
const quant = @import("quant");
const gguf = @import("gguf.zig");
const gguf_config = @import("gguf_config.zig");
const name_map = @import("name_map.zig");
const Diagnostic = base.Diagnostic;
const printable = base.bytes.printable;

pub const Error = gguf.Error || gguf_config.Error || error{
    /// A tensor's dimensions are not what the keys ask for.
    WrongTensorShape,
    /// A tensor the architecture does not have.
    UnexpectedTensor,
    UnsupportedTensorType,
    ModelTooLarge,
};

pub const ReadError = error{NotFinite};

pub const Import = struct {
    file: gguf.File,
    config: arch.ModelConfig,
    architecture: name_map.Architecture,
    dialect: gguf_config.Dialect,
    layout: arch.Layout,
    /// For each parameter of the layout, its tensor.
    tensors: []const *const gguf.TensorInfo,

    /// `raw` is the whole file and must outlive the result; caller calls `deinit`. On error `diag` names field or tensor.
    pub fn open(gpa: std.mem.Allocator, raw: []const u8, diag: *Diagnostic) Error!Import {
        var self: Import = undefined;
        self.file = try gguf.File.parse(gpa, raw, diag);
        errdefer self.file.deinit();

        const found = try gguf_config.read(&self.file, diag);
        self.config = found.config;
        self.architecture = found.architecture;
        self.dialect = found.dialect;
        // Before the layout is built: it allocates by layer, and the file must have at least one tensor for each.
        if (found.config.num_hidden_layers > self.file.tensors.len) {
            diag.set("block_count is {d}, but the file has {d} tensors", .{ found.config.num_hidden_layers, self.file.tensors.len });
            return error.MissingTensor;
        }
        self.layout = try arch.Layout.init(gpa, found.config);
        errdefer self.layout.deinit();

        try self.bind(diag);
        return self;
    }

    pub fn deinit(self: *Import) void {
        self.layout.deinit();
        self.file.deinit();
        self.* = undefined;
    }

    /// The parameter as f32, rows in Hugging Face's order. `param` may come from any layout of the same configuration;
    /// `out.len == param.len`.
    pub fn read(self: *const Import, param: *const arch.Parameter, out: []f32) ReadError!void {
        std.debug.assert(out.len == param.len);
        const info = self.tensorOf(param);
        const columns = if (param.rank == 1) 1 else param.shape[1];
        switch (self.rowOrder(param.role)) {
            .same => expand(info.dtype, info.data, out),
            .interleaved => |order| {
                const rows: name_map.RowOrder = .{ .interleaved = order };
                const row_bytes = info.data.len / param.shape[0]; // Whole rows: the shape was compared.
                for (0..param.shape[0]) |hf_row| {
                    const at = rows.fileRow(hf_row);
                    expand(info.dtype, info.data[at * row_bytes ..][0..row_bytes], out[hf_row * columns ..][0..columns]);
                }
            },
        }
        if (!quant.allFinite(out)) return error.NotFinite;
    }

    /// The stored tensor of a parameter: its type and its bytes, rows in the file's order.
    pub fn tensorOf(self: *const Import, param: *const arch.Parameter) *const gguf.TensorInfo {
        const own = self.layout.get(param.layer, param.role).?; // Same configuration, so it is there.
        return self.tensors[(@intFromPtr(own) - @intFromPtr(self.layout.parameters.ptr)) / @sizeOf(arch.Parameter)];
    }

    /// How the rows of this role lie in the file.
    pub fn rowOrder(self: *const Import, role: arch.Role) name_map.RowOrder {
        if (self.dialect == .abi) return .same;
        return name_map.rowOrder(self.architecture, role, self.config.head_dim);
    }

    fn bind(self: *Import, diag: *Diagnostic) Error!void {
        const tensors = try self.file.arena.allocator().alloc(*const gguf.TensorInfo, self.layout.parameters.len);
        var buffer: name_map.NameBuffer = undefined;
        for (self.layout.parameters, tensors) |*param, *slot| {
            const name = name_map.ggufName(&buffer, param.layer, param.role);
            const info = self.file.findTensor(name) orelse {
                diag.set("tensor {s} is missing", .{name});
                return error.MissingTensor;
            };
            try self.compare(param, info, diag);
            slot.* = info;
        }
        for (self.file.tensors) |*info| {
            if (std.mem.eql(u8, info.name, name_map.rope_divisors)) continue;
            const place = name_map.fromGgufName(info.name);
            if (place) |p| if (p.layer == null or p.layer.? < self.config.num_hidden_layers) {
                if (self.layout.get(p.layer, p.role) != null) continue;
            };
            diag.set("tensor {f} is not part of this model (architecture {t}, {d} layers)", .{ printable(info.name), self.architecture, self.config.num_hidden_layers });
            return error.UnexpectedTensor;
        }
        self.tensors = tensors;
    }

    fn compare(self: *const Import, param: *const arch.Parameter, info: *const gguf.TensorInfo, diag: *Diagnostic) Error!void {
        var expected: [4]usize = @splat(1);
        const dims = param.dims();
        for (0..dims.len) |i| expected[i] = if (self.dialect == .abi) dims[i] else dims[dims.len - 1 - i];
        if (!std.mem.eql(usize, &expected, &info.ne)) {
            const hint = if (dims.len == 2 and info.ne[0] == dims[0] and info.ne[1] == dims[1])
                " (dimensions stand the wrong way round, as the ABI framework wrote them)"
            else
                "";
            diag.set("tensor {s} has dimensions {any}; the keys ask for {any}{s}", .{ info.name, info.ne, expected, hint });
            return error.WrongTensorShape;
        }
        const allowed = tensor.blocks.canDequantize(info.dtype) and (!(param.role.isNorm() or param.role.isBias()) or info.dtype.isFloat());
        if (!allowed) {
            diag.set("tensor {s} has type {s}, which cannot be read here for this role. Floats can, and for matrices q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q5_k, q6_k and mxfp4", .{ info.name, info.dtype.label() });
            return error.UnsupportedTensorType;
        }
        // ABI's dimensions are reversed, so a block type may not fill the real rows.
        if (param.rank == 2 and param.shape[1] % info.dtype.blockLen() != 0) {
            diag.set("tensor {s} of type {s} has rows of {d} elements, which are not whole blocks", .{ info.name, info.dtype.label(), param.shape[1] });
            return error.UnsupportedTensorType;
        }
    }
};

fn expand(dtype: tensor.DType, raw: []const u8, out: []f32) void {
    tensor.blocks.toF32(dtype, raw, out) catch unreachable; // `open` refused types that cannot be expanded.
}

test {
    _ = @import("gguf_import_test.zig");
}
