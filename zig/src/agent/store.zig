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
    /// Another program wrote the conversation since this one read it.
    Changed,
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
    damaged: []const Damaged,
};

pub const Damaged = struct {
    id: []const u8,
    /// What is wrong with it, with the file's path.
    why: []const u8,
    /// Null when it cannot be read any more.
    name: ?[]const u8,
};

pub const Found = struct {
    id: []const u8,
    /// How many conversations have the name; this one is the newest.
    count: usize,
};

const where_they_are = "/sessions, or abi agent --list-sessions, lists what there is";

pub const Store = struct {
    io: std.Io,
    /// Relative to the working directory, as ABI had it. Created when the first conversation is saved.
    folder: []const u8 = default_folder,

    /// Never over a turn of another program: that is `Changed`.
    pub fn save(self: Store, gpa: Allocator, session: *Session, diag: *base.Diagnostic) StoreError!void {
        std.debug.assert(session_file.validId(session.id));
        var text: std.Io.Writer.Allocating = .init(gpa);
        defer text.deinit();
        session.writeJson(&text.writer) catch return error.OutOfMemory;

        session.kept = self.replace(session.id, session.kept, text.written()) catch |err| {
            if (err == error.Changed) return error.Changed;
            diag.set("{s}/{s}.json cannot be written: {s}", .{ self.folder, session.id, base.storage.words(err) });
            return error.Unwritable;
        };
    }

    fn replace(self: Store, id: []const u8, expected: ?session_file.Kept, text: []const u8) !session_file.Kept {
        const io = self.io;
        var dir = try std.Io.Dir.cwd().createDirPathOpen(io, self.folder, .{ .permissions = .fromMode(0o700), .open_options = .{ .iterate = true } });
        defer dir.close(io);

        // Between the look and the replacement no one else may write. Where locks are unknown, the look alone must do.
        _ = std.c.flock(dir.handle, std.posix.LOCK.EX);
        var name_buffer: [name_capacity]u8 = undefined;
        if (expected) |known| {
            const found: ?std.Io.File.Stat = dir.statFile(io, fileName(&name_buffer, id), .{ .follow_symlinks = false }) catch |err| switch (err) {
                error.FileNotFound => null, // Deleted: then it is made again.
                else => return err,
            };
            if (found) |stat| if (!std.meta.eql(keptOf(stat), known)) return error.Changed;
        }
        var file = try dir.createFileAtomic(io, fileName(&name_buffer, id), .{ .permissions = .fromMode(0o600), .replace = true });
        defer file.deinit(io);

        try file.file.writeStreamingAll(io, text);
        try file.file.sync(io);
        const written = keptOf(try file.file.stat(io));
        try file.replace(io);
        // The new name must survive a power cut too.
        if (std.c.fsync(dir.handle) != 0) return error.InputOutput;
        return written;
    }

    pub fn load(self: Store, gpa: Allocator, id: []const u8, diag: *base.Diagnostic) StoreError!Session {
        if (!session_file.validId(id)) {
            diag.set("session id \"{f}\" is not valid: letters, digits, '_' and '-', at most 64. " ++ where_they_are, .{std.ascii.hexEscape(id, .lower)});
            return error.InvalidId;
        }
        var dir = std.Io.Dir.cwd().openDir(self.io, self.folder, .{}) catch |err| return self.openFailed(err, id, diag);
        defer dir.close(self.io);
        return self.loadFrom(gpa, dir, id, diag);
    }

    /// The conversation of this id, else the newest one of this name.
    pub fn loadIdOrName(self: Store, gpa: Allocator, wanted: []const u8, diag: *base.Diagnostic) StoreError!Session {
        const can_be_id = session_file.validId(wanted);
        if (can_be_id) {
            if (self.load(gpa, wanted, diag)) |session| return session else |err| if (err != error.NotFound) return err;
        }
        var arena: std.heap.ArenaAllocator = .init(gpa);
        defer arena.deinit();

        const found = try self.findByName(arena.allocator(), wanted, diag);
        if (found) |f| return self.load(gpa, f.id, diag);
        if (can_be_id) return self.openFailed(error.FileNotFound, wanted, diag);
        diag.set("no session is named \"{f}\", and it is not valid as an id. " ++ where_they_are, .{std.ascii.hexEscape(wanted, .lower)});
        return error.InvalidId;
    }

    fn loadFrom(self: Store, gpa: Allocator, dir: std.Io.Dir, id: []const u8, diag: *base.Diagnostic) StoreError!Session {
        var kept: session_file.Kept = undefined;
        const text = try self.readFrom(gpa, dir, id, &kept, diag);
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
        session.kept = kept;
        return session;
    }

    fn readFrom(self: Store, gpa: Allocator, dir: std.Io.Dir, id: []const u8, kept: *session_file.Kept, diag: *base.Diagnostic) StoreError![]u8 {
        var name_buffer: [name_capacity]u8 = undefined;
        const file = dir.openFile(self.io, fileName(&name_buffer, id), .{
            .allow_directory = false,
            .follow_symlinks = false,
            .resolve_beneath = true,
        }) catch |err| return self.openFailed(err, id, diag);
        defer file.close(self.io);

        kept.* = keptOf(file.stat(self.io) catch |err| return self.openFailed(err, id, diag));
        var buffer: [4096]u8 = undefined;
        var reader = file.reader(self.io, &buffer);
        return reader.interface.allocRemaining(gpa, .limited(max_file_bytes)) catch |err| switch (err) {
            error.OutOfMemory => error.OutOfMemory,
            error.ReadFailed => self.openFailed(reader.err orelse error.InputOutput, id, diag),
            else => self.openFailed(err, id, diag),
        };
    }

    fn openFailed(self: Store, err: anyerror, id: []const u8, diag: *base.Diagnostic) StoreError {
        if (err == error.FileNotFound) {
            diag.set("no session \"{s}\" in {s}. " ++ where_they_are, .{ id, self.folder });
            return error.NotFound;
        }
        diag.set("{s}/{s}.json cannot be read: {s}", .{ self.folder, id, base.storage.words(err) });
        return error.Unreadable;
    }

    /// All conversations of the folder. A missing folder is an empty list. Everything lives in `arena`.
    pub fn list(self: Store, arena: Allocator, diag: *base.Diagnostic) StoreError!Listing {
        var sessions: std.ArrayList(Summary) = .empty;
        var damaged: std.ArrayList(Damaged) = .empty;
        var dir = std.Io.Dir.cwd().openDir(self.io, self.folder, .{ .iterate = true }) catch |err| switch (err) {
            error.FileNotFound => return .{ .sessions = &.{}, .damaged = &.{} },
            else => {
                diag.set("{s} cannot be read: {s}", .{ self.folder, base.storage.words(err) });
                return error.Unreadable;
            },
        };
        defer dir.close(self.io);

        var iterator = dir.iterate();
        while (true) {
            const entry = (iterator.next(self.io) catch |err| {
                diag.set("{s} cannot be read: {s}", .{ self.folder, base.storage.words(err) });
                return error.Unreadable;
            }) orelse break;
            if (!std.mem.endsWith(u8, entry.name, ".json")) continue;
            const id = entry.name[0 .. entry.name.len - ".json".len];
            if (!session_file.validId(id)) continue;
            var why: base.Diagnostic = .{};
            const copy = try arena.dupe(u8, id);
            if (self.loadFrom(arena, dir, copy, &why)) |session| {
                try sessions.append(arena, .{
                    .id = session.id,
                    .name = session.name,
                    .updated_at = session.updated_at,
                    .message_count = session.messages.items.len,
                });
            } else |err| switch (err) {
                error.OutOfMemory => return error.OutOfMemory,
                else => {
                    var kept: session_file.Kept = undefined;
                    const told = try arena.dupe(u8, why.text());
                    const text: ?[]const u8 = self.readFrom(arena, dir, copy, &kept, &why) catch null;
                    const name = if (text) |t| try session_file.nameInDamaged(arena, t) else null;
                    try damaged.append(arena, .{ .id = copy, .why = told, .name = name });
                },
            }
        }
        std.sort.pdq(Summary, sessions.items, {}, Summary.newer);
        return .{ .sessions = sessions.items, .damaged = damaged.items };
    }

    /// The newest conversation of this name, in `arena`, or null. When there is none, but a damaged file may be it, that is
    /// an error: beginning anew would hide what was said.
    pub fn findByName(self: Store, arena: Allocator, name: []const u8, diag: *base.Diagnostic) StoreError!?Found {
        const listing = try self.list(arena, diag);
        var found: ?Found = null;
        for (listing.sessions) |s| if (std.mem.eql(u8, s.name, name)) {
            if (found) |*f| f.count += 1 else found = .{ .id = s.id, .count = 1 };
        };
        if (found != null) return found;
        for (listing.damaged) |file| {
            if (file.name) |other| if (!std.mem.eql(u8, other, name)) continue;
            diag.set("a damaged file {s} \"{s}\": {s}", .{ if (file.name == null) "may be" else "is", name, file.why });
            return error.InvalidSession;
        }
        return null;
    }
};

