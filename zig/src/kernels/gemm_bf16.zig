//! Matrix product of f32 operands rounded to bf16, summed in f32: twice the speed where the CPU has `vdpbf16ps`.
//!
//! Same arguments, blocks and promise of equal bits as `gemm.zig`; two neighbours along p are packed into one word and
//! meet their partners in one instruction. Levels without the instruction compute the same sums with two multiply-adds,
//! so the mode means the same everywhere, up to the order of rounding. Rounding to bf16 is to nearest even.

const lanes = @import("lanes.zig");
const gemm = @import("gemm.zig");

const V = lanes.Vector(f32);
const vl = lanes.width(f32);
const Words = @Vector(vl, u32);

/// Pairs in one block along p: the workspace is that of the f32 product.
const block_pairs = 384;
const block_n = gemm.block_n;
const block_m = gemm.block_m;
const tile_rows = gemm.tile_rows;
const tile_vectors = gemm.tile_vectors;
const nr = tile_vectors * vl;

pub const Kernels = struct {
    /// See `gemm`. `workspace`: gemm_workspace() bytes of f32, aligned to 64.
    pub fn gemm_bf16(
        m: usize,
        n: usize,
        k: usize,
        a: [*]const f32,
        a_row: usize,
        a_col: usize,
        b: [*]const f32,
        b_row: usize,
        b_col: usize,
        c: [*]f32,
        ldc: usize,
        accumulate: c_int,
        workspace: [*]u8,
    ) callconv(.c) void {
        const packed_a: [*]u32 = @ptrCast(@alignCast(workspace));
        const packed_b: [*]u32 = packed_a + block_m * block_pairs;
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
            while (pc < k) : (pc += 2 * block_pairs) {
                const kb = lesser(k - pc, 2 * block_pairs);
                const pairs = (kb + 1) / 2;
                const add = accumulate != 0 or pc > 0;
                packPanels(nr, nb, kb, b + pc * b_row + jc * b_col, b_col, b_row, packed_b);
                var ic: usize = 0;
                while (ic < m) : (ic += block_m) {
                    const mb = lesser(m - ic, block_m);
                    packPanels(tile_rows, mb, kb, a + ic * a_row + pc * a_col, a_row, a_col, packed_a);
                    block(mb, nb, pairs, packed_a, packed_b, c + ic * ldc + jc, ldc, add);
                }
            }
        }
    }
};

inline fn lesser(a: usize, b: usize) usize {
    return if (a < b) a else b;
}

fn block(mb: usize, nb: usize, pairs: usize, a: [*]const u32, b: [*]const u32, c: [*]f32, ldc: usize, add: bool) void {
    var j: usize = 0;
    while (j < nb) : (j += nr) {
        var i: usize = 0;
        while (i < mb) : (i += tile_rows) {
            const ap = a + i * pairs;
            const bp = b + j * pairs;
            const cp = c + i * ldc + j;
            if (i + tile_rows <= mb and j + nr <= nb) {
                if (add) tile(true, pairs, ap, bp, cp, ldc) else tile(false, pairs, ap, bp, cp, ldc);
                continue;
            }
            var buffer: [tile_rows * nr]f32 align(64) = undefined;
            tile(false, pairs, ap, bp, &buffer, nr);
            gemm.copyPart(f32, &buffer, nr, cp, ldc, lesser(mb - i, tile_rows), lesser(nb - j, nr), add);
        }
    }
}

noinline fn tile(comptime add: bool, pairs: usize, a: [*]const u32, b: [*]const u32, c: [*]f32, ldc: usize) void {
    var acc: [tile_rows][tile_vectors]V = @splat(@splat(@as(V, @splat(0))));
    inline for (0..tile_rows) |i| @prefetch(c + i * ldc, .{ .rw = .write });
    var ap = a;
    var bp = b;
    for (0..pairs) |_| {
        var bv: [tile_vectors]Words = undefined;
        inline for (0..tile_vectors) |j| bv[j] = @as(*align(@sizeOf(Words)) const Words, @ptrCast(@alignCast(bp + j * vl))).*;
        @prefetch(bp + nr * 8, .{});
        inline for (0..tile_rows) |i| {
            const av: Words = @splat(ap[i]);
            inline for (0..tile_vectors) |j| acc[i][j] = pairProduct(acc[i][j], av, bv[j]);
        }
        ap += tile_rows;
        bp += nr;
    }
    inline for (0..tile_rows) |i| inline for (0..tile_vectors) |j| {
        const cp = c + i * ldc + j * vl;
        lanes.store(f32, cp, if (add) lanes.load(f32, cp) + acc[i][j] else acc[i][j]);
    };
}

