//! Chats to segments, ids and loss mask; chat formats as data.

const std = @import("std");
const abi = @import("abi");
const c = @import("abi_h");
const failure = @import("failure.zig");
const handles = @import("handles.zig");
const out = @import("out.zig");
const Tokenizer = @import("tokenizer.zig").Tokenizer;

const Status = failure.Status;
const chat_format = abi.tokenizer.chat_format;
const Segment = chat_format.Segment;

/// What both calls that render have to read first.
const Request = struct {
    arena: std.heap.ArenaAllocator,
    chat: chat_format.Chat = .{ .messages = &.{} },
    options: chat_format.Options = .{},
    day: [10]u8 = undefined,

    /// On failure the status says why; `deinit` is due in any case.
    fn read(self: *Request, messages_json: ?[*:0]const u8, options: ?*const c.abt_chat_options) Status {
        var status: Status = c.ABT_STATUS_OK;
        const json = out.string(messages_json, "messages_json", &status) orelse return status;
        self.options.date = chat_format.today(&self.day);
        if (options) |o| {
            if (out.wrongSize(c.abt_chat_options, o.struct_size)) |wrong| return wrong;
            self.options.add_generation_prompt = o.add_generation_prompt != 0;
            self.options.train = o.train != 0;
            self.options.learn_from = o.learn_from;
            self.options.loss = switch (o.loss) {
                c.ABT_CHAT_LOSS_ASSISTANT => .assistant,
                c.ABT_CHAT_LOSS_COMPLETION => .completion,
                c.ABT_CHAT_LOSS_EVERYTHING => .everything,
                else => return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "loss is {d}; it must be one of ABT_CHAT_LOSS_…", .{o.loss}),
            };
            if (out.optionalString(o.date)) |date| self.options.date = date;
            self.options.reasoning = switch (o.reasoning) {
                c.ABT_REASONING_MEDIUM => .medium,
                c.ABT_REASONING_LOW => .low,
                c.ABT_REASONING_HIGH => .high,
                else => return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "reasoning is {d}; it must be one of ABT_REASONING_…", .{o.reasoning}),
            };
        }
        var diag: failure.Diagnostic = .{};
        self.chat = chat_format.readChat(self.arena.allocator(), json, &diag) catch |err| return failure.from(err, c.ABT_STATUS_DATA, &diag);
        self.options.tools = self.chat.tools;
        return c.ABT_STATUS_OK;
    }
};

pub fn abt_tokenizer_render_chat(
    tokenizer: u64,
    messages_json: ?[*:0]const u8,
    format: ?[*:0]const u8,
    options: ?*const c.abt_chat_options,
    ids: ?[*]u32,
    loss_mask: ?[*]u8,
    capacity: usize,
    needed: ?*usize,
) callconv(.c) Status {
    const size = needed orelse return failure.nullArgument("needed");
    size.* = 0;
    var request: Request = .{ .arena = .init(out.gpa) };
    defer request.arena.deinit();

    const read = request.read(messages_json, options);
    if (read != c.ABT_STATUS_OK) return read;
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Tokenizer, tokenizer, .shared, &status) orelse return status;
    defer held.release();

    const words = &held.object.value.tokenizer;
    const chosen = choose(words, format, request.chat.tools.len > 0, &status) orelse return status;
    var diag: failure.Diagnostic = .{};
    const rendered = abi.tokenizer.render(out.gpa, words, chosen, request.chat.messages, request.options, &diag) catch |err|
        return failure.from(err, c.ABT_STATUS_DATA, &diag);
    defer rendered.deinit(out.gpa);

    return give(rendered, ids, loss_mask, capacity, needed);
}

fn give(rendered: abi.tokenizer.Rendered, ids: ?[*]u32, loss_mask: ?[*]u8, capacity: usize, needed: ?*usize) Status {
    const filled = out.fillItems(u32, rendered.ids, ids, capacity, needed);
    if (filled != c.ABT_STATUS_OK) return filled;
    if (loss_mask) |mask| for (mask[0..rendered.loss_mask.len], rendered.loss_mask) |*byte, flag| {
        byte.* = @intFromBool(flag);
    };
    return c.ABT_STATUS_OK;
}

