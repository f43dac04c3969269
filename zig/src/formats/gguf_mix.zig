//! Mixes: which stored type each tensor of a file gets when a person asks for `Q4_K_M`.
//!
//! A mix is a name that llama.cpp made known: most matrices get its base type, those that suffer most (values of attention, the
//! way down out of the MLP, the head) get more bits in some layers. Rows that are no whole blocks fall back to a type they fit.
//! `Chooser` counts as it goes, so tensors must come in llama.cpp's order: by layer, those without one first, then by name.
//! The choice is llama.cpp's to the tensor; tests compare whole files. Does not know: files, numbers.

const std = @import("std");
const tensor = @import("tensor");
const DType = tensor.DType;

pub const Mix = enum {
    f32,
    f16,
    bf16,
    q8_0,
    q6_k,
    q5_k_m,
    q5_k_s,
    q4_k_m,
    q4_k_s,
    q5_1,
    q5_0,
    q4_1,
    q4_0,
    mxfp4_moe,

    /// Every name of a mix, as people are told them.
    pub const names = blk: {
        var text: []const u8 = "";
        const fields = @typeInfo(Mix).@"enum".field_names;
        for (fields, 0..) |field, i| text = text ++ (if (i == 0) "" else if (i + 1 == fields.len) " or " else ", ") ++ field;
        break :blk text;
    };

    /// In any case; `q4_k` and `q5_k` alone mean the mixes of medium size, as they do to llama.cpp.
    pub fn fromName(text: []const u8) ?Mix {
        if (std.ascii.eqlIgnoreCase(text, "q4_k")) return .q4_k_m;
        if (std.ascii.eqlIgnoreCase(text, "q5_k")) return .q5_k_m;
        inline for (@typeInfo(Mix).@"enum".field_names) |name| {
            if (std.ascii.eqlIgnoreCase(text, name)) return @field(Mix, name);
        }
        return null;
    }

    /// What most matrices get.
    pub fn baseType(self: Mix) DType {
        return switch (self) {
            .f32 => .f32,
            .f16 => .f16,
            .bf16 => .bf16,
            .q8_0 => .q8_0,
            .q6_k => .q6_k,
            .q5_k_m, .q5_k_s => .q5_k,
            .q4_k_m, .q4_k_s => .q4_k,
            .q5_1 => .q5_1,
            .q5_0 => .q5_0,
            .q4_1 => .q4_1,
            .q4_0 => .q4_0,
            .mxfp4_moe => .mxfp4,
        };
    }

    /// `general.file_type`.
    pub fn fileType(self: Mix) u32 {
        return switch (self) {
            .f32 => 0,
            .f16 => 1,
            .q4_0 => 2,
            .q4_1 => 3,
            .q8_0 => 7,
            .q5_0 => 8,
            .q5_1 => 9,
            .q4_k_s => 14,
            .q4_k_m => 15,
            .q5_k_s => 16,
            .q5_k_m => 17,
            .q6_k => 18,
            .bf16 => 32,
            .mxfp4_moe => 38,
        };
    }
};

/// What the choice depends on besides name and shape.
pub const Model = struct {
    layers: usize,
    experts: usize = 0,
    /// The head is a tensor of its own. Else the embedding, which is the head too, gets the head's type.
    has_output: bool,
    /// Tensors of the kind `attn_v`; see `isValue`.
    value_tensors: usize,
    /// Llama and Qwen2 with 80 layers and shared key heads: values get more bits there.
    is_70b: bool = false,
    has_importance: bool = false,
};

