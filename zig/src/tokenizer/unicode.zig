//! What the pre-tokenizers ask about characters, and Unicode normalisation form C.
//!
//! Text here is bytes that are mostly UTF-8. A byte that begins no valid sequence is a character of its own, of
//! class `other`, so every byte string can be walked and nothing is lost or replaced.
//! The classes are those of the regex engine inside the `tokenizers` library (see the table's header).

const std = @import("std");
const tables = @import("unicode_tables.zig");

pub const Class = enum(u8) {
    other,
    upper,
    lower,
    title,
    modifier,
    letter_other,
    mark,
    number,
    punctuation,
    symbol,
    space,

    /// `\p{L}`.
    pub fn isLetter(self: Class) bool {
        return switch (self) {
            .upper, .lower, .title, .modifier, .letter_other => true,
            else => false,
        };
    }

    /// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`.
    pub fn startsWord(self: Class) bool {
        return switch (self) {
            .upper, .title, .modifier, .letter_other, .mark => true,
            else => false,
        };
    }

    /// `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`.
    pub fn endsWord(self: Class) bool {
        return switch (self) {
            .lower, .modifier, .letter_other, .mark => true,
            else => false,
        };
    }
};

/// One character of a text: its code point, its class and how many bytes it takes.
pub const Char = struct {
    code: u32,
    class: Class,
    len: u8,

    pub fn isSpace(self: Char) bool {
        return self.class == .space;
    }

    pub fn isNewline(self: Char) bool {
        return self.code == '\r' or self.code == '\n';
    }
};

/// Code given to a byte that belongs to no valid sequence: above every real code point, one for each byte.
pub const invalid_base = 0x110000;

const latin_classes: [0x300]Class = blk: {
    @setEvalBranchQuota(20_000);
    var out: [0x300]Class = undefined;
    for (&out, 0..) |*class, code| class.* = searchClass(code);
    break :blk out;
};

fn searchStarts(comptime starts: []const u32, code: u32) u8 {
    var low: usize = 0;
    var high: usize = starts.len;
    while (high - low > 1) {
        const middle = low + (high - low) / 2;
        if (starts[middle] >> 8 <= code) low = middle else high = middle;
    }
    return @truncate(starts[low]);
}

fn searchClass(code: u32) Class {
    return @fromBackingInt(@intCast(searchStarts(&tables.class_starts, code)));
}

pub fn classOf(code: u32) Class {
    if (code < latin_classes.len) return latin_classes[code];
    if (code >= invalid_base) return .other;
    if (code < planes.len and planes_ready.load(.acquire) == 2) return planes[code];
    return searchClass(code);
}

/// Classes of the first two planes, filled in by `prepare`: a search for each character would be most of the time.
var planes: [0x20000]Class = undefined;
var planes_ready: std.atomic.Value(u8) = .init(0);

/// Makes `classOf` quick. Any number of threads may call it, any number of times.
pub fn prepare() void {
    if (planes_ready.cmpxchgStrong(0, 1, .acq_rel, .acquire) != null) return; // Done, or another thread is at it.
    for (&tables.class_starts, 0..) |start, i| {
        const from = start >> 8;
        if (from >= planes.len) break;
        const to = if (i + 1 < tables.class_starts.len) tables.class_starts[i + 1] >> 8 else planes.len;
        @memset(planes[from..@min(to, planes.len)], @fromBackingInt(@as(u8, @truncate(start))));
    }
    fillSteady();
    planes_ready.store(2, .release);
}

