//! Arithmetic for numbers that came from outside: a file, a flag, a caller in C.
//!
//! Every function gives the exact result or `error.Overflow`; none wraps, saturates or panics. Callers turn the error
//! into a sentence that names the field. Does not know: what the numbers mean.

const std = @import("std");

pub const Error = error{Overflow};

pub fn add(comptime T: type, a: T, b: T) Error!T {
    return std.math.add(T, a, b);
}

pub fn sub(comptime T: type, a: T, b: T) Error!T {
    return std.math.sub(T, a, b);
}

pub fn mul(comptime T: type, a: T, b: T) Error!T {
    return std.math.mul(T, a, b);
}

/// The product of all factors; 1 for none. A zero anywhere gives 0 only if no partial product overflows before it.
pub fn product(comptime T: type, factors: []const T) Error!T {
    var result: T = 1;
    for (factors) |factor| result = try mul(T, result, factor);
    return result;
}

/// The smallest multiple of `alignment` that is `value` or more. `alignment` must not be 0; any other number is fine.
pub fn alignForward(comptime T: type, value: T, alignment: T) Error!T {
    std.debug.assert(alignment != 0);
    const remainder = value % alignment;
    if (remainder == 0) return value;
    return add(T, value, alignment - remainder);
}

/// The same integer as another type.
pub fn cast(comptime T: type, value: anytype) Error!T {
    return std.math.cast(T, value) orelse error.Overflow;
}

/// True when `start + len` lies within `total`, without ever computing a sum that could wrap.
pub fn fits(start: u64, len: u64, total: u64) bool {
    return start <= total and len <= total - start;
}

test "products and sums are exact or refused" {
    try std.testing.expectEqual(@as(u8, 255), try mul(u8, 15, 17));
    try std.testing.expectError(error.Overflow, mul(u8, 16, 16));
    try std.testing.expectError(error.Overflow, add(u64, std.math.maxInt(u64), 1));
    try std.testing.expectError(error.Overflow, sub(usize, 1, 2));
    try std.testing.expectEqual(@as(usize, 24), try product(usize, &.{ 2, 3, 4 }));
    try std.testing.expectEqual(@as(usize, 1), try product(usize, &.{}));
    try std.testing.expectError(error.Overflow, product(u64, &.{ 1 << 32, 1 << 32 }));
}

test "rounding up to an alignment never wraps" {
    for (0..200) |value| for (1..40) |alignment| {
        const up = try alignForward(usize, value, alignment);
        try std.testing.expect(up >= value and up - value < alignment and up % alignment == 0);
    };
    try std.testing.expectError(error.Overflow, alignForward(u64, std.math.maxInt(u64), 32));
}

test "casts keep the value or fail" {
    try std.testing.expectEqual(@as(u8, 200), try cast(u8, @as(i64, 200)));
    try std.testing.expectError(error.Overflow, cast(u8, @as(i64, -1)));
    try std.testing.expectError(error.Overflow, cast(i32, @as(u64, 1) << 31));
}

test "a range fits only inside the total" {
    try std.testing.expect(fits(0, 0, 0));
    try std.testing.expect(fits(3, 4, 7));
    try std.testing.expect(!fits(3, 5, 7));
    try std.testing.expect(!fits(std.math.maxInt(u64), 2, 7));
}
