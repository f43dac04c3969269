"""`LoraConfig`: which matrices get an adapter, and of what size, in PEFT's own words.

The keys are PEFT's, so a table of a recipe can be copied into a PEFT script and back; `seed`,
`adapter` and `export_gguf_path` are ours. An adapter is a folder with `adapter_config.json` and
`adapter_model.safetensors`, PEFT's form, which both engines read and write.

Does not know: models, torch, how an adapter is computed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .errors import CheckpointError, ConfigError, FormatError
from .rules import (
    U32_MAX,
    U64_MAX,
    Rule,
    as_number,
    broken,
    check_field,
    count,
    field,
    flag,
    path,
    positive,
    share,
    unknown_key,
)

if TYPE_CHECKING:
    from .model import Model

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "TARGETS",
    "LoraConfig",
    "create_adapter",
    "is_adapter",
    "merge_adapter",
]

ADAPTER_CONFIG: Final = "adapter_config.json"
ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"

LINEAR_TARGETS: Final = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
)
TARGETS: Final = (*LINEAR_TARGETS, "embed_tokens", "lm_head")
"""What can get an adapter, in the order in which adapters are stored."""
ALL_LINEAR: Final = "all-linear"
"""PEFT's word for every matrix of the layers; it leaves out embeddings and head, and so do we."""

_OURS: Final = ("seed", "adapter", "export_gguf_path")
_SIZES: Final = (
    "r",
    "lora_alpha",
    "target_modules",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "target_parameters",
)
_PATTERN_WORDS: Final = (
    "its keys must be names of modules as q_proj or layers.0.self_attn.q_proj, without signs of a "
    "regular expression"
)
_NO_EFFECT: Final = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "init_lora_weights",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "revision",
        "task_type",
    }
)
"""Keys of `adapter_config.json` that change nothing about weights which are already there."""
_UNSUPPORTED: Final[Mapping[str, str]] = {
    "bias": "only adapters without trained biases are read",
    "fan_in_fan_out": "only matrices stored as (out, in) are read",
    "modules_to_save": "whole trained modules are not read; merge the adapter first",
    "layers_to_transform": "an adapter on some layers only is not read",
    "layers_pattern": "an adapter on some layers only is not read",
    "exclude_modules": "list what has an adapter in target_modules instead",
    "use_dora": "DoRA is not computed here",
    "lora_bias": "adapters with biases are not computed here",
    "trainable_token_indices": "trained tokens are not computed here",
    "layer_replication": "replicated layers are not computed here",
    "alora_invocation_tokens": "activated adapters are not computed here",
    "use_qalora": "QALoRA is not computed here",
    "megatron_config": "Megatron's layers are not computed here",
    "loftq_config": "merge the adapter into the base it was made for first",
    "eva_config": "the weights are there already; remove the key",
    "corda_config": "the weights may belong to a changed base; merge the adapter first",
    "lora_ga_config": "the weights may belong to a changed base; merge the adapter first",
    "velora_config": "VeLoRA is not computed here",
    "monteclora_config": "MonteCLoRA is not computed here",
    "use_bdlora": "block-diagonal adapters are not computed here",
    "arrow_config": "routing between adapters is not computed here",
    "kasa_config": "KaSA is not computed here",
    "ensure_weight_tying": "tied adapters are not computed here",
}
_NEUTRAL: Final[Mapping[str, Any]] = {"bias": "none"}


def _names(default: tuple[str, ...], note: str, words: str) -> Any:
    return field(default, Rule(kind="names", note=note, words=words))


