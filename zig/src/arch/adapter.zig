//! The list of a LoRA adapter's parameters: which modules it changes, names, shapes, and where each lies in one flat buffer.
//!
//! A module computes W·x + scale · B·(A·x); A is [rank, in], B is [out, rank], row-major. Of a layer's E experts A is [E·rank, in], row e·rank + j
//! being row j of expert e, and B is [out, rank·E], column j·E + e being column j of expert e: PEFT's order, slow in one and fast in the other. Names and shapes are PEFT's, so the
//! list is also the contents of `adapter_model.safetensors`. Order: embeddings; per layer q, k, v, o, gate, up, down; head;
//! A before B. The parameters are `arch.Parameter`s with the role of the weight they belong to: whatever walks over a model's
//! parameters (optimizer, checkpoint) walks over these too. Does not know: values, files, how ranks were chosen.

const std = @import("std");
const parameters_file = @import("parameters.zig");
const Layout = parameters_file.Layout;
const Parameter = parameters_file.Parameter;
const Role = parameters_file.Role;

/// A kind of module an adapter may change, by Hugging Face's name.
pub const Target = enum {
    embed_tokens,
    q_proj,
    k_proj,
    v_proj,
    o_proj,
    gate_proj,
    up_proj,
    down_proj,
    /// Both of all experts of a layer: parameters to PEFT (`target_parameters`), not modules.
    experts_gate_up,
    experts_down,
    lm_head,

    /// What layers have as linear modules, and what of them may be adapted.
    pub const linear_in_layers = [_]Target{ .q_proj, .k_proj, .v_proj, .o_proj, .gate_proj, .up_proj, .down_proj };
    pub const in_layers = linear_in_layers ++ [_]Target{ .experts_gate_up, .experts_down };

    /// The weight the module multiplies with.
    pub fn role(self: Target) Role {
        return switch (self) {
            .embed_tokens => .token_embedding,
            .q_proj => .q_weight,
            .k_proj => .k_weight,
            .v_proj => .v_weight,
            .o_proj => .o_weight,
            .gate_proj => .gate_weight,
            .up_proj => .up_weight,
            .down_proj => .down_weight,
            .experts_gate_up => .experts_gate_up,
            .experts_down => .experts_down,
            .lm_head => .output,
        };
    }

    /// The bias the module adds, in models that have one.
    pub fn biasRole(self: Target) ?Role {
        return switch (self) {
            .embed_tokens, .lm_head => null,
            .q_proj => .q_bias,
            .k_proj => .k_bias,
            .v_proj => .v_bias,
            .o_proj => .o_bias,
            .gate_proj => .gate_bias,
            .up_proj => .up_bias,
            .down_proj => .down_bias,
            .experts_gate_up => .experts_gate_up_bias,
            .experts_down => .experts_down_bias,
        };
    }

    pub fn isInLayer(self: Target) bool {
        return self != .embed_tokens and self != .lm_head;
    }

    pub fn isExperts(self: Target) bool {
        return self == .experts_gate_up or self == .experts_down;
    }

    /// Whether the model has such a module there.
    pub fn existsIn(self: Target, layout: *const Layout, layer: ?u32) bool {
        return self == .lm_head or layout.get(layer, self.role()) != null;
    }

    /// The module's weight in a model. A tied head is the embedding's matrix.
    pub fn weightOf(self: Target, layout: *const Layout, layer: ?u32) *const Parameter {
        return if (self == .lm_head) layout.head() else layout.get(layer, self.role()).?;
    }
};

/// What to put on one module.
pub const ModuleSpec = struct {
    target: Target,
    /// Null for embeddings and head.
    layer: ?u32,
    rank: usize,
    alpha: f64,
    /// Scale by alpha/√rank instead of alpha/rank.
    rank_stabilized: bool = false,
};

pub const Module = struct {
    target: Target,
    layer: ?u32,
    /// `model.layers.3.self_attn.q_proj`, owned by the layout.
    path: []const u8,
    /// Width of what goes in (an embedding's is the vocabulary) and of what comes out.
    in: usize,
    out: usize,
    /// How many experts share the two parameters; 1 for everything else.
    experts: usize = 1,
    /// Of one expert, where there are several.
    rank: usize,
    alpha: f64,
    scale: f64,
    a: Parameter,
    b: Parameter,
};

