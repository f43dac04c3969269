"""One run as its log tells it, finished or not.

A log may end in half a line, hold lines that are damaged, numbers that were none, and the updates a
killed run did after its last checkpoint, which the resumed one did again: these are left out. Does
not know: how runs are found or drawn.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..checkpoint import STATE_FILE, is_locked, list_checkpoints
from ..errors import FileAccessError, MissingFileError
from ..progress import LOG_FILE
from ..runspec import RECIPE_FILE

STATES: Final = ("running", "finished", "interrupted", "failed")
_NO_CURVE: Final = ("event", "step", "time")


class Series:
    """A figure by update. Both arrays are as long; a number that was none is NaN."""

    def __init__(self) -> None:
        self.steps = array("q")
        self.values = array("d")

    def __len__(self) -> int:
        return len(self.steps)

    def add(self, step: int, value: float) -> None:
        """One more point."""
        self.steps.append(step)
        self.values.append(value)

    def cut(self, after: int) -> None:
        """Forget what came after an update."""
        keep = len(self.steps)
        while keep and self.steps[keep - 1] > after:
            keep -= 1
        del self.steps[keep:]
        del self.values[keep:]

    @property
    def last(self) -> float | None:
        """The last number that is one."""
        return next((value for value in reversed(self.values) if math.isfinite(value)), None)


@dataclass(kw_only=True)
class RunLog:
    """What is known of a run.

    state: one of `STATES`; interrupted is also a run that was killed.
    series: by the log's keys; those of evaluations begin with `eval_`.
    recipe: the run's own file, as it is; empty where it has none.
    started, ended: seconds since 1970; None in logs that do not say.
    damaged: lines nobody can read.
    saved: updates in its newest checkpoint, which the log may not have yet.
    """

    folder: Path
    state: str = "interrupted"
    recipe: dict[str, Any] = field(default_factory=dict)
    series: dict[str, Series] = field(default_factory=dict)
    alerts: list[dict[str, Any]] = field(default_factory=list)
    total_steps: int = 0
    engine: str = ""
    stop_reason: str = ""
    error: str = ""
    started: float | None = None
    ended: float | None = None
    damaged: int = 0
    saved: int = 0
    resumed: int = 0
    began: float | None = None
    """When its last part began, after update `resumed`; seconds since 1970."""

    @property
    def step(self) -> int:
        """Updates done: what the log has, or the newest checkpoint where that has more."""
        found = self.series.get("loss")
        return max(found.steps[-1] if found else 0, self.saved)

    def last(self, key: str) -> float | None:
        """The last value of a figure; None where there is none."""
        found = self.series.get(key)
        return found.last if found else None

    @property
    def method(self) -> str:
        """`full · sft` and the like."""
        parts = [self.recipe.get("method"), self.recipe.get("objective")]
        return " · ".join(part for part in parts if isinstance(part, str))

    @property
    def model(self) -> str:
        """The name of the model it began with."""
        given = self.recipe.get("model")
        if not isinstance(given, str) or not given:
            return ""
        path = Path(given)
        if path.suffix == ".json":
            return "random weights"
        if path.name.startswith("checkpoint-") and path.parent.name:
            return f"{path.parent.name}/{path.name}"
        return path.name

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the curves."""
        return {
            "folder": str(self.folder),
            "state": self.state,
            "engine": self.engine,
            "model": self.model,
            "method": self.recipe.get("method"),
            "objective": self.recipe.get("objective"),
            "step": self.step,
            "total_steps": self.total_steps,
            "loss": self.last("loss"),
            "eval_loss": self.last("eval_loss"),
            "started": self.started,
            "ended": self.ended,
            "stop_reason": self.stop_reason or None,
            "error": self.error or None,
            "alerts": self.alerts,
            "damaged_lines": self.damaged,
        }


