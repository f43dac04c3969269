"""`abi-train inspect`: what is in a model file or folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import FormatError, MissingFileError
from .common import JsonFlag, out, print_json

EXAMPLES = """[bold]Examples[/]

abi-train inspect model.gguf

abi-train inspect runs/first/checkpoint-100 --json
"""


def inspect(
    path: Annotated[Path, typer.Argument(help="GGUF file, model folder, checkpoint or .bin file.")],
    as_json: JsonFlag = False,
) -> None:
    """Show keys and tensors of a GGUF, or configuration and parameters of a model folder."""
    if not path.exists():
        raise MissingFileError(f"{path}: no such file or folder; check the path")
    if path.suffix == ".bin":
        from ..data.info import describe

        facts = describe(path)
        if as_json:
            print_json(facts)
        else:
            _table(facts)
    elif path.is_dir():
        _folder(path, as_json)
    elif path.suffix == ".gguf":
        from .._native.program import program_path

        sys.stdout.flush()
        extra = ["--json"] if as_json else []
        done = subprocess.run([program_path(), "inspect", str(path), *extra], check=False)
        if done.returncode:
            raise typer.Exit(1)
    else:
        raise FormatError(f"{path}: inspect reads .gguf and .bin files and model folders")


def _folder(path: Path, as_json: bool) -> None:
    from ..model import Model

    with Model.load(path) as model:
        facts: dict[str, Any] = dict(model.config)
        facts["parameters"] = sum(p.size for p in model.parameters)
        tensors = [{"name": p.name, "shape": list(p.shape)} for p in model.parameters]
    if (path / "trainer_state.json").is_file():
        from ..checkpoint import read_state

        facts["updates done"] = read_state(path)["global_step"]
    if as_json:
        print_json({**facts, "tensors": tensors})
        return
    _table(facts)
    for tensor in tensors:
        shape = " x ".join(str(size) for size in tensor["shape"])
        out().print(f"{tensor['name']:<60} {shape}", highlight=False, markup=False)


def _table(facts: dict[str, Any]) -> None:
    for key, value in facts.items():
        out().print(f"{key:>28}  {value}", highlight=False, markup=False)
