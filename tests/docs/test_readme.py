"""README.md is run: its commands in one shell, in order, and its Python. Links lead somewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def steps() -> Iterator[tuple[str, list[str]]]:
    """Each command of the console blocks with the lines the page shows under it."""
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *shown = part.splitlines()
            yield command, shown


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1", "COLUMNS": "100", "NO_COLOR": "1"}


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder after all commands, and what each printed."""
    folder = tmp_path_factory.mktemp("tour")
    mark = "----- end of a command -----"
    script = "set -e\n" + "".join(f"{command}\necho '{mark}'\n" for command, _ in steps())
    done = subprocess.run(
        [shutil.which("bash") or "bash", "-c", script],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
        env=environment(),
        check=False,
    )
    printed = done.stdout.split(mark + "\n")
    assert done.returncode == 0, (
        f"command {len(printed)} failed:\n{printed[-1]}\n{done.stderr[-3000:]}"
    )
    return folder, printed


def test_the_tour_has_every_part() -> None:
    text = " ".join(command for command, _ in steps())
    for verb in ("data prepare", "init", "train", "check", "export", "chat"):
        assert f"abi-train {verb}" in text


@pytest.mark.slow
def test_each_command_prints_what_the_page_shows(tour: tuple[Path, list[str]]) -> None:
    _, printed = tour
    for (command, shown), output in zip(steps(), printed, strict=False):
        words = " ".join(output.split())
        for line in shown:
            assert " ".join(line.split()) in words, f"$ {command}\n{output}"


@pytest.mark.slow
def test_the_python_of_the_page_runs(tour: tuple[Path, list[str]]) -> None:
    folder, _ = tour
    (program,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.match(r"\d+\.\d+ .*checkpoint-\d+", done.stdout)
    assert (folder / "python.gguf").is_file()


def test_the_zig_of_the_page_stands_in_an_example_that_is_compiled() -> None:
    (snippet,) = blocks("zig")
    sources = [p.read_text(encoding="utf-8") for p in (ROOT / "examples" / "zig").glob("*.zig")]
    indented = textwrap.indent(snippet, "    ")
    assert any(indented in source for source in sources)


PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_named_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
    named = re.findall(r"`((?:zig|tests|docs|tools|benchmarks|examples)/[\w./-]+)`", text)
    for target in named:
        found = (ROOT / target).exists() or (page.parent / target).exists()
        assert found, f"{page.name} names {target}"


def test_every_page_of_docs_is_linked_from_the_readme_or_another_page() -> None:
    linked: set[Path] = set()
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+\.md)", page.read_text(encoding="utf-8")):
            linked.add((page.parent / target).resolve())
    missing = {p.resolve() for p in (ROOT / "docs").rglob("*.md")} - linked
    assert missing == set()
