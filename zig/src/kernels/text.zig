//! Where pieces begin in ASCII text: the pre-tokenizers' expressions as arithmetic on 64-bit maps of 64 characters.
//!
//! A window of 64 bytes begins at the start of a piece, so nothing before it matters. Each class of character becomes a
//! map with one bit a byte; shifts ask for neighbours, an addition runs through a run. What a start depends on lies at
//! most three bytes ahead, except in runs of spaces that reach the end of what is known: such starts are left to
//! the next window. What is not ASCII, and a piece that fills a window, is left to the caller.
//! Does not know: tokens, Unicode. `tokenizer/pre_tokenizer.zig` has the same expressions as plain scanners.

/// Bytes of a window. The caller's room for starts must hold this many more.
pub const window_bytes = 64;

const V = @Vector(window_bytes, u8);

/// The expressions that are done here; numbers are part of the interface between objects.
pub const Rule = enum(c_int) { gpt2, smollm, llama3, qwen2, o200k, tekken };

inline fn equal(v: V, byte: u8) u64 {
    return @bitCast(v == @as(V, @splat(byte)));
}

inline fn between(v: V, low: u8, high: u8) u64 {
    return @bitCast((v -% @as(V, @splat(low))) <= @as(V, @splat(high - low)));
}

/// Bits below `n`; `n` is at most 64.
inline fn below(n: u64) u64 {
    return if (n >= 64) ~@as(u64, 0) else (@as(u64, 1) << @intCast(n)) - 1;
}

/// Second and third characters of the contractions, as maps.
const Contractions = struct { two: u64, three: u64 };

inline fn contractions(v_in: V, apostrophes: u64, comptime any_case: bool) Contractions {
    const v = if (any_case) v_in | @as(V, @splat(0x20)) else v_in;
    const single = equal(v, 's') | equal(v, 't') | equal(v, 'm') | equal(v, 'd');
    const l = equal(v, 'l');
    const double = ((equal(v, 'r') | equal(v, 'v')) >> 1 & equal(v, 'e') >> 2) | (l >> 1 & l >> 2);
    return .{ .two = apostrophes & single >> 1, .three = apostrophes & double };
}

/// A contraction that begins where another ends is none: it is the beginning of a word.
fn unchained(found: Contractions) Contractions {
    var out: Contractions = .{ .two = 0, .three = 0 };
    var left = found.two | found.three;
    while (left != 0) {
        const bit = left & (0 -% left);
        left &= left - 1;
        const short = found.two & bit != 0;
        if (short) out.two |= bit else out.three |= bit;
        left &= ~(if (short) bit << 2 else bit << 3);
    }
    return out;
}

/// `seeds` and what follows each of them without a gap in `through`.
fn flood(seeds: u64, through: u64) u64 {
    var found = seeds;
    var open = through;
    inline for (.{ 1, 2, 4, 8, 16, 32 }) |step| {
        found |= open & found << step;
        open &= open << step;
    }
    return found;
}

/// Takes from `starts` those whose run of blanks ends in a newline.
fn withoutBlankLines(starts: u64, blank: u64, newline: u64) u64 {
    var out = starts;
    var left = starts;
    while (left != 0) : (left &= left - 1) {
        const at: u6 = @intCast(@ctz(left));
        const length = @ctz(~(blank >> at)); // Zeros are shifted in, so this is below 64 unless all is blank.
        const end = @as(u64, at) + length;
        if (end < 64 and newline >> @intCast(end) & 1 != 0) out &= ~(@as(u64, 1) << at);
    }
    return out;
}

const Window = struct { starts: u64, limit: u64 };

