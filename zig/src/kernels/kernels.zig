//! Root of the kernels layer.
