"""A tiny gpt-oss on the TRL engine: adapters on attention and experts, no loss of the router."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pair_files import random_pairs, write_pairs
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from token_files import write_rows
from transformers import GptOssForCausalLM, Mxfp4Config

from abi_train import engines
from abi_train.adapters import LoraConfig
from abi_train.check.crosscheck import crosscheck
from abi_train.config import LlmTrainingConfig
from abi_train.data.rows import TokenRows
from abi_train.engines.trl.model import attention_kind, load_model
from abi_train.engines.trl.runner import TorchRunner
from abi_train.errors import AbiTrainError, ConfigError
from abi_train.evaluate.opening import opened
from abi_train.runspec import RunSpec
from abi_train.sample.tiny import expand, make_gpt_oss

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
    """The model in MXFP4, as gpt-oss is published."""
    folder = make_gpt_oss(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    assert config["router_aux_loss_coef"] == 0.9  # as published, and as TRL would take it
    assert "torch_dtype" not in config
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
        {"method": "full"},
        {"method": "lora"},
        {"method": "lora", "lora": EXPERTS},
        {"method": "lora", "objective": "dpo"},
    ],
    ids=["full", "attention", "experts", "pairs"],
)
def test_it_is_trained_and_resumed_to_the_bit(made: Path, values: dict[str, Any]) -> None:
    spec = spec_of(made, "whole", **values)
    whole = engines.run(spec)
    assert whole.total_steps == 4
    part = str(made / "whole" / "checkpoint-2")
    resumed = engines.run(spec.replace(run_dir=made / "on", resume=part))
    assert [r.loss for r in resumed.history] == [r.loss for r in whole.history[2:]]
    checkpoint = made / "on" / "checkpoint-4"
    if values["method"] == "full":
        _is_a_model_of_its_own(checkpoint, made / "model")
        return
    with safe_open(checkpoint / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
    experts = [name for name in names if ".experts." in name]
    assert bool(experts) == (values.get("lora") is EXPERTS)


def _is_a_model_of_its_own(checkpoint: Path, start: Path) -> None:
    """With experts spelled out, no word of MXFP4, and all of the start's other settings."""
    config, before = (json.loads((f / "config.json").read_text()) for f in (checkpoint, start))
    assert "quantization_config" not in config
    for key in ("swiglu_limit", "router_aux_loss_coef", "layer_types", "num_local_experts"):
        assert config[key] == before[key], key
    assert config["rope_parameters"]["truncate"] is False
    model, told = GptOssForCausalLM.from_pretrained(
        checkpoint, attn_implementation="eager", output_loading_info=True
    )
    assert not any(told.values()), told
    experts = model.model.layers[1].mlp.experts
    assert experts.gate_up_proj.dtype == torch.float32
    tensors = load_file(start / "model.safetensors")
    name = "model.layers.1.mlp.experts.gate_up_proj"
    blocks, scales = (tensors[f"{name}_{part}"].numpy() for part in ("blocks", "scales"))
    moved = experts.gate_up_proj.detach() - torch.from_numpy(expand(blocks, scales)).mT
    assert 0 < float(moved.abs().max()) < 0.01


