//! Is a text UTF-8? Sixty-four bytes at a time, as bit maps: bit i of a map says something of byte i.
//!
//! A lead byte announces continuations by shifting its bit; what is announced must be what is there. The four leads whose
//! second byte is narrower (no overlong forms, no surrogates, nothing above U+10FFFF) have one more comparison each.
//! ASCII blocks cost one comparison. `firstDefect` is the definition. Does not know: what the text is for.

const std = @import("std");

const block_bytes = 64;
const Block = @Vector(block_bytes, i8);

/// True when `text` is UTF-8 as Unicode defines it.
pub fn validate(text: []const u8) bool {
    var checker: Checker = .{};
    var rest = text;
    while (rest.len >= block_bytes) : (rest = rest[block_bytes..])
        if (!checker.feed(rest[0..block_bytes])) return false;
    var padded: [block_bytes]u8 = @splat(0);
    @memcpy(padded[0..rest.len], rest);
    return checker.feed(&padded) and checker.complete();
}

/// Takes a text block by block; it is UTF-8 when all were accepted and nothing is missing at the end.
/// Holds what the bytes before a block ask of its first bytes.
pub const Checker = struct {
    /// Bits 0, 1, 2: the first, second, third byte must be a continuation.
    expected: u64 = 0,
    /// The last byte was a lead whose second byte is narrower: one bit each for 0xe0, 0xed, 0xf0, 0xf4.
    narrow: u4 = 0,

    pub fn complete(self: *const Checker) bool {
        return self.expected == 0;
    }

    /// A short last block is padded with zeros.
    pub inline fn feed(self: *Checker, bytes: *const [block_bytes]u8) bool {
        const block: Block = @bitCast(@as(@Vector(block_bytes, u8), bytes.*));
        const high = bits(block < splat(0x00));
        if (high == 0) {
            const whole = self.expected == 0;
            self.expected = 0;
            return whole;
        }
        return self.feedHigh(block, high);
    }

    /// Bytes are read as signed: 0x80 to 0xff are -128 to -1, and one comparison says where in that range a byte lies.
    noinline fn feedHigh(self: *Checker, block: Block, high: u64) bool {
        const continuation = bits(block < splat(0xc0));
        const from_c0 = high & ~continuation;
        const from_e0 = high & bits(block > splat(0xdf));
        const from_f0 = high & bits(block > splat(0xef));
        // 0xc0 and 0xc1 begin overlong forms.
        var wrong = bits((block & splat(0xfe)) == splat(0xc0));
        const expected = (from_c0 << 1) | (from_e0 << 2) | (from_f0 << 3) | self.expected;
        wrong |= expected ^ continuation;
        if (from_e0 | self.narrow != 0) {
            // Of the second bytes, which are continuations or wrong already.
            const from_a0 = bits(block > splat(0x9f));
            const from_90 = bits(block > splat(0x8f));
            const e0 = bits(block == splat(0xe0));
            const ed = bits(block == splat(0xed));
            const f0 = bits(block == splat(0xf0));
            const f4 = bits(block == splat(0xf4));
            wrong |= high & bits(block > splat(0xf4)); // Begins nothing at all.
            wrong |= ((e0 << 1) | self.after(0)) & ~from_a0;
            wrong |= ((ed << 1) | self.after(1)) & from_a0;
            wrong |= ((f0 << 1) | self.after(2)) & ~from_90;
            wrong |= ((f4 << 1) | self.after(3)) & from_90;
            self.narrow = @intCast((e0 >> 63) | (ed >> 63) << 1 | (f0 >> 63) << 2 | (f4 >> 63) << 3);
        }
        self.expected = (from_c0 >> 63) | (from_e0 >> 62) | (from_f0 >> 61);
        return wrong == 0;
    }

    inline fn after(self: *const Checker, comptime lead: u2) u64 {
        return (self.narrow >> lead) & 1;
    }
};

