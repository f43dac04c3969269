"""What a plan has to know of a model: its shape, how many numbers it has, how large its file is.

The shape comes from `config.json`, a GGUF's keys, the Hub, or, for models the recipes here are
about, from a list that comes with the package. No weight is read.

Does not know: what is done with the model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

from .. import _native
from ..errors import AbiTrainError, ConfigError, FormatError

HUB_SCHEME: Final = "hub:"
"""How a recipe names a model on the Hub."""

EXPERT_MODELS: Final = ("gpt_oss",)
"""Families with experts, whose matrices are named here."""

HUB: Final = "the Hub"
LIST: Final = "a list that comes with abi-train"
"""Where the facts of a model that is not on this machine come from."""

MXFP4_BITS: Final = 4.25
"""Bits of a number in a block of 32 with one scale of 8 bits."""


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A kind of matrix in every layer: (out, in), and how often a layer has it."""

    name: str
    out: int
    into: int
    copies: int = 1

    @property
    def size(self) -> int:
        """Numbers of all copies in one layer."""
        return self.out * self.into * self.copies


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """name: as the recipe says it. parameters: all numbers. active: those a token meets in a layer
    and in the head, which is what time follows from. stored_bytes: of its weight files, None for a
    random start. expanded: its numbers are stored in blocks that training has to expand (MXFP4)."""

    name: str
    config: Mapping[str, Any]
    parameters: int
    active: int
    matrices: tuple[Matrix, ...]
    stored_bytes: int | None
    dtype: str
    expanded: bool
    source: str

    def number(self, key: str, default: int = 0) -> int:
        """A size of the configuration."""
        return int(self.config.get(key) or default)

    @property
    def hidden(self) -> int:
        """Width."""
        return self.number("hidden_size")

    @property
    def layers(self) -> int:
        """How many layers."""
        return self.number("num_hidden_layers")

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.number("num_attention_heads")

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.number("num_key_value_heads", self.heads)

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.number("head_dim", self.hidden // max(self.heads, 1))

    @property
    def vocabulary(self) -> int:
        """Tokens."""
        return self.number("vocab_size")

    @property
    def experts(self) -> int:
        """Experts of a layer; 0 without."""
        return self.number("num_local_experts")

    @property
    def experts_used(self) -> int:
        """Experts that one token meets; 1 where there are none."""
        return self.number("num_experts_per_tok", 1) if self.experts else 1

    @property
    def is_remote(self) -> bool:
        """Whether the model is not on this machine."""
        return self.source in (HUB, LIST)


def facts_of(model: Path | str, *, online: bool = False) -> ModelFacts:
    """The facts of a folder, a `.gguf` file, a `config.json`, or `hub:OWNER/NAME`.

    online: whether the Hub may be asked for a configuration that is not known here.

    Raises `ConfigError` when nothing says what the model is, `FormatError` for a damaged file.
    """
    text = str(model)
    if HUB_SCHEME in text or (not Path(text).exists() and _looks_like_a_repository(text)):
        return _of_hub(text.rpartition(HUB_SCHEME)[2], online=online)
    path = Path(text)
    if path.is_dir():
        config = _read(path / "config.json")
        size = sum(f.stat().st_size for f in path.glob("*.safetensors"))
        return _facts(text, config, size or None, "config.json")
    if path.suffix == ".gguf" and path.is_file():
        config = _of_gguf(path)
        return _facts(text, config, path.stat().st_size, "the file's keys")
    if path.is_file():
        return _facts(text, _read(path), None, "config.json")
    raise ConfigError(f"model: {path} does not exist; check the path")


def of_config(name: str, config: Mapping[str, Any]) -> ModelFacts:
    """The facts of a configuration, for a random start."""
    return _facts(name, config, None, "the recipe")


def known_models() -> dict[str, dict[str, Any]]:
    """Configurations that come with the package, by name on the Hub."""
    text = resources.files(__package__).joinpath("known_models.json").read_text("utf-8")
    found: dict[str, dict[str, Any]] = json.loads(text)
    return found


def _looks_like_a_repository(text: str) -> bool:
    return text.count("/") == 1 and not text.startswith((".", "/", "~"))


def _of_hub(repository: str, *, online: bool) -> ModelFacts:
    known = known_models().get(repository)
    if known is not None:
        facts = _facts(repository, known, None, LIST)
        return _with_stored(facts)
    if not online:
        raise ConfigError(
            f"model: {repository} is not on this machine, and its sizes are not in the list that "
            "comes with abi-train; plan without --offline, or download it and name its folder"
        )
    from ..hub import client

    hub = client.api()
    with client.asking(f"read the configuration of {repository}"):
        config = json.loads(Path(hub.hf_hub_download(repository, "config.json")).read_text("utf-8"))
    return _with_stored(_facts(repository, config, None, HUB))


def _with_stored(facts: ModelFacts) -> ModelFacts:
    """With the size its files have: blocks where the experts are in MXFP4, else two bytes each."""
    import dataclasses

    experts = sum(m.size for m in facts.matrices if m.name.startswith("experts")) * facts.layers
    if not facts.expanded:
        experts = 0
    size = round(experts * MXFP4_BITS / 8) + 2 * (facts.parameters - experts)
    return dataclasses.replace(facts, stored_bytes=size)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"model: {path} does not exist; name a folder with config.json") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise FormatError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise FormatError(f"{path}: holds no JSON object")
    return found


