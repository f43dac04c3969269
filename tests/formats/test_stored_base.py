"""An adapter over a base that stays in its file: the same bits as over the base in memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import make_tiny_model
from token_files import write_rows

from abi_train import LlmTrainingConfig, Model, TokenizedDataset, Trainer, _native
from abi_train.adapters import LoraConfig
from abi_train.errors import AbiTrainError
from abi_train.trainer import StepEvent

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def train(path: Path, dtype: str, data: Path, *, bf16: bool = False) -> tuple[list[float], Any]:
    """Losses of three updates and the adapter after them."""
    config = LlmTrainingConfig(
        batch_size=2,
        max_seq_len=24,
        max_steps=3,
        grad_accum_steps=1,
        learning_rate=1e-2,
        mixed_precision=bf16,
    )
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS)
    with (
        Model.load(path, dtype=dtype) as model,
        TokenizedDataset.load(data) as rows,
        Trainer(config, model, rows, lora=lora) as trainer,
    ):
        losses = [event.loss for event in trainer if isinstance(event, StepEvent)]
        return losses, trainer.weights.copy()


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("kind", ["folder", "f16", "bf16", "q8_0", "q4_k", "q6_k", "mxfp4"])
def test_a_run_over_the_file_has_the_bits_of_one_in_memory(
    kind: str, bf16: bool, tmp_path: Path
) -> None:
    path = make_tiny_model(
        tmp_path / "base", "llama_gqa_untied", hidden_size=256, intermediate_size=512
    )
    data = write_rows(tmp_path / "rows.bin", [20, 9, 24, 17], vocab=300)
    if kind != "folder":
        _native.export.gguf(path, tmp_path / "base.gguf", dtype=kind)
        path = tmp_path / "base.gguf"
    losses, adapter = train(path, "float32", data, bf16=bf16)
    stored_losses, stored_adapter = train(path, "stored", data, bf16=bf16)
    assert len(set(losses)) == 3
    assert stored_losses == losses
    assert np.array_equal(stored_adapter, adapter)


def test_what_needs_numbers_in_memory_is_refused(tmp_path: Path) -> None:
    path = make_tiny_model(tmp_path / "base", "qwen2")
    data = write_rows(tmp_path / "rows.bin", [20, 9], vocab=300)
    with Model.load(path, dtype="stored") as model, TokenizedDataset.load(data) as rows:
        with pytest.raises(AbiTrainError, match="stay in their file"):
            _ = model.weights
        config = LlmTrainingConfig(batch_size=1, max_seq_len=16, max_steps=1)
        with pytest.raises(AbiTrainError, match="cannot be trained"):
            Trainer(config, model, rows)
    with pytest.raises(AbiTrainError):
        Model.random(path / "config.json", seed=1, dtype="stored")


MEMORY = """
import sys
from abi_train import Model

def megabytes(name):
    for line in open("/proc/self/status"):
        if line.startswith(name):
            return int(line.split()[1]) / 1024

before = megabytes("VmHWM")
model = Model.load(sys.argv[1], dtype=sys.argv[2])
print(megabytes("VmHWM") - before, megabytes("RssAnon"))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_opening_takes_the_files_pages_and_no_more(tmp_path: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 4096,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    }
    with Model.random(config, seed=1) as model:
        model.save(tmp_path / "base")
    path = tmp_path / "base.gguf"
    _native.export.gguf(tmp_path / "base", path, dtype="q8_0", without_tokenizer=True)
    size = path.stat().st_size / 2**20
    grown = {}
    for dtype in ("stored", "float32"):
        command = [sys.executable, "-c", MEMORY, str(path), dtype]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        grown[dtype] = float(done.stdout.split()[0])
    assert grown["stored"] < 1.1 * size + 3
    assert grown["float32"] > 3.5 * size
