//! Tools as the TypeScript namespace gpt-oss was trained on, in Zig and as Jinja macros: the same text from both.
//!
//! The text is that of the model's own template, its odd line breaks inside nested objects and unions included.

const std = @import("std");
const python_json = @import("python_json.zig");

const Writer = std.Io.Writer;
const Value = std.json.Value;

pub const Error = Writer.Error || error{ TooDeep, OutOfMemory, InvalidTools };

/// The namespace `functions` of the tools, each `{"function": {"name", "description", "parameters"}}`.
pub fn write(gpa: std.mem.Allocator, w: *Writer, tools: []const Value) Error!void {
    try w.writeAll("## functions\n\nnamespace functions {\n\n");
    for (tools) |tool| {
        const function = get(tool, "function") orelse return error.InvalidTools;
        const name = text(function, "name") orelse return error.InvalidTools;
        const about = text(function, "description") orelse return error.InvalidTools;
        try w.print("// {s}\ntype {s} = ", .{ about, name });
        const parameters: Value = get(function, "parameters") orelse .null;
        const properties = object(parameters, "properties") orelse {
            try w.writeAll("() => any;\n\n");
            continue;
        };
        try w.writeAll("(_: {\n");
        for (properties.keys(), properties.values()) |key, spec| {
            if (text(spec, "description")) |words| if (words.len > 0) try w.print("// {s}\n", .{words});
            try w.print("{s}{s}: ", .{ key, if (requires(parameters, key)) "" else "?" });
            try writeType(gpa, w, spec, 0);
            if (get(spec, "default")) |default| {
                if (truthy(get(spec, "enum"))) {
                    try w.print(", // default: {s}", .{if (default == .string) default.string else return error.InvalidTools});
                } else if (truthy(get(spec, "oneOf"))) {
                    try w.print("// default: {s}", .{if (default == .string) default.string else return error.InvalidTools});
                } else {
                    try w.writeAll(", // default: ");
                    try python_json.write(w, default, null);
                }
            }
            try w.writeAll(",\n");
        }
        try w.writeAll("}) => any;\n\n");
    }
    try w.writeAll("} // namespace functions");
}

fn writeType(gpa: std.mem.Allocator, w: *Writer, spec: Value, depth: usize) Error!void {
    if (depth > python_json.depth_max) return error.TooDeep;
    const kind = get(spec, "type") orelse .null;
    if (kind == .array and kind.array.items.len > 0) {
        for (kind.array.items, 0..) |item, i| try w.print("{s}{s}", .{ if (i > 0) " | " else "", if (item == .string) item.string else return error.InvalidTools });
        return;
    }
    const name = if (kind == .string) kind.string else "";
    if (is(name, "array")) {
        const items = get(spec, "items") orelse .null;
        if (!truthy(items)) {
            try w.writeAll("any[]");
        } else {
            var inner: Writer.Allocating = .init(gpa);
            defer inner.deinit();

            const of = text(items, "type") orelse "";
            if (is(of, "string") or is(of, "boolean")) {
                try inner.writer.writeAll(of);
            } else if (is(of, "number") or is(of, "integer")) {
                try inner.writer.writeAll("number");
            } else try writeType(gpa, &inner.writer, items, depth + 1);
            const long = (std.unicode.utf8CountCodepoints(inner.written()) catch inner.written().len) > 50;
            try w.print("{s}[]", .{if (long or is(inner.written(), "object | object")) "any" else inner.written()});
        }
        return nullable(w, spec);
    }
    if (truthy(get(spec, "oneOf"))) return union_(gpa, w, get(spec, "oneOf").?, depth);
    if (is(name, "string")) {
        const choices = get(spec, "enum") orelse .null;
        if (!truthy(choices) or choices != .array) {
            try w.writeAll("string");
            return nullable(w, spec);
        }
        for (choices.array.items, 0..) |choice, i|
            try w.print("{s}\"{s}\"", .{ if (i > 0) " | " else "", if (choice == .string) choice.string else return error.InvalidTools });
        return;
    }
    if (is(name, "number") or is(name, "integer")) return w.writeAll("number");
    if (is(name, "boolean")) return w.writeAll("boolean");
    if (!is(name, "object")) return w.writeAll("any");
    const properties = object(spec, "properties") orelse return w.writeAll("object");
    try w.writeAll("{\n");
    for (properties.keys(), properties.values(), 0..) |key, inner, i| {
        if (i > 0) try w.writeAll(", ");
        try w.print("{s}{s}: \n                ", .{ key, if (requires(spec, key)) "" else "?" });
        try writeType(gpa, w, inner, depth + 1);
    }
    try w.writeAll("}");
}

