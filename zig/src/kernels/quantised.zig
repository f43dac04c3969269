//! Products of quantised weights, as a file stores them, with activations of 8 bits: the inner loop of generation.
//!
//! `matvec8_<type>(rows, n, w, row_bytes, tokens, stride, x, out, ld)`: out[t·ld + r] = Σ row r · x[t], rows `row_bytes` apart, n a
//! multiple of the type's block. A few tokens meet a row while it is unpacked; each gets what it would get alone.
//! Sums within a block are whole numbers and exact; those over blocks are f32 in a fixed order.
//! Weights are made unsigned by an offset, because the instruction that multiplies and adds four bytes at once wants
//! one unsigned side; what that adds is known from `Activations.fours`, and every sum begins with its negative.
//! Does not know: rows of a model, threads.

const lanes = @import("lanes.zig");
const Activations = @import("activations.zig").Activations;
const Offset = @import("activations.zig").Offset;

const vl = lanes.width(f32);
const V = lanes.Vector(f32);

const U64 = @Vector(64, u8);
const S64 = @Vector(64, i8);
const U32 = @Vector(32, u8);
const I16 = @Vector(16, i32);
const F16 = @Vector(16, f32);

const has_byte_product = lanes.has_bf16_product; // The level with one has the other.

/// acc[i] + Σ of the four products at 4i.
pub inline fn dot4(acc: I16, u: U64, s: S64) I16 {
    if (has_byte_product) {
        var r = acc;
        asm ("vpdpbusd %[b], %[a], %[r]"
            : [r] "+v" (r),
            : [a] "v" (u),
              [b] "v" (s),
        );
        return r;
    }
    // A product of an unsigned and a signed byte fits in 16 bits.
    const product = @as(@Vector(64, i16), u) * @as(@Vector(64, i16), s);
    var sum = acc;
    inline for (every_fourth) |order| sum += @as(I16, @shuffle(i16, product, undefined, order));
    return sum;
}

/// 0 4 8 …, 1 5 9 …, and so on.
const every_fourth = blk: {
    var lists: [4][16]i32 = undefined;
    for (&lists, 0..) |*list, j| for (list, 0..) |*place, i| {
        place.* = 4 * i + j;
    };
    break :blk lists;
};

pub const Kernels = struct {
    /// n numbers as 8 bits, in groups of 32.
    pub fn round_blocks(n: usize, x: [*]const f32, out: *const Activations) callconv(.c) void {
        round(32, n, x, out);
    }
    /// The same in groups of 256.
    pub fn round_superblocks(n: usize, x: [*]const f32, out: *const Activations) callconv(.c) void {
        round(256, n, x, out);
    }

    pub fn matvec8_q8_0(rows: usize, n: usize, w: [*]const u8, row_bytes: usize, tokens: usize, stride: usize, x: *const Activations, out: [*]f32, ld: usize) callconv(.c) void {
        eachRow(Q8_0, rows, n, w, row_bytes, tokens, stride, x, out, ld);
    }
    pub fn matvec8_q4_0(rows: usize, n: usize, w: [*]const u8, row_bytes: usize, tokens: usize, stride: usize, x: *const Activations, out: [*]f32, ld: usize) callconv(.c) void {
        eachRow(Q4_0, rows, n, w, row_bytes, tokens, stride, x, out, ld);
    }
    pub fn matvec8_q4_1(rows: usize, n: usize, w: [*]const u8, row_bytes: usize, tokens: usize, stride: usize, x: *const Activations, out: [*]f32, ld: usize) callconv(.c) void {
        eachRow(Q4_1, rows, n, w, row_bytes, tokens, stride, x, out, ld);
    }
    pub fn matvec8_q5_0(rows: usize, n: usize, w: [*]const u8, row_bytes: usize, tokens: usize, stride: usize, x: *const Activations, out: [*]f32, ld: usize) callconv(.c) void {
        eachRow(Q5_0, rows, n, w, row_bytes, tokens, stride, x, out, ld);
    }
    pub fn matvec8_q5_1(rows: usize, n: usize, w: [*]const u8, row_bytes: usize, tokens: usize, stride: usize, x: *const Activations, out: [*]f32, ld: usize) callconv(.c) void {
        eachRow(Q5_1, rows, n, w, row_bytes, tokens, stride, x, out, ld);
    }
    pub fn matvec8_mxfp4(rows: usize, n: usize, w: [*]const u8, row_bytes: usize, tokens: usize, stride: usize, x: *const Activations, out: [*]f32, ld: usize) callconv(.c) void {
        eachRow(Mxfp4, rows, n, w, row_bytes, tokens, stride, x, out, ld);
    }

    pub fn matvec8_q4_k(rows: usize, n: usize, w: [*]const u8, row_bytes: usize, tokens: usize, stride: usize, x: *const Activations, out: [*]f32, ld: usize) callconv(.c) void {
        eachRow(Q4K, rows, n, w, row_bytes, tokens, stride, x, out, ld);
    }
    pub fn matvec8_q5_k(rows: usize, n: usize, w: [*]const u8, row_bytes: usize, tokens: usize, stride: usize, x: *const Activations, out: [*]f32, ld: usize) callconv(.c) void {
        eachRow(Q5K, rows, n, w, row_bytes, tokens, stride, x, out, ld);
    }
    pub fn matvec8_q6_k(rows: usize, n: usize, w: [*]const u8, row_bytes: usize, tokens: usize, stride: usize, x: *const Activations, out: [*]f32, ld: usize) callconv(.c) void {
        eachRow(Q6K, rows, n, w, row_bytes, tokens, stride, x, out, ld);
    }
};

