//! The folder of conversations: `.abi/sessions/<id>.json`, one file each, readable by its owner only.
//!
//! Every file is opened relative to the folder, never through a symbolic link, and only under a name that
//! `session.validId` accepts, so no id can reach outside. A file is replaced whole or not at all.

const std = @import("std");
const base = @import("base");
const session_file = @import("session.zig");
const Session = session_file.Session;
const Allocator = std.mem.Allocator;

pub const default_folder = ".abi/sessions";

/// A conversation larger than this is refused: something else wears its name.
const max_file_bytes = 64 << 20;

pub const StoreError = error{
    OutOfMemory,
    /// The id has characters an id cannot have.
    InvalidId,
    NotFound,
    /// The folder or file cannot be read.
    Unreadable,
    /// The file is no session.
    InvalidSession,
    /// The folder or file cannot be written.
    Unwritable,
};

pub const Summary = struct {
    id: []const u8,
    name: []const u8,
    updated_at: i64,
    message_count: usize,

    fn newer(_: void, a: Summary, b: Summary) bool {
        if (a.updated_at != b.updated_at) return a.updated_at > b.updated_at;
        return std.mem.order(u8, a.id, b.id) == .gt;
    }
};

pub const Listing = struct {
    /// Newest first.
    sessions: []const Summary,
    /// Files in the folder that are no sessions, or cannot be read.
    damaged: []const []const u8,
};

