//! Stored block types to f32, a few rows at a time in front of a matrix product: `expand_<type>(n, w, out)`.
//!
//! w: whole blocks of any alignment; out: n numbers. The bits are those of the plain decoders in `tensor/blocks`: each product and
//! sum of the formula is rounded once, nothing is contracted. Does not know: rows, products, threads.

const lanes = @import("lanes.zig");

const vl = lanes.width(f32);
const V = lanes.Vector(f32);
/// Lanes that come from the lower or the upper 16 numbers of a block of 32.
const pieces = 16 / vl;
const I = @Vector(vl, i32);
const U = @Vector(vl, u32);
const Bytes = @Vector(vl, u8);

pub const Kernels = struct {
    pub fn expand_q4_0(n: usize, w: [*]const u8, out: [*]f32) callconv(.c) void {
        for (0..n / 32) |b| {
            const block = w + b * 18;
            const d = splat(half(block));
            inline for (0..pieces) |p| {
                const q = bytesAt(block + 2 + p * vl);
                store(out, b * 32 + p * vl, d * signed(low(q) - of(8)));
                store(out, b * 32 + 16 + p * vl, d * signed(high(q) - of(8)));
            }
        }
    }

    pub fn expand_q4_1(n: usize, w: [*]const u8, out: [*]f32) callconv(.c) void {
        for (0..n / 32) |b| {
            const block = w + b * 20;
            const d = splat(half(block));
            const m = splat(half(block + 2));
            inline for (0..pieces) |p| {
                const q = bytesAt(block + 4 + p * vl);
                store(out, b * 32 + p * vl, d * signed(low(q)) + m);
                store(out, b * 32 + 16 + p * vl, d * signed(high(q)) + m);
            }
        }
    }

    pub fn expand_q5_0(n: usize, w: [*]const u8, out: [*]f32) callconv(.c) void {
        for (0..n / 32) |b| {
            const block = w + b * 22;
            const d = splat(half(block));
            const fifth = word(block + 2);
            inline for (0..pieces) |p| {
                const q = bytesAt(block + 6 + p * vl);
                store(out, b * 32 + p * vl, d * signed((low(q) | fifthBits(fifth, p * vl)) - of(16)));
                store(out, b * 32 + 16 + p * vl, d * signed((high(q) | fifthBits(fifth, 16 + p * vl)) - of(16)));
            }
        }
    }

    pub fn expand_q5_1(n: usize, w: [*]const u8, out: [*]f32) callconv(.c) void {
        for (0..n / 32) |b| {
            const block = w + b * 24;
            const d = splat(half(block));
            const m = splat(half(block + 2));
            const fifth = word(block + 4);
            inline for (0..pieces) |p| {
                const q = bytesAt(block + 8 + p * vl);
                store(out, b * 32 + p * vl, d * signed(low(q) | fifthBits(fifth, p * vl)) + m);
                store(out, b * 32 + 16 + p * vl, d * signed(high(q) | fifthBits(fifth, 16 + p * vl)) + m);
            }
        }
    }

    pub fn expand_q4_k(n: usize, w: [*]const u8, out: [*]f32) callconv(.c) void {
        for (0..n / 256) |b| {
            const block = w + b * 144;
            const scales = Scales.read(block);
            inline for (0..4) |g| {
                inline for (0..32 / vl) |p| {
                    const q = bytesAt(block + 16 + 32 * g + p * vl);
                    const at = b * 256 + 64 * g + p * vl;
                    store(out, at, scales.factor[2 * g] * signed(low(q)) - scales.minimum[2 * g]);
                    store(out, at + 32, scales.factor[2 * g + 1] * signed(high(q)) - scales.minimum[2 * g + 1]);
                }
            }
        }
    }

    pub fn expand_q5_k(n: usize, w: [*]const u8, out: [*]f32) callconv(.c) void {
        for (0..n / 256) |b| {
            const block = w + b * 176;
            const scales = Scales.read(block);
            inline for (0..32 / vl) |p| {
                const fifth: U = bytesAt(block + 16 + p * vl);
                inline for (0..4) |g| {
                    const q = bytesAt(block + 48 + 32 * g + p * vl);
                    const at = b * 256 + 64 * g + p * vl;
                    const first = (fifth >> @splat(2 * g) & all(1)) << @splat(4);
                    const second = (fifth >> @splat(2 * g + 1) & all(1)) << @splat(4);
                    store(out, at, scales.factor[2 * g] * signed(low(q) | asSigned(first)) - scales.minimum[2 * g]);
                    store(out, at + 32, scales.factor[2 * g + 1] * signed(high(q) | asSigned(second)) - scales.minimum[2 * g + 1]);
                }
            }
        }
    }

    pub fn expand_q6_k(n: usize, w: [*]const u8, out: [*]f32) callconv(.c) void {
        for (0..n / 256) |b| {
            const block = w + b * 210;
            const d = half(block + 208);
            inline for (0..2) |p| {
                inline for (0..32 / vl) |s| {
                    const upper: U = bytesAt(block + 128 + 32 * p + s * vl);
                    const lower = [2]Bytes{ bytesAt(block + 64 * p + s * vl), bytesAt(block + 64 * p + 32 + s * vl) };
                    inline for (0..4) |t| {
                        const scale: i8 = @bitCast(block[192 + 8 * p + 2 * t + s * vl / 16]);
                        const nibble = if (t < 2) low(lower[t % 2]) else high(lower[t % 2]);
                        const q = (nibble | asSigned((upper >> @splat(2 * t) & all(3)) << @splat(4))) - of(32);
                        store(out, b * 256 + 128 * p + 32 * t + s * vl, splat(d * @as(f32, scale)) * signed(q));
                    }
                }
            }
        }
    }

    pub fn expand_mxfp4(n: usize, w: [*]const u8, out: [*]f32) callconv(.c) void {
        for (0..n / 32) |b| {
            const block = w + b * 17;
            const e: u32 = block[0];
            const d = splat(@bitCast(if (e < 2) @as(u32, 0x0020_0000) << @intCast(e) else (e - 1) << 23));
            inline for (0..pieces) |p| {
                const q = bytesAt(block + 1 + p * vl);
                store(out, b * 32 + p * vl, signed(doubled(q & @as(Bytes, @splat(15)))) * d);
                store(out, b * 32 + 16 + p * vl, signed(doubled(q >> @splat(4))) * d);
            }
        }
    }
};

