//! What every op runs on: the thread pool and the scratch memory of each worker.
//!
//! Memory is taken in `init` and `reserve` and nowhere else, so a training step allocates nothing. An op that finds
//! too little scratch stops the program: the caller forgot to reserve, which is a bug and no condition of the world.
//! One op runs at a time on one `Exec`.

const std = @import("std");
const base = @import("base");
const kernels = @import("kernels");

/// Whether a result replaces what was there or is added to it.
pub const Mode = enum(c_int) { store = 0, accumulate = 1 };

/// Precision of matrix products (linear layers, attention, output) on f32 arrays. bf16 rounds both operands to bf16 and
/// sums in f32; results and everything between products stay f32. f64 is always computed in full.
pub const Compute = enum { full, bf16 };

/// How many parts of `size` cover `count`.
pub fn ceilDiv(count: usize, size: usize) usize {
    return count / size + @intFromBool(count % size != 0);
}

pub const Bytes = []align(64) u8;

pub const Exec = struct {
    gpa: std.mem.Allocator,
    pool: *base.Pool,
    workers: []Worker,
    /// One buffer all workers see (logits of a chunk of rows), and whether it is somebody else's.
    shared: Bytes = empty,
    is_lent: bool = false,
    /// May be changed between ops.
    compute: Compute = .full,

    const Worker = struct {
        /// Panels of the matrix product.
        packing: Bytes = empty,
        /// Scores and packed keys and values of attention, expanded blocks of frozen weights.
        scratch: Bytes = empty,
        /// The head whose keys and values attention has packed in `scratch`.
        packed_head: ?usize = null,
    };
    const empty: Bytes = &.{};

    /// The largest shapes that will be asked for. Zero = the op is not used.
    pub const Need = struct {
        /// Longest row of tokens that attention sees.
        attention_time: usize = 0,
        /// Widest head of attention.
        attention_head_dim: usize = 0,
        /// Vocabulary of `cross_entropy`.
        vocab_size: usize = 0,
        /// Most rows one call of `cross_entropy` gets; fewer rows need less scratch.
        loss_rows: usize = std.math.maxInt(usize),
        /// Width of the rows `cross_entropy` gets.
        loss_columns: usize = 0,
        /// Widest weight of `frozen` products.
        frozen_columns: usize = 0,
    };

    pub fn init(gpa: std.mem.Allocator, pool: *base.Pool) error{OutOfMemory}!Exec {
        const workers = try gpa.alloc(Worker, pool.n);
        for (workers) |*w| w.* = .{};
        var self: Exec = .{ .gpa = gpa, .pool = pool, .workers = workers };
        errdefer self.deinit();

        const packing = kernels.gemmWorkspaceBytes();
        for (workers) |*w| w.packing = try gpa.alignedAlloc(u8, .@"64", packing);
        return self;
    }

    pub fn deinit(self: *Exec) void {
        for (self.workers) |w| {
            self.gpa.free(w.packing);
            self.gpa.free(w.scratch);
        }
        self.gpa.free(self.workers);
        if (!self.is_lent) self.gpa.free(self.shared);
        self.* = undefined;
    }

    /// Bytes of the shared buffer that `need` asks for.
    pub fn sharedBytes(comptime T: type, need: Need) error{OutOfMemory}!usize {
        const count = @import("cross_entropy.zig").scratchCount(T, need.loss_rows, need.vocab_size, need.loss_columns);
        return std.math.mul(usize, count, @sizeOf(T)) catch error.OutOfMemory;
    }

    /// Uses `bytes` as the shared buffer, if they are more than what is there. The owner must not need their contents when it calls
    /// `cross_entropy`, and gives word with `takeBack` before it frees them.
    pub fn lend(self: *Exec, bytes: Bytes) void {
        if (bytes.len <= self.shared.len) return;
        if (!self.is_lent) self.gpa.free(self.shared);
        self.shared = bytes;
        self.is_lent = true;
    }

    pub fn takeBack(self: *Exec, bytes: Bytes) void {
        if (!self.is_lent or self.shared.ptr != bytes.ptr) return;
        self.shared = empty;
        self.is_lent = false;
    }

    /// Grows the scratch to what `need` asks for; never shrinks it. Call once, before the first step.
    pub fn reserve(self: *Exec, comptime T: type, need: Need) error{OutOfMemory}!void {
        const attention = @import("attention.zig").scratchBytes(T, need.attention_time, need.attention_head_dim);
        const frozen = @import("frozen.zig").scratchCount(need.frozen_columns);
        const head = if (need.frozen_columns > 0) @import("cross_entropy.zig").workerScratchCount(need.vocab_size, need.loss_columns) else 0;
        const scratch = std.math.mul(usize, @max(ceilDiv(attention, @sizeOf(T)), frozen, head), @sizeOf(T)) catch return error.OutOfMemory;
        for (self.workers) |*w| try self.grow(&w.scratch, scratch);
        const shared = try sharedBytes(T, need);
        if (self.shared.len >= shared) return;
        if (self.is_lent) self.takeBack(self.shared);
        try self.grow(&self.shared, shared);
    }

    fn grow(self: *Exec, buffer: *Bytes, size: usize) error{OutOfMemory}!void {
        if (buffer.len >= size) return;
        self.gpa.free(buffer.*); // Nothing in it outlives an op: free first, so that the peak is the new size alone.
        buffer.* = empty;
        buffer.* = try self.gpa.alignedAlloc(u8, .@"64", size);
    }

    /// The matrix product of this precision.
    pub fn gemm(self: *const Exec, comptime T: type) @FieldType(kernels.Table(T), "gemm") {
        return if (T == f32 and self.compute == .bf16) kernels.lowTable().gemm_bf16 else kernels.table(T).gemm;
    }

    /// The same with a right side that `packB` has laid out.
    pub fn gemmPacked(self: *const Exec, comptime T: type) @FieldType(kernels.Table(T), "gemm_packed") {
        return if (T == f32 and self.compute == .bf16) kernels.lowTable().gemm_packed_bf16 else kernels.table(T).gemm_packed;
    }

    pub fn packB(self: *const Exec, comptime T: type) @FieldType(kernels.Table(T), "pack_b") {
        return if (T == f32 and self.compute == .bf16) kernels.lowTable().pack_b_bf16 else kernels.table(T).pack_b;
    }

    pub fn workerScratch(self: *Exec, worker: usize, comptime T: type, count: usize) []align(64) T {
        return view(self.workers[worker].scratch, T, count);
    }

    pub fn workerBytes(self: *Exec, worker: usize, count: usize) []align(64) u8 {
        return view(self.workers[worker].scratch, u8, count);
    }

    pub fn sharedScratch(self: *Exec, comptime T: type, count: usize) []align(64) T {
        return view(self.shared, T, count);
    }

    fn view(bytes: Bytes, comptime T: type, count: usize) []align(64) T {
        if (bytes.len / @sizeOf(T) < count) @panic("ops scratch is too small: call Exec.reserve with the largest shapes");
        const items: [*]align(64) T = @ptrCast(bytes.ptr);
        return items[0..count];
    }
};

