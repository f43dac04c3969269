//! Tokenizer group: text to ids and back.

const std = @import("std");
const abi = @import("abi");
const c = @import("abi_h");
const failure = @import("failure.zig");
const handles = @import("handles.zig");
const out = @import("out.zig");

const Status = failure.Status;

pub const Tokenizer = handles.Object(.tokenizer, struct {
    tokenizer: abi.tokenizer.Tokenizer,

    pub fn deinit(self: *@This()) void {
        self.tokenizer.deinit();
    }
});

pub fn abt_tokenizer_open(path: ?[*:0]const u8, tokenizer: ?*u64) callconv(.c) Status {
    const result = tokenizer orelse return failure.nullArgument("tokenizer");
    result.* = 0;
    var status: Status = c.ABT_STATUS_OK;
    const name = out.string(path, "path", &status) orelse return status;
    var diag: failure.Diagnostic = .{};
    var opened = open(name, &diag) catch |err| switch (err) {
        error.CannotReadTokenizer => return failure.from(err, c.ABT_STATUS_NOT_FOUND, &diag),
        else => return failure.from(err, c.ABT_STATUS_FORMAT, &diag),
    };
    result.* = Tokenizer.make(.{ .tokenizer = opened }) catch |err| {
        opened.deinit();
        return failure.from(err, c.ABT_STATUS_FORMAT, null);
    };
    return c.ABT_STATUS_OK;
}

fn open(path: []const u8, diag: *failure.Diagnostic) !abi.tokenizer.Tokenizer {
    if (!std.mem.endsWith(u8, path, ".gguf")) return abi.tokenizer.Tokenizer.openFolder(out.gpa, out.io(), path, diag);
    var disk: abi.base.storage.Disk = .init(out.io());
    var mapping = disk.storage().map(path) catch |err| {
        abi.base.storage.explain(diag, err, "read", path);
        return err;
    };
    defer mapping.unmap();

    errdefer diag.prepend("{s}: ", .{path});
    var file = try abi.formats.gguf.File.parse(out.gpa, mapping.bytes, diag);
    defer file.deinit();

    return abi.agent.vocabulary.fromFile(out.gpa, &file, diag);
}

pub fn abt_tokenizer_free(tokenizer: u64) callconv(.c) Status {
    return handles.free(Tokenizer, tokenizer);
}

pub fn abt_tokenizer_info_json(tokenizer: u64, buffer: ?[*]u8, capacity: usize, needed: ?*usize) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Tokenizer, tokenizer, .shared, &status) orelse return status;
    defer held.release();

    const t = &held.object.value.tokenizer;
    var text: std.Io.Writer.Allocating = .init(out.gpa);
    defer text.deinit();

    var controls: std.ArrayList([]const u8) = .empty;
    defer controls.deinit(out.gpa);
    for (t.parts.tokens, 0..) |token, id| if (token.added and t.isControl(@intCast(id))) {
        controls.append(out.gpa, token.text) catch |err| return failure.from(err, c.ABT_STATUS_FORMAT, null);
    };
    std.json.Stringify.value(.{
        .vocab_size = t.vocabSize(),
        .bos = t.bos(),
        .eos = t.eos(),
        .pad = t.pad(),
        .add_bos = t.addBos(),
        .unk = t.parts.unknown,
        .stops = t.stopTokens(),
        .controls = controls.items,
        .chat_template = t.chatTemplate(),
    }, .{}, &text.writer) catch return failure.from(error.OutOfMemory, c.ABT_STATUS_FORMAT, null);
    return out.fill(text.written(), buffer, capacity, needed);
}

pub fn abt_tokenizer_encode(
    tokenizer: u64,
    text: ?[*]const u8,
    size: usize,
    options: ?*const c.abt_encode_options,
    ids: ?[*]u32,
    capacity: usize,
    needed: ?*usize,
) callconv(.c) Status {
    var given: abi.tokenizer.EncodeOptions = .{};
    if (options) |o| if (readOptions(o, &given)) |status| return status;
    var status: Status = c.ABT_STATUS_OK;
    const bytes = out.bytes(text, size, "text", &status) orelse return status;
    const held = handles.acquire(Tokenizer, tokenizer, .shared, &status) orelse return status;
    defer held.release();

    const found = held.object.value.tokenizer.encode(out.gpa, bytes, given) catch |err| switch (err) {
        error.OutOfMemory => return failure.from(err, c.ABT_STATUS_DATA, null),
        error.TextTooLong => return failure.say(c.ABT_STATUS_DATA, "the text has {d} bytes, more than a tokenizer takes at once; cut it into pieces", .{size}),
    };
    defer out.gpa.free(found);

    return out.fillItems(u32, found, ids, capacity, needed);
}

