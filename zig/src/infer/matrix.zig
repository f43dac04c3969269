//! A weight matrix as it lies in the file, and its product with a few rows of activations.
//!
//! out[t][r] = Σ_k weight[r][k] · inp[t][k] (+ bias[r]). Weights stay in their file type. Block types are multiplied with activations
//! rounded to 8 bits, whole numbers within a block: the tokens of an answer straight from the file, those of a prompt through panels
//! of a few rows that all of them share. A prompt meets f16 and bf16 as 16-bit whole numbers where the CPU has a product of such; otherwise
//! floats are multiplied as floats, a prompt's tokens through one expansion of a few rows. Work is
//! divided by rows, and each output value is computed by one worker in one order, so the bits do not depend on the number of threads.
//! Nor do they depend on the other tokens: only on which of the two ways a token goes (`Tokens`).
//! Does not know: what a matrix is for.

const std = @import("std");
const base = @import("base");
const tensor = @import("tensor");
const kernels = @import("kernels");
const frozen = @import("ops").frozen;
const DType = tensor.DType;
const Activations = kernels.activations.Activations;
const Words = kernels.activations.Words;

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

    /// In f32. Types without a product of their own are expanded into `buffer` first.
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
    /// Which of the input's rows it takes; null: all. Parts are for experts, where each job has its own.
    part: ?Part = null,

    pub const Part = struct { first: usize, count: usize };
};

/// How tokens go through a matrix. The two ways round differently in the last bits; within one way a token's products are the same
/// however many tokens there are.
pub const Tokens = enum {
    /// Those of a prompt: what is unpacked of the weights serves all of them.
    of_prompt,
    /// Those of answers: each as if it were alone, while the same few rows of weights are in the first cache.
    of_answers,
};

/// Rows a worker takes at a time: few enough to share out evenly, enough to be worth a call.
const rows_for_one = 16;
/// The same when several tokens share the rows: they are packed once a group.
const rows_for_many = 64;
/// The same of a block type: the rows of a panel.
const rows_of_panel = 32;
/// The same of f16 and bf16 as whole numbers: some panels, which stay in the second cache while the tokens pass.
const rows_of_words = 4 * Words.panel_rows;
/// Columns of a panel: with the activations of a few tokens it stays in the first cache. A multiple of every block.
const panel_columns = 512;

/// Memory of one worker.
pub const Scratch = struct {
    packing: []align(64) u8,
    /// Expanded rows.
    rows: []align(64) f32,
    /// One of bytes, or several of words.
    panel: []align(64) u8,

    /// For matrices of at most `columns` columns.
    pub fn init(arena: std.mem.Allocator, columns: usize) error{OutOfMemory}!Scratch {
        const count = base.checked.mul(usize, rows_for_many, columns) catch return error.OutOfMemory;
        return .{
            .packing = try arena.alignedAlloc(u8, .@"64", kernels.gemmWorkspaceBytes()),
            .rows = try arena.alignedAlloc(f32, .@"64", count),
            .panel = try arena.alignedAlloc(u8, .@"64", @max(kernels.byteTable().panel_bytes(panel_columns), kernels.wordTable().words_panel_bytes(rows_of_words / Words.panel_rows))),
        };
    }
};