fn round(comptime group: comptime_int, n: usize, x: [*]const f32, out: *const Activations) void {
    const ones: U64 = @splat(1);
    for (0..n / group) |g| {
        const from = x + g * group;
        var most: V = @splat(0);
        inline for (0..group / vl) |p| {
            most = lanes.largerSize(most, lanes.load(f32, from + p * vl));
        }
        const largest = lanes.largestSize(most);
        // NaN when a number is not finite, and so is the result.
        out.scales[g] = largest / 127 + (largest - largest);
        const inverse: V = @splat(if (largest > 0) 127 / largest else 0);
        // The whole number nearest to v stands in the low bits of v + magic, and so in its first byte.
        const magic: V = @splat(0x1.8p23);
        inline for (0..group / vl) |p| {
            const shifted: @Vector(vl, u32) = @bitCast(lanes.load(f32, from + p * vl) * inverse + magic);
            const bytes: @Vector(vl, u8) = @truncate(shifted);
            out.q[g * group + p * vl ..][0..vl].* = @as([vl]i8, @bitCast(bytes));
        }
        inline for (0..group / 32) |b| {
            const at = g * group + b * 32;
            var numbers: [64]i8 = @splat(0);
            numbers[0..32].* = out.q[at..][0..32].*;
            const parts: [16]i32 = dot4(@splat(0), ones, numbers);
            const first: @Vector(8, i32) = parts[0..8].*;
            out.fours[at / 4 ..][0..8].* = first;
            const low = lanes.sum(@Vector(4, i32), parts[0..4].*);
            const high = lanes.sum(@Vector(4, i32), parts[4..8].*);
            out.half_sums[at / 16] = @truncate(low);
            out.half_sums[at / 16 + 1] = @truncate(high);
            out.sums[at / 32] = @truncate(low + high);
        }
    }
}

/// Two blocks of 32 at a time share one register of sums; the lower half is the first block's.
/// Activations that meet a row at a time, unpacked once for all of them.
const tile = if (has_byte_product) 4 else 2;
/// Rows that small blocks meet a tile with: what is made of the activations serves all of them.
const rows_together = 2;

/// x[t] begins `stride` numbers behind x[t - 1] in each array, counted in numbers of q; out[t] `ld` behind out[t - 1]. Each result is
/// computed as if it were the only one.
fn eachRow(comptime Type: type, rows: usize, n: usize, w: [*]const u8, row_bytes: usize, tokens: usize, stride: usize, x: *const Activations, out: [*]f32, ld: usize) void {
    if (tokens == 1) {
        for (0..rows) |r| rowsTimes(Type, 1, 1, n, w + r * row_bytes, row_bytes, stride, x, 0, out + r, ld);
        return;
    }
    var r: usize = 0;
    if (Type.length == 32) {
        while (r + rows_together <= rows) : (r += rows_together) tokensTimes(Type, rows_together, n, w + r * row_bytes, row_bytes, tokens, stride, x, out + r, ld);
    }
    while (r < rows) : (r += 1) tokensTimes(Type, 1, n, w + r * row_bytes, row_bytes, tokens, stride, x, out + r, ld);
}

