//! What a session computed, as a file: a program that starts later with the same beginning need not compute it again.
//!
//! Layout, little endian: magic, version, the model's identity (`identify`), how the numbers were made, the shape of the cache, the ids,
//! then for each layer and kv head the rows of keys and the rows of values (of layers with a window those it still has), and a CRC-32C of all that. A file is written aside and
//! renamed; one that is cut, changed, or of another model, form or CPU level is refused by name and changes nothing.
//! Does not know: text, conversations.

const std = @import("std");
const base = @import("base");
const kernels = @import("kernels");
const Model = @import("model.zig").Model;
const session_file = @import("session.zig");
const Session = session_file.Session;
const Allocator = std.mem.Allocator;
const Diagnostic = base.Diagnostic;
const Storage = base.storage.Storage;

const magic = "ABIKEEP\n";
const version = 2;
const Hash = std.crypto.hash.Blake3;

pub const Identity = [32]u8;

/// Tells one model from another: the size of its file, all its keys and tables, the angles positions are turned by, and of each
/// tensor the first, the middle and the last 4 KiB. A model that was trained on differs in these; reading all of a large file would
/// take longer than computing a prompt.
pub fn identify(model: *const Model) Identity {
    const sample = 4096;
    var hash: Hash = .init(.{});
    const bytes = model.mapping.bytes;
    update(&hash, u64, bytes.len);
    hash.update(bytes[0..@min(model.file.data_start, bytes.len)]);
    for (model.file.tensors) |*info| {
        const data = info.data;
        if (data.len <= 3 * sample) {
            hash.update(data);
            continue;
        }
        hash.update(data[0..sample]);
        hash.update(data[data.len / 2 ..][0..sample]);
        hash.update(data[data.len - sample ..]);
    }
    hash.update(std.mem.sliceAsBytes(model.inverse_frequencies));
    update(&hash, u32, @bitCast(model.magnitude));
    var out: Identity = undefined;
    hash.final(&out);
    return out;
}

fn update(hash: *Hash, comptime T: type, value: T) void {
    var raw: [@sizeOf(T)]u8 = undefined;
    base.bytes.store(T, &raw, value);
    hash.update(&raw);
}

pub const SaveError = error{ OutOfMemory, CannotWrite };

pub const LoadError = error{
    OutOfMemory,
    /// The file is not there.
    Missing,
    CannotRead,
    /// The bytes are no sound file of this kind.
    InvalidFile,
    /// A sound file of another model, or of numbers made in another way.
    OtherModel,
};

/// Writes the first `count` ids and what was computed of them. On failure `diag` says why, and what was there stays.
pub fn save(gpa: Allocator, storage: Storage, path: []const u8, session: *const Session, identity: Identity, count: usize, diag: *Diagnostic) SaveError!void {
    std.debug.assert(count <= session.position());
    write(gpa, storage, path, session, identity, count) catch |err| {
        if (err == error.OutOfMemory) return error.OutOfMemory;
        base.storage.explain(diag, err, "write", path);
        return error.CannotWrite;
    };
}

fn write(gpa: Allocator, storage: Storage, path: []const u8, session: *const Session, identity: Identity, count: usize) base.storage.Error!void {
    const buffer = try gpa.alloc(u8, 64 << 10);
    defer gpa.free(buffer);
    var file = try base.storage.AtomicFile.create(gpa, storage, path, buffer);
    defer file.deinit();

    writeAll(&file.writer.interface, session, identity, count) catch return file.writer.cause();
    const digest = try file.writer.flushed();
    base.bytes.write(u32, &file.writer.interface, digest.crc32c) catch return file.writer.cause();
    try file.commit();
}

