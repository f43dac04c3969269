//! The table behind the numbers C code calls handles.
//!
//! A handle is kind (8 bits), slot + 1 (24 bits), generation (32 bits). Freeing a slot raises its generation, so an
//! old number is noticed, not followed. Objects are counted: the table holds one reference, every object that uses
//! another holds one more, and every running call holds one, so freeing in any order is safe. A call that changes
//! an object takes it exclusively; a second one is told that the object is busy.
//! Invariant: nothing outside this file turns a number from C into an address.

const std = @import("std");
const c = @import("abi_h");
const failure = @import("failure.zig");

const Status = failure.Status;

pub const Kind = enum(u8) { dataset = 1, batches, loader, instructions, tokenizer, model, trainer, generator, writer, preparation };

/// What every object begins with. `destroy` gets the address of this field.
pub const Header = struct {
    references: std.atomic.Value(u32) = .init(1),
    destroy: *const fn (*Header) void,

    pub fn retain(self: *Header) void {
        const before = self.references.fetchAdd(1, .monotonic);
        std.debug.assert(before > 0);
    }

    pub fn release(self: *Header) void {
        const before = self.references.fetchSub(1, .acq_rel);
        std.debug.assert(before > 0);
        if (before == 1) self.destroy(self);
    }
};

/// A counted object around `Payload`, which has `deinit(*Payload) void`.
pub fn Object(comptime object_kind: Kind, comptime Payload: type) type {
    return struct {
        header: Header,
        value: Payload,

        const Self = @This();
        pub const kind = object_kind;

        /// Moves `value` into an object of the table. On failure it stays the caller's.
        pub fn make(value: Payload) error{OutOfMemory}!u64 {
            const self = try table_gpa.create(Self);
            errdefer table_gpa.destroy(self);

            self.* = .{ .header = .{ .destroy = destroy }, .value = value };
            return insert(object_kind, &self.header);
        }

        fn destroy(header: *Header) void {
            const self: *Self = @fieldParentPtr("header", header);
            self.value.deinit();
            table_gpa.destroy(self);
        }
    };
}

/// How a call uses the object.
pub const Use = enum {
    /// Reads, and does not mind others.
    shared,
    /// Changes it.
    exclusive,
    /// Touches atomics only: allowed while another call has it exclusively.
    signal,
};

const Slot = struct {
    generation: u32 = 1,
    kind: Kind = .dataset,
    header: ?*Header = null,
    readers: u32 = 0,
    writing: bool = false,
};

const Lock = struct {
    state: std.atomic.Value(bool) = .init(false),

    /// Held for a few instructions only, so spinning is cheaper than sleeping.
    fn acquire(self: *Lock) void {
        while (self.state.swap(true, .acquire)) std.Thread.yield() catch std.atomic.spinLoopHint();
    }

    fn release(self: *Lock) void {
        self.state.store(false, .release);
    }
};

const max_slots = (1 << 24) - 1;

var lock: Lock = .{};
var slots: std.ArrayList(Slot) = .empty;
var free_slots: std.ArrayList(u32) = .empty;
const table_gpa = std.heap.c_allocator;

fn pack(kind: Kind, index: u32, generation: u32) u64 {
    return @as(u64, @backingInt(kind)) << 56 | @as(u64, index + 1) << 32 | generation;
}

/// Gives `header` (with its first reference) to the table.
pub fn insert(kind: Kind, header: *Header) error{OutOfMemory}!u64 {
    lock.acquire();
    defer lock.release();

    const index: u32 = free_slots.pop() orelse blk: {
        if (slots.items.len >= max_slots) return error.OutOfMemory;
        // Room for every slot to become free again, so that freeing never needs memory.
        try free_slots.ensureTotalCapacity(table_gpa, slots.items.len + 1);
        try slots.append(table_gpa, .{});
        break :blk @intCast(slots.items.len - 1);
    };
    const slot = &slots.items[index];
    slot.* = .{ .generation = slot.generation, .kind = kind, .header = header };
    return pack(kind, index, slot.generation);
}

