"""A GGUF file around any tokenizer folder: a random model of one small layer, exported as usual."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from abi_train.export import export_gguf
from abi_train.tokenizer import Tokenizer

WIDTH, INNER, HEADS = 32, 32, 2


def write_gguf_of(tokenizer: Path, path: Path, *, architecture: str = "llama") -> Path:
    """Writes the file and returns its path; the model stands beside it."""
    folder = path.parent / "model"
    folder.mkdir(parents=True, exist_ok=True)
    words = Tokenizer.load(tokenizer)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": architecture,
        "vocab_size": words.vocab_size,
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    rng = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) / 6).astype(np.float32)

    layer = "model.layers.0."
    tensors = {
        "model.embed_tokens.weight": matrix(words.vocab_size, WIDTH),
        "model.norm.weight": np.ones(WIDTH, np.float32),
        layer + "input_layernorm.weight": np.ones(WIDTH, np.float32),
        layer + "post_attention_layernorm.weight": np.ones(WIDTH, np.float32),
        layer + "mlp.gate_proj.weight": matrix(INNER, WIDTH),
        layer + "mlp.up_proj.weight": matrix(INNER, WIDTH),
        layer + "mlp.down_proj.weight": matrix(WIDTH, INNER),
    }
    for name in ("q", "k", "v", "o"):
        tensors[f"{layer}self_attn.{name}_proj.weight"] = matrix(WIDTH, WIDTH)
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    export_gguf(folder, path, dtype="f32", tokenizer=tokenizer)
    return path
