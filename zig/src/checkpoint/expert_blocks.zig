//! Experts' weights of a Hugging Face folder in MXFP4: two tensors of bytes in the place of one of floats.
//!
//! `NAME_blocks` (expert, out, in / 32, 16) holds the codes of two neighbours in a byte, `NAME_scales` (expert, out, in / 32) the
//! exponents of their groups of 32. The parameter NAME they stand for is (expert, in, out): turned. Each problem is told by name:
//! one of the two missing, a wrong shape, another type than bytes, floats beside them.
//! Does not know: files, products.

const std = @import("std");
const base = @import("base");
const tensor = @import("tensor");
const arch = @import("arch");
const formats = @import("formats");
const model_file = @import("model_file.zig");
const Diagnostic = base.Diagnostic;
const Tensor = formats.safetensors.Tensor;
const mxfp4 = tensor.blocks.mxfp4;

const endings = [2][]const u8{ "_blocks", "_scales" };
/// The largest exponent; 255 is no number.
const group = mxfp4.len;

/// The two tensors of each parameter, as they are found.
pub const Blocks = struct {
    by_name: std.StringHashMapUnmanaged(u32),
    /// One a parameter of the layout; empty in a model without experts.
    found: []Pair,

    const Pair = [2]?*const Tensor;

    pub fn init(gpa: std.mem.Allocator, layout: *const arch.Layout) error{OutOfMemory}!Blocks {
        var self: Blocks = .{ .by_name = .empty, .found = &.{} };
        errdefer self.deinit(gpa);

        for (layout.parameters, 0..) |p, i| if (p.role.isExpertWeight()) {
            try self.by_name.put(gpa, p.name, @intCast(i));
        };
        if (self.by_name.count() == 0) return self;
        self.found = try gpa.alloc(Pair, layout.parameters.len);
        @memset(self.found, .{ null, null });
        return self;
    }

    pub fn deinit(self: *Blocks, gpa: std.mem.Allocator) void {
        self.by_name.deinit(gpa);
        gpa.free(self.found);
        self.* = undefined;
    }

    /// Keeps a tensor that is one of the two; says whether it was there before. Null for any other.
    pub fn take(self: *Blocks, t: *const Tensor) ?bool {
        for (endings, 0..) |ending, which| {
            if (!std.mem.endsWith(u8, t.name, ending)) continue;
            const at = self.by_name.get(t.name[0 .. t.name.len - ending.len]) orelse return null;
            defer self.found[at][which] = t;
            return self.found[at][which] != null;
        }
        return null;
    }

    /// The source of parameter `i`, or null if it has no blocks. `has_floats`: the parameter's own tensor is there too.
    pub fn sourceOf(self: *const Blocks, p: *const arch.Parameter, i: usize, has_floats: bool, diag: *Diagnostic) model_file.MatchError!?model_file.Source {
        if (self.found.len == 0) return null;
        const pair = self.found[i];
        if (pair[0] == null and pair[1] == null) return null;
        if (has_floats) {
            diag.set("\"{s}\" is there as floats and in MXFP4. Leave one of the two out", .{p.name});
            return error.DuplicateTensor;
        }
        for (pair, endings) |t, ending| if (t == null) {
            diag.set("tensor \"{s}{s}\" is missing: MXFP4 is stored as blocks and their scales", .{ p.name, ending });
            return error.MissingTensor;
        };
        if (p.shape[0] % group != 0) {
            diag.set("\"{s}\" is stored in MXFP4, whose groups are {d} long, but config.json gives it {d} inputs", .{ p.name, group, p.shape[0] });
            return error.WrongShape;
        }
        const wanted = [4]usize{ p.count(), p.shape[1], p.shape[0] / group, group / 2 };
        for (pair, endings, [2]usize{ 4, 3 }) |t, ending, rank| {
            if (t.?.dtype != .u8) {
                diag.set("tensor \"{s}{s}\" has type {s}; MXFP4 is stored as U8", .{ p.name, ending, t.?.dtype.label() });
                return error.WrongDType;
            }
            if (!std.mem.eql(usize, t.?.shape, wanted[0..rank])) {
                diag.set("tensor \"{s}{s}\" has shape {any}; config.json asks for {any}", .{ p.name, ending, t.?.shape, wanted[0..rank] });
                return error.WrongShape;
            }
        }
        if (std.mem.findScalar(u8, pair[1].?.bytes, 255)) |at| {
            diag.set("tensor \"{s}_scales\" holds 255 at element {d}, which is no number. The model is damaged", .{ p.name, at });
            return error.NonFiniteWeights;
        }
        return .{ .values = pair[0], .scales = pair[1] };
    }
};

/// out (expert, in, out) = the numbers. Shapes are those `sourceOf` compared.
pub fn expand(comptime T: type, p: *const arch.Parameter, codes: []const u8, scales: []const u8, out: []T) void {
    const in, const wide = p.shape;
    var numbers: [group]f32 = undefined;
    for (0..p.count()) |e| for (0..wide) |o| for (0..in / group) |b| {
        const block = (e * wide + o) * (in / group) + b;
        mxfp4.dequantizePairs(scales[block], codes[16 * block ..][0..16], &numbers);
        for (numbers, b * group..) |x, i| out[(e * in + i) * wide + o] = x;
    };
}

test {
    _ = @import("expert_blocks_test.zig");
}
