//! Root of the prepare layer: from lines of JSON to token files, rows read, tokenised and written on all threads.
//!
//! Knows the columns of rows and what of them is learned; tokenizers and token files through their own layers.

pub const block = @import("block.zig");
pub const encode = @import("encode.zig");
pub const job = @import("job.zig");
pub const journal = @import("journal.zig");
pub const report = @import("report.zig");
pub const row = @import("row.zig");
pub const source = @import("source.zig");

pub const Job = job.Job;
pub const Loss = encode.Loss;
pub const Options = job.Options;
pub const Progress = job.Progress;
pub const Report = report.Report;

test {
    _ = block;
    _ = encode;
    _ = job;
    _ = journal;
    _ = report;
    _ = @import("run.zig");
    _ = row;
    _ = source;
    _ = @import("job_test.zig");
}
