//! A GGUF adapter back into PEFT's words: settings, and A and B of every module in the order of `arch.AdapterLayout`.
//!
//! The base model's layout says which modules there can be; ranks are the tensors'. A pair for each of a weight's tensors must be
//! there. PEFT has one A for gate and up of experts, so a file in which the two differ has no such form and is refused.
//! Does not know: folders, base weights.

const std = @import("std");
const base = @import("base");
const tensor = @import("tensor");
const arch = @import("arch");
const adapter_gguf = @import("adapter_gguf.zig");
const gguf = @import("gguf.zig");
const name_map = @import("name_map.zig");
const Allocator = std.mem.Allocator;
const Diagnostic = base.Diagnostic;
const Half = adapter_gguf.Half;
const LoraSettings = arch.LoraSettings;
const printable = base.bytes.printable;

pub const Error = gguf.Error || gguf.LookupError || LoraSettings.Error || error{
    /// Not an adapter, or one of another architecture.
    NotAnAdapter,
    MissingTensor,
    UnexpectedTensor,
    WrongTensorShape,
    UnsupportedTensorType,
    NotFinite,
    /// What PEFT has no form for.
    NotExpressible,
};

pub const Imported = struct {
    arena: std.heap.ArenaAllocator,
    settings: LoraSettings,
    layout: arch.AdapterLayout,
    values: []align(64) f32,
    /// What the file calls its base.
    base_name: ?[]const u8,

    pub fn deinit(self: *Imported, gpa: Allocator) void {
        gpa.free(self.values);
        self.layout.deinit();
        self.arena.deinit();
        self.* = undefined;
    }
};

/// `raw` is the whole file; `config` and `layout` are the base's. Caller calls `deinit(gpa)`.
pub fn read(gpa: Allocator, raw: []const u8, config: arch.ModelConfig, layout: *const arch.Layout, diag: *Diagnostic) Error!Imported {
    var file = try gguf.File.parse(gpa, raw, diag);
    defer file.deinit();

    var arena: std.heap.ArenaAllocator = .init(gpa);
    errdefer arena.deinit();

    var reader: Reader = .{ .file = &file, .arena = arena.allocator(), .architecture = .of(config.model_type), .layout = layout, .head_dim = config.head_dim, .diag = diag };
    try reader.checkKind();
    try reader.collect();
    const settings = try reader.settings();
    var adapter = try settings.layoutFor(gpa, layout, diag);
    errdefer adapter.deinit();

    const values = try gpa.alignedAlloc(f32, .@"64", adapter.total);
    errdefer gpa.free(values);

    for (adapter.modules) |*module| try reader.fill(module, values);
    const base_name = file.optional([]const u8, "general.base_model.0.name", diag) catch null;
    return .{
        .settings = settings,
        .layout = adapter,
        .values = values,
        .base_name = if (base_name) |name| try arena.allocator().dupe(u8, name) else null,
        .arena = arena,
    };
}

const Found = struct { target: arch.Target, layer: ?u32, rank: u32 };

