"""Counts by range, with edges people can read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

BINS = 16


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """counts[i] values lie from edges[i] up to, not including, edges[i + 1]; the last edge is
    included. open_end: the last range holds everything larger."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    open_end: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"edges": list(self.edges), "counts": list(self.counts)}

    def labels(self) -> list[str]:
        """Each range in words."""
        names = [
            f"{low:,.0f}–{high - 1:,.0f}" if high - low > 1 else f"{low:,.0f}"
            for low, high in zip(self.edges, self.edges[1:], strict=False)
        ]
        if self.open_end and names:
            names[-1] = f"{self.edges[-2]:,.0f} and more"
        return names


def length_histogram(lengths: npt.NDArray[np.int64]) -> Histogram:
    """Lengths in equal ranges; what lies far beyond most of them shares the last one."""
    if lengths.size == 0:
        return Histogram(edges=(0, 1), counts=(0,))
    longest = int(lengths.max())
    usual = int(np.percentile(lengths, 98, method="inverted_cdf"))
    cut = longest > 2 * usual
    width = _round_up((usual if cut else longest) / BINS)
    count = (usual if cut else longest) // width + 1
    edges = [at * width for at in range(count + 1)]
    if cut:
        edges.append(longest + 1)
    counts, _ = np.histogram(lengths, bins=edges)
    return Histogram(edges=tuple(edges), counts=tuple(counts.tolist()), open_end=cut)


def share_histogram(
    parts: npt.NDArray[np.int64], wholes: npt.NDArray[np.int64], ranges: int = 10
) -> Histogram:
    """Rows by the share of `parts` in `wholes`, in tenths."""
    share = parts / np.maximum(wholes, 1)
    edges = [at / ranges for at in range(ranges + 1)]
    counts, _ = np.histogram(np.minimum(share, 1.0), bins=edges)
    return Histogram(edges=tuple(edges), counts=tuple(counts.tolist()))


def _round_up(width: float) -> int:
    """The next of 1, 2, 5, 10, 20, 25, 50, 100 …"""
    power = 1
    while True:
        for digit in (1, 2, 2.5, 5):
            if digit * power >= width and digit * power == int(digit * power):
                return int(digit * power)
        power *= 10
