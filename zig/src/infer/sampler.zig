//! Choosing the next token from logits: repeat penalty, top-k, top-p, min-p, temperature, one draw.
//!
//! The order and the meaning of each stage are llama.cpp's: every filter looks at the probabilities *before*
//! temperature, and temperature 0 takes the largest logit after the penalty. Equal logits are ordered by
//! their id, so a result depends on nothing but options, logits, history and seed.
//! Does not know: models, text, threads.

const std = @import("std");
const base = @import("base");

pub const Options = struct {
    /// 0 = always the most likely token.
    temperature: f32 = 0.7,
    /// Keep the k most likely tokens; 0 = all.
    top_k: u32 = 40,
    /// Keep the smallest set whose probabilities reach this sum; 1 = all.
    top_p: f32 = 0.9,
    /// Keep tokens at least this share of the best one's probability; 0 = all.
    min_p: f32 = 0,
    /// Divides positive and multiplies negative logits of recent tokens; 1 = off.
    repeat_penalty: f32 = 1.0,
    /// How many of the last tokens count as recent.
    repeat_window: u32 = 64,
    seed: u64 = 0,

    /// A sentence about the first field out of its range, or null.
    pub fn problem(self: Options) ?[]const u8 {
        if (!(self.temperature >= 0 and self.temperature <= 100)) return "temperature must lie between 0 and 100";
        if (!(self.top_p > 0 and self.top_p <= 1)) return "top-p must be above 0 and at most 1";
        if (!(self.min_p >= 0 and self.min_p <= 1)) return "min-p must lie between 0 and 1";
        if (!(self.repeat_penalty > 0 and self.repeat_penalty <= 10))
            return "repeat-penalty must be above 0 and at most 10";
        return null;
    }
};

const Candidate = struct {
    id: u32,
    logit: f32,

    /// True when `a` comes before `b`: larger logit first, then smaller id.
    fn before(_: void, a: Candidate, b: Candidate) bool {
        if (a.logit != b.logit) return a.logit > b.logit;
        return a.id < b.id;
    }
};

pub const SampleError = error{
    /// A logit is NaN, or none is finite: the model's numbers are broken.
    BadLogits,
};

pub const Sampler = struct {
    options: Options,
    prng: base.Prng,
    candidates: []Candidate,
    probabilities: []f32,
    /// The last tokens, oldest overwritten first.
    recent: []u32,
    recent_count: usize = 0,
    recent_next: usize = 0,

    /// `options.problem()` must be null. Caller calls `deinit` with the same allocator.
    pub fn init(gpa: std.mem.Allocator, vocab_size: usize, options: Options) error{OutOfMemory}!Sampler {
        std.debug.assert(options.problem() == null);
        const candidates = try gpa.alloc(Candidate, vocab_size);
        errdefer gpa.free(candidates);

        const probabilities = try gpa.alloc(f32, vocab_size);
        errdefer gpa.free(probabilities);

        const recent = try gpa.alloc(u32, options.repeat_window);
        return .{
            .options = options,
            .prng = .init(options.seed),
            .candidates = candidates,
            .probabilities = probabilities,
            .recent = recent,
        };
    }

    pub fn deinit(self: *Sampler, gpa: std.mem.Allocator) void {
        gpa.free(self.candidates);
        gpa.free(self.probabilities);
        gpa.free(self.recent);
        self.* = undefined;
    }

    /// Remembers a token of the prompt or of the answer for the repeat penalty.
    pub fn accept(self: *Sampler, id: u32) void {
        if (self.recent.len == 0) return;
        self.recent[self.recent_next] = id;
        self.recent_next = (self.recent_next + 1) % self.recent.len;
        self.recent_count = @min(self.recent_count + 1, self.recent.len);
    }

    /// Forgets all remembered tokens; the random state goes on.
    pub fn forget(self: *Sampler) void {
        self.recent_count = 0;
        self.recent_next = 0;
    }

    /// The next token's id. `logits` has one value a token and is not changed. Does not `accept` the result.
    pub fn sample(self: *Sampler, logits: []const f32) SampleError!u32 {
        return self.sampleAmong(logits, null);
    }

    /// The same among the tokens whose bit is set alone: the others are as if they had no probability. At least one must be.
    pub fn sampleAmong(self: *Sampler, logits: []const f32, allowed: ?[]const u64) SampleError!u32 {
        std.debug.assert(logits.len == self.candidates.len);
        for (logits, self.candidates, 0..) |logit, *candidate, id| {
            if (std.math.isNan(logit)) return error.BadLogits;
            candidate.* = .{ .id = @intCast(id), .logit = logit };
        }
        self.penalise();
        var all = self.candidates;
        if (allowed) |bits| {
            var count: usize = 0;
            for (0..all.len) |id| {
                if (bits[id / 64] >> @intCast(id % 64) & 1 == 0) continue;
                all[count] = all[id];
                count += 1;
            }
            all = all[0..count];
        }
        if (self.options.temperature == 0) {
            var best = all[0];
            for (all[1..]) |c| if (Candidate.before({}, c, best)) {
                best = c;
            };
            return if (std.math.isFinite(best.logit)) best.id else error.BadLogits;
        }
        const kept = self.filter(all);
        if (!std.math.isFinite(kept[0].logit)) return error.BadLogits;
        const p = self.softmax(kept, 1 / self.options.temperature);
        return kept[draw(p, self.prng.uniform())].id;
    }

    fn penalise(self: *Sampler) void {
        const penalty = self.options.repeat_penalty;
        if (penalty == 1) return;
        for (self.recent[0..self.recent_count], 0..) |id, i| {
            // Each id once, however often it occurred.
            if (std.mem.findScalar(u32, self.recent[0..i], id) != null) continue;
            if (id >= self.candidates.len) continue;
            const logit = &self.candidates[id].logit;
            logit.* = if (logit.* <= 0) logit.* * penalty else logit.* / penalty;
        }
    }

    /// The candidates left after top-k, top-p and min-p, best first. Never empty.
    fn filter(self: *Sampler, all: []Candidate) []Candidate {
        const k: usize = if (self.options.top_k == 0) all.len else @min(self.options.top_k, all.len);
        var kept = bestFirst(all, k);
        if (self.options.top_p < 1) {
            const p = self.softmax(kept, 1);
            var sum: f32 = 0;
            for (p, 1..) |value, count| {
                sum += value;
                if (sum >= self.options.top_p) {
                    kept = kept[0..count];
                    break;
                }
            }
        }
        if (self.options.min_p > 0) {
            const limit = kept[0].logit + @log(self.options.min_p);
            var count: usize = 1;
            while (count < kept.len and kept[count].logit >= limit) count += 1;
            kept = kept[0..count];
        }
        return kept;
    }

    /// Probabilities of `kept` (best first) at inverse temperature `scale`.
    fn softmax(self: *Sampler, kept: []const Candidate, scale: f32) []const f32 {
        const p = self.probabilities[0..kept.len];
        var sum: f32 = 0;
        for (p, kept) |*value, c| {
            value.* = @exp((c.logit - kept[0].logit) * scale);
            sum += value.*;
        }
        for (p) |*value| value.* /= sum;
        return p;
    }
};

