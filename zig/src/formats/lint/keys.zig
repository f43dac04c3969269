//! Keys: stored in the type they are read as, there where they are needed, and with values that can be.
//!
//! llama.cpp converts nothing: a number stored as u64 where it reads u32 ends the load. The table says which type each key has, and
//! whether llama.cpp insists. Does not know: tensors beyond what follows from them for a missing key, tokenizers' meaning.

const std = @import("std");
const base = @import("base");
const gguf = @import("../gguf.zig");
const subject_file = @import("subject.zig");
const Architecture = subject_file.Architecture;
const Subject = subject_file.Subject;
const printable = base.bytes.printable;
const OutOfMemory = error{OutOfMemory};

/// How a key is stored.
const Stored = union(enum) {
    one: gguf.ValueType,
    many: gguf.ValueType,
    /// Either of two kinds of elements.
    many_of: [2]gguf.ValueType,
    /// A number, or one for each layer.
    one_or_many: gguf.ValueType,
    /// A u32 or a list of bools.
    pattern,

    pub fn format(self: Stored, w: *std.Io.Writer) std.Io.Writer.Error!void {
        switch (self) {
            .one => |t| try w.print("{t}", .{t}),
            .many => |t| try w.print("an array of {t}", .{t}),
            .many_of => |t| try w.print("an array of {t} or {t}", .{ t[0], t[1] }),
            .one_or_many => |t| try w.print("{t} or an array of {t}", .{ t, t }),
            .pattern => try w.writeAll("u32 or an array of bool"),
        }
    }
};

const Known = struct {
    name: []const u8,
    stored: Stored,
    /// llama.cpp reads it while loading, and only so.
    strict: bool = true,
};

const u: Stored = .{ .one = .u32 };
const f: Stored = .{ .one = .f32 };
const s: Stored = .{ .one = .string };
const b: Stored = .{ .one = .bool };

const whole_names = [_]Known{
    .{ .name = "general.architecture", .stored = s },
    .{ .name = "general.name", .stored = s },
    .{ .name = "general.type", .stored = s },
    .{ .name = "general.file_type", .stored = u },
    .{ .name = "general.quantization_version", .stored = u, .strict = false },
    .{ .name = "general.author", .stored = s, .strict = false },
    .{ .name = "general.version", .stored = s, .strict = false },
    .{ .name = "general.organization", .stored = s, .strict = false },
    .{ .name = "general.basename", .stored = s, .strict = false },
    .{ .name = "general.finetune", .stored = s, .strict = false },
    .{ .name = "general.description", .stored = s, .strict = false },
    .{ .name = "general.size_label", .stored = s, .strict = false },
    .{ .name = "general.license", .stored = s, .strict = false },
    .{ .name = "general.url", .stored = s, .strict = false },
    .{ .name = "general.tags", .stored = .{ .many = .string }, .strict = false },
    .{ .name = "general.languages", .stored = .{ .many = .string }, .strict = false },
    .{ .name = "general.base_model.count", .stored = u, .strict = false },
    .{ .name = "split.no", .stored = .{ .one = .u16 } },
    .{ .name = "split.count", .stored = .{ .one = .u16 } },
    .{ .name = "split.tensors.count", .stored = .{ .one = .i32 } },
    .{ .name = "adapter.type", .stored = s },
    .{ .name = "adapter.lora.alpha", .stored = f },
    .{ .name = "tokenizer.ggml.model", .stored = s },
    .{ .name = "tokenizer.ggml.pre", .stored = s },
    .{ .name = "tokenizer.ggml.tokens", .stored = .{ .many = .string } },
    .{ .name = "tokenizer.ggml.token_type", .stored = .{ .many = .i32 } },
    .{ .name = "tokenizer.ggml.token_type_count", .stored = u },
    .{ .name = "tokenizer.ggml.scores", .stored = .{ .many_of = .{ .f32, .i32 } } },
    .{ .name = "tokenizer.ggml.merges", .stored = .{ .many = .string } },
    .{ .name = "tokenizer.ggml.suppress_tokens", .stored = .{ .many = .i32 } },
    .{ .name = "tokenizer.ggml.add_bos_token", .stored = b },
    .{ .name = "tokenizer.ggml.add_eos_token", .stored = b },
    .{ .name = "tokenizer.ggml.add_sep_token", .stored = b },
    .{ .name = "tokenizer.ggml.add_space_prefix", .stored = b },
    .{ .name = "tokenizer.ggml.remove_extra_whitespaces", .stored = b },
    .{ .name = "tokenizer.chat_template", .stored = s },
    .{ .name = "tokenizer.chat_templates", .stored = .{ .many = .string }, .strict = false },
};

