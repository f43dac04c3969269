//! A disk in memory, for tests: it counts operations, fails the k-th one, and can lose power.
//!
//! What survives a crash is modelled as POSIX promises and no better: a file's bytes survive once the file was synced, a
//! folder's names once the folder was synced. What was not synced may be lost (`drop`), kept in part, cut at 512-byte sectors
//! (`tear`), or kept out of order (`reorder`): each pending write and each pending name change by itself.
//! `skip_sync` is the canary: syncs then answer "done" and do nothing, and a crash test must notice.

const std = @import("std");
const Allocator = std.mem.Allocator;
const assert = std.debug.assert;
const storage_file = @import("storage.zig");
const Storage = storage_file.Storage;
const Error = storage_file.Error;
const Handle = storage_file.Handle;
const Kind = storage_file.Kind;
const Entry = storage_file.Entry;
const Mapping = storage_file.Mapping;

pub const Crash = enum { drop, tear, reorder };

pub const Fault = struct {
    /// Index of the operation, from 0.
    at: usize,
    what: union(enum) {
        fail: Error,
        /// Half of the bytes are stored; other operations pass.
        short_write,
        /// A write stores nothing and says so.
        zero_write,
        /// The power goes before the operation has happened, or after. Everything later fails.
        power_off_before,
        power_off_after,
    },
    /// Every operation from `at` on, not only that one.
    from_then_on: bool = false,
};

const Node = union(Kind) {
    file: File,
    folder: Folder,
    other: void,

    const Write = struct { offset: usize, bytes: []const u8 };

    const File = struct {
        /// What a reader sees now.
        live: std.ArrayList(u8) = .empty,
        /// What is on the platter.
        durable: std.ArrayList(u8) = .empty,
        pending: std.ArrayList(Write) = .empty,
        locked: bool = false,
    };

    /// name → node number, in order of arrival.
    const Names = std.array_hash_map.String(usize);

    /// One change of one or two names, atomic by itself.
    const Change = struct {
        folder_names: [2][]const u8,
        nodes: [2]?usize,
        count: u8,
    };

    const Folder = struct {
        live: Names = .empty,
        durable: Names = .empty,
        pending: std.ArrayList(Change) = .empty,
    };
};