def test_the_loss_is_that_of_the_tokens_alone(made: Path) -> None:
    first = engines.run(spec_of(made, "run", method="lora")).history[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = GptOssForCausalLM.from_pretrained(
            made / "model",
            attn_implementation="eager",
            dtype=torch.float32,
            quantization_config=Mxfp4Config(dequantize=True),
        )
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


def test_the_loss_of_routers_is_added_where_the_model_asks_for_it(made: Path) -> None:
    """As a mean over micro-batches, times the coefficient, the same from TRL and by hand."""
    rate = dataclasses.replace(CONFIG, max_steps=1)
    plain = engines.run(spec_of(made, "plain", method="lora", config=rate)).history[0]
    file = made / "model" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"output_router_logits": True}))
    model = GptOssForCausalLM.from_pretrained(
        made / "model",
        attn_implementation="eager",
        dtype=torch.float32,
        quantization_config=Mxfp4Config(dequantize=True),
    )
    rows = TokenRows.open(made / "train.bin", batch_size=2, max_seq_len=32)
    added = 0.0
    for numbers in ((0, 1), (2, 3)):
        ids = [rows[number]["input_ids"] for number in numbers]
        width = max(map(len, ids))
        padded = torch.tensor([[*row, *[0] * (width - len(row))] for row in ids])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
        with torch.no_grad():
            added += float(model(input_ids=padded, attention_mask=mask).aux_loss) / 2
    assert 1.9 < added < 3  # of two experts in four, evenly used: 2
    for precision in ("float32", "float64"):
        spec = spec_of(made, precision, method="lora", config=rate, precision=precision)
        both = engines.run(spec).history[0]
        assert both.loss - plain.loss == pytest.approx(0.9 * added, abs=5e-6)
        assert both.grad_norm != pytest.approx(plain.grad_norm, rel=1e-3)
    result = engines.run(spec_of(made, "pairs", method="lora", objective="dpo", config=rate))
    assert result.history[0].loss > 0.9 * 1.9
    ours = engines.run(spec_of(made, "native", method="lora", config=rate, engine="native"))
    assert ours.history[0].loss == pytest.approx(both.loss, abs=5e-6)
    assert ours.history[0].grad_norm == pytest.approx(both.grad_norm, rel=5e-6)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_both_engines_add_the_loss_of_routers_to_pairs(made: Path, method: Any) -> None:
    """Also in evaluations, as TRL does it; those of texts have none."""
    file = made / "model" / "config.json"
    plain = json.loads(file.read_text())
    rate = dataclasses.replace(CONFIG, eval_interval=1, max_steps=2)
    values = {"method": method, "config": rate}
    for objective, extra in (("dpo", 0.9 * 1.9), ("sft", 0.0)):
        evaluated = []
        for name, engine in (("plain", "native"), ("ours", "native"), ("theirs", "trl")):
            file.write_text(json.dumps(plain | {"output_router_logits": name != "plain"}))
            spec = spec_of(made, objective + name, engine=engine, objective=objective, **values)
            found = engines.run(spec.replace(eval_data=spec.data)).evaluations
            assert len(found) == 2
            evaluated.append(np.array([record.loss for record in found]))
        np.testing.assert_allclose(evaluated[1], evaluated[2], rtol=0, atol=5e-6)
        more = evaluated[1] - evaluated[0]
        assert (more > extra - 0.1).all()
        assert (more < extra + 0.9).all()
    result = crosscheck(spec_of(made, "both", method=method, objective="dpo"), steps=4)
    assert result.ok, result.fault


def test_names_that_it_does_not_have_are_refused_with_those_it_has(made: Path) -> None:
    lora = LoraConfig(target_modules=("q_proj", "gate_proj"))
    with pytest.raises(ConfigError, match=r"no gate_proj: its experts .*target_parameters"):
        engines.run(spec_of(made, "run", method="lora", lora=lora))
    with pytest.raises(ConfigError, match="must be 0"):
        dataclasses.replace(EXPERTS, lora_dropout=0.1)


def test_all_linear_means_what_it_has(made: Path) -> None:
    lora = LoraConfig(r=2, target_modules="all-linear")  # type: ignore[arg-type]
    result = engines.run(spec_of(made, "run", method="lora", lora=lora))
    assert result.model_folder is not None
    with safe_open(result.model_folder / "adapter_model.safetensors", "pt") as file:
        names = {name.split(".lora_")[0].rpartition(".")[2] for name in file.keys()}  # noqa: SIM118
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj"}
    patterns = LoraConfig(r=2, target_modules=r".*\.1\..*_proj")  # type: ignore[arg-type]
    assert patterns.resolved(made / "model").target_modules == tuple(
        f"layers.1.self_attn.{name}_proj" for name in "qkvo"
    )


def test_recomputing_and_packing_change_no_loss(made: Path) -> None:
    plain = engines.run(spec_of(made, "plain", method="lora")).history
    config = dataclasses.replace(CONFIG, recompute_activations=True)
    again = engines.run(spec_of(made, "again", method="lora", config=config)).history
    assert [r.loss for r in again] == pytest.approx([r.loss for r in plain], abs=1e-6)
    assert [r.grad_norm for r in again] == pytest.approx([r.grad_norm for r in plain], rel=1e-5)
    one = {"batch_size": 8, "grad_accum_steps": 1, "max_seq_len": 64, "max_steps": 1}
    losses = [
        engines.run(
            spec_of(
                made,
                f"packed-{packing}",
                method="lora",
                config=dataclasses.replace(CONFIG, packing=packing, **one),
            )
        )
        .history[0]
        .loss
        for packing in ("none", "bfd")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=2e-6)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("num_experts_per_tok", "num_experts_per_tok is 9; it must be .*at most num_local_experts"),
        ("self_attn.sinks", "self_attn.sinks"),
        ("mlp.experts.down_proj_scales", "255"),
        ("mlp.experts.gate_up_proj_blocks", "gate_up_proj"),
    ],
)
def test_a_damaged_model_is_named_before_anything_is_trained(
    made: Path, damage: str, words: str
) -> None:
    """transformers finds some of these late, some under another name, and one not at all."""
    file, key = made / "model" / "model.safetensors", f"model.layers.1.{damage}"
    tensors = load_file(file)
    if damage == "num_experts_per_tok":
        config = made / "model" / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {damage: 9}))
    elif damage.endswith("scales"):
        tensors[key][2, 3, 1] = 255
    elif damage.endswith("blocks"):
        tensors[key] = tensors[key][:, :, :1].contiguous()
    else:
        del tensors[key]
    save_file(tensors, file, metadata={"format": "pt"})
    for method in ("full", "lora"):
        with pytest.raises(AbiTrainError, match=words):
            engines.run(spec_of(made, method, method=method))


