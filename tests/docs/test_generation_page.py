"""docs/generation.md: its Python runs in its order, its commands do what they say."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "agent"))
from tiny_gguf import SHAPES, write_tiny_gguf

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "generation.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny_gguf(tmp_path / "tiny.gguf", SHAPES["llama"])
    return tmp_path


def test_the_python_of_the_page_runs_in_its_order(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "".join(blocks("python"))],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert re.search(r"length \{'prompt': \d+, 'reused': \d+, 'answer': 8", done.stdout)
    assert "ids kept" in done.stdout
    assert "ids known" in done.stdout
    [value] = [ast.literal_eval(line) for line in lines if line.startswith("{'feel")]
    assert value["feeling"] in ("joy", "anger", "fear")
    assert re.search(r"\d+ of \d+ guesses came true", lines[-1])


def test_the_commands_of_the_page_run(folder: Path, program: Path) -> None:
    (folder / "schema.json").write_text('{"items": {"type": "boolean"}, "maxItems": 2}')
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) == 3
    for command in commands:
        first, *rest = shlex.split(command)
        assert first == "abi"
        done = subprocess.run(
            [str(program), *rest, "--seed", "1"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
    assert isinstance(json.loads(done.stdout), list)
    assert {"long.cache", "diary.cache"} <= {path.name for path in folder.iterdir()}


def test_the_page_names_every_keyword_that_is_understood() -> None:
    source = (ROOT / "zig" / "src" / "infer" / "json_schema.zig").read_text(encoding="utf-8")
    found = re.search(r"const understood = \[_\]\[\]const u8\{(.*?)\};", source)
    assert found is not None
    for keyword in re.findall(r'"([^"]+)"', found.group(1)):
        assert f"`{keyword}`" in PAGE, keyword
