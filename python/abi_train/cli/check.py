"""`abi-train check`: the same training on both engines, compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import JsonFlag, out, print_json, say
from .train import build_spec

EXAMPLES = """[bold]Examples[/]

abi-train check recipe.yaml --steps 10

abi-train check --model ./model --data train.bin --precision float64 --report check-report
"""


def check(
    recipe: Annotated[
        Path | None, typer.Argument(help="Recipe file (.yaml, .json, .toml).")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Model folder, .gguf, or config.json for random weights.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Token file (.bin) to train on.")] = None,
    method: Annotated[str | None, typer.Option(help="full or lora. (default: full)")] = None,
    objective: Annotated[str | None, typer.Option(help="sft or dpo. (default: sft)")] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="Adapter folder to go on from; means --method lora.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Updates to compare.")] = 30,
    precision: Annotated[str, typer.Option(help="float32 or float64, on both.")] = "float32",
    report: Annotated[
        Path | None, typer.Option(help="Folder for check.json and check.html.")
    ] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="A float32 difference counts even if float64 agrees."),
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="One training setting, NAME=VALUE, lora.NAME=VALUE or dpo.NAME=VALUE; may be "
            "repeated.",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Train a few updates on the native engine and through TRL and compare every figure.

    Compared are loss, gradient norm and learning rate of each update, with DPO its rewards too,
    every gradient at update one and every weight at the end. Leaves with code 1 when something is
    out of tolerance. Needs the trl extra: pip install 'abi-train\\[trl]'.
    """
    from ..check.crosscheck import crosscheck
    from ..check.report import write_report
    from ..check.table import print_comparison
    from ..progress import TrainingLine

    if precision not in ("float32", "float64"):
        raise typer.BadParameter("--precision is float32 or float64")
    options = {
        "model": model,
        "data": data,
        "run_dir": Path("unused"),
        "method": method,
        "objective": objective,
    }
    spec = build_spec(recipe, options, settings or [], adapter=adapter)
    result = crosscheck(
        spec,
        steps=steps,
        precision=precision,
        explain=not strict,
        observer=TrainingLine(interval=max(1, steps // 5)),
    )
    if report is not None:
        document, page = write_report(result, report)
        say(f"wrote {document} and {page}")
    if as_json:
        print_json(result.to_dict())
    else:
        print_comparison(result, out())
    if not result.ok:
        raise typer.Exit(1)
