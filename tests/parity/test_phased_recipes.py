"""All phases of a recipe: the engines against each other; the one of gpt-oss on a tiny gpt-oss."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from safetensors.numpy import load_file  # noqa: E402

from abi_train import recipes  # noqa: E402
from abi_train.runspec import RunSpec  # noqa: E402
from abi_train.sample.tiny import make_gpt_oss  # noqa: E402

SMALL = [
    "max_steps=4",
    "batch_size=2",
    "warmup_steps=1",
    "threads=1",
    "evals=[]",
    "checkpoint_interval=2",
]


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_both_engines_go_through_the_phases_together(tmp_path: Path) -> None:
    """As two single runs of LoRA and of DPO agree, so do phases that go on from each other.

    Adam divides by the size of a gradient, so one that is nothing but rounding would move a weight
    by a whole step: a larger eps keeps that out of the comparison.
    """
    results = {}
    settings = [*SMALL, "eps=1e-4", "max_steps=3"]
    settings += [f"phases.{name}.eval_rows=null" for name in ("emotional", "reasoning")]
    for engine in ("native", "trl"):
        recipe = recipes.load(
            "abbey-tiny", settings=settings, engine=engine, run_dir=tmp_path / engine
        )
        results[engine] = recipes.run(recipe)
    native, trl = results["native"], results["trl"]
    assert list(native.checkpoints) == ["base", "emotional", "reasoning", "calibration"]
    for name in native.checkpoints:
        for ours, theirs in zip(
            native.results[name].history, trl.results[name].history, strict=True
        ):
            assert ours.loss == pytest.approx(theirs.loss, abs=5e-6), (name, ours.step)
            assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-4), (name, ours.step)
            assert ours.learning_rate == theirs.learning_rate
    for name in ("emotional", "reasoning", "calibration"):
        file = "adapter_model.safetensors"
        ours = load_file(native.checkpoints[name] / file)
        theirs = load_file(trl.checkpoints[name] / file)
        assert set(ours) == set(theirs)
        for key, values in ours.items():
            np.testing.assert_allclose(values, theirs[key], rtol=0, atol=2e-5, err_msg=key)


def test_a_recipe_goes_on_with_the_other_engine(tmp_path: Path) -> None:
    few = [*SMALL, "max_steps=2"]

    def recipe(engine: str) -> recipes.Recipe:
        return recipes.load("abbey-tiny", settings=few, engine=engine, run_dir=tmp_path / "run")

    recipes.run(recipe("native"), phases=["base", "emotional"])
    result = recipes.run(recipe("trl"), phases=["reasoning", "calibration"])
    assert {run.engine for run in result.results.values()} == {"trl"}
    again = recipes.run(recipe("native"))
    assert list(again.checkpoints) == ["base", "emotional", "reasoning", "calibration"]
    assert again.results == {}, "whoever finished a phase, it is finished"


@pytest.mark.parametrize(
    ("name", "experts"),
    [("abbey-gpt-oss-20b", False), ("abbey-gpt-oss-20b", True), ("abbey-gpt-oss-20b-native", True)],
)
def test_the_recipe_of_gpt_oss_runs_on_a_tiny_one(tmp_path: Path, name: str, experts: bool) -> None:
    """In MXFP4, as it is published."""
    gpt_oss = make_gpt_oss(tmp_path / "model")
    rows = tmp_path / "talk.jsonl"
    turns = [
        {"role": "user", "content": "I am late."},
        {"role": "assistant", "content": "Breathe."},
        {"role": "user", "content": "Thank you."},
        {"role": "assistant", "content": "You are welcome."},
    ]
    rows.write_text("".join(json.dumps({"messages": turns}) + "\n" for _ in range(20)))
    settings = [
        *SMALL,
        "max_steps=2",
        "grad_accum_steps=1",
        "lora.r=2",
        f"phases.emotional.rows={rows}",
        f"phases.reasoning.rows={rows}",
        "phases.calibration.rows=sample:preferences",
        "phases.emotional.eval_split=0.05",
    ]
    if experts:
        names = "[mlp.experts.gate_up_proj, mlp.experts.down_proj]"
        settings.append(f"lora.target_parameters={names}")
    recipe = recipes.load(
        name,
        settings=settings,
        model=gpt_oss,
        precision="float32",
        run_dir=tmp_path / "run",
    )
    result = recipes.run(recipe)
    assert list(result.checkpoints) == ["emotional", "reasoning", "calibration"]
    # The loss is that of the tokens alone: no coefficient times the router's is in it.
    first = result.results["emotional"].history[0].loss
    assert 7.6 < first < 8.8  # log(2048) is 7.6; 0.9 of a routers' loss of 2 would be on top
    assert result.results["calibration"].history[0].loss == pytest.approx(0.693147, abs=1e-5)
    state = json.loads((tmp_path / "run" / "recipe.json").read_text())["phases"]
    data = state["emotional"]["data"]
    assert (data["rows"], data["eval_rows"]) == (38, 2), "a row of each answer"
    spec = RunSpec.load(tmp_path / "run" / "calibration" / "run.json")
    assert spec.lora is not None and spec.lora.adapter == result.checkpoints["reasoning"]
    weights = load_file(result.checkpoints["calibration"] / "adapter_model.safetensors")
    assert any(".experts." in name for name in weights) == experts
    assert all(np.isfinite(values).all() for values in weights.values())