/// MXFP4 as Hugging Face keeps it, codes of neighbours in one byte and the scales apart.
pub const Pairs = struct {
    pub fn expand_mxfp4_pairs(n: usize, codes: [*]const u8, scales: [*]const u8, out: [*]f32) callconv(.c) void {
        for (0..n / 32) |b| {
            const e: u32 = scales[b];
            const d = splat(@bitCast(if (e < 2) @as(u32, 0x0020_0000) << @intCast(e) else (e - 1) << 23));
            const block: @Vector(16, u8) = @as(*align(1) const [16]u8, @ptrCast(codes + 16 * b)).*;
            inline for (0..32 / vl) |p| {
                const q = @shuffle(u8, block, undefined, twice(p * vl / 2));
                const code = @select(u8, second, q >> @splat(4), q & @as(Bytes, @splat(15)));
                store(out, b * 32 + p * vl, signed(doubled(code)) * d);
            }
        }
    }

    /// Each byte from `first` on for two lanes.
    fn twice(comptime first: i32) @Vector(vl, i32) {
        var lanes_of: [vl]i32 = undefined;
        for (&lanes_of, 0..) |*lane, i| lane.* = first + @as(i32, i) / 2;
        return lanes_of;
    }

    const second: @Vector(vl, bool) = blk: {
        var list: [vl]bool = undefined;
        for (&list, 0..) |*x, i| x.* = i % 2 == 1;
        break :blk list;
    };
};

/// Factor and minimum of each of the 8 parts of a q4_K or q5_K block, spread over a register.
const Scales = struct {
    factor: [8]V,
    minimum: [8]V,

    inline fn read(block: [*]const u8) Scales {
        const d = half(block);
        const dmin = half(block + 2);
        const s = block + 4;
        var result: Scales = undefined;
        inline for (0..8) |j| {
            const scale = if (j < 4) s[j] & 63 else (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
            const minimum = if (j < 4) s[j + 4] & 63 else (s[j + 4] >> 4) | (s[j] >> 6) << 4;
            result.factor[j] = splat(d * @as(f32, scale));
            result.minimum[j] = splat(dmin * @as(f32, minimum));
        }
        return result;
    }
};

/// Twice the value of each 4-bit float: 0 1 2 3 4 6 8 12 and their negatives. The three straight pieces of that curve, the
/// highest of which is the value.
pub inline fn doubled(code: Bytes) I {
    const B = @Vector(vl, i8);
    const x: B = @bitCast(code & @as(Bytes, @splat(7)));
    const two = x + x;
    const size = @max(x, @max(two - @as(B, @splat(4)), two + two - @as(B, @splat(16))));
    return @select(i8, code >= @as(Bytes, @splat(8)), -size, size);
}

inline fn half(p: [*]const u8) f32 {
    return @as(*align(1) const f16, @ptrCast(p)).*;
}

inline fn word(p: [*]const u8) u32 {
    return @as(*align(1) const u32, @ptrCast(p)).*;
}

inline fn bytesAt(p: [*]const u8) Bytes {
    return @as(*align(1) const Bytes, @ptrCast(p)).*;
}

inline fn low(q: Bytes) I {
    return @as(@Vector(vl, i32), q & @as(Bytes, @splat(15)));
}

inline fn high(q: Bytes) I {
    return @as(@Vector(vl, i32), q >> @splat(4));
}

/// Bits first … first + vl - 1 of the word, each as the fifth bit of its lane.
inline fn fifthBits(bits: u32, comptime first: comptime_int) I {
    const places = comptime blk: {
        var list: [vl]u5 = undefined;
        for (&list, first..) |*place, i| place.* = i;
        break :blk list;
    };
    return asSigned((all(bits) >> places & all(1)) << @splat(4));
}

inline fn all(x: u32) U {
    return @splat(x);
}

inline fn of(x: i32) I {
    return @splat(x);
}

inline fn asSigned(x: U) I {
    return @bitCast(x);
}

inline fn signed(x: I) V {
    return @floatFromInt(x);
}

inline fn splat(x: f32) V {
    return @splat(x);
}

inline fn store(out: [*]f32, at: usize, v: V) void {
    lanes.store(f32, out + at, v);
}
