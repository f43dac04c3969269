//! PEFT's `adapter_config.json` to and from `arch.LoraSettings`, and the same settings as a JSON object of our own files.
//!
//! A key is either read, or known to change nothing about weights that are there, or must be at its neutral value, or is
//! refused: an adapter computed differently trains without an error and is worth nothing.
//! Does not know: folders, tensors, models.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const json = @import("json.zig");
const safetensors = @import("safetensors.zig");
const Allocator = std.mem.Allocator;
const Diagnostic = base.Diagnostic;
const LoraSettings = arch.LoraSettings;

pub const Error = error{
    OutOfMemory,
    /// No JSON, a wrong type, an unknown key, or a setting that is not computed here.
    InvalidAdapterConfig,
};

/// What the file says. Strings live in the arena given to `parse`.
pub const AdapterConfig = struct {
    settings: LoraSettings,
    base_model_name_or_path: ?[]const u8,
    /// The modules are named by PEFT's patterns: then its tensors say which they are, by `nameModules`.
    by_tensors: bool = false,

    /// Names the modules that have tensors, where patterns named them. Shortest form: a kind that all layers have, else paths.
    pub fn nameModules(self: *AdapterConfig, arena: Allocator, tensors: []const safetensors.Tensor, layers: u32) error{OutOfMemory}!void {
        if (!self.by_tensors) return;
        var names: std.ArrayList([]const u8) = .empty;
        for (std.enums.values(arch.Target)) |target| {
            if (target.isExperts()) continue; // Parameters, which are named one by one.
            var found: std.ArrayList([]const u8) = .empty;
            const places = if (target.isInLayer()) layers else 1;
            for (0..places) |place| {
                const path = try arch.adapter.modulePath(arena, target, if (target.isInLayer()) @intCast(place) else null);
                if (hasModule(tensors, path)) try found.append(arena, path);
            }
            if (found.items.len == places) try names.append(arena, @tagName(target)) else try names.appendSlice(arena, found.items);
        }
        self.settings.target_modules = names.items;
    }

    fn hasModule(tensors: []const safetensors.Tensor, path: []const u8) bool {
        for (tensors) |t| {
            if (!std.mem.startsWith(u8, t.name, arch.adapter.key_prefix)) continue;
            const rest = t.name[arch.adapter.key_prefix.len..];
            if (std.mem.startsWith(u8, rest, path) and std.mem.startsWith(u8, rest[path.len..], ".lora_")) return true;
        }
        return false;
    }
};

/// Keys that say nothing about weights that are already there.
const without_effect = [_][]const u8{
    "auto_mapping",      "inference_mode", "init_lora_weights", "megatron_core", "peft_version",
    "qalora_group_size", "revision",       "task_type",
};

/// Keys that take away from `target_modules`.
const selectors = [_][]const u8{ "layers_to_transform", "layers_pattern", "exclude_modules" };

/// Keys that must be null, false, empty, or the given text, with the reason.
const unsupported = [_]struct { []const u8, []const u8, []const u8 }{
    .{ "use_dora", "", "DoRA is not computed here" },
    .{ "bias", "none", "trained biases are not read" },
    .{ "lora_bias", "", "biases of the adapter are not computed here" },
    .{ "fan_in_fan_out", "", "only matrices stored as (out, in) are read" },
    .{ "modules_to_save", "", "whole trained modules are not read; merge the adapter with PEFT first" },
    .{ "trainable_token_indices", "", "trained tokens are not read" },
    .{ "layer_replication", "", "replicated layers are not computed here" },
    .{ "alora_invocation_tokens", "", "activated adapters are not computed here" },
    .{ "use_qalora", "", "QALoRA is not computed here" },
    .{ "use_bdlora", "", "block-diagonal adapters are not computed here" },
    .{ "megatron_config", "", "Megatron's layers are not computed here" },
    .{ "loftq_config", "", "the adapter belongs to a changed base; merge it with PEFT first" },
    .{ "eva_config", "", "remove the key: the weights are there already" },
    .{ "corda_config", "", "the adapter belongs to a changed base; merge it with PEFT first" },
    .{ "lora_ga_config", "", "the adapter belongs to a changed base; merge it with PEFT first" },
    .{ "velora_config", "", "VeLoRA is not computed here" },
    .{ "monteclora_config", "", "MonteCLoRA is not computed here" },
    .{ "arrow_config", "", "routing between adapters is not computed here" },
    .{ "kasa_config", "", "KaSA is not computed here" },
    .{ "ensure_weight_tying", "", "tied adapters are not computed here" },
    .{ "runtime_config", "", "remove the key" },
};

