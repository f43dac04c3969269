//! Frozen weights from their file's form straight into the panels of a product in bf16 (gemm.zig, `gemm_packed_bf16`): MXFP4 and bf16.
//!
//! Every number of either is a bf16 as it is, so nothing is rounded, and the words are those that expanding to f32 and packing gives (but
//! for denormals, which the product takes for 0). A word holds two neighbours along the sum. Weights come as one pointer a row, at whole groups of
//! 32. `across`: the sum runs along the rows (x · Wᵀ); `along`: over them (x · W). Does not know: which rows lie where.

const lanes = @import("lanes.zig");
const pack = @import("pack.zig");
const gemm = @import("gemm.zig");
const expand = @import("expand.zig");

const vl = lanes.width(f32);
const nr = gemm.panelWidth(f32);
const Words = @Vector(vl, u32);
const group = 32;

/// How a row keeps its numbers.
const Form = enum(c_int) {
    /// MXFP4, codes of neighbours in one byte, scales in a row of their own.
    pairs = 0,
    /// MXFP4 in blocks of 17 bytes, the scale before codes of numbers 16 apart.
    halves = 1,
    bf16 = 2,
};

pub const Kernels = struct {
    /// Bytes for `n` columns of a product whose sum is `k` long.
    pub fn packed_rows_size(k: usize, n: usize) callconv(.c) usize {
        return (n + nr - 1) / nr * nr * pack.depth(true, k) * @sizeOf(u32);
    }

    /// n rows of k numbers (whole groups) as the columns of a product.
    pub fn pack_rows_across(form: c_int, n: usize, k: usize, rows: [*]const [*]const u8, scales: [*]const [*]const u8, out: [*]u8) callconv(.c) void {
        switch (@as(Form, @fromBackingInt(@intCast(form)))) {
            inline else => |f| across(f, n, k, rows, scales, @ptrCast(@alignCast(out))),
        }
    }

    /// k rows of n numbers (whole groups) as the rows of a product.
    pub fn pack_rows_along(form: c_int, k: usize, n: usize, rows: [*]const [*]const u8, scales: [*]const [*]const u8, out: [*]u8) callconv(.c) void {
        switch (@as(Form, @fromBackingInt(@intCast(form)))) {
            inline else => |f| along(f, k, n, rows, scales, @ptrCast(@alignCast(out))),
        }
    }
};

/// Vectors of words of one group of a row.
const pieces = group / 2 / vl;

fn across(comptime form: Form, n: usize, k: usize, rows: [*]const [*]const u8, scales: [*]const [*]const u8, out: [*]u32) void {
    const stride = nr * (k / 2);
    var first: usize = 0;
    while (first < n) : (first += nr) {
        const panel = out + first / nr * stride;
        for (0..k / group) |b| {
            inline for (0..nr / vl) |half| {
                var squares: [pieces][vl]Words = undefined;
                for (0..vl) |r| {
                    const row = first + half * vl + r;
                    const words: [pieces]Words = if (row < n) groupOf(form, rows[row], scales[row], b) else @splat(@splat(0));
                    inline for (0..pieces) |p| squares[p][r] = words[p];
                }
                inline for (0..pieces) |p| {
                    const turned = pack.turn(u32, vl, squares[p]);
                    inline for (0..vl) |q| pack.put(panel + (b * group / 2 + p * vl + q) * nr + half * vl, turned[q]);
                }
            }
        }
    }
}

/// Words of group `b` of a row, neighbours along the row in one.
inline fn groupOf(comptime form: Form, row: [*]const u8, scales: [*]const u8, b: usize) [pieces]Words {
    var words: [pieces]Words = undefined;
    if (form == .bf16) {
        inline for (0..pieces) |p| words[p] = @as(*align(1) const Words, @ptrCast(row + 64 * b + 4 * vl * p)).*;
        return words;
    }
    const codes = codesOf(form, row, b);
    const d = scaleOf(form, row, scales, b);
    inline for (0..pieces) |p| {
        const q: @Vector(vl, u8) = @shuffle(u8, codes, undefined, run(p * vl));
        words[p] = join(numbers(q & low_half, d), numbers(q >> @splat(4), d));
    }
    return words;
}

