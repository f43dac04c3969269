//! Fork-join threads: one job at a time, split into as many contiguous parts as there are workers.
//!
//! Workers spin for a moment, then sleep on a futex. The caller is worker 0. `parallelFor` returns when every index
//! was visited once; what a worker wrote is visible to the caller. It must not be called from inside a job, nor by
//! two threads at the same time. Does not know: what is computed. A job that wants the same bits for any number of
//! threads must write by index and never by worker.

const std = @import("std");
const builtin = @import("builtin");

/// About 50 µs of spinning: longer than the gap between two products of a step, shorter than a person notices.
const spin_limit = 4000;

pub const Pool = struct {
    gpa: std.mem.Allocator,
    threads: []std.Thread,
    /// Number of workers, the caller included.
    n: usize,
    job: Job = undefined,
    context: *const anyopaque = undefined,
    stop: bool = false,
    busy: std.atomic.Value(bool) = .init(false),
    generation: std.atomic.Value(u32) align(64) = .init(0),
    sleepers: std.atomic.Value(u32) align(64) = .init(0),
    pending: std.atomic.Value(u32) align(64) = .init(0),

    const Job = *const fn (context: *const anyopaque, worker: usize, n: usize) void;

    pub const max_threads = 1024;

    /// 0 threads = one for each CPU this process may use.
    pub fn init(gpa: std.mem.Allocator, n_threads: usize) !*Pool {
        const wanted = if (n_threads == 0) std.Thread.getCpuCount() catch 1 else n_threads;
        const n = @min(wanted, max_threads);
        const self = try gpa.create(Pool);
        errdefer gpa.destroy(self);

        const threads = try gpa.alloc(std.Thread, n - 1);
        errdefer gpa.free(threads);

        self.* = .{ .gpa = gpa, .threads = threads, .n = n };
        var started: usize = 0;
        errdefer self.join(started);
        while (started < threads.len) : (started += 1) {
            threads[started] = try std.Thread.spawn(.{}, workerLoop, .{ self, started + 1 });
        }
        return self;
    }

    pub fn deinit(self: *Pool) void {
        self.join(self.threads.len);
        self.gpa.free(self.threads);
        self.gpa.destroy(self);
    }

    fn join(self: *Pool, started: usize) void {
        self.stop = true;
        _ = self.generation.fetchAdd(1, .seq_cst);
        futexWake(&self.generation, std.math.maxInt(i32));
        for (self.threads[0..started]) |thread| thread.join();
    }

    /// Calls `f(context, index, worker)` once for each index in 0..count. Worker w gets the w-th contiguous part.
    pub fn parallelFor(
        self: *Pool,
        context: anytype,
        count: usize,
        comptime f: fn (@TypeOf(context), index: usize, worker: usize) void,
    ) void {
        if (count == 0) return;
        const Task = struct {
            context: @TypeOf(context),
            count: usize,

            fn run(opaque_task: *const anyopaque, worker: usize, n: usize) void {
                const task: *const @This() = @ptrCast(@alignCast(opaque_task));
                const begin = part(task.count, worker, n);
                const end = part(task.count, worker + 1, n);
                for (begin..end) |index| f(task.context, index, worker);
            }
        };
        const task: Task = .{ .context = context, .count = count };
        if (self.n == 1 or count == 1) {
            Task.run(&task, 0, 1);
            return;
        }
        if (self.busy.swap(true, .acquire)) @panic("Pool.parallelFor was called while a job is running");
        defer self.busy.store(false, .release);

        self.job = Task.run;
        self.context = &task;
        self.pending.store(@intCast(self.n - 1), .monotonic);
        _ = self.generation.fetchAdd(1, .seq_cst);
        if (self.sleepers.load(.seq_cst) != 0) futexWake(&self.generation, std.math.maxInt(i32));
        Task.run(&task, 0, self.n);
        var spins: u32 = 0;
        while (true) {
            const left = self.pending.load(.acquire);
            if (left == 0) break;
            spins +|= 1;
            if (spins < spin_limit) std.atomic.spinLoopHint() else futexWait(&self.pending, left);
        }
    }

    fn workerLoop(self: *Pool, worker: usize) void {
        blockSignals();
        var seen: u32 = 0;
        while (true) {
            var spins: u32 = 0;
            while (self.generation.load(.acquire) == seen) {
                spins +|= 1;
                if (spins < spin_limit) {
                    std.atomic.spinLoopHint();
                } else {
                    _ = self.sleepers.fetchAdd(1, .seq_cst);
                    if (self.generation.load(.seq_cst) == seen) futexWait(&self.generation, seen);
                    _ = self.sleepers.fetchSub(1, .seq_cst);
                }
            }
            seen +%= 1;
            if (self.stop) return;
            self.job(self.context, worker, self.n);
            if (self.pending.fetchSub(1, .acq_rel) == 1) futexWake(&self.pending, 1);
        }
    }
};

