"""`recipe.json` of a phased run as readers see it: which phases there are, and their results.

Does not know: recipes, how phases are trained.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from .errors import CheckpointError

PHASED_FILE: Final = "recipe.json"


def read_phased(folder: Path) -> dict[str, Any] | None:
    """What `recipe.json` of a phased run says: `phases`, a table by name, each with its `state` and
    `checkpoint`, a place in the phase's folder. None for any other folder, also for one that has a
    recipe somebody wrote under that name.

    Raises `CheckpointError` for a damaged file.
    """
    path = folder / PHASED_FILE
    try:
        if not path.is_file():
            return None
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _damaged(folder, error.strerror or "it cannot be read") from None
    except (ValueError, RecursionError):
        raise _damaged(folder, "it is not whole JSON") from None
    if not isinstance(values, dict):
        raise _damaged(folder, "it is no JSON object")
    phases = values.get("phases")
    if isinstance(phases, list) or (phases is None and "model" in values):
        return None  # a recipe, not the state of one
    if not isinstance(phases, dict):
        raise _damaged(folder, "it has no phases")
    for name, phase in phases.items():
        if not isinstance(phase, dict) or not isinstance(phase.get("state", ""), str):
            raise _damaged(folder, f"phase {name!r} has no state")
        place = phase.get("checkpoint")
        if place is not None and not (isinstance(place, str) and is_place_of(folder, name, place)):
            raise _damaged(folder, f"the checkpoint of phase {name!r} is {place!r}")
    return values


def is_place_of(folder: Path, name: str, place: str) -> bool:
    """Whether a place in a run folder is that of phase `name` or below it, symbolic links
    followed."""
    if Path(name).name != name:
        return False
    try:
        return (folder / place).resolve().is_relative_to((folder / name).resolve())
    except (OSError, ValueError, RuntimeError):  # NUL, a circle of links
        return False


def _damaged(folder: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{folder / PHASED_FILE}: cannot be read as the state of a phased run: {why}. It is "
        "damaged, and nothing else tells which phase is finished; name the folder of a phase or a "
        "checkpoint in it, or bring the file back from a copy"
    )
