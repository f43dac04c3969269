//! MXFP4: a block of 32 becomes one power of two and 32 codes of 4 bits, each the nearest of 16 values, the lower code on ties.

const std = @import("std");
const tensor = @import("tensor");

const len = tensor.blocks.mxfp4.len;
const size = tensor.blocks.mxfp4.bytes;
const doubled = tensor.blocks.mxfp4.doubled;

/// `values` are finite and whole blocks.
pub fn quantize(values: []const f32, out: []u8) void {
    for (0..values.len / len) |b| {
        const x = values[b * len ..][0..len];
        const block = out[b * size ..][0..size];
        var largest: f32 = 0;
        for (x) |v| largest = @max(largest, @abs(v));
        block[0] = exponent(largest);
        const d = tensor.blocks.mxfp4.halfScale(block[0]);
        for (block[1..], 0..) |*byte, j| byte.* = nearest(x[j], d) | nearest(x[j + 16], d) << 4;
    }
}

/// The first byte of each block alone; the kernel that finds the codes goes by it.
pub fn storeExponents(values: []const f32, out: []u8) void {
    for (0..values.len / len) |b| {
        var largest: f32 = 0;
        for (values[b * len ..][0..len]) |v| largest = @max(largest, @abs(v));
        out[b * size] = exponent(largest);
    }
}

/// The largest value of the table is 6, so the block's largest number should lie at 4 to 8 times the scale.
fn exponent(largest: f32) u8 {
    if (!(largest > 0)) return 0;
    // ggml takes a logarithm rounded to f32: just below a power of two it is that power's.
    const log: f32 = @floatCast(@log2(@as(f64, largest)));
    const e: i32 = @as(i32, @floor(log)) - 2 + 127;
    // Below 2^-125 ggml wraps around, even to the exponent that is no number. Such blocks are as good as zero.
    return @intCast(@max(e, 0));
}

fn nearest(x: f32, d: f32) u8 {
    var best: u8 = 0;
    var error_best = @abs(@as(f32, @floatFromInt(doubled[0])) * d - x);
    for (doubled[1..], 1..) |value, c| {
        const e = @abs(@as(f32, @floatFromInt(value)) * d - x);
        if (e < error_best) {
            error_best = e;
            best = @intCast(c);
        }
    }
    return best;
}