/// Activations of several tokens rounded to 8 bits, in the two forms that block types ask for, and to 16 for f16 and bf16.
pub const Rounded = struct {
    blocks: Activations,
    superblocks: Activations,
    words: []u32,
    word_steps: []f32,

    /// For up to `tokens` of up to `columns` numbers.
    pub fn init(arena: std.mem.Allocator, tokens: usize, columns: usize) error{OutOfMemory}!Rounded {
        return initWide(arena, tokens, columns, 0);
    }

    /// The same, and for `numbers` in all where jobs take parts.
    pub fn initWide(arena: std.mem.Allocator, tokens: usize, columns: usize, numbers: usize) error{OutOfMemory}!Rounded {
        const count = @max(numbers, base.checked.mul(usize, tokens, columns) catch return error.OutOfMemory);
        const steps = base.checked.mul(usize, tokens + kernels.wordTable().words_tile(), stretchesOf(columns)) catch return error.OutOfMemory;
        const words = base.checked.mul(usize, steps, Words.stretch / 2) catch return error.OutOfMemory;
        return .{
            .blocks = try form(arena, count),
            .superblocks = try form(arena, count),
            .words = try arena.alignedAlloc(u32, .@"64", words),
            .word_steps = try arena.alloc(f32, steps),
        };
    }

    fn form(arena: std.mem.Allocator, count: usize) error{OutOfMemory}!Activations {
        return .{
            .q = (try arena.alignedAlloc(i8, .@"64", count)).ptr,
            .fours = (try arena.alignedAlloc(i32, .@"64", count / 4 + 1)).ptr,
            .scales = (try arena.alloc(f32, count / kernels.activations.block + 1)).ptr,
            .sums = (try arena.alloc(i16, count / kernels.activations.block + 1)).ptr,
            .half_sums = (try arena.alloc(i16, count / 16 + 1)).ptr,
        };
    }
};

fn stretchesOf(columns: usize) usize {
    return (columns + Words.stretch - 1) / Words.stretch;
}

/// How a block type is multiplied.
const Product = struct {
    matvec: kernels.dispatch.Matvec8,
    pack: kernels.dispatch.Pack8,
    gemm: kernels.dispatch.Gemm8,
    offset: c_int,
    is_superblock: bool,

    /// Null for floats.
    fn of(dtype: DType) ?Product {
        const t = kernels.byteTable();
        const Offset = kernels.activations.Offset;
        return switch (dtype) {
            .q8_0 => .{ .matvec = t.matvec8_q8_0, .pack = t.pack8_q8_0, .gemm = t.gemm8_blocks, .offset = Offset.q8_0, .is_superblock = false },
            .q4_0 => .{ .matvec = t.matvec8_q4_0, .pack = t.pack8_q4_0, .gemm = t.gemm8_blocks, .offset = Offset.q4_0, .is_superblock = false },
            .q4_1 => .{ .matvec = t.matvec8_q4_1, .pack = t.pack8_q4_1, .gemm = t.gemm8_blocks_minimum, .offset = 0, .is_superblock = false },
            .q5_0 => .{ .matvec = t.matvec8_q5_0, .pack = t.pack8_q5_0, .gemm = t.gemm8_blocks, .offset = Offset.q5_0, .is_superblock = false },
            .q5_1 => .{ .matvec = t.matvec8_q5_1, .pack = t.pack8_q5_1, .gemm = t.gemm8_blocks_minimum, .offset = 0, .is_superblock = false },
            .mxfp4 => .{ .matvec = t.matvec8_mxfp4, .pack = t.pack8_mxfp4, .gemm = t.gemm8_blocks, .offset = Offset.mxfp4, .is_superblock = false },
            .q4_k => .{ .matvec = t.matvec8_q4_k, .pack = t.pack8_q4_k, .gemm = t.gemm8_superblocks_minimum, .offset = 0, .is_superblock = true },
            .q5_k => .{ .matvec = t.matvec8_q5_k, .pack = t.pack8_q5_k, .gemm = t.gemm8_superblocks_minimum, .offset = 0, .is_superblock = true },
            .q6_k => .{ .matvec = t.matvec8_q6_k, .pack = t.pack8_q6_k, .gemm = t.gemm8_superblocks, .offset = Offset.q6_k, .is_superblock = true },
            else => null,
        };
    }
};

