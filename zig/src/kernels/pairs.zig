//! Two neighbouring 16-bit numbers at once: the product under words.zig and under the minima of panels.zig.

const lanes = @import("lanes.zig");

/// acc + a.low·b.low + a.high·b.high, lane by lane; the halves of a lane are signed 16-bit numbers. V: i32 lanes.
pub inline fn add(acc: anytype, a: @TypeOf(acc), b: @TypeOf(acc)) @TypeOf(acc) {
    const V = @TypeOf(acc);
    if (lanes.has_bf16_product) { // The level with one has the other.
        var r = acc;
        asm ("vpdpwssd %[b], %[a], %[r]"
            : [r] "+v" (r),
            : [a] "v" (a),
              [b] "v" (b),
        );
        return r;
    }
    const half: @Vector(@typeInfo(V).vector.len, u5) = @splat(16);
    return acc + ((a << half) >> half) * ((b << half) >> half) + (a >> half) * (b >> half);
}
