"""The program under test, and a fresh copy of the sound folder for each case."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import sound

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def program() -> Path:
    """``ABI_PROGRAM``, or the program in ``zig-out``; the tests are skipped without one."""
    path = Path(os.environ.get("ABI_PROGRAM", ROOT / "zig-out" / "bin" / "abi"))
    if not path.is_file():
        pytest.skip(f"{path} is not built: run `python -m ziglang build`, or set ABI_PROGRAM")
    return path


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sound.make_sound(tmp_path_factory.mktemp("sound") / "folder")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    target = tmp_path / "folder"
    shutil.copytree(original, target)
    return target
