//! Root of the formats layer.
