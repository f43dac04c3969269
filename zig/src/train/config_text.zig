//! `LlmTrainingConfig` as JSON text, and the JSON schema of it.
//!
//! `parseJson` accepts our names and, for the settings that mean the same there, the names of TRL and transformers
//! (`per_device_train_batch_size`, …). A key that is neither is an error with the nearest known name; a key given twice,
//! or under both names, is an error; so is a value of the wrong kind. Nothing is guessed.
//! `writeJson` writes every field with our names; what it writes parses back to the same values, to the bit.
//! YAML and TOML exist in Python only, which turns them into JSON and calls this: one reader decides what is valid.
//! Does not know: files, command lines.

const std = @import("std");
const base = @import("base");
const config_module = @import("config.zig");
const LlmTrainingConfig = config_module.LlmTrainingConfig;
const LrSchedule = config_module.LrSchedule;
const fields = config_module.fields;

pub const ParseError = error{ InvalidConfiguration, OutOfMemory };

/// A configuration whose strings live in its own arena.
pub const OwnedConfig = struct {
    arena: std.heap.ArenaAllocator,
    value: LlmTrainingConfig,

    pub fn deinit(self: *OwnedConfig) void {
        self.arena.deinit();
        self.* = undefined;
    }
};

/// The largest text `parseJson` looks at.
pub const max_text_bytes = 1 << 20;

/// Reads one JSON object, fields left out keep their defaults, and validates the result.
/// On `InvalidConfiguration` `diag` names the key, the value and the rule.
pub fn parseJson(gpa: std.mem.Allocator, json: []const u8, diag: *base.Diagnostic) ParseError!OwnedConfig {
    if (json.len > max_text_bytes)
        return fail(diag, "the configuration has {d} bytes; the most accepted is {d}", .{ json.len, max_text_bytes });
    var arena: std.heap.ArenaAllocator = .init(gpa);
    errdefer arena.deinit();

    var reader: Reader = .{ .arena = arena.allocator(), .diag = diag };
    try reader.readObject(json);
    try reader.config.validate(diag);
    return .{ .arena = arena, .value = reader.config };
}

