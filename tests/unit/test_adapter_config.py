"""`LoraConfig` and PEFT's `adapter_config.json`: what is taken, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from abi_train.adapters import LINEAR_TARGETS, LoraConfig, is_adapter, pattern_value
from abi_train.errors import CheckpointError, ConfigError

PEFT: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "somewhere",
    "r": 4,
    "lora_alpha": 12,
    "lora_dropout": 0.0,
    "target_modules": ["v_proj", "q_proj"],
    "bias": "none",
    "use_rslora": True,
    "use_dora": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {"k_proj": 3},
}


def adapter(folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**PEFT, **changes}))
    return folder


def test_defaults_are_those_of_the_contract() -> None:
    config = LoraConfig()
    assert (config.r, config.lora_alpha, config.lora_dropout) == (8, 16.0, 0.0)
    assert config.target_modules == ("q_proj", "k_proj", "v_proj", "o_proj")
    assert LoraConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"r": 0}, r"lora\.r is 0; it must be at least 1"),
        ({"r": True}, r"lora\.r is true; it must be a whole number"),
        ({"r": 2.5}, r"lora\.r is 2\.5; it must be a whole number"),
        ({"lora_alpha": 0}, r"lora\.lora_alpha is 0\.0; .* above 0"),
        ({"lora_alpha": float("nan")}, r"lora\.lora_alpha is nan"),
        ({"lora_dropout": 1.0}, r"lora\.lora_dropout is 1\.0; .* below 1"),
        ({"target_modules": []}, r"lora\.target_modules is \[\]; it must name at least one"),
        ({"target_modules": ["q_prj"]}, "'q_prj' is none of .*did you mean 'q_proj'"),
        ({"target_modules": ["q_proj", "q_proj"]}, "q_proj is given twice"),
        ({"target_modules": 3}, r"lora\.target_modules is 3; it must be a list"),
        ({"rank_pattern": {"q_proj": 0}}, r"lora\.rank_pattern\.q_proj is 0; .* from 1"),
        ({"rank_pattern": {"q_proj": 1.5}}, r"lora\.rank_pattern\.q_proj is 1\.5"),
        ({"rank_pattern": {"(q_proj": 2}}, "it is no regular expression"),
        ({"rank_pattern": {"x_proj": 2}}, "end in one of q_proj"),
        ({"lora_alpha": 1e300}, "at most 1000000"),
        ({"alpha_pattern": {"q_proj": 1e300}}, "at most 1000000"),
        ({"target_modules": ["попытка"]}, r"lora\.target_modules is \"\[попытка\]\""),
        ({"target_modules": "*"}, "it is no regular expression"),
        ({"target_modules": ["q_proj", ".*v_proj"]}, "a regular expression must stand alone"),
        ({"layers_to_transform": [-1]}, "it must be a layer or a list of layers"),
        ({"layers_to_transform": "all"}, "it must be a layer or a list of layers"),
        ({"layers_pattern": "h"}, "it means nothing without layers_to_transform"),
        ({"layers_to_transform": 0, "target_modules": ".*q_proj"}, "it must be unset, as in PEFT"),
        ({"exclude_modules": ["x_proj"]}, "'x_proj' is none of"),
        ({"use_dora": True}, r"lora\.use_dora is True; DoRA is not computed here"),
        ({"task_type": "CAUSAL_LM"}, r"lora\.task_type is PEFT's"),
        ({"R": 4}, "'R' is not a key of the table lora; write r"),
        ({"rank_pattern": [4]}, "it must be a table of module names"),
        ({"alpha_pattern": {"q_proj": -1}}, r"lora\.alpha_pattern\.q_proj is -1"),
        ({"seed": -1}, r"lora\.seed is -1"),
        ({"adapter": 7}, r"lora\.adapter is 7; it must be a path"),
        ({"lora_r": 4}, "'lora_r' is not a key of the table lora"),
        ({"ranks_pattern": {}}, "did you mean 'rank_pattern'"),
        (
            {"target_parameters": ["mlp.experts.down_proj"], "lora_dropout": 0.1},
            "with target_parameters it must be 0",
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_rule(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        LoraConfig.from_dict(values)


def test_targets_are_kept_in_the_order_of_the_files_and_all_linear_means_the_layers() -> None:
    assert LoraConfig(target_modules=("lm_head", "o_proj", "q_proj")).target_modules == (
        "q_proj",
        "o_proj",
        "lm_head",
    )
    assert LoraConfig(target_modules="all-linear").target_modules == LINEAR_TARGETS  # type: ignore[arg-type]


def test_an_adapter_brings_its_own_sizes(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a")
    config = LoraConfig(adapter=folder, seed=3).with_adapter_sizes()
    assert (config.r, config.lora_alpha, config.use_rslora) == (4, 12.0, True)
    assert config.target_modules == ("q_proj", "v_proj")
    assert dict(config.alpha_pattern) == {"k_proj": 3.0}
    assert (config.adapter, config.seed) == (folder, 3)
    same = LoraConfig(adapter=folder, r=4, target_modules=("q_proj", "v_proj"))
    assert same.with_adapter_sizes().r == 4
    with pytest.raises(ConfigError, match=r"lora\.r is 16; the adapter .* has 4"):
        LoraConfig(adapter=folder, r=16).with_adapter_sizes()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; only LORA is read"),
        ({"use_dora": True}, "use_dora is True; DoRA is not computed here"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\].*merge"),
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'; only CAUSAL_LM"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is pissa_niter_4; .*changed"),
        ({"init_lora_weights": 7}, "init_lora_weights is 7"),
        ({"trainable_token_indices": 0}, "trainable_token_indices is 0"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"frobnicate": 1}, "'frobnicate' is not a key of an adapter configuration"),
        ({"use_rslor": True}, "did you mean 'use_rslora'"),
        ({"r": 0}, "r is 0; it must be at least 1"),
        ({"target_modules": "(.*)*x"}, "adapter_model.safetensors is missing"),
        ({"target_modules": "(.*"}, "it is no regular expression"),
        ({"rank_pattern": {".*_proj": 2}}, 'rank_pattern: ".*_proj" is a regular expression'),
    ],
)
def test_a_configuration_that_is_not_computed_is_refused_by_its_key(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    folder = adapter(tmp_path / "a", **changes)
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 2}')
    with pytest.raises((ConfigError, CheckpointError), match=said):
        LoraConfig(adapter=folder).resolved(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "not an adapter"),
        ("{", "not valid JSON"),
        ("[1]", "must hold an object"),
        ('{"r": 1, "r": 2}', 'key "r" stands twice'),
        ('{"a":' * 9999 + "1" + "}" * 9999, "not valid JSON"),
    ],
)
def test_a_folder_that_is_no_adapter_is_refused(
    tmp_path: Path, text: str | None, said: str
) -> None:
    if text is not None:
        (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=said):
        LoraConfig(adapter=tmp_path).with_adapter_sizes()


def test_what_peft_writes_is_read(tmp_path: Path) -> None:
    import peft

    theirs = peft.LoraConfig(
        r=6, lora_alpha=9, target_modules=["down_proj", "q_proj"], rank_pattern={"q_proj": 2}
    )
    theirs.save_pretrained(str(tmp_path))
    ours = LoraConfig(adapter=tmp_path).with_adapter_sizes()
    assert (ours.r, ours.lora_alpha, dict(ours.rank_pattern)) == (6, 9.0, {"q_proj": 2})
    assert ours.target_modules == ("q_proj", "down_proj")
    assert is_adapter(tmp_path)


def test_a_pattern_is_a_path_or_its_end() -> None:
    pattern = {"layers.1.self_attn.q_proj": 2, "q_proj": 3}
    assert pattern_value(pattern, "model.layers.1.self_attn.q_proj", 8) == 2
    assert pattern_value(pattern, "model.layers.11.self_attn.q_proj", 8) == 3
    assert pattern_value({"q_proj": 3}, "model.layers.0.self_attn.xq_proj", 8) == 8
