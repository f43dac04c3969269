//! From ids and mask bits to targets: the id, or −1 where the bit says that a token is not in the loss.
//!
//! `fill` is the fast form of `fillNaive`, which is the definition, and `fillText` of `fillTextNaive`; tests hold each to its
//! twin. An id that no i32
//! holds becomes the largest i32: beyond every vocabulary, too, and never −1.
//! Does not know: rows, shifts, files.

const std = @import("std");
const loss_mask = @import("loss_mask.zig");

const lanes = 8;
const Ids = @Vector(lanes, u32);
const Targets = @Vector(lanes, i32);

/// targets[i] = ids[i] if bit `first_bit` + i of `mask` is set, else −1. Without a mask all are.
pub fn fill(targets: []i32, ids: []const u32, mask: ?[]const u8, first_bit: usize) void {
    std.debug.assert(targets.len == ids.len);
    const bits = mask orelse return fillAll(targets, ids);
    var i: usize = 0;
    // Up to a byte's first bit; then a byte is `lanes` tokens.
    while (i < ids.len and (first_bit + i) % 8 != 0) : (i += 1) targets[i] = one(ids[i], loss_mask.get(bits, first_bit + i));
    const bytes = bits[@min(bits.len, (first_bit + i) / 8)..];
    for (bytes[0..@min(bytes.len, (ids.len - i) / lanes)]) |byte| {
        const kept = held(ids[i..][0..lanes].*);
        targets[i..][0..lanes].* = kept | left_out[byte];
        i += lanes;
    }
    while (i < ids.len) : (i += 1) targets[i] = one(ids[i], loss_mask.get(bits, first_bit + i));
}

fn fillAll(targets: []i32, ids: []const u32) void {
    var i: usize = 0;
    while (i + 4 * lanes <= ids.len) : (i += 4 * lanes) {
        inline for (0..4) |j| targets[i + j * lanes ..][0..lanes].* = held(ids[i + j * lanes ..][0..lanes].*);
    }
    while (i < ids.len) : (i += 1) targets[i] = one(ids[i], true);
}

/// A text of its own: inputs are the ids, and each predicts the next, the last nothing. `first_bit` is the bit of ids[0].
pub fn fillText(inputs: []u32, targets: []i32, ids: []const u32, mask: ?[]const u8, first_bit: usize) void {
    std.debug.assert(inputs.len == ids.len and targets.len == ids.len and ids.len > 0);
    inputs[0] = ids[0];
    targets[ids.len - 1] = -1;
    var i: usize = 1;
    if (mask) |bits| {
        while (i < ids.len and (first_bit + i) % 8 != 0) : (i += 1) {
            inputs[i] = ids[i];
            targets[i - 1] = one(ids[i], loss_mask.get(bits, first_bit + i));
        }
        const bytes = bits[@min(bits.len, (first_bit + i) / 8)..];
        for (bytes[0..@min(bytes.len, (ids.len - i) / lanes)]) |byte| {
            const v: Ids = ids[i..][0..lanes].*;
            inputs[i..][0..lanes].* = v;
            targets[i - 1 ..][0..lanes].* = held(v) | left_out[byte];
            i += lanes;
        }
    } else while (i + lanes <= ids.len) : (i += lanes) {
        const v: Ids = ids[i..][0..lanes].*;
        inputs[i..][0..lanes].* = v;
        targets[i - 1 ..][0..lanes].* = held(v);
    }
    while (i < ids.len) : (i += 1) {
        inputs[i] = ids[i];
        targets[i - 1] = one(ids[i], if (mask) |bits| loss_mask.get(bits, first_bit + i) else true);
    }
}

/// The definition.
pub fn fillTextNaive(inputs: []u32, targets: []i32, ids: []const u32, mask: ?[]const u8, first_bit: usize) void {
    for (inputs, targets, ids, first_bit.., 1..) |*input, *target, id, bit, next| {
        input.* = id;
        const counts = next < ids.len and (mask == null or loss_mask.get(mask.?, bit + 1));
        target.* = if (counts) one(ids[next], true) else -1;
    }
}

/// Ids as i32, those beyond it as the largest.
inline fn held(ids: Ids) Targets {
    const signed: Targets = @bitCast(ids);
    const beyond = signed >> @splat(31); // All ones where the highest bit is set.
    return (signed | beyond) & @as(Targets, @splat(std.math.maxInt(i32)));
}

/// For each byte of a mask −1 in the lanes whose bit is not set, 0 in the others.
const left_out: [256]Targets = table: {
    @setEvalBranchQuota(10_000);
    var all: [256]Targets = undefined;
    for (&all, 0..) |*row, byte| {
        var values: [lanes]i32 = undefined;
        for (&values, 0..) |*v, bit| v.* = if (byte >> bit & 1 == 0) -1 else 0;
        row.* = values;
    }
    break :table all;
};

fn one(id: u32, counts: bool) i32 {
    return if (counts) std.math.lossyCast(i32, id) else -1;
}

/// The definition.
pub fn fillNaive(targets: []i32, ids: []const u32, mask: ?[]const u8, first_bit: usize) void {
    for (targets, ids, first_bit..) |*target, id, bit|
        target.* = one(id, if (mask) |bits| loss_mask.get(bits, bit) else true);
}

const testing = std.testing;
const base = @import("base");

test "the fast form equals the definition for every length, place and mask" {
    var prng: base.Prng = .init(11);
    var ids: [150]u32 = undefined;
    var mask: [24]u8 = undefined;
    for (0..6) |round| {
        for (&ids) |*id| id.* = switch (prng.below(4)) {
            0 => std.math.maxInt(u32) - @as(u32, @intCast(prng.below(3))),
            1 => @as(u32, 1 << 31) - @as(u32, @intCast(prng.below(2))),
            else => @truncate(prng.next() >> 40),
        };
        for (&mask) |*byte| byte.* = switch (round % 3) {
            0 => 0,
            1 => 0xff,
            else => @truncate(prng.next()),
        };
        for (0..ids.len + 1) |len| for (0..17) |first| {
            var got: [ids.len]i32 = @splat(7);
            var want: [ids.len]i32 = @splat(7);
            // Not a byte more of the mask than its tokens have.
            const given: ?[]const u8 = if (round == 5) null else mask[0..loss_mask.byteCount(first + len)];
            fill(got[0..len], ids[0..len], given, first);
            fillNaive(want[0..len], ids[0..len], given, first);
            try testing.expectEqualSlices(i32, &want, &got);
            if (len == 0) continue;
            var inputs: [2][ids.len]u32 = @splat(@splat(9));
            fillText(inputs[0][0..len], got[0..len], ids[0..len], given, first);
            fillTextNaive(inputs[1][0..len], want[0..len], ids[0..len], given, first);
            try testing.expectEqualSlices(i32, &want, &got);
            try testing.expectEqualSlices(u32, &inputs[1], &inputs[0]);
        };
    }
}
