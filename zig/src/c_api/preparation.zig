//! Preparation: from lines of JSON to token files, and a check of lines alone.

const std = @import("std");
const abi = @import("abi");
const c = @import("abi_h");
const failure = @import("failure.zig");
const handles = @import("handles.zig");
const out = @import("out.zig");
const Tokenizer = @import("tokenizer.zig").Tokenizer;

const Status = failure.Status;

const Payload = struct {
    job: *abi.prepare.Job,
    tokenizer: *Tokenizer,
    /// Holds the texts of the options.
    arena: std.heap.ArenaAllocator,
    state: enum { ready, failed, finished } = .ready,

    pub fn deinit(self: *Payload) void {
        self.job.deinit();
        out.gpa.destroy(self.job);
        self.arena.deinit();
        self.tokenizer.header.release();
    }
};

const Preparation = handles.Object(.preparation, Payload);

/// What `options_json` may say.
const Given = struct {
    sources: []const []const u8,
    output: []const u8,
    eval_output: ?[]const u8 = null,
    eval_fraction: f64 = 0,
    seed: u64 = 42,
    chat_format: ?[]const u8 = null,
    date: ?[]const u8 = null,
    tools: bool = true,
    loss: []const u8 = "assistant",
    max_seq_len: ?u32 = null,
    skip_invalid: bool = false,
    stream: bool = false,
    threads: u32 = 0,
    continues: bool = true,
    journal_ms: u64 = 1000,
    block_bytes: u32 = 256 << 10,
    tokenizer_hash: ?[]const u8 = null,
    format_name: ?[]const u8 = null,
    source_note: ?[]const u8 = null,
    license: ?[]const u8 = null,
    commercial_use: ?bool = null,
    notes: []const []const u8 = &.{},
};

pub fn abt_preparation_open(tokenizer: u64, options_json: ?[*:0]const u8, preparation: ?*u64) callconv(.c) Status {
    const result = preparation orelse return failure.nullArgument("preparation");
    result.* = 0;
    var status: Status = c.ABT_STATUS_OK;
    const json = out.string(options_json, "options_json", &status) orelse return status;
    const held = handles.acquire(Tokenizer, tokenizer, .shared, &status) orelse return status;
    defer held.release();

    var diag: failure.Diagnostic = .{};
    var payload = open(held.object, json, &diag) catch |err| return switch (err) {
        error.InvalidOptions => failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "{s}", .{diag.text()}),
        else => failure.from(err, c.ABT_STATUS_DATA, &diag),
    };
    result.* = Preparation.make(payload) catch |err| {
        payload.deinit();
        return failure.from(err, c.ABT_STATUS_DATA, null);
    };
    return c.ABT_STATUS_OK;
}

fn open(tokenizer: *Tokenizer, json: []const u8, diag: *failure.Diagnostic) !Payload {
    var arena: std.heap.ArenaAllocator = .init(out.gpa);
    errdefer arena.deinit();

    const given = std.json.parseFromSliceLeaky(Given, arena.allocator(), json, .{ .allocate = .alloc_always }) catch |err| switch (err) {
        error.OutOfMemory => return error.OutOfMemory,
        else => {
            diag.set("options_json is not an object of the options the header names ({t})", .{err});
            return error.InvalidOptions;
        },
    };
    const job = try out.gpa.create(abi.prepare.Job);
    errdefer out.gpa.destroy(job);
    try job.init(out.gpa, out.io(), &tokenizer.value.tokenizer, .{
        .sources = given.sources,
        .output = given.output,
        .eval_output = given.eval_output,
        .eval_fraction = given.eval_fraction,
        .seed = given.seed,
        .chat_format = try formatOf(&tokenizer.value.tokenizer, given.chat_format, diag),
        .date = given.date orelse blk: {
            const day = try arena.allocator().create([10]u8);
            break :blk abi.tokenizer.chat_format.today(day);
        },
        .tools = given.tools,
        .loss = std.meta.stringToEnum(abi.prepare.Loss, given.loss) orelse {
            diag.set("loss is \"{s}\"; it must be assistant, completion or all", .{given.loss[0..@min(given.loss.len, 60)]});
            return error.InvalidOptions;
        },
        .max_seq_len = if (given.max_seq_len) |limit| limit else null,
        .skip_invalid = given.skip_invalid,
        .stream = given.stream,
        .threads = given.threads,
        .continues = given.continues,
        .journal_ms = given.journal_ms,
        .block_bytes = @max(given.block_bytes, 1),
        .tokenizer_hash = given.tokenizer_hash,
        .format_name = given.format_name,
        .source_note = given.source_note,
        .license = given.license,
        .commercial_use = given.commercial_use,
        .notes = given.notes,
    }, diag);
    tokenizer.header.retain();
    return .{ .job = job, .tokenizer = tokenizer, .arena = arena };
}

