//! Root of the tensor layer.
