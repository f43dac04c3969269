//! Tokenizer folders as GGUF keys: both families, and one bad folder for each complaint.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const gguf = @import("gguf.zig");
const gguf_writer = @import("gguf_writer.zig");
const export_tokenizer = @import("export_tokenizer.zig");
const MemoryDisk = base.storage.MemoryDisk;

const testing = std.testing;

const config: arch.ModelConfig = .{
    .vocab_size = 10,
    .hidden_size = 8,
    .intermediate_size = 8,
    .num_hidden_layers = 1,
    .num_attention_heads = 1,
    .num_key_value_heads = 1,
    .head_dim = 8,
    .bos_token_id = 0,
};

const bytes_step =
    \\"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"use_regex":true}
;
const vocab =
    \\"vocab":{"a":0,"b":1,"c":2,"ab":3,"abc":4}
;
const added =
    \\"added_tokens":[{"id":5,"content":"<s>","special":true},{"id":6,"content":"<|im_end|>","special":false},{"id":8,"content":"<think>","special":false}]
;

const File = struct { []const u8, []const u8 };

/// Writes the folder, converts it, and gives the parsed keys to `check`.
fn convert(files: []const File, options: export_tokenizer.Options, context: anytype, comptime check: fn (@TypeOf(context), *const gguf.File) anyerror!void) !void {
    const gpa = testing.allocator;
    var header: gguf_writer.Header = .init(gpa);
    defer header.deinit();
    var diag: base.Diagnostic = .{};
    convertInto(files, options, &header, &diag) catch |err| {
        std.debug.print("{s}\n", .{diag.text()});
        return err;
    };
    var out: std.Io.Writer.Allocating = .init(gpa);
    defer out.deinit();
    try header.write(&out.writer);
    var file = try gguf.File.parse(gpa, out.written(), &diag);
    defer file.deinit();
    try check(context, &file);
}

fn convertInto(files: []const File, options: export_tokenizer.Options, header: *gguf_writer.Header, diag: *base.Diagnostic) !void {
    var disk = try MemoryDisk.init(testing.allocator);
    defer disk.deinit();
    try disk.storage().ensureFolder("tok");
    for (files) |file| {
        const path = try base.storage.join(testing.allocator, "tok", file[0]);
        defer testing.allocator.free(path);
        try base.storage.writeFile(testing.allocator, disk.storage(), path, file[1]);
    }
    try export_tokenizer.write(testing.allocator, disk.storage(), "tok", config, options, header, diag);
}

fn expectRefused(files: []const File, err: anyerror, words: []const u8) !void {
    var header: gguf_writer.Header = .init(testing.allocator);
    defer header.deinit();
    var diag: base.Diagnostic = .{};
    const result: anyerror!void = convertInto(files, .{}, &header, &diag);
    try testing.expectError(err, result);
    if (std.mem.find(u8, diag.text(), words) == null) {
        std.debug.print("message: {s}\n", .{diag.text()});
        return error.TestExpectedMessage;
    }
}

fn tokenizerJson(comptime parts: []const []const u8) []const u8 {
    comptime var text: []const u8 = "{";
    inline for (parts, 0..) |part, i| text = text ++ (if (i == 0) "" else ",") ++ part;
    return text ++ "}";
}

const byte_level = tokenizerJson(&.{ bytes_step, added, "\"model\":{\"type\":\"BPE\"," ++ vocab ++ ",\"merges\":[\"a b\",[\"ab\",\"c\"]]}" });

test "a byte-level vocabulary: types by who they are, holes filled, both spellings of merges" {
    const settings =
        \\{"bos_token":{"content":"<s>"},"eos_token":"<|im_end|>","add_bos_token":true,
        \\ "chat_template":[{"name":"default","template":"D"},{"name":"tool_use","template":"T"}]}
    ;
    try convert(&.{ .{ "tokenizer.json", byte_level }, .{ "tokenizer_config.json", settings }, .{ "generation_config.json", "{\"eos_token_id\":[6,4]}" } }, .{}, {}, struct {
        fn check(_: void, file: *const gguf.File) anyerror!void {
            var diag: base.Diagnostic = .{};
            try testing.expectEqualStrings("gpt2", try file.require([]const u8, "tokenizer.ggml.model", &diag));
            try testing.expectEqualStrings("gpt-2", try file.require([]const u8, "tokenizer.ggml.pre", &diag));
            const tokens = try (try file.optionalArray([]const u8, "tokenizer.ggml.tokens", &diag)).?.stringList(testing.allocator);
            defer testing.allocator.free(tokens);
            for ([_][]const u8{ "a", "b", "c", "ab", "abc", "<s>", "<|im_end|>", "[PAD7]", "<think>", "[PAD9]" }, tokens) |want, got| try testing.expectEqualStrings(want, got);
            const kinds = (try file.optionalArray(i32, "tokenizer.ggml.token_type", &diag)).?;
            for ([_]i32{ 1, 1, 1, 1, 1, 3, 3, 5, 4, 5 }, 0..) |want, i| try testing.expectEqual(want, kinds.at(i32, i));
            const merges = try (try file.optionalArray([]const u8, "tokenizer.ggml.merges", &diag)).?.stringList(testing.allocator);
            defer testing.allocator.free(merges);
            try testing.expectEqualStrings("a b", merges[0]);
            try testing.expectEqualStrings("ab c", merges[1]);
            try testing.expectEqual(@as(u32, 5), try file.require(u32, "tokenizer.ggml.bos_token_id", &diag));
            try testing.expectEqual(@as(u32, 6), try file.require(u32, "tokenizer.ggml.eos_token_id", &diag));
            try testing.expectEqual(@as(u32, 4), try file.require(u32, "tokenizer.ggml.eot_token_id", &diag));
            try testing.expectEqual(true, try file.require(bool, "tokenizer.ggml.add_bos_token", &diag));
            try testing.expectEqual(false, try file.require(bool, "tokenizer.ggml.add_eos_token", &diag));
            try testing.expectEqualStrings("D", try file.require([]const u8, "tokenizer.chat_template", &diag));
            try testing.expectEqualStrings("T", try file.require([]const u8, "tokenizer.chat_template.tool_use", &diag));
        }
    }.check);
}

