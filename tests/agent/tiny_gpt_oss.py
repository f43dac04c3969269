"""Tiny random gpt-oss models as GGUF files, and their forward pass in NumPy, without our own code.

``write_tiny_gpt_oss(path, shape)`` writes a file with the ``gguf`` package; ``forward`` is the
definition in float64; ``as_transformers`` puts the same weights into transformers' model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tiny_gguf import Floats, Wide, byte_tokens

TYPES = gguf.GGMLQuantizationType

SPECIALS = (
    "<|startoftext|>",
    "<|endoftext|>",
    "<|return|>",
    "<|constrain|>",
    "<|channel|>",
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|call|>",
)
MERGES = (("t", "h"), ("h", "e"), ("Ġ", "t"), ("Ġ", "a"), ("i", "n"))


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What one tiny model looks like. Sizes are multiples of 32, so that MXFP4 fits."""

    layers: int = 4
    width: int = 64
    inner: int = 96
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    experts: int = 8
    chosen: int = 4
    window: int = 24
    context: int = 4096
    original_context: int = 128
    factor: float = 32.0
    theta: float = 150000.0
    eps: float = 1e-5
    limit: float = 7.0
    alpha: float = 1.702


@dataclass
class TinyModel:
    """Weights under GGUF's names, as the file's types rounded them."""

    shape: Shape
    vocab: int
    weights: dict[str, Floats] = field(default_factory=dict)


def make(shape: Shape, vocab: int, seed: int = 0) -> dict[str, Floats]:
    """Random weights that spread scores, gates and router logits enough to matter."""
    rng = np.random.default_rng(seed)

    def matrix(*dims: int, spread: float = 1.0) -> Floats:
        return (spread * rng.standard_normal(dims) / math.sqrt(dims[-1])).astype(np.float32)

    def vector(*dims: int, around: float = 0.0, spread: float = 0.2) -> Floats:
        return (around + spread * rng.standard_normal(dims)).astype(np.float32)

    query, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    out = {
        "token_embd.weight": vector(vocab, shape.width, spread=0.5),
        "output_norm.weight": vector(shape.width, around=1.0),
        "output.weight": matrix(vocab, shape.width),
    }
    for layer in range(shape.layers):
        at = f"blk.{layer}."
        out |= {
            at + "attn_norm.weight": vector(shape.width, around=1.0),
            at + "attn_q.weight": matrix(query, shape.width),
            at + "attn_q.bias": vector(query),
            at + "attn_k.weight": matrix(kv, shape.width),
            at + "attn_k.bias": vector(kv),
            at + "attn_v.weight": matrix(kv, shape.width),
            at + "attn_v.bias": vector(kv),
            at + "attn_sinks.weight": vector(shape.heads, spread=1.0),
            at + "attn_output.weight": matrix(shape.width, query, spread=0.5),
            at + "attn_output.bias": vector(shape.width),
            at + "post_attention_norm.weight": vector(shape.width, around=1.0),
            at + "ffn_gate_inp.weight": matrix(shape.experts, shape.width),
            at + "ffn_gate_inp.bias": vector(shape.experts),
            at + "ffn_gate_exps.weight": matrix(
                shape.experts, shape.inner, shape.width, spread=2.0
            ),
            at + "ffn_gate_exps.bias": vector(shape.experts, shape.inner),
            at + "ffn_up_exps.weight": matrix(shape.experts, shape.inner, shape.width, spread=2.0),
            at + "ffn_up_exps.bias": vector(shape.experts, shape.inner),
            at + "ffn_down_exps.weight": matrix(
                shape.experts, shape.width, shape.inner, spread=0.1
            ),
            at + "ffn_down_exps.bias": vector(shape.experts, shape.width),
        }
    return out


