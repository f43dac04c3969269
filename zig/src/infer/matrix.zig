//! A weight matrix as it lies in the file, and its product with a few rows of activations.
//!
//! out[t][r] = Σ_k weight[r][k] · inp[t][k] (+ bias[r]). Weights stay in their file type: one token multiplies each
//! row straight from it (block types but q8_0: a few rows at a time as f32); several tokens share one expansion of a few rows. Work is divided by rows, and each
//! output value is computed by one worker in one order, so the bits do not depend on the number of threads.
//! Does not know: what a matrix is for.

const std = @import("std");
const base = @import("base");
const tensor = @import("tensor");
const kernels = @import("kernels");
const frozen = @import("ops").frozen;
const DType = tensor.DType;

/// Row-major (rows, columns), a view into a mapped file. `bytes` is aligned for its type.
pub const Matrix = struct {
    dtype: DType,
    rows: usize,
    columns: usize,
    bytes: []const u8,

    pub fn isSupported(dtype: DType) bool {
        return dtype != .f64 and tensor.StoredMatrix.canUse(dtype);
    }

    fn rowBytes(self: Matrix) usize {
        return self.columns / self.dtype.blockLen() * self.dtype.blockBytes();
    }

    fn rowsSlice(self: Matrix, row: usize, count: usize) []const u8 {
        const size = self.rowBytes();
        return self.bytes[row * size ..][0 .. count * size];
    }

    /// `count` rows as f32: a view when they are stored so, else expanded into `buffer`.
    pub fn rowsF32(self: Matrix, row: usize, count: usize, buffer: []f32) []const f32 {
        if (self.dtype == .f32) return @alignCast(std.mem.bytesAsSlice(f32, self.rowsSlice(row, count)));
        const out = buffer[0 .. count * self.columns];
        const stored: tensor.StoredMatrix = .{ .dtype = self.dtype, .rows = self.rows, .columns = self.columns, .bytes = self.bytes };
        frozen.expand(f32, stored, row, count, 0, self.columns, out);
        return out;
    }

    /// Types without a product of their own are expanded into `buffer` first.
    fn timesVector(self: Matrix, row: usize, x: []const f32, out: []f32, buffer: []f32) void {
        const weights = kernels.weightTable();
        const matvec = switch (self.dtype) {
            .f32 => weights.matvec_f32,
            .f16 => weights.matvec_f16,
            .bf16 => weights.matvec_bf16,
            .q8_0 => weights.matvec_q8_0,
            else => {
                const expanded = self.rowsF32(row, out.len, buffer);
                return weights.matvec_f32(out.len, self.columns, std.mem.sliceAsBytes(expanded).ptr, self.columns * @sizeOf(f32), x.ptr, out.ptr);
            },
        };
        matvec(out.len, self.columns, self.rowsSlice(row, out.len).ptr, self.rowBytes(), x.ptr, out.ptr);
    }
};

/// A matrix with its bias.
pub const Linear = struct {
    weight: Matrix,
    bias: ?[]const f32 = null,
};

/// One product of a group that shares its input: q, k and v are one group and one fork.
pub const Job = struct {
    linear: *const Linear,
    /// (tokens, rows)
    out: []f32,
};

/// Rows a worker takes at a time: few enough to share out evenly, enough to be worth a call.
const rows_for_one = 16;
/// The same when several tokens share the rows: they are packed once a group.
const rows_for_many = 64;

/// Memory of one worker.
pub const Scratch = struct {
    packing: []align(64) u8,
    /// Expanded rows.
    rows: []align(64) f32,

    /// For matrices of at most `columns` columns.
    pub fn init(arena: std.mem.Allocator, columns: usize) error{OutOfMemory}!Scratch {
        const count = base.checked.mul(usize, rows_for_many, columns) catch return error.OutOfMemory;
        return .{
            .packing = try arena.alignedAlloc(u8, .@"64", kernels.gemmWorkspaceBytes()),
            .rows = try arena.alignedAlloc(f32, .@"64", count),
        };
    }
};

/// inp: (tokens, columns), the same columns for all jobs. One scratch a worker.
pub fn multiply(pool: *base.Pool, scratch: []const Scratch, jobs: []const Job, inp: []const f32, tokens: usize) void {
    const columns = jobs[0].linear.weight.columns;
    std.debug.assert(inp.len == tokens * columns);
    std.debug.assert(scratch.len >= pool.n);
    const context: Context = .{
        .jobs = jobs,
        .inp = inp,
        .tokens = tokens,
        .scratch = scratch,
        .group = if (tokens == 1) rows_for_one else rows_for_many,
    };
    var groups: usize = 0;
    for (jobs) |job| {
        std.debug.assert(job.linear.weight.columns == columns);
        std.debug.assert(job.out.len == tokens * job.linear.weight.rows);
        groups += context.groupCount(job);
    }
    pool.parallelFor(&context, groups, Context.run);
}

