//! Files group: GGUF out of a model folder or an adapter, and a look into a GGUF file.

const std = @import("std");
const abi = @import("abi");
const c = @import("abi_h");
const failure = @import("failure.zig");
const out = @import("out.zig");

const Status = failure.Status;
const gguf = abi.formats.gguf;
const gguf_export = abi.formats.gguf_export;

pub fn abt_export_gguf(options: ?*const c.abt_export_options, bytes: ?*u64, tensors: ?*u64) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    var arena: std.heap.ArenaAllocator = .init(out.gpa);
    defer arena.deinit();

    var given = readOptions(arena.allocator(), options, &status) orelse return status;
    const pool = abi.base.Pool.init(out.gpa, options.?.threads) catch |err| return failure.from(err, c.ABT_STATUS_INTERNAL, null);
    defer pool.deinit();

    given.pool = pool;
    var diag: failure.Diagnostic = .{};
    abi.checkpoint.checkModelSums(out.gpa, out.io(), given.source.folder, &diag) catch |err| return failure.from(err, c.ABT_STATUS_CHECKPOINT, &diag);
    var merged: Merged = .{};
    defer merged.deinit();

    if (out.optionalString(options.?.adapter)) |path| {
        merged.open(given.source.folder, path, &diag) catch |err| return failure.from(err, c.ABT_STATUS_CHECKPOINT, &diag);
        given.delta = merged.rows.?.delta();
    }
    const report = gguf_export.exportGguf(out.gpa, out.io(), given, &diag) catch |err| return failure.from(err, c.ABT_STATUS_FORMAT, &diag);
    if (bytes) |p| p.* = report.bytes;
    if (tensors) |p| p.* = report.tensors;
    return c.ABT_STATUS_OK;
}

pub fn abt_export_gguf_size(options: ?*const c.abt_export_options, bytes: ?*u64) callconv(.c) Status {
    const result = bytes orelse return failure.nullArgument("bytes");
    result.* = 0;
    var status: Status = c.ABT_STATUS_OK;
    var arena: std.heap.ArenaAllocator = .init(out.gpa);
    defer arena.deinit();

    var given = readOptions(arena.allocator(), options, &status) orelse return status;
    var diag: failure.Diagnostic = .{};
    var merged: Merged = .{};
    defer merged.deinit();

    if (out.optionalString(options.?.adapter)) |path| {
        merged.open(given.source.folder, path, &diag) catch |err| return failure.from(err, c.ABT_STATUS_CHECKPOINT, &diag);
        given.delta = merged.rows.?.delta();
    }
    result.* = gguf_export.predictSize(out.gpa, out.io(), given, &diag) catch |err| return failure.from(err, c.ABT_STATUS_FORMAT, &diag);
    return c.ABT_STATUS_OK;
}

/// An adapter that is added to the model on its way into the file.
const Merged = struct {
    layout: ?abi.arch.Layout = null,
    adapter: ?abi.checkpoint.LoadedAdapter(f32) = null,
    rows: ?abi.checkpoint.MergedRows = null,

    fn open(self: *Merged, folder: []const u8, path: []const u8, diag: *failure.Diagnostic) !void {
        var disk: abi.base.storage.Disk = .init(out.io());
        const config = try abi.checkpoint.model_file.readConfig(out.gpa, disk.storage(), folder, diag);
        self.layout = try abi.arch.Layout.init(out.gpa, config);
        self.adapter = try abi.checkpoint.loadAdapter(f32, out.gpa, out.io(), path, .{ .config = config, .layout = &self.layout.? }, diag);
        if (abi.checkpoint.MergedRows.changesTied(&self.layout.?, &self.adapter.?)) {
            diag.set("{s} changes the embedding or the head, but the model has one matrix for both. Merge it into a model folder first, and export that", .{path});
            return error.InvalidAdapter;
        }
        self.rows = try .init(out.gpa, &self.layout.?, &self.adapter.?);
    }

    fn deinit(self: *Merged) void {
        if (self.rows) |*rows| rows.deinit(out.gpa);
        if (self.adapter) |*adapter| adapter.deinit(out.gpa);
        if (self.layout) |*layout| layout.deinit();
    }
};

