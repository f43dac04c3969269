//! ABI's own checkpoint files, version 1: ABLC (weights and Adam's moments) and ABIC (weights alone), import and export.
//!
//! Little-endian, no padding. ABLC: "ABLC", u16 version, u64 step, u32 epoch, u64 tokens, u64 timestamp, u32 counts of weights,
//! m and v, then the three arrays of f32. ABIC: "ABIC", u16 version, u64 step, u64 timestamp, u32 count, one array.
//! The files hold no shape: the flat order is `arch.Layout`'s, and a count that differs from it is refused. They know neither
//! biases nor q/k norms, so models with them are refused by the tensor's name. No limit on size; written atomically.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const Allocator = std.mem.Allocator;
const Diagnostic = base.Diagnostic;
const Storage = base.storage.Storage;

pub const ablc_header_bytes = 46;
pub const abic_header_bytes = 26;

pub const Error = base.storage.Error || error{
    /// Not "ABLC" or "ABIC".
    BadMagic,
    /// Another version than 1.
    UnsupportedVersion,
    /// Shorter than its header, or than its counts say.
    Truncated,
    /// Bytes behind the last array.
    TrailingBytes,
    /// The counts do not fit the model.
    CountMismatch,
    /// The model has a tensor these formats cannot say.
    UnsupportedModel,
    /// More than 2³² − 1 parameters.
    TooManyParameters,
    NonFiniteWeights,
};

pub const Kind = enum {
    ablc,
    abic,
};

/// What stands before the arrays.
pub const Header = struct {
    kind: Kind,
    step: u64,
    /// ABLC only.
    epoch: u32 = 0,
    /// ABLC only.
    tokens_processed: u64 = 0,
    /// Seconds since 1970 as the writer knew them; ABI itself often wrote 0.
    timestamp: u64 = 0,
    weights: u32,
    first_moments: u32 = 0,
    second_moments: u32 = 0,
};

/// The arrays of a file, as bytes of any alignment.
pub const Parsed = struct {
    header: Header,
    weights: []const u8,
    first_moment: []const u8,
    second_moment: []const u8,
};

/// Reads a whole file of either kind.
pub fn parse(bytes: []const u8, diag: *Diagnostic) Error!Parsed {
    if (bytes.len < 6) {
        diag.set("the file has {d} bytes and is cut off, or is no ABLC or ABIC checkpoint", .{bytes.len});
        return error.Truncated;
    }
    const kind: Kind = if (std.mem.eql(u8, bytes[0..4], "ABLC")) .ablc else if (std.mem.eql(u8, bytes[0..4], "ABIC")) .abic else {
        diag.set("the file begins with bytes {x}; an ABI checkpoint begins with \"ABLC\" or \"ABIC\"", .{bytes[0..4]});
        return error.BadMagic;
    };
    const version = std.mem.readInt(u16, bytes[4..6], .little);
    if (version != 1) {
        diag.set("version {d}; only version 1 exists", .{version});
        return error.UnsupportedVersion;
    }
    const header_bytes: usize = if (kind == .ablc) ablc_header_bytes else abic_header_bytes;
    if (bytes.len < header_bytes) {
        diag.set("the file has {d} bytes; its header alone has {d}", .{ bytes.len, header_bytes });
        return error.Truncated;
    }
    const header: Header = switch (kind) {
        .ablc => .{
            .kind = .ablc,
            .step = std.mem.readInt(u64, bytes[6..14], .little),
            .epoch = std.mem.readInt(u32, bytes[14..18], .little),
            .tokens_processed = std.mem.readInt(u64, bytes[18..26], .little),
            .timestamp = std.mem.readInt(u64, bytes[26..34], .little),
            .weights = std.mem.readInt(u32, bytes[34..38], .little),
            .first_moments = std.mem.readInt(u32, bytes[38..42], .little),
            .second_moments = std.mem.readInt(u32, bytes[42..46], .little),
        },
        .abic => .{
            .kind = .abic,
            .step = std.mem.readInt(u64, bytes[6..14], .little),
            .timestamp = std.mem.readInt(u64, bytes[14..22], .little),
            .weights = std.mem.readInt(u32, bytes[22..26], .little),
        },
    };
    const total = (@as(u64, header.weights) + header.first_moments + header.second_moments) * 4 + header_bytes;
    if (bytes.len != total) {
        diag.set("the counts ({d}, {d}, {d}) need {d} bytes; the file has {d}", .{ header.weights, header.first_moments, header.second_moments, total, bytes.len });
        return if (bytes.len < total) error.Truncated else error.TrailingBytes;
    }
    const w_end = header_bytes + @as(usize, header.weights) * 4;
    const m_end = w_end + @as(usize, header.first_moments) * 4;
    return .{
        .header = header,
        .weights = bytes[header_bytes..w_end],
        .first_moment = bytes[w_end..m_end],
        .second_moment = bytes[m_end..],
    };
}