def _pattern(note: str, words: str) -> Any:
    made: Any = dataclasses.field(
        default_factory=dict, metadata={"rule": Rule(kind="pattern", note=note, words=words)}
    )
    return made


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """The adapters of a run: y = W x + s B(A(dropout(x))), s = alpha/r, or alpha/sqrt(r).

    adapter: a PEFT folder to go on from. Its sizes are then those of the run; sizes given besides
    must be the same.

    Raises `ConfigError` naming the field, its value and the rule it breaks.
    """

    r: int = count(8, "rank of the adapters", least=1)
    lora_alpha: float = positive(16.0, "scale of the adapters times r")
    lora_dropout: float = share(0.0, "share of an adapter's inputs dropped in training")
    target_modules: tuple[str, ...] = _names(
        ("q_proj", "k_proj", "v_proj", "o_proj"),
        "matrices that get an adapter",
        f"it must be a list of {', '.join(TARGETS)}, or {ALL_LINEAR} for all before embed_tokens",
    )
    use_rslora: bool = flag(False, "scale by alpha/sqrt(r) in place of alpha/r")
    rank_pattern: Mapping[str, int] = _pattern(
        "another rank for some modules, by name", "its values must be whole numbers from 1"
    )
    alpha_pattern: Mapping[str, float] = _pattern(
        "another alpha for some modules, by name", "its values must be finite numbers above 0"
    )
    target_parameters: tuple[str, ...] = _names(
        (),
        "fused expert weights that get an adapter, by name (trl only)",
        "it must be a list of parameter names, as mlp.experts.gate_up_proj",
    )
    seed: int | None = field(
        None,
        Rule(
            kind="seed",
            note="seed of the first A; else the run's seed",
            largest=U64_MAX,
            words="it must be a whole number up to 18446744073709551615",
        ),
    )
    adapter: Path | None = path(  # noqa: RUF009 - a field
        "folder of an adapter to go on from"
    )
    export_gguf_path: Path | None = path(  # noqa: RUF009 - a field
        "GGUF file of the adapter alone, written at the end"
    )

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            object.__setattr__(self, item.name, _checked(item, getattr(self, item.name)))
        if self.target_parameters and self.lora_dropout > 0.0:
            rule = "with target_parameters it must be 0: experts have no place for dropout"
            raise broken("lora.lora_dropout", self.lora_dropout, rule)
        if not self.target_modules and not self.target_parameters:
            raise broken("lora.target_modules", [], "it must name at least one matrix")

    @property
    def dropped(self) -> bool:
        """True with dropout, whose numbers no other engine can draw."""
        return self.lora_dropout > 0.0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LoraConfig:
        """The adapters these keys describe. Raises `ConfigError` for an unknown key."""
        known = {item.name for item in dataclasses.fields(cls)}
        for key in values:
            if key not in known:
                raise unknown_key(key, known, "the table lora")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for YAML and JSON. What nobody set besides PEFT's own keys is left out."""
        values: dict[str, Any] = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.name in (*_OURS, "target_parameters") and not value and value != 0:
                continue
            if isinstance(value, tuple):
                value = list(value)
            elif isinstance(value, Mapping):
                value = dict(value)
            elif isinstance(value, Path):
                value = str(value)
            values[item.name] = value
        return values

    def replace(self, **changes: Any) -> LoraConfig:
        """A changed copy, checked again."""
        return dataclasses.replace(self, **changes)

    def with_adapter_sizes(self) -> LoraConfig:
        """The sizes of the adapter this goes on from in place of the defaults; else itself.

        Raises `CheckpointError` for a folder that is no adapter, `ConfigError` for an adapter this
        package does not compute, or one with other sizes than were asked for.
        """
        if self.adapter is None:
            return self
        found = read_adapter_config(self.adapter)
        fresh = LoraConfig()
        for name in _SIZES:
            asked, there = getattr(self, name), getattr(found, name)
            if asked not in (there, getattr(fresh, name)):
                rule = (
                    f"the adapter {self.adapter} has {_shown(there)}; leave it out to go on with "
                    "that adapter, or merge it and train a new one"
                )
                raise broken(f"lora.{name}", _shown(asked), rule)
        sizes = {name: getattr(found, name) for name in _SIZES}
        return self.replace(**sizes)

    def for_native(self, *, seed: int) -> dict[str, Any]:
        """The form the native library reads; `seed` is the run's."""
        values = self.to_dict()
        for name in ("target_parameters", "export_gguf_path"):
            values.pop(name, None)
        values["seed"] = seed if self.seed is None else self.seed
        values["adapter"] = None if self.adapter is None else str(self.adapter.resolve())
        return values

    def identity(self) -> dict[str, Any]:
        """What must be the same when a run with these adapters is resumed."""
        values = self.to_dict()
        return {name: value for name, value in values.items() if name not in _OURS}


