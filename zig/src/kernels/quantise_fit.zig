//! The searches of ggml's quantisers for a scale, many parts at once: one lane is one part of 16 or 32 numbers.
//!
//! The sums of a search run in index order and every product is rounded, for the order is part of the result: lanes are parts, so
//! nothing is reordered and the bits are those of one part after the other. A search gives scale and minimum of each part and what
//! its codes follow from; the codes themselves are made afterwards, where the numbers lie in order.
//! Does not know: how a block is stored.

const lanes = @import("lanes.zig");

pub const vl = lanes.width(f32);
pub const F = @Vector(vl, f32);
const I = @Vector(vl, i32);
const B = @Vector(vl, bool);

/// Below it a part is as good as zero.
pub const smallest: f32 = 1e-15;

const magic: f32 = 12582912.0; // 1.5 · 2^23: adding it rounds half to even and leaves the integer in the low bits.

/// Round half to even for |x| < 2^22, by letting an addition do it.
pub inline fn nearest(x: f32) i32 {
    const bits: u32 = @bitCast(x + magic);
    return @as(i32, @intCast(bits & 0x007f_ffff)) - 0x0040_0000;
}

/// The nearest integer, kept in lowest…highest, as a float.
inline fn rounded(x: F, comptime lowest: i32, comptime highest: i32) F {
    const bits: I = @bitCast(x + splat(magic));
    const low: I = bits & of(0x007f_ffff);
    const kept = @min(@max(low, of(0x0040_0000 + lowest)), of(0x0040_0000 + highest));
    return @as(F, @bitCast(kept | of(0x4B00_0000))) - splat(magic);
}

/// The same as integers.
pub inline fn roundedInt(x: F, comptime lowest: i32, comptime highest: i32) I {
    const bits: I = @bitCast(x + splat(magic));
    return @min(@max(bits & of(0x007f_ffff), of(0x0040_0000 + lowest)), of(0x0040_0000 + highest)) - of(0x0040_0000);
}

pub const Search = struct { first: f32, step: f32, count: usize };

/// What was found for parts that lie one behind the other, one entry a part.
pub const Found = struct {
    scale: [*]f32,
    /// At least 0. Not written by `symmetric`.
    minimum: [*]f32,
    /// A code is the nearest integer of inverse · (x - origin). `symmetric` writes no origin; an inverse of 0 there means codes of 0.
    inverse: [*]f32,
    origin: [*]f32,
    /// Of the weights; see `Weights`.
    sum: [*]f32,
};

/// What a number of a part counts.
pub const Weights = union(enum) {
    /// The root of the part's mean square, plus the number's own size.
    of_size,
    /// The number's square.
    of_square,
    /// Importance of its column, times the root of (spread of the part + its square) where there is a spread.
    of_column: Columns,
};

pub const Columns = struct {
    importance: [*]const f32,
    columns: usize,
    /// Position in the row of the first part.
    at: usize,
    /// One a part; null: importance alone.
    spread: ?[*]const f32,
};

/// x ≈ scale·code - minimum with codes in 0…highest, by weighted least squares over trial scales, for `parts` parts of 32.
pub fn withMinimum(comptime highest: i32, comptime search: Search, parts: usize, x: [*]const f32, weights: Weights, found: Found) void {
    var done: usize = 0;
    while (done < parts) : (done += vl) {
        const count: usize = @min(vl, parts - done);
        var values: [32]F = undefined;
        var ws: [32]F = undefined;
        columnsOf(32, x + done * 32, count, &values);
        weigh(32, &values, weights, done, count, &ws);
        const one = fitMinimum(highest, search, &values, &ws);
        put(found.scale + done, one.scale, count);
        put(found.minimum + done, one.minimum, count);
        put(found.inverse + done, one.inverse, count);
        put(found.origin + done, one.origin, count);
        put(found.sum + done, one.sum, count);
    }
}

