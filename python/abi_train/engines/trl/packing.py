"""Which rows share a packed row: asked of TRL's own `pack_dataset`, so a comparison of the engines
also compares the native packing with it.

Does not know: tokens, masks.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any, Final

from .libraries import datasets, pack_dataset

GROUP: Final = 1000
"""Rows that are packed together: those of one batch of `datasets.map`, in which TRL packs."""


def pack(starts: Any, max_seq_len: int, strategy: str) -> list[list[tuple[int, int]]]:
    """Which tokens, from and up to, each packed row is made of.

    starts: where each row begins among all tokens, and the end of the last.
    """
    bins: list[list[tuple[int, int]]] = []
    with _no_progress():
        for at in range(0, len(starts) - 1, GROUP):
            ends = [int(start) for start in starts[at : at + GROUP + 1]]
            if ends[0] == ends[-1]:
                continue
            # Each token is its own place, so that what comes back tells where it came from.
            places = [list(range(*pair)) for pair in itertools.pairwise(ends)]
            rows = datasets.Dataset.from_dict({"place": places})
            made = pack_dataset(rows, max_seq_len, strategy)[:]
            for number, tokens in enumerate(made["place"]):
                # Of `wrapped` TRL keeps no borders.
                lengths = made["seq_lengths"][number] if "seq_lengths" in made else [len(tokens)]
                begins = itertools.accumulate(lengths[:-1], initial=0)
                pieces = zip(begins, lengths, strict=True)
                bins.append([(tokens[begin], tokens[begin] + length) for begin, length in pieces])
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
