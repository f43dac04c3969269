"""`abi-train doctor`: versions, the machine, and a short self-check."""

from __future__ import annotations

import importlib.util
import platform
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import typer

from .common import JsonFlag, out, print_json

EXAMPLES = """[bold]Examples[/]

abi-train doctor

abi-train doctor --json
"""

OPTIONAL = ("torch", "transformers", "trl", "datasets", "tokenizers", "trackio", "matplotlib")


def doctor(as_json: JsonFlag = False) -> None:
    """Print versions, CPU features and threads, and try the native library."""
    facts, problems = examine()
    if as_json:
        print_json({**facts, "problems": problems})
    else:
        for key, value in facts.items():
            out().print(f"{key:>16}  {value}", highlight=False, markup=False)
        for problem in problems:
            out().print(f"[bold red]problem[/] {problem}", highlight=False)
        if not problems:
            out().print("[bold green]all well[/]")
    if problems:
        raise typer.Exit(1)


def examine() -> tuple[dict[str, Any], list[str]]:
    """Facts about this installation, and what is wrong with it."""
    from .. import __version__

    facts: dict[str, Any] = {
        "abi-train": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
    }
    problems: list[str] = []
    try:
        from .. import _native

        facts["native library"] = _native.version()
        facts.update({f"cpu {key}": value for key, value in _native.cpu_info().items()})
    except (ImportError, OSError) as error:
        problems.append(f"the native library does not load: {error}. Install abi-train again.")
    else:
        problems += _self_check()
    try:
        from .._native.program import program_path

        facts["abi program"] = str(program_path())
    except (ImportError, OSError) as error:
        problems.append(str(error))
    for name in OPTIONAL:
        found = importlib.util.find_spec(name) is not None
        facts[name] = metadata.version(name) if found else "not installed"
    return facts, problems


def _self_check() -> list[str]:
    """The configuration means the same on both sides, and a token file can be mapped."""
    import json

    import numpy as np

    from .. import _native
    from ..config import LlmTrainingConfig
    from ..dataset import TokenizedDataset

    problems = []
    config = LlmTrainingConfig()
    native = _native.config_validate(json.dumps(config.to_dict()))
    if LlmTrainingConfig.from_dict(native) != config:
        problems.append("the native library and Python disagree on the default configuration")
    with tempfile.TemporaryDirectory(prefix="abi-train-") as folder:
        path = Path(folder) / "ids.bin"
        np.arange(8, dtype="<u4").tofile(path)
        with TokenizedDataset.load(path) as data:
            if data.tokens.tolist() != list(range(8)):
                problems.append("a token file does not read back as it was written")
    return problems
