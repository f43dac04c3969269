"""Where runs are: folders with a log, at most a few levels down.

Does not know: what is in a log.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from ..errors import CheckpointError, MissingFileError
from ..phased import PHASED_FILE as PHASES_FILE
from ..phased import read_phased
from ..progress import LOG_FILE
from .log import RunLog, read_run

DEPTH: Final = 4
_SKIPPED: Final = ("checkpoint-", ".", "__")


def find(folders: Iterable[str | Path] = ()) -> list[RunLog]:
    """The runs in and below these folders; else below `runs`, else below where you stand.

    Phases of a recipe stand in its order, other runs by the time they began. Raises
    `MissingFileError` for a folder that is not there.
    """
    given = [Path(folder) for folder in folders]
    if not given:
        given = [Path("runs") if Path("runs").is_dir() else Path()]
    found: dict[Path, None] = {}
    for folder in given:
        if not folder.is_dir():
            raise MissingFileError(f"{folder}: no such folder; check the path")
        found.update(dict.fromkeys(_below(folder, DEPTH)))
    runs = [read_run(folder) for folder in found]
    first: dict[Path, float] = {}
    for run in runs:  # all phases of a recipe stand where its first one does
        group = _group(run.folder)
        first[group] = min(first.get(group, float("inf")), run.started or 0.0)
    return sorted(runs, key=lambda run: (first[_group(run.folder)], _place(run.folder)))


def phases(folder: Path) -> list[Path]:
    """Folders of the phases of a phased run that have begun, in order; empty for another folder.

    Raises `CheckpointError` for a damaged `recipe.json`.
    """
    names = (read_phased(folder) or {"phases": ()})["phases"]
    found = [folder / name for name in names if Path(name).name == name]
    return [path for path in found if (path / LOG_FILE).is_file()]


def _below(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / LOG_FILE).is_file():
        yield folder
    if depth == 0:
        return
    try:
        with os.scandir(folder) as entries:
            names = sorted(
                entry.name
                for entry in entries
                if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(_SKIPPED)
            )
    except OSError:
        return  # a folder of somebody else's
    for name in names:
        yield from _below(folder / name, depth - 1)


def _group(folder: Path) -> Path:
    return folder.parent if (folder.parent / PHASES_FILE).is_file() else folder


def _place(folder: Path) -> tuple[str, int, str]:
    group = _group(folder)
    try:
        order = phases(group) if group != folder else []
    except CheckpointError:
        order = []  # its phases are still there to list
    at = order.index(folder) if folder in order else len(order)
    return str(group), at, str(folder)
