//! Many texts to ids on many threads, and one large text cut where the parts have the same ids as the whole.
//!
//! A text is cut only before an ASCII letter that follows a newline: there every pre-tokenizer begins a piece,
//! whatever came before, normalisation does not reach across, and (checked once for each tokenizer) no added token does.
//! Threads take parts as they come; the ids stand in the order of the texts, so they are the same for any number of threads.

const std = @import("std");
const base = @import("base");
const bpe = @import("bpe.zig");
const encoding = @import("encoding.zig");

const Allocator = std.mem.Allocator;
const Tokenizer = bpe.Tokenizer;

/// Parts of a large text are about this long.
const part_bytes = 1 << 18;

pub const Encoded = struct {
    ids: []u32,
    /// The ids of text i are `ids[starts[i]..starts[i + 1]]`.
    starts: []u64,

    pub fn deinit(self: *Encoded, gpa: Allocator) void {
        gpa.free(self.ids);
        gpa.free(self.starts);
    }
};

const Part = struct {
    text: usize,
    from: usize,
    to: usize,
    /// Where its ids stand, once a thread has made them.
    worker: usize = 0,
    at: usize = 0,
    len: usize = 0,
};

const Worker = struct {
    scratch: encoding.EncodeScratch,
    out: std.ArrayList(u32) = .empty,
    failure: ?bpe.EncodeError = null,
};

const Job = struct {
    tokenizer: *const Tokenizer,
    gpa: Allocator,
    texts: []const []const u8,
    options: bpe.EncodeOptions,
    parts: []Part,
    workers: []Worker,
    next: std.atomic.Value(usize) = .init(0),

    fn work(self: *Job, _: usize, index: usize) void {
        const worker = &self.workers[index];
        while (true) {
            const n = self.next.fetchAdd(1, .monotonic);
            if (n >= self.parts.len) return;
            self.encode(worker, index, &self.parts[n]) catch |err| {
                worker.failure = err;
                self.next.store(self.parts.len, .monotonic);
                return;
            };
        }
    }

    fn encode(self: *Job, worker: *Worker, index: usize, part: *Part) bpe.EncodeError!void {
        const text = self.texts[part.text];
        var options = self.options;
        if (part.from > 0) {
            options.add_bos = false;
            options.no_prefix = true;
            options.continues = true;
        }
        if (part.to < text.len) {
            options.add_eos = false;
            options.no_suffix = true;
        }
        part.worker = index;
        part.at = worker.out.items.len;
        try self.tokenizer.encodeInto(&worker.scratch, &worker.out, self.gpa, text[part.from..part.to], options);
        part.len = worker.out.items.len - part.at;
    }
};

/// Ids of all `texts` on `threads` threads (0: one for each CPU). The caller frees the result.
pub fn encode(tokenizer: *const Tokenizer, gpa: Allocator, texts: []const []const u8, options: bpe.EncodeOptions, threads: usize) (bpe.EncodeError || error{CannotStartThreads})!Encoded {
    var parts: std.ArrayList(Part) = .empty;
    defer parts.deinit(gpa);
    const divisible = isDivisible(tokenizer);
    for (texts, 0..) |text, i| {
        var from: usize = 0;
        while (true) {
            const to = if (divisible and threads != 1) cutAfter(text, from + part_bytes) else text.len;
            try parts.append(gpa, .{ .text = i, .from = from, .to = to });
            from = to;
            if (from >= text.len) break;
        }
    }
    const wanted = @min(if (threads == 0) std.Thread.getCpuCount() catch 1 else threads, @max(parts.items.len, 1));
    const pool = base.Pool.init(gpa, wanted) catch |err| switch (err) {
        error.OutOfMemory => return error.OutOfMemory,
        else => return error.CannotStartThreads,
    };
    defer pool.deinit();

    const workers = try gpa.alloc(Worker, pool.n);
    for (workers) |*worker| worker.* = .{ .scratch = .init(gpa) };
    defer {
        for (workers) |*worker| {
            worker.scratch.deinit(gpa);
            worker.out.deinit(gpa);
        }
        gpa.free(workers);
    }
    var job: Job = .{ .tokenizer = tokenizer, .gpa = gpa, .texts = texts, .options = options, .parts = parts.items, .workers = workers };
    pool.parallelFor(&job, pool.n, Job.work);
    for (workers) |worker| if (worker.failure) |err| return err;
    return gather(gpa, texts.len, parts.items, workers);
}

