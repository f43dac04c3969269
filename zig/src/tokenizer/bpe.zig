//! `Tokenizer`: text to ids and back, for byte-level and SentencePiece-style byte-pair vocabularies.
//!
//! Built once, then read-only: any number of threads may encode with one tokenizer, each call has its own scratch.
//! Always holds: ids are below `vocabSize()`; ordinary text never becomes a control, unknown-by-name or unused
//! token, whatever the vocabulary or its merges say; decoding what was encoded gives the bytes back
//! (unless the vocabulary's own normalisation changed them).
//! Does not know: JSON, GGUF, chat roles.

const std = @import("std");
const base = @import("base");
const added_tokens = @import("added_tokens.zig");
const byte_level = @import("byte_level.zig");
const encoding = @import("encoding.zig");
const gguf_vocabulary = @import("gguf_vocabulary.zig");
const hf_folder = @import("hf_folder.zig");
const merge = @import("merge.zig");
const parts_module = @import("parts.zig");

const Allocator = std.mem.Allocator;
const EncodeScratch = encoding.EncodeScratch;
const Decoder = @import("decoder.zig").Decoder;
const Index = @import("index.zig").Index;
const Parts = parts_module.Parts;
const Token = parts_module.Token;
const printable = base.bytes.printable;
const TokenType = parts_module.TokenType;

/// Names that end a turn or a text in one family or another; a stop when they are added tokens.
const stop_names = [_][]const u8{ "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>", "< EOT >", "<|eom_id|>", "<|return|>", "<|call|>", "</s>", "<eos>", "<｜end▁of▁sentence｜>", "<end_of_utterance>" };

pub const EncodeError = error{ OutOfMemory, TextTooLong };

pub const EncodeOptions = struct {
    /// Whether the text's first id is the begin token; null = what the tokenizer's files say.
    add_bos: ?bool = null,
    /// Whether the end token follows; null = what the tokenizer's files say.
    add_eos: ?bool = null,
    /// Let control tokens written out in the text become ids. Never for text a person wrote.
    parse_special: bool = false,
    /// The text does not begin the document: no leading space of the "first fragment" kind.
    continues: bool = false,
    /// Leave out what the files put before or after a text: this is a part of one.
    no_prefix: bool = false,
    no_suffix: bool = false,
};

pub const DecodeOptions = struct {
    /// Leave control and unknown tokens out.
    skip_special: bool = true,
    /// The ids continue a text: keep a leading space.
    continues: bool = false,
};

