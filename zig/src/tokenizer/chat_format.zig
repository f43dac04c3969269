//! Chats as token ids: the formats by name, and the way from segments to ids and loss mask.
//!
//! Each format is described once, in chat/formats.zig; the segment list made from it is all that makes ids. Text
//! that stands side by side is encoded in one go, as the reference does with the rendered string, so the ids are those
//! of `apply_chat_template` with the template `writeJinja` writes.
//! Loss: what the assistant itself has to write, its end token included. A token that spans header and body belongs to
//! the body, as in TRL's common-prefix rule.

const std = @import("std");
const base = @import("base");
const bpe = @import("bpe.zig");
const conversation = @import("chat/conversation.zig");
const description_file = @import("chat/description.zig");
const formats = @import("chat/formats.zig");
const go_template = @import("chat/go_template.zig");
const jinja_file = @import("chat/jinja.zig");
const segments_file = @import("chat/segments.zig");
const unicode = @import("unicode.zig");

const Allocator = std.mem.Allocator;
const EncodeScratch = @import("encoding.zig").EncodeScratch;
const Tokenizer = bpe.Tokenizer;

pub const Call = conversation.Call;
pub const Chat = conversation.Chat;
pub const ChatError = conversation.Error;
pub const Description = description_file.Description;
pub const Loss = conversation.Loss;
pub const Message = conversation.Message;
pub const Options = conversation.Options;
pub const Piece = segments_file.Piece;
pub const ReadError = conversation.ReadError;
pub const Reasoning = conversation.Reasoning;
pub const Role = conversation.Role;
pub const Segment = segments_file.Segment;
pub const readChat = conversation.read;
pub const toolsOf = conversation.toolsOf;
pub const today = @import("chat/today.zig").today;

/// The formats of chat/formats.zig by name.
pub const Format = enum {
    abbey,
    chatml,
    harmony,
    llama3,
    llama3_1,
    llama3_2,
    mistral,
    mistral_v3,
    mistral_v3_tekken,
    mistral_v7_tekken,
    qwen,
    qwen2,
    qwen3,
    smollm,

    pub fn description(self: Format) *const Description {
        return switch (self) {
            inline else => |format| &@field(formats, @tagName(format)),
        };
    }

    /// The system prompt used when the chat does not begin with one.
    pub fn defaultSystem(self: Format) ?[]const u8 {
        return self.description().default_system;
    }

    /// Whether a rendered chat begins with the begin token. Exporters write `add_bos_token` from this.
    pub fn beginsWithBos(self: Format) bool {
        return self.description().beginsWithBos();
    }

    /// Text of the token that ends an assistant turn; null = the tokenizer's eos.
    pub fn endText(self: Format) ?[]const u8 {
        return self.description().end;
    }

    /// Texts at which a runner that works on text should stop.
    pub fn stops(self: Format) []const []const u8 {
        return self.description().stops;
    }

    /// The Jinja source written into tokenizers we make; the caller frees it.
    pub fn jinja(self: Format, gpa: Allocator, options: jinja_file.Options) error{OutOfMemory}![]u8 {
        var out: std.Io.Writer.Allocating = .init(gpa);
        errdefer out.deinit();
        jinja_file.write(&out.writer, self.description(), options) catch return error.OutOfMemory;
        return out.toOwnedSlice();
    }

    /// The Go template for Ollama, cut where the end token's text belongs (`go_end_mark`); the caller frees it.
    pub fn goTemplate(self: Format, gpa: Allocator) error{OutOfMemory}![]u8 {
        var out: std.Io.Writer.Allocating = .init(gpa);
        errdefer out.deinit();
        go_template.write(&out.writer, self.description()) catch return error.OutOfMemory;
        return out.toOwnedSlice();
    }
};

pub const go_end_mark = go_template.end_mark;

/// All names, for messages: "abbey, chatml, … and smollm".
pub const names: []const u8 = blk: {
    var text: []const u8 = "";
    const all = @typeInfo(Format).@"enum".field_names;
    for (all, 0..) |name, i| text = text ++ (if (i == 0) "" else if (i + 1 == all.len) " and " else ", ") ++ name;
    break :blk text;
};

/// What is known of a chat template from its text alone.
pub const Detected = struct {
    format: Format,
    /// The format's text is the template's for every chat the format can write. Otherwise it is the nearest one only.
    exact: bool,
    /// Whether that holds for chats with tools too.
    tools: bool = false,
};