pub const MemoryDisk = struct {
    arena: std.heap.ArenaAllocator,
    nodes: std.ArrayList(Node) = .empty,
    handles: std.ArrayList(usize) = .empty,
    counter: u64 = 0,
    /// Operations so far: those that change something or can fail on a real disk while saving.
    operations: usize = 0,
    fault: ?Fault = null,
    powered: bool = true,
    /// The operation that was the last one has begun; it may fail by itself, the next one finds no power.
    dying: bool = false,
    skip_sync: bool = false,
    /// Every `Mapping.willNeed`, in order, when it is set.
    wanted: ?*std.ArrayList(Wanted) = null,

    pub const Wanted = struct {
        /// Of the mapping that was asked.
        bytes: []const u8,
        start: usize,
        count: usize,
    };

    const root = 0;

    pub fn init(gpa: Allocator) error{OutOfMemory}!MemoryDisk {
        var self: MemoryDisk = .{ .arena = .init(gpa) };
        errdefer self.arena.deinit();

        try self.nodes.append(self.arena.allocator(), .{ .folder = .{} });
        return self;
    }

    pub fn deinit(self: *MemoryDisk) void {
        self.arena.deinit();
        self.* = undefined;
    }

    /// Another disk with the same content, durable and not. No file may be open. Faults are not copied.
    pub fn clone(self: *const MemoryDisk, gpa: Allocator) error{OutOfMemory}!MemoryDisk {
        var copy: MemoryDisk = .{ .arena = .init(gpa), .counter = self.counter };
        errdefer copy.arena.deinit();

        const a = copy.arena.allocator();
        try copy.nodes.ensureTotalCapacity(a, self.nodes.items.len);
        for (self.nodes.items) |node| copy.nodes.appendAssumeCapacity(switch (node) {
            .file => |f| .{ .file = .{ .live = try f.live.clone(a), .durable = try f.durable.clone(a), .pending = try clonePending(a, f) } },
            .folder => |f| .{ .folder = .{ .live = try cloneNames(a, f.live), .durable = try cloneNames(a, f.durable), .pending = try cloneChanges(a, f) } },
            .other => .other,
        });
        return copy;
    }

    fn clonePending(a: Allocator, file: Node.File) error{OutOfMemory}!std.ArrayList(Node.Write) {
        const list_ = try file.pending.clone(a);
        for (list_.items) |*w| w.bytes = try a.dupe(u8, w.bytes);
        return list_;
    }

    fn cloneNames(a: Allocator, names: Node.Names) error{OutOfMemory}!Node.Names {
        var copy: Node.Names = .empty;
        for (names.keys(), names.values()) |name, node| try copy.put(a, try a.dupe(u8, name), node);
        return copy;
    }

    fn cloneChanges(a: Allocator, folder: Node.Folder) error{OutOfMemory}!std.ArrayList(Node.Change) {
        const list_ = try folder.pending.clone(a);
        for (list_.items) |*c| for (c.folder_names[0..c.count]) |*name| {
            name.* = try a.dupe(u8, name.*);
        };
        return list_;
    }

    pub fn storage(self: *MemoryDisk) Storage {
        return .{ .context = self, .vtable = &vtable };
    }

    /// The power comes back: what is seen from now on is what survived. Faults are cleared.
    pub fn reboot(self: *MemoryDisk, crash: Crash, seed: u64) error{OutOfMemory}!void {
        const a = self.arena.allocator();
        var random_state: std.Random.DefaultPrng = .init(seed);
        const random = random_state.random();
        for (self.nodes.items) |*node| switch (node.*) {
            .file => |*file| {
                try self.surviveFile(file, crash, random);
                file.pending.clearRetainingCapacity();
                file.locked = false;
                file.live.clearRetainingCapacity();
                try file.live.appendSlice(a, file.durable.items);
            },
            .folder => |*folder| {
                for (folder.pending.items) |pending| {
                    const kept = switch (crash) {
                        .drop => false,
                        .tear, .reorder => random.boolean(),
                    };
                    if (kept) try applyChange(a, &folder.durable, pending);
                }
                folder.pending.clearRetainingCapacity();
                folder.live = try folder.durable.clone(a);
            },
            .other => {},
        };
        self.handles.clearRetainingCapacity();
        self.fault = null;
        self.powered = true;
        self.dying = false;
    }

    fn surviveFile(self: *MemoryDisk, file: *Node.File, crash: Crash, random: std.Random) error{OutOfMemory}!void {
        const a = self.arena.allocator();
        const sector = 512;
        for (file.pending.items) |write_| {
            switch (crash) {
                .drop => continue,
                .reorder => if (random.boolean()) continue,
                .tear => {},
            }
            const end = write_.offset + write_.bytes.len;
            if (file.durable.items.len < end) try file.durable.appendNTimes(a, 0, end - file.durable.items.len);
            var at: usize = write_.offset;
            while (at < end) {
                const next = @min(end, (at / sector + 1) * sector);
                if (crash == .reorder or random.boolean())
                    @memcpy(file.durable.items[at..next], write_.bytes[at - write_.offset .. next - write_.offset]);
                at = next;
            }
        }
    }

    /// Changes one stored byte behind everyone's back: damage that only a checksum can find.
    pub fn flipBit(self: *MemoryDisk, path: []const u8, bit: usize) Error!void {
        const file = &self.nodes.items[try self.lookup(path)].file;
        file.live.items[bit / 8] ^= @as(u8, 1) << @intCast(bit % 8);
        if (bit / 8 < file.durable.items.len) file.durable.items[bit / 8] = file.live.items[bit / 8];
    }

    pub fn truncate(self: *MemoryDisk, path: []const u8, len: usize) Error!void {
        const file = &self.nodes.items[try self.lookup(path)].file;
        file.live.shrinkRetainingCapacity(len);
        file.durable.shrinkRetainingCapacity(@min(len, file.durable.items.len));
    }

    pub fn fileSize(self: *MemoryDisk, path: []const u8) Error!usize {
        return self.nodes.items[try self.lookup(path)].file.live.items.len;
    }

    // ---- inside ----

    const Action = enum { proceed, half, nothing, proceed_then_die };

    /// Every operation passes here first.
    fn step(self: *MemoryDisk, is_write: bool) Error!Action {
        if (self.dying) self.powered = false;
        if (!self.powered) return error.InputOutput;
        const index = self.operations;
        self.operations += 1;
        const fault = self.fault orelse return .proceed;
        if (index != fault.at and !(fault.from_then_on and index > fault.at)) return .proceed;
        switch (fault.what) {
            .fail => |err| return err,
            .short_write => return if (is_write) .half else .proceed,
            .zero_write => return if (is_write) .nothing else .proceed,
            .power_off_before => {
                self.powered = false;
                return error.InputOutput;
            },
            .power_off_after => {
                self.dying = true;
                return .proceed_then_die;
            },
        }
    }

    fn done(self: *MemoryDisk, action: Action) Error!void {
        if (action != .proceed_then_die) return;
        self.powered = false;
        return error.InputOutput;
    }

    fn lookup(self: *MemoryDisk, path: []const u8) Error!usize {
        var at: usize = root;
        var parts = std.mem.tokenizeScalar(u8, path, '/');
        while (parts.next()) |part| {
            if (std.mem.eql(u8, part, ".")) continue;
            const folder = switch (self.nodes.items[at]) {
                .folder => |*f| f,
                else => return error.NotDir,
            };
            at = folder.live.get(part) orelse return error.FileNotFound;
        }
        return at;
    }

    fn folderAt(self: *MemoryDisk, path: []const u8) Error!*Node.Folder {
        return switch (self.nodes.items[try self.lookup(path)]) {
            .folder => |*f| f,
            else => error.NotDir,
        };
    }

    fn change(self: *MemoryDisk, folder: *Node.Folder, what: Node.Change) Error!void {
        const a = self.arena.allocator();
        var own = what;
        for (own.folder_names[0..own.count]) |*name| name.* = try a.dupe(u8, name.*);
        try folder.pending.append(a, own);
        try applyChange(a, &folder.live, own);
    }

    fn add(self: *MemoryDisk, path: []const u8, node: Node) Error!usize {
        if (self.lookup(path)) |_| return error.AlreadyExists else |err| if (err != error.FileNotFound) return err;
        const number = self.nodes.items.len;
        _ = try self.folderAt(storage_file.parentOf(path));
        try self.nodes.append(self.arena.allocator(), node);
        const folder = try self.folderAt(storage_file.parentOf(path)); // The append may have moved it.
        try self.change(folder, .{ .folder_names = .{ baseName(path), "" }, .nodes = .{ number, null }, .count = 1 });
        return number;
    }

    fn open(self: *MemoryDisk, number: usize) Error!Handle {
        try self.handles.append(self.arena.allocator(), number);
        return self.handles.items.len - 1;
    }
};

