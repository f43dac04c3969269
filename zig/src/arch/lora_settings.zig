//! The settings of a LoRA adapter in PEFT's words, and which rank and alpha each module of a model gets by them.
//!
//! A name in `target_modules`, `rank_pattern` or `alpha_pattern` is a module's name or the end of its path at a dot
//! (`q_proj`, `layers.0.self_attn.q_proj`). PEFT also takes regular expressions there; we refuse them by name, because a
//! pattern read differently would train another model. As in PEFT, the first pattern that fits decides.
//! Does not know: where the settings come from, files, values.

const std = @import("std");
const base = @import("base");
const adapter_file = @import("adapter.zig");
const Layout = @import("parameters.zig").Layout;
const Target = adapter_file.Target;
const ModuleSpec = adapter_file.ModuleSpec;
const AdapterLayout = adapter_file.AdapterLayout;
const Diagnostic = base.Diagnostic;

pub const LoraSettings = struct {
    r: u32 = 8,
    lora_alpha: f64 = 16,
    lora_dropout: f64 = 0,
    use_rslora: bool = false,
    target_modules: []const []const u8 = &default_targets,
    /// Weights of experts: `mlp.experts.gate_up_proj`, `mlp.experts.down_proj`, or the whole path of one.
    target_parameters: []const []const u8 = &.{},
    rank_pattern: []const Rank = &.{},
    alpha_pattern: []const Alpha = &.{},

    /// Beyond it a scale no longer fits the arithmetic.
    pub const largest_alpha = 1e6;
    pub const default_targets = [_][]const u8{ "q_proj", "k_proj", "v_proj", "o_proj" };
    pub const Rank = struct { name: []const u8, value: u32 };
    pub const Alpha = struct { name: []const u8, value: f64 };

    pub const Error = error{ OutOfMemory, InvalidAdapter, ModelTooLarge };

    /// The adapter these settings make on a model. `diag` names the setting, its value and the rule.
    pub fn layoutFor(self: LoraSettings, gpa: std.mem.Allocator, layout: *const Layout, diag: *Diagnostic) Error!AdapterLayout {
        var arena: std.heap.ArenaAllocator = .init(gpa);
        defer arena.deinit();

        const specs = try self.modules(arena.allocator(), layout, diag);
        return AdapterLayout.init(gpa, layout, specs) catch |err| switch (err) {
            error.InvalidRank, error.InvalidAdapter => error.InvalidAdapter, // `modules` has looked at both and said why.
            else => |e| e,
        };
    }

    /// Values that are wrong on any model.
    pub fn validate(self: LoraSettings, diag: *Diagnostic) error{InvalidAdapter}!void {
        if (self.r == 0) return refuse(diag, "r is 0; it must be at least 1", .{});
        if (!isPositive(self.lora_alpha)) return refuse(diag, "lora_alpha is {d}; it must be a number above 0 and at most 1000000", .{self.lora_alpha});
        if (!(self.lora_dropout >= 0 and self.lora_dropout < 1))
            return refuse(diag, "lora_dropout is {d}; it must be at least 0 and below 1", .{self.lora_dropout});
        for (self.rank_pattern) |p| if (p.value == 0) return refuse(diag, "rank_pattern: \"{s}\" is 0; it must be at least 1", .{p.name});
        for (self.alpha_pattern) |p| if (!isPositive(p.value))
            return refuse(diag, "alpha_pattern: \"{s}\" is {d}; it must be a number above 0 and at most 1000000", .{ p.name, p.value });
        if (self.target_modules.len == 0 and self.target_parameters.len == 0)
            return refuse(diag, "target_modules is empty; name at least one of " ++ all_targets, .{});
        inline for (.{ "target_modules", "target_parameters" }) |key| for (@field(self, key), 0..) |name, i| {
            try plain(key, name, diag);
            for (@field(self, key)[0..i]) |other| if (std.mem.eql(u8, name, other))
                return refuse(diag, key ++ " names \"{s}\" twice", .{name});
        };
        if (self.target_parameters.len > 0 and self.lora_dropout > 0)
            return refuse(diag, "lora_dropout is {d}, but weights of experts (target_parameters) are adapted without dropout, in PEFT too; set lora_dropout to 0", .{self.lora_dropout});
        for (self.rank_pattern) |p| try plain("rank_pattern", p.name, diag);
        for (self.alpha_pattern) |p| try plain("alpha_pattern", p.name, diag);
    }

    /// Every targeted module of the model with its rank and alpha.
    pub fn modules(self: LoraSettings, arena: std.mem.Allocator, layout: *const Layout, diag: *Diagnostic) Error![]const ModuleSpec {
        try self.validate(diag);
        const used = try arena.alloc(bool, self.target_modules.len + self.target_parameters.len + self.rank_pattern.len + self.alpha_pattern.len);
        @memset(used, false);
        const targets_used = used[0..self.target_modules.len];
        const parameters_used = used[targets_used.len..][0..self.target_parameters.len];
        const ranks_used = used[targets_used.len + parameters_used.len ..][0..self.rank_pattern.len];
        const alphas_used = used[targets_used.len + parameters_used.len + ranks_used.len ..];
        var list: std.ArrayList(ModuleSpec) = .empty;
        var places = Places{ .layers = layout.layerCount() };
        while (places.next()) |place| {
            if (!place.target.existsIn(layout, place.layer)) continue;
            const path = try adapter_file.modulePath(arena, place.target, place.layer);
            var wanted = false;
            const experts = place.target.isExperts();
            for (if (experts) self.target_parameters else self.target_modules, if (experts) parameters_used else targets_used) |name, *seen| if (fits(path, name)) {
                seen.* = true;
                wanted = true;
            };
            if (!wanted) continue;
            const rank = firstFit(u32, Rank, self.rank_pattern, ranks_used, path) orelse self.r;
            const alpha = firstFit(f64, Alpha, self.alpha_pattern, alphas_used, path) orelse self.lora_alpha;
            const shape = place.target.weightOf(layout, place.layer).shape;
            if (rank > @min(shape[0], shape[1])) return refuse(
                diag,
                "the rank of {s} is {d}, above the module's narrower side ({d} × {d}). Lower r or rank_pattern, or leave the module out",
                .{ path, rank, shape[0], shape[1] },
            );
            try list.append(arena, .{ .target = place.target, .layer = place.layer, .rank = rank, .alpha = alpha, .rank_stabilized = self.use_rslora });
        }
        for (self.target_modules, targets_used) |name, seen| if (!seen)
            return refuse(diag, "target_modules names \"{s}\", which this model does not have; it has " ++ all_targets, .{name});
        for (self.target_parameters, parameters_used) |name, seen| if (!seen)
            return refuse(diag, "target_parameters names \"{s}\", which this model does not have; models with experts have mlp.experts.gate_up_proj and mlp.experts.down_proj", .{name});
        for (self.rank_pattern, ranks_used) |p, seen| if (!seen)
            return refuse(diag, "rank_pattern names \"{s}\", which fits no targeted module (or an earlier pattern fits all of them)", .{p.name});
        for (self.alpha_pattern, alphas_used) |p, seen| if (!seen)
            return refuse(diag, "alpha_pattern names \"{s}\", which fits no targeted module (or an earlier pattern fits all of them)", .{p.name});
        return list.items;
    }
};