/// The format a chat template is of; null for a family we do not know. Exact when the template is one we write or one
/// of the published ones whose text is known; everything else is judged by the texts it cannot do without.
pub fn detect(gpa: Allocator, template: []const u8) error{OutOfMemory}!?Detected {
    const text = std.mem.trim(u8, template, " \t\r\n");
    for (std.enums.values(Format)) |format| for ([_]bool{ false, true }) |mark_trained| {
        const ours = try format.jinja(gpa, .{ .mark_trained = mark_trained });
        defer gpa.free(ours);
        if (std.mem.eql(u8, text, ours)) return .{ .format = format, .exact = true, .tools = format.description().tools };
    };
    if (published(text)) |known| return .{ .format = known.format, .exact = true, .tools = known.tools };
    return if (nearest(text)) |format| .{ .format = format, .exact = false } else null;
}

/// Templates whose rendering was compared with ours (tests/parity/test_chat_formats.py), by the first eight bytes of the SHA-256
/// of their text without white space at its ends.
fn published(template: []const u8) ?Published {
    var digest: [32]u8 = undefined;
    std.crypto.hash.sha2.Sha256.hash(template, &digest, .{});
    const key = std.mem.readInt(u64, digest[0..8], .big);
    for (published_templates) |known| if (known.hash == key) return known;
    return null;
}

const Published = struct { hash: u64, format: Format, tools: bool = true };
const published_templates = [_]Published{
    .{ .hash = 0xa55ee1b1660128b7, .format = .qwen3 }, // Qwen3
    .{ .hash = 0x64f85b198065d0fb, .format = .chatml }, // Qwen3-2507 instruct
    .{ .hash = 0x48e17aa3caf5bf20, .format = .chatml }, // the same with marks of trained text
    .{ .hash = 0xa4c9919cbbd4acdd, .format = .harmony }, // gpt-oss
    .{ .hash = 0x6adda7cea0f63ef1, .format = .harmony }, // the same with marks of trained text
    .{ .hash = 0xba03a121d097859c, .format = .llama3, .tools = false }, // Llama 3
    .{ .hash = 0xbc213ef03ac49e40, .format = .llama3, .tools = false }, // the same with marks of trained text
    .{ .hash = 0x93c0e9aa3629bbd7, .format = .llama3_1 }, // Llama 3.1
    .{ .hash = 0xd82792f95932f1c9, .format = .llama3_2 }, // Llama 3.2
    .{ .hash = 0x55b2f4a26ac9ee71, .format = .qwen }, // Qwen2.5
    .{ .hash = 0xf3714f7117c9d447, .format = .qwen }, // the same with marks of trained text
    .{ .hash = 0xfcf7a096fe99a48f, .format = .chatml, .tools = false }, // one template many models share
    .{ .hash = 0x66edfb854931c933, .format = .chatml, .tools = false }, // the same with other spaces
    .{ .hash = 0xf0206845c9ebc3ab, .format = .qwen2, .tools = false }, // Qwen2
    .{ .hash = 0xde9cde7d1b0ca0cc, .format = .smollm, .tools = false }, // SmolLM2
    .{ .hash = 0xf91864928fccff92, .format = .chatml, .tools = false }, // the same with line ends as signs
};

fn nearest(template: []const u8) ?Format {
    const has = struct {
        fn has(text: []const u8, needle: []const u8) bool {
            return std.mem.find(u8, text, needle) != null;
        }
    }.has;
    if (has(template, "'Abbey:") or has(template, "\"Abbey:")) return .abbey;
    if (has(template, "<|im_start|>")) {
        if (has(template, "<think>") and has(template, "last_query_index")) return .qwen3;
        inline for (.{ Format.qwen, Format.smollm }) |format| if (has(template, format.defaultSystem().?)) return format;
        if (has(template, "<|im_start|>system\\n" ++ formats.qwen2.default_system.?)) return .qwen2;
        return .chatml;
    }
    if (has(template, "<|start_header_id|>") and has(template, "<|end_header_id|>")) {
        if (!has(template, "Cutting Knowledge Date")) return .llama3;
        return if (has(template, "strftime_now")) .llama3_2 else .llama3_1;
    }
    if (has(template, "<|start|>") and has(template, "<|channel|>")) return .harmony;
    if (has(template, "[SYSTEM_PROMPT]")) return .mistral_v7_tekken;
    if (has(template, "[INST]")) return if (has(template, "[AVAILABLE_TOOLS]")) .mistral_v3 else .mistral;
    return null;
}