@pytest.mark.parametrize(
    ("attention", "words"),
    [
        ("sdpa", '"sdpa"; it has no place for the attention sinks of gpt_oss'),
        ("flash_attention_2", '"flash_attention_2"; it has no place for the attention sinks'),
        ("flash_attention_3", '"flash_attention_3"; it has no place for the attention sinks'),
        ("flex_attention", '"flex_attention"; it learns on a GPU only'),
        ("paged", '"paged"; it must be one of auto, eager'),
    ],
)
def test_attention_that_would_lose_the_sinks_is_refused(
    made: Path, attention: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        engines.run(spec_of(made, "run", method="lora", attention=attention))
    assert not (made / "run").exists()


def test_which_attention_is_taken() -> None:
    def kind(wanted: str, model: str, device: str, precision: str = "bf16") -> str:
        return attention_kind(wanted, model, device=device, precision=precision, compared=False)

    assert kind("auto", "gpt_oss", "cpu") == kind("auto", "gpt_oss", "cuda") == "eager"
    assert kind("auto", "gpt_oss", "cpu", "float64") == "eager"
    assert kind("flex_attention", "gpt_oss", "cuda") == "flex_attention"
    assert kind("auto", "llama", "cpu") == kind("sdpa", "llama", "cuda") == "sdpa"
    assert kind("eager", "llama", "cpu") == "eager"
    with pytest.raises(ConfigError, match="needs precision bf16, not float32"):
        kind("flash_attention_2", "llama", "cuda", "float32")
    with pytest.raises(ConfigError, match="the package flash_attn_interface is not installed"):
        kind("flash_attention_3", "llama", "cuda")


def test_what_is_frozen_is_expanded_to_two_bytes_a_number(made: Path) -> None:
    """Published files name no type, and four bytes a number would be 84 GB of the 20 B model."""
    for frozen, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        (made / str(frozen)).mkdir()
        model = load_model(
            made / "model",
            seed=0,
            precision="bf16",
            device="cpu",
            scratch=made / str(frozen),
            frozen=frozen,
        )
        assert model.model.layers[0].mlp.experts.down_proj.dtype == dtype
        assert model.lm_head.weight.dtype == dtype
        assert model.config.use_cache is False


def test_it_is_evaluated_with_its_adapter(made: Path) -> None:
    result = engines.run(spec_of(made, "run", method="lora", lora=EXPERTS))
    ids = np.arange(40, dtype=np.uint32) % VOCAB
    found = []
    for adapter in (None, result.model_folder):
        (made / f"s{adapter is None}").mkdir()
        runner = TorchRunner(
            made / "model", adapter=adapter, scratch=made / f"s{adapter is None}", threads=1
        )
        found.append(runner.log_probs([(ids, 1)])[0][0])
        runner.close()
    assert found[0].shape == (39,)
    assert np.isfinite(found[0]).all()
    assert np.abs(found[0] - found[1]).max() > 1e-4


def test_both_engines_find_the_same_answers_as_likely(made: Path) -> None:
    result = engines.run(spec_of(made, "run", method="lora", lora=EXPERTS))
    assert result.model_folder is not None
    asked = [
        (f"row {at}", [{"role": "user", "content": f"I am late for the {at}."}], ["anxious", "No"])
        for at in range(3)
    ]
    found: dict[tuple[bool, str], Any] = {}
    for adapted, source in ((False, made / "model"), (True, result.model_folder)):
        for engine in ("native", "torch"):
            with opened(source, engine=engine, threads=1) as scorer:
                found[adapted, engine] = np.array(scorer.log_likelihoods(asked, whole=True))
        wrong = np.abs(found[adapted, "native"] - found[adapted, "torch"])
        assert wrong.max() < 2e-4
    assert np.abs(found[True, "torch"] - found[False, "torch"]).max() > 1e-3


def test_a_run_goes_on_with_the_other_engine(made: Path) -> None:
    """Experts' adapters have one form in files; weights trained whole are no longer in blocks."""
    for method, lora in (("lora", EXPERTS), ("full", None)):
        values = {"method": method, "lora": lora}
        whole = engines.run(spec_of(made, f"{method}-native", engine="native", **values))
        engines.run(spec_of(made, f"{method}-trl", **values))
        for begun, other in (("trl", "native"), ("native", "trl")):
            spec = spec_of(made, f"{method}-{begun}-{other}", engine=other, **values)
            part = str(made / f"{method}-{begun}" / "checkpoint-2")
            found = engines.run(spec.replace(resume=part)).history
            assert [r.step for r in found] == [3, 4]
            for ours, theirs in zip(found, whole.history[2:], strict=True):
                assert ours.loss == pytest.approx(theirs.loss, abs=5e-6)
