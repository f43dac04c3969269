"""The program under test, and small helpers to run it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def program() -> Path:
    """``ABI_PROGRAM``, or the program in ``zig-out``; the tests are skipped without one."""
    path = Path(os.environ.get("ABI_PROGRAM", ROOT / "zig-out" / "bin" / "abi"))
    if not path.is_file():
        pytest.skip(f"{path} is not built: run `python -m ziglang build`, or set ABI_PROGRAM")
    return path


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