pub const AdapterError = error{
    OutOfMemory,
    ModelTooLarge,
    /// No module at all, or one twice.
    InvalidAdapter,
    /// 0, or above the narrower side of the module.
    InvalidRank,
};

/// All parameters of one adapter, in flat order. `total` elements in all.
pub const AdapterLayout = struct {
    arena: std.heap.ArenaAllocator,
    modules: []const Module,
    /// Two a module: A, then B.
    parameters: []const Parameter,
    total: usize,
    /// index[layer, or number of layers for the outer ones][target] → position in `modules`, or none.
    index: []const [target_count]u32,

    const none = std.math.maxInt(u32);
    const target_count = @typeInfo(Target).@"enum".field_names.len;

    /// `specs` in any order; `layout` is the base model's. Caller calls `deinit`.
    pub fn init(gpa: std.mem.Allocator, layout: *const Layout, specs: []const ModuleSpec) AdapterError!AdapterLayout {
        if (specs.len == 0) return error.InvalidAdapter;
        var arena: std.heap.ArenaAllocator = .init(gpa);
        errdefer arena.deinit();

        const a = arena.allocator();
        const layers: u32 = layout.layerCount();
        const sorted = try a.dupe(ModuleSpec, specs);
        std.mem.sort(ModuleSpec, sorted, layers, before);
        const index = try a.alloc([target_count]u32, layers + 1);
        for (index) |*row| row.* = @splat(none);
        const modules = try a.alloc(Module, sorted.len);
        const list = try a.alloc(Parameter, 2 * sorted.len);
        var offset: usize = 0;
        for (sorted, modules, 0..) |spec, *module, i| {
            std.debug.assert(spec.target.isInLayer() == (spec.layer != null));
            const slot = &index[spec.layer orelse layers][@backingInt(spec.target)];
            if (slot.* != none) return error.InvalidAdapter;
            slot.* = @intCast(i);
            module.* = try describe(a, layout, spec, hasBothExperts(sorted, spec.layer), &offset);
            list[2 * i] = module.a;
            list[2 * i + 1] = module.b;
        }
        return .{ .arena = arena, .modules = modules, .parameters = list, .total = offset, .index = index };
    }

    pub fn deinit(self: *AdapterLayout) void {
        self.arena.deinit();
        self.* = undefined;
    }

    /// The module on this place of the model, or null if the adapter leaves it alone.
    pub fn get(self: *const AdapterLayout, layer: ?u32, target: Target) ?*const Module {
        const position = self.positionOf(layer, target) orelse return null;
        return &self.modules[position];
    }

    pub fn positionOf(self: *const AdapterLayout, layer: ?u32, target: Target) ?usize {
        const row = layer orelse @as(u32, @intCast(self.index.len - 1));
        const position = self.index[row][@backingInt(target)];
        return if (position == none) null else position;
    }

    pub fn maxRank(self: *const AdapterLayout) usize {
        var most: usize = 0;
        for (self.modules) |module| most = @max(most, module.rank);
        return most;
    }

    /// True when both put the same ranks and scales on the same modules.
    pub fn sameAs(self: *const AdapterLayout, other: *const AdapterLayout) bool {
        if (self.modules.len != other.modules.len) return false;
        for (self.modules, other.modules) |x, y| {
            if (!std.mem.eql(u8, x.path, y.path)) return false;
            if (x.rank != y.rank or x.scale != y.scale or x.in != y.in or x.out != y.out) return false;
        }
        return true;
    }
};

fn before(layers: u32, x: ModuleSpec, y: ModuleSpec) bool {
    const rank = struct {
        fn of(count: u32, spec: ModuleSpec) u64 {
            const layer: u64 = if (spec.layer) |l| @as(u64, l) + 1 else if (spec.target == .embed_tokens) 0 else @as(u64, count) + 1;
            return layer * 64 + @backingInt(spec.target);
        }
    }.of;
    return rank(layers, x) < rank(layers, y);
}

