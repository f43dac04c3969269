//! The sentence that goes with an error: which thing, which value, what to do next.
//!
//! Zig errors carry a name and nothing else. A function that can fail on something a person gave takes a
//! `*Diagnostic` and fills it before it returns the error; the caller decides where it is shown.
//! Fixed size, no allocation: it must work when memory is what ran out.

const std = @import("std");

pub const Diagnostic = struct {
    buffer: [capacity]u8 = undefined,
    len: usize = 0,

    pub const capacity = 1024;

    /// Replaces the text. Longer texts are cut at `capacity`.
    pub fn set(self: *Diagnostic, comptime format: []const u8, arguments: anytype) void {
        var w: std.Io.Writer = .fixed(&self.buffer);
        w.print(format, arguments) catch {}; // Cut, not lost: the buffer holds what fitted.
        self.len = w.end;
    }

    /// Puts `prefix` before what is there: callers add the file name to a message that came without one.
    pub fn prepend(self: *Diagnostic, comptime format: []const u8, arguments: anytype) void {
        const copy = self.buffer;
        const old = copy[0..self.len];
        self.set(format ++ "{s}", arguments ++ .{old});
    }

    /// Empty when nothing was set.
    pub fn text(self: *const Diagnostic) []const u8 {
        return self.buffer[0..self.len];
    }

    pub fn clear(self: *Diagnostic) void {
        self.len = 0;
    }
};

test "a long message is cut, a prefix is put before" {
    var diag: Diagnostic = .{};
    diag.set("field {s} is {d}", .{ "x", 7 });
    diag.prepend("{s}: ", .{"file.bin"});
    try std.testing.expectEqualStrings("file.bin: field x is 7", diag.text());
    diag.set("{s}", .{&@as([2000]u8, @splat('y'))});
    try std.testing.expectEqual(Diagnostic.capacity, diag.text().len);
}
