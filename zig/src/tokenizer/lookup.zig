//! From pieces to ids, a batch at a time and in rounds, so that look-ups wait for memory together and not one by one.
//!
//! Round one asks the cache, for blocks of pieces whose cache lines are already on their way; round two asks the
//! whole tokens for what was not there; round three merges what is no token, several pieces in turns; the last round writes all
//! ids in order. Byte level only. Which round found a piece's ids makes no difference to them.

const std = @import("std");
const kernels = @import("kernels");
const words = @import("words.zig");
const Index = @import("index.zig").Index;

const Allocator = std.mem.Allocator;

/// Pieces of a batch; a window of the kernel may add to it.
pub const batch = 512;
pub const batch_room = batch + kernels.text.window_bytes + 16;
/// Ids written at once, wanted or not: the room there must be after the last.
pub const slack = 4;

/// Pieces whose places in the cache are asked for at once.
const block = 32;

/// Up to three ids of a piece; or how many there are and where in `Work.more` or the cache's pool they stand.
const Found = extern struct {
    ids: [3]u32,
    count: u32,

    const in_more = 1 << 31;
    const later = std.math.maxInt(u32);
};

const Miss = struct { hash: u64, piece: u32, candidate: u32 };

/// Longest piece that is merged in a batch.
const merged_max = kernels.merging.long_max;

/// Room for one batch.
pub const Work = struct {
    found: [batch_room]Found align(64),
    misses: [batch_room]Miss,
    missed_keys: [batch_room]words.Key align(64),
    merged: [batch_room][16]u32,
    merged_counts: [batch_room]u8,
    /// Pieces of more than `words.short_max` bytes that were not in the cache.
    long_pieces: [batch_room]u32,
    long_texts: [batch_room][*]const u8,
    long_lengths: [batch_room]u32,
    long_ids: [batch_room][*]u32,
    long_counts: [batch_room]u32,
    long_count: usize,
    more: std.ArrayList(u32),
};

pub const Error = error{OutOfMemory};

/// Called for a piece that is not kept: writes its ids to `to` and returns the place after.
pub const Slow = struct {
    context: *anyopaque,
    resolve: *const fn (context: *anyopaque, piece: []const u8, to: [*]u32) Error![*]u32,
};

/// Writes the ids of the pieces between `starts` to `to`, where there is room for one for each byte and `slack`.
pub fn run(index: *const Index, ordinary: *const std.StringHashMapUnmanaged(u32), cache: *words.Cache, work: *Work, gpa: Allocator, text: []const u8, starts: []const u32, slow: Slow, to: [*]u32) Error![*]u32 {
    work.more.clearRetainingCapacity();
    work.long_count = 0;
    var missed: usize = 0;
    var at: usize = 0;
    while (at + 1 < starts.len) : (at += block) try askCache(index, cache, work, gpa, text, starts, at, &missed);
    if (missed > 0) try askWords(index, cache, work, gpa, missed);
    if (work.long_count > 0) try mergeLong(index, ordinary, cache, work, gpa, text, starts);
    return write(cache, work, text, starts, slow, to);
}

fn askCache(index: *const Index, cache: *words.Cache, work: *Work, gpa: Allocator, text: []const u8, all: []const u32, at: usize, missed: *usize) Error!void {
    var keys: [block]words.Key = undefined;
    var hashes: [block]u64 = undefined;
    const starts = all[at..@min(at + block + 1, all.len)];
    const count = starts.len - 1;
    if (starts[count - 1] + 16 <= text.len) {
        for (starts[0..count], starts[1..], keys[0..count], hashes[0..count]) |start, end, *key, *hash| {
            key.* = words.keyOf(text.ptr + start, @min(end - start, words.short_max));
            hash.* = words.hashOf(key.*);
            @prefetch(cache.shortSet(hash.*), .{});
        }
    } else for (starts[0..count], starts[1..], keys[0..count], hashes[0..count]) |start, end, *key, *hash| {
        key.* = words.keyOfSlice(text[start..][0..@min(end - start, words.short_max)]);
        hash.* = words.hashOf(key.*);
    }
    var misses = missed.*;
    for (starts[0..count], starts[1..], keys[0..count], hashes[0..count], work.found[at..][0..count], at..) |start, end, key, hash, *found, i| {
        const len = end - start;
        if (len <= words.short_max) {
            const set = cache.shortSet(hash);
            if (set[0].key != key) {
                if (set[1].key != key) {
                    work.misses[misses] = .{ .hash = hash, .piece = @intCast(i), .candidate = 0 };
                    work.missed_keys[misses] = key;
                    misses += 1;
                    index.words.prefetch(hash);
                    continue;
                }
                std.mem.swap(words.Cache.Short, &set[0], &set[1]);
            }
            found.* = .{ .ids = set[0].ids, .count = set[0].count };
        } else if (len <= words.long_max) {
            const piece = text[start..end];
            const long = if (start + 32 <= text.len) words.longKeyOf(text.ptr + start, len) else words.longKeyOfSlice(piece);
            const set = cache.longSet(long);
            if (!sameLong(set[0].key, long)) {
                if (!sameLong(set[1].key, long)) {
                    noteLong(work, i, piece);
                    continue;
                }
                std.mem.swap(words.Cache.Long, &set[0], &set[1]);
            }
            const entry = &set[0];
            if (entry.count <= 3) {
                found.* = .{ .ids = entry.ids[0..3].*, .count = entry.count };
            } else {
                const ids = if (entry.count <= words.Cache.Long.room) entry.ids[0..entry.count] else cache.pooled(entry.*);
                try remember(work, gpa, found, ids);
            }
        } else if (len <= merged_max) {
            noteLong(work, i, text[start..end]);
        } else found.count = Found.later;
    }
    missed.* = misses;
}