noinline fn tokensTimes(comptime Type: type, comptime rows: comptime_int, n: usize, w: [*]const u8, row_bytes: usize, tokens: usize, stride: usize, x: *const Activations, out: [*]f32, ld: usize) void {
    var t: usize = 0;
    while (t + tile <= tokens) : (t += tile) rowsTimes(Type, rows, tile, n, w, row_bytes, stride, x, t, out, ld);
    inline for (1..tile) |left| {
        if (tokens - t == left) rowsTimes(Type, rows, left, n, w, row_bytes, stride, x, t, out, ld);
    }
}

inline fn rowsTimes(comptime Type: type, comptime rows: comptime_int, comptime count: comptime_int, n: usize, w: [*]const u8, row_bytes: usize, stride: usize, x: *const Activations, first: usize, out: [*]f32, ld: usize) void {
    var each: [count]Activations = undefined;
    inline for (0..count) |t| {
        const at = (first + t) * stride;
        each[t] = .{ .q = x.q + at, .fours = x.fours + at / 4, .scales = x.scales + at / Type.group, .sums = x.sums + at / 32, .half_sums = x.half_sums + at / 16 };
    }
    const found = if (Type.length == 32) smallBlocks(Type, rows, count, n, w, row_bytes, each) else [1][count]f32{Type.dots(count, n, w, each)};
    inline for (0..rows) |r| inline for (0..count) |t| {
        out[(first + t) * ld + r] = found[r][t];
    };
}

inline fn smallBlocks(comptime Type: type, comptime rows: comptime_int, comptime count: comptime_int, n: usize, w: [*]const u8, row_bytes: usize, x: [count]Activations) [rows][count]f32 {
    @setEvalBranchQuota(10_000);
    const blocks = n / 32;
    var acc: [rows][count]F16 = @splat(@splat(@splat(0)));
    var minima: [rows][count]f32 = @splat(@splat(0));
    var b: usize = 0;
    while (b + 2 <= blocks) : (b += 2) {
        var numbers: [rows]U64 = undefined;
        var steps: [rows]F16 = undefined;
        inline for (0..rows) |r| {
            const one = w + r * row_bytes + b * Type.bytes;
            const two = one + Type.bytes;
            lanes.ahead(one, 2 * Type.bytes);
            numbers[r] = if (Type == Mxfp4 and has_byte_product) Mxfp4.pair(one) else both(Type.numbers(one), Type.numbers(two));
            steps[r] = halves(Type.scale(one), Type.scale(two));
        }
        inline for (0..count) |t| {
            const begin = before(Type.offset, x[t].fours[b * 8 ..][0..16].*);
            const q: S64 = x[t].q[b * 32 ..][0..64].*;
            const of_x = halves(x[t].scales[b], x[t].scales[b + 1]);
            inline for (0..rows) |r| {
                acc[r][t] = mulAdd(@floatFromInt(dot4(begin, numbers[r], q)), steps[r] * of_x, acc[r][t]);
                if (Type.has_minimum) {
                    const one = w + r * row_bytes + b * Type.bytes;
                    minima[r][t] += minimumOf(Type, one, &x[t], b) + minimumOf(Type, one + Type.bytes, &x[t], b + 1);
                }
            }
        }
    }
    if (b < blocks) inline for (0..rows) |r| {
        const last = w + r * row_bytes + b * Type.bytes;
        var numbers: [64]u8 = @splat(0);
        numbers[0..32].* = Type.numbers(last);
        inline for (0..count) |t| {
            var q: [64]i8 = @splat(0);
            q[0..32].* = x[t].q[b * 32 ..][0..32].*;
            var sums_of_q: [16]i32 = @splat(0);
            sums_of_q[0..8].* = x[t].fours[b * 8 ..][0..8].*;
            const sums = dot4(before(Type.offset, sums_of_q), numbers, q);
            acc[r][t] = mulAdd(@floatFromInt(sums), @splat(Type.scale(last) * x[t].scales[b]), acc[r][t]);
            if (Type.has_minimum) minima[r][t] += minimumOf(Type, last, &x[t], b);
        }
    };
    var out: [rows][count]f32 = undefined;
    inline for (0..rows) |r| inline for (0..count) |t| {
        out[r][t] = lanes.sum(F16, acc[r][t]) + minima[r][t];
    };
    return out;
}

