"""Training data: tokenized files as NumPy views, and instruction data line by line.

The file format is described in `docs/formats/token-bin.md`. Nothing is copied: `tokens` and the
batches of a stream are the mapped file itself, so a file larger than memory opens at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from . import _native
from .errors import FileAccessError, MissingFileError
from .owned import Owned
from .tokenizer import as_ids

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ._native import Handle

__all__ = [
    "Batch",
    "Instruction",
    "InstructionDataset",
    "MicroBatch",
    "TokenizedDataset",
    "TokenizedWriter",
    "parse_instruction_dataset",
]


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch of a token stream in ABI's layout.

    input_ids: (batch_size, seq_len) uint32.
    labels: (batch_size, seq_len) uint32, the token after each input; a row's last label is the next
        row's first token.
    attention_mask: always None: every position of a stream is real.
    index: which batch of the stream this is.

    The arrays are read-only views of the file and stay valid as long as they exist.
    """

    input_ids: npt.NDArray[np.uint32]
    labels: npt.NDArray[np.uint32]
    index: int
    attention_mask: None = None


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """What the trainer reads in one forward pass.

    input_ids: (rows, columns) uint32, padded on the right with 0.
    targets: (rows, columns) int32, the token to predict; -1 where there is none.
        From preference data all better answers first, then all worse ones: row i and row
        `rows // 2 + i` are a pair.
    index: which micro-batch of the epoch, from 0.
    target_count, token_count: positions with a target; positions that are not padding.
    positions, first: of packed rows (rows, columns) uint32, the position of each token in its own
        row, and the first column it may see; else None.

    The arrays are views of the loader's buffers: the next micro-batch overwrites them. Copy to
    keep.
    """

    input_ids: npt.NDArray[np.uint32]
    targets: npt.NDArray[np.int32]
    index: int
    target_count: int
    token_count: int
    positions: npt.NDArray[np.uint32] | None = None
    first: npt.NDArray[np.uint32] | None = None