fn along(comptime form: Form, k: usize, n: usize, rows: [*]const [*]const u8, scales: [*]const [*]const u8, out: [*]u32) void {
    const words_deep = pack.depth(true, k);
    const stride = nr * words_deep;
    for (0..n / group) |b| for (0..words_deep) |t| {
        const first = orderedOf(form, rows[2 * t], scales[2 * t], b);
        const second: [2 * pieces]Words = if (2 * t + 1 < k) orderedOf(form, rows[2 * t + 1], scales[2 * t + 1], b) else @splat(@splat(0));
        inline for (0..2 * pieces) |p| {
            const column = b * group + p * vl;
            pack.put(out + column / nr * stride + t * nr + column % nr, (first[p] >> @splat(16)) | (second[p] & upper));
        }
    };
    // Columns behind the last group only exist in panels wider than one.
    if (n % nr != 0) for (0..words_deep) |t| {
        var column = n;
        while (column % nr != 0) : (column += vl) pack.put(out + column / nr * stride + t * nr + column % nr, @as(Words, @splat(0)));
    };
}

/// f32 bits of group `b` of a row, in its order.
inline fn orderedOf(comptime form: Form, row: [*]const u8, scales: [*]const u8, b: usize) [2 * pieces]Words {
    var words: [2 * pieces]Words = undefined;
    if (form == .bf16) {
        inline for (0..2 * pieces) |p| {
            const halves = @as(*align(1) const @Vector(vl, u16), @ptrCast(row + 64 * b + 2 * vl * p)).*;
            words[p] = @as(Words, halves) << @splat(16);
        }
        return words;
    }
    const codes = codesOf(form, row, b);
    const d = scaleOf(form, row, scales, b);
    inline for (0..2 * pieces) |p| {
        const q = @shuffle(u8, codes, undefined, twice(p * vl / 2));
        words[p] = @bitCast(numbers(@select(u8, second_of_two, q >> @splat(4), q & low_half), d));
    }
    return words;
}

const low_half: @Vector(vl, u8) = @splat(15);
const upper: Words = @splat(0xffff_0000);

inline fn numbers(codes: @Vector(vl, u8), d: lanes.Vector(f32)) lanes.Vector(f32) {
    return @as(lanes.Vector(f32), @floatFromInt(expand.doubled(codes))) * d;
}

inline fn join(first: lanes.Vector(f32), second: lanes.Vector(f32)) Words {
    return (@as(Words, @bitCast(first)) >> @splat(16)) | (@as(Words, @bitCast(second)) & upper);
}

inline fn scaleOf(comptime form: Form, row: [*]const u8, scales: [*]const u8, b: usize) lanes.Vector(f32) {
    const e: u32 = if (form == .halves) row[17 * b] else scales[b];
    return @splat(@bitCast(if (e < 2) @as(u32, 0x0020_0000) << @intCast(e) else (e - 1) << 23));
}

/// The codes of a group, neighbours in one byte.
inline fn codesOf(comptime form: Form, row: [*]const u8, b: usize) @Vector(16, u8) {
    if (form == .pairs) return @as(*align(1) const [16]u8, @ptrCast(row + 16 * b)).*;
    const block: @Vector(16, u8) = @as(*align(1) const [16]u8, @ptrCast(row + 17 * b + 1)).*;
    const even: @Vector(8, u8) = @shuffle(u8, block, undefined, @Vector(8, i32){ 0, 2, 4, 6, 8, 10, 12, 14 });
    const odd: @Vector(8, u8) = @shuffle(u8, block, undefined, @Vector(8, i32){ 1, 3, 5, 7, 9, 11, 13, 15 });
    const low: @Vector(8, u8) = (even & @as(@Vector(8, u8), @splat(15))) | (odd << @splat(4));
    const high: @Vector(8, u8) = (even >> @splat(4)) | (odd & @as(@Vector(8, u8), @splat(0xf0)));
    return @shuffle(u8, low, high, @Vector(16, i32){ 0, 1, 2, 3, 4, 5, 6, 7, -1, -2, -3, -4, -5, -6, -7, -8 });
}

fn run(comptime first: i32) @Vector(vl, i32) {
    comptime var list: [vl]i32 = undefined;
    inline for (&list, 0..) |*x, i| x.* = first + @as(i32, i);
    return list;
}

/// Each byte from `first` on for two lanes.
fn twice(comptime first: i32) @Vector(vl, i32) {
    comptime var list: [vl]i32 = undefined;
    inline for (&list, 0..) |*x, i| x.* = first + @as(i32, i) / 2;
    return list;
}

const second_of_two: @Vector(vl, bool) = blk: {
    var list: [vl]bool = undefined;
    for (&list, 0..) |*x, i| x.* = i % 2 == 1;
    break :blk list;
};
