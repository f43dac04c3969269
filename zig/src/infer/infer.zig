//! Root of the infer layer.
