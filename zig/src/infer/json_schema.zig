//! A JSON schema as a grammar of the JSON texts it allows (automaton.zig).
//!
//! What is allowed is never more than the schema allows, and in places less: properties come in the schema's order and no others come
//! beside them, there is at most one space behind ',' and ':' and none elsewhere, numbers have at most 15 digits before and after the
//! point. A keyword that is not understood is refused by its name and place: passing it over would promise what is not kept.
//! Does not know: tokens, models.

const std = @import("std");
const base = @import("base");
const automaton = @import("automaton.zig");
const Allocator = std.mem.Allocator;
const Value = std.json.Value;
const Id = automaton.Id;
const Range = automaton.Range;

pub const Error = error{
    OutOfMemory,
    /// No JSON, or no schema.
    InvalidSchema,
    /// A keyword, or a use of one, that is not understood here.
    UnsupportedSchema,
};

/// Longest text of a schema.
pub const max_bytes = 1 << 20;

/// Of a number: before the point, and behind it.
const digits_max = 15;

/// `diag` names the place as a JSON pointer, the keyword and the next move. The grammar lives in `arena`.
pub fn compile(arena: Allocator, text: []const u8, diag: *base.Diagnostic) Error!automaton.Grammar {
    if (text.len > max_bytes) {
        diag.set("the JSON schema has {d} bytes; at most {d} are read. Make it smaller", .{ text.len, max_bytes });
        return error.UnsupportedSchema;
    }
    var scanner: std.json.Scanner = .initCompleteInput(arena, text);
    var where: std.json.Diagnostics = .{};
    scanner.enableDiagnostics(&where);
    const root = std.json.parseFromTokenSourceLeaky(Value, arena, &scanner, .{ .parse_numbers = false }) catch |err| switch (err) {
        error.OutOfMemory => return error.OutOfMemory,
        error.DuplicateField => {
            diag.set("the JSON schema, line {d}: a name is there twice. Leave one out", .{where.getLine()});
            return error.InvalidSchema;
        },
        else => {
            diag.set("the JSON schema is no JSON: line {d}, column {d}", .{ where.getLine(), where.getColumn() });
            return error.InvalidSchema;
        },
    };
    const held = try arena.create(Value);
    held.* = root;
    var compiler: Compiler = .{ .arena = arena, .diag = diag, .root = held };
    return compiler.run();
}

const annotations = [_][]const u8{ "title", "description", "default", "examples", "$schema", "$id", "$comment", "deprecated", "readOnly", "writeOnly", "$defs", "definitions" };
const understood = [_][]const u8{ "type", "enum", "const", "properties", "required", "additionalProperties", "items", "minItems", "maxItems", "minLength", "maxLength", "anyOf", "$ref" };

const Kind = enum { null, boolean, integer, number, string, array, object };
const Kinds = std.EnumSet(Kind);

/// What a rule is made of.
const Source = union(enum) {
    schema: *const Value,
    /// Any value at all.
    anything,
    string: Bounds,
};

const Bounds = struct { least: u32 = 0, most: u32 = std.math.maxInt(u32) };

const Pending = struct {
    source: Source,
    /// The place in the schema, as a JSON pointer.
    place: []const u8,
    /// A node made for it beforehand, so that others can name it.
    node: Id,
};

