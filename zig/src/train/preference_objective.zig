//! One micro-batch of pairs: reference, policy, loss, gradient; and which reference a run has.
//!
//!     log-probabilities of the reference (one pass, or looked up) → pass of the policy → weight of each sequence → backward
//!
//! The reference goes first because both share the transformer's buffers: the policy's activations then stay where they are
//! until backward, and nothing is computed twice. Beyond what a run on single rows needs there are a few numbers a token, and
//! the reference itself: nothing for an adapter that is switched off, a copy of the adapter, or another model.
//! The reference does not learn, and a sequence's sum does not depend on its neighbours or on padding, to the bit: so each pair
//! is asked about once, and from the second epoch on only the policy passes. Log-probabilities computed in advance make the
//! reference itself unnecessary (`preference_cache.zig`).
//! Does not know: updates, files of the run, how its numbers are shown.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const ops = @import("ops");
const model_layer = @import("model");
const data = @import("data");
const checkpoint = @import("checkpoint");
const preference = @import("preference.zig");
const DpoConfig = @import("preference_config.zig").DpoConfig;

/// Which model the policy is compared with. Names are those of the record.
pub const ReferenceKind = enum {
    /// The base without the adapter that is trained.
    adapter_off,
    /// A copy of the adapter the run began with.
    starting_adapter,
    /// A copy of the weights the run began with.
    starting_model,
    /// Another model.
    ref_model,
};

/// Two data sets have reference values: the one trained on and the one evaluated on.
pub const Set = enum { training, evaluation };

/// What one micro-batch gave.
pub const Outcome = struct {
    /// Mean over the pairs.
    loss: f64,
    metrics: preference.Metrics,
    /// Targets of the better answers, and those among them that were the first arg-max.
    chosen_targets: u64,
    chosen_correct: u64,
};

pub const Error = error{ OutOfMemory, InvalidConfiguration, ReferenceMismatch } || checkpoint.model_file.Error;

