"""The program under test and one finished, undisturbed run to compare with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import runs

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def program() -> Path:
    """``ABI_PROGRAM``, or the program in ``zig-out``; the tests are skipped without one."""
    path = Path(os.environ.get("ABI_PROGRAM", ROOT / "zig-out" / "bin" / "abi"))
    if not path.is_file():
        pytest.skip(f"{path} is not built: run `python -m ziglang build`, or set ABI_PROGRAM")
    return path


@pytest.fixture
def job(program: Path, tmp_path: Path) -> runs.Job:
    return runs.make_job(tmp_path / "job", program)


@pytest.fixture(scope="session")
def unbroken(program: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Any]:
    """The last step and the outcome of a run that nobody disturbed."""
    job = runs.make_job(tmp_path_factory.mktemp("unbroken"), program)
    done = job.run(job.command())
    assert done.returncode == 0, done.stderr
    step, checkpoint = max(job.checkpoints().items())
    return step, runs.outcome(checkpoint)
