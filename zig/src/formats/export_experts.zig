//! Experts on their way into a file: rows as a linear layer has them, out of a parameter that is kept turned, or out of MXFP4.
//!
//! Row r of the tensor is output r mod rows of expert r / rows. Where the source is MXFP4 and the file is to be, a row is the source's own
//! codes and scales in GGUF's order, to the bit; an expert that an adapter changes is expanded, added to and rounded again, the others of the
//! same tensor stay. Called by several threads at once. Does not know: which type a file should have.

const std = @import("std");
const tensor = @import("tensor");
const name_map = @import("name_map.zig");
const export_source = @import("export_source.zig");
const row_writer = @import("row_writer.zig");
const mxfp4 = tensor.blocks.mxfp4;
const Rows = row_writer.Rows;

/// One tensor of experts' weights or of their biases.
pub const ExpertRows = struct {
    source: *const export_source.Opened,
    /// Of the parameter in the source's layout.
    index: usize,
    part: name_map.Part,
    shape: name_map.Shape,

    pub fn init(source: *const export_source.Opened, index: usize, part: name_map.Part) ExpertRows {
        return .{ .source = source, .index = index, .part = part, .shape = name_map.storedShape(&source.layout.parameters[index], part) };
    }

    /// `dtype`: what the file will have. The result points at `self`.
    pub fn rows(self: *const ExpertRows, dtype: tensor.DType) Rows {
        const blocks = dtype == .mxfp4 and self.source.isBlocks(self.index);
        return .{ .context = self, .read = if (self.shape.rank == 3) readWeights else readBias, .stored = if (blocks) copy else null };
    }

    /// Expert and output of a row.
    fn placeOf(self: *const ExpertRows, row: usize) struct { expert: usize, output: usize } {
        const of_expert = self.shape.sizes[1];
        return .{ .expert = row / of_expert, .output = self.part.of(row % of_expert) };
    }

    fn readWeights(context: *const anyopaque, first: usize, out: []f32) void {
        const self: *const ExpertRows = @ptrCast(@alignCast(context));
        const columns = self.shape.columns();
        const count = out.len / columns;
        if (self.source.isBlocks(self.index)) {
            for (0..count) |i| self.expand(first + i, out[i * columns ..][0..columns]);
        } else self.turn(first, count, out);
        const delta = self.source.delta orelse return;
        for (0..count) |i| {
            const place = self.placeOf(first + i);
            if (delta.changes_expert(delta.context, self.index, place.expert))
                delta.add_expert(delta.context, self.index, place.expert, place.output, out[i * columns ..][0..columns]);
        }
    }

    /// The codes and scales of a row in the source's two tensors.
    fn blocksOf(self: *const ExpertRows, row: usize) struct { codes: []const u8, scales: []const u8 } {
        const place = self.placeOf(row);
        const p = &self.source.layout.parameters[self.index];
        const per_row = self.shape.columns() / mxfp4.len;
        const at = (place.expert * p.full[2] + place.output) * per_row;
        const stored = self.source.stored[self.index];
        return .{ .codes = stored.bytes[at * 16 ..][0 .. per_row * 16], .scales = stored.scales[at..][0..per_row] };
    }

    fn expand(self: *const ExpertRows, row: usize, out: []f32) void {
        const found = self.blocksOf(row);
        for (found.scales, 0..) |e, b| {
            const values = out[b * mxfp4.len ..][0..mxfp4.len];
            mxfp4.dequantizePairs(e, found.codes[b * 16 ..][0..16], values);
            if (e == no_number) @memset(values, std.math.nan(f32));
        }
    }

    fn copy(context: *const anyopaque, row: usize, out: []u8) Rows.Stored {
        const self: *const ExpertRows = @ptrCast(@alignCast(context));
        if (self.source.changesExpert(self.index, self.placeOf(row).expert)) return .convert;
        const found = self.blocksOf(row);
        for (found.scales, 0..) |e, b| {
            if (e == no_number) return .not_finite;
            mxfp4.fromPairs(e, found.codes[b * 16 ..][0..16], out[b * mxfp4.bytes ..][0..mxfp4.bytes]);
        }
        return .written;
    }

    /// Columns of [in, out] matrices as rows. Rows of one expert are read together: their numbers are neighbours in the source.
    fn turn(self: *const ExpertRows, first: usize, count: usize, out: []f32) void {
        const p = &self.source.layout.parameters[self.index];
        const columns = self.shape.columns();
        const stored = self.source.stored[self.index];
        var done: usize = 0;
        while (done < count) {
            const place = self.placeOf(first + done);
            const of_expert = self.shape.sizes[1];
            const together = @min(count - done, of_expert - (first + done) % of_expert);
            const start = place.expert * columns * p.full[2] + place.output;
            const step = self.part.of(1) - self.part.of(0);
            for (0..columns) |i| for (0..together) |r| {
                out[(done + r) * columns + i] = numberAt(stored, start + i * p.full[2] + r * step);
            };
            done += together;
        }
    }

    fn readBias(context: *const anyopaque, first: usize, out: []f32) void {
        const self: *const ExpertRows = @ptrCast(@alignCast(context));
        const p = &self.source.layout.parameters[self.index];
        const columns = self.shape.columns();
        const stored = self.source.stored[self.index];
        for (0..out.len / columns) |row| for (out[row * columns ..][0..columns], 0..) |*o, i| {
            o.* = numberAt(stored, (first + row) * p.full[1] + self.part.of(i));
        };
    }
};

const no_number = 255;

fn numberAt(stored: export_source.Stored, index: usize) f32 {
    return switch (stored.dtype) {
        .f32 => @bitCast(std.mem.readInt(u32, stored.bytes[index * 4 ..][0..4], .little)),
        .bf16 => tensor.convert.bf16ToF32(std.mem.readInt(u16, stored.bytes[index * 2 ..][0..2], .little)),
        .f16 => tensor.convert.f16ToF32(std.mem.readInt(u16, stored.bytes[index * 2 ..][0..2], .little)),
        .f64 => @floatCast(@as(f64, @bitCast(std.mem.readInt(u64, stored.bytes[index * 8 ..][0..8], .little)))),
        else => unreachable, // Float types only, checked when opened.
    };
}

test {
    _ = @import("export_experts_test.zig");
}
