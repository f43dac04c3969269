//! Changes to a file that keep most of it: what is left intact leads readers past their first checks.
//!
//! Numbers of the widths that headers use, digits in text, brackets and quotes, pieces moved, doubled, left out, or taken from another
//! file. Does not know: formats.

const std = @import("std");
const Prng = @import("abi").base.Prng;

const odd_words = [_][]const u8{
    "-1",   "0",    "1e999", "NaN",              "1e18",        "18446744073709551616", "null", "true", "[]",      "{}",      "\"\"",           "\"x\"", "4294967296", "0.5",          "-0",                                                                               "9007199254740993",             "2147483648",
    "[",    "]",    "{",     "}",                ",",           ":",                    "\"",   "\\",   "\\ud800", "\\u0000", "\\udc00\\ud800", "\xff",  "\xc0\x80",   "\xed\xa0\x80", "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[", "{\"a\":{\"a\":{\"a\":{\"a\":", "\n",
    "\r\n", "\x00", " ",     "../../etc/passwd", "/etc/passwd",
};
const odd_numbers = [_]u64{ 0, 1, 2, 3, 7, 8, 31, 32, 33, 63, 64, 127, 128, 255, 256, 511, 512, 513, 1023, 1024, 4095, 65535, 65536, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 32, (1 << 53) + 1, 1 << 62, 0x7FFFFFFFFFFFFFFF, 1 << 63, 0xFFFFFFFFFFFFFFFF };

/// Changes the first `len` bytes of `room` a few times; returns the new length, at most that of `room`.
pub fn change(prng: *Prng, room: []u8, len: usize, other: []const u8) usize {
    var now = len;
    const times = @as(usize, 1) << @intCast(prng.below(4));
    for (0..1 + prng.below(times)) |_| now = once(prng, room, now, other);
    return now;
}

fn once(prng: *Prng, room: []u8, len: usize, other: []const u8) usize {
    if (len < 16) return insert(prng, room, len, odd_words[@intCast(prng.below(odd_words.len))]);
    const at = place(prng, len);
    switch (prng.below(14)) {
        0 => room[at] ^= @as(u8, 1) << @intCast(prng.below(8)),
        1 => room[at] = @truncate(prng.next()),
        2 => return at, // Cut.
        3 => number(prng, u32, room[0..len], at),
        4 => number(prng, u64, room[0..len], at),
        5 => number(prng, u16, room[0..len], at),
        6, 7 => return replaceDigits(prng, room, len, at),
        8 => return insert(prng, room, len, odd_words[@intCast(prng.below(odd_words.len))]),
        9 => { // A piece left out.
            const count = @min(len - at, 1 + prng.below(64));
            std.mem.copyForwards(u8, room[at .. len - count], room[at + count .. len]);
            return len - count;
        },
        10 => { // A piece over another place.
            const from: usize = @intCast(prng.below(len));
            const count = @min(len - @max(at, from), 1 + prng.below(64));
            std.mem.copyForwards(u8, room[at..][0..count], room[from..][0..count]);
        },
        11 => { // A piece doubled.
            const count = @min(len - at, 1 + prng.below(256));
            if (len + count > room.len) return len;
            std.mem.copyBackwards(u8, room[at + count .. len + count], room[at..len]);
            return len + count;
        },
        12 => { // A piece of another file.
            if (other.len == 0) return len;
            const from: usize = @intCast(prng.below(other.len));
            const count = @min(@min(other.len - from, len - at), 1 + prng.below(256));
            @memcpy(room[at..][0..count], other[from..][0..count]);
        },
        else => { // The middle repeated many times: deep and long things.
            const count = @min(len - at, 1 + prng.below(8));
            const times = 1 + prng.below(2000);
            var now = len;
            for (0..times) |_| {
                if (now + count > room.len / 2) break;
                std.mem.copyBackwards(u8, room[at + count .. now + count], room[at..now]);
                now += count;
            }
            return now;
        },
    }
    return len;
}

/// Anywhere, but as often near the beginning, where binary files say what they are.
fn place(prng: *Prng, len: usize) usize {
    const reach = @as(usize, 64) << @intCast(prng.below(12));
    return @intCast(prng.below(@min(len, reach)));
}

fn number(prng: *Prng, comptime T: type, bytes: []u8, at: usize) void {
    if (at + @sizeOf(T) > bytes.len) return;
    const there = bytes[at..][0..@sizeOf(T)];
    const old = std.mem.readInt(T, there, .little);
    const new: T = switch (prng.below(4)) {
        0 => old +% 1,
        1 => old -% 1,
        2 => @truncate(prng.next()),
        else => @truncate(odd_numbers[@intCast(prng.below(odd_numbers.len))]),
    };
    std.mem.writeInt(T, there, new, .little);
}

/// The next run of digits becomes something else.
fn replaceDigits(prng: *Prng, room: []u8, len: usize, at: usize) usize {
    var start = at;
    while (start < len and !std.ascii.isDigit(room[start])) start += 1;
    if (start == len) return len;
    var end = start;
    while (end < len and std.ascii.isDigit(room[end])) end += 1;
    var buffer: [24]u8 = undefined;
    const word = if (prng.below(2) == 0)
        odd_words[@intCast(prng.below(odd_words.len))]
    else
        std.fmt.bufPrint(&buffer, "{d}", .{odd_numbers[@intCast(prng.below(odd_numbers.len))]}) catch unreachable; // 20 digits.
    std.mem.copyForwards(u8, room[start .. len - (end - start)], room[end..len]);
    return insertAt(room, len - (end - start), start, word);
}

fn insert(prng: *Prng, room: []u8, len: usize, word: []const u8) usize {
    return insertAt(room, len, @intCast(prng.below(len + 1)), word);
}

fn insertAt(room: []u8, len: usize, at: usize, word: []const u8) usize {
    if (len + word.len > room.len) return len;
    std.mem.copyBackwards(u8, room[at + word.len .. len + word.len], room[at..len]);
    @memcpy(room[at..][0..word.len], word);
    return len + word.len;
}

test "changes stay inside, and most differ" {
    var prng: Prng = .init(1);
    var room: [4096]u8 = undefined;
    const seed = "{\"a\": 12, \"b\": [1, 2, 3]} {\"a\": 12, \"b\": [1, 2, 3], \"c\": null}";
    var same: usize = 0;
    for (0..5000) |_| {
        @memcpy(room[0..seed.len], seed);
        const len = change(&prng, &room, seed.len, seed);
        try std.testing.expect(len <= room.len);
        if (std.mem.eql(u8, room[0..len], seed)) same += 1;
    }
    try std.testing.expect(same < 500);
}