const Compiler = struct {
    arena: Allocator,
    diag: *base.Diagnostic,
    root: *const Value,
    nodes: std.ArrayList(automaton.Node) = .empty,
    rules: std.AutoHashMapUnmanaged(Source, Id) = .empty,
    pending: std.ArrayList(Pending) = .empty,
    place: []const u8 = "",

    fn run(self: *Compiler) Error!automaton.Grammar {
        _ = try self.add(.done);
        const start = try self.ruleOf(.{ .schema = self.root }, "#");
        while (self.pending.pop()) |next| {
            self.place = next.place;
            const body = switch (next.source) {
                .schema => |value| try self.schemaOf(value),
                .anything => try self.anyValue(),
                .string => |bounds| try self.stringBody(bounds),
            };
            self.nodes.items[next.node] = .{ .split = try self.arena.dupe(Id, &.{body}) };
        }
        const grammar: automaton.Grammar = .{ .nodes = self.nodes.items, .start = start };
        if (!try automaton.prune(self.arena, grammar)) {
            self.diag.set("the JSON schema asks for a value that contains itself without end. Make a property on the way optional, or give another choice in anyOf", .{});
            return error.UnsupportedSchema;
        }
        return grammar;
    }

    fn fail(self: *Compiler, err: Error, comptime format: []const u8, arguments: anytype) Error {
        self.diag.set("the JSON schema at {s}: " ++ format, .{self.place} ++ arguments);
        return err;
    }

    const done: Id = 0;

    fn add(self: *Compiler, node: automaton.Node) error{OutOfMemory}!Id {
        try self.nodes.append(self.arena, node);
        return @intCast(self.nodes.items.len - 1);
    }

    /// The node where the rule of `source` begins; made later when it is new.
    fn ruleOf(self: *Compiler, source: Source, place: []const u8) error{OutOfMemory}!Id {
        const entry = try self.rules.getOrPut(self.arena, source);
        if (!entry.found_existing) {
            entry.value_ptr.* = try self.add(.done); // Replaced when it is its turn.
            try self.pending.append(self.arena, .{ .source = source, .place = place, .node = entry.value_ptr.* });
        }
        return entry.value_ptr.*;
    }

    fn callOf(self: *Compiler, source: Source, place: []const u8, next: Id) error{OutOfMemory}!Id {
        return self.add(.{ .call = .{ .rule = try self.ruleOf(source, place), .next = next } });
    }

    fn splitOf(self: *Compiler, choices: []const Id) error{OutOfMemory}!Id {
        return self.add(.{ .split = try self.arena.dupe(Id, choices) });
    }

    fn ranges(self: *Compiler, list: []const Range) error{OutOfMemory}!Id {
        return self.add(.{ .bytes = try self.arena.dupe(Range, list) });
    }

    fn literal(self: *Compiler, text: []const u8, next: Id) error{OutOfMemory}!Id {
        var at = next;
        var i = text.len;
        while (i > 0) {
            i -= 1;
            at = try self.ranges(&.{.{ .low = text[i], .high = text[i], .to = at }});
        }
        return at;
    }

    /// `text`, and a space that may be there or not.
    fn mark(self: *Compiler, text: []const u8, next: Id) error{OutOfMemory}!Id {
        return self.literal(text, try self.splitOf(&.{ next, try self.literal(" ", next) }));
    }

    fn below(self: *Compiler, comptime format: []const u8, arguments: anytype) error{OutOfMemory}![]const u8 {
        return std.fmt.allocPrint(self.arena, "{s}/" ++ format, .{self.place} ++ arguments);
    }

    // ---- schemas ----

    fn schemaOf(self: *Compiler, value: *const Value) Error!Id {
        const object = switch (value.*) {
            .object => |o| o,
            .bool => |yes| {
                if (yes) return self.anyValue();
                return self.fail(error.UnsupportedSchema, "false allows no value at all. Leave the place out", .{});
            },
            else => return self.fail(error.InvalidSchema, "a schema must be an object, or true", .{}),
        };
        for (object.keys()) |name| {
            if (isOneOf(name, &annotations)) {
                if (std.mem.eql(u8, name, "$id") and value != self.root) return self.fail(error.UnsupportedSchema, "$id is understood at the top only", .{});
                continue;
            }
            if (!isOneOf(name, &understood))
                return self.fail(error.UnsupportedSchema, "the keyword {f} is not supported. Leave it out, or check it afterwards", .{base.bytes.printable(name)});
        }
        if (object.get("$ref")) |ref| {
            try self.alone(object, "$ref");
            return self.reference(ref);
        }
        if (object.getPtr("anyOf")) |list| {
            try self.alone(object, "anyOf");
            if (list.* != .array or list.array.items.len == 0) return self.fail(error.InvalidSchema, "anyOf must be a list of schemas", .{});
            var choices: std.ArrayList(Id) = .empty;
            for (list.array.items, 0..) |*item, i| try choices.append(self.arena, try self.callOf(.{ .schema = item }, try self.below("anyOf/{d}", .{i}), done));
            return self.splitOf(choices.items);
        }
        const kinds = try self.kindsOf(object);
        if (object.get("enum")) |list| {
            if (list != .array) return self.fail(error.InvalidSchema, "enum must be a list", .{});
            return self.givenValues(object, "enum", list.array.items, kinds);
        }
        if (object.get("const")) |only| return self.givenValues(object, "const", &.{only}, kinds);

        var choices: std.ArrayList(Id) = .empty;
        for (std.enums.values(Kind)) |kind| if (kinds.contains(kind)) {
            // Every integer is a number.
            if (kind == .integer and kinds.contains(.number)) continue;
            try choices.append(self.arena, switch (kind) {
                .null => try self.literal("null", done),
                .boolean => try self.splitOf(&.{ try self.literal("true", done), try self.literal("false", done) }),
                .integer => try self.numberOf(false),
                .number => try self.numberOf(true),
                .string => try self.literal("\"", try self.callOf(.{ .string = try self.limitsOf(object, "minLength", "maxLength") }, self.place, done)),
                .array => try self.arrayOf(object),
                .object => try self.objectOf(object),
            });
        };
        return self.splitOf(choices.items);
    }

    /// Refuses keywords beside `name` that would have to be checked as well.
    fn alone(self: *Compiler, object: std.json.ObjectMap, comptime name: []const u8) Error!void {
        for (object.keys()) |other| {
            if (std.mem.eql(u8, other, name) or isOneOf(other, &annotations)) continue;
            return self.fail(error.UnsupportedSchema, "{s} beside " ++ name ++ " is not supported. Put it into the schema that " ++ name ++ " names", .{other});
        }
    }

    fn kindsOf(self: *Compiler, object: std.json.ObjectMap) Error!Kinds {
        const wanted = object.get("type") orelse return self.kindsImplied(object);
        var kinds: Kinds = .empty;
        const names: []const Value = if (wanted == .array) wanted.array.items else &.{wanted};
        for (names) |name| {
            const kind = if (name == .string) std.meta.stringToEnum(Kind, name.string) else null;
            kinds.insert(kind orelse return self.fail(error.InvalidSchema, "type must be of null, boolean, integer, number, string, array and object", .{}));
        }
        if (kinds.count() == 0) return self.fail(error.InvalidSchema, "type is an empty list; no value has none", .{});
        return kinds;
    }

    /// Where no type is given: that of the keywords about one type alone, else all.
    fn kindsImplied(self: *Compiler, object: std.json.ObjectMap) Error!Kinds {
        var kinds: Kinds = .empty;
        inline for (.{
            .{ Kind.object, &.{ "properties", "required", "additionalProperties" } },
            .{ Kind.array, &.{ "items", "minItems", "maxItems" } },
            .{ Kind.string, &.{ "minLength", "maxLength" } },
        }) |group| inline for (group[1]) |name| if (object.contains(name)) kinds.insert(group[0]);
        if (kinds.count() > 1) return self.fail(error.UnsupportedSchema, "there are keywords about several types. Say which with type", .{});
        return if (kinds.count() == 1) kinds else .full;
    }

    /// Refuses what would have to be checked about given values.
    fn givenValues(self: *Compiler, object: std.json.ObjectMap, comptime keyword: []const u8, list: []const Value, kinds: Kinds) Error!Id {
        for (object.keys()) |other| {
            if (std.mem.eql(u8, other, keyword) or std.mem.eql(u8, other, "type") or isOneOf(other, &annotations)) continue;
            return self.fail(error.UnsupportedSchema, "{s} beside " ++ keyword ++ " is not supported. Leave it out", .{other});
        }
        const given = if (object.contains("type")) kinds else Kinds.full;
        var choices: std.ArrayList(Id) = .empty;
        for (list) |value| {
            if (!isOf(value, given)) continue;
            var text: std.Io.Writer.Allocating = .init(self.arena);
            std.json.Stringify.value(value, .{}, &text.writer) catch return error.OutOfMemory;
            try choices.append(self.arena, try self.literal(text.written(), done));
        }
        if (choices.items.len == 0) return self.fail(error.InvalidSchema, keyword ++ " leaves no value of the type. Give at least one", .{});
        return self.splitOf(choices.items);
    }

    fn isOf(value: Value, kinds: Kinds) bool {
        return switch (value) {
            .null => kinds.contains(.null),
            .bool => kinds.contains(.boolean),
            .number_string => |text| kinds.contains(.number) or (kinds.contains(.integer) and std.mem.findAny(u8, text, ".eE") == null),
            .string => kinds.contains(.string),
            .array => kinds.contains(.array),
            .object => kinds.contains(.object),
            .integer, .float => unreachable, // Numbers are left as they are written.
        };
    }

    /// Within the same document: "#", or "#/" and names with "~1" for "/" and "~0" for "~".
    fn reference(self: *Compiler, ref: Value) Error!Id {
        if (ref != .string) return self.fail(error.InvalidSchema, "$ref must be a string", .{});
        const shown = base.bytes.printable(ref.string);
        if (!std.mem.startsWith(u8, ref.string, "#"))
            return self.fail(error.UnsupportedSchema, "$ref to {f}: only places in the same schema can be named, as #/$defs/name", .{shown});
        var at = self.root;
        var parts = std.mem.splitScalar(u8, ref.string[1..], '/');
        if (parts.first().len > 0) return self.fail(error.UnsupportedSchema, "$ref to {f}: only places can be named, as #/$defs/name", .{shown});
        while (parts.next()) |part| {
            const percent = try self.arena.dupe(u8, part);
            const tilde = try std.mem.replaceOwned(u8, self.arena, std.Uri.percentDecodeInPlace(percent), "~1", "/");
            const name = try std.mem.replaceOwned(u8, self.arena, tilde, "~0", "~");
            at = switch (at.*) {
                .object => |*o| o.getPtr(name),
                .array => |a| blk: {
                    const i = std.fmt.parseInt(usize, name, 10) catch break :blk null;
                    break :blk if (i < a.items.len) &a.items[i] else null;
                },
                else => null,
            } orelse return self.fail(error.InvalidSchema, "$ref to {f}: there is no such place", .{shown});
        }
        return self.callOf(.{ .schema = at }, ref.string, done);
    }

    fn limitsOf(self: *Compiler, object: std.json.ObjectMap, comptime least: []const u8, comptime most: []const u8) Error!Bounds {
        var found: Bounds = .{};
        if (object.get(least)) |value| found.least = try self.whole(value, least);
        if (object.get(most)) |value| found.most = try self.whole(value, most);
        if (found.least > found.most) return self.fail(error.InvalidSchema, least ++ " is {d} and " ++ most ++ " {d}; no value has both", .{ found.least, found.most });
        return found;
    }

    fn whole(self: *Compiler, value: Value, comptime name: []const u8) Error!u32 {
        if (value == .number_string) {
            const number_ = std.fmt.parseFloat(f64, value.number_string) catch std.math.nan(f64);
            if (number_ >= 0 and number_ <= 1 << 30 and @trunc(number_) == number_) return @intFromFloat(number_);
        }
        return self.fail(error.InvalidSchema, name ++ " must be a whole number from 0 to {d}", .{1 << 30});
    }

    // ---- values ----

    fn anyValue(self: *Compiler) Error!Id {
        const place = self.place;
        return self.splitOf(&.{
            try self.literal("null", done),
            try self.literal("true", done),
            try self.literal("false", done),
            try self.numberOf(true),
            try self.literal("\"", try self.callOf(.{ .string = .{} }, place, done)),
            try self.listOf(.anything, place, .{}),
            try self.mapOf(.anything, place),
        });
    }

    /// At most `digits_max` digits before the point and behind it, two of an exponent.
    fn numberOf(self: *Compiler, has_fraction: bool) Error!Id {
        var end: Id = done;
        if (has_fraction) {
            const exponent_digits = try self.digitsOf(2, done);
            const sign = try self.ranges(&.{ .{ .low = '+', .high = '+', .to = exponent_digits }, .{ .low = '-', .high = '-', .to = exponent_digits } });
            const signed = try self.splitOf(&.{ sign, exponent_digits });
            const exponent = try self.ranges(&.{ .{ .low = 'E', .high = 'E', .to = signed }, .{ .low = 'e', .high = 'e', .to = signed } });
            const after = try self.splitOf(&.{ done, exponent });
            end = try self.splitOf(&.{ after, try self.literal(".", try self.digitsOf(digits_max, after)) });
        }
        var more = end;
        for (1..digits_max) |_| more = try self.splitOf(&.{ end, try self.ranges(&.{.{ .low = '0', .high = '9', .to = more }}) });
        const positive = try self.ranges(&.{ .{ .low = '0', .high = '0', .to = end }, .{ .low = '1', .high = '9', .to = more } });
        return self.splitOf(&.{ positive, try self.literal("-", positive) });
    }

    /// One to `most` digits.
    fn digitsOf(self: *Compiler, most: usize, next: Id) Error!Id {
        var more = next;
        for (1..most) |_| more = try self.splitOf(&.{ next, try self.ranges(&.{.{ .low = '0', .high = '9', .to = more }}) });
        return self.ranges(&.{.{ .low = '0', .high = '9', .to = more }});
    }

    /// Behind the opening quote, the closing one included. Characters are counted as Unicode's.
    fn stringBody(self: *Compiler, limits: Bounds) Error!Id {
        const again = try self.add(.done); // Replaced below.
        const quote = try self.literal("\"", done);
        const end = if (limits.least == 0) quote else try self.add(.{ .enough = .{ .least = limits.least, .next = quote } });
        const next = try self.counted(limits, try self.character(again));
        const choices: []const Id = if (limits.most == 0) &.{end} else &.{ end, next };
        self.nodes.items[again] = .{ .split = try self.arena.dupe(Id, choices) };
        return again;
    }

    /// One character: UTF-8, or an escape. Surrogates are not written: every other character can be.
    fn character(self: *Compiler, next: Id) Error!Id {
        const one = try self.ranges(&.{.{ .low = 0x80, .high = 0xBF, .to = next }});
        const two = try self.ranges(&.{.{ .low = 0x80, .high = 0xBF, .to = one }});
        const three = try self.ranges(&.{.{ .low = 0x80, .high = 0xBF, .to = two }});
        const after_e0 = try self.ranges(&.{.{ .low = 0xA0, .high = 0xBF, .to = one }});
        const after_ed = try self.ranges(&.{.{ .low = 0x80, .high = 0x9F, .to = one }});
        const after_f0 = try self.ranges(&.{.{ .low = 0x90, .high = 0xBF, .to = two }});
        const after_f4 = try self.ranges(&.{.{ .low = 0x80, .high = 0x8F, .to = two }});
        const hex = [_]Range{ .{ .low = '0', .high = '9', .to = 0 }, .{ .low = 'A', .high = 'F', .to = 0 }, .{ .low = 'a', .high = 'f', .to = 0 } };
        var rest = next;
        for (0..2) |_| rest = try self.ranges(&.{ withTo(hex[0], rest), withTo(hex[1], rest), withTo(hex[2], rest) });
        const third = try self.ranges(&.{ withTo(hex[0], rest), withTo(hex[1], rest), withTo(hex[2], rest) });
        const after_d = try self.ranges(&.{.{ .low = '0', .high = '7', .to = rest }});
        const unicode = try self.ranges(&.{
            .{ .low = '0', .high = '9', .to = third }, .{ .low = 'A', .high = 'C', .to = third }, .{ .low = 'D', .high = 'D', .to = after_d },
            .{ .low = 'E', .high = 'F', .to = third }, .{ .low = 'a', .high = 'c', .to = third }, .{ .low = 'd', .high = 'd', .to = after_d },
            .{ .low = 'e', .high = 'f', .to = third },
        });
        var escapes: [9]Range = undefined;
        for ("\"\\/bfnrt", escapes[0..8]) |c, *range| range.* = .{ .low = c, .high = c, .to = next };
        escapes[8] = .{ .low = 'u', .high = 'u', .to = unicode };
        return self.ranges(&.{
            .{ .low = 0x20, .high = '"' - 1, .to = next },
            .{ .low = '"' + 1, .high = '\\' - 1, .to = next },
            .{ .low = '\\', .high = '\\', .to = try self.ranges(&escapes) },
            .{ .low = '\\' + 1, .high = 0x7F, .to = next },
            .{ .low = 0xC2, .high = 0xDF, .to = one },
            .{ .low = 0xE0, .high = 0xE0, .to = after_e0 },
            .{ .low = 0xE1, .high = 0xEC, .to = two },
            .{ .low = 0xED, .high = 0xED, .to = after_ed },
            .{ .low = 0xEE, .high = 0xEF, .to = two },
            .{ .low = 0xF0, .high = 0xF0, .to = after_f0 },
            .{ .low = 0xF1, .high = 0xF3, .to = three },
            .{ .low = 0xF4, .high = 0xF4, .to = after_f4 },
        });
    }

    fn withTo(range: Range, to: Id) Range {
        return .{ .low = range.low, .high = range.high, .to = to };
    }

    fn arrayOf(self: *Compiler, object: std.json.ObjectMap) Error!Id {
        const limits = try self.limitsOf(object, "minItems", "maxItems");
        if (object.getPtr("items")) |items| return self.listOf(.{ .schema = items }, try self.below("items", .{}), limits);
        return self.listOf(.anything, self.place, limits);
    }

    fn listOf(self: *Compiler, item: Source, place: []const u8, limits: Bounds) Error!Id {
        const close = try self.literal("]", done);
        if (limits.most == 0) return self.literal("[", close);
        const after = try self.add(.done); // Replaced below.
        const element = try self.callOf(item, place, after);
        const one = try self.counted(limits, element);
        const enough = if (limits.least > 0) try self.add(.{ .enough = .{ .least = limits.least, .next = close } }) else close;
        // Counted before the comma: behind it there must be room for another.
        const another = try self.counted(limits, try self.mark(",", element));
        self.nodes.items[after] = .{ .split = try self.arena.dupe(Id, &.{ enough, another }) };
        const first = if (limits.least > 0) one else try self.splitOf(&.{ close, one });
        return self.literal("[", first);
    }

    /// `next`, once more.
    fn counted(self: *Compiler, limits: Bounds, next: Id) error{OutOfMemory}!Id {
        const has_most = limits.most < std.math.maxInt(u32);
        if (!has_most and limits.least == 0) return next;
        return self.add(.{ .more = .{ .most = limits.most, .cap = if (has_most) limits.most else limits.least, .next = next } });
    }

    /// An object of any names with values of one kind.
    fn mapOf(self: *Compiler, value: Source, place: []const u8) Error!Id {
        const close = try self.literal("}", done);
        const after = try self.add(.done); // Replaced below.
        const colon = try self.mark(":", try self.callOf(value, place, after));
        const member = try self.literal("\"", try self.callOf(.{ .string = .{} }, place, colon));
        const another = try self.mark(",", member);
        self.nodes.items[after] = .{ .split = try self.arena.dupe(Id, &.{ close, another }) };
        return self.literal("{", try self.splitOf(&.{ close, member }));
    }

    const Property = struct { name: []const u8, value: Source, place: []const u8, is_required: bool };

    fn objectOf(self: *Compiler, object: std.json.ObjectMap) Error!Id {
        // What any other name has: null where there is none.
        var others: ?Source = .anything;
        var others_place = self.place;
        if (object.getPtr("additionalProperties")) |value| {
            others_place = try self.below("additionalProperties", .{});
            others = if (value.* == .bool) (if (value.bool) .anything else null) else .{ .schema = value };
        }
        var list_: std.ArrayList(Property) = .empty;
        if (object.getPtr("properties")) |value| {
            if (value.* != .object) return self.fail(error.InvalidSchema, "properties must be an object", .{});
            for (value.object.keys(), value.object.values()) |name, *of| {
                try list_.append(self.arena, .{ .name = name, .value = .{ .schema = of }, .place = try self.below("properties/{s}", .{name}), .is_required = false });
            }
        }
        if (object.get("required")) |value| {
            if (value != .array) return self.fail(error.InvalidSchema, "required must be a list of names", .{});
            for (value.array.items) |name| {
                if (name != .string) return self.fail(error.InvalidSchema, "required must be a list of names", .{});
                for (list_.items) |*property| {
                    if (!std.mem.eql(u8, property.name, name.string)) continue;
                    property.is_required = true;
                    break;
                } else try list_.append(self.arena, .{
                    .name = name.string,
                    .value = others orelse return self.fail(error.InvalidSchema, "{f} is required, but no such property is allowed", .{base.bytes.printable(name.string)}),
                    .place = others_place,
                    .is_required = true,
                });
            }
        }
        if (list_.items.len == 0) return if (others) |value| self.mapOf(value, others_place) else self.literal("{}", done);

        // From the last to the first: what follows when nothing was written yet, and when something was.
        var bare = try self.literal("}", done);
        var begun = bare;
        var i = list_.items.len;
        while (i > 0) {
            i -= 1;
            const property = list_.items[i];
            var name: std.Io.Writer.Allocating = .init(self.arena);
            std.json.Stringify.value(property.name, .{}, &name.writer) catch return error.OutOfMemory;
            const member = try self.literal(name.written(), try self.mark(":", try self.callOf(property.value, property.place, begun)));
            const another = try self.mark(",", member);
            bare = if (property.is_required) member else try self.splitOf(&.{ member, bare });
            begun = if (property.is_required) another else try self.splitOf(&.{ another, begun });
        }
        return self.literal("{", bare);
    }
};