/// What the offset adds to a sum, negated.
inline fn before(comptime offset: i32, fours: I16) I16 {
    return fours * @as(I16, @splat(-offset));
}

inline fn minimumOf(comptime Type: type, block: [*]const u8, x: *const Activations, b: usize) f32 {
    return Type.minimum(block) * (x.scales[b] * @as(f32, @floatFromInt(x.sums[b])));
}

/// Each type: bytes of a block, the 32 numbers with the offset that makes them unsigned, their step.
pub const Q8_0 = struct {
    pub const length = 32;
    pub const group = 32;
    pub const part = 32;
    pub const bytes = 34;
    pub const offset = Offset.q8_0;
    pub const has_minimum = false;
    inline fn scale(block: [*]const u8) f32 {
        return half(block);
    }
    inline fn numbers(block: [*]const u8) U32 {
        return @as(U32, block[2..][0..32].*) ^ @as(U32, @splat(0x80));
    }
    pub fn open(block: [*]const u8, out: *Open(@This())) void {
        openSmall(@This(), block, out);
    }
};

pub const Q4_0 = Nibbles(false, false, Offset.q4_0);
pub const Q4_1 = Nibbles(false, true, 0);
pub const Q5_0 = Nibbles(true, false, Offset.q5_0);
pub const Q5_1 = Nibbles(true, true, 0);

/// A step, maybe a minimum, maybe the fifth bits, and four bits of each number.
fn Nibbles(comptime has_fifths: bool, comptime with_minimum: bool, comptime added: i32) type {
    return struct {
        pub const length = 32;
        pub const group = 32;
        pub const part = 32;
        pub const bytes = low + 16;
        pub const offset = added;
        pub const has_minimum = with_minimum;

        const high = if (with_minimum) 4 else 2;
        const low = if (has_fifths) high + 4 else high;

        inline fn scale(block: [*]const u8) f32 {
            return half(block);
        }
        inline fn minimum(block: [*]const u8) f32 {
            return half(block + 2);
        }
        inline fn numbers(block: [*]const u8) U32 {
            const four = nibbles(block[low..][0..16].*);
            return if (has_fifths) four | fifths(block[high..][0..4].*) else four;
        }
        pub fn open(block: [*]const u8, out: *Open(@This())) void {
            openSmall(@This(), block, out);
        }
    };
}

/// Twice the 4-bit floats, 0 1 2 3 4 6 8 12 and their negatives, are whole numbers.
pub const Mxfp4 = struct {
    pub const length = 32;
    pub const group = 32;
    pub const part = 32;
    pub const bytes = 17;
    pub const offset = Offset.mxfp4;
    pub const has_minimum = false;
    inline fn scale(block: [*]const u8) f32 {
        return scales[block[0]];
    }
    /// Half of 2^(e - 127). Looked up: computed, two at a time, it meets numbers below the normal ones, which are slow to multiply.
    const scales: [256]f32 = blk: {
        var list: [256]f32 = undefined;
        for (&list, 0..) |*s, e| s.* = @bitCast(if (e < 2) @as(u32, 0x0020_0000) << e else @as(u32, e - 1) << 23);
        break :blk list;
    };

    /// The numbers of two blocks that lie side by side, where bytes can be looked up in a register.
    inline fn pair(blocks: [*]const u8) U64 {
        const twice = comptime places(16, false) ++ places(16, false) ++ places(16, true) ++ places(16, true);
        const codes: @Vector(32, u16) = @bitCast(@shuffle(u8, blocks[1..17].*, blocks[bytes + 1 ..][0..16].*, twice));
        const low_then_high: @Vector(32, u4) = comptime ([8]u4{ 0, 0, 0, 0, 0, 0, 0, 0 } ++ [8]u4{ 4, 4, 4, 4, 4, 4, 4, 4 }) ++ ([8]u4{ 0, 0, 0, 0, 0, 0, 0, 0 } ++ [8]u4{ 4, 4, 4, 4, 4, 4, 4, 4 });
        const nibble = @as(U64, @bitCast(codes >> low_then_high)) & @as(U64, @splat(15));
        var found: U64 = undefined;
        asm ("vpshufb %[code], %[table], %[found]"
            : [found] "=v" (found),
            : [code] "v" (nibble),
              [table] "v" (@as(U64, values)),
        );
        return found;
    }
    /// With the offset, four times: each quarter of a register looks up in its own.
    const values: [64]u8 = blk: {
        const one = [16]u8{ 12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0 };
        break :blk one ++ one ++ one ++ one;
    };

    inline fn numbers(block: [*]const u8) U32 {
        const code = nibbles(block[1..][0..16].*);
        const size = code & of(7);
        // The three straight pieces of the curve, the highest of which is the value; saturation keeps them above zero.
        const value = @max(size, @max((size + size) -| of(4), (size << @splat(2)) -| of(16)));
        return @select(u8, code >= of(8), of(12) - value, of(12) + value);
    }
    pub fn open(block: [*]const u8, out: *Open(@This())) void {
        openSmall(@This(), block, out);
    }
};

