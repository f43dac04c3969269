//! Tokenized-data group: data sets, the stream's batches, and the trainer's micro-batches.

const std = @import("std");
const abi = @import("abi");
const c = @import("abi_h");
const failure = @import("failure.zig");
const handles = @import("handles.zig");
const out = @import("out.zig");

const Status = failure.Status;

pub const Dataset = handles.Object(.dataset, struct {
    dataset: abi.data.TokenizedDataset,

    pub fn deinit(self: *@This()) void {
        self.dataset.deinit();
    }
});

const Batches = handles.Object(.batches, struct {
    iterator: abi.data.BatchIterator,
    /// What the batches point into.
    dataset: *handles.Header,

    pub fn deinit(self: *@This()) void {
        self.iterator.deinit();
        self.dataset.release();
    }
});

const Loader = handles.Object(.loader, struct {
    loader: abi.data.Loader,
    dataset: *handles.Header,

    pub fn deinit(self: *@This()) void {
        self.loader.deinit();
        self.dataset.release();
    }
});

// ---- data sets ----

pub fn abt_dataset_open(path: ?[*:0]const u8, use_manifest: u32, dataset: ?*u64) callconv(.c) Status {
    const result = dataset orelse return failure.nullArgument("dataset");
    result.* = 0;
    var status: Status = c.ABT_STATUS_OK;
    const name = out.string(path, "path", &status) orelse return status;
    var diag: failure.Diagnostic = .{};
    var opened = abi.data.TokenizedDataset.open(out.gpa, out.io(), name, .{ .use_manifest = use_manifest != 0 }, &diag) catch |err|
        return failure.from(err, c.ABT_STATUS_DATA, &diag);
    result.* = Dataset.make(.{ .dataset = opened }) catch |err| {
        opened.deinit();
        return failure.from(err, c.ABT_STATUS_DATA, null);
    };
    return c.ABT_STATUS_OK;
}

pub fn abt_dataset_free(dataset: u64) callconv(.c) Status {
    return handles.free(Dataset, dataset);
}

pub fn abt_dataset_size(dataset: u64, tokens: ?*u64, rows: ?*u64, files: ?*u64) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Dataset, dataset, .shared, &status) orelse return status;
    defer held.release();

    const data = &held.object.value.dataset;
    if (tokens) |n| n.* = data.count();
    if (rows) |n| n.* = data.rowCount() orelse 0;
    if (files) |n| n.* = @max(1, data.shards.len);
    return c.ABT_STATUS_OK;
}

pub fn abt_dataset_read(dataset: u64, start: u64, count: u64, ids: ?[*]u32, in_loss: ?[*]u8) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Dataset, dataset, .shared, &status) orelse return status;
    defer held.release();

    const data = &held.object.value.dataset;
    if (start > data.count() or count > data.count() - start) return failure.say(
        c.ABT_STATUS_INVALID_ARGUMENT,
        "{d} tokens from {d} on were asked; {s} has {d}",
        .{ count, start, data.path, data.count() },
    );
    const from: usize = @intCast(start);
    const len: usize = @intCast(count);
    if (ids) |out_ids| data.readTokens(out_ids[0..len], from);
    if (in_loss) |flags| data.readFlags(flags[0..len], from);
    return c.ABT_STATUS_OK;
}

pub fn abt_dataset_read_row_starts(dataset: u64, first: u64, count: u64, starts: ?[*]u64) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Dataset, dataset, .shared, &status) orelse return status;
    defer held.release();

    if (count == 0) return c.ABT_STATUS_OK;
    const values = starts orelse return failure.nullArgument("starts");
    const data = &held.object.value.dataset;
    const rows = data.rowCount() orelse
        return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "{s} is a stream: it has no rows", .{data.path});
    if (first > rows or count > rows + 1 - first) return failure.say(
        c.ABT_STATUS_INVALID_ARGUMENT,
        "{d} row starts from {d} on were asked; {s} has {d} rows",
        .{ count, first, data.path, rows },
    );
    for (values[0..@intCast(count)], @as(usize, @intCast(first))..) |*value, row| value.* = data.rowStart(row);
    return c.ABT_STATUS_OK;
}