fn union_(gpa: std.mem.Allocator, w: *Writer, variants: Value, depth: usize) Error!void {
    if (variants != .array) return error.InvalidTools;
    const list = variants.array.items;
    for (list) |variant| if (list.len > 1 and is(text(variant, "type") orelse "", "object")) return w.writeAll("any");
    for (list, 0..) |variant, i| {
        try writeType(gpa, w, variant, depth + 1);
        if (text(variant, "description")) |words| if (words.len > 0) try w.print("// {s}", .{words});
        if (get(variant, "default")) |default| {
            try w.writeAll("                    // default: ");
            try python_json.write(w, default, null);
        }
        if (i + 1 < list.len) try w.writeAll(" | \n");
    }
}

fn nullable(w: *Writer, spec: Value) Error!void {
    if (truthy(get(spec, "nullable"))) try w.writeAll(" | null");
}

fn get(value: Value, key: []const u8) ?Value {
    return if (value == .object) value.object.get(key) else null;
}

fn text(value: Value, key: []const u8) ?[]const u8 {
    const found = get(value, key) orelse return null;
    return if (found == .string) found.string else null;
}

/// The object under `key`, when it has anything in it.
fn object(value: Value, key: []const u8) ?std.json.ObjectMap {
    const found = get(value, key) orelse return null;
    return if (found == .object and found.object.count() > 0) found.object else null;
}

fn requires(spec: Value, key: []const u8) bool {
    const list = get(spec, "required") orelse return false;
    if (list != .array) return false;
    for (list.array.items) |item| if (item == .string and is(item.string, key)) return true;
    return false;
}

fn truthy(value: ?Value) bool {
    return switch (value orelse return false) {
        .null => false,
        .bool => |b| b,
        .string => |s| s.len > 0,
        .array => |a| a.items.len > 0,
        .object => |o| o.count() > 0,
        .number_string => |n| (std.fmt.parseFloat(f64, n) catch 1) != 0,
        .integer => |n| n != 0,
        .float => |n| n != 0,
    };
}

fn is(a: []const u8, b: []const u8) bool {
    return std.mem.eql(u8, a, b);
}

