"""gpt-oss on the native engine against transformers, PEFT and TRL: logits, gradients, updates."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from token_files import write_rows, write_stream
from transformers import GptOssForCausalLM

from abi_train import Model, engines
from abi_train.adapters import LoraConfig, merge_adapter
from abi_train.check.crosscheck import crosscheck
from abi_train.config import LlmTrainingConfig
from abi_train.errors import AbiTrainError
from abi_train.runspec import RunSpec
from abi_train.sample.tiny import TinyShape, make_gpt_oss

VOCAB = 2021
LENGTHS = [5, 9, 40, 17, 2, 33, 8, 21, 12, 30, 6, 7, 11]
CONFIG = LlmTrainingConfig(
    epochs=20,
    batch_size=2,
    grad_accum_steps=3,
    max_seq_len=32,
    learning_rate=2e-4,
    warmup_steps=5,
    decay_steps=0,
    weight_decay=0.1,
    max_grad_norm=0.5,
    threads=1,
    early_stopping=False,
)
TWO = TinyShape(layers=2, experts=4, experts_per_token=2, window=5)
FOUR = TinyShape(layers=4, experts=8, experts_per_token=4, window=7)
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
EXPERTS = LoraConfig(
    r=2,
    lora_alpha=3.0,
    target_modules=ATTENTION,
    target_parameters=("mlp.experts.gate_up_proj", "layers.1.mlp.experts.down_proj"),
)


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def spec_of(folder: Path, shape: TinyShape, *, weights: str = "f32", **values: Any) -> RunSpec:
    model = make_gpt_oss(folder / "model", weights=weights, shape=shape)
    if values.pop("kind", "rows") == "rows":
        data = write_rows(folder / "train.bin", LENGTHS, vocab=VOCAB)
    else:
        data = write_stream(folder / "train.bin", tokens=900, vocab=VOCAB)
    given = {"config": CONFIG, **values}
    return RunSpec(model=model, data=data, run_dir=folder / "run", **given)


def ask_for_balance(folder: Path) -> None:
    """Let a model ask for its routers' loss, with the published coefficient of 0.9."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {"output_router_logits": True}
    assert config["router_aux_loss_coef"] == 0.9
    path.write_text(json.dumps(config))


def peer_of(folder: Path, dtype: torch.dtype) -> Any:
    """The model in transformers, every number in `dtype` (its norms round to float32)."""
    model = GptOssForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    model.set_experts_implementation("eager")
    return model.eval()


@pytest.mark.parametrize("shape", [TWO, FOUR])
def test_logits_are_those_of_transformers(tmp_path: Path, shape: TinyShape) -> None:
    folder = make_gpt_oss(tmp_path / "m", weights="f32", shape=shape)
    ids = (np.arange(60) * 37 % VOCAB).tolist()
    for name, tolerance in (("float32", 2e-5), ("float64", 2e-5)):
        with torch.no_grad():
            wanted = peer_of(folder, getattr(torch, name))(input_ids=torch.tensor([ids])).logits[0]
        with Model.load(folder, dtype=name) as model:
            got = model.logits(ids, threads=2)
        np.testing.assert_allclose(got, wanted.numpy(), rtol=0, atol=tolerance)
        assert float(wanted.std()) > 0.5


@pytest.mark.parametrize(
    ("shape", "values"),
    [
        (TWO, {"kind": "stream"}),
        (FOUR, {"config": dataclasses.replace(CONFIG, recompute_activations=True)}),
        (FOUR, {"method": "lora", "lora": LoraConfig(r=4, target_modules=ATTENTION)}),
        (TWO, {"method": "lora", "lora": EXPERTS}),
    ],
)
def test_both_engines_agree_for_thirty_updates(
    tmp_path: Path, shape: TinyShape, values: dict[str, Any]
) -> None:
    result = crosscheck(spec_of(tmp_path, shape, **values), steps=30)
    assert len(result.steps) == 30
    assert result.ok, result.fault


def test_a_base_in_mxfp4_trains_the_same_adapter_as_its_numbers_in_memory(tmp_path: Path) -> None:
    """Float32 and MXFP4 files of one model hold the same numbers, so every bit must agree."""
    weights = []
    for form in ("f32", "mxfp4"):
        spec = spec_of(tmp_path / form, TWO, weights=form, method="lora", lora=EXPERTS)
        probe = engines.Probe()
        engines.run(spec.replace(config=dataclasses.replace(CONFIG, max_steps=4)), probe=probe)
        weights.append(probe.weights)
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        np.testing.assert_array_equal(value, weights[1][name])
        assert np.any(value != 0)