fn describe(arena: std.mem.Allocator, layout: *const Layout, spec: ModuleSpec, both_experts: bool, offset: *usize) AdapterError!Module {
    const weight = spec.target.weightOf(layout, spec.layer);
    const embedding = spec.target == .embed_tokens;
    // An embedding picks a row of its [vocabulary, width] matrix: seen as a product, it goes from vocabulary to width.
    // Experts' weights are [in, out] each.
    const turned = embedding or weight.role.isExpertWeight();
    const in = if (turned) weight.shape[0] else weight.shape[1];
    const out = if (turned) weight.shape[1] else weight.shape[0];
    const experts = weight.count();
    if (spec.rank == 0 or spec.rank > @min(in, out)) return error.InvalidRank;
    const path = try modulePath(arena, spec.target, spec.layer);
    const key_path = if (weight.role.isExpertWeight()) try wrapperPath(arena, path, spec.target == .experts_gate_up and both_experts) else path;
    const wide = std.math.mul(usize, spec.rank, experts) catch return error.ModelTooLarge;
    const suffix: [2][]const u8 = if (embedding) .{ "lora_embedding_A", "lora_embedding_B" } else .{ "lora_A.weight", "lora_B.weight" };
    const shapes = [2][2]usize{ .{ wide, in }, .{ out, wide } };
    var pair: [2]Parameter = undefined;
    for (&pair, suffix, shapes) |*p, end, shape| {
        const len = std.math.mul(usize, shape[0], shape[1]) catch return error.ModelTooLarge;
        p.* = .{
            .name = try std.fmt.allocPrint(arena, key_prefix ++ "{s}.{s}", .{ key_path, end }),
            .role = weight.role,
            .layer = spec.layer,
            .shape = shape,
            .full = .{ shape[0], shape[1], 1 },
            .rank = 2,
            .offset = offset.*,
            .len = len,
        };
        offset.* = std.math.add(usize, offset.*, len) catch return error.ModelTooLarge;
    }
    const rank: f64 = @floatFromInt(spec.rank);
    return .{
        .target = spec.target,
        .layer = spec.layer,
        .path = path,
        .in = in,
        .out = out,
        .experts = experts,
        .rank = spec.rank,
        .alpha = spec.alpha,
        .scale = spec.alpha / if (spec.rank_stabilized) @sqrt(rank) else rank,
        .a = pair[0],
        .b = pair[1],
    };
}

fn hasBothExperts(specs: []const ModuleSpec, layer: ?u32) bool {
    var found: usize = 0;
    for (specs) |spec| if (spec.target.isExperts() and std.meta.eql(spec.layer, layer)) {
        found += 1;
    };
    return found == 2;
}

/// PEFT wraps the module that holds the parameters, once for each, the first to be wrapped being the innermost: its keys are below `base_layer`.
fn wrapperPath(arena: std.mem.Allocator, path: []const u8, inner: bool) error{OutOfMemory}![]const u8 {
    const holder = path[0..std.mem.findScalarLast(u8, path, '.').?];
    return if (inner) std.fmt.allocPrint(arena, "{s}.base_layer", .{holder}) else holder;
}

/// What PEFT puts before a module's path in its files.
pub const key_prefix = "base_model.model.";

/// Hugging Face's path of a module. Caller frees.
pub fn modulePath(gpa: std.mem.Allocator, target: Target, layer: ?u32) error{OutOfMemory}![]const u8 {
    const weight = ".weight";
    const suffix = target.role().hfSuffix();
    const name = if (target.isExperts()) suffix else suffix[0 .. suffix.len - weight.len];
    return if (layer) |l| std.fmt.allocPrint(gpa, "model.layers.{d}.{s}", .{ l, name }) else gpa.dupe(u8, name);
}

const testing = std.testing;
const ModelConfig = @import("config.zig").ModelConfig;

const test_config: ModelConfig = .{
    .vocab_size = 10,
    .hidden_size = 8,
    .intermediate_size = 12,
    .num_hidden_layers = 2,
    .num_attention_heads = 2,
    .num_key_value_heads = 1,
    .head_dim = 6,
    .tie_word_embeddings = false,
};