/// A block taken apart: its numbers with the offset, and scale and minimum of each part. Of several parts the minima are whole
/// numbers with one step.
pub fn Open(comptime Type: type) type {
    const parts = Type.length / Type.part;
    return struct {
        numbers: [Type.length]u8,
        scales: [parts]f32,
        minima: [parts](if (parts == 1) f32 else i16),
        minimum_step: f32,
    };
}

inline fn openSmall(comptime Type: type, block: [*]const u8, out: *Open(Type)) void {
    out.numbers = Type.numbers(block);
    out.scales[0] = Type.scale(block);
    if (Type.has_minimum) out.minima[0] = Type.minimum(block);
}

inline fn of(comptime value: u8) U32 {
    return @splat(value);
}

/// Low halves of 16 bytes, then the high ones.
inline fn nibbles(q: @Vector(16, u8)) U32 {
    return joined(16, q & @as(@Vector(16, u8), @splat(15)), q >> @splat(4));
}

/// 16 where the bit of the number is set.
inline fn fifths(bits: [4]u8) U32 {
    const set: @Vector(32, bool) = @bitCast(@as(u32, @bitCast(bits)));
    return @select(u8, set, of(16), of(0));
}

/// q4_K and q5_K: eight blocks of 32 with a scale and a minimum each. 64 bytes hold four blocks: low halves of the first 32 the first
/// block, high ones the second, and so on.
fn Q45(comptime fifth: bool) type {
    return struct {
        pub const length = 256;
        pub const group = 256;
        pub const part = 32;
        pub const bytes = if (fifth) 176 else 144;
        pub const offset = 0;
        pub const has_minimum = true;

        const Unpacked = struct { scales: @Vector(8, u8), minima: @Vector(8, u8) };

        /// The 6-bit scales and minima of a superblock, unpacked four at a time.
        inline fn unpack(block: [*]const u8) Unpacked {
            const words = @as(*align(1) const [3]u32, @ptrCast(block + 4)).*;
            return .{
                .scales = @bitCast([2]u32{ words[0] & 0x3f3f3f3f, (words[2] & 0x0f0f0f0f) | (words[0] >> 6 & 0x03030303) << 4 }),
                .minima = @bitCast([2]u32{ words[1] & 0x3f3f3f3f, (words[2] >> 4 & 0x0f0f0f0f) | (words[1] >> 6 & 0x03030303) << 4 }),
            };
        }

        /// Blocks 4h and 4h + 2, one behind the other.
        inline fn low(block: [*]const u8, comptime h: comptime_int) U64 {
            const q: U64 = block[bytes - 128 + 64 * h ..][0..64].*;
            return q & @as(U64, @splat(15)) | fifths64(block, 4 * h, 4 * h + 2);
        }

        /// Blocks 4h + 1 and 4h + 3.
        inline fn high(block: [*]const u8, comptime h: comptime_int) U64 {
            const q: U64 = block[bytes - 128 + 64 * h ..][0..64].*;
            return q >> @splat(4) | fifths64(block, 4 * h + 1, 4 * h + 3);
        }

        inline fn fifths64(block: [*]const u8, comptime first: comptime_int, comptime second: comptime_int) U64 {
            if (!fifth) return @splat(0);
            const bits = both(block[16..][0..32].*, block[16..][0..32].*);
            const mask: U64 = comptime both(@as([32]u8, @splat(1 << first)), @as([32]u8, @splat(1 << second)));
            return @select(u8, bits & mask != @as(U64, @splat(0)), @as(U64, @splat(16)), @as(U64, @splat(0)));
        }

        inline fn dots(comptime count: comptime_int, n: usize, w: [*]const u8, x: [count]Activations) [count]f32 {
            var acc: [count]F16 = @splat(@splat(0));
            var minima: [count]@Vector(8, f32) = @splat(@splat(0));
            for (0..n / 256) |s| {
                const block = w + s * bytes;
                lanes.ahead(block, bytes);
                const unpacked = unpack(block);
                const d = half(block);
                const dmin = half(block + 2);
                var sums: [count]I16 = @splat(@splat(0));
                inline for (0..2) |h| {
                    const lows = low(block, h);
                    const of_lows = eights(unpacked.scales, 4 * h, 4 * h + 2);
                    const highs = high(block, h);
                    const of_highs = eights(unpacked.scales, 4 * h + 1, 4 * h + 3);
                    inline for (0..count) |t| {
                        const at = x[t].q + s * 256 + 128 * h;
                        sums[t] += dot4(@splat(0), lows, blocksOf(at, at + 64)) * of_lows;
                        sums[t] += dot4(@splat(0), highs, blocksOf(at + 32, at + 96)) * of_highs;
                    }
                }
                inline for (0..count) |t| {
                    const step = x[t].scales[s];
                    acc[t] = mulAdd(@floatFromInt(sums[t]), @splat(d * step), acc[t]);
                    const of_x: @Vector(8, i32) = @as(@Vector(8, i16), x[t].sums[s * 8 ..][0..8].*);
                    const below: @Vector(8, f32) = @floatFromInt(of_x * @as(@Vector(8, i32), unpacked.minima));
                    minima[t] = mulAdd8(below, @splat(dmin * step), minima[t]);
                }
            }
            var out: [count]f32 = undefined;
            inline for (0..count) |t| out[t] = lanes.sum(F16, acc[t]) - lanes.sum(@Vector(8, f32), minima[t]);
            return out;
        }

        pub fn open(block: [*]const u8, out: *Open(@This())) void {
            const unpacked = unpack(block);
            inline for (0..2) |h| {
                const lows: [64]u8 = low(block, h);
                const highs: [64]u8 = high(block, h);
                out.numbers[128 * h ..][0..32].* = lows[0..32].*;
                out.numbers[128 * h + 32 ..][0..32].* = highs[0..32].*;
                out.numbers[128 * h + 64 ..][0..32].* = lows[32..64].*;
                out.numbers[128 * h + 96 ..][0..32].* = highs[32..64].*;
            }
            out.scales = @as(@Vector(8, f32), @floatFromInt(unpacked.scales)) * @as(@Vector(8, f32), @splat(half(block)));
            out.minima = @as(@Vector(8, i16), unpacked.minima);
            out.minimum_step = -half(block + 2);
        }
    };
}

