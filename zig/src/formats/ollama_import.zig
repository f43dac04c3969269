//! gpt-oss as early Ollama stored it, translated into the file llama.cpp reads.
//!
//! Those files call the architecture `gptoss`, give three tensors other names, and the very first ones fuse q, k and v, keep gate and up
//! of the experts as alternating rows of one tensor, and store MXFP4 under the retired type 4 with neighbours in one byte. Rows and
//! blocks are moved, never rounded. Does not know: whether the rest of the file is sound.

const std = @import("std");
const subject_file = @import("lint/subject.zig");
const gguf = @import("gguf.zig");
const gguf_mix = @import("gguf_mix.zig");
const gguf_rewrite = @import("gguf_rewrite.zig");
const Subject = subject_file.Subject;
const Tensor = gguf_rewrite.Tensor;

pub const old_architecture = "gptoss";
const new_architecture = "gpt-oss";

const renames = [_][2][]const u8{
    .{ "attn_out.weight", "attn_output.weight" },
    .{ "attn_out.bias", "attn_output.bias" },
    .{ "attn_sinks", "attn_sinks.weight" },
    .{ "ffn_norm.weight", "post_attention_norm.weight" },
};

/// `early` names a tensor stored under the retired type, if there is one.
pub fn isOllama(subject: *const Subject, early: bool) bool {
    return early or std.mem.eql(u8, subject.named, old_architecture);
}

/// Translates keys and tensors, with one finding for all of them. `early[i]` marks tensor i as stored under the retired type.
pub fn translate(subject: *Subject, early: []const bool) error{OutOfMemory}!void {
    var out: Out = .{ .subject = subject };
    try out.keys();
    var retired: usize = 0;
    for (subject.tensors.items, early) |t, is_early| {
        var tensor = t;
        if (is_early) {
            tensor.content.convert = .early_ollama;
            retired += 1;
        }
        try out.tensor(tensor);
    }
    const blocks = if (retired > 0) " and blocks under the retired type 4" else "";
    try subject.report.add(.ollama_layout, "general.architecture", true, "the architecture is {s}, as early Ollama wrote it, with {d} tensors of other names or shapes{s}", .{ old_architecture, out.changed, blocks });
    try subject.replaceTensors(out.list.items);
}

const Out = struct {
    subject: *Subject,
    list: std.ArrayList(Tensor) = .empty,
    changed: usize = 0,

    fn keys(self: *Out) error{OutOfMemory}!void {
        const subject = self.subject;
        const arena = subject.arena;
        var renamed: gguf_rewrite.Keys = .empty;
        for (subject.keys.keys(), subject.keys.values()) |name, value| {
            const old = old_architecture ++ ".";
            const new = if (std.mem.startsWith(u8, name, old)) try std.mem.concat(arena, u8, &.{ new_architecture, ".", name[old.len..] }) else name;
            try renamed.put(arena, new, value);
        }
        subject.keys = renamed;
        subject.named = new_architecture;
        subject.architecture = .@"gpt-oss";
        try subject.put("general.architecture", .{ .string = new_architecture });
        if (subject.number("rope.scaling.factor") == null and subject.real("rope.scaling.factor") != null and !subject.has("rope.scaling.type"))
            try subject.put(new_architecture ++ ".rope.scaling.type", .{ .string = "yarn" });
        // The one rule these files were made with did not exist under its name yet.
        const pre = subject.text("tokenizer.ggml.pre") orelse "default";
        if (std.mem.eql(u8, pre, "default")) try subject.put("tokenizer.ggml.pre", .{ .string = "gpt-4o" });
    }

    fn tensor(self: *Out, t: Tensor) error{OutOfMemory}!void {
        const layer = gguf_mix.layerOf(t.name) orelse return self.list.append(self.subject.arena, t);
        const suffix = t.name[(std.mem.findScalarPos(u8, t.name, 4, '.') orelse return) + 1 ..];
        for (renames) |pair| if (std.mem.eql(u8, suffix, pair[0])) return self.add(t, layer, pair[1]);
        if (try self.fused(t, layer, suffix)) return;
        try self.list.append(self.subject.arena, t);
    }

    fn add(self: *Out, t: Tensor, layer: u32, suffix: []const u8) error{OutOfMemory}!void {
        const arena = self.subject.arena;
        var renamed = t;
        renamed.name = try std.fmt.allocPrint(arena, "blk.{d}.{s}", .{ layer, suffix });
        if (renamed.content.convert != .none or !std.mem.eql(u8, renamed.name, t.name)) self.changed += 1;
        try self.list.append(arena, renamed);
    }

    /// One tensor that is several: q, k and v one after the other, or gate and up row by row.
    fn fused(self: *Out, t: Tensor, layer: u32, suffix: []const u8) error{OutOfMemory}!bool {
        const is_bias = std.mem.endsWith(u8, suffix, ".bias");
        const kind = if (is_bias) "bias" else "weight";
        // Of a bias the fused axis is the first, and a row is one number.
        const axis: usize = if (is_bias) 0 else 1;
        const rows = t.ne[axis];
        if (rows == 0 or t.content.data.len == 0) return false;
        const unit = if (is_bias) t.dtype.blockBytes() else t.content.data.len / (t.ne[1] * t.ne[2] * t.ne[3]);
        if (is_bias and t.dtype.isQuantized()) return false;
        if (std.mem.startsWith(u8, suffix, "ffn_gate_up_exps.")) {
            if (rows % 2 != 0) return false;
            for ([_][]const u8{ "ffn_gate_exps", "ffn_up_exps" }, 0..) |name, first| {
                var half = t;
                half.ne[axis] = rows / 2;
                half.content.rows = .{ .alternate = .{ .first = first } };
                half.content.row_bytes = unit;
                try self.addKind(half, layer, name, kind);
            }
            return true;
        }
        if (!std.mem.startsWith(u8, suffix, "attn_qkv.")) return false;
        const queries, const shared = self.widths() orelse return false;
        if (queries + 2 * shared != rows) return false;
        var first: usize = 0;
        for ([_][]const u8{ "attn_q", "attn_k", "attn_v" }, [_]usize{ queries, shared, shared }) |name, count| {
            var part = t;
            part.ne[axis] = count;
            part.content.rows = .{ .range = .{ .first = first, .count = count } };
            part.content.row_bytes = unit;
            try self.addKind(part, layer, name, kind);
            first += count;
        }
        return true;
    }

    fn addKind(self: *Out, t: Tensor, layer: u32, name: []const u8, kind: []const u8) error{OutOfMemory}!void {
        const arena = self.subject.arena;
        try self.add(t, layer, try std.fmt.allocPrint(arena, "{s}.{s}", .{ name, kind }));
    }

    fn widths(self: *const Out) ?[2]usize {
        const heads: usize = self.subject.number("attention.head_count") orelse return null;
        const shared: usize = self.subject.number("attention.head_count_kv") orelse heads;
        const width: usize = self.subject.number("embedding_length") orelse return null;
        if (heads == 0) return null;
        const head: usize = self.subject.number("attention.key_length") orelse width / heads;
        const most = 1 << 24;
        if (heads > most or shared > most or head > most) return null;
        return .{ heads * head, shared * head };
    }
};
