//! The promise of this layer, tried: whatever happens during a save, the checkpoint before it loads.
//!
//! Whole saves on a disk in memory: power lost at every operation, in three ways and with several seeds; every operation
//! failing, once or for ever; every kind of damage afterwards. The canary, a disk whose sync does nothing, must be caught.

const std = @import("std");
const base = @import("base");
const arch = @import("arch");
const folder = @import("folder.zig");
const initialize = @import("initialize.zig");
const model_file = @import("model_file.zig");
const save_file = @import("save.zig");
const store = @import("store.zig");
const testing = std.testing;
const Diagnostic = base.Diagnostic;
const MemoryDisk = base.storage.MemoryDisk;
const Storage = base.storage.Storage;
const gpa = testing.allocator;

const config: arch.ModelConfig = .{
    .vocab_size = 13,
    .hidden_size = 8,
    .intermediate_size = 8,
    .num_hidden_layers = 1,
    .num_attention_heads = 2,
    .num_key_value_heads = 1,
    .head_dim = 4,
};

/// A model whose weights and moments follow from the step, so that a loaded one tells which it is.
const Run = struct {
    model: model_file.LoadedModel(f32),
    /// For what a save or a check needs meanwhile.
    scratch: std.mem.Allocator = gpa,
    first: []f32,
    second: []f32,

    fn init() !Run {
        var model = try initialize.initRandom(f32, gpa, config, 1);
        errdefer model.deinit(gpa);

        return .{
            .model = model,
            .first = try gpa.alloc(f32, model.weights.len),
            .second = try gpa.alloc(f32, model.weights.len),
        };
    }

    fn deinit(self: *Run) void {
        gpa.free(self.first);
        gpa.free(self.second);
        self.model.deinit(gpa);
    }

    fn value(step: u64, i: usize) f32 {
        return @as(f32, @floatFromInt(step)) + @as(f32, @floatFromInt(i)) / 1024;
    }

    fn save(self: *Run, s: Storage, step: u64, keep: u32, diag: *Diagnostic) !void {
        for (self.model.weights, self.first, self.second, 0..) |*w, *m, *v, i| {
            w.* = value(step, i);
            m.* = value(step, i) * 2;
            v.* = value(step, i) * 4;
        }
        var state_buffer: [64]u8 = undefined;
        const state = try std.fmt.bufPrint(&state_buffer, "{{\"global_step\": {d}}}", .{step});
        self.scratch.free(try save_file.saveOn(f32, self.scratch, s, .{
            .run_dir = "run",
            .step = step,
            .config = config,
            .parameters = self.model.layout.parameters,
            .weights = self.model.weights,
            .optimizer = .{ .first_moment = self.first, .second_moment = self.second },
            .state_json = state,
            .tokenizer_dir = "tokenizer",
            .keep = keep,
        }, diag));
    }

    /// The newest whole checkpoint, fully loaded and compared. Null when there is none.
    fn check(self: *Run, s: Storage, diag: *Diagnostic) !?u64 {
        const found = try store.latestOn(self.scratch, s, "run", diag) orelse return null;
        defer self.scratch.free(found.path);

        var inner: Diagnostic = .{};
        var loaded = try model_file.loadModelOn(f32, self.scratch, s, found.path, &inner);
        defer loaded.deinit(self.scratch);

        try store.loadOptimizerOn(f32, self.scratch, s, found.path, loaded.layout.parameters, self.first, self.second, &inner);
        for (loaded.weights, self.first, self.second, 0..) |w, m, v, i| {
            try testing.expectEqual(value(found.step, i), w);
            try testing.expectEqual(w * 2, m);
            try testing.expectEqual(w * 4, v);
        }
        const state = try store.readStateOn(self.scratch, s, found.path, &inner);
        defer self.scratch.free(state);

        var expected: [64]u8 = undefined;
        try testing.expectEqualStrings(try std.fmt.bufPrint(&expected, "{{\"global_step\": {d}}}", .{found.step}), state);
        return found.step;
    }
};

