//! Root of the train layer.
