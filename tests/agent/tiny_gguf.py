"""Tiny random GGUF models and their forward pass in NumPy, without torch and without our own code.

``write_tiny_gguf(path, shape)`` writes a file with the ``gguf`` package and returns the weights in
Hugging Face's order, so that ``forward`` is a definition the program can be compared with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Wide = NDArray[np.float64]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What one tiny model looks like."""

    architecture: str = "llama"
    layers: int = 2
    width: int = 64
    inner: int = 96
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    context: int = 256
    theta: float = 10000.0
    eps: float = 1e-5
    tied: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    linear_factor: float = 1.0
    rope_divisors: tuple[float, ...] = ()


@dataclass
class TinyModel:
    """Weights in Hugging Face's row order, as the file's type rounded them."""

    shape: Shape
    vocab: int
    weights: dict[str, Floats] = field(default_factory=dict)


def llama3_divisors(head_dim: int, theta: float, factor: float, context: int) -> tuple[float, ...]:
    """What GGUF stores of Llama 3's scaling, with low factor 1 and high factor 4."""
    divisors = []
    for k in range(head_dim // 2):
        turns = context / (2 * math.pi * theta ** (2 * k / head_dim))
        smooth = min(1.0, max(0.0, (turns - 1) / 3))
        divisors.append(1 / ((1 - smooth) / factor + smooth))
    return tuple(divisors)


SHAPES = {
    "llama": Shape(),
    "llama_tied": Shape(tied=True, heads=4, kv_heads=4),
    "llama_linear": Shape(linear_factor=4.0),
    "llama3": Shape(rope_divisors=llama3_divisors(16, 10000.0, 8.0, 64)),
    "qwen2": Shape(architecture="qwen2", qkv_bias=True, theta=1e6),
    "qwen3": Shape(architecture="qwen3", qk_norm=True, tied=True, head_dim=32, eps=1e-6),
}


def byte_tokens() -> list[str]:
    """GPT-2's printable spelling of the 256 bytes, in byte order."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spelled = {byte: chr(byte) for byte in visible}
    extra = 0
    for byte in range(256):
        if byte not in spelled:
            spelled[byte] = chr(256 + extra)
            extra += 1
    return [spelled[byte] for byte in range(256)]


def permute(rows: Floats, heads: int) -> Floats:
    """Rotate-half rows to the neighbouring pairs that GGUF's ``llama`` has."""
    shaped = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(shaped.swapaxes(1, 2)).reshape(rows.shape)


def write_tiny_gguf(
    path: Path,
    shape: Shape,
    *,
    seed: int = 0,
    dtype: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    chat_template: str | None = CHATML,
    plain_tokens: bool = False,
    replace: Mapping[str, Floats | None] | None = None,
) -> TinyModel:
    """Writes the model to ``path``; matrices are stored as ``dtype``.

    With ``plain_tokens`` every token is a word of its own, so that any id is whole text: llama.cpp
    tells no probabilities of a token which ends within a character. ``replace`` puts other values
    under a tensor's name as they are, None leaves the tensor out, and new names come at the end.
    """
    changes = dict(replace or {})
    spelled = [f"w{byte}" for byte in range(256)] if plain_tokens else byte_tokens()
    tokens = [*spelled, *SPECIALS, "th", "he", "Ġt", "Ġa", "in"]
    model = TinyModel(shape, len(tokens))
    rng = np.random.default_rng(seed)
    arch = shape.architecture
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name("tiny")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.eps)
    writer.add_rope_freq_base(shape.theta)
    writer.add_vocab_size(len(tokens))
    if shape.linear_factor != 1.0:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(shape.linear_factor)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256 + [3] * len(SPECIALS) + [1] * (len(tokens) - 259))
    writer.add_token_merges(["t h", "h e", "Ġ t", "Ġ a", "i n"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(258)
    if chat_template is not None:
        writer.add_chat_template(chat_template)

    def put(name: str, value: Floats, heads: int = 0) -> None:
        if name in changes:
            changed = changes.pop(name)
            if changed is not None:
                writer.add_tensor(name, changed)
            return
        vector = value.ndim == 1
        kind = gguf.GGMLQuantizationType.F32 if vector else dtype
        stored = permute(value, heads) if heads and arch == "llama" else value
        raw = (
            stored if kind == gguf.GGMLQuantizationType.F32 else gguf.quants.quantize(stored, kind)
        )
        writer.add_tensor(name, raw, raw_dtype=kind)
        rounded = value
        if kind != gguf.GGMLQuantizationType.F32:
            # Rows are rounded one by one, so the order does not matter.
            rounded = gguf.quants.dequantize(gguf.quants.quantize(value, kind), kind)
        model.weights[name] = rounded.astype(np.float32)

    def matrix(rows: int, columns: int) -> Floats:
        return (rng.standard_normal((rows, columns)) / math.sqrt(columns)).astype(np.float32)

    def vector(length: int, around: float) -> Floats:
        return (around + 0.2 * rng.standard_normal(length)).astype(np.float32)

    query, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    put("token_embd.weight", (0.5 * rng.standard_normal((len(tokens), shape.width))).astype("f4"))
    put("output_norm.weight", vector(shape.width, 1.0))
    if not shape.tied:
        put("output.weight", 2 * matrix(len(tokens), shape.width))
    if shape.rope_divisors:
        put("rope_freqs.weight", np.array(shape.rope_divisors, np.float32))
    for layer in range(shape.layers):
        at = f"blk.{layer}."
        put(at + "attn_norm.weight", vector(shape.width, 1.0))
        put(at + "attn_q.weight", matrix(query, shape.width), shape.heads)
        put(at + "attn_k.weight", matrix(kv, shape.width), shape.kv_heads)
        put(at + "attn_v.weight", matrix(kv, shape.width))
        if shape.qkv_bias:
            put(at + "attn_q.bias", vector(query, 0.0), shape.heads)
            put(at + "attn_k.bias", vector(kv, 0.0), shape.kv_heads)
            put(at + "attn_v.bias", vector(kv, 0.0))
        if shape.qk_norm:
            put(at + "attn_q_norm.weight", vector(shape.head_dim, 1.0))
            put(at + "attn_k_norm.weight", vector(shape.head_dim, 1.0))
        put(at + "attn_output.weight", matrix(shape.width, query))
        put(at + "ffn_norm.weight", vector(shape.width, 1.0))
        put(at + "ffn_gate.weight", matrix(shape.inner, shape.width))
        put(at + "ffn_up.weight", matrix(shape.inner, shape.width))
        put(at + "ffn_down.weight", matrix(shape.width, shape.inner))
    for name, value in changes.items():
        if value is not None:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def forward(model: TinyModel, ids: list[int]) -> Wide:
    """Logits after every id, in float64: (len(ids), vocab)."""
    shape = model.shape
    w = {name: value.astype(np.float64) for name, value in model.weights.items()}
    half = shape.head_dim // 2
    inverse = 1.0 / shape.theta ** (np.arange(half) * 2 / shape.head_dim) / shape.linear_factor
    if shape.rope_divisors:
        inverse = inverse / w["rope_freqs.weight"]
    angles = np.arange(len(ids))[:, None] * inverse[None, :]
    cos, sin = np.cos(angles)[:, None, :], np.sin(angles)[:, None, :]

    def norm(x: Wide, weight: Wide) -> Wide:
        scaled: Wide = x / np.sqrt((x * x).mean(-1, keepdims=True) + shape.eps) * weight
        return scaled

    def rotate(x: Wide) -> Wide:
        low, high = x[..., :half], x[..., half:]
        return np.concatenate([low * cos - high * sin, high * cos + low * sin], -1)

    hidden = w["token_embd.weight"][ids]
    mask = np.triu(np.full((len(ids), len(ids)), -np.inf), 1)
    for layer in range(shape.layers):

        def get(name: str, layer: int = layer) -> Wide:
            return w[f"blk.{layer}.{name}"]

        def project(x: Wide, name: str, heads: int, layer: int = layer) -> Wide:
            y = x @ w[f"blk.{layer}.{name}.weight"].T
            y = y + w.get(f"blk.{layer}.{name}.bias", np.zeros(1))
            shaped: Wide = y.reshape(len(ids), heads, shape.head_dim)
            return shaped

        x = norm(hidden, get("attn_norm.weight"))
        q = project(x, "attn_q", shape.heads)
        k = project(x, "attn_k", shape.kv_heads)
        v = project(x, "attn_v", shape.kv_heads)
        if shape.qk_norm:
            q, k = norm(q, get("attn_q_norm.weight")), norm(k, get("attn_k_norm.weight"))
        q, k = rotate(q), rotate(k)
        group = shape.heads // shape.kv_heads
        k, v = k.repeat(group, 1), v.repeat(group, 1)
        scores = np.einsum("thd,shd->hts", q, k) / math.sqrt(shape.head_dim) + mask
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        attended = np.einsum("hts,shd->thd", scores, v).reshape(len(ids), -1)
        hidden = hidden + attended @ get("attn_output.weight").T
        x = norm(hidden, get("ffn_norm.weight"))
        gate = x @ get("ffn_gate.weight").T
        inner = gate / (1 + np.exp(-gate)) * (x @ get("ffn_up.weight").T)
        hidden = hidden + inner @ get("ffn_down.weight").T
    head = w["token_embd.weight"] if shape.tied else w["output.weight"]
    logits: Wide = norm(hidden, w["output_norm.weight"]) @ head.T
    return logits
