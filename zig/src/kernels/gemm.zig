//! Matrix product on one thread: panels packed into a workspace, a register-blocked inner kernel, any strides.
//!
//! C[i,j] (+)= Σ_p A[i,p]·B[p,j], A[i,p] at a[i·a_row + p·a_col], B[p,j] at b[p·b_row + j·b_col], C row-major with `ldc`.
//! The three products of a linear layer differ only in strides. An element of C is made in blocks of `kc` along p:
//! inside a block one chain of multiply-adds from 0 in the order of p, blocks added to C in order. Nothing of that
//! depends on i, j, m or n, so a product cut into parts, in any way, has the bits of the whole.

const lanes = @import("lanes.zig");

/// Block of p. One value for all levels of a type.
inline fn blockK(comptime T: type) comptime_int {
    return comptime if (T == f32) 384 else 192;
}
pub const block_n = 2048;

/// Rows and vectors of the register tile: MR·NV accumulators, NV of B and one of A must fit the registers.
pub const tile_rows = switch (lanes.width(f32)) {
    16 => 14,
    8 => 6,
    else => if (lanes.has_fma) 8 else 4,
};
pub const tile_vectors = 2;
pub const block_m = 24 * tile_rows;

pub fn Kernels(comptime T: type) type {
    return struct {
        pub fn gemm_workspace() callconv(.c) usize {
            return (block_m + block_n) * blockK(T) * @sizeOf(T);
        }

        /// `workspace`: gemm_workspace() bytes, aligned to 64. accumulate: 0 stores, 1 adds.
        pub fn gemm(
            m: usize,
            n: usize,
            k: usize,
            a: [*]const T,
            a_row: usize,
            a_col: usize,
            b: [*]const T,
            b_row: usize,
            b_col: usize,
            c: [*]T,
            ldc: usize,
            accumulate: c_int,
            workspace: [*]u8,
        ) callconv(.c) void {
            const kc = blockK(T);
            const nr = tile_vectors * lanes.width(T);
            const packed_a: [*]T = @ptrCast(@alignCast(workspace));
            const packed_b: [*]T = packed_a + block_m * kc;
            if (k == 0) {
                if (accumulate == 0) for (0..m) |i| {
                    for (0..n) |j| c[i * ldc + j] = 0;
                };
                return;
            }
            var jc: usize = 0;
            while (jc < n) : (jc += block_n) {
                const nb = lesser(n - jc, block_n);
                var pc: usize = 0;
                while (pc < k) : (pc += kc) {
                    const kb = lesser(k - pc, kc);
                    const add = accumulate != 0 or pc > 0;
                    packPanels(T, nr, nb, kb, b + pc * b_row + jc * b_col, b_col, b_row, packed_b);
                    var ic: usize = 0;
                    while (ic < m) : (ic += block_m) {
                        const mb = lesser(m - ic, block_m);
                        packPanels(T, tile_rows, mb, kb, a + ic * a_row + pc * a_col, a_row, a_col, packed_a);
                        block(T, mb, nb, kb, packed_a, packed_b, c + ic * ldc + jc, ldc, add);
                    }
                }
            }
        }
    };
}

inline fn lesser(a: usize, b: usize) usize {
    return if (a < b) a else b;
}

fn block(comptime T: type, mb: usize, nb: usize, kb: usize, a: [*]const T, b: [*]const T, c: [*]T, ldc: usize, add: bool) void {
    const mr = tile_rows;
    const nr = tile_vectors * lanes.width(T);
    var j: usize = 0;
    while (j < nb) : (j += nr) {
        var i: usize = 0;
        while (i < mb) : (i += mr) {
            const ap = a + i * kb;
            const bp = b + j * kb;
            const cp = c + i * ldc + j;
            if (i + mr <= mb and j + nr <= nb) {
                if (add) tile(T, true, kb, ap, bp, cp, ldc) else tile(T, false, kb, ap, bp, cp, ldc);
            } else {
                edge(T, kb, ap, bp, cp, ldc, lesser(mb - i, mr), lesser(nb - j, nr), add);
            }
        }
    }
}

/// The full register tile. Its own function: few arguments, and the accumulators stay in registers.
noinline fn tile(comptime T: type, comptime add: bool, k: usize, a: [*]const T, b: [*]const T, c: [*]T, ldc: usize) void {
    const V = lanes.Vector(T);
    const vl = lanes.width(T);
    const mr = tile_rows;
    const nv = tile_vectors;
    var acc: [mr][nv]V = @splat(@splat(@as(V, @splat(0))));
    inline for (0..mr) |i| @prefetch(c + i * ldc, .{ .rw = .write });
    var ap = a;
    var bp = b;
    for (0..k) |_| {
        var bv: [nv]V = undefined;
        inline for (0..nv) |j| bv[j] = @as(*align(@sizeOf(V)) const V, @ptrCast(@alignCast(bp + j * vl))).*;
        @prefetch(bp + nv * vl * 8, .{});
        inline for (0..mr) |i| {
            const av: V = @splat(ap[i]);
            inline for (0..nv) |j| acc[i][j] = lanes.mulAdd(T, av, bv[j], acc[i][j]);
        }
        ap += mr;
        bp += nv * vl;
    }
    inline for (0..mr) |i| inline for (0..nv) |j| {
        const cp = c + i * ldc + j * vl;
        lanes.store(T, cp, if (add) lanes.load(T, cp) + acc[i][j] else acc[i][j]);
    };
}

