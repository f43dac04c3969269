//! Every kernel of every level this CPU has, against a plain loop in f64.

const std = @import("std");
const base = @import("base");
const dispatch = @import("dispatch.zig");
const UpdateArgs = @import("update_args.zig").UpdateArgs;

const testing = std.testing;

fn tolerance(comptime T: type) f64 {
    return if (T == f32) 3e-6 else 1e-13;
}

fn fill(comptime T: type, prng: *base.Prng, x: []T) void {
    for (x) |*v| v.* = @floatCast(prng.normal());
}

fn expectNear(comptime T: type, expected: f64, actual: T, size: f64) !void {
    if (@abs(expected - actual) <= tolerance(T) * @max(size, 1)) return;
    std.debug.print("{s}: expected {d}, got {d}\n", .{ @typeName(T), expected, actual });
    return error.TestUnexpectedResult;
}

fn expectAllNear(comptime T: type, expected: []const f64, actual: []const T, size: f64) !void {
    try testing.expectEqual(expected.len, actual.len);
    for (expected, actual) |e, a| try expectNear(T, e, a, size);
}

/// Runs `check(T, kernels, prng)` on every level, for both types.
fn everyLevel(comptime check: anytype) !void {
    for (0..dispatch.available().len) |index| {
        errdefer std.debug.print("level {s}\n", .{dispatch.available()[index]});
        inline for (.{ f32, f64 }) |T| {
            var prng = base.Prng.init(11);
            try check(T, dispatch.tableAt(T, index), &prng);
        }
    }
}

test "gemm: all small sizes, all strides, store and accumulate; borders are not written" {
    try everyLevel(struct {
        fn check(comptime T: type, kernels: *const dispatch.Table(T), prng: *base.Prng) !void {
            const gpa = testing.allocator;
            const workspace = try gpa.alignedAlloc(u8, .@"64", kernels.gemm_workspace());
            defer gpa.free(workspace);

            var a: [40 * 40]T = undefined;
            var b: [40 * 40]T = undefined;
            fill(T, prng, &a);
            fill(T, prng, &b);
            for (1..34) |m| for ([_]usize{ 1, 2, 7, 8, 15, 16, 17, 31, 32, 33 }) |n| {
                const k = 1 + (m * 7 + n) % 33;
                for ([_]bool{ false, true }) |a_turned| for ([_]bool{ false, true }) |b_turned| {
                    const accumulate = (m + n) % 2 == 0;
                    var c: [36 * 36]T = @splat(0.5);
                    kernels.gemm(m, n, k, &a, if (a_turned) 1 else 40, if (a_turned) 40 else 1, &b, if (b_turned) 1 else 40, if (b_turned) 40 else 1, &c, 36, @intFromBool(accumulate), workspace.ptr);
                    for (0..36) |i| for (0..36) |j| {
                        if (i >= m or j >= n) {
                            try testing.expectEqual(0.5, c[i * 36 + j]);
                            continue;
                        }
                        var sum: f64 = if (accumulate) 0.5 else 0;
                        for (0..k) |p| {
                            const x: f64 = if (a_turned) a[p * 40 + i] else a[i * 40 + p];
                            const y: f64 = if (b_turned) b[j * 40 + p] else b[p * 40 + j];
                            sum += x * y;
                        }
                        try expectNear(T, sum, c[i * 36 + j], 6);
                    };
                };
            };
        }
    }.check);
}

