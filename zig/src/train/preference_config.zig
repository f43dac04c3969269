//! The table `dpo` of a run: how pairs of answers are learned, in TRL's words. JSON text to `DpoConfig` and back.
//!
//! An unknown key, a value of the wrong kind and a combination that means nothing are refused with the key, the value and
//! the rule, in the words Python uses for the same mistake.
//! Does not know: models, where the reference comes from, how a loss is computed (`preference.zig`).

const std = @import("std");
const base = @import("base");
const preference = @import("preference.zig");

const LossType = preference.LossType;

pub const Error = error{ InvalidConfiguration, OutOfMemory };

pub const DpoConfig = struct {
    /// How strongly the reference holds the model. Above 0.
    beta: f64 = 0.1,
    /// Losses that are added, each with its weight. Slice of the arena given to `parse`.
    terms: []const preference.Term = &.{.{ .type = .sigmoid }},
    /// True when weights were given; for the record only.
    weighted: bool = false,
    /// Share of pairs taken to be the wrong way round; only `robust` uses it. From 0 to below ½.
    label_smoothing: f64 = 0,
    /// Ask the reference once, before the first update, and let it go.
    precompute_ref_log_probs: bool = false,
    /// Another model as the reference: a folder or a `.gguf`.
    ref_model: ?[]const u8 = null,

    /// Numbers beyond are typing errors: a loss of such a size overflows, or teaches nothing.
    const smallest_beta = 1e-6;
    const largest = 1e6;

    const keys = [_][]const u8{ "beta", "loss_type", "loss_weights", "label_smoothing", "precompute_ref_log_probs", "ref_model" };

    pub fn lossOptions(self: DpoConfig) preference.Options {
        return .{ .beta = self.beta, .label_smoothing = self.label_smoothing, .terms = self.terms };
    }

    /// The configuration in a parsed JSON object; numbers may be parsed or not. Strings and terms live in `arena`.
    pub fn parse(arena: std.mem.Allocator, value: std.json.Value, diag: *base.Diagnostic) Error!DpoConfig {
        if (value != .object) return fail(diag, "the table dpo is not an object of settings", .{});
        var self: DpoConfig = .{};
        var types: []const LossType = &.{.sigmoid};
        var weights: ?[]const f64 = null;
        var entries = value.object.iterator();
        while (entries.next()) |entry| {
            const key = entry.key_ptr.*;
            const given = entry.value_ptr.*;
            if (is(key, "beta")) {
                self.beta = try number(given, "beta", diag);
            } else if (is(key, "loss_type")) {
                types = try lossTypes(arena, given, diag);
            } else if (is(key, "loss_weights")) {
                weights = try lossWeights(arena, given, diag);
            } else if (is(key, "label_smoothing")) {
                self.label_smoothing = try number(given, "label_smoothing", diag);
            } else if (is(key, "precompute_ref_log_probs")) {
                if (given != .bool) return fail(diag, "dpo.precompute_ref_log_probs must be true or false", .{});
                self.precompute_ref_log_probs = given.bool;
            } else if (is(key, "ref_model")) {
                self.ref_model = switch (given) {
                    .null => null,
                    .string => |path| if (path.len > 0) try arena.dupe(u8, path) else return fail(diag, "dpo.ref_model is empty; it must be a path or null", .{}),
                    else => return fail(diag, "dpo.ref_model must be a path or null", .{}),
                };
            } else return unknown(key, diag);
        }
        const terms = try arena.alloc(preference.Term, types.len);
        for (terms, types, 0..) |*term, loss_type, i| term.* = .{ .type = loss_type, .weight = if (weights) |w| blk: {
            if (w.len != types.len) return fail(
                diag,
                "dpo.loss_weights has {d} numbers; loss_type has {d} losses; give a weight for each",
                .{ w.len, types.len },
            );
            break :blk w[i];
        } else 1 };
        self.terms = terms;
        self.weighted = weights != null;
        try self.validate(diag);
        return self;
    }

    pub fn validate(self: DpoConfig, diag: *base.Diagnostic) error{InvalidConfiguration}!void {
        if (!(self.beta >= smallest_beta and self.beta <= largest))
            return fail(diag, "dpo.beta is {d}; it must be a finite number above 0, from 0.000001 to 1000000", .{self.beta});
        if (!(self.label_smoothing >= 0 and self.label_smoothing < 1))
            return fail(diag, "dpo.label_smoothing is {d}; it must be a finite number, at least 0 and below 1", .{self.label_smoothing});
        const robust = for (self.terms) |term| {
            if (term.type == .robust) break true;
        } else false;
        if (robust and self.label_smoothing >= 0.5)
            return fail(diag, "dpo.label_smoothing is {d}; with the loss robust it must be below 0.5", .{self.label_smoothing});
        if (!robust and self.label_smoothing > 0) return fail(
            diag,
            "dpo.label_smoothing is {d}; only the loss robust uses it; set it to 0, or loss_type to robust",
            .{self.label_smoothing},
        );
        var sum: f64 = 0;
        for (self.terms) |term| {
            if (!(term.weight >= 0 and term.weight <= largest))
                return fail(diag, "dpo.loss_weights has {d}; it must be one number from 0 to 1000000 for each loss of loss_type", .{term.weight});
            sum += term.weight;
        }
        if (sum == 0) return fail(diag, "dpo.loss_weights are all 0: nothing would be learned; give one above 0", .{});
    }

    /// What decides the numbers of a run and so must be the same when it is resumed, as one line of JSON.
    /// The same keys and order as Python's `DpoConfig.identity()`.
    pub fn writeIdentity(self: DpoConfig, json: *std.json.Stringify) std.json.Stringify.Error!void {
        try json.beginObject();
        try json.objectField("beta");
        try json.write(self.beta);
        try json.objectField("loss_type");
        try json.beginArray();
        for (self.terms) |term| try json.write(@tagName(term.type));
        try json.endArray();
        try json.objectField("loss_weights");
        if (self.weighted) {
            try json.beginArray();
            for (self.terms) |term| try json.write(term.weight);
            try json.endArray();
        } else try json.write(null);
        try json.objectField("label_smoothing");
        try json.write(self.label_smoothing);
        try json.endObject();
    }

    fn unknown(key: []const u8, diag: *base.Diagnostic) Error {
        const shown = key[0..@min(key.len, 60)];
        for (keys) |known| {
            const near = key.len >= 3 and @max(key.len, known.len) - @min(key.len, known.len) <= 3 and (std.mem.find(u8, known, key) != null or std.mem.find(u8, key, known) != null);
            if (near) return fail(diag, "\"{s}\" is not a key of the table dpo; did you mean \"{s}\"?", .{ shown, known });
        }
        return fail(diag, "\"{s}\" is not a key of the table dpo; known are beta, loss_type, loss_weights, " ++
            "label_smoothing, precompute_ref_log_probs and ref_model", .{shown});
    }
};

