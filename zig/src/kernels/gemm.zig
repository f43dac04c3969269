//! Matrix product on one thread: panels packed into a workspace, a register-blocked inner kernel, any strides.
//!
//! C[i,j] (+)= Σ_p A[i,p]·B[p,j], A[i,p] at a[i·a_row + p·a_col], B[p,j] at b[p·b_row + j·b_col], C row-major with `ldc`.
//! The three products of a linear layer differ only in strides. An element of C is made in blocks of `kc` along p:
//! inside a block one chain of multiply-adds from 0 in the order of p, blocks added to C in order. Nothing of that
//! depends on i, j, m or n, so a product cut into parts, in any way, has the bits of the whole.
//!
//! `low` is the product of f32 operands rounded to bf16 (nearest even) and summed in f32: two neighbours along p meet
//! their partners in one instruction, `vdpbf16ps`. Levels without it compute the same sums with two multiply-adds, so
//! the mode means the same everywhere, up to the order of rounding.

const lanes = @import("lanes.zig");
const pack = @import("pack.zig");

const Word = pack.Word;
const depth = pack.depth;

/// Numbers in one block of p: the same on all levels, and in bf16.
inline fn blockK(comptime T: type) comptime_int {
    return comptime if (T == f32) 768 else 384;
}
/// Columns of B and rows of A that are packed together.
const block_n = 1024;

/// Rows and vectors of the register tile: MR·NV accumulators, NV of B and one of A must fit the registers.
pub const tile_rows = switch (lanes.width(f32)) {
    16 => 14,
    8 => 6,
    else => if (lanes.has_fma) 8 else 4,
};
const tile_vectors = 2;
const block_m = 8 * tile_rows;

pub inline fn panelWidth(comptime T: type) comptime_int {
    return comptime tile_vectors * lanes.width(T);
}

pub inline fn pitch(comptime T: type) comptime_int {
    return pack.pitchOf(T, tile_rows);
}

pub fn Kernels(comptime T: type) type {
    return struct {
        /// Bytes of workspace for every product of this type.
        pub fn gemm_workspace() callconv(.c) usize {
            return (block_m / tile_rows * pitch(T) + block_n) * blockK(T) * @sizeOf(T);
        }

        /// Rows and columns of a whole register tile: parts of a product in such units waste nothing at their borders.
        pub fn gemm_tile(rows: *usize, columns: *usize) callconv(.c) void {
            rows.* = tile_rows;
            columns.* = panelWidth(T);
        }

        /// `workspace`: gemm_workspace() bytes, aligned to 64. accumulate: 0 stores, 1 adds.
        pub fn gemm(m: usize, n: usize, k: usize, a: [*]const T, a_row: usize, a_col: usize, b: [*]const T, b_row: usize, b_col: usize, c: [*]T, ldc: usize, accumulate: c_int, workspace: [*]u8) callconv(.c) void {
            product(T, false, m, n, k, a, a_row, a_col, b, b_row, b_col, c, ldc, accumulate != 0, workspace);
        }

        /// Bytes that `pack_b` needs for a B of k × n.
        pub fn packed_b_size(k: usize, n: usize) callconv(.c) usize {
            return packedSize(T, false, k, n);
        }

        /// B once and for all, for `gemm_packed`. `out`: packed_b_size bytes, aligned to 64.
        pub fn pack_b(k: usize, n: usize, b: [*]const T, b_row: usize, b_col: usize, out: [*]u8) callconv(.c) void {
            packB(T, false, k, n, b, b_row, b_col, out);
        }

        /// `gemm` with a B of `b_k` rows that `pack_b` has laid out, from its row `b_p` (even) and its column `b_j` (a
        /// multiple of 32) on.
        pub fn gemm_packed(m: usize, n: usize, k: usize, a: [*]const T, a_row: usize, a_col: usize, b: [*]const u8, b_k: usize, b_p: usize, b_j: usize, c: [*]T, ldc: usize, accumulate: c_int, workspace: [*]u8) callconv(.c) void {
            packedProduct(T, false, m, n, k, a, a_row, a_col, b, b_k, b_p, b_j, c, ldc, accumulate != 0, workspace);
        }
    };
}