pub const Tokenizer = struct {
    arena: std.heap.ArenaAllocator,
    parts: Parts,
    /// What each token becomes when decoded.
    decoded: []const []const u8,
    /// Text of a token as the file spells it to id.
    by_text: std.StringHashMapUnmanaged(u32),
    /// What merging may produce: real bytes (byte level) or pieces, to id.
    ordinary: std.StringHashMapUnmanaged(u32),
    ranked: merge.Ranked,
    /// Token of each single byte.
    byte_ids: [256]?u32,
    raw: added_tokens.Matcher,
    normalized: added_tokens.Matcher,
    stops: []const u32,
    index: Index,

    /// Takes over `arena`, which holds everything `parts` points at; frees it on failure too.
    /// `diag` says what is wrong.
    pub fn fromParts(arena_in: std.heap.ArenaAllocator, parts: Parts, diag: *base.Diagnostic) parts_module.Error!Tokenizer {
        var self: Tokenizer = .{
            .arena = arena_in,
            .parts = parts,
            .decoded = &.{},
            .by_text = .empty,
            .ordinary = .empty,
            .ranked = .{},
            .byte_ids = @splat(null),
            .raw = .{},
            .normalized = .{},
            .stops = &.{},
            .index = .{},
        };
        errdefer self.arena.deinit();

        const arena = self.arena.allocator();
        const decoded = try self.indexTokens(arena, diag);
        self.decoded = decoded;
        try self.checkIds(diag);
        try self.indexBytes(diag);
        try self.indexMerges(arena, diag);
        try self.indexAdded(arena, decoded);
        try self.collectStops(arena);
        self.index = try .init(arena, &self.parts, &self.ordinary, &self.ranked, &self.byte_ids);
        return self;
    }

    /// The tokenizer in a folder with `tokenizer.json`. `diag` names file, value and rule on failure.
    pub fn openFolder(gpa: Allocator, io: std.Io, path: []const u8, diag: *base.Diagnostic) hf_folder.OpenError!Tokenizer {
        return hf_folder.open(gpa, io, path, diag);
    }

    /// The tokenizer of a GGUF file's values, which are copied.
    pub fn fromGguf(gpa: Allocator, vocabulary: gguf_vocabulary.GgufVocabulary, diag: *base.Diagnostic) parts_module.Error!Tokenizer {
        return gguf_vocabulary.fromGguf(gpa, vocabulary, diag);
    }

    pub fn deinit(self: *Tokenizer) void {
        self.arena.deinit();
    }

    // ---- building ----

    fn indexTokens(self: *Tokenizer, arena: Allocator, diag: *base.Diagnostic) ![][]const u8 {
        const tokens = self.parts.tokens;
        if (tokens.len >= 1 << 30) {
            diag.set("{d} tokens are too many", .{tokens.len});
            return error.InvalidTokenizer;
        }
        if (tokens.len == 0) {
            diag.set("the vocabulary is empty; a tokenizer needs at least one token", .{});
            return error.InvalidTokenizer;
        }
        const decoded = try arena.alloc([]const u8, tokens.len);
        try self.by_text.ensureTotalCapacity(arena, @intCast(tokens.len));
        try self.ordinary.ensureTotalCapacity(arena, @intCast(tokens.len));
        for (tokens, decoded, 0..) |token, *out, i| {
            const id: u32 = @intCast(i);
            out.* = token.text;
            if (token.text.len == 0) continue;
            const seen = self.by_text.getOrPutAssumeCapacity(token.text);
            if (seen.found_existing) {
                diag.set("tokens {d} and {d} have the same text {f}; texts must be unique", .{ seen.value_ptr.*, id, printable(token.text) });
                return error.InvalidTokenizer;
            }
            seen.value_ptr.* = id;
            switch (self.parts.kind) {
                .byte_level => {
                    if (!token.in_model or (token.type != .normal and token.type != .user_defined)) continue;
                    const bytes = try byte_level.toBytes(arena, token.text) orelse continue;
                    out.* = bytes;
                    self.ordinary.putAssumeCapacity(bytes, id);
                },
                .characters => {
                    if (token.type == .byte) {
                        const byte = parseByteToken(token.text) orelse {
                            diag.set("token {d} is of type byte but its text is {f}, not <0xNN>", .{ id, printable(token.text) });
                            return error.InvalidTokenizer;
                        };
                        self.byte_ids[byte] = id;
                        out.* = try arena.dupe(u8, &.{byte});
                        continue;
                    }
                    if (token.in_model and (token.type == .normal or token.type == .user_defined)) self.ordinary.putAssumeCapacity(token.text, id);
                    if (self.parts.space_mark) |mark| if (token.type == .normal) {
                        out.* = try std.mem.replaceOwned(u8, arena, token.text, mark, " ");
                    };
                },
            }
        }
        return decoded;
    }

    fn checkIds(self: *Tokenizer, diag: *base.Diagnostic) !void {
        inline for (.{ "bos", "eos", "eot", "eom", "pad", "unknown" }) |name| {
            if (@field(self.parts, name)) |id| try self.checkId(id, name, diag);
        }
        for (self.parts.prefix) |id| try self.checkId(id, "prefix", diag);
        for (self.parts.suffix) |id| try self.checkId(id, "suffix", diag);
        for (self.parts.more_stops) |id| try self.checkId(id, "stop", diag);
    }

    fn checkId(self: *const Tokenizer, id: u32, name: []const u8, diag: *base.Diagnostic) !void {
        if (id < self.parts.tokens.len) return;
        diag.set("{s} token id {d} is not below the vocabulary size {d}", .{ name, id, self.parts.tokens.len });
        return error.InvalidTokenizer;
    }

    /// Every byte must have a way in; otherwise some text would be lost without a word.
    fn indexBytes(self: *Tokenizer, diag: *base.Diagnostic) !void {
        if (self.parts.kind == .byte_level) {
            for (&self.byte_ids, 0..) |*id, byte| id.* = self.ordinary.get(&.{@intCast(byte)});
        }
        if (self.parts.unknown != null) return;
        if (self.parts.kind == .characters and !self.parts.byte_fallback) {
            diag.set("the vocabulary has neither byte tokens nor an unknown token: text outside it could not be encoded", .{});
            return error.UnsupportedTokenizer;
        }
        for (self.byte_ids, 0..) |id, byte| if (id == null) {
            diag.set("the vocabulary has no token for byte 0x{X:0>2} and no unknown token; train it with the full byte alphabet", .{byte});
            return error.UnsupportedTokenizer;
        };
    }

    fn indexMerges(self: *Tokenizer, arena: Allocator, diag: *base.Diagnostic) !void {
        const list = switch (self.parts.merges) {
            .scored => |scores| {
                if (scores.len < self.parts.tokens.len) {
                    diag.set("there are {d} scores for {d} tokens; each token needs one", .{ scores.len, self.parts.tokens.len });
                    return error.InvalidTokenizer;
                }
                for (scores, 0..) |score, i| if (std.math.isNan(score)) {
                    diag.set("the score of token {d} is not a number", .{i});
                    return error.InvalidTokenizer;
                };
                return;
            },
            .ranked => |list| list,
        };
        if (list.len > merge.Ranked.most) {
            diag.set("{d} merges are too many", .{list.len});
            return error.InvalidTokenizer;
        }
        self.ranked = try .init(arena, list.len);
        var joined: std.ArrayList(u8) = .empty;
        defer joined.deinit(arena);

        for (list, 0..) |pair, rank| {
            joined.clearRetainingCapacity();
            try joined.appendSlice(arena, pair[0]);
            try joined.appendSlice(arena, pair[1]);
            const left = try self.mergeId(pair[0], rank, diag);
            const right = try self.mergeId(pair[1], rank, diag);
            const whole = try self.mergeId(joined.items, rank, diag);
            // Ordinary text must not grow into anything but ordinary tokens.
            switch (self.parts.tokens[whole].type) {
                .normal, .user_defined => {},
                .control, .unknown, .unused, .byte => continue,
            }
            // A repeated pair keeps its last rank, as in the reference.
            self.ranked.put(left, right, .{ .place = @intCast(rank), .id = whole });
        }
    }

    fn mergeId(self: *const Tokenizer, text: []const u8, rank: usize, diag: *base.Diagnostic) !u32 {
        return self.by_text.get(text) orelse {
            diag.set("merge {d} names {f}, which is not in the vocabulary", .{ rank, printable(text) });
            return error.InvalidTokenizer;
        };
    }

    fn indexAdded(self: *Tokenizer, arena: Allocator, decoded: [][]const u8) !void {
        var raw: std.ArrayList(added_tokens.Added) = .empty;
        var normalized: std.ArrayList(added_tokens.Added) = .empty;
        var spelled: std.StringHashMapUnmanaged(void) = .empty;
        defer spelled.deinit(arena);

        for (self.parts.tokens, 0..) |token, id| {
            if (!token.added or token.text.len == 0) continue;
            var entry: added_tokens.Added = .{
                .text = token.text,
                .id = @intCast(id),
                .control = token.special,
                .lstrip = token.lstrip,
                .rstrip = token.rstrip,
                .single_word = token.single_word,
            };
            if (!token.normalized) {
                try raw.append(arena, entry);
                continue;
            }
            entry.text = try encoding.normalize(arena, self.parts.steps, token.text);
            // Two spellings may normalise to one; the first keeps it.
            if ((try spelled.getOrPut(arena, entry.text)).found_existing) continue;
            try normalized.append(arena, entry);
            // What was matched is what comes back, the space that normalisation put before it included.
            if (self.parts.space_mark) |mark| decoded[id] = try std.mem.replaceOwned(u8, arena, entry.text, mark, " ");
        }
        self.raw = try .init(arena, raw.items);
        self.normalized = try .init(arena, normalized.items);
    }

    fn collectStops(self: *Tokenizer, arena: Allocator) !void {
        var stops: std.ArrayList(u32) = .empty;
        for ([_]?u32{ self.parts.eos, self.parts.eot, self.parts.eom }) |id| if (id) |known| try addOnce(arena, &stops, known);
        for (self.parts.more_stops) |id| try addOnce(arena, &stops, id);
        for (stop_names) |name| if (self.addedId(name)) |id| try addOnce(arena, &stops, id);
        // In harmony `<|end|>` ends a message and not the turn, whoever named it.
        const harmony = self.addedId("<|return|>") != null and self.addedId("<|call|>") != null;
        if (harmony) if (self.addedId("<|end|>")) |id| {
            const at = std.mem.findScalar(u32, stops.items, id);
            if (at) |index| _ = stops.orderedRemove(index);
        };
        self.stops = stops.items;
    }

    fn addedId(self: *const Tokenizer, text: []const u8) ?u32 {
        const id = self.by_text.get(text) orelse return null;
        return switch (self.parts.tokens[id].type) {
            .control, .user_defined, .unknown => id,
            .normal, .unused, .byte => null,
        };
    }

    // ---- questions ----

    /// Number of ids, holes included: the rows an embedding table needs at least.
    pub fn vocabSize(self: *const Tokenizer) usize {
        return self.parts.tokens.len;
    }

    pub fn bos(self: *const Tokenizer) ?u32 {
        return self.parts.bos;
    }
    pub fn eos(self: *const Tokenizer) ?u32 {
        return self.parts.eos;
    }
    pub fn pad(self: *const Tokenizer) ?u32 {
        return self.parts.pad;
    }

    /// Whether `encode` puts the begin token first when not told otherwise.
    pub fn addBos(self: *const Tokenizer) bool {
        const id = self.parts.bos orelse return false;
        return self.parts.prefix.len > 0 and self.parts.prefix[0] == id;
    }

    /// Id of the token with this text, as the file spells it.
    pub fn idOf(self: *const Tokenizer, text: []const u8) ?u32 {
        return self.by_text.get(text);
    }

    /// Id of the added token (control or user-defined) with this text.
    pub fn specialId(self: *const Tokenizer, text: []const u8) ?u32 {
        return self.addedId(text);
    }

    /// Text of a token as the file spells it; null beyond the vocabulary.
    pub fn textOf(self: *const Tokenizer, id: u32) ?[]const u8 {
        return if (id < self.parts.tokens.len) self.parts.tokens[id].text else null;
    }

    /// Bytes a token stands for in decoded text; empty beyond the vocabulary.
    pub fn bytesOf(self: *const Tokenizer, id: u32) []const u8 {
        return if (id < self.decoded.len) self.decoded[id] else "";
    }

    pub fn typeOf(self: *const Tokenizer, id: u32) ?TokenType {
        return if (id < self.parts.tokens.len) self.parts.tokens[id].type else null;
    }

    pub fn isControl(self: *const Tokenizer, id: u32) bool {
        return self.typeOf(id) == .control;
    }

    /// Whether `skip_special` leaves this id out.
    pub fn isSkipped(self: *const Tokenizer, id: u32) bool {
        return switch (self.typeOf(id) orelse return true) {
            .control, .unknown => true,
            .normal, .user_defined, .unused, .byte => false,
        };
    }

    /// Ids that end generation: eos, eot, eom and the well-known names that are added tokens here.
    pub fn stopTokens(self: *const Tokenizer) []const u32 {
        return self.stops;
    }

    pub fn isStop(self: *const Tokenizer, id: u32) bool {
        return std.mem.findScalar(u32, self.stops, id) != null;
    }

    /// Jinja source of the chat template, when the files have one.
    pub fn chatTemplate(self: *const Tokenizer) ?[]const u8 {
        return self.parts.chat_template;
    }

    // ---- encoding ----

    /// Ids of `text`; the caller frees them. Bytes need not be UTF-8.
    pub fn encode(self: *const Tokenizer, gpa: Allocator, text: []const u8, options: EncodeOptions) EncodeError![]u32 {
        var scratch: EncodeScratch = .init(gpa);
        defer scratch.deinit(gpa);
        var out: std.ArrayList(u32) = .empty;
        errdefer out.deinit(gpa);

        try self.encodeInto(&scratch, &out, gpa, text, options);
        return out.toOwnedSlice(gpa);
    }

    /// Appends the ids of `text` to `out`, both of `gpa`. `scratch` is kept from call to call: one for each thread.
    /// On error `out` is as it was before.
    pub fn encodeInto(self: *const Tokenizer, scratch: *EncodeScratch, out: *std.ArrayList(u32), gpa: Allocator, text: []const u8, options: EncodeOptions) EncodeError!void {
        const before = out.items.len;
        errdefer out.items.len = before;
        var call: encoding.Call = .{ .tokenizer = self, .gpa = gpa, .kept = scratch, .out = out, .parse_special = options.parse_special };
        defer call.deinit();

        if (options.add_bos) |wanted| {
            if (wanted) if (self.parts.bos) |id| try out.append(gpa, id);
        } else if (!options.no_prefix) try out.appendSlice(gpa, self.parts.prefix);
        try call.append(text, !options.continues);
        if (options.add_eos) |wanted| {
            if (wanted) if (self.parts.eos) |id| try out.append(gpa, id);
        } else if (!options.no_suffix) try out.appendSlice(gpa, self.parts.suffix);
    }

    // ---- decoding ----

    /// Bytes of `ids`; the caller frees them. Lossless: what is not UTF-8 stays as it is (`Decoder` gives text).
    pub fn decode(self: *const Tokenizer, gpa: Allocator, ids: []const u32, options: DecodeOptions) error{OutOfMemory}![]u8 {
        var out: std.ArrayList(u8) = .empty;
        errdefer out.deinit(gpa);
        for (ids) |id| {
            if (options.skip_special and self.isSkipped(id)) continue;
            try out.appendSlice(gpa, self.bytesOf(id));
        }
        if (!options.continues and self.parts.drop_leading_space and out.items.len > 0 and out.items[0] == ' ')
            _ = out.orderedRemove(0);
        return out.toOwnedSlice(gpa);
    }

    /// A decoder that is fed one id at a time.
    pub fn decoder(self: *const Tokenizer, options: DecodeOptions) Decoder {
        return .{ .tokenizer = self, .options = options, .drop_space = !options.continues and self.parts.drop_leading_space };
    }
};