pub fn abt_dataset_join(path: ?[*:0]const u8, names: ?[*]const ?[*:0]const u8, count: usize) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const name = out.string(path, "path", &status) orelse return status;
    const given: []const ?[*:0]const u8 = if (count == 0) &.{} else (names orelse return failure.nullArgument("names"))[0..count];
    const files = out.gpa.alloc([]const u8, count) catch |err| return failure.from(err, c.ABT_STATUS_DATA, null);
    defer out.gpa.free(files);

    for (files, given) |*file, text| file.* = out.string(text, "names", &status) orelse return status;
    var disk: abi.base.storage.Disk = .init(out.io());
    var diag: failure.Diagnostic = .{};
    abi.data.shards.join(out.gpa, disk.storage(), name, files, &diag) catch |err| return failure.from(err, c.ABT_STATUS_DATA, &diag);
    return c.ABT_STATUS_OK;
}

pub fn abt_dataset_join_later(path: ?[*:0]const u8) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const name = out.string(path, "path", &status) orelse return status;
    var disk: abi.base.storage.Disk = .init(out.io());
    var diag: failure.Diagnostic = .{};
    abi.data.shards.beginSet(out.gpa, disk.storage(), name, &diag) catch |err| return failure.from(err, c.ABT_STATUS_DATA, &diag);
    return c.ABT_STATUS_OK;
}

pub fn abt_dataset_tokens(dataset: u64, tokens: ?*?[*]const u32, count: ?*u64) callconv(.c) Status {
    return giveSlice(u32, dataset, tokens, count, struct {
        fn get(d: *const abi.data.TokenizedDataset) ?[]const u32 {
            return d.tokens;
        }
    }.get);
}

pub fn abt_dataset_mask(dataset: u64, bytes: ?*?[*]const u8, byte_count: ?*u64) callconv(.c) Status {
    return giveSlice(u8, dataset, bytes, byte_count, struct {
        fn get(d: *const abi.data.TokenizedDataset) ?[]const u8 {
            return d.mask;
        }
    }.get);
}

pub fn abt_dataset_row_starts(dataset: u64, starts: ?*?[*]const u64, count: ?*u64) callconv(.c) Status {
    return giveSlice(u64, dataset, starts, count, struct {
        fn get(d: *const abi.data.TokenizedDataset) ?[]const u64 {
            return d.row_starts;
        }
    }.get);
}

fn giveSlice(
    comptime T: type,
    dataset: u64,
    pointer: ?*?[*]const T,
    count: ?*u64,
    comptime get: fn (*const abi.data.TokenizedDataset) ?[]const T,
) Status {
    const first = pointer orelse return failure.nullArgument("pointer");
    const len = count orelse return failure.nullArgument("count");
    first.* = null;
    len.* = 0;
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Dataset, dataset, .shared, &status) orelse return status;
    defer held.release();

    const data = &held.object.value.dataset;
    if (data.shards.len > 0) return failure.say(
        c.ABT_STATUS_DATA,
        "{s} is a set of {d} files, not one range of memory: read its tokens by their places",
        .{ data.path, data.shards.len },
    );
    if (get(data)) |slice| {
        first.* = slice.ptr;
        len.* = slice.len;
    }
    return c.ABT_STATUS_OK;
}

pub fn abt_dataset_manifest_json(dataset: u64, buffer: ?[*]u8, capacity: usize, needed: ?*usize) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Dataset, dataset, .shared, &status) orelse return status;
    defer held.release();

    const manifest = held.object.value.dataset.manifest orelse return out.fill("{}", buffer, capacity, needed);
    var text: std.Io.Writer.Allocating = .init(out.gpa);
    defer text.deinit();

    abi.data.manifest.write(&manifest, &text.writer) catch return failure.from(error.OutOfMemory, c.ABT_STATUS_DATA, null);
    return out.fill(text.written(), buffer, capacity, needed);
}

pub fn abt_dataset_check_vocabulary(dataset: u64, vocab_size: u32) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Dataset, dataset, .shared, &status) orelse return status;
    defer held.release();

    var diag: failure.Diagnostic = .{};
    held.object.value.dataset.checkVocabulary(vocab_size, &diag) catch |err| return failure.from(err, c.ABT_STATUS_DATA, &diag);
    return c.ABT_STATUS_OK;
}

