"""Scores on a terminal: a row for each metric, a column for each report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from rich.table import Table

from .report import BETTER

SHARES: Final = frozenset(
    {
        "accuracy",
        "macro_f1",
        "marked",
        "no_number",
        "cut_off",
        "accuracy_of_choice",
        "answers_known",
        "accuracy_known",
        "accuracy_when_answering",
        "abstains_unknowable",
        "asks_ambiguous",
    }
)
QUIET: Final = frozenset({"rows", "tokens", "nll_per_token"})
WORDS: Final[Mapping[str, str]] = {
    "macro_f1": "macro F1",
    "marked": "ends with ####",
    "no_number": "no number",
    "cut_off": "cut off",
    "calibration_error": "calibration error",
    "brier": "Brier score",
    "accuracy_of_choice": "likeliest is right",
    "answers_known": "answers the known",
    "accuracy_known": "known: right",
    "accuracy_when_answering": "right when answering",
    "abstains_unknowable": "declines the unknowable",
    "asks_ambiguous": "asks back",
    "bits_per_byte": "bits per byte",
}


def table(reports: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    """See `abi_train.evaluate.table`."""
    drawn = Table(box=None, pad_edge=False, show_edge=False, header_style="bold")
    drawn.add_column("task")
    drawn.add_column("score")
    for title in reports:
        drawn.add_column(title, justify="right", overflow="fold")
    tasks = dict.fromkeys(task for scores in reports.values() for task in scores)
    for task in tasks:
        every = [scores.get(task, {}) for scores in reports.values()]
        names = dict.fromkeys(name for scores in every for name in scores if name not in QUIET)
        for at, name in enumerate(names):
            drawn.add_row(
                task if at == 0 else "",
                WORDS.get(name, name.replace("_", " ")),
                *_cells(name, [scores.get(name) for scores in every]),
                end_section=at == len(names) - 1,
            )
    return drawn


def _cells(name: str, values: list[float | None]) -> list[str]:
    found = []
    before: float | None = None
    for value in values:
        if value is None:
            found.append("–")
            continue
        shown = figure(name, value)
        if before is not None:
            shown += f" {_change(name, before, value)}"
        found.append(shown)
        before = value
    return found


def figure(name: str, value: float) -> str:
    """A score as people read it: shares in percent."""
    if name in SHARES:
        return f"{100 * value:.1f} %"
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.4g}"


def _change(name: str, before: float, after: float) -> str:
    gap = after - before
    if math.isnan(gap) or abs(gap) < 5e-4:
        return "[dim](=)[/]"
    size = f"{100 * gap:+.1f}" if name in SHARES else f"{gap:+.3g}"
    better = BETTER.get(name)
    if better is None:
        return f"[dim]({size})[/]"
    return f"[{'green' if (gap > 0) == better else 'red'}]({size})[/]"