test "gemm over several blocks of k; a part of the product has the bits of the whole" {
    try everyLevel(struct {
        fn check(comptime T: type, kernels: *const dispatch.Table(T), prng: *base.Prng) !void {
            const gpa = testing.allocator;
            const workspace = try gpa.alignedAlloc(u8, .@"64", kernels.gemm_workspace());
            defer gpa.free(workspace);

            const m = 37;
            const n = 45;
            const k = 801;
            const a = try gpa.alloc(T, m * k);
            defer gpa.free(a);

            const b = try gpa.alloc(T, n * k);
            defer gpa.free(b);

            fill(T, prng, a);
            fill(T, prng, b);
            var whole: [m * n]T = undefined;
            kernels.gemm(m, n, k, a.ptr, k, 1, b.ptr, 1, k, &whole, n, 0, workspace.ptr);
            for (0..m) |i| for (0..n) |j| {
                var sum: f64 = 0;
                for (0..k) |p| sum += @as(f64, a[i * k + p]) * b[j * k + p];
                try expectNear(T, sum, whole[i * n + j], 60);
            };
            var parts: [m * n]T = undefined;
            for ([_][2]usize{ .{ 0, 5 }, .{ 5, 23 }, .{ 23, m } }) |rows| for ([_][2]usize{ .{ 0, 1 }, .{ 1, 40 }, .{ 40, n } }) |cols| {
                kernels.gemm(rows[1] - rows[0], cols[1] - cols[0], k, a.ptr + rows[0] * k, k, 1, b.ptr + cols[0] * k, 1, k, parts[rows[0] * n + cols[0] ..].ptr, n, 0, workspace.ptr);
            };
            try testing.expectEqualSlices(u8, std.mem.asBytes(&whole), std.mem.asBytes(&parts));
        }
    }.check);
}

/// The definition of rounding to bf16.
fn toBf16(x: f32) f64 {
    const bits: u32 = @bitCast(x);
    const below: f32 = @bitCast(bits & 0xffff_0000);
    const above: f32 = @bitCast((bits & 0xffff_0000) +% 0x1_0000);
    const low = @abs(@as(f64, x) - below);
    const high = @abs(@as(f64, above) - x);
    if (low == high) return if (bits >> 16 & 1 == 0) below else above;
    return if (low < high) below else above;
}

test "gemm in bf16: rounded operands, exact products, all strides and odd sizes; parts have the bits of the whole" {
    for (0..dispatch.available().len) |index| {
        errdefer std.debug.print("level {s}\n", .{dispatch.available()[index]});
        const gpa = testing.allocator;
        const kernels = dispatch.lowTableAt(index);
        const workspace = try gpa.alignedAlloc(u8, .@"64", dispatch.tableAt(f32, index).gemm_workspace());
        defer gpa.free(workspace);

        var prng = base.Prng.init(9);
        const stride = 1700;
        const a = try gpa.alloc(f32, 40 * stride);
        defer gpa.free(a);

        const b = try gpa.alloc(f32, 40 * stride);
        defer gpa.free(b);

        fill(f32, &prng, a);
        fill(f32, &prng, b);
        const sizes = [_][3]usize{ .{ 1, 1, 1 }, .{ 3, 5, 2 }, .{ 14, 32, 7 }, .{ 15, 33, 8 }, .{ 29, 31, 9 }, .{ 28, 33, 33 }, .{ 33, 34, 1601 } };
        for (sizes) |size| for ([_]bool{ false, true }) |a_turned| for ([_]bool{ false, true }) |b_turned| {
            const m, const n, const k = size;
            const a_row: usize = if (a_turned) 1 else stride;
            const a_col: usize = if (a_turned) 40 else 1;
            const b_row: usize = if (b_turned) 1 else 40;
            const b_col: usize = if (b_turned) stride else 1;
            const accumulate = a_turned;
            var c: [36 * 36]f32 = @splat(0.5);
            kernels.gemm_bf16(m, n, k, a.ptr, a_row, a_col, b.ptr, b_row, b_col, &c, 36, @intFromBool(accumulate), workspace.ptr);
            for (0..36) |i| for (0..36) |j| {
                if (i >= m or j >= n) {
                    try testing.expectEqual(0.5, c[i * 36 + j]);
                    continue;
                }
                var sum: f64 = if (accumulate) 0.5 else 0;
                for (0..k) |p| sum += toBf16(a[i * a_row + p * a_col]) * toBf16(b[p * b_row + j * b_col]);
                try expectNear(f32, sum, c[i * 36 + j], 4 * @sqrt(@as(f64, @floatFromInt(k))));
            };
            var parts: [36 * 36]f32 = @splat(0.5);
            for ([_][2]usize{ .{ 0, m / 2 }, .{ m / 2, m } }) |rows| for ([_][2]usize{ .{ 0, n / 3 }, .{ n / 3, n } }) |cols| {
                kernels.gemm_bf16(rows[1] - rows[0], cols[1] - cols[0], k, a.ptr + rows[0] * a_row, a_row, a_col, b.ptr + cols[0] * b_col, b_row, b_col, parts[rows[0] * 36 + cols[0] ..].ptr, 36, @intFromBool(accumulate), workspace.ptr);
            };
            try testing.expectEqualSlices(u8, std.mem.asBytes(&c), std.mem.asBytes(&parts));
        };
        // A NaN of any shape is not rounded away.
        for ([_]u32{ 0x7fff_ffff, 0x7f80_0001, 0xffff_ffff }) |bits| {
            var c: [1]f32 = .{0};
            const x = [_]f32{@bitCast(bits)};
            const y = [_]f32{1};
            kernels.gemm_bf16(1, 1, 1, &x, 1, 1, &y, 1, 1, &c, 1, 0, workspace.ptr);
            try testing.expect(std.math.isNan(c[0]));
        }
    }
}

