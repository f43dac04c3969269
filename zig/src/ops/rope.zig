//! Rotary position embedding, in place, forward and backward.
//!
//! Layout: x [tokens, heads, head_dim] row-major; pairs are (i, i + head_dim/2), the Hugging Face order. Backward is the
//! rotation by the opposite angle, so both passes share one table. Frequencies and angles are rounded to f32 before
//! cos and sin are taken, because the reference does so: at position 500 the rounding is larger than the tolerance we
//! promise. Does not know: batches, masks, where positions come from.

const std = @import("std");
const Exec = @import("exec.zig").Exec;

pub const Direction = enum { forward, backward };

pub const Config = struct {
    head_dim: usize,
    theta: f64,
    /// One frequency for each pair, when positions are scaled; null = theta^(-2i/head_dim).
    inv_freq: ?[]const f32 = null,
};

/// cos and sin for positions 0..max_positions, [position, head_dim/2] each.
pub fn Table(comptime T: type) type {
    return struct {
        const Self = @This();

        gpa: std.mem.Allocator,
        half: usize,
        max_positions: usize,
        cos: []T,
        sin: []T,

        pub fn init(gpa: std.mem.Allocator, config: Config, max_positions: usize) error{OutOfMemory}!Self {
            std.debug.assert(config.head_dim % 2 == 0);
            const half = config.head_dim / 2;
            const count = std.math.mul(usize, half, max_positions) catch return error.OutOfMemory;
            const cos = try gpa.alloc(T, count);
            errdefer gpa.free(cos);

            const sin = try gpa.alloc(T, count);
            for (0..half) |i| {
                const frequency = if (config.inv_freq) |list| list[i] else defaultFrequency(i, config.head_dim, config.theta);
                for (0..max_positions) |p| {
                    const angle: f32 = @as(f32, @floatFromInt(p)) * frequency;
                    cos[p * half + i] = @floatCast(@cos(@as(f64, angle)));
                    sin[p * half + i] = @floatCast(@sin(@as(f64, angle)));
                }
            }
            return .{ .gpa = gpa, .half = half, .max_positions = max_positions, .cos = cos, .sin = sin };
        }

        pub fn deinit(self: *Self) void {
            self.gpa.free(self.cos);
            self.gpa.free(self.sin);
            self.* = undefined;
        }
    };
}

/// theta^(-2i/head_dim) with the roundings of the reference: the exponent, the power and its inverse in f32.
pub fn defaultFrequency(i: usize, head_dim: usize, theta: f64) f32 {
    const exponent: f32 = @as(f32, @floatFromInt(2 * i)) / @as(f32, @floatFromInt(head_dim));
    const power: f32 = @floatCast(std.math.pow(f64, @as(f32, @floatCast(theta)), exponent));
    return 1.0 / power;
}

/// Positions divided by `factor`.
pub fn scaleLinear(inv_freq: []f32, factor: f64) void {
    for (inv_freq) |*f| f.* = f.* / @as(f32, @floatCast(factor));
}

/// Llama 3.1: long waves are slowed by `factor`, short ones kept, a ramp between.
pub fn scaleLlama3(inv_freq: []f32, factor: f64, low_freq_factor: f64, high_freq_factor: f64, original_max_positions: usize) void {
    const original: f64 = @floatFromInt(original_max_positions);
    for (inv_freq) |*f| {
        const wave: f32 = @floatCast(2.0 * std.math.pi / @as(f64, f.*));
        if (wave < original / high_freq_factor) continue;
        const slowed: f32 = f.* / @as(f32, @floatCast(factor));
        if (wave > original / low_freq_factor) {
            f.* = slowed;
            continue;
        }
        const ramp: f32 = @floatCast((original / wave - low_freq_factor) / (high_freq_factor - low_freq_factor));
        f.* = (1 - ramp) * slowed + ramp * f.*;
    }
}

/// Rotates x [tokens, heads, head_dim] in place; positions [tokens] index the table.
pub fn apply(comptime T: type, ex: *Exec, x: []T, heads: usize, head_dim: usize, table: *const Table(T), positions: []const u32, direction: Direction) void {
    _ = ex;
    applyNaive(T, x, heads, head_dim, table, positions, direction);
}

pub fn applyNaive(comptime T: type, x: []T, heads: usize, head_dim: usize, table: *const Table(T), positions: []const u32, direction: Direction) void {
    const half = head_dim / 2;
    for (positions, 0..) |position, t| for (0..heads) |h| {
        const row = x[(t * heads + h) * head_dim ..][0..head_dim];
        for (0..half) |i| {
            const c = table.cos[position * half + i];
            const s = if (direction == .forward) table.sin[position * half + i] else -table.sin[position * half + i];
            const a = row[i];
            const b = row[half + i];
            row[i] = a * c - b * s;
            row[half + i] = b * c + a * s;
        }
    };
}
