//! The table `lora` of a run: which adapter is trained, in PEFT's words, and where its first values come from.
//!
//! Sizes given beside `adapter` must be those of that adapter: a run goes on with what is there, or begins a new one.
//! Does not know: models, values, how an adapter computes.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const formats = @import("formats");
const checkpoint = @import("checkpoint");

const json = formats.json;

pub const Error = error{ InvalidConfiguration, OutOfMemory };

pub const LoraConfig = struct {
    settings: arch.LoraSettings = .{},
    /// Of the first A. Null: the run's seed.
    seed: ?u64 = null,
    /// A PEFT folder to begin with.
    adapter: ?[]const u8 = null,
    /// The table as it was given: with `adapter`, only what it names is compared.
    given: ?json.Object = null,

    const own_keys = [_][]const u8{ "r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "target_parameters", "rank_pattern", "alpha_pattern", "seed", "adapter" };

    /// The configuration in a parsed JSON object. Strings live in `arena`.
    pub fn parse(arena: std.mem.Allocator, value: std.json.Value, diag: *base.Diagnostic) Error!LoraConfig {
        if (value != .object) return fail(diag, "the table lora is not an object of settings", .{});
        const object = value.object;
        for (object.keys()) |key| {
            for (own_keys) |known| {
                if (std.mem.eql(u8, key, known)) break;
            } else return fail(diag, "lora.{s} is no setting; there are r, lora_alpha, lora_dropout, target_modules, target_parameters, use_rslora, " ++
                "rank_pattern, alpha_pattern, seed, adapter", .{key});
        }
        const settings = formats.adapter_config.fromObject(arena, object, .{}, diag) catch |err| return inTable(err, diag);
        settings.validate(diag) catch |err| return inTable(err, diag);
        return .{
            .settings = settings,
            .seed = try seedOf(object, diag),
            .adapter = json.getString(object, "adapter", diag) catch |err| return inTable(err, diag),
            .given = object,
        };
    }

    fn seedOf(object: json.Object, diag: *base.Diagnostic) Error!?u64 {
        const words = "lora.seed must be a whole number from 0, or null";
        return switch (json.get(object, "seed") orelse return null) {
            .integer => |i| std.math.cast(u64, i) orelse fail(diag, words, .{}),
            // Above 2⁶³ the reader keeps the digits.
            .number_string => |digits| std.fmt.parseInt(u64, digits, 10) catch fail(diag, words, .{}),
            else => fail(diag, words, .{}),
        };
    }

    /// The adapter a run begins with, on this model: that of the folder, or a first one. Caller calls `deinit(gpa)`.
    pub fn open(
        self: *const LoraConfig,
        comptime T: type,
        gpa: std.mem.Allocator,
        io: std.Io,
        model: checkpoint.adapter.BaseModel(T),
        run_seed: u64,
        diag: *base.Diagnostic,
    ) (checkpoint.adapter.Error || Error)!checkpoint.LoadedAdapter(T) {
        const path = self.adapter orelse return checkpoint.initAdapter(T, gpa, model.layout, self.settings, self.seed orelse run_seed, diag) catch |err| {
            diag.prepend("lora: ", .{});
            return err;
        };
        var adapter = try checkpoint.loadAdapter(T, gpa, io, path, model, diag);
        errdefer adapter.deinit(gpa);

        const object = self.given orelse return adapter;
        const arena = adapter.arena.allocator();
        const asked = formats.adapter_config.fromObject(arena, object, adapter.settings, diag) catch |err| return inTable(err, diag);
        var layout = asked.layoutFor(gpa, model.layout, diag) catch |err| {
            diag.prepend("lora: ", .{});
            return err;
        };
        defer layout.deinit();

        requireSame(&asked, &layout, &adapter.settings, &adapter.layout, "adapter", path, diag) catch return error.InvalidConfiguration;
        // How much is dropped is a matter of this run, and not of what the adapter is.
        adapter.settings.lora_dropout = asked.lora_dropout;
        return adapter;
    }
};

/// Compares what two adapters are: modules, ranks, scales. `diag` names the first setting that differs.
pub fn requireSame(
    now: *const arch.LoraSettings,
    now_layout: *const arch.AdapterLayout,
    saved: *const arch.LoraSettings,
    saved_layout: *const arch.AdapterLayout,
    what: []const u8,
    path: []const u8,
    diag: *base.Diagnostic,
) error{AnotherAdapter}!void {
    if (now_layout.sameAs(saved_layout)) return;
    inline for (.{ "r", "lora_alpha", "use_rslora" }) |name| {
        const is = @field(now, name);
        const was = @field(saved, name);
        if (is != was) return differs(diag, "lora." ++ name ++ " is {any}, but the {s} {s} has {any}. Leave it out to go on with " ++
            "that one, or merge it and train a new adapter", .{ is, what, path, was });
    }
    for (saved_layout.modules) |m| {
        const other = now_layout.get(m.layer, m.target) orelse
            return differs(diag, "lora.target_modules leaves out {s}, on which the {s} {s} sits. Name the same modules", .{ m.path, what, path });
        if (other.rank != m.rank or other.scale != m.scale) return differs(
            diag,
            "lora: {s} has rank {d} and alpha {d}, but the {s} {s} has {d} and {d}. Use the same rank_pattern and alpha_pattern",
            .{ m.path, other.rank, other.alpha, what, path, m.rank, m.alpha },
        );
    }
    return differs(diag, "lora.target_modules names {d} modules; the {s} {s} sits on {d}. Name the same modules", .{ now_layout.modules.len, what, path, saved_layout.modules.len });
}

fn differs(diag: *base.Diagnostic, comptime fmt: []const u8, args: anytype) error{AnotherAdapter} {
    diag.set(fmt, args);
    return error.AnotherAdapter;
}

fn inTable(err: anyerror, diag: *base.Diagnostic) Error {
    if (err == error.OutOfMemory) return error.OutOfMemory;
    diag.prepend("lora: ", .{});
    return error.InvalidConfiguration;
}

fn fail(diag: *base.Diagnostic, comptime fmt: []const u8, args: anytype) error{InvalidConfiguration} {
    diag.set(fmt, args);
    return error.InvalidConfiguration;
}

const testing = std.testing;

fn parseText(arena: std.mem.Allocator, text: []const u8, diag: *base.Diagnostic) !LoraConfig {
    return LoraConfig.parse(arena, try json.parse(arena, text, .{}, diag), diag);
}

test "settings, seed and adapter are read; what is left out has its default" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();

    var diag: base.Diagnostic = .{};
    const a = arena.allocator();
    const fresh = try parseText(a, "{}", &diag);
    try testing.expectEqual(8, fresh.settings.r);
    try testing.expectEqual(16, fresh.settings.lora_alpha);
    try testing.expectEqual(4, fresh.settings.target_modules.len);
    const full = try parseText(a, "{\"r\": 2, \"seed\": 18446744073709551615, \"adapter\": \"a/b\", \"rank_pattern\": {\"q_proj\": 1}}", &diag);
    try testing.expectEqual(std.math.maxInt(u64), full.seed.?);
    try testing.expectEqualStrings("a/b", full.adapter.?);
    try testing.expectEqual(1, full.settings.rank_pattern[0].value);
}

test "unknown keys and wrong values are refused by name" {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();

    const cases = [_][2][]const u8{
        .{ "{\"rank\": 2}", "lora.rank is no setting" },
        .{ "{\"r\": 0}", "lora: r is 0" },
        .{ "{\"seed\": -1}", "lora.seed must be" },
        .{ "{\"seed\": 1.5}", "lora.seed must be" },
        .{ "{\"use_rslora\": 1}", "\"use_rslora\" must be true or false" },
        .{ "[]", "the table lora is not an object" },
    };
    for (cases) |case| {
        var diag: base.Diagnostic = .{};
        try testing.expectError(error.InvalidConfiguration, parseText(arena.allocator(), case[0], &diag));
        try testing.expect(std.mem.find(u8, diag.text(), case[1]) != null);
    }
}