fn writeAll(out: *std.Io.Writer, session: *const Session, identity: Identity, wanted: usize) std.Io.Writer.Error!void {
    const cache = &session.cache;
    const shape = cache.shape;
    const count = if (cache.holds(wanted)) wanted else 0;
    try out.writeAll(magic);
    try base.bytes.write(u32, out, version);
    try out.writeAll(&identity);
    try out.writeAll(&levelName());
    for ([_]u32{
        @backingInt(session.cache.form),    @intFromBool(session.exact),
        @intCast(shape.layers),             @intCast(shape.kv_heads),
        @intCast(shape.head_dim),           @intCast(session.cache.row_bytes),
        @intCast(@min(session.fed, count)),
    }) |value| try base.bytes.write(u32, out, value);
    try base.bytes.write(u64, out, count);
    try base.bytes.write(u64, out, @min(cache.first, count));
    for (session.ids.items[0..count]) |id| try base.bytes.write(u32, out, id);
    for (0..shape.layers) |l| for (0..shape.kv_heads) |h| for (cache.rows(l, h, @min(cache.firstOf(l), count), count)) |bytes| try out.writeAll(bytes);
}

/// The CPU level the numbers are made on: bits may differ between levels.
fn levelName() [8]u8 {
    var name: [8]u8 = @splat(0);
    const level = kernels.level();
    const len = @min(level.len, name.len);
    @memcpy(name[0..len], level[0..len]);
    return name;
}

/// Puts what the file holds into the session, as far as its context goes, in place of what it held; the number of ids. On failure
/// `diag` names the file and the next move, and the session stays as it is.
pub fn load(storage: Storage, path: []const u8, session: *Session, identity: Identity, diag: *Diagnostic) LoadError!usize {
    var mapping = storage.map(path) catch |err| {
        base.storage.explain(diag, err, "read", path);
        return switch (err) {
            error.OutOfMemory => error.OutOfMemory,
            error.FileNotFound => error.Missing,
            else => error.CannotRead,
        };
    };
    defer mapping.unmap();
    return read(mapping.bytes, session, identity, diag) catch |err| {
        diag.prepend("{s}: ", .{path});
        return err;
    };
}

fn read(bytes: []const u8, session: *Session, identity: Identity, diag: *Diagnostic) LoadError!usize {
    return readChecked(bytes, session, identity, diag) catch |err| switch (err) {
        error.EndOfData => {
            diag.set("it is cut off, or no prompt cache. Delete it; it is made again", .{});
            return error.InvalidFile;
        },
        error.InvalidFile => error.InvalidFile,
        error.OtherModel => error.OtherModel,
    };
}

fn readChecked(bytes: []const u8, session: *Session, identity: Identity, diag: *Diagnostic) (base.bytes.ReadError || error{ InvalidFile, OtherModel })!usize {
    var reader: base.bytes.Reader = .init(bytes);
    if (!std.mem.eql(u8, try reader.take(magic.len), magic)) {
        diag.set("it is no prompt cache. Name another file", .{});
        return error.InvalidFile;
    }
    const found_version = try reader.read(u32);
    if (found_version != version) {
        diag.set("it is a prompt cache of version {d}, not {d}. Delete it; it is made again", .{ found_version, version });
        return error.InvalidFile;
    }
    if (!std.mem.eql(u8, try reader.take(identity.len), &identity)) {
        diag.set("it belongs to another model, or to another state of this one. Delete it, or name another file", .{});
        return error.OtherModel;
    }
    const level = try reader.take(8);
    if (!std.mem.eql(u8, level, &levelName())) {
        diag.set("its numbers were made on another CPU level ({f}, here {s}) and could differ in the last bits. Delete it; it is made again", .{ base.bytes.printable(std.mem.trimEnd(u8, level, "\x00")), kernels.level() });
        return error.OtherModel;
    }
    const cache = &session.cache;
    const form = try reader.read(u32);
    const exact = try reader.read(u32);
    if (form != @backingInt(cache.form) or exact != @intFromBool(session.exact)) {
        diag.set("its keys and values are kept or computed in another way than asked for. Open the model as it was (cache, exact), or delete the file", .{});
        return error.OtherModel;
    }
    for ([_]usize{ cache.shape.layers, cache.shape.kv_heads, cache.shape.head_dim, cache.row_bytes }) |expected| {
        if (try reader.read(u32) == expected) continue;
        diag.set("its shape is not the model's. Delete it; it is made again", .{});
        return error.InvalidFile;
    }
    const fed = try reader.read(u32);
    const count = try reader.read(u64);
    const first = try reader.read(u64);
    if (first > count) return error.EndOfData;
    var windowed: u64 = 0;
    for (session.model.layers) |*layer| windowed += @intFromBool(layer.window != null);
    const of_all = base.checked.product(u64, &.{ cache.shape.layers, cache.shape.kv_heads, 2, cache.row_bytes, count }) catch return error.EndOfData;
    const row_bytes = of_all - windowed * cache.shape.kv_heads * 2 * cache.row_bytes * first;
    const id_bytes = base.checked.mul(u64, count, 4) catch return error.EndOfData;
    const ids = try reader.take(id_bytes);
    const rows = try reader.take(row_bytes);
    const sum = try reader.read(u32);
    if (reader.remaining() != 0 or fed > count) return error.EndOfData;
    if (sum != base.checksum.crc32c(bytes[0 .. bytes.len - 4])) {
        diag.set("its checksum is wrong: it was changed or damaged. Delete it; it is made again", .{});
        return error.InvalidFile;
    }
    for (0..@intCast(count)) |i| if (base.bytes.at(u32, ids, i) >= session.model.config.vocab_size) {
        diag.set("it holds an id beyond the vocabulary. Delete it; it is made again", .{});
        return error.InvalidFile;
    };

    const kept = cache.begin(@intCast(first), @min(count, session.context));
    var at: usize = 0;
    for (0..cache.shape.layers) |l| {
        const from: usize = if (session.model.layers[l].window != null) @intCast(first) else 0;
        const skipped = (@min(cache.firstOf(l), kept) - @min(from, kept)) * cache.row_bytes;
        for (0..cache.shape.kv_heads) |h| for (cache.rows(l, h, @min(cache.firstOf(l), kept), kept)) |to| {
            @memcpy(to, rows[at + skipped ..][0..to.len]);
            at += @intCast((count - from) * cache.row_bytes);
        };
    }
    session.ids.clearRetainingCapacity();
    for (0..kept) |i| session.ids.appendAssumeCapacity(base.bytes.at(u32, ids, i));
    session.fed = @min(fed, kept);
    return kept;
}

