//! What every verb gets: memory, input and output, the environment, and the ways to end.

const std = @import("std");
const abi = @import("abi");
const arguments = @import("arguments.zig");

/// How the program ends. Documented in `abi help` and docs/cli.md.
pub const Exit = enum(u8) {
    ok = 0,
    /// The work failed: a file, a model, a server's answer.
    failed = 1,
    /// The command line is wrong.
    usage = 2,
    /// The Ollama server cannot be reached.
    unreachable_server = 3,
    /// Ended by Ctrl-C.
    interrupted = 130,
    /// Ended by SIGTERM.
    terminated = 143,
};

/// Output that could not be written ends the program; anything else is told to the person and becomes an `Exit`.
pub const RunError = error{ OutOfMemory, WriteFailed };

/// Most threads a person can ask for, as in the configuration of training.
pub const threads_max = 256;

pub const App = struct {
    gpa: std.mem.Allocator,
    /// Lives as long as the program.
    arena: std.mem.Allocator,
    io: std.Io,
    environment: *const std.process.Environ.Map,
    /// Results, and nothing else.
    out: *std.Io.Writer,
    /// Everything else.
    err: *std.Io.Writer,
    out_is_terminal: bool,
    err_is_terminal: bool,
    in_is_terminal: bool,
    /// NO_COLOR is not set.
    color_wanted: bool,

    /// Prints `abi verb: message` and what the person can do next.
    pub fn fail(self: *App, verb: []const u8, message: []const u8) RunError!Exit {
        try self.complain(verb, message);
        return .failed;
    }

    pub fn complain(self: *App, verb: []const u8, message: []const u8) RunError!void {
        const on = if (self.color_wanted and self.err_is_terminal) "\x1b[31m" else "";
        const off = if (on.len > 0) "\x1b[0m" else "";
        try self.out.flush();
        self.tell("{s}abi{s}{s}:{s} {s}\n", .{ on, if (verb.len > 0) " " else "", verb, off, message });
    }

    /// Progress and messages: what cannot be written is dropped, for a log that nobody reads must not end the work.
    pub fn tell(self: *App, comptime format: []const u8, values: anytype) void {
        self.writeMessage(format, values) catch {
            self.err.end = 0; // The bytes are still there.
        };
    }

    fn writeMessage(self: *App, comptime format: []const u8, values: anytype) std.Io.Writer.Error!void {
        try self.err.print(format, values);
        try self.err.flush();
    }

    /// Parses or explains. Null = go on; else the program's end.
    pub fn parse(self: *App, parsed: *arguments.Parsed, verb: *const arguments.Verb, given: []const []const u8) RunError!?Exit {
        parsed.parse(self.arena, verb, given) catch |err| return try self.parseFailed(parsed, err);
        return null;
    }

    pub fn parseFailed(self: *App, parsed: *arguments.Parsed, err: arguments.ParseError) RunError!Exit {
        switch (err) {
            error.OutOfMemory => return error.OutOfMemory,
            error.HelpWanted => {
                try parsed.verb.writeHelp(self.out, self.color_wanted and self.out_is_terminal);
                return .ok;
            },
            error.Usage => {
                try self.complain(parsed.verb.name, parsed.message);
                return .usage;
            },
        }
    }
};