def write_tiny_gpt_oss(
    path: Path,
    shape: Shape | None = None,
    *,
    seed: int = 0,
    dtype: TYPES = TYPES.F32,
    experts: TYPES = TYPES.F32,
    plain_tokens: bool = False,
    chat_template: str | None = None,
    replace: Mapping[str, Floats | None] | None = None,
    blocks: Mapping[str, tuple[Any, TYPES]] | None = None,
    keys: Mapping[str, Any] | None = None,
    weights: Mapping[str, Floats] | None = None,
) -> TinyModel:
    """Writes the model to ``path``: matrices as ``dtype``, those of experts as ``experts``.

    With ``plain_tokens`` every token is a word of its own, so that any id is whole text.
    ``replace`` puts other values under a tensor's name as they are and None leaves the tensor out;
    ``blocks`` puts bytes of a type; ``keys`` does the same with numbers under GGUF's keys.
    """
    shape = shape or Shape()
    changes = dict(replace or {})
    spelled = [f"w{byte}" for byte in range(256)] if plain_tokens else byte_tokens()
    tokens = [*spelled, *SPECIALS, *("".join(pair) for pair in MERGES)]
    model = TinyModel(shape, len(tokens))
    writer = gguf.GGUFWriter(path, "gpt-oss")
    writer.add_name("tiny")
    numbers: dict[str, Any] = {
        "context_length": shape.context,
        "embedding_length": shape.width,
        "block_count": shape.layers,
        "feed_forward_length": shape.inner,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim,
        "attention.layer_norm_rms_epsilon": shape.eps,
        "attention.sliding_window": shape.window,
        "rope.dimension_count": shape.head_dim,
        "rope.freq_base": shape.theta,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": shape.factor,
        "rope.scaling.original_context_length": shape.original_context,
        "expert_count": shape.experts,
        "expert_used_count": shape.chosen,
        "expert_feed_forward_length": shape.inner,
        "vocab_size": len(tokens),
        **(keys or {}),
    }
    for key, value in numbers.items():
        name = f"gpt-oss.{key}"
        if isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif value is not None:
            writer.add_uint32(name, value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-4o")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256 + [3] * len(SPECIALS) + [1] * len(MERGES))
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(258)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    for name, value in (weights or make(shape, len(tokens), seed)).items():
        if name in changes:
            changed = changes.pop(name)
            if changed is not None:
                writer.add_tensor(name, changed)
            continue
        if name in (blocks or {}):
            raw, kind = (blocks or {})[name]
            writer.add_tensor(name, raw, raw_dtype=kind)
            continue
        kind = TYPES.F32
        if name.endswith("_exps.weight"):
            kind = experts
        elif value.ndim == 2 and not name.endswith((".bias", "ffn_gate_inp.weight")):
            kind = dtype
        if kind == TYPES.F32:
            writer.add_tensor(name, value)
            model.weights[name] = value
            continue
        raw = gguf.quants.quantize(value, kind)
        writer.add_tensor(name, raw, raw_dtype=kind)
        model.weights[name] = gguf.quants.dequantize(raw, kind).astype(np.float32)
    for name, value in changes.items():
        if value is not None:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def frequencies(shape: Shape, *, rounded: bool) -> Wide:
    """YaRN's inverse frequencies; ``rounded``: with the ramp's ends as ggml has them."""
    half = shape.head_dim // 2

    def turns(beta: float) -> float:
        return (
            shape.head_dim
            * math.log(shape.original_context / (2 * math.pi * beta))
            / (2 * math.log(shape.theta))
        )

    low, high = turns(32.0), turns(1.0)
    if rounded:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0.0), min(high, shape.head_dim - 1.0)
    ramp = np.clip((np.arange(half) - low) / (high - low), 0, 1)
    plain = shape.theta ** (-np.arange(half) * 2 / shape.head_dim)
    scaled: Wide = plain / shape.factor * ramp + plain * (1 - ramp)
    return scaled


