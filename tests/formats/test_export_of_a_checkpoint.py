"""Export trusts a checkpoint no more than training does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import abi_train
from abi_train.demo import SAMPLE
from abi_train.errors import CheckpointError

CONFIG = {
    "model_type": "llama",
    "vocab_size": 2048,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
}


def test_a_damaged_checkpoint_is_not_exported(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    np.arange(200, dtype="<u4").__mod__(32).astype("<u4").tofile(tmp_path / "data.bin")
    settings = {"max_steps": 1, "batch_size": 2, "max_seq_len": 8, "grad_accum_steps": 1}
    with (
        abi_train.Model.random(tmp_path / "config.json", seed=1) as model,
        abi_train.TokenizedDataset.load(tmp_path / "data.bin") as data,
        abi_train.Trainer(settings, model, data, run_dir=tmp_path / "run") as trainer,
    ):
        for _ in trainer:
            pass
    checkpoint = tmp_path / "run" / "checkpoint-1"
    good = tmp_path / "good.gguf"
    abi_train.export_gguf(checkpoint, good, tokenizer=SAMPLE / "tokenizer")
    weights = checkpoint / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-100] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*checksum"):
        abi_train.export_gguf(checkpoint, tmp_path / "bad.gguf", tokenizer=SAMPLE / "tokenizer")
    assert not (tmp_path / "bad.gguf").exists()
