//! Holds back the end of a growing text while it could be the begin of a stop text.
//!
//! Some formats end a turn with ordinary words ("\nUser:"); these must not be shown, not even half of them.

const std = @import("std");

pub const StopText = struct {
    stops: []const []const u8,
    held: [max_bytes]u8 = undefined,
    held_len: usize = 0,

    /// Longest stop text.
    pub const max_bytes = 64;

    /// Appends to `out` what can be shown after `bytes`. True when a stop text was found: the turn is over.
    pub fn push(self: *StopText, gpa: std.mem.Allocator, out: *std.ArrayList(u8), bytes: []const u8) error{OutOfMemory}!bool {
        for (bytes) |byte| {
            self.held[self.held_len] = byte;
            self.held_len += 1;
            for (self.stops) |stop| if (std.mem.eql(u8, self.held[0..self.held_len], stop)) {
                self.held_len = 0;
                return true;
            };
            while (self.held_len > 0 and !self.couldStop()) {
                try out.append(gpa, self.held[0]);
                self.held_len -= 1;
                std.mem.copyForwards(u8, self.held[0..self.held_len], self.held[1 .. self.held_len + 1]);
            }
        }
        return false;
    }

    /// Appends what was held back: the text ended without a stop.
    pub fn finish(self: *StopText, gpa: std.mem.Allocator, out: *std.ArrayList(u8)) error{OutOfMemory}!void {
        try out.appendSlice(gpa, self.held[0..self.held_len]);
        self.held_len = 0;
    }

    fn couldStop(self: *const StopText) bool {
        for (self.stops) |stop| {
            std.debug.assert(stop.len <= max_bytes);
            if (std.mem.startsWith(u8, stop, self.held[0..self.held_len])) return true;
        }
        return false;
    }
};

test "a stop text is never shown, its lookalikes are shown whole" {
    const gpa = std.testing.allocator;
    const stops = [_][]const u8{ "\nUser:", "\n[E" };
    const cases = [_]struct { []const u8, []const u8, bool }{
        .{ "hello\nUser: x", "hello", true },
        .{ "a\n\nUser:", "a\n", true },
        .{ "a\nUse it\n[", "a\nUse it\n[", false },
        .{ "\n\n[E", "\n", true },
        .{ "plain", "plain", false },
    };
    for (cases) |case| for ([_]usize{ 1, 2, 100 }) |step| {
        var out: std.ArrayList(u8) = .empty;
        defer out.deinit(gpa);
        var scanner: StopText = .{ .stops = &stops };
        var found = false;
        var i: usize = 0;
        while (i < case[0].len and !found) : (i += step) {
            found = try scanner.push(gpa, &out, case[0][i..@min(i + step, case[0].len)]);
        }
        if (!found) try scanner.finish(gpa, &out);
        try std.testing.expectEqual(case[2], found);
        try std.testing.expectEqualStrings(case[1], out.items);
    };
}