const all_targets = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, embed_tokens, lm_head";

/// All places of a model where an adapter can sit.
const Places = struct {
    layers: u32,
    at: usize = 0,

    const Place = struct { target: Target, layer: ?u32 };

    fn next(self: *Places) ?Place {
        const per_layer = Target.in_layers.len;
        const inner = self.layers * per_layer;
        defer self.at += 1;
        if (self.at == 0) return .{ .target = .embed_tokens, .layer = null };
        if (self.at <= inner) return .{ .target = Target.in_layers[(self.at - 1) % per_layer], .layer = @intCast((self.at - 1) / per_layer) };
        return if (self.at == inner + 1) .{ .target = .lm_head, .layer = null } else null;
    }
};

/// `name` is the path, or its end at a dot.
pub fn fits(path: []const u8, name: []const u8) bool {
    if (!std.mem.endsWith(u8, path, name)) return false;
    return path.len == name.len or path[path.len - name.len - 1] == '.';
}

fn firstFit(comptime V: type, comptime P: type, patterns: []const P, used: []bool, path: []const u8) ?V {
    for (patterns, used) |p, *seen| if (fits(path, p.name)) {
        seen.* = true;
        return p.value;
    };
    return null;
}

fn plain(key: []const u8, name: []const u8, diag: *Diagnostic) error{InvalidAdapter}!void {
    for (name) |c| switch (c) {
        'a'...'z', 'A'...'Z', '0'...'9', '_', '.' => {},
        else => return refuse(diag, "{s}: \"{s}\" is a regular expression; only plain names are read, such as \"q_proj\" or " ++
            "\"layers.0.self_attn.q_proj\". Spell the modules out, or use the trl engine", .{ key, name }),
    };
    if (name.len == 0) return refuse(diag, "{s}: a name is empty", .{key});
}

fn isPositive(x: f64) bool {
    return x > 0 and x <= LoraSettings.largest_alpha;
}

fn refuse(diag: *Diagnostic, comptime fmt: []const u8, args: anytype) error{InvalidAdapter} {
    diag.set(fmt, args);
    return error.InvalidAdapter;
}

const testing = std.testing;

fn testLayout() !Layout {
    return Layout.init(testing.allocator, .{
        .vocab_size = 40,
        .hidden_size = 16,
        .intermediate_size = 24,
        .num_hidden_layers = 2,
        .num_attention_heads = 4,
        .num_key_value_heads = 2,
        .head_dim = 4,
    });
}