/// Byte of a token `<0xNN>`.
pub fn parseByteToken(text: []const u8) ?u8 {
    if (text.len != 6 or !std.mem.startsWith(u8, text, "<0x") or text[5] != '>') return null;
    for (text[3..5]) |c| if (!std.ascii.isDigit(c) and (c < 'A' or c > 'F')) return null;
    return std.fmt.parseInt(u8, text[3..5], 16) catch null;
}

fn addOnce(arena: Allocator, list: *std.ArrayList(u32), id: u32) !void {
    if (std.mem.findScalar(u32, list.items, id) == null) try list.append(arena, id);
}

const fixture = @import("fixture.zig");

fn expectIds(tokenizer: *const Tokenizer, text: []const u8, options: EncodeOptions, expected: []const []const u8) !void {
    const ids = try tokenizer.encode(std.testing.allocator, text, options);
    defer std.testing.allocator.free(ids);

    try std.testing.expectEqual(expected.len, ids.len);
    for (expected, ids) |want, id| try std.testing.expectEqualStrings(want, tokenizer.textOf(id).?);
}

test "merges follow their rank, the begin token follows the family" {
    var tokenizer = try fixture.make(std.testing.allocator, "llama-bpe");
    defer tokenizer.deinit();

    try expectIds(&tokenizer, "hello world", .{}, &.{ "<|begin_of_text|>", "hello", "Ġw", "o", "r", "l", "d" });
    try expectIds(&tokenizer, "aaaaaaa", .{ .add_bos = false, .add_eos = true }, &.{ "aaaa", "aa", "a", "<|end_of_text|>" });
    try std.testing.expect(tokenizer.addBos());
    try std.testing.expectEqual(tokenizer.idOf("hello"), tokenizer.idOf("hello"));
    try std.testing.expectEqual(null, tokenizer.idOf("nothing"));
    try std.testing.expectEqual(null, tokenizer.textOf(@intCast(tokenizer.vocabSize())));
}

