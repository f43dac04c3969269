"""kill -9 at any moment: what was announced as saved is there, and the run ends as if unbroken.

Each chain starts a job, kills it a few times at random moments, each time after a random number of
lines and a random pause, and lets the last start run to its end. A job that is at its end before
its kill begins anew, so every chain has all its kills. ``ABI_KILLS=200`` (or `make durability`)
makes many more of them; ``ABI_SEED`` repeats the moments of an earlier run.
"""

from __future__ import annotations

import functools
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import runs

KILLS_IN_A_CHAIN = 3
CHAINS = max(1, int(os.environ.get("ABI_KILLS", "9")) // KILLS_IN_A_CHAIN)


def chain(
    job: runs.Job, command: Callable[..., list[str]], draw: random.Random, kills: int
) -> None:
    """Kills the job so often, checks what is left each time, and lets it end."""
    safe: int | None = None
    hits = 0
    for _ in range(20 * kills):
        if hits == kills:
            break
        # The program starts anew without checkpoints; abi-train wants to be asked for either.
        resume = safe is not None or (command == job.command and draw.random() < 0.5)
        moment = {"lines": draw.randrange(0, 22), "seconds": draw.random() * 0.03}
        print("kill", moment, "resumed" if resume else "fresh")
        said, ended = job.killed(command(resume=resume), **moment)
        if (saved := runs.announced(said)) is not None:
            safe = saved
        found = job.checkpoints()
        for checkpoint in found.values():
            runs.require_sound(checkpoint)
        if safe is not None:
            assert max(found) >= safe, said
        elif found:
            safe = max(found)
        hits += not ended
        if ended:
            print("too late")
            shutil.rmtree(job.run_dir)
            safe = None
    assert hits == kills, "the job ends faster than it can be killed"
    done = job.run(command(resume=safe is not None))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("number", range(CHAINS))
def test_the_program_survives_kills(job: runs.Job, unbroken: Any, number: int) -> None:
    draw = runs.random_of_this_run(number)
    last, expected = unbroken
    chain(job, job.command, draw, KILLS_IN_A_CHAIN)
    found = job.checkpoints()
    assert max(found) == last
    assert runs.outcome(found[last]) == expected
    assert len(found) <= runs.SETTINGS["max_checkpoints"]
    assert not list(job.run_dir.glob("*.tmp-*")), "what killed saves left must be swept"


def test_kills_do_not_change_when_a_run_stops_early(
    job: runs.Job, program: Path, tmp_path: Path
) -> None:
    """The best evaluation and the count of worse ones survive, and the end stays the end."""
    draw = runs.random_of_this_run()
    early = {
        "epochs": 6,
        "learning_rate": 3e-2,
        "eval_interval": 3,
        "early_stopping": True,
        "early_stopping_patience": 2,
    }
    calm = runs.make_job(tmp_path / "calm", program)
    done = calm.run(calm.command(**early))
    assert done.stdout.startswith("early_stopped: 9 updates"), done.stdout
    chain(job, functools.partial(job.command, **early), draw, 3)
    assert {step: runs.outcome(path) for step, path in job.checkpoints().items()} == {
        step: runs.outcome(path) for step, path in calm.checkpoints().items()
    }


@pytest.mark.parametrize("number", range(max(1, CHAINS // 4)))
@pytest.mark.parametrize("way", ["script_command", "python_command"])
def test_python_survives_kills(job: runs.Job, unbroken: Any, way: str, number: int) -> None:
    draw = runs.random_of_this_run(number)
    last, expected = unbroken
    chain(job, getattr(job, way), draw, 2)
    found = job.checkpoints()
    assert max(found) == last
    assert runs.outcome(found[last]) == expected
    if way == "script_command":
        return
    for line in (job.run_dir / "log.jsonl").read_text(encoding="utf-8").splitlines():
        assert line.startswith("{") and line.endswith("}")


def test_what_a_killed_save_left_is_swept_on_resume(job: runs.Job) -> None:
    """Even when the killed run was at its end, so that nothing more is saved."""
    assert job.run(job.command()).returncode == 0
    kept = set(job.checkpoints())
    newest = job.checkpoints()[max(kept)]
    shutil.copytree(newest, job.run_dir / "checkpoint-2")
    shutil.copytree(newest, job.run_dir / "checkpoint-4.tmp-00000000000000af")
    (job.run_dir / "notes").mkdir()
    assert job.run(job.command(resume=True)).returncode == 0
    assert set(job.checkpoints()) == kept
    assert {p.name for p in job.run_dir.iterdir()} == {
        "notes",
        "run.lock",
        *(f"checkpoint-{step}" for step in kept),
    }
