"""What is drawn of a run: its curves, those of its phases one after the other, thinned.

Does not know: terminals, pages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from .find import phases
from .log import RunLog, read_run


@dataclass(frozen=True)
class Chart:
    """A figure to draw. evaluated: the key of its points from evaluations, if it has any.

    logarithmic: so where its values are far apart.
    """

    key: str
    title: str
    evaluated: str | None = None
    scale: float = 1.0
    logarithmic: bool = False


CHARTS: Final = (
    Chart("loss", "Loss", "eval_loss", logarithmic=True),
    Chart("learning_rate", "Learning rate"),
    Chart("grad_norm", "Gradient norm before clipping", logarithmic=True),
    Chart("rewards/margins", "Margin of rewards, chosen less rejected", "eval_rewards/margins"),
    Chart("rewards/accuracies", "Share of pairs the right way", "eval_rewards/accuracies"),
    Chart("perplexity", "Perplexity", "eval_perplexity", logarithmic=True),
    Chart("accuracy", "Share of tokens guessed first", "eval_accuracy"),
    Chart("tokens_per_second", "Tokens a second"),
    Chart("memory_bytes", "Memory, largest so far, GB", scale=1e-9),
    Chart("gpu_memory_bytes", "GPU memory, largest so far, GB", scale=1e-9),
)
TERMINAL: Final = 3
"""So many of them are drawn in the terminal."""


@dataclass(frozen=True)
class Point:
    """Updates that fall on one point of a drawing: their mean, least and largest value."""

    x: float
    mean: float
    low: float
    high: float


@dataclass(kw_only=True)
class Curves:
    """One run, or the phases of one, as one line over the updates.

    borders: where a phase begins, with its name; empty for a run that is none.
    """

    name: str
    parts: list[RunLog]
    borders: list[tuple[int, str]] = field(default_factory=list)

    def points(self, key: str, *, scale: float = 1.0) -> tuple[list[int], list[float]]:
        """Updates, counted through all phases, and values; NaN where a number was none."""
        xs: list[int] = []
        ys: list[float] = []
        before = 0
        for part in self.parts:
            series = part.series.get(key)
            if series is not None:
                xs.extend(before + step for step in series.steps)
                ys.extend(value * scale for value in series.values)
            before += part.step
        return xs, ys

    @property
    def steps(self) -> int:
        """Updates done, of all phases."""
        return sum(part.step for part in self.parts)

    def to_dict(self, *, points: int) -> dict[str, Any]:
        """Plain values for JSON. Longer curves are means over the updates of one point."""
        series: dict[str, Any] = {}
        for key in dict.fromkeys(key for part in self.parts for key in part.series):
            xs, ys = self.points(key)
            few = thin(xs, ys, points)
            series[key] = {"step": [one.x for one in few], "value": [one.mean for one in few]}
        return {
            "name": self.name,
            "runs": [part.to_dict() for part in self.parts],
            "phases": [{"begins_after": at, "name": name} for at, name in self.borders],
            "series": series,
        }


def open_curves(folder: str | Path) -> Curves:
    """The curves of a run folder, or of a phased one. Raises as `read_run`."""
    folder = Path(folder)
    name = folder.name or folder.resolve().name
    inside = phases(folder)
    if not inside:
        return Curves(name=name, parts=[read_run(folder)])
    parts = [read_run(path) for path in inside]
    borders, at = [], 0
    for part in parts:
        borders.append((at, part.folder.name))
        at += part.step
    return Curves(name=name, parts=parts, borders=borders)


def distinct(names: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Names that tell the runs apart: those that are the same become paths."""
    if len(set(names)) == len(names):
        return list(names)
    return [
        str(folder) if names.count(name) > 1 else name
        for name, folder in zip(names, folders, strict=True)
    ]


def thin(xs: Sequence[float], ys: Sequence[float], count: int) -> list[Point]:
    """At most `count` points over the same stretch of updates; NaN is left out."""
    numbers = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]
    if len(numbers) <= count:
        return [Point(x, y, y, y) for x, y in numbers]
    first, last = numbers[0][0], numbers[-1][0]
    width = (last - first) / count or 1.0
    found: list[Point] = []
    at, bucket = 0, list[tuple[float, float]]()
    for x, y in numbers:
        place = min(count - 1, int((x - first) / width))
        if place != at and bucket:
            found.append(_together(bucket))
            bucket = []
        at = place
        bucket.append((x, y))
    if bucket:
        found.append(_together(bucket))
    return found


def _together(bucket: Iterable[tuple[float, float]]) -> Point:
    pairs = list(bucket)
    values = [y for _, y in pairs]
    x = math.fsum(x for x, _ in pairs) / len(pairs)
    return Point(x, math.fsum(values) / len(values), min(values), max(values))


def segments(run: Curves, points: Sequence[Point]) -> list[list[Point]]:
    """The points phase by phase: no line leads from the end of one to the begin of the next."""
    ends = [at for at, _ in run.borders[1:]]
    found: list[list[Point]] = [[] for _ in range(len(ends) + 1)]
    for point in points:
        found[sum(point.x > at for at in ends)].append(point)
    return [some for some in found if some]


@dataclass(frozen=True)
class Axis:
    """The stretch of values a drawing shows; on a logarithmic one when they are far apart."""

    low: float
    high: float
    logarithmic: bool

    def share(self, value: float) -> float:
        """Where a value is, from 0 at the bottom to 1 at the top."""
        if self.logarithmic:
            low, high = math.log(self.low), math.log(self.high)
            return (math.log(max(value, self.low)) - low) / (high - low)
        return (value - self.low) / (self.high - self.low)

    def value(self, share: float) -> float:
        """The value at such a height."""
        if self.logarithmic:
            low, high = math.log(self.low), math.log(self.high)
            return math.exp(low + share * (high - low))
        return self.low + share * (self.high - self.low)


def axis(points: Sequence[Point], *, logarithmic: bool = False) -> Axis | None:
    """The axis that holds all points; None when there are none.

    logarithmic: take such a one where the means, apart from the last in a hundred at each end, are
    a hundredfold apart.
    """
    if not points:
        return None
    low, high = min(point.low for point in points), max(point.high for point in points)
    if logarithmic and low > 0:
        means = sorted(point.mean for point in points)
        edge = len(means) // 100
        if means[-1 - edge] / means[edge] > 100:
            return Axis(low, high, True)
    if high - low <= 2e-3 * max(abs(low), abs(high)):  # an even line, in the middle
        room = 0.05 * abs(high) or 0.5
        return Axis(low - room, high + room, False)
    return Axis(low, high, False)


def short(value: float) -> str:
    """A number as it stands beside an axis: 2.113, 0.00029 → `2.9e-4`."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        text = f"{value:.4g}"
        return text if "e" not in text else f"{value:.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"
