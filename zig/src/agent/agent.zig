//! Root of the agent layer: conversations, the backends that answer, and the terminal they meet in.

pub const session = @import("session.zig");
pub const store = @import("store.zig");
pub const backend = @import("backend.zig");
pub const ollama = @import("ollama.zig");
pub const visible = @import("visible.zig");

test {
    _ = session;
    _ = store;
    _ = backend;
    _ = ollama;
    _ = visible;
}
