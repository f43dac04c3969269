//! The reversible map between bytes and the printable characters that byte-level vocabularies are written in.
//!
//! Bytes 0x21–0x7E, 0xA1–0xAC and 0xAE–0xFF stand for themselves; the other 68, in order, for U+0100 and up.
//! Inside the project tokens are kept as real bytes; the printable form exists in files only.

const std = @import("std");

fn isPrintable(byte: u32) bool {
    return (byte >= 0x21 and byte <= 0x7E) or (byte >= 0xA1 and byte <= 0xAC) or (byte >= 0xAE and byte <= 0xFF);
}

/// Character of each byte.
pub const char_of: [256]u21 = blk: {
    var out: [256]u21 = undefined;
    var next: u21 = 0x100;
    for (&out, 0..) |*char, byte| {
        if (isPrintable(byte)) {
            char.* = byte;
        } else {
            char.* = next;
            next += 1;
        }
    }
    break :blk out;
};

/// Byte of each character below U+0144; null where there is none.
const byte_of: [0x144]?u8 = blk: {
    var out: [0x144]?u8 = @splat(null);
    for (char_of, 0..) |char, byte| out[char] = byte;
    break :blk out;
};

/// The bytes a printable token stands for, or null if it holds a character outside the table.
pub fn toBytes(arena: std.mem.Allocator, printable: []const u8) !?[]const u8 {
    const out = try arena.alloc(u8, printable.len);
    var len: usize = 0;
    var at: usize = 0;
    while (at < printable.len) {
        const n = std.unicode.utf8ByteSequenceLength(printable[at]) catch return null;
        if (at + n > printable.len) return null;
        const char = std.unicode.utf8Decode(printable[at..][0..n]) catch return null;
        if (char >= byte_of.len) return null;
        out[len] = byte_of[char] orelse return null;
        len += 1;
        at += n;
    }
    return out[0..len];
}

/// The printable form of `bytes`.
pub fn toPrintable(gpa: std.mem.Allocator, bytes: []const u8) ![]u8 {
    var out: std.ArrayList(u8) = .empty;
    errdefer out.deinit(gpa);
    for (bytes) |byte| {
        const char = char_of[byte];
        if (char < 0x80) {
            try out.append(gpa, @intCast(char));
        } else {
            try out.appendSlice(gpa, &.{ @intCast(0xC0 | char >> 6), @intCast(0x80 | (char & 0x3F)) });
        }
    }
    return out.toOwnedSlice(gpa);
}

test "all 256 bytes survive the trip" {
    var arena_state: std.heap.ArenaAllocator = .init(std.testing.allocator);
    defer arena_state.deinit();
    const arena = arena_state.allocator();

    var all: [256]u8 = undefined;
    for (&all, 0..) |*byte, i| byte.* = @intCast(i);
    const printable = try toPrintable(arena, &all);
    try std.testing.expectEqualSlices(u8, &all, (try toBytes(arena, printable)).?);
    try std.testing.expectEqualStrings("\u{120}a\u{10a}", try toPrintable(arena, " a\n"));
    try std.testing.expectEqual(null, try toBytes(arena, "a b"));
}