fn newDisk() !MemoryDisk {
    var disk: MemoryDisk = try .init(gpa);
    errdefer disk.deinit();

    const s = disk.storage();
    try s.ensureFolder("tokenizer");
    try base.storage.writeFile(gpa, s, "tokenizer/tokenizer.json", "{}");
    try base.storage.writeFile(gpa, s, "tokenizer/chat_template.jinja", "{{ messages }}");
    return disk;
}

fn countTemporaries(s: Storage) !usize {
    var listing = try s.list(gpa, "run");
    defer listing.deinit();

    var count: usize = 0;
    for (listing.entries) |entry| if (base.storage.finalNameOf(entry.name) != null) {
        count += 1;
    };
    return count;
}

const Tally = struct { cases: usize = 0, bad: usize = 0 };

/// Saves steps 2 and 4, then a third save (a new step, or step 4 again over its old folder) with the power going at each
/// operation. A case is bad when what loads is neither the announced state nor the one before.
fn sweep(third: u64, seeds: u64, skip_sync: bool) !Tally {
    var run = try Run.init();
    defer run.deinit();

    var before_it = try newDisk();
    defer before_it.deinit();

    var diag: Diagnostic = .{};
    try run.save(before_it.storage(), 2, 2, &diag);
    try run.save(before_it.storage(), 4, 2, &diag);
    // Thousands of saves: memory from an arena that is reset after each. Leaks are looked for in the other tests.
    var arena: std.heap.ArenaAllocator = .init(std.heap.page_allocator);
    defer arena.deinit();

    run.scratch = arena.allocator();
    var tally: Tally = .{};
    var at: usize = 0;
    while (true) : (at += 1) {
        var reached_end = false;
        for ([_]bool{ true, false }) |before| for (std.enums.values(base.storage.Crash)) |crash| for (0..seeds) |seed| {
            if (crash == .drop and seed > 0) continue; // Nothing is drawn.
            _ = arena.reset(.retain_capacity);
            var disk = try before_it.clone(arena.allocator());

            const s = disk.storage();
            disk.skip_sync = skip_sync;
            const first = disk.operations;
            disk.fault = .{ .at = first + at, .what = if (before) .power_off_before else .power_off_after };
            const saved = if (run.save(s, third, 2, &diag)) |_| true else |err| failed: {
                if (err == error.OutOfMemory) return err;
                break :failed false;
            };
            if (disk.operations <= first + at) reached_end = true;
            try disk.reboot(crash, seed *% 1000 +% at);
            tally.cases += 1;
            const step = run.check(s, &diag) catch {
                tally.bad += 1;
                continue;
            };
            const good = step != null and (step.? == third or (step.? == 4 and !saved));
            // On a sound disk nothing under a final name is ever damaged, not even to be passed over.
            if (!good or diag.text().len > 0) {
                tally.bad += 1;
                continue;
            }
            // The next save removes what this one left.
            if (seed == 0) {
                run.save(s, third + 2, 2, &diag) catch {
                    tally.bad += 1;
                    continue;
                };
                if (try run.check(s, &diag) != third + 2 or try countTemporaries(s) != 0) tally.bad += 1;
            }
        };
        if (reached_end) return tally;
    }
}

test "power lost at any operation of a save leaves a whole checkpoint" {
    for ([_]u64{ 6, 4 }) |third| {
        const tally = try sweep(third, 14, false);
        try testing.expectEqual(0, tally.bad);
        try testing.expect(tally.cases > 2500);
    }
}

test "canary: a disk whose sync does nothing is caught" {
    const tally = try sweep(6, 2, true);
    try testing.expect(tally.bad > 0);
}