test "patterns give ranks and alphas to the modules they fit, the first that fits decides" {
    var layout = try testLayout();
    defer layout.deinit();

    var diag: Diagnostic = .{};
    const settings: LoraSettings = .{
        .r = 4,
        .lora_alpha = 8,
        .target_modules = &.{ "q_proj", "v_proj", "layers.1.mlp.up_proj", "embed_tokens" },
        .rank_pattern = &.{ .{ .name = "layers.1.self_attn.q_proj", .value = 2 }, .{ .name = "q_proj", .value = 3 } },
        .alpha_pattern = &.{.{ .name = "v_proj", .value = 5 }},
    };
    var adapter = try settings.layoutFor(testing.allocator, &layout, &diag);
    defer adapter.deinit();

    try testing.expectEqual(6, adapter.modules.len);
    try testing.expectEqual(3, adapter.get(0, .q_proj).?.rank);
    try testing.expectEqual(2, adapter.get(1, .q_proj).?.rank);
    try testing.expectEqual(5.0 / 4.0, adapter.get(1, .v_proj).?.scale);
    try testing.expect(adapter.get(0, .up_proj) == null);
    try testing.expect(adapter.get(1, .up_proj) != null);
    try testing.expect(adapter.get(null, .embed_tokens) != null);
}

fn expectRefused(settings: LoraSettings, words: []const u8) !void {
    var layout = try testLayout();
    defer layout.deinit();

    var diag: Diagnostic = .{};
    try testing.expectError(error.InvalidAdapter, settings.layoutFor(testing.allocator, &layout, &diag));
    if (std.mem.find(u8, diag.text(), words) == null) {
        std.debug.print("\"{s}\" is not in \"{s}\"\n", .{ words, diag.text() });
        return error.WrongWords;
    }
}

test "weights of experts are targeted as parameters, and never by a module's name" {
    var layout = try Layout.init(testing.allocator, .{
        .model_type = .gpt_oss,
        .vocab_size = 40,
        .hidden_size = 16,
        .intermediate_size = 24,
        .num_hidden_layers = 2,
        .num_attention_heads = 4,
        .num_key_value_heads = 2,
        .head_dim = 4,
        .num_local_experts = 4,
        .num_experts_per_tok = 2,
    });
    defer layout.deinit();

    var diag: Diagnostic = .{};
    const settings: LoraSettings = .{ .r = 2, .target_modules = &.{"q_proj"}, .target_parameters = &.{ "mlp.experts.gate_up_proj", "layers.1.mlp.experts.down_proj" } };
    var adapter = try settings.layoutFor(testing.allocator, &layout, &diag);
    defer adapter.deinit();

    try testing.expectEqual(5, adapter.modules.len);
    try testing.expect(adapter.get(0, .experts_down) == null);
    try testing.expect(adapter.get(1, .experts_down) != null);
    const named: LoraSettings = .{ .r = 2, .target_modules = &.{"gate_proj"} };
    try testing.expectError(error.InvalidAdapter, named.layoutFor(testing.allocator, &layout, &diag));
    try testing.expect(std.mem.find(u8, diag.text(), "does not have") != null);
}

test "every bad setting is refused by name" {
    try expectRefused(.{ .r = 0 }, "r is 0");
    try expectRefused(.{ .r = 9 }, "k_proj is 9, above the module's narrower side (8");
    try expectRefused(.{ .lora_alpha = 0 }, "lora_alpha is 0");
    try expectRefused(.{ .lora_alpha = std.math.nan(f64) }, "lora_alpha is nan");
    try expectRefused(.{ .lora_alpha = 1e300 }, "at most 1000000");
    try expectRefused(.{ .lora_dropout = 1 }, "lora_dropout is 1");
    try expectRefused(.{ .lora_dropout = -0.1 }, "lora_dropout is -0.1");
    try expectRefused(.{ .target_modules = &.{} }, "target_modules is empty");
    try expectRefused(.{ .target_modules = &.{"qkv_proj"} }, "\"qkv_proj\", which this model does not have");
    try expectRefused(.{ .target_modules = &.{ "q_proj", "q_proj" } }, "\"q_proj\" twice");
    try expectRefused(.{ .target_modules = &.{".*_proj"} }, "regular expression");
    try expectRefused(.{ .target_parameters = &.{"mlp.experts.gate_up_proj"} }, "which this model does not have; models with experts");
    try expectRefused(.{ .target_parameters = &.{"x"}, .lora_dropout = 0.1 }, "lora_dropout is 0.1, but weights of experts");
    try expectRefused(.{ .rank_pattern = &.{.{ .name = "up_proj", .value = 2 }} }, "rank_pattern names \"up_proj\"");
    try expectRefused(.{ .rank_pattern = &.{.{ .name = "q_proj", .value = 0 }} }, "\"q_proj\" is 0");
    try expectRefused(.{ .alpha_pattern = &.{.{ .name = "q_proj", .value = -1 }} }, "\"q_proj\" is -1");
    try expectRefused(.{ .alpha_pattern = &.{.{ .name = "^q", .value = 1 }} }, "regular expression");
}
