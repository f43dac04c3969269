"""docs/cli.md says what the programs say."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    path = ROOT / "tools" / "make_cli_docs.py"
    spec = importlib.util.spec_from_file_location("make_cli_docs", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_cli_docs"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_programs_say(maker: ModuleType) -> None:
    stored = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert stored == maker.page(), "docs/cli.md is old: run `make docs`"


def test_every_verb_is_on_the_page_with_an_example(maker: ModuleType) -> None:
    for name, function, epilog in maker.verbs():
        text = maker.abi_train_verb(name, function, epilog)
        assert f"\n    abi-train {name.split()[0]}" in text
        assert text.count("| `") >= 1
        assert function.__doc__


def test_every_option_has_a_help_text(maker: ModuleType) -> None:
    bare = [
        f"{name} {parameter.spelled}"
        for name, function, _ in maker.verbs()
        for parameter in maker.parameters(function)
        if len(parameter.help) < 8
    ]
    assert bare == []


def test_no_page_names_an_option_or_a_verb_that_is_not_there() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    verbs = set(re.findall(r"^### `(abi(?:-train)? [\w ]+)`", page, re.MULTILINE))
    verbs |= {"abi version", "abi-train runs"}  # the group lists by itself
    options = set(re.findall(r"--[\w-]+", page))
    wrong = []
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("examples/*.md")]:
        text = path.read_text(encoding="utf-8")
        code = re.findall(r"`([^`\n]+)`", text) + re.findall(r"^(?:\$ |    )(abi.*)$", text, re.M)
        for line in code:
            words = re.match(r"(abi(?:-train)?) ([a-z]+)( [a-z]+)?", line)
            if words is None:
                continue
            short, long = f"{words[1]} {words[2]}", f"{words[1]} {words[2]}{words[3] or ''}"
            if short not in verbs and long not in verbs:
                wrong.append(f"{path.name}: {line}")
            for option in re.findall(r"(?<!\S)--[a-z][\w-]+", line):
                if option not in options:
                    wrong.append(f"{path.name}: {line}: {option}")
    assert wrong == []
