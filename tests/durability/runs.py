"""A tiny training job, the ways to start it, and how to look at what it leaves."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}

# Shuffled over two epochs, an accumulation that does not divide them, warm-up, evaluations.
SETTINGS: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 2,
    "max_seq_len": 16,
    "grad_accum_steps": 3,
    "learning_rate": 1e-3,
    "warmup_steps": 5,
    "checkpoint_interval": 2,
    "eval_interval": 5,
    "max_checkpoints": 3,
    "log_interval": 1,
    "early_stopping": False,
    "threads": 2,
}

# A script as a person would write it: the Trainer, its events, the newest checkpoint to go on from.
SCRIPT = """
import json, sys
from abi_train import Model, TokenizedDataset, Trainer, checkpoint
from abi_train.trainer import CheckpointEvent, StepEvent

settings, resume = json.loads(sys.argv[1]), sys.argv[2] == "resume"
found = checkpoint.list_checkpoints("run") if resume else []
with Trainer(
    settings,
    Model.random("config.json", seed=42),
    TokenizedDataset.load("data.bin"),
    eval_dataset=TokenizedDataset.load("eval.bin"),
    run_dir="run",
    resume_from=found[-1] if found else None,
) as trainer:
    for event in trainer:
        if isinstance(event, CheckpointEvent):
            print("saved", event.path, file=sys.stderr, flush=True)
        if isinstance(event, StepEvent):
            print("step", event.global_step, file=sys.stderr, flush=True)
"""

SAVED = re.compile(r"^saved (\S.*)$", re.MULTILINE)
KEPT = ("model.safetensors", "optimizer.safetensors")


@dataclass(frozen=True)
class Job:
    """Files of one job in one folder; every start of it is the same work."""

    folder: Path
    program: Path

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    def command(self, *, resume: bool = False, **changes: Any) -> list[str]:
        """The program's command line; `changes` are configuration fields."""
        settings = {**SETTINGS, **changes}
        options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        options = [o.replace("=True", "=true").replace("=False", "=false") for o in options]
        paths = ["--model", "config.json", "--data", "data.bin", "--eval-data", "eval.bin"]
        paths += ["--run-dir", "run"]
        return [str(self.program), "train", *paths, *options, *(["--resume"] if resume else [])]

    def python_command(self, *, resume: bool = False) -> list[str]:
        """The same work through `abi-train train`."""
        sets = [f"--set={name}={json.dumps(value)}" for name, value in SETTINGS.items()]
        paths = ["--model", "config.json", "--data", "data.bin", "--eval-data", "eval.bin"]
        paths += ["--run-dir", "run"]
        again = ["--resume", "latest"] if resume else []
        start = [sys.executable, "-c", "from abi_train.cli import main; main()", "train"]
        return [*start, *paths, *sets, *again]

    def script_command(self, *, resume: bool = False) -> list[str]:
        """The same work through `abi_train.Trainer`."""
        mode = "resume" if resume else "fresh"
        return [sys.executable, "-c", SCRIPT, json.dumps(SETTINGS), mode]

    def run(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Runs to the end in the job's folder."""
        return subprocess.run(
            command,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            **options,
        )

    def start(self, command: list[str], **options: Any) -> subprocess.Popen[str]:
        """Starts it with stderr in a pipe."""
        return subprocess.Popen(
            command,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def killed(self, command: list[str], *, lines: int, seconds: float) -> tuple[str, bool]:
        """Starts it, waits for so many lines and then so many seconds, kills it.

        Returns what it had said and whether it had ended by itself before.
        """
        with self.start(command) as child:
            assert child.stderr is not None
            said = ""
            for _ in range(lines):
                line = child.stderr.readline()
                if not line:
                    break
                said += line
            time.sleep(seconds)
            child.send_signal(signal.SIGKILL)
            said += child.stderr.read()
            child.wait()
        assert child.returncode in (-signal.SIGKILL, 0), said
        return said, child.returncode == 0

    def checkpoints(self) -> dict[int, Path]:
        """The run's folders under a final name, by step."""
        return self.checkpoints_in(self.run_dir)

    def checkpoints_in(self, folder: Path) -> dict[int, Path]:
        """A folder's `checkpoint-N`, by step."""
        found = {}
        for path in folder.glob("**/checkpoint-*"):
            if match := re.fullmatch(r"checkpoint-(\d+)", path.name):
                found[int(match[1])] = path
        return dict(sorted(found.items()))


def make_job(folder: Path, program: Path) -> Job:
    """Writes the job's files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    draw = np.random.default_rng(5)
    for name, count in (("data.bin", 1500), ("eval.bin", 200)):
        draw.integers(0, CONFIG["vocab_size"], count).astype("<u4").tofile(folder / name)
    return Job(folder, program)


def announced(said: str) -> int | None:
    """The step of the last checkpoint a run said it had saved."""
    found = SAVED.findall(said)
    return int(found[-1].rsplit("-", 1)[1]) if found else None


def require_sound(checkpoint: Path) -> None:
    """An independent reader opens every file, and all numbers are finite."""
    for name in KEPT:
        for tensor in load_file(checkpoint / name).values():
            assert np.isfinite(tensor).all()
    json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))


def outcome(checkpoint: Path) -> dict[str, Any]:
    """All that must be the same bit for bit: weights, moments and the log without its timings."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    timings = ("tokens_per_second", "train_tokens_per_second")
    log = [{k: v for k, v in row.items() if k not in timings} for row in state["log_history"]]
    return {**{name: sha256(checkpoint / name) for name in KEPT}, "log": log}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def random_of_this_run(number: int = 0) -> random.Random:
    """Moments by `ABI_SEED`, or new ones; the seed is printed. `number` tells repetitions apart."""
    seed = os.environ.get("ABI_SEED", str(time.time_ns() % 1_000_000))
    print(f"ABI_SEED={seed}")
    return random.Random(f"{seed}/{number}")
