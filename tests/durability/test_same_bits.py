"""The same bits for any number of threads, on any set of cores, run to run."""

from __future__ import annotations

import os
import shutil
from typing import Any

import pytest
import runs


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads_do_not_change_a_bit(job: runs.Job, unbroken: Any, threads: int) -> None:
    last, expected = unbroken
    done = job.run(job.command(threads=threads))
    assert done.returncode == 0, done.stderr
    assert runs.outcome(job.checkpoints()[last]) == expected


def test_one_core_for_three_threads(job: runs.Job, unbroken: Any) -> None:
    if shutil.which("taskset") is None:
        pytest.skip("taskset is not here")
    core = min(os.sched_getaffinity(0))
    last, expected = unbroken
    done = job.run(["taskset", "-c", str(core), *job.command(threads=3)])
    assert done.returncode == 0, done.stderr
    assert runs.outcome(job.checkpoints()[last]) == expected


def test_a_resumed_run_may_change_its_threads(job: runs.Job, unbroken: Any) -> None:
    last, expected = unbroken
    assert job.run(job.command(max_steps=6, threads=1)).returncode == 0
    stopped = runs.outcome(job.checkpoints()[6])
    assert stopped["log"] != expected["log"]
    shutil.rmtree(job.run_dir)
    halves = 0
    # Stop a run of full length after its sixth update: the schedule must be the whole run's.
    said, _ = job.killed(job.command(threads=1), lines=10, seconds=0)
    halves += runs.announced(said) is not None
    assert halves == 1, said
    assert job.run(job.command(resume=True, threads=7)).returncode == 0
    assert runs.outcome(job.checkpoints()[last]) == expected


def test_other_seeds_give_other_weights(job: runs.Job, unbroken: Any) -> None:
    """The comparison can fail."""
    last, expected = unbroken
    assert job.run(job.command(seed=43)).returncode == 0
    assert runs.outcome(job.checkpoints()[last]) != expected
