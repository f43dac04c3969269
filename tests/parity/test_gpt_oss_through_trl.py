"""A tiny gpt-oss on the TRL engine: adapters on attention and experts, no loss of the router."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pair_files import random_pairs, write_pairs
from safetensors import safe_open
from tiny_models import llama3_tokenizer
from token_files import write_rows

from abi_train import engines
from abi_train.adapters import LoraConfig
from abi_train.config import LlmTrainingConfig
from abi_train.data.rows import TokenRows
from abi_train.errors import AbiTrainError, ConfigError
from abi_train.runspec import RunSpec

VOCAB = 300
CONFIG = LlmTrainingConfig(
    batch_size=2,
    grad_accum_steps=2,
    max_seq_len=32,
    max_steps=4,
    learning_rate=1e-3,
    warmup_steps=1,
    threads=1,
    shuffle=False,
    early_stopping=False,
    checkpoint_interval=2,
)
EXPERTS = LoraConfig(r=2, target_parameters=("mlp.experts.gate_up_proj", "mlp.experts.down_proj"))


@pytest.fixture
def made(tmp_path: Path) -> Path:
    from transformers import GptOssConfig, GptOssForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        config = GptOssConfig(
            vocab_size=400,
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            num_local_experts=4,
            num_experts_per_tok=2,
            sliding_window=16,
            max_position_embeddings=256,
            router_aux_loss_coef=0.9,  # as published, and as TRL would take it
            output_router_logits=True,
        )
        GptOssForCausalLM(config).save_pretrained(tmp_path / "model")
    llama3_tokenizer().save_pretrained(tmp_path / "model")
    write_rows(tmp_path / "train.bin", [5, 9, 40, 17, 33, 8, 21, 12], vocab=VOCAB)
    write_pairs(tmp_path / "pairs.bin", random_pairs(8, vocab=VOCAB))
    return tmp_path


def spec_of(made: Path, name: str, **values: Any) -> RunSpec:
    data = "pairs.bin" if values.get("objective") == "dpo" else "train.bin"
    values = {"engine": "trl", "precision": "float32", "config": CONFIG, **values}
    return RunSpec(model=made / "model", data=made / data, run_dir=made / name, **values)


@pytest.mark.parametrize(
    "values",
    [
        {"method": "lora"},
        {"method": "lora", "lora": EXPERTS},
        {"method": "lora", "objective": "dpo"},
    ],
)
def test_adapters_are_trained_and_resumed_to_the_bit(made: Path, values: dict[str, Any]) -> None:
    spec = spec_of(made, "whole", **values)
    whole = engines.run(spec)
    assert whole.total_steps == 4
    part = str(made / "whole" / "checkpoint-2")
    resumed = engines.run(spec.replace(run_dir=made / "on", resume=part))
    assert [r.loss for r in resumed.history] == [r.loss for r in whole.history[2:]]
    with safe_open(made / "on" / "checkpoint-4" / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
    experts = [name for name in names if ".experts." in name]
    assert bool(experts) == (values.get("lora") is EXPERTS)


def test_the_loss_is_that_of_the_tokens_alone(made: Path) -> None:
    from transformers import GptOssForCausalLM

    first = engines.run(spec_of(made, "run", method="lora")).history[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = GptOssForCausalLM.from_pretrained(made / "model", attn_implementation="eager")
    rows = TokenRows.open(made / "train.bin", batch_size=2, max_seq_len=32)
    total, count = 0.0, 0
    for number in range(4):
        row = rows[number]
        with torch.no_grad():
            ids = torch.tensor([row["input_ids"]])
            logits = model(input_ids=ids, output_router_logits=False).logits[0, :-1]
        labels = torch.tensor(row["labels"][1:])
        total += float(F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
        count += int((labels != -100).sum())
    assert first.loss == pytest.approx(total / count, abs=2e-6)


def test_names_that_it_does_not_have_are_refused_with_those_it_has(made: Path) -> None:
    lora = LoraConfig(target_modules=("q_proj", "gate_proj"))
    with pytest.raises(ConfigError, match=r"no gate_proj: its experts .*target_parameters"):
        engines.run(spec_of(made, "run", method="lora", lora=lora))
    with pytest.raises(ConfigError, match="must be 0"):
        dataclasses.replace(EXPERTS, lora_dropout=0.1)
    spec = spec_of(made, "run", method="lora", lora=EXPERTS, engine="native")
    with pytest.raises(AbiTrainError, match="use engine trl"):
        engines.run(spec)