fn baseName(path: []const u8) []const u8 {
    return std.fs.path.basename(path);
}

fn applyChange(a: Allocator, names: *Node.Names, change: Node.Change) error{OutOfMemory}!void {
    for (change.folder_names[0..change.count], change.nodes[0..change.count]) |name, node| {
        if (node) |n| try names.put(a, name, n) else _ = names.swapRemove(name);
    }
}

fn selfOf(context: *anyopaque) *MemoryDisk {
    return @ptrCast(@alignCast(context));
}

const vtable: Storage.VTable = .{
    .create = create,
    .reopen = reopen,
    .write = write,
    .sync = sync,
    .close = close,
    .createFolder = createFolder,
    .syncFolder = syncFolder,
    .rename = rename,
    .exchange = exchange,
    .deleteFile = deleteFile,
    .deleteFolder = deleteFolder,
    .list = list,
    .kind = kind,
    .map = map,
    .willNeed = willNeed,
    .unmap = unmap,
    .lock = lock,
    .unique = unique,
};

fn create(context: *anyopaque, path: []const u8) Error!Handle {
    const self = selfOf(context);
    const action = try self.step(false);
    const number = try self.add(path, .{ .file = .{} });
    try self.done(action);
    return self.open(number);
}

/// The cut takes hold at once, also of what is on the platter: nothing relies on bytes that were cut off.
fn reopen(context: *anyopaque, path: []const u8, size: u64) Error!Handle {
    const self = selfOf(context);
    const action = try self.step(false);
    const number = try self.lookup(path);
    const file = switch (self.nodes.items[number]) {
        .file => |*f| f,
        else => return error.IsDir,
    };
    const len: usize = @intCast(size);
    if (file.live.items.len < len) try file.live.appendNTimes(self.arena.allocator(), 0, len - file.live.items.len);
    file.live.shrinkRetainingCapacity(len);
    file.durable.shrinkRetainingCapacity(@min(len, file.durable.items.len));
    for (file.pending.items) |*w| {
        w.offset = @min(w.offset, len);
        w.bytes = w.bytes[0..@min(w.bytes.len, len - w.offset)];
    }
    try self.done(action);
    return self.open(number);
}

