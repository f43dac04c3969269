"""kill -9 at any moment: what was announced as saved is there, and the run ends as if unbroken.

Each chain starts a job, kills it a few times at random moments, each time after a random number of
lines and a random pause, and lets the last start run to its end. ``ABI_KILLS=200`` (or `make
durability`) makes many more of them; ``ABI_SEED`` repeats the moments of an earlier run.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import pytest
import runs

KILLS_IN_A_CHAIN = 3
CHAINS = max(1, int(os.environ.get("ABI_KILLS", "9")) // KILLS_IN_A_CHAIN)


def chain(job: runs.Job, command: Callable[..., list[str]], draw: random.Random, kills: int) -> int:
    """Kills the job so often, checks what is left each time, and lets it end. Counts the kills."""
    safe: int | None = None
    hits = 0
    for _ in range(kills):
        # The program starts anew without checkpoints; abi-train wants to be asked for either.
        resume = safe is not None or (command == job.command and draw.random() < 0.5)
        moment = {"lines": draw.randrange(0, 22), "seconds": draw.random() * 0.03}
        print("kill", moment, "resumed" if resume else "fresh")
        said, ended = job.killed(command(resume=resume), **moment)
        hits += not ended
        if (saved := runs.announced(said)) is not None:
            safe = saved
        found = job.checkpoints()
        for checkpoint in found.values():
            runs.require_sound(checkpoint)
        if safe is not None:
            assert max(found) >= safe, said
        elif found:
            safe = max(found)
    done = job.run(command(resume=safe is not None))
    assert done.returncode == 0, done.stderr
    return hits


@pytest.mark.parametrize("number", range(CHAINS))
def test_the_program_survives_kills(job: runs.Job, unbroken: Any, number: int) -> None:
    seed = runs.seed_of_this_run() + number
    print(f"ABI_SEED={seed}")
    last, expected = unbroken
    assert chain(job, job.command, random.Random(seed), KILLS_IN_A_CHAIN) > 0
    found = job.checkpoints()
    assert max(found) == last
    assert runs.outcome(found[last]) == expected
    assert len(found) <= runs.SETTINGS["max_checkpoints"]
    assert not list(job.run_dir.glob("*.tmp-*")), "what killed saves left must be swept"


@pytest.mark.parametrize("number", range(max(1, CHAINS // 4)))
@pytest.mark.parametrize("way", ["script_command", "python_command"])
def test_python_survives_kills(job: runs.Job, unbroken: Any, way: str, number: int) -> None:
    seed = runs.seed_of_this_run() + 1000 + number
    print(f"ABI_SEED={seed}")
    last, expected = unbroken
    chain(job, getattr(job, way), random.Random(seed), 2)
    found = job.checkpoints()
    assert max(found) == last
    assert runs.outcome(found[last]) == expected
    if way == "script_command":
        return
    for line in (job.run_dir / "log.jsonl").read_text(encoding="utf-8").splitlines():
        assert line.startswith("{") and line.endswith("}")