/// The chat as segments, in order. Texts point into `messages` or belong to `arena`.
pub fn segments(arena: Allocator, format: Format, messages: []const Message, options: Options, diag: *base.Diagnostic) ChatError![]const Segment {
    return segments_file.make(arena, @tagName(format), format.description(), messages, options, diag);
}

pub const Rendered = struct {
    ids: []u32,
    /// Same length: whether the id is a target the loss counts.
    loss_mask: []bool,

    pub fn deinit(self: Rendered, gpa: Allocator) void {
        gpa.free(self.ids);
        gpa.free(self.loss_mask);
    }
};

pub const RenderError = bpe.EncodeError || ChatError || error{
    /// The tokenizer lacks a control token the format is made of.
    MissingControlToken,
};

/// Id that ends an assistant turn of `format` with this tokenizer; null when it has none.
pub fn endId(format: Format, tokenizer: *const Tokenizer) ?u32 {
    return if (format.endText()) |text| tokenizer.specialId(text) else tokenizer.eos();
}

/// Id that stands behind an answer of the past in place of that; null when the format makes no difference.
pub fn pastEndId(format: Format, tokenizer: *const Tokenizer) ?u32 {
    return tokenizer.specialId(format.description().past_end orelse return null);
}

/// Ids and loss mask of a chat; the caller frees both with `deinit`. `diag` says which turn or token is wrong.
pub fn render(gpa: Allocator, tokenizer: *const Tokenizer, format: Format, messages: []const Message, options: Options, diag: *base.Diagnostic) RenderError!Rendered {
    var scratch: EncodeScratch = .init(gpa);
    defer scratch.deinit(gpa);

    return renderWith(gpa, &scratch, tokenizer, format, messages, options, diag);
}

/// The same with a scratch of `gpa` that is kept, for callers with many chats: one for each thread.
pub fn renderWith(gpa: Allocator, scratch: *EncodeScratch, tokenizer: *const Tokenizer, format: Format, messages: []const Message, options: Options, diag: *base.Diagnostic) RenderError!Rendered {
    var arena: std.heap.ArenaAllocator = .init(gpa);
    defer arena.deinit();

    return encodeWith(gpa, scratch, tokenizer, @tagName(format), try segments(arena.allocator(), format, messages, options, diag), diag);
}

/// Ids and loss mask of segments, whoever made them; `format` is named in errors.
pub fn encodeSegments(gpa: Allocator, tokenizer: *const Tokenizer, format: []const u8, list: []const Segment, diag: *base.Diagnostic) RenderError!Rendered {
    var scratch: EncodeScratch = .init(gpa);
    defer scratch.deinit(gpa);

    return encodeWith(gpa, &scratch, tokenizer, format, list, diag);
}

fn encodeWith(gpa: Allocator, scratch: *EncodeScratch, tokenizer: *const Tokenizer, format: []const u8, list: []const Segment, diag: *base.Diagnostic) RenderError!Rendered {
    var out: Renderer = .{ .gpa = gpa, .scratch = scratch, .tokenizer = tokenizer };
    defer out.run.deinit(gpa);
    defer out.spans.deinit(gpa);
    errdefer out.ids.deinit(gpa);
    errdefer out.mask.deinit(gpa);

    for (list) |segment| {
        const id: u32 = switch (segment.piece) {
            .text => |words| {
                try out.text(words, segment.in_loss);
                continue;
            },
            .begin => tokenizer.bos() orelse continue,
            .end => tokenizer.eos() orelse {
                diag.set("the chat format {s} ends turns with the tokenizer's end token, and it has none; name an eos_token", .{format});
                return error.MissingControlToken;
            },
            .control => |control| tokenizer.specialId(control.text) orelse {
                if (!control.required) {
                    try out.text(control.text, segment.in_loss);
                    continue;
                }
                diag.set("the chat format {s} needs the control token {s}, which the tokenizer lacks; choose another format or add the token", .{ format, control.text });
                return error.MissingControlToken;
            },
        };
        try out.control(id, segment.in_loss);
    }
    try out.flush();
    const ids = try out.ids.toOwnedSlice(gpa);
    errdefer gpa.free(ids);
    return .{ .ids = ids, .loss_mask = try out.mask.toOwnedSlice(gpa) };
}