test "a failing operation means a failed save with a sentence, and the old checkpoint" {
    var run = try Run.init();
    defer run.deinit();

    for ([_]base.storage.Error{ error.NoSpaceLeft, error.InputOutput }) |cause| for ([_]bool{ false, true }) |from_then_on| {
        var at: usize = 0;
        while (true) : (at += 1) {
            var disk = try newDisk();
            defer disk.deinit();

            const s = disk.storage();
            var diag: Diagnostic = .{};
            try run.save(s, 2, 1, &diag);
            const first = disk.operations;
            disk.fault = .{ .at = first + at, .what = .{ .fail = cause }, .from_then_on = from_then_on };
            const result = run.save(s, 4, 1, &diag);
            const reached_end = disk.operations <= first + at;
            disk.fault = null;
            if (result) |_| {
                // Retiring the old one may fail after the save has succeeded: a warning, and both are there.
                var quiet: Diagnostic = .{};
                try testing.expectEqual(4, try run.check(s, &quiet));
            } else |err| {
                try testing.expectEqual(cause, err);
                try testing.expect(diag.text().len > 0);
                try testing.expect(try countTemporaries(s) <= 1);
                const step = try run.check(s, &diag);
                try testing.expect(step == 2 or step == 4);
            }
            try run.save(s, 6, 1, &diag);
            try testing.expectEqual(6, try run.check(s, &diag));
            try testing.expectEqual(0, try countTemporaries(s));
            if (reached_end) break;
        }
        try testing.expect(at > 20);
    };
}

test "short writes are continued and the file is whole" {
    var run = try Run.init();
    defer run.deinit();

    var at: usize = 0;
    while (at < 40) : (at += 1) {
        var disk = try newDisk();
        defer disk.deinit();

        const s = disk.storage();
        var diag: Diagnostic = .{};
        disk.fault = .{ .at = disk.operations + at, .what = .short_write };
        try run.save(s, 2, 1, &diag);
        try testing.expectEqual(2, try run.check(s, &diag));
    }
}

test "any flipped bit or cut is found, and the checkpoint before is used" {
    var run = try Run.init();
    defer run.deinit();

    var disk = try newDisk();
    defer disk.deinit();

    const s = disk.storage();
    var diag: Diagnostic = .{};
    try run.save(s, 2, 0, &diag);
    try run.save(s, 4, 0, &diag);
    var listing = try s.list(gpa, "run/checkpoint-4");
    defer listing.deinit();

    try testing.expectEqual(7, listing.entries.len);
    var prng: base.Prng = .init(20260101);
    for (listing.entries) |entry| {
        const path = try base.storage.join(gpa, "run/checkpoint-4", entry.name);
        defer gpa.free(path);

        const size = try disk.fileSize(path);
        for (0..60) |_| {
            const bit: usize = @intCast(prng.below(size * 8));
            try disk.flipBit(path, bit);
            const found = (try store.latestOn(gpa, s, "run", &diag)).?;
            defer gpa.free(found.path);

            testing.expectEqual(2, found.step) catch |err| {
                std.debug.print("bit {d} of {s} was not noticed\n", .{ bit, path });
                return err;
            };
            try testing.expect(std.mem.find(u8, diag.text(), "run/checkpoint-4/") != null);
            try testing.expect(std.mem.find(u8, diag.text(), "Using run/checkpoint-2 instead.") != null);
            try disk.flipBit(path, bit);
        }
        const whole = try s.readAlloc(gpa, path);
        defer gpa.free(whole);

        for (0..20) |_| {
            try disk.truncate(path, @intCast(prng.below(size)));
            const found = (try store.latestOn(gpa, s, "run", &diag)).?;
            defer gpa.free(found.path);

            try testing.expectEqual(2, found.step);
            try base.storage.writeFile(gpa, s, path, whole);
        }
    }
    try testing.expectEqual(4, try run.check(s, &diag));
    try disk.flipBit("run/checkpoint-4/model.safetensors", 4000);
    try disk.flipBit("run/checkpoint-2/optimizer.safetensors", 4000);
    try testing.expectError(error.AllCheckpointsDamaged, store.latestOn(gpa, s, "run", &diag));
    var inner: Diagnostic = .{};
    try testing.expectError(error.DamagedCheckpoint, model_file.loadModelOn(f32, gpa, s, "run/checkpoint-4", &inner));
    try testing.expectEqualStrings("run/checkpoint-4/model.safetensors fails its checksum", inner.text());
}