const Found = union(enum) { slot: u32, status: Status };

/// With the lock held.
fn find(kind: Kind, handle: u64) Found {
    const tag: u8 = @truncate(handle >> 56);
    const position: u32 = @as(u24, @truncate(handle >> 32));
    const generation: u32 = @truncate(handle);
    if (handle == 0) return .{ .status = failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "the {t} handle is 0", .{kind}) };
    if (position == 0 or position > slots.items.len)
        return .{ .status = failure.say(c.ABT_STATUS_STALE_HANDLE, "no {t} has the handle 0x{x}", .{ kind, handle }) };
    const slot = &slots.items[position - 1];
    if (tag != @backingInt(kind)) {
        if (slot.header != null and slot.generation == generation and @backingInt(slot.kind) == tag)
            return .{ .status = failure.say(c.ABT_STATUS_WRONG_HANDLE, "the handle 0x{x} is of a {t}, not of a {t}", .{ handle, slot.kind, kind }) };
        return .{ .status = failure.say(c.ABT_STATUS_WRONG_HANDLE, "0x{x} is not the handle of a {t}", .{ handle, kind }) };
    }
    if (slot.header == null or slot.generation != generation or slot.kind != kind)
        return .{ .status = failure.say(c.ABT_STATUS_STALE_HANDLE, "the {t} with the handle 0x{x} was freed before", .{ kind, handle }) };
    return .{ .slot = position - 1 };
}

/// A running call's hold on an object.
pub fn Held(comptime T: type) type {
    return struct {
        object: *T,
        index: u32,
        use: Use,

        const Self = @This();

        pub fn release(self: Self) void {
            {
                lock.acquire();
                defer lock.release();

                const slot = &slots.items[self.index];
                switch (self.use) {
                    .shared => slot.readers -= 1,
                    .exclusive => slot.writing = false,
                    .signal => {},
                }
            }
            self.object.header.release();
        }
    };
}

/// Looks `handle` up for one call. On failure `out_status` says why and null is returned.
pub fn acquire(comptime T: type, handle: u64, use: Use, out_status: *Status) ?Held(T) {
    lock.acquire();
    defer lock.release();

    const index = switch (find(T.kind, handle)) {
        .slot => |i| i,
        .status => |s| {
            out_status.* = s;
            return null;
        },
    };
    const slot = &slots.items[index];
    const taken = switch (use) {
        .shared => slot.writing,
        .exclusive => slot.writing or slot.readers != 0,
        .signal => false,
    };
    if (taken) {
        out_status.* = failure.say(c.ABT_STATUS_BUSY, "another call is using this {t}; wait for it", .{T.kind});
        return null;
    }
    switch (use) {
        .shared => slot.readers += 1,
        .exclusive => slot.writing = true,
        .signal => {},
    }
    slot.header.?.retain();
    return .{ .object = @fieldParentPtr("header", slot.header.?), .index = index, .use = use };
}

/// Takes the handle out of the table and drops the table's reference. 0 is nothing to do.
pub fn free(comptime T: type, handle: u64) Status {
    if (handle == 0) return c.ABT_STATUS_OK;
    const header = blk: {
        lock.acquire();
        defer lock.release();

        const index = switch (find(T.kind, handle)) {
            .slot => |i| i,
            .status => |s| return s,
        };
        const slot = &slots.items[index];
        if (slot.writing or slot.readers != 0)
            return failure.say(c.ABT_STATUS_BUSY, "a call is still using this {t}; wait for it before freeing", .{T.kind});
        const header = slot.header.?;
        slot.header = null;
        slot.generation +%= 1;
        if (slot.generation == 0) slot.generation = 1;
        free_slots.appendAssumeCapacity(index);
        break :blk header;
    };
    header.release();
    return c.ABT_STATUS_OK;
}

// ---- tests ----