/// Length of the UTF-8 sequence at the start of `text` and its code point; an invalid byte gives length 1.
pub fn decode(text: []const u8) struct { code: u32, len: u8 } {
    const first = text[0];
    if (first < 0x80) return .{ .code = first, .len = 1 };
    const len: u8 = switch (first) {
        0xC2...0xDF => 2,
        0xE0...0xEF => 3,
        0xF0...0xF4 => 4,
        else => return .{ .code = invalid_base + @as(u32, first), .len = 1 },
    };
    if (text.len >= len) {
        const second: u32 = text[1] & 0x3F;
        var rest = (text[1] ^ 0x80) & 0xC0;
        var code: u32 = undefined;
        var least: u32 = 0x80;
        switch (len) {
            2 => code = @as(u32, first & 0x1F) << 6 | second,
            3 => {
                rest |= (text[2] ^ 0x80) & 0xC0;
                code = @as(u32, first & 0x0F) << 12 | second << 6 | (text[2] & 0x3F);
                least = 0x800;
            },
            else => {
                rest |= ((text[2] ^ 0x80) | (text[3] ^ 0x80)) & 0xC0;
                code = @as(u32, first & 0x07) << 18 | second << 12 | @as(u32, text[2] & 0x3F) << 6 | (text[3] & 0x3F);
                least = 0x10000;
            },
        }
        const surrogate = code >= 0xD800 and code < 0xE000;
        if (rest == 0 and code >= least and code < invalid_base and !surrogate) return .{ .code = code, .len = len };
    }
    return .{ .code = invalid_base + @as(u32, first), .len = 1 };
}

/// The character at `text[at..]`, or null at the end.
pub fn charAt(text: []const u8, at: usize) ?Char {
    if (at >= text.len) return null;
    const got = decode(text[at..]);
    return .{ .code = got.code, .class = classOf(got.code), .len = got.len };
}

/// What Rust's `char::is_numeric` says; the Digits pre-tokenizer uses it and not `\p{N}`.
pub fn isNumeric(char: Char) bool {
    for (tables.digit_differences) |code| if (code == char.code) return char.class != .number;
    return char.class == .number;
}

/// `\\w` as the added tokens' `single_word` has it.
pub fn isWord(code: u32) bool {
    if (code >= invalid_base) return false;
    var low: usize = 0;
    var high: usize = tables.word_edges.len;
    while (low < high) {
        const middle = low + (high - low) / 2;
        if (tables.word_edges[middle] <= code) low = middle + 1 else high = middle;
    }
    return low % 2 == 1;
}

/// Whether the character that ends at `text[end]` is one of a word.
pub fn wordEnds(text: []const u8, end: usize) bool {
    if (end == 0) return false;
    var start = end - 1;
    while (start > 0 and end - start < 4 and text[start] & 0xC0 == 0x80) start -= 1;
    const got = decode(text[start..end]);
    return start + got.len == end and isWord(got.code);
}

/// Whether the character that begins at `text[at]` is one of a word.
pub fn wordBegins(text: []const u8, at: usize) bool {
    return at < text.len and isWord(decode(text[at..]).code);
}

/// Start of the run of spaces that ends at `text[end]`.
pub fn spacesBefore(text: []const u8, end: usize) usize {
    var start = end;
    while (start > 0) {
        var previous = start - 1;
        while (previous > 0 and start - previous < 4 and text[previous] & 0xC0 == 0x80) previous -= 1;
        const char = charAt(text, previous).?;
        if (!char.isSpace() or previous + char.len != start) break;
        start = previous;
    }
    return start;
}

/// End of the run of spaces that begins at `text[start]`.
pub fn spacesAfter(text: []const u8, start: usize) usize {
    var end = start;
    while (charAt(text, end)) |char| {
        if (!char.isSpace()) break;
        end += char.len;
    }
    return end;
}

// ---- Python's str.strip(), as Jinja's `trim` filter uses it ----

fn isPythonSpace(code: u32) bool {
    return (code >= 0x1C and code <= 0x1F) or (code < invalid_base and classOf(code) == .space);
}

/// `text` without what Python calls whitespace at both ends.
pub fn trim(text: []const u8) []const u8 {
    var start: usize = 0;
    while (start < text.len) {
        const got = decode(text[start..]);
        if (!isPythonSpace(got.code)) break;
        start += got.len;
    }
    var end = start;
    var at = start;
    while (at < text.len) {
        const got = decode(text[at..]);
        at += got.len;
        if (!isPythonSpace(got.code)) end = at;
    }
    return text[start..end];
}

// ---- normalisation form C ----

const hangul_base = 0xAC00;
const l_base = 0x1100;
const v_base = 0x1161;
const t_base = 0x11A7;
const v_count = 21;
const t_count = 28;
const hangul_count = 19 * v_count * t_count;

