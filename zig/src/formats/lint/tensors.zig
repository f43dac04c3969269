//! Tensors against the table of their architecture: names, shapes, types.
//!
//! The table is what llama.cpp asks for when it loads: a tensor too many ends the load as one too few does. Shapes are compared exactly.
//! Does not know: the numbers inside.

const std = @import("std");
const base = @import("base");
const gguf = @import("../gguf.zig");
const gguf_mix = @import("../gguf_mix.zig");
const gguf_rewrite = @import("../gguf_rewrite.zig");
const subject_file = @import("subject.zig");
const Architecture = subject_file.Architecture;
const Subject = subject_file.Subject;
const Tensor = gguf_rewrite.Tensor;
const printable = base.bytes.printable;
const OutOfMemory = error{OutOfMemory};

/// What a dimension follows from.
const Size = enum { width, vocabulary, queries, keys, fused, head, half_head, inner, heads, experts, expert_inner };

const Presence = enum { needed, allowed, wished, absent };

const Row = struct {
    name: []const u8,
    /// ggml's order.
    sizes: []const Size,
    llama: Presence = .absent,
    qwen2: Presence = .absent,
    qwen3: Presence = .absent,
    smollm3: Presence = .absent,
    gpt_oss: Presence = .absent,
    /// llama with experts; null where it is as without.
    mixture: ?Presence = null,

    fn presence(self: Row, architecture: Architecture, experts: bool) Presence {
        return switch (architecture) {
            .llama => if (experts) self.mixture orelse self.llama else self.llama,
            .qwen2 => self.qwen2,
            .qwen3 => self.qwen3,
            .smollm3 => self.smollm3,
            .@"gpt-oss" => self.gpt_oss,
        };
    }
};

fn everywhere(name: []const u8, sizes: []const Size, presence: Presence) Row {
    return .{ .name = name, .sizes = sizes, .llama = presence, .qwen2 = presence, .qwen3 = presence, .smollm3 = presence, .gpt_oss = presence };
}

fn denseOnly(name: []const u8, sizes: []const Size) Row {
    return .{ .name = name, .sizes = sizes, .llama = .needed, .qwen2 = .needed, .qwen3 = .needed, .smollm3 = .needed, .mixture = .absent };
}

const outer = [_]Row{
    everywhere("token_embd.weight", &.{ .width, .vocabulary }, .needed),
    everywhere("output_norm.weight", &.{.width}, .needed),
    .{ .name = "output.weight", .sizes = &.{ .width, .vocabulary }, .llama = .allowed, .qwen2 = .allowed, .qwen3 = .allowed, .smollm3 = .allowed, .gpt_oss = .needed },
    .{ .name = "output.bias", .sizes = &.{.vocabulary}, .qwen2 = .allowed },
    .{ .name = "rope_freqs.weight", .sizes = &.{.half_head}, .llama = .allowed },
};

