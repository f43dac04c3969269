//! Root of the ops layer.
