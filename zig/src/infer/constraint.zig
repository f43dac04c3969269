//! Which tokens may come next when a text must follow a grammar: a bit a token, found by walking the vocabulary through the automaton.
//!
//! Tokens are walked in the order of their texts, so that a beginning many share is looked at once, and what cannot begin so is passed
//! over together. The bits of a state are kept. A token without text, or one that only marks something, never comes.
//! Does not know: JSON, models, sampling.

const std = @import("std");
const base = @import("base");
const automaton_file = @import("automaton.zig");
const json_schema = @import("json_schema.zig");
const Automaton = automaton_file.Automaton;
const State = automaton_file.State;
const Allocator = std.mem.Allocator;

/// The texts of all tokens, in order.
pub const Vocabulary = struct {
    arena: std.heap.ArenaAllocator,
    /// One a token of the model; empty: it never comes.
    texts: []const []const u8,
    /// Tokens with a text, by their texts.
    order: []const u32,
    /// Of each in `order`: bytes it has in common with the one before.
    common: []const u32,
    longest: usize,

    /// `texts` are copied. Caller calls `deinit`.
    pub fn init(gpa: Allocator, texts: []const []const u8) error{OutOfMemory}!Vocabulary {
        var arena: std.heap.ArenaAllocator = .init(gpa);
        errdefer arena.deinit();

        const a = arena.allocator();
        const copies = try a.alloc([]const u8, texts.len);
        var order: std.ArrayList(u32) = .empty;
        try order.ensureTotalCapacityPrecise(a, texts.len);
        var longest: usize = 0;
        for (texts, copies, 0..) |text, *copy, id| {
            copy.* = try a.dupe(u8, text);
            longest = @max(longest, text.len);
            if (text.len > 0) order.appendAssumeCapacity(@intCast(id));
        }
        std.sort.pdq(u32, order.items, @as([]const []const u8, copies), before);
        const common = try a.alloc(u32, order.items.len);
        for (order.items, common, 0..) |id, *len, i| {
            len.* = if (i == 0) 0 else @intCast(std.mem.findDiff(u8, copies[order.items[i - 1]], copies[id]) orelse copies[id].len);
        }
        return .{ .arena = arena, .texts = copies, .order = order.items, .common = common, .longest = longest };
    }

    fn before(texts: []const []const u8, a: u32, b: u32) bool {
        return std.mem.lessThan(u8, texts[a], texts[b]);
    }

    pub fn deinit(self: *Vocabulary) void {
        self.arena.deinit();
        self.* = undefined;
    }
};

/// A bit a token, the first of them lowest.
pub const Bits = []u64;

pub fn hasBit(bits: []const u64, id: u32) bool {
    return bits[id / 64] >> @intCast(id % 64) & 1 == 1;
}

/// A grammar over a vocabulary, and what was found about it. Used by one thread at a time.
pub const Constraint = struct {
    gpa: Allocator,
    arena: std.heap.ArenaAllocator,
    vocabulary: *const Vocabulary,
    automaton: Automaton,
    /// What may come in a state.
    known: std.AutoHashMapUnmanaged(State, Bits) = .empty,
    /// State after each byte of the token being looked at.
    path: []State,
    /// Raised whenever states are forgotten.
    epoch: u32 = 0,
    /// States and bits are forgotten when they take more bytes than this.
    limit: usize = 64 << 20,

    /// Of the texts that `schema` allows. `vocabulary` must outlive it. On failure `diag` says what is wrong. Caller calls `deinit`.
    pub fn fromJsonSchema(gpa: Allocator, schema: []const u8, vocabulary: *const Vocabulary, diag: *base.Diagnostic) json_schema.Error!Constraint {
        var arena: std.heap.ArenaAllocator = .init(gpa);
        errdefer arena.deinit();
        const a = arena.allocator();
        const path = try a.alloc(State, vocabulary.longest + 1);
        const grammar = try json_schema.compile(a, schema, diag);
        const automaton: Automaton = try .init(gpa, grammar);
        return .{ .gpa = gpa, .arena = arena, .vocabulary = vocabulary, .automaton = automaton, .path = path };
    }

    pub fn deinit(self: *Constraint) void {
        self.forgetBits();
        self.known.deinit(self.gpa);
        self.automaton.deinit();
        self.arena.deinit();
        self.* = undefined;
    }

    fn forgetBits(self: *Constraint) void {
        var values = self.known.valueIterator();
        while (values.next()) |bits| self.gpa.free(bits.*);
        self.known.clearRetainingCapacity();
    }

    fn words(self: *const Constraint) usize {
        return (self.vocabulary.texts.len + 63) / 64;
    }

    /// Forgets what was found when it is too much.
    fn tidy(self: *Constraint) error{OutOfMemory}!void {
        if (self.automaton.size() + self.known.count() * self.words() * 8 <= self.limit) return;
        self.forgetBits();
        self.epoch += 1;
        try self.automaton.reset();
    }

    fn bitsOf(self: *Constraint, state: State) error{OutOfMemory}![]const u64 {
        if (self.known.get(state)) |bits| return bits;
        try self.known.ensureUnusedCapacity(self.gpa, 1);
        const bits = try self.gpa.alloc(u64, self.words());
        errdefer self.gpa.free(bits);
        @memset(bits, 0);
        const v = self.vocabulary;
        self.path[0] = state;
        // So many bytes of the token before were enough to tell that nothing begins so.
        var dead: usize = std.math.maxInt(usize);
        for (v.order, v.common) |id, common| {
            if (common >= dead) continue;
            dead = std.math.maxInt(usize);
            const text = v.texts[id];
            for (text[common..], common..) |byte, i| {
                const next = try self.automaton.step(self.path[i], byte);
                if (next == automaton_file.dead) {
                    dead = i + 1;
                    break;
                }
                self.path[i + 1] = next;
            } else bits[id / 64] |= @as(u64, 1) << @intCast(id % 64);
        }
        self.known.putAssumeCapacity(state, bits);
        return bits;
    }
};