def forward(model: TinyModel, ids: list[int], *, rounded: bool = False) -> Wide:
    """Logits after every id, in float64: (len(ids), vocab)."""
    shape = model.shape
    w = {name: value.astype(np.float64) for name, value in model.weights.items()}
    half, count = shape.head_dim // 2, len(ids)
    angles = np.arange(count)[:, None] * frequencies(shape, rounded=rounded)[None, :]
    magnitude = 0.1 * math.log(shape.factor) + 1
    cos, sin = (magnitude * f(angles)[:, None, :] for f in (np.cos, np.sin))

    def norm(x: Wide, weight: Wide) -> Wide:
        scaled: Wide = x / np.sqrt((x * x).mean(-1, keepdims=True) + shape.eps) * weight
        return scaled

    def rotate(x: Wide) -> Wide:
        low, high = x[..., :half], x[..., half:]
        return np.concatenate([low * cos - high * sin, high * cos + low * sin], -1)

    hidden = w["token_embd.weight"][ids]
    behind = np.arange(count)[:, None] - np.arange(count)[None, :]
    for layer in range(shape.layers):

        def linear(x: Wide, name: str, layer: int = layer) -> Wide:
            y: Wide = x @ w[f"blk.{layer}.{name}.weight"].T + w[f"blk.{layer}.{name}.bias"]
            return y

        x = norm(hidden, w[f"blk.{layer}.attn_norm.weight"])
        q = rotate(linear(x, "attn_q").reshape(count, shape.heads, -1))
        k = rotate(linear(x, "attn_k").reshape(count, shape.kv_heads, -1))
        v = linear(x, "attn_v").reshape(count, shape.kv_heads, -1)
        group = shape.heads // shape.kv_heads
        k, v = k.repeat(group, 1), v.repeat(group, 1)
        scores = np.einsum("thd,shd->hts", q, k) / math.sqrt(shape.head_dim)
        hidden_keys = behind < 0
        if layer % 2 == 0:
            hidden_keys = hidden_keys | (behind >= shape.window)
        scores = np.where(hidden_keys, -np.inf, scores)
        sinks = w[f"blk.{layer}.attn_sinks.weight"][:, None, None]
        top = np.maximum(scores.max(-1, keepdims=True), sinks)
        shares = np.exp(scores - top)
        shares /= shares.sum(-1, keepdims=True) + np.exp(sinks - top)
        attended = np.einsum("hts,shd->thd", shares, v).reshape(count, -1)
        hidden = hidden + linear(attended, "attn_output")
        x = norm(hidden, w[f"blk.{layer}.post_attention_norm.weight"])
        router = linear(x, "ffn_gate_inp")
        best = np.argsort(-router, axis=-1, kind="stable")[:, : shape.chosen]
        weight = np.exp(np.take_along_axis(router, best, -1))
        weight /= weight.sum(-1, keepdims=True)
        mixed = np.zeros_like(hidden)
        for expert in range(shape.experts):

            def of(x: Wide, name: str, layer: int = layer, expert: int = expert) -> Wide:
                at = f"blk.{layer}.ffn_{name}_exps."
                y: Wide = x @ w[at + "weight"][expert].T + w[at + "bias"][expert]
                return y

            gate = np.minimum(of(x, "gate"), shape.limit)
            up = np.clip(of(x, "up"), -shape.limit, shape.limit)
            answer = of(gate / (1 + np.exp(-shape.alpha * gate)) * (up + 1), "down")
            mixed += answer * np.where(best == expert, weight, 0).sum(-1, keepdims=True)
        hidden = hidden + mixed
    logits: Wide = norm(hidden, w["output_norm.weight"]) @ w["output.weight"].T
    return logits


def as_transformers(model: TinyModel) -> Any:
    """transformers' model with these weights, in float64, with eager attention."""
    import torch
    from transformers import GptOssConfig, GptOssForCausalLM

    s = model.shape
    config = GptOssConfig(
        vocab_size=model.vocab,
        hidden_size=s.width,
        intermediate_size=s.inner,
        num_hidden_layers=s.layers,
        num_attention_heads=s.heads,
        num_key_value_heads=s.kv_heads,
        head_dim=s.head_dim,
        num_local_experts=s.experts,
        num_experts_per_tok=s.chosen,
        sliding_window=s.window,
        max_position_embeddings=s.context,
        rms_norm_eps=s.eps,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": s.theta,
            "factor": s.factor,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": s.original_context,
        },
        attn_implementation="eager",
        experts_implementation="eager",
    )
    built = GptOssForCausalLM(config).to(torch.float64).eval()
    names = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    inside = {
        "attn_norm.weight": "input_layernorm.weight",
        "attn_sinks.weight": "self_attn.sinks",
        "post_attention_norm.weight": "post_attention_layernorm.weight",
        "ffn_gate_inp.weight": "mlp.router.weight",
        "ffn_gate_inp.bias": "mlp.router.bias",
        "ffn_down_exps.bias": "mlp.experts.down_proj_bias",
    }
    for short, long in (("q", "q"), ("k", "k"), ("v", "v"), ("output", "o")):
        for kind in ("weight", "bias"):
            inside[f"attn_{short}.{kind}"] = f"self_attn.{long}_proj.{kind}"
    state = {names[n]: v for n, v in model.weights.items() if n in names}
    for layer in range(s.layers):
        ours, theirs = f"blk.{layer}.", f"model.layers.{layer}."
        state |= {theirs + long: model.weights[ours + short] for short, long in inside.items()}
        gate, up, down = (
            model.weights[f"{ours}ffn_{n}_exps.weight"] for n in ("gate", "up", "down")
        )
        both = np.stack([gate, up], 2).reshape(s.experts, 2 * s.inner, s.width)
        state[theirs + "mlp.experts.gate_up_proj"] = both.swapaxes(1, 2)
        state[theirs + "mlp.experts.down_proj"] = down.swapaxes(1, 2)
        biases = [model.weights[f"{ours}ffn_{n}_exps.bias"] for n in ("gate", "up")]
        state[theirs + "mlp.experts.gate_up_proj_bias"] = np.stack(biases, 2).reshape(s.experts, -1)
    built.load_state_dict(
        {n: torch.tensor(np.ascontiguousarray(v)).double() for n, v in state.items()}
    )
    return built
