//! `abi lint`: everything in a GGUF file that makes some program refuse it, abort, or compute something else.
//!
//! Opens a file, or all parts of one, more patiently than the readers do, runs every check, and keeps the file as it would be written
//! without what can be mended. `Session.write` writes that. Nothing is ever written over the input by itself.
//! Does not know: terminals, what the checks look for.

const std = @import("std");
const base = @import("base");
const gguf = @import("../gguf.zig");
const gguf_import = @import("../gguf_import.zig");
const gguf_parts = @import("../gguf_parts.zig");
const gguf_rewrite = @import("../gguf_rewrite.zig");
const abi_import = @import("../abi_import.zig");
const ollama_import = @import("../ollama_import.zig");
const architectures = @import("architectures.zig");
const general = @import("general.zig");
const keys = @import("keys.zig");
const subject_file = @import("subject.zig");
const tensors = @import("tensors.zig");
const template = @import("template.zig");
pub const rules = @import("rules.zig");
pub const tokens = @import("tokens.zig");
const report_file = @import("report.zig");
const Diagnostic = base.Diagnostic;
const Storage = base.storage.Storage;
const Subject = subject_file.Subject;
const printable = base.bytes.printable;

pub const Code = rules.Code;
pub const Severity = rules.Severity;
pub const Finding = report_file.Finding;
pub const Report = report_file.Report;

pub const Options = struct {
    /// Look at the numbers too, which reads the whole file.
    numbers: bool = true,
    /// Instead of `tokenizer.ggml.pre`; one of `tokens.isCuttingRule`.
    pre: ?[]const u8 = null,
    /// Whether this program's tokenizer takes the file; false after it said why. This layer has none.
    tokenizer: ?*const fn (std.mem.Allocator, *const gguf.File, *Diagnostic) error{OutOfMemory}!bool = null,
};

pub const OpenError = gguf.Error || base.storage.Error;

pub const WriteError = gguf_rewrite.Error || error{
    /// Data is missing, names clash, or there are parts that are not there.
    NotMendable,
};

