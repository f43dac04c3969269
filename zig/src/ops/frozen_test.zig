//! Frozen weights of every type: expansion against the plain decoders on every CPU level, products against `matmul`.

const std = @import("std");
const tensor = @import("tensor");
const kernels = @import("kernels");
const frozen = @import("frozen.zig");
const matmul = @import("matmul.zig");
const check = @import("check.zig");
const Mode = @import("exec.zig").Mode;
const DType = tensor.DType;

const types = [_]DType{ .f32, .f64, .f16, .bf16, .q4_0, .q4_1, .q5_0, .q5_1, .q8_0, .q4_k, .q5_k, .q6_k, .mxfp4 };

/// Random bytes whose floats and scales are ordinary numbers.
fn randomBytes(bag: *check.Bag, dtype: DType, count: usize) []u8 {
    const size = count / dtype.blockLen() * dtype.blockBytes();
    const whole = bag.arena.allocator().alignedAlloc(u8, .@"8", size) catch @panic("out of memory in a test");
    const bytes: []u8 = whole;
    for (bytes) |*x| x.* = @truncate(bag.prng.next());
    switch (dtype) {
        .f32 => for (std.mem.bytesAsSlice(f32, whole)) |*x| {
            x.* = @floatCast(bag.prng.normal());
        },
        .f64 => for (std.mem.bytesAsSlice(f64, whole)) |*x| {
            x.* = bag.prng.normal();
        },
        .f16 => for (std.mem.bytesAsSlice(f16, whole)) |*x| {
            x.* = @floatCast(bag.prng.normal());
        },
        .bf16 => for (std.mem.bytesAsSlice(u16, whole)) |*x| {
            const number: f32 = @floatCast(bag.prng.normal());
            x.* = @intCast(@as(u32, @bitCast(number)) >> 16);
        },
        .u8 => {},
        else => {
            const places: []const usize = switch (dtype) {
                .q4_1, .q5_1, .q4_k, .q5_k => &.{ 0, 2 },
                .q6_k => &.{208},
                else => &.{0},
            };
            const step = dtype.blockBytes();
            var at: usize = 0;
            while (at < size) : (at += step) {
                if (dtype == .mxfp4) {
                    bytes[at] = @intCast(120 + bag.prng.below(8));
                } else for (places) |place| {
                    const scale: f16 = @floatCast(0.02 * bag.prng.normal());
                    bytes[at + place ..][0..2].* = @bitCast(scale);
                }
            }
        },
    }
    return bytes;
}

test "every level expands every type to the bits of the plain decoder, at any address" {
    inline for (types) |dtype| {
        const name = "expand_" ++ @tagName(dtype);
        if (@hasField(kernels.WeightTable, name)) for (0..kernels.available().len) |level| {
            errdefer std.debug.print("{s} on {s}\n", .{ name, kernels.available()[level] });
            const expand = @field(kernels.dispatch.weightTableAt(level), name);
            var bag: check.Bag = .{};
            defer bag.deinit();

            for ([_]usize{ 1, 2, 5 }) |blocks| for ([_]bool{ false, true }) |wild| {
                const n = blocks * @max(dtype.blockLen(), 33);
                const whole = n / dtype.blockLen() * dtype.blockLen();
                const bytes = randomBytes(&bag, dtype, whole);
                // Any scale a file may have, subnormal ones too; NaN is kept away, as its sign is nobody's promise.
                if (wild) for (bytes) |*x| {
                    x.* = @truncate(bag.prng.next() & 0x77);
                };
                const shifted = bag.zeros(u8, bytes.len + 1);
                @memcpy(shifted[1..], bytes);
                const want = bag.zeros(f32, whole);
                const got = bag.normal(f32, whole + 1);
                const guard = got[whole];
                try tensor.blocks.toF32(dtype, bytes, want);
                expand(whole, shifted.ptr + 1, got.ptr);
                try std.testing.expectEqualSlices(u8, std.mem.sliceAsBytes(want), std.mem.sliceAsBytes(got[0..whole]));
                try std.testing.expectEqual(guard, got[whole]);
            };
        };
    }
}

