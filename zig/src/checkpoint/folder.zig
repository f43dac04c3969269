//! The form of one checkpoint folder: file names, `checksums.json`, and the check that a folder is whole.
//!
//! `checksums.json` lists every other file with its size and CRC-32C, in one canonical spelling: any changed byte of it is
//! noticed too. A folder without it (written by another program) is checked by its structure alone.
//! Does not know: weights, optimizers, which checkpoint is the newest.

const std = @import("std");
const base = @import("base");
const formats = @import("formats");
const Allocator = std.mem.Allocator;
const Diagnostic = base.Diagnostic;
const Storage = base.storage.Storage;
const Digest = base.storage.Digest;

pub const config_name = "config.json";
pub const model_name = "model.safetensors";
pub const index_name = "model.safetensors.index.json";
pub const adapter_name = "adapter_model.safetensors";
pub const adapter_config_name = "adapter_config.json";
pub const optimizer_name = "optimizer.safetensors";
pub const state_name = "trainer_state.json";
pub const checksums_name = "checksums.json";
pub const lock_name = "run.lock";

/// Copied from the tokenizer's folder when they are there.
pub const tokenizer_names = [_][]const u8{
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "tokenizer.model",
};

const prefix = "checkpoint-";

/// `checkpoint-120` → 120; null for other names. One step has one spelling.
pub fn stepOf(name: []const u8) ?u64 {
    if (!std.mem.startsWith(u8, name, prefix)) return null;
    const digits = name[prefix.len..];
    if (digits.len == 0 or digits.len > 1 and digits[0] == '0') return null;
    for (digits) |c| if (!std.ascii.isDigit(c)) return null;
    return std.fmt.parseInt(u64, digits, 10) catch null;
}

pub fn isCheckpointName(name: []const u8) bool {
    return stepOf(name) != null;
}

/// `<run_dir>/checkpoint-<step>`. Caller frees.
pub fn pathOf(gpa: Allocator, run_dir: []const u8, step: u64) error{OutOfMemory}![]u8 {
    return std.fmt.allocPrint(gpa, "{s}/" ++ prefix ++ "{d}", .{ std.mem.trimEnd(u8, run_dir, "/"), step });
}

pub const FileSum = struct {
    name: []const u8,
    size: u64,
    crc32c: u32,
};

pub fn sumOf(name: []const u8, digest: Digest) FileSum {
    return .{ .name = name, .size = digest.size, .crc32c = digest.crc32c };
}

/// The canonical text of `checksums.json`.
pub fn writeSums(w: *std.Io.Writer, sums: []const FileSum) std.Io.Writer.Error!void {
    try w.writeAll("{\n  \"format\": \"abi_train.checksums\",\n  \"version\": 1,\n  \"files\": {");
    for (sums, 0..) |sum, i| {
        try w.writeAll(if (i == 0) "\n    " else ",\n    ");
        try std.json.Stringify.encodeJsonString(sum.name, .{}, w);
        try w.print(": {{\"size\": {d}, \"crc32c\": \"{x:0>8}\"}}", .{ sum.size, sum.crc32c });
    }
    try w.writeAll("\n  }\n}\n");
}

pub const Error = base.storage.Error || error{
    /// The folder holds no model.
    IncompleteCheckpoint,
    /// A file is not what was written: another size, another checksum, another form.
    DamagedCheckpoint,
};

/// Reads `checksums.json`; null when the folder has none. `arena` owns the names.
pub fn readSums(arena: Allocator, storage: Storage, path: []const u8, diag: *Diagnostic) Error!?[]const FileSum {
    const file = try base.storage.join(arena, path, checksums_name);
    if (try storage.kind(file) == null) return null;
    const text = storage.readAlloc(arena, file) catch |err| {
        base.storage.explain(diag, err, "read", file);
        return err;
    };
    return try parseSums(arena, text) orelse {
        diag.set("{s} is damaged", .{file});
        return error.DamagedCheckpoint;
    };
}

fn parseSums(arena: Allocator, text: []const u8) error{OutOfMemory}!?[]const FileSum {
    var ignored: Diagnostic = .{};
    const json = formats.json;
    const value = json.parse(arena, text, .{}, &ignored) catch |err| return if (err == error.OutOfMemory) error.OutOfMemory else null;
    if (value != .object) return null;
    const files = value.object.get("files") orelse return null;
    if (files != .object) return null;
    const sums = try arena.alloc(FileSum, files.object.count());
    for (sums, files.object.keys(), files.object.values()) |*sum, name, entry| {
        if (entry != .object or !isPlainName(name)) return null;
        const size = json.getInteger(entry.object, "size", &ignored) catch return null;
        const crc = json.getString(entry.object, "crc32c", &ignored) catch return null;
        sum.* = .{
            .name = name,
            .size = std.math.cast(u64, size orelse return null) orelse return null,
            .crc32c = base.checksum.parseCrcHex(crc orelse return null) orelse return null,
        };
    }
    // What was read must be written the same way: a changed byte anywhere shows.
    var again: std.Io.Writer.Allocating = .init(arena);
    writeSums(&again.writer, sums) catch return error.OutOfMemory;
    return if (std.mem.eql(u8, again.written(), text)) sums else null;
}

