//! The list of a model's parameters: names, shapes, and where each lies in one flat buffer.
//!
//! Weights, gradients and both Adam moments share one layout, so an optimizer is a walk over flat arrays. The order is
//! ABI's (token embedding; per layer q, k, v, o, attention norm, gate, up, down, MLP norm; final norm; head if untied),
//! with biases and q/k norms right behind the matrix they belong to; sinks before o, and router and experts in the place of gate,
//! up and down. Names are Hugging Face's.
//! Matrices are row-major (out_features, in_features), as in PyTorch; those of experts are (expert, in_features, out_features). Does not know: values, files.

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
    sinks,
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
    router_weight,
    router_bias,
    experts_gate_up,
    experts_gate_up_bias,
    experts_down,
    experts_down_bias,
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
            .sinks => "self_attn.sinks",
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
            .router_weight => "mlp.router.weight",
            .router_bias => "mlp.router.bias",
            .experts_gate_up => "mlp.experts.gate_up_proj",
            .experts_gate_up_bias => "mlp.experts.gate_up_proj_bias",
            .experts_down => "mlp.experts.down_proj",
            .experts_down_bias => "mlp.experts.down_proj_bias",
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
            .router_bias, .experts_gate_up_bias, .experts_down_bias => true,
            else => false,
        };
    }

    /// Weights of all experts of a layer in one: [expert, in, out], each the transpose of what a linear layer keeps. Of gate_up the
    /// columns alternate: gate of unit 0, up of unit 0, gate of unit 1, …
    pub fn isExpertWeight(self: Role) bool {
        return self == .experts_gate_up or self == .experts_down;
    }

    /// Weight decay touches all but norms and biases, as in transformers (ABI decayed norms too). That includes the sinks.
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
    /// (rows, columns) of a matrix, or of each of several; (length, 1) of a vector.
    shape: [2]usize,
    /// All dimensions, those beyond `rank` 1: the experts come first.
    full: [3]usize,
    /// 1, 2 or 3.
    rank: u8,
    /// First element in the flat buffer.
    offset: usize,
    /// Number of elements.
    len: usize,

    pub fn dims(self: *const Parameter) []const usize {
        return self.full[0..self.rank];
    }

    /// How many matrices of `shape` lie behind each other.
    pub fn count(self: *const Parameter) usize {
        return if (self.rank == 3) self.full[0] else 1;
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
            if (config.attention_sinks) try builder.vector(layer, .sinks, config.num_attention_heads);
            try builder.matrix(layer, .o_weight, c, q);
            if (config.attention_output_bias) try builder.vector(layer, .o_bias, c);
            try builder.vector(layer, .attention_norm, c);
            if (config.hasExperts()) {
                const e: usize = config.num_local_experts;
                try builder.matrix(layer, .router_weight, e, c);
                try builder.vector(layer, .router_bias, e);
                try builder.matrices(layer, .experts_gate_up, e, c, 2 * f);
                try builder.matrix(layer, .experts_gate_up_bias, e, 2 * f);
                try builder.matrices(layer, .experts_down, e, f, c);
                try builder.matrix(layer, .experts_down_bias, e, c);
                try builder.vector(layer, .mlp_norm, c);
                continue;
            }
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
        try self.add(layer, role, .{ rows, columns, 1 }, 2);
    }

    fn matrices(self: *Builder, layer: ?u32, role: Role, count: usize, rows: usize, columns: usize) LayoutError!void {
        try self.add(layer, role, .{ count, rows, columns }, 3);
    }

    fn vector(self: *Builder, layer: ?u32, role: Role, len: usize) LayoutError!void {
        try self.add(layer, role, .{ len, 1, 1 }, 1);
    }

    fn add(self: *Builder, layer: ?u32, role: Role, full: [3]usize, rank: u8) LayoutError!void {
        var len: usize = 1;
        for (full) |n| len = std.math.mul(usize, len, n) catch return error.ModelTooLarge;
        const shape: [2]usize = if (rank == 3) .{ full[1], full[2] } else .{ full[0], full[1] };
        const name = if (layer) |l|
            try std.fmt.allocPrint(self.arena, "model.layers.{d}.{s}", .{ l, role.hfSuffix() })
        else
            role.hfSuffix();
        self.index[layer orelse self.layers][@backingInt(role)] = @intCast(self.list.items.len);
        try self.list.append(self.arena, .{ .name = name, .role = role, .layer = layer, .shape = shape, .full = full, .rank = rank, .offset = self.offset, .len = len });
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

test "a mixture has router and experts in the place of the dense MLP, and sinks decay as in transformers" {
    var config = test_config;
    config.model_type = .gpt_oss;
    config.qk_norm = false;
    config.attention_sinks = true;
    config.attention_output_bias = true;
    config.num_local_experts = 3;
    config.num_experts_per_tok = 2;
    var layout = try Layout.init(std.testing.allocator, config);
    defer layout.deinit();

    try std.testing.expect(layout.get(0, .gate_weight) == null);
    const gate_up = layout.find("model.layers.1.mlp.experts.gate_up_proj").?;
    try std.testing.expectEqualSlices(usize, &.{ 3, 8, 24 }, gate_up.dims());
    try std.testing.expectEqual(.{ 8, 24 }, .{ gate_up.shape[0], gate_up.shape[1] });
    try std.testing.expectEqual(3, gate_up.count());
    try std.testing.expectEqualSlices(usize, &.{ 3, 24 }, layout.get(0, .experts_gate_up_bias).?.dims());
    try std.testing.expectEqualSlices(usize, &.{2}, layout.get(0, .sinks).?.dims());
    try std.testing.expect(layout.get(0, .sinks).?.role.decays());
    try std.testing.expect(!layout.get(0, .experts_down_bias).?.role.decays());
    try std.testing.expect(!layout.get(0, .router_bias).?.role.decays());
}