test "exp is within 2 ulp over the whole range, and 0, inf and NaN at its ends" {
    try everyLevel(struct {
        fn check(comptime T: type, kernels: *const dispatch.Table(T), _: *base.Prng) !void {
            const low: f64 = if (T == f32) -86.5 else -707.9;
            const high: f64 = if (T == f32) 88.7 else 709.7;
            const epsilon = std.math.floatEps(T);
            var x: [1001]T = undefined;
            var y: [1001]T = undefined;
            for (&x, 0..) |*v, i| v.* = @floatCast(low + (high - low) * @as(f64, @floatFromInt(i)) / 1000.0);
            kernels.exp(x.len, &x, &y);
            for (x, y) |v, e| {
                const exact = @exp(@as(f64, v));
                try testing.expect(@abs(e - exact) <= 2 * epsilon * exact);
            }
            const inf = std.math.inf(T);
            const ends = [_]T{ -inf, -1000, 1000, inf, std.math.nan(T), 0 };
            kernels.exp(ends.len, &ends, &y);
            try testing.expectEqual(0, y[0]);
            try testing.expectEqual(0, y[1]);
            try testing.expectEqual(inf, y[2]);
            try testing.expectEqual(inf, y[3]);
            try testing.expect(std.math.isNan(y[4]));
            try testing.expectEqual(1, y[5]);
        }
    }.check);
}

test "rows of 0 to 70 numbers: sums, softmax, activation, norms, rotation, updates" {
    try everyLevel(struct {
        fn check(comptime T: type, kernels: *const dispatch.Table(T), prng: *base.Prng) !void {
            for (0..71) |n| try rowsOf(T, kernels, prng, n);
        }
    }.check);
}

