//! Cuts text into the pieces that byte-pair merging never crosses.
//!
//! Each `Pass` is one published regular expression, written as a scanner: `next` returns the end of the piece
//! that begins at `at`. Alternatives are tried in the order of the expression, as a backtracking engine would.
//! Passes are chained: each cuts the pieces of the one before. Every byte of the text is in exactly one piece.
//! Does not know: tokens, merges, files.

const std = @import("std");
const unicode = @import("unicode.zig");
const charAt = unicode.charAt;

pub const Pass = enum {
    gpt2,
    llama3,
    qwen2,
    o200k,
    tekken,
    /// llama.cpp's o200k: a letter beyond ASCII is of both cases, a mark is no letter, the long s is no s.
    o200k_approximate,
    /// tiktoken's spelling with possessive repeats. For the engine inside the `tokenizers` library `{1,3}+` is any number of threes, so digits stay together.
    cl100k,
    /// The three of DeepSeek v3: groups of up to three numbers, runs of Chinese characters and kana, the rest.
    numbers_three,
    han_kana,
    deepseek,
    /// Every number character alone (Digits with individual_digits).
    digits_each,
    /// Runs of number characters (Digits).
    digits_run,
    /// llama.cpp's `default`: runs of punctuation, then gpt2, then runs of numbers, then triples of ASCII digits.
    default_punctuation,
    default_numbers,
    default_triples,

    /// The pass of a regular expression as `tokenizer.json` spells it, or null for one we do not know.
    pub fn ofRegex(pattern: []const u8) ?Pass {
        inline for (known) |entry| if (std.mem.eql(u8, pattern, entry[0])) return entry[1];
        return null;
    }

    /// Whether the expression leaves no character out.
    pub fn matchesAll(self: Pass) bool {
        return switch (self) {
            .gpt2, .llama3, .qwen2, .o200k, .o200k_approximate, .tekken, .cl100k => true,
            else => false,
        };
    }

    /// The expression this pass stands for; empty for passes that have none in `tokenizer.json`.
    pub fn regex(self: Pass) []const u8 {
        inline for (known) |entry| if (entry[1] == self) return entry[0];
        return "";
    }
};

const contractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const tail = "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const lead = "[^\\r\\n\\p{L}\\p{N}]?";
const word_start = "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]";
const word_end = "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]";
const deepseek_mark = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|";
const deepseek_words = deepseek_mark ++ "[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+";
const deepseek_escaped = deepseek_mark ++ "[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+";
const known = .{
    .{ contractions ++ "|" ++ lead ++ "\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*" ++ tail, Pass.llama3 },
    .{ contractions ++ "|" ++ lead ++ "\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*" ++ tail, Pass.qwen2 },
    .{ lead ++ word_start ++ "*" ++ word_end ++ "+" ++ contractions ++ "?|" ++ lead ++ word_start ++ "+" ++ word_end ++ "*" ++ contractions ++ "?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*" ++ tail, Pass.o200k },
    .{ lead ++ word_start ++ "*" ++ word_end ++ "+|" ++ lead ++ word_start ++ "+" ++ word_end ++ "*|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*" ++ tail, Pass.tekken },
    .{ "'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}++|\\p{N}{1,3}+| ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*+|\\s++$|\\s*[\\r\\n]|\\s+(?!\\S)|\\s", Pass.cl100k },
    .{ "\\p{N}{1,3}", Pass.numbers_three },
    .{ "[一-龥぀-ゟ゠-ヿ]+", Pass.han_kana },
    .{ deepseek_words ++ "[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+", Pass.deepseek },
    .{ deepseek_escaped ++ "[\\r\\n]*" ++ tail, Pass.deepseek },
    .{ "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+", Pass.gpt2 },
};

