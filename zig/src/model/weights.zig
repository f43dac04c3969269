//! What a pass through the model reads and what it adds gradients to.
//!
//! The base is either dense, one flat array in the layout's order, or frozen, one stored matrix a parameter (f32 models
//! only). An adapter lies beside it and never in it: one base serves many adapters, and none.
//! Does not know: where the numbers come from, who owns them.

const std = @import("std");
const arch = @import("arch");
const ops = @import("ops");

pub fn Base(comptime T: type) type {
    return union(enum) {
        /// Flat, in the layout's order.
        dense: []const T,
        /// One a parameter of the layout, in its order. Norms and biases answer `vector()`.
        frozen: []const ops.frozen.Matrix,
    };
}

/// LoRA's dropout in one pass. `key` is fresh for each micro-batch; forward and backward of it use the same.
pub const Dropout = struct {
    probability: f64 = 0,
    key: u64 = 0,
};

pub fn Adapter(comptime T: type) type {
    return struct {
        layout: *const arch.AdapterLayout,
        /// Flat, in the adapter layout's order.
        values: []const T,
        dropout: Dropout = .{},
    };
}

pub fn Weights(comptime T: type) type {
    return struct {
        base: Base(T),
        adapter: ?Adapter(T) = null,

        const Self = @This();

        pub fn dense(flat: []const T) Self {
            return .{ .base = .{ .dense = flat } };
        }

        /// The same base without its adapter.
        pub fn bare(self: Self) Self {
            return .{ .base = self.base };
        }

        /// A norm's, a bias's or the sinks' numbers; all experts' biases of a layer are one.
        pub fn vector(self: Self, layout: *const arch.Layout, p: *const arch.Parameter) []const T {
            std.debug.assert(p.rank == 1 or p.role.isBias());
            switch (self.base) {
                .dense => |flat| return p.sliceConst(T, flat),
                .frozen => |matrices| {
                    if (T != f32) unreachable; // A f64 model is loaded whole.
                    return matrices[layout.positionOf(p)].vector();
                },
            }
        }
    };
}

/// Where a backward pass adds to: the model's gradient or the adapter's, flat in the layout's order. A frozen weight's
/// gradient is never computed and has no buffer.
pub fn Gradients(comptime T: type) type {
    return union(enum) {
        base: []T,
        adapter: []T,
    };
}
