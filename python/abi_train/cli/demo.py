"""`abi-train demo`: everything once, on the packaged sample."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import JsonFlag, called_as, out, print_json, say, size_text

EXAMPLES = """[bold]Examples[/]

abi-train demo

abi-train demo /tmp/demo --question "What will the weather be next year?"
"""


def demo(
    folder: Annotated[Path, typer.Argument(help="Folder for everything it makes.")] = Path(
        "abi-demo"
    ),
    question: Annotated[str | None, typer.Option(help="What to ask the model.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Train a small model on the packaged sample, export it and let it answer. About a minute."""
    from ..demo import QUESTION, TRAINING, run_demo
    from ..progress import Observers, StopOnSignal, TrainingLine, short_time

    stop = StopOnSignal()
    with stop.installed():
        result = run_demo(
            folder,
            question=question or QUESTION,
            observer=Observers(TrainingLine(interval=TRAINING.log_interval), stop),
            say=say,
        )
    if as_json:
        print_json(
            {
                "folder": str(result.folder),
                "rows": result.prepared.train.rows,
                "updates": result.trained.total_steps,
                "final_loss": result.trained.final_loss,
                "tokens_per_second": result.trained.avg_throughput,
                "checkpoint": str(result.trained.checkpoint),
                "gguf": str(result.exported.path),
                "question": result.question,
                "answer": result.answer,
                "seconds": result.seconds,
            }
        )
        return
    console = out()
    console.print(f"\n  you    {result.question}", markup=False, highlight=False)
    console.print(f"  abbey  {result.answer}\n", markup=False, highlight=False)
    made = [
        (result.prepared.train.path, f"{result.prepared.train.tokens} token ids"),
        (result.trained.checkpoint, f"checkpoint, loss {result.trained.final_loss:.3f}"),
        (result.exported.path, f"the model, {size_text(result.exported.size_bytes)}"),
        (folder / "recipe.yaml", "how it was trained"),
    ]
    console.print(f"made in {short_time(result.seconds)}:")
    for path, what in made:
        console.print(f"  {path}  ({what})", markup=False, highlight=False)
    console.print("\ntry next:")
    program = called_as()
    for command in (
        f"{program} chat {result.exported.path}",
        f"{program} inspect {result.exported.path}",
        f"{program} init my-recipe.yaml",
    ):
        console.print(f"  {command}", markup=False, highlight=False)