/// Walks the pieces of `text` under a chain of passes.
pub const Iterator = struct {
    passes: []const Pass,
    text: []const u8,
    /// `ends[i]` is where the current piece of pass i ends; the last entry of a chain yields.
    ends: [max_passes]usize = @splat(0),
    at: usize = 0,

    pub const max_passes = 8;

    pub fn init(passes: []const Pass, text: []const u8) Iterator {
        std.debug.assert(passes.len <= max_passes);
        return .{ .passes = passes, .text = text };
    }

    /// The next piece as a slice of the text. Without passes the whole text is one piece.
    pub fn next(self: *Iterator) ?[]const u8 {
        if (self.at >= self.text.len) return null;
        const start = self.at;
        var limit = self.text.len;
        for (self.passes, 0..) |pass, i| {
            if (self.ends[i] <= start) {
                // Look-ahead must not see past the piece of the pass before.
                self.ends[i] = scan(pass, self.text[0..limit], start);
                std.debug.assert(self.ends[i] > start);
            }
            limit = self.ends[i];
        }
        self.at = limit;
        return self.text[start..limit];
    }
};

/// End of the piece of `pass` that begins at `at`. `at < text.len`; the result is greater than `at`.
pub fn scan(pass: Pass, text: []const u8, at: usize) usize {
    return switch (pass) {
        .gpt2 => scanGpt2(text, at),
        .llama3 => scanTiktoken(text, at, 3),
        .qwen2 => scanTiktoken(text, at, 1),
        .o200k => scanCased(text, at, 3, true),
        .tekken => scanCased(text, at, 1, false),
        .o200k_approximate => scanApproximate(text, at),
        .cl100k => scanCl100k(text, at),
        .numbers_three => scanWhere(text, at, isNumber, 3),
        .han_kana => scanWhere(text, at, isHanOrKana, std.math.maxInt(usize)),
        .deepseek => scanDeepseek(text, at),
        .digits_each => scanWhere(text, at, isNumeric, 1),
        .digits_run => scanWhere(text, at, isNumeric, std.math.maxInt(usize)),
        .default_punctuation => scanWhere(text, at, isDefaultPunctuation, std.math.maxInt(usize)),
        .default_numbers => scanWhere(text, at, isNumber, std.math.maxInt(usize)),
        .default_triples => scanTriples(text, at),
    };
}

const Char = unicode.Char;

fn isNumeric(char: Char) bool {
    return unicode.isNumeric(char);
}
fn isNumber(char: Char) bool {
    return char.class == .number;
}
fn isLetter(char: Char) bool {
    return char.class.isLetter();
}
fn isDefaultPunctuation(char: Char) bool {
    return char.class == .punctuation or switch (char.code) {
        '$', '+', '<', '=', '>', '^', '~', '|' => true,
        else => false,
    };
}
/// `[^\s\p{L}\p{N}]`.
fn isOther(char: Char) bool {
    return char.class != .space and char.class != .number and !char.class.isLetter();
}

fn run(text: []const u8, at: usize, comptime accepts: fn (Char) bool, max: usize) usize {
    var end = at;
    var left = max;
    while (left > 0) : (left -= 1) {
        const char = charAt(text, end) orelse break;
        if (!accepts(char)) break;
        end += char.len;
    }
    return end;
}

/// Matches of up to `max` characters, and the gaps between matches, as pieces.
fn scanWhere(text: []const u8, at: usize, comptime accepts: fn (Char) bool, max: usize) usize {
    const end = run(text, at, accepts, max);
    if (end > at) return end;
    return run(text, at, struct {
        fn rejects(char: Char) bool {
            return !accepts(char);
        }
    }.rejects, std.math.maxInt(usize));
}

fn isTriple(text: []const u8, at: usize) bool {
    if (text.len - at < 3) return false;
    for (text[at..][0..3]) |byte| if (!std.ascii.isDigit(byte)) return false;
    return true;
}

fn scanTriples(text: []const u8, at: usize) usize {
    if (isTriple(text, at)) return at + 3;
    var end = at + 1;
    while (end < text.len and !isTriple(text, end)) end += 1;
    return end;
}