pub const Chooser = struct {
    mix: Mix,
    model: Model,
    /// Every matrix gets the base type, or what its rows fit.
    pure: bool = false,
    values_seen: usize = 0,
    downs_seen: usize = 0,

    /// The type for the tensor of this name. `ne` in GGUF's order, all four; `stored` is what it has now, and keeps where its
    /// name or rank says that nothing but a float will do.
    pub fn choose(self: *Chooser, name: []const u8, ne: [4]usize, stored: DType) DType {
        if (!canQuantize(name, ne)) return stored;
        const base = self.mix.baseType();
        if (!base.isQuantized()) return base;
        return fitting(if (self.pure) base else self.mixed(name, ne, base), ne[0]);
    }

    fn mixed(self: *Chooser, name: []const u8, ne: [4]usize, base: DType) DType {
        const kind: Kind = .of(name);
        const mix = self.mix;
        if (kind == .output or (!self.model.has_output and kind == .embedding)) {
            if (mix == .mxfp4_moe or base == .q8_0 or ne[0] % base.blockLen() != 0) return .q8_0;
            return .q6_k;
        }
        if (mix == .mxfp4_moe) return if (ne[2] > 1) .mxfp4 else .q8_0;
        const medium = mix == .q4_k_m or mix == .q5_k_m;
        const eight_experts = self.model.experts == 8;
        switch (kind) {
            .value, .fused_values => {
                defer self.values_seen += 1;
                if (eight_experts) return .q8_0;
                if (medium and moreBits(self.values_seen, self.model.value_tensors)) return .q6_k;
                if (mix == .q4_k_s and self.values_seen < 4) return .q5_k;
                if (self.model.is_70b and base == .q4_k) return .q5_k;
            },
            .key => if (eight_experts) return .q8_0,
            .attention_output => if (eight_experts and base == .q4_k) return .q5_k,
            .down => {
                defer self.downs_seen += 1;
                const layer = if (self.model.experts > 1) layerOf(name) orelse self.downs_seen else self.downs_seen;
                const begins = layer < self.model.layers / 8;
                if (medium and moreBits(layer, self.model.layers)) return .q6_k;
                if (mix == .q4_k_s and begins) return .q5_k;
                if (self.model.has_importance and begins) switch (mix) {
                    .q4_0 => return .q4_1,
                    .q5_0 => return .q5_1,
                    else => {},
                };
            },
            .embedding, .output, .other => {},
        }
        return base;
    }
};

/// The first and the last eighth, and every third between them.
fn moreBits(index: usize, count: usize) bool {
    const eighth = count / 8;
    return index < eighth or index >= 7 * count / 8 or (index - eighth) % 3 == 2;
}

const Kind = enum {
    output,
    embedding,
    value,
    /// Queries, keys and values in one, or keys and values: counted as values are.
    fused_values,
    key,
    attention_output,
    down,
    other,

    fn of(name: []const u8) Kind {
        if (std.mem.eql(u8, name, "output.weight")) return .output;
        if (std.mem.eql(u8, name, "token_embd.weight") or std.mem.eql(u8, name, "per_layer_token_embd.weight")) return .embedding;
        const kinds = .{
            .{ "attn_qkv.weight", Kind.fused_values },
            .{ "attn_kv_b.weight", Kind.fused_values },
            .{ "attn_v.weight", Kind.value },
            .{ "attn_k.weight", Kind.key },
            .{ "attn_output.weight", Kind.attention_output },
            .{ "ffn_down", Kind.down },
        };
        inline for (kinds) |entry| if (contains(name, entry[0])) return entry[1];
        return .other;
    }
};

/// Whether a tensor of this name is one of `Model.value_tensors`.
pub fn isValue(name: []const u8) bool {
    return switch (Kind.of(name)) {
        .value, .fused_values => true,
        else => false,
    };
}

/// Matrices whose coarser copy llama.cpp would refuse to run, or whose size is not worth it.
const never = [_][]const u8{
    "_norm.weight",               "ffn_gate_inp.weight",   "ffn_gate_tid2eid.weight", "altup",                 "laurel",                   "per_layer_model_proj",
    "ssm_conv1d",                 "shortconv.conv.weight", "indexer.k_proj.weight",   "indexer.q_proj.weight", "time_mix_first.weight",    "time_mix_w0.weight",
    "time_mix_w1.weight",         "time_mix_w2.weight",    "time_mix_v0.weight",      "time_mix_v1.weight",    "time_mix_v2.weight",       "time_mix_a0.weight",
    "time_mix_a1.weight",         "time_mix_a2.weight",    "time_mix_g1.weight",      "time_mix_g2.weight",    "time_mix_decay_w1.weight", "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight", "attn_rel_b.weight",     ".position_embd",          "sam.pos_embd",          "sam.neck.",                "sam.net_",
    ".rel_pos",                   ".patch_embd",           ".patch_merger",           "a.rvq.codebook",        "mm.a.code_embd",
};

