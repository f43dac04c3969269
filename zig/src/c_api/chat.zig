//! Chats to ids and loss mask, with a tokenizer.

const std = @import("std");
const abi = @import("abi");
const c = @import("abi_h");
const failure = @import("failure.zig");
const handles = @import("handles.zig");
const out = @import("out.zig");
const Tokenizer = @import("tokenizer.zig").Tokenizer;

const Status = failure.Status;
const chat_format = abi.tokenizer.chat_format;
const Message = chat_format.Message;

pub fn abt_tokenizer_render_chat(
    tokenizer: u64,
    messages_json: ?[*:0]const u8,
    format: ?[*:0]const u8,
    add_generation_prompt: u32,
    train: u32,
    ids: ?[*]u32,
    loss_mask: ?[*]u8,
    capacity: usize,
    needed: ?*usize,
) callconv(.c) Status {
    const size = needed orelse return failure.nullArgument("needed");
    size.* = 0;
    var status: Status = c.ABT_STATUS_OK;
    const json = out.string(messages_json, "messages_json", &status) orelse return status;
    const held = handles.acquire(Tokenizer, tokenizer, .shared, &status) orelse return status;
    defer held.release();

    const words = &held.object.value.tokenizer;
    const chosen = choose(words, format, &status) orelse return status;
    const parsed = std.json.parseFromSlice([]const Message, out.gpa, json, .{}) catch |err| return switch (err) {
        error.OutOfMemory => failure.from(err, c.ABT_STATUS_DATA, null),
        else => failure.say(c.ABT_STATUS_DATA, "messages are not a list of objects with role (system, user, assistant or tool), content, and optional emotion ({t})", .{err}),
    };
    defer parsed.deinit();

    var diag: failure.Diagnostic = .{};
    const rendered = abi.tokenizer.render(out.gpa, words, chosen, parsed.value, .{
        .add_generation_prompt = add_generation_prompt != 0,
        .train = train != 0,
    }, &diag) catch |err| return failure.from(err, c.ABT_STATUS_DATA, &diag);
    defer rendered.deinit(out.gpa);

    const filled = out.fillItems(u32, rendered.ids, ids, capacity, needed);
    if (filled != c.ABT_STATUS_OK) return filled;
    if (loss_mask) |mask| for (mask[0..rendered.loss_mask.len], rendered.loss_mask) |*byte, flag| {
        byte.* = @intFromBool(flag);
    };
    return c.ABT_STATUS_OK;
}

fn choose(words: *const abi.tokenizer.Tokenizer, format: ?[*:0]const u8, status: *Status) ?chat_format.Format {
    if (format != null) return named(format, status);
    const template = words.chatTemplate() orelse {
        status.* = failure.say(c.ABT_STATUS_DATA, "the tokenizer has no chat template; name a chat format", .{});
        return null;
    };
    return chat_format.detect(template) orelse {
        status.* = failure.say(c.ABT_STATUS_UNSUPPORTED, "the tokenizer's chat template is of a family not known here; name the nearest chat format", .{});
        return null;
    };
}

fn named(format: ?[*:0]const u8, status: *Status) ?chat_format.Format {
    const name = out.string(format, "format", status) orelse return null;
    return std.meta.stringToEnum(chat_format.Format, name) orelse {
        status.* = failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "chat format \"{s}\" is unknown; known are abbey, chatml, llama3, mistral, qwen, qwen2 and smollm", .{name[0..@min(name.len, 80)]});
        return null;
    };
}

pub fn abt_chat_format_json(format: ?[*:0]const u8, buffer: ?[*]u8, capacity: usize, needed: ?*usize) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const chosen = named(format, &status) orelse return status;
    var text: std.Io.Writer.Allocating = .init(out.gpa);
    defer text.deinit();

    std.json.Stringify.value(.{
        .name = @tagName(chosen),
        .jinja = chosen.jinja(),
        .stops = chosen.stops(),
        .default_system = chosen.defaultSystem(),
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
    }
}
