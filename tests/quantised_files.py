"""Whole GGUF files for tests of quantising, made by the package gguf: every number follows from a
name, tensors and keys stand in an order that a quantiser must change or keep.

``write_source(path, "llama")`` writes the f16 file, ``write_importance(path, "llama")`` an
importance matrix for it; ``write_speaker(path)`` a model with a vocabulary that reads any text.
Nothing of this project takes part, so the bytes depend on the package alone; their hash is stored
beside those of the results.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from quantised_models import numbers

VOCABULARY = 288
MIXES = ("q8_0", "q4_0", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k", "mxfp4_moe")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a model. experts: 0 is a dense one."""

    architecture: str
    layers: int
    hidden: int
    inner: int
    heads: int
    shared: int
    head: int
    tied: bool = False
    experts: int = 0
    extra: tuple[str, ...] = field(default=())


SOURCES: dict[str, Shape] = {
    "llama": Shape(
        architecture="llama", layers=9, hidden=256, inner=512, heads=4, shared=2, head=64
    ),
    "llama-tied": Shape(
        architecture="llama", layers=8, hidden=256, inner=256, heads=4, shared=2, head=64, tied=True
    ),
    "qwen3": Shape(
        architecture="qwen3",
        layers=8,
        hidden=256,
        inner=256,
        heads=4,
        shared=1,
        head=64,
        extra=("attn_q_norm", "attn_k_norm"),
    ),
    "qwen3-tied": Shape(
        architecture="qwen3",
        layers=3,
        hidden=256,
        inner=512,
        heads=2,
        shared=1,
        head=128,
        tied=True,
        extra=("attn_q_norm", "attn_k_norm"),
    ),
    # Rows of 576 and 96 are no whole blocks of 256: the types fall back.
    "wide": Shape(
        architecture="llama", layers=2, hidden=576, inner=768, heads=9, shared=3, head=64
    ),
    "wide-tied": Shape(
        architecture="llama", layers=2, hidden=576, inner=256, heads=9, shared=3, head=64, tied=True
    ),
    "narrow-tied": Shape(
        architecture="llama", layers=8, hidden=96, inner=256, heads=3, shared=1, head=32, tied=True
    ),
    # 32 divides 80 no more: f16.
    "odd": Shape(architecture="llama", layers=2, hidden=80, inner=160, heads=2, shared=1, head=40),
    "eight-experts": Shape(
        architecture="llama", layers=2, hidden=256, inner=256, heads=4, shared=2, head=64, experts=8
    ),
    "gpt-oss": Shape(
        architecture="gpt-oss", layers=3, hidden=96, inner=64, heads=4, shared=2, head=64, experts=4
    ),
}


def write_source(path: Path, kind: str) -> Path:
    """Writes the file and returns it."""
    shape = SOURCES[kind]
    writer = gguf.GGUFWriter(str(path), shape.architecture)
    writer.add_name(f"test {kind}")
    writer.add_file_type(1)
    writer.add_license("apache-2.0")
    writer.add_array("general.tags", ["a", "größer", ""])
    _write_sizes(writer, shape)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"word {n}" for n in range(VOCABULARY)])
    writer.add_token_scores([-0.5 * n for n in range(VOCABULARY)])
    writer.add_token_types([1] * VOCABULARY)
    writer.add_bos_token_id(1)
    writer.add_add_bos_token(True)
    tensors = tensors_of(shape)
    for name in sorted(tensors, key=lambda name: hashlib.sha256(name.encode()).digest()):
        size = tensors[name]
        flat = numbers(name, (int(np.prod(size[:-1])), size[-1]) if len(size) > 1 else size)
        values: Any = flat.reshape(size)
        half = len(size) > 1 and "inp" not in name and not name.endswith("bias")
        writer.add_tensor(name, values.astype(np.float16) if half else values)
    return _written(writer, path)


