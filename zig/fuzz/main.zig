//! Fuzzing without a framework: sound files with random changes, read in one process until time is up or something breaks.
//!
//!     abi-fuzz TARGET SEEDS_FOLDER SCRATCH_FOLDER SECONDS SEED [MOST_CASES]
//!
//! Each case lies in SCRATCH_FOLDER/TARGET.case before it is read, so whatever ends the process (a panic of the safe build, a signal,
//! an endless loop ended by the clock) leaves its input behind. Inputs that make a reader say something new become seeds themselves.
//! Does not know: formats (targets.zig), how bytes are changed (mutate.zig).

const std = @import("std");
const abi = @import("abi");
const mutate = @import("mutate.zig");
const targets = @import("targets.zig");
const Prng = abi.base.Prng;

/// One case; longer seeds are cut.
const case_bytes = 1 << 20;
/// Seeds kept besides those of the folder.
const kept_most = 4096;
/// A case that computes longer hangs. Time that others take from this process does not count.
const case_seconds = 20;

const Interval = extern struct { every: std.c.timeval, first: std.c.timeval };
extern "c" fn setitimer(which: c_int, new: *const Interval, old: ?*Interval) c_int;
/// Of the process's own time; ends it with SIGPROF.
const itimer_prof = 2;

const Arguments = struct { target: targets.Target, seeds: []const u8, scratch: []const u8, seconds: u64, seed: u64, cases: u64 };

pub fn main(init: std.process.Init) !void {
    const arena = init.arena.allocator();
    const given = try init.minimal.args.toSlice(arena);
    const a = parse(given) orelse {
        std.debug.print("usage: abi-fuzz TARGET SEEDS_FOLDER SCRATCH_FOLDER SECONDS SEED [MOST_CASES]\ntargets: {s}\n", .{targets.names});
        std.process.exit(2);
    };
    var run: Run = .{
        .io = init.io,
        .target = a.target,
        .prng = .init(a.seed),
        .corpus = try readSeeds(arena, init.io, a.seeds),
        .seed_count = 0,
        .case = try mapCase(arena, init.io, a.scratch, a.target),
        .arena = arena,
        .scratch = a.scratch,
    };
    run.seed_count = run.corpus.items.len;
    if (run.seed_count == 0) {
        std.debug.print("{s} has no files\n", .{a.seeds});
        std.process.exit(2);
    }
    // The seeds themselves: each is a case, and most of them are sound.
    for (run.corpus.items) |bytes| {
        @memcpy(run.case[8..][0..bytes.len], bytes);
        _ = try run.one(bytes.len);
    }
    const sound = run.accepted;
    const start: std.Io.Timestamp = .now(init.io, .awake);
    var cases: u64 = 0;
    while (cases < a.cases and start.untilNow(init.io, .awake).toNanoseconds() < a.seconds * std.time.ns_per_s) {
        for (0..64) |_| try run.step();
        cases += 64;
    }
    var buffer: [256]u8 = undefined;
    var out: std.Io.File.Writer = .initStreaming(.stdout(), init.io, &buffer);
    try out.interface.print("{t}: {d} cases, {d} accepted, {d} of {d} seeds sound, {d} different answers\n", .{ a.target, cases, run.accepted - sound, sound, run.seed_count, run.answers.count() });
    try out.interface.flush();
}

fn parse(given: []const [:0]const u8) ?Arguments {
    if (given.len != 6 and given.len != 7) return null;
    return .{
        .target = std.meta.stringToEnum(targets.Target, given[1]) orelse return null,
        .seeds = given[2],
        .scratch = given[3],
        .seconds = std.fmt.parseInt(u32, given[4], 10) catch return null,
        .seed = std.fmt.parseInt(u64, given[5], 10) catch return null,
        .cases = if (given.len == 7) std.fmt.parseInt(u64, given[6], 10) catch return null else std.math.maxInt(u64),
    };
}

const Run = struct {
    io: std.Io,
    target: targets.Target,
    prng: Prng,
    corpus: std.ArrayList([]const u8),
    seed_count: usize,
    /// Length, then bytes; shared with the file.
    case: []align(std.heap.page_size_min) u8,
    arena: std.mem.Allocator,
    scratch: []const u8,
    answers: std.AutoHashMapUnmanaged(u64, void) = .empty,
    accepted: u64 = 0,

    fn step(self: *Run) !void {
        const seed = self.corpus.items[@intCast(self.prng.below(self.corpus.items.len))];
        const other = self.corpus.items[@intCast(self.prng.below(self.corpus.items.len))];
        const room = self.case[8..];
        @memcpy(room[0..seed.len], seed);
        const len = mutate.change(&self.prng, room, seed.len, other);
        const is_new = try self.one(len);
        if (!is_new or len > 1 << 17) return;
        // Old finds give way, the folder's seeds stay.
        const copy = try self.arena.dupe(u8, room[0..len]);
        if (self.corpus.items.len < self.seed_count + kept_most) return self.corpus.append(self.arena, copy);
        self.corpus.items[self.seed_count + @as(usize, @intCast(self.prng.below(kept_most)))] = copy;
    }

    /// Whether the reader's answer to the case is one that no case got so far.
    fn one(self: *Run, len: usize) !bool {
        std.mem.writeInt(u64, self.case[0..8], len, .little);
        _ = setitimer(itimer_prof, &.{ .every = .{ .sec = 0, .usec = 0 }, .first = .{ .sec = case_seconds, .usec = 0 } }, null);
        const answer = targets.read(self.target, self.io, self.scratch, self.case[8..][0..len]);
        if (answer == targets.accepted) self.accepted += 1;
        return !(try self.answers.getOrPut(self.arena, answer)).found_existing;
    }
};

fn readSeeds(arena: std.mem.Allocator, io: std.Io, path: []const u8) !std.ArrayList([]const u8) {
    var out: std.ArrayList([]const u8) = .empty;
    var disk: abi.base.storage.Disk = .init(io);
    const listing = try disk.storage().list(arena, path);
    for (listing.entries) |entry| {
        if (entry.kind != .file) continue;
        const bytes = try disk.storage().readAlloc(arena, try abi.base.storage.join(arena, path, entry.name));
        try out.append(arena, bytes[0..@min(bytes.len, case_bytes / 2)]);
    }
    return out;
}

/// The bytes of SCRATCH/TARGET.case: what is written to them is in the file even when the process dies at once.
fn mapCase(arena: std.mem.Allocator, io: std.Io, scratch: []const u8, target: targets.Target) ![]align(std.heap.page_size_min) u8 {
    const path = try std.fmt.allocPrint(arena, "{s}/{t}.case", .{ scratch, target });
    const file = try std.Io.Dir.cwd().createFile(io, path, .{ .read = true });
    defer file.close(io);
    try file.setLength(io, 8 + case_bytes);
    return std.posix.mmap(null, 8 + case_bytes, .{ .READ = true, .WRITE = true }, .{ .TYPE = .SHARED }, file.handle, 0);
}