test "the tokenizer's own template decides on begin and end, and the template file wins" {
    const json = comptime tokenizerJson(&.{
        bytes_step,
        added,
        "\"model\":{" ++ vocab ++ ",\"merges\":[]}",
        "\"post_processor\":{\"type\":\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\"},{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\"}},{\"Sequence\":{\"id\":\"A\"}},{\"SpecialToken\":{\"id\":\"<think>\"}}]}]}",
    });
    try convert(&.{ .{ "tokenizer.json", json }, .{ "tokenizer_config.json", "{\"add_bos_token\":false,\"chat_template\":\"old\"}" }, .{ "chat_template.jinja", "new" } }, .{ .pre = "llama-bpe" }, {}, struct {
        fn check(_: void, file: *const gguf.File) anyerror!void {
            var diag: base.Diagnostic = .{};
            try testing.expectEqualStrings("llama-bpe", try file.require([]const u8, "tokenizer.ggml.pre", &diag));
            try testing.expectEqual(@as(u32, 5), try file.require(u32, "tokenizer.ggml.bos_token_id", &diag));
            try testing.expectEqual(true, try file.require(bool, "tokenizer.ggml.add_bos_token", &diag));
            try testing.expectEqual(true, try file.require(bool, "tokenizer.ggml.add_eos_token", &diag));
            try testing.expectEqualStrings("new", try file.require([]const u8, "tokenizer.chat_template", &diag));
        }
    }.check);
}

test "each contradiction in a folder has its own words" {
    const cases = .{
        .{ "{}", error.InvalidTokenizer, "no \"model\"" },
        .{ "[]", error.JsonWrongType, "object" },
        .{ "{", error.JsonSyntax, "tokenizer.json" },
        .{ "{\"model\":{\"type\":\"Unigram\"}}", error.UnsupportedTokenizer, "Unigram" },
        .{ "{\"model\":{\"continuing_subword_prefix\":\"##\"}}", error.UnsupportedTokenizer, "##" },
        .{ tokenizerJson(&.{ bytes_step, "\"model\":{\"merges\":[]}" }), error.InvalidTokenizer, "no vocab" },
        .{ tokenizerJson(&.{ bytes_step, "\"model\":{\"vocab\":{\"a\":\"0\"},\"merges\":[]}" }), error.InvalidTokenizer, "whole number" },
        .{ tokenizerJson(&.{ bytes_step, "\"model\":{\"vocab\":{\"a\":10},\"merges\":[]}" }), error.TokenBeyondVocabulary, "10 rows" },
        .{ tokenizerJson(&.{ bytes_step, "\"model\":{\"vocab\":{\"a\":-1},\"merges\":[]}" }), error.TokenBeyondVocabulary, "-1" },
        .{ tokenizerJson(&.{ bytes_step, "\"model\":{\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}" }), error.InvalidTokenizer, "id 0 is both" },
        .{ tokenizerJson(&.{ bytes_step, "\"added_tokens\":[{\"id\":3,\"content\":\"a\"}]", "\"model\":{\"vocab\":{\"a\":0},\"merges\":[]}" }), error.DuplicateToken, "two ids" },
        .{ tokenizerJson(&.{ bytes_step, "\"added_tokens\":[{\"id\":3,\"content\":\"[PAD1]\"}]", "\"model\":{\"vocab\":{\"a\":0},\"merges\":[]}" }), error.DuplicateToken, "[PAD1]" },
        .{ tokenizerJson(&.{ bytes_step, "\"model\":{" ++ vocab ++ "}" }), error.InvalidTokenizer, "no merges" },
        .{ tokenizerJson(&.{ bytes_step, "\"model\":{" ++ vocab ++ ",\"merges\":[\"ab\"]}" }), error.InvalidTokenizer, "no space" },
        .{ tokenizerJson(&.{ bytes_step, "\"model\":{" ++ vocab ++ ",\"merges\":[[\"a\"]]}" }), error.InvalidTokenizer, "not a pair" },
        .{ tokenizerJson(&.{ bytes_step, "\"model\":{" ++ vocab ++ ",\"merges\":[\"a c\"]}" }), error.InvalidTokenizer, "not in the vocabulary" },
        .{ tokenizerJson(&.{ "\"pre_tokenizer\":{\"type\":\"Whitespace\"}", "\"model\":{" ++ vocab ++ ",\"merges\":[]}" }), error.UnsupportedTokenizer, "Whitespace" },
    };
    inline for (cases) |case| try expectRefused(&.{.{ "tokenizer.json", case[0] }}, case[1], case[2]);
    try expectRefused(&.{}, error.FileNotFound, "tokenizer.json");
    const good: File = .{ "tokenizer.json", byte_level };
    try expectRefused(&.{ good, .{ "tokenizer_config.json", "{\"eos_token\":\"<nope>\"}" } }, error.InvalidTokenizer, "eos_token");
    try expectRefused(&.{ good, .{ "tokenizer_config.json", "{\"eos_token\":7}" } }, error.InvalidTokenizer, "eos_token");
    try expectRefused(&.{ good, .{ "generation_config.json", "{\"eos_token_id\":[10]}" } }, error.InvalidTokenizer, "10");
    try expectRefused(&.{ good, .{ "tokenizer_config.json", "{\"chat_template\":[{\"name\":\"a b\",\"template\":\"\"}]}" } }, error.InvalidTokenizer, "other signs");
}