fn isOneOf(name: []const u8, list: []const []const u8) bool {
    for (list) |one| if (std.mem.eql(u8, one, name)) return true;
    return false;
}

const testing = std.testing;

fn expectTexts(schema: []const u8, good: []const []const u8, bad: []const []const u8) !void {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    var diag: base.Diagnostic = .{};
    errdefer std.debug.print("{s}: {s}\n", .{ schema, diag.text() });
    const grammar = try compile(arena.allocator(), schema, &diag);
    var machine: automaton.Automaton = try .init(testing.allocator, grammar);
    defer machine.deinit();
    for (0..2) |round| for (if (round == 0) good else bad) |text| {
        var state = machine.start;
        for (text) |byte| state = try machine.step(state, byte);
        errdefer std.debug.print("{s}\n", .{text});
        try testing.expectEqual(round == 0, machine.isEnd(state));
    };
}

/// No text goes on with `byte` behind `begin`.
fn expectStuck(schema: []const u8, begin: []const u8, byte: u8) !void {
    var arena: std.heap.ArenaAllocator = .init(testing.allocator);
    defer arena.deinit();
    var diag: base.Diagnostic = .{};
    var machine: automaton.Automaton = try .init(testing.allocator, try compile(arena.allocator(), schema, &diag));
    defer machine.deinit();
    var state = machine.start;
    for (begin) |b| state = try machine.step(state, b);
    try testing.expect(machine.goesOn(state));
    try testing.expectEqual(automaton.dead, try machine.step(state, byte));
}