const Renderer = struct {
    gpa: Allocator,
    scratch: *EncodeScratch,
    tokenizer: *const Tokenizer,
    ids: std.ArrayList(u32) = .empty,
    mask: std.ArrayList(bool) = .empty,
    /// Text since the last control token, and the parts of it in the loss.
    run: std.ArrayList(u8) = .empty,
    spans: std.ArrayList(Span) = .empty,
    /// White space that comes next belongs to the token before it.
    strip: bool = false,

    const Span = struct { from: usize, to: usize };

    /// A token that takes in the white space beside it does so here as in a rendered text.
    fn control(self: *Renderer, id: u32, in_loss: bool) !void {
        const token = self.tokenizer.parts.tokens[id];
        if (token.lstrip) self.shorten(unicode.spacesBefore(self.run.items, self.run.items.len));
        try self.flush();
        try self.ids.append(self.gpa, id);
        try self.mask.append(self.gpa, in_loss);
        self.strip = token.rstrip;
    }

    fn shorten(self: *Renderer, len: usize) void {
        self.run.shrinkRetainingCapacity(len);
        for (self.spans.items) |*span| span.* = .{ .from = @min(span.from, len), .to = @min(span.to, len) };
    }

    fn text(self: *Renderer, given: []const u8, in_loss: bool) !void {
        const words = if (self.strip) given[unicode.spacesAfter(given, 0)..] else given;
        if (words.len == 0) return;
        self.strip = false;
        const from = self.run.items.len;
        try self.run.appendSlice(self.gpa, words);
        if (!in_loss) return;
        if (self.spans.items.len > 0) {
            const before = &self.spans.items[self.spans.items.len - 1];
            if (before.to == from) {
                before.to = self.run.items.len;
                return;
            }
        }
        try self.spans.append(self.gpa, .{ .from = from, .to = self.run.items.len });
    }

    fn flush(self: *Renderer) !void {
        if (self.run.items.len == 0) return;
        const ids = try self.encode(self.run.items);
        defer self.gpa.free(ids);

        const mask = try self.mask.addManyAsSlice(self.gpa, ids.len);
        @memset(mask, false);
        for (self.spans.items) |span| {
            const first = (try self.border(ids, span.from)).whole;
            const end = try self.border(ids, span.to);
            @memset(mask[@min(first, end.touched)..end.touched], true);
        }
        try self.ids.appendSlice(self.gpa, ids);
        self.run.clearRetainingCapacity();
        self.spans.clearRetainingCapacity();
    }

    const Border = struct {
        /// Ids that lie whole before the border, and those that begin before it.
        whole: usize,
        touched: usize,
    };

    /// Where byte `at` of the run is among its `ids`, by what they and those of the text before it begin with in common.
    fn border(self: *Renderer, ids: []const u32, at: usize) !Border {
        if (at == 0) return .{ .whole = 0, .touched = 0 };
        if (at == self.run.items.len) return .{ .whole = ids.len, .touched = ids.len };
        const head = try self.encode(self.run.items[0..at]);
        defer self.gpa.free(head);

        var same: usize = 0;
        while (same < head.len and same < ids.len and head[same] == ids[same]) same += 1;
        return .{ .whole = same, .touched = @min(ids.len, if (same < head.len) same + 1 else same) };
    }

    fn encode(self: *Renderer, words: []const u8) ![]u32 {
        var ids: std.ArrayList(u32) = .empty;
        errdefer ids.deinit(self.gpa);

        try self.tokenizer.encodeInto(self.scratch, &ids, self.gpa, words, .{ .add_bos = false, .add_eos = false, .continues = self.ids.items.len > 0 });
        return ids.toOwnedSlice(self.gpa);
    }
};

test {
    _ = conversation;
    _ = description_file;
    _ = formats;
    _ = go_template;
    _ = jinja_file;
    _ = segments_file;
    _ = @import("chat/python_json.zig");
    _ = @import("chat/today.zig");
    _ = @import("chat/typescript.zig");
    _ = @import("chat/chat_test.zig");
}
