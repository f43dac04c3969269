//! Root of the infer layer: ids in, ids out.

pub const model = @import("model.zig");
pub const session = @import("session.zig");
pub const sampler = @import("sampler.zig");
pub const generate = @import("generate.zig");
pub const draft = @import("draft.zig");
pub const batch = @import("batch.zig");
pub const automaton = @import("automaton.zig");
pub const json_schema = @import("json_schema.zig");
pub const constraint = @import("constraint.zig");
pub const prompt_cache = @import("prompt_cache.zig");
pub const matrix = @import("matrix.zig");
pub const importance = @import("importance.zig");
pub const attention = @import("attention.zig");
pub const experts = @import("experts.zig");
pub const cache = @import("cache.zig");

pub const Model = model.Model;
pub const Session = session.Session;
pub const CacheForm = cache.Form;
pub const Sampler = sampler.Sampler;
pub const Generator = generate.Generator;
pub const Batch = batch.Batch;
pub const Constraint = constraint.Constraint;

test {
    @import("std").testing.refAllDecls(Session);
    @import("std").testing.refAllDecls(Generator);
    _ = &Model.open;
    _ = model;
    _ = session;
    _ = sampler;
    _ = generate;
    _ = draft;
    _ = batch;
    _ = automaton;
    _ = json_schema;
    _ = constraint;
    _ = prompt_cache;
    _ = &prompt_cache.identify;
    _ = matrix;
    _ = importance;
    _ = attention;
    _ = experts;
    _ = cache;
}
