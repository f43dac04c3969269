"""The text of a phased recipe: which keys there are, and what each phase makes of them.

Keys at the top are common to all phases; a phase overrides them, tables key by key. Settings of the
command line override both. Relative paths are made whole here, those of the file from its folder.

Does not know: `RunSpec`, data, folders of a run. Always true: nothing here reads a file.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ..config import TRL_ALIASES, TRL_SCHEDULE_KEY, LlmTrainingConfig, YamlLoader
from ..errors import ConfigError
from ..rules import broken, unknown_key
from ..runspec import CONFIG_PATHS, RunSpec

DATA_KEYS: Final = (
    "rows",
    "eval_rows",
    "eval_split",
    "rows_per",
    "chat_format",
    "loss",
    "skip_invalid",
    "license",
)
"""Keys of a phase about the rows it is prepared from."""

OWN_KEYS: Final = ("chain", "evals")
"""Other keys of a phase that a single run does not have."""

SCHEMES: Final = ("sample:", "set:", "hub:")
"""What a place begins with that is no path."""

_RUN_KEYS: Final = {item.name for item in dataclasses.fields(RunSpec)} - {"config"} | {"training"}
PHASE_KEYS: Final = (_RUN_KEYS - {"run_dir", "resume"}) | {*DATA_KEYS, *OWN_KEYS}
COMMON_KEYS: Final = PHASE_KEYS | {"name", "run_dir", "phases"}
TRAINING_KEYS: Final = (
    {item.name for item in dataclasses.fields(LlmTrainingConfig)}
    | TRL_ALIASES.keys()
    | {TRL_SCHEDULE_KEY}
)
TABLES: Final = ("training", "lora", "dpo")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_TAKEN: Final = ("data", "checkpoint", "recipe.json")
"""Names in a run folder that no phase may have."""


def is_phased(document: Mapping[str, Any]) -> bool:
    """True for a recipe with `phases`."""
    return "phases" in document


def name_and_value(setting: str) -> tuple[str, Any]:
    """The two sides of a `NAME=VALUE`; the value is read as YAML. Raises `ConfigError`."""
    import yaml

    name, sign, text = setting.partition("=")
    if not sign or not name:
        raise ConfigError(f"--set {setting}: write NAME=VALUE, for example epochs=1")
    try:
        return name, yaml.load(text, Loader=YamlLoader)
    except yaml.YAMLError:
        raise ConfigError(f"--set {setting}: the value is not a number, a word or a list") from None


def split_phases(
    document: Mapping[str, Any],
    *,
    base: Path | None = None,
    options: Mapping[str, Any] | None = None,
    settings: Sequence[str] = (),
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The common keys, and each phase with its own, the common and the command line's merged.

    base: the folder that relative paths of the document are taken from. options: keys that
    override those of the document everywhere. settings: `NAME=VALUE` for all phases,
    `phases.PHASE.NAME=VALUE` for one.

    Each phase has `own`: the keys it does not share with the others, the command line's among them,
    and `named`: the names of those that the document gives it. Raises `ConfigError` for a key
    nobody knows, phases without a name or with the same one, and settings of no phase.
    """
    for key in document:
        if key not in COMMON_KEYS:
            raise unknown_key(key, COMMON_KEYS, "a recipe with phases")
    entries = document["phases"]
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise ConfigError("phases must be a list with at least one phase, each a table with a name")
    common = with_paths({k: v for k, v in document.items() if k != "phases"}, base)
    names: list[str] = []
    phases = []
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, Mapping):
            raise ConfigError(f"phases: entry {number} is not a table; write name: and its keys")
        name = _name(entry.get("name"), number, names)
        names.append(name)
        for key in entry:
            if key not in PHASE_KEYS | {"name"}:
                raise unknown_key(key, PHASE_KEYS, f"phase {name}")
        phases.append({**with_paths(entry, base), "name": name})
    everywhere, single = _sorted_out(settings, names)
    top = {key: value for key, value in common.items() if key not in ("name", "run_dir")}
    given = merge(dict(options or {}), everywhere)
    made = []
    for entry in phases:
        asked = single.get(entry["name"], {})
        own = merge(entry, merge(_of_its_method(given, top, entry, asked), asked))
        named = frozenset(entry)
        made.append({**merge(_fitting(top, own), own), "own": own, "named": named})
    return common, made


def _name(name: Any, number: int, earlier: Sequence[str]) -> str:
    if name is None:
        raise ConfigError(f"phases: entry {number} has no name; give it one, as emotional")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        rule = "it must be a word of letters, digits, _, - and . that names its folder"
        raise broken("phase name", name, rule)
    if name in _TAKEN or name.startswith("checkpoint-"):
        raise broken("phase name", name, "a run folder has something else of this name")
    if name.lower() in (one.lower() for one in earlier):
        raise ConfigError(
            f"two phases are called {name}; a phase's name is its folder, so each needs its own"
        )
    return name