pub fn PreferenceObjective(comptime T: type) type {
    return struct {
        gpa: std.mem.Allocator,
        options: preference.Options,
        kind: ReferenceKind,
        /// Null once `dropReference` was called.
        reference: ?Reference,
        /// False when the reference's numbers are the caller's.
        owns_reference: bool,
        /// Reference sums of the pairs that are kept, better and worse in turn; not a number where it was not asked yet.
        /// Null: nothing is remembered.
        known: std.enums.EnumArray(Set, ?[]f64) = .initFill(null),
        /// Per token of a micro-batch.
        row_nll: []f64,
        row_mean_logit: []f64,
        row_correct: []bool,
        row_scale: []T,
        /// Per pair of a micro-batch.
        chosen: []preference.Answer,
        rejected: []preference.Answer,
        dchosen: []f64,
        drejected: []f64,
        /// Per sequence: the reference's sums.
        reference_sums: []f64,

        const Self = @This();
        const Weights = model_layer.Weights(T);
        const Gradients = model_layer.Gradients(T);
        const Transformer = model_layer.Transformer(T);

        pub const Reference = union(ReferenceKind) {
            adapter_off,
            starting_adapter: []const T,
            starting_model: []const T,
            ref_model: Other,
        };

        /// Another model, with a transformer of its own if it has another shape. It is only read: in f32 runs it stays in its
        /// file and its own types, with the bits it would have in memory.
        pub const Other = struct {
            model: *Model,
            own: ?*Transformer,

            const Model = if (T == f32) checkpoint.MappedModel else checkpoint.LoadedModel(T);

            fn open(gpa: std.mem.Allocator, io: std.Io, path: []const u8, diag: *base.Diagnostic) checkpoint.model_file.Error!Model {
                return if (T == f32) checkpoint.openMapped(gpa, io, path, diag) else checkpoint.loadModel(T, gpa, io, path, diag);
            }

            fn close(gpa: std.mem.Allocator, model: *Model) void {
                if (T == f32) model.deinit() else model.deinit(gpa);
            }

            pub fn weights(self: Other) Weights {
                return if (T == f32) .{ .base = .{ .frozen = self.model.matrices } } else .dense(self.model.weights);
            }
        };

        /// What the objective is made for.
        pub const Setting = struct {
            /// The policy as the run begins; its numbers are copied where the reference needs a copy.
            start: Weights,
            /// The adapter was there before the run: the reference is what it was then.
            adapter_given: bool,
            config: arch.ModelConfig,
            exec: *ops.Exec,
            /// Largest micro-batch, in sequences and positions.
            capacity: model_layer.Capacity,
            /// The reference will be dropped before the policy changes: its numbers need no copy.
            dropped_before_change: bool = false,
        };

        /// `setting.exec` must outlive the objective. Caller calls `deinit`.
        pub fn init(gpa: std.mem.Allocator, io: std.Io, dpo: DpoConfig, setting: Setting, diag: *base.Diagnostic) Error!Self {
            const tokens = setting.capacity.batch * setting.capacity.time;
            const pairs = setting.capacity.batch / 2 + 1;
            const row_nll = try gpa.alloc(f64, tokens);
            errdefer gpa.free(row_nll);
            const row_mean_logit = try gpa.alloc(f64, tokens);
            errdefer gpa.free(row_mean_logit);
            const row_correct = try gpa.alloc(bool, tokens);
            errdefer gpa.free(row_correct);
            const row_scale = try gpa.alloc(T, tokens);
            errdefer gpa.free(row_scale);
            const chosen = try gpa.alloc(preference.Answer, pairs);
            errdefer gpa.free(chosen);
            const rejected = try gpa.alloc(preference.Answer, pairs);
            errdefer gpa.free(rejected);
            const dchosen = try gpa.alloc(f64, pairs);
            errdefer gpa.free(dchosen);
            const drejected = try gpa.alloc(f64, pairs);
            errdefer gpa.free(drejected);
            const reference_sums = try gpa.alloc(f64, 2 * pairs);
            errdefer gpa.free(reference_sums);
            const terms = try gpa.dupe(preference.Term, dpo.terms);
            errdefer gpa.free(terms);
            var options = dpo.lossOptions();
            options.terms = terms;
            const reference = try makeReference(gpa, io, dpo, setting, diag);
            return .{
                .gpa = gpa,
                .options = options,
                .kind = reference,
                .reference = reference,
                .owns_reference = reference == .ref_model or !setting.dropped_before_change,
                .row_nll = row_nll,
                .row_mean_logit = row_mean_logit,
                .row_correct = row_correct,
                .row_scale = row_scale,
                .chosen = chosen,
                .rejected = rejected,
                .dchosen = dchosen,
                .drejected = drejected,
                .reference_sums = reference_sums,
            };
        }

        pub fn deinit(self: *Self) void {
            const gpa = self.gpa;
            self.dropReference();
            for (std.enums.values(Set)) |set| if (self.known.get(set)) |sums| gpa.free(sums);
            inline for (.{ "reference_sums", "drejected", "dchosen", "rejected", "chosen", "row_scale", "row_correct", "row_mean_logit", "row_nll" }) |name|
                gpa.free(@field(self, name));
            gpa.free(self.options.terms);
            self.* = undefined;
        }

        fn makeReference(gpa: std.mem.Allocator, io: std.Io, dpo: DpoConfig, setting: Setting, diag: *base.Diagnostic) Error!Reference {
            if (dpo.ref_model) |path| return .{ .ref_model = try openOther(gpa, io, path, setting, diag) };
            const live = setting.dropped_before_change;
            if (setting.start.adapter) |adapter| {
                if (!setting.adapter_given) return .adapter_off;
                return .{ .starting_adapter = if (live) adapter.values else try gpa.dupe(T, adapter.values) };
            }
            const flat = setting.start.base.dense;
            return .{ .starting_model = if (live) flat else try gpa.dupe(T, flat) };
        }

        fn openOther(gpa: std.mem.Allocator, io: std.Io, path: []const u8, setting: Setting, diag: *base.Diagnostic) Error!Other {
            const model = try gpa.create(Other.Model);
            errdefer gpa.destroy(model);
            model.* = Other.open(gpa, io, path, diag) catch |err| {
                diag.prepend("dpo.ref_model: ", .{});
                return err;
            };
            errdefer Other.close(gpa, model);

            const theirs = model.config;
            if (theirs.vocab_size != setting.config.vocab_size) {
                diag.set("dpo.ref_model: {s} has a vocabulary of {d} tokens, the model one of {d}. A reference must have the " ++
                    "model's vocabulary: choose another, or leave ref_model out", .{ path, theirs.vocab_size, setting.config.vocab_size });
                return error.ReferenceMismatch;
            }
            if (setting.capacity.time > theirs.max_position_embeddings) {
                diag.set("dpo.ref_model: {s} sees {d} positions, but the rows have up to {d}. Lower max_seq_len", .{ path, theirs.max_position_embeddings, setting.capacity.time });
                return error.ReferenceMismatch;
            }
            if (sameShape(theirs, setting.config)) {
                // The policy's transformer passes it too.
                var widest: usize = 0;
                for (model.layout.parameters) |p| if (p.rank == 2) {
                    widest = @max(widest, p.shape[1]);
                };
                if (T == f32) try setting.exec.reserve(T, .{
                    .vocab_size = theirs.vocab_size,
                    .loss_rows = setting.capacity.batch * setting.capacity.time,
                    .loss_columns = theirs.hidden_size,
                    .frozen_columns = widest,
                });
                return .{ .model = model, .own = null };
            }
            const own = try gpa.create(Transformer);
            errdefer gpa.destroy(own);
            own.* = try .init(gpa, theirs, &model.layout, setting.exec, .{
                .batch = setting.capacity.batch,
                .time = setting.capacity.time,
                .recompute = true, // One layer's buffers serve all: there is no backward pass.
                .frozen = T == f32,
                .low_gates = setting.capacity.low_gates,
                .lends = false,
            });
            return .{ .model = model, .own = own };
        }

        /// Frees the reference's copy or model, for when all its sums are known.
        pub fn dropReference(self: *Self) void {
            const reference = self.reference orelse return;
            self.reference = null;
            switch (reference) {
                .adapter_off => {},
                inline .starting_adapter, .starting_model => |values| if (self.owns_reference) self.gpa.free(values),
                .ref_model => |other| {
                    if (other.own) |own| {
                        own.deinit();
                        self.gpa.destroy(own);
                    }
                    Other.close(self.gpa, other.model);
                    self.gpa.destroy(other.model);
                },
            }
        }

        /// The reference's numbers. `live` is the policy, whose base an adapter's reference shares.
        pub fn referenceWeights(self: *const Self, live: Weights) Weights {
            return switch (self.reference.?) {
                .adapter_off => live.bare(),
                .starting_adapter => |values| .{ .base = live.base, .adapter = .{ .layout = live.adapter.?.layout, .values = values } },
                .starting_model => |values| .dense(values),
                .ref_model => |other| other.weights(),
            };
        }

        /// Sums of the reference's log-probabilities of each sequence's answer, into `sums` [batch]. Uses the transformer's buffers.
        pub fn askReference(self: *Self, transformer: *Transformer, live: Weights, batch: model_layer.Batch, sums: []f64) void {
            const row_nll = self.row_nll[0..batch.tokens()];
            const through = switch (self.reference.?) {
                .ref_model => |other| other.own orelse transformer,
                else => transformer,
            };
            _ = through.loss(self.referenceWeights(live), batch, .{ .row_nll = row_nll });
            sumRows(row_nll, batch.time, sums);
        }

        /// Asks the reference about the pairs of one micro-batch, and remembers what it says.
        pub fn ask(self: *Self, transformer: *Transformer, live: Weights, set: Set, micro: data.MicroBatch) void {
            const sums = self.reference_sums[0..micro.batch];
            self.askReference(transformer, live, batchOf(micro), sums);
            note(self.known.get(set).?, micro, sums);
        }

        /// From now on what the reference says about these `pairs` is remembered.
        pub fn remember(self: *Self, set: Set, pairs: usize) error{OutOfMemory}!void {
            const known = try self.gpa.alloc(f64, 2 * pairs);
            @memset(known, std.math.nan(f64));
            self.setKnown(set, known);
        }

        /// The reference's sums for a micro-batch, remembered or asked.
        fn sumsOf(self: *Self, transformer: *Transformer, live: Weights, set: Set, micro: data.MicroBatch, sums: []f64) void {
            const known = self.known.get(set) orelse return self.askReference(transformer, live, batchOf(micro), sums);
            var missing = false;
            for (micro.units, 0..) |unit, i| {
                sums[i] = known[2 * @as(usize, unit)];
                sums[micro.pairs + i] = known[2 * @as(usize, unit) + 1];
                missing = missing or std.math.isNan(sums[i]) or std.math.isNan(sums[micro.pairs + i]);
            }
            // One that is gone was asked about all: what is not a number there is what it said.
            if (!missing or self.reference == null) return;
            self.askReference(transformer, live, batchOf(micro), sums);
            note(known, micro, sums);
        }

        fn note(known: []f64, micro: data.MicroBatch, sums: []const f64) void {
            for (micro.units, 0..) |unit, i| {
                known[2 * @as(usize, unit)] = sums[i];
                known[2 * @as(usize, unit) + 1] = sums[micro.pairs + i];
            }
        }

        /// Takes over `sums` (better and worse answer of each kept pair in turn), made by the objective's allocator.
        pub fn setKnown(self: *Self, set: Set, sums: []f64) void {
            if (self.known.get(set)) |old| self.gpa.free(old);
            self.known.set(set, sums);
        }

        /// Loss and metrics of a micro-batch of pairs. With `gradients` also adds `share` times the gradient of the loss.
        pub fn run(
            self: *Self,
            transformer: *Transformer,
            live: Weights,
            gradients: ?Gradients,
            set: Set,
            micro: data.MicroBatch,
            share: f64,
        ) Outcome {
            const pairs = micro.pairs;
            std.debug.assert(pairs > 0);
            std.debug.assert(micro.batch == 2 * pairs);
            const batch = batchOf(micro);
            const sums = self.reference_sums[0..micro.batch];
            self.sumsOf(transformer, live, set, micro, sums);

            const tokens = batch.tokens();
            const options: model_layer.LossOptions(T) = .{
                .row_nll = self.row_nll[0..tokens],
                .row_mean_logit = self.row_mean_logit[0..tokens],
                .row_correct = self.row_correct[0..tokens],
            };
            // An adapter on the head has a gradient of its own there, which must know the weights of the rows.
            const by_adapter = if (gradients) |g| g == .adapter and live.adapter.?.layout.get(null, .lm_head) == null else false;
            _ = if (by_adapter) transformer.lossKeepingGradient(live, batch, options) else transformer.loss(live, batch, options);

            const chosen = self.chosen[0..pairs];
            const rejected = self.rejected[0..pairs];
            for (0..pairs) |i| {
                chosen[i] = self.answer(micro, i, sums);
                rejected[i] = self.answer(micro, pairs + i, sums);
            }
            const result = preference.evaluate(self.options, chosen, rejected, self.dchosen[0..pairs], self.drejected[0..pairs]);
            // Of pairs TRL adds the routers' loss in evaluations too.
            const coefficient = transformer.config.balanceCoefficient();
            var outcome: Outcome = .{ .loss = result.loss + coefficient * transformer.balance(batch), .metrics = result.metrics, .chosen_targets = 0, .chosen_correct = 0 };
            self.addLogits(micro, &outcome);
            if (gradients) |g| {
                // The pass gives gradients of −log π: the sign turns, and every token of a sequence has its sequence's weight.
                for (0..pairs) |i| {
                    self.weigh(micro.time, i, -share * self.dchosen[i]);
                    self.weigh(micro.time, pairs + i, -share * self.drejected[i]);
                }
                const row_scale = self.row_scale[0..tokens];
                if (by_adapter)
                    transformer.gradientFromKept(live, g, batch, row_scale, share * coefficient)
                else
                    _ = transformer.gradient(live, g, batch, .{ .row_scale = row_scale, .balance_scale = share * coefficient });
            }
            return outcome;
        }

        fn answer(self: *const Self, micro: data.MicroBatch, sequence: usize, sums: []const f64) preference.Answer {
            const rows = self.row_nll[sequence * micro.time ..][0..micro.time];
            var policy: f64 = 0;
            for (rows) |nll| policy -= nll;
            return .{
                .policy = policy,
                .reference = sums[sequence],
                .tokens = micro.answers[sequence],
                .targets = @intCast(targetsOf(micro, sequence)),
            };
        }

        fn addLogits(self: *const Self, micro: data.MicroBatch, outcome: *Outcome) void {
            var logits: [2]f64 = .{ 0, 0 };
            var targets: [2]u64 = .{ 0, 0 };
            for (micro.targets, self.row_mean_logit[0..micro.targets.len], self.row_correct[0..micro.targets.len], 0..) |target, logit, correct, at| {
                if (target < 0) continue;
                const half = @intFromBool(at >= micro.pairs * micro.time);
                logits[half] += logit;
                targets[half] += 1;
                outcome.chosen_correct += @intFromBool(correct and half == 0);
            }
            outcome.chosen_targets = targets[0];
            outcome.metrics.logits_chosen = logits[0] / float(@max(targets[0], 1));
            outcome.metrics.logits_rejected = logits[1] / float(@max(targets[1], 1));
            outcome.metrics.mean_token_accuracy = float(outcome.chosen_correct) / float(@max(targets[0], 1));
        }

        fn weigh(self: *Self, time: usize, sequence: usize, factor: f64) void {
            @memset(self.row_scale[sequence * time ..][0..time], @floatCast(factor));
        }

        fn targetsOf(micro: data.MicroBatch, sequence: usize) usize {
            var count: usize = 0;
            for (micro.targets[sequence * micro.time ..][0..micro.time]) |target| count += @intFromBool(target >= 0);
            return count;
        }
    };
}

fn batchOf(micro: data.MicroBatch) model_layer.Batch {
    return .{ .input_ids = micro.input_ids, .targets = micro.targets, .batch = micro.batch, .time = micro.time, .lengths = micro.lengths };
}

/// Each sequence's Σ log π, in the order of its rows.
fn sumRows(row_nll: []const f64, time: usize, sums: []f64) void {
    for (sums, 0..) |*sum, sequence| {
        sum.* = 0;
        for (row_nll[sequence * time ..][0..time]) |nll| sum.* -= nll;
    }
}

fn float(count: u64) f64 {
    return @floatFromInt(count);
}

/// Equal in everything that decides shapes and arithmetic.
fn sameShape(a: arch.ModelConfig, b: arch.ModelConfig) bool {
    var x = a;
    x.bos_token_id = b.bos_token_id;
    x.eos_token_id = b.eos_token_id;
    x.pad_token_id = b.pad_token_id;
    x.initializer_range = b.initializer_range;
    return std.meta.eql(x, b);
}

test {
    _ = @import("preference_objective_test.zig");
}