pub const Error = error{
    OutOfMemory,
    /// No token of the vocabulary can go on with the text.
    NoToken,
};

/// A text in progress.
pub const Cursor = struct {
    gpa: Allocator,
    constraint: *Constraint,
    state: State,
    epoch: u32,
    text: std.ArrayList(u8) = .empty,
    bits: Bits,
    /// The text is whole, and nothing may follow.
    is_over: bool,

    /// `constraint` must outlive it. Caller calls `deinit`.
    pub fn init(gpa: Allocator, constraint: *Constraint) error{OutOfMemory}!Cursor {
        const bits = try gpa.alloc(u64, constraint.words());
        var self: Cursor = .{ .gpa = gpa, .constraint = constraint, .state = constraint.automaton.start, .epoch = constraint.epoch, .bits = bits, .is_over = undefined };
        self.is_over = self.isOver();
        return self;
    }

    pub fn deinit(self: *Cursor) void {
        self.text.deinit(self.gpa);
        self.gpa.free(self.bits);
        self.* = undefined;
    }

    fn isOver(self: *const Cursor) bool {
        const a = &self.constraint.automaton;
        return a.isEnd(self.state) and !a.goesOn(self.state);
    }

    /// States may have been forgotten: finds the own one again.
    fn sync(self: *Cursor) error{OutOfMemory}!void {
        if (self.epoch == self.constraint.epoch) return;
        var state = self.constraint.automaton.start;
        for (self.text.items) |byte| state = try self.constraint.automaton.step(state, byte);
        self.state = state;
        self.epoch = self.constraint.epoch;
    }

    /// What may come next, the ids of `stops` only where the text is whole; until the next call.
    pub fn allowed(self: *Cursor, stops: []const u32) Error![]const u64 {
        try self.constraint.tidy();
        try self.sync();
        @memcpy(self.bits, try self.constraint.bitsOf(self.state));
        const may_end = self.constraint.automaton.isEnd(self.state);
        for (stops) |id| {
            if (id / 64 >= self.bits.len) continue;
            const bit = @as(u64, 1) << @intCast(id % 64);
            if (may_end) self.bits[id / 64] |= bit else self.bits[id / 64] &= ~bit;
        }
        for (self.bits) |word| if (word != 0) return self.bits;
        return error.NoToken;
    }

    /// `id` came, which must have been allowed.
    pub fn accept(self: *Cursor, id: u32) error{OutOfMemory}!void {
        const text = self.constraint.vocabulary.texts[id];
        try self.text.ensureUnusedCapacity(self.gpa, text.len);
        try self.sync();
        var state = self.state;
        for (text) |byte| state = try self.constraint.automaton.step(state, byte);
        std.debug.assert(state != automaton_file.dead);
        self.state = state;
        self.text.appendSliceAssumeCapacity(text);
        self.is_over = self.isOver();
    }
};

const testing = std.testing;

fn tokenTexts(arena: Allocator, extra: []const []const u8) ![]const []const u8 {
    var texts: std.ArrayList([]const u8) = .empty;
    for (0..256) |byte| try texts.append(arena, try arena.dupe(u8, &.{@intCast(byte)}));
    try texts.append(arena, ""); // The end of a text.
    try texts.appendSlice(arena, extra);
    return texts.items;
}