fn rowsOf(comptime T: type, kernels: *const dispatch.Table(T), prng: *base.Prng, n: usize) !void {
    var buffers: [6][72]T = undefined;
    for (&buffers) |*b| fill(T, prng, b);
    const x = buffers[0][0..n];
    const y = buffers[1][0..n];
    const z = buffers[2][0..n];
    var wide: [72]f64 = undefined;
    const want = wide[0..n];
    var out: [72]T = undefined;

    for (x, y, want) |a, b, *w| w.* = @as(f64, a) + b;
    @memcpy(out[0..n], x);
    out[n] = 77; // One past the end must stay.
    kernels.add(n, &out, y.ptr);
    try expectAllNear(T, want, out[0..n], 4);
    for (x, y, want) |a, b, *w| w.* = @as(f64, a) + 0.3 * @as(f64, b);
    @memcpy(out[0..n], x);
    kernels.add_scaled(n, &out, 0.3, y.ptr);
    try expectAllNear(T, want, out[0..n], 4);
    for (x, want) |a, *w| w.* = 0.3 * @as(f64, a);
    @memcpy(out[0..n], x);
    kernels.scale(n, &out, 0.3);
    try expectAllNear(T, want, out[0..n], 4);

    var inner: f64 = 0;
    var squares: f64 = 0;
    for (x, y) |a, b| {
        inner += @as(f64, a) * b;
        squares += @as(f64, a) * a;
    }
    try expectNear(T, inner, kernels.inner(n, x.ptr, y.ptr), 10);
    try testing.expectApproxEqRel(squares, kernels.sum_squares(n, x.ptr), 1e-14);

    if (n > 0) {
        var max: f64 = -std.math.inf(f64);
        for (x) |a| max = @max(max, 0.7 * @as(f64, a));
        var total: f64 = 0;
        for (x, want) |a, *w| {
            w.* = @exp(0.7 * @as(f64, a) - max);
            total += w.*;
        }
        @memcpy(out[0..n], x);
        var got_max: T = undefined;
        var got_sum: T = undefined;
        kernels.softmax_exp(n, &out, 0.7, &got_max, &got_sum);
        try expectAllNear(T, want, out[0..n], 1);
        try expectNear(T, max, got_max, 3);
        try expectNear(T, total, got_sum, total);

        const rstd = 1 / @sqrt(squares / @as(f64, @floatFromInt(n)) + 1e-5);
        for (x, y, want) |a, b, *w| w.* = @as(f64, a) * rstd * b;
        try expectNear(T, rstd, kernels.rms_forward(n, x.ptr, y.ptr, &out, 1e-5), rstd);
        try expectAllNear(T, want, out[0..n], rstd * 6);
        var mean: f64 = 0;
        for (x, y, z) |a, w, d| mean += @as(f64, d) * w * a * rstd / @as(f64, @floatFromInt(n));
        for (x, y, z, want) |a, w, d, *e| e.* = 1 + rstd * (@as(f64, d) * w - a * rstd * mean);
        @memset(out[0..n], 1);
        kernels.rms_backward(n, &out, z.ptr, x.ptr, y.ptr, @floatCast(rstd), 1);
        try expectAllNear(T, want, out[0..n], rstd * rstd * 10);
    }

    for (x, y, want) |g, u, *w| w.* = @as(f64, g) / (1 + @exp(-@as(f64, g))) * u;
    kernels.swiglu_forward(n, &out, x.ptr, y.ptr);
    try expectAllNear(T, want, out[0..n], 6);
    var other: [72]T = undefined;
    kernels.swiglu_backward(n, &out, &other, z.ptr, x.ptr, y.ptr);
    for (x, y, z, 0..) |g, u, d, i| {
        const s = 1 / (1 + @exp(-@as(f64, g)));
        try expectNear(T, @as(f64, d) * u * s * (1 + g * (1 - s)), out[i], 10);
        try expectNear(T, @as(f64, d) * g * s, other[i], 10);
    }

    for (x, y, want) |raw, u, *w| {
        const g = @min(@as(f64, raw), 0.5);
        w.* = g / (1 + @exp(-1.702 * g)) * (std.math.clamp(@as(f64, u), -0.5, 0.5) + 1);
    }
    kernels.clamped_swiglu_forward(n, &out, x.ptr, y.ptr, 1.702, 0.5);
    try expectAllNear(T, want, out[0..n], 8);

    const half = n / 2;
    @memcpy(out[0 .. 2 * half], x[0 .. 2 * half]);
    kernels.rope(1, half, &out, y.ptr, z.ptr, -1);
    for (0..half) |i| {
        const a: f64 = x[i];
        const b: f64 = x[half + i];
        try expectNear(T, a * y[i] + b * z[i], out[i], 6);
        try expectNear(T, b * y[i] - a * z[i], out[half + i], 6);
    }
    @memcpy(out[0 .. 2 * half], x[0 .. 2 * half]);
    kernels.rope_pairs(1, half, &out, y.ptr, z.ptr, 1);
    for (0..half) |i| {
        const a: f64 = x[2 * i];
        const b: f64 = x[2 * i + 1];
        try expectNear(T, a * y[i] - b * z[i], out[2 * i], 6);
        try expectNear(T, b * y[i] + a * z[i], out[2 * i + 1], 6);
    }

    // Three rows of n/3 columns with one number between rows.
    const cols = n / 3;
    if (cols > 1) {
        var sums: [24]T = @splat(1);
        var scaled: [24]T = @splat(1);
        const rstd = [_]T{ 0.5, 2, 3 };
        kernels.column_sums(3, cols - 1, cols, x.ptr, &sums);
        kernels.rms_weight(3, cols - 1, cols, x.ptr, y.ptr, &rstd, &scaled);
        for (0..cols - 1) |c| {
            var a: f64 = 1;
            var b: f64 = 1;
            for (0..3) |r| {
                a += x[r * cols + c];
                b += @as(f64, x[r * cols + c]) * y[r * cols + c] * rstd[r];
            }
            try expectNear(T, a, sums[c], 5);
            try expectNear(T, b, scaled[c], 20);
        }
        try testing.expectEqual(1, sums[cols - 1]);
        try testing.expectEqual(1, scaled[cols - 1]);
    }

    const args: UpdateArgs(T) = .{ .lr = 0.1, .grad_scale = 0.5, .l2 = 0.01, .decay = 0.99, .beta2 = 0.95, .one_minus_beta1 = 0.1, .one_minus_beta2 = 0.05, .root = 0.3, .eps = 1e-8, .step_size = 0.2 };
    @memcpy(out[0..n], x);
    kernels.sgd(n, &out, y.ptr, &args);
    for (x, y, out[0..n]) |w, g, got| try expectNear(T, w - 0.1 * (0.5 * @as(f64, g) + 0.01 * @as(f64, w)), got, 4);
    @memcpy(out[0..n], x);
    var m = buffers[3];
    var v = buffers[4];
    for (&v) |*a| a.* = @abs(a.*) + 0.1;
    kernels.adam(n, &out, y.ptr, &m, &v, &args);
    for (0..n) |i| {
        const g = 0.5 * @as(f64, y[i]) + 0.01 * @as(f64, x[i]);
        const m_new = buffers[3][i] + 0.1 * (g - buffers[3][i]);
        const v_new = 0.95 * (@abs(@as(f64, buffers[4][i])) + 0.1) + 0.05 * g * g;
        try expectNear(T, m_new, m[i], 4);
        try expectNear(T, v_new, v[i], 4);
        try expectNear(T, x[i] * 0.99 - 0.2 * m_new / (@sqrt(v_new) / 0.3 + 1e-8), out[i], 4);
    }
    try testing.expectEqual(buffers[3][n], m[n]);
}

