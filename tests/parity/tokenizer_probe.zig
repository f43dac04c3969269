//! What the tokenizer parity tests ask, answered on stdout: reads one JSON request, writes one JSON answer.
//! Built by tests/parity/test_tokenizer_ids.py; belongs to no product.

const std = @import("std");
const base = @import("base");
const tokenizer = @import("tokenizer");

const Request = struct {
    /// One of the two is given.
    folder: ?[]const u8 = null,
    gguf: ?tokenizer.GgufVocabulary = null,
    texts: []const []const u8 = &.{},
    add_bos: ?bool = null,
    add_eos: ?bool = null,
    parse_special: bool = false,
};

const Encoded = struct { ids: []const u32, text: []const u8 };
const Answer = struct { texts: []const Encoded };

pub fn main(init: std.process.Init) !void {
    const arena = init.arena.allocator();
    const args = try init.minimal.args.toSlice(arena);
    const source = try std.Io.Dir.cwd().readFileAlloc(init.io, args[1], arena, .unlimited);
    const request = try std.json.parseFromSliceLeaky(Request, arena, source, .{});
    var diag: base.Diagnostic = .{};
    const answer = run(arena, init.io, request, &diag) catch |err| {
        std.debug.print("{t}: {s}\n", .{ err, diag.text() });
        std.process.exit(1);
    };
    var out: std.Io.Writer.Allocating = .init(arena);
    try std.json.Stringify.value(answer, .{}, &out.writer);
    try std.Io.Dir.cwd().writeFile(init.io, .{ .sub_path = args[2], .data = out.written() });
}

fn run(arena: std.mem.Allocator, io: std.Io, request: Request, diag: *base.Diagnostic) !Answer {
    var tok = if (request.folder) |folder|
        try tokenizer.Tokenizer.openFolder(arena, io, folder, diag)
    else
        try tokenizer.Tokenizer.fromGguf(arena, request.gguf.?, diag);
    const texts = try arena.alloc(Encoded, request.texts.len);
    for (texts, request.texts) |*out, text| {
        const ids = try tok.encode(arena, text, .{ .add_bos = request.add_bos, .add_eos = request.add_eos, .parse_special = request.parse_special });
        var decoded: std.ArrayList(u8) = .empty;
        var decoder = tok.decoder(.{ .skip_special = !request.parse_special });
        for (ids) |id| try decoder.push(arena, &decoded, id);
        try decoder.finish(arena, &decoded);
        out.* = .{ .ids = ids, .text = decoded.items };
    }
    return .{ .texts = texts };
}