def _of_gguf(path: Path) -> dict[str, Any]:
    from ..model import Model

    with Model.load(path, dtype="stored") as model:
        return model.config


def _facts(name: str, config: Mapping[str, Any], stored: int | None, source: str) -> ModelFacts:
    quantised = config.get("quantization_config")
    method = quantised.get("quant_method") if isinstance(quantised, Mapping) else None
    usual = "bfloat16" if method == "mxfp4" else "float32"
    if config.get("model_type") in EXPERT_MODELS:
        parameters, active, matrices = _with_experts(name, config)
    else:
        parameters, active, matrices = _dense(name, config)
    return ModelFacts(
        name=name,
        config=dict(config),
        parameters=parameters,
        active=active,
        matrices=matrices,
        stored_bytes=stored,
        # Published files in blocks name no type; what is not in blocks is bfloat16 there.
        dtype=str(config.get("dtype") or config.get("torch_dtype") or usual),
        expanded=method == "mxfp4",
        source=source,
    )


def _dense(name: str, config: Mapping[str, Any]) -> tuple[int, int, tuple[Matrix, ...]]:
    """Counted by the native library's own layout."""
    settings = json.dumps({"batch_size": 1, "max_seq_len": 1, "threads": 1})
    try:
        told = _native.plan.plan(settings, json.dumps(dict(config)))
    except AbiTrainError as error:
        raise type(error)(f"model: {name}: {error}") from None
    c = int(config["hidden_size"])
    heads = int(config["num_attention_heads"])
    kv = int(config.get("num_key_value_heads") or heads)
    d = int(config.get("head_dim") or c // heads)
    f = int(config["intermediate_size"])
    matrices = (
        Matrix(name="q_proj", out=heads * d, into=c),
        Matrix(name="k_proj", out=kv * d, into=c),
        Matrix(name="v_proj", out=kv * d, into=c),
        Matrix(name="o_proj", out=c, into=heads * d),
        Matrix(name="gate_proj", out=f, into=c),
        Matrix(name="up_proj", out=f, into=c),
        Matrix(name="down_proj", out=c, into=f),
    )
    inner = sum(m.size for m in matrices) * int(config["num_hidden_layers"])
    return int(told["parameters"]), inner + c * int(config["vocab_size"]), matrices


def _with_experts(name: str, config: Mapping[str, Any]) -> tuple[int, int, tuple[Matrix, ...]]:
    """gpt-oss: biases everywhere, sinks, a router, and experts with gate and up in one matrix."""
    try:
        c, f = int(config["hidden_size"]), int(config["intermediate_size"])
        heads, kv = int(config["num_attention_heads"]), int(config["num_key_value_heads"])
        d = int(config.get("head_dim") or c // heads)
        layers, v = int(config["num_hidden_layers"]), int(config["vocab_size"])
        experts, used = int(config["num_local_experts"]), int(config["num_experts_per_tok"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"model: {name}: config.json lacks {error}") from None
    attention = (
        Matrix(name="q_proj", out=heads * d, into=c),
        Matrix(name="k_proj", out=kv * d, into=c),
        Matrix(name="v_proj", out=kv * d, into=c),
        Matrix(name="o_proj", out=c, into=heads * d),
    )
    router = Matrix(name="router", out=experts, into=c)
    inner = (
        Matrix(name="experts.gate_up_proj", out=2 * f, into=c, copies=experts),
        Matrix(name="experts.down_proj", out=c, into=f, copies=experts),
    )
    biases = sum(m.out for m in attention) + experts + experts * (2 * f + c)
    vectors = 2 * c + heads  # two norms, and the sinks
    in_layer = sum(m.size for m in (*attention, router, *inner)) + biases + vectors
    head = v * c
    parameters = layers * in_layer + head * (1 if config.get("tie_word_embeddings") else 2) + c
    met = sum(m.size for m in (*attention, router)) + sum(m.size for m in inner) * used // experts
    return parameters, layers * met + head, (*attention, router, *inner)