pub const Session = struct {
    arena: *std.heap.ArenaAllocator,
    mappings: std.ArrayList(base.storage.Mapping) = .empty,
    files: std.ArrayList(gguf.File) = .empty,
    report: *Report,
    subject: *Subject,
    options: Options,
    /// Of the file that was named.
    raw: []const u8 = &.{},
    /// Why nothing can be written; null when something can.
    blocked: ?[]const u8 = null,

    /// Reads and checks. An error means that the file cannot be read at all; `diag` says why. Caller calls `deinit`.
    pub fn open(gpa: std.mem.Allocator, storage: Storage, path: []const u8, options: Options, diag: *Diagnostic) OpenError!Session {
        var self: Session = try .init(gpa, options);
        errdefer self.deinit();

        const a = self.arena.allocator();
        var mapping = storage.map(path) catch |err| {
            base.storage.explain(diag, err, "read", path);
            return err;
        };
        self.mappings.append(a, mapping) catch |err| {
            mapping.unmap();
            return err;
        };
        const complete = self.add(gpa, mapping.bytes, diag) catch |err| {
            diag.prepend("{s}: ", .{path});
            return err;
        } and try self.openParts(gpa, storage, path, diag);
        try self.examine(complete, diag);
        return self;
    }

    /// The same for bytes in memory, which must outlive the result; a part of a split model counts as incomplete.
    pub fn ofBytes(gpa: std.mem.Allocator, raw: []const u8, options: Options, diag: *Diagnostic) OpenError!Session {
        var self: Session = try .init(gpa, options);
        errdefer self.deinit();

        _ = try self.add(gpa, raw, diag);
        const count = partCount(&self.files.items[0]);
        if (count > 1) try self.incomplete("split.count", "the file is one of {d} parts", .{count});
        try self.examine(count <= 1, diag);
        return self;
    }

    fn init(gpa: std.mem.Allocator, options: Options) error{OutOfMemory}!Session {
        const arena = try gpa.create(std.heap.ArenaAllocator);
        arena.* = .init(gpa);
        errdefer {
            arena.deinit();
            gpa.destroy(arena);
        }
        const a = arena.allocator();
        const report = try a.create(Report);
        report.* = .{ .arena = a };
        const subject = try a.create(Subject);
        subject.* = .{ .arena = a, .report = report };
        return .{ .arena = arena, .report = report, .subject = subject, .options = options };
    }

    pub fn deinit(self: *Session) void {
        for (self.files.items) |*file| file.deinit();
        for (self.mappings.items) |*mapping| mapping.unmap();
        const gpa = self.arena.child_allocator;
        self.arena.deinit();
        gpa.destroy(self.arena);
        self.* = undefined;
    }

    /// Writes the file as it stands after mending, atomically: `path` may be the file that was read.
    pub fn write(self: *const Session, gpa: std.mem.Allocator, storage: Storage, free: ?u64, path: []const u8, diag: *Diagnostic) WriteError!gguf_rewrite.Report {
        if (self.blocked) |why| {
            diag.set("{s} cannot be written: {s}", .{ path, why });
            return error.NotMendable;
        }
        return gguf_rewrite.write(gpa, storage, free, path, &self.subject.keys, self.subject.tensors.items, diag);
    }

    /// True; the parts of a split model come later.
    fn add(self: *Session, gpa: std.mem.Allocator, raw: []const u8, diag: *Diagnostic) OpenError!bool {
        const a = self.arena.allocator();
        if (self.files.items.len == 0) self.raw = raw;
        try self.files.ensureUnusedCapacity(a, 1);
        var complaints: gguf.Complaints = .{};
        self.files.appendAssumeCapacity(try gguf.File.parseTolerant(gpa, raw, &complaints, diag));
        for (complaints.list.items) |c| {
            if (!c.mendable and self.blocked == null) self.blocked = try a.dupe(u8, c.text);
            const code = codeOf(c) orelse continue;
            const field = if (c.subject.len > 0) c.subject else "the file";
            try self.report.add(code, field, c.mendable, "{s}", .{c.text});
        }
        // Beyond so many complaints only offsets are left to complain about.
        self.report.counts.getPtr(.tensor_offset).* += complaints.omitted;
        return true;
    }

    fn codeOf(complaint: gguf.Complaint) ?Code {
        return switch (complaint.err) {
            error.InvalidAlignment => .alignment,
            error.EmptyKey, error.KeyTooLong => .key_name,
            error.InvalidUtf8 => if (complaint.mendable) .key_name else .tensor_name,
            error.DuplicateKey => .key_duplicate,
            error.EmptyTensorName, error.TensorNameTooLong, error.InvalidTensorName => .tensor_name,
            error.DuplicateTensor => .tensor_duplicate,
            error.InvalidDimension => .tensor_dimension,
            error.InvalidTensorOffset => .tensor_offset,
            error.TensorOutOfBounds => .tensor_cut,
            error.TrailingBytes => .trailing_bytes,
            else => null, // The retired type is a finding of the import, others are no complaints.
        };
    }

    fn partCount(file: *const gguf.File) usize {
        return switch (file.get(gguf_parts.split_keys.count) orelse return 1) {
            inline .u8, .u16, .u32, .u64 => |n| @intCast(@min(n, std.math.maxInt(u16))),
            inline .i8, .i16, .i32, .i64 => |n| if (n > 0) @intCast(@min(n, std.math.maxInt(u16))) else 1,
            else => 1,
        };
    }

    fn incomplete(self: *Session, field: []const u8, comptime format: []const u8, arguments: anytype) error{OutOfMemory}!void {
        try self.report.add(.split_incomplete, field, false, format, arguments);
        if (self.blocked == null) self.blocked = "parts of the model are missing";
    }

    /// False when parts are missing; then only what is there is looked at.
    fn openParts(self: *Session, gpa: std.mem.Allocator, storage: Storage, path: []const u8, diag: *Diagnostic) OpenError!bool {
        const a = self.arena.allocator();
        const count = partCount(&self.files.items[0]);
        if (count <= 1) return true;
        const prefix = gguf_parts.prefixOf(path) orelse {
            try self.incomplete("split.count", "the file is one of {d} parts, but its name does not end in -00001-of-{d:0>5}.gguf", .{ count, count });
            return false;
        };
        // Not allocated on the file's word: each part is there before the next is asked for.
        var complete = true;
        const named = self.files.items.len;
        for (0..count) |i| {
            var buffer: gguf_parts.NameBuffer = undefined;
            const name = gguf_parts.partName(&buffer, prefix, i, count) catch return error.NameTooLong;
            if (try storage.kind(name) == null) {
                try self.incomplete("split.count", "part {d} of {d}, {s}, is not there", .{ i + 1, count, name });
                complete = false;
                if (self.report.counts.get(.split_incomplete) > Report.listed_most) break;
                continue;
            }
            var mapping = storage.map(name) catch |err| {
                base.storage.explain(diag, err, "read", name);
                return err;
            };
            self.mappings.append(a, mapping) catch |err| {
                mapping.unmap();
                return err;
            };
            _ = self.add(gpa, mapping.bytes, diag) catch |err| {
                diag.prepend("{s}: ", .{name});
                return err;
            };
            const part = &self.files.items[self.files.items.len - 1];
            const says = switch (part.get(gguf_parts.split_keys.number) orelse gguf.Value{ .u16 = 0xFFFF }) {
                inline .u8, .u16, .u32 => |n| @as(usize, n),
                else => 0xFFFF,
            };
            if (says != i or partCount(part) != count) {
                try self.incomplete("split.no", "{s} says that it is part {d} of {d}", .{ name, says +| 1, partCount(part) });
                complete = false;
            }
        }
        if (!complete) return false;
        // The part that was named is among them.
        for (self.files.items[0..named]) |*file| file.deinit();
        const rest = self.files.items[named..];
        std.mem.copyForwards(gguf.File, self.files.items[0..rest.len], rest);
        self.files.shrinkRetainingCapacity(rest.len);
        return true;
    }

    fn examine(self: *Session, complete: bool, diag: *Diagnostic) OpenError!void {
        const subject = self.subject;
        const report = self.report;
        const a = self.arena.allocator();
        const first = &self.files.items[0];
        if (first.alignment < gguf.default_alignment and first.tensors.len > 0)
            try report.add(.alignment_small, "general.alignment", true, "general.alignment is {d}; llama.cpp needs at least {d}", .{ first.alignment, gguf.default_alignment });
        for (first.key_values) |pair| {
            if (pair.key.len == 0 or pair.key.len > gguf.limits.key_bytes or !std.unicode.utf8ValidateSlice(pair.key)) continue;
            const slot = try subject.keys.getOrPut(a, pair.key);
            if (!slot.found_existing) slot.value_ptr.* = pair.value;
        }
        var early: std.ArrayList(bool) = .empty;
        var any_early = false;
        for (self.files.items, 0..) |*file, part| for (file.tensors) |*info| {
            if (subject.tensor(info.name) != null and part > 0) try self.incomplete(info.name, "tensor {f} is in two parts", .{printable(info.name)});
            try subject.addTensor(.of(info));
            try early.append(a, info.early_ollama);
            any_early = any_early or info.early_ollama;
        };
        try keys.checkTypes(subject);
        if (complete and self.files.items.len > 1) try self.checkCount();
        if (subject.tensors.items.len == 0) try report.add(.file_empty, "the file", false, "the file has no tensors", .{});

        subject.named = subject.text("general.architecture") orelse "";
        if (subject.get("general.architecture") == null and !self.isAdapter()) try report.add(.architecture_missing, "general.architecture", false, "general.architecture is missing", .{});
        subject.architecture = std.meta.stringToEnum(subject_file.Architecture, subject.named);
        if (ollama_import.isOllama(subject, any_early)) {
            try ollama_import.translate(subject, early.items);
            try keys.checkTypes(subject);
        } else if (abi_import.isAbi(subject)) try abi_import.translate(subject);

        if (self.isAdapter()) {
            try tensors.checkAdapter(subject);
        } else if (complete) try self.checkModel();
        if (self.options.numbers) try general.scan(subject);
        try self.askOwnReaders(diag);
    }

    fn isAdapter(self: *const Session) bool {
        return std.mem.eql(u8, self.subject.text("general.type") orelse "model", "adapter");
    }

    fn checkModel(self: *Session) error{OutOfMemory}!void {
        const subject = self.subject;
        if (subject.architecture == null and subject.named.len > 0)
            try self.report.add(if (architectures.isKnown(subject.named)) .architecture_unchecked else .architecture_unknown, "general.architecture", false, "general.architecture is {f}", .{printable(subject.named)});
        if (subject.tensors.items.len > 0) {
            try keys.checkMissing(subject);
            try keys.checkValues(subject);
            try tensors.check(subject);
        }
        if (try tokens.check(subject, self.options.pre)) |vocabulary| try template.check(subject, &vocabulary);
        try general.check(subject);
        for ([_][]const u8{ gguf_parts.split_keys.number, gguf_parts.split_keys.count, gguf_parts.split_keys.tensors }) |name| subject.remove(name);
    }

    fn checkCount(self: *Session) error{OutOfMemory}!void {
        const told = switch (self.subject.get(gguf_parts.split_keys.tensors) orelse return self.incomplete(gguf_parts.split_keys.tensors, "{s} is missing", .{gguf_parts.split_keys.tensors})) {
            .i32 => |n| n,
            else => return,
        };
        if (told != self.subject.tensors.items.len)
            try self.incomplete(gguf_parts.split_keys.tensors, "{s} is {d}; the parts hold {d} tensors", .{ gguf_parts.split_keys.tensors, told, self.subject.tensors.items.len });
    }

    /// What no rule knows may still be something that this program cannot do.
    fn askOwnReaders(self: *Session, diag: *Diagnostic) error{OutOfMemory}!void {
        if (self.report.count(.@"error") > 0 or self.subject.architecture == null or self.isAdapter()) return;
        if (self.files.items.len > 1 or self.subject.tensors.items.len == 0) return;
        const file = &self.files.items[0];
        const gpa = self.arena.child_allocator;
        var import = gguf_import.Import.open(gpa, self.raw, diag) catch |err| {
            if (err == error.OutOfMemory) return error.OutOfMemory;
            return self.report.add(.abi_refuses, "the file", false, "{s}", .{diag.text()});
        };
        import.deinit();
        const ask = self.options.tokenizer orelse return;
        if (self.report.has(.tokenizer_missing) or try ask(gpa, file, diag)) return;
        try self.report.add(.abi_refuses, "tokenizer", false, "{s}", .{diag.text()});
    }
};

test {
    _ = rules;
    _ = @import("lint_test.zig");
    _ = general;
    _ = template;
}
