//! One line of JSON as a tape of values, in linear time, checked in full.
//!
//! Strings without escapes are slices of the text they were read from; others are written out into the parser's own buffer.
//! Both live until the next `parse`. A value is one node; behind a container's node stand its members, and `end` says
//! where they stop, so any value is stepped over at once. In an object keys and values alternate.
//! Refused, each by its own name and with the column: what JSON does not allow, a key given twice, half a surrogate pair,
//! U+0000, bytes that are no UTF-8, and what is deeper, longer or of more values than the limits say.
//! Does not know: files, lines, columns of a row.

const std = @import("std");
const utf8 = @import("utf8.zig");
const Allocator = std.mem.Allocator;

pub const Kind = enum(u8) { null, true, false, number, string, array, object };

pub const Node = struct {
    /// Text of a string or key without quotes and escapes; a number, list or object as it was written.
    text_start: [*]const u8,
    text_len: u32,
    /// Index of the node behind this value and all it holds.
    end: u32,
    /// Where the value begins in the line.
    at: u32,
    kind: Kind,

    pub fn text(self: *const Node) []const u8 {
        return self.text_start[0..self.text_len];
    }
};

/// Why a line is not one JSON value.
pub const Defect = enum {
    cut_off,
    unexpected,
    trailing,
    bad_escape,
    bad_number,
    control_character,
    nul_character,
    invalid_utf8,
    lone_surrogate,
    duplicate_key,
    too_deep,
    too_long,
    too_many_values,

    /// What is wrong, to stand behind "line 3, column 7: ".
    pub fn words(self: Defect) []const u8 {
        return switch (self) {
            .cut_off => "not valid JSON (the line ends too early)",
            .unexpected => "not valid JSON (unexpected character)",
            .trailing => "not valid JSON (something stands behind the value)",
            .bad_escape => "not valid JSON (unknown escape in a text)",
            .bad_number => "not valid JSON (a number JSON does not know)",
            .control_character => "not valid JSON (a control character in a text; write it as an escape)",
            .nul_character => "a text holds a NUL character",
            .invalid_utf8 => "not UTF-8",
            .lone_surrogate => "a text holds half of a surrogate pair",
            .duplicate_key => "not valid JSON (a key is given twice)",
            .too_deep => "nested too deeply",
            .too_long => "the line is too long",
            .too_many_values => "the line holds too many values",
        };
    }
};

pub const Limits = struct {
    /// Containers inside each other.
    max_depth: u16 = most_depth,
    max_bytes: u32 = 64 << 20,
    max_values: u32 = 4 << 20,

    pub const most_depth = 128;
};

pub const Error = error{ OutOfMemory, Defective };

/// A value on the tape.
pub const Value = struct {
    nodes: []const Node,
    index: u32,

    pub fn node(self: Value) *const Node {
        return &self.nodes[self.index];
    }

    pub fn kind(self: Value) Kind {
        return self.node().kind;
    }

    /// Text of a string; null for every other kind.
    pub fn string(self: Value) ?[]const u8 {
        return if (self.kind() == .string) self.node().text() else null;
    }

    /// Member of an object; null when it has none of this name, or is no object.
    pub fn get(self: Value, name: []const u8) ?Value {
        if (self.kind() != .object) return null;
        var it = self.members();
        while (it.next()) |member| if (std.mem.eql(u8, member.name, name)) return member.value;
        return null;
    }

    pub const Member = struct { name: []const u8, value: Value };

    pub const Members = struct {
        nodes: []const Node,
        at: u32,
        end: u32,

        pub fn next(self: *Members) ?Member {
            if (self.at == self.end) return null;
            const key = &self.nodes[self.at];
            const value: Value = .{ .nodes = self.nodes, .index = self.at + 1 };
            self.at = self.nodes[self.at + 1].end;
            return .{ .name = key.text(), .value = value };
        }
    };

    pub fn members(self: Value) Members {
        std.debug.assert(self.kind() == .object);
        return .{ .nodes = self.nodes, .at = self.index + 1, .end = self.node().end };
    }

    pub const Items = struct {
        nodes: []const Node,
        at: u32,
        end: u32,

        pub fn next(self: *Items) ?Value {
            if (self.at == self.end) return null;
            const value: Value = .{ .nodes = self.nodes, .index = self.at };
            self.at = self.nodes[self.at].end;
            return value;
        }
    };

    pub fn items(self: Value) Items {
        std.debug.assert(self.kind() == .array);
        return .{ .nodes = self.nodes, .at = self.index + 1, .end = self.node().end };
    }
};

