//! Tests of the safetensors reader and writer: one bad file for each error, round trips, hostile prefixes.

const std = @import("std");
const base = @import("base");
const safetensors = @import("safetensors.zig");
const testing = std.testing;
const Diagnostic = base.Diagnostic;
const parse = safetensors.parse;

/// A file of this header and this many zero bytes of data. Caller frees.
fn fileOf(header: []const u8, data_len: usize) ![]u8 {
    const bytes = try testing.allocator.alloc(u8, 8 + header.len + data_len);
    std.mem.writeInt(u64, bytes[0..8], header.len, .little);
    @memcpy(bytes[8..][0..header.len], header);
    @memset(bytes[8 + header.len ..], 0);
    return bytes;
}

const Bad = struct { safetensors.Error, []const u8, usize };

const bad_files = [_]Bad{
    .{ error.HeaderNotUtf8, "{\"\xff\":1}", 0 },
    .{ error.HeaderNotObject, "", 0 },
    .{ error.HeaderNotObject, " {}", 0 },
    .{ error.HeaderNotObject, "[]", 0 },
    .{ error.InvalidJson, "{", 0 },
    .{ error.InvalidJson, "{} x", 0 },
    .{ error.InvalidJson, "{\"a\":1}", 0 },
    .{ error.InvalidJson, "{\"a\":{\"dtype\":1,\"shape\":[],\"data_offsets\":[0,4]}}", 4 },
    .{ error.DuplicateTensor, "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8 },
    .{ error.DuplicateTensor, "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"\\u0061\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8 },
    .{ error.DuplicateField, "{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4 },
    .{ error.DuplicateField, "{\"__metadata__\":{\"k\":\"v\",\"k\":\"w\"}}", 0 },
    .{ error.DuplicateField, "{\"__metadata__\":{},\"__metadata__\":{}}", 0 },
    .{ error.UnknownField, "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":0}}", 4 },
    .{ error.MissingField, "{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4 },
    .{ error.MissingField, "{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4 },
    .{ error.MissingField, "{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4 },
    .{ error.InvalidMetadata, "{\"__metadata__\":{\"k\":1}}", 0 },
    .{ error.InvalidMetadata, "{\"__metadata__\":[]}", 0 },
    .{ error.UnknownDType, "{\"a\":{\"dtype\":\"f32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4 },
    .{ error.UnsupportedDType, "{\"a\":{\"dtype\":\"F8_E4M3\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4 },
    .{ error.InvalidShape, "{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4 },
    .{ error.InvalidShape, "{\"a\":{\"dtype\":\"F32\",\"shape\":[1.0],\"data_offsets\":[0,4]}}", 4 },
    .{ error.InvalidShape, "{\"a\":{\"dtype\":\"F32\",\"shape\":[1e0],\"data_offsets\":[0,4]}}", 4 },
    .{ error.InvalidShape, "{\"a\":{\"dtype\":\"F32\",\"shape\":[[1]],\"data_offsets\":[0,4]}}", 4 },
    .{ error.InvalidShape, "{\"a\":{\"dtype\":\"F32\",\"shape\":[18446744073709551616],\"data_offsets\":[0,4]}}", 4 },
    .{ error.InvalidShape, "{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4 },
    .{ error.InvalidOffsets, "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4 },
    .{ error.InvalidOffsets, "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4 },
    .{ error.InvalidOffsets, "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 8 },
    .{ error.InvalidOffsets, "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 3 },
    .{ error.InvalidOffsets, "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[18446744073709551612,18446744073709551615]}}", 4 },
    .{ error.NotContiguous, "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[8,12]}}", 12 },
    .{ error.NotContiguous, "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4 },
    .{ error.NotContiguous, "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8 },
    .{ error.SizeOverflow, "{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,4]}}", 4 },
    .{ error.SizeOverflow, "{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}", 0 },
    .{ error.SizeMismatch, "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4 },
    .{ error.SizeMismatch, "{\"a\":{\"dtype\":\"F16\",\"shape\":[],\"data_offsets\":[0,4]}}", 4 },
    .{ error.DataSizeMismatch, "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 5 },
    .{ error.DataSizeMismatch, "{}", 1 },
};

test "each bad file is refused with its own error and a sentence" {
    for (bad_files) |bad| {
        const bytes = try fileOf(bad[1], bad[2]);
        defer testing.allocator.free(bytes);

        var diag: Diagnostic = .{};
        testing.expectError(bad[0], parse(testing.allocator, bytes, &diag)) catch |err| {
            std.debug.print("header: {s}\ndiag: {s}\n", .{ bad[1], diag.text() });
            return err;
        };
        try testing.expect(diag.text().len > 0);
    }
}

test "lengths beyond the file or the limit are refused before anything is read" {
    var diag: Diagnostic = .{};
    try testing.expectError(error.FileTooShort, parse(testing.allocator, "1234567", &diag));
    var bytes: [10]u8 = @splat(0);
    for ([_]u64{ 3, 100, safetensors.max_header_bytes }) |claim| {
        std.mem.writeInt(u64, bytes[0..8], claim, .little);
        try testing.expectError(error.HeaderPastEnd, parse(testing.allocator, &bytes, &diag));
    }
    for ([_]u64{ safetensors.max_header_bytes + 1, std.math.maxInt(u64), std.math.maxInt(u64) - 7 }) |claim| {
        std.mem.writeInt(u64, bytes[0..8], claim, .little);
        try testing.expectError(error.HeaderTooLarge, parse(testing.allocator, &bytes, &diag));
    }
}

test "every member of the error set has a bad file above" {
    inline for (@typeInfo(safetensors.Error).error_set.error_names.?) |name| {
        const special = comptime std.mem.eql(u8, name, "OutOfMemory") or std.mem.eql(u8, name, "FileTooShort") or
            std.mem.eql(u8, name, "HeaderTooLarge") or std.mem.eql(u8, name, "HeaderPastEnd");
        if (!special) {
            for (bad_files) |bad| {
                if (std.mem.eql(u8, @errorName(bad[0]), name)) break;
            } else {
                std.debug.print("no bad file for {s}\n", .{name});
                return error.TestUnexpectedResult;
            }
        }
    }
}

fn sample(gpa: std.mem.Allocator) ![]u8 {
    var buffer: [1024]u8 = undefined;
    var out: std.Io.Writer = .fixed(&buffer);
    const entries = [_]safetensors.Entry{
        .{ .name = "w\"quoted\"", .dtype = .f32, .shape = &.{ 2, 3 } },
        .{ .name = "empty", .dtype = .f32, .shape = &.{ 0, 5 } },
        .{ .name = "scalar", .dtype = .f32, .shape = &.{} },
        .{ .name = "half", .dtype = .f16, .shape = &.{2} },
        .{ .name = "brain", .dtype = .bf16, .shape = &.{1} },
    };
    var writer = try safetensors.Writer.begin(gpa, &out, &entries, &.{.{ .key = "format", .value = "pt" }});
    try writer.writeFloats(f32, &.{ 1, 2, 3, 4 });
    try writer.writeFloats(f32, &.{ 5, 6 });
    try writer.writeFloats(f32, &.{});
    try writer.writeFloats(f32, &.{-0.5});
    try writer.writeBytes(&.{ 0x00, 0x3c, 0x00, 0xc0 });
    try writer.writeBytes(&.{ 0x80, 0x3f });
    writer.finish();
    return gpa.dupe(u8, out.buffered());
}

test "what is written is read back, with any allocation failing on the way" {
    try testing.checkAllAllocationFailures(testing.allocator, struct {
        fn run(gpa: std.mem.Allocator) !void {
            const bytes = try sample(gpa);
            defer gpa.free(bytes);

            try testing.expectEqual(0, (8 + std.mem.readInt(u64, bytes[0..8], .little)) % 8);
            var diag: Diagnostic = .{};
            var file = try parse(gpa, bytes, &diag);
            defer file.deinit();

            try testing.expectEqual(5, file.tensors.len);
            try testing.expectEqualStrings("pt", file.metadata[0].value);
            var six: [6]f32 = undefined;
            try testing.expect(file.find("w\"quoted\"").?.read(f32, &six));
            try testing.expectEqual([6]f32{ 1, 2, 3, 4, 5, 6 }, six);
            var two: [2]f64 = undefined;
            try testing.expect(file.find("half").?.read(f64, &two));
            try testing.expectEqual([2]f64{ 1, -2 }, two);
            var one: [1]f32 = undefined;
            try testing.expect(file.find("brain").?.read(f32, &one));
            try testing.expectEqual(@as(f32, 1), one[0]);
            try testing.expect(file.find("scalar").?.read(f32, &one));
            try testing.expectEqual(@as(f32, -0.5), one[0]);
            try testing.expectEqual(0, file.find("empty").?.len());
            try testing.expectEqual(null, file.find("absent"));
        }
    }.run, .{});
}

test "every float type becomes f32 and f64 exactly where it can" {
    const values = [_]f64{ 0, 1, -2, 0.5, 65504, -0.0078125 };
    inline for (.{ f32, f64 }) |T| {
        inline for (.{ .f32, .f64, .f16, .bf16 }) |dtype| {
            var raw: [values.len * 8]u8 = undefined;
            const width = @as(@import("tensor").DType, dtype).blockBytes();
            for (values, 0..) |v, i| {
                const at = raw[i * width ..];
                switch (dtype) {
                    .f32 => std.mem.writeInt(u32, at[0..4], @bitCast(@as(f32, @floatCast(v))), .little),
                    .f64 => std.mem.writeInt(u64, at[0..8], @bitCast(v), .little),
                    .f16 => std.mem.writeInt(u16, at[0..2], @bitCast(@as(f16, @floatCast(v))), .little),
                    else => std.mem.writeInt(u16, at[0..2], @truncate(@as(u32, @bitCast(@as(f32, @floatCast(v)))) >> 16), .little),
                }
            }
            var out: [values.len]T = undefined;
            try testing.expect(safetensors.readFloats(T, dtype, raw[0 .. values.len * width], &out));
            for (values, out, 0..) |v, o, i| {
                if (dtype == .bf16 and i == 4) continue; // 65504 has more digits than bf16.
                try testing.expectEqual(@as(T, @floatCast(v)), o);
            }
        }
    }
    var out: [1]f32 = undefined;
    try testing.expect(!safetensors.readFloats(f32, .i32, &.{ 0, 0, 0, 0 }, &out));
}

test "no prefix and no bit flip of the header crashes or leaks" {
    const bytes = try sample(testing.allocator);
    defer testing.allocator.free(bytes);

    var diag: Diagnostic = .{};
    for (0..bytes.len) |len| {
        if (parse(testing.allocator, bytes[0..len], &diag)) |f| {
            var file = f;
            file.deinit();
            return error.TestUnexpectedResult; // A cut file is never whole.
        } else |_| {}
    }
    const header_end: usize = 8 + @as(usize, @intCast(std.mem.readInt(u64, bytes[0..8], .little)));
    for (0..header_end * 8) |bit| {
        bytes[bit / 8] ^= @as(u8, 1) << @intCast(bit % 8);
        defer bytes[bit / 8] ^= @as(u8, 1) << @intCast(bit % 8);

        if (parse(testing.allocator, bytes, &diag)) |f| {
            var file = f;
            file.deinit();
        } else |_| {}
    }
}

test "an index names plain shards only" {
    var diag: Diagnostic = .{};
    var index = try safetensors.ShardIndex.parse(testing.allocator,
        \\{"metadata":{"total_size":8},"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors","c":"model-00001-of-00002.safetensors"}}
    , &diag);
    defer index.deinit();

    try testing.expectEqual(2, index.shards.len);
    try testing.expectEqual(0, index.weight_map.get("c").?);
    const unsafe = [_][]const u8{ "/etc/x.safetensors", "../x.safetensors", "a/x.safetensors", "a\\\\x.safetensors", "..safetensors", "x.bin", "c:x.safetensors", ".safetensors", "x\\u0000.safetensors" };
    for (unsafe) |name| {
        const text = try std.fmt.allocPrint(testing.allocator, "{{\"weight_map\":{{\"a\":\"{s}\"}}}}", .{name});
        defer testing.allocator.free(text);

        try testing.expectError(error.UnsafeShardName, safetensors.ShardIndex.parse(testing.allocator, text, &diag));
    }
    for ([_][]const u8{ "{}", "[]", "{\"weight_map\":[]}", "{\"weight_map\":{\"a\":1}}", "{\"weight_map\":{\"a\":\"x.safetensors\",\"a\":\"x.safetensors\"}}" }) |text|
        try testing.expectError(error.InvalidIndex, safetensors.ShardIndex.parse(testing.allocator, text, &diag));
}

test "every allocation failure while reading an index is survived" {
    try testing.checkAllAllocationFailures(testing.allocator, struct {
        fn run(gpa: std.mem.Allocator) !void {
            var diag: Diagnostic = .{};
            var index = try safetensors.ShardIndex.parse(gpa, "{\"weight_map\":{\"a\":\"x.safetensors\",\"b\":\"y.safetensors\"}}", &diag);
            index.deinit();
        }
    }.run, .{});
}

test "random headers of the format's own words never crash the reader" {
    const words = [_][]const u8{ "{", "}", "[", "]", ":", ",", "\"a\"", "\"b\"", "\"dtype\"", "\"shape\"", "\"data_offsets\"", "\"F32\"", "\"F4\"", "\"__metadata__\"", "0", "4", "8", "18446744073709551615", "-1", "1e9", "null", "true", " ", "\"\\u0061\"" };
    const seed = 0x5afe;
    var prng: base.Prng = .init(seed);
    var text: [400]u8 = undefined;
    for (0..20_000) |_| {
        var w: std.Io.Writer = .fixed(text[8..]);
        w.writeAll("{") catch unreachable; // It fits.
        for (0..@intCast(prng.below(24))) |_| w.writeAll(words[@intCast(prng.below(words.len))]) catch break;
        const claim: u64 = if (prng.below(8) == 0) prng.next() >> @intCast(prng.below(64)) else w.end -| prng.below(3);
        std.mem.writeInt(u64, text[0..8], claim, .little);
        var diag: Diagnostic = .{};
        if (parse(testing.allocator, text[0 .. 8 + w.end], &diag)) |f| {
            var file = f;
            file.deinit();
        } else |_| try testing.expect(diag.text().len > 0);
    }
}
