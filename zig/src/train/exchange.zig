//! Data-parallel runs: which micro-batches of an update a process does, and what the processes add up.
//!
//! All processes have the same configuration, data and weights. Micro-batch j of an update belongs to process j mod `count`; every
//! one knows the targets of the whole update, so its part of loss and gradient is a summand as it is. Once gradients and sums
//! are added up over all processes, each makes the same update. So a run does not depend on how many processes it has, but
//! for the order of one sum, and its checkpoints can go on with another number.
//! Does not know: how numbers travel.

const std = @import("std");
const Pass = @import("preference_session.zig").Pass;

/// This process among all. One process: nothing is exchanged.
pub const Share = struct {
    rank: u32 = 0,
    count: u32 = 1,

    pub fn owns(self: Share, micro_index: usize) bool {
        return micro_index % self.count == self.rank;
    }

    pub fn isAlone(self: Share) bool {
        return self.count == 1;
    }
};

/// What is added up besides the gradient. Whole numbers are exact in f64.
pub const Sums = struct {
    /// A place for each number of a `Pass`, and one for who wants to stop.
    values: [count]f64 = @splat(0),

    const metric_count = @typeInfo(@FieldType(Pass, "metrics")).@"struct".field_names.len;
    pub const count = 6 + metric_count;

    pub fn of(pass: Pass, stop: bool) Sums {
        var self: Sums = .{};
        self.values[0..6].* = .{ pass.loss, pass.accuracy, @floatFromInt(pass.tokens), @floatFromInt(pass.targets), @floatFromInt(pass.batches), @floatFromInt(@intFromBool(stop)) };
        inline for (@typeInfo(@FieldType(Pass, "metrics")).@"struct".field_names, 6..) |name, i| self.values[i] = @field(pass.metrics, name);
        return self;
    }

    pub fn toPass(self: Sums) Pass {
        var pass: Pass = .{
            .loss = self.values[0],
            .accuracy = self.values[1],
            .tokens = whole(self.values[2]),
            .targets = whole(self.values[3]),
            .batches = whole(self.values[4]),
        };
        inline for (@typeInfo(@FieldType(Pass, "metrics")).@"struct".field_names, 6..) |name, i| @field(pass.metrics, name) = self.values[i];
        return pass;
    }

    /// Whether any process wants to stop.
    pub fn stops(self: Sums) bool {
        return self.values[5] > 0;
    }

    /// What came back from others may be anything.
    fn whole(x: f64) u64 {
        return if (x >= 0 and x < 0x1p53) @trunc(x) else 0;
    }
};

test "a pass goes through the sums and back, and sums of two processes are the pass of both" {
    const a: Pass = .{ .loss = 1.5, .accuracy = 0.25, .tokens = 7, .targets = 5, .batches = 2, .metrics = .{ .rewards_margins = 0.5 } };
    const there = Sums.of(a, true);
    try std.testing.expectEqual(a, there.toPass());
    try std.testing.expect(there.stops());
    var both = there;
    for (&both.values, Sums.of(a, false).values) |*x, y| x.* += y;
    try std.testing.expectEqual(3.0, both.toPass().loss);
    try std.testing.expectEqual(14, both.toPass().tokens);
    try std.testing.expectEqual(1.0, both.toPass().metrics.rewards_margins);
}

test "each micro-batch belongs to one process" {
    for (0..9) |j| {
        var owners: usize = 0;
        for (0..4) |rank| owners += @intFromBool((Share{ .rank = @intCast(rank), .count = 4 }).owns(j));
        try std.testing.expectEqual(1, owners);
    }
}