test "types, and numbers as JSON writes them" {
    try expectTexts("{\"type\":\"null\"}", &.{"null"}, &.{ "", "nul", "nulll", " null", "true" });
    try expectTexts("{\"type\":[\"boolean\",\"null\"]}", &.{ "true", "false", "null" }, &.{ "0", "True" });
    try expectTexts("{\"type\":\"integer\"}", &.{ "0", "-0", "7", "-10", "999999999999999" }, &.{ "", "-", "00", "01", "1.0", "1e3", "+1", "1000000000000000", "\"1\"" });
    try expectTexts("{\"type\":[\"integer\",\"number\"]}", &.{ "0", "-1.50", "12e5", "1E-05", "0.000000000000001" }, &.{ ".5", "1.", "1e", "1e+", "1e100", "- 1", "0.0000000000000001", "NaN" });
}

test "strings: escapes, UTF-8, and their length in characters" {
    try expectTexts(
        "{\"type\":\"string\"}",
        &.{ "\"\"", "\"a b\"", "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\\uD7FF\\uefff\"", "\"é中😀\"" },
        &.{ "\"", "a", "\"\n\"", "\"\\x\"", "\"\\u12\"", "\"\\ud800\"", "\"\\uDFFF\"", "\"\xff\"", "\"\xc0\x80\"", "\"\xed\xa0\x80\"", "\"\xf4\x90\x80\x80\"", "\"\"\"" },
    );
    try expectTexts("{\"minLength\":1,\"maxLength\":2}", &.{ "\"a\"", "\"é😀\"", "\"\\n\\u0041\"" }, &.{ "\"\"", "\"abc\"", "\"aé中\"" });
    try expectTexts("{\"type\":\"string\",\"maxLength\":0}", &.{"\"\""}, &.{"\"a\""});
    try expectTexts("{\"type\":\"string\",\"minLength\":3}", &.{ "\"abc\"", "\"abcdefgh\"" }, &.{"\"ab\""});
}

