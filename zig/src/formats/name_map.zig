//! Where Hugging Face's and GGUF's words for one model meet: tensor names, row orders, who may have what.
//!
//! A GGUF file of architecture `llama` keeps the rows of q and k in the order of the original Llama code, where rotary pairs
//! are neighbours (2i, 2i+1); Hugging Face, and everything in this project, has them half a head apart (i, i + D/2).
//! `rowOrder` is the only place that knows which rows. Mistral is written as `llama`, which is what it is.
//! Of experts GGUF has each matrix as a linear layer keeps it, [expert, out, in], and gate and up apart; here they are one parameter
//! [expert, in, out] whose columns alternate. `parts`, `storedShape` and `Part.of` say which numbers those are.
//! Does not know: files, keys, numbers.

const std = @import("std");
const base = @import("base");
const tensor = @import("tensor");
const arch = @import("arch");
const Role = arch.Role;
const DType = tensor.DType;

/// `general.architecture`.
pub const Architecture = enum {
    llama,
    qwen2,
    qwen3,
    @"gpt-oss",

    pub fn of(model_type: arch.ModelType) Architecture {
        return switch (model_type) {
            .llama, .mistral => .llama,
            .qwen2 => .qwen2,
            .qwen3 => .qwen3,
            .gpt_oss => .@"gpt-oss",
        };
    }

    pub fn fromName(text: []const u8) ?Architecture {
        return std.meta.stringToEnum(Architecture, text);
    }

    /// The model type a file of this architecture is read as.
    pub fn modelType(self: Architecture) arch.ModelType {
        return switch (self) {
            .llama => .llama,
            .qwen2 => .qwen2,
            .qwen3 => .qwen3,
            .@"gpt-oss" => .gpt_oss,
        };
    }
};

pub const Presence = enum {
    /// Without it the file does not load, or loads and is wrong.
    required,
    optional,
    /// llama.cpp refuses files with tensors that it does not use.
    forbidden,
};

pub fn presence(architecture: Architecture, role: Role) Presence {
    if (architecture == .@"gpt-oss") return switch (role) {
        .q_norm, .k_norm, .gate_weight, .gate_bias, .up_weight, .up_bias, .down_weight, .down_bias => .forbidden,
        else => .required,
    };
    return switch (role) {
        .token_embedding, .q_weight, .k_weight, .v_weight, .o_weight => .required,
        .attention_norm, .gate_weight, .up_weight, .down_weight, .mlp_norm, .final_norm => .required,
        .sinks, .router_weight, .router_bias, .experts_gate_up, .experts_gate_up_bias, .experts_down, .experts_down_bias => .forbidden,
        .output => .optional,
        .q_bias, .k_bias, .v_bias => if (architecture == .qwen2) .required else .optional,
        .q_norm, .k_norm => if (architecture == .qwen3) .required else .forbidden,
        .o_bias, .gate_bias, .up_bias, .down_bias => if (architecture == .llama) .optional else .forbidden,
    };
}

/// Which numbers of a parameter a tensor of the file holds.
pub const Part = enum {
    whole,
    /// The even columns of gate_up.
    gate,
    /// The odd ones.
    up,

    /// Where column `column` of the tensor's matrices stands in the parameter.
    pub fn of(self: Part, column: usize) usize {
        return switch (self) {
            .whole => column,
            .gate => 2 * column,
            .up => 2 * column + 1,
        };
    }

    /// How many columns of the parameter are in the tensor.
    pub fn share(self: Part, columns: usize) usize {
        return if (self == .whole) columns else columns / 2;
    }
};

/// The tensors a parameter of this role is stored in, in the order they are written.
pub fn parts(role: Role) []const Part {
    return switch (role) {
        .experts_gate_up, .experts_gate_up_bias => &.{ .gate, .up },
        else => &.{.whole},
    };
}

