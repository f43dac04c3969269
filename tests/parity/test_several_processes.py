"""The TRL engine under `torchrun`: two processes are one run, within rounding."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pair_files import random_pairs, write_pairs
from safetensors.numpy import load_file
from tiny_models import make_tiny_model
from token_files import write_rows, write_stream

from abi_train import engines
from abi_train.adapters import LoraConfig
from abi_train.config import LlmTrainingConfig
from abi_train.preference import DpoConfig
from abi_train.runspec import RunSpec

VOCAB = 300
CONFIG = LlmTrainingConfig(
    epochs=3,
    batch_size=3,  # two rows for one process, one for the other, and a last batch of one
    grad_accum_steps=3,
    max_seq_len=32,
    learning_rate=2e-4,
    warmup_steps=2,
    decay_steps=0,
    weight_decay=0.1,
    max_grad_norm=0.5,
    threads=1,
    early_stopping=False,
    checkpoint_interval=2,
    eval_interval=3,
    log_interval=1,
)
KINDS: dict[str, dict[str, Any]] = {
    "rows": {},
    "stream": {},
    "smoothed": {},
    "lora": {"method": "lora", "lora": LoraConfig(r=4)},
    "dpo": {"method": "lora", "objective": "dpo"},
    "mixed": {
        "method": "lora",
        "objective": "dpo",
        "dpo": DpoConfig(loss_type=("sigmoid", "sft"), loss_weights=(1.0, 0.5)),
    },
    "asked": {"objective": "dpo", "dpo": DpoConfig(precompute_ref_log_probs=True)},
}


def make_recipes(folder: Path) -> dict[str, Path]:
    make_tiny_model(folder / "model", "llama_gqa_untied")
    write_rows(folder / "rows.bin", [5, 9, 40, 17, 2, 33, 8, 21, 12, 30], vocab=VOCAB)
    write_stream(folder / "stream.bin", tokens=900, vocab=VOCAB)
    write_pairs(folder / "pairs.bin", random_pairs(7, vocab=VOCAB))
    recipes = {}
    for kind, values in KINDS.items():
        data = "pairs.bin" if "objective" in values else "rows.bin"
        data = "stream.bin" if kind == "stream" else data
        smoothing = 0.1 if kind == "smoothed" else 0.0
        spec = RunSpec(
            model=folder / "model",
            data=folder / data,
            eval_data=folder / data,
            run_dir=folder / f"two-{kind}",
            engine="trl",
            precision="float32",
            config=dataclasses.replace(CONFIG, label_smoothing=smoothing),
            **values,
        )
        recipes[kind] = spec.save(folder / f"recipe-{kind}.yaml")
    return recipes


@pytest.mark.slow
def test_two_processes_are_one_run(tmp_path: Path) -> None:
    recipes = make_recipes(tmp_path)
    program = tmp_path / "train.py"
    program.write_text(
        "import sys\nfrom abi_train import RunSpec, run\n"
        "for recipe in sys.argv[1:]:\n    run(RunSpec.load(recipe))\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*launcher, "--standalone", str(program), *map(str, recipes.values())],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for kind, recipe in recipes.items():
        two = tmp_path / f"two-{kind}"
        spec = RunSpec.load(recipe).replace(run_dir=tmp_path / f"one-{kind}")
        one = engines.run(spec)
        lines = [json.loads(line) for line in (two / "log.jsonl").read_text().splitlines()]
        steps = [line for line in lines if line["event"] == "step"]
        assert len(steps) == one.total_steps, kind
        for left, right in zip(one.history, steps, strict=True):
            for name, value in left.as_dict().items():
                if name in ("tokens_per_second", "perplexity"):
                    continue
                close = pytest.approx(value, abs=1e-6, rel=1e-6)
                assert right[name] == close, (kind, left.step, name)
        evaluations = [line for line in lines if line["event"] == "evaluation"]
        for wanted, found in zip(one.evaluations, evaluations, strict=True):
            assert found["eval_loss"] == pytest.approx(wanted.loss, abs=1e-6)
        assert one.checkpoint is not None
        for name in ("model", "adapter_model", "optimizer"):
            file = one.checkpoint / f"{name}.safetensors"
            if file.is_file():
                whole, shared = load_file(file), load_file(two / one.checkpoint.name / file.name)
                assert set(whole) == set(shared)
                for key, value in whole.items():  # AdamW makes a step of noise in a tiny gradient
                    np.testing.assert_allclose(shared[key], value, rtol=0, atol=5e-6, err_msg=key)
    # Another number of processes goes on with it.
    spec = RunSpec.load(recipes["lora"])
    resumed = engines.run(
        spec.replace(run_dir=tmp_path / "on", resume=str(tmp_path / "two-lora" / "checkpoint-2"))
    )
    assert resumed.history[0].step == 3


PARTS = """
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from abi_train.engines.processes import leave_at_exit
from abi_train.engines.trl.together import parted, whole

leave_at_exit(torch.distributed)
mesh = init_device_mesh("cpu", (2,))
wanted = torch.arange(30.0).reshape(5, 6)
for dimension in (0, 1):
    part = torch.nn.Parameter(distribute_tensor(wanted, mesh, [Shard(dimension)]))
    assert part.to_local().numel() < 30
    assert torch.equal(whole(part), wanted)
    again = parted(wanted + 1, part)
    assert again.placements == part.placements
    assert torch.equal(whole(again), wanted + 1)
"""


@pytest.mark.slow
def test_tensors_in_parts_are_put_together_and_taken_apart(tmp_path: Path) -> None:
    program = tmp_path / "parts.py"
    program.write_text(PARTS)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, "--standalone", str(program)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
