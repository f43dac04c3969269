//! Importance matrices: for each weight matrix, how large the inputs of each column were on a text, as llama.cpp stores it.
//!
//! Read and written in both of its formats: GGUF (sums of squares and counts) and the older `.dat` (averages times calls). What is
//! read is bounded by the bytes there; numbers must be finite and not negative. `importanceOf` gives averages, as its quantiser
//! takes them: a matrix that no token reached counts evenly. Does not know: where the sums come from, how they guide a type.

const std = @import("std");
const base = @import("base");
const gguf = @import("gguf.zig");
const gguf_writer = @import("gguf_writer.zig");
const Allocator = std.mem.Allocator;
const Diagnostic = base.Diagnostic;
const printable = base.bytes.printable;

pub const Error = gguf.Error || gguf.LookupError || error{InvalidImportance};

const sums_ending = ".in_sum2";
const counts_ending = ".counts";

pub const Entry = struct {
    /// Of the squares of each column's inputs; one row a matrix.
    sums: []f32,
    /// Rows of input seen; one a matrix.
    counts: []f32,

    fn columns(self: Entry) usize {
        return self.sums.len / self.counts.len;
    }
};

pub const Importance = struct {
    arena: std.heap.ArenaAllocator,
    /// By the name of the weight, in order of names.
    entries: std.array_hash_map.String(Entry) = .empty,
    /// What the averages are, made when the file was read.
    averages: std.StringHashMapUnmanaged([]const f32) = .empty,
    datasets: []const []const u8 = &.{},
    chunk_count: u32 = 0,
    /// Ids a chunk.
    chunk_size: u32 = 0,

    pub fn init(gpa: Allocator) Importance {
        return .{ .arena = .init(gpa) };
    }

    pub fn deinit(self: *Importance) void {
        self.arena.deinit();
        self.* = undefined;
    }

    /// The average square of the inputs of each column, matrix after matrix; null where the file has nothing of it.
    pub fn importanceOf(self: *const Importance, name: []const u8) ?[]const f32 {
        return self.averages.get(name);
    }

    /// Of either format; `raw` may go afterwards. Caller calls `deinit`.
    pub fn parse(gpa: Allocator, raw: []const u8, diag: *Diagnostic) Error!Importance {
        var self: Importance = .init(gpa);
        errdefer self.deinit();

        if (std.mem.startsWith(u8, raw, gguf.magic)) try self.parseGguf(gpa, raw, diag) else try self.parseLegacy(raw, diag);
        try self.finish(diag);
        return self;
    }

    /// Computes the averages. Call once all entries are there.
    pub fn finish(self: *Importance, diag: *Diagnostic) error{ OutOfMemory, InvalidImportance }!void {
        const a = self.arena.allocator();
        self.entries.sort(struct {
            names: []const []const u8,
            pub fn lessThan(c: @This(), x: usize, y: usize) bool {
                return std.mem.lessThan(u8, c.names[x], c.names[y]);
            }
        }{ .names = self.entries.keys() });
        for (self.entries.keys(), self.entries.values()) |name, entry| {
            const averages = try a.alloc(f32, entry.sums.len);
            const width = entry.columns();
            for (averages, entry.sums, 0..) |*average, sum, i| {
                const count = entry.counts[i / width];
                average.* = if (count > 0) sum / count else 1;
                if (!(average.* >= 0) or !std.math.isFinite(average.*)) {
                    diag.set("the importance of {f}, column {d}, is {d}; it must be a number from 0 on. Collect it again", .{ printable(name), i % width, average.* });
                    return error.InvalidImportance;
                }
            }
            try self.averages.put(a, name, averages);
        }
    }

    fn parseGguf(self: *Importance, gpa: Allocator, raw: []const u8, diag: *Diagnostic) Error!void {
        var file = try gguf.File.parse(gpa, raw, diag);
        defer file.deinit();

        const a = self.arena.allocator();
        if (try file.optionalArray([]const u8, "imatrix.datasets", diag)) |list| {
            const names = try a.alloc([]const u8, list.count);
            var it = list.strings();
            for (names) |*name| name.* = try a.dupe(u8, it.next().?);
            self.datasets = names;
        } else return refuse(diag, "key imatrix.datasets is missing: it is a GGUF file, but no importance matrix", .{});
        self.chunk_count = try file.require(u32, "imatrix.chunk_count", diag);
        self.chunk_size = try file.require(u32, "imatrix.chunk_size", diag);
        for (file.tensors) |*info| {
            if (std.mem.endsWith(u8, info.name, counts_ending)) {
                const name = info.name[0 .. info.name.len - counts_ending.len];
                var buffer: [gguf.limits.tensor_name_bytes + sums_ending.len]u8 = undefined;
                const other = std.fmt.bufPrint(&buffer, "{s}" ++ sums_ending, .{name}) catch unreachable; // Names have a limit.
                if (file.findTensor(other) == null) return refuse(diag, "tensor {f} has no {s} beside it", .{ printable(info.name), sums_ending });
                continue;
            }
            if (!std.mem.endsWith(u8, info.name, sums_ending)) continue;
            const name = info.name[0 .. info.name.len - sums_ending.len];
            var buffer: [gguf.limits.tensor_name_bytes + counts_ending.len]u8 = undefined;
            const other = std.fmt.bufPrint(&buffer, "{s}" ++ counts_ending, .{name}) catch unreachable; // Names have a limit.
            const counts = file.findTensor(other) orelse return refuse(diag, "tensor {f} has no {s} beside it", .{ printable(info.name), counts_ending });
            if (info.dtype != .f32 or counts.dtype != .f32) return refuse(diag, "sums and counts of {f} must be f32", .{printable(name)});
            if (info.len() % counts.len() != 0) return refuse(diag, "{f} has {d} sums, which {d} counts do not divide", .{ printable(name), info.len(), counts.len() });
            const entry: Entry = .{ .sums = try floats(a, info.data), .counts = try floats(a, counts.data) };
            // llama.cpp counts in whole numbers.
            for (entry.counts) |*count| count.* = @round(count.*);
            try self.entries.put(a, try a.dupe(u8, name), entry);
        }
        if (self.entries.count() == 0) return refuse(diag, "no tensor ends in {s}: it is a GGUF file, but no importance matrix", .{sums_ending});
    }

    /// i32 entries; each i32 length, name, i32 calls, i32 values, f32 values; then, both optional, i32 chunks and a dataset's name.
    fn parseLegacy(self: *Importance, raw: []const u8, diag: *Diagnostic) Error!void {
        const a = self.arena.allocator();
        var reader: base.bytes.Reader = .init(raw);
        const too_short = "it ends too early: it is no importance matrix, or only a part of one";
        const count = reader.read(i32) catch return refuse(diag, too_short, .{});
        if (count < 1) return refuse(diag, "it has {d} entries; it is no importance matrix", .{count});
        for (0..@intCast(count)) |i| {
            const name_len = reader.read(i32) catch return refuse(diag, too_short, .{});
            if (name_len < 1 or name_len > gguf.limits.tensor_name_bytes) return refuse(diag, "the name of entry {d} has {d} bytes; it is no importance matrix", .{ i, name_len });
            const name = reader.take(@intCast(name_len)) catch return refuse(diag, too_short, .{});
            const calls = reader.read(i32) catch return refuse(diag, too_short, .{});
            const values = reader.read(i32) catch return refuse(diag, too_short, .{});
            if (values < 1) return refuse(diag, "entry {f} has {d} values", .{ printable(name), values });
            const body = reader.take(@as(u64, @intCast(values)) * 4) catch return refuse(diag, too_short, .{});
            const counts = try a.alloc(f32, 1);
            // The values are averages times calls; a file without calls holds plain averages.
            counts[0] = if (calls > 0) @floatFromInt(calls) else 1;
            const slot = try self.entries.getOrPut(a, try a.dupe(u8, name));
            if (slot.found_existing) return refuse(diag, "entry {f} is there twice", .{printable(name)});
            slot.value_ptr.* = .{ .sums = try floats(a, body), .counts = counts };
        }
        if (reader.remaining() == 0) return;
        const chunks = reader.read(i32) catch return refuse(diag, too_short, .{});
        self.chunk_count = std.math.cast(u32, chunks) orelse return refuse(diag, "it was computed on {d} chunks", .{chunks});
        if (reader.remaining() == 0) return;
        const name_len = reader.read(i32) catch return refuse(diag, too_short, .{});
        if (name_len == 0) return;
        const name = if (name_len < 0) null else reader.take(@intCast(name_len)) catch null;
        const names = try a.alloc([]const u8, 1);
        names[0] = try a.dupe(u8, name orelse return refuse(diag, too_short, .{}));
        self.datasets = names;
    }

    /// llama.cpp's GGUF, to the byte.
    pub fn writeGguf(self: *const Importance, gpa: Allocator, out: *std.Io.Writer) (gguf_writer.Error || std.Io.Writer.Error)!void {
        var header: gguf_writer.Header = .init(gpa);
        defer header.deinit();

        try header.put([]const u8, "general.type", "imatrix");
        try header.put([]const []const u8, "imatrix.datasets", self.datasets);
        try header.put(u32, "imatrix.chunk_count", self.chunk_count);
        try header.put(u32, "imatrix.chunk_size", self.chunk_size);
        for (self.entries.keys(), self.entries.values()) |name, entry| {
            var buffer: [128]u8 = undefined;
            const many = entry.counts.len > 1;
            const sums = std.fmt.bufPrint(&buffer, "{s}" ++ sums_ending, .{name}) catch return error.InvalidTensor;
            try header.addTensor(sums, .f32, if (many) &.{ entry.counts.len, entry.columns() } else &.{entry.columns()});
            const counts = std.fmt.bufPrint(&buffer, "{s}" ++ counts_ending, .{name}) catch return error.InvalidTensor;
            try header.addTensor(counts, .f32, if (many) &.{ entry.counts.len, 1 } else &.{1});
        }
        try header.write(out);
        var stream: gguf_writer.Stream = .init(&header, out);
        for (self.entries.values()) |entry| {
            try stream.write(std.mem.sliceAsBytes(entry.sums));
            try stream.write(std.mem.sliceAsBytes(entry.counts));
        }
        stream.finish();
    }

    /// llama.cpp's older format, to the byte. `chunk_size` must be known.
    pub fn writeLegacy(self: *const Importance, out: *std.Io.Writer) std.Io.Writer.Error!void {
        try base.bytes.write(i32, out, @intCast(self.entries.count()));
        for (self.entries.keys(), self.entries.values()) |name, entry| {
            var most: f32 = 0;
            for (entry.counts) |count| most = @max(most, count);
            const size = @max(1, self.chunk_size);
            const calls: i32 = @intCast((@as(u64, @trunc(most)) + size - 1) / size);
            try base.bytes.write(i32, out, @intCast(name.len));
            try out.writeAll(name);
            try base.bytes.write(i32, out, calls);
            try base.bytes.write(i32, out, @intCast(entry.sums.len));
            for (entry.sums, 0..) |sum, i| {
                const count = entry.counts[i / entry.columns()];
                const average: f32 = if (count == 0) 1 else sum / count;
                try base.bytes.write(f32, out, average * @as(f32, @floatFromInt(calls)));
            }
        }
        try base.bytes.write(i32, out, @intCast(self.chunk_count));
        const dataset = if (self.datasets.len > 0) self.datasets[self.datasets.len - 1] else "";
        try base.bytes.write(i32, out, @intCast(dataset.len));
        try out.writeAll(dataset);
    }
};

