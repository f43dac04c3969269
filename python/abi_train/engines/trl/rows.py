"""The rows of a token file as torch's loader gives them: in the recorded order, right-padded.

Refuses to know: how the order is drawn (`data.order`), how rows are read (`data.rows`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ...data.rows import IGNORED, PreferenceRows, TokenRows
from .libraries import Loader, Sampler, TextCollator, torch


def loader(
    rows: TokenRows, order: Callable[[int], Any], batch: Callable[[list[int], Any], Any]
) -> Any:
    """A loader of the micro-batches of an epoch, which follows `order(epoch)`.

    batch: makes a micro-batch of row numbers.
    """

    def collated(numbers: list[int]) -> Any:
        return batch(numbers, rows)

    return _EpochLoader(range(len(rows)), batch_sampler=_Order(rows, order), collate_fn=collated)


class _Order(Sampler[list[int]]):
    """Gives the row numbers of each micro-batch of the current epoch, in the recorded order."""

    def __init__(self, rows: TokenRows, order: Callable[[int], Any]) -> None:
        self.rows = rows
        self.order = order
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Switch to the order of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows.batch_count

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.rows.batches(self.order(self.epoch)))


class _EpochLoader(Loader):  # type: ignore[misc]
    """A loader whose order follows the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Hand the epoch on to the order."""
        self.batch_sampler.set_epoch(epoch)


def left_out(rows: TokenRows | PreferenceRows, packing: str) -> tuple[int, int, int]:
    """How many rows (or pairs) there are, how many are not used, and how many rows are cut."""
    if rows.starts is None:
        return 0, 0, 0
    lengths = np.diff(np.asarray(rows.starts).astype(np.int64))
    if isinstance(rows, PreferenceRows):
        both = lengths.reshape(-1, 2)
        cut = int((both[rows.kept] > rows.max_seq_len).sum())
        return len(both), len(both) - int(rows.kept.size), cut
    if rows.bins is None:
        cut = int((lengths[rows.kept] > rows.max_seq_len).sum())
        return len(lengths), len(lengths) - int(rows.kept.size), cut
    # Packed, rows without a target of their own take part; only bfd cuts them.
    cut = int((lengths > rows.max_seq_len).sum()) if packing == "bfd" else 0
    return len(lengths), int((lengths == 0).sum()), cut


def collate(rows: list[dict[str, list[int]]]) -> dict[str, Any]:
    """Right-padded ids, labels and attention mask of one micro-batch, (rows, longest).

    Packed rows go one behind the other as TRL has them: one row of ids, labels and positions that
    begin at 0 in each document, from which transformers sees the borders. No mask: it would hide
    them.
    """
    if "seq_lengths" in rows[0]:
        return dict(TextCollator(pad_token_id=0, padding_free=True)(rows))
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full((len(rows), longest), IGNORED, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for at, row in enumerate(rows):
        length = len(row["input_ids"])
        ids[at, :length] = torch.tensor(row["input_ids"])
        labels[at, :length] = torch.tensor(row["labels"])
        mask[at, :length] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}