test "arrays: their length, their items, and nothing between" {
    try expectTexts("{\"items\":{\"type\":\"boolean\"}}", &.{ "[]", "[true]", "[true, false,true]" }, &.{ "[", "[true,]", "[,true]", "[true false]", "[true,  true]", "[1]", "[ true]" });
    try expectTexts("{\"items\":{\"type\":\"null\"},\"minItems\":2,\"maxItems\":3}", &.{ "[null,null]", "[null,null,null]" }, &.{ "[]", "[null]", "[null,null,null,null]" });
    // No way leads to where nothing can follow.
    try expectStuck("{\"items\":{\"type\":\"null\"},\"maxItems\":2}", "[null,null", ',');
    try expectTexts("{\"type\":\"array\",\"maxItems\":0}", &.{"[]"}, &.{"[1]"});
    try expectTexts("{\"type\":\"array\",\"minItems\":1}", &.{ "[1]", "[[],{},\"x\"]" }, &.{"[]"});
    try expectTexts("{\"items\":{\"minItems\":1,\"maxItems\":2,\"items\":{\"const\":1}},\"maxItems\":2}", &.{ "[]", "[[1,1],[1]]" }, &.{ "[[]]", "[[1,1,1]]", "[[1],[1],[1]]" });
}

test "objects: in the schema's order, what is required, and no other names" {
    const three = "{\"properties\":{\"a\":{\"const\":1},\"b\":{\"const\":2},\"c\":{\"const\":3}},\"required\":[\"b\"]";
    try expectTexts(three ++ "}", &.{ "{\"b\":2}", "{\"a\":1,\"b\":2}", "{\"a\": 1, \"b\": 2, \"c\": 3}", "{\"b\":2,\"c\":3}" }, &.{ "{}", "{\"a\":1}", "{\"b\":2,\"a\":1}", "{\"b\":2,}", "{,\"b\":2}", "{\"b\":2,\"d\":1}", "{\"b\":2,\"b\":2}", "{\"a\":1\"b\":2}" });
    try expectTexts(three ++ ",\"additionalProperties\":false}", &.{"{\"b\":2}"}, &.{"{\"b\":2,\"d\":1}"});
    try expectTexts("{\"properties\":{\"a\":{\"const\":1},\"b\":{\"const\":2}}}", &.{ "{}", "{\"b\":2}", "{\"a\":1,\"b\":2}" }, &.{"{\"a\":1,}"});
    try expectTexts("{\"type\":\"object\",\"additionalProperties\":false}", &.{"{}"}, &.{"{\"a\":1}"});
    try expectTexts("{\"additionalProperties\":{\"type\":\"integer\"}}", &.{ "{}", "{\"x\":1,\"\":2}" }, &.{"{\"x\":true}"});
    try expectTexts("{\"required\":[\"a \\\"b\"]}", &.{"{\"a \\\"b\":[null]}"}, &.{ "{}", "{\"a\":1}" });
    try expectTexts("{}", &.{ "{\"a\":{\"b\":[1,2.5,\"x\"]}}", "[]", "null" }, &.{ "", "{\"a\"}", "nope" });
}

