"""A set of token files trains as the single file of the same rows, on both engines."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from tiny_models import make_tiny_model

from abi_train import engines
from abi_train._native import dataset as native
from abi_train.check.crosscheck import crosscheck
from abi_train.config import LlmTrainingConfig
from abi_train.dataset import TokenizedWriter
from abi_train.errors import CheckpointError
from abi_train.runspec import RunSpec

VOCAB = 300
CONFIG = LlmTrainingConfig(
    epochs=2,
    batch_size=2,
    grad_accum_steps=2,
    max_seq_len=32,
    learning_rate=2e-4,
    warmup_steps=2,
    decay_steps=0,
    threads=1,
    early_stopping=False,
    checkpoint_interval=4,
    max_checkpoints=0,
)


def make_both(folder: Path, *, rows: bool = True) -> RunSpec:
    """A run on `one.bin`; `set.bin` has the same rows in three files."""
    draw = np.random.default_rng(2)
    made = [draw.integers(0, VOCAB, int(draw.integers(4, 60))) for _ in range(24)]
    flags = [draw.random(ids.size) < 0.7 for ids in made]
    cuts = [0, 5, 16, 24]
    names = [f"set-{i:05}-of-00003.bin" for i in range(3)]
    ranges = [(folder / "one.bin", 0, 24)]
    ranges += [
        (folder / name, *ends) for name, ends in zip(names, itertools.pairwise(cuts), strict=True)
    ]
    for path, begin, end in ranges:
        with TokenizedWriter(path, rows=rows, vocab_size=VOCAB) as writer:
            for row in range(begin, end):
                writer.append(made[row], flags[row])
            writer.finish()
    native.join(folder / "set.bin", names)
    return RunSpec(
        model=make_tiny_model(folder / "model", "llama_gqa_untied"),
        data=folder / "one.bin",
        run_dir=folder / "run",
        config=CONFIG,
        precision="float32",
    )


@pytest.mark.parametrize("packing", ["none", "bfd", "bfd_split", "wrapped", "stream"])
def test_a_set_gives_the_bits_of_one_file(tmp_path: Path, packing: str) -> None:
    made = make_both(tmp_path, rows=packing != "stream")
    if packing not in ("none", "stream"):
        made = made.replace(config=dataclasses.replace(CONFIG, packing=packing))
    made = made.replace(engine="native", eval_data=made.data)
    weights = []
    for name in ("one", "set"):
        data = tmp_path / f"{name}.bin"
        run = engines.run(made.replace(data=data, eval_data=data, run_dir=tmp_path / name))
        last = run.checkpoint
        assert last is not None
        weights.append((last / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    # What began on one file goes on with the set.
    again = made.replace(
        data=tmp_path / "set.bin",
        run_dir=tmp_path / "again",
        resume=str(tmp_path / "one" / "checkpoint-4"),
    )
    last = engines.run(again).checkpoint
    assert last is not None
    assert (last / "model.safetensors").read_bytes() == weights[0]


@pytest.mark.parametrize("packing", ["none", "bfd", "wrapped", "stream"])
def test_both_engines_agree_on_a_set(tmp_path: Path, packing: str) -> None:
    made = make_both(tmp_path, rows=packing != "stream")
    config = CONFIG if packing == "stream" else dataclasses.replace(CONFIG, packing=packing)
    result = crosscheck(made.replace(data=tmp_path / "set.bin", config=config), steps=6)
    assert result.ok, result.fault


@pytest.mark.parametrize(("first", "second"), [("native", "trl"), ("trl", "native")])
def test_the_other_engine_goes_on_with_the_set(tmp_path: Path, first: str, second: str) -> None:
    made = make_both(tmp_path)
    whole = engines.run(made.replace(engine=first))
    part = str(tmp_path / "run" / "checkpoint-4")
    again = made.replace(
        engine=second, data=tmp_path / "set.json", run_dir=tmp_path / "again", resume=part
    )
    resumed = engines.run(again)
    for before, after in zip(whole.history[4:], resumed.history, strict=True):
        assert abs(before.loss - after.loss) < 5e-6
    native.join(tmp_path / "half.bin", ["one.bin"])
    other = again.replace(data=tmp_path / "set-00001-of-00003.bin", run_dir=tmp_path / "other")
    with pytest.raises(CheckpointError, match="data"):
        engines.run(other)