/// Dimensions of a tensor in PyTorch's order: (experts, rows, columns), (rows, columns) or (length).
pub const Shape = struct {
    sizes: [3]usize,
    rank: usize,

    pub fn dims(self: *const Shape) []const usize {
        return self.sizes[0..self.rank];
    }

    /// The same as GGUF lists them: all four, row length first.
    pub fn ne(self: *const Shape) [4]usize {
        var out: [4]usize = @splat(1);
        for (0..self.rank) |i| out[i] = self.sizes[self.rank - 1 - i];
        return out;
    }

    /// Length of a row, and how many rows there are in all.
    pub fn columns(self: *const Shape) usize {
        return self.sizes[self.rank - 1];
    }

    pub fn rows(self: *const Shape) usize {
        var n: usize = 1;
        for (self.sizes[0 .. self.rank - 1]) |size| n *= size; // At most the parameter's length.
        return n;
    }
};

/// The shape of the tensor that holds this part of the parameter.
pub fn storedShape(p: *const arch.Parameter, part: Part) Shape {
    if (p.role.isExpertWeight()) return .{ .sizes = .{ p.full[0], part.share(p.full[2]), p.full[1] }, .rank = 3 };
    var shape: Shape = .{ .sizes = p.full, .rank = p.rank };
    shape.sizes[shape.rank - 1] = part.share(shape.sizes[shape.rank - 1]);
    return shape;
}

/// A tensor of the file, in the words of this project.
pub const Place = struct {
    /// Null for tensors outside of layers.
    layer: ?u32 = null,
    role: Role,
    part: Part = .whole,
};

/// The name inside `blk.N.`, or the whole name for tensors outside of layers.
pub fn ggufSuffix(architecture: Architecture, role: Role, part: Part) []const u8 {
    return switch (role) {
        .token_embedding => "token_embd.weight",
        .q_weight => "attn_q.weight",
        .q_bias => "attn_q.bias",
        .k_weight => "attn_k.weight",
        .k_bias => "attn_k.bias",
        .v_weight => "attn_v.weight",
        .v_bias => "attn_v.bias",
        .q_norm => "attn_q_norm.weight",
        .k_norm => "attn_k_norm.weight",
        .sinks => "attn_sinks.weight",
        .o_weight => "attn_output.weight",
        .o_bias => "attn_output.bias",
        .attention_norm => "attn_norm.weight",
        .gate_weight => "ffn_gate.weight",
        .gate_bias => "ffn_gate.bias",
        .up_weight => "ffn_up.weight",
        .up_bias => "ffn_up.bias",
        .down_weight => "ffn_down.weight",
        .down_bias => "ffn_down.bias",
        .mlp_norm => if (architecture == .@"gpt-oss") "post_attention_norm.weight" else "ffn_norm.weight",
        .router_weight => "ffn_gate_inp.weight",
        .router_bias => "ffn_gate_inp.bias",
        .experts_gate_up => if (part == .up) "ffn_up_exps.weight" else "ffn_gate_exps.weight",
        .experts_gate_up_bias => if (part == .up) "ffn_up_exps.bias" else "ffn_gate_exps.bias",
        .experts_down => "ffn_down_exps.weight",
        .experts_down_bias => "ffn_down_exps.bias",
        .final_norm => "output_norm.weight",
        .output => "output.weight",
    };
}

/// Divisors of the rotary frequencies: written when Llama 3 scaling is on, one for the whole model.
pub const rope_divisors = "rope_freqs.weight";

pub const NameBuffer = [64]u8;

/// `blk.3.attn_q.weight`. The text lies in `buffer` or is static.
pub fn ggufName(buffer: *NameBuffer, architecture: Architecture, place: Place) []const u8 {
    const suffix = ggufSuffix(architecture, place.role, place.part);
    const l = place.layer orelse return suffix;
    return std.fmt.bufPrint(buffer, "blk.{d}.{s}", .{ l, suffix }) catch unreachable; // 4 + 10 + 1 + 26 < 64.
}

