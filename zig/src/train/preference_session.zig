//! A run on pairs, as the trainer sees it: make the reference ready, pass one update's micro-batches, pass an evaluation.
//!
//! An update's loss is the mean over its micro-batches of each one's mean over its pairs (TRL's), so a short last micro-batch
//! weighs as much as a full one; metrics are averaged the same way. Figures of an evaluation are means over all pairs: each
//! micro-batch's, weighted by its pairs.
//! With `precompute_ref_log_probs` the reference is asked about every pair before the first update and let go; the answers stay
//! in the run's folder, and a resumed run reads them there.
//! Does not know: optimizers, schedules, events.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const ops = @import("ops");
const model_layer = @import("model");
const data = @import("data");
const preference = @import("preference.zig");
const objective_file = @import("preference_objective.zig");
const asking_file = @import("preference_asking.zig");
const vocabulary = @import("preference_vocabulary.zig");
const DpoConfig = @import("preference_config.zig").DpoConfig;
const Source = @import("source.zig").Source;

/// What passing some micro-batches gave.
pub const Pass = struct {
    loss: f64 = 0,
    metrics: preference.Metrics = .{},
    /// Of the better answers' tokens.
    accuracy: f64 = 0,
    /// Tokens read, padding left out, and targets among them.
    tokens: u64 = 0,
    targets: u64 = 0,
    batches: u64 = 0,
};

const Share = @import("exchange.zig").Share;

pub fn PreferenceSession(comptime T: type) type {
    return struct {
        objective: Objective,
        precompute: bool,
        ready: bool,
        asking: ?Asking = null,

        const Self = @This();
        const Asking = asking_file.Asking(T);
        const Objective = objective_file.PreferenceObjective(T);
        const Weights = model_layer.Weights(T);
        const Gradients = model_layer.Gradients(T);
        const Transformer = model_layer.Transformer(T);

        pub const Start = struct {
            /// The policy before its first update ever.
            weights: Weights,
            adapter_given: bool,
            config: arch.ModelConfig,
            exec: *ops.Exec,
            capacity: model_layer.Capacity,
            /// A checkpoint will replace the policy before the reference is asked.
            resuming: bool,
            /// Pairs in training, and in evaluation if there is one.
            training_pairs: usize,
            evaluation_pairs: ?usize,
            /// The model's tokenizer, to compare with that of `ref_model`.
            tokenizer_dir: ?[]const u8,
        };

        pub fn init(gpa: std.mem.Allocator, io: std.Io, dpo: DpoConfig, start: Start, diag: *base.Diagnostic) objective_file.Error!Self {
            if (dpo.ref_model) |other| if (start.tokenizer_dir) |own| {
                var disk: base.storage.Disk = .init(io);
                try vocabulary.check(gpa, disk.storage(), own, other, diag);
            };
            var objective: Objective = try .init(gpa, io, dpo, .{
                .start = start.weights,
                .adapter_given = start.adapter_given,
                .config = start.config,
                .exec = start.exec,
                .capacity = start.capacity,
                .dropped_before_change = dpo.precompute_ref_log_probs and !start.resuming,
            }, diag);
            errdefer objective.deinit();

            try objective.remember(.training, start.training_pairs);
            if (start.evaluation_pairs) |pairs| try objective.remember(.evaluation, pairs);
            return .{
                .objective = objective,
                .precompute = dpo.precompute_ref_log_probs,
                .ready = !dpo.precompute_ref_log_probs,
            };
        }

        pub fn deinit(self: *Self) void {
            if (self.asking) |*asking| asking.deinit();
            self.objective.deinit();
            self.* = undefined;
        }

        /// What tells the reference from another one: `Source.fingerprint` of a model, the CRC-32C of an adapter's numbers; null when
        /// the base alone says it. `start` is the model as the run begins.
        pub fn referenceChecksum(self: *const Self, start: Source(T)) ?u32 {
            return switch (self.objective.reference orelse return null) {
                .adapter_off => null,
                .starting_adapter => |values| base.checksum.crc32c(std.mem.sliceAsBytes(values)),
                .starting_model => start.fingerprint(),
                .ref_model => |other| (if (T == f32) Source(T){ .mapped = other.model } else Source(T){ .dense = other.model }).fingerprint(),
            };
        }

        /// Asks the reference about all pairs where that was wanted, one piece a call.
        pub fn prepare(self: *Self, place: Asking.Place, share: Share, diag: *base.Diagnostic) !asking_file.Step {
            if (self.ready) return .done;
            if (self.asking == null) self.asking = .{ .objective = &self.objective, .share = share };
            const step = try self.asking.?.next(place, diag);
            if (step == .done) self.ready = true;
            return step;
        }

        /// Of the next `group` micro-batches of `loader` those that are `own`: adds the gradient of their loss to `gradients`.
        pub fn update(self: *Self, transformer: *Transformer, live: Weights, gradients: Gradients, loader: *data.Loader, group: usize, own: Share) Pass {
            const share = 1 / @as(f64, @floatFromInt(group));
            var pass: Pass = .{};
            for (0..group) |j| {
                const micro = loader.next().?;
                if (!own.owns(j)) continue;
                const outcome = self.objective.run(transformer, live, gradients, .training, micro, share);
                pass.loss += share * outcome.loss;
                pass.metrics.add(outcome.metrics, share);
                pass.tokens += micro.token_count;
                pass.targets += micro.target_count;
                pass.batches += 1;
            }
            pass.accuracy = pass.metrics.mean_token_accuracy;
            return pass;
        }

        /// The rest of `loader`'s epoch, without gradients.
        pub fn evaluate(self: *Self, transformer: *Transformer, live: Weights, loader: *data.Loader) Pass {
            var pass: Pass = .{};
            var pairs: f64 = 0;
            while (loader.next()) |micro| {
                const outcome = self.objective.run(transformer, live, null, .evaluation, micro, 1);
                const weight: f64 = @floatFromInt(micro.pairs);
                pass.loss += weight * outcome.loss;
                pairs += weight;
                pass.metrics.add(outcome.metrics, weight);
                pass.tokens += micro.token_count;
                pass.targets += micro.target_count;
                pass.batches += 1;
            }
            pass.loss /= @max(pairs, 1);
            pass.metrics.scale(1 / @max(pairs, 1));
            pass.accuracy = pass.metrics.mean_token_accuracy;
            return pass;
        }
    };
}
