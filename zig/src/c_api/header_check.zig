//! Compares the translated header with the Zig exports at compile time, in both directions: names, number and types
//! of parameters, return types, calling convention. A difference does not compile.

const std = @import("std");

/// `impls` is a tuple of files; each header function must be a `pub` declaration of exactly one of them.
pub fn compare(comptime header: type, comptime impls: anytype, comptime prefix: []const u8) void {
    @setEvalBranchQuota(10_000_000);
    for (@typeInfo(header).@"struct".decl_names) |name| {
        if (!std.mem.startsWith(u8, name, prefix)) continue;
        const H = @TypeOf(@field(header, name));
        if (@typeInfo(H) != .@"fn") continue;
        var count: usize = 0;
        for (impls) |impl| {
            if (!@hasDecl(impl, name)) continue;
            count += 1;
            function(name, @typeInfo(H).@"fn", @typeInfo(@TypeOf(@field(impl, name))).@"fn");
        }
        if (count == 0) @compileError("in the header, not in Zig: " ++ name);
        if (count > 1) @compileError("in two Zig files: " ++ name);
    }
    for (impls) |impl| for (@typeInfo(impl).@"struct".decl_names) |name| {
        if (std.mem.startsWith(u8, name, prefix) and !@hasDecl(header, name))
            @compileError("exported by Zig, not in the header: " ++ name);
    };
}

fn function(comptime name: []const u8, comptime h: std.builtin.Type.Fn, comptime z: std.builtin.Type.Fn) void {
    if (h.param_types.len != z.param_types.len) @compileError(name ++ ": number of parameters");
    if (!std.meta.eql(h.attrs.@"callconv", z.attrs.@"callconv")) @compileError(name ++ ": not callconv(.c)");
    for (h.param_types, z.param_types, 0..) |a, b, i| {
        if (!compatible(a.?, b.?)) @compileError(std.fmt.comptimePrint("{s}: parameter {d}: header {s}, Zig {s}", .{ name, i, @typeName(a.?), @typeName(b.?) }));
    }
    if (!compatible(h.return_type.?, z.return_type.?)) @compileError(name ++ ": return type");
}

/// [*c]const f32 ~ [*]const f32 ~ ?*const f32: what C cannot tell apart.
fn compatible(comptime A: type, comptime B: type) bool {
    if (A == B) return true;
    const a = pointer(A) orelse return false;
    const b = pointer(B) orelse return false;
    if (a.attrs.@"const" != b.attrs.@"const") return false;
    return compatible(a.child, b.child);
}

fn pointer(comptime T: type) ?std.builtin.Type.Pointer {
    return switch (@typeInfo(T)) {
        .pointer => |p| if (p.size == .slice) null else p,
        .optional => |o| pointer(o.child),
        else => null,
    };
}

test "pointers to the same thing match however they are spelled" {
    try std.testing.expect(comptime compatible([*c]const f32, ?[*]const f32));
    try std.testing.expect(comptime !compatible([*c]const f32, ?[*]f32));
    try std.testing.expect(comptime !compatible(u32, i32));
}
