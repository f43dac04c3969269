//! The fast way to ids against the plain one, on texts made to sit on every edge.

const std = @import("std");
const kernels = @import("kernels");
const bpe = @import("bpe.zig");
const encoding = @import("encoding.zig");
const fixture = @import("fixture.zig");
const plain = @import("plain.zig");
const pre_tokenizer = @import("pre_tokenizer.zig");

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