fn write(context: *anyopaque, handle: Handle, bytes: []const u8) Error!usize {
    const self = selfOf(context);
    const action = try self.step(true);
    const len = switch (action) {
        .half => bytes.len / 2,
        .nothing => 0,
        .proceed, .proceed_then_die => bytes.len,
    };
    const file = &self.nodes.items[self.handles.items[handle]].file;
    const a = self.arena.allocator();
    try file.pending.append(a, .{ .offset = file.live.items.len, .bytes = try a.dupe(u8, bytes[0..len]) });
    try file.live.appendSlice(a, bytes[0..len]);
    try self.done(action);
    return len;
}

fn sync(context: *anyopaque, handle: Handle) Error!void {
    const self = selfOf(context);
    const action = try self.step(false);
    const file = &self.nodes.items[self.handles.items[handle]].file;
    if (!self.skip_sync) {
        file.durable.clearRetainingCapacity();
        try file.durable.appendSlice(self.arena.allocator(), file.live.items);
        file.pending.clearRetainingCapacity();
    }
    try self.done(action);
}

fn close(context: *anyopaque, handle: Handle) void {
    const self = selfOf(context);
    if (handle >= self.handles.items.len) return; // Opened before the power went.
    self.nodes.items[self.handles.items[handle]].file.locked = false;
}

fn createFolder(context: *anyopaque, path: []const u8) Error!void {
    const self = selfOf(context);
    const action = try self.step(false);
    _ = try self.add(path, .{ .folder = .{} });
    try self.done(action);
}

fn syncFolder(context: *anyopaque, path: []const u8) Error!void {
    const self = selfOf(context);
    const action = try self.step(false);
    const folder = try self.folderAt(path);
    if (!self.skip_sync) {
        folder.durable = try folder.live.clone(self.arena.allocator());
        folder.pending.clearRetainingCapacity();
    }
    try self.done(action);
}

fn rename(context: *anyopaque, old: []const u8, new: []const u8) Error!void {
    const self = selfOf(context);
    const action = try self.step(false);
    assert(std.mem.eql(u8, storage_file.parentOf(old), storage_file.parentOf(new)));
    const number = try self.lookup(old);
    if (self.lookup(new)) |target| {
        if (self.nodes.items[target] != .file) return error.AlreadyExists;
    } else |err| if (err != error.FileNotFound) return err;
    const folder = try self.folderAt(storage_file.parentOf(old));
    try self.change(folder, .{
        .folder_names = .{ baseName(new), baseName(old) },
        .nodes = .{ number, null },
        .count = 2,
    });
    try self.done(action);
}

