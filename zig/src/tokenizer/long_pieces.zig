//! Merging of pieces that are longer than what the kernels take, in windows that overlap.
//!
//! Two neighbours of a merged text are neighbours in the merged text of just their bytes, and a row of tokens in which all neighbours
//! are that is the merged text: a merge that joined across a border would be the same merge in the text of the two tokens
//! beside it. So a window that begins where a token of the window before began, and begins with that token, goes on
//! where the other ended: every pair of neighbours was seen in one of the two. Time is linear where windows agree, and
//! they do unless a vocabulary is made not to; then the caller has a slower way.
//! Does not know: how text was cut.

const std = @import("std");
const kernels = @import("kernels");

const Joins = kernels.merge_args.Joins;
const window_max = kernels.merging.long_max;
/// Bytes at the end of a window that the next one sees again: tokens there depend on what follows.
const overlap = 64;

const Window = struct {
    ids: [window_max]u32 = undefined,
    count: usize = 0,
    /// Where it begins in the piece.
    start: usize = 0,
    /// Ids of it that are written, and the bytes they stand for.
    kept: usize = 0,
    kept_bytes: usize = 0,

    fn merge(self: *Window, joins: *const Joins, piece: []const u8, start: usize) void {
        const text = piece[start..@min(start + window_max, piece.len)];
        var count: [1]u32 = undefined;
        kernels.textTable().text_merge_long(joins, 1, &.{text.ptr}, &.{@intCast(text.len)}, &.{&self.ids}, &count);
        self.count = count[0];
        self.start = start;
    }

    /// Keeps ids from the front, up to `most` bytes of them and not the last.
    fn keep(self: *Window, decoded: []const []const u8, most: usize) void {
        self.kept = 0;
        self.kept_bytes = 0;
        while (self.kept + 1 < self.count) : (self.kept += 1) {
            const len = decoded[self.ids[self.kept]].len;
            if (self.kept > 0 and self.kept_bytes + len > most) break;
            self.kept_bytes += len;
        }
    }
};

/// Writes the ids of `piece` to `to`, where there is room for as many as it has bytes, and returns how many there are; null when
/// windows do not agree. `decoded` has the bytes of each token.
pub fn merge(joins: *const Joins, decoded: []const []const u8, piece: []const u8, to: [*]u32) ?usize {
    var windows: [2]Window = .{ .{}, .{} };
    var old = &windows[0];
    var new = &windows[1];
    var n: usize = 0;
    old.merge(joins, piece, 0);
    while (true) {
        if (old.start + window_max >= piece.len) {
            @memcpy(to[n..][0..old.count], old.ids[0..old.count]);
            return n + old.count;
        }
        old.keep(decoded, window_max - overlap);
        while (true) {
            if (old.kept == 0) return null;
            new.merge(joins, piece, old.start + old.kept_bytes);
            if (new.ids[0] == old.ids[old.kept]) break;
            const fewer = old.kept_bytes / 2;
            const before = old.kept;
            old.keep(decoded, fewer);
            if (old.kept == before) return null;
        }
        @memcpy(to[n..][0..old.kept], old.ids[0..old.kept]);
        n += old.kept;
        std.mem.swap(*Window, &old, &new);
    }
}