/// Null when the options could be read.
fn readOptions(o: *const c.abt_encode_options, given: *abi.tokenizer.EncodeOptions) ?Status {
    if (out.wrongSize(c.abt_encode_options, o.struct_size)) |status| return status;
    given.add_bos = threeWay(o.add_bos) catch return badSwitch("add_bos", o.add_bos);
    given.add_eos = threeWay(o.add_eos) catch return badSwitch("add_eos", o.add_eos);
    given.parse_special = o.parse_special != 0;
    given.continues = o.continues != 0;
    return null;
}

pub fn abt_tokenizer_encode_batch(
    tokenizer: u64,
    text: ?[*]const u8,
    bounds: ?[*]const u64,
    count: usize,
    options: ?*const c.abt_encode_options,
    threads: usize,
    ids: ?[*]u32,
    capacity: usize,
    starts: ?[*]u64,
    needed: ?*usize,
) callconv(.c) Status {
    var given: abi.tokenizer.EncodeOptions = .{};
    if (options) |o| if (readOptions(o, &given)) |status| return status;
    const edges = (bounds orelse return failure.nullArgument("bounds"))[0 .. count + 1];
    const starts_out = (starts orelse return failure.nullArgument("starts"))[0 .. count + 1];
    for (edges[0..count], edges[1..], 0..) |from, to, i| if (from > to)
        return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "text {d} begins at byte {d} and ends at {d}; bounds must not go back", .{ i, from, to });
    var status: Status = c.ABT_STATUS_OK;
    const bytes = out.bytes(text, std.math.cast(usize, edges[count]) orelse 0, "text", &status) orelse return status;
    const held = handles.acquire(Tokenizer, tokenizer, .shared, &status) orelse return status;
    defer held.release();

    const texts = out.gpa.alloc([]const u8, count) catch |err| return failure.from(err, c.ABT_STATUS_DATA, null);
    defer out.gpa.free(texts);
    for (texts, edges[0..count], edges[1..]) |*one, from, to| one.* = bytes[@intCast(from)..@intCast(to)];

    var found = abi.tokenizer.parallel.encode(&held.object.value.tokenizer, out.gpa, texts, given, threads) catch |err| switch (err) {
        error.OutOfMemory => return failure.from(err, c.ABT_STATUS_DATA, null),
        error.TextTooLong => return failure.say(c.ABT_STATUS_DATA, "a text has a piece of 4 GiB or more; cut it", .{}),
        error.CannotStartThreads => return failure.say(c.ABT_STATUS_DATA, "{d} threads could not be started; ask for fewer", .{threads}),
    };
    defer found.deinit(out.gpa);

    @memcpy(starts_out, found.starts);
    return out.fillItems(u32, found.ids, ids, capacity, needed);
}

fn threeWay(value: i32) error{OutOfRange}!?bool {
    return switch (value) {
        -1 => null,
        0 => false,
        1 => true,
        else => error.OutOfRange,
    };
}

fn badSwitch(comptime name: []const u8, value: i32) Status {
    return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "{s} is {d}; it must be 1, 0 or -1", .{ name, value });
}

pub fn abt_tokenizer_decode(
    tokenizer: u64,
    ids: ?[*]const u32,
    count: usize,
    skip_special: u32,
    continues: u32,
    buffer: ?[*]u8,
    capacity: usize,
    needed: ?*usize,
) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    if (ids == null and count != 0) return failure.nullArgument("ids");
    const held = handles.acquire(Tokenizer, tokenizer, .shared, &status) orelse return status;
    defer held.release();

    const t = &held.object.value.tokenizer;
    const given: []const u32 = if (ids) |p| p[0..count] else &.{};
    for (given, 0..) |id, i| if (id >= t.vocabSize())
        return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "id {d} at position {d} is beyond the vocabulary of {d}", .{ id, i, t.vocabSize() });
    const text = t.decode(out.gpa, given, .{ .skip_special = skip_special != 0, .continues = continues != 0 }) catch |err|
        return failure.from(err, c.ABT_STATUS_DATA, null);
    defer out.gpa.free(text);

    return out.fill(text, buffer, capacity, needed);
}

pub fn abt_tokenizer_token_id(tokenizer: u64, text: ?[*]const u8, size: usize, control_only: u32, id: ?*u32) callconv(.c) Status {
    const result = id orelse return failure.nullArgument("id");
    result.* = 0;
    var status: Status = c.ABT_STATUS_OK;
    const spelled = out.bytes(text, size, "text", &status) orelse return status;
    const held = handles.acquire(Tokenizer, tokenizer, .shared, &status) orelse return status;
    defer held.release();

    const t = &held.object.value.tokenizer;
    const found = if (control_only != 0) t.specialId(spelled) else t.idOf(spelled);
    result.* = found orelse return failure.say(c.ABT_STATUS_NOT_FOUND, "the vocabulary has no {s}token \"{s}\"", .{
        if (control_only != 0) "control " else "",
        spelled[0..@min(spelled.len, 80)],
    });
    return c.ABT_STATUS_OK;
}