/// Where the arrays of a file go. Moments that are not asked for are skipped.
pub fn Target(comptime T: type) type {
    return struct {
        weights: []T,
        first_moment: ?[]T = null,
        second_moment: ?[]T = null,
    };
}

/// Reads a file into buffers laid out by `layout`. Moments that are asked for must be in the file.
pub fn importFile(comptime T: type, gpa: Allocator, io: std.Io, path: []const u8, layout: *const arch.Layout, into: Target(T), diag: *Diagnostic) Error!Header {
    _ = gpa;
    var disk: base.storage.Disk = .init(io);
    return importOn(T, disk.storage(), path, layout, into, diag);
}

pub fn importOn(comptime T: type, storage: Storage, path: []const u8, layout: *const arch.Layout, into: Target(T), diag: *Diagnostic) Error!Header {
    var mapping = storage.map(path) catch |err| {
        base.storage.explain(diag, err, "read", path);
        return err;
    };
    defer mapping.unmap();

    return importBytes(T, mapping.bytes, layout, into, diag) catch |err| {
        diag.prepend("{s}: ", .{path});
        return err;
    };
}

fn importBytes(comptime T: type, bytes: []const u8, layout: *const arch.Layout, into: Target(T), diag: *Diagnostic) Error!Header {
    try requireExpressible(layout, diag);
    const parsed = try parse(bytes, diag);
    const arrays = .{
        .{ "weights", parsed.weights, @as(?[]T, into.weights) },
        .{ "first moments", parsed.first_moment, into.first_moment },
        .{ "second moments", parsed.second_moment, into.second_moment },
    };
    // All counts first: a refused file changes nothing.
    inline for (arrays, 0..) |array, i| {
        const count = array[1].len / 4;
        const may_be_absent = i > 0 and array[2] == null;
        if (count != layout.total and !(may_be_absent and count == 0)) {
            diag.set("the file has {d} {s}; the model has {d} parameters. It is another model's checkpoint, or has no such part", .{ count, array[0], layout.total });
            return error.CountMismatch;
        }
    }
    inline for (arrays) |array| if (array[2]) |out| {
        std.debug.assert(out.len == layout.total);
        for (out, 0..) |*o, i| o.* = @as(f32, @bitCast(std.mem.readInt(u32, array[1][i * 4 ..][0..4], .little)));
        try requireFinite(T, layout, array[0], out, diag);
    };
    return parsed.header;
}

fn requireFinite(comptime T: type, layout: *const arch.Layout, what: []const u8, values: []const T, diag: *Diagnostic) Error!void {
    for (layout.parameters) |p| {
        if (@import("model_file.zig").firstNonFinite(T, p.sliceConst(T, values))) |at| {
            diag.set("{s} of \"{s}\": element {d} is {d}", .{ what, p.name, at, p.sliceConst(T, values)[at] });
            return error.NonFiniteWeights;
        }
    }
}

fn requireExpressible(layout: *const arch.Layout, diag: *Diagnostic) Error!void {
    for (layout.parameters) |p| {
        if (p.role.isBias() or p.role == .q_norm or p.role == .k_norm) {
            diag.set("the model has \"{s}\", which ABI's checkpoint formats cannot hold. Use a checkpoint folder instead", .{p.name});
            return error.UnsupportedModel;
        }
    }
    if (layout.total > std.math.maxInt(u32)) {
        diag.set("the model has {d} parameters; ABI's checkpoint formats count to {d}", .{ layout.total, std.math.maxInt(u32) });
        return error.TooManyParameters;
    }
}

