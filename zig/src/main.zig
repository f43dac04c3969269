//! The `abi` program: picks the verb, gives it memory and streams, and turns its end into an exit code.
//!
//! Results go to stdout, everything else to stderr.

const std = @import("std");
const abi = @import("abi");
const app_file = @import("cli/app.zig");
const help = @import("cli/help.zig");
const arguments = @import("cli/arguments.zig");
const App = app_file.App;
const Exit = app_file.Exit;

const Run = *const fn (*App, []const []const u8) app_file.RunError!Exit;

/// In the order people meet them.
const verbs = [_]struct { *const arguments.Verb, Run }{
    .{ &@import("cli/agent.zig").verb, @import("cli/agent.zig").run },
    .{ &@import("cli/generate.zig").verb, @import("cli/generate.zig").run },
    .{ &@import("cli/inspect.zig").verb, @import("cli/inspect.zig").run },
    .{ &@import("cli/lint.zig").verb, @import("cli/lint.zig").run },
    .{ &@import("cli/quantize.zig").verb, @import("cli/quantize.zig").run },
    .{ &@import("cli/imatrix.zig").verb, @import("cli/imatrix.zig").run },
    .{ &@import("cli/split.zig").split_verb, @import("cli/split.zig").runSplit },
    .{ &@import("cli/split.zig").join_verb, @import("cli/split.zig").runJoin },
    .{ &@import("cli/unpack.zig").verb, @import("cli/unpack.zig").run },
    .{ &@import("cli/train.zig").verb, @import("cli/train.zig").run },
    .{ &@import("cli/doctor.zig").verb, @import("cli/doctor.zig").run },
    .{ &@import("cli/version.zig").verb, @import("cli/version.zig").run },
};

pub fn main(init: std.process.Init) u8 {
    const io = init.io;
    const out_is_closed = fillStandardFiles() catch return @backingInt(Exit.failed);
    refuseToDieOfFullDisks();
    explainShrunkenFiles();
    var out_buffer: [4096]u8 = undefined;
    var err_buffer: [1024]u8 = undefined;
    var out: std.Io.File.Writer = .initStreaming(.stdout(), io, &out_buffer);
    var err: std.Io.File.Writer = .initStreaming(.stderr(), io, &err_buffer);
    var app: App = .{
        .gpa = init.gpa,
        .arena = init.arena.allocator(),
        .io = io,
        .environment = init.environ_map,
        .out = &out.interface,
        .err = &err.interface,
        .in_is_terminal = isTerminal(io, .stdin()),
        .out_is_terminal = isTerminal(io, .stdout()),
        .err_is_terminal = isTerminal(io, .stderr()),
        .color_wanted = colorWanted(init.environ_map),
    };
    const code = dispatch(&app, init.minimal.args) catch |failure| switch (failure) {
        error.OutOfMemory => app.fail("", "out of memory. Use a smaller model or a shorter --context") catch .failed,
        error.WriteFailed => return unwritten(&app, &out, out_is_closed),
    };
    app.out.flush() catch return unwritten(&app, &out, out_is_closed);
    app.err.flush() catch return @backingInt(Exit.failed);
    return @backingInt(code);
}

/// Results that did not arrive are a failure. A reader that left early knows; anybody else is told.
fn unwritten(app: *App, out: *const std.Io.File.Writer, out_is_closed: bool) u8 {
    const cause = out.err orelse return @backingInt(Exit.failed);
    if (out_is_closed or cause != error.BrokenPipe) {
        const why = if (out_is_closed) "it is closed" else abi.base.storage.words(cause);
        app.err.print("abi: the output cannot be written: {s}. Check where it goes\n", .{why}) catch {}; // No one is left to tell.
        app.err.flush() catch {};
    }
    return @backingInt(Exit.failed);
}