fn is(key: []const u8, name: []const u8) bool {
    return std.mem.eql(u8, key, name);
}

fn number(value: std.json.Value, name: []const u8, diag: *base.Diagnostic) Error!f64 {
    const parsed: f64 = switch (value) {
        .integer => |i| @floatFromInt(i),
        .float => |f| f,
        .number_string => |digits| std.fmt.parseFloat(f64, digits) catch std.math.nan(f64),
        else => return fail(diag, "dpo.{s} must be a number", .{name}),
    };
    if (!std.math.isFinite(parsed)) return fail(diag, "dpo.{s} must be a finite number", .{name});
    return parsed;
}

fn lossTypes(arena: std.mem.Allocator, value: std.json.Value, diag: *base.Diagnostic) Error![]const LossType {
    const one = [1]std.json.Value{value};
    const names: []const std.json.Value = switch (value) {
        .string => &one,
        .array => |list| list.items,
        else => return fail(diag, "dpo.loss_type must be the name of a loss, or a list of names", .{}),
    };
    if (names.len == 0) return fail(diag, "dpo.loss_type is empty; it must be one or more of " ++ known_losses, .{});
    const types = try arena.alloc(LossType, names.len);
    for (types, names, 0..) |*loss_type, name, i| {
        if (name != .string) return fail(diag, "dpo.loss_type must be the name of a loss, or a list of names", .{});
        loss_type.* = std.meta.stringToEnum(LossType, name.string) orelse return fail(
            diag,
            "dpo.loss_type is \"{s}\"; it must be one or more of " ++ known_losses,
            .{name.string[0..@min(name.string.len, 60)]},
        );
        for (types[0..i]) |before| if (before == loss_type.*)
            return fail(diag, "dpo.loss_type has {s} twice; each loss may stand once", .{name.string});
    }
    return types;
}

const known_losses = blk: {
    var text: []const u8 = "";
    for (@typeInfo(LossType).@"enum".field_names, 0..) |name, i| text = text ++ (if (i == 0) "" else ", ") ++ name;
    break :blk text;
};

fn lossWeights(arena: std.mem.Allocator, value: std.json.Value, diag: *base.Diagnostic) Error!?[]const f64 {
    switch (value) {
        .null => return null,
        .array => |list| {
            const weights = try arena.alloc(f64, list.items.len);
            for (weights, list.items) |*weight, item| weight.* = try number(item, "loss_weights", diag);
            return weights;
        },
        else => return fail(diag, "dpo.loss_weights must be a list of numbers or null", .{}),
    }
}

fn fail(diag: *base.Diagnostic, comptime format: []const u8, arguments: anytype) error{InvalidConfiguration} {
    diag.set(format, arguments);
    return error.InvalidConfiguration;
}