/// inp: (tokens, columns), the same columns for all jobs. One scratch a worker; `rounded` for as many numbers, or null to multiply
/// everything as the floats it stands for: slower, and exact but for the rounding of f32.
pub fn multiply(pool: *base.Pool, scratch: []const Scratch, rounded: ?*const Rounded, jobs: []const Job, inp: []const f32, tokens: usize, which: Tokens) void {
    const columns = jobs[0].linear.weight.columns;
    std.debug.assert(inp.len == tokens * columns);
    std.debug.assert(scratch.len >= pool.n);
    const context: Context = .{ .jobs = jobs, .inp = inp, .tokens = tokens, .columns = columns, .scratch = scratch, .rounded = rounded, .which = which };
    var groups: usize = 0;
    var forms: [2]bool = @splat(false);
    var in_words = false;
    for (jobs) |job| {
        std.debug.assert(job.linear.weight.columns == columns);
        std.debug.assert(job.out.len == context.partOf(job).count * job.linear.weight.rows);
        groups += context.groupCount(job);
        if (context.productOf(job.linear.weight.dtype)) |product| forms[@intFromBool(product.is_superblock)] = true;
        if (context.wordsOf(job) != null) in_words = true;
    }
    for (forms, 0..) |wanted, form| if (wanted) context.round(pool, form == 1);
    if (in_words) context.roundWords(pool);
    if (jobs[0].part == null) return pool.parallelFor(&context, groups, Context.run);
    // Jobs differ in how much a row costs: every worker gets its share of each.
    const Shares = struct {
        context: *const Context,
        workers: usize,

        fn run(self: @This(), index: usize, worker: usize) void {
            for (self.context.jobs, 0..) |job, j| {
                const count = self.context.groupCount(job);
                // Turned, so that what does not divide evenly falls to another worker each time.
                const share = (index + j) % self.workers;
                for (share * count / self.workers..(share + 1) * count / self.workers) |group| self.context.runGroup(job, group, worker);
            }
        }
    };
    pool.parallelFor(Shares{ .context = &context, .workers = pool.n }, pool.n, Shares.run);
}

