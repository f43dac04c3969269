//! The fast way to ids against the plain one, on texts made to sit on every edge.

const std = @import("std");
const kernels = @import("kernels");
const base = @import("base");
const bpe = @import("bpe.zig");
const byte_level = @import("byte_level.zig");
const encoding = @import("encoding.zig");
const fixture = @import("fixture.zig");
const plain = @import("plain.zig");
const pre_tokenizer = @import("pre_tokenizer.zig");
const unicode = @import("unicode.zig");

const alphabets = [_][]const u8{
    "aZ9 '\n\r\t/s.lLdDtTmMrReEvV",
    "ab 's'll're'D'ME\n",
    "   \n\n\r\t\x0b",
    "a.b/ \n\r/",
    "AbCdEf'S's ",
    "0123456789 a.",
    "hello world<|im_end|>aaaa",
    "aZ9 '\n\r\t/s.\xe0\xa4\xbf\xff\xcc\x81lL\xc3\xa9\xe4\xb8\xad\xc5\xbf\xe3\x80\x80\xc2\xa0",
};

fn fill(random: std.Random, text: []u8) void {
    var at: usize = 0;
    while (at < text.len) {
        const alphabet = alphabets[random.uintLessThan(usize, alphabets.len)];
        const end = @min(text.len, at + random.intRangeAtMost(usize, 1, 120));
        const long_runs = random.uintLessThan(u8, 4) == 0;
        var byte = alphabet[random.uintLessThan(usize, alphabet.len)];
        while (at < end) : (at += 1) {
            if (!long_runs or random.uintLessThan(u8, 12) == 0) byte = alphabet[random.uintLessThan(usize, alphabet.len)];
            text[at] = byte;
        }
    }
}

test "pieces of the kernels are those of the scanners, on every level" {
    var prng: std.Random.DefaultPrng = .init(std.testing.random_seed);
    errdefer std.debug.print("seed {d}\n", .{std.testing.random_seed});
    const random = prng.random();
    const rules = .{
        .{ kernels.text.Rule.gpt2, &[_]pre_tokenizer.Pass{.gpt2} },
        .{ kernels.text.Rule.smollm, &[_]pre_tokenizer.Pass{ .digits_each, .gpt2 } },
        .{ kernels.text.Rule.llama3, &[_]pre_tokenizer.Pass{.llama3} },
        .{ kernels.text.Rule.qwen2, &[_]pre_tokenizer.Pass{.qwen2} },
        .{ kernels.text.Rule.o200k, &[_]pre_tokenizer.Pass{.o200k} },
        .{ kernels.text.Rule.tekken, &[_]pre_tokenizer.Pass{.tekken} },
    };
    var buffer: [400]u8 = undefined;
    var starts: [600]u32 = undefined;
    for (0..3000) |_| {
        const text = buffer[0..random.intRangeAtMost(usize, 1, buffer.len)];
        fill(random, text);
        inline for (rules) |rule| for (0..kernels.available().len) |level| {
            var at: usize = 0;
            var pieces: pre_tokenizer.Iterator = .init(rule[1], text);
            while (at < text.len) {
                var n: usize = 0;
                const stop = kernels.dispatch.textTableAt(level).text_starts(@backingInt(rule[0]), text.ptr, text.len, at, &starts, starts.len, &n);
                for (starts[0..n]) |start| {
                    errdefer std.debug.print("{t}: \"{f}\" at {d}, said {d}\n", .{ rule[0], std.zig.fmtString(text), pieces.at, start });
                    try std.testing.expectEqual(pieces.at, start);
                    _ = pieces.next();
                }
                errdefer std.debug.print("{t}: \"{f}\" stopped at {d}, not {d}\n", .{ rule[0], std.zig.fmtString(text), stop, pieces.at });
                try std.testing.expectEqual(pieces.at, stop);
                if (stop < text.len) _ = pieces.next();
                at = pieces.at;
            }
        };
    }
}

test "ids of the fast way are those of the plain one" {
    const gpa = std.testing.allocator;
    var prng: std.Random.DefaultPrng = .init(std.testing.random_seed);
    errdefer std.debug.print("seed {d}\n", .{std.testing.random_seed});
    const random = prng.random();
    var scratch: encoding.EncodeScratch = .init(gpa);
    defer scratch.deinit(gpa);
    var out: std.ArrayList(u32) = .empty;
    defer out.deinit(gpa);
    var arena_state: std.heap.ArenaAllocator = .init(gpa);
    defer arena_state.deinit();

    for ([_][]const u8{ "llama-bpe", "gpt-2", "smollm", "gpt-4o", "tekken", "default", "qwen2" }) |pre| {
        var tokenizer = try fixture.make(gpa, pre);
        defer tokenizer.deinit();

        var buffer: [3000]u8 = undefined;
        for (0..150) |_| {
            defer _ = arena_state.reset(.retain_capacity);
            const text = buffer[0..random.intRangeAtMost(usize, 1, if (random.boolean()) 80 else buffer.len)];
            fill(random, text);
            const special = random.boolean();
            out.clearRetainingCapacity();
            try tokenizer.encodeInto(&scratch, &out, gpa, text, .{ .add_bos = false, .add_eos = false, .parse_special = special });
            const expected = try plain.encode(arena_state.allocator(), &tokenizer, text, special);
            errdefer std.debug.print("{s}: \"{f}\"\n", .{ pre, std.zig.fmtString(text) });
            try std.testing.expectEqualSlices(u32, expected, out.items);
        }
    }
    try std.testing.expect(scratch.cache != null);
}

