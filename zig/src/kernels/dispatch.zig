//! Which compiled kernels this CPU can run, and the tables of their addresses.
//!
//! The best level is found once. `ABI_TRAIN_CPU` (v2, v3, v4, base) forces a lower one; a name that is unknown or beyond
//! the CPU is ignored. Bits may differ between levels, never between runs on one level.

const std = @import("std");
const builtin = @import("builtin");
const config = @import("config");
const UpdateArgs = @import("update_args.zig").UpdateArgs;
const Joins = @import("merge_args.zig").Joins;
const Activations = @import("activations.zig").Activations;
const Next = @import("activations.zig").Next;
const AttentionArgs = @import("attention_args.zig").Args;

/// Kernels of one level for one type. What each does is said where it is written: gemm.zig, attention.zig, columns.zig, rows.zig, experts.zig, update.zig.
pub fn Table(comptime T: type) type {
    return struct {
        gemm_workspace: *const fn () callconv(.c) usize,
        gemm_tile: *const fn (rows: *usize, columns: *usize) callconv(.c) void,
        gemm: *const fn (m: usize, n: usize, k: usize, a: [*]const T, a_row: usize, a_col: usize, b: [*]const T, b_row: usize, b_col: usize, c: [*]T, ldc: usize, accumulate: c_int, workspace: [*]u8) callconv(.c) void,
        packed_b_size: *const fn (k: usize, n: usize) callconv(.c) usize,
        pack_b: *const fn (k: usize, n: usize, b: [*]const T, b_row: usize, b_col: usize, out: [*]u8) callconv(.c) void,
        gemm_packed: *const fn (m: usize, n: usize, k: usize, a: [*]const T, a_row: usize, a_col: usize, b: [*]const u8, b_k: usize, b_p: usize, b_j: usize, c: [*]T, ldc: usize, accumulate: c_int, workspace: [*]u8) callconv(.c) void,

        attention_pack_size: *const fn (time: usize, head_dim: usize) callconv(.c) usize,
        attention_pack: *const fn (form: c_int, time: usize, head_dim: usize, x: [*]const T, step: usize, out: [*]u8) callconv(.c) void,
        attention_scratch: *const fn (time: usize, head_dim: usize) callconv(.c) usize,
        attention_forward: *const fn (args: *const AttentionArgs(T)) callconv(.c) void,
        attention_backward: *const fn (args: *const AttentionArgs(T)) callconv(.c) void,

        add: *const fn (n: usize, dst: [*]T, src: [*]const T) callconv(.c) void,
        add_scaled: *const fn (n: usize, dst: [*]T, a: T, src: [*]const T) callconv(.c) void,
        scale: *const fn (n: usize, x: [*]T, a: T) callconv(.c) void,
        inner: *const fn (n: usize, x: [*]const T, y: [*]const T) callconv(.c) T,
        sum_squares: *const fn (n: usize, x: [*]const T) callconv(.c) f64,
        column_sums: *const fn (rows: usize, cols: usize, ld: usize, x: [*]const T, out: [*]T) callconv(.c) void,
        rms_forward: *const fn (cols: usize, x: [*]const T, w: [*]const T, out: [*]T, eps: T) callconv(.c) T,
        rms_backward: *const fn (cols: usize, dinp: [*]T, dout: [*]const T, x: [*]const T, w: [*]const T, rstd: T, accumulate: c_int) callconv(.c) void,
        rms_weight: *const fn (rows: usize, cols: usize, ld: usize, dout: [*]const T, x: [*]const T, rstd: [*]const T, dweight: [*]T) callconv(.c) void,
        softmax_exp: *const fn (n: usize, x: [*]T, factor: T, max_out: *T, sum_out: *T) callconv(.c) void,
        column_logits: *const fn (rows: usize, columns: usize, ld: usize, x: [*]const T, max_out: [*]T, row_out: [*]u32, exp_sum: [*]T, plain_sum: ?[*]T) callconv(.c) void,
        column_logits_gradient: *const fn (rows: usize, columns: usize, ld: usize, x: [*]T, max: [*]const T, inverse: [*]const T, offset: [*]const T, factor: [*]const T) callconv(.c) void,
        swiglu_forward: *const fn (n: usize, out: [*]T, gate: [*]const T, up: [*]const T) callconv(.c) void,
        clamped_swiglu_forward: *const fn (n: usize, out: [*]T, gate: [*]const T, up: [*]const T, alpha: T, limit: T) callconv(.c) void,
        swiglu_backward: *const fn (n: usize, dgate: [*]T, dup: [*]T, dout: [*]const T, gate: [*]const T, up: [*]const T) callconv(.c) void,
        expert_forward: *const fn (n: usize, out: [*]T, gate_up: [*]const T, limit: T, alpha: T) callconv(.c) void,
        expert_backward: *const fn (n: usize, dgate_up: [*]T, dout: [*]const T, gate_up: [*]const T, limit: T, alpha: T, factor: T) callconv(.c) void,
        rope: *const fn (heads: usize, half: usize, x: [*]T, cos: [*]const T, sin: [*]const T, sign: T) callconv(.c) void,
        rope_pairs: *const fn (heads: usize, half: usize, x: [*]T, cos: [*]const T, sin: [*]const T, sign: T) callconv(.c) void,
        exp: *const fn (n: usize, x: [*]const T, y: [*]T) callconv(.c) void,

        sgd: *const fn (n: usize, w: [*]T, g: [*]const T, args: *const UpdateArgs(T)) callconv(.c) void,
        adam: *const fn (n: usize, w: [*]T, g: [*]const T, m: [*]T, v: [*]T, args: *const UpdateArgs(T)) callconv(.c) void,
    };
}

