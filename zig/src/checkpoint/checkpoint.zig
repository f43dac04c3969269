//! Root of the checkpoint layer.
