//! Products through 16-bit whole numbers, on every level this CPU has, against a plain loop in f64.

const std = @import("std");
const base = @import("base");
const dispatch = @import("dispatch.zig");
const Words = @import("activations.zig").Words;

const testing = std.testing;

const nothing_next: @import("activations.zig").Next = .{ .at = "", .row_bytes = 0, .rows = 0, .bytes = 0 };

const most_tokens = 31;
const most_rows = 45;
const most_columns = 600;
const most_stretches = 3;

/// One row of weights and one of activations, rounded as they are said to be: the nearest multiple of the step that makes the stretch as long
/// as it may be.
fn stepOf(x: []const f64) f64 {
    var largest: f64 = 0;
    var squares: f64 = 0;
    for (x) |v| {
        largest = @max(largest, @abs(v));
        squares += v * v;
    }
    return if (largest < 1e-37) 0 else @max(largest / 32767, @sqrt(squares) / 46332);
}

test "16-bit products are those of the definition, within a step's rounding, for odd sizes and both formats" {
    const gpa = testing.allocator;
    const w = try gpa.alloc(f64, most_rows * most_columns);
    defer gpa.free(w);
    const x = try gpa.alloc(f32, most_tokens * most_columns);
    defer gpa.free(x);
    for (0..dispatch.available().len) |index| {
        errdefer std.debug.print("level {s}\n", .{dispatch.available()[index]});
        const kernels = dispatch.wordTableAt(index);
        const tile = kernels.words_tile();
        var prng = base.Prng.init(5);
        for ([_][3]usize{ .{ 1, 1, 1 }, .{ 14, 32, 256 }, .{ 31, 45, 600 }, .{ 3, 40, 257 }, .{ 29, 7, 512 } }) |shape| for ([_]bool{ false, true }) |is_bf16| {
            const tokens, const rows, const columns = shape;
            const stretches = (columns + Words.stretch - 1) / Words.stretch;
            errdefer std.debug.print("{d} {d} {d} {}\n", .{ tokens, rows, columns, is_bf16 });
            const bytes = try gpa.alloc(u8, rows * (columns * 2 + 6));
            defer gpa.free(bytes);
            for (0..rows) |r| for (0..columns) |k| {
                const value: f32 = @floatCast(prng.normal() * 0.03 * @as(f64, if (k % 100 == 7) 40 else 1));
                const bits: u16 = if (is_bf16) @truncate(@as(u32, @bitCast(value)) >> 16) else @bitCast(@as(f16, @floatCast(value)));
                bytes[r * (columns * 2 + 6) + k * 2 ..][0..2].* = @bitCast(bits);
                w[r * columns + k] = if (is_bf16) @as(f32, @bitCast(@as(u32, bits) << 16)) else @as(f16, @bitCast(bits));
            };
            for (x[0 .. tokens * columns]) |*v| v.* = @floatCast(prng.normal());

            const groups = (tokens + tile - 1) / tile;
            const words = try gpa.alloc(u32, groups * tile * stretches * Words.stretch / 2);
            defer gpa.free(words);
            const steps = try gpa.alloc(f32, groups * tile * stretches);
            defer gpa.free(steps);
            for (0..groups) |g| {
                const from = x[g * tile * columns ..];
                kernels.words_round(@min(tile, tokens - g * tile), columns, from.ptr, columns, words[g * tile * stretches * Words.stretch / 2 ..].ptr, steps[g * tile * stretches ..].ptr);
            }
            const panel_count = (rows + Words.panel_rows - 1) / Words.panel_rows;
            const panels = try gpa.alignedAlloc(u8, .@"64", kernels.words_panel_bytes(panel_count));
            defer gpa.free(panels);
            var out: [most_tokens * (most_rows + 2)]f32 = @splat(77);
            const ld = rows + 2;
            for (0..stretches) |s| {
                const column = s * Words.stretch;
                const count = @min(Words.stretch, columns - column);
                for (0..panel_count) |p| {
                    const row = p * Words.panel_rows;
                    const packer = if (is_bf16) kernels.words_pack_bf16 else kernels.words_pack_f16;
                    packer(@min(Words.panel_rows, rows - row), count, bytes[row * (columns * 2 + 6) + column * 2 ..].ptr, columns * 2 + 6, panels[kernels.words_panel_bytes(p)..].ptr);
                }
                kernels.words_gemm(rows, panels.ptr, tokens, words[s * Words.stretch / 2 * tile ..].ptr, steps[s * tile ..].ptr, stretches, &out, ld, @intFromBool(s > 0), &nothing_next);
            }
            for (0..tokens) |t| {
                for (0..rows) |r| {
                    var sum: f64 = 0;
                    var variance: f64 = 0;
                    for (0..stretches) |s| {
                        const column = s * Words.stretch;
                        const count = @min(Words.stretch, columns - column);
                        var row: [Words.stretch]f64 = undefined;
                        var vector: [Words.stretch]f64 = undefined;
                        for (row[0..count], vector[0..count], 0..) |*a, *b, k| {
                            a.* = w[r * columns + column + k];
                            b.* = x[t * columns + column + k];
                        }
                        const of_w = stepOf(row[0..count]);
                        const of_x = stepOf(vector[0..count]);
                        for (row[0..count], vector[0..count]) |a, b| {
                            sum += a * b;
                            // A rounding error is spread evenly over a step: a twelfth of its square.
                            variance += (a * a * of_x * of_x + b * b * of_w * of_w) / 12;
                        }
                    }
                    try testing.expectApproxEqAbs(sum, out[t * ld + r], 7 * @sqrt(variance) + 1e-6 * @abs(sum));
                }
                if (t + 1 < tokens) try testing.expectEqual(77, out[t * ld + rows]);
            }
        };
    }
}

