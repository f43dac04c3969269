//! f32 rows to the block types files store, byte for byte as ggml writes them: `quantise_<type>(blocks, x, out)`.
//!
//! x: whole blocks; out: their bytes. `weigh_<type>(blocks, x, importance, columns, out)`: rows of `columns` numbers, the importance
//! of each column, as an importance matrix has it. The result is 0, or 1 where a scale has no finite f16. Numbers are finite.
//! Nothing is contracted or reordered: the bytes are the same on every level. Does not know: rows of other lengths, threads.

const lanes = @import("lanes.zig");
const fit = @import("quantise_fit.zig");

const vl = fit.vl;
const F = fit.F;
const I = @Vector(vl, i32);
const splat = fit.splat;

/// Blocks of 256 whose parts are searched together.
const batch = 16;
/// Blocks of 32 likewise.
const small_batch = 8 * batch;

const full_minimum: fit.Search = .{ .first = -0.9, .step = 0.05, .count = 36 };

pub const Kernels = struct {
    pub fn quantise_q8_0(blocks: usize, x: [*]const f32, out: [*]u8) callconv(.c) c_int {
        var bad = false;
        for (0..blocks) |b| {
            const values = x + b * 32;
            const block = out + b * 34;
            var sizes = splat(0);
            inline for (0..32 / vl) |p| sizes = @max(sizes, @abs(lanes.load(f32, values + p * vl)));
            const scale = @reduce(.Max, sizes) / 127.0;
            bad = storeHalf(block, scale) or bad;
            const inverse = splat(invert(scale));
            inline for (0..32 / vl) |p| {
                const v = lanes.load(f32, values + p * vl) * inverse;
                // Half away from zero: the largest number below a half, with the sign, carries over exactly where it should.
                const sign = @as(I, @bitCast(v)) & @as(I, @splat(@as(i32, -0x8000_0000)));
                const nudge: F = @bitCast(sign | @as(I, @bitCast(splat(0.49999997))));
                const q: I = @trunc(v + nudge);
                block[2 + p * vl ..][0..vl].* = @bitCast(@as(@Vector(vl, i8), @truncate(q)));
            }
        }
        return @intFromBool(bad);
    }

    pub fn quantise_q4_0(blocks: usize, x: [*]const f32, out: [*]u8) callconv(.c) c_int {
        return plain(4, blocks, x, out);
    }

    pub fn quantise_q5_0(blocks: usize, x: [*]const f32, out: [*]u8) callconv(.c) c_int {
        return plain(5, blocks, x, out);
    }

    pub fn quantise_q4_1(blocks: usize, x: [*]const f32, out: [*]u8) callconv(.c) c_int {
        return plainWithMinimum(4, blocks, x, out);
    }

    pub fn quantise_q5_1(blocks: usize, x: [*]const f32, out: [*]u8) callconv(.c) c_int {
        return plainWithMinimum(5, blocks, x, out);
    }

    pub fn quantise_q4_k(blocks: usize, x: [*]const f32, out: [*]u8) callconv(.c) c_int {
        return large(4, false, .{ .first = -1, .step = 0.1, .count = 20 }, blocks, x, undefined, 0, out);
    }

    pub fn quantise_q5_k(blocks: usize, x: [*]const f32, out: [*]u8) callconv(.c) c_int {
        return large(5, false, .{ .first = -0.5, .step = 0.1, .count = 15 }, blocks, x, undefined, 0, out);
    }

    pub fn quantise_q6_k(blocks: usize, x: [*]const f32, out: [*]u8) callconv(.c) c_int {
        return sixBits(blocks, x, null, 0, out);
    }

    /// The exponent of each block, its first byte, is there already.
    pub fn quantise_mxfp4(blocks: usize, x: [*]const f32, out: [*]u8) callconv(.c) c_int {
        const doubled = [16]f32{ 0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12 };
        for (0..blocks) |b| {
            const block = out + b * 17;
            const e: u32 = block[0];
            const d: f32 = @bitCast(if (e < 2) @as(u32, 0x0020_0000) << @intCast(e) else (e - 1) << 23);
            var codes: [32]u8 = undefined;
            inline for (0..32 / vl) |p| {
                const v = lanes.load(f32, x + b * 32 + p * vl);
                var best: I = @splat(0);
                var smallest = @abs(splat(doubled[0] * d) - v);
                inline for (1..16) |c| {
                    const distance = @abs(splat(doubled[c] * d) - v);
                    const closer = distance < smallest;
                    smallest = @select(f32, closer, distance, smallest);
                    best = @select(i32, closer, @as(I, @splat(c)), best);
                }
                narrow(codes[p * vl ..], best);
            }
            packHalves(&codes, block + 1);
        }
        return 0;
    }

    pub fn weigh_q4_0(blocks: usize, x: [*]const f32, importance: [*]const f32, columns: usize, out: [*]u8) callconv(.c) c_int {
        return weighed(4, blocks, x, importance, columns, out);
    }

    pub fn weigh_q5_0(blocks: usize, x: [*]const f32, importance: [*]const f32, columns: usize, out: [*]u8) callconv(.c) c_int {
        return weighed(5, blocks, x, importance, columns, out);
    }

    pub fn weigh_q4_1(blocks: usize, x: [*]const f32, importance: [*]const f32, columns: usize, out: [*]u8) callconv(.c) c_int {
        return weighedWithMinimum(4, blocks, x, importance, columns, out);
    }

    pub fn weigh_q5_1(blocks: usize, x: [*]const f32, importance: [*]const f32, columns: usize, out: [*]u8) callconv(.c) c_int {
        return weighedWithMinimum(5, blocks, x, importance, columns, out);
    }

    pub fn weigh_q4_k(blocks: usize, x: [*]const f32, importance: [*]const f32, columns: usize, out: [*]u8) callconv(.c) c_int {
        return large(4, true, full_minimum, blocks, x, importance, columns, out);
    }

    pub fn weigh_q5_k(blocks: usize, x: [*]const f32, importance: [*]const f32, columns: usize, out: [*]u8) callconv(.c) c_int {
        return large(5, true, full_minimum, blocks, x, importance, columns, out);
    }

    pub fn weigh_q6_k(blocks: usize, x: [*]const f32, importance: [*]const f32, columns: usize, out: [*]u8) callconv(.c) c_int {
        return sixBits(blocks, x, importance, columns, out);
    }

    /// The largest magnitude of n numbers, as bits; those of NaN are above infinity's.
    pub fn largest_bits(n: usize, x: [*]const f32) callconv(.c) u32 {
        const U = @Vector(vl, u32);
        const mask: U = @splat(0x7FFF_FFFF);
        var largest: U = @splat(0);
        var i: usize = 0;
        while (i + vl <= n) : (i += vl) largest = @max(largest, @as(U, @bitCast(lanes.load(f32, x + i))) & mask);
        var result = @reduce(.Max, largest);
        while (i < n) : (i += 1) result = @max(result, @as(u32, @bitCast(x[i])) & 0x7FFF_FFFF);
        return result;
    }
};