/// `'s|'t|'re|'ve|'m|'ll|'d`, in either case when `any_case`; also the long s, which folds to s.
fn contraction(text: []const u8, at: usize, any_case: bool) ?usize {
    if (at + 1 >= text.len or text[at] != '\'') return null;
    if (any_case and std.mem.startsWith(u8, text[at + 1 ..], "\u{17f}")) return at + 3;
    const first = if (any_case) std.ascii.toLower(text[at + 1]) else text[at + 1];
    switch (first) {
        's', 't', 'm', 'd' => return at + 2,
        'r', 'v', 'l' => {
            if (at + 2 >= text.len) return null;
            const second = if (any_case) std.ascii.toLower(text[at + 2]) else text[at + 2];
            return if (second == (if (first == 'l') @as(u8, 'l') else 'e')) at + 3 else null;
        },
        else => return null,
    }
}

/// `\s+(?!\S)|\s+`: a run of spaces; if something follows, its last character is left for the next piece.
fn spaces(text: []const u8, at: usize) usize {
    var end = at;
    var last = at;
    while (charAt(text, end)) |char| {
        if (!char.isSpace()) return if (last > at) last else end;
        last = end;
        end += char.len;
    }
    return end;
}

/// `\s*[\r\n]+`: to just after the last newline of a run of spaces, or null without newline.
fn spacesToNewline(text: []const u8, at: usize) ?usize {
    var end = at;
    var after: ?usize = null;
    while (charAt(text, end)) |char| {
        if (!char.isSpace()) break;
        end += char.len;
        if (char.isNewline()) after = end;
    }
    return after;
}

fn scanGpt2(text: []const u8, at: usize) usize {
    if (contraction(text, at, false)) |end| return end;
    const body = at + @intFromBool(text[at] == ' ');
    if (charAt(text, body)) |char| {
        if (char.class.isLetter()) return run(text, body, isLetter, std.math.maxInt(usize));
        if (char.class == .number) return run(text, body, isNumber, std.math.maxInt(usize));
        if (isOther(char)) return run(text, body, isOther, std.math.maxInt(usize));
    }
    return spaces(text, at);
}

/// Parts shared by the expressions that came after GPT-2's: numbers, symbols, spaces.
fn scanRest(text: []const u8, at: usize, max_digits: usize, slash: bool) usize {
    const first = charAt(text, at).?;
    if (first.class == .number) return run(text, at, isNumber, max_digits);
    const body = at + @intFromBool(text[at] == ' ');
    var end = run(text, body, isOther, std.math.maxInt(usize));
    if (end > body) {
        while (end < text.len and (text[end] == '\r' or text[end] == '\n' or (slash and text[end] == '/'))) end += 1;
        return end;
    }
    return spacesToNewline(text, at) orelse spaces(text, at);
}

/// Where the letters may begin: after one optional character that is no newline, letter or number.
fn afterLead(text: []const u8, at: usize) usize {
    const first = charAt(text, at).?;
    if (first.isNewline() or first.class.isLetter() or first.class == .number) return at;
    return at + first.len;
}

fn scanTiktoken(text: []const u8, at: usize, max_digits: usize) usize {
    if (contraction(text, at, true)) |end| return end;
    const letters = afterLead(text, at);
    const end = run(text, letters, isLetter, std.math.maxInt(usize));
    if (end > letters) return end;
    return scanRest(text, at, max_digits, false);
}

fn startsWord(char: Char) bool {
    return char.class.startsWord();
}
fn endsWord(char: Char) bool {
    return char.class.endsWord();
}

/// `U*L+`: the capitals give back characters that are of both kinds until at least one is left for `L+`.
fn upperThenLower(text: []const u8, at: usize) ?usize {
    const upper_end = run(text, at, startsWord, std.math.maxInt(usize));
    const lower_end = run(text, upper_end, endsWord, std.math.maxInt(usize));
    if (lower_end > upper_end) return lower_end;
    // Give back: the last character of the run that also ends a word; what follows it does not.
    var after: ?usize = null;
    var walk = at;
    while (walk < upper_end) {
        const char = charAt(text, walk).?;
        walk += char.len;
        if (endsWord(char)) after = walk;
    }
    return after;
}

/// `U+L*`.
fn upperAndLower(text: []const u8, at: usize) ?usize {
    const upper_end = run(text, at, startsWord, std.math.maxInt(usize));
    if (upper_end == at) return null;
    return run(text, upper_end, endsWord, std.math.maxInt(usize));
}

