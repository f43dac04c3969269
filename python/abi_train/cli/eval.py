"""`abi-train eval`: what a model can do, and what changed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .common import JsonFlag, err, from_the_command_line, out, print_json, say

if TYPE_CHECKING:
    from ..evaluate import EvalReport

EXAMPLES = """[bold]Examples[/]

abi-train eval abbey.gguf --output before.json

abi-train eval runs/abbey/calibration --task emotion,calibration --compare before.json
"""


def evaluate_model(
    model: Annotated[
        Path, typer.Argument(help="GGUF file, model or adapter folder, checkpoint, or run folder.")
    ],
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="Tasks: emotion, answers, calibration, perplexity:FILE, lm-eval:NAME; with "
            ":FILE.jsonl or :set:NAME behind one of the first three its rows; may be repeated. "
            "(default: the first three)"
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows of each task.")] = None,
    engine: Annotated[
        str, typer.Option(help="native, torch, or auto: native for a GGUF file.")
    ] = "auto",
    chat_format: Annotated[
        str | None, typer.Option(help="Chat format of a model that has none of its own.")
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(help="What it was before: a report of eval (.json), or another model."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Report to write (.json).")] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of an answer. (default: answers 256, calibration 48)"),
    ] = None,
    threads: Annotated[
        int, typer.Option(min=0, help="Threads of the native engine; 0: one for each CPU.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of rows drawn from a public set.")] = 42,
    even_if_seen: Annotated[
        bool, typer.Option("--even-if-seen", help="Also a test the model was trained on.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Evaluate a model: emotions heard, results, calibration, perplexity.

    Without a file behind it a task takes the packaged rows, which no packaged training row repeats.
    docs/evaluation.md says how each score is computed.
    """
    from .. import evaluate

    with from_the_command_line():
        evaluate.check_engine(engine)
        parsed = evaluate.check_tasks(",".join(task) if task else "emotion,answers,calibration")
        tasks = list(parsed)
        if output is not None:
            rows = [Path(rest) for _, rest in parsed.values() if rest]
            reads = [model, *rows, *([] if compare is None else [compare])]
            evaluate.EvalReport.check_output(output, reads=reads)
    reports: dict[str, EvalReport] = {}
    with err().status("reading", spinner="dots") as status:

        def run(path: Path) -> EvalReport:
            return evaluate.run(
                path,
                tasks,
                limit=limit,
                engine=engine,
                chat_format=chat_format,
                threads=threads,
                even_if_seen=even_if_seen,
                seed=seed,
                max_new_tokens=max_new_tokens,
                on_task=lambda name: status.update(f"{path}: {name}"),
            )

        if compare is not None:
            is_report = compare.suffix == ".json"
            reports["before"] = evaluate.EvalReport.load(compare) if is_report else run(compare)
        report = run(model)
        reports["after" if compare is not None else model.name] = report
    if as_json:
        before = reports.get("before")
        values = report.to_dict()
        print_json(values if before is None else {**values, "before": before.to_dict()})
    else:
        _show(reports, report)
    if output is not None:  # last: what was computed is not lost where it cannot be written
        say(f"wrote {report.save(output)}")


def _show(reports: dict[str, EvalReport], report: EvalReport) -> None:
    """The table, a wrong answer of each task, and the notes."""
    from .. import evaluate

    out().print(evaluate.table(reports))
    for task_name, details in report.details.items():
        if details.get("wrong"):
            first = details["wrong"][0]
            asked = first.get("message") or first.get("question")
            got = first.get("given") if "message" in first else first.get("answer")
            say(f"{task_name}, wrong for example: {_short(asked)} → {_short(got)}")
    for note in report.notes:
        say(f"note: {note}")


def _short(text: object) -> str:
    shown = " ".join(str(text).split())
    return repr(shown if len(shown) <= 80 else shown[:80] + "…")
