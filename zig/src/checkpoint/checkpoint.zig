//! Root of the checkpoint layer: models on disk, and runs that survive.
//!
//! A checkpoint is a Hugging Face folder with the state of the run beside the weights. Public functions take an `Io` and
//! work on the real disk; each has a twin ending in `On` that takes a `Storage`, which tests hand a disk that loses power.

pub const model_file = @import("model_file.zig");
pub const mapped_model = @import("mapped_model.zig");
pub const initialize = @import("initialize.zig");
pub const folder = @import("folder.zig");
pub const contents = @import("contents.zig");
pub const save_file = @import("save.zig");
pub const model_folder = @import("model_folder.zig");
pub const adapter = @import("adapter.zig");
pub const merge = @import("merge.zig");
pub const seal_file = @import("seal.zig");
pub const store = @import("store.zig");
pub const ablc = @import("ablc.zig");

pub const LoadedModel = model_file.LoadedModel;
pub const loadModel = model_file.loadModel;
pub const MappedModel = mapped_model.MappedModel;
pub const openMapped = mapped_model.open;
pub const openMappedOn = mapped_model.openOn;
pub const checkModelSums = model_file.checkModelSums;
pub const initRandom = initialize.initRandom;
pub const SaveOptions = save_file.SaveOptions;
pub const Moments = save_file.Moments;
pub const save = save_file.save;
pub const saveModel = model_folder.saveModel;
pub const LoadedAdapter = adapter.LoadedAdapter;
pub const loadAdapter = adapter.loadAdapter;
pub const initAdapter = adapter.initAdapter;
pub const saveAdapter = adapter.saveAdapter;
pub const unpack_file = @import("unpack.zig");
pub const unpack = unpack_file.unpack;
pub const unpackAdapter = @import("unpack_adapter.zig").unpackAdapter;
pub const MergedRows = @import("merged_rows.zig").MergedRows;
pub const mergeInto = merge.mergeInto;
pub const verify = seal_file.verify;
pub const seal = seal_file.seal;
pub const loadOptimizer = store.loadOptimizer;
pub const readState = store.readState;
pub const Found = store.Found;
pub const latest = store.latest;
pub const highestStep = store.highestStep;
pub const tidy = store.tidy;
pub const RunLock = store.RunLock;
pub const lockRun = store.lockRun;

test {
    _ = model_file;
    _ = mapped_model;
    _ = initialize;
    _ = unpack_file;
    _ = folder;
    _ = save_file;
    _ = model_folder;
    _ = adapter;
    _ = merge;
    _ = @import("merged_rows.zig");
    _ = seal_file;
    _ = store;
    _ = ablc;
    _ = @import("durability_test.zig");
}