/// The same with operands rounded to bf16. The workspace is that of f32.
pub const LowKernels = struct {
    pub fn gemm_bf16(m: usize, n: usize, k: usize, a: [*]const f32, a_row: usize, a_col: usize, b: [*]const f32, b_row: usize, b_col: usize, c: [*]f32, ldc: usize, accumulate: c_int, workspace: [*]u8) callconv(.c) void {
        product(f32, true, m, n, k, a, a_row, a_col, b, b_row, b_col, c, ldc, accumulate != 0, workspace);
    }

    pub fn packed_b_size_bf16(k: usize, n: usize) callconv(.c) usize {
        return packedSize(f32, true, k, n);
    }

    pub fn pack_b_bf16(k: usize, n: usize, b: [*]const f32, b_row: usize, b_col: usize, out: [*]u8) callconv(.c) void {
        packB(f32, true, k, n, b, b_row, b_col, out);
    }

    pub fn gemm_packed_bf16(m: usize, n: usize, k: usize, a: [*]const f32, a_row: usize, a_col: usize, b: [*]const u8, b_k: usize, b_p: usize, b_j: usize, c: [*]f32, ldc: usize, accumulate: c_int, workspace: [*]u8) callconv(.c) void {
        packedProduct(f32, true, m, n, k, a, a_row, a_col, b, b_k, b_p, b_j, c, ldc, accumulate != 0, workspace);
    }
};

fn packedSize(comptime T: type, comptime low: bool, k: usize, n: usize) usize {
    const nr = panelWidth(T);
    return (n + nr - 1) / nr * nr * depth(low, k) * @sizeOf(T);
}

fn packB(comptime T: type, comptime low: bool, k: usize, n: usize, b: [*]const T, b_row: usize, b_col: usize, out: [*]u8) void {
    const nr = panelWidth(T);
    pack.panels(T, low, nr, n, k, b, b_col, b_row, @ptrCast(@alignCast(out)), nr * depth(low, k));
}

fn product(comptime T: type, comptime low: bool, m: usize, n: usize, k: usize, a: [*]const T, a_row: usize, a_col: usize, b: [*]const T, b_row: usize, b_col: usize, c: [*]T, ldc: usize, accumulate: bool, workspace: [*]u8) void {
    if (k == 0) return nothing(T, m, n, c, ldc, accumulate);
    const nr = panelWidth(T);
    const packed_b: [*]Word(T, low) = @ptrCast(@alignCast(workspace));
    const packed_a = packed_b + block_n * blockK(T);
    var jc: usize = 0;
    while (jc < n) : (jc += block_n) {
        const nb = lesser(n - jc, block_n);
        var pc: usize = 0;
        while (pc < k) : (pc += blockK(T)) {
            const kb = lesser(k - pc, blockK(T));
            pack.panels(T, low, nr, nb, kb, b + pc * b_row + jc * b_col, b_col, b_row, packed_b, nr * depth(low, kb));
            blocks(T, low, m, nb, kb, a + pc * a_col, a_row, a_col, packed_b, nr * depth(low, kb), c + jc, ldc, accumulate or pc > 0, packed_a);
        }
    }
}

fn packedProduct(comptime T: type, comptime low: bool, m: usize, n: usize, k: usize, a: [*]const T, a_row: usize, a_col: usize, b: [*]const u8, b_k: usize, b_p: usize, b_j: usize, c: [*]T, ldc: usize, accumulate: bool, workspace: [*]u8) void {
    if (k == 0) return nothing(T, m, n, c, ldc, accumulate);
    const nr = panelWidth(T);
    const stride = nr * depth(low, b_k);
    const words: [*]const Word(T, low) = @ptrCast(@alignCast(b));
    const packed_a: [*]Word(T, low) = @ptrCast(@alignCast(workspace));
    var pc: usize = 0;
    while (pc < k) : (pc += blockK(T)) {
        const kb = lesser(k - pc, blockK(T));
        const from = words + b_j / nr * stride + depth(low, b_p + pc) * nr;
        blocks(T, low, m, n, kb, a + pc * a_col, a_row, a_col, from, stride, c, ldc, accumulate or pc > 0, packed_a);
    }
}