fn choose(words: *const abi.tokenizer.Tokenizer, format: ?[*:0]const u8, tools: bool, status: *Status) ?chat_format.Format {
    if (format != null) return named(format, status);
    const template = words.chatTemplate() orelse {
        status.* = failure.say(c.ABT_STATUS_DATA, "the tokenizer has no chat template; name a chat format", .{});
        return null;
    };
    const found = chat_format.detect(out.gpa, template) catch |err| {
        status.* = failure.from(err, c.ABT_STATUS_DATA, null);
        return null;
    } orelse {
        status.* = failure.say(c.ABT_STATUS_UNSUPPORTED, "the tokenizer's chat template is of a family not known here; render it with from-tokenizer, or name a chat format", .{});
        return null;
    };
    if (found.exact and tools and !found.tools) {
        status.* = failure.say(c.ABT_STATUS_DATA, "the chat offers tools, and the tokenizer's chat template, which is {t}, does not show them; name a format with tools", .{found.format});
        return null;
    }
    if (found.exact) return found.format;
    status.* = failure.say(c.ABT_STATUS_UNSUPPORTED, "the tokenizer's chat template is not exactly any format known here, {t} is only the nearest; render it with from-tokenizer, or name a chat format", .{found.format});
    return null;
}

fn named(format: ?[*:0]const u8, status: *Status) ?chat_format.Format {
    const name = out.string(format, "format", status) orelse return null;
    return std.meta.stringToEnum(chat_format.Format, name) orelse {
        status.* = failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "chat format \"{s}\" is unknown; known are {s}", .{ name[0..@min(name.len, 80)], chat_format.names });
        return null;
    };
}

// ---- segments ----

/// A segment as JSON: exactly one of the first four keys.
const Written = struct {
    text: ?[]const u8 = null,
    control: ?[]const u8 = null,
    begin: ?bool = null,
    end: ?bool = null,
    role: ?chat_format.Role = null,
    in_loss: bool = false,
};

pub fn abt_chat_segments_json(
    messages_json: ?[*:0]const u8,
    format: ?[*:0]const u8,
    options: ?*const c.abt_chat_options,
    buffer: ?[*]u8,
    capacity: usize,
    needed: ?*usize,
) callconv(.c) Status {
    var request: Request = .{ .arena = .init(out.gpa) };
    defer request.arena.deinit();

    const read = request.read(messages_json, options);
    if (read != c.ABT_STATUS_OK) return read;
    var status: Status = c.ABT_STATUS_OK;
    const chosen = named(format, &status) orelse return status;
    const arena = request.arena.allocator();
    var diag: failure.Diagnostic = .{};
    const list = chat_format.segments(arena, chosen, request.chat.messages, request.options, &diag) catch |err|
        return failure.from(err, c.ABT_STATUS_DATA, &diag);
    const written = arena.alloc(Written, list.len) catch |err| return failure.from(err, c.ABT_STATUS_DATA, null);
    for (written, list) |*to, from| {
        to.* = .{ .role = from.role, .in_loss = from.in_loss };
        switch (from.piece) {
            .text => |text| to.text = text,
            .control => |control| to.control = control.text,
            .begin => to.begin = true,
            .end => to.end = true,
        }
    }
    var text: std.Io.Writer.Allocating = .init(out.gpa);
    defer text.deinit();

    std.json.Stringify.value(.{ .segments = written }, .{ .emit_null_optional_fields = false }, &text.writer) catch
        return failure.from(error.OutOfMemory, c.ABT_STATUS_INTERNAL, null);
    return out.fill(text.written(), buffer, capacity, needed);
}

pub fn abt_tokenizer_encode_segments(
    tokenizer: u64,
    segments_json: ?[*:0]const u8,
    ids: ?[*]u32,
    loss_mask: ?[*]u8,
    capacity: usize,
    needed: ?*usize,
) callconv(.c) Status {
    const size = needed orelse return failure.nullArgument("needed");
    size.* = 0;
    var status: Status = c.ABT_STATUS_OK;
    const json = out.string(segments_json, "segments_json", &status) orelse return status;
    var arena_state: std.heap.ArenaAllocator = .init(out.gpa);
    defer arena_state.deinit();
    const arena = arena_state.allocator();

    const written = std.json.parseFromSliceLeaky([]const Written, arena, json, .{}) catch |err| return switch (err) {
        error.OutOfMemory => failure.from(err, c.ABT_STATUS_DATA, null),
        else => failure.say(c.ABT_STATUS_DATA, "segments are not a list of objects with text, control, begin or end, and in_loss ({t})", .{err}),
    };
    const list = arena.alloc(Segment, written.len) catch |err| return failure.from(err, c.ABT_STATUS_DATA, null);
    for (list, written, 0..) |*to, from, at| {
        const kinds = @as(u8, @intFromBool(from.text != null)) + @intFromBool(from.control != null) + @intFromBool(from.begin != null) + @intFromBool(from.end != null);
        if (kinds != 1) return failure.say(c.ABT_STATUS_DATA, "segment {d} has {d} of text, control, begin and end; it must have one", .{ at, kinds });
        to.* = .{ .role = from.role, .in_loss = from.in_loss, .piece = if (from.text) |text|
            .{ .text = text }
        else if (from.control) |control|
            .{ .control = .{ .text = control } }
        else if (from.begin != null) .begin else .end };
    }
    const held = handles.acquire(Tokenizer, tokenizer, .shared, &status) orelse return status;
    defer held.release();

    var diag: failure.Diagnostic = .{};
    const rendered = chat_format.encodeSegments(out.gpa, &held.object.value.tokenizer, "from-tokenizer", list, &diag) catch |err|
        return failure.from(err, c.ABT_STATUS_DATA, &diag);
    defer rendered.deinit(out.gpa);

    return give(rendered, ids, loss_mask, capacity, needed);
}

