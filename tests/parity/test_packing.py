"""Packed rows: the native bins against TRL's own function, and both engines on the same rows."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import make_tiny_model
from token_files import write_rows, write_stream

from abi_train import engines
from abi_train.adapters import LoraConfig
from abi_train.check.crosscheck import crosscheck
from abi_train.config import LlmTrainingConfig
from abi_train.data.rows import IGNORED, TokenRows
from abi_train.errors import CheckpointError, ConfigError
from abi_train.runspec import RunSpec

ROOT = Path(__file__).resolve().parents[2]
VOCAB = 300
ENGINES = ("native", "trl")
STRATEGIES = ("bfd", "bfd_split", "wrapped")
PROGRAM = """\
import sys
from abi_train import RunSpec, run
for recipe in sys.argv[1:]:
    run(RunSpec.load(recipe))
"""
LENGTHS = [5, 9, 40, 17, 2, 33, 8, 21, 12, 30, 6, 7, 11, 1, 3, 14]
CONFIG = LlmTrainingConfig(
    epochs=20,
    batch_size=2,
    grad_accum_steps=2,
    max_seq_len=48,
    packing="bfd",
    learning_rate=2e-4,
    warmup_steps=5,
    decay_steps=0,
    weight_decay=0.1,
    max_grad_norm=0.5,
    threads=1,
    early_stopping=False,
)


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_spec(folder: Path, shape: str = "llama_gqa_untied", **settings: object) -> RunSpec:
    """A run on packed rows."""
    return RunSpec(
        model=make_tiny_model(folder / "model", shape),
        data=write_rows(folder / "train.bin", LENGTHS, vocab=VOCAB),
        run_dir=folder / "run",
        config=dataclasses.replace(CONFIG, **settings),
        precision="float32",
    )


def test_native_bins_are_those_of_trl(tmp_path: Path) -> None:
    from abi_train.engines.trl.packing import pack

    program = tmp_path / "probe"
    source = ROOT / "zig" / "src"
    command = [sys.executable, "-m", "ziglang", "build-exe", "-lc", f"-femit-bin={program}"]
    command += ["--dep", "data", f"-Mroot={ROOT / 'tests' / 'parity' / 'packing_probe.zig'}"]
    command += ["--dep", "base", f"-Mdata={source / 'data' / 'data.zig'}"]
    command += [f"-Mbase={source / 'base' / 'base.zig'}"]
    command += ["--cache-dir", str(tmp_path / "cache")]
    subprocess.run(command, check=True, timeout=300)

    draw = random.Random(7)
    requests: list[dict[str, Any]] = [
        {"lengths": [draw.randrange(draw.randrange(1, 90)) for _ in range(rows)], "capacity": size}
        for rows, size in ((1, 1), (40, 7), (300, 64), (999, 65), (1001, 50), (2400, 128), (50, 1))
    ]
    requests += [
        {"lengths": [3, 3, 3, 2, 2, 1, 1, 1, 4], "capacity": 4},
        {"lengths": [0, 0], "capacity": 4},
        {"lengths": [9, 8, 7, 7, 1, 2, 1, 3, 2, 8, 9, 9, 5, 5, 5, 5], "capacity": 10},
    ]
    requests = [{**one, "strategy": name} for one in requests for name in STRATEGIES]
    (tmp_path / "in.json").write_text(json.dumps(requests))
    asked = [str(program), str(tmp_path / "in.json"), str(tmp_path / "out.json")]
    subprocess.run(asked, check=True, timeout=60)
    answers = json.loads((tmp_path / "out.json").read_text())
    for request, bins in zip(requests, answers, strict=True):
        starts = [0, *itertools.accumulate(request["lengths"])]
        theirs = pack(starts, request["capacity"], request["strategy"])
        if request["strategy"] == "wrapped":
            assert [[tuple(run) for run in found] for found in bins] == theirs, request
            continue
        begins = [[starts[row] + offset for row, offset in found] for found in bins]
        assert begins == [[begin for begin, _ in found] for found in theirs], request


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_bins_of_the_engine_are_what_trl_packs_from_a_whole_dataset(strategy: str) -> None:
    from abi_train.engines.trl.libraries import datasets, pack_dataset
    from abi_train.engines.trl.packing import pack

    draw = np.random.default_rng(3)
    starts = [0, *itertools.accumulate(int(length) for length in draw.integers(1, 60, 2100))]
    rows = {"input_ids": [list(range(*ends)) for ends in itertools.pairwise(starts)]}
    packed = pack_dataset(datasets.Dataset.from_dict(rows), 48, strategy)[:]
    ours = [
        [token for piece in pieces for token in range(*piece)]
        for pieces in pack(starts, 48, strategy)
    ]
    assert ours == packed["input_ids"]


@pytest.mark.parametrize(("strategy", "size"), [("bfd", 64), ("bfd_split", 13), ("wrapped", 24)])
def test_a_packed_row_is_what_trl_trains_on(tmp_path: Path, strategy: str, size: int) -> None:
    from abi_train.engines.trl.libraries import TextCollator, datasets, pack_dataset
    from abi_train.engines.trl.packing import pack
    from abi_train.engines.trl.rows import collate

    path = write_rows(tmp_path / "train.bin", LENGTHS, vocab=VOCAB)
    plain = TokenRows.open(path, batch_size=2, max_seq_len=size)
    rows = plain.packed(pack, strategy)
    ends = list(zip(plain.starts[:-1], plain.starts[1:], strict=True))
    every = [plain._cut(int(begin), int(end)) for begin, end in ends]
    columns = {key: [row[key] for row in every] for key in ("input_ids", "labels")}
    wanted = pack_dataset(datasets.Dataset.from_dict(columns), size, strategy)
    assert len(rows) == len(wanted)
    borders = strategy != "wrapped"
    last = range(len(rows) - 4, len(rows))
    theirs = TextCollator(pad_token_id=0, padding_free=borders)([wanted[i] for i in last])
    ours = collate([rows[i] for i in last])
    assert ours.keys() == theirs.keys()
    if borders:
        assert (ours["labels"][ours["position_ids"] == 0] == IGNORED).all()
    for key, value in theirs.items():
        assert torch.equal(torch.as_tensor(ours[key]), torch.as_tensor(value)), key


@pytest.mark.parametrize("shape", ["llama_tied", "qwen3"])
def test_both_engines_agree_on_packed_rows(tmp_path: Path, shape: str) -> None:
    result = crosscheck(make_spec(tmp_path, shape), steps=12)
    assert len(result.steps) == 12
    assert result.ok, result.fault


@pytest.mark.parametrize(
    "settings",
    [
        {"label_smoothing": 0.1, "shuffle": False},
        {"batch_size": 3, "max_seq_len": 24, "recompute_activations": True},
        {"packing": "bfd_split", "max_seq_len": 16},
        {"packing": "wrapped", "max_seq_len": 20},
        {"packing": "wrapped", "max_seq_len": 33, "batch_size": 3, "shuffle": False},
    ],
)
def test_both_engines_agree_on_packed_rows_whatever_the_settings(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    result = crosscheck(make_spec(tmp_path, **settings), steps=8)
    assert result.ok, result.fault


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_both_engines_agree_on_packed_rows_in_double_precision(
    tmp_path: Path, strategy: str
) -> None:
    made = make_spec(tmp_path, packing=strategy, max_seq_len=30).replace(precision="float64")
    result = crosscheck(made, steps=6)
    assert result.ok, result.fault


def test_rows_that_see_each_other_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from abi_train.engines.trl import sft

    plain = sft.collate

    def without_borders(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        batch = plain(rows)
        batch["position_ids"] = torch.arange(batch["input_ids"].shape[1])[None]
        return batch

    monkeypatch.setattr(sft, "collate", without_borders)
    # One micro-batch is one packed row, so that running positions stay below the model's limit.
    result = crosscheck(make_spec(tmp_path, batch_size=1), steps=3)
    assert not result.ok
    assert result.fault is not None


def test_both_engines_agree_on_an_adapter_over_packed_rows(tmp_path: Path) -> None:
    spec = make_spec(tmp_path).replace(method="lora", lora=LoraConfig(r=4))
    result = crosscheck(spec, steps=6)
    assert result.ok, result.fault


@pytest.mark.parametrize("engine", ["native", "trl"])
def test_packing_changes_who_shares_an_update_but_not_what_is_learned(
    tmp_path: Path, engine: str
) -> None:
    """With all rows in one update, packed and padded runs are the same run."""
    made = make_spec(tmp_path, grad_accum_steps=100, max_steps=3, eval_interval=1)
    results = []
    for packing in ("none", "bfd"):
        spec = made.replace(
            engine=engine,
            eval_data=made.data,
            run_dir=tmp_path / packing,
            config=dataclasses.replace(made.config, packing=packing, eval_interval=1),
        )
        results.append(engines.run(spec))
    for alone, shared in zip(results[0].history, results[1].history, strict=True):
        assert abs(alone.loss - shared.loss) < 2e-6
        assert alone.grad_norm == pytest.approx(shared.grad_norm, rel=2e-6)
    for before, after in zip(results[0].evaluations, results[1].evaluations, strict=True):
        assert abs(before.loss - after.loss) < 2e-6
        assert before.tokens == after.tokens


@pytest.mark.parametrize(
    ("first", "second", "strategy"),
    [
        ("native", "trl", "bfd"),
        ("trl", "native", "bfd"),
        ("native", "trl", "bfd_split"),
        ("trl", "native", "wrapped"),
    ],
)
def test_a_packed_run_goes_on_with_the_other_engine(
    tmp_path: Path, first: str, second: str, strategy: str
) -> None:
    made = make_spec(
        tmp_path,
        epochs=4,
        checkpoint_interval=3,
        max_checkpoints=0,
        packing=strategy,
        max_seq_len=48 if strategy == "bfd" else 24,
    )
    whole = engines.run(made.replace(engine=first))
    part = tmp_path / "run" / "checkpoint-3"
    again = made.replace(engine=second, run_dir=tmp_path / "again", resume=str(part))
    resumed = engines.run(again)
    assert resumed.history[0].step == 4
    assert resumed.total_tokens == whole.total_tokens
    for before, after in zip(whole.history[3:], resumed.history, strict=True):
        assert before.learning_rate == after.learning_rate
        assert abs(before.loss - after.loss) < 5e-6
    plain = dataclasses.replace(made.config, packing="none")
    other = again.replace(run_dir=tmp_path / "other", config=plain)
    with pytest.raises(CheckpointError, match=f"packing was {strategy}"):
        engines.run(other)


@pytest.mark.parametrize("strategy", ["bfd_split", "wrapped"])
def test_evaluation_packs_as_training_does_on_both_engines(tmp_path: Path, strategy: str) -> None:
    made = make_spec(
        tmp_path, epochs=1, max_seq_len=20, packing=strategy, eval_interval=1, max_steps=2
    )
    made = made.replace(eval_data=made.data)
    ours, theirs = (
        engines.run(made.replace(engine=engine, run_dir=tmp_path / engine)) for engine in ENGINES
    )
    assert ours.evaluations and len(ours.evaluations) == len(theirs.evaluations)
    for left, right in zip(ours.evaluations, theirs.evaluations, strict=True):
        assert left.tokens == right.tokens
        assert abs(left.loss - right.loss) < 5e-6


@pytest.mark.parametrize("strategy", ["bfd_split", "wrapped"])
def test_a_resumed_packed_run_ends_with_the_same_bits(tmp_path: Path, strategy: str) -> None:
    made = make_spec(
        tmp_path,
        epochs=3,
        checkpoint_interval=3,
        max_checkpoints=0,
        packing=strategy,
        max_seq_len=20,
    ).replace(engine="native")
    whole = engines.run(made)
    again = made.replace(run_dir=tmp_path / "again", resume=str(tmp_path / "run" / "checkpoint-3"))
    resumed = engines.run(again)
    assert [one.loss for one in whole.history[3:]] == [one.loss for one in resumed.history]
    last = f"checkpoint-{whole.total_steps}/model.safetensors"
    left, right = (folder / last for folder in (made.run_dir, again.run_dir))
    assert left.read_bytes() == right.read_bytes()


def test_two_processes_of_either_engine_are_one_packed_run(tmp_path: Path) -> None:
    # Five packed rows: the last update is one micro-batch of one row, so one process has nothing.
    made = make_spec(tmp_path, batch_size=2, epochs=2, checkpoint_interval=0, log_interval=1)
    made = made.replace(eval_data=made.data)
    specs = [made.replace(engine=engine, run_dir=tmp_path / engine) for engine in ENGINES]
    (tmp_path / "train.py").write_text(PROGRAM, encoding="utf-8")
    recipes = [str(spec.save(tmp_path / f"{spec.engine}.yaml")) for spec in specs]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, "--standalone", str(tmp_path / "train.py"), *recipes],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for spec in specs:
        one = engines.run(spec.replace(run_dir=tmp_path / f"one-{spec.engine}"))
        log = (spec.run_dir / "log.jsonl").read_text(encoding="utf-8").splitlines()
        steps = [line for line in map(json.loads, log) if line["event"] == "step"]
        assert len(steps) == one.total_steps
        for left, right in zip(one.history, steps, strict=True):
            close = pytest.approx(left.loss, abs=2e-6)
            assert right["loss"] == close, (spec.engine, left.step)
            assert right["grad_norm"] == pytest.approx(left.grad_norm, rel=2e-6)
            assert right["tokens"] == left.tokens


@pytest.mark.parametrize("engine", ["native", "trl"])
def test_a_stream_is_not_packed(tmp_path: Path, engine: str) -> None:
    made = make_spec(tmp_path, epochs=1).replace(engine=engine)
    stream = write_stream(tmp_path / "stream.bin", tokens=900, vocab=VOCAB)
    with pytest.raises(ConfigError, match="one stream without row starts"):
        engines.run(made.replace(data=stream))
    # To evaluate on one is fine: its sequences are full, and means are over tokens.
    result = engines.run(made.replace(eval_data=stream))
    assert result.evaluations