fn gather(gpa: Allocator, texts: usize, parts: []const Part, workers: []Worker) error{OutOfMemory}!Encoded {
    const starts = try gpa.alloc(u64, texts + 1);
    errdefer gpa.free(starts);
    var total: usize = 0;
    for (parts) |part| {
        if (part.from == 0) starts[part.text] = total;
        total += part.len;
    }
    starts[texts] = total;
    // One thread has written them in order.
    if (workers.len == 1) return .{ .ids = try workers[0].out.toOwnedSlice(gpa), .starts = starts };
    const ids = try gpa.alloc(u32, total);
    var at: usize = 0;
    for (parts) |part| {
        @memcpy(ids[at..][0..part.len], workers[part.worker].out.items[part.at..][0..part.len]);
        at += part.len;
    }
    return .{ .ids = ids, .starts = starts };
}

/// Whether parts between `cutAfter`'s places have the ids of the whole.
fn isDivisible(tokenizer: *const Tokenizer) bool {
    if (tokenizer.index.rule == null or tokenizer.parts.add_prefix_space) return false;
    for (tokenizer.parts.steps) |step| if (step != .form_c) return false;
    for ([_][]const @import("added_tokens.zig").Added{ tokenizer.raw.tokens, tokenizer.normalized.tokens }) |tokens| {
        for (tokens) |token| {
            if (token.lstrip and std.ascii.isAlphabetic(token.text[0])) return false;
            for (token.text[0 .. token.text.len - 1], token.text[1..]) |a, b| if (a == '\n' and std.ascii.isAlphabetic(b)) return false;
        }
    }
    return true;
}

fn cutAfter(text: []const u8, from: usize) usize {
    var at = from;
    while (std.mem.findScalarPos(u8, text, at, '\n')) |newline| {
        at = newline + 1;
        if (at < text.len and std.ascii.isAlphabetic(text[at])) return at;
    }
    return text.len;
}

const fixture = @import("fixture.zig");

test "many threads and a cut text give the ids of one call for each text" {
    const gpa = std.testing.allocator;
    var prng: std.Random.DefaultPrng = .init(std.testing.random_seed);
    errdefer std.debug.print("seed {d}\n", .{std.testing.random_seed});
    const random = prng.random();
    const large = try gpa.alloc(u8, 3 * part_bytes);
    defer gpa.free(large);
    const alphabet = "hello world aaa<|im_end|>\n\n\r\t  's 12 e\xcc\x81\xe4\xb8\xad";
    for (large) |*byte| byte.* = alphabet[random.uintLessThan(usize, alphabet.len)];

    const texts = [_][]const u8{ "hello world", "", large, "e\u{301} <think> hello", large[0..1000], "aaaaaaaaa" };
    for ([_][]const u8{ "qwen2", "gpt-4o", "default" }) |pre| {
        var tokenizer = try fixture.make(gpa, pre);
        defer tokenizer.deinit();

        for (1..4) |threads| for ([_]bool{ false, true }) |special| {
            const options: bpe.EncodeOptions = .{ .add_bos = true, .add_eos = true, .parse_special = special };
            var got = try encode(&tokenizer, gpa, &texts, options, threads);
            defer got.deinit(gpa);

            for (texts, 0..) |text, i| {
                const expected = try tokenizer.encode(gpa, text, options);
                defer gpa.free(expected);

                try std.testing.expectEqualSlices(u32, expected, got.ids[got.starts[i]..got.starts[i + 1]]);
            }
        };
    }
}