def _fitting(common: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Common keys without those a phase has something else for: its own source of data, and the
    tables of a method or an objective it does not have."""
    left = dict(common)
    if "rows" in own:
        for key in ("data", "eval_data"):
            left.pop(key, None)
    elif "data" in own:
        for key in DATA_KEYS:
            left.pop(key, None)
    if own.get("method", common.get("method")) == "full" and "lora" not in own:
        left.pop("lora", None)
    if own.get("objective", common.get("objective")) == "sft" and "dpo" not in own:
        left.pop("dpo", None)
    return left


def _of_its_method(
    given: Mapping[str, Any],
    top: Mapping[str, Any],
    entry: Mapping[str, Any],
    asked: Mapping[str, Any],
) -> dict[str, Any]:
    """What is asked of all phases, without the tables of a method or an objective that this one
    does not have: a rank for adapters says nothing of a phase that trains whole weights."""
    left = dict(given)
    words = {**top, **entry, **given, **asked}
    for table, word, other in (("lora", "method", "full"), ("dpo", "objective", "sft")):
        if word in entry and words[word] == other and not (table in entry or table in asked):
            left.pop(table, None)
    return left


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of both, tables key by key; `above` wins, and None in it takes a table away.

    A training setting is the same under TRL's name and ours.
    """
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if value is None and key in ("lora", "dpo", "monitor"):
            merged.pop(key, None)
        elif isinstance(old, Mapping) and isinstance(value, Mapping) and key != "model":
            inner = dict(old)
            if key == "training":
                gone = {_ours(name) for name in value}
                inner = {name: v for name, v in inner.items() if _ours(name) not in gone}
            merged[key] = {**inner, **value}
        else:
            merged[key] = value
    return merged


def _ours(name: str) -> str:
    return "lr_schedule" if name == TRL_SCHEDULE_KEY else TRL_ALIASES.get(name, name)


def _sorted_out(
    settings: Iterable[str], names: Sequence[str]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Settings of all phases, and of single ones, as the tables they would be in a file."""
    everywhere: dict[str, Any] = {}
    single: dict[str, dict[str, Any]] = {}
    for setting in settings:
        key, value = name_and_value(setting)
        target = everywhere
        if key.startswith("phases."):
            _, phase, key = [*key.split(".", 2), "", ""][:3]
            if phase not in names:
                raise unknown_key(phase, names, f"phases ({', '.join(names)})")
            if not key:
                raise ConfigError(f"--set {setting}: write phases.{phase}.NAME=VALUE")
            target = single.setdefault(phase, {})
        table, _, rest = key.partition(".")
        if rest and table in (*TABLES, "monitor"):
            part = {table: {rest: value}}
        elif key in PHASE_KEYS:
            part = {key: value}
        elif key in TRAINING_KEYS:
            part = {"training": {key: value}}
        else:
            raise unknown_key(key, PHASE_KEYS | TRAINING_KEYS, "a phase or its training")
        merged = merge(target, part)
        target.clear()
        target.update(merged)
    return everywhere, single


def _task(task: Any, base: Path) -> Any:
    """An evaluation, the path of its file made whole."""
    name, sign, rest = task.partition(":") if isinstance(task, str) else ("", "", "")
    if not rest or name == "lm-eval" or rest.startswith(SCHEMES) or "," in rest:
        return task
    path = Path(rest).expanduser()
    return f"{name}{sign}{path if path.is_absolute() else base / path}"


def with_paths(values: Mapping[str, Any], base: Path | None) -> dict[str, Any]:
    """The keys with relative paths taken from `base`."""
    made = dict(values)
    if base is None:
        return made

    def joined(value: Any) -> Any:
        if not isinstance(value, (str, Path)) or str(value).startswith(SCHEMES):
            return value
        path = Path(value).expanduser()
        return str(path if path.is_absolute() else base / path)

    def rows(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: joined(v) if k in ("file", "source") else v for k, v in value.items()}
        return joined(value)

    evals = made.get("evals")
    if isinstance(evals, (str, list)):
        one = isinstance(evals, str)
        tasks = [_task(task, base) for task in ([evals] if one else evals)]
        made["evals"] = tasks[0] if one else tasks
    for key in ("model", "data", "eval_data", "tokenizer", "run_dir"):
        if key in made:
            made[key] = joined(made[key])
    for key in ("rows", "eval_rows"):
        if key in made:
            value = made[key]
            made[key] = [rows(one) for one in value] if isinstance(value, list) else rows(value)
    tables = {
        "training": CONFIG_PATHS,
        "lora": ("adapter", "export_gguf_path"),
        "dpo": ("ref_model",),
    }
    for table, keys in tables.items():
        inner = made.get(table)
        if isinstance(inner, Mapping):
            made[table] = {k: joined(v) if k in keys else v for k, v in inner.items()}
    return made