fn exchange(context: *anyopaque, a: []const u8, b: []const u8) Error!void {
    const self = selfOf(context);
    const action = try self.step(false);
    assert(std.mem.eql(u8, storage_file.parentOf(a), storage_file.parentOf(b)));
    const number_a = try self.lookup(a);
    const number_b = try self.lookup(b);
    const folder = try self.folderAt(storage_file.parentOf(a));
    try self.change(folder, .{
        .folder_names = .{ baseName(a), baseName(b) },
        .nodes = .{ number_b, number_a },
        .count = 2,
    });
    try self.done(action);
}

fn deleteFile(context: *anyopaque, path: []const u8) Error!void {
    const self = selfOf(context);
    const action = try self.step(false);
    if (self.nodes.items[try self.lookup(path)] == .folder) return error.IsDir;
    try removeName(self, path);
    try self.done(action);
}

fn deleteFolder(context: *anyopaque, path: []const u8) Error!void {
    const self = selfOf(context);
    const action = try self.step(false);
    if ((try self.folderAt(path)).live.count() != 0) return error.AlreadyExists;
    try removeName(self, path);
    try self.done(action);
}

fn removeName(self: *MemoryDisk, path: []const u8) Error!void {
    const folder = try self.folderAt(storage_file.parentOf(path));
    try self.change(folder, .{ .folder_names = .{ baseName(path), "" }, .nodes = .{ null, null }, .count = 1 });
}

fn list(context: *anyopaque, arena: Allocator, path: []const u8) Error![]Entry {
    const self = selfOf(context);
    if (!self.powered) return error.InputOutput;
    const folder = try self.folderAt(path);
    const entries = try arena.alloc(Entry, folder.live.count());
    for (entries, folder.live.keys(), folder.live.values()) |*entry, name, number|
        entry.* = .{ .name = try arena.dupe(u8, name), .kind = self.nodes.items[number] };
    return entries;
}

fn kind(context: *anyopaque, path: []const u8) Error!?Kind {
    const self = selfOf(context);
    if (!self.powered) return error.InputOutput;
    const number = self.lookup(path) catch |err| switch (err) {
        error.FileNotFound => return null,
        else => return err,
    };
    return self.nodes.items[number];
}

fn map(context: *anyopaque, path: []const u8) Error!struct { []const u8, usize } {
    const self = selfOf(context);
    const action = try self.step(false);
    const number = try self.lookup(path);
    if (self.nodes.items[number] != .file) return error.IsDir;
    const copy = try self.arena.allocator().dupe(u8, self.nodes.items[number].file.live.items);
    try self.done(action);
    return .{ copy, 0 };
}

fn willNeed(context: *anyopaque, mapping: *const Mapping, start: usize, count: usize) void {
    const self = selfOf(context);
    const entries = self.wanted orelse return;
    // A test that runs out of memory here sees that the entry is missing.
    entries.append(self.arena.allocator(), .{ .bytes = mapping.bytes, .start = start, .count = count }) catch {};
}

fn unmap(_: *anyopaque, _: *Mapping) void {}

fn lock(context: *anyopaque, path: []const u8) Error!Handle {
    const self = selfOf(context);
    const action = try self.step(false);
    const number = self.lookup(path) catch |err| switch (err) {
        error.FileNotFound => try self.add(path, .{ .file = .{} }),
        else => return err,
    };
    const file = &self.nodes.items[number].file;
    if (file.locked) return error.Locked;
    file.locked = true;
    try self.done(action);
    return self.open(number);
}

fn unique(context: *anyopaque) u64 {
    const self = selfOf(context);
    self.counter += 1;
    return self.counter;
}

const testing = std.testing;

