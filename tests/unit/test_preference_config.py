"""`DpoConfig`, the reference it means, and both tables in a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from abi_train.adapters import LoraConfig
from abi_train.config import LlmTrainingConfig
from abi_train.errors import ConfigError
from abi_train.preference import DpoConfig, require_same_words
from abi_train.runspec import RunSpec


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"beta": 0}, r"dpo\.beta is 0\.0; .* above 0"),
        ({"loss_type": "simpo"}, r'dpo\.loss_type is "simpo"; it must be one or more of sigmoid'),
        ({"loss_type": []}, r"dpo\.loss_type"),
        ({"loss_type": ["sft", "sft"]}, "each loss may stand once"),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1]}, "give a weight for each"),
        ({"loss_weights": ["x"]}, r"dpo\.loss_weights"),
        ({"label_smoothing": 0.1}, "only the loss robust uses it"),
        ({"loss_type": "robust", "label_smoothing": 0.5}, "it must be below 0.5"),
        ({"precompute_ref_log_probs": 1}, "true or false"),
        ({"rpo_alpha": 1}, "'rpo_alpha' is not a key of the table dpo"),
        ({"refmodel": "x"}, "did you mean 'ref_model'"),
    ],
)
def test_a_wrong_value_is_named_with_its_rule(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        DpoConfig.from_dict(values)


def test_the_reference_follows_from_the_run() -> None:
    plain, base, adapter = DpoConfig(), Path("base"), Path("adapter")
    kinds = [
        plain.reference(model=base, lora=False, adapter=None).kind,
        plain.reference(model=base, lora=True, adapter=None).kind,
        plain.reference(model=base, lora=True, adapter=adapter).kind,
        DpoConfig(ref_model=Path("r")).reference(model=base, lora=True, adapter=adapter).kind,
        DpoConfig(precompute_ref_log_probs=True)
        .reference(model=base, lora=False, adapter=None)
        .kind,
    ]
    assert kinds == [
        "starting_model",
        "adapter_off",
        "starting_adapter",
        "ref_model",
        "starting_model (precomputed)",
    ]


def spec(**values: Any) -> RunSpec:
    return RunSpec(model=Path("m"), data=Path("d.bin"), run_dir=Path("r"), **values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"method": "qlora"}, 'method is "qlora"; it must be one of full, lora'),
        ({"objective": "kto"}, 'objective is "kto"; it must be one of sft, dpo'),
        ({"lora": LoraConfig()}, "the table lora needs method: lora"),
        ({"dpo": DpoConfig()}, "the table dpo needs objective: dpo"),
        (
            {"objective": "dpo", "config": LlmTrainingConfig(label_smoothing=0.1)},
            "label_smoothing is 0.1; with objective dpo it must be 0",
        ),
        (
            {"objective": "dpo", "method": "lora", "lora": LoraConfig(lora_dropout=0.1)},
            "lora.lora_dropout is 0.1; with objective dpo it must be 0",
        ),
    ],
)
def test_settings_without_effect_or_against_each_other_are_refused(
    values: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        spec(**values)


def test_a_method_brings_its_table() -> None:
    run = spec(method="lora", objective="dpo")
    assert run.lora == LoraConfig()
    assert run.dpo == DpoConfig()


@pytest.mark.parametrize("ending", ["yaml", "json", "toml"])
def test_both_tables_come_back_from_a_recipe(tmp_path: Path, ending: str) -> None:
    run = spec(
        method="lora",
        objective="dpo",
        lora=LoraConfig(
            r=3,
            target_modules=("q_proj", "lm_head"),
            rank_pattern={"layers.0.self_attn.q_proj": 2},
            alpha_pattern={"lm_head": 1.5},
            use_rslora=True,
            seed=7,
            adapter=tmp_path / "adapter",
        ),
        dpo=DpoConfig(
            beta=0.25,
            loss_type=("sigmoid", "sft"),
            loss_weights=(1.0, 0.5),
            ref_model=tmp_path / "reference",
        ),
    )
    run = run.replace(model=tmp_path / "m", data=tmp_path / "d.bin", run_dir=tmp_path / "r")
    path = run.save(tmp_path / f"recipe.{ending}")
    assert '"adapter"' in path.read_text() or "adapter" in path.read_text()
    assert str(tmp_path) not in path.read_text()  # paths below the recipe are relative to it
    assert RunSpec.load(path) == run


def test_a_table_alone_means_its_method(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model: m\ndata: d.bin\nrun_dir: r\nlora:\n  r: 2\n  adapter: before\ndpo:\n")
    run = RunSpec.load(recipe)
    assert (run.method, run.objective) == ("lora", "dpo")
    assert run.lora is not None
    assert run.lora.adapter == tmp_path / "before"
    recipe.write_text("model: m\ndata: d.bin\nrun_dir: r\nmethod: full\nlora: {r: 2}\n")
    with pytest.raises(ConfigError, match="the table lora needs method: lora"):
        RunSpec.load(recipe)
    recipe.write_text("model: m\ndata: d.bin\nrun_dir: r\nlora: 3\n")
    with pytest.raises(ConfigError, match="lora is 3; it must be a table of settings"):
        RunSpec.load(recipe)


def test_an_adapter_is_no_model_and_a_missing_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "d.bin").write_bytes(b"\0" * 8)
    (tmp_path / "m").mkdir()
    there: dict[str, Any] = {"data": tmp_path / "d.bin", "run_dir": tmp_path / "r"}
    run = RunSpec(
        model=tmp_path / "m", **there, lora=LoraConfig(adapter=tmp_path / "x"), method="lora"
    )
    with pytest.raises(ConfigError, match=r"lora\.adapter: .*x does not exist"):
        run.check_paths()
    (tmp_path / "m" / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="is an adapter, not a model; name the model it was made"):
        RunSpec(model=tmp_path / "m", **there).check_paths()
    (tmp_path / "n").mkdir()
    run = RunSpec(
        model=tmp_path / "n", **there, objective="dpo", dpo=DpoConfig(ref_model=tmp_path / "m")
    )
    with pytest.raises(ConfigError, match=r"dpo\.ref_model: .* is an adapter"):
        run.check_paths()


def test_a_reference_whose_ids_are_other_tokens_is_refused(tmp_path: Path) -> None:
    def folder(name: str, vocab: dict[str, int], added: list[dict[str, Any]]) -> Path:
        (tmp_path / name).mkdir()
        text = json.dumps({"model": {"vocab": vocab}, "added_tokens": added})
        (tmp_path / name / "tokenizer.json").write_text(text)
        return tmp_path / name

    end = [{"id": 2, "content": "<end>"}]
    model = folder("a", {"x": 0, "y": 1}, end)
    require_same_words(model, folder("b", {"y": 1, "x": 0, "<end>": 2}, []))
    require_same_words(model, tmp_path)
    with pytest.raises(ConfigError, match=r"id 1 is 'z' in .*c and 'y' in"):
        require_same_words(model, folder("c", {"x": 0, "z": 1}, end))
    with pytest.raises(ConfigError, match="id 2 is None"):
        require_same_words(model, folder("d", {"x": 0, "y": 1}, []))
