//! Root of one kernel object (one CPU level).