/// The other way; null for names that no model of this architecture has.
pub fn fromGgufName(architecture: Architecture, name: []const u8) ?Place {
    if (std.mem.startsWith(u8, name, "blk.")) {
        const rest = name[4..];
        const dot = std.mem.findScalar(u8, rest, '.') orelse return null;
        const digits = rest[0..dot];
        if (digits.len > 1 and digits[0] == '0') return null; // `blk.01.` would be a second name for layer 1.
        for (digits) |c| if (!std.ascii.isDigit(c)) return null;
        const layer = std.fmt.parseInt(u32, digits, 10) catch return null;
        var place = placeOf(architecture, rest[dot + 1 ..]) orelse return null;
        place.layer = layer;
        return if (isOuter(place.role)) null else place;
    }
    const place = placeOf(architecture, name) orelse return null;
    return if (isOuter(place.role)) place else null;
}

fn placeOf(architecture: Architecture, suffix: []const u8) ?Place {
    inline for (@typeInfo(Role).@"enum".field_names) |field| {
        const role = @field(Role, field);
        if (presence(architecture, role) != .forbidden) for (parts(role)) |part| {
            if (std.mem.eql(u8, suffix, ggufSuffix(architecture, role, part))) return .{ .role = role, .part = part };
        };
    }
    return null;
}

fn isOuter(role: Role) bool {
    return switch (role) {
        .token_embedding, .final_norm, .output => true,
        else => false,
    };
}

pub const RowOrder = tensor.RowOrder;

pub fn rowOrder(architecture: Architecture, role: Role, head_dim: usize) RowOrder {
    if (architecture != .llama) return .same;
    return switch (role) {
        .q_weight, .q_bias, .k_weight, .k_bias => .{ .interleaved = .{ .head_dim = head_dim } },
        else => .same,
    };
}

/// Whether a tensor of this role is f32 in every file: llama.cpp aborts at run time on norms and biases that are not, and its
/// quantiser leaves sinks and routers alone.
pub fn isAlwaysF32(role: Role) bool {
    return role.isNorm() or role.isBias() or role == .sinks or role == .router_weight;
}

/// The type a tensor is stored in when the user asks for `wanted`: norms, biases, sinks and routers stay f32, rows that are not
/// whole blocks get the next larger type they fit, as llama.cpp's quantiser gives them.
pub fn storedType(role: Role, columns: usize, wanted: DType) DType {
    if (isAlwaysF32(role)) return .f32;
    var dtype = wanted;
    while (columns % dtype.blockLen() != 0) dtype = switch (dtype) {
        .q4_k => .q5_0,
        .q5_k => .q5_1,
        .q6_k => .q8_0,
        else => .f16,
    };
    return dtype;
}

pub const ExportError = error{NotExpressible};

/// Whether GGUF and llama.cpp can say what this model is. `diag` names the field when not.
pub fn checkExpressible(config: arch.ModelConfig, diag: *base.Diagnostic) ExportError!void {
    const architecture: Architecture = .of(config.model_type);
    const flags = .{
        .{ "qkv_bias", Role.q_bias },
        .{ "attention_output_bias", Role.o_bias },
        .{ "mlp_bias", Role.gate_bias },
        .{ "qk_norm", Role.q_norm },
    };
    inline for (flags) |flag| {
        const has = @field(config, flag[0]);
        const rule = presence(architecture, flag[1]);
        if (has and rule == .forbidden) return refuse(diag, "{s} is on, but GGUF's architecture {t} has no such tensors", .{ flag[0], architecture });
        if (!has and rule == .required) return refuse(diag, "{s} is off, but GGUF's architecture {t} needs those tensors", .{ flag[0], architecture });
    }
    if (architecture == .qwen2 and config.queryWidth() != config.hidden_size)
        return refuse(diag, "head_dim is {d} and hidden_size {d}; GGUF's architecture qwen2 needs head_dim · heads = hidden_size", .{ config.head_dim, config.hidden_size });
    if (config.rope_scaling == .llama3 and architecture != .llama)
        return refuse(diag, "rope_scaling is llama3, which GGUF's architecture {t} ignores", .{architecture});
    if (config.rope_scaling == .yarn and architecture != .@"gpt-oss")
        return refuse(diag, "rope_scaling is yarn, which is written for gpt-oss only", .{});
    if (architecture == .@"gpt-oss") try checkMixture(config, diag);
    if (config.num_hidden_layers > 512)
        return refuse(diag, "num_hidden_layers is {d}; llama.cpp reads at most 512", .{config.num_hidden_layers});
}