/// What stands before `_token_id` and is u32.
const token_ids = [_][]const u8{ "bos", "eos", "eot", "eom", "unknown", "padding", "mask", "seperator", "cls", "fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep", "prefix", "suffix", "middle" };

const per_architecture = [_]Known{
    .{ .name = "context_length", .stored = u },
    .{ .name = "embedding_length", .stored = u },
    .{ .name = "block_count", .stored = u },
    .{ .name = "vocab_size", .stored = u },
    .{ .name = "feed_forward_length", .stored = .{ .one_or_many = .u32 } },
    .{ .name = "attention.head_count", .stored = .{ .one_or_many = .u32 } },
    .{ .name = "attention.head_count_kv", .stored = .{ .one_or_many = .u32 } },
    .{ .name = "attention.layer_norm_rms_epsilon", .stored = f },
    .{ .name = "attention.layer_norm_epsilon", .stored = f },
    .{ .name = "attention.key_length", .stored = u },
    .{ .name = "attention.value_length", .stored = u },
    .{ .name = "attention.sliding_window", .stored = u },
    .{ .name = "attention.sliding_window_pattern", .stored = .pattern },
    .{ .name = "attention.causal", .stored = b },
    .{ .name = "rope.dimension_count", .stored = u },
    .{ .name = "rope.freq_base", .stored = f },
    .{ .name = "rope.scale_linear", .stored = f },
    .{ .name = "rope.scaling.type", .stored = s },
    .{ .name = "rope.scaling.factor", .stored = f },
    .{ .name = "rope.scaling.attn_factor", .stored = f },
    .{ .name = "rope.scaling.original_context_length", .stored = u },
    .{ .name = "rope.scaling.finetuned", .stored = b },
    .{ .name = "rope.scaling.yarn_beta_fast", .stored = f, .strict = false },
    .{ .name = "rope.scaling.yarn_beta_slow", .stored = f, .strict = false },
    .{ .name = "expert_count", .stored = u },
    .{ .name = "expert_used_count", .stored = .{ .one_or_many = .u32 } },
    .{ .name = "expert_feed_forward_length", .stored = .{ .one_or_many = .u32 } },
};

fn known(named: []const u8, key: []const u8) ?Known {
    for (whole_names) |k| if (std.mem.eql(u8, k.name, key)) return k;
    const ids = "tokenizer.ggml.";
    if (std.mem.startsWith(u8, key, ids) and std.mem.endsWith(u8, key, "_token_id")) {
        const middle = key[ids.len .. key.len - "_token_id".len];
        for (token_ids) |id| if (std.mem.eql(u8, id, middle)) return .{ .name = key, .stored = u };
    }
    if (named.len == 0 or key.len <= named.len + 1 or !std.mem.startsWith(u8, key, named) or key[named.len] != '.') return null;
    for (per_architecture) |k| if (std.mem.eql(u8, k.name, key[named.len + 1 ..])) return k;
    return null;
}

/// Every key in the type it is read as. Must run first: the other checks read keys in their right types only.
pub fn checkTypes(subject: *Subject) OutOfMemory!void {
    const named = subject.text("general.architecture") orelse "";
    for (subject.keys.keys(), subject.keys.values()) |key, *value| {
        const k = known(named, key) orelse continue;
        if (fits(k.stored, value.*)) continue;
        const code: @import("rules.zig").Code = if (k.strict) .key_type else .key_type_unusual;
        const right = try convert(subject.arena, value.*, k.stored);
        try subject.report.add(code, key, right != null, "{s} is stored as {f}; it must be {f}", .{ key, Described{ .value = value.* }, k.stored });
        if (right) |r| value.* = r;
    }
}

const Described = struct {
    value: gguf.Value,

    pub fn format(self: Described, w: *std.Io.Writer) std.Io.Writer.Error!void {
        switch (self.value) {
            .array => |a| try w.print("an array of {t}", .{a.element}),
            else => try w.print("{t}", .{std.meta.activeTag(self.value)}),
        }
    }
};