fn scanCased(text: []const u8, at: usize, max_digits: usize, contracted: bool) usize {
    const body = afterLead(text, at);
    inline for (.{ upperThenLower, upperAndLower }) |word| {
        // The lead is greedy: first with it, then without (a mark may be lead or letter).
        const found = word(text, body) orelse if (body > at) word(text, at) else null;
        if (found) |end| return if (contracted) contraction(text, end, true) orelse end else end;
    }
    return scanRest(text, at, max_digits, true);
}

fn scanCl100k(text: []const u8, at: usize) usize {
    if (contraction(text, at, true)) |end| return end;
    const letters = afterLead(text, at);
    const end = run(text, letters, isLetter, std.math.maxInt(usize));
    if (end > letters) return end;
    const white = unicode.spacesAfter(text, at);
    if (white == text.len) return white;
    return scanRest(text, at, std.math.maxInt(usize), false);
}

fn isHanOrKana(char: Char) bool {
    return (char.code >= 0x4E00 and char.code <= 0x9FA5) or (char.code >= 0x3040 and char.code <= 0x30FF);
}
fn isAsciiLetter(char: Char) bool {
    return char.code < 0x80 and std.ascii.isAlphabetic(@intCast(char.code));
}
fn isLetterOrMark(char: Char) bool {
    return char.class.isLetter() or char.class == .mark;
}
fn isPunctuationOrSymbol(char: Char) bool {
    return char.class == .punctuation or char.class == .symbol;
}

fn matchDeepseek(text: []const u8, at: usize) ?usize {
    const all = std.math.maxInt(usize);
    if (text[at] < 0x80 and std.ascii.isPrint(text[at]) and !std.ascii.isAlphanumeric(text[at]) and text[at] != ' ') {
        const end = run(text, at + 1, isAsciiLetter, all);
        if (end > at + 1) return end;
    }
    const first = charAt(text, at).?;
    if (!first.isNewline() and !first.class.isLetter() and !isPunctuationOrSymbol(first)) {
        const end = run(text, at + first.len, isLetterOrMark, all);
        if (end > at + first.len) return end;
    }
    const word = run(text, at, isLetterOrMark, all);
    if (word > at) return word;
    const body = at + @intFromBool(text[at] == ' ');
    var end = run(text, body, isPunctuationOrSymbol, all);
    if (end > body) {
        while (end < text.len and (text[end] == '\r' or text[end] == '\n')) end += 1;
        return end;
    }
    if (!first.isSpace()) return null;
    return spacesToNewline(text, at) orelse spaces(text, at);
}

/// What the expression does not match (numbers, what is not assigned) stays together up to the next match.
fn scanDeepseek(text: []const u8, at: usize) usize {
    if (matchDeepseek(text, at)) |end| return end;
    var end = at;
    while (charAt(text, end)) |char| {
        end += char.len;
        if (end < text.len and matchDeepseek(text, end) != null) break;
    }
    return end;
}

fn startsApproximately(char: Char) bool {
    return char.class.isLetter() and !(char.code < 0x80 and std.ascii.isLower(@intCast(char.code)));
}
fn endsApproximately(char: Char) bool {
    return char.class.isLetter() and !(char.code < 0x80 and std.ascii.isUpper(@intCast(char.code)));
}

fn scanApproximate(text: []const u8, at: usize) usize {
    const all = std.math.maxInt(usize);
    const body = afterLead(text, at);
    const upper_end = run(text, body, startsApproximately, all);
    var end = run(text, upper_end, endsApproximately, all);
    if (end == body) return scanRest(text, at, 3, true);
    // Without a letter that ends the word the run of capitals gives back; where none of them can end one either, it is the word.
    var walk = if (end > upper_end) upper_end else body;
    while (walk < upper_end) {
        const char = charAt(text, walk).?;
        walk += char.len;
        if (endsApproximately(char)) end = walk;
    }
    if (std.mem.startsWith(u8, text[end..], "'\u{17f}")) return end;
    return contraction(text, end, true) orelse end;
}