/// acc + a.low·b.low + a.high·b.high, lane by lane.
inline fn pairProduct(acc: V, a: Words, b: Words) V {
    if (lanes.has_bf16_product) {
        var r = acc;
        asm ("vdpbf16ps %[b], %[a], %[r]"
            : [r] "+v" (r),
            : [a] "v" (a),
              [b] "v" (b),
        );
        return r;
    }
    const high: Words = @splat(0xffff_0000);
    const low = lanes.mulAdd(f32, @bitCast(a << @splat(16)), @bitCast(b << @splat(16)), acc);
    return lanes.mulAdd(f32, @bitCast(a & high), @bitCast(b & high), low);
}

/// As in gemm.zig, with words of two neighbours along p; an odd last one is paired with 0.
fn packPanels(comptime panel: usize, count: usize, k: usize, x: [*]const f32, row: usize, col: usize, out: [*]u32) void {
    var o = out;
    var i: usize = 0;
    const group = 4;
    if (row == 1) while (i + group * panel <= count and k % 2 == 0) : (i += group * panel) {
        packAlongGroup(panel, group, k, x + i, col, o);
        o += group * panel * (k / 2);
    };
    while (i < count) : (i += panel) {
        const have = lesser(count - i, panel);
        const from = x + i * row;
        var p: usize = 0;
        if (have == panel) {
            if (row == 1) p = packAlong(panel, k, from, col, o) else if (col == 1) p = packAcross(panel, k, from, row, o);
        }
        while (p < k) : (p += 2) {
            for (0..panel) |r| {
                const first: f32 = if (r < have) from[r * row + p * col] else 0;
                const second: f32 = if (r < have and p + 1 < k) from[r * row + (p + 1) * col] else 0;
                const words = @Vector(2, u32){ @bitCast(first), @bitCast(second) };
                const rounded = round(2, words);
                o[p / 2 * panel + r] = rounded[0] >> 16 | (rounded[1] & 0xffff_0000);
            }
        }
        o += panel * ((k + 1) / 2);
    }
}

/// Several panels at once: a row's neighbours are used while its cache lines and its page are at hand.
noinline fn packAlongGroup(comptime panel: usize, comptime group: usize, k: usize, x: [*]const f32, col: usize, out: [*]u32) void {
    const P = @Vector(panel, u32);
    const high: P = @splat(0xffff_0000);
    const step = panel * (k / 2);
    var p: usize = 0;
    while (p + 2 <= k) : (p += 2) {
        inline for (0..group) |g| {
            const first: @Vector(panel, f32) = x[p * col + g * panel ..][0..panel].*;
            const second: @Vector(panel, f32) = x[(p + 1) * col + g * panel ..][0..panel].*;
            const words = if (lanes.has_bf16_product and vl == 16)
                pairUp(panel, first, second)
            else
                round(panel, @bitCast(first)) >> @splat(16) | (round(panel, @bitCast(second)) & high);
            out[g * step + p / 2 * panel ..][0..panel].* = words;
        }
    }
}

/// Packs the whole pairs; gives the number of p done.
noinline fn packAlong(comptime panel: usize, k: usize, x: [*]const f32, col: usize, out: [*]u32) usize {
    const P = @Vector(panel, u32);
    const high: P = @splat(0xffff_0000);
    var p: usize = 0;
    while (p + 2 <= k) : (p += 2) {
        const first: @Vector(panel, f32) = x[p * col ..][0..panel].*;
        const second: @Vector(panel, f32) = x[(p + 1) * col ..][0..panel].*;
        const words = if (lanes.has_bf16_product and vl == 16)
            pairUp(panel, first, second)
        else
            round(panel, @bitCast(first)) >> @splat(16) | (round(panel, @bitCast(second)) & high);
        out[p / 2 * panel ..][0..panel].* = words;
    }
    return p;
}