test "given values, choices, and references that come back to themselves" {
    try expectTexts("{\"enum\":[\"a\",\"ab\",1.50,{\"x\":[true,null]}]}", &.{ "\"a\"", "\"ab\"", "1.50", "{\"x\":[true,null]}" }, &.{ "\"b\"", "1.5", "\"abc\"" });
    try expectTexts("{\"type\":\"integer\",\"enum\":[1,2.5,\"x\"]}", &.{"1"}, &.{ "2.5", "\"x\"" });
    try expectTexts("{\"anyOf\":[{\"type\":\"integer\"},{\"const\":\"none\"}],\"title\":\"t\"}", &.{ "5", "\"none\"" }, &.{ "true", "\"some\"" });
    const tree =
        \\{"$defs":{"tree/~":{"type":"object","properties":{"v":{"type":"integer"},"kids":{"type":"array","items":{"$ref":"#/$defs/tree~1~0"}}},"required":["v"]}},
        \\ "$ref":"#/$defs/tree~1%7E0"}
    ;
    try expectTexts(tree, &.{ "{\"v\":1}", "{\"v\":1,\"kids\":[{\"v\":2,\"kids\":[]},{\"v\":3}]}" }, &.{ "{\"kids\":[]}", "{\"v\":1,\"kids\":[{}]}" });
    try expectTexts("{\"anyOf\":[{\"$ref\":\"#\"},{\"type\":\"null\"}]}", &.{"null"}, &.{"nullnull"});
    // A property that can never be written is left out where it may be.
    try expectTexts("{\"properties\":{\"me\":{\"$ref\":\"#/properties/me\"},\"b\":{\"const\":1}}}", &.{ "{}", "{\"b\":1}" }, &.{"{\"me\":1}"});
}

