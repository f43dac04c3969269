"""What a model can do, as numbers: emotions, results, calibration, perplexity.

    from abi_train import evaluate
    report = evaluate.run("abbey.gguf", ["emotion", "answers", "calibration"])
    report.scores["emotion"]["accuracy"]

Tasks:

- `emotion`: which of Abbey's 14 emotions a message has, by the likeliest label.
- `answers`: whether the result of a problem is right, by the likeliest answer.
- `calibration`: whether the model knows what it knows.
- `perplexity:FILE`: how surprised it is by a text, rows (`.jsonl`) or token file (`.bin`).
- `lm-eval:NAME`: a task of the package lm-eval, where that is installed.

The first three take the packaged rows, which no packaged training row repeats; `emotion:FILE.jsonl`
rows of your own, and `answers:set:gsm8k` those of a public set. docs/evaluation.md says how each
score is computed. Importing this loads neither torch nor a model.
"""

from __future__ import annotations

import difflib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..data import provenance
from ..errors import ConfigError, MissingFileError
from .report import BETTER, EvalReport

if TYPE_CHECKING:
    from rich.table import Table

    from .rows import Source
    from .scorer import Scorer

__all__ = ["BETTER", "TASKS", "EvalReport", "check_engine", "check_tasks", "run", "table"]

TASKS: Final = ("emotion", "answers", "calibration", "perplexity", "lm-eval")
Found = tuple[dict[str, float], dict[str, Any]]


def run(
    model: str | Path,
    tasks: Sequence[str] = ("emotion", "answers", "calibration"),
    *,
    limit: int | None = None,
    engine: str = "auto",
    chat_format: str | None = None,
    threads: int = 0,
    even_if_seen: bool = False,
    seed: int = 42,
    max_new_tokens: int | None = None,
    on_task: Callable[[str], None] | None = None,
) -> EvalReport:
    """Evaluate a GGUF file, a model folder, an adapter or what a run folder ended with.

    limit: rows of each task (default all; a public set: drawn by `seed`). engine: `native`, `torch`
    or `auto` (native for a GGUF file; for a folder torch, or native without it). chat_format: for a
    model without one of its own. max_new_tokens: of an answer (default 256 for `answers`, 48 for
    `calibration`). on_task: called with the name of each before it begins.

    A public test whose answers the model was trained on is refused; even_if_seen computes it, and
    the report says so. Raises `ConfigError` for an unknown task, `DataError` for rows that are no
    test, `NumericsError` for a model whose logits are not numbers, and what opening the model
    raises.
    """
    from . import rows
    from .opening import opened

    check_engine(engine)
    model = Path(model)
    parsed = check_tasks(tasks)
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; it must be 1 or more")
    if not model.exists():
        raise MissingFileError(f"{model}: no such file or folder; check the path")
    report = EvalReport(model=str(model), engine=engine, scores={}, limit=limit)
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="abi-train-eval-rows-") as scratch:
        asked: dict[str, Any] = {}
        for task, (name, rest) in parsed.items():
            if name in rows.PACKAGED:
                asked[task] = rows.resolve(name, rest, Path(scratch), limit=limit, seed=seed)
                _require_unseen(model, asked[task].evaluations, even_if_seen, notes)
            elif name == "lm-eval":
                from . import harness

                harness.require()
                _require_unseen(model, (rest,), even_if_seen, notes)
        # What the rows are is known before a model is opened, which may take long.
        items = {task: _read(parsed[task][0], source, limit) for task, source in asked.items()}
        with opened(model, engine=engine, chat_format=chat_format, threads=threads) as scorer:
            for task, (name, rest) in parsed.items():
                if on_task is not None:
                    on_task(task)
                begun = time.perf_counter()
                found, details = _task(scorer, name, rest, items.get(task), limit, max_new_tokens)
                report.scores[task] = found
                report.details[task] = details
                report.seconds[task] = time.perf_counter() - begun
            values = {**vars(report), "engine": scorer.runner.engine, "notes": tuple(notes)}
    return EvalReport(**values)


def check_engine(engine: str) -> None:
    """Raise `ConfigError` for an engine nobody knows."""
    from .opening import ENGINES, SAME_AS

    if engine not in ENGINES and engine not in SAME_AS:
        raise ConfigError(f"engine is {engine!r}; it must be one of {', '.join(ENGINES)}")


def check_tasks(tasks: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Each task with its name and what stands behind the colon.

    Raises `ConfigError` for one that is unknown, or that needs something behind it, or when there
    is none at all.
    """
    if isinstance(tasks, str):
        tasks = tasks.split(",")
    found: dict[str, tuple[str, str]] = {}
    for task in (text.strip() for text in tasks):
        name, _, rest = task.partition(":")
        if name not in TASKS:
            near = difflib.get_close_matches(name, TASKS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{name!r} is no task; known are {', '.join(TASKS)}{hint}")
        if name in ("perplexity", "lm-eval") and not rest:
            what = "FILE" if name == "perplexity" else "NAME"
            raise ConfigError(f"task {name} needs {name}:{what}")
        if "\0" in rest:
            raise ConfigError(f"task {task!r}: no file or set has a NUL in its name; check it")
        found[task] = (name, rest)
    if not found:
        raise ConfigError(f"no task to evaluate; known are {', '.join(TASKS)}")
    return found


def _read(name: str, source: Source, limit: int | None) -> list[Any]:
    from . import rows

    return rows.questions(source, limit) if name == "calibration" else rows.chats(source, limit)


def _require_unseen(
    model: Path, tests: Sequence[str], even_if_seen: bool, notes: list[str]
) -> None:
    for test in tests:
        reason = provenance.contamination(model, test)
        if reason is None:
            continue
        if not even_if_seen:
            raise ConfigError(
                f"{reason}. Leave the task out, or compute it all the same with --even-if-seen, "
                "and say so wherever you report it"
            )
        if reason not in notes:
            notes.append(reason)


def _task(
    scorer: Scorer,
    name: str,
    rest: str,
    items: list[Any] | None,
    limit: int | None,
    max_new_tokens: int | None,
) -> Found:
    from . import answers, calibration, emotion, perplexity

    most = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    if name == "perplexity":
        return perplexity.evaluate(scorer, Path(rest), limit=limit)
    if name == "lm-eval":
        from . import harness

        return harness.evaluate(scorer, rest, limit=limit)
    assert items is not None
    if name == "emotion":
        return emotion.evaluate(scorer, items)
    if name == "answers":
        return answers.evaluate(scorer, items, **most)
    return calibration.evaluate(scorer, items, **most)


def table(
    reports: Mapping[str, EvalReport | Mapping[str, Mapping[str, float]]] | Sequence[EvalReport],
) -> Table:
    """The scores of several reports side by side, for a terminal: before and after each phase.

    reports: a column's title and report (or its scores) each, in order; a plain list is titled by
    models. Each figure but the first column's stands with its change from the one before it.
    """
    from .show import table as drawn

    if not isinstance(reports, Mapping):
        reports = {report.model: report for report in reports}
    scores = {
        title: one.scores if isinstance(one, EvalReport) else one for title, one in reports.items()
    }
    return drawn(scores)