/// q4_0 and q5_0: the number of largest magnitude, the first of equals, becomes the lowest code.
fn plain(comptime bits: u3, blocks: usize, x: [*]const f32, out: [*]u8) c_int {
    const size = if (bits == 4) 18 else 22;
    const middle: f32 = 1 << (bits - 1);
    var bad = false;
    for (0..blocks) |b| {
        const values = x + b * 32;
        var sizes = splat(0);
        inline for (0..32 / vl) |p| sizes = @max(sizes, @abs(lanes.load(f32, values + p * vl)));
        const largest = @reduce(.Max, sizes);
        var where: u32 = 0;
        inline for (0..32 / vl) |p| {
            const is = @abs(lanes.load(f32, values + p * vl)) == splat(largest);
            where |= @as(u32, @as(@Int(.unsigned, vl), @bitCast(is))) << (p * vl);
        }
        const signed = if (largest == 0) 0 else values[@ctz(where)];
        const scale = signed / -middle;
        bad = storeHalf(out + b * size, scale) or bad;
        const inverse = splat(invert(scale));
        var codes: [32]u8 = undefined;
        inline for (0..32 / vl) |p| {
            const q: I = @trunc(lanes.load(f32, values + p * vl) * inverse + splat(middle + 0.5));
            narrow(codes[p * vl ..], @max(@min(q, @as(I, @splat((1 << bits) - 1))), @as(I, @splat(0))));
        }
        pack(bits, &codes, out + b * size + 2);
    }
    return @intFromBool(bad);
}