test "old checkpoints go, the protected one and later ones stay" {
    var run = try Run.init();
    defer run.deinit();

    var disk = try newDisk();
    defer disk.deinit();

    const s = disk.storage();
    var diag: Diagnostic = .{};
    for ([_]u64{ 2, 4, 6, 8, 100 }) |step| try run.save(s, step, 0, &diag);
    try store.retire(gpa, s, "run", 8, 2, 4);
    for ([_]u64{ 4, 6, 8, 100 }) |step| {
        const path = try folder.pathOf(gpa, "run/", step);
        defer gpa.free(path);

        try testing.expectEqual(.folder, (try s.kind(path)).?);
    }
    try testing.expectEqual(null, try s.kind("run/checkpoint-2"));
    try testing.expectEqual(null, try store.latestOn(gpa, s, "elsewhere", &diag));
}

test "weights and moments that are no numbers are refused by name, and nothing is written" {
    var run = try Run.init();
    defer run.deinit();

    var disk = try newDisk();
    defer disk.deinit();

    const s = disk.storage();
    var diag: Diagnostic = .{};
    @memset(run.first, 0);
    @memset(run.second, 0);
    const p = run.model.layout.get(0, .up_weight).?;
    const buffers = [_][]f32{ run.model.weights, run.first, run.second };
    const names = [_][]const u8{ "\"model.layers.0.mlp.up_proj.weight\"", "\"exp_avg.model.layers.0.mlp.up_proj.weight\"", "\"exp_avg_sq.model.layers.0.mlp.up_proj.weight\"" };
    for (buffers, names) |buffer, name| {
        buffer[p.offset + 5] = std.math.nan(f32);
        defer buffer[p.offset + 5] = 0;

        try testing.expectError(error.NonFiniteWeights, save_file.saveOn(f32, gpa, s, .{
            .run_dir = "run",
            .step = 1,
            .config = config,
            .parameters = run.model.layout.parameters,
            .weights = run.model.weights,
            .optimizer = .{ .first_moment = run.first, .second_moment = run.second },
            .state_json = "{}",
        }, &diag));
        try testing.expect(std.mem.find(u8, diag.text(), name) != null);
        try testing.expectEqual(null, try s.kind("run"));
    }
}

test "optimizer state of another kind is refused" {
    var run = try Run.init();
    defer run.deinit();

    var disk = try newDisk();
    defer disk.deinit();

    const s = disk.storage();
    var diag: Diagnostic = .{};
    try run.save(s, 2, 0, &diag);
    try testing.expectError(error.UnexpectedTensor, store.loadOptimizerOn(f32, gpa, s, "run/checkpoint-2", run.model.layout.parameters, run.first, null, &diag));
    @memset(run.first, 0);
    gpa.free(try save_file.saveOn(f32, gpa, s, .{
        .run_dir = "run",
        .step = 3,
        .config = config,
        .parameters = run.model.layout.parameters,
        .weights = run.model.weights,
        .optimizer = .{ .first_moment = run.first },
        .state_json = "{}",
    }, &diag));
    try store.loadOptimizerOn(f32, gpa, s, "run/checkpoint-3", run.model.layout.parameters, run.first, null, &diag);
    try testing.expectError(error.MissingTensor, store.loadOptimizerOn(f32, gpa, s, "run/checkpoint-3", run.model.layout.parameters, run.first, run.second, &diag));
    gpa.free(try save_file.saveOn(f32, gpa, s, .{
        .run_dir = "run",
        .step = 4,
        .config = config,
        .parameters = run.model.layout.parameters,
        .weights = run.model.weights,
        .state_json = "{}",
    }, &diag));
    try testing.expectError(error.FileNotFound, store.loadOptimizerOn(f32, gpa, s, "run/checkpoint-4", run.model.layout.parameters, run.first, run.second, &diag));
}

