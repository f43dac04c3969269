//! What is worked out once about a vocabulary so that encoding is quick, and changes no id.
//!
//! Which tokens a piece of just their bytes becomes (a token may be in the vocabulary and yet be out of the merges'
//! reach), which bytes never stand side by side inside a token (no merge crosses there, so a long piece may be cut),
//! and which of the pre-tokenizers has a kernel.
//! Does not know: texts.

const std = @import("std");
const kernels = @import("kernels");
const merge = @import("merge.zig");
const unicode = @import("unicode.zig");
const words_module = @import("words.zig");
const Borders = @import("borders.zig").Borders;
const Chars = @import("chars.zig").Chars;
const JoinTable = @import("joins.zig").Table;
const Pass = @import("pre_tokenizer.zig").Pass;
const Parts = @import("parts.zig").Parts;

const Allocator = std.mem.Allocator;
const Rule = kernels.text.Rule;

/// Each tokenizer of the process has its own number: a cache that outlives one is not taken for another's.
var serials: std.atomic.Value(u64) = .init(1);

pub const Index = struct {
    serial: u64 = 0,
    /// Byte level with a token for each byte.
    byte_ids: ?*const [256]u32 = null,
    joins: kernels.merge_args.Joins = (JoinTable{}).joins,
    words: words_module.Words = .{},
    /// Tokens that a piece of just their bytes becomes.
    whole: std.bit_set.Dynamic = .{},
    longest: usize = 0,
    /// Byte level with a token for each byte.
    borders: Borders = .{},
    /// With `ignore_merges`: tokens that merging does not reach. A part of a piece must not become one.
    strays: std.StringHashMapUnmanaged(void) = .empty,
    rule: ?Rule = null,
    /// Byte level, where text may be cut between characters.
    chars: ?Chars = null,
    /// Characters: a space mark after something else begins a piece of its own.
    words_apart: bool = false,

    pub fn init(arena: Allocator, parts: *const Parts, ordinary: *const std.StringHashMapUnmanaged(u32), ranked: *const merge.Ranked, byte_ids: *const [256]?u32) !Index {
        var self: Index = .{ .serial = serials.fetchAdd(1, .monotonic), .whole = try .initEmpty(arena, parts.tokens.len) };
        unicode.prepare();
        self.rule = ruleOf(parts.passes);
        switch (parts.kind) {
            .characters => self.words_apart = wordsApart(parts, ordinary),
            .byte_level => {
                const all = try arena.create([256]u32);
                for (all, byte_ids) |*id, known| id.* = known orelse return self;
                const table = try JoinTable.init(arena, parts, ranked, all) orelse return self;
                self.byte_ids = all;
                self.joins = table.joins;
                try self.indexWords(arena, parts, ordinary, &table.reached);
                const chars = try Chars.init(arena, &self.joins, table.symbols) orelse return self;
                self.joins.chars = chars.table.ptr;
                if (self.strays.count() == 0) self.chars = chars;
            },
        }
        return self;
    }

    fn indexWords(self: *Index, arena: Allocator, parts: *const Parts, ordinary: *const std.StringHashMapUnmanaged(u32), reached: *const std.bit_set.Dynamic) !void {
        self.borders = try .init(arena);
        self.words = try .init(arena, ordinary.count(), parts.tokens.len);
        var entries = ordinary.iterator();
        while (entries.next()) |entry| {
            const text = entry.key_ptr.*;
            const id = entry.value_ptr.*;
            self.borders.addToken(text);
            if (!reached.isSet(id)) {
                if (!parts.ignore_merges) continue;
                try self.strays.put(arena, text, {});
            }
            self.whole.set(id);
            self.longest = @max(self.longest, text.len);
            if (text.len <= words_module.short_max) self.words.put(words_module.keyOfSlice(text), id);
        }
    }

    /// The token that a piece of more than `words.short_max` bytes is without merging.
    pub fn wholeId(self: *const Index, ordinary: *const std.StringHashMapUnmanaged(u32), piece: []const u8) ?u32 {
        if (piece.len > self.longest) return null;
        const id = ordinary.get(piece) orelse return null;
        return if (self.whole.isSet(id)) id else null;
    }

    /// Whether the parts of a piece that is not whole may be looked up like pieces.
    pub fn mayCut(self: *const Index, piece: []const u8) bool {
        if (self.strays.count() == 0) return true;
        var at: usize = 0;
        while (at < piece.len) {
            const end = self.borders.next(piece, at);
            if (self.strays.contains(piece[at..end])) return false;
            at = end;
        }
        return true;
    }
};

fn ruleOf(passes: []const Pass) ?Rule {
    if (std.mem.eql(Pass, passes, &.{ .digits_each, .gpt2 })) return .smollm;
    if (passes.len != 1) return null;
    return switch (passes[0]) {
        .gpt2 => .gpt2,
        .llama3 => .llama3,
        .qwen2 => .qwen2,
        .o200k => .o200k,
        .tekken => .tekken,
        else => null,
    };
}

fn wordsApart(parts: *const Parts, ordinary: *const std.StringHashMapUnmanaged(u32)) bool {
    const mark = parts.space_mark orelse return false;
    if (!ordinary.contains(mark) or parts.ignore_merges) return false;
    var texts = ordinary.keyIterator();
    while (texts.next()) |text| {
        var rest = text.*;
        while (std.mem.startsWith(u8, rest, mark)) rest = rest[mark.len..];
        if (std.mem.find(u8, rest, mark) != null) return false;
    }
    return true;
}