def _write_sizes(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_context_length(128)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.shared)
    writer.add_key_length(shape.head)
    writer.add_value_length(shape.head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(shape.inner)
        writer.add_sliding_window(16)


def _written(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


SPEAKER = Shape(architecture="llama", layers=2, hidden=64, inner=96, heads=4, shared=2, head=16)
LETTERS = "▁abcdefghijklmnopqrstuvwxyz,."
SPEECH = " ".join(
    f"the {n * n} quick brown foxes, like {n} lazy dogs. über {chr(97 + n % 26)}" for n in range(60)
)
CHUNK, CHUNKS = 64, 6
"""How the speaker reads its text, in both programs."""


def write_speaker(path: Path) -> Path:
    """A f32 model whose numbers are tame, with letters and bytes as its vocabulary."""
    writer = gguf.GGUFWriter(str(path), SPEAKER.architecture)
    writer.add_name("speaker")
    _write_sizes(writer, SPEAKER)
    words = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), *LETTERS]
    kinds = [2, 3, 3, *[6] * 256, *[1] * len(LETTERS)]
    assert len(words) == VOCABULARY
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * 259 + [-1.0 * n for n in range(len(LETTERS))])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    for name, size in tensors_of(SPEAKER).items():
        plain: Any = numbers(name, (int(np.prod(size)),)).reshape(size)
        values = plain if len(size) > 1 else 1 + plain
        writer.add_tensor(name, values.astype(np.float32))
    return _written(writer, path)


def tensors_of(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Names and shapes, rows last."""
    hidden, inner = shape.hidden, shape.inner
    wide, narrow = shape.heads * shape.head, shape.shared * shape.head
    found: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (VOCABULARY, hidden),
        "output_norm.weight": (hidden,),
    }
    if not shape.tied:
        found["output.weight"] = (VOCABULARY, hidden)
    oss = shape.architecture == "gpt-oss"
    for layer in range(shape.layers):
        names: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (hidden,),
            ("post_attention_norm" if oss else "ffn_norm") + ".weight": (hidden,),
            "attn_q.weight": (wide, hidden),
            "attn_k.weight": (narrow, hidden),
            "attn_v.weight": (narrow, hidden),
            "attn_output.weight": (hidden, wide),
        }
        for name in shape.extra:
            names[f"{name}.weight"] = (shape.head,)
        ways = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
        for way, size in ways.items():
            if shape.experts:
                names[f"ffn_{way}_exps.weight"] = (shape.experts, *size)
                if oss:
                    names[f"ffn_{way}_exps.bias"] = (shape.experts, size[0])
            else:
                names[f"ffn_{way}.weight"] = size
        if shape.experts:
            names["ffn_gate_inp.weight"] = (shape.experts, hidden)
        if oss:
            names |= {
                "attn_q.bias": (wide,),
                "attn_k.bias": (narrow,),
                "attn_v.bias": (narrow,),
                "attn_output.bias": (hidden,),
                "attn_sinks.weight": (shape.heads,),
                "ffn_gate_inp.bias": (shape.experts,),
            }
        found |= {f"blk.{layer}.{name}": size for name, size in names.items()}
    return found


def write_importance(path: Path, kind: str) -> Path:
    """An importance matrix in llama.cpp's format; the last expert of each was never reached."""
    writer = gguf.GGUFWriter(str(path), "none")
    writer.kv_data[0].clear()
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", ["text.txt"])
    writer.add_uint32("imatrix.chunk_count", 3)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, size in sorted(tensors_of(SOURCES[kind]).items()):
        if not name.startswith("blk.") or len(size) < 2 or name.endswith("bias") or "inp" in name:
            continue
        experts = size[0] if len(size) == 3 else 1
        squares = np.square(numbers(f"{name} seen", (experts, size[-1]))) * np.float32(1000)
        counts = np.full((experts, 1), 1536, np.float32)
        if experts > 1:
            squares[-1], counts[-1] = 0, 0
        one = experts == 1
        writer.add_tensor(f"{name}.in_sum2", squares[0] if one else squares)
        writer.add_tensor(f"{name}.counts", counts[0] if one else counts)
    return _written(writer, path)


def sha256(path: Path) -> str:
    """Of all bytes of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
