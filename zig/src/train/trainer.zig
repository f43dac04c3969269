//! The training loop, as an iterator of events.
//!
//!     var trainer = try Trainer(f32).init(gpa, io, &model, &dataset, null, config, .{}, &diag);
//!     defer trainer.deinit();
//!
//!     while (try trainer.next(&diag)) |event| switch (event) { … };
//!
//! One call does one thing: one optimizer update, one evaluation, one saved checkpoint, or the end. So whoever drives
//! it (the program, Python) can print, stop, or go away between any two of them, and nothing calls back.
//!
//! Semantics are TRL's: the loss is the mean over all targets of the accumulated batch, then clip, then optimizer, with
//! the learning rate of that update; the last group of an epoch may be short. A non-finite loss or gradient stops the
//! run before any weight changes.
//! With `Options.dpo` rows come in pairs and the loss compares them with a reference (`preference_session.zig`).
//! What is trained is all weights, or with `Options.lora` an adapter alone: then gradients, moments and checkpoints are the
//! adapter's, and the base is only read.
//! Order of rows is a permutation of (seed, epoch) alone, so a resumed run reads what the unbroken one would have read.
//! Does not know: text, terminals, signals.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const ops = @import("ops");
const model_layer = @import("model");
const data = @import("data");
const checkpoint = @import("checkpoint");
const config_file = @import("config.zig");
const schedule = @import("schedule.zig");
const report = @import("report.zig");
const state_file = @import("state.zig");
const lora_file = @import("lora.zig");
const resuming = @import("resume.zig");
const preference_session = @import("preference_session.zig");
const PreferenceSession = preference_session.PreferenceSession;
const Pass = preference_session.Pass;
const DpoConfig = @import("preference_config.zig").DpoConfig;
const checks = @import("checks.zig");
const early_stopping = @import("early_stopping.zig");
const row_objective = @import("row_objective.zig");
const exchange_file = @import("exchange.zig");
const Share = exchange_file.Share;
const RunFolder = @import("run_folder.zig").RunFolder;
const Source = @import("source.zig").Source;
const Trained = @import("trained.zig").Trained;

const LlmTrainingConfig = config_file.LlmTrainingConfig;
const TokenizedDataset = data.TokenizedDataset;

pub const Event = report.Event;

pub const Options = struct {
    /// Folder of `checkpoint-N`; null: `config.checkpoint_path`; both null: nothing is saved.
    run_dir: ?[]const u8 = null,
    /// Folder whose tokenizer files go into each checkpoint.
    tokenizer_dir: ?[]const u8 = null,
    /// A `checkpoint-N` folder of this run to go on from.
    resume_from: ?[]const u8 = null,
    /// Train an adapter on the model instead of the model.
    lora: ?lora_file.LoraConfig = null,
    /// Learn from pairs of answers; the data must be preference data.
    dpo: ?DpoConfig = null,
    /// What the adapter's file calls its base: a path or the name of a repository.
    base_name: ?[]const u8 = null,
    version: []const u8 = "0.1.0",
    /// One of several processes that share each update's micro-batches. Give a folder to save into to the first alone.
    share: Share = .{},
};

