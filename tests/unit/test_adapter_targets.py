"""Modules named by PEFT's patterns: the same ones as PEFT finds, by names that say it plainly."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abi_train.adapters import LoraConfig
from abi_train.errors import CheckpointError, ConfigError

SHAPE = {
    "model_type": "llama",
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
CHOICES: list[dict[str, Any]] = [
    {"target_modules": "all-linear"},
    {"target_modules": r".*\.self_attn\.(q|v)_proj"},
    {"target_modules": r"model\.layers\.[02]\..*_proj"},
    {"target_modules": ".*proj|.*tokens"},
    {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [0, 2]},
    {"target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": "layers"},
    {"target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": ["h", "layers"]},
    {"target_modules": ["layers.1.mlp.up_proj", "v_proj"]},
    {"target_modules": ["q_proj", "k_proj", "up_proj"], "exclude_modules": ["k_proj"]},
    {"target_modules": ["q_proj", "k_proj"], "exclude_modules": r".*\.0\..*"},
    {"target_modules": ["q_proj", "lm_head"], "exclude_modules": ["layers.2.self_attn.q_proj"]},
    {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {r"layers\.[01]\..*": 2, "v_proj": 5}},
    {"target_modules": ["q_proj", "v_proj"], "alpha_pattern": {"v_proj": 3, ".*": 7}},
    {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"(q|v)_proj": 3}},
]


@pytest.fixture(scope="module")
def theirs() -> Any:
    import transformers

    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    return tmp_path


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_the_modules_ranks_and_scales_are_those_peft_finds(
    model: Path, theirs: Any, choice: dict[str, Any]
) -> None:
    import copy

    import peft

    def made(settings: dict[str, Any]) -> dict[str, tuple[int, float]]:
        config = peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **settings)
        wrapped = peft.get_peft_model(copy.deepcopy(theirs), config)
        return {
            name: (module.r["default"], module.scaling["default"])
            for name, module in wrapped.named_modules()
            if hasattr(module, "lora_embedding_A")
        }

    ours = LoraConfig(r=4, lora_alpha=8, **choice).resolved(model)
    assert not ours.is_pattern
    plain = {
        "target_modules": list(ours.target_modules),
        "rank_pattern": dict(ours.rank_pattern),
        "alpha_pattern": dict(ours.alpha_pattern),
    }
    assert made(plain) == made(choice)


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"target_modules": "q_proj.*"}, "fits no module of this model; it must fit a whole path"),
        ({"layers_to_transform": [1, 3]}, "names layer 3; this model's layers are 0 to 2"),
        ({"exclude_modules": ["up_proj"]}, '"up_proj", which fits none of the modules'),
        ({"exclude_modules": ".*proj"}, "nothing is left of target_modules"),
        ({"layers_to_transform": 0, "layers_pattern": "h"}, "nothing is left of target_modules"),
        ({"rank_pattern": {"up.*": 3}}, 'rank_pattern names "up.*", which fits no module'),
        ({"alpha_pattern": {".*": 3, "q_proj": 4}}, '"q_proj", which fits no module'),
    ],
)
def test_a_pattern_that_decides_nothing_is_named(
    model: Path, choice: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        LoraConfig(**choice).resolved(model)


def test_plain_names_stay_as_they_are(tmp_path: Path) -> None:
    """Nothing is looked up for them: the model may be anything."""
    plain = LoraConfig(target_modules=("layers.0.self_attn.q_proj", "v_proj"))
    assert plain.resolved(tmp_path / "nowhere") == plain


def test_patterns_come_back_from_a_recipe() -> None:
    chosen = LoraConfig(layers_to_transform=(0, 2), exclude_modules=".*k_proj")
    assert LoraConfig.from_dict(chosen.to_dict()) == chosen
    assert "layers_to_transform" not in LoraConfig().to_dict()


def test_a_pattern_of_somebody_elses_adapter_is_not_run(model: Path, tmp_path: Path) -> None:
    """This one would take longer than the universe lasts; its tensors say what it meant."""
    from safetensors.numpy import save_file

    folder = tmp_path / "adapter"
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "target_modules": r"((((\w|\.)+)+)+)+!"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    names = [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.2.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    ]
    tensors = {
        f"base_model.model.{name}.lora_{side}.weight": np.zeros((2, 2), "f4")
        for name in names
        for side in "AB"
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    found = LoraConfig(adapter=folder).resolved(model)
    assert found.target_modules == ("q_proj", "layers.1.mlp.up_proj")
    (folder / "adapter_model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(CheckpointError, match="its header is damaged"):
        LoraConfig(adapter=folder).resolved(model)
