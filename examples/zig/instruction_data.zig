//! Instruction data: JSON lines with `instruction`, optional `input`, and `output`.
//!
//!     zig build examples && ./zig-out/bin/example-instruction_data

const std = @import("std");
const abi = @import("abi");
const data_loader = abi.ai.training.data_loader;

const jsonl_content =
    \\{"instruction": "Name the feeling.", "input": "My dog died last week.", "output": "That sounds like grief."}
    \\{"instruction": "Add 17 and 25.", "output": "17 + 25 = 42.", "source": "own"}
    \\{"instruction": "What will the weather be in a year?", "input": "", "output": "Nobody can know that."}
;

pub fn main(init: std.process.Init) !void {
    const allocator = init.gpa;
    var buffer: [4096]u8 = undefined;
    var out: std.Io.File.Writer = .init(.stdout(), init.io, &buffer);
    const w = &out.interface;

    const samples = try data_loader.parseInstructionDataset(allocator, jsonl_content);
    defer samples.deinit();

    for (samples.items) |sample| {
        try w.print("task:    {s}\n", .{sample.instruction});
        if (sample.input) |input| try w.print("context: {s}\n", .{input});
        try w.print("answer:  {s}\n\n", .{sample.output});
    }

    // Reading is strict. To go on past bad lines, ask for it; the report says what was left out.
    var report: data_loader.InstructionReport = .{};
    const rest = try data_loader.parseInstructionDatasetOptions(
        allocator,
        jsonl_content ++ "\n{\"instruction\": \"No answer here.\"}\n",
        .{ .skip_invalid = true },
        &report,
    );
    defer rest.deinit();

    try w.print("{d} good lines, {d} left out: {f}\n", .{ report.samples, report.skipped(), &report });
    try w.flush();
}