pub const Dot = *const fn (n: usize, w: [*]const u8, x: [*]const f32) callconv(.c) f32;
pub const Expand = *const fn (n: usize, w: [*]const u8, out: [*]f32) callconv(.c) void;
pub const Matvec = *const fn (rows: usize, n: usize, w: [*]const u8, row_bytes: usize, x: [*]const f32, out: [*]f32) callconv(.c) void;
/// `a`: one factor a row.
pub const Mix = *const fn (rows: usize, n: usize, w: [*]const u8, row_bytes: usize, a: [*]const f32, out: [*]f32) callconv(.c) void;

/// Products with weights as files store them (weights.zig), and their expansion (expand.zig for block types).
pub const WeightTable = struct {
    dot_f32: Dot,
    dot_f16: Dot,
    dot_bf16: Dot,
    dot_q8_0: Dot,
    matvec_f32: Matvec,
    matvec_f16: Matvec,
    matvec_bf16: Matvec,
    matvec_q8_0: Matvec,
    mix_f32: Mix,
    mix_f16: Mix,
    mix_q8_0: Mix,
    expand_f16: Expand,
    expand_bf16: Expand,
    expand_q8_0: Expand,
    expand_q4_0: Expand,
    expand_q4_1: Expand,
    expand_q5_0: Expand,
    expand_q5_1: Expand,
    expand_q4_k: Expand,
    expand_q5_k: Expand,
    expand_q6_k: Expand,
    expand_mxfp4: Expand,
    expand_mxfp4_pairs: *const fn (n: usize, codes: [*]const u8, scales: [*]const u8, out: [*]f32) callconv(.c) void,
};

pub const Round = *const fn (n: usize, x: [*]const f32, out: *const Activations) callconv(.c) void;
pub const Matvec8 = *const fn (rows: usize, n: usize, w: [*]const u8, row_bytes: usize, tokens: usize, stride: usize, x: *const Activations, out: [*]f32, ld: usize) callconv(.c) void;

pub const Pack8 = *const fn (rows: usize, columns: usize, w: [*]const u8, row_bytes: usize, out: [*]u8) callconv(.c) void;
pub const Gemm8 = *const fn (rows: usize, columns: usize, panel: [*]const u8, offset: c_int, tokens: usize, stride: usize, x: *const Activations, out: [*]f32, ld: usize, accumulate: c_int, next: *const Next) callconv(.c) void;