/// Starts in a window, and below which bit they are certain. `end`: 64, or where padding with spaces begins.
inline fn startsOf(comptime rule: Rule, v: V, end: u64) Window {
    const upper = between(v, 'A', 'Z');
    const lower = between(v, 'a', 'z');
    const letter = upper | lower;
    const digit = between(v, '0', '9');
    const space_mark = equal(v, ' ');
    const space = between(v, 9, 13) | space_mark;
    const other = ~(letter | digit | space);
    const apostrophe = equal(v, '\'');
    const high: u64 = @bitCast(v >= @as(V, @splat(0x80)));
    const newline = equal(v, '\n') | equal(v, '\r');

    var starts: u64 = 1;
    switch (rule) {
        .gpt2, .smollm => {
            const lasts = space & ~(space >> 1); // The last space of a run goes with what follows it,
            if (rule == .gpt2) {
                const runs = (letter & ~(letter << 1)) | (digit & ~(digit << 1)) | (other & ~(other << 1));
                starts |= (runs & ~(space_mark << 1)) | lasts;
            } else { // unless that is a digit, which ends the text of the second expression.
                const runs = (letter & ~(letter << 1)) | (other & ~(other << 1));
                starts |= (runs & ~(space_mark << 1)) | (lasts & ~(digit >> 1)) | digit;
            }
            starts |= space & ~(space << 1);
            const marks = apostrophe & starts;
            if (marks != 0) {
                const found = contractions(v, marks, false);
                starts = (starts & ~((found.two | found.three) << 1)) | found.two << 2 | found.three << 3;
            }
        },
        .llama3, .qwen2, .o200k, .tekken => {
            const cased = rule == .o200k or rule == .tekken;
            const blank = space & ~newline;
            // Newlines (and slashes) right after symbols belong to them.
            const seeds = newline & other << 1;
            const slash = if (cased) equal(v, '/') else 0;
            const taken = if (cased and slash & newline << 1 != 0)
                flood(seeds, newline | slash)
            else
                newline & ~(newline +% seeds);
            const symbol = if (cased) other & ~taken else other;
            const white = space & ~taken;

            starts |= white & ~(white << 1);
            var indents = blank & (newline & ~taken) << 1;
            if (blank & newline >> 1 != 0) indents = withoutBlankLines(indents, blank, newline);
            starts |= indents | (blank & ~(space >> 1));

            const symbol_starts = symbol & ~(symbol << 1) & ~(space_mark << 1);
            const lone = symbol_starts & ~(other >> 1);
            starts |= symbol_starts;
            starts |= letter & ~(letter << 1) & ~(blank << 1) & ~(lone << 1);
            if (cased) starts |= upper & lower << 1;

            if (rule == .qwen2 or rule == .tekken) {
                starts |= digit;
            } else {
                var groups = digit & ~(digit << 1);
                starts |= groups;
                const four = digit & digit << 1 & digit << 2 & digit << 3;
                while (true) {
                    groups = groups << 3 & four;
                    if (groups == 0) break;
                    starts |= groups;
                }
            }
            if (!cased) {
                const marks = apostrophe & symbol_starts;
                if (marks != 0) {
                    const found = contractions(v, marks, true);
                    starts |= found.two << 2 | found.three << 3;
                }
            } else if (rule == .o200k) {
                const marks = apostrophe & letter << 1;
                if (marks != 0) {
                    var found = contractions(v, marks, true);
                    if ((found.two << 2 | found.three << 3) & (found.two | found.three) != 0) found = unchained(found);
                    const both = found.two | found.three;
                    starts &= ~(both | both << 1 | found.three << 2);
                    starts |= found.two << 2 | found.three << 3;
                }
            }
        },
    }

    const known = @min(@as(u64, @ctz(high)), end);
    if (known == end and end < 64) return .{ .starts = starts, .limit = end };
    // Spaces that reach what is not known: where they are cut depends on it.
    const reach = space << @intCast((64 - known) & 63);
    var limit = @min(known - @min(known, @clz(~reach)), window_bytes - 3);
    // An apostrophe before a long s, which folds to s.
    if (known < 64 and known > 0 and apostrophe >> @intCast(known - 1) & 1 != 0) limit = @min(limit, known - 1);
    return .{ .starts = starts, .limit = limit };
}

inline fn write(out: [*]u32, base: u32, bits_in: u64) usize {
    const count: usize = @popCount(bits_in);
    var bits = bits_in;
    // Eight at a time, whether they are there or not: the next window writes over what is too much.
    var done: usize = 0;
    while (true) {
        inline for (0..8) |i| {
            out[done + i] = base + @as(u32, @intCast(@ctz(bits) & 63));
            bits &= bits -% 1;
        }
        done += 8;
        if (done >= count) break;
    }
    return count;
}

fn run(comptime rule: Rule, text: [*]const u8, len: usize, from: usize, starts: [*]u32, capacity: usize, count: *usize) usize {
    var at = from;
    var n: usize = 0;
    while (n + window_bytes + 8 <= capacity and at < len) {
        const left = len - at;
        var found: Window = undefined;
        if (left >= window_bytes) {
            const v: V = (text + at)[0..window_bytes].*;
            found = startsOf(rule, v, 64);
        } else {
            var padded: [window_bytes]u8 align(64) = @splat(' ');
            @memcpy(padded[0..left], (text + at)[0..left]);
            const v: V = padded;
            found = startsOf(rule, v, left);
            if (found.limit == left) {
                n += write(starts + n, @intCast(at), found.starts & below(left));
                at = len;
                break;
            }
        }
        const kept = found.starts & below(found.limit);
        if (kept <= 1) break;
        const last: u6 = @intCast(63 - @clz(kept));
        n += write(starts + n, @intCast(at), kept & ~(@as(u64, 1) << last));
        at += last;
    }
    count.* = n;
    return at;
}

pub const Kernels = struct {
    /// Writes the starts of the pieces of `text[from..len]`, where a piece begins at `from`, until something is not
    /// done here or there is no more room. Returns where it stopped, which is the start of a piece that was not
    /// written, or `len`. `len` is below 2³².
    pub fn text_starts(rule: c_int, text: [*]const u8, len: usize, from: usize, starts: [*]u32, capacity: usize, count: *usize) callconv(.c) usize {
        return switch (@as(Rule, @fromBackingInt(rule))) {
            inline else => |known| run(known, text, len, from, starts, capacity, count),
        };
    }
};
