//! What a run needs, told before it starts: memory by part, micro-batches and tokens, bytes of a checkpoint.
//!
//! Memory of the passes is asked of the very constructors a run calls, over address space that costs no memory until it is
//! touched, and they touch none of their buffers. Flat arrays are as long as their layout. Files are written to nowhere and
//! counted. So this cannot drift from what a run does. (A debug build of the library fills what it allocates, and then it
//! does cost memory.)
//! Does not know: seconds, prices, the interpreter around the library.

const std = @import("std");
const base = @import("base");
const tensor = @import("tensor");
const arch = @import("arch");
const ops = @import("ops");
const model_layer = @import("model");
const data = @import("data");
const formats = @import("formats");
const checkpoint = @import("checkpoint");
const state_file = @import("state.zig");
const LlmTrainingConfig = @import("config.zig").LlmTrainingConfig;
const LoraConfig = @import("lora.zig").LoraConfig;
const DpoConfig = @import("preference_config.zig").DpoConfig;
const Metrics = @import("preference.zig").Metrics;
const TokenizedDataset = data.TokenizedDataset;

pub const Request = struct {
    model: arch.ModelConfig,
    /// The weights stay in their file and only an adapter is trained.
    mapped: bool = false,
    training: LlmTrainingConfig,
    lora: ?LoraConfig = null,
    dpo: ?DpoConfig = null,
    /// Without data a micro-batch is taken to be full.
    dataset: ?*const TokenizedDataset = null,
    eval_dataset: ?*const TokenizedDataset = null,
    /// What `adapter_config.json` will call the base.
    base_name: ?[]const u8 = null,
    /// Its tokenizer files go into each checkpoint.
    tokenizer_dir: ?[]const u8 = null,
    version: []const u8 = "0.1.0",
};

/// Bytes of memory, by what they are for. A mapped base is not among them: it has the size of its file.
pub const Memory = struct {
    /// The model's numbers; of a mapped one the vectors that are copied.
    weights: u64 = 0,
    adapter: u64 = 0,
    gradients: u64 = 0,
    moments: u64 = 0,
    /// What layers keep from the forward to the backward pass, and the buffers they share.
    activations: u64 = 0,
    /// A chunk of logits, in room that gradients inside a layer use at other times.
    logits: u64 = 0,
    /// Of each thread: packed operands, scores of attention, expanded blocks of a stored base.
    threads: u64 = 0,
    /// The batches and the order of rows.
    batches: u64 = 0,
    /// A reference's copy of numbers, its own buffers, and its answers.
    reference: u64 = 0,

    pub fn total(self: Memory) u64 {
        var sum: u64 = 0;
        inline for (@typeInfo(Memory).@"struct".field_names) |name| sum += @field(self, name);
        return sum;
    }
};

/// One epoch of a data set as the loader cuts it.
pub const Pass = struct {
    micro_batches: u64 = 0,
    /// Rows, pairs, packed rows, or the sequences of a stream.
    units: u64 = 0,
    dropped: u64 = 0,
    truncated: u64 = 0,
    targets: u64 = 0,
    /// Without padding, and with it: what the model is really given. Of a very large file scaled up from its beginning.
    tokens: u64 = 0,
    positions: u64 = 0,
};

pub const File = struct { name: []const u8, bytes: u64 };

pub const Plan = struct {
    arena: std.heap.ArenaAllocator,
    parameters: u64,
    trained: u64,
    sequences: u64,
    time: u64,
    threads: u64,
    memory: Memory,
    training: ?Pass,
    evaluation: ?Pass,
    updates_per_epoch: u64,
    updates: u64,
    /// Of the last checkpoint, without `trainer_state.json`.
    files: []const File,
    /// `trainer_state.json` grows with the log: its bytes without records, and what one record of each kind adds, all with
    /// numbers of the usual length.
    state_bytes: u64,
    step_record_bytes: u64,
    eval_record_bytes: u64,

    pub fn deinit(self: *Plan) void {
        self.arena.deinit();
        self.* = undefined;
    }

    pub fn writeJson(self: *const Plan, w: *std.Io.Writer) std.Io.Writer.Error!void {
        var json: std.json.Stringify = .{ .writer = w };
        try json.beginObject();
        inline for (@typeInfo(Plan).@"struct".field_names) |name| if (comptime !std.mem.eql(u8, name, "arena")) {
            try json.objectField(name);
            try json.write(@field(self, name));
        };
        try json.endObject();
    }
};

