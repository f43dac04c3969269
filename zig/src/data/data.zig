//! Root of the data layer: from files of instructions and token ids to micro-batches.
//!
//! Does not know: text formats of chats, tokenizers, models.

pub const utf8 = @import("utf8.zig");
pub const json_line = @import("json_line.zig");
pub const jsonl = @import("jsonl.zig");
pub const instructions = @import("instructions.zig");
pub const manifest = @import("manifest.zig");
pub const loss_mask = @import("loss_mask.zig");
pub const targets = @import("targets.zig");
pub const order = @import("order.zig");
pub const tokenized = @import("tokenized.zig");
pub const batches = @import("batches.zig");
pub const pairs = @import("pairs.zig");
pub const shards = @import("shards.zig");
pub const packing = @import("packing.zig");
pub const loader = @import("loader.zig");
pub const writer = @import("writer.zig");

pub const TokenizedDataset = tokenized.TokenizedDataset;
pub const DataError = tokenized.DataError;
pub const OpenOptions = tokenized.OpenOptions;
pub const Manifest = manifest.Manifest;
pub const Batch = batches.Batch;
pub const BatchIterator = batches.BatchIterator;
pub const BatchOptions = batches.BatchOptions;
pub const Pair = pairs.Pair;
pub const Loader = loader.Loader;
pub const LoaderOptions = loader.LoaderOptions;
pub const Packing = packing.Strategy;
pub const MicroBatch = loader.MicroBatch;
pub const TokenizedWriter = writer.TokenizedWriter;
pub const WriterOptions = writer.WriterOptions;
pub const InstructionSample = instructions.InstructionSample;
pub const InstructionDataset = instructions.InstructionDataset;
pub const InstructionOptions = instructions.InstructionOptions;
pub const InstructionReport = instructions.InstructionReport;
pub const parseInstructionDataset = instructions.parseInstructionDataset;
pub const parseInstructionDatasetOptions = instructions.parseInstructionDatasetOptions;

test {
    _ = utf8;
    _ = json_line;
    _ = jsonl;
    _ = instructions;
    _ = manifest;
    _ = loss_mask;
    _ = targets;
    _ = order;
    _ = tokenized;
    _ = batches;
    _ = pairs;
    _ = shards;
    _ = packing;
    _ = loader;
    _ = writer;
}