/// Index of the first probability whose running sum passes `u` in [0, 1).
fn draw(p: []const f32, u: f64) usize {
    var sum: f64 = 0;
    for (p, 0..) |value, i| {
        sum += value;
        if (u < sum) return i;
    }
    return p.len - 1; // Rounding left the sum a hair below 1.
}

/// Orders so that the k best stand first, best first, and returns them.
fn bestFirst(all: []Candidate, k: usize) []Candidate {
    if (k * 8 >= all.len) {
        std.sort.pdq(Candidate, all, {}, Candidate.before);
        return all[0..k];
    }
    // A heap of the k best so far, worst on top, at the front of `all`; what does not fit in stays behind it.
    const heap = all[0..k];
    var i = k / 2;
    while (i > 0) {
        i -= 1;
        siftDown(heap, i);
    }
    for (all[k..]) |*c| if (Candidate.before({}, c.*, heap[0])) {
        std.mem.swap(Candidate, c, &heap[0]);
        siftDown(heap, 0);
    };
    std.sort.pdq(Candidate, heap, {}, Candidate.before);
    return heap;
}

fn siftDown(heap: []Candidate, start: usize) void {
    var parent = start;
    while (true) {
        var child = 2 * parent + 1;
        if (child >= heap.len) return;
        if (child + 1 < heap.len and Candidate.before({}, heap[child], heap[child + 1])) child += 1;
        if (!Candidate.before({}, heap[parent], heap[child])) return;
        std.mem.swap(Candidate, &heap[parent], &heap[child]);
        parent = child;
    }
}

const testing = std.testing;

fn sampleOnce(logits: []const f32, options: Options, history: []const u32) !u32 {
    var sampler: Sampler = try .init(testing.allocator, logits.len, options);
    defer sampler.deinit(testing.allocator);

    for (history) |id| sampler.accept(id);
    return sampler.sample(logits);
}

test "temperature 0 takes the largest logit, the lowest id on a tie" {
    try testing.expectEqual(@as(u32, 1), try sampleOnce(&.{ 0, 3, 3, 1 }, .{ .temperature = 0 }, &.{}));
}

test "the penalty lowers positive and negative logits of recent tokens once each" {
    const options: Options = .{ .temperature = 0, .repeat_penalty = 2 };
    // 3 → 1.5 although seen twice, so 2 wins; -1 → -2 loses to -1.5.
    try testing.expectEqual(@as(u32, 1), try sampleOnce(&.{ 3, 2 }, options, &.{ 0, 0 }));
    try testing.expectEqual(@as(u32, 1), try sampleOnce(&.{ -1, -1.5 }, options, &.{0}));
}

