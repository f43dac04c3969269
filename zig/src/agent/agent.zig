//! Root of the agent layer.
