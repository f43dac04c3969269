"""What a line of a list of runs says, in words.

Does not know: terminals, pages.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

from ..progress import short_time
from .curves import short
from .log import RunLog


@dataclass(frozen=True)
class Row:
    """The cells of one run, under `HEAD`."""

    HEAD: ClassVar[tuple[str, ...]] = (
        "run",
        "state",
        "model",
        "method",
        "engine",
        "updates",
        "loss",
        "evaluation",
        "began",
        "took",
    )
    cells: tuple[str, ...]


def row_of(run: RunLog) -> Row:
    """The line of a run."""
    loss, tested = run.last("loss"), run.last("eval_loss")
    total = f"/{run.total_steps}" if run.total_steps else ""
    began = took = ""
    if run.started is not None and run.ended is not None:
        began = _clock(run.started)
        until = time.time() if run.state == "running" else run.ended
        took = short_time(max(0.0, until - run.started))
    return Row(
        (
            str(run.folder),
            run.state,
            run.model,
            run.method,
            run.engine,
            f"{run.step}{total}",
            "" if loss is None else short(loss),
            "" if tested is None else short(tested),
            began,
            took,
        )
    )


def _clock(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return ""
