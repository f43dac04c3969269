"""Ctrl-C and SIGTERM: finish the update, save, say where; the second one leaves at once."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from typing import Any

import pytest
import runs

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


def read_until(child: subprocess.Popen[str], start: str) -> str:
    """Reads stderr up to the first line that starts so."""
    assert child.stderr is not None
    said = ""
    while True:
        line = child.stderr.readline()
        assert line, f"ended before {start!r}: {said}"
        said += line
        if line.startswith(start):
            return said


def stop_at_random(job: runs.Job, command: list[str], number: int) -> tuple[str, int]:
    """Signals once at a random moment after the first update; what was said, and the code."""
    draw = runs.random_of_this_run()
    with job.start(command) as child:
        said = read_until(child, f"step {draw.randrange(1, 9)}/")
        time.sleep(draw.random() * 0.03)
        child.send_signal(number)
        sent = time.monotonic()
        assert child.stderr is not None
        said += child.stderr.read()
        code = child.wait()
        assert time.monotonic() - sent < 10
    return said, code


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("way", ["command", "python_command"])
def test_the_first_signal_saves_and_says_where(
    job: runs.Job, unbroken: Any, way: str, number: signal.Signals
) -> None:
    last, expected = unbroken
    command = getattr(job, way)
    said, code = stop_at_random(job, command(), number)
    assert code == CODES[number], said
    assert "stopping after this update" in said
    assert "Traceback" not in said
    step, checkpoint = max(job.checkpoints().items())
    updates = [int(n) for n in re.findall(r"^step (\d+)/", said, re.MULTILINE)]
    assert step == max(updates), said
    assert f"checkpoint-{step}" in said.splitlines()[-1], said
    runs.require_sound(checkpoint)
    done = job.run(command(resume=True))
    assert done.returncode == 0, done.stderr
    assert runs.outcome(job.checkpoints()[last]) == expected


@pytest.mark.parametrize("number", CODES)
def test_the_second_signal_leaves_at_once(job: runs.Job, number: signal.Signals) -> None:
    """Updates of several seconds: only a program that does not wait is gone in time."""
    slow = {"batch_size": 4, "max_seq_len": 64, "grad_accum_steps": 4000, "epochs": 4000}
    data = job.folder / "data.bin"
    data.write_bytes(data.read_bytes() * 1000)  # An update is at most an epoch.
    with job.start(job.command(**slow)) as child:
        read_until(child, "17568 weights")
        time.sleep(0.1)  # The handlers are in place after this line; an update takes longer.
        child.send_signal(number)
        read_until(child, "stopping after this update")
        sent = time.monotonic()
        child.send_signal(number)
        code = child.wait()
        assert time.monotonic() - sent < 2
    assert code == CODES[number]
    assert list(job.run_dir.rglob("*.safetensors")) == []


def test_a_signal_while_nothing_is_saved_says_so(job: runs.Job) -> None:
    command = [word for word in job.command(epochs=500) if word not in ("--run-dir", "run")]
    said, code = stop_at_random(job, command, signal.SIGINT)
    assert code == 130
    assert "nothing is kept, there is no --run-dir" in said


def test_ctrl_c_reaches_the_whole_group_and_the_child_still_saves(job: runs.Job) -> None:
    """A terminal sends Ctrl-C to all programs in front; the trainer's threads are one program."""
    with job.start(job.command(epochs=200), start_new_session=True) as child:
        read_until(child, "step 2/")
        os.killpg(child.pid, signal.SIGINT)
        assert child.stderr is not None
        said = child.stderr.read()
    assert child.returncode == 130
    assert "--resume goes on from there" in said
