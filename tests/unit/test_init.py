"""The starter recipe: it loads, whatever the paths in it are called."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from abi_train.cli.init import COLUMN, init, recipe
from abi_train.errors import ConfigError
from abi_train.runspec import RunSpec

NAMES = [
    "model",
    "./SmolLM2-135M",
    "a: b",
    "a #b",
    "it's",
    'say "hi"',
    "back\\slash",
    "- dash",
    "[list]",
    "{map}",
    "&anchor",
    "*alias",
    "!tag",
    "%percent",
    "@at",
    "null",
    "true",
    "no",
    "12",
    "1e-5",
    "1e5",
    "2026-11-22",
    "0x10",
    "~/x",
    " spaces ",
    "Zoë/模型/🙂",
    "two\nlines",
    "tab\there",
    "x" * 300,
]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_loads_back_with_the_names_it_was_given(tmp_path: Path, name: str) -> None:
    path = tmp_path / "r.yaml"
    init(path, model=name, data=name + ".bin")
    spec = RunSpec.load(path)
    for found, given in ((spec.model, name), (spec.data, name + ".bin")):
        assert found == tmp_path / Path(given).expanduser()


def test_a_recipe_can_be_called_anything(tmp_path: Path) -> None:
    path = tmp_path / "two\nlines: #1.yaml"
    init(path, model="m", data="d.bin")
    assert RunSpec.load(path).model == tmp_path / "m"


@pytest.mark.parametrize("name", ["", "nul\0", "half\ud800"])
def test_a_name_that_no_recipe_can_hold_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="model is "):
        init(tmp_path / "r.yaml", model=name, data="d.bin")
    assert list(tmp_path.iterdir()) == []


def test_comments_stand_in_one_column() -> None:
    text = recipe(Path("r.yaml"), model="model", data="data/train.bin")
    commented = [line for line in text.splitlines() if " # " in line.lstrip("# ")]
    assert len(commented) >= 6
    assert {line.rindex(" # ") + 1 for line in commented} == {COLUMN}


def test_the_tables_it_shows_can_be_switched_on(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    text = recipe(path, model="m", data="d.bin")
    shown = text[text.index("# lora:") : text.index("training:")]
    path.write_text(text.replace(shown, re.sub(r"(?m)^# ?", "", shown)))
    run = RunSpec.load(path)
    assert (run.method, run.objective) == ("lora", "dpo")
    assert run.lora is not None and run.lora.r == 16