/// Room behind what is written, so that whole vectors can be stored.
const slack = 16;

/// Of a text: the bytes at which a string may end or need care, one bit each, and whether the whole is UTF-8.
/// Made once for many lines. Behind the text all bits are set, so that a search always ends.
pub const Index = struct {
    bits: std.ArrayList(u64) = .empty,
    valid_utf8: bool = true,

    const block_bytes = 64;
    const Lanes = @Vector(16, u8);

    pub fn deinit(self: *Index, gpa: Allocator) void {
        self.bits.deinit(gpa);
    }

    pub fn build(self: *Index, gpa: Allocator, text: []const u8) error{OutOfMemory}!void {
        const whole = text.len / block_bytes;
        try self.bits.resize(gpa, whole + 1);
        var checker: utf8.Checker = .{};
        var valid = true;
        for (self.bits.items[0..whole], 0..) |*word, i| {
            const block = text[i * block_bytes ..][0..block_bytes];
            word.* = special(block);
            valid = checker.feed(block) and valid;
        }
        var last: [block_bytes]u8 = @splat(0);
        const rest = text[whole * block_bytes ..];
        @memcpy(last[0..rest.len], rest);
        self.bits.items[whole] = special(&last); // The padding is of control characters.
        valid = checker.feed(&last) and valid;
        self.valid_utf8 = valid and checker.complete();
    }

    fn special(block: *const [block_bytes]u8) u64 {
        var word: u64 = 0;
        inline for (0..block_bytes / 16) |i| {
            const lanes: Lanes = block[16 * i ..][0..16].*;
            const all: Lanes = @splat(0xff);
            const none: Lanes = @splat(0);
            const found = @select(u8, lanes == @as(Lanes, @splat('"')), all, none) |
                @select(u8, lanes == @as(Lanes, @splat('\\')), all, none) |
                @select(u8, lanes < @as(Lanes, @splat(0x20)), all, none);
            const bits: u16 = @bitCast(found != none);
            word |= @as(u64, bits) << (16 * i);
        }
        return word;
    }

    /// The first marked byte from `from` on, which is in the text or its end.
    inline fn next(self: *const Index, from: usize) usize {
        const words = self.bits.items.ptr;
        var at = from / block_bytes;
        const here = words[at] >> @intCast(from % block_bytes);
        if (here != 0) return from + @ctz(here);
        at += 1;
        while (words[at] == 0) at += 1;
        return at * block_bytes + @ctz(words[at]);
    }
};

