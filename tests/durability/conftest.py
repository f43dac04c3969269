"""The program under test and one finished, undisturbed run to compare with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import runs


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
