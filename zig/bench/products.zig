//! The three matrix products a linear layer needs, alone.

const std = @import("std");
const base = @import("base");
const ops = @import("ops");
const timed = @import("timed_ops");
const Options = @import("main.zig").Options;
const Output = @import("output.zig").Output;
const median = @import("output.zig").median;

/// x [m, k] times a weight [n, k].
pub const Size = struct {
    m: usize,
    k: usize,
    n: usize,

    pub fn parse(text: []const u8) !Size {
        var parts = std.mem.splitScalar(u8, text, 'x');
        var numbers: [3]usize = undefined;
        for (&numbers) |*number| number.* = try std.fmt.parseInt(usize, parts.next() orelse return error.Usage, 10);
        if (parts.next() != null) return error.Usage;
        for (numbers) |number| if (number == 0) return error.Usage;
        return .{ .m = numbers[0], .k = numbers[1], .n = numbers[2] };
    }
};

const default_sizes = [_]Size{
    .{ .m = 512, .k = 512, .n = 512 },
    .{ .m = 1024, .k = 1024, .n = 1024 },
    .{ .m = 2048, .k = 576, .n = 1536 },
    .{ .m = 2048, .k = 1536, .n = 576 },
};

/// Small products are run several times for one sample.
const flops_of_a_sample = 5e8;

pub fn run(gpa: std.mem.Allocator, options: Options, out: *Output) !void {
    const pool = try base.Pool.init(gpa, options.threads);
    defer pool.deinit();

    var ex: ops.Exec = try .init(gpa, pool);
    defer ex.deinit();

    const sizes: []const Size = if (options.sizes.items.len > 0) options.sizes.items else &default_sizes;
    for (sizes) |size| try one(gpa, &ex, size, options, out);
}

fn one(gpa: std.mem.Allocator, ex: *ops.Exec, size: Size, options: Options, out: *Output) !void {
    const inp = try filled(gpa, size.m * size.k, 1);
    defer gpa.free(inp);
    const weight = try filled(gpa, size.n * size.k, 2);
    defer gpa.free(weight);
    const dout = try filled(gpa, size.m * size.n, 3);
    defer gpa.free(dout);
    const result = try filled(gpa, @max(size.m * size.n, size.m * size.k, size.n * size.k), 4);
    defer gpa.free(result);
    const samples = try gpa.alloc(f64, options.repeat);
    defer gpa.free(samples);

    const flops = 2 * @as(f64, @floatFromInt(size.m)) * @as(f64, @floatFromInt(size.k)) * @as(f64, @floatFromInt(size.n));
    const inner: usize = if (options.repeat == 1) 1 else @max(1, @as(usize, @trunc(flops_of_a_sample / flops)));
    for ([_]ops.Compute{ .full, .bf16 }) |compute| for ([_]Form{ .forward, .input_gradient, .weight_gradient }) |form| {
        ex.compute = compute;
        @memset(result, 0);
        call(ex, form, size, inp, weight, dout, result); // Warm.
        for (samples) |*s| {
            const t = timed.now();
            for (0..inner) |_| call(ex, form, size, inp, weight, dout, result);
            s.* = flops * @as(f64, @floatFromInt(inner)) / @as(f64, @floatFromInt(@max(timed.now() - t, 1)));
        }
        var checksum: f64 = 0;
        for (result) |x| checksum += x;
        const middle = median(samples);
        try out.write(.{
            .bench = @as([]const u8, "gemm"),
            .form = @as([]const u8, @tagName(form)),
            .compute = @as([]const u8, if (compute == .bf16) "bf16" else "f32"),
            .m = size.m,
            .k = size.k,
            .n = size.n,
            .threads = ex.pool.n,
            .gflops = middle,
            .best = samples[samples.len - 1],
            .checksum = checksum,
        });
    };
}

const Form = enum { forward, input_gradient, weight_gradient };

fn call(ex: *ops.Exec, form: Form, s: Size, inp: []const f32, weight: []const f32, dout: []const f32, result: []f32) void {
    switch (form) {
        .forward => ops.matmul.forward(f32, ex, result, inp, weight, null, s.m, s.n, s.k, .store),
        .input_gradient => ops.matmul.backwardInput(f32, ex, result, dout, weight, s.m, s.n, s.k, .store),
        .weight_gradient => ops.matmul.backwardWeight(f32, ex, result, null, dout, inp, s.m, s.n, s.k),
    }
}

/// Uniform in ±1/32.
pub fn filled(gpa: std.mem.Allocator, len: usize, seed: u64) ![]align(64) f32 {
    const x = try gpa.alignedAlloc(f32, .@"64", len);
    var prng: base.Prng = .init(seed);
    for (x) |*v| v.* = @floatCast((prng.uniform() - 0.5) / 16);
    return x;
}

test "sizes are read, wrong ones refused" {
    try std.testing.expectEqual(Size{ .m = 1, .k = 2, .n = 33 }, try Size.parse("1x2x33"));
    for ([_][]const u8{ "", "1x2", "1x2x3x4", "0x1x1", "ax1x1" }) |text| {
        try std.testing.expect(std.meta.isError(Size.parse(text)));
    }
}