pub const Parser = struct {
    gpa: Allocator,
    limits: Limits = .{},
    /// Of the last line: what was wrong, and at which byte of the line (from 0).
    defect: Defect = .unexpected,
    defect_at: usize = 0,
    nodes: std.ArrayList(Node) = .empty,
    written: []u8 = &.{},
    keys: std.ArrayList(u32) = .empty,
    index: Index = .{},
    // The line being read: `text[start..end]`.
    text: []const u8 = "",
    start: usize = 0,
    end: usize = 0,
    written_len: usize = 0,

    pub fn init(gpa: Allocator, limits: Limits) Parser {
        std.debug.assert(limits.max_depth <= Limits.most_depth);
        return .{ .gpa = gpa, .limits = limits };
    }

    pub fn deinit(self: *Parser) void {
        self.nodes.deinit(self.gpa);
        self.keys.deinit(self.gpa);
        self.index.deinit(self.gpa);
        self.gpa.free(self.written);
    }

    /// Begins a text of many lines, which stays where it is until the last of them is read.
    pub fn load(self: *Parser, text: []const u8) error{OutOfMemory}!void {
        self.text = text;
        try self.index.build(self.gpa, text);
    }

    /// The value of the line `text[start..end]` of the loaded text; at `end` a newline stands, or the text ends.
    /// On `Defective` see `defect` and `defect_at`.
    pub fn parse(self: *Parser, start: usize, end: usize) Error!Value {
        std.debug.assert(end == self.text.len or self.text[end] == '\n');
        self.nodes.clearRetainingCapacity();
        self.written_len = 0;
        self.start = start;
        self.end = end;
        if (end - start > self.limits.max_bytes) return self.fail(.too_long, start);
        if (!self.index.valid_utf8) if (utf8.firstDefect(self.text[start..end])) |at| return self.fail(.invalid_utf8, start + at);
        try self.run();
        return .{ .nodes = self.nodes.items, .index = 0 };
    }

    /// The value of a text that is one line.
    pub fn parseSlice(self: *Parser, line: []const u8) Error!Value {
        try self.load(line);
        return self.parse(0, line.len);
    }

    fn fail(self: *Parser, defect: Defect, at: usize) error{Defective} {
        @branchHint(.cold);
        self.defect = defect;
        self.defect_at = at - self.start;
        return error.Defective;
    }

    const State = enum { value, key, after };

    fn run(self: *Parser) Error!void {
        var open: [Limits.most_depth]u32 = undefined;
        var depth: usize = 0;
        var at = self.space(self.start);
        state: switch (State.value) {
            .value => {
                if (at == self.end) return self.fail(.cut_off, at);
                switch (self.text[at]) {
                    '"' => at = try self.string(at),
                    '{', '[' => |bracket| {
                        if (depth == self.limits.max_depth) return self.fail(.too_deep, at);
                        open[depth] = @intCast(self.nodes.items.len);
                        depth += 1;
                        try self.add(.{ .text_start = self.text.ptr + at, .text_len = 0, .end = 0, .at = @intCast(at - self.start), .kind = if (bracket == '{') .object else .array });
                        at = self.space(at + 1);
                        if (at == self.end) return self.fail(.cut_off, at);
                        if (self.text[at] == bracket + 2) continue :state .after; // { and }, [ and ] are two apart.
                        if (bracket == '{') continue :state .key;
                        continue :state .value;
                    },
                    '-', '0'...'9' => at = try self.number(at),
                    't' => at = try self.word(at, "true", .true),
                    'f' => at = try self.word(at, "false", .false),
                    'n' => at = try self.word(at, "null", .null),
                    0 => return self.fail(.nul_character, at),
                    else => return self.fail(.unexpected, at),
                }
                at = self.space(at);
                if (depth == 0) break :state;
                continue :state .after;
            },
            .key => {
                if (at == self.end) return self.fail(.cut_off, at);
                if (self.text[at] != '"') return self.fail(.unexpected, at);
                at = self.space(try self.string(at));
                if (at == self.end) return self.fail(.cut_off, at);
                if (self.text[at] != ':') return self.fail(.unexpected, at);
                at = self.space(at + 1);
                continue :state .value;
            },
            // Behind a member of the innermost container, or at the end of an empty one.
            .after => {
                if (at == self.end) return self.fail(.cut_off, at);
                const container = &self.nodes.items[open[depth - 1]];
                const byte = self.text[at];
                container.text_len = @intCast(at + 1 - self.start - container.at);
                at = self.space(at + 1);
                if (byte == ',') {
                    if (container.kind == .object) continue :state .key;
                    continue :state .value;
                }
                const closing: u8 = if (container.kind == .object) '}' else ']';
                if (byte != closing) return self.fail(.unexpected, self.behindSpace(at));
                container.end = @intCast(self.nodes.items.len);
                if (container.kind == .object) try self.checkKeys(open[depth - 1]);
                depth -= 1;
                if (depth == 0) break :state;
                continue :state .after;
            },
        }
        if (at != self.end) return self.fail(.trailing, at);
    }

    /// Where the last byte before `at` stands that is no space; for columns of messages.
    fn behindSpace(self: *const Parser, at: usize) usize {
        var back = at;
        while (back > self.start and isSpace(self.text[back - 1])) back -= 1;
        return back -| 1;
    }

    inline fn add(self: *Parser, node: Node) Error!void {
        if (self.nodes.items.len == self.nodes.capacity) try self.makeRoom(node.at);
        self.nodes.appendAssumeCapacity(node);
    }

    fn makeRoom(self: *Parser, at: u32) Error!void {
        @branchHint(.cold);
        if (self.nodes.capacity >= self.limits.max_values) return self.fail(.too_many_values, self.start + at);
        // Never more than the limit, so that a full list is all that has to be looked for.
        const wanted = @min(@max(64, self.nodes.capacity * 2), self.limits.max_values);
        try self.nodes.ensureTotalCapacityPrecise(self.gpa, wanted);
    }

    inline fn space(self: *const Parser, from: usize) usize {
        var at = from;
        while (at < self.end and isSpace(self.text[at])) at += 1;
        return at;
    }

    fn word(self: *Parser, at: usize, comptime name: []const u8, kind: Kind) Error!usize {
        const rest = self.text[at..self.end];
        if (!std.mem.startsWith(u8, rest, name)) {
            for (rest[0..@min(rest.len, name.len)], 0..) |byte, i| if (byte != name[i]) return self.fail(.unexpected, at + i);
            return self.fail(.cut_off, self.end);
        }
        try self.add(.{ .text_start = "", .text_len = 0, .end = @intCast(self.nodes.items.len + 1), .at = @intCast(at - self.start), .kind = kind });
        return at + name.len;
    }

    fn number(self: *Parser, begin: usize) Error!usize {
        var at = begin;
        if (self.text[at] == '-') at += 1;
        const whole = self.digits(at);
        if (whole == at) return self.fail(if (at == self.end) .cut_off else .bad_number, at);
        if (self.text[at] == '0' and whole > at + 1) return self.fail(.bad_number, at);
        at = whole;
        if (at < self.end and self.text[at] == '.') {
            const part = self.digits(at + 1);
            if (part == at + 1) return self.fail(if (part == self.end) .cut_off else .bad_number, part);
            at = part;
        }
        if (at < self.end and (self.text[at] | 0x20) == 'e') {
            at += 1;
            if (at < self.end and (self.text[at] == '+' or self.text[at] == '-')) at += 1;
            const part = self.digits(at);
            if (part == at) return self.fail(if (part == self.end) .cut_off else .bad_number, part);
            at = part;
        }
        try self.add(.{ .text_start = self.text.ptr + begin, .text_len = @intCast(at - begin), .end = @intCast(self.nodes.items.len + 1), .at = @intCast(begin - self.start), .kind = .number });
        return at;
    }

    fn digits(self: *const Parser, from: usize) usize {
        var at = from;
        while (at < self.end and std.ascii.isDigit(self.text[at])) at += 1;
        return at;
    }

    /// Reads the string or key whose quote stands at `quote`; returns where the text behind it goes on.
    inline fn string(self: *Parser, quote: usize) Error!usize {
        const begin = quote + 1;
        const at = self.index.next(begin);
        // The newline behind the line is marked, so the search stops there; nothing behind it is looked at.
        if (at < self.end and self.text[at] == '"') {
            try self.add(.{ .text_start = self.text.ptr + begin, .text_len = @intCast(at - begin), .end = @intCast(self.nodes.items.len + 1), .at = @intCast(quote - self.start), .kind = .string });
            return at + 1;
        }
        return self.escaped(quote, @min(at, self.end));
    }

    noinline fn escaped(self: *Parser, quote: usize, first_special: usize) Error!usize {
        // A text is never longer without its escapes, and the line holds all texts.
        if (self.written.len < self.end - self.start + slack) {
            // Nothing of this line stands here yet, or the buffer would have been long enough.
            const grown = try self.gpa.alloc(u8, std.math.ceilPowerOfTwo(usize, self.end - self.start + slack) catch return error.OutOfMemory);
            self.gpa.free(self.written);
            self.written = grown;
        }
        const text = self.text;
        const end = self.end;
        const begin = self.written_len;
        var out = begin;
        var from = quote + 1;
        var at = first_special;
        const index = self.index;
        const written = self.written;
        while (true) {
            copy(written, text, out, from, at);
            out += at - from;
            if (at == end) return self.fail(.cut_off, at);
            switch (text[at]) {
                '"' => break,
                '\\' => {},
                0 => return self.fail(.nul_character, at),
                else => return self.fail(.control_character, at),
            }
            if (at + 1 == end) return self.fail(.cut_off, at + 1);
            const byte: u8 = switch (text[at + 1]) {
                '"', '\\', '/' => |same| same,
                'b' => 8,
                'f' => 12,
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'u' => 0,
                else => return self.fail(.bad_escape, at + 1),
            };
            if (byte != 0) {
                written[out] = byte;
                out += 1;
                from = at + 2;
            } else from = try self.unicode(at, &out);
            at = @min(index.next(from), end);
        }
        self.written_len = out;
        try self.add(.{ .text_start = self.written.ptr + begin, .text_len = @intCast(out - begin), .end = @intCast(self.nodes.items.len + 1), .at = @intCast(quote - self.start), .kind = .string });
        return at + 1;
    }

    /// `text[from..to]` to `written[out..]`; the bytes behind may be overwritten, too: nothing stands there yet.
    inline fn copy(written: []u8, text: []const u8, out: usize, from: usize, to: usize) void {
        if (to + slack > text.len) return @memcpy(written[out..][0 .. to - from], text[from..to]);
        var at = from;
        while (at < to) : (at += slack) written[out + at - from ..][0..slack].* = text[at..][0..slack].*;
    }

    /// `\uXXXX`, or two of them for one character; `at` is the backslash. Returns where the text goes on.
    fn unicode(self: *Parser, at: usize, out: *usize) Error!usize {
        const first = try self.hex(at + 2);
        var behind = at + 6;
        var code: u21 = first;
        if (first == 0) return self.fail(.nul_character, at);
        if (first >= 0xdc00 and first <= 0xdfff) return self.fail(.lone_surrogate, at);
        if (first >= 0xd800 and first <= 0xdbff) {
            const rest = self.text[behind..self.end];
            // A line that ends here is cut; anything but an escape of the other half is a lone one.
            if (rest.len == 0 or (rest.len == 1 and rest[0] == '\\')) return self.fail(.cut_off, self.end);
            if (rest[0] != '\\' or rest[1] != 'u') return self.fail(.lone_surrogate, at);
            const second = try self.hex(behind + 2);
            if (second < 0xdc00 or second > 0xdfff) return self.fail(.lone_surrogate, at);
            code = 0x10000 + ((@as(u21, first) - 0xd800) << 10) + (second - 0xdc00);
            behind += 6;
        }
        const room = self.written[out.*..];
        if (code < 0x80) {
            room[0] = @intCast(code);
            out.* += 1;
        } else if (code < 0x800) {
            room[0] = @intCast(0xc0 | (code >> 6));
            room[1] = @intCast(0x80 | (code & 0x3f));
            out.* += 2;
        } else if (code < 0x10000) {
            room[0] = @intCast(0xe0 | (code >> 12));
            room[1] = @intCast(0x80 | ((code >> 6) & 0x3f));
            room[2] = @intCast(0x80 | (code & 0x3f));
            out.* += 3;
        } else {
            room[0] = @intCast(0xf0 | (code >> 18));
            room[1] = @intCast(0x80 | ((code >> 12) & 0x3f));
            room[2] = @intCast(0x80 | ((code >> 6) & 0x3f));
            room[3] = @intCast(0x80 | (code & 0x3f));
            out.* += 4;
        }
        return behind;
    }

    fn hex(self: *Parser, at: usize) Error!u16 {
        var code: u16 = 0;
        for (0..4) |i| {
            if (at + i >= self.end) return self.fail(.cut_off, self.end);
            const digit: u16 = switch (self.text[at + i]) {
                '0'...'9' => |c| c - '0',
                'a'...'f' => |c| c - 'a' + 10,
                'A'...'F' => |c| c - 'A' + 10,
                else => return self.fail(.bad_escape, at + i),
            };
            code = code << 4 | digit;
        }
        return code;
    }

    /// Few keys are compared each with each, many are sorted: never more than n log n.
    fn checkKeys(self: *Parser, object: u32) Error!void {
        const nodes = self.nodes.items;
        const last = nodes[object].end;
        const few = 12;
        var kept: [few]u32 = undefined;
        var count: usize = 0;
        var key = object + 1;
        while (key < last) : (key = nodes[key + 1].end) {
            if (count == few) return self.checkManyKeys(object);
            for (kept[0..count]) |other| if (sameKey(nodes, key, other)) return self.fail(.duplicate_key, self.start + nodes[key].at);
            kept[count] = key;
            count += 1;
        }
    }

    fn checkManyKeys(self: *Parser, object: u32) Error!void {
        @branchHint(.cold);
        const nodes = self.nodes.items;
        self.keys.clearRetainingCapacity();
        var key = object + 1;
        while (key < nodes[object].end) : (key = nodes[key + 1].end) try self.keys.append(self.gpa, key);
        std.mem.sort(u32, self.keys.items, nodes, struct {
            fn lessThan(all: []const Node, a: u32, b: u32) bool {
                return switch (std.mem.order(u8, all[a].text(), all[b].text())) {
                    .lt => true,
                    .gt => false,
                    .eq => a < b,
                };
            }
        }.lessThan);
        // Of several the first in the line is named.
        var found: ?u32 = null;
        for (self.keys.items[1..], self.keys.items[0 .. self.keys.items.len - 1]) |b, a|
            if (sameKey(nodes, a, b) and (found == null or b < found.?)) {
                found = b;
            };
        if (found) |index| return self.fail(.duplicate_key, self.start + nodes[index].at);
    }

    inline fn sameKey(nodes: []const Node, a: u32, b: u32) bool {
        return nodes[a].text_len == nodes[b].text_len and std.mem.eql(u8, nodes[a].text(), nodes[b].text());
    }
};

inline fn isSpace(byte: u8) bool {
    return byte == ' ' or byte == '\t' or byte == '\r';
}

test {
    _ = @import("json_line_test.zig");
}