test "what is not understood is refused by its name and place" {
    const cases = [_]struct { []const u8, Error, []const u8 }{
        .{ "", error.InvalidSchema, "no JSON" },
        .{ "{\"type\":\"string\"", error.InvalidSchema, "no JSON" },
        .{ "{\"type\":\"string\",\"type\":\"null\"}", error.InvalidSchema, "twice" },
        .{ "[]", error.InvalidSchema, "#: a schema must be an object" },
        .{ "false", error.UnsupportedSchema, "no value" },
        .{ "{\"type\":\"text\"}", error.InvalidSchema, "type must be" },
        .{ "{\"type\":[]}", error.InvalidSchema, "empty list" },
        .{ "{\"type\":\"string\",\"pattern\":\"a+\"}", error.UnsupportedSchema, "the keyword \"pattern\" is not supported" },
        .{ "{\"properties\":{\"a\":{\"items\":{\"oneOf\":[]}}}}", error.UnsupportedSchema, "#/properties/a/items: the keyword \"oneOf\"" },
        .{ "{\"properties\":{\"a\":{\"$id\":\"x\"}}}", error.UnsupportedSchema, "$id" },
        .{ "{\"$ref\":\"other.json\"}", error.UnsupportedSchema, "same schema" },
        .{ "{\"$ref\":\"#/$defs/a\"}", error.InvalidSchema, "no such place" },
        .{ "{\"$ref\":\"#name\"}", error.UnsupportedSchema, "only places" },
        .{ "{\"$ref\":\"#\"}", error.UnsupportedSchema, "without end" },
        .{ "{\"properties\":{\"a\":{\"$ref\":\"#\"}},\"required\":[\"a\"]}", error.UnsupportedSchema, "without end" },
        .{ "{\"minItems\":1,\"items\":{\"$ref\":\"#\"}}", error.UnsupportedSchema, "without end" },
        .{ "{\"$ref\":\"#\",\"type\":\"null\"}", error.UnsupportedSchema, "type beside $ref" },
        .{ "{\"anyOf\":[{}],\"type\":\"null\"}", error.UnsupportedSchema, "type beside anyOf" },
        .{ "{\"anyOf\":[]}", error.InvalidSchema, "list of schemas" },
        .{ "{\"anyOf\":[{},3]}", error.InvalidSchema, "#/anyOf/1" },
        .{ "{\"enum\":[]}", error.InvalidSchema, "leaves no value" },
        .{ "{\"const\":1,\"type\":\"string\"}", error.InvalidSchema, "leaves no value" },
        .{ "{\"const\":\"ab\",\"maxLength\":1}", error.UnsupportedSchema, "maxLength beside const" },
        .{ "{\"minLength\":3,\"maxLength\":2}", error.InvalidSchema, "minLength is 3 and maxLength 2" },
        .{ "{\"minItems\":-1}", error.InvalidSchema, "minItems must be" },
        .{ "{\"maxItems\":1.5}", error.InvalidSchema, "maxItems must be" },
        .{ "{\"maxItems\":1,\"maxLength\":1}", error.UnsupportedSchema, "several types" },
        .{ "{\"required\":[\"a\"],\"additionalProperties\":false}", error.InvalidSchema, "\"a\" is required" },
        .{ "{\"required\":\"a\"}", error.InvalidSchema, "list of names" },
        .{ "{\"properties\":[]}", error.InvalidSchema, "properties must be" },
    };
    for (cases) |case| {
        var arena: std.heap.ArenaAllocator = .init(testing.allocator);
        defer arena.deinit();
        var diag: base.Diagnostic = .{};
        errdefer std.debug.print("{s}: {s}\n", .{ case[0], diag.text() });
        try testing.expectError(case[1], compile(arena.allocator(), case[0], &diag));
        try testing.expect(std.mem.find(u8, diag.text(), case[2]) != null);
    }
}
