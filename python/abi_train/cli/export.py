"""`abi-train export`: a GGUF of what was trained."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from .common import JsonFlag, out, print_json, say, size_text

EXAMPLES = """[bold]Examples[/]

abi-train export runs/first

abi-train export runs/first/checkpoint-200 --output abbey.gguf --dtype f16 --name abbey
"""


def export(
    source: Annotated[
        Path,
        typer.Argument(
            help="Model folder, checkpoint, or run folder (its newest, after early stopping its "
            "best checkpoint)."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(help="File to write. (default: SOURCE/model-DTYPE.gguf)")
    ] = None,
    dtype: Annotated[str, typer.Option(help="f32, f16, bf16 or q8_0, for the matrices.")] = "q8_0",
    name: Annotated[str | None, typer.Option(help="general.name of the file.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Tokenizer folder. (default: the model's)")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write a GGUF file with tokenizer and chat template, read back before it gets its name."""
    from ..export import DTYPES, export_gguf

    if dtype not in DTYPES:
        raise typer.BadParameter(f"--dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    if output is not None and output.suffix != ".gguf":
        raise typer.BadParameter(f"--output is {str(output)!r}; the name must end in .gguf")
    target = output or source / f"model-{dtype}.gguf"
    report = export_gguf(source, target, dtype=dtype, name=name, tokenizer=tokenizer)
    if as_json:
        print_json(report.to_dict())
        return
    out().print(str(report.path), markup=False, highlight=False)
    say(
        f"{size_text(report.size_bytes)}, {report.tensors} tensors, {report.dtype}, from "
        f"{report.source}; next: abi-train chat {shlex.quote(str(report.path))}"
    )
