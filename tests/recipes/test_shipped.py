"""The recipes that come along, from a clone and from an installation, and the scripts of phases."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from tiny_recipe import document, write_chats, write_pairs

from abi_train import recipes
from abi_train.cli import main

ROOT = Path(__file__).resolve().parents[2]
PHASES = ["emotional", "reasoning", "calibration"]


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    return int(left.value.code or 0)


def test_the_folder_of_a_clone_holds_the_packaged_files() -> None:
    there = sorted(path.name for path in (ROOT / "recipes").iterdir())
    assert there == sorted(f"{name}.yaml" for name in recipes.shipped())
    for name in recipes.shipped():
        here = (ROOT / "recipes" / f"{name}.yaml").read_bytes()
        assert here == recipes.shipped_recipe(name).read_bytes()


@pytest.mark.parametrize("name", recipes.shipped())
def test_a_shipped_recipe_means_the_same_by_path_and_by_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    by_name, by_path = recipes.load(name), recipes.load(ROOT / "recipes" / f"{name}.yaml")
    assert by_name.to_dict() == by_path.to_dict()
    assert by_name.run_dir == Path("runs") / name
    assert [phase.name for phase in by_name.phases][-3:] == PHASES
    objectives = [phase.spec.objective for phase in by_name.phases][-3:]
    assert objectives == ["sft", "sft", "dpo"]
    assert call("train", name, "--dry-run") == 0
    assert call("init", "--recipe", name) == 0
    copy = recipes.load(f"{name}.yaml")
    assert {**copy.to_dict()} == by_name.to_dict()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.yaml"]


def test_the_recipe_of_gpt_oss_avoids_its_traps() -> None:
    recipe = recipes.load("abbey-gpt-oss-20b")
    emotional, reasoning, calibration = (phase.spec for phase in recipe.phases)
    for spec in (emotional, reasoning, calibration):
        assert spec.engine == "trl" and spec.precision == "bf16"
        assert spec.lora is not None and spec.lora.lora_dropout == 0.0
        assert spec.lora.target_modules == ("q_proj", "k_proj", "v_proj", "o_proj")
    for spec in (emotional, reasoning):
        assert 1e-4 <= spec.config.learning_rate <= 2e-4
    assert calibration.lora is not None and calibration.lora.adapter == reasoning.run_dir
    first = recipe.phases[0].prepared
    assert first is not None and first.rows_per == "answer"


def test_a_name_that_comes_along_is_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("init", "--recipe", "abbey-tini") == 2
    assert "did you mean 'abbey-tiny'" in " ".join(capsys.readouterr().err.split())
    assert call("train", "abbey-tini") == 1
    assert f"({', '.join(recipes.shipped())})" in " ".join(capsys.readouterr().err.split())


def test_the_recipe_of_gpt_oss_for_a_cpu_is_that_of_the_gpu_in_small() -> None:
    small, large = (recipes.load(f"abbey-gpt-oss-20b{end}") for end in ("-native", ""))
    for ours, theirs in zip(small.phases, large.phases, strict=True):
        assert ours.name == theirs.name and ours.spec.model == theirs.spec.model
        assert ours.spec.engine == "native" and ours.spec.config.batch_size == 1
        mine, its = ours.spec.lora, theirs.spec.lora
        assert mine is not None and its is not None
        for key in ("r", "lora_alpha", "target_modules", "lora_dropout"):
            assert getattr(mine, key) == getattr(its, key)
        assert ours.spec.config.learning_rate == theirs.spec.config.learning_rate
    assert small.phases[0].prepared is not None
    assert small.phases[0].prepared.rows_per == "answer"


def tiny(folder: Path) -> list[str]:
    """A recipe of a tiny Llama, and settings."""
    values: dict[str, Any] = document()
    write_chats(folder / "talk.jsonl", 8)
    write_pairs(folder / "pairs.jsonl", 6)
    values["phases"] = [
        {"name": "base", "method": "full", "rows": "talk.jsonl"},
        {"name": "emotional", "rows": "talk.jsonl", "eval_split": 0.25},
        {"name": "reasoning", "rows": "talk.jsonl"},
        {"name": "calibration", "rows": "pairs.jsonl", "dpo": {}},
    ]
    path = folder / "tiny.json"
    path.write_text(json.dumps(values))
    return [str(path)]


def tiny_gpt_oss(folder: Path) -> list[str]:
    """The recipe that comes along, in a few updates."""
    few = ["max_steps=4", "batch_size=4", "warmup_steps=1", "threads=1", "checkpoint_interval=2"]
    split = ["phases.emotional.eval_rows=null", "phases.emotional.eval_split=0.01"]
    return ["abbey-gpt-oss-tiny", *few, *split]


@pytest.mark.parametrize(("made", "kind"), [(tiny, "Q8_0"), (tiny_gpt_oss, "MXFP4")])
def test_the_scripts_of_the_phases_run_one_after_another(
    tmp_path: Path, made: Callable[[Path], list[str]], kind: str
) -> None:
    recipe = made(tmp_path)
    printed = []
    for name in PHASES:
        script = ROOT / "examples" / "abbey" / f"{name}.py"
        done = subprocess.run(
            [sys.executable, str(script), *recipe, "log_interval=1", "evals=[]"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        printed.append(done.stdout)
    assert "emotional/checkpoint-4" in printed[0] and "update 4: perplexity" in printed[0]
    assert "goes on from emotional, chain adapter" in printed[1]
    assert "of the pairs the right way" in printed[2]
    (file,) = (tmp_path / "runs").glob("*/abbey.gguf")
    assert kind in {tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}


@pytest.mark.parametrize("name", PHASES)
def test_a_script_names_what_it_needs(name: str) -> None:
    """As `uv run` reads it: a block of TOML in comments (the form of inline script metadata)."""
    import re

    from abi_train.config import tomllib

    text = (ROOT / "examples" / "abbey" / f"{name}.py").read_text()
    block = re.search(r"(?m)^# /// script\n((?:#(?: .*)?\n)+)# ///$", text)
    assert block is not None
    plain = "".join(line[2:] or "\n" for line in block.group(1).splitlines(keepends=True))
    values = tomllib.loads(plain)
    assert values["dependencies"] == ["abi-train[trl]"]
    assert values["requires-python"] == ">=3.10"
    assert len(text.splitlines()) <= 60
    page = (ROOT / "examples" / "README.md").read_text()
    assert f"abbey/{name}.py" in page