fn noteLong(work: *Work, i: usize, piece: []const u8) void {
    const n = work.long_count;
    work.long_pieces[n] = @intCast(i);
    work.long_texts[n] = piece.ptr;
    work.long_lengths[n] = @intCast(piece.len);
    work.long_count = n + 1;
}

inline fn sameLong(a: [2]words.Key, b: [2]words.Key) bool {
    return a[0] == b[0] and a[1] == b[1];
}

fn remember(work: *Work, gpa: Allocator, found: *Found, ids: []const u32) Error!void {
    found.* = .{ .ids = .{ @intCast(work.more.items.len), 0, 0 }, .count = Found.in_more | @as(u32, @intCast(ids.len)) };
    try work.more.appendSlice(gpa, ids);
}

fn askWords(index: *const Index, cache: *words.Cache, work: *Work, gpa: Allocator, missed: usize) Error!void {
    for (work.misses[0..missed]) |*miss| {
        miss.candidate = index.words.candidate(miss.hash);
        @prefetch(&index.words.keys[miss.candidate], .{});
    }
    var left: usize = 0;
    for (work.misses[0..missed], work.missed_keys[0..missed]) |miss, key| {
        const known = if (index.words.keys[miss.candidate] == key) miss.candidate else index.words.find(key, miss.hash);
        if (known) |id| {
            work.found[miss.piece] = .{ .ids = .{ id, 0, 0 }, .count = 1 };
            cache.insert(cache.shortSet(miss.hash), key, &.{id});
            continue;
        }
        work.misses[left] = miss;
        work.missed_keys[left] = key;
        left += 1;
    }
    kernels.textTable().text_merge(&index.joins, left, @ptrCast(&work.missed_keys), @ptrCast(&work.merged), &work.merged_counts);
    for (work.misses[0..left], work.missed_keys[0..left], work.merged[0..left], work.merged_counts[0..left]) |miss, key, *merged, count| {
        const ids = merged[0..count];
        cache.insert(cache.shortSet(miss.hash), key, ids);
        const found = &work.found[miss.piece];
        if (count <= 3) found.* = .{ .ids = merged[0..3].*, .count = count } else try remember(work, gpa, found, ids);
    }
}

fn mergeLong(index: *const Index, ordinary: *const std.StringHashMapUnmanaged(u32), cache: *words.Cache, work: *Work, gpa: Allocator, text: []const u8, starts: []const u32) Error!void {
    var left: usize = 0;
    var bytes: usize = 0;
    for (work.long_pieces[0..work.long_count], work.long_texts[0..work.long_count], work.long_lengths[0..work.long_count]) |i, pointer, len| {
        if (index.wholeId(ordinary, pointer[0..len])) |id| {
            work.found[i] = .{ .ids = .{ id, 0, 0 }, .count = 1 };
            keep(cache, text, starts[i], len, &.{id});
            continue;
        }
        work.long_pieces[left] = i;
        work.long_texts[left] = pointer;
        work.long_lengths[left] = len;
        left += 1;
        bytes += len;
    }
    try work.more.ensureUnusedCapacity(gpa, bytes);
    const from = work.more.items.len;
    work.more.items.len += bytes;
    var to = work.more.items.ptr + from;
    for (work.long_lengths[0..left], work.long_ids[0..left]) |len, *ids| {
        ids.* = to;
        to += len;
    }
    kernels.textTable().text_merge_long(&index.joins, left, &work.long_texts, &work.long_lengths, &work.long_ids, &work.long_counts);
    for (work.long_pieces[0..left], work.long_lengths[0..left], work.long_ids[0..left], work.long_counts[0..left]) |i, len, ids, count| {
        work.found[i] = .{ .ids = .{ @intCast(ids - work.more.items.ptr), 0, 0 }, .count = Found.in_more | count };
        keep(cache, text, starts[i], len, ids[0..count]);
    }
}

fn keep(cache: *words.Cache, text: []const u8, start: usize, len: usize, ids: []const u32) void {
    if (len > words.long_max) return;
    const key = if (start + 32 <= text.len) words.longKeyOf(text.ptr + start, len) else words.longKeyOfSlice(text[start..][0..len]);
    cache.insert(cache.longSet(key), key, ids);
}

fn write(cache: *const words.Cache, work: *const Work, text: []const u8, starts: []const u32, slow: Slow, to_in: [*]u32) Error![*]u32 {
    var to = to_in;
    for (work.found[0 .. starts.len - 1], 0..) |*found, i| {
        to[0..3].* = found.ids;
        const count = found.count;
        if (count > 3) {
            @branchHint(.unlikely);
            if (count == Found.later) {
                to = try slow.resolve(slow.context, text[starts[i]..starts[i + 1]], to);
                continue;
            }
            const len = count & ~@as(u32, Found.in_more);
            const from = if (count & Found.in_more != 0) work.more.items else cache.pool;
            @memcpy(to[0..len], from[found.ids[0]..][0..len]);
            to += len;
        } else to += count;
    }
    return to;
}