/// What every program takes for granted in gpt-oss: no key says it.
pub const gpt_oss = struct {
    pub const limit = 7.0;
    pub const alpha = 1.702;
    pub const beta_fast = 32.0;
    pub const beta_slow = 1.0;
};

fn checkMixture(config: arch.ModelConfig, diag: *base.Diagnostic) ExportError!void {
    const architecture: Architecture = .@"gpt-oss";
    if (config.swiglu_limit != gpt_oss.limit)
        return refuse(diag, "swiglu_limit is {d}, and every program that reads {t} takes it for {d}", .{ config.swiglu_limit, architecture, gpt_oss.limit });
    if (config.swiglu_alpha != gpt_oss.alpha)
        return refuse(diag, "swiglu_alpha is {d}, and every program that reads {t} takes it for {d}", .{ config.swiglu_alpha, architecture, gpt_oss.alpha });
    if (config.rope_scaling != .yarn) return refuse(diag, "rope_scaling is {t}; {t} is written with yarn", .{ config.rope_scaling, architecture });
    const yarn = config.rope_scaling.yarn;
    if (yarn.beta_fast != gpt_oss.beta_fast or yarn.beta_slow != gpt_oss.beta_slow)
        return refuse(diag, "rope_scaling has beta_fast {d} and beta_slow {d}, and every program that reads {t} takes them for 32 and 1", .{ yarn.beta_fast, yarn.beta_slow, architecture });
    var usual = yarn;
    usual.attention_factor = null;
    if (@abs(yarn.magnitude() - usual.magnitude()) > 1e-6)
        return refuse(diag, "rope_scaling.attention_factor is {d}; {t} is read with {d} for this factor", .{ yarn.magnitude(), architecture, usual.magnitude() });
}

fn refuse(diag: *base.Diagnostic, comptime format: []const u8, arguments: anytype) ExportError {
    diag.set(format ++ ". Such a model cannot be written as GGUF.", arguments);
    return error.NotExpressible;
}

test "every tensor's name comes back as the same place" {
    var buffer: NameBuffer = undefined;
    for ([_]Architecture{ .llama, .qwen2, .qwen3, .@"gpt-oss" }) |architecture| {
        inline for (@typeInfo(Role).@"enum".field_names) |field| {
            const role = @field(Role, field);
            for (parts(role)) |part| for ([_]u32{ 0, 7, 511, std.math.maxInt(u32) }) |n| {
                const wanted: Place = .{ .layer = if (isOuter(role)) null else n, .role = role, .part = part };
                const found = fromGgufName(architecture, ggufName(&buffer, architecture, wanted));
                if (presence(architecture, role) == .forbidden)
                    try std.testing.expectEqual(null, found)
                else
                    try std.testing.expectEqual(wanted, found.?);
            };
        }
    }
}

test "names that are nearly right, or another architecture's, are not taken" {
    for ([_][]const u8{ "", "blk.", "blk.0", "blk.0.", "blk.0.output.weight", "blk.01.attn_q.weight", "blk.-1.attn_q.weight", "blk.+1.attn_q.weight", "blk.1_0.attn_q.weight", "blk.99999999999.attn_q.weight", "attn_q.weight", "output.weight ", "blk.0.attn_qkv.weight", "blk.0.ffn_gate_exps.weight" }) |name|
        try std.testing.expectEqual(@as(?Place, null), fromGgufName(.llama, name));
    for ([_][]const u8{ "blk.0.ffn_norm.weight", "blk.0.ffn_gate.weight", "blk.0.ffn_gate_up_exps.weight", "blk.0.attn_sinks" }) |name|
        try std.testing.expectEqual(@as(?Place, null), fromGgufName(.@"gpt-oss", name));
}