test "written-out control tokens are ids only when asked, user-defined ones always" {
    var tokenizer = try fixture.make(std.testing.allocator, "qwen2");
    defer tokenizer.deinit();

    try expectIds(&tokenizer, "a<|im_end|>b", .{ .parse_special = true }, &.{ "a", "<|im_end|>", "b" });
    try expectIds(&tokenizer, "a<|im_end|>b", .{}, &.{ "a", "<|", "im", "_end", "|>", "b" });
    try expectIds(&tokenizer, "<think>", .{}, &.{"<think>"});
    try std.testing.expect(tokenizer.isStop(tokenizer.idOf("<|im_end|>").?));
    try std.testing.expect(tokenizer.isStop(tokenizer.eos().?));
    try std.testing.expect(!tokenizer.isStop(tokenizer.idOf("<|im_start|>").?));
}

test "harmony's end of a message is no stop" {
    var diag: base.Diagnostic = .{};
    var tokenizer = try Tokenizer.fromGguf(std.testing.allocator, .{
        .model = "llama",
        .tokens = &.{ "<unk>", "<|return|>", "<|call|>", "<|end|>" },
        .token_types = &.{ 2, 3, 3, 3 },
        .scores = &.{ 0, 0, 0, 0 },
        .eos = 1,
        .eot = 3,
    }, &diag);
    defer tokenizer.deinit();

    try std.testing.expectEqualSlices(u32, &.{ 1, 2 }, tokenizer.stopTokens());
}

