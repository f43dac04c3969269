"""Recipes with random changes: taken or refused in words, never a traceback."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import yaml
from test_mutated_adapters import ODD, changed

from abi_train import RunSpec, recipes
from abi_train.errors import AbiTrainError, InternalError

TIMES = 40


def values(node: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Where the single values stand."""
    pairs = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    found = [place for key, value in pairs for place in values(value, (*path, key))]
    return found or [path]


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_changed_bytes(tmp_path: Path, form: str) -> None:
    text = recipes.shipped_recipe("abbey-tiny").read_text(encoding="utf-8")
    if form == "json":
        text = json.dumps(yaml.safe_load(text))
    attempt(tmp_path / f"r.{form}", text.encode(), text=form == "json")


def attempt(path: Path, whole: bytes, *, text: bool) -> None:
    seed = random.randrange(2**32)
    draw = random.Random(seed)
    for _ in range(TIMES):
        path.write_bytes(changed(draw, whole, text=text))
        read(path, seed)


def read(path: Path, seed: int) -> None:
    try:
        recipes.load(path)
        RunSpec.load(path)
    except AbiTrainError as error:
        assert not isinstance(error, InternalError), (seed, error)
        assert str(error), seed


def test_changed_values(tmp_path: Path) -> None:
    """One value at a time becomes an odd one: all of them, not only those that hit a digit."""
    recipe = yaml.safe_load(recipes.shipped_recipe("abbey-tiny").read_text(encoding="utf-8"))
    path = tmp_path / "r.json"
    draw = random.Random()
    places = values(recipe)
    for place in [("tokenizer",), *draw.sample(places, min(len(places), 60))]:
        broken = json.loads(json.dumps(recipe))
        node = broken
        for key in place[:-1]:
            node = node[key]
        for odd in draw.sample(ODD, 1):
            node[place[-1]] = "ODD"
            path.write_text(json.dumps(broken).replace('"ODD"', odd), encoding="utf-8")
            read(path, 1)
