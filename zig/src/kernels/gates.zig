//! SwiGLU over a gate and an up that are kept as bf16: what a step in bf16 holds from forward to backward.
//!
//! Forward rounds both to the nearest bf16 and goes on with the rounded numbers, as a linear layer whose result is bf16 would;
//! so backward, and a second forward pass, see exactly what the first one used. Arithmetic is f32, as in rows.zig.

const lanes = @import("lanes.zig");
const pack = @import("pack.zig");

const F = lanes.Vector(f32);
const fl = lanes.width(f32);
const Half = @Vector(fl, u16);

pub const LowKernels = struct {
    /// gate_low = bf16(gate), up_low = bf16(up), out = silu(gate_low) · up_low. out may alias gate or up.
    pub fn swiglu_forward_bf16(n: usize, out: [*]f32, gate_low: [*]u16, up_low: [*]u16, gate: [*]const f32, up: [*]const f32) callconv(.c) void {
        var i: usize = 0;
        while (i + fl <= n) : (i += fl) {
            const g = pack.nearest(lanes.load(f32, gate + i));
            const u = pack.nearest(lanes.load(f32, up + i));
            gate_low[i..][0..fl].* = g;
            up_low[i..][0..fl].* = u;
            lanes.store(f32, out + i, silu(widen(g)) * widen(u));
        }
        if (i == n) return;
        const g = pack.nearest(lanes.loadPart(f32, gate + i, n - i, 0));
        const u = pack.nearest(lanes.loadPart(f32, up + i, n - i, 0));
        storePart(gate_low + i, g, n - i);
        storePart(up_low + i, u, n - i);
        lanes.storePart(f32, out + i, silu(widen(g)) * widen(u), n - i);
    }

    /// out = silu(gate) · up
    pub fn swiglu_product_bf16(n: usize, out: [*]f32, gate: [*]const u16, up: [*]const u16) callconv(.c) void {
        var i: usize = 0;
        while (i + fl <= n) : (i += fl) lanes.store(f32, out + i, silu(load(gate + i)) * load(up + i));
        if (i < n) lanes.storePart(f32, out + i, silu(loadPart(gate + i, n - i)) * loadPart(up + i, n - i), n - i);
    }

    /// dgate and dup are stored; either may alias dout.
    pub fn swiglu_backward_bf16(n: usize, dgate: [*]f32, dup: [*]f32, dout: [*]const f32, gate: [*]const u16, up: [*]const u16) callconv(.c) void {
        var i: usize = 0;
        while (i + fl <= n) : (i += fl) {
            const d = gradients(lanes.load(f32, dout + i), load(gate + i), load(up + i));
            lanes.store(f32, dgate + i, d[0]);
            lanes.store(f32, dup + i, d[1]);
        }
        if (i == n) return;
        const d = gradients(lanes.loadPart(f32, dout + i, n - i, 0), loadPart(gate + i, n - i), loadPart(up + i, n - i));
        lanes.storePart(f32, dgate + i, d[0], n - i);
        lanes.storePart(f32, dup + i, d[1], n - i);
    }
};

const one: F = @splat(1);

inline fn silu(g: F) F {
    return g / (one + lanes.exp(f32, -g));
}

inline fn gradients(d: F, g: F, u: F) [2]F {
    const sigmoid = one / (one + lanes.exp(f32, -g));
    return .{ d * u * (sigmoid * (one + g * (one - sigmoid))), d * (g * sigmoid) };
}

inline fn widen(x: Half) F {
    return @bitCast(@as(@Vector(fl, u32), x) << @splat(16));
}

inline fn load(p: [*]const u16) F {
    return widen(p[0..fl].*);
}

inline fn loadPart(p: [*]const u16, count: usize) F {
    var buffer: [fl]u16 = @splat(0);
    for (0..count) |i| buffer[i] = p[i];
    return widen(buffer);
}

inline fn storePart(p: [*]u16, x: Half, count: usize) void {
    const buffer: [fl]u16 = x;
    for (0..count) |i| p[i] = buffer[i];
}