/// `diag` says what is wrong on any error but OutOfMemory.
pub fn plan(comptime T: type, gpa: std.mem.Allocator, io: std.Io, request: Request, diag: *base.Diagnostic) !Plan {
    const config = &request.training;
    var layout: arch.Layout = try .init(gpa, request.model);
    defer layout.deinit();

    var adapter: ?arch.AdapterLayout = null;
    defer if (adapter) |*a| a.deinit();

    var settings: arch.LoraSettings = undefined;
    if (request.lora) |lora| {
        settings = lora.settings;
        adapter = try settings.layoutFor(gpa, &layout, diag);
    }
    const trained = if (adapter) |*a| a.total else layout.total;
    const parameters = if (adapter) |*a| a.parameters else layout.parameters;

    var result: Plan = .{
        .arena = .init(gpa),
        .parameters = layout.total,
        .trained = trained,
        .sequences = config.batch_size * @as(u64, if (request.dpo == null) 1 else 2),
        .time = config.max_seq_len,
        .threads = 0,
        .memory = .{
            .gradients = trained * @sizeOf(T),
            .moments = if (config.optimizer == .sgd) 0 else 2 * trained * @sizeOf(T),
            .adapter = if (adapter == null) 0 else trained * @sizeOf(T),
            .weights = if (request.mapped) vectorBytes(&layout) else layout.total * @sizeOf(T),
        },
        .training = null,
        .evaluation = null,
        .updates_per_epoch = 0,
        .updates = config.max_steps,
        .files = &.{},
        .state_bytes = 0,
        .step_record_bytes = 0,
        .eval_record_bytes = 0,
    };
    errdefer result.arena.deinit();

    var kept: u64 = 0; // Rows or pairs in training and evaluation.
    if (request.dataset) |dataset| {
        var loader: data.Loader = try .init(gpa, dataset, loaderOptions(config), diag);
        defer loader.deinit();

        result.sequences = @max(loader.max_batch, 1);
        result.time = @max(loader.max_time, 1);
        result.training = passOf(&loader);
        result.memory.batches += loaderBytes(&loader);
        kept += loader.kept.len;
        const accumulate: u64 = config.grad_accum_steps;
        result.updates_per_epoch = (result.training.?.micro_batches + accumulate - 1) / accumulate;
        if (config.max_steps == 0) result.updates = result.updates_per_epoch * config.epochs;
    }
    if (request.eval_dataset) |dataset| {
        var options = loaderOptions(config);
        options.shuffle = false;
        options.seed = 0;
        if (!dataset.isRows()) options.packing = .none;
        var loader: data.Loader = try .init(gpa, dataset, options, diag);
        defer loader.deinit();

        result.sequences = @max(result.sequences, loader.max_batch);
        result.time = @max(result.time, loader.max_time);
        result.evaluation = passOf(&loader);
        result.memory.batches += loaderBytes(&loader);
        kept += loader.kept.len;
    }
    try weighPasses(T, gpa, io, &request, &layout, if (adapter) |*a| a else null, &result, diag);
    if (request.dpo != null) result.memory.reference += 2 * kept * @sizeOf(f64);
    result.files = try checkpointFiles(T, result.arena.allocator(), io, &request, parameters, if (adapter == null) null else settings);
    try weighState(gpa, &request, &result);
    return result;
}

fn loaderOptions(config: *const LlmTrainingConfig) data.LoaderOptions {
    return .{
        .batch_size = config.batch_size,
        .max_seq_len = config.max_seq_len,
        .shuffle = config.shuffle,
        .seed = config.seed,
        .packing = config.packing,
    };
}

/// Norms and biases are copied out of a mapped file.
fn vectorBytes(layout: *const arch.Layout) u64 {
    var bytes: u64 = 0;
    for (layout.parameters) |*p| if (checkpoint.mapped_model.isCopied(p)) {
        bytes += p.len * @sizeOf(f32);
    };
    return bytes;
}

/// More tokens than this are not walked through: what is left is taken to be like them.
const walk_tokens = 1 << 26;

