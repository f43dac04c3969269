//! Adapters that went into a GGUF file come out of it; files that are something else are refused by name.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const rigs = @import("adapter_gguf_test.zig");
const adapter_gguf = @import("adapter_gguf.zig");
const gguf = @import("gguf.zig");
const gguf_writer = @import("gguf_writer.zig");
const adapter_gguf_import = @import("adapter_gguf_import.zig");
const LoraSettings = arch.LoraSettings;
const Rig = rigs.Rig;

const testing = std.testing;
const gpa = testing.allocator;

const experts = [_][]const u8{ "mlp.experts.gate_up_proj", "mlp.experts.down_proj" };

fn exported(rig: *Rig) ![]u8 {
    _ = try adapter_gguf.run(gpa, rig.disk.storage(), .{ .adapter = "a", .out_path = "out.gguf" }, &rig.diag);
    return rig.disk.storage().readAlloc(gpa, "out.gguf");
}

test "what was written comes back, with the same numbers and the same modules" {
    const Case = struct { arch.ModelConfig, LoraSettings };
    var untied = rigs.small;
    untied.model_type = .qwen3;
    untied.qk_norm = true;
    const cases = [_]Case{
        .{ rigs.small, .{ .r = 2, .lora_alpha = 6.5, .target_modules = &rigs.everything } },
        .{ untied, .{ .r = 2, .target_modules = &.{ "k_proj", "layers.1.mlp.up_proj" } } },
        .{ rigs.small, .{ .r = 3, .target_modules = &.{ "q_proj", "v_proj" }, .rank_pattern = &.{.{ .name = "v_proj", .value = 1 }} } },
        .{ rigs.mixture, .{ .r = 2, .target_modules = &.{"o_proj"}, .target_parameters = &experts } },
        .{ rigs.mixture, .{ .r = 2, .target_modules = &.{}, .target_parameters = &.{"layers.1.mlp.experts.gate_up_proj"} } },
    };
    for (cases) |case| {
        var rig = try Rig.init(case[0], case[1]);
        defer rig.deinit();

        const raw = try exported(&rig);
        defer gpa.free(raw);
        var back = adapter_gguf_import.read(gpa, raw, case[0], &rig.layout, &rig.diag) catch |err| {
            std.debug.print("{s}\n", .{rig.diag.text()});
            return err;
        };
        defer back.deinit(gpa);
        try testing.expect(back.layout.sameAs(&rig.adapter));
        try testing.expectEqualSlices(f32, rig.values, back.values);
        try testing.expectEqualStrings("models/base", back.base_name.?);
    }
}

/// The adapter's file with one tensor left out, renamed or changed.
const Fault = struct { skip: []const u8 = "", rename: [2][]const u8 = .{ "", "" }, change: []const u8 = "", kind: []const u8 = "adapter", architecture: []const u8 = "" };

fn broken(raw: []const u8, fault: Fault) ![]u8 {
    var diag: base.Diagnostic = .{};
    var file = try gguf.File.parse(gpa, raw, &diag);
    defer file.deinit();
    var header: gguf_writer.Header = .init(gpa);
    defer header.deinit();
    for (file.key_values) |entry| {
        if (std.mem.eql(u8, entry.key, "general.type")) {
            try header.put([]const u8, entry.key, fault.kind);
        } else if (fault.architecture.len > 0 and std.mem.eql(u8, entry.key, "general.architecture")) {
            try header.put([]const u8, entry.key, fault.architecture);
        } else try header.putValue(entry.key, entry.value);
    }
    for (file.tensors) |*info| {
        if (std.mem.eql(u8, info.name, fault.skip)) continue;
        const name = if (std.mem.eql(u8, info.name, fault.rename[0])) fault.rename[1] else info.name;
        var dims: [4]usize = undefined;
        for (0..info.rank) |i| dims[i] = info.ne[info.rank - 1 - i];
        try header.addTensor(name, info.dtype, dims[0..info.rank]);
    }
    var out: std.Io.Writer.Allocating = .init(gpa);
    defer out.deinit();
    try header.write(&out.writer);
    var stream: gguf_writer.Stream = .init(&header, &out.writer);
    for (file.tensors) |*info| {
        if (std.mem.eql(u8, info.name, fault.skip)) continue;
        const data = try gpa.dupe(u8, info.data);
        defer gpa.free(data);
        if (std.mem.eql(u8, info.name, fault.change)) data[3] ^= 1;
        try stream.write(data);
    }
    return gpa.dupe(u8, out.written());
}