test "a failed allocation at any place leaks nothing and leaves an Exec that can be freed" {
    const pool = try base.Pool.init(std.testing.allocator, 2);
    defer pool.deinit();

    const attempt = struct {
        fn f(gpa: std.mem.Allocator, p: *base.Pool) !void {
            var ex = try Exec.init(gpa, p);
            defer ex.deinit();

            try ex.reserve(f32, .{ .attention_time = 40, .attention_head_dim = 8, .vocab_size = 11, .loss_rows = 9, .loss_columns = 4 });
            try ex.reserve(f64, .{ .attention_time = 40, .attention_head_dim = 8, .vocab_size = 11, .loss_rows = 9, .loss_columns = 4 });
            try ex.reserve(f32, .{ .attention_time = 4, .attention_head_dim = 8 });
        }
    }.f;
    try std.testing.checkAllAllocationFailures(std.testing.allocator, attempt, .{pool});
}

test "a lent buffer is used while it is the largest, and never freed" {
    const gpa = std.testing.allocator;
    const pool = try base.Pool.init(gpa, 1);
    defer pool.deinit();

    var ex: Exec = try .init(gpa, pool);
    defer ex.deinit();

    const need: Exec.Need = .{ .vocab_size = 50, .loss_rows = 9, .loss_columns = 4 };
    const bytes = try gpa.alignedAlloc(u8, .@"64", try Exec.sharedBytes(f32, need));
    defer gpa.free(bytes);

    try ex.reserve(f32, .{ .vocab_size = 11, .loss_rows = 9, .loss_columns = 4 });
    ex.lend(bytes);
    try ex.reserve(f32, need);
    try std.testing.expectEqual(bytes.ptr, ex.shared.ptr);
    ex.lend(bytes[0..64]);
    try std.testing.expectEqual(bytes.len, ex.shared.len);
    try ex.reserve(f32, .{ .vocab_size = 500, .loss_rows = 9, .loss_columns = 4 });
    try std.testing.expect(!ex.is_lent);
    const own = ex.shared.len;
    ex.takeBack(bytes);
    try std.testing.expectEqual(own, ex.shared.len);
    try std.testing.expect(own > bytes.len);
    const more = try gpa.alignedAlloc(u8, .@"64", own + 64);
    defer gpa.free(more);

    ex.lend(more);
    try std.testing.expect(ex.is_lent);
    ex.takeBack(more);
    try std.testing.expectEqual(0, ex.shared.len);
}