fn readOptions(arena: std.mem.Allocator, options: ?*const c.abt_export_options, status: *Status) ?gguf_export.Options {
    const o = options orelse {
        status.* = failure.nullArgument("options");
        return null;
    };
    if (out.wrongSize(c.abt_export_options, o.struct_size)) |wrong| {
        status.* = wrong;
        return null;
    }
    const source = out.string(o.source, "source", status) orelse return null;
    const out_path = out.string(o.out_path, "out_path", status) orelse return null;
    const mix: ?abi.formats.gguf_mix.Mix = if (out.optionalString(o.mix)) |name| abi.formats.gguf_mix.Mix.fromName(name) orelse {
        status.* = failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "mix is \"{s}\"; it must be " ++ abi.formats.gguf_mix.Mix.names, .{name[0..@min(name.len, 40)]});
        return null;
    } else null;
    const about = if (out.optionalString(o.about_json)) |text| readFacts(arena, text, status) orelse return null else &.{};
    const dtype = if (mix != null) "f32" else out.string(o.dtype, "dtype", status) orelse return null;
    const experts = if (out.optionalString(o.experts)) |name| std.meta.stringToEnum(gguf_export.Experts, name) orelse {
        status.* = failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "experts is \"{s}\"; it must be keep, changed_as_bf16 or expand", .{name[0..@min(name.len, 40)]});
        return null;
    } else gguf_export.Experts.keep;
    return .{
        .source = .{ .folder = source },
        .out_path = out_path,
        .mix = mix,
        .experts = experts,
        .dtype = abi.tensor.DType.fromLabel(dtype) orelse {
            status.* = failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "dtype is \"{s}\"; it must be f32, f16, bf16, q8_0 or another type of GGUF", .{dtype[0..@min(dtype.len, 40)]});
            return null;
        },
        .name = out.optionalString(o.name),
        .tokenizer = if (o.without_tokenizer != 0) .none else if (out.optionalString(o.tokenizer_dir)) |folder| .{ .folder = folder } else .from_source,
        .about = about,
        .pre = out.optionalString(o.pre),
    };
}

/// An object of texts and whole numbers, under keys that the exporter does not write itself.
fn readFacts(arena: std.mem.Allocator, text: []const u8, status: *Status) ?[]const gguf_export.Fact {
    var diag: failure.Diagnostic = .{};
    const value = abi.formats.json.parse(arena, text, .{ .size_bytes = 1 << 20 }, &diag) catch |err| {
        status.* = failure.from(err, c.ABT_STATUS_INVALID_ARGUMENT, &diag);
        return null;
    };
    const object = switch (value) {
        .object => |object| object,
        else => {
            status.* = failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "about_json is no object of keys and values", .{});
            return null;
        },
    };
    const facts = arena.alloc(gguf_export.Fact, object.count()) catch |err| {
        status.* = failure.from(err, c.ABT_STATUS_INTERNAL, null);
        return null;
    };
    for (facts, object.keys(), object.values()) |*fact, key, held| {
        fact.* = .{ .key = key, .value = switch (held) {
            .string => |string| .{ .text = string },
            .integer => |n| .{ .count = std.math.cast(u32, n) orelse return refuseFact(key, status) },
            else => return refuseFact(key, status),
        } };
        if (!isFree(key)) return refuseFact(key, status);
    }
    return facts;
}

fn refuseFact(key: []const u8, status: *Status) ?[]const gguf_export.Fact {
    status.* = failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "about_json: \"{f}\" is no text or 32-bit number under a key of general. that is free", .{abi.base.bytes.printable(key[0..@min(key.len, 64)])});
    return null;
}

fn isFree(key: []const u8) bool {
    const prefix = "general.";
    if (!std.mem.startsWith(u8, key, prefix) or key.len == prefix.len or key.len > 200) return false;
    for ([_][]const u8{ "architecture", "type", "name", "file_type", "quantization_version", "alignment" }) |own| {
        if (std.mem.eql(u8, key[prefix.len..], own)) return false;
    }
    return true;
}

pub fn abt_export_adapter_gguf(options: ?*const c.abt_adapter_export_options, bytes: ?*u64, tensors: ?*u64) callconv(.c) Status {
    const o = options orelse return failure.nullArgument("options");
    if (out.wrongSize(c.abt_adapter_export_options, o.struct_size)) |wrong| return wrong;
    var status: Status = c.ABT_STATUS_OK;
    const adapter = out.string(o.adapter, "adapter", &status) orelse return status;
    const out_path = out.string(o.out_path, "out_path", &status) orelse return status;
    const dtype = out.string(o.dtype, "dtype", &status) orelse return status;
    var diag: failure.Diagnostic = .{};
    const report = abi.formats.adapter_gguf.exportAdapter(out.gpa, out.io(), .{
        .adapter = adapter,
        .model = out.optionalString(o.model),
        .out_path = out_path,
        .dtype = abi.tensor.DType.fromLabel(dtype) orelse
            return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "dtype is \"{s}\"; it must be f32, f16 or bf16", .{dtype[0..@min(dtype.len, 40)]}),
        .name = out.optionalString(o.name),
    }, &diag) catch |err| return failure.from(err, c.ABT_STATUS_FORMAT, &diag);
    if (bytes) |p| p.* = report.bytes;
    if (tensors) |p| p.* = report.tensors;
    return c.ABT_STATUS_OK;
}

