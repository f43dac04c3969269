//! Checksums: CRC-32C for finding damage in files, SHA-256 (as lower-case hex) for naming content.
//!
//! CRC-32C is the Castagnoli polynomial, reflected, as in iSCSI and ext4. The sum walks sixteen tables at once, or uses the
//! CPU's instruction where there is one; the plain one-bit definition stands next to them and all must agree.
//! Neither protects against an adversary who can also rewrite the checksum (SHA-256 does when its value came from elsewhere).

const std = @import("std");
const builtin = @import("builtin");

const polynomial: u32 = 0x82f6_3b78;

/// tables[0] advances by one byte; tables[k] by one byte followed by k zero bytes.
const tables: [16][256]u32 = blk: {
    @setEvalBranchQuota(100_000);
    var t: [16][256]u32 = undefined;
    for (0..256) |i| {
        var crc: u32 = i;
        for (0..8) |_| crc = if (crc & 1 != 0) (crc >> 1) ^ polynomial else crc >> 1;
        t[0][i] = crc;
    }
    for (1..16) |k| {
        for (0..256) |i| t[k][i] = (t[k - 1][i] >> 8) ^ t[0][t[k - 1][i] & 0xff];
    }
    break :blk t;
};

/// Running CRC-32C: any split of the same bytes over `update` calls gives the same `final`.
pub const Crc32c = struct {
    state: u32 = 0xffff_ffff,

    pub fn update(self: *Crc32c, bytes: []const u8) void {
        if (comptime can_assemble) {
            if (hasInstruction()) {
                self.state = withInstruction(self.state, bytes);
                return;
            }
        }
        self.state = withTables(self.state, bytes);
    }

    fn withTables(state: u32, bytes: []const u8) u32 {
        var crc = state;
        var rest = bytes;
        while (rest.len >= 16) : (rest = rest[16..]) {
            const first = std.mem.readInt(u32, rest[0..4], .little) ^ crc;
            crc = tables[15][first & 0xff] ^ tables[14][(first >> 8) & 0xff] ^
                tables[13][(first >> 16) & 0xff] ^ tables[12][first >> 24];
            inline for (4..16) |i| crc ^= tables[15 - i][rest[i]];
        }
        for (rest) |byte| crc = (crc >> 8) ^ tables[0][(crc ^ byte) & 0xff];
        return crc;
    }

    /// SSE4.2's crc32, eight bytes at a time. Only where `hasInstruction`.
    fn withInstruction(state: u32, bytes: []const u8) u32 {
        var crc: u64 = state;
        var rest = bytes;
        while (rest.len >= 8) : (rest = rest[8..]) {
            const word = std.mem.readInt(u64, rest[0..8], .little);
            asm ("crc32q %[word], %[crc]"
                : [crc] "+r" (crc),
                : [word] "r" (word),
            );
        }
        return withTables(@truncate(crc), rest);
    }

    pub fn final(self: Crc32c) u32 {
        return ~self.state;
    }
};

/// Zig's own backend (debug builds) does not know the instruction.
const can_assemble = builtin.cpu.arch == .x86_64 and builtin.zig_backend == .stage2_llvm;

/// 0: not asked yet, 1: no, 2: yes. A fact about the CPU, so it does not matter who asks first.
var instruction: std.atomic.Value(u8) = .init(0);

fn hasInstruction() bool {
    switch (instruction.load(.monotonic)) {
        0 => {},
        else => |known| return known == 2,
    }
    var a: u32 = 1; // Leaf 1: features.
    var b: u32 = undefined;
    var c: u32 = 0;
    var d: u32 = undefined;
    asm volatile ("cpuid"
        : [a] "+{eax}" (a),
          [b] "={ebx}" (b),
          [c] "+{ecx}" (c),
          [d] "={edx}" (d),
    );
    const found = c & (1 << 20) != 0;
    instruction.store(if (found) 2 else 1, .monotonic);
    return found;
}

/// CRC-32C of one slice.
pub fn crc32c(bytes: []const u8) u32 {
    var sum: Crc32c = .{};
    sum.update(bytes);
    return sum.final();
}

/// The definition, one bit at a time.
fn crc32cNaive(bytes: []const u8) u32 {
    var crc: u32 = 0xffff_ffff;
    for (bytes) |byte| {
        crc ^= byte;
        for (0..8) |_| crc = if (crc & 1 != 0) (crc >> 1) ^ polynomial else crc >> 1;
    }
    return ~crc;
}

pub const Sha256 = std.crypto.hash.sha2.Sha256;
pub const Sha256Hex = [Sha256.digest_length * 2]u8;

/// Lower-case hex of a finished digest.
pub fn hex(digest: [Sha256.digest_length]u8) Sha256Hex {
    return std.fmt.bytesToHex(digest, .lower);
}

/// SHA-256 of one slice as lower-case hex.
pub fn sha256Hex(bytes: []const u8) Sha256Hex {
    var digest: [Sha256.digest_length]u8 = undefined;
    Sha256.hash(bytes, &digest, .{});
    return hex(digest);
}

/// Parses exactly eight lower-case hex digits; null for anything else, so that one value has one spelling.
pub fn parseCrcHex(text: []const u8) ?u32 {
    if (text.len != 8) return null;
    var value: u32 = 0;
    for (text) |c| {
        const digit: u32 = switch (c) {
            '0'...'9' => c - '0',
            'a'...'f' => c - 'a' + 10,
            else => return null,
        };
        value = value << 4 | digit;
    }
    return value;
}

test "CRC-32C gives the published values" {
    try std.testing.expectEqual(@as(u32, 0), crc32c(""));
    try std.testing.expectEqual(@as(u32, 0xe306_9283), crc32c("123456789"));
    try std.testing.expectEqual(@as(u32, 0x8a91_36aa), crc32c(&@as([32]u8, @splat(0)))); // RFC 3720, B.4
    try std.testing.expectEqual(@as(u32, 0x62a8_ab43), crc32c(&@as([32]u8, @splat(0xff))));
}

test "the table walk and the instruction equal the definition for all lengths and all splits" {
    var bytes: [100]u8 = undefined;
    for (&bytes, 0..) |*b, i| b.* = @truncate(i *% 151 +% 7);
    for (0..bytes.len + 1) |len| {
        const whole = crc32c(bytes[0..len]);
        try std.testing.expectEqual(crc32cNaive(bytes[0..len]), whole);
        try std.testing.expectEqual(whole, ~Crc32c.withTables(0xffff_ffff, bytes[0..len]));
        for (0..len + 1) |cut| {
            var sum: Crc32c = .{};
            sum.update(bytes[0..cut]);
            sum.update(bytes[cut..len]);
            try std.testing.expectEqual(whole, sum.final());
        }
    }
}

test "SHA-256 of abc is the published one" {
    try std.testing.expectEqualStrings(
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        &sha256Hex("abc"),
    );
}

test "a checksum in text has one spelling" {
    try std.testing.expectEqual(@as(?u32, 0x00ab_cdef), parseCrcHex("00abcdef"));
    for ([_][]const u8{ "00ABCDEF", "abcdef", "000abcdef", "0x0abcde", "" }) |bad|
        try std.testing.expectEqual(@as(?u32, null), parseCrcHex(bad));
}
