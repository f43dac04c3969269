//! The way of a text to ids: added tokens cut it, normalisation and pre-tokenizers cut further, merging ends it.
//!
//! Pieces are found in batches (by a kernel where the text is ASCII, by the plain scanners elsewhere) and then turned
//! into ids: from the cache of pieces met before, else from the vocabulary's whole tokens, else by merging. Each way gives
//! the same ids; `plain.zig` is the twin that takes none of the short cuts.
//! Does not know: where the vocabulary came from, begin and end tokens.

const std = @import("std");
const kernels = @import("kernels");
const bpe = @import("bpe.zig");
const long_pieces = @import("long_pieces.zig");
const lookup = @import("lookup.zig");
const merge = @import("merge.zig");
const parts_module = @import("parts.zig");
const pre_tokenizer = @import("pre_tokenizer.zig");
const unicode = @import("unicode.zig");
const words = @import("words.zig");

const Allocator = std.mem.Allocator;
const EncodeError = bpe.EncodeError;
const Tokenizer = bpe.Tokenizer;

const batch = lookup.batch;
const batch_room = lookup.batch_room;
const merged_max = kernels.merging.long_max;
/// A scratch that has seen this many bytes gets a cache.
const cache_from = 1 << 14;
/// Working memory of one thread's calls: kept between them, so that a call allocates only where a text is larger than
/// those before. Belongs to one thread at a time and may serve several tokenizers.
pub const EncodeScratch = struct {
    arena: std.heap.ArenaAllocator,
    merging: merge.Scratch = .{},
    cache: ?words.Cache = null,
    /// There when the cache is.
    work: ?*lookup.Work = null,
    /// Whose pieces the cache holds.
    owner: u64 = 0,
    bytes_seen: usize = 0,
    starts: [batch_room]u32 = undefined,

    pub fn init(gpa: Allocator) EncodeScratch {
        return .{ .arena = .init(gpa) };
    }

    pub fn deinit(self: *EncodeScratch, gpa: Allocator) void {
        self.merging.deinit(gpa);
        if (self.cache) |*cache| cache.deinit(gpa);
        if (self.work) |work| {
            work.more.deinit(gpa);
            gpa.destroy(work);
        }
        self.arena.deinit();
    }

    /// A cache that is empty or holds pieces of `tokenizer`, once enough text has been seen to be worth it.
    fn ready(self: *EncodeScratch, gpa: Allocator, tokenizer: *const Tokenizer, bytes: usize) EncodeError!void {
        self.bytes_seen +|= bytes;
        if (self.cache == null and self.bytes_seen >= cache_from) {
            const work = try gpa.create(lookup.Work);
            errdefer gpa.destroy(work);
            work.more = .empty;
            self.cache = try .init(gpa);
            self.work = work;
        }
        const cache = &(self.cache orelse return);
        if (self.owner == tokenizer.index.serial) return;
        if (self.owner != 0) cache.clear();
        self.owner = tokenizer.index.serial;
    }
};