/// Products with quantised weights through activations of 8 bits (quantised.zig, panels.zig).
pub const ByteTable = struct {
    round_blocks: Round,
    round_superblocks: Round,
    matvec8_q8_0: Matvec8,
    matvec8_q4_0: Matvec8,
    matvec8_q4_1: Matvec8,
    matvec8_q5_0: Matvec8,
    matvec8_q5_1: Matvec8,
    matvec8_mxfp4: Matvec8,
    matvec8_q4_k: Matvec8,
    matvec8_q5_k: Matvec8,
    matvec8_q6_k: Matvec8,
    panel_bytes: *const fn (columns: usize) callconv(.c) usize,
    pack8_q8_0: Pack8,
    pack8_q4_0: Pack8,
    pack8_q4_1: Pack8,
    pack8_q5_0: Pack8,
    pack8_q5_1: Pack8,
    pack8_mxfp4: Pack8,
    pack8_q4_k: Pack8,
    pack8_q5_k: Pack8,
    pack8_q6_k: Pack8,
    gemm8_blocks: Gemm8,
    gemm8_blocks_minimum: Gemm8,
    gemm8_superblocks_minimum: Gemm8,
    gemm8_superblocks: Gemm8,
};

pub const PackWords = *const fn (rows: usize, columns: usize, w: [*]const u8, row_bytes: usize, out: [*]u8) callconv(.c) void;

/// Products with half-precision weights through 16-bit whole numbers (words.zig).
pub const WordTable = struct {
    words_pay: *const fn () callconv(.c) c_int,
    words_tile: *const fn () callconv(.c) usize,
    words_panel_bytes: *const fn (count: usize) callconv(.c) usize,
    words_round: *const fn (count: usize, n: usize, x: [*]const f32, ld: usize, words: [*]u32, steps: [*]f32) callconv(.c) void,
    words_pack_f16: PackWords,
    words_pack_bf16: PackWords,
    words_gemm: *const fn (rows: usize, panels: [*]const u8, count: usize, words: [*]const u32, steps: [*]const f32, stretches: usize, out: [*]f32, ld: usize, accumulate: c_int, next: *const Next) callconv(.c) void,
};

/// What is computed on bf16: products of f32 operands rounded to it (gemm.zig, attention.zig), and SwiGLU of what is kept in it (gates.zig).
pub const LowTable = struct {
    gemm_bf16: @FieldType(Table(f32), "gemm"),
    packed_b_size_bf16: @FieldType(Table(f32), "packed_b_size"),
    pack_b_bf16: @FieldType(Table(f32), "pack_b"),
    gemm_packed_bf16: @FieldType(Table(f32), "gemm_packed"),
    attention_pack_size_bf16: @FieldType(Table(f32), "attention_pack_size"),
    attention_pack_bf16: @FieldType(Table(f32), "attention_pack"),
    attention_forward_bf16: @FieldType(Table(f32), "attention_forward"),
    attention_backward_bf16: @FieldType(Table(f32), "attention_backward"),
    swiglu_forward_bf16: *const fn (n: usize, out: [*]f32, gate_low: [*]u16, up_low: [*]u16, gate: [*]const f32, up: [*]const f32) callconv(.c) void,
    swiglu_product_bf16: *const fn (n: usize, out: [*]f32, gate: [*]const u16, up: [*]const u16) callconv(.c) void,
    swiglu_backward_bf16: *const fn (n: usize, dgate: [*]f32, dup: [*]f32, dout: [*]const f32, gate: [*]const u16, up: [*]const u16) callconv(.c) void,
};

pub const PackRows = *const fn (form: c_int, outer: usize, inner: usize, rows: [*]const [*]const u8, scales: [*]const [*]const u8, out: [*]u8) callconv(.c) void;

/// Stored weights straight into the panels of a product in bf16 (blocks.zig).
pub const BlockTable = struct {
    packed_rows_size: *const fn (k: usize, n: usize) callconv(.c) usize,
    pack_rows_across: PackRows,
    pack_rows_along: PackRows,
};