test "a vocabulary of pieces has byte tokens, an unknown token, and scores that fall with the rank" {
    const gpa = testing.allocator;
    var text: std.Io.Writer.Allocating = .init(gpa);
    defer text.deinit();
    const w = &text.writer;
    try w.writeAll("{\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"▁\"},{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"▁\"}]}," ++
        "\"added_tokens\":[{\"id\":0,\"content\":\"<unk>\",\"special\":true}]," ++
        "\"model\":{\"type\":\"BPE\",\"unk_token\":\"<unk>\",\"byte_fallback\":true,\"vocab\":{\"<unk>\":0");
    for (0..256) |byte| try w.print(",\"<0x{X:0>2}>\":{d}", .{ byte, byte + 1 });
    try w.writeAll(",\"▁\":257,\"a\":258,\"b\":259,\"ab\":260,\"▁a\":261,\"▁ab\":262},\"merges\":[[\"a\",\"b\"],[\"▁\",\"a\"],[\"▁a\",\"b\"],[\"▁\",\"ab\"]]}}");

    var disk = try MemoryDisk.init(gpa);
    defer disk.deinit();
    try disk.storage().ensureFolder("tok");
    try base.storage.writeFile(gpa, disk.storage(), "tok/tokenizer.json", text.written());
    var header: gguf_writer.Header = .init(gpa);
    defer header.deinit();
    var diag: base.Diagnostic = .{};
    var larger = config;
    larger.vocab_size = 264;
    try export_tokenizer.write(gpa, disk.storage(), "tok", larger, .{}, &header, &diag);
    var out: std.Io.Writer.Allocating = .init(gpa);
    defer out.deinit();
    try header.write(&out.writer);
    var file = try gguf.File.parse(gpa, out.written(), &diag);
    defer file.deinit();

    try testing.expectEqualStrings("llama", try file.require([]const u8, "tokenizer.ggml.model", &diag));
    try testing.expectEqual(true, try file.require(bool, "tokenizer.ggml.add_space_prefix", &diag));
    const kinds = (try file.optionalArray(i32, "tokenizer.ggml.token_type", &diag)).?;
    try testing.expectEqual(@as(i32, 2), kinds.at(i32, 0));
    try testing.expectEqual(@as(i32, 6), kinds.at(i32, 1));
    try testing.expectEqual(@as(i32, 6), kinds.at(i32, 256));
    try testing.expectEqual(@as(i32, 1), kinds.at(i32, 262));
    try testing.expectEqual(@as(i32, 5), kinds.at(i32, 263));
    const scores = (try file.optionalArray(f32, "tokenizer.ggml.scores", &diag)).?;
    try testing.expectEqual(@as(f32, 0), scores.at(f32, 260));
    try testing.expectEqual(@as(f32, -1), scores.at(f32, 261));
    try testing.expectEqual(@as(f32, -2), scores.at(f32, 262));
    try testing.expect(file.get("tokenizer.ggml.merges") == null);
}
