"""The whole program compiled for ARM, run by an emulator: `make test-aarch64` builds it and asks.

The same training as here, to rounding; among its own threads, to the bit.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

PROGRAM = os.environ.get("ABI_AARCH64_PROGRAM")
EMULATOR = shutil.which("qemu-aarch64")

pytestmark = pytest.mark.skipif(
    PROGRAM is None or EMULATOR is None,
    reason="needs ABI_AARCH64_PROGRAM and qemu-aarch64; `make test-aarch64` sets both up",
)

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


def on_arm(*arguments: object) -> list[str]:
    return [str(EMULATOR), str(PROGRAM), *map(str, arguments)]


def trained(command: list[str], folder: Path, name: str, threads: int) -> dict[str, Any]:
    """Weights and moments after ten updates."""
    options = ["--batch-size=2", "--max-seq-len=16", "--grad-accum-steps=3", "--learning-rate=1e-3"]
    options += ["--max-steps=10", "--early-stopping=false", f"--threads={threads}"]
    files = ["--model", "config.json", "--data", "data.bin", "--run-dir", name]
    done = subprocess.run(
        [*command, *files, *options],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    saved = folder / name / "checkpoint-10"
    return {
        f"{file} {key}": value
        for file in ("model", "optimizer")
        for key, value in load_file(saved / f"{file}.safetensors").items()
    }


def test_doctor_finds_sound_arithmetic_on_arm() -> None:
    done = subprocess.run(
        on_arm("doctor", "--json"), capture_output=True, text=True, timeout=120, check=True
    )
    report = json.loads(done.stdout)
    assert report["target"] == "aarch64-linux"
    assert (report["cpu_level"], report["cpu_levels"]) == ("base", ["base"])
    assert report["self_check_ok"] is True


def test_arm_trains_as_this_machine_does(program: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    np.random.default_rng(5).integers(0, 64, 1500).astype("<u4").tofile(tmp_path / "data.bin")
    here = trained([str(program), "train"], tmp_path, "here", 1)
    arm = {n: trained(on_arm("train"), tmp_path, f"arm-{n}", n) for n in (1, 2, 3, 7)}
    for name, value in here.items():
        np.testing.assert_allclose(arm[1][name], value, rtol=0, atol=1e-6, err_msg=name)
        for threads in (2, 3, 7):
            assert np.array_equal(arm[threads][name], arm[1][name]), (threads, name)
