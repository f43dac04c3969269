//! Exporting from memory, over a disk that can fail.

const std = @import("std");