fn expectRefused(rig: *Rig, config: arch.ModelConfig, layout: *const arch.Layout, raw: []const u8, fault: Fault, err: anyerror, words: []const u8) !void {
    const bad = try broken(raw, fault);
    defer gpa.free(bad);
    try testing.expectError(err, adapter_gguf_import.read(gpa, bad, config, layout, &rig.diag));
    if (std.mem.find(u8, rig.diag.text(), words) == null) {
        std.debug.print("\"{s}\" is not in \"{s}\"\n", .{ words, rig.diag.text() });
        return error.WrongWords;
    }
}

test "files of another base, halves without the other, and two As for one are refused by name" {
    var rig = try Rig.init(rigs.mixture, .{ .r = 2, .target_modules = &.{"q_proj"}, .target_parameters = &experts });
    defer rig.deinit();

    const raw = try exported(&rig);
    defer gpa.free(raw);
    const l = &rig.layout;
    const gate = "blk.1.ffn_gate_exps.weight";
    const up = "blk.1.ffn_up_exps.weight";
    try expectRefused(&rig, rigs.mixture, l, raw, .{ .kind = "model" }, error.NotAnAdapter, "general.type is \"model\"");
    try expectRefused(&rig, rigs.mixture, l, raw, .{ .architecture = "llama" }, error.NotAnAdapter, "architecture \"llama\", the base is gpt-oss");
    try expectRefused(&rig, rigs.mixture, l, raw, .{ .skip = gate ++ ".lora_a" }, error.MissingTensor, gate ++ ".lora_a is missing");
    try expectRefused(&rig, rigs.mixture, l, raw, .{ .skip = up ++ ".lora_b" }, error.MissingTensor, up ++ ".lora_b is missing");
    try expectRefused(&rig, rigs.mixture, l, raw, .{ .change = up ++ ".lora_a" }, error.NotExpressible, "is not the A of the gate");
    try expectRefused(&rig, rigs.mixture, l, raw, .{ .rename = .{ "blk.0.attn_q.weight.lora_a", "blk.9.attn_q.weight.lora_a" } }, error.UnexpectedTensor, "does not have");
    try expectRefused(&rig, rigs.mixture, l, raw, .{ .rename = .{ "blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight" } }, error.UnexpectedTensor, "is no half");
    try expectRefused(&rig, rigs.mixture, l, raw, .{ .rename = .{ "blk.0.attn_q.weight.lora_a", "blk.0.attn_norm.weight.lora_a" } }, error.UnexpectedTensor, "no adapter can be put");
    var wider = rigs.mixture;
    wider.hidden_size = 12;
    var other = try arch.Layout.init(gpa, wider);
    defer other.deinit();
    try expectRefused(&rig, wider, &other, raw, .{}, error.WrongTensorShape, "the base and a rank of 2 ask for");
}

test "with any byte of the file changed an adapter is read or refused" {
    var rig = try Rig.init(rigs.mixture, .{ .r = 1, .target_modules = &.{"k_proj"}, .target_parameters = &.{"layers.0.mlp.experts.down_proj"} });
    defer rig.deinit();

    const raw = try exported(&rig);
    defer gpa.free(raw);
    for (0..@min(raw.len, 1200)) |at| for ([_]u8{ 0x01, 0x40, 0xFF }) |flip| {
        raw[at] ^= flip;
        defer raw[at] ^= flip;

        rig.diag.clear();
        if (adapter_gguf_import.read(gpa, raw, rigs.mixture, &rig.layout, &rig.diag)) |read| {
            var back = read;
            back.deinit(gpa);
        } else |err| {
            try testing.expect(err != error.OutOfMemory);
            try testing.expect(rig.diag.text().len > 0);
        }
    };
}