test "weight rows of every stored format against a plain loop" {
    for (0..dispatch.available().len) |index| {
        errdefer std.debug.print("level {s}\n", .{dispatch.available()[index]});
        const kernels = dispatch.weightTableAt(index);
        var prng = base.Prng.init(5);
        var x: [224]f32 = undefined;
        fill(f32, &prng, &x);
        var f32s: [224]f32 = undefined;
        fill(f32, &prng, &f32s);
        var f16s: [224]f16 = undefined;
        fill(f16, &prng, &f16s);
        var bf16s: [224]u16 = undefined;
        for (&bf16s, f32s) |*b, f| b.* = @truncate(@as(u32, @bitCast(f)) >> 16);
        for (0..224) |n| {
            var sums: [3]f64 = @splat(0);
            for (0..n) |i| {
                sums[0] += @as(f64, f32s[i]) * x[i];
                sums[1] += @as(f64, f16s[i]) * x[i];
                sums[2] += @as(f64, @as(f32, @bitCast(@as(u32, bf16s[i]) << 16))) * x[i];
            }
            try expectNear(f32, sums[0], kernels.dot_f32(n, std.mem.asBytes(&f32s), &x), 20);
            try expectNear(f32, sums[1], kernels.dot_f16(n, std.mem.asBytes(&f16s), &x), 20);
            try expectNear(f32, sums[2], kernels.dot_bf16(n, std.mem.asBytes(&bf16s), &x), 20);
        }
        // Each half-precision number alone, so that no sum hides a wrong one; NaN and infinity too.
        var single: [16]f16 = @splat(0);
        var padded: [16]f32 = @splat(0);
        padded[3] = 1;
        for (0..1 << 16) |bits| {
            if (bits % 7 != 0 and bits & 0x3ff > 2) continue;
            single[3] = @bitCast(@as(u16, @intCast(bits)));
            if (!std.math.isFinite(single[3])) {
                try testing.expect(!std.math.isFinite(kernels.dot_f16(16, std.mem.asBytes(&single), &padded)));
                continue;
            }
            try testing.expectEqual(@as(f32, single[3]), kernels.dot_f16(16, std.mem.asBytes(&single), &padded));
        }
        var blocks: [7 * 34]u8 = undefined;
        for (0..7) |b| {
            const d: f16 = @floatCast(0.01 * (1 + prng.uniform()));
            blocks[b * 34 ..][0..2].* = @bitCast(d);
            for (blocks[b * 34 + 2 ..][0..32]) |*q| q.* = @truncate(prng.next());
        }
        for (0..8) |count| {
            var sum: f64 = 0;
            for (0..count) |b| {
                const d: f16 = @bitCast(blocks[b * 34 ..][0..2].*);
                for (0..32) |i| sum += @as(f64, d) * @as(f64, @floatFromInt(@as(i8, @bitCast(blocks[b * 34 + 2 + i])))) * x[b * 32 + i];
            }
            try expectNear(f32, sum, kernels.dot_q8_0(count * 32, &blocks, &x), 40);
        }
        var expanded: [224]f32 = undefined;
        kernels.expand_q8_0(224, &blocks, &expanded);
        for (expanded, 0..) |e, i| {
            const d: f16 = @bitCast(blocks[i / 32 * 34 ..][0..2].*);
            const q: i8 = @bitCast(blocks[i / 32 * 34 + 2 + i % 32]);
            try testing.expectEqual(@as(f32, d) * @as(f32, @floatFromInt(q)), e);
        }
        for ([_]usize{ 0, 1, 15, 33, 223 }) |n| {
            @memset(&expanded, 77);
            kernels.expand_f16(n, std.mem.asBytes(&f16s), &expanded);
            for (expanded[0..n], f16s[0..n]) |e, h| try testing.expectEqual(@as(f32, h), e);
            kernels.expand_bf16(n, std.mem.asBytes(&bf16s), &expanded);
            for (expanded[0..n], bf16s[0..n]) |e, h| try testing.expectEqual(@as(f32, @bitCast(@as(u32, h) << 16)), e);
            try testing.expectEqual(77, expanded[n]);
        }
        kernels.expand_q8_0(224, &blocks, &expanded);
        // Weighted sums of rows, for all widths and numbers of rows.
        for ([_]usize{ 0, 1, 2, 5 }) |rows| for ([_]usize{ 0, 1, 15, 32, 37 }) |n| {
            const sources = [_][]const u8{ std.mem.asBytes(&f32s), std.mem.asBytes(&f16s), &blocks };
            for (sources, [_]usize{ 37 * 4, 37 * 2, 34 }, 0..) |bytes, step, format| {
                const columns = if (format == 2) n / 32 * 32 else n;
                var mixed: [40]f32 = @splat(77);
                const mixes = [_]dispatch.Mix{ kernels.mix_f32, kernels.mix_f16, kernels.mix_q8_0 };
                mixes[format](rows, columns, bytes.ptr, step, &x, &mixed);
                try testing.expectEqual(77, mixed[columns]);
                for (mixed[0..columns], 0..) |got, i| {
                    var sum: f64 = 0;
                    for (0..rows) |r| sum += x[r] * @as(f64, switch (format) {
                        0 => f32s[r * 37 + i],
                        1 => f16s[r * 37 + i],
                        else => expanded[r * 32 + i],
                    });
                    try expectNear(f32, sum, got, 20);
                }
            }
        };
        // Many rows are the single rows, to the bit.
        var out: [3]f32 = undefined;
        kernels.matvec_q8_0(3, 64, &blocks, 68, &x, &out);
        for (out, 0..) |o, r| try testing.expectEqual(kernels.dot_q8_0(64, blocks[r * 68 ..].ptr, &x), o);
        kernels.matvec_bf16(3, 70, std.mem.asBytes(&bf16s), 140, &x, &out);
        for (out, 0..) |o, r| try testing.expectEqual(kernels.dot_bf16(70, std.mem.asBytes(&bf16s)[r * 140 ..].ptr, &x), o);
        kernels.matvec_f16(3, 70, std.mem.asBytes(&f16s), 140, &x, &out);
        for (out, 0..) |o, r| try testing.expectEqual(kernels.dot_f16(70, std.mem.asBytes(&f16s)[r * 140 ..].ptr, &x), o);
        kernels.matvec_f32(3, 70, std.mem.asBytes(&f32s), 280, &x, &out);
        for (out, 0..) |o, r| try testing.expectEqual(kernels.dot_f32(70, std.mem.asBytes(&f32s)[r * 280 ..].ptr, &x), o);
    }
}