fn isPlainName(name: []const u8) bool {
    if (name.len == 0 or name[0] == '.') return false;
    for (name) |c| if (c == '/' or c == '\\' or c < 0x20) return false;
    return true;
}

/// Compares one file with what was written.
pub fn checkFile(gpa: Allocator, storage: Storage, path: []const u8, sum: FileSum, diag: *Diagnostic) Error!void {
    const file = try base.storage.join(gpa, path, sum.name);
    defer gpa.free(file);

    var mapping = storage.map(file) catch |err| {
        if (err == error.FileNotFound) {
            diag.set("{s} is missing", .{file});
            return error.DamagedCheckpoint;
        }
        base.storage.explain(diag, err, "read", file);
        return err;
    };
    defer mapping.unmap();

    if (mapping.bytes.len != sum.size) {
        diag.set("{s} has {d} bytes; {d} were written", .{ file, mapping.bytes.len, sum.size });
        return error.DamagedCheckpoint;
    }
    if (base.checksum.crc32c(mapping.bytes) != sum.crc32c) {
        diag.set("{s} fails its checksum", .{file});
        return error.DamagedCheckpoint;
    }
}

/// Whether the folder is whole: every listed file as written, or, without a list, every known file of sound structure.
pub fn verify(gpa: Allocator, storage: Storage, path: []const u8, diag: *Diagnostic) Error!void {
    var arena: std.heap.ArenaAllocator = .init(gpa);
    defer arena.deinit();

    const a = arena.allocator();
    var has_model = false;
    for ([_][]const u8{ model_name, index_name, adapter_name }) |name| {
        if (try storage.kind(try base.storage.join(a, path, name)) == .file) has_model = true;
    }
    if (!has_model) {
        diag.set("{s} holds no {s}", .{ path, model_name });
        return error.IncompleteCheckpoint;
    }
    if (try readSums(a, storage, path, diag)) |sums| {
        for (sums) |sum| try checkFile(gpa, storage, path, sum, diag);
        // The list must cover what matters, or a file could be swapped unseen.
        for ([_][]const u8{ config_name, model_name, optimizer_name, state_name, adapter_name, adapter_config_name }) |name| {
            if (try storage.kind(try base.storage.join(a, path, name)) == null) continue;
            for (sums) |sum| {
                if (std.mem.eql(u8, sum.name, name)) break;
            } else {
                diag.set("{s}/{s} is not in " ++ checksums_name, .{ path, name });
                return error.DamagedCheckpoint;
            }
        }
        return;
    }
    for ([_][]const u8{ model_name, adapter_name, optimizer_name }) |name| {
        const file = try base.storage.join(a, path, name);
        if (try storage.kind(file) == null) continue;
        var mapping = try storage.map(file);
        defer mapping.unmap();

        var parsed = formats.safetensors.parse(gpa, mapping.bytes, diag) catch |err| {
            if (err == error.OutOfMemory) return error.OutOfMemory;
            diag.prepend("{s}: ", .{file});
            return error.DamagedCheckpoint;
        };
        parsed.deinit();
    }
}

const testing = std.testing;

test "a step has one spelling" {
    try testing.expectEqual(120, stepOf("checkpoint-120").?);
    try testing.expectEqual(0, stepOf("checkpoint-0").?);
    for ([_][]const u8{ "checkpoint-", "checkpoint-01", "checkpoint-1x", "checkpoint--1", "checkpoint-18446744073709551616", "checkpoint-5.tmp-0000000000000001", "ckpt-1" }) |name|
        try testing.expectEqual(null, stepOf(name));
}

test "any changed byte of the list of checksums is noticed" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();

    const a = arena.allocator();
    const sums = [_]FileSum{ .{ .name = "config.json", .size = 12, .crc32c = 0xab }, .{ .name = "model.safetensors", .size = 1 << 40, .crc32c = 0xdeadbeef } };
    var out: std.Io.Writer.Allocating = .init(a);
    try writeSums(&out.writer, &sums);
    const read = (try parseSums(a, out.written())).?;
    try testing.expectEqualDeep(@as([]const FileSum, &sums), read);
    const text = try a.dupe(u8, out.written());
    for (0..text.len * 8) |bit| {
        text[bit / 8] ^= @as(u8, 1) << @intCast(bit % 8);
        defer text[bit / 8] ^= @as(u8, 1) << @intCast(bit % 8);

        // A flipped name or digit still parses, and then the folder does not match it.
        if (try parseSums(a, text)) |other| {
            var same = other.len == sums.len;
            if (same) for (other, sums) |x, y| {
                if (!std.mem.eql(u8, x.name, y.name) or x.size != y.size or x.crc32c != y.crc32c) same = false;
            };
            try testing.expect(!same);
        }
    }
}
