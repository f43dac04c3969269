//! The twin of `encoding.zig` as one would write it first: piece by piece, no tables, no cache. Imported from tests only.

const std = @import("std");
const bpe = @import("bpe.zig");
const encoding = @import("encoding.zig");
const merge = @import("merge.zig");
const pre_tokenizer = @import("pre_tokenizer.zig");
const unicode = @import("unicode.zig");

const Allocator = std.mem.Allocator;
const EncodeError = bpe.EncodeError;
const Tokenizer = bpe.Tokenizer;

/// Ids of `text` without begin and end tokens. All memory is of `arena`.
pub fn encode(arena: Allocator, tokenizer: *const Tokenizer, text: []const u8, parse_special: bool) EncodeError![]const u32 {
    var call: Call = .{ .tokenizer = tokenizer, .gpa = arena, .arena = arena, .parse_special = parse_special };
    try call.append(text, true);
    return call.out.items;
}

const Call = struct {
    tokenizer: *const Tokenizer,
    gpa: Allocator,
    arena: Allocator,
    parse_special: bool,
    out: std.ArrayList(u32) = .empty,
    merging: merge.Scratch = .{},

    /// Added tokens that are matched before normalisation, and the text between them.
    fn append(self: *Call, whole: []const u8, begins: bool) EncodeError!void {
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
        const whole = try encoding.normalize(self.arena, self.tokenizer.parts.steps, raw);
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
            whole = try std.mem.replaceOwned(u8, self.arena, whole, " ", meta.replacement);
            const prefixed = switch (meta.prefix) {
                .never => false,
                .first => begins,
                .always => true,
            };
            if (prefixed and !std.mem.startsWith(u8, whole, meta.replacement))
                whole = try std.mem.concat(self.arena, u8, &.{ meta.replacement, whole });
            if (meta.split) return self.splitBefore(whole, meta.replacement);
            return self.piece(whole);
        }
        if (parts.add_prefix_space and whole[0] != ' ')
            whole = try std.mem.concat(self.arena, u8, &.{ " ", whole });
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
        try self.mergePiece(one);
    }

    fn mergePiece(self: *Call, one: []const u8) EncodeError!void {
        const tokenizer = self.tokenizer;
        self.merging.symbols.clearRetainingCapacity();
        switch (tokenizer.parts.kind) {
            .byte_level => try self.byteSymbols(one),
            .characters => try self.charSymbols(one),
        }
        switch (tokenizer.parts.merges) {
            .ranked => try merge.mergeByHeap(&tokenizer.ranked, self.gpa, &self.merging, one),
            .scored => |scores| {
                const rules: merge.Scored = .{ .ids = &tokenizer.ordinary, .scores = scores };
                try merge.mergeByHeap(&rules, self.gpa, &self.merging, one);
            },
        }
        var unknown_before = false;
        for (self.merging.symbols.items) |symbol| {
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
        try self.merging.symbols.ensureTotalCapacity(self.gpa, one.len);
        for (one, 0..) |byte, i| {
            const id = self.tokenizer.byte_ids[byte] orelse {
                try self.unknownSymbol(@intCast(i), 1);
                continue;
            };
            self.merging.symbols.appendAssumeCapacity(.{ .id = id, .start = @intCast(i), .len = 1 });
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
                try self.merging.symbols.append(self.gpa, symbol);
                continue;
            }
            const all = parts.byte_fallback and for (char) |byte| {
                if (self.tokenizer.byte_ids[byte] == null) break false;
            } else true;
            if (!all) {
                try self.unknownSymbol(start, len);
                continue;
            }
            for (char, 0..) |byte, i| try self.merging.symbols.append(self.gpa, .{ .id = self.tokenizer.byte_ids[byte], .start = start + @as(u32, @intCast(i)), .len = 1 });
        }
    }

    fn unknownSymbol(self: *Call, start: u32, len: u32) EncodeError!void {
        const parts = &self.tokenizer.parts;
        const symbols = &self.merging.symbols;
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