/// Whether a tensor of this name and shape is ever stored in blocks or rounded.
pub fn canQuantize(name: []const u8, ne: [4]usize) bool {
    if (ne[1] == 1 and ne[2] == 1 and ne[3] == 1) return false; // One row: a vector to ggml.
    if (!std.mem.endsWith(u8, name, "weight")) return false;
    for (never) |part| if (contains(name, part)) return false;
    for ([_][]const u8{ "position_embd.weight", "token_types.weight" }) |whole| if (std.mem.eql(u8, name, whole)) return false;
    return true;
}

/// `wanted`, or where rows are not whole blocks of it the type that holds them with as many bits or more.
pub fn fitting(wanted: DType, columns: usize) DType {
    if (columns % wanted.blockLen() == 0) return wanted;
    const smaller: DType = switch (wanted) {
        .q4_k => .q5_0,
        .q5_k => .q5_1,
        .q6_k => .q8_0,
        else => .f16,
    };
    return if (columns % smaller.blockLen() == 0) smaller else .f16;
}

/// N of `blk.N.`.
pub fn layerOf(name: []const u8) ?u32 {
    if (!std.mem.startsWith(u8, name, "blk.")) return null;
    const end = std.mem.findScalar(u8, name[4..], '.') orelse return null;
    return std.fmt.parseInt(u32, name[4..][0..end], 10) catch null;
}

/// llama.cpp's order of tensors in a file it quantised.
pub fn comesBefore(a: []const u8, b: []const u8) bool {
    const x: i64 = if (layerOf(a)) |n| n else -1;
    const y: i64 = if (layerOf(b)) |n| n else -1;
    return if (x != y) x < y else std.mem.lessThan(u8, a, b);
}

fn contains(text: []const u8, part: []const u8) bool {
    return std.mem.find(u8, text, part) != null;
}

fn expectTypes(mix: Mix, model: Model, comptime suffix: []const u8, want: []const DType) !void {
    var chooser: Chooser = .{ .mix = mix, .model = model };
    for (want, 0..) |expected, layer| {
        var buffer: [64]u8 = undefined;
        const name = try std.fmt.bufPrint(&buffer, "blk.{d}." ++ suffix, .{layer});
        try std.testing.expectEqual(expected, chooser.choose(name, .{ 512, 256, 1, 1 }, .f32));
    }
}

test "names are taken in any case, and mean what they mean to llama.cpp" {
    try std.testing.expectEqual(Mix.q4_k_m, Mix.fromName("Q4_K_M").?);
    try std.testing.expectEqual(Mix.q4_k_m, Mix.fromName("q4_K").?);
    try std.testing.expectEqual(Mix.q5_k_m, Mix.fromName("Q5_K").?);
    try std.testing.expectEqual(Mix.mxfp4_moe, Mix.fromName("MXFP4_moe").?);
    try std.testing.expectEqual(null, Mix.fromName("q4_k_l"));
    try std.testing.expect(std.mem.endsWith(u8, Mix.names, "q4_0 or mxfp4_moe"));
}

test "layers in need of more bits get them" {
    const sixteen: Model = .{ .layers = 16, .has_output = true, .value_tensors = 16 };
    const k4: DType = .q4_k;
    const k6: DType = .q6_k;
    const medium = [_]DType{ k6, k6, k4, k4, k6, k4, k4, k6, k4, k4, k6, k4, k4, k6, k6, k6 };
    try expectTypes(.q4_k_m, sixteen, "attn_v.weight", &medium);
    try expectTypes(.q4_k_m, sixteen, "ffn_down.weight", &medium);
    try expectTypes(.q4_k_s, sixteen, "attn_v.weight", &.{ .q5_k, .q5_k, .q5_k, .q5_k, .q4_k, .q4_k });
    try expectTypes(.q4_k_s, sixteen, "ffn_down.weight", &.{ .q5_k, .q5_k, .q4_k, .q4_k });
    try expectTypes(.q5_k_m, sixteen, "attn_v.weight", &.{ .q6_k, .q6_k, .q5_k, .q5_k, .q6_k });
    try expectTypes(.q5_k_s, sixteen, "attn_v.weight", &.{ .q5_k, .q5_k });
    try expectTypes(.q4_k_m, sixteen, "attn_k.weight", &.{ .q4_k, .q4_k });
    var told = sixteen;
    told.has_importance = true;
    try expectTypes(.q4_0, told, "ffn_down.weight", &.{ .q4_1, .q4_1, .q4_0 });
    try expectTypes(.q5_0, told, "ffn_down.weight", &.{ .q5_1, .q5_1, .q5_0 });
    try expectTypes(.q4_0, sixteen, "ffn_down.weight", &.{ .q4_0, .q4_0 });
    const few: Model = .{ .layers = 2, .has_output = true, .value_tensors = 2 };
    try expectTypes(.q4_k_m, few, "attn_v.weight", &.{ .q4_k, .q6_k });
}