const Context = struct {
    jobs: []const Job,
    inp: []const f32,
    tokens: usize,
    scratch: []const Scratch,
    group: usize,

    fn groupCount(self: *const Context, job: Job) usize {
        return (job.linear.weight.rows + self.group - 1) / self.group;
    }

    fn run(self: *const Context, index: usize, worker: usize) void {
        var left = index;
        var j: usize = 0;
        while (left >= self.groupCount(self.jobs[j])) : (j += 1) left -= self.groupCount(self.jobs[j]);
        const job = self.jobs[j];
        const weight = job.linear.weight;
        const row = left * self.group;
        const count = @min(self.group, weight.rows - row);
        if (self.tokens == 1) {
            weight.timesVector(row, self.inp, job.out[row..][0..count], self.scratch[worker].rows);
        } else {
            const scratch = self.scratch[worker];
            const expanded = weight.rowsF32(row, count, scratch.rows);
            const k = weight.columns;
            kernels.table(f32).gemm(self.tokens, count, k, self.inp.ptr, k, 1, expanded.ptr, 1, k, job.out.ptr + row, weight.rows, 0, scratch.packing.ptr);
        }
        const bias = job.linear.bias orelse return;
        for (0..self.tokens) |t| {
            for (job.out[t * weight.rows + row ..][0..count], bias[row..][0..count]) |*o, b| o.* += b;
        }
    }
};

const testing = std.testing;

fn randomRow(prng: *base.Prng, out: []f32) void {
    for (out) |*v| v.* = @floatCast(prng.normal());
}

test "one token and several tokens agree with the definition, for every type and thread count" {
    const gpa = testing.allocator;
    var prng: base.Prng = .init(3);
    const rows = 83;
    const columns = 96;
    const tokens = 3;
    var values: [rows * columns]f32 = undefined;
    randomRow(&prng, &values);
    var inp: [tokens * columns]f32 = undefined;
    randomRow(&prng, &inp);
    var bias: [rows]f32 = undefined;
    randomRow(&prng, &bias);

    inline for (.{ DType.f32, DType.f16, DType.bf16 }) |dtype| {
        const bytes = try gpa.alignedAlloc(u8, .@"64", try dtype.tensorBytes(&.{ rows, columns }));
        defer gpa.free(bytes);
        switch (dtype) {
            .f32 => tensor.convert.f32ToF32Bytes(&values, bytes),
            .f16 => tensor.convert.f32SliceToF16(&values, bytes),
            .bf16 => tensor.convert.f32SliceToBf16(&values, bytes),
            else => unreachable,
        }
        const linear: Linear = .{ .weight = .{ .dtype = dtype, .rows = rows, .columns = columns, .bytes = bytes }, .bias = &bias };
        var expected: [tokens * rows]f32 = undefined;
        var buffer: [columns]f32 = undefined;
        for (0..tokens) |t| for (0..rows) |r| {
            var sum: f64 = bias[r];
            for (linear.weight.rowsF32(r, 1, &buffer), inp[t * columns ..][0..columns]) |w, x| sum += @as(f64, w) * x;
            expected[t * rows + r] = @floatCast(sum);
        };
        var first: ?[tokens * rows]f32 = null;
        for ([_]usize{ 1, 3 }) |n| {
            const pool = try base.Pool.init(gpa, n);
            defer pool.deinit();
            var arena: std.heap.ArenaAllocator = .init(gpa);
            defer arena.deinit();
            var scratch: [3]Scratch = undefined;
            for (&scratch) |*one| one.* = try .init(arena.allocator(), columns);

            var out: [tokens * rows]f32 = undefined;
            multiply(pool, &scratch, &.{.{ .linear = &linear, .out = &out }}, &inp, tokens);
            for (expected, out) |e, o| try testing.expectApproxEqAbs(e, o, 1e-5);
            if (first) |f| try testing.expectEqualSlices(f32, &f, &out) else first = out;

            var single: [rows]f32 = undefined;
            multiply(pool, &scratch, &.{.{ .linear = &linear, .out = &single }}, inp[columns..][0..columns], 1);
            for (expected[rows..][0..rows], single) |e, o| try testing.expectApproxEqAbs(e, o, 1e-5);
        }
    }
}
