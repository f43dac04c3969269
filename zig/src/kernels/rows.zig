//! Loops over one row or one array: sums, norms, softmax, activation, rotation.
//!
//! The last vector of a row is filled up and goes through the same arithmetic. Reductions use four lanes-wide chains
//! joined by one fixed tree, so a row has the same bits wherever it is computed.

const lanes = @import("lanes.zig");

/// Rows added in T before the partial sum joins the total: bounds the error of long columns.
const column_block = 256;

pub fn Kernels(comptime T: type) type {
    return struct {
        const V = lanes.Vector(T);
        const vl = lanes.width(T);
        const Wide = @Vector(vl, f64);

        /// dst += src
        pub fn add(n: usize, dst: [*]T, src: [*]const T) callconv(.c) void {
            var i: usize = 0;
            while (i + vl <= n) : (i += vl) lanes.store(T, dst + i, lanes.load(T, dst + i) + lanes.load(T, src + i));
            while (i < n) : (i += 1) dst[i] += src[i];
        }

        /// dst += a · src
        pub fn add_scaled(n: usize, dst: [*]T, a: T, src: [*]const T) callconv(.c) void {
            const av: V = @splat(a);
            var i: usize = 0;
            while (i + vl <= n) : (i += vl) {
                lanes.store(T, dst + i, lanes.mulAdd(T, av, lanes.load(T, src + i), lanes.load(T, dst + i)));
            }
            if (i < n) {
                const r = lanes.mulAdd(T, av, lanes.loadPart(T, src + i, n - i, 0), lanes.loadPart(T, dst + i, n - i, 0));
                lanes.storePart(T, dst + i, r, n - i);
            }
        }

        /// x *= a
        pub fn scale(n: usize, x: [*]T, a: T) callconv(.c) void {
            const av: V = @splat(a);
            var i: usize = 0;
            while (i + vl <= n) : (i += vl) lanes.store(T, x + i, lanes.load(T, x + i) * av);
            while (i < n) : (i += 1) x[i] *= a;
        }

        /// Σ x·y
        pub fn inner(n: usize, x: [*]const T, y: [*]const T) callconv(.c) T {
            var acc: [4]V = @splat(@splat(0));
            var i: usize = 0;
            while (i + 4 * vl <= n) : (i += 4 * vl) {
                inline for (0..4) |j| acc[j] = lanes.mulAdd(T, lanes.load(T, x + i + j * vl), lanes.load(T, y + i + j * vl), acc[j]);
            }
            while (i + vl <= n) : (i += vl) acc[0] = lanes.mulAdd(T, lanes.load(T, x + i), lanes.load(T, y + i), acc[0]);
            if (i < n) acc[1] = lanes.mulAdd(T, lanes.loadPart(T, x + i, n - i, 0), lanes.loadPart(T, y + i, n - i, 0), acc[1]);
            return lanes.sum(V, (acc[0] + acc[1]) + (acc[2] + acc[3]));
        }

        /// Σ x², every square and sum in f64.
        pub fn sum_squares(n: usize, x: [*]const T) callconv(.c) f64 {
            var acc: [2]Wide = @splat(@splat(0));
            var i: usize = 0;
            while (i + 2 * vl <= n) : (i += 2 * vl) {
                inline for (0..2) |j| {
                    const w: Wide = @floatCast(lanes.load(T, x + i + j * vl));
                    acc[j] += w * w;
                }
            }
            while (i < n) : (i += vl) {
                const w: Wide = @floatCast(lanes.loadPart(T, x + i, if (n - i < vl) n - i else vl, 0));
                acc[0] += w * w;
            }
            return lanes.sum(Wide, acc[0] + acc[1]);
        }

        /// out[c] += Σ_r x[r·ld + c]
        pub fn column_sums(rows: usize, cols: usize, ld: usize, x: [*]const T, out: [*]T) callconv(.c) void {
            var c: usize = 0;
            while (c < cols) : (c += vl) {
                const have = if (cols - c < vl) cols - c else vl;
                var total: V = @splat(0);
                var r: usize = 0;
                while (r < rows) {
                    const end = if (rows - r < column_block) rows else r + column_block;
                    var part: V = @splat(0);
                    while (r < end) : (r += 1) part += some(x + r * ld + c, have);
                    total += part;
                }
                put(out + c, some(out + c, have) + total, have);
            }
        }

        /// out = w · (x · rstd); gives rstd = 1/√(mean x² + eps).
        pub fn rms_forward(cols: usize, x: [*]const T, w: [*]const T, out: [*]T, eps: T) callconv(.c) T {
            const count: T = @floatFromInt(cols);
            const rstd = 1 / @sqrt(inner(cols, x, x) / count + eps);
            const s: V = @splat(rstd);
            var c: usize = 0;
            while (c < cols) : (c += vl) {
                const have = if (cols - c < vl) cols - c else vl;
                put(out + c, some(w + c, have) * (some(x + c, have) * s), have);
            }
            return rstd;
        }

        /// dinp (+)= rstd · (dout·w − x̂ · mean(dout·w·x̂)), x̂ = x·rstd
        pub fn rms_backward(cols: usize, dinp: [*]T, dout: [*]const T, x: [*]const T, w: [*]const T, rstd: T, accumulate: c_int) callconv(.c) void {
            const s: V = @splat(rstd);
            var acc: [2]V = @splat(@splat(0));
            var c: usize = 0;
            var turn: usize = 0;
            while (c < cols) : (c += vl) {
                const have = if (cols - c < vl) cols - c else vl;
                const term = some(dout + c, have) * some(w + c, have);
                const normed = some(x + c, have) * s;
                if (turn == 0) acc[0] = lanes.mulAdd(T, term, normed, acc[0]) else acc[1] = lanes.mulAdd(T, term, normed, acc[1]);
                turn ^= 1;
            }
            const count: T = @floatFromInt(cols);
            const mean: V = @splat(lanes.sum(V, acc[0] + acc[1]) / count);
            c = 0;
            while (c < cols) : (c += vl) {
                const have = if (cols - c < vl) cols - c else vl;
                const term = some(dout + c, have) * some(w + c, have);
                const normed = some(x + c, have) * s;
                const g = s * (term - normed * mean);
                put(dinp + c, if (accumulate != 0) some(dinp + c, have) + g else g, have);
            }
        }

        /// dweight[c] += Σ_r dout[r·ld + c] · (x[r·ld + c] · rstd[r])
        pub fn rms_weight(rows: usize, cols: usize, ld: usize, dout: [*]const T, x: [*]const T, rstd: [*]const T, dweight: [*]T) callconv(.c) void {
            var c: usize = 0;
            while (c < cols) : (c += vl) {
                const have = if (cols - c < vl) cols - c else vl;
                var total: V = @splat(0);
                var r: usize = 0;
                while (r < rows) {
                    const end = if (rows - r < column_block) rows else r + column_block;
                    var part: V = @splat(0);
                    while (r < end) : (r += 1) {
                        const normed = some(x + r * ld + c, have) * @as(V, @splat(rstd[r]));
                        part = lanes.mulAdd(T, some(dout + r * ld + c, have), normed, part);
                    }
                    total += part;
                }
                put(dweight + c, some(dweight + c, have) + total, have);
            }
        }

        /// x = e^(x·factor − max(x·factor)); gives the maximum and the sum.
        pub fn softmax_exp(n: usize, x: [*]T, factor: T, max_out: *T, sum_out: *T) callconv(.c) void {
            const f: V = @splat(factor);
            const lowest: T = -lanes.largest(T);
            var m: V = @splat(lowest);
            var i: usize = 0;
            while (i + vl <= n) : (i += vl) m = @max(m, lanes.load(T, x + i) * f);
            // The tail must not scale its filler: fill after the product.
            var tail: [vl]T = @splat(lowest);
            for (i..n) |j| tail[j - i] = x[j] * factor;
            m = @max(m, @as(V, tail));
            const max: T = @reduce(.Max, m);
            const mv: V = @splat(max);
            var total: Wide = @splat(0);
            i = 0;
            while (i + vl <= n) : (i += vl) {
                const e = lanes.exp(T, lanes.load(T, x + i) * f - mv);
                total += @as(Wide, @floatCast(e));
                lanes.store(T, x + i, e);
            }
            if (i < n) {
                const have = n - i;
                const e = keep(lanes.exp(T, lanes.loadPart(T, x + i, have, 0) * f - mv), have);
                total += @as(Wide, @floatCast(e));
                lanes.storePart(T, x + i, e, have);
            }
            max_out.* = max;
            sum_out.* = @floatCast(lanes.sum(Wide, total));
        }

        /// out = gate / (1 + e^−gate) · up
        pub fn swiglu_forward(n: usize, out: [*]T, gate: [*]const T, up: [*]const T) callconv(.c) void {
            const one: V = @splat(1);
            var i: usize = 0;
            while (i < n) : (i += vl) {
                const have = if (n - i < vl) n - i else vl;
                const g = some(gate + i, have);
                put(out + i, g / (one + lanes.exp(T, -g)) * some(up + i, have), have);
            }
        }

        /// The gate of gpt-oss's experts: out = g · sigmoid(alpha · g) · (u + 1), gate clamped from above, up from both sides, by `limit`.
        pub fn clamped_swiglu_forward(n: usize, out: [*]T, gate: [*]const T, up: [*]const T, alpha: T, limit: T) callconv(.c) void {
            const one: V = @splat(1);
            const a: V = @splat(alpha);
            const top: V = @splat(limit);
            var i: usize = 0;
            while (i < n) : (i += vl) {
                const have = if (n - i < vl) n - i else vl;
                const raw = some(gate + i, have);
                const other = some(up + i, have);
                // Selected, not @min: what is not a number must stay so.
                const g = @select(T, raw > top, top, raw);
                const u = @select(T, other > top, top, @select(T, other < -top, -top, other));
                put(out + i, g / (one + lanes.exp(T, -(a * g))) * (u + one), have);
            }
        }

        pub fn swiglu_backward(n: usize, dgate: [*]T, dup: [*]T, dout: [*]const T, gate: [*]const T, up: [*]const T) callconv(.c) void {
            const one: V = @splat(1);
            var i: usize = 0;
            while (i < n) : (i += vl) {
                const have = if (n - i < vl) n - i else vl;
                const g = some(gate + i, have);
                const u = some(up + i, have);
                const d = some(dout + i, have);
                const sigmoid = one / (one + lanes.exp(T, -g));
                put(dgate + i, d * u * (sigmoid * (one + g * (one - sigmoid))), have);
                put(dup + i, d * (g * sigmoid), have);
            }
        }

        /// Rotates `heads` vectors of 2·half numbers that follow each other by one position's angles; `sign` is 1 or −1.
        pub fn rope(heads: usize, half: usize, x: [*]T, cos: [*]const T, sin: [*]const T, sign: T) callconv(.c) void {
            const sg: V = @splat(sign);
            for (0..heads) |h| {
                const low = x + h * 2 * half;
                const high = low + half;
                var i: usize = 0;
                while (i < half) : (i += vl) {
                    const have = if (half - i < vl) half - i else vl;
                    const c = some(cos + i, have);
                    const s = some(sin + i, have) * sg;
                    const a = some(low + i, have);
                    const b = some(high + i, have);
                    put(low + i, a * c - b * s, have);
                    put(high + i, b * c + a * s, have);
                }
            }
        }

        /// The same of heads whose pairs are neighbours: (x[2i], x[2i + 1]) turns by the angle i.
        pub fn rope_pairs(heads: usize, half: usize, x: [*]T, cos: [*]const T, sin: [*]const T, sign: T) callconv(.c) void {
            for (0..heads) |h| {
                const head = x + h * 2 * half;
                var i: usize = 0;
                while (i < half) : (i += vl / 2) {
                    const have = if (half - i < vl / 2) half - i else vl / 2;
                    const c = doubled(cos + i, have);
                    const s = doubled(sin + i, have) * @as(V, if (sign < 0) -signs else signs);
                    const v = some(head + 2 * i, 2 * have);
                    put(head + 2 * i, v * c + @shuffle(T, v, undefined, swapped) * s, 2 * have);
                }
            }
        }

        /// Each of `have` numbers twice.
        inline fn doubled(p: [*]const T, have: usize) V {
            const few: @Vector(vl / 2, T) = if (have == vl / 2) p[0 .. vl / 2].* else blk: {
                var list: [vl / 2]T = @splat(0);
                for (list[0..have], p[0..have]) |*to, from| to.* = from;
                break :blk list;
            };
            return @shuffle(T, few, undefined, twice);
        }

        /// 0 0 1 1 …; 1 0 3 2 …; − + − + …
        const twice = places(0);
        const swapped = places(1);
        const signs: V = blk: {
            var list: [vl]T = @splat(1);
            for (0..vl / 2) |i| list[2 * i] = -1;
            break :blk list;
        };

        fn places(comptime swap: i32) @Vector(vl, i32) {
            var list: [vl]i32 = undefined;
            for (&list, 0..) |*place, i| place.* = if (swap == 1) @as(i32, i) ^ 1 else i / 2;
            return list;
        }

        /// y = e^x: for those who test it.
        pub fn exp(n: usize, x: [*]const T, y: [*]T) callconv(.c) void {
            var i: usize = 0;
            while (i < n) : (i += vl) {
                const have = if (n - i < vl) n - i else vl;
                put(y + i, lanes.exp(T, some(x + i, have)), have);
            }
        }

        inline fn some(p: [*]const T, have: usize) V {
            return if (have == vl) lanes.load(T, p) else lanes.loadPart(T, p, have, 0);
        }

        inline fn put(p: [*]T, v: V, have: usize) void {
            if (have == vl) lanes.store(T, p, v) else lanes.storePart(T, p, v, have);
        }

        /// The first `have` lanes, 0 in the others.
        inline fn keep(v: V, have: usize) V {
            var buffer: [vl]T = v;
            for (have..vl) |j| buffer[j] = 0;
            return buffer;
        }
    };
}