test "every allocation failure during a save is survived, with the old checkpoint whole" {
    var run = try Run.init();
    defer run.deinit();

    var wide = try initialize.initRandom(f64, gpa, config, 5);
    defer wide.deinit(gpa);

    try testing.checkAllAllocationFailures(gpa, struct {
        fn once(allocator: std.mem.Allocator, r: *Run, model: *model_file.LoadedModel(f64)) !void {
            var disk = try newDisk();
            defer disk.deinit();

            const s = disk.storage();
            var diag: Diagnostic = .{};
            try r.save(s, 2, 0, &diag);
            const path = save_file.saveOn(f64, allocator, s, .{
                .run_dir = "run",
                .step = 4,
                .config = model.config,
                .parameters = model.layout.parameters,
                .weights = model.weights,
                .state_json = "{}",
                .tokenizer_dir = "tokenizer",
            }, &diag) catch |err| {
                try testing.expectEqual(2, try r.check(s, &diag));
                return err;
            };
            allocator.free(path);
        }
    }.once, .{ &run, &wide });
}

test "a real run folder: locked once, saved, found, loaded bit by bit" {
    var tmp = testing.tmpDir(.{});
    defer tmp.cleanup();

    const run_dir = try std.fmt.allocPrint(gpa, ".zig-cache/tmp/{s}/deep/run", .{tmp.sub_path});
    defer gpa.free(run_dir);

    const io = testing.io;
    var diag: Diagnostic = .{};
    var lock = try store.lockRun(gpa, io, run_dir, &diag);
    try testing.expectError(error.Locked, store.lockRun(gpa, io, run_dir, &diag));
    try testing.expect(std.mem.find(u8, diag.text(), "another process") != null);
    var model = try initialize.initRandom(f64, gpa, config, 9);
    defer model.deinit(gpa);

    const path = try save_file.save(f64, gpa, io, .{
        .run_dir = run_dir,
        .step = 12,
        .config = config,
        .parameters = model.layout.parameters,
        .weights = model.weights,
        .state_json = "{}",
    }, &diag);
    defer gpa.free(path);

    const found = (try store.latest(gpa, io, run_dir, &diag)).?;
    defer gpa.free(found.path);

    try testing.expectEqualStrings(path, found.path);
    var loaded = try model_file.loadModel(f64, gpa, io, found.path, &diag);
    defer loaded.deinit(gpa);

    try testing.expectEqualDeep(config, loaded.config);
    try testing.expectEqualSlices(f64, model.weights, loaded.weights);
    lock.release(io);
    var again = try store.lockRun(gpa, io, run_dir, &diag);
    again.release(io);
}

test "every allocation failure while looking for the newest checkpoint is survived" {
    var run = try Run.init();
    defer run.deinit();

    var disk = try newDisk();
    defer disk.deinit();

    const s = disk.storage();
    var diag: Diagnostic = .{};
    try run.save(s, 2, 0, &diag);
    try run.save(s, 4, 0, &diag);
    try disk.flipBit("run/checkpoint-4/config.json", 100);
    try testing.checkAllAllocationFailures(gpa, struct {
        fn once(allocator: std.mem.Allocator, storage: Storage, r: *Run) !void {
            var inner: Diagnostic = .{};
            const found = (try store.latestOn(allocator, storage, "run", &inner)).?;
            defer allocator.free(found.path);

            try testing.expectEqual(2, found.step);
            try store.loadOptimizerOn(f32, allocator, storage, found.path, r.model.layout.parameters, r.first, r.second, &inner);
            allocator.free(try store.readStateOn(allocator, storage, found.path, &inner));
        }
    }.once, .{ s, &run });
}

test "a folder from another program, without checksums, is checked by its structure" {
    var run = try Run.init();
    defer run.deinit();

    var disk = try newDisk();
    defer disk.deinit();

    const s = disk.storage();
    var diag: Diagnostic = .{};
    try run.save(s, 2, 0, &diag);
    try run.save(s, 4, 0, &diag);
    try s.deleteFile("run/checkpoint-4/checksums.json");
    try testing.expectEqual(4, try run.check(s, &diag));
    try disk.truncate("run/checkpoint-4/model.safetensors", 300);
    try testing.expectEqual(2, try run.check(s, &diag));
    try testing.expect(std.mem.find(u8, diag.text(), "run/checkpoint-4/model.safetensors") != null);
    try s.deleteFile("run/checkpoint-4/model.safetensors");
    try testing.expectEqual(2, try run.check(s, &diag));
}