fn fits(stored: Stored, value: gguf.Value) bool {
    return switch (stored) {
        .one => |t| value == t,
        .many => |t| value == .array and value.array.element == t,
        .many_of => |t| value == .array and (value.array.element == t[0] or value.array.element == t[1]),
        // llama.cpp takes signed ones in lists too.
        .one_or_many => |t| value == t or (value == .array and (value.array.element == t or (t == .u32 and value.array.element == .i32))),
        .pattern => value == .u32 or (value == .array and value.array.element == .bool),
    };
}

/// The same value in the right type, or null where it does not fit.
fn convert(arena: std.mem.Allocator, value: gguf.Value, stored: Stored) OutOfMemory!?gguf.Value {
    return switch (stored) {
        .one => |t| if (value == .array) null else one(numberOf(value) orelse return null, t),
        .many => |t| many(arena, value, t),
        .many_of => |t| many(arena, value, t[0]),
        .one_or_many => |t| if (value == .array) many(arena, value, t) else one(numberOf(value) orelse return null, t),
        .pattern => if (value == .array) many(arena, value, .bool) else one(numberOf(value) orelse return null, .u32),
    };
}

const Number = union(enum) { whole: i128, real: f64 };

fn numberOf(value: gguf.Value) ?Number {
    return switch (value) {
        .bool => |x| .{ .whole = @intFromBool(x) },
        inline .u8, .i8, .u16, .i16, .u32, .i32, .u64, .i64 => |x| .{ .whole = x },
        inline .f32, .f64 => |x| .{ .real = x },
        .string, .array => null,
    };
}

fn one(number: Number, want: gguf.ValueType) ?gguf.Value {
    switch (want) {
        .string, .array => return null,
        .bool => return switch (number) {
            .whole => |n| if (n == 0 or n == 1) .{ .bool = n == 1 } else null,
            .real => null,
        },
        inline .f32, .f64 => |tag| {
            const T = @FieldType(gguf.Value, @tagName(tag));
            const x: T = switch (number) {
                .whole => |n| @floatFromInt(n),
                .real => |r| @floatCast(r),
            };
            if (number == .real and std.math.isFinite(number.real) and !std.math.isFinite(x)) return null;
            if (number == .whole and @as(f64, x) != @as(f64, @floatFromInt(number.whole))) return null;
            return @unionInit(gguf.Value, @tagName(tag), x);
        },
        inline else => |tag| {
            const T = @FieldType(gguf.Value, @tagName(tag));
            const n: i128 = switch (number) {
                .whole => |n| n,
                .real => |r| if (@abs(r) < 1e18 and @trunc(r) == r) @intFromFloat(r) else return null,
            };
            return @unionInit(gguf.Value, @tagName(tag), std.math.cast(T, n) orelse return null);
        },
    }
}

fn many(arena: std.mem.Allocator, value: gguf.Value, want: gguf.ValueType) OutOfMemory!?gguf.Value {
    if (value != .array) return null;
    const from = value.array;
    const size = want.fixedBytes() orelse return null;
    if (from.element == .string or from.element == .array) return null;
    const raw = try arena.alloc(u8, from.count * size);
    for (0..from.count) |i| {
        const item = one(numberOf(element(from, i)).?, want) orelse return null;
        switch (item) {
            .string, .array => unreachable,
            .bool => |x| raw[i] = @intFromBool(x),
            inline else => |x| base.bytes.store(@TypeOf(x), raw[i * size ..][0..@sizeOf(@TypeOf(x))], x),
        }
    }
    return .{ .array = .{ .element = want, .count = from.count, .raw = raw } };
}

fn element(array: gguf.Array, i: usize) gguf.Value {
    return switch (array.element) {
        .string, .array => unreachable, // The caller asks for numbers.
        .bool => .{ .bool = array.raw[i] != 0 },
        inline else => |tag| @unionInit(gguf.Value, @tagName(tag), array.at(@FieldType(gguf.Value, @tagName(tag)), i)),
    };
}

const Needed = struct { name: []const u8, of: []const Architecture };

