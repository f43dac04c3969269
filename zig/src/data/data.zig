//! Root of the data layer.