const Reader = struct {
    arena: std.mem.Allocator,
    diag: *base.Diagnostic,
    config: LlmTrainingConfig = .{},
    /// The key that set each field, to tell a field given under two names.
    given: [fields.len]?[]const u8 = @splat(null),

    fn readObject(self: *Reader, json: []const u8) ParseError!void {
        const root = std.json.parseFromSliceLeaky(std.json.Value, self.arena, json, .{
            .duplicate_field_behavior = .@"error",
            .parse_numbers = false,
            .max_value_len = max_text_bytes,
        }) catch |err| switch (err) {
            error.OutOfMemory => return error.OutOfMemory,
            error.DuplicateField => return fail(self.diag, "the configuration has a key twice; remove one of them", .{}),
            error.UnexpectedEndOfInput => return fail(self.diag, "the configuration is cut off: its JSON ends too early", .{}),
            else => return fail(self.diag, "the configuration is not valid JSON", .{}),
        };
        if (root != .object) return fail(
            self.diag,
            "the configuration is {s}; it must be a JSON object of settings",
            .{describe(root)},
        );
        var schedule_type: ?[]const u8 = null;
        var entries = root.object.iterator();
        while (entries.next()) |entry| {
            const key = entry.key_ptr.*;
            if (std.mem.eql(u8, key, trl_schedule_key)) {
                if (entry.value_ptr.* != .string)
                    return self.wrongKind(key, entry.value_ptr.*, "the name of a schedule");
                schedule_type = entry.value_ptr.string;
            } else try self.setField(key, entry.value_ptr.*);
        }
        if (schedule_type) |name| try self.setTrlSchedule(name);
    }

    fn setField(self: *Reader, key: []const u8, value: std.json.Value) ParseError!void {
        inline for (fields, 0..) |info, i| {
            var known = std.mem.eql(u8, key, info.name);
            inline for (info.aliases) |alias| known = known or std.mem.eql(u8, key, alias);
            if (known) {
                if (self.given[i]) |other|
                    return fail(self.diag, "{s} and {s} are the same setting; give one of them", .{ other, key });
                self.given[i] = key;
                const T = @FieldType(LlmTrainingConfig, info.name);
                @field(self.config, info.name) = try self.convert(T, info.rule, key, value);
                return;
            }
        }
        if (nearest(key)) |near|
            return fail(self.diag, "unknown setting \"{s}\"; did you mean \"{s}\"?", .{ shown(key), near });
        return fail(self.diag, "unknown setting \"{s}\"; remove it, or see the list of settings in the schema", .{shown(key)});
    }

    fn convert(self: *Reader, comptime T: type, comptime rule: config_module.Rule, key: []const u8, value: std.json.Value) ParseError!T {
        switch (T) {
            u32, u64 => {
                const digits = switch (value) {
                    .number_string => |s| s,
                    else => return self.wrongKind(key, value, "a whole number"),
                };
                if (parseWhole(T, digits)) |number| return number;
                const below = rule.minimum != null and digits[0] == '-' and parseWhole(u64, digits[1..]) != null;
                return if (below) fail(self.diag, "{s} is {s}; {s}", .{ key, shown(digits), rule.words }) else fail(
                    self.diag,
                    "{s} is {s}; it must be a whole number from 0 to {d}",
                    .{ key, shown(digits), std.math.maxInt(T) },
                );
            },
            f64 => {
                const digits = switch (value) {
                    .number_string => |s| s,
                    else => return self.wrongKind(key, value, "a number"),
                };
                const number = std.fmt.parseFloat(f64, digits) catch
                    return self.wrongKind(key, value, "a number");
                if (!std.math.isFinite(number))
                    return fail(self.diag, "{s} is {s}; it must be a finite number", .{ key, shown(digits) });
                return number;
            },
            bool => return switch (value) {
                .bool => |b| b,
                else => self.wrongKind(key, value, "true or false"),
            },
            []const u8 => return switch (value) {
                .string => |s| s,
                else => self.wrongKind(key, value, "text"),
            },
            ?[]const u8 => return switch (value) {
                .string => |s| s,
                .null => null,
                else => self.wrongKind(key, value, "text or null"),
            },
            else => {
                const name = switch (value) {
                    .string => |s| s,
                    // TRL's key is a switch, and its packing is this one unless a strategy is named.
                    .bool => |on| if (T == config_module.Packing)
                        return if (on) .bfd else .none
                    else
                        return self.wrongKind(key, value, "one of " ++ comptime choices(T)),
                    else => return self.wrongKind(key, value, "one of " ++ comptime choices(T)),
                };
                // The two names of torch's own AdamW, which is what ours computes.
                if (T == config_module.Optimizer and (std.mem.eql(u8, name, "adamw_torch") or
                    std.mem.eql(u8, name, "adamw_torch_fused"))) return .adamw;
                return std.meta.stringToEnum(T, name) orelse
                    fail(self.diag, "{s} is \"{s}\"; it must be one of {s}", .{ key, shown(name), comptime choices(T) });
            },
        }
    }

    /// TRL's schedules with the same meaning here are taken over; the others are refused with what to write instead,
    /// because a silent near miss would train with another learning rate than the recipe says.
    fn setTrlSchedule(self: *Reader, name: []const u8) ParseError!void {
        if (self.wasGiven("lr_schedule"))
            return fail(self.diag, "lr_schedule and {s} are the same setting; give one of them", .{trl_schedule_key});
        if (std.mem.eql(u8, name, "constant")) {
            self.config.lr_schedule = .constant;
        } else if (std.mem.eql(u8, name, "cosine")) {
            // Without warm-up transformers' cosine is half a wave from the peak to 0 over the whole run.
            if (self.wasGiven("warmup_steps") and self.config.warmup_steps != 0) return fail(
                self.diag,
                "{s} is \"cosine\" with warmup_steps {d}: its first update has learning rate 0, ours do not. " ++
                    "Write lr_schedule: warmup_cosine, decay_steps: 0, min_learning_rate: 0",
                .{ trl_schedule_key, self.config.warmup_steps },
            );
            self.config.lr_schedule = .cosine;
            if (!self.wasGiven("decay_steps")) self.config.decay_steps = 0;
            if (!self.wasGiven("min_learning_rate")) self.config.min_learning_rate = 0;
        } else return fail(
            self.diag,
            "{s} is \"{s}\", which has no equal here. Write lr_schedule with one of {s}",
            .{ trl_schedule_key, shown(name), comptime choices(LrSchedule) },
        );
    }

    fn wasGiven(self: *const Reader, comptime name: []const u8) bool {
        inline for (fields, 0..) |info, i| {
            if (comptime std.mem.eql(u8, info.name, name)) return self.given[i] != null;
        }
        comptime unreachable;
    }

    fn wrongKind(self: *Reader, key: []const u8, value: std.json.Value, comptime wanted: []const u8) ParseError {
        return switch (value) {
            .string => |s| fail(self.diag, "{s} is the text \"{s}\"; it must be " ++ wanted, .{ key, shown(s) }),
            .number_string => |s| fail(self.diag, "{s} is the number {s}; it must be " ++ wanted, .{ key, shown(s) }),
            else => fail(self.diag, "{s} is {s}; it must be " ++ wanted, .{ key, describe(value) }),
        };
    }
};

