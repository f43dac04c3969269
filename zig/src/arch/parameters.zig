//! The list of a model's parameters: names, shapes, and where each lies in one flat buffer.
//!
//! Weights, gradients and both Adam moments share one layout, so an optimizer is a walk over flat arrays. The order is
//! ABI's (token embedding; per layer q, k, v, o, attention norm, gate, up, down, MLP norm; final norm; head if untied),
//! with biases and q/k norms right behind the matrix they belong to. Names are Hugging Face's.
//! Matrices are row-major (out_features, in_features), as in PyTorch. Does not know: values, files.

const std = @import("std");
const config_file = @import("config.zig");
const ModelConfig = config_file.ModelConfig;

/// What a parameter is for. Together with `layer` it identifies the parameter.
pub const Role = enum {
    token_embedding,
    q_weight,
    q_bias,
    k_weight,
    k_bias,
    v_weight,
    v_bias,
    q_norm,
    k_norm,
    o_weight,
    o_bias,
    attention_norm,
    gate_weight,
    gate_bias,
    up_weight,
    up_bias,
    down_weight,
    down_bias,
    mlp_norm,
    final_norm,
    output,

    /// Hugging Face's name inside a layer (or of the whole tensor for those outside of layers).
    pub fn hfSuffix(self: Role) []const u8 {
        return switch (self) {
            .token_embedding => "model.embed_tokens.weight",
            .q_weight => "self_attn.q_proj.weight",
            .q_bias => "self_attn.q_proj.bias",
            .k_weight => "self_attn.k_proj.weight",
            .k_bias => "self_attn.k_proj.bias",
            .v_weight => "self_attn.v_proj.weight",
            .v_bias => "self_attn.v_proj.bias",
            .q_norm => "self_attn.q_norm.weight",
            .k_norm => "self_attn.k_norm.weight",
            .o_weight => "self_attn.o_proj.weight",
            .o_bias => "self_attn.o_proj.bias",
            .attention_norm => "input_layernorm.weight",
            .gate_weight => "mlp.gate_proj.weight",
            .gate_bias => "mlp.gate_proj.bias",
            .up_weight => "mlp.up_proj.weight",
            .up_bias => "mlp.up_proj.bias",
            .down_weight => "mlp.down_proj.weight",
            .down_bias => "mlp.down_proj.bias",
            .mlp_norm => "post_attention_layernorm.weight",
            .final_norm => "model.norm.weight",
            .output => "lm_head.weight",
        };
    }

    pub fn isNorm(self: Role) bool {
        return switch (self) {
            .q_norm, .k_norm, .attention_norm, .mlp_norm, .final_norm => true,
            else => false,
        };
    }

    pub fn isBias(self: Role) bool {
        return switch (self) {
            .q_bias, .k_bias, .v_bias, .o_bias, .gate_bias, .up_bias, .down_bias => true,
            else => false,
        };
    }

    /// Weight decay touches matrices and embeddings only, as transformers does (ABI decayed norms too).
    pub fn decays(self: Role) bool {
        return !self.isNorm() and !self.isBias();
    }
};

pub const Parameter = struct {
    /// Hugging Face's full name, owned by the layout.
    name: []const u8,
    role: Role,
    /// Null for parameters outside of layers.
    layer: ?u32,
    /// (rows, columns) of a matrix; (length, 1) of a vector.
    shape: [2]usize,
    /// 1 or 2.
    rank: u8,
    /// First element in the flat buffer.
    offset: usize,
    /// Number of elements.
    len: usize,

    pub fn dims(self: *const Parameter) []const usize {
        return self.shape[0..self.rank];
    }

    pub fn slice(self: Parameter, comptime T: type, flat: []T) []T {
        return flat[self.offset..][0..self.len];
    }

    pub fn sliceConst(self: Parameter, comptime T: type, flat: []const T) []const T {
        return flat[self.offset..][0..self.len];
    }
};

pub const LayoutError = error{ OutOfMemory, ModelTooLarge };