def read_run(folder: str | Path) -> RunLog:
    """The run in a folder. Raises `MissingFileError` where there is no log, `FileAccessError`."""
    folder = Path(folder)
    path = folder / LOG_FILE
    if not path.is_file():
        said = "not a run folder (no log.jsonl)" if folder.is_dir() else "no such folder"
        raise MissingFileError(f"{folder}: {said}; `abi-train runs` lists those there are")
    run = RunLog(folder=folder, recipe=_recipe(folder))
    try:
        with path.open("rb") as file:
            for values in _lines(file, run):
                _take(run, values)
    except OSError as error:
        raise FileAccessError(f"{path}: cannot be read ({error.strerror})") from None
    run.engine = run.engine or str(run.recipe.get("engine") or "")
    run.saved = _saved(run)
    run.state = _state(run)
    return run


def _lines(file: Any, run: RunLog) -> Iterator[dict[str, Any]]:
    for line in file:
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            # The last one may only not be whole yet.
            run.damaged += line.endswith(b"\n")
            continue
        if isinstance(values, dict):
            yield values
        else:
            run.damaged += 1


def _take(run: RunLog, values: dict[str, Any]) -> None:
    """Add what a line tells."""
    event, time = values.get("event"), values.get("time")
    if _is_number(time):
        run.started = time if run.started is None else run.started
        run.ended = time
    if event == "start":
        first = values.get("start_step")
        _begin(run, first if isinstance(first, int) else 0)
        total = values.get("total_steps")
        run.total_steps = total if isinstance(total, int) else run.total_steps
        run.engine = str(values.get("engine") or run.engine)
    elif event in ("step", "evaluation"):
        _add(run, values)
    elif event == "alert":
        run.alerts.append({k: v for k, v in values.items() if k not in ("event", "time")})
    elif event == "end":
        run.stop_reason = str(values.get("stop_reason") or "completed")
    elif event == "failed":
        run.error = f"{values.get('error')}: {values.get('text')}"


def _begin(run: RunLog, first: int) -> None:
    """A part of the run begins after update `first`: what came later is done again."""
    for series in run.series.values():
        series.cut(first)
    if first == 0:
        run.alerts.clear()
        run.started = run.ended
    run.alerts = [one for one in run.alerts if not _after(one.get("step"), first)]
    run.stop_reason = run.error = ""
    run.resumed, run.began = first, run.ended


def _after(step: Any, first: int) -> bool:
    return isinstance(step, int) and step > first


def _add(run: RunLog, values: Mapping[str, Any]) -> None:
    step = values.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < 1 << 62:
        run.damaged += 1
        return
    for key, value in values.items():
        if key in _NO_CURVE:
            continue
        series = run.series.setdefault(key, Series())
        if len(series) and series.steps[-1] >= step:
            continue  # told twice
        if value is None:
            series.add(step, math.nan)
        elif _is_number(value):
            series.add(step, float(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _recipe(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / RECIPE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _state(run: RunLog) -> str:
    if run.error:
        return "failed"
    if run.stop_reason:
        return "interrupted" if run.stop_reason == "interrupted" else "finished"
    if is_locked(_lock_folder(run)):
        return "running"
    # All updates are done; it is exporting, or was stopped while it did.
    return "finished" if run.total_steps and run.step >= run.total_steps else "interrupted"


def _saved(run: RunLog) -> int:
    """Updates in the newest checkpoint of the part of the run that was the last.

    A run that went on from an earlier one leaves later ones of before, which do not count.
    """
    for checkpoint in reversed(list_checkpoints(_lock_folder(run))):
        step = int(checkpoint.name.removeprefix("checkpoint-"))
        if run.total_steps and step > run.total_steps:
            continue
        if step <= run.resumed:
            return step if step == run.resumed else 0
        try:
            written = (checkpoint / STATE_FILE).stat().st_mtime
        except OSError:
            continue
        if run.began is None or written >= run.began - 1:
            return step
    return 0


def _lock_folder(run: RunLog) -> Path:
    training = run.recipe.get("training")
    place = training.get("checkpoint_path") if isinstance(training, dict) else None
    return run.folder / place if isinstance(place, str) and place else run.folder