const testing = std.testing;
const test_model = @import("test_model.zig");

test "what was saved goes on with the same bits, and less of it in a smaller context" {
    const gpa = testing.allocator;
    var arena: std.heap.ArenaAllocator = .init(gpa);
    defer arena.deinit();
    const model = try test_model.make(arena.allocator());
    const pool = try base.Pool.init(gpa, 2);
    defer pool.deinit();
    var disk: base.storage.MemoryDisk = try .init(gpa);
    defer disk.deinit();
    var diag: Diagnostic = .{};
    const identity: Identity = @splat(3);
    for ([_]@import("cache.zig").Form{ .f32, .f16 }) |form| {
        var session: Session = try .initForm(gpa, &model, pool, 40, form);
        defer session.deinit();
        try session.feed(&.{ 1, 2, 3, 4, 5, 6, 7 });
        _ = try session.step(8);
        const expected = try arena.allocator().dupe(f32, try session.prefill(&.{ 9, 10 }));
        try save(gpa, disk.storage(), "kept", &session, identity, 8, &diag);
        for ([_]usize{ 40, 12, 5 }) |context| {
            var other: Session = try .initForm(gpa, &model, pool, context, form);
            defer other.deinit();
            try other.feed(&.{ 30, 31 });
            const count = try load(disk.storage(), "kept", &other, identity, &diag);
            try testing.expectEqual(@min(8, context), count);
            try testing.expectEqualSlices(u32, (&[_]u32{ 1, 2, 3, 4, 5, 6, 7, 8 })[0..count], other.ids.items);
            try testing.expectEqual(@min(7, context), other.fed);
            if (context > 9) try testing.expectEqualSlices(f32, expected, try other.prefill(&.{ 9, 10 }));
        }
    }
}

