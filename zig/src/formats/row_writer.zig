//! Rows on their way into a GGUF: read as f32 wherever they come from, stored as the type planned, in pieces of a few MB.
//!
//! Threads work on chunks of whole rows whose borders follow from shapes alone, so the bytes do not depend on the number of threads.
//! Memory is one piece of stored bytes and one chunk of f32 a thread, however large a tensor is.
//! Does not know: files, where rows come from, which type is right.

const std = @import("std");
const base = @import("base");
const tensor = @import("tensor");
const quant = @import("quant");
const gguf_writer = @import("gguf_writer.zig");
const DType = tensor.DType;

/// Where the rows of one tensor come from.
pub const Rows = struct {
    context: *const anyopaque,
    /// Writes the numbers of whole rows from row `first` of the file on; called by several threads at once.
    read: *const fn (context: *const anyopaque, first: usize, out: []f32) void,
    /// Asked for each row first: writes its bytes where the source has them in the type planned. Null: the source never has.
    stored: ?*const fn (context: *const anyopaque, row: usize, out: []u8) Stored = null,

    pub const Stored = enum {
        written,
        /// Its numbers are to be read and stored anew.
        convert,
        not_finite,
    };
};

pub const Importance = struct {
    /// One row a matrix of the tensor (an expert), one after the other.
    values: []const f32,
    rows_of_matrix: usize,
};

pub const Error = std.Io.Writer.Error || error{NotFinite};

pub const RowWriter = struct {
    pool: ?*base.Pool,
    /// One a worker.
    scratch: [][]f32,
    piece: []u8,

    /// f32 numbers of one chunk, or one row where a row is longer. The chunk and its bytes stay in a core's own cache.
    const chunk_len = 1 << 15;
    /// Stored bytes of one piece, or one row's.
    const piece_bytes = 8 << 20;

    /// `columns_max`: the longest row; `row_bytes_max`: the most bytes a row is stored in.
    pub fn init(gpa: std.mem.Allocator, pool: ?*base.Pool, columns_max: usize, row_bytes_max: usize) error{OutOfMemory}!RowWriter {
        const scratch = try gpa.alloc([]f32, if (pool) |p| p.n else 1);
        errdefer gpa.free(scratch);
        var made: usize = 0;
        errdefer for (scratch[0..made]) |one| gpa.free(one);
        while (made < scratch.len) : (made += 1) scratch[made] = try gpa.alloc(f32, @max(chunk_len, columns_max));
        return .{ .pool = pool, .scratch = scratch, .piece = try gpa.alloc(u8, @max(piece_bytes, row_bytes_max)) };
    }

    pub fn deinit(self: *RowWriter, gpa: std.mem.Allocator) void {
        for (self.scratch) |one| gpa.free(one);
        gpa.free(self.scratch);
        gpa.free(self.piece);
        self.* = undefined;
    }

    /// The next tensor of the stream: `rows` rows of `columns` numbers.
    pub fn writeTensor(self: *RowWriter, stream: *gguf_writer.Stream, columns: usize, rows: Rows, importance: ?Importance) Error!void {
        const planned = stream.header.tensors.items[stream.current];
        const row_bytes = planned.dtype.rowBytes(columns) catch unreachable; // The header took this type.
        const count = planned.bytes / row_bytes;
        var task: Task = .{
            .writer = self,
            .rows = rows,
            .dtype = planned.dtype,
            .columns = columns,
            .row_bytes = row_bytes,
            .chunk_rows = @max(1, chunk_len / columns),
            .importance = importance,
        };
        // Whole chunks, as many as a piece holds.
        const rows_of_piece = @max(1, self.piece.len / row_bytes / task.chunk_rows) * task.chunk_rows;
        while (task.first < count) : (task.first += task.rows_now) {
            task.rows_now = @min(@min(rows_of_piece, self.piece.len / row_bytes), count - task.first);
            const chunks = (task.rows_now + task.chunk_rows - 1) / task.chunk_rows;
            if (self.pool) |pool| pool.parallelFor(&task, chunks, Task.run) else for (0..chunks) |chunk| Task.run(&task, chunk, 0);
            if (task.bad.load(.monotonic)) return error.NotFinite;
            try stream.write(self.piece[0 .. task.rows_now * row_bytes]);
        }
    }
};

const Task = struct {
    writer: *RowWriter,
    rows: Rows,
    dtype: DType,
    columns: usize,
    row_bytes: usize,
    chunk_rows: usize,
    importance: ?Importance,
    /// Of the piece: first row and number of rows.
    first: usize = 0,
    rows_now: usize = 0,
    bad: std.atomic.Value(bool) = .init(false),

    fn run(self: *Task, chunk: usize, worker: usize) void {
        var row = chunk * self.chunk_rows;
        const end = @min(row + self.chunk_rows, self.rows_now);
        if (self.rows.stored) |stored| {
            for (row..end) |r| self.copyOrConvert(stored, r, self.writer.scratch[worker][0..self.columns]);
            return;
        }
        const values = self.writer.scratch[worker][0 .. (end - row) * self.columns];
        self.rows.read(self.rows.context, self.first + row, values);
        const importance = self.importance orelse return self.encode(values, row, null);
        // A chunk may reach over the border of two matrices, which differ in what is important.
        var done: usize = 0;
        while (row < end) {
            const of = (self.first + row) / importance.rows_of_matrix;
            const count = @min(end - row, (of + 1) * importance.rows_of_matrix - (self.first + row));
            self.encode(values[done * self.columns ..][0 .. count * self.columns], row, importance.values[of * self.columns ..][0..self.columns]);
            done += count;
            row += count;
        }
    }

    fn copyOrConvert(self: *Task, stored: @typeInfo(@FieldType(Rows, "stored")).optional.child, row: usize, values: []f32) void {
        std.debug.assert(self.importance == null); // What is stored already was not collected for.
        switch (stored(self.rows.context, self.first + row, self.writer.piece[row * self.row_bytes ..][0..self.row_bytes])) {
            .written => {},
            .not_finite => self.bad.store(true, .monotonic),
            .convert => {
                self.rows.read(self.rows.context, self.first + row, values);
                self.encode(values, row, null);
            },
        }
    }

    fn encode(self: *Task, values: []const f32, row: usize, importance: ?[]const f32) void {
        const bytes = self.writer.piece[row * self.row_bytes ..][0 .. values.len / self.columns * self.row_bytes];
        const done = if (importance) |i| quant.encodeWeighed(self.dtype, values, i, bytes) else quant.encode(self.dtype, values, bytes);
        done catch self.bad.store(true, .monotonic);
    }
};
