//! What the tests of whole runs share: a tiny model, rows and pairs that it can learn, and one run of them.
//!
//! Only tests import this file.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const data = @import("data");
const checkpoint = @import("checkpoint");
const Trainer = @import("trainer.zig").Trainer;
const Options = @import("trainer.zig").Options;
const LlmTrainingConfig = @import("config.zig").LlmTrainingConfig;
const report = @import("report.zig");

const testing = std.testing;
const gpa = testing.allocator;

pub const model_config: arch.ModelConfig = .{
    .vocab_size = 23,
    .hidden_size = 16,
    .intermediate_size = 24,
    .num_hidden_layers = 2,
    .num_attention_heads = 4,
    .num_key_value_heads = 2,
    .head_dim = 4,
    .max_position_embeddings = 64,
};

/// Rows of a pattern a tiny model can learn: each token is the one before plus 3.
pub const Rows = struct {
    tokens: [row_count * row_len]u32,
    starts: [row_count + 1]u64,

    pub const row_count = 13;
    pub const row_len = 9;

    pub fn init() Rows {
        var self: Rows = undefined;
        for (0..row_count) |r| {
            self.starts[r] = r * row_len;
            for (0..row_len) |c| self.tokens[r * row_len + c] = @intCast((r + 3 * c) % 23);
        }
        self.starts[row_count] = row_count * row_len;
        return self;
    }

    pub fn dataset(self: *const Rows) data.TokenizedDataset {
        return .{ .arena = .init(gpa), .disk = null, .path = "test.bin", .tokens = &self.tokens, .row_starts = &self.starts };
    }
};

/// Prompts of three tokens; the better answer goes on by threes, the worse one by fives and is longer.
pub const Pairs = struct {
    tokens: [count * (better + worse)]u32,
    starts: [2 * count + 1]u64,
    mask: [11]u8,

    pub const count = 5;
    pub const better = 7;
    pub const worse = 9;

    pub fn init() Pairs {
        var self: Pairs = undefined;
        @memset(&self.mask, 0);
        var at: usize = 0;
        for (0..2 * count) |row| {
            self.starts[row] = at;
            const len: usize = if (row % 2 == 0) better else worse;
            for (0..len) |c| {
                const stride: usize = if (c < 3 or row % 2 == 0) 3 else 5;
                self.tokens[at + c] = @intCast((row / 2 + stride * c) % 23);
                if (c >= 3) self.mask[(at + c) / 8] |= @as(u8, 1) << @intCast((at + c) % 8);
            }
            at += len;
        }
        self.starts[2 * count] = at;
        return self;
    }

    pub fn dataset(self: *const Pairs) data.TokenizedDataset {
        return .{
            .arena = .init(gpa),
            .disk = null,
            .path = "pairs.bin",
            .tokens = &self.tokens,
            .mask = &self.mask,
            .row_starts = &self.starts,
            .manifest = .{ .count = self.tokens.len, .kind = .preference },
        };
    }
};

/// What a run left behind.
pub const Run = struct {
    losses: std.ArrayList(f64) = .empty,
    steps: std.ArrayList(report.TrainingStats) = .empty,
    evaluations: std.ArrayList(report.EvalResult) = .empty,
    /// Updates at which they were made.
    evaluated: std.ArrayList(u64) = .empty,
    /// All weights, or those of the adapter.
    values: []f32 = &.{},
    final: ?report.TrainingReport = null,
    last_path: []u8 = &.{},
    /// Of a run on pairs.
    reference: []u8 = &.{},

    pub fn deinit(self: *Run) void {
        self.losses.deinit(gpa);
        self.steps.deinit(gpa);
        self.evaluations.deinit(gpa);
        self.evaluated.deinit(gpa);
        gpa.free(self.values);
        gpa.free(self.last_path);
        gpa.free(self.reference);
    }
};

/// `plain` takes pairs for rows.
pub const Kind = enum { rows, pairs, plain };

