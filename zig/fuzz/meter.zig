//! An allocator that knows how much is in use and stops the process when a case asks for more than its size can explain.

const std = @import("std");
const Allocator = std.mem.Allocator;
const Alignment = std.mem.Alignment;

pub const Meter = struct {
    parent: Allocator,
    /// Bytes that one case may have at once.
    most: usize,
    used: usize = 0,

    pub fn allocator(self: *Meter) Allocator {
        return .{ .ptr = self, .vtable = &.{ .alloc = alloc, .resize = resize, .remap = remap, .free = free } };
    }

    fn take(self: *Meter, count: usize) void {
        self.used += count;
        if (self.used > self.most) std.debug.panic("{d} bytes for a case that explains {d}", .{ self.used, self.most });
    }

    fn alloc(context: *anyopaque, len: usize, alignment: Alignment, address: usize) ?[*]u8 {
        const self: *Meter = @ptrCast(@alignCast(context));
        self.take(len);
        return self.parent.rawAlloc(len, alignment, address);
    }

    fn resize(context: *anyopaque, memory: []u8, alignment: Alignment, len: usize, address: usize) bool {
        const self: *Meter = @ptrCast(@alignCast(context));
        if (!self.parent.rawResize(memory, alignment, len, address)) return false;
        self.used -= memory.len;
        self.take(len);
        return true;
    }

    fn remap(context: *anyopaque, memory: []u8, alignment: Alignment, len: usize, address: usize) ?[*]u8 {
        const self: *Meter = @ptrCast(@alignCast(context));
        const moved = self.parent.rawRemap(memory, alignment, len, address) orelse return null;
        self.used -= memory.len;
        self.take(len);
        return moved;
    }

    fn free(context: *anyopaque, memory: []u8, alignment: Alignment, address: usize) void {
        const self: *Meter = @ptrCast(@alignCast(context));
        self.used -= memory.len;
        self.parent.rawFree(memory, alignment, address);
    }
};