const trl_schedule_key = "lr_scheduler_type";

/// JSON has one kind of number: 3, 3.0 and 3e0 are the same whole number.
fn parseWhole(comptime T: type, digits: []const u8) ?T {
    if (std.fmt.parseInt(T, digits, 10)) |n| return n else |err| switch (err) {
        error.Overflow => return null,
        error.InvalidCharacter => {},
    }
    const number = std.fmt.parseFloat(f64, digits) catch return null;
    // Above 2^53 a double no longer names one whole number.
    if (!(number >= 0 and number <= 1 << 53) or @floor(number) != number) return null;
    const whole: u64 = @trunc(number);
    return std.math.cast(T, whole);
}

fn describe(value: std.json.Value) []const u8 {
    return switch (value) {
        .null => "null",
        .bool => |b| if (b) "true" else "false",
        .integer, .float, .number_string => "a number",
        .string => "text",
        .array => "a list",
        .object => "an object",
    };
}

/// A value as it appears in a message: cut where it would crowd out the rule. Cuts between characters.
fn shown(value: []const u8) []const u8 {
    const limit = 80;
    if (value.len <= limit) return value;
    var end: usize = limit;
    while (end > 0 and value[end] & 0xc0 == 0x80) end -= 1;
    return value[0..end];
}

fn choices(comptime E: type) []const u8 {
    comptime {
        var list: []const u8 = "";
        for (@typeInfo(E).@"enum".field_names, 0..) |name, i| {
            list = list ++ (if (i == 0) "" else ", ") ++ name;
        }
        return list;
    }
}

/// The known key with the smallest edit distance, when it is close enough to be what was meant.
fn nearest(key: []const u8) ?[]const u8 {
    var best: ?[]const u8 = null;
    var best_distance: usize = std.math.maxInt(usize);
    inline for (fields) |info| {
        inline for ([_][]const u8{info.name} ++ info.aliases) |name| {
            const distance = editDistance(key, name);
            if (distance < best_distance) {
                best_distance = distance;
                best = name;
            }
        }
    }
    const d = editDistance(key, trl_schedule_key);
    if (d < best_distance) {
        best_distance = d;
        best = trl_schedule_key;
    }
    return if (best_distance <= @max(2, key.len / 3)) best else null;
}

const max_key_bytes = 64;

/// Insertions, deletions and replacements that turn `a` into `b`; "far" for a key longer than any of ours.
fn editDistance(a: []const u8, b: []const u8) usize {
    if (a.len > max_key_bytes or b.len > max_key_bytes) return std.math.maxInt(usize);
    var row: [max_key_bytes + 1]usize = undefined;
    for (0..b.len + 1) |j| row[j] = j;
    for (a, 1..) |ca, i| {
        var diagonal = row[0];
        row[0] = i;
        for (b, 1..) |cb, j| {
            const above = row[j];
            row[j] = @min(@min(above, row[j - 1]) + 1, diagonal + @intFromBool(ca != cb));
            diagonal = above;
        }
    }
    return row[b.len];
}

