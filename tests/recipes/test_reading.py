"""Phased recipes: what a file says, what each phase makes of it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from abi_train import recipes
from abi_train.errors import ConfigError
from abi_train.runspec import RunSpec

MODEL = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2}


def document(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "model": "model",
        "training": {"learning_rate": 1e-3, "num_train_epochs": 2},
        "lora": {"r": 16},
        "phases": [
            {"name": "base", "method": "full", "data": "base.bin"},
            {"name": "one", "rows": "one.jsonl", "eval_split": 0.1},
            {"name": "two", "rows": ["sample:preferences"], "dpo": {"beta": 0.2}},
        ],
    }
    return {**values, **changes}


def phases_of(tmp_path: Path, *entries: dict[str, Any], **changes: Any) -> recipes.Recipe:
    return recipes.from_dict(document(phases=list(entries), **changes), base=tmp_path)


def test_a_phase_takes_what_is_common_and_overrides_it(tmp_path: Path) -> None:
    path = tmp_path / "three.json"
    path.write_text(json.dumps(document()))
    recipe = recipes.load(path)
    assert recipe.name == "three" and recipe.run_dir == Path("runs/three")
    base, one, two = recipe.phases
    assert base.spec.model == tmp_path / "model" and base.spec.data == tmp_path / "base.bin"
    assert base.spec.method == "full" and base.spec.lora is None and base.rows is None
    assert base.spec.config.epochs == 2
    assert one.spec.run_dir == Path("runs/three/one")
    assert one.spec.model == base.spec.run_dir and one.after == "base"
    assert one.spec.data == Path("runs/three/data/one.bin")
    assert one.spec.eval_data == Path("runs/three/data/one_eval.bin")
    assert one.rows is not None and one.rows[0].path == tmp_path / "one.jsonl"
    assert two.spec.objective == "dpo" and two.spec.dpo is not None and two.spec.dpo.beta == 0.2
    assert two.spec.lora is not None and two.spec.lora.adapter == one.spec.run_dir
    assert two.spec.lora.r == 16 and two.spec.model == base.spec.run_dir
    assert recipe.phase("two") is two


def test_the_command_line_wins_everywhere_or_in_one_phase(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(document()))
    recipe = recipes.load(
        path,
        settings=["epochs=7", "phases.two.learning_rate=1e-5", "phases.two.dpo.beta=0.3"],
        engine="trl",
        run_dir=tmp_path / "run",
    )
    assert [phase.spec.config.epochs for phase in recipe.phases] == [7, 7, 7]
    rates = [phase.spec.config.learning_rate for phase in recipe.phases]
    assert rates == [1e-3, 1e-3, 1e-5]
    assert {phase.spec.engine for phase in recipe.phases} == {"trl"}
    two = recipe.phases[2].spec
    assert two.dpo is not None and two.dpo.beta == 0.3
    assert two.run_dir == tmp_path / "run" / "two"


def test_a_rank_asked_of_all_phases_is_one_of_those_with_an_adapter(tmp_path: Path) -> None:
    whole = {"name": "base", "method": "full", "data": "a.bin"}
    beside = {"name": "talk", "data": "b.bin", "lora": {"r": 16}}
    values = document(phases=[whole, beside])
    recipe = recipes.from_dict(values, base=tmp_path, settings=["lora.r=2"])
    assert recipe.phases[0].spec.lora is None
    assert recipe.phases[1].spec.lora is not None and recipe.phases[1].spec.lora.r == 2
    for setting in ("phases.base.lora.r=2", "method=full"):
        with pytest.raises(ConfigError, match="the table lora needs method: lora"):
            recipes.from_dict(values, base=tmp_path, settings=["lora.r=2", setting])


def test_a_model_given_as_a_table_gets_the_size_of_its_vocabulary(tmp_path: Path) -> None:
    entry = {"name": "base", "method": "full", "rows": "sample:conversations"}
    recipe = phases_of(tmp_path, entry, model=MODEL, tokenizer="sample:tokenizer")
    (phase,) = recipe.phases
    assert phase.model_config == {**MODEL, "vocab_size": 2048}
    assert phase.spec.model == Path("runs/recipe/config.json")
    assert phase.spec.tokenizer is not None
    assert (phase.spec.tokenizer / "tokenizer.json").is_file()


def test_a_merged_phase_begins_with_a_new_adapter(tmp_path: Path) -> None:
    first = {"name": "a", "data": "a.bin"}
    recipe = phases_of(
        tmp_path, first, {"name": "b", "data": "b.bin", "chain": "merge", "lora": {"r": 4}}
    )
    spec = recipe.phases[1].spec
    assert spec.model == Path("runs/recipe/b/start")
    assert spec.lora is not None and spec.lora.adapter is None and spec.lora.r == 4
    alone = phases_of(tmp_path, first, {"name": "b", "data": "b.bin", "chain": "none"}).phases[1]
    assert alone.after is None and alone.spec.model == tmp_path / "model"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"modle": 1}, "did you mean 'model'"),
        ({"phases": []}, "at least one phase"),
        ({"phases": [{"data": "a.bin"}]}, "entry 1 has no name"),
        ({"phases": [{"name": "a/b"}]}, "must be a word"),
        ({"phases": [{"name": "data"}]}, "something else of this name"),
        ({"phases": [{"name": "a", "data": "a"}, {"name": "A"}]}, "two phases are called A"),
        ({"phases": [{"name": "a"}]}, "phase a: it has neither rows"),
        ({"phases": [{"name": "a", "data": "a", "chian": "merge"}]}, "did you mean 'chain'"),
        ({"phases": [{"name": "a", "data": "a", "rows": "b"}]}, "has rows already"),
        ({"phases": [{"name": "a", "data": "a", "loss": "all"}]}, "belongs to rows"),
        ({"phases": [{"name": "a", "rows": "set:gsm9k"}]}, "no data set known here"),
        ({"phases": [{"name": "a", "rows": "sample:conversation"}]}, "did you mean 'conv"),
        ({"phases": [{"name": "a", "rows": "b", "eval_split": 1}]}, "from 0 to below 1"),
        ({"phases": [{"name": "a", "rows": "b", "chat_format": "abey"}]}, "must be one of"),
        ({"phases": [{"name": "a", "data": "a", "training": {"epoch": 1}}]}, "'epochs'"),
        ({"training": {"checkpoint_path": "x"}}, "folder of its own"),
        ({"model": None}, "model is missing"),
        ({"model": MODEL}, "needs tokenizer"),
    ],
)
def test_what_a_recipe_gets_wrong_is_named(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        recipes.from_dict(document(**changes), base=tmp_path)


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({"lora": {"r": 8}}, r"lora.r is 8; it goes on with the adapter of a, which has 16"),
        ({"model": "other"}, "begins with what a left"),
        ({"method": "full"}, "need chain: merge"),
        ({"lora": {"adapter": "x"}}, "chain: none"),
        ({"chain": "sometimes"}, "adapter, merge, none"),
    ],
)
def test_what_does_not_follow_from_the_phase_before_is_named(
    tmp_path: Path, second: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=f"phase b: .*{said}"):
        phases_of(
            tmp_path, {"name": "a", "data": "a.bin"}, {"name": "b", "data": "b.bin", **second}
        )


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("epochs", "write NAME=VALUE"),
        ("epoch=3", "did you mean 'epochs'"),
        ("phases.twoo.epochs=3", "did you mean 'two'"),
        ("phases.two=3", "write phases.two.NAME=VALUE"),
        ("epochs=[", "is not a number"),
    ],
)
def test_a_setting_of_the_command_line_that_means_nothing_is_named(
    tmp_path: Path, setting: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        recipes.from_dict(document(), base=tmp_path, settings=[setting])


def test_a_recipe_of_one_run_stays_one(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"model": "m", "data": "d.bin", "run_dir": "r"}))
    assert isinstance(recipes.read(path), RunSpec)
    with pytest.raises(ConfigError, match="has no phases"):
        recipes.load(path)
    with pytest.raises(ConfigError, match=r"no such file, and no recipe of this name"):
        recipes.load("abbey-tinny")
