"""LoRA and DPO: the engines against each other, and the TRL engine against plain PyTorch."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import reference_adapters as naive
import torch
from pair_files import random_pairs, write_pairs
from tiny_models import make_tiny_model
from token_files import write_rows

from abi_train import engines
from abi_train.adapters import TARGETS, LoraConfig
from abi_train.config import LlmTrainingConfig
from abi_train.data.rows import PreferenceRows, TokenRows
from abi_train.preference import LOSS_TYPES, DpoConfig
from abi_train.runspec import RunSpec

VOCAB = 300
LENGTHS = [5, 9, 40, 17, 2, 33, 8, 21, 12, 30, 6, 7, 11]
CONFIG = LlmTrainingConfig(
    epochs=20,
    batch_size=2,
    grad_accum_steps=3,
    max_seq_len=32,
    learning_rate=2e-3,
    warmup_steps=5,
    decay_steps=0,
    weight_decay=0.1,
    max_grad_norm=0.5,
    threads=1,
    early_stopping=False,
)
EVERYTHING = LoraConfig(
    r=4,
    lora_alpha=6,
    target_modules=TARGETS,
    use_rslora=True,
    rank_pattern={"layers.1.self_attn.q_proj": 2, "lm_head": 3},
    alpha_pattern={"down_proj": 5, "embed_tokens": 2},
)


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    make_tiny_model(tmp_path / "model", "llama_gqa_untied")
    write_rows(tmp_path / "train.bin", LENGTHS, vocab=VOCAB)
    write_pairs(tmp_path / "pairs.bin", random_pairs(9, vocab=VOCAB))
    return tmp_path


def random_adapter(folder: Path, model: Path, lora: LoraConfig, *, seed: int = 0) -> Path:
    """A PEFT folder, written by PEFT, whose A and B are both random."""
    import peft
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        target_modules=list(lora.target_modules),
        use_rslora=lora.use_rslora,
        rank_pattern=dict(lora.rank_pattern),
        alpha_pattern=dict(lora.alpha_pattern),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(base, config)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draw))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def spec_of(made: Path, engine: str, name: str, **values: Any) -> RunSpec:
    pairs = values.get("objective") == "dpo"
    values = {"precision": "float32", "config": CONFIG, **values}
    return RunSpec(
        model=made / "model",
        data=made / ("pairs.bin" if pairs else "train.bin"),
        run_dir=made / name,
        engine=engine,
        **values,
    )


def rates_of(config: LlmTrainingConfig, total: int) -> list[float]:
    return [reference.learning_rate(config, step, total) for step in range(total)]


def assert_same_training(probe: engines.Probe, result: Any, wanted: dict[str, Any]) -> None:
    losses = [record.loss for record in result.history]
    norms = [record.grad_norm for record in result.history]
    np.testing.assert_allclose(losses, wanted["loss"], rtol=0, atol=1e-11)
    np.testing.assert_allclose(norms, wanted["grad_norm"], rtol=1e-10)
    assert set(probe.gradients) == set(wanted["gradients"])
    for name, value in wanted["gradients"].items():
        assert reference.relative_l2(probe.gradients[name], value) < 1e-10, name
    for name, value in wanted["weights"].items():
        np.testing.assert_allclose(probe.weights[name], value, rtol=0, atol=1e-9, err_msg=name)


def test_lora_through_peft_is_a_plain_pytorch_loop(made: Path) -> None:
    folder = random_adapter(made / "adapter", made / "model", EVERYTHING)
    config = dataclasses.replace(CONFIG, epochs=3)
    spec = spec_of(
        made,
        "trl",
        "run",
        method="lora",
        lora=LoraConfig(adapter=folder),
        config=config,
        precision="float64",
    )
    probe = engines.Probe()
    result = engines.run(spec, probe=probe)
    rows = TokenRows.open(made / "train.bin", batch_size=2, max_seq_len=32)
    pairs = [(rows[at]["input_ids"], rows[at]["labels"]) for at in range(len(rows))]
    adapted = naive.Adapted(made / "model", EVERYTHING, folder)
    wanted = naive.train(
        adapted,
        lambda epoch: rows.batches(
            np.array(reference.epoch_order(rows.order_count, config.seed, epoch))
        ),
        rates_of(config, result.total_steps),
        config,
        naive.sft_loss(adapted, pairs),
    )
    assert_same_training(probe, result, wanted)


@pytest.mark.parametrize("loss", [*LOSS_TYPES, "mix"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_dpo_through_trl_is_a_plain_pytorch_loop(made: Path, method: str, loss: str) -> None:
    dpo = DpoConfig(
        beta=0.2,
        loss_type=("sigmoid", "sft") if loss == "mix" else (loss,),
        loss_weights=(1.0, 0.3) if loss == "mix" else None,
        label_smoothing=0.1 if loss == "robust" else 0.0,
    )
    folder, lora = None, None
    if method == "lora":
        folder = random_adapter(made / "adapter", made / "model", EVERYTHING)
        lora = LoraConfig(adapter=folder)
    config = dataclasses.replace(CONFIG, epochs=2, learning_rate=2e-4)
    spec = spec_of(
        made,
        "trl",
        "run",
        method=method,
        objective="dpo",
        lora=lora,
        dpo=dpo,
        config=config,
        precision="float64",
    )
    probe = engines.Probe()
    result = engines.run(spec, probe=probe)
    rows = PreferenceRows.open(made / "pairs.bin", batch_size=2, max_seq_len=32)
    pairs = []
    for at in range(len(rows)):
        row = rows[at]
        room = 32 - len(row["prompt_ids"])
        answers = [row[key][:room] for key in ("chosen_ids", "rejected_ids")]
        pairs.append((row["prompt_ids"], *answers))
    adapted = naive.Adapted(made / "model", EVERYTHING if folder else None, folder)
    start = {name: value.detach().clone() for name, value in adapted.values.items()}
    seen: list[dict[str, float]] = []
    wanted = naive.train(
        adapted,
        lambda epoch: rows.batches(
            np.array(reference.epoch_order(rows.order_count, config.seed, epoch))
        ),
        [
            reference.learning_rate(config, step, result.total_steps)
            for step in range(result.total_steps)
        ],
        config,
        naive.dpo_loss(adapted, pairs, dpo, lambda ids: adapted.log_probs(start, ids)[0], seen),
    )
    assert_same_training(probe, result, wanted)
    margins = [record.metrics["rewards/margins"] for record in result.history]
    np.testing.assert_allclose(margins, [row["margins"] for row in seen], rtol=0, atol=1e-11)