// ---- formats ----

pub fn abt_chat_format_json(format: ?[*:0]const u8, buffer: ?[*]u8, capacity: usize, needed: ?*usize) callconv(.c) Status {
    var text: std.Io.Writer.Allocating = .init(out.gpa);
    defer text.deinit();

    if (format == null) {
        std.json.Stringify.value(.{ .formats = std.enums.values(chat_format.Format) }, .{}, &text.writer) catch
            return failure.from(error.OutOfMemory, c.ABT_STATUS_INTERNAL, null);
        return out.fill(text.written(), buffer, capacity, needed);
    }
    var status: Status = c.ABT_STATUS_OK;
    const chosen = named(format, &status) orelse return status;
    describe(chosen, &text.writer) catch return failure.from(error.OutOfMemory, c.ABT_STATUS_INTERNAL, null);
    return out.fill(text.written(), buffer, capacity, needed);
}

fn describe(chosen: chat_format.Format, w: *std.Io.Writer) !void {
    var arena_state: std.heap.ArenaAllocator = .init(out.gpa);
    defer arena_state.deinit();
    const arena = arena_state.allocator();

    var parts: std.ArrayList([]const u8) = .empty;
    var cut = std.mem.splitSequence(u8, try chosen.goTemplate(arena), chat_format.go_end_mark);
    while (cut.next()) |part| try parts.append(arena, part);
    const about = chosen.description();
    try std.json.Stringify.value(.{
        .name = @tagName(chosen),
        .about = about.about,
        .jinja = try chosen.jinja(arena, .{}),
        .jinja_for_training = try chosen.jinja(arena, .{ .mark_trained = true }),
        .go_template = parts.items,
        .stops = about.stops,
        .end = about.end,
        .past_end = about.past_end,
        .controls = about.controls,
        .default_system = about.default_system,
        .begins_with_bos = about.beginsWithBos(),
        .tools = about.tools,
        .thinking = about.thinking,
    }, .{}, w);
}

pub fn abt_chat_detect_json(template: ?[*:0]const u8, buffer: ?[*]u8, capacity: usize, needed: ?*usize) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const source = out.string(template, "template", &status) orelse return status;
    const found = chat_format.detect(out.gpa, source) catch |err| return failure.from(err, c.ABT_STATUS_DATA, null);
    var text: std.Io.Writer.Allocating = .init(out.gpa);
    defer text.deinit();

    std.json.Stringify.value(.{
        .format = if (found) |f| f.format else null,
        .exact = if (found) |f| f.exact else false,
        .tools = if (found) |f| f.tools else false,
    }, .{}, &text.writer) catch return failure.from(error.OutOfMemory, c.ABT_STATUS_INTERNAL, null);
    return out.fill(text.written(), buffer, capacity, needed);
}

test "every chat format has a description" {
    var buffer: [1 << 16]u8 = undefined;
    var needed: usize = 0;
    inline for (@typeInfo(chat_format.Format).@"enum".field_names) |name| {
        try std.testing.expectEqual(@as(Status, c.ABT_STATUS_OK), abt_chat_format_json(name.ptr, &buffer, buffer.len, &needed));
        try std.testing.expect(needed > 20);
        // The sentence for an unknown one must name all.
        _ = abt_chat_format_json("nothing", &buffer, buffer.len, &needed);
        try std.testing.expect(std.mem.find(u8, std.mem.span(failure.last()), name) != null);
        _ = abt_chat_format_json(null, &buffer, buffer.len, &needed);
        try std.testing.expect(std.mem.find(u8, buffer[0..needed], name) != null);
    }
}