test "columns of logits: maxima, sums and gradients; a column without a factor becomes 0" {
    try everyLevel(struct {
        fn check(comptime T: type, kernels: *const dispatch.Table(T), prng: *base.Prng) !void {
            const ld = 75;
            var x: [70 * ld]T = undefined;
            for ([_]usize{ 1, 31, 33, 70 }) |rows| for ([_]usize{ 1, 7, 16, 33, 64, 73 }) |columns| {
                fill(T, prng, &x);
                var max: [ld]T = @splat(-7);
                var best: [ld]u32 = undefined;
                var exps: [ld]T = undefined;
                var plain: [ld]T = undefined;
                kernels.column_logits(rows, columns, ld, &x, &max, &best, &exps, &plain);
                var inverse: [ld]T = undefined;
                var offset: [ld]T = undefined;
                var factor: [ld]T = undefined;
                var want: [70 * ld]f64 = undefined;
                for (x, &want) |v, *w| w.* = v;
                for (0..columns) |c| {
                    var first: usize = 0;
                    var total: f64 = 0;
                    for (0..rows) |r| {
                        if (x[r * ld + c] > x[first * ld + c]) first = r;
                        total += x[r * ld + c];
                    }
                    var powers: f64 = 0;
                    for (0..rows) |r| powers += @exp(@as(f64, x[r * ld + c]) - x[first * ld + c]);
                    try testing.expectEqual(first, best[c]);
                    try testing.expectEqual(x[first * ld + c], max[c]);
                    try expectNear(T, powers, exps[c], powers);
                    try expectNear(T, total, plain[c], 70);
                    inverse[c] = @floatCast(1 / powers);
                    offset[c] = @floatCast(0.001 * @as(f64, @floatFromInt(c)));
                    factor[c] = if (c % 5 == 3) 0 else 2;
                    for (0..rows) |r| want[r * ld + c] = (@exp(@as(f64, x[r * ld + c]) - max[c]) * inverse[c] - offset[c]) * factor[c];
                }
                try testing.expectEqual(-7, max[columns]);
                kernels.column_logits_gradient(rows, columns, ld, &x, &max, &inverse, &offset, &factor);
                try expectAllNear(T, &want, &x, 2);
                for (0..rows) |r| if (columns > 3) try testing.expectEqual(0, x[r * ld + 3]);
            };
        }
    }.check);
}