const layered = [_]Row{
    everywhere("attn_norm.weight", &.{.width}, .needed),
    everywhere("attn_q.weight", &.{ .width, .queries }, .needed),
    everywhere("attn_k.weight", &.{ .width, .keys }, .needed),
    everywhere("attn_v.weight", &.{ .width, .keys }, .needed),
    everywhere("attn_output.weight", &.{ .queries, .width }, .needed),
    everywhere("attn_qkv.weight", &.{ .width, .fused }, .allowed),
    everywhere("attn_qkv.bias", &.{.fused}, .allowed),
    .{ .name = "attn_q.bias", .sizes = &.{.queries}, .llama = .allowed, .qwen2 = .wished, .qwen3 = .allowed, .smollm3 = .allowed, .gpt_oss = .wished },
    .{ .name = "attn_k.bias", .sizes = &.{.keys}, .llama = .allowed, .qwen2 = .wished, .qwen3 = .allowed, .smollm3 = .allowed, .gpt_oss = .wished },
    .{ .name = "attn_v.bias", .sizes = &.{.keys}, .llama = .allowed, .qwen2 = .wished, .qwen3 = .allowed, .smollm3 = .allowed, .gpt_oss = .wished },
    .{ .name = "attn_output.bias", .sizes = &.{.width}, .llama = .allowed, .gpt_oss = .needed },
    .{ .name = "attn_q_norm.weight", .sizes = &.{.head}, .qwen3 = .needed },
    .{ .name = "attn_k_norm.weight", .sizes = &.{.head}, .qwen3 = .needed },
    .{ .name = "attn_sinks.weight", .sizes = &.{.heads}, .gpt_oss = .needed },
    .{ .name = "ffn_norm.weight", .sizes = &.{.width}, .llama = .needed, .qwen2 = .needed, .qwen3 = .needed, .smollm3 = .needed },
    .{ .name = "post_attention_norm.weight", .sizes = &.{.width}, .gpt_oss = .needed },
    denseOnly("ffn_gate.weight", &.{ .width, .inner }),
    denseOnly("ffn_up.weight", &.{ .width, .inner }),
    denseOnly("ffn_down.weight", &.{ .inner, .width }),
    .{ .name = "ffn_gate.bias", .sizes = &.{.inner}, .llama = .allowed, .mixture = .absent },
    .{ .name = "ffn_up.bias", .sizes = &.{.inner}, .llama = .allowed, .mixture = .absent },
    .{ .name = "ffn_down.bias", .sizes = &.{.width}, .llama = .allowed, .mixture = .absent },
    .{ .name = "ffn_gate_inp.weight", .sizes = &.{ .width, .experts }, .gpt_oss = .needed, .mixture = .needed },
    .{ .name = "ffn_gate_inp.bias", .sizes = &.{.experts}, .gpt_oss = .needed },
    .{ .name = "ffn_gate_exps.weight", .sizes = &.{ .width, .expert_inner, .experts }, .gpt_oss = .needed, .mixture = .allowed },
    .{ .name = "ffn_up_exps.weight", .sizes = &.{ .width, .expert_inner, .experts }, .gpt_oss = .needed, .mixture = .needed },
    .{ .name = "ffn_down_exps.weight", .sizes = &.{ .expert_inner, .width, .experts }, .gpt_oss = .needed, .mixture = .needed },
    .{ .name = "ffn_gate_exps.bias", .sizes = &.{ .expert_inner, .experts }, .gpt_oss = .needed },
    .{ .name = "ffn_up_exps.bias", .sizes = &.{ .expert_inner, .experts }, .gpt_oss = .needed },
    .{ .name = "ffn_down_exps.bias", .sizes = &.{ .width, .experts }, .gpt_oss = .needed },
};

/// Tensors that newer writers add and llama.cpp takes, whose shapes are not compared.
const extras = [_][]const u8{ "rope_factors_long.weight", "rope_factors_short.weight" };

