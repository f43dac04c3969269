"""The demonstration's folder: whose it is, and the old results until the new ones are whole.

Ours is a folder with the file `.abi-train-demo`; nobody else's is touched. While a demonstration
is made, the results of the one before wait in `previous`; they leave when the new ones are whole
and come back when those fail. Each move can be broken off anywhere: the next start finishes it.

Does not know: how any of the results is made.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from ..checkpoint import run_lock
from ..errors import FileAccessError

MARKER: Final = ".abi-train-demo"
RESULTS: Final = (
    "train.bin",
    "train.json",
    "train.idx",
    "train.mask",
    "config.json",
    "recipe.yaml",
    "run",
    "abbey-demo.gguf",
    "abbey-demo.md",
    "Modelfile",
)
"""All a demonstration makes; other files in its folder stay where they are."""

PREVIOUS: Final = "previous"
MOVING: Final = ".previous-moving"
RETIRED: Final = ".previous-retired"


@contextlib.contextmanager
def fresh_results(folder: Path, tell: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Room for new results in `folder`; the earlier ones return when the body does not finish.

    tell: called with a line when earlier results are put aside, and when they return.
    Raises `FileAccessError` for a folder that holds anything and is no demonstration's, or that
    another demonstration is using.
    """
    _claim(folder)
    with run_lock(folder):
        _finish_moves(folder)
        _put_aside(folder)
        if (folder / PREVIOUS).is_dir():
            tell(f"the earlier results wait in {folder / PREVIOUS} until the new ones are whole")
        try:
            yield
        except BaseException:
            if _bring_back(folder):
                tell(f"{folder} holds the earlier results again")
            raise
        _retire(folder)


def _claim(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise FileAccessError(f"{folder} is not a folder; name another one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / MARKER).is_file():
            if any(folder.iterdir()):
                raise FileAccessError(
                    f"{folder} holds files, and none says that they are of a demonstration; name "
                    "a new folder, or delete this one"
                )
            names = ", ".join(RESULTS)
            text = f"Made by abi-train demo. Run again, it makes anew: {names}.\n"
            (folder / MARKER).write_text(text, encoding="utf-8")
    except OSError as error:
        if isinstance(error, FileAccessError):
            raise
        raise FileAccessError(
            f"{folder} cannot be written ({error.strerror}); name another folder"
        ) from None


def _finish_moves(folder: Path) -> None:
    """What an attempt that was killed left: moves half done, results not whole."""
    shutil.rmtree(folder / RETIRED, ignore_errors=True)
    if (folder / MOVING).is_dir():
        _move_back(folder)
    elif (folder / PREVIOUS).is_dir():
        _bring_back(folder)


def _put_aside(folder: Path) -> None:
    found = [name for name in RESULTS if (folder / name).exists()]
    if not found:
        return
    (folder / MOVING).mkdir()
    for name in found:
        (folder / name).rename(folder / MOVING / name)
    (folder / MOVING).rename(folder / PREVIOUS)


def _bring_back(folder: Path) -> bool:
    """The earlier results in place of unfinished ones, which stay where there are no earlier."""
    if not (folder / PREVIOUS).is_dir():
        return False
    for name in RESULTS:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    (folder / PREVIOUS).rename(folder / MOVING)
    _move_back(folder)
    return True


def _move_back(folder: Path) -> None:
    for path in sorted((folder / MOVING).iterdir()):
        path.rename(folder / path.name)
    (folder / MOVING).rmdir()


def _retire(folder: Path) -> None:
    if (folder / PREVIOUS).is_dir():
        # Renamed first: a deletion broken off halfway must not look like results worth keeping.
        (folder / PREVIOUS).rename(folder / RETIRED)
        shutil.rmtree(folder / RETIRED, ignore_errors=True)