/// One `encode`.
pub const Call = struct {
    tokenizer: *const Tokenizer,
    gpa: Allocator,
    kept: *EncodeScratch,
    parse_special: bool,
    out: *std.ArrayList(u32),

    pub fn deinit(self: *Call) void {
        _ = self.kept.arena.reset(.retain_capacity);
    }

    /// Added tokens that are matched before normalisation, and the text between them.
    pub fn append(self: *Call, whole: []const u8, begins: bool) EncodeError!void {
        try self.kept.ready(self.gpa, self.tokenizer, whole.len);
        var at: usize = 0;
        while (at < whole.len) {
            const found = self.tokenizer.raw.next(whole, at, self.parse_special);
            const end = if (found) |match| match.start else whole.len;
            if (end > at) try self.rawFragment(whole[at..end], begins and at == 0);
            const match = found orelse break;
            try self.out.append(self.gpa, match.id);
            at = match.end;
        }
    }

    fn rawFragment(self: *Call, raw: []const u8, begins: bool) EncodeError!void {
        const whole = try normalize(self.kept.arena.allocator(), self.tokenizer.parts.steps, raw);
        var at: usize = 0;
        while (at < whole.len) {
            const found = self.tokenizer.normalized.next(whole, at, self.parse_special);
            const end = if (found) |match| match.start else whole.len;
            if (end > at) try self.fragment(whole[at..end], begins and at == 0);
            const match = found orelse break;
            try self.out.append(self.gpa, match.id);
            at = match.end;
        }
    }

    fn fragment(self: *Call, normalized: []const u8, begins: bool) EncodeError!void {
        const parts = &self.tokenizer.parts;
        var whole = normalized;
        if (parts.metaspace) |meta| {
            whole = try std.mem.replaceOwned(u8, self.kept.arena.allocator(), whole, " ", meta.replacement);
            const prefixed = switch (meta.prefix) {
                .never => false,
                .first => begins,
                .always => true,
            };
            if (prefixed and !std.mem.startsWith(u8, whole, meta.replacement))
                whole = try std.mem.concat(self.kept.arena.allocator(), u8, &.{ meta.replacement, whole });
            return self.pieces(whole, if (meta.split) .marks else .none);
        }
        if (parts.add_prefix_space and whole[0] != ' ')
            whole = try std.mem.concat(self.kept.arena.allocator(), u8, &.{ " ", whole });
        if (parts.passes.len > 0) return self.pieces(whole, .passes);
        return self.pieces(whole, if (self.tokenizer.index.words_apart) .words else .none);
    }

    /// How a fragment is cut: by the pre-tokenizers, before each space mark, before each space mark that follows
    /// something else, not at all.
    const Cuts = enum { passes, marks, words, none };

    fn pieces(self: *Call, text: []const u8, cuts: Cuts) EncodeError!void {
        const tokenizer = self.tokenizer;
        const starts = &self.kept.starts;
        const index = &tokenizer.index;
        const rule: ?kernels.text.Rule = if (cuts == .passes) index.rule else null;
        var chain: pre_tokenizer.Iterator = .init(tokenizer.parts.passes, text);
        var at: usize = 0;
        // End of a piece that is taken in parts.
        var whole_end: usize = 0;
        while (at < text.len) {
            const base = at;
            var n: usize = 0;
            while (at < text.len and n < batch and at - base <= std.math.maxInt(u32) / 2) {
                if (at >= whole_end) {
                    if (rule) |known| if (isPlain(text, at)) {
                        var found: usize = 0;
                        at = base + kernels.textTable().text_starts(@backingInt(known), text.ptr + base, text.len - base, at - base, starts[n..].ptr, batch_room - n, &found);
                        n += found;
                        if (at == text.len or n >= batch) break;
                    };
                    if (rule) |known| if (index.chars) |*chars| if (chars.word(known, text, at, base, starts, &n)) |end| {
                        at = end;
                        continue;
                    };
                    whole_end = switch (cuts) {
                        .passes => if (tokenizer.parts.passes.len == 1) pre_tokenizer.scan(tokenizer.parts.passes[0], text, at) else end: {
                            chain.at = at;
                            _ = chain.next();
                            break :end chain.at;
                        },
                        .marks => nextMark(text, at, tokenizer.parts.metaspace.?.replacement, false),
                        .words => nextMark(text, at, tokenizer.parts.space_mark.?, true),
                        .none => text.len,
                    };
                    if (whole_end - at >= std.math.maxInt(u32)) return error.TextTooLong;
                    if (index.chars) |*chars| if (whole_end - at <= words.long_max) if (chars.piece(text, at, whole_end, base, starts, &n)) |end| {
                        at = end;
                        continue;
                    };
                    const piece = text[at..whole_end];
                    if (piece.len <= words.short_max or index.byte_ids == null or index.wholeId(&tokenizer.ordinary, piece) != null or !index.mayCut(piece)) {
                        starts[n] = @intCast(at - base);
                        n += 1;
                        at = whole_end;
                        continue;
                    }
                }
                starts[n] = @intCast(at - base);
                n += 1;
                at += index.borders.next(text[at..whole_end], 0);
            }
            starts[n] = @intCast(at - base);
            try self.lookUp(text[base..], starts[0 .. n + 1]);
        }
    }

    /// The ids of the pieces between `starts`.
    fn lookUp(self: *Call, text: []const u8, starts: []const u32) EncodeError!void {
        // No piece has more ids than bytes.
        try self.out.ensureUnusedCapacity(self.gpa, @as(usize, starts[starts.len - 1]) + lookup.slack);
        const index = &self.tokenizer.index;
        var to: [*]u32 = self.out.items.ptr + self.out.items.len;
        if (self.kept.cache) |*cache| {
            if (index.byte_ids != null) {
                to = try lookup.run(index, &self.tokenizer.ordinary, cache, self.kept.work.?, self.gpa, text, starts, .{ .context = self, .resolve = resolveOpaque }, to);
            } else for (starts[0 .. starts.len - 1], starts[1..]) |start, end| {
                to = try self.remembered(cache, text[start..end], to);
            }
        } else for (starts[0 .. starts.len - 1], starts[1..]) |start, end| to = try self.resolve(text[start..end], to);
        self.out.items.len = to - self.out.items.ptr;
    }

    fn resolveOpaque(context: *anyopaque, piece: []const u8, to: [*]u32) error{OutOfMemory}![*]u32 {
        const self: *Call = @ptrCast(@alignCast(context));
        return self.resolve(piece, to);
    }

    /// A piece of a vocabulary of characters.
    fn remembered(self: *Call, cache: *words.Cache, piece: []const u8, to: [*]u32) EncodeError![*]u32 {
        if (piece.len <= words.short_max) {
            const key = words.keyOfSlice(piece);
            return self.cached(cache, cache.shortSet(words.hashOf(key)), key, piece, to);
        }
        if (piece.len > words.long_max) return self.resolve(piece, to);
        const key = words.longKeyOfSlice(piece);
        return self.cached(cache, cache.longSet(key), key, piece, to);
    }

    fn cached(self: *Call, cache: *words.Cache, set: anytype, key: anytype, piece: []const u8, to: [*]u32) EncodeError![*]u32 {
        for (set, 0..) |*entry, place| {
            if (!std.meta.eql(entry.key, key)) continue;
            const ids = if (entry.count <= entry.ids.len) entry.ids[0..entry.count] else cache.pooled(entry.*);
            @memcpy(to[0..ids.len], ids);
            if (place == 1) std.mem.swap(@TypeOf(set[0]), &set[0], &set[1]);
            return to + ids.len;
        }
        const after = try self.resolve(piece, to);
        cache.insert(set, key, to[0 .. after - to]);
        return after;
    }

    /// Writes the ids of a piece to `to`, where there is room for as many as it has bytes; returns the place after.
    fn resolve(self: *Call, piece: []const u8, to: [*]u32) error{OutOfMemory}![*]u32 {
        const tokenizer = self.tokenizer;
        const index = &tokenizer.index;
        if (index.byte_ids != null) {
            if (piece.len <= words.short_max) {
                const key = words.keyOfSlice(piece);
                if (index.words.find(key, words.hashOf(key))) |id| {
                    to[0] = id;
                    return to + 1;
                }
            } else if (index.wholeId(&tokenizer.ordinary, piece)) |id| {
                to[0] = id;
                return to + 1;
            }
            return self.mergeParts(piece, to);
        }
        if (tokenizer.parts.ignore_merges) if (tokenizer.ordinary.get(piece)) |id| {
            to[0] = id;
            return to + 1;
        };
        const place = to - self.out.items.ptr;
        self.out.items.len = place;
        try self.mergePiece(piece);
        return self.out.items.ptr + self.out.items.len;
    }

    /// A byte-level piece that is no token: cut where no token reaches across, then merged.
    fn mergeParts(self: *Call, piece: []const u8, to: [*]u32) error{OutOfMemory}![*]u32 {
        const tokenizer = self.tokenizer;
        const byte_ids = tokenizer.index.byte_ids.?;
        if (piece.len <= merged_max) return to + self.mergeShort(piece, to);
        var next = to;
        var at: usize = 0;
        while (at < piece.len) {
            const end = at + tokenizer.index.borders.next(piece[at..], 0);
            const one = piece[at..end];
            at = end;
            if (one.len <= merged_max) {
                next += self.mergeShort(one, next);
                continue;
            }
            if (long_pieces.merge(&tokenizer.index.joins, tokenizer.decoded, one, next)) |count| {
                next += count;
                continue;
            }
            const symbols = &self.kept.merging.symbols;
            symbols.clearRetainingCapacity();
            try symbols.ensureTotalCapacity(self.gpa, one.len);
            for (one, 0..) |byte, i| symbols.appendAssumeCapacity(.{ .id = byte_ids[byte], .start = @intCast(i), .len = 1 });
            try merge.merge(&tokenizer.ranked, self.gpa, &self.kept.merging, one);
            for (symbols.items, 0..) |symbol, i| next[i] = symbol.id.?;
            next += symbols.items.len;
        }
        return next;
    }

    /// Writes the ids of a byte-level piece of at most `merged_max` bytes, merged, to `to` and returns how many there are.
    fn mergeShort(self: *Call, piece: []const u8, to: [*]u32) usize {
        if (piece.len == 0) return 0;
        var count: [1]u32 = undefined;
        kernels.textTable().text_merge_long(&self.tokenizer.index.joins, 1, &.{piece.ptr}, &.{@intCast(piece.len)}, &.{to}, &count);
        return count[0];
    }

    fn mergePiece(self: *Call, one: []const u8) error{OutOfMemory}!void {
        const tokenizer = self.tokenizer;
        self.kept.merging.symbols.clearRetainingCapacity();
        switch (tokenizer.parts.kind) {
            .byte_level => try self.byteSymbols(one),
            .characters => try self.charSymbols(one),
        }
        switch (tokenizer.parts.merges) {
            .ranked => try merge.merge(&tokenizer.ranked, self.gpa, &self.kept.merging, one),
            .scored => |scores| {
                const rules: merge.Scored = .{ .ids = &tokenizer.ordinary, .scores = scores };
                try merge.merge(&rules, self.gpa, &self.kept.merging, one);
            },
        }
        var unknown_before = false;
        for (self.kept.merging.symbols.items) |symbol| {
            if (symbol.id) |id| {
                unknown_before = false;
                try self.out.append(self.gpa, id);
            } else if (try self.appendBytes(one[symbol.start..][0..symbol.len])) {
                unknown_before = false;
            } else {
                if (!unknown_before) try self.out.append(self.gpa, tokenizer.parts.unknown.?);
                unknown_before = true;
            }
        }
    }

    /// Byte tokens of a character that is no token; false when the vocabulary lacks one of them.
    fn appendBytes(self: *Call, bytes: []const u8) error{OutOfMemory}!bool {
        if (!self.tokenizer.parts.byte_fallback) return false;
        for (bytes) |byte| if (self.tokenizer.byte_ids[byte] == null) return false;
        for (bytes) |byte| try self.out.append(self.gpa, self.tokenizer.byte_ids[byte].?);
        return true;
    }

    fn byteSymbols(self: *Call, one: []const u8) error{OutOfMemory}!void {
        try self.kept.merging.symbols.ensureTotalCapacity(self.gpa, one.len);
        for (one, 0..) |byte, i| {
            const id = self.tokenizer.byte_ids[byte] orelse {
                try self.unknownSymbol(@intCast(i), 1);
                continue;
            };
            self.kept.merging.symbols.appendAssumeCapacity(.{ .id = id, .start = @intCast(i), .len = 1 });
        }
    }

    fn charSymbols(self: *Call, one: []const u8) error{OutOfMemory}!void {
        const parts = &self.tokenizer.parts;
        const ranked = parts.merges == .ranked;
        var at: usize = 0;
        while (at < one.len) {
            const len = unicode.decode(one[at..]).len;
            const char = one[at..][0..len];
            const start: u32 = @intCast(at);
            at += len;
            const symbol: merge.Symbol = .{ .id = self.tokenizer.ordinary.get(char), .start = start, .len = len };
            // With scores a character without an id may still be half of a token.
            if (symbol.id != null or !ranked) {
                try self.kept.merging.symbols.append(self.gpa, symbol);
                continue;
            }
            const all = parts.byte_fallback and for (char) |byte| {
                if (self.tokenizer.byte_ids[byte] == null) break false;
            } else true;
            if (!all) {
                try self.unknownSymbol(start, len);
                continue;
            }
            for (char, 0..) |byte, i| try self.kept.merging.symbols.append(self.gpa, .{ .id = self.tokenizer.byte_ids[byte], .start = start + @as(u32, @intCast(i)), .len = 1 });
        }
    }

    fn unknownSymbol(self: *Call, start: u32, len: u32) error{OutOfMemory}!void {
        const parts = &self.tokenizer.parts;
        const symbols = &self.kept.merging.symbols;
        if (parts.fuse_unknown and symbols.items.len > 0) {
            const last = &symbols.items[symbols.items.len - 1];
            if (last.id == parts.unknown) {
                last.len += len;
                return;
            }
        }
        try symbols.append(self.gpa, .{ .id = parts.unknown, .start = start, .len = len });
    }
};

