//! What the optimizer walks over: the model's parameters or an adapter's, with their gradients and moments.
//!
//! All four arrays are flat and laid out alike. Clipping and guarding look at gradients only after all micro-batches of
//! an update. Does not know: where gradients come from, schedules, files.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const ops = @import("ops");
const checkpoint = @import("checkpoint");
const config_file = @import("config.zig");

const firstNonFinite = checkpoint.model_file.firstNonFinite;
const LlmTrainingConfig = config_file.LlmTrainingConfig;

pub fn Trained(comptime T: type) type {
    return struct {
        parameters: []const arch.Parameter,
        /// Someone else's: the model's or the adapter's.
        values: Flat,
        gradients: Flat,
        /// Empty with sgd.
        first_moment: Flat,
        second_moment: Flat,

        const Self = @This();
        const Flat = []align(64) T;

        /// Caller calls `deinit`; `parameters` and `values` must outlive it.
        pub fn init(gpa: std.mem.Allocator, parameters: []const arch.Parameter, values: Flat, optimizer: config_file.Optimizer) error{OutOfMemory}!Self {
            const moments = if (optimizer == .sgd) 0 else values.len;
            const gradients = try zeros(gpa, values.len);
            errdefer gpa.free(gradients);

            const first = try zeros(gpa, moments);
            errdefer gpa.free(first);

            return .{ .parameters = parameters, .values = values, .gradients = gradients, .first_moment = first, .second_moment = try zeros(gpa, moments) };
        }

        pub fn deinit(self: *Self, gpa: std.mem.Allocator) void {
            gpa.free(self.gradients);
            gpa.free(self.first_moment);
            gpa.free(self.second_moment);
            self.* = undefined;
        }

        fn zeros(gpa: std.mem.Allocator, len: usize) error{OutOfMemory}!Flat {
            const buffer = try gpa.alignedAlloc(T, .@"64", len);
            @memset(buffer, 0);
            return buffer;
        }

        /// L2 norm of the per-parameter norms, as torch takes it.
        pub fn gradientNorm(self: *const Self, exec: *ops.Exec) f64 {
            var sum: f64 = 0;
            for (self.parameters) |p| {
                sum += ops.reduce.sumSquares(T, exec, p.sliceConst(T, self.gradients));
            }
            return @sqrt(sum);
        }

        /// Stops before weights change when the numbers have gone wrong.
        pub fn guard(self: *const Self, step: u64, loss: f64, grad_norm: f64, learning_rate: f64, diag: *base.Diagnostic) error{NonFinite}!void {
            if (std.math.isFinite(loss) and std.math.isFinite(grad_norm)) return;
            for (self.parameters) |p| {
                if (firstNonFinite(T, p.sliceConst(T, self.values)) != null) {
                    diag.set("step {d}: weight \"{s}\" holds a value that is not finite. " ++
                        "Start from a sound checkpoint.", .{ step, p.name });
                    return error.NonFinite;
                }
            }
            if (!std.math.isFinite(loss)) {
                diag.set("step {d}: the loss is {d}. Weights are unchanged; the last checkpoint is good. " ++
                    "Lower learning_rate ({e}) or look at the data of this step.", .{ step, loss, learning_rate });
                return error.NonFinite;
            }
            for (self.parameters) |p| {
                if (firstNonFinite(T, p.sliceConst(T, self.gradients)) != null) {
                    diag.set("step {d}: the gradient of \"{s}\" holds a value that is not finite. Weights are " ++
                        "unchanged; the last checkpoint is good. Lower learning_rate ({e}).", .{ step, p.name, learning_rate });
                    return error.NonFinite;
                }
            }
            diag.set("step {d}: the gradient norm overflowed ({d}). Weights are unchanged; the last checkpoint " ++
                "is good. Lower learning_rate ({e}).", .{ step, grad_norm, learning_rate });
            return error.NonFinite;
        }

        /// One step of the optimizer, number `step` from 1, at this rate, after clipping by the norm.
        pub fn update(self: *Self, exec: *ops.Exec, config: *const LlmTrainingConfig, step: u64, rate: f64, grad_norm: f64) void {
            const max_norm = config.max_grad_norm;
            // torch: coefficient = max / (norm + 1e-6), clamped to 1, in the gradients' own precision.
            const norm: T = @floatCast(grad_norm);
            const coefficient: T = if (max_norm > 0) @min(@as(T, 1), @as(T, @floatCast(max_norm)) / (norm + 1e-6)) else 1;
            const moments = config.optimizer != .sgd;
            for (self.parameters) |p| {
                const decays = p.role.decays() and config.optimizer != .adam;
                ops.optimizer.step(T, exec, switch (config.optimizer) {
                    .sgd => .sgd,
                    .adam => .adam,
                    .adamw => .adamw,
                }, .{
                    .w = p.slice(T, self.values),
                    .g = p.sliceConst(T, self.gradients),
                    .m = if (moments) p.slice(T, self.first_moment) else &.{},
                    .v = if (moments) p.slice(T, self.second_moment) else &.{},
                    .lr = rate,
                    .beta1 = config.beta1,
                    .beta2 = config.beta2,
                    .eps = config.eps,
                    .weight_decay = if (decays and config.optimizer == .adamw) config.weight_decay else 0,
                    .step = step,
                    .grad_scale = coefficient,
                });
            }
        }
    };
}