pub const Store = struct {
    io: std.Io,
    /// Relative to the working directory, as ABI had it. Created when the first conversation is saved.
    folder: []const u8 = default_folder,

    pub fn save(self: Store, gpa: Allocator, session: *const Session, diag: *base.Diagnostic) StoreError!void {
        std.debug.assert(session_file.validId(session.id));
        var text: std.Io.Writer.Allocating = .init(gpa);
        defer text.deinit();
        session.writeJson(&text.writer) catch return error.OutOfMemory;

        self.replace(session.id, text.written()) catch |err| {
            diag.set("{s}/{s}.json cannot be written: {t}. Check the folder's owner and free space", .{ self.folder, session.id, err });
            return error.Unwritable;
        };
    }

    fn replace(self: Store, id: []const u8, text: []const u8) !void {
        const io = self.io;
        var dir = try std.Io.Dir.cwd().createDirPathOpen(io, self.folder, .{ .permissions = .fromMode(0o700), .open_options = .{ .iterate = true } });
        defer dir.close(io);

        var name_buffer: [name_capacity]u8 = undefined;
        var file = try dir.createFileAtomic(io, fileName(&name_buffer, id), .{ .permissions = .fromMode(0o600), .replace = true });
        defer file.deinit(io);

        try file.file.writeStreamingAll(io, text);
        try file.file.sync(io);
        try file.replace(io);
        // The new name must survive a power cut too.
        if (std.c.fsync(dir.handle) != 0) return error.InputOutput;
    }

    pub fn load(self: Store, gpa: Allocator, id: []const u8, diag: *base.Diagnostic) StoreError!Session {
        if (!session_file.validId(id)) {
            diag.set("session id \"{f}\" is not valid: letters, digits, '_' and '-', at most 64. /sessions lists what there is", .{std.ascii.hexEscape(id, .lower)});
            return error.InvalidId;
        }
        var dir = std.Io.Dir.cwd().openDir(self.io, self.folder, .{}) catch |err| return self.openFailed(err, id, diag);
        defer dir.close(self.io);
        return self.loadFrom(gpa, dir, id, diag);
    }

    fn loadFrom(self: Store, gpa: Allocator, dir: std.Io.Dir, id: []const u8, diag: *base.Diagnostic) StoreError!Session {
        var name_buffer: [name_capacity]u8 = undefined;
        const file = dir.openFile(self.io, fileName(&name_buffer, id), .{
            .allow_directory = false,
            .follow_symlinks = false,
            .resolve_beneath = true,
        }) catch |err| return self.openFailed(err, id, diag);
        defer file.close(self.io);

        var buffer: [4096]u8 = undefined;
        var reader = file.reader(self.io, &buffer);
        const text = reader.interface.allocRemaining(gpa, .limited(max_file_bytes)) catch |err| switch (err) {
            error.OutOfMemory => return error.OutOfMemory,
            else => return self.openFailed(err, id, diag),
        };
        defer gpa.free(text);

        var session = Session.parse(gpa, text, diag) catch |err| {
            diag.prepend("{s}/{s}.json: ", .{ self.folder, id });
            return switch (err) {
                error.OutOfMemory => error.OutOfMemory,
                error.InvalidSession => error.InvalidSession,
            };
        };
        if (!std.mem.eql(u8, session.id, id)) {
            diag.set("{s}/{s}.json calls itself \"{s}\". Rename the file or correct its \"id\"", .{ self.folder, id, session.id });
            session.deinit();
            return error.InvalidSession;
        }
        return session;
    }

    fn openFailed(self: Store, err: anyerror, id: []const u8, diag: *base.Diagnostic) StoreError {
        if (err == error.FileNotFound) {
            diag.set("no session \"{s}\" in {s}. /sessions lists what there is", .{ id, self.folder });
            return error.NotFound;
        }
        diag.set("{s}/{s}.json cannot be read: {t}. Check its owner and that it is a plain file", .{ self.folder, id, err });
        return error.Unreadable;
    }

    /// All conversations of the folder. A missing folder is an empty list. Everything lives in `arena`.
    pub fn list(self: Store, arena: Allocator, diag: *base.Diagnostic) StoreError!Listing {
        var sessions: std.ArrayList(Summary) = .empty;
        var damaged: std.ArrayList([]const u8) = .empty;
        var dir = std.Io.Dir.cwd().openDir(self.io, self.folder, .{ .iterate = true }) catch |err| switch (err) {
            error.FileNotFound => return .{ .sessions = &.{}, .damaged = &.{} },
            else => {
                diag.set("{s} cannot be read: {t}. Check the folder's owner", .{ self.folder, err });
                return error.Unreadable;
            },
        };
        defer dir.close(self.io);

        var iterator = dir.iterate();
        while (true) {
            const entry = (iterator.next(self.io) catch |err| {
                diag.set("{s} cannot be read: {t}. Check the folder's owner", .{ self.folder, err });
                return error.Unreadable;
            }) orelse break;
            if (!std.mem.endsWith(u8, entry.name, ".json")) continue;
            const id = entry.name[0 .. entry.name.len - ".json".len];
            if (!session_file.validId(id)) continue;
            var ignored: base.Diagnostic = .{};
            const copy = try arena.dupe(u8, id);
            if (self.loadFrom(arena, dir, copy, &ignored)) |session| {
                try sessions.append(arena, .{
                    .id = session.id,
                    .name = session.name,
                    .updated_at = session.updated_at,
                    .message_count = session.messages.items.len,
                });
            } else |err| switch (err) {
                error.OutOfMemory => return error.OutOfMemory,
                else => try damaged.append(arena, copy),
            }
        }
        std.sort.pdq(Summary, sessions.items, {}, Summary.newer);
        return .{ .sessions = sessions.items, .damaged = damaged.items };
    }

    /// The id of the newest conversation of this name, in `arena`, or null.
    pub fn findByName(self: Store, arena: Allocator, name: []const u8, diag: *base.Diagnostic) StoreError!?[]const u8 {
        const listing = try self.list(arena, diag);
        for (listing.sessions) |s| if (std.mem.eql(u8, s.name, name)) return s.id;
        return null;
    }
};

const name_capacity = 64 + ".json".len;

fn fileName(buffer: *[name_capacity]u8, id: []const u8) []const u8 {
    return std.fmt.bufPrint(buffer, "{s}.json", .{id}) catch unreachable; // Ids have at most 64 bytes.
}

const testing = std.testing;

