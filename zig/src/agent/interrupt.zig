//! Ctrl-C and SIGTERM: the first asks to stop, the second leaves at once.
//!
//! One handler for the process, with nothing in it but atomic counters, one `write` and `_exit`.

const std = @import("std");

/// Times the program was asked to stop since `reset`.
pub var pressed: std.atomic.Value(u32) = .init(0);

/// The number of the signal that asked first; 0 = none did.
var first: std.atomic.Value(u32) = .init(0);

/// Said on stderr at the first request. Set before `install`; empty = nothing is said.
var notice: []const u8 = "";

/// What the shell calls a program that Ctrl-C ended.
pub const exit_code = 130;

/// Listens to Ctrl-C. System calls that wait return early: no SA_RESTART.
pub fn install() void {
    listen(.INT);
}

/// Listens to Ctrl-C and SIGTERM, for work that ends by saving.
pub fn installForWork(words: []const u8) void {
    notice = words;
    listen(.INT);
    listen(.TERM);
}

pub fn reset() void {
    pressed.store(0, .monotonic);
    first.store(0, .monotonic);
}

/// SIGTERM, and not Ctrl-C, asked first.
pub fn terminated() bool {
    return first.load(.monotonic) == @as(u32, @intCast(@backingInt(std.posix.SIG.TERM)));
}

fn listen(signal: std.posix.SIG) void {
    std.posix.sigaction(signal, &.{ .handler = .{ .handler = onSignal }, .mask = std.posix.sigemptyset(), .flags = 0 }, null);
}

fn onSignal(signal: std.posix.SIG) callconv(.c) void {
    const number: u32 = @intCast(@backingInt(signal));
    if (pressed.fetchAdd(1, .monotonic) > 0) std.c._exit(@intCast(128 + number));
    first.store(number, .monotonic);
    if (notice.len > 0) _ = std.c.write(std.posix.STDERR_FILENO, notice.ptr, notice.len);
}