const Context = struct {
    jobs: []const Job,
    inp: []const f32,
    tokens: usize,
    columns: usize,
    scratch: []const Scratch,
    rounded: ?*const Rounded,
    which: Tokens,

    /// Null: multiply as floats.
    fn productOf(self: *const Context, dtype: DType) ?Product {
        return if (self.rounded == null) null else Product.of(dtype);
    }

    /// Null: no half-precision weights of a prompt, a part of the tokens, or a CPU on which whole numbers are no faster.
    fn wordsOf(self: *const Context, job: Job) ?kernels.dispatch.PackWords {
        const table = kernels.wordTable();
        if (self.which != .of_prompt or self.rounded == null or job.part != null or table.words_pay() == 0) return null;
        return switch (job.linear.weight.dtype) {
            .f16 => table.words_pack_f16,
            .bf16 => table.words_pack_bf16,
            else => null,
        };
    }

    fn groupSize(self: *const Context, job: Job) usize {
        if (self.which == .of_answers) return rows_for_one;
        if (self.wordsOf(job) != null) return rows_of_words;
        return if (self.productOf(job.linear.weight.dtype) != null) rows_of_panel else rows_for_many;
    }

    fn groupCount(self: *const Context, job: Job) usize {
        const size = self.groupSize(job);
        return (job.linear.weight.rows + size - 1) / size;
    }

    /// The activations of token `t` on, from column `column` on.
    fn activations(self: *const Context, is_superblock: bool, t: usize, column: usize) Activations {
        const all = if (is_superblock) self.rounded.?.superblocks else self.rounded.?.blocks;
        const group: usize = if (is_superblock) kernels.activations.superblock else kernels.activations.block;
        const at = t * self.columns + column;
        return .{ .q = all.q + at, .fours = all.fours + at / 4, .scales = all.scales + at / group, .sums = all.sums + at / 32, .half_sums = all.half_sums + at / 16 };
    }

    fn round(self: *const Context, pool: *base.Pool, is_superblock: bool) void {
        const Task = struct { context: *const Context, is_superblock: bool };
        const task: Task = .{ .context = self, .is_superblock = is_superblock };
        const one = struct {
            fn run(job: Task, t: usize, _: usize) void {
                const table = kernels.byteTable();
                const c = job.context;
                const round_row = if (job.is_superblock) table.round_superblocks else table.round_blocks;
                round_row(c.columns, c.inp[t * c.columns ..].ptr, &c.activations(job.is_superblock, t, 0));
            }
        }.run;
        if (self.tokens == 1) one(task, 0, 0) else pool.parallelFor(task, self.tokens, one);
    }

    fn roundWords(self: *const Context, pool: *base.Pool) void {
        const tile = kernels.wordTable().words_tile();
        pool.parallelFor(self, (self.tokens + tile - 1) / tile, struct {
            fn run(c: *const Context, group: usize, _: usize) void {
                const table = kernels.wordTable();
                const first = group * table.words_tile();
                const at = first * stretchesOf(c.columns);
                const count = @min(table.words_tile(), c.tokens - first);
                table.words_round(count, c.columns, c.inp[first * c.columns ..].ptr, c.columns, c.rounded.?.words[at * (Words.stretch / 2) ..].ptr, c.rounded.?.word_steps[at..].ptr);
            }
        }.run);
    }

    fn run(self: *const Context, index: usize, worker: usize) void {
        var left = index;
        var j: usize = 0;
        while (left >= self.groupCount(self.jobs[j])) : (j += 1) left -= self.groupCount(self.jobs[j]);
        self.runGroup(self.jobs[j], left, worker);
    }

    fn partOf(self: *const Context, job: Job) Job.Part {
        return job.part orelse .{ .first = 0, .count = self.tokens };
    }

    fn runGroup(self: *const Context, job: Job, index: usize, worker: usize) void {
        const weight = job.linear.weight;
        const group = self.groupSize(job);
        const row = index * group;
        const part = self.partOf(job);
        const count = @min(group, weight.rows - row);
        const k = weight.columns;
        const scratch = self.scratch[worker];
        if (self.productOf(weight.dtype)) |product| {
            const first = weight.rowsSlice(row, count);
            switch (self.which) {
                .of_prompt => self.timesPanels(product, weight, first, count, part, job.out.ptr + row, scratch),
                .of_answers => product.matvec(count, k, first.ptr, weight.rowBytes(), part.count, k, &self.activations(product.is_superblock, part.first, 0), job.out.ptr + row, weight.rows),
            }
        } else if (self.which == .of_answers) {
            for (0..part.count) |t| weight.timesVector(row, self.inp[(part.first + t) * k ..][0..k], job.out[t * weight.rows + row ..][0..count], scratch.rows);
        } else if (self.wordsOf(job)) |pack| {
            self.timesWords(pack, weight, weight.rowsSlice(row, count), count, job.out.ptr + row, scratch);
        } else {
            const expanded = weight.rowsF32(row, count, scratch.rows);
            kernels.table(f32).gemm(part.count, count, k, self.inp[part.first * k ..].ptr, k, 1, expanded.ptr, 1, k, job.out.ptr + row, weight.rows, 0, scratch.packing.ptr);
        }
        const bias = job.linear.bias orelse return;
        for (0..part.count) |t| {
            for (job.out[t * weight.rows + row ..][0..count], bias[row..][0..count]) |*o, b| o.* += b;
        }
    }

    fn timesPanels(self: *const Context, product: Product, weight: Matrix, rows: []const u8, count: usize, part: Job.Part, out: [*]f32, scratch: Scratch) void {
        var column: usize = 0;
        while (column < weight.columns) : (column += panel_columns) {
            const columns = @min(panel_columns, weight.columns - column);
            const from = column / weight.dtype.blockLen() * weight.dtype.blockBytes();
            product.pack(count, columns, rows[from..].ptr, weight.rowBytes(), scratch.panel.ptr);
            const x = self.activations(product.is_superblock, part.first, column);
            const next = nextOf(weight, rows, count, column + columns, panel_columns, rows_of_panel);
            product.gemm(count, columns, scratch.panel.ptr, product.offset, part.count, weight.columns, &x, out, weight.rows, @intFromBool(column > 0), &next);
        }
    }

    fn timesWords(self: *const Context, pack: kernels.dispatch.PackWords, weight: Matrix, rows: []const u8, count: usize, out: [*]f32, scratch: Scratch) void {
        const table = kernels.wordTable();
        const tile = table.words_tile();
        const stretches = stretchesOf(weight.columns);
        for (0..stretches) |s| {
            const column = s * Words.stretch;
            const columns = @min(Words.stretch, weight.columns - column);
            var row: usize = 0;
            while (row < count) : (row += Words.panel_rows) {
                const from = row * weight.rowBytes() + column * weight.dtype.blockBytes();
                pack(@min(Words.panel_rows, count - row), columns, rows[from..].ptr, weight.rowBytes(), scratch.panel[table.words_panel_bytes(row / Words.panel_rows)..].ptr);
            }
            const words = self.rounded.?.words[s * tile * (Words.stretch / 2) ..];
            const next = nextOf(weight, rows, count, column + columns, Words.stretch, rows_of_words);
            table.words_gemm(count, scratch.panel.ptr, self.tokens, words.ptr, self.rounded.?.word_steps[s * tile ..].ptr, stretches, out, weight.rows, @intFromBool(s > 0), &next);
        }
    }

    /// What is packed behind a stretch of columns that ends at `column`: the same rows' next one, or the first one of the rows that follow.
    fn nextOf(weight: Matrix, rows: []const u8, count: usize, column: usize, stretch: usize, group: usize) kernels.activations.Next {
        const goes_on = column < weight.columns;
        const from = if (goes_on) column else 0;
        const width = @min(stretch, weight.columns - from) / weight.dtype.blockLen() * weight.dtype.blockBytes();
        const skipped = from / weight.dtype.blockLen() * weight.dtype.blockBytes();
        const first = if (goes_on) rows.ptr else rows.ptr + rows.len;
        const end = @intFromPtr(weight.bytes.ptr) + weight.bytes.len;
        const left = (end - @intFromPtr(first)) / weight.rowBytes();
        return .{ .at = first + skipped, .row_bytes = weight.rowBytes(), .rows = if (goes_on) count else @min(group, left), .bytes = width };
    }
};