/// q4_1 and q5_1.
fn plainWithMinimum(comptime bits: u3, blocks: usize, x: [*]const f32, out: [*]u8) c_int {
    const size = if (bits == 4) 20 else 24;
    const steps: f32 = (1 << bits) - 1;
    var bad = false;
    for (0..blocks) |b| {
        const values = x + b * 32;
        var lows = lanes.load(f32, values);
        var highs = lows;
        inline for (1..32 / vl) |p| {
            const v = lanes.load(f32, values + p * vl);
            lows = @min(lows, v);
            highs = @max(highs, v);
        }
        const low = firstZero(values, @reduce(.Min, lows));
        const scale = (@reduce(.Max, highs) - low) / steps;
        bad = storeHalf(out + b * size, scale) or bad;
        bad = storeHalf(out + b * size + 2, low) or bad;
        const inverse = splat(invert(scale));
        var codes: [32]u8 = undefined;
        inline for (0..32 / vl) |p| {
            const q: I = @trunc((lanes.load(f32, values + p * vl) - splat(low)) * inverse + splat(0.5));
            narrow(codes[p * vl ..], @max(@min(q, @as(I, @splat((1 << bits) - 1))), @as(I, @splat(0))));
        }
        pack(bits, &codes, out + b * size + 4);
    }
    return @intFromBool(bad);
}

/// A minimum of zero has the sign of the first zero: 0 and -0 are equal, and stored as they come.
inline fn firstZero(values: [*]const f32, low: f32) f32 {
    if (low != 0) return low;
    for (0..32) |i| if (values[i] == 0) return values[i];
    return low;
}

/// q4_0 and q5_0 by importance: the scale of least error, and its codes.
fn weighed(comptime bits: u3, blocks: usize, x: [*]const f32, importance: [*]const f32, columns: usize, out: [*]u8) c_int {
    const size = if (bits == 4) 18 else 22;
    const half = 1 << (bits - 1);
    var table: Table(small_batch) = undefined;
    var spreads: [small_batch]f32 = undefined;
    var spread: f32 = 0;
    var bad = false;
    var done: usize = 0;
    while (done < blocks) : (done += small_batch) {
        const count: usize = @min(small_batch, blocks - done);
        const values = x + done * 32;
        for (spreads[0..count], done..) |*s, b| {
            if (b * 32 % columns == 0) spread = squaresOf(x + b * 32, columns) / @as(f32, @floatFromInt(columns));
            s.* = spread;
        }
        const weights: fit.Weights = .{ .of_column = .{ .importance = importance, .columns = columns, .at = done * 32 % columns, .spread = &spreads } };
        fit.symmetric(32, half, count, values, weights, table.found());
        for (0..count) |b| {
            const block = out + (done + b) * size;
            bad = storeHalf(block, table.scale[b]) or bad;
            var codes: [32]u8 = @splat(0);
            if (table.inverse[b] != 0) inline for (0..32 / vl) |p| {
                const v = lanes.load(f32, values + b * 32 + p * vl);
                narrow(codes[p * vl ..], fit.roundedInt(splat(table.inverse[b]) * v, -half, half - 1) + @as(I, @splat(half)));
            };
            pack(bits, &codes, block + 2);
        }
    }
    return @intFromBool(bad);
}

fn weighedWithMinimum(comptime bits: u3, blocks: usize, x: [*]const f32, importance: [*]const f32, columns: usize, out: [*]u8) c_int {
    const size = if (bits == 4) 20 else 24;
    const highest = (1 << bits) - 1;
    var table: Table(small_batch) = undefined;
    var spreads: [small_batch]f32 = undefined;
    var spread: f32 = 0;
    var bad = false;
    var done: usize = 0;
    while (done < blocks) : (done += small_batch) {
        const count: usize = @min(small_batch, blocks - done);
        const values = x + done * 32;
        for (spreads[0..count], done..) |*s, b| {
            if (b * 32 % columns == 0) spread = squaresOf(x + b * 32, columns) / @as(f32, @floatFromInt(columns));
            s.* = spread;
        }
        const weights: fit.Weights = .{ .of_column = .{ .importance = importance, .columns = columns, .at = done * 32 % columns, .spread = &spreads } };
        fit.withMinimum(highest, full_minimum, count, values, weights, table.found());
        for (0..count) |b| {
            const block = out + (done + b) * size;
            bad = storeHalf(block, table.scale[b]) or bad;
            bad = storeHalf(block + 2, -table.minimum[b]) or bad;
            var codes: [32]u8 = undefined;
            searched(highest, values + b * 32, table.inverse[b], table.origin[b], &codes);
            pack(bits, &codes, block + 4);
        }
    }
    return @intFromBool(bad);
}

