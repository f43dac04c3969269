//! Ceilings of the machine: register-only multiply-adds and sweeps over memory, compiled for the CPU at hand.
//!
//! Exports plain C functions, because this object is compiled for another CPU than its caller. What each returns
//! depends on every operation, so none can be left out.

const std = @import("std");
const builtin = @import("builtin");

const x86 = builtin.cpu.arch == .x86_64;
const wide = x86 and std.Target.x86.featureSetHas(builtin.cpu.features, .avx512f);
const bf16 = wide and std.Target.x86.featureSetHas(builtin.cpu.features, .avx512bf16);
const vl = if (wide) 16 else if (x86 and std.Target.x86.featureSetHas(builtin.cpu.features, .avx)) 8 else 4;
const V = @Vector(vl, f32);
/// Independent chains: enough to hide the latency of two units of four cycles.
const chains = 12;

/// f32 operations of one round of `abt_bench_fma`.
export fn abt_bench_fma_flops() f64 {
    return 2 * vl * chains;
}

export fn abt_bench_fma(rounds: u64) f32 {
    var acc: [chains]V = undefined;
    inline for (0..chains) |i| acc[i] = @splat(1 + @as(f32, i));
    var factor: V = @splat(0.999999);
    var term: V = @splat(1e-6);
    // The compiler must not know the operands.
    asm volatile (""
        : [f] "+x" (factor),
          [t] "+x" (term),
    );
    for (0..rounds) |_| {
        inline for (0..chains) |i| acc[i] = @mulAdd(V, acc[i], factor, term);
    }
    var sum: V = acc[0];
    inline for (1..chains) |i| sum += acc[i];
    return @reduce(.Add, sum);
}

/// bf16 operations of one round of `abt_bench_bf16`; 0: this CPU has no such instruction.
export fn abt_bench_bf16_flops() f64 {
    return if (bf16) 2 * 2 * 16 * chains else 0;
}

export fn abt_bench_bf16(rounds: u64) f32 {
    if (!bf16) return 0;
    const F = @Vector(16, f32);
    const I = @Vector(16, i32);
    var acc: [chains]F = @splat(@splat(0));
    const a: I = @splat(0x3f803f80); // Two times 1.0.
    const b: I = @splat(0x38003800);
    for (0..rounds) |_| {
        inline for (0..chains) |i| acc[i] = asm volatile ("vdpbf16ps %[b], %[a], %[r]"
            : [r] "=v" (-> F),
            : [a] "v" (a),
              [b] "v" (b),
              [old] "0" (acc[i]),
        );
    }
    var sum: F = acc[0];
    inline for (1..chains) |i| sum += acc[i];
    return @reduce(.Add, sum);
}

/// Sum of n f32 (a multiple of 64): reads only.
export fn abt_bench_read(n: usize, x: [*]const f32) f32 {
    var acc: [4]V = @splat(@splat(0));
    var i: usize = 0;
    while (i + 4 * vl <= n) : (i += 4 * vl) {
        inline for (0..4) |j| acc[j] += @as(V, x[i + j * vl ..][0..vl].*);
    }
    return @reduce(.Add, (acc[0] + acc[1]) + (acc[2] + acc[3]));
}

/// Copies n f32 (a multiple of 64) past the caches where the CPU can.
export fn abt_bench_copy(n: usize, noalias dst: [*]align(64) f32, noalias src: [*]const f32) void {
    var i: usize = 0;
    while (i + vl <= n) : (i += vl) {
        const v: V = src[i..][0..vl].*;
        if (wide) asm volatile ("vmovntps %[v], (%[p])"
            :
            : [v] "v" (v),
              [p] "r" (dst + i),
            : .{ .memory = true }) else dst[i..][0..vl].* = v;
    }
    if (wide) asm volatile ("sfence" ::: .{ .memory = true });
}