/// Every field under our name, in order, indented by two. Numbers have the fewest digits that read back to the bit.
pub fn writeJson(config: *const LlmTrainingConfig, writer: *std.Io.Writer) std.Io.Writer.Error!void {
    var out: std.json.Stringify = .{ .writer = writer, .options = .{ .whitespace = .indent_2 } };
    try out.beginObject();
    inline for (fields) |info| {
        try out.objectField(info.name);
        try writeValue(&out, @field(config, info.name));
    }
    try out.endObject();
}

fn writeValue(out: *std.json.Stringify, value: anytype) std.Io.Writer.Error!void {
    switch (@TypeOf(value)) {
        u32, u64, bool, []const u8, ?[]const u8 => try out.write(value),
        // JSON has no spelling for NaN or infinity; null then says "not a value" instead of breaking the reader.
        f64 => if (std.math.isFinite(value)) try writeReal(out, value) else try out.write(null),
        else => try out.write(@tagName(value)),
    }
}

/// The fewest digits that read back to the bit, always with a point or an exponent: 1.0, 0.999, 1e-5. Languages that
/// tell whole numbers from real ones then see which kind the setting is.
fn writeReal(out: *std.json.Stringify, value: f64) std.Io.Writer.Error!void {
    const size = @abs(value);
    if (size != 0 and (size < 1e-3 or size >= 1e15)) return out.print("{e}", .{value});
    if (@floor(value) == value) try out.print("{d}.0", .{value}) else try out.print("{d}", .{value});
}

/// JSON Schema (draft 2020-12) of the configuration object: types, defaults, bounds, and the rule in words under
/// `x-rule`; TRL's names for the setting under `x-aliases`; relations between fields under `x-relations`.
pub fn writeJsonSchema(writer: *std.Io.Writer) std.Io.Writer.Error!void {
    const defaults: LlmTrainingConfig = .{};
    var out: std.json.Stringify = .{ .writer = writer, .options = .{ .whitespace = .indent_2 } };
    try out.beginObject();
    try member(&out, "$schema", "https://json-schema.org/draft/2020-12/schema");
    try member(&out, "title", "LlmTrainingConfig");
    try member(&out, "type", "object");
    try member(&out, "additionalProperties", false);
    try out.objectField("properties");
    try out.beginObject();
    inline for (fields) |info| {
        const T = @FieldType(LlmTrainingConfig, info.name);
        try out.objectField(info.name);
        try out.beginObject();
        try writeType(&out, T);
        try out.objectField("default");
        try writeValue(&out, @field(defaults, info.name));
        if (T == u32 or T == u64) try member(&out, "minimum", @as(u64, @trunc(info.rule.minimum orelse 0.0)));
        if (T == f64) {
            try bound(&out, "minimum", info.rule.minimum);
            try bound(&out, "exclusiveMinimum", info.rule.exclusive_minimum);
            try bound(&out, "exclusiveMaximum", info.rule.exclusive_maximum);
        }
        if (T == u32 or T == u64) {
            try member(&out, "maximum", @as(T, std.math.maxInt(T)));
            if (info.rule.exclusive_maximum) |limit| try member(&out, "exclusiveMaximum", @as(u64, @trunc(limit)));
        }
        if (info.rule.text) try member(&out, "minLength", 1);
        try member(&out, "description", info.doc);
        if (info.rule.words.len > 0) try member(&out, "x-rule", info.rule.words);
        if (info.aliases.len > 0) try member(&out, "x-aliases", info.aliases);
        try out.endObject();
    }
    try out.endObject();
    try member(&out, "x-relations", @as([]const []const u8, &.{
        "min_learning_rate must not exceed learning_rate",
        "with lr_schedule warmup_cosine decay_steps must exceed warmup_steps or be 0",
        "batch_size times max_seq_len must be at most " ++
            std.fmt.comptimePrint("{d}", .{config_module.max_micro_batch_tokens}),
        "enable_tensorboard and enable_wandb need log_dir",
    }));
    try member(&out, "x-unsupported", @as([]const []const u8, &config_module.unsupported_fields));
    try out.endObject();
}