fn combiningClass(code: u32) u8 {
    if (code < 0x300 or code >= invalid_base) return 0;
    return searchStarts(&tables.combining_starts, code);
}

fn composePair(a: u32, b: u32) ?u32 {
    if (a >= l_base and a < l_base + 19 and b >= v_base and b < v_base + v_count)
        return hangul_base + ((a - l_base) * v_count + (b - v_base)) * t_count;
    if (a >= hangul_base and a < hangul_base + hangul_count and (a - hangul_base) % t_count == 0 and
        b > t_base and b < t_base + t_count) return a + (b - t_base);
    const key = @as(u64, a) << 32 | b;
    var low: usize = 0;
    var high: usize = tables.compositions.len;
    while (low < high) {
        const middle = low + (high - low) / 2;
        const entry = tables.compositions[middle];
        if (entry[0] == key) return @intCast(entry[1]);
        if (entry[0] < key) low = middle + 1 else high = middle;
    }
    return null;
}

fn appendDecomposed(gpa: std.mem.Allocator, out: *std.ArrayList(u32), code: u32) !void {
    if (code >= hangul_base and code < hangul_base + hangul_count) {
        const index = code - hangul_base;
        try out.append(gpa, l_base + index / (v_count * t_count));
        try out.append(gpa, v_base + index % (v_count * t_count) / t_count);
        if (index % t_count != 0) try out.append(gpa, t_base + index % t_count);
        return;
    }
    var low: usize = 0;
    var high: usize = tables.decompositions.len;
    while (low < high) {
        const middle = low + (high - low) / 2;
        const entry = tables.decompositions[middle];
        if (entry[0] == code) {
            const start = entry[1] >> 3;
            return out.appendSlice(gpa, tables.decomposed[start..][0 .. entry[1] & 7]);
        }
        if (entry[0] < code) low = middle + 1 else high = middle;
    }
    try out.append(gpa, code);
}

/// A bit for each code point that form C leaves alone and that joins nothing before it, filled in by `prepare`.
var steady: [0x110000 / 64]u64 = undefined;

fn fillSteady() void {
    @memset(&steady, std.math.maxInt(u64));
    const clear = struct {
        fn f(code: usize) void {
            steady[code >> 6] &= ~(@as(u64, 1) << @truncate(code));
        }
    }.f;
    for (tables.combining_starts, 0..) |start, i| {
        if (start & 0xFF == 0) continue;
        const to = if (i + 1 < tables.combining_starts.len) tables.combining_starts[i + 1] >> 8 else 0x110000;
        for (start >> 8..to) |code| clear(code);
    }
    for (tables.compositions) |entry| clear(@intCast(entry[0] & 0xFFFF_FFFF));
    for (v_base..v_base + v_count) |code| clear(code);
    for (t_base + 1..t_base + t_count) |code| clear(code);
    for (tables.decompositions) |entry| {
        var memory: [2048]u8 = undefined;
        var fixed: std.heap.FixedBufferAllocator = .init(&memory);
        var buffer: [4]u8 = undefined;
        const len = std.unicode.utf8Encode(@intCast(entry[0]), &buffer) catch continue;
        const same = if (normalizeWhole(fixed.allocator(), buffer[0..len])) |whole| std.mem.eql(u8, whole, buffer[0..len]) else |_| false;
        if (!same) clear(@intCast(entry[0]));
    }
}

/// The first character at or after `from` that form C may change or join to what is before it, or the end.
fn nextUnsteady(text: []const u8, from: usize) usize {
    var at = from;
    while (at < text.len) {
        if (text[at] < 0xCC) { // Nothing below U+0300 changes or joins what is before it.
            while (at + 8 <= text.len and std.mem.readInt(u64, text[at..][0..8], .little) & 0x8080_8080_8080_8080 == 0) at += 8;
            if (at < text.len and text[at] < 0xCC) at += 1;
            continue;
        }
        const got = decode(text[at..]);
        if (got.code < invalid_base and steady[got.code >> 6] >> @truncate(got.code) & 1 == 0) return at;
        at += got.len;
    }
    return text.len;
}

