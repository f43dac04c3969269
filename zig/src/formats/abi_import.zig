//! Files of the ABI framework's first writer, put into the order everyone else reads.
//!
//! They list a matrix as rows, columns where GGUF lists the row length first, and keep q and k in Hugging Face's row order under an
//! architecture whose files have rotary pairs side by side. The bytes of all other tensors stay as they are.
//! Does not know: whether the rest of the file is sound.

const std = @import("std");
const subject_file = @import("lint/subject.zig");
const gguf_rewrite = @import("gguf_rewrite.zig");
const Subject = subject_file.Subject;
const Tensor = gguf_rewrite.Tensor;

/// Whether the embedding says that the file is one of those.
pub fn isAbi(subject: *const Subject) bool {
    const width = subject.number("embedding_length") orelse return false;
    const embedding = subject.tensor("token_embd.weight") orelse return false;
    if (embedding.rank != 2 or embedding.ne[1] != width or embedding.ne[0] == width) return false;
    const declared: ?usize = subject.number("vocab_size") orelse
        if (subject.array("tokenizer.ggml.tokens", .string)) |tokens| tokens.count else null;
    return declared == embedding.ne[0];
}

/// Turns every matrix round, with one finding for all of them.
pub fn translate(subject: *Subject) error{OutOfMemory}!void {
    const heads = subject.number("attention.head_count") orelse 0;
    const shared = subject.number("attention.head_count_kv") orelse heads;
    const whole = for (subject.tensors.items) |*t| {
        if (t.rank == 2 and t.ne[1] % t.dtype.blockLen() != 0) break false;
    } else true;
    const known_heads = subject.architecture != .llama or (evenHeads(subject, "attn_q.weight", heads) and evenHeads(subject, "attn_k.weight", shared));
    const mends = whole and known_heads;
    try subject.report.add(.abi_layout, "token_embd.weight", mends, "token_embd.weight is listed as {d} × {d}: rows before columns, as the ABI framework wrote them", .{ subject.tensor("token_embd.weight").?.ne[0], subject.tensor("token_embd.weight").?.ne[1] });
    if (!mends) return;
    for (subject.tensors.items) |*t| {
        if (t.rank != 2) continue;
        const rows = t.ne[0];
        t.ne[0] = t.ne[1];
        t.ne[1] = rows;
        if (subject.architecture != .llama) continue;
        const count = if (std.mem.endsWith(u8, t.name, ".attn_q.weight")) heads else if (std.mem.endsWith(u8, t.name, ".attn_k.weight")) shared else continue;
        t.content.rows = .{ .interleaved = .{ .head_dim = rows / count } };
        t.content.row_bytes = t.content.data.len / rows;
    }
}

/// Whether the rows of every such matrix are that many heads of an even width.
fn evenHeads(subject: *const Subject, suffix: []const u8, heads: u32) bool {
    if (heads == 0) return false;
    for (subject.tensors.items) |*t| {
        if (!std.mem.endsWith(u8, t.name, suffix)) continue;
        if (t.rank != 2 or t.ne[0] % heads != 0 or (t.ne[0] / heads) % 2 != 0) return false;
    }
    return true;
}
