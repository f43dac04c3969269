//! Texts that are allowed, byte by byte: rules that call each other, and the states one is in after a begin of a text.
//!
//! A `Grammar` is a graph of nodes. A place in it (`Frame`) is a node that reads a byte, how often the construct around it was
//! repeated, and where to go on when its rule ends. A state is a set of places; states, and what a byte makes of them, are found once
//! and kept. State 0 is dead: no allowed text begins so.
//! Does not know: JSON, tokens.

const std = @import("std");
const Allocator = std.mem.Allocator;

/// Index of a node.
pub const Id = u32;

pub const Range = struct { low: u8, high: u8, to: Id };

pub const Node = union(enum) {
    /// Reads one byte of one of these ranges, which do not overlap.
    bytes: []const Range,
    /// Goes on at any of these.
    split: []const Id,
    /// Goes through the rule that begins at `rule`, then on at `next`.
    call: struct { rule: Id, next: Id },
    /// Counts one repetition; there may be `most`. Above `cap` is as good as `cap`.
    more: struct { most: u32 = std.math.maxInt(u32), cap: u32, next: Id },
    /// Goes on after at least so many repetitions.
    enough: struct { least: u32, next: Id },
    /// The rule ends.
    done,
};

pub const Grammar = struct {
    nodes: []Node,
    start: Id,
};

/// Takes out of every choice what never comes to an end. False when nothing is left to begin with.
pub fn prune(arena: Allocator, grammar: Grammar) error{OutOfMemory}!bool {
    const nodes = grammar.nodes;
    const ends = try arena.alloc(bool, nodes.len);
    @memset(ends, false);
    var changed = true;
    while (changed) {
        changed = false;
        // Nodes are mostly made behind those they go on at, so few rounds are needed.
        for (nodes, 0..) |node, i| {
            if (ends[i]) continue;
            ends[i] = switch (node) {
                .bytes => |ranges| for (ranges) |range| {
                    if (ends[range.to]) break true;
                } else false,
                .split => |choices| for (choices) |choice| {
                    if (ends[choice]) break true;
                } else false,
                .call => |call| ends[call.rule] and ends[call.next],
                .more => |more| ends[more.next],
                .enough => |enough| ends[enough.next],
                .done => true,
            };
            changed = changed or ends[i];
        }
    }
    for (nodes) |*node| switch (node.*) {
        .bytes => |ranges| {
            var kept: std.ArrayList(Range) = .empty;
            for (ranges) |range| if (ends[range.to]) try kept.append(arena, range);
            node.bytes = kept.items;
        },
        .split => |choices| {
            var kept: std.ArrayList(Id) = .empty;
            for (choices) |choice| if (ends[choice]) try kept.append(arena, choice);
            node.split = kept.items;
        },
        else => {},
    };
    return ends[grammar.start];
}

const none = std.math.maxInt(u32);

const Frame = struct {
    node: Id,
    count: u32,
    /// Index of the frame to go on with when the rule ends, or `none`.
    parent: u32,
};

/// Index of a state.
pub const State = u32;
pub const dead: State = 0;

