//! Whom each piece of an answer in channels is for: the person, those who ask what the model thought, or a tool.
//!
//! harmony's messages are header, `<|message|>`, text. The header names the channel, and the recipient of a call before or behind it:
//! ` to=functions.f<|channel|>commentary json`. A format without channels, and an answer that keeps to none, is for the person.
//! Fed with ids, because only a control token may change the channel. Does not know: what calls mean.

const std = @import("std");
const base = @import("base");
const tokenizer = @import("tokenizer");

/// What the text of an id belongs to.
pub const Part = enum {
    /// A header or a control token: for nobody.
    frame,
    /// `final`, and `commentary` that calls no tool.
    answer,
    /// `analysis`.
    thinking,
    /// The arguments of a call of `recipient`.
    call,
};

pub const Channels = struct {
    ids: ?Ids = null,
    part: Part = .frame,
    header: [header_max]u8 = undefined,
    header_len: usize = 0,
    /// Where in the header the channel's name begins.
    channel_at: ?usize = null,
    /// A channel or a message was opened: this is an answer in channels.
    met: bool = false,

    /// What is longer without a `<|message|>` is no header.
    const header_max = 256;

    const Ids = struct { start: u32, channel: u32, message: u32, end: u32, constrain: ?u32 };

    pub fn init(words: *const tokenizer.Tokenizer, format: tokenizer.ChatFormat) Channels {
        const none: Channels = .{ .part = .answer };
        if (format != .harmony) return none;
        return .{ .ids = .{
            .start = words.specialId("<|start|>") orelse return none,
            .channel = words.specialId("<|channel|>") orelse return none,
            .message = words.specialId("<|message|>") orelse return none,
            .end = words.specialId("<|end|>") orelse return none,
            .constrain = words.specialId("<|constrain|>"),
        } };
    }

    /// What the text of `id`, the next one, belongs to.
    pub fn next(self: *Channels, words: *const tokenizer.Tokenizer, id: u32) Part {
        const ids = self.ids orelse return .answer;
        if (id == ids.start or id == ids.end) {
            self.met = true;
            self.part = .frame;
            self.header_len = 0;
            self.channel_at = null;
            return .frame;
        }
        if (self.part != .frame) return if (id == ids.channel or id == ids.message) .frame else self.part;
        if (id == ids.message) {
            self.met = true;
            self.part = self.opened();
            return .frame;
        }
        if (id == ids.channel) self.met = true;
        const bytes = if (id == ids.channel or id == ids.constrain) " " else words.bytesOf(id);
        if (self.header_len + bytes.len > self.header.len) {
            self.part = .answer; // No header is so long.
            return .answer;
        }
        @memcpy(self.header[self.header_len..][0..bytes.len], bytes);
        self.header_len += bytes.len;
        if (id == ids.channel) self.channel_at = self.header_len;
        return .frame;
    }

    /// What was taken for a header and is none, once: when the text goes on without channels, or is over and never had any. Call it
    /// before the text of the id that `next` spoke of is used.
    pub fn takeText(self: *Channels, is_over: bool) []const u8 {
        if (self.met or self.ids == null or (self.part == .frame and !is_over)) return "";
        self.met = true;
        return self.header[0..self.header_len];
    }

    fn opened(self: *const Channels) Part {
        if (self.recipient().len > 0) return .call;
        return if (std.mem.eql(u8, self.channel(), "analysis")) .thinking else .answer;
    }

    fn channel(self: *const Channels) []const u8 {
        return firstWord(self.header[self.channel_at orelse return "" .. self.header_len]);
    }

    /// Whom the message at hand is sent to, in the words of the model: `functions.f`. "" for nobody.
    pub fn recipient(self: *const Channels) []const u8 {
        const header = self.header[0..self.header_len];
        const at = std.mem.find(u8, header, "to=") orelse return "";
        return firstWord(header[at + 3 ..]);
    }

    fn firstWord(text: []const u8) []const u8 {
        return text[0 .. std.mem.findAny(u8, text, " \t\r\n<") orelse text.len];
    }
};

const testing = std.testing;

/// One token a byte, and harmony's own.
fn harmonyBytes(gpa: std.mem.Allocator) !tokenizer.Tokenizer {
    var arena: std.heap.ArenaAllocator = .init(gpa);
    defer arena.deinit();
    const a = arena.allocator();
    const specials = [_][]const u8{ "<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|constrain|>", "<|return|>", "<|call|>" };
    var tokens: [256 + specials.len][]const u8 = undefined;
    var types: [tokens.len]i32 = @splat(1);
    for (tokens[0..256], 0..) |*token, byte| token.* = try tokenizer.byte_level.toPrintable(a, &.{@intCast(byte)});
    @memcpy(tokens[256..], &specials);
    @memset(types[256..], 3);
    var diag: base.Diagnostic = .{};
    return tokenizer.Tokenizer.fromGguf(gpa, .{ .model = "gpt2", .pre = "gpt-4o", .tokens = &tokens, .token_types = &types, .eos = 261 }, &diag);
}

/// The parts of `text` one behind the other, as `a:…` for an answer, `t:` for thinking, `c(recipient):` for a call.
fn expectParts(wanted: []const u8, text: []const u8) !void {
    const gpa = testing.allocator;
    var words = try harmonyBytes(gpa);
    defer words.deinit();
    const ids = try words.encode(gpa, text, .{ .add_bos = false, .add_eos = false, .parse_special = true });
    defer gpa.free(ids);
    var out: std.ArrayList(u8) = .empty;
    defer out.deinit(gpa);
    var channels: Channels = .init(&words, .harmony);
    var before: Part = .frame;
    for (ids) |id| {
        const part = channels.next(&words, id);
        const late = channels.takeText(false);
        if (late.len > 0) try out.print(gpa, "late:{s}", .{late});
        if (part != before) switch (part) {
            .frame => {},
            .answer => try out.appendSlice(gpa, "|a:"),
            .thinking => try out.appendSlice(gpa, "|t:"),
            .call => try out.print(gpa, "|c({s}):", .{channels.recipient()}),
        };
        before = part;
        if (part != .frame) try out.appendSlice(gpa, words.bytesOf(id));
    }
    try out.print(gpa, "{s}", .{channels.takeText(true)});
    try testing.expectEqualStrings(wanted, out.items);
}

test "channels, recipients before and behind them, and answers that keep to no channel" {
    const cases = [_][2][]const u8{
        .{ "<|channel|>final<|message|>Hi.", "|a:Hi." },
        .{ "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>final<|message|>Hi.", "|t:Hm|a:Hi." },
        .{ "<|channel|>commentary<|message|>First,<|end|><|start|>assistant<|channel|>commentary to=functions.f json<|message|>{}", "|a:First,|c(functions.f):{}" },
        .{ " to=functions.get_it<|channel|>commentary json<|message|>{\"a\": 1}", "|c(functions.get_it):{\"a\": 1}" },
        .{ "<|channel|>analysis to=python code<|message|>1+1", "|c(python):1+1" },
        .{ "<|message|>No channel.", "|a:No channel." },
        .{ "<|channel|>novel<|message|>Hi.", "|a:Hi." },
        .{ "Just text.", "Just text." },
        .{ "<|channel|>final", "" },
        .{ "<|channel|>final<|message|>a<|end|><|start|>assistant", "|a:a" },
        .{ long, "late:" ++ long[0..256] ++ "|a:" ++ long[256..] },
    };
    for (cases) |case| try expectParts(case[1], case[0]);
}

const long: *const [300]u8 = &@as([300]u8, @splat('z'));