class TokenizedDataset(Owned):
    """A file of token ids with its optional manifest, loss mask and row starts.

    ::

        with TokenizedDataset.load("training_data.bin") as data:
            for batch in data.batches(4, 512, shuffle=True, seed=1):
                batch.input_ids, batch.labels
    """

    _noun = "data set"

    def __init__(self, handle: Handle, path: Path) -> None:
        self._handle: Handle | None = handle
        self.path = path
        self._is_set: bool | None = None

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, use_manifest: bool = True) -> TokenizedDataset:
        """Opens `path` (`*.bin`) at once, whatever its size.

        A set of files is opened by the name of its manifest, with `.json` or `.bin` at the end.
        `use_manifest=False` takes the ids alone, as a stream. Raises MissingFileError,
        FileAccessError, or DataError when a size, a row start or the manifest is wrong.
        """
        return cls(_native.dataset.open(path, use_manifest), Path(path))

    def close(self) -> None:
        """Lets go of the file.

        Arrays that were handed out stay valid; the object cannot be used.
        """
        self._handle = None

    def __len__(self) -> int:
        """Number of tokens."""
        return _native.dataset.size(self.native)[0]

    def __repr__(self) -> str:
        if self._handle is None:
            return f"TokenizedDataset({str(self.path)!r}, closed)"
        rows = "" if self.row_count is None else f", {self.row_count} rows"
        files = f", {self.file_count} files" if self.file_count > 1 else ""
        return f"TokenizedDataset({str(self.path)!r}, {len(self)} tokens{rows}{files})"

    @property
    def file_count(self) -> int:
        """How many token files this is: more than one only for a set."""
        return _native.dataset.size(self.native)[2]

    @property
    def is_set(self) -> bool:
        """True when a manifest lists the token files: then `tokens`, `mask_bits` and `row_starts`
        are copies, as large as the data; `read` and `row` copy a part."""
        if self._is_set is None:
            self._is_set = bool(self.manifest.get("shards"))
        return self._is_set

    def read(self, start: int, stop: int) -> npt.NDArray[np.uint32]:
        """A copy of the ids from `start` up to `stop`. Raises IndexError outside the data."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start} to {stop}; {self.path} has {len(self)}")
        return _native.dataset.read_tokens(self.native, start, stop - start)

    @property
    def tokens(self) -> npt.NDArray[np.uint32]:
        """All ids in file order: a read-only view of the file, or a copy of a set."""
        if self.is_set:
            return self.read(0, len(self))
        return _native.dataset.tokens(self.native)

    @property
    def mask_bits(self) -> npt.NDArray[np.uint8] | None:
        """The loss mask as stored: bit i is bit i % 8 (lowest first) of byte i // 8, or None."""
        if not self.is_set:
            return _native.dataset.mask(self.native)
        import numpy as np

        first = self.path.with_name(str(self.manifest["shards"][0]["file"]))
        with TokenizedDataset.load(first) as file:
            if file.manifest.get("mask") is None:
                return None
        flags = _native.dataset.read_mask(self.native, 0, len(self))
        return np.packbits(flags, bitorder="little")

    @property
    def loss_mask(self) -> npt.NDArray[np.bool_] | None:
        """The loss mask, one value a token. A copy. None: every token is in the loss."""
        import numpy as np

        bits = self.mask_bits
        if bits is None:
            return None
        return np.unpackbits(bits, count=len(self), bitorder="little").view(np.bool_)

    @property
    def row_starts(self) -> npt.NDArray[np.uint64] | None:
        """Row r is `tokens[row_starts[r]:row_starts[r + 1]]`. None: a stream without rows."""
        if not self.is_set:
            return _native.dataset.row_starts(self.native)
        rows = self.row_count
        return None if rows is None else _native.dataset.read_row_starts(self.native, 0, rows + 1)

    @property
    def row_count(self) -> int | None:
        """Number of rows; None for a stream."""
        if self.is_set:
            count = self.manifest["rows"]
            return None if count is None else int(count)
        starts = self.row_starts
        return None if starts is None else int(starts.size) - 1

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest; empty when there is none."""
        return _native.dataset.manifest(self.native)

    def row(self, index: int) -> npt.NDArray[np.uint32]:
        """The ids of a row. Raises IndexError; TypeError for a stream."""
        rows = self.row_count
        if rows is None:
            raise TypeError(f"{self.path} is a stream: it has no rows")
        if not 0 <= index < rows:
            raise IndexError(f"row {index}; {self.path} has {rows}")
        begin, end = self._ends(index)
        return self.read(begin, end) if self.is_set else self.tokens[begin:end]

    def _ends(self, index: int) -> tuple[int, int]:
        begin, end = _native.dataset.read_row_starts(self.native, index, 2)
        return int(begin), int(end)

    @property
    def is_preference(self) -> bool:
        """True when rows 2i and 2i + 1 are one prompt with its better and its worse answer."""
        return self.manifest.get("kind") == "preference"

    def pair(
        self, index: int
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
        """Ids of the prompt, the better and the worse answer of a pair.

        Raises IndexError; TypeError when this is no preference data.
        """
        rows = self.row_count
        if not self.is_preference or rows is None:
            raise TypeError(f"{self.path} is no preference data: it has no pairs")
        if not 0 <= index < rows // 2:
            raise IndexError(f"pair {index}; {self.path} has {rows // 2}")
        better, worse = self.row(2 * index), self.row(2 * index + 1)
        flags = _native.dataset.read_mask(self.native, self._ends(2 * index)[0], better.size)
        border = int(flags.argmax()) if flags.any() else int(better.size)
        return better[:border], better[border:], worse[border:]

    def check_vocabulary(self, vocab_size: int) -> None:
        """Reads every id. Raises DataError for the first that is not below `vocab_size`."""
        _native.dataset.check_vocabulary(self.native, vocab_size)

    def verify(self) -> int:
        """Compares the manifest's checksums with the files; returns how many. Raises DataError."""
        return _native.dataset.verify(self.native)

    def batches(
        self, batch_size: int, seq_len: int, shuffle: bool = False, *, seed: int = 42
    ) -> Batches:
        """One epoch of the plain stream after another, in ABI's layout (see `Batch`).

        Row starts and mask play no part; a tail that fills no batch is dropped. `shuffle` permutes
        whole batches; the same seed gives the same order.
        """
        handle = _native.dataset.batches_open(self.native, batch_size, seq_len, shuffle, seed)
        return Batches(handle)

    def micro_batches(
        self,
        batch_size: int,
        max_seq_len: int,
        shuffle: bool = True,
        *,
        seed: int = 42,
        packing: str = "none",
    ) -> MicroBatches:
        """What the native trainer reads, batch by batch (see `MicroBatch`).

        Of preference data `batch_size` counts pairs. packing: as in `LlmTrainingConfig`; then it
        counts packed rows.
        """
        handle = _native.dataset.loader_open(
            self.native, batch_size, max_seq_len, shuffle, seed, packing
        )
        return MicroBatches(handle)


class Batches:
    """Iterates over one epoch; iterating again is the next epoch, in its own order."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._started = False

    def __len__(self) -> int:
        """Batches in an epoch."""
        return _native.dataset.batches_count(self._handle)

    def __iter__(self) -> Iterator[Batch]:
        if self._started:
            _native.dataset.batches_reset(self._handle)
        self._started = True
        batch = _native.dataset.new_batch()
        while _native.dataset.batches_next(self._handle, batch):
            yield Batch(
                input_ids=_native.dataset.batch_array(batch, "input_ids", "uint32", self._handle),
                labels=_native.dataset.batch_array(batch, "labels", "uint32", self._handle),
                index=int(batch.index),
            )


class MicroBatches:
    """The trainer's view of the data. Iterating gives the rest of the current epoch."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    def __len__(self) -> int:
        """Micro-batches in an epoch; the last one may have fewer rows."""
        return _native.dataset.loader_count(self._handle)[0]

    @property
    def dropped_rows(self) -> int:
        """Rows left out because no target remains within `max_seq_len`."""
        return _native.dataset.loader_count(self._handle)[1]

    @property
    def truncated_rows(self) -> int:
        """Rows that lost their end to `max_seq_len`."""
        return _native.dataset.loader_count(self._handle)[2]

    def seek(self, epoch: int, micro_batch: int = 0) -> None:
        """Goes to a micro-batch of an epoch, both counted from 0."""
        _native.dataset.loader_seek(self._handle, epoch, micro_batch)

    def order(self, epoch: int) -> npt.NDArray[np.uint32]:
        """Row numbers (or batch numbers of a stream) in the order of `epoch`."""
        return _native.dataset.loader_order(self._handle, epoch)

    def __iter__(self) -> Iterator[MicroBatch]:
        batch = _native.dataset.new_batch()
        while _native.dataset.loader_next(self._handle, batch):
            yield MicroBatch(
                input_ids=_native.dataset.batch_array(batch, "input_ids", "uint32", self._handle),
                targets=_native.dataset.batch_array(batch, "targets", "int32", self._handle),
                index=int(batch.index),
                target_count=int(batch.target_count),
                token_count=int(batch.token_count),
                positions=_native.dataset.packed_array(batch, "positions", self._handle),
                first=_native.dataset.packed_array(batch, "first", self._handle),
            )