fn expectPieces(passes: []const Pass, text: []const u8, joined: []const u8) !void {
    var out: std.ArrayList(u8) = .empty;
    defer out.deinit(std.testing.allocator);

    var pieces: Iterator = .init(passes, text);
    while (pieces.next()) |piece| {
        if (out.items.len > 0) try out.append(std.testing.allocator, '|');
        try out.appendSlice(std.testing.allocator, piece);
    }
    try std.testing.expectEqualStrings(joined, out.items);
}

test "the published examples are cut as published" {
    const hello = "Hello world's 12345 tests!!";
    try expectPieces(&.{.gpt2}, hello, "Hello| world|'s| 12345| tests|!!");
    try expectPieces(&.{.llama3}, hello, "Hello| world|'s| |123|45| tests|!!");
    try expectPieces(&.{.qwen2}, hello, "Hello| world|'s| |1|2|3|4|5| tests|!!");
    try expectPieces(&.{.o200k}, hello, "Hello| world's| |123|45| tests|!!");
    try expectPieces(&.{ .digits_each, .gpt2 }, hello, "Hello| world|'s| |1|2|3|4|5| tests|!!");
    const loud = "  I'LL go\n\n\tnow   ";
    try expectPieces(&.{.llama3}, loud, " | I|'LL| go|\n\n|\tnow|   ");
    try expectPieces(&.{.gpt2}, loud, " | I|'|LL| go|\n\n|\t|now|   ");
    try expectPieces(&.{.o200k}, loud, " | I'LL| go|\n\n|\tnow|   ");
    const mixed = "HelloWorld fooBar x/y//\n";
    try expectPieces(&.{.o200k}, mixed, "Hello|World| foo|Bar| x|/y|//\n");
    try expectPieces(&.{.llama3}, mixed, "HelloWorld| fooBar| x|/y|//\n");
    try expectPieces(&.{.o200k_approximate}, "\u{c0}B \u{e7}\u{c7} \u{c7}ab", "\u{c0}|B| \u{e7}\u{c7}| \u{c7}ab");
    try expectPieces(&.{.o200k_approximate}, "HTMLTag it's \u{928}\u{93f} 12345", "HTMLTag| it's| \u{928}|\u{93f}| |123|45");
    try expectPieces(&.{.cl100k}, "it'S 12345 a1234 \n \n  ", "it|'S| |12345| a|1234| \n \n  ");
    try expectPieces(&.{ .numbers_three, .han_kana, .deepseek }, "a.b 12345中国かな x_y \u{928}\u{93f}!\n", "a|.b| |123|45|中国かな| x|_y| \u{928}\u{93f}|!\n");
    try expectPieces(&.{.o200k}, "\u{c7}\u{e7} \u{e7}\u{c7} \u{c0}B", "\u{c7}\u{e7}| \u{e7}|\u{c7}| \u{c0}B");
}

test "no pass loses or repeats a byte, whatever the bytes" {
    var prng: std.Random.DefaultPrng = .init(11);
    const random = prng.random();
    const alphabet = "aZ9 '\n\r\t/s.\xe0\xa4\xbf\xff\xcc\x81lLé中";
    for (0..2000) |_| {
        var text: [24]u8 = undefined;
        for (&text) |*byte| byte.* = alphabet[random.uintLessThan(usize, alphabet.len)];
        inline for (@typeInfo(Pass).@"enum".field_names) |name| {
            var total: usize = 0;
            var pieces: Iterator = .init(&.{@field(Pass, name)}, &text);
            while (pieces.next()) |piece| total += piece.len;
            try std.testing.expectEqual(text.len, total);
        }
    }
}

test "a known expression is recognised, another is not" {
    try std.testing.expectEqual(Pass.gpt2, Pass.ofRegex(Pass.gpt2.regex()).?);
    try std.testing.expectEqual(Pass.o200k, Pass.ofRegex(Pass.o200k.regex()).?);
    try std.testing.expectEqual(null, Pass.ofRegex("\\w+"));
}
