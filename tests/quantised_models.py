"""Models for tests of quantising: every number follows from a name, by exact arithmetic.

``write_model(folder, "llama")`` writes config.json and model.safetensors. Some rows are awkward on
purpose: zeros, one constant, all of one sign, a lone large number. No tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import save_file

COMMON: dict[str, Any] = {
    "hidden_act": "silu",
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "vocab_size": 288,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}

MODELS: dict[str, dict[str, Any]] = {
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": 9,
        "tie_word_embeddings": False,
    },
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "num_hidden_layers": 8,
        "intermediate_size": 256,
        "tie_word_embeddings": False,
    },
    # Rows of 96 are no whole blocks of the K types: everything but ffn_down falls back.
    "tied": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": 8,
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "tie_word_embeddings": True,
    },
}


def numbers(name: str, shape: tuple[int, ...]) -> Any:
    """f32 numbers that depend on the name alone, on every machine and with every NumPy."""
    seed = zlib.crc32(name.encode())
    count = int(np.prod(shape))
    mixed = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(32)
    u = (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53 * 2.0 - 1.0
    kind = seed % 3
    values = (u if kind == 0 else u * u * u if kind == 1 else u * np.abs(u) * 0.01) * 0.5
    rows = values.astype(np.float32).reshape(shape)
    if len(shape) == 2 and shape[0] > 6:
        rows[1] = 0
        rows[2] = 0.37
        rows[3] = np.abs(rows[3])
        rows[4] = -np.abs(rows[4])
        rows[5] *= np.float32(1e-12)
        rows[6, ::7] *= np.float32(1000)
    return rows


def write_model(folder: Path, kind: str) -> Path:
    """Writes the folder and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**COMMON, **MODELS[kind]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"] * config["head_dim"]
    shared = config["num_key_value_heads"] * config["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        names: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
            "self_attn.q_proj.weight": (heads, hidden),
            "self_attn.k_proj.weight": (shared, hidden),
            "self_attn.v_proj.weight": (shared, hidden),
            "self_attn.o_proj.weight": (hidden, heads),
            "mlp.gate_proj.weight": (inner, hidden),
            "mlp.up_proj.weight": (inner, hidden),
            "mlp.down_proj.weight": (hidden, inner),
        }
        if kind == "qwen3":
            names["self_attn.q_norm.weight"] = (config["head_dim"],)
            names["self_attn.k_norm.weight"] = (config["head_dim"],)
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in names.items()}
    tensors = {name: numbers(name, shape) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_importance(path: Path, source: Path) -> Path:
    """An importance matrix for a GGUF's layers in llama.cpp's format; numbers follow from names."""
    writer = gguf.GGUFWriter(str(path), "none")
    writer.kv_data[0].clear()
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", ["text.txt"])
    writer.add_uint32("imatrix.chunk_count", 3)
    writer.add_uint32("imatrix.chunk_size", 512)
    for tensor in sorted(gguf.GGUFReader(source).tensors, key=lambda t: t.name):
        if not tensor.name.startswith("blk.") or len(tensor.shape) < 2:
            continue
        squares = np.square(numbers(tensor.name, (int(tensor.shape[0]),))) * np.float32(1000)
        writer.add_tensor(f"{tensor.name}.in_sum2", squares)
        writer.add_tensor(f"{tensor.name}.counts", np.array([1536], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors_of(path: Path) -> str:
    """SHA-256 of a GGUF's tensors in order: names, types, shapes, places, and all bytes from the
    first on. What stands in the keys, and so where the data begins, is left out."""
    reader = gguf.GGUFReader(path)
    said = [
        (t.name, t.tensor_type.name, [int(n) for n in t.shape], int(t.data_offset))
        for t in reader.tensors
    ]
    start = min(place for *_, place in said)
    del reader
    lines = "".join(f"{name} {kind} {shape} {at - start}\n" for name, kind, shape, at in said)
    return hashlib.sha256(lines.encode() + path.read_bytes()[start:]).hexdigest()
