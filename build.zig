//! Build of abi_train. Reads top-down: options, the layer table, kernel objects, artifacts, and at the
//! end the steps a person types: `install`, `run`, `test`, `test-<layer>`, `test-levels`, `lib`, `bench`, `ext`.
//!
//! The layer table *is* the import graph: each folder of `zig/src` is one Zig module and can import only
//! the modules named here, so a wrong import does not compile.

const std = @import("std");

const Layer = struct {
    name: []const u8,
    may_import: []const []const u8,
};

/// In order: a layer may only import layers above it.
const layers = [_]Layer{
    .{ .name = "base", .may_import = &.{} },
    .{ .name = "tensor", .may_import = &.{"base"} },
    .{ .name = "arch", .may_import = &.{ "base", "tensor" } },
    .{ .name = "kernels", .may_import = &.{"base"} },
    .{ .name = "ops", .may_import = &.{ "base", "tensor", "kernels" } },
    .{ .name = "tokenizer", .may_import = &.{ "base", "kernels" } },
    .{ .name = "data", .may_import = &.{"base"} },
    .{ .name = "prepare", .may_import = &.{ "base", "tokenizer", "data" } },
    .{ .name = "quant", .may_import = &.{ "base", "tensor", "kernels" } },
    .{ .name = "formats", .may_import = &.{ "base", "tensor", "arch", "quant" } },
    .{ .name = "model", .may_import = &.{ "base", "tensor", "arch", "ops" } },
    .{ .name = "checkpoint", .may_import = &.{ "base", "tensor", "arch", "formats" } },
    .{ .name = "train", .may_import = &.{ "base", "tensor", "arch", "ops", "model", "data", "formats", "checkpoint" } },
    .{ .name = "infer", .may_import = &.{ "base", "tensor", "arch", "kernels", "ops", "formats" } },
    .{ .name = "agent", .may_import = &.{ "base", "tokenizer", "formats", "infer" } },
};

/// One object per CPU level is made from the same kernel source; `kernels/dispatch.zig` picks at run time.
const Level = struct { suffix: []const u8, cpu: []const u8, fma: bool, vector_bytes: usize };
const x86_levels = [_]Level{
    .{ .suffix = "v2", .cpu = "x86_64_v2", .fma = false, .vector_bytes = 16 },
    .{ .suffix = "v3", .cpu = "x86_64_v3", .fma = true, .vector_bytes = 32 },
    .{ .suffix = "v4", .cpu = "x86_64_v4+avx512vnni+avx512bf16", .fma = true, .vector_bytes = 64 },
};
const other_levels = [_]Level{.{ .suffix = "base", .cpu = "baseline", .fma = true, .vector_bytes = 16 }};

/// Layers whose tests are run again on every lower level: those which compute with kernels.
const computing_layers = [_][]const u8{ "kernels", "ops", "tokenizer", "quant", "model", "train", "infer" };

