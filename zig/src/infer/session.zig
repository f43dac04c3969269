//! One running conversation of ids with a model: the key/value cache, and the forward pass that fills it.
//!
//! `feed` takes ids in blocks, `step` takes one and gives its logits, `rewind` forgets the end again. The same ids give
//! the same bits whatever the number of threads. Ids that are fed and ids that are stepped round differently in the last bits;
//! how many are fed or stepped at once, and which sessions step together, makes no difference. Memory is taken in `init` only.
//! Does not know: text, sampling.

const std = @import("std");
const base = @import("base");
const model_file = @import("model.zig");
const matrix = @import("matrix.zig");
const attention = @import("attention.zig");
const cache_file = @import("cache.zig");
const experts = @import("experts.zig");
const kernels = @import("kernels");
const Model = model_file.Model;
const Allocator = std.mem.Allocator;

/// Ids computed together when a prompt is read.
pub const block_tokens = 512;

/// Most ids computed together as steps: drafts of one session, or one id each of several.
pub const step_tokens = 64;

/// Where the ids of one pass go.
const Place = union(enum) {
    /// To the end of this session's cache, as part of a prompt.
    prompt,
    /// Each to the end of a session's cache, as a step of it; those of one session side by side.
    lanes: struct { sessions: []const *Session, positions: []const usize },

    fn tokens(self: Place) matrix.Tokens {
        return if (self == .prompt) .of_prompt else .of_answers;
    }
};

pub const SessionError = error{
    /// The ids do not fit in what is left of the context.
    ContextFull,
    /// An id is not below the vocabulary's size.
    InvalidToken,
};

/// What a layer's products read.
pub const Inputs = enum {
    /// Of q, k and v.
    attention,
    /// Of the attention's output.
    attended,
    /// Of gate and up.
    mlp,
    /// Of down.
    activated,
};

/// Is shown the inputs of each layer's products: rows of one token each. Called by the thread that feeds.
pub const Observer = struct {
    context: *anyopaque,
    see: *const fn (context: *anyopaque, layer: usize, what: Inputs, rows: []const f32) void,
};