test "no text becomes a control token, and every byte comes back" {
    const gpa = std.testing.allocator;
    const seed = std.testing.random_seed;
    errdefer std.debug.print("seed {d}\n", .{seed});
    var prng: std.Random.DefaultPrng = .init(seed);
    const random = prng.random();
    for ([_][]const u8{ "llama-bpe", "gpt-2", "smollm", "gpt-4o", "tekken", "default" }) |pre| {
        var tokenizer = try fixture.make(gpa, pre);
        defer tokenizer.deinit();

        for (0..400) |_| {
            var text: std.ArrayList(u8) = .empty;
            defer text.deinit(gpa);

            for (0..random.intRangeAtMost(usize, 0, 8)) |_| switch (random.uintLessThan(u8, 5)) {
                0, 1 => {
                    const special = (fixture.specials ++ .{"<|im_end|>"})[random.uintLessThan(usize, fixture.specials.len + 1)];
                    const from = if (random.boolean()) 0 else random.uintLessThan(usize, special.len);
                    try text.appendSlice(gpa, special[from..]);
                },
                2 => try text.append(gpa, random.int(u8)),
                3 => try text.appendSlice(gpa, "<|im"),
                else => try text.appendSlice(gpa, "\u{ff1c}|eot_id|> "),
            };
            const ids = try tokenizer.encode(gpa, text.items, .{ .add_bos = false });
            defer gpa.free(ids);

            for (ids) |id| try std.testing.expect(!tokenizer.isControl(id));
            const back = try tokenizer.decode(gpa, ids, .{});
            defer gpa.free(back);

            try std.testing.expectEqualSlices(u8, text.items, back);
        }
    }
}

