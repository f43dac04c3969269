//! Token embedding: rows of a table by id. table [V, C], out [N, C], ids [N]; every id is below V.

const std = @import("std");
const Exec = @import("exec.zig").Exec;

pub fn forward(comptime T: type, ex: *Exec, out: []T, table: []const T, ids: []const u32) void {
    _ = ex;
    forwardNaive(T, out, table, ids);
}

/// dtable[ids[i]] += dout[i], in the order of i.
pub fn backward(comptime T: type, ex: *Exec, dtable: []T, dout: []const T, ids: []const u32) void {
    _ = ex;
    backwardNaive(T, dtable, dout, ids);
}

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