pub fn abt_dataset_verify(dataset: u64, compared: ?*u64) callconv(.c) Status {
    const result = compared orelse return failure.nullArgument("compared");
    result.* = 0;
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Dataset, dataset, .shared, &status) orelse return status;
    defer held.release();

    var diag: failure.Diagnostic = .{};
    result.* = held.object.value.dataset.verify(&diag) catch |err| return failure.from(err, c.ABT_STATUS_DATA, &diag);
    return c.ABT_STATUS_OK;
}

pub fn abt_epoch_order(count: u64, shuffle: u32, seed: u64, epoch: u64, order: ?[*]u32) callconv(.c) Status {
    if (count == 0) return c.ABT_STATUS_OK;
    const values = order orelse return failure.nullArgument("order");
    if (count > std.math.maxInt(u32))
        return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "count is {d}; at most {d} rows can be ordered", .{ count, std.math.maxInt(u32) });
    abi.data.order.fillEpochOrder(values[0..@intCast(count)], shuffle != 0, seed, epoch);
    return c.ABT_STATUS_OK;
}

// ---- the stream's batches ----

pub fn abt_batches_open(dataset: u64, options: ?*const c.abt_batch_options, batches: ?*u64) callconv(.c) Status {
    const result = batches orelse return failure.nullArgument("batches");
    result.* = 0;
    const given = options orelse return failure.nullArgument("options");
    if (out.wrongSize(c.abt_batch_options, given.struct_size)) |status| return status;
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Dataset, dataset, .shared, &status) orelse return status;
    defer held.release();

    var iterator = held.object.value.dataset.batchesSeeded(out.gpa, .{
        .batch_size = @intCast(given.batch_size),
        .seq_len = @intCast(given.seq_len),
        .shuffle = given.shuffle != 0,
        .seed = given.seed,
    }) catch |err| switch (err) {
        error.OutOfMemory => return failure.from(err, c.ABT_STATUS_DATA, null),
        error.InvalidBatchShape => return failure.say(
            c.ABT_STATUS_INVALID_ARGUMENT,
            "batch_size is {d} and seq_len is {d}; both must be at least 1, and their product a size in memory",
            .{ given.batch_size, given.seq_len },
        ),
        error.TooManyBatches => return failure.say(
            c.ABT_STATUS_INVALID_ARGUMENT,
            "batch_size {d} and seq_len {d} give more than {d} batches; use larger ones",
            .{ given.batch_size, given.seq_len, std.math.maxInt(u32) },
        ),
    };
    held.object.header.retain();
    result.* = Batches.make(.{ .iterator = iterator, .dataset = &held.object.header }) catch |err| {
        iterator.deinit();
        held.object.header.release();
        return failure.from(err, c.ABT_STATUS_DATA, null);
    };
    return c.ABT_STATUS_OK;
}

pub fn abt_batches_free(batches: u64) callconv(.c) Status {
    return handles.free(Batches, batches);
}

pub fn abt_batches_count(batches: u64, count: ?*u64) callconv(.c) Status {
    const result = count orelse return failure.nullArgument("count");
    result.* = 0;
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Batches, batches, .shared, &status) orelse return status;
    defer held.release();

    result.* = held.object.value.iterator.numBatches();
    return c.ABT_STATUS_OK;
}

pub fn abt_batches_next(batches: u64, batch: ?*c.abt_batch) callconv(.c) Status {
    const result = batch orelse return failure.nullArgument("batch");
    if (clearBatch(result)) |status| return status;
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Batches, batches, .exclusive, &status) orelse return status;
    defer held.release();

    const next = held.object.value.iterator.next() orelse return c.ABT_STATUS_OK;
    result.input_ids = next.input_ids.ptr;
    result.labels = next.labels.ptr;
    result.rows = next.batch_size;
    result.columns = next.seq_len;
    result.index = next.index;
    result.target_count = next.labels.len;
    result.token_count = next.input_ids.len;
    return c.ABT_STATUS_OK;
}

pub fn abt_batches_reset(batches: u64) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Batches, batches, .exclusive, &status) orelse return status;
    defer held.release();

    held.object.value.iterator.reset();
    return c.ABT_STATUS_OK;
}

fn clearBatch(batch: *c.abt_batch) ?Status {
    if (out.wrongSize(c.abt_batch, batch.struct_size)) |status| return status;
    batch.* = std.mem.zeroes(c.abt_batch);
    batch.struct_size = @sizeOf(c.abt_batch);
    return null;
}

