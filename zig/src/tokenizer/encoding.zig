//! The way of a text to ids: added tokens cut it, normalisation and pre-tokenizers cut further, merging ends it.
//!
//! One `Call` is one `encode`: it owns all scratch, so a tokenizer may be shared between threads.
//! Does not know: where the vocabulary came from, begin and end tokens.

const std = @import("std");
const bpe = @import("bpe.zig");
const merge = @import("merge.zig");
const parts_module = @import("parts.zig");
const pre_tokenizer = @import("pre_tokenizer.zig");
const unicode = @import("unicode.zig");

const Allocator = std.mem.Allocator;
const EncodeError = bpe.EncodeError;
const Tokenizer = bpe.Tokenizer;

/// Working memory of one thread's calls: kept between them, so that a call allocates only where a text is larger than
/// those before. Belongs to one thread at a time and may serve several tokenizers.
pub const EncodeScratch = struct {
    arena: std.heap.ArenaAllocator,
    merging: merge.Scratch = .{},

    pub fn init(gpa: Allocator) EncodeScratch {
        return .{ .arena = .init(gpa) };
    }

    pub fn deinit(self: *EncodeScratch, gpa: Allocator) void {
        self.merging.deinit(gpa);
        self.arena.deinit();
    }
};

/// One `encode`.
pub const Call = struct {
    tokenizer: *const Tokenizer,
    gpa: Allocator,
    kept: *EncodeScratch,
    parse_special: bool,
    out: *std.ArrayList(u32),
    /// Pieces met before in this call: where their ids stand in `out`.
    seen: std.StringHashMapUnmanaged(Span) = .empty,

    const Span = struct { start: usize, len: u32 };
    const seen_max = 1 << 15;
    const seen_piece_max = 64;

    pub fn deinit(self: *Call) void {
        self.seen.deinit(self.gpa);
        _ = self.kept.arena.reset(.retain_capacity);
    }

    /// Added tokens that are matched before normalisation, and the text between them.
    pub fn append(self: *Call, whole: []const u8, begins: bool) EncodeError!void {
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
            if (meta.split) return self.splitBefore(whole, meta.replacement);
            return self.piece(whole);
        }
        if (parts.add_prefix_space and whole[0] != ' ')
            whole = try std.mem.concat(self.kept.arena.allocator(), u8, &.{ " ", whole });
        var pieces: pre_tokenizer.Iterator = .init(parts.passes, whole);
        while (pieces.next()) |one| try self.piece(one);
    }

    /// Each `mark` begins a piece.
    fn splitBefore(self: *Call, whole: []const u8, mark: []const u8) EncodeError!void {
        var start: usize = 0;
        while (start < whole.len) {
            const from = start + if (std.mem.startsWith(u8, whole[start..], mark)) mark.len else 1;
            const end = if (from >= whole.len) whole.len else std.mem.findPos(u8, whole, from, mark) orelse whole.len;
            try self.piece(whole[start..end]);
            start = end;
        }
    }

    fn piece(self: *Call, one: []const u8) EncodeError!void {
        const tokenizer = self.tokenizer;
        const parts = &tokenizer.parts;
        if (one.len >= std.math.maxInt(u32)) return error.TextTooLong;
        if (parts.ignore_merges) if (tokenizer.ordinary.get(one)) |id| return self.out.append(self.gpa, id);
        const remember = one.len > 1 and one.len <= seen_piece_max;
        if (remember) if (self.seen.get(one)) |span| {
            try self.out.ensureUnusedCapacity(self.gpa, span.len);
            self.out.appendSliceAssumeCapacity(self.out.items[span.start..][0..span.len]);
            return;
        };
        const start = self.out.items.len;
        try self.mergePiece(one);
        if (remember and self.seen.count() < seen_max)
            try self.seen.put(self.gpa, one, .{ .start = start, .len = @intCast(self.out.items.len - start) });
    }

    fn mergePiece(self: *Call, one: []const u8) EncodeError!void {
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
    fn appendBytes(self: *Call, bytes: []const u8) EncodeError!bool {
        if (!self.tokenizer.parts.byte_fallback) return false;
        for (bytes) |byte| if (self.tokenizer.byte_ids[byte] == null) return false;
        for (bytes) |byte| try self.out.append(self.gpa, self.tokenizer.byte_ids[byte].?);
        return true;
    }

    fn byteSymbols(self: *Call, one: []const u8) EncodeError!void {
        try self.kept.merging.symbols.ensureTotalCapacity(self.gpa, one.len);
        for (one, 0..) |byte, i| {
            const id = self.tokenizer.byte_ids[byte] orelse {
                try self.unknownSymbol(@intCast(i), 1);
                continue;
            };
            self.kept.merging.symbols.appendAssumeCapacity(.{ .id = id, .start = @intCast(i), .len = 1 });
        }
    }

    fn charSymbols(self: *Call, one: []const u8) EncodeError!void {
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

    fn unknownSymbol(self: *Call, start: u32, len: u32) EncodeError!void {
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