pub fn build(b: *std.Build) !void {
    const target = b.standardTargetOptions(.{ .default_target = .{ .cpu_model = .baseline } });
    const optimize = b.standardOptimizeOption(.{});
    const strip = b.option(bool, "strip", "Leave out debug information");
    const python = b.option([]const u8, "python", "Python that has cffi (for `ext`)") orelse "python3";
    const python_include = b.option([]const u8, "python-include", "Directory of Python.h (for `ext`)");
    const test_filter = b.option([]const u8, "test-filter", "Run only tests whose name contains this");

    // ---- kernel objects: same source, one CPU level each, always optimised, always LLVM ----
    const levels: []const Level = if (target.result.cpu.arch == .x86_64) &x86_levels else &other_levels;
    var level_names: [x86_levels.len][]const u8 = undefined;
    var kernel_objects: [x86_levels.len]*std.Build.Step.Compile = undefined;
    for (levels, 0..) |level, i| {
        const parsed = try std.Target.Query.parse(.{
            .arch_os_abi = try target.query.zigTriple(b.graph.arena),
            .cpu_features = level.cpu,
        });
        var query = target.query;
        query.cpu_model = parsed.cpu_model;
        query.cpu_features_add = parsed.cpu_features_add;
        const options = b.addOptions();
        options.addOption([]const u8, "level", level.suffix);
        options.addOption(bool, "fma", level.fma);
        options.addOption(usize, "vector_bytes", level.vector_bytes);
        const module = b.createModule(.{
            .root_source_file = b.path("zig/src/kernels/object.zig"),
            .target = b.resolveTargetQuery(query),
            .optimize = .fast,
            .pic = true,
            .strip = strip,
        });
        module.addOptions("kernel_options", options);
        kernel_objects[i] = b.addObject(.{ .name = b.fmt("kernels_{s}", .{level.suffix}), .root_module = module, .use_llvm = true });
        level_names[i] = level.suffix;
    }
    const config = b.addOptions();
    config.addOption([]const []const u8, "levels", level_names[0..levels.len]);
    config.addOption([]const u8, "version", "0.1.0");
    const config_module = config.createModule(); // One for all: a file may belong to one module only.

    // ---- layers ----
    const settings: LayerSettings = .{ .target = target, .strip = strip, .config = config_module, .kernel_objects = kernel_objects[0..levels.len] };
    const modules = addLayers(b, settings, optimize);

    // ---- the root module `abi`: what `@import("abi")` gives, and what a package that depends on us sees ----
    const abi = b.addModule("abi", .{
        .root_source_file = b.path("zig/src/abi.zig"),
        .target = target,
        .optimize = optimize,
        .link_libc = true,
        .pic = true,
        .strip = strip,
    });
    abi.addImport("config", config_module);
    for (layers, modules) |layer, module| abi.addImport(layer.name, module);

    // ---- the program ----
    const exe_module = b.createModule(.{ .root_source_file = b.path("zig/src/main.zig"), .target = target, .optimize = optimize, .link_libc = true, .strip = strip });
    exe_module.addImport("abi", abi);
    const exe = b.addExecutable(.{ .name = "abi", .root_module = exe_module });
    b.installArtifact(exe);

    // ---- the C library: Zig exports compared with the header at compile time ----
    const header = b.addTranslateC(.{ .root_source_file = b.path("zig/include/abi_train.h"), .target = target, .optimize = optimize }).createModule();
    const lib_module = b.createModule(.{ .root_source_file = b.path("zig/src/c_api.zig"), .target = target, .optimize = optimize, .link_libc = true, .pic = true, .strip = strip });
    lib_module.addImport("abi", abi);
    lib_module.addImport("abi_h", header);
    const lib = b.addLibrary(.{ .name = "abi_train", .root_module = lib_module, .linkage = .static });
    lib.bundle_compiler_rt = true;
    lib.installHeader(b.path("zig/include/abi_train.h"), "abi_train.h");

    // ---- steps ----
    const run = b.addRunArtifact(exe);
    run.addPassthruArgs();
    b.step("run", "Run the program: zig build run -- agent").dependOn(&run.step);

    const test_step = b.step("test", "All Zig unit tests");
    const levels_step = b.step("test-levels", "Unit tests of the layers that compute, on every lower CPU level");
    const filters: []const []const u8 = if (test_filter) |f| b.graph.arena.dupe([]const u8, &.{f}) catch @panic("OOM") else &.{};
    for (layers, modules) |layer, module| {
        const unit = b.addTest(.{ .name = b.fmt("test-{s}", .{layer.name}), .root_module = module, .filters = filters });
        const run_unit = b.addRunArtifact(unit);
        b.step(b.fmt("test-{s}", .{layer.name}), b.fmt("Unit tests of {s}/", .{layer.name})).dependOn(&run_unit.step);
        test_step.dependOn(&run_unit.step);

        // The same programs again; a level this CPU lacks falls back to its highest, which dispatch.zig tests.
        if (contains(&computing_layers, layer.name)) for (level_names[0 .. levels.len - 1]) |level| {
            const run_on_level = b.addRunArtifact(unit);
            run_on_level.setName(b.fmt("run test-{s} on {s}", .{ layer.name, level }));
            // Nothing but this: the environment of the first build would be kept with the configuration.
            const environment = b.graph.arena.create(std.process.Environ.Map) catch @panic("OOM");
            environment.* = .init(b.graph.arena);
            environment.put("ABI_TRAIN_CPU", level) catch @panic("OOM");
            run_on_level.environ_map = environment;
            levels_step.dependOn(&run_on_level.step);
        };
    }
    test_step.dependOn(levels_step);
    inline for (.{ .{ "abi", abi }, .{ "main", exe_module }, .{ "c_api", lib_module } }) |pair| {
        const unit = b.addTest(.{ .name = "test-" ++ pair[0], .root_module = pair[1], .filters = filters });
        const run_unit = b.addRunArtifact(unit);
        b.step("test-" ++ pair[0], "Unit tests of " ++ pair[0] ++ ".zig").dependOn(&run_unit.step);
        test_step.dependOn(&run_unit.step);
    }

    const examples_step = b.step("examples", "Programs of examples/zig and examples/c");
    for ([_][]const u8{ "training_config", "data_loading", "instruction_data" }) |name| {
        const module = b.createModule(.{ .root_source_file = b.path(b.fmt("examples/zig/{s}.zig", .{name})), .target = target, .optimize = optimize, .link_libc = true });
        module.addImport("abi", abi);
        const example = b.addExecutable(.{ .name = b.fmt("example-{s}", .{name}), .root_module = module });
        examples_step.dependOn(&b.addInstallArtifact(example, .{}).step);
    }

    // C needs no more than the header and the library; the test of the C line runs the example.
    const c_module = b.createModule(.{ .target = target, .optimize = optimize, .link_libc = true, .strip = strip });
    c_module.addCSourceFile(.{ .file = b.path("examples/c/train.c"), .flags = &.{ "-std=c11", "-Wall", "-Wextra", "-Werror" } });
    c_module.addIncludePath(b.path("zig/include"));
    c_module.linkLibrary(lib);
    const c_example = b.addExecutable(.{ .name = "example-c-train", .root_module = c_module });
    examples_step.dependOn(&b.addInstallArtifact(c_example, .{}).step);
    const run_c_example = b.addRunArtifact(c_example);
    run_c_example.setCwd(b.path("zig"));
    run_c_example.expectStdOutMatch("finished after 10 steps");
    const c_example_step = b.step("test-c_example", "Compile and run examples/c/train.c");
    c_example_step.dependOn(&run_c_example.step);
    test_step.dependOn(&run_c_example.step);

    b.step("lib", "Static C library and header").dependOn(&b.addInstallArtifact(lib, .{}).step);

    // ---- benchmarks: always optimised; a real model compiled against ops with a stopwatch ----
    const fast = addLayers(b, settings, .fast);
    var peak_query = target.query;
    if (peak_query.cpu_arch == null) peak_query.cpu_model = .native;
    const peak = b.addObject(.{ .name = "bench-peak", .use_llvm = true, .root_module = b.createModule(.{ .root_source_file = b.path("zig/bench/peak.zig"), .target = b.resolveTargetQuery(peak_query), .optimize = .fast, .pic = true }) });
    const timed_ops = b.createModule(.{ .root_source_file = b.path("zig/bench/timed_ops.zig"), .target = target, .optimize = .fast, .link_libc = true });
    timed_ops.addImport("ops", moduleOf(&fast, "ops"));
    const timed_model = b.createModule(.{ .root_source_file = b.path("zig/src/model/model.zig"), .target = target, .optimize = .fast, .link_libc = true });
    timed_model.addImport("ops", timed_ops);
    for ([_][]const u8{ "base", "tensor", "arch" }) |name| timed_model.addImport(name, moduleOf(&fast, name));
    const bench_module = b.createModule(.{ .root_source_file = b.path("zig/bench/main.zig"), .target = target, .optimize = .fast, .link_libc = true, .strip = strip });
    for ([_][]const u8{ "base", "arch", "kernels", "ops" }) |name| bench_module.addImport(name, moduleOf(&fast, name));
    bench_module.addImport("timed_ops", timed_ops);
    bench_module.addImport("timed_model", timed_model);
    bench_module.addObject(peak);
    const bench = b.addExecutable(.{ .name = "abi-bench", .root_module = bench_module });
    const run_bench = b.addRunArtifact(bench);
    run_bench.addPassthruArgs();
    b.step("bench", "Benchmarks: zig build bench -- gemm --table").dependOn(&run_bench.step);
    b.step("bench-program", "Install the benchmarks as bin/abi-bench").dependOn(&b.addInstallArtifact(bench, .{}).step);
    // Asked by tests/parity/test_tokenizer_ids.py.
    const probe_module = b.createModule(.{ .root_source_file = b.path("tests/parity/tokenizer_probe.zig"), .target = target, .optimize = optimize, .link_libc = true });
    for ([_][]const u8{ "base", "tokenizer" }) |name| probe_module.addImport(name, moduleOf(&modules, name));
    const probe = b.addExecutable(.{ .name = "tokenizer-probe", .root_module = probe_module });
    b.step("tokenizer-probe", "Install bin/tokenizer-probe, which the parity tests ask").dependOn(&b.addInstallArtifact(probe, .{}).step);

    // Sound files with random changes through every reader; tests/fuzz/fuzz_run.py makes the files and watches.
    const fuzz_module = b.createModule(.{ .root_source_file = b.path("zig/fuzz/main.zig"), .target = target, .optimize = optimize, .link_libc = true, .strip = strip });
    fuzz_module.addImport("abi", abi);
    const fuzz = b.addExecutable(.{ .name = "abi-fuzz", .root_module = fuzz_module });
    b.step("fuzz-program", "Install bin/abi-fuzz, which `make fuzz` drives").dependOn(&b.addInstallArtifact(fuzz, .{}).step);

    const encode_module = b.createModule(.{ .root_source_file = b.path("zig/bench/encode.zig"), .target = target, .optimize = .fast, .link_libc = true, .strip = strip });
    for ([_][]const u8{ "base", "tokenizer" }) |name| encode_module.addImport(name, moduleOf(&fast, name));
    const encode_bench = b.addExecutable(.{ .name = "abi-bench-encode", .root_module = encode_module });
    b.step("bench-encode", "Install bin/abi-bench-encode: abi-bench-encode TOKENIZER_FOLDER FILE").dependOn(&b.addInstallArtifact(encode_bench, .{}).step);
    const generate_module = b.createModule(.{ .root_source_file = b.path("zig/bench/generate.zig"), .target = target, .optimize = .fast, .link_libc = true, .strip = strip });
    for ([_][]const u8{ "base", "infer" }) |name| generate_module.addImport(name, moduleOf(&fast, name));
    const generate_bench = b.addExecutable(.{ .name = "abi-bench-generate", .root_module = generate_module });
    b.step("bench-generate", "Install bin/abi-bench-generate: abi-bench-generate FILE.gguf [options]").dependOn(&b.addInstallArtifact(generate_bench, .{}).step);
    const bench_unit = b.addTest(.{ .name = "test-bench", .root_module = bench_module, .filters = filters });
    const run_bench_unit = b.addRunArtifact(bench_unit);
    b.step("test-bench", "Unit tests of zig/bench").dependOn(&run_bench_unit.step);
    test_step.dependOn(&run_bench_unit.step);

    // For Pythons without header files: the same exports as a plain library, opened with dlopen.
    const shared = b.addLibrary(.{ .name = "abi_train", .root_module = lib_module, .linkage = .dynamic });
    b.step("shared", "Shared C library lib/libabi_train.so").dependOn(&b.addInstallArtifact(shared, .{}).step);

    const ext_step = b.step("ext", "Python extension lib/_native.abi3.so (needs -Dpython-include)");
    if (python_include) |include| {
        const generate = b.addSystemCommand(&.{python});
        generate.addFileArg(b.path("python/abi_train/_native/build.py"));
        generate.addFileArg(b.path("zig/include/abi_train.h"));
        const ext_module = b.createModule(.{ .target = target, .optimize = optimize, .link_libc = true, .pic = true, .strip = strip });
        ext_module.addCSourceFile(.{ .file = generate.addOutputFileArg("_native.c"), .flags = &.{ "-DPy_LIMITED_API=0x030a0000", "-fvisibility=hidden" } });
        ext_module.addIncludePath(.{ .cwd_relative = include });
        ext_module.addIncludePath(b.path("zig/include"));
        ext_module.linkLibrary(lib);
        const ext = b.addLibrary(.{ .name = "_native", .root_module = ext_module, .linkage = .dynamic });
        ext.linker_allow_shlib_undefined = true; // Python's symbols come from the interpreter.
        ext_step.dependOn(&b.addInstallFileWithDir(ext.getEmittedBin(), .lib, "_cffi.abi3.so").step);
    } else {
        ext_step.dependOn(&b.addFail("pass -Dpython-include=DIR, the folder of Python.h").step);
    }
}