pub const Q4K = Q45(false);
pub const Q5K = Q45(true);

/// Sixteen blocks of 16 with an 8-bit scale each; 64 bytes of four bits and 32 of two hold 128 numbers.
pub const Q6K = struct {
    pub const length = 256;
    pub const group = 256;
    pub const part = 16;
    pub const bytes = 210;
    pub const offset = Offset.q6_k;
    pub const has_minimum = false;

    const three: U32 = @splat(3);
    const four: @Vector(32, u3) = @splat(4);

    /// Numbers 128h … 128h + 63.
    inline fn low(block: [*]const u8, comptime h: comptime_int) U64 {
        const q: U64 = block[64 * h ..][0..64].*;
        const upper: U32 = block[128 + 32 * h ..][0..32].*;
        return q & @as(U64, @splat(15)) | joined(32, (upper & three) << four, (upper >> @splat(2) & three) << four);
    }

    /// Numbers 128h + 64 … 128h + 127.
    inline fn high(block: [*]const u8, comptime h: comptime_int) U64 {
        const q: U64 = block[64 * h ..][0..64].*;
        const upper: U32 = block[128 + 32 * h ..][0..32].*;
        return q >> @splat(4) | joined(32, (upper >> @splat(4) & three) << four, upper >> @splat(6) << four);
    }

    inline fn dots(comptime count: comptime_int, n: usize, w: [*]const u8, x: [count]Activations) [count]f32 {
        var acc: [count]F16 = @splat(@splat(0));
        for (0..n / 256) |s| {
            const block = w + s * bytes;
            lanes.ahead(block, bytes);
            const scales: @Vector(16, i8) = @bitCast(block[192..][0..16].*);
            const d = half(block + 208);
            var sums: [count]I16 = @splat(@splat(0));
            inline for (0..2) |h| {
                const at = s * 256 + 128 * h;
                const lows = low(block, h);
                const of_lows = fourLanes(scales, 8 * h);
                const highs = high(block, h);
                const of_highs = fourLanes(scales, 8 * h + 4);
                inline for (0..count) |t| {
                    sums[t] += dot4(before(offset, x[t].fours[at / 4 ..][0..16].*), lows, x[t].q[at..][0..64].*) * of_lows;
                    sums[t] += dot4(before(offset, x[t].fours[at / 4 + 16 ..][0..16].*), highs, x[t].q[at + 64 ..][0..64].*) * of_highs;
                }
            }
            inline for (0..count) |t| acc[t] = mulAdd(@floatFromInt(sums[t]), @splat(d * x[t].scales[s]), acc[t]);
        }
        var out: [count]f32 = undefined;
        inline for (0..count) |t| out[t] = lanes.sum(F16, acc[t]);
        return out;
    }

    pub fn open(block: [*]const u8, out: *Open(@This())) void {
        inline for (0..2) |h| {
            out.numbers[128 * h ..][0..64].* = low(block, h);
            out.numbers[128 * h + 64 ..][0..64].* = high(block, h);
        }
        const scales: @Vector(16, i8) = @bitCast(block[192..][0..16].*);
        out.scales = @as(F16, @floatFromInt(scales)) * @as(F16, @splat(half(block + 208)));
    }
};

