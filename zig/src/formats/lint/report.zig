//! What was found in one file: a list of findings that does not grow with the file.
//!
//! Texts live in the caller's arena. Does not know: how anything is found or mended.

const std = @import("std");
const base = @import("base");
const rules = @import("rules.zig");
const Code = rules.Code;

pub const Finding = struct {
    code: Code,
    /// The key, the tensor or the part of the file.
    field: []const u8,
    /// What is wrong, with its values.
    message: []const u8,
    /// Writing the file anew mends it.
    mended: bool,
};

pub const Report = struct {
    arena: std.mem.Allocator,
    findings: std.ArrayList(Finding) = .empty,
    counts: std.EnumArray(Code, usize) = .initFill(0),

    /// Of each code so many are listed, the others counted.
    pub const listed_most = 12;

    /// `mended` says that the fault is gone from what `--fix` would write.
    pub fn add(self: *Report, code: Code, field: []const u8, mended: bool, comptime format: []const u8, arguments: anytype) error{OutOfMemory}!void {
        const so_far = self.counts.getPtr(code);
        so_far.* += 1;
        if (so_far.* > listed_most) return;
        try self.findings.append(self.arena, .{
            .code = code,
            .field = try self.visible(field),
            .message = try std.fmt.allocPrint(self.arena, format, arguments),
            .mended = mended,
        });
    }

    /// Names come out of files: nothing that moves a cursor gets through.
    fn visible(self: *Report, field: []const u8) error{OutOfMemory}![]const u8 {
        const plain = std.unicode.utf8ValidateSlice(field) and for (field) |c| {
            if (c < 0x20 or c == 0x7F) break false;
        } else true;
        const shown = if (plain) field else try std.fmt.allocPrint(self.arena, "{f}", .{base.bytes.printable(field)});
        if (shown.len <= 120) return self.arena.dupe(u8, shown);
        var end: usize = 117;
        while (end > 0 and shown[end] & 0xC0 == 0x80) end -= 1;
        return std.fmt.allocPrint(self.arena, "{s}…", .{shown[0..end]});
    }

    pub fn has(self: *const Report, code: Code) bool {
        return self.counts.get(code) > 0;
    }

    pub fn count(self: *const Report, severity: rules.Severity) usize {
        var total: usize = 0;
        inline for (@typeInfo(Code).@"enum".field_names) |name| {
            const code = @field(Code, name);
            if (code.rule().severity == severity) total += self.counts.get(code);
        }
        return total;
    }

    /// Findings that `--fix` mends.
    pub fn mendable(self: *const Report) usize {
        var total: usize = 0;
        for (self.findings.items) |finding| total += @intFromBool(finding.mended);
        return total;
    }

    /// How many of this code are in the list.
    pub fn listedOf(self: *const Report, code: Code) usize {
        return @min(self.counts.get(code), listed_most);
    }

    /// How many were counted and not listed.
    pub fn omitted(self: *const Report) usize {
        var total: usize = 0;
        for (std.enums.values(Code)) |code| total += self.counts.get(code) -| listed_most;
        return total;
    }
};