/// What an export holds. Values of f64 are rounded to f32, the only type of the formats.
pub fn Source(comptime T: type) type {
    return struct {
        step: u64,
        epoch: u32 = 0,
        tokens_processed: u64 = 0,
        timestamp: u64 = 0,
        weights: []const T,
        /// ABLC only; null writes an empty array.
        first_moment: ?[]const T = null,
        second_moment: ?[]const T = null,
    };
}

/// Writes a file of the given kind, atomically. ABI names them `llm_step_<N>.ckpt` (ABLC) and `step_<N>.ckpt` (ABIC).
pub fn exportFile(comptime T: type, gpa: Allocator, io: std.Io, path: []const u8, kind: Kind, layout: *const arch.Layout, source: Source(T), diag: *Diagnostic) Error!void {
    var disk: base.storage.Disk = .init(io);
    return exportOn(T, gpa, disk.storage(), path, kind, layout, source, diag);
}

pub fn exportOn(comptime T: type, gpa: Allocator, storage: Storage, path: []const u8, kind: Kind, layout: *const arch.Layout, source: Source(T), diag: *Diagnostic) Error!void {
    try requireExpressible(layout, diag);
    const arrays = [_]struct { []const u8, []const T }{
        .{ "weights", source.weights },
        .{ "first moments", source.first_moment orelse &.{} },
        .{ "second moments", source.second_moment orelse &.{} },
    };
    for (arrays) |array| {
        if (array[1].len == 0) continue;
        std.debug.assert(array[1].len == layout.total);
        try requireFinite(T, layout, array[0], array[1], diag);
    }
    write(T, gpa, storage, path, kind, source.weights, source, diag) catch |err| {
        if (diag.text().len == 0) base.storage.explain(diag, err, "write", path);
        return err;
    };
}

fn write(comptime T: type, gpa: Allocator, storage: Storage, path: []const u8, kind: Kind, weights: []const T, source: Source(T), diag: *Diagnostic) Error!void {
    diag.clear();
    const buffer = try gpa.alloc(u8, 64 << 10);
    defer gpa.free(buffer);

    var file = try base.storage.AtomicFile.create(gpa, storage, path, buffer);
    defer file.deinit();

    writeAll(T, &file.writer.interface, kind, weights, source) catch return file.writer.cause();
    const digest = try file.finish();
    var mapping = try file.map();
    defer mapping.unmap();

    _ = try parse(mapping.bytes, diag);
    if (base.checksum.crc32c(mapping.bytes) != digest.crc32c) {
        diag.set("{s}: what was read back is not what was written. Check the disk", .{path});
        return error.InputOutput;
    }
    try file.commit();
}

fn writeAll(comptime T: type, w: *std.Io.Writer, kind: Kind, weights: []const T, source: Source(T)) std.Io.Writer.Error!void {
    const m = source.first_moment orelse &.{};
    const v = source.second_moment orelse &.{};
    try w.writeAll(if (kind == .ablc) "ABLC" else "ABIC");
    try w.writeInt(u16, 1, .little);
    try w.writeInt(u64, source.step, .little);
    if (kind == .ablc) {
        try w.writeInt(u32, source.epoch, .little);
        try w.writeInt(u64, source.tokens_processed, .little);
    }
    try w.writeInt(u64, source.timestamp, .little);
    try w.writeInt(u32, @intCast(weights.len), .little); // `requireExpressible` has bounded it.
    if (kind == .ablc) {
        try w.writeInt(u32, @intCast(m.len), .little);
        try w.writeInt(u32, @intCast(v.len), .little);
    }
    try writeFloats(T, w, weights);
    if (kind == .ablc) {
        try writeFloats(T, w, m);
        try writeFloats(T, w, v);
    }
}