test "of layers with a window what is left is saved, and no more is taken back than is there" {
    const gpa = testing.allocator;
    var arena: std.heap.ArenaAllocator = .init(gpa);
    defer arena.deinit();
    const model = try test_model.makeOf(arena.allocator(), test_model.mixture_config);
    const pool = try base.Pool.init(gpa, 2);
    defer pool.deinit();
    var disk: base.storage.MemoryDisk = try .init(gpa);
    defer disk.deinit();
    var diag: Diagnostic = .{};
    const identity: Identity = @splat(3);
    var ids: [1700]u32 = undefined;
    for (&ids, 0..) |*id, i| id.* = @intCast(i * i % 49);
    var session: Session = try .init(gpa, &model, pool, 2000);
    defer session.deinit();
    try session.feed(&ids);
    try testing.expect(session.cache.first > 1000);
    try save(gpa, disk.storage(), "late", &session, identity, ids.len, &diag);
    try save(gpa, disk.storage(), "early", &session, identity, 100, &diag);
    const expected = try session.prefill(&.{ 9, 10 });
    // 1750 and 1600 have room for all positions of the second: the first only goes on behind what it has.
    for ([_]usize{ 2000, 1750, 1600, 1000 }, [_]usize{ 1700, 1700, 1600, 0 }) |context, count| {
        var other: Session = try .init(gpa, &model, pool, context);
        defer other.deinit();
        try testing.expectEqual(count, try load(disk.storage(), "late", &other, identity, &diag));
        try testing.expectEqual(count, other.position());
        if (count == 1700) try testing.expectEqualSlices(f32, expected, try other.prefill(&.{ 9, 10 }));
        try testing.expectEqual(0, try load(disk.storage(), "early", &other, identity, &diag));
    }
    // One that has room for all reads what one without it wrote, and goes on alike.
    var small: Session = try .init(gpa, &model, pool, 1500);
    defer small.deinit();
    try testing.expectEqual(0, small.cache.shape.window_rows);
    try small.feed(ids[0..1400]);
    try save(gpa, disk.storage(), "small", &small, identity, 1400, &diag);
    session.rewind(0);
    try testing.expectEqual(1400, try load(disk.storage(), "small", &session, identity, &diag));
    try testing.expectEqualSlices(f32, try small.prefill(&.{ 9, 10 }), try session.prefill(&.{ 9, 10 }));
    session.rewind(30);
    small.rewind(30);
    try testing.expectEqualSlices(f32, try small.prefill(&.{ 9, 10 }), try session.prefill(&.{ 9, 10 }));
}

test "files that are cut, changed or of another model are refused and change nothing" {
    const gpa = testing.allocator;
    var arena: std.heap.ArenaAllocator = .init(gpa);
    defer arena.deinit();
    const model = try test_model.make(arena.allocator());
    const pool = try base.Pool.init(gpa, 1);
    defer pool.deinit();
    var disk: base.storage.MemoryDisk = try .init(gpa);
    defer disk.deinit();
    const storage = disk.storage();
    var diag: Diagnostic = .{};
    const identity: Identity = @splat(3);
    var session: Session = try .init(gpa, &model, pool, 12);
    defer session.deinit();
    try testing.expectError(error.Missing, load(storage, "kept", &session, identity, &diag));
    try session.feed(&.{ 1, 2, 3 });
    try save(gpa, storage, "kept", &session, identity, 3, &diag);
    session.rewind(1);

    try testing.expectError(error.OtherModel, load(storage, "kept", &session, @splat(4), &diag));
    try testing.expect(std.mem.find(u8, diag.text(), "another model") != null);
    session.exact = true;
    try testing.expectError(error.OtherModel, load(storage, "kept", &session, identity, &diag));
    session.exact = false;
    const whole = try storage.readAlloc(arena.allocator(), "kept");
    for (0..whole.len) |len| {
        if (len > 200 and len + 20 < whole.len and len % 97 != 0) continue;
        try base.storage.writeFile(gpa, storage, "cut", whole[0..len]);
        try testing.expectError(error.InvalidFile, load(storage, "cut", &session, identity, &diag));
    }
    for (0..whole.len) |at| {
        if (at > 200 and at % 97 != 0) continue;
        whole[at] ^= 0x41;
        try base.storage.writeFile(gpa, storage, "changed", whole);
        whole[at] ^= 0x41;
        diag = .{};
        if (load(storage, "changed", &session, identity, &diag)) |_| return error.TestUnexpectedResult else |err| {
            try testing.expect(err == error.InvalidFile or err == error.OtherModel);
            try testing.expect(std.mem.startsWith(u8, diag.text(), "changed: "));
        }
    }
    try testing.expectEqualSlices(u32, &.{1}, session.ids.items);
    try testing.expectEqual(3, try load(storage, "kept", &session, identity, &diag));
}
