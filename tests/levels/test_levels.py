"""Every CPU level, not only this machine's highest: parity, gradients, same bits; `abi doctor`.

The level is chosen once a process, so tests of other folders are run again in a child. The Zig side
is `zig build test-levels`; `make test-levels` runs all of tests/parity on every level.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_models import make_tiny_model
from token_files import write_rows

from abi_train import _native
from abi_train.config import LlmTrainingConfig
from abi_train.runspec import RunSpec

ROOT = Path(__file__).resolve().parents[2]
LEVELS: list[str] = _native.cpu_info()["levels"]
ENGINES = "tests/parity/test_engines.py::test_both_engines_agree"
ADAPTERS = "tests/parity/test_adapters_and_pairs.py::test_both_engines_agree"

# A crosscheck compares every loss and norm, every gradient of the first update and all weights.
AGAIN = {
    "parity": [
        f"{ENGINES}_for_thirty_updates[llama_gqa_untied-rows]",
        f"{ENGINES}_for_thirty_updates[llama_tied-stream]",
        f"{ENGINES}_for_thirty_updates[qwen2-rows]",
        f"{ENGINES}_for_thirty_updates[qwen3-stream]",
        f"{ENGINES}_on_a_stream_with_a_mask[0.1]",
        f"{ADAPTERS}_on_lora_for_thirty_updates[qwen2]",
        f"{ADAPTERS}_on_lora_over_a_q8_0_base",
        f"{ADAPTERS}_on_dpo_for_thirty_updates[lora]",
    ],
    "same bits": ["tests/durability/test_same_bits.py::test_threads_do_not_change_a_bit"],
    "resumed": ["tests/parity/test_engines.py::test_bf16_is_recorded_and_resumed_to_the_bit"],
}

ON_A_LEVEL = """\
import sys
from abi_train import _native
level = _native.cpu_info()["level"]
if level != sys.argv[1]:
    sys.exit(f"asked for {sys.argv[1]}, the library uses {level}")
"""
RUN_PYTEST = ON_A_LEVEL + "import pytest\nsys.exit(pytest.main(sys.argv[2:]))\n"
RUN_RECIPE = ON_A_LEVEL + "from abi_train import RunSpec, run\nrun(RunSpec.load(sys.argv[2]))\n"


def on_level(level: str, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A child Python whose native library is held to `level`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, "-c", program, level, *map(str, arguments)],
        cwd=ROOT,
        env={**kept, "ABI_TRAIN_CPU": level, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("what", list(AGAIN))
@pytest.mark.parametrize("level", ["v2", "v3"])
def test_what_holds_on_this_cpu_holds_on_a_lesser_one(
    program: Path, tmp_path: Path, level: str, what: str
) -> None:
    if level not in LEVELS[:-1]:
        pytest.skip(f"{level} is not below the highest level of this CPU, {LEVELS[-1]}")
    options = ["-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'child'}"]
    done = on_level(level, RUN_PYTEST, *options, *AGAIN[what])
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    passed = re.search(r"(\d+) passed in", done.stdout)  # "1 passed, 1 skipped in" is no match
    assert passed is not None and int(passed[1]) >= len(AGAIN[what]), done.stdout


def test_levels_differ_in_rounding_and_in_nothing_else(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "model", "llama_gqa_untied")
    write_rows(tmp_path / "rows.bin", [5, 9, 40, 17, 2, 33, 8], vocab=300)
    weights: dict[str, dict[str, Any]] = {}
    for level in LEVELS:
        spec = RunSpec(
            model=tmp_path / "model",
            data=tmp_path / "rows.bin",
            run_dir=tmp_path / level,
            engine="native",
            precision="float32",
            config=LlmTrainingConfig(
                batch_size=2, max_seq_len=32, max_steps=3, threads=1, early_stopping=False
            ),
        )
        done = on_level(level, RUN_RECIPE, spec.save(tmp_path / f"{level}.yaml"))
        assert done.returncode == 0, done.stderr
        (saved,) = (tmp_path / level).glob("checkpoint-3/model.safetensors")
        weights[level] = load_file(saved)
    for level in LEVELS[:-1]:
        same = True
        for name, value in weights[LEVELS[-1]].items():
            other = weights[level][name]
            np.testing.assert_allclose(other, value, rtol=0, atol=1e-6, err_msg=f"{level} {name}")
            same = same and np.array_equal(other, value)
        if level == "v2":  # It has no fused multiply-add: the same bits would mean it was not used.
            assert not same


def doctor(program: Path, *arguments: str, level: str | None) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "ABI_TRAIN_CPU"}
    if level is not None:
        environment["ABI_TRAIN_CPU"] = level
    done = subprocess.run(
        [program, "doctor", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def level_line(program: Path, level: str | None) -> str:
    (line,) = re.findall(r"^CPU level +(.*)$", doctor(program, level=level), re.MULTILINE)
    return str(line)


def test_doctor_says_which_level_and_why(program: Path) -> None:
    best = LEVELS[-1]
    unasked = f"{best}: the highest this CPU can run"
    assert level_line(program, None) == unasked
    assert level_line(program, "") == unasked
    for level in LEVELS:
        said = f"{level}: asked for by ABI_TRAIN_CPU; the CPU can run {best}"
        assert level_line(program, level) == said
    for level in ("v9", "V2", *({"v2", "v3", "v4", "base"} - set(LEVELS))):
        refused = f"ABI_TRAIN_CPU={level} is unknown or beyond this CPU, so the highest it can run"
        assert level_line(program, level) == f"{best}: {refused}"


@pytest.mark.parametrize("level", [None, *LEVELS])
def test_arithmetic_is_right_on_every_level(program: Path, level: str | None) -> None:
    report = json.loads(doctor(program, "--json", level=level))
    assert report["cpu_level"] == (level or LEVELS[-1])
    assert report["cpu_levels"] == LEVELS
    assert report["cpu_level_wanted"] == level
    assert report["self_check_ok"] is True
    assert "self-check  passed" in doctor(program, level=level)