/// Work on text (text.zig, merging.zig).
pub const TextTable = struct {
    text_starts: *const fn (rule: c_int, text: [*]const u8, len: usize, from: usize, starts: [*]u32, capacity: usize, count: *usize) callconv(.c) usize,
    text_merge: *const fn (joins: *const Joins, count: usize, keys: [*]const u8, ids: [*]u32, counts: [*]u8) callconv(.c) void,
    text_merge_long: *const fn (joins: *const Joins, count: usize, texts: [*]const [*]const u8, lengths: [*]const u32, ids: [*]const [*]u32, counts: [*]u32) callconv(.c) void,
};

pub const Quantise = *const fn (blocks: usize, x: [*]const f32, out: [*]u8) callconv(.c) c_int;
pub const Weigh = *const fn (blocks: usize, x: [*]const f32, importance: [*]const f32, columns: usize, out: [*]u8) callconv(.c) c_int;

/// f32 to stored blocks (quantise.zig).
pub const QuantiseTable = struct {
    quantise_q8_0: Quantise,
    quantise_q4_0: Quantise,
    quantise_q4_1: Quantise,
    quantise_q5_0: Quantise,
    quantise_q5_1: Quantise,
    quantise_q4_k: Quantise,
    quantise_q5_k: Quantise,
    quantise_q6_k: Quantise,
    quantise_mxfp4: Quantise,
    weigh_q4_0: Weigh,
    weigh_q4_1: Weigh,
    weigh_q5_0: Weigh,
    weigh_q5_1: Weigh,
    weigh_q4_k: Weigh,
    weigh_q5_k: Weigh,
    weigh_q6_k: Weigh,
    largest_bits: *const fn (n: usize, x: [*]const f32) callconv(.c) u32,
};

fn tables(comptime TableType: type, comptime infix: []const u8) [config.levels.len]TableType {
    @setEvalBranchQuota(100_000);
    var list: [config.levels.len]TableType = undefined;
    for (config.levels, &list) |name, *entry| {
        const info = @typeInfo(TableType).@"struct";
        for (info.field_names, info.field_types) |field, Field| {
            @field(entry, field) = @extern(Field, .{ .name = "abt_k_" ++ field ++ infix ++ "_" ++ name });
        }
    }
    return list;
}

const tables_f32 = tables(Table(f32), "_f32");
const tables_f64 = tables(Table(f64), "_f64");
const tables_weights = tables(WeightTable, "");
const tables_byte = tables(ByteTable, "");
const tables_word = tables(WordTable, "");
const tables_low = tables(LowTable, "");
const tables_blocks = tables(BlockTable, "");
const tables_text = tables(TextTable, "");
const tables_quantise = tables(QuantiseTable, "");

/// Kernels of the level in use.
pub fn table(comptime T: type) *const Table(T) {
    return tableAt(T, levelIndex());
}

/// Kernels of one of the levels in `available()`, for tests.
pub fn tableAt(comptime T: type, index: usize) *const Table(T) {
    return switch (T) {
        f32 => &tables_f32[index],
        f64 => &tables_f64[index],
        else => @compileError("kernels exist for f32 and f64"),
    };
}

pub fn weightTable() *const WeightTable {
    return &tables_weights[levelIndex()];
}

pub fn weightTableAt(index: usize) *const WeightTable {
    return &tables_weights[index];
}

pub fn quantiseTable() *const QuantiseTable {
    return &tables_quantise[levelIndex()];
}

pub fn byteTable() *const ByteTable {
    return &tables_byte[levelIndex()];
}

pub fn byteTableAt(index: usize) *const ByteTable {
    return &tables_byte[index];
}

pub fn wordTable() *const WordTable {
    return &tables_word[levelIndex()];
}

pub fn wordTableAt(index: usize) *const WordTable {
    return &tables_word[index];
}

pub fn lowTable() *const LowTable {
    return &tables_low[levelIndex()];
}

pub fn lowTableAt(index: usize) *const LowTable {
    return &tables_low[index];
}

pub fn blockTable() *const BlockTable {
    return &tables_blocks[levelIndex()];
}

pub fn blockTableAt(index: usize) *const BlockTable {
    return &tables_blocks[index];
}

pub fn textTable() *const TextTable {
    return &tables_text[levelIndex()];
}

