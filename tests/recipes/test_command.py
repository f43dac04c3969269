"""`abi-train train` on a recipe with phases: what it prints, writes and refuses."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from abi_train.cli import main


def call(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


@pytest.fixture(autouse=True)
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    return folder


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(inside)
    assert call("train", "tiny.json", "--dry-run", "--set", "phases.talk.lora.r=3") == 0
    printed = capsys.readouterr().out
    for words in ("random weights (llama)", "8 rows", "r 3", "the result of talk", "4 of 2 pairs"):
        assert words in printed
    assert call("train", "tiny.json", "--dry-run", "--json", "--phase", "talk") == 0
    (phase,) = json.loads(capsys.readouterr().out)["phases"]
    assert phase["name"] == "talk" and phase["source_rows"] == 8
    assert everything(inside) == before


def test_a_recipe_is_trained_and_gone_on_with(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("train", "tiny.json", "--phase", "base") == 0
    assert call("train", "tiny.json", "--json") == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out[captured.out.index("{") :])
    assert list(result["phases"]) == ["base", "talk", "choose"]
    assert list(result["runs"]) == ["talk", "choose"]
    assert "phase base is finished: runs/tiny/base/checkpoint-4" in captured.err
    assert "phase 3 of 3: choose  dpo, the same adapter, native, after talk" in captured.err


def test_a_failed_phase_prints_the_command_that_goes_on(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (inside / "talk.jsonl").unlink()
    words = ["train", "tiny.json", "--run-dir", "my run", "--set", "log_interval=2"]
    assert call(*words) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: phase talk: ") and "kept: base." in said
    assert said.endswith("abi-train train tiny.json --run-dir 'my run' --set log_interval=2")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--phase", "tlk"], "did you mean 'talk'"),
        (["--set", "epoch=3"], "did you mean 'epochs'"),
        (["--set", "phases.talk.lora.R=3"], "phase talk: 'R' is not a key"),
        (["--data", "x.bin"], "phases.NAME.data=VALUE"),
        (["--method", "full"], "phases.NAME.method=VALUE"),
        (["--resume", "runs/x"], "goes on by itself"),
        (["--engine", "torch"], "native, trl"),
    ],
)
def test_a_wrong_word_is_named(
    inside: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    before = everything(inside)
    assert call("train", "tiny.json", *more) == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert everything(inside) == before


def test_a_recipe_of_one_run_has_a_dry_run_and_no_phases(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("train", "tiny.json", "--phase", "base") == 0
    capsys.readouterr()
    recipe = inside / "runs" / "tiny" / "base" / "run.json"
    assert call("train", recipe, "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["method"] == "full"
    assert call("train", recipe, "--phase", "base") == 2
    assert "has no phases" in capsys.readouterr().err


def test_ctrl_c_saves_and_the_same_command_goes_on(inside: Path) -> None:
    command = [sys.executable, "-m", "abi_train.cli", "train", "tiny.json"]
    command += ["--set", "phases.talk.max_steps=100000", "--set", "checkpoint_interval=0"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    )
    log = inside / "runs" / "tiny" / "talk" / "log.jsonl"
    deadline = time.monotonic() + 240
    while not (log.is_file() and '"step"' in log.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 130, said
    assert "phase talk was stopped; go on with: abi-train train tiny.json --set" in said
    assert list((inside / "runs" / "tiny" / "talk").glob("checkpoint-*"))
    state = json.loads((inside / "runs" / "tiny" / "recipe.json").read_text())
    assert state["phases"]["talk"]["state"] == "interrupted"
    assert state["phases"]["base"]["state"] == "finished"


def limit_files(size: int) -> Callable[[], None]:
    """For `preexec_fn`: no file may grow beyond `size` bytes."""

    def apply() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    return apply


@pytest.mark.parametrize("size", [1_000, 9_000, 20_000])
def test_a_disk_without_room_keeps_the_finished_phases(inside: Path, size: int) -> None:
    """The state cannot be written, then the token files cannot, then the adapter."""
    assert call("train", "tiny.json", "--phase", "base") == 0
    base = inside / "runs" / "tiny" / "base" / "checkpoint-4" / "model.safetensors"
    before = base.read_bytes(), base.stat().st_mtime_ns
    command = [sys.executable, "-m", "abi_train.cli", "train", "tiny.json"]
    done = subprocess.run(
        [*command, "--set", "phases.talk.lora.r=16"],
        capture_output=True,
        text=True,
        timeout=240,
        preexec_fn=limit_files(size),
        check=False,
    )
    assert done.returncode == 1, done.stderr
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith("error: ") and "Traceback" not in done.stderr
    assert "runs/tiny" in said
    if "recipe.json" not in said:
        assert "phase talk: " in said and "kept: base. Go on with: abi-train train" in said
    assert (base.read_bytes(), base.stat().st_mtime_ns) == before
    assert call("train", "tiny.json", "--set", "phases.talk.lora.r=16") == 0
    state = json.loads((inside / "runs" / "tiny" / "recipe.json").read_text())["phases"]
    assert {one["state"] for one in state.values()} == {"finished"}
    assert base.stat().st_mtime_ns == before[1]