const testing = std.testing;

fn randomRow(prng: *base.Prng, out: []f32) void {
    for (out) |*v| v.* = @floatCast(prng.normal());
}

/// Bit for bit, in both ways.
fn expectAloneAsTogether(pool: *base.Pool, scratch: []const Scratch, rounded: ?*const Rounded, linear: *const Linear, inp: []const f32, tokens: usize) !void {
    const gpa = testing.allocator;
    const w = linear.weight;
    const together = try gpa.alloc(f32, tokens * w.rows);
    defer gpa.free(together);
    const alone = try gpa.alloc(f32, w.rows);
    defer gpa.free(alone);
    for (std.enums.values(Tokens)) |which| {
        multiply(pool, scratch, rounded, &.{.{ .linear = linear, .out = together }}, inp, tokens, which);
        for (0..tokens) |t| {
            multiply(pool, scratch, rounded, &.{.{ .linear = linear, .out = alone }}, inp[t * w.columns ..][0..w.columns], 1, which);
            try testing.expectEqualSlices(f32, alone, together[t * w.rows ..][0..w.rows]);
        }
    }
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
            const rounded: Rounded = try .init(arena.allocator(), tokens, columns);

            var out: [tokens * rows]f32 = undefined;
            multiply(pool, &scratch, &rounded, &.{.{ .linear = &linear, .out = &out }}, &inp, tokens, .of_prompt);
            // 16-bit whole numbers round a little less than f16; values and activations are normal numbers here.
            const tolerance: f32 = if (dtype == .f32) 1e-5 else 6 * 1.5e-4 * @sqrt(@as(f32, columns));
            for (expected, out) |e, o| try testing.expectApproxEqAbs(e, o, tolerance);
            var exact: [tokens * rows]f32 = undefined;
            multiply(pool, &scratch, null, &.{.{ .linear = &linear, .out = &exact }}, &inp, tokens, .of_prompt);
            for (expected, exact) |e, o| try testing.expectApproxEqAbs(e, o, 1e-5);
            if (first) |f| try testing.expectEqualSlices(f32, &f, &out) else first = out;

            var single: [rows]f32 = undefined;
            multiply(pool, &scratch, &rounded, &.{.{ .linear = &linear, .out = &single }}, inp[columns..][0..columns], 1, .of_answers);
            for (expected[rows..][0..rows], single) |e, o| try testing.expectApproxEqAbs(e, o, 1e-5);
            try expectAloneAsTogether(pool, &scratch, &rounded, &linear, &inp, tokens);
        }
    }
}