fn writeFloats(comptime T: type, w: *std.Io.Writer, values: []const T) std.Io.Writer.Error!void {
    if (T == f32) return w.writeAll(std.mem.sliceAsBytes(values));
    for (values) |value| try w.writeInt(u32, @bitCast(@as(f32, @floatCast(value))), .little);
}

const testing = std.testing;

const small: arch.ModelConfig = .{
    .vocab_size = 5,
    .hidden_size = 4,
    .intermediate_size = 6,
    .num_hidden_layers = 1,
    .num_attention_heads = 2,
    .num_key_value_heads = 1,
    .head_dim = 2,
};

const Rig = struct {
    disk: base.storage.MemoryDisk,
    layout: arch.Layout,
    values: [3][]f32,

    fn init() !Rig {
        var self: Rig = .{ .disk = try .init(testing.allocator), .layout = try .init(testing.allocator, small), .values = undefined };
        for (&self.values, 0..) |*v, k| {
            v.* = try testing.allocator.alloc(f32, self.layout.total);
            for (v.*, 0..) |*x, i| x.* = @as(f32, @floatFromInt(i + 1)) * 0.25 + @as(f32, @floatFromInt(k)) * 1000;
        }
        return self;
    }

    fn deinit(self: *Rig) void {
        for (self.values) |v| testing.allocator.free(v);
        self.layout.deinit();
        self.disk.deinit();
    }
};

test "ABLC and ABIC have ABI's bytes and come back as they were" {
    var rig = try Rig.init();
    defer rig.deinit();

    const s = rig.disk.storage();
    var diag: Diagnostic = .{};
    try exportOn(f32, testing.allocator, s, "llm_step_7.ckpt", .ablc, &rig.layout, .{
        .step = 7,
        .epoch = 2,
        .tokens_processed = 4096,
        .timestamp = 99,
        .weights = rig.values[0],
        .first_moment = rig.values[1],
        .second_moment = rig.values[2],
    }, &diag);
    const n = rig.layout.total;
    try testing.expectEqual(46 + 12 * n, try rig.disk.fileSize("llm_step_7.ckpt"));
    const bytes = try s.readAlloc(testing.allocator, "llm_step_7.ckpt");
    defer testing.allocator.free(bytes);

    const expected = "ABLC" ++ "\x01\x00" ++ "\x07\x00\x00\x00\x00\x00\x00\x00" ++ "\x02\x00\x00\x00" ++
        "\x00\x10\x00\x00\x00\x00\x00\x00" ++ "\x63\x00\x00\x00\x00\x00\x00\x00";
    try testing.expectEqualStrings(expected, bytes[0..34]);
    try testing.expectEqual(n, std.mem.readInt(u32, bytes[42..46], .little));

    var back: [3][]f64 = undefined;
    for (&back) |*b| b.* = try testing.allocator.alloc(f64, n);
    defer for (back) |b| testing.allocator.free(b);

    const header = try importOn(f64, s, "llm_step_7.ckpt", &rig.layout, .{ .weights = back[0], .first_moment = back[1], .second_moment = back[2] }, &diag);
    try testing.expectEqualDeep(Header{ .kind = .ablc, .step = 7, .epoch = 2, .tokens_processed = 4096, .timestamp = 99, .weights = @intCast(n), .first_moments = @intCast(n), .second_moments = @intCast(n) }, header);
    for (rig.values, back) |x, y| for (x, y) |a, b| try testing.expectEqual(a, b);

    try exportOn(f64, testing.allocator, s, "step_7.ckpt", .abic, &rig.layout, .{ .step = 7, .weights = back[0] }, &diag);
    try testing.expectEqual(26 + 4 * n, try rig.disk.fileSize("step_7.ckpt"));
    const only = try testing.allocator.alloc(f32, n);
    defer testing.allocator.free(only);

    const abic = try importOn(f32, s, "step_7.ckpt", &rig.layout, .{ .weights = only }, &diag);
    try testing.expectEqual(Kind.abic, abic.kind);
    try testing.expectEqualSlices(f32, rig.values[0], only);
    try testing.expectError(error.CountMismatch, importOn(f32, s, "step_7.ckpt", &rig.layout, .{ .weights = only, .first_moment = rig.values[1] }, &diag));
}

