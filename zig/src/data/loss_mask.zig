//! One bit a token: is this token a target of the loss? Bit i is bit `i % 8` (least significant first) of byte `i / 8`.
//!
//! Bits behind the last token are zero; the reader of a file checks that once and everything here relies on it.
//! Does not know: files, rows. Masking is by position and never by token value, so padding may share an id with the
//! end token without hiding that from the loss.

const std = @import("std");

/// Bytes of a mask over `count` tokens.
pub fn byteCount(count: usize) usize {
    return count / 8 + @intFromBool(count % 8 != 0);
}

pub fn get(mask: []const u8, index: usize) bool {
    return mask[index / 8] >> @intCast(index % 8) & 1 != 0;
}

/// Set bits among `start..end`.
pub fn countRange(mask: []const u8, start: usize, end: usize) usize {
    std.debug.assert(start <= end);
    if (start == end) return 0;
    const first = start / 8;
    const last = (end - 1) / 8;
    const head: u8 = @as(u8, 0xff) << @intCast(start % 8);
    const tail: u8 = @as(u8, 0xff) >> @intCast(7 - (end - 1) % 8);
    if (first == last) return @popCount(mask[first] & head & tail);
    var sum: usize = @popCount(mask[first] & head);
    var i = first + 1;
    while (i + 8 <= last) : (i += 8) sum += @popCount(std.mem.readInt(u64, mask[i..][0..8], .little));
    while (i < last) : (i += 1) sum += @popCount(mask[i]);
    return sum + @popCount(mask[last] & tail);
}

/// True when the bits behind the last of `count` tokens are zero.
pub fn tailIsZero(mask: []const u8, count: usize) bool {
    if (count % 8 == 0) return true;
    return mask[mask.len - 1] >> @intCast(count % 8) == 0;
}

test "counting equals looking at each bit, for every range" {
    var mask: [32]u8 = undefined;
    var word: u32 = 1;
    for (&mask) |*b| {
        word = word *% 1664525 +% 1013904223;
        b.* = @truncate(word >> 16);
    }
    for (0..mask.len * 8) |start| {
        var expected: usize = 0;
        for (start..mask.len * 8) |end| {
            try std.testing.expectEqual(expected, countRange(&mask, start, end));
            expected += @intFromBool(get(&mask, end));
        }
    }
}

test "sizes and the bits behind the end" {
    try std.testing.expectEqual(0, byteCount(0));
    try std.testing.expectEqual(1, byteCount(1));
    try std.testing.expectEqual(1, byteCount(8));
    try std.testing.expectEqual(2, byteCount(9));
    try std.testing.expect(tailIsZero(&.{0x07}, 3));
    try std.testing.expect(!tailIsZero(&.{0x08}, 3));
    try std.testing.expect(tailIsZero(&.{0xff}, 8));
    try std.testing.expect(tailIsZero(&.{}, 0));
}
