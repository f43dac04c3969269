"""Which rows share a packed row: asked of TRL's own `pack_dataset`, so a comparison of the engines
also compares the native packing with it.

Does not know: tokens, masks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Final

from .libraries import datasets, pack_dataset

GROUP: Final = 1000
"""Rows that are packed together: those of one batch of `datasets.map`, in which TRL packs."""


def best_fit(lengths: Sequence[int], max_seq_len: int) -> list[list[int]]:
    """Row numbers of each packed row, for rows of these lengths."""
    bins: list[list[int]] = []
    with _no_progress():
        for at in range(0, len(lengths), GROUP):
            group = [min(length, max_seq_len) for length in lengths[at : at + GROUP]]
            if not any(group):
                continue
            # Each token is the number of its row, so that what comes back tells where it came from.
            rows = {"row": [[at + i] * length for i, length in enumerate(group)]}
            made = pack_dataset(datasets.Dataset.from_dict(rows), max_seq_len, "bfd")[:]
            for tokens, parts in zip(made["row"], made["seq_lengths"], strict=True):
                bins.append([tokens[sum(parts[:part])] for part in range(len(parts))])
    return bins


@contextlib.contextmanager
def _no_progress() -> Iterator[None]:
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