fn nothing(comptime T: type, m: usize, n: usize, c: [*]T, ldc: usize, accumulate: bool) void {
    if (!accumulate) for (0..m) |i| {
        for (0..n) |j| c[i * ldc + j] = 0;
    };
}

inline fn lesser(a: usize, b: usize) usize {
    return if (a < b) a else b;
}

/// One block of p for all of m and n.
fn blocks(comptime T: type, comptime low: bool, m: usize, n: usize, kb: usize, a: [*]const T, a_row: usize, a_col: usize, b: [*]const Word(T, low), b_stride: usize, c: [*]T, ldc: usize, add: bool, packed_a: [*]Word(T, low)) void {
    var done: usize = 0;
    if (!low and readsDirectly(T, a_row, a_col)) {
        done = m / tile_rows * tile_rows;
        if (a_col == 1)
            strips(T, low, .rows, done, n, kb, a, a_row, b, b_stride, c, ldc, add)
        else
            strips(T, low, .columns, done, n, kb, a, a_col, b, b_stride, c, ldc, add);
    }
    const words = depth(low, kb);
    while (done < m) : (done += block_m) {
        const mb = lesser(m - done, block_m);
        pack.panels(T, low, tile_rows, mb, kb, a + done * a_row, a_row, a_col, packed_a, pitch(T) * words);
        strips(T, low, .panels, mb, n, words, packed_a, 0, b, b_stride, c + done * ldc, ldc, add);
    }
}

/// A's numbers can be taken where they lie, unless the rows of a tile would all fall on the same few sets of the cache.
inline fn readsDirectly(comptime T: type, a_row: usize, a_col: usize) bool {
    return a_row == 1 or (a_col == 1 and a_row * @sizeOf(T) % 4096 != 0);
}

fn strips(comptime T: type, comptime low: bool, comptime layout: Layout, m: usize, n: usize, words: usize, a: [*]const Word(T, low), lda: usize, b: [*]const Word(T, low), b_stride: usize, c: [*]T, ldc: usize, add: bool) void {
    var block_at: usize = 0;
    while (block_at < m) : (block_at += block_m) {
        const end = lesser(m, block_at + block_m);
        var j: usize = 0;
        while (j < n) : (j += panelWidth(T)) {
            const bp = b + j / panelWidth(T) * b_stride;
            var i = block_at;
            while (i < end) : (i += tile_rows) {
                const ap = a + switch (layout) {
                    .panels => i / tile_rows * pitch(T) * words,
                    .rows => i * lda,
                    else => i,
                };
                const cp = c + i * ldc + j;
                if (add)
                    tileOrEdge(T, low, true, layout, words, ap, lda, bp, cp, ldc, end - i, n - j)
                else
                    tileOrEdge(T, low, false, layout, words, ap, lda, bp, cp, ldc, end - i, n - j);
            }
        }
    }
}

/// How a tile finds the words of A: i counts its rows, p the terms of the sum.
pub const Layout = enum {
    /// Packed: a[p·pitch + i].
    panels,
    /// a[i·lda + p]
    rows,
    /// a[p·lda + i]
    columns,

    inline fn step(comptime layout: Layout, comptime T: type, lda: usize) usize {
        return switch (layout) {
            .panels => pitch(T),
            .rows => 1,
            .columns => lda,
        };
    }

    inline fn row(comptime layout: Layout, i: usize, lda: usize) usize {
        return if (layout == .rows) i * lda else i;
    }
};