test "the bits are those of tokens that can go on, found one by one" {
    const gpa = testing.allocator;
    var arena: std.heap.ArenaAllocator = .init(gpa);
    defer arena.deinit();
    const texts = try tokenTexts(arena.allocator(), &.{ "{\"", "{\"a", "{\"a\":", "\": ", "tru", "true}", "true}}", "é", "\xc3", "\xa9x", "e", "ee", "{", "{\"ab\": \"", "\"}", ", \"", "12", "1.5" });
    var vocabulary: Vocabulary = try .init(gpa, texts);
    defer vocabulary.deinit();
    var diag: base.Diagnostic = .{};
    const schema =
        \\{"type":"object","properties":{"a":{"type":"boolean"},"ab":{"type":"string","maxLength":5},"n":{"type":"number"}}}
    ;
    var constraint: Constraint = try .fromJsonSchema(gpa, schema, &vocabulary, &diag);
    defer constraint.deinit();
    var prng: base.Prng = .init(1);
    for ([_]usize{ 64 << 20, 0 }) |limit| {
        constraint.limit = limit;
        for (0..60) |_| {
            var cursor: Cursor = try .init(gpa, &constraint);
            defer cursor.deinit();
            while (!cursor.is_over) {
                const bits = try cursor.allowed(&.{256});
                var candidates: std.ArrayList(u32) = .empty;
                defer candidates.deinit(gpa);
                for (texts, 0..) |text, id| {
                    var state = constraint.automaton.start;
                    for (cursor.text.items) |byte| state = try constraint.automaton.step(state, byte);
                    for (text) |byte| state = try constraint.automaton.step(state, byte);
                    const expected = text.len > 0 and state != automaton_file.dead;
                    try testing.expectEqual(expected, hasBit(bits, @intCast(id)));
                    if (expected) try candidates.append(gpa, @intCast(id));
                }
                try cursor.accept(candidates.items[prng.below(candidates.items.len)]);
            }
            const value = try std.json.parseFromSlice(std.json.Value, gpa, cursor.text.items, .{});
            value.deinit();
        }
    }
    try testing.expect(constraint.epoch > 100);
}

test "stops come only where the text is whole, and a vocabulary that cannot go on is told" {
    const gpa = testing.allocator;
    var diag: base.Diagnostic = .{};
    var vocabulary: Vocabulary = try .init(gpa, &.{ "1", "2", "", "-", "x", "[" });
    defer vocabulary.deinit();
    var constraint: Constraint = try .fromJsonSchema(gpa, "{\"type\":[\"integer\",\"array\"]}", &vocabulary, &diag);
    defer constraint.deinit();
    var cursor: Cursor = try .init(gpa, &constraint);
    defer cursor.deinit();
    try testing.expectEqual(0b101011, (try cursor.allowed(&.{ 2, 4 }))[0]);
    try cursor.accept(0);
    // A stop that is an ordinary token ends the text there, too, and nowhere else.
    try testing.expectEqual(0b010111, (try cursor.allowed(&.{ 2, 4, 1000 }))[0]);
    try testing.expect(!cursor.is_over);
    var other: Cursor = try .init(gpa, &constraint);
    defer other.deinit();
    try other.accept(5);
    try testing.expectEqual(0b101011, (try other.allowed(&.{2}))[0]);
    var lacking: Vocabulary = try .init(gpa, &.{ "a", "b" });
    defer lacking.deinit();
    var hopeless: Constraint = try .fromJsonSchema(gpa, "{}", &lacking, &diag);
    defer hopeless.deinit();
    var stuck: Cursor = try .init(gpa, &hopeless);
    defer stuck.deinit();
    try testing.expectError(error.NoToken, stuck.allowed(&.{0}));
}

test "every allocation failure of a constraint is survived" {
    try testing.checkAllAllocationFailures(testing.allocator, struct {
        fn run(gpa: Allocator) !void {
            var vocabulary: Vocabulary = try .init(gpa, &.{ "[", "]", "true", "," });
            defer vocabulary.deinit();
            var diag: base.Diagnostic = .{};
            var constraint: Constraint = try .fromJsonSchema(gpa, "{\"items\":{\"type\":\"boolean\"}}", &vocabulary, &diag);
            defer constraint.deinit();
            constraint.limit = 0;
            var cursor: Cursor = try .init(gpa, &constraint);
            defer cursor.deinit();
            for ([_]u32{ 0, 2, 3, 2, 1 }) |id| {
                try testing.expect(hasBit(try cursor.allowed(&.{}), id));
                try cursor.accept(id);
            }
            try testing.expect(cursor.is_over);
        }
    }.run, .{});
}
