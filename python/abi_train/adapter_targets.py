"""Which modules of a model an adapter's settings mean, when they say it by PEFT's patterns.

PEFT takes a regular expression in `target_modules`, `exclude_modules`, `rank_pattern` and
`alpha_pattern`, and narrows the layers by `layers_to_transform` and `layers_pattern`. They are
spelled out here, once, on the model's own modules: from then on there are names only, which both
engines, and every file, read alike.

The rules are PEFT's: a regular expression of modules must fit a whole path, a pattern its end at a
dot, and the first pattern that fits decides. Does not know: values, engines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from .errors import AbiTrainError, CheckpointError, ConfigError, FormatError

LINEAR_TARGETS: Final = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
)
ATTENTION_TARGETS: Final = LINEAR_TARGETS[:4]
"""What a layer with experts has of these: its experts are fused weights, no modules."""
TARGETS: Final = (*LINEAR_TARGETS, "embed_tokens", "lm_head")
"""What can get an adapter, in the order in which adapters are stored."""

MIXTURES: Final = ("gpt_oss",)
"""Model types whose MLPs are experts."""
PREFIX: Final = "base_model.model."
"""What PEFT puts before a module's path in its files."""
_LARGEST_HEADER: Final = 100 << 20
_PLAIN: Final = re.compile(r"[A-Za-z_]\w*(\.\w+)*", re.ASCII)


def is_plain(name: str) -> bool:
    """True for a module's name or path, without signs of a regular expression."""
    return _PLAIN.fullmatch(name) is not None


def kind_of(path: str) -> str:
    """`q_proj` of `model.layers.0.self_attn.q_proj`."""
    return path.rpartition(".")[2]


def layer_of(path: str) -> int | None:
    """The layer a module lies in; None for embeddings and head."""
    found = re.search(r"(?:^|\.)layers\.(\d+)\.", path)
    return None if found is None else int(found[1])


def fits(path: str, name: str) -> bool:
    """True when a name is the path, or its end at a dot."""
    return path == name or path.endswith("." + name)


def compiled(key: str, pattern: str) -> re.Pattern[str]:
    """A regular expression; raises `ConfigError` naming the key when it is none."""
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(f'{key} is "{pattern}"; it is no regular expression ({error})') from None


def module_paths(model: Path) -> list[str]:
    """Paths of all modules of the model at `model` that can get an adapter, in the order of files.

    Raises `ConfigError` when the number of its layers is not to be found.
    """
    file = model / "config.json" if model.is_dir() else model
    if file.suffix != ".json":
        from .model import Model

        with Model.load(model, dtype="stored") as opened:
            layers = 1 + max(layer_of(name) or 0 for name in opened)
            mixture = opened.config.get("model_type") in MIXTURES
    else:
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
            layers, mixture = config.get("num_hidden_layers"), config.get("model_type") in MIXTURES
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise FormatError(
                f"{file}: cannot be read as a model's configuration ({error})"
            ) from None
        if not isinstance(layers, int) or not 0 < layers < 100_000:
            raise ConfigError(
                f"{file}: num_hidden_layers is {layers!r}, so patterns of modules cannot be "
                "spelled out; name the modules in lora.target_modules"
            )
    inner = [
        f"model.layers.{layer}.{'self_attn' if at < 4 else 'mlp'}.{name}"
        for layer in range(layers)
        for at, name in enumerate(ATTENTION_TARGETS if mixture else LINEAR_TARGETS)
    ]
    return ["model.embed_tokens", *inner, "lm_head"]


def has_experts(model: Path) -> bool:
    """Whether the MLPs of a model are experts. False for one that cannot be read."""
    file = model / "config.json" if model.is_dir() else model
    if file.suffix != ".json":
        from .model import Model

        try:
            with Model.load(model, dtype="stored") as opened:
                return opened.config.get("model_type") in MIXTURES
        except AbiTrainError:
            return False
    try:
        return json.loads(file.read_text(encoding="utf-8")).get("model_type") in MIXTURES
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def modules_of_tensors(file: Path, paths: Sequence[str]) -> list[str]:
    """The modules that have tensors in an adapter's file: what its patterns meant. A pattern of
    somebody else's file is not run: one can be written that never ends.

    Raises `CheckpointError` for a file that cannot be read.
    """
    if not file.is_file():
        raise CheckpointError(f"{file.parent}: not an adapter ({file.name} is missing).")
    try:
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            if not 2 <= size <= min(_LARGEST_HEADER, file.stat().st_size):
                raise ValueError("its header is damaged")
            names = json.loads(opened.read(size))
        there = {name.rpartition(".lora_")[0].removeprefix(PREFIX) for name in names}
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        said = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{file}: cannot be read ({said}).") from None
    return [path for path in paths if path in there]


