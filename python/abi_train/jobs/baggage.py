"""What travels with a job: the recipe, rewritten to the files beside it, and those files.

Files of this machine that a recipe names are linked or copied into one folder; what is fetched
where it runs (`hub:`, `set:`, `sample:`) stays as it is named. Paths that name nothing stay too: a
phase may name what an earlier one leaves.

Does not know: the Hub.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..config import read_document, write_document
from ..errors import ConfigError, MissingFileError

RECIPE: Final = "recipe.yaml"
FILES: Final = "files"

_PATHS: Final = frozenset(
    {"model", "tokenizer", "data", "eval_data", "rows", "eval_rows", "file", "adapter", "ref_model"}
)
"""Keys whose value may name a file of this machine."""
_OUTPUTS: Final = frozenset({"checkpoint_path", "log_dir", "export_gguf_path"})
"""Keys that name what a run writes: taken to the run's folder, by their last name."""


@dataclass(kw_only=True)
class Staged:
    """A folder ready to travel. files: what is in it, by its name there.
    taken: where each file or folder of this machine went."""

    folder: Path
    files: dict[str, int] = field(default_factory=dict)
    wheel: str | None = None
    taken: dict[Path, str] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Of everything."""
        return sum(self.files.values())


def stage(recipe: Path, folder: Path, *, base: Path, wheel: Path | None = None) -> Staged:
    """Put the recipe and what it names into `folder`, which must be empty.

    base: the folder that its relative paths are taken from. Raises `ConfigError` for a recipe that
    cannot be read, `MissingFileError` for a wheel that is not there.
    """
    document = read_document(recipe)
    staged = Staged(folder=folder)
    values = _table(document, base, staged)
    if isinstance(values.get("model"), str) and not values["model"].strip():
        raise ConfigError("model is empty")
    write_document(folder / RECIPE, values)
    if wheel is not None:
        check_wheel(wheel)
        _take(wheel, folder / wheel.name)
        staged.wheel = wheel.name
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            staged.files[path.relative_to(folder).as_posix()] = path.stat().st_size
    return staged


def check_wheel(wheel: Path) -> None:
    """Raise `MissingFileError` where there is no wheel, `ConfigError` for another package's."""
    if not wheel.is_file() or wheel.suffix != ".whl":
        raise MissingFileError(f"{wheel}: no wheel; build one with `pip wheel .`")
    if not re.fullmatch(r"abi_train-[A-Za-z0-9_.+!-]+\.whl", wheel.name):
        raise ConfigError(f"wheel: {wheel} is not named as a wheel of abi-train, abi_train-*.whl")


def take_option(value: Path, staged: Staged, *, at: str) -> str:
    """A file or folder named on the command line; returns what to name it there."""
    name = _brought(str(value), Path(), staged)
    if isinstance(name, str) and name != str(value):
        for path in sorted((staged.folder / FILES).rglob("*")):
            if path.is_file():
                inside = path.relative_to(staged.folder).as_posix()
                staged.files[inside] = path.stat().st_size
        return f"{at}/{name}"
    return str(value)


def _table(values: Mapping[str, Any], base: Path, staged: Staged) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key in _OUTPUTS and isinstance(value, str):
            found[key] = f"run/{Path(value).name}"
        elif isinstance(value, Mapping) and key != "model":
            found[key] = _table(value, base, staged)
        elif isinstance(value, list):
            found[key] = [_item(key, one, base, staged) for one in value]
        else:
            found[key] = _item(key, value, base, staged)
    return found


def _item(key: str, value: Any, base: Path, staged: Staged) -> Any:
    if isinstance(value, Mapping) and key != "model":
        return _table(value, base, staged)
    if key in _PATHS and isinstance(value, str):
        return _brought(value, base, staged)
    return value


def _brought(value: str, base: Path, staged: Staged) -> str:
    """The new name of a file that is on this machine; another value as it is."""
    if not value or value.startswith(("hub:", "set:", "sample:")):
        return value
    path = base / Path(value).expanduser()
    if not path.exists():
        return value
    real = path.resolve()
    if real in staged.taken:
        return staged.taken[real]
    number, name = 0, real.name
    home = staged.folder / FILES
    while (home / name).exists():
        number += 1
        name = f"{number}-{real.name}"
    target = home / name
    home.mkdir(parents=True, exist_ok=True)
    staged.taken[real] = f"{FILES}/{name}"
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file() and not _is_left(file.relative_to(path)):
                _take(file, target / file.relative_to(path))
        target.mkdir(exist_ok=True)
    else:
        _take(path, target)
        if path.suffix == ".bin":
            # Its manifest, row starts, mask and parts lie beside it under the same name.
            for side in sorted(path.parent.glob(f"{path.stem}*")):
                if side.is_file() and side != path:
                    renamed = f"{number}-{side.name}" if number else side.name
                    if not (home / renamed).exists():
                        _take(side, home / renamed)
    return f"{FILES}/{name}"


def _is_left(path: Path) -> bool:
    """What a folder of a model has beside the model: earlier checkpoints, hidden files."""
    return any(part.startswith((".", "checkpoint-")) for part in path.parts)


def _take(source: Path, target: Path) -> None:
    """A second name for the file, or a copy where that cannot be."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