fn floats(a: Allocator, raw: []const u8) error{OutOfMemory}![]f32 {
    const list = try a.alloc(f32, raw.len / 4);
    for (list, 0..) |*x, i| x.* = base.bytes.at(f32, raw, i);
    return list;
}

fn refuse(diag: *Diagnostic, comptime format: []const u8, arguments: anytype) error{InvalidImportance} {
    diag.set(format, arguments);
    return error.InvalidImportance;
}

const testing = std.testing;

fn example(gpa: Allocator, diag: *Diagnostic) !Importance {
    var made: Importance = .init(gpa);
    errdefer made.deinit();
    const a = made.arena.allocator();
    const wide = try a.dupe(f32, &.{ 1, 2, 3, 4, 5, 6 });
    try made.entries.put(a, "blk.1.ffn_down_exps.weight", .{ .sums = wide, .counts = try a.dupe(f32, &.{ 2, 0 }) });
    try made.entries.put(a, "blk.0.attn_q.weight", .{ .sums = try a.dupe(f32, &.{ 8, 0 }), .counts = try a.dupe(f32, &.{4}) });
    made.datasets = try a.dupe([]const u8, &.{"text.txt"});
    made.chunk_count = 2;
    made.chunk_size = 2;
    try made.finish(diag);
    return made;
}