test "parameters have PEFT's names and shapes, follow each other without holes, and every allocation failure is survived" {
    try testing.checkAllAllocationFailures(testing.allocator, struct {
        fn run(gpa: std.mem.Allocator) !void {
            var layout = try Layout.init(gpa, test_config);
            defer layout.deinit();

            var adapter = try AdapterLayout.init(gpa, &layout, &.{
                .{ .target = .lm_head, .layer = null, .rank = 2, .alpha = 8 },
                .{ .target = .down_proj, .layer = 1, .rank = 3, .alpha = 6 },
                .{ .target = .q_proj, .layer = 1, .rank = 4, .alpha = 6, .rank_stabilized = true },
                .{ .target = .embed_tokens, .layer = null, .rank = 5, .alpha = 8 },
            });
            defer adapter.deinit();

            const names = [_][]const u8{
                "base_model.model.model.embed_tokens.lora_embedding_A",
                "base_model.model.model.embed_tokens.lora_embedding_B",
                "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight",
                "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight",
                "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight",
                "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight",
                "base_model.model.lm_head.lora_A.weight",
                "base_model.model.lm_head.lora_B.weight",
            };
            const shapes = [_][2]usize{ .{ 5, 10 }, .{ 8, 5 }, .{ 4, 8 }, .{ 12, 4 }, .{ 3, 12 }, .{ 8, 3 }, .{ 2, 8 }, .{ 10, 2 } };
            var expected: usize = 0;
            for (adapter.parameters, names, shapes) |p, name, shape| {
                try testing.expectEqualStrings(name, p.name);
                try testing.expectEqual(shape, p.shape);
                try testing.expectEqual(expected, p.offset);
                expected += p.len;
            }
            try testing.expectEqual(expected, adapter.total);
            try testing.expectEqual(5, adapter.maxRank());
            try testing.expectEqual(3.0, adapter.get(1, .q_proj).?.scale);
            try testing.expectEqual(2.0, adapter.get(1, .down_proj).?.scale);
            try testing.expect(adapter.get(0, .q_proj) == null);
            try testing.expect(adapter.sameAs(&adapter));
        }
    }.run, .{});
}

test "experts share two parameters a layer, named as PEFT nests its wrappers" {
    var config = test_config;
    config.model_type = .gpt_oss;
    config.num_local_experts = 4;
    config.num_experts_per_tok = 2;
    var layout = try Layout.init(testing.allocator, config);
    defer layout.deinit();

    var adapter = try AdapterLayout.init(testing.allocator, &layout, &.{
        .{ .target = .experts_down, .layer = 0, .rank = 3, .alpha = 6 },
        .{ .target = .experts_gate_up, .layer = 0, .rank = 3, .alpha = 6 },
        .{ .target = .experts_gate_up, .layer = 1, .rank = 2, .alpha = 6 },
    });
    defer adapter.deinit();

    const names = [_][]const u8{
        "base_model.model.model.layers.0.mlp.experts.base_layer.lora_A.weight",
        "base_model.model.model.layers.0.mlp.experts.base_layer.lora_B.weight",
        "base_model.model.model.layers.0.mlp.experts.lora_A.weight",
        "base_model.model.model.layers.0.mlp.experts.lora_B.weight",
        "base_model.model.model.layers.1.mlp.experts.lora_A.weight",
        "base_model.model.model.layers.1.mlp.experts.lora_B.weight",
    };
    const shapes = [_][2]usize{ .{ 12, 8 }, .{ 24, 12 }, .{ 12, 12 }, .{ 8, 12 }, .{ 8, 8 }, .{ 24, 8 } };
    for (adapter.parameters, names, shapes) |p, name, shape| {
        try testing.expectEqualStrings(name, p.name);
        try testing.expectEqual(shape, p.shape);
    }
    try testing.expectEqualStrings("model.layers.0.mlp.experts.gate_up_proj", adapter.modules[0].path);
    try testing.expectEqual(4, adapter.modules[0].experts);
    try testing.expectEqual(2.0, adapter.modules[0].scale);
    try testing.expect(Target.gate_proj.existsIn(&layout, 0) == false);
}

test "rank 0, a rank above the narrower side, a module twice and no module are refused" {
    var layout = try Layout.init(testing.allocator, test_config);
    defer layout.deinit();

    const q: ModuleSpec = .{ .target = .q_proj, .layer = 0, .rank = 2, .alpha = 1 };
    const k: ModuleSpec = .{ .target = .k_proj, .layer = 0, .rank = 7, .alpha = 1 }; // k is 6 wide.
    const zero: ModuleSpec = .{ .target = .v_proj, .layer = 0, .rank = 0, .alpha = 1 };
    try testing.expectError(error.InvalidRank, AdapterLayout.init(testing.allocator, &layout, &.{ q, k }));
    try testing.expectError(error.InvalidRank, AdapterLayout.init(testing.allocator, &layout, &.{zero}));
    try testing.expectError(error.InvalidAdapter, AdapterLayout.init(testing.allocator, &layout, &.{ q, q }));
    try testing.expectError(error.InvalidAdapter, AdapterLayout.init(testing.allocator, &layout, &.{}));
}
