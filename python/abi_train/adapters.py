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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .adapter_targets import (
    ATTENTION_TARGETS,
    LINEAR_TARGETS,
    TARGETS,
    chosen,
    compiled,
    has_experts,
    is_plain,
    kind_of,
    layer_of,
    module_paths,
    modules_of_tensors,
    shortest,
    spelled_out,
)
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
    "unmerge_adapter",
]

ADAPTER_CONFIG: Final = "adapter_config.json"
ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"

ALL_LINEAR: Final = "all-linear"
"""PEFT's word for every matrix of the layers; it leaves out embeddings and head, and so do we."""

LARGEST_ALPHA: Final = 1_000_000
"""Beyond it a scale no longer fits the arithmetic."""

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
_SELECTORS: Final = ("layers_to_transform", "layers_pattern", "exclude_modules")
"""PEFT's keys that take away from `target_modules`; left out where they are not used."""
_PATTERN_WORDS: Final = (
    "its keys must be names of modules as q_proj or layers.0.self_attn.q_proj, or regular "
    "expressions of them"
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
    "runtime_config": "remove the key",
}
_NEUTRAL: Final[Mapping[str, Any]] = {"bias": "none"}
_CHANGES_THE_BASE: Final = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin that take the adapter's start out of the base, so that it fits no other."""


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
    lora_alpha: float = positive(16.0, "scale of the adapters times r", largest=LARGEST_ALPHA)
    lora_dropout: float = share(0.0, "share of an adapter's inputs dropped in training")
    target_modules: tuple[str, ...] | str = _names(
        ("q_proj", "k_proj", "v_proj", "o_proj"),
        "matrices that get an adapter: names, paths, or one regular expression",
        f"it must be a list of {', '.join(TARGETS)}, or {ALL_LINEAR} for all before embed_tokens",
    )
    layers_to_transform: tuple[int, ...] = field(
        (),
        Rule(
            kind="layers",
            note="only in these layers, counted from 0",
            words="it must be a layer or a list of layers, counted from 0",
        ),
    )
    layers_pattern: tuple[str, ...] = _names(
        (),
        "what comes before the number of a layer, where it is not found by itself",
        "it must be a name or a list of names, as layers",
    )
    exclude_modules: tuple[str, ...] | str = _names(
        (),
        "but not these: names, paths, or one regular expression",
        f"it must be a list of {', '.join(TARGETS)}, or a regular expression",
    )
    use_rslora: bool = flag(False, "scale by alpha/sqrt(r) in place of alpha/r")
    rank_pattern: Mapping[str, int] = _pattern(
        "another rank for some modules, by name", "its values must be whole numbers from 1"
    )
    alpha_pattern: Mapping[str, float] = _pattern(
        "another alpha for some modules, by name",
        f"its values must be finite numbers above 0 and at most {LARGEST_ALPHA}",
    )
    target_parameters: tuple[str, ...] = _names(
        (),
        "fused expert weights that get an adapter, by name",
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
        if self.layers_pattern and not self.layers_to_transform:
            rule = "it means nothing without layers_to_transform"
            raise broken("lora.layers_pattern", _shown(self.layers_pattern), rule)
        if self.layers_to_transform and isinstance(self.target_modules, str):
            rule = "with a regular expression in target_modules it must be unset, as in PEFT"
            raise broken("lora.layers_to_transform", _shown(self.layers_to_transform), rule)
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
        for key, value in values.items():
            if key in known:
                continue
            if key in _UNSUPPORTED:
                raise ConfigError(f"lora.{key} is {_shown(value)}; {_UNSUPPORTED[key]}")
            if key in _NO_EFFECT:
                raise ConfigError(f"lora.{key} is PEFT's, but not chosen in a run; remove it")
            if key.lower() in known:
                raise ConfigError(f"{key!r} is not a key of the table lora; write {key.lower()}")
            raise unknown_key(key, known, "the table lora")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for YAML and JSON. What nobody set besides PEFT's own keys is left out."""
        values: dict[str, Any] = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            optional = (*_OURS, *_SELECTORS, "target_parameters")
            if item.name in optional and not value and value != 0:
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
        return self._with_sizes_of(read_adapter_config(self.adapter))

    def _with_sizes_of(self, found: LoraConfig) -> LoraConfig:
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

    @property
    def is_pattern(self) -> bool:
        """True when modules are named by PEFT's patterns, which `resolved` spells out."""
        return (
            isinstance(self.target_modules, str)
            or any(getattr(self, name) for name in _SELECTORS)
            or not all(is_plain(key) for key in (*self.rank_pattern, *self.alpha_pattern))
        )

    def resolved(self, model: Path, *, experts: bool | None = None) -> LoraConfig:
        """The adapters of a run on `model`: sizes of the one to go on from, patterns spelled out.

        experts: whether its MLPs are experts, where the model is not here to say so.
        Raises as `with_adapter_sizes`, and `ConfigError` for a pattern that fits nothing.
        """
        found = None if self.adapter is None else read_adapter_config(self.adapter)
        named = set(self.target_modules)
        if (
            found is None
            and named.issuperset(LINEAR_TARGETS)
            and (has_experts(model) if experts is None else experts)
        ):
            # Of a layer's matrices, which are all named, these are the ones that are modules.
            kept = [name for name in self.target_modules if kind_of(name) in ATTENTION_TARGETS]
            return self.replace(target_modules=kept).resolved(model)
        if not self.is_pattern and not (found is not None and found.is_pattern):
            return self.with_adapter_sizes()
        paths = module_paths(model)
        asked = self._spelled_out(paths) if self.is_pattern else self
        if found is None:
            return asked
        assert self.adapter is not None
        return asked._with_sizes_of(found._named_by_tensors(self.adapter, paths))

    def _named_by_tensors(self, folder: Path, paths: Sequence[str]) -> LoraConfig:
        for key in ("rank_pattern", "alpha_pattern"):
            for name in getattr(self, key):
                if not is_plain(name):
                    raise ConfigError(
                        f'{folder / ADAPTER_CONFIG}: {key}: "{name}" is a regular expression; only '
                        "plain names are read. Spell the modules out"
                    )
        if not self.is_pattern:
            return self
        modules = modules_of_tensors(folder / ADAPTER_WEIGHTS, paths)
        if not modules:
            raise ConfigError(
                f"{folder / ADAPTER_WEIGHTS}: has no tensor of a module of this model. The adapter "
                "was made for another base"
            )
        cleared: dict[str, Any] = dict.fromkeys(_SELECTORS, ())
        return self.replace(target_modules=shortest(modules, paths), **cleared)

    def _spelled_out(self, paths: Sequence[str]) -> LoraConfig:
        modules = chosen(
            paths,
            target_modules=self.target_modules,
            exclude_modules=self.exclude_modules,
            layers_to_transform=self.layers_to_transform,
            layers_pattern=self.layers_pattern,
        )
        return self.replace(
            target_modules=shortest(modules, paths),
            rank_pattern=spelled_out(self.rank_pattern, "rank_pattern", modules),
            alpha_pattern=spelled_out(self.alpha_pattern, "alpha_pattern", modules),
            layers_to_transform=(),
            layers_pattern=(),
            exclude_modules=(),
        )

    def for_native(self, *, seed: int) -> dict[str, Any]:
        """The form the native library reads; `seed` is the run's."""
        values = self.to_dict()
        values.pop("export_gguf_path", None)
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


def unmerge_adapter(
    merged: str | Path,
    adapter: str | Path,
    folder: str | Path,
    *,
    tokenizer_dir: str | Path | None = None,
) -> float:
    """Write a merged model with the adapter taken out again, into a folder that must not exist.

    W - s B A is summed in double and rounded once. Returns the most by which a weight may now
    differ from the base's: a unit in the last place of the largest weights. The base itself is
    exact, where it is still there. Raises `ConfigError` for a model stored in a type that rounded
    the sum, and as `merge_adapter`.
    """
    from . import _native

    return _native.adapter.unmerge(merged, adapter, folder, tokenizer_dir)


def other_base(folder: Path, fingerprint: int) -> str | None:
    """What to tell when an adapter's checkpoint says that it was trained on other numbers than
    those of the model with this fingerprint; None when they are the same, or nothing is said.

    No error: an adapter is often trained on a quantised copy of the model it is then used with.
    """
    from .checkpoint import STATE_FILE, read_state

    if not (folder / STATE_FILE).is_file():
        return None
    try:
        ours = read_state(folder)["stateful_callbacks"]["abi_train"]
    except CheckpointError:
        return None
    there = ours["identity"].get("base_crc32c")
    if there is None or there == fingerprint:
        return None
    return (
        f"{folder} was trained on a base with other numbers than this model's: another type of "
        "the same model, or another model, on which it means nothing"
    )


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


def base_of(adapter: Path, *, option: str = "--model") -> Path:
    """The model that an adapter's settings name; of a phased run that was copied or moved, the one
    in the folder it is in now. option: what names another one, for messages.

    Raises `ConfigError` when it is not here.
    """
    file = adapter / ADAPTER_CONFIG
    try:
        name = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}).") from None
    from .export import base_in_run

    beside = base_in_run(adapter)
    if isinstance(name, str) and beside is not None and beside[0].parts == _last(name, beside[0]):
        return beside[1]
    if not isinstance(name, str) or not name or not Path(name).expanduser().exists():
        said = f"names {name} as its model, which is not here" if name else "names no model"
        raise ConfigError(f"{file}: {said}; name the folder with {option}")
    return Path(name).expanduser()