noinline fn packAcross(comptime panel: usize, k: usize, x: [*]const f32, row: usize, out: [*]u32) usize {
    var p: usize = 0;
    while (p + 8 <= k) : (p += 8) {
        const o = out + p / 2 * panel;
        comptime var i = 0;
        inline while (i + 4 <= panel) : (i += 4) {
            var quads: [4]@Vector(4, u32) = undefined;
            inline for (0..4) |r| quads[r] = fourPairs(x + (i + r) * row + p);
            const turned = gemm.transpose4(u32, quads);
            inline for (0..4) |r| out4(o + r * panel + i, turned[r]);
        }
        inline while (i < panel) : (i += 1) {
            const words: [4]u32 = fourPairs(x + i * row + p);
            inline for (0..4) |r| o[r * panel + i] = words[r];
        }
    }
    return p;
}

/// Word i holds first[i] below and second[i] above, rounded by the CPU's own instruction (which flushes denormals).
inline fn pairUp(comptime panel: usize, first: @Vector(panel, f32), second: @Vector(panel, f32)) @Vector(panel, u32) {
    const F = @Vector(16, f32);
    const H = @Vector(32, u16);
    const weave = comptime blk: {
        var order: [32]i32 = undefined;
        for (0..16) |i| {
            order[2 * i] = i;
            order[2 * i + 1] = 16 + i;
        }
        break :blk @as(@Vector(32, i32), order);
    };
    var result: [panel]u32 = undefined;
    comptime var i = 0;
    inline while (i < panel) : (i += 16) {
        const have = if (panel - i < 16) panel - i else 16;
        const pick = comptime blk: {
            var order: [16]i32 = undefined;
            for (0..16) |j| order[j] = i + (if (j < have) j else have - 1);
            break :blk @as(@Vector(16, i32), order);
        };
        const low: F = @shuffle(f32, first, undefined, pick);
        const above: F = @shuffle(f32, second, undefined, pick);
        const halves = asm ("vcvtne2ps2bf16 %[low], %[high], %[r]"
            : [r] "=v" (-> H),
            : [low] "v" (low),
              [high] "v" (above),
        );
        const words: [16]u32 = @bitCast(@shuffle(u16, halves, undefined, weave));
        inline for (0..have) |j| result[i + j] = words[j];
    }
    return result;
}

inline fn out4(o: [*]u32, words: @Vector(4, u32)) void {
    o[0..4].* = words;
}

inline fn fourPairs(x: [*]const f32) @Vector(4, u32) {
    const Wide = @Vector(4, u64);
    const eight: @Vector(8, f32) = x[0..8].*;
    if (lanes.has_bf16_product) return asm ("vcvtneps2bf16 %[x], %[r]"
        : [r] "=v" (-> @Vector(4, u32)),
        : [x] "v" (eight),
    );
    const wide: Wide = @bitCast(round(8, @bitCast(eight)));
    const low = wide >> @splat(16) & @as(Wide, @splat(0xffff));
    const high = wide >> @splat(32) & @as(Wide, @splat(0xffff_0000));
    return @truncate(low | high);
}

/// f32 bits whose upper half is the bf16 nearest (even on ties); NaN stays NaN. The lower half is not cleared.
inline fn round(comptime n: usize, bits: @Vector(n, u32)) @Vector(n, u32) {
    const U = @Vector(n, u32);
    const odd = bits >> @splat(16) & @as(U, @splat(1));
    const rounded = bits +% @as(U, @splat(0x7fff)) +% odd;
    const nan = bits & @as(U, @splat(0x7fff_ffff)) > @as(U, @splat(0x7f80_0000));
    return @select(u32, nan, bits | @as(U, @splat(0x40_0000)), rounded);
}
