//! What the machine can do at most, and what waking the threads costs.

const std = @import("std");
const base = @import("base");
const kernels = @import("kernels");
const timed = @import("timed_ops");
const Options = @import("main.zig").Options;
const Output = @import("output.zig").Output;
const median = @import("output.zig").median;

extern fn abt_bench_fma_flops() callconv(.c) f64;
extern fn abt_bench_fma(rounds: u64) callconv(.c) f32;
extern fn abt_bench_bf16_flops() callconv(.c) f64;
extern fn abt_bench_bf16(rounds: u64) callconv(.c) f32;
extern fn abt_bench_read(n: usize, x: [*]const f32) callconv(.c) f32;
extern fn abt_bench_copy(n: usize, dst: [*]align(64) f32, src: [*]const f32) callconv(.c) void;

const Work = struct { rounds: u64 = 0, bf16: bool = false, n: usize = 0, src: []align(64) f32 = &.{}, dst: []align(64) f32 = &.{}, sums: []f32 };

fn compute(w: Work, index: usize, _: usize) void {
    w.sums[index] = if (w.bf16) abt_bench_bf16(w.rounds) else abt_bench_fma(w.rounds);
}

fn read(w: Work, index: usize, _: usize) void {
    w.sums[index] = abt_bench_read(w.n, w.src.ptr + index * w.n);
}

fn copy(w: Work, index: usize, _: usize) void {
    abt_bench_copy(w.n, @alignCast(w.dst.ptr + index * w.n), w.src.ptr + index * w.n);
}

/// Median seconds of `repeat` runs of f, one index for each worker.
fn seconds(gpa: std.mem.Allocator, pool_of: *base.Pool, repeat: usize, work: Work, comptime f: fn (Work, usize, usize) void) !f64 {
    const samples = try gpa.alloc(f64, repeat);
    defer gpa.free(samples);

    pool_of.parallelFor(work, pool_of.n, f);
    for (samples) |*s| {
        const t = timed.now();
        pool_of.parallelFor(work, pool_of.n, f);
        s.* = @as(f64, @floatFromInt(timed.now() - t)) * 1e-9;
    }
    return median(samples);
}

pub fn peak(gpa: std.mem.Allocator, options: Options, out: *Output) !void {
    const workers = try base.Pool.init(gpa, options.threads);
    defer workers.deinit();

    const sums = try gpa.alloc(f32, workers.n);
    defer gpa.free(sums);

    const threads: f64 = @floatFromInt(workers.n);
    const rounds: u64 = @as(u64, options.sweep_mib) * 20_000; // 512 MiB: about 30 ms.
    const fma = threads * abt_bench_fma_flops() * @as(f64, @floatFromInt(rounds)) / try seconds(gpa, workers, options.repeat, .{ .rounds = rounds, .sums = sums }, compute);
    const low = threads * abt_bench_bf16_flops() * @as(f64, @floatFromInt(rounds)) / try seconds(gpa, workers, options.repeat, .{ .rounds = rounds, .bf16 = true, .sums = sums }, compute);

    const n = std.mem.alignBackward(usize, options.sweep_mib * (1 << 20) / @sizeOf(f32) / workers.n, 64);
    const src = try gpa.alignedAlloc(f32, .@"64", n * workers.n);
    defer gpa.free(src);
    const dst = try gpa.alignedAlloc(f32, .@"64", n * workers.n);
    defer gpa.free(dst);

    @memset(src, 1);
    @memset(dst, 0);
    const bytes: f64 = @floatFromInt(src.len * @sizeOf(f32));
    const work: Work = .{ .n = n, .src = src, .dst = dst, .sums = sums };
    const reading = bytes / try seconds(gpa, workers, options.repeat, work, read);
    var checksum: f64 = 0;
    for (sums) |s| checksum += s;
    const copying = 2 * bytes / try seconds(gpa, workers, options.repeat, work, copy);
    checksum += dst[dst.len - 1];
    try out.write(.{
        .bench = @as([]const u8, "peak"),
        .threads = workers.n,
        .cpu_level = kernels.level(),
        .f32_gflops = fma * 1e-9,
        .bf16_gflops = low * 1e-9,
        .read_gbs = reading * 1e-9,
        .copy_gbs = copying * 1e-9,
        .checksum = checksum,
    });
}

/// Seconds of one `parallelFor` with nothing to do, in microseconds: called in a row, and after a pause in which the workers park.
pub fn pool(gpa: std.mem.Allocator, options: Options, out: *Output) !void {
    const workers = try base.Pool.init(gpa, options.threads);
    defer workers.deinit();

    const counts = try gpa.alloc(u64, workers.n * 8);
    defer gpa.free(counts);

    @memset(counts, 0);
    const nothing = struct {
        fn f(c: []u64, index: usize, _: usize) void {
            c[index * 8] += 1;
        }
    }.f;
    const samples = try gpa.alloc(f64, options.repeat);
    defer gpa.free(samples);

    const in_a_row = 1000;
    for (samples) |*s| {
        const t = timed.now();
        for (0..in_a_row) |_| workers.parallelFor(counts, workers.n, nothing);
        s.* = @as(f64, @floatFromInt(timed.now() - t)) * 1e-3 / in_a_row;
    }
    const spinning = median(samples);
    for (samples) |*s| {
        _ = std.c.nanosleep(&.{ .sec = 0, .nsec = 5 * std.time.ns_per_ms }, null);
        const t = timed.now();
        workers.parallelFor(counts, workers.n, nothing);
        s.* = @as(f64, @floatFromInt(timed.now() - t)) * 1e-3;
    }
    const parked = median(samples);
    var checksum: f64 = 0;
    for (0..workers.n) |w| checksum += @floatFromInt(counts[w * 8]);
    try out.write(.{
        .bench = @as([]const u8, "pool"),
        .threads = workers.n,
        .in_a_row_us = spinning,
        .after_a_pause_us = parked,
        .checksum = checksum,
    });
}