test "the head, a tied embedding, experts and odd rows" {
    var dense: Chooser = .{ .mix = .q4_k_m, .model = .{ .layers = 1, .has_output = true, .value_tensors = 1 } };
    const wide: [4]usize = .{ 512, 100, 1, 1 };
    try std.testing.expectEqual(DType.q6_k, dense.choose("output.weight", wide, .f16));
    try std.testing.expectEqual(DType.q4_k, dense.choose("token_embd.weight", wide, .f16));
    dense.model.has_output = false;
    try std.testing.expectEqual(DType.q6_k, dense.choose("token_embd.weight", wide, .f16));
    try std.testing.expectEqual(DType.q8_0, dense.choose("token_embd.weight", .{ 96, 100, 1, 1 }, .f16));
    try std.testing.expectEqual(DType.q5_0, dense.choose("blk.0.attn_q.weight", .{ 96, 100, 1, 1 }, .f16));
    try std.testing.expectEqual(DType.f16, dense.choose("blk.0.attn_q.weight", .{ 80, 100, 1, 1 }, .f32));
    for ([_][]const u8{ "blk.0.attn_norm.weight", "blk.0.ffn_gate_inp.weight", "blk.0.attn_q.bias", "output_norm.weight" }) |name|
        try std.testing.expectEqual(DType.f32, dense.choose(name, wide, .f32));
    try std.testing.expectEqual(DType.f32, dense.choose("rope_freqs.weight", .{ 32, 1, 1, 1 }, .f32));
    dense.pure = true;
    try std.testing.expectEqual(DType.q4_k, dense.choose("token_embd.weight", wide, .f16));

    var experts: Chooser = .{ .mix = .mxfp4_moe, .model = .{ .layers = 1, .experts = 4, .has_output = true, .value_tensors = 1 } };
    try std.testing.expectEqual(DType.mxfp4, experts.choose("blk.0.ffn_down_exps.weight", .{ 512, 100, 4, 1 }, .f16));
    try std.testing.expectEqual(DType.q8_0, experts.choose("blk.0.attn_q.weight", wide, .f16));
    try std.testing.expectEqual(DType.q8_0, experts.choose("output.weight", wide, .f16));
    var eight: Chooser = .{ .mix = .q4_k_m, .model = .{ .layers = 16, .experts = 8, .has_output = true, .value_tensors = 1 } };
    try std.testing.expectEqual(DType.q8_0, eight.choose("blk.0.attn_k.weight", wide, .f16));
    try std.testing.expectEqual(DType.q8_0, eight.choose("blk.0.attn_v.weight", wide, .f16));
    try std.testing.expectEqual(DType.q5_k, eight.choose("blk.0.attn_output.weight", wide, .f16));
    try std.testing.expectEqual(DType.q6_k, eight.choose("blk.15.ffn_down_exps.weight", .{ 512, 100, 8, 1 }, .f16));
    try std.testing.expectEqual(DType.q4_k, eight.choose("blk.2.ffn_down_exps.weight", .{ 512, 100, 8, 1 }, .f16));
}

test "tensors without a layer come first, then layers by number, then names by bytes" {
    const order = [_][]const u8{ "output.weight", "token_embd.weight", "blk.0.attn_k.weight", "blk.0.attn_q.weight", "blk.2.attn_k.weight", "blk.10.attn_k.weight" };
    for (order[1..], order[0 .. order.len - 1]) |b, a| {
        try std.testing.expect(comesBefore(a, b));
        try std.testing.expect(!comesBefore(b, a));
    }
}
