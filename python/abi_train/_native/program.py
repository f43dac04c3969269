"""Where the `abi` program lies, and the command of that name."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

from .core import library_path


def program_path() -> Path:
    """The `abi` program of this installation. Raises FileNotFoundError when it is missing.

    Found beside the extension and not beside the package: in an editable install only the
    extension lies where the build put things.
    """
    path = library_path.parents[1] / "bin" / "abi"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; install abi-train again")
    return path


def main() -> NoReturn:
    """Becomes the `abi` program, with this command's arguments."""
    path = program_path()
    os.execv(path, ["abi", *sys.argv[1:]])