fn writeType(out: *std.json.Stringify, comptime T: type) std.Io.Writer.Error!void {
    switch (T) {
        u32, u64 => try member(out, "type", "integer"),
        f64 => try member(out, "type", "number"),
        bool => try member(out, "type", "boolean"),
        []const u8 => try member(out, "type", "string"),
        ?[]const u8 => try member(out, "type", @as([]const []const u8, &.{ "string", "null" })),
        else => {
            try member(out, "type", "string");
            try member(out, "enum", @as([]const []const u8, @typeInfo(T).@"enum".field_names));
        },
    }
}

fn member(out: *std.json.Stringify, name: []const u8, value: anytype) std.Io.Writer.Error!void {
    try out.objectField(name);
    try out.write(value);
}

fn bound(out: *std.json.Stringify, name: []const u8, value: ?f64) std.Io.Writer.Error!void {
    const given = value orelse return;
    try out.objectField(name);
    try writeReal(out, given);
}

fn fail(diag: *base.Diagnostic, comptime format: []const u8, arguments: anytype) error{InvalidConfiguration} {
    diag.set(format, arguments);
    return error.InvalidConfiguration;
}

const testing = std.testing;

fn expectRefused(json: []const u8, expected: []const u8) !void {
    var diag: base.Diagnostic = .{};
    try testing.expectError(error.InvalidConfiguration, parseJson(testing.allocator, json, &diag));
    try testing.expectEqualStrings(expected, diag.text());
}

test "the guide's configuration parses, what is left out keeps its default" {
    var diag: base.Diagnostic = .{};
    var owned = try parseJson(testing.allocator,
        \\{"epochs": 3, "batch_size": 4, "max_seq_len": 512, "learning_rate": 1e-5, "lr_schedule": "warmup_cosine",
        \\ "warmup_steps": 100, "optimizer": "adamw", "weight_decay": 0.01, "grad_accum_steps": 8,
        \\ "checkpoint_interval": 500, "checkpoint_path": "./checkpoints", "export_gguf_path": "./abbey.gguf"}
    , &diag);
    defer owned.deinit();

    try testing.expectEqual(3, owned.value.epochs);
    try testing.expectEqual(500, owned.value.checkpoint_interval);
    try testing.expectEqualStrings("./abbey.gguf", owned.value.export_gguf_path.?);
    try testing.expectEqual(0.999, owned.value.beta2);
}

test "TRL's names are accepted for what means the same" {
    var diag: base.Diagnostic = .{};
    var owned = try parseJson(testing.allocator,
        \\{"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "num_train_epochs": 2.0, "max_length": 64,
        \\ "logging_steps": 5, "save_steps": 7, "eval_steps": 9, "save_total_limit": 1, "adam_beta1": 0.8, "adam_beta2": 0.99,
        \\ "adam_epsilon": 1e-6, "label_smoothing_factor": 0.1, "lr_scheduler_type": "cosine",
        \\ "optim": "adamw_torch_fused", "output_dir": "run", "early_stopping_threshold": 0.5}
    , &diag);
    defer owned.deinit();

    const c = owned.value;
    try testing.expectEqual(2, c.batch_size);
    try testing.expectEqual(3, c.grad_accum_steps);
    try testing.expectEqual(2, c.epochs);
    try testing.expectEqual(64, c.max_seq_len);
    try testing.expectEqual(5, c.log_interval);
    try testing.expectEqual(7, c.checkpoint_interval);
    try testing.expectEqual(9, c.eval_interval);
    try testing.expectEqual(1, c.max_checkpoints);
    try testing.expectEqual(0.8, c.beta1);
    try testing.expectEqual(0.99, c.beta2);
    try testing.expectEqual(1e-6, c.eps);
    try testing.expectEqual(0.1, c.label_smoothing);
    try testing.expectEqual(LrSchedule.cosine, c.lr_schedule);
    try testing.expectEqual(0, c.decay_steps);
    try testing.expectEqual(0, c.min_learning_rate);
    try testing.expectEqual(config_module.Optimizer.adamw, c.optimizer);
    try testing.expectEqualStrings("run", c.checkpoint_path.?);
    try testing.expectEqual(0.5, c.early_stopping_min_delta);
}