fn dispatch(app: *App, args: std.process.Args) app_file.RunError!Exit {
    const sentinel_args = args.toSlice(app.arena) catch return error.OutOfMemory;
    const given = try app.arena.alloc([]const u8, sentinel_args.len -| 1);
    for (given, 0..) |*argument, i| argument.* = sentinel_args[i + 1];
    if (given.len == 0) {
        try writeOverview(app, app.err, app.err_is_terminal);
        return .usage;
    }
    const name = given[0];
    if (help.isHelp(name)) {
        const topic = if (given.len > 1) given[1] else {
            try writeOverview(app, app.out, app.out_is_terminal);
            return .ok;
        };
        for (verbs) |entry| if (std.mem.eql(u8, entry[0].name, topic)) {
            try entry[0].writeHelp(app.out, app.color_wanted and app.out_is_terminal);
            return .ok;
        };
        return unknownVerb(app, topic);
    }
    if (std.mem.eql(u8, name, "--version") or std.mem.eql(u8, name, "-V"))
        return @import("cli/version.zig").run(app, given[1..]);
    for (verbs) |entry| if (std.mem.eql(u8, entry[0].name, name)) return entry[1](app, given[1..]);
    return unknownVerb(app, name);
}

fn writeOverview(app: *App, out: *std.Io.Writer, is_terminal: bool) app_file.RunError!void {
    var list: [verbs.len]*const arguments.Verb = undefined;
    for (&list, verbs) |*verb, entry| verb.* = entry[0];
    try help.writeOverview(out, &list, app.color_wanted and is_terminal);
}

fn unknownVerb(app: *App, name: []const u8) app_file.RunError!Exit {
    var names: [verbs.len + 1][]const u8 = undefined;
    for (names[0..verbs.len], verbs) |*slot, entry| slot.* = entry[0].name;
    names[verbs.len] = "help";
    const near = arguments.nearest(name, &names);
    const message = if (near) |n|
        try std.fmt.allocPrint(app.arena, "unknown command \"{s}\"; did you mean `abi {s}`?", .{ name, n })
    else
        try std.fmt.allocPrint(app.arena, "unknown command \"{s}\"; `abi help` lists all", .{name});
    try app.complain("help", message);
    return .usage;
}

/// Started with a closed stdout or stderr (`2>&-`), the next file to be opened would get its number, and messages would be
/// written into a checkpoint. A closed stdin is an empty one, a closed stderr a quiet one; but results nobody gets are a
/// failure, so a closed stdout (true) becomes a pipe without a reader.
fn fillStandardFiles() error{NoFile}!bool {
    var out_is_closed = false;
    for (0..3) |number| {
        const fd: std.posix.fd_t = @intCast(number);
        if (std.c.fcntl(fd, std.c.F.GETFD) != -1) continue;
        if (fd == std.posix.STDOUT_FILENO) out_is_closed = true;
        if (std.c.open("/dev/null", .{ .ACCMODE = .RDWR }) != fd) return error.NoFile;
    }
    if (!out_is_closed) return false;
    var ends: [2]std.posix.fd_t = undefined;
    if (std.c.pipe(&ends) != 0) return error.NoFile;
    if (std.c.dup2(ends[1], std.posix.STDOUT_FILENO) < 0) return error.NoFile;
    for (ends) |fd| _ = std.c.close(fd);
    return true;
}

/// A file beyond `ulimit -f` is then an error with a name, as a full disk is, and not the end of the program.
fn refuseToDieOfFullDisks() void {
    std.posix.sigaction(.XFSZ, &.{ .handler = .{ .handler = std.posix.SIG.IGN }, .mask = std.posix.sigemptyset(), .flags = 0 }, null);
}

/// Data and models are mapped: reading where a file no longer reaches is a signal, not an error.
fn explainShrunkenFiles() void {
    std.posix.sigaction(.BUS, &.{ .handler = .{ .handler = onShrunkenFile }, .mask = std.posix.sigemptyset(), .flags = 0 }, null);
}

fn onShrunkenFile(_: std.posix.SIG) callconv(.c) void {
    const words = "abi: a file was cut short while it was read. Checkpoints are as they were; " ++
        "bring the data and model files back and run again\n";
    _ = std.c.write(std.posix.STDERR_FILENO, words, words.len);
    std.c._exit(@backingInt(Exit.failed));
}

fn isTerminal(io: std.Io, file: std.Io.File) bool {
    return file.isTty(io) catch false;
}

/// https://no-color.org: any value but the empty one turns colour off.
fn colorWanted(environment: *const std.process.Environ.Map) bool {
    const value = environment.get("NO_COLOR") orelse return true;
    return value.len == 0;
}

test {
    _ = arguments;
    _ = help;
    _ = @import("cli/split.zig");
}