const characters = [_][]const u8{ " ", " ", "a", "b", "1", ".", "'", "é", "ê", "п", "о", "р", "я", "न", "ि", "中", "国", "天", "。", "가", "😀", "😁", "A", "É", "\n" };

/// Merges of pairs that stand side by side in a random text: many of its tokens begin or end within a character.
fn randomVocabulary(gpa: std.mem.Allocator, random: std.Random, pre: []const u8) !bpe.Tokenizer {
    var arena_state: std.heap.ArenaAllocator = .init(gpa);
    defer arena_state.deinit();
    const arena = arena_state.allocator();
    var tokens: std.ArrayList([]const u8) = .empty;
    var types: std.ArrayList(i32) = .empty;
    var merges: std.ArrayList([]const u8) = .empty;
    var known: std.StringHashMapUnmanaged(void) = .empty;
    for (0..256) |byte| try tokens.append(arena, try byte_level.toPrintable(arena, &.{@intCast(byte)}));
    var text: std.ArrayList([]const u8) = .empty;
    for (0..600) |_| for (characters[random.uintLessThan(usize, characters.len)]) |byte| try text.append(arena, try arena.dupe(u8, &.{byte}));
    for (0..300) |_| {
        const i = random.uintLessThan(usize, text.items.len - 1);
        const left = text.items[i];
        const right = text.items[i + 1];
        const both = try std.mem.concat(arena, u8, &.{ left, right });
        if (both.len > 24 or (try known.getOrPut(arena, both)).found_existing) continue;
        const spelled = [_][]const u8{ try byte_level.toPrintable(arena, left), try byte_level.toPrintable(arena, right) };
        try merges.append(arena, try std.mem.join(arena, " ", &spelled));
        try tokens.append(arena, try std.mem.concat(arena, u8, &spelled));
        var n: usize = 0;
        var at: usize = 0;
        while (at < text.items.len) : (n += 1) {
            const here = at + 1 < text.items.len and std.mem.eql(u8, text.items[at], left) and std.mem.eql(u8, text.items[at + 1], right);
            text.items[n] = if (here) both else text.items[at];
            at += if (here) 2 else 1;
        }
        text.items.len = n;
    }
    try types.appendNTimes(arena, 1, tokens.items.len);
    try tokens.append(arena, "<|end|>");
    try types.append(arena, 3);
    var diag: base.Diagnostic = .{};
    return bpe.Tokenizer.fromGguf(gpa, .{ .model = "gpt2", .pre = pre, .tokens = tokens.items, .token_types = types.items, .merges = merges.items, .bos = 0, .eos = @intCast(tokens.items.len - 1) }, &diag);
}

test "ids are those of the plain way where tokens end in the middle of characters" {
    const gpa = std.testing.allocator;
    var prng: std.Random.DefaultPrng = .init(std.testing.random_seed);
    errdefer std.debug.print("seed {d}\n", .{std.testing.random_seed});
    const random = prng.random();
    var arena_state: std.heap.ArenaAllocator = .init(gpa);
    defer arena_state.deinit();
    var out: std.ArrayList(u32) = .empty;
    defer out.deinit(gpa);

    for ([_][]const u8{ "llama-bpe", "gpt-2", "smollm", "gpt-4o", "tekken", "qwen2", "llama-bpe", "gpt-4o" }) |pre| {
        var tokenizer = try randomVocabulary(gpa, random, pre);
        defer tokenizer.deinit();
        var scratch: encoding.EncodeScratch = .init(gpa);
        defer scratch.deinit(gpa);

        for (0..60) |round| {
            defer _ = arena_state.reset(.retain_capacity);
            var text: std.ArrayList(u8) = .empty;
            const letters = 1 + random.uintLessThan(usize, characters.len);
            for (0..random.uintLessThan(usize, 900)) |_| {
                if (round % 4 == 3 and random.uintLessThan(u8, 20) == 0) try text.append(arena_state.allocator(), random.int(u8));
                try text.appendSlice(arena_state.allocator(), characters[random.uintLessThan(usize, letters)]);
            }
            out.clearRetainingCapacity();
            try tokenizer.encodeInto(&scratch, &out, gpa, text.items, .{ .add_bos = false, .add_eos = false });
            const expected = try plain.encode(arena_state.allocator(), &tokenizer, text.items, false);
            errdefer std.debug.print("{s}: \"{s}\"\n", .{ pre, text.items });
            try std.testing.expectEqualSlices(u32, expected, out.items);
        }
    }
}

test "kernels and scanners find the same characters in any bytes" {
    var prng: std.Random.DefaultPrng = .init(std.testing.random_seed);
    errdefer std.debug.print("seed {d}\n", .{std.testing.random_seed});
    const random = prng.random();
    const bytes = "aZ\x7f\x80\x8f\x90\x9f\xa0\xbf\xc0\xc1\xc2\xdf\xe0\xe4\xed\xef\xf0\xf3\xf4\xf5\xff";
    for (0..20_000) |_| {
        var text: [4]u8 = undefined;
        for (&text) |*byte| byte.* = if (random.boolean()) bytes[random.uintLessThan(usize, bytes.len)] else random.int(u8);
        const part = text[0..random.intRangeAtMost(usize, 1, 4)];
        const wanted = unicode.decode(part);
        const place = if (wanted.code < unicode.invalid_base) kernels.chars.placeOf(wanted.code) else null;
        const got = kernels.chars.decode(part.ptr, part.len);
        try std.testing.expectEqual(place, if (got) |one| one.place else null);
        if (got) |one| try std.testing.expectEqual(wanted.len, one.len);
    }
}
