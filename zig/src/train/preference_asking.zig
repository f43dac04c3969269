//! Asking a reference about every pair before the first update, in pieces, so that whoever drives the run hears of it.
//!
//! Several processes ask about their own micro-batches and add the answers up: where one has not asked it holds 0, so the sum is what
//! one process would have been told, to the bit. If the first process has the answers of an earlier start in the run's folder, it gives
//! them to all, and nobody asks. A stop that one process hears of ends it for all, after what was begun is exchanged.
//! Does not know: losses, updates, how numbers travel.

const std = @import("std");
const base = @import("base");
const model_layer = @import("model");
const data = @import("data");
const objective_file = @import("preference_objective.zig");
const cache = @import("preference_cache.zig");
const Share = @import("exchange.zig").Share;

/// Pairs asked about, of training and evaluation together.
pub const Progress = struct { asked: u64, pairs: u64 };

pub const Step = union(enum) {
    /// All is known, and the reference was let go.
    done,
    /// Some process wants to stop; nothing is kept.
    stopped,
    /// Some time has passed; there is more to ask.
    asked: Progress,
    /// To be replaced by its sum over all processes before the next call.
    exchange: []f64,
};

pub fn Asking(comptime T: type) type {
    return struct {
        objective: *objective_file.PreferenceObjective(T),
        share: Share,
        stage: Stage = .begin,
        name: ?[]u8 = null,
        kept: ?cache.Sums = null,
        /// A question to all processes.
        note: [1]f64 = .{0},
        /// The next micro-batch of the set that is asked about.
        index: usize = 0,
        asked: u64 = 0,

        const Self = @This();
        const Stage = enum { begin, agree, training, evaluation, give_training, give_evaluation, ask_for_stop, hear_of_stop, finish };
        /// After so long somebody wants to hear how far it is.
        const patience_ns = 500 * std.time.ns_per_ms;

        pub const Place = struct {
            io: std.Io,
            transformer: *model_layer.Transformer(T),
            live: model_layer.Weights(T),
            training: *data.Loader,
            evaluation: ?*data.Loader,
            /// Where answers are kept; null: nowhere.
            run_dir: ?[]const u8,
            stop: *const std.atomic.Value(bool),

            fn loader(self: Place, set: objective_file.Set) *data.Loader {
                return if (set == .training) self.training else self.evaluation.?;
            }
        };

        pub fn deinit(self: *Self) void {
            const gpa = self.objective.gpa;
            if (self.name) |name| gpa.free(name);
            if (self.kept) |kept| kept.deinit(gpa);
            self.* = undefined;
        }

        /// The next thing to tell of.
        pub fn next(self: *Self, place: Place, diag: *base.Diagnostic) !Step {
            const alone = self.share.isAlone();
            while (true) switch (self.stage) {
                .begin => {
                    try self.look(place);
                    self.note = .{@floatFromInt(@intFromBool(self.kept != null))};
                    self.stage = .agree;
                    if (!alone) return .{ .exchange = &self.note };
                },
                .agree => {
                    const known = self.note[0] > 0;
                    try self.makeRoom(.training, place.training);
                    if (place.evaluation) |loader| try self.makeRoom(.evaluation, loader);
                    if (self.kept) |kept| {
                        self.kept = null;
                        self.objective.setKnown(.training, kept.training);
                        if (kept.evaluation) |sums| self.objective.setKnown(.evaluation, sums);
                    }
                    self.stage = if (!known) .training else if (alone) .finish else .give_training;
                    if (!known) place.training.beginEpoch(0);
                },
                .training => {
                    if (try self.ask(.training, place)) |step| return step;
                    self.index = 0;
                    if (place.evaluation) |loader| loader.beginEpoch(0);
                    self.stage = if (place.evaluation == null) self.afterAsking() else .evaluation;
                },
                .evaluation => {
                    if (try self.ask(.evaluation, place)) |step| return step;
                    self.stage = self.afterAsking();
                },
                .give_training => {
                    self.stage = if (place.evaluation == null) .ask_for_stop else .give_evaluation;
                    return .{ .exchange = self.objective.known.get(.training).? };
                },
                .give_evaluation => {
                    self.stage = .ask_for_stop;
                    return .{ .exchange = self.objective.known.get(.evaluation).? };
                },
                .ask_for_stop => {
                    self.note = .{@floatFromInt(@intFromBool(place.stop.load(.acquire)))};
                    self.stage = .hear_of_stop;
                    return .{ .exchange = &self.note };
                },
                .hear_of_stop => {
                    if (self.note[0] > 0) return .stopped;
                    self.stage = .finish;
                },
                .finish => {
                    try self.keep(place, diag);
                    self.objective.dropReference();
                    return .done;
                },
            };
        }

        fn afterAsking(self: *const Self) Stage {
            return if (self.share.isAlone()) .finish else .give_training;
        }

        /// What an earlier start has left.
        fn look(self: *Self, place: Place) !void {
            const gpa = self.objective.gpa;
            const t = place.transformer;
            self.name = try cache.fingerprint(T, gpa, self.objective.referenceWeights(place.live), t.config, t.exec.compute == .bf16, place.training, place.evaluation);
            const dir = place.run_dir orelse return;
            const evaluation_count = if (place.evaluation) |loader| 2 * loader.kept.len else null;
            var disk: base.storage.Disk = .init(place.io);
            self.kept = try cache.read(gpa, disk.storage(), dir, self.name.?, 2 * place.training.kept.len, evaluation_count);
        }

        /// Processes that share begin with zeros, which add nothing.
        fn makeRoom(self: *Self, set: objective_file.Set, loader: *const data.Loader) !void {
            try self.objective.remember(set, loader.kept.len);
            if (!self.share.isAlone()) @memset(self.objective.known.get(set).?, 0);
        }

        /// Null when the set is through.
        fn ask(self: *Self, set: objective_file.Set, place: Place) !?Step {
            const started: std.Io.Timestamp = .now(place.io, .awake);
            const loader = place.loader(set);
            while (loader.next()) |micro| {
                if (place.stop.load(.acquire)) {
                    if (self.share.isAlone()) return .stopped;
                    return null; // The others wait for what there is.
                }
                if (self.share.owns(self.index)) self.objective.ask(place.transformer, place.live, set, micro);
                self.index += 1;
                self.asked += micro.pairs;
                if (started.untilNow(place.io, .awake).toNanoseconds() < patience_ns) continue;
                const all = place.training.kept.len + if (place.evaluation) |e| e.kept.len else 0;
                return .{ .asked = .{ .asked = self.asked, .pairs = all } };
            }
            return null;
        }

        fn keep(self: *Self, place: Place, diag: *base.Diagnostic) !void {
            const dir = place.run_dir orelse return;
            var disk: base.storage.Disk = .init(place.io);
            try cache.keep(self.objective.gpa, disk.storage(), dir, self.name.?, .{
                .training = self.objective.known.get(.training).?,
                .evaluation = self.objective.known.get(.evaluation),
            }, diag);
        }
    };
}
