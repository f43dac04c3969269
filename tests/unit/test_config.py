"""`LlmTrainingConfig`: the same as the native one, strict, and kept whole by every file format."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from abi_train import _native
from abi_train.config import TRL_ALIASES, LlmTrainingConfig, Rule
from abi_train.errors import ConfigError

CHANGED = LlmTrainingConfig(
    epochs=3,
    learning_rate=1e-5,
    seed=2**64 - 1,
    lr_schedule="cosine_warm_restarts",
    checkpoint_path="runs/ä b",
    shuffle=False,
    max_steps=7,
    min_learning_rate=0.0,
)


def native_fields() -> dict[str, Any]:
    return dict(_native.config_schema()["properties"])


def test_fields_and_defaults_are_the_native_ones() -> None:
    native = _native.config_validate("{}")
    assert list(native) == [item.name for item in dataclasses.fields(LlmTrainingConfig)]
    assert native == LlmTrainingConfig().to_dict()


@pytest.mark.parametrize("name", [item.name for item in dataclasses.fields(LlmTrainingConfig)])
def test_a_rule_is_the_native_one(name: str) -> None:
    field = {item.name: item for item in dataclasses.fields(LlmTrainingConfig)}[name]
    rule: Rule = field.metadata["rule"]
    native = native_fields()[name]
    assert native.get("exclusiveMinimum") == rule.exclusive_minimum
    assert native.get("exclusiveMaximum") == rule.exclusive_maximum
    assert (native.get("minimum") or 0) == (rule.minimum or 0)
    if rule.options:
        assert native["enum"] == list(rule.options)


@pytest.mark.parametrize("ending", ["yaml", "yml", "json", "toml"])
def test_a_file_gives_back_what_was_saved(tmp_path: Path, ending: str) -> None:
    path = CHANGED.save(tmp_path / f"config.{ending}")
    assert LlmTrainingConfig.load(path) == CHANGED


@pytest.mark.parametrize("text", ["learning_rate: 1e-5", "learning_rate: 0.00001"])
def test_yaml_numbers_with_an_exponent_are_numbers(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    assert LlmTrainingConfig.load(path).learning_rate == 1e-5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"epochs": True}, "epochs is true"),
        ({"epochs": 1.5}, "epochs is 1.5"),
        ({"batch_size": 2**32}, "batch_size is 4294967296"),
        ({"seed": -1}, "seed is -1"),
        ({"learning_rate": 0}, "learning_rate is 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"max_grad_norm": float("inf")}, "max_grad_norm is inf"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"beta2": 1}, "beta2 is 1"),
        ({"optimizer": "adamv"}, "did you mean adam"),
        ({"lr_schedule": "linear"}, 'lr_schedule is "linear"'),
        ({"learning_rate": 1e-8}, "min_learning_rate is 1e-07; it must not exceed learning_rate"),
        ({"warmup_steps": 50, "decay_steps": 50}, "it must exceed warmup_steps (50)"),
        ({"packing": "best"}, 'packing is "best"; it must be one of none, bfd, bfd_split, wrapped'),
        ({"packing": 1}, "packing is 1; it must be one of none, bfd, bfd_split"),
        ({"enable_wandb": True}, "it needs log_dir"),
        ({"checkpoint_path": ""}, "checkpoint_path is"),
        ({"export_name": None}, "export_name is null"),
        ({"batch_size": 2**20, "max_seq_len": 2**20}, "tokens"),
    ],
)
def test_a_broken_rule_names_field_value_and_rule(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LlmTrainingConfig.from_dict(values)
    assert message in str(caught.value)
    if all(value == value and value not in (float("inf"),) for value in values.values()):
        with pytest.raises(ConfigError):
            _native.config_validate(json.dumps(values))


def test_trl_names_are_understood() -> None:
    config = LlmTrainingConfig.from_dict(
        {
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 16,
            "num_train_epochs": 1,
            "lr_scheduler_type": "cosine",
            "optim": "adamw_torch_fused",
            "max_length": 64,
        }
    )
    assert (config.batch_size, config.grad_accum_steps, config.epochs) == (2, 16, 1)
    assert (config.lr_schedule, config.optimizer) == ("cosine", "adamw")
    assert (config.decay_steps, config.min_learning_rate) == (0, 0.0)


def test_the_other_names_of_a_setting_are_the_native_ones() -> None:
    native = {
        alias: name
        for name, entry in native_fields().items()
        for alias in entry.get("x-aliases", [])
    }
    assert dict(TRL_ALIASES) == native


@pytest.mark.parametrize(
    "values",
    [
        {"lr_scheduler_type": "constant", "warmup_steps": 5},
        {"lr_scheduler_type": "cosine"},
        {"lr_scheduler_type": "cosine", "warmup_steps": 0},
        {"lr_scheduler_type": "cosine", "decay_steps": 50, "min_lr": 1e-6},
        {"packing": True},
        {"packing": False},
        {"packing": "bfd"},
        {"packing": "bfd_split"},
        {"packing": "wrapped"},
        {"optimizer": "adamw_torch"},
        {"optim": "adamw_torch_fused"},
        {"epochs": 3.0, "seed": 1e3},
        {"bf16": True, "gradient_checkpointing": True},
    ],
)
def test_python_and_zig_read_the_same_settings(values: dict[str, Any]) -> None:
    assert LlmTrainingConfig.from_dict(values).to_dict() == _native.config_validate(
        json.dumps(values)
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr_scheduler_type": "cosine", "warmup_steps": 5}, "learning rate 0"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "write lr_schedule with one of"),
        ({"lr_scheduler_type": "linear"}, "write lr_schedule with one of"),
        ({"lr_scheduler_type": "warmup_cosine"}, "write lr_schedule with one of"),
        ({"lr_scheduler_type": 3}, "lr_scheduler_type is 3"),
        ({"lr_scheduler_type": "cosine", "lr_schedule": "cosine"}, "the same setting"),
        ({"epochs": 1e300}, "epochs is"),
    ],
)
def test_what_means_something_else_in_trl_is_refused_by_both(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        LlmTrainingConfig.from_dict(values)
    assert message in str(caught.value)
    with pytest.raises(ConfigError):
        _native.config_validate(json.dumps(values))


def test_every_alias_leads_to_a_field() -> None:
    names = {item.name for item in dataclasses.fields(LlmTrainingConfig)}
    assert set(TRL_ALIASES.values()) <= names
    assert not set(TRL_ALIASES) & names


@pytest.mark.parametrize(
    ("key", "hint"),
    [("epoch", "epochs"), ("lerning_rate", "learning_rate"), ("save_step", "save_steps")],
)
def test_an_unknown_key_brings_a_suggestion(key: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean '{hint}'"):
        LlmTrainingConfig.from_dict({key: 1})


def test_one_setting_under_two_names_is_refused() -> None:
    with pytest.raises(ConfigError, match="given twice"):
        LlmTrainingConfig.from_dict({"epochs": 1, "num_train_epochs": 1})


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.yaml", "- 1"), ("a.yaml", "a: ["), ("a.json", "{"), ("a.toml", "= 1"), ("a.txt", "")],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError, match=name):
        LlmTrainingConfig.load(path)


def test_saving_leaves_no_other_file(tmp_path: Path) -> None:
    LlmTrainingConfig().save(tmp_path / "c.toml")
    assert [path.name for path in tmp_path.iterdir()] == ["c.toml"]