const LayerSettings = struct {
    target: std.Build.ResolvedTarget,
    strip: ?bool,
    config: *std.Build.Module,
    kernel_objects: []const *std.Build.Step.Compile,
};

/// One module a layer, each with the imports the table allows.
fn addLayers(b: *std.Build, settings: LayerSettings, optimize: std.builtin.OptimizeMode) [layers.len]*std.Build.Module {
    var modules: [layers.len]*std.Build.Module = undefined;
    for (layers, 0..) |l, i| {
        const module = b.createModule(.{
            .root_source_file = b.path(b.fmt("zig/src/{s}/{s}.zig", .{ l.name, l.name })),
            .target = settings.target,
            .optimize = optimize,
            .link_libc = true,
            .pic = true,
            .strip = settings.strip,
        });
        module.addImport("config", settings.config);
        for (l.may_import) |import| module.addImport(import, moduleOf(modules[0..i], import));
        if (std.mem.eql(u8, l.name, "kernels")) {
            for (settings.kernel_objects) |object| module.addObject(object);
        }
        modules[i] = module;
    }
    return modules;
}

fn contains(names: []const []const u8, wanted: []const u8) bool {
    for (names) |name| if (std.mem.eql(u8, name, wanted)) return true;
    return false;
}

fn moduleOf(modules: []const *std.Build.Module, name: []const u8) *std.Build.Module {
    for (layers[0..modules.len], modules) |l, module| {
        if (std.mem.eql(u8, l.name, name)) return module;
    }
    @panic("build.zig: a layer imports one that does not stand above it");
}