const all = [_]Architecture{ .llama, .qwen2, .qwen3, .smollm3, .@"gpt-oss" };
const dense = [_]Architecture{ .llama, .qwen2, .qwen3, .smollm3 };
const needed = [_]Needed{
    .{ .name = "context_length", .of = &all },
    .{ .name = "embedding_length", .of = &all },
    .{ .name = "block_count", .of = &all },
    .{ .name = "feed_forward_length", .of = &dense },
    .{ .name = "attention.head_count", .of = &all },
    .{ .name = "attention.layer_norm_rms_epsilon", .of = &all },
    .{ .name = "expert_count", .of = &.{.@"gpt-oss"} },
    .{ .name = "expert_used_count", .of = &.{.@"gpt-oss"} },
    .{ .name = "expert_feed_forward_length", .of = &.{.@"gpt-oss"} },
    .{ .name = "attention.sliding_window", .of = &.{.@"gpt-oss"} },
};

/// Required keys, from the tensors where they say the value.
pub fn checkMissing(subject: *Subject) OutOfMemory!void {
    const architecture = subject.architecture orelse return;
    for (needed) |key| {
        if (std.mem.findScalar(Architecture, key.of, architecture) == null) continue;
        if (subject.has(key.name)) continue;
        try missing(subject, key.name, derive(subject, key.name));
    }
    // Where heads are not as wide as the model divided by their number, their width must be said.
    if (!subject.has("attention.key_length")) {
        const heads = subject.number("attention.head_count") orelse return;
        const width = subject.number("embedding_length") orelse return;
        const q = subject.inLayer(0, "attn_q.weight") orelse return;
        if (heads == 0 or q.ne[1] % heads != 0) return;
        const head = q.ne[1] / heads;
        if (q.ne[0] != width or head * heads == width) return;
        const value = std.math.cast(u32, head) orelse return;
        try missing(subject, "attention.key_length", value);
        if (!subject.has("attention.value_length")) {
            var buffer: Subject.KeyBuffer = undefined;
            try subject.put(subject.keyOf(&buffer, "attention.value_length"), .{ .u32 = value });
        }
    }
}

fn missing(subject: *Subject, suffix: []const u8, derived: ?u32) OutOfMemory!void {
    var buffer: Subject.KeyBuffer = undefined;
    const key = subject.keyOf(&buffer, suffix);
    if (derived) |n| {
        try subject.report.add(.key_missing, key, true, "{s} is missing; the tensors say {d}", .{ key, n });
        try subject.put(key, .{ .u32 = n });
    } else try subject.report.add(.key_missing, key, false, "{s} is missing", .{key});
}

fn derive(subject: *const Subject, suffix: []const u8) ?u32 {
    const Source = struct { []const u8, []const u8, u2 };
    if (std.mem.eql(u8, suffix, "block_count")) {
        var layers: u32 = 0;
        for (subject.tensors.items) |*t| if (@import("../gguf_mix.zig").layerOf(t.name)) |n| {
            if (n < 1024) layers = @max(layers, n + 1);
        };
        return if (layers > 0) layers else null;
    }
    for ([_]Source{
        .{ "embedding_length", "output_norm.weight", 0 },
        .{ "feed_forward_length", "blk.0.ffn_gate.weight", 1 },
        .{ "expert_feed_forward_length", "blk.0.ffn_gate_exps.weight", 1 },
        .{ "expert_count", "blk.0.ffn_gate_exps.weight", 2 },
    }) |source| if (std.mem.eql(u8, suffix, source[0])) {
        const t = subject.tensor(source[1]) orelse return null;
        return std.math.cast(u32, t.ne[source[2]]);
    };
    return null;
}