/// In index order, as the definition says.
fn squaresOf(x: [*]const f32, count: usize) f32 {
    var sum: f32 = 0;
    for (0..count) |i| sum += x[i] * x[i];
    return sum;
}

/// q4_K and q5_K.
fn large(comptime bits: u3, comptime by_importance: bool, comptime search: fit.Search, blocks: usize, x: [*]const f32, importance: [*]const f32, columns: usize, out: [*]u8) c_int {
    const size = if (bits == 4) 144 else 176;
    const highest = (1 << bits) - 1;
    var table: Table(8 * batch) = undefined;
    var spreads: [8 * batch]f32 = undefined;
    var bad = false;
    var done: usize = 0;
    while (done < blocks) : (done += batch) {
        const count: usize = @min(batch, blocks - done);
        const values = x + done * 256;
        if (by_importance) for (0..count) |b| {
            @memset(spreads[8 * b ..][0..8], 2 * squaresOf(values + b * 256, 256) / 256);
        };
        const weights: fit.Weights = if (by_importance) .{ .of_column = .{ .importance = importance, .columns = columns, .at = done * 256 % columns, .spread = &spreads } } else .of_size;
        fit.withMinimum(highest, search, 8 * count, values, weights, table.found());
        for (0..count) |b| {
            const part = table.part(8 * b);
            var levels: Levels = undefined;
            if (by_importance) levels.byWeight(part) else levels.byLargest(part);
            bad = storeLarge(bits, values + b * 256, part, &levels, out + (done + b) * size) or bad;
        }
    }
    return @intFromBool(bad);
}

/// The scales of a block's eight parts, and the scale of those.
const Levels = struct {
    scales: [8]u8,
    minima: [8]u8,
    scale: f32,
    minimum: f32,

    fn byLargest(self: *Levels, part: Part) void {
        var scale: f32 = 0;
        var minimum: f32 = 0;
        for (part.scale, part.minimum) |s, m| {
            if (s > scale) scale = s;
            if (m > minimum) minimum = m; // Not -0.
        }
        const to_scale = if (scale > 0) 63 / scale else 0;
        const to_minimum = if (minimum > 0) 63 / minimum else 0;
        for (&self.scales, &self.minima, part.scale, part.minimum) |*ls, *lm, s, m| {
            ls.* = byte(fit.nearest(to_scale * s));
            lm.* = byte(fit.nearest(to_minimum * m));
        }
        self.scale = scale / 63;
        self.minimum = minimum / 63;
    }

    inline fn byte(x: i32) u8 {
        return @min(63, @as(u8, @truncate(@as(u32, @bitCast(x)))));
    }

    fn byWeight(self: *Levels, part: Part) void {
        self.scale = fitPositive(part.scale, part.sum, &self.scales);
        self.minimum = fitPositive(part.minimum, part.sum, &self.minima);
    }
};

/// x ≈ scale·code for eight numbers from 0 on and codes in 0…63, by weighted least squares, then code by code.
fn fitPositive(x: *const [8]f32, weights: *const [8]f32, codes: *[8]u8) f32 {
    const top = 63;
    var largest: f32 = 0;
    for (x) |v| largest = @max(largest, v);
    if (largest < fit.smallest) {
        codes.* = @splat(0);
        return 0;
    }
    var inverse: f32 = top / largest;
    var best = positiveError(x, weights, inverse, 255);
    for ([_]i32{ -4, -3, -2, -1, 1, 2, 3, 4 }) |s| {
        const trial = (@as(f32, 0.1) * @as(f32, @floatFromInt(s)) + top) / largest;
        const err = positiveError(x, weights, trial, top);
        if (err < best) {
            best = err;
            inverse = trial;
        }
    }
    var sum_xl: f32 = 0;
    var sum_l2: f32 = 0;
    for (codes, x, weights) |*code, v, w| {
        code.* = @truncate(@as(u32, @bitCast(@min(top, fit.nearest(inverse * v)))));
        const l: f32 = @floatFromInt(code.*);
        sum_xl += w * v * l;
        sum_l2 += w * l * l;
    }
    for (0..5) |_| {
        var changed = false;
        for (codes, x, weights) |*code, v, w| {
            const l: f32 = @floatFromInt(code.*);
            var xl = sum_xl - w * v * l;
            var l2 = sum_l2 - w * l * l;
            if (!(xl > 0 and l2 > 0)) continue;
            const new = @min(top, fit.nearest(v * l2 / xl));
            if (new == code.*) continue;
            const n: f32 = @floatFromInt(new);
            xl += w * v * n;
            l2 += w * n * n;
            if (xl * xl * sum_l2 > sum_xl * sum_xl * l2) {
                code.* = @truncate(@as(u32, @bitCast(new)));
                sum_xl = xl;
                sum_l2 = l2;
                changed = true;
            }
        }
        if (!changed) break;
    }
    return if (sum_l2 > 0) sum_xl / sum_l2 else 0;
}