/// One run, with the defaults of a file of tests.
pub fn Setup(comptime config: LlmTrainingConfig, comptime options: Options, comptime kind: Kind) type {
    return struct {
        config: LlmTrainingConfig = config,
        options: Options = options,
        data: Kind = kind,
        model: arch.ModelConfig = model_config,
        model_seed: u64 = 5,
        eval: bool = false,
        /// A folder to map the model from instead of having it in memory.
        mapped: ?[]const u8 = null,
        /// Drop the trainer after this many updates, as a kill would.
        abandon_after: ?u64 = null,
        /// Ask for a stop after this many updates; 0: at once.
        stop_after: ?u64 = null,
    };
}

/// Trains as `setup` (a `Setup`) says. Caller calls `deinit`.
pub fn train(setup: anytype, diag: *base.Diagnostic) !Run {
    const rows = Rows.init();
    const pairs = Pairs.init();
    var dataset = if (setup.data == .rows) rows.dataset() else pairs.dataset();
    if (setup.data == .plain) dataset.manifest = null;
    var model = try checkpoint.initRandom(f32, gpa, setup.model, setup.model_seed);
    defer model.deinit(gpa);

    const before = try gpa.dupe(f32, model.weights);
    defer gpa.free(before);

    var mapped: ?checkpoint.MappedModel = if (setup.mapped) |path| try checkpoint.openMapped(gpa, testing.io, path, diag) else null;
    defer if (mapped) |*m| m.deinit();

    var run: Run = .{};
    errdefer run.deinit();
    const eval_data = if (setup.eval) &dataset else null;
    const trainer = if (mapped) |*m|
        try Trainer(f32).initOver(gpa, testing.io, .{ .mapped = m }, &dataset, eval_data, setup.config, setup.options, diag)
    else
        try Trainer(f32).init(gpa, testing.io, &model, &dataset, eval_data, setup.config, setup.options, diag);
    defer trainer.deinit();

    if (setup.stop_after == 0) trainer.requestStop();
    while (try trainer.next(diag)) |event| switch (event) {
        .reference => {},
        .gradient => unreachable, // One process.
        .step => |s| {
            try run.losses.append(gpa, s.loss);
            try run.steps.append(gpa, s);
            if (setup.abandon_after == s.global_step) break;
            if (setup.stop_after == s.global_step) trainer.requestStop();
        },
        .evaluation => |e| {
            try run.evaluations.append(gpa, e);
            try run.evaluated.append(gpa, e.global_step);
        },
        .checkpoint => |c| {
            gpa.free(run.last_path);
            run.last_path = try gpa.dupe(u8, c.path);
        },
        .finished => |f| run.final = f,
    };
    run.values = try gpa.dupe(f32, trainer.trained.values);
    if (trainer.identity.reference) |reference| run.reference = try std.fmt.allocPrint(gpa, "{f}", .{reference});
    // A base under an adapter is only read.
    if (setup.options.lora != null) try testing.expectEqualSlices(f32, before, model.weights);
    return run;
}

pub fn mustTrain(setup: anytype) !Run {
    var diag: base.Diagnostic = .{};
    errdefer std.debug.print("{s}\n", .{diag.text()});
    return train(setup, &diag);
}

pub fn expectRefused(setup: anytype, err: anyerror, words: []const u8) !void {
    var diag: base.Diagnostic = .{};
    if (train(setup, &diag)) |run| {
        var done = run;
        done.deinit();
        return error.NotRefused;
    } else |got| {
        errdefer std.debug.print("{t}: \"{s}\"\n", .{ got, diag.text() });
        try testing.expectEqual(err, got);
        try testing.expect(std.mem.find(u8, diag.text(), words) != null);
    }
}

/// The run folder in a temporary folder. Caller frees.
pub fn runPath(tmp: *testing.TmpDir) ![]u8 {
    return std.fmt.allocPrint(gpa, ".zig-cache/tmp/{s}/run", .{&tmp.sub_path});
}