pub fn abt_gguf_inspect_json(path: ?[*:0]const u8, array_limit: u64, buffer: ?[*]u8, capacity: usize, needed: ?*usize) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const name = out.string(path, "path", &status) orelse return status;
    var diag: failure.Diagnostic = .{};
    var disk: abi.base.storage.Disk = .init(out.io());
    var mapping = disk.storage().map(name) catch |err| {
        abi.base.storage.explain(&diag, err, "read", name);
        return failure.from(err, c.ABT_STATUS_IO, &diag);
    };
    defer mapping.unmap();

    var file = gguf.File.parse(out.gpa, mapping.bytes, &diag) catch |err| {
        diag.prepend("{s}: ", .{name});
        return failure.from(err, c.ABT_STATUS_FORMAT, &diag);
    };
    defer file.deinit();

    var text: std.Io.Writer.Allocating = .init(out.gpa);
    defer text.deinit();

    writeFile(&file, array_limit, &text.writer) catch return failure.from(error.OutOfMemory, c.ABT_STATUS_FORMAT, null);
    return out.fill(text.written(), buffer, capacity, needed);
}

fn writeFile(file: *const gguf.File, array_limit: u64, writer: *std.Io.Writer) std.Io.Writer.Error!void {
    var json: std.json.Stringify = .{ .writer = writer };
    try json.beginObject();
    try json.objectField("version");
    try json.write(file.version);
    try json.objectField("alignment");
    try json.write(file.alignment);
    try json.objectField("keys");
    try json.beginObject();
    for (file.key_values) |entry| {
        try json.objectField(entry.key);
        try writeValue(&json, entry.value, array_limit);
    }
    try json.endObject();
    try json.objectField("tensors");
    try json.beginArray();
    for (file.tensors) |*info| try json.write(.{
        .name = info.name,
        .dtype = info.dtype.label(),
        .shape = info.dims(),
        .offset = info.offset,
        .bytes = info.data.len,
    });
    try json.endArray();
    try json.endObject();
}

fn writeValue(json: *std.json.Stringify, value: gguf.Value, array_limit: u64) std.Io.Writer.Error!void {
    switch (value) {
        .array => |array| {
            if (array.count > array_limit or array.element == .array)
                return json.write(.{ .type = @tagName(array.element), .count = array.count });
            try json.beginArray();
            switch (array.element) {
                .string => {
                    var it = array.strings();
                    while (it.next()) |text| try writeText(json, text);
                },
                .f32 => for (0..array.count) |i| try writeFloat(json, array.at(f32, i)),
                .f64 => for (0..array.count) |i| try writeFloat(json, array.at(f64, i)),
                inline .u8, .i8, .u16, .i16, .u32, .i32, .u64, .i64 => |kind| {
                    const T = @FieldType(gguf.Value, @tagName(kind));
                    for (0..array.count) |i| try json.write(array.at(T, i));
                },
                .bool => for (array.raw) |byte| try json.write(byte != 0),
                .array => unreachable, // Shown as type and count above.
            }
            try json.endArray();
        },
        .string => |text| try writeText(json, text),
        .f32 => |x| try writeFloat(json, x),
        .f64 => |x| try writeFloat(json, x),
        inline else => |x| try json.write(x),
    }
}

/// JSON has no spelling for what is not finite.
fn writeFloat(json: *std.json.Stringify, x: anytype) std.Io.Writer.Error!void {
    if (std.math.isFinite(x)) try json.write(x) else try json.write(null);
}

/// Text of a file may be anything; JSON is UTF-8. What is not becomes a list of bytes.
fn writeText(json: *std.json.Stringify, text: []const u8) std.Io.Writer.Error!void {
    if (std.unicode.utf8ValidateSlice(text)) return json.write(text);
    try json.beginArray();
    for (text) |byte| try json.write(byte);
    try json.endArray();
}