/// A matrix of a type and its numbers.
fn stored(comptime T: type, bag: *check.Bag, dtype: DType, rows: usize, columns: usize, order: tensor.RowOrder) !struct { frozen.Matrix, []T } {
    const bytes = randomBytes(bag, dtype, rows * columns);
    const matrix: frozen.Matrix = .{ .dtype = dtype, .rows = rows, .columns = columns, .bytes = bytes, .row_order = order };
    const numbers = bag.zeros(T, rows * columns);
    const line = bag.zeros(f32, columns);
    for (0..rows) |row| {
        const raw = bytes[order.fileRow(row) * matrix.rowBytes() ..][0..matrix.rowBytes()];
        const out = numbers[row * columns ..][0..columns];
        if (T == f64 and dtype == .f64) {
            @memcpy(std.mem.sliceAsBytes(out), raw);
            continue;
        }
        try tensor.blocks.toF32(dtype, raw, line);
        for (out, line) |*o, x| o.* = @floatCast(x);
    }
    return .{ matrix, numbers };
}

test "stored weights give the bits of the product with the expanded weight, in both precisions, on any number of threads" {
    const m = 17;
    for (check.thread_counts) |threads| {
        var rig = try check.Rig.init(threads);
        defer rig.deinit();

        inline for (.{ f32, f64 }) |T| {
            const shapes: []const [2]usize = if (T == f32) &.{ .{ 6, 256 }, .{ 70, 1024 }, .{ 1550, 256 } } else &.{.{ 70, 1024 }};
            for (shapes) |shape| for (types) |dtype| for ([_]tensor.RowOrder{ .same, .{ .interleaved = .{ .head_dim = 2 } } }) |order| {
                if (shape[0] > 100 and order != .same) continue; // Enough of it on the small ones.
                const n, const k = shape;
                var bag: check.Bag = .{};
                defer bag.deinit();

                try rig.ex.reserve(T, .{ .frozen_columns = k });
                const weight, const numbers = try stored(T, &bag, dtype, n, k, order);
                const inp = bag.normal(T, m * k);
                const dout = bag.normal(T, m * n);
                const bias = bag.normal(T, n);
                for ([_]Mode{ .store, .accumulate }, [_]@TypeOf(rig.ex.compute){ .full, .bf16 }) |mode, compute| {
                    rig.ex.compute = compute;
                    const want = [2][]T{ bag.normal(T, m * n), bag.normal(T, m * k) };
                    const got = [2][]T{ bag.copy(T, want[0]), bag.copy(T, want[1]) };
                    matmul.forward(T, &rig.ex, want[0], inp, numbers, bias, m, n, k, mode);
                    matmul.backwardInput(T, &rig.ex, want[1], dout, numbers, m, n, k, mode);
                    frozen.forward(T, &rig.ex, got[0], inp, weight, bias, m, mode);
                    frozen.backwardInput(T, &rig.ex, got[1], dout, weight, m, mode);
                    for (want, got) |w, g| try check.expectSame(T, w, g);
                }
            };
        }
    }
}

test "floats at an odd address, and widths that are no multiple of anything" {
    var rig = try check.Rig.init(3);
    defer rig.deinit();

    for ([_]DType{ .f32, .f64, .f16, .bf16 }) |dtype| for ([_][2]usize{ .{ 1, 1 }, .{ 3, 5 }, .{ 33, 801 } }) |shape| {
        const n, const k = shape;
        const m = 5;
        var bag: check.Bag = .{};
        defer bag.deinit();

        try rig.ex.reserve(f32, .{ .frozen_columns = k });
        var weight, const numbers = try stored(f32, &bag, dtype, n, k, .same);
        const moved = bag.zeros(u8, weight.bytes.len + 1);
        @memcpy(moved[1..], weight.bytes);
        weight.bytes = moved[1..];
        const inp = bag.normal(f32, m * k);
        const dout = bag.normal(f32, m * n);
        const want = [2][]f32{ bag.zeros(f32, m * n), bag.zeros(f32, m * k) };
        const got = [2][]f32{ bag.zeros(f32, m * n), bag.zeros(f32, m * k) };
        matmul.forward(f32, &rig.ex, want[0], inp, numbers, null, m, n, k, .store);
        matmul.backwardInput(f32, &rig.ex, want[1], dout, numbers, m, n, k, .store);
        frozen.forward(f32, &rig.ex, got[0], inp, weight, null, m, .store);
        frozen.backwardInput(f32, &rig.ex, got[1], dout, weight, m, .store);
        for (want, got) |w, g| try check.expectSame(f32, w, g);
    };
}