/// Begin of part `index` of `parts`, without overflow for any count below 2^53.
fn part(count: usize, index: usize, parts: usize) usize {
    const base = count / parts;
    const rest = count % parts;
    return base * index + @min(index, rest);
}

/// Signals belong to the program's own threads, but a fault's is the thread's that made it: blocked, it would kill unheard.
fn blockSignals() void {
    if (builtin.os.tag != .linux) return;
    var others = std.posix.sigfillset();
    for ([_]std.posix.SIG{ .BUS, .SEGV, .FPE, .ILL, .TRAP }) |fault| std.posix.sigdelset(&others, fault);
    std.posix.sigprocmask(std.posix.SIG.BLOCK, &others, null);
}

fn futexWait(word: *std.atomic.Value(u32), expect: u32) void {
    if (builtin.os.tag == .linux) {
        _ = std.os.linux.futex_4arg(&word.raw, .{ .cmd = .WAIT, .private = true }, expect, null);
    } else {
        std.Thread.yield() catch {}; // No futex in std here: give the core away and look again.
    }
}

fn futexWake(word: *std.atomic.Value(u32), count: u32) void {
    if (builtin.os.tag == .linux) {
        _ = std.os.linux.futex_3arg(&word.raw, .{ .cmd = .WAKE, .private = true }, count);
    }
}

test "every index is visited once, by one worker, for any number of threads" {
    const gpa = std.testing.allocator;
    for ([_]usize{ 1, 2, 3, 7 }) |n| {
        const pool = try Pool.init(gpa, n);
        defer pool.deinit();

        try std.testing.expectEqual(n, pool.n);
        for (0..40) |count| {
            var visits: [40]u32 = @splat(0);
            const Ctx = struct { visits: *[40]u32, n: usize };
            pool.parallelFor(Ctx{ .visits = &visits, .n = n }, count, struct {
                fn f(ctx: Ctx, index: usize, worker: usize) void {
                    std.debug.assert(worker < ctx.n);
                    ctx.visits[index] += 1;
                }
            }.f);
            for (visits, 0..) |v, i| try std.testing.expectEqual(@as(u32, if (i < count) 1 else 0), v);
        }
    }
}

test "workers that fell asleep wake up" {
    const pool = try Pool.init(std.testing.allocator, 3);
    defer pool.deinit();

    var sum: std.atomic.Value(usize) = .init(0);
    for (0..20) |round| {
        if (round % 5 == 0) std.testing.io.sleep(.fromMilliseconds(2), .awake) catch {};
        pool.parallelFor(&sum, 100, struct {
            fn f(total: *std.atomic.Value(usize), index: usize, _: usize) void {
                _ = total.fetchAdd(index, .monotonic);
            }
        }.f);
    }
    try std.testing.expectEqual(20 * 4950, sum.load(.monotonic));
}

test "a failed allocation at any place leaks no memory" {
    try std.testing.checkAllAllocationFailures(std.testing.allocator, struct {
        fn f(gpa: std.mem.Allocator) !void {
            const pool = try Pool.init(gpa, 3);
            pool.deinit();
        }
    }.f, .{});
}

test "zero threads means one for each CPU" {
    const pool = try Pool.init(std.testing.allocator, 0);
    defer pool.deinit();

    try std.testing.expect(pool.n >= 1);
}

test "parts are contiguous and cover the count" {
    for (0..50) |count| for (1..9) |parts| {
        try std.testing.expectEqual(0, part(count, 0, parts));
        try std.testing.expectEqual(count, part(count, parts, parts));
        for (0..parts) |i| try std.testing.expect(part(count, i, parts) <= part(count, i + 1, parts));
    };
}