fn passOf(loader: *data.Loader) Pass {
    var pass: Pass = .{
        .micro_batches = loader.batchesPerEpoch(),
        .units = if (loader.isRows()) loader.row_targets.len else loader.batchesPerEpoch() * loader.options.batch_size,
        .dropped = loader.dropped_rows,
        .truncated = loader.truncated_rows,
        .targets = loader.targetsPerEpoch(),
    };
    var walked: u64 = 0;
    while (loader.next()) |micro| {
        pass.tokens += micro.token_count;
        pass.positions += @as(u64, micro.batch) * micro.time;
        walked += 1;
        if (pass.tokens >= walk_tokens) break;
    }
    if (walked > 0 and walked < pass.micro_batches) inline for (.{ "tokens", "positions" }) |name| {
        @field(pass, name) = @intCast(@as(u128, @field(pass, name)) * pass.micro_batches / walked);
    };
    return pass;
}

fn loaderBytes(loader: *const data.Loader) u64 {
    var bytes: u64 = 0;
    inline for (.{ "input_ids", "targets", "answers", "positions", "first", "order", "order_ahead", "row_targets", "kept", "blocks" }) |name|
        bytes += std.mem.sliceAsBytes(@field(loader, name)).len;
    return bytes;
}

fn weighPasses(
    comptime T: type,
    gpa: std.mem.Allocator,
    io: std.Io,
    request: *const Request,
    layout: *const arch.Layout,
    adapter: ?*const arch.AdapterLayout,
    result: *Plan,
    diag: *base.Diagnostic,
) !void {
    const pool = try base.Pool.init(gpa, request.training.threads);
    defer pool.deinit();

    const space: std.mem.Allocator = .{ .ptr = undefined, .vtable = &address_space };
    var exec: ops.Exec = try .init(space, pool);
    defer exec.deinit();

    result.threads = pool.n;
    const low = T == f32 and request.training.mixed_precision;
    const capacity: model_layer.Capacity = .{
        .batch = result.sequences,
        .time = result.time,
        .recompute = request.training.recompute_activations,
        .adapter = adapter,
        .dropout = if (request.lora) |lora| request.dpo == null and lora.settings.lora_dropout > 0 else false,
        .frozen = request.mapped,
        .low_gates = low,
    };
    var transformer: model_layer.Transformer(T) = try .init(space, request.model, layout, &exec, capacity);
    defer transformer.deinit();

    if (request.dpo) |dpo| {
        const tokens = result.sequences * result.time;
        result.memory.reference += tokens * (2 * @sizeOf(f64) + @sizeOf(bool) + @sizeOf(T));
        if (dpo.ref_model) |path| {
            try weighReference(T, gpa, io, path, request, capacity, &exec, space, result, diag);
        } else if (!dpo.precompute_ref_log_probs) {
            // A first adapter can be switched off; another needs a copy, as does a model.
            if (request.lora) |lora| {
                if (lora.adapter != null) result.memory.reference += result.trained * @sizeOf(T);
            } else result.memory.reference += layout.total * @sizeOf(T);
        }
    }
    result.memory.logits = transformer.activations.idle.len;
    result.memory.activations += try transformer.activations.totalBytes(gpa) - transformer.activations.idle.len;
    if (transformer.projection.low) |l| {
        for (l.products) |product| result.memory.activations += std.mem.sliceAsBytes(product).len;
        result.memory.activations += std.mem.sliceAsBytes(l.gradient).len + std.mem.sliceAsBytes(l.dropped).len;
        result.memory.activations += std.mem.sliceAsBytes(l.turned).len + std.mem.sliceAsBytes(l.dturned).len;
    }
    for (exec.workers) |worker| result.memory.threads += worker.packing.len + worker.scratch.len;
    if (!exec.is_lent) result.memory.logits += exec.shared.len;
}