const setting_keys = [_][]const u8{ "r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "target_parameters", "rank_pattern", "alpha_pattern" };

/// The text of `adapter_config.json`. Everything returned lives in `arena`.
pub fn parse(arena: Allocator, text: []const u8, diag: *Diagnostic) Error!AdapterConfig {
    const value = json.parse(arena, text, .{ .size_bytes = 4 << 20 }, diag) catch |err| return narrow(err);
    const root = json.asObject(value, "adapter_config.json", diag) catch |err| return narrow(err);
    const kind = json.getString(root, "peft_type", diag) catch |err| return narrow(err);
    if (kind == null or !std.mem.eql(u8, kind.?, "LORA"))
        return refuse(diag, "peft_type is {s}; only LORA is read", .{kind orelse "missing"});
    for (root.keys(), root.values()) |key, entry| try checkKey(key, entry, diag);
    if (json.get(root, "r") == null) return refuse(diag, "r is missing", .{});
    // PEFT's own defaults where the file leaves a key out.
    const by_tensors = isPattern(root);
    var settings = try fromObject(arena, root, .{ .lora_alpha = 8, .target_modules = &.{} }, diag);
    if (json.get(root, "target_modules") == null and settings.target_parameters.len == 0)
        return refuse(diag, "target_modules is missing", .{});
    if (by_tensors) settings.target_modules = &LoraSettings.default_targets; // Until the tensors say it.
    settings.validate(diag) catch return error.InvalidAdapterConfig;
    return .{
        .by_tensors = by_tensors,
        .settings = settings,
        .base_model_name_or_path = json.getString(root, "base_model_name_or_path", diag) catch |err| return narrow(err),
    };
}

/// Whether modules are named by a regular expression, or some are taken away again.
fn isPattern(root: json.Object) bool {
    for (selectors) |key| if (root.get(key)) |value| {
        if (!isUnset(value, "")) return true;
    };
    const value = json.get(root, "target_modules") orelse return false;
    if (value != .string) return false;
    for (value.string) |c| switch (c) {
        'a'...'z', 'A'...'Z', '0'...'9', '_', '-' => {},
        '.' => if (std.mem.find(u8, value.string, ".*") != null) return true,
        else => return true,
    };
    return false;
}

fn isUnset(value: json.Value, neutral: []const u8) bool {
    return switch (value) {
        .null => true,
        .bool => |b| !b,
        .string => |s| std.mem.eql(u8, s, neutral),
        .array => |a| a.items.len == 0,
        .object => |o| o.count() == 0,
        else => false,
    };
}

/// Ways to begin that take the adapter's start out of the base, so that it fits no other.
const changes_the_base = [_][]const u8{ "pissa", "olora", "corda", "loftq", "lora_ga" };

fn checkKey(key: []const u8, value: json.Value, diag: *Diagnostic) Error!void {
    if (std.mem.eql(u8, key, "init_lora_weights") and value == .string) for (changes_the_base) |name| {
        if (std.mem.startsWith(u8, value.string, name))
            return refuse(diag, "init_lora_weights is {s}; the adapter belongs to a changed base; merge it with PEFT first", .{name});
    };
    if (std.mem.eql(u8, key, "init_lora_weights")) switch (value) {
        .null, .bool, .string => {},
        else => return refuse(diag, "init_lora_weights must be true, false or a name", .{}),
    };
    if (std.mem.eql(u8, key, "task_type") and !isUnset(value, "CAUSAL_LM"))
        return refuse(diag, "task_type is not CAUSAL_LM; the adapter is of a model with another head", .{});
    for (setting_keys ++ without_effect ++ selectors ++ .{ "peft_type", "base_model_name_or_path" }) |known| if (std.mem.eql(u8, key, known)) return;
    for (unsupported) |entry| {
        const name, const neutral, const reason = entry;
        if (!std.mem.eql(u8, key, name)) continue;
        if (!isUnset(value, neutral)) return refuse(diag, "{s} is set; {s}", .{ key, reason });
        return;
    }
    return refuse(diag, "\"{s}\" is no key of an adapter configuration known here. A newer PEFT may have written it: " ++
        "if it changes nothing for this adapter, remove it", .{key});
}

/// Takes over the settings an object has; the others stay as in `start`. Keys that are no settings are passed over.
pub fn fromObject(arena: Allocator, object: json.Object, start: LoraSettings, diag: *Diagnostic) Error!LoraSettings {
    return take(arena, object, start, diag) catch |err| narrow(err);
}

fn take(arena: Allocator, object: json.Object, start: LoraSettings, diag: *Diagnostic) (json.Error || Error)!LoraSettings {
    var s = start;
    if (try json.getU32(object, "r", diag)) |r| s.r = r;
    if (try json.getFloat(object, "lora_alpha", diag)) |alpha| s.lora_alpha = alpha;
    if (try json.getFloat(object, "lora_dropout", diag)) |p| s.lora_dropout = p;
    if (try json.getBool(object, "use_rslora", diag)) |b| s.use_rslora = b;
    if (json.get(object, "target_modules")) |value| s.target_modules = try targets(arena, value, diag);
    if (json.get(object, "target_parameters")) |value| {
        if (value != .array) return refuse(diag, "target_parameters must be a list of names such as \"mlp.experts.down_proj\"", .{});
        s.target_parameters = try namesOf(arena, value.array.items, "target_parameters must be a list of names such as \"mlp.experts.down_proj\"", diag);
    }
    if (json.get(object, "rank_pattern")) |value| {
        const table = try json.asObject(value, "rank_pattern", diag);
        const list = try arena.alloc(LoraSettings.Rank, table.count());
        for (list, table.keys()) |*item, name| item.* = .{
            .name = name,
            .value = try json.getU32(table, name, diag) orelse return refuse(diag, "rank_pattern: \"{s}\" is null", .{name}),
        };
        s.rank_pattern = list;
    }
    if (json.get(object, "alpha_pattern")) |value| {
        const table = try json.asObject(value, "alpha_pattern", diag);
        const list = try arena.alloc(LoraSettings.Alpha, table.count());
        for (list, table.keys()) |*item, name| item.* = .{
            .name = name,
            .value = try json.getFloat(table, name, diag) orelse return refuse(diag, "alpha_pattern: \"{s}\" is null", .{name}),
        };
        s.alpha_pattern = list;
    }
    return s;
}

/// A list of names, one name, or `all-linear`: every matrix of the layers.
fn targets(arena: Allocator, value: json.Value, diag: *Diagnostic) Error![]const []const u8 {
    const words = "target_modules must be a list of module names such as \"q_proj\", or \"all-linear\"";
    switch (value) {
        .string => |s| {
            const list = try arena.alloc([]const u8, if (std.mem.eql(u8, s, "all-linear")) arch.Target.linear_in_layers.len else 1);
            if (list.len == 1) list[0] = s else for (list, arch.Target.linear_in_layers) |*name, target| name.* = @tagName(target);
            return list;
        },
        .array => |array| {
            return namesOf(arena, array.items, words, diag);
        },
        else => return refuse(diag, words, .{}),
    }
}

fn namesOf(arena: Allocator, items: []const json.Value, comptime words: []const u8, diag: *Diagnostic) Error![]const []const u8 {
    const list = try arena.alloc([]const u8, items.len);
    for (list, items) |*name, item| name.* = if (item == .string) item.string else return refuse(diag, words, .{});
    return list;
}

/// The settings as members of an object that `out` has begun.
pub fn writeSettings(out: *std.json.Stringify, s: LoraSettings) std.Io.Writer.Error!void {
    try out.objectField("r");
    try out.write(s.r);
    try out.objectField("lora_alpha");
    try writeNumber(out, s.lora_alpha);
    try out.objectField("lora_dropout");
    try out.write(s.lora_dropout);
    try out.objectField("use_rslora");
    try out.write(s.use_rslora);
    try out.objectField("target_modules");
    try out.write(s.target_modules);
    if (s.target_parameters.len > 0) {
        try out.objectField("target_parameters");
        try out.write(s.target_parameters);
    }
    try out.objectField("rank_pattern");
    try out.beginObject();
    for (s.rank_pattern) |p| {
        try out.objectField(p.name);
        try out.write(p.value);
    }
    try out.endObject();
    try out.objectField("alpha_pattern");
    try out.beginObject();
    for (s.alpha_pattern) |p| {
        try out.objectField(p.name);
        try writeNumber(out, p.value);
    }
    try out.endObject();
}

/// PEFT writes whole alphas as integers, and some readers expect them so.
fn writeNumber(out: *std.json.Stringify, x: f64) std.Io.Writer.Error!void {
    if (x == @trunc(x) and @abs(x) < 1 << 53) try out.write(@as(i64, @trunc(x))) else try out.write(x);
}

/// The whole file, with what PEFT needs to open it.
pub fn write(w: *std.Io.Writer, settings: LoraSettings, base_model_name_or_path: ?[]const u8) std.Io.Writer.Error!void {
    var out: std.json.Stringify = .{ .writer = w, .options = .{ .whitespace = .indent_2 } };
    try out.beginObject();
    try out.objectField("peft_type");
    try out.write("LORA");
    try out.objectField("task_type");
    try out.write("CAUSAL_LM");
    try out.objectField("base_model_name_or_path");
    try out.write(base_model_name_or_path);
    try writeSettings(&out, settings);
    inline for (.{ .{ "bias", "none" }, .{ "fan_in_fan_out", false }, .{ "init_lora_weights", true }, .{ "inference_mode", true }, .{ "use_dora", false }, .{ "lora_bias", false } }) |pair| {
        try out.objectField(pair[0]);
        try out.write(pair[1]);
    }
    inline for (.{ "modules_to_save", "layers_to_transform", "layers_pattern", "exclude_modules" }) |key| {
        try out.objectField(key);
        try out.write(null);
    }
    if (settings.target_parameters.len == 0) {
        try out.objectField("target_parameters");
        try out.write(null);
    }
    try out.endObject();
    try w.writeByte('\n');
}

fn narrow(err: (json.Error || Error)) Error {
    return if (err == error.OutOfMemory) error.OutOfMemory else error.InvalidAdapterConfig;
}

fn refuse(diag: *Diagnostic, comptime fmt: []const u8, args: anytype) error{InvalidAdapterConfig} {
    diag.set(fmt, args);
    return error.InvalidAdapterConfig;
}

const testing = std.testing;

test "what is written reads back to the same settings" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();

    const a = arena.allocator();
    const settings: LoraSettings = .{
        .r = 4,
        .lora_alpha = 6.5,
        .lora_dropout = 0.05,
        .use_rslora = true,
        .target_modules = &.{ "q_proj", "embed_tokens" },
        .rank_pattern = &.{.{ .name = "layers.0.self_attn.q_proj", .value = 2 }},
        .alpha_pattern = &.{.{ .name = "embed_tokens", .value = 3 }},
    };
    var text: std.Io.Writer.Allocating = .init(a);
    try write(&text.writer, settings, "models/\"tiny\"");
    var diag: Diagnostic = .{};
    const back = try parse(a, text.written(), &diag);
    try testing.expectEqualDeep(settings, back.settings);
    try testing.expectEqualStrings("models/\"tiny\"", back.base_model_name_or_path.?);
}