test "rows of a frozen embedding are those of its expansion" {
    var rig = try check.Rig.init(2);
    defer rig.deinit();

    inline for (.{ f32, f64 }) |T| for (types) |dtype| {
        var bag: check.Bag = .{};
        defer bag.deinit();

        const table, const numbers = try stored(T, &bag, dtype, 9, 1024, .same);
        const ids = [_]u32{ 8, 0, 3, 3 };
        const got = bag.zeros(T, ids.len * 1024);
        frozen.embed(T, &rig.ex, got, table, &ids);
        for (ids, 0..) |id, i| try check.expectSame(T, numbers[id * 1024 ..][0..1024], got[i * 1024 ..][0..1024]);
    };
}

test "every level expands MXFP4 with scales apart to the bits of the plain decoder" {
    var bag: check.Bag = .{};
    defer bag.deinit();

    for (0..kernels.available().len) |level| {
        const expand = kernels.dispatch.weightTableAt(level).expand_mxfp4_pairs;
        for (1..9) |blocks| {
            const codes = bag.arena.allocator().alloc(u8, 16 * blocks + 3) catch @panic("out of memory in a test");
            const scales = bag.arena.allocator().alloc(u8, blocks) catch @panic("out of memory in a test");
            for (codes) |*c| c.* = @truncate(bag.prng.next());
            for (scales) |*s| s.* = @intCast(bag.prng.below(255));
            const want = bag.zeros(f32, 32 * blocks);
            const got = bag.zeros(f32, 32 * blocks);
            for (scales, 0..) |s, b| tensor.blocks.mxfp4.dequantizePairs(s, codes[3 + 16 * b ..][0..16], want[32 * b ..][0..32]);
            expand(got.len, codes[3..].ptr, scales.ptr, got.ptr);
            try check.expectSame(f32, want, got);
        }
    }
}

test "products with experts' stored weights are those of the expanded ones: gate and up apart, scales apart" {
    const rows = 70;
    const columns = 96;
    const m = 9;
    var rig = try check.Rig.init(3);
    defer rig.deinit();

    var bag: check.Bag = .{};
    defer bag.deinit();

    inline for (.{ f32, f64 }) |T| {
        try rig.ex.reserve(T, .{ .frozen_columns = columns });
        const size = 2 * rows * columns / 32;
        const codes = randomBytes(&bag, .u8, 16 * size);
        const scales = randomBytes(&bag, .u8, size);
        for (scales) |*s| s.* = 120 + s.* % 8;
        const forms = [_]frozen.Matrix{
            .{ .dtype = .mxfp4, .rows = rows, .columns = columns, .count = 2, .bytes = codes, .scales = scales, .turned = true },
            .{ .dtype = .mxfp4, .rows = rows, .columns = columns, .count = 2, .bytes = randomBytes(&bag, .mxfp4, rows * columns), .odd = randomBytes(&bag, .mxfp4, rows * columns), .turned = true },
            .{ .dtype = .bf16, .rows = rows, .columns = columns, .count = 2, .bytes = randomBytes(&bag, .bf16, 2 * rows * columns) },
        };
        const x = bag.normal(T, m * columns);
        const y = bag.normal(T, m * rows);
        for (forms) |form| for (0..2) |e| {
            try std.testing.expect(form.isWhole());
            const one = form.of(e);
            const whole = bag.zeros(T, rows * columns);
            for (0..rows) |r| frozen.expand(T, one, r, 1, 0, columns, whole[r * columns ..][0..columns]);
            for ([_]@TypeOf(rig.ex.compute){ .full, .bf16 }) |compute| {
                rig.ex.compute = compute;
                const want = [2][]T{ bag.zeros(T, m * rows), bag.zeros(T, m * columns) };
                const got = [2][]T{ bag.zeros(T, m * rows), bag.zeros(T, m * columns) };
                matmul.forward(T, &rig.ex, want[0], x, whole, null, m, rows, columns, .store);
                matmul.backwardInput(T, &rig.ex, want[1], y, whole, m, rows, columns, .store);
                frozen.forward(T, &rig.ex, got[0], x, one, null, m, .store);
                frozen.backwardInput(T, &rig.ex, got[1], y, one, m, .store);
                for (want, got) |w, g| try check.expectSame(T, w, g);
            }
        };
    }
}