/// Another model to compare with: its numbers in memory or in its file, and a transformer of its own if it has another shape.
fn weighReference(
    comptime T: type,
    gpa: std.mem.Allocator,
    io: std.Io,
    path: []const u8,
    request: *const Request,
    capacity: model_layer.Capacity,
    exec: *ops.Exec,
    space: std.mem.Allocator,
    result: *Plan,
    diag: *base.Diagnostic,
) !void {
    var other = try checkpoint.openMapped(gpa, io, path, diag);
    defer other.deinit();

    result.memory.reference += if (T == f32) vectorBytes(&other.layout) else other.layout.total * @sizeOf(T);
    const theirs = other.config;
    if (theirs.hidden_size == request.model.hidden_size and other.layout.total == result.parameters) return;
    var own: model_layer.Transformer(T) = try .init(space, theirs, &other.layout, exec, .{
        .batch = capacity.batch,
        .time = capacity.time,
        .recompute = true,
        .frozen = T == f32,
        .low_gates = capacity.low_gates,
        .lends = false,
    });
    defer own.deinit();

    result.memory.reference += try own.activations.totalBytes(gpa);
}

/// Files of a checkpoint in the order they are written, `trainer_state.json` left out. Names and list are `a`'s.
fn checkpointFiles(
    comptime T: type,
    a: std.mem.Allocator,
    io: std.Io,
    request: *const Request,
    parameters: []const arch.Parameter,
    settings: ?arch.LoraSettings,
) ![]const File {
    const names = checkpoint.folder;
    var files: std.ArrayList(File) = .empty;
    var nowhere: std.Io.Writer.Discarding = .init(&.{});
    const w = &nowhere.writer;

    formats.hf_config.write(w, request.model, .{ .dtype = if (T == f32) "float32" else "float64" }) catch return error.OutOfMemory;
    try files.append(a, .{ .name = names.config_name, .bytes = nowhere.fullCount() });
    try files.append(a, .{
        .name = if (settings == null) names.model_name else names.adapter_name,
        .bytes = try tensorFileBytes(T, a, parameters, &.{""}),
    });
    if (settings) |s| {
        nowhere = .init(&.{});
        formats.adapter_config.write(w, s, request.base_name) catch return error.OutOfMemory;
        try files.append(a, .{ .name = names.adapter_config_name, .bytes = nowhere.fullCount() });
    }
    if (request.training.optimizer != .sgd)
        try files.append(a, .{ .name = names.optimizer_name, .bytes = try tensorFileBytes(T, a, parameters, &.{ "exp_avg.", "exp_avg_sq." }) });
    var disk: base.storage.Disk = .init(io);
    const storage = disk.storage();
    if (request.tokenizer_dir) |dir| for (names.tokenizer_names) |name| {
        const path = try base.storage.join(a, dir, name);
        if (try storage.kind(path) != .file) continue;
        var mapping = try storage.map(path);
        defer mapping.unmap();

        try files.append(a, .{ .name = name, .bytes = mapping.bytes.len });
    };
    var sums: std.ArrayList(names.FileSum) = .empty;
    for (files.items) |file| try sums.append(a, .{ .name = file.name, .size = file.bytes, .crc32c = 0 });
    // Four digits stand for its size; it is not known to the byte anyway.
    try sums.append(a, .{ .name = names.state_name, .size = 9999, .crc32c = 0 });
    nowhere = .init(&.{});
    names.writeSums(w, sums.items) catch return error.OutOfMemory;
    try files.append(a, .{ .name = names.checksums_name, .bytes = nowhere.fullCount() });
    return files.toOwnedSlice(a);
}

fn tensorFileBytes(comptime T: type, a: std.mem.Allocator, parameters: []const arch.Parameter, prefixes: []const []const u8) !u64 {
    const dtype: tensor.DType = if (T == f32) .f32 else .f64;
    var entries: std.ArrayList(formats.safetensors.Entry) = .empty;
    var bytes: u64 = 0;
    for (prefixes) |prefix| for (parameters) |*p| {
        try entries.append(a, .{ .name = try std.mem.concat(a, u8, &.{ prefix, p.name }), .dtype = dtype, .shape = p.dims() });
        bytes += p.len * @sizeOf(T);
    };
    var nowhere: std.Io.Writer.Discarding = .init(&.{});
    _ = formats.safetensors.Writer.begin(a, &nowhere.writer, entries.items, &checkpoint.contents.metadata) catch |err| return switch (err) {
        error.WriteFailed => error.OutOfMemory,
        else => |e| e,
    };
    return nowhere.fullCount() + bytes;
}

