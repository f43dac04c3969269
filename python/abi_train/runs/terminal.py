"""Curves as text: dots of Braille, two by four in a cell, an axis on each side.

A drawing is rows of pieces, each with the number of the run it belongs to, so that whoever prints
it chooses the colours. Does not know: terminals, colours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from .curves import CHARTS, TERMINAL, Axis, Chart, Curves, Point, axis, segments, short, thin

Piece = tuple[str, int | None]
"""Text, and the run it is of; None for what is of no run."""

LABEL = 9
_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


class Canvas:
    """Cells of `columns` by `rows`, each of 2 by 4 dots. Later runs draw over earlier ones."""

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self._dots = [[0] * columns for _ in range(rows)]
        self._owner: list[list[int | None]] = [[None] * columns for _ in range(rows)]

    def dot(self, x: int, y: int, owner: int) -> None:
        """A dot; y counts from the bottom. Outside of the canvas there is none."""
        if 0 <= x < 2 * self.columns and 0 <= y < 4 * self.rows:
            row, column = self.rows - 1 - y // 4, x // 2
            self._dots[row][column] |= _BITS[3 - y % 4][x % 2]
            self._owner[row][column] = owner

    def line(self, x0: int, y0: int, x1: int, y1: int, owner: int) -> None:
        """Dots from one place to another."""
        steps = max(abs(x1 - x0), abs(y1 - y0), 1)
        for at in range(steps + 1):
            share = at / steps
            self.dot(round(x0 + share * (x1 - x0)), round(y0 + share * (y1 - y0)), owner)

    def row(self, number: int) -> list[Piece]:
        """A row from the top, cells of one run together."""
        pieces: list[Piece] = []
        for dots, owner in zip(self._dots[number], self._owner[number], strict=True):
            text = chr(0x2800 + dots) if dots else " "
            if pieces and pieces[-1][1] == owner:
                pieces[-1] = (pieces[-1][0] + text, owner)
            else:
                pieces.append((text, owner))
        return pieces


def draw(runs: Sequence[Curves], *, width: int, height: int = 10) -> Iterator[list[Piece]]:
    """Loss, learning rate and gradient norm of the runs, one over the other, row by row."""
    for chart in CHARTS[:TERMINAL]:
        yield from _chart(chart, runs, width, height)


def _chart(chart: Chart, runs: Sequence[Curves], width: int, height: int) -> Iterator[list[Piece]]:
    columns = max(10, width - LABEL - 2)
    lines = [thin(*run.points(chart.key, scale=chart.scale), 2 * columns) for run in runs]
    tested = [
        thin(*run.points(chart.evaluated, scale=chart.scale), columns) if chart.evaluated else []
        for run in runs
    ]
    means = [replace(p, low=p.mean, high=p.mean) for points in (*lines, *tested) for p in points]
    where = axis(means, logarithmic=chart.logarithmic)
    if where is None:
        return
    log = ", logarithmic" if where.logarithmic else ""
    marks = "  (✕ evaluation)" if any(tested) else ""
    yield [(f"{'':{LABEL}}   {chart.title}{log}{marks}", None)]
    first = min(p.x for points in (*lines, *tested) for p in points)
    last = max(p.x for points in (*lines, *tested) for p in points)
    canvas = Canvas(columns, height)
    crosses: dict[tuple[int, int], int] = {}

    def place(point: Point) -> tuple[int, int]:
        share = 0.5 if last == first else (point.x - first) / (last - first)
        up = where.share(point.mean)
        return round(share * (2 * columns - 1)), round(up * (4 * height - 1))

    for number, points in enumerate(lines):
        for part in segments(runs[number], points):
            before = place(part[0])
            for point in part:
                x, y = place(point)
                canvas.line(*before, x, y, number)
                before = (x, y)
    for number, points in enumerate(tested):
        for point in points:
            x, y = place(point)
            crosses[height - 1 - y // 4, x // 2] = number
    for row in range(height):
        label = _label(where, row, height)
        yield [(f"{label:>{LABEL}} ┤", None), *_crossed(canvas.row(row), row, crosses)]
    yield [(f"{'':{LABEL}} └{_ruler(first, last, columns)}", None)]
    borders = [border for run in runs[:1] for border in run.borders]
    if len(borders) > 1:
        yield [(f"{'':{LABEL}}  {_names(borders, first, last, columns)}", None)]
    yield []


def _label(where: Axis, row: int, height: int) -> str:
    """Values beside the top, the middle and the bottom row."""
    if row not in (0, height // 2, height - 1):
        return ""
    return short(where.value(1.0 - row / max(1, height - 1)))


def _crossed(
    pieces: Sequence[Piece], row: int, crosses: dict[tuple[int, int], int]
) -> Iterator[Piece]:
    """The row with its evaluations."""
    column = 0
    for text, owner in pieces:
        plain = ""
        for sign in text:
            number = crosses.get((row, column))
            column += 1
            if number is None:
                plain += sign
                continue
            if plain:
                yield plain, owner
            yield "✕", number
            plain = ""
        if plain:
            yield plain, owner


def _ruler(first: float, last: float, columns: int) -> str:
    """The line under a drawing, with the first, the middle and the last update."""
    left, right = f"{first:.0f}", f"{last:.0f}"
    middle = f"{(first + last) / 2:.0f}"
    if columns < len(left) + len(middle) + len(right) + 6 or first == last:
        return f" {left}"
    room = columns - len(left) - len(middle) - len(right) - 5
    return f" {left} {'─' * (room // 2)} {middle} {'─' * (room - room // 2)} {right}"


def _names(borders: Sequence[tuple[int, str]], first: float, last: float, columns: int) -> str:
    """Names of phases under the place where each begins."""
    text = ""
    for at, name in borders:
        share = 0.0 if last == first else max(0.0, (at - first) / (last - first))
        start = max(math.floor(share * columns), len(text) + bool(text))
        text = text.ljust(start) + f"╵{name}"
    return text[:columns]