// ---- the trainer's micro-batches ----

pub fn abt_loader_open(dataset: u64, options: ?*const c.abt_batch_options, loader: ?*u64) callconv(.c) Status {
    const result = loader orelse return failure.nullArgument("loader");
    result.* = 0;
    const given = options orelse return failure.nullArgument("options");
    if (out.wrongSize(c.abt_batch_options, given.struct_size)) |status| return status;
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Dataset, dataset, .shared, &status) orelse return status;
    defer held.release();

    var diag: failure.Diagnostic = .{};
    var opened = abi.data.Loader.init(out.gpa, &held.object.value.dataset, .{
        .batch_size = @intCast(given.batch_size),
        .max_seq_len = @intCast(given.seq_len),
        .shuffle = given.shuffle != 0,
        .seed = given.seed,
        .packing = switch (given.packing) {
            c.ABT_PACKING_NONE => .none,
            c.ABT_PACKING_BFD => .bfd,
            c.ABT_PACKING_BFD_SPLIT => .bfd_split,
            c.ABT_PACKING_WRAPPED => .wrapped,
            else => |other| return failure.say(c.ABT_STATUS_INVALID_ARGUMENT, "packing is {d}; it must be an ABT_PACKING_ value", .{other}),
        },
    }, &diag) catch |err| return failure.from(err, c.ABT_STATUS_INVALID_ARGUMENT, &diag);
    held.object.header.retain();
    result.* = Loader.make(.{ .loader = opened, .dataset = &held.object.header }) catch |err| {
        opened.deinit();
        held.object.header.release();
        return failure.from(err, c.ABT_STATUS_DATA, null);
    };
    return c.ABT_STATUS_OK;
}

pub fn abt_loader_free(loader: u64) callconv(.c) Status {
    return handles.free(Loader, loader);
}

pub fn abt_loader_count(loader: u64, micro_batches: ?*u64, dropped_rows: ?*u64, truncated_rows: ?*u64) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Loader, loader, .shared, &status) orelse return status;
    defer held.release();

    const it = &held.object.value.loader;
    if (micro_batches) |p| p.* = it.batchesPerEpoch();
    if (dropped_rows) |p| p.* = it.dropped_rows;
    if (truncated_rows) |p| p.* = it.truncated_rows;
    return c.ABT_STATUS_OK;
}

pub fn abt_loader_next(loader: u64, batch: ?*c.abt_batch) callconv(.c) Status {
    const result = batch orelse return failure.nullArgument("batch");
    if (clearBatch(result)) |status| return status;
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Loader, loader, .exclusive, &status) orelse return status;
    defer held.release();

    const next = held.object.value.loader.next() orelse return c.ABT_STATUS_OK;
    result.input_ids = next.input_ids.ptr;
    result.targets = next.targets.ptr;
    result.positions = if (next.positions) |positions| positions.ptr else null;
    result.first = if (next.first) |first| first.ptr else null;
    result.rows = next.batch;
    result.columns = next.time;
    result.index = next.index;
    result.target_count = next.target_count;
    result.token_count = next.token_count;
    return c.ABT_STATUS_OK;
}

pub fn abt_loader_seek(loader: u64, epoch: u64, micro_batch: u64) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Loader, loader, .exclusive, &status) orelse return status;
    defer held.release();

    const it = &held.object.value.loader;
    it.seek(epoch, micro_batch) catch return failure.say(
        c.ABT_STATUS_INVALID_ARGUMENT,
        "micro_batch is {d}; an epoch has {d}",
        .{ micro_batch, it.batchesPerEpoch() },
    );
    return c.ABT_STATUS_OK;
}

pub fn abt_loader_order(loader: u64, epoch: u64, order: ?[*]u32, capacity: usize, needed: ?*usize) callconv(.c) Status {
    var status: Status = c.ABT_STATUS_OK;
    const held = handles.acquire(Loader, loader, .shared, &status) orelse return status;
    defer held.release();

    const values = held.object.value.loader.epochOrder(out.gpa, epoch) catch |err|
        return failure.from(err, c.ABT_STATUS_DATA, null);
    defer out.gpa.free(values);

    return out.fillItems(u32, values, order, capacity, needed);
}