/// Numbers as long as those of a run.
fn weighState(gpa: std.mem.Allocator, request: *const Request, result: *Plan) !void {
    const number = 1.2345678901234567;
    const small = 1.2345678901234567e-5;
    const steps: u32 = @intCast(@min(@max(result.updates, 1), std.math.maxInt(u32)));
    const record: state_file.LogRecord = .{
        .step = steps,
        .epoch = number,
        .loss = number,
        .grad_norm = number,
        .learning_rate = small,
        .perplexity = if (request.dpo == null) number else null,
        .accuracy = number,
        .tokens_per_second = 1234.5678901234567,
    };
    var step_record = record;
    var eval_record: state_file.LogRecord = .{ .step = steps, .epoch = number, .eval_loss = number, .eval_accuracy = number };
    if (request.dpo == null) eval_record.eval_perplexity = number else {
        var metrics: Metrics = .{};
        inline for (@typeInfo(Metrics).@"struct".field_names) |name| @field(metrics, name) = number;
        step_record.addPreference("", metrics);
        eval_record.addPreference("eval_", metrics);
    }
    const state: state_file.State = .{ .global_step = steps, .max_steps = steps, .tokens_processed = 1234567, .last_loss = number, .last_accuracy = number, .time_ns = 12345678901 };
    const config = &request.training;
    const identity: state_file.Identity = .{
        .batch_size = config.batch_size,
        .grad_accum_steps = config.grad_accum_steps,
        .max_seq_len = config.max_seq_len,
        .shuffle = config.shuffle,
        .seed = config.seed,
        .data_tokens = if (request.dataset) |d| d.count() else 0,
        .data_rows = if (request.dataset) |d| d.rowCount() orelse 0 else 0,
        .data_crc32c = 1234567890,
        .objective = if (request.dpo == null) .sft else .dpo,
        .method = if (request.lora == null) .full else .lora,
        .lora = if (request.lora) |lora| .{ .settings = lora.settings } else null,
        .base_crc32c = if (request.lora == null) null else 1234567890,
        .dpo = if (request.dpo) |dpo| .of(dpo) else null,
        .packing = config.packing,
    };
    const header: state_file.Header = .{
        .epochs = config.epochs,
        .log_interval = config.log_interval,
        .eval_interval = config.eval_interval,
        .checkpoint_interval = config.checkpoint_interval,
        .epoch_fraction = 1,
        .version = request.version,
    };
    var sizes: [3]u64 = undefined;
    for (&sizes, [_][]const state_file.LogRecord{ &.{step_record}, &.{ step_record, step_record }, &.{ step_record, eval_record } }) |*size, history| {
        const text = try state_file.write(gpa, state, identity, header, history, null);
        defer gpa.free(text);

        size.* = text.len;
    }
    result.step_record_bytes = sizes[1] - sizes[0];
    result.eval_record_bytes = sizes[2] - sizes[0];
    result.state_bytes = sizes[0] -| result.step_record_bytes;
}

// ---- address space ----

/// Gives out pages that nothing lies behind until they are touched.
const address_space: std.mem.Allocator.VTable = .{
    .alloc = &reserve,
    .resize = &std.mem.Allocator.noResize,
    .remap = &std.mem.Allocator.noRemap,
    .free = &giveBack,
};

fn reserve(_: *anyopaque, len: usize, alignment: std.mem.Alignment, _: usize) ?[*]u8 {
    if (alignment.toByteUnits() > std.heap.pageSize()) return null;
    const size = pages(len) orelse return null;
    const bytes = std.posix.mmap(null, size, .{ .READ = true, .WRITE = true }, .{ .TYPE = .PRIVATE, .ANONYMOUS = true, .NORESERVE = true }, -1, 0) catch return null;
    return bytes.ptr;
}

fn giveBack(_: *anyopaque, memory: []u8, _: std.mem.Alignment, _: usize) void {
    const start: [*]align(std.heap.page_size_min) u8 = @alignCast(memory.ptr);
    std.posix.munmap(start[0..pages(memory.len).?]);
}

fn pages(len: usize) ?usize {
    const size = std.heap.pageSize();
    return std.math.mul(usize, std.math.divCeil(usize, @max(len, 1), size) catch return null, size) catch null;
}

const testing = std.testing;
const rig = @import("test_rig.zig");
const Trainer = @import("trainer.zig").Trainer;