/// Values that no model has.
pub fn checkValues(subject: *Subject) OutOfMemory!void {
    if (subject.architecture == null) return;
    const layers = subject.number("block_count");
    for ([_][]const u8{ "context_length", "embedding_length", "block_count", "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.sliding_window" }) |suffix| {
        if (subject.number(suffix)) |n| if (n == 0) try wrong(subject, suffix, "0; it must be at least 1", .{});
    }
    if (layers) |n| if (n > 512) try wrong(subject, "block_count", "{d}; llama.cpp reads at most 512", .{n});
    if (layers) |n| for (per_architecture) |k| {
        if (k.stored != .one_or_many) continue;
        var buffer: Subject.KeyBuffer = undefined;
        const list = switch (subject.get(subject.keyOf(&buffer, k.name)) orelse continue) {
            .array => |a| a,
            else => continue,
        };
        if (list.count != n) try wrong(subject, k.name, "a list of {d} numbers for {d} layers", .{ list.count, n });
    };
    const heads = subject.number("attention.head_count") orelse 0;
    const shared = subject.number("attention.head_count_kv") orelse heads;
    const width = subject.number("embedding_length") orelse 0;
    if (heads > 0 and shared > 0 and heads % shared != 0)
        try wrong(subject, "attention.head_count_kv", "{d}; attention.head_count, {d}, must be a multiple of it", .{ shared, heads });
    if (heads > 0 and width > 0 and width % heads != 0 and !subject.has("attention.key_length"))
        try wrong(subject, "attention.head_count", "{d}, which does not divide embedding_length, {d}, and attention.key_length is missing", .{ heads, width });
    for ([_][]const u8{ "attention.layer_norm_rms_epsilon", "rope.freq_base" }) |suffix| {
        if (subject.real(suffix)) |x| if (!(x > 0) or !std.math.isFinite(x)) try wrong(subject, suffix, "{d}; it must be above 0", .{x});
    }
    const experts = subject.number("expert_count") orelse 0;
    const used = subject.number("expert_used_count") orelse 0;
    if (experts > 1024) try wrong(subject, "expert_count", "{d}; llama.cpp reads at most 1024", .{experts});
    if (used > experts) try wrong(subject, "expert_used_count", "{d}; there are {d} experts", .{ used, experts });
    if (experts > 0 and used == 0) try wrong(subject, "expert_used_count", "0, although there are {d} experts", .{experts});

    const head_width = subject.number("attention.key_length") orelse if (heads > 0) width / heads else 0;
    if (subject.number("rope.dimension_count")) |n| if (subject.architecture == .llama and n != head_width and head_width > 0)
        try wrong(subject, "rope.dimension_count", "{d}; for llama it must be the width of a head, {d}", .{ n, head_width });
    if (subject.architecture == .qwen2 and heads > 0 and head_width > 0 and head_width * @as(u64, heads) != width)
        try wrong(subject, "attention.key_length", "{d}; for qwen2 it must be embedding_length divided by attention.head_count", .{head_width});
    try checkScaling(subject);
}

fn wrong(subject: *Subject, suffix: []const u8, comptime format: []const u8, arguments: anytype) OutOfMemory!void {
    var buffer: Subject.KeyBuffer = undefined;
    const key = subject.keyOf(&buffer, suffix);
    try subject.report.add(.key_value, key, false, "{s} is " ++ format, .{key} ++ arguments);
}

fn checkScaling(subject: *Subject) OutOfMemory!void {
    var buffer: Subject.KeyBuffer = undefined;
    const key = subject.keyOf(&buffer, "rope.scaling.type");
    const kind = subject.text(key);
    if (kind) |text| {
        for ([_][]const u8{ "none", "linear", "yarn", "longrope" }) |name| {
            if (std.mem.eql(u8, name, text)) break;
        } else try subject.report.add(.key_value, key, false, "{s} is {f}; none, linear, yarn and longrope are known", .{ key, printable(text) });
    }
    if (subject.architecture == .@"gpt-oss") {
        const yarn = kind != null and std.mem.eql(u8, kind.?, "yarn");
        if (!yarn or !subject.has("rope.scaling.factor") or !subject.has("rope.scaling.original_context_length"))
            try subject.report.add(.rope_scaling, key, false, "gpt-oss was trained with yarn, which needs rope.scaling.type, .factor and .original_context_length; not all are there", .{});
        return;
    }
    if (subject.real("rope.scaling.factor")) |x| {
        if (!(x >= 0) or !std.math.isFinite(x)) return subject.report.add(.rope_scaling, subject.keyOf(&buffer, "rope.scaling.factor"), false, "the factor of rotary scaling is {d}", .{x});
        const linear = kind == null or std.mem.eql(u8, kind.?, "linear");
        if (x > 0 and x != 1 and linear and subject.tensor("rope_freqs.weight") != null)
            try subject.report.add(.rope_scaling, key, false, "linear scaling by {d}, and rope_freqs.weight besides: positions are scaled twice", .{x});
    }
}