test "block types are multiplied with rounded activations, alike for one token and several, for any number of threads" {
    const gpa = testing.allocator;
    var prng: base.Prng = .init(4);
    const rows = 75;
    const columns = 768;
    const tokens = 9;
    var inp: [tokens * columns]f32 = undefined;
    randomRow(&prng, &inp);
    for ([_]DType{ .q8_0, .q4_0, .q4_1, .q5_0, .q5_1, .mxfp4, .q4_k, .q5_k, .q6_k }) |dtype| {
        errdefer std.debug.print("{t}\n", .{dtype});
        const bytes = try gpa.alignedAlloc(u8, .@"64", try dtype.tensorBytes(&.{ rows, columns }));
        defer gpa.free(bytes);
        for (bytes) |*b| b.* = @truncate(prng.next());
        const size = dtype.blockBytes();
        for (0..bytes.len / size) |b| { // every f16 in a block is made a sound one
            const block = bytes[b * size ..][0..size];
            const d: [2]u8 = @bitCast(@as(f16, @floatCast(0.001 * (0.5 + prng.uniform()))));
            switch (dtype) {
                .mxfp4 => block[0] = @intCast(116 + prng.below(4)),
                .q6_k => block[208..210].* = d,
                .q4_1, .q5_1, .q4_k, .q5_k => block[0..4].* = d ++ d,
                else => block[0..2].* = d,
            }
        }
        const linear: Linear = .{ .weight = .{ .dtype = dtype, .rows = rows, .columns = columns, .bytes = bytes } };
        var first: ?[tokens * rows]f32 = null;
        for ([_]usize{ 1, 3 }) |n| {
            const pool = try base.Pool.init(gpa, n);
            defer pool.deinit();
            var arena: std.heap.ArenaAllocator = .init(gpa);
            defer arena.deinit();
            var scratch: [3]Scratch = undefined;
            for (&scratch) |*one| one.* = try .init(arena.allocator(), columns);
            const rounded: Rounded = try .init(arena.allocator(), tokens, columns);
            var out: [tokens * rows]f32 = undefined;
            multiply(pool, &scratch, &rounded, &.{.{ .linear = &linear, .out = &out }}, &inp, tokens, .of_prompt);
            if (first) |f| try testing.expectEqualSlices(f32, &f, &out) else first = out;

            var buffer: [columns]f32 = undefined;
            var single: [rows]f32 = undefined;
            var exact: [tokens * rows]f32 = undefined;
            multiply(pool, &scratch, null, &.{.{ .linear = &linear, .out = &exact }}, &inp, tokens, .of_prompt);
            try expectAloneAsTogether(pool, &scratch, &rounded, &linear, &inp, tokens);
            try expectAloneAsTogether(pool, &scratch, null, &linear, &inp, tokens);
            for (0..tokens) |t| {
                var exact_single: [rows]f32 = undefined;
                multiply(pool, &scratch, null, &.{.{ .linear = &linear, .out = &exact_single }}, inp[t * columns ..][0..columns], 1, .of_answers);
                multiply(pool, &scratch, &rounded, &.{.{ .linear = &linear, .out = &single }}, inp[t * columns ..][0..columns], 1, .of_answers);
                for (0..rows) |r| {
                    var sum: f64 = 0;
                    var squares: f64 = 0;
                    for (linear.weight.rowsF32(r, 1, &buffer), inp[t * columns ..][0..columns]) |w, x| {
                        sum += @as(f64, w) * x;
                        squares += @as(f64, w) * w;
                    }
                    // A step of the activations is at most 4.5/127 here; its rounding error is a twelfth of that squared.
                    const tolerated = 6 * 0.0103 * @sqrt(squares);
                    try testing.expectApproxEqAbs(sum, single[r], tolerated);
                    try testing.expectApproxEqAbs(single[r], out[t * rows + r], 1e-4 * @sqrt(squares));
                    try testing.expectApproxEqAbs(sum, exact[t * rows + r], 1e-5 * @sqrt(squares));
                    try testing.expectApproxEqAbs(sum, exact_single[r], 1e-5 * @sqrt(squares));
                }
            }
        }
    }
}
