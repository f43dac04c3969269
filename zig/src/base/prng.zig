//! The project's only source of randomness: xoshiro256++ seeded by splitmix64.
//!
//! The state is four words in the open: a checkpoint saves them and a resumed run draws the same numbers.
//! Does not know: clocks, the operating system's entropy, who draws. Never a global.

const std = @import("std");

pub const Prng = struct {
    state: [4]u64,

    pub fn init(seed: u64) Prng {
        var s = seed;
        var self: Prng = .{ .state = undefined };
        for (&self.state) |*word| word.* = splitMix(&s);
        return self;
    }

    /// xoshiro256++ by Blackman and Vigna.
    pub fn next(self: *Prng) u64 {
        const s = &self.state;
        const result = std.math.rotl(u64, s[0] +% s[3], 23) +% s[0];
        const t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = std.math.rotl(u64, s[3], 45);
        return result;
    }

    /// Uniform in [0, 1), all 53 bits of the mantissa drawn.
    pub fn uniform(self: *Prng) f64 {
        return @as(f64, @floatFromInt(self.next() >> 11)) * 0x1.0p-53;
    }

    /// Uniform in 0..n without bias (Lemire). `n` must not be 0.
    pub fn below(self: *Prng, n: u64) u64 {
        std.debug.assert(n != 0);
        var product = std.math.mulWide(u64, self.next(), n);
        if (@as(u64, @truncate(product)) < n) {
            const threshold = (0 -% n) % n;
            while (@as(u64, @truncate(product)) < threshold) product = std.math.mulWide(u64, self.next(), n);
        }
        return @intCast(product >> 64);
    }

    /// Standard normal (Box–Muller). Two draws a call; nothing is kept back, so the state says everything.
    pub fn normal(self: *Prng) f64 {
        const u = 1.0 - self.uniform(); // in (0, 1]: the logarithm is finite
        const angle = 2.0 * std.math.pi * self.uniform();
        return @sqrt(-2.0 * @log(u)) * @cos(angle);
    }

    /// Fisher–Yates, from the end.
    pub fn shuffle(self: *Prng, comptime T: type, items: []T) void {
        var i = items.len;
        while (i > 1) {
            i -= 1;
            const j: usize = @intCast(self.below(i + 1));
            std.mem.swap(T, &items[i], &items[j]);
        }
    }
};

fn splitMix(s: *u64) u64 {
    s.* +%= 0x9e3779b97f4a7c15;
    var z = s.*;
    z = (z ^ (z >> 30)) *% 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) *% 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

test "the same generator as the reference: std's xoshiro256++ is an independent witness" {
    // Zig's std has xoshiro256++ seeded by splitmix64 as well.
    var theirs = std.Random.Xoshiro256.init(42);
    var ours = Prng.init(42);
    try std.testing.expectEqual(theirs.s, ours.state);
    for (0..1000) |_| try std.testing.expectEqual(theirs.next(), ours.next());
}

test "below is in range and hits every value evenly" {
    var p = Prng.init(1);
    var counts: [7]u32 = @splat(0);
    for (0..70_000) |_| counts[@intCast(p.below(7))] += 1;
    for (counts) |c| try std.testing.expect(c > 9_600 and c < 10_400);
    try std.testing.expectEqual(0, p.below(1));
}

test "normal has mean 0 and variance 1; uniform stays below 1" {
    var p = Prng.init(7);
    var sum: f64 = 0;
    var squares: f64 = 0;
    const n = 100_000;
    for (0..n) |_| {
        const x = p.normal();
        sum += x;
        squares += x * x;
        const u = p.uniform();
        try std.testing.expect(u >= 0 and u < 1);
    }
    try std.testing.expect(@abs(sum / n) < 0.02);
    try std.testing.expect(@abs(squares / n - 1) < 0.03);
}

test "shuffle is a permutation and repeats from a saved state" {
    var a: [100]u32 = undefined;
    for (&a, 0..) |*x, i| x.* = @intCast(i);
    var b = a;
    var p = Prng.init(3);
    const saved = p.state;
    p.shuffle(u32, &a);
    var q: Prng = .{ .state = saved };
    q.shuffle(u32, &b);
    try std.testing.expectEqualSlices(u32, &a, &b);
    std.mem.sort(u32, &b, {}, std.sort.asc(u32));
    for (b, 0..) |x, i| try std.testing.expectEqual(i, x);
}