/// A save makes a new file, so one of the two differs.
fn keptOf(stat: std.Io.File.Stat) session_file.Kept {
    return .{ .inode = stat.inode, .written_ns = stat.mtime.nanoseconds };
}

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
    const found = (try rig.store.findByName(arena.allocator(), "first", &diag)).?;
    try testing.expectEqualStrings(a.id, found.id);
    try testing.expectEqual(@as(usize, 1), found.count);
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

test "the newest of a name is found; a damaged file that may have the name is in the way, another's is not" {
    var rig: Rig = try .init();
    defer rig.deinit();
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    const a = arena.allocator();
    var diag: base.Diagnostic = .{};

    var old: Session = try .init(testing.allocator, testing.io, "my diary", .{});
    defer old.deinit();
    old.updated_at -= 10;
    var new: Session = try .init(testing.allocator, testing.io, "my diary", .{});
    defer new.deinit();
    for ([_]*Session{ &new, &old }) |session| try rig.store.save(testing.allocator, session, &diag);
    const found = (try rig.store.findByName(a, "my diary", &diag)).?;
    try testing.expectEqualStrings(new.id, found.id);
    try testing.expectEqual(@as(usize, 2), found.count);
    for ([_][]const u8{ "my diary", new.id }) |wanted| {
        var loaded = try rig.store.loadIdOrName(testing.allocator, wanted, &diag);
        defer loaded.deinit();
        try testing.expectEqualStrings(new.id, loaded.id);
    }
    try testing.expectError(error.NotFound, rig.store.loadIdOrName(testing.allocator, "nobody", &diag));
    try testing.expectError(error.InvalidId, rig.store.loadIdOrName(testing.allocator, "../x", &diag));
    try testing.expect(std.mem.find(u8, diag.text(), "--list-sessions") != null);

    try rig.tmp.dir.writeFile(testing.io, .{ .sub_path = "sessions/cut.json", .data = "{\"id\":\"cut\",\"name\":\"plans\",\"crea" });
    try testing.expectError(error.InvalidSession, rig.store.findByName(a, "plans", &diag));
    try testing.expect(std.mem.find(u8, diag.text(), "a damaged file is \"plans\": ") != null);
    try testing.expect(std.mem.find(u8, diag.text(), "cut.json: line 1: not a session file: it is cut off") != null);
    try testing.expectEqual(null, try rig.store.findByName(a, "other", &diag));
    try rig.tmp.dir.writeFile(testing.io, .{ .sub_path = "sessions/gone.json", .data = "" });
    try testing.expectError(error.InvalidSession, rig.store.findByName(a, "other", &diag));
    try testing.expect(std.mem.find(u8, diag.text(), "may be \"other\"") != null);
}

test "a conversation another program went on with is not overwritten" {
    var rig: Rig = try .init();
    defer rig.deinit();
    var diag: base.Diagnostic = .{};

    var mine: Session = try .init(testing.allocator, testing.io, "diary", .{});
    defer mine.deinit();
    try rig.store.save(testing.allocator, &mine, &diag);
    var theirs = try rig.store.load(testing.allocator, mine.id, &diag);
    defer theirs.deinit();
    try theirs.add(testing.io, .user, "theirs");
    try rig.store.save(testing.allocator, &theirs, &diag);
    try rig.store.save(testing.allocator, &theirs, &diag);
    try testing.expectError(error.Changed, rig.store.save(testing.allocator, &mine, &diag));
    var there = try rig.store.load(testing.allocator, mine.id, &diag);
    defer there.deinit();
    try testing.expectEqualStrings("theirs", there.messages.items[0].content);

    // Under an id of its own it is kept beside.
    try mine.takeNewId(testing.io);
    try rig.store.save(testing.allocator, &mine, &diag);
    try testing.expect(!std.mem.eql(u8, mine.id, there.id));
}