// ---- tests ----

const testing = std.testing;

fn parseText(arena: std.mem.Allocator, text: []const u8, diag: *base.Diagnostic) !DpoConfig {
    const value = try std.json.parseFromSliceLeaky(std.json.Value, arena, text, .{});
    return DpoConfig.parse(arena, value, diag);
}

test "an empty table is TRL's defaults" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    var diag: base.Diagnostic = .{};
    try testing.expectEqualDeep(DpoConfig{}, try parseText(arena.allocator(), "{}", &diag));
}

test "every key arrives, and the identity is what Python writes" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    var diag: base.Diagnostic = .{};
    const config = try parseText(arena.allocator(),
        \\{"beta": 0.25, "loss_type": ["robust", "sft"], "loss_weights": [1, 0.5], "label_smoothing": 0.1,
        \\ "precompute_ref_log_probs": true, "ref_model": "base"}
    , &diag);
    try testing.expectEqual(0.25, config.beta);
    try testing.expectEqualSlices(preference.Term, &.{ .{ .type = .robust }, .{ .type = .sft, .weight = 0.5 } }, config.terms);
    try testing.expect(config.precompute_ref_log_probs);
    try testing.expectEqualStrings("base", config.ref_model.?);
    var text: std.Io.Writer.Allocating = .init(testing.allocator);
    defer text.deinit();
    var json: std.json.Stringify = .{ .writer = &text.writer };
    try config.writeIdentity(&json);
    try testing.expectEqualStrings(
        \\{"beta":0.25,"loss_type":["robust","sft"],"loss_weights":[1,0.5],"label_smoothing":0.1}
    , text.written());
}

test "one loss may be a word, and numbers may come unparsed" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    var diag: base.Diagnostic = .{};
    const value = try std.json.parseFromSliceLeaky(std.json.Value, arena.allocator(), "{\"loss_type\": \"ipo\", \"beta\": 2e-1}", .{ .parse_numbers = false });
    const config = try DpoConfig.parse(arena.allocator(), value, &diag);
    try testing.expectEqual(LossType.ipo, config.terms[0].type);
    try testing.expectEqual(0.2, config.beta);
}

test "what is wrong is refused by name" {
    const cases = [_][2][]const u8{
        .{ "[]", "the table dpo is not an object" },
        .{ "{\"beta\": 0}", "dpo.beta is 0; it must be a finite number above 0" },
        .{ "{\"beta\": 1e300}", "dpo.beta is 1000" },
        .{ "{\"beta\": 1e-300}", "from 0.000001 to 1000000" },
        .{ "{\"loss_weights\": [0]}", "dpo.loss_weights are all 0" },
        .{ "{\"loss_weights\": [-1]}", "dpo.loss_weights has -1; it must be one number from 0" },
        .{ "{\"loss_weights\": [1e300]}", "from 0 to 1000000" },
        .{ "{\"beta\": \"x\"}", "dpo.beta must be a number" },
        .{ "{\"bet\": 1}", "\"bet\" is not a key of the table dpo; did you mean \"beta\"?" },
        .{ "{\"sync_ref_model\": true}", "\"sync_ref_model\" is not a key of the table dpo; known are" },
        .{ "{\"f_divergence_type\": 1}", "\"f_divergence_type\" is not a key of the table dpo; known are beta" },
        .{ "{\"loss_type\": \"kto\"}", "dpo.loss_type is \"kto\"; it must be one or more of sigmoid, hinge, ipo, robust, sft, sigmoid_norm, apo_zero" },
        .{ "{\"loss_type\": []}", "dpo.loss_type is empty" },
        .{ "{\"loss_type\": [\"ipo\", \"ipo\"]}", "dpo.loss_type has ipo twice" },
        .{ "{\"loss_type\": [\"ipo\"], \"loss_weights\": [1, 2]}", "dpo.loss_weights has 2 numbers; loss_type has 1 losses" },
        .{ "{\"loss_type\": \"robust\", \"label_smoothing\": 0.5}", "with the loss robust it must be below 0.5" },
        .{ "{\"label_smoothing\": 0.1}", "only the loss robust uses it" },
        .{ "{\"ref_model\": 3}", "dpo.ref_model must be a path or null" },
        .{ "{\"precompute_ref_log_probs\": 1}", "must be true or false" },
    };
    for (cases) |case| {
        var arena: std.heap.ArenaAllocator = .init(testing.allocator);
        defer arena.deinit();
        var diag: base.Diagnostic = .{};
        try testing.expectError(error.InvalidConfiguration, parseText(arena.allocator(), case[0], &diag));
        if (std.mem.find(u8, diag.text(), case[1]) == null) {
            std.debug.print("{s}: {s}\n", .{ case[0], diag.text() });
            return error.OtherWords;
        }
    }
}