test "a schedule of TRL with another meaning is refused with what to write" {
    try expectRefused(
        \\{"lr_scheduler_type": "cosine", "warmup_steps": 10}
    , "lr_scheduler_type is \"cosine\" with warmup_steps 10: its first update has learning rate 0, ours do not. " ++
        "Write lr_schedule: warmup_cosine, decay_steps: 0, min_learning_rate: 0");
    try expectRefused(
        \\{"lr_scheduler_type": "linear"}
    , "lr_scheduler_type is \"linear\", which has no equal here. Write lr_schedule with one of " ++
        "constant, cosine, warmup_cosine, step, polynomial, cosine_warm_restarts");
    try expectRefused(
        \\{"lr_scheduler_type": "constant", "lr_schedule": "step"}
    , "lr_schedule and lr_scheduler_type are the same setting; give one of them");
}

test "unknown keys come with the nearest known one" {
    try expectRefused("{\"lerning_rate\": 1}", "unknown setting \"lerning_rate\"; did you mean \"learning_rate\"?");
    try expectRefused("{\"batchsize\": 1}", "unknown setting \"batchsize\"; did you mean \"batch_size\"?");
    try expectRefused("{\"per_device_batch_size\": 1}", "unknown setting \"per_device_batch_size\"; did you mean \"per_device_train_batch_size\"?");
    try expectRefused("{\"zzzzzz\": 1}", "unknown setting \"zzzzzz\"; remove it, or see the list of settings in the schema");
}

test "wrong kinds are named with key and value" {
    try expectRefused("{\"epochs\": \"3\"}", "epochs is the text \"3\"; it must be a whole number");
    try expectRefused("{\"epochs\": 2.5}", "epochs is 2.5; it must be a whole number from 0 to 4294967295");
    try expectRefused("{\"epochs\": -1}", "epochs is -1; it must be at least 1");
    try expectRefused("{\"epochs\": 4294967296}", "epochs is 4294967296; it must be a whole number from 0 to 4294967295");
    try expectRefused("{\"learning_rate\": true}", "learning_rate is true; it must be a number");
    try expectRefused("{\"learning_rate\": 1e999}", "learning_rate is 1e999; it must be a finite number");
    try expectRefused("{\"shuffle\": 1}", "shuffle is the number 1; it must be true or false");
    try expectRefused("{\"checkpoint_path\": []}", "checkpoint_path is a list; it must be text or null");
    try expectRefused("{\"export_name\": null}", "export_name is null; it must be text");
    try expectRefused("{\"optimizer\": \"lion\"}", "optimizer is \"lion\"; it must be one of sgd, adam, adamw");
    try expectRefused("{\"optimizer\": 3}", "optimizer is the number 3; it must be one of sgd, adam, adamw");
    try expectRefused("{\"max_seq_len\": 0}", "max_seq_len is 0; it must be at least 1");
}

test "packing is a word, or TRL's switch" {
    inline for (.{ .{ "\"bfd\"", .bfd }, .{ "\"bfd_split\"", .bfd_split }, .{ "\"wrapped\"", .wrapped }, .{ "\"none\"", .none }, .{ "true", .bfd }, .{ "false", .none } }) |case| {
        var diag: base.Diagnostic = .{};
        var owned = try parseJson(testing.allocator, "{\"packing\": " ++ case[0] ++ "}", &diag);
        defer owned.deinit();

        try testing.expectEqual(case[1], owned.value.packing);
    }
    try expectRefused("{\"packing\": \"best\"}", "packing is \"best\"; it must be one of none, bfd, bfd_split, wrapped");
    try expectRefused("{\"packing\": 1}", "packing is the number 1; it must be one of none, bfd, bfd_split, wrapped");
    try expectRefused("{\"optimizer\": true}", "optimizer is true; it must be one of sgd, adam, adamw");
}

test "broken JSON, other roots and settings given twice are refused" {
    try expectRefused("[1]", "the configuration is a list; it must be a JSON object of settings");
    try expectRefused("{\"epochs\": 1", "the configuration is cut off: its JSON ends too early");
    try expectRefused("{\"epochs\" 1}", "the configuration is not valid JSON");
    try expectRefused("{\"epochs\": NaN}", "the configuration is not valid JSON");
    try expectRefused("{} {}", "the configuration is not valid JSON");
    try expectRefused("{\"epochs\": 1, \"epochs\": 2}", "the configuration has a key twice; remove one of them");
    try expectRefused("{\"epochs\": 1, \"num_train_epochs\": 2}", "epochs and num_train_epochs are the same setting; give one of them");
}