/// A tile that reaches over the border: the same arithmetic into a buffer, then the part that exists.
noinline fn edge(comptime T: type, k: usize, a: [*]const T, b: [*]const T, c: [*]T, ldc: usize, rows: usize, cols: usize, add: bool) void {
    const nr = tile_vectors * lanes.width(T);
    var buffer: [tile_rows * nr]T align(64) = undefined;
    tile(T, false, k, a, b, &buffer, nr);
    copyPart(T, &buffer, nr, c, ldc, rows, cols, add);
}

/// The part of a tile that exists, stored or added.
pub fn copyPart(comptime T: type, buffer: [*]const T, nr: usize, c: [*]T, ldc: usize, rows: usize, cols: usize, add: bool) void {
    for (0..rows) |i| {
        for (0..cols) |j| {
            const cp = c + i * ldc + j;
            cp[0] = if (add) cp[0] + buffer[i * nr + j] else buffer[i * nr + j];
        }
    }
}

/// Packs `count` rows of x (row i, element p at x[i·row + p·col]) into panels of `panel` rows, [p][panel] each; missing
/// rows become 0.
fn packPanels(comptime T: type, comptime panel: usize, count: usize, k: usize, x: [*]const T, row: usize, col: usize, out: [*]T) void {
    var o = out;
    var i: usize = 0;
    const group = 4;
    if (row == 1) while (i + group * panel <= count) : (i += group * panel) {
        packAlongGroup(T, panel, group, k, x + i, col, o);
        o += group * panel * k;
    };
    while (i < count) : (i += panel) {
        const have = lesser(count - i, panel);
        const from = x + i * row;
        if (have == panel) {
            if (row == 1) packAlong(T, panel, k, from, col, o) else if (col == 1) packAcross(T, panel, k, from, row, o) else packAny(T, panel, panel, k, from, row, col, o);
        } else packAny(T, panel, have, k, from, row, col, o);
        o += panel * k;
    }
}

/// Several panels at once: a row's neighbours are used while its cache lines and its page are at hand.
noinline fn packAlongGroup(comptime T: type, comptime panel: usize, comptime group: usize, k: usize, x: [*]const T, col: usize, out: [*]T) void {
    for (0..k) |p| inline for (0..group) |g| {
        out[(g * k + p) * panel ..][0..panel].* = @as(@Vector(panel, T), x[p * col + g * panel ..][0..panel].*);
    };
}

/// Elements of one p are neighbours: copy them.
noinline fn packAlong(comptime T: type, comptime panel: usize, k: usize, x: [*]const T, col: usize, out: [*]T) void {
    var o = out;
    var from = x;
    for (0..k) |_| {
        o[0..panel].* = @as(@Vector(panel, T), from[0..panel].*);
        o += panel;
        from += col;
    }
}

/// Elements of one row are neighbours: transpose squares of 4 in registers.
noinline fn packAcross(comptime T: type, comptime panel: usize, k: usize, x: [*]const T, row: usize, out: [*]T) void {
    var p: usize = 0;
    while (p + 4 <= k) : (p += 4) {
        const o = out + p * panel;
        comptime var i = 0;
        inline while (i + 4 <= panel) : (i += 4) {
            var rows: [4]@Vector(4, T) = undefined;
            inline for (0..4) |r| rows[r] = x[(i + r) * row + p ..][0..4].*;
            const turned = transpose4(T, rows);
            inline for (0..4) |r| o[r * panel + i ..][0..4].* = turned[r];
        }
        inline while (i < panel) : (i += 1) {
            inline for (0..4) |q| o[q * panel + i] = x[i * row + p + q];
        }
    }
    while (p < k) : (p += 1) {
        inline for (0..panel) |i| out[p * panel + i] = x[i * row + p];
    }
}

pub inline fn transpose4(comptime T: type, r: [4]@Vector(4, T)) [4]@Vector(4, T) {
    const low = @Vector(4, i32){ 0, -1, 1, -2 };
    const high = @Vector(4, i32){ 2, -3, 3, -4 };
    const t0 = @shuffle(T, r[0], r[2], low); // r0[0] r2[0] r0[1] r2[1]
    const t1 = @shuffle(T, r[1], r[3], low);
    const t2 = @shuffle(T, r[0], r[2], high);
    const t3 = @shuffle(T, r[1], r[3], high);
    return .{ @shuffle(T, t0, t1, low), @shuffle(T, t0, t1, high), @shuffle(T, t2, t3, low), @shuffle(T, t2, t3, high) };
}

noinline fn packAny(comptime T: type, comptime panel: usize, have: usize, k: usize, x: [*]const T, row: usize, col: usize, out: [*]T) void {
    for (0..k) |p| {
        for (0..have) |i| out[p * panel + i] = x[i * row + p * col];
        for (have..panel) |i| out[p * panel + i] = 0;
    }
}
