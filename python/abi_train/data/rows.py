"""Rows of a token file as the TRL engine needs them: ids and labels, in a recorded order.

A token file with row starts (`.idx`) is a list of rows: row i keeps its first `max_seq_len` ids,
and a position is a label when its bit in `.mask` is set (all are without a mask). A file without
row starts is a stream: a row is `max_seq_len` inputs and the same number of tokens one later, so it
is given here as `max_seq_len + 1` ids, and `batch_size` rows in sequence are one micro-batch.

Packed, a row is several rows of the file, or pieces of them, one behind the other; a packer says
which. The first token of each is no label, as nothing before it is its own. Wrapped, a row is a run
of tokens, whatever rows they are of, and all of it is one text.

Preference data (`"kind": "preference"`) is a list of pairs: rows 2i and 2i + 1 are one prompt with
the better and the worse answer.

Reads with NumPy alone, apart from the native loader, so that a comparison of the engines also
compares the two readers. Does not know: torch, tokenizers, which files the tokens are in (`files`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, DataError
from .files import Bits, Ids, TokenFiles

IGNORED = -100
"""Label of a position without loss, in the words of transformers."""


Packer = Callable[[Any, int, str], list[list[tuple[int, int]]]]
"""From row starts, a length and a strategy: which tokens, from and up to, make up each packed row.
"""


@dataclass(frozen=True, kw_only=True)
class TokenRows:
    """The rows of one token file, cut for one batch size and row length.

    token_ids: all ids of the data, uint32. starts: where each row begins, and the file's end as a
    last entry; None for a stream. kept: rows that have a target left after the cut; empty when rows
    are packed. mask: which tokens are in the loss, or None for all. bins: from and up to which
    tokens the pieces of each packed row go, or None. borders: whether these pieces are texts of
    their own.
    """

    path: Path
    token_ids: Ids
    starts: npt.NDArray[np.uint64] | None
    kept: npt.NDArray[np.int64]
    mask: Bits | None
    batch_size: int
    max_seq_len: int
    bins: list[list[tuple[int, int]]] | None = None
    borders: bool = True

    @classmethod
    def open(cls, path: str | Path, *, batch_size: int, max_seq_len: int) -> TokenRows:
        """Map the file and the side files its manifest names.

        Raises `DataError` when their sizes do not agree.
        """
        files = TokenFiles.open(path)
        if files.manifest.get("kind") == "preference":
            raise DataError(
                f"{files.path} holds pairs of answers (preference data); train on it with the "
                "objective dpo, or prepare rows for sft"
            )
        rows = cls(
            path=files.path,
            token_ids=files.token_ids,
            starts=files.starts,
            kept=np.empty(0, dtype=np.int64),
            mask=files.mask,
            batch_size=batch_size,
            max_seq_len=max_seq_len,
        )
        object.__setattr__(rows, "kept", rows._rows_with_targets())
        return rows

    def packed(self, pack: Packer, strategy: str) -> TokenRows:
        """The same data with several rows in each. Raises `ConfigError` for a stream."""
        if self.starts is None:
            raise ConfigError(
                f"packing is {strategy}, but {self.path} is one stream without row starts: its "
                "sequences are full already. Set packing to none, or prepare the data as rows"
            )
        borders = strategy != "wrapped"
        bins = pack(self.starts, self.max_seq_len, strategy)
        packed = dataclasses.replace(self, kept=self.kept[:0], bins=bins, borders=borders)
        # With nothing to learn in any packed row there is none.
        return packed if packed._has_targets() else dataclasses.replace(packed, bins=[])

    def _has_targets(self) -> bool:
        return any(
            label != IGNORED for row in range(len(self)) for label in self[row]["labels"][1:]
        )

    def _rows_with_targets(self) -> npt.NDArray[np.int64]:
        if self.starts is None:
            return self.kept
        good = [
            row
            for row in range(self.starts.size - 1)
            if any(label != IGNORED for label in self._cut(*self._ends(row))["labels"][1:])
        ]
        return np.array(good, dtype=np.int64)

    @property
    def is_stream(self) -> bool:
        """True without row starts."""
        return self.starts is None

    @property
    def batch_count(self) -> int:
        """Micro-batches in an epoch."""
        if self.starts is None:
            per_batch = self.batch_size * self.max_seq_len
            total = int(self.token_ids.size)
            return 0 if total <= per_batch else (total - 1) // per_batch
        return -(-len(self) // self.batch_size)

    @property
    def order_count(self) -> int:
        """How many things the order of an epoch permutes: batches of a stream, else rows."""
        return self.batch_count if self.is_stream else len(self)

    def __len__(self) -> int:
        if self.bins is not None:
            return len(self.bins)
        return self.batch_count * self.batch_size if self.is_stream else int(self.kept.size)

    def batches(self, order: npt.NDArray[np.integer]) -> list[list[int]]:
        """Row numbers of each micro-batch when an epoch follows `order`."""
        size = self.batch_size
        if self.is_stream:
            return [list(range(int(b) * size, (int(b) + 1) * size)) for b in order]
        rows = [int(row) for row in order]
        return [rows[at : at + size] for at in range(0, len(rows), size)]

    def __getitem__(self, row: int) -> dict[str, list[int]]:
        """`input_ids` and `labels` of a row; a label of -100 is not in the loss.

        Of a packed one also `seq_lengths`: the tokens of each row in it.
        """
        if not 0 <= row < len(self):
            raise IndexError(row)
        if self.bins is not None:
            parts = [self._cut(*piece) for piece in self.bins[row]]
            return _joined(parts) if self.borders else parts[0]
        if self.starts is None:
            begin = row * self.max_seq_len
            return self._cut(begin, begin + self.max_seq_len + 1)
        return self._cut(*self._ends(int(self.kept[row])))

    def _ends(self, row: int) -> tuple[int, int]:
        assert self.starts is not None
        begin = int(self.starts[row])
        return begin, min(int(self.starts[row + 1]), begin + self.max_seq_len)

    def _cut(self, begin: int, end: int) -> dict[str, list[int]]:
        ids = self.token_ids[begin:end].astype(np.int64)
        labels = ids.copy()
        if self.mask is not None:
            labels[self.mask.at(begin, end) == 0] = IGNORED
        return {"input_ids": ids.tolist(), "labels": labels.tolist()}


def _joined(parts: list[dict[str, list[int]]]) -> dict[str, list[int]]:
    """A packed row of these."""
    labels = [[IGNORED, *part["labels"][1:]] for part in parts]
    return {
        "input_ids": [token for part in parts for token in part["input_ids"]],
        "labels": [label for part in labels for label in part],
        "seq_lengths": [len(part) for part in labels],
    }


@dataclass(frozen=True, kw_only=True)
class PreferenceRows:
    """The pairs of one token file, as TRL's columns, uncut: TRL's collator cuts at `max_seq_len`.

    kept: pairs whose prompt is shorter than max_seq_len. batch_size: pairs in a micro-batch.
    """

    path: Path
    token_ids: Ids
    starts: npt.NDArray[np.uint64]
    borders: npt.NDArray[np.int64]
    kept: npt.NDArray[np.int64]
    batch_size: int
    max_seq_len: int

    @classmethod
    def open(cls, path: str | Path, *, batch_size: int, max_seq_len: int) -> PreferenceRows:
        """Map the file and check every pair.

        Raises `DataError` for data of another kind and for two rows that are no pair.
        """
        files = TokenFiles.open(path)
        path, starts, mask = files.path, files.starts, files.mask
        if files.manifest.get("kind") != "preference":
            raise DataError(
                f"{path} holds no pairs of answers; prepare rows with prompt, chosen and rejected, "
                "or train with the objective sft"
            )
        if starts is None or mask is None or starts.size % 2 == 0:
            raise DataError(
                f"{path}: preference data need row starts, a mask, and an even number of rows. "
                "Prepare the data again"
            )
        token_ids = files.token_ids
        borders = np.array(
            [_border(path, token_ids, starts, mask, pair) for pair in range(starts.size // 2)],
            dtype=np.int64,
        )
        return cls(
            path=path,
            token_ids=token_ids,
            starts=starts,
            borders=borders,
            kept=np.flatnonzero(borders < max_seq_len),
            batch_size=batch_size,
            max_seq_len=max_seq_len,
        )

    @property
    def batch_count(self) -> int:
        """Micro-batches in an epoch."""
        return -(-len(self) // self.batch_size)

    @property
    def order_count(self) -> int:
        """How many things the order of an epoch permutes: the pairs that are kept."""
        return len(self)

    def __len__(self) -> int:
        return int(self.kept.size)

    def batches(self, order: npt.NDArray[np.integer]) -> list[list[int]]:
        """Numbers of the pairs of each micro-batch when an epoch follows `order`."""
        pairs = [int(pair) for pair in order]
        return [pairs[at : at + self.batch_size] for at in range(0, len(pairs), self.batch_size)]

    def __getitem__(self, at: int) -> dict[str, list[int]]:
        """`prompt_ids`, `chosen_ids` and `rejected_ids` of a kept pair."""
        if not 0 <= at < len(self):
            raise IndexError(at)
        pair = int(self.kept[at])
        border = int(self.borders[pair])
        begin, middle, end = (int(start) for start in self.starts[2 * pair : 2 * pair + 3])
        better = self.token_ids[begin:middle].tolist()
        worse = self.token_ids[middle:end].tolist()
        return {
            "prompt_ids": better[:border],
            "chosen_ids": better[border:],
            "rejected_ids": worse[border:],
        }


def _border(
    path: Path,
    ids: Ids,
    starts: npt.NDArray[np.uint64],
    mask: Bits,
    pair: int,
) -> int:
    """Tokens of a pair's prompt; refuses what is no pair."""
    begin, middle, end = (int(start) for start in starts[2 * pair : 2 * pair + 3])
    better, worse = mask.at(begin, middle), mask.at(middle, end)
    border = int(better.argmax())
    prompts_agree = np.array_equal(ids[begin : begin + border], ids[middle : middle + border])
    if (
        not (better[border:].all() and worse[border:].all() and worse[border:].size)
        or worse[:border].any()
        or not prompts_agree
        or np.array_equal(ids[begin:middle], ids[middle:end])
    ):
        raise DataError(
            f"{path}: pair {pair} (rows {2 * pair} and {2 * pair + 1}) is not one prompt with two "
            "different answers. Leave it out, or prepare the data again"
        )
    return border