const Rig = struct {
    tmp: testing.TmpDir,
    folder: []const u8,
    store: Store,

    fn init() !Rig {
        var tmp = testing.tmpDir(.{});
        errdefer tmp.cleanup();
        const folder = try std.fmt.allocPrint(testing.allocator, ".zig-cache/tmp/{s}/sessions", .{&tmp.sub_path});
        return .{ .tmp = tmp, .folder = folder, .store = .{ .io = testing.io, .folder = folder } };
    }

    fn deinit(self: *Rig) void {
        testing.allocator.free(self.folder);
        self.tmp.cleanup();
    }
};

test "saved conversations are listed newest first and load again; the folder is made when missing" {
    var rig: Rig = try .init();
    defer rig.deinit();
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    var diag: base.Diagnostic = .{};

    try testing.expectEqual(@as(usize, 0), (try rig.store.list(arena.allocator(), &diag)).sessions.len);
    var a: Session = try .init(testing.allocator, testing.io, "first", .{});
    defer a.deinit();
    try a.add(testing.io, .user, "hello");
    a.updated_at -= 10;
    var b: Session = try .init(testing.allocator, testing.io, "second", .{});
    defer b.deinit();
    try rig.store.save(testing.allocator, &b, &diag);
    try rig.store.save(testing.allocator, &a, &diag);
    try rig.store.save(testing.allocator, &a, &diag);

    const listing = try rig.store.list(arena.allocator(), &diag);
    try testing.expectEqual(@as(usize, 2), listing.sessions.len);
    try testing.expectEqualStrings("second", listing.sessions[0].name);
    try testing.expectEqual(@as(usize, 1), listing.sessions[1].message_count);
    try testing.expectEqualStrings(a.id, (try rig.store.findByName(arena.allocator(), "first", &diag)).?);
    var back = try rig.store.load(testing.allocator, a.id, &diag);
    defer back.deinit();
    try testing.expectEqualStrings("hello", back.messages.items[0].content);

    var dir = try std.Io.Dir.cwd().openDir(testing.io, rig.folder, .{ .iterate = true });
    defer dir.close(testing.io);
    var count: usize = 0;
    var it = dir.iterate();
    while (try it.next(testing.io)) |entry| : (count += 1) {
        const stat = try dir.statFile(testing.io, entry.name, .{});
        try testing.expectEqual(@as(u32, 0o600), @as(u32, stat.permissions.toMode() & 0o777));
    }
    try testing.expectEqual(@as(usize, 2), count); // No temporary files left.
}

test "an id that is a path touches nothing, a symbolic link is not followed, damage is named" {
    var rig: Rig = try .init();
    defer rig.deinit();
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    var diag: base.Diagnostic = .{};

    for ([_][]const u8{ "../../../etc/passwd", "..", "a/b", "", "a\x00b", "%2e%2e", "/etc/passwd", "．．" }) |id| {
        try testing.expectError(error.InvalidId, rig.store.load(testing.allocator, id, &diag));
    }
    try testing.expectError(error.NotFound, rig.store.load(testing.allocator, "none", &diag));
    try rig.tmp.dir.createDirPath(testing.io, "sessions/folder.json");
    try rig.tmp.dir.writeFile(testing.io, .{ .sub_path = "outside.json", .data = "{}" });
    try rig.tmp.dir.symLink(testing.io, "../outside.json", "sessions/link.json", .{});
    try rig.tmp.dir.writeFile(testing.io, .{ .sub_path = "sessions/bad.json", .data = "{\"id\":" });
    try testing.expectError(error.Unreadable, rig.store.load(testing.allocator, "link", &diag));
    try testing.expectError(error.Unreadable, rig.store.load(testing.allocator, "folder", &diag));
    try testing.expectError(error.InvalidSession, rig.store.load(testing.allocator, "bad", &diag));
    try testing.expect(std.mem.find(u8, diag.text(), "bad.json: line 1") != null);
    const listing = try rig.store.list(arena.allocator(), &diag);
    try testing.expectEqual(@as(usize, 3), listing.damaged.len);
}