test "experts are stored as linear layers, gate and up apart" {
    var layout = try arch.Layout.init(std.testing.allocator, .{
        .model_type = .gpt_oss,
        .vocab_size = 8,
        .hidden_size = 6,
        .intermediate_size = 10,
        .num_hidden_layers = 1,
        .num_attention_heads = 2,
        .num_key_value_heads = 1,
        .head_dim = 4,
        .num_local_experts = 3,
        .num_experts_per_tok = 1,
    });
    defer layout.deinit();

    const gate_up = layout.get(0, .experts_gate_up).?; // [3, 6, 20]
    try std.testing.expectEqual([4]usize{ 6, 10, 3, 1 }, storedShape(gate_up, .up).ne());
    try std.testing.expectEqual(30, storedShape(gate_up, .gate).rows());
    try std.testing.expectEqual(6, storedShape(gate_up, .gate).columns());
    try std.testing.expectEqual([4]usize{ 10, 6, 3, 1 }, storedShape(layout.get(0, .experts_down).?, .whole).ne());
    const bias = storedShape(layout.get(0, .experts_gate_up_bias).?, .gate);
    try std.testing.expectEqualSlices(usize, &.{ 3, 10 }, bias.dims());
    try std.testing.expectEqual([4]usize{ 6, 1, 1, 1 }, storedShape(layout.get(null, .final_norm).?, .whole).ne());
    try std.testing.expectEqual(.{ 4, 5 }, .{ Part.gate.of(2), Part.up.of(2) });
}

test "rows go to neighbours and come back, head by head" {
    const order: RowOrder = .{ .interleaved = .{ .head_dim = 6 } };
    // HF 0 1 2 | 3 4 5 becomes 0 3 1 4 2 5.
    for ([_]usize{ 0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11 }, 0..) |hf, g| try std.testing.expectEqual(hf, order.hfRow(g));
    for ([_]usize{ 2, 4, 16, 64, 128 }) |head_dim| {
        const o: RowOrder = .{ .interleaved = .{ .head_dim = head_dim } };
        for (0..3 * head_dim) |row| {
            try std.testing.expectEqual(row, o.fileRow(o.hfRow(row)));
            try std.testing.expectEqual(row, o.hfRow(o.fileRow(row)));
        }
    }
    try std.testing.expectEqual(RowOrder.same, rowOrder(.qwen2, .q_weight, 8));
    try std.testing.expectEqual(RowOrder.same, rowOrder(.llama, .v_weight, 8));
    try std.testing.expect(rowOrder(.llama, .k_bias, 8) == .interleaved);
}

test "norms and biases stay f32, odd rows become f16" {
    try std.testing.expectEqual(DType.f32, storedType(.attention_norm, 1, .q8_0));
    try std.testing.expectEqual(DType.f32, storedType(.q_bias, 1, .f16));
    try std.testing.expectEqual(DType.f32, storedType(.sinks, 8, .f16));
    try std.testing.expectEqual(DType.f32, storedType(.router_weight, 64, .q8_0));
    try std.testing.expectEqual(DType.mxfp4, storedType(.experts_down, 64, .mxfp4));
    try std.testing.expectEqual(DType.q8_0, storedType(.q_weight, 64, .q8_0));
    try std.testing.expectEqual(DType.f16, storedType(.down_weight, 80, .q8_0));
    try std.testing.expectEqual(DType.bf16, storedType(.down_weight, 81, .bf16));
    try std.testing.expectEqual(DType.q4_k, storedType(.down_weight, 512, .q4_k));
    try std.testing.expectEqual(DType.q5_0, storedType(.down_weight, 96, .q4_k));
    try std.testing.expectEqual(DType.q8_0, storedType(.down_weight, 96, .q6_k));
    try std.testing.expectEqual(DType.f16, storedType(.down_weight, 80, .q5_k));
}

