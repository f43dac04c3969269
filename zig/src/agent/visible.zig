//! What of a model's output may reach a terminal: text, newlines and tabs. Nothing that moves the cursor.
//!
//! Fed with pieces of any size (a token may hold half a character). Dropped: C0 and C1 controls, DEL, escape
//! sequences (CSI, OSC, DCS and two-byte ones), also when split over pieces, and bidirectional overrides that
//! make text read as something else. Bytes that are not UTF-8 become U+FFFD. Nothing else is changed.

const std = @import("std");

/// Longest string sequence (OSC, DCS…) that is swallowed; after it, text counts as text again.
const max_string_bytes = 4096;

pub const Filter = struct {
    state: State = .text,
    /// The begin of a character whose rest has not come yet.
    pending: [4]u8 = undefined,
    pending_len: u3 = 0,
    string_bytes: usize = 0,

    const State = enum { text, escape, csi, string, string_escape };

    /// Writes the visible part of `bytes` to `out`.
    pub fn write(self: *Filter, out: *std.Io.Writer, bytes: []const u8) std.Io.Writer.Error!void {
        for (bytes) |byte| try self.feed(out, byte);
    }

    /// Call at the end of an answer: half a character becomes U+FFFD.
    pub fn finish(self: *Filter, out: *std.Io.Writer) std.Io.Writer.Error!void {
        if (self.pending_len > 0) try out.writeAll(replacement);
        self.* = .{};
    }

    fn feed(self: *Filter, out: *std.Io.Writer, byte: u8) std.Io.Writer.Error!void {
        if (self.pending_len > 0) {
            if (byte & 0xc0 == 0x80) {
                self.pending[self.pending_len] = byte;
                self.pending_len += 1;
                const want = std.unicode.utf8ByteSequenceLength(self.pending[0]) catch 1;
                if (self.pending_len < want) return;
                const sequence = self.pending[0..self.pending_len];
                self.pending_len = 0;
                const point = std.unicode.utf8Decode(sequence) catch return self.character(out, replacement, 0xfffd);
                return self.character(out, sequence, point);
            }
            self.pending_len = 0;
            try self.character(out, replacement, 0xfffd);
        }
        if (byte < 0x80) return self.character(out, &.{byte}, byte);
        if (byte < 0xc2 or byte > 0xf4) return self.character(out, replacement, 0xfffd);
        self.pending[0] = byte;
        self.pending_len = 1;
    }

    fn character(self: *Filter, out: *std.Io.Writer, text: []const u8, point: u21) std.Io.Writer.Error!void {
        switch (self.state) {
            .text => switch (point) {
                '\n', '\t' => try out.writeAll(text),
                0x1b => self.state = .escape,
                0x9b => self.state = .csi,
                0x90, 0x98, 0x9d, 0x9e, 0x9f => self.begin(.string),
                0...8, 11...26, 28...31, 0x7f, 0x80...0x8f, 0x91...0x97, 0x99, 0x9a, 0x9c => {},
                0x202a...0x202e, 0x2066...0x2069 => {},
                else => try out.writeAll(text),
            },
            .escape => switch (point) {
                '[' => self.state = .csi,
                ']', 'P', 'X', '^', '_' => self.begin(.string),
                0x20...0x2f => {}, // Intermediate bytes: the final one is still to come.
                0x1b => {},
                '\n' => try self.backToText(out, text),
                else => self.state = .text,
            },
            .csi => switch (point) {
                0x20...0x3f => {},
                0x1b => self.state = .escape,
                0x40...0x7e => self.state = .text,
                else => try self.backToText(out, text),
            },
            .string => {
                self.string_bytes += text.len;
                if (point == 0x07 or point == 0x9c or self.string_bytes > max_string_bytes) {
                    self.state = .text;
                } else if (point == 0x1b) self.state = .string_escape;
            },
            .string_escape => self.state = if (point == '\\') .text else .string,
        }
    }

    fn begin(self: *Filter, state: State) void {
        self.state = state;
        self.string_bytes = 0;
    }

    fn backToText(self: *Filter, out: *std.Io.Writer, text: []const u8) std.Io.Writer.Error!void {
        self.state = .text;
        if (text[0] == '\n' or text[0] >= 0x80) try out.writeAll(text);
    }
};

const replacement = "\u{fffd}";

fn expectVisible(expected: []const u8, input: []const u8) !void {
    var whole: std.Io.Writer.Allocating = .init(std.testing.allocator);
    defer whole.deinit();
    var bytewise: std.Io.Writer.Allocating = .init(std.testing.allocator);
    defer bytewise.deinit();

    var filter: Filter = .{};
    try filter.write(&whole.writer, input);
    try filter.finish(&whole.writer);
    for (input) |byte| try filter.write(&bytewise.writer, &.{byte});
    try filter.finish(&bytewise.writer);
    try std.testing.expectEqualStrings(expected, whole.written());
    try std.testing.expectEqualStrings(expected, bytewise.written());
}

test "text passes unchanged" {
    try expectVisible("Grüße,\n\tπ ≈ 3 🙂\n", "Grüße,\n\tπ ≈ 3 🙂\n");
}

test "escape sequences vanish whole, whatever their kind" {
    const cases = [_][2][]const u8{
        .{ "a\x1b[31mred\x1b[0mb", "aredb" },
        .{ "\x1b]0;title\x07x", "x" },
        .{ "\x1b]8;;http://a\x1b\\link\x1b]8;;\x1b\\", "link" },
        .{ "\x1bPq#0\x1b\\x", "x" },
        .{ "\x1bcx\x1b(Bz", "xz" },
        .{ "\u{9b}2Jx", "x" },
        .{ "\u{9d}0;t\u{9c}x", "x" },
        .{ "a\rb\x08c\x07d\x00e\x7ff", "abcdef" },
        .{ "a\u{202e}b\u{2066}c", "abc" },
        .{ "a\x1b[12\u{fc}b", "a\u{fc}b" },
        .{ "\x1b[", "" },
    };
    for (cases) |case| try expectVisible(case[1], case[0]);
}

test "an unfinished string sequence cannot swallow the answer for ever" {
    var input: [max_string_bytes + 40]u8 = @splat('x');
    input[0] = 0x1b;
    input[1] = ']';
    var out: std.Io.Writer.Allocating = .init(std.testing.allocator);
    defer out.deinit();

    var filter: Filter = .{};
    try filter.write(&out.writer, &input);
    try std.testing.expect(out.written().len > 0);
}

test "bytes that are not UTF-8 become one replacement each begin" {
    try expectVisible("a\u{fffd}b", "a\xffb");
    try expectVisible("a\u{fffd}b", "a\xc3b");
    try expectVisible("a\u{fffd}", "a\xe2\x82");
    try expectVisible("\u{fffd}", "\xed\xa0\x80");
}