/// x ≈ scale·code with codes in -half…half-1, for `parts` parts of `n`.
pub fn symmetric(comptime n: usize, comptime half: i32, parts: usize, x: [*]const f32, weights: Weights, found: Found) void {
    var done: usize = 0;
    while (done < parts) : (done += vl) {
        const count: usize = @min(vl, parts - done);
        var values: [n]F = undefined;
        var ws: [n]F = undefined;
        columnsOf(n, x + done * n, count, &values);
        weigh(n, &values, weights, done, count, &ws);
        const one = fitSymmetric(n, half, &values, &ws);
        put(found.scale + done, one.scale, count);
        put(found.inverse + done, one.inverse, count);
    }
}

const Minimum = struct { scale: F, minimum: F, inverse: F, origin: F, sum: F };

fn fitMinimum(comptime highest: i32, comptime search: Search, x: *const [32]F, ws: *const [32]F) Minimum {
    const top: f32 = @floatFromInt(highest);
    var low = x[0];
    var high = x[0];
    var sum_w = ws[0];
    var sum_x = sum_w * x[0];
    for (x[1..], ws[1..]) |v, w| {
        low = @select(f32, v < low, v, low);
        high = @select(f32, v > high, v, high);
        sum_w += w;
        sum_x += w * v;
    }
    low = @select(f32, low > splat(0), splat(0), low);
    const flat = high <= low;
    const low_of_flat = low;
    var inverse = splat(top) / (high - low);
    var origin = low;
    var scale = splat(1) / inverse;
    var best = splat(0);
    for (x, ws) |v, w| {
        const difference = scale * rounded(inverse * (v - low), 0, highest) + low - v;
        best += w * (difference * difference);
    }
    for (0..search.count + 1) |s| {
        const wanted = search.first + search.step * @as(f32, @floatFromInt(s)) + top;
        const trial = splat(wanted) / (high - low);
        var tried: [32]F = undefined;
        var sum_l = splat(0);
        var sum_l2 = splat(0);
        var sum_xl = splat(0);
        for (&tried, x, ws) |*q, v, w| {
            const l = rounded(trial * (v - low), 0, highest);
            q.* = l;
            const wl = w * l;
            sum_l += wl;
            sum_l2 += wl * l;
            sum_xl += wl * v;
        }
        const determinant = sum_w * sum_l2 - sum_l * sum_l;
        var this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        var this_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
        const above = this_low > splat(0);
        this_low = @select(f32, above, splat(0), this_low);
        this_scale = @select(f32, above, sum_xl / sum_l2, this_scale);
        var err = splat(0);
        for (tried, x, ws) |l, v, w| {
            const difference = this_scale * l + this_low - v;
            err += w * (difference * difference);
        }
        const better = both(determinant > splat(0), err < best);
        best = @select(f32, better, err, best);
        scale = @select(f32, better, this_scale, scale);
        inverse = @select(f32, better, trial, inverse);
        origin = @select(f32, better, low, origin);
        low = @select(f32, better, this_low, low); // Later trials start from here.
    }
    return .{
        .scale = @select(f32, flat, splat(0), scale),
        .minimum = -@select(f32, flat, low_of_flat, low),
        .inverse = @select(f32, flat, splat(0), inverse),
        .origin = @select(f32, flat, splat(0), origin),
        .sum = sum_w,
    };
}

fn fitSymmetric(comptime n: usize, comptime half: i32, x: *const [n]F, ws: *const [n]F) struct { scale: F, inverse: F } {
    var largest = splat(0);
    var signed = splat(0);
    for (x) |v| {
        const size = @abs(v);
        const more = size > largest;
        largest = @select(f32, more, size, largest);
        signed = @select(f32, more, v, signed);
    }
    const nothing = largest < splat(smallest);
    var wx: [n]F = undefined;
    for (&wx, x, ws) |*p, v, w| p.* = w * v;
    var scale = splat(0);
    var best = splat(0);
    var inverse = splat(0);
    const order = [_]i32{ 0, -9, -8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9 };
    const halves: f32 = @floatFromInt(half);
    const tenth: f32 = 0.1;
    for (order) |s| {
        // The sum is exact for s = 0.
        const trial = splat(-(halves + tenth * @as(f32, @floatFromInt(s)))) / signed;
        var sum_xl = splat(0);
        var sum_l2 = splat(0);
        for (x, ws, wx) |v, w, p| {
            const l = rounded(trial * v, -half, half - 1);
            sum_xl += p * l;
            sum_l2 += w * l * l;
        }
        const positive = sum_l2 > splat(0);
        const better = if (s == 0) @as(B, @splat(true)) else both(positive, sum_xl * sum_xl > best * sum_l2);
        const there = if (s == 0) sum_l2 != splat(0) else better;
        const this_scale = @select(f32, there, sum_xl / sum_l2, splat(0));
        scale = @select(f32, better, this_scale, scale);
        inverse = @select(f32, better, trial, inverse);
        best = @select(f32, better, this_scale * sum_xl, best);
    }
    return .{
        .scale = @select(f32, nothing, splat(0), scale),
        .inverse = @select(f32, nothing, splat(0), inverse),
    };
}