test "models that GGUF cannot say are refused with the field's name" {
    const sound: arch.ModelConfig = .{ .vocab_size = 8, .hidden_size = 16, .intermediate_size = 8, .num_hidden_layers = 1, .num_attention_heads = 2, .num_key_value_heads = 1, .head_dim = 8 };
    var diag: base.Diagnostic = .{};
    try checkExpressible(sound, &diag);
    const cases = .{
        .{ "qk_norm", .{ .model_type = .llama, .qk_norm = true } },
        .{ "qkv_bias", .{ .model_type = .qwen2, .qkv_bias = false } },
        .{ "mlp_bias", .{ .model_type = .qwen3, .qk_norm = true, .mlp_bias = true } },
        .{ "head_dim", .{ .model_type = .qwen2, .qkv_bias = true, .head_dim = 16 } },
        .{ "rope_scaling", .{ .model_type = .qwen3, .qk_norm = true, .rope_scaling = arch.RopeScaling{ .llama3 = .{ .factor = 8, .low_freq_factor = 1, .high_freq_factor = 4, .original_max_position_embeddings = 64 } } } },
        .{ "num_hidden_layers", .{ .num_hidden_layers = 513 } },
    };
    inline for (cases) |case| {
        var config = sound;
        inline for (@typeInfo(@TypeOf(case[1])).@"struct".field_names) |field| @field(config, field) = @field(case[1], field);
        try std.testing.expectError(error.NotExpressible, checkExpressible(config, &diag));
        try std.testing.expect(std.mem.startsWith(u8, diag.text(), case[0]));
    }
}

test "a mixture whose activation, positions or parts no key can say is refused" {
    const yarn: arch.config.Yarn = .{ .factor = 32, .original_max_position_embeddings = 4096, .truncate = false };
    const sound: arch.ModelConfig = .{ .model_type = .gpt_oss, .vocab_size = 8, .hidden_size = 32, .intermediate_size = 32, .num_hidden_layers = 1, .num_attention_heads = 2, .num_key_value_heads = 1, .head_dim = 16, .qkv_bias = true, .attention_output_bias = true, .attention_sinks = true, .num_local_experts = 2, .num_experts_per_tok = 1, .swiglu_limit = 7, .rope_scaling = .{ .yarn = yarn } };
    var diag: base.Diagnostic = .{};
    try checkExpressible(sound, &diag);
    var slow = yarn;
    slow.beta_slow = 2;
    var loud = yarn;
    loud.attention_factor = 1;
    const cases = .{
        .{ "swiglu_limit is 6", .{ .swiglu_limit = 6 } },
        .{ "swiglu_alpha is 1", .{ .swiglu_alpha = 1 } },
        .{ "qkv_bias is off", .{ .qkv_bias = false } },
        .{ "rope_scaling is none", .{ .rope_scaling = .none } },
        .{ "rope_scaling has beta_fast 32 and beta_slow 2", .{ .rope_scaling = arch.RopeScaling{ .yarn = slow } } },
        .{ "rope_scaling.attention_factor is 1", .{ .rope_scaling = arch.RopeScaling{ .yarn = loud } } },
    };
    inline for (cases) |case| {
        var config = sound;
        inline for (@typeInfo(@TypeOf(case[1])).@"struct".field_names) |field| @field(config, field) = @field(case[1], field);
        try std.testing.expectError(error.NotExpressible, checkExpressible(config, &diag));
        try std.testing.expect(std.mem.startsWith(u8, diag.text(), case[0]));
    }
    var usual = yarn;
    usual.attention_factor = 1.3465735902799727; // What it is anyway.
    var same = sound;
    same.rope_scaling = .{ .yarn = usual };
    try checkExpressible(same, &diag);
}
