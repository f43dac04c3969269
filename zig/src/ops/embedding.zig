//! Token embedding: rows of a table by id. table [V, C], out [N, C], ids [N]; every id is below V.

const std = @import("std");
const kernels = @import("kernels");
const Exec = @import("exec.zig").Exec;
const ceilDiv = @import("exec.zig").ceilDiv;

pub fn forward(comptime T: type, ex: *Exec, out: []T, table: []const T, ids: []const u32) void {
    if (ids.len == 0) return;
    const width = out.len / ids.len;
    std.debug.assert(width * ids.len == out.len);
    const Job = struct { out: []T, table: []const T, ids: []const u32, width: usize };
    ex.pool.parallelFor(Job{ .out = out, .table = table, .ids = ids, .width = width }, ids.len, struct {
        fn f(job: Job, i: usize, _: usize) void {
            @memcpy(job.out[i * job.width ..][0..job.width], job.table[job.ids[i] * job.width ..][0..job.width]);
        }
    }.f);
}

/// dtable[ids[i]] += dout[i], in the order of i.
pub fn backward(comptime T: type, ex: *Exec, dtable: []T, dout: []const T, ids: []const u32) void {
    if (ids.len == 0) return;
    const width = dout.len / ids.len;
    std.debug.assert(width * ids.len == dout.len);
    const Job = struct { dtable: []T, dout: []const T, ids: []const u32, width: usize };
    // By columns: a row that several ids name gets its terms in the order of the ids.
    ex.pool.parallelFor(Job{ .dtable = dtable, .dout = dout, .ids = ids, .width = width }, ceilDiv(width, column_part), struct {
        fn f(job: Job, index: usize, _: usize) void {
            const col = index * column_part;
            const count = @min(column_part, job.width - col);
            for (job.ids, 0..) |id, i| {
                const row = job.dtable[id * job.width + col ..][0..count];
                kernels.table(T).add(count, row.ptr, job.dout.ptr + i * job.width + col);
            }
        }
    }.f);
}

/// Columns of one task.
const column_part = 64;

pub fn forwardNaive(comptime T: type, out: []T, table: []const T, ids: []const u32) void {
    if (ids.len == 0) return;
    const c = out.len / ids.len;
    for (ids, 0..) |id, i| @memcpy(out[i * c ..][0..c], table[id * c ..][0..c]);
}

pub fn backwardNaive(comptime T: type, dtable: []T, dout: []const T, ids: []const u32) void {
    if (ids.len == 0) return;
    const c = dout.len / ids.len;
    for (ids, 0..) |id, i| {
        for (dtable[id * c ..][0..c], dout[i * c ..][0..c]) |*t, d| t.* += d;
    }
}

const check = @import("check.zig");

test "rows are found and their gradients return, with the same bits for any number of threads" {
    var bag: check.Bag = .{};
    defer bag.deinit();

    const ids = [_]u32{ 3, 0, 3, 6, 3, 1, 0 };
    for ([_]usize{ 1, 7, 33, 64, 65, 131 }) |width| {
        const table = bag.normal(f32, 7 * width);
        const dout = bag.normal(f32, ids.len * width);
        const before = bag.normal(f32, 7 * width);
        const want = [2][]f32{ bag.zeros(f32, ids.len * width), bag.copy(f32, before) };
        forwardNaive(f32, want[0], table, &ids);
        backwardNaive(f32, want[1], dout, &ids);
        for (check.thread_counts) |threads| {
            var rig = try check.Rig.init(threads);
            defer rig.deinit();

            const got = [2][]f32{ bag.zeros(f32, ids.len * width), bag.copy(f32, before) };
            forward(f32, &rig.ex, got[0], table, &ids);
            backward(f32, &rig.ex, got[1], dout, &ids);
            for (want, got) |w, g| try check.expectSame(f32, w, g);
        }
    }
}

test "backward is the derivative of forward" {
    var rig = try check.Rig.init(1);
    defer rig.deinit();

    var bag: check.Bag = .{};
    defer bag.deinit();

    const Problem = struct { ex: *Exec, table: []f64, out: []f64, dout: []f64 };
    const p: Problem = .{ .ex = &rig.ex, .table = bag.normal(f64, 20), .out = bag.zeros(f64, 12), .dout = bag.normal(f64, 12) };
    const loss = struct {
        fn f(q: Problem) f64 {
            forward(f64, q.ex, q.out, q.table, &.{ 2, 4, 2 });
            return check.weigh(q.out, q.dout);
        }
    }.f;
    const dtable = bag.zeros(f64, 20);
    backward(f64, p.ex, dtable, p.dout, &.{ 2, 4, 2 });
    try check.expectGradient(p.table, dtable, p, loss);
}
