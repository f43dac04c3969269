"""The program under test, and a fresh copy of the sound folder for each case."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import sound


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sound.make_sound(tmp_path_factory.mktemp("sound") / "folder")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    target = tmp_path / "folder"
    shutil.copytree(original, target)
    return target