test "what is written reads back to the bit" {
    var diag: base.Diagnostic = .{};
    const config: LlmTrainingConfig = .{
        .learning_rate = 0.1 + 0.2,
        .min_learning_rate = 5e-324,
        .seed = std.math.maxInt(u64),
        .max_steps = (1 << 53) + 1,
        .lr_schedule = .cosine_warm_restarts,
        .checkpoint_path = "a \"b\"\n\u{e9}",
        .early_stopping = false,
    };
    var text: std.Io.Writer.Allocating = .init(testing.allocator);
    defer text.deinit();

    try writeJson(&config, &text.writer);
    var owned = try parseJson(testing.allocator, text.written(), &diag);
    defer owned.deinit();

    try testing.expectEqualDeep(config, owned.value);
}

test "real numbers are written as real numbers" {
    const cases = .{ .{ 1.0, "1.0" }, .{ 0.0, "0.0" }, .{ 1e-5, "1e-5" }, .{ 0.999, "0.999" }, .{ -2.5, "-2.5" }, .{ 1e15, "1e15" }, .{ 123456.0, "123456.0" } };
    inline for (cases) |case| {
        var buffer: [32]u8 = undefined;
        var w: std.Io.Writer = .fixed(&buffer);
        var out: std.json.Stringify = .{ .writer = &w };
        try writeReal(&out, case[0]);
        try testing.expectEqualStrings(case[1], w.buffered());
    }
}

test "damaged text gives a configuration or a sentence, never anything else" {
    const good = "{\"epochs\": 3, \"learning_rate\": 1e-5, \"checkpoint_path\": \"a\\u00e9\", \"lr_scheduler_type\": \"cosine\", \"shuffle\": true}";
    var prng: base.Prng = .init(5);
    for (0..2000) |_| {
        var text: [good.len]u8 = good.*;
        for (0..@intCast(prng.below(3))) |_| text[@intCast(prng.below(text.len))] = @truncate(prng.next());
        var diag: base.Diagnostic = .{};
        var owned = parseJson(testing.allocator, text[0..@intCast(text.len -| prng.below(3))], &diag) catch |err| {
            try testing.expectEqual(error.InvalidConfiguration, err);
            try testing.expect(diag.text().len > 0);
            continue;
        };
        defer owned.deinit();
        try owned.value.validate(&diag);
    }
}

test "the schema is valid JSON and has each field with its default" {
    var text: std.Io.Writer.Allocating = .init(testing.allocator);
    defer text.deinit();

    try writeJsonSchema(&text.writer);
    const parsed = try std.json.parseFromSlice(std.json.Value, testing.allocator, text.written(), .{});
    defer parsed.deinit();

    const properties = parsed.value.object.get("properties").?.object;
    try testing.expectEqual(fields.len, properties.count());
    const epochs = properties.get("epochs").?.object;
    try testing.expectEqual(10, epochs.get("default").?.integer);
    try testing.expectEqual(1, epochs.get("minimum").?.integer);
    try testing.expectEqualStrings("num_train_epochs", epochs.get("x-aliases").?.array.items[0].string);
    const optimizer = properties.get("optimizer").?.object;
    try testing.expectEqual(3, optimizer.get("enum").?.array.items.len);
    try testing.expectEqualStrings("adamw", optimizer.get("default").?.string);
    try testing.expect(properties.get("checkpoint_path").?.object.get("default").? == .null);
}

test "running out of memory anywhere leaks nothing" {
    try testing.checkAllAllocationFailures(testing.allocator, struct {
        fn run(gpa: std.mem.Allocator) !void {
            var diag: base.Diagnostic = .{};
            var owned = try parseJson(gpa, "{\"checkpoint_path\": \"x\\ny\", \"epochs\": 3}", &diag);
            owned.deinit();
        }
    }.run, .{});
}
