"""The program under test, and small helpers to run it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(program: Path, tmp_path: Path) -> Run:
    """Runs the program in an empty folder with a clean environment."""

    def call(
        *arguments: str | Path, stdin: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        kept = {k: v for k, v in os.environ.items() if "OLLAMA" not in k and k != "NO_COLOR"}
        return subprocess.run(
            [str(program), *map(str, arguments)],
            input=stdin,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**kept, **environment},
            timeout=120,
            check=False,
        )

    return call


@pytest.fixture
def generate(run: Run) -> Callable[..., Any]:
    """``abi generate --json`` on ids; the parsed answer."""

    def call(model: Path, ids: list[int], *arguments: str, **environment: str) -> Any:
        listed = ",".join(map(str, ids))
        done = run(
            "generate", "--model", model, "--ids", listed, "--json", *arguments, **environment
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return call