test "weights of experts are named besides modules, or alone" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();

    const a = arena.allocator();
    const settings: LoraSettings = .{ .r = 2, .lora_alpha = 4, .target_modules = &.{"q_proj"}, .target_parameters = &.{ "mlp.experts.gate_up_proj", "mlp.experts.down_proj" } };
    var text: std.Io.Writer.Allocating = .init(a);
    try write(&text.writer, settings, null);
    var diag: Diagnostic = .{};
    try testing.expectEqualDeep(settings, (try parse(a, text.written(), &diag)).settings);
    for ([_][]const u8{ "null", "[]" }) |none| {
        const alone = try parse(a, try std.fmt.allocPrint(a, "{{\"peft_type\": \"LORA\", \"r\": 4, \"target_modules\": {s}, \"target_parameters\": [\"mlp.experts.down_proj\"]}}", .{none}), &diag);
        try testing.expectEqual(0, alone.settings.target_modules.len);
        try testing.expectEqualStrings("mlp.experts.down_proj", alone.settings.target_parameters[0]);
    }
    try expectRefused(", \"target_parameters\": \"mlp.experts.down_proj\"", "must be a list of names");
    try expectRefused(", \"target_parameters\": [3]", "must be a list of names");
    try expectRefused(", \"target_parameters\": [\"mlp.experts.down_proj\"], \"lora_dropout\": 0.1", "without dropout");
}

