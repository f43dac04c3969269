"""Adapters as GGUF: llama.cpp with base and adapter computes what PEFT computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from llama_peer import ask
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import make_tiny_model
from token_files import write_rows
from transformers import AutoModelForCausalLM

from abi_train import (
    Generator,
    LlmTrainingConfig,
    _native,
    engines,
    export_adapter_gguf,
    export_gguf,
)
from abi_train.adapters import LoraConfig as OurLoraConfig
from abi_train.adapters import merge_adapter
from abi_train.errors import CheckpointError, ConfigError, FormatError, MissingFileError
from abi_train.runspec import RunSpec

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers. to .True.:UserWarning"),
]

LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PROMPTS = [[5, 9, 200, 31, 7, 7, 120, 64], [17], [80, 81, 82], [250, 3, 11, 99], [42, 42, 6]]


def make_adapter(base: Path, folder: Path, **settings: Any) -> Path:
    """An adapter whose B is not zero, saved by PEFT."""
    torch.manual_seed(4)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(task_type="CAUSAL_LM", **settings)
    adapted = get_peft_model(model, config)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.15)
    adapted.save_pretrained(str(folder))
    return folder


def logprobs_by_peft(base: Path, adapter: Path) -> list[Any]:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(model, str(adapter)).eval()
    with torch.no_grad():
        logits = [adapted(torch.tensor([ids])).logits[0, -1].double() for ids in PROMPTS]
    return [torch.log_softmax(x, dim=-1).numpy() for x in logits]


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama_gqa_untied", {"r": 4, "lora_alpha": 8, "target_modules": LAYERS}),
    "head-and-embedding": (
        "llama_gqa_untied",
        {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    ),
    "rslora": (
        "qwen3",
        {"r": 4, "lora_alpha": 3, "target_modules": LAYERS, "use_rslora": True},
    ),
    "patterns": (
        "llama_tied",
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": LAYERS,
            "rank_pattern": {"v_proj": 2, "layers.0.self_attn.q_proj": 3},
            "alpha_pattern": {"k_proj": 5, "mlp.down_proj": 12},
            "use_rslora": True,
        },
    ),
    "qwen2": ("qwen2", {"r": 2, "lora_alpha": 2, "target_modules": LAYERS}),
    "mistral": ("mistral", {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}),
}


@pytest.mark.parametrize("case", list(CASES))
def test_base_and_adapter_in_llama_cpp_give_pefts_logits(case: str, tmp_path: Path) -> None:
    shape, settings = CASES[case]
    base = make_tiny_model(tmp_path / "base", shape)
    adapter = make_adapter(base, tmp_path / "adapter", **settings)
    _native.export.gguf(base, tmp_path / "base.gguf", dtype="f32")
    report = export_adapter_gguf(adapter, tmp_path / "adapter.gguf")
    assert report.size_bytes == (tmp_path / "adapter.gguf").stat().st_size
    vocab_size = json.loads((base / "config.json").read_text())["vocab_size"]
    questions = [{"kind": "logprobs", "ids": ids, "vocab_size": vocab_size} for ids in PROMPTS]
    want = logprobs_by_peft(base, adapter)
    plain = ask(tmp_path / "base.gguf", questions)
    got = ask(tmp_path / "base.gguf", questions, adapter=tmp_path / "adapter.gguf")
    # Where the likeliest token ends the text, llama.cpp tells no probabilities.
    compared = [(w, p, g) for w, p, g in zip(want, plain, got, strict=True) if p and g]
    assert len(compared) >= 2
    for expected, without, found in compared:
        assert np.abs(np.array(without) - expected).max() > 0.05, "the adapter must matter"
        assert np.abs(np.array(found) - expected).max() < 2e-4


def test_an_adapter_is_no_model_and_the_words_say_what_to_do(tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base", "llama_gqa_untied")
    adapter = make_adapter(base, tmp_path / "adapter", r=2, lora_alpha=2, target_modules=["q_proj"])
    (adapter / "config.json").write_bytes((base / "config.json").read_bytes())
    with pytest.raises(ConfigError, match=r"an adapter, not a model.*--adapter.*--gguf TYPE"):
        export_gguf(adapter, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


def test_the_gguf_package_reads_what_peft_wrote(tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base", "qwen2")
    adapter = make_adapter(base, tmp_path / "adapter", r=3, lora_alpha=6, target_modules=LAYERS)
    report = export_adapter_gguf(adapter, tmp_path / "a.gguf", dtype="bf16", name="tiny")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    assert len(reader.tensors) == report.tensors == 2 * 2 * len(LAYERS)
    fields = {
        name: reader.get_field(name).contents()  # type: ignore[union-attr]
        for name in ("general.type", "general.architecture", "general.name", "adapter.type")
    }
    assert list(fields.values()) == ["adapter", "qwen2", "tiny", "lora"]
    alpha = reader.get_field("adapter.lora.alpha")
    assert alpha is not None and alpha.contents() == 6.0
    saved = load_file(adapter / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
    found = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    want = saved[name].bfloat16().float().numpy()
    assert np.array_equal(found["blk.1.ffn_down.weight.lora_b"], want)


def a_run(folder: Path, shape: str, **lora: Any) -> RunSpec:
    """A short native run that leaves the adapter as GGUF."""
    base = make_tiny_model(folder / "base", shape)
    return RunSpec(
        model=base,
        data=write_rows(folder / "rows.bin", [20, 9, 24, 17], vocab=300),
        run_dir=folder / "run",
        method="lora",
        lora=OurLoraConfig(r=4, export_gguf_path=folder / "out" / "adapter.gguf", **lora),
        config=LlmTrainingConfig(
            batch_size=2, max_seq_len=24, max_steps=4, grad_accum_steps=1, learning_rate=0.2
        ),
    )


def test_a_run_leaves_its_adapter_as_gguf_and_llama_cpp_agrees_with_the_merged_model(
    tmp_path: Path,
) -> None:
    spec = a_run(tmp_path, "llama_gqa_untied", target_modules=LAYERS)
    result = engines.run(spec)
    assert result.model_folder is not None
    merged = merge_adapter(spec.model, result.model_folder, tmp_path / "merged")
    for folder, name in ((spec.model, "base.gguf"), (merged, "merged.gguf")):
        _native.export.gguf(folder, tmp_path / name, dtype="f32")
    again = export_adapter_gguf(spec.run_dir, tmp_path / "again.gguf")
    assert again.path.read_bytes() == (tmp_path / "out" / "adapter.gguf").read_bytes()
    vocab_size = json.loads((spec.model / "config.json").read_text())["vocab_size"]
    questions = [{"kind": "logprobs", "ids": ids, "vocab_size": vocab_size} for ids in PROMPTS]
    got = ask(tmp_path / "base.gguf", questions, adapter=again.path)
    with Generator.open(tmp_path / "merged.gguf") as merged_model:
        logits = [np.asarray(merged_model.logits(ids), dtype=np.float64) for ids in PROMPTS]
    compared = [(x, found) for x, found in zip(logits, got, strict=True) if found]
    assert len(compared) >= 2
    for x, found in compared:
        want = x - x.max() - np.log(np.exp(x - x.max()).sum())
        assert np.abs(np.array(found) - want).max() < 2e-4


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_targets_a_gguf_cannot_say_are_refused_before_the_first_update(
    target: str, tmp_path: Path
) -> None:
    spec = a_run(tmp_path, "llama_tied", target_modules=["q_proj", target])
    with pytest.raises(ConfigError, match=f"lora.target_modules is .*{target}.*llama.cpp"):
        engines.run(spec)
    assert not spec.run_dir.exists()


def test_what_llama_cpp_cannot_apply_is_refused_with_the_reason(tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base", "llama_tied")
    out = tmp_path / "a.gguf"
    refused: list[tuple[dict[str, Any], str]] = [
        ({"target_modules": ["lm_head"]}, "no output.weight"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens of a model whose head"),
        ({"target_modules": ["q_proj"], "use_dora": True}, "use_dora"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "modules_to_save"),
    ]
    for i, (settings, words) in enumerate(refused):
        adapter = make_adapter(base, tmp_path / f"adapter-{i}", r=2, lora_alpha=2, **settings)
        with pytest.raises((CheckpointError, FormatError), match=words):
            export_adapter_gguf(adapter, out)
    adapter = make_adapter(base, tmp_path / "sound", r=2, lora_alpha=2, target_modules=["q_proj"])
    with pytest.raises(FormatError, match=r"no adapter_config\.json"):
        export_adapter_gguf(base, out)
    with pytest.raises(MissingFileError):
        export_adapter_gguf(tmp_path / "nowhere", out)
    tensors = load_file(adapter / "adapter_model.safetensors")
    first = next(iter(tensors))
    tensors[first] = tensors[first][:1].contiguous()
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(FormatError, match="another base"):
        export_adapter_gguf(adapter, out)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["newest_idea"] = 1
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="newest_idea"):
        export_adapter_gguf(adapter, out, model=base)
    assert not out.exists()