pub const Session = struct {
    gpa: Allocator,
    observer: ?Observer = null,
    model: *const Model,
    pool: *base.Pool,
    /// Most ids the cache holds.
    context: usize,
    /// The ids in the cache, in order.
    ids: std.ArrayList(u32),
    /// How many of the first ids were fed; the others were stepped.
    fed: usize = 0,
    cache: cache_file.Cache,
    /// Of the last id computed by `step` or by the end of `prefill`; one value a token of the vocabulary.
    logits: []f32,

    hidden: []f32,
    normed: []f32,
    query: []f32,
    key: []f32,
    value: []f32,
    attended: []f32,
    /// Of a dense MLP.
    gate: []f32,
    up: []f32,
    /// Of a mixture of experts.
    room: ?experts.Room,
    cosines: []f32,
    sines: []f32,
    rounded: matrix.Rounded,
    /// Multiply weights as the floats they stand for, not with activations rounded to 8 or 16 bits: slower, for comparisons.
    exact: bool = false,
    /// One a worker.
    scratch: []matrix.Scratch,
    /// One a worker.
    attention_scratch: []attention.Scratch,
    arena: std.heap.ArenaAllocator,

    /// `context` ids at most; it must not be 0. `model` and `pool` must outlive the session. The cache has the model's usual form.
    pub fn init(gpa: Allocator, model: *const Model, pool: *base.Pool, context: usize) error{OutOfMemory}!Session {
        return initForm(gpa, model, pool, context, model.cacheForm());
    }

    /// The same with a cache of this form, which must fit the model's heads.
    pub fn initForm(gpa: Allocator, model: *const Model, pool: *base.Pool, context: usize, form: cache_file.Form) error{OutOfMemory}!Session {
        std.debug.assert(context > 0);
        const c = model.config;
        const kv = c.keyValueWidth();
        var arena: std.heap.ArenaAllocator = .init(gpa);
        errdefer arena.deinit();

        const a = arena.allocator();
        const block = @max(step_tokens, @min(block_tokens, context));
        const columns = @max(@as(usize, c.intermediate_size), @max(c.queryWidth(), c.hidden_size));
        const dense_width: usize = if (c.hasExperts()) 0 else c.intermediate_size;
        const scratch = try a.alloc(matrix.Scratch, pool.n);
        for (scratch) |*one| one.* = try .init(a, columns);
        const attention_scratch = try a.alloc(attention.Scratch, pool.n);
        for (attention_scratch) |*one| one.* = try .init(a, form, context, c.head_dim);
        const shape: cache_file.Shape = .{ .layers = c.num_hidden_layers, .kv_heads = c.num_key_value_heads, .head_dim = c.head_dim, .context = context };
        var cache: cache_file.Cache = try .init(form, shape.withWindow(c.sliding_window, c.windowed_layers == .every, block));
        errdefer cache.deinit();
        var ids: std.ArrayList(u32) = .empty;
        try ids.ensureTotalCapacityPrecise(a, context);
        return .{
            .gpa = gpa,
            .model = model,
            .pool = pool,
            .context = context,
            .ids = ids,
            .cache = cache,
            .logits = try a.alloc(f32, c.vocab_size),
            .hidden = try a.alloc(f32, block * c.hidden_size),
            .normed = try a.alloc(f32, block * c.hidden_size),
            .query = try a.alloc(f32, block * c.queryWidth()),
            .key = try a.alloc(f32, block * kv),
            .value = try a.alloc(f32, block * kv),
            .attended = try a.alloc(f32, block * c.queryWidth()),
            .gate = try a.alloc(f32, block * dense_width),
            .up = try a.alloc(f32, block * dense_width),
            .room = if (c.hasExperts()) try .init(a, .{ .tokens = block, .experts = c.num_local_experts, .chosen = c.num_experts_per_tok, .hidden = c.hidden_size, .inner = c.intermediate_size }) else null,
            .cosines = try a.alloc(f32, block * c.head_dim / 2),
            .sines = try a.alloc(f32, block * c.head_dim / 2),
            .rounded = try .initWide(a, block, columns, if (c.hasExperts()) block * c.num_experts_per_tok * @max(c.hidden_size, c.intermediate_size) else 0),
            .scratch = scratch,
            .attention_scratch = attention_scratch,
            .arena = arena,
        };
    }

    /// Another conversation with the same model that computes in this one's memory and with its threads: only its cache and its
    /// logits are its own. The two must not be used at the same time, and this one must outlive it. Caller calls `deinit`.
    pub fn fork(self: *const Session) error{OutOfMemory}!Session {
        var other = self.*;
        other.arena = .init(self.gpa);
        errdefer other.arena.deinit();

        const a = other.arena.allocator();
        other.observer = null;
        other.ids = .empty;
        try other.ids.ensureTotalCapacityPrecise(a, self.context);
        other.fed = 0;
        other.logits = try a.alloc(f32, self.logits.len);
        other.cache = try .init(self.cache.form, self.cache.shape);
        return other;
    }

    pub fn deinit(self: *Session) void {
        self.cache.deinit();
        self.arena.deinit();
        self.* = undefined;
    }

    /// Number of ids in the cache.
    pub fn position(self: *const Session) usize {
        return self.ids.items.len;
    }

    /// Forgets all ids from `to` on. The logits are then of no position. Where a layer's window has moved on too far, the ids before
    /// `to` are computed again, with the same bits.
    pub fn rewind(self: *Session, to: usize) void {
        std.debug.assert(to <= self.position());
        const fed = @min(self.fed, to);
        const holds = self.cache.holds(to);
        self.ids.items.len = if (holds) to else 0;
        self.fed = if (holds) fed else 0;
        if (self.position() == 0) self.cache.first = 0;
        if (holds) return;
        const ids = self.ids.items.ptr[0..to];
        var done: usize = 0;
        while (done < to) {
            const is_fed = done < fed;
            const count: usize = if (is_fed) @min(block_tokens, fed - done) else @min(step_tokens, to - done);
            if (is_fed) self.forward(ids[done..][0..count], .prompt) else {
                const lanes: [step_tokens]*Session = @splat(self);
                var positions: [step_tokens]usize = undefined;
                for (&positions, done..) |*p, at| p.* = at;
                self.forward(ids[done..][0..count], .{ .lanes = .{ .sessions = lanes[0..count], .positions = positions[0..count] } });
            }
            done += count;
        }
    }

    /// How many of `wanted`'s first ids the cache already holds.
    pub fn commonPrefix(self: *const Session, wanted: []const u32) usize {
        return std.mem.findDiff(u32, self.ids.items, wanted) orelse wanted.len;
    }

    /// Appends ids without computing logits. Either all are appended or none.
    pub fn feed(self: *Session, ids: []const u32) SessionError!void {
        try self.check(ids);
        var done: usize = 0;
        while (done < ids.len) {
            const count: usize = @min(block_tokens, ids.len - done);
            self.forward(ids[done..][0..count], .prompt);
            done += count;
        }
    }

    /// Appends ids, at least one, and returns the logits of the last one.
    pub fn prefill(self: *Session, ids: []const u32) SessionError![]const f32 {
        std.debug.assert(ids.len > 0);
        try self.feed(ids);
        self.logitsOf((ids.len - 1) % block_tokens, 1, self.logits);
        return self.logits;
    }

    /// Appends one id and returns its logits, valid until the next call.
    pub fn step(self: *Session, id: u32) SessionError![]const f32 {
        try self.stepLanes(&.{self}, &.{id}, self.logits);
        return self.logits;
    }

    /// Appends ids[i] to lanes[i], as `step` of each in this order would, with one reading of the weights. The lanes are forks of
    /// this session, or itself; a lane that takes several ids stands there as often, side by side. out[i]: the logits behind ids[i],
    /// a row of the vocabulary each. The lanes' own `logits` are left as they are. At most `step_tokens`; all are appended or none.
    pub fn stepLanes(self: *Session, lanes: []const *Session, ids: []const u32, out: []f32) SessionError!void {
        std.debug.assert(lanes.len == ids.len and lanes.len <= step_tokens);
        var positions: [step_tokens]usize = undefined;
        var first: usize = 0;
        for (lanes, positions[0..lanes.len], 0..) |lane, *at, i| {
            if (lane != lanes[first]) first = i;
            at.* = lane.position() + i - first;
            try lane.check(ids[first .. i + 1]);
        }
        self.forward(ids, .{ .lanes = .{ .sessions = lanes, .positions = positions[0..lanes.len] } });
        self.logitsOf(0, ids.len, out);
    }

    /// Takes over what `other`, a fork of the same session, holds of its first `count` ids, all of them fed. Forgets its own.
    pub fn copyFed(self: *Session, other: *const Session, count: usize) void {
        std.debug.assert(count <= other.fed and self.context == other.context);
        if (!other.cache.holds(count)) {
            self.rewind(0);
            return self.feed(other.ids.items[0..count]) catch unreachable; // They fit in `other`.
        }
        self.cache.copy(&other.cache, count);
        self.ids.clearRetainingCapacity();
        self.ids.appendSliceAssumeCapacity(other.ids.items[0..count]);
        self.fed = count;
    }

    /// Appends ids as `prefill` does, and gives the logits behind each of them: a row of the vocabulary an id.
    pub fn prefillAll(self: *Session, ids: []const u32, out: []f32) SessionError!void {
        const vocab = self.logits.len;
        std.debug.assert(out.len == ids.len * vocab);
        try self.check(ids);
        var done: usize = 0;
        while (done < ids.len) {
            const count: usize = @min(block_tokens, ids.len - done);
            self.forward(ids[done..][0..count], .prompt);
            self.logitsOf(0, count, out[done * vocab ..][0 .. count * vocab]);
            done += count;
        }
    }

    /// Logits computed together by `logProbs`.
    pub const score_rows = 16;

    pub const ScoreError = SessionError || error{
        /// A logit is no number: the weights are broken.
        BadLogits,
    };

    /// Appends ids. out[i] = log of the probability of targets[i] behind ids[i]; likeliest[i]: no id is likelier.
    /// Either all are appended or, on an error of `SessionError`, none. `room`: score_rows rows of logits.
    pub fn logProbs(self: *Session, ids: []const u32, targets: []const u32, room: []f32, out: []f64, likeliest: []bool) ScoreError!void {
        const vocab: usize = self.model.config.vocab_size;
        const width: usize = self.model.config.hidden_size;
        std.debug.assert(ids.len == targets.len and ids.len == out.len and ids.len == likeliest.len);
        std.debug.assert(room.len == score_rows * vocab);
        try self.check(ids);
        for (targets) |id| if (id >= vocab) return error.InvalidToken;
        var done: usize = 0;
        while (done < ids.len) {
            const count: usize = @min(block_tokens, ids.len - done);
            self.forward(ids[done..][0..count], .prompt);
            const normed = self.normed[0 .. count * width];
            norm(normed, self.hidden[0 .. count * width], self.model.final_norm, self.model.config.rms_norm_eps);
            var at: usize = 0;
            while (at < count) {
                const rows: usize = @min(score_rows, count - at);
                self.multiply(&.{.{ .linear = &self.model.head, .out = room[0 .. rows * vocab] }}, normed[at * width ..][0 .. rows * width], rows, .of_prompt);
                for (0..rows) |row| {
                    const i = done + at + row;
                    const logits = room[row * vocab ..][0..vocab];
                    const wanted = logits[targets[i]];
                    var largest: f32 = undefined;
                    var sum: f32 = undefined;
                    kernels.table(f32).softmax_exp(vocab, logits.ptr, 1, &largest, &sum);
                    if (!std.math.isFinite(largest) or !std.math.isFinite(sum) or std.math.isNan(wanted)) return error.BadLogits;
                    out[i] = @as(f64, wanted - largest) - @log(@as(f64, sum));
                    likeliest[i] = wanted == largest;
                }
                at += rows;
            }
            done += count;
        }
    }

    fn check(self: *const Session, ids: []const u32) SessionError!void {
        if (ids.len > self.context - self.position()) return error.ContextFull;
        for (ids) |id| if (id >= self.model.config.vocab_size) return error.InvalidToken;
    }

    /// One block through all layers. Leaves the last hidden states of the block in `hidden`.
    fn forward(self: *Session, ids: []const u32, place: Place) void {
        const m = self.model;
        const c = m.config;
        const n = ids.len;
        const width: usize = c.hidden_size;
        const tokens = place.tokens();
        const hidden = self.hidden[0 .. n * width];
        const normed = self.normed[0 .. n * width];
        const query = self.query[0 .. n * c.queryWidth()];
        const key = self.key[0 .. n * c.keyValueWidth()];
        const value = self.value[0 .. n * c.keyValueWidth()];
        const attended = self.attended[0 .. n * c.queryWidth()];

        for (ids, 0..) |id, t| {
            const out = hidden[t * width ..][0..width];
            const row = m.embedding.rowsF32(id, 1, out);
            if (row.ptr != out.ptr) @memcpy(out, row);
        }
        self.makeRoom(place, n);
        self.angles(place, n);
        norm(normed, hidden, m.layers[0].attention_norm, c.rms_norm_eps);
        for (m.layers, 0..) |*layer, l| {
            self.show(l, .attention, normed);
            self.multiply(&.{
                .{ .linear = &layer.q, .out = query },
                .{ .linear = &layer.k, .out = key },
                .{ .linear = &layer.v, .out = value },
            }, normed, n, tokens);
            self.eachToken(n, Turn{ .session = self, .layer = l, .place = place }, Turn.run);
            self.attend(l, place, n);
            self.show(l, .attended, attended);
            self.multiply(&.{.{ .linear = &layer.o, .out = normed }}, attended, n, tokens);
            self.addAndNorm(n, layer.mlp_norm);
            self.show(l, .mlp, normed);
            switch (layer.mlp) {
                .dense => |*mlp| {
                    const gate = self.gate[0 .. n * c.intermediate_size];
                    const up = self.up[0 .. n * c.intermediate_size];
                    self.multiply(&.{ .{ .linear = &mlp.gate, .out = gate }, .{ .linear = &mlp.up, .out = up } }, normed, n, tokens);
                    self.activate(gate, up);
                    self.show(l, .activated, gate);
                    self.multiply(&.{.{ .linear = &mlp.down, .out = normed }}, gate, n, tokens);
                },
                .mixture => |*mixture| experts.run(.{
                    .pool = self.pool,
                    .scratch = self.scratch,
                    .rounded = if (self.exact) null else &self.rounded,
                }, mixture, &self.room.?, normed, normed, n, tokens),
            }
            self.addAndNorm(n, if (l + 1 < m.layers.len) m.layers[l + 1].attention_norm else null);
        }
        switch (place) {
            .lanes => |lanes| for (lanes.sessions, ids) |lane, id| lane.ids.appendAssumeCapacity(id),
            .prompt => {
                if (self.fed == self.position()) self.fed += n;
                for (ids) |id| self.ids.appendAssumeCapacity(id); // They may lie there already (`rewind`).
            },
        }
    }

    fn makeRoom(self: *Session, place: Place, n: usize) void {
        const lanes = switch (place) {
            .prompt => return self.cache.makeRoom(self.position(), n),
            .lanes => |lanes| lanes.sessions,
        };
        var t: usize = 0;
        while (t < n) {
            var count: usize = 1;
            while (t + count < n and lanes[t + count] == lanes[t]) count += 1;
            lanes[t].cache.makeRoom(lanes[t].position(), count);
            t += count;
        }
    }

    /// Logits of `count` tokens of the last block from `t` on.
    fn logitsOf(self: *Session, t: usize, count: usize, out: []f32) void {
        const width: usize = self.model.config.hidden_size;
        const normed = self.normed[0 .. count * width];
        norm(normed, self.hidden[t * width ..][0 .. count * width], self.model.final_norm, self.model.config.rms_norm_eps);
        self.multiply(&.{.{ .linear = &self.model.head, .out = out }}, normed, count, .of_answers);
    }

    fn show(self: *Session, layer: usize, what: Inputs, rows: []const f32) void {
        if (self.observer) |o| o.see(o.context, layer, what, rows);
    }

    fn multiply(self: *Session, jobs: []const matrix.Job, inp: []const f32, n: usize, tokens: matrix.Tokens) void {
        matrix.multiply(self.pool, self.scratch, if (self.exact) null else &self.rounded, jobs, inp, n, tokens);
    }

    /// gate = silu(gate) · up, cut into parts for the workers.
    fn activate(self: *Session, gate: []f32, up: []const f32) void {
        const part = 4096;
        if (gate.len <= 4 * part) return kernels.table(f32).swiglu_forward(gate.len, gate.ptr, gate.ptr, up.ptr);
        const Task = struct { gate: []f32, up: []const f32 };
        self.pool.parallelFor(Task{ .gate = gate, .up = up }, (gate.len + part - 1) / part, struct {
            fn run(task: Task, index: usize, _: usize) void {
                const start = index * part;
                const g = task.gate[start..@min(start + part, task.gate.len)];
                kernels.table(f32).swiglu_forward(g.len, g.ptr, g.ptr, task.up[start..].ptr);
            }
        }.run);
    }

    /// Cosine and sine of every angle of the block's positions, in f32 angles as transformers computes them.
    fn angles(self: *Session, place: Place, n: usize) void {
        const inv = self.model.inverse_frequencies;
        for (0..n) |t| {
            const at: f32 = @floatFromInt(self.positionOf(place, t));
            for (inv, self.cosines[t * inv.len ..][0..inv.len], self.sines[t * inv.len ..][0..inv.len]) |f, *cosine, *sine| {
                const angle: f64 = at * f;
                cosine.* = @floatCast(@cos(angle) * self.model.magnitude);
                sine.* = @floatCast(@sin(angle) * self.model.magnitude);
            }
        }
    }

    /// f for every token of a pass; a few are not worth waking the other workers for.
    fn eachToken(self: *Session, n: usize, task: anytype, comptime f: fn (@TypeOf(task), usize, usize) void) void {
        if (n >= 8) return self.pool.parallelFor(task, n, f);
        for (0..n) |t| f(task, t, 0);
    }

    /// hidden += normed; normed = hidden through the norm that comes next, if one does.
    fn addAndNorm(self: *Session, n: usize, weight: ?[]const f32) void {
        const Task = struct { session: *Session, weight: ?[]const f32 };
        self.eachToken(n, Task{ .session = self, .weight = weight }, struct {
            fn run(task: Task, t: usize, _: usize) void {
                const s = task.session;
                const width: usize = s.model.config.hidden_size;
                const hidden = s.hidden[t * width ..][0..width];
                const normed = s.normed[t * width ..][0..width];
                add(hidden, normed);
                if (task.weight) |w| norm(normed, hidden, w, s.model.config.rms_norm_eps);
            }
        }.run);
    }

    /// What happens to a token's query, key and value between their products and attention: norms, rotation, and the cache.
    const Turn = struct {
        session: *Session,
        layer: usize,
        place: Place,

        fn run(self: Turn, t: usize, _: usize) void {
            const s = self.session;
            const c = s.model.config;
            const layer = &s.model.layers[self.layer];
            const query = s.query[t * c.queryWidth() ..][0..c.queryWidth()];
            const key = s.key[t * c.keyValueWidth() ..][0..c.keyValueWidth()];
            const value = s.value[t * c.keyValueWidth() ..][0..c.keyValueWidth()];
            if (layer.q_norm) |w| norm(query, query, w, c.rms_norm_eps);
            if (layer.k_norm) |w| norm(key, key, w, c.rms_norm_eps);
            s.rotate(query, t);
            s.rotate(key, t);
            const lane = if (self.place == .lanes) self.place.lanes.sessions[t] else s;
            lane.cache.store(self.layer, s.positionOf(self.place, t), key, value);
        }
    };

    /// Heads of token `t` of the pass, rotated in place in the order of the file's rows.
    fn rotate(self: *Session, heads: []f32, t: usize) void {
        const d: usize = self.model.config.head_dim;
        const half = d / 2;
        const cosines = self.cosines[t * half ..][0..half];
        const sines = self.sines[t * half ..][0..half];
        const rope = switch (self.model.rope_order) {
            .halves => kernels.table(f32).rope,
            .pairs => kernels.table(f32).rope_pairs,
        };
        rope(heads.len / d, half, heads.ptr, cosines.ptr, sines.ptr, 1);
    }

    /// Position of token `t` of a pass that is not appended yet.
    fn positionOf(self: *const Session, place: Place, t: usize) usize {
        return switch (place) {
            .prompt => self.position() + t,
            .lanes => |lanes| lanes.positions[t],
        };
    }

    fn attend(self: *Session, layer: usize, place: Place, n: usize) void {
        switch (place) {
            .prompt => self.attendTo(self, layer, self.query, self.attended, n, place.tokens()),
            .lanes => |lanes| {
                const width = self.model.config.queryWidth();
                var t: usize = 0;
                while (t < n) {
                    const lane = lanes.sessions[t];
                    var count: usize = 1;
                    while (t + count < n and lanes.sessions[t + count] == lane) count += 1;
                    self.attendTo(lane, layer, self.query[t * width ..], self.attended[t * width ..], count, place.tokens());
                    t += count;
                }
            },
        }
    }

    /// `n` queries behind what `lane` holds, their own keys and values remembered already.
    fn attendTo(self: *Session, lane: *const Session, layer: usize, query: []const f32, out: []f32, n: usize, tokens: matrix.Tokens) void {
        var cached = lane.cache.read(layer, self.model.config.num_attention_heads);
        cached.window = self.model.layers[layer].window;
        cached.sinks = self.model.layers[layer].sinks;
        attention.run(self.pool, self.attention_scratch, cached, query, out, lane.position(), n, tokens);
    }
};

/// out[row] = inp[row] / rms(inp[row]) · weight, for every row of weight's length. `out` may be `inp`.
fn norm(out: []f32, inp: []const f32, weight: []const f32, eps: f64) void {
    std.debug.assert(out.len == inp.len);
    var row: usize = 0;
    while (row < inp.len) : (row += weight.len) {
        _ = kernels.table(f32).rms_forward(weight.len, inp[row..].ptr, weight.ptr, out[row..].ptr, @floatCast(eps));
    }
}

fn add(into: []f32, what: []const f32) void {
    std.debug.assert(into.len == what.len);
    kernels.table(f32).add(into.len, into.ptr, what.ptr);
}

test {
    _ = @import("session_test.zig");
}
