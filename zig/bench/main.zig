//! Benchmarks of the native engine: `zig build bench -- [what] [options]`.
//!
//!     peak                  ceilings of the machine: multiply-adds a second, memory bandwidth
//!     pool                  cost of one fork-join
//!     gemm                  the three products of a linear layer, f32 and bf16    --size MxKxN …
//!     step                  a whole training step, op by op                       --vocab … --bf16 --recompute
//!
//! Prints one JSON line for each measurement, or a table with --table. Times are medians; `checksum` depends on every
//! result, so that nothing can be left out and a change of numbers shows. Random inputs come from a fixed seed.

const std = @import("std");
const base = @import("base");
const kernels = @import("kernels");
const ops = @import("ops");
const timed = @import("timed_ops");
const products = @import("products.zig");
const step = @import("step.zig");
const machine = @import("machine.zig");
const Output = @import("output.zig").Output;

pub const Options = struct {
    threads: usize = 0,
    /// Samples a measurement takes.
    repeat: usize = 5,
    table: bool = false,
    sizes: std.ArrayList(products.Size) = .empty,
    model: step.Model = .{},
    /// Bytes each memory sweep goes over; beyond any cache unless made small for a test.
    sweep_mib: usize = 512,
};

const What = enum { all, peak, pool, gemm, step };

const usage =
    \\usage: abi-bench [peak|pool|gemm|step] [options]
    \\  --threads N        0: all CPUs                     --repeat N         samples, at least 1
    \\  --table            a table in place of JSON        --sweep-mib N      memory swept by `peak`
    \\  --size MxKxN       a product of `gemm`, may be given several times
    \\  --vocab --hidden --intermediate --layers --heads --kv-heads --batch --length N     the model of `step`
    \\  --head-dim --experts --chosen --window N           `step` of a gpt-oss, if there are experts
    \\  --bf16 --recompute                                                                 how `step` computes
    \\
;

pub fn main(init: std.process.Init.Minimal) !u8 {
    const gpa = std.heap.c_allocator;
    var arena: std.heap.ArenaAllocator = .init(gpa);
    defer arena.deinit();

    const args = try init.args.toSlice(arena.allocator());
    var options: Options = .{};
    const what = parse(arena.allocator(), args[1..], &options) catch {
        _ = std.c.write(2, usage, usage.len);
        return 2;
    };
    var out: Output = .init(gpa, options.table);
    defer out.deinit();

    if (what == .all) options.table = true;
    out.table = options.table;
    if (what == .peak or what == .all) try machine.peak(gpa, options, &out);
    if (what == .pool or what == .all) try machine.pool(gpa, options, &out);
    if (what == .gemm or what == .all) try products.run(gpa, options, &out);
    if (what == .step or what == .all) try step.run(gpa, options, &out);
    return 0;
}

fn parse(arena: std.mem.Allocator, args: []const [:0]const u8, options: *Options) !What {
    var what: What = .all;
    var i: usize = 0;
    while (i < args.len) : (i += 1) {
        const name = args[i];
        if (!std.mem.startsWith(u8, name, "--")) {
            what = std.meta.stringToEnum(What, name) orelse return error.Usage;
            continue;
        }
        const flag = name[2..];
        if (std.mem.eql(u8, flag, "table")) {
            options.table = true;
            continue;
        } else if (std.mem.eql(u8, flag, "bf16")) {
            options.model.bf16 = true;
            continue;
        } else if (std.mem.eql(u8, flag, "recompute")) {
            options.model.recompute = true;
            continue;
        }
        i += 1;
        if (i == args.len) return error.Usage;
        if (std.mem.eql(u8, flag, "size")) {
            try options.sizes.append(arena, try products.Size.parse(args[i]));
            continue;
        }
        const value = try std.fmt.parseInt(u32, args[i], 10);
        const m = &options.model;
        const numbers = .{
            .{ "vocab", &m.vocab },       .{ "hidden", &m.hidden },       .{ "intermediate", &m.intermediate },
            .{ "layers", &m.layers },     .{ "heads", &m.heads },         .{ "kv-heads", &m.kv_heads },
            .{ "batch", &m.batch },       .{ "length", &m.length },       .{ "threads", &options.threads },
            .{ "head-dim", &m.head_dim }, .{ "experts", &m.experts },     .{ "chosen", &m.chosen },
            .{ "window", &m.window },     .{ "repeat", &options.repeat }, .{ "sweep-mib", &options.sweep_mib },
        };
        inline for (numbers) |pair| {
            if (std.mem.eql(u8, flag, pair[0])) {
                pair[1].* = value;
                break;
            }
        } else return error.Usage;
    }
    options.repeat = @max(options.repeat, 1);
    options.sweep_mib = @max(options.sweep_mib, 1);
    return what;
}