class TokenizedWriter(Owned):
    """Writes a data set row by row in constant memory.

    ::

        with TokenizedWriter("train.bin", vocab_size=32000) as writer:
            writer.append(ids, in_loss)
            writer.finish()

    Nothing appears under a final name before `finish`; leaving the block without it leaves what was
    there before.
    """

    _noun = "writer"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        rows: bool = True,
        mask: bool = True,
        vocab_size: int | None = None,
        seed: int | None = None,
        tokenizer_hash: str | None = None,
        format: str | None = None,
        source: str | None = None,
        license: str | None = None,
        preference: bool = False,
    ) -> None:
        """Starts a data set at `path` (`*.bin`), whose folder must exist.

        rows: each `append` is one row. mask: write a loss mask. preference: rows come in twos, one
        prompt with its better and then its worse answer, the answers in the loss. The rest goes
        into the manifest; ids at or above `vocab_size` are refused. Raises DataError when a file
        of another kind has one of the names, FileAccessError when the folder cannot be written.
        """
        self.path = Path(path)
        self._handle: Handle | None = _native.writer.open(
            path,
            rows=rows,
            mask=mask,
            vocab_size=vocab_size,
            seed=seed,
            tokenizer_hash=tokenizer_hash,
            format=format,
            source=source,
            license=license,
            preference=preference,
        )

    def append(
        self,
        ids: Sequence[int] | npt.NDArray[Any],
        in_loss: Sequence[bool] | npt.NDArray[Any] | None = None,
    ) -> None:
        """Adds one row, or a piece of the stream; `in_loss`: one flag a token, None: all count."""
        import numpy as np

        flags = None
        if in_loss is not None:
            flags = np.ascontiguousarray(np.asarray(in_loss, dtype=np.bool_)).view(np.uint8)
        _native.writer.append(self.native, as_ids(ids), flags)

    def finish(self) -> tuple[int, int, int]:
        """Makes everything durable; returns tokens, rows, and tokens in the loss."""
        summary = _native.writer.finish(self.native)
        self._handle = None
        return summary

    def close(self) -> None:
        """Throws away what is not finished."""
        self._handle = None


@dataclass(frozen=True)
class Instruction:
    """One sample. `line` counts from 1; `input` is None when missing or empty."""

    instruction: str
    output: str
    input: str | None = None
    line: int = 0


class InstructionDataset(Sequence[Instruction]):
    """Instruction samples in file order.

    report: what was read and left out: `samples`, `blank_lines`, `skipped`, `defects` by kind, and
        `first`, a sentence about the first bad line or None.
    """

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._count = _native.instructions.count(handle)
        self.report: dict[str, Any] = _native.instructions.report(handle)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Instruction: ...
    @overload
    def __getitem__(self, index: slice) -> list[Instruction]: ...
    def __getitem__(self, index: int | slice) -> Instruction | list[Instruction]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        position = index + self._count if index < 0 else index
        if not 0 <= position < self._count:
            raise IndexError(f"sample {index}; there are {self._count}")
        instruction, given, output, line = _native.instructions.get(self._handle, position)
        return Instruction(instruction, output, given, line)


def parse_instruction_dataset(
    source: str | os.PathLike[str] | bytes, *, skip_invalid: bool = False
) -> InstructionDataset:
    """Reads JSON lines of `instruction`, optional `input`, and `output`; other fields are ignored.

    source: a path, or the text itself as bytes.
    skip_invalid: leave bad lines out and count them in `report`; otherwise the first one raises
        DataError with its line number and the reason.
    """
    if isinstance(source, bytes):
        return InstructionDataset(_native.instructions.parse(source, skip_invalid))
    path = Path(source)
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file. Check the path.") from None
    except OSError as error:
        raise FileAccessError(f"{path}: {error.strerror or error}") from error
    try:
        return InstructionDataset(_native.instructions.parse(text, skip_invalid))
    except ValueError as error:
        raise type(error)(f"{path}: {error}") from None