test "all ops compile for both types and agree with their twins on a small shape" {
    var rig = try @import("check.zig").Rig.init(2);
    defer rig.deinit();

    inline for (.{ f32, f64 }) |T| {
        try rig.ex.reserve(T, .{ .attention_time = 3, .attention_head_dim = 4, .vocab_size = 5, .loss_rows = 2, .loss_columns = 3 });
        const ops = @import("ops.zig");
        var bag: @import("check.zig").Bag = .{};
        defer bag.deinit();

        const x = bag.normal(T, 24);
        const y = bag.normal(T, 24);
        const z = bag.zeros(T, 24);
        const s = bag.zeros(T, 24);
        ops.matmul.forward(T, &rig.ex, z[0..8], x[0..12], y[0..6], null, 4, 2, 3, .store);
        ops.matmul.backwardInput(T, &rig.ex, s[0..12], z[0..8], y[0..6], 4, 2, 3, .store);
        ops.matmul.backwardWeight(T, &rig.ex, s[0..6], s[6..8], z[0..8], x[0..12], 4, 2, 3);
        ops.rms_norm.forward(T, &rig.ex, z[0..12], s[0..4], x[0..12], y[0..3], 4, 3, 1e-5);
        ops.rms_norm.backward(T, &rig.ex, z[0..12], s[4..7], x[0..12], x[0..12], y[0..3], s[0..4], 4, 3, .store);
        var table = try ops.rope.Table(T).init(std.testing.allocator, &.{ 1, 0.1 }, 8, 1);
        defer table.deinit();

        ops.rope.apply(T, &rig.ex, z, 2, 4, &table, &.{ 0, 1, 7 }, .forward);
        const dims: ops.attention.Dims = .{ .batch = 1, .time = 3, .heads = 2, .kv_heads = 1, .head_dim = 4 };
        const t = bag.zeros(T, 24);
        ops.attention.forward(T, &rig.ex, z, s[0..6], x, y[0..12], y[12..24], dims, null);
        ops.attention.backward(T, &rig.ex, t, bag.zeros(T, 12), bag.zeros(T, 12), x, z, s[0..6], x, y[0..12], y[12..24], dims, null);
        ops.swiglu.forward(T, &rig.ex, z, x, y);
        ops.swiglu.backward(T, &rig.ex, s, t, x, z, y);
        ops.embedding.forward(T, &rig.ex, z[0..4], x, &.{ 3, 1 });
        ops.embedding.backward(T, &rig.ex, z, x[0..4], &.{ 3, 1 });
        const result = ops.cross_entropy.run(T, &rig.ex, .{ .hidden = x[0..6], .weight = .{ .dense = y[0..15] }, .targets = &.{ 4, -1 }, .vocab_size = 5, .scale = 1, .dhidden = z[0..6], .dweight = s[0..15] });
        try std.testing.expectEqual(1, result.count);
        ops.elementwise.add(T, &rig.ex, z, x);
        ops.elementwise.addScaled(T, &rig.ex, z, 2, x);
        ops.elementwise.scale(T, &rig.ex, z, 2);
        ops.elementwise.fill(T, &rig.ex, z, 0);
        try std.testing.expectEqual(0, ops.reduce.sumSquares(T, &rig.ex, z));
        for ([_]ops.optimizer.Kind{ .sgd, .adam, .adamw }) |kind| ops.optimizer.step(T, &rig.ex, kind, .{ .w = x, .g = y, .m = z, .v = s, .lr = 0.1, .step = 1 });
    }
}