test "16-bit sums hold where everything pulls one way, zeros stay zero, and what is no number stays none" {
    for (0..dispatch.available().len) |index| {
        errdefer std.debug.print("level {s}\n", .{dispatch.available()[index]});
        const kernels = dispatch.wordTableAt(index);
        var panel: [20 << 10]u8 align(64) = undefined;
        try testing.expect(kernels.words_panel_bytes(1) <= panel.len);
        var words: [16 * Words.stretch / 2]u32 = undefined;
        var steps: [16]f32 = undefined;
        const Case = struct { w: [2]f16, x: [2]f32 };
        const none = std.math.nan(f32);
        for ([_]Case{
            .{ .w = .{ 3, 3 }, .x = .{ 5, 5 } }, // the longest rows there are
            .{ .w = .{ -65504, 0 }, .x = .{ 1e30, 0 } }, // one number alone
            .{ .w = .{ 0, 0 }, .x = .{ 1, 2 } },
            .{ .w = .{ 1, 2 }, .x = .{ 0, 0 } },
            .{ .w = .{ 1, 2 }, .x = .{ 1e-40, 1e-40 } },
            .{ .w = .{ 1, std.math.inf(f16) }, .x = .{ 1, 1 } },
            .{ .w = .{ 1, 1 }, .x = .{ none, 1 } },
        }) |case| {
            var w: [Words.stretch]f16 = @splat(case.w[1]);
            w[0] = case.w[0];
            var x: [Words.stretch]f32 = @splat(case.x[1]);
            x[0] = case.x[0];
            kernels.words_round(1, x.len, &x, x.len, &words, &steps);
            kernels.words_pack_f16(1, w.len, std.mem.asBytes(&w), 2 * w.len, &panel);
            var out: [1]f32 = undefined;
            kernels.words_gemm(1, &panel, 1, &words, &steps, 1, &out, 1, 0, &nothing_next);
            const wanted = case.w[0] * @as(f64, case.x[0]) + 255 * @as(f64, case.w[1]) * case.x[1];
            if (std.math.isFinite(wanted)) {
                try testing.expectApproxEqAbs(wanted, out[0], 4e-4 * @abs(wanted) + 1e-30);
            } else try testing.expect(std.math.isNan(out[0]));
        }
    }
}