/// `text` in normalisation form C, or `text` itself if it holds no character that could change.
/// Bytes that are not UTF-8 stay where they are. The result belongs to `arena`.
pub fn normalizeC(arena: std.mem.Allocator, text: []const u8) ![]const u8 {
    if (planes_ready.load(.acquire) != 2) return normalizeWhole(arena, text);
    var unsteady = nextUnsteady(text, 0);
    if (unsteady == text.len) return text;
    var out: std.ArrayList(u8) = .empty;
    try out.ensureTotalCapacity(arena, text.len + 64);
    var done: usize = 0;
    while (unsteady < text.len) {
        // From the character before it, which it may join, to the next that joins nothing.
        var from = unsteady;
        if (from > done) {
            from -= 1;
            while (from > done and text[from] & 0xC0 == 0x80 and unsteady - from < 4) from -= 1;
        }
        var to = unsteady;
        while (to < text.len) {
            const got = decode(text[to..]);
            if (got.code >= invalid_base or steady[got.code >> 6] >> @truncate(got.code) & 1 != 0) break;
            to += got.len;
        }
        try out.appendSlice(arena, text[done..from]);
        try out.appendSlice(arena, try normalizeWhole(arena, text[from..to]));
        done = to;
        unsteady = nextUnsteady(text, to);
    }
    try out.appendSlice(arena, text[done..]);
    return out.items;
}

/// The same in one go, for the parts that need it.
fn normalizeWhole(arena: std.mem.Allocator, text: []const u8) ![]const u8 {
    // Nothing below U+0300 decomposes and recomposes to something else, nor combines with its neighbour.
    for (text) |byte| {
        if (byte >= 0xCC) break;
    } else return text;

    var codes: std.ArrayList(u32) = .empty;
    try codes.ensureTotalCapacity(arena, text.len);
    var at: usize = 0;
    while (at < text.len) {
        const got = decode(text[at..]);
        try appendDecomposed(arena, &codes, got.code);
        at += got.len;
    }
    // Canonical order: within each run of marks, stable by class.
    var i: usize = 0;
    while (i < codes.items.len) {
        if (combiningClass(codes.items[i]) == 0) {
            i += 1;
            continue;
        }
        var end = i + 1;
        while (end < codes.items.len and combiningClass(codes.items[end]) != 0) end += 1;
        std.sort.block(u32, codes.items[i..end], {}, struct {
            fn less(_: void, a: u32, b: u32) bool {
                return combiningClass(a) < combiningClass(b);
            }
        }.less);
        i = end;
    }
    // Compose in place: `starter` is the last character others may join.
    const items = codes.items;
    var len: usize = 0;
    var starter: ?usize = null;
    var last_class: u8 = 0;
    for (items) |code| {
        const class = combiningClass(code);
        if (starter) |s| {
            const blocked = len - s > 1 and last_class >= class;
            if (!blocked) if (composePair(items[s], code)) |whole| {
                items[s] = whole;
                continue;
            };
        }
        items[len] = code;
        if (class == 0) starter = len;
        last_class = class;
        len += 1;
    }
    var out: std.ArrayList(u8) = .empty;
    try out.ensureTotalCapacity(arena, text.len);
    for (items[0..len]) |code| {
        if (code >= invalid_base) {
            try out.append(arena, @intCast(code - invalid_base));
            continue;
        }
        var buffer: [4]u8 = undefined;
        // A decoded code point is never a surrogate and never too large, so it encodes.
        const n = std.unicode.utf8Encode(@intCast(code), &buffer) catch unreachable;
        try out.appendSlice(arena, buffer[0..n]);
    }
    return out.items;
}

test "classes of a few characters everyone can check" {
    const cases = .{ .{ 'A', Class.upper }, .{ 'z', Class.lower }, .{ '7', Class.number }, .{ ' ', Class.space }, .{ '_', Class.punctuation }, .{ '$', Class.symbol }, .{ 0x4E2D, Class.letter_other }, .{ 0x094D, Class.mark }, .{ 0x3000, Class.space }, .{ 0x1F600, Class.symbol }, .{ 0x200B, Class.other } };
    inline for (cases) |case| try std.testing.expectEqual(case[1], classOf(case[0]));
}

