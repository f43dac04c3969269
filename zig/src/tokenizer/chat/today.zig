//! The day it is here, for formats that name it.

const std = @import("std");

/// C's `struct tm` begins with these on every system; what follows differs and is left room for.
const Time = extern struct {
    second: c_int,
    minute: c_int,
    hour: c_int,
    day: c_int,
    month: c_int,
    year: c_int,
    rest: [16]c_long,
};

extern fn time(result: ?*c_long) c_long;
extern fn localtime_r(seconds: *const c_long, result: *Time) ?*Time;

/// As 2025-06-28, in local time, which is what templates' `strftime_now` gives.
pub fn today(buffer: *[10]u8) []const u8 {
    const now = time(null);
    var parts: Time = undefined;
    if (localtime_r(&now, &parts) == null) return "1970-01-01";
    const year: u32 = @intCast(std.math.clamp(parts.year + 1900, 0, 9999));
    const month: u32 = @intCast(std.math.clamp(parts.month + 1, 1, 12));
    const day: u32 = @intCast(std.math.clamp(parts.day, 1, 31));
    return std.fmt.bufPrint(buffer, "{d:0>4}-{d:0>2}-{d:0>2}", .{ year, month, day }) catch unreachable; // Ten bytes always.
}

test "a day has ten characters and lies after the first of these" {
    var buffer: [10]u8 = undefined;
    const day = today(&buffer);
    try std.testing.expectEqual(10, day.len);
    try std.testing.expect(std.mem.order(u8, day, "2025-01-01") == .gt);
}