const Checker = struct {
    subject: *Subject,
    architecture: Architecture,
    experts: bool,
    sizes: std.EnumArray(Size, ?u64),

    fn row(self: *Checker, r: Row, layer: ?u32) OutOfMemory!void {
        var buffer: Subject.NameBuffer = undefined;
        const name = if (layer) |l| std.fmt.bufPrint(&buffer, "blk.{d}.{s}", .{ l, r.name }) catch unreachable else r.name; // 4 + 10 + 1 + 27 bytes.
        const presence = r.presence(self.architecture, self.experts);
        if (presence == .absent) return;
        const t = self.subject.tensor(name) orelse return self.gone(name, r, presence, layer);
        try self.shape(t, r);
    }

    fn gone(self: *Checker, name: []const u8, r: Row, presence: Presence, layer: ?u32) OutOfMemory!void {
        const report = self.subject.report;
        switch (presence) {
            .absent, .allowed => return,
            .wished => {
                if (layer) |l| if (self.subject.inLayer(l, "attn_qkv.bias") != null) return;
                return report.add(.bias_missing, name, false, "tensor {s} is missing; {t} has one in every layer", .{ name, self.architecture });
            },
            .needed => {},
        }
        const in_fused = for ([_][]const u8{ "attn_q.weight", "attn_k.weight", "attn_v.weight" }) |part| {
            if (std.mem.eql(u8, part, r.name)) break true;
        } else false;
        if (in_fused) if (self.subject.inLayer(layer.?, "attn_qkv.weight") != null) return;
        if (std.mem.eql(u8, name, "output.weight")) {
            const embedding = self.subject.tensor("token_embd.weight");
            try report.add(.output_missing, name, embedding != null, "tensor output.weight is missing", .{});
            var head = (embedding orelse return).*;
            head.name = "output.weight";
            return self.subject.addTensor(head);
        }
        try report.add(.tensor_missing, name, false, "tensor {s} is missing", .{name});
    }

    fn shape(self: *Checker, t: *const Tensor, r: Row) OutOfMemory!void {
        var want: [gguf.limits.dimensions]usize = @splat(1);
        for (r.sizes, 0..) |size, axis| want[axis] = std.math.cast(usize, self.sizes.get(size) orelse return) orelse return;
        if (std.mem.eql(usize, &want, &t.ne)) return;
        try self.subject.report.add(.tensor_shape, t.name, false, "tensor {f} has dimensions {f}; the keys ask for {f}", .{ printable(t.name), Shape{ .ne = t.ne }, Shape{ .ne = want } });
    }

    fn extra(self: *Checker, t: *const Tensor, layers: u32) OutOfMemory!void {
        const report = self.subject.report;
        for (extras) |name| if (std.mem.endsWith(u8, t.name, name)) return;
        const layer = gguf_mix.layerOf(t.name);
        const rows: []const Row = if (layer == null) &outer else &layered;
        const own = if (layer == null) t.name else t.name[(std.mem.findScalarPos(u8, t.name, 4, '.') orelse return) + 1 ..];
        const is_known = for (rows) |r| {
            if (std.mem.eql(u8, r.name, own)) break r.presence(self.architecture, self.experts) != .absent;
        } else false;
        const beyond = layer != null and layer.? >= layers;
        if (is_known and !beyond) return;
        if (beyond) return report.add(.tensor_unexpected, t.name, false, "tensor {f} belongs to layer {d}; block_count is {d}", .{ printable(t.name), layer.?, layers });
        try report.add(.tensor_unexpected, t.name, false, "tensor {f} is none of {t}'s", .{ printable(t.name), self.architecture });
    }
};

const Shape = struct {
    ne: [gguf.limits.dimensions]usize,

    pub fn format(self: Shape, w: *std.Io.Writer) std.Io.Writer.Error!void {
        var rank: usize = 1;
        for (self.ne, 1..) |n, r| if (n != 1) {
            rank = r;
        };
        for (self.ne[0..rank], 0..) |n, i| try w.print("{s}{d}", .{ if (i > 0) " × " else "", n });
    }
};

/// Names and shapes.
pub fn check(subject: *Subject) OutOfMemory!void {
    const architecture = subject.architecture orelse return;
    const width = number(subject, "embedding_length");
    const heads = number(subject, "attention.head_count");
    const head: ?u64 = number(subject, "attention.key_length") orelse if (heads != null and heads.? > 0 and width != null) width.? / heads.? else null;
    const shared = number(subject, "attention.head_count_kv") orelse heads;
    const experts = subject.number("expert_count") orelse 0;
    const queries = times(heads, head);
    const keys = times(shared, head);
    // Whether the tokenizer agrees is a finding of its own.
    const vocabulary: ?u64 = if (subject.tensor("token_embd.weight")) |t| t.ne[1] else null;
    var sizes: std.EnumArray(Size, ?u64) = .initFill(null);
    sizes.set(.width, width);
    sizes.set(.vocabulary, vocabulary);
    sizes.set(.queries, queries);
    sizes.set(.keys, keys);
    sizes.set(.fused, if (queries != null and keys != null) queries.? + 2 * keys.? else null);
    sizes.set(.head, head);
    sizes.set(.half_head, if (head) |h| h / 2 else null);
    sizes.set(.inner, number(subject, "feed_forward_length"));
    sizes.set(.heads, heads);
    sizes.set(.experts, experts);
    sizes.set(.expert_inner, number(subject, if (architecture == .@"gpt-oss") "expert_feed_forward_length" else "feed_forward_length"));

    var checker: Checker = .{ .subject = subject, .architecture = architecture, .experts = experts > 0, .sizes = sizes };
    const present = subject.tensors.items.len;
    for (outer) |r| try checker.row(r, null);
    const declared = subject.number("block_count") orelse 0;
    // A file that declares more layers than it has tensors gets its findings without a walk through them.
    const layers: u32 = @intCast(@min(declared, present + 1));
    for (0..layers) |layer| for (layered) |r| try checker.row(r, @intCast(layer));
    for (subject.tensors.items[0..present]) |*t| try checker.extra(t, declared);
    for (subject.tensors.items) |*t| try checkType(subject, t);
}