test "the penalty forgets tokens that left the window" {
    const options: Options = .{ .temperature = 0, .repeat_penalty = 2, .repeat_window = 2 };
    try testing.expectEqual(@as(u32, 0), try sampleOnce(&.{ 3, 2, 0, 0 }, options, &.{ 0, 2, 3 }));
}

test "the heap finds the same best tokens as sorting does" {
    var prng: base.Prng = .init(7);
    var sorted: [500]Candidate = undefined;
    var heaped: [500]Candidate = undefined;
    for (&sorted, 0..) |*c, i| c.* = .{ .id = @intCast(i), .logit = @floatFromInt(prng.below(50)) };
    heaped = sorted;
    std.sort.pdq(Candidate, &sorted, {}, Candidate.before);
    for ([_]usize{ 1, 2, 3, 17, 40, 62 }) |k| {
        const best = bestFirst(&heaped, k);
        try testing.expectEqualSlices(Candidate, sorted[0..k], best);
    }
}

test "filters keep what llama.cpp keeps" {
    // Probabilities .4 .3 .2 .1.
    const logits = [_]f32{ @log(0.2), @log(0.4), @log(0.1), @log(0.3) };
    const cases = .{
        .{ Options{ .top_k = 2, .top_p = 1 }, 2 },
        .{ Options{ .top_k = 0, .top_p = 0.65 }, 2 },
        .{ Options{ .top_k = 0, .top_p = 0.75 }, 3 },
        .{ Options{ .top_k = 0, .top_p = 1, .min_p = 0.6 }, 2 },
        .{ Options{ .top_k = 0, .top_p = 1 }, 4 },
        .{ Options{ .top_k = 0, .top_p = 0.0001, .min_p = 1 }, 1 },
    };
    inline for (cases) |case| {
        var sampler: Sampler = try .init(testing.allocator, 4, case[0]);
        defer sampler.deinit(testing.allocator);

        for (&logits, sampler.candidates, 0..) |l, *c, i| c.* = .{ .id = @intCast(i), .logit = l };
        const kept = sampler.filter(sampler.candidates);
        try testing.expectEqual(@as(usize, case[1]), kept.len);
        try testing.expectEqual(@as(u32, 1), kept[0].id);
    }
}

test "only allowed tokens are drawn, and penalties and filters see no others" {
    var logits: [130]f32 = @splat(9);
    logits[3] = 1;
    logits[64] = 2;
    logits[129] = 1.5;
    const allowed = [_]u64{ 1 << 3, 1, 2 };
    for ([_]Options{ .{ .temperature = 0 }, .{ .temperature = 1, .top_k = 2, .top_p = 1 }, .{ .temperature = 2, .top_k = 0, .top_p = 0.99, .min_p = 0.01, .repeat_penalty = 3 } }) |options| {
        var sampler: Sampler = try .init(testing.allocator, logits.len, options);
        defer sampler.deinit(testing.allocator);
        var seen: [130]u32 = @splat(0);
        for (0..200) |_| {
            const id = try sampler.sampleAmong(&logits, &allowed);
            seen[id] += 1;
            sampler.accept(id);
        }
        try testing.expectEqual(200, seen[3] + seen[64] + seen[129]);
        try testing.expect(if (options.temperature == 0) seen[64] == 200 else seen[129] > 20 and seen[64] > 20);
        try testing.expect((seen[3] > 0) == (options.top_k == 0 and options.temperature > 0));
    }
}

test "the share of draws follows the probabilities, and a seed repeats its draws" {
    const logits = [_]f32{ @log(0.7), @log(0.2), @log(0.1) };
    const options: Options = .{ .temperature = 1, .top_k = 0, .top_p = 1, .seed = 11 };
    var a: Sampler = try .init(testing.allocator, 3, options);
    defer a.deinit(testing.allocator);
    var b: Sampler = try .init(testing.allocator, 3, options);
    defer b.deinit(testing.allocator);

    var counts: [3]f64 = @splat(0);
    for (0..20_000) |_| {
        const id = try a.sample(&logits);
        try testing.expectEqual(id, try b.sample(&logits));
        counts[id] += 1.0 / 20_000.0;
    }
    try testing.expectApproxEqAbs(0.7, counts[0], 0.02);
    try testing.expectApproxEqAbs(0.2, counts[1], 0.02);
}

test "NaN and hopeless logits are refused, minus infinity is a token never taken" {
    const inf = std.math.inf(f32);
    try testing.expectError(error.BadLogits, sampleOnce(&.{ 0, std.math.nan(f32) }, .{}, &.{}));
    try testing.expectError(error.BadLogits, sampleOnce(&.{ -inf, -inf }, .{}, &.{}));
    try testing.expectEqual(@as(u32, 1), try sampleOnce(&.{ -inf, 0, -inf }, .{}, &.{}));
}