/// Eight lanes of scale `a`, eight of scale `b`.
inline fn eights(scales: @Vector(8, u8), comptime a: i32, comptime b: i32) I16 {
    const order: @Vector(16, i32) = comptime .{ a, a, a, a, a, a, a, a, b, b, b, b, b, b, b, b };
    return @as(I16, @shuffle(u8, scales, undefined, order));
}

/// Four lanes of each of four scales.
inline fn fourLanes(scales: @Vector(16, i8), comptime first: i32) I16 {
    const at: [4]i32 = .{ first, first + 1, first + 2, first + 3 };
    const order = comptime [4]i32{ at[0], at[0], at[0], at[0] } ++ [4]i32{ at[1], at[1], at[1], at[1] } ++ [4]i32{ at[2], at[2], at[2], at[2] } ++ [4]i32{ at[3], at[3], at[3], at[3] };
    return @as(I16, @shuffle(i8, scales, undefined, order));
}

inline fn blocksOf(first: [*]const i8, second: [*]const i8) S64 {
    const a: @Vector(32, u8) = @bitCast(first[0..32].*);
    const b: @Vector(32, u8) = @bitCast(second[0..32].*);
    return @bitCast(joined(32, a, b));
}

inline fn both(a: [32]u8, b: [32]u8) U64 {
    return joined(32, a, b);
}

inline fn joined(comptime n: comptime_int, a: @Vector(n, u8), b: @Vector(n, u8)) @Vector(2 * n, u8) {
    return @shuffle(u8, a, b, in_order[0..n].* ++ of_the_second[0..n].*);
}

const in_order = places(32, false);
const of_the_second = places(32, true);

fn places(comptime n: comptime_int, comptime second: bool) [n]i32 {
    var list: [n]i32 = undefined;
    for (&list, 0..) |*place, i| place.* = if (second) ~@as(i32, i) else i;
    return list;
}

inline fn halves(a: f32, b: f32) F16 {
    return .{ a, a, a, a, a, a, a, a, b, b, b, b, b, b, b, b };
}

inline fn half(p: [*]const u8) f32 {
    return @as(*align(1) const f16, @ptrCast(p)).*;
}

pub inline fn mulAdd(a: F16, b: F16, c: F16) F16 {
    return if (lanes.has_fma) @mulAdd(F16, a, b, c) else a * b + c;
}

inline fn mulAdd8(a: @Vector(8, f32), b: @Vector(8, f32), c: @Vector(8, f32)) @Vector(8, f32) {
    return if (lanes.has_fma) @mulAdd(@Vector(8, f32), a, b, c) else a * b + c;
}
