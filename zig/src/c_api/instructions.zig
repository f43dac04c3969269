//! Instruction group: JSON lines of instruction, input and output.

const std = @import("std");
const abi = @import("abi");
const c = @import("abi_h");
const failure = @import("failure.zig");
const handles = @import("handles.zig");
const out = @import("out.zig");

const Status = failure.Status;

const Payload = struct {
    dataset: abi.data.InstructionDataset,
    report: abi.data.InstructionReport,

    pub fn deinit(self: *Payload) void {
        self.dataset.deinit();
    }
};

const Instructions = handles.Object(.instructions, Payload);

pub fn abt_instructions_parse(jsonl: ?[*]const u8, size: usize, skip_invalid: u32, instructions: ?*u64) callconv(.c) Status {
    const result = instructions orelse return failure.nullArgument("instructions");
    result.* = 0;
    var status: Status = c.ABT_STATUS_OK;
    const text = out.bytes(jsonl, size, "jsonl", &status) orelse return status;
    var report: abi.data.InstructionReport = .{};
    const dataset = abi.data.parseInstructionDatasetOptions(out.gpa, text, .{ .skip_invalid = skip_invalid != 0 }, &report) catch |err| {
        if (report.first == null) return failure.from(err, c.ABT_STATUS_DATA, null);
        return failure.say(c.ABT_STATUS_DATA, "{f}", .{report});
    };
    result.* = Instructions.make(.{ .dataset = dataset, .report = report }) catch |err| {
        dataset.deinit();
        return failure.from(err, c.ABT_STATUS_DATA, null);
    };
    return c.ABT_STATUS_OK;
}

pub fn abt_instructions_free(instructions: u64) callconv(.c) Status {
    return handles.free(Instructions, instructions);
}

pub fn abt_instructions_count(instructions: u64, count: ?*u64) callconv(.c) Status {
    const result = count orelse return failure.nullArgument("count");
    result.* = 0;
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Instructions, instructions, .shared, &status) orelse return status;
    defer held.release();

    result.* = held.object.value.dataset.items.len;
    return c.ABT_STATUS_OK;
}

pub fn abt_instructions_get(instructions: u64, index: u64, sample: ?*c.abt_instruction) callconv(.c) Status {
    const result = sample orelse return failure.nullArgument("sample");
    result.* = std.mem.zeroes(c.abt_instruction);
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Instructions, instructions, .shared, &status) orelse return status;
    defer held.release();

    const items = held.object.value.dataset.items;
    if (index >= items.len) return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "index is {d}; there are {d} samples", .{ index, items.len });
    const item = items[@intCast(index)];
    result.instruction = item.instruction.ptr;
    result.instruction_size = item.instruction.len;
    if (item.input) |input| {
        result.input = input.ptr;
        result.input_size = input.len;
    }
    result.output = item.output.ptr;
    result.output_size = item.output.len;
    result.line = item.line;
    return c.ABT_STATUS_OK;
}

pub fn abt_instructions_report_json(instructions: u64, buffer: ?[*]u8, capacity: usize, needed: ?*usize) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Instructions, instructions, .shared, &status) orelse return status;
    defer held.release();

    var text: std.Io.Writer.Allocating = .init(out.gpa);
    defer text.deinit();

    writeReport(&held.object.value.report, &text.writer) catch return failure.from(error.OutOfMemory, c.ABT_STATUS_INTERNAL, null);
    return out.fill(text.written(), buffer, capacity, needed);
}

fn writeReport(report: *const abi.data.InstructionReport, writer: *std.Io.Writer) std.Io.Writer.Error!void {
    var json: std.json.Stringify = .{ .writer = writer };
    try json.beginObject();
    inline for (.{
        .{ "samples", report.samples },
        .{ "blank_lines", report.blank_lines },
        .{ "skipped", report.skipped() },
    }) |pair| {
        try json.objectField(pair[0]);
        try json.write(pair[1]);
    }
    try json.objectField("defects");
    try json.beginObject();
    var defects = report.defects;
    var entries = defects.iterator();
    while (entries.next()) |entry| if (entry.value.* != 0) {
        try json.objectField(@tagName(entry.key));
        try json.write(entry.value.*);
    };
    try json.endObject();
    try json.objectField("first");
    if (report.first != null) {
        var sentence: [256]u8 = undefined;
        var w: std.Io.Writer = .fixed(&sentence);
        w.print("{f}", .{report.*}) catch {}; // Cut at the end of the buffer.
        try json.write(w.buffered());
    } else try json.write(null);
    try json.endObject();
}

test "a bad line is named, and skipped on request" {
    var handle: u64 = 0;
    const text = "{\"instruction\": \"a\", \"output\": \"b\"}\n{\"instruction\": \"c\"}\n";
    try std.testing.expectEqual(@as(Status, c.ABT_STATUS_DATA), abt_instructions_parse(text, text.len, 0, &handle));
    try std.testing.expect(std.mem.startsWith(u8, std.mem.span(failure.last()), "line 2 "));
    try std.testing.expectEqual(0, handle);
    try std.testing.expectEqual(@as(Status, c.ABT_STATUS_OK), abt_instructions_parse(text, text.len, 1, &handle));
    var count: u64 = 0;
    try std.testing.expectEqual(@as(Status, c.ABT_STATUS_OK), abt_instructions_count(handle, &count));
    try std.testing.expectEqual(1, count);
    var sample: c.abt_instruction = undefined;
    try std.testing.expectEqual(@as(Status, c.ABT_STATUS_INVALID_ARGUMENT), abt_instructions_get(handle, 1, &sample));
    try std.testing.expectEqual(@as(Status, c.ABT_STATUS_OK), abt_instructions_get(handle, 0, &sample));
    try std.testing.expectEqualStrings("a", sample.instruction[0..sample.instruction_size]);
    try std.testing.expect(sample.input == null);
    try std.testing.expectEqual(@as(Status, c.ABT_STATUS_OK), abt_instructions_free(handle));
    try std.testing.expectEqual(@as(Status, c.ABT_STATUS_STALE_HANDLE), abt_instructions_free(handle));
}