fn positiveError(x: *const [8]f32, weights: *const [8]f32, inverse: f32, top: i32) f32 {
    const scale = 1 / inverse;
    var sum: f32 = 0;
    for (x, weights) |v, w| {
        const difference = v - scale * @as(f32, @floatFromInt(@min(top, fit.nearest(inverse * v))));
        sum += w * difference * difference;
    }
    return sum;
}

fn storeLarge(comptime bits: u3, x: [*]const f32, part: Part, levels: *const Levels, block: [*]u8) bool {
    const highest = (1 << bits) - 1;
    var bad = storeHalf(block, levels.scale);
    bad = storeHalf(block + 2, levels.minimum) or bad;
    for (0..4) |j| {
        block[4 + j] = levels.scales[j] | (levels.scales[j + 4] >> 4) << 6;
        block[8 + j] = levels.minima[j] | (levels.minima[j + 4] >> 4) << 6;
        block[12 + j] = (levels.scales[j + 4] & 15) | (levels.minima[j + 4] & 15) << 4;
    }
    const d = loadHalf(block);
    const dmin = loadHalf(block + 2);
    const body = block + (if (bits == 4) 16 else 48);
    const fifths = block + 16;
    if (bits == 5) @memset(fifths[0..32], 0);
    var codes: [2][32]u8 = undefined;
    for (0..8) |j| {
        const scale = d * @as(f32, @floatFromInt(levels.scales[j]));
        const minimum = dmin * @as(f32, @floatFromInt(levels.minima[j]));
        const mine = &codes[j % 2];
        const values = x + 32 * j;
        if (scale == 0) searched(highest, values, part.inverse[j], part.origin[j], mine) else inline for (0..32 / vl) |p| {
            const v = lanes.load(f32, values + p * vl);
            narrow(mine[p * vl ..], fit.roundedInt((v + splat(minimum)) / splat(scale), 0, highest));
        }
        const Bytes = @Vector(32, u8);
        const q: Bytes = mine.*;
        if (bits == 5) fifths[0..32].* = @as(Bytes, fifths[0..32].*) | (q >> @splat(4)) << @splat(@intCast(j));
        if (j % 2 == 1) body[16 * (j - 1) ..][0..32].* = (@as(Bytes, codes[0]) & @as(Bytes, @splat(15))) | q << @splat(4);
    }
    return bad;
}

/// The codes the search ended with.
inline fn searched(comptime highest: i32, x: [*]const f32, inverse: f32, origin: f32, codes: *[32]u8) void {
    inline for (0..32 / vl) |p| {
        const v = lanes.load(f32, x + p * vl);
        narrow(codes[p * vl ..], fit.roundedInt(splat(inverse) * (v - splat(origin)), 0, highest));
    }
}

fn sixBits(blocks: usize, x: [*]const f32, importance: ?[*]const f32, columns: usize, out: [*]u8) c_int {
    const size = 210;
    var table: Table(16 * batch) = undefined;
    var bad = false;
    var done: usize = 0;
    while (done < blocks) : (done += batch) {
        const count: usize = @min(batch, blocks - done);
        const values = x + done * 256;
        const weights: fit.Weights = if (importance) |i| .{ .of_column = .{ .importance = i, .columns = columns, .at = done * 256 % columns, .spread = null } } else .of_square;
        fit.symmetric(16, 32, 16 * count, values, weights, table.found());
        for (0..count) |b| bad = storeSix(values + b * 256, table.scale[16 * b ..][0..16], table.inverse[16 * b ..][0..16], out + (done + b) * size) or bad;
    }
    return @intFromBool(bad);
}