def _last(name: str, place: Path) -> tuple[str, ...]:
    return Path(name).parts[-len(place.parts) :]


def read_adapter_config(folder: Path) -> LoraConfig:
    """What `adapter_config.json` says, without a place or a seed.

    Raises `CheckpointError` when there is none or it is damaged, `ConfigError` for a key that is
    unknown, or that means something the engines do not compute.
    """
    file = folder / ADAPTER_CONFIG
    if file.exists() and not file.is_file():
        raise CheckpointError(f"{file}: is no regular file.")
    try:
        values = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder}: not an adapter ({ADAPTER_CONFIG} is missing). Name a folder that PEFT or "
            "this program saved."
        ) from None
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not valid JSON ({error}).") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: must hold an object of names and values.")
    return _from_peft(file, values)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys stand once: of two values it is not known which is meant."""
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'key "{twice}" stands twice')
    return values


def _from_peft(file: Path, values: dict[str, Any]) -> LoraConfig:
    if values.get("peft_type") != "LORA":
        raise ConfigError(f"{file}: peft_type is {values.get('peft_type')!r}; only LORA is read")
    task = values.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        raise ConfigError(
            f"{file}: task_type is {task!r}; only CAUSAL_LM is read: the adapter is of a model "
            "with another head"
        )
    start = values.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_CHANGES_THE_BASE):
        raise ConfigError(
            f"{file}: init_lora_weights is {start}; the adapter belongs to a changed base; merge "
            "it with PEFT first"
        )
    if start is not None and not isinstance(start, (bool, str)):
        raise ConfigError(
            f"{file}: init_lora_weights is {start!r}; it must be true, false or a name"
        )
    ours = {item.name for item in dataclasses.fields(LoraConfig)} - set(_OURS)
    taken: dict[str, Any] = {}
    for key, value in values.items():
        if key in ours:
            taken[key] = value
        elif key in _UNSUPPORTED:
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if (value or number) and value != _NEUTRAL.get(key):
                raise ConfigError(f"{file}: {key} is {value!r}; {_UNSUPPORTED[key]}")
        elif key not in _NO_EFFECT:
            known = ours | _UNSUPPORTED.keys() | _NO_EFFECT
            raise ConfigError(f"{file}: {unknown_key(key, known, 'an adapter configuration')}")
    for key in ("r", "target_modules"):
        if key not in taken:
            raise ConfigError(f"{file}: {key} is missing")
    for key in ("target_parameters", "target_modules", *_SELECTORS):
        if taken.get(key) is None:
            taken[key] = ()
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
    if rule.kind == "layers":
        return _checked_layers(name, value, rule)
    if rule.kind == "pattern":
        return _checked_pattern(name, value, rule, whole=item.name == "rank_pattern")
    if rule.kind == "seed":
        ok = value is None or (isinstance(value, int) and not isinstance(value, bool))
        if not ok or not (value is None or 0 <= value <= U64_MAX):
            raise broken(name, value, rule.words)
        return value
    return check_field(item, value, name=name)


def _checked_layers(name: str, value: Any, rule: Rule) -> tuple[int, ...]:
    layers = [value] if isinstance(value, int) else value
    if not isinstance(layers, (list, tuple, set, frozenset)):
        raise broken(name, _shown(value), rule.words)
    for layer in layers:
        if not isinstance(layer, int) or isinstance(layer, bool) or not 0 <= layer <= U32_MAX:
            raise broken(name, _shown(value), rule.words)
    return tuple(sorted(set(layers)))


def _checked_names(key: str, name: str, value: Any, rule: Rule) -> tuple[str, ...] | str:
    if isinstance(value, str) and key != "target_parameters":
        if key == "target_modules" and value == ALL_LINEAR:
            value = LINEAR_TARGETS
        elif key != "layers_pattern" and value and not is_plain(value):
            compiled(name, value)
            return value
        else:
            value = [value]
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise broken(name, value, rule.words)
    names = list(value)
    if not all(isinstance(word, str) and word for word in names):
        raise broken(name, _shown(names), rule.words)
    if key == "layers_pattern":
        for word in names:
            compiled(name, word)
    if key in ("target_parameters", "layers_pattern"):
        return tuple(names)
    if ALL_LINEAR in names:
        names = [word for word in names if word != ALL_LINEAR] + list(LINEAR_TARGETS)
    for word in names:
        if not is_plain(word):
            rule_words = "a regular expression must stand alone, not in a list"
            raise broken(name, _shown(names), f"{word!r} is no name; {rule_words}")
        if kind_of(word) not in TARGETS:
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
    return tuple(sorted(names, key=_place))


def _place(name: str) -> tuple[int, int, str]:
    """Where a name stands in a list of targets: by kind, the kind itself first, then by layer."""
    layer = layer_of(name)
    return TARGETS.index(kind_of(name)), -1 if layer is None else layer, name


def _checked_pattern(name: str, value: Any, rule: Rule, *, whole: bool) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise broken(name, value, "it must be a table of module names and numbers")
    table: dict[str, Any] = {}
    for key, number in value.items():
        if not isinstance(key, str) or not key or (is_plain(key) and kind_of(key) not in TARGETS):
            words = f"{_PATTERN_WORDS}, and end in one of {', '.join(TARGETS)}"
            raise broken(name, _shown(dict(value)), words)
        if not is_plain(key):
            compiled(name, key)
        amount, ok = as_number(number)
        if whole:
            ok = ok and float(amount).is_integer() and 1 <= amount <= U32_MAX
            amount = int(amount) if ok else amount
        if not ok or amount <= 0 or not (whole or amount <= LARGEST_ALPHA):
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
        return json.dumps(dict(value), ensure_ascii=False)
    if isinstance(value, Sequence) or (isinstance(value, Iterable) and not isinstance(value, str)):
        return "[" + ", ".join(str(word) for word in value) + "]"
    return value