inline fn splat(comptime byte: u8) Block {
    return @splat(@bitCast(byte));
}

inline fn bits(which: @Vector(block_bytes, bool)) u64 {
    return @bitCast(which);
}

/// Where the first byte stands that cannot be part of UTF-8; null when all is well. For messages: one byte at a time.
pub fn firstDefect(text: []const u8) ?usize {
    var at: usize = 0;
    while (at < text.len) at += sequence(text[at..]) orelse return at;
    return null;
}

/// Length of the UTF-8 sequence `text` begins with; null when it begins with none.
fn sequence(text: []const u8) ?usize {
    const lead = text[0];
    if (lead < 0x80) return 1;
    const Rule = struct { len: usize, low: u8, high: u8 };
    const rule: Rule = switch (lead) {
        0xc2...0xdf => .{ .len = 2, .low = 0x80, .high = 0xbf },
        0xe0 => .{ .len = 3, .low = 0xa0, .high = 0xbf },
        0xe1...0xec, 0xee, 0xef => .{ .len = 3, .low = 0x80, .high = 0xbf },
        0xed => .{ .len = 3, .low = 0x80, .high = 0x9f },
        0xf0 => .{ .len = 4, .low = 0x90, .high = 0xbf },
        0xf1...0xf3 => .{ .len = 4, .low = 0x80, .high = 0xbf },
        0xf4 => .{ .len = 4, .low = 0x80, .high = 0x8f },
        else => return null,
    };
    if (text.len < rule.len) return null;
    if (text[1] < rule.low or text[1] > rule.high) return null;
    for (text[2..rule.len]) |byte| if (byte & 0xc0 != 0x80) return null;
    return rule.len;
}

const testing = std.testing;

test "every two bytes at every place of a block border, and every lead with every second byte" {
    var text: [80]u8 = undefined;
    for (60..66) |at| for (0..256) |lead| for (0..256) |second| {
        @memset(&text, 'x');
        text[at] = @intCast(lead);
        text[at + 1] = @intCast(second);
        // Enough continuations for any lead.
        if (lead >= 0xe0) text[at + 2] = 0x80;
        if (lead >= 0xf0) text[at + 3] = 0x80;
        try testing.expectEqual(firstDefect(&text) == null, validate(&text));
    };
}

test "a cut at any place is found" {
    const good = "é😀漢字ß\u{d7ff}\u{e000}\u{10ffff}";
    var buffer: [256]u8 = undefined;
    for (0..70) |before| for (0..good.len + 1) |len| {
        @memset(buffer[0..before], 'a');
        @memcpy(buffer[before..][0..len], good[0..len]);
        const text = buffer[0 .. before + len];
        try testing.expectEqual(std.unicode.utf8ValidateSlice(text), validate(text));
        try testing.expectEqual(firstDefect(text) == null, validate(text));
    };
}

test "random bytes, mostly of UTF-8, get the same answer from the definition" {
    var prng: std.Random.DefaultPrng = .init(testing.random_seed);
    errdefer std.debug.print("seed {d}\n", .{testing.random_seed});
    const random = prng.random();
    const pieces = [_][]const u8{ "a", "é", "漢", "😀", "\xed\x9f\xbf", "\xee\x80\x80", "\xf4\x8f\xbf\xbf", "plain words " };
    for (0..3000) |_| {
        var buffer: [400]u8 = undefined;
        var len: usize = 0;
        while (len < 300) {
            const piece = pieces[random.uintLessThan(usize, pieces.len)];
            @memcpy(buffer[len..][0..piece.len], piece);
            len += piece.len;
        }
        for (0..random.uintLessThan(usize, 3)) |_| buffer[random.uintLessThan(usize, len)] = random.int(u8);
        const text = buffer[0..random.uintAtMost(usize, len)];
        try testing.expectEqual(std.unicode.utf8ValidateSlice(text), validate(text));
        try testing.expectEqual(firstDefect(text) == null, validate(text));
    }
}