fn weigh(comptime n: usize, x: *const [n]F, weights: Weights, first: usize, count: usize, ws: *[n]F) void {
    switch (weights) {
        .of_size => {
            var squares = splat(0);
            for (x) |v| squares += v * v;
            const size = @sqrt(squares / splat(n));
            for (ws, x) |*w, v| w.* = size + @abs(v);
        },
        .of_square => for (ws, x) |*w, v| {
            w.* = v * v;
        },
        .of_column => |c| {
            importanceOf(n, c, first, count, ws);
            const spreads = c.spread orelse return;
            const spread = lanes.loadPart(f32, spreads + first, count, 0);
            for (ws, x) |*w, v| w.* = w.* * @sqrt(spread + v * v);
        },
    }
}

/// out[i] lane l = x[l·n + i]; lanes from `count` on are 0.
fn columnsOf(comptime n: usize, x: [*]const f32, count: usize, out: *[n]F) void {
    inline for (0..n / vl) |c| {
        var rows: [vl]F = undefined;
        for (&rows, 0..) |*row, l| row.* = if (l < count) lanes.load(f32, x + l * n + c * vl) else splat(0);
        transpose(&rows);
        inline for (0..vl) |i| out[c * vl + i] = rows[i];
    }
}

fn importanceOf(comptime n: usize, from: Columns, first: usize, count: usize, out: *[n]F) void {
    inline for (0..n / vl) |c| {
        var rows: [vl]F = undefined;
        for (&rows, 0..) |*row, l| {
            const at = (from.at + (first + l) * n) % from.columns;
            row.* = if (l < count) lanes.load(f32, from.importance + at + c * vl) else splat(0);
        }
        transpose(&rows);
        inline for (0..vl) |i| out[c * vl + i] = rows[i];
    }
}

/// A square of numbers, by exchanging halves of ever larger neighbourhoods.
inline fn transpose(rows: *[vl]F) void {
    comptime var distance = 1;
    inline while (distance < vl) : (distance *= 2) {
        const low, const high = comptime masks(distance);
        inline for (0..vl) |i| if (i & distance == 0) {
            const a = rows[i];
            const b = rows[i + distance];
            rows[i] = @shuffle(f32, a, b, low);
            rows[i + distance] = @shuffle(f32, a, b, high);
        };
    }
}

/// Lanes of a as they are, those of b inverted.
fn masks(comptime distance: usize) struct { [vl]i32, [vl]i32 } {
    var low: [vl]i32 = undefined;
    var high: [vl]i32 = undefined;
    for (0..vl) |l| {
        const lane: i32 = @intCast(l);
        const step: i32 = @intCast(distance);
        low[l] = if (l & distance == 0) lane else ~(lane - step);
        high[l] = if (l & distance == 0) lane + step else ~lane;
    }
    return .{ low, high };
}

inline fn put(to: [*]f32, v: F, count: usize) void {
    if (count == vl) lanes.store(f32, to, v) else lanes.storePart(f32, to, v, count);
}

inline fn both(a: B, b: B) B {
    return @select(bool, a, b, @as(B, @splat(false)));
}

pub inline fn splat(x: f32) F {
    return @splat(x);
}

inline fn of(x: i32) I {
    return @splat(x);
}
