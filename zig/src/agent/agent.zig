//! Root of the agent layer: conversations, the backends that answer, and the terminal they meet in.

pub const session = @import("session.zig");
pub const store = @import("store.zig");
pub const backend = @import("backend.zig");
pub const channels = @import("channels.zig");
pub const ollama = @import("ollama.zig");
pub const interrupt = @import("interrupt.zig");
pub const line_reader = @import("line_reader.zig");
pub const local = @import("local.zig");
pub const stop_text = @import("stop_text.zig");
pub const vocabulary = @import("vocabulary.zig");
pub const terminal = @import("terminal.zig");
pub const visible = @import("visible.zig");

test {
    _ = session;
    _ = store;
    _ = backend;
    _ = channels;
    _ = ollama;
    _ = interrupt;
    _ = line_reader;
    _ = local;
    _ = &local.Local.open;
    _ = &local.Local.backend;
    _ = stop_text;
    _ = vocabulary;
    _ = terminal;
    _ = visible;
}
