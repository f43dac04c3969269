"""Curves as a PNG, with matplotlib (extra `report`), which is imported when it is asked for."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Final

from ..data.visible import visible
from ..errors import EngineError
from .curves import CHARTS, Chart, Curves, Point, axis, segments, thin

POINTS: Final = 1000
COLUMNS: Final = 2
COLORS: Final = (
    "#2563eb",
    "#d9560b",
    "#15803d",
    "#9333ea",
    "#be123c",
    "#0e7490",
    "#a16207",
    "#475569",
)
STYLES: Final = ("-", "--", ":")


def picture(runs: Sequence[Curves], *, title: str | None = None) -> bytes:
    """A PNG of these runs, one over the other. Raises `EngineError` without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EngineError(
            "a picture needs matplotlib: pip install 'abi-train[report]', or write a page (--html)"
        ) from error
    shown = [
        chart for chart in CHARTS if any(any(run.points(chart.key)[0]) for run in runs)
    ] or list(CHARTS[:1])
    rows = -(-len(shown) // COLUMNS)
    figure = Figure(figsize=(6.4 * COLUMNS, 0.7 + 3.0 * rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_plain(title or ", ".join(run.name for run in runs)), fontsize=11)
    for place, chart in enumerate(shown):
        axes = figure.add_subplot(rows, COLUMNS, place + 1)
        _draw(axes, chart, runs)
    if len(runs) > 1:
        figure.axes[0].legend(fontsize=8, frameon=False)
    target = io.BytesIO()
    figure.savefig(target, format="png")
    return target.getvalue()


def _plain(text: str) -> str:
    """A name that is not read as a formula."""
    return visible(text).replace("$", r"\$")


def _draw(axes: Any, chart: Chart, runs: Sequence[Curves]) -> None:
    seen: list[Point] = []
    for number, run in enumerate(runs):
        color, style = COLORS[number % len(COLORS)], STYLES[number // len(COLORS) % len(STYLES)]
        points = thin(*run.points(chart.key, scale=chart.scale), POINTS)
        for at, part in enumerate(segments(run, points)):
            x, mean = [p.x for p in part], [p.mean for p in part]
            low, high = [p.low for p in part], [p.high for p in part]
            name = _plain(run.name) if at == 0 else None
            axes.plot(x, mean, color=color, linestyle=style, linewidth=1.3, label=name)
            if low != high:
                axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
        seen += points
        if chart.evaluated:
            tested = thin(*run.points(chart.evaluated, scale=chart.scale), POINTS)
            axes.plot(
                [p.x for p in tested], [p.mean for p in tested], "o", color=color, markersize=4
            )
            seen += tested
    first, last = min((p.x for p in seen), default=0.0), max((p.x for p in seen), default=0.0)
    for at, name in runs[0].borders if len(runs[0].borders) > 1 else ():
        if not first - 1 <= at < last:
            continue  # the phase has no such figure
        axes.axvline(at, color="0.6", linestyle=":", linewidth=0.8)
        axes.annotate(
            _plain(name),
            (at, 0.02),
            xycoords=("data", "axes fraction"),
            fontsize=7,
            color="0.4",
            xytext=(2, 0),
            textcoords="offset points",
        )
    where = axis(seen, logarithmic=chart.logarithmic)
    if where is not None and where.logarithmic:
        axes.set_yscale("log")
    axes.set_title(chart.title, fontsize=9)
    axes.set_xlabel("update", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
