//! What merging may take for granted about a character: mostly that its bytes are joined to one symbol before anything
//! reaches across its edges, so that merging can begin with characters instead of bytes.
//!
//! It is not always so: vocabularies have tokens that end in the middle of a character (a space and the first byte of a
//! Cyrillic letter). Each border between two characters is therefore asked two questions. Is there a merge that joins a part of
//! one of them across the border before that part has become the whole character (`left` and `right` share a bit)?
//! Is there a token at all that has such a part at such a border (`any_left`, `any_right`)? Where the answer to the second is
//! no, nothing that happens on one side disturbs the other; between two such borders, one yes to the first question means bytes.
//! Bits are shared by many characters: too much costs speed, never an id.

const Joins = @import("merge_args.zig").Joins;

pub const Char = extern struct {
    /// The symbol that the bytes become, or `Joins.none` when they stay several.
    symbol: u32,
    /// What the pre-tokenizers ask, for the tokenizer.
    kinds: u32,
    left: u64,
    right: u64,
    any_left: u64,
    any_right: u64,

    /// Whether a part of one of two neighbours may be joined across their border too early.
    pub inline fn parted(before: *const Char, after: *const Char) bool {
        return before.left & after.right != 0;
    }

    /// Whether nothing that may happen on one side of the border changes what becomes of the other's bytes.
    pub inline fn apart(before: *const Char, after: *const Char) bool {
        return before.any_left & after.any_right == 0;
    }
};

/// Places in the table: the first plane, and of the second what has the emoji.
const first_plane = 0x10000;
const second_from = 0x1F000;
pub const count = first_plane + 0x1000;

pub fn codeAt(place: usize) u32 {
    return @intCast(if (place < first_plane) place else place - first_plane + second_from);
}

/// Place of a code point; null for one that is not in the table.
pub inline fn placeOf(code: u32) ?usize {
    if (code < first_plane) return code;
    return if (code -% second_from < 0x1000) code - second_from + first_plane else null;
}

pub const Decoded = struct { place: usize, len: usize };

/// The character at `text[0..len]`, `len` at least 1; null when the bytes are none or it is not in the table.
pub inline fn decode(text: [*]const u8, len: usize) ?Decoded {
    const first = text[0];
    if (first < 0x80) return .{ .place = first, .len = 1 };
    if (first < 0xE0) {
        if (first < 0xC2 or len < 2 or !continues(text[1])) return null;
        return .{ .place = @as(usize, first & 0x1F) << 6 | (text[1] & 0x3F), .len = 2 };
    }
    if (first < 0xF0) {
        if (len < 3 or !continues(text[1]) or !continues(text[2])) return null;
        const code = @as(u32, first & 0x0F) << 12 | @as(u32, text[1] & 0x3F) << 6 | (text[2] & 0x3F);
        if (code < 0x800 or code -% 0xD800 < 0x800) return null;
        return .{ .place = code, .len = 3 };
    }
    if (len < 4 or first > 0xF4 or !continues(text[1]) or !continues(text[2]) or !continues(text[3])) return null;
    const code = @as(u32, first & 0x07) << 18 | @as(u32, text[1] & 0x3F) << 12 | @as(u32, text[2] & 0x3F) << 6 | (text[3] & 0x3F);
    if (code < first_plane) return null;
    return .{ .place = placeOf(code) orelse return null, .len = 4 };
}

inline fn continues(byte: u8) bool {
    return byte & 0xC0 == 0x80;
}

/// Writes the symbols that merging of a piece begins with to `out`, which has room for `len`, and returns how many there are.
pub inline fn begin(joins: *const Joins, text: [*]const u8, len: usize, out: [*]u32) usize {
    const chars = joins.chars orelse return bytes(text, len, out);
    var at: usize = 0;
    var n: usize = 0;
    // Where the group of characters begins that may disturb each other.
    var group_at: usize = 0;
    var group_n: usize = 0;
    var parted = false;
    var before: ?*const Char = null;
    while (at < len) {
        const got = decode(text + at, len - at) orelse return bytes(text, len, out);
        const char = &chars[got.place];
        if (before) |known| {
            if (known.apart(char)) {
                if (parted) n = group_n + bytes(text + group_at, at - group_at, out + group_n);
                parted = false;
                group_at = at;
                group_n = n;
            } else parted = parted or known.parted(char);
        }
        before = char;
        if (char.symbol != Joins.none) {
            out[n] = char.symbol;
            n += 1;
        } else n += bytes(text + at, got.len, out + n);
        at += got.len;
    }
    if (parted) n = group_n + bytes(text + group_at, len - group_at, out + group_n);
    return n;
}

inline fn bytes(text: [*]const u8, len: usize, out: [*]u32) usize {
    for (text[0..len], out[0..len]) |byte, *symbol| symbol.* = byte;
    return len;
}