/// All parameters of one configuration, in flat order. `total` elements in all.
pub const Layout = struct {
    arena: std.heap.ArenaAllocator,
    parameters: []const Parameter,
    total: usize,
    /// index[layer or num_hidden_layers for the outer ones][role] → position in `parameters`, or none.
    index: []const [role_count]u32,

    const none = std.math.maxInt(u32);
    const role_count = @typeInfo(Role).@"enum".field_names.len;

    /// Caller calls `deinit`. `config` must be validated.
    pub fn init(gpa: std.mem.Allocator, config: ModelConfig) LayoutError!Layout {
        var arena: std.heap.ArenaAllocator = .init(gpa);
        errdefer arena.deinit();

        const a = arena.allocator();
        const layers = config.num_hidden_layers;
        const index = try a.alloc([role_count]u32, layers + 1);
        for (index) |*row| row.* = @splat(none);
        var builder: Builder = .{ .arena = a, .index = index, .layers = layers };
        const c: usize = config.hidden_size;
        const f: usize = config.intermediate_size;
        const q = config.queryWidth();
        const kv = config.keyValueWidth();
        const d: usize = config.head_dim;

        try builder.matrix(null, .token_embedding, config.vocab_size, c);
        for (0..layers) |l| {
            const layer: u32 = @intCast(l);
            try builder.matrix(layer, .q_weight, q, c);
            if (config.qkv_bias) try builder.vector(layer, .q_bias, q);
            try builder.matrix(layer, .k_weight, kv, c);
            if (config.qkv_bias) try builder.vector(layer, .k_bias, kv);
            try builder.matrix(layer, .v_weight, kv, c);
            if (config.qkv_bias) try builder.vector(layer, .v_bias, kv);
            if (config.qk_norm) {
                try builder.vector(layer, .q_norm, d);
                try builder.vector(layer, .k_norm, d);
            }
            try builder.matrix(layer, .o_weight, c, q);
            if (config.attention_output_bias) try builder.vector(layer, .o_bias, c);
            try builder.vector(layer, .attention_norm, c);
            try builder.matrix(layer, .gate_weight, f, c);
            if (config.mlp_bias) try builder.vector(layer, .gate_bias, f);
            try builder.matrix(layer, .up_weight, f, c);
            if (config.mlp_bias) try builder.vector(layer, .up_bias, f);
            try builder.matrix(layer, .down_weight, c, f);
            if (config.mlp_bias) try builder.vector(layer, .down_bias, c);
            try builder.vector(layer, .mlp_norm, c);
        }
        try builder.vector(null, .final_norm, c);
        if (!config.tie_word_embeddings) try builder.matrix(null, .output, config.vocab_size, c);
        return .{ .arena = arena, .parameters = builder.list.items, .total = builder.offset, .index = index };
    }

    pub fn deinit(self: *Layout) void {
        self.arena.deinit();
        self.* = undefined;
    }

    /// The parameter of this role in this layer (null layer: outside of layers), or null if the model has none.
    pub fn get(self: *const Layout, layer: ?u32, role: Role) ?*const Parameter {
        const row = layer orelse @as(u32, @intCast(self.index.len - 1));
        const position = self.index[row][@backingInt(role)];
        return if (position == none) null else &self.parameters[position];
    }

    pub fn layerCount(self: *const Layout) u32 {
        return @intCast(self.index.len - 1);
    }

    /// Where a parameter of this layout stands in `parameters`.
    pub fn positionOf(self: *const Layout, parameter: *const Parameter) usize {
        return (@intFromPtr(parameter) - @intFromPtr(self.parameters.ptr)) / @sizeOf(Parameter);
    }

    /// The head's matrix: `lm_head`, or the token embedding when tied.
    pub fn head(self: *const Layout) *const Parameter {
        return self.get(null, .output) orelse self.get(null, .token_embedding).?;
    }

    /// By Hugging Face name.
    pub fn find(self: *const Layout, name: []const u8) ?*const Parameter {
        for (self.parameters) |*p| if (std.mem.eql(u8, p.name, name)) return p;
        return null;
    }
};

const Builder = struct {
    arena: std.mem.Allocator,
    index: [][Layout.role_count]u32,
    layers: u32,
    list: std.ArrayList(Parameter) = .empty,
    offset: usize = 0,

    fn matrix(self: *Builder, layer: ?u32, role: Role, rows: usize, columns: usize) LayoutError!void {
        try self.add(layer, role, .{ rows, columns }, 2);
    }

    fn vector(self: *Builder, layer: ?u32, role: Role, len: usize) LayoutError!void {
        try self.add(layer, role, .{ len, 1 }, 1);
    }

    fn add(self: *Builder, layer: ?u32, role: Role, shape: [2]usize, rank: u8) LayoutError!void {
        const len = std.math.mul(usize, shape[0], shape[1]) catch return error.ModelTooLarge;
        const name = if (layer) |l|
            try std.fmt.allocPrint(self.arena, "model.layers.{d}.{s}", .{ l, role.hfSuffix() })
        else
            role.hfSuffix();
        self.index[layer orelse self.layers][@backingInt(role)] = @intCast(self.list.items.len);
        try self.list.append(self.arena, .{ .name = name, .role = role, .layer = layer, .shape = shape, .rank = rank, .offset = self.offset, .len = len });
        self.offset = std.math.add(usize, self.offset, len) catch return error.ModelTooLarge;
        if (self.offset > std.math.maxInt(usize) / 64) return error.ModelTooLarge;
    }
};

const test_config: ModelConfig = .{
    .vocab_size = 10,
    .hidden_size = 8,
    .intermediate_size = 12,
    .num_hidden_layers = 2,
    .num_attention_heads = 2,
    .num_key_value_heads = 1,
    .head_dim = 6,
    .qkv_bias = true,
    .qk_norm = true,
    .tie_word_embeddings = false,
};

test "parameters follow each other without holes, in ABI's order" {
    var layout = try Layout.init(std.testing.allocator, test_config);
    defer layout.deinit();

    var expected: usize = 0;
    for (layout.parameters) |p| {
        try std.testing.expectEqual(expected, p.offset);
        try std.testing.expectEqual(p.shape[0] * p.shape[1], p.len);
        expected += p.len;
    }
    try std.testing.expectEqual(expected, layout.total);
    try std.testing.expectEqualStrings("model.embed_tokens.weight", layout.parameters[0].name);
    try std.testing.expectEqualStrings("model.layers.0.self_attn.q_proj.weight", layout.parameters[1].name);
    try std.testing.expectEqualStrings("lm_head.weight", layout.parameters[layout.parameters.len - 1].name);
}

test "lookup by role and by name agree" {
    var layout = try Layout.init(std.testing.allocator, test_config);
    defer layout.deinit();

    const by_role = layout.get(1, .k_norm).?;
    try std.testing.expectEqual(by_role, layout.find("model.layers.1.self_attn.k_norm.weight").?);
    try std.testing.expect(layout.get(1, .o_bias) == null);
    try std.testing.expectEqual(layout.get(null, .output).?, layout.head());
}

test "a tied model uses the embedding as its head, and every allocation failure is survived" {
    var tied = test_config;
    tied.tie_word_embeddings = true;
    try std.testing.checkAllAllocationFailures(std.testing.allocator, struct {
        fn run(gpa: std.mem.Allocator, config: ModelConfig) !void {
            var layout = try Layout.init(gpa, config);
            defer layout.deinit();
            try std.testing.expectEqual(layout.get(null, .token_embedding).?, layout.head());
        }
    }.run, .{tied});
}