pub const Automaton = struct {
    gpa: Allocator,
    grammar: Grammar,
    frames: std.array_hash_map.Auto(Frame, void) = .empty,
    /// Sets of frames, each sorted, one behind the other.
    members: std.ArrayList(u32) = .empty,
    states: std.ArrayList(Entry) = .empty,
    index: std.HashMapUnmanaged(State, void, Hashing, 80) = .empty,
    /// State after a byte, 256 a state; `unknown` until it is asked for.
    after: std.ArrayList(State) = .empty,
    start: State = dead,
    /// Frames found while a state is made, and what is still to be looked at.
    found: std.ArrayList(u32) = .empty,
    open: std.ArrayList(Frame) = .empty,
    visited: std.AutoHashMapUnmanaged(Frame, void) = .empty,

    const unknown = std.math.maxInt(u32);

    const Entry = struct {
        first: u32,
        count: u32,
        /// The text may end here.
        is_end: bool,
    };

    const Hashing = struct {
        automaton: *const Automaton,

        pub fn hash(self: Hashing, state: State) u64 {
            return self.automaton.hashOf(state);
        }
        pub fn eql(self: Hashing, a: State, b: State) bool {
            return self.automaton.isSame(a, b);
        }
    };

    /// `grammar` must outlive it and be pruned. Caller calls `deinit`.
    pub fn init(gpa: Allocator, grammar: Grammar) error{OutOfMemory}!Automaton {
        var self: Automaton = .{ .gpa = gpa, .grammar = grammar };
        errdefer self.deinit();
        try self.reset();
        return self;
    }

    pub fn deinit(self: *Automaton) void {
        const gpa = self.gpa;
        self.frames.deinit(gpa);
        self.members.deinit(gpa);
        self.states.deinit(gpa);
        self.index.deinit(gpa);
        self.after.deinit(gpa);
        self.found.deinit(gpa);
        self.open.deinit(gpa);
        self.visited.deinit(gpa);
        self.* = undefined;
    }

    /// Forgets all states but the dead and the first one.
    pub fn reset(self: *Automaton) error{OutOfMemory}!void {
        self.frames.clearRetainingCapacity();
        self.members.clearRetainingCapacity();
        self.states.clearRetainingCapacity();
        self.index.clearRetainingCapacity();
        self.after.clearRetainingCapacity();
        self.found.clearRetainingCapacity();
        self.open.clearRetainingCapacity();
        const nothing = try self.intern(false);
        std.debug.assert(nothing == dead);
        try self.open.append(self.gpa, .{ .node = self.grammar.start, .count = 0, .parent = none });
        self.start = try self.close();
    }

    pub fn isEnd(self: *const Automaton, state: State) bool {
        return self.states.items[state].is_end;
    }

    /// Whether any byte may follow.
    pub fn goesOn(self: *const Automaton, state: State) bool {
        return self.states.items[state].count > 0;
    }

    /// About how many bytes the states take.
    pub fn size(self: *const Automaton) usize {
        return self.states.items.len * (256 * @sizeOf(State) + 32) + self.members.items.len * 4 + self.frames.count() * 24;
    }

    pub fn step(self: *Automaton, state: State, byte: u8) error{OutOfMemory}!State {
        const at = @as(usize, state) * 256 + byte;
        const known = self.after.items[at];
        if (known != unknown) return known;
        self.found.clearRetainingCapacity();
        self.open.clearRetainingCapacity();
        const entry = self.states.items[state];
        for (0..entry.count) |i| {
            const frame = self.frames.keys()[self.members.items[entry.first + i]];
            for (self.grammar.nodes[frame.node].bytes) |range| if (range.low <= byte and byte <= range.high) {
                try self.open.append(self.gpa, .{ .node = range.to, .count = frame.count, .parent = frame.parent });
                break;
            };
        }
        const next = if (self.open.items.len == 0) dead else try self.close();
        self.after.items[at] = next;
        return next;
    }

    /// The state of all places that are reached from the open ones without reading a byte.
    fn close(self: *Automaton) error{OutOfMemory}!State {
        const gpa = self.gpa;
        self.found.clearRetainingCapacity();
        self.visited.clearRetainingCapacity();
        var is_end = false;
        while (self.open.pop()) |frame| {
            if ((try self.visited.getOrPut(gpa, frame)).found_existing) continue;
            switch (self.grammar.nodes[frame.node]) {
                .bytes => |ranges| if (ranges.len > 0) {
                    const entry = try self.frames.getOrPut(gpa, frame);
                    try self.found.append(gpa, @intCast(entry.index));
                },
                .split => |choices| for (choices) |choice| {
                    try self.open.append(gpa, .{ .node = choice, .count = frame.count, .parent = frame.parent });
                },
                .call => |call| {
                    // Where nothing follows, the rule may end where this one would: rules that only name each other come back to
                    // the same frame instead of piling up.
                    const parent = if (self.grammar.nodes[call.next] == .done) frame.parent else blk: {
                        const entry = try self.frames.getOrPut(gpa, .{ .node = call.next, .count = frame.count, .parent = frame.parent });
                        break :blk @as(u32, @intCast(entry.index));
                    };
                    try self.open.append(gpa, .{ .node = call.rule, .count = 0, .parent = parent });
                },
                .more => |more| if (frame.count < more.most) {
                    try self.open.append(gpa, .{ .node = more.next, .count = @min(frame.count + 1, more.cap), .parent = frame.parent });
                },
                .enough => |enough| if (frame.count >= enough.least) {
                    try self.open.append(gpa, .{ .node = enough.next, .count = frame.count, .parent = frame.parent });
                },
                .done => if (frame.parent == none) {
                    is_end = true;
                } else try self.open.append(gpa, self.frames.keys()[frame.parent]),
            }
        }
        return self.intern(is_end);
    }

    /// The state of the frames in `found`.
    fn intern(self: *Automaton, is_end: bool) error{OutOfMemory}!State {
        const gpa = self.gpa;
        std.sort.pdq(u32, self.found.items, {}, std.sort.asc(u32));
        const first = self.members.items.len;
        try self.members.appendSlice(gpa, self.found.items);
        errdefer self.members.shrinkRetainingCapacity(first);
        try self.states.append(gpa, .{ .first = @intCast(first), .count = @intCast(self.found.items.len), .is_end = is_end });
        errdefer _ = self.states.pop();
        try self.after.ensureUnusedCapacity(gpa, 256);
        const state: State = @intCast(self.states.items.len - 1);
        const entry = try self.index.getOrPutContext(gpa, state, .{ .automaton = self });
        if (entry.found_existing) {
            _ = self.states.pop();
            self.members.shrinkRetainingCapacity(first);
            return entry.key_ptr.*;
        }
        self.after.appendNTimesAssumeCapacity(unknown, 256);
        return state;
    }

    fn membersOf(self: *const Automaton, state: State) []const u32 {
        const entry = self.states.items[state];
        return self.members.items[entry.first..][0..entry.count];
    }

    fn hashOf(self: *const Automaton, state: State) u64 {
        return std.hash.Wyhash.hash(@intFromBool(self.states.items[state].is_end), std.mem.sliceAsBytes(self.membersOf(state)));
    }

    fn isSame(self: *const Automaton, a: State, b: State) bool {
        return self.states.items[a].is_end == self.states.items[b].is_end and std.mem.eql(u32, self.membersOf(a), self.membersOf(b));
    }
};

