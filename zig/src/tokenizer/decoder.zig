//! Token ids to text one at a time, for output that is shown while it is made.
//!
//! What it appends is always valid UTF-8: an incomplete sequence waits for its rest, an invalid one becomes U+FFFD.
//! Does not know: where ids come from, when to stop.

const std = @import("std");
const bpe = @import("bpe.zig");

const Allocator = std.mem.Allocator;

/// Decodes a stream of ids to valid UTF-8: an incomplete sequence waits for its rest, an invalid one becomes U+FFFD.
pub const Decoder = struct {
    tokenizer: *const bpe.Tokenizer,
    options: bpe.DecodeOptions,
    drop_space: bool,
    pending: [4]u8 = undefined,
    pending_len: usize = 0,

    const replacement = "\u{FFFD}";

    /// Appends to `out` the text that is complete after `id`.
    pub fn push(self: *Decoder, gpa: Allocator, out: *std.ArrayList(u8), id: u32) error{OutOfMemory}!void {
        if (self.options.skip_special and self.tokenizer.isSkipped(id)) return;
        for (self.tokenizer.bytesOf(id)) |byte| {
            if (self.drop_space) {
                self.drop_space = false;
                if (byte == ' ') continue;
            }
            try self.pushByte(gpa, out, byte);
        }
    }

    /// Appends a U+FFFD if a sequence was cut short; call once, at the end.
    pub fn finish(self: *Decoder, gpa: Allocator, out: *std.ArrayList(u8)) error{OutOfMemory}!void {
        if (self.pending_len == 0) return;
        self.pending_len = 0;
        try out.appendSlice(gpa, replacement);
    }

    fn pushByte(self: *Decoder, gpa: Allocator, out: *std.ArrayList(u8), byte: u8) !void {
        if (self.pending_len > 0 and !continues(self.pending[0..self.pending_len], byte)) {
            self.pending_len = 0;
            try out.appendSlice(gpa, replacement);
        }
        if (self.pending_len == 0) switch (byte) {
            0x00...0x7F => return out.append(gpa, byte),
            0xC2...0xF4 => {},
            else => return out.appendSlice(gpa, replacement),
        };
        self.pending[self.pending_len] = byte;
        self.pending_len += 1;
        const need: usize = if (self.pending[0] < 0xE0) 2 else if (self.pending[0] < 0xF0) 3 else 4;
        if (self.pending_len < need) return;
        self.pending_len = 0;
        try out.appendSlice(gpa, self.pending[0..need]);
    }

    /// Whether `byte` may follow the valid beginning `head` of a sequence.
    fn continues(head: []const u8, byte: u8) bool {
        if (head.len > 1) return byte >= 0x80 and byte <= 0xBF;
        return switch (head[0]) {
            0xE0 => byte >= 0xA0 and byte <= 0xBF,
            0xED => byte >= 0x80 and byte <= 0x9F,
            0xF0 => byte >= 0x90 and byte <= 0xBF,
            0xF4 => byte >= 0x80 and byte <= 0x8F,
            else => byte >= 0x80 and byte <= 0xBF,
        };
    }
};

const fixture = @import("fixture.zig");

test "a stream waits for whole characters and marks broken ones" {
    const gpa = std.testing.allocator;
    var tokenizer = try fixture.make(gpa, "gpt-2");
    defer tokenizer.deinit();

    var out: std.ArrayList(u8) = .empty;
    defer out.deinit(gpa);

    var stream = tokenizer.decoder(.{});
    const text = "a\u{e9}\u{4e2d}\u{1f600}\xff\xe4\xb8b\xf0\x9f\x98";
    const ids = try tokenizer.encode(gpa, text, .{});
    defer gpa.free(ids);

    for (ids) |id| {
        try stream.push(gpa, &out, id);
        try std.testing.expect(std.unicode.utf8ValidateSlice(out.items));
    }
    try stream.push(gpa, &out, tokenizer.eos().?);
    try stream.finish(gpa, &out);
    try std.testing.expectEqualStrings("a\u{e9}\u{4e2d}\u{1f600}\u{fffd}\u{fffd}b\u{fffd}", out.items);
}