const Probe = struct {
    header: Header,
    destroyed: *u32,

    pub const kind: Kind = .model;

    fn make(destroyed: *u32) !u64 {
        const probe = try std.testing.allocator.create(Probe);
        probe.* = .{ .header = .{ .destroy = destroy }, .destroyed = destroyed };
        return insert(kind, &probe.header);
    }

    fn destroy(header: *Header) void {
        const probe: *Probe = @fieldParentPtr("header", header);
        probe.destroyed.* += 1;
        std.testing.allocator.destroy(probe);
    }
};

const OtherProbe = struct {
    header: Header,
    pub const kind: Kind = .trainer;
};

test "a freed handle is stale, also after its slot is used again" {
    var destroyed: u32 = 0;
    var status: Status = undefined;
    const first = try Probe.make(&destroyed);
    try std.testing.expectEqual(@as(Status, c.ABT_STATUS_OK), free(Probe, first));
    try std.testing.expectEqual(1, destroyed);
    try std.testing.expectEqual(@as(Status, c.ABT_STATUS_STALE_HANDLE), free(Probe, first));
    const second = try Probe.make(&destroyed);
    try std.testing.expect(first != second);
    try std.testing.expectEqual(null, acquire(Probe, first, .shared, &status));
    try std.testing.expectEqual(@as(Status, c.ABT_STATUS_STALE_HANDLE), status);
    try std.testing.expectEqual(@as(Status, c.ABT_STATUS_OK), free(Probe, second));
}

test "another kind, zero and noise are refused" {
    var destroyed: u32 = 0;
    var status: Status = undefined;
    const handle = try Probe.make(&destroyed);
    try std.testing.expectEqual(null, acquire(OtherProbe, handle, .shared, &status));
    try std.testing.expectEqual(@as(Status, c.ABT_STATUS_WRONG_HANDLE), status);
    try std.testing.expectEqual(null, acquire(Probe, 0, .shared, &status));
    try std.testing.expectEqual(@as(Status, c.ABT_STATUS_INVALID_ARGUMENT), status);
    var random: std.Random.DefaultPrng = .init(7);
    for (0..1000) |_| {
        const noise = random.random().int(u64) | 1 << 63; // no kind has that bit
        try std.testing.expectEqual(null, acquire(Probe, noise, .shared, &status));
        try std.testing.expect(status != c.ABT_STATUS_OK);
    }
    try std.testing.expectEqual(@as(Status, c.ABT_STATUS_OK), free(Probe, 0));
    try std.testing.expectEqual(@as(Status, c.ABT_STATUS_OK), free(Probe, handle));
}

test "a writer excludes, a signal does not, and free waits for both" {
    var destroyed: u32 = 0;
    var status: Status = undefined;
    const handle = try Probe.make(&destroyed);
    const writer = acquire(Probe, handle, .exclusive, &status).?;
    try std.testing.expectEqual(null, acquire(Probe, handle, .shared, &status));
    try std.testing.expectEqual(@as(Status, c.ABT_STATUS_BUSY), status);
    const signal = acquire(Probe, handle, .signal, &status).?;
    signal.release();
    try std.testing.expectEqual(@as(Status, c.ABT_STATUS_BUSY), free(Probe, handle));
    writer.release();
    const reader = acquire(Probe, handle, .shared, &status).?;
    const another = acquire(Probe, handle, .shared, &status).?;
    try std.testing.expectEqual(null, acquire(Probe, handle, .exclusive, &status));
    reader.release();
    another.release();
    try std.testing.expectEqual(@as(Status, c.ABT_STATUS_OK), free(Probe, handle));
    try std.testing.expectEqual(1, destroyed);
}

test "an object lives as long as another one uses it" {
    var destroyed: u32 = 0;
    var status: Status = undefined;
    const handle = try Probe.make(&destroyed);
    const held = acquire(Probe, handle, .shared, &status).?;
    held.object.header.retain();
    const user = &held.object.header;
    held.release();
    try std.testing.expectEqual(@as(Status, c.ABT_STATUS_OK), free(Probe, handle));
    try std.testing.expectEqual(0, destroyed);
    user.release();
    try std.testing.expectEqual(1, destroyed);
}