pub fn Trainer(comptime T: type) type {
    return struct {
        gpa: std.mem.Allocator,
        io: std.Io,
        config: LlmTrainingConfig,
        source: Source(T),
        /// Of a LoRA run.
        adapter: ?checkpoint.LoadedAdapter(T),
        /// Keys of dropout; its state goes into the checkpoint.
        dropout: base.Prng,
        trained: Trained(T),
        /// Of a run on pairs.
        pairs: ?PreferenceSession(T) = null,
        pool: *base.Pool,
        exec: ops.Exec,
        transformer: model_layer.Transformer(T),
        /// Kept in memory only when nothing is saved to disk.
        best_weights: early_stopping.BestWeights(T) = .{},
        loader: data.Loader,
        eval_loader: ?data.Loader,
        run: ?RunFolder,
        state: state_file.State = .{},
        identity: state_file.Identity,
        history: std.ArrayList(state_file.LogRecord) = .empty,
        stop_requested: std.atomic.Value(bool) = .init(false),
        share: Share,
        /// Between the two halves of an update, while processes exchange.
        half: ?Half = null,
        /// What they exchange about a reference before the first update.
        shared: ?[]f64 = null,
        /// Work that must come before the next update.
        pending: struct { evaluation: bool = false, save: bool = false } = .{},
        finish: ?report.StopReason = null,
        finished: bool = false,
        saved_step: ?u64 = null,
        saved_path: ?[]u8 = null,
        evaluated_step: ?u64 = null,
        tokens_at_start: u64 = 0,

        const Self = @This();
        const Flat = []align(64) T;

        const Half = struct {
            started: std.Io.Timestamp,
            group: usize,
            sums: exchange_file.Sums,
        };

        /// `model`, `dataset` and `eval_dataset` must outlive the trainer; without `options.lora` `model.weights` is trained
        /// in place. On error `diag` names the thing, the value and the next move.
        pub fn init(
            gpa: std.mem.Allocator,
            io: std.Io,
            model: *checkpoint.LoadedModel(T),
            dataset: *const TokenizedDataset,
            eval_dataset: ?*const TokenizedDataset,
            config: LlmTrainingConfig,
            options: Options,
            diag: *base.Diagnostic,
        ) !*Self {
            return initOver(gpa, io, .{ .dense = model }, dataset, eval_dataset, config, options, diag);
        }

        /// The same over any source; a mapped one needs `options.lora`.
        pub fn initOver(
            gpa: std.mem.Allocator,
            io: std.Io,
            source: Source(T),
            dataset: *const TokenizedDataset,
            eval_dataset: ?*const TokenizedDataset,
            config: LlmTrainingConfig,
            options: Options,
            diag: *base.Diagnostic,
        ) !*Self {
            try checks.checkInputs(T, source, dataset, eval_dataset, config, options, diag);
            const self = try gpa.create(Self);
            errdefer gpa.destroy(self);

            const pool = try base.Pool.init(gpa, config.threads);
            errdefer pool.deinit();

            self.* = .{
                .gpa = gpa,
                .io = io,
                .config = config,
                .source = source,
                .share = options.share,
                .adapter = null,
                .dropout = undefined,
                .trained = undefined,
                .pool = pool,
                .exec = try .init(gpa, pool),
                .transformer = undefined,
                .loader = undefined,
                .eval_loader = null,
                .run = null,
                .identity = .{
                    .batch_size = config.batch_size,
                    .grad_accum_steps = config.grad_accum_steps,
                    .max_seq_len = config.max_seq_len,
                    .shuffle = config.shuffle,
                    .seed = config.seed,
                    .data_tokens = dataset.count(),
                    .data_rows = dataset.rowCount() orelse 0,
                    .data_crc32c = checks.fingerprint(dataset),
                    .objective = if (options.dpo == null) .sft else .dpo,
                    .packing = config.packing,
                },
            };
            errdefer self.exec.deinit();

            if (config.mixed_precision) self.exec.compute = .bf16;
            self.loader = try .init(gpa, dataset, .{
                .batch_size = config.batch_size,
                .max_seq_len = config.max_seq_len,
                .shuffle = config.shuffle,
                .seed = config.seed,
                .packing = config.packing,
            }, diag);
            errdefer self.loader.deinit();

            if (eval_dataset) |e| self.eval_loader = try .init(gpa, e, .{
                .batch_size = config.batch_size,
                .max_seq_len = config.max_seq_len,
                .shuffle = false,
                .seed = 0,
                // As TRL does it; the sequences of a stream are full.
                .packing = if (e.isRows()) config.packing else .none,
            }, diag);
            errdefer if (self.eval_loader) |*l| l.deinit();

            if (options.lora) |*lora| self.adapter = try lora.open(T, gpa, io, source.baseModel(), config.seed, diag);
            errdefer if (self.adapter) |*adapter| adapter.deinit(gpa);

            if (self.adapter) |*adapter| if (options.base_name) |name| {
                adapter.base_name = try adapter.arena.allocator().dupe(u8, name);
            };
            self.trained = if (self.adapter) |*adapter|
                try .init(gpa, adapter.layout.parameters, adapter.values, config.optimizer)
            else
                try .init(gpa, source.layout().parameters, source.dense.weights, config.optimizer);
            errdefer self.trained.deinit(gpa);

            self.dropout = .init(dropoutSeed(&options, config.seed));
            self.transformer = try .init(gpa, source.config(), source.layout(), &self.exec, self.capacity());
            errdefer self.transformer.deinit();

            if (self.adapter) |*adapter| {
                self.identity.method = .lora;
                self.identity.lora = .{ .settings = adapter.settings };
                self.identity.base_crc32c = source.fingerprint();
            }
            self.state.max_steps = try self.plannedSteps(diag);
            if (options.dpo) |dpo| {
                self.pairs = try .init(gpa, io, dpo, .{
                    .weights = self.weights(.evaluation),
                    .adapter_given = if (options.lora) |lora| lora.adapter != null else false,
                    .config = source.config(),
                    .exec = &self.exec,
                    .capacity = self.capacity(),
                    .resuming = options.resume_from != null,
                    .training_pairs = self.loader.kept.len,
                    .evaluation_pairs = if (self.eval_loader) |l| l.kept.len else null,
                    .tokenizer_dir = options.tokenizer_dir,
                }, diag);
                self.identity.dpo = .of(dpo);
                self.identity.reference = .{ .kind = self.pairs.?.objective.kind, .precomputed = dpo.precompute_ref_log_probs };
                self.identity.reference_crc32c = self.pairs.?.referenceChecksum(source);
            }
            errdefer if (self.pairs) |*pairs| pairs.deinit();

            const first = options.share.rank == 0; // The others' checkpoints would be the same.
            if (if (first) options.run_dir orelse config.checkpoint_path else null) |dir|
                self.run = try .open(gpa, io, dir, options.tokenizer_dir, options.resume_from, options.version, diag);
            errdefer if (self.run) |*run| run.close(gpa, io);

            if (options.resume_from) |path| {
                try resuming.restore(T, self, path, diag);
                // Only room is lost if this fails, and the next save tries again.
                if (self.run) |run| checkpoint.tidy(gpa, io, run.dir, self.state.global_step, config.max_checkpoints, self.state.best_step) catch {};
            }
            self.tokens_at_start = self.state.tokens_processed;
            if (self.state.global_step >= self.state.max_steps) self.finish = .completed;
            // A run that had stopped early has stopped; with more patience it goes on.
            if (self.finish == null and config.early_stopping and self.eval_loader != null and options.resume_from != null and
                self.state.evaluations_without_improvement >= config.early_stopping_patience) self.finish = .early_stopped;
            return self;
        }

        pub fn deinit(self: *Self) void {
            const gpa = self.gpa;
            if (self.run) |*run| run.close(gpa, self.io);
            if (self.saved_path) |p| gpa.free(p);
            self.best_weights.deinit(gpa);
            self.history.deinit(gpa);
            if (self.pairs) |*pairs| pairs.deinit();
            self.transformer.deinit();
            self.trained.deinit(gpa);
            if (self.adapter) |*adapter| adapter.deinit(gpa);
            if (self.eval_loader) |*l| l.deinit();
            self.loader.deinit();
            self.exec.deinit();
            self.pool.deinit();
            gpa.destroy(self);
        }

        /// Asks the run to end after the update in progress. Safe from any thread and from a signal handler.
        pub fn requestStop(self: *Self) void {
            self.stop_requested.store(true, .release);
        }

        /// The next event, or null after `finished`.
        pub fn next(self: *Self, diag: *base.Diagnostic) !?Event {
            if (self.finished) return null;
            if (self.half) |half| {
                self.half = null;
                return .{ .step = try self.completeUpdate(half, diag) };
            }
            self.shared = null;
            if (self.finish == null) if (try self.prepareReference(diag)) |event| return event;
            // Of several processes all stop after the same update: it is told with the sums.
            if (self.share.isAlone() and self.stop_requested.load(.acquire) and self.finish == null) {
                self.finish = .interrupted;
                self.pending = .{ .save = true };
            }
            if (self.pending.evaluation) {
                self.pending.evaluation = false;
                return .{ .evaluation = try self.evaluate() };
            }
            if (self.pending.save) {
                self.pending.save = false;
                if (self.run != null and self.saved_step != self.state.global_step)
                    return .{ .checkpoint = try self.save(diag) };
            }
            if (self.finish) |reason| {
                if (reason == .early_stopped) try resuming.restoreBest(T, self, diag);
                self.finished = true;
                return .{ .finished = self.finalReport(reason) };
            }
            const half = try self.beginUpdate();
            if (self.share.isAlone()) return .{ .step = try self.completeUpdate(half, diag) };
            self.half = half;
            return .gradient;
        }

        /// What the processes add up after a `gradient` event, in place. Null at other times.
        pub fn exchange(self: *Self) ?struct { gradients: []T, sums: []f64 } {
            if (self.shared) |values| return .{ .gradients = self.trained.gradients[0..0], .sums = values };
            const half = if (self.half) |*h| h else return null;
            return .{ .gradients = self.trained.gradients, .sums = &half.sums.values };
        }

        /// Saves now, whatever the interval. Error if the run has no folder.
        pub fn save(self: *Self, diag: *base.Diagnostic) !report.SavedCheckpoint {
            const run = self.run orelse {
                diag.set("this run has no folder to save into; set checkpoint_path or run_dir", .{});
                return error.NoRunFolder;
            };
            const s = &self.state;
            s.checkpoints_saved += 1;
            errdefer s.checkpoints_saved -= 1;

            var best_buffer: [32]u8 = undefined;
            const best = if (s.best_step) |step|
                std.fmt.bufPrint(&best_buffer, "checkpoint-{d}", .{step}) catch unreachable // 32 bytes hold any u64.
            else
                null;
            s.dropout_state = if (self.dropoutProbability() > 0) self.dropout.state else null;
            const text = try state_file.write(self.gpa, s.*, self.identity, .{
                .epochs = self.config.epochs,
                .log_interval = self.config.log_interval,
                .eval_interval = self.config.eval_interval,
                .checkpoint_interval = self.config.checkpoint_interval,
                .epoch_fraction = self.epochFraction(),
                .version = run.version,
            }, self.history.items, best);
            defer self.gpa.free(text);

            const path = try checkpoint.save(T, self.gpa, self.io, .{
                .run_dir = run.dir,
                .step = s.global_step,
                .config = self.source.config(),
                .parameters = self.trained.parameters,
                .weights = self.trained.values,
                .adapter = if (self.adapter) |*adapter| .{ .settings = adapter.settings, .base_name = adapter.base_name } else null,
                .optimizer = if (self.config.optimizer == .sgd) null else .{
                    .first_moment = self.trained.first_moment,
                    .second_moment = self.trained.second_moment,
                },
                .state_json = text,
                .tokenizer_dir = run.tokenizer_dir,
                .keep = self.config.max_checkpoints,
                .protect = s.best_step,
            }, diag);
            if (self.saved_path) |old| self.gpa.free(old);
            self.saved_path = path;
            self.saved_step = s.global_step;
            return .{ .global_step = s.global_step, .path = path };
        }

        /// Writes the adapter as it is now into a new folder. Error if all weights are trained.
        pub fn saveAdapter(self: *Self, path: []const u8, diag: *base.Diagnostic) !void {
            const adapter = if (self.adapter) |*a| a else {
                diag.set("this run trains all weights and has no adapter; save its model instead", .{});
                return error.NoAdapter;
            };
            const tokenizer_dir = if (self.run) |run| run.tokenizer_dir else null;
            try checkpoint.saveAdapter(T, self.gpa, self.io, path, self.source.config(), .{
                .settings = adapter.settings,
                .base_name = adapter.base_name,
                .layout = &adapter.layout,
                .values = adapter.values,
            }, tokenizer_dir, diag);
        }

        /// Before the first update (or evaluation): what has to be asked of a reference once. Null when that is done, or was stopped.
        fn prepareReference(self: *Self, diag: *base.Diagnostic) !?Event {
            const pairs = if (self.pairs) |*p| p else return null;
            if (pairs.ready or (self.share.isAlone() and self.stop_requested.load(.acquire))) return null;
            const started: std.Io.Timestamp = .now(self.io, .awake);
            const step = try pairs.prepare(.{
                .io = self.io,
                .transformer = &self.transformer,
                .live = self.weights(.evaluation),
                .training = &self.loader,
                .evaluation = if (self.eval_loader) |*l| l else null,
                .run_dir = if (self.run) |run| run.dir else null,
                .stop = &self.stop_requested,
            }, self.share, diag);
            self.state.time_ns += @intCast(@max(started.untilNow(self.io, .awake).toNanoseconds(), 0));
            switch (step) {
                .done => return null,
                .asked => |progress| return .{ .reference = progress },
                .exchange => |values| {
                    self.shared = values;
                    return .gradient;
                },
                .stopped => {
                    self.finish = .interrupted;
                    self.pending = .{ .save = true };
                    return null;
                },
            }
        }

        // ---- one update ----

        /// This process's part of loss and gradient.
        fn beginUpdate(self: *Self) !Half {
            const started: std.Io.Timestamp = .now(self.io, .awake);
            const s = &self.state;
            const per_epoch = self.loader.batchesPerEpoch();
            const group: usize = @intCast(@min(self.config.grad_accum_steps, per_epoch - s.micro_index));
            try self.loader.seek(s.epoch, s.micro_index);
            ops.elementwise.fill(T, &self.exec, self.trained.gradients, 0);
            const pass: Pass = if (self.pairs) |*pairs|
                pairs.update(&self.transformer, self.weights(.training), self.gradientTarget(), &self.loader, group, self.share)
            else
                self.passRows(group);
            return .{ .started = started, .group = group, .sums = .of(pass, self.stop_requested.load(.acquire)) };
        }

        /// The update, once loss and gradient are those of all processes.
        fn completeUpdate(self: *Self, half: Half, diag: *base.Diagnostic) !report.TrainingStats {
            const s = &self.state;
            const per_epoch = self.loader.batchesPerEpoch();
            const group = half.group;
            const pass = half.sums.toPass();
            const loss = pass.loss;
            const grad_norm = self.trained.gradientNorm(&self.exec);
            try self.trained.guard(s.global_step + 1, loss, grad_norm, self.config.learning_rate, diag);
            const rate = schedule.learningRate(&self.config, s.global_step, s.max_steps);
            self.trained.update(&self.exec, &self.config, s.global_step + 1, rate, grad_norm);

            s.global_step += 1;
            s.micro_index += group;
            if (s.micro_index >= per_epoch) {
                s.epoch += 1;
                s.micro_index = 0;
            }
            s.tokens_processed += pass.tokens;
            s.last_loss = loss;
            s.last_accuracy = pass.accuracy;
            const elapsed: u64 = @intCast(@max(half.started.untilNow(self.io, .awake).toNanoseconds(), 1));
            s.time_ns += elapsed;
            const stats: report.TrainingStats = .{
                .global_step = s.global_step,
                .epoch = self.epochFraction(),
                .micro_steps = @intCast(group),
                .loss = loss,
                .accuracy = s.last_accuracy,
                .learning_rate = rate,
                .grad_norm = grad_norm,
                .perplexity = @exp(loss),
                .tokens_processed = s.tokens_processed,
                .throughput = @as(f64, @floatFromInt(pass.tokens)) * 1e9 / @as(f64, @floatFromInt(elapsed)),
                .time_ns = elapsed,
                .preference = if (self.pairs != null) pass.metrics else null,
            };
            try self.record(stats);
            self.schedulePending();
            if (!self.share.isAlone() and half.sums.stops() and self.finish == null) {
                self.finish = .interrupted;
                self.pending = .{ .save = true };
            }
            return stats;
        }

        /// This process's micro-batches of the next `group` of single rows: its part of the token average, and of the gradient.
        fn passRows(self: *Self, group: usize) Pass {
            const targets = self.loader.peekTargets(group);
            const scale: T = if (targets == 0) 0 else 1 / @as(T, @floatFromInt(targets));
            // The routers' loss of an update is a mean over micro-batches (TRL's), however many tokens each has.
            const balance_scale = self.source.config().balanceCoefficient() / @as(f64, @floatFromInt(group));
            var loss_sum: f64 = 0;
            var correct: u64 = 0;
            var balance: f64 = 0;
            var pass: Pass = .{};
            for (0..group) |j| {
                const micro = self.loader.next().?;
                // Keys of dropout are drawn for all, so that they do not depend on who does what.
                const live = self.weights(.training);
                if (!self.share.owns(j)) continue;
                const batch = row_objective.batchOf(micro);
                const result = self.transformer.lossAndGradient(live, self.gradientTarget(), batch, .{
                    .scale = scale,
                    .label_smoothing = @floatCast(self.config.label_smoothing),
                    .balance_scale = balance_scale,
                });
                balance += balance_scale * self.transformer.balance(batch);
                loss_sum += result.loss_sum;
                correct += result.correct;
                pass.tokens += micro.token_count;
                pass.targets += micro.target_count;
                pass.batches += 1;
            }
            const count: f64 = @floatFromInt(@max(targets, 1));
            pass.loss = loss_sum / count + balance;
            pass.accuracy = @as(f64, @floatFromInt(correct)) / count;
            return pass;
        }

        const Purpose = enum { training, evaluation };

        /// What one pass reads. In training each call draws the key of its own dropout.
        pub fn weights(self: *Self, purpose: Purpose) model_layer.Weights(T) {
            const adapter = if (self.adapter) |*a| a else return .{ .base = self.source.weights() };
            const probability = self.dropoutProbability();
            const dropout: model_layer.Dropout = if (purpose == .training and probability > 0)
                .{ .probability = probability, .key = self.dropout.next() }
            else
                .{};
            return .{ .base = self.source.weights(), .adapter = .{ .layout = &adapter.layout, .values = adapter.values, .dropout = dropout } };
        }

        /// Where a backward pass adds to.
        pub fn gradientTarget(self: *Self) model_layer.Gradients(T) {
            return if (self.adapter == null) .{ .base = self.trained.gradients } else .{ .adapter = self.trained.gradients };
        }

        /// Pairs are compared without dropout, whatever the adapter was trained with before.
        fn dropoutProbability(self: *const Self) f64 {
            if (self.identity.objective == .dpo) return 0;
            return if (self.adapter) |*a| a.settings.lora_dropout else 0;
        }

        fn schedulePending(self: *Self) void {
            const s = &self.state;
            const step = s.global_step;
            const done = step >= s.max_steps;
            if (self.eval_loader != null and (done or isDue(step, self.config.eval_interval)))
                self.pending.evaluation = true;
            if (done or isDue(step, self.config.checkpoint_interval)) self.pending.save = true;
            if (done) self.finish = .completed;
        }

        fn record(self: *Self, stats: report.TrainingStats) !void {
            const step = stats.global_step;
            const interval = self.config.log_interval;
            if (!(isDue(step, interval) or step == 1 or step == self.state.max_steps)) return;
            var line: state_file.LogRecord = .{
                .step = step,
                .epoch = stats.epoch,
                .loss = stats.loss,
                .grad_norm = stats.grad_norm,
                .learning_rate = stats.learning_rate,
                .perplexity = if (stats.preference == null) stats.perplexity else null,
                .accuracy = stats.accuracy,
                .tokens_per_second = stats.throughput,
            };
            if (stats.preference) |metrics| line.addPreference("", metrics);
            try self.history.append(self.gpa, line);
        }

        // ---- evaluation ----

        fn evaluate(self: *Self) !report.EvalResult {
            const started: std.Io.Timestamp = .now(self.io, .awake);
            const loader = &self.eval_loader.?;
            const s = &self.state;
            try loader.seek(0, 0);
            const pass: Pass = if (self.pairs) |*pairs|
                pairs.evaluate(&self.transformer, self.weights(.evaluation), loader)
            else
                row_objective.evaluate(T, &self.transformer, self.weights(.evaluation), loader);
            const loss = pass.loss;
            const accuracy = pass.accuracy;
            self.evaluated_step = s.global_step;
            s.time_ns += @intCast(@max(started.untilNow(self.io, .awake).toNanoseconds(), 0));
            var line: state_file.LogRecord = .{
                .step = s.global_step,
                .epoch = self.epochFraction(),
                .eval_loss = loss,
                .eval_perplexity = if (self.pairs == null) @exp(loss) else null,
                .eval_accuracy = accuracy,
            };
            if (self.pairs != null) line.addPreference("eval_", pass.metrics);
            try self.history.append(self.gpa, line);
            const verdict = early_stopping.judge(s, &self.config, loss, accuracy);
            if (verdict.improved and self.config.early_stopping) {
                // On disk the best weights live in this step's checkpoint.
                if (self.run != null) self.pending.save = true else try self.best_weights.keep(self.gpa, self.trained.values);
            }
            if (verdict.out_of_patience and self.finish == null) {
                self.finish = .early_stopped;
                self.pending.save = true;
            }
            return .{
                .global_step = s.global_step,
                .epoch = self.epochFraction(),
                .loss = loss,
                .perplexity = @exp(loss),
                .accuracy = accuracy,
                .num_batches = pass.batches,
                .total_tokens = pass.targets,
                .improved = verdict.improved,
                .preference = if (self.pairs != null) pass.metrics else null,
            };
        }

        // ---- ending ----

        fn finalReport(self: *Self, reason: report.StopReason) report.TrainingReport {
            const s = self.state;
            return .{
                .stop_reason = reason,
                .final_loss = s.last_loss,
                .final_accuracy = s.last_accuracy,
                .final_perplexity = @exp(s.last_loss),
                .best_val_loss = early_stopping.bestLoss(&self.state, &self.config),
                .best_val_accuracy = s.best_accuracy,
                .total_steps = s.global_step,
                .total_tokens = s.tokens_processed,
                .total_time_ns = s.time_ns,
                .avg_throughput = @as(f64, @floatFromInt(s.tokens_processed)) * 1e9 / @as(f64, @floatFromInt(@max(s.time_ns, 1))),
                .checkpoints_saved = s.checkpoints_saved,
                .early_stopped = reason == .early_stopped,
                .best_step = s.best_step,
            };
        }

        fn epochFraction(self: *const Self) f64 {
            const per_epoch: f64 = @floatFromInt(self.loader.batchesPerEpoch());
            const micro: f64 = @floatFromInt(self.state.micro_index);
            return @as(f64, @floatFromInt(self.state.epoch)) + micro / per_epoch;
        }

        // ---- start ----

        /// Room for the largest micro-batch the data really give: short rows need less than max_seq_len.
        fn capacity(self: *const Self) model_layer.Capacity {
            var batch = @max(self.loader.max_batch, 1);
            var time = @max(self.loader.max_time, 1);
            if (self.eval_loader) |l| {
                batch = @max(batch, l.max_batch);
                time = @max(time, l.max_time);
            }
            return .{
                .batch = batch,
                .time = time,
                .recompute = self.config.recompute_activations,
                .adapter = if (self.adapter) |*adapter| &adapter.layout else null,
                .dropout = self.dropoutProbability() > 0,
                .frozen = self.source == .mapped,
                .low_gates = T == f32 and self.config.mixed_precision,
            };
        }

        fn plannedSteps(self: *Self, diag: *base.Diagnostic) !u64 {
            const batches = self.loader.batchesPerEpoch();
            if (batches == 0) {
                if (self.loader.dataset.isPreference()) {
                    diag.set("{s} gives no pair: the prompts of all {d} pairs fill max_seq_len ({d}). Raise max_seq_len, or shorten the prompts.", .{ self.loader.dataset.path, self.loader.dropped_rows, self.config.max_seq_len });
                    return error.NoTrainingData;
                }
                diag.set("the training data gives no batch: {d} tokens at batch_size {d} and max_seq_len {d}. " ++
                    "Use more data, a smaller batch_size or a smaller max_seq_len.", .{ self.loader.dataset.count(), self.config.batch_size, self.config.max_seq_len });
                return error.NoTrainingData;
            }
            if (self.config.max_steps > 0) return self.config.max_steps;
            const accumulate: u64 = self.config.grad_accum_steps;
            const updates = (@as(u64, batches) + accumulate - 1) / accumulate;
            return updates * self.config.epochs;
        }
    };
}

/// Far from the seeds of rows and of a first adapter.
fn dropoutSeed(options: *const Options, run_seed: u64) u64 {
    const lora = options.lora orelse return run_seed;
    return (lora.seed orelse run_seed) ^ 0x6c6f_7261_2064_726f;
}

pub fn isDue(step: u64, interval: u32) bool {
    return interval != 0 and step % interval == 0;
}