fn expectRefused(members: []const u8, words: []const u8) !void {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();

    const text = try std.fmt.allocPrint(arena.allocator(), "{{\"peft_type\": \"LORA\", \"r\": 4, \"target_modules\": [\"q_proj\"]{s}}}", .{members});
    var diag: Diagnostic = .{};
    try testing.expectError(error.InvalidAdapterConfig, parse(arena.allocator(), text, &diag));
    if (std.mem.find(u8, diag.text(), words) == null) {
        std.debug.print("\"{s}\" is not in \"{s}\"\n", .{ words, diag.text() });
        return error.WrongWords;
    }
}

test "settings that are not computed, unknown keys and wrong types are refused by name; neutral ones pass" {
    try expectRefused(", \"use_dora\": true", "use_dora is set; DoRA");
    try expectRefused(", \"bias\": \"all\"", "bias is set");
    try expectRefused(", \"modules_to_save\": [\"lm_head\"]", "modules_to_save is set");
    try expectRefused(", \"loftq_config\": {\"bits\": 4}", "loftq_config is set");
    try expectRefused(", \"init_lora_weights\": \"pissa_niter_16\"", "init_lora_weights is pissa");
    try expectRefused(", \"init_lora_weights\": 7", "init_lora_weights must be");
    try expectRefused(", \"task_type\": \"SEQ_CLS\"", "task_type is not CAUSAL_LM");
    try expectRefused(", \"lora_alpha\": 1e300", "at most 1000000");
    try expectRefused(", \"newest_idea\": 1", "\"newest_idea\" is no key");
    try expectRefused(", \"lora_alpha\": \"much\"", "\"lora_alpha\" must be a number");
    try expectRefused(", \"lora_dropout\": 1.5", "lora_dropout is 1.5");
    try expectRefused(", \"rank_pattern\": {\"q_proj\": 0}", "\"q_proj\" is 0");
    try expectRefused(", \"target_modules\": [1]", "twice");
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();

    var diag: Diagnostic = .{};
    const same = "{\"peft_type\": \"LORA\", \"r\": 4, \"target_modules\": \"all-linear\", \"use_dora\": false, \"bias\": \"none\", \"loftq_config\": {}, \"init_lora_weights\": \"gaussian\", " ++
        "\"modules_to_save\": null, \"megatron_core\": \"megatron.core\", \"qalora_group_size\": 16}";
    const config = try parse(arena.allocator(), same, &diag);
    try testing.expectEqual(7, config.settings.target_modules.len);
    try testing.expectEqual(8, config.settings.lora_alpha);
    try testing.expectError(error.InvalidAdapterConfig, parse(arena.allocator(), "{\"peft_type\": \"IA3\"}", &diag));
    try testing.expectError(error.InvalidAdapterConfig, parse(arena.allocator(), "{\"peft_type\": \"LORA\", \"r\": 2}", &diag));
    try testing.expectEqualStrings("target_modules is missing", diag.text());
}

