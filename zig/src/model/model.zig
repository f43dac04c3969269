//! Root of the model layer.