def create_adapter(
    model: Model, lora: LoraConfig, folder: str | Path, *, seed: int, base_name: str | None = None
) -> Path:
    """Write the first adapter of a run, in PEFT's form, into a folder that must not exist.

    A is drawn from the seed (`lora.seed`, else `seed`), B is zero; the native trainer begins with
    the same numbers. base_name: what its files call the model. Raises `ConfigError` for a target
    or rank that does not fit the model.
    """
    from . import _native

    text = json.dumps(lora.for_native(seed=seed))
    _native.adapter.create(model.native, text, base_name, folder)
    return Path(folder)


def merge_adapter(
    model: str | Path,
    adapter: str | Path,
    folder: str | Path,
    *,
    tokenizer_dir: str | Path | None = None,
) -> Path:
    """Write a model with an adapter added into its weights, into a folder that must not exist.

    W + s B A is summed in double and rounded once, to float32. tokenizer_dir: default the adapter's
    folder if it has a tokenizer, else the model's. What the model cards of the two say about data
    and licences goes along.
    Raises `FormatError` or `CheckpointError` naming the tensor when the two do not belong together.
    """
    from . import _native

    if tokenizer_dir is None and (Path(adapter) / "tokenizer.json").is_file():
        tokenizer_dir = adapter
    _native.adapter.merge(model, adapter, folder, tokenizer_dir)
    from .export.model_card import carry

    carry([model, adapter], folder)
    return Path(folder)


def is_adapter(folder: str | Path) -> bool:
    """True for a folder that holds an adapter and no whole model."""
    folder = Path(folder)
    return (folder / ADAPTER_CONFIG).is_file() and not any(
        (folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")
    )


def adapter_folder(source: str | Path) -> Path:
    """The adapter meant: a folder that is one, or the checkpoint that a run folder ended with.

    Raises `CheckpointError` when there is none.
    """
    source = Path(source)
    if source.is_dir() and not (source / ADAPTER_CONFIG).is_file():
        from .export import model_folder

        with contextlib.suppress(FormatError):
            source = model_folder(source)
    if not (source / ADAPTER_CONFIG).is_file():
        raise CheckpointError(
            f"{source}: no adapter ({ADAPTER_CONFIG} is missing). Name a folder that PEFT or this "
            "program saved, or a run of method lora."
        )
    return source


def base_of(adapter: Path) -> Path:
    """The model that an adapter's settings name. Raises `ConfigError` when it is not here."""
    file = adapter / ADAPTER_CONFIG
    try:
        name = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}).") from None
    if not isinstance(name, str) or not name or not Path(name).expanduser().exists():
        said = f"names {name} as its model, which is not here" if name else "names no model"
        raise ConfigError(f"{file}: {said}; name the folder with --model")
    return Path(name).expanduser()


def read_adapter_config(folder: Path) -> LoraConfig:
    """What `adapter_config.json` says, without a place or a seed.

    Raises `CheckpointError` when there is none or it is damaged, `ConfigError` for a key that is
    unknown, or that means something the engines do not compute.
    """
    file = folder / ADAPTER_CONFIG
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder}: not an adapter ({ADAPTER_CONFIG} is missing). Name a folder that PEFT or "
            "this program saved."
        ) from None
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise CheckpointError(f"{file}: not valid JSON ({error}).") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: must hold an object of names and values.")
    return _from_peft(file, values)


