"""`abi-train chat`: the `abi agent` program with a model."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import EngineError, FormatError, MissingFileError

EXAMPLES = """[bold]Examples[/]

abi-train chat model.gguf

abi-train chat model.gguf --message "I can't sleep before the exam." --temperature 0
"""


def chat(
    context: typer.Context,
    model: Annotated[
        Path | None, typer.Argument(help="GGUF file; without it ABI_OLLAMA_MODEL is used.")
    ] = None,
) -> None:
    """Talk to a model in the terminal. All further options go to `abi agent`.

    See `abi agent --help` for them: --message, --temperature, --seed, --session, --load and more.
    """
    from .._native.program import program_path

    arguments = ["abi", "agent"]
    rest = list(context.args)
    if model is not None and str(model).startswith("-"):
        rest.insert(0, str(model))
    elif model is not None:
        if model.is_dir():
            source = shlex.quote(str(model))
            raise FormatError(f"{model} is a folder; make a GGUF first: abi-train export {source}")
        if not model.is_file():
            raise MissingFileError(f"{model}: no such file; make one with `abi-train export`")
        arguments += ["--model", str(model)]
    elif not os.environ.get("ABI_OLLAMA_MODEL") and not rest:
        raise typer.BadParameter("name a GGUF file, or set ABI_OLLAMA_MODEL to talk to Ollama")
    try:
        program = program_path()
    except FileNotFoundError as error:
        raise EngineError(str(error)) from None
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(program, [*arguments, *rest])