const testing = std.testing;

/// Whether the grammar allows `text`, whole.
fn allows(automaton: *Automaton, text: []const u8) !bool {
    var state = automaton.start;
    for (text) |byte| state = try automaton.step(state, byte);
    return automaton.isEnd(state);
}

test "rules call themselves, repetitions are counted, and what cannot end is left out" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    // list = "[" (item ("," item){1,2})? "]", item = list | "x" | endless, endless = "y" endless
    var nodes = [_]Node{
        .done,
        .{ .bytes = &.{.{ .low = '[', .high = '[', .to = 2 }} },
        .{ .split = &.{ 3, 4 } },
        .{ .bytes = &.{.{ .low = ']', .high = ']', .to = 0 }} },
        .{ .more = .{ .most = 3, .cap = 3, .next = 5 } },
        .{ .call = .{ .rule = 8, .next = 6 } },
        .{ .split = &.{ 7, 10 } },
        .{ .enough = .{ .least = 2, .next = 3 } },
        .{ .split = &.{ 1, 9, 11 } },
        .{ .bytes = &.{.{ .low = 'x', .high = 'x', .to = 0 }} },
        .{ .bytes = &.{.{ .low = ',', .high = ',', .to = 4 }} },
        .{ .bytes = &.{.{ .low = 'y', .high = 'y', .to = 11 }} },
    };
    const grammar: Grammar = .{ .nodes = &nodes, .start = 1 };
    try testing.expect(try prune(arena.allocator(), grammar));
    var automaton: Automaton = try .init(testing.allocator, grammar);
    defer automaton.deinit();
    for (0..2) |_| {
        for ([_][]const u8{ "[]", "[x,x]", "[x,x,x]", "[[],[x,[]],x]" }) |text| try testing.expect(try allows(&automaton, text));
        for ([_][]const u8{ "", "[", "[x]", "[x,x,x,x]", "[[]]", "[x,x,]", "[x,x]]", "[y,y]", "x" }) |text| try testing.expect(!try allows(&automaton, text));
        const begun = try automaton.step(try automaton.step(automaton.start, '['), 'y');
        try testing.expectEqual(dead, begun);
        try testing.expect(!automaton.goesOn(dead) and !automaton.isEnd(dead));
        try automaton.reset();
    }
    // Many nested lists come back to states that are known, one a depth.
    var state = automaton.start;
    for (0..50) |_| state = try automaton.step(state, '[');
    for (0..3) |_| state = try automaton.step(try automaton.step(state, 'x'), ',');
    try testing.expectEqual(dead, state);
    try testing.expect(automaton.states.items.len < 120);
}

test "rules that only name each other come to an end, and rules without any end are found" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    var circle = [_]Node{
        .done,
        .{ .split = &.{ 2, 3 } },
        .{ .call = .{ .rule = 1, .next = 0 } },
        .{ .bytes = &.{.{ .low = 'a', .high = 'z', .to = 0 }} },
    };
    try testing.expect(try prune(arena.allocator(), .{ .nodes = &circle, .start = 1 }));
    var automaton: Automaton = try .init(testing.allocator, .{ .nodes = &circle, .start = 1 });
    defer automaton.deinit();
    try testing.expect(try allows(&automaton, "q"));
    try testing.expect(!try allows(&automaton, "qq"));

    var endless = [_]Node{ .done, .{ .call = .{ .rule = 1, .next = 0 } } };
    try testing.expect(!try prune(arena.allocator(), .{ .nodes = &endless, .start = 1 }));
}

test "every allocation failure of an automaton is survived" {
    try testing.checkAllAllocationFailures(testing.allocator, struct {
        fn run(gpa: Allocator) !void {
            var nodes = [_]Node{
                .done,
                .{ .split = &.{ 2, 3 } },
                .{ .call = .{ .rule = 3, .next = 1 } },
                .{ .bytes = &.{.{ .low = 'a', .high = 'z', .to = 0 }} },
            };
            var automaton: Automaton = try .init(gpa, .{ .nodes = &nodes, .start = 1 });
            defer automaton.deinit();
            try testing.expect(try allows(&automaton, "abc"));
        }
    }.run, .{});
}