fn number(subject: *const Subject, suffix: []const u8) ?u64 {
    return if (subject.number(suffix)) |n| n else null;
}

fn times(a: ?u64, b: ?u64) ?u64 {
    return std.math.mul(u64, a orelse return null, b orelse return null) catch null;
}

/// Whether ggml adds or multiplies with it element by element, which it does in f32 only.
fn isVector(t: *const Tensor) bool {
    if (t.ne[1] == 1 and t.ne[2] == 1 and t.ne[3] == 1) return true;
    for ([_][]const u8{ "_norm.weight", ".bias", "attn_sinks.weight" }) |ending| {
        if (std.mem.endsWith(u8, t.name, ending)) return true;
    }
    return false;
}

fn checkType(subject: *Subject, t: *Tensor) OutOfMemory!void {
    if (isVector(t)) {
        if (t.dtype == .f32) return;
        const widens = t.dtype.isFloat() and t.content.convert == .none;
        try subject.report.add(.tensor_type, t.name, widens, "tensor {f} is stored as {s}; it must be f32", .{ printable(t.name), t.dtype.label() });
        if (!widens) return;
        t.content.convert = .to_f32;
        t.dtype = .f32;
        return;
    }
    switch (t.dtype) {
        .f64, .i8, .i16, .i32, .i64, .q8_1, .q8_k => try subject.report.add(.matrix_type, t.name, false, "tensor {f} is stored as {s}, which nothing multiplies with", .{ printable(t.name), t.dtype.label() }),
        else => {},
    }
}

/// Adapters: the kind, the scale, and both halves of every pair.
pub fn checkAdapter(subject: *Subject) OutOfMemory!void {
    const report = subject.report;
    const kind = subject.text("adapter.type") orelse "";
    if (!std.mem.eql(u8, kind, "lora")) try report.add(.adapter, "adapter.type", false, "adapter.type is {f}; it must be \"lora\"", .{printable(kind)});
    if (subject.get("adapter.lora.alpha") == null) try report.add(.adapter, "adapter.lora.alpha", false, "adapter.lora.alpha is missing: the adapter's scale is not known", .{});
    for (subject.tensors.items) |*t| {
        const is_a = std.mem.endsWith(u8, t.name, ".lora_a");
        const is_b = std.mem.endsWith(u8, t.name, ".lora_b");
        if (!is_a and !is_b) {
            try report.add(.adapter, t.name, false, "tensor {f} ends in neither .lora_a nor .lora_b", .{printable(t.name)});
            continue;
        }
        var buffer: [gguf.limits.tensor_name_bytes + 1]u8 = undefined;
        if (t.name.len > buffer.len) continue;
        @memcpy(buffer[0..t.name.len], t.name);
        buffer[t.name.len - 1] = if (is_a) 'b' else 'a';
        const other = subject.tensor(buffer[0..t.name.len]) orelse {
            try report.add(.adapter, t.name, false, "tensor {f} has no other half {f}", .{ printable(t.name), printable(buffer[0..t.name.len]) });
            continue;
        };
        const rank = if (is_a) t.ne[1] else t.ne[0];
        const other_rank = if (is_a) other.ne[0] else other.ne[1];
        // The embedding's first half is stored turned round.
        if (std.mem.startsWith(u8, t.name, "token_embd.")) continue;
        if (is_a and rank != other_rank) try report.add(.adapter, t.name, false, "tensor {f} is of rank {d}, its other half of {d}", .{ printable(t.name), rank, other_rank });
    }
}
