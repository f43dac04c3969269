//! What of an answer in channels is for the person: the text of `final`, and of `commentary` that calls no tool.
//!
//! A format without channels shows everything. Fed with ids, because only a control token may change the channel.

const std = @import("std");
const tokenizer = @import("tokenizer");

pub const Channels = struct {
    ids: ?Ids = null,
    state: enum { header, shown, hidden } = .header,
    header: [64]u8 = undefined,
    header_len: usize = 0,

    const Ids = struct { start: u32, channel: u32, message: u32, end: u32 };

    pub fn init(words: *const tokenizer.Tokenizer, format: tokenizer.ChatFormat) Channels {
        if (format != .harmony) return .{};
        return .{ .ids = .{
            .start = words.specialId("<|start|>") orelse return .{},
            .channel = words.specialId("<|channel|>") orelse return .{},
            .message = words.specialId("<|message|>") orelse return .{},
            .end = words.specialId("<|end|>") orelse return .{},
        } };
    }

    /// Whether the text of `id` is for the person.
    pub fn shows(self: *Channels, words: *const tokenizer.Tokenizer, id: u32) bool {
        const ids = self.ids orelse return true;
        if (id == ids.message) {
            const name = self.header[0..self.header_len];
            const call = std.mem.find(u8, name, "to=") != null;
            self.state = if (std.mem.find(u8, name, "final") != null or (std.mem.find(u8, name, "commentary") != null and !call)) .shown else .hidden;
            return false;
        }
        if (id == ids.start or id == ids.end) {
            self.state = .header;
            self.header_len = 0;
            return false;
        }
        if (self.state == .header) {
            const bytes = words.bytesOf(id);
            const room = @min(bytes.len, self.header.len - self.header_len);
            @memcpy(self.header[self.header_len..][0..room], bytes[0..room]);
            self.header_len += room;
            return false;
        }
        return self.state == .shown and id != ids.channel;
    }
};
