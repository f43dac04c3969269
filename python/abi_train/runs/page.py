"""Curves as one HTML file: inline style and inline SVG, no script, nothing from the network."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Final

from ..data.visible import visible
from .curves import CHARTS, Axis, Chart, Curves, Point, axis, segments, short, thin
from .listing import Row, row_of

WIDTH, HEIGHT = 640, 250
LEFT, RIGHT, TOP, BOTTOM = 64, 14, 14, 34
POINTS: Final = 500
COLORS: Final = 8
DASHES: Final = ("", "6 4", "2 3")
"""Where there are more runs than colours, the next ones are dashed."""

_STYLE = """
:root { color-scheme: light dark; --ink:#1c2330; --soft:#5b6577; --line:#d9dee7; --paper:#fff;
  --card:#f6f7f9; --warn:#a15c07; --error:#b42318; --c0:#2563eb; --c1:#d9560b; --c2:#15803d;
  --c3:#9333ea; --c4:#be123c; --c5:#0e7490; --c6:#a16207; --c7:#475569; }
@media (prefers-color-scheme: dark) { :root { --ink:#e7eaf0; --soft:#a0a9b8; --line:#333b49;
  --paper:#12161d; --card:#1a202a; --warn:#f2b857; --error:#ff8f85; --c0:#7aa7ff; --c1:#ff9d66;
  --c2:#5fd38d; --c3:#c4a6ff; --c4:#ff8fa6; --c5:#5bc8dd; --c6:#e3c34f; --c7:#aab6c8; } }
* { box-sizing: border-box; }
body { margin:0; background:var(--paper); color:var(--ink);
  font:15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 23px; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 34px 0 10px; }
p { margin: 6px 0; } .soft { color: var(--soft); }
.charts { display:grid; gap: 18px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); }
figure { margin: 0; background: var(--card); border-radius: 10px; padding: 12px; min-width: 0; }
figcaption { font-size: 13px; color: var(--soft); margin-bottom: 6px; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
.grid { stroke: var(--line); } .border { stroke: var(--soft); stroke-dasharray: 2 4; }
.curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; } .band { opacity: .16; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; width: 100%;
  font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 600; white-space: nowrap; }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
.swatch { display:inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 8px;
  vertical-align: -1px; }
.dot { display:inline-block; margin-right: 6px; }
.failed, .error { color: var(--error); } .interrupted, .warn { color: var(--warn); }
""" + "".join(
    f".k{at} {{ stroke: var(--c{at}); }} .f{at} {{ fill: var(--c{at}); }} "
    f".b{at} {{ background: var(--c{at}); }}\n"
    for at in range(COLORS)
)


def page(runs: Sequence[Curves], *, title: str | None = None) -> str:
    """The whole page of these runs, one over the other."""
    title = title or (runs[0].name if len(runs) == 1 else f"{len(runs)} runs")
    figures = [figure for chart in CHARTS if (figure := _figure(chart, runs))]
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body><main>",
        f"<h1>{_text(title)}</h1>",
        "<p class='soft'>Lines are training, points evaluations; the axis counts updates. Where "
        "several updates fall on one place, the line is their mean and the band their range.</p>",
        _table(runs),
        "<h2>Curves</h2><div class='charts'>",
        *figures,
        "</div>" if figures else "</div><p>No update is logged yet.</p>",
        _alerts(runs),
        "</main></body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _text(value: object) -> str:
    return html.escape(visible(str(value)), quote=True)


def _table(runs: Sequence[Curves]) -> str:
    head = "".join(f"<th>{name}</th>" for name in Row.HEAD)
    lines = []
    for number, run in enumerate(runs):
        for part in run.parts:
            row = row_of(part)
            name = run.name if len(run.parts) == 1 else f"{run.name} / {part.folder.name}"
            cells = [
                f"<td><span class='swatch b{number % COLORS}'></span>{_text(name)}</td>",
                f"<td class='{part.state}'>{part.state}</td>",
                *(f"<td>{_text(cell)}</td>" for cell in row.cells[2:]),
            ]
            lines.append(f"<tr>{''.join(cells)}</tr>")
            if part.error:
                lines.append(
                    f"<tr><td class='error' colspan='{len(Row.HEAD)}'>{_text(part.error)}</td></tr>"
                )
    return f"<div class='scroll'><table><tr>{head}</tr>{''.join(lines)}</table></div>"


def _alerts(runs: Sequence[Curves]) -> str:
    rows = []
    for number, run in enumerate(runs):
        for part in run.parts:
            name = run.name if len(run.parts) == 1 else f"{run.name} / {part.folder.name}"
            for alert in part.alerts:
                kind = "error" if alert.get("level") == "error" else "warn"
                rows.append(
                    f"<tr><td><span class='swatch b{number % COLORS}'></span>{_text(name)}</td>"
                    f"<td>{_text(alert.get('step', ''))}</td>"
                    f"<td class='{kind}'>{_text(alert.get('title', alert.get('kind', '')))}</td>"
                    f"<td>{_text(alert.get('text', ''))}</td></tr>"
                )
    if not rows:
        return ""
    head = "<tr><th>run</th><th>update</th><th>warning</th><th></th></tr>"
    return f"<h2>Warnings</h2><div class='scroll'><table>{head}{''.join(rows)}</table></div>"


def _figure(chart: Chart, runs: Sequence[Curves]) -> str:
    """A chart, or nothing where no run has the figure."""
    lines = [thin(*run.points(chart.key, scale=chart.scale), POINTS) for run in runs]
    tested = [
        thin(*run.points(chart.evaluated, scale=chart.scale), POINTS) if chart.evaluated else []
        for run in runs
    ]
    points = [point for some in (*lines, *tested) for point in some]
    where = axis(points, logarithmic=chart.logarithmic)
    if where is None:
        return ""
    first, last = min(p.x for p in points), max(p.x for p in points)

    def x_of(x: float) -> float:
        share = 0.5 if last == first else (x - first) / (last - first)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y_of(value: float) -> float:
        return HEIGHT - BOTTOM - where.share(value) * (HEIGHT - TOP - BOTTOM)

    shapes = [_grid(where, first, last, y_of)]
    shapes += [_borders(run, x_of, first, last) for run in runs[:1]]
    for number, some in enumerate(lines):
        shapes += [_curve(number, part, x_of, y_of) for part in segments(runs[number], some)]
    for number, some in enumerate(tested):
        shapes += [
            f"<circle class='f{number % COLORS}' r='3.2' cx='{x_of(p.x):.1f}' "
            f"cy='{y_of(p.mean):.1f}'><title>{_text(runs[number].name)}, evaluation after update "
            f"{p.x:.0f}: {p.mean:.5g}</title></circle>"
            for p in some
        ]
    log = ", logarithmic" if where.logarithmic else ""
    return (
        f"<figure><figcaption>{_text(chart.title)}{log}</figcaption>"
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{_text(chart.title)}'>"
        f"{''.join(shapes)}</svg></figure>"
    )


def _curve(number: int, points: Sequence[Point], x_of: object, y_of: object) -> str:
    assert callable(x_of) and callable(y_of)
    color, dash = number % COLORS, DASHES[number // COLORS % len(DASHES)]
    if not points:
        return ""
    if len(points) == 1:
        at = points[0]
        return f"<circle class='f{color}' r='2' cx='{x_of(at.x):.1f}' cy='{y_of(at.mean):.1f}'/>"
    shapes = ""
    if any(point.high > point.low for point in points):
        top = " ".join(f"{x_of(p.x):.1f},{y_of(p.high):.1f}" for p in points)
        bottom = " ".join(f"{x_of(p.x):.1f},{y_of(p.low):.1f}" for p in reversed(points))
        shapes = f"<polygon class='band f{color}' points='{top} {bottom}'/>"
    path = " ".join(f"{x_of(p.x):.1f},{y_of(p.mean):.1f}" for p in points)
    style = f" stroke-dasharray='{dash}'" if dash else ""
    return shapes + f"<polyline class='curve k{color}'{style} points='{path}'/>"


def _grid(where: Axis, first: float, last: float, y_of: object) -> str:
    assert callable(y_of)
    parts = []
    for at in range(5):
        value = where.value(at / 4)
        y = y_of(value)
        parts.append(
            f"<line class='grid' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>"
            f"<text x='{LEFT - 8}' y='{y + 4:.1f}' text-anchor='end'>{short(value)}</text>"
        )
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        if first == last and share != 0.5:
            continue
        x = LEFT + share * (WIDTH - LEFT - RIGHT)
        text = f"{math.floor(first + share * (last - first) + 0.5):,}"
        parts.append(f"<text x='{x:.0f}' y='{HEIGHT - 10}' text-anchor='{anchor}'>{text}</text>")
    return "".join(parts)


def _borders(run: Curves, x_of: object, first: float, last: float) -> str:
    """Where the phases of a run begin."""
    assert callable(x_of)
    if len(run.borders) < 2:
        return ""
    parts, free = [], 0.0
    for at, name in run.borders:
        x = x_of(at)
        if not first - 1 <= at < last or x > WIDTH - RIGHT - 8:
            continue  # the phase has no such figure, or no room
        parts.append(
            f"<line class='border' x1='{x:.1f}' x2='{x:.1f}' y1='{TOP}' y2='{HEIGHT - BOTTOM}'/>"
        )
        if x >= free:
            parts.append(f"<text x='{x + 3:.1f}' y='{HEIGHT - BOTTOM + 12}'>{_text(name)}</text>")
            free = x + 8 + 6.5 * len(name)
    return "".join(parts)
