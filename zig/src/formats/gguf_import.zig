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
    /// For each parameter of the layout, its tensors: one, or one for each of `name_map.parts`.
    tensors: []const [2]*const gguf.TensorInfo,

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
        if (param.role.isExpertWeight() or name_map.parts(param.role).len > 1) {
            for (name_map.parts(param.role)) |part| scatter(param, part, self.partOf(param, part), out);
            return if (quant.allFinite(out)) {} else error.NotFinite;
        }
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

    /// The stored tensor of a parameter: its type and its bytes, rows in the file's order. Of several it is the first.
    pub fn tensorOf(self: *const Import, param: *const arch.Parameter) *const gguf.TensorInfo {
        return self.partOf(param, name_map.parts(param.role)[0]);
    }

    /// The tensor that holds this part of a parameter, one of `name_map.parts`. Experts' rows are as a linear layer has them.
    pub fn partOf(self: *const Import, param: *const arch.Parameter, part: name_map.Part) *const gguf.TensorInfo {
        const own = self.layout.get(param.layer, param.role).?; // Same configuration, so it is there.
        return self.tensors[self.layout.positionOf(own)][if (part == .up) 1 else 0];
    }

    /// How the rows of this role lie in the file.
    pub fn rowOrder(self: *const Import, role: arch.Role) name_map.RowOrder {
        if (self.dialect == .abi) return .same;
        return name_map.rowOrder(self.architecture, role, self.config.head_dim);
    }

    fn bind(self: *Import, diag: *Diagnostic) Error!void {
        const tensors = try self.file.arena.allocator().alloc([2]*const gguf.TensorInfo, self.layout.parameters.len);
        var buffer: name_map.NameBuffer = undefined;
        for (self.layout.parameters, tensors) |*param, *slots| for (name_map.parts(param.role), 0..) |part, i| {
            const name = name_map.ggufName(&buffer, self.architecture, .{ .layer = param.layer, .role = param.role, .part = part });
            const info = self.file.findTensor(name) orelse {
                diag.set("tensor {s} is missing", .{name});
                return error.MissingTensor;
            };
            try self.compare(param, part, info, diag);
            slots[i] = info;
        };
        for (self.file.tensors) |*info| {
            if (std.mem.eql(u8, info.name, name_map.rope_divisors)) continue;
            const place = name_map.fromGgufName(self.architecture, info.name);
            if (place) |p| if (p.layer == null or p.layer.? < self.config.num_hidden_layers) {
                if (self.layout.get(p.layer, p.role) != null) continue;
            };
            diag.set("tensor {f} is not part of this model (architecture {t}, {d} layers)", .{ printable(info.name), self.architecture, self.config.num_hidden_layers });
            return error.UnexpectedTensor;
        }
        self.tensors = tensors;
    }

    fn compare(self: *const Import, param: *const arch.Parameter, part: name_map.Part, info: *const gguf.TensorInfo, diag: *Diagnostic) Error!void {
        const shape = name_map.storedShape(param, part);
        const dims = shape.dims();
        var expected = shape.ne();
        if (self.dialect == .abi) @memcpy(expected[0..dims.len], dims);
        if (!std.mem.eql(usize, &expected, &info.ne)) {
            const hint = if (dims.len == 2 and info.ne[0] == dims[0] and info.ne[1] == dims[1])
                " (dimensions stand the wrong way round, as the ABI framework wrote them)"
            else
                "";
            diag.set("tensor {s} has dimensions {any}; the keys ask for {any}{s}", .{ info.name, info.ne, expected, hint });
            return error.WrongTensorShape;
        }
        const allowed = tensor.blocks.canDequantize(info.dtype) and (!name_map.isAlwaysF32(param.role) or info.dtype.isFloat());
        if (!allowed) {
            diag.set("tensor {s} has type {s}, which cannot be read here for this role. Floats can, and for matrices q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q5_k, q6_k and mxfp4", .{ info.name, info.dtype.label() });
            return error.UnsupportedTensorType;
        }
        // ABI's dimensions are reversed, so a block type may not fill the real rows.
        if (param.rank > 1 and shape.columns() % info.dtype.blockLen() != 0) {
            diag.set("tensor {s} of type {s} has rows of {d} elements, which are not whole blocks", .{ info.name, info.dtype.label(), shape.columns() });
            return error.UnsupportedTensorType;
        }
    }
};

/// A tensor of experts to its places in the parameter: matrices turned, columns of gate or up where they alternate.
fn scatter(param: *const arch.Parameter, part: name_map.Part, info: *const gguf.TensorInfo, out: []f32) void {
    const shape = name_map.storedShape(param, part);
    const row_len = shape.columns();
    const row_bytes = info.data.len / shape.rows();
    const width = param.full[param.rank - 1];
    var piece: [1024]f32 = undefined; // Whole blocks of any type.
    for (0..shape.rows()) |row| {
        const raw = info.data[row * row_bytes ..][0..row_bytes];
        var done: usize = 0;
        while (done < row_len) {
            const values = piece[0..@min(piece.len, row_len - done)];
            expand(info.dtype, raw[done / info.dtype.blockLen() * info.dtype.blockBytes() ..][0 .. values.len / info.dtype.blockLen() * info.dtype.blockBytes()], values);
            if (param.role.isExpertWeight()) {
                const matrix = row / shape.sizes[1] * row_len * width;
                const column = part.of(row % shape.sizes[1]);
                for (values, done..) |v, i| out[matrix + i * width + column] = v;
            } else for (values, done..) |v, i| {
                out[row * width + part.of(i)] = v;
            }
            done += values.len;
        }
    }
}

fn expand(dtype: tensor.DType, raw: []const u8, out: []f32) void {
    tensor.blocks.toF32(dtype, raw, out) catch unreachable; // `open` refused types that cannot be expanded.
}

test {
    _ = @import("gguf_import_test.zig");
}
