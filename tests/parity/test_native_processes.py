"""The native engine under `torchrun`: two processes are one run; one goes on with it."""

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
from token_files import write_rows

from abi_train import engines
from abi_train.adapters import LoraConfig
from abi_train.config import LlmTrainingConfig
from abi_train.errors import ConfigError
from abi_train.preference import DpoConfig
from abi_train.runspec import RunSpec
from abi_train.trainer import Trainer

VOCAB = 300
CONFIG = LlmTrainingConfig(
    epochs=2,
    batch_size=2,
    grad_accum_steps=3,  # two micro-batches for one process, one for the other
    max_seq_len=32,
    learning_rate=2e-4,
    warmup_steps=2,
    decay_steps=0,
    threads=1,
    early_stopping=False,
    checkpoint_interval=2,
    eval_interval=2,
    log_interval=1,
)
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"method": "lora", "lora": LoraConfig(r=4, lora_dropout=0.1)},
    "asked": {"objective": "dpo", "dpo": DpoConfig(precompute_ref_log_probs=True)},
    "dpo": {"method": "lora", "objective": "dpo"},
}
PROGRAM = """\
import sys
from abi_train import RunSpec, run
for recipe in sys.argv[1:]:
    run(RunSpec.load(recipe))
"""


def make_spec(folder: Path, kind: str) -> RunSpec:
    data = "pairs.bin" if "objective" in KINDS[kind] else "rows.bin"
    return RunSpec(
        model=folder / "model",
        data=folder / data,
        eval_data=folder / data,
        run_dir=folder / f"two-{kind}",
        engine="native",
        precision="float32",
        config=CONFIG,
        **KINDS[kind],
    )


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where two processes have trained every kind of run."""
    folder = tmp_path_factory.mktemp("processes")
    make_tiny_model(folder / "model", "llama_gqa_untied")
    write_rows(folder / "rows.bin", [5, 9, 40, 17, 2, 33, 8, 21, 12, 30, 7], vocab=VOCAB)
    write_pairs(folder / "pairs.bin", random_pairs(7, vocab=VOCAB))
    recipes = [make_spec(folder, kind).save(folder / f"{kind}.yaml") for kind in KINDS]
    (folder / "train.py").write_text(PROGRAM, encoding="utf-8")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, "--standalone", str(folder / "train.py"), *map(str, recipes)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def lines_of(run_dir: Path, event: str) -> list[dict[str, Any]]:
    text = (run_dir / "log.jsonl").read_text(encoding="utf-8")
    return [line for line in map(json.loads, text.splitlines()) if line["event"] == event]


@pytest.mark.parametrize("kind", list(KINDS))
def test_two_processes_are_one_run(together: Path, kind: str) -> None:
    spec = make_spec(together, kind)
    one = engines.run(spec.replace(run_dir=together / f"one-{kind}"))
    steps = lines_of(spec.run_dir, "step")
    assert len(steps) == one.total_steps
    for left, right in zip(one.history, steps, strict=True):
        for name, value in left.as_dict().items():
            if name not in ("tokens_per_second", "perplexity"):
                close = pytest.approx(value, abs=1e-6, rel=1e-6)
                assert right[name] == close, (left.step, name)
    for wanted, found in zip(one.evaluations, lines_of(spec.run_dir, "evaluation"), strict=True):
        assert found["eval_loss"] == pytest.approx(wanted.loss, abs=1e-6)
    assert one.checkpoint is not None
    for name in ("model", "adapter_model", "optimizer"):
        file = one.checkpoint / f"{name}.safetensors"
        if file.is_file():
            whole, shared = load_file(file), load_file(spec.run_dir / file.parent.name / file.name)
            assert set(whole) == set(shared)
            for key, value in whole.items():
                np.testing.assert_allclose(shared[key], value, rtol=0, atol=1e-6, err_msg=key)


def test_another_number_of_processes_goes_on_with_it(together: Path) -> None:
    spec = make_spec(together, "lora")
    checkpoint = spec.run_dir / "checkpoint-2"
    resumed = engines.run(spec.replace(run_dir=together / "on", resume=str(checkpoint)))
    assert resumed.history[0].step == 3
    steps = lines_of(spec.run_dir, "step")
    assert resumed.history[-1].loss == pytest.approx(steps[-1]["loss"], abs=1e-6)


def test_more_processes_than_micro_batches_are_refused(together: Path) -> None:
    spec = make_spec(together, "full")
    config = dataclasses.replace(CONFIG, grad_accum_steps=1)
    from abi_train import Model, TokenizedDataset

    with (
        Model.load(spec.model) as model,
        TokenizedDataset.load(spec.data) as data,
        pytest.raises(ConfigError, match="grad_accum_steps is 1; 2 processes"),
    ):
        Trainer(config, model, data, rank=1, ranks=2)