const Reader = struct {
    file: *const gguf.File,
    arena: Allocator,
    architecture: name_map.Architecture,
    layout: *const arch.Layout,
    head_dim: usize,
    diag: *Diagnostic,
    alpha: f64 = 0,
    found: std.ArrayList(Found) = .empty,

    fn checkKind(self: *Reader) Error!void {
        const kind = try self.file.optional([]const u8, "general.type", self.diag) orelse "model";
        const form = try self.file.optional([]const u8, "adapter.type", self.diag) orelse "";
        if (!std.mem.eql(u8, kind, "adapter") or !std.mem.eql(u8, form, "lora")) {
            self.diag.set("general.type is {f} and adapter.type {f}; a LoRA adapter has adapter and lora", .{ printable(kind), printable(form) });
            return error.NotAnAdapter;
        }
        const named = try self.file.require([]const u8, "general.architecture", self.diag);
        if (!std.mem.eql(u8, named, @tagName(self.architecture))) {
            self.diag.set("the adapter is for architecture {f}, the base is {t}. Name the base it was made for", .{ printable(named), self.architecture });
            return error.NotAnAdapter;
        }
        const alpha = try self.file.optional(f32, "adapter.lora.alpha", self.diag) orelse 0;
        self.alpha = decimal(alpha);
    }

    /// Every module that has tensors, with its rank.
    fn collect(self: *Reader) Error!void {
        for (self.file.tensors) |*info| {
            const place, const half = self.placeOf(info.name) orelse {
                self.diag.set("tensor {f} is no half of an adapter on a weight of architecture {t}", .{ printable(info.name), self.architecture });
                return error.UnexpectedTensor;
            };
            const target = for (std.enums.values(arch.Target)) |t| {
                if (t.role() == place.role) break t;
            } else {
                self.diag.set("tensor {f}: no adapter can be put on this weight here", .{printable(info.name)});
                return error.UnexpectedTensor;
            };
            const in_model = if (place.layer) |l| l < self.layout.layerCount() and self.layout.get(l, place.role) != null else self.layout.get(null, place.role) != null;
            if (!in_model) {
                self.diag.set("tensor {f} belongs to a module that the base does not have. Name the base it was made for", .{printable(info.name)});
                return error.UnexpectedTensor;
            }
            if (half == .a) continue; // Its B has the rank, and must be there.
            const known = for (self.found.items) |f| {
                if (f.target == target and std.meta.eql(f.layer, place.layer)) break true;
            } else false;
            const rank = base.checked.cast(u32, info.ne[0]) catch return error.TensorTooLarge;
            if (!known) try self.found.append(self.arena, .{ .target = target, .layer = place.layer, .rank = rank });
        }
        if (self.found.items.len == 0) {
            self.diag.set("the file has no pair of an adapter", .{});
            return error.NotAnAdapter;
        }
    }

    fn placeOf(self: *const Reader, name: []const u8) ?struct { name_map.Place, Half } {
        for ([_]Half{ .a, .b }) |half| if (std.mem.endsWith(u8, name, half.ending()))
            return .{ name_map.fromGgufName(self.architecture, name[0 .. name.len - half.ending().len]) orelse return null, half };
        return null;
    }

    /// PEFT's settings that make exactly these modules. An alpha of 0 is a scale of 1 to the reader.
    fn settings(self: *Reader) Error!LoraSettings {
        const usual = self.found.items[0].rank;
        var modules: std.ArrayList([]const u8) = .empty;
        var parameters: std.ArrayList([]const u8) = .empty;
        var ranks: std.ArrayList(LoraSettings.Rank) = .empty;
        var alphas: std.ArrayList(LoraSettings.Alpha) = .empty;
        for (std.enums.values(arch.Target)) |target| {
            const names = if (target.isExperts()) &parameters else &modules;
            const places = if (target.isInLayer()) self.layout.layerCount() else 1;
            var count: usize = 0;
            for (self.found.items) |f| count += @intFromBool(f.target == target);
            if (count == places) try names.append(self.arena, if (target.isExperts()) target.role().hfSuffix() else @tagName(target));
            for (self.found.items) |f| if (f.target == target) {
                const path = try arch.adapter.modulePath(self.arena, target, f.layer);
                if (count != places) try names.append(self.arena, path);
                if (f.rank == usual) continue;
                try ranks.append(self.arena, .{ .name = path, .value = f.rank });
                if (self.alpha == 0) try alphas.append(self.arena, .{ .name = path, .value = @floatFromInt(f.rank) });
            };
        }
        return .{
            .r = usual,
            .lora_alpha = if (self.alpha == 0) @floatFromInt(usual) else self.alpha,
            .target_modules = modules.items,
            .target_parameters = parameters.items,
            .rank_pattern = ranks.items,
            .alpha_pattern = alphas.items,
        };
    }

    fn fill(self: *Reader, module: *const arch.AdapterModule, values: []f32) Error!void {
        const order = name_map.rowOrder(self.architecture, module.target.role(), self.head_dim);
        for (name_map.parts(module.target.role())) |part| for ([_]Half{ .a, .b }) |half| {
            const info = try self.tensorOf(module, part, half);
            const numbers = try self.arena.alloc(f32, info.len());
            tensor.blocks.toF32(info.dtype, info.data, numbers) catch {
                self.diag.set("tensor {s} has type {s}, which cannot be expanded here", .{ info.name, info.dtype.label() });
                return error.UnsupportedTensorType;
            };
            const out = (if (half == .a) module.a else module.b).slice(f32, values);
            for (numbers, 0..) |x, i| {
                const at = adapter_gguf.sourceOf(module, part, half, order, i);
                if (!std.math.isFinite(x)) {
                    self.diag.set("tensor {s} has a value that is no number", .{info.name});
                    return error.NotFinite;
                }
                if (half == .a and part == .up and out[at] != x) {
                    self.diag.set("tensor {s} is not the A of the gate; PEFT has one for both, so this adapter has no such form", .{info.name});
                    return error.NotExpressible;
                }
                out[at] = x;
            }
        };
    }

    fn tensorOf(self: *Reader, module: *const arch.AdapterModule, part: name_map.Part, half: Half) Error!*const gguf.TensorInfo {
        var name_buffer: name_map.NameBuffer = undefined;
        var buffer: [80]u8 = undefined;
        const place: name_map.Place = .{ .layer = module.layer, .role = module.target.role(), .part = part };
        const name = std.mem.print(&buffer, "{s}{s}", .{ name_map.ggufName(&name_buffer, self.architecture, place), half.ending() }) catch unreachable; // 64 + 7 < 80.
        const info = self.file.findTensor(name) orelse {
            self.diag.set("tensor {s} is missing, though the file has others of the same module", .{name});
            return error.MissingTensor;
        };
        const wanted = adapter_gguf.storedShape(module, part, half).ne();
        if (!std.mem.eql(usize, &info.ne, &wanted)) {
            self.diag.set("tensor {s} has dimensions {any}; the base and a rank of {d} ask for {any}. Name the base it was made for", .{ name, info.ne, module.rank, wanted });
            return error.WrongTensorShape;
        }
        return info;
    }
};

/// The f64 that prints as the f32 does.
fn decimal(x: f32) f64 {
    var buffer: [64]u8 = undefined;
    const text = std.fmt.bufPrint(&buffer, "{e}", .{x}) catch return x;
    return std.fmt.parseFloat(f64, text) catch x;
}

test {
    _ = @import("adapter_gguf_import_test.zig");
}