test "a long run of one character takes near-linear time" {
    const gpa = std.testing.allocator;
    var tokenizer = try fixture.make(gpa, "llama-bpe");
    defer tokenizer.deinit();

    // A quadratic merge of these 64 Ki symbols would take minutes in a debug build.
    const text = try gpa.alloc(u8, 1 << 16);
    defer gpa.free(text);

    @memset(text, 'a');
    const ids = try tokenizer.encode(gpa, text, .{ .add_bos = false });
    defer gpa.free(ids);

    try std.testing.expectEqual(text.len / 4, ids.len);
}

test "two threads encode with one tokenizer" {
    const gpa = std.testing.allocator;
    var tokenizer = try fixture.make(gpa, "llama-bpe");
    defer tokenizer.deinit();

    const work = struct {
        const text = "hello world hello <|im_end|>";

        fn run(shared: *const Tokenizer, expected: []const u32, ok: *std.atomic.Value(u32)) void {
            for (0..50) |_| {
                const ids = shared.encode(std.heap.c_allocator, text, .{}) catch return;
                defer std.heap.c_allocator.free(ids);
                if (!std.mem.eql(u32, expected, ids)) return;
            }
            _ = ok.fetchAdd(1, .monotonic);
        }
    };
    const expected = try tokenizer.encode(gpa, work.text, .{});
    defer gpa.free(expected);

    var ok: std.atomic.Value(u32) = .init(0);
    const other = try std.Thread.spawn(.{}, work.run, .{ &tokenizer, expected, &ok });
    work.run(&tokenizer, expected, &ok);
    other.join();
    try std.testing.expectEqual(2, ok.load(.monotonic));
}