def chosen(
    paths: Sequence[str],
    *,
    target_modules: Sequence[str] | str,
    exclude_modules: Sequence[str] | str,
    layers_to_transform: Sequence[int],
    layers_pattern: Sequence[str],
) -> list[str]:
    """The modules that get an adapter. Raises `ConfigError` naming what fits none."""
    found = _matching("lora.target_modules", target_modules, paths)
    if exclude_modules:
        out = set(_matching("lora.exclude_modules", exclude_modules, paths, of=found))
        found = [path for path in found if path not in out]
    if layers_to_transform:
        layers = {layer for path in paths if (layer := layer_of(path)) is not None}
        for layer in layers_to_transform:
            if layer not in layers:
                raise ConfigError(
                    f"lora.layers_to_transform names layer {layer}; this model's layers are 0 to "
                    f"{max(layers)}"
                )
        found = [path for path in found if _layer(path, layers_pattern) in layers_to_transform]
    if not found:
        raise ConfigError("lora: nothing is left of target_modules; take fewer modules away")
    return found


def _layer(path: str, patterns: Sequence[str]) -> int | None:
    for pattern in patterns or (r"[^.]*",):
        place = compiled("lora.layers_pattern", rf".*\.(?:{pattern})\.(\d+)\.").match(path)
        if place is not None:
            return int(place.groups()[-1])
    return None


def _matching(
    key: str, wanted: Sequence[str] | str, paths: Sequence[str], of: Sequence[str] | None = None
) -> list[str]:
    among = paths if of is None else of
    words = "no module of this model" if of is None else "none of the modules in target_modules"
    if isinstance(wanted, str):
        pattern = compiled(key, wanted)
        found = [path for path in among if pattern.fullmatch(path)]
        if not found:
            raise ConfigError(
                f'{key} is "{wanted}", which fits {words}; it must fit a whole path, such as '
                f"{paths[1]}"
            )
        return found
    for name in wanted:
        if not any(fits(path, name) for path in among):
            raise ConfigError(f'{key} names "{name}", which fits {words}')
    return [path for path in among if any(fits(path, name) for name in wanted)]


def spelled_out(pattern: Mapping[str, Any], key: str, modules: Sequence[str]) -> dict[str, Any]:
    """A rank or alpha pattern by plain names. Raises `ConfigError` for one that decides nothing."""
    if all(is_plain(name) for name in pattern):
        return dict(pattern)
    tests = {name: compiled(f"lora.{key}", rf"(.*\.)?({name})$") for name in pattern}
    values: dict[str, Any] = {}
    used = set()
    for path in modules:
        for name, test in tests.items():
            if test.match(path):
                values[path] = pattern[name]
                used.add(name)
                break
    for name in pattern:
        if name not in used:
            raise ConfigError(
                f'lora.{key} names "{name}", which fits no module of target_modules (or an earlier '
                "pattern fits all of them)"
            )
    short = {}
    for path, value in values.items():
        kind = kind_of(path)
        same = all(values.get(other) == value for other in modules if kind_of(other) == kind)
        short[kind if same else path.removeprefix("model.")] = value
    return short


def shortest(modules: Iterable[str], paths: Sequence[str]) -> tuple[str, ...]:
    """The names that mean just these modules: a kind where all layers have it, else paths."""
    there = set(modules)
    names = []
    for kind in TARGETS:
        every = [path for path in paths if kind_of(path) == kind]
        some = [path for path in every if path in there]
        names += (
            [kind] if some and some == every else [path.removeprefix("model.") for path in some]
        )
    return tuple(name for name in names if name)
