//! q4_K, q5_K and q6_K: blocks of 256 whose parts share a scale of scales, found by trying scales around the obvious one.
//!
//! Each number weighs by its own size (q6_K: by its square), so large numbers are kept best. Sums run in index order and every
//! product is rounded, as in ggml's reference functions, whose bytes these are. No importance matrix.

const std = @import("std");
const base = @import("base");
const tensor = @import("tensor");
const storeScale = @import("q4_0.zig").storeScale;

const block_len = 256;

/// Round half to even for |x| < 2^22, by letting an addition do it.
fn nearestInt(x: f32) i32 {
    const shifted: u32 = @bitCast(x + 12582912.0);
    return @as(i32, @intCast(shifted & 0x007f_ffff)) - 0x0040_0000;
}

fn code(x: f32, highest: i32) u8 {
    return @intCast(std.math.clamp(nearestInt(x), 0, highest));
}

const Search = struct { first: f32, step: f32, count: usize };

/// x ≈ scale·codes - minimum with codes in 0…highest and minimum ≥ 0, by weighted least squares over trial scales.
fn fitWithMinimum(comptime n: usize, highest: i32, x: *const [n]f32, weights: *const [n]f32, search: Search, codes: *[n]u8) struct { scale: f32, minimum: f32 } {
    const top: f32 = @floatFromInt(highest);
    var low = x[0];
    var high = x[0];
    var sum_w = weights[0];
    var sum_x = sum_w * x[0];
    for (x[1..], weights[1..]) |v, w| {
        if (v < low) low = v;
        if (v > high) high = v;
        sum_w += w;
        sum_x += w * v;
    }
    if (low > 0) low = 0;
    if (high == low) {
        @memset(codes, 0);
        return .{ .scale = 0, .minimum = -low };
    }
    const inverse = top / (high - low);
    var scale = 1 / inverse;
    var best: f32 = 0;
    for (codes, x, weights) |*q, v, w| {
        q.* = code(inverse * (v - low), highest);
        const difference = scale * @as(f32, @floatFromInt(q.*)) + low - v;
        best += w * (difference * difference);
    }
    for (0..search.count + 1) |s| {
        const trial = (search.first + search.step * @as(f32, @floatFromInt(s)) + top) / (high - low);
        var tried: [n]u8 = undefined;
        var sum_l: f32 = 0;
        var sum_l2: f32 = 0;
        var sum_xl: f32 = 0;
        for (&tried, x, weights) |*q, v, w| {
            q.* = code(trial * (v - low), highest);
            const l: f32 = @floatFromInt(q.*);
            sum_l += w * l;
            sum_l2 += w * l * l;
            sum_xl += w * l * v;
        }
        const determinant = sum_w * sum_l2 - sum_l * sum_l;
        if (!(determinant > 0)) continue;
        var this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        var this_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
        if (this_low > 0) {
            this_low = 0;
            this_scale = sum_xl / sum_l2;
        }
        var err: f32 = 0;
        for (tried, x, weights) |q, v, w| {
            const difference = this_scale * @as(f32, @floatFromInt(q)) + this_low - v;
            err += w * (difference * difference);
        }
        if (err < best) {
            codes.* = tried;
            best = err;
            scale = this_scale;
            low = this_low; // Later trials start from here.
        }
    }
    return .{ .scale = scale, .minimum = -low };
}

/// q4_K (bits = 4) or q5_K (bits = 5). `values` are finite and whole blocks.
pub fn quantizeWithMinimum(comptime bits: u3, values: []const f32, out: []u8) error{NotFinite}!void {
    const size = if (bits == 4) tensor.blocks.q4_k.bytes else tensor.blocks.q4_k.bytes_5;
    const highest = (1 << bits) - 1;
    const search: Search = if (bits == 4) .{ .first = -1, .step = 0.1, .count = 20 } else .{ .first = -0.5, .step = 0.1, .count = 15 };
    for (0..values.len / block_len) |b| {
        const x = values[b * block_len ..][0..block_len];
        const block = out[b * size ..][0..size];
        var codes: [8][32]u8 = undefined;
        var scales: [8]f32 = undefined;
        var minima: [8]f32 = undefined;
        var largest_scale: f32 = 0;
        var largest_minimum: f32 = 0;
        for (0..8) |j| {
            const part = x[32 * j ..][0..32];
            var squares: f32 = 0;
            for (part) |v| squares += v * v;
            const size_of_part = @sqrt(squares / 32);
            var weights: [32]f32 = undefined;
            for (&weights, part) |*w, v| w.* = size_of_part + @abs(v);
            const fit = fitWithMinimum(32, highest, part, &weights, search, &codes[j]);
            scales[j] = fit.scale;
            minima[j] = fit.minimum;
            largest_scale = @max(largest_scale, fit.scale);
            largest_minimum = @max(largest_minimum, fit.minimum);
        }
        const to_scale: f32 = if (largest_scale > 0) 63 / largest_scale else 0;
        const to_minimum: f32 = if (largest_minimum > 0) 63 / largest_minimum else 0;
        var pairs: [8]tensor.blocks.q4_k.Pair = undefined;
        for (&pairs, scales, minima) |*pair, s, m| pair.* = .{ .scale = sixBits(to_scale * s), .minimum = sixBits(to_minimum * m) };
        tensor.blocks.q4_k.packPairs(&pairs, block[4..16]);
        try storeScale(block[0..2], largest_scale / 63);
        try storeScale(block[2..4], largest_minimum / 63);
        const d = tensor.convert.f16ToF32(base.bytes.load(u16, block[0..2]));
        const dmin = tensor.convert.f16ToF32(base.bytes.load(u16, block[2..4]));
        for (&codes, pairs, 0..) |*part, pair, j| {
            const scale = d * @as(f32, @floatFromInt(pair.scale));
            if (scale == 0) continue;
            const minimum = dmin * @as(f32, @floatFromInt(pair.minimum));
            for (part, x[32 * j ..][0..32]) |*q, v| q.* = code(bounded((v + minimum) / scale), highest);
        }
        const halves = block[size - 128 ..];
        for (0..4) |g| for (0..32) |l| {
            halves[32 * g + l] = (codes[2 * g][l] & 15) | (codes[2 * g + 1][l] & 15) << 4;
        };
        if (bits == 5) for (block[16..48], 0..) |*byte, l| {
            byte.* = 0;
            for (codes, 0..) |part, j| byte.* |= (part[l] >> 4) << @intCast(j);
        };
    }
}

