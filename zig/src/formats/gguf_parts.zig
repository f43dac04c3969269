//! A GGUF model in one file or in several: opened as one list of tensors.
//!
//! Parts are named `NAME-00001-of-00003.gguf`; the first holds all keys, and `split.no`, `split.count` and `split.tensors.count` say
//! what belongs together. Whichever part is named, all are opened, and what does not fit together is refused.
//! Does not know: architectures, what is done with the tensors.

const std = @import("std");
const base = @import("base");
const gguf = @import("gguf.zig");
const Diagnostic = base.Diagnostic;
const Storage = base.storage.Storage;
const printable = base.bytes.printable;

pub const split_keys = struct {
    pub const number = "split.no";
    pub const count = "split.count";
    pub const tensors = "split.tensors.count";
};

pub const Error = gguf.Error || gguf.LookupError || base.storage.Error || error{
    /// Parts that do not belong together, or a part under another's name.
    WrongParts,
};

pub const NameBuffer = [std.fs.max_path_bytes]u8;

/// `prefix-00001-of-00003.gguf` for index 0 of 3.
pub fn partName(buffer: []u8, prefix: []const u8, index: usize, count: usize) error{NoSpaceLeft}![]const u8 {
    return std.fmt.bufPrint(buffer, "{s}-{d:0>5}-of-{d:0>5}.gguf", .{ prefix, index + 1, count });
}

/// What stands before the numbers of a part's name, or null where it has none.
pub fn prefixOf(path: []const u8) ?[]const u8 {
    const ending = "-00001-of-00002.gguf";
    if (path.len <= ending.len) return null;
    const tail = path[path.len - ending.len ..];
    for (tail, ending) |c, like| {
        const fits = if (std.ascii.isDigit(like)) std.ascii.isDigit(c) else c == like;
        if (!fits) return null;
    }
    return path[0 .. path.len - ending.len];
}

pub const Tensor = struct {
    info: *const gguf.TensorInfo,
    /// Index of the file it lies in.
    part: usize,
};

pub const Parts = struct {
    arena: std.heap.ArenaAllocator,
    mappings: std.ArrayList(base.storage.Mapping) = .empty,
    files: std.ArrayList(gguf.File) = .empty,
    /// In the files' order.
    tensors: []const Tensor = &.{},

    /// Opens the file, and the others where it is one of several. Caller calls `deinit`.
    pub fn open(gpa: std.mem.Allocator, storage: Storage, path: []const u8, diag: *Diagnostic) Error!Parts {
        var self: Parts = .{ .arena = .init(gpa) };
        errdefer self.deinit();

        try self.add(gpa, storage, path, diag);
        const named = &self.files.items[0];
        const count = try named.optional(u16, split_keys.count, diag) orelse 1;
        if (count > 1) {
            const prefix = prefixOf(path) orelse {
                diag.set("{s} is one of {d} parts, but its name does not end in -00001-of-{d:0>5}.gguf. Give it back the name it was made with", .{ path, count, count });
                return error.WrongParts;
            };
            self.close();
            for (0..count) |i| {
                var buffer: NameBuffer = undefined;
                const name = partName(&buffer, prefix, i, count) catch return error.NameTooLong;
                try self.add(gpa, storage, name, diag);
                try self.checkPart(name, i, count, diag);
            }
        }
        try self.collect(path, diag);
        return self;
    }

    pub fn deinit(self: *Parts) void {
        self.close();
        self.arena.deinit();
        self.* = undefined;
    }

    /// The keys of all parts stand in the first.
    pub fn first(self: *const Parts) *const gguf.File {
        return &self.files.items[0];
    }

    fn close(self: *Parts) void {
        for (self.files.items) |*file| file.deinit();
        for (self.mappings.items) |*mapping| mapping.unmap();
        self.files.clearRetainingCapacity();
        self.mappings.clearRetainingCapacity();
    }

    fn add(self: *Parts, gpa: std.mem.Allocator, storage: Storage, path: []const u8, diag: *Diagnostic) Error!void {
        const a = self.arena.allocator();
        try self.mappings.ensureUnusedCapacity(a, 1);
        try self.files.ensureUnusedCapacity(a, 1);
        const mapping = storage.map(path) catch |err| {
            base.storage.explain(diag, err, "read", path);
            return err;
        };
        self.mappings.appendAssumeCapacity(mapping);
        self.files.appendAssumeCapacity(gguf.File.parse(gpa, mapping.bytes, diag) catch |err| {
            diag.prepend("{s}: ", .{path});
            return err;
        });
    }

    fn checkPart(self: *Parts, path: []const u8, index: usize, count: usize, diag: *Diagnostic) Error!void {
        const file = &self.files.items[index];
        const number = try file.require(u16, split_keys.number, diag);
        const of = try file.require(u16, split_keys.count, diag);
        if (number == index and of == count) return;
        diag.set("{s} says that it is part {d} of {d}; by its name it is {d} of {d}. Bring the parts of one model together", .{ path, @as(usize, number) + 1, of, index + 1, count });
        return error.WrongParts;
    }

    fn collect(self: *Parts, path: []const u8, diag: *Diagnostic) Error!void {
        const a = self.arena.allocator();
        var total: usize = 0;
        for (self.files.items) |*file| total += file.tensors.len;
        const tensors = try a.alloc(Tensor, total);
        var seen: std.StringHashMapUnmanaged(void) = .empty;
        try seen.ensureTotalCapacity(a, std.math.cast(u32, total) orelse return error.OutOfMemory);
        var at: usize = 0;
        for (self.files.items, 0..) |*file, part| for (file.tensors) |*info| {
            if (seen.getOrPutAssumeCapacity(info.name).found_existing) {
                diag.set("{s}: tensor {f} is in two parts", .{ path, printable(info.name) });
                return error.DuplicateTensor;
            }
            tensors[at] = .{ .info = info, .part = part };
            at += 1;
        };
        if (self.files.items.len > 1) {
            const told = try self.first().require(i32, split_keys.tensors, diag);
            if (told != total) {
                diag.set("{s}: the parts hold {d} tensors; {s} says {d}. Fetch the parts again", .{ path, total, split_keys.tensors, told });
                return error.WrongParts;
            }
        }
        self.tensors = tensors;
    }
};

test "names of parts are made and known" {
    var buffer: [64]u8 = undefined;
    try std.testing.expectEqualStrings("a/m-00002-of-00010.gguf", try partName(&buffer, "a/m", 1, 10));
    try std.testing.expectEqualStrings("a/m", prefixOf("a/m-00002-of-00010.gguf").?);
    for ([_][]const u8{ "m.gguf", "-00001-of-00002.gguf", "m-0001-of-00002.gguf", "m-00001-of-00002.bin" }) |name|
        try std.testing.expectEqual(null, prefixOf(name));
}