test "modules named by a pattern are those that have tensors, by the shortest names" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();

    const a = arena.allocator();
    const tensors = [_]safetensors.Tensor{
        testTensor("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"),
        testTensor("base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"),
        testTensor("base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"),
        testTensor("base_model.model.model.embed_tokens.lora_embedding_A"),
        testTensor("base_model.model.model.layers.10.mlp.gate_proj.lora_A.weight"),
        testTensor("model.layers.0.self_attn.k_proj.lora_A.weight"),
    };
    for ([_][]const u8{
        "\"target_modules\": \".*\"",
        "\"target_modules\": [\"q_proj\"], \"layers_to_transform\": 0",
        "\"target_modules\": \"all-linear\", \"exclude_modules\": [\"o_proj\"]",
        "\"target_modules\": [\"q_proj\"], \"layers_pattern\": \"layers\"",
    }) |members| {
        var diag: Diagnostic = .{};
        var config = try parse(a, try std.fmt.allocPrint(a, "{{\"peft_type\": \"LORA\", \"r\": 4, {s}}}", .{members}), &diag);
        try testing.expect(config.by_tensors);
        try config.nameModules(a, &tensors, 2);
        const wanted = [_][]const u8{ "embed_tokens", "q_proj", "model.layers.1.mlp.up_proj" };
        try testing.expectEqual(wanted.len, config.settings.target_modules.len);
        for (wanted, config.settings.target_modules) |x, y| try testing.expectEqualStrings(x, y);
    }
}

fn testTensor(name: []const u8) safetensors.Tensor {
    return .{ .name = name, .dtype = .f32, .shape = &.{}, .bytes = &.{}, .begin = 0 };
}