test "running out of memory anywhere leaks nothing" {
    try std.testing.checkAllAllocationFailures(std.testing.allocator, struct {
        fn run(gpa: Allocator) !void {
            var tokenizer = fixture.make(gpa, "qwen2") catch return error.OutOfMemory;
            defer tokenizer.deinit();

            const ids = try tokenizer.encode(gpa, "e\u{301} hello <think> world", .{});
            gpa.free(ids);
        }
    }.run, .{});
}

test "ids are appended to those before, and one scratch serves many texts and tokenizers" {
    const gpa = std.testing.allocator;
    var scratch: EncodeScratch = .init(gpa);
    defer scratch.deinit(gpa);
    var out: std.ArrayList(u32) = .empty;
    defer out.deinit(gpa);

    for ([_][]const u8{ "qwen2", "gpt-2", "llama-bpe" }) |pre| {
        var tokenizer = try fixture.make(gpa, pre);
        defer tokenizer.deinit();

        for ([_][]const u8{ "hello world", "", "e\u{301} <think> hello", "aaaaaaaaa" }) |text| {
            const expected = try tokenizer.encode(gpa, text, .{});
            defer gpa.free(expected);

            const before = out.items.len;
            try tokenizer.encodeInto(&scratch, &out, gpa, text, .{});
            try std.testing.expectEqualSlices(u32, expected, out.items[before..]);
        }
    }
}