fn storeSix(x: [*]const f32, scales: *const [16]f32, inverses: *const [16]f32, block: [*]u8) bool {
    var largest: f32 = 0;
    var signed: f32 = 0;
    for (scales) |s| if (@abs(s) > largest) {
        largest = @abs(s);
        signed = s;
    };
    if (largest < fit.smallest) {
        @memset(block[0..210], 0);
        return false;
    }
    const to_scale = -128 / signed;
    const bad = storeHalf(block + 208, 1 / to_scale);
    const d = loadHalf(block + 208);
    var codes: [256]u8 = undefined;
    for (scales, inverses, 0..) |scale, inverse, j| {
        const s: i8 = @truncate(@min(127, fit.nearest(to_scale * scale)));
        block[192 + j] = @bitCast(s);
        const step = d * @as(f32, s);
        const mine = codes[16 * j ..][0..16];
        inline for (0..16 / vl) |p| {
            const v = lanes.load(f32, x + 16 * j + p * vl);
            const found = if (step != 0) fit.roundedInt(v / splat(step), -32, 31) else fit.roundedInt(splat(inverse) * v, -32, 31);
            narrow(mine[p * vl ..], found + @as(I, @splat(32)));
        }
        if (step == 0 and inverse == 0) mine.* = @splat(0);
    }
    const Bytes = @Vector(32, u8);
    const low: Bytes = @splat(15);
    inline for (0..2) |p| {
        var upper: Bytes = @splat(0);
        inline for (0..4) |t| upper |= (@as(Bytes, codes[128 * p + 32 * t ..][0..32].*) >> @splat(4)) << @splat(2 * t);
        inline for (0..2) |t| {
            const first: Bytes = codes[128 * p + 32 * t ..][0..32].*;
            const second: Bytes = codes[128 * p + 32 * (t + 2) ..][0..32].*;
            block[64 * p + 32 * t ..][0..32].* = (first & low) | second << @splat(4);
        }
        block[128 + 32 * p ..][0..32].* = upper;
    }
    return bad;
}

/// What a search found for `n` parts.
fn Table(comptime n: usize) type {
    return struct {
        scale: [n]f32,
        minimum: [n]f32,
        inverse: [n]f32,
        origin: [n]f32,
        sum: [n]f32,

        fn found(self: *@This()) fit.Found {
            return .{ .scale = &self.scale, .minimum = &self.minimum, .inverse = &self.inverse, .origin = &self.origin, .sum = &self.sum };
        }

        fn part(self: *const @This(), at: usize) Part {
            return .{ .scale = self.scale[at..][0..8], .minimum = self.minimum[at..][0..8], .inverse = self.inverse[at..][0..8], .origin = self.origin[at..][0..8], .sum = self.sum[at..][0..8] };
        }
    };
}

/// Of the eight parts of one block.
const Part = struct {
    scale: *const [8]f32,
    minimum: *const [8]f32,
    inverse: *const [8]f32,
    origin: *const [8]f32,
    sum: *const [8]f32,
};

inline fn narrow(to: []u8, codes: I) void {
    to[0..vl].* = @as(@Vector(vl, u8), @truncate(@as(@Vector(vl, u32), @bitCast(codes))));
}

inline fn packHalves(codes: *const [32]u8, to: [*]u8) void {
    const low: @Vector(16, u8) = codes[0..16].*;
    const high: @Vector(16, u8) = codes[16..32].*;
    to[0..16].* = (low & @as(@Vector(16, u8), @splat(15))) | high << @splat(4);
}

inline fn pack(comptime bits: u3, codes: *const [32]u8, to: [*]u8) void {
    if (bits == 4) return packHalves(codes, to);
    const all: @Vector(32, u8) = codes.*;
    const fifths: u32 = @bitCast(all >= @as(@Vector(32, u8), @splat(16)));
    to[0..4].* = @bitCast(fifths);
    packHalves(codes, to + 4);
}

/// A scale too small to invert stores as 0, and so do its numbers.
inline fn invert(d: f32) f32 {
    const inverse: f32 = if (d != 0) 1 / d else 0;
    return if (@abs(inverse) < lanes.largest(f32)) inverse else 0;
}

/// True where the number has no finite f16.
inline fn storeHalf(to: [*]u8, d: f32) bool {
    const bits: u16 = @bitCast(@as(f16, @floatCast(d)));
    to[0..2].* = @bitCast(bits);
    return bits & 0x7C00 == 0x7C00;
}

inline fn loadHalf(from: [*]const u8) f32 {
    return @as(*align(1) const f16, @ptrCast(from)).*;
}