/// The same as Jinja: `{{ typescript(tools) }}`. Every piece of text is an expression, so no white space of the source
/// reaches the output.
pub const jinja_macros =
    "{%- macro typescript_type(spec) -%}" ++
    "{%- if spec.type == 'array' -%}" ++
    "{%- set items = spec['items'] -%}" ++
    "{%- if not items -%}{{- 'any' -}}" ++
    "{%- elif items.type in ['string', 'boolean'] -%}{{- items.type -}}" ++
    "{%- elif items.type in ['number', 'integer'] -%}{{- 'number' -}}" ++
    "{%- else -%}{%- set inner = typescript_type(items) -%}" ++
    "{%- if inner == 'object | object' or inner | length > 50 -%}{{- 'any' -}}{%- else -%}{{- inner -}}{%- endif -%}{%- endif -%}" ++
    "{{- '[]' -}}{%- if spec.nullable -%}{{- ' | null' -}}{%- endif -%}" ++
    "{%- elif spec.type is defined and spec.type is not string and spec.type is iterable and spec.type is not mapping -%}" ++
    "{%- for one in spec.type -%}{%- if not loop.first -%}{{- ' | ' -}}{%- endif -%}{{- one -}}{%- endfor -%}" ++
    "{%- elif spec.oneOf -%}" ++
    "{%- set found = namespace(object=false) -%}" ++
    "{%- for one in spec.oneOf -%}{%- if one.type == 'object' -%}{%- set found.object = true -%}{%- endif -%}{%- endfor -%}" ++
    "{%- if found.object and spec.oneOf | length > 1 -%}{{- 'any' -}}" ++
    "{%- else -%}{%- for one in spec.oneOf -%}{{- typescript_type(one) -}}" ++
    "{%- if one.description -%}{{- '// ' + one.description -}}{%- endif -%}" ++
    "{%- if one.default is defined -%}{{- '                    // default: ' + one.default | tojson -}}{%- endif -%}" ++
    "{%- if not loop.last -%}{{- ' | \\n' -}}{%- endif -%}{%- endfor -%}{%- endif -%}" ++
    "{%- elif spec.type == 'string' -%}" ++
    "{%- if spec.enum -%}{{- '\"' + spec.enum | join('\" | \"') + '\"' -}}" ++
    "{%- else -%}{{- 'string' -}}{%- if spec.nullable -%}{{- ' | null' -}}{%- endif -%}{%- endif -%}" ++
    "{%- elif spec.type in ['number', 'integer'] -%}{{- 'number' -}}" ++
    "{%- elif spec.type == 'boolean' -%}{{- 'boolean' -}}" ++
    "{%- elif spec.type == 'object' -%}" ++
    "{%- if spec.properties -%}{{- '{\\n' -}}" ++
    "{%- for key, inner in spec.properties.items() -%}" ++
    "{%- if not loop.first -%}{{- ', ' -}}{%- endif -%}{{- key -}}" ++
    "{%- if key not in (spec.required or []) -%}{{- '?' -}}{%- endif -%}" ++
    "{{- ': \\n                ' -}}{{- typescript_type(inner) -}}{%- endfor -%}{{- '}' -}}" ++
    "{%- else -%}{{- 'object' -}}{%- endif -%}" ++
    "{%- else -%}{{- 'any' -}}{%- endif -%}" ++
    "{%- endmacro -%}" ++
    "{%- macro typescript(tools) -%}" ++
    "{{- '## functions\\n\\nnamespace functions {\\n\\n' -}}" ++
    "{%- for tool in tools -%}{%- set tool = tool.function -%}" ++
    "{{- '// ' + tool.description + '\\ntype ' + tool.name + ' = ' -}}" ++
    "{%- if tool.parameters and tool.parameters.properties -%}{{- '(_: {\\n' -}}" ++
    "{%- for key, spec in tool.parameters.properties.items() -%}" ++
    "{%- if spec.description -%}{{- '// ' + spec.description + '\\n' -}}{%- endif -%}" ++
    "{{- key -}}{%- if key not in (tool.parameters.required or []) -%}{{- '?' -}}{%- endif -%}{{- ': ' -}}" ++
    "{{- typescript_type(spec) -}}" ++
    "{%- if spec.default is defined -%}" ++
    "{%- if spec.enum -%}{{- ', // default: ' + spec.default -}}" ++
    "{%- elif spec.oneOf -%}{{- '// default: ' + spec.default -}}" ++
    "{%- else -%}{{- ', // default: ' + spec.default | tojson -}}{%- endif -%}{%- endif -%}" ++
    "{{- ',\\n' -}}{%- endfor -%}{{- '}) => any;\\n\\n' -}}" ++
    "{%- else -%}{{- '() => any;\\n\\n' -}}{%- endif -%}{%- endfor -%}" ++
    "{{- '} // namespace functions' -}}{%- endmacro -%}";

test "tools are written as the model's template writes them" {
    const gpa = std.testing.allocator;
    const parsed = try std.json.parseFromSlice(Value, gpa,
        \\[{"type":"function","function":{"name":"f","description":"Does f.","parameters":{"type":"object","properties":{
        \\"a":{"type":"string","description":"An a."},"b":{"type":"string","enum":["x","y"],"default":"x"},
        \\"c":{"type":"array","items":{"type":"integer"},"nullable":true},"d":{"type":"object","properties":{"e":{"type":"number"},"g":{"type":"boolean"}},"required":["g"]},
        \\"h":{"type":["string","null"],"default":1}},"required":["a"]}}},{"function":{"name":"g","description":"","parameters":{}}}]
    , python_json.parse_options);
    defer parsed.deinit();
    var out: Writer.Allocating = .init(gpa);
    defer out.deinit();

    try write(gpa, &out.writer, parsed.value.array.items);
    try std.testing.expectEqualStrings("## functions\n\nnamespace functions {\n\n// Does f.\ntype f = (_: {\n// An a.\na: string,\nb?: \"x\" | \"y\", // default: x,\nc?: number[] | null,\n" ++
        "d?: {\ne?: \n                number, g: \n                boolean},\nh?: string | null, // default: 1,\n}) => any;\n\n// \ntype g = () => any;\n\n} // namespace functions", out.written());
}