/// A tile of which `rows` × `cols` exist (or more than a tile); all of a and b can be read.
pub inline fn tileOrEdge(comptime T: type, comptime low: bool, comptime add: bool, comptime layout: Layout, words: usize, a: [*]const Word(T, low), lda: usize, b: [*]const Word(T, low), c: [*]T, ldc: usize, rows: usize, cols: usize) void {
    if (rows >= tile_rows and cols >= panelWidth(T))
        tile(T, low, add, layout, words, a, lda, b, c, ldc)
    else
        edge(T, low, layout, words, a, lda, b, c, ldc, lesser(rows, tile_rows), lesser(cols, panelWidth(T)), add);
}

/// The full register tile: A as `layout` says, a panel of B, a part of C. Its own function: few
/// arguments, and the accumulators stay in registers.
pub noinline fn tile(comptime T: type, comptime low: bool, comptime add: bool, comptime layout: Layout, words: usize, a: [*]const Word(T, low), lda: usize, b: [*]const Word(T, low), c: [*]T, ldc: usize) void {
    const V = lanes.Vector(T);
    const W = @Vector(lanes.width(T), Word(T, low));
    const vl = lanes.width(T);
    const mr = tile_rows;
    const nv = tile_vectors;
    var acc: [mr][nv]V = @splat(@splat(@as(V, @splat(0))));
    inline for (0..mr) |i| @prefetch(c + i * ldc, .{ .rw = .write });
    var ap = a;
    var bp = b;
    for (0..words) |_| {
        var bv: [nv]W = undefined;
        inline for (0..nv) |j| bv[j] = @as(*align(@sizeOf(W)) const W, @ptrCast(@alignCast(bp + j * vl))).*;
        @prefetch(bp + nv * vl * 8, .{});
        inline for (0..mr) |i| {
            const av: W = @splat(ap[layout.row(i, lda)]);
            inline for (0..nv) |j| acc[i][j] = if (low) pairProduct(acc[i][j], av, bv[j]) else lanes.mulAdd(T, av, bv[j], acc[i][j]);
        }
        ap += layout.step(T, lda);
        bp += nv * vl;
    }
    inline for (0..mr) |i| inline for (0..nv) |j| {
        const cp = c + i * ldc + j * vl;
        lanes.store(T, cp, if (add) lanes.load(T, cp) + acc[i][j] else acc[i][j]);
    };
}

/// acc + a.low·b.low + a.high·b.high, lane by lane.
inline fn pairProduct(acc: lanes.Vector(f32), a: @Vector(lanes.width(f32), u32), b: @Vector(lanes.width(f32), u32)) lanes.Vector(f32) {
    if (lanes.has_bf16_product) {
        var r = acc;
        asm ("vdpbf16ps %[b], %[a], %[r]"
            : [r] "+v" (r),
            : [a] "v" (a),
              [b] "v" (b),
        );
        return r;
    }
    const high: @TypeOf(a) = @splat(0xffff_0000);
    const first = lanes.mulAdd(f32, @bitCast(a << @splat(16)), @bitCast(b << @splat(16)), acc);
    return lanes.mulAdd(f32, @bitCast(a & high), @bitCast(b & high), first);
}

/// A tile that reaches over the border: the same arithmetic into a buffer, then the part that exists.
noinline fn edge(comptime T: type, comptime low: bool, comptime layout: Layout, words: usize, a: [*]const Word(T, low), lda: usize, b: [*]const Word(T, low), c: [*]T, ldc: usize, rows: usize, cols: usize, add: bool) void {
    const nr = panelWidth(T);
    var buffer: [tile_rows * nr]T align(64) = undefined;
    tile(T, low, false, layout, words, a, lda, b, &buffer, nr);
    for (0..rows) |i| {
        for (0..cols) |j| {
            const cp = &c[i * ldc + j];
            cp.* = if (add) cp.* + buffer[i * nr + j] else buffer[i * nr + j];
        }
    }
}