pub fn textTableAt(index: usize) *const TextTable {
    return &tables_text[index];
}

/// Name of the level in use.
pub fn level() []const u8 {
    return config.levels[levelIndex()];
}

/// Names of all levels this CPU can run, lowest first.
pub fn available() []const []const u8 {
    return config.levels[0 .. best() + 1];
}

const unknown = std.math.maxInt(usize);
var chosen: std.atomic.Value(usize) = .init(unknown);

fn levelIndex() usize {
    const known = chosen.load(.monotonic);
    if (known != unknown) return known;
    const wanted: ?[]const u8 = if (std.c.getenv("ABI_TRAIN_CPU")) |text| std.mem.span(text) else null;
    const index = choose(wanted, best());
    chosen.store(index, .monotonic); // Two threads at once find the same.
    return index;
}

fn choose(wanted: ?[]const u8, highest: usize) usize {
    if (wanted) |name| for (config.levels[0 .. highest + 1], 0..) |candidate, i| {
        if (std.mem.eql(u8, name, candidate)) return i;
    };
    return highest;
}

/// Index of the highest level the CPU and the operating system support.
fn best() usize {
    if (builtin.cpu.arch != .x86_64) return 0;
    comptime if (builtin.cpu.arch == .x86_64) std.debug.assert(config.levels.len == 3); // v2, v3, v4
    const one = cpuid(1, 0);
    if (!bit(one.c, 27)) return 0; // The system does not save wide registers.
    const saved = xgetbv();
    const seven = cpuid(7, 0);
    const extended = cpuid(0x8000_0001, 0);
    const v3 = saved & 0x6 == 0x6 and bit(one.c, 12) and bit(one.c, 22) and bit(one.c, 28) and bit(one.c, 29) and
        bit(seven.b, 3) and bit(seven.b, 5) and bit(seven.b, 8) and bit(extended.c, 5);
    if (!v3) return 0;
    const v4 = saved & 0xe6 == 0xe6 and bit(seven.b, 16) and bit(seven.b, 17) and bit(seven.b, 28) and
        bit(seven.b, 30) and bit(seven.b, 31) and bit(seven.c, 11) and bit(cpuid(7, 1).a, 5);
    return if (v4) 2 else 1;
}

fn bit(word: u32, comptime index: u5) bool {
    return word >> index & 1 != 0;
}

const Registers = struct { a: u32, b: u32, c: u32, d: u32 };

fn cpuid(leaf: u32, sub: u32) Registers {
    var a: u32 = leaf;
    var b: u32 = undefined;
    var c: u32 = sub;
    var d: u32 = undefined;
    asm volatile ("cpuid"
        : [a] "+{eax}" (a),
          [b] "={ebx}" (b),
          [c] "+{ecx}" (c),
          [d] "={edx}" (d),
    );
    return .{ .a = a, .b = b, .c = c, .d = d };
}

fn xgetbv() u32 {
    return asm volatile ("xgetbv"
        : [low] "={eax}" (-> u32),
        : [index] "{ecx}" (@as(u32, 0)),
        : .{ .edx = true });
}

test "a lower level can be asked for, a higher or unknown one is ignored" {
    for (config.levels, 0..) |name, i| {
        try std.testing.expectEqual(i, choose(name, config.levels.len - 1));
        try std.testing.expectEqual(0, choose(name, 0));
    }
    try std.testing.expectEqual(config.levels.len - 1, choose("v9", config.levels.len - 1));
    try std.testing.expectEqual(0, choose(null, 0));
}

test "the level asked for is the level in use, where this CPU can run it" {
    const wanted = std.c.getenv("ABI_TRAIN_CPU") orelse return; // `test-levels` asks.
    for (available()) |name| {
        if (std.mem.eql(u8, name, std.mem.span(wanted))) return std.testing.expectEqualStrings(name, level());
    }
    try std.testing.expectEqualStrings(available()[available().len - 1], level());
}

test "the level in use is one of the available ones" {
    for (available()) |name| {
        if (std.mem.eql(u8, name, level())) return;
    }
    return error.TestUnexpectedResult;
}