test "each kind of bad file is refused with its own error" {
    var rig = try Rig.init();
    defer rig.deinit();

    const s = rig.disk.storage();
    var diag: Diagnostic = .{};
    try exportOn(f32, testing.allocator, s, "a", .ablc, &rig.layout, .{ .step = 1, .weights = rig.values[0] }, &diag);
    const good = try s.readAlloc(testing.allocator, "a");
    defer testing.allocator.free(good);

    for (0..good.len) |len| try testing.expectError(error.Truncated, parse(good[0..len], &diag));
    const longer = try std.mem.concat(testing.allocator, u8, &.{ good, "x" });
    defer testing.allocator.free(longer);

    try testing.expectError(error.TrailingBytes, parse(longer, &diag));
    good[0] = 'X';
    try testing.expectError(error.BadMagic, parse(good, &diag));
    good[0] = 'A';
    good[4] = 2;
    try testing.expectError(error.UnsupportedVersion, parse(good, &diag));
    good[4] = 1;
    @memset(good[34..46], 0xff); // Three counts of 2³² − 1 must not wrap.
    try testing.expectError(error.Truncated, parse(good, &diag));

    var other_config = small;
    other_config.vocab_size = 6;
    var other: arch.Layout = try .init(testing.allocator, other_config);
    defer other.deinit();

    const out = try testing.allocator.alloc(f32, other.total);
    defer testing.allocator.free(out);

    try testing.expectError(error.CountMismatch, importOn(f32, s, "a", &other, .{ .weights = out }, &diag));
    var counts: [64]u8 = undefined;
    try testing.expect(std.mem.find(u8, diag.text(), try std.fmt.bufPrint(&counts, "{d} weights", .{rig.layout.total})) != null);
    try testing.expect(std.mem.find(u8, diag.text(), try std.fmt.bufPrint(&counts, "has {d} parameters", .{other.total})) != null);
}

test "a model the formats cannot say, or one that diverged, is refused by name" {
    var rig = try Rig.init();
    defer rig.deinit();

    const s = rig.disk.storage();
    var diag: Diagnostic = .{};
    var biased_config = small;
    biased_config.qkv_bias = true;
    var biased: arch.Layout = try .init(testing.allocator, biased_config);
    defer biased.deinit();

    const weights = try testing.allocator.alloc(f32, biased.total);
    defer testing.allocator.free(weights);

    @memset(weights, 1);
    try testing.expectError(error.UnsupportedModel, exportOn(f32, testing.allocator, s, "b", .abic, &biased, .{ .step = 1, .weights = weights }, &diag));
    try testing.expect(std.mem.find(u8, diag.text(), "model.layers.0.self_attn.q_proj.bias") != null);

    rig.values[0][3] = std.math.nan(f32);
    try testing.expectError(error.NonFiniteWeights, exportOn(f32, testing.allocator, s, "b", .abic, &rig.layout, .{ .step = 1, .weights = rig.values[0] }, &diag));
    try testing.expect(std.mem.find(u8, diag.text(), "model.embed_tokens.weight") != null);
    try testing.expectEqual(null, try s.kind("b"));
}

test "an export cut at any operation leaves the old file" {
    var rig = try Rig.init();
    defer rig.deinit();

    var at: usize = 0;
    while (at < 8) : (at += 1) {
        var disk: base.storage.MemoryDisk = try .init(testing.allocator);
        defer disk.deinit();

        const s = disk.storage();
        var diag: Diagnostic = .{};
        try exportOn(f32, testing.allocator, s, "a", .abic, &rig.layout, .{ .step = 1, .weights = rig.values[0] }, &diag);
        disk.fault = .{ .at = disk.operations + at, .what = .power_off_after };
        const saved = if (exportOn(f32, testing.allocator, s, "a", .abic, &rig.layout, .{ .step = 2, .weights = rig.values[1] }, &diag)) |_| true else |_| false;
        try disk.reboot(.reorder, at);
        const header = try importOn(f32, s, "a", &rig.layout, .{ .weights = rig.values[2] }, &diag);
        try testing.expect(header.step == 2 or (header.step == 1 and !saved));
    }
}