/// Whether the kernel has a chance here.
inline fn isPlain(text: []const u8, at: usize) bool {
    return text[at] < 0x80 and (at + 8 > text.len or std.mem.readInt(u64, text[at..][0..8], .little) & 0x8080_8080_8080_8080 == 0);
}

/// Where the next `mark` after `at` begins, or the end; with `apart`, one that follows something else than a mark.
fn nextMark(text: []const u8, at: usize, mark: []const u8, apart: bool) usize {
    var from = at;
    while (std.mem.startsWith(u8, text[from..], mark)) {
        from += mark.len;
        if (!apart) break;
    }
    if (from == at) from += 1;
    if (from >= text.len) return text.len;
    return std.mem.findPos(u8, text, from, mark) orelse text.len;
}

/// `text` after the vocabulary's normalisation; the result belongs to `arena` or is `text`.
pub fn normalize(arena: Allocator, steps: []const parts_module.Step, text: []const u8) ![]const u8 {
    var out = text;
    for (steps) |step| switch (step) {
        .form_c => out = try unicode.normalizeC(arena, out),
        .prepend => |prefix| if (out.len > 0) {
            out = try std.mem.concat(arena, u8, &.{ prefix, out });
        },
        .replace => |r| out = try std.mem.replaceOwned(u8, arena, out, r.from, r.to),
    };
    return out;
}
