//! Ctrl-C: the first asks to stop, the second leaves at once.
//!
//! One handler for the process, with nothing in it but an atomic counter and `_exit`.

const std = @import("std");

/// Times Ctrl-C was pressed since `reset`.
pub var pressed: std.atomic.Value(u32) = .init(0);

/// What the shell calls a program that Ctrl-C ended.
pub const exit_code = 130;

/// System calls that wait return early on Ctrl-C: no SA_RESTART.
pub fn install() void {
    std.posix.sigaction(.INT, &.{ .handler = .{ .handler = onInterrupt }, .mask = std.posix.sigemptyset(), .flags = 0 }, null);
}

pub fn reset() void {
    pressed.store(0, .monotonic);
}

fn onInterrupt(_: std.posix.SIG) callconv(.c) void {
    if (pressed.fetchAdd(1, .monotonic) > 0) std.c._exit(exit_code);
}