def test_peft_opens_the_adapter_and_merging_changes_what_it_says(tmp_path: Path) -> None:
    from peft import PeftModel

    spec = spec_of(tmp_path, TWO, method="lora", lora=EXPERTS)
    config = dataclasses.replace(CONFIG, max_steps=6, learning_rate=5e-3, checkpoint_interval=6)
    result = engines.run(spec.replace(config=config))
    assert result.checkpoint is not None
    ids = (np.arange(40) * 53 % VOCAB).tolist()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", FutureWarning)
        peer = PeftModel.from_pretrained(peer_of(spec.model, torch.float32), result.checkpoint)
        wanted = peer(input_ids=torch.tensor([ids])).logits[0].numpy()
    with Model.load(spec.model, dtype="stored") as model:
        bare = model.logits(ids)
        got = model.logits(ids, adapter=result.checkpoint)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=5e-5)
    assert float(np.abs(got - bare).max()) > 1e-2
    merged = merge_adapter(spec.model, result.checkpoint, tmp_path / "merged")
    with Model.load(merged) as model:
        np.testing.assert_allclose(model.logits(ids), wanted, rtol=0, atol=5e-5)


def test_a_stopped_run_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, TWO, weights="mxfp4", method="lora", lora=EXPERTS)
    ends = []
    for name, steps in (("whole", (6,)), ("parts", (3, 6))):
        for last in steps:
            config = dataclasses.replace(
                CONFIG, max_steps=last, checkpoint_interval=3, lr_schedule="constant"
            )
            run = spec.replace(config=config, run_dir=tmp_path / name)
            if last != steps[0]:
                run = run.replace(resume="latest")
            result = engines.run(run)
        assert result.checkpoint is not None
        ends.append(load_file(result.checkpoint / "adapter_model.safetensors"))
    assert ends[0].keys() == ends[1].keys()
    for key, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][key]), key


@pytest.mark.parametrize(
    ("shape", "values"),
    [
        (FOUR, {"method": "full", "config": {"recompute_activations": True}}),
        (TWO, {"method": "full", "kind": "stream", "config": {"label_smoothing": 0.1}}),
        (TWO, {"method": "full", "config": {"packing": "bfd"}}),
        (TWO, {"weights": "mxfp4", "method": "lora", "lora": EXPERTS}),
        (FOUR, {"method": "lora", "lora": LoraConfig(r=4, target_modules=("k_proj",))}),
    ],
)
def test_both_engines_add_the_same_loss_of_routers_where_the_model_asks_for_it(
    tmp_path: Path, shape: TinyShape, values: dict[str, Any]
) -> None:
    """Rows and micro-batches of unequal length; the last update of an epoch is short."""
    config = dataclasses.replace(CONFIG, grad_accum_steps=2, **values.pop("config", {}))
    spec = spec_of(tmp_path, shape, config=config, **values)
    plain = engines.run(spec.replace(config=dataclasses.replace(config, max_steps=1))).history[0]
    ask_for_balance(spec.model)
    result = crosscheck(spec, steps=6)
    assert result.ok, result.fault
    assert len(result.steps) == 6
    added = result.steps[0].loss[0] - plain.loss
    assert 0.9 * shape.experts_per_token * 0.9 < added < 0.9 * shape.experts_per_token * 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_experts_per_tok": 5, "experts_per_token": 5}, "num_experts_per_tok is 5"),
        ({"num_local_experts": 3}, "has shape"),
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"intermediate_size": 32}, "has shape"),
    ],
)
def test_a_configuration_that_does_not_fit_its_weights_is_refused(
    tmp_path: Path, change: dict[str, int], words: str
) -> None:
    folder = make_gpt_oss(tmp_path / "m", shape=TWO)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    for dtype in ("float32", "stored"):
        with pytest.raises(AbiTrainError, match=words):
            Model.load(folder, dtype=dtype)


def test_a_saved_model_opens_in_transformers_and_comes_back(tmp_path: Path) -> None:
    ids = (np.arange(40) * 53 % VOCAB).tolist()
    folder = make_gpt_oss(tmp_path / "m", shape=TWO)
    with Model.load(folder) as model:  # out of MXFP4
        logits = model.logits(ids)
        model.save(tmp_path / "saved")
    with torch.no_grad():
        wanted = peer_of(tmp_path / "saved", torch.float32)(input_ids=torch.tensor([ids])).logits[0]
    np.testing.assert_allclose(logits, wanted.numpy(), rtol=0, atol=2e-5)
    with Model.load(tmp_path / "saved") as model:
        np.testing.assert_array_equal(model.logits(ids), logits)