test "both formats come back as what they were written from" {
    var diag: Diagnostic = .{};
    var made = try example(testing.allocator, &diag);
    defer made.deinit();
    try testing.expectEqualStrings("blk.0.attn_q.weight", made.entries.keys()[0]);
    inline for (.{ "gguf", "dat" }) |kind| {
        var out: std.Io.Writer.Allocating = .init(testing.allocator);
        defer out.deinit();
        if (comptime std.mem.eql(u8, kind, "gguf")) try made.writeGguf(testing.allocator, &out.writer) else try made.writeLegacy(&out.writer);
        var back = try Importance.parse(testing.allocator, out.written(), &diag);
        defer back.deinit();
        try testing.expectEqual(2, back.entries.count());
        try testing.expectEqualSlices(f32, &.{ 2, 0 }, back.importanceOf("blk.0.attn_q.weight").?);
        try testing.expectEqualSlices(f32, &.{ 0.5, 1, 1.5, 1, 1, 1 }, back.importanceOf("blk.1.ffn_down_exps.weight").?);
        try testing.expectEqual(null, back.importanceOf("blk.1.ffn_up.weight"));
        try testing.expectEqual(2, back.chunk_count);
        try testing.expectEqualStrings("text.txt", back.datasets[0]);
        // Cut anywhere, it is refused or, at one of two places of the old format, lacks what was optional.
        for (0..out.written().len) |end| {
            if (Importance.parse(testing.allocator, out.written()[0..end], &diag)) |cut| {
                var shorter = cut;
                defer shorter.deinit();
                // The padding behind the last tensor of a GGUF may be missing.
                if (comptime std.mem.eql(u8, kind, "gguf")) try testing.expect(end + 32 > out.written().len);
                try testing.expectEqual(2, shorter.entries.count());
            } else |err| try testing.expect(err != error.OutOfMemory);
        }
    }
}

test "numbers that are no importance are refused by name" {
    var diag: Diagnostic = .{};
    for ([_]f32{ -1, std.math.nan(f32), std.math.inf(f32) }) |bad| {
        var made: Importance = .init(testing.allocator);
        defer made.deinit();
        const a = made.arena.allocator();
        try made.entries.put(a, "blk.0.attn_q.weight", .{ .sums = try a.dupe(f32, &.{ 8, bad }), .counts = try a.dupe(f32, &.{4}) });
        try testing.expectError(error.InvalidImportance, made.finish(&diag));
        try testing.expect(std.mem.find(u8, diag.text(), "blk.0.attn_q.weight\", column 1") != null);
    }
}