def _from_peft(file: Path, values: dict[str, Any]) -> LoraConfig:
    if values.get("peft_type") != "LORA":
        raise ConfigError(f"{file}: peft_type is {values.get('peft_type')!r}; only LORA is read")
    ours = {item.name for item in dataclasses.fields(LoraConfig)} - set(_OURS)
    taken: dict[str, Any] = {}
    for key, value in values.items():
        if key in ours:
            taken[key] = value
        elif key in _UNSUPPORTED:
            if value and value != _NEUTRAL.get(key):
                raise ConfigError(f"{file}: {key} is {value!r}; {_UNSUPPORTED[key]}")
        elif key not in _NO_EFFECT:
            known = ours | _UNSUPPORTED.keys() | _NO_EFFECT
            raise ConfigError(f"{file}: {unknown_key(key, known, 'an adapter configuration')}")
    for key in ("r", "target_modules"):
        if key not in taken:
            raise ConfigError(f"{file}: {key} is missing")
    taken["target_parameters"] = taken.get("target_parameters") or ()
    taken["target_modules"] = taken["target_modules"] or ()
    for key in ("rank_pattern", "alpha_pattern"):
        taken[key] = taken.get(key) or {}
    taken.setdefault("lora_alpha", 8)  # PEFT's own default
    try:
        return LoraConfig(**taken)
    except ConfigError as error:
        raise ConfigError(f"{file}: {str(error).removeprefix('lora.')}") from None


def _checked(item: dataclasses.Field[Any], value: Any) -> Any:
    rule: Rule = item.metadata["rule"]
    name = f"lora.{item.name}"
    if rule.kind == "names":
        return _checked_names(item.name, name, value, rule)
    if rule.kind == "pattern":
        return _checked_pattern(name, value, rule, whole=item.name == "rank_pattern")
    if rule.kind == "seed":
        ok = value is None or (isinstance(value, int) and not isinstance(value, bool))
        if not ok or not (value is None or 0 <= value <= U64_MAX):
            raise broken(name, value, rule.words)
        return value
    return check_field(item, value, name=name)


def _checked_names(key: str, name: str, value: Any, rule: Rule) -> tuple[str, ...]:
    if key == "target_modules" and isinstance(value, str):
        value = LINEAR_TARGETS if value == ALL_LINEAR else [value]
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise broken(name, value, rule.words)
    names = list(value)
    if not all(isinstance(word, str) and word for word in names):
        raise broken(name, _shown(names), rule.words)
    if key == "target_parameters":
        return tuple(names)
    if ALL_LINEAR in names:
        names = [word for word in names if word != ALL_LINEAR] + list(LINEAR_TARGETS)
    for word in names:
        if word not in TARGETS:
            said = str(unknown_key(word, TARGETS, name)).removeprefix(f"{word!r} is not a key of ")
            near = said.partition("; ")[2]
            raise broken(
                name,
                _shown(names),
                f"{word!r} is none of {', '.join(TARGETS)}" + (f"; {near}" if near else ""),
            )
    if len(set(names)) != len(names):
        twice = next(word for word in names if names.count(word) > 1)
        raise broken(name, _shown(names), f"{twice} is given twice")
    return tuple(word for word in TARGETS if word in names)


def _checked_pattern(name: str, value: Any, rule: Rule, *, whole: bool) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise broken(name, value, "it must be a table of module names and numbers")
    table: dict[str, Any] = {}
    for key, number in value.items():
        last = key.rpartition(".")[2] if isinstance(key, str) else ""
        plain = isinstance(key, str) and re.fullmatch(r"\w+(\.\w+)*", key) is not None
        if not plain or last not in TARGETS:
            raise broken(
                name,
                _shown(dict(value)),
                f"{_PATTERN_WORDS}, and end in one of TARGETS".replace(
                    "TARGETS", ", ".join(TARGETS)
                ),
            )
        amount, ok = as_number(number)
        if whole:
            ok = ok and float(amount).is_integer() and 1 <= amount <= U32_MAX
            amount = int(amount) if ok else amount
        if not ok or amount <= 0:
            raise broken(f"{name}.{key}", number, rule.words)
        table[key] = amount
    return table


def pattern_value(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """What a pattern says of a module: the first key that is its path, or the path's end."""
    for key, value in pattern.items():
        if module == key or module.endswith("." + key):
            return value
    return default


def _shown(value: Any) -> Any:
    if isinstance(value, (str, Path)):
        return str(value)
    if isinstance(value, Mapping):
        return json.dumps(dict(value))
    if isinstance(value, Sequence) or (isinstance(value, Iterable) and not isinstance(value, str)):
        return "[" + ", ".join(str(word) for word in value) + "]"
    return value