/// One atomic replacement of a file, cut at every operation, in every way: the name holds the old or the new content.
/// Returns how many cases held anything else.
fn sweep(skip_sync: bool) !usize {
    const old = "old content";
    var new: [1500]u8 = undefined;
    for (&new, 0..) |*b, i| b.* = @truncate(i);
    var bad: usize = 0;
    var at: usize = 0;
    while (true) : (at += 1) {
        var reached_end = false;
        for ([_]bool{ true, false }) |before| for (std.enums.values(Crash)) |crash| for (0..6) |seed| {
            var disk: MemoryDisk = try .init(testing.allocator);
            defer disk.deinit();

            const s = disk.storage();
            try s.ensureFolder("run");
            try storage_file.writeFile(testing.allocator, s, "run/f", old);
            disk.skip_sync = skip_sync;
            const first = disk.operations;
            disk.fault = .{ .at = first + at, .what = if (before) .power_off_before else .power_off_after };
            const saved = if (storage_file.writeFile(testing.allocator, s, "run/f", &new)) |_| true else |_| false;
            if (disk.operations <= first + at) reached_end = true;
            try disk.reboot(crash, seed);
            const read = s.readAlloc(testing.allocator, "run/f") catch {
                bad += 1;
                continue;
            };
            defer testing.allocator.free(read);

            const is_new = std.mem.eql(u8, read, &new);
            if (!is_new and (saved or !std.mem.eql(u8, read, old))) bad += 1;
        };
        if (reached_end) return bad;
    }
}

test "an atomic file survives a power loss at every operation" {
    try testing.expectEqual(0, try sweep(false));
}

test "canary: the sweep notices a disk whose sync does nothing" {
    try testing.expect(try sweep(true) > 0);
}

test "a failing operation is reported, once or for ever, and the old content stays" {
    const causes = [_]Error{ error.NoSpaceLeft, error.InputOutput };
    for (causes) |cause| for ([_]bool{ false, true }) |from_then_on| {
        var at: usize = 0;
        while (true) : (at += 1) {
            var disk: MemoryDisk = try .init(testing.allocator);
            defer disk.deinit();

            const s = disk.storage();
            try storage_file.writeFile(testing.allocator, s, "f", "old");
            disk.fault = .{ .at = disk.operations + at, .what = .{ .fail = cause }, .from_then_on = from_then_on };
            const ended = disk.operations;
            if (storage_file.writeFile(testing.allocator, s, "f", "new")) |_| {
                try testing.expect(at >= disk.operations - ended);
                break;
            } else |err| try testing.expectEqual(cause, err);
            disk.fault = null;
            const read = try s.readAlloc(testing.allocator, "f");
            defer testing.allocator.free(read);

            // Operation 4 is the sync of the folder: by then the new name stands, but nobody was told that it will.
            try testing.expect(std.mem.eql(u8, read, "old") or at == 4);
        }
    };
}

test "short writes are continued, empty ones are an error" {
    var disk: MemoryDisk = try .init(testing.allocator);
    defer disk.deinit();

    const s = disk.storage();
    disk.fault = .{ .at = 1, .what = .short_write };
    try storage_file.writeFile(testing.allocator, s, "f", "0123456789");
    const read = try s.readAlloc(testing.allocator, "f");
    defer testing.allocator.free(read);

    try testing.expectEqualStrings("0123456789", read);
    disk.fault = .{ .at = disk.operations + 1, .what = .short_write, .from_then_on = true };
    try testing.expectError(error.ShortWrite, storage_file.writeFile(testing.allocator, s, "f", "abcdefgh"));
    disk.fault = .{ .at = disk.operations + 1, .what = .zero_write };
    try testing.expectError(error.ShortWrite, storage_file.writeFile(testing.allocator, s, "f", "abcdefgh"));
}

test "the lock of a memory disk is exclusive" {
    var disk: MemoryDisk = try .init(testing.allocator);
    defer disk.deinit();

    const s = disk.storage();
    var held = try s.lock("run.lock");
    try testing.expectError(error.Locked, s.lock("run.lock"));
    held.release();
    var again = try s.lock("run.lock");
    again.release();
}
