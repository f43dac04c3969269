"""A folder with a recipe of three phases and its rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_recipe import Make, document, write_chats, write_pairs

from abi_train import recipes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_chats(tmp_path / "base.jsonl", 8)
    write_chats(tmp_path / "talk.jsonl", 8, word="plums")
    write_pairs(tmp_path / "pairs.jsonl", 6)
    (tmp_path / "tiny.json").write_text(json.dumps(document()))
    return tmp_path


@pytest.fixture
def make(folder: Path) -> Make:
    """The recipe in `folder`, changed by options of `recipes.load`."""

    def made(**changes: Any) -> recipes.Recipe:
        return recipes.load(folder / "tiny.json", **{"run_dir": folder / "run", **changes})

    return made