fn expectSame(config: LlmTrainingConfig, lora: ?LoraConfig, dpo: ?DpoConfig, dataset: *const TokenizedDataset) !void {
    var diag: base.Diagnostic = .{};
    var told = try plan(f32, testing.allocator, testing.io, .{
        .model = rig.model_config,
        .training = config,
        .lora = lora,
        .dpo = dpo,
        .dataset = dataset,
    }, &diag);
    defer told.deinit();

    var model = try checkpoint.initRandom(f32, testing.allocator, rig.model_config, 3);
    defer model.deinit(testing.allocator);

    const trainer: *Trainer(f32) = try .init(testing.allocator, testing.io, &model, dataset, null, config, .{ .lora = lora, .dpo = dpo }, &diag);
    defer trainer.deinit();

    const t = &trainer.trained;
    try testing.expectEqual(trainer.state.max_steps, told.updates);
    try testing.expectEqual(t.values.len, told.trained);
    try testing.expectEqual(t.gradients.len * 4, told.memory.gradients);
    try testing.expectEqual((t.first_moment.len + t.second_moment.len) * 4, told.memory.moments);
    const activations = try trainer.transformer.activations.totalBytes(testing.allocator);
    try testing.expectEqual(trainer.transformer.activations.idle.len, told.memory.logits);
    var low: usize = 0;
    if (trainer.transformer.projection.low) |l| {
        for (l.products) |product| low += product.len * 4;
        low += (l.gradient.len + l.dropped.len) * 4;
    }
    try testing.expectEqual(activations + low, told.memory.activations + told.memory.logits);
    var threads: usize = 0;
    for (trainer.exec.workers) |w| threads += w.packing.len + w.scratch.len;
    try testing.expectEqual(threads, told.memory.threads);
    try testing.expectEqual(trainer.loader.batchesPerEpoch(), told.training.?.micro_batches);
}

test "a plan has the buffers that the trainer then has" {
    const rows: rig.Rows = .init();
    const dataset = rows.dataset();
    var config: LlmTrainingConfig = .{ .batch_size = 3, .grad_accum_steps = 2, .max_seq_len = 8, .epochs = 2, .threads = 2 };
    for ([_]bool{ false, true }) |recompute| for ([_]bool{ false, true }) |low| {
        config.recompute_activations = recompute;
        config.mixed_precision = low;
        try expectSame(config, null, null, &dataset);
        try expectSame(config, .{ .settings = .{ .lora_dropout = 0.1 } }, null, &dataset);
    };
    config.optimizer = .sgd;
    try expectSame(config, null, null, &dataset);
    const pairs: rig.Pairs = .init();
    const of_pairs = pairs.dataset();
    config.max_seq_len = 16;
    try expectSame(config, .{ .settings = .{} }, .{}, &of_pairs);
}

test "without data a micro-batch is full" {
    var diag: base.Diagnostic = .{};
    const config: LlmTrainingConfig = .{ .batch_size = 2, .max_seq_len = 16, .threads = 1 };
    var told = try plan(f32, testing.allocator, testing.io, .{ .model = rig.model_config, .training = config }, &diag);
    defer told.deinit();

    try testing.expectEqual(2, told.sequences);
    try testing.expectEqual(16, told.time);
    try testing.expectEqual(null, told.training);
    try testing.expect(told.memory.activations > 2 * 16 * 16 * 4 * 2);
    try testing.expectEqual(told.memory.weights, told.memory.gradients);
}

test "a copy of the weights is planned where pairs are compared with the model as it began" {
    var diag: base.Diagnostic = .{};
    const config: LlmTrainingConfig = .{ .batch_size = 2, .max_seq_len = 16, .threads = 1 };
    var told = try plan(f32, testing.allocator, testing.io, .{ .model = rig.model_config, .training = config, .dpo = .{} }, &diag);
    defer told.deinit();
    var early = try plan(f32, testing.allocator, testing.io, .{ .model = rig.model_config, .training = config, .dpo = .{ .precompute_ref_log_probs = true } }, &diag);
    defer early.deinit();

    try testing.expectEqual(told.memory.weights, told.memory.reference - early.memory.reference);
    try testing.expectEqual(4, told.sequences);
}
