//! The model under a trainer: weights in memory, which may be trained, or a mapped file that only an adapter sits on.
//!
//! Does not know: adapters, optimizers.

const std = @import("std");
const base = @import("base");
const tensor = @import("tensor");
const arch = @import("arch");
const model_layer = @import("model");
const checkpoint = @import("checkpoint");

pub fn Source(comptime T: type) type {
    return union(enum) {
        dense: *checkpoint.LoadedModel(T),
        mapped: *const checkpoint.MappedModel,

        const Self = @This();

        pub fn config(self: Self) arch.ModelConfig {
            return switch (self) {
                inline else => |model| model.config,
            };
        }

        pub fn layout(self: Self) *const arch.Layout {
            return switch (self) {
                inline else => |model| &model.layout,
            };
        }

        /// What a pass reads.
        pub fn weights(self: Self) model_layer.Base(T) {
            return switch (self) {
                .dense => |model| .{ .dense = model.weights },
                .mapped => |model| .{ .frozen = model.matrices },
            };
        }

        pub fn baseModel(self: Self) checkpoint.adapter.BaseModel(T) {
            return .{
                .config = self.config(),
                .layout = self.layout(),
                .weights = switch (self) {
                    .dense => |model| model.weights,
                    .mapped => null,
                },
            };
        }

        /// CRC-32C of all norms and biases and of both ends of every matrix, as f32: enough to tell one base from another,
        /// cheap on one larger than memory, and the same for a mapped file and its numbers in memory.
        pub fn fingerprint(self: Self) u32 {
            var crc: base.checksum.Crc32c = .{};
            for (self.layout().parameters, 0..) |p, i| {
                if (checkpoint.mapped_model.isCopied(&p)) {
                    var at: usize = 0;
                    while (at < p.len) : (at += edge) self.mix(&crc, p, i, at, @min(edge, p.len - at));
                    continue;
                }
                const count = @min(edge, p.shape[1]);
                self.mix(&crc, p, i, 0, count);
                self.mix(&crc, p, i, p.len - count, count);
            }
            return crc.final();
        }

        /// A multiple of every block length.
        const edge = 256;

        /// Adds `count` numbers from `at` on of one parameter.
        fn mix(self: Self, crc: *base.checksum.Crc32c, p: arch.Parameter, position: usize, at: usize, count: usize) void {
            var numbers: [edge]f32 = undefined;
            switch (self) {
                .dense => |model| for (numbers[0..count], p.sliceConst(T, model.weights)[at..][0..count]) |*to, from| {
                    to.* = @floatCast(from);
                },
                .mapped => |model| {
                    const matrix = model.matrices[position];
                    if (checkpoint.mapped_model.isCopied(&p)) {
                        @memcpy(numbers[0..count], matrix.vector()[at..][0..count]);
                    } else readRow(matrix, at / p.shape[1], at % p.shape[1], numbers[0..count]) catch unreachable; // Opened because its types can be read.
                },
            }
            crc.update(std.mem.sliceAsBytes(numbers[0..count]));
        }

        /// Numbers of one row of the parameter, all its matrices counted as one.
        fn readRow(matrix: tensor.StoredMatrix, row: usize, column: usize, out: []f32) tensor.blocks.Error!void {
            const height = if (matrix.turned) matrix.columns else matrix.rows;
            const one = matrix.of(row / height);
            if (!matrix.turned) return one.read(row % height, column, out);
            var block: [edge]f32 = undefined;
            const length = matrix.dtype.blockLen();
            for (out, column..) |*x, i| {
                try one.read(i, row % height / length * length, block[0..length]);
                x.* = block[row % height % length];
            }
        }
    };
}