/// ggml casts the rounded number to a byte first; it is never negative and never above 63 by more than rounding.
fn sixBits(x: f32) u8 {
    return @min(63, @as(u8, @intCast(std.math.clamp(nearestInt(x), 0, 255))));
}

/// Keeps a quotient where `nearestInt` holds; codes are clamped far inside.
fn bounded(x: f32) f32 {
    return std.math.clamp(x, -4_000_000, 4_000_000);
}

/// x ≈ scale·(codes - 32) with codes in 0…63, weighted by the squares of x.
fn fitSymmetric(x: *const [16]f32, codes: *[16]u8) f32 {
    const half = 32;
    var largest: f32 = 0;
    var signed: f32 = 0;
    for (x) |v| if (@abs(v) > largest) {
        largest = @abs(v);
        signed = v;
    };
    if (largest < 1e-15) {
        @memset(codes, 0);
        return 0;
    }
    var scale: f32 = 0;
    var best: f32 = 0;
    const order = [_]i32{ 0, -9, -8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9 };
    for (order) |s| {
        const inverse = if (s == 0) -@as(f32, half) / signed else -(@as(f32, half) + 0.1 * @as(f32, @floatFromInt(s))) / signed;
        var tried: [16]i32 = undefined;
        var sum_xl: f32 = 0;
        var sum_l2: f32 = 0;
        for (&tried, x) |*q, v| {
            q.* = std.math.clamp(nearestInt(inverse * v), -half, half - 1);
            const l: f32 = @floatFromInt(q.*);
            const w = v * v;
            sum_xl += w * v * l;
            sum_l2 += w * l * l;
        }
        const better = if (s == 0) true else sum_l2 > 0 and sum_xl * sum_xl > best * sum_l2;
        if (!better) continue;
        for (codes, tried) |*q, l| q.* = @intCast(l + half);
        scale = if (sum_l2 != 0) sum_xl / sum_l2 else 0;
        best = scale * sum_xl;
    }
    return scale;
}

/// q6_K. `values` are finite and whole blocks.
pub fn quantizeSymmetric(values: []const f32, out: []u8) error{NotFinite}!void {
    const size = tensor.blocks.q6_k.bytes;
    for (0..values.len / block_len) |b| {
        const x = values[b * block_len ..][0..block_len];
        const block = out[b * size ..][0..size];
        @memset(block, 0);
        var codes: [16][16]u8 = undefined;
        var scales: [16]f32 = undefined;
        var largest: f32 = 0;
        var signed: f32 = 0;
        for (&codes, &scales, 0..) |*part, *scale, j| {
            scale.* = fitSymmetric(x[16 * j ..][0..16], part);
            if (@abs(scale.*) > largest) {
                largest = @abs(scale.*);
                signed = scale.*;
            }
        }
        if (largest < 1e-15) continue;
        const inverse = -128 / signed;
        try storeScale(block[208..210], 1 / inverse);
        const d = tensor.convert.f16ToF32(base.bytes.load(u16, block[208..210]));
        for (scales, 0..) |scale, j| {
            const s: i8 = @intCast(@min(127, nearestInt(inverse * scale)));
            block[192 + j] = @bitCast(s);
            const step = d * @as(f32, s);
            if (step == 0) continue;
            for (&codes[j], x[16 * j ..][0..16]) |*q, v| q.* = @intCast(std.math.clamp(nearestInt(bounded(v / step)), -32, 31) + 32);
        }
        for (0..2) |p| for (0..4) |t| for (0..32) |l| {
            const at = 128 * p + 32 * t + l;
            const v = codes[at / 16][at % 16];
            block[64 * p + 32 * (t % 2) + l] |= (v & 15) << @intCast(4 * (t / 2));
            block[128 + 32 * p + l] |= (v >> 4) << @intCast(2 * t);
        };
    }
}
