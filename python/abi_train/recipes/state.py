"""`recipe.json` in a run folder: how far a phased recipe is, and what its phases were made from.

Written whole after every change, so a killed recipe goes on from it. Does not know: how a phase is
prepared or run.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..checkpoint import list_checkpoints, write_text_atomic
from ..errors import CheckpointError, ConfigError, FileAccessError
from ..phased import PHASED_FILE, is_place_of
from ..runspec import RunSpec
from .recipe import Phase, Recipe

STATE_FILE: Final = PHASED_FILE
VERSION: Final = 1

STATES: Final = ("new", "running", "interrupted", "failed", "finished")

_ANYWHERE: Final = ("model", "data", "eval_data", "run_dir", "tokenizer", "engine", "resume")
"""Settings of a run that do not make it another one: places, which are compared by what they hold,
and the engine, as either goes on where the other stopped."""
_WATCHING: Final = (
    "log_interval",
    "checkpoint_interval",
    "max_checkpoints",
    "checkpoint_path",
    "threads",
    "log_dir",
    "enable_tensorboard",
    "enable_wandb",
    "wandb_project",
    "wandb_run_name",
    "wandb_entity",
    "export_gguf_path",
    "export_name",
    "recompute_activations",
)


@dataclass(kw_only=True)
class PhaseState:
    """How far a phase is. checkpoint: the folder with its result, from the run folder.

    settings, data, began: what it was made with, from, and after; see `settings_of`. result: loss,
    updates, tokens, seconds. scores: evaluations of its result.
    """

    state: str = "new"
    checkpoint: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    began: str | None = None
    result: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def finished(self) -> bool:
        """True when its result can be gone on from."""
        return self.state == "finished"


class RecipeState:
    """The content of `recipe.json`.

    Raises `ConfigError` for the folder of another recipe or run, `CheckpointError` for a damaged
    file.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self.path = recipe.run_dir / STATE_FILE
        self.phases: dict[str, PhaseState] = {}
        self.before: dict[str, Any] = {}
        """Evaluations of the model the recipe began with."""
        if self.path.is_file():
            self._read()
        elif list_checkpoints(recipe.run_dir):
            raise ConfigError(
                f"{recipe.run_dir} holds checkpoints of another run; name another folder with "
                "--run-dir"
            )
        for phase in recipe.phases:
            found = self.phases.setdefault(phase.name, PhaseState())
            if found.finished and self.result_of(phase) is None:
                found.state = "new"  # its folder was deleted to train it again

    def _read(self) -> None:
        try:
            values = json.loads(self.path.read_text(encoding="utf-8"))
            name, version = values["name"], values["version"]
            phases = {
                str(key): _phase_state(str(key), value)
                for key, value in dict(values["phases"]).items()
            }
            for key, one in phases.items():
                _check(self._recipe.run_dir, key, one)
            before = dict(values.get("before") or {})
        except OSError as error:
            raise FileAccessError(f"{self.path}: cannot be read ({error.strerror})") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            why = str(error) if isinstance(error, _DamagedError) else "it lacks what each has"
            if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
                why = "it is no JSON"
            raise CheckpointError(
                f"{self.path}: not the state of a recipe: {why}. Name another folder with "
                "--run-dir, or move this one away."
            ) from None
        if version != VERSION:
            raise CheckpointError(
                f"{self.path}: written by another version (format {version}, this one reads "
                f"{VERSION}). Name another folder with --run-dir."
            )
        if name != self._recipe.name:
            raise ConfigError(
                f"{self._recipe.run_dir} is the run folder of the recipe {name}, not of "
                f"{self._recipe.name}; name another folder with --run-dir"
            )
        self.phases, self.before = phases, before

    def save(self) -> None:
        """Write it. Raises `FileAccessError` when the system refuses."""
        values = {
            "version": VERSION,
            "name": self._recipe.name,
            "source": None if self._recipe.source is None else str(self._recipe.source),
            "before": self.before,
            "phases": {name: vars(state) for name, state in self.phases.items()},
            "recipe": self._recipe.to_dict(),
        }
        text = json.dumps(values, indent=2, ensure_ascii=False, default=str) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomic(self.path, text)
        except OSError as error:
            raise FileAccessError(f"{self.path}: cannot be written ({error.strerror})") from None

    def __getitem__(self, phase: Phase) -> PhaseState:
        return self.phases[phase.name]

    def result_of(self, phase: Phase) -> Path | None:
        """The folder with the result of a finished phase, while it is there."""
        found = self.phases.get(phase.name)
        if found is None or not found.finished or found.checkpoint is None:
            return None
        folder = self._recipe.run_dir / found.checkpoint
        return folder if folder.is_dir() else None


class _DamagedError(ValueError):
    """Says what is wrong with a state."""


def _phase_state(name: str, values: Any) -> PhaseState:
    known = {item.name: item for item in dataclasses.fields(PhaseState)}
    if not isinstance(values, dict):
        raise _DamagedError(f"phase {name} is no table")
    for key, value in values.items():
        if key not in known:
            raise _DamagedError(f"phase {name} has {key!r}, which is no key of it")
        kinds = {"state": str, "checkpoint": str | None, "began": str | None, "error": str | None}
        if not isinstance(value, kinds.get(key, dict)):
            raise _DamagedError(f"{key} of phase {name} is not what it must be")
    found = PhaseState(**values)
    if found.state not in STATES:
        raise _DamagedError(f"phase {name} has the state {found.state!r}")
    return found


def _check(run_dir: Path, name: str, found: PhaseState) -> None:
    """The result of a phase is in the phase's folder, wherever the run was moved to."""
    if found.checkpoint is None:
        return
    if not is_place_of(run_dir, name, found.checkpoint):
        rule = f"it must be in the phase's folder, {name}"
        raise _DamagedError(f"the checkpoint of phase {name} is {found.checkpoint!r}; {rule}")


def settings_of(spec: RunSpec) -> dict[str, Any]:
    """The settings of a run that make it what it is, as plain values."""
    values = spec.to_dict()
    for key in (*_ANYWHERE, "monitor", "commercial"):
        values.pop(key, None)
    training = {k: v for k, v in values.pop("training").items() if k not in _WATCHING}
    for table, keys in (("lora", ("adapter", "export_gguf_path")), ("dpo", ())):
        inner = values.pop(table, None)
        if isinstance(inner, Mapping):
            training.update({f"{table}.{k}": v for k, v in inner.items() if k not in keys})
    plain: dict[str, Any] = json_plain({**values, **training})
    return plain


def json_plain(values: Any) -> Any:
    """The values as they come back from a JSON file."""
    return json.loads(json.dumps(values, default=str))


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first key that differs, with both values, in words; None when nothing does."""
    for key in [*now, *(key for key in before if key not in now)]:
        if before.get(key) != now.get(key):
            return f"{key} was {_shown(before.get(key))} and is {_shown(now.get(key))}"
    return None


def _shown(value: Any) -> str:
    text = "unset" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:79] + "…"