/// Null when the tokenizer's template is not exactly a known format: then chats are refused, and other rows are not.
fn formatOf(words: *const abi.tokenizer.Tokenizer, name: ?[]const u8, diag: *failure.Diagnostic) !?abi.tokenizer.ChatFormat {
    if (name) |given| return std.meta.stringToEnum(abi.tokenizer.ChatFormat, given) orelse {
        diag.set("chat format \"{s}\" is unknown; known are {s}", .{ given[0..@min(given.len, 80)], abi.tokenizer.chat_format.names });
        return error.InvalidOptions;
    };
    const found = try abi.tokenizer.chat_format.detect(out.gpa, words.chatTemplate() orelse return null) orelse return null;
    return if (found.exact) found.format else null;
}

pub fn abt_preparation_free(preparation: u64) callconv(.c) Status {
    return handles.free(Preparation, preparation);
}

pub fn abt_preparation_run(preparation: u64) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Preparation, preparation, .exclusive, &status) orelse return status;
    defer held.release();

    const value = &held.object.value;
    if (value.state != .ready) return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "this preparation has run; free it and open another", .{});
    value.state = .failed;
    var diag: failure.Diagnostic = .{};
    value.job.run(&diag) catch |err| return failure.from(err, c.ABT_STATUS_DATA, &diag);
    value.state = .finished;
    return c.ABT_STATUS_OK;
}

pub fn abt_preparation_progress(preparation: u64, progress: ?*c.abt_progress) callconv(.c) Status {
    const result = progress orelse return failure.nullArgument("progress");
    result.* = std.mem.zeroes(c.abt_progress);
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Preparation, preparation, .signal, &status) orelse return status;
    defer held.release();

    const now = held.object.value.job.progress();
    result.bytes_done = now.bytes_done;
    result.bytes_before = now.bytes_before;
    result.bytes_total = now.bytes_total;
    result.lines = now.lines;
    result.rows = now.rows;
    result.tokens = now.tokens;
    result.counting = @intFromBool(now.counting);
    return c.ABT_STATUS_OK;
}

pub fn abt_preparation_cancel(preparation: u64) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Preparation, preparation, .signal, &status) orelse return status;
    defer held.release();

    held.object.value.job.cancel();
    return c.ABT_STATUS_OK;
}

pub fn abt_preparation_report_json(preparation: u64, buffer: ?[*]u8, capacity: usize, needed: ?*usize) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Preparation, preparation, .shared, &status) orelse return status;
    defer held.release();

    var text: std.Io.Writer.Allocating = .init(out.gpa);
    defer text.deinit();

    held.object.value.job.report.writeJson(&text.writer) catch return failure.from(error.OutOfMemory, c.ABT_STATUS_DATA, null);
    return out.fill(text.written(), buffer, capacity, needed);
}

pub fn abt_jsonl_check(text: ?[*]const u8, size: usize, counts: ?*c.abt_jsonl_counts) callconv(.c) Status {
    const result = counts orelse return failure.nullArgument("counts");
    result.* = std.mem.zeroes(c.abt_jsonl_counts);
    var status: Status = c.ABT_STATUS_OK;
    const given = out.bytes(text, size, "text", &status) orelse return status;
    const found = abi.data.jsonl.check(out.gpa, given, .{}) catch |err| return failure.from(err, c.ABT_STATUS_DATA, null);
    result.lines = found.lines;
    result.values = found.values;
    result.text_bytes = found.text_bytes;
    if (found.bad_line == 0) return c.ABT_STATUS_OK;
    return failure.say(c.ABT_STATUS_DATA, "line {d}, column {d}: {s}", .{ found.bad_line, found.column, found.defect.words() });
}

test "lines are checked, and the first that is none is named" {
    var counts: c.abt_jsonl_counts = undefined;
    try std.testing.expectEqual(@as(Status, c.ABT_STATUS_OK), abt_jsonl_check("[1]\n", 4, &counts));
    try std.testing.expectEqual(2, counts.values);
    try std.testing.expectEqual(@as(Status, c.ABT_STATUS_DATA), abt_jsonl_check("[1]\n[\n", 6, &counts));
    try std.testing.expectEqual(1, counts.lines);
    try std.testing.expectEqualStrings("line 2, column 2: not valid JSON (the line ends too early)", std.mem.span(failure.last()));
}
