"""A tiny gpt-oss of random weights, to try on a laptop what the real one needs a large machine for.

Everything that sets gpt-oss apart is in it: experts in MXFP4, sinks, a window in every other layer,
YaRN with a ramp between numbers that are not whole, biases everywhere, more rows of embeddings than
the tokenizer has ids, and a tokenizer that speaks harmony. The weights are random but not small, so
that a lost bias or a swapped expert changes the answers. What it says means nothing.

The same seed gives the same model in each of the forms: blocks of MXFP4 hold just the numbers that
the forms in bf16 and f32 spell out. Does not know: transformers, quantising.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, FileAccessError
from . import HARMONY

WEIGHTS: Final = ("mxfp4", "bf16", "f32")
"""As what the experts are stored; all else is bf16 with the first two."""
CODES: Final = np.array(
    [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=np.float32
)
"""What the sixteen codes of MXFP4 stand for, before the scale of their group."""
GROUP: Final = 32
SCALES: Final = (121, 122, 123)
"""The scales drawn from: 2^-6, 2^-5, 2^-4."""
_TYPES: Final = {"uint8": "U8", "uint16": "BF16", "float32": "F32"}

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Tensors = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class TinyShape:
    """The sizes of a tiny gpt-oss. Raises `ConfigError` for those that fit no gpt-oss."""

    layers: int = 2
    experts: int = 4
    experts_per_token: int = 2
    hidden: int = 64
    intermediate: int = 64
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    window: int = 16
    vocabulary: int = 2048

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}; it must be a whole number from 1")
        for name in ("hidden", "intermediate"):
            if getattr(self, name) % GROUP:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}; it must be a multiple of {GROUP}, the size "
                    "of a group of MXFP4"
                )
        if self.experts_per_token > self.experts:
            raise ConfigError(
                f"experts_per_token is {self.experts_per_token}; there are {self.experts} experts"
            )
        if self.heads % self.kv_heads or self.head_dim % 2:
            raise ConfigError("heads must be a multiple of kv_heads, and head_dim even")
        if self.vocabulary < 2021:
            raise ConfigError(f"vocabulary is {self.vocabulary}; the tokenizer has 2021 ids")

    def config(self, weights: str = "bf16") -> dict[str, Any]:
        """The `config.json`, in the keys of the published models."""
        kinds = ("sliding_attention", "full_attention")
        config: dict[str, Any] = {
            "architectures": ["GptOssForCausalLM"],
            "attention_bias": True,
            "attention_dropout": 0.0,
            "bos_token_id": 2000,
            "eos_token_id": 2004,
            "experts_per_token": self.experts_per_token,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initial_context_length": 1024,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate,
            "layer_types": [kinds[layer % 2] for layer in range(self.layers)],
            "max_position_embeddings": 4096,
            "model_type": "gpt_oss",
            "num_attention_heads": self.heads,
            "num_experts_per_tok": self.experts_per_token,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "num_local_experts": self.experts,
            "output_router_logits": False,
            "pad_token_id": 2001,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "factor": 4.0,
                "original_max_position_embeddings": 1024,
                "rope_type": "yarn",
                "truncate": False,
            },
            "rope_theta": 150000,
            "router_aux_loss_coef": 0.9,
            "sliding_window": self.window,
            "swiglu_limit": 7.0,
            "tie_word_embeddings": False,
            "use_cache": True,
            "vocab_size": self.vocabulary,
        }
        if weights != "mxfp4":  # the published files leave it out
            config["torch_dtype"] = "float32" if weights == "f32" else "bfloat16"
        else:
            config["quantization_config"] = {
                "modules_to_not_convert": [
                    "model.layers.*.self_attn",
                    "model.layers.*.mlp.router",
                    "model.embed_tokens",
                    "lm_head",
                ],
                "quant_method": "mxfp4",
            }
        return config


def make_gpt_oss(
    folder: str | Path, *, weights: str = "mxfp4", shape: TinyShape | None = None, seed: int = 0
) -> Path:
    """Write a model folder, which must not exist or be empty, and return its path.

    weights: one of `WEIGHTS`. Raises `ConfigError` for another word, `FileAccessError` when the
    folder cannot be written.
    """
    if weights not in WEIGHTS:
        raise ConfigError(f"weights is {weights!r}; it must be one of {', '.join(WEIGHTS)}")
    shape, folder = shape or TinyShape(), Path(folder)
    tensors = _tensors(shape, weights, np.random.default_rng(seed))
    generation = {
        "bos_token_id": 2000,
        "do_sample": True,
        "eos_token_id": [2004, 2001, 2014],
        "pad_token_id": 2001,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty; choose another folder")
        _write_safetensors(folder / "model.safetensors", tensors)
        for file in sorted(HARMONY.iterdir()):
            shutil.copyfile(file, folder / file.name)
        _write_json(folder / "generation_config.json", generation)
        _write_json(folder / "config.json", shape.config(weights))
    except OSError as error:
        raise FileAccessError(f"{folder}: cannot be written ({error.strerror or error})") from None
    return folder


def expand(blocks: Bytes, scales: Bytes) -> Floats:
    """The numbers of MXFP4 blocks as gpt-oss's files have them.

    blocks: (..., groups, 16), the low half of a byte before the high one; scales: (..., groups).
    Returns (..., groups x 32).
    """
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1)
    values = CODES[codes].reshape(*blocks.shape[:-1], GROUP)
    scaled = np.ldexp(values, scales.astype(np.int32)[..., None] - 127)
    return np.asarray(scaled, dtype=np.float32).reshape(*scales.shape[:-1], -1)


def _tensors(shape: TinyShape, weights: str, draw: np.random.Generator) -> Tensors:
    def normal(*size: int, spread: float, middle: float = 0.0) -> npt.NDArray[Any]:
        bits = _as_bf16(draw.standard_normal(size, dtype=np.float32) * spread + middle)
        return _as_f32(bits) if weights == "f32" else bits

    c, f, d = shape.hidden, shape.intermediate, shape.head_dim
    wide, narrow, experts = shape.heads * d, shape.kv_heads * d, shape.experts
    found: Tensors = {"model.embed_tokens.weight": normal(shape.vocabulary, c, spread=1.0)}
    for layer in range(shape.layers):
        name = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"{name}{norm}.weight"] = normal(c, spread=0.1, middle=1.0)
        for module, out, into in (
            ("q_proj", wide, c),
            ("k_proj", narrow, c),
            ("v_proj", narrow, c),
            ("o_proj", c, wide),
        ):
            found[f"{name}self_attn.{module}.weight"] = normal(out, into, spread=into**-0.5)
            found[f"{name}self_attn.{module}.bias"] = normal(out, spread=0.2)
        found[f"{name}self_attn.sinks"] = normal(shape.heads, spread=1.0)
        found[f"{name}mlp.router.weight"] = normal(experts, c, spread=c**-0.5)
        found[f"{name}mlp.router.bias"] = normal(experts, spread=0.2)
        # Now and then a gate or an up beyond the limit of 7, where they are cut.
        for module, out, into, bias in (
            ("gate_up_proj", 2 * f, c, 2.0),
            ("down_proj", c, f, 0.2),
        ):
            place = f"{name}mlp.experts.{module}"
            blocks = draw.integers(0, 256, (experts, out, into // GROUP, 16), dtype=np.uint8)
            chosen = draw.integers(0, len(SCALES), blocks.shape[:-1])
            scales = np.asarray(SCALES, dtype=np.uint8)[chosen]
            if weights == "mxfp4":
                found[f"{place}_blocks"], found[f"{place}_scales"] = blocks, scales
            else:
                spelled = np.ascontiguousarray(expand(blocks, scales).transpose(0, 2, 1))
                found[place] = spelled if weights == "f32" else _as_bf16(spelled)
            found[f"{place}_bias"] = normal(experts, out, spread=bias)
    found["model.norm.weight"] = normal(c, spread=0.1, middle=1.0)
    found["lm_head.weight"] = normal(shape.vocabulary, c, spread=c**-0.5)
    return found


def _as_bf16(values: Floats) -> npt.NDArray[np.uint16]:
    """Rounded to the nearest, ties to even; all values here are finite."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _as_f32(bits: npt.NDArray[np.uint16]) -> Floats:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _write_safetensors(path: Path, tensors: Tensors) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, values in tensors.items():
        end = at + values.nbytes
        header[name] = {
            "dtype": _TYPES[values.dtype.name],
            "shape": list(values.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for values in tensors.values():
            file.write(values.tobytes())


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