test "a sequence is decoded as the standard library does it" {
    var prng: std.Random.DefaultPrng = .init(5);
    const random = prng.random();
    for (0..100_000) |_| {
        var text: [4]u8 = undefined;
        for (&text, 0..) |*byte, i| byte.* = if (i == 0) random.intRangeAtMost(u8, 0xC0, 0xFF) else if (random.uintLessThan(u8, 8) == 0) random.int(u8) else random.intRangeAtMost(u8, 0x80, 0xBF);
        const got = decode(&text);
        const len = std.unicode.utf8ByteSequenceLength(text[0]) catch 0;
        const code: ?u32 = if (len == 0) null else std.unicode.utf8Decode(text[0..len]) catch null;
        try std.testing.expectEqual(code orelse invalid_base + @as(u32, text[0]), got.code);
        try std.testing.expectEqual(if (code == null) 1 else len, got.len);
    }
}

test "the table of classes says what the search says" {
    prepare();
    for (0..0x30000) |code| try std.testing.expectEqual(searchClass(@intCast(code)), classOf(@intCast(code)));
}

test "invalid bytes are characters of one byte" {
    for ([_][]const u8{ "\xff", "\xc3", "\xe4\xb8", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\x80" }) |text| {
        const char = charAt(text, 0).?;
        try std.testing.expectEqual(1, char.len);
        try std.testing.expectEqual(Class.other, char.class);
    }
}

test "form C composes, orders marks and leaves invalid bytes alone" {
    var arena_state: std.heap.ArenaAllocator = .init(std.testing.allocator);
    defer arena_state.deinit();
    const arena = arena_state.allocator();

    const cases = .{
        .{ "cafe\u{301}", "caf\u{e9}" },
        .{ "a\u{323}\u{307}", "\u{1ea1}\u{307}" },
        .{ "a\u{307}\u{323}", "\u{1ea1}\u{307}" },
        .{ "\u{1112}\u{1161}\u{11ab}", "\u{d55c}" },
        .{ "\u{212b}", "\u{c5}" },
        .{ "\u{0958}", "\u{0915}\u{093c}" },
        .{ "e\xff\u{301}\xcc", "e\xff\u{301}\xcc" },
        .{ "plain", "plain" },
    };
    inline for (cases) |case| try std.testing.expectEqualStrings(case[1], try normalizeC(arena, case[0]));
}

test "form C in parts is form C in one go" {
    prepare();
    var arena_state: std.heap.ArenaAllocator = .init(std.testing.allocator);
    defer arena_state.deinit();
    var prng: std.Random.DefaultPrng = .init(std.testing.random_seed);
    errdefer std.debug.print("seed {d}\n", .{std.testing.random_seed});
    const random = prng.random();
    const some = [_]u21{ 'a', 'e', ' ', 0xe9, 0x300, 0x301, 0x323, 0x327, 0x1100, 0x1112, 0x1161, 0x11a8, 0xac00, 0xd55c, 0x958, 0x915, 0x93c, 0x9be, 0x9c7, 0x212b, 0x4e2d, 0x1f600, 0x1d15e, 0x340, 0xfb1d };
    for (0..5000) |_| {
        defer _ = arena_state.reset(.retain_capacity);
        var text: std.ArrayList(u8) = .empty;
        for (0..random.uintLessThan(usize, 14)) |_| {
            if (random.uintLessThan(u8, 12) == 0) {
                try text.append(arena_state.allocator(), random.int(u8));
                continue;
            }
            const code = if (random.uintLessThan(u8, 4) == 0) random.uintLessThan(u21, 0x3000) else some[random.uintLessThan(usize, some.len)];
            var buffer: [4]u8 = undefined;
            const len = std.unicode.utf8Encode(code, &buffer) catch continue;
            try text.appendSlice(arena_state.allocator(), buffer[0..len]);
        }
        try std.testing.expectEqualSlices(u8, try normalizeWhole(arena_state.allocator(), text.items), try normalizeC(arena_state.allocator(), text.items));
    }
}

test "trim takes what Python's strip takes" {
    try std.testing.expectEqualStrings("a b", trim("\x1c\u{2003} a b\u{3000}\n"));
    try std.testing.expectEqualStrings("", trim(" \n"));
    try std.testing.expectEqualStrings("\u{200b}x", trim("\u{200b}x"));
}
