//! One record at a time, as a JSON line or as a line of text.

const std = @import("std");

pub const Output = struct {
    buffer: std.Io.Writer.Allocating,
    table: bool,
    fields: usize = 0,

    pub fn init(gpa: std.mem.Allocator, table: bool) Output {
        return .{ .buffer = .init(gpa), .table = table };
    }

    pub fn deinit(self: *Output) void {
        self.buffer.deinit();
    }

    /// Each field of `record` by its name; floats with six significant digits.
    pub fn write(self: *Output, record: anytype) !void {
        const info = @typeInfo(@TypeOf(record)).@"struct";
        const w = &self.buffer.writer;
        if (!self.table) try w.writeByte('{');
        inline for (info.field_names, 0..) |name, i| {
            const value = @field(record, name);
            if (i > 0) try w.writeAll(if (self.table) "  " else ", ");
            if (self.table) try w.print("{s} ", .{name}) else try w.print("\"{s}\": ", .{name});
            switch (@typeInfo(@TypeOf(value))) {
                .float, .comptime_float => if (self.table) try w.print("{d:.3}", .{value}) else try w.print("{e:.6}", .{value}),
                .int, .comptime_int => try w.print("{d}", .{value}),
                .bool => try w.print("{}", .{value}),
                else => if (self.table) try w.print("{s: <23}", .{value}) else try w.print("\"{s}\"", .{value}),
            }
        }
        try w.writeAll(if (self.table) "\n" else "}\n");
        var rest = self.buffer.written();
        while (rest.len > 0) {
            const n = std.c.write(1, rest.ptr, rest.len);
            if (n <= 0) return error.WriteFailed;
            rest = rest[@intCast(n)..];
        }
        self.buffer.clearRetainingCapacity();
    }
};

/// Sorts `samples`; the middle one.
pub fn median(samples: []f64) f64 {
    std.mem.sort(f64, samples, {}, std.sort.asc(f64));
    const half = samples.len / 2;
    return if (samples.len % 2 == 1) samples[half] else (samples[half - 1] + samples[half]) / 2;
}

test "the median of an even count is the mean of the middle two" {
    var four = [_]f64{ 4, 1, 3, 2 };
    try std.testing.expectEqual(2.5, median(&four));
    var three = [_]f64{ 9, 1, 3 };
    try std.testing.expectEqual(3, median(&three));
}
